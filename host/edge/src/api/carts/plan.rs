//! What a wish and the shop's plugins together make of a cart. Pure: no lock, no store, no clock.

use std::collections::BTreeMap;

use souk_commerce::cart::{Cart, Edit, Entry, LineKey};
use souk_commerce::id::{Country, PluginName};
use souk_sandbox::CartOp;

use super::{Limited, Wish};
use crate::rescue::Problem;

/// What a change comes to, entry by entry: the wish as the plugins have limited it, and what they want beside it.
pub(super) struct Plan {
    country: Option<Country>,
    add: Option<(Entry, i32)>,
    set: BTreeMap<Entry, u32>,
    pub(super) limited: Option<Limited>,
}

impl Plan {
    pub(super) fn make(cart: &Cart, wish: &Wish, ops: &[(PluginName, CartOp)], quantity_max: u32) -> Self {
        let mut plan = Self { country: None, add: None, set: BTreeMap::new(), limited: None };
        let caps = ops.iter().filter_map(|(plugin, op)| match op {
            CartOp::Cap(cap) => Some((*cap, plugin)),
            _ => None,
        });
        let strictest = caps.min_by_key(|(cap, _)| *cap);
        let limit = |line: &LineKey, wanted: u32| {
            let (quantity, plugin) = strictest.filter(|(cap, _)| *cap < wanted)?;
            Some(Limited { line: line.clone(), wanted, quantity, plugin: plugin.clone() })
        };
        match wish {
            Wish::Add { sku, quantity } => {
                let line = LineKey::of(sku.clone());
                let entry = Entry::Line(line.clone());
                plan.limited = limit(&line, cart.quantity(&entry).saturating_add(*quantity));
                match plan.limited.as_ref().map(|limited| limited.quantity) {
                    Some(cap) => plan.want(cart, entry, cap),
                    // An addition adds up with one that is made elsewhere at the same time; a setting would not.
                    None => plan.add = i32::try_from(*quantity).ok().map(|more| (entry, more)),
                }
            }
            Wish::Set { line, quantity } => {
                plan.limited = limit(line, *quantity);
                let allowed = plan.limited.as_ref().map_or(*quantity, |limited| limited.quantity);
                plan.want(cart, Entry::Line(line.clone()), allowed);
            }
            Wish::Remove { line } => plan.want(cart, Entry::Line(line.clone()), 0),
            Wish::PutCoupon(coupon) => plan.want(cart, Entry::Coupon(coupon.clone()), 1),
            Wish::RemoveCoupon(coupon) => plan.want(cart, Entry::Coupon(coupon.clone()), 0),
            Wish::Country(country) => plan.country = Some(country.clone()),
            Wish::Empty => {
                let lines = cart.lines().into_iter().map(|(line, _)| Entry::Line(line));
                let all = lines.chain(cart.coupons().into_iter().map(Entry::Coupon)).collect::<Vec<_>>();
                all.into_iter().for_each(|entry| plan.want(cart, entry, 0));
            }
        }
        for (plugin, op) in ops {
            match op {
                CartOp::Cap(_) => {}
                CartOp::Put { sku, quantity } => {
                    let line = LineKey::added(sku.clone(), plugin.clone());
                    plan.want(cart, Entry::Line(line), (*quantity).min(quantity_max));
                }
                CartOp::Remove(line) => plan.want(cart, Entry::Line(line.clone()), 0),
            }
        }
        plan
    }

    /// Notes a quantity, unless it is there already: a gift that stays is not an operation each time.
    fn want(&mut self, cart: &Cart, entry: Entry, quantity: u32) {
        if cart.quantity(&entry) == quantity {
            self.set.remove(&entry);
        } else {
            self.set.insert(entry, quantity);
        }
    }

    pub(super) fn draw(&self, edit: &mut Edit<'_>) -> Result<(), Problem> {
        if let Some(country) = &self.country {
            edit.country(country.clone());
        }
        if let Some((entry, more)) = &self.add
            && !self.set.contains_key(entry)
        {
            edit.add(entry.clone(), *more)?;
        }
        for (entry, quantity) in &self.set {
            edit.set(entry.clone(), *quantity)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use souk_commerce::clock::Hlc;
    use souk_commerce::id::{Epoch, NodeId, Sku};

    use super::*;

    fn sku(text: &str) -> Sku {
        text.parse().expect("a sku")
    }

    fn apply(cart: &mut Cart, wish: &Wish, ops: &[(PluginName, CartOp)]) -> bool {
        let plan = Plan::make(cart, wish, ops, 100);
        let mut edit = cart.edit(NodeId(1), Epoch(1), Hlc::at(1));
        plan.draw(&mut edit).expect("room");
        let delta = edit.finish();
        cart.apply(&delta);
        !delta.is_empty()
    }

    #[test]
    fn plugins_cap_put_and_remove() {
        let plugin: PluginName = "rules".parse().expect("a plugin");
        let mut cart = Cart::new();
        let add = |quantity| Wish::Add { sku: sku("A"), quantity };
        let quantity = |cart: &Cart, text: &str| cart.quantity(&Entry::Line(text.parse().expect("a line")));
        let gift = |quantity| (plugin.clone(), CartOp::Put { sku: sku("GIFT"), quantity });
        assert!(apply(&mut cart, &add(3), &[gift(1)]));
        assert_eq!((quantity(&cart, "A"), quantity(&cart, "GIFT~rules")), (3, 1));
        assert!(apply(
            &mut cart,
            &add(9),
            &[(plugin.clone(), CartOp::Cap(5)), (plugin.clone(), CartOp::Cap(7)), gift(1)]
        ));
        assert_eq!(quantity(&cart, "A"), 5);
        assert!(
            !apply(&mut cart, &add(9), &[(plugin.clone(), CartOp::Cap(5)), gift(1)]),
            "nothing changes, nothing is written"
        );
        let caps = [(plugin.clone(), CartOp::Cap(7)), (plugin.clone(), CartOp::Cap(6))];
        let said = Plan::make(&cart, &add(9), &caps, 100).limited.expect("less than was wished for");
        assert_eq!((said.line, said.wanted, said.quantity), (LineKey::of(sku("A")), 14, 6));
        assert!(Plan::make(&cart, &add(1), &caps, 100).limited.is_none());
        let remove = Wish::Remove { line: LineKey::of(sku("A")) };
        assert!(apply(&mut cart, &remove, &[gift(0)]));
        assert!(cart.lines().is_empty());
        assert!(apply(&mut cart, &add(1), &[gift(9_999)]));
        assert_eq!(quantity(&cart, "GIFT~rules"), 100, "the shop's limit holds for plugins too");
        assert!(apply(&mut cart, &Wish::Empty, &[]));
        assert!(cart.lines().is_empty());
    }
}
