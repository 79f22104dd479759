//! HTTP/3: the same answers over QUIC, on the port of HTTPS.
//!
//! Owns the QUIC socket, the limits of its connections and how they come to an end. h3 speaks the protocol; what it leaves
//! open is decided below it ([`transport`], [`frames`], [`section`]) and above it ([`answer`], [`upload`], [`pace`]). Knows nothing of what a
//! request means: it calls an [`Answer`], as [`crate::listen`] does.
//!
//! Clients learn of it from `Alt-Svc` ([`AltSvc`]), and fall back to TCP wherever it does not answer. There is no early
//! data, because it can be replayed, and no server push.

mod answer;
mod frames;
mod metrics;
mod pace;
mod section;
mod transport;
mod upload;

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Endpoint, EndpointConfig, Incoming, ServerConfig, TokioRuntime, TransportConfig, VarInt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::answer::Broken;
pub use self::metrics::Http3Metrics;
use self::transport::{Client, LastClient, Resolver, Transport};
pub(crate) use self::upload::Upload;
use crate::gate::{Gate, Tie};
use crate::interim::Hints;
use crate::listen::{Answer, DOWNLOAD_WAIT_MAX, ListenLimits, Peer};
use crate::running::RunError;
use crate::tls::TlsError;

/// A field section, counted as RFC 9114 does (name + value + 32 each): the same as for HTTP/2.
const HEADER_LIST_BYTES_MAX: u64 = 16 * 1024;
/// Requests that one connection may have open at once: the same as for HTTP/2.
const STREAMS_MAX: u32 = 100;
/// The peer's own streams: control, two of QPACK, and some of kinds that nobody knows.
const UNI_STREAMS_MAX: u32 = 8;
/// What a stream may send before it is read, and a connection altogether: the same as for HTTP/2.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// What one connection may hold unacknowledged: 80 Mbit/s over a round trip of 100 ms.
const SEND_WINDOW_BYTES: u64 = 1024 * 1024;
/// A connection on which nothing is said is forgotten; a browser comes back with one round trip.
const IDLE_MS_MAX: u32 = 30_000;
/// Handshakes in progress. Each costs a signature, some 0.1 ms of a core: with a round trip of 100 ms that is 2,560 new
/// shoppers a second, far above what two cores can sign beside their work.
const HANDSHAKES_MAX: usize = 256;
/// First packets that wait to be looked at, and what they may hold.
const INCOMING_MAX: usize = 512;
const INCOMING_BYTES_MAX: u64 = 16 * 1024;
const INCOMING_BYTES_TOTAL_MAX: u64 = 4 * 1024 * 1024;
/// Requests that a client may take back before their answer, beyond those that it lets run: what a browser has open when
/// its page is left, twice.
const CANCELLED_MAX: u32 = 2 * STREAMS_MAX;
/// What may still be on its way when the last answer has gone: two round trips, within these.
const LINGER: std::ops::RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(1);
/// How long the last packets may take to leave.
const CLOSE_MAX: Duration = Duration::from_secs(1);
/// How often a socket that another process still holds is asked for.
const TAKE_OVER_EVERY: Duration = Duration::from_millis(250);
/// How long clients may remember that there is HTTP/3: a day, the default of RFC 7838.
const ALT_SVC_AGE_S: u32 = 24 * 3600;

/// What responses over TCP say of HTTP/3; nothing until it is listened to.
#[derive(Debug, Clone, Default)]
pub struct AltSvc(Arc<OnceLock<HeaderValue>>);

impl AltSvc {
    fn announce(&self, port: u16) {
        let text = format!("h3=\":{port}\"; ma={ALT_SVC_AGE_S}");
        self.0.get_or_init(|| HeaderValue::from_str(&text).expect("a number in ASCII"));
    }

    pub fn value(&self) -> Option<&HeaderValue> {
        self.0.get()
    }
}

/// A UDP socket for HTTP/3, not yet answering.
pub struct Http3Listener {
    addr: SocketAddr,
    /// None while the process before this one holds it.
    socket: Option<UdpSocket>,
    tls: Arc<QuicServerConfig>,
    alt_svc: AltSvc,
    metrics: Http3Metrics,
    gate: Option<Arc<Gate>>,
}

impl Http3Listener {
    /// `waits`: whether a socket that is in use is waited for, as one that an older process will leave.
    pub fn bind(
        addr: SocketAddr,
        waits: bool,
        tls: Arc<rustls::ServerConfig>,
        metrics: Http3Metrics,
    ) -> Result<Self, RunError> {
        let tls = QuicServerConfig::try_from(tls).map_err(|error| TlsError::Quic(error.to_string()))?;
        let socket = match UdpSocket::bind(addr) {
            Err(error) if waits && error.kind() == io::ErrorKind::AddrInUse => None,
            bound => Some(bound.map_err(|source| RunError::BindUdp { addr, source })?),
        };
        Ok(Self { addr, socket, tls: Arc::new(tls), alt_svc: AltSvc::default(), metrics, gate: None })
    }

    /// Counts connections of an address and requests in flight at this gate, which may be before other listeners too.
    /// Without one it has its own.
    #[must_use]
    pub fn through(self, gate: Arc<Gate>) -> Self {
        Self { gate: Some(gate), ..self }
    }

    /// For the listener of the same port on TCP.
    pub fn alt_svc(&self) -> AltSvc {
        self.alt_svc.clone()
    }

    /// Serves until `shutdown`, then lets running requests finish within the drain deadline.
    pub async fn serve(self, limits: ListenLimits, answer: Arc<dyn Answer>, shutdown: CancellationToken) {
        let Self { addr, socket, tls, alt_svc, metrics, gate } = self;
        let socket = match socket {
            Some(socket) => socket,
            None => match shutdown.run_until_cancelled(take_over(addr)).await {
                Some(socket) => socket,
                None => return,
            },
        };
        let endpoint = Endpoint::new(
            EndpointConfig::default(),
            Some(server_config(tls)),
            socket,
            Arc::new(TokioRuntime),
        );
        let endpoint = match endpoint {
            Ok(endpoint) => endpoint,
            Err(error) => {
                tracing::error!(%addr, %error, "HTTP/3 is not served: its socket cannot be used");
                return;
            }
        };
        alt_svc.announce(addr.port());
        let connections_max = limits.connections_max;
        let door = Arc::new(Door {
            connections: Arc::new(Semaphore::new(connections_max)),
            connections_max,
            handshakes: Arc::new(Semaphore::new(HANDSHAKES_MAX)),
            gate: gate.unwrap_or_else(|| limits.gate()),
            limits,
            answer,
            metrics,
            shutdown,
        });
        door.accept(&endpoint).await;
        endpoint.close(code(h3::error::Code::H3_NO_ERROR), b"the server stops");
        if timeout(CLOSE_MAX, endpoint.wait_idle()).await.is_err() {
            tracing::debug!(%addr, "some peers did not hear that their connection is closed");
        }
    }
}

/// The process that this one takes over from serves the connections that it has to their end, so it keeps its socket as
/// long. Clients reach this process by TCP meanwhile, and hear of HTTP/3 when there is some.
async fn take_over(addr: SocketAddr) -> UdpSocket {
    tracing::info!(%addr, "HTTP/3 waits for the process before to leave its UDP port");
    loop {
        sleep(TAKE_OVER_EVERY).await;
        match UdpSocket::bind(addr) {
            Ok(socket) => return socket,
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => tracing::warn!(%addr, %error, "HTTP/3 cannot be listened to yet"),
        }
    }
}

fn server_config(tls: Arc<QuicServerConfig>) -> ServerConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(UNI_STREAMS_MAX))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES)
        .max_idle_timeout(Some(VarInt::from_u32(IDLE_MS_MAX).into()))
        // Nobody here reads datagrams: whoever sends one gets an error instead of our memory.
        .datagram_receive_buffer_size(None);
    let mut server = ServerConfig::with_crypto(tls);
    server
        .transport_config(Arc::new(transport))
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size(INCOMING_BYTES_MAX)
        .incoming_buffer_size_total(INCOMING_BYTES_TOTAL_MAX);
    server
}

fn code(code: h3::error::Code) -> VarInt {
    VarInt::from_u64(code.value()).expect("HTTP/3's error codes are small")
}

/// What every connection of one listener shares.
struct Door {
    connections: Arc<Semaphore>,
    connections_max: usize,
    handshakes: Arc<Semaphore>,
    gate: Arc<Gate>,
    limits: ListenLimits,
    answer: Arc<dyn Answer>,
    metrics: Http3Metrics,
    shutdown: CancellationToken,
}

impl Door {
    /// Returns when the last connection has ended, or the drain deadline has passed.
    async fn accept(self: &Arc<Self>, endpoint: &Endpoint) {
        let tasks = TaskTracker::new();
        while let Some(Some(incoming)) = self.shutdown.run_until_cancelled(endpoint.accept()).await {
            self.admit(incoming, &tasks);
        }
        tasks.close();
        // Whoever comes now is told so, and falls back to TCP at once.
        let drained = async {
            loop {
                tokio::select! {
                    () = tasks.wait() => return,
                    incoming = endpoint.accept() => match incoming {
                        Some(incoming) => incoming.refuse(),
                        None => return,
                    }
                }
            }
        };
        if timeout(self.limits.drain_deadline, drained).await.is_err() {
            tracing::warn!("some requests over HTTP/3 did not finish within the drain deadline");
        }
    }

    /// Never awaits a peer. A crowd must show that its addresses are its own before it costs a handshake.
    fn admit(self: &Arc<Self>, incoming: Incoming, tasks: &TaskTracker) {
        let crowded = self.handshakes.available_permits() <= HANDSHAKES_MAX / 2
            || self.connections.available_permits() <= self.connections_max / 4;
        if crowded && !incoming.remote_address_validated() && incoming.may_retry() {
            self.metrics.retries.inc();
            let _ = incoming.retry();
            return;
        }
        let permits = (
            Arc::clone(&self.handshakes).try_acquire_owned(),
            Arc::clone(&self.connections).try_acquire_owned(),
        );
        let (Ok(handshake), Ok(place)) = permits else {
            self.metrics.ended("crowded");
            incoming.refuse();
            return;
        };
        tasks.spawn(Arc::clone(self).connection(incoming, handshake, place));
    }

    async fn connection(
        self: Arc<Self>,
        incoming: Incoming,
        handshake: OwnedSemaphorePermit,
        place: OwnedSemaphorePermit,
    ) {
        let peer = incoming.remote_address();
        let patience = self.limits.tls_handshake_deadline;
        let shaken = async { incoming.accept()?.await };
        let connection = match timeout(patience, shaken).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => {
                self.metrics.ended("handshake");
                tracing::debug!(%peer, %error, "a QUIC handshake failed");
                return;
            }
            Err(_) => {
                self.metrics.ended("handshake");
                tracing::debug!(%peer, "a QUIC handshake took too long");
                return;
            }
        };
        drop(handshake);
        // Now the address is known to be the peer's own: nobody fills another's part.
        let Some(tie) = self.gate.admit(peer.ip()) else {
            self.metrics.ended("crowded");
            connection.close(code(h3::error::Code::H3_EXCESSIVE_LOAD), b"too many from this address");
            return;
        };
        self.metrics.connections.inc();
        self.metrics.open.inc();
        let why = self.requests(connection, tie).await;
        self.metrics.open.dec();
        self.metrics.ended(why);
        tracing::debug!(%peer, why, "a connection of HTTP/3 ended");
        drop(place);
    }

    /// Answers the requests of one connection; says why it ended.
    async fn requests(self: &Arc<Self>, connection: quinn::Connection, tie: Arc<Tie>) -> &'static str {
        let peer = Peer { addr: connection.remote_address(), tls: true };
        let (transport, last) = Transport::new(connection.clone());
        let mut server = h3::server::builder();
        server.max_field_section_size(HEADER_LIST_BYTES_MAX).send_grease(false);
        let built = timeout(self.limits.tls_handshake_deadline, server.build(transport)).await;
        let Ok(Ok(server)) = built else { return "handshake" };
        let mut life = Life {
            connection,
            server,
            last,
            tie,
            requests: JoinSet::new(),
            accepted: 0,
            cancelled: 0,
            quiet_since: Instant::now(),
            draining: false,
        };
        life.run(self, peer).await
    }

    /// One request from head to answer.
    async fn request(
        self: Arc<Self>,
        resolver: Resolver,
        client: Client,
        peer: Peer,
        tie: Arc<Tie>,
    ) -> Ended {
        let head = timeout(self.limits.header_deadline, resolver.resolve_request()).await;
        let (head, stream) = match head {
            Ok(Ok(resolved)) => resolved,
            Ok(Err(error)) => {
                tracing::debug!(peer = %peer.addr, %error, "a request over HTTP/3 is none");
                return Ended::Malformed;
            }
            Err(_) => return Ended::Malformed,
        };
        self.metrics.requests.inc();
        client.must_be_whole();
        let (mut sending, receiving) = stream.split();
        let method = head.method().clone();
        let answered = async {
            // Work until its answer is sent, or it is dropped.
            let work = tie.begin();
            let response = match &work {
                Ok(_) => match answer::request(head, receiving, self.limits.upload_wait_max).await {
                    Ok((mut request, late)) => {
                        let hints = self.answer.passes_interims().then(Hints::default);
                        if let Some(hints) = &hints {
                            request.extensions_mut().insert(hints.interims());
                        }
                        let answered = Arc::clone(&self.answer).answer(request, peer);
                        let response = match hints {
                            Some(hints) => answer::with_hints(&mut sending, hints, answered).await?,
                            None => answered.await,
                        };
                        match answer::too_slow(late.as_ref()) {
                            Some(problem) => {
                                self.metrics.broke("slow_body");
                                problem.into_response()
                            }
                            None => response,
                        }
                    }
                    Err(problem) => problem.into_response(),
                },
                Err(overloaded) => overloaded.clone().into_response(),
            };
            answer::send(&mut sending, &method, response).await
        };
        let mut done = client.done;
        tokio::select! {
            biased;
            sent = answered => match sent {
                Ok(()) => {
                    drop(sending);
                    // Closing the connection loses what the peer has not acknowledged: the request lives until it has.
                    let _ = timeout(DOWNLOAD_WAIT_MAX, done).await;
                    Ended::Answered
                }
                Err(broken) => Ended::Broken(broken),
            },
            // The handler is dropped, whatever it is at.
            () = &mut done => Ended::Cancelled,
        }
    }
}

/// How a request came to its end.
enum Ended {
    Answered,
    Malformed,
    Cancelled,
    Broken(Broken),
}

/// One connection.
struct Life {
    connection: quinn::Connection,
    server: h3::server::Connection<Transport, Bytes>,
    last: LastClient,
    tie: Arc<Tie>,
    requests: JoinSet<Ended>,
    accepted: u64,
    /// Requests taken back or none at all, less those that were let run.
    cancelled: u32,
    /// When its last request ended. Pings keep a connection for QUIC, and not for us.
    quiet_since: Instant,
    draining: bool,
}

impl Life {
    async fn run(&mut self, door: &Arc<Door>, peer: Peer) -> &'static str {
        let asked_by = Instant::now() + door.limits.header_deadline;
        loop {
            let lingers = self.draining && self.requests.is_empty();
            tokio::select! {
                accepted = self.server.accept() => match accepted {
                    Ok(Some(resolver)) => {
                        self.accepted += 1;
                        let Some(client) = self.last.lock().take() else { continue };
                        self.requests.spawn(Arc::clone(door).request(resolver, client, peer, Arc::clone(&self.tie)));
                    }
                    Ok(None) => return "done",
                    Err(error) if error.is_h3_no_error() => return "done",
                    Err(error) => {
                        if matches!(self.connection.close_reason(), Some(quinn::ConnectionError::TimedOut)) {
                            return "idle";
                        }
                        tracing::debug!(peer = %peer.addr, %error, "a connection of HTTP/3 broke");
                        return "error";
                    }
                },
                Some(ended) = self.requests.join_next() => {
                    let ended = ended.unwrap_or_else(|error| {
                        tracing::error!(%error, "a request over HTTP/3 panicked");
                        Ended::Malformed
                    });
                    if self.requests.is_empty() {
                        self.quiet_since = Instant::now();
                    }
                    if self.count(door, ended) {
                        self.connection.close(code(h3::error::Code::H3_EXCESSIVE_LOAD), b"too many cancelled");
                        return "cancels";
                    }
                }
                () = door.shutdown.cancelled(), if !self.draining => {
                    self.draining = true;
                    // What is on its way is answered yet; a client that hears this asks elsewhere from now on.
                    if self.server.shutdown(STREAMS_MAX as usize).await.is_err() {
                        return "done";
                    }
                }
                () = sleep_until(asked_by), if self.accepted == 0 => return "silent",
                () = sleep_until(self.quiet_since + door.limits.idle_deadline),
                    if self.accepted > 0 && self.requests.is_empty() && !self.draining =>
                {
                    self.connection.close(code(h3::error::Code::H3_NO_ERROR), b"idle");
                    return "idle";
                }
                () = sleep((2 * self.connection.rtt()).clamp(*LINGER.start(), *LINGER.end())), if lingers => {
                    return "drained";
                }
            }
        }
    }

    /// Whether its client takes back more than any client has a reason to.
    fn count(&mut self, door: &Door, ended: Ended) -> bool {
        match ended {
            Ended::Answered => self.cancelled = self.cancelled.saturating_sub(1),
            // One that was taken back before its head was read looks so too.
            Ended::Malformed => {
                door.metrics.broke("head");
                self.cancelled += 1;
            }
            Ended::Broken(broken) => {
                door.metrics.broke(broken.name());
                tracing::debug!(error = %broken, "an answer over HTTP/3 did not arrive whole");
                // Stopped when it was ready costs as much as stopped before.
                self.cancelled += u32::from(matches!(broken, Broken::Stream(_) | Broken::Stalled));
            }
            Ended::Cancelled => {
                door.metrics.broke("cancelled");
                self.cancelled += 1;
            }
        }
        self.cancelled > CANCELLED_MAX
    }
}
