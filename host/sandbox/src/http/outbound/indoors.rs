//! Requests that never leave the process: to the reserved authority `http://souk.internal`, answered by whoever runs the
//! guest, for this guest's site and this run alone.
//!
//! It is a way *in*, and no way out: the name is never resolved and never connected to, granted or not, in whatever
//! scheme, port or case it is asked for. What is answered is the caller's affair ([`Indoors`]); here are the bounds, which
//! are those of any outbound request: the same count, the same time, the same length.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Method, Request, Response, Uri};
use http_body_util::{BodyExt as _, Full};
use tokio::sync::oneshot;
use tokio::time::timeout;
use wasmtime_wasi_http::{Error as WasiHttpError, RequestOptions, WasiBody};

use super::grant::Grant;
use super::message::Task;
use super::{Outbound, Refusal, at_most};

/// The reserved host. `.internal` is of no public name server (ICANN, 2024).
pub const INDOORS_HOST: &str = "souk.internal";

/// Answers a guest's requests to [`INDOORS_HOST`]. One for each run.
pub trait Indoors: Send + Sync {
    /// GET or HEAD, with the path and the fields that the guest sent and without a body.
    fn answer(&self, request: Request<()>) -> BoxFuture<'static, Response<Bytes>>;
}

/// Whether a request is for the reserved host, however it is spelled.
pub(crate) fn is_reserved(uri: &Uri) -> bool {
    uri.host().is_some_and(|host| host.trim_end_matches('.').eq_ignore_ascii_case(INDOORS_HOST))
}

impl Outbound {
    /// Answers one request of a run that has sent `sent` before.
    pub(crate) async fn answer_indoors(
        self,
        indoors: Option<Arc<dyn Indoors>>,
        sent: u32,
        request: Request<WasiBody>,
        options: RequestOptions,
    ) -> Result<Response<WasiBody>, WasiHttpError> {
        let answered = self.ask_indoors(indoors, sent, request, options).await;
        self.shared.metrics.outbound(answered.as_ref().map_or_else(Refusal::name, |_| "answered_indoors"));
        let answer = answered.map_err(|refusal| {
            tracing::debug!(target: "souk::guest", reason = refusal.name(), %refusal, "a request indoors failed");
            WasiHttpError::from(refusal)
        })?;
        let bytes = answer.body().len() as u64;
        if bytes > self.shared.limits.download_bytes_max {
            return Err(WasiHttpError::HttpResponseBodySize(Some(bytes)));
        }
        Ok(answer.map(|body| Full::new(body).map_err(|never| match never {}).boxed_unsync()))
    }

    async fn ask_indoors(
        &self,
        indoors: Option<Arc<dyn Indoors>>,
        sent: u32,
        request: Request<WasiBody>,
        options: RequestOptions,
    ) -> Result<Response<Bytes>, Refusal> {
        let limits = &self.shared.limits;
        if sent >= limits.requests_max {
            return Err(Refusal::TooMany);
        }
        let granted = Grant::asked_by(request.uri()).is_ok_and(|asked| asked.is_indoors());
        let indoors = indoors.filter(|_| granted).ok_or(Refusal::NotGranted)?;
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return Err(Refusal::Method);
        }
        let (mut parts, _body) = request.into_parts();
        parts.extensions.clear();
        let (answer, answered) = oneshot::channel();
        // In a task of its own: what it costs is the site's, in its own turns, and not the guest's processor time.
        let _task = Task::spawn(async move {
            // The guest may have given up.
            drop(answer.send(indoors.answer(Request::from_parts(parts, ())).await));
        });
        let first_byte_max = at_most(options.first_byte_timeout, limits.first_byte_max);
        let answered = timeout(first_byte_max, answered).await.map_err(|_| Refusal::NoAnswer)?;
        // It panicked, and said where.
        answered.map_err(|_| Refusal::NoAnswer)
    }
}
