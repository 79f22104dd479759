//! One product's units: where each of them is.

/// There are not so many. Nothing has moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("only {there} units are there")]
pub struct NotEnough {
    /// How many there are.
    pub there: u64,
}

/// Every unit that was ever received is in exactly one place: `sold + reserved + granted + available = received`.
///
/// Each method moves units from one place to another and keeps that true; those that cannot leave everything as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ledger {
    /// Every unit there ever was.
    pub received: u64,
    /// In an order, or in a checkout that waits for its payment.
    pub sold: u64,
    /// Promised to a cart for a while.
    pub reserved: u64,
    /// Lent to nodes, which may promise them.
    pub granted: u64,
    /// What the region itself can sell now.
    pub available: u64,
    /// Units that the merchant has counted away and that were promised or lent at that time: as they come back, so many of
    /// them are gone instead of available.
    pub short: u64,
    /// What was not sold when somebody last said how much there is: the last part of it is never lent.
    pub counted: u64,
}

fn take(from: &mut u64, units: u64) -> Result<(), NotEnough> {
    let left = from.checked_sub(units).ok_or(NotEnough { there: *from })?;
    *from = left;
    Ok(())
}

impl Ledger {
    /// A product of which so many have come, and nothing was sold yet.
    #[must_use]
    pub fn of(units: u64) -> Self {
        Self { received: units, available: units, counted: units, ..Self::default() }
    }

    /// Whether every unit is in exactly one place.
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        let there = self.sold.saturating_add(self.reserved).saturating_add(self.granted);
        there.saturating_add(self.available) == self.received
    }

    /// What is there and not sold, whoever it is promised or lent to.
    #[must_use]
    pub const fn unsold(&self) -> u64 {
        self.available.saturating_add(self.reserved).saturating_add(self.granted)
    }

    /// What a shopper who comes now may still get, here or at a node.
    #[must_use]
    pub const fn open(&self) -> u64 {
        self.available.saturating_add(self.granted)
    }

    fn close_books(&mut self) {
        self.received = self.sold.saturating_add(self.unsold());
    }

    /// Somebody has counted: so many are there and not sold, the promised and the lent ones among them. When that is fewer
    /// than are promised and lent, the difference goes as they come back.
    pub fn recount(&mut self, unsold: u64) {
        let out = self.reserved.saturating_add(self.granted);
        self.available = unsold.saturating_sub(out);
        self.short = out.saturating_sub(unsold);
        self.counted = unsold;
        self.close_books();
    }

    /// Somebody has said how many are free to be sold, whatever is promised and lent beside.
    pub fn set_available(&mut self, units: u64) {
        (self.available, self.short) = (units, 0);
        self.counted = self.unsold();
        self.close_books();
    }

    /// Units come back from wherever they were taken.
    fn give(&mut self, units: u64) {
        let gone = units.min(self.short);
        self.short -= gone;
        self.received = self.received.saturating_sub(gone);
        self.available = self.available.saturating_add(units - gone);
    }

    /// Sells units that nobody was promised.
    pub fn sell(&mut self, units: u64) -> Result<(), NotEnough> {
        take(&mut self.available, units)?;
        self.sold = self.sold.saturating_add(units);
        Ok(())
    }

    /// Sells units to whom they were promised.
    pub fn sell_reserved(&mut self, units: u64) -> Result<(), NotEnough> {
        take(&mut self.reserved, units)?;
        self.sold = self.sold.saturating_add(units);
        Ok(())
    }

    /// An order is off. Units that were sold before there was this ledger come in as received.
    pub fn unsell(&mut self, units: u64) {
        let known = units.min(self.sold);
        self.sold -= known;
        self.received = self.received.saturating_add(units - known);
        self.give(units);
    }

    /// The region promises units to a cart.
    pub fn reserve(&mut self, units: u64) -> Result<(), NotEnough> {
        take(&mut self.available, units)?;
        self.reserved = self.reserved.saturating_add(units);
        Ok(())
    }

    /// A promise has lapsed or was given up.
    pub fn release(&mut self, units: u64) -> Result<(), NotEnough> {
        take(&mut self.reserved, units)?;
        self.give(units);
        Ok(())
    }

    /// Lends units to a node.
    pub fn grant(&mut self, units: u64) -> Result<(), NotEnough> {
        take(&mut self.available, units)?;
        self.granted = self.granted.saturating_add(units);
        Ok(())
    }

    /// A node has promised units of its grant to a cart.
    pub fn consume(&mut self, units: u64) -> Result<(), NotEnough> {
        take(&mut self.granted, units)?;
        self.reserved = self.reserved.saturating_add(units);
        Ok(())
    }

    /// What is left of a grant comes back.
    pub fn reclaim(&mut self, units: u64) -> Result<(), NotEnough> {
        take(&mut self.granted, units)?;
        self.give(units);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        /// Whatever is done in whatever order: each unit is in one place, and a refusal has moved none.
        #[test]
        fn no_unit_is_lost_or_made(start in 0..500_u64, steps in vec((0..11_u8, 0..80_u64), 0..200)) {
            let mut ledger = Ledger::of(start);
            for (step, units) in steps {
                let before = ledger;
                let done = match step {
                    0 => ledger.sell(units),
                    1 => ledger.sell_reserved(units),
                    2 => { ledger.unsell(units.min(before.sold)); Ok(()) }
                    3 => ledger.reserve(units),
                    4 => ledger.release(units),
                    5 => ledger.grant(units),
                    6 => ledger.consume(units),
                    7 => ledger.reclaim(units),
                    8 => { ledger.recount(units * 5); Ok(()) }
                    9 => { ledger.set_available(units * 5); Ok(()) }
                    // Of an order that is older than the ledger.
                    _ => { ledger.unsell(units); Ok(()) }
                };
                prop_assert!(ledger.is_whole(), "{before:?} becomes {ledger:?} by {step}");
                if done.is_err() {
                    prop_assert_eq!(ledger, before);
                }
                if step <= 7 {
                    prop_assert!(ledger.unsold() + ledger.sold <= before.unsold() + before.sold);
                }
            }
        }

        /// A merchant who counts fewer than are promised gets exactly that number, once everything is back.
        #[test]
        fn a_count_is_what_is_there_in_the_end(there in 0..200_u64, out in 0..200_u64, counted in 0..200_u64) {
            let mut ledger = Ledger::of(there + out);
            ledger.grant(out).unwrap();
            ledger.consume(out / 2).unwrap();
            ledger.recount(counted);
            ledger.release(out / 2).unwrap();
            ledger.reclaim(out - out / 2).unwrap();
            prop_assert_eq!((ledger.available, ledger.short, ledger.is_whole()), (counted, 0, true));
        }
    }
}
