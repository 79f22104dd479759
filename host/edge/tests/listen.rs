//! The listener as a peer meets it: patient peers are served, silent ones are shown out, and nobody waits for them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use souk_edge::http::{Body, full};
use souk_edge::listen::{Answer, ListenLimits, Listener, Peer};
use souk_edge::tls::{Certificate, TlsError, server_config};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_millis(300);
/// Generous: the tests share their machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Answers with the path; `/slow` takes a while.
struct Echo;

impl Answer for Echo {
    fn answer(self: Arc<Self>, request: Request<Incoming>, peer: Peer) -> BoxFuture<'static, Response<Body>> {
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

async fn exchange(addr: SocketAddr, text: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.expect("connected");
    stream.write_all(text.as_bytes()).await.expect("sent");
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

#[tokio::test]
async fn a_stalled_handshake_keeps_nobody_waiting() {
    let dir = tempfile::tempdir().expect("a directory");
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).expect("written");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("written");
    let another = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let wrong = dir.path().join("wrong.pem");
    std::fs::write(&wrong, another.signing_key.serialize_pem()).expect("written");
    assert!(matches!(Certificate::load(&cert, &wrong), Err(TlsError::Mismatch { .. })));
    assert!(matches!(Certificate::load(&key, &key), Err(TlsError::Certificate { .. })));
    assert!(matches!(Certificate::load(&cert, &cert), Err(TlsError::Key { .. })));

    let tls = server_config(Certificate::load(&cert, &key).expect("a pair")).expect("a configuration");
    let listener = Listener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("a free port");
    let addr = listener.addr();
    tokio::spawn(listener.serve(Some(tls), limits(), Arc::new(Echo), CancellationToken::new()));
    let started = Instant::now();
    let mut stalled = TcpStream::connect(addr).await.expect("connected");

    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).expect("a root");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = vec![b"h2".to_vec()];
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
