//! `wasi:http` 0.2 guests written in WebAssembly text. Included by path, beside `wat.rs`, which encodes them.

use super::guests::component_of;

/// What a guest does at each stage of its answer: `hello` in one chunk.
#[derive(Clone, Copy, Default)]
pub struct HttpGuest {
    pub start: &'static str,
    pub before_head: &'static str,
    /// With the answer's fields in `$fields`.
    pub fields: &'static str,
    pub before_body: &'static str,
    /// After the first chunk was written, with the stream in `$stream`.
    pub mid_body: &'static str,
    pub after_body: &'static str,
    pub memory: &'static str,
}

impl HttpGuest {
    pub const GOOD: Self = Self {
        start: "",
        before_head: "",
        fields: "",
        before_body: "",
        mid_body: "",
        after_body: "",
        memory: "",
    };

    pub fn component(&self) -> Vec<u8> {
        let Self { start, before_head, fields, before_body, mid_body, after_body, memory } = self;
        let memory = if memory.is_empty() { "1" } else { memory };
        component_of(
            include_str!("../../host/sandbox/tests/guests/wasi-http.wit"),
            &format!(
                r#"(module
                (import "wasi:http/types@0.2.0" "[constructor]fields" (func $fields (result i32)))
                (import "wasi:http/types@0.2.0" "[method]fields.append"
                    (func $append (param i32 i32 i32 i32 i32 i32)))
                (import "wasi:http/types@0.2.0" "[constructor]outgoing-response" (func $response (param i32) (result i32)))
                (import "wasi:http/types@0.2.0" "[method]outgoing-response.body" (func $body (param i32 i32)))
                (import "wasi:http/types@0.2.0" "[static]response-outparam.set"
                    (func $set (param i32 i32 i32 i32 i64 i32 i32 i32 i32)))
                (import "wasi:http/types@0.2.0" "[method]outgoing-body.write" (func $write (param i32 i32)))
                (import "wasi:http/types@0.2.0" "[static]outgoing-body.finish" (func $finish (param i32 i32 i32 i32)))
                (import "wasi:http/types@0.2.0" "[resource-drop]incoming-request" (func $forget (param i32)))
                (import "wasi:http/types@0.2.0" "[constructor]outgoing-request" (func $request (param i32) (result i32)))
                (import "wasi:http/types@0.2.0" "[method]outgoing-request.set-authority"
                    (func $authority (param i32 i32 i32 i32) (result i32)))
                (import "wasi:http/types@0.2.0" "[method]outgoing-request.set-path-with-query"
                    (func $path (param i32 i32 i32 i32) (result i32)))
                (import "wasi:http/types@0.2.0" "[method]future-incoming-response.subscribe"
                    (func $subscribe (param i32) (result i32)))
                (import "wasi:http/types@0.2.0" "[method]future-incoming-response.get" (func $get (param i32 i32)))
                (import "wasi:http/outgoing-handler@0.2.0" "handle" (func $send (param i32 i32 i32 i32)))
                (import "wasi:io/poll@0.2.0" "[method]pollable.block" (func $block (param i32)))
                (import "wasi:io/streams@0.2.0" "[method]output-stream.blocking-write-and-flush"
                    (func $chunk (param i32 i32 i32 i32)))
                (import "wasi:io/streams@0.2.0" "[resource-drop]output-stream" (func $close (param i32)))
                (import "wasi:cli/stdout@0.2.0" "get-stdout" (func $stdout (result i32)))
                (import "wasi:filesystem/preopens@0.2.0" "get-directories" (func $directories (param i32)))
                (import "wasi:filesystem/types@0.2.0" "filesystem-error-code" (func $file_error (param i32 i32)))
                (import "wasi:sockets/instance-network@0.2.0" "instance-network" (func $network (result i32)))
                (import "wasi:sockets/network@0.2.0" "[resource-drop]network" (func $leave (param i32)))
                (import "wasi:sockets/ip-name-lookup@0.2.0" "resolve-addresses"
                    (func $resolve (param i32 i32 i32 i32)))
                (import "wasi:sockets/tcp-create-socket@0.2.0" "create-tcp-socket" (func $tcp (param i32 i32)))
                (memory (export "memory") {memory})
                (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 8192))
                (data (i32.const 1024) "hello")
                (data (i32.const 2048) "x-souk")
                (data (i32.const 2064) "transfer-encoding")
                (data (i32.const 2096) "/")
                (data (i32.const 2112) "content-length")
                (data (i32.const 2128) "9")
                (data (i32.const 2136) "connection")
                (data (i32.const 2152) "upgrade")
                (data (i32.const 2160) "host")
                (data (i32.const 2168) "a\r\nx-smuggled: 1")
                ;; How many requests this instance has had.
                (global $served (mut i32) (i32.const 0))
                (func $start {start})
                (start $start)
                (func $deep (call $deep) (call $deep))
                (func (export "wasi:http/incoming-handler@0.2.0#handle") (param $in i32) (param $out i32)
                    (local $fields i32) (local $answer i32) (local $stream i32) (local $i i32)
                    (global.set $served (i32.add (global.get $served) (i32.const 1)))
                    (call $forget (local.get $in))
                    {before_head}
                    (local.set $fields (call $fields))
                    {fields}
                    (local.set $answer (call $response (local.get $fields)))
                    (call $body (local.get $answer) (i32.const 64))
                    (call $set (local.get $out) (i32.const 0) (local.get $answer)
                        (i32.const 0) (i64.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))
                    {before_body}
                    (call $write (i32.load (i32.const 68)) (i32.const 80))
                    (local.set $stream (i32.load (i32.const 84)))
                    (call $chunk (local.get $stream) (i32.const 1024) (i32.const 5) (i32.const 96))
                    {mid_body}
                    (call $close (local.get $stream))
                    (call $finish (i32.load (i32.const 68)) (i32.const 0) (i32.const 0) (i32.const 128))
                    {after_body}))"#
            ),
        )
    }
}

/// Says how many requests its instance has had, as a letter: `a` for the first.
pub const COUNTS: HttpGuest = HttpGuest {
    before_head: "(i32.store8 (i32.const 1024) (i32.add (i32.const 96) (global.get $served)))
                  (i32.store (i32.const 1025) (i32.const 0x20202020))",
    ..HttpGuest::GOOD
};

/// `hello` and then 256 chunks of 4 KiB: a little over 1 MiB.
pub const STREAMS: HttpGuest = HttpGuest {
    mid_body: "(loop $l
        (call $chunk (local.get $stream) (i32.const 0) (i32.const 4096) (i32.const 96))
        (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 256))))",
    ..HttpGuest::GOOD
};
