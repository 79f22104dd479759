//! What all routes of a process share: one cache in memory and on the disk, who encodes, and what is counted.
//!
//! Owns the beginning and the end of it, and the purge. Who asks it is [`super::proxy`]'s business.

use std::sync::Arc;
use std::time::Instant;

use prometheus_client::registry::Registry;
use souk_cache::disk::DiskError;
use souk_cache::shelf::MemoryShelf;
use souk_cache::{Cache, CacheLimits, Key, Purge};
use souk_config::proxy::DiskConfig;
use thiserror::Error;

use super::client::Upstream;
use super::disk::{self, DiskMetrics};
use super::error::SetupError;
use super::press::Press;
use super::sliced;
use super::telemetry::{ProxyMetrics, Seen};
use crate::http::now_ms;
use crate::per_site::{Of, PerSite};
use crate::trace::Watcher;

/// Memory for responses that are still arriving: an eighth of what is stored.
const FILL_SHARE: u64 = 8;
/// Where several sites share the cache, no one's responses that are arriving have more than this part of that memory: one
/// object of the largest size, at least.
const SITE_FILL_SHARE: u64 = 2;

/// What it may take.
pub(crate) struct Room {
    pub(crate) memory_bytes_max: u64,
    /// Of this, what one site may have.
    pub(crate) site_bytes_max: u64,
    pub(crate) object_bytes_max: u64,
    /// What is larger is kept in slices.
    pub(crate) slice_from_bytes: u64,
    pub(crate) disk: Option<DiskConfig>,
    /// Whether any route wants encodings.
    pub(crate) compress: bool,
}

/// Why a cache or an upstream does not start.
#[derive(Debug, Error)]
pub enum ProxyError {
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error("cannot start the thread that encodes: {0}")]
    Press(std::io::Error),
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// See the module. Clones are the same.
#[derive(Clone)]
pub(crate) struct Kept(Arc<Inner>);

struct Inner {
    cache: Cache,
    metrics: ProxyMetrics,
    /// Where encodings are made; none where they are not asked for.
    press: Option<Press>,
    disk_metrics: DiskMetrics,
    /// How this process signs what it forwards.
    own_id: String,
    watcher: Watcher,
    /// Where there are several sites.
    per_site: Option<PerSite>,
    object_bytes_max: u64,
    slice_from_bytes: u64,
    /// Keys whose upstream says that it answers ranges, and does not.
    unsliceable: moka::sync::Cache<Key, ()>,
}

impl Kept {
    /// `own_id`: a name of its own for each process, so that a chain of two proxies is no loop.
    pub(crate) fn open(
        room: &Room,
        metrics: ProxyMetrics,
        own_id: String,
        watcher: Watcher,
        per_site: Option<PerSite>,
    ) -> Result<Self, ProxyError> {
        let limits = CacheLimits {
            memory_bytes_max: room.memory_bytes_max,
            object_bytes_max: room.object_bytes_max,
            // At least two objects, so that one large fill does not turn the next one into a relay.
            fill_bytes_max: (room.memory_bytes_max / FILL_SHARE).max(room.object_bytes_max.saturating_mul(2)),
        };
        let shelf = MemoryShelf::shared(room.memory_bytes_max, room.site_bytes_max);
        let site_fill_bytes_max = if room.site_bytes_max < room.memory_bytes_max {
            limits.fill_bytes_max / SITE_FILL_SHARE
        } else {
            limits.fill_bytes_max
        };
        let cache = disk::cache(shelf, limits, site_fill_bytes_max, room.disk.as_ref())?;
        let press = room.compress.then(|| Press::start(cache.clone(), metrics.press.clone()));
        let press = press.transpose().map_err(ProxyError::Press)?;
        let disk_metrics = DiskMetrics::default();
        Ok(Self(Arc::new(Inner {
            cache,
            metrics,
            press,
            disk_metrics,
            own_id,
            watcher,
            per_site,
            object_bytes_max: room.object_bytes_max,
            slice_from_bytes: room.slice_from_bytes,
            unsliceable: sliced::unsliceable(),
        })))
    }

    pub(crate) fn own_id() -> String {
        format!("souk-{:016x}", rand::random::<u64>())
    }

    pub(super) fn cache(&self) -> &Cache {
        &self.0.cache
    }

    pub(super) fn object_bytes_max(&self) -> u64 {
        self.0.object_bytes_max
    }

    pub(super) fn slice_from_bytes(&self) -> u64 {
        self.0.slice_from_bytes
    }

    pub(super) fn unsliceable(&self) -> &moka::sync::Cache<Key, ()> {
        &self.0.unsliceable
    }

    pub(crate) fn metrics(&self) -> &ProxyMetrics {
        &self.0.metrics
    }

    pub(super) fn press(&self) -> Option<&Press> {
        self.0.press.as_ref()
    }

    pub(super) fn signs_as(&self) -> &str {
        &self.0.own_id
    }

    pub(super) fn watcher(&self) -> &Watcher {
        &self.0.watcher
    }

    /// Counts an answer, and why it is what it is.
    pub(super) fn count(&self, site: &str, outcome: &'static str, reason: Option<&'static str>) {
        match (outcome, reason) {
            ("pass", Some(reason)) => self.0.metrics.pass(reason),
            ("refused", Some(reason)) => self.0.metrics.refusal(reason),
            _ => self.0.metrics.outcome(outcome),
        }
        if let Some(sites) = &self.0.per_site {
            sites.count(site, Of::Upstreams, outcome, reason);
        }
    }

    /// Registers what is counted. [`Kept::sample`] before each reading brings the gauges up to date.
    pub(crate) fn register(&self, registry: &mut Registry) {
        self.0.metrics.register(registry);
        if self.0.cache.disk().is_some() {
            self.0.disk_metrics.register(registry);
        }
    }

    pub(crate) fn sample<'a>(&self, upstreams: impl Iterator<Item = &'a Upstream>) {
        let Inner { cache, metrics, disk_metrics, .. } = &*self.0;
        metrics.sample();
        let size = cache.size();
        let count = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        metrics.stored_bytes.set(count(size.bytes));
        metrics.stored_keys.set(count(size.keys));
        metrics.filling_bytes.set(count(cache.filling_bytes()));
        metrics.in_file_bytes.set(count(cache.in_file_bytes()));
        metrics.waiting.set(count(cache.waiting() as u64));
        let purged = cache.purged();
        metrics.purges.set(count(purged.steps));
        metrics.purged_gone.set(count(purged.entries_gone));
        metrics.purged_soft.set(count(purged.entries_softened));
        let mut in_flight = 0;
        // One server may stand behind several routes.
        let mut servers = Seen::default();
        for upstream in upstreams {
            in_flight += upstream.in_flight() as u64;
            upstream.see(&mut servers);
        }
        metrics.upstream_in_flight.set(count(in_flight));
        metrics.servers.show(&servers);
        if let Some(disk) = cache.disk() {
            disk_metrics.sample(disk.counts());
        }
    }

    /// Resolves when what an earlier process left on the disk is at hand, or cannot be for now.
    pub(crate) async fn ready(&self) {
        if let Some(disk) = self.0.cache.disk() {
            let started = Instant::now();
            disk.ready().await;
            let took_ms = started.elapsed().as_millis();
            tracing::info!(took_ms, phase = ?disk.counts().phase, "the disk tier was opened");
        }
    }

    /// Writes what waits for the disk, and lets go of its folder. Nothing is stored there afterwards.
    pub(crate) async fn close(&self) {
        let kept = self.clone();
        let closed = tokio::task::spawn_blocking(move || {
            if let Some(disk) = kept.0.cache.disk() {
                disk.close();
            }
        });
        if closed.await.is_err() {
            tracing::error!("the disk tier ended in disorder");
        }
    }

    /// Forgets, in one step, for every look-up that begins after this. Returns the step's number.
    pub(crate) fn purge(&self, purges: &[Purge]) -> u64 {
        self.0.cache.purge(now_ms(), purges)
    }

    /// Resolves when no restart brings back what was purged. False where that cannot be promised: not while another
    /// process still has the folder of stored responses, nor where its disk hangs or failed.
    pub(crate) async fn is_durable(&self) -> bool {
        self.0.cache.persisted().await
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::header::CACHE_CONTROL;
    use http::{HeaderMap, HeaderValue, Method, Response};
    use souk_cache::freshness::Exchanged;
    use souk_cache::{Asked, FillWriter, Lookup, PassReason, Scheme, Stored};

    use super::*;

    const MIB: u64 = 1 << 20;

    /// Begins to store a response of a site, which has sent so much already.
    async fn begin(kept: &Kept, site: &str, target: &str, bytes: u64) -> Result<FillWriter, PassReason> {
        let key = Key::new(site, Scheme::Http, "shop.example", target).expect("a key");
        let asked = Asked::new(key, Method::GET, HeaderMap::new());
        let Lookup::Miss(permit) = kept.cache().look_up(0, &asked).await else { panic!("a new target") };
        let mut head = Response::new(()).into_parts().0;
        head.headers.insert(CACHE_CONTROL, HeaderValue::from_static("max-age=60"));
        match permit.store(&head, &asked, Exchanged { asked_ms: 0, answered_ms: 0 }) {
            Stored::Filling(_, mut writer) => {
                writer.push(&Bytes::from(vec![0; usize::try_from(bytes).expect("a few MiB")]));
                Ok(writer)
            }
            Stored::Pass(reason) => Err(reason),
            Stored::Unfitting(_) => panic!("no part was offered"),
        }
    }

    #[tokio::test]
    async fn one_sites_slow_responses_leave_memory_for_anothers_and_one_alone_has_all() {
        let dir = tempfile::tempdir().expect("a folder");
        for site_bytes_max in [32 * MIB, 64 * MIB] {
            let room = Room {
                memory_bytes_max: 64 * MIB,
                site_bytes_max,
                object_bytes_max: 8 * MIB,
                slice_from_bytes: 8 * MIB,
                disk: Some(DiskConfig { dir: dir.path().join("responses"), bytes_max: 64 * MIB }),
                compress: false,
            };
            let own_id = "souk-test".to_owned();
            let kept = Kept::open(&room, ProxyMetrics::default(), own_id, Watcher::default(), None);
            let kept = kept.expect("it opens");
            let one = begin(&kept, "loud", "/1", 8 * MIB).await.expect("room");
            let two = begin(&kept, "loud", "/2", 8 * MIB).await;
            let is_shared = site_bytes_max < 64 * MIB;
            assert_eq!(two.as_ref().err(), is_shared.then_some(&PassReason::FillMemory));
            let other = begin(&kept, "quiet", "/1", MIB).await;
            assert_eq!(other.is_ok(), is_shared, "{:?}", other.err());
            drop((one, two));
            kept.close().await;
        }
    }
}
