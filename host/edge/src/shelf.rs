//! What plugins may look up during one request, and where what they say goes.
//!
//! The site is the one of the moment when the request arrived. Made by the API for each request; asked by a chain, on
//! whatever thread it runs.

use std::sync::Arc;

use souk_commerce::id::PluginName;
use souk_commerce::product::Listed;
use souk_sandbox::account::Ended;
use souk_sandbox::scribe::Scribe;
use souk_sandbox::{Level, SiteData};

use crate::journal::Journal;
use crate::state::Site;

/// A site for one request's plugins.
#[derive(Debug)]
pub struct Shelf {
    site: Arc<Site>,
    journal: Journal,
    scribe: Scribe,
}

impl Shelf {
    /// `customer` is struck out of everything that the plugins say.
    pub fn of(site: &Arc<Site>, journal: &Journal, now_ms: u64, customer: Option<&str>) -> Arc<dyn SiteData> {
        let scribe = Scribe::new(site.id.clone(), Some(journal.node()), now_ms, customer);
        Arc::new(Self { site: site.clone(), journal: journal.clone(), scribe })
    }
}

impl SiteData for Shelf {
    fn product(&self, sku: &str) -> Option<Listed> {
        self.site.listed(&sku.parse().ok()?)
    }

    fn kv(&self, key: &str) -> Option<Vec<u8>> {
        Some(self.site.settings.as_ref()?.kv.get(key)?.as_bytes().to_vec())
    }

    fn log(&self, plugin: &PluginName, level: Level, text: &str) {
        let site = &self.site.id;
        let text = self.scribe.line(level, text);
        match level {
            Level::Debug => tracing::debug!(target: "plugin", %site, %plugin, "{text}"),
            Level::Info => tracing::info!(target: "plugin", %site, %plugin, "{text}"),
            Level::Warn => tracing::warn!(target: "plugin", %site, %plugin, "{text}"),
            // A merchant's error is news to the merchant, not an alarm of the node.
            Level::Error => tracing::warn!(target: "plugin", %site, %plugin, error = true, "{text}"),
        }
    }

    fn ended(&self, ended: &Ended<'_>) {
        self.scribe.ended(ended, |entry| self.journal.write(entry));
    }
}
