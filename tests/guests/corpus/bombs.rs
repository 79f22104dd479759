//! What must not get in, and what must be let in or refused without costing anybody else anything.
//!
//! First the structure and the contract, then what is well within both and dear to compile or to start.

use std::fmt::Write as _;

use super::Expected::Refused;
use super::Hostile;
use crate::guests::{GOOD, Guest, component_of};

/// A component of one module that keeps no contract: enough for what is refused by its structure.
fn module(fields: &str) -> Vec<u8> {
    text(&format!("(component (core module {fields}))"))
}

fn text(component: &str) -> Vec<u8> {
    wat::parse_str(component).unwrap_or_else(|error| panic!("{error}"))
}

/// A good plugin with something more in its module.
fn good_with(fields: &str) -> Vec<u8> {
    let core = GOOD.core();
    let end = core.rfind(')').expect("a module has an end");
    crate::guests::component("pricing-plugin", &format!("{}{fields})", &core[..end]))
}

fn repeated(count: usize, mut one: impl FnMut(usize) -> String) -> String {
    (0..count).fold(String::new(), |mut all, i| {
        all.push_str(&one(i));
        all
    })
}

#[rustfmt::skip]
pub const REFUSED: &[Hostile] = &[
    // No component at all.
    refused("nothing", Vec::new, &["malformed"]),
    refused("a-script", || b"#!/bin/sh\nrm -rf /\n".to_vec(), &["malformed"]),
    refused("a-core-module", || text("(module)"), &["not_a_component"]),
    refused("cut-short", || { let good = GOOD.component(); good[..good.len() / 2].to_vec() }, &["malformed"]),
    refused("a-precompiled-artefact", || b"\x7fELF\x02\x01\x01\x00wasmtime".to_vec(), &["malformed"]),
    // Not the contract.
    refused("exports-nothing", || text("(component)"), &["no_hook"]),
    refused("imports-a-clock", || contract(
        "import clock; interface clock { now: func() -> u64; }", "clock", "now", "(result i64)"), &["unknown_import"]),
    refused("imports-randomness", || contract(
        "import random; interface random { next: func() -> u64; }", "random", "next", "(result i64)"), &["unknown_import"]),
    refused("imports-more-of-the-host-than-there-is", || component_of(
        r#"package souk:plugin@0.1.0;
           interface host { fetch: func(url: string) -> string; }
           interface cart { review: func(); }
           world w { import host; export cart; }"#,
        r#"(module
            (import "souk:plugin/host@0.1.0" "fetch" (func (param i32 i32 i32)))
            (memory (export "memory") 1)
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) unreachable)
            (func (export "souk:plugin/cart@0.1.0#review")))"#), &["import_type"]),
    refused("a-hook-of-another-type", || component_of(
        "package souk:plugin@0.1.0; interface pricing { adjust: func(x: u32) -> u32; } world w { export pricing; }",
        r#"(module (func (export "souk:plugin/pricing@0.1.0#adjust") (param i32) (result i32) (local.get 0)))"#),
        &["export_type"]),
    // A name is bytes until somebody validates it, and then it is in a complaint.
    refused("names-that-steer-terminals", || {
        let mut bytes = text(r#"(component (component $c) (instance $i (instantiate $c)) (export "aaaaaaaa" (instance $i)))"#);
        let at = bytes.windows(8).position(|w| w == b"aaaaaaaa").expect("the name is there");
        bytes[at..at + 8].copy_from_slice(b"\x1b[31m\r\na");
        bytes
    }, &["unknown_export", "no_hook", "malformed"]),
    // Features that are off.
    refused("memory-of-64-bits", || good_with("(memory $m i64 1)"), &["does_not_compile"]),
    refused("shared-memory", || good_with("(memory $m 1 1 shared)"), &["does_not_compile"]),
    refused("exceptions", || good_with("(tag $t) (func $f (throw $t))"), &["does_not_compile"]),
    refused("garbage-collection", || good_with("(type $s (struct (field i32))) (func $f (drop (struct.new $s (i32.const 1))))"),
        &["does_not_compile"]),
    refused("pages-of-another-size", || good_with("(memory $m 1 1 (pagesize 1))"), &["does_not_compile"]),
    refused("ill-typed-code", || good_with("(func $f (result i32) (i64.const 1))"), &["does_not_compile"]),
    // Space from the beginning.
    refused("memory-of-257-pages", || Guest { memory: "257", ..GOOD }.component(), &["memory_minimum"]),
    refused("memory-of-4-gib", || Guest { memory: "65536", ..GOOD }.component(), &["memory_minimum"]),
    refused("memories-that-add-up", || good_with(&repeated(9, |_| "(memory 30)".into())), &["memory_minimum"]),
    refused("memories-17", || good_with(&"(memory 1)".repeat(17)), &["too_many_memories"]),
    refused("tables-65", || good_with(&"(table 1 funcref)".repeat(65)), &["too_many_tables"]),
    refused("three-tables-in-one-module", || good_with("(table $a 1 funcref) (table $b 1 funcref) (table $c 1 funcref)"),
        &["too_many_tables", "does_not_compile", "does_not_fit"]),
    refused("a-table-of-4-billion", || good_with("(table 4000000000 funcref)"), &["table_minimum", "does_not_compile", "does_not_fit"]),
    refused("tables-that-add-up", || good_with(&"(table 9000 funcref)".repeat(3)), &["table_minimum", "does_not_compile", "does_not_fit"]),
    // Number.
    refused("functions-60001", || module(&"(func)".repeat(60_001)), &["too_many_functions"]),
    refused("locals-10001", || module(&format!("(func (local {}))", "i32 ".repeat(10_001))), &["too_many_locals"]),
    // Five bytes of one group say four billion.
    refused("locals-4-billion", || {
        module_of_raw_body(&[1, 0xff, 0xff, 0xff, 0xff, 0x0f, 0x7f, 0x0b])
    }, &["too_many_locals", "malformed"]),
    refused("a-body-of-more-than-1-mib", || module(&format!("(func {})", "(drop (i64.const 1234567890123456))".repeat(120_000))),
        &["body_too_large"]),
    refused("types-100001", || module(&repeated(100_001, |_| "(type (func))".into())), &["too_many_declarations"]),
    refused("globals-100001", || module(&"(global i32 (i32.const 0))".repeat(100_001)), &["too_many_declarations"]),
    refused("exports-100001", || module(&format!("(func $f) {}", repeated(100_001, |i| format!("(export \"{i}\" (func $f))")))),
        &["too_many_declarations"]),
    refused("segments-100001", || module(&format!("(memory 1) {}", "(data (i32.const 0) \"\")".repeat(100_001))),
        &["too_many_segments"]),
    refused("modules-129", || text(&format!("(component {})", "(core module)".repeat(129))), &["too_many_modules"]),
    refused("components-257", || text(&format!("(component {})", "(component)".repeat(257))), &["too_many_components"]),
    refused("instances-257", || text(&format!("(component (core module $m) {})", "(core instance (instantiate $m))".repeat(257))),
        &["too_many_instances"]),
    refused("components-17-deep", || text(&format!("{}{}", "(component ".repeat(17), ")".repeat(17))), &["nesting"]),
    // Two to the fortieth, in forty lines.
    refused("a-type-that-doubles", || good_and(4, &text(&format!("(component (type $t0 u64) {})",
        repeated(40, |i| format!("(type $t{} (tuple $t{i} $t{i}))", i + 1))))), &["does_not_compile"]),
    refused("types-100000-deep", || types_deep(100_000), &["compile_crash", "does_not_compile", "malformed"]),
    refused("a-section-that-ends-early", || good_and(7, &[5]), &["does_not_compile", "malformed"]),
];

const fn refused(name: &'static str, make: fn() -> Vec<u8>, codes: &'static [&'static str]) -> Hostile {
    Hostile { name, make, expected: Refused(codes) }
}

/// A world that exports the pricing hook and imports one interface too many.
fn contract(wit: &str, interface: &str, function: &str, signature: &str) -> Vec<u8> {
    let (import, interface_text) = wit.split_once("; ").expect("an import and an interface");
    component_of(
        &format!(
            "package test:bad; {interface_text} interface other {{ f: func(); }} world w {{ {import}; export other; }}"
        ),
        &format!(
            r#"(module (import "test:bad/{interface}" "{function}" (func {signature})) (func (export "test:bad/other#f")))"#
        ),
    )
}

fn leb(bytes: &mut Vec<u8>, mut number: usize) {
    loop {
        let low = (number & 0x7f) as u8;
        number >>= 7;
        if number == 0 {
            bytes.push(low);
            return;
        }
        bytes.push(low | 0x80);
    }
}

/// A component with a module with one function of this body.
fn module_of_raw_body(body: &[u8]) -> Vec<u8> {
    let mut core = wat::parse_str("(module (type (func)))").expect("a module");
    core.extend([3, 2, 1, 0]);
    let mut code = vec![1];
    leb(&mut code, body.len());
    code.extend(body);
    core.push(10);
    leb(&mut core, code.len());
    core.extend(code);
    let mut bytes = text("(component)");
    section(&mut bytes, 1, &core);
    bytes
}

/// A component's name, and how it is made.
pub type Made = (&'static str, fn() -> Vec<u8>);

/// Within every limit of structure, and made to keep a compiler busy. Each may be let in or refused by its cost; what
/// it may not do is take long or much of anything that somebody else needs.
pub const DEAR: &[Made] = &[
    ("functions-29000", || good_with(&repeated(29_000, |i| format!("(func (result i32) (i32.const {i}))")))),
    ("a-body-of-just-1-mib", || {
        good_with(&format!("(func {})", "(drop (i64.const 1234567890123456))".repeat(85_000)))
    }),
    ("locals-times-loops", || good_with(&locals_times_loops(4_900, 5_000))),
    ("br-tables", br_tables),
    ("blocks-200000-deep", || {
        good_with(&format!("(func {} {})", "block ".repeat(200_000), "end ".repeat(200_000)))
    }),
    ("calls-of-100000", || good_with(&format!("(func $callee) (func {})", "(call $callee)".repeat(150_000)))),
    ("a-table-of-7500000-elements", || {
        good_with(&format!("(table $t 15000 funcref) (func $f) {}", elements(15_000).repeat(500)))
    }),
    ("a-tree-of-selects", || {
        good_with(&format!(
            "(func (param i32) (result i32) (local.get 0) {})",
            "(local.get 0) (local.get 0) select (local.get 0) i32.add ".repeat(60_000)
        ))
    }),
];

/// Every local is read inside loops within loops: in SSA form that is a parameter for each local at each loop.
fn locals_times_loops(locals: usize, loops: usize) -> String {
    let mut text = String::from("(func (param $p i32)");
    let _ = write!(text, " (local {})", "i32 ".repeat(locals));
    text.push_str(&"loop ".repeat(loops));
    for local in 1..=locals {
        let _ = write!(text, "(local.set {local} (i32.add (local.get {local}) (local.get 0)))");
    }
    text.push_str(&"(br_if 0 (local.get 0)) end ".repeat(loops));
    text.push(')');
    text
}

fn br_tables() -> Vec<u8> {
    const BLOCKS: usize = 1_000;
    const TABLES: usize = 400;
    let targets = repeated(BLOCKS, |i| format!(" {i}"));
    let one = format!("block (br_table{targets} (local.get 0)) end ");
    good_with(&format!(
        "(func (param i32) {} {} {})",
        "block ".repeat(BLOCKS),
        one.repeat(TABLES),
        "end ".repeat(BLOCKS)
    ))
}

/// Well within the limits of structure, and dear each time it starts: segments whose place is computed are written
/// one by one at every instantiation, between two looks at the clock.
#[rustfmt::skip]
pub const STARTS: &[Made] = &[
    // As deep as the region reads types itself: 2 KiB of them.
    ("types-600-deep", || types_deep(600)),
    ("writes-a-table-20-times", || good_with(&format!("(table $t 15000 funcref) (func $f) {}", elements(15_000).repeat(20)))),
    ("writes-50-tables-100-times", || starting(&format!("(module (table 250 funcref) (func $f) {})", elements(250).repeat(100)), 50)),
    ("writes-30-mib-of-memory", || good_with(&format!(
        "(data (i32.add (i32.const 1000) (i32.const 1000)) \"{}\")", "\\00".repeat(15_000)).repeat(2_000))),
];

/// A component type whose only declaration is a component type whose only …: 0x41, one declaration, a type.
fn types_deep(depth: usize) -> Vec<u8> {
    let mut body = vec![1];
    body.extend([0x41, 0x01, 0x01].repeat(depth));
    body.extend([0x41, 0x00]);
    good_and(7, &body)
}

fn elements(count: usize) -> String {
    format!("(elem (i32.add (i32.const 0) (i32.const 0)) func {})", "$f ".repeat(count))
}

/// A good plugin beside which so many instances of a module are made.
fn starting(core: &str, instances: usize) -> Vec<u8> {
    let mut bytes = GOOD.component();
    let module = sections(&bytes).filter(|id| *id == 1).count();
    section(&mut bytes, 1, &wat::parse_str(core).expect("a module"));
    let mut body = Vec::new();
    leb(&mut body, instances);
    for _ in 0..instances {
        body.push(0);
        leb(&mut body, module);
        body.push(0);
    }
    section(&mut bytes, 2, &body);
    bytes
}

/// A good plugin with one more section at its end.
fn good_and(id: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = GOOD.component();
    section(&mut bytes, id, body);
    bytes
}

fn section(bytes: &mut Vec<u8>, id: u8, body: &[u8]) {
    bytes.push(id);
    leb(bytes, body.len());
    bytes.extend(body);
}

/// The kinds of a component's own sections, in order.
fn sections(component: &[u8]) -> impl Iterator<Item = u8> + '_ {
    let mut at = 8;
    std::iter::from_fn(move || {
        let id = *component.get(at)?;
        at += 1;
        let (mut size, mut shift) = (0_usize, 0);
        loop {
            let byte = component[at];
            at += 1;
            size |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        at += size;
        Some(id)
    })
}
