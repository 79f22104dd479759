//! A grant as each side keeps it: the region's count of it, and the node's right to promise.

use crate::{
    EpochNo, NodeState, Seq,
    planted::{Bug, planted},
};

/// How long things last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// From an answer of the region to the end of the grants that it names.
    pub life_ms: u64,
    /// How long a cart is promised its units: the longest that a promise out of a grant can last after the grant's end.
    pub hold_ms: u64,
    /// What the region waits beyond that, for a question that took long on its way.
    pub margin_ms: u64,
}

/// Where a node's outbox stood when it said that it would take nothing more from a grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed {
    /// In which epoch.
    pub epoch: EpochNo,
    /// Everything that it has taken is in operations up to here.
    pub seq: Seq,
}

/// A grant at its region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// All that was ever granted under this number.
    pub units: u64,
    /// What the node has promised of it, as far as the region knows.
    pub consumed: u64,
    /// On the region's clock.
    pub expires_ms: u64,
    /// Once the node has said that it takes nothing more.
    pub closed: Option<Closed>,
}

impl Grant {
    /// What the node may still promise, as far as the region knows: so much is `granted` in the product's ledger.
    #[must_use]
    pub const fn left(&self) -> u64 {
        self.units.saturating_sub(self.consumed)
    }

    /// A node says that it has promised so many. False: that is more than it had.
    #[must_use]
    pub const fn take(&mut self, units: u64) -> bool {
        let fits = units <= self.left();
        if fits {
            self.consumed = self.consumed.saturating_add(units);
        }
        fits
    }

    /// Whether nothing can come of it any more that would have to be kept: what is left of it goes back.
    ///
    /// `mark`: the node's newest epoch, and how far it is committed. After a new epoch a node says anew where it stands; until
    /// then what it had accepted may come again under other numbers.
    #[must_use]
    pub fn is_back(&self, mark: Option<NodeState>, terms: Terms, now_ms: u64) -> bool {
        if planted(Bug::ReclaimedEarly) && self.closed.is_some() {
            return true;
        }
        let is_all_in = match (self.closed, mark) {
            (Some(closed), Some(mark)) => mark.epoch == closed.epoch && mark.hwm >= closed.seq,
            _ => false,
        };
        let lapsed_ms = self.expires_ms.saturating_add(terms.hold_ms).saturating_add(terms.margin_ms);
        is_all_in || now_ms >= lapsed_ms
    }
}

/// Part of a grant's life that a node does not use, as one in so many: ten times what a clock is allowed to drift.
const SKEW_PARTS: u64 = 200;
/// And so much beside it, for what a commit takes after the clock was read.
const SKEW_MS: u64 = 500;

/// A grant at its node. Times are of a clock of the node's own that goes on while the machine sleeps, and never back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// All that the region has granted under this number.
    pub units: u64,
    /// What was promised of it.
    pub used: u64,
    /// Nothing is promised from here on.
    pub until_ms: u64,
}

impl Lease {
    /// When a node that has asked at `asked_ms` stops promising: before the region takes the grant for ended, whatever the
    /// answer took on its way.
    #[must_use]
    pub const fn until(asked_ms: u64, lives_ms: u64) -> u64 {
        let skew_ms = SKEW_MS.saturating_add(lives_ms / SKEW_PARTS);
        asked_ms.saturating_add(lives_ms.saturating_sub(skew_ms))
    }

    /// What it can promise now.
    #[must_use]
    pub fn left(&self, now_ms: u64) -> u64 {
        if now_ms >= self.until_ms && !planted(Bug::GrantOutlived) {
            return 0;
        }
        self.units.saturating_sub(self.used)
    }

    /// Promises so many. False: it cannot.
    #[must_use]
    pub fn take(&mut self, units: u64, now_ms: u64) -> bool {
        let fits = units <= self.left(now_ms);
        if fits {
            self.used = self.used.saturating_add(units);
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TERMS: Terms = Terms { life_ms: 600_000, hold_ms: 900_000, margin_ms: 60_000 };

    fn mark(epoch: u32, hwm: u64) -> Option<NodeState> {
        Some(NodeState { epoch, hwm, fold: None })
    }

    #[test]
    fn a_grant_is_back_when_all_that_it_gave_has_come_or_has_lapsed() {
        let mut grant = Grant { units: 10, consumed: 4, expires_ms: 1_000, closed: None };
        let lapsed = 1_000 + TERMS.hold_ms + TERMS.margin_ms;
        assert!(!grant.is_back(mark(3, 99), TERMS, lapsed - 1), "the node has not said that it stops");
        assert!(grant.is_back(None, TERMS, lapsed), "every promise out of it has lapsed");
        grant.closed = Some(Closed { epoch: 3, seq: 40 });
        assert!(!grant.is_back(mark(3, 39), TERMS, 5_000), "an operation is on its way");
        assert!(grant.is_back(mark(3, 40), TERMS, 0));
        assert!(!grant.is_back(mark(4, 90), TERMS, 5_000), "they come again under other numbers");
        assert!(!grant.is_back(None, TERMS, 5_000));
    }

    #[test]
    fn nobody_takes_more_than_there_is() {
        let mut grant = Grant { units: 10, consumed: 4, expires_ms: 0, closed: None };
        assert!(!grant.take(7) && grant.take(6) && !grant.take(1) && grant.take(0));
        let mut lease = Lease { units: 10, used: 4, until_ms: 100 };
        assert!(!lease.take(7, 0) && lease.take(5, 99) && !lease.take(1, 100) && lease.take(1, 99));
    }

    proptest! {
        /// However long the answer took, and with clocks that differ by their tolerance, a node stops first.
        #[test]
        fn a_node_stops_before_its_region_lets_go(
            lives_ms in 0..3_600_000_u64, travelled_ms in 0..120_000_u64, drift_ppm in -500..500_i64,
        ) {
            // On the node's clock the question left at 0; the region began to count at `travelled_ms` at the latest.
            let until_ms = Lease::until(0, lives_ms);
            let real_ms = until_ms as i64 + until_ms as i64 * drift_ppm / 1_000_000;
            prop_assert!(real_ms <= (lives_ms + travelled_ms) as i64);
        }
    }
}
