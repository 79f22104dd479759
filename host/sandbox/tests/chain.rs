//! A site's plugins together: what each failure does to a quote, and that the rest goes on.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{GOOD, Guest, Shop, call, component, engine, lines, listed, release};
use prometheus_client::registry::Registry;
use souk_commerce::cart::LineKey;
use souk_commerce::money::Minor;
use souk_commerce::site::{Guard, Hook, OnFault};
use souk_sandbox::{CartOp, Chain, HookEngine, Metrics, Requested, SiteData, StopKind, Unpriced};

const TRAPS: Guest = Guest { run: "unreachable", ..GOOD };
const LOOPS: Guest = Guest { run: "(loop $l (br $l)) (i32.const 64)", ..GOOD };
/// Half off the first line.
const HALF: Guest = Guest {
    run: r#"
        (i32.store8 (i32.const 256) (i32.const 0)) (i32.store (i32.const 260) (i32.const 0))
        (i32.store (i32.const 272) (i32.const -5000))
        (i32.const 64)"#,
    ..GOOD
};
/// An amount off the cart that no cart can bear.
const NEGATIVE: Guest = Guest {
    run: "(i32.store8 (i32.const 264) (i32.const 1)) (i64.store (i32.const 272) (i64.const -99999999)) (i32.const 64)",
    ..GOOD
};
/// Trap unless the first line's amount is what a plugin before left.
const SEES_HALF: Guest = Guest {
    run: r#"
        (if (i64.ne (i64.load offset=80 (i32.load offset=88 (local.get $in))) (i64.const 500)) (then unreachable))
        (i32.const 64)"#,
    ..GOOD
};

fn chain(engine: &HookEngine, guests: &[(&str, Guest, OnFault)]) -> Chain {
    Chain::new(steps(engine, guests))
}

fn steps(
    engine: &HookEngine,
    guests: &[(&str, Guest, OnFault)],
) -> Vec<(souk_commerce::site::Release, Arc<souk_sandbox::HookPlugin>)> {
    guests
        .iter()
        .map(|(name, guest, on_fault)| {
            let plugin = engine.load(&guest.component()).unwrap();
            (release(name, &plugin, *on_fault), plugin)
        })
        .collect()
}

fn data() -> Arc<dyn SiteData> {
    Arc::new(Shop::default())
}

/// Total and the reasons of the fallbacks, for three lines of 10.00.
fn price(chain: &Chain, now_ms: u64) -> Result<(i64, Vec<String>), Unpriced> {
    let data = data();
    let mut call = call(&data);
    call.now_ms = now_ms;
    let quote = chain.price(&call, &Guard::default(), lines(3))?;
    Ok((quote.total.0, quote.fallbacks.into_iter().map(|fallback| fallback.reason).collect()))
}

#[test]
fn each_plugin_sees_the_result_of_the_one_before_and_is_named_in_the_quote() {
    let chain = chain(&engine(), &[("half", HALF, OnFault::Open), ("sees", SEES_HALF, OnFault::Closed)]);
    let data = data();
    let quote = chain.price(&call(&data), &Guard::default(), lines(3)).unwrap();
    assert_eq!((quote.subtotal, quote.total), (Minor(2_500), Minor(2_250)));
    let applied = &quote.lines[0].adjustments[0];
    assert_eq!((applied.plugin.as_str(), applied.release, applied.amount), ("half", 3, Minor(-500)));
    assert_eq!(quote.adjustments[0].label, "Ten off");
    assert!(quote.fallbacks.is_empty());
}

#[test]
fn a_failing_plugin_is_skipped_and_named_or_stops_the_quote_as_its_release_says() {
    let engine = engine();
    let open = chain(&engine, &[("bad", TRAPS, OnFault::Open), ("good", GOOD, OnFault::Open)]);
    assert_eq!(price(&open, 0), Ok((2_700, vec!["trap".to_owned()])));
    let closed = chain(&engine, &[("bad", TRAPS, OnFault::Closed), ("good", GOOD, OnFault::Open)]);
    let Err(Unpriced::Stopped(stopped)) = price(&closed, 0) else { panic!("priced without it") };
    assert_eq!((stopped.plugin.as_str(), stopped.hook), ("bad", Hook::Pricing));
    assert_eq!(stopped.kind, StopKind::FailClosed { reason: "trap".to_owned() });
}

#[test]
fn a_broken_price_rule_drops_that_plugins_adjustments_only() {
    let chain = chain(
        &engine(),
        &[("half", HALF, OnFault::Open), ("greedy", NEGATIVE, OnFault::Open), ("good", GOOD, OnFault::Open)],
    );
    for _ in 0..10 {
        // A broken rule costs nothing to find, so it never opens a breaker: the rule stays named.
        assert_eq!(price(&chain, 0), Ok((2_250, vec!["negative_price".to_owned()])));
    }
}

#[test]
fn a_loop_spends_its_own_share_of_the_deadline() {
    let chain = chain(&engine(), &[("loops", LOOPS, OnFault::Open), ("good", GOOD, OnFault::Open)]);
    let start = Instant::now();
    assert_eq!(price(&chain, 0), Ok((2_700, vec!["deadline".to_owned()])));
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[test]
fn a_plugin_that_keeps_failing_is_taken_out_and_tried_again() {
    let chain = chain(&engine(), &[("bad", TRAPS, OnFault::Open), ("good", GOOD, OnFault::Open)]);
    let reason = |now_ms| price(&chain, now_ms).unwrap().1.remove(0);
    for _ in 0..5 {
        assert_eq!(reason(1_000), "trap");
    }
    assert_eq!(reason(1_999), "breaker_open");
    assert_eq!(reason(2_000), "trap", "the probe");
    assert_eq!(reason(2_001), "breaker_open");
}

#[test]
fn calls_and_faults_are_counted_by_name() {
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let site = "shop".parse().unwrap();
    let guests = [("bad", TRAPS, OnFault::Open), ("good", GOOD, OnFault::Open)];
    let chain = Chain::with_metrics(&site, steps(&engine(), &guests), &metrics);
    for _ in 0..6 {
        price(&chain, 0).unwrap();
    }
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for line in [
        r#"souk_hook_calls_total{site="shop",plugin="bad",hook="pricing"} 5"#,
        r#"souk_hook_calls_total{site="shop",plugin="good",hook="pricing"} 6"#,
        r#"souk_hook_faults_total{site="shop",plugin="bad",hook="pricing",fault="trap"} 5"#,
        r#"souk_hook_faults_total{site="shop",plugin="bad",hook="pricing",fault="breaker_open"} 1"#,
        r#"souk_hook_duration_seconds_count{hook="pricing"} 11"#,
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

/// A chain of one plugin, with the release that was active before.
fn with_standby(active: Guest, standby: Guest, on_fault: OnFault, metrics: &Metrics) -> Chain {
    let engine = engine();
    let site = "shop".parse().unwrap();
    let standby = steps(&engine, &[("rule", standby, OnFault::Open)])
        .into_iter()
        .map(|(release, loaded)| (souk_commerce::site::Release { number: 2, ..release }, loaded))
        .collect();
    Chain::with_metrics(&site, steps(&engine, &[("rule", active, on_fault)]), metrics).with_standby(standby)
}

fn page(registry: &Registry) -> String {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
    text
}

#[test]
fn a_release_that_breaks_the_guard_is_replaced_by_the_one_before_and_later_not_asked_at_all() {
    let mut registry = Registry::default();
    let chain = with_standby(NEGATIVE, GOOD, OnFault::Closed, &Metrics::register(&mut registry));
    // On a fail-closed release: what it is replaced by kept the rule, so nothing has failed.
    for _ in 0..5 {
        assert_eq!(price(&chain, 0), Ok((2_700, vec!["negative_price".to_owned()])));
    }
    assert_eq!(price(&chain, 1), Ok((2_700, vec!["guard_open".to_owned()])));
    assert_eq!(price(&chain, 1_000), Ok((2_700, vec!["negative_price".to_owned()])), "the probe");
    assert_eq!(price(&chain, 1_001), Ok((2_700, vec!["guard_open".to_owned()])));
    let text = page(&registry);
    for line in [
        r#"souk_price_guard_alarms_total{site="shop",plugin="rule",hook="pricing"} 6"#,
        r#"souk_hook_standby_calls_total{site="shop",plugin="rule",hook="pricing"} 8"#,
        // Six of the active release, eight of the one before.
        r#"souk_hook_calls_total{site="shop",plugin="rule",hook="pricing"} 14"#,
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }

    let data = Arc::new(Shop::default());
    let dynamic: Arc<dyn SiteData> = data.clone();
    let quote = chain.price(&call(&dynamic), &Guard::default(), lines(3)).unwrap();
    assert_eq!((quote.adjustments[0].release, quote.fallbacks[0].release), (2, 3));
    assert_eq!(quote.fallbacks[0].instead, Some(2), "{:?}", quote.fallbacks);
    let ended = data.ended.lock().unwrap();
    assert!(ended[0].starts_with("rule 3 pricing Failed { reason: \"negative_price\""), "{ended:?}");
    assert_eq!(ended[1], "rule 2 pricing Answered");
}

#[test]
fn without_a_standby_that_keeps_the_guard_the_price_is_the_base_price_or_there_is_none() {
    let metrics = Metrics::default();
    for standby in [NEGATIVE, TRAPS] {
        let reason = if standby.run == TRAPS.run { "trap" } else { "negative_price" };
        let open = with_standby(NEGATIVE, standby, OnFault::Open, &metrics);
        assert_eq!(price(&open, 0), Ok((3_000, vec!["negative_price".to_owned(), reason.to_owned()])));
        let closed = with_standby(NEGATIVE, standby, OnFault::Closed, &metrics);
        let Err(Unpriced::Stopped(stopped)) = price(&closed, 0) else { panic!("priced without it") };
        assert_eq!((stopped.release, stopped.kind), (2, StopKind::FailClosed { reason: reason.to_owned() }));
    }
    // The standby release is for the guard alone: a plugin that traps is skipped as its release says.
    let traps = with_standby(TRAPS, GOOD, OnFault::Open, &metrics);
    assert_eq!(price(&traps, 0), Ok((3_000, vec!["trap".to_owned()])));
}

#[test]
fn a_loop_in_the_active_and_the_standby_release_leaves_the_others_their_shares() {
    // Breaks the guard only after most of its share is gone.
    let slow = Guest {
        run: r#"(local $n i64) (local.set $n (i64.const 3000000))
            (loop $l (br_if $l (i64.ne (local.tee $n (i64.sub (local.get $n) (i64.const 1))) (i64.const 0))))
            (i32.store8 (i32.const 264) (i32.const 1)) (i64.store (i32.const 272) (i64.const -99999999)) (i32.const 64)"#,
        ..GOOD
    };
    let engine = engine();
    let standby = steps(&engine, &[("slow", LOOPS, OnFault::Open)]);
    let chain =
        chain(&engine, &[("slow", slow, OnFault::Open), ("good", GOOD, OnFault::Open)]).with_standby(standby);
    let (total, reasons) = price(&chain, 0).unwrap();
    assert_eq!(total, 2_700, "{reasons:?}");
    assert_eq!(reasons.last().map(String::as_str), Some("deadline"));
}

#[test]
fn an_explanation_says_what_each_release_did_to_each_line() {
    let engine = engine();
    let guests = [
        ("half", HALF, OnFault::Open),
        ("greedy", NEGATIVE, OnFault::Open),
        ("broken", TRAPS, OnFault::Open),
        ("good", GOOD, OnFault::Open),
    ];
    let chain = chain(&engine, &guests);
    let data = data();
    let call = call(&data);
    let (quote, explanation) = chain.explain(&call, &Guard::default(), lines(3));
    let quote = quote.unwrap();
    let plain = chain.price(&call, &Guard::default(), lines(3)).unwrap();
    assert_eq!((&plain.lines, plain.total), (&quote.lines, quote.total), "explained is as priced");
    assert_eq!((explanation.base, quote.total), (Minor(3_000), Minor(2_250)));
    let json = serde_json::to_value(&explanation.steps).unwrap();
    let brief: Vec<_> = json
        .as_array()
        .unwrap()
        .iter()
        .map(|s| {
            (
                s["plugin"].as_str().unwrap(),
                s["outcome"].as_str().unwrap(),
                s["before"].as_i64().unwrap(),
                s["after"].as_i64().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        brief,
        [
            ("half", "applied", 3_000, 2_500),
            ("greedy", "dropped_by_guard", 2_500, 2_500),
            ("broken", "failed", 2_500, 2_500),
            ("good", "applied", 2_500, 2_250),
        ]
    );
    assert_eq!(json[0]["lines"], serde_json::json!([{"line": "MUG-0", "before": 1_000, "after": 500}]));
    assert_eq!(
        json[0]["said"],
        serde_json::json!([{"line": "MUG-0", "percent_bp": -5_000, "code": "ten", "label": "Ten off", "amount": -500}])
    );
    assert_eq!((&json[1]["reason"], &json[1]["said"]), (&"negative_price".into(), &serde_json::json!([])));
    assert_eq!((&json[2]["reason"], &json[2]["said"]), (&"trap".into(), &serde_json::json!([])));
    assert_eq!(json[3]["said"][0]["amount"], -250);
}

/// A node sees thousands of plugins come and go, and its page of metrics is read every few seconds.
#[test]
fn the_series_of_a_plugin_go_with_the_last_chain_that_has_it() {
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let engine = engine();
    let site: souk_commerce::id::SiteId = "shop".parse().unwrap();
    let plugin = engine.load(&TRAPS.component()).unwrap();
    let make = |name: &str| {
        Chain::with_metrics(&site, vec![(release(name, &plugin, OnFault::Open), plugin.clone())], &metrics)
    };
    let [old, new, other] = ["rule", "rule", "other"].map(make);
    for chain in [&old, &new, &other] {
        price(chain, 0).unwrap();
    }
    let calls = r#"souk_hook_calls_total{site="shop",plugin="rule",hook="pricing"} "#;
    drop(old);
    assert!(page(&registry).contains(&format!("{calls}2")), "a swap keeps them: {}", page(&registry));
    drop(new);
    let text = page(&registry);
    assert!(!text.contains(r#"plugin="rule""#), "{text}");
    assert!(
        text.contains(r#"souk_hook_faults_total{site="shop",plugin="other",hook="pricing",fault="trap"} 1"#)
    );
    price(&make("rule"), 0).unwrap();
    drop(other);
    assert!(!page(&registry).contains("plugin="), "nothing is left: {}", page(&registry));
}

/// Whoever holds the cart may ask for an explanation; the guard's rules, what was said in vain and what failed are the
/// merchant's.
#[test]
fn an_explanation_tells_the_shopper_the_price_and_the_journal_the_rest() {
    let engine = engine();
    let guests = [("greedy", NEGATIVE, OnFault::Open), ("broken", TRAPS, OnFault::Open)];
    let chain = chain(&engine, &guests);
    let shop = Arc::new(Shop::default());
    let data: Arc<dyn SiteData> = shop.clone();
    let (quote, explanation) = chain.explain(&call(&data), &Guard::default(), lines(3));
    let (quote, steps) = (quote.unwrap(), explanation.steps.clone());
    let shown = serde_json::to_string(&(&quote, &explanation)).unwrap();
    for secret in ["99999999", "_bp", "unreachable", "wasm", "component", "detail", "allowance"] {
        assert!(!shown.contains(secret), "{secret} in {shown}");
    }
    for (step, fallback) in steps.iter().zip(&quote.fallbacks) {
        assert!(step.call.is_some() && step.call == fallback.call, "{step:?} {fallback:?}");
    }
    let logged = shop.logged.lock().unwrap().join("\n");
    for told in [
        "greedy Debug explain: \"dropped_by_guard\" 3000 -> 3000",
        "\"added_amount\":-99999999",
        "_bp",
        "broken Debug explain: \"failed\" 3000 -> 3000",
    ] {
        assert!(logged.contains(told), "{told} in {logged}");
    }
    // Nobody asked: nothing but what the plugins log themselves.
    let shop = Arc::new(Shop::default());
    let data: Arc<dyn SiteData> = shop.clone();
    chain.price(&call(&data), &Guard::default(), lines(3)).unwrap();
    assert!(!shop.logged.lock().unwrap().iter().any(|line| line.contains("explain")));
}

#[test]
fn a_cart_without_lines_or_plugins_is_priced_without_a_call() {
    let data = data();
    let chain = chain(&engine(), &[("bad", TRAPS, OnFault::Closed)]);
    assert_eq!(chain.price(&call(&data), &Guard::default(), vec![]).unwrap().total, Minor(0));
    assert_eq!(price(&Chain::empty(), 0), Ok((3_000, vec![])));
}

/// The contract's cart world: caps at 5, puts one MUG-GIFT, takes out line 0.
const CART: &str = r#"(module
    (memory (export "memory") 1)
    (global $heap (mut i32) (i32.const 4096))
    (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (local $p i32)
        (local.set $p (i32.and (i32.add (global.get $heap) (i32.const 7)) (i32.const -8)))
        (global.set $heap (i32.add (local.get $p) (local.get 3)))
        (local.get $p))
    (func (export "souk:plugin/cart@0.1.0#review") (param i32) (result i32) (i32.const 64))
    (data (i32.const 64) "\00\00\00\00\00\01\00\00\03\00\00\00")
    (data (i32.const 256) "\00\00\00\00\05\00\00\00\00\00\00\00\00\00\00\00"
                          "\01\00\00\00\00\04\00\00\08\00\00\00\01\00\00\00"
                          "\02\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00")
    (data (i32.const 1024) "MUG-GIFT"))"#;

#[test]
fn a_cart_plugin_caps_adds_and_removes_and_a_gift_that_is_not_sold_spoils_all_of_it() {
    let engine = engine();
    let data = data();
    let review = |core: &str| {
        let plugin = engine.load(&component("cart-plugin", core)).unwrap();
        assert_eq!(plugin.hooks(), [Hook::Cart]);
        let chain = Chain::new(vec![(release("bundle", &plugin, OnFault::Open), plugin)]);
        let change = Requested::Add { sku: "MUG-1".parse().unwrap(), quantity: 9 };
        chain.review_change(&call(&data), &lines(2), &change).unwrap()
    };
    let reviewed = review(CART);
    let ops: Vec<CartOp> = reviewed.ops.into_iter().map(|(_, op)| op).collect();
    let gift = CartOp::Put { sku: "MUG-GIFT".parse().unwrap(), quantity: 1 };
    assert_eq!(ops, [CartOp::Cap(5), gift, CartOp::Remove(LineKey::of("MUG-0".parse().unwrap()))]);

    for (wrong, reason) in [("CUP-GIFT", "bad_value"), ("MU~-GIFT", "bad_value")] {
        let reviewed = review(&CART.replace("MUG-GIFT", wrong));
        assert!(reviewed.ops.is_empty());
        assert_eq!(reviewed.fallbacks[0].reason, reason);
    }
}

/// The contract's catalogue world: hides MUG-0, ranks MUG-2 first with a badge and a title.
const CATALOG: &str = r#"(module
    (memory (export "memory") 1)
    (global $heap (mut i32) (i32.const 4096))
    (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (local $p i32)
        (local.set $p (i32.and (i32.add (global.get $heap) (i32.const 7)) (i32.const -8)))
        (global.set $heap (i32.add (local.get $p) (local.get 3)))
        (local.get $p))
    (func (export "souk:plugin/catalog@0.1.0#present") (param i32) (result i32) (i32.const 64))
    (data (i32.const 64) "\00\00\00\00\00\01\00\00\02\00\00\00")
    (data (i32.const 256)
        "\00\04\00\00\05\00\00\00\01\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00"
        "\08\04\00\00\05\00\00\00\00\00\00\00\09\00\00\00\00\02\00\00\01\00\00\00\01\00\00\00\10\04\00\00\03\00\00\00")
    (data (i32.const 512) "\18\04\00\00\03\00\00\00")
    (data (i32.const 1024) "MUG-0\00\00\00MUG-2\00\00\00Big\00\00\00\00\00New"))"#;

#[test]
fn a_page_is_hidden_ranked_badged_and_relabelled_and_shown_as_it_is_when_the_plugin_fails() {
    let engine = engine();
    let data = data();
    let present = |core: &str, on_fault| {
        let plugin = engine.load(&component("catalog-plugin", core)).unwrap();
        let chain = Chain::new(vec![(release("shelf", &plugin, on_fault), plugin)]);
        chain.present(&call(&data), (0..4).map(|i| listed(&format!("MUG-{i}"), 500)).collect())
    };
    let shown = present(CATALOG, OnFault::Open);
    let titles: Vec<&str> = shown.items.iter().map(|item| item.title.as_str()).collect();
    assert_eq!(titles, ["Big", "A MUG-1", "A MUG-3"]);
    assert_eq!(shown.items[0].badges, ["New"]);
    assert!(shown.fallbacks.is_empty());

    // Names a product that is not of the page.
    let shown = present(&CATALOG.replace("MUG-2", "MUG-9"), OnFault::Closed);
    assert_eq!(shown.items.len(), 4);
    assert_eq!(shown.fallbacks[0].reason, "bad_value");
}

/// The contract's checkout world: one note, `code` and `text` at 1024.
const CHECKOUT: &str = r#"(module
    (memory (export "memory") 1)
    (global $heap (mut i32) (i32.const 4096))
    (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (local $p i32)
        (local.set $p (i32.and (i32.add (global.get $heap) (i32.const 7)) (i32.const -8)))
        (global.set $heap (i32.add (local.get $p) (local.get 3)))
        (local.get $p))
    (func (export "souk:plugin/checkout@0.1.0#review") (param i32) (result i32) (i32.const 64))
    (data (i32.const 64) "\00\00\00\00\00\01\00\00\01\00\00\00")
    (data (i32.const 256) "\00\04\00\00\04\00\00\00\04\04\00\00\05\00\00\00")
    (data (i32.const 1024) "gift" "Hello"))"#;

#[test]
fn a_checkout_plugin_leaves_notes_or_stops_the_order() {
    let engine = engine();
    let data = data();
    let review = |core: &str| {
        let plugin = engine.load(&component("checkout-plugin", core)).unwrap();
        let chain = Chain::new(vec![(release("till", &plugin, OnFault::Closed), plugin)]);
        let call = call(&data);
        let quote = chain.price(&call, &Guard::default(), lines(2)).unwrap();
        chain.review_order(&call, &quote, &lines(2))
    };
    let notes = review(CHECKOUT).unwrap();
    assert_eq!((notes[0].plugin.as_str(), &*notes[0].code, &*notes[0].text), ("till", "gift", "Hello"));
    // The same bytes read as a refusal: err({ code, message }) where the list was.
    let refusing = CHECKOUT.replace(
        r#""\00\00\00\00\00\01\00\00\01\00\00\00""#,
        r#""\01\00\00\00\00\04\00\00\04\00\00\00\04\04\00\00\05\00\00\00""#,
    );
    let stopped = review(&refusing).unwrap_err();
    assert_eq!(stopped.kind, StopKind::Refused { code: "gift".to_owned(), message: "Hello".to_owned() });
    let trapping = CHECKOUT.replace("(result i32) (i32.const 64)", "(result i32) unreachable");
    assert_eq!(review(&trapping).unwrap_err().kind, StopKind::FailClosed { reason: "trap".to_owned() });
}
