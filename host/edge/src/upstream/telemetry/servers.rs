//! What is counted of each configured server. The label is what the configuration calls it, never an address that was
//! looked up: a name server must not be able to make new series.

use std::collections::HashMap;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::upstream::pool::Opened;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfServer {
    pub server: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ServerOutcome {
    pub server: String,
    pub outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ServerState {
    pub server: String,
    pub state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ServerReason {
    pub server: String,
    pub reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ServerProtocol {
    pub server: String,
    pub protocol: &'static str,
}

/// What servers are doing, of all upstreams together: one server may be behind several of them.
#[derive(Default)]
pub(in crate::upstream) struct Seen {
    in_flight: HashMap<OfServer, usize>,
    states: HashMap<ServerState, usize>,
}

impl Seen {
    pub(in crate::upstream) fn in_flight(&mut self, server: &str, count: usize) {
        *self.in_flight.entry(OfServer { server: server.to_owned() }).or_default() += count;
    }

    pub(in crate::upstream) fn state(&mut self, server: &str, state: &'static str, count: usize) {
        *self.states.entry(ServerState { server: server.to_owned(), state }).or_default() += count;
    }
}

/// Counters and gauges of the servers of one upstream.
#[derive(Clone, Debug, Default)]
pub struct ServerMetrics {
    pub requests: Family<ServerOutcome, Counter>,
    pub in_flight: Family<OfServer, Gauge>,
    /// Addresses of the server in each state.
    pub addresses: Family<ServerState, Gauge>,
    pub ejections: Family<ServerReason, Counter>,
    pub connections: Family<ServerProtocol, Counter>,
    pub checks: Family<ServerOutcome, Counter>,
    pub lookups: Family<ServerOutcome, Counter>,
}

impl ServerMetrics {
    pub(super) fn register(&self, proxy: &mut Registry) {
        proxy.register("server_requests", "Tries at a server, by how they went", self.requests.clone());
        proxy.register(
            "server_in_flight",
            "Requests that a server is answering, as of the last reading",
            self.in_flight.clone(),
        );
        proxy.register("server_addresses", "Addresses of a server, by their state", self.addresses.clone());
        proxy.register(
            "server_ejections",
            "Times that an address of a server was put out, by reason",
            self.ejections.clone(),
        );
        proxy.register(
            "server_connections",
            "Connections opened to a server, by protocol",
            self.connections.clone(),
        );
        proxy.register("server_checks", "Active health checks of a server", self.checks.clone());
        proxy.register("server_lookups", "Times that a server's name was looked up", self.lookups.clone());
    }

    pub(in crate::upstream) fn answered(&self, server: &str, outcome: &'static str) {
        self.requests.get_or_create(&ServerOutcome { server: server.to_owned(), outcome }).inc();
    }

    /// Brings the gauges up to date.
    pub(in crate::upstream) fn show(&self, seen: &Seen) {
        let count = |count: &usize| i64::try_from(*count).unwrap_or(i64::MAX);
        for (server, in_flight) in &seen.in_flight {
            self.in_flight.get_or_create(server).set(count(in_flight));
        }
        for (state, addresses) in &seen.states {
            self.addresses.get_or_create(state).set(count(addresses));
        }
    }

    pub(in crate::upstream) fn ejected(&self, server: &str, reason: &'static str) {
        self.ejections.get_or_create(&ServerReason { server: server.to_owned(), reason }).inc();
    }

    pub(in crate::upstream) fn checked(&self, server: &str, passed: bool) {
        let outcome = if passed { "passed" } else { "failed" };
        self.checks.get_or_create(&ServerOutcome { server: server.to_owned(), outcome }).inc();
    }

    pub(in crate::upstream) fn resolved(&self, server: &str, worked: bool) {
        let outcome = if worked { "resolved" } else { "failed" };
        self.lookups.get_or_create(&ServerOutcome { server: server.to_owned(), outcome }).inc();
    }

    /// The counters that a pool of this server's counts with.
    pub(in crate::upstream) fn opened(&self, server: &str) -> Opened {
        let counter = |protocol| {
            let label = ServerProtocol { server: server.to_owned(), protocol };
            self.connections.get_or_create(&label).clone()
        };
        Opened { http1: counter("http/1.1"), http2: counter("h2") }
    }
}
