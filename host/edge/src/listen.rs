//! Accepts connections and bounds what each may cost: permit, accept, spawn.
//!
//! The loop never awaits a peer: handshakes happen in the connection's own task, under a deadline. HTTP/1.1 and
//! HTTP/2 over TLS (by ALPN) or in clear text (HTTP/2 by prior knowledge; there is no upgrade). Knows nothing of
//! what a request means: it calls an [`Answer`] and carries the response back.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::header::{ALT_SVC, CONNECTION, CONTENT_LENGTH};
use http::{HeaderValue, Method, Request, Response, Version};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use ipnet::IpNet;
use rustls::ServerConfig;
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::acme::Challenges;
use crate::gate::{Gate, GateLimits, Tie, Worked};
use crate::http::{Body, BodyError, RequestBody, join_cookies};
use crate::http3::AltSvc;
use crate::interim::{InterimIo, Line};
use crate::rescue::Problem;
use crate::running::RunError;
use crate::wire::{End, FIELDS_MAX, Forbearance, Plain, Ready, Spoken, Wire, WireLimits};

mod prompt;
mod proxy_protocol;
mod streams;

use self::prompt::AtDoor;
use self::proxy_protocol::ProxyError;
use self::streams::StreamExecutor;

/// A header list of HTTP/2, counted as RFC 9113 does (name + value + 32): 16 KiB is twice what browsers send.
const H2_HEADER_LIST_BYTES_MAX: u32 = 16 * 1024;
/// Requests that one HTTP/2 connection may have open at once.
pub(crate) const H2_STREAMS_MAX: u32 = 100;
/// What one HTTP/2 stream may have waiting to be sent: 100 streams hold at most 6.4 MiB per connection.
const H2_SEND_BYTES_MAX: usize = 64 * 1024;
/// Streams that the peer made us reset (MadeYouReset) until the connection is closed.
const H2_LOCAL_RESETS_MAX: usize = 50;
/// What one HTTP/2 stream may send before we read it: as much as the largest body that is read anywhere.
const H2_STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const H2_CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
const H2_KEEP_ALIVE_EVERY: Duration = Duration::from_secs(20);
const H2_KEEP_ALIVE_ANSWER_MAX: Duration = Duration::from_secs(10);
/// How long a reader may take our bytes too slowly (it holds a response and a socket), or a shopper give a stream no window: a
/// train through a tunnel.
pub(crate) const DOWNLOAD_WAIT_MAX: Duration = Duration::from_secs(30);
/// The same for a request body: it holds a handler, and often a request to an upstream.
const UPLOAD_WAIT_MAX: Duration = Duration::from_secs(10);
/// Operators' connections: a scraper, a probe and a few people.
const ADMIN_CONNECTIONS_MAX: usize = 64;
/// A pause after `accept` failed, which means that the process has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Connections that the kernel keeps for a socket until they are accepted.
const BACKLOG: u32 = 1024;
/// The share of the drain deadline in which idle connections of HTTP/1.1 stay open, so that a request that is on its way to
/// one is answered, with the word that the connection ends.
const LAME_DUCK_SHARE: u32 = 10;

/// Whoever answers requests. Infallible: an error is a response too, made by [`crate::rescue`].
///
/// Listeners hold it as a `dyn`: its future is boxed anyway, and the whole of HTTP is compiled once.
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

    /// The answer to a plain request, if it is at hand: the same that [`answer`](Self::answer) would give, in bytes, and
    /// counted and logged as it would be. It is asked between two reads of a connection, and must not wait.
    fn at_hand(&self, _plain: &Plain<'_>, _peer: Peer) -> Option<Ready> {
        None
    }

    /// Whether most answers are made without waiting and within microseconds: then plain requests are looked up before
    /// anything else ([`at_hand`](Self::at_hand)), and a connection of HTTP/2 makes answers itself before it gives them a task.
    fn is_brief(&self) -> bool {
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
    /// Open connections. Then the longest idle one goes for each that comes; if none is idle, they wait in the kernel's queue.
    pub connections_max: usize,
    /// Of these, what one IPv4 address, or one /64 of IPv6, may have.
    pub connections_per_address_max: usize,
    /// Requests in flight, beyond which new ones are told to come back.
    pub requests_in_flight_max: usize,
    /// One HTTP/1 head.
    pub header_bytes_max: usize,
    /// One HTTP/1 head, from its first byte; and from the start of a connection to the end of its first.
    pub header_deadline: Duration,
    /// Between requests.
    pub idle_deadline: Duration,
    pub tls_handshake_deadline: Duration,
    /// How long a request body may let itself be waited for, at less than [`crate::wire::BYTES_PER_S_MIN`].
    pub upload_wait_max: Duration,
    /// How long running requests may go on after shutdown was asked for.
    pub drain_deadline: Duration,
    /// What the client of one HTTP/2 connection may have us bear.
    pub http2: Forbearance,
}

impl Default for ListenLimits {
    fn default() -> Self {
        Self {
            connections_max: 10_000,
            // A fifth: `souk_config::limits` says why.
            connections_per_address_max: 2_000,
            requests_in_flight_max: 10_000,
            header_bytes_max: 64 * 1024,
            header_deadline: Duration::from_secs(10),
            idle_deadline: Duration::from_secs(75),
            tls_handshake_deadline: Duration::from_secs(5),
            upload_wait_max: UPLOAD_WAIT_MAX,
            drain_deadline: Duration::from_secs(10),
            http2: Forbearance::SHOPPERS,
        }
    }
}

impl ListenLimits {
    /// The same for a listener that only operators reach: whoever fills the shoppers' one does not shut them out, and they
    /// have no use for as much.
    #[must_use]
    pub fn for_operators(self) -> Self {
        Self { connections_max: ADMIN_CONNECTIONS_MAX, ..self }
    }

    /// A gate for listeners with these limits.
    pub fn gate(&self) -> Arc<Gate> {
        Gate::new(GateLimits {
            connections_max: self.connections_max,
            connections_per_address_max: self.connections_per_address_max,
            requests_in_flight_max: self.requests_in_flight_max,
        })
    }

    fn wire(&self) -> WireLimits {
        WireLimits {
            // hyper's floor is 8 KiB.
            head_bytes_max: self.header_bytes_max.max(8 * 1024),
            head_max: self.header_deadline,
            idle_max: self.idle_deadline,
            upload_max: self.upload_wait_max,
            download_max: DOWNLOAD_WAIT_MAX,
            stream_window_bytes: H2_STREAM_WINDOW_BYTES,
            http2: self.http2,
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
    gate: Option<Arc<Gate>>,
    challenges: Option<Challenges>,
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
            Ok(Self { sockets, addr, alt_svc: None, gate: None, challenges: None, proxies: None })
        };
        opened().map_err(|source| RunError::Bind { addr, source })
    }

    /// Announces HTTP/3 in responses, when it is there.
    pub fn announcing(mut self, alt_svc: AltSvc) -> Self {
        self.alt_svc = Some(alt_svc);
        self
    }

    /// Answers whoever looks for these, before anybody else hears of it.
    pub(crate) fn answering(mut self, challenges: Challenges) -> Self {
        self.challenges = Some(challenges);
        self
    }

    /// Takes connections from these senders only, and who the client is from the PROXY protocol header that they begin
    /// with.
    pub fn behind(mut self, proxies: Arc<[IpNet]>) -> Self {
        self.proxies = Some(proxies);
        self
    }

    /// Lets connections in by this gate, which may be before other listeners too. Without one it has its own.
    #[must_use]
    pub fn through(self, gate: Arc<Gate>) -> Self {
        Self { gate: Some(gate), ..self }
    }

    /// With port 0 in the configuration this is the only way to learn the port.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves until `shutdown`, then lets running requests finish within the drain deadline.
    pub async fn serve(
        self,
        tls: Option<Arc<ServerConfig>>,
        limits: ListenLimits,
        answer: Arc<dyn Answer>,
        shutdown: CancellationToken,
    ) {
        let Self { sockets, addr, alt_svc, gate, challenges, proxies } = self;
        let drain = Arc::new(GracefulShutdown::new());
        let drain_deadline = limits.drain_deadline;
        let door = Arc::new(Door {
            tls,
            http: protocol(&limits, StreamExecutor { first_here: answer.is_brief() }),
            gate: gate.unwrap_or_else(|| limits.gate()),
            limits,
            answer,
            alt_svc,
            challenges,
            proxies,
            open: TaskTracker::new(),
            draining: shutdown,
            closing: AtomicBool::new(false),
        });
        let mut workers = JoinSet::new();
        for socket in sockets {
            workers.spawn(Arc::clone(&door).accept_all(socket, Arc::clone(&drain)));
        }
        while let Some(ended) = workers.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%addr, %error, "a socket is accepted from no more");
            }
        }
        door.open.close();
        let ended = async {
            let quiet = tokio::time::timeout(drain_deadline / LAME_DUCK_SHARE, door.open.wait());
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

fn protocol(limits: &ListenLimits, streams: StreamExecutor) -> auto::Builder<StreamExecutor> {
    let mut builder = auto::Builder::new(streams);
    builder
        .http1()
        .timer(TokioTimer::new())
        // The wire's clock knows a head from an idle connection.
        .header_read_timeout(None::<Duration>)
        .max_headers(FIELDS_MAX)
        .max_buf_size(limits.wire().head_bytes_max);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(H2_STREAMS_MAX)
        .max_header_list_size(H2_HEADER_LIST_BYTES_MAX)
        .max_send_buf_size(H2_SEND_BYTES_MAX)
        .max_pending_accept_reset_streams(limits.http2.pending_resets_max)
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
struct Door {
    tls: Option<Arc<ServerConfig>>,
    http: auto::Builder<StreamExecutor>,
    limits: ListenLimits,
    gate: Arc<Gate>,
    answer: Arc<dyn Answer>,
    alt_svc: Option<AltSvc>,
    challenges: Option<Challenges>,
    proxies: Option<Arc<[IpNet]>>,
    open: TaskTracker,
    draining: CancellationToken,
    /// The drain has begun: what `draining` says, without its lock.
    closing: AtomicBool,
}

/// A connection that is here and nowhere else any more. Who is behind a proxy is not known yet, and has no tie.
struct Accepted {
    stream: TcpStream,
    peer: SocketAddr,
    tie: Option<Arc<Tie>>,
}

impl Door {
    /// Accepts until the drain begins, then empties the socket's queue and closes it. Whoever has been accepted is served,
    /// also if its place comes free in the drain only.
    async fn accept_all(self: Arc<Self>, socket: TcpListener, drain: Arc<GracefulShutdown>) {
        // Owned by the connection: it ends with the peer, its deadlines, or the drain.
        let serve = |accepted, place| {
            self.open.spawn(Arc::clone(&self).connection(accepted, place, drain.watcher()));
        };
        // One for each that was waiting in the drain: no more than the kernel's queue has.
        let serve_later = |accepted| {
            let (door, watcher) = (Arc::clone(&self), drain.watcher());
            self.open.spawn(async move {
                let place = door.gate.place().await;
                door.connection(accepted, place, watcher).await;
            });
        };
        while let Some(accepted) = self.draining.run_until_cancelled(self.accept(&socket)).await {
            // While it waits for a place, further peers wait in the kernel and cost nothing here.
            let place = tokio::select! {
                biased;
                place = self.gate.place() => Some(place),
                () = self.draining.cancelled() => None,
            };
            match place {
                Some(place) => serve(accepted, place),
                None => serve_later(accepted),
            }
        }
        self.closing.store(true, Ordering::Relaxed);
        for (stream, peer) in queued(socket) {
            // One address that is full does not shut out those behind it.
            let Some(tie) = self.admit(peer) else { continue };
            let accepted = Accepted { stream, peer, tie };
            match self.gate.place_now() {
                Some(place) => serve(accepted, place),
                None => serve_later(accepted),
            }
        }
    }

    /// The next connection whose address may have one more.
    ///
    /// Cancel safe: a connection that has been accepted is returned at once.
    async fn accept(&self, socket: &TcpListener) -> Accepted {
        loop {
            match socket.accept().await {
                Ok((stream, peer)) => {
                    if let Some(tie) = self.admit(peer) {
                        return Accepted { stream, peer, tie };
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// What ties a peer to the gate, which comes later for one that a proxy stands for; none if its address is full.
    fn admit(&self, peer: SocketAddr) -> Option<Option<Arc<Tie>>> {
        match &self.proxies {
            Some(_) => Some(None),
            None => self.gate.admit(peer.ip()).map(Some),
        }
    }

    async fn connection(self: Arc<Self>, accepted: Accepted, place: OwnedSemaphorePermit, watcher: Watcher) {
        let Accepted { mut stream, mut peer, tie } = accepted;
        // Small answers must not wait for the acknowledgement of the one before.
        let _ = stream.set_nodelay(true);
        if let Some(proxies) = &self.proxies {
            let said = proxy_protocol::client(&mut stream, peer, proxies);
            match tokio::time::timeout(self.limits.tls_handshake_deadline, said).await {
                Ok(Ok(client)) => peer = client,
                // Strangers come by themselves, and a balancer that looks whether somebody listens says nothing; what is wrong
                // with a sender that is trusted, its operator should see.
                Ok(Err(error @ (ProxyError::Stranger | ProxyError::Silent))) => {
                    return tracing::debug!(%peer, %error, "a connection is refused");
                }
                Ok(Err(error)) => return tracing::warn!(%peer, %error, "a connection is refused"),
                Err(_) => return tracing::warn!(%peer, "a PROXY protocol header took too long"),
            }
        }
        let Some(tie) = tie.or_else(|| self.gate.admit(peer.ip())) else { return };
        let wire = self.limits.wire();
        let ended = match &self.tls {
            None => {
                let peer = Peer { addr: peer, tls: false };
                let stream = Wire::new(stream, Spoken::Either, wire, tie.clone()).lent_files();
                let stream = stream.prompted_by(AtDoor::of(&self, peer));
                self.exchange(self.http.clone(), stream, peer, tie.clone(), watcher).await
            }
            Some(config) => match self.shake(stream, config, &tie).await {
                Err(error) => Err(error),
                Ok(stream) => {
                    // ALPN has decided, so no byte needs to be waited for.
                    let (http, spoken) = match stream.get_ref().1.alpn_protocol() {
                        Some(b"h2") => (self.http.clone().http2_only(), Spoken::Http2),
                        _ => (self.http.clone().http1_only(), Spoken::Http1),
                    };
                    let peer = Peer { addr: peer, tls: true };
                    let stream = Wire::new(stream, spoken, wire, tie.clone());
                    let stream = stream.prompted_by(AtDoor::of(&self, peer));
                    self.exchange(http, stream, peer, tie.clone(), watcher).await
                }
            },
        };
        if let Err(error) = ended {
            if is_calmed(&*error) {
                tie.ended(End::Calmed);
            }
            tracing::debug!(%peer, %error, "a connection ended early");
        }
        drop(place);
    }

    /// A TLS handshake. Its costs begin when the client's first word is there whole, if there is a place for them then.
    async fn shake(
        &self,
        stream: TcpStream,
        config: &Arc<ServerConfig>,
        tie: &Arc<Tie>,
    ) -> Result<TlsStream<TcpStream>, BodyError> {
        let until = Instant::now() + self.limits.tls_handshake_deadline;
        let hello = LazyConfigAcceptor::new(Acceptor::default(), stream);
        let hello = tokio::time::timeout_at(until, hello).await;
        let hello = hello.map_err(|_| "no ClientHello came in time")??;
        let left = until.saturating_duration_since(Instant::now());
        let (_shaking, left) = tie.shake(left).ok_or("there are too many TLS handshakes")?;
        let shaken = tokio::time::timeout(left, hello.into_stream(Arc::clone(config))).await;
        Ok(shaken.map_err(|_| "the TLS handshake took too long")??)
    }

    async fn exchange(
        &self,
        http: auto::Builder<StreamExecutor>,
        io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        peer: Peer,
        tie: Arc<Tie>,
        watcher: Watcher,
    ) -> Result<(), BodyError> {
        let says_interims = self.answer.passes_interims() && http.is_http1_available();
        let line = says_interims.then(|| Arc::new(Line::default()));
        let io = InterimIo::new(io, line.clone());
        let service = {
            let answer = Arc::clone(&self.answer);
            // Cloned for each request: a token takes a lock for that, and every clone an atomic of its own.
            let door = Arc::new((self.alt_svc.clone(), self.draining.clone()));
            let challenges = self.challenges.clone();
            service_fn(move |mut request: Request<Incoming>| {
                let work = tie.begin();
                if request.version() >= Version::HTTP_2 {
                    join_cookies(request.headers_mut());
                }
                let line = line.as_ref().filter(|_| request.version() == Version::HTTP_11);
                let turn = line.map(Line::begin);
                if let Some(turn) = &turn {
                    request.extensions_mut().insert(turn.interims());
                }
                let head_only = request.method() == Method::HEAD;
                let door = Arc::clone(&door);
                let closes = request.version() <= Version::HTTP_11;
                let challenged = challenges.as_ref().and_then(|challenges| challenges.answer(&request));
                let answered: BoxFuture<'static, _> = match challenged {
                    Some(response) => Box::pin(std::future::ready(response)),
                    None => Arc::clone(&answer).answer(request.map(RequestBody::from), peer),
                };
                async move {
                    let (work, mut response) = match work {
                        Err(problem) => (None, problem.into_response()),
                        Ok(work) => {
                            let response = match work.refusal() {
                                Some(problem) => problem.into_response(),
                                // A body may turn out to be malformed while it is read.
                                None => {
                                    let response = answered.await;
                                    work.refusal().map_or(response, Problem::into_response)
                                }
                            };
                            (Some(work), response)
                        }
                    };
                    drop(turn);
                    // An upstream's own would lead shoppers past the node.
                    let (alt_svc, draining) = &*door;
                    match alt_svc.as_ref().and_then(AltSvc::value) {
                        Some(said) => drop(response.headers_mut().insert(ALT_SVC, said.clone())),
                        None => drop(response.headers_mut().remove(ALT_SVC)),
                    }
                    if !closes {
                        // HTTP/2 has no such field.
                        response.headers_mut().remove(CONNECTION);
                    } else if draining.is_cancelled() {
                        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                    }
                    let response = if head_only { without_body(response) } else { response };
                    Ok::<_, std::convert::Infallible>(response.map(|body| match work {
                        Some(work) => work.until_sent(body),
                        None => Worked::free(body),
                    }))
                }
            })
        };
        let connection = http.serve_connection(TokioIo::new(io), service).into_owned();
        watcher.watch(connection).await
    }
}

/// Whether a bound of hyper's has ended a connection of HTTP/2.
fn is_calmed(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source())
        .filter_map(|error| error.downcast_ref::<h2::Error>())
        .any(|error| error.is_library() && error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM))
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

#[cfg(test)]
mod tests;
