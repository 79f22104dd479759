//! What the operator sees of the plugins: calls, faults by name, how long a hook takes, and each site's share of the
//! processors.
//!
//! A node has thousands of sites, and their plugins come and go: the series of a plugin's hook are there while a chain in
//! memory has it, and begin at zero when it comes back, as after a restart. So a page has as many series as there are
//! plugins in memory, and none of what is gone.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use parking_lot::Mutex;
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
    guard_alarms: Family<StepLabels, Counter>,
    standby_calls: Family<StepLabels, Counter>,
    /// What is in memory. Two chains have the same plugin while one takes the other's place.
    in_use: Arc<Mutex<HashMap<Arc<StepLabels>, InUse>>>,
}

#[derive(Default)]
struct InUse {
    steps: usize,
    /// Names under which faults were counted.
    faults: HashSet<&'static str>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            calls: Family::default(),
            faults: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            guard_alarms: Family::default(),
            standby_calls: Family::default(),
            in_use: Arc::default(),
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
        registry.register(
            "souk_price_guard_alarms",
            "Answers that broke the price guard and were dropped",
            metrics.guard_alarms.clone(),
        );
        registry.register(
            "souk_hook_standby_calls",
            "Calls for which the release of before was asked, because the active one breaks the price guard",
            metrics.standby_calls.clone(),
        );
        metrics
    }

    /// The handles of one step's hook. Resolved when a chain is made, so that a call allocates no label.
    pub(crate) fn step(&self, site: Option<&SiteId>, plugin: &PluginName, hook: Hook) -> StepMetrics {
        let labels = Arc::new(StepLabels { site: site.cloned(), plugin: plugin.clone(), hook });
        // Held while the series are looked up: whoever drops the last step of before must not take them away after.
        let mut in_use = self.in_use.lock();
        in_use.entry(Arc::clone(&labels)).or_default().steps += 1;
        StepMetrics {
            calls: self.calls.get_or_create(&labels).clone(),
            seconds: self.seconds.get_or_create(&HookLabels { hook }).clone(),
            guard_alarms: self.guard_alarms.get_or_create(&labels).clone(),
            standby_calls: self.standby_calls.get_or_create(&labels).clone(),
            labels,
            all: self.clone(),
        }
    }

    fn forget(&self, labels: &Arc<StepLabels>) {
        let mut in_use = self.in_use.lock();
        let Some(step) = in_use.get_mut(labels) else { return };
        step.steps -= 1;
        if step.steps > 0 {
            return;
        }
        self.calls.remove(labels);
        self.guard_alarms.remove(labels);
        self.standby_calls.remove(labels);
        for fault in step.faults.drain() {
            self.faults.remove(&FaultLabels { step: Arc::clone(labels), fault });
        }
        in_use.remove(labels);
    }
}

pub(crate) struct StepMetrics {
    pub(crate) calls: Counter,
    pub(crate) seconds: Histogram,
    pub(crate) guard_alarms: Counter,
    pub(crate) standby_calls: Counter,
    labels: Arc<StepLabels>,
    all: Metrics,
}

impl StepMetrics {
    /// Off the healthy path: looks its counter up.
    pub(crate) fn count_fault(&self, fault: &'static str) {
        if let Some(step) = self.all.in_use.lock().get_mut(&self.labels) {
            step.faults.insert(fault);
        }
        self.all.faults.get_or_create(&FaultLabels { step: Arc::clone(&self.labels), fault }).inc();
    }
}

impl Drop for StepMetrics {
    fn drop(&mut self) {
        self.all.forget(&self.labels);
    }
}

/// What each site takes of the processors, and how long it waits for them.
#[derive(Clone)]
pub struct ShareMetrics {
    used_seconds: Family<SiteLabels, Counter<f64, AtomicU64>>,
    waits: Family<SiteLabels, Counter>,
    refusals: Family<SiteLabels, Counter>,
    wait_seconds: Histogram,
}

impl Default for ShareMetrics {
    fn default() -> Self {
        Self {
            used_seconds: Family::default(),
            waits: Family::default(),
            refusals: Family::default(),
            wait_seconds: Histogram::new(SECONDS),
        }
    }
}

impl ShareMetrics {
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let Self { used_seconds, waits, refusals, wait_seconds } = &metrics;
        registry.register(
            "souk_plugin_processor_seconds",
            "Processor time of a site's plugins",
            used_seconds.clone(),
        );
        registry.register(
            "souk_plugin_turns_waited",
            "Calls of a site's plugins that had to wait for their turn",
            waits.clone(),
        );
        registry.register(
            "souk_plugin_turns_refused",
            "Calls of a site's plugins that found the site's queue full",
            refusals.clone(),
        );
        registry.register(
            "souk_plugin_turn_wait_seconds",
            "How long those that waited did so, all sites together",
            wait_seconds.clone(),
        );
        metrics
    }

    /// Takes away the series of a site that is gone. A call of it that is still under way makes them again.
    pub fn forget(&self, site: &SiteId) {
        let labels = SiteLabels { site: site.clone() };
        self.used_seconds.remove(&labels);
        self.waits.remove(&labels);
        self.refusals.remove(&labels);
    }

    pub(crate) fn used(&self, site: &SiteId, time: Duration) {
        self.used_seconds.get_or_create(&SiteLabels { site: site.clone() }).inc_by(time.as_secs_f64());
    }

    pub(crate) fn waited(&self, site: &SiteId, time: Duration) {
        self.waits.get_or_create(&SiteLabels { site: site.clone() }).inc();
        self.wait_seconds.observe(time.as_secs_f64());
    }

    pub(crate) fn refused(&self, site: &SiteId) {
        self.refusals.get_or_create(&SiteLabels { site: site.clone() }).inc();
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct SiteLabels {
    site: SiteId,
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

impl EncodeLabelSet for SiteLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        label(encoder, "site", self.site.as_str())
    }
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
