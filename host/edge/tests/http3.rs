//! HTTP/3 as a client meets it: the same answers as over TCP, bodies that stream both ways and break off where they must, and
//! an end to whoever abuses it.

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
