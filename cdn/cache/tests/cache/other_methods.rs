//! What a HEAD and a POST do to what is stored for a GET.

use bytes::Bytes;
use http::Method;
use souk_cache::{Asked, Cache, Lookup, Policy};

use crate::{NOW, ask, at, cache, fill, get, head, hit, name, put, read};

const LATER: u64 = NOW + 5_000;
const FRESH: (&str, &str) = ("cache-control", "max-age=60");

fn asks_head(target: &str) -> Asked {
    ask(Method::HEAD, target, &[])
}

async fn stale_page(cache: &Cache, fields: &[(&str, &str)]) -> Asked {
    let asked = get("/a", &[]);
    let all: Vec<_> =
        [("cache-control", "max-age=1"), ("x-old", "1")].into_iter().chain(fields.iter().copied()).collect();
    put(cache, NOW, &asked, &all, "page").await;
    let passes = cache.look_up(LATER, &asks_head("/a")).await;
    assert!(matches!(passes, Lookup::Pass(_)), "{}", name(&passes));
    asked
}

#[tokio::test]
async fn a_head_of_the_same_version_makes_it_fresh() {
    let cache = cache();
    let asked = stale_page(&cache, &[("etag", "\"1\"")]).await;
    let said = head(200, &[FRESH, ("etag", "\"1\""), ("content-length", "4"), ("x-new", "1")]);
    cache.freshen(&asks_head("/a"), &said, at(LATER));
    let (status, headers, body) = read(hit(&cache, LATER, &asked).await, LATER, &asked).await;
    assert_eq!((status, body.as_str()), (200, "page"));
    assert!(headers.contains_key("x-old") && headers.contains_key("x-new"));
    assert_eq!(headers["age"], "0");
}

#[tokio::test]
async fn a_head_of_another_version_takes_it_away() {
    let stored = [("etag", "\"1\""), ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT")];
    for other in [
        &[FRESH, ("etag", "\"2\"")][..],
        &[FRESH, ("etag", "\"1\""), ("content-length", "5")],
        &[FRESH, ("etag", "\"1\""), ("last-modified", "Mon, 07 Nov 1994 08:49:37 GMT")],
    ] {
        let cache = cache();
        let asked = stale_page(&cache, &stored).await;
        cache.freshen(&asks_head("/a"), &head(200, other), at(LATER));
        match cache.look_up(LATER, &asked).await {
            Lookup::Miss(permit) => assert!(permit.conditions(&asked).is_empty(), "{other:?}"),
            other => panic!("wanted a miss, got {}", name(&other)),
        }
    }
}

#[tokio::test]
async fn a_head_that_vouches_for_nothing_changes_nothing() {
    for (status, said) in [
        (200, &[FRESH, ("content-length", "4")][..]),
        (410, &[FRESH, ("etag", "\"1\"")]),
        (304, &[FRESH, ("etag", "\"1\"")]),
        (200, &[("cache-control", "no-store"), ("etag", "\"1\"")]),
    ] {
        let cache = cache();
        let asked = stale_page(&cache, &[("etag", "\"1\"")]).await;
        cache.freshen(&asks_head("/a"), &head(status, said), at(LATER));
        match cache.look_up(LATER, &asked).await {
            Lookup::Miss(permit) => {
                assert_eq!(permit.conditions(&asked)["if-none-match"], "\"1\"", "{said:?}")
            }
            other => panic!("wanted a miss, got {}", name(&other)),
        }
    }
}

#[tokio::test]
async fn an_answer_to_head_that_is_older_than_a_purge_brings_nothing_back() {
    let cache = cache();
    let asked = stale_page(&cache, &[("etag", "\"1\"")]).await;
    cache.invalidate(&asked.key);
    cache.freshen(&asks_head("/a"), &head(200, &[FRESH, ("etag", "\"1\"")]), at(LATER));
    let after = cache.look_up(LATER, &asked).await;
    assert!(matches!(after, Lookup::Miss(_)), "{}", name(&after));
}

#[tokio::test]
async fn an_answer_to_post_becomes_the_page_where_the_policy_lets_it() {
    let cache = cache();
    let posted = ask(Method::POST, "/a", &[("if-none-match", "\"1\""), ("range", "bytes=0-0")]);
    let said = head(200, &[FRESH, ("etag", "\"1\""), ("content-location", "/a")]);
    assert!(cache.permit_for_post(&posted, &said, at(NOW), cache.begin()).is_none(), "not in a shop");

    let posted = posted.under(Policy::STRICT);
    for (status, fields) in [
        (200, &[("cache-control", "public"), ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT")][..]),
        (200, &[("cache-control", "private, max-age=60")]),
        (201, &[FRESH]),
        (206, &[FRESH]),
    ] {
        let permit = cache.permit_for_post(&posted, &head(status, fields), at(NOW), cache.begin());
        assert!(permit.is_none(), "{status} {fields:?}");
    }
    let put = ask(Method::PUT, "/a", &[]).under(Policy::STRICT);
    assert!(cache.permit_for_post(&put, &said, at(NOW), cache.begin()).is_none());

    let permit = cache.permit_for_post(&posted, &said, at(NOW), cache.begin()).expect("explicitly fresh");
    let (own, mut writer) = fill(permit, &posted, NOW, &said);
    writer.push(&Bytes::from_static(b"made"));
    writer.finish().expect("the right length");
    let (status, _, body) = read(own, NOW, &posted).await;
    assert_eq!(
        (status, body.as_str()),
        (200, "made"),
        "conditions and ranges are not about what a POST does"
    );
    let asked = get("/a", &[]);
    assert_eq!(read(hit(&cache, NOW, &asked).await, NOW, &asked).await.2, "made");
}
