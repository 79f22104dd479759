//! What HEAD, POST and ranges do to the cache, seen from both ends.

use super::*;

const FRESH: (&str, &str) = ("cache-control", "max-age=60");

#[tokio::test]
async fn a_head_that_vouches_for_the_page_makes_it_fresh() {
    let world = World::with(|request| async move {
        let lifetime = if request.method() == http::Method::HEAD { "max-age=60" } else { "max-age=0" };
        response(200, &[("cache-control", lifetime), ("etag", "\"1\"")], "page")
    })
    .await;
    world.get("/a").await;
    let head = world.send("HEAD", "/a", &[]).await;
    assert_eq!((head.status.as_u16(), head.body()), (200, ""));
    assert_eq!(world.fetches(), 2);
    let seen = world.get("/a").await;
    assert_eq!((seen.body(), world.fetches()), ("page", 2));
    assert!(seen.cache_status().starts_with("Souk; hit"), "{}", seen.cache_status());
}

#[tokio::test]
async fn an_answer_to_post_is_the_page_only_where_it_says_so_and_the_policy_does() {
    let upstream = |request: Request<Incoming>| async move {
        let at = request.uri().path().replace("elsewhere", "other");
        response(200, &[FRESH, ("content-location", &at)], format!("{} {at}", request.method()))
    };
    let world = World::under(CachePolicy::Strict, upstream).await;
    let posted = world.send("POST", "/a", &[]).await;
    assert_eq!(posted.body(), "POST /a");
    assert!(
        posted.cache_status().contains("fwd=method; fwd-status=200; stored"),
        "{}",
        posted.cache_status()
    );
    assert_eq!((world.get("/a").await.body(), world.fetches()), ("POST /a", 1));
    world.send("POST", "/elsewhere", &[]).await;
    assert_eq!(world.get("/elsewhere").await.body(), "GET /other");

    let world = World::with(upstream).await;
    world.send("POST", "/a", &[]).await;
    assert_eq!((world.get("/a").await.body(), world.fetches()), ("GET /a", 2));
}

/// A server of `0123456789` that understands `bytes=first-last` and `bytes=first-`.
async fn ten_digits(
    request: Request<Incoming>,
    ranges: Arc<parking_lot::Mutex<Vec<String>>>,
) -> Response<Body> {
    let text = |name: &str| request.headers().get(name).map(|value| value.to_str().expect("text").to_owned());
    let Some(range) = text("range") else {
        ranges.lock().push("whole".to_owned());
        return response(200, &[FRESH, ("etag", "\"1\"")], "0123456789");
    };
    ranges.lock().push(range.clone());
    let (first, last) =
        range.strip_prefix("bytes=").and_then(|spec| spec.split_once('-')).expect("one range");
    let (first, last): (usize, usize) = (first.parse().expect("a number"), last.parse().unwrap_or(9));
    let stands = format!("bytes {first}-{last}/10");
    response(206, &[FRESH, ("etag", "\"1\""), ("content-range", &stands)], &"0123456789"[first..=last])
}

#[tokio::test]
async fn a_strict_cache_forwards_a_range_keeps_the_part_and_completes_it() {
    let ranges: Arc<parking_lot::Mutex<Vec<String>>> = Arc::default();
    let seen = Arc::clone(&ranges);
    let world =
        World::under(CachePolicy::Strict, move |request| ten_digits(request, Arc::clone(&seen))).await;
    let part = world.send("GET", "/film", &[("range", "bytes=0-3")]).await;
    assert_eq!((part.status.as_u16(), part.body()), (206, "0123"));
    assert_eq!(part.headers["content-range"], "bytes 0-3/10");
    let inside = world.send("GET", "/film", &[("range", "bytes=1-2")]).await;
    assert_eq!((inside.status.as_u16(), inside.body()), (206, "12"));
    let whole = world.get("/film").await;
    assert_eq!((whole.status.as_u16(), whole.body()), (200, "0123456789"));
    assert_eq!(world.get("/film").await.body(), "0123456789");
    assert_eq!(*ranges.lock(), ["bytes=0-3", "bytes=4-"]);
}

#[tokio::test]
async fn a_safe_cache_fetches_the_whole_once_for_every_range() {
    let ranges: Arc<parking_lot::Mutex<Vec<String>>> = Arc::default();
    let seen = Arc::clone(&ranges);
    let world = World::with(move |request| ten_digits(request, Arc::clone(&seen))).await;
    for (range, content) in [("bytes=0-3", "0123"), ("bytes=4-", "456789")] {
        let part = world.send("GET", "/film", &[("range", range)]).await;
        assert_eq!((part.status.as_u16(), part.body()), (206, content));
    }
    assert_eq!(*ranges.lock(), ["whole"]);
}

#[tokio::test]
async fn a_policy_reaches_as_far_as_its_route() {
    let fetches = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&fetches);
    let upstream = serve(move |_, _| {
        counted.fetch_add(1, Ordering::SeqCst);
        Box::pin(async { response(200, &[FRESH, ("set-cookie", "s=1")], "x") })
    })
    .await;
    let world = World::before(&format!("http://{upstream}"), fetches, |config| {
        config.upstream.policy_routes = vec!["/assets=strict".parse().expect("a route")];
    })
    .await;
    for (path, stored) in [("/assets/a.css", true), ("/cart", false), ("/assets/../cart", false)] {
        let before = world.fetches();
        world.get(path).await;
        let seen = world.get(path).await;
        let cookie = seen.headers.contains_key("set-cookie");
        assert_eq!((world.fetches() - before, cookie), (if stored { 1 } else { 2 }, true), "{path}");
        assert_eq!(seen.cache_status().starts_with("Souk; hit"), stored, "{path}");
    }
}
