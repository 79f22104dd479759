//! What the caches of a node did for each of its sites. The only place where these metric names stand.
//!
//! Owns how many sites have series of their own: sites come from the region and their number is not ours, so beyond
//! [`SITES_MAX`] they are counted together.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::RwLock;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// Sites with series of their own, the first that were asked for. Each has at most some 40: two caches, eight outcomes and
/// the reasons of passes and refusals; together they are 10,000 lines, a megabyte of each reading of the metrics.
const SITES_MAX: usize = 256;
/// How the others are called. No site is: names of sites have no underscore.
const OTHERS: &str = "_others";

/// Which of the node's caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Of {
    /// Of merchants' own servers.
    Upstreams,
    /// Of the catalogue and of plugins.
    Pages,
}

impl Of {
    const fn name(self) -> &'static str {
        match self {
            Self::Upstreams => "upstreams",
            Self::Pages => "pages",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeOfSite {
    site: Arc<str>,
    of: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonOfSite {
    site: Arc<str>,
    of: &'static str,
    reason: &'static str,
}

/// See the module. Clones count together.
#[derive(Clone, Debug)]
pub(crate) struct PerSite {
    names: Arc<RwLock<HashSet<Arc<str>>>>,
    others: Arc<str>,
    requests: Family<OutcomeOfSite, Counter>,
    reasons: Family<ReasonOfSite, Counter>,
}

impl Default for PerSite {
    fn default() -> Self {
        let others = OTHERS.into();
        Self { names: Arc::default(), others, requests: Family::default(), reasons: Family::default() }
    }
}

impl PerSite {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let this = Self::default();
        let sites = registry.sub_registry_with_prefix("souk_site_cache");
        sites.register(
            "requests",
            "Requests of a site that a cache was asked for, by where their answer came from",
            this.requests.clone(),
        );
        sites.register("reasons", "Why answers of a site were passed or refused", this.reasons.clone());
        this
    }

    /// An answer, and why it is what it is, where there is a reason.
    pub(crate) fn count(&self, site: &str, of: Of, outcome: &'static str, reason: Option<&'static str>) {
        let (site, of) = (self.name(site), of.name());
        if let Some(reason) = reason {
            let label = ReasonOfSite { site: Arc::clone(&site), of, reason };
            self.reasons.get_or_create(&label).inc();
        }
        self.requests.get_or_create(&OutcomeOfSite { site, of, outcome }).inc();
    }

    fn name(&self, site: &str) -> Arc<str> {
        if let Some(known) = self.names.read().get(site) {
            return Arc::clone(known);
        }
        let mut names = self.names.write();
        if let Some(known) = names.get(site) {
            return Arc::clone(known);
        }
        if names.len() >= SITES_MAX {
            return Arc::clone(&self.others);
        }
        let name: Arc<str> = site.into();
        names.insert(Arc::clone(&name));
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sites_beyond_the_limit_are_counted_together() {
        let mut registry = Registry::default();
        let sites = PerSite::register(&mut registry);
        for site in 0..SITES_MAX + 10 {
            sites.count(&format!("site-{site}"), Of::Upstreams, "pass", Some("private"));
            sites.count(&format!("site-{site}"), Of::Pages, "hit", None);
        }
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("text");
        let of = |name: &str| text.lines().filter(|line| line.starts_with(name)).count();
        assert_eq!(of("souk_site_cache_requests_total{"), 2 * (SITES_MAX + 1));
        assert_eq!(of("souk_site_cache_reasons_total{"), SITES_MAX + 1);
        let others = "souk_site_cache_requests_total{site=\"_others\",of=\"pages\",outcome=\"hit\"} 10";
        assert!(text.contains(others), "{others} in\n{text}");
    }
}
