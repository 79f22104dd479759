//! What was acknowledged, how long it took, and what went wrong: the evidence that the verdict is made from.
//!
//! Shoppers write, the audit and the report read. An operation is acknowledged by a 2xx and by nothing else.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use hdrhistogram::Histogram;

/// Findings of one kind kept in words; beyond that they are only counted.
const FINDINGS_MAX: usize = 200;
/// Three significant digits up to two minutes: 100 KiB a histogram.
const LATENCY_US_MAX: u64 = 120_000_000;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Create,
    Add,
    Change,
    Read,
    Quote,
    Checkout,
}

/// Counted in full, described up to a bound.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) count: u64,
    pub(super) described: Vec<String>,
}

impl Findings {
    pub(super) fn add(&mut self, text: impl Into<String>) {
        self.count += 1;
        if self.described.len() < FINDINGS_MAX {
            self.described.push(text.into());
        }
    }
}

/// Latency of what was answered with a 2xx.
#[derive(Debug)]
pub(super) struct Latency {
    pub(super) overall: Histogram<u64>,
    pub(super) during_cut: Histogram<u64>,
    /// Refusals while the region was away, by what was answered.
    pub(super) refused_during_cut: BTreeMap<String, u64>,
}

impl Latency {
    fn new() -> Self {
        let empty = || {
            Histogram::new_with_max(LATENCY_US_MAX, 3).expect("the bounds are constants that are in order")
        };
        Self { overall: empty(), during_cut: empty(), refused_during_cut: BTreeMap::new() }
    }
}

#[derive(Debug)]
pub(super) struct Tally {
    /// Durable changes.
    pub(super) acknowledged: u64,
    /// Reads: nothing can be lost of them, and they are no part of the above.
    pub(super) quotes: u64,
    /// Attempts that had to be repeated, by what was answered.
    pub(super) retries: BTreeMap<String, u64>,
    /// The connection died, or the node said that it does not know.
    pub(super) unknown: u64,
    /// Of those, the ones that had been done after all.
    pub(super) unknown_done: u64,
    pub(super) moves: u64,
    /// Shoppers who stayed because the other PoP could not get the cart just then.
    pub(super) moves_put_off: u64,
    /// Checkouts that had to be tried again because the region was away.
    pub(super) checkouts_put_off: u64,
    pub(super) add: Latency,
    pub(super) quote: Latency,
    /// A PoP showed a travelling shopper an old cart.
    pub(super) stale_reads: Findings,
    pub(super) differing_quotes: Findings,
    /// A line held neither what it held before an operation of unknown outcome nor what it should after it.
    pub(super) strange_lines: Findings,
    /// Operations that the shop refused with a reason.
    pub(super) refused: Findings,
    /// Operations that were never answered.
    pub(super) unanswered: Findings,
    pub(super) kills: u64,
    pub(super) region_kills: u64,
    /// How long the link was cut, once it is whole again.
    pub(super) cut: Option<Duration>,
    pub(super) faults: Findings,
}

/// One line of a cart as its shopper knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct LineBook {
    pub(super) quantity: u32,
    /// Acknowledged operations on the line.
    pub(super) acknowledged: u64,
    /// The shopper gave up on an operation without learning its outcome.
    pub(super) uncertain: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OrderBook {
    pub(super) id: String,
    pub(super) total: i64,
}

/// A whole cart as its shopper knows it.
#[derive(Debug, Clone, Default)]
pub(super) struct CartBook {
    pub(super) invoice: String,
    pub(super) cart: String,
    /// The last read-your-writes token: a node that honours it must show everything below.
    pub(super) cookies: String,
    pub(super) lines: BTreeMap<String, LineBook>,
    pub(super) coupons: Vec<String>,
    pub(super) order: Option<OrderBook>,
}

#[derive(Debug)]
pub(super) struct Books {
    tally: Mutex<Tally>,
    cut: AtomicBool,
}

impl Books {
    pub(super) fn new() -> Self {
        let tally = Tally {
            acknowledged: 0,
            quotes: 0,
            retries: BTreeMap::new(),
            unknown: 0,
            unknown_done: 0,
            moves: 0,
            moves_put_off: 0,
            checkouts_put_off: 0,
            add: Latency::new(),
            quote: Latency::new(),
            stale_reads: Findings::default(),
            differing_quotes: Findings::default(),
            strange_lines: Findings::default(),
            refused: Findings::default(),
            unanswered: Findings::default(),
            kills: 0,
            region_kills: 0,
            cut: None,
            faults: Findings::default(),
        };
        Self { tally: Mutex::new(tally), cut: AtomicBool::new(false) }
    }

    pub(super) fn tally(&self) -> MutexGuard<'_, Tally> {
        // A shopper that panicked in here left counters that are whole: each is written by one statement.
        self.tally.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(super) fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Relaxed)
    }

    pub(super) fn set_cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::Relaxed);
    }

    /// An answer with 2xx. `was_cut` says whether the region was away when the request began.
    pub(super) fn answered(&self, kind: Kind, took: Duration, was_cut: bool) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(LATENCY_US_MAX);
        let during_cut = was_cut && self.is_cut();
        let mut tally = self.tally();
        let latency = match kind {
            Kind::Add => &mut tally.add,
            Kind::Quote => &mut tally.quote,
            Kind::Create | Kind::Change | Kind::Read | Kind::Checkout => return,
        };
        latency.overall.saturating_record(micros);
        if during_cut {
            latency.during_cut.saturating_record(micros);
        }
    }

    /// An answer that was no 2xx while the region was away, to something that does not need the region.
    pub(super) fn refused_during_cut(&self, kind: Kind, why: &str) {
        let mut tally = self.tally();
        let refused = match kind {
            Kind::Add => &mut tally.add.refused_during_cut,
            Kind::Quote => &mut tally.quote.refused_during_cut,
            Kind::Create | Kind::Change | Kind::Read | Kind::Checkout => return,
        };
        *refused.entry(why.to_owned()).or_default() += 1;
    }
}
