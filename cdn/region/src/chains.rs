//! Sites' plugin chains, loaded: the same components in the same sandbox as on the nodes.
//!
//! A chain is kept with its breakers for as long as its release set is the active one. Compiling a component takes
//! seconds of a processor, so that happens once per digest, in a child process, and it is never thrown away: whoever
//! asked may give up, the next one finds it done, after a restart too. Several are compiled at once, so that one
//! merchant's slow component keeps no checkout of another waiting; how many is the loader's to say.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use souk_commerce::id::{Digest, SiteId};
use souk_commerce::site::{Kind, Release, ReleaseSet};
use souk_sandbox::admit::{self, Capabilities};
use souk_sandbox::http::HttpEngine;
use souk_sandbox::record::Studio;
use souk_sandbox::{Chain, HookEngine, HookPlugin, Loader, Metrics, Refused, unhurried};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::blobs::{BlobError, Blobs};
use crate::store::Store;

/// Loaded components. At a few MiB of machine code each this is the greatest part of a region's memory: 1 GiB.
const PLUGINS_LOADED_MAX: usize = 256;
/// Chains ready to price. A chain is little beside its plugins.
const CHAINS_READY_MAX: usize = 4_096;

/// Why a component cannot run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("there is no blob {0}")]
    NoBlob(Digest),
    #[error("{0}")]
    Refused(Refused),
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// This machine, not the component: too much to compile, or no means to. Worth another try.
    #[error("the component cannot be compiled now: {0}")]
    NotNow(String),
    #[error("loading a component panicked")]
    Panicked,
}

/// What the source of a component's bytes says when it has none.
#[derive(Debug, thiserror::Error)]
enum NoBytes {
    #[error("there is no such blob")]
    NoBlob,
    #[error(transparent)]
    Blob(#[from] BlobError),
}

/// What loads a region's plugins.
pub(crate) struct Sandbox {
    pub(crate) engine: HookEngine,
    /// Runs nothing here: a region only judges whether an HTTP plugin would run at a node.
    pub(crate) http: HttpEngine,
    pub(crate) loader: Loader,
}

pub(crate) struct Chains {
    sandbox: Arc<Sandbox>,
    blobs: Arc<Blobs>,
    metrics: Metrics,
    /// Where calls are recorded; None: nowhere.
    studio: Option<Studio>,
    plugins: Arc<Made<Digest, Arc<HookPlugin>>>,
    chains: Mutex<Recent<SiteId, Ready>>,
}

/// A chain, the version of the set that it was last asked for, and what in the set it is made of.
#[derive(Clone)]
struct Ready {
    version: u64,
    made_of: Digest,
    chain: Arc<Chain>,
}

/// News that leaves the chain as it is, such as a component that is yet to be deployed, changes no byte of this.
fn made_of(set: &ReleaseSet) -> Digest {
    let chain = ReleaseSet { version: 0, number: 0, coming: Vec::new(), seal: None, ..set.clone() };
    Digest::of(&chain.to_bytes())
}

impl Chains {
    pub(crate) fn new(sandbox: Sandbox, blobs: Arc<Blobs>, metrics: Metrics, studio: Option<Studio>) -> Self {
        Self {
            studio,
            sandbox: Arc::new(sandbox),
            blobs,
            metrics,
            plugins: Arc::new(Made::new(PLUGINS_LOADED_MAX)),
            chains: Mutex::new(Recent::new(CHAINS_READY_MAX)),
        }
    }

    /// Judges a component that a merchant of `site` uploaded: reads it, compiles it in a child process, links it. Says
    /// everything that is wrong with it, or what it can do. The bytes come with the question, and `digest` is theirs: what
    /// is refused has never been on the disk.
    pub(crate) async fn admit(
        &self,
        site: &SiteId,
        digest: Digest,
        component: Bytes,
    ) -> Result<Capabilities, LoadError> {
        let (hook_bytes_max, http_bytes_max) =
            (self.sandbox.engine.limits().memory_bytes_max, self.sandbox.http.limits().memory_bytes_max);
        let judging = component.clone();
        let judged = unhurried(move || admit::any(&judging, hook_bytes_max, http_bytes_max));
        let capabilities = judged.await.map_err(|_| LoadError::Panicked)?.map_err(LoadError::Refused)?;
        let bytes = async move { Ok::<_, NoBytes>(component) };
        if capabilities.kind() == Some(Kind::Http) {
            let loaded = self.sandbox.loader.on_behalf_of(site).http(&self.sandbox.http, digest, bytes).await;
            loaded.map_err(|error| from_loader(digest, error))?;
        } else {
            self.load(site, digest, bytes).await?;
        }
        Ok(capabilities)
    }

    /// Judges a component that the region has, as [`Chains::admit`] does.
    pub(crate) async fn judge(&self, site: &SiteId, digest: Digest) -> Result<Capabilities, LoadError> {
        let component = self.blobs.load(digest).await?.ok_or(LoadError::NoBlob(digest))?;
        self.admit(site, digest, component.into()).await
    }

    /// The component of a hook plugin, compiled now if it was not before. Cancel safe: a compilation that has begun goes
    /// on.
    async fn plugin(&self, site: &SiteId, digest: Digest) -> Result<Arc<HookPlugin>, LoadError> {
        let blobs = Arc::clone(&self.blobs);
        self.load(site, digest, async move { bytes_of(&blobs, digest).await }).await
    }

    async fn load(
        &self,
        site: &SiteId,
        digest: Digest,
        bytes: impl Future<Output = Result<Bytes, NoBytes>> + Send + 'static,
    ) -> Result<Arc<HookPlugin>, LoadError> {
        let sandbox = Arc::clone(&self.sandbox);
        let loader = sandbox.loader.on_behalf_of(site);
        let load = async move {
            let loaded = loader.hooks(&sandbox.engine, digest, bytes).await;
            loaded.map_err(|error| from_loader(digest, error))
        };
        self.plugins.get_or_make(digest, load).await.unwrap_or(Err(LoadError::Panicked))
    }

    /// Makes the chains of all sites ready, so that after a restart no shopper waits for a compiler. One that cannot be
    /// made is told of and left to the checkout that needs it.
    pub(crate) async fn warm(&self, store: Store, shutdown: CancellationToken) {
        let warming = async {
            let sites = match store.sites().await {
                Ok(sites) => sites,
                Err(error) => return tracing::warn!(%error, "the sites' chains are not made ready"),
            };
            for site in sites {
                // More would only push out what was made before.
                if self.plugins.count() >= PLUGINS_LOADED_MAX {
                    return;
                }
                let Ok(site) = site.parse::<SiteId>() else { continue };
                let made = match store.releases(site.clone()).await {
                    Ok(set) if set.releases.is_empty() => continue,
                    Ok(set) => self.chain(&set).await.map_err(|error| error.to_string()),
                    Err(error) => Err(error.to_string()),
                };
                match made {
                    Ok(_) => tracing::debug!(%site, "the chain of a site is ready"),
                    Err(error) => tracing::warn!(%site, error, "the chain of a site cannot be made ready"),
                }
            }
        };
        // Given up between two steps; a compilation under way is waited for in `close`.
        let _given_up = shutdown.run_until_cancelled(warming).await;
    }

    /// Waits for a compilation under way. Nobody may ask for another one any more.
    pub(crate) async fn close(&self) {
        self.plugins.close().await;
    }

    /// The chain of these releases. A node would refuse to price without one of them, and so does the region.
    pub(crate) async fn chain(&self, set: &ReleaseSet) -> Result<Arc<Chain>, LoadError> {
        let known = self.chains.lock().get(&set.site);
        if let Some(ready) = &known
            && ready.version == set.version
        {
            return Ok(Arc::clone(&ready.chain));
        }
        let made_of = made_of(set);
        if let Some(same) = known.filter(|ready| ready.made_of == made_of) {
            let chain = Arc::clone(&same.chain);
            self.chains.lock().insert(set.site.clone(), Ready { version: set.version, ..same });
            return Ok(chain);
        }
        let is_hook = |release: &&Release| release.kind == Kind::Hooks;
        let mut steps = Vec::with_capacity(set.releases.len());
        for release in set.releases.iter().filter(is_hook) {
            steps.push((release.clone(), self.plugin(&set.site, release.component).await?));
        }
        let mut standby = Vec::new();
        for release in set.standby.iter().filter(is_hook) {
            match self.plugin(&set.site, release.component).await {
                Ok(plugin) => standby.push((release.clone(), plugin)),
                // What is behind the active release must not keep it back; the guard then falls back to base prices.
                Err(error) => tracing::warn!(site = %set.site, %error, "a standby release is not there"),
            }
        }
        let mut chain = Chain::with_metrics(&set.site, steps, &self.metrics).with_standby(standby);
        if let Some(studio) = &self.studio {
            chain = chain.recorded(&set.site, studio);
        }
        let chain = Arc::new(chain);
        let ready = Ready { version: set.version, made_of, chain: Arc::clone(&chain) };
        self.chains.lock().insert(set.site.clone(), ready);
        Ok(chain)
    }
}

async fn bytes_of(blobs: &Blobs, digest: Digest) -> Result<Bytes, NoBytes> {
    blobs.load(digest).await?.map(Bytes::from).ok_or(NoBytes::NoBlob)
}

fn from_loader(digest: Digest, error: souk_sandbox::LoadError<NoBytes>) -> LoadError {
    use souk_sandbox::LoadError as E;
    match error {
        E::Refused(refused) => LoadError::Refused(refused),
        E::Bytes(NoBytes::NoBlob) => LoadError::NoBlob(digest),
        E::Bytes(NoBytes::Blob(error)) => LoadError::Blob(error),
        error @ (E::Forged(_) | E::Busy { .. } | E::Host(_)) => LoadError::NotNow(error.to_string()),
    }
}

/// Things that take long to make: each is made once, by a task that does not end with whoever asked.
struct Made<K, V> {
    ready: Mutex<Recent<K, V>>,
    /// Held by whoever makes the thing of that name; the others wait.
    making: Mutex<HashMap<K, Arc<tokio::sync::Mutex<()>>>>,
    tasks: TaskTracker,
}

impl<K, V> Made<K, V>
where
    K: Hash + Eq + Clone + Send + 'static,
    V: Clone + Send + 'static,
{
    fn new(kept_max: usize) -> Self {
        Self { ready: Mutex::new(Recent::new(kept_max)), making: Mutex::default(), tasks: TaskTracker::new() }
    }

    fn count(&self) -> usize {
        self.ready.lock().entries.len()
    }

    /// What there is under `key`, or what `make` makes. None: making it panicked.
    async fn get_or_make<E: Send + 'static>(
        self: &Arc<Self>,
        key: K,
        make: impl Future<Output = Result<V, E>> + Send + 'static,
    ) -> Option<Result<V, E>> {
        if let Some(value) = self.ready.lock().get(&key) {
            return Some(Ok(value));
        }
        let turn = self.turn(&key).lock_owned().await;
        if let Some(value) = self.ready.lock().get(&key) {
            return Some(Ok(value));
        }
        // The task owns the turn: whoever gives up here neither throws the work away nor lets a second one begin beside
        // it.
        let this = Arc::clone(self);
        let task = self.tasks.spawn(async move {
            let made = make.await;
            if let Ok(value) = &made {
                this.ready.lock().insert(key, value.clone());
            }
            drop(turn);
            made
        });
        task.await.ok()
    }

    fn turn(&self, key: &K) -> Arc<tokio::sync::Mutex<()>> {
        let mut making = self.making.lock();
        // Names that nobody waits for.
        making.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(making.entry(key.clone()).or_default())
    }

    async fn close(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// A map that forgets what was not used for the longest time.
struct Recent<K, V> {
    entries: HashMap<K, (u64, V)>,
    uses: u64,
    entries_max: usize,
}

impl<K: Hash + Eq + Clone, V: Clone> Recent<K, V> {
    fn new(entries_max: usize) -> Self {
        Self { entries: HashMap::new(), uses: 0, entries_max }
    }

    fn get(&mut self, key: &K) -> Option<V> {
        self.uses += 1;
        let (used, value) = self.entries.get_mut(key)?;
        *used = self.uses;
        Some(value.clone())
    }

    fn insert(&mut self, key: K, value: V) {
        self.uses += 1;
        if self.entries.len() >= self.entries_max && !self.entries.contains_key(&key) {
            // A scan of a few thousand entries, once per compilation or new release: not worth a second index.
            let oldest = self.entries.iter().min_by_key(|(_, (used, _))| *used).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                self.entries.remove(&oldest);
            }
        }
        self.entries.insert(key, (self.uses, value));
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn who_gives_up_does_not_throw_the_work_away_nor_lets_two_begin() {
        let made = Arc::new(Made::new(4));
        let (begun, at_once) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let make = || {
            let (begun, at_once) = (Arc::clone(&begun), Arc::clone(&at_once));
            async move {
                begun.fetch_add(1, Ordering::Relaxed);
                assert_eq!(at_once.fetch_add(1, Ordering::Relaxed), 0, "one at a time");
                tokio::time::sleep(Duration::from_millis(200)).await;
                at_once.fetch_sub(1, Ordering::Relaxed);
                Ok::<_, Infallible>(7)
            }
        };
        // A caller whose deadline is shorter than the work, again and again, as a checkout is repeated.
        let (mut calls, deadline) = (0, Duration::from_millis(20));
        let value = loop {
            calls += 1;
            let asked = tokio::time::timeout(deadline, made.get_or_make("a", make())).await;
            if let Ok(value) = asked {
                break value;
            }
        };
        assert_eq!((value, begun.load(Ordering::Relaxed)), (Some(Ok(7)), 1), "after {calls} calls");
        assert!(calls > 1);
        let gone = tokio::time::timeout(deadline, made.get_or_make("b", make())).await;
        assert!(gone.is_err());
        made.close().await;
        assert_eq!((made.count(), begun.load(Ordering::Relaxed)), (2, 2), "the end waits for what has begun");
    }

    #[tokio::test]
    async fn a_push_leaves_the_chain_and_its_breakers_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let sandbox = Sandbox {
            engine: HookEngine::new(souk_sandbox::HookLimits::default()).unwrap(),
            http: HttpEngine::new(souk_sandbox::http::HttpLimits::default()).unwrap(),
            loader: Loader::in_process(),
        };
        let blobs = Arc::new(Blobs::open(dir.path(), 1_000, false).unwrap());
        let chains = Chains::new(sandbox, blobs, Metrics::default(), None);
        let release: Release = serde_json::from_value(serde_json::json!({
            "plugin": "soon", "number": 0, "component": Digest::of(b"x"), "hooks": ["pricing"],
        }))
        .unwrap();
        let before = ReleaseSet { version: 3, ..ReleaseSet::empty("shop".parse().unwrap()) };
        let pushed = ReleaseSet { version: 4, coming: vec![release.clone()], ..before.clone() };
        let chain = chains.chain(&before).await.unwrap();
        assert!(Arc::ptr_eq(&chain, &chains.chain(&pushed).await.unwrap()));
        let deployed = ReleaseSet { version: 5, releases: vec![release], ..before };
        assert!(matches!(chains.chain(&deployed).await, Err(LoadError::NoBlob(_))), "it is another chain");
    }

    #[test]
    fn the_least_recently_used_entry_goes_first() {
        let mut recent = Recent::new(2);
        recent.insert("a", 1);
        recent.insert("b", 2);
        assert_eq!(recent.get(&"a"), Some(1));
        recent.insert("c", 3);
        assert_eq!((recent.get(&"a"), recent.get(&"b"), recent.get(&"c")), (Some(1), None, Some(3)));
    }
}
