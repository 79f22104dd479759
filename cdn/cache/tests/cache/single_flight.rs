//! Who fetches, who waits, who reads along, and what is stored in the end. No network: the test plays the upstream.

use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::Method;
use http_body_util::BodyExt;
use souk_cache::Policy;
use souk_cache::cache::Failure;
use souk_cache::{BodyAborted, Lookup, PassReason, Stored};

use crate::{NOW, ask, at, cache, fill, get, head, hit, map, miss, name, put, read, text};

#[tokio::test]
async fn a_stored_response_is_replayed_with_its_age() {
    let cache = cache();
    let asked = get("/a", &[]);
    let fields =
        [("cache-control", "max-age=60"), ("x-kept", "1"), ("connection", "x-gone"), ("x-gone", "1")];
    put(&cache, NOW, &asked, &fields, "hello").await;
    let (status, headers, body) = read(hit(&cache, NOW + 10_000, &asked).await, NOW + 10_000, &asked).await;
    assert_eq!((status, body.as_str()), (200, "hello"));
    assert_eq!(headers["age"], "10");
    assert_eq!(headers["content-length"], "5");
    assert_eq!(headers["x-kept"], "1");
    assert!(headers.contains_key("date") && !headers.contains_key("x-gone"));
    assert_eq!(headers["cache-status"], "Souk; hit; ttl=50");
    assert_eq!(name(&cache.look_up(NOW + 60_000, &asked).await), "miss");
}

#[tokio::test]
async fn a_hundred_cold_requests_are_one_fetch_and_joiners_read_along() {
    let cache = cache();
    let asked = get("/a", &[]);
    let permit = miss(&cache, NOW, &asked).await;
    let waiting: Vec<_> = (0..99)
        .map(|_| {
            let (cache, asked) = (cache.clone(), asked.clone());
            tokio::spawn(async move { hit(&cache, NOW, &asked).await.respond(NOW, &asked).into_body() })
        })
        .collect();
    tokio::task::yield_now().await;
    let (first, mut writer) = fill(permit, &asked, NOW, &head(200, &[("cache-control", "max-age=60")]));
    writer.push(&Bytes::from_static(b"one "));

    let mut bodies = vec![first.respond(NOW, &asked).into_body()];
    for task in waiting {
        bodies.push(task.await.expect("no panic"));
    }
    // All have the first piece before the last one exists.
    for body in &mut bodies {
        let frame = body.frame().await.expect("a frame").expect("no error");
        assert_eq!(frame.into_data().expect("data"), "one ");
    }
    let mut late = hit(&cache, NOW, &asked).await.respond(NOW, &asked).into_body();
    assert_eq!(late.frame().await.expect("a frame").expect("no error").into_data().expect("data"), "one ");
    writer.push(&Bytes::from_static(b"two"));
    writer.finish().expect("the right length");
    bodies.push(late);
    for body in bodies {
        assert_eq!(text(body).await.as_deref(), Ok("two"));
    }
    assert_eq!(read(hit(&cache, NOW, &asked).await, NOW, &asked).await.2, "one two");
    assert_eq!(cache.filling_bytes(), 0);
}

#[tokio::test]
async fn an_uncacheable_answer_sets_everybody_free_and_is_remembered() {
    let cache = cache();
    let asked = get("/account", &[]);
    let permit = miss(&cache, NOW, &asked).await;
    let waiting = {
        let (cache, asked) = (cache.clone(), asked.clone());
        tokio::spawn(async move { name(&cache.look_up(NOW, &asked).await) })
    };
    tokio::task::yield_now().await;
    let head = head(200, &[("cache-control", "private")]);
    assert!(matches!(permit.store(&head, &asked, at(NOW)), Stored::Pass(PassReason::Private)));
    assert_eq!(waiting.await.expect("no panic"), "pass private");
    for _ in 0..20 {
        assert_eq!(name(&cache.look_up(NOW, &asked).await), "pass remembered");
    }
    assert_eq!(name(&cache.look_up(NOW + 30_000, &asked).await), "miss", "but not for long");
}

/// Refuses what comes for a key.
async fn refuse(cache: &souk_cache::Cache, now_ms: u64, asked: &souk_cache::Asked) {
    let permit = miss(cache, now_ms, asked).await;
    let head = head(200, &[("cache-control", "private")]);
    assert!(matches!(permit.store(&head, asked, at(now_ms)), Stored::Pass(PassReason::Private)));
}

#[tokio::test]
async fn nobody_waits_for_the_one_who_finds_out_whether_a_key_is_still_uncacheable() {
    let cache = cache();
    let asked = get("/account", &[]);
    refuse(&cache, NOW, &asked).await;
    let doubted = NOW + 30_000;
    let permit = miss(&cache, doubted, &asked).await;
    for _ in 0..20 {
        assert_eq!(name(&cache.look_up(doubted, &asked).await), "pass remembered");
    }
    // The answer renews what is remembered, in whose time nobody finds out anything.
    let private = head(200, &[("cache-control", "private")]);
    assert!(matches!(permit.store(&private, &asked, at(doubted)), Stored::Pass(PassReason::Private)));
    assert_eq!(name(&cache.look_up(doubted + 29_999, &asked).await), "pass remembered");

    // It became a page for everybody: whoever comes reads along, and then finds it.
    let renewed = doubted + 30_000;
    let permit = miss(&cache, renewed, &asked).await;
    let (_, writer) = fill(permit, &asked, renewed, &head(200, &[("cache-control", "max-age=60")]));
    assert!(name(&cache.look_up(renewed, &asked).await).starts_with("hit Joined"));
    writer.finish().expect("the right length");
    assert_eq!(name(&cache.look_up(renewed, &asked).await), "hit Fresh");
    // And is one again: of a hundred who find it stale, one asks.
    let stale = renewed + 60_000;
    let permit = miss(&cache, stale, &asked).await;
    assert!(cache.look_up(stale, &asked).now_or_never().is_none(), "it waits");
    drop(permit);
}

#[tokio::test]
async fn a_key_that_nobody_asks_for_is_unknown_again() {
    let cache = cache();
    let asked = get("/account", &[]);
    refuse(&cache, NOW, &asked).await;
    let later = NOW + 30_000 + 600_000;
    let permit = miss(&cache, later, &asked).await;
    assert!(cache.look_up(later, &asked).now_or_never().is_none(), "an answer of long ago says nothing");
    drop(permit);
}

#[tokio::test]
async fn what_may_stand_in_for_an_error_stays_at_hand_while_a_key_is_doubted() {
    let cache = cache();
    let asked = get("/account", &[]);
    put(&cache, NOW, &asked, &[("cache-control", "max-age=1, stale-if-error=600"), ("etag", "\"1\"")], "old")
        .await;
    let later = NOW + 5_000;
    // No answer about the page, so what is stored stays, and the key is remembered.
    let permit = miss(&cache, later, &asked).await;
    let refused = head(409, &[("cache-control", "no-store")]);
    assert!(matches!(permit.store(&refused, &asked, at(later)), Stored::Pass(PassReason::NoStore)));
    let permit = miss(&cache, later, &asked).await;
    let waiting = {
        let (cache, asked) = (cache.clone(), asked.clone());
        tokio::spawn(async move { name(&cache.look_up(later, &asked).await) })
    };
    tokio::task::yield_now().await;
    assert_eq!(cache.waiting(), 1, "the second waits");
    assert!(permit.stale_on_error(later, Failure("unreachable")).is_some());
    permit.fail(Failure("unreachable"));
    assert_eq!(waiting.await.expect("no panic"), "failed unreachable stale=true");
}

#[tokio::test]
async fn a_variant_that_is_stored_is_one_fetch_though_another_one_was_private() {
    let (pounds, euros) = (get("/p", &[("x-currency", "GBP")]), get("/p", &[("x-currency", "EUR")]));
    // While it is remembered, and while it is doubted.
    for (control, stale) in
        [("max-age=60, stale-if-error=600", NOW + 65_000), ("max-age=60", NOW + 40_000 + 30_000)]
    {
        let cache = cache();
        let fields = [("cache-control", control), ("vary", "x-currency")];
        put(&cache, NOW, &pounds, &fields, "old").await;
        refuse(&cache, NOW + 40_000, &euros).await;
        let permit = miss(&cache, stale, &pounds).await;
        let waiting: Vec<_> = (0..20)
            .map(|_| {
                let (cache, pounds) = (cache.clone(), pounds.clone());
                tokio::spawn(async move { name(&cache.look_up(stale, &pounds).await) })
            })
            .collect();
        tokio::task::yield_now().await;
        assert_eq!(cache.waiting(), 20, "{control}: nobody else asks");
        if control == "max-age=60" {
            let _finds_out = miss(&cache, stale, &euros).await;
            assert_eq!(
                name(&cache.look_up(stale, &euros).await),
                "pass remembered",
                "nothing of it is stored"
            );
        }
        let (_, writer) = fill(permit, &pounds, stale, &head(200, &fields));
        for task in waiting {
            assert!(task.await.expect("no panic").starts_with("hit Joined"));
        }
        writer.finish().expect("the right length");
    }
}

#[tokio::test]
async fn nothing_is_kept_where_the_policy_is_to_pass() {
    let cache = cache();
    let passes = get("/account", &[]).under(Policy::PASS);
    for _ in 0..20 {
        assert_eq!(name(&cache.look_up(NOW, &passes).await), "pass policy");
    }
    let wants_stored = get("/account", &[("cache-control", "only-if-cached")]).under(Policy::PASS);
    assert_eq!(name(&cache.look_up(NOW, &wants_stored).await), "only-if-cached");
}

#[tokio::test]
async fn what_one_client_caused_is_not_remembered() {
    let cache = cache();
    let signed = get("/a", &[("authorization", "x")]);
    let permit = miss(&cache, NOW, &signed).await;
    let head = head(200, &[("cache-control", "max-age=60")]);
    assert!(matches!(permit.store(&head, &signed, at(NOW)), Stored::Pass(PassReason::Authorization)));
    assert_eq!(name(&cache.look_up(NOW, &get("/a", &[])).await), "miss");
}

#[tokio::test]
async fn a_broken_fill_is_never_a_clean_end_and_never_stored() {
    let cache = cache();
    let asked = get("/a", &[]);
    let fields = [("cache-control", "max-age=60"), ("content-length", "10")];

    let (first, mut writer) = fill(miss(&cache, NOW, &asked).await, &asked, NOW, &head(200, &fields));
    let joined = hit(&cache, NOW, &asked).await.respond(NOW, &asked);
    writer.push(&Bytes::from_static(b"half"));
    drop(writer);
    assert_eq!(text(first.respond(NOW, &asked).into_body()).await, Err(BodyAborted::Upstream));
    assert_eq!(text(joined.into_body()).await, Err(BodyAborted::Upstream));

    // A clean end of the wrong length is broken too.
    let (first, mut writer) = fill(miss(&cache, NOW, &asked).await, &asked, NOW, &head(200, &fields));
    writer.push(&Bytes::from_static(b"half"));
    assert!(writer.finish().is_err());
    assert_eq!(text(first.respond(NOW, &asked).into_body()).await, Err(BodyAborted::Upstream));
    assert_eq!(name(&cache.look_up(NOW, &asked).await), "miss");
    assert_eq!(cache.filling_bytes(), 0);
}

#[tokio::test]
async fn a_failed_fetch_failed_for_all_who_waited() {
    let cache = cache();
    let asked = get("/a", &[]);
    let permit = miss(&cache, NOW, &asked).await;
    let waiting = {
        let (cache, asked) = (cache.clone(), asked.clone());
        tokio::spawn(async move { name(&cache.look_up(NOW, &asked).await) })
    };
    tokio::task::yield_now().await;
    permit.fail(Failure("unreachable"));
    assert_eq!(waiting.await.expect("no panic"), "failed unreachable stale=false");
}

#[tokio::test]
async fn a_dropped_permit_goes_to_the_next_in_line() {
    let cache = cache();
    let asked = get("/a", &[]);
    let permit = miss(&cache, NOW, &asked).await;
    let waiting = {
        let (cache, asked) = (cache.clone(), asked.clone());
        tokio::spawn(async move { name(&cache.look_up(NOW, &asked).await) })
    };
    tokio::task::yield_now().await;
    drop(permit);
    assert_eq!(waiting.await.expect("no panic"), "miss");
}

#[tokio::test]
async fn stale_while_revalidate_has_one_refresher() {
    let cache = cache();
    let asked = get("/a", &[]);
    put(
        &cache,
        NOW,
        &asked,
        &[("cache-control", "max-age=1, stale-while-revalidate=60"), ("etag", "\"1\"")],
        "old",
    )
    .await;
    let later = NOW + 5_000;
    let Lookup::Stale(stale, permit) = cache.look_up(later, &asked).await else { panic!("stale") };
    let (_, headers, body) = read(stale, later, &asked).await;
    assert_eq!(body, "old");
    assert_eq!(headers["cache-status"], "Souk; hit; ttl=-4; detail=stale_while_revalidate");
    // While it is being refreshed the others are not asked to.
    assert_eq!(name(&cache.look_up(later, &asked).await), "hit WhileRevalidating");
    assert_eq!(permit.conditions(&asked)["if-none-match"], "\"1\"");

    let Ok(confirmed) = permit.confirm(&map(&[("etag", "\"1\""), ("x-new", "1")]), &asked, at(later)) else {
        panic!("confirmed")
    };
    assert_eq!(confirmed.how().name(), "revalidated");
    let (_, headers, body) = read(hit(&cache, later, &asked).await, later, &asked).await;
    assert_eq!((body.as_str(), &headers["x-new"]), ("old", &"1".parse().expect("value")));
    assert_eq!(headers["cache-status"], "Souk; hit; ttl=1");
}

#[tokio::test]
async fn a_304_of_another_version_asks_for_the_whole() {
    let cache = cache();
    let asked = get("/a", &[]);
    put(&cache, NOW, &asked, &[("cache-control", "max-age=1"), ("etag", "\"1\"")], "old").await;
    let permit = miss(&cache, NOW + 5_000, &asked).await;
    let Err(permit) = permit.confirm(&map(&[("etag", "\"2\"")]), &asked, at(NOW + 5_000)) else {
        panic!("mismatch")
    };
    assert!(permit.conditions(&asked).is_empty());
}

#[tokio::test]
async fn stale_if_error_answers_for_the_holder_and_for_those_who_wait() {
    let cache = cache();
    let asked = get("/a", &[]);
    put(&cache, NOW, &asked, &[("cache-control", "max-age=1, stale-if-error=60")], "old").await;
    let later = NOW + 5_000;
    let permit = miss(&cache, later, &asked).await;
    let waiting = {
        let (cache, asked) = (cache.clone(), asked.clone());
        tokio::spawn(async move { name(&cache.look_up(later, &asked).await) })
    };
    tokio::task::yield_now().await;
    let stale = permit.stale_on_error(later, Failure("unreachable")).expect("allowed");
    let (_, headers, body) = read(stale, later, &asked).await;
    assert_eq!(body, "old");
    assert_eq!(headers["cache-status"], "Souk; hit; ttl=-4; detail=stale_if_error.unreachable");
    permit.fail(Failure("unreachable"));
    assert_eq!(waiting.await.expect("no panic"), "failed unreachable stale=true");
    let permit = miss(&cache, NOW + 62_000, &asked).await;
    assert!(permit.stale_on_error(NOW + 62_000, Failure("unreachable")).is_none(), "too old");
}

#[tokio::test]
async fn responses_that_ask_each_time_are_not_waited_for() {
    let cache = cache();
    let asked = get("/a", &[]);
    let fields = [("cache-control", "no-cache"), ("etag", "\"1\"")];
    let permit = miss(&cache, NOW, &asked).await;
    let waiting = {
        let (cache, asked) = (cache.clone(), asked.clone());
        tokio::spawn(async move { name(&cache.look_up(NOW, &asked).await) })
    };
    tokio::task::yield_now().await;
    let (_, mut writer) = fill(permit, &asked, NOW, &head(200, &fields));
    assert_eq!(waiting.await.expect("no panic"), "miss", "each asks for itself");
    writer.push(&Bytes::from_static(b"x"));
    writer.finish().expect("the right length");
    let first = miss(&cache, NOW, &asked).await;
    let second = miss(&cache, NOW, &asked).await;
    assert!(!first.conditions(&asked).is_empty() && !second.conditions(&asked).is_empty());
}

#[tokio::test]
async fn variants_are_kept_apart_and_bounded() {
    let cache = cache();
    let fields = [("cache-control", "max-age=60"), ("vary", "accept-language, accept-encoding")];
    for n in 0..40 {
        let asked = get("/a", &[("accept-language", &format!("l{n}")), ("accept-encoding", "br, gzip")]);
        put(&cache, NOW, &asked, &fields, "x").await;
        let respelled =
            get("/a", &[("accept-language", &format!("L{n}")), ("accept-encoding", "gzip;q=0.9,br")]);
        assert_eq!(name(&cache.look_up(NOW, &respelled).await), "hit Fresh");
    }
    let mut kept = 0;
    for n in 0..40 {
        let asked = get("/a", &[("accept-language", &format!("l{n}")), ("accept-encoding", "br, gzip")]);
        kept += usize::from(matches!(cache.look_up(NOW, &asked).await, Lookup::Hit(_)));
    }
    assert_eq!(kept, 16);
}

#[tokio::test]
async fn waiters_of_another_variant_look_again() {
    let cache = cache();
    let (english, french) =
        (get("/a", &[("accept-language", "en")]), get("/a", &[("accept-language", "fr")]));
    let permit = miss(&cache, NOW, &english).await;
    let waiting = {
        let (cache, french) = (cache.clone(), french.clone());
        tokio::spawn(async move { name(&cache.look_up(NOW, &french).await) })
    };
    tokio::task::yield_now().await;
    let fields = [("cache-control", "max-age=60"), ("vary", "accept-language")];
    let (_, writer) = fill(permit, &english, NOW, &head(200, &fields));
    assert_eq!(waiting.await.expect("no panic"), "miss");
    // While the first still grows, a third language does not even wait for it.
    assert_eq!(name(&cache.look_up(NOW, &get("/a", &[("accept-language", "de")])).await), "miss");
    assert!(name(&cache.look_up(NOW, &english).await).starts_with("hit Joined"));
    writer.finish().expect("the right length");
}

#[tokio::test]
async fn conditions_ranges_and_head_are_answered_from_the_whole() {
    let cache = cache();
    let fields = [("cache-control", "max-age=60"), ("etag", "\"1\""), ("content-length", "10")];
    put(&cache, NOW, &get("/a", &[]), &fields, "0123456789").await;
    type Row<'a> = (Method, &'a [(&'a str, &'a str)], u16, &'a str);
    let table: &[Row<'_>] = &[
        (Method::GET, &[("if-none-match", "\"1\"")], 304, ""),
        (Method::GET, &[("if-none-match", "\"2\"")], 200, "0123456789"),
        (Method::GET, &[("range", "bytes=2-4")], 206, "234"),
        (Method::GET, &[("range", "bytes=-2")], 206, "89"),
        (Method::GET, &[("range", "bytes=10-")], 416, ""),
        (Method::GET, &[("range", "bytes=0-1,4-5")], 200, "0123456789"),
        (Method::GET, &[("range", "bytes=2-4"), ("if-range", "\"1\"")], 206, "234"),
        (Method::GET, &[("range", "bytes=2-4"), ("if-range", "\"2\"")], 200, "0123456789"),
        (Method::GET, &[("range", "bytes=2-4"), ("if-none-match", "\"1\"")], 304, ""),
        (Method::HEAD, &[], 200, ""),
        (Method::HEAD, &[("range", "bytes=2-4")], 200, ""),
    ];
    for (method, fields, want_status, want_body) in table {
        let asked = ask(method.clone(), "/a", fields);
        let (status, headers, body) = read(hit(&cache, NOW, &asked).await, NOW, &asked).await;
        assert_eq!((status, body.as_str()), (*want_status, *want_body), "{method} {fields:?}");
        if status == 206 {
            assert_eq!(headers["content-length"], want_body.len().to_string().as_str());
            assert!(headers["content-range"].to_str().expect("text").ends_with("/10"));
        }
        if *method == Method::HEAD {
            assert_eq!(headers["content-length"], "10");
        }
    }
    assert_eq!(name(&cache.look_up(NOW, &ask(Method::HEAD, "/b", &[])).await), "pass head");
    assert_eq!(name(&cache.look_up(NOW, &ask(Method::POST, "/a", &[])).await), "pass method");
    assert_eq!(name(&cache.look_up(NOW, &get("/a", &[("if-match", "\"1\"")])).await), "pass precondition");
    assert_eq!(
        name(&cache.look_up(NOW, &get("/b", &[("cache-control", "only-if-cached")])).await),
        "only-if-cached"
    );
}

#[tokio::test]
async fn a_range_is_served_while_the_body_grows() {
    let cache = cache();
    let asked = get("/a", &[]);
    let fields = [("cache-control", "max-age=60"), ("content-length", "10")];
    let (_, mut writer) = fill(miss(&cache, NOW, &asked).await, &asked, NOW, &head(200, &fields));
    writer.push(&Bytes::from_static(b"01234"));
    let part = get("/a", &[("range", "bytes=1-3")]);
    let (status, _, body) = read(hit(&cache, NOW, &part).await, NOW, &part).await;
    assert_eq!((status, body.as_str()), (206, "123"), "before the upstream is done");
    drop(writer);
}

#[tokio::test]
async fn an_invalidation_reaches_fills_under_way() {
    let cache = cache();
    let asked = get("/a", &[]);
    let (first, mut writer) =
        fill(miss(&cache, NOW, &asked).await, &asked, NOW, &head(200, &[("cache-control", "max-age=60")]));
    cache.invalidate(&asked.key);
    let second = miss(&cache, NOW, &asked).await;
    writer.push(&Bytes::from_static(b"from before"));
    writer.finish().expect("the right length");
    assert_eq!(text(first.respond(NOW, &asked).into_body()).await.as_deref(), Ok("from before"));
    drop(second);
    assert_eq!(
        name(&cache.look_up(NOW, &asked).await),
        "miss",
        "what was asked before the change is not stored"
    );
}

#[tokio::test]
async fn a_body_that_outgrows_its_limit_becomes_a_relay() {
    let cache = cache();
    let asked = get("/a", &[]);
    let (first, mut writer) =
        fill(miss(&cache, NOW, &asked).await, &asked, NOW, &head(200, &[("cache-control", "max-age=60")]));
    let piece = Bytes::from(vec![7u8; 1 << 15]);
    let reading = tokio::spawn(async move { first.respond(NOW, &asked).into_body().collect().await });
    // 64 pieces of 32 KiB are far over the 64 KiB that one object may have.
    for _ in 0..64 {
        writer.ready().await.expect("somebody reads");
        writer.push(&piece);
    }
    assert_eq!(name(&cache.look_up(NOW, &get("/a", &[])).await), "pass remembered");
    writer.finish().expect("the right length");
    let whole = reading.await.expect("no panic").expect("all of it").to_bytes();
    assert_eq!(whole.len(), 64 << 15);
    assert_eq!(cache.size().keys, 0);
    assert_eq!(cache.filling_bytes(), 0);
}

#[tokio::test]
async fn a_relay_waits_for_its_slowest_reader_and_stops_without_any() {
    let cache = cache();
    let asked = get("/a", &[]);
    let (first, mut writer) =
        fill(miss(&cache, NOW, &asked).await, &asked, NOW, &head(200, &[("cache-control", "max-age=60")]));
    let piece = Bytes::from(vec![7u8; 1 << 20]);
    writer.push(&piece);
    writer.push(&piece);
    let waiting = tokio::time::timeout(Duration::from_millis(20), writer.ready()).await;
    assert!(waiting.is_err(), "one megabyte is held, and no more");
    let body = first.respond(NOW, &asked).into_body();
    writer.cut_slowest();
    assert_eq!(text(body).await, Err(BodyAborted::TooSlow));
    assert!(writer.ready().await.is_err(), "nobody reads");
}

#[tokio::test]
async fn clients_are_obeyed_only_where_the_policy_says_so() {
    let fields = [("cache-control", "max-age=60")];
    let impatient = get("/a", &[("cache-control", "no-cache")]);
    let deaf = cache();
    put(&deaf, NOW, &get("/a", &[]), &fields, "x").await;
    assert_eq!(name(&deaf.look_up(NOW, &impatient).await), "hit Fresh");
    let obeyed = impatient.under(Policy { client_directives: true, ..Policy::SAFE });
    let permit = miss(&deaf, NOW, &obeyed).await;
    assert_eq!(permit.why().as_str(), "request");
}

#[tokio::test]
async fn memory_is_bounded_by_bytes() {
    let cache = cache();
    let body: &'static str = Box::leak("x".repeat(50_000).into_boxed_str());
    for n in 0..200 {
        put(&cache, NOW, &get(&format!("/{n}"), &[]), &[("cache-control", "max-age=60")], body).await;
    }
    let size = cache.size();
    assert!(size.bytes <= 1 << 20, "{size:?}");
    assert!(size.keys >= 10, "{size:?}");
}

#[tokio::test]
async fn a_body_that_is_not_to_be_kept_reaches_those_who_read_it() {
    let cache = cache();
    let asked = get("/a", &[]);
    let permit = miss(&cache, NOW, &asked).await;
    let (filled, mut writer) = fill(permit, &asked, NOW, &head(200, &[("cache-control", "max-age=60")]));
    writer.push(&Bytes::from_static(b"for you"));
    writer.finish_unstored().expect("the right length");
    let (status, _, body) = read(filled, NOW, &asked).await;
    assert_eq!((status, body.as_str()), (200, "for you"));
    drop(miss(&cache, NOW, &asked).await);
}
