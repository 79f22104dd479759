//! The wire under hyper's own server, over a pipe, with a clock that is wound by hand.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use super::*;
use crate::gate::{Gate, GateLimits};
use crate::http::{Body, full};

mod at_once;

const HOST: &str = "Host: a\r\n";

fn limits() -> WireLimits {
    WireLimits {
        head_bytes_max: 8 * 1024,
        head_max: Duration::from_secs(10),
        idle_max: Duration::from_secs(75),
        upload_max: Duration::from_secs(10),
        download_max: Duration::from_secs(30),
        stream_window_bytes: 65_535,
        http2: Forbearance::SHOPPERS,
    }
}

fn gate() -> Arc<Gate> {
    Gate::new(GateLimits { connections_max: 10, connections_per_address_max: 10, requests_in_flight_max: 10 })
}

/// What is answered: the path, and the length of the body once it has been read. `/slow` takes a minute, `/large` is a
/// megabyte.
async fn answer(request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    if path == "/slow" {
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    if path == "/large" {
        return Response::new(full(vec![b'x'; 1 << 20]));
    }
    let read = match request.into_body().collect().await {
        Ok(body) => body.to_bytes().len().to_string(),
        Err(_) => "broken".to_owned(),
    };
    Response::new(full(format!("{path} {read}")))
}

/// The server's end of a pipe, as `crate::listen` makes it.
fn serve(capacity: usize, gate: &Arc<Gate>) -> DuplexStream {
    serve_by(capacity, gate, |wire| wire)
}

/// The same with something done to the wire before.
fn serve_by(
    capacity: usize,
    gate: &Arc<Gate>,
    change: impl FnOnce(Wire<DuplexStream>) -> Wire<DuplexStream>,
) -> DuplexStream {
    let (client, server) = tokio::io::duplex(capacity);
    let tie = gate.admit(IpAddr::V4(Ipv4Addr::LOCALHOST)).expect("room");
    let wire = change(Wire::new(server, Spoken::Either, limits(), tie.clone()));
    let service = service_fn(move |request: Request<Incoming>| {
        let work = tie.begin();
        async move {
            let work = work.expect("few requests");
            let response = match work.refusal() {
                Some(problem) => problem.into_response(),
                None => {
                    let response = answer(request).await;
                    work.refusal().map_or(response, |problem| problem.into_response())
                }
            };
            Ok::<_, Infallible>(response.map(|body| work.until_sent(body)))
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None::<Duration>).auto_date_header(false);
    builder.http1().max_buf_size(8 * 1024);
    builder.http2().timer(TokioTimer::new());
    tokio::spawn(async move { drop(builder.serve_connection(TokioIo::new(wire), service).await) });
    client
}

/// Everything that comes back for these pieces, sent one after the other, until the server closes.
async fn said(pieces: &[&[u8]]) -> String {
    let mut client = serve(64 * 1024, &gate());
    for piece in pieces {
        client.write_all(piece).await.expect("sent");
        // The server takes it before the next one comes.
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
    }
    let mut text = Vec::new();
    // A connection that is torn down says so with an error; what came before it counts.
    let _ = client.read_to_end(&mut text).await;
    String::from_utf8_lossy(&text).into_owned()
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test(start_paused = true)]
async fn answers_before_a_malformed_request_are_whole_and_it_has_one_of_its_own() {
    let good =
        format!("GET /a HTTP/1.1\r\n{HOST}\r\nPOST /b HTTP/1.1\r\n{HOST}Content-Length: 5\r\n\r\nhello");
    let bad =
        format!("POST /c HTTP/1.1\r\n{HOST}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    let text = said(&[format!("{good}{bad}GET /smuggled HTTP/1.1\r\n{HOST}\r\n").as_bytes()]).await;
    let rest = text.strip_prefix(&format!("{}{}", ok("/a 0"), ok("/b 5"))).expect("both answers, first");
    assert!(rest.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{rest}");
    assert!(
        rest.contains("content-type: application/problem+json") && rest.contains("connection: close"),
        "{rest}"
    );
    assert!(rest.contains("\"fault\":\"content_length_beside_transfer_encoding\""), "{rest}");
    assert!(
        rest.ends_with('}') && !text.contains("smuggled") && rest.matches("HTTP/1.1 ").count() == 1,
        "{rest}"
    );
}

#[tokio::test(start_paused = true)]
async fn wherever_the_bytes_are_cut_the_answers_are_the_same() {
    let good =
        format!("\r\nPOST /b HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
    let bad = format!("GET /c#d HTTP/1.1\r\n{HOST}\r\n");
    let bytes = format!("{good}{bad}").into_bytes();
    let whole = said(&[&bytes]).await;
    assert!(whole.starts_with(&ok("/b 5")) && whole.contains("fragment_in_target"), "{whole}");
    for cut in 1..bytes.len() {
        let (one, two) = bytes.split_at(cut);
        assert_eq!(said(&[one, two]).await, whole, "cut at {cut}");
    }
    let single: Vec<_> = bytes.chunks(1).collect();
    assert_eq!(said(&single).await, whole);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_is_refused_by_name_however_late() {
    let head = format!("POST /b HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n");
    for pieces in [
        vec![format!("{head}5\r\nhello0\r\n\r\nGET /smuggled HTTP/1.1\r\n{HOST}\r\n")],
        vec![head.clone(), "5\r\nhel".to_owned(), "lo\n0\r\n\r\n".to_owned()],
    ] {
        let pieces: Vec<_> = pieces.iter().map(String::as_bytes).collect();
        let text = said(&pieces).await;
        assert!(text.starts_with("HTTP/1.1 400") && text.contains("\"bad_chunk\""), "{text}");
        assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_goes_on_sending_gets_its_answer_all_the_same() {
    let mut client = serve(1024, &gate());
    let bad = format!("GET /#a HTTP/1.1\r\n{HOST}\r\n{}", "x".repeat(100 * 1024));
    client.write_all(bad.as_bytes()).await.expect("all of it is taken");
    let mut text = String::new();
    client.read_to_string(&mut text).await.expect("a clean end");
    assert!(text.starts_with("HTTP/1.1 400") && text.ends_with('}'), "{text}");
}

#[tokio::test(start_paused = true)]
async fn silence_and_half_a_head_have_their_times_and_an_idle_connection_a_longer_one() {
    let started = Instant::now();
    assert_eq!(said(&[]).await, "");
    assert_eq!(started.elapsed().as_secs(), 10);

    // What might still become the preface of HTTP/2.
    assert_eq!(said(&[b"PRI * HT"]).await, "");

    let text = said(&[format!("GET /a HTTP/1.1\r\n{HOST}").as_bytes()]).await;
    assert!(text.starts_with("HTTP/1.1 408") && text.contains("\"head_too_slow\""), "{text}");

    let started = Instant::now();
    assert_eq!(said(&[format!("GET /a HTTP/1.1\r\n{HOST}\r\n").as_bytes()]).await, ok("/a 0"));
    assert_eq!(started.elapsed().as_secs(), 75);

    // Our own minute is not the client's.
    let started = Instant::now();
    assert_eq!(said(&[format!("GET /slow HTTP/1.1\r\n{HOST}\r\n").as_bytes()]).await, ok("/slow 0"));
    assert_eq!(started.elapsed().as_secs(), 60 + 75);
}

#[tokio::test(start_paused = true)]
async fn a_head_in_single_bytes_has_no_longer_than_one_that_stops() {
    let mut client = serve(64 * 1024, &gate());
    let started = Instant::now();
    let mut sent = 0;
    for byte in format!("GET / HTTP/1.1\r\n{HOST}{}", "X: y\r\n".repeat(100)).bytes() {
        if client.write_all(&[byte]).await.is_err() {
            break;
        }
        sent += 1;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let mut text = String::new();
    client.read_to_string(&mut text).await.expect("a clean end");
    assert!(text.contains("\"head_too_slow\"") && sent < 20, "{sent} {text}");
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[tokio::test(start_paused = true)]
async fn a_body_in_single_bytes_ends_and_one_that_keeps_the_rate_does_not() {
    let head = format!("POST /b HTTP/1.1\r\n{HOST}Content-Length: 10000\r\nConnection: close\r\n\r\n");
    for (bytes, fast_enough) in [(1, false), (100, false), (250, true)] {
        let mut client = serve(64 * 1024, &gate());
        client.write_all(head.as_bytes()).await.expect("sent");
        let mut left = 10_000_usize;
        while left > 0 {
            let step = left.min(bytes);
            if client.write_all(&vec![b'x'; step]).await.is_err() {
                break;
            }
            left -= step;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let mut text = String::new();
        let _ = client.read_to_string(&mut text).await;
        let expected = if fast_enough { "HTTP/1.1 200" } else { "HTTP/1.1 408" };
        assert!(text.starts_with(expected), "{bytes} B/s: {text}");
        assert_eq!(text.contains("\"body_too_slow\""), !fast_enough, "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_of_a_byte_now_and_then_is_shown_out_and_a_slow_one_is_not() {
    for (bytes, every, ends) in [(1_usize, 20, true), (250, 1, false)] {
        let mut client = serve(256, &gate());
        client.write_all(format!("GET /large HTTP/1.1\r\n{HOST}\r\n").as_bytes()).await.expect("sent");
        let started = Instant::now();
        let mut read = 0;
        let mut buffer = vec![0; bytes];
        while started.elapsed() < Duration::from_secs(300) {
            tokio::time::sleep(Duration::from_secs(every)).await;
            match client.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(count) => read += count,
            }
        }
        // What was in the pipe already is still read, byte by byte, when the connection is gone.
        let open = client.write_all(b"GET / HTTP/1.1\r\n").await.is_ok();
        assert_eq!(open, !ends, "{read} bytes");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_a_request_loses_its_place_and_one_with_a_request_does_not() {
    let gate = Gate::new(GateLimits {
        connections_max: 1,
        connections_per_address_max: 10,
        requests_in_flight_max: 10,
    });
    let place = gate.place().await;
    for (said, goes) in [
        ("", true),
        ("GET / HT", true),
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", true),
        ("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n", false),
    ] {
        let mut client = serve(64 * 1024, &gate);
        client.write_all(said.as_bytes()).await.expect("sent");
        // It is answered, or waits.
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(
            tokio::time::timeout(Duration::from_secs(1), gate.place()).await.is_err(),
            "no place is free"
        );
        let started = Instant::now();
        let mut text = Vec::new();
        client.read_to_end(&mut text).await.expect("a clean end");
        assert_eq!(started.elapsed() < Duration::from_secs(1), goes, "{said:?}");
    }
    drop(place);
}

const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

#[tokio::test(start_paused = true)]
async fn http2_by_prior_knowledge_passes_and_its_floods_do_not() {
    let gate = gate();
    let (mut send, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(serve(64 * 1024, &gate)))
            .await
            .expect("HTTP/2");
    tokio::spawn(connection);
    for _ in 0..100 {
        let request = Request::post("http://a/x").body(Empty::<Bytes>::new()).expect("a request");
        let answer = send.send_request(request).await.expect("an answer");
        assert_eq!(answer.into_body().collect().await.expect("a body").to_bytes(), "/x 0");
    }

    let ping = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    let (mut read, mut write) = tokio::io::split(serve(64 * 1024, &gate));
    let sending = tokio::spawn(async move {
        write.write_all(&[frames::PREFACE, SETTINGS].concat()).await?;
        let mut pings = 0;
        // Bounded, so that a server that lets them all in fails the test.
        while pings < 100_000 && write.write_all(&ping).await.is_ok() {
            pings += 1;
        }
        Ok::<_, io::Error>(pings)
    });
    let mut answered = Vec::new();
    let _ = read.read_to_end(&mut answered).await;
    assert!(sending.await.expect("sent").expect("the preface") < 100_000);
    let goodbye = answered.windows(17).find(|window| window[..5] == [0, 0, 8, 7, 0]).expect("a GOAWAY");
    assert_eq!(goodbye[16], 11, "ENHANCE_YOUR_CALM");
}

#[tokio::test(start_paused = true)]
async fn an_answer_at_window_zero_ends_its_connection_in_time() {
    let mut client = serve(64 * 1024, &gate());
    // INITIAL_WINDOW_SIZE is 0; then GET /large.
    let settings = [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0];
    let headers =
        [&[0, 0, 13, 1, 5, 0, 0, 0, 1, 0x82, 0x86, 0x04, 6][..], b"/large", &[0x41, 1, b'a']].concat();
    client.write_all(&[frames::PREFACE, &settings, &headers].concat()).await.expect("sent");
    let started = Instant::now();
    let (mut read, mut write) = tokio::io::split(client);
    // A byte of window each second is no reason to stay.
    tokio::spawn(async move {
        while write.write_all(&[0, 0, 4, 8, 0, 0, 0, 0, 1, 0, 0, 0, 1]).await.is_ok() {
            tokio::time::sleep(Duration::from_secs(16)).await;
        }
    });
    let mut answered = Vec::new();
    let _ = read.read_to_end(&mut answered).await;
    assert!((30..=60).contains(&started.elapsed().as_secs()), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_of_http2_is_told_that_it_ends() {
    let mut client = serve(64 * 1024, &gate());
    client.write_all(&[frames::PREFACE, SETTINGS].concat()).await.expect("sent");
    let started = Instant::now();
    let mut answered = Vec::new();
    let _ = client.read_to_end(&mut answered).await;
    // Nothing was asked for.
    assert_eq!(started.elapsed().as_secs(), 10);
    let goodbye = answered.windows(17).find(|window| window[..5] == [0, 0, 8, 7, 0]).expect("a GOAWAY");
    assert_eq!(goodbye[16], 0, "NO_ERROR");
}
