//! What the upstream is told, what is shown of it, and what a failure of it is called.

use super::*;

#[tokio::test]
async fn the_upstream_sees_the_nodes_words_and_not_the_clients() {
    let world = World::with(|request| async move {
        let mut seen: HashMap<String, String> = HashMap::new();
        for (name, value) in request.headers() {
            seen.entry(name.to_string()).or_default().push_str(value.to_str().expect("text"));
        }
        response(200, &[], serde_json::to_string(&seen).expect("JSON"))
    })
    .await;
    let spoofed = [
        ("x-forwarded-host", "evil"),
        ("x-forwarded-for", "6.6.6.6"),
        ("x-forwarded-scheme", "evil"),
        ("forwarded", "host=evil"),
        ("x-original-url", "/evil"),
        ("x-rewrite-url", "/evil"),
        ("x-http-method-override", "DELETE"),
        ("x-real-ip", "6.6.6.6"),
        // What a CGI, WSGI or PHP upstream takes for the same fields.
        ("x_forwarded_host", "evil"),
        ("X-Forwarded_Proto", "https"),
        ("x_http_method_override", "DELETE"),
        ("any_other", "1"),
        ("connection", "x-hop, cdn-loop"),
        ("x-hop", "1"),
        ("te", "trailers"),
        ("cookie", "kept=1"),
        ("cdn-loop", "other"),
    ];
    let seen = world.send("GET", "/echo", &spoofed).await;
    let seen: HashMap<String, String> = serde_json::from_str(seen.body()).expect("JSON");
    assert_eq!(seen["x-forwarded-host"], world.at.to_string());
    assert_eq!(seen["x-forwarded-for"], "127.0.0.1");
    assert_eq!(seen["x-forwarded-proto"], "http");
    assert!(seen.keys().all(|name| !name.contains('_')), "{seen:?}");
    assert_eq!(seen["cookie"], "kept=1");
    assert_eq!(seen["via"], "1.1 souk");
    assert!(seen["cdn-loop"].starts_with("othersouk-"), "{}", seen["cdn-loop"]);
    assert_ne!(seen["host"], world.at.to_string(), "the upstream's own authority");
    for gone in [
        "forwarded",
        "x-original-url",
        "x-rewrite-url",
        "x-http-method-override",
        "x-real-ip",
        "x-hop",
        "te",
        "x-forwarded-scheme",
    ] {
        assert!(!seen.contains_key(gone), "{gone}");
    }
}

#[tokio::test]
async fn a_loop_is_seen() {
    // A proxy whose upstream is itself: the port is known before the proxy is made.
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let at = listener.local_addr().expect("bound");
    let config = ProxyConfig::new(at, &format!("http://{at}")).expect("a config");
    let proxy = Proxy::new(config).expect("a proxy");
    tokio::spawn(async move {
        while let Ok((stream, peer)) = listener.accept().await {
            let proxy = proxy.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let proxy = proxy.clone();
                    async move {
                        let request = Request::map(request, |body: Incoming| body.into());
                        Ok::<_, Infallible>(proxy.handle(request, plain(peer), now_ms()).await)
                    }
                });
                drop(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await,
                );
            });
        }
    });
    let client: Client<HttpConnector, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let request = Request::builder().uri(format!("http://{at}/x")).body(Full::default()).expect("a request");
    let seen = client.request(request).await.expect("a response");
    assert_eq!(seen.status(), StatusCode::LOOP_DETECTED);
}

#[tokio::test]
async fn failures_of_the_upstream_have_names() {
    // Nobody listens here: the port was free a moment ago.
    let gone = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port").local_addr().expect("bound");
    let world = World::before(&format!("http://{gone}"), Arc::default(), |_| {}).await;
    let all = join_all((0..10).map(|_| world.get("/a"))).await;
    for seen in all {
        assert_eq!(seen.status, StatusCode::BAD_GATEWAY);
        assert_eq!(seen.headers["content-type"], "application/problem+json");
        assert!(seen.body().contains("\"code\":\"upstream_unreachable\""), "{}", seen.body());
        assert_eq!(seen.cache_status(), "Souk; detail=upstream_unreachable");
    }

    // It accepts and says nothing.
    let silent = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let at = silent.local_addr().expect("bound");
    let world = World::before(&format!("http://{at}"), Arc::default(), |config| {
        config.upstream.first_byte_timeout = Duration::from_millis(500);
        config.upstream.in_flight_max = 1;
    })
    .await;
    let (first, second) = tokio::join!(world.get("/a"), async {
        while in_flight(&world.proxy) == 0 {
            pause(1).await;
        }
        world.get("/b").await
    });
    assert_eq!(first.status, StatusCode::GATEWAY_TIMEOUT);
    assert!(first.body().contains("upstream_timeout"));
    assert_eq!(second.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(second.body().contains("upstream_busy"));
    drop(silent);
}

#[tokio::test]
async fn an_https_upstream_is_verified() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let key = rustls_pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("a server");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = service_fn(|_| async {
                    Ok::<_, Infallible>(response(200, &[("cache-control", "max-age=60")], "sealed"))
                });
                let serving = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                drop(serving.await);
            });
        }
    });
    let url = format!("https://localhost:{port}");
    let distrustful = World::before(&url, Arc::default(), |_| {}).await;
    let refused = distrustful.get("/a").await;
    assert_eq!(refused.status, StatusCode::BAD_GATEWAY);
    assert!(refused.body().contains("upstream_tls"), "{}", refused.body());

    let directory = tempfile::tempdir().expect("a directory");
    let ca = directory.path().join("ca.pem");
    std::fs::write(&ca, made.cert.pem()).expect("written");
    let trusting = World::before(&url, Arc::default(), |config| config.upstream.ca = Some(ca.clone())).await;
    assert_eq!(trusting.get("/a").await.body(), "sealed");
    std::fs::write(&ca, "").expect("written");
    let mut config = ProxyConfig::new(([127, 0, 0, 1], 0).into(), &url).expect("a config");
    config.upstream.ca = Some(ca);
    assert!(Proxy::new(config).err().expect("refused").to_string().ends_with("it holds no certificate"));
}

#[tokio::test]
async fn a_body_that_falls_silent_is_aborted() {
    let (feed, body) = fed();
    let body = Arc::new(parking_lot::Mutex::new(Some(body)));
    let upstream = serve(move |_, _| {
        let body = body.lock().take().expect("one fetch");
        Box::pin(async move {
            let mut response = Response::new(body);
            response.headers_mut().insert("cache-control", "max-age=60".parse().expect("a value"));
            response
        })
    })
    .await;
    let world = World::before(&format!("http://{upstream}"), Arc::default(), |config| {
        config.upstream.idle_timeout = Duration::from_millis(100);
    })
    .await;
    feed.send(Ok("half")).await.expect("read");
    assert_eq!(world.get("/a").await.body, None);
    assert_eq!(world.proxy.metrics().fills_broken.get(), 1);
}

#[tokio::test]
async fn refused_before_the_upstream_hears_of_it() {
    let world = World::with(|_| async { response(200, &[], "x") }).await;
    let fat = world.request("GET", "/a", &[]).map(|_| Full::from("body"));
    assert_eq!(world.client.request(fat).await.expect("a response").status(), StatusCode::BAD_REQUEST);
    assert_eq!(world.get("/a%00").await.status, StatusCode::BAD_REQUEST);
    assert_eq!(world.send("TRACE", "/a", &[]).await.status, StatusCode::METHOD_NOT_ALLOWED);
    let only = world.send("GET", "/a", &[("cache-control", "only-if-cached")]).await;
    assert_eq!(only.status, StatusCode::GATEWAY_TIMEOUT);
    let mut raw = TcpStream::connect(world.at).await.expect("connected");
    raw.write_all(b"GET /a HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n").await.expect("written");
    let mut answer = [0; 64];
    let read = raw.read(&mut answer).await.expect("an answer");
    assert!(answer[..read].starts_with(b"HTTP/1.1 400"), "{}", String::from_utf8_lossy(&answer[..read]));
    assert_eq!(world.fetches(), 0);
}

#[tokio::test]
async fn a_prefix_and_a_redirect_stay_the_nodes_own() {
    let world = World::with(|request| async move {
        let host = request.headers()["host"].to_str().expect("text").to_owned();
        let location = format!("http://{host}/base/next?x=1");
        response(302, &[("location", location.as_str()), ("x-path", request.uri().path())], "")
    })
    .await;
    // The same upstream again, under a path.
    let direct = world.get("/base/here").await;
    assert_eq!(direct.headers["location"], "/base/next?x=1");
    let upstream = serve(|request, _| {
        Box::pin(
            async move { response(302, &[("location", "/base/next"), ("x-path", request.uri().path())], "") },
        )
    })
    .await;
    let prefixed = World::before(&format!("http://{upstream}/base/"), Arc::default(), |_| {}).await;
    let seen = prefixed.get("/here").await;
    assert_eq!(
        (seen.headers["x-path"].as_bytes(), seen.headers["location"].as_bytes()),
        (&b"/base/here"[..], &b"/next"[..])
    );
}

#[tokio::test]
async fn an_old_upstream_does_not_make_the_node_speak_its_version() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let upstream = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = b"HTTP/1.0 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 3\r\n\r\nold";
            stream.write_all(answer).await.expect("the proxy reads");
        }
    });
    let world = World::before(&format!("http://{upstream}"), Arc::default(), |_| {}).await;
    for how in ["a miss", "a hit"] {
        let response = world.client.request(world.request("GET", "/", &[])).await.expect("a response");
        assert_eq!(response.version(), http::Version::HTTP_11, "{how}");
    }
}

#[tokio::test]
async fn a_304_of_a_redirect_does_not_show_the_upstreams_own_address() {
    let world = World::with(|request| async move {
        let host = request.headers()["host"].to_str().expect("text").to_owned();
        let location = format!("http://{host}/new");
        let status = if request.headers().contains_key("if-none-match") { 304 } else { 301 };
        let fields = [("cache-control", "no-cache"), ("etag", "\"1\""), ("location", location.as_str())];
        response(status, &fields, "")
    })
    .await;
    for _ in 0..2 {
        let seen = world.get("/old").await;
        assert_eq!(
            (seen.status, &seen.headers["location"]),
            (StatusCode::MOVED_PERMANENTLY, &"/new".parse().expect("text"))
        );
    }
    assert_eq!(world.fetches(), 2);
}
