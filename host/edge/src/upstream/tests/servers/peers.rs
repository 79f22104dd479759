//! Three nodes of one place before one server.

use souk_cache::{Key, Scheme};
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
            let path = request.uri().path().to_owned();
            let times = {
                let mut seen = seen.lock();
                seen.push(path.clone());
                seen.iter().filter(|at| **at == path).count()
            };
            let marks = [of("x-souk-peer"), of("x-souk-asks")].concat();
            let said = format!(
                "{} for {}, {times}, marked {marks:?}",
                of("x-forwarded-host"),
                of("x-forwarded-for")
            );
            let gate = Arc::clone(&gate);
            Box::pin(async move {
                gate.acquire().await.expect("it is never closed").forget();
                let tag = if path.ends_with("tagged") { "red" } else { "blue" };
                response(200, &[("cache-control", "max-age=60"), ("surrogate-key", tag)], said)
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

    /// Waits until each knows that the others are there.
    async fn know_each_other(&self) {
        let names: Vec<String> = self.peers.iter().map(|peer| peer.at.to_string()).collect();
        for (index, peer) in self.peers.iter().enumerate() {
            for (_, name) in names.iter().enumerate().filter(|(other, _)| *other != index) {
                let name = crate::upstream::PeerName { peer: name.clone() };
                let gauge = &peer.proxy.metrics().peer_up;
                until("a peer is there", || gauge.get_or_create(&name).get() == 1).await;
            }
        }
    }

    async fn ask(&self, peer: usize, target: &str, fields: &[(&str, &str)]) -> (StatusCode, String, String) {
        self.send("GET", peer, target, fields).await
    }

    async fn send(
        &self,
        method: &str,
        peer: usize,
        target: &str,
        fields: &[(&str, &str)],
    ) -> (StatusCode, String, String) {
        let mut request =
            Request::builder().method(method).uri(format!("http://{}{target}", self.peers[peer].at));
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
    place.know_each_other().await;
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
        // The home says that it has asked the upstream, and the two others that they have asked the home.
        let of_peers =
            [&one, &two, &three].into_iter().filter(|(_, _, how)| how.starts_with("Souk/127.0.0.1:"));
        assert_eq!(of_peers.count(), 2, "{one:?} {two:?} {three:?}");
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
    place.know_each_other().await;
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
    let away = place.shared(0, "away") + place.shared(1, "away");
    assert!(away >= 1, "it is left alone: {away}");
}

#[tokio::test]
async fn strangers_cannot_say_that_they_are_peers() {
    // The third node has another secret: what it says of itself is nobody's word.
    let place = Place::with([SECRET, SECRET, "fedcba9876543210fedcba9876543210"]).await;
    place.open.add_permits(10_000);
    for key in 0..6 {
        for peer in 0..3 {
            let fields = [("x-souk-peer", "1;00"), ("x-souk-asks", "alive"), ("x-forwarded-for", "6.6.6.6")];
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

#[tokio::test]
async fn what_came_by_a_peer_is_taken_back_by_its_tags() {
    let place = Place::with([SECRET; 3]).await;
    place.know_each_other().await;
    place.open.add_permits(10_000);
    for key in 0..6 {
        for peer in 0..3 {
            for target in [format!("/{key}/tagged"), format!("/{key}/other")] {
                let (_, body, _) = place.ask(peer, &target, &[]).await;
                assert!(body.contains(", 1, "), "one fetch for all: {body}");
            }
        }
    }
    let red = souk_commerce::purge::Forget { tags: vec!["red".to_owned()], ..Default::default() };
    for peer in 0..3 {
        place.peers[peer].proxy.purge(&red).await;
    }
    for key in 0..6 {
        for peer in 0..3 {
            let (_, body, how) = place.ask(peer, &format!("/{key}/tagged"), &[]).await;
            assert!(!body.contains(", 1, ") && how.contains("purged"), "{body}: {how}");
            let (_, body, how) = place.ask(peer, &format!("/{key}/other"), &[]).await;
            assert!(body.contains(", 1, ") && how.contains("Souk; hit"), "{body}: {how}");
        }
    }
}

#[tokio::test]
async fn a_page_that_was_changed_through_one_node_does_not_come_back_from_another() {
    let place = Place::with([SECRET; 3]).await;
    place.know_each_other().await;
    place.open.add_permits(10_000);
    for key in 0..9 {
        let target = format!("/{key}");
        for peer in 0..3 {
            place.ask(peer, &target, &[]).await;
        }
        let changes = key % 3;
        place.send("POST", changes, &target, &[]).await;
        let (_, body, how) = place.ask(changes, &target, &[]).await;
        assert!(body.contains(", 3, "), "asked for after the change: {body}: {how}");
    }
    let refused: u64 = (0..3).map(|peer| place.shared(peer, "taken_back")).sum();
    let own: u64 = (0..3).map(|peer| place.shared(peer, "own")).sum();
    assert!(
        refused > 0 && own > 0,
        "{refused} answers of peers were too old, {own} were this node's to fetch"
    );
}

#[tokio::test]
async fn a_home_without_room_is_passed_over() {
    let place = Place::with([SECRET; 3]).await;
    place.know_each_other().await;
    let home = place.peers[1].at.to_string();
    let is_its = |target: &String| {
        let key = Key::new("proxy", Scheme::Http, "shop.example", target).expect("a key");
        place.peers[0].proxy.homes(&key).expect("there are peers")[0].0 == home
    };
    let targets: Vec<String> = (0..400).map(|n| format!("/{n}")).filter(is_its).take(24).collect();
    assert_eq!(targets.len(), 24, "a third of 400 has its home there");
    let asks = join_all(targets.iter().map(|target| place.ask(0, target, &[])));
    let (answers, ()) = tokio::join!(asks, async {
        until("all are on their way", || place.fetches.lock().len() == 24).await;
        place.open.add_permits(24);
    });
    assert!(answers.iter().all(|(status, _, _)| *status == StatusCode::OK));
    assert!(place.shared(0, "full") >= 8, "sixteen are no load, and the rest go on");
    assert!(place.shared(0, "answered") >= 16);
}
