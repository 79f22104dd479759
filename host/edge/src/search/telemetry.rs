//! What is counted of searches. The only place where these metric names stand.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::desk::Told;

/// Buckets of a search, in seconds: from a look into memory to one that waited for an import's step.
const SECONDS: [f64; 10] = [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.25, 1.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

/// Clones count together.
#[derive(Clone, Debug)]
pub(crate) struct SearchMetrics {
    searches: Family<OutcomeLabels, Counter>,
    seconds: Histogram,
    pub(super) updates: Counter,
    pub(super) rebuilds: Counter,
    pub(super) version: Gauge,
    open: Gauge,
    products: Gauge,
    bytes: Gauge,
    left: Gauge,
}

impl SearchMetrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let this = Self {
            searches: Family::default(),
            seconds: Histogram::new(SECONDS),
            updates: Counter::default(),
            rebuilds: Counter::default(),
            version: Gauge::default(),
            open: Gauge::default(),
            products: Gauge::default(),
            bytes: Gauge::default(),
            left: Gauge::default(),
        };
        let search = registry.sub_registry_with_prefix("souk_search");
        search.register(
            "requests",
            "Looks into a site's index: answered, behind (an import is being taken in), building, busy, failed",
            this.searches.clone(),
        );
        search.register(
            "seconds",
            "How long such a look took, waiting for a turn included",
            this.seconds.clone(),
        );
        search.register("index_updates", "Products taken into an index or out of one", this.updates.clone());
        search.register(
            "index_rebuilds",
            "Indexes that were broken or of another format, and made anew",
            this.rebuilds.clone(),
        );
        search.register(
            "index_version",
            "Up to here of the catalogue log every index has everything",
            this.version.clone(),
        );
        search.register("indexes_open", "Indexes whose file is open", this.open.clone());
        search.register("index_products", "Products of catalogues that have an index", this.products.clone());
        search.register("index_bytes", "Bytes of the indexes on the disk", this.bytes.clone());
        search.register("index_backlog", "Changed products that are not in an index yet", this.left.clone());
        this
    }

    pub(super) fn searched(&self, outcome: &'static str, took: Duration) {
        self.searches.get_or_create(&OutcomeLabels { outcome }).inc();
        self.seconds.observe(took.as_secs_f64());
    }

    pub(super) fn moved(&self, before: Told, now: Told) {
        for (gauge, before, now) in [
            (&self.open, before.open, now.open),
            (&self.products, before.products, now.products),
            (&self.bytes, before.bytes, now.bytes),
            (&self.left, before.left, now.left),
        ] {
            gauge.inc_by(now.saturating_sub(before));
        }
    }
}
