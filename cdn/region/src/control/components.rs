//! `GET /v1/sites/{site}/plugins/{plugin}/components/{sha256}`: the component of a release, for a replay on another machine.
//!
//! Only of the site's own releases. Whoever names another digest, another site's or none's, learns nothing of it.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderValue, header};
use tokio::sync::OwnedSemaphorePermit;

use super::plugins::ComponentInPath;
use super::problem::Problem;
use super::{Shared, Site};

/// Components on their way to merchants at once: 32 MiB each at most.
pub(super) const AT_ONCE_MAX: usize = 4;

/// A component whose place is given back with its last byte.
struct Sent {
    bytes: Vec<u8>,
    _place: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Sent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

pub(super) async fn get(
    State(control): State<Shared>,
    Site(site): Site,
    Path(path): Path<ComponentInPath>,
) -> Result<Response, Problem> {
    let (plugin, digest) = path.names()?;
    let unknown = || Problem::not_found(&format!("release of plugin {plugin} with component {digest}"));
    if !control.store.is_released(site, plugin.clone(), digest).await? {
        return Err(unknown());
    }
    let place = control.downloads.clone().try_acquire_owned().map_err(|_| Problem::busy())?;
    let bytes = control.blobs.load(digest).await?.ok_or_else(unknown)?;
    let mut response = Body::from(Bytes::from_owner(Sent { bytes, _place: place })).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/wasm"));
    Ok(response)
}
