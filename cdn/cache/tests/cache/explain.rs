//! What the cache says that it would do: text in, text out; and that it does just that.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use expect_test::{Expect, expect};
use http::{HeaderMap, Method};
use proptest::prelude::*;
use souk_cache::freshness::Exchanged;
use souk_cache::{Asked, Cache, FillPermit, Lookup, Outcome, Policy, Purge, Scope, Stored, Tag};

use super::{NOW, ask, at, cache, fill, get, head, miss, put};

fn check(cache: &Cache, now_ms: u64, asked: &Asked, expected: Expect) {
    expected.assert_eq(&cache.explain(now_ms, asked).to_string());
}

#[test]
fn nothing_is_stored() {
    check(
        &cache(),
        NOW,
        &get("/tea?size=2", &[]),
        expect![[r#"
        outcome     fetches (uri-miss): nothing is stored for this key
        key         site site, http, shop.example, /tea?size=2
        switches    none
        variants    0 of at most 16 stored
        stored      nothing for this variant
    "#]],
    );
}

#[tokio::test]
async fn what_is_fresh_is_reckoned_line_by_line() {
    let cache = cache();
    let fields = [
        ("cache-control", "max-age=60, stale-while-revalidate=30, stale-if-error=600"),
        ("etag", "\"a\""),
        ("age", "5"),
        ("date", "Fri, 15 Jan 2027 07:59:50 GMT"),
        ("vary", "accept-encoding, shop-currency"),
        ("content-type", "text/html"),
        ("set-cookie", "secret=1"),
    ];
    let policy = Policy { store_set_cookie: true, ..Policy::SAFE };
    let asked = get("/tea", &[("accept-encoding", "br;q=1, gzip"), ("shop-currency", "GBP")]).under(policy);
    let permit = miss(&cache, NOW, &asked).await;
    let when = Exchanged { asked_ms: NOW - 2_000, answered_ms: NOW };
    let Stored::Filling(_, mut writer) = permit.store(&head(200, &fields), &asked, when) else {
        panic!("it may be stored")
    };
    writer.push(&Bytes::from_static(b"a page"));
    writer.finish().expect("the right length");

    check(
        &cache,
        NOW + 20_000,
        &asked,
        expect![[r#"
        outcome     hit: what is stored is sent, and the upstream is not asked
        answer      200, Age 30
                    cache-status: Souk; hit; ttl=30
        key         site site, http, shop.example, /tea
        switches    store_set_cookie
        variants    1 of at most 16 stored
                    told apart by accept-encoding: "br, gzip"
                    told apart by shop-currency: "GBP"
        tier        memory
        stored      200, 6 bytes, whole
                    cache-control: max-age=60, stale-while-revalidate=30, stale-if-error=600
                    date: Fri, 15 Jan 2027 07:59:50 GMT
                    etag: "a"
                    vary: accept-encoding, shop-currency
                    content-type: text/html
                    content-length: 6
                    set-cookie: 1 of them, which every client gets
                    response_time            Fri, 15 Jan 2027 08:00:00 GMT
                    date_value               Fri, 15 Jan 2027 07:59:50 GMT
                    apparent_age             10 s = response_time - date_value, at least 0
                    age_value                5 s, as Age came
                    response_delay           2 s
                    corrected_initial_age    10 s = the greater of apparent_age and age_value + response_delay
                    resident_time            20 s
                    current_age              30 s = corrected_initial_age + resident_time
                    freshness_lifetime       60 s from max-age (RFC 9111 section 5.2.2.1)
                    ttl                      30 s = freshness_lifetime - current_age
                    stale-while-revalidate   30 s beyond its lifetime: 60 s from now (RFC 5861)
                    stale-if-error           600 s beyond its lifetime: 630 s from now (RFC 5861)
        usable      without asking; and if the upstream fails
    "#]],
    );
    let has_it =
        get("/tea", &[("accept-encoding", "gzip, br"), ("shop-currency", "GBP"), ("if-none-match", "\"a\"")]);
    check(
        &cache,
        NOW + 60_000,
        &has_it,
        expect![[r#"
        outcome     stale: what is stored is sent at once, and one fetch refreshes it behind it
        answer      304, Age 70
                    cache-status: Souk; hit; ttl=-10; detail=stale_while_revalidate
        key         site site, http, shop.example, /tea
        switches    none
        variants    1 of at most 16 stored
                    told apart by accept-encoding: "br, gzip"
                    told apart by shop-currency: "GBP"
        tier        memory
        stored      200, 6 bytes, whole
                    cache-control: max-age=60, stale-while-revalidate=30, stale-if-error=600
                    date: Fri, 15 Jan 2027 07:59:50 GMT
                    etag: "a"
                    vary: accept-encoding, shop-currency
                    content-type: text/html
                    content-length: 6
                    set-cookie: 1 of them, which every client gets
                    response_time            Fri, 15 Jan 2027 08:00:00 GMT
                    date_value               Fri, 15 Jan 2027 07:59:50 GMT
                    apparent_age             10 s = response_time - date_value, at least 0
                    age_value                5 s, as Age came
                    response_delay           2 s
                    corrected_initial_age    10 s = the greater of apparent_age and age_value + response_delay
                    resident_time            60 s
                    current_age              70 s = corrected_initial_age + resident_time
                    freshness_lifetime       60 s from max-age (RFC 9111 section 5.2.2.1)
                    ttl                      -10 s = freshness_lifetime - current_age
                    stale-while-revalidate   30 s beyond its lifetime: 20 s from now (RFC 5861)
                    stale-if-error           600 s beyond its lifetime: 590 s from now (RFC 5861)
        usable      while it is refreshed; and if the upstream fails
    "#]],
    );
    let in_euro = get("/tea", &[("accept-encoding", "gzip, br"), ("shop-currency", "EUR")]);
    check(
        &cache,
        NOW + 20_000,
        &in_euro,
        expect![[r#"
        outcome     fetches (vary-miss): other variants are stored, and not this one
        key         site site, http, shop.example, /tea
        switches    none
        variants    1 of at most 16 stored
                    told apart by accept-encoding: "br, gzip"
                    told apart by shop-currency: "EUR"
        tier        memory
        stored      nothing for this variant
    "#]],
    );
}

#[tokio::test]
async fn a_wish_of_the_client_counts_where_it_is_obeyed() {
    let cache = cache();
    let asked = get("/tea", &[]);
    put(&cache, NOW, &asked, &[("cdn-cache-control", "max-age=60"), ("etag", "\"a\"")], "a page").await;
    let newest = get("/tea", &[("cache-control", "max-age=5")]);
    assert_eq!(cache.explain(NOW + 10_000, &newest).outcome, Outcome::Hit, "safe: clients do not steer");
    check(
        &cache,
        NOW + 10_000,
        &newest.under(Policy::STRICT),
        expect![[r#"
        outcome     fetches (request): the client asks for something newer; with if-none-match: "a"
        key         site site, http, shop.example, /tea
        switches    heuristic_freshness, store_set_cookie, client_directives, negotiate_languages, store_posts, store_parts
        variants    1 of at most 16 stored
        tier        memory
        stored      200, 6 bytes, whole
                    cdn-cache-control: max-age=60
                    date: Fri, 15 Jan 2027 08:00:00 GMT
                    etag: "a"
                    content-length: 6
                    response_time            Fri, 15 Jan 2027 08:00:00 GMT
                    date_value               Fri, 15 Jan 2027 08:00:00 GMT
                    apparent_age             0 s = response_time - date_value, at least 0
                    age_value                0 s, as Age came
                    response_delay           0 s
                    corrected_initial_age    0 s = the greater of apparent_age and age_value + response_delay
                    resident_time            10 s
                    current_age              10 s = corrected_initial_age + resident_time
                    freshness_lifetime       60 s from max-age (RFC 9111 section 5.2.2.1), in CDN-Cache-Control (RFC 9213)
                    ttl                      50 s = freshness_lifetime - current_age
        usable      only after asking; and if the upstream fails
    "#]],
    );
}

#[tokio::test]
async fn an_uncacheable_key_says_what_the_last_answer_was() {
    let cache = cache();
    let asked = get("/cart", &[]);
    let permit = miss(&cache, NOW, &asked).await;
    let stored = permit.store(&head(200, &[("cache-control", "private")]), &asked, at(NOW));
    assert!(matches!(stored, Stored::Pass(_)));
    check(
        &cache,
        NOW + 9_000,
        &asked,
        expect![[r#"
        outcome     passes (remembered): the last answer for this key could not be stored, so nobody waits for another
        key         site site, http, shop.example, /cart
        switches    none
        variants    0 of at most 16 stored
        remembered  private: the response says private; for 21 s more
        stored      nothing for this variant
    "#]],
    );
    let _finds_out = miss(&cache, NOW + 40_000, &asked).await;
    check(
        &cache,
        NOW + 40_000,
        &asked,
        expect![[r#"
        outcome     passes (remembered): the last answer for this key could not be stored, so nobody waits for another
        key         site site, http, shop.example, /cart
        switches    none
        variants    0 of at most 16 stored
        fetches     1 under way for this key
        remembered  private: the response says private; until the next answer, for which nobody waits
        stored      nothing for this variant
    "#]],
    );
    check(
        &cache,
        NOW + 40_000,
        &asked.under(Policy::PASS),
        expect![[r#"
        outcome     passes (policy): the policy here is to keep nothing
        key         site site, http, shop.example, /cart
        switches    pass
        variants    0 of at most 16 stored
        fetches     1 under way for this key
        remembered  private: the response says private; until the next answer, for which nobody waits
        stored      nothing for this variant
    "#]],
    );
}

#[tokio::test]
async fn nobody_is_said_to_wait_for_nothing_where_people_do() {
    let says = |cache: &Cache, now_ms: u64, asked: &Asked| {
        let said = cache.explain(now_ms, asked);
        assert_eq!(said.outcome.name(), "waits", "{said}");
        let said = said.to_string();
        let line = said.lines().find_map(|line| line.strip_prefix("remembered  "));
        line.unwrap_or_else(|| panic!("nothing is remembered:\n{said}")).to_owned()
    };
    let (cache, film) = (cache(), get("/film", &[]));
    miss(&cache, NOW, &film).await.keep_in_slices(NOW);
    let _fetches = miss(&cache, NOW + 40_000, &film).await;
    let said = says(&cache, NOW + 40_000, &film);
    assert_eq!(said, "sliced: it is large and kept in slices; until the next answer");

    let (pounds, euros) = (get("/p", &[("x-currency", "GBP")]), get("/p", &[("x-currency", "EUR")]));
    put(&cache, NOW, &pounds, &[("cache-control", "max-age=60"), ("vary", "x-currency")], "old").await;
    let private = head(200, &[("cache-control", "private")]);
    let refused = miss(&cache, NOW, &euros).await.store(&private, &euros, at(NOW));
    assert!(matches!(refused, Stored::Pass(_)));
    let _fetches = miss(&cache, NOW + 60_000, &pounds).await;
    let said = says(&cache, NOW + 60_000, &pounds);
    assert_eq!(said, "private: the response says private; until the next answer");
}

#[tokio::test]
async fn a_fetch_under_way_is_seen_and_not_joined() {
    let cache = cache();
    let asked = get("/tea", &[]);
    let permit = miss(&cache, NOW, &asked).await;
    check(
        &cache,
        NOW,
        &asked,
        expect![[r#"
        outcome     waits: for the head of what another request is fetching, and no longer
        key         site site, http, shop.example, /tea
        switches    none
        variants    0 of at most 16 stored
        fetches     1 under way for this key
        stored      nothing for this variant
    "#]],
    );
    let (_hit, writer) = fill(permit, &asked, NOW, &head(200, &[("cache-control", "max-age=60")]));
    check(
        &cache,
        NOW,
        &asked,
        expect![[r#"
        outcome     joins: the response is arriving for another request, and is read along
        answer      200, Age 0
                    cache-status: Souk; fwd=uri-miss; collapsed; ttl=60
        key         site site, http, shop.example, /tea
        switches    none
        variants    0 of at most 16 stored
        fetches     1 under way for this key
        stored      nothing for this variant
    "#]],
    );
    drop(writer);
    assert_eq!(cache.waiting(), 0, "whoever asks what would be does not wait");
}

#[tokio::test]
async fn a_question_about_what_was_purged_leaves_it_where_it_is() {
    let cache = cache();
    let asked = get("/tea", &[]);
    put(&cache, NOW, &asked, &[("cache-control", "max-age=60"), ("surrogate-key", "red")], "tea").await;
    for soft in [true, false] {
        let red = Scope::Tag(Tag::named("site", "red"));
        cache.purge(NOW, &[Purge { scope: red, soft }]);
        let (size, purged) = (cache.size(), cache.purged());
        let said = cache.explain(NOW, &asked);
        assert!(matches!(said.outcome, Outcome::Fetches { .. }), "{said}");
        assert_eq!(said.stored.is_some(), soft, "{said}");
        assert_eq!((cache.size(), cache.purged()), (size, purged));
    }
    drop(miss(&cache, NOW, &asked).await);
    assert_eq!((cache.size().keys, cache.purged().entries_gone), (0, 1), "a request does it");
}

/// What a request can be like, small enough that chance meets every branch.
fn requests() -> impl Strategy<Value = Asked> {
    let method = prop_oneof![
        8 => Just(Method::GET),
        2 => Just(Method::HEAD),
        1 => Just(Method::POST),
    ];
    let field = prop_oneof![
        4 => Just(None),
        1 => Just(Some(("cache-control", "no-cache"))),
        1 => Just(Some(("cache-control", "max-age=15"))),
        1 => Just(Some(("cache-control", "max-stale"))),
        1 => Just(Some(("cache-control", "only-if-cached"))),
        1 => Just(Some(("authorization", "x"))),
        1 => Just(Some(("if-match", "\"a\""))),
        1 => Just(Some(("if-none-match", "\"a\""))),
        1 => Just(Some(("range", "bytes=1-2"))),
    ];
    let policy = prop_oneof![4 => Just(Policy::SAFE), 4 => Just(Policy::STRICT), 1 => Just(Policy::PASS)];
    (method, field, prop_oneof![Just("1"), Just("2")], policy).prop_map(|(method, field, kind, policy)| {
        let fields: Vec<_> = field.into_iter().chain([("kind", kind)]).collect();
        ask(method, "/tea", &fields).under(policy)
    })
}

fn responses() -> impl Strategy<Value = Vec<(&'static str, &'static str)>> {
    let control = prop_oneof![
        Just("max-age=20"),
        Just("max-age=20, stale-while-revalidate=20"),
        Just("max-age=20, stale-if-error=40"),
        Just("max-age=0, must-revalidate"),
        Just("no-cache"),
        Just("private"),
        Just("s-maxage=30, public"),
    ];
    (control, any::<bool>(), any::<bool>()).prop_map(|(control, tagged, varies)| {
        let tag = tagged.then_some(("etag", "\"a\""));
        let vary = varies.then_some(("vary", "kind"));
        [("cache-control", control)].into_iter().chain(tag).chain(vary).collect()
    })
}

/// What a look-up does now, if it does not wait.
fn look_up(cache: &Cache, now_ms: u64, asked: &Asked) -> Option<Lookup> {
    match pin!(cache.look_up(now_ms, asked)).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(lookup) => Some(lookup),
        Poll::Pending => None,
    }
}

fn with(permit: &FillPermit, asked: &Asked) -> HeaderMap {
    permit.conditions(asked)
}

proptest! {
    #[test]
    fn it_does_what_it_says(
        before in (requests(), responses(), any::<bool>()),
        held in proptest::option::of((requests(), responses(), any::<bool>())),
        asked in requests(),
        later_s in 0u64..90,
    ) {
        let cache = cache();
        // One response stored, or refused and remembered; then one fetch that is still under way, or none.
        let mut under_way = Vec::new();
        let pasts = [Some(before), held].into_iter().flatten().zip([NOW, NOW + later_s * 1_000]);
        for (number, ((request, response, finishes), when)) in pasts.enumerate() {
            if let Some(Lookup::Miss(permit)) = look_up(&cache, when, &request) {
                if number == 1 && !finishes {
                    under_way.push((Some(permit), None));
                    continue;
                }
                if let Stored::Filling(_, mut writer) = permit.store(&head(200, &response), &request, at(when)) {
                    writer.push(&Bytes::from_static(b"a page"));
                    if number == 0 {
                        writer.finish().expect("no length was announced");
                    } else {
                        under_way.push((None, Some(writer)));
                    }
                }
            }
        }
        let now_ms = NOW + later_s * 1_000;
        let said = cache.explain(now_ms, &asked);
        let again = cache.explain(now_ms, &asked);
        prop_assert_eq!(said.to_string(), again.to_string(), "asking changed something");
        let did = look_up(&cache, now_ms, &asked);
        let agrees = match (&said.outcome, &did) {
            (Outcome::Hit, Some(Lookup::Hit(_))) => true,
            (Outcome::Joins(why), Some(Lookup::Hit(hit))) => {
                hit.how() == souk_cache::status::How::Joined(*why)
            }
            (Outcome::Stale { refreshes: true }, Some(Lookup::Stale(..))) => true,
            (Outcome::Stale { refreshes: false }, Some(Lookup::Hit(_))) => true,
            (Outcome::Waits(_), None) => true,
            (Outcome::Fetches { why, with: said }, Some(Lookup::Miss(permit))) => {
                *why == permit.why() && *said == with(permit, &asked)
            }
            (Outcome::Passes(reason), Some(Lookup::Pass(did))) => reason == did,
            (Outcome::OnlyIfCached, Some(Lookup::OnlyIfCached)) => true,
            _ => false,
        };
        prop_assert!(agrees, "it said\n{said}\nand did {:?}", did.as_ref().map(super::name));
        if let (Some((status, headers)), Some(Lookup::Hit(hit) | Lookup::Stale(hit, _))) = (said.answer, did) {
            let (did, _) = hit.respond(now_ms, &asked).into_parts();
            prop_assert_eq!((status, headers), (did.status, did.headers));
        }
    }
}
