//! The journal of the node's sites: what their plugins did, on its way to the merchants.
//!
//! ```text
//! a plugin's call ──▶ Scribe (of the request) ──▶ Queues (per site, bounded) ──▶ carry ──▶ region
//! a recording     ──▶ Recordings (bounded)    ─────────────────────────────────▶ carry ──▶ region
//! ```
//!
//! Whoever writes here never waits and never fails: what there is no room for is counted, in the journal itself and in the
//! metrics. While the region is away each site keeps its newest entries.
//!
//! What this module refuses to know: what a plugin is, who reads, how long the region keeps. Written by
//! [`crate::shelf::Shelf`]; its tasks are started by [`crate::node`].

mod carry;
mod prints;
mod queue;
mod recordings;

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use souk_commerce::id::NodeId;
use souk_commerce::journal::{CallId, Entry, RecordingBlob, Source};
use souk_sandbox::record::{Recorder, Recording};
use tokio::sync::Notify;

pub use prints::Prints;
use queue::Queues;
use recordings::Recordings;

/// A handle; clones share the queues.
#[derive(Debug, Clone)]
pub struct Journal(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    node: NodeId,
    /// One lock for all sites. It is held for the push of one entry, and twenty times a second for taking out a batch.
    queues: Mutex<Queues>,
    recordings: Mutex<Recordings>,
    entries_wait: Notify,
    recordings_wait: Notify,
    started: Instant,
    metrics: JournalMetrics,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Fate {
    outcome: &'static str,
}

/// What the operator sees of the journal. No label names a site: there are thousands.
#[derive(Debug, Clone, Default)]
pub struct JournalMetrics {
    entries: Family<Fate, Counter>,
    recordings: Family<Fate, Counter>,
    bytes: Gauge,
}

impl JournalMetrics {
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "souk_journal_entries",
            "Entries of plugins' journals: kept, too_fast (above the site's rate), displaced (by newer ones, while the region \
             is away), carried, lost (the region would not have them)",
            metrics.entries.clone(),
        );
        registry.register(
            "souk_journal_recordings",
            "Recorded calls: kept, dropped (no room), carried, lost (the region would not have them)",
            metrics.recordings.clone(),
        );
        registry.register(
            "souk_journal_bytes",
            "Bytes of entries that wait for the region",
            metrics.bytes.clone(),
        );
        metrics
    }

    fn entries(&self, outcome: &'static str, count: u64) {
        self.entries.get_or_create(&Fate { outcome }).inc_by(count);
    }

    fn recordings(&self, outcome: &'static str) {
        self.recordings.get_or_create(&Fate { outcome }).inc();
    }
}

impl Journal {
    pub fn new(node: NodeId, metrics: JournalMetrics) -> Self {
        Self(Arc::new(Shared {
            node,
            queues: Mutex::new(Queues::new(node)),
            recordings: Mutex::default(),
            entries_wait: Notify::new(),
            recordings_wait: Notify::new(),
            started: Instant::now(),
            metrics,
        }))
    }

    pub fn node(&self) -> NodeId {
        self.0.node
    }

    /// Writes an entry down. Never waits.
    pub fn write(&self, entry: Entry) {
        let shared = &*self.0;
        let now_ms = shared.elapsed_ms();
        let (taken, bytes) = {
            let mut queues = shared.queues.lock();
            (queues.push(entry, now_ms), queues.bytes())
        };
        shared.metrics.entries(if taken.kept { "kept" } else { "too_fast" }, 1);
        if taken.displaced > 0 {
            shared.metrics.entries("displaced", taken.displaced);
        }
        shared.metrics.bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        shared.entries_wait.notify_one();
    }

    /// Keeps a recorded call until the region has it, if there is room. Never waits.
    pub fn keep(&self, recording: RecordingBlob) {
        let kept = self.0.recordings.lock().push(recording);
        self.0.metrics.recordings(if kept { "kept" } else { "dropped" });
        self.0.recordings_wait.notify_one();
    }
}

impl Shared {
    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Recorder for Journal {
    fn take(&self, id: CallId, recording: Recording) {
        let source = Source {
            plugin: recording.plugin.clone(),
            release: recording.release,
            hook: Some(recording.hook),
        };
        let (site, at_ms) = (recording.site.clone(), recording.context.now_ms);
        self.keep(RecordingBlob { id, site, source, at_ms, bytes: recording.encode() });
    }
}
