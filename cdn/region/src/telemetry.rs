//! What a region counts. The only place where a metric has a name.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use parking_lot::Mutex;
use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use souk_replication::Heads;

use crate::journal::JournalCounts;
use crate::pair::standby::PairStatus;
use crate::store::Store;
use crate::store::cart::Applied;
use crate::store::escrow::{Ended, StockTotals};
use crate::store::publisher::Waiting;

/// From 100 µs (a batch into a warm cache) to 6.5 s (a disk that is going away).
const APPLY_SECONDS: [f64; 9] = [0.0001, 0.0004, 0.0016, 0.0064, 0.0256, 0.1024, 0.4096, 1.6384, 6.5536];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfLog {
    log: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PaymentCall {
    op: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    method: &'static str,
    status: u16,
}

/// Counters live here; what the store or the link knows by itself is read when somebody asks.
pub(crate) struct Telemetry {
    registry: Registry,
    /// What the plugins' chains count; the sandbox names it.
    pub(crate) hooks: souk_sandbox::Metrics,
    /// What loading them costs.
    pub(crate) loader: souk_sandbox::LoaderMetrics,
    pub(crate) share: souk_sandbox::ShareMetrics,
    pub(crate) studio: souk_sandbox::record::StudioMetrics,
    ops: Family<Outcome, Counter>,
    batches: Family<Outcome, Counter>,
    pub(crate) apply_seconds: Histogram,
    checkouts: Family<Outcome, Counter>,
    pub(crate) checkout_repriced: Counter,
    pub(crate) shoppers_erased: Counter,
    pub(crate) erasures_resumed: Counter,
    pub(crate) shoppers_exported: Counter,
    payment_calls: Family<PaymentCall, Counter>,
    payment_messages: Family<Outcome, Counter>,
    payment_mismatches: Family<Outcome, Counter>,
    payments_waiting: Gauge,
    payments_waiting_longest: Gauge<f64, AtomicU64>,
    events_published: Family<Outcome, Counter>,
    events_not_held: Family<Outcome, Counter>,
    events_waiting: Gauge,
    events_waiting_longest: Gauge<f64, AtomicU64>,
    events_broker_connections: Counter,
    events_broker_connected: Gauge,
    stock_questions: Family<Outcome, Counter>,
    stock_grants_ended: Family<Outcome, Counter>,
    reservations: Family<Outcome, Counter>,
    stock_grants: Gauge,
    stock_holds: Gauge,
    stock_units_granted: Gauge,
    stock_units_reserved: Gauge,
    requests: Family<Request, Counter>,
    auth_failures: Family<Outcome, Counter>,
    commits: Gauge<f64, AtomicU64>,
    commands: Gauge<f64, AtomicU64>,
    commands_failed: Gauge<f64, AtomicU64>,
    transactions_repeated: Gauge<f64, AtomicU64>,
    commit_seconds_last: Gauge<f64, AtomicU64>,
    wal_bytes: Gauge<f64, AtomicU64>,
    log_version: Family<OfLog, Gauge>,
    search_version: Gauge,
    nodes_connected: Gauge,
    dead_letters: Gauge,
    operations_gone: Gauge,
    journal_entries: Gauge<f64, AtomicU64>,
    journal_recordings: Gauge<f64, AtomicU64>,
    journal_dropped: Gauge<f64, AtomicU64>,
    journal_commits_failed: Gauge<f64, AtomicU64>,
    journal_bytes: Gauge<f64, AtomicU64>,
    pub(crate) pushes_collected: Counter,
    pub(crate) blob_bytes_collected: Counter,
    pub(crate) pair: PairMetrics,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Role {
    role: &'static str,
}

/// A number that is on the page only if there is one.
#[derive(Debug, Clone, Default)]
struct Shown(Arc<Mutex<Option<i64>>>);

impl Shown {
    fn set(&self, number: Option<i64>) {
        *self.0.lock() = number;
    }
}

impl EncodeMetric for Shown {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.0.lock().map_or(Ok(()), |number| encoder.encode_gauge(&number))
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }

    fn is_empty(&self) -> bool {
        self.0.lock().is_none()
    }
}

/// What a region of a pair shows, whichever it is.
#[derive(Default)]
pub(crate) struct PairMetrics {
    roles: Family<Role, Gauge>,
    term: Gauge,
    ack_level: Shown,
    connected: Shown,
    lag_rows: Gauge,
    lag: Gauge<f64, AtomicU64>,
    rows: Gauge,
    as_of: Gauge<f64, AtomicU64>,
    files_missing: Gauge,
    later_home_named: Gauge,
}

impl PairMetrics {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("pair");
        registry.register("role", "1: what this region is (home, standby, replaced)", self.roles.clone());
        registry.register(
            "term",
            "Which home of the region this is, or follows, or was replaced by: one more at each takeover",
            self.term.clone(),
        );
        registry.register(
            "ack_level",
            "Regions that have to hold what counts as committed; of a home",
            self.ack_level.clone(),
        );
        registry.register(
            "connected",
            "1: the standby follows this process. 0 on a standby, or on all processes of a home, is an alarm; not there: no pair",
            self.connected.clone(),
        );
        registry.register(
            "lag_rows",
            "Rows noted at the home that its standby does not hold yet; of a home",
            self.lag_rows.clone(),
        );
        registry.register_with_unit(
            "lag",
            "For how long the standby has lacked something, as far as this region knows",
            Unit::Seconds,
            self.lag.clone(),
        );
        registry.register(
            "rows",
            "Rows sent to the standby, or taken in by it, since start",
            self.rows.clone(),
        );
        registry.register_with_unit(
            "as_of",
            "The moment that a standby would go on from, by its home's clock, since 1970",
            Unit::Seconds,
            self.as_of.clone(),
        );
        registry.register(
            "files_missing",
            "Files that a standby's rows name and that it does not have yet",
            self.files_missing.clone(),
        );
        registry.register(
            "later_home_named",
            "How often a home has rejected a node that says it has met a later one, since start: anything above 0 is an alarm",
            self.later_home_named.clone(),
        );
    }

    pub(crate) fn set(&self, status: &PairStatus, rows: u64) {
        let number = |of: u64| i64::try_from(of).unwrap_or(i64::MAX);
        for role in ["home", "standby", "replaced"] {
            self.roles.get_or_create(&Role { role }).set(i64::from(role == status.role));
        }
        self.term.set(number(status.term));
        self.ack_level.set(status.ack_level.map(i64::from));
        let is_unpaired = status.role == "home" && status.ack_level.is_none();
        self.connected.set((!is_unpaired).then_some(i64::from(status.connected)));
        self.lag_rows.set(number(status.lag_rows.unwrap_or(0)));
        self.lag.set(status.lag_ms.unwrap_or(0) as f64 / 1e3);
        self.rows.set(number(rows));
        self.as_of.set(status.as_of_ms.unwrap_or(0) as f64 / 1e3);
        self.files_missing.set(number(status.files_missing.unwrap_or(0)));
        self.later_home_named.set(number(status.later_home_named.unwrap_or(0)));
    }

    /// The page of a region that has nothing else to show.
    pub(crate) fn page_of_standby(&self, status: &PairStatus, rows: u64) -> Result<String, std::fmt::Error> {
        self.set(status, rows);
        let mut registry = Registry::default();
        self.register(registry.sub_registry_with_prefix("souk_region"));
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &registry)?;
        Ok(page)
    }
}

impl Telemetry {
    /// What products say is taken in up to here.
    pub(crate) fn search_indexed(&self, version: u64) {
        self.search_version.set(i64::try_from(version).unwrap_or(i64::MAX));
    }

    pub(crate) fn new() -> Self {
        let mut whole = Registry::default();
        let hooks = souk_sandbox::Metrics::register(&mut whole);
        let loader = souk_sandbox::LoaderMetrics::register(&mut whole);
        let share = souk_sandbox::ShareMetrics::register(&mut whole);
        let studio = souk_sandbox::record::StudioMetrics::register(&mut whole);
        let registry = whole.sub_registry_with_prefix("souk_region");
        let this = Self {
            registry: Registry::default(),
            hooks,
            loader,
            share,
            studio,
            ops: Family::default(),
            batches: Family::default(),
            apply_seconds: Histogram::new(APPLY_SECONDS),
            checkouts: Family::default(),
            checkout_repriced: Counter::default(),
            shoppers_erased: Counter::default(),
            erasures_resumed: Counter::default(),
            shoppers_exported: Counter::default(),
            payment_calls: Family::default(),
            payment_messages: Family::default(),
            payment_mismatches: Family::default(),
            payments_waiting: Gauge::default(),
            payments_waiting_longest: Gauge::default(),
            events_published: Family::default(),
            events_not_held: Family::default(),
            events_waiting: Gauge::default(),
            events_waiting_longest: Gauge::default(),
            events_broker_connections: Counter::default(),
            events_broker_connected: Gauge::default(),
            stock_questions: Family::default(),
            stock_grants_ended: Family::default(),
            reservations: Family::default(),
            stock_grants: Gauge::default(),
            stock_holds: Gauge::default(),
            stock_units_granted: Gauge::default(),
            stock_units_reserved: Gauge::default(),
            requests: Family::default(),
            auth_failures: Family::default(),
            commits: Gauge::default(),
            commands: Gauge::default(),
            commands_failed: Gauge::default(),
            transactions_repeated: Gauge::default(),
            commit_seconds_last: Gauge::default(),
            wal_bytes: Gauge::default(),
            log_version: Family::default(),
            search_version: Gauge::default(),
            nodes_connected: Gauge::default(),
            dead_letters: Gauge::default(),
            operations_gone: Gauge::default(),
            journal_entries: Gauge::default(),
            journal_recordings: Gauge::default(),
            journal_dropped: Gauge::default(),
            journal_commits_failed: Gauge::default(),
            journal_bytes: Gauge::default(),
            pushes_collected: Counter::default(),
            blob_bytes_collected: Counter::default(),
            pair: PairMetrics::new(),
        };
        registry.register(
            "pushes_collected",
            "Components that were pushed, never released, and taken away",
            this.pushes_collected.clone(),
        );
        registry.register_with_unit(
            "blob_collected",
            "Blobs that nothing referred to any more, removed",
            Unit::Bytes,
            this.blob_bytes_collected.clone(),
        );
        registry.register(
            "operations",
            "Operations of nodes: applied, skipped (seen before), dead (kept as a dead letter: look at once), late (for an ordered cart), clock_ahead (stamped by a clock that is wrong), drops_ignored (takes away what never arrived)",
            this.ops.clone(),
        );
        registry.register("batches", "Batches of nodes by outcome", this.batches.clone());
        registry.register_with_unit(
            "apply",
            "From a batch's arrival at the store to its commit",
            Unit::Seconds,
            this.apply_seconds.clone(),
        );
        registry.register("checkouts", "Checkouts by outcome", this.checkouts.clone());
        registry.register(
            "checkout_repriced",
            "Orders computed again because a price moved meanwhile",
            this.checkout_repriced.clone(),
        );
        registry.register("shoppers_erased", "Shoppers who were erased", this.shoppers_erased.clone());
        registry.register(
            "erasures_resumed",
            "Erasures that a process left half done, finished by this one",
            this.erasures_resumed.clone(),
        );
        registry.register(
            "shoppers_exported",
            "Exports of what is kept of a shopper that were begun",
            this.shoppers_exported.clone(),
        );
        registry.register(
            "payment_calls",
            "Calls of payment providers by what was asked and what it came to: done, declined (the bank's no), refused (the call itself: look at the log), not_now (not reached, or takes none), unknown (asked again with the same key); look_up: what was found",
            this.payment_calls.clone(),
        );
        registry.register(
            "payment_messages",
            "Signed messages of payment providers: noted, repeated, unknown (about nothing of ours)",
            this.payment_messages.clone(),
        );
        registry.register(
            "payment_mismatches",
            "Payments about which a provider's books and ours differed when they were compared, by how",
            this.payment_mismatches.clone(),
        );
        registry.register(
            "payments_waiting",
            "Calls of payment providers whose outcome is not known",
            this.payments_waiting.clone(),
        );
        registry.register_with_unit(
            "payments_waiting_longest",
            "Age of the oldest of them; above some minutes: the provider, its key or the line to it needs a look",
            Unit::Seconds,
            this.payments_waiting_longest.clone(),
        );
        registry.register(
            "events_published",
            "Events that the broker has said it holds: new, repeated (it held it already)",
            this.events_published.clone(),
        );
        registry.register(
            "events_not_published",
            "Times that a broker did not say that it holds an event, each tried again: away, refused and unroutable (look at the log), unsettled (it knows the name and nothing more), lost (its stream has lost what it had acknowledged: look at its servers)",
            this.events_not_held.clone(),
        );
        registry.register(
            "events_waiting",
            "Events that a broker does not hold yet, counted up to 100,000",
            this.events_waiting.clone(),
        );
        registry.register_with_unit(
            "events_waiting_longest",
            "Age of the oldest of them; above some minutes: the broker or the way to it needs a look, and after 30 days they are gone",
            Unit::Seconds,
            this.events_waiting_longest.clone(),
        );
        registry.register(
            "events_broker_connections",
            "Connections to the events' broker since start",
            this.events_broker_connections.clone(),
        );
        registry.register(
            "events_broker_connected",
            "Whether there is one now",
            this.events_broker_connected.clone(),
        );
        registry.register(
            "stock_questions",
            "Nodes' questions about lent stock: answered, old (a later one was answered), not_yet (of another epoch)",
            this.stock_questions.clone(),
        );
        registry.register(
            "stock_grants_ended",
            "Grants of units to nodes that are over: returned (the node gave it up), lapsed (it did not come back)",
            this.stock_grants_ended.clone(),
        );
        registry.register(
            "reservations",
            "Units promised to carts, by product: promised (here), consumed (by a node, of its grant), refused (by a node, of units that were not its own any more: its disk or a clock was put back), short (too few were free), uncounted, expired",
            this.reservations.clone(),
        );
        registry.register(
            "stock_grants",
            "Grants of units to nodes that are not over",
            this.stock_grants.clone(),
        );
        registry.register(
            "stock_holds",
            "Promises of units to carts that are not over",
            this.stock_holds.clone(),
        );
        registry.register(
            "stock_units_granted",
            "Units that nodes may promise",
            this.stock_units_granted.clone(),
        );
        registry.register(
            "stock_units_reserved",
            "Units that are promised to carts",
            this.stock_units_reserved.clone(),
        );
        registry.register("control_requests", "Requests to the control API", this.requests.clone());
        registry.register(
            "control_auth_failures",
            "Requests whose bearer was not recognised: refused (no token, a wrong or a revoked one), damaged (cut off or mistyped), expired, store (the store could not say)",
            this.auth_failures.clone(),
        );
        registry.register("store_commits", "Commits of the store", this.commits.clone());
        registry.register("store_commands", "Commands that those commits carried", this.commands.clone());
        registry.register(
            "store_commands_failed",
            "Commands whose commit failed",
            this.commands_failed.clone(),
        );
        registry.register(
            "store_transactions_repeated",
            "Transactions of the store that were given up for another one's sake, or lost their connection, and were run again",
            this.transactions_repeated.clone(),
        );
        registry.register_with_unit(
            "store_commit_last",
            "Duration of the last commit",
            Unit::Seconds,
            this.commit_seconds_last.clone(),
        );
        registry.register_with_unit(
            "store_wal",
            "Length of the store's write-ahead log; growing without end: something reads for minutes",
            Unit::Bytes,
            this.wal_bytes.clone(),
        );
        registry.register("log_version", "Newest version of each log", this.log_version.clone());
        registry.register(
            "search_version",
            "Up to here of the catalogue log products can be searched at the region; far behind log_version: an import is being taken in",
            this.search_version.clone(),
        );
        registry.register("nodes_connected", "Nodes with a link", this.nodes_connected.clone());
        registry.register(
            "dead_letters",
            "Operations that nodes accepted and nobody could apply, kept until an operator settles them: anything above 0 is an alarm",
            this.dead_letters.clone(),
        );
        registry.register(
            "operations_gone",
            "Operations that a restored region lacks and no node has kept, until an operator has read of them: anything above 0 is an alarm",
            this.operations_gone.clone(),
        );
        registry.register(
            "journal_entries",
            "Entries of plugins' journals written since start",
            this.journal_entries.clone(),
        );
        registry.register(
            "journal_recordings",
            "Recorded calls kept since start",
            this.journal_recordings.clone(),
        );
        registry.register(
            "journal_dropped",
            "Entries of the region's own plugin calls that found no room since start",
            this.journal_dropped.clone(),
        );
        registry.register(
            "journal_commits_failed",
            "Commits of the journal that failed since start; nodes send their part again",
            this.journal_commits_failed.clone(),
        );
        registry.register_with_unit(
            "journal",
            "Entries and recordings held, without the file's own overhead",
            Unit::Bytes,
            this.journal_bytes.clone(),
        );
        this.pair.register(registry);
        Self { registry: whole, ..this }
    }

    pub(crate) fn applied(&self, applied: &Applied) {
        let counts = [
            ("applied", applied.applied),
            ("skipped", applied.skipped),
            ("dead", applied.dead),
            ("late", applied.late),
            ("clock_ahead", applied.clock_ahead),
            ("drops_ignored", applied.drops_ignored),
        ];
        for (outcome, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
            self.ops.get_or_create(&Outcome { outcome }).inc_by(count);
        }
        self.reservation("consumed", applied.promises);
        self.reservation("refused", applied.promises_refused);
    }

    pub(crate) fn batch(&self, outcome: &'static str) {
        self.batches.get_or_create(&Outcome { outcome }).inc();
    }

    pub(crate) fn checkout(&self, outcome: &'static str) {
        self.checkouts.get_or_create(&Outcome { outcome }).inc();
    }

    pub(crate) fn payment_call(&self, op: &'static str, outcome: &'static str) {
        self.payment_calls.get_or_create(&PaymentCall { op, outcome }).inc();
    }

    pub(crate) fn payment_message(&self, outcome: &'static str) {
        self.payment_messages.get_or_create(&Outcome { outcome }).inc();
    }

    pub(crate) fn payment_mismatch(&self, outcome: &'static str) {
        self.payment_mismatches.get_or_create(&Outcome { outcome }).inc();
    }

    pub(crate) fn payments_waiting(&self, waiting: u64, longest_ms: u64) {
        self.payments_waiting.set(i64::try_from(waiting).unwrap_or(i64::MAX));
        self.payments_waiting_longest.set(longest_ms as f64 / 1e3);
    }

    pub(crate) fn event_held(&self, is_repeated: bool) {
        let outcome = if is_repeated { "repeated" } else { "new" };
        self.events_published.get_or_create(&Outcome { outcome }).inc();
    }

    pub(crate) fn event_not_held(&self, outcome: &'static str) {
        self.events_not_held.get_or_create(&Outcome { outcome }).inc();
    }

    pub(crate) fn events_waiting(&self, waiting: Waiting, now_ms: u64) {
        self.events_waiting.set(i64::try_from(waiting.events).unwrap_or(i64::MAX));
        let longest_ms = waiting.since_ms.map_or(0, |since_ms| now_ms.saturating_sub(since_ms));
        self.events_waiting_longest.set(longest_ms as f64 / 1e3);
    }

    pub(crate) fn events_broker(&self, is_connected: bool) {
        if is_connected {
            self.events_broker_connections.inc();
        }
        self.events_broker_connected.set(i64::from(is_connected));
    }

    pub(crate) fn stock_question(&self, outcome: &'static str) {
        self.stock_questions.get_or_create(&Outcome { outcome }).inc();
    }

    pub(crate) fn reservation(&self, outcome: &'static str, count: u64) {
        if count > 0 {
            self.reservations.get_or_create(&Outcome { outcome }).inc_by(count);
        }
    }

    pub(crate) fn stock_ended(&self, ended: &Ended) {
        self.reservation("expired", ended.expired);
        for (outcome, count) in [("returned", ended.returned), ("lapsed", ended.lapsed)] {
            if count > 0 {
                self.stock_grants_ended.get_or_create(&Outcome { outcome }).inc_by(count);
            }
        }
    }

    pub(crate) fn stock_totals(&self, totals: StockTotals) {
        let StockTotals { grants, granted, holds, reserved } = totals;
        for (gauge, value) in [
            (&self.stock_grants, grants),
            (&self.stock_units_granted, granted),
            (&self.stock_holds, holds),
            (&self.stock_units_reserved, reserved),
        ] {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        }
    }

    /// Runs, and operations as far as they are counted.
    pub(crate) fn operations_gone(&self, (_, operations): (u64, u64)) {
        self.operations_gone.set(i64::try_from(operations).unwrap_or(i64::MAX));
    }

    pub(crate) fn auth_failure(&self, outcome: &'static str) {
        self.auth_failures.get_or_create(&Outcome { outcome }).inc();
    }

    pub(crate) fn request(&self, method: &http::Method, status: http::StatusCode) {
        // Methods are the peer's words: only those that we answer become labels.
        let method = match method.as_str() {
            "GET" => "GET",
            "HEAD" => "HEAD",
            "POST" => "POST",
            "PUT" => "PUT",
            "DELETE" => "DELETE",
            _ => "other",
        };
        self.requests.get_or_create(&Request { method, status: status.as_u16() }).inc();
    }

    /// The page, in the OpenMetrics text format.
    pub(crate) fn page(
        &self,
        store: &Store,
        journal: &JournalCounts,
        heads: &Heads,
        nodes_connected: usize,
        dead_letters: u64,
    ) -> Result<String, std::fmt::Error> {
        use std::sync::atomic::Ordering::Relaxed;
        let writer = store.writer_metrics();
        self.commits.set(writer.commits.load(Relaxed) as f64);
        self.commands.set(writer.commands.load(Relaxed) as f64);
        self.commands_failed.set(writer.failed.load(Relaxed) as f64);
        self.transactions_repeated.set(writer.repeated.load(Relaxed) as f64);
        self.commit_seconds_last.set(writer.commit_us_last.load(Relaxed) as f64 / 1e6);
        self.wal_bytes.set(writer.wal_bytes.load(Relaxed) as f64);
        for (log, version) in heads.iter() {
            let version = i64::try_from(version).unwrap_or(i64::MAX);
            self.log_version.get_or_create(&OfLog { log: log.name() }).set(version);
        }
        self.journal_entries.set(journal.entries.load(Relaxed) as f64);
        self.journal_recordings.set(journal.recordings.load(Relaxed) as f64);
        self.journal_dropped.set(journal.dropped.load(Relaxed) as f64);
        self.journal_commits_failed.set(journal.failed_commits.load(Relaxed) as f64);
        self.journal_bytes.set(journal.bytes.load(Relaxed) as f64);
        self.nodes_connected.set(i64::try_from(nodes_connected).unwrap_or(i64::MAX));
        self.dead_letters.set(i64::try_from(dead_letters).unwrap_or(i64::MAX));
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &self.registry)?;
        Ok(page)
    }
}
