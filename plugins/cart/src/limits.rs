//! The rules, in the order of the crate's first page.

use souk_sdk::prelude::*;

use crate::settings::{Gift, Settings};

/// The shopper's line that a change is about, as it is and as it would become.
struct Wish<'a> {
    product: &'a Product,
    /// The line in `before`, unless it would be new.
    id: Option<u32>,
    has: u32,
    wants: u32,
}

pub(crate) fn review(settings: &Settings, before: &[Line], change: &Change) -> Answer<Vec<CartOp>> {
    let looked_up;
    let wish = match change {
        Change::Add((sku, more)) => {
            let line = before.iter().find(|line| line.added_by.is_none() && line.product.sku == *sku);
            match line {
                Some(line) => Some(Wish::of(line, line.quantity.saturating_add(*more))),
                None => {
                    looked_up = host::lookup_product(sku)
                        .ok_or_else(|| Refusal::new("unknown_sku", "This product is not for sale."))?;
                    Some(Wish { product: &looked_up, id: None, has: 0, wants: *more })
                }
            }
        }
        Change::Set((id, quantity)) => find(before, *id)?.map(|line| Wish::of(line, *quantity)),
        Change::Remove(id) => find(before, *id)?.map(|line| Wish::of(line, 0)),
    };
    let mut ops = Vec::new();
    if let Some(wish) = &wish {
        ops.extend(limit(settings, before, wish)?.map(CartOp::Cap));
    }
    let cap = match ops.first() {
        Some(CartOp::Cap(cap)) => *cap,
        _ => u32::MAX,
    };
    if let Some(gift) = &settings.gift {
        ops.extend(give(gift, before, total_after(before, wish.as_ref(), cap)));
    }
    Ok(ops)
}

impl<'a> Wish<'a> {
    fn of(line: &'a Line, wants: u32) -> Self {
        Self { product: &line.product, id: Some(line.id), has: line.quantity, wants }
    }
}

/// A line of the shopper's own. A line that is not there is the host's to refuse.
fn find(before: &[Line], id: u32) -> Answer<Option<&Line>> {
    match before.iter().find(|line| line.id == id) {
        Some(line) if line.added_by.is_some() => {
            Err(Refusal::new("part_of_offer", "This line is part of an offer and goes with it."))
        }
        line => Ok(line),
    }
}

/// The cap, if the wish is too great but not in vain.
fn limit(settings: &Settings, before: &[Line], wish: &Wish<'_>) -> Answer<Option<u32>> {
    if wish.wants <= wish.has {
        return Ok(None);
    }
    let own_lines = before.iter().filter(|line| line.added_by.is_none()).count();
    if let (None, Some(max)) = (wish.id, settings.max_lines)
        && own_lines >= usize::try_from(max).unwrap_or(usize::MAX)
    {
        return Err(Refusal::new(
            "too_many_lines",
            &format!("A cart holds at most {max} different products."),
        ));
    }
    let mut room = u32::MAX;
    let mut message = String::new();
    if let Some(max) = settings.max_per_line {
        room = max;
        message = format!("At most {max} of {} in one order.", wish.product.title);
    }
    for rule in settings.max_per_order.iter().filter(|rule| rule.is_for(wish.product)) {
        let others = before.iter().filter(|line| Some(line.id) != wish.id && rule.counts(line));
        let taken = others.fold(0, |sum: u32, line| sum.saturating_add(line.quantity));
        let left = rule.max.saturating_sub(taken);
        if left < room {
            room = left;
            message = rule.message.clone().unwrap_or_else(|| match &rule.tag {
                Some(tag) => format!("At most {} of \"{tag}\" in one order.", rule.max),
                None => format!("At most {} of {} in one order.", rule.max, wish.product.title),
            });
        }
    }
    match room {
        room if wish.wants <= room => Ok(None),
        room if wish.has < room => Ok(Some(room)),
        _ => Err(Refusal::new("limit_reached", &message)),
    }
}

fn total_after(before: &[Line], wish: Option<&Wish<'_>>, cap: u32) -> Minor {
    let worth = |product: &Product, quantity: u32| product.price.saturating_mul(quantity.into());
    let untouched = before
        .iter()
        .filter(|line| line.added_by.is_none() && wish.is_none_or(|wish| wish.id != Some(line.id)))
        .fold(0, |sum: Minor, line| sum.saturating_add(worth(&line.product, line.quantity)));
    untouched.saturating_add(wish.map_or(0, |wish| worth(wish.product, wish.wants.min(cap))))
}

/// Puts the gift in or takes it out, if it is not so already.
fn give(gift: &Gift, before: &[Line], total: Minor) -> Option<CartOp> {
    let there = before.iter().find(|line| line.added_by.is_some() && line.product.sku == gift.sku);
    let has = there.map_or(0, |line| line.quantity);
    let due = if total >= gift.when_total_at_least && can_be_given(&gift.sku) { gift.quantity } else { 0 };
    (has != due).then(|| CartOp::Put((gift.sku.clone(), due)))
}

fn can_be_given(sku: &str) -> bool {
    match host::lookup_product(sku) {
        Some(product) if product.stock == StockHint::Out => {
            host::info(&format!("the gift {sku} is out of stock"));
            false
        }
        Some(_) => true,
        None => {
            host::warn(&format!("the gift {sku} is not a product of this site"));
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Keeper;
    use souk_sdk::testing;

    const SETTINGS: &str = r#"{
        "max_per_line": 100, "max_lines": 3,
        "max_per_order": [
            { "sku": "CLOCK", "max": 2 },
            { "tag": "limited", "max": 5, "message": "Five limited pieces to an order, please." }
        ],
        "gift": { "sku": "BAG", "when_total_at_least": 5000 }
    }"#;

    /// The cart before, the change, and the operations or the code of the refusal.
    type Case = (&'static [(&'static str, u32)], Change, Result<&'static str, &'static str>);

    fn products() {
        testing::reset();
        for product in [
            testing::product("MUG", 255),
            testing::product("JUG", 100),
            testing::product("POT", 100),
            testing::product("CLOCK", 900),
            testing::tagged("PRINT", 100, &["limited"]),
            testing::tagged("VASE", 100, &["limited"]),
            testing::product("BAG", 250),
        ] {
            testing::set_product(product);
        }
    }

    fn cart(lines: &[(&str, u32)]) -> Vec<Line> {
        products();
        (0..)
            .zip(lines)
            .map(|(id, (name, quantity))| match name.split_once('~') {
                None => testing::line(id, host::lookup_product(name).expect("a product"), *quantity),
                Some((sku, plugin)) => testing::line_added_by(
                    plugin,
                    id,
                    host::lookup_product(sku).expect("a product"),
                    *quantity,
                ),
            })
            .collect()
    }

    fn add(sku: &str, more: u32) -> Change {
        Change::Add((sku.to_owned(), more))
    }

    fn decide(lines: &[(&str, u32)], change: Change) -> Result<String, String> {
        match Keeper::review(&testing::context_with(SETTINGS), &cart(lines), &change) {
            Ok(ops) => Ok(ops
                .iter()
                .map(|op| match op {
                    CartOp::Cap(cap) => format!("cap {cap}"),
                    CartOp::Put((sku, quantity)) => format!("put {quantity} {sku}"),
                    CartOp::Remove(id) => format!("remove {id}"),
                })
                .collect::<Vec<_>>()
                .join(", ")),
            Err(refusal) => Err(refusal.code),
        }
    }

    #[test]
    fn limits_cap_what_partly_fits_and_refuse_what_does_not() {
        let table: &[Case] = &[
            (&[], add("JUG", 1), Ok("")),
            (&[], add("JUG", 101), Ok("cap 100, put 1 BAG")),
            (&[("JUG", 10)], add("JUG", u32::MAX), Ok("cap 100, put 1 BAG")),
            (&[("JUG", 100), ("BAG~cart", 1)], add("JUG", 1), Err("limit_reached")),
            (&[("CLOCK", 1)], add("CLOCK", 5), Ok("cap 2")),
            (&[("CLOCK", 2)], Change::Set((0, 3)), Err("limit_reached")),
            (&[("PRINT", 3)], add("VASE", 3), Ok("cap 2")),
            (&[("PRINT", 3), ("VASE", 2)], add("VASE", 1), Err("limit_reached")),
            (&[("PRINT", 3), ("VASE", 2)], Change::Set((1, 1)), Ok("")),
            // The limit came after the cart: less is always welcome.
            (&[("CLOCK", 5)], Change::Set((0, 4)), Ok("")),
            (&[("CLOCK", 5)], Change::Remove(0), Ok("")),
            (&[("MUG", 1), ("JUG", 1), ("CLOCK", 1)], add("POT", 1), Err("too_many_lines")),
            (&[("MUG", 1), ("JUG", 1), ("CLOCK", 1)], add("MUG", 1), Ok("")),
            (&[("MUG", 1), ("JUG", 1), ("BAG~other", 1)], add("POT", 1), Ok("put 0 BAG")),
            (&[], add("NOTHING", 1), Err("unknown_sku")),
            // The host's to refuse.
            (&[], Change::Set((9, 1)), Ok("")),
        ];
        for (lines, change, decision) in table {
            let expected = decision.map(str::to_owned).map_err(str::to_owned);
            assert_eq!(decide(lines, change.clone()), expected, "{lines:?} {change:?}");
        }
    }

    #[test]
    fn the_gift_comes_and_goes_with_the_total() {
        let table: &[Case] = &[
            (&[], add("MUG", 19), Ok("")),
            (&[], add("MUG", 20), Ok("put 1 BAG")),
            (&[("MUG", 20), ("BAG~cart", 1)], add("MUG", 1), Ok("")),
            (&[("MUG", 20), ("BAG~cart", 1)], Change::Set((0, 19)), Ok("put 0 BAG")),
            (&[("MUG", 20), ("BAG~cart", 1)], Change::Remove(0), Ok("put 0 BAG")),
            (&[("MUG", 20), ("BAG~cart", 1)], Change::Remove(1), Err("part_of_offer")),
            (&[("MUG", 20), ("BAG~cart", 1)], Change::Set((1, 5)), Err("part_of_offer")),
            // What the shopper buys of the same product is no gift, and counts.
            (&[("MUG", 19)], add("BAG", 1), Ok("put 1 BAG")),
        ];
        for (lines, change, decision) in table {
            let expected = decision.map(str::to_owned).map_err(str::to_owned);
            assert_eq!(decide(lines, change.clone()), expected, "{lines:?} {change:?}");
        }
    }

    #[test]
    fn a_gift_that_would_stop_the_checkout_is_not_given() {
        let ctx = testing::context_with(r#"{ "gift": { "sku": "BAG", "when_total_at_least": 1 } }"#);
        let lines = cart(&[("MUG", 1), ("BAG~cart", 1)]);
        testing::set_product(Product { stock: StockHint::Out, ..testing::product("BAG", 250) });
        let ops = Keeper::review(&ctx, &lines, &add("MUG", 1));
        assert_eq!(ops, Ok(vec![CartOp::Put(("BAG".to_owned(), 0))]));

        let ctx = testing::context_with(r#"{ "gift": { "sku": "MOON", "when_total_at_least": 1 } }"#);
        assert_eq!(Keeper::review(&ctx, &lines, &add("MUG", 1)), Ok(vec![]));
        assert!(testing::logged().iter().any(|(_, text)| text.contains("MOON")));
    }

    #[test]
    fn wrong_settings_are_a_refusal_that_says_where() {
        for (settings, says) in [
            ("{", "EOF while parsing"),
            (r#"{ "max_line": 3 }"#, "unknown field `max_line`"),
            (r#"{ "max_lines": "three" }"#, "invalid type: string \"three\""),
            (r#"{ "max_lines": -3 }"#, "invalid value: integer `-3`"),
            (r#"{ "max_lines": 0 }"#, "max_lines is 0"),
            (r#"{ "max_per_line": 0 }"#, "max_per_line is 0"),
            (r#"{ "max_per_order": [{ "max": 3 }] }"#, "max_per_order[0]: exactly one of sku and tag"),
            (r#"{ "gift": { "sku": "A", "when_total_at_least": 0 } }"#, "when_total_at_least is 0"),
            (r#"{ "gift": { "sku": "A", "when_total_at_least": 9, "quantity": 0 } }"#, "gift: quantity is 0"),
            ("[]", "invalid"),
            ("7", "invalid type"),
        ] {
            let refused =
                Keeper::review(&testing::context_with(settings), &[], &add("MUG", 1)).expect_err(settings);
            assert_eq!(refused.code, "bad_settings", "{settings}");
            assert!(refused.message.contains(says), "{settings}: {}", refused.message);
        }
    }
}
