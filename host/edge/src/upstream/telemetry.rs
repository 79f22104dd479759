//! What the proxy counts. The only place where its metric names stand.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::trace::TraceMetrics;

use self::hits::Hits;
pub(in crate::upstream) use self::servers::Seen;
pub use self::servers::{OfServer, ServerMetrics, ServerOutcome, ServerProtocol, ServerReason, ServerState};

mod hits;
mod servers;

/// Buckets of the wait for an upstream's head, in seconds: from a neighbour to the time-out.
const WAIT_S: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

/// The outcome that is counted without looking for its counter.
pub(super) const HIT: &str = "hit";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    /// `hit`, `stale_while_revalidate`, `stale_if_error`, `collapsed`, `fill`, `revalidated`, `pass` or `refused`.
    pub outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reason {
    pub reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PeerName {
    /// As the settings call it.
    pub peer: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Encoding {
    /// `br`, `zstd` or `gzip`.
    pub coding: &'static str,
}

/// What becomes of the encodings that clients would have liked. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct PressMetrics {
    pub encodings: Family<Encoding, Counter>,
    pub bytes_in: Counter,
    pub bytes_out: Counter,
    /// There was no room in the queue, or no memory.
    pub dropped: Counter,
}

impl PressMetrics {
    pub(super) fn made(&self, coding: &'static str, bytes_in: u64, bytes_out: u64) {
        self.encodings.get_or_create(&Encoding { coding }).inc();
        self.bytes_in.inc_by(bytes_in);
        self.bytes_out.inc_by(bytes_out);
    }

    fn register(&self, proxy: &mut Registry) {
        proxy.register("encodings", "Encodings made of stored responses", self.encodings.clone());
        proxy.register("encoding_in_bytes", "Bytes that were encoded", self.bytes_in.clone());
        proxy.register("encoding_out_bytes", "Bytes that came of it", self.bytes_out.clone());
        proxy.register(
            "encodings_dropped",
            "Encodings for which there was no room in the queue",
            self.dropped.clone(),
        );
    }
}

/// Counters of one proxy. Every label comes from a closed list of names, so that no client can make new ones.
#[derive(Clone, Debug, Default)]
pub struct ProxyMetrics {
    pub requests: Family<Outcome, Counter>,
    /// Hits that [`Self::sample`] has not put there yet.
    hits: Hits,
    pub passes: Family<Reason, Counter>,
    pub refusals: Family<Reason, Counter>,
    pub upstream_errors: Family<Reason, Counter>,
    pub fill_bytes: Counter,
    pub fills_broken: Counter,
    pub upstream_wait: Wait,
    pub stored_bytes: Gauge,
    pub stored_keys: Gauge,
    pub filling_bytes: Gauge,
    pub in_file_bytes: Gauge,
    pub waiting: Gauge,
    pub upstream_in_flight: Gauge,
    pub press: PressMetrics,
    /// Slices that an answer needed, by where they came from.
    pub slices: Family<Outcome, Counter>,
    pub access_dropped: Gauge,
    pub(crate) traces: TraceMetrics,
    /// Further tries, by what the try before met.
    pub retries: Family<Reason, Counter>,
    /// Tries that were wanted and not made, by what was missing.
    pub retries_denied: Family<Reason, Counter>,
    pub hedges: Family<Outcome, Counter>,
    /// Fills that another node of this place might have shared, by what came of it.
    pub peer_fills: Family<Outcome, Counter>,
    /// Questions of other nodes, by what they got.
    pub peer_questions: Family<Outcome, Counter>,
    /// Bodies that a peer broke off, by what became of them.
    pub peer_bodies: Family<Outcome, Counter>,
    pub peer_up: Family<PeerName, Gauge>,
    pub servers: ServerMetrics,
    pub purges: Gauge,
    pub purged_gone: Gauge,
    pub purged_soft: Gauge,
}

/// Seconds until the head of an upstream's response.
#[derive(Clone, Debug)]
pub struct Wait(pub Histogram);

impl Default for Wait {
    fn default() -> Self {
        Self(Histogram::new(WAIT_S))
    }
}

impl ProxyMetrics {
    pub fn register(&self, registry: &mut Registry) {
        let proxy = registry.sub_registry_with_prefix("souk_proxy");
        proxy.register("requests", "Requests by where their answer came from", self.requests.clone());
        proxy.register("passes", "Requests answered past the cache, by reason", self.passes.clone());
        proxy.register(
            "refusals",
            "Requests that the node refused or failed, by name",
            self.refusals.clone(),
        );
        proxy.register(
            "upstream_errors",
            "Requests to the upstream that failed, by name",
            self.upstream_errors.clone(),
        );
        proxy.register("fill_bytes", "Bytes fetched to be stored", self.fill_bytes.clone());
        proxy.register(
            "fills_broken",
            "Fetches that broke off or had the wrong length",
            self.fills_broken.clone(),
        );
        proxy.register(
            "upstream_wait_seconds",
            "Seconds until the head of the upstream's response",
            self.upstream_wait.0.clone(),
        );
        proxy.register("stored_bytes", "Bytes of stored responses", self.stored_bytes.clone());
        proxy.register("stored_keys", "Keys with stored responses", self.stored_keys.clone());
        proxy.register(
            "filling_bytes",
            "Bytes of responses that are still arriving",
            self.filling_bytes.clone(),
        );
        proxy.register(
            "in_file_bytes",
            "Bytes of stored responses that stand in a file in memory too, from which they are sent in clear text",
            self.in_file_bytes.clone(),
        );
        proxy.register("purges", "Purges obeyed since start", self.purges.clone());
        proxy.register(
            "purged_gone",
            "Stored responses that a look-up found purged",
            self.purged_gone.clone(),
        );
        proxy.register(
            "purged_soft",
            "Stored responses that a look-up found softly purged",
            self.purged_soft.clone(),
        );
        proxy.register(
            "waiting",
            "Requests that wait for the head of a response that another request is fetching",
            self.waiting.clone(),
        );
        proxy.register(
            "upstream_in_flight",
            "Requests that the upstream is answering",
            self.upstream_in_flight.clone(),
        );
        self.press.register(proxy);
        proxy.register(
            "slices",
            "Slices of large responses that answers needed: hit, fetch, changed, failed",
            self.slices.clone(),
        );
        proxy.register(
            "retries",
            "Requests sent once more, by what the try before met",
            self.retries.clone(),
        );
        proxy.register(
            "retries_denied",
            "Requests not sent once more, by what was missing",
            self.retries_denied.clone(),
        );
        proxy.register("hedges", "Requests sent to a second server to be sooner", self.hedges.clone());
        proxy.register(
            "peer_fills",
            "Fills that a peer might have shared, by what came of it",
            self.peer_fills.clone(),
        );
        proxy.register(
            "peer_questions",
            "Questions of peers, by where their answer came from, or why they were sent to the upstream",
            self.peer_questions.clone(),
        );
        proxy.register(
            "peer_bodies",
            "Bodies that a peer broke off: ended by the upstream (mended), or not (broken)",
            self.peer_bodies.clone(),
        );
        proxy.register("peer_up", "Whether a peer is there", self.peer_up.clone());
        self.servers.register(proxy);
    }

    /// What a process counts of its access log and its traces, if `souk proxy` is all of it.
    pub(crate) fn register_watchers(&self, registry: &mut Registry) {
        self.traces.register(registry);
        registry.sub_registry_with_prefix("souk_proxy").register(
            "access_lines_dropped",
            "Lines for which the access log had no room since it was opened",
            self.access_dropped.clone(),
        );
    }

    pub(crate) fn set_access_dropped(&self, lines: u64) {
        self.access_dropped.set(i64::try_from(lines).unwrap_or(i64::MAX));
    }

    /// Brings `requests` up to date.
    pub(super) fn sample(&self) {
        self.requests.get_or_create(&Outcome { outcome: HIT }).inc_by(self.hits.take());
    }

    pub(super) fn outcome(&self, outcome: &'static str) {
        if outcome == HIT {
            return self.hits.inc();
        }
        self.requests.get_or_create(&Outcome { outcome }).inc();
    }

    pub(super) fn pass(&self, reason: &'static str) {
        self.outcome("pass");
        self.passes.get_or_create(&Reason { reason }).inc();
    }

    pub(crate) fn refusal(&self, reason: &'static str) {
        self.outcome("refused");
        self.refusals.get_or_create(&Reason { reason }).inc();
    }

    pub(super) fn upstream_error(&self, reason: &'static str) {
        self.upstream_errors.get_or_create(&Reason { reason }).inc();
    }

    pub(super) fn retry(&self, reason: &'static str) {
        self.retries.get_or_create(&Reason { reason }).inc();
    }

    pub(super) fn retry_denied(&self, reason: &'static str) {
        self.retries_denied.get_or_create(&Reason { reason }).inc();
    }

    pub(super) fn peer(&self, outcome: &'static str) {
        self.peer_fills.get_or_create(&Outcome { outcome }).inc();
    }

    pub(super) fn peer_question(&self, outcome: &'static str) {
        self.peer_questions.get_or_create(&Outcome { outcome }).inc();
    }

    pub(super) fn peer_body(&self, outcome: &'static str) {
        self.peer_bodies.get_or_create(&Outcome { outcome }).inc();
    }

    pub(super) fn set_peer_up(&self, peer: &str, is_up: bool) {
        self.peer_up.get_or_create(&PeerName { peer: peer.to_owned() }).set(is_up.into());
    }

    pub(super) fn slice(&self, outcome: &'static str) {
        self.slices.get_or_create(&Outcome { outcome }).inc();
    }

    pub(super) fn hedge(&self, outcome: &'static str) {
        self.hedges.get_or_create(&Outcome { outcome }).inc();
    }
}
