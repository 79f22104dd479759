//! A small HTTP client for the outside tests: JSON in, JSON out, one connection pool.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client as Pool;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

/// The longest answer a test reads.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;
/// No answer of a local server takes longer, whatever else the machine does.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(60);

/// An answer, read whole.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| {
            panic!("{} is not JSON ({e}): {}", self.status, String::from_utf8_lossy(&self.body))
        })
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The `code` of a problem (RFC 9457), or nothing.
    pub fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or_default().to_owned()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
    }
}

/// A client of one server.
#[derive(Clone)]
pub struct Client {
    pool: Pool<HttpConnector, Full<Bytes>>,
    addr: SocketAddr,
    /// Sent with every request.
    headers: HeaderMap,
}

impl Client {
    pub fn new(addr: SocketAddr) -> Self {
        Self { pool: Pool::builder(TokioExecutor::new()).build_http(), addr, headers: HeaderMap::new() }
    }

    /// The same client with one more header on every request.
    pub fn with(&self, name: &'static str, value: &str) -> Self {
        let mut client = self.clone();
        client.headers.insert(name, value.parse().expect("a test writes valid header values"));
        client
    }

    /// The same client with connections of its own: those of this one are driven by the runtime that opened them.
    #[must_use]
    pub fn afresh(&self) -> Self {
        Self { headers: self.headers.clone(), ..Self::new(self.addr) }
    }

    pub async fn get(&self, path: &str) -> Result<Answer> {
        self.send(Method::GET, path, None).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Result<Answer> {
        self.send(Method::POST, path, Some(body.to_string().into())).await
    }

    pub async fn put(&self, path: &str, body: Value) -> Result<Answer> {
        self.send(Method::PUT, path, Some(body.to_string().into())).await
    }

    pub async fn put_bytes(&self, path: &str, body: Bytes) -> Result<Answer> {
        self.send(Method::PUT, path, Some(body)).await
    }

    pub async fn send(&self, method: Method, path: &str, body: Option<Bytes>) -> Result<Answer> {
        let mut request = Request::builder().method(method).uri(format!("http://{}{path}", self.addr));
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let mut request = request.body(Full::new(body.unwrap_or_default())).context("build the request")?;
        request.headers_mut().extend(self.headers.clone());
        let exchange = async {
            let (parts, body) = self.pool.request(request).await.context("send the request")?.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|e| anyhow::anyhow!("read the answer: {e}"))?.to_bytes();
            Ok(Answer { status: parts.status, headers: parts.headers, body })
        };
        tokio::time::timeout(ANSWER_TIME_MAX, exchange).await.context("no answer in time")?
    }
}
