//! The operators' listener of a process that has no shops: `souk proxy` and `souk serve`.
//!
//! Both answer as soon as they listen, so being alive and being ready are one thing. Refuses to know what the metrics
//! are: whoever starts it registers them, and may refresh its gauges before each reading. A node has [`crate::admin`].

use std::sync::Arc;

use futures_util::future::BoxFuture;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use prometheus_client::registry::Registry;

use crate::http::{Body, RequestBody, full, json};
use crate::listen::{Answer, Peer};
use crate::rescue::{Problem, Refusal};

/// Answers `/healthz`, `/readyz` and `/metrics`.
pub(crate) struct Pages<F> {
    registry: Registry,
    refresh: F,
    report: Option<Report>,
}

/// A page of JSON of the process's own, and where it is.
struct Report {
    path: &'static str,
    page: Box<dyn Fn() -> serde_json::Value + Send + Sync>,
}

impl<F: Fn() + Send + Sync + 'static> Pages<F> {
    /// `refresh` runs before each reading of the metrics.
    pub(crate) fn new(registry: Registry, refresh: F) -> Self {
        Self { registry, refresh, report: None }
    }

    /// Shows one more page.
    pub(crate) fn with_report(
        mut self,
        path: &'static str,
        page: impl Fn() -> serde_json::Value + Send + Sync + 'static,
    ) -> Self {
        self.report = Some(Report { path, page: Box::new(page) });
        self
    }

    fn decide(&self, method: &Method, path: &str) -> Result<Response<Body>, Problem> {
        if method != Method::GET && method != Method::HEAD {
            return Err(Problem::method("GET, HEAD"));
        }
        match path {
            "/healthz" | "/readyz" => json(StatusCode::OK, &serde_json::json!({"status": "ready"})),
            "/metrics" => self.metrics(),
            _ => match &self.report {
                Some(report) if report.path == path => json(StatusCode::OK, &(report.page)()),
                Some(report) => {
                    let known = format!("see /healthz, /readyz, /metrics, {}", report.path);
                    Err(Problem::new(Refusal::NoRoute, known))
                }
                None => Err(Problem::new(Refusal::NoRoute, "see /healthz, /readyz, /metrics")),
            },
        }
    }

    fn metrics(&self) -> Result<Response<Body>, Problem> {
        (self.refresh)();
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).map_err(Problem::internal)?;
        let mut response = Response::new(full(text));
        let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, kind);
        Ok(response)
    }
}

impl<F: Fn() + Send + Sync + 'static> Answer for Pages<F> {
    fn answer(self: Arc<Self>, request: Request<RequestBody>, _: Peer) -> BoxFuture<'static, Response<Body>> {
        Box::pin(async move {
            self.decide(request.method(), request.uri().path()).unwrap_or_else(Problem::into_response)
        })
    }
}
