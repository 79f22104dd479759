//! Accepts connections and bounds what each may cost: permit, accept, spawn.
//!
//! The loop never awaits a peer: handshakes happen in the connection's own task, under a deadline. HTTP/1.1 and
//! HTTP/2 over TLS (by ALPN) or in clear text (HTTP/2 by prior knowledge; there is no upgrade). Knows nothing of
//! what a request means: it calls an [`Answer`] and carries the response back.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::header::{ALT_SVC, CONNECTION, CONTENT_LENGTH};
use http::{HeaderValue, Method, Request, Response, Version};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use ipnet::IpNet;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::http::{Body, RequestBody};
use crate::http3::AltSvc;
use crate::interim::{InterimIo, Line};
use crate::running::RunError;

mod proxy_protocol;

use self::proxy_protocol::ProxyError;

/// Fields of one head.
pub(crate) const HEADERS_MAX: usize = 100;
/// A header list of HTTP/2, counted as RFC 9113 does (name + value + 32): 16 KiB is twice what browsers send.
const H2_HEADER_LIST_BYTES_MAX: u32 = 16 * 1024;
/// Requests that one HTTP/2 connection may have open at once.
const H2_STREAMS_MAX: u32 = 100;
/// What one HTTP/2 stream may have waiting to be sent: 100 streams hold at most 6.4 MiB per connection.
const H2_SEND_BYTES_MAX: usize = 64 * 1024;
/// Streams reset by the peer before we looked at them (Rapid Reset) until the connection is closed.
const H2_PENDING_RESETS_MAX: usize = 20;
/// Streams that the peer made us reset (MadeYouReset) until the connection is closed.
const H2_LOCAL_RESETS_MAX: usize = 50;
/// What one HTTP/2 stream may send before we read it: as much as the largest body that is read anywhere.
const H2_STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const H2_CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
const H2_KEEP_ALIVE_EVERY: Duration = Duration::from_secs(20);
const H2_KEEP_ALIVE_ANSWER_MAX: Duration = Duration::from_secs(10);
/// The longest that a peer may leave our bytes untouched (a slow reader holds a response and a socket).
pub(crate) const WRITE_STALL_MAX: Duration = Duration::from_secs(30);
/// A pause after `accept` failed, which means that the process has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Connections that the kernel keeps for a socket until they are accepted.
const BACKLOG: u32 = 1024;
/// The share of the drain deadline in which idle connections of HTTP/1.1 stay open, so that a request that is on its way to
/// one is answered, with the word that the connection ends.
const LAME_DUCK_SHARE: u32 = 10;

/// Whoever answers requests. Infallible: an error is a response too, made by [`crate::rescue`].
pub trait Answer: Send + Sync + 'static {
    fn answer(
        self: Arc<Self>,
        request: Request<RequestBody>,
        peer: Peer,
    ) -> BoxFuture<'static, Response<Body>>;

    /// Whether requests bring [`Interims`](crate::interim::Interims) among their extensions, where their protocol lets
    /// them be said.
    fn passes_interims(&self) -> bool {
        false
    }
}

/// The other end of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    pub addr: SocketAddr,
    /// Whether nobody between us can read along.
    pub tls: bool,
}

/// The limits of one listener.
#[derive(Debug, Clone)]
pub struct ListenLimits {
    /// Open connections of this listener. Further ones wait in the kernel's queue.
    pub connections_max: usize,
    /// One HTTP/1 head.
    pub header_bytes_max: usize,
    /// From the first byte of a connection to the end of its first head, and between requests.
    pub header_deadline: Duration,
    pub tls_handshake_deadline: Duration,
    /// How long running requests may go on after shutdown was asked for.
    pub drain_deadline: Duration,
}

impl Default for ListenLimits {
    fn default() -> Self {
        Self {
            connections_max: 10_000,
            header_bytes_max: 64 * 1024,
            header_deadline: Duration::from_secs(10),
            tls_handshake_deadline: Duration::from_secs(5),
            drain_deadline: Duration::from_secs(10),
        }
    }
}

/// How the sockets of a listener are made.
#[derive(Debug, Clone, Copy)]
pub struct Sockets {
    /// Lets other processes of the same user listen on the same address (`SO_REUSEPORT`).
    pub shared: bool,
    /// Sockets side by side, each with a queue of its own.
    pub workers: usize,
}

impl Default for Sockets {
    fn default() -> Self {
        Self { shared: false, workers: 1 }
    }
}

/// Bound sockets on one address, not yet accepting.
#[derive(Debug)]
pub struct Listener {
    sockets: Vec<TcpListener>,
    addr: SocketAddr,
    alt_svc: Option<AltSvc>,
    /// Whose connections begin with a PROXY protocol header; then those of nobody else are taken.
    proxies: Option<Arc<[IpNet]>>,
}

impl Listener {
    pub async fn bind(addr: SocketAddr) -> Result<Self, RunError> {
        Self::open(addr, Sockets::default())
    }

    /// Must be called within a tokio runtime.
    pub fn open(addr: SocketAddr, how: Sockets) -> Result<Self, RunError> {
        let shared = how.shared || how.workers > 1;
        let opened = || {
            let first = listen(addr, shared)?;
            // Port 0 means any, once.
            let addr = first.local_addr()?;
            let mut sockets = vec![first];
            while sockets.len() < how.workers {
                sockets.push(listen(addr, shared)?);
            }
            Ok(Self { sockets, addr, alt_svc: None, proxies: None })
        };
        opened().map_err(|source| RunError::Bind { addr, source })
    }

    /// Announces HTTP/3 in responses, when it is there.
    pub fn announcing(mut self, alt_svc: AltSvc) -> Self {
        self.alt_svc = Some(alt_svc);
        self
    }

    /// Takes connections from these senders only, and who the client is from the PROXY protocol header that they begin
    /// with.
    pub fn behind(mut self, proxies: Arc<[IpNet]>) -> Self {
        self.proxies = Some(proxies);
        self
    }

    /// With port 0 in the configuration this is the only way to learn the port.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves until `shutdown`, then lets running requests finish within the drain deadline.
    pub async fn serve<A: Answer>(
        self,
        tls: Option<Arc<ServerConfig>>,
        limits: ListenLimits,
        answer: Arc<A>,
        shutdown: CancellationToken,
    ) {
        let Self { sockets, addr, alt_svc, proxies } = self;
        let permits = Arc::new(Semaphore::new(limits.connections_max));
        let drain = Arc::new(GracefulShutdown::new());
        let all = u32::try_from(limits.connections_max).unwrap_or(u32::MAX);
        let drain_deadline = limits.drain_deadline;
        let door = Arc::new(Door {
            tls: tls.map(TlsAcceptor::from),
            http: protocol(&limits),
            limits,
            answer,
            alt_svc,
            proxies,
            draining: shutdown,
        });
        let mut workers = JoinSet::new();
        for socket in sockets {
            workers.spawn(Arc::clone(&door).accept_all(socket, Arc::clone(&permits), Arc::clone(&drain)));
        }
        while let Some(ended) = workers.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%addr, %error, "a socket is accepted from no more");
            }
        }
        let ended = async {
            // All permits are back when no connection is left.
            let quiet = tokio::time::timeout(drain_deadline / LAME_DUCK_SHARE, permits.acquire_many(all));
            if quiet.await.is_err()
                && let Some(drain) = Arc::into_inner(drain)
            {
                drain.shutdown().await;
            }
        };
        if tokio::time::timeout(drain_deadline, ended).await.is_err() {
            tracing::warn!(%addr, "some requests did not finish within the drain deadline");
        }
    }
}

fn listen(addr: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // As the standard library does: an address whose last connections time out can be used again.
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(shared)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

/// A permit first, then a connection: at the limit, new peers wait in the kernel and cost nothing here.
async fn accept(
    socket: &TcpListener,
    permits: &Arc<Semaphore>,
) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
    let permit = permits.clone().acquire_owned().await.expect("the semaphore is never closed");
    loop {
        match socket.accept().await {
            Ok((stream, peer)) => return (stream, peer, permit),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn protocol(limits: &ListenLimits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_deadline)
        .max_headers(HEADERS_MAX)
        // hyper's floor is 8 KiB.
        .max_buf_size(limits.header_bytes_max.max(8 * 1024));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(H2_STREAMS_MAX)
        .max_header_list_size(H2_HEADER_LIST_BYTES_MAX)
        .max_send_buf_size(H2_SEND_BYTES_MAX)
        .max_pending_accept_reset_streams(H2_PENDING_RESETS_MAX)
        .max_local_error_reset_streams(H2_LOCAL_RESETS_MAX)
        .initial_stream_window_size(H2_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(H2_CONNECTION_WINDOW_BYTES)
        .keep_alive_interval(H2_KEEP_ALIVE_EVERY)
        .keep_alive_timeout(H2_KEEP_ALIVE_ANSWER_MAX);
    builder
}

/// Whoever the kernel has taken on this socket's behalf would be reset when it is closed, and nobody can turn it away from
/// the socket before that: so it is taken here, without waiting for more.
fn queued(socket: TcpListener) -> Vec<(TcpStream, SocketAddr)> {
    let take = |socket: &std::net::TcpListener| {
        let (stream, peer) = socket.accept()?;
        stream.set_nonblocking(true)?;
        Ok::<_, io::Error>((TcpStream::from_std(stream)?, peer))
    };
    let Ok(socket) = socket.into_std() else { return Vec::new() };
    (0..BACKLOG).map_while(|_| take(&socket).ok()).collect()
}

/// What every connection of one listener shares.
struct Door<A> {
    tls: Option<TlsAcceptor>,
    http: auto::Builder<TokioExecutor>,
    limits: ListenLimits,
    answer: Arc<A>,
    alt_svc: Option<AltSvc>,
    proxies: Option<Arc<[IpNet]>>,
    draining: CancellationToken,
}

impl<A: Answer> Door<A> {
    /// Accepts until the drain begins, then empties the socket's queue and closes it.
    async fn accept_all(
        self: Arc<Self>,
        socket: TcpListener,
        permits: Arc<Semaphore>,
        drain: Arc<GracefulShutdown>,
    ) {
        // Owned by the connection: it ends with the peer, its deadlines, or the drain.
        let serve = |stream, peer, permit| {
            tokio::spawn(Arc::clone(&self).connection(stream, peer, permit, drain.watcher()));
        };
        while let Some((stream, peer, permit)) =
            self.draining.run_until_cancelled(accept(&socket, &permits)).await
        {
            serve(stream, peer, permit);
        }
        for (stream, peer) in queued(socket) {
            let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
                tracing::warn!("the drain found more connections waiting than may be open");
                break;
            };
            serve(stream, peer, permit);
        }
    }

    async fn connection(
        self: Arc<Self>,
        mut stream: TcpStream,
        mut peer: SocketAddr,
        permit: OwnedSemaphorePermit,
        watcher: Watcher,
    ) {
        // Small answers must not wait for the acknowledgement of the one before.
        let _ = stream.set_nodelay(true);
        if let Some(proxies) = &self.proxies {
            let said = proxy_protocol::client(&mut stream, peer, proxies);
            match tokio::time::timeout(self.limits.tls_handshake_deadline, said).await {
                Ok(Ok(client)) => peer = client,
                // Strangers come by themselves; what is wrong with a sender that is trusted, its operator should see.
                Ok(Err(error @ ProxyError::Stranger)) => {
                    return tracing::debug!(%peer, %error, "a connection is refused");
                }
                Ok(Err(error)) => return tracing::warn!(%peer, %error, "a connection is refused"),
                Err(_) => return tracing::warn!(%peer, "a PROXY protocol header took too long"),
            }
        }
        let ended = match &self.tls {
            None => {
                let peer = Peer { addr: peer, tls: false };
                self.exchange(self.http.clone(), Stalling::new(stream), peer, watcher).await
            }
            Some(acceptor) => {
                let handshake = acceptor.accept(Stalling::new(stream));
                match tokio::time::timeout(self.limits.tls_handshake_deadline, handshake).await {
                    Err(_) => Err("the TLS handshake took too long".into()),
                    Ok(Err(error)) => Err(error.into()),
                    Ok(Ok(stream)) => {
                        // ALPN has decided, so no byte needs to be waited for.
                        let http = match stream.get_ref().1.alpn_protocol() {
                            Some(b"h2") => self.http.clone().http2_only(),
                            _ => self.http.clone().http1_only(),
                        };
                        self.exchange(http, stream, Peer { addr: peer, tls: true }, watcher).await
                    }
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%peer, %error, "a connection ended early");
        }
        drop(permit);
    }

    async fn exchange(
        &self,
        http: auto::Builder<TokioExecutor>,
        io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        peer: Peer,
        watcher: Watcher,
    ) -> Result<(), crate::http::BodyError> {
        let spoken = Arc::new(AtomicBool::new(false));
        let line = self.answer.passes_interims().then(|| Arc::new(Line::default()));
        let io = InterimIo::new(io, line.clone());
        let service = {
            let (spoken, answer) = (spoken.clone(), self.answer.clone());
            let (alt_svc, draining) = (self.alt_svc.clone(), self.draining.clone());
            service_fn(move |mut request: Request<Incoming>| {
                spoken.store(true, Ordering::Relaxed);
                let line = line.as_ref().filter(|_| request.version() == Version::HTTP_11);
                let turn = line.map(Line::begin);
                if let Some(turn) = &turn {
                    request.extensions_mut().insert(turn.interims());
                }
                let head_only = request.method() == Method::HEAD;
                let (alt_svc, draining) = (alt_svc.clone(), draining.clone());
                let closes = request.version() <= Version::HTTP_11;
                let answered = answer.clone().answer(request.map(RequestBody::from), peer);
                async move {
                    let mut response = answered.await;
                    drop(turn);
                    if let Some(said) = alt_svc.as_ref().and_then(AltSvc::value) {
                        response.headers_mut().insert(ALT_SVC, said.clone());
                    }
                    if closes && draining.is_cancelled() {
                        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                    }
                    Ok::<_, std::convert::Infallible>(if head_only {
                        without_body(response)
                    } else {
                        response
                    })
                }
            })
        };
        let connection = http.serve_connection(TokioIo::new(io), service).into_owned();
        let mut connection = Box::pin(watcher.watch(connection));
        // hyper times a head, but neither the wait for a protocol's first bytes nor an HTTP/2 peer that never asks.
        tokio::select! {
            ended = &mut connection => return ended,
            () = tokio::time::sleep(self.limits.header_deadline) => {}
        }
        if !spoken.load(Ordering::Relaxed) {
            return Err("no request came in time".into());
        }
        connection.await
    }
}

/// The answer to a HEAD: the head of the GET, length included. hyper does this for HTTP/1.1, not for HTTP/2, where a
/// body after all is an error of the protocol.
pub(crate) fn without_body(mut response: Response<Body>) -> Response<Body> {
    let length = http_body::Body::size_hint(response.body()).exact();
    if let Some(length) = length.filter(|_| !response.headers().contains_key(CONTENT_LENGTH)) {
        response.headers_mut().insert(CONTENT_LENGTH, length.into());
    }
    response.map(|_| crate::http::empty())
}

/// A socket whose writes may not stand still for longer than [`WRITE_STALL_MAX`]: hyper has no write time-out.
struct Stalling {
    stream: TcpStream,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Stalling {
    fn new(stream: TcpStream) -> Self {
        Self { stream, stalled: None }
    }

    fn watch<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.stalled = None;
            return polled;
        }
        let timer = self
            .stalled
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + WRITE_STALL_MAX)));
        match timer.as_mut().poll(cx) {
            Poll::Ready(()) => {
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer reads nothing")))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Stalling {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stalling {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.watch(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.watch(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.watch(cx, polled)
    }
}
