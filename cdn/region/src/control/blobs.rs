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
use crate::store::audit::{Actor, Deed};

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
    if let Some(bytes) = control.blobs.size(digest).await? {
        // Here already, whatever the body says. It is read to its end by whoever sent it or cut off by the connection.
        return Ok(Json(Stored { digest, bytes, created: false }).into_response());
    }
    let mut upload = control.blobs.begin().await?;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Problem::broken_body(error.to_string()))?;
        if let Some(chunk) = frame.data_ref() {
            upload.write(chunk).await?;
        }
    }
    let bytes = upload.finish(digest).await?;
    let detail = serde_json::json!({ "bytes": bytes });
    control.store.record(actor, Deed { action: "blob.put", subject: digest.to_string(), detail }).await?;
    Ok((StatusCode::CREATED, Json(Stored { digest, bytes, created: true })).into_response())
}

pub(super) async fn head(
    State(control): State<Shared>,
    Path(digest): Path<String>,
) -> Result<Response, Problem> {
    let digest: Digest = named("digest", &digest)?;
    match control.blobs.size(digest).await? {
        Some(bytes) => Ok(([(header::CONTENT_LENGTH, bytes)], ()).into_response()),
        None => Err(Problem::not_found(&format!("blob {digest}"))),
    }
}
