//! A merchant's server that counts who asks, holds answers back, and publishes versions of a page.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use anyhow::Result;
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// Of a page that comes in two halves.
pub(super) const HALF_BYTES: usize = 100_000;

type Body = UnsyncBoxBody<Bytes, Infallible>;

pub(super) struct Origin {
    pub(super) addr: SocketAddr,
    state: Arc<State>,
}

struct State {
    name: &'static str,
    asked: Mutex<HashMap<String, u32>>,
    open: watch::Sender<bool>,
    version: AtomicU32,
    heard_of_nodes: AtomicBool,
}

impl Origin {
    pub(super) async fn start(name: &'static str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        let state = Arc::new(State {
            name,
            asked: Mutex::default(),
            open: watch::Sender::new(false),
            version: AtomicU32::new(0),
            heard_of_nodes: AtomicBool::new(false),
        });
        let served = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let state = Arc::clone(&served);
                let service = service_fn(move |request: Request<Incoming>| {
                    let state = Arc::clone(&state);
                    async move { state.answer(&request).await }
                });
                let connection = hyper::server::conn::http1::Builder::new();
                let connection = connection.serve_connection(TokioIo::new(stream), service);
                tokio::spawn(async { drop(connection.await) });
            }
        });
        Ok(Self { addr, state })
    }

    pub(super) fn times(&self, path: &str) -> u32 {
        self.state.asked.lock().get(path).copied().unwrap_or_default()
    }

    /// Requests for all paths together.
    pub(super) fn all(&self) -> u32 {
        self.state.asked.lock().values().sum()
    }

    /// Lets everything go that is held back.
    pub(super) fn open(&self) {
        self.state.open.send_replace(true);
    }

    /// Holds back again what is to be held back.
    pub(super) fn close(&self) {
        self.state.open.send_replace(false);
    }

    /// From now on the page that changes has this version.
    pub(super) fn publish(&self, version: u32) {
        self.state.version.store(version, Ordering::SeqCst);
    }

    pub(super) fn has_seen_words_of_nodes(&self) -> bool {
        self.state.heard_of_nodes.load(Ordering::SeqCst)
    }
}

/// A page that comes in two halves.
pub(super) fn halves(path: &str) -> Vec<u8> {
    path.bytes().cycle().take(2 * HALF_BYTES).collect()
}

impl State {
    async fn is_open(&self) {
        // The sender is this one's own.
        drop(self.open.subscribe().wait_for(|open| *open).await);
    }

    async fn answer(self: Arc<Self>, request: &Request<Incoming>) -> Result<Response<Body>, http::Error> {
        let path = request.uri().path().to_owned();
        if request.headers().keys().any(|name| name.as_str().starts_with("x-souk-")) {
            self.heard_of_nodes.store(true, Ordering::SeqCst);
        }
        let times = {
            let mut asked = self.asked.lock();
            let times = asked.entry(path.clone()).or_default();
            *times += 1;
            *times
        };
        let kind = path.split('/').nth(1).unwrap_or_default();
        let status = match kind {
            "gone" => 404,
            "broken" => 500,
            "busy" => 503,
            _ => 200,
        };
        let lives = if kind == "private" { "private" } else { "max-age=600" };
        let tag = match kind {
            "live" => "live",
            "tagged" => "banner",
            _ => "page",
        };
        let response = Response::builder().status(status).header("surrogate-key", tag);
        let response = match kind {
            "broken" => response,
            // As a node of ours would refuse, with words that only nodes have.
            "busy" => response
                .header("content-type", "application/problem+json")
                .header("x-souk-answers", "7")
                .header("x-souk-refused", "overloaded")
                .header("x-souk-declined", "unreachable")
                .header("x-souk-tags", "no tags"),
            _ => response.header("cache-control", lives),
        };
        if kind == "held" {
            self.is_open().await;
        }
        let text = match kind {
            // What it is at this moment: whoever asked before it was published may get what was before.
            "live" => format!("version {}", self.version.load(Ordering::SeqCst)),
            "halves" => {
                let whole = Bytes::from(halves(&path));
                let (first, second) = (whole.slice(..HALF_BYTES), whole.slice(HALF_BYTES..));
                let first = futures_util::stream::iter([Ok(Frame::data(first))]);
                let second = futures_util::stream::once(async move {
                    self.is_open().await;
                    Ok(Frame::data(second))
                });
                let body = StreamBody::new(first.chain(second));
                // Without a length it would be told in chunks.
                let response = response.header("content-length", 2 * HALF_BYTES);
                return response.header("etag", "\"halves\"").body(body.boxed_unsync());
            }
            _ => format!("{} {path} {times}", self.name),
        };
        response.body(Full::new(Bytes::from(text)).boxed_unsync())
    }
}
