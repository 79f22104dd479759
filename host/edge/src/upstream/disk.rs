//! The disk tier of the upstreams' cache: from its settings to its metrics, and the operator's ear.
//!
//! The only place where its metric names stand. What it does is the cache crate's.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use souk_cache::disk::{Counts, DiskError, Notice, Phase};
use souk_cache::shelf::MemoryShelf;
use souk_cache::{Cache, CacheLimits, DiskLimits};
use souk_config::proxy::DiskConfig;

/// A cache in memory, over a folder if there is one. Several sites have it together where one may have a part of the fills
/// only.
pub(super) fn cache(
    shelf: MemoryShelf,
    limits: CacheLimits,
    site_fill_bytes_max: u64,
    disk: Option<&DiskConfig>,
) -> Result<Cache, DiskError> {
    let shelf = Box::new(shelf);
    let Some(DiskConfig { dir, bytes_max }) = disk else {
        return Ok(Cache::shared(shelf, limits, site_fill_bytes_max));
    };
    let own = DiskLimits {
        bytes_max: *bytes_max,
        object_bytes_max: limits.object_bytes_max,
        shared: site_fill_bytes_max < limits.fill_bytes_max,
    };
    Cache::with_disk(shelf, limits, site_fill_bytes_max, dir, own, Box::new(hear))
}

fn hear(notice: Notice) {
    match notice {
        Notice::Opened { .. } | Notice::Answers => tracing::info!("{notice}"),
        Notice::Busy | Notice::Damaged { .. } | Notice::Full | Notice::Hangs { .. } => {
            tracing::warn!("{notice}");
        }
        Notice::Failed { .. } | Notice::Left | Notice::Unwritten { .. } | Notice::Stuck { .. } => {
            tracing::error!("{notice}");
        }
    }
}

/// What the disk tier counts, as it was at the last sample.
#[derive(Debug, Default)]
pub(super) struct DiskMetrics {
    on: Gauge,
    aside: Gauge,
    bytes: Gauge,
    objects: Gauge,
    segments: Gauge,
    queued: Gauge,
    queued_bytes: Gauge,
    hits: Counter,
    misses: Counter,
    purged: Counter,
    written: Counter,
    written_bytes: Counter,
    dropped: Counter,
    reads_dropped: Counter,
    late: Counter,
    set_aside: Counter,
    unpersisted: Counter,
    wipes: Counter,
    corrupt: Counter,
    errors: Counter,
}

impl DiskMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let disk = registry.sub_registry_with_prefix("souk_proxy_disk");
        disk.register("on", "1 if the disk tier works, 0 if it is off or not open yet", self.on.clone());
        disk.register(
            "aside",
            "1 while the disk does not answer and is not asked but now and then",
            self.aside.clone(),
        );
        disk.register("bytes", "Bytes of its files", self.bytes.clone());
        disk.register("objects", "Stored responses on the disk", self.objects.clone());
        disk.register("segments", "Its files", self.segments.clone());
        disk.register("queued", "Records that wait to be written", self.queued.clone());
        disk.register("queued_bytes", "Bytes that wait to be written", self.queued_bytes.clone());
        disk.register("hits", "Keys that were read into memory for a request", self.hits.clone());
        disk.register("misses", "Keys that the disk should have had and did not", self.misses.clone());
        disk.register("purged", "Responses that were purged by the time they were read", self.purged.clone());
        disk.register("written", "Records written", self.written.clone());
        disk.register("written_bytes", "Bytes written", self.written_bytes.clone());
        disk.register("dropped", "Responses not written, for too many waited", self.dropped.clone());
        disk.register("reads_dropped", "Reads not tried, for too many waited", self.reads_dropped.clone());
        disk.register(
            "late",
            "Waits for a read that were given up after a second: the upstream was asked instead",
            self.late.clone(),
        );
        disk.register(
            "set_aside",
            "Times that it was set aside, for nothing came back",
            self.set_aside.clone(),
        );
        disk.register(
            "unpersisted",
            "Removals and purges that were answered without the promise that a restart knows of them",
            self.unpersisted.clone(),
        );
        disk.register("wipes", "Times that all of it was given up at once", self.wipes.clone());
        disk.register("corrupt", "Records whose checksums did not fit", self.corrupt.clone());
        disk.register("errors", "Writes and reads that the disk refused", self.errors.clone());
    }

    pub(super) fn sample(&self, counts: Counts) {
        let set = |gauge: &Gauge, value: u64| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        set(&self.on, u64::from(counts.phase == Phase::On));
        set(&self.aside, u64::from(counts.is_aside));
        set(&self.bytes, counts.bytes);
        set(&self.objects, counts.objects);
        set(&self.segments, counts.segments);
        set(&self.queued, counts.queued);
        set(&self.queued_bytes, counts.queued_bytes);
        // Two samples at once may count a difference twice, so they are set and not added to: each only goes up.
        let count = |counter: &Counter, value: u64| {
            counter.inner().fetch_max(value, std::sync::atomic::Ordering::Relaxed);
        };
        count(&self.hits, counts.hits);
        count(&self.misses, counts.misses);
        count(&self.purged, counts.purged);
        count(&self.written, counts.written);
        count(&self.written_bytes, counts.written_bytes);
        count(&self.dropped, counts.dropped);
        count(&self.reads_dropped, counts.reads_dropped);
        count(&self.late, counts.late);
        count(&self.set_aside, counts.set_aside);
        count(&self.unpersisted, counts.unpersisted);
        count(&self.wipes, counts.wipes);
        count(&self.corrupt, counts.corrupt);
        count(&self.errors, counts.errors);
    }
}
