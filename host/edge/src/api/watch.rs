//! Watches a request's plugins for `Server-Timing`: which release of which plugin took how long, and how it went.
//!
//! Stands between a chain and the site's own [`SiteData`], and only for a client that asked.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use souk_commerce::id::PluginName;
use souk_commerce::product::Listed;
use souk_sandbox::account::{Ended, Outcome};
use souk_sandbox::{Level, SiteData};

use crate::http::Exchange;

pub(super) struct Watch {
    site: Arc<dyn SiteData>,
    /// As many as the chain has steps, and one more for each standby release that was asked.
    ended: Mutex<Vec<(String, String, Duration)>>,
}

impl Watch {
    pub(super) fn over(site: Arc<dyn SiteData>) -> Self {
        Self { site, ended: Mutex::default() }
    }

    pub(super) fn tell(&self, exchange: &mut Exchange) {
        for (name, description, spent) in std::mem::take(&mut *self.ended.lock()) {
            exchange.note_described(name, &description, spent);
        }
    }
}

impl SiteData for Watch {
    fn product(&self, sku: &str) -> Option<Listed> {
        self.site.product(sku)
    }

    fn kv(&self, key: &str) -> Option<Vec<u8>> {
        self.site.kv(key)
    }

    fn log(&self, plugin: &PluginName, level: Level, text: &str) {
        self.site.log(plugin, level, text);
    }

    fn ended(&self, ended: &Ended<'_>) {
        let outcome = match ended.outcome {
            Outcome::Answered => "ok",
            Outcome::Refused { .. } => "refused",
            Outcome::Failed { reason, .. } => reason,
        };
        let name = format!("{}.{}", ended.hook, ended.plugin);
        let description = format!("release {}, {outcome}", ended.release);
        self.ended.lock().push((name, description, ended.duration));
        self.site.ended(ended);
    }
}
