//! A name server that lies, sixty ways to spell a machine's own address, and a peer that misbehaves.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::{Empty, Full};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// What the world says: addresses by name, one list per question. Every connection goes to one local listener, whatever
/// its address, and is written down.
#[derive(Default)]
struct World {
    answers: Mutex<HashMap<String, Vec<Vec<IpAddr>>>>,
    asked: AtomicUsize,
    connected: Mutex<Vec<SocketAddr>>,
    listener: Option<SocketAddr>,
    own: Vec<IpAddr>,
    /// Its name server never answers.
    silent: bool,
}

impl Network for Arc<World> {
    fn resolve<'a>(&'a self, name: &'a str, place: LookupPlace) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let mut answers = self.answers.lock().unwrap();
        let left = answers.get_mut(name).filter(|left| !left.is_empty()).map(|left| left.remove(0));
        let silent = self.silent;
        Box::pin(async move {
            let _place = place;
            if silent {
                std::future::pending::<()>().await;
            }
            left.ok_or_else(|| io::ErrorKind::NotFound.into())
        })
    }

    fn connect(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<TcpStream>> {
        self.connected.lock().unwrap().push(address);
        let listener = self.listener;
        Box::pin(async move { TcpStream::connect(listener.ok_or(io::ErrorKind::ConnectionRefused)?).await })
    }

    fn own(&self) -> Vec<IpAddr> {
        self.own.clone()
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn limits() -> OutboundLimits {
    OutboundLimits {
        connect_max: Duration::from_millis(500),
        first_byte_max: Duration::from_millis(500),
        between_bytes_max: Duration::from_millis(300),
        upload_bytes_max: 1 << 20,
        download_bytes_max: 100_000,
        ..OutboundLimits::default()
    }
}

fn outbound(world: &Arc<World>, roots: RootCertStore) -> Outbound {
    Outbound::with(Box::new(Arc::clone(world)), roots, limits(), Reach::Public, [], HttpMetrics::default())
        .unwrap()
}

fn grants(hosts: &[&str]) -> Arc<[Grant]> {
    hosts.iter().map(|host| host.parse().unwrap()).collect()
}

fn get(uri: &str) -> Request<WasiBody> {
    Request::get(uri).body(Empty::new().map_err(|never| match never {}).boxed_unsync()).unwrap()
}

async fn send(
    world: &Arc<World>,
    hosts: &[&str],
    request: Request<WasiBody>,
) -> Result<Response<WasiBody>, WasiHttpError> {
    outbound(world, RootCertStore::empty()).send(grants(hosts), 0, request, RequestOptions::default()).await
}

/// A server for one connection: reads a head, answers with the text. The head comes back by the handle.
async fn server(answer: Vec<u8>, then_close: bool) -> (SocketAddr, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let served = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.windows(4).any(|end| end == b"\r\n\r\n") {
            if stream.read_buf(&mut head).await.unwrap() == 0 {
                break;
            }
        }
        let _ = stream.write_all(&answer).await;
        if !then_close {
            // Until the peer goes away.
            let _ = stream.read(&mut [0; 16]).await;
        }
        String::from_utf8(head).unwrap()
    });
    (address, served)
}

/// Ways to write loopback, the metadata service, or a place inside: as they stand in a URL.
const SPELLINGS: [&str; 64] = [
    "127.0.0.1",
    "127.0.0.1:80",
    "127.1",
    "127.0.1",
    "127.000.000.001",
    "0127.0.0.1",
    "0177.0.0.1",
    "0177.0.0.01",
    "0x7f.0.0.1",
    "0x7f.1",
    "0x7f000001",
    "0x7F000001",
    "2130706433",
    "017700000001",
    "00000000177.0.0.1",
    "0",
    "0.0.0.0",
    "0.0",
    "127.255.255.254",
    "localhost",
    "LOCALHOST",
    "localhost.",
    "localhost.localdomain",
    "127.0.0.1.",
    "169.254.169.254",
    "169.254.43518",
    "2852039166",
    "0xa9fea9fe",
    "0xa9.0xfe.0xa9.0xfe",
    "0251.0376.0251.0376",
    "metadata.google.internal",
    "metadata",
    "100.100.100.200",
    "192.168.0.1",
    "10.0.0.1",
    "172.16.0.1",
    "[::1]",
    "[::]",
    "[0:0:0:0:0:0:0:1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::127.0.0.1]",
    "[::ffff:169.254.169.254]",
    "[64:ff9b::7f00:1]",
    "[64:ff9b::169.254.169.254]",
    "[2002:7f00:1::]",
    "[2001:0:7f00:1::]",
    "[fd00:ec2::254]",
    "[fe80::1]",
    "[fe80::1%25eth0]",
    "[fc00::1]",
    "[ff02::1]",
    "[::1]:8080",
    "user@127.0.0.1",
    "api.example.com@127.0.0.1",
    "127.0.0.1#api.example.com",
    "127.0.0.1?api.example.com",
    "127.0.0.1/api.example.com",
    "127.0.0.1.nip.example",
    "api.example.com:80@127.0.0.1",
    "xn--127-0-0-1.example",
    "%31%32%37.0.0.1",
    "１２７.０.０.１",
    "127。0。0。1",
];

/// What a resolver that reads every old spelling says of them.
fn lenient_answer(name: &str) -> Vec<IpAddr> {
    let address =
        if name.contains("metadata") || name.starts_with("169") { "169.254.169.254" } else { "127.0.0.1" };
    vec![ip(address)]
}

#[tokio::test]
async fn no_spelling_of_an_inner_address_is_reached_even_if_it_was_granted() {
    for spelling in SPELLINGS {
        for scheme in ["http", "https"] {
            let uri = format!("{scheme}://{spelling}/latest/meta-data");
            let Ok(parsed) = uri.parse::<Uri>() else { continue };
            let world = Arc::new(World::default());
            let host =
                parsed.authority().map(|authority| authority.host().to_ascii_lowercase()).unwrap_or_default();
            world.answers.lock().unwrap().insert(host.clone(), vec![lenient_answer(&host)]);

            // Granted in the same words, if such a grant can be made at all …
            let text = format!("{scheme}://{}", parsed.authority().unwrap());
            let granted: Arc<[Grant]> = text.parse::<Grant>().into_iter().collect();
            let was_granted = !granted.is_empty();
            let out = outbound(&world, RootCertStore::empty());
            let refused = out.send(granted, 0, get(&uri), RequestOptions::default()).await.unwrap_err();
            let expected = match refused {
                WasiHttpError::DestinationIpProhibited => was_granted,
                WasiHttpError::HttpRequestDenied => !was_granted,
                _ => false,
            };
            assert!(expected, "{uri}: {refused:?}, granted: {was_granted}");
            // … and when another host is.
            let refused =
                send(&world, &["api.example.com", "http://api.example.com"], get(&uri)).await.unwrap_err();
            assert!(matches!(refused, WasiHttpError::HttpRequestDenied), "{uri}: {refused:?}");
            assert!(world.connected.lock().unwrap().is_empty(), "{uri} was connected to");
        }
    }
}

#[tokio::test]
async fn a_name_is_resolved_once_and_the_connection_goes_to_what_was_checked() {
    let (listener, served) = server(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_vec(), true).await;
    let mut world = World { listener: Some(listener), ..World::default() };
    // Public when it is checked, loopback for whoever asks again.
    let flips = vec![vec![ip("1.1.1.1")], vec![ip("127.0.0.1")], vec![ip("127.0.0.1")]];
    world.answers.get_mut().unwrap().insert("api.example.com".into(), flips);
    let world = Arc::new(world);
    let answer = send(&world, &["http://api.example.com"], get("http://api.example.com/a?b")).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "ok");
    assert_eq!(world.asked.load(Ordering::SeqCst), 1);
    assert_eq!(*world.connected.lock().unwrap(), ["1.1.1.1:80".parse().unwrap()]);
    let head = served.await.unwrap();
    assert!(head.starts_with("GET /a?b HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("\r\nhost: api.example.com\r\n"), "{head}");
    // The next request asks again, and gets the lie.
    let refused =
        send(&world, &["http://api.example.com"], get("http://api.example.com/")).await.unwrap_err();
    assert!(matches!(refused, WasiHttpError::DestinationIpProhibited), "{refused:?}");
    assert_eq!(world.connected.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn one_bad_address_among_good_ones_is_enough() {
    let answers = [
        vec!["1.1.1.1", "10.0.0.1"],
        vec!["10.0.0.1", "1.1.1.1"],
        vec!["2606:4700::1111", "::1"],
        // This machine's own, though public.
        vec!["1.1.1.1", "9.9.9.9"],
    ];
    for answer in answers {
        let mut world = World { own: vec![ip("9.9.9.9")], ..World::default() };
        let list = answer.iter().map(|address| ip(address)).collect();
        world.answers.get_mut().unwrap().insert("api.example.com".into(), vec![list]);
        let world = Arc::new(world);
        let refused = send(&world, &["api.example.com"], get("https://api.example.com/")).await.unwrap_err();
        assert!(matches!(refused, WasiHttpError::DestinationIpProhibited), "{answer:?}: {refused:?}");
        assert!(world.connected.lock().unwrap().is_empty());
    }
}

/// What an operator names because the machine cannot know it: the address on the other side of a translation.
#[tokio::test]
async fn addresses_that_the_platform_was_told_of_are_its_own_in_every_spelling() {
    for answer in ["9.9.9.9", "::ffff:9.9.9.9"] {
        let mut world = World::default();
        world.answers.get_mut().unwrap().insert("api.example.com".into(), vec![vec![ip(answer)]]);
        let world = Arc::new(world);
        let network = Box::new(Arc::clone(&world));
        let outbound = Outbound::with(
            network,
            RootCertStore::empty(),
            limits(),
            Reach::Public,
            [ip("9.9.9.9")],
            HttpMetrics::default(),
        );
        let request = get("https://api.example.com/");
        let sent =
            outbound.unwrap().send(grants(&["api.example.com"]), 0, request, RequestOptions::default()).await;
        let refused = sent.unwrap_err();
        assert!(matches!(refused, WasiHttpError::DestinationIpProhibited), "{answer}: {refused:?}");
        assert!(world.connected.lock().unwrap().is_empty());
    }
}

fn world_of(listener: SocketAddr) -> Arc<World> {
    let mut world = World { listener: Some(listener), ..World::default() };
    world.answers.get_mut().unwrap().insert("api.example.com".into(), vec![vec![ip("1.1.1.1")]; 8]);
    Arc::new(world)
}

#[tokio::test]
async fn a_request_is_framed_and_addressed_by_the_host() {
    let (listener, served) = server(b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(), true).await;
    let mut request = get("http://api.example.com/");
    *request.method_mut() = Method::POST;
    *request.body_mut() = Full::new(Bytes::from("hello")).map_err(|never| match never {}).boxed_unsync();
    for (name, value) in [
        ("host", "evil.example"),
        ("connection", "x-a, keep-alive"),
        ("x-a", "1"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "h2c"),
        ("te", "trailers"),
        ("forwarded", "for=127.0.0.1"),
        ("proxy-authorization", "x"),
        ("content-length", "5"),
        ("expect", "100-continue"),
        ("x-kept", "yes"),
    ] {
        request
            .headers_mut()
            .append(http::HeaderName::from_static(name), http::HeaderValue::from_static(value));
    }
    send(&world_of(listener), &["http://api.example.com"], request).await.unwrap();
    let head = served.await.unwrap();
    let mut fields: Vec<_> = head.split("\r\n").skip(1).filter(|line| line.contains(": ")).collect();
    fields.sort_unstable();
    assert_eq!(fields, ["cdn-loop: souk-guest", "content-length: 5", "host: api.example.com", "x-kept: yes"]);
}

#[tokio::test]
async fn redirects_are_the_guests_to_follow_and_upgrades_are_refused() {
    let redirect = b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1/\r\ncontent-length: 0\r\n\r\n".to_vec();
    let (listener, _) = server(redirect, true).await;
    let world = world_of(listener);
    let answer = send(&world, &["http://api.example.com"], get("http://api.example.com/")).await.unwrap();
    assert_eq!(answer.status(), 302);
    assert_eq!(world.connected.lock().unwrap().len(), 1);
    let upgrade = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n".to_vec();
    let (listener, _) = server(upgrade, false).await;
    let refused =
        send(&world_of(listener), &["http://api.example.com"], get("http://api.example.com/")).await;
    assert!(matches!(refused.unwrap_err(), WasiHttpError::HttpUpgradeFailed | WasiHttpError::Hyper(_)));
}

#[tokio::test]
async fn tunnels_and_a_ninth_request_are_not_sent() {
    let world = Arc::new(World::default());
    for method in [Method::CONNECT, Method::TRACE] {
        let mut request = get("http://api.example.com/");
        *request.method_mut() = method;
        let refused = send(&world, &["http://api.example.com"], request).await.unwrap_err();
        assert!(matches!(refused, WasiHttpError::HttpRequestMethodInvalid), "{refused:?}");
    }
    let out = outbound(&world, RootCertStore::empty());
    let ninth =
        out.send(grants(&["api.example.com"]), 8, get("https://api.example.com/"), RequestOptions::default());
    assert!(matches!(ninth.await.unwrap_err(), WasiHttpError::ConnectionLimitReached));
    assert_eq!(world.asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_peer_that_is_silent_slow_or_endless_is_left() {
    let error_of = async |answer: &[u8], then_close| {
        let (listener, _) = server(answer.to_vec(), then_close).await;
        match send(&world_of(listener), &["http://api.example.com"], get("http://api.example.com/")).await {
            Err(error) => error,
            Ok(answer) => answer.into_body().collect().await.map(|_| ()).unwrap_err(),
        }
    };
    assert!(matches!(error_of(b"", false).await, WasiHttpError::HttpResponseTimeout));
    assert!(matches!(error_of(b"", true).await, WasiHttpError::Hyper(_)));
    let slow = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf";
    assert!(matches!(error_of(slow, false).await, WasiHttpError::ConnectionReadTimeout));
    assert!(matches!(error_of(slow, true).await, WasiHttpError::Hyper(_)));
    let mut endless = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
    endless.resize(200_000, b'x');
    assert!(matches!(error_of(&endless, false).await, WasiHttpError::HttpResponseBodySize(None)));
    let mut fields = b"HTTP/1.1 200 OK\r\n".to_vec();
    for i in 0..1_000 {
        fields.extend_from_slice(format!("x-{i}: {i}\r\n").as_bytes());
    }
    fields.extend_from_slice(b"\r\n");
    assert!(matches!(error_of(&fields, true).await, WasiHttpError::Hyper(_)));
}

#[tokio::test]
async fn a_certificate_is_for_the_granted_name() {
    use tokio_rustls::TlsAcceptor;
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate =
        rcgen::CertificateParams::new(vec!["api.example.com".to_owned()]).unwrap().self_signed(&key).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().clone()).unwrap();
    let config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                rustls_pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            )
            .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let name = stream.get_ref().1.server_name().unwrap_or("none").to_owned();
                let _ = stream.read(&mut [0; 4096]).await;
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}", name.len());
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    let world = world_of(address);
    world.answers.lock().unwrap().insert("other.example.com".into(), vec![vec![ip("1.1.1.1")]]);
    let trusted = outbound(&world, roots.clone());
    let options = RequestOptions::default();
    let uri = "https://api.example.com/";
    let answer = trusted.clone().send(grants(&["api.example.com"]), 0, get(uri), options).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "api.example.com");
    let other = get("https://other.example.com/");
    let refused = trusted.send(grants(&["other.example.com"]), 0, other, options).await.unwrap_err();
    assert!(matches!(refused, WasiHttpError::TlsCertificateError), "{refused:?}");
    let strangers = outbound(&world, RootCertStore::empty());
    let refused = strangers.send(grants(&["api.example.com"]), 0, get(uri), options).await.unwrap_err();
    assert!(matches!(refused, WasiHttpError::TlsCertificateError), "{refused:?}");
}

#[tokio::test]
async fn a_site_whose_name_servers_are_silent_leaves_others_theirs() {
    let world = Arc::new(World { silent: true, ..World::default() });
    let all = outbound(&world, RootCertStore::empty());
    let (site, other) = (all.for_site(), all.for_site());
    let ask = |site: &Outbound| {
        let sent = site.clone().send(
            grants(&["api.example.com"]),
            0,
            get("https://api.example.com/"),
            RequestOptions::default(),
        );
        tokio::spawn(sent)
    };
    let lookups_max = limits().lookups_per_site_max;
    let hanging: Vec<_> = (0..3 * lookups_max).map(|_| ask(&site)).collect();
    tokio::task::yield_now().await;
    assert_eq!(world.asked.load(Ordering::SeqCst), lookups_max);
    let others = ask(&other);
    tokio::task::yield_now().await;
    assert_eq!(world.asked.load(Ordering::SeqCst), lookups_max + 1, "the other site's name is asked for");
    for sent in hanging.into_iter().chain([others]) {
        assert!(matches!(sent.await.unwrap().unwrap_err(), WasiHttpError::ConnectionTimeout));
    }
}

#[tokio::test]
async fn a_sites_connections_are_bounded_and_a_run_knows_of_its_unread_answers() {
    let (listener, _served) =
        server(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello".to_vec(), false).await;
    let world = Arc::new(World { listener: Some(listener), ..World::default() });
    let limits = OutboundLimits { connections_per_site_max: 1, ..limits() };
    let network = Box::new(Arc::clone(&world));
    let all =
        Outbound::with(network, RootCertStore::empty(), limits, Reach::Public, [], HttpMetrics::default())
            .unwrap();
    let site = all.for_site();
    let (run, other_run) = (site.for_run(), site.for_run());
    let request = || get("http://1.1.1.1/");
    let granted = || grants(&["http://1.1.1.1"]);
    let options = RequestOptions::default();
    let answer = run.clone().send(granted(), 0, request(), options).await.unwrap();
    assert!(run.is_under_way() && !other_run.is_under_way());
    let refused = other_run.clone().send(granted(), 0, request(), options).await.unwrap_err();
    assert!(matches!(refused, WasiHttpError::ConnectionLimitReached), "{refused:?}");
    drop(answer);
    assert!(!run.is_under_way());
}

/// Answers with what it was asked.
struct Echo;

impl Indoors for Echo {
    fn answer(&self, request: Request<()>) -> BoxFuture<'static, Response<Bytes>> {
        let said = format!("{} {} {}", request.method(), request.uri().path(), request.headers().len());
        Box::pin(async move { Response::new(said.into()) })
    }
}

#[tokio::test]
async fn the_reserved_host_is_answered_indoors_and_leads_nowhere() {
    let mut world = World::default();
    // Even a name server that knows it, and a merchant who was granted it.
    for name in ["souk.internal", "souk.internal."] {
        world.answers.get_mut().unwrap().insert(name.into(), vec![vec![ip("1.1.1.1")]; 16]);
    }
    let world = Arc::new(world);
    let out = outbound(&world, RootCertStore::empty());
    let echo = || Some(Arc::new(Echo) as Arc<dyn Indoors>);
    let options = RequestOptions::default();
    let ask =
        async |uri: &str, indoors, sent| out.clone().answer_indoors(indoors, sent, get(uri), options).await;
    for uri in ["http://souk.internal/api/products", "http://SOUK.internal:80/api/products"] {
        assert!(is_reserved(&uri.parse().unwrap()));
        let answer = ask(uri, echo(), 0).await.unwrap();
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "GET /api/products 0");
    }
    for uri in [
        "http://souk.internal/",
        "https://souk.internal/",
        "http://souk.internal:8080/",
        "http://Souk.Internal/",
        "http://souk.internal./",
        "http://user@souk.internal/",
    ] {
        assert!(is_reserved(&uri.parse().unwrap()), "{uri}");
        let hosts = &["http://souk.internal", "https://souk.internal", "http://souk.internal:8080"];
        let refused = send(&world, hosts, get(uri)).await.unwrap_err();
        assert!(matches!(refused, WasiHttpError::HttpRequestDenied), "{uri}: {refused:?}");
        let refused = ask(uri, None, 0).await.unwrap_err();
        assert!(matches!(refused, WasiHttpError::HttpRequestDenied), "{uri}, nobody is in: {refused:?}");
    }
    for uri in ["https://souk.internal/", "http://souk.internal:8080/", "http://souk.internal./"] {
        let refused = ask(uri, echo(), 0).await.unwrap_err();
        assert!(matches!(refused, WasiHttpError::HttpRequestDenied), "{uri}: {refused:?}");
    }
    let ninth = ask("http://souk.internal/", echo(), 8).await.unwrap_err();
    assert!(matches!(ninth, WasiHttpError::ConnectionLimitReached), "it counts as any other: {ninth:?}");
    let mut post = get("http://souk.internal/");
    *post.method_mut() = Method::POST;
    let refused = out.clone().answer_indoors(echo(), 0, post, options).await.unwrap_err();
    assert!(matches!(refused, WasiHttpError::HttpRequestMethodInvalid), "{refused:?}");
    assert!(!is_reserved(&"http://souk.internal.example/".parse().unwrap()));
    assert!(!is_reserved(&"http://asouk.internal/".parse().unwrap()));
    assert_eq!(world.asked.load(Ordering::SeqCst), 0, "no name server hears of it");
    assert!(world.connected.lock().unwrap().is_empty());
}
