//! The rules of `README.md` as tables: which adjustments are answered, and what they make of the line.

use souk_sdk::prelude::*;
use souk_sdk::testing;

use crate::Rules;

/// The settings of `README.md`, so that its example is known to be right.
fn readme() -> &'static str {
    let text = include_str!("../README.md");
    let (_, rest) = text.split_once("```json").expect("the example begins");
    rest.split_once("```").expect("the example ends").0
}

fn settings(text: &str) -> Context {
    testing::context_with(text)
}

fn answer(ctx: &Context, lines: &[Line]) -> Vec<String> {
    let adjustments = Rules::adjust(ctx, lines).expect("settings are right");
    adjustments
        .iter()
        .map(|said| {
            let target = match said.target {
                Target::Line(id) => format!("line {id}"),
                Target::Cart => "cart".to_owned(),
            };
            let effect = match said.effect {
                Effect::Percent(bp) => format!("{bp} bp"),
                Effect::Amount(amount) => format!("{amount}"),
                Effect::UnitPrice(price) => format!("= {price}"),
            };
            format!("{target} {effect} {} ({})", said.code, said.label)
        })
        .collect()
}

fn mugs(quantity: u32) -> Line {
    testing::line(0, testing::tagged("M1", 255, &["mug", "heavy"]), quantity)
}

#[test]
fn the_greatest_break_that_is_reached_holds() {
    for (quantity, said) in [
        (11, None),
        (12, Some("line 0 -500 bp quantity_break (12 or more: 5 % off)")),
        (47, Some("line 0 -500 bp quantity_break (12 or more: 5 % off)")),
        (48, Some("line 0 -1000 bp quantity_break (48 or more: 10 % off)")),
        (u32::MAX, Some("line 0 -1000 bp quantity_break (48 or more: 10 % off)")),
    ] {
        assert_eq!(
            answer(&settings(readme()), &[mugs(quantity)]).first().map(String::as_str),
            said,
            "{quantity}"
        );
    }
}

#[test]
fn the_first_rule_for_a_line_decides_even_if_it_grants_nothing() {
    // 84879 has the SKU rule only from 100 on, and the rule for everything comes later.
    let clock = |quantity| testing::line(0, testing::product("84879", 169), quantity);
    assert!(answer(&settings(readme()), &[clock(99)]).is_empty());
    assert_eq!(
        answer(&settings(readme()), &[clock(240)]),
        ["line 0 -1500 bp quantity_break (100 or more: 15 % off)"]
    );
    let other = testing::line(0, testing::product("X", 169), 240);
    assert_eq!(answer(&settings(readme()), &[other]), ["line 0 -300 bp quantity_break (Case price)"]);
}

#[test]
fn line_rules_come_in_order_and_coupons_after_all_lines() {
    let ctx = Context {
        country: "FR".to_owned(),
        segments: vec!["staff".to_owned(), "trade".to_owned()],
        coupons: vec!["FIVER".to_owned(), "WELCOME10".to_owned()],
        now_ms: 1_795_910_400_000,
        ..settings(readme())
    };
    let lines = [mugs(12), testing::line(7, testing::product("X", 10_000), 1)];
    assert_eq!(
        answer(&ctx, &lines),
        [
            "line 0 -500 bp quantity_break (12 or more: 5 % off)",
            "line 0 -1250 bp segment (Your price: 12.5 % off)",
            "line 0 450 bp country (Heavy goods to France)",
            "line 7 -1250 bp segment (Your price: 12.5 % off)",
            "cart -1000 bp coupon.welcome10 (Coupon WELCOME10)",
            "cart -500 coupon.fiver (Coupon FIVER)",
        ]
    );
}

#[test]
fn the_best_segment_counts_once_and_every_country_rule_counts() {
    let ctx = Context {
        country: "NO".to_owned(),
        segments: vec!["a".to_owned(), "b".to_owned(), "c".to_owned()],
        ..settings(
            r#"{ "segments": [ { "segment": "a", "off_bp": 100 }, { "segment": "b", "off_bp": 305, "label": "B" },
                               { "segment": "c", "off_bp": 305, "label": "C" } ],
                 "countries": [ { "country": "NO", "change_bp": 1 }, { "country": "SE", "change_bp": 2 },
                                { "country": "NO", "sku": "M1", "change_bp": -310 },
                                { "country": "NO", "tag": "light", "change_bp": 3 } ] }"#,
        )
    };
    assert_eq!(
        answer(&ctx, &[mugs(1)]),
        [
            "line 0 -305 bp segment (B)",
            "line 0 1 bp country (NO: 0.01 % surcharge)",
            "line 0 -310 bp country (NO: 3.1 % off)",
        ]
    );
}

#[test]
fn gifts_are_free_unless_the_merchant_says_otherwise() {
    let ctx = |free| {
        settings(&format!(
            r#"{{ {free} "quantity_breaks": [ {{ "breaks": [ {{ "at": 1, "off_bp": 100 }} ] }} ] }}"#
        ))
    };
    let gift = testing::line_added_by("cart", 3, testing::product("BAG", 250), 1);
    assert_eq!(answer(&ctx(""), std::slice::from_ref(&gift)), ["line 3 = 0 gift (Gift)"]);
    assert_eq!(
        answer(&ctx(r#""gifts_free": false,"#), &[gift]),
        ["line 3 -100 bp quantity_break (1 or more: 1 % off)"]
    );
}

#[test]
fn a_coupon_holds_within_its_time_and_from_its_total() {
    let text = r#"{ "quantity_breaks": [ { "breaks": [ { "at": 1, "off_bp": 1000 } ] } ],
                    "coupons": [ { "code": "TEN", "amount_off": 10, "min_total": 229,
                                   "not_before": 100, "not_after": 200 } ] }"#;
    // 255 - 25.5 is 229, rounded half away from zero: 226 would be wrong, and 230 too.
    for (price, now_ms, coupon, holds) in [
        (255, 100, "TEN", true),
        (255, 200, "TEN", true),
        (255, 99, "TEN", false),
        (255, 201, "TEN", false),
        (254, 100, "TEN", true),
        (253, 100, "TEN", false),
        (255, 100, "ELEVEN", false),
    ] {
        let ctx = Context { now_ms, coupons: vec![coupon.to_owned()], ..settings(text) };
        let said = answer(&ctx, &[testing::line(0, testing::product("X", price), 1)]);
        assert_eq!(said.len() == 2, holds, "{price} {now_ms} {coupon}: {said:?}");
    }
}

#[test]
fn coupons_never_take_more_than_is_there_and_all_measure_the_goods() {
    let text = r#"{ "coupons": [ { "code": "A", "amount_off": 900 }, { "code": "B", "amount_off": 900, "min_total": 1000 },
                                 { "code": "C", "amount_off": 1 }, { "code": "D", "off_bp": 5000 } ] }"#;
    let coupons = ["A", "B", "C", "D"].map(str::to_owned).to_vec();
    let ctx = Context { coupons, ..settings(text) };
    assert_eq!(
        answer(&ctx, &[testing::line(0, testing::product("X", 1_000), 1)]),
        [
            "cart -900 coupon.a (Coupon A)",
            "cart -100 coupon.b (Coupon B)",
            "cart -5000 bp coupon.d (Coupon D)",
        ]
    );
}

#[test]
fn no_settings_change_nothing() {
    for text in ["", "null", "{}"] {
        let ctx = Context { country: "FR".to_owned(), ..settings(text) };
        assert!(answer(&ctx, &[mugs(1_000)]).is_empty());
    }
}

#[test]
fn amounts_at_the_edge_of_the_type_do_not_panic() {
    let ctx =
        Context { coupons: vec!["WELCOME10".to_owned()], country: "FR".to_owned(), ..settings(readme()) };
    for amount in [i64::MIN, i64::MAX, 0] {
        let lines = [Line { amount, ..mugs(12) }, Line { amount, ..mugs(12) }];
        assert!(Rules::adjust(&ctx, &lines).is_ok());
    }
}

#[test]
fn wrong_settings_are_a_refusal_that_says_where() {
    for (text, says) in [
        ("{", "EOF while parsing"),
        (r#"{ "coupon": [] }"#, "unknown field `coupon`"),
        (r#"{ "gifts_free": 1 }"#, "invalid type: integer `1`, expected a boolean"),
        (r#"{ "quantity_breaks": [ { "breaks": [] } ] }"#, "quantity_breaks[0]: breaks is empty"),
        (r#"{ "quantity_breaks": [ { "breaks": [ { "at": 0, "off_bp": 1 } ] } ] }"#, "at is 0 after 0"),
        (
            r#"{ "quantity_breaks": [ { "breaks": [ { "at": 9, "off_bp": 1 }, { "at": 9, "off_bp": 2 } ] } ] }"#,
            "must rise",
        ),
        (r#"{ "quantity_breaks": [ { "breaks": [ { "at": 1, "off_bp": 10001 } ] } ] }"#, "off_bp is 10001"),
        (
            r#"{ "quantity_breaks": [ { "sku": "A", "tag": "b", "breaks": [ { "at": 1, "off_bp": 1 } ] } ] }"#,
            "both sku and tag",
        ),
        (r#"{ "segments": [ { "segment": "a", "off_bp": 0 } ] }"#, "segments[0]: off_bp is 0"),
        (
            r#"{ "segments": [ { "segment": "a", "off_bp": 1 }, { "segment": "a", "off_bp": 2 } ] }"#,
            "segments[1]",
        ),
        (r#"{ "countries": [ { "country": "fr", "change_bp": 1 } ] }"#, "country \"fr\""),
        (r#"{ "countries": [ { "country": "FR", "change_bp": 0 } ] }"#, "change_bp is 0"),
        (r#"{ "coupons": [ { "code": "ten", "off_bp": 1 } ] }"#, "code \"ten\""),
        (r#"{ "coupons": [ { "code": "TEN" } ] }"#, "exactly one of off_bp and amount_off"),
        (r#"{ "coupons": [ { "code": "TEN", "off_bp": 1, "amount_off": 1 } ] }"#, "exactly one of"),
        (r#"{ "coupons": [ { "code": "TEN", "off_bp": 1.5 } ] }"#, "invalid type: floating point"),
        (
            r#"{ "coupons": [ { "code": "TEN", "off_bp": 1, "not_before": 2, "not_after": 1 } ] }"#,
            "later than",
        ),
        (r#"{ "coupons": [ { "code": "TEN", "off_bp": 1, "label": "a\u0007" } ] }"#, "control characters"),
    ] {
        let refused = Rules::adjust(&settings(text), &[]).expect_err(text);
        assert_eq!(refused.code, "bad_settings", "{text}");
        assert!(refused.message.contains(says), "{text}: {}", refused.message);
    }
}
