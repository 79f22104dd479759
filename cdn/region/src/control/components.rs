//! `GET /v1/sites/{site}/plugins/{plugin}/components/{sha256}`: the component of a release, for a replay on another machine.
//!
//! Only of the site's own releases. Whoever names another digest, another site's or none's, learns nothing of it.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderValue, header};
use tokio::sync::mpsc;

use super::plugins::ComponentInPath;
use super::problem::Problem;
use super::turns::{Busy, OwnTurn};
use super::{Shared, Site};

/// What is handed to the connection at a time.
const CHUNK_BYTES: usize = 64 << 10;
/// Who reads nothing for so long is cut off, and the component's 32 MiB with it.
const STALLED_MAX: Duration = Duration::from_secs(30);

pub(super) async fn get(
    State(control): State<Shared>,
    Site(site): Site,
    Path(path): Path<ComponentInPath>,
) -> Result<Response, Problem> {
    let (plugin, digest) = path.names()?;
    let unknown = || Problem::not_found(&format!("release of plugin {plugin} with component {digest}"));
    if !control.store.is_released(site.clone(), plugin.clone(), digest).await? {
        return Err(unknown());
    }
    let turn = control.turns.downloads.try_enter_owned(&site).map_err(|Busy| Problem::busy())?;
    let component = Bytes::from(control.blobs.load(digest).await?.ok_or_else(unknown)?);
    let length = HeaderValue::from(component.len());
    let mut response = trickle(component, turn).into_response();
    response.headers_mut().insert(header::CONTENT_LENGTH, length);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/wasm"));
    Ok(response)
}

/// A body whose bytes and whose turn are let go of when it has been read, or when nobody reads it: a task of its own
/// sees to that, because a connection that is not read does not ask its body for more.
fn trickle(mut component: Bytes, turn: OwnTurn) -> Body {
    let (send, chunks) = mpsc::channel(1);
    tokio::spawn(async move {
        let _turn = turn;
        while !component.is_empty() {
            let chunk = component.split_to(CHUNK_BYTES.min(component.len()));
            if !matches!(tokio::time::timeout(STALLED_MAX, send.send(chunk)).await, Ok(Ok(()))) {
                // The body is shorter than its length then, which no client takes for whole.
                return;
            }
        }
    });
    Body::from_stream(stream::unfold(chunks, |mut chunks| async move {
        let chunk: Bytes = chunks.recv().await?;
        Some((Ok::<_, Infallible>(chunk), chunks))
    }))
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::super::turns::Turns;
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_reads_nothing_gives_back_his_turn() {
        let (turns, site) = (Turns::new(), "shop".parse().unwrap());
        let component = Bytes::from(vec![7; 5 * CHUNK_BYTES + 1]);
        let body = trickle(component.clone(), turns.downloads.try_enter_owned(&site).ok().unwrap());
        assert!(turns.downloads.try_enter_owned(&site).is_err(), "one at a time of a site");
        assert_eq!(body.collect().await.unwrap().to_bytes(), component);
        tokio::task::yield_now().await;
        let stalled = trickle(component.clone(), turns.downloads.try_enter_owned(&site).ok().unwrap());
        tokio::time::sleep(STALLED_MAX + Duration::from_secs(1)).await;
        assert!(turns.downloads.try_enter_owned(&site).is_ok(), "another may");
        assert!(stalled.collect().await.unwrap().to_bytes().len() < component.len());
    }
}
