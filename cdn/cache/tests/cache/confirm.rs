//! What a 304 does to what is stored: it refreshes it, and is judged before it does.

use futures_util::FutureExt as _;
use http::HeaderMap;
use souk_cache::{Asked, Cache, Hit, Lookup, Policy};

use crate::{NOW, at, cache, fill, get, head, hit, map, miss, name, put, read};

/// When what [`stored`] stores is stale.
const LATER: u64 = NOW + 5_000;

async fn stored(cache: &Cache, asked: &Asked) {
    put(cache, NOW, asked, &[("cache-control", "max-age=1"), ("etag", "\"1\"")], "page").await;
}

async fn confirmed(cache: &Cache, asked: &Asked, fields: &[(&str, &str)]) -> Hit {
    let permit = miss(cache, LATER, asked).await;
    assert_eq!(permit.conditions(asked)["if-none-match"], "\"1\"");
    match permit.confirm(&map(fields), asked, at(LATER)) {
        Ok(hit) => hit,
        Err(_) => panic!("the validators agree"),
    }
}

fn cookies(headers: &HeaderMap) -> Vec<&str> {
    headers.get_all("set-cookie").iter().map(|value| value.to_str().expect("text")).collect()
}

#[tokio::test]
async fn a_cookie_on_a_304_is_for_its_own_client_and_never_replayed() {
    let cache = cache();
    let asked = get("/a", &[]);
    stored(&cache, &asked).await;
    let waiting = {
        let permit = miss(&cache, LATER, &asked).await;
        let (cache, other) = (cache.clone(), asked.clone());
        let task = tokio::spawn(async move { read(hit(&cache, LATER, &other).await, LATER, &other).await });
        tokio::task::yield_now().await;
        let fields =
            [("etag", "\"1\""), ("set-cookie", "session=mine"), ("set-cookie", "b=2"), ("x-new", "1")];
        let Ok(own) = permit.confirm(&map(&fields), &asked, at(LATER)) else { panic!("confirmed") };
        let (_, headers, body) = read(own, LATER, &asked).await;
        assert_eq!((body.as_str(), cookies(&headers)), ("page", vec!["session=mine", "b=2"]));
        task
    };
    for (_, headers, body) in
        [waiting.await.expect("no panic"), read(hit(&cache, LATER, &asked).await, LATER, &asked).await]
    {
        assert_eq!((body.as_str(), &headers["x-new"]), ("page", &"1".parse().expect("a value")));
        assert_eq!(cookies(&headers), Vec::<&str>::new());
    }
}

#[tokio::test]
async fn a_cookie_on_a_304_is_stored_only_where_the_policy_stores_cookies() {
    let cache = cache();
    let asked = get("/a", &[]).under(Policy { store_set_cookie: true, ..Policy::SAFE });
    stored(&cache, &asked).await;
    let own = confirmed(&cache, &asked, &[("set-cookie", "shared=1")]).await;
    let replayed = hit(&cache, LATER, &asked).await;
    for answer in [own, replayed] {
        assert_eq!(cookies(&read(answer, LATER, &asked).await.1), ["shared=1"]);
    }
    // But what the upstream forbids to replay is nobody else's, whatever the policy.
    let later = LATER + 5_000;
    let permit = miss(&cache, later, &asked).await;
    let fields = [("cache-control", "max-age=1, private=\"set-cookie\""), ("set-cookie", "mine=1")];
    let Ok(own) = permit.confirm(&map(&fields), &asked, at(later)) else { panic!("confirmed") };
    assert_eq!(cookies(&read(own, later, &asked).await.1), ["mine=1"]);
    assert!(cookies(&read(hit(&cache, later, &asked).await, later, &asked).await.1).is_empty());
}

#[tokio::test]
async fn a_field_forbidden_to_replay_still_reaches_the_client_that_caused_it() {
    let cache = cache();
    let asked = get("/a", &[]);
    let fields = [("cache-control", "max-age=60, private=\"set-cookie\""), ("set-cookie", "mine=1")];
    let (own, writer) = fill(miss(&cache, NOW, &asked).await, &asked, NOW, &head(200, &fields));
    let joined = hit(&cache, NOW, &asked).await;
    writer.finish().expect("the right length");
    assert_eq!(cookies(&read(own, NOW, &asked).await.1), ["mine=1"]);
    assert!(cookies(&read(joined, NOW, &asked).await.1).is_empty());
    assert!(cookies(&read(hit(&cache, NOW, &asked).await, NOW, &asked).await.1).is_empty());
}

#[tokio::test]
async fn a_304_after_which_a_200_could_not_be_stored_takes_the_entry_away() {
    for (fields, reason) in [
        (&[("cache-control", "no-store")][..], "no_store"),
        (&[("cache-control", "private, max-age=60")], "private"),
        (&[("vary", "*")], "vary_any"),
        (&[("vary", "Accept, Cookie")], "vary_personal"),
        (&[("vary", "a,b,c,d,e,f,g,h,i")], "vary_too_many"),
        (&[("cache-control", "public")], "no_lifetime"),
        (&[("cdn-cache-control", "no-store")], "no_store"),
    ] {
        let cache = cache();
        let asked = get("/a", &[]);
        stored(&cache, &asked).await;
        let permit = miss(&cache, LATER, &asked).await;
        let waiting = {
            let (cache, asked) = (cache.clone(), asked.clone());
            tokio::spawn(async move { name(&cache.look_up(LATER, &asked).await) })
        };
        tokio::task::yield_now().await;
        let Ok(own) = permit.confirm(&map(fields), &asked, at(LATER)) else { panic!("confirmed") };
        let (status, headers, body) = read(own, LATER, &asked).await;
        assert_eq!(
            (status, body.as_str()),
            (200, "page"),
            "{fields:?}: the client that asked has its answer"
        );
        let said = format!("Souk; fwd=stale; fwd-status=304; detail={reason}");
        assert_eq!(headers["cache-status"], said.as_str(), "{fields:?}");
        assert_eq!(waiting.await.expect("no panic"), format!("pass {reason}"), "{fields:?}");
        assert_eq!(name(&cache.look_up(LATER, &asked).await), "pass remembered", "{fields:?}");
        assert_eq!(cache.size().keys, 0, "{fields:?}");
    }
}

#[tokio::test]
async fn a_304_to_one_clients_credentials_changes_nothing_for_the_others() {
    let cache = cache();
    let asked = get("/a", &[]);
    stored(&cache, &asked).await;
    let signed = get("/a", &[("authorization", "x")]);
    let own = confirmed(&cache, &signed, &[("cache-control", "max-age=60"), ("x-name", "Ada")]).await;
    assert_eq!(read(own, LATER, &signed).await.1["x-name"], "Ada");
    let permit = miss(&cache, LATER, &asked).await;
    assert!(!permit.conditions(&asked).is_empty(), "what was stored is as it was: stale, and not gone");
    let Ok(hit) = permit.confirm(&HeaderMap::new(), &asked, at(LATER)) else { panic!("confirmed") };
    assert!(!read(hit, LATER, &asked).await.1.contains_key("x-name"));
}

#[tokio::test]
async fn a_304_can_add_to_what_a_response_varies_by_and_take_nothing_away() {
    let cache = cache();
    let english = get("/a", &[("accept-language", "en"), ("accept-encoding", "gzip")]);
    let fields = [("cache-control", "max-age=1"), ("etag", "\"1\""), ("vary", "accept-encoding")];
    put(&cache, NOW, &english, &fields, "page").await;
    confirmed(&cache, &english, &[("vary", "accept-language")]).await;
    assert_eq!(name(&cache.look_up(LATER, &english).await), "hit Fresh");
    for other in [
        get("/a", &[("accept-language", "fr"), ("accept-encoding", "gzip")]),
        get("/a", &[("accept-language", "en"), ("accept-encoding", "br")]),
    ] {
        let permit = miss(&cache, LATER, &other).await;
        assert_eq!(permit.why().as_str(), "vary-miss", "its former self is not left behind either");
    }
}

#[tokio::test]
async fn a_late_304_does_not_undo_a_newer_version() {
    let cache = cache();
    let asked = get("/a", &[]);
    put(&cache, NOW, &asked, &[("cache-control", "no-cache"), ("etag", "\"1\"")], "old").await;
    // Entries that ask each time are asked about side by side.
    let slow = miss(&cache, LATER, &asked).await;
    put(&cache, LATER, &asked, &[("cache-control", "no-cache"), ("etag", "\"2\"")], "new").await;
    assert!(slow.confirm(&map(&[("etag", "\"1\"")]), &asked, at(LATER)).is_ok());
    assert_eq!(miss(&cache, LATER, &asked).await.conditions(&asked)["if-none-match"], "\"2\"");
}

#[tokio::test]
async fn another_cache_gets_nothing_stale_and_waits_with_everybody_else() {
    let cache = cache();
    let asked = get("/page", &[]);
    let lives = &[("cache-control", "max-age=60, stale-while-revalidate=600"), ("etag", "\"a\"")];
    put(&cache, NOW, &asked, lives, "page").await;
    let later = NOW + 61_000;
    let by_cache = asked.clone().by_cache();
    let permit = miss(&cache, later, &by_cache).await;
    assert!(!permit.conditions(&by_cache).is_empty(), "it is confirmed where it can be");
    // A shopper does not wait for that, and another cache does.
    assert!(matches!(cache.look_up(later, &asked).await, Lookup::Hit(_)));
    let mut second = std::pin::pin!(cache.look_up(later, &by_cache));
    assert!(second.as_mut().now_or_never().is_none());
    assert!(permit.confirm(&map(lives), &by_cache, at(later)).is_ok());
    let Lookup::Hit(hit) = second.await else { panic!("confirmed for both") };
    assert_eq!(hit.age_s(later), 0);
}
