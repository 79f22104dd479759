//! What a shopper is going to do: decided before the first request, by the seed and the invoice alone.
//!
//! Pure, so that the same seed makes the same shoppers. Every path of the cart API is walked by somebody: most lines
//! are plainly added, some are corrected, some are taken out and added again; some shoppers have a coupon, some ask
//! what it costs half-way, some travel.

use std::collections::BTreeMap;

use souk_commerce::id::Sku;

use super::invoices::Invoice;

/// Every so-many-th shopper…
const TRAVELS: usize = 5;
const HAS_COUPON: usize = 7;
const HAS_SECOND_COUPON: usize = 21;
const HAS_EXPIRED_COUPON: usize = 35;
const ASKS_EARLY: usize = 4;
/// …and every so-many-th line.
const CORRECTED: u64 = 9;
const TAKEN_OUT: u64 = 13;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Add(Sku, u32),
    Set(Sku, u32),
    Remove(Sku),
    Coupon(&'static str),
    Quote,
    /// Go on at the next PoP.
    Travel,
}

/// Which PoP (an index, to be taken modulo their number) and then what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) begins_at: usize,
    pub(super) steps: Vec<Step>,
}

pub(super) fn plan(invoice: &Invoice, index: usize, seed: u64) -> Plan {
    let mut steps = Vec::with_capacity(invoice.lines.len() + 8);
    let mut held: BTreeMap<&Sku, u32> = BTreeMap::new();
    let half = invoice.lines.len().div_ceil(2);
    for (at, (sku, quantity)) in invoice.lines.iter().enumerate() {
        let total = held.entry(sku).or_default();
        *total += quantity;
        let dice = mix(seed, index as u64, at as u64);
        if dice.is_multiple_of(CORRECTED) {
            steps.push(Step::Add(sku.clone(), quantity + 1));
            steps.push(Step::Set(sku.clone(), *total));
        } else if dice.is_multiple_of(TAKEN_OUT) {
            steps.push(Step::Add(sku.clone(), *quantity));
            steps.push(Step::Remove(sku.clone()));
            steps.push(Step::Add(sku.clone(), *total));
        } else {
            steps.push(Step::Add(sku.clone(), *quantity));
        }
        if at + 1 == half {
            let is = |every: usize| index % every == every - 1;
            let coupons =
                [(HAS_COUPON, "REPLAY7"), (HAS_SECOND_COUPON, "FIVER"), (HAS_EXPIRED_COUPON, "GONE")];
            steps.extend(coupons.iter().filter(|(every, _)| is(*every)).map(|(_, code)| Step::Coupon(code)));
            if is(ASKS_EARLY) {
                steps.push(Step::Quote);
            }
            if is(TRAVELS) {
                steps.push(Step::Travel);
            }
        }
    }
    steps.push(Step::Quote);
    Plan { begins_at: usize::try_from(mix(seed, index as u64, u64::MAX) % 1_024).unwrap_or(0), steps }
}

/// SplitMix64 over the three numbers: spread, repeatable, and no secret.
pub(super) fn mix(seed: u64, a: u64, b: u64) -> u64 {
    let step = |x: u64| {
        let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    };
    step(step(seed.wrapping_add(0x9e37_79b9_7f4a_7c15)).wrapping_add(a)).wrapping_add(step(b.wrapping_add(1)))
        >> 3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invoice(lines: usize) -> Invoice {
        let sku = |n: usize| format!("SKU-{}", n % 40).parse().expect("a sku");
        let lines = (0..lines).map(|n| (sku(n), u32::try_from(n % 5 + 1).expect("small"))).collect();
        Invoice { number: "1".into(), country: None, customer: None, lines }
    }

    /// What is in the cart when every step has been done.
    fn end(plan: &Plan) -> BTreeMap<Sku, u32> {
        let mut cart: BTreeMap<Sku, u32> = BTreeMap::new();
        for step in &plan.steps {
            match step {
                Step::Add(sku, n) => *cart.entry(sku.clone()).or_default() += n,
                Step::Set(sku, n) => drop(cart.insert(sku.clone(), *n)),
                Step::Remove(sku) => drop(cart.remove(sku)),
                Step::Coupon(_) | Step::Quote | Step::Travel => {}
            }
        }
        cart
    }

    #[test]
    fn detours_end_where_the_invoice_does() {
        for seed in 0..50 {
            let invoice = invoice(100);
            let mut wanted: BTreeMap<Sku, u32> = BTreeMap::new();
            for (sku, n) in &invoice.lines {
                *wanted.entry(sku.clone()).or_default() += n;
            }
            assert_eq!(end(&plan(&invoice, 3, seed)), wanted, "seed {seed}");
        }
    }

    #[test]
    fn the_same_seed_makes_the_same_shopper_and_another_seed_another() {
        let invoice = invoice(60);
        assert_eq!(plan(&invoice, 8, 1), plan(&invoice, 8, 1));
        assert_ne!(plan(&invoice, 8, 1), plan(&invoice, 8, 2));
    }

    #[test]
    fn every_kind_of_step_is_taken_by_somebody() {
        let steps: Vec<Step> = (0..35).flat_map(|index| plan(&invoice(20), index, 1).steps).collect();
        for code in ["REPLAY7", "FIVER", "GONE"] {
            assert!(steps.contains(&Step::Coupon(code)), "{code}");
        }
        assert_eq!(steps.iter().filter(|s| **s == Step::Travel).count(), 7);
        assert!(steps.iter().any(|s| matches!(s, Step::Set(..))));
        assert!(steps.iter().any(|s| matches!(s, Step::Remove(..))));
    }
}
