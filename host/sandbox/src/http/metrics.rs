//! What the operator sees of HTTP plugins: requests, faults by name, the time to the head, and what they fetch.

use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use souk_commerce::id::{PluginName, SiteId};

/// From a small Rust guest's 20 us to the wall limit of a request.
const SECONDS: [f64; 12] =
    [20e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 10e-3, 50e-3, 250e-3, 1.0, 10.0];

/// Register once per process. Cheap to clone.
#[derive(Clone)]
pub struct HttpMetrics {
    requests: Family<ServiceLabels, Counter>,
    faults: Family<FaultLabels, Counter>,
    seconds: Histogram,
    instances: Family<InstanceLabels, Counter>,
    running: Gauge,
    outbound: Family<OutcomeLabels, Counter>,
}

impl Default for HttpMetrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            faults: Family::default(),
            seconds: Histogram::new(SECONDS),
            instances: Family::default(),
            running: Gauge::default(),
            outbound: Family::default(),
        }
    }
}

impl HttpMetrics {
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("souk_http_requests", "Requests to HTTP plugins", metrics.requests.clone());
        registry.register(
            "souk_http_faults",
            "Requests that an HTTP plugin did not answer, or not to the end, by the name of the reason",
            metrics.faults.clone(),
        );
        registry.register(
            "souk_http_head_seconds",
            "Time from a request to the head of an HTTP plugin's answer",
            metrics.seconds.clone(),
        );
        registry.register(
            "souk_http_instances",
            "Instances taken for a request: new ones, and ones that had served before",
            metrics.instances.clone(),
        );
        registry.register("souk_http_running", "HTTP plugins at work", metrics.running.clone());
        registry.register(
            "souk_http_outbound",
            "Requests that HTTP plugins wanted to send, by outcome",
            metrics.outbound.clone(),
        );
        metrics
    }

    /// The handles of one service, so that a request allocates no label.
    pub(super) fn service(&self, owner: Option<&(SiteId, PluginName)>) -> ServiceMetrics {
        let labels = ServiceLabels { owner: owner.cloned() };
        let instances = |kind| self.instances.get_or_create(&InstanceLabels { kind }).clone();
        ServiceMetrics {
            requests: self.requests.get_or_create(&labels).clone(),
            seconds: self.seconds.clone(),
            fresh: instances("fresh"),
            reused: instances("reused"),
            running: self.running.clone(),
            faults: self.faults.clone(),
            labels,
        }
    }

    pub(super) fn outbound(&self, outcome: &'static str) {
        self.outbound.get_or_create(&OutcomeLabels { outcome }).inc();
    }
}

pub(super) struct ServiceMetrics {
    pub(super) requests: Counter,
    pub(super) seconds: Histogram,
    pub(super) fresh: Counter,
    pub(super) reused: Counter,
    pub(super) running: Gauge,
    faults: Family<FaultLabels, Counter>,
    labels: ServiceLabels,
}

impl ServiceMetrics {
    /// Off the healthy path: looks its counter up.
    pub(super) fn count_fault(&self, fault: &'static str) {
        self.faults.get_or_create(&FaultLabels { service: self.labels.clone(), fault }).inc();
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct ServiceLabels {
    /// None under `souk serve`.
    owner: Option<(SiteId, PluginName)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct FaultLabels {
    service: ServiceLabels,
    fault: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InstanceLabels {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

fn label(encoder: &mut LabelSetEncoder<'_>, name: &str, value: &str) -> Result<(), std::fmt::Error> {
    use prometheus_client::encoding::EncodeLabel as _;
    (name, value).encode(encoder.encode_label())
}

impl EncodeLabelSet for ServiceLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        if let Some((site, plugin)) = &self.owner {
            label(encoder, "site", site.as_str())?;
            label(encoder, "plugin", plugin.as_str())?;
        }
        Ok(())
    }
}

impl EncodeLabelSet for FaultLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.service.encode(encoder)?;
        label(encoder, "fault", self.fault)
    }
}
