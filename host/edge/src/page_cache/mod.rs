//! What a node keeps of its own answers: the catalogue's, and the pages of HTTP plugins.
//!
//! Each is stored with the names of what it was made from ([`reads`]), recorded while it was made. What the region changes
//! takes them back in the step that applies the change: first the new world is there, then what was made from the old one
//! is invalid ([`PageCache::forget`]), and a response's place in the order of these steps is taken before it reads
//! anything. So a price and the pages that show it change together, and all other pages stay.
//!
//! Owns the cache and what is counted of it. [`catalogue`] knows which answers of the API may be kept, [`crate::mount`] the
//! way of a page, [`indoors`] what a plugin may read; what may be stored at all is `souk_cache`'s.

pub(crate) mod catalogue;
mod indoors;
pub(crate) mod reads;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::Response;
use http_body_util::BodyExt as _;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use souk_cache::shelf::MemoryShelf;
use souk_cache::{Asked, Cache, CacheLimits, Hit, PassReason, Place, Purge, Scope, Tag, status};
use souk_commerce::id::SiteId;
use souk_commerce::product::Product;
use souk_commerce::purge::{Forget, split};
use souk_search::Document;

use crate::access::Told;
use crate::http::{Body, now_ms};
use crate::per_site::{Of, PerSite};

pub(crate) use indoors::Room;
pub(crate) use reads::{Noting, Reads};

/// The largest answer that is kept: a listing of 100 products at all of their limits is 4.5 MiB, and hardly any is a
/// tenth of that.
const ANSWER_BYTES_MAX: u64 = 4 << 20;
/// The part of the memory that one site may have, of what is kept and of what is being made: half.
const SITE_SHARE: u64 = 2;
/// Memory for answers that are still being made: an eighth of what is kept …
const FILL_SHARE: u64 = 8;

/// Answers kept. Clones are the same.
#[derive(Clone)]
pub struct PageCache(Arc<Inner>);

struct Inner {
    cache: Cache,
    metrics: PageMetrics,
    /// How long an answer of the catalogue is kept in which a plugin had a hand.
    catalogue_lifetime: Duration,
}

impl fmt::Debug for PageCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageCache").field("size", &self.0.cache.size()).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HowLabels {
    how: &'static str,
}

/// What is counted of it. Every label is of a closed list.
#[derive(Debug, Clone, Default)]
pub struct PageMetrics {
    requests: Family<OutcomeLabels, Counter>,
    passes: Family<ReasonLabels, Counter>,
    purges: Family<KindLabels, Counter>,
    invalidated: Family<HowLabels, Gauge>,
    bytes: Gauge,
    keys: Gauge,
    names: Gauge,
    per_site: PerSite,
}

impl PageMetrics {
    /// Counting each site's answers too.
    pub(crate) fn per_site(self, per_site: PerSite) -> Self {
        Self { per_site, ..self }
    }

    pub fn register(registry: &mut Registry) -> Self {
        let this = Self::default();
        let pages = registry.sub_registry_with_prefix("souk_page");
        pages.register(
            "requests",
            "Answers of the catalogue and of HTTP plugins by where they came from",
            this.requests.clone(),
        );
        pages.register("passes", "Those past the cache, by reason", this.passes.clone());
        pages.register(
            "purges",
            "Things taken back: asked for (tag, url, prefix, site), or because the region changed them (words: what was searched)",
            this.purges.clone(),
        );
        pages.register(
            "invalidated",
            "Answers that a look-up found taken back since start: gone, or made stale (soft)",
            this.invalidated.clone(),
        );
        pages.register("stored_bytes", "Bytes of answers kept", this.bytes.clone());
        pages.register("stored_keys", "Addresses with answers kept", this.keys.clone());
        pages.register("purged_names", "Names that are remembered as taken back", this.names.clone());
        this
    }
}

/// Beginnings of words by which one step takes a site's searches back one by one. A product has some hundred; a step with more of
/// them than this is an import, and takes all of the site's.
const BEGINNINGS_MAX: usize = 512;

/// What a change of the replica takes back.
#[derive(Debug, Default)]
pub(crate) struct Touched {
    purges: Vec<Purge>,
    kinds: Vec<&'static str>,
    /// Beginnings of words of products whose words have changed, or that have come or gone; none: too many to say.
    words: BTreeMap<SiteId, Option<BTreeSet<String>>>,
}

impl Touched {
    pub(crate) fn tag(&mut self, kind: &'static str, tag: Tag) {
        self.add(kind, Scope::Tag(tag), false);
    }

    /// A product says something else, or is or is not on sale any more: whoever looked for a word of it has another answer.
    pub(crate) fn words(&mut self, site: &SiteId, before: Option<&Product>, after: Option<&Product>) {
        if before.map(souk_search::fingerprint) == after.map(souk_search::fingerprint) {
            return;
        }
        let known = self.words.entry(site.clone()).or_insert_with(|| Some(BTreeSet::new()));
        for product in before.into_iter().chain(after) {
            let Some(beginnings) = known else { return };
            beginnings.extend(Document::of(product).beginnings());
            if beginnings.len() > BEGINNINGS_MAX {
                *known = None;
            }
        }
    }

    /// Names what was taken back of searches, once all is known.
    fn spell(&mut self) {
        for (site, beginnings) in std::mem::take(&mut self.words) {
            match beginnings {
                None => self.tag("words", reads::words(&site)),
                Some(beginnings) => {
                    let named = beginnings.iter().map(|beginning| reads::words_with(&site, beginning));
                    self.purges.extend(named.map(|tag| Purge { scope: Scope::Tag(tag), soft: false }));
                    // One thing that changed, whatever it is called.
                    self.kinds.push("words");
                }
            }
        }
    }

    /// A log came whole, or a purge that cannot be read: whatever it meant is meant.
    pub(crate) fn everything(&mut self) {
        self.add("everything", Scope::Everything, false);
    }

    /// What a merchant asked for.
    pub(crate) fn asked(&mut self, site: &SiteId, forget: &Forget) {
        // The catalogue's answers are the same at every port, and kept once for all of them; plugins' pages are not.
        let mut forget = forget.known_as(|address, target| {
            let kept = catalogue::keyed_as(target);
            Vec::from_iter(kept.map(|kept| format!("{}{kept}", without_port(address))))
        });
        // Of plugins' pages too much goes, then: those of the default port with those of the port that was named.
        let prefixes = forget.prefixes.iter().filter_map(|prefix| {
            let (address, target) = split(prefix);
            let host = without_port(address);
            (host != address).then(|| format!("{host}{target}"))
        });
        let prefixes: Vec<_> = prefixes.collect();
        forget.prefixes.extend(prefixes);
        for (kind, scope) in scopes(site.as_str(), &forget) {
            self.add(kind, scope, forget.soft);
        }
    }

    fn add(&mut self, kind: &'static str, scope: Scope, soft: bool) {
        self.kinds.push(kind);
        self.purges.push(Purge { scope, soft });
    }
}

/// An address as it is without its port, whichever that is.
fn without_port(address: &str) -> &str {
    match address.rsplit_once(':') {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => address,
    }
}

/// What a wish means to the cache. An address that cannot be read, though it was checked, means the whole site: too much
/// rather than too little.
pub(crate) fn scopes(site: &str, forget: &Forget) -> Vec<(&'static str, Scope)> {
    let Forget { tags, urls, prefixes, everything, soft: _ } = forget;
    let whole = || ("site", Scope::Site(site.into()));
    let place = |text: &String, kind, scope: fn(Place) -> Scope| {
        Place::parse(site, text).map_or_else(|_| whole(), |place| (kind, scope(place)))
    };
    let tags = tags.iter().map(|tag| ("tag", Scope::Tag(Tag::named(site, tag))));
    let urls = urls.iter().map(|url| place(url, "url", Scope::Url));
    let prefixes = prefixes.iter().map(|prefix| place(prefix, "prefix", Scope::Prefix));
    tags.chain(urls).chain(prefixes).chain(everything.then(whole)).collect()
}

impl PageCache {
    pub fn new(memory_bytes_max: u64, catalogue_lifetime: Duration, metrics: PageMetrics) -> Self {
        let object_bytes_max = ANSWER_BYTES_MAX.min(memory_bytes_max);
        let limits = CacheLimits {
            memory_bytes_max,
            object_bytes_max,
            // … and at least two of the largest, so that one does not turn the next one into a relay.
            fill_bytes_max: (memory_bytes_max / FILL_SHARE).max(2 * object_bytes_max),
        };
        // A shop that fills its own part pushes out nothing of the others'.
        let shelf = MemoryShelf::shared(memory_bytes_max, memory_bytes_max / SITE_SHARE);
        // Nor does one whose answers are large and slow keep the others' from being stored: one of the largest fits.
        let site_fill_bytes_max = (limits.fill_bytes_max / SITE_SHARE).max(object_bytes_max);
        let cache = Cache::shared(Box::new(shelf), limits, site_fill_bytes_max);
        Self(Arc::new(Inner { cache, metrics, catalogue_lifetime }))
    }

    pub(crate) fn cache(&self) -> &Cache {
        &self.0.cache
    }

    /// Takes back what a change has touched. The change must be visible before.
    pub(crate) fn forget(&self, mut touched: Touched) {
        touched.spell();
        if touched.purges.is_empty() {
            return;
        }
        self.0.cache.purge(now_ms(), &touched.purges);
        for kind in &touched.kinds {
            self.0.metrics.purges.get_or_create(&KindLabels { kind }).inc();
        }
    }

    /// Another chain of plugins is in use at a site.
    pub(crate) fn released(&self, site: &SiteId) {
        let mut touched = Touched::default();
        touched.tag("releases", reads::releases(site));
        self.forget(touched);
    }

    /// Brings the gauges up to date.
    pub fn sample(&self) {
        let count = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let (metrics, purged, size) = (&self.0.metrics, self.0.cache.purged(), self.0.cache.size());
        metrics.bytes.set(count(size.bytes));
        metrics.keys.set(count(size.keys));
        metrics.names.set(count(purged.names));
        for (how, entries) in [("gone", purged.entries_gone), ("soft", purged.entries_softened)] {
            metrics.invalidated.get_or_create(&HowLabels { how }).set(count(entries));
        }
    }

    /// An answer out of what is kept.
    pub(crate) fn send(&self, hit: Hit, asked: &Asked, now_ms: u64) -> Response<Body> {
        let outcome = hit.how().name();
        self.0.metrics.requests.get_or_create(&OutcomeLabels { outcome }).inc();
        self.0.metrics.per_site.count(asked.key.site(), Of::Pages, outcome, None);
        let mut response = hit.respond(now_ms, asked).map(|body| body.map_err(Into::into).boxed_unsync());
        response.extensions_mut().insert(Told { outcome, reason: None });
        response
    }

    /// Says of an answer that it is not out of what is kept, and why.
    pub(crate) fn passed<B>(
        &self,
        site: &SiteId,
        mut response: Response<B>,
        reason: PassReason,
    ) -> Response<B> {
        self.0.metrics.requests.get_or_create(&OutcomeLabels { outcome: "pass" }).inc();
        self.0.metrics.per_site.count(site.as_str(), Of::Pages, "pass", Some(reason.name()));
        response.extensions_mut().insert(Told { outcome: "pass", reason: Some(reason.name()) });
        self.0.metrics.passes.get_or_create(&ReasonLabels { reason: reason.name() }).inc();
        let said = response.status().as_u16();
        souk_cache::tags::remove_from(response.headers_mut());
        status::append_pass(response.headers_mut(), reason, Some(said));
        response
    }
}

#[cfg(test)]
mod tests {
    use souk_commerce::feed::{PriceChange, ProductChange, PurgeChange, StockChange};
    use souk_commerce::money::Minor;
    use souk_commerce::product::{PriceRow, StockHint};
    use souk_commerce::site::{ReleaseSet, SiteSettings};
    use souk_link::{Log, Part, Record, Tail};

    use super::*;
    use crate::state::Replica;
    use crate::state::world::{Row, World};

    fn site() -> SiteId {
        "shop".parse().expect("a site")
    }

    fn price(of: Option<i64>) -> PriceChange {
        let price = of.map(|amount| PriceRow::of(Minor(amount)));
        PriceChange { site: site(), sku: "MUG".parse().expect("a sku"), price }
    }

    #[test]
    fn each_row_takes_back_what_is_made_of_it_and_nothing_else() {
        let mut world = World::default();
        let mut takes = |row: Row| {
            let mut touched = Touched::default();
            row.touches(&world, &mut touched);
            world.apply(row, 1);
            touched.kinds
        };
        let sku = || "MUG".parse().expect("a sku");
        assert_eq!(takes(Row::Price(price(Some(5)))), ["price", "membership"]);
        assert_eq!(takes(Row::Price(price(Some(6)))), ["price"], "it is listed as before");
        assert_eq!(takes(Row::Price(price(None))), ["price", "membership"]);
        let gone = ProductChange { site: site(), sku: sku(), product: None };
        assert_eq!(takes(Row::Product(gone)), ["product"], "it never was");
        let stock = StockChange { site: site(), sku: sku(), hint: StockHint::Out };
        assert_eq!(takes(Row::Stock(stock)), ["stock"]);
        let settings = SiteSettings::new(site(), "GBP".parse().expect("a currency"));
        assert_eq!(takes(Row::Settings(settings)), ["settings"]);
        assert_eq!(takes(Row::Releases(ReleaseSet::empty(site()))), [""; 0], "not before they are in use");
        let forget = Forget { tags: vec!["red".to_owned()], everything: true, ..Forget::default() };
        assert_eq!(takes(Row::Purge(Some(PurgeChange::of(site(), forget)))), ["tag", "site"]);
        let unreadable = Row::read(Log::Purge, b"of a newer region").expect("never an obstacle");
        assert_eq!(takes(unreadable), ["everything"]);
    }

    #[test]
    fn the_new_world_is_there_before_the_old_one_is_taken_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let pages = PageCache::new(1 << 20, Duration::ZERO, PageMetrics::default());
        let replica = Replica::open(dir.path(), 0).expect("opens").telling(pages.clone());
        let before = pages.cache().begin();
        let record = Record { version: 1, body: price(Some(5)).to_bytes() };
        let changes =
            Tail { log: Log::Price, from: 0, to: 1, part: Part::Changes, records: vec![record], next: None };
        replica.apply(&changes).expect("applied");
        let after = pages.cache().begin();
        assert_ne!(before, after);
        assert_eq!(pages.cache().purged().names, 2, "the price, and that there is one");
        let last = Part::Snapshot { index: 0, last: true };
        let nothing = |log, to| Tail { log, from: 0, to, part: last, records: Vec::new(), next: None };
        replica.apply(&nothing(Log::Asset, 3)).expect("applied");
        assert_eq!(pages.cache().begin(), after, "nothing is made of files");
        replica.apply(&nothing(Log::Purge, 3)).expect("applied");
        assert_ne!(pages.cache().begin(), after, "a purge log that comes whole means everything");
    }

    #[test]
    fn what_the_catalogue_keeps_is_taken_back_at_whatever_port_it_is_asked_for() {
        let place = |text: &str| Place::parse("shop", text).expect("a place");
        let takes = |forget: Forget| {
            let mut touched = Touched::default();
            touched.asked(&site(), &forget);
            touched.purges.into_iter().map(|purge| purge.scope).collect::<Vec<_>>()
        };
        for (url, kept) in [
            ("https://shop.example:8443/api/products?limit=3", "https://shop.example/api/products?limit=3"),
            ("http://[::1]:8080/%61pi/products", "http://[::1]/api/products"),
            ("http://[::1]/%61pi/products", "http://[::1]/api/products"),
        ] {
            let taken = takes(Forget { urls: vec![url.to_owned()], ..Forget::default() });
            assert_eq!(taken, [Scope::Url(place(url)), Scope::Url(place(kept))], "{url}");
        }
        // A page of a plugin is another one there.
        let page = "https://shop.example:8443/tea";
        let taken = takes(Forget { urls: vec![page.to_owned()], ..Forget::default() });
        assert_eq!(taken, [Scope::Url(place(page))]);
        let prefixes = ["https://shop.example:8443/api", "https://shop.example/api", "/api"];
        let taken = takes(Forget { prefixes: prefixes.map(ToOwned::to_owned).to_vec(), ..Forget::default() });
        let all = [prefixes.as_slice(), &["https://shop.example/api"]].concat();
        assert_eq!(taken, all.into_iter().map(|text| Scope::Prefix(place(text))).collect::<Vec<_>>());
    }

    #[test]
    fn a_wish_is_read_for_its_own_site() {
        let forget = Forget {
            tags: vec!["red".to_owned()],
            urls: vec!["/tea".to_owned()],
            prefixes: vec!["https://shop.example/blog".to_owned()],
            everything: true,
            soft: true,
        };
        let place = |text: &str| Place::parse("shop", text).expect("a place");
        let read = scopes("shop", &forget);
        assert_eq!(
            read,
            [
                ("tag", Scope::Tag(Tag::named("shop", "red"))),
                ("url", Scope::Url(place("/tea"))),
                ("prefix", Scope::Prefix(place("https://shop.example/blog"))),
                ("site", Scope::Site("shop".into())),
            ]
        );
        let odd = Forget { urls: vec!["https://a@b/".to_owned()], ..Forget::default() };
        assert_eq!(scopes("shop", &odd), [("site", Scope::Site("shop".into()))], "too much, not too little");
    }
}
