//! The proxy between a real client and a real upstream, on loopback.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use souk_config::{CachePolicy, ProxyConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::Proxy;
use crate::http::{Body, full, now_ms};
use crate::listen::Peer;

mod beyond_get;
mod encoded;
mod exchange;
mod explained;
mod interim;
mod purge;
mod query;
mod seen;
mod servers;
mod sliced;

type Answer = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;
type Handler = dyn Fn(Request<Incoming>) -> Answer + Send + Sync;

/// An upstream, a proxy in front of it, and a client.
struct World {
    proxy: Proxy,
    at: SocketAddr,
    client: Client<HttpConnector, Full<Bytes>>,
    fetches: Arc<AtomicUsize>,
}

/// What a client sees.
#[derive(Debug)]
struct Seen {
    status: StatusCode,
    headers: http::HeaderMap,
    /// None if the body broke off.
    body: Option<String>,
}

impl Seen {
    fn cache_status(&self) -> &str {
        self.headers.get("cache-status").map_or("", |value| value.to_str().expect("text"))
    }

    fn body(&self) -> &str {
        self.body.as_deref().expect("a whole body")
    }
}

impl World {
    async fn with<F>(handler: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        Self::under(CachePolicy::Safe, handler).await
    }

    async fn under<F>(
        policy: CachePolicy,
        handler: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let fetches = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&fetches);
        let handler: Arc<Handler> = Arc::new(move |request| {
            counted.fetch_add(1, Ordering::SeqCst);
            Box::pin(handler(request))
        });
        let upstream = serve(move |request, _| handler(request)).await;
        Self::before(&format!("http://{upstream}"), fetches, |config| config.upstream.policy = policy).await
    }

    async fn before(
        upstream: &str,
        fetches: Arc<AtomicUsize>,
        change: impl FnOnce(&mut ProxyConfig),
    ) -> Self {
        let mut config = ProxyConfig::new(([127, 0, 0, 1], 0).into(), upstream).expect("a config");
        change(&mut config);
        let proxy = Proxy::new(config).expect("a proxy");
        let served = proxy.clone();
        let at = serve(move |request, peer| {
            let proxy = served.clone();
            Box::pin(async move { proxy.handle(request.map(Into::into), plain(peer), now_ms()).await })
        })
        .await;
        Self { proxy, at, client: Client::builder(TokioExecutor::new()).build_http(), fetches }
    }

    fn request(&self, method: &str, target: &str, fields: &[(&str, &str)]) -> Request<Full<Bytes>> {
        let mut request = Request::builder().method(method).uri(format!("http://{}{target}", self.at));
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(Full::default()).expect("a request")
    }

    async fn send(&self, method: &str, target: &str, fields: &[(&str, &str)]) -> Seen {
        let response = self.client.request(self.request(method, target, fields)).await.expect("a response");
        let (head, body) = response.into_parts();
        let body =
            body.collect().await.ok().map(|whole| String::from_utf8_lossy(&whole.to_bytes()).into_owned());
        Seen { status: head.status, headers: head.headers, body }
    }

    async fn get(&self, target: &str) -> Seen {
        self.send("GET", target, &[]).await
    }

    fn fetches(&self) -> usize {
        self.fetches.load(Ordering::SeqCst)
    }
}

fn plain(addr: SocketAddr) -> Peer {
    Peer { addr, tls: false }
}

/// An HTTP/1.1 server on a port of its own.
async fn serve(
    handler: impl Fn(Request<Incoming>, SocketAddr) -> Answer + Send + Sync + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let at = listener.local_addr().expect("bound");
    let handler = Arc::new(handler);
    tokio::spawn(async move {
        while let Ok((stream, peer)) = listener.accept().await {
            let handler = Arc::clone(&handler);
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let answer = handler(request, peer);
                    async move { Ok::<_, Infallible>(answer.await) }
                });
                drop(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await,
                );
            });
        }
    });
    at
}

fn response(status: u16, fields: &[(&str, &str)], body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::builder().status(status);
    for (name, value) in fields {
        response = response.header(*name, *value);
    }
    response.body(full(body)).expect("a response")
}

/// A body that the test feeds piece by piece; `Err` breaks it off.
fn fed() -> (mpsc::Sender<Result<&'static str, &'static str>>, Body) {
    let (feed, mut pieces) = mpsc::channel(8);
    let stream = futures_util::stream::poll_fn(move |cx| {
        pieces.poll_recv(cx).map(|piece: Option<Result<&'static str, &'static str>>| {
            piece.map(|piece| {
                piece.map(|text| Frame::data(Bytes::from_static(text.as_bytes()))).map_err(Into::into)
            })
        })
    });
    (feed, http_body_util::StreamBody::new(stream).boxed_unsync())
}

fn in_flight(proxy: &Proxy) -> i64 {
    proxy.sample();
    proxy.metrics().upstream_in_flight.get()
}

async fn pause(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

#[tokio::test]
async fn a_hundred_cold_requests_are_one_fetch() {
    let world = World::with(|_| async {
        pause(200).await;
        response(200, &[("cache-control", "max-age=60")], "page")
    })
    .await;
    let all = join_all((0..100).map(|_| world.get("/page"))).await;
    assert!(all.iter().all(|seen| seen.body() == "page"));
    assert_eq!(world.fetches(), 1);
    let collapsed = all.iter().filter(|seen| seen.cache_status().contains("collapsed")).count();
    assert_eq!(collapsed, 99);
    assert_eq!(
        all.iter()
            .filter(|seen| seen.cache_status().contains("fwd=uri-miss; fwd-status=200; stored"))
            .count(),
        1
    );
    let warm = world.get("/page").await;
    assert!(warm.cache_status().starts_with("Souk; hit; ttl="), "{}", warm.cache_status());
    assert!(warm.headers.contains_key("age"));
}

#[tokio::test]
async fn uncacheable_answers_do_not_queue() {
    // The upstream answers only when all twenty are with it: in a queue they would never be.
    let together = Arc::new(tokio::sync::Barrier::new(20));
    let first = Arc::new(AtomicUsize::new(0));
    let world = World::with(move |_| {
        let cold = first.fetch_add(1, Ordering::SeqCst) == 0;
        let together = Arc::clone(&together);
        async move {
            if cold {
                pause(100).await;
            } else {
                together.wait().await;
            }
            response(200, &[("cache-control", "private")], "mine")
        }
    })
    .await;
    // One asks, twenty wait for what it learns; then nobody waits for anybody.
    let cold = join_all((0..21).map(|_| world.get("/account"))).await;
    assert!(cold.iter().all(|seen| seen.body() == "mine"));
    let known = join_all((0..20).map(|_| world.get("/account"))).await;
    assert!(known.iter().all(|seen| seen.cache_status().ends_with("detail=remembered")));
    assert_eq!(world.fetches(), 41);
}

#[tokio::test]
async fn a_joiner_streams_before_the_end() {
    let (feed, body) = fed();
    let body = Arc::new(parking_lot::Mutex::new(Some(body)));
    let world = World::with(move |_| {
        let body = body.lock().take().expect("one fetch");
        async move {
            let mut response = Response::new(body);
            response.headers_mut().insert("cache-control", "max-age=60".parse().expect("a value"));
            response
        }
    })
    .await;
    feed.send(Ok("first,")).await.expect("read");
    let mut bodies = Vec::new();
    for _ in 0..3 {
        let response = world.client.request(world.request("GET", "/big", &[])).await.expect("a head");
        let mut body = response.into_body();
        let frame = body.frame().await.expect("a frame").expect("no error").into_data().expect("data");
        assert_eq!(frame, "first,", "while the upstream has not finished");
        bodies.push(body);
    }
    feed.send(Ok("last")).await.expect("read");
    drop(feed);
    for body in bodies {
        assert_eq!(body.collect().await.expect("whole").to_bytes(), "last");
    }
    assert_eq!(world.get("/big").await.body(), "first,last");
    assert_eq!(world.fetches(), 1);
}

#[tokio::test]
async fn an_upstream_that_dies_aborts_the_body_and_nothing_is_stored() {
    // By hand: it announces ten bytes, sends four and closes; then the same in chunks without the last one.
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let upstream = listener.local_addr().expect("bound");
    let fetches = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&fetches);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 2048];
            let read = stream.read(&mut head).await.expect("a request");
            counted.fetch_add(1, Ordering::SeqCst);
            let answer: &[u8] = if head[..read].starts_with(b"GET /length") {
                b"HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ncontent-length: 10\r\n\r\nhalf"
            } else {
                b"HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n"
            };
            stream.write_all(answer).await.expect("written");
        }
    });
    let world = World::before(&format!("http://{upstream}"), fetches, |_| {}).await;
    for target in ["/length", "/chunks"] {
        assert_eq!(world.get(target).await.body, None, "{target}: never a clean end");
        assert_eq!(world.get(target).await.body, None, "{target}: and never from the cache");
    }
    assert_eq!(world.fetches(), 4);
    assert_eq!(world.proxy.metrics().fills_broken.get(), 4);
}

#[tokio::test]
async fn a_client_that_leaves_does_not_waste_the_fill() {
    let world = World::with(|_| async {
        pause(300).await;
        response(200, &[("cache-control", "max-age=60")], "page")
    })
    .await;
    let left = tokio::time::timeout(Duration::from_millis(50), world.get("/page")).await;
    assert!(left.is_err());
    while world.proxy.metrics().fill_bytes.get() == 0 {
        pause(5).await;
    }
    pause(20).await;
    assert!(world.get("/page").await.cache_status().starts_with("Souk; hit"));
    assert_eq!(world.fetches(), 1);
}

#[tokio::test]
async fn stale_while_revalidate_answers_at_once() {
    let turn = Arc::new(AtomicUsize::new(0));
    let release = Arc::new(tokio::sync::Notify::new());
    let held = Arc::clone(&release);
    let world = World::with(move |_| {
        let turn = turn.fetch_add(1, Ordering::SeqCst);
        let held = Arc::clone(&held);
        async move {
            if turn > 0 {
                held.notified().await;
            }
            response(200, &[("cache-control", "max-age=0, stale-while-revalidate=60")], format!("v{turn}"))
        }
    })
    .await;
    assert_eq!(world.get("/page").await.body(), "v0");
    // The upstream answers nothing before it is told to, so whoever waited for it would wait for ever.
    for _ in 0..3 {
        let stale = world.get("/page").await;
        assert_eq!(stale.body(), "v0");
        assert!(stale.cache_status().ends_with("detail=stale_while_revalidate"));
    }
    release.notify_one();
    while world.proxy.metrics().fill_bytes.get() < 4 {
        pause(5).await;
    }
    pause(20).await;
    assert_eq!(world.get("/page").await.body(), "v1");
    assert!(world.fetches() <= 3, "one refresh at a time");
    release.notify_one();
}

#[tokio::test]
async fn stale_if_error_when_the_upstream_fails() {
    let turn = Arc::new(AtomicUsize::new(0));
    let world = World::with(move |_| {
        let turn = turn.fetch_add(1, Ordering::SeqCst);
        async move {
            match turn {
                0 => response(
                    200,
                    &[("cache-control", "max-age=0, stale-if-error=60"), ("etag", "\"1\"")],
                    "good",
                ),
                _ => response(503, &[], "down"),
            }
        }
    })
    .await;
    assert_eq!(world.get("/page").await.body(), "good");
    let stale = world.get("/page").await;
    assert_eq!((stale.status, stale.body()), (StatusCode::OK, "good"));
    assert!(
        stale.cache_status().contains("detail=stale_if_error.upstream_status"),
        "{}",
        stale.cache_status()
    );
    assert_eq!(
        world.get("/other").await.status,
        StatusCode::SERVICE_UNAVAILABLE,
        "without permission: as it is"
    );
}

#[tokio::test]
async fn a_304_refreshes_what_is_stored() {
    let conditions = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let seen = Arc::clone(&conditions);
    let world = World::with(move |request| {
        let condition = request.headers().get("if-none-match").map(|v| v.to_str().expect("text").to_owned());
        seen.lock().push(condition.clone());
        async move {
            let fields = [("cache-control", "no-cache"), ("etag", "\"1\"")];
            match condition.as_deref() {
                Some("\"1\"") => response(304, &fields, ""),
                _ => response(200, &fields, "page"),
            }
        }
    })
    .await;
    assert_eq!(world.send("GET", "/page", &[("if-none-match", "\"client\"")]).await.body(), "page");
    let confirmed = world.get("/page").await;
    assert_eq!((confirmed.status, confirmed.body()), (StatusCode::OK, "page"));
    assert!(
        confirmed.cache_status().starts_with("Souk; fwd=stale; fwd-status=304"),
        "{}",
        confirmed.cache_status()
    );
    let known = world.send("GET", "/page", &[("if-none-match", "\"1\"")]).await;
    assert_eq!(known.status, StatusCode::NOT_MODIFIED);
    let expected = [None, Some("\"1\"".to_owned()), Some("\"1\"".to_owned())];
    assert_eq!(*conditions.lock(), expected, "the client's own condition is not forwarded with a fill");
}

#[tokio::test]
async fn ranges_are_cut_from_what_is_stored() {
    let world = World::with(|_| async {
        response(200, &[("cache-control", "max-age=60"), ("etag", "\"1\"")], "0123456789")
    })
    .await;
    let cold = world.send("GET", "/file", &[("range", "bytes=2-4")]).await;
    assert_eq!((cold.status, cold.body()), (StatusCode::PARTIAL_CONTENT, "234"));
    assert_eq!(cold.headers["content-range"], "bytes 2-4/10");
    let warm = world.send("GET", "/file", &[("range", "bytes=-3"), ("if-range", "\"1\"")]).await;
    assert_eq!((warm.status, warm.body()), (StatusCode::PARTIAL_CONTENT, "789"));
    assert_eq!(
        world.send("GET", "/file", &[("range", "bytes=99-")]).await.status,
        StatusCode::RANGE_NOT_SATISFIABLE
    );
    assert_eq!(world.send("GET", "/file", &[("range", "bytes=0-1,3-4")]).await.body(), "0123456789");
    let head = world.send("HEAD", "/file", &[]).await;
    assert_eq!((head.headers["content-length"].as_bytes(), head.body()), (&b"10"[..], ""));
    assert_eq!(world.fetches(), 1);
}

#[tokio::test]
async fn vary_keeps_variants_apart_and_spellings_together() {
    let world = World::with(|request| async move {
        let codings =
            request.headers().get("accept-encoding").map_or("none", |v| v.to_str().expect("text")).to_owned();
        response(200, &[("cache-control", "max-age=60"), ("vary", "Accept-Encoding")], codings)
    })
    .await;
    let spellings = [
        "gzip, br",
        "br,gzip",
        "br;q=1.0, gzip;q=0.5",
        "GZIP, BR",
        "gzip,deflate,br",
        "br, gzip;q=0.2, identity;q=0.1",
    ];
    for spelling in spellings {
        assert_eq!(world.send("GET", "/a", &[("accept-encoding", spelling)]).await.body(), "br, gzip");
    }
    assert_eq!(world.fetches(), 1);
    assert_eq!(world.get("/a").await.body(), "none");
    assert_eq!(world.fetches(), 2);
}

#[tokio::test]
async fn cookies_are_never_replayed() {
    let world = World::with(|_| async {
        response(200, &[("cache-control", "max-age=60"), ("set-cookie", "s=1")], "x")
    })
    .await;
    let first = world.get("/a").await;
    assert_eq!(first.headers["set-cookie"], "s=1");
    assert!(first.cache_status().ends_with("detail=set_cookie"));
    world.get("/a").await;
    assert_eq!(world.fetches(), 2);
}

#[tokio::test]
async fn a_cookie_on_a_304_is_never_replayed() {
    let turn = Arc::new(AtomicUsize::new(0));
    let world = World::with(move |request| {
        let turn = turn.fetch_add(1, Ordering::SeqCst);
        let conditional = request.headers().contains_key("if-none-match");
        async move {
            let fields = [("cache-control", "max-age=60"), ("etag", "\"1\"")];
            match (turn, conditional) {
                (0, _) => response(200, &[("cache-control", "max-age=0"), ("etag", "\"1\"")], "page"),
                (_, true) => response(304, &[fields[0], fields[1], ("set-cookie", "session=first")], ""),
                (_, false) => response(500, &[], "unexpected"),
            }
        }
    })
    .await;
    world.get("/page").await;
    let first = world.get("/page").await;
    assert_eq!(
        (first.body(), &first.headers["set-cookie"]),
        ("page", &"session=first".parse().expect("text"))
    );
    let second = world.get("/page").await;
    assert!(second.cache_status().starts_with("Souk; hit"), "{}", second.cache_status());
    assert_eq!(second.body(), "page");
    assert!(!second.headers.contains_key("set-cookie"));
    assert_eq!(world.fetches(), 2);
}

#[tokio::test]
async fn one_503_does_not_switch_the_cache_of_a_hot_key_off() {
    let turn = Arc::new(AtomicUsize::new(0));
    let world = World::with(move |_| {
        let turn = turn.fetch_add(1, Ordering::SeqCst);
        async move {
            if turn == 0 {
                return response(503, &[], "down");
            }
            pause(100).await;
            response(200, &[("cache-control", "max-age=60")], "page")
        }
    })
    .await;
    assert_eq!(world.get("/hot").await.status, StatusCode::SERVICE_UNAVAILABLE);
    let all = join_all((0..20).map(|_| world.get("/hot"))).await;
    assert!(all.iter().all(|seen| seen.body() == "page"));
    assert_eq!(world.fetches(), 2, "the error, and one fetch for all of them");
    assert!(world.get("/hot").await.cache_status().starts_with("Souk; hit"));
}

#[tokio::test]
async fn unsafe_methods_pass_and_invalidate() {
    let world = World::with(|request| async move {
        match request.method().as_str() {
            "GET" => response(200, &[("cache-control", "max-age=60")], "page"),
            "POST" => {
                let body = request.into_body().collect().await.expect("a body").to_bytes();
                assert_eq!(body, "form");
                response(201, &[("location", "/created")], "ok")
            }
            _ => response(500, &[], "no"),
        }
    })
    .await;
    for target in ["/page", "/created"] {
        world.get(target).await;
        assert!(world.get(target).await.cache_status().starts_with("Souk; hit"));
    }
    let failed = world.send("M-SEARCH", "/page", &[]).await;
    assert_eq!(failed.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(world.get("/page").await.cache_status().starts_with("Souk; hit"), "a failure changes nothing");
    let post = world.request("POST", "/page", &[]).map(|_| Full::from("form"));
    let response = world.client.request(post).await.expect("a response");
    assert_eq!(response.headers()["cache-status"], "Souk; fwd=method; fwd-status=201; detail=method");
    for target in ["/page", "/created"] {
        assert!(world.get(target).await.cache_status().contains("fwd=uri-miss"), "{target}");
    }
}

#[tokio::test]
async fn what_is_counted_can_be_read() {
    let world = World::with(|_| async { response(200, &[("cache-control", "max-age=60")], "page") }).await;
    world.get("/a").await;
    world.get("/a").await;
    world.send("POST", "/a", &[]).await;
    let mut registry = prometheus_client::registry::Registry::default();
    world.proxy.register(&mut registry);
    world.get("/b").await;
    world.proxy.sample();
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("text");
    for line in [
        "souk_proxy_requests_total{outcome=\"hit\"} 1",
        "souk_proxy_requests_total{outcome=\"fill\"} 2",
        "souk_proxy_passes_total{reason=\"method\"} 1",
        "souk_proxy_fill_bytes_total 8",
        "souk_proxy_stored_keys 1",
    ] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
}
