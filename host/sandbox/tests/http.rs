//! HTTP guests, good and hostile: what the client gets, and that a body which was cut short never looks whole.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;
use common as guests;
#[path = "../../../tests/guests/http.rs"]
#[expect(unreachable_pub, reason = "shared with the outside tests")]
mod http_guests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty};
use http_guests::{COUNTS, HttpGuest as Guest, STREAMS};
use souk_sandbox::http::{
    Body, HttpEngine, HttpFault, HttpLimits, HttpMetrics, HttpService, Outbound, OutboundLimits, Printed,
    Reach, Stream, Terms,
};

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

/// What a guest that ends before it waits has not sent is not sent: the fault is the whole answer.
#[tokio::test]
async fn a_guest_that_fails_after_its_head_and_before_anything_was_sent_is_a_named_error() {
    let engine = engine();
    for guest in [
        Guest { before_body: "unreachable", ..Guest::GOOD },
        Guest { mid_body: "unreachable", ..Guest::GOOD },
        Guest { after_body: "unreachable", ..Guest::GOOD },
    ] {
        let fault = get(&engine, guest).await.map(|_| ()).unwrap_err();
        assert!(matches!(fault, HttpFault::Trap(_)), "{fault:?}");
    }
}

/// A host that fails at the first line, as none should.
#[derive(Default)]
struct PanicsOnce(AtomicBool);

impl Printed for PanicsOnce {
    fn line(&self, _: Stream, _: &str) {
        assert!(self.0.swap(true, Ordering::Relaxed), "a bug of the host");
    }

    fn dropped(&self, _: Stream) {}
}

#[tokio::test]
async fn a_panic_of_the_host_ends_one_request_and_is_counted() {
    let mut registry = prometheus_client::registry::Registry::default();
    let metrics = HttpMetrics::register(&mut registry);
    let outbound = Outbound::new(OutboundLimits::default(), Reach::Public, [], metrics.clone()).unwrap();
    let engine = HttpEngine::with(HttpLimits::default(), outbound, metrics).unwrap();
    let prints = Guest {
        before_head: "(memory.fill (i32.const 4096) (i32.const 97) (i32.const 2048))
                      (call $chunk (call $stdout) (i32.const 4096) (i32.const 2048) (i32.const 96))",
        ..Guest::GOOD
    };
    let plugin = engine.load(&prints.component()).unwrap();
    let service = HttpService::new(
        plugin,
        Terms { printed: Some(Arc::new(PanicsOnce::default())), ..Terms::default() },
    );
    let request = || Request::get("http://shop.example/").body(Empty::<Bytes>::new()).unwrap();
    let fault = service.handle(request()).await.map(|_| ()).unwrap_err();
    assert!(matches!(fault, HttpFault::Internal(_)), "{fault:?}");
    let body = service.handle(request()).await.unwrap().into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "hello");
    let mut page = String::new();
    prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
    assert!(page.contains("souk_http_faults_total{fault=\"internal\"} 1"), "{page}");
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
async fn outbound_requests_are_denied_by_name() {
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
            (if (i32.ne (i32.load8_u (i32.const 536)) (i32.const 15)) (then unreachable))"#,
        ..Guest::default()
    };
    assert_eq!(whole(&engine(), asks).await.unwrap(), "hello");
}

#[tokio::test]
async fn there_are_no_files_and_no_sockets() {
    let looks = Guest {
        before_head: r#"
            (call $directories (i32.const 768))
            (if (i32.load (i32.const 772)) (then unreachable))
            ;; err(access-denied), twice; the network was lent, and can be left.
            (call $tcp (i32.const 0) (i32.const 768))
            (if (i32.ne (i32.load8_u (i32.const 768)) (i32.const 1)) (then unreachable))
            (if (i32.ne (i32.load8_u (i32.const 772)) (i32.const 1)) (then unreachable))
            (local.set $i (call $network))
            (call $resolve (local.get $i) (i32.const 2160) (i32.const 4) (i32.const 784))
            (if (i32.ne (i32.load8_u (i32.const 784)) (i32.const 1)) (then unreachable))
            (if (i32.ne (i32.load8_u (i32.const 788)) (i32.const 1)) (then unreachable))
            (call $leave (local.get $i))
            ;; A stream fails, of a body that is to have 9 bytes: that no file was the cause can be asked twice.
            (local.set $fields (call $fields))
            (call $append (local.get $fields) (i32.const 2112) (i32.const 14) (i32.const 2128) (i32.const 1) (i32.const 96))
            (local.set $answer (call $response (local.get $fields)))
            (call $body (local.get $answer) (i32.const 64))
            (call $write (i32.load (i32.const 68)) (i32.const 80))
            (local.set $stream (i32.load (i32.const 84)))
            (call $chunk (local.get $stream) (i32.const 1024) (i32.const 10) (i32.const 96))
            (if (i32.ne (i32.load8_u (i32.const 96)) (i32.const 1)) (then unreachable))
            (if (i32.load8_u (i32.const 100)) (then unreachable))
            (call $file_error (i32.load (i32.const 104)) (i32.const 800))
            (if (i32.load8_u (i32.const 800)) (then unreachable))
            (call $file_error (i32.load (i32.const 104)) (i32.const 800))
            (if (i32.load8_u (i32.const 800)) (then unreachable))
            (call $close (local.get $stream))"#,
        ..Guest::default()
    };
    assert_eq!(whole(&engine(), looks).await.unwrap(), "hello");
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

#[tokio::test]
async fn an_instance_serves_as_often_as_its_terms_say_and_not_after_a_fault() {
    let engine = engine();
    let say = async |service: &HttpService| {
        let request = Request::get("http://shop.example/").body(Empty::<Bytes>::new()).unwrap();
        let body = service.handle(request).await?.into_body().collect().await?.to_bytes();
        Ok::<_, HttpFault>(char::from(body[0]))
    };
    for (reuse, expected) in [(0, "aaaaaa"), (1, "aaaaaa"), (3, "abcabc"), (100, "abcdef")] {
        let plugin = engine.load(&COUNTS.component()).unwrap();
        let service = HttpService::new(plugin, Terms { reuse, ..Terms::default() });
        let mut said = String::new();
        for _ in 0..6 {
            said.push(say(&service).await.unwrap());
        }
        assert_eq!(said, expected, "reuse {reuse}");
    }
    // Traps with its third request: the fourth finds an instance that has seen nothing.
    let fails =
        Guest { after_body: "(if (i32.eq (global.get $served) (i32.const 3)) (then unreachable))", ..COUNTS };
    let plugin = engine.load(&fails.component()).unwrap();
    let service = HttpService::new(plugin, Terms { reuse: 100, ..Terms::default() });
    let mut said = String::new();
    for _ in 0..7 {
        said.push(say(&service).await.unwrap_or('!'));
    }
    assert_eq!(said, "ab!ab!a");
}

#[tokio::test]
async fn an_instance_that_leaks_handles_makes_room_before_a_request_fails() {
    let engine = engine();
    let leaks = Guest { before_head: "(drop (call $fields)) (drop (call $fields))", ..Guest::GOOD };
    let plugin = engine.load(&leaks.component()).unwrap();
    let service = HttpService::new(plugin, Terms { reuse: 1_000_000, ..Terms::default() });
    for _ in 0..2_000 {
        let request = Request::get("http://shop.example/").body(Empty::<Bytes>::new()).unwrap();
        let body = service.handle(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, "hello");
    }
}

#[tokio::test]
async fn what_a_body_lacks_of_its_length_or_end_is_an_error() {
    let engine = engine();
    let length_of_nine = r#"
        (call $append (local.get $fields) (i32.const 2112) (i32.const 14) (i32.const 2128) (i32.const 1) (i32.const 96))
        (if (i32.load8_u (i32.const 96)) (then unreachable))"#;
    // Says 9 and writes 5; returns without having finished its body.
    for guest in
        [Guest { fields: length_of_nine, ..Guest::GOOD }, Guest { mid_body: "return", ..Guest::GOOD }]
    {
        let answer = get(&engine, guest).await.unwrap();
        let fault = answer.into_body().collect().await.map(|_| ()).unwrap_err();
        assert_eq!(fault, HttpFault::Unfinished);
    }
    let whole_nine = Guest {
        fields: length_of_nine,
        mid_body: "(call $chunk (local.get $stream) (i32.const 1024) (i32.const 4) (i32.const 96))",
        ..Guest::GOOD
    };
    let answer = get(&engine, whole_nine).await.unwrap();
    assert!(answer.headers().is_empty(), "the length is the body's to say");
    assert_eq!(http_body::Body::size_hint(answer.body()).exact(), Some(9));
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "hellohell");
}

#[tokio::test]
async fn a_large_body_streams_and_waits_for_its_reader() {
    let answer = get(&engine(), STREAMS).await.unwrap();
    let mut body = answer.into_body();
    let (mut bytes, mut frames) = (0, 0);
    while let Some(frame) = body.frame().await {
        bytes += frame.unwrap().into_data().unwrap().len();
        frames += 1;
        if frames == 3 {
            // Long enough for a guest that did not wait to write all of it.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    assert_eq!(bytes, 5 + 256 * 4096);
    assert!(frames > 200, "{frames} frames: whatever is held back is held somewhere");
}

/// A service of a site, whose guest waits for its reader and holds what it has meanwhile.
fn stalling(engine: &HttpEngine, site: &str) -> HttpService {
    let plugin = engine.load(&STREAMS.component()).unwrap();
    let owner = Some((site.parse().unwrap(), "feed".parse().unwrap()));
    HttpService::new(plugin, Terms { owner, ..Terms::default() })
}

#[tokio::test]
async fn a_site_whose_guests_hang_leaves_others_their_places_and_their_memory() {
    let two_places = HttpLimits { requests_per_site_max: 2, ..HttpLimits::default() };
    let two_pages = HttpLimits { memory_per_site_bytes_max: 2 << 16, ..HttpLimits::default() };
    for (limits, expected) in [(two_places, HttpFault::SiteFull), (two_pages, HttpFault::Busy)] {
        let engine = HttpEngine::new(HttpLimits { requests_max: 20, ..limits }).unwrap();
        // Two services of one site have its room together.
        let (greedy, again, other) =
            (stalling(&engine, "greedy"), stalling(&engine, "greedy"), stalling(&engine, "other"));
        let request = || Request::get("http://shop.example/").body(Empty::<Bytes>::new()).unwrap();
        let held = [greedy.handle(request()).await.unwrap(), again.handle(request()).await.unwrap()];
        assert_eq!(greedy.handle(request()).await.map(|_| ()).unwrap_err(), expected);
        let body = other.handle(request()).await.unwrap().into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body.len(), 5 + 256 * 4096);
        drop(held);
        for left in (0..200).rev() {
            match greedy.handle(request()).await {
                Ok(_) => break,
                Err(fault) => assert!(fault == expected && left > 0, "{fault:?}: it never came back"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
