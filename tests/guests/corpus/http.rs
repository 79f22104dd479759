//! `wasi:http` components that misbehave at each stage of an answer. The good one answers `hello`.

use crate::guests::component_of;

/// What the client must see.
#[derive(Debug, Clone, Copy)]
pub enum Seen {
    /// A whole message with one of these statuses, framed by the host and by nobody else.
    Whole(&'static [u16]),
    /// A message that breaks off, so that nobody takes the half for the whole; or, when the guest failed before its
    /// head was sent, an error.
    BrokenOff,
    /// One or the other, as long as nothing of the guest's is taken for framing.
    Framed,
}

pub struct HttpHostile {
    pub name: &'static str,
    pub make: fn() -> Vec<u8>,
    pub seen: Seen,
}

/// The stages of an answer. `$fields`, `$answer` and `$stream` are there once they are.
#[derive(Clone, Copy)]
struct Guest {
    start: &'static str,
    before_head: &'static str,
    fields: &'static str,
    answer: &'static str,
    before_body: &'static str,
    mid_body: &'static str,
    finish: &'static str,
    after_body: &'static str,
}

const GOOD: Guest = Guest {
    start: "",
    before_head: "",
    fields: "",
    answer: "",
    before_body: "",
    mid_body: "",
    finish: "(call $finish (i32.load (i32.const 68)) (i32.const 0) (i32.const 0) (i32.const 128))",
    after_body: "",
};

macro_rules! hostile {
    ($($name:literal, $seen:expr, { $($field:ident: $value:expr),+ $(,)? };)+) => {
        &[$(HttpHostile { name: $name, make: || Guest { $($field: $value,)+ ..GOOD }.component(), seen: $seen }),+]
    };
}

const LOOP: &str = "(loop $l (br $l))";
const TIME: Seen = Seen::Whole(&[504]);
const FAILED: Seen = Seen::Whole(&[500, 502]);
const GREETED: Seen = Seen::Whole(&[200]);

#[rustfmt::skip]
pub const HTTP: &[HttpHostile] = hostile![
    // Before the head.
    "http-loops-in-start", TIME, { start: LOOP };
    "http-loops", TIME, { before_head: LOOP };
    "http-traps", FAILED, { before_head: "unreachable" };
    "http-recurses", FAILED, { before_head: "(call $deep)" };
    "http-grows-memory", FAILED, { before_head: "(loop $l (drop (memory.grow (i32.const 16))) (br $l))" };
    "http-never-answers", FAILED, { before_head: "return" };
    "http-sleeps-for-a-year", TIME, { before_head: "(call $block (call $sleep (i64.const 31536000000000000)))" };
    "http-leaks-a-million-handles", Seen::Whole(&[500, 502, 504]), {
        before_head: "(loop $l (drop (call $fields)) (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1)))
                      (i32.const 1000000))))",
    };
    "http-leaks-timers", Seen::Whole(&[500, 502, 504]), {
        before_head: "(loop $l (drop (call $sleep (i64.const 31536000000000000)))
                      (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 1000000))))",
    };
    "http-answers-with-an-error", Seen::Whole(&[502]), {
        before_head: "(call $set (local.get $out) (i32.const 1) (i32.const 15) (i32.const 0) (i64.const 0)
                      (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)) return",
    };
    "http-uses-what-it-gave-away", FAILED, {
        before_head: "(drop (call $response (call $fields))) (call $set (i32.const 77) (i32.const 0) (i32.const 78)
                      (i32.const 0) (i64.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))",
    };
    "http-prints-without-end", Seen::Whole(&[504]), {
        before_head: "(local.set $stream (call $stdout))
                      (loop $l (call $chunk (local.get $stream) (i32.const 0) (i32.const 4096) (i32.const 96)) (br $l))",
    };
    "http-prints-much", GREETED, {
        before_head: "(local.set $stream (call $stdout))
                      (loop $l (call $chunk (local.get $stream) (i32.const 0) (i32.const 4096) (i32.const 96))
                      (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 100))))",
    };
    // The head.
    "http-101-fields", Seen::Whole(&[500, 502]), {
        fields: "(loop $l (call $append (local.get $fields) (i32.const 2048) (i32.const 6) (i32.const 1024) (i32.const 5) (i32.const 96))
                 (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 101))))",
    };
    // Beyond 32,768 the host's own map of fields panics.
    "http-40000-fields", Seen::Whole(&[500, 502, 504]), {
        fields: "(loop $l (call $append (local.get $fields) (i32.const 2048) (i32.const 6) (i32.const 1024) (i32.const 5) (i32.const 96))
                 (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 40000))))",
    };
    "http-a-field-of-60000-bytes", Seen::Whole(&[500, 502]), {
        fields: "(memory.fill (i32.const 4096) (i32.const 97) (i32.const 60000))
                 (call $append (local.get $fields) (i32.const 2048) (i32.const 6) (i32.const 4096) (i32.const 60000) (i32.const 96))",
    };
    "http-says-transfer-encoding", Seen::Framed, {
        fields: "(call $append (local.get $fields) (i32.const 2064) (i32.const 17) (i32.const 2112) (i32.const 7) (i32.const 96))",
    };
    "http-says-connection", Seen::Framed, {
        fields: "(call $append (local.get $fields) (i32.const 2128) (i32.const 10) (i32.const 2144) (i32.const 7) (i32.const 96))",
    };
    "http-says-content-length-3", Seen::Framed, {
        fields: "(call $append (local.get $fields) (i32.const 2160) (i32.const 14) (i32.const 2176) (i32.const 1) (i32.const 96))",
    };
    "http-says-content-length-twice", Seen::Framed, {
        fields: "(call $append (local.get $fields) (i32.const 2160) (i32.const 14) (i32.const 2176) (i32.const 1) (i32.const 96))
                 (call $append (local.get $fields) (i32.const 2160) (i32.const 14) (i32.const 2177) (i32.const 2) (i32.const 96))",
    };
    "http-breaks-a-line-in-a-value", Seen::Framed, {
        fields: "(call $append (local.get $fields) (i32.const 2048) (i32.const 6) (i32.const 2192) (i32.const 17) (i32.const 96))",
    };
    "http-breaks-a-line-in-a-name", Seen::Framed, {
        fields: "(call $append (local.get $fields) (i32.const 2192) (i32.const 17) (i32.const 1024) (i32.const 5) (i32.const 96))",
    };
    "http-switches-protocols", Seen::Whole(&[200, 500, 502]), {
        answer: "(drop (call $status (local.get $answer) (i32.const 101)))",
    };
    "http-status-65535", Seen::Whole(&[200, 500, 502]), {
        answer: "(drop (call $status (local.get $answer) (i32.const 65535)))",
    };
    "http-answers-twice", FAILED, {
        before_body: "(call $set (local.get $out) (i32.const 0) (call $response (call $fields))
                      (i32.const 0) (i64.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))",
    };
    // The body. A guest that traps before it waits has sent nothing, and is told of as if it had no head.
    "http-traps-before-its-body", FAILED, { before_body: "unreachable" };
    "http-traps-mid-body", FAILED, { mid_body: "unreachable" };
    "http-loops-mid-body", Seen::BrokenOff, { mid_body: LOOP };
    "http-recurses-mid-body", Seen::BrokenOff, { mid_body: "(call $deep)" };
    "http-never-finishes-its-body", Seen::BrokenOff, { finish: "" };
    "http-body-without-end", Seen::BrokenOff, {
        mid_body: "(loop $l (call $chunk (local.get $stream) (i32.const 0) (i32.const 4096) (i32.const 96)) (br $l))",
    };
    "http-writes-nothing-for-ever", Seen::BrokenOff, {
        mid_body: "(loop $l (call $chunk (local.get $stream) (i32.const 0) (i32.const 0) (i32.const 96)) (br $l))",
    };
    "http-writes-a-chunk-of-60000", Seen::BrokenOff, {
        mid_body: "(call $chunk (local.get $stream) (i32.const 0) (i32.const 60000) (i32.const 96))
                   (if (i32.load8_u (i32.const 96)) (then unreachable))",
    };
    "http-sleeps-mid-body", Seen::BrokenOff, { mid_body: "(call $block (call $sleep (i64.const 31536000000000000)))" };
    "http-40000-trailers", Seen::BrokenOff, {
        finish: "(local.set $fields (call $fields)) (local.set $i (i32.const 0))
                 (loop $l (call $append (local.get $fields) (i32.const 2048) (i32.const 6) (i32.const 1024) (i32.const 5) (i32.const 96))
                 (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 40000))))
                 (call $finish (i32.load (i32.const 68)) (i32.const 1) (local.get $fields) (i32.const 128))",
    };
    "http-finishes-twice", Seen::Framed, {
        after_body: "(call $finish (i32.load (i32.const 68)) (i32.const 0) (i32.const 0) (i32.const 128))",
    };
    "http-loops-after-its-body", Seen::Framed, { after_body: LOOP };
    // Elsewhere.
    "http-asks-the-metadata-service", GREETED, {
        before_head: "(call $ask) (if (i32.ne (i32.load8_u (i32.const 256)) (i32.const 0)) (then))",
    };
    "http-floods-the-metadata-service", Seen::Whole(&[200, 500, 502, 504]), {
        before_head: "(loop $l (call $ask)
                      (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 100000))))",
    };
];

impl Guest {
    fn component(&self) -> Vec<u8> {
        let Self { start, before_head, fields, answer, before_body, mid_body, finish, after_body } = self;
        component_of(
            include_str!("wasi-http.wit"),
            &format!(
                r#"(module
                (import "wasi:http/types@0.2.0" "[constructor]fields" (func $fields (result i32)))
                (import "wasi:http/types@0.2.0" "[method]fields.append"
                    (func $append (param i32 i32 i32 i32 i32 i32)))
                (import "wasi:http/types@0.2.0" "[constructor]outgoing-response" (func $response (param i32) (result i32)))
                (import "wasi:http/types@0.2.0" "[method]outgoing-response.set-status-code"
                    (func $status (param i32 i32) (result i32)))
                (import "wasi:http/types@0.2.0" "[method]outgoing-response.body" (func $body (param i32 i32)))
                (import "wasi:http/types@0.2.0" "[static]response-outparam.set"
                    (func $set (param i32 i32 i32 i32 i64 i32 i32 i32 i32)))
                (import "wasi:http/types@0.2.0" "[method]outgoing-body.write" (func $write (param i32 i32)))
                (import "wasi:http/types@0.2.0" "[static]outgoing-body.finish" (func $finish (param i32 i32 i32 i32)))
                (import "wasi:http/types@0.2.0" "[constructor]outgoing-request" (func $request (param i32) (result i32)))
                (import "wasi:http/types@0.2.0" "[method]outgoing-request.set-authority"
                    (func $authority (param i32 i32 i32 i32) (result i32)))
                (import "wasi:http/outgoing-handler@0.2.0" "handle" (func $send (param i32 i32 i32 i32)))
                (import "wasi:clocks/monotonic-clock@0.2.0" "subscribe-duration" (func $sleep (param i64) (result i32)))
                (import "wasi:io/poll@0.2.0" "[method]pollable.block" (func $block (param i32)))
                (import "wasi:io/streams@0.2.0" "[method]output-stream.blocking-write-and-flush"
                    (func $chunk (param i32 i32 i32 i32)))
                (import "wasi:io/streams@0.2.0" "[resource-drop]output-stream" (func $close (param i32)))
                (import "wasi:cli/stdout@0.2.0" "get-stdout" (func $stdout (result i32)))
                (memory (export "memory") 2)
                (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 98304))
                (data (i32.const 1024) "hello")
                (data (i32.const 2048) "x-souk")
                (data (i32.const 2064) "transfer-encoding")
                (data (i32.const 2112) "chunked")
                (data (i32.const 2128) "connection")
                (data (i32.const 2144) "upgrade")
                (data (i32.const 2160) "content-length")
                (data (i32.const 2176) "310")
                (data (i32.const 2192) "a\0d\0asmuggled: yes")
                (data (i32.const 2224) "169.254.169.254")
                (func $ask (local $request i32)
                    (local.set $request (call $request (call $fields)))
                    (drop (call $authority (local.get $request) (i32.const 1) (i32.const 2224) (i32.const 15)))
                    (call $send (local.get $request) (i32.const 0) (i32.const 0) (i32.const 256)))
                (func $start {start})
                (start $start)
                (func $deep (call $deep) (call $deep))
                (func (export "wasi:http/incoming-handler@0.2.0#handle") (param $in i32) (param $out i32)
                    (local $fields i32) (local $answer i32) (local $stream i32) (local $i i32)
                    {before_head}
                    (local.set $fields (call $fields))
                    {fields}
                    (local.set $answer (call $response (local.get $fields)))
                    {answer}
                    (call $body (local.get $answer) (i32.const 64))
                    (call $set (local.get $out) (i32.const 0) (local.get $answer)
                        (i32.const 0) (i64.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))
                    {before_body}
                    (call $write (i32.load (i32.const 68)) (i32.const 80))
                    (local.set $stream (i32.load (i32.const 84)))
                    (call $chunk (local.get $stream) (i32.const 1024) (i32.const 5) (i32.const 96))
                    {mid_body}
                    (call $close (local.get $stream))
                    {finish}
                    {after_body}))"#
            ),
        )
    }
}
