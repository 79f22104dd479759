//! The names of the node's metrics and its access log. The only file that spells them.
//!
//! Counters are kept where things happen; gauges are read when somebody asks. No label has an unbounded set of
//! values: routes and refusals are enumerations, and neither carts nor shoppers appear.

use std::time::Duration;

use http::{Method, Response, Version};
use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::http::Body;
use crate::rescue::Refusal;

/// From a memory hit to the longest request that is allowed.
const SECONDS: [f64; 14] =
    [100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 100e-3, 250e-3, 1.0, 5.0, 30.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: &'static str,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabels {
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LogLabels {
    log: &'static str,
}

/// What is read when somebody asks for the metrics.
#[derive(Debug, Clone, Default)]
pub struct Gauges {
    pub link_up: bool,
    pub outbox_operations: u64,
    pub outbox_bytes: u64,
    pub unacked: u64,
    pub kept_operations: u64,
    pub kept_bytes: u64,
    pub commits: u64,
    pub changes: u64,
    pub commit_seconds: f64,
    pub commit_failures: u64,
    pub carts: u64,
    pub cart_bytes: u64,
    pub carts_forgotten: u64,
    pub state_renewals: u64,
    pub state_renewal_seconds: f64,
    pub erasures_unfinished: bool,
    pub writable: bool,
    pub cursors: Vec<(&'static str, u64)>,
    pub chains_pending: u64,
    pub plugins_loaded: u64,
    pub plugin_code_bytes: u64,
    pub access_lines_dropped: u64,
}

/// The node's metrics.
#[derive(Debug)]
pub struct Telemetry {
    registry: Mutex<Registry>,
    requests: Family<RequestLabels, Counter>,
    seconds: Family<RouteLabels, Histogram, fn() -> Histogram>,
    refusals: Family<CodeLabels, Counter>,
    cart_fetches: Family<OutcomeLabels, Counter>,
    pub chain_swaps: Counter,
    pub chain_failures: Counter,
    pub ahead_failures: Counter,
    pub chain_wakes: Counter,
    pub chain_sleeps: Counter,
    pub panics: Counter,
    gauges: GaugeSet,
}

#[derive(Debug, Default)]
struct GaugeSet {
    link_up: Gauge,
    outbox_operations: Gauge,
    outbox_bytes: Gauge,
    unacked: Gauge,
    kept_operations: Gauge,
    kept_bytes: Gauge,
    commits: Gauge,
    changes: Gauge,
    commit_seconds: Gauge<f64, std::sync::atomic::AtomicU64>,
    commit_failures: Gauge,
    carts: Gauge,
    cart_bytes: Gauge,
    carts_forgotten: Gauge,
    state_renewals: Gauge,
    state_renewal_seconds: Gauge<f64, std::sync::atomic::AtomicU64>,
    erasures_unfinished: Gauge,
    writable: Gauge,
    cursors: Family<LogLabels, Gauge>,
    chains_pending: Gauge,
    plugins_loaded: Gauge,
    plugin_code_bytes: Gauge,
    access_lines_dropped: Gauge,
}

impl Telemetry {
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let requests = Family::default();
        let seconds = Family::new_with_constructor((|| Histogram::new(SECONDS)) as fn() -> Histogram);
        let refusals = Family::default();
        let cart_fetches = Family::default();
        let (chain_swaps, chain_failures, panics) =
            (Counter::default(), Counter::default(), Counter::default());
        let (chain_wakes, chain_sleeps) = (Counter::default(), Counter::default());
        let ahead_failures = Counter::default();
        registry.register("souk_http_requests", "Answers by route and status", Family::clone(&requests));
        registry.register(
            "souk_http_request_seconds",
            "From the head of a request to its answer",
            seconds.clone(),
        );
        registry.register("souk_refusals", "Refusals by their code", Family::clone(&refusals));
        registry.register(
            "souk_cart_fetches",
            "Carts asked of the region, by outcome",
            Family::clone(&cart_fetches),
        );
        registry.register("souk_chain_swaps", "Plugin chains put to use", chain_swaps.clone());
        registry.register(
            "souk_chain_failures",
            "Plugin chains that could not be prepared",
            chain_failures.clone(),
        );
        registry.register(
            "souk_chain_ahead_failures",
            "Pushed components that could not be compiled before their deploy",
            ahead_failures.clone(),
        );
        registry.register("souk_chain_wakes", "Plugin chains brought into memory", chain_wakes.clone());
        registry.register("souk_chain_sleeps", "Plugin chains taken out of memory", chain_sleeps.clone());
        registry.register("souk_panics", "Requests that ended in a panic", panics.clone());
        let gauges = GaugeSet::default();
        registry.register("souk_link_up", "1 while a region is connected", gauges.link_up.clone());
        registry.register(
            "souk_outbox_operations",
            "Operations that the region has not acknowledged",
            gauges.outbox_operations.clone(),
        );
        registry.register(
            "souk_outbox_kept_operations",
            "Operations that the region has acknowledged, kept for a region that comes back from a backup",
            gauges.kept_operations.clone(),
        );
        registry.register("souk_outbox_kept_bytes", "Bytes of them", gauges.kept_bytes.clone());
        registry.register("souk_outbox_bytes", "Bytes of operations kept", gauges.outbox_bytes.clone());
        registry.register(
            "souk_outbox_unacked",
            "Operations that the region has not acknowledged",
            gauges.unacked.clone(),
        );
        registry.register(
            "souk_commits",
            "Transactions of the committer since start",
            gauges.commits.clone(),
        );
        registry.register(
            "souk_committed_changes",
            "Changes made durable since start",
            gauges.changes.clone(),
        );
        registry.register(
            "souk_commit_seconds",
            "Time spent in commits since start",
            gauges.commit_seconds.clone(),
        );
        registry.register(
            "souk_commit_failures",
            "Commits that failed since start",
            gauges.commit_failures.clone(),
        );
        registry.register("souk_carts", "Carts held", gauges.carts.clone());
        registry.register("souk_cart_bytes", "Bytes of carts held", gauges.cart_bytes.clone());
        registry.register(
            "souk_carts_forgotten",
            "Old carts that were forgotten since start",
            gauges.carts_forgotten.clone(),
        );
        registry.register(
            "souk_state_renewals",
            "Times that state.redb was written anew since start, so that nothing of an erased cart is left in it",
            gauges.state_renewals.clone(),
        );
        registry.register(
            "souk_state_renewal_seconds",
            "What that took; changes of carts waited meanwhile",
            gauges.state_renewal_seconds.clone(),
        );
        registry.register(
            "souk_erasures_unfinished",
            "1 while operations of an erased cart wait for the region: they are gone from the disk after that",
            gauges.erasures_unfinished.clone(),
        );
        registry.register("souk_writable", "1 while changes are accepted", gauges.writable.clone());
        registry.register("souk_log_cursor", "Applied version of each log", gauges.cursors.clone());
        registry.register(
            "souk_chains_pending",
            "Sites whose newest plugins are not in use",
            gauges.chains_pending.clone(),
        );
        registry.register("souk_plugins_loaded", "Plugins in memory", gauges.plugins_loaded.clone());
        registry.register(
            "souk_plugin_code_bytes",
            "Machine code of the plugins in memory",
            gauges.plugin_code_bytes.clone(),
        );
        registry.register(
            "souk_access_lines_dropped",
            "Lines for which the access log had no room since it was opened",
            gauges.access_lines_dropped.clone(),
        );
        Self {
            registry: Mutex::new(registry),
            requests,
            seconds,
            refusals,
            cart_fetches,
            chain_swaps,
            chain_failures,
            ahead_failures,
            chain_wakes,
            chain_sleeps,
            panics,
            gauges,
        }
    }

    /// Lets another part of the node add its own metrics to the same page.
    pub fn register<T>(&self, f: impl FnOnce(&mut Registry) -> T) -> T {
        f(&mut self.registry.lock())
    }

    pub fn cart_fetch(&self, outcome: &'static str) {
        self.cart_fetches.get_or_create(&OutcomeLabels { outcome }).inc();
    }

    /// Counts an answer and writes its line of the access log.
    pub fn answered(&self, line: &AccessLine<'_>, response: &Response<Body>) {
        let status = response.status().as_u16();
        let refusal = response.extensions().get::<Refusal>().map(|r| r.code());
        self.requests.get_or_create(&RequestLabels { route: line.route, status }).inc();
        self.seconds.get_or_create(&RouteLabels { route: line.route }).observe(line.spent.as_secs_f64());
        if let Some(code) = refusal {
            self.refusals.get_or_create(&CodeLabels { code }).inc();
        }
        // Neither path nor query: they carry cart numbers, and to know a cart's number is to own the cart.
        tracing::info!(
            target: "access",
            method = %line.method,
            route = line.route,
            host = line.host,
            version = ?line.version,
            status,
            code = refusal,
            spent_us = u64::try_from(line.spent.as_micros()).unwrap_or(u64::MAX),
            bytes = http_body::Body::size_hint(response.body()).exact(),
            peer = %line.peer,
        );
    }

    /// The Prometheus page.
    pub fn page(&self, now: &Gauges) -> Result<String, std::fmt::Error> {
        let set = |gauge: &Gauge, value: u64| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        let gauges = &self.gauges;
        set(&gauges.link_up, now.link_up.into());
        set(&gauges.outbox_operations, now.outbox_operations);
        set(&gauges.outbox_bytes, now.outbox_bytes);
        set(&gauges.unacked, now.unacked);
        set(&gauges.kept_operations, now.kept_operations);
        set(&gauges.kept_bytes, now.kept_bytes);
        set(&gauges.commits, now.commits);
        set(&gauges.changes, now.changes);
        gauges.commit_seconds.set(now.commit_seconds);
        set(&gauges.commit_failures, now.commit_failures);
        set(&gauges.carts, now.carts);
        set(&gauges.cart_bytes, now.cart_bytes);
        set(&gauges.carts_forgotten, now.carts_forgotten);
        set(&gauges.state_renewals, now.state_renewals);
        gauges.state_renewal_seconds.set(now.state_renewal_seconds);
        set(&gauges.erasures_unfinished, now.erasures_unfinished.into());
        set(&gauges.writable, now.writable.into());
        set(&gauges.chains_pending, now.chains_pending);
        set(&gauges.plugins_loaded, now.plugins_loaded);
        set(&gauges.plugin_code_bytes, now.plugin_code_bytes);
        set(&gauges.access_lines_dropped, now.access_lines_dropped);
        for &(log, version) in &now.cursors {
            set(&gauges.cursors.get_or_create(&LogLabels { log }), version);
        }
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry.lock())?;
        Ok(text)
    }
}

impl Default for Telemetry {
    fn default() -> Self {
        Self::new()
    }
}

/// What the access log says of a request beside its answer.
#[derive(Debug)]
pub struct AccessLine<'a> {
    pub method: &'a Method,
    pub route: &'static str,
    pub host: Option<&'a str>,
    pub version: Version,
    pub peer: std::net::IpAddr,
    pub spent: Duration,
}
