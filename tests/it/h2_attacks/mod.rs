//! The known attacks on HTTP/2 before `souk proxy`, each on a connection of its own, with a well-behaved client beside them
//! all the time. Each attack ends, the process stays small, the merchant's server sees little of it, and the client gets
//! every answer right. How long its answers took is printed beside how long they take alone; nothing depends on it.

mod raw;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use souk_tests::http::Client;
use souk_tests::proxy::Proxy;
use souk_tests::say;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use raw::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PRIORITY, RST_STREAM, Raw, SETTINGS,
    WINDOW_UPDATE, block, frame, get, get_block, text,
};

/// Far more than any attack is let to send.
const FLOOD_MAX: u32 = 20_000;
/// What the process may grow by over all attacks together.
const GROWTH_KIB_MAX: u64 = 64 * 1024;
/// Requests that the merchant's server may have had to answer at once: 200 that were cancelled, some 60 of each way to have the
/// server cancel them, and what is open beside.
const IN_FLIGHT_MAX: usize = 800;
const ENHANCE_YOUR_CALM: u32 = 11;
/// Answers to the client alone, before anything else happens.
const ALONE: usize = 500;
const LARGE_BYTES: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_attack_ends_and_a_neighbour_is_served() -> Result<()> {
    let upstream = Upstream::start().await?;
    let proxy = Proxy::start(upstream.addr).await?;
    let neighbour = Neighbour::start(proxy.addr).await?;
    let alone = neighbour.after(ALONE).await?;
    let before = proxy.resident_kib()?;

    // The slow one first: it waits for its lifetime while the others run.
    let stalled = tokio::spawn(window_zero(proxy.addr));
    rapid_reset(proxy.addr).await.context("rapid reset")?;
    made_you_reset(proxy.addr).await.context("made you reset")?;
    floods(proxy.addr).await.context("floods")?;
    header_bombs(proxy.addr).await.context("header bombs")?;
    malformed(proxy.addr, &upstream).await.context("malformed requests")?;
    stalled.await?.context("window zero")?;

    let beside = neighbour.stop().await?;
    let grown = proxy.resident_kib()?.saturating_sub(before);
    let most = upstream.most.load(Ordering::Relaxed);
    say(&format!(
        "HTTP/2 attacks: {} answers beside them, p99 {:.2} ms (alone {:.2} ms); {grown} KiB more memory; at most {most} at the upstream",
        beside.len(),
        p99(&beside),
        p99(&alone),
    ));
    ensure!(grown < GROWTH_KIB_MAX, "the process grew by {grown} KiB");
    ensure!(most <= IN_FLIGHT_MAX, "the upstream had {most} requests at once");

    let metrics = Client::new(proxy.admin).get("/metrics").await?.text();
    // Rapid resets end by h2's own limit on streams that were cancelled before they were looked at.
    for reason in ["enhance_your_calm", "control_flood", "stream_stalled"] {
        ensure!(metrics.contains(&format!("souk_gate_closed_total{{reason=\"{reason}\"}}")), "{metrics}");
    }
    Ok(())
}

/// CVE-2023-44487: a request and its cancellation, again and again.
async fn rapid_reset(addr: SocketAddr) -> Result<()> {
    let mut raw = Raw::open(addr, &[], None).await?;
    let cancel = 8_u32.to_be_bytes();
    let sent = raw
        .flood(FLOOD_MAX, |count| {
            let stream = count * 2 + 1;
            [get(stream, &format!("/slow-rapid-{count}")), frame(RST_STREAM, 0, stream, &cancel)].concat()
        })
        .await;
    ensure!(sent < FLOOD_MAX, "all {sent} were taken");
    raw.end().await?;
    Ok(())
}

/// CVE-2025-8671: frames that make the server do the cancelling.
async fn made_you_reset(addr: SocketAddr) -> Result<()> {
    type Make = fn(u32) -> Vec<u8>;
    let families: [(&str, Make); 6] = [
        ("a window update of nothing", |stream| frame(WINDOW_UPDATE, 0, stream, &[0; 4])),
        ("a window update beyond the greatest window", |stream| {
            frame(WINDOW_UPDATE, 0, stream, &0x7fff_ffff_u32.to_be_bytes()).repeat(2)
        }),
        ("a body after its end", |stream| frame(DATA, 0, stream, b"x")),
        ("a head after its end", |stream| frame(HEADERS, END_HEADERS, stream, &get_block("/second"))),
        ("a priority that depends on itself", |stream| {
            frame(PRIORITY, 0, stream, &[&stream.to_be_bytes()[..], &[0]].concat())
        }),
        ("a priority of four bytes", |stream| frame(PRIORITY, 0, stream, &[0; 4])),
    ];
    for (number, (name, primitive)) in families.into_iter().enumerate() {
        let mut raw = Raw::open(addr, &[], None).await?;
        let sent = raw
            .flood(FLOOD_MAX, |count| {
                let stream = count * 2 + 1;
                [get(stream, &format!("/slow-made-{number}-{count}")), primitive(stream)].concat()
            })
            .await;
        ensure!(sent < FLOOD_MAX, "{name}: all {sent} were taken");
        raw.end().await.context(name)?;
    }
    Ok(())
}

/// Frames that ask for nothing (CVE-2019-9512, 9514, 9515, 9518 and their kin).
async fn floods(addr: SocketAddr) -> Result<()> {
    for (name, bytes) in [
        ("PING", frame(PING, 0, 0, &[0; 8])),
        ("SETTINGS", frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100])),
        ("SETTINGS without a setting", frame(SETTINGS, 0, 0, &[])),
        ("PRIORITY", frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 7])),
        ("WINDOW_UPDATE", frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("an unknown frame", frame(0xbb, 0, 0, &[0; 100])),
    ] {
        let mut raw = Raw::open(addr, &[], None).await?;
        let sent = raw.flood(FLOOD_MAX, |_| bytes.clone()).await;
        ensure!(sent < FLOOD_MAX, "{name}: all {sent} were taken");
        // The word may be lost where the socket was closed upon unread bytes.
        let seen = raw.end().await.context(name)?;
        ensure!(seen.goaway.is_none_or(|code| code == ENHANCE_YOUR_CALM), "{name}: {seen:?}");
    }
    // Within a request that may have a body.
    let mut raw = Raw::open(addr, &[], None).await?;
    let head = block(&[
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":authority", b"shop.example"),
        (b":path", b"/slow-empty"),
    ]);
    raw.send(&frame(HEADERS, END_HEADERS, 1, &head)).await;
    let sent = raw.flood(FLOOD_MAX, |_| frame(DATA, 0, 1, &[])).await;
    ensure!(sent < FLOOD_MAX, "empty DATA: all {sent} were taken");
    raw.end().await?;
    Ok(())
}

/// CVE-2024-27316 (a head without end), and a head that is small on the wire and large behind it.
async fn header_bombs(addr: SocketAddr) -> Result<()> {
    let mut raw = Raw::open(addr, &[], None).await?;
    raw.send(&frame(HEADERS, END_STREAM, 1, &get_block("/endless"))).await;
    let piece = block(&[(b"x", &[b'y'; 16_000])]);
    let sent = raw.flood(FLOOD_MAX, |_| frame(CONTINUATION, 0, 1, &piece)).await;
    ensure!(sent < FLOOD_MAX, "CONTINUATION: all {sent} were taken");
    raw.end().await?;

    // One field of 4,000 bytes into the table, and then one byte for each time that it is said again.
    let indexed = [vec![0x40], text(b"x-bomb"), text(&[b'b'; 3_900])].concat();
    for rounds in 0..100 {
        let mut raw = Raw::open(addr, &[], Some(3)).await?;
        raw.send(&frame(
            HEADERS,
            END_STREAM | END_HEADERS,
            1,
            &[get_block(&format!("/bomb-{rounds}")), indexed.clone()].concat(),
        ))
        .await;
        let bomb = [get_block("/bomb"), vec![0x80 | 62; 12_000]].concat();
        raw.send(&frame(HEADERS, END_STREAM | END_HEADERS, 3, &bomb)).await;
        let seen = raw.end().await?;
        let body = seen.bodies.get(&3).map(|body| String::from_utf8_lossy(body).into_owned());
        ensure!(body.is_none_or(|body| !body.ends_with("/bomb")), "a head of 47 MB was accepted");
    }
    Ok(())
}

/// CVE-2019-9511 and 9517, and the HTTP/2 bomb of 2026: a hundred answers that nobody takes, one byte now and then.
async fn window_zero(addr: SocketAddr) -> Result<()> {
    const INITIAL_WINDOW_SIZE: u16 = 4;
    let began = Instant::now();
    let mut raw = Raw::open(addr, &[(INITIAL_WINDOW_SIZE, 0)], None).await?;
    for count in 0..100 {
        ensure!(raw.send(&get(count * 2 + 1, "/large")).await, "refused after {count}");
    }
    let mut bytes = 0;
    let byte = [0, 0, 0, 1];
    while !raw.reading_ended() && raw.send(&frame(WINDOW_UPDATE, 0, 1, &byte)).await {
        bytes += 1;
        ensure!(bytes < 600, "held for ten minutes");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let seen = raw.end().await?;
    say(&format!(
        "HTTP/2 window zero: closed after {:.1} s, {bytes} bytes of window",
        began.elapsed().as_secs_f64()
    ));
    ensure!(seen.bodies.values().map(Vec::len).sum::<usize>() < 1_000, "answers were sent");
    Ok(())
}

/// What RFC 9113 §8 calls malformed, and what would be another request to a server behind.
async fn malformed(addr: SocketAddr, upstream: &Upstream) -> Result<()> {
    type Fields = &'static [(&'static [u8], &'static [u8])];
    const M: (&[u8], &[u8]) = (b":method", b"GET");
    const S: (&[u8], &[u8]) = (b":scheme", b"http");
    const A: (&[u8], &[u8]) = (b":authority", b"shop.example");
    const P: (&[u8], &[u8]) = (b":path", b"/h2");
    const CASES: &[(&str, Fields)] = &[
        ("no path", &[M, S, A]),
        ("no method", &[S, A, P]),
        ("no scheme", &[M, A, P]),
        ("an empty path", &[M, S, A, (b":path", b"")]),
        ("a path without a slash", &[M, S, A, (b":path", b"h2")]),
        ("a path with a space", &[M, S, A, (b":path", b"/h2 HTTP/1.1")]),
        ("a path that breaks the line", &[M, S, A, (b":path", b"/h2\r\nX: y")]),
        ("a path with NUL", &[M, S, A, (b":path", b"/h2\0")]),
        ("two methods", &[M, M, S, A, P]),
        ("two paths", &[M, S, A, P, P]),
        ("two authorities", &[M, S, A, A, P]),
        ("a pseudo-header after a field", &[M, S, A, (b"x", b"y"), P]),
        ("an unknown pseudo-header", &[M, S, A, P, (b":x", b"y")]),
        ("a pseudo-header of answers", &[M, S, A, P, (b":status", b"200")]),
        ("an upper-case name", &[M, S, A, P, (b"X-Upper", b"y")]),
        ("an empty name", &[M, S, A, P, (b"", b"y")]),
        ("a name with a colon", &[M, S, A, P, (b"x:y", b"z")]),
        ("a name with a space", &[M, S, A, P, (b"x y", b"z")]),
        ("a name that breaks the line", &[M, S, A, P, (b"x\r\ny", b"z")]),
        ("a value that breaks the line", &[M, S, A, P, (b"x", b"y\r\nz: a")]),
        ("a value with a line feed", &[M, S, A, P, (b"x", b"y\nz: a")]),
        ("a value with NUL", &[M, S, A, P, (b"x", b"y\0")]),
        ("Connection", &[M, S, A, P, (b"connection", b"close")]),
        ("Keep-Alive", &[M, S, A, P, (b"keep-alive", b"timeout=5")]),
        ("Proxy-Connection", &[M, S, A, P, (b"proxy-connection", b"close")]),
        ("Transfer-Encoding", &[M, S, A, P, (b"transfer-encoding", b"chunked")]),
        ("Upgrade", &[M, S, A, P, (b"upgrade", b"websocket")]),
        ("TE: gzip", &[M, S, A, P, (b"te", b"gzip")]),
        ("another Host", &[M, S, A, P, (b"host", b"other.example")]),
        ("two Hosts", &[M, S, A, P, (b"host", b"shop.example"), (b"host", b"shop.example")]),
        ("user information", &[M, S, (b":authority", b"user@shop.example"), P]),
        ("an authority with a path", &[M, S, (b":authority", b"shop.example/x"), P]),
        ("a port out of range", &[M, S, (b":authority", b"shop.example:99999"), P]),
        ("an empty authority", &[M, S, (b":authority", b""), P]),
        ("no authority and no Host", &[M, S, P]),
        ("another scheme", &[M, (b":scheme", b"file"), A, P]),
        ("a method with a space", &[(b":method", b"GET /x"), S, A, P]),
        ("CONNECT", &[(b":method", b"CONNECT"), A]),
        ("CONNECT with a path", &[(b":method", b"CONNECT"), S, A, P]),
        ("extended CONNECT", &[(b":method", b"CONNECT"), (b":protocol", b"websocket"), S, A, P]),
        ("TRACE", &[(b":method", b"TRACE"), S, A, P]),
        ("a length without a body", &[M, S, A, P, (b"content-length", b"5")]),
        ("two lengths", &[M, S, A, P, (b"content-length", b"0"), (b"content-length", b"5")]),
        ("a length that is none", &[M, S, A, P, (b"content-length", b"+0")]),
    ];
    for (number, (name, fields)) in CASES.iter().enumerate() {
        let path = format!("/h2-{number}");
        let fields: Vec<_> = fields
            .iter()
            .map(|(name, value)| {
                // A path of its own shows who has been let in.
                let own = *name == b":path" && value.starts_with(b"/h2");
                (*name, if own { [path.as_bytes(), &value[3..]].concat() } else { value.to_vec() })
            })
            .collect();
        let fields: Vec<_> = fields.iter().map(|(name, value)| (*name, &value[..])).collect();
        let mut raw = Raw::open(addr, &[], Some(1)).await?;
        raw.send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &block(&fields))).await;
        let seen = raw.end().await.context(*name)?;
        let body = seen.bodies.get(&1).map(|body| String::from_utf8_lossy(body).into_owned());
        let refused = match &body {
            Some(body) => body.contains("\"code\":\""),
            None => seen.resets > 0 || seen.goaway.is_some(),
        };
        ensure!(refused, "{name}: {seen:?} {body:?}");
    }
    let reached: Vec<_> = upstream
        .asked
        .lock()
        .iter()
        .filter(|path| {
            !["/page", "/large"].contains(&path.as_str())
                && !path.starts_with("/slow")
                && !path.starts_with("/bomb-")
        })
        .cloned()
        .collect();
    ensure!(reached.is_empty(), "reached the upstream: {reached:?}");
    say(&format!("{} malformed HTTP/2 requests: none accepted", CASES.len()));
    Ok(())
}

fn p99(times: &[Duration]) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let at = (sorted.len() * 99 / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).map_or(0.0, |time| time.as_secs_f64() * 1e3)
}

/// A client that asks for one page again and again over one connection of HTTP/2, and minds every answer.
struct Neighbour {
    times: Arc<Mutex<Vec<Duration>>>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<Result<()>>,
}

impl Neighbour {
    async fn start(addr: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(addr).await?;
        let (mut send, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(async { drop(connection.await) });
        let (times, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let task = tokio::spawn({
            let (times, stop) = (times.clone(), stop.clone());
            async move {
                while !stop.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    let request = Request::get("http://shop.example/page").body(Empty::<Bytes>::new())?;
                    let answer = send.send_request(request).await.context("the neighbour's request")?;
                    ensure!(answer.status() == 200, "the neighbour was told {}", answer.status());
                    let body = answer.into_body().collect().await.context("the neighbour's answer")?;
                    ensure!(body.to_bytes() == "/page", "the neighbour got another page");
                    times.lock().push(began.elapsed());
                    // A person, and not a load: the machine is the attackers'.
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                Ok(())
            }
        });
        Ok(Self { times, stop, task })
    }

    /// The times of so many answers, and from then on the count begins anew.
    async fn after(&self, count: usize) -> Result<Vec<Duration>> {
        loop {
            ensure!(!self.task.is_finished(), "the neighbour gave up");
            if self.times.lock().len() >= count {
                return Ok(std::mem::take(&mut self.times.lock()));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn stop(self) -> Result<Vec<Duration>> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await??;
        Ok(std::mem::take(&mut self.times.lock()))
    }
}

/// The merchant's server. `/slow…` takes as long as it is let, `/large` is a megabyte, everything else is its own path.
struct Upstream {
    addr: SocketAddr,
    asked: Arc<Mutex<BTreeSet<String>>>,
    /// The most that it had to do at once.
    most: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

/// A request that is being answered, however that ends.
struct Present(Arc<AtomicUsize>);

impl Drop for Present {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Upstream {
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        let asked = Arc::new(Mutex::new(BTreeSet::new()));
        let most = Arc::new(AtomicUsize::new(0));
        let present = Arc::new(AtomicUsize::new(0));
        let task = tokio::spawn({
            let (asked, most) = (asked.clone(), most.clone());
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let (asked, most, present) = (asked.clone(), most.clone(), present.clone());
                    let answer = service_fn(move |request: Request<Incoming>| {
                        let path = request.uri().path().to_owned();
                        asked.lock().insert(path.clone());
                        most.fetch_max(present.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                        let here = Present(present.clone());
                        async move {
                            if path.starts_with("/slow") {
                                std::future::pending::<()>().await;
                            }
                            drop(here);
                            let body = if path == "/large" {
                                Bytes::from(vec![b'x'; LARGE_BYTES])
                            } else {
                                Bytes::from(path)
                            };
                            let response = Response::builder().header(header::CACHE_CONTROL, "max-age=600");
                            Ok::<_, Infallible>(response.body(Full::new(body)).expect("a valid head"))
                        }
                    });
                    let served = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), answer);
                    tokio::spawn(async { drop(served.await) });
                }
            }
        });
        Ok(Self { addr, asked, most, task })
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}
