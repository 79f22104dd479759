//! A `wasi:http` 0.2 guest in WebAssembly text that shows what it reads of its own shop, through the outgoing handler that
//! every language's `fetch` ends in. Included by path, beside `wat.rs`, which encodes it.

use super::guests::component_of;

/// Its answer is what `http://souk.internal` answers at `reads`.
#[derive(Clone, Copy)]
pub struct PageGuest {
    pub reads: &'static str,
    /// Of its answer's head.
    pub fields: &'static [(&'static str, &'static str)],
}

impl PageGuest {
    pub fn component(&self) -> Vec<u8> {
        let (mut data, mut append, mut at) = (String::new(), String::new(), 16_384);
        let mut place = |text: &str| {
            let here = at;
            data.push_str(&format!("(data (i32.const {here}) \"{text}\")\n"));
            at += text.len();
            format!("(i32.const {here}) (i32.const {})", text.len())
        };
        for (name, value) in self.fields {
            let (name, value) = (place(name), place(value));
            append.push_str(&format!("(call $append (local.get $fields) {name} {value} (i32.const 900))\n"));
        }
        let (host, path) = (place("souk.internal"), place(self.reads));
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
                (import "wasi:http/types@0.2.0" "[method]outgoing-request.set-scheme"
                    (func $scheme (param i32 i32 i32 i32 i32) (result i32)))
                (import "wasi:http/types@0.2.0" "[method]outgoing-request.set-authority"
                    (func $authority (param i32 i32 i32 i32) (result i32)))
                (import "wasi:http/types@0.2.0" "[method]outgoing-request.set-path-with-query"
                    (func $path (param i32 i32 i32 i32) (result i32)))
                (import "wasi:http/types@0.2.0" "[method]future-incoming-response.subscribe"
                    (func $subscribe (param i32) (result i32)))
                (import "wasi:http/types@0.2.0" "[method]future-incoming-response.get" (func $get (param i32 i32)))
                (import "wasi:http/types@0.2.0" "[method]incoming-response.consume" (func $consume (param i32 i32)))
                (import "wasi:http/types@0.2.0" "[method]incoming-body.stream" (func $stream (param i32 i32)))
                (import "wasi:http/outgoing-handler@0.2.0" "handle" (func $send (param i32 i32 i32 i32)))
                (import "wasi:io/poll@0.2.0" "[method]pollable.block" (func $block (param i32)))
                (import "wasi:io/streams@0.2.0" "[method]input-stream.blocking-read" (func $read (param i32 i64 i32)))
                (import "wasi:io/streams@0.2.0" "[method]output-stream.blocking-write-and-flush"
                    (func $chunk (param i32 i32 i32 i32)))
                (import "wasi:io/streams@0.2.0" "[resource-drop]output-stream" (func $close (param i32)))
                (memory (export "memory") 1)
                (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 32768))
                {data}
                (func (export "wasi:http/incoming-handler@0.2.0#handle") (param $in i32) (param $out i32)
                    (local $ask i32) (local $future i32) (local $fields i32) (local $answer i32) (local $to i32)
                    (call $forget (local.get $in))
                    (local.set $ask (call $request (call $fields)))
                    (drop (call $scheme (local.get $ask) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 0)))
                    (drop (call $authority (local.get $ask) (i32.const 1) {host}))
                    (drop (call $path (local.get $ask) (i32.const 1) {path}))
                    (call $send (local.get $ask) (i32.const 0) (i32.const 0) (i32.const 256))
                    (if (i32.load8_u (i32.const 256)) (then unreachable))
                    (local.set $future (i32.load (i32.const 264)))
                    (call $block (call $subscribe (local.get $future)))
                    (call $get (local.get $future) (i32.const 512))
                    (if (i32.load8_u (i32.const 528)) (then unreachable))
                    (call $consume (i32.load (i32.const 536)) (i32.const 600))
                    (call $stream (i32.load (i32.const 604)) (i32.const 616))
                    ;; At most 4 KiB, which is more than the tests' products have.
                    (call $read (i32.load (i32.const 620)) (i64.const 4096) (i32.const 640))
                    (if (i32.load8_u (i32.const 640)) (then unreachable))
                    (local.set $fields (call $fields))
                    {append}
                    (local.set $answer (call $response (local.get $fields)))
                    (call $body (local.get $answer) (i32.const 700))
                    (call $set (local.get $out) (i32.const 0) (local.get $answer)
                        (i32.const 0) (i64.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))
                    (call $write (i32.load (i32.const 704)) (i32.const 716))
                    (local.set $to (i32.load (i32.const 720)))
                    (call $chunk (local.get $to) (i32.load (i32.const 644)) (i32.load (i32.const 648)) (i32.const 740))
                    (call $close (local.get $to))
                    (call $finish (i32.load (i32.const 704)) (i32.const 0) (i32.const 0) (i32.const 800))))"#
            ),
        )
    }
}
