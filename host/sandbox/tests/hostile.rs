//! Hostile hook plugins: each ends its own call by the right name, and a good plugin works right after it in the same
//! engine.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{GOOD, Guest, Shop, call, engine, lines};
use souk_commerce::money::Minor;
use souk_commerce::quote::{AdjustEffect, Adjustment, Target};
use souk_sandbox::hook::{Invocation, LineView};
use souk_sandbox::{Fault, HookEngine, HookPlugin, SiteData};

fn adjust(plugin: &HookPlugin, shop: &Arc<Shop>) -> Result<Vec<Adjustment>, Fault> {
    let data: Arc<dyn SiteData> = shop.clone();
    let call = call(&data);
    let lines = lines(3);
    let views: Vec<LineView<'_>> = lines
        .iter()
        .map(|(key, quantity, listed)| LineView { key, quantity: *quantity, listed, amount: Minor(1_000) })
        .collect();
    let name = "hostile".parse().unwrap();
    let invocation = Invocation::new(&call, &name, "{}", plugin.engine().limits().into());
    plugin.adjust(&invocation, &views)
}

fn ten_off() -> Vec<Adjustment> {
    vec![Adjustment {
        target: Target::Cart,
        effect: AdjustEffect::Percent(-1_000),
        code: "ten".to_owned(),
        label: "Ten off".to_owned(),
    }]
}

/// Runs a guest a few times and expects each time the same fault; then a good one must work in the same engine.
#[track_caller]
fn ends_with(engine: &HookEngine, guest: Guest, check: impl Fn(&Fault) -> bool) {
    let good = engine.load(&GOOD.component()).unwrap();
    let hostile = engine.load(&guest.component()).unwrap();
    let shop = Arc::new(Shop::default());
    for _ in 0..3 {
        let start = Instant::now();
        let fault = adjust(&hostile, &shop).unwrap_err();
        assert!(check(&fault), "{fault:?}");
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
        assert_eq!(adjust(&good, &shop), Ok(ten_off()));
    }
}

const LOOP: &str = "(loop $l (br $l))";

#[test]
fn a_good_plugin_gives_its_adjustments() {
    let plugin = engine().load(&GOOD.component()).unwrap();
    assert_eq!(adjust(&plugin, &Arc::default()), Ok(ten_off()));
}

#[test]
fn a_loop_ends_by_the_deadline_wherever_it_is() {
    let engine = engine();
    let deadline = |fault: &Fault| *fault == Fault::Deadline;
    ends_with(&engine, Guest { run: "(loop $l (br $l)) (i32.const 64)", ..GOOD }, deadline);
    ends_with(&engine, Guest { start: LOOP, ..GOOD }, deadline);
    ends_with(&engine, Guest { realloc: "(loop $l (br $l)) (i32.const 4096)", ..GOOD }, deadline);
    ends_with(&engine, Guest { post_return: LOOP, ..GOOD }, deadline);
}

#[test]
fn memory_is_bounded_from_the_start_and_in_growth() {
    let engine = engine();
    let memory = |fault: &Fault| *fault == Fault::Memory;
    // Asks for ever, whatever the answer.
    ends_with(
        &engine,
        Guest { run: "(loop $l (drop (memory.grow (i32.const 1))) (br $l)) (i32.const 64)", ..GOOD },
        memory,
    );
    // Gives up when it is refused, as a language's allocator does.
    let aborts = "(loop $l (br_if $l (i32.ge_s (memory.grow (i32.const 16)) (i32.const 0)))) unreachable";
    ends_with(&engine, Guest { run: aborts, ..GOOD }, memory);
    // A second memory would be a second limit.
    let second = Guest { fields: "(memory $second 10)", ..GOOD };
    assert!(engine.load(&second.component()).is_err());

    let refused = engine.load(&Guest { memory: "257", ..GOOD }.component()).map(|_| ()).unwrap_err();
    assert!(refused.has("memory_minimum"), "{refused}");
}

#[test]
fn a_table_that_grows_without_end_is_memory_too() {
    let guest = Guest {
        fields: "(table $t 1 funcref)",
        run: "(loop $l (drop (table.grow $t (ref.null func) (i32.const 100))) (br $l)) (i32.const 64)",
        ..GOOD
    };
    ends_with(&engine(), guest, |fault| *fault == Fault::Memory);
}

#[test]
fn recursion_ends_by_the_stack() {
    let guest = Guest {
        fields: "(func $deep (call $deep) (call $deep))",
        run: "(call $deep) (i32.const 64)",
        ..GOOD
    };
    ends_with(&engine(), guest, |fault| *fault == Fault::Stack);
}

#[test]
fn a_trap_names_its_cause_and_the_function() {
    let named = |text: &'static str| move |fault: &Fault| matches!(fault, Fault::Trap(t) if t.contains(text));
    let engine = engine();
    ends_with(&engine, Guest { run: "unreachable", ..GOOD }, named("unreachable"));
    ends_with(&engine, Guest { start: "unreachable", ..GOOD }, named("unreachable"));
    ends_with(&engine, Guest { post_return: "unreachable", ..GOOD }, named("unreachable"));
    ends_with(
        &engine,
        Guest { run: "(i32.div_u (i32.const 1) (i32.const 0))", ..GOOD },
        named("divide by zero"),
    );
    ends_with(&engine, Guest { run: "(i32.load (i32.const -4))", ..GOOD }, named("out of bounds memory"));
    let inner = Guest { fields: "(func $spoil unreachable)", run: "(call $spoil) (i32.const 64)", ..GOOD };
    ends_with(&engine, inner, named("spoil"));
}

#[test]
fn a_result_that_breaks_the_abi_is_a_bad_value() {
    let bad = |fault: &Fault| matches!(fault, Fault::BadValue(_));
    let engine = engine();
    // Out of bounds, unaligned, an unknown case, a list past the end, a list larger than its budget.
    for run in [
        "(i32.const 65530)",
        "(i32.const -16)",
        "(i32.const 66)",
        "(i32.store8 (i32.const 64) (i32.const 9)) (i32.const 64)",
        "(i32.store (i32.const 68) (i32.const -64)) (i32.const 64)",
        "(i32.store (i32.const 72) (i32.const -1)) (i32.const 64)",
        "(drop (memory.grow (i32.const 160))) (i32.store (i32.const 72) (i32.const 200000)) (i32.const 64)",
        // An unknown target, a text past the end, a text that is not UTF-8.
        "(i32.store8 (i32.const 256) (i32.const 7)) (i32.const 64)",
        "(i32.store (i32.const 284) (i32.const 99999999)) (i32.const 64)",
        "(i32.store8 (i32.const 1024) (i32.const 0xff)) (i32.const 64)",
    ] {
        ends_with(&engine, Guest { run, ..GOOD }, bad);
    }
    // Where the host is to write its arguments.
    for realloc in ["(i32.const 65530)", "(i32.const -8)", "(i32.const 4097)"] {
        ends_with(&engine, Guest { realloc, ..GOOD }, bad);
    }
}

#[test]
fn a_result_that_breaks_the_contract_is_a_bad_value() {
    let says =
        |text: &'static str| move |fault: &Fault| matches!(fault, Fault::BadValue(t) if t.contains(text));
    let engine = engine();
    // 100 adjustments of a cart with three lines: allowed are 32.
    let many = "(i32.store (i32.const 68) (i32.const 32768)) (i32.store (i32.const 72) (i32.const 100)) (i32.const 64)";
    ends_with(&engine, Guest { run: many, ..GOOD }, says("adjustments"));
    let line_3 =
        "(i32.store8 (i32.const 256) (i32.const 0)) (i32.store (i32.const 260) (i32.const 3)) (i32.const 64)";
    ends_with(&engine, Guest { run: line_3, ..GOOD }, says("no line 3"));
    // A refusal whose code is a sentence: err({ code: "Ten off", message: "ten" }).
    let sentence = r#"
        (i32.store8 (i32.const 64) (i32.const 1))
        (i32.store (i32.const 68) (i32.const 1027)) (i32.store (i32.const 72) (i32.const 7))
        (i32.store (i32.const 76) (i32.const 1024)) (i32.store (i32.const 80) (i32.const 3))
        (i32.const 64)"#;
    ends_with(&engine, Guest { run: sentence, ..GOOD }, says("refusal"));
}

#[test]
fn a_refusal_is_an_answer() {
    let run = r#"
        (i32.store8 (i32.const 64) (i32.const 1))
        (i32.store (i32.const 68) (i32.const 1024)) (i32.store (i32.const 72) (i32.const 3))
        (i32.store (i32.const 76) (i32.const 1027)) (i32.store (i32.const 80) (i32.const 7))
        (i32.const 64)"#;
    let refused = Fault::Refused { code: "ten".to_owned(), message: "Ten off".to_owned() };
    ends_with(&engine(), Guest { run, ..GOOD }, |fault| *fault == refused);
}

#[test]
fn host_calls_and_logs_have_budgets() {
    let engine = engine();
    let kv = "(loop $l (call $kv (i32.const 1024) (i32.const 3) (i32.const 512)) (br $l)) (i32.const 64)";
    ends_with(&engine, Guest { run: kv, ..GOOD }, |fault| *fault == Fault::HostCalls);
    let lookup =
        "(loop $l (call $lookup (i32.const 1024) (i32.const 3) (i32.const 512)) (br $l)) (i32.const 64)";
    ends_with(&engine, Guest { run: lookup, ..GOOD }, |fault| *fault == Fault::HostCalls);
    // Lines of 2 KiB, cut to 1 KiB each.
    let log = "(loop $l (call $log (i32.const 1) (i32.const 1024) (i32.const 2048)) (br $l)) (i32.const 64)";
    ends_with(&engine, Guest { run: log, ..GOOD }, |fault| *fault == Fault::LogBytes);
    // One line that is larger than what may be handed over at a time never reaches the host.
    let huge = "(drop (memory.grow (i32.const 100))) \
                (call $log (i32.const 1) (i32.const 0) (i32.const 5000000)) (i32.const 64)";
    ends_with(&engine, Guest { run: huge, ..GOOD }, |fault| matches!(fault, Fault::BadValue(_)));
}

#[test]
fn a_log_line_is_cut_and_cannot_steer_a_terminal() {
    let guest = Guest {
        fields: r#"(data (i32.const 64) "\00\00\00\00\00\01\00\00\00\00\00\00") (data (i32.const 1024) "red \1b[31m")"#,
        run: "(call $log (i32.const 2) (i32.const 1024) (i32.const 2000)) (i32.const 64)",
        ..GOOD
    };
    let plugin = engine().load(&guest.component()).unwrap();
    let shop = Arc::new(Shop::default());
    assert_eq!(adjust(&plugin, &shop), Ok(vec![]));
    let logged = shop.logged.lock().unwrap();
    assert_eq!(logged.len(), 1);
    assert!(logged[0].starts_with("hostile Warn red \u{fffd}[31m"), "{:?}", logged[0]);
    assert!(!logged[0].chars().any(char::is_control));
}

#[test]
fn a_host_call_counts_again_for_each_kib_that_it_moves() {
    // 1,000 calls would be allowed; of a value of 64 KiB it is 15.
    let calls = |n: u32, key: &'static str| {
        let run = format!(
            "(local $n i32) (local.set $n (i32.const {n})) \
             (loop $l \
                (global.set $heap (i32.const 4096)) \
                (call $kv (i32.const 1024) (i32.const 3) (i32.const 512)) \
                (br_if $l (local.tee $n (i32.sub (local.get $n) (i32.const 1))))) \
             (i32.const 64)"
        );
        let data = format!("{} (data (i32.const 1024) \"{key}\")", GOOD.fields);
        let guest = Guest { run: run.leak(), fields: data.leak(), memory: "4", ..GOOD };
        let plugin = engine().load(&guest.component()).unwrap();
        adjust(&plugin, &Arc::default())
    };
    assert!(calls(15, "big").is_ok());
    assert_eq!(calls(16, "big"), Err(Fault::HostCalls));
    assert!(calls(999, "ten").is_ok());
    assert_eq!(calls(1_001, "ten"), Err(Fault::HostCalls));
}

#[test]
fn a_panic_in_any_host_function_ends_one_call() {
    let engine = engine();
    for (function, call) in [
        ("kv", "(call $kv (i32.const 1024) (i32.const 3) (i32.const 512))"),
        ("product", "(call $lookup (i32.const 1024) (i32.const 3) (i32.const 512))"),
        ("log", "(call $log (i32.const 1) (i32.const 1024) (i32.const 3))"),
    ] {
        let run = format!("{call} (i32.const 64)").leak();
        let plugin = engine.load(&Guest { run, ..GOOD }.component()).unwrap();
        let broken = Arc::new(Shop { panics: Some(function), ..Shop::default() });
        // More often than there are instances: none is lost to the panic.
        for _ in 0..300 {
            let fault = adjust(&plugin, &broken).unwrap_err();
            assert!(
                matches!(&fault, Fault::Internal(text) if text.contains("broken")),
                "{function}: {fault:?}"
            );
        }
        assert_eq!(adjust(&plugin, &Arc::default()), Ok(ten_off()), "{function}");
    }
}

#[test]
fn nothing_of_one_call_is_left_for_the_next() {
    // Writes its mark where it first looks for one, beyond what is kept resident and within.
    let guest = Guest {
        memory: "20",
        run: r#"
            (if (i32.or (i32.load (i32.const 3000)) (i32.load (i32.const 1200000))) (then unreachable))
            (i32.store (i32.const 3000) (i32.const 7))
            (i32.store (i32.const 1200000) (i32.const 7))
            (global.set $heap (i32.const 8192))
            (i32.const 64)"#,
        ..GOOD
    };
    let plugin = engine().load(&guest.component()).unwrap();
    for _ in 0..1_000 {
        assert_eq!(adjust(&plugin, &Arc::default()), Ok(ten_off()));
    }
}

#[test]
fn a_pool_without_room_is_busy_and_not_the_plugins_fault() {
    // On a crowded machine 200 ms of processor time take as long as they take.
    let limits = souk_sandbox::HookLimits {
        calls_max: 1,
        deadline: Duration::from_millis(200),
        wall_max: Duration::from_secs(60),
        ..Default::default()
    };
    let engine = common::engine_with(limits);
    let good = engine.load(&GOOD.component()).unwrap();
    let slow = engine.load(&Guest { run: "(loop $l (br $l)) (i32.const 64)", ..GOOD }.component()).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| assert_eq!(adjust(&slow, &Arc::default()), Err(Fault::Deadline)));
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(adjust(&good, &Arc::default()), Err(Fault::Busy));
    });
    assert_eq!(adjust(&good, &Arc::default()), Ok(ten_off()));
}
