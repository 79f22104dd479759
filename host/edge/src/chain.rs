//! Keeps each site's plugins ready: fetched, checked, compiled, and only then put to work.
//!
//! A new release set is prepared beside the old chain, which serves until the new one can; a set that cannot be
//! prepared leaves the old chain where it is, is counted and said aloud, and is tried again. A site whose plugins
//! were never ready is not priced without them. A set that the region has not sealed, or that is older than one which this
//! node has had ([`floors`]), is never in use, an empty one neither. How a chain runs its plugins is `souk_sandbox`'s.
//!
//! **In use, and in memory.** A node may have thousands of sites, of which most sleep. A set is in use when its plugins
//! were loaded once or their machine code lies on the disk; in memory are the chains used lately, within two limits, and
//! one that is not is loaded by the first request that needs it, in a millisecond or, for an interpreter, twenty. That
//! is also what makes a node that starts again ready at once: what it had compiled is in use before it listens.
//!
//! Called by the API ([`Chains::of`]); its task is started by [`crate::node`]. [`workshop`] makes chains; [`ahead`] compiles
//! what is not deployed yet.

mod ahead;
mod floors;
mod workshop;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use souk_commerce::call;
use souk_commerce::id::{Digest, PluginName, SiteId};
use souk_commerce::site::{Kind, ReleaseSet};
use souk_sandbox::Chain;
use souk_sandbox::http::HttpService;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::journal::Prints;
use crate::page_cache::PageCache;
use crate::state::{Replica, Site};
use crate::telemetry::Telemetry;

pub use floors::{FloorError, Floors};
pub use workshop::{Loaded, Plugins, PrepareError, Workshop};

/// Pause before a set that could not be prepared is tried again, doubling up to the second value …
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// … or, when it is the set's own fault, this long: a trusted key or a limit may be changed meanwhile, the set not.
const RETRY_REFUSED: Duration = Duration::from_secs(600);
/// Sets that are prepared at once. Fetching is bounded by the blobs, compiling by the loader; this bounds how far sites
/// that are slow to prepare keep back others.
const PREPARING_MAX: usize = 32;
/// How long a request waits for its site's chain to come into memory. Beyond it the chain is being compiled again, and
/// the shopper is told to come back.
const WAKE_WAIT_MAX: Duration = Duration::from_secs(2);
/// A chain that kept a thread longer than this is run where it cannot keep others waiting …
const SLOW: Duration = Duration::from_millis(2);
/// … for so long after.
const SLOW_FOR_MS: u64 = 10_000;

/// A site's chain in memory.
pub struct SiteChain {
    pub version: u64,
    chain: Chain,
    mounts: Vec<Mount>,
    slow_until_ms: AtomicU64,
}

/// An HTTP plugin on its route.
pub struct Mount {
    /// The path prefix that is its own.
    pub route: String,
    pub plugin: PluginName,
    pub release: u32,
    pub service: Arc<HttpService>,
    /// Where the end of each of its requests is written down.
    pub prints: Arc<Prints>,
}

impl std::fmt::Debug for SiteChain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SiteChain").field("version", &self.version).finish_non_exhaustive()
    }
}

impl SiteChain {
    fn empty() -> Self {
        Self::new(0, Chain::empty(), Vec::new())
    }

    fn new(version: u64, chain: Chain, mut mounts: Vec<Mount>) -> Self {
        // The longest prefix wins.
        mounts.sort_by(|a, b| b.route.len().cmp(&a.route.len()).then_with(|| a.route.cmp(&b.route)));
        Self { version, chain, mounts, slow_until_ms: AtomicU64::new(0) }
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

    /// The HTTP plugin whose route this path is, or is under: `/feed` takes `/feed` and `/feed/x`, not `/feeds`.
    pub fn mount_of(&self, path: &str) -> Option<&Mount> {
        self.mounts.iter().find(|mount| is_under(path, &mount.route))
    }
}

/// Whether a path is a route or under it, by whole segments.
pub(crate) fn is_under(path: &str, route: &str) -> bool {
    path.strip_prefix(route.trim_end_matches('/'))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn may_block() -> bool {
    tokio::runtime::Handle::try_current()
        .is_ok_and(|runtime| runtime.runtime_flavor() == tokio::runtime::RuntimeFlavor::MultiThread)
}

/// Which of a site's sets. A version alone may mean two: a region that comes back from a backup gives it out again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Edition {
    version: u64,
    number: u64,
}

impl Edition {
    fn of(set: &ReleaseSet) -> Self {
        Self { version: set.version, number: set.number }
    }
}

/// A set that could not be prepared, and when it may be tried again. Each site has its own pause: another site's
/// news is no reason to compile a refused plugin once more.
#[derive(Debug, Clone)]
struct Failure {
    of: Edition,
    why: String,
    is_final: bool,
    pause: Duration,
    retry_at: Instant,
}

impl Failure {
    fn after(before: Option<&Self>, of: Edition, error: &PrepareError, now: Instant) -> Self {
        let before = before.filter(|failure| failure.of == of);
        let is_final = error.is_final();
        let pause = if is_final {
            RETRY_REFUSED
        } else {
            before.map_or(RETRY_FIRST, |failure| (failure.pause * 2).min(RETRY_MAX))
        };
        Self { of, why: error.to_string(), is_final, pause, retry_at: now + pause }
    }

    /// How long the set must wait yet; another one need not.
    fn wait(&self, set: Edition, now: Instant) -> Option<Instant> {
        (self.of == set && now < self.retry_at).then_some(self.retry_at)
    }
}

/// What a site waits for.
#[derive(Debug, Clone)]
pub struct Pending {
    pub site: SiteId,
    pub wanted: u64,
    /// The version in use, if it is an older one of the same history. Of a lost history nothing counts as run: its versions
    /// may be above all that the region will give out for a long time.
    pub running: Option<u64>,
    pub why: Option<String>,
}

/// How much of all chains may be in memory.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    pub plugins_max: usize,
    pub code_bytes_max: usize,
}

/// A site's release set in use.
struct InUse {
    set: Arc<ReleaseSet>,
    /// None while it sleeps.
    chain: ArcSwapOption<SiteChain>,
    /// Held by whoever brings it into memory.
    waking: Arc<tokio::sync::Mutex<()>>,
    /// When it was last asked for, by [`Chains::clock`].
    used: AtomicU64,
    /// Not to be tried again before, when it could not be brought into memory.
    asleep_until: Mutex<Option<Instant>>,
}

impl InUse {
    fn new(set: Arc<ReleaseSet>, chain: Option<Arc<SiteChain>>, used: u64) -> Self {
        Self {
            set,
            chain: ArcSwapOption::from(chain),
            waking: Arc::default(),
            used: AtomicU64::new(used),
            asleep_until: Mutex::new(None),
        }
    }

    fn is_awake(&self) -> bool {
        self.chain.load().is_some()
    }
}

/// All chains of the node.
pub struct Chains {
    workshop: Workshop,
    room: Room,
    in_use: ArcSwap<HashMap<SiteId, Arc<InUse>>>,
    /// Held by whoever changes `in_use`.
    swapping: Mutex<()>,
    /// Advances with each chain that comes into memory: fine enough to tell which was used least, and nothing for
    /// requests to contend for.
    clock: AtomicU64,
    failed: Mutex<HashMap<SiteId, Failure>>,
    /// The newest set of each site that the region vouches for, in use or not yet.
    accepted: Mutex<HashMap<SiteId, Arc<ReleaseSet>>>,
    ahead: ahead::Ahead,
    none: Arc<SiteChain>,
    telemetry: Arc<Telemetry>,
    /// Told when another chain is in use, after it is.
    pages: Option<PageCache>,
    /// Moves when a set came into use or could not, and when a component was compiled ahead or could not.
    news: watch::Sender<()>,
}

impl std::fmt::Debug for Chains {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chains").field("in_use", &self.in_use.load().len()).finish_non_exhaustive()
    }
}

impl Chains {
    pub fn new(workshop: Workshop, room: Room, telemetry: Arc<Telemetry>) -> Self {
        Self {
            workshop,
            room,
            in_use: ArcSwap::default(),
            swapping: Mutex::new(()),
            clock: AtomicU64::new(1),
            failed: Mutex::default(),
            accepted: Mutex::default(),
            ahead: ahead::Ahead::default(),
            none: Arc::new(SiteChain::empty()),
            telemetry,
            pages: None,
            news: watch::Sender::new(()),
        }
    }

    /// With a cache of what the chains make.
    #[must_use]
    pub fn telling(self, pages: PageCache) -> Self {
        Self { pages: Some(pages), ..self }
    }

    /// Moves when a set came into use, or could not; and so for components that are compiled ahead.
    pub fn news(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }

    /// The chain to use for a site now; none while the plugins it needs cannot be had.
    ///
    /// Cancel safe: a chain that is on its way into memory arrives there whoever waits.
    pub async fn of(self: &Arc<Self>, site: &Site) -> Option<Arc<SiteChain>> {
        let Some(in_use) = self.in_use.load().get(&site.id).cloned() else {
            let without = match (&site.releases, self.workshop.floors.of(&site.id)) {
                (Some(set), _) if !set.releases.is_empty() => false,
                // A site that never had plugins. Of one that had, a set that was lost on the way says nothing.
                (_, None) => true,
                (None, Some(_)) => false,
                // What the region vouches for, in the moment before it is in use.
                (Some(set), Some(_)) => self.workshop.is_acceptable(set),
            };
            return without.then(|| self.none.clone());
        };
        if in_use.set.releases.is_empty() {
            return Some(self.none.clone());
        }
        let now = self.clock.load(Ordering::Relaxed);
        if in_use.used.load(Ordering::Relaxed) != now {
            in_use.used.store(now, Ordering::Relaxed);
        }
        match in_use.chain.load_full() {
            Some(chain) => Some(chain),
            None => self.wake(in_use).await,
        }
    }

    /// Whether an HTTP release is on a route of the site: by the set in use, else by the one that came.
    pub fn has_mounts(&self, site: &Site) -> bool {
        let in_use = self.in_use.load();
        let set = in_use.get(&site.id).map(|in_use| &in_use.set).or(site.releases.as_ref());
        set.is_some_and(|set| set.releases.iter().any(|release| release.kind == Kind::Http))
    }

    /// Brings a sleeping chain into memory. One request does, the others wait for it.
    async fn wake(self: &Arc<Self>, in_use: Arc<InUse>) -> Option<Arc<SiteChain>> {
        let waking = async {
            let turn = Arc::clone(&in_use.waking).lock_owned().await;
            if let Some(chain) = in_use.chain.load_full() {
                return Some(chain);
            }
            if in_use.asleep_until.lock().is_some_and(|until| Instant::now() < until) {
                return None;
            }
            // In a task of its own: the request may give up, and the next one shall find it done.
            let (this, in_use) = (Arc::clone(self), Arc::clone(&in_use));
            let woken = tokio::spawn(async move {
                let _turn = turn;
                this.bring_in(&in_use).await
            });
            woken.await.ok().flatten()
        };
        tokio::time::timeout(WAKE_WAIT_MAX, waking).await.ok().flatten()
    }

    async fn bring_in(&self, in_use: &InUse) -> Option<Arc<SiteChain>> {
        match self.workshop.build(&in_use.set).await {
            Ok(chain) => {
                let chain = Arc::new(chain);
                in_use.used.store(self.tick(), Ordering::Relaxed);
                in_use.chain.store(Some(Arc::clone(&chain)));
                self.telemetry.chain_wakes.inc();
                self.make_room();
                Some(chain)
            }
            Err(error) => {
                self.telemetry.chain_failures.inc();
                let site = &in_use.set.site;
                tracing::warn!(%site, %error, "a sleeping chain cannot be brought into memory");
                *in_use.asleep_until.lock() = Some(Instant::now() + RETRY_FIRST);
                None
            }
        }
    }

    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Puts the chains used least to sleep until the others fit. Requests that have one go on with it.
    fn make_room(&self) {
        let mut awake: Option<Vec<Arc<InUse>>> = None;
        while !self.fits(self.loaded()) {
            let awake = awake.get_or_insert_with(|| {
                let mut awake: Vec<_> =
                    self.in_use.load().values().filter(|in_use| in_use.is_awake()).cloned().collect();
                awake.sort_by_key(|in_use| std::cmp::Reverse(in_use.used.load(Ordering::Relaxed)));
                awake
            });
            // The last one stays: room for less than one chain must not mean none.
            if awake.len() <= 1 {
                return;
            }
            let Some(coldest) = awake.pop() else { return };
            coldest.chain.store(None);
            self.telemetry.chain_sleeps.inc();
        }
    }

    fn fits(&self, loaded: Loaded) -> bool {
        loaded.plugins <= self.room.plugins_max && loaded.code_bytes <= self.room.code_bytes_max
    }

    /// Half of the room is free: chains may be loaded that nobody has asked for yet.
    fn is_roomy(&self) -> bool {
        let Loaded { plugins, code_bytes } = self.loaded();
        self.fits(Loaded { plugins: plugins * 2, code_bytes: code_bytes * 2 })
    }

    /// Plugins in memory.
    pub fn loaded(&self) -> Loaded {
        self.workshop.plugins.loaded()
    }

    /// Sites whose newest release set is not the one in use.
    pub fn pending(&self, replica: &Replica) -> Vec<Pending> {
        let in_use = self.in_use.load();
        let failed = self.failed.lock();
        let world = replica.world();
        let waiting = world.sites().filter_map(|site| {
            let newest = site.releases.as_ref()?;
            let wanted = newest.version;
            let used = in_use.get(&site.id).map(|in_use| &in_use.set);
            let edition = Edition::of(newest);
            if used.is_some_and(|set| Edition::of(set) == edition) {
                return None;
            }
            let why = failed.get(&site.id).filter(|f| f.of == edition).map(|f| f.why.clone());
            let running = used.map(|set| set.version).filter(|version| *version < wanted);
            Some(Pending { site: site.id.clone(), wanted, running, why })
        });
        waiting.collect()
    }

    /// How far the node is with the components that a set announces.
    pub fn ahead(&self, set: &ReleaseSet) -> Vec<call::Ahead> {
        let edition = Edition::of(set);
        let accepted = self.accepted.lock().get(&set.site).is_some_and(|set| Edition::of(set) == edition);
        let refused = self.failed.lock().get(&set.site).filter(|f| !accepted && f.of == edition).cloned();
        self.ahead.of(set, refused.as_ref())
    }

    /// The release set in use at each site.
    pub fn running(&self) -> Vec<(SiteId, u64)> {
        self.in_use.load().iter().map(|(site, in_use)| (site.clone(), in_use.set.version)).collect()
    }

    /// Components that must stay on the disk: with them the node starts again while its region is away.
    pub fn components(&self) -> HashSet<Digest> {
        let in_use = self.in_use.load();
        let releases =
            in_use.values().flat_map(|in_use| in_use.set.releases.iter().chain(&in_use.set.standby));
        releases.map(|release| release.component).collect()
    }

    /// Takes into use, without loading them, the sets whose machine code this node made in an earlier life. Before the
    /// node listens: a shopper who comes right after a restart is not sent away.
    pub fn adopt(&self, replica: &Replica) -> usize {
        let world = replica.world();
        let _swapping = self.swapping.lock();
        let mut in_use = HashMap::clone(&self.in_use.load());
        for Pending { site, .. } in self.pending(replica) {
            let Some(set) = world.site(&site).and_then(|s| s.releases.clone()) else { continue };
            if self.workshop.has_artefacts(&set) && self.workshop.accept(&set).is_ok() {
                self.accepted.lock().insert(site.clone(), Arc::clone(&set));
                in_use.insert(site, Arc::new(InUse::new(set, None, 0)));
            }
        }
        let count = in_use.len();
        self.in_use.store(Arc::new(in_use));
        count
    }

    /// Follows the release log until shutdown.
    pub async fn keep(self: Arc<Self>, replica: Arc<Replica>, shutdown: CancellationToken) {
        let mut changed = replica.changed();
        let mut preparing: JoinSet<SiteId> = JoinSet::new();
        let mut busy: HashSet<SiteId> = HashSet::new();
        let mut ahead: JoinSet<()> = JoinSet::new();
        let warming = tokio::spawn(Arc::clone(&self).warm());
        loop {
            changed.mark_unchanged();
            let retry_at = self.begin(&replica, &mut preparing, &mut busy);
            let ahead_at = self.ahead.begin(&self, &mut ahead);
            let retry_at = retry_at.into_iter().chain(ahead_at).min();
            let pause = async {
                match retry_at {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => break,
                alive = changed.changed() => if alive.is_err() { break },
                () = pause => {}
                // Its place is free for the next.
                Some(done) = ahead.join_next() => if let Err(error) = done {
                    tracing::error!(%error, "compiling ahead of a deploy panicked");
                    self.ahead.lost();
                },
                Some(done) = preparing.join_next() => match done {
                    Ok(site) => {
                        busy.remove(&site);
                    }
                    Err(error) => {
                        tracing::error!(%error, "preparing a chain panicked");
                        // Whose it was is not known; nobody is kept out for it.
                        busy.clear();
                    }
                },
            }
        }
        // A compilation ends with the task that waits for it.
        warming.abort();
        ahead.shutdown().await;
        preparing.shutdown().await;
    }

    /// Begins to prepare every set that is not in use yet and may be tried. Says when the next one may, if one is left.
    fn begin(
        self: &Arc<Self>,
        replica: &Replica,
        preparing: &mut JoinSet<SiteId>,
        busy: &mut HashSet<SiteId>,
    ) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        for Pending { site, .. } in self.pending(replica) {
            // One set of a site at a time: a newer one is begun when the older one is done.
            if busy.contains(&site) || preparing.len() >= PREPARING_MAX {
                continue;
            }
            let Some(set) = replica.world().site(&site).and_then(|s| s.releases.clone()) else { continue };
            let wait = self.failed.lock().get(&site).and_then(|f| f.wait(Edition::of(&set), Instant::now()));
            if let Some(at) = wait {
                next = Some(next.map_or(at, |next| next.min(at)));
                continue;
            }
            busy.insert(site.clone());
            let this = Arc::clone(self);
            preparing.spawn(async move {
                this.prepare(set).await;
                site
            });
        }
        next
    }

    /// Takes a set for the newest of its site, or says why it is none.
    async fn accept(self: &Arc<Self>, set: &Arc<ReleaseSet>) -> Result<(), PrepareError> {
        let (this, accepting) = (Arc::clone(self), Arc::clone(set));
        let accepted = tokio::task::spawn_blocking(move || this.workshop.accept(&accepting)).await;
        accepted.map_err(|panicked| FloorError::Disk(panicked.to_string()))??;
        self.accepted.lock().insert(set.site.clone(), Arc::clone(set));
        Ok(())
    }

    /// Prepares one set and swaps it in. It comes into memory at once if the one before is there, so that no request
    /// waits for the change, or if there is room.
    async fn prepare(self: &Arc<Self>, set: Arc<ReleaseSet>) {
        let site = &set.site;
        let version = set.version;
        let before = self.in_use.load().get(site).cloned();
        let awake = before.as_ref().is_some_and(|in_use| in_use.is_awake());
        // News that does not concern the chain leaves it alone, its breakers included.
        let same =
            before.filter(|in_use| in_use.set.has_chain_of(&set)).map(|in_use| in_use.chain.load_full());
        let is_other = same.is_none();
        let built = match (self.accept(&set).await, same) {
            (Err(error), _) => Err(error),
            (Ok(()), Some(chain)) => Ok(chain),
            (Ok(()), None) if !awake && !self.is_roomy() && self.workshop.has_artefacts(&set) => Ok(None),
            (Ok(()), None) => self.workshop.build(&set).await.map(|chain| Some(Arc::new(chain))),
        };
        match built {
            Ok(chain) => {
                let in_use = Arc::new(InUse::new(Arc::clone(&set), chain, self.tick()));
                {
                    let _swapping = self.swapping.lock();
                    let mut all = HashMap::clone(&self.in_use.load());
                    all.insert(site.clone(), in_use);
                    self.in_use.store(Arc::new(all));
                }
                if let Some(pages) = self.pages.as_ref().filter(|_| is_other) {
                    pages.released(site);
                }
                self.failed.lock().remove(site);
                self.telemetry.chain_swaps.inc();
                tracing::info!(%site, version, plugins = set.releases.len(), "a chain is in use");
                self.make_room();
            }
            Err(error) => {
                self.telemetry.chain_failures.inc();
                tracing::warn!(%site, version, %error, "a chain cannot be prepared; the one before stays");
                let mut failed = self.failed.lock();
                let failure = Failure::after(failed.get(site), Edition::of(&set), &error, Instant::now());
                failed.insert(site.clone(), failure);
            }
        }
        self.news.send_replace(());
    }

    /// Brings what was adopted into memory while there is room, so that on a node with few sites no shopper pays for it.
    async fn warm(self: Arc<Self>) {
        let sleeping: Vec<_> = self.in_use.load().values().cloned().collect();
        for in_use in sleeping {
            if !self.is_roomy() {
                return;
            }
            if !in_use.is_awake() {
                // Woken, or the reason is in the log and the next request tries again.
                self.wake(in_use).await;
            }
        }
    }
}

#[cfg(test)]
mod tests;
