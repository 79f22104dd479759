//! Search at the node: each site's index, kept beside the replica, so that shoppers find things while the region is away.
//!
//! An index is a file per site below `search/`, a cache of the catalogue in [`crate::state::World`]. Nothing tells it what has
//! changed: it compares the catalogue that it has with the one that there is, which share what they have in common ([`desk`]). A
//! search brings its index up to the newest catalogue before it looks, so a title that is visible can be found; what is more than a
//! search may wait for, [`Searches::keep`] takes in beside it, every site ahead of its first search.
//!
//! Everything of an index blocks, and runs on threads for such. A site's searches run one after the other: who searches much waits
//! for himself and not the others for him. Owns the desks, whose turn it is, and how many files are open. What a query means and how
//! a file answers it is `souk_search`'s.

mod desk;
mod telemetry;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use souk_commerce::id::SiteId;
use souk_link::Log;
use souk_search::{Fault, Position, Query};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, Semaphore};
use tokio_util::sync::CancellationToken;

pub(crate) use self::desk::Found;
use self::desk::{Desk, Goods};
pub(crate) use self::telemetry::SearchMetrics;
use crate::rescue::{Problem, Refusal};
use crate::state::{Replica, Site};

/// Indexes that are open at once. Each keeps 2 MiB of pages and as much of a log: 256 MiB at the most, whatever the number of sites
/// and products. The one that was used longest ago is closed for another; to open it again takes a millisecond.
const OPEN_MAX: usize = 64;
/// Searches of one site that wait for those before them: at a millisecond each the last waits no longer than a plugin may take.
const WAITING_MAX: usize = 64;
/// Changed products that a search takes in before it looks, at some 100 µs each: what a merchant changes by hand, and no import.
const CAUGHT_UP_FIRST_MAX: usize = 256;
/// The same of the keeper's, who lets searches in between.
const KEPT_AT_ONCE_MAX: usize = 256;
/// How long the keeper leaves a disk alone that has failed it.
const FAILED_PAUSE: Duration = Duration::from_secs(10);

/// Why nothing was looked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unsearched {
    #[error("{WAITING_MAX} searches of this shop are waiting")]
    Busy,
    #[error("the catalogue is being indexed for the first time: {left} products are to come")]
    Building { left: usize },
    /// What exactly failed is in the log.
    #[error("the node's index of this shop cannot be used")]
    Failed,
}

impl Unsearched {
    const fn outcome(&self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Building { .. } => "building",
            Self::Failed => "failed",
        }
    }
}

impl From<Unsearched> for Problem {
    fn from(error: Unsearched) -> Self {
        let refusal = match error {
            Unsearched::Busy => Refusal::SearchBusy,
            Unsearched::Building { .. } | Unsearched::Failed => Refusal::SearchNotReady,
        };
        Self::new(refusal, error.to_string())
    }
}

/// The indexes of a node. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Searches(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    replica: Arc<Replica>,
    /// One of each site that was searched or indexed: no more than there are sites.
    places: Mutex<HashMap<SiteId, Place>>,
    /// One for each core: a look into an index computes, and waits for a disk seldom.
    turns: Arc<Semaphore>,
    uses: AtomicU64,
    metrics: SearchMetrics,
}

/// Where a site is searched.
#[derive(Debug, Clone)]
struct Place {
    desk: Arc<AsyncMutex<Desk>>,
    waiting: Arc<Semaphore>,
    /// When it was used last, by the count of all uses; 0 while its file is closed.
    used: Arc<AtomicU64>,
}

impl Searches {
    /// Indexes below `dir`, of the shops of `replica`.
    pub(crate) fn open(dir: &Path, replica: Arc<Replica>, metrics: SearchMetrics) -> std::io::Result<Self> {
        let dir = dir.join("search");
        std::fs::create_dir_all(&dir)?;
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Ok(Self(Arc::new(Inner {
            dir,
            replica,
            places: Mutex::default(),
            turns: Arc::new(Semaphore::new(cores)),
            uses: AtomicU64::new(0),
            metrics,
        })))
    }

    /// The first products of `site` that match, after a place of an answer before, and at most `limit`.
    ///
    /// Cancel safe: whoever leaves gives his place up, and what he began ends by itself.
    pub(crate) async fn find(
        &self,
        site: &Arc<Site>,
        query: Query,
        after: Option<Position>,
        limit: usize,
    ) -> Result<Found, Unsearched> {
        let began = Instant::now();
        let answered = self.ask(site, query, after, limit).await;
        let outcome = match &answered {
            Ok(found) if found.is_behind => "behind",
            Ok(_) => "answered",
            Err(error) => error.outcome(),
        };
        self.0.metrics.searched(outcome, began.elapsed());
        answered
    }

    async fn ask(
        &self,
        site: &Arc<Site>,
        query: Query,
        after: Option<Position>,
        limit: usize,
    ) -> Result<Found, Unsearched> {
        let place = self.0.place(&site.id);
        let _waits = place.waiting.try_acquire_owned().map_err(|_| Unsearched::Busy)?;
        let mut desk = place.desk.lock_owned().await;
        // Never closed.
        let turn = Arc::clone(&self.0.turns).acquire_owned().await.map_err(|_| Unsearched::Failed)?;
        let (inner, site) = (Arc::clone(&self.0), Arc::clone(site));
        let looked = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            inner.follow(&site.id, &mut desk, CAUGHT_UP_FIRST_MAX)?;
            if desk.is_being_built() {
                return Err(Unsearched::Building { left: desk.left() });
            }
            desk.find(&site, &query, after, limit).map_err(|fault| inner.failed(&site.id, &mut desk, &fault))
        });
        looked.await.unwrap_or(Err(Unsearched::Failed))
    }

    /// Keeps every site's index up to its catalogue until the node ends.
    pub(crate) async fn keep(self, shutdown: CancellationToken) {
        let mut changed = self.0.replica.changed();
        let mut seen: HashMap<SiteId, Goods> = HashMap::new();
        self.remove_strangers().await;
        while !shutdown.is_cancelled() {
            changed.mark_unchanged();
            let world = self.0.replica.world();
            let version = world.cursors.get(Log::Catalog);
            let is_new = |site: &&Arc<Site>| {
                seen.get(&site.id).is_none_or(|products| !products.ptr_eq(&site.products))
            };
            // The rest of this world is let go of: an import goes through many.
            let stale: Vec<_> = world.sites().filter(is_new).map(|site| site.id.clone()).collect();
            drop(world);
            let mut failed = false;
            for site in stale {
                match self.catch_up(&site, &shutdown).await {
                    Some(products) => {
                        seen.insert(site, products);
                    }
                    None => failed = true,
                }
            }
            if !failed {
                self.0.metrics.version.set(i64::try_from(version).unwrap_or(i64::MAX));
            }
            let news = async {
                if failed {
                    tokio::time::sleep(FAILED_PAUSE).await;
                } else if changed.changed().await.is_err() {
                    shutdown.cancelled().await;
                }
            };
            shutdown.run_until_cancelled(news).await;
        }
    }

    /// The catalogue that the index has then; none if it could not be brought there.
    async fn catch_up(&self, site: &SiteId, shutdown: &CancellationToken) -> Option<Goods> {
        let place = self.0.place(site);
        while !shutdown.is_cancelled() {
            // Given back after each step: searches come in between.
            let mut desk: OwnedMutexGuard<Desk> = Arc::clone(&place.desk).lock_owned().await;
            let (inner, site) = (Arc::clone(&self.0), site.clone());
            let step = tokio::task::spawn_blocking(move || {
                inner.follow(&site, &mut desk, KEPT_AT_ONCE_MAX)?;
                Ok::<_, Unsearched>((desk.left() == 0).then(|| desk.followed()).flatten())
            });
            match step.await {
                Ok(Ok(None)) => {}
                Ok(Ok(Some(products))) => return Some(products),
                Ok(Err(_)) | Err(_) => return None,
            }
        }
        None
    }

    /// Files of sites that the node does not serve any more.
    async fn remove_strangers(&self) {
        if !self.0.replica.is_synced() {
            return;
        }
        let world = self.0.replica.world();
        let dir = self.0.dir.clone();
        let removed = tokio::task::spawn_blocking(move || {
            for entry in std::fs::read_dir(&dir)? {
                let path = entry?.path();
                let site: Option<SiteId> =
                    path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
                let is_ours = path.extension().is_some_and(|extension| extension == "db");
                if is_ours && site.is_none_or(|site| world.site(&site).is_none()) {
                    souk_search::Index::remove(&path)?;
                }
            }
            Ok::<_, std::io::Error>(())
        });
        if let Ok(Err(error)) = removed.await {
            tracing::warn!(%error, dir = %self.0.dir.display(), "indexes of sites that are gone are still there");
        }
    }
}

impl Inner {
    fn place(&self, site: &SiteId) -> Place {
        let mut places = self.places.lock();
        let made = || Place {
            desk: Arc::new(AsyncMutex::new(Desk::new(self.dir.join(format!("{site}.db"))))),
            waiting: Arc::new(Semaphore::new(WAITING_MAX)),
            used: Arc::default(),
        };
        places.entry(site.clone()).or_insert_with(made).clone()
    }

    /// Brings an index towards the newest catalogue. Blocking.
    fn follow(&self, site: &SiteId, desk: &mut Desk, changes_max: usize) -> Result<(), Unsearched> {
        let world = self.replica.world();
        let products = world.site(site).map(|site| site.products.clone()).unwrap_or_default();
        drop(world);
        let was_open = desk.is_open();
        let followed = desk.follow(&products, changes_max, &self.metrics);
        let used = self.uses.fetch_add(1, Ordering::Relaxed) + 1;
        self.place(site).used.store(used, Ordering::Relaxed);
        if !was_open {
            self.close_too_many(site);
        }
        followed.map_err(|fault| self.failed(site, desk, &fault))
    }

    /// What cannot be used is closed, and opened anew by the next who asks: a full disk that was emptied needs no restart.
    fn failed(&self, site: &SiteId, desk: &mut Desk, fault: &Fault) -> Unsearched {
        tracing::warn!(%site, %fault, "a site cannot be searched: its index is opened again by the next search");
        desk.give_up(&self.metrics);
        if matches!(fault, Fault::Broken(_)) {
            desk.begin_anew(&self.metrics);
        }
        self.place(site).used.store(0, Ordering::Relaxed);
        Unsearched::Failed
    }

    /// Closes the indexes that were used longest ago, but for those that somebody has.
    fn close_too_many(&self, but: &SiteId) {
        let mut open: Vec<_> = {
            let places = self.places.lock();
            let of = |(site, place): (&SiteId, &Place)| {
                let used = place.used.load(Ordering::Relaxed);
                (used > 0 && site != but).then(|| (used, place.clone()))
            };
            places.iter().filter_map(of).collect()
        };
        let mut too_many = (open.len() + 1).saturating_sub(OPEN_MAX);
        open.sort_unstable_by_key(|(used, _)| *used);
        for (_, place) in open {
            if too_many == 0 {
                return;
            }
            // One that is in use stays, for as long as a search takes.
            if let Ok(mut desk) = place.desk.try_lock() {
                desk.close(&self.metrics);
                place.used.store(0, Ordering::Relaxed);
                too_many -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests;
