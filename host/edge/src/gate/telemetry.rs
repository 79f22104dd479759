//! What the gate counts. The only place where its metric names stand.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Name {
    reason: &'static str,
}

/// Counters of one gate. Labels are names of closed lists: no client makes new ones.
#[derive(Debug, Default)]
pub struct GateMetrics {
    refused: Family<Name, Counter>,
    ended: Family<Name, Counter>,
    turned_away: Family<Name, Counter>,
    pub(super) connections: Gauge,
    pub(super) in_flight: Gauge,
    pub(super) handshakes: Gauge,
}

impl GateMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let gate = registry.sub_registry_with_prefix("souk_gate");
        gate.register(
            "malformed",
            "Requests of HTTP/1.1 refused by their bytes, by fault",
            self.refused.clone(),
        );
        gate.register("closed", "Connections that the node closed, by reason", self.ended.clone());
        gate.register(
            "turned_away",
            "Connections and requests not let in, by reason",
            self.turned_away.clone(),
        );
        gate.register("connections", "Open connections of clients", self.connections.clone());
        gate.register("handshakes", "Handshakes of TLS over TCP at work", self.handshakes.clone());
        gate.register("in_flight", "Requests whose work has not ended", self.in_flight.clone());
    }

    pub(super) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&Name { reason }).inc();
    }

    pub(super) fn ended(&self, reason: &'static str) {
        self.ended.get_or_create(&Name { reason }).inc();
    }

    pub(super) fn turned_away(&self, reason: &'static str) {
        self.turned_away.get_or_create(&Name { reason }).inc();
    }
}
