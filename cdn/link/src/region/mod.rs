//! The region's side: accepts nodes, and drives a session for each.
//!
//! Owns: the settings, the handle, admission and identity. [`nodes`] knows who is connected, [`session`] lives on a connection.

mod nodes;
mod session;

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use quinn::{Connection, ConnectionError, Endpoint, Incoming, TransportErrorCode};
use rustls_pki_types::CertificateDer;
use souk_replication::{
    Admission, Admit, EpochNo, Heads, Node, RegionFacts, RejectReason, Seq, Term, limits, wire::busy_message,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Ground, Identity, PeerConnection, RegionStore, StartError, TlsFiles, clock::Clock, ground::Machine,
    tls::Credentials, transport::region_endpoint,
};

use self::nodes::Nodes;

/// Patience of a handshake, on this side: a node gives up about then, too.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// Handshakes in progress. They are cheap for a stranger to begin, so they have a limit apart from that of connections: a
/// crowd of strangers delays the nodes that shake hands, and shuts out none that is connected. At 100 ms each, a fleet of
/// 500 is back in a second.
const HANDSHAKES_MAX: usize = 64;
/// How long sessions may take to come to an end at shutdown.
const DRAIN_MAX: Duration = Duration::from_secs(10);
/// How long the last packets may take to leave.
const CLOSE_MAX: Duration = Duration::from_secs(1);

/// Settings of [`start_region`].
#[derive(Debug, Clone)]
pub struct RegionLinkConfig {
    /// UDP address to listen on; port 0 takes any.
    pub listen: SocketAddr,
    /// Certificates.
    pub tls: TlsFiles,
    /// Name of this region; the certificates of both sides must say the same.
    pub region: String,
    /// Grows when the region was restored or failed over.
    pub region_epoch: u32,
    /// Which home of the region this is: one more than the home before it. A node that has met a greater one is rejected, and
    /// [`RegionStore::later_home_named`] is told.
    pub term: Term,
    /// Takes the connections of the other region of a pair; none: they are rejected.
    pub peers: Option<mpsc::Sender<PeerConnection>>,
    /// Why nodes are not served here, in words for people; none: they are. Such a region takes its peer only.
    pub closed: Option<String>,
    /// Software and version, for people.
    pub software: String,
    /// Schemas of operations that the store reads; a node that writes none of them is rejected by name. None: whatever comes.
    pub schemas: Vec<u16>,
    /// Key of stateless resets: 32 to 64 secret bytes that stay the same over restarts, so that a restarted region ends the
    /// dead connections of its former life at once.
    pub reset_key: Vec<u8>,
    /// Connections of nodes at once. Twice the number of nodes, so that all may take over their old connections at once.
    pub connections_max: usize,
    /// Handshakes in progress, with peers that may be strangers.
    pub handshakes_max: usize,
    /// Nodes greeted in a second; the others wait a moment, or are told when to come back. A fleet that has lost its region
    /// comes back all at once.
    pub greetings_per_second: u32,
    /// Snapshots read at once, over all nodes.
    pub snapshots_max: usize,
    /// Calls answered at once, over all nodes.
    pub calls_max: usize,
}

impl RegionLinkConfig {
    /// Settings with the default limits.
    #[must_use]
    pub fn new(listen: SocketAddr, region: impl Into<String>, tls: TlsFiles, reset_key: Vec<u8>) -> Self {
        Self {
            listen,
            tls,
            region: region.into(),
            region_epoch: 1,
            term: souk_replication::FIRST_TERM,
            peers: None,
            closed: None,
            software: String::new(),
            schemas: Vec::new(),
            reset_key,
            // Twice the largest fleet of one region, for the time of takeovers.
            connections_max: 1_024,
            handshakes_max: HANDSHAKES_MAX,
            greetings_per_second: limits::GREETINGS_PER_SECOND,
            // As many as a disk reads side by side; the others wait, and their nodes serve what they have.
            snapshots_max: 8,
            calls_max: 256,
        }
    }
}

/// A node that is connected at this moment.
#[derive(Debug, Clone, PartialEq)]
pub struct ConnectedNode {
    /// Its number.
    pub node: Node,
    /// Its point of presence, as it says.
    pub pop: String,
    /// Its software, as it says.
    pub software: String,
    /// Where it comes from.
    pub address: SocketAddr,
    /// Its epoch.
    pub epoch: EpochNo,
    /// Operations committed in it.
    pub hwm: Seq,
    /// How far it has applied each log.
    pub cursors: Heads,
    /// For how long it has been connected.
    pub up_for: Duration,
    /// Round-trip time.
    pub rtt: Duration,
}

/// A handle on a running region link. Cheap to clone; the link does not end when it is dropped.
#[derive(Debug, Clone)]
pub struct RegionLink {
    local_addr: SocketAddr,
    nodes: Arc<Nodes>,
}

impl RegionLink {
    /// The address that it listens on.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The nodes that are connected and welcomed, by number.
    #[must_use]
    pub fn nodes(&self) -> Vec<ConnectedNode> {
        self.nodes.list()
    }
}

/// Starts the region's side of the link. It runs until `shutdown`; await the handle to let commits come to an end.
///
/// Must be called within a tokio runtime.
pub fn start_region(
    config: RegionLinkConfig,
    store: Arc<dyn RegionStore>,
    shutdown: CancellationToken,
) -> Result<(RegionLink, JoinHandle<()>), StartError> {
    start_region_on(Arc::new(Machine), config, store, shutdown)
}

/// The same on another ground than this machine.
pub fn start_region_on(
    ground: Arc<dyn Ground>,
    config: RegionLinkConfig,
    store: Arc<dyn RegionStore>,
    shutdown: CancellationToken,
) -> Result<(RegionLink, JoinHandle<()>), StartError> {
    let own = Identity::Region { region: config.region.clone() };
    let tls = Credentials::load(&config.tls, &own)?.server()?;
    let endpoint = region_endpoint(&*ground, config.listen, tls, &config.reset_key)?;
    let local_addr =
        endpoint.local_addr().map_err(|source| StartError::Bind { addr: config.listen, source })?;
    let nodes = Arc::new(Nodes::default());
    let link = RegionLink { local_addr, nodes: nodes.clone() };
    let shared = Arc::new(Shared {
        facts: RegionFacts {
            region: config.region,
            region_epoch: config.region_epoch,
            software: config.software,
            schemas: config.schemas,
            term: config.term,
        },
        peers: config.peers,
        closed: config.closed,
        store,
        nodes,
        snapshots: Arc::new(Semaphore::new(config.snapshots_max)),
        calls: Arc::new(Semaphore::new(config.calls_max)),
        connections: Arc::new(Semaphore::new(config.connections_max)),
        admission: Mutex::new(Admission::new(config.greetings_per_second)),
        clock: Clock::start(&*ground),
        ground,
        shutdown,
    });
    let task = tokio::spawn(accept(endpoint, shared, config.handshakes_max));
    Ok((link, task))
}

/// What all sessions of a region share.
struct Shared {
    facts: RegionFacts,
    peers: Option<mpsc::Sender<PeerConnection>>,
    closed: Option<String>,
    store: Arc<dyn RegionStore>,
    nodes: Arc<Nodes>,
    snapshots: Arc<Semaphore>,
    calls: Arc<Semaphore>,
    /// One permit per peer that has shown to be a node.
    connections: Arc<Semaphore>,
    admission: Mutex<Admission>,
    ground: Arc<dyn Ground>,
    /// What `admission` counts in.
    clock: Clock,
    shutdown: CancellationToken,
}

/// Admits handshakes; never waits for a peer itself.
async fn accept(endpoint: Endpoint, shared: Arc<Shared>, handshakes_max: usize) {
    let mut sessions = JoinSet::new();
    let handshakes = Arc::new(Semaphore::new(handshakes_max));
    loop {
        tokio::select! {
            // In this order, so that a run can be repeated: who knocks can knock without end.
            biased;
            () = shared.shutdown.cancelled() => break,
            Some(joined) = sessions.join_next() => {
                if let Err(error) = joined && error.is_panic() {
                    tracing::error!(%error, "a session panicked");
                }
            }
            incoming = endpoint.accept() => match incoming {
                Some(incoming) => {
                    let crowded = handshakes.available_permits() <= handshakes_max / 2;
                    if crowded && incoming.may_retry() && !incoming.remote_address_validated() {
                        // Half full: a peer must show that its address is its own before it gets a handshake.
                        let _ = incoming.retry();
                    } else if let Ok(permit) = handshakes.clone().try_acquire_owned() {
                        sessions.spawn(serve(incoming, permit, shared.clone()));
                    } else {
                        tracing::warn!(peer = %incoming.remote_address(), "too many handshakes, connection refused");
                        incoming.refuse();
                    }
                }
                None => break,
            },
        }
    }
    // Sessions end by themselves at shutdown, each after its last commit.
    let drained = timeout(DRAIN_MAX, async { while sessions.join_next().await.is_some() {} });
    if drained.await.is_err() {
        tracing::error!("some sessions do not come to an end");
    }
    sessions.shutdown().await;
    endpoint.close(u32::from(RejectReason::Shutdown.code()).into(), b"the region is shutting down");
    // Peers that do not confirm the close time out by themselves.
    if timeout(CLOSE_MAX, endpoint.wait_idle()).await.is_err() {
        let_go(&endpoint, &*shared.ground);
    }
}

/// Gives the address back: a connection to a peer that was frozen drains for three times what it takes to be that slow, and whoever
/// listens here next would have to wait for it. The socket before the present one is kept for stragglers, so it changes twice.
fn let_go(endpoint: &Endpoint, ground: &dyn Ground) {
    for _ in 0..2 {
        if let Some(socket) = ground.dead_end()
            && let Err(error) = endpoint.rebind_abstract(socket)
        {
            tracing::debug!(%error, "the link's address is not given back at once");
        }
    }
}

/// Handshake, identity, admission, session.
async fn serve(incoming: Incoming, handshake: OwnedSemaphorePermit, shared: Arc<Shared>) {
    let peer = incoming.remote_address();
    let shaken = tokio::select! {
        biased;
        // Whoever has not even said who it is does not hold the end up.
        () = shared.shutdown.cancelled() => return,
        shaken = timeout(HANDSHAKE_MAX, incoming) => shaken,
    };
    let connection = match shaken {
        Ok(Ok(connection)) => connection,
        Ok(Err(ConnectionError::ConnectionClosed(close)))
            if close.error_code == TransportErrorCode::APPLICATION_ERROR =>
        {
            // It tries a silent region again before it gives an attempt up, and another one has come through.
            tracing::debug!(%peer, "the node has ended one of its attempts");
            return;
        }
        Ok(Err(error)) => {
            tracing::warn!(%peer, %error, "handshake failed");
            return;
        }
        Err(_) => {
            tracing::warn!(%peer, "handshake timed out");
            return;
        }
    };
    drop(handshake);
    let node = match peer_of(&connection, &shared.facts.region) {
        Ok(Peer::Node(node)) => node,
        Ok(Peer::Region) => return take_peer(connection, &shared),
        Err(detail) => {
            tracing::warn!(%peer, detail, "wrong identity");
            return reject(&connection, RejectReason::WrongNode, &detail);
        }
    };
    if let Some(why) = &shared.closed {
        tracing::debug!(%peer, node, why, "a node is sent away");
        return reject(&connection, RejectReason::Standby, why);
    }
    let Ok(_admitted) = shared.connections.try_acquire() else {
        tracing::warn!(%peer, node, "full, node rejected");
        return reject(&connection, RejectReason::Full, "the region takes no more connections");
    };
    let admit = shared.admission.lock().unwrap_or_else(PoisonError::into_inner).admit(
        node,
        shared.clock.now_ms(),
        shared.ground.chance(),
    );
    match admit {
        Admit::After { ms: 0 } => {}
        Admit::After { ms } => tokio::time::sleep(Duration::from_millis(ms)).await,
        Admit::ComeBack { ms } => {
            tracing::info!(%peer, node, ms, "too many nodes come at once, or this one too often: told to come back");
            return reject(&connection, RejectReason::Busy, &busy_message(ms));
        }
    }
    session::run(node, connection, &shared).await;
}

/// Hands the other region of the pair over to whoever speaks with it.
fn take_peer(connection: Connection, shared: &Shared) {
    let Some(peers) = &shared.peers else {
        return reject(&connection, RejectReason::WrongNode, "this region is not one of a pair ([pair])");
    };
    if let Err(error) = peers.try_send(PeerConnection::new(connection)) {
        let (mpsc::error::TrySendError::Full(peer) | mpsc::error::TrySendError::Closed(peer)) = error;
        peer.close("the region is busy with its peer already");
    }
}

/// Who is at the other end.
enum Peer {
    Node(Node),
    /// A region of our own name.
    Region,
}

/// Whom a certificate names: the only word on who the peer is.
fn peer_of(connection: &Connection, own_region: &str) -> Result<Peer, String> {
    let certificates = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
        .ok_or("no certificate")?;
    let certificate = certificates.first().ok_or("no certificate")?;
    match Identity::from_certificate(certificate).map_err(|e| e.to_string())? {
        Identity::Edge { region, node } if region == own_region => Ok(Peer::Node(node)),
        Identity::Region { region } if region == own_region => Ok(Peer::Region),
        other => Err(format!("the certificate says {other}, expected a node of {own_region}")),
    }
}

fn reject(connection: &Connection, reason: RejectReason, detail: &str) {
    connection.close(u32::from(reason.code()).into(), detail.as_bytes());
}

/// The address to show: an IPv4 peer of an IPv6 socket is an IPv4 peer.
fn plain(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V6(ip) => {
            ip.to_ipv4_mapped().map_or(address, |ip| SocketAddr::new(ip.into(), address.port()))
        }
        IpAddr::V4(_) => address,
    }
}
