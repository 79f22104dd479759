//! HTTP/2 to the servers: one connection for many requests, and what happens when it goes.

use super::*;
use crate::http::{BodyError, RequestBody};
use crate::upstream::STREAM_WINDOW_BYTES;

/// An HTTP/2 server in the clear.
struct H2 {
    at: SocketAddr,
    connections: Arc<AtomicUsize>,
    /// Closes the connections that are open: in order (GOAWAY, after what is running), or at once.
    close: Arc<tokio::sync::watch::Sender<Closing>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closing {
    No,
    InOrder(u32),
    AtOnce(u32),
}

impl H2 {
    async fn start<F>(handler: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let at = listener.local_addr().expect("bound");
        let connections = Arc::new(AtomicUsize::new(0));
        let close = Arc::new(tokio::sync::watch::Sender::new(Closing::No));
        let (counted, closing) = (Arc::clone(&connections), Arc::clone(&close));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                let handler = handler.clone();
                let mut closing = closing.subscribe();
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        let answer = handler(request);
                        async move { Ok::<_, Infallible>(answer.await) }
                    });
                    let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let mut serving = std::pin::pin!(http2.serve_connection(TokioIo::new(stream), service));
                    loop {
                        tokio::select! {
                            _ = &mut serving => return,
                            changed = closing.changed() => match changed.map(|()| *closing.borrow_and_update()) {
                                Ok(Closing::InOrder(_)) => serving.as_mut().graceful_shutdown(),
                                Ok(Closing::No) => {}
                                Ok(Closing::AtOnce(_)) | Err(_) => return,
                            },
                        }
                    }
                });
            }
        });
        Self { at, connections, close }
    }

    fn url(&self) -> String {
        format!("http://{};h2c", self.at)
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

const NO_STORE: (&str, &str) = ("cache-control", "no-store");

#[tokio::test]
async fn many_requests_share_one_connection() {
    // Answers only when all of them are there: they are on their way at the same time.
    let together = Arc::new(tokio::sync::Barrier::new(50));
    let server = H2::start(move |request| {
        let together = Arc::clone(&together);
        async move {
            assert_eq!(request.version(), http::Version::HTTP_2);
            together.wait().await;
            response(200, &[NO_STORE], request.uri().to_string())
        }
    })
    .await;
    let world = before(&[server.url()], |_| {}).await;
    let targets: Vec<_> = (0..50).map(|n| format!("/{n}")).collect();
    let all = join_all(targets.iter().map(|target| world.get(target))).await;
    for (seen, target) in all.iter().zip(&targets) {
        assert_eq!(seen.body(), format!("http://{}{target}", server.at), "its own authority in :authority");
        assert_eq!(seen.headers["via"], "2 souk");
    }
    assert_eq!(server.connections(), 1);
    let opened = format!("souk_proxy_server_connections_total{{server=\"{}\",protocol=\"h2\"}}", server.at);
    assert_eq!(metric(&world, &opened), 1);
}

/// Readers that stand still: each uses up its stream's window, and all of them more than 4 MiB, which was once the
/// connection's.
const STANDING: usize = 40;
const PIECE: usize = 16 * 1024;

#[tokio::test]
async fn readers_that_stand_still_hold_their_own_streams_and_no_others() {
    let made: Arc<[AtomicUsize; STANDING]> = Arc::new(std::array::from_fn(|_| AtomicUsize::new(0)));
    let counted = Arc::clone(&made);
    let server = H2::start(move |request| {
        let counted = Arc::clone(&counted);
        async move {
            let Some(number) = request.uri().path().strip_prefix("/endless/") else {
                return response(200, &[("cache-control", "max-age=60")], "x".repeat(1 << 20));
            };
            let number: usize = number.parse().expect("a number");
            let pieces = futures_util::stream::repeat_with(move || {
                counted[number].fetch_add(PIECE, Ordering::SeqCst);
                Ok::<_, BodyError>(Frame::data(Bytes::from_static(&[0; PIECE])))
            });
            let mut endless = Response::new(http_body_util::StreamBody::new(pieces).boxed_unsync());
            endless.headers_mut().insert("cache-control", "no-store".parse().expect("a value"));
            endless
        }
    })
    .await;
    let world = before(&[server.url()], |_| {}).await;
    assert_eq!(world.get("/first").await.body().len(), 1 << 20);
    let peer = Peer { addr: ([127, 0, 0, 1], 1).into(), tls: false };
    let mut standing = Vec::new();
    for number in 0..STANDING {
        let request = Request::get(format!("/endless/{number}")).header("host", "shop.example");
        let request = request.body(RequestBody::empty()).expect("a request");
        // Its head is there, and nobody reads on.
        standing.push(world.proxy.handle(request, peer, now_ms()).await);
    }
    let window = STREAM_WINDOW_BYTES as usize;
    until("every stream has sent what it may", || {
        made.iter().all(|made| made.load(Ordering::SeqCst) >= window)
    })
    .await;
    for path in ["/second", "/third"] {
        assert_eq!(world.get(path).await.body().len(), 1 << 20, "{path} stands behind them");
    }
    assert_eq!(server.connections(), 1, "on the same connection");
    for made in made.iter() {
        let held = made.load(Ordering::SeqCst);
        assert!(held <= window + 2 * PIECE, "{held} bytes are held for one reader");
    }
    drop(standing);
}

#[tokio::test]
async fn the_shoppers_host_is_kept_where_the_settings_say_so() {
    let server =
        H2::start(|request| async move { response(200, &[NO_STORE], request.uri().to_string()) }).await;
    let world =
        before(&[server.url()], |config| config.upstream.host = souk_config::UpstreamHost::Preserve).await;
    assert_eq!(world.get("/a").await.body(), format!("http://{}/a", world.at));
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn a_connection_that_breaks_fails_nothing_that_can_be_sent_again() {
    let waiting = Arc::new(AtomicUsize::new(0));
    let go_on = Arc::new(tokio::sync::Semaphore::new(0));
    let (counted, held) = (Arc::clone(&waiting), Arc::clone(&go_on));
    let server = H2::start(move |request| {
        let (counted, held) = (Arc::clone(&counted), Arc::clone(&held));
        async move {
            if request.uri().path().starts_with("/held") {
                counted.fetch_add(1, Ordering::SeqCst);
                drop(held.acquire().await);
            }
            response(200, &[NO_STORE], "ok")
        }
    })
    .await;
    let world = before(&[server.url()], |_| {}).await;
    assert_eq!(world.get("/warm").await.body(), "ok");
    let gets = join_all((0..10).map(|n| async move { format!("/held/{n}") })).await;
    let (seen, posted, ()) = tokio::join!(
        join_all(gets.iter().map(|target| world.get(target))),
        world.send("POST", "/held/post", &[]),
        async {
            until("all are there", || waiting.load(Ordering::SeqCst) == 11).await;
            server.close.send_replace(Closing::AtOnce(1));
            // Those that may be sent again come back over a new connection.
            until("they came again", || waiting.load(Ordering::SeqCst) >= 21).await;
            go_on.add_permits(1_000);
        }
    );
    assert!(seen.iter().all(|seen| seen.body() == "ok"));
    assert_eq!(posted.status, StatusCode::BAD_GATEWAY, "the server may have done it");
    assert_eq!(waiting.load(Ordering::SeqCst), 21);
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn a_goaway_costs_nobody_an_answer() {
    let server = H2::start(|_| async { response(200, &[NO_STORE], "ok") }).await;
    let world = before(&[server.url()], |_| {}).await;
    let mut number = 0;
    for round in 0..20_u32 {
        server.close.send_replace(Closing::InOrder(round));
        for _ in 0..5 {
            number += 1;
            let seen = if number % 2 == 0 {
                world.get(&format!("/{number}")).await
            } else {
                world.send("PUT", &format!("/{number}"), &[]).await
            };
            assert_eq!(seen.body.as_deref(), Some("ok"), "{number}: {:?}", seen.headers);
        }
    }
    assert!(server.connections() >= 2);
}

#[tokio::test]
async fn tls_agrees_on_http2_and_falls_back_to_http1() {
    for (offered, version) in
        [(&[&b"h2"[..], b"http/1.1"][..], "HTTP/2.0"), (&[&b"http/1.1"[..]][..], "HTTP/1.1")]
    {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let key = rustls_pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .expect("a server");
        tls.alpn_protocols = offered.iter().map(|name| name.to_vec()).collect();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(|request: Request<Incoming>| async move {
                        let version = format!("{:?}", request.version());
                        Ok::<_, Infallible>(response(200, &[NO_STORE], version))
                    });
                    let server = auto::Builder::new(TokioExecutor::new());
                    drop(server.serve_connection(TokioIo::new(stream), service).await);
                });
            }
        });
        let directory = tempfile::tempdir().expect("a directory");
        let ca = directory.path().join("ca.pem");
        std::fs::write(&ca, made.cert.pem()).expect("written");
        let secure = |url: String| before_with(url, ca.clone());
        let world = secure(format!("https://localhost:{port}")).await;
        for n in 0..3 {
            assert_eq!(world.get(&format!("/{n}")).await.body(), version);
        }
        let old = secure(format!("https://localhost:{port};http1")).await;
        assert_eq!(old.get("/").await.body(), "HTTP/1.1");
    }
}

async fn before_with(url: String, ca: std::path::PathBuf) -> World {
    before(&[url], |config| config.upstream.ca = Some(ca)).await
}
