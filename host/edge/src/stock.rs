//! Stock that is promised to carts: what shoppers of this node want, and what the region lends for it.
//!
//! Owns the measure of demand and the one task that asks the region what is lent to this node. Promises themselves are made by
//! the API ([`crate::api`]) through [`crate::state::State::promise`]; how much is lent, the region decides.
//!
//! One question is under way at a time, and each has a greater number than any before it: the region then knows which is the
//! last, whatever was given up and comes late. A question says which leases the node has, and up to where its outbox goes, in
//! this order: what was taken of a lease that is not named is in operations up to there.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use souk_commerce::call::{Request, Response, STOCK_PRODUCTS_MAX, StockQuestion, Wanted};
use souk_commerce::id::{SiteId, Sku};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::node::Node;
use crate::state::Leased;
use crate::uplink::AskError;

/// Between two questions. A product that becomes hot is lent within two of them.
const PAUSE: Duration = Duration::from_secs(1);
/// After a region that does not understand: it is a release older.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(60);
/// Products whose demand is measured. At 200 bytes each, 1 MB; what comes beyond that is promised by the region.
const MEASURED_MAX: usize = 4_096;
/// Demand of so long ago counts by a third.
const MEMORY_MS: u64 = 20_000;

/// How often one product is wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Pace {
    /// Thousandths of units in a minute: whole ones would round every slow pace down to none.
    milli_per_minute: u64,
    /// Since it was computed.
    units: u64,
}

impl Pace {
    /// What is wanted in a minute, after so long: an average in which the past fades.
    const fn after(self, ms: u64) -> Self {
        let faded = self.milli_per_minute.saturating_mul(MEMORY_MS);
        let fresh = self.units.saturating_mul(60_000_000);
        Self { milli_per_minute: faded.saturating_add(fresh) / MEMORY_MS.saturating_add(ms), units: 0 }
    }

    const fn per_minute(self) -> u64 {
        self.milli_per_minute / 1_000
    }
}

#[derive(Debug, Default)]
struct Demand(HashMap<(SiteId, Sku), Pace>);

impl Demand {
    fn note(&mut self, site: &SiteId, sku: &Sku, units: u64) {
        let has_room = self.0.len() < MEASURED_MAX;
        let key = (site.clone(), sku.clone());
        if let Some(pace) = self.0.get_mut(&key) {
            pace.units = pace.units.saturating_add(units);
        } else if has_room {
            self.0.insert(key, Pace { milli_per_minute: 0, units });
        }
    }

    /// The products that are wanted most, after so long; what nobody wants any more is forgotten.
    fn hottest(&mut self, ms: u64) -> Vec<Wanted> {
        self.0.retain(|_, pace| {
            *pace = pace.after(ms);
            pace.per_minute() > 0
        });
        let wanted = |(key, pace): (&(SiteId, Sku), &Pace)| Wanted {
            site: key.0.clone(),
            sku: key.1.clone(),
            per_minute: pace.per_minute(),
        };
        let mut wanted: Vec<_> = self.0.iter().map(wanted).collect();
        wanted.sort_unstable_by(|a, b| {
            b.per_minute.cmp(&a.per_minute).then_with(|| (&a.site, &a.sku).cmp(&(&b.site, &b.sku)))
        });
        wanted.truncate(STOCK_PRODUCTS_MAX);
        wanted
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// What is wanted, and what became of it.
#[derive(Debug, Default)]
pub struct Stock {
    demand: Mutex<Demand>,
    wanted: Notify,
    reservations: Family<Outcome, Counter>,
    questions: Family<Outcome, Counter>,
    leases: Gauge,
    units: Gauge,
}

impl Stock {
    pub fn register(registry: &mut Registry) -> Self {
        let this = Self::default();
        registry.register(
            "souk_reservations",
            "Products of carts that were to be promised: here (of what is lent to this node), region, uncounted, or why not",
            this.reservations.clone(),
        );
        registry.register(
            "souk_stock_questions",
            "Questions to the region about lent stock: answered, old, or without an answer",
            this.questions.clone(),
        );
        registry.register(
            "souk_stock_leases",
            "Products of which units are lent to this node",
            this.leases.clone(),
        );
        registry.register("souk_stock_units", "Units that this node can promise now", this.units.clone());
        this
    }

    /// Somebody wants to be promised so many.
    pub fn want(&self, site: &SiteId, sku: &Sku, units: u64) {
        self.demand.lock().note(site, sku, units);
        self.wanted.notify_one();
    }

    pub fn count(&self, outcome: &'static str) {
        self.reservations.get_or_create(&Outcome { outcome }).inc();
    }

    /// For the metrics page.
    pub fn sample(&self, leases: &[Leased]) {
        let count = |gauge: &Gauge, value: u64| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        count(&self.leases, leases.len() as u64);
        count(&self.units, leases.iter().map(|lease| lease.left).sum());
    }

    fn questioned(&self, outcome: &'static str) {
        self.questions.get_or_create(&Outcome { outcome }).inc();
    }
}

/// Asks the region, as long as something is wanted or lent. Ends with the token; what is lent then is kept.
pub(crate) async fn keep(node: Arc<Node>, shutdown: CancellationToken) {
    let mut turn = node.state.facts().stock_turn;
    let mut measured_ms = node.state.steady_ms();
    loop {
        let pause = async {
            let leases = match node.state.leases() {
                Ok(leases) => leases,
                Err(error) => {
                    tracing::debug!(%error, "what is lent to this node cannot be read");
                    return PAUSE;
                }
            };
            let asked_ms = node.state.steady_ms();
            let wanted = node.stock.demand.lock().hottest(asked_ms.saturating_sub(measured_ms));
            measured_ms = asked_ms;
            if leases.is_empty() && wanted.is_empty() {
                node.stock.wanted.notified().await;
                measured_ms = node.state.steady_ms();
                return PAUSE;
            }
            turn = turn.saturating_add(1);
            ask(&node, &mut turn, asked_ms, &leases, wanted).await
        };
        let Some(pause) = shutdown.run_until_cancelled(pause).await else { return };
        if shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
    }
}

/// One question and its answer. Returns how long to rest.
async fn ask(node: &Node, turn: &mut u64, asked_ms: u64, leases: &[Leased], wanted: Vec<Wanted>) -> Duration {
    // After the leases were read: see the top of this file.
    let facts = node.state.facts();
    let Some(epoch) = facts.epoch else { return PAUSE };
    let open = leases.iter().map(|lease| lease.grant).collect();
    let question = StockQuestion { turn: *turn, epoch, last: facts.last(), open, wanted };
    match node.uplink.ask(&Request::Stock(question)).await {
        Ok(Response::Stock { older_than: Some(newest), .. }) => {
            node.stock.questioned("old");
            *turn = (*turn).max(newest);
            PAUSE
        }
        Ok(Response::Stock { older_than: None, grants }) => {
            node.stock.questioned("answered");
            // Every second, for as long as something is hot: what says nothing new costs no sync.
            if grants.is_empty() && leases.is_empty() {
                return PAUSE;
            }
            if let Err(error) = node.state.set_leases(*turn, asked_ms, grants).await {
                tracing::warn!(%error, "what is lent to this node could not be written down: it ends in its time");
            }
            PAUSE
        }
        Ok(Response::NotYet { .. }) => {
            node.stock.questioned("not_yet");
            PAUSE
        }
        Ok(other) => {
            node.stock.questioned("failed");
            tracing::warn!(?other, "the region answers about something else");
            PAUSE_AFTER_FAILURE
        }
        Err(AskError::Away | AskError::Unreachable(_) | AskError::Late) => {
            node.stock.questioned("unreachable");
            PAUSE
        }
        Err(AskError::Failed(why)) => {
            node.stock.questioned("failed");
            tracing::info!(why, "the region does not lend stock: it is of the release before this, or fails");
            PAUSE_AFTER_FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site() -> SiteId {
        "shop".parse().expect("a site")
    }

    fn sku(n: usize) -> Sku {
        format!("SKU-{n}").parse().expect("a sku")
    }

    #[test]
    fn demand_rises_at_once_and_fades() {
        let mut pace = Pace { milli_per_minute: 0, units: 100 }.after(1_000);
        assert_eq!(pace.per_minute(), 285);
        for _ in 0..120 {
            pace.units = 10;
            pace = pace.after(1_000);
        }
        assert!((590..=600).contains(&pace.per_minute()), "ten a second are 600 a minute: {pace:?}");
        for _ in 0..200 {
            pace = pace.after(1_000);
        }
        assert_eq!(pace.per_minute(), 0);
    }

    #[test]
    fn what_is_measured_and_said_is_bounded_and_the_hottest_comes_first() {
        let mut demand = Demand::default();
        for n in 0..MEASURED_MAX + 10 {
            demand.note(&site(), &sku(n), n as u64);
        }
        demand.note(&site(), &sku(7), 1_000_000);
        let hottest = demand.hottest(1_000);
        assert_eq!((hottest.len(), &hottest[0].sku), (STOCK_PRODUCTS_MAX, &sku(7)));
        assert_eq!(hottest[1].sku, sku(MEASURED_MAX - 1));
        for _ in 0..2_000 {
            demand.hottest(1_000);
        }
        assert!(demand.0.is_empty(), "what nobody wants is forgotten");
    }
}
