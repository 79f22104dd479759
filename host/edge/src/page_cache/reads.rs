//! What an answer was made from, noted while it is made.
//!
//! The names of the node's own tags stand here and nowhere else: [`crate::state::replica`] takes them back, and what makes
//! answers notes them. What was looked for and not found counts too: when it appears, the answer is another one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use souk_cache::Tag;
use souk_cache::tags::TAGS_MAX;
use souk_commerce::id::{PluginName, SiteId, Sku};
use souk_commerce::product::Listed;
use souk_sandbox::account::Ended;
use souk_sandbox::{Level, SiteData};
use souk_search::Query;

/// A product's content.
pub(crate) fn product(site: &SiteId, sku: &str) -> Tag {
    Tag::automatic(site.as_str(), &format!("product:{sku}"))
}

pub(crate) fn price(site: &SiteId, sku: &str) -> Tag {
    Tag::automatic(site.as_str(), &format!("price:{sku}"))
}

pub(crate) fn stock(site: &SiteId, sku: &str) -> Tag {
    Tag::automatic(site.as_str(), &format!("stock:{sku}"))
}

/// Which products there are: what is on a page of a listing, and what is not.
pub(crate) fn membership(site: &SiteId) -> Tag {
    Tag::automatic(site.as_str(), "membership")
}

/// What the site's products say: every answer to a search is made of it.
pub(crate) fn words(site: &SiteId) -> Tag {
    Tag::automatic(site.as_str(), "words")
}

/// What those of its products say that have a word with this beginning: an answer to a search is made of no others
/// ([`souk_search::Query::beginning`]).
pub(crate) fn words_with(site: &SiteId, beginning: &str) -> Tag {
    Tag::automatic(site.as_str(), &format!("words:{beginning}"))
}

pub(crate) fn settings(site: &SiteId) -> Tag {
    Tag::automatic(site.as_str(), "settings")
}

/// The chain of plugins in use.
pub(crate) fn releases(site: &SiteId) -> Tag {
    Tag::automatic(site.as_str(), "releases")
}

/// What one answer has read so far.
#[derive(Debug)]
pub(crate) struct Reads {
    site: SiteId,
    tags: Mutex<BTreeSet<Tag>>,
    degraded: AtomicBool,
}

impl Reads {
    /// Every answer is made by the site's plugins under its settings, or by there being none.
    pub(crate) fn of(site: &SiteId) -> Arc<Self> {
        let tags = [settings(site), releases(site)].into();
        Arc::new(Self { site: site.clone(), tags: Mutex::new(tags), degraded: AtomicBool::new(false) })
    }

    /// Something of it was made without a plugin that should have had its say.
    pub(crate) fn degrade(&self) {
        self.degraded.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_degraded(&self) -> bool {
        self.degraded.load(Ordering::Relaxed)
    }

    pub(crate) fn listed(&self, sku: &Sku) {
        self.sku(sku.as_str());
    }

    pub(crate) fn membership(&self) {
        self.note(membership(&self.site));
    }

    pub(crate) fn searched(&self, query: &Query) {
        self.note(words(&self.site));
        self.note(words_with(&self.site, &query.beginning()));
    }

    fn sku(&self, sku: &str) {
        for tag in [product, price, stock].map(|name| name(&self.site, sku)) {
            self.note(tag);
        }
    }

    fn note(&self, tag: Tag) {
        let mut tags = self.tags.lock();
        // One more than is kept says that there were more; the answer is not stored then.
        if tags.len() <= TAGS_MAX {
            tags.insert(tag);
        }
    }

    pub(crate) fn tags(&self) -> Vec<Tag> {
        self.tags.lock().iter().copied().collect()
    }
}

/// A site whose plugins' look-ups are noted.
pub(crate) struct Noting {
    pub(crate) site: Arc<dyn SiteData>,
    pub(crate) reads: Arc<Reads>,
}

impl SiteData for Noting {
    fn product(&self, sku: &str) -> Option<Listed> {
        self.reads.sku(sku);
        self.site.product(sku)
    }

    fn kv(&self, key: &str) -> Option<Vec<u8>> {
        // Of the settings, which every answer has.
        self.site.kv(key)
    }

    fn log(&self, plugin: &PluginName, level: Level, text: &str) {
        self.site.log(plugin, level, text);
    }

    fn ended(&self, ended: &Ended<'_>) {
        self.site.ended(ended);
    }
}
