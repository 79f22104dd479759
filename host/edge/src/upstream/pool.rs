//! The connections to one server: idle ones of HTTP/1.1, and those of HTTP/2, which many requests share.
//!
//! Owns how many there are, how long they may be idle, and which of the two protocols is spoken. Refuses to know what a
//! request may do after a failure; it says only whether the server can have seen it. Why it is not hyper-util's pool:
//! `docs/decisions/2026-11-30-upstream-servers.md`.
//!
//! ```text
//!   line() -> Line --exchange--> response -> keep() -> idle again once the response has been read
//! ```

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use souk_config::UpstreamProtocol;

use super::connect::{ConnectError, Connector, Stream};
use crate::http::BodyError;

/// Idle connections kept. A burst of this many requests pays no handshake.
const IDLE_MAX: usize = 64;
/// Less than the 5 s after which Node and Apache close an idle connection, so that a request seldom meets one that is just
/// being closed: a request whose body is gone cannot be sent again.
const IDLE_AGE_MAX: Duration = Duration::from_secs(4);
/// HTTP/2 says which requests it has not processed when it closes, so its connections may be idle for longer.
const H2_IDLE_AGE_MAX: Duration = Duration::from_secs(60);
/// Requests on one HTTP/2 connection before another is opened: what most servers allow.
const H2_STREAMS_MAX: usize = 100;
/// HTTP/2 connections to one server; with the streams above more than an upstream's requests in flight need.
const H2_CONNECTIONS_MAX: usize = 16;
/// While requests are open, a connection that answers no ping for this long is dead. A peer that vanished would otherwise
/// keep taking requests until their time-outs.
const H2_PING_EVERY: Duration = Duration::from_secs(10);
const H2_PING_ANSWER_MAX: Duration = Duration::from_secs(5);
/// What one HTTP/2 response may send before it is read, and so what a reader that stands still holds: 5 MB/s over a path of
/// 50 ms. An upstream holds so much for each of its requests in flight (`in_flight_max`) at most, and only if every one of their
/// readers stands still: 256 MiB of the 1,024 that it may have by default, and each upstream has its own.
pub(crate) const H2_STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// The same for a connection: all that the protocol allows, which is more than its streams' windows together. What a reader
/// has not taken counts against its connection too, and were there less, as many readers as use it up would stop every other
/// answer on the connection. What is held is bounded by the streams.
const H2_CONNECTION_WINDOW_BYTES: u32 = (1 << 31) - 1;
/// Fields of a response. The same as hyper's server takes of a request.
const HEADERS_MAX: usize = 100;
/// Bytes of a response head, and of the read buffer.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// The body of a forwarded request.
pub(super) type Out = UnsyncBoxBody<Bytes, BodyError>;

/// A request that got no response.
#[derive(Debug)]
pub(super) enum Lost {
    /// The connection was closed before anything was written to it.
    Unsent(hyper::Error),
    /// The server says that it did not process the request.
    NotProcessed(hyper::Error),
    /// The connection broke; the server may have seen the request.
    Broke(hyper::Error),
}

impl Lost {
    pub(super) fn error(&self) -> &hyper::Error {
        match self {
            Self::Unsent(error) | Self::NotProcessed(error) | Self::Broke(error) => error,
        }
    }
}

/// Connections that were opened.
#[derive(Clone, Debug, Default)]
pub(super) struct Opened {
    pub(super) http1: Counter,
    pub(super) http2: Counter,
}

pub(super) struct Pool {
    connector: Connector,
    protocol: UpstreamProtocol,
    connect_max: Duration,
    lines: Mutex<Lines>,
    /// Held while a connection is opened that many requests may share, so that they wait for one and do not open one each.
    opening: tokio::sync::Mutex<()>,
    opened: Opened,
}

#[derive(Default)]
struct Lines {
    idle: Vec<Idle>,
    shared: Vec<Arc<Shared>>,
    /// The server chose HTTP/1.1 the last time: nothing to wait for.
    is_http1: bool,
}

struct Idle {
    sender: http1::SendRequest<Out>,
    since: Instant,
}

struct Shared {
    sender: http2::SendRequest<Out>,
    streams: AtomicUsize,
    /// Takes no more requests; those it has go on.
    retired: AtomicBool,
    used: Mutex<Instant>,
}

impl Shared {
    fn is_open(&self) -> bool {
        !self.sender.is_closed() && !self.retired.load(Ordering::Relaxed)
    }

    fn is_idle(&self) -> bool {
        self.streams.load(Ordering::Relaxed) == 0 && self.used.lock().elapsed() > H2_IDLE_AGE_MAX
    }
}

/// One request's place on a shared connection.
struct Place(Arc<Shared>);

impl Place {
    fn on(shared: &Arc<Shared>) -> Self {
        shared.streams.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(shared))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *self.0.used.lock() = Instant::now();
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection for one exchange.
pub(super) struct Line {
    kind: Kind,
    pool: Weak<Pool>,
    /// It has carried requests before, and may be closing.
    pub(super) reused: bool,
}

enum Kind {
    Alone(http1::SendRequest<Out>),
    Shared(Place),
}

/// What a response holds until its body ends.
pub(super) struct LineHold {
    _place: Option<Place>,
}

impl Pool {
    pub(super) fn new(
        connector: Connector,
        protocol: UpstreamProtocol,
        connect_max: Duration,
        opened: Opened,
    ) -> Arc<Self> {
        Arc::new(Self {
            connector,
            protocol,
            connect_max,
            lines: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
            opened,
        })
    }

    /// A connection, an open one if there is. `fresh`: none of HTTP/1.1 that was idle.
    pub(super) async fn line(self: &Arc<Self>, fresh: bool) -> Result<Line, ConnectError> {
        if let Some(line) = self.ready(fresh) {
            return Ok(line);
        }
        let opening = async {
            if !self.may_share() {
                return self.open().await;
            }
            let _opening = self.opening.lock().await;
            match self.ready(fresh) {
                Some(line) => Ok(line),
                None => self.open().await,
            }
        };
        let opened = tokio::time::timeout(self.connect_max, opening).await;
        opened.unwrap_or(Err(ConnectError::TimedOut(self.connect_max)))
    }

    /// Closes connections that have been idle for too long.
    pub(super) fn prune(&self) {
        let mut lines = self.lines.lock();
        lines.idle.retain(|idle| !idle.sender.is_closed() && idle.since.elapsed() < IDLE_AGE_MAX);
        lines.shared.retain(|shared| shared.is_open() && !shared.is_idle());
    }

    /// Idle connections of HTTP/1.1, and connections of HTTP/2.
    pub(super) fn counts(&self) -> (usize, usize) {
        let lines = self.lines.lock();
        (lines.idle.len(), lines.shared.len())
    }

    fn may_share(&self) -> bool {
        match self.protocol {
            UpstreamProtocol::Http1 => false,
            UpstreamProtocol::H2c => true,
            UpstreamProtocol::Auto => self.connector.is_tls() && !self.lines.lock().is_http1,
        }
    }

    fn ready(self: &Arc<Self>, fresh: bool) -> Option<Line> {
        let mut lines = self.lines.lock();
        lines.shared.retain(|shared| shared.is_open());
        let full = lines.shared.len() >= H2_CONNECTIONS_MAX;
        let least = lines.shared.iter().min_by_key(|shared| shared.streams.load(Ordering::Relaxed));
        let least = least.filter(|shared| full || shared.streams.load(Ordering::Relaxed) < H2_STREAMS_MAX);
        if let Some(shared) = least {
            return Some(self.wrap(Kind::Shared(Place::on(shared)), true));
        }
        while let Some(idle) = lines.idle.pop_if(|_| !fresh) {
            if idle.sender.is_ready() && idle.since.elapsed() < IDLE_AGE_MAX {
                return Some(self.wrap(Kind::Alone(idle.sender), true));
            }
        }
        None
    }

    async fn open(self: &Arc<Self>) -> Result<Line, ConnectError> {
        let (stream, agreed) = self.connector.connect().await?;
        if agreed || self.protocol == UpstreamProtocol::H2c {
            return self.open_shared(stream).await;
        }
        let (sender, connection) = http1::Builder::new()
            .max_headers(HEADERS_MAX)
            .max_buf_size(HEAD_BYTES_MAX)
            .handshake(stream)
            .await
            .map_err(ConnectError::Http)?;
        // Ends with the connection, which ends with its sender; what broke it is told to its request.
        tokio::spawn(connection);
        self.opened.http1.inc();
        self.lines.lock().is_http1 = true;
        Ok(self.wrap(Kind::Alone(sender), false))
    }

    async fn open_shared(self: &Arc<Self>, stream: Stream) -> Result<Line, ConnectError> {
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(H2_PING_EVERY)
            .keep_alive_timeout(H2_PING_ANSWER_MAX)
            .initial_stream_window_size(H2_STREAM_WINDOW_BYTES)
            .initial_connection_window_size(H2_CONNECTION_WINDOW_BYTES)
            .max_header_list_size(HEAD_BYTES_MAX as u32)
            .handshake(stream)
            .await
            .map_err(ConnectError::Http)?;
        tokio::spawn(connection);
        self.opened.http2.inc();
        let shared = Arc::new(Shared {
            sender,
            streams: AtomicUsize::new(0),
            retired: AtomicBool::new(false),
            used: Mutex::new(Instant::now()),
        });
        let line = self.wrap(Kind::Shared(Place::on(&shared)), false);
        let mut lines = self.lines.lock();
        lines.is_http1 = false;
        lines.shared.push(shared);
        Ok(line)
    }

    fn wrap(self: &Arc<Self>, kind: Kind, reused: bool) -> Line {
        Line { kind, pool: Arc::downgrade(self), reused }
    }

    fn put(&self, sender: http1::SendRequest<Out>) {
        let mut lines = self.lines.lock();
        if lines.idle.len() >= IDLE_MAX {
            lines.idle.remove(0);
        }
        lines.idle.push(Idle { sender, since: Instant::now() });
    }
}

impl Line {
    pub(super) fn is_h2(&self) -> bool {
        matches!(self.kind, Kind::Shared(_))
    }

    /// Sends a request and waits for the head of its response. Dropping the future ends the exchange: the connection of
    /// HTTP/1.1 with it, and one stream of HTTP/2.
    pub(super) async fn exchange(&mut self, request: Request<Out>) -> Result<Response<Incoming>, Lost> {
        let sent = match &mut self.kind {
            Kind::Alone(sender) => sender.try_send_request(request).await,
            Kind::Shared(place) => place.0.sender.clone().try_send_request(request).await,
        };
        sent.map_err(|mut error| {
            let unsent = error.take_message().is_some();
            let error = error.into_error();
            if unsent {
                self.retire();
                Lost::Unsent(error)
            } else if is_not_processed(&error) {
                Lost::NotProcessed(error)
            } else {
                Lost::Broke(error)
            }
        })
    }

    /// No new request takes this connection. Of HTTP/1.1 none can while this one has it.
    pub(super) fn retire(&self) {
        if let Kind::Shared(place) = &self.kind {
            place.0.retired.store(true, Ordering::Relaxed);
        }
    }

    /// For after the head: what the response holds until its body ends. A connection of HTTP/1.1 is idle again then.
    pub(super) fn keep(self) -> LineHold {
        match self.kind {
            Kind::Shared(place) => LineHold { _place: Some(place) },
            Kind::Alone(mut sender) => {
                let pool = self.pool;
                tokio::spawn(async move {
                    // An error is a connection that closes; the response's body says so if it was cut.
                    if sender.ready().await.is_ok()
                        && let Some(pool) = pool.upgrade()
                    {
                        pool.put(sender);
                    }
                });
                LineHold { _place: None }
            }
        }
    }
}

/// Whether HTTP/2 says that the request was not processed (RFC 9113 section 8.7). A GOAWAY says so too, but hyper reports
/// it also of a stream that was just being opened and that the server may take yet: that one counts as broken.
fn is_not_processed(error: &hyper::Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        if let Some(error) = inner.downcast_ref::<h2::Error>() {
            return error.is_remote()
                && error.is_reset()
                && error.reason() == Some(h2::Reason::REFUSED_STREAM);
        }
        cause = inner.source();
    }
    false
}
