//! HTTP to nodes and to the region, over connections that are kept.
//!
//! Knows what an answer is and, when there is none, whether the request can have arrived. It never repeats a request
//! by itself: what may be repeated is the shopper's knowledge.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, COOKIE, HOST, RETRY_AFTER, SET_COOKIE};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde_json::Value;

/// Longest wait for an answer: a checkout may wait for the region for ten seconds before the node gives up.
const ANSWER_MAX: Duration = Duration::from_secs(20);
/// Loopback answers at once or not at all.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// Largest answer read: a page of 1,000 carts or a quote of 700 lines is under 1 MiB.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Connections kept per node; as many as there are shoppers at once.
const IDLE_MAX: usize = 128;

/// An answer, whatever it says.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// JSON, or null where the body was something else.
    pub(super) body: Value,
    /// What the answer sets, name and value.
    pub(super) cookies: Vec<(String, String)>,
    pub(super) retry_after: Option<Duration>,
}

impl Answer {
    /// The code of an RFC 9457 body.
    pub(super) fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }

    /// One line for a report.
    pub(super) fn summary(&self) -> String {
        let detail = self.body["detail"].as_str().unwrap_or_default();
        format!("{} {} {detail}", self.status.as_u16(), self.code())
    }
}

/// No answer came.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum NoAnswer {
    /// Nobody was there to take the request: it certainly did nothing.
    #[error("nobody listens: {0}")]
    NotSent(String),
    /// The request, or a part of it, was on its way: it may have done its work.
    #[error("the connection ended without an answer: {0}")]
    Unknown(String),
}

/// One request.
#[derive(Debug, Clone, Default)]
pub(super) struct Ask<'a> {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) body: Option<Value>,
    /// The site's host name; without one the address is the host.
    pub(super) host: Option<&'a str>,
    pub(super) bearer: Option<&'a str>,
    pub(super) cookies: Option<String>,
    pub(super) idempotency_key: Option<&'a str>,
}

impl<'a> Ask<'a> {
    pub(super) fn new(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), ..Self::default() }
    }

    pub(super) fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path)
    }

    #[must_use]
    pub(super) fn json(mut self, body: Value) -> Self {
        self.body = Some(body);
        self
    }

    #[must_use]
    pub(super) fn host(mut self, host: &'a str) -> Self {
        self.host = Some(host);
        self
    }

    #[must_use]
    pub(super) fn bearer(mut self, token: &'a str) -> Self {
        self.bearer = Some(token);
        self
    }
}

/// Cheap to clone; clones share their connections.
#[derive(Debug, Clone)]
pub(super) struct Client {
    pool: Pool<HttpConnector, Full<Bytes>>,
}

impl Client {
    pub(super) fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_MAX));
        let pool = Pool::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(10))
            .pool_max_idle_per_host(IDLE_MAX)
            .build(connector);
        Self { pool }
    }

    pub(super) async fn send(&self, to: SocketAddr, ask: Ask<'_>) -> Result<Answer, NoAnswer> {
        let request = request(to, ask).map_err(|e| NoAnswer::NotSent(e.to_string()))?;
        tokio::time::timeout(ANSWER_MAX, self.exchange(request))
            .await
            .unwrap_or_else(|_| Err(NoAnswer::Unknown(format!("no answer within {ANSWER_MAX:?}"))))
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Answer, NoAnswer> {
        let response = self.pool.request(request).await.map_err(|error| {
            let not_sent = error.is_connect();
            let text = format!("{:#}", anyhow::Error::from(error));
            if not_sent { NoAnswer::NotSent(text) } else { NoAnswer::Unknown(text) }
        })?;
        let (head, body) = response.into_parts();
        let text = |value: &http::HeaderValue| value.to_str().map(str::to_owned).ok();
        let cookies =
            head.headers.get_all(SET_COOKIE).iter().filter_map(text).filter_map(|c| cookie(&c)).collect();
        let seconds = head.headers.get(RETRY_AFTER).and_then(text).and_then(|t| t.parse().ok());
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|e| NoAnswer::Unknown(e.to_string()))?.to_bytes();
        Ok(Answer {
            status: head.status,
            body: serde_json::from_slice(&body).unwrap_or(Value::Null),
            cookies,
            retry_after: seconds.map(Duration::from_secs),
        })
    }
}

fn request(to: SocketAddr, ask: Ask<'_>) -> Result<Request<Full<Bytes>>, http::Error> {
    let mut request = Request::builder().method(ask.method).uri(format!("http://{to}{}", ask.path));
    if let Some(host) = ask.host {
        request = request.header(HOST, host);
    }
    if let Some(token) = ask.bearer {
        request = request.header(AUTHORIZATION, format!("Bearer {token}"));
    }
    if let Some(cookies) = ask.cookies.filter(|c| !c.is_empty()) {
        request = request.header(COOKIE, cookies);
    }
    if let Some(key) = ask.idempotency_key {
        request = request.header("idempotency-key", key);
    }
    match ask.body {
        Some(body) => request.header(CONTENT_TYPE, "application/json").body(Full::from(body.to_string())),
        None => request.body(Full::default()),
    }
}

/// Name and value of a `Set-Cookie`.
fn cookie(header: &str) -> Option<(String, String)> {
    let (name, value) = header.split(';').next()?.split_once('=')?;
    Some((name.trim().to_owned(), value.trim().to_owned()))
}
