//! Three nodes of one place before one server.

use tokio::task::JoinHandle;

use super::*;

/// A node that can be killed.
struct Peer {
    at: SocketAddr,
    proxy: Proxy,
    running: JoinHandle<()>,
}

struct Place {
    peers: Vec<Peer>,
    fetches: Arc<parking_lot::Mutex<Vec<String>>>,
    /// Lets the server answer.
    open: Arc<tokio::sync::Semaphore>,
    client: Client<HttpConnector, Full<Bytes>>,
    _secrets: tempfile::TempDir,
}

impl Place {
    /// `secrets`: one for each node. Equal ones know each other.
    async fn with(secrets: [&str; 3]) -> Self {
        let fetches: Arc<parking_lot::Mutex<Vec<String>>> = Arc::default();
        let open = Arc::new(tokio::sync::Semaphore::new(0));
        let (seen, gate) = (Arc::clone(&fetches), Arc::clone(&open));
        let upstream = serve(move |request, _| {
            let of =
                |name: &str| request.headers().get(name).map_or("", |value| value.to_str().expect("text"));
            seen.lock().push(request.uri().path().to_owned());
            let said = format!(
                "{} for {} marked {:?}",
                of("x-forwarded-host"),
                of("x-forwarded-for"),
                of("x-souk-peer")
            );
            let gate = Arc::clone(&gate);
            Box::pin(async move {
                gate.acquire().await.expect("it is never closed").forget();
                response(200, &[("cache-control", "max-age=60")], said)
            })
        })
        .await;
        let directory = tempfile::tempdir().expect("a directory");
        // Who the others are must be known before any of them is made.
        let mut listeners = Vec::new();
        for _ in 0..3 {
            listeners.push(TcpListener::bind(("127.0.0.1", 0)).await.expect("a port"));
        }
        let urls: Vec<String> =
            listeners.iter().map(|at| format!("http://{}", at.local_addr().expect("bound"))).collect();
        let mut peers = Vec::new();
        for (index, listener) in listeners.into_iter().enumerate() {
            let secret = directory.path().join(format!("secret-{index}"));
            std::fs::write(&secret, secrets[index]).expect("written");
            let at = listener.local_addr().expect("bound");
            let mut config = ProxyConfig::new(at, &format!("http://{upstream}/base")).expect("a config");
            let others: Vec<String> = urls.iter().filter(|url| **url != urls[index]).cloned().collect();
            config.peers = Some(souk_config::PeersConfig::new(&urls[index], &others, secret).expect("peers"));
            let proxy = Proxy::new(config).expect("a proxy");
            let served = proxy.clone();
            let running = tokio::spawn(async move {
                let mut connections = tokio::task::JoinSet::new();
                while let Ok((stream, addr)) = listener.accept().await {
                    let proxy = served.clone();
                    connections.spawn(async move {
                        let peer = crate::listen::Peer { addr, tls: false };
                        let service = service_fn(move |request: Request<Incoming>| {
                            let (proxy, request) =
                                (proxy.clone(), request.map(crate::http::RequestBody::from));
                            async move { Ok::<_, Infallible>(proxy.handle(request, peer, now_ms()).await) }
                        });
                        let http1 = hyper::server::conn::http1::Builder::new();
                        drop(http1.serve_connection(TokioIo::new(stream), service).await);
                    });
                }
            });
            peers.push(Peer { at, proxy, running });
        }
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { peers, fetches, open, client, _secrets: directory }
    }

    async fn ask(&self, peer: usize, target: &str, fields: &[(&str, &str)]) -> (StatusCode, String, String) {
        let mut request = Request::builder().uri(format!("http://{}{target}", self.peers[peer].at));
        request = request.header("host", "shop.example");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let sent = self.client.request(request.body(Full::default()).expect("a request"));
        let response = sent.await.expect("a response");
        let status = response.status();
        let how =
            response.headers().get_all("cache-status").iter().map(|value| value.to_str().expect("text"));
        let how = how.collect::<Vec<_>>().join(" | ");
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned(), how)
    }

    fn fetches(&self, path: &str) -> usize {
        self.fetches.lock().iter().filter(|at| *at == path).count()
    }

    fn shared(&self, peer: usize, outcome: &'static str) -> u64 {
        let outcome = crate::upstream::Outcome { outcome };
        self.peers[peer].proxy.metrics().peer_fills.get_or_create(&outcome).get()
    }
}

const SECRET: &str = "0123456789abcdef0123456789abcdef";

#[tokio::test]
async fn three_nodes_that_are_asked_at_once_fetch_once() {
    let place = Place::with([SECRET; 3]).await;
    for key in 0..8 {
        let target = format!("/{key}");
        let path = format!("/base/{key}");
        let (one, two, three, ()) = tokio::join!(
            place.ask(0, &target, &[]),
            place.ask(1, &target, &[]),
            place.ask(2, &target, &[]),
            async {
                until("the server is asked", || place.fetches(&path) > 0).await;
                // Whoever else would ask it has had time to.
                pause(50).await;
                place.open.add_permits(1);
            }
        );
        for (status, body, how) in [&one, &two, &three] {
            assert_eq!(*status, StatusCode::OK);
            assert!(
                body.starts_with("shop.example for 127.0.0.1") && body.ends_with("marked \"\""),
                "{body}: {how}"
            );
        }
        assert_eq!(place.fetches(&path), 1, "{one:?} {two:?} {three:?}");
        // Now each has it, and asks nobody.
        for peer in 0..3 {
            let (_, _, how) = place.ask(peer, &target, &[]).await;
            assert!(how.contains("Souk; hit"), "{how}");
        }
        assert_eq!(place.fetches(&path), 1);
    }
    let answered: u64 = (0..3).map(|peer| place.shared(peer, "answered")).sum();
    assert_eq!(answered, 16, "two of three nodes asked the home, for each key");
}

#[tokio::test]
async fn a_node_that_is_killed_costs_no_answer_and_at_most_a_fetch_for_each_survivor() {
    let mut place = Place::with([SECRET; 3]).await;
    place.open.add_permits(10_000);
    let killed = place.peers.remove(2);
    killed.running.abort();
    drop(killed.running.await);
    drop(killed.proxy);
    for key in 0..40 {
        let target = format!("/{key}");
        let (one, two) = tokio::join!(place.ask(0, &target, &[]), place.ask(1, &target, &[]));
        assert_eq!((one.0, two.0), (StatusCode::OK, StatusCode::OK));
        assert!(place.fetches(&format!("/base/{key}")) <= 2);
    }
    let failed = place.shared(0, "failed") + place.shared(1, "failed");
    let away = place.shared(0, "away") + place.shared(1, "away");
    assert!(failed >= 1 && away >= 1, "found away once, and left alone then: {failed}, {away}");
}

#[tokio::test]
async fn strangers_cannot_say_that_they_are_peers() {
    // The third node has another secret: what it says of itself is nobody's word.
    let place = Place::with([SECRET, SECRET, "fedcba9876543210fedcba9876543210"]).await;
    place.open.add_permits(10_000);
    for key in 0..6 {
        for peer in 0..3 {
            let fields = [("x-souk-peer", "1;00"), ("x-forwarded-for", "6.6.6.6")];
            let (status, body, how) = place.ask(peer, &format!("/{key}"), &fields).await;
            assert_eq!(status, StatusCode::OK, "{how}");
            assert!(!body.contains("6.6.6.6") && body.ends_with("marked \"\""), "{body}");
        }
    }
}

#[tokio::test]
async fn a_secret_that_is_none_is_refused_by_name() {
    let directory = tempfile::tempdir().expect("a directory");
    let secret = directory.path().join("secret");
    std::fs::write(&secret, "short\n").expect("written");
    let mut config = ProxyConfig::new(([127, 0, 0, 1], 0).into(), "http://127.0.0.1:1").expect("a config");
    let peers = souk_config::PeersConfig::new("http://a", &["http://b".to_owned()], secret);
    config.peers = Some(peers.expect("peers"));
    let refused = Proxy::new(config).err().expect("refused").to_string();
    assert!(refused.ends_with("it has 5 bytes, and at least 32 are needed"), "{refused}");
}
