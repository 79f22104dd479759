//! How many units a node gets.

use super::{Ledger, Terms};

/// A product that a node's shoppers want to be promised fewer of than this in a minute is promised by the region: a question
/// every ten seconds costs it nothing.
pub const HOT_PER_MINUTE: u64 = 6;
/// The last twentieth (5 %) of what was counted is never lent: the region alone decides who gets the last ones.
pub const KEPT_BACK_PARTS: u64 = 20;
/// One node's part of what can be lent of a product is at most a half: a node that is cut off takes no more out of the shop.
const ONE_NODE_PARTS: u64 = 2;
/// One answer gives at most a quarter of what is free, so that nodes which ask within the same second all get some.
const ONE_ANSWER_PARTS: u64 = 4;
/// Of one product to one node. A thousand a second for ten minutes; more is a mistake in a count.
pub const UNITS_GRANTED_MAX: u64 = 600_000;

/// How many units more a node gets of a product that it is asked `per_minute` for, and of which it has `held` left.
///
/// It should have what its shoppers ask for in the life of a grant: so long it may be on its own.
#[must_use]
pub fn more_for(ledger: &Ledger, held: u64, per_minute: u64, terms: Terms) -> u64 {
    if per_minute < HOT_PER_MINUTE {
        return 0;
    }
    let free = ledger.available.saturating_sub(ledger.counted.div_ceil(KEPT_BACK_PARTS));
    let wanted = per_minute.saturating_mul(terms.life_ms).div_ceil(60_000).min(UNITS_GRANTED_MAX);
    let share = free.saturating_add(ledger.granted) / ONE_NODE_PARTS;
    wanted.min(share).saturating_sub(held).min(free / ONE_ANSWER_PARTS)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const TERMS: Terms = Terms { life_ms: 600_000, hold_ms: 900_000, margin_ms: 60_000 };

    #[test]
    fn only_what_is_hot_is_lent_and_never_the_last_twentieth() {
        let ledger = Ledger::of(1_000);
        assert_eq!(more_for(&ledger, 0, HOT_PER_MINUTE - 1, TERMS), 0);
        assert_eq!(more_for(&ledger, 0, HOT_PER_MINUTE, TERMS), 60, "what ten minutes take");
        assert_eq!(more_for(&ledger, 45, HOT_PER_MINUTE, TERMS), 15, "it has some of it");
        assert_eq!(more_for(&ledger, 0, 10_000, TERMS), 237, "a quarter of what is free");
        let mut nearly_out = ledger;
        nearly_out.sell(949).unwrap();
        assert_eq!(more_for(&nearly_out, 0, 10_000, TERMS), 0);
    }

    proptest! {
        /// Nodes that ask for as much as they like, in any order, leave the region its part, and each other some.
        #[test]
        fn what_is_kept_back_is_kept_back(units in 0..100_000_u64, asks in vec((0..3_usize, 0..1_000_000_u64), 0..200)) {
            let mut ledger = Ledger::of(units);
            let mut held = [0_u64; 3];
            for (node, per_minute) in asks {
                let more = more_for(&ledger, held[node], per_minute, TERMS);
                ledger.grant(more).unwrap();
                held[node] += more;
                prop_assert!(ledger.available >= units.div_ceil(KEPT_BACK_PARTS));
                prop_assert!(held[node] <= units / ONE_NODE_PARTS && held[node] <= UNITS_GRANTED_MAX);
            }
            prop_assert!(ledger.is_whole());
        }
    }
}
