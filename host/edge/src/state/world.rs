//! The shops as the node knows them now: an immutable snapshot, shared by every request that began under it.
//!
//! Pure. Built from the rows of the replica at start, changed by the records of the logs, swapped whole by
//! [`super::replica`]. A request that holds a [`World`] sees prices, products and settings of one moment.

use std::sync::Arc;

use jsonwebtoken::DecodingKey;
use souk_commerce::feed::{Asset, AssetChange, PriceChange, ProductChange, PurgeChange, StockChange};
use souk_commerce::id::{SiteId, Sku};
use souk_commerce::product::{Listed, PriceRow, Product, StockHint};
use souk_commerce::site::{ReleaseSet, SiteSettings};
use souk_link::{Heads, Log};

use crate::page_cache::{Touched, reads};

/// A record that this node cannot read. Its log stands still: a price that is silently skipped is a wrong price.
#[derive(Debug, Clone, thiserror::Error)]
#[error("a record of the {log} log cannot be read: {why}")]
pub struct BadRecord {
    pub log: Log,
    pub why: String,
}

/// All sites at one moment.
#[derive(Debug, Clone, Default)]
pub struct World {
    sites: imbl::HashMap<SiteId, Arc<Site>>,
    hosts: imbl::HashMap<String, SiteId>,
    pub cursors: Heads,
    /// The history of the region that each cursor counts, by the log's code.
    pub histories: std::collections::BTreeMap<u8, u32>,
}

/// One site at one moment.
#[derive(Clone)]
pub struct Site {
    pub id: SiteId,
    pub settings: Option<Arc<SiteSettings>>,
    pub shopper_key: ShopperKey,
    pub products: imbl::OrdMap<Sku, Arc<Product>>,
    prices: imbl::HashMap<Sku, (PriceRow, u64)>,
    stock: imbl::HashMap<Sku, StockHint>,
    assets: imbl::HashMap<String, Arc<Asset>>,
    pub releases: Option<Arc<ReleaseSet>>,
}

/// The key that verifies shopper tokens, parsed once per change of the settings.
#[derive(Clone, Default)]
pub enum ShopperKey {
    #[default]
    None,
    Ed25519(Arc<DecodingKey>),
    Unreadable(Arc<str>),
}

impl std::fmt::Debug for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Site")
            .field("id", &self.id)
            .field("products", &self.products.len())
            .finish_non_exhaustive()
    }
}

impl Site {
    fn new(id: SiteId) -> Self {
        Self {
            id,
            settings: None,
            shopper_key: ShopperKey::None,
            products: imbl::OrdMap::new(),
            prices: imbl::HashMap::new(),
            stock: imbl::HashMap::new(),
            assets: imbl::HashMap::new(),
            releases: None,
        }
    }

    /// A product with its price and stock; none if one of the first two is missing.
    pub fn listed(&self, sku: &Sku) -> Option<Listed> {
        let product = self.products.get(sku)?.clone();
        let &(price, price_version) = self.prices.get(sku)?;
        let stock = self.stock.get(sku).copied().unwrap_or_default();
        Some(Listed { product, price, price_version, stock })
    }

    /// At most `limit` products that have a price, after `after` in the order of their skus.
    pub fn page(&self, after: Option<&Sku>, limit: usize) -> Vec<Listed> {
        let from = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        let skus = self.products.range::<_, Sku>((from, std::ops::Bound::Unbounded)).map(|(sku, _)| sku);
        skus.filter_map(|sku| self.listed(sku)).take(limit).collect()
    }

    pub fn asset(&self, path: &str) -> Option<Arc<Asset>> {
        self.assets.get(path).cloned()
    }

    pub fn assets(&self) -> impl Iterator<Item = &Arc<Asset>> {
        self.assets.values()
    }
}

impl World {
    /// The site that answers for a host name: only one whose settings have arrived.
    pub fn site_of_host(&self, host: &str) -> Option<&Arc<Site>> {
        self.sites.get(self.hosts.get(host)?)
    }

    pub fn site(&self, id: &SiteId) -> Option<&Arc<Site>> {
        self.sites.get(id)
    }

    pub fn sites(&self) -> impl Iterator<Item = &Arc<Site>> {
        self.sites.values()
    }

    fn edit(&mut self, id: &SiteId) -> &mut Site {
        Arc::make_mut(self.sites.entry(id.clone()).or_insert_with(|| Arc::new(Site::new(id.clone()))))
    }

    /// Forgets everything that came from one log: a snapshot replaces it.
    pub fn clear(&mut self, log: Log) {
        let ids: Vec<_> = self.sites.keys().cloned().collect();
        for id in ids {
            let site = self.edit(&id);
            match log {
                Log::Config => {
                    site.settings = None;
                    site.shopper_key = ShopperKey::None;
                }
                Log::Release => site.releases = None,
                Log::Price => site.prices = imbl::HashMap::new(),
                Log::Stock => site.stock = imbl::HashMap::new(),
                Log::Asset => site.assets = imbl::HashMap::new(),
                Log::Catalog => site.products = imbl::OrdMap::new(),
                Log::Purge => {}
            }
        }
        if log == Log::Config {
            self.hosts = imbl::HashMap::new();
        }
    }

    /// Takes in a row.
    pub fn apply(&mut self, row: Row, version: u64) {
        match row {
            Row::Settings(settings) => {
                self.hosts.retain(|_, site| *site != settings.site);
                for host in &settings.hosts {
                    if let Some(other) = self.hosts.insert(host.to_ascii_lowercase(), settings.site.clone()) {
                        tracing::warn!(host, %other, site = %settings.site, "two sites claim one host; the later wins");
                    }
                }
                let site = self.edit(&settings.site);
                site.shopper_key = shopper_key(&settings);
                site.settings = Some(Arc::new(settings));
            }
            Row::Releases(set) => {
                let id = set.site.clone();
                self.edit(&id).releases = Some(Arc::new(set));
            }
            Row::Price(PriceChange { site, sku, price }) => {
                let prices = &mut self.edit(&site).prices;
                match price {
                    Some(price) => prices.insert(sku, (price, version)),
                    None => prices.remove(&sku),
                };
            }
            Row::Stock(StockChange { site, sku, hint }) => {
                self.edit(&site).stock.insert(sku, hint);
            }
            Row::Asset(AssetChange { site, path, asset }) => {
                let assets = &mut self.edit(&site).assets;
                match asset {
                    Some(asset) => assets.insert(path, Arc::new(asset)),
                    None => assets.remove(&path),
                };
            }
            Row::Product(ProductChange { site, sku, product }) => {
                let products = &mut self.edit(&site).products;
                match product {
                    Some(product) => products.insert(sku, Arc::new(product)),
                    None => products.remove(&sku),
                };
            }
            Row::Purge(_) => {}
        }
    }
}

fn shopper_key(settings: &SiteSettings) -> ShopperKey {
    let Some(pem) = &settings.shopper_key else { return ShopperKey::None };
    match DecodingKey::from_ed_pem(pem.as_bytes()) {
        Ok(key) => ShopperKey::Ed25519(Arc::new(key)),
        Err(error) => {
            tracing::warn!(site = %settings.site, %error, "the site's shopper_key cannot be read: tokens are refused");
            ShopperKey::Unreadable(error.to_string().into())
        }
    }
}

/// A record of a log, read.
#[derive(Debug, Clone)]
pub enum Row {
    /// None: it cannot be read, and so may mean anything.
    Purge(Option<PurgeChange>),
    Settings(SiteSettings),
    Releases(ReleaseSet),
    Price(PriceChange),
    Stock(StockChange),
    Asset(AssetChange),
    Product(ProductChange),
}

impl Row {
    pub fn read(log: Log, body: &[u8]) -> Result<Self, BadRecord> {
        let read = match log {
            Log::Purge => Ok(Self::Purge(PurgeChange::from_bytes(body).ok())),
            Log::Config => SiteSettings::from_bytes(body).map(Self::Settings),
            Log::Release => ReleaseSet::from_bytes(body).map(Self::Releases),
            Log::Price => PriceChange::from_bytes(body).map(Self::Price),
            Log::Stock => StockChange::from_bytes(body).map(Self::Stock),
            Log::Asset => AssetChange::from_bytes(body).map(Self::Asset),
            Log::Catalog => ProductChange::from_bytes(body).map(Self::Product),
        };
        read.map_err(|e| BadRecord { log, why: e.to_string() })
    }

    /// What was made from the world before this row is taken in, and is not the same after it.
    pub(crate) fn touches(&self, before: &World, touched: &mut Touched) {
        match self {
            Self::Purge(Some(PurgeChange { site, forget, .. })) => touched.asked(site, forget),
            Self::Purge(None) => touched.everything(),
            Self::Settings(settings) => touched.tag("settings", reads::settings(&settings.site)),
            // The chain that is made of them says so when it is in use; nothing is made of files.
            Self::Releases(_) | Self::Asset(_) => {}
            Self::Price(PriceChange { site, sku, price }) => {
                touched.tag("price", reads::price(site, sku.as_str()));
                let had = before.site(site).is_some_and(|site| site.prices.contains_key(sku));
                if had != price.is_some() {
                    touched.tag("membership", reads::membership(site));
                    // It is found from now on, or no more.
                    let product = before.site(site).and_then(|site| site.products.get(sku));
                    touched.words(site, product.map(|product| &**product), None);
                }
            }
            Self::Stock(StockChange { site, sku, .. }) => {
                touched.tag("stock", reads::stock(site, sku.as_str()));
            }
            Self::Product(ProductChange { site, sku, product }) => {
                touched.tag("product", reads::product(site, sku.as_str()));
                let had = before.site(site).and_then(|site| site.products.get(sku));
                if had.is_some() != product.is_some() {
                    touched.tag("membership", reads::membership(site));
                }
                touched.words(site, had.map(|had| &**had), product.as_ref());
            }
        }
    }

    /// The row's name within its log, and whether it stays; none for what is not kept.
    pub fn key(&self) -> Option<(String, bool)> {
        Some(match self {
            Self::Purge(_) => return None,
            Self::Settings(settings) => (settings.site.to_string(), true),
            Self::Releases(set) => (set.site.to_string(), true),
            Self::Price(PriceChange { site, sku, price }) => (format!("{site}\0{sku}"), price.is_some()),
            Self::Stock(StockChange { site, sku, .. }) => (format!("{site}\0{sku}"), true),
            Self::Asset(AssetChange { site, path, asset }) => (format!("{site}\0{path}"), asset.is_some()),
            Self::Product(ProductChange { site, sku, product }) => {
                (format!("{site}\0{sku}"), product.is_some())
            }
        })
    }
}
