//! `/v1/blobs/{sha256}`: bytes under the name of their content.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use http::{StatusCode, header};
use http_body_util::BodyExt as _;
use serde::Serialize;
use souk_commerce::id::Digest;

use super::problem::Problem;
use super::{Shared, named};
use crate::blobs::{Blobs, Held};
use crate::store::audit::{Actor, Deed};

/// What the audit log calls an upload.
const PUT_ACTION: &str = "blob.put";

#[derive(Serialize)]
struct Stored {
    digest: Digest,
    bytes: u64,
    created: bool,
}

pub(super) async fn put(
    State(control): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(digest): Path<String>,
    mut body: Body,
) -> Result<Response, Problem> {
    let digest: Digest = named("digest", &digest)?;
    let held = control.blobs.check(digest).await?;
    if let Held::Whole { bytes } = held {
        // Here already, whatever the body says: it is read to its end by whoever sent it or cut off by the connection. But
        // whoever brought it may have been cut off before its name was durable and its row written.
        finish(async move {
            let _relied_on = control.blobs.relied_on().await;
            if control.blobs.size(digest).await?.is_none() {
                // Collected since it was seen: the next attempt brings it anew.
                return Err(Problem::busy());
            }
            control.blobs.settle(digest).await?;
            note(&control, actor, digest, bytes, held, true).await?;
            still_here(&control.blobs, [digest]).await
        })
        .await?;
        return Ok(Json(Stored { digest, bytes, created: false }).into_response());
    }
    let mut upload = control.blobs.begin().await?;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Problem::broken_body(error.to_string()))?;
        if let Some(chunk) = frame.data_ref() {
            upload.write(chunk).await?;
        }
    }
    let bytes = finish(async move {
        let _relied_on = control.blobs.relied_on().await;
        let bytes = upload.finish(digest).await?;
        note(&control, actor, digest, bytes, held, false).await?;
        still_here(&control.blobs, [digest]).await?;
        Ok(bytes)
    })
    .await?;
    Ok((StatusCode::CREATED, Json(Stored { digest, bytes, created: true })).into_response())
}

/// Runs the end of a change to its end, also when the one who asked has gone: a blob in its place has a row that says who
/// put it there, and whose it is; and what a queued row is about to name is relied on until it is written.
pub(super) async fn finish<T: Send + 'static>(
    work: impl Future<Output = Result<T, Problem>> + Send + 'static,
) -> Result<T, Problem> {
    tokio::spawn(work).await.unwrap_or_else(|error| {
        tracing::error!(%error, "keeping a blob panicked");
        Err(Problem::internal())
    })
}

/// Asked when the rows are written that name them. Another process over the same folder may have collected one of them
/// before that; whoever asks again is told what is missing, and brings it.
pub(super) async fn still_here(
    blobs: &Blobs,
    digests: impl IntoIterator<Item = Digest>,
) -> Result<(), Problem> {
    if blobs.are_here(digests).await? { Ok(()) } else { Err(Problem::collected()) }
}

async fn note(
    control: &Shared,
    actor: Actor,
    digest: Digest,
    bytes: u64,
    held: Held,
    once: bool,
) -> Result<(), Problem> {
    let detail = match held {
        Held::Damaged => serde_json::json!({ "bytes": bytes, "replaced": "damaged" }),
        Held::Absent | Held::Whole { .. } => serde_json::json!({ "bytes": bytes }),
    };
    let deed = Deed { action: PUT_ACTION, subject: digest.to_string(), detail };
    if once {
        control.store.record_once(actor, deed).await?;
    } else {
        control.store.record(actor, deed).await?;
    }
    Ok(())
}

pub(super) async fn head(
    State(control): State<Shared>,
    Path(digest): Path<String>,
) -> Result<Response, Problem> {
    let digest: Digest = named("digest", &digest)?;
    // Who asks means to leave the upload out if it is here: a damaged one has to be brought again.
    match control.blobs.check(digest).await? {
        Held::Whole { bytes } => Ok(([(header::CONTENT_LENGTH, bytes)], ()).into_response()),
        Held::Absent | Held::Damaged => Err(Problem::not_found(&format!("blob {digest}"))),
    }
}
