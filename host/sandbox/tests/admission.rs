//! What is not loaded, and that the refusal says all of it by name.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use common::{GOOD, component_of, engine};
use souk_commerce::site::Hook;
use souk_sandbox::Refused;

#[track_caller]
fn refused(component: &[u8]) -> Refused {
    engine().load(component).map(|_| ()).unwrap_err()
}

fn codes(refused: &Refused) -> Vec<&str> {
    refused.complaints.iter().map(|complaint| complaint.code).collect()
}

#[test]
fn everything_that_is_wrong_at_the_border_is_said_at_once() {
    let bad = component_of(
        r#"package test:bad;
           interface clock { now: func() -> u64; }
           interface random { next: func() -> u64; }
           interface other { f: func(); }
           world w { import clock; import random; export other; }"#,
        r#"(module
            (import "test:bad/clock" "now" (func (result i64)))
            (import "test:bad/random" "next" (func (result i64)))
            (func (export "test:bad/other#f")))"#,
    );
    let refused = refused(&bad);
    assert_eq!(codes(&refused), ["unknown_import", "unknown_import", "unknown_export", "no_hook"]);
    let text = refused.to_string();
    for name in ["test:bad/clock", "test:bad/random", "test:bad/other"] {
        assert!(text.contains(name), "{text}");
    }
}

#[test]
fn a_hook_of_another_type_is_refused_when_it_is_loaded() {
    let bad = component_of(
        "package souk:plugin@0.1.0; interface pricing { adjust: func(x: u32) -> u32; } world w { export pricing; }",
        r#"(module (func (export "souk:plugin/pricing@0.1.0#adjust") (param i32) (result i32) (local.get 0)))"#,
    );
    assert_eq!(codes(&refused(&bad)), ["export_type"]);
    let bad = component_of(
        "package souk:plugin@0.1.0; interface pricing { adapt: func(); } world w { export pricing; }",
        r#"(module (func (export "souk:plugin/pricing@0.1.0#adapt")))"#,
    );
    assert_eq!(codes(&refused(&bad)), ["export_type"]);
    let bad = component_of(
        r#"package souk:plugin@0.1.0;
           interface host { fetch: func(url: string) -> string; }
           interface cart { review: func(); }
           world w { import host; export cart; }"#,
        r#"(module
            (import "souk:plugin/host@0.1.0" "fetch" (func (param i32 i32 i32)))
            (memory (export "memory") 1)
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) unreachable)
            (func (export "souk:plugin/cart@0.1.0#review")))"#,
    );
    assert_eq!(codes(&refused(&bad)), ["import_type"]);
}

#[test]
fn the_contract_is_any_patch_of_its_version_and_no_other() {
    let contract =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../sdk/wit/souk-plugin.wit"))
            .unwrap();
    let core = GOOD.core();
    let at = |version: &str| {
        let mut resolve = wit_parser::Resolve::default();
        let package =
            resolve.push_str("contract.wit", &contract.replace("@0.1.0;", &format!("@{version};"))).unwrap();
        let world = resolve.select_world(&[package], Some("pricing-plugin")).unwrap();
        common::encode(&resolve, world, &core.replace("@0.1.0", &format!("@{version}")))
    };
    for version in ["0.1.0", "0.1.7"] {
        assert_eq!(engine().load(&at(version)).unwrap().hooks(), [Hook::Pricing], "{version}");
    }
    let refused = refused(&at("0.2.0"));
    assert!(
        refused.has("unknown_import") && refused.has("unknown_export") && refused.has("no_hook"),
        "{refused}"
    );
}

#[test]
fn what_is_no_component_is_said_so() {
    assert_eq!(codes(&refused(&wat::parse_str("(module)").unwrap())), ["not_a_component"]);
    for garbage in [&b""[..], b"\0asm", b"#!/bin/sh", &[0xff; 100]] {
        assert_eq!(codes(&refused(garbage)), ["malformed"], "{garbage:?}");
    }
    let good = GOOD.component();
    for cut in [10, good.len() / 2, good.len() - 1] {
        assert!(engine().load(&good[..cut]).is_err(), "{cut}");
    }
    assert_eq!(codes(&refused(&vec![0; souk_sandbox::admit::COMPONENT_BYTES_MAX + 1])), ["too_large"]);
}

#[test]
fn flipped_bytes_are_refused_or_run_within_their_limits_but_never_panic() {
    let good = GOOD.component();
    let engine = engine();
    for i in (8..good.len()).step_by(good.len() / 150) {
        let mut bytes = good.clone();
        bytes[i] ^= 0x41;
        // Either is fine: a byte of a data segment may well be flipped.
        let _ = engine.load(&bytes);
    }
}

#[test]
fn compile_bombs_are_refused_before_they_compile() {
    // Not a hook of the contract either, which is said in the same answer.
    let module = |core: &str| wat::parse_str(format!("(component (core module {core}))")).unwrap();
    let codes = |refused: &Refused| {
        let mut codes: Vec<_> = refused.complaints.iter().map(|complaint| complaint.code).collect();
        assert_eq!(codes.pop(), Some("no_hook"));
        codes
    };
    let locals = format!("(func (local {}))", "i32 ".repeat(10_001));
    assert_eq!(codes(&refused(&module(&locals))), ["too_many_locals"]);
    let body = format!("(func {})", "(drop (i64.const 1234567890123456))".repeat(120_000));
    assert_eq!(codes(&refused(&module(&body))), ["body_too_large"]);
    assert_eq!(codes(&refused(&module(&"(func)".repeat(60_001)))), ["too_many_functions"]);
    assert_eq!(codes(&refused(&module("(memory 257)"))), ["memory_minimum"]);
    assert_eq!(codes(&refused(&module(&"(memory 1)".repeat(17)))), ["too_many_memories"]);
    let modules = format!("(component {})", "(core module)".repeat(129));
    assert_eq!(codes(&refused(&wat::parse_str(modules).unwrap())), ["too_many_modules"]);
    let nested = format!("{}{}", "(component ".repeat(17), ")".repeat(17));
    assert_eq!(codes(&refused(&wat::parse_str(nested).unwrap())), ["nesting"]);
    let instances =
        format!("(component (core module $m) {})", "(core instance (instantiate $m))".repeat(257));
    assert_eq!(codes(&refused(&wat::parse_str(instances).unwrap())), ["too_many_instances"]);
}

#[test]
fn every_limit_that_is_broken_is_said_at_once() {
    let core =
        format!("(memory 257) (func (local {})) {}", "i32 ".repeat(10_001), "(table 1 funcref)".repeat(65));
    let component = format!("(component (core module {core}) {})", "(core module)".repeat(129));
    let refused = refused(&wat::parse_str(component).unwrap());
    assert_eq!(
        codes(&refused),
        ["too_many_locals", "too_many_modules", "too_many_tables", "memory_minimum", "no_hook"]
    );
}

#[test]
fn what_a_component_can_do_is_read_from_its_bytes() {
    let capabilities = souk_sandbox::admit::hooks(&GOOD.component(), 16 << 20).unwrap();
    let host = capabilities.imports.get("souk:plugin/host@0.1.0").expect("it imports the host");
    assert_eq!(host.iter().map(String::as_str).collect::<Vec<_>>(), ["kv-get", "log", "lookup-product"]);
    assert!(capabilities.exports.contains("souk:plugin/pricing@0.1.0"));
    assert_eq!(capabilities.hooks, [Hook::Pricing]);
    assert_eq!(capabilities.memory_bytes_min, 64 << 10);
}
