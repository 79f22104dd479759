//! HTTP guests, good and hostile: what the client gets, and that a body which was cut short never looks whole.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty};
use souk_sandbox::http::{Body, HttpEngine, HttpFault, HttpLimits};

/// What a guest does at each stage of its answer: `hello` in one chunk.
#[derive(Clone, Copy, Default)]
struct Guest {
    start: &'static str,
    before_head: &'static str,
    /// With the answer's fields in `$fields`.
    fields: &'static str,
    before_body: &'static str,
    /// After the first chunk was written, with the stream in `$stream`.
    mid_body: &'static str,
    after_body: &'static str,
    memory: &'static str,
}

impl Guest {
    fn component(&self) -> Vec<u8> {
        let Self { start, before_head, fields, before_body, mid_body, after_body, memory } = self;
        let memory = if memory.is_empty() { "1" } else { memory };
        common::component_of(
            include_str!("guests/wasi-http.wit"),
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
                (memory (export "memory") {memory})
                (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 8192))
                (data (i32.const 1024) "hello")
                (data (i32.const 2048) "x-souk")
                (data (i32.const 2064) "transfer-encoding")
                (data (i32.const 2096) "/")
                (func $start {start})
                (start $start)
                (func $deep (call $deep) (call $deep))
                (func (export "wasi:http/incoming-handler@0.2.0#handle") (param $in i32) (param $out i32)
                    (local $fields i32) (local $answer i32) (local $stream i32) (local $i i32)
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

fn engine() -> HttpEngine {
    HttpEngine::new(HttpLimits {
        wall_max: Duration::from_millis(1_500),
        processor_max: Duration::from_millis(100),
        requests_max: 20,
        ..HttpLimits::default()
    })
    .unwrap()
}

async fn get(engine: &HttpEngine, guest: Guest) -> Result<Response<Body>, HttpFault> {
    let plugin = engine.load(&guest.component()).unwrap();
    plugin.handle(Request::get("http://shop.example/").body(Empty::<Bytes>::new()).unwrap()).await
}

async fn whole(engine: &HttpEngine, guest: Guest) -> Result<Bytes, HttpFault> {
    Ok(get(engine, guest).await?.into_body().collect().await?.to_bytes())
}

const LOOP: &str = "(loop $l (br $l))";

#[tokio::test]
async fn a_guest_answers() {
    let engine = engine();
    for _ in 0..50 {
        assert_eq!(whole(&engine, Guest::default()).await.unwrap(), "hello");
    }
}

#[tokio::test]
async fn a_guest_that_fails_before_its_head_is_a_named_error_and_the_next_one_answers() {
    let engine = engine();
    let trap = |fault: &HttpFault| matches!(fault, HttpFault::Trap(_));
    let is = |expected: HttpFault| move |fault: &HttpFault| *fault == expected;
    #[expect(clippy::type_complexity, reason = "a table")]
    let cases: Vec<(Guest, Box<dyn Fn(&HttpFault) -> bool>, u16)> = vec![
        (Guest { before_head: LOOP, ..Guest::default() }, Box::new(is(HttpFault::Deadline)), 504),
        (Guest { start: LOOP, ..Guest::default() }, Box::new(is(HttpFault::Deadline)), 504),
        (Guest { before_head: "unreachable", ..Guest::default() }, Box::new(trap), 500),
        (Guest { start: "unreachable", ..Guest::default() }, Box::new(trap), 500),
        (Guest { before_head: "(call $deep)", ..Guest::default() }, Box::new(is(HttpFault::Stack)), 500),
        (Guest { before_head: "return", ..Guest::default() }, Box::new(is(HttpFault::NoResponse)), 500),
        (
            Guest {
                before_head: "(loop $l (drop (memory.grow (i32.const 16))) (br $l))",
                ..Guest::default()
            },
            Box::new(is(HttpFault::Memory)),
            500,
        ),
        // Answers with an error: HTTP-request-denied.
        (
            Guest {
                before_head: "(call $set (local.get $out) (i32.const 1) (i32.const 15) (i32.const 0) (i64.const 0) \
                              (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)) return",
                ..Guest::default()
            },
            Box::new(|fault| matches!(fault, HttpFault::Guest(_))),
            502,
        ),
    ];
    for (guest, check, status) in cases {
        let start = Instant::now();
        let fault = get(&engine, guest).await.map(|_| ()).unwrap_err();
        assert!(check(&fault), "{fault:?}");
        assert_eq!(fault.status().as_u16(), status, "{fault:?}");
        assert!(start.elapsed() < Duration::from_secs(5), "{fault:?} took {:?}", start.elapsed());
        assert_eq!(whole(&engine, Guest::default()).await.unwrap(), "hello");
    }
}

#[tokio::test]
async fn a_body_that_was_cut_short_never_looks_whole() {
    let engine = engine();
    for guest in [
        Guest { mid_body: "unreachable", ..Guest::default() },
        Guest { mid_body: LOOP, ..Guest::default() },
        Guest { mid_body: "(call $deep)", ..Guest::default() },
        Guest { before_body: "unreachable", ..Guest::default() },
    ] {
        let answer = get(&engine, guest).await;
        // A guest may fail so soon that the head was not yet taken; then the whole answer is an error.
        if let Ok(answer) = answer {
            let fault = answer.into_body().collect().await.map(|_| ()).unwrap_err();
            assert!(
                matches!(fault, HttpFault::Trap(_) | HttpFault::Deadline | HttpFault::Stack),
                "{fault:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_guest_whose_reader_stalls_ends_by_the_wall_clock() {
    let forever = Guest {
        mid_body: "(loop $l (call $chunk (local.get $stream) (i32.const 0) (i32.const 4096) (i32.const 96)) (br $l))",
        ..Guest::default()
    };
    let engine = engine();
    let mut body = get(&engine, forever).await.unwrap().into_body();
    assert!(body.frame().await.unwrap().is_ok());
    tokio::time::sleep(Duration::from_millis(1_700)).await;
    let fault = loop {
        match body.frame().await {
            Some(Ok(_)) => {}
            Some(Err(fault)) => break fault,
            None => panic!("ended as if it were whole"),
        }
    };
    assert_eq!(fault, HttpFault::Timeout);
}

#[tokio::test]
async fn work_after_the_answer_goes_on_and_dropping_the_answer_stops_the_guest() {
    let engine = HttpEngine::new(HttpLimits { requests_max: 1, ..HttpLimits::default() }).unwrap();
    let after = Guest { after_body: "(loop $l (br $l))", ..Guest::default() };
    // What happens after the body is finished may still spoil the answer if it fails before the body was read, but
    // a body that was read to its end stays read.
    if let Ok(body) = whole(&engine, after).await {
        assert_eq!(body, "hello");
    }
    let plugin = engine.load(&Guest::default().component()).unwrap();
    let forever = Guest {
        mid_body: "(loop $l (call $chunk (local.get $stream) (i32.const 0) (i32.const 4096) (i32.const 96)) (br $l))",
        ..Guest::default()
    };
    // One instance at a time: the next request is only answered if the last guest was stopped.
    for _ in 0..5 {
        let mut answer = None;
        for _ in 0..200 {
            match get(&engine, forever).await {
                Ok(response) => {
                    answer = Some(response);
                    break;
                }
                Err(fault) => assert_eq!(fault, HttpFault::Busy),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        drop(answer.expect("the last guest was never stopped"));
    }
    drop(plugin);
}

#[tokio::test]
async fn outbound_requests_are_denied_by_name_and_there_are_no_files() {
    let asks = Guest {
        before_head: r#"
            (local.set $i (call $request (call $fields)))
            (drop (call $authority (local.get $i) (i32.const 1) (i32.const 1024) (i32.const 5)))
            (drop (call $path (local.get $i) (i32.const 1) (i32.const 2096) (i32.const 1)))
            (call $send (local.get $i) (i32.const 0) (i32.const 0) (i32.const 256))
            (if (i32.load8_u (i32.const 256)) (then unreachable))
            (call $block (call $subscribe (i32.load (i32.const 264))))
            (call $get (i32.load (i32.const 264)) (i32.const 512))
            ;; some(ok(err(HTTP-request-denied)))
            (if (i32.ne (i32.load8_u (i32.const 512)) (i32.const 1)) (then unreachable))
            (if (i32.ne (i32.load8_u (i32.const 528)) (i32.const 1)) (then unreachable))
            (if (i32.ne (i32.load8_u (i32.const 536)) (i32.const 15)) (then unreachable))
            (call $directories (i32.const 768))
            (if (i32.load (i32.const 772)) (then unreachable))"#,
        ..Guest::default()
    };
    assert_eq!(whole(&engine(), asks).await.unwrap(), "hello");
}

#[tokio::test]
async fn printing_is_bounded_and_costs_nobody_the_answer() {
    let prints = Guest {
        before_head: r#"
            (local.set $stream (call $stdout))
            (loop $l
                (call $chunk (local.get $stream) (i32.const 0) (i32.const 4096) (i32.const 96))
                (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 100))))"#,
        ..Guest::default()
    };
    assert_eq!(whole(&engine(), prints).await.unwrap(), "hello");
}

#[tokio::test]
async fn a_head_has_only_fields_that_a_guest_may_write_and_not_too_many() {
    let engine = engine();
    let many = Guest {
        fields: r#"(loop $l
            (call $append (local.get $fields) (i32.const 2048) (i32.const 6) (i32.const 1024) (i32.const 5) (i32.const 96))
            (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 101))))"#,
        ..Guest::default()
    };
    let fault = get(&engine, many).await.map(|_| ()).unwrap_err();
    assert!(matches!(fault, HttpFault::BadResponse(_)), "{fault:?}");
    // transfer-encoding is refused to the guest: header-error forbidden is 1.
    let smuggles = Guest {
        fields: r#"
            (call $append (local.get $fields) (i32.const 2064) (i32.const 17) (i32.const 1024) (i32.const 5) (i32.const 96))
            (if (i32.ne (i32.load16_u (i32.const 96)) (i32.const 0x0101)) (then unreachable))"#,
        ..Guest::default()
    };
    let answer = get(&engine, smuggles).await.unwrap();
    assert!(answer.headers().is_empty());
}

#[tokio::test]
async fn what_is_no_http_component_is_refused_by_name() {
    let refused = |bytes: &[u8]| engine().load(bytes).map(|_| ()).unwrap_err();
    assert!(refused(&common::GOOD.component()).has("no_handler"));
    assert!(refused(&Guest { memory: "1025", ..Guest::default() }.component()).has("memory_minimum"));
    let no_host = Request::get("/").body(Empty::<Bytes>::new()).unwrap();
    let plugin = engine().load(&Guest::default().component()).unwrap();
    let fault = plugin.handle(no_host).await.map(|_| ()).unwrap_err();
    assert!(matches!(fault, HttpFault::BadRequest(_)), "{fault:?}");
}
