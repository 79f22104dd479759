//! Which carts the node may forget: those that nobody has changed for long and that the region holds whole.
//!
//! Owns the rule and the place where the next look begins. The committer looks at a few rows at a time, so that a
//! change never waits for a table of a million carts. A cart that is forgotten too soon is fetched again; one that the
//! region does not hold whole is never forgotten, or its next change would take dots that were used before.

use std::ops::Bound;
use std::time::{Duration, Instant, SystemTime};

use redb::{Database, ReadableDatabase as _, ReadableTableMetadata as _};
use souk_commerce::cart::Cart;
use souk_commerce::id::SiteId;

use super::carts::{CartKey, CartRow};
use super::outbox::{self, Facts};

/// As long as the shopper's cookie lives.
const IDLE_AGE: Duration = Duration::from_secs(30 * 24 * 3600);
/// An ordered cart is read for a while on the page that thanks for the order; it never changes again.
const SEALED_AGE: Duration = Duration::from_secs(7 * 24 * 3600);
/// A cart without any operation holds nothing, and whoever asks for one need not be a shopper.
const EMPTY_AGE: Duration = Duration::from_secs(24 * 3600);
/// Rows that are looked at in one go: about a millisecond.
const ROWS_MAX: usize = 256;
/// Pause between two looks …
pub(super) const STEP_EVERY: Duration = Duration::from_secs(1);
/// … and between two passes over all carts.
const REST: Duration = Duration::from_secs(600);

/// Where the pass over the carts is.
#[derive(Debug)]
pub(super) struct Sweep {
    after: Option<CartKey>,
    next: Instant,
    bytes: u64,
}

/// What one look has found.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) expired: Vec<CartKey>,
    /// Carts held, the expired ones among them.
    pub(super) carts: u64,
    /// Their bytes, at the end of a pass.
    pub(super) bytes: Option<u64>,
}

impl Sweep {
    pub(super) fn new(now: Instant) -> Self {
        Self { after: None, next: now + STEP_EVERY, bytes: 0 }
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        now >= self.next
    }

    /// Looks at the next few carts. `now_ms` is the wall clock: if it is wrong, carts are forgotten and fetched again.
    pub(super) fn step(
        &mut self,
        db: &Database,
        facts: &Facts,
        now: Instant,
        now_ms: u64,
    ) -> Result<Step, redb::Error> {
        self.next = now + STEP_EVERY;
        let table = db.begin_read()?.open_table(outbox::CART)?;
        let from = self.after.as_ref().map_or(Bound::Unbounded, |key| Bound::Excluded(outbox::cart_key(key)));
        let mut expired = Vec::new();
        let (mut seen, mut last) = (0, None);
        for entry in table.range((from, Bound::Unbounded))?.take(ROWS_MAX) {
            let (key, value) = entry?;
            let (site, cart) = key.value();
            seen += 1;
            self.bytes += value.value().len() as u64;
            let Ok(site) = site.parse::<SiteId>() else { continue };
            let key = CartKey { site, cart: outbox::cart_id(cart) };
            // What cannot be read is left for somebody to look at.
            if minicbor::decode::<CartRow>(value.value()).is_ok_and(|row| is_expired(&row, facts, now_ms)) {
                expired.push(key.clone());
            }
            last = Some(key);
        }
        let whole = seen < ROWS_MAX;
        self.after = if whole { None } else { last };
        let bytes = whole.then(|| std::mem::take(&mut self.bytes));
        if whole {
            self.next = now + REST;
        }
        Ok(Step { expired, carts: table.len()?, bytes })
    }
}

fn is_expired(row: &CartRow, facts: &Facts, now_ms: u64) -> bool {
    // A position of an epoch before is one that was acknowledged then: the others got new ones.
    let at_region = row.last.is_none_or(|at| Some(at.epoch) != facts.epoch || at.seq <= facts.acked);
    let age = match (row.order, row.last) {
        (Some(_), _) => SEALED_AGE,
        (None, None) if row.state == Cart::new().to_bytes() => EMPTY_AGE,
        (None, _) => IDLE_AGE,
    };
    let idle = Duration::from_millis(now_ms.saturating_sub(row.touched_ms.unwrap_or(0)));
    at_region && idle >= age
}

pub(super) fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use souk_commerce::id::{Epoch, OrderId};

    use super::super::carts::{Held, Position};
    use super::*;

    #[test]
    fn only_what_is_old_and_at_the_region_is_forgotten() {
        let day = 24 * 3600 * 1_000;
        let facts = Facts { epoch: Some(Epoch(2)), acked: 10, next_seq: 21, ..Facts::default() };
        let row = |epoch, seq, order: Option<OrderId>| {
            let last = Some(Position { epoch: Epoch(epoch), seq });
            Held { last, order, touched_ms: Some(day), ..Held::default() }.to_row()
        };
        let days = |row: &CartRow, days: u64| is_expired(row, &facts, (1 + days) * day);
        let idle = row(2, 10, None);
        assert!(!days(&idle, 29) && days(&idle, 30));
        assert!(!days(&row(2, 11, None), 400), "the region does not have it yet");
        assert!(days(&row(1, 99, None), 30), "acknowledged in its epoch");
        let sealed = row(2, 10, Some(OrderId([1; 16])));
        assert!(!days(&sealed, 6) && days(&sealed, 7));
        let empty = Held { touched_ms: Some(day), ..Held::default() }.to_row();
        assert!(!days(&empty, 0) && days(&empty, 1));
    }
}
