//! Sites' plugin chains, loaded: the same components in the same sandbox as on the nodes.
//!
//! A chain is kept with its breakers for as long as its release set is the active one. Compiling a component takes
//! seconds of a processor, so that happens once per digest and one at a time.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;
use souk_commerce::id::{Digest, SiteId};
use souk_commerce::site::ReleaseSet;
use souk_sandbox::{Chain, HookEngine, HookPlugin, Metrics, Refused};

use crate::blobs::{BlobError, Blobs};

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
    #[error("loading a component panicked")]
    Panicked,
}

pub(crate) struct Chains {
    engine: HookEngine,
    blobs: Arc<Blobs>,
    metrics: Metrics,
    plugins: Mutex<Recent<Digest, Arc<HookPlugin>>>,
    chains: Mutex<Recent<SiteId, (u64, Arc<Chain>)>>,
    compiling: tokio::sync::Mutex<()>,
}

impl Chains {
    pub(crate) fn new(engine: HookEngine, blobs: Arc<Blobs>, metrics: Metrics) -> Self {
        Self {
            engine,
            blobs,
            metrics,
            plugins: Mutex::new(Recent::new(PLUGINS_LOADED_MAX)),
            chains: Mutex::new(Recent::new(CHAINS_READY_MAX)),
            compiling: tokio::sync::Mutex::new(()),
        }
    }

    /// The component, compiled now if it was not before. Cancel safe.
    pub(crate) async fn plugin(&self, digest: Digest) -> Result<Arc<HookPlugin>, LoadError> {
        if let Some(plugin) = self.plugins.lock().get(&digest) {
            return Ok(plugin);
        }
        let _one_at_a_time = self.compiling.lock().await;
        if let Some(plugin) = self.plugins.lock().get(&digest) {
            return Ok(plugin);
        }
        let component = self.blobs.load(digest).await?.ok_or(LoadError::NoBlob(digest))?;
        let engine = self.engine.clone();
        let load = move || engine.load(&component);
        let plugin = tokio::task::spawn_blocking(load)
            .await
            .map_err(|_| LoadError::Panicked)?
            .map_err(LoadError::Refused)?;
        self.plugins.lock().insert(digest, Arc::clone(&plugin));
        Ok(plugin)
    }

    /// The chain of these releases. A node would refuse to price without one of them, and so does the region.
    pub(crate) async fn chain(&self, set: &ReleaseSet) -> Result<Arc<Chain>, LoadError> {
        if let Some((version, chain)) = self.chains.lock().get(&set.site)
            && version == set.version
        {
            return Ok(chain);
        }
        let mut steps = Vec::with_capacity(set.releases.len());
        for release in &set.releases {
            steps.push((release.clone(), self.plugin(release.component).await?));
        }
        let chain = Arc::new(Chain::with_metrics(&set.site, steps, &self.metrics));
        self.chains.lock().insert(set.site.clone(), (set.version, Arc::clone(&chain)));
        Ok(chain)
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
    use super::*;

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
