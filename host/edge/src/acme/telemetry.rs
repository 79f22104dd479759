//! What is counted of orders, and how long certificates are good. The only place where these metric names stand.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::http::now_ms;
use crate::tls::Validity;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Domain {
    domain: String,
}

/// Clones count together.
#[derive(Debug, Clone, Default)]
pub(super) struct Metrics {
    orders: Family<Outcome, Counter>,
    expiries: Expiries,
}

/// When the certificate of each configured name ends. Seconds from now are worked out when somebody asks.
#[derive(Debug, Clone, Default)]
struct Expiries(Arc<Mutex<BTreeMap<String, u64>>>);

impl Metrics {
    pub(super) fn register(registry: &mut Registry, domains: &[String]) -> Self {
        let metrics = Self::default();
        *metrics.expiries.0.lock() = domains.iter().map(|domain| (domain.clone(), 0)).collect();
        registry.register(
            "souk_acme_orders",
            "Certificates that were asked for, by outcome",
            metrics.orders.clone(),
        );
        registry.register_collector(Box::new(metrics.expiries.clone()));
        metrics
    }

    pub(super) fn ordered(&self, outcome: &'static str) {
        self.orders.get_or_create(&Outcome { outcome }).inc();
    }

    pub(super) fn has(&self, domain: &str, validity: Option<Validity>) {
        if let Some(until_ms) = self.expiries.0.lock().get_mut(domain) {
            *until_ms = validity.map_or(0, |validity| validity.until_ms);
        }
    }
}

impl Collector for Expiries {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut family = encoder.encode_descriptor(
            "souk_acme_seconds_until_expiry",
            "How long the certificate of a name is good; 0 if it has none, or one that has expired",
            None,
            MetricType::Gauge,
        )?;
        let now_ms = now_ms();
        for (domain, until_ms) in self.0.lock().iter() {
            let left_s = i64::try_from(until_ms.saturating_sub(now_ms) / 1_000).unwrap_or(i64::MAX);
            let domain = Domain { domain: domain.clone() };
            ConstGauge::new(left_s).encode(family.encode_family(&domain)?)?;
        }
        Ok(())
    }
}
