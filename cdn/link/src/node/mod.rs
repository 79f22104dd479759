//! The node's side: keeps one connection to a region, and drives a session over it.
//!
//! Owns: the settings, the handle, and the loop dial -> session -> wait. [`dial`] makes one connection, [`session`] lives on it.

pub(crate) mod dial;
mod session;

use std::{sync::Arc, time::Duration};

use quinn::Connection;
use souk_replication::{Heads, Node, NodeFacts};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinHandle,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    CALL_BYTES_MAX, Call, CallError, Ground, Identity, LinkFault, LinkState, LinkStatus, NodeStore, Reply,
    StartError, TlsFiles,
    call::{self, AskError},
    ground::Machine,
    planted::{Bug, planted},
    tls::{Credentials, Refusals},
    transport::NODE_BI_STREAMS_MAX,
};

use self::{
    dial::{Backoff, Dialer},
    session::End,
};

/// A connection that held so long shows that the region is well: the next back-off starts small again.
const STEADY: Duration = Duration::from_secs(5);
/// Calls at once: what the region lets a node have open, without the control stream.
const CALLS_MAX: usize = NODE_BI_STREAMS_MAX as usize - 1;

/// Where a region listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionAddress {
    /// `host:port`, resolved at each try.
    pub addr: String,
    /// The DNS name in its certificate.
    pub server_name: String,
}

/// Congestion control of the way up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Congestion {
    /// The default of quinn.
    #[default]
    Cubic,
    /// Better on lossy paths, and called experimental by quinn.
    Bbr,
}

/// Settings of [`start_node`].
#[derive(Debug, Clone)]
pub struct NodeLinkConfig {
    /// Regions to try, or processes of one region over one database. The first is asked first; later the one after that whose
    /// connection was lost.
    pub regions: Vec<RegionAddress>,
    /// Certificates.
    pub tls: TlsFiles,
    /// Number of this node; the certificate must say the same.
    pub node: Node,
    /// Name of the region that the node belongs to; both certificates must say the same.
    pub region: String,
    /// Point of presence, for people.
    pub pop: String,
    /// Software and version, for people.
    pub software: String,
    /// Schemas of operations, the one that is written first.
    pub schemas: Vec<u16>,
    /// Congestion control.
    pub congestion: Congestion,
}

/// A handle on a running node link. Cheap to clone; the link does not end when it is dropped.
#[derive(Clone)]
pub struct NodeLink {
    status: watch::Receiver<LinkStatus>,
    connection: watch::Receiver<Option<Connection>>,
    calls: Arc<Semaphore>,
    store: Arc<dyn NodeStore>,
}

impl std::fmt::Debug for NodeLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeLink").field("status", &*self.status.borrow()).finish_non_exhaustive()
    }
}

impl NodeLink {
    /// The link at this moment.
    #[must_use]
    pub fn status(&self) -> LinkStatus {
        let mut status = self.status.borrow().clone();
        let outbox = self.store.outbox_position();
        // Counted here rather than where it changes: right while the link is down, too.
        let acked = if outbox.epoch == status.epoch { status.acked } else { 0 };
        status.unacked = outbox.last.saturating_sub(acked.max(outbox.first.saturating_sub(1)));
        status
    }

    /// Tells changes of the status. `unacked` in it is as of the last change; [`NodeLink::status`] counts it anew.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<LinkStatus> {
        self.status.clone()
    }

    /// Asks the region. Fails at once while the link is down. Cancel safe in that dropping it stops the stream; the region
    /// may have acted all the same, as with every error but `Remote` and `TooLarge`.
    pub async fn call(&self, call: Call, deadline: Duration) -> Result<Reply, CallError> {
        self.call_for_body(call, deadline, deadline).await
    }

    /// The same, for a reply that takes long to travel: its head has to come within `deadline`, all of it within
    /// `body_deadline`, both from now.
    pub async fn call_for_body(
        &self,
        call: Call,
        deadline: Duration,
        body_deadline: Duration,
    ) -> Result<Reply, CallError> {
        if call.body.len() > CALL_BYTES_MAX {
            let is = call.body.len() as u64;
            return Err(CallError::TooLarge { what: "request", is, limit: CALL_BYTES_MAX });
        }
        let began = Instant::now();
        let named = |error| match error {
            AskError::Call(error) => error,
            AskError::Lost(reason) => self.unreachable(reason),
        };
        let asked = tokio::time::timeout(deadline, async {
            let permit =
                self.calls.acquire().await.map_err(|_| self.unreachable("the link has ended".to_owned()))?;
            let connection = self.connection.borrow().clone();
            let Some(connection) = connection else {
                let fault = self.status.borrow().fault.as_ref().map(ToString::to_string);
                return Err(self.unreachable(fault.unwrap_or_else(|| "not connected yet".to_owned())));
            };
            Ok((permit, call::ask(&connection, call, deadline).await.map_err(named)?))
        });
        let (_permit, coming) = asked.await.unwrap_or(Err(CallError::Deadline))?;
        let whole = tokio::time::timeout_at(began + body_deadline, coming.whole());
        whole.await.map_or(Err(CallError::Deadline), |whole| whole.map_err(named))
    }

    /// Ends the connection, if there is one. The next says hello again, and with it how far each log is and in which history.
    pub fn reconnect(&self, reason: &'static str) {
        if let Some(connection) = &*self.connection.borrow() {
            connection.close(0_u32.into(), reason.as_bytes());
        }
    }

    fn unreachable(&self, reason: String) -> CallError {
        let status = self.status.borrow();
        let down_for = if status.connected { Duration::ZERO } else { status.since.elapsed() };
        CallError::Unreachable { reason, down_for }
    }
}

/// Starts the node's side of the link. It runs until `shutdown`; await the handle to let it finish sending.
///
/// Must be called within a tokio runtime.
pub fn start_node(
    config: NodeLinkConfig,
    store: Arc<dyn NodeStore>,
    shutdown: CancellationToken,
) -> Result<(NodeLink, JoinHandle<()>), StartError> {
    start_node_on(Arc::new(Machine), config, store, shutdown)
}

/// The same on another ground than this machine.
pub fn start_node_on(
    ground: Arc<dyn Ground>,
    config: NodeLinkConfig,
    store: Arc<dyn NodeStore>,
    shutdown: CancellationToken,
) -> Result<(NodeLink, JoinHandle<()>), StartError> {
    if config.regions.is_empty() {
        return Err(StartError::Setting("no region to connect to".to_owned()));
    }
    let own = Identity::Edge { region: config.region.clone(), node: config.node };
    let region = Identity::Region { region: config.region.clone() };
    let refusals = Refusals::default();
    let tls = Credentials::load(&config.tls, &own)?.client(region, refusals.clone())?;
    let dialer = Arc::new(Dialer::new(ground, config.regions, tls, config.congestion, refusals));
    let (status, status_rx) = watch::channel(first_status());
    let (connection, connection_rx) = watch::channel(None);
    let calls = Arc::new(Semaphore::new(CALLS_MAX));
    let link =
        NodeLink { status: status_rx, connection: connection_rx, calls: calls.clone(), store: store.clone() };
    let facts = NodeFacts {
        node: config.node,
        pop: config.pop,
        software: config.software,
        schemas: config.schemas,
        ..NodeFacts::default()
    };
    let shared = Shared { facts, store, dialer, status, connection, shutdown };
    let task = tokio::spawn(async move {
        shared.run().await;
        calls.close();
    });
    Ok((link, task))
}

fn first_status() -> LinkStatus {
    LinkStatus {
        state: LinkState::Connecting,
        connected: false,
        region: None,
        address: None,
        since: Instant::now(),
        rtt: None,
        epoch: None,
        acked: 0,
        unacked: 0,
        term: 0,
        region_heads: Heads::default(),
        connects: 0,
        redials: 0,
        fault: None,
    }
}

/// What the loop and its sessions share.
struct Shared {
    facts: NodeFacts,
    store: Arc<dyn NodeStore>,
    dialer: Arc<Dialer>,
    status: watch::Sender<LinkStatus>,
    connection: watch::Sender<Option<Connection>>,
    shutdown: CancellationToken,
}

impl Shared {
    /// Connects, lives on the connection, waits, and again, until shutdown.
    async fn run(self) {
        let mut backoff = Backoff::default();
        let mut next: Option<(Connection, String)> = None;
        let mut diverged = false;
        loop {
            let dialled = match next.take() {
                Some(dialled) => Ok(dialled),
                None => {
                    self.set_state(LinkState::Connecting, None);
                    tokio::select! {
                        biased;
                        dialled = self.dialer.reach() => dialled,
                        () = self.shutdown.cancelled() => break,
                    }
                }
            };
            let fault = match dialled {
                Ok((connection, address)) => {
                    let began = Instant::now();
                    tracing::info!(%address, "connected to region, saying hello");
                    let end = session::run(&self, connection, address, diverged).await;
                    self.connection.send_replace(None);
                    // Said once: a connection that breaks before the new epoch finds it out again.
                    diverged =
                        matches!(end, End::Fault(LinkFault::Diverged)) && !planted(Bug::DivergedForgotten);
                    if began.elapsed() >= STEADY {
                        backoff = Backoff::default();
                    }
                    match end {
                        End::Shutdown => break,
                        End::Switch(connection, address) => {
                            next = Some((connection, address));
                            continue;
                        }
                        End::Fault(fault) => {
                            self.dialer.pass_on();
                            fault
                        }
                    }
                }
                Err(fault) => fault,
            };
            let pause = backoff.next_pause(&*self.dialer.ground, &fault);
            tracing::warn!(fault = fault.name(), detail = %fault, pause_ms = pause.as_millis() as u64, "link is down");
            self.set_state(LinkState::Down, Some(fault));
            tokio::select! {
                biased;
                () = tokio::time::sleep(pause) => {}
                () = self.shutdown.cancelled() => break,
            }
        }
        self.connection.send_replace(None);
        self.set_state(LinkState::Stopped, None);
        self.dialer.close().await;
    }

    fn set_state(&self, state: LinkState, fault: Option<LinkFault>) {
        self.status.send_modify(|status| {
            if status.state != state && !(status.state == LinkState::Down && state == LinkState::Connecting) {
                status.since = Instant::now();
            }
            status.state = state;
            status.connected = state == LinkState::Up;
            if !status.connected {
                status.rtt = None;
            }
            if fault.is_some() {
                status.fault = fault;
            }
        });
    }
}
