//! Clients that break the rules or take what is others': refused, stopped or shown out, and their neighbours go on.

use super::*;

/// A connection that speaks in bytes: its control stream, with empty settings, is there.
async fn raw(world: &World) -> quinn::Connection {
    let connection = world.connection().await;
    let mut control = soon(connection.open_uni()).await.expect("a stream");
    soon(control.write_all(&[0x0, 0x4, 0x0])).await.expect("sent");
    // It must not end.
    std::mem::forget(control);
    connection
}

fn code_of(error: ConnectionError) -> u64 {
    match error {
        ConnectionError::ApplicationClosed(close) => close.error_code.into_inner(),
        other => panic!("{other}"),
    }
}

/// A head for `/read`, and what follows it.
fn head_with(more: &[u8]) -> Vec<u8> {
    // :method GET, :scheme https, :path /read and :authority localhost, by QPACK's static table.
    let block = [&[0, 0, 0xd1, 0xd7, 0x51, 5][..], b"/read", &[0x50, 9], b"localhost", more].concat();
    [&[0x1, u8::try_from(block.len()).expect("short")][..], &block].concat()
}

#[tokio::test]
async fn a_pseudo_header_that_is_said_twice_or_late_makes_the_request_malformed() {
    let world = World::new().await;
    let connection = raw(&world).await;
    let path = [&[0x51, 6][..], b"/other"].concat();
    let late = [&[0xdd][..], &path].concat();
    let trailers = [head_with(&[]), vec![0x1, 10], vec![0, 0], path.clone()].concat();
    // A path again, an authority again, a path after `accept`, and a status; whole heads in letters are the unit tests'.
    for bytes in [
        head_with(&path),
        head_with(&[&[0x50, 5][..], b"other"].concat()),
        head_with(&late),
        head_with(&[0xd9]),
    ] {
        let (mut send, mut receive) = soon(connection.open_bi()).await.expect("a stream");
        soon(send.write_all(&bytes)).await.expect("sent");
        let _ = send.finish();
        let reset = soon(receive.read_to_end(1_000)).await.expect_err("no answer");
        let code = VarInt::from_u64(Code::H3_MESSAGE_ERROR.value()).expect("small");
        assert_eq!(reset, ReadToEndError::Read(ReadError::Reset(code)), "{bytes:?}");
    }
    // The body is `0`, the length of what was read; nobody reads one to the end that has such trailers.
    for (bytes, is_whole) in [(head_with(&[]), true), (trailers, false)] {
        let (mut send, mut receive) = soon(connection.open_bi()).await.expect("a stream");
        soon(send.write_all(&bytes)).await.expect("sent");
        let _ = send.finish();
        let answer = soon(receive.read_to_end(1_000)).await;
        assert_eq!(answer.is_ok_and(|answer| answer.ends_with(&[0x0, 1, b'0'])), is_whole, "{bytes:?}");
    }
    assert!(connection.close_reason().is_none(), "its other requests go on");
}

#[tokio::test]
async fn an_upload_that_trickles_is_told_so_and_stopped() {
    let limits = ListenLimits { upload_wait_max: Duration::from_millis(500), ..ListenLimits::default() };
    let world = World::with(limits).await;
    let mut h3 = world.h3().await;
    let stream = soon(h3.send_request(world.request(Method::POST, "/read"))).await.expect("sent");
    let (mut send, mut receive) = stream.split();
    let trickling = tokio::spawn(async move {
        while send.send_data(Bytes::from_static(b"x")).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let head = soon(receive.recv_response()).await.expect("an answer");
    assert_eq!(head.status(), StatusCode::REQUEST_TIMEOUT);
    soon(trickling).await.expect("it is told to stop");
    assert!(world.counted("souk_http3_requests_broken_total{reason=\"slow_body\"} 1"));
    assert_eq!(get(&world, &mut h3, "/x").await.status, StatusCode::OK);
}

#[tokio::test]
async fn early_hints_come_before_the_answer_is_there() {
    let world = World::new().await;
    let mut h3 = world.h3().await;
    let mut stream = soon(h3.send_request(world.request(Method::GET, "/hints"))).await.expect("sent");
    soon(stream.finish()).await.expect("sent");
    for link in ["</a.css>", "</b.js>"] {
        let hint = soon(stream.recv_response()).await.expect("a hint");
        assert_eq!(
            (hint.status(), &hint.headers()[LINK]),
            (StatusCode::EARLY_HINTS, &HeaderValue::from_static(link))
        );
    }
    world.shop.go.notify_one();
    let head = soon(stream.recv_response()).await.expect("an answer");
    assert_eq!(head.status(), StatusCode::OK);
    let data =
        soon(stream.recv_data()).await.expect("a body").map(|mut data| data.copy_to_bytes(data.remaining()));
    assert_eq!(data.as_deref(), Some(&b"hinted"[..]));
}

#[tokio::test]
async fn frames_that_cannot_be_right_end_the_connection() {
    let world = World::new().await;
    let get = head_with(&[]);
    let huge = |kind: u8| [&[kind, 0xc0, 0, 0, 0, 0x40, 0, 0, 0][..]].concat();
    for (bytes, code) in [
        // A head of a gigabyte, and one of an unknown frame: said, not sent.
        (huge(0x1), Code::H3_EXCESSIVE_LOAD),
        ([get.clone(), huge(0x21)].concat(), Code::H3_EXCESSIVE_LOAD),
        (([get.clone(), [0x0, 0x0].repeat(100)]).concat(), Code::H3_EXCESSIVE_LOAD),
        // Ten bytes of data said, three sent.
        ([get.clone(), vec![0x0, 10, b'a', b'b', b'c']].concat(), Code::H3_FRAME_ERROR),
        (vec![0x1, 20, 0], Code::H3_FRAME_ERROR),
        // Data without a head.
        (vec![0x0, 1, b'a'], Code::H3_FRAME_UNEXPECTED),
    ] {
        let connection = raw(&world).await;
        let (mut send, _receive) = soon(connection.open_bi()).await.expect("a stream");
        soon(send.write_all(&bytes)).await.expect("sent");
        let _ = send.finish();
        assert_eq!(code_of(soon(connection.closed()).await), code.value(), "{bytes:?}");
    }
    let connection = raw(&world).await;
    let mut second = soon(connection.open_uni()).await.expect("a stream");
    soon(second.write_all(&[0x0, 0x4, 0x0])).await.expect("sent");
    assert_eq!(code_of(soon(connection.closed()).await), Code::H3_STREAM_CREATION_ERROR.value());
}

#[tokio::test]
async fn a_head_beyond_the_list_is_answered_and_the_connection_goes_on() {
    let world = World::new().await;
    let connection = raw(&world).await;
    let mut block = vec![0, 0, 0xd1, 0xd7, 0xc1, 0x50, 9];
    block.extend_from_slice(b"localhost");
    for _ in 0..40 {
        // A literal field of one letter with 1,000 bytes.
        block.extend_from_slice(&[0x21, b'x', 0x7f, 0xe9, 0x06]);
        block.extend(std::iter::repeat_n(b'y', 1_000));
    }
    let mut frame = vec![0x1];
    frame.extend_from_slice(&(u32::try_from(block.len()).expect("short") | 0x8000_0000).to_be_bytes());
    frame.extend(block);
    let (mut send, mut receive) = soon(connection.open_bi()).await.expect("a stream");
    soon(send.write_all(&frame)).await.expect("sent");
    let _ = send.finish();
    let answer = soon(receive.read_to_end(1_000)).await.expect("an answer");
    // HEADERS, and 431 among the literals: QPACK has no index for it.
    assert_eq!(answer.first(), Some(&0x1), "{answer:?}");
    let mut h3 = world.h3().await;
    assert_eq!(get(&world, &mut h3, "/x").await.status, StatusCode::OK);
    assert!(connection.close_reason().is_none());
}

#[tokio::test]
async fn whoever_says_nothing_is_shown_out() {
    let limits = ListenLimits { header_deadline: Duration::from_millis(300), ..ListenLimits::default() };
    let world = World::with(limits).await;
    let silent = raw(&world).await;
    assert_eq!(code_of(soon(silent.closed()).await), Code::H3_NO_ERROR.value());
    // Half a head, on a connection that is otherwise used.
    let connection = world.connection().await;
    let (mut driver, mut h3) =
        h3::client::new(h3_quinn::Connection::new(connection.clone())).await.expect("HTTP/3");
    tokio::spawn(async move { driver.wait_idle().await });
    assert_eq!(get(&world, &mut h3, "/x").await.status, StatusCode::OK);
    let (mut send, mut receive) = soon(connection.open_bi()).await.expect("a stream");
    soon(send.write_all(&[0x1, 20, 0])).await.expect("sent");
    let stopped = soon(send.stopped()).await.expect("alive");
    assert_eq!(stopped, Some(VarInt::from_u64(Code::H3_NO_ERROR.value()).expect("small")));
    let _ = soon(receive.read_to_end(10)).await;
    assert!(connection.close_reason().is_none());
}

#[tokio::test]
async fn a_client_that_takes_everything_back_is_shown_out() {
    let world = World::new().await;
    let connection = world.connection().await;
    let (mut driver, mut h3) =
        h3::client::new(h3_quinn::Connection::new(connection.clone())).await.expect("HTTP/3");
    tokio::spawn(async move { driver.wait_idle().await });
    let flood = async {
        loop {
            let Ok(mut stream) = h3.send_request(world.request(Method::GET, "/wait")).await else { return };
            stream.stop_sending(Code::H3_REQUEST_CANCELLED);
            stream.stop_stream(Code::H3_REQUEST_CANCELLED);
        }
    };
    soon(flood).await;
    assert_eq!(code_of(soon(connection.closed()).await), Code::H3_EXCESSIVE_LOAD.value());
}

#[tokio::test]
async fn a_crowd_must_show_its_addresses_and_then_its_size() {
    let world = World::with(ListenLimits { connections_max: 4, ..ListenLimits::default() }).await;
    let mut open = Vec::new();
    for number in 1..=4 {
        open.push(world.connection().await);
        let asked = world.counted("souk_http3_retries_total 1");
        assert_eq!(asked, number == 4, "connection {number}");
    }
    let connecting = world.quic().connect(world.addr, "localhost").expect("a connection");
    let error = soon(connecting).await.expect_err("no room");
    assert!(matches!(error, ConnectionError::ConnectionClosed(_)), "{error}");
    assert!(world.counted("souk_http3_connections_ended_total{reason=\"crowded\"} 1"));
    open.pop().expect("one").close(VarInt::from_u32(0x100), b"");
    // Its place is free a moment later.
    let again = async {
        loop {
            let connecting = world.quic().connect(world.addr, "localhost").expect("a connection");
            if connecting.await.is_ok() {
                return;
            }
        }
    };
    soon(again).await;
}

#[tokio::test]
async fn work_and_addresses_are_counted_as_over_tcp() {
    let limits =
        ListenLimits { requests_in_flight_max: 1, connections_per_address_max: 1, ..ListenLimits::default() };
    let world = World::with(limits).await;
    let mut h3 = world.h3().await;
    let mut stream = soon(h3.send_request(world.request(Method::GET, "/wait"))).await.expect("sent");
    soon(stream.finish()).await.expect("sent");
    soon(world.shop.waiting.notified()).await;
    let beyond = get(&world, &mut h3, "/beyond").await;
    assert_eq!(beyond.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(beyond.headers.contains_key("retry-after"));

    // Another from the same address, by the same word as one that cancels too much.
    let error = soon(world.connection().await.closed()).await;
    let code = VarInt::from_u64(Code::H3_EXCESSIVE_LOAD.value()).expect("small");
    assert!(
        matches!(&error, ConnectionError::ApplicationClosed(close) if close.error_code == code),
        "{error}"
    );

    world.shop.go.notify_one();
    assert_eq!(soon(stream.recv_response()).await.expect("an answer").status(), StatusCode::OK);
    assert!(soon(stream.recv_data()).await.expect("a body").is_some());
    assert!(soon(stream.recv_data()).await.expect("a clean end").is_none());
    assert_eq!(get(&world, &mut h3, "/after").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_drain_answers_what_runs_and_refuses_who_comes() {
    let mut world = World::new().await;
    let connection = world.connection().await;
    let (mut driver, mut h3) =
        h3::client::new(h3_quinn::Connection::new(connection.clone())).await.expect("HTTP/3");
    let driven = tokio::spawn(async move { driver.wait_idle().await });
    let mut stream = soon(h3.send_request(world.request(Method::GET, "/wait"))).await.expect("sent");
    soon(stream.finish()).await.expect("sent");
    soon(world.shop.waiting.notified()).await;
    world.shutdown.cancel();

    let refused = async {
        loop {
            let connecting = world.quic().connect(world.addr, "localhost").expect("a connection");
            if connecting.await.is_err() {
                return;
            }
        }
    };
    soon(refused).await;
    // GOAWAY has come by now or comes soon; then nothing new is asked here.
    let going = async {
        while let Ok(mut stream) = h3.send_request(world.request(Method::GET, "/x")).await {
            let _ = stream.finish().await;
            stream.recv_response().await.expect("what was sent before is answered");
        }
    };
    soon(going).await;
    world.shop.go.notify_one();
    assert_eq!(soon(stream.recv_response()).await.expect("an answer").status(), StatusCode::OK);
    let data =
        soon(stream.recv_data()).await.expect("a body").map(|mut data| data.copy_to_bytes(data.remaining()));
    assert_eq!(data.as_deref(), Some(&b"done"[..]));
    assert!(soon(stream.recv_data()).await.expect("a clean end").is_none());
    drop((stream, h3));
    let _ = soon(driven).await;
    for serving in &mut world.serving {
        soon(serving).await.expect("without a panic");
    }
}
