//! Arithmetic as tables, and the guard against whatever a plugin can say.

use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::product::{PriceRow, Product, StockHint};

const GUARD: Guard = Guard { line_discount_bp_max: 9_000, cart_discount_bp_max: 9_000 };

fn listed(sku: &str, price: i64, version: u64) -> Listed {
    Listed {
        product: Arc::new(Product {
            sku: sku.parse().expect("a sku"),
            title: sku.to_owned(),
            description: String::new(),
            tags: vec![],
            attributes: vec![],
            image: None,
        }),
        price: PriceRow::of(Minor(price)),
        price_version: version,
        stock: StockHint::Unknown,
    }
}

fn quote(lines: &[(&str, u32, i64)]) -> Quote {
    let lines = lines
        .iter()
        .map(|(key, quantity, price)| {
            let key: LineKey = key.parse().expect("a line");
            (key.clone(), *quantity, listed(key.sku.as_str(), *price, 7))
        })
        .collect();
    Quote::base("GBP".parse().expect("a currency"), None, lines).expect("fits")
}

fn plugin() -> PluginName {
    "pricing".parse().expect("a plugin")
}

fn say(target: Target, effect: AdjustEffect) -> Adjustment {
    Adjustment { target, effect, code: "code".to_owned(), label: "Label".to_owned() }
}

fn apply(
    quote: &mut Quote,
    said: &[Adjustment],
    floors: &[Option<Minor>],
    guard: &Guard,
) -> Result<(), Broken> {
    quote.apply(&plugin(), 3, said.to_vec(), floors, guard)
}

use AdjustEffect::{Amount, Percent, UnitPrice};
use Target::{Cart, Line};

#[test]
fn totals_add_up() {
    // Lines, what is said, line totals, cart total.
    type Row = (&'static [(&'static str, u32, i64)], &'static [(Target, AdjustEffect)], &'static [i64], i64);
    let table: &[Row] = &[
        (&[], &[], &[], 0),
        (&[("A", 3, 255)], &[], &[765], 765),
        // -10 % of 255 is -25.5, so -26.
        (&[("A", 1, 255)], &[(Line(0), Percent(-1_000))], &[229], 229),
        // Each on the running amount: 1000 -> 900 -> 810.
        (&[("A", 10, 100)], &[(Line(0), Percent(-1_000)), (Line(0), Percent(-1_000))], &[810], 810),
        (&[("A", 2, 100)], &[(Line(0), UnitPrice(Minor(75))), (Line(0), Amount(Minor(-10)))], &[140], 140),
        // A unit price replaces what came before it.
        (&[("A", 2, 100)], &[(Line(0), Percent(-5_000)), (Line(0), UnitPrice(Minor(90)))], &[180], 180),
        // The cart comes after all lines, wherever it was said.
        (
            &[("A", 1, 100), ("B", 1, 300)],
            &[(Cart, Percent(-1_000)), (Line(1), Percent(-5_000)), (Cart, Amount(Minor(-25)))],
            &[100, 150],
            200,
        ),
        (&[("A", 1, 100)], &[(Line(0), Percent(2_000))], &[120], 120),
        (&[("A", 1, 100), ("GIFT~cart", 2, 500)], &[(Line(1), UnitPrice(Minor(0)))], &[100, 0], 100),
        // 90 % off is exactly the cap.
        (&[("A", 1, 100)], &[(Line(0), Percent(-9_000))], &[10], 10),
    ];
    for (lines, said, totals, total) in table {
        let mut quote = quote(lines);
        let said: Vec<_> = said.iter().map(|(target, effect)| say(*target, *effect)).collect();
        assert_eq!(apply(&mut quote, &said, &vec![None; lines.len()], &GUARD), Ok(()), "{said:?}");
        assert_eq!(quote.lines.iter().map(|l| l.total.0).collect::<Vec<_>>(), *totals, "{said:?}");
        assert_eq!(quote.total, Minor(*total), "{said:?}");
        adds_up(&quote);
    }
}

#[test]
fn each_broken_rule_has_a_name_and_leaves_the_quote_as_it_was() {
    let long = "x".repeat(121);
    let bad = |code: &str, label: &str| Adjustment {
        code: code.to_owned(),
        label: label.to_owned(),
        ..say(Cart, Percent(-1))
    };
    let table: Vec<(Vec<Adjustment>, Option<i64>, &str)> = vec![
        (vec![say(Line(0), Amount(Minor(-1_001)))], None, "negative_price"),
        (vec![say(Line(0), UnitPrice(Minor(-1)))], None, "negative_price"),
        (vec![say(Cart, Amount(Minor(-2_000)))], None, "negative_price"),
        // Not even for a moment.
        (
            vec![say(Line(0), Amount(Minor(-1_001))), say(Line(0), Amount(Minor(1_001)))],
            None,
            "negative_price",
        ),
        (vec![say(Line(0), Percent(-1_010))], Some(90), "below_floor"),
        (vec![say(Cart, Amount(Minor(-101)))], Some(90), "below_floor"),
        (vec![say(Line(0), Percent(-9_010))], None, "discount_cap"),
        (vec![say(Cart, Percent(-9_010))], None, "discount_cap"),
        // A cap is of the undiscounted amount, however it is reached.
        (vec![say(Line(0), Percent(-7_000)), say(Cart, Percent(-7_000))], None, "discount_cap"),
        (vec![say(Line(1), Percent(-1))], None, "unknown_line"),
        (vec![say(Line(usize::MAX), Percent(-1))], None, "unknown_line"),
        (vec![say(Cart, UnitPrice(Minor(1)))], None, "unit_price_on_cart"),
        (vec![say(Line(0), Percent(i32::MAX)); 9], None, "overflow"),
        (vec![say(Line(0), Amount(Minor(i64::MAX)))], None, "overflow"),
        (vec![say(Line(0), Amount(Minor(i64::MIN)))], None, "overflow"),
        (vec![say(Line(0), UnitPrice(Minor(i64::MAX)))], None, "overflow"),
        (vec![say(Cart, Amount(Minor(i64::MIN)))], None, "overflow"),
        (vec![say(Cart, Percent(-1)); ADJUSTMENTS_MAX + 1], None, "too_many_adjustments"),
        (vec![bad("", "x")], None, "bad_code"),
        (vec![bad("Ten", "x")], None, "bad_code"),
        (vec![bad("ten", &long)], None, "bad_label"),
        (vec![bad("ten", "a\u{1b}[31m")], None, "bad_label"),
        // All or nothing.
        (vec![say(Line(0), Percent(-100)), say(Line(5), Percent(-100))], None, "unknown_line"),
    ];
    for (said, floor, name) in table {
        let before = quote(&[("A", 10, 100)]);
        let mut quote = before.clone();
        let broken = apply(&mut quote, &said, &[floor.map(Minor)], &GUARD).expect_err(name);
        assert_eq!(broken.name(), name, "{broken}");
        assert_eq!(quote, before, "{name}");
    }
}

#[test]
fn a_line_that_a_plugin_added_may_be_free() {
    let mut quote = quote(&[("A", 1, 100), ("G~cart", 1, 900)]);
    let floors = [Some(Minor(100)), Some(Minor(800))];
    assert_eq!(apply(&mut quote, &[say(Line(1), UnitPrice(Minor(0)))], &floors, &GUARD), Ok(()));
    assert_eq!(quote.total, Minor(100));
    // But it does not make room for reducing the others.
    let broken = apply(&mut quote, &[say(Cart, Amount(Minor(-1)))], &floors, &GUARD);
    assert_eq!(broken.map_err(|b| b.name()), Err("below_floor"));
}

#[test]
fn a_line_that_a_plugin_added_does_not_pay_for_a_discount_on_the_others() {
    // The shopper's 10.00 and a plugin's insurance for 40.00.
    let before = quote(&[("A", 1, 1_000), ("INSURANCE~cart", 1, 4_000)]);
    let off = |amount: i64| vec![say(Cart, Amount(Minor(-amount)))];
    let guard = Guard { cart_discount_bp_max: 1_000, ..GUARD };
    let name = |floors: &[Option<Minor>], amount| {
        apply(&mut before.clone(), &off(amount), floors, &guard).map_err(|broken| broken.name())
    };
    assert_eq!(name(&[None, None], 500), Ok(()), "ten per cent of all that is asked for");
    assert_eq!(name(&[None, None], 501), Err("discount_cap"));
    assert_eq!(name(&[Some(Minor(900)), Some(Minor(3_900))], 200), Ok(()));
    assert_eq!(name(&[Some(Minor(900)), Some(Minor(3_900))], 201), Err("below_floor"));
    // Reduced first, so that it is below its floor: then it leaves no room at all.
    let mut reduced = before.clone();
    let said = [say(Line(1), UnitPrice(Minor(100))), say(Cart, Amount(Minor(-101)))];
    let broken = apply(&mut reduced, &said, &[Some(Minor(900)), Some(Minor(3_900))], &guard);
    assert_eq!(broken.map_err(|broken| broken.name()), Err("below_floor"));
}

#[test]
fn what_an_earlier_plugin_took_off_the_cart_stays_that_amount() {
    let mut quote = quote(&[("A", 1, 1_000)]);
    let first: PluginName = "first".parse().expect("a plugin");
    assert_eq!(quote.apply(&first, 1, vec![say(Cart, Percent(-1_000))], &[None], &GUARD), Ok(()));
    assert_eq!(
        apply(&mut quote, &[say(Line(0), Percent(-5_000)), say(Cart, Percent(-1_000))], &[None], &GUARD),
        Ok(())
    );
    // 500 - 100, and ten per cent of that.
    assert_eq!((quote.subtotal, quote.total), (Minor(500), Minor(360)));
    assert_eq!(
        quote.adjustments.iter().map(|a| (a.plugin.as_str(), a.amount.0)).collect::<Vec<_>>(),
        [("first", -100), ("pricing", -40)]
    );
    adds_up(&quote);
}

#[test]
fn a_cart_that_cannot_be_paid_is_not_quoted() {
    let gbp = || "GBP".parse().expect("a currency");
    let one = |price, quantity| vec![("A".parse().expect("a line"), quantity, listed("A", price, 1))];
    assert!(Quote::base(gbp(), None, one(crate::money::MINOR_MAX, 1)).is_ok());
    assert_eq!(Quote::base(gbp(), None, one(crate::money::MINOR_MAX, 2)), Err(AmountOverflow));
    assert_eq!(Quote::base(gbp(), None, one(i64::MAX, u32::MAX)), Err(AmountOverflow));
    assert_eq!(Quote::base(gbp(), None, one(-1, 1)), Err(AmountOverflow));
}

#[test]
fn its_json_is_what_the_api_answers() {
    let mut quote = quote(&[("A", 2, 255)]);
    assert_eq!(apply(&mut quote, &[say(Line(0), Percent(-1_000))], &[None], &GUARD), Ok(()));
    let json = serde_json::to_value(&quote).expect("serialises");
    let expected = serde_json::json!({
        "currency": "GBP", "country": null, "subtotal": 459, "total": 459, "price_version": 7,
        "lines": [{
            "line": "A", "title": "A", "quantity": 2, "unit_price": 255, "amount": 510, "total": 459,
            "adjustments": [{"plugin": "pricing", "release": 3, "code": "code", "label": "Label", "amount": -51}],
        }],
        "adjustments": [], "fallbacks": [], "unavailable": [],
    });
    assert_eq!(json, expected);
    assert_eq!(serde_json::from_value::<Quote>(json).expect("reads back"), quote);
}

fn adds_up(quote: &Quote) {
    for line in &quote.lines {
        assert_eq!(line.amount.0, line.unit_price.0 * i64::from(line.quantity));
        assert_eq!(line.total.0, line.amount.0 + line.adjustments.iter().map(|a| a.amount.0).sum::<i64>());
        assert!(line.total >= Minor::ZERO);
    }
    assert_eq!(quote.subtotal.0, quote.lines.iter().map(|l| l.total.0).sum::<i64>());
    assert_eq!(quote.total.0, quote.subtotal.0 + quote.adjustments.iter().map(|a| a.amount.0).sum::<i64>());
    assert!(quote.total >= Minor::ZERO);
}

fn said() -> impl Strategy<Value = Adjustment> {
    let target = prop_oneof![4 => (0..5usize).prop_map(Line), 1 => Just(Cart)];
    let amount = prop_oneof![8 => -300..300i64, 1 => any::<i64>()].prop_map(Minor);
    let effect = prop_oneof![
        4 => prop_oneof![8 => -6_000..2_000i32, 1 => any::<i32>()].prop_map(Percent),
        2 => amount.clone().prop_map(Amount),
        1 => amount.prop_map(UnitPrice),
    ];
    (target, effect).prop_map(|(target, effect)| say(target, effect))
}

proptest! {
    #[test]
    fn the_guard_cannot_be_beaten(
        lines in vec((1..50u32, 0..2_000i64, prop::option::of(0..2_000i64), any::<bool>()), 1..5),
        answers in vec(vec(said(), 0..4), 1..6),
        line_cap in 0..=10_000u32,
        cart_cap in 0..=10_000u32,
    ) {
        let guard = Guard { line_discount_bp_max: line_cap, cart_discount_bp_max: cart_cap };
        let input = lines.iter().enumerate().map(|(i, (quantity, price, _, gift))| {
            let key = if *gift { format!("S{i}~cart") } else { format!("S{i}") };
            (key.parse().expect("a line"), *quantity, listed(&format!("S{i}"), *price, i as u64))
        }).collect();
        let mut quote = Quote::base("GBP".parse().expect("a currency"), None, input).expect("fits");
        let floors: Vec<_> = lines.iter().map(|(.., floor, _)| floor.map(Minor)).collect();
        for answer in &answers {
            let before = quote.clone();
            if apply(&mut quote, answer, &floors, &guard).is_err() {
                prop_assert_eq!(&quote, &before);
            }
            adds_up(&quote);
            // Not the guard's sums over what things cost, but over what was taken off: on the lines of the shopper
            // and on the cart (what is taken off a plugin's line is no discount), of what would else be asked for.
            let taken_off = |applied: &[Applied]| -applied.iter().map(|a| a.amount.0).sum::<i64>();
            let off_cart = taken_off(&quote.adjustments);
            let mut off = off_cart;
            let mut asked = 0;
            let mut room = 0;
            for (line, (quantity, _, floor, gift)) in quote.lines.iter().zip(&lines) {
                let floor = floor.unwrap_or(0) * i64::from(*quantity);
                let off_line = taken_off(&line.adjustments);
                if *gift {
                    asked += line.amount.0 - off_line;
                    room += (line.total.0 - floor).max(0);
                    continue;
                }
                prop_assert!(off_line <= (line.amount.0 - floor).max(0));
                prop_assert!(off_line * 10_000 <= line.amount.0 * i64::from(line_cap));
                off += off_line;
                asked += line.amount.0;
                room += (line.amount.0 - floor).max(0) - off_line;
            }
            prop_assert!(off_cart <= room, "{} off the cart, with room for {}", off_cart, room);
            prop_assert!(off * 10_000 <= asked * i64::from(cart_cap), "{} off {}", off, asked);
        }
    }
}
