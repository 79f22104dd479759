//! What the operator sees of the plugins: calls, faults by name, and how long a hook takes.

use std::sync::Arc;

use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use souk_commerce::id::{PluginName, SiteId};
use souk_commerce::site::Hook;

/// From a Rust plugin's 10 us to the wall limit of a call.
const SECONDS: [f64; 12] =
    [20e-6, 50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 25e-3, 100e-3, 250e-3];

/// Register once per process, then make each site's [`crate::Chain`] with it.
#[derive(Clone)]
pub struct Metrics {
    calls: Family<StepLabels, Counter>,
    faults: Family<FaultLabels, Counter>,
    seconds: Family<HookLabels, Histogram, fn() -> Histogram>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            calls: Family::default(),
            faults: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(SECONDS)),
        }
    }
}

impl Metrics {
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("souk_hook_calls", "Calls of a plugin's hook", metrics.calls.clone());
        registry.register(
            "souk_hook_faults",
            "Calls that failed or whose answer was not used, by the name of the reason",
            metrics.faults.clone(),
        );
        registry.register(
            "souk_hook_duration_seconds",
            "Wall time of one call of a hook",
            metrics.seconds.clone(),
        );
        metrics
    }

    /// The handles of one step's hook. Resolved when a chain is made, so that a call allocates no label.
    pub(crate) fn step(&self, site: Option<&SiteId>, plugin: &PluginName, hook: Hook) -> StepMetrics {
        let labels = StepLabels { site: site.cloned(), plugin: plugin.clone(), hook };
        StepMetrics {
            calls: self.calls.get_or_create(&labels).clone(),
            seconds: self.seconds.get_or_create(&HookLabels { hook }).clone(),
            faults: self.faults.clone(),
            labels: Arc::new(labels),
        }
    }
}

pub(crate) struct StepMetrics {
    pub(crate) calls: Counter,
    pub(crate) seconds: Histogram,
    faults: Family<FaultLabels, Counter>,
    labels: Arc<StepLabels>,
}

impl StepMetrics {
    /// Off the healthy path: looks its counter up.
    pub(crate) fn count_fault(&self, fault: &'static str) {
        self.faults.get_or_create(&FaultLabels { step: Arc::clone(&self.labels), fault }).inc();
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct StepLabels {
    site: Option<SiteId>,
    plugin: PluginName,
    hook: Hook,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct FaultLabels {
    step: Arc<StepLabels>,
    fault: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct HookLabels {
    hook: Hook,
}

fn label(encoder: &mut LabelSetEncoder<'_>, name: &str, value: &str) -> Result<(), std::fmt::Error> {
    use prometheus_client::encoding::EncodeLabel as _;
    (name, value).encode(encoder.encode_label())
}

impl EncodeLabelSet for StepLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        if let Some(site) = &self.site {
            label(encoder, "site", site.as_str())?;
        }
        label(encoder, "plugin", self.plugin.as_str())?;
        label(encoder, "hook", self.hook.name())
    }
}

impl EncodeLabelSet for FaultLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.step.encode(encoder)?;
        label(encoder, "fault", self.fault)
    }
}

impl EncodeLabelSet for HookLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        label(encoder, "hook", self.hook.name())
    }
}
