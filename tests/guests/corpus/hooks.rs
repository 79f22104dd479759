//! Pricing plugins that are let in and misbehave when they are called. The good plugin's answer lies at 64, its one
//! adjustment at 256, its texts at 1024.

use super::Expected::{self, Contained, Fault};
use super::Hostile;
use crate::guests::{GOOD, Guest};

macro_rules! hostile {
    ($($name:literal, $expected:expr, { $($field:ident: $value:expr),+ $(,)? };)+) => {
        &[$(Hostile {
            name: $name,
            make: || Guest { $($field: $value,)+ ..GOOD }.component(),
            expected: $expected,
        }),+]
    };
}

const LOOP: &str = "(loop $l (br $l))";
const DEADLINE: Expected = Fault(&["deadline"]);
const MEMORY: Expected = Fault(&["memory"]);
const STACK: Expected = Fault(&["stack"]);
const TRAP: Expected = Fault(&["trap"]);
const BAD_VALUE: Expected = Fault(&["bad_value"]);

#[rustfmt::skip]
pub const HOOKS: &[Hostile] = hostile![
    // Time.
    "loop-in-run", DEADLINE, { run: "(loop $l (br $l)) (i32.const 64)" };
    "loop-in-start", DEADLINE, { start: LOOP };
    "loop-in-realloc", DEADLINE, { realloc: "(loop $l (br $l)) (i32.const 4096)" };
    "loop-in-post-return", DEADLINE, { post_return: LOOP };
    "copies-memory", DEADLINE, {
        memory: "256",
        run: "(loop $l (memory.copy (i32.const 0) (i32.const 64) (i32.const 16776000)) (br $l)) (i32.const 64)",
    };
    "fills-memory", DEADLINE, {
        memory: "256",
        run: "(loop $l (memory.fill (i32.const 0) (i32.const 7) (i32.const 16776000)) (br $l)) (i32.const 64)",
    };
    "fills-tables", DEADLINE, {
        fields: "(table $t 15000 funcref)",
        run: "(loop $l (table.fill $t (i32.const 0) (ref.null func) (i32.const 15000)) (br $l)) (i32.const 64)",
    };
    "copies-tables", DEADLINE, {
        fields: "(table $t 15000 funcref)",
        run: "(loop $l (table.copy $t $t (i32.const 0) (i32.const 1) (i32.const 14999)) (br $l)) (i32.const 64)",
    };
    "calls-in-a-ring", DEADLINE, {
        fields: "(table $t 2 2 funcref) (elem (i32.const 0) $a $b) (type $f (func))
                 (func $a) (func $b (call_indirect $t (type $f) (i32.const 0)))",
        run: "(loop $l (call_indirect $t (type $f) (i32.const 1)) (br $l)) (i32.const 64)",
    };
    "divides-for-ever", DEADLINE, {
        run: "(local $x i64)
              (loop $l (local.set $x (i64.div_s (i64.add (local.get $x) (i64.const 9223372036854775807))
                                                (i64.or (local.get $x) (i64.const 3)))) (br $l)) (i32.const 64)",
    };
    // Space.
    "grows-memory", MEMORY, { run: "(loop $l (drop (memory.grow (i32.const 1))) (br $l)) (i32.const 64)" };
    "grows-memory-in-start", MEMORY, { start: "(loop $l (drop (memory.grow (i32.const 16))) (br $l))" };
    "grows-memory-and-gives-up", MEMORY, {
        run: "(loop $l (br_if $l (i32.ge_s (memory.grow (i32.const 16)) (i32.const 0)))) unreachable",
    };
    "grows-memory-by-all-there-is", Contained, { run: "(drop (memory.grow (i32.const 65535))) (i32.const 64)" };
    "touches-all-its-memory", Contained, {
        memory: "250",
        run: "(memory.fill (i32.const 65536) (i32.const 7) (i32.const 16000000)) (i32.const 64)",
    };
    "grows-a-table", MEMORY, {
        fields: "(table $t 1 funcref)",
        run: "(loop $l (drop (table.grow $t (ref.null func) (i32.const 100))) (br $l)) (i32.const 64)",
    };
    "grows-a-table-by-all-there-is", Contained, {
        fields: "(table $t 1 funcref)",
        run: "(drop (table.grow $t (ref.null func) (i32.const -1))) (i32.const 64)",
    };
    // Depth.
    "recurses", STACK, { fields: "(func $deep (call $deep) (call $deep))", run: "(call $deep) (i32.const 64)" };
    "recurses-with-large-frames", STACK, {
        fields: "(func $deep (param v128 v128 v128 v128 v128 v128 v128 v128)
                   (call $deep (local.get 7) (local.get 6) (local.get 5) (local.get 4)
                               (local.get 3) (local.get 2) (local.get 1) (local.get 0))
                   (call $deep (local.get 0) (local.get 1) (local.get 2) (local.get 3)
                               (local.get 4) (local.get 5) (local.get 6) (local.get 7)))",
        run: "(call $deep (v128.const i64x2 1 1) (v128.const i64x2 2 2) (v128.const i64x2 3 3) (v128.const i64x2 4 4)
                          (v128.const i64x2 5 5) (v128.const i64x2 6 6) (v128.const i64x2 7 7) (v128.const i64x2 8 8))
              (i32.const 64)",
    };
    "recurses-in-start", STACK, { fields: "(func $deep (call $deep) (call $deep))", start: "(call $deep)" };
    "recurses-in-realloc", STACK, {
        fields: "(func $deep (call $deep) (call $deep))", realloc: "(call $deep) (i32.const 4096)",
    };
    "recurses-through-a-table", STACK, {
        fields: "(table $t 1 1 funcref) (elem (i32.const 0) $deep) (type $f (func))
                 (func $deep (call_indirect $t (type $f) (i32.const 0)) (call_indirect $t (type $f) (i32.const 0)))",
        run: "(call $deep) (i32.const 64)",
    };
    // Traps.
    "traps", TRAP, { run: "unreachable" };
    "traps-in-start", TRAP, { start: "unreachable" };
    "traps-in-realloc", TRAP, { realloc: "unreachable" };
    "traps-in-post-return", TRAP, { post_return: "unreachable" };
    "divides-by-zero", TRAP, { run: "(i32.div_u (i32.const 1) (i32.const 0))" };
    "reads-outside", TRAP, { run: "(i32.load (i32.const -4))" };
    "writes-outside", TRAP, { run: "(i64.store offset=4294967295 (i32.const -8) (i64.const 7)) (i32.const 64)" };
    "calls-null", TRAP, {
        fields: "(table $t 1 1 funcref) (type $f (func))",
        run: "(call_indirect $t (type $f) (i32.const 0)) (i32.const 64)",
    };
    "calls-by-another-type", TRAP, {
        fields: "(table $t 1 1 funcref) (elem (i32.const 0) $g) (type $f (func)) (func $g (param i64))",
        run: "(call_indirect $t (type $f) (i32.const 0)) (i32.const 64)",
    };
    // Answers that are none.
    "result-outside", BAD_VALUE, { run: "(i32.const 65530)" };
    "result-below-zero", BAD_VALUE, { run: "(i32.const -16)" };
    "result-misaligned", BAD_VALUE, { run: "(i32.const 66)" };
    "result-of-an-unknown-case", BAD_VALUE, { run: "(i32.store8 (i32.const 64) (i32.const 9)) (i32.const 64)" };
    "list-outside", BAD_VALUE, { run: "(i32.store (i32.const 68) (i32.const -64)) (i32.const 64)" };
    "list-without-end", BAD_VALUE, { run: "(i32.store (i32.const 72) (i32.const -1)) (i32.const 64)" };
    "list-misaligned", BAD_VALUE, { run: "(i32.store (i32.const 68) (i32.const 257)) (i32.const 64)" };
    "list-of-200000", BAD_VALUE, {
        run: "(drop (memory.grow (i32.const 160))) (i32.store (i32.const 72) (i32.const 200000)) (i32.const 64)",
    };
    "target-of-an-unknown-case", BAD_VALUE, { run: "(i32.store8 (i32.const 256) (i32.const 7)) (i32.const 64)" };
    "effect-of-an-unknown-case", BAD_VALUE, { run: "(i32.store8 (i32.const 264) (i32.const 200)) (i32.const 64)" };
    "text-outside", BAD_VALUE, { run: "(i32.store (i32.const 284) (i32.const 99999999)) (i32.const 64)" };
    "text-not-utf8", BAD_VALUE, { run: "(i32.store8 (i32.const 1024) (i32.const 0xff)) (i32.const 64)" };
    "text-with-a-surrogate", BAD_VALUE, {
        run: "(i32.store (i32.const 1024) (i32.const 0x0080a0ed)) (i32.const 64)",
    };
    // 500 adjustments that all point at the same 60,000 bytes: 30 MB for the host out of 76 KB.
    "lifts-one-text-500-times", BAD_VALUE, {
        memory: "3",
        fields: r#"(data (i32.const 64) "\00\00\00\00\00\00\01\00\f4\01\00\00")"#,
        run: "(local $i i32)
              (memory.fill (i32.const 1024) (i32.const 97) (i32.const 60000))
              (loop $l
                (i32.store (i32.add (i32.const 65536) (i32.mul (local.get $i) (i32.const 40))) (i32.const 1))
                (i32.store (i32.add (i32.const 65560) (i32.mul (local.get $i) (i32.const 40))) (i32.const 1024))
                (i32.store (i32.add (i32.const 65564) (i32.mul (local.get $i) (i32.const 40))) (i32.const 60000))
                (i32.store (i32.add (i32.const 65568) (i32.mul (local.get $i) (i32.const 40))) (i32.const 1024))
                (i32.store (i32.add (i32.const 65572) (i32.mul (local.get $i) (i32.const 40))) (i32.const 60000))
                (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 500))))
              (i32.const 64)",
    };
    "adjustments-100", BAD_VALUE, {
        run: "(i32.store (i32.const 68) (i32.const 32768)) (i32.store (i32.const 72) (i32.const 100)) (i32.const 64)",
    };
    "a-line-that-is-not-there", BAD_VALUE, {
        run: "(i32.store8 (i32.const 256) (i32.const 0)) (i32.store (i32.const 260) (i32.const 3000)) (i32.const 64)",
    };
    "a-label-of-60000-bytes", Fault(&["bad_label"]), {
        run: "(memory.fill (i32.const 1027) (i32.const 97) (i32.const 60000))
              (i32.store (i32.const 292) (i32.const 60000)) (i32.const 64)",
    };
    "a-code-that-is-a-sentence", Fault(&["bad_code"]), {
        run: "(i32.store (i32.const 280) (i32.const 1027)) (i32.store (i32.const 284) (i32.const 7)) (i32.const 64)",
    };
    "a-label-that-steers-terminals", Fault(&["bad_label"]), {
        run: "(i32.store (i32.const 1027) (i32.const 0x0d0a1b5b)) (i32.const 64)",
    };
    // Money.
    "pays-the-shopper", Fault(&["negative_price"]), {
        run: "(i32.store8 (i32.const 264) (i32.const 1)) (i64.store (i32.const 272) (i64.const -1000000)) (i32.const 64)",
    };
    "a-discount-of-more-than-all", Fault(&["negative_price"]), {
        run: "(i32.store (i32.const 272) (i32.const -2147483648)) (i32.const 64)",
    };
    "a-discount-beyond-the-cap", Fault(&["discount_cap"]), {
        run: "(i32.store (i32.const 272) (i32.const -9500)) (i32.const 64)",
    };
    "a-unit-price-of-the-cart", Fault(&["unit_price_on_cart"]), {
        run: "(i32.store8 (i32.const 264) (i32.const 2)) (i32.const 64)",
    };
    "an-amount-beyond-amounts", Fault(&["overflow"]), {
        run: "(i32.store8 (i32.const 264) (i32.const 1)) (i64.store (i32.const 272) (i64.const 9223372036854775807))
              (i32.const 64)",
    };
    // Floods of each host function.
    "floods-kv", Fault(&["host_calls"]), {
        run: "(loop $l (call $kv (i32.const 1024) (i32.const 3) (i32.const 512)) (br $l)) (i32.const 64)",
    };
    "floods-kv-with-long-keys", Fault(&["deadline", "host_calls", "host_bytes"]), {
        memory: "100",
        run: "(loop $l (call $kv (i32.const 65536) (i32.const 4000000) (i32.const 512)) (br $l)) (i32.const 64)",
    };
    "floods-kv-with-keys-beyond-lifting", BAD_VALUE, {
        memory: "100",
        run: "(loop $l (call $kv (i32.const 65536) (i32.const 5000000) (i32.const 512)) (br $l)) (i32.const 64)",
    };
    "floods-lookup-product", Fault(&["host_calls"]), {
        run: "(loop $l (call $lookup (i32.const 1024) (i32.const 3) (i32.const 512)) (br $l)) (i32.const 64)",
    };
    "looks-up-what-is-no-utf8", BAD_VALUE, {
        run: "(i32.store8 (i32.const 1024) (i32.const 0xff))
              (call $lookup (i32.const 1024) (i32.const 3) (i32.const 512)) (i32.const 64)",
    };
    "floods-log-with-kilobytes", Fault(&["log_bytes"]), {
        run: "(loop $l (call $log (i32.const 1) (i32.const 1024) (i32.const 2048)) (br $l)) (i32.const 64)",
    };
    "floods-log-with-nothing", Fault(&["host_calls"]), {
        run: "(loop $l (call $log (i32.const 1) (i32.const 1024) (i32.const 0)) (br $l)) (i32.const 64)",
    };
    "logs-at-an-unknown-level", BAD_VALUE, {
        run: "(call $log (i32.const 77) (i32.const 1024) (i32.const 3)) (i32.const 64)",
    };
    "answers-a-host-call-into-nowhere", Fault(&["bad_value", "trap"]), {
        run: "(call $kv (i32.const 1024) (i32.const 3) (i32.const 65534)) (i32.const 64)",
    };
    // What another call left behind.
    "looks-for-what-was-left", Contained, {
        memory: "20",
        run: "(if (i32.or (i32.load (i32.const 3000)) (i32.load (i32.const 1200000))) (then unreachable))
              (i32.store (i32.const 3000) (i32.const 7)) (i32.store (i32.const 1200000) (i32.const 7))
              (i32.const 64)",
    };
    // Where the host is to write its arguments.
    "realloc-outside", BAD_VALUE, { realloc: "(i32.const 65530)" };
    "realloc-below-zero", BAD_VALUE, { realloc: "(i32.const -8)" };
    "realloc-misaligned", BAD_VALUE, { realloc: "(i32.const 4097)" };
];
