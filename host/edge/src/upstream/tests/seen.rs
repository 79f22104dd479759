//! What the proxy tells of itself: timings to whoever asks, its place in a trace, an answer to "what would you do".

use serde_json::Value;

use super::*;

const FRESH: (&str, &str) = ("cache-control", "max-age=60");
const THEIRS: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[tokio::test]
async fn timings_are_told_to_who_asks() {
    let world =
        World::with(|_| async { response(200, &[FRESH, ("server-timing", "db;dur=5")], "page") }).await;
    let told = |seen: &Seen| -> Vec<String> {
        let lines = seen.headers.get_all("server-timing").iter();
        lines.map(|line| line.to_str().expect("text").to_owned()).collect()
    };
    let miss = told(&world.send("GET", "/a", &[("x-souk-timing", "1")]).await);
    assert_eq!(miss.len(), 2, "the upstream's own stays: {miss:?}");
    for name in ["total;dur=", "cache;dur=", "upstream;dur="] {
        assert!(miss[1].contains(name), "{miss:?}");
    }
    let hit = told(&world.send("GET", "/a", &[("x-souk-timing", "1")]).await);
    assert!(hit[1].contains("cache;dur=") && !hit[1].contains("upstream"), "{hit:?}");
    assert_eq!(told(&world.get("/a").await).len(), 1, "nobody asked");
}

#[tokio::test]
async fn the_upstream_has_the_node_for_a_parent() {
    let world = World::with(|request| async move {
        let said = request.headers().get("traceparent").map(|value| value.to_str().expect("text").to_owned());
        let state = request.headers().contains_key("tracestate");
        response(200, &[("cache-control", "no-store")], format!("{} {state}", said.unwrap_or_default()))
    })
    .await;
    let seen = world.send("GET", "/a", &[("traceparent", THEIRS), ("tracestate", "a=b")]).await;
    let (parent, state) = seen.body().split_once(' ').expect("two words");
    assert_eq!((&parent[..36], &parent[52..], state), (&THEIRS[..36], "-01", "true"), "the same trace");
    assert_ne!(parent[36..52], THEIRS[36..52], "and another parent");
    let seen = world.send("GET", "/a", &[("traceparent", "00-nonsense"), ("tracestate", "a=b")]).await;
    let (parent, state) = seen.body().split_once(' ').expect("two words");
    assert_eq!((parent.len(), &parent[52..], state), (55, "-00", "false"), "a bad one is replaced: {parent}");
    assert_eq!(world.get("/a").await.body(), " false", "while nobody looks, nobody is told");
}

/// A collector that passes on what it is sent, and the proxy before an upstream that says whose child it is.
async fn traced(per_mille: u16) -> (World, mpsc::Receiver<Value>) {
    let (told, exports) = mpsc::channel(16);
    let collector = serve(move |request, _| {
        let told = told.clone();
        Box::pin(async move {
            assert_eq!((request.uri().path(), request.method().as_str()), ("/v1/traces", "POST"));
            let body = request.into_body().collect().await.expect("a whole body").to_bytes();
            drop(told.send(serde_json::from_slice(&body).expect("JSON")).await);
            response(200, &[], "{}")
        })
    })
    .await;
    let upstream = serve(|request, _| {
        let parent =
            request.headers().get("traceparent").map(|parent| parent.to_str().expect("text").to_owned());
        Box::pin(async move { response(200, &[FRESH], parent.unwrap_or_default()) })
    })
    .await;
    let world = World::before(&format!("http://{upstream}"), Arc::default(), |config| {
        let trace: souk_config::TraceConfig = format!("http://{collector}").parse().expect("a collector");
        config.trace = Some(souk_config::TraceConfig { sampled_per_mille: per_mille, ..trace });
    })
    .await;
    (world, exports)
}

#[tokio::test]
async fn a_collector_sees_the_request_the_cache_and_the_upstream() {
    let (world, mut exports) = traced(1_000).await;
    let seen = world.send("GET", "/a?token=secret", &[("traceparent", THEIRS)]).await;
    world.get("/a?token=secret").await;
    let mut spans = Vec::new();
    while spans.len() < 5 {
        let export = tokio::time::timeout(Duration::from_secs(30), exports.recv()).await.expect("in time");
        let export = export.expect("an export");
        assert!(!export.to_string().contains("secret"), "{export}");
        let sent = &export["resourceSpans"][0]["scopeSpans"][0]["spans"];
        spans.extend(sent.as_array().expect("spans").clone());
    }
    let named = |name: &str| spans.iter().filter(|span| span["name"] == name).collect::<Vec<_>>();
    let (requests, looks, fetches) = (named("GET"), named("cache"), named("upstream"));
    assert_eq!((requests.len(), looks.len(), fetches.len()), (2, 2, 1), "a hit asks nobody: {spans:#?}");
    let theirs = requests.iter().find(|span| span["parentSpanId"] == THEIRS[36..52]).expect("their child");
    assert_eq!(theirs["traceId"], THEIRS[3..35]);
    assert!(theirs["attributes"].to_string().contains("\"fill\""), "{theirs}");
    assert_eq!(
        (&fetches[0]["parentSpanId"], &fetches[0]["traceId"]),
        (&theirs["spanId"], &theirs["traceId"])
    );
    // What the upstream was told for a parent is the span that asked it.
    assert_eq!(seen.body()[36..52], *fetches[0]["spanId"].as_str().expect("text"));
    assert!(seen.body().ends_with("-01"));
}

#[tokio::test]
async fn a_strangers_wish_to_be_traced_is_passed_on_and_not_obeyed() {
    let (world, mut exports) = traced(0).await;
    let seen = world.send("GET", "/a", &[("traceparent", THEIRS)]).await;
    assert!(seen.body().ends_with("-01"), "{}", seen.body());
    let traces = &world.proxy.metrics().traces;
    assert_eq!((traces.sampled(), exports.try_recv().is_err()), (0, true), "it was traced");
}

#[tokio::test]
async fn a_dead_collector_costs_spans_and_no_answer() {
    let dead = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port").local_addr().expect("bound");
    let upstream = serve(|_, _| Box::pin(async { response(200, &[FRESH], "page") })).await;
    let world = World::before(&format!("http://{upstream}"), Arc::default(), |config| {
        let trace: souk_config::TraceConfig = format!("http://{dead}").parse().expect("a collector");
        config.trace = Some(souk_config::TraceConfig { sampled_per_mille: 1_000, ..trace });
    })
    .await;
    for _ in 0..20 {
        assert_eq!(world.get("/a").await.body(), "page");
    }
    let lost = async {
        while world.proxy.metrics().traces.lost() < 20 {
            pause(10).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), lost).await.expect("each is counted");
}
