//! Who attacks: one request on a connection of its own, or thousands on a few.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::PATIENCE;

#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Whether the last member of `Cache-Status` has this parameter.
    pub(super) fn says(&self, word: &str) -> bool {
        let said = self.headers.get("cache-status").and_then(|said| said.to_str().ok()).unwrap_or_default();
        said.split(';').any(|part| part.trim() == word)
    }
}

type Out = UnsyncBoxBody<Bytes, std::convert::Infallible>;

/// HTTP/1.1, each request on a connection of its own.
#[derive(Clone, Copy)]
pub(super) struct Client(pub(super) SocketAddr);

impl Client {
    pub(super) async fn get(&self, host: &str, path: &str, fields: &[(&str, &str)]) -> Result<Answer> {
        self.send(&Method::GET, host, path, fields, None).await
    }

    /// With a body, announced by its length or in chunks.
    pub(super) async fn send(
        &self,
        method: &Method,
        host: &str,
        path: &str,
        fields: &[(&str, &str)],
        body: Option<(&'static str, bool)>,
    ) -> Result<Answer> {
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, host);
        for (name, value) in fields {
            request = request.header(*name, HeaderValue::from_bytes(value.as_bytes())?);
        }
        if body.is_some_and(|(_, chunked)| chunked) {
            // hyper sends no body with a GET unless it is told how.
            request = request.header(header::TRANSFER_ENCODING, "chunked");
        }
        let body: Out = match body {
            None => Empty::new().boxed_unsync(),
            Some((text, false)) => Full::new(Bytes::from_static(text.as_bytes())).boxed_unsync(),
            Some((text, true)) => {
                let frame = Frame::data(Bytes::from_static(text.as_bytes()));
                StreamBody::new(stream::iter([Ok(frame)])).boxed_unsync()
            }
        };
        let request = request.body(body)?;
        let exchange = async {
            let io = TokioIo::new(TcpStream::connect(self.0).await?);
            let (mut send, connection) = http1::handshake(io).await?;
            let connection = tokio::spawn(async { drop(connection.await) });
            let (head, body) = send.send_request(request).await?.into_parts();
            let body = body.collect().await?.to_bytes();
            connection.abort();
            Ok(Answer { status: head.status, headers: head.headers, body })
        };
        timeout(PATIENCE, exchange).await.with_context(|| format!("no answer to {method} {host}{path}"))?
    }

    /// Bytes that no client library sends, and whatever comes back until the other end closes or has said a head.
    pub(super) async fn raw(&self, bytes: &str) -> Result<Vec<u8>> {
        let exchange = async {
            let mut stream = TcpStream::connect(self.0).await?;
            stream.write_all(bytes.as_bytes()).await?;
            let mut answer = Vec::new();
            let mut buffer = [0; 4096];
            while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
                match stream.read(&mut buffer).await? {
                    0 => break,
                    read => answer.extend_from_slice(&buffer[..read]),
                }
            }
            Ok(answer)
        };
        timeout(PATIENCE, exchange).await.context("no answer to raw bytes")?
    }
}

/// HTTP/2 by prior knowledge: many requests at once on one connection.
#[derive(Clone)]
pub(super) struct Multiplexed(http2::SendRequest<Empty<Bytes>>);

impl Multiplexed {
    pub(super) async fn open(addr: SocketAddr) -> Result<Self> {
        let io = TokioIo::new(TcpStream::connect(addr).await?);
        let (send, connection) = http2::handshake(TokioExecutor::new(), io).await?;
        // Ends with the last of its handles.
        tokio::spawn(async { drop(connection.await) });
        Ok(Self(send))
    }

    pub(super) async fn get(&self, host: &str, path: &str, fields: &[(&str, &str)]) -> Result<Answer> {
        let mut request = Request::get(format!("http://{host}{path}"));
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let request = request.body(Empty::new())?;
        let mut send = self.0.clone();
        let exchange = async {
            let (head, body) = send.send_request(request).await?.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok(Answer { status: head.status, headers: head.headers, body })
        };
        timeout(PATIENCE, exchange).await.with_context(|| format!("no answer to {host}{path}"))?
    }
}
