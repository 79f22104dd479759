//! Encodings beside the bytes that they were made of. The test plays the codec: what it hands back is no real encoding.

use bytes::Bytes;
use http_body_util::BodyExt as _;
use souk_cache::coding::Coding;
use souk_cache::{Asked, Cache, Lookup, Policy, Stored};

use super::{NOW, at, cache, get, head, hit, map, miss, name, read};

const SMALLER: &[u8] = b"\x1f\x8b smaller";

fn asked(fields: &[(&str, &str)]) -> Asked {
    get("/page", fields).under(Policy { compress: true, ..Policy::SAFE })
}

fn page() -> String {
    "a line of a page\n".repeat(100)
}

async fn put_page(cache: &Cache, fields: &[(&str, &str)]) {
    let asked = asked(&[]);
    let permit = miss(cache, NOW, &asked).await;
    let Stored::Filling(_, mut writer) = permit.store(&head(200, fields), &asked, at(NOW)) else {
        panic!("it may be stored")
    };
    writer.push(&Bytes::from(page()));
    writer.finish().expect("no length was announced");
}

const PAGE: [(&str, &str); 3] =
    [("cache-control", "max-age=60"), ("content-type", "text/html"), ("etag", "\"a\"")];

/// Plays the press once for this request.
async fn encode(cache: &Cache, now_ms: u64, asked: &Asked, with: &'static [u8]) -> Option<Coding> {
    let due = hit(cache, now_ms, asked).await.encoding_due(asked)?;
    assert_eq!(due.pieces().concat(), page().into_bytes());
    cache.add_encoding(&due, Bytes::from_static(with));
    Some(due.coding())
}

async fn bytes(cache: &Cache, now_ms: u64, asked: &Asked) -> (http::response::Parts, Bytes) {
    let (head, body) = hit(cache, now_ms, asked).await.respond(now_ms, asked).into_parts();
    (head, body.collect().await.expect("a whole body").to_bytes())
}

#[tokio::test]
async fn the_first_has_the_identity_and_the_next_the_encoding() {
    let cache = cache();
    put_page(&cache, &PAGE).await;
    let takes = asked(&[("accept-encoding", "gzip, br")]);
    let before = cache.size().bytes;
    let (head, body) = bytes(&cache, NOW, &takes).await;
    assert_eq!((body.as_ref(), head.headers.get("content-encoding")), (page().as_bytes(), None));
    assert_eq!(head.headers["vary"], "accept-encoding", "a cache behind this one must keep them apart");

    assert_eq!(encode(&cache, NOW, &takes, SMALLER).await, Some(Coding::Br));
    assert_eq!(encode(&cache, NOW, &takes, SMALLER).await, None, "once");
    // Two heads of 262 bytes are counted with an encoding: as fields and in bytes (`Entry::bytes`).
    let more = SMALLER.len() as u64 + 2 * 262;
    assert_eq!(cache.size().bytes, before + more, "it counts against the memory, and so do its heads");
    let (head, body) = bytes(&cache, NOW + 5_000, &takes).await;
    assert_eq!(body, SMALLER);
    let told: Vec<_> = ["content-encoding", "content-length", "etag", "vary", "age"]
        .map(|name| head.headers[name].to_str().expect("text").to_owned())
        .to_vec();
    assert_eq!(told, ["br", "10", "W/\"a\"", "accept-encoding", "5"]);
    assert!(!head.headers.contains_key("accept-ranges"));

    for (takes_none, why) in [
        (asked(&[]), "no field"),
        (asked(&[("accept-encoding", "gzip;q=0, br;q=0")]), "both refused"),
        (asked(&[("accept-encoding", "identity, br;q=0.5")]), "identity liked more"),
        (get("/page", &[("accept-encoding", "br")]), "a policy without"),
    ] {
        let (head, body) = bytes(&cache, NOW, &takes_none).await;
        assert_eq!((body.as_ref(), head.headers.get("content-encoding")), (page().as_bytes(), None), "{why}");
        assert_eq!(head.headers["etag"], "\"a\"", "{why}");
    }
    // For a client of gzip alone another is made.
    assert_eq!(encode(&cache, NOW, &asked(&[("accept-encoding", "gzip")]), b"x").await, Some(Coding::Gzip));
}

#[tokio::test]
async fn conditions_and_ranges_are_about_the_right_bytes() {
    let cache = cache();
    put_page(&cache, &PAGE).await;
    encode(&cache, NOW, &asked(&[("accept-encoding", "br")]), SMALLER).await.expect("due");
    let status = async |fields: &[(&str, &str)]| {
        let asked = asked(fields);
        let (status, headers, _) = read(hit(&cache, NOW, &asked).await, NOW, &asked).await;
        (status, headers.get("content-encoding").is_some())
    };
    for tag in ["\"a\"", "W/\"a\""] {
        assert_eq!(status(&[("accept-encoding", "br"), ("if-none-match", tag)]).await.0, 304, "{tag}");
        assert_eq!(status(&[("if-none-match", tag)]).await, (304, false), "{tag}");
    }
    let range = [("accept-encoding", "br"), ("range", "bytes=0-3")];
    assert_eq!(status(&range).await, (206, false), "a range is cut from the identity");
    let strong = [("accept-encoding", "br"), ("range", "bytes=0-3"), ("if-range", "\"a\"")];
    assert_eq!(status(&strong).await, (206, false));
    let weak = [("accept-encoding", "br"), ("range", "bytes=0-3"), ("if-range", "W/\"a\"")];
    assert_eq!(status(&weak).await, (200, false), "who has an encoding gets the whole anew");
    let (head, body) =
        bytes(&cache, NOW, &asked(&[("accept-encoding", "br, identity;q=0"), ("range", "bytes=0-3")])).await;
    assert_eq!((head.status.as_u16(), body.as_ref()), (200, SMALLER));
    let asked = Asked { method: http::Method::HEAD, ..asked(&[("accept-encoding", "br")]) };
    let (head, body) = bytes(&cache, NOW, &asked).await;
    assert_eq!((&head.headers["content-length"], body.len()), (&"10".parse().expect("a value"), 0));
}

#[tokio::test]
async fn a_purge_and_a_304_reach_both() {
    let cache = cache();
    put_page(&cache, &PAGE).await;
    let takes = asked(&[("accept-encoding", "br")]);
    encode(&cache, NOW, &takes, SMALLER).await.expect("due");
    // Stale; confirmed.
    let later = NOW + 61_000;
    let permit = miss(&cache, later, &takes).await;
    let fresh = map(&[("etag", "\"a\""), ("cache-control", "max-age=60")]);
    let confirmed =
        permit.confirm(&fresh, &takes, at(later)).map_err(|_| "unconfirmed").expect("the same tag");
    let (head, body) = confirmed.respond(later, &takes).into_parts();
    assert_eq!(head.headers["content-encoding"], "br");
    assert_eq!(body.collect().await.expect("a body").to_bytes(), SMALLER);
    assert_eq!(bytes(&cache, later + 50_000, &takes).await.1, SMALLER, "as fresh as the 304 says");
    // Confirmed again, and from now on the upstream wants its bytes left alone.
    let later = later + 61_000;
    let permit = miss(&cache, later, &takes).await;
    let fresh = map(&[("etag", "\"a\""), ("cache-control", "max-age=60, no-transform")]);
    permit.confirm(&fresh, &takes, at(later)).map_err(|_| "unconfirmed").expect("the same tag");
    let (head, body) = bytes(&cache, later, &takes).await;
    assert_eq!((body.as_ref(), head.headers.get("content-encoding")), (page().as_bytes(), None));
    assert!(!head.headers.contains_key("vary"));

    cache.invalidate(&takes.key);
    let lookup = cache.look_up(later, &takes).await;
    assert!(matches!(lookup, Lookup::Miss(_)), "{}", name(&lookup));
}

#[tokio::test]
async fn an_encoding_that_comes_in_the_middle_of_a_refresh_hinders_nothing() {
    let cache = cache();
    put_page(&cache, &PAGE).await;
    let takes = asked(&[("accept-encoding", "br")]);
    let due = hit(&cache, NOW, &takes).await.encoding_due(&takes).expect("due");
    let later = NOW + 61_000;
    let permit = miss(&cache, later, &takes).await;
    cache.add_encoding(&due, Bytes::from_static(SMALLER));
    let fresh = map(&[("etag", "\"a\""), ("cache-control", "max-age=60")]);
    permit.confirm(&fresh, &takes, at(later)).map_err(|_| "unconfirmed").expect("the same tag");
    hit(&cache, later + 59_000, &takes).await;
    // And one for bytes that have gone since puts nothing back.
    cache.invalidate(&takes.key);
    cache.add_encoding(&due, Bytes::from_static(SMALLER));
    assert_eq!(cache.size().keys, 0);
}

#[tokio::test]
async fn what_saves_too_little_is_not_asked_for_again() {
    let cache = cache();
    put_page(&cache, &PAGE).await;
    let takes = asked(&[("accept-encoding", "br")]);
    let large: &'static [u8] = Box::leak(vec![0; page().len()].into_boxed_slice());
    assert_eq!(encode(&cache, NOW, &takes, large).await, Some(Coding::Br));
    assert_eq!(encode(&cache, NOW, &takes, large).await, None);
    assert_eq!(bytes(&cache, NOW, &takes).await.1, page());
}
