//! Makes a site's chain of a release set: checks who vouches for each release, loads its plugin, puts them together.
//!
//! Owns the plugins in memory, each loaded once for all sites and releases that use it. Refuses to know which set a
//! site should have and when one is swapped: that is [`super::Chains`].

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use souk_commerce::id::{Digest, PluginName, SiteId};
use souk_commerce::seal::{SealError, TrustedKeys};
use souk_commerce::site::{Kind, Release, ReleaseSet};
use souk_sandbox::http::{BadGrant, HttpEngine, HttpPlugin, HttpService, Terms};
use souk_sandbox::record::Studio;
use souk_sandbox::{Chain, HookEngine, HookPlugin, LoadError, Loader, Metrics, Share};

use super::floors::{FloorError, Floors};
use super::{Mount, SiteChain};
use crate::blobs::{BlobError, Blobs};
use crate::journal::Journal;

/// What chains are made of and with.
pub struct Workshop {
    pub engine: HookEngine,
    pub http: HttpEngine,
    pub loader: Loader,
    pub blobs: Blobs,
    /// Whose word on a release is taken.
    pub trusted: TrustedKeys,
    /// How far it was with each site.
    pub floors: Floors,
    pub metrics: Metrics,
    /// Whose turn it is among the HTTP plugins of all sites.
    pub share: Option<Share>,
    /// Where calls are recorded; None: nowhere.
    pub studio: Option<Studio>,
    /// Where HTTP plugins print.
    pub journal: Journal,
    pub plugins: Plugins,
}

/// The plugins in memory.
#[derive(Default)]
pub struct Plugins {
    hooks: Mutex<HashMap<Digest, Place<HookPlugin>>>,
    http: Mutex<HashMap<Digest, Place<HttpPlugin>>>,
}

/// One plugin's place, and whoever loads it now: the others wait.
struct Place<P> {
    plugin: Weak<P>,
    loading: Arc<tokio::sync::Mutex<()>>,
}

/// What lies in memory now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Loaded {
    pub plugins: usize,
    pub code_bytes: usize,
}

/// Why a release set is not in use.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PrepareError {
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error(transparent)]
    Floor(#[from] FloorError),
    #[error("plugin {plugin}: {source}")]
    Blob { plugin: PluginName, source: BlobError },
    #[error("plugin {plugin} is refused: {why}")]
    Refused { plugin: PluginName, why: String },
    #[error("plugin {plugin} cannot be loaded now: {why}")]
    NotNow { plugin: PluginName, why: String },
    #[error("plugin {plugin}: {why}")]
    Grant { plugin: PluginName, why: String },
}

impl PrepareError {
    /// Whether the same set will fail again, however often it is tried.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Seal(_)
            | Self::Floor(FloorError::Older { .. })
            | Self::Refused { .. }
            | Self::Grant { .. } => true,
            Self::Floor(FloorError::Disk(_)) | Self::Blob { .. } | Self::NotNow { .. } => false,
        }
    }
}

impl Workshop {
    /// Whether the region vouches for a set and every release of it, and the node has had no newer one. Nothing of one for
    /// which that is not so is compiled or run. Blocking: its number is written down.
    pub fn accept(&self, set: &ReleaseSet) -> Result<(), PrepareError> {
        self.trusted.verify_set(set)?;
        Ok(self.floors.accept(&set.site, set.number)?)
    }

    /// Whether `set` would be accepted, without writing anything down.
    pub fn is_acceptable(&self, set: &ReleaseSet) -> bool {
        self.floors.of(&set.site).is_none_or(|floor| set.number >= floor)
            && self.trusted.verify_set(set).is_ok()
    }

    /// Whether the active releases of a set can be loaded without a compiler and without the region.
    pub fn has_artefacts(&self, set: &ReleaseSet) -> bool {
        set.releases.iter().all(|release| match release.kind {
            Kind::Hooks => self.loader.has_hooks(&self.engine, release.component),
            Kind::Http => self.loader.has_http(&self.http, release.component),
        })
    }

    /// Loads everything that a set needs, which was accepted.
    pub async fn build(&self, set: &ReleaseSet) -> Result<SiteChain, PrepareError> {
        let mut steps = Vec::new();
        let mut mounts = Vec::new();
        for release in &set.releases {
            match release.kind {
                Kind::Hooks => steps.push((release.clone(), self.hook_plugin(&set.site, release).await?)),
                Kind::Http => mounts.push(self.mount(&set.site, release).await?),
            }
        }
        let mut standby = Vec::new();
        for release in set.standby.iter().filter(|release| release.kind == Kind::Hooks) {
            match self.hook_plugin(&set.site, release).await {
                Ok(plugin) => standby.push((release.clone(), plugin)),
                // What is behind the active release must not keep it back; the guard then falls back to base prices.
                Err(error) => tracing::warn!(site = %set.site, %error, "a standby release is not there"),
            }
        }
        let mut chain = Chain::with_metrics(&set.site, steps, &self.metrics).with_standby(standby);
        if let Some(studio) = &self.studio {
            chain = chain.recorded(&set.site, studio);
        }
        Ok(SiteChain::new(set.version, chain, mounts))
    }

    async fn mount(&self, site: &SiteId, release: &Release) -> Result<Mount, PrepareError> {
        let plugin = &release.plugin;
        let grant = |why: String| PrepareError::Grant { plugin: plugin.clone(), why };
        let mut terms = Terms::of(site, release).map_err(|error: BadGrant| grant(error.to_string()))?;
        terms.share = self.share.clone();
        let prints = Arc::new(self.journal.prints(site, plugin, release.number));
        terms.printed = Some(prints.clone());
        let route = release.route.clone().ok_or_else(|| grant("an HTTP release needs a route".to_owned()))?;
        let loaded = self.http_plugin(site, release).await?;
        let service = Arc::new(HttpService::new(loaded, terms));
        Ok(Mount { route, plugin: plugin.clone(), release: release.number, service, prints })
    }

    /// Sees to it that a pushed component's machine code is here, before anybody deploys it.
    pub async fn compile_ahead(&self, site: &SiteId, release: &Release) -> Result<(), PrepareError> {
        self.trusted.verify(site, release)?;
        match release.kind {
            Kind::Hooks => self.hook_plugin(site, release).await.map(drop),
            Kind::Http => self.http_plugin(site, release).await.map(drop),
        }
    }

    async fn http_plugin(&self, site: &SiteId, release: &Release) -> Result<Arc<HttpPlugin>, PrepareError> {
        let loading = self.plugins.loading(&self.plugins.http, release.component);
        let _mine = loading.lock().await;
        if let Some(loaded) = self.plugins.find(&self.plugins.http, release.component) {
            return Ok(loaded);
        }
        let bytes = self.blobs.load(release.component);
        let loader = self.loader.on_behalf_of(site);
        let loaded = loader.http(&self.http, release.component, bytes).await;
        let loaded = loaded.map_err(|error| refused(&release.plugin, error))?;
        self.plugins.put(&self.plugins.http, release.component, &loaded);
        Ok(loaded)
    }

    async fn hook_plugin(&self, site: &SiteId, release: &Release) -> Result<Arc<HookPlugin>, PrepareError> {
        let loading = self.plugins.loading(&self.plugins.hooks, release.component);
        let _mine = loading.lock().await;
        if let Some(loaded) = self.plugins.find(&self.plugins.hooks, release.component) {
            return Ok(loaded);
        }
        let bytes = self.blobs.load(release.component);
        let loader = self.loader.on_behalf_of(site);
        let loaded = loader.hooks(&self.engine, release.component, bytes).await;
        let loaded = loaded.map_err(|error| refused(&release.plugin, error))?;
        self.plugins.put(&self.plugins.hooks, release.component, &loaded);
        Ok(loaded)
    }
}

fn refused(plugin: &PluginName, error: LoadError<BlobError>) -> PrepareError {
    let plugin = plugin.clone();
    match error {
        LoadError::Bytes(source) => PrepareError::Blob { plugin, source },
        LoadError::Refused(refused) => PrepareError::Refused { plugin, why: refused.to_string() },
        error @ (LoadError::Forged(_) | LoadError::Busy { .. } | LoadError::Host(_)) => {
            PrepareError::NotNow { plugin, why: error.to_string() }
        }
    }
}

impl Plugins {
    fn loading<P>(
        &self,
        places: &Mutex<HashMap<Digest, Place<P>>>,
        digest: Digest,
    ) -> Arc<tokio::sync::Mutex<()>> {
        let mut places = places.lock();
        let place =
            places.entry(digest).or_insert_with(|| Place { plugin: Weak::new(), loading: Arc::default() });
        Arc::clone(&place.loading)
    }

    fn find<P>(&self, places: &Mutex<HashMap<Digest, Place<P>>>, digest: Digest) -> Option<Arc<P>> {
        places.lock().get(&digest)?.plugin.upgrade()
    }

    fn put<P>(&self, places: &Mutex<HashMap<Digest, Place<P>>>, digest: Digest, plugin: &Arc<P>) {
        let mut places = places.lock();
        // Places that nobody uses and nobody is about to fill. The one to be filled is held by who calls.
        places.retain(|_, place| place.plugin.strong_count() > 0 || Arc::strong_count(&place.loading) > 1);
        if let Some(place) = places.get_mut(&digest) {
            place.plugin = Arc::downgrade(plugin);
        }
    }

    /// What all chains together hold.
    pub fn loaded(&self) -> Loaded {
        let mut loaded = Loaded::default();
        let mut add = |code_bytes: usize| {
            loaded.plugins += 1;
            loaded.code_bytes += code_bytes;
        };
        let hooks = self.hooks.lock().values().filter_map(|place| place.plugin.upgrade()).collect::<Vec<_>>();
        hooks.iter().for_each(|plugin| add(plugin.code_bytes()));
        let http = self.http.lock().values().filter_map(|place| place.plugin.upgrade()).collect::<Vec<_>>();
        http.iter().for_each(|plugin| add(plugin.code_bytes()));
        loaded
    }
}
