//! The short way to a hit beside the long one: the same bytes, whatever is stored and whatever is asked.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use souk_config::{AccessConfig, AccessFormat, AccessTo, CachePolicy};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::listen::ListenLimits;

/// Generous: the tests share their machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// The door as it is, but for one thing: it counts what it had at hand, or has nothing at hand at all.
struct Watched {
    door: Arc<ProxyDoor>,
    short: bool,
    at_hand: AtomicUsize,
    messages: AtomicUsize,
}

impl Answer for Watched {
    fn answer(
        self: Arc<Self>,
        request: Request<RequestBody>,
        peer: Peer,
    ) -> BoxFuture<'static, Response<Body>> {
        let door = Arc::clone(&self.door);
        let (mut head, body) = request.into_parts();
        let now_ms = now_ms();
        if !self.short {
            // As the door does it for what is not at hand.
            let client = door.hear(&mut head, peer);
            let note = door.note(&head, client, now_ms);
            return door.answer_at_length(Request::from_parts(head, body), note, client, peer, now_ms);
        }
        let found = door.proxy.at_hand_as_message(&head, body.is_end_stream(), peer, now_ms, || true);
        self.messages.fetch_add(found.is_some().into(), Ordering::SeqCst);
        door.answer(Request::from_parts(head, body), peer)
    }

    fn passes_interims(&self) -> bool {
        self.door.passes_interims()
    }

    fn at_hand(&self, plain: &Plain<'_>, peer: Peer) -> Option<Ready> {
        let ready = if self.short { self.door.at_hand(plain, peer) } else { None };
        self.at_hand.fetch_add(ready.is_some().into(), Ordering::SeqCst);
        ready
    }

    fn is_brief(&self) -> bool {
        self.short && self.door.is_brief()
    }
}

/// What the upstream answers with: status, fields, body.
type Page = (u16, Vec<(&'static str, &'static str)>, usize);

/// One proxy behind two doors.
struct World {
    pages: Arc<Mutex<HashMap<String, Page>>>,
    short: Arc<Watched>,
    proxy: Proxy,
    doors: [SocketAddr; 2],
    drain: CancellationToken,
}

impl World {
    async fn new(change: impl FnOnce(&mut ProxyConfig)) -> Self {
        let pages: Arc<Mutex<HashMap<String, Page>>> = Arc::default();
        let upstream = upstream(Arc::clone(&pages)).await;
        let mut config =
            ProxyConfig::new(([127, 0, 0, 1], 0).into(), &format!("http://{upstream}")).expect("a config");
        change(&mut config);
        let access = config.access.as_ref().map(|access| AccessLog::open(access).expect("a log"));
        let (rates, request_deadline) = (Rates::new(&config.rates), config.request_deadline);
        let proxy = Proxy::new(config).expect("a proxy");
        let door = Arc::new(ProxyDoor { proxy: proxy.clone(), access, rates, request_deadline });
        let watched = |short| {
            Arc::new(Watched {
                door: Arc::clone(&door),
                short,
                at_hand: AtomicUsize::default(),
                messages: AtomicUsize::default(),
            })
        };
        let (long, short) = (watched(false), watched(true));
        let drain = CancellationToken::new();
        let doors = [open(&long, &drain).await, open(&short, &drain).await];
        Self { pages, short, proxy, doors, drain }
    }

    /// Connections to both doors, each with a request behind it: the first one of a connection is hyper's.
    async fn connect(&self) -> [Line; 2] {
        let [long, short] = self.doors;
        [Line::to(long).await, Line::to(short).await]
    }

    fn at_hand(&self) -> usize {
        self.short.at_hand.load(Ordering::SeqCst)
    }

    /// What both say to one request. Between two that differ a second may have passed, or an encoding been made.
    async fn both(&self, lines: &mut [Line; 2], request: &str) -> [String; 2] {
        let mut said = Default::default();
        for _ in 0..50 {
            let [long, short] = &mut *lines;
            said = [long.ask(request).await, short.ask(request).await];
            if said[0] == said[1] || said[0].contains("connection: close") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        said
    }
}

/// A connection of HTTP/2 to a door, by prior knowledge.
async fn streams(addr: SocketAddr) -> SendRequest<Empty<Bytes>> {
    let stream = TokioIo::new(TcpStream::connect(addr).await.expect("connected"));
    let (send, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    send
}

/// The request over HTTP/2; none if it cannot be asked there.
fn over_streams(method: &str, host: &str, target: &str, fields: &[&str]) -> Option<Request<Empty<Bytes>>> {
    let mut request = Request::builder().method(method).uri(format!("http://{host}{target}"));
    for field in fields {
        let (name, value) = field.split_once(": ")?;
        if ["Connection", "TE", "Content-Length"].contains(&name) {
            return None;
        }
        request = request.header(name, value.as_bytes());
    }
    request.body(Empty::new()).ok()
}

/// Status, fields in their order, and body.
async fn seen(send: &mut SendRequest<Empty<Bytes>>, request: Request<Empty<Bytes>>) -> String {
    let answered = async {
        let (head, body) = send.send_request(request).await.expect("an answer").into_parts();
        let body = body.collect().await.expect("a whole body").to_bytes();
        format!("{} {:?} {:?}", head.status, head.headers.iter().collect::<Vec<_>>(), body)
    };
    tokio::time::timeout(PATIENCE, answered).await.expect("an answer in time")
}

async fn open(door: &Arc<Watched>, drain: &CancellationToken) -> SocketAddr {
    let listener = Listener::bind(([127, 0, 0, 1], 0).into()).await.expect("a port");
    let addr = listener.addr();
    tokio::spawn(listener.serve(None, ListenLimits::default(), door.clone(), drain.clone()));
    addr
}

async fn upstream(pages: Arc<Mutex<HashMap<String, Page>>>) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let addr = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let pages = Arc::clone(&pages);
            let service = service_fn(move |request: Request<Incoming>| {
                let (status, fields, length) =
                    pages.lock().get(request.uri().path()).cloned().unwrap_or((404, Vec::new(), 0));
                let mut response = Response::builder().status(status);
                for (name, value) in fields {
                    response = response.header(name, value);
                }
                let body = Bytes::from(text(length));
                async move { Ok::<_, Infallible>(response.body(Full::new(body)).expect("a response")) }
            });
            let served =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::spawn(async move { drop(served.await) });
        }
    });
    addr
}

/// What is at a page of this length. No two lengths have one beginning.
fn text(length: usize) -> String {
    let line = format!("<p>{length}</p>\n");
    let mut text = line.repeat(length / line.len() + 1);
    text.truncate(length);
    text
}

/// A kept connection that is asked one thing after the other.
struct Line {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Line {
    async fn to(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).await.expect("connected");
        let mut line = Self { stream, read: Vec::new() };
        let first = line.ask("GET /first HTTP/1.1\r\nHost: first.example\r\n\r\n").await;
        assert!(first.starts_with("HTTP/1.1 404"), "{first}");
        line
    }

    async fn ask(&mut self, request: &str) -> String {
        self.stream.write_all(request.as_bytes()).await.expect("sent");
        self.answer(request.starts_with("HEAD")).await
    }

    /// One answer, head and body.
    async fn answer(&mut self, head_only: bool) -> String {
        let mut length = None;
        loop {
            if let Some(end) = self.read.windows(4).position(|four| four == b"\r\n\r\n") {
                let whole = *length.get_or_insert_with(|| {
                    let head = String::from_utf8_lossy(&self.read[..end]).to_ascii_lowercase();
                    let field =
                        head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
                    let none = head_only || head.starts_with("http/1.1 304");
                    end + 4 + field.filter(|_| !none).unwrap_or(0)
                });
                if self.read.len() >= whole {
                    let rest = self.read.split_off(whole);
                    let said = std::mem::replace(&mut self.read, rest);
                    return String::from_utf8_lossy(&said).into_owned();
                }
            }
            let read = tokio::time::timeout(PATIENCE, self.stream.read_buf(&mut self.read)).await;
            let read = read.expect("an answer in time").expect("read");
            assert!(read > 0, "it was closed: {}", String::from_utf8_lossy(&self.read));
        }
    }
}

/// What an upstream may say, in pieces that mean something to each other.
fn page() -> impl Strategy<Value = Page> {
    let lifetime = prop_oneof![
        6 => Just(Some("max-age=600")),
        1 => Just(Some("s-maxage=600, stale-while-revalidate=60")),
        1 => Just(Some("max-age=0")),
        1 => Just(Some("no-store")),
        1 => Just(None),
    ];
    let more = prop::sample::subsequence(
        vec![
            ("etag", "\"one\""),
            ("etag", "W/\"weak\""),
            ("last-modified", "Mon, 02 Nov 2026 08:00:00 GMT"),
            ("vary", "accept-encoding"),
            ("vary", "Accept-Language, x-shop"),
            ("age", "17"),
            ("date", "Mon, 02 Nov 2026 08:00:00 GMT"),
            ("link", "</a.css>; rel=preload"),
            ("link", "</b.css>; rel=preload"),
            ("cache-status", "Theirs; hit"),
            ("set-cookie", "a=b"),
            ("alt-svc", "h3=\":1\""),
            ("accept-ranges", "none"),
            ("surrogate-key", "home"),
            ("content-language", "de"),
            ("content-encoding", "gzip"),
            ("connection", "x-of-it"),
            ("x-of-it", "1"),
            ("server-timing", "db;dur=5"),
            ("x-empty", ""),
        ],
        0..8,
    );
    let kind = prop_oneof![Just("text/html; charset=utf-8"), Just("image/png")];
    let status = prop_oneof![8 => Just(200u16), 1 => Just(404u16), 1 => Just(203u16)];
    let length = prop_oneof![Just(0usize), Just(1), Just(1024), Just(3_000), Just(200_000)];
    (status, lifetime, more, kind, length).prop_map(|(status, lifetime, mut fields, kind, length)| {
        fields.push(("content-type", kind));
        fields.extend(lifetime.map(|value| ("cache-control", value)));
        (status, fields, length)
    })
}

/// The fields of a request beside its host.
fn fields() -> impl Strategy<Value = Vec<&'static str>> {
    let known = vec![
        "Accept: */*",
        "User-Agent: Mozilla/5.0",
        "Cookie: session=1",
        "Cookie: more=2",
        "Authorization: Bearer x",
        "Accept-Encoding: gzip, br",
        "accept-encoding: identity;q=0, gzip",
        "Accept-Language: de, en",
        "X-Shop: 2",
        "Connection: keep-alive",
        "Connection: x-shop",
        "Cache-Control: no-cache",
        "Cache-Control: only-if-cached",
        "Cache-Control: max-age=0",
        "Pragma: no-cache",
        "If-None-Match: \"one\"",
        "If-Modified-Since: Mon, 02 Nov 2026 08:00:00 GMT",
        "If-Match: \"one\"",
        "Range: bytes=1-5",
        "X-Forwarded-For: 192.0.2.1",
        "X-Forwarded-Proto: https",
        "Forwarded: for=192.0.2.1;proto=https",
        "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "CDN-Loop: other",
        "TE: trailers",
        "Content-Length: 0",
        "X_Odd: 1",
        "X-Latin: \u{e9}",
    ];
    // Most requests of a shop say little that matters; a few say all sorts of things together.
    prop_oneof![
        1 => Just(Vec::new()),
        2 => prop::sample::subsequence(known.clone(), 0..3),
        1 => prop::sample::subsequence(known, 0..8),
    ]
}

fn questions() -> impl Strategy<Value = Vec<(&'static str, &'static str, &'static str, Vec<&'static str>)>> {
    let method = prop_oneof![12 => Just("GET"), 1 => Just("HEAD")];
    let host = prop_oneof![
        12 => Just("shop.example"),
        2 => Just("shop.example:8080"),
        1 => Just("Shop.Example"),
        1 => Just("shop.example:80"),
        1 => Just("[::1]:8080"),
    ];
    let query = prop_oneof![
        8 => Just(""),
        1 => Just("?a=%20b&c=d"),
        1 => Just("?a=[1]"),
        1 => Just("/../x"),
        1 => Just("%zz"),
    ];
    prop::collection::vec((method, host, query, fields()), 1..6)
}

/// Runs `cases` of pages and questions against a proxy with these settings, and says how many answers were at hand, over
/// HTTP/1.1 and over HTTP/2.
fn compare(cases: u32, change: impl FnOnce(&mut ProxyConfig)) -> (usize, usize) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let world = runtime.block_on(World::new(change));
    let case = AtomicUsize::new(0);
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    // The same cases each time: what is counted of them is.
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let ran = runner.run(&(page(), questions()), |(page, questions)| {
        let path = format!("/{}", case.fetch_add(1, Ordering::SeqCst));
        world.pages.lock().insert(path.clone(), page.clone());
        runtime.block_on(async {
            let mut lines = world.connect().await;
            for (method, host, query, fields) in &questions {
                let fields: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
                let request = format!("{method} {path}{query} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n");
                // The first time it is fetched.
                let [long, _] = &mut lines;
                if long.ask(&request).await.contains("connection: close") {
                    lines = world.connect().await;
                }
                let [long, short] = world.both(&mut lines, &request).await;
                prop_assert_eq!(&long, &short, "{}", request);
                if long.contains("connection: close") {
                    lines = world.connect().await;
                }
            }
            let [long, short] = world.doors;
            let (mut long, mut short) = (streams(long).await, streams(short).await);
            for (method, host, query, fields) in &questions {
                let target = format!("{path}{query}");
                let Some(request) = over_streams(method, host, &target, fields) else { continue };
                let mut said = Default::default();
                for _ in 0..50 {
                    said = (seen(&mut long, request.clone()).await, seen(&mut short, request.clone()).await);
                    if said.0 == said.1 {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                prop_assert_eq!(&said.0, &said.1, "{:?}", request);
            }
            Ok(())
        })
    });
    ran.expect("both ways say the same");
    (world.at_hand(), world.short.messages.load(Ordering::SeqCst))
}

/// Until the short way was gone often enough to say something: on a slow machine a head is too old to be at hand.
fn compare_often(settings: fn(&mut ProxyConfig)) {
    let mut all = (0, 0);
    for _ in 0..4 {
        let at_hand = compare(64, settings);
        all = (all.0 + at_hand.0, all.1 + at_hand.1);
        if all.0 > 10 && all.1 > 10 {
            return;
        }
    }
    panic!("the short way was gone {all:?} times only");
}

#[test]
fn both_ways_to_a_hit_say_the_same() {
    let at_hand = compare(96, |_| {});
    assert!(at_hand.0 > 20 && at_hand.1 > 20, "the short way was gone {at_hand:?} times");
}

#[test]
fn both_ways_say_the_same_where_encodings_are_made() {
    compare_often(|config| config.upstream.compress = true);
}

#[test]
fn both_ways_say_the_same_where_clients_have_a_say_and_senders_are_trusted() {
    compare_often(|config| {
        config.upstream.policy = CachePolicy::Strict;
        config.upstream.trusted = vec!["127.0.0.0/8".parse().expect("a network")];
    });
}

const FRESH: (&str, &str) = ("cache-control", "max-age=600");

#[tokio::test]
async fn an_answer_at_hand_is_counted_and_logged_like_any_other() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("access.log");
    let world = World::new(|config| {
        let to = AccessTo::File(file.clone());
        config.access = Some(AccessConfig { to, format: AccessFormat::Json, with_query: false });
    })
    .await;
    world.pages.lock().insert("/a".to_owned(), (200, vec![FRESH], 3_000));
    let mut lines = world.connect().await;
    let request = "GET /a?secret HTTP/1.1\r\nHost: shop.example\r\nUser-Agent: me\r\n\r\n";
    for line in &mut lines {
        for _ in 0..2 {
            line.ask(request).await;
        }
    }
    assert_eq!(world.at_hand(), 2);
    world.proxy.sample();
    let hit = crate::upstream::Outcome { outcome: "hit" };
    assert_eq!(world.proxy.metrics().requests.get_or_create(&hit).get(), 3, "one was a fill");
    let logged = tokio::time::timeout(PATIENCE, async {
        loop {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            if text.lines().count() == 6 {
                return text;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let logged = logged.await.expect("six lines");
    let mut hits: Vec<serde_json::Value> = Vec::new();
    for line in logged.lines() {
        let mut line: serde_json::Value = serde_json::from_str(line).expect("JSON");
        if line["cache"] == "hit" {
            assert_eq!(line["trace"].as_str().map(str::len), Some(32), "{line}");
            for own in ["time", "duration_us", "trace"] {
                line.as_object_mut().expect("an object").remove(own).expect("a member");
            }
            hits.push(line);
        }
    }
    assert_eq!(hits.len(), 3, "{logged}");
    assert!(
        hits.iter().all(|hit| *hit == hits[0] && hit["bytes"] == 3_000 && hit["complete"] == true),
        "{hits:?}"
    );
    assert!(!logged.contains("secret"), "{logged}");
}

#[tokio::test]
async fn what_is_purged_is_not_at_hand() {
    let world = World::new(|_| {}).await;
    world.pages.lock().insert("/a".to_owned(), (200, vec![FRESH, ("surrogate-key", "home")], 10));
    let [_, mut line] = world.connect().await;
    let request = "GET /a HTTP/1.1\r\nHost: shop.example\r\n\r\n";
    for _ in 0..3 {
        line.ask(request).await;
    }
    let before = world.at_hand();
    assert_eq!(before, 2);
    // What this process has at hand is looked at again after any purge, also one of something else.
    for (tag, how) in [("other", "hit"), ("home", "detail=purged")] {
        let forget = Forget { tags: vec![tag.to_owned()], ..Forget::default() };
        world.proxy.purge(&forget).await;
        let said = line.ask(request).await;
        assert!(said.contains(how), "{tag}: {said}");
        assert_eq!(world.at_hand(), before, "the long way looks into it");
    }
    line.ask(request).await;
    assert_eq!(world.at_hand(), before + 1, "and what came since is at hand");
}

/// The page changes, then is taken back, and whoever asks after that has the new one: while others ask without end.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_head_that_was_kept_outlives_a_purge_or_an_unsafe_request() {
    const ROUNDS: usize = 60;
    let world = Arc::new(World::new(|_| {}).await);
    world.pages.lock().insert("/a".to_owned(), (200, vec![FRESH], 1));
    let get = "GET /a HTTP/1.1\r\nHost: shop.example\r\n\r\n";
    let post = "POST /a HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 0\r\n\r\n";
    let length = |said: &str| said.split_once("\r\n\r\n").map_or(0, |(_, body)| body.len());
    // What is certainly gone.
    let gone = Arc::new(AtomicUsize::new(0));
    let done = CancellationToken::new();
    let others: Vec<_> = (0..3)
        .map(|_| {
            let (world, gone, done) = (Arc::clone(&world), Arc::clone(&gone), done.clone());
            tokio::spawn(async move {
                let mut line = Line::to(world.doors[1]).await;
                while !done.is_cancelled() {
                    let before = gone.load(Ordering::SeqCst);
                    let said = length(&line.ask(get).await);
                    assert!(said > before, "{said} after {before} was taken back");
                }
            })
        })
        .collect();
    let [_, mut line] = world.connect().await;
    for round in 1..=ROUNDS {
        // Both are asked twice, so that there is a head to keep.
        assert!(length(&line.ask(get).await) >= round);
        line.ask(get).await;
        world.pages.lock().insert("/a".to_owned(), (200, vec![FRESH], round + 1));
        if round % 2 == 0 {
            let url = "http://shop.example/a".to_owned();
            world.proxy.purge(&Forget { urls: vec![url], ..Forget::default() }).await;
        } else {
            assert!(line.ask(post).await.starts_with("HTTP/1.1 200"));
        }
        gone.store(round, Ordering::SeqCst);
        assert_eq!(length(&line.ask(get).await), round + 1);
    }
    done.cancel();
    for other in others {
        other.await.expect("none had what was taken back");
    }
    assert!(world.at_hand() > ROUNDS, "{}", world.at_hand());
}

#[tokio::test]
async fn an_answer_at_hand_counts_against_the_rate_of_its_address() {
    const RATE: u32 = 3;
    let began = std::time::Instant::now();
    let world = World::new(|config| config.rates.per_address = NonZeroU32::new(RATE)).await;
    world.pages.lock().insert("/a".to_owned(), (200, vec![FRESH], 10));
    let [_, mut line] = world.connect().await;
    let request = "GET /a HTTP/1.1\r\nHost: shop.example\r\n\r\n";
    let (mut answers, mut refusals) = (2, 0);
    while world.at_hand() < 3 {
        let said = line.ask(request).await;
        match said.get(9..12) {
            Some("200") => answers += 1,
            Some("429") => {
                refusals += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            _ => panic!("{said}"),
        }
        let most = f64::from(RATE) * (1.0 + began.elapsed().as_secs_f64());
        assert!(f64::from(answers) <= most, "{answers} answers, and at most {most} were due");
    }
    // Ten times what is due in the time that this takes, or else the machine is so slow that nobody was refused.
    assert!(refusals > 0 || began.elapsed() > Duration::from_secs(1));
}

#[tokio::test]
async fn what_is_no_request_counts_against_the_rate_of_its_address() {
    for (bad, refused) in [
        ("TRACE /a HTTP/1.1\r\nHost: shop.example\r\n\r\n", "405"),
        ("GET /a HTTP/1.1\r\nHost: a@b\r\n\r\n", "400"),
    ] {
        let world = World::new(|config| config.rates.per_address = NonZeroU32::new(1)).await;
        let mut counted = false;
        // One a second: no machine is so slow that a hundred of them take a hundred seconds.
        for _ in 0..100 {
            let stream = TcpStream::connect(world.doors[1]).await.expect("connected");
            let said = Line { stream, read: Vec::new() }.ask(bad).await;
            counted = said.starts_with("HTTP/1.1 429");
            if counted {
                break;
            }
            assert_eq!(said.get(9..12), Some(refused), "{said}");
        }
        assert!(counted, "{bad:?} may be sent as often as anybody likes");
    }
}

#[tokio::test]
async fn what_was_lent_to_a_slow_reader_stays_what_it_asked_for() {
    const LENGTH: usize = 1_000_000;
    let world = World::new(|_| {}).await;
    let put = |length| drop(world.pages.lock().insert("/a".to_owned(), (200, vec![FRESH], length)));
    let request = "GET /a HTTP/1.1\r\nHost: shop.example\r\n\r\n";
    let in_files = || {
        world.proxy.sample();
        world.proxy.metrics().in_file_bytes.get()
    };
    let is = |said: &str, length| said.split_once("\r\n\r\n").is_some_and(|(_, body)| body == text(length));
    put(LENGTH);
    let [mut long, mut short] = world.connect().await;
    for _ in 0..6 {
        assert!(is(&short.ask(request).await, LENGTH) && is(&long.ask(request).await, LENGTH));
    }
    assert_eq!(in_files(), i64::try_from(LENGTH).expect("small"));
    // More than its socket takes at once, of a client that does not read: what is lent waits in the kernel.
    let mut slow = Line::to(world.doors[1]).await;
    let before = world.at_hand();
    slow.stream.write_all(request.as_bytes()).await.expect("sent");
    while world.at_hand() == before {
        tokio::task::yield_now().await;
    }
    put(LENGTH + 1);
    world.proxy.purge(&Forget { everything: true, ..Forget::default() }).await;
    for _ in 0..6 {
        assert!(is(&short.ask(request).await, LENGTH + 1));
    }
    assert!(is(&slow.answer(false).await, LENGTH), "it was lent other bytes");
    assert!(is(&slow.ask(request).await, LENGTH + 1));
    assert_eq!(in_files(), i64::try_from(LENGTH + 1).expect("small"), "and what nobody has any more is gone");
}

#[tokio::test]
async fn a_door_that_drains_says_that_the_connection_ends() {
    let world = World::new(|_| {}).await;
    world.pages.lock().insert("/a".to_owned(), (200, vec![FRESH], 10));
    let [_, mut line] = world.connect().await;
    let request = "GET /a HTTP/1.1\r\nHost: shop.example\r\n\r\n";
    for _ in 0..3 {
        assert!(!line.ask(request).await.contains("connection: close"));
    }
    assert_eq!(world.at_hand(), 2);
    world.drain.cancel();
    // The door hears of it in its own time; whoever asks before that may be answered as ever.
    let told = async { while !line.ask(request).await.contains("connection: close") {} };
    tokio::time::timeout(PATIENCE, told).await.expect("it is told");
    let ended = tokio::time::timeout(PATIENCE, line.stream.read_buf(&mut line.read)).await;
    assert_eq!(ended.expect("in time").expect("a clean end"), 0);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let world = World::new(|_| {}).await;
    for (path, length) in [("/a", 200_000), ("/b", 10), ("/c", 0)] {
        world.pages.lock().insert(path.to_owned(), (200, vec![FRESH], length));
    }
    let [mut long, mut short] = world.connect().await;
    let ask = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: shop.example\r\n\r\n");
    for line in [&mut long, &mut short] {
        for path in ["/a", "/b", "/c", "/missing", "/a"] {
            line.ask(&ask(path)).await;
        }
    }
    let many = ["/a", "/b", "/c", "/missing", "/b", "/a", "/a", "/c", "/b"];
    for _ in 0..20 {
        let mut said = Vec::new();
        for line in [&mut long, &mut short] {
            // One alone, then many at once while its answer is being written.
            line.stream.write_all(ask("/a").as_bytes()).await.expect("sent");
            tokio::task::yield_now().await;
            let all: String = many.iter().map(|path| ask(path)).collect();
            line.stream.write_all(all.as_bytes()).await.expect("sent");
            let mut answers = Vec::new();
            for _ in 0..=many.len() {
                let answer = line.answer(false).await;
                let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
                answers.push((head.lines().next().expect("a status").to_owned(), body.len()));
            }
            said.push(answers);
        }
        assert_eq!(said[0], said[1]);
        let first: Vec<usize> = said[1].iter().map(|(_, length)| *length).take(4).collect();
        assert_eq!(first, [200_000, 200_000, 10, 0]);
    }
    assert!(world.at_hand() > 0);
}
