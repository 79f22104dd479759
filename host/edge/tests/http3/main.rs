//! HTTP/3 as a client meets it: the same answers as over TCP, bodies that stream both ways and break off where they must, and
//! an end to whoever abuses it.

mod hostile;
#[path = "../support/mod.rs"]
mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use h3::client::SendRequest;
use h3::error::Code;
use http::header::LINK;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use prometheus_client::registry::Registry;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ConnectionError, Endpoint, ReadError, ReadToEndError, VarInt};
use rustls::pki_types::CertificateDer;
use souk_edge::admission::admit;
use souk_edge::http::{Body, BodyError, RequestBody, full};
use souk_edge::http3::{Http3Listener, Http3Metrics};
use souk_edge::interim::Interims;
use souk_edge::listen::{Answer, ListenLimits, Listener, Peer};
use souk_edge::tls::{Certificates, quic_config, server_config};
use support::{certificate, client, https, local, soon};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

type H3 = SendRequest<h3_quinn::OpenStreams, Bytes>;

const PIECE: usize = 64 * 1024;

/// What the tests ask of the server.
#[derive(Default)]
struct Shop {
    /// Pieces of the long body that were made.
    made: AtomicUsize,
    /// Handlers of `/wait` that have begun, and those that were dropped.
    waiting: Notify,
    dropped: Arc<Notify>,
    /// Lets `/wait` answer.
    go: Notify,
}

struct Dropped(Arc<Notify>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl Answer for Shop {
    fn answer(
        self: Arc<Self>,
        request: Request<RequestBody>,
        peer: Peer,
    ) -> BoxFuture<'static, Response<Body>> {
        Box::pin(async move { self.page(request, peer).await })
    }

    fn passes_interims(&self) -> bool {
        true
    }
}

impl Shop {
    async fn page(self: Arc<Self>, request: Request<RequestBody>, peer: Peer) -> Response<Body> {
        assert!(peer.tls && peer.addr.ip().is_loopback());
        let (head, body) = request.into_parts();
        let host = match admit(&head) {
            Ok(host) => host,
            Err(problem) => return problem.into_response(),
        };
        match head.uri.path() {
            "/host" => Response::new(full(host)),
            "/cookies" => {
                let lines: Vec<_> = head.headers.get_all("cookie").iter().collect();
                Response::new(full(format!("{lines:?}")))
            }
            "/empty" => Response::new(full(http_body::Body::is_end_stream(&body).to_string())),
            // Back as it comes, trailers too.
            "/echo" => Response::new(body.boxed_unsync()),
            "/read" => match body.collect().await {
                Ok(read) => Response::new(full(read.to_bytes().len().to_string())),
                Err(error) => {
                    let mut response = Response::new(full(error.to_string()));
                    *response.status_mut() = StatusCode::BAD_REQUEST;
                    response
                }
            },
            "/long" => Response::new(self.long()),
            "/breaks" => Response::new(broken(None)),
            "/lies" => {
                let mut response = Response::new(broken(Some("short")));
                response.headers_mut().insert("content-length", HeaderValue::from_static("100"));
                response
            }
            // Two hints, then the answer when it may.
            "/hints" => {
                let interims = head.extensions.get::<Interims>().expect("HTTP/3 has a way for them");
                for link in ["</a.css>", "</b.js>"] {
                    let link = HeaderMap::from_iter([(LINK, HeaderValue::from_static(link))]);
                    assert!(interims.send(StatusCode::EARLY_HINTS, &link));
                }
                self.go.notified().await;
                Response::new(full("hinted"))
            }
            "/panics" => panic!("as asked"),
            "/wait" => {
                let _dropped = Dropped(Arc::clone(&self.dropped));
                self.waiting.notify_one();
                self.go.notified().await;
                Response::new(full("done"))
            }
            path => {
                let mut response = Response::new(full(format!("{path} {:?}", head.version)));
                response.headers_mut().insert("connection", HeaderValue::from_static("close"));
                response
            }
        }
    }

    /// 16 MiB, made as they are taken.
    fn long(self: Arc<Self>) -> Body {
        let pieces = futures_util::stream::iter(0..256).map(move |_| {
            self.made.fetch_add(1, Ordering::SeqCst);
            Ok::<_, BodyError>(Frame::data(Bytes::from(vec![b'x'; PIECE])))
        });
        StreamBody::new(pieces).boxed_unsync()
    }
}

/// A body that ends after `text`, or fails after a piece.
fn broken(text: Option<&'static str>) -> Body {
    let pieces = match text {
        Some(text) => vec![Ok(Frame::data(Bytes::from_static(text.as_bytes())))],
        None => vec![Ok(Frame::data(Bytes::from_static(b"half"))), Err(BodyError::from("it broke"))],
    };
    StreamBody::new(futures_util::stream::iter(pieces)).boxed_unsync()
}

struct World {
    addr: SocketAddr,
    root: CertificateDer<'static>,
    shop: Arc<Shop>,
    shutdown: CancellationToken,
    serving: [JoinHandle<()>; 2],
    metrics: Registry,
    _dir: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        Self::with(ListenLimits::default()).await
    }

    async fn with(limits: ListenLimits) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (files, root) = certificate(dir.path(), "shop", &["localhost"]);
        let certificates = Certificates::load(&https(Some(files), Vec::new())).expect("a pair");
        let mut metrics = Registry::default();
        let counted = Http3Metrics::register(&mut metrics);
        let listener = Listener::bind(local()).await.expect("a free port");
        let addr = listener.addr();
        let quic = quic_config(Arc::clone(&certificates)).expect("a configuration");
        let http3 = Http3Listener::bind(addr, false, quic, counted).expect("a free port");
        let tls = server_config(certificates).expect("a configuration");
        let (shop, shutdown) = (Arc::new(Shop::default()), CancellationToken::new());
        let listener = listener.announcing(http3.alt_svc());
        let serving = [
            tokio::spawn(listener.serve(Some(tls), limits.clone(), shop.clone(), shutdown.clone())),
            tokio::spawn(http3.serve(limits, shop.clone(), shutdown.clone())),
        ];
        Self { addr, root, shop, shutdown, serving, metrics, _dir: dir }
    }

    fn quic(&self) -> Endpoint {
        let tls = client(std::slice::from_ref(&self.root), &[&rustls::version::TLS13], &["h3"]);
        let tls = QuicClientConfig::try_from(tls).expect("a configuration");
        let mut endpoint = Endpoint::client(local()).expect("a socket");
        endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(tls)));
        endpoint
    }

    async fn connection(&self) -> quinn::Connection {
        let connecting = self.quic().connect(self.addr, "localhost").expect("a connection");
        soon(connecting).await.expect("a handshake")
    }

    async fn h3(&self) -> H3 {
        let connection = self.connection().await;
        let (mut driver, send) =
            h3::client::new(h3_quinn::Connection::new(connection)).await.expect("HTTP/3");
        tokio::spawn(async move { driver.wait_idle().await });
        send
    }

    fn request(&self, method: Method, path: &str) -> Request<()> {
        let uri = format!("https://localhost:{}{path}", self.addr.port());
        Request::builder().method(method).uri(uri).body(()).expect("a request")
    }

    fn counted(&self, line: &str) -> bool {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.metrics).expect("a page");
        text.contains(line)
    }
}

struct Seen {
    status: StatusCode,
    headers: HeaderMap,
    /// None if the body broke off.
    body: Option<String>,
    trailers: Option<HeaderMap>,
}

/// Sends a request with a body of these pieces, and reads the answer to its end.
async fn ask(h3: &mut H3, request: Request<()>, pieces: &[&[u8]], trailers: Option<HeaderMap>) -> Seen {
    let asked = async {
        let mut stream = h3.send_request(request).await.expect("sent");
        for piece in pieces {
            // Whoever has answered may not want the rest.
            let _ = stream.send_data(Bytes::copy_from_slice(piece)).await;
        }
        if let Some(trailers) = trailers {
            stream.send_trailers(trailers).await.expect("sent");
        }
        let _ = stream.finish().await;
        let (head, ()) = stream.recv_response().await.expect("an answer").into_parts();
        let mut body = Vec::new();
        let whole = loop {
            match stream.recv_data().await {
                Ok(Some(mut data)) => body.extend_from_slice(&data.copy_to_bytes(data.remaining())),
                Ok(None) => break true,
                Err(_) => break false,
            }
        };
        let body = whole.then(|| String::from_utf8_lossy(&body).into_owned());
        let trailers = if whole { stream.recv_trailers().await.expect("a clean end") } else { None };
        Seen { status: head.status, headers: head.headers, body, trailers }
    };
    soon(asked).await
}

async fn get(world: &World, h3: &mut H3, path: &str) -> Seen {
    ask(h3, world.request(Method::GET, path), &[], None).await
}

#[tokio::test]
async fn the_same_answers_over_every_version_and_tcp_names_the_other_way() {
    let world = World::new().await;
    let tls = client(std::slice::from_ref(&world.root), rustls::ALL_VERSIONS, &["http/1.1"]);
    let stream = tokio::net::TcpStream::connect(world.addr).await.expect("connected");
    let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
    let stream = connector.connect("localhost".try_into().expect("a name"), stream).await.expect("TLS");
    let (mut send, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await.expect("HTTP/1.1");
    tokio::spawn(connection);
    let request = Request::get("/x").header("host", "localhost").body(http_body_util::Empty::<Bytes>::new());
    let answer = soon(send.send_request(request.expect("a request"))).await.expect("an answer");
    let expected = format!("h3=\":{}\"; ma=86400", world.addr.port());
    assert_eq!(answer.headers()["alt-svc"], expected);

    let mut h3 = world.h3().await;
    let seen = get(&world, &mut h3, "/x").await;
    assert_eq!((seen.status, seen.body.as_deref()), (StatusCode::OK, Some("/x HTTP/3.0")));
    assert_eq!(seen.headers["content-length"], "11");
    assert!(
        seen.headers.contains_key("date") && !seen.headers.contains_key("connection"),
        "{:?}",
        seen.headers
    );
    assert!(world.counted("souk_http3_requests_total 1") && world.counted("souk_http3_connections_open 1"));

    let head = ask(&mut h3, world.request(Method::HEAD, "/x"), &[], None).await;
    assert_eq!((head.body.as_deref(), &head.headers["content-length"]), (Some(""), &HeaderValue::from(11)));
}

/// What is asked of every version: methods that are refused with nothing done, and one that nobody knows and passes.
const METHODS: [(&str, u16); 7] =
    [("TRACE", 405), ("TRACK", 405), ("get", 405), ("Post", 405), ("PRI", 405), ("PURGE", 200), ("GET", 200)];

#[tokio::test]
async fn the_same_methods_are_refused_over_every_version() {
    let world = World::new().await;
    let method = |name: &str| Method::from_bytes(name.as_bytes()).expect("a token");
    for version in ["http/1.1", "h2"] {
        let tls = client(std::slice::from_ref(&world.root), rustls::ALL_VERSIONS, &[version]);
        let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
        let io = async || {
            let stream = tokio::net::TcpStream::connect(world.addr).await.expect("connected");
            let name = "localhost".try_into().expect("a name");
            hyper_util::rt::TokioIo::new(connector.connect(name, stream).await.expect("TLS"))
        };
        for (name, status) in METHODS {
            let request = world.request(method(name), "/x").map(|()| http_body_util::Empty::<Bytes>::new());
            let answer = if version == "h2" {
                let executor = hyper_util::rt::TokioExecutor::new();
                let (mut send, connection) =
                    hyper::client::conn::http2::handshake(executor, io().await).await.expect("HTTP/2");
                tokio::spawn(connection);
                soon(send.send_request(request)).await
            } else {
                let (mut send, connection) =
                    hyper::client::conn::http1::handshake(io().await).await.expect("HTTP/1.1");
                tokio::spawn(connection);
                let mut request = request;
                request.headers_mut().insert("host", HeaderValue::from_static("localhost"));
                *request.uri_mut() = "/x".parse().expect("a path");
                soon(send.send_request(request)).await
            };
            match answer {
                Ok(answer) => assert_eq!(answer.status(), status, "{version} {name}"),
                // What cannot be the beginning of a request here ends its connection.
                Err(error) => assert_eq!((status, name), (405, "PRI"), "{version} {name}: {error}"),
            }
        }
        if version == "http/1.1" {
            let mut stream = io().await.into_inner();
            let tunnel = b"CONNECT localhost:443 HTTP/1.1\r\nhost: localhost:443\r\n\r\n";
            let mut answer = [0; 12];
            let asked = async {
                stream.write_all(tunnel).await?;
                stream.read_exact(&mut answer).await
            };
            soon(asked).await.expect("an answer");
            assert_eq!(&answer, b"HTTP/1.1 405");
        } else {
            let (mut send, connection) =
                h2::client::handshake(io().await.into_inner()).await.expect("HTTP/2");
            tokio::spawn(connection);
            let tunnel = Request::connect("localhost:443").body(()).expect("a request");
            let (answer, _) = send.send_request(tunnel, true).expect("sent");
            assert_eq!(soon(answer).await.expect("an answer").status(), 405);
        }
    }
    let mut h3 = world.h3().await;
    for (name, status) in METHODS.into_iter().chain([("CONNECT", 405)]) {
        let seen = ask(&mut h3, world.request(method(name), "/x"), &[], None).await;
        assert_eq!(seen.status, status, "HTTP/3 {name}");
        if status == 405 {
            assert!(seen.headers["allow"].to_str().expect("text").starts_with("GET, "));
        }
    }
}

#[tokio::test]
async fn bodies_and_trailers_go_both_ways() {
    let world = World::new().await;
    let mut h3 = world.h3().await;
    let trailers =
        HeaderMap::from_iter([(http::HeaderName::from_static("x-sum"), HeaderValue::from_static("7"))]);
    let pieces: Vec<Vec<u8>> = (0..40).map(|i| vec![b'a' + i % 26; 10_000]).collect();
    let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
    let seen = ask(&mut h3, world.request(Method::POST, "/echo"), &pieces, Some(trailers.clone())).await;
    assert_eq!(seen.body.expect("whole").into_bytes(), pieces.concat());
    assert_eq!(seen.trailers, Some(trailers));
}

#[tokio::test]
async fn a_request_that_ends_with_its_head_has_no_body() {
    let world = World::new().await;
    let mut h3 = world.h3().await;
    // The end may come in a packet after the head's; so it is asked until both come together.
    let asked = async {
        loop {
            let seen = get(&world, &mut h3, "/empty").await;
            if seen.body.as_deref() == Some("true") {
                return;
            }
        }
    };
    soon(asked).await;
}

#[tokio::test]
async fn a_reader_that_pauses_stops_the_body_and_not_its_neighbours() {
    let world = World::new().await;
    let mut h3 = world.h3().await;
    let mut stream = soon(h3.send_request(world.request(Method::GET, "/long"))).await.expect("sent");
    soon(stream.finish()).await.expect("sent");
    soon(stream.recv_response()).await.expect("an answer");
    // Until no piece is made any more; the windows of both sides are full then.
    let mut made = usize::MAX;
    let standing = async {
        while made != world.shop.made.load(Ordering::SeqCst) {
            made = world.shop.made.load(Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    soon(standing).await;
    assert!(made < 128, "{made} of 256 pieces were made for somebody who reads none");
    let mut read = 0;
    let all = async {
        while let Some(data) = stream.recv_data().await.expect("a whole body") {
            read += data.remaining();
        }
    };
    soon(all).await;
    assert_eq!(read, 256 * PIECE);
}

#[tokio::test]
async fn half_an_answer_never_looks_whole() {
    let world = World::new().await;
    let mut h3 = world.h3().await;
    for path in ["/breaks", "/lies", "/panics"] {
        let asked = async {
            let mut stream = h3.send_request(world.request(Method::GET, path)).await.expect("sent");
            stream.finish().await.expect("sent");
            // A reset overtakes what was sent before it, so that even the head may be missing.
            let Ok(head) = stream.recv_response().await else { return };
            assert_eq!(head.status(), StatusCode::OK);
            loop {
                match stream.recv_data().await {
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("{path} looks whole"),
                    Err(_) => return,
                }
            }
        };
        soon(asked).await;
    }
    assert_eq!(get(&world, &mut h3, "/x").await.status, StatusCode::OK, "and the others go on");
}

#[tokio::test]
async fn a_body_is_as_long_as_it_says() {
    let world = World::new().await;
    let mut h3 = world.h3().await;
    for (said, sent, status) in
        [("5", "short", 200), ("6", "short", 400), ("4", "short", 400), ("5", "", 400)]
    {
        let mut request = world.request(Method::POST, "/read");
        request.headers_mut().insert("content-length", HeaderValue::from_static(said));
        let seen = ask(&mut h3, request, &[sent.as_bytes()], None).await;
        assert_eq!(seen.status, status, "{said} {sent:?}: {:?}", seen.body);
    }
}

#[tokio::test]
async fn admission_is_the_same() {
    let world = World::new().await;
    let mut h3 = world.h3().await;
    assert_eq!(get(&world, &mut h3, "/host").await.body.as_deref(), Some("localhost"));
    for (name, value) in [
        ("connection", "close"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "h2c"),
        ("keep-alive", "timeout=5"),
        ("te", "gzip"),
        ("content-length", "+5"),
    ] {
        let mut request = world.request(Method::GET, "/x");
        request.headers_mut().insert(name, HeaderValue::from_static(value));
        assert_eq!(ask(&mut h3, request, &[], None).await.status, StatusCode::BAD_REQUEST, "{name}");
    }
    let mut many = world.request(Method::GET, "/x");
    for number in 0..101 {
        let name: http::HeaderName = format!("x-{number}").parse().expect("a name");
        many.headers_mut().insert(name, HeaderValue::from_static("y"));
    }
    let seen = ask(&mut h3, many, &[], None).await;
    assert_eq!(seen.status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);

    let mut cookies = world.request(Method::GET, "/cookies");
    cookies.headers_mut().append("cookie", HeaderValue::from_static("a=1"));
    cookies.headers_mut().append("cookie", HeaderValue::from_static("b=2"));
    let seen = ask(&mut h3, cookies, &[], None).await;
    assert_eq!(seen.body.as_deref(), Some("[\"a=1; b=2\"]"));
}

#[tokio::test]
async fn a_client_that_goes_away_ends_its_handler() {
    let world = World::new().await;
    let mut h3 = world.h3().await;
    let mut stream = soon(h3.send_request(world.request(Method::GET, "/wait"))).await.expect("sent");
    soon(stream.finish()).await.expect("sent");
    soon(world.shop.waiting.notified()).await;
    stream.stop_sending(Code::H3_REQUEST_CANCELLED);
    soon(world.shop.dropped.notified()).await;

    let mut other = world.h3().await;
    let mut stream = soon(other.send_request(world.request(Method::GET, "/wait"))).await.expect("sent");
    soon(stream.finish()).await.expect("sent");
    soon(world.shop.waiting.notified()).await;
    drop((stream, other));
    soon(world.shop.dropped.notified()).await;
}
