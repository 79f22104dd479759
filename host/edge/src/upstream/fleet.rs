//! The configured servers of an upstream with the clock, the chance and the connections that the pure parts are given.
//!
//! A *name* is what is configured: a URL with a weight. A *server* is one address of a name, with connections of its own.
//! Owns the roster and what is counted per name; [`super::resolve`] tells it the addresses, [`super::check`] the results
//! of active checks, [`super::client`] asks it for servers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::uri::{Authority, Scheme};
use parking_lot::Mutex;
use serde_json::{Value, json};
use souk_config::{UpstreamProtocol, UpstreamServer};
use tokio::sync::{Notify, watch};

use super::connect::{Connector, Trust};
use super::health::{Cause, State, Thresholds, Verdict};
use super::pool::{Opened, Pool};
use super::roster::{Id, Pick, Roster, Wish};
use super::telemetry::{ProxyMetrics, Seen};

/// One configured server.
pub(super) struct Name {
    pub(super) authority: Authority,
    pub(super) scheme: Scheme,
    /// Bare, without the brackets of an IPv6 address.
    pub(super) host: String,
    pub(super) port: u16,
    weight: f64,
    protocol: UpstreamProtocol,
    tls: Option<Trust>,
    opened: Opened,
    /// Asks for its addresses to be looked up again.
    pub(super) doubted: Notify,
}

impl Name {
    pub(super) fn new(
        config: &UpstreamServer,
        authority: Authority,
        host: String,
        tls: Option<Trust>,
        metrics: &ProxyMetrics,
    ) -> Self {
        let opened = metrics.servers.opened(authority.as_str());
        Self {
            scheme: if tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP },
            host,
            port: config.port(),
            weight: f64::from(config.weight),
            protocol: config.protocol,
            tls,
            opened,
            authority,
            doubted: Notify::new(),
        }
    }

    /// What it is called in metrics and logs.
    pub(super) fn label(&self) -> &str {
        self.authority.as_str()
    }
}

/// One address of a configured server.
pub(super) struct Server {
    name: usize,
    pub(super) address: SocketAddr,
    pub(super) pool: Arc<Pool>,
}

impl PartialEq for Server {
    fn eq(&self, other: &Self) -> bool {
        (self.name, self.address) == (other.name, other.address)
    }
}

/// All of an upstream's servers.
pub(super) struct Fleet {
    pub(super) names: Vec<Name>,
    roster: Mutex<Roster<Arc<Server>>>,
    began: Instant,
    connect_max: Duration,
    metrics: ProxyMetrics,
    /// Names that have not been looked up once.
    unsettled: watch::Sender<usize>,
}

impl Fleet {
    pub(super) fn new(names: Vec<Name>, connect_max: Duration, metrics: ProxyMetrics) -> Arc<Self> {
        let unsettled = watch::Sender::new(names.len());
        let roster = Mutex::new(Roster::new());
        Arc::new(Self { names, roster, began: Instant::now(), connect_max, metrics, unsettled })
    }

    /// The clock of everything that is judged here.
    pub(super) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// The addresses of one name, from now on.
    pub(super) fn set(&self, name: usize, addresses: &[SocketAddr]) {
        let named = &self.names[name];
        let server = |address: &SocketAddr| {
            let connector = Connector::new(*address, named.tls.clone());
            let pool = Pool::new(connector, named.protocol, self.connect_max, named.opened.clone());
            Arc::new(Server { name, address: *address, pool })
        };
        let servers = addresses.iter().map(server).collect();
        let start = *self.unsettled.borrow() > 0;
        self.roster.lock().set(self.now(), name, named.weight, servers, start);
    }

    /// The name has been looked up once, with whatever result.
    pub(super) fn settle(&self) {
        self.unsettled.send_modify(|left| *left = left.saturating_sub(1));
    }

    /// Chooses a server. Right after the start it waits for the first addresses.
    pub(super) async fn pick(self: &Arc<Self>, wish: Wish<'_>) -> Option<Visit> {
        if let Some(visit) = self.pick_now(wish) {
            return Some(visit);
        }
        let mut unsettled = self.unsettled.subscribe();
        while *unsettled.borrow_and_update() > 0 {
            if let Some(visit) = self.pick_now(wish) {
                return Some(visit);
            }
            if tokio::time::timeout(self.connect_max, unsettled.changed()).await.is_err() {
                return None;
            }
        }
        self.pick_now(wish)
    }

    pub(super) fn pick_now(self: &Arc<Self>, wish: Wish<'_>) -> Option<Visit> {
        let pick = self.roster.lock().pick(self.now(), rand::random(), wish)?;
        let (began, judged) = (self.now(), AtomicBool::new(false));
        Some(Visit { fleet: Arc::clone(self), pick, began, judged })
    }

    pub(super) fn has_other(&self, tried: &[Id], well: bool) -> bool {
        self.roster.lock().has_other(self.now(), tried, well)
    }

    pub(super) fn servers(&self) -> Vec<Arc<Server>> {
        self.roster.lock().seen(self.now()).into_iter().map(|seen| seen.held).collect()
    }

    pub(super) fn name_of(&self, server: &Server) -> &Name {
        &self.names[server.name]
    }

    pub(super) fn checked(&self, server: &Arc<Server>, passed: bool, thresholds: Thresholds) {
        let cause = self.roster.lock().checked(server, self.now(), passed, thresholds);
        let label = self.name_of(server).label();
        self.metrics.servers.checked(label, passed);
        self.told(cause, label, server.address);
    }

    pub(super) fn resolved(&self, name: usize, worked: bool) {
        self.metrics.servers.resolved(self.names[name].label(), worked);
    }

    pub(super) fn prune(&self) {
        for server in self.servers() {
            server.pool.prune();
        }
    }

    /// Adds what its servers are doing.
    pub(super) fn see(&self, servers: &mut Seen) {
        let seen = self.roster.lock().seen(self.now());
        for (index, name) in self.names.iter().enumerate() {
            let of_it = || seen.iter().filter(|seen| seen.name == index);
            servers.in_flight(name.label(), of_it().map(|seen| seen.in_flight).sum());
            for state in State::ALL {
                let count = of_it().filter(|seen| seen.state == state).count();
                servers.state(name.label(), state.name(), count);
            }
        }
    }

    /// What `/upstreams` shows.
    pub(super) fn report(&self) -> Value {
        let seen = self.roster.lock().seen(self.now());
        let servers = self.names.iter().enumerate().map(|(index, name)| {
            let addresses = seen.iter().filter(|seen| seen.name == index).map(|seen| {
                let (idle, h2) = seen.held.pool.counts();
                json!({
                    "address": seen.held.address,
                    "state": seen.state.name(),
                    "share": seen.share,
                    "in_flight": seen.in_flight,
                    "latency_ms": seen.latency.map(|seconds| seconds * 1e3),
                    "idle_connections": idle,
                    "http2_connections": h2,
                })
            });
            json!({
                "server": name.label(),
                "weight": name.weight,
                "addresses": addresses.collect::<Vec<_>>(),
            })
        });
        json!(servers.collect::<Vec<_>>())
    }

    fn told(&self, cause: Option<Cause>, label: &str, address: SocketAddr) {
        let Some(cause) = cause else { return };
        self.metrics.servers.ejected(label, cause.name());
        tracing::warn!(server = label, %address, reason = cause.name(), "the server gets no requests for now");
    }
}

/// How one request at one server went: the label of the metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Answered,
    /// With a status that speaks of the server.
    ServersFault,
    Unreachable,
    Tls,
    TimedOut,
    NotProcessed,
    Broke,
    /// On a connection that had been idle, which says nothing of the server.
    IdleBroke,
    BodyBroke,
    /// What the client was to send broke off, or did not come: nothing is learnt of the server.
    ClientsFault,
}

impl Outcome {
    const fn name(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::ServersFault => "servers_fault",
            Self::Unreachable => "unreachable",
            Self::Tls => "tls",
            Self::TimedOut => "timed_out",
            Self::NotProcessed => "not_processed",
            Self::Broke => "broke",
            Self::IdleBroke => "idle_broke",
            Self::BodyBroke => "body_broke",
            Self::ClientsFault => "clients_fault",
        }
    }

    const fn verdict(self) -> Option<Verdict> {
        match self {
            Self::Answered => Some(Verdict::Good),
            Self::IdleBroke | Self::ClientsFault => None,
            _ => Some(Verdict::Bad),
        }
    }
}

/// One request at one server, until nothing of it is left there.
pub(super) struct Visit {
    fleet: Arc<Fleet>,
    pick: Pick<Arc<Server>>,
    began: Duration,
    /// Whether it is known how the server did.
    judged: AtomicBool,
}

impl Visit {
    pub(super) fn id(&self) -> Id {
        self.pick.id
    }

    pub(super) fn server(&self) -> &Server {
        &self.pick.held
    }

    pub(super) fn name(&self) -> &Name {
        &self.fleet.names[self.pick.name]
    }

    /// The server has answered or failed.
    pub(super) fn answered(&self, outcome: Outcome) {
        self.judged.store(true, Ordering::Relaxed);
        let label = self.name().label();
        self.fleet.metrics.servers.answered(label, outcome.name());
        if let Some(verdict) = outcome.verdict() {
            let now = self.fleet.now();
            let took = now.saturating_sub(self.began);
            let cause = self.fleet.roster.lock().answered(self.pick.id, now, took, verdict);
            self.fleet.told(cause, label, self.server().address);
        }
        if outcome == Outcome::Unreachable {
            // The name may lead elsewhere by now.
            self.name().doubted.notify_one();
        }
    }

    pub(super) fn retry_after(&self, pause: Duration) {
        self.fleet.roster.lock().retry_after(self.pick.id, self.fleet.now(), pause);
    }

    /// The response broke off after its head.
    pub(super) fn body_broke(&self) {
        self.answered(Outcome::BodyBroke);
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let now = self.fleet.now();
        let mut roster = self.fleet.roster.lock();
        if !*self.judged.get_mut() {
            roster.given_up(self.pick.id, now, now.saturating_sub(self.began));
        }
        roster.ended(self.pick.id, self.pick.trial);
    }
}
