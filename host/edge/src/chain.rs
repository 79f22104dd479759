//! Keeps each site's plugins ready: fetched, checked, compiled, and only then put to work.
//!
//! A new release set is prepared beside the old chain, which serves until the new one can; a set that cannot be
//! prepared leaves the old chain where it is, is counted and said aloud, and is tried again. A site whose plugins
//! were never ready is not priced without them. How a chain runs its plugins is `souk_sandbox`'s.
//!
//! Called by the API ([`Chains::of`]); its task is started by [`crate::node`].

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use souk_commerce::id::{Digest, PluginName, SiteId};
use souk_commerce::product::Listed;
use souk_commerce::site::ReleaseSet;
use souk_sandbox::{Chain, HookEngine, HookPlugin, Level, SiteData};
use tokio_util::sync::CancellationToken;

use crate::blobs::{BlobError, Blobs};
use crate::state::{Replica, Site};
use crate::telemetry::Telemetry;

/// Pause before a set that could not be prepared is tried again, doubling up to the second value.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// A chain that kept a thread longer than this is run where it cannot keep others waiting …
const SLOW: Duration = Duration::from_millis(2);
/// … for so long after.
const SLOW_FOR_MS: u64 = 10_000;

/// A site's chain in use.
pub struct SiteChain {
    pub version: u64,
    chain: Chain,
    components: Vec<Digest>,
    slow_until_ms: AtomicU64,
}

impl std::fmt::Debug for SiteChain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SiteChain").field("version", &self.version).finish_non_exhaustive()
    }
}

impl SiteChain {
    fn empty() -> Self {
        Self { version: 0, chain: Chain::empty(), components: Vec::new(), slow_until_ms: AtomicU64::new(0) }
    }

    /// Runs `f` on the chain.
    ///
    /// Plugins run on the caller's thread, which is a worker of the reactor: right for the 50 us of a healthy chain.
    /// One that has been slow lately runs in a place from which the worker's other tasks have been taken away.
    pub fn run<T>(&self, now_ms: u64, f: impl FnOnce(&Chain) -> T) -> T {
        let started = Instant::now();
        let slow = self.slow_until_ms.load(Ordering::Relaxed) > now_ms;
        let value =
            if slow && may_block() { tokio::task::block_in_place(|| f(&self.chain)) } else { f(&self.chain) };
        if started.elapsed() > SLOW {
            self.slow_until_ms.store(now_ms + SLOW_FOR_MS, Ordering::Relaxed);
        }
        value
    }

    pub fn has(&self, hook: souk_commerce::site::Hook) -> bool {
        self.chain.has(hook)
    }
}

fn may_block() -> bool {
    tokio::runtime::Handle::try_current()
        .is_ok_and(|runtime| runtime.runtime_flavor() == tokio::runtime::RuntimeFlavor::MultiThread)
}

/// Why a release set is not in use.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PrepareError {
    #[error("plugin {plugin}: {source}")]
    Blob { plugin: PluginName, source: BlobError },
    #[error("plugin {plugin} is refused: {why}")]
    Refused { plugin: PluginName, why: String },
}

/// A set that could not be prepared, and when it may be tried again. Each site has its own pause: another site's
/// news is no reason to compile a refused plugin once more.
#[derive(Debug, Clone)]
struct Failure {
    version: u64,
    why: String,
    pause: Duration,
    retry_at: Instant,
}

impl Failure {
    fn after(before: Option<&Self>, version: u64, why: String, now: Instant) -> Self {
        let before = before.filter(|failure| failure.version == version);
        let pause = before.map_or(RETRY_FIRST, |failure| (failure.pause * 2).min(RETRY_MAX));
        Self { version, why, pause, retry_at: now + pause }
    }

    /// How long the set `version` must wait yet; a newer set need not.
    fn wait(&self, version: u64, now: Instant) -> Option<Instant> {
        (self.version == version && now < self.retry_at).then_some(self.retry_at)
    }
}

/// What a site waits for.
#[derive(Debug, Clone)]
pub struct Pending {
    pub site: SiteId,
    pub wanted: u64,
    pub running: Option<u64>,
    pub why: Option<String>,
}

/// All chains of the node.
pub struct Chains {
    engine: HookEngine,
    metrics: souk_sandbox::Metrics,
    blobs: Blobs,
    ready: ArcSwap<HashMap<SiteId, Arc<SiteChain>>>,
    loaded: Mutex<HashMap<Digest, Weak<HookPlugin>>>,
    failed: Mutex<HashMap<SiteId, Failure>>,
    none: Arc<SiteChain>,
    telemetry: Arc<Telemetry>,
}

impl std::fmt::Debug for Chains {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chains").field("ready", &self.ready.load().len()).finish_non_exhaustive()
    }
}

impl Chains {
    pub fn new(
        engine: HookEngine,
        metrics: souk_sandbox::Metrics,
        blobs: Blobs,
        telemetry: Arc<Telemetry>,
    ) -> Self {
        Self {
            engine,
            metrics,
            blobs,
            ready: ArcSwap::default(),
            loaded: Mutex::default(),
            failed: Mutex::default(),
            none: Arc::new(SiteChain::empty()),
            telemetry,
        }
    }

    /// The chain to use for a site now; none while the plugins it needs were never ready.
    pub fn of(&self, site: &Site) -> Option<Arc<SiteChain>> {
        match &site.releases {
            None => Some(self.none.clone()),
            Some(set) if set.releases.is_empty() => Some(self.none.clone()),
            Some(_) => self.ready.load().get(&site.id).cloned(),
        }
    }

    /// Sites whose newest release set is not the one in use.
    pub fn pending(&self, replica: &Replica) -> Vec<Pending> {
        let ready = self.ready.load();
        let failed = self.failed.lock();
        let world = replica.world();
        let waiting = world.sites().filter_map(|site| {
            let wanted = site.releases.as_ref().filter(|set| !set.releases.is_empty())?.version;
            let running = ready.get(&site.id).map(|chain| chain.version);
            let why = failed.get(&site.id).filter(|f| f.version == wanted).map(|f| f.why.clone());
            (running != Some(wanted)).then(|| Pending { site: site.id.clone(), wanted, running, why })
        });
        waiting.collect()
    }

    /// The release set in use at each site.
    pub fn running(&self) -> Vec<(SiteId, u64)> {
        self.ready.load().iter().map(|(site, chain)| (site.clone(), chain.version)).collect()
    }

    /// Components that must stay on the disk: with them the node starts again while its region is away.
    pub fn components(&self) -> HashSet<Digest> {
        self.ready.load().values().flat_map(|chain| chain.components.iter().copied()).collect()
    }

    /// Follows the release log until shutdown.
    pub async fn keep(self: Arc<Self>, replica: Arc<Replica>, shutdown: CancellationToken) {
        let mut changed = replica.changed();
        loop {
            changed.mark_unchanged();
            let retry_at = self.catch_up(&replica).await;
            let wake = async {
                match retry_at {
                    None => changed.changed().await.is_ok(),
                    Some(at) => {
                        !matches!(tokio::time::timeout_at(at.into(), changed.changed()).await, Ok(Err(_)))
                    }
                }
            };
            if shutdown.run_until_cancelled(wake).await != Some(true) {
                return;
            }
        }
    }

    /// Prepares every set that is not in use yet and may be tried. Says when the next one may, if one is left.
    async fn catch_up(&self, replica: &Replica) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        let mut note = |at: Instant| next = Some(next.map_or(at, |next| next.min(at)));
        for Pending { site, .. } in self.pending(replica) {
            let Some(set) = replica.world().site(&site).and_then(|s| s.releases.clone()) else { continue };
            let wait = self.failed.lock().get(&site).and_then(|f| f.wait(set.version, Instant::now()));
            if let Some(at) = wait {
                note(at);
                continue;
            }
            match self.prepare(&set).await {
                Ok(chain) => {
                    let mut ready = HashMap::clone(&self.ready.load());
                    ready.insert(site.clone(), Arc::new(chain));
                    self.ready.store(Arc::new(ready));
                    self.failed.lock().remove(&site);
                    self.telemetry.chain_swaps.inc();
                    tracing::info!(%site, version = set.version, plugins = set.releases.len(), "a chain is in use");
                }
                Err(error) => {
                    self.telemetry.chain_failures.inc();
                    let why = error.to_string();
                    tracing::warn!(%site, version = set.version, why, "a chain cannot be prepared; the one before stays");
                    let mut failed = self.failed.lock();
                    let failure = Failure::after(failed.get(&site), set.version, why, Instant::now());
                    note(failure.retry_at);
                    failed.insert(site, failure);
                }
            }
        }
        next
    }

    async fn prepare(&self, set: &ReleaseSet) -> Result<SiteChain, PrepareError> {
        let mut steps = Vec::with_capacity(set.releases.len());
        for release in &set.releases {
            steps.push((release.clone(), self.plugin(&release.plugin, release.component).await?));
        }
        let components = set.releases.iter().map(|r| r.component).collect();
        let chain = Chain::with_metrics(&set.site, steps, &self.metrics);
        Ok(SiteChain { version: set.version, chain, components, slow_until_ms: AtomicU64::new(0) })
    }

    /// A component, compiled once for all sites and releases that use it. Called from one task only.
    async fn plugin(&self, plugin: &PluginName, digest: Digest) -> Result<Arc<HookPlugin>, PrepareError> {
        if let Some(loaded) = self.loaded.lock().get(&digest).and_then(Weak::upgrade) {
            return Ok(loaded);
        }
        let component = self
            .blobs
            .load(digest)
            .await
            .map_err(|source| PrepareError::Blob { plugin: plugin.clone(), source })?;
        let engine = self.engine.clone();
        let compiled = tokio::task::spawn_blocking(move || engine.load(&component)).await;
        let refused = |why: String| PrepareError::Refused { plugin: plugin.clone(), why };
        let loaded = compiled.map_err(|e| refused(e.to_string()))?.map_err(|e| refused(e.to_string()))?;
        let mut all = self.loaded.lock();
        all.retain(|_, weak| weak.strong_count() > 0);
        all.insert(digest, Arc::downgrade(&loaded));
        Ok(loaded)
    }
}

/// What plugins may look up: the site as it was when the request arrived.
pub struct Shelf(Arc<Site>);

impl Shelf {
    pub fn of(site: &Arc<Site>) -> Arc<dyn SiteData> {
        Arc::new(Self(site.clone()))
    }
}

impl SiteData for Shelf {
    fn product(&self, sku: &str) -> Option<Listed> {
        self.0.listed(&sku.parse().ok()?)
    }

    fn kv(&self, key: &str) -> Option<Vec<u8>> {
        Some(self.0.settings.as_ref()?.kv.get(key)?.as_bytes().to_vec())
    }

    fn log(&self, plugin: &PluginName, level: Level, text: &str) {
        let site = &self.0.id;
        match level {
            Level::Debug => tracing::debug!(target: "plugin", %site, %plugin, "{text}"),
            Level::Info => tracing::info!(target: "plugin", %site, %plugin, "{text}"),
            Level::Warn => tracing::warn!(target: "plugin", %site, %plugin, "{text}"),
            // A merchant's error is news to the merchant, not an alarm of the node.
            Level::Error => tracing::warn!(target: "plugin", %site, %plugin, error = true, "{text}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_set_is_tried_again_at_its_time_and_a_newer_one_at_once() {
        let start = Instant::now();
        let first = Failure::after(None, 7, "no".to_owned(), start);
        assert_eq!(first.wait(7, start), Some(start + RETRY_FIRST));
        assert_eq!(first.wait(8, start), None, "a newer set");
        assert_eq!(first.wait(7, start + RETRY_FIRST), None, "its time has come");
        let again = |before: &Failure, version| Failure::after(Some(before), version, "no".to_owned(), start);
        assert_eq!(again(&first, 7).pause, RETRY_FIRST * 2);
        assert_eq!(again(&first, 8).pause, RETRY_FIRST, "a newer set begins anew");
        let many = (0..20).fold(first, |before, _| again(&before, 7));
        assert_eq!(many.pause, RETRY_MAX);
    }
}
