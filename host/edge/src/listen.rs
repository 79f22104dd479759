//! Accepts connections and bounds what each may cost: permit, accept, spawn.
//!
//! The loop never awaits a peer: handshakes happen in the connection's own task, under a deadline. HTTP/1.1 and
//! HTTP/2 over TLS (by ALPN) or in clear text (HTTP/2 by prior knowledge; there is no upgrade): hyper serves the one,
//! [`crate::http2`] the other. Knows nothing of what a request means: it calls an [`Answer`] and carries the response back.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use h2::server::Builder as Http2;
use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper::server::conn::http1::Builder as Http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use ipnet::IpNet;
use rustls::ServerConfig;
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::acme::{ACME_TLS, Challenges};
use crate::gate::{Gate, GateLimits, Tie};
use crate::http::{Body, BodyError, RequestBody};
use crate::http2;
use crate::http3::AltSvc;
use crate::interim::{InterimIo, Line};
use crate::running::RunError;
use crate::wire::{End, FIELDS_MAX, Forbearance, Plain, Ready, Spoken, Wire, WireLimits};

mod asked;
mod prompt;
mod proxy_protocol;

pub(crate) use self::asked::{Asked, Desk, without_body};
use self::prompt::AtDoor;
use self::proxy_protocol::ProxyError;

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
            stream_window_bytes: http2::STREAM_WINDOW_BYTES,
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
        let drain_deadline = limits.drain_deadline;
        let door = Arc::new(Door {
            tls,
            http1: http1(&limits),
            http2: http2::protocol(limits.http2.pending_resets_max),
            gate: gate.unwrap_or_else(|| limits.gate()),
            limits,
            answer,
            alt_svc,
            challenges,
            proxies,
            open: TaskTracker::new(),
            draining: shutdown,
            closing: AtomicBool::new(false),
            ends: watch::Sender::new(false),
        });
        let mut workers = JoinSet::new();
        for socket in sockets {
            workers.spawn(Arc::clone(&door).accept_all(socket));
        }
        while let Some(ended) = workers.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%addr, %error, "a socket is accepted from no more");
            }
        }
        door.open.close();
        let ended = async {
            let quiet = tokio::time::timeout(drain_deadline / LAME_DUCK_SHARE, door.open.wait());
            if quiet.await.is_err() {
                door.ends.send_replace(true);
                door.open.wait().await;
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

fn http1(limits: &ListenLimits) -> Http1 {
    let mut builder = Http1::new();
    builder
        .timer(TokioTimer::new())
        // The wire's clock knows a head from an idle connection.
        .header_read_timeout(None::<Duration>)
        .max_headers(FIELDS_MAX)
        .max_buf_size(limits.wire().head_bytes_max);
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
    http1: Http1,
    http2: Http2,
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
    /// Connections should come to their end, idle ones at once.
    ends: watch::Sender<bool>,
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
    async fn accept_all(self: Arc<Self>, socket: TcpListener) {
        // Owned by the connection: it ends with the peer, its deadlines, or the drain.
        let serve = |accepted, place| {
            self.open.spawn(Arc::clone(&self).connection(accepted, place));
        };
        // One for each that was waiting in the drain: no more than the kernel's queue has.
        let serve_later = |accepted| {
            let door = Arc::clone(&self);
            self.open.spawn(async move {
                let place = door.gate.place().await;
                door.connection(accepted, place).await;
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

    async fn connection(self: Arc<Self>, accepted: Accepted, place: OwnedSemaphorePermit) {
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
                self.exchange(stream, Spoken::Either, peer, tie.clone()).await
            }
            Some(config) => match self.shake(stream, config, &tie).await {
                Err(error) => Err(error),
                // An authority, which has seen what it came for.
                Ok(stream) if stream.get_ref().1.alpn_protocol() == Some(ACME_TLS) => Ok(()),
                Ok(stream) => {
                    // ALPN has decided, so no byte needs to be waited for.
                    let spoken = match stream.get_ref().1.alpn_protocol() {
                        Some(b"h2") => Spoken::Http2,
                        _ => Spoken::Http1,
                    };
                    let peer = Peer { addr: peer, tls: true };
                    let stream = Wire::new(stream, spoken, wire, tie.clone());
                    let stream = stream.prompted_by(AtDoor::of(&self, peer));
                    self.exchange(stream, spoken, peer, tie.clone()).await
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

    async fn exchange<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        &self,
        mut io: Wire<S>,
        mut spoken: Spoken,
        peer: Peer,
        tie: Arc<Tie>,
    ) -> Result<(), BodyError> {
        let mut ends = self.ends.subscribe();
        if spoken == Spoken::Either {
            spoken = tokio::select! {
                biased;
                said = io.spoken() => match said? {
                    Some(said) => said,
                    None => return Ok(()),
                },
                // Nothing of a request is here.
                () = told(&mut ends) => return Ok(()),
            };
        }
        let desk = Arc::new(Desk {
            answer: Arc::clone(&self.answer),
            tie,
            peer,
            alt_svc: self.alt_svc.clone(),
            challenges: self.challenges.clone(),
            draining: self.draining.clone(),
        });
        // Boxed: of the two, a connection pays for the one that it is.
        match spoken {
            Spoken::Http2 => Box::pin(http2::serve(io, &self.http2, desk, told(&mut ends))).await,
            Spoken::Http1 | Spoken::Either => Box::pin(self.serve_http1(io, desk, told(&mut ends))).await,
        }
    }

    async fn serve_http1<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        &self,
        io: Wire<S>,
        desk: Arc<Desk>,
        ends: impl Future<Output = ()>,
    ) -> Result<(), BodyError> {
        let line = desk.passes_interims().then(|| Arc::new(Line::default()));
        let io = InterimIo::new(io, line.clone());
        let service = service_fn(move |mut request: Request<Incoming>| {
            let line = line.as_ref().filter(|_| request.version() == Version::HTTP_11);
            let turn = line.map(Line::begin);
            if let Some(turn) = &turn {
                request.extensions_mut().insert(turn.interims());
            }
            let asked = desk.ask(request.map(RequestBody::from));
            async move {
                let response = asked.await;
                drop(turn);
                Ok::<_, Infallible>(response)
            }
        });
        let mut connection = pin!(self.http1.serve_connection(TokioIo::new(io), service));
        tokio::select! {
            biased;
            ended = connection.as_mut() => return Ok(ended?),
            () = ends => connection.as_mut().graceful_shutdown(),
        }
        Ok(connection.await?)
    }
}

/// Until connections are told to come to their end.
async fn told(ends: &mut watch::Receiver<bool>) {
    // Fails without the door, which whoever waits here holds.
    let _ = ends.wait_for(|ends| *ends).await;
}

/// Whether a bound of h2's has ended a connection of HTTP/2.
fn is_calmed(error: &(dyn std::error::Error + 'static)) -> bool {
    let h2 = error.downcast_ref::<h2::Error>();
    h2.is_some_and(|error| error.is_library() && error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM))
}

#[cfg(test)]
mod tests;
