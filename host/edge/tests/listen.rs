//! The listener as a peer meets it: patient peers are served, silent ones are shown out, and nobody waits for them.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prometheus_client::registry::Registry;
use rustls::pki_types::ServerName;
use souk_edge::http::{Body, RequestBody, full};
use souk_edge::listen::{Answer, ListenLimits, Listener, Peer, Sockets};
use souk_edge::tls::{Certificates, server_config};
use support::{certificate, client, https};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_millis(300);
/// Generous: the tests share their machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Answers with the path; `/slow` takes a while.
struct Echo;

impl Answer for Echo {
    fn answer(
        self: Arc<Self>,
        request: Request<RequestBody>,
        peer: Peer,
    ) -> BoxFuture<'static, Response<Body>> {
        Box::pin(async move {
            if request.uri().path() == "/slow" {
                tokio::time::sleep(DEADLINE).await;
            }
            Response::new(full(format!("{} tls={}", request.uri().path(), peer.tls)))
        })
    }
}

fn limits() -> ListenLimits {
    ListenLimits { header_deadline: DEADLINE, tls_handshake_deadline: DEADLINE, ..ListenLimits::default() }
}

async fn plain() -> (SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
    let shutdown = CancellationToken::new();
    let listener = Listener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("a free port");
    let addr = listener.addr();
    let serving = tokio::spawn(listener.serve(None, limits(), Arc::new(Echo), shutdown.clone()));
    (addr, shutdown, serving)
}

/// Answers with who asks.
struct Who;

impl Answer for Who {
    fn answer(self: Arc<Self>, _: Request<RequestBody>, peer: Peer) -> BoxFuture<'static, Response<Body>> {
        Box::pin(async move { Response::new(full(peer.addr.to_string())) })
    }
}

async fn exchange(addr: SocketAddr, text: &str) -> String {
    exchange_bytes(addr, text.as_bytes()).await
}

async fn exchange_bytes(addr: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(addr).await.expect("connected");
    stream.write_all(bytes).await.expect("sent");
    let mut answer = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    let _ = read.expect("the connection ends in time");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn peers_that_say_nothing_or_half_a_head_are_shown_out() {
    let (addr, _shutdown, _) = plain().await;
    assert_eq!(exchange(addr, "").await, "");
    // Half of the preface by which HTTP/2 is told from HTTP/1.1: neither of the two has begun.
    assert_eq!(exchange(addr, "PRI * HT").await, "");
    let half = exchange(addr, "GET / HTTP/1.1\r\nHost: a\r\n").await;
    assert!(half.is_empty() || half.starts_with("HTTP/1.1 408"), "{half}");
    let whole = exchange(addr, "GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(whole.starts_with("HTTP/1.1 200") && whole.ends_with("/x tls=false"), "{whole}");
}

#[tokio::test]
async fn a_head_has_the_length_and_no_body_in_both_versions() {
    let (addr, _shutdown, _) = plain().await;
    let one = exchange(addr, "HEAD /xyz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(one.contains("content-length: 14") && one.ends_with("\r\n\r\n"), "{one}");
    let stream = TcpStream::connect(addr).await.expect("connected");
    let (mut send, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("HTTP/2");
    tokio::spawn(connection);
    let request =
        Request::builder().method(Method::HEAD).uri("http://a/xyz").body(Empty::<bytes::Bytes>::new());
    let answer = send.send_request(request.expect("a request")).await.expect("an answer");
    assert_eq!(answer.headers()["content-length"], "14");
    assert!(answer.into_body().collect().await.expect("a clean end").to_bytes().is_empty());
}

#[tokio::test]
async fn running_requests_finish_when_the_node_stops() {
    let (addr, shutdown, serving) = plain().await;
    let asking = tokio::spawn(exchange(addr, "GET /slow HTTP/1.1\r\nHost: a\r\n\r\n"));
    tokio::time::sleep(DEADLINE / 3).await;
    shutdown.cancel();
    let answer = asking.await.expect("asked");
    assert!(answer.ends_with("/slow tls=false"), "{answer}");
    tokio::time::timeout(PATIENCE, serving).await.expect("it stops in time").expect("without a panic");
    assert!(TcpStream::connect(addr).await.is_err(), "nobody listens any more");
}

/// Answers the first request when it may, and all others at once.
#[derive(Default)]
struct Slow {
    has_one: AtomicBool,
    asked: Notify,
    go: Notify,
}

impl Answer for Slow {
    fn answer(self: Arc<Self>, _: Request<RequestBody>, _: Peer) -> BoxFuture<'static, Response<Body>> {
        Box::pin(async move {
            if !self.has_one.swap(true, Ordering::SeqCst) {
                self.asked.notify_one();
                self.go.notified().await;
            }
            Response::new(full("done"))
        })
    }
}

#[tokio::test]
async fn who_waits_for_a_place_when_the_node_stops_is_served_yet() {
    let limits = ListenLimits { connections_max: 1, ..ListenLimits::default() };
    let (gate, slow, shutdown) = (limits.gate(), Arc::new(Slow::default()), CancellationToken::new());
    let mut registry = Registry::default();
    gate.register(&mut registry);
    let counted = |line: &str| {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("a page");
        text.contains(line)
    };
    let listener = Listener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("a free port");
    let addr = listener.addr();
    let listener = listener.through(gate);
    let serving = tokio::spawn(listener.serve(None, limits, slow.clone(), shutdown.clone()));
    let request = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let first = tokio::spawn(exchange(addr, request));
    slow.asked.notified().await;
    // One that is accepted and has no place, and one in the kernel's queue.
    let second = tokio::spawn(exchange(addr, request));
    let accepted = async {
        while !counted("souk_gate_connections 2") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, accepted).await.expect("accepted");
    let third = tokio::spawn(exchange(addr, request));
    tokio::time::sleep(DEADLINE / 3).await;
    shutdown.cancel();
    tokio::time::sleep(DEADLINE / 3).await;
    slow.go.notify_one();
    for (who, exchange) in [("first", first), ("second", second), ("third", third)] {
        let answer = exchange.await.expect("asked");
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("done"), "the {who}: {answer:?}");
    }
    tokio::time::timeout(PATIENCE, serving).await.expect("it stops in time").expect("without a panic");
}

#[tokio::test]
async fn a_stalled_handshake_keeps_nobody_waiting() {
    let dir = tempfile::tempdir().expect("a directory");
    let (files, root) = certificate(dir.path(), "shop", &["localhost"]);
    let certificates = Certificates::load(&https(Some(files), Vec::new())).expect("a pair");
    let tls = server_config(certificates).expect("a configuration");
    let listener = Listener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("a free port");
    let addr = listener.addr();
    tokio::spawn(listener.serve(Some(tls), limits(), Arc::new(Echo), CancellationToken::new()));
    let started = Instant::now();
    let mut stalled = TcpStream::connect(addr).await.expect("connected");

    let client = client(&[root], rustls::ALL_VERSIONS, &["h2"]);
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    let stream = TcpStream::connect(addr).await.expect("connected");
    let name = ServerName::try_from("localhost").expect("a name");
    let stream = connector.connect(name, stream).await.expect("a handshake");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut send, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("HTTP/2");
    tokio::spawn(connection);
    let request = Request::builder().uri("https://localhost/x").body(Empty::<bytes::Bytes>::new());
    let answer = send.send_request(request.expect("a request")).await.expect("an answer");
    assert_eq!(answer.into_body().collect().await.expect("a body").to_bytes(), "/x tls=true");

    let mut rest = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, stalled.read_to_end(&mut rest)).await;
    assert!(ended.is_ok() && started.elapsed() >= DEADLINE, "shown out, and not before its time");
}

#[tokio::test]
async fn behind_a_balancer_the_client_is_who_its_header_says() {
    let trusted: Arc<[ipnet::IpNet]> = Arc::from(["127.0.0.0/8".parse().expect("a network")]);
    let stranger: Arc<[ipnet::IpNet]> = Arc::from(["192.0.2.0/24".parse().expect("a network")]);
    let mut doors = Vec::new();
    for proxies in [trusted, stranger] {
        let listener = Listener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("a free port");
        doors.push(listener.addr());
        let listener = listener.behind(proxies);
        tokio::spawn(listener.serve(None, limits(), Arc::new(Who), CancellationToken::new()));
    }
    let client: SocketAddr = "192.0.2.1:5000".parse().expect("an address");
    let request = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let mut bytes = ppp::v2::Builder::with_addresses(
        ppp::v2::Version::Two | ppp::v2::Command::Proxy,
        ppp::v2::Protocol::Stream,
        (client, doors[0]),
    )
    .build()
    .expect("a header");
    bytes.extend_from_slice(request.as_bytes());
    let answer = exchange_bytes(doors[0], &bytes).await;
    assert!(answer.ends_with("192.0.2.1:5000"), "{answer}");
    assert_eq!(exchange(doors[0], request).await, "", "without a header");
    assert_eq!(
        exchange_bytes(doors[0], &bytes[..10]).await,
        "",
        "half a header is waited for, and no longer"
    );
    assert_eq!(exchange_bytes(doors[1], &bytes).await, "", "from a stranger");
}

#[tokio::test]
async fn a_new_process_takes_over_while_the_old_one_drains() {
    let how = Sockets { shared: true, workers: 2 };
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let old = Listener::open(any, how).expect("a free port");
    let addr = old.addr();
    let shutdown = CancellationToken::new();
    let serving = tokio::spawn(old.serve(None, limits(), Arc::new(Echo), shutdown.clone()));
    let mut kept = TcpStream::connect(addr).await.expect("connected");
    kept.write_all(b"GET /first HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("sent");
    let mut answer = vec![0; 1024];
    let read = kept.read(&mut answer).await.expect("an answer");
    assert!(answer[..read].ends_with(b"/first tls=false"));

    let new = Listener::open(addr, how).expect("shared");
    tokio::spawn(new.serve(None, limits(), Arc::new(Echo), CancellationToken::new()));
    shutdown.cancel();
    // An idle connection is not closed under a request that is on its way.
    kept.write_all(b"GET /last HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("sent");
    let mut rest = String::new();
    let ended = tokio::time::timeout(PATIENCE, kept.read_to_string(&mut rest)).await;
    ended.expect("it ends in time").expect("in order");
    assert!(rest.contains("connection: close") && rest.ends_with("/last tls=false"), "{rest}");
    tokio::time::timeout(PATIENCE, serving).await.expect("it stops in time").expect("without a panic");
    for _ in 0..20 {
        let answer = exchange(addr, "GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        assert!(answer.ends_with("/x tls=false"), "{answer}");
    }
    assert!(Listener::bind(addr).await.is_err(), "whoever does not share is told so");
}
