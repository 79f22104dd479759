//! Several servers of one upstream, some of which fail in one of the ways in which servers fail.

use std::sync::atomic::AtomicBool;

use hyper_util::server::conn::auto;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::*;

mod dns;
mod http2;
mod peers;
mod retries;

/// What a server does with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    /// Answers 200 with its name.
    Well,
    /// Reads the head of a request and closes the connection.
    Breaks,
    /// Reads and says nothing.
    Hangs,
    /// Answers 503, to be left alone for an hour.
    Unavailable,
    /// Answers 500.
    Mistaken,
}

/// A server whose mood the test changes.
#[derive(Clone)]
struct Moody {
    at: SocketAddr,
    mood: Arc<parking_lot::Mutex<Mood>>,
    /// Requests whose head it has read, checks not among them.
    asked: Arc<AtomicUsize>,
    healthy: Arc<AtomicBool>,
}

impl Moody {
    async fn start(mood: Mood) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let server = Self {
            at: listener.local_addr().expect("bound"),
            mood: Arc::new(parking_lot::Mutex::new(mood)),
            asked: Arc::default(),
            healthy: Arc::new(AtomicBool::new(true)),
        };
        let serving = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = serving.clone();
                tokio::spawn(async move {
                    // Ends with an error where the server breaks off.
                    let service = service_fn(move |request| server.clone().serve(request));
                    let http1 = hyper::server::conn::http1::Builder::new();
                    drop(http1.serve_connection(TokioIo::new(stream), service).await);
                });
            }
        });
        server
    }

    async fn serve(self, request: Request<Incoming>) -> Result<Response<Body>, &'static str> {
        if request.uri().path() == "/healthz" {
            let status = if self.healthy.load(Ordering::SeqCst) { 200 } else { 500 };
            return Ok(response(status, &[], ""));
        }
        self.asked.fetch_add(1, Ordering::SeqCst);
        let mood = *self.mood.lock();
        let no_store = ("cache-control", "no-store");
        match mood {
            Mood::Well => {
                let body = request.into_body().collect().await.map_err(|_| "half a body")?.to_bytes();
                Ok(response(200, &[no_store], format!("{} {}", self.at, String::from_utf8_lossy(&body))))
            }
            Mood::Breaks => Err("in a mood"),
            Mood::Hangs => std::future::pending().await,
            Mood::Unavailable => Ok(response(503, &[no_store, ("retry-after", "3600")], "later")),
            Mood::Mistaken => Ok(response(500, &[no_store], "oops")),
        }
    }

    fn set(&self, mood: Mood) {
        *self.mood.lock() = mood;
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn url(&self) -> String {
        format!("http://{}", self.at)
    }
}

/// An address where nobody listens: the port was free a moment ago.
async fn nobody() -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    format!("http://{}", listener.local_addr().expect("bound"))
}

/// A proxy before all of `servers`.
async fn before(servers: &[String], change: impl FnOnce(&mut ProxyConfig)) -> World {
    World::before(&servers[0], Arc::default(), |config| {
        for server in &servers[1..] {
            config.upstream.servers.push(server.parse().expect("a server"));
        }
        change(config);
    })
    .await
}

/// Reads the metrics as an operator does.
fn metrics(world: &World) -> String {
    let mut registry = prometheus_client::registry::Registry::default();
    world.proxy.register(&mut registry);
    world.proxy.sample();
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("text");
    text
}

fn metric(world: &World, line: &str) -> u64 {
    let text = metrics(world);
    let found = text.lines().find_map(|at| at.strip_prefix(line)?.trim().parse().ok());
    found.unwrap_or(0)
}

/// The states of all addresses, in the order in which the servers are configured.
fn states(world: &World) -> Vec<String> {
    let report = world.proxy.upstreams();
    let servers = report["servers"].as_array().expect("a list");
    let addresses = servers.iter().flat_map(|server| server["addresses"].as_array().expect("a list"));
    addresses.map(|address| address["state"].as_str().expect("text").to_owned()).collect()
}

async fn until(what: &str, fits: impl Fn() -> bool) {
    for _ in 0..10_000 {
        if fits() {
            return;
        }
        pause(2).await;
    }
    panic!("never: {what}");
}

#[tokio::test]
async fn requests_are_shared_and_a_server_that_refuses_is_left_out() {
    let (a, b) = (Moody::start(Mood::Well).await, Moody::start(Mood::Well).await);
    let world = before(&[nobody().await, a.url(), b.url()], |_| {}).await;
    let mut tried_twice = 0;
    for n in 0..60 {
        let seen = world.get(&format!("/{n}")).await;
        assert_eq!(seen.status, StatusCode::OK, "{n}: nobody sees the one that is down");
        tried_twice += usize::from(seen.cache_status().ends_with("souk-tries=2"));
    }
    // How many each gets is a matter of its latency, and with it of the machine; `balance` has a clock of its own.
    assert!(a.asked() > 0 && b.asked() > 0, "{} and {}", a.asked(), b.asked());
    assert_eq!(a.asked() + b.asked(), 60);
    let refused = metric(&world, "souk_proxy_retries_total{reason=\"no_connection\"}");
    assert_eq!(refused as usize, tried_twice, "each says that it took two tries");
    // Five refusals in a row, and a trial or two where the machine is slow.
    assert!(tried_twice <= 7, "it is out by then: {tried_twice}");
}

#[tokio::test]
async fn a_check_that_fails_takes_a_server_out_and_one_that_passes_brings_it_back() {
    let (a, b) = (Moody::start(Mood::Well).await, Moody::start(Mood::Well).await);
    let world = before(&[a.url(), b.url()], |config| {
        let check = souk_config::HealthCheck::new("/healthz").expect("a path");
        config.upstream.health_check =
            Some(check.with_interval(Duration::from_millis(100)).expect("an interval"));
    })
    .await;
    a.healthy.store(false, Ordering::SeqCst);
    until("a fails its checks", || states(&world)[0] == "failing").await;
    let before = a.asked();
    for n in 0..30 {
        assert_eq!(world.get(&format!("/{n}")).await.status, StatusCode::OK);
    }
    assert_eq!(a.asked(), before, "nothing is sent to it");
    assert_eq!(
        metric(&world, &format!("souk_proxy_server_ejections_total{{server=\"{}\",reason=\"check\"}}", a.at)),
        1
    );

    // Where all of them fail, an answer that may come is better than none.
    b.healthy.store(false, Ordering::SeqCst);
    until("b fails too", || states(&world) == ["failing", "failing"]).await;
    assert_eq!(world.get("/panic").await.status, StatusCode::OK);

    a.healthy.store(true, Ordering::SeqCst);
    until("a is back", || states(&world)[0] == "returning").await;
    let (at_a, at_b) = (a.asked(), b.asked());
    for n in 0..10 {
        assert_eq!(world.get(&format!("/back/{n}")).await.status, StatusCode::OK);
    }
    assert_eq!((a.asked() - at_a, b.asked() - at_b), (10, 0));
    assert!(
        metric(&world, &format!("souk_proxy_server_checks_total{{server=\"{}\",outcome=\"failed\"}}", a.at))
            >= 3
    );
}

#[tokio::test]
async fn a_page_with_a_mistake_takes_no_server_away() {
    let (a, b) = (Moody::start(Mood::Mistaken).await, Moody::start(Mood::Mistaken).await);
    let world = before(&[a.url(), b.url()], |_| {}).await;
    for n in 0..40 {
        let seen = world.get(&format!("/{n}")).await;
        assert_eq!((seen.status.as_u16(), seen.body()), (500, "oops"));
    }
    assert_eq!(a.asked() + b.asked(), 40, "and is asked for once");
    assert_eq!(states(&world), ["serving", "serving"]);
}

#[tokio::test]
async fn the_only_server_is_asked_whatever_it_does() {
    let a = Moody::start(Mood::Breaks).await;
    let world = before(&[a.url()], |_| {}).await;
    for n in 0..20 {
        assert_eq!(world.send("POST", &format!("/{n}"), &[]).await.status, StatusCode::BAD_GATEWAY);
    }
    a.set(Mood::Well);
    assert_eq!(world.get("/").await.status, StatusCode::OK, "as soon as it is well");
    assert_eq!(states(&world), ["serving"]);
}

#[tokio::test]
async fn operators_see_the_servers_on_their_own_port() {
    let a = Moody::start(Mood::Well).await;
    let mut config =
        ProxyConfig::new(([127, 0, 0, 1], 0).into(), &format!("{};weight=3", a.url())).expect("a config");
    config.upstream.servers.push(nobody().await.parse().expect("a server"));
    config.admin = Some(([127, 0, 0, 1], 0).into());
    let stop = CancellationToken::new();
    let running = crate::run_proxy(config, stop.clone()).await.expect("it listens");
    let client: Client<HttpConnector, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let get = |at: SocketAddr, path: &str| {
        let request = Request::builder().uri(format!("http://{at}{path}")).body(Full::default());
        let answer = client.request(request.expect("a request"));
        async move { answer.await.expect("a response").into_body().collect().await.expect("a body").to_bytes() }
    };
    let public = running.listening.http.expect("the public port");
    let admin = running.listening.admin.expect("the admin port");
    assert!(!get(public, "/upstreams").await.starts_with(b"{"), "not for shoppers");
    let page: Value = serde_json::from_slice(&get(admin, "/upstreams").await).expect("JSON");
    assert_eq!(page["servers"][0]["server"], a.at.to_string());
    assert_eq!(page["servers"][0]["weight"], 3.0);
    assert_eq!(page["servers"][0]["addresses"][0]["state"], "serving");
    assert_eq!(page["in_flight_max"], 1_024);
    let text = get(admin, "/metrics").await;
    let text = String::from_utf8_lossy(&text);
    let line = format!("souk_proxy_server_addresses{{server=\"{}\",state=\"serving\"}} 1", a.at);
    assert!(text.contains(&line), "{line} in\n{text}");
    stop.cancel();
    running.done.await.expect("it ends in order");
}

#[tokio::test]
async fn who_the_client_is_says_whoever_is_trusted() {
    let upstream = serve(|request, _| {
        let of = |name: &str| request.headers().get(name).map_or("-", |value| value.to_str().expect("text"));
        let said = format!("{} {} {}", of("x-forwarded-for"), of("x-forwarded-proto"), of("forwarded"));
        Box::pin(async move { response(200, &[("cache-control", "max-age=60")], said) })
    })
    .await;
    let upstream = format!("http://{upstream}");
    let says = [("x-forwarded-for", "6.6.6.6, 203.0.113.9"), ("x-forwarded-proto", "https")];
    let servers = [upstream];
    let wary = before(&servers, |_| {}).await;
    assert_eq!(wary.send("GET", "/a", &says).await.body(), "127.0.0.1 http -");
    let trusting = before(&servers, |config| {
        config.upstream.trusted = vec!["127.0.0.0/8".parse().expect("a range")];
    })
    .await;
    assert_eq!(trusting.send("GET", "/a", &says).await.body(), "203.0.113.9, 127.0.0.1 https -");
    // The scheme is part of the key: what was made for https is not shown to http.
    assert_eq!(trusting.send("GET", "/a", &[]).await.body(), "127.0.0.1 http -");
    let again = trusting.send("GET", "/a", &says).await;
    assert!(again.cache_status().starts_with("Souk; hit"), "{}", again.cache_status());
}

#[tokio::test]
async fn both_ways_are_signed_in_via() {
    fn via(headers: &http::HeaderMap) -> String {
        let lines = headers.get_all("via").iter().map(|value| value.to_str().expect("text"));
        lines.collect::<Vec<_>>().join(", ")
    }
    let world = World::with(|request| async move {
        let fields = [("via", "1.0 inner"), ("cache-control", "max-age=60")];
        response(200, &fields, via(request.headers()))
    })
    .await;
    let seen = world.send("GET", "/", &[("via", "2 outer")]).await;
    assert_eq!((seen.body(), via(&seen.headers).as_str()), ("2 outer, 1.1 souk", "1.0 inner, 1.1 souk"));
    assert_eq!(via(&world.get("/").await.headers), "1.0 inner, 1.1 souk", "once, from the cache too");
}
