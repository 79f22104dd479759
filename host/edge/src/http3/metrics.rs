//! What HTTP/3 counts. The only place where its metric names stand.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// Counters of all HTTP/3 listeners of a process. Clones count into the same ones.
#[derive(Debug, Clone, Default)]
pub struct Http3Metrics {
    pub(super) connections: Counter,
    pub(super) open: Gauge,
    pub(super) requests: Counter,
    pub(super) retries: Counter,
    ended: Family<Reason, Counter>,
    broken: Family<Reason, Counter>,
}

impl Http3Metrics {
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let http3 = registry.sub_registry_with_prefix("souk_http3");
        http3.register("connections", "QUIC handshakes that succeeded", metrics.connections.clone());
        http3.register("connections_open", "QUIC connections now", metrics.open.clone());
        http3.register("requests", "Requests whose head was read", metrics.requests.clone());
        http3.register(
            "retries",
            "First packets that were answered by asking whether their address is their own",
            metrics.retries.clone(),
        );
        http3.register(
            "connections_ended",
            "Connections and handshakes that ended, by reason",
            metrics.ended.clone(),
        );
        http3.register(
            "requests_broken",
            "Requests that did not get a whole answer, by reason",
            metrics.broken.clone(),
        );
        metrics
    }

    pub(super) fn ended(&self, reason: &'static str) {
        self.ended.get_or_create(&Reason { reason }).inc();
    }

    pub(super) fn broke(&self, reason: &'static str) {
        self.broken.get_or_create(&Reason { reason }).inc();
    }
}
