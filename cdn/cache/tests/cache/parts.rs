//! Parts: a range that is forwarded, what is answered from the part that came back, and what completes it.

use bytes::Bytes;
use souk_cache::{Asked, Cache, Lookup, PassReason, Policy, Stored};

use crate::{NOW, at, cache, fill, get, head, hit, map, miss, name, put, read};

const FRESH: (&str, &str) = ("cache-control", "max-age=60");
const TAG: (&str, &str) = ("etag", "\"1\"");

fn strict(fields: &[(&str, &str)]) -> Asked {
    get("/film", fields).under(Policy::STRICT)
}

fn range(range: &str) -> Asked {
    strict(&[("range", range)])
}

/// Asks for `wanted` and stores what the upstream answers: a 206 that stands where it says.
async fn put_part(cache: &Cache, wanted: &str, stands: &str, content: &'static str) -> (u16, String, String) {
    let asked = range(wanted);
    let permit = miss(cache, NOW, &asked).await;
    assert_eq!(permit.conditions(&asked), map(&[("range", wanted)]), "it is forwarded");
    let fields = [FRESH, TAG, ("content-range", stands), ("content-length", &content.len().to_string())];
    let (hit, mut writer) = fill(permit, &asked, NOW, &head(206, &fields));
    writer.push(&Bytes::from_static(content.as_bytes()));
    writer.finish().expect("the right length");
    let (status, headers, body) = read(hit, NOW, &asked).await;
    (status, headers["content-range"].to_str().expect("text").to_owned(), body)
}

#[tokio::test]
async fn a_part_answers_the_ranges_inside_of_it() {
    let cache = cache();
    let own = put_part(&cache, "bytes=2-6", "bytes 2-6/10", "23456").await;
    assert_eq!(own, (206, "bytes 2-6/10".to_owned(), "23456".to_owned()));
    for (wanted, stands, content) in [
        ("bytes=2-6", "bytes 2-6/10", "23456"),
        ("bytes=3-4", "bytes 3-4/10", "34"),
        ("bytes=6-6", "bytes 6-6/10", "6"),
    ] {
        let asked = range(wanted);
        let (status, headers, body) = read(hit(&cache, NOW, &asked).await, NOW, &asked).await;
        assert_eq!((status, body.as_str()), (206, content), "{wanted}");
        assert_eq!(headers["content-range"], stands);
        assert_eq!(headers["content-length"], content.len().to_string().as_str());
    }
    for outside in ["bytes=0-3", "bytes=6-7", "bytes=-4", "bytes=2-", "bytes=20-"] {
        let asked = range(outside);
        let permit = miss(&cache, NOW, &asked).await;
        assert_eq!(permit.conditions(&asked), map(&[("range", outside)]), "{outside}");
        assert_eq!(permit.why().as_str(), "partial");
    }
    let whole = strict(&[]);
    assert!(miss(&cache, NOW, &whole).await.conditions(&whole).is_empty(), "it is no beginning");
    let conditional = strict(&[("range", "bytes=3-4"), ("if-range", "\"2\"")]);
    drop(miss(&cache, NOW, &conditional).await);
    let other = strict(&[("range", "bytes=3-4, 5-6")]);
    assert!(
        miss(&cache, NOW, &other).await.conditions(&other).is_empty(),
        "several ranges come of the whole"
    );
}

#[tokio::test]
async fn a_beginning_is_completed_by_what_follows_it() {
    let cache = cache();
    put_part(&cache, "bytes=0-3", "bytes 0-3/10", "0123").await;
    let asked = strict(&[]);
    let permit = miss(&cache, NOW, &asked).await;
    assert_eq!(permit.conditions(&asked), map(&[("range", "bytes=4-"), ("if-range", "\"1\"")]));
    let rest = [FRESH, TAG, ("content-range", "bytes 4-9/10"), ("content-length", "6"), ("x-new", "1")];
    let (own, mut writer) = fill(permit, &asked, NOW + 1, &head(206, &rest));
    // Another client joins before the rest is here, and gets the whole too.
    let joined = hit(&cache, NOW + 1, &asked).await;
    writer.push(&Bytes::from_static(b"456789"));
    writer.finish().expect("the right length");
    for each in [own, joined, hit(&cache, NOW + 2, &asked).await] {
        let (status, headers, body) = read(each, NOW + 2, &asked).await;
        assert_eq!((status, body.as_str()), (200, "0123456789"));
        assert!(!headers.contains_key("content-range"));
        assert_eq!(headers["x-new"], "1");
    }
    let anywhere = range("bytes=-1");
    assert_eq!(read(hit(&cache, NOW + 2, &anywhere).await, NOW + 2, &anywhere).await.2, "9");
}

#[tokio::test]
async fn what_may_be_of_another_version_is_not_glued_on() {
    for (tag, stands) in [
        (Some("\"2\""), "bytes 4-9/10"),
        (Some("W/\"1\""), "bytes 4-9/10"),
        (None, "bytes 4-9/10"),
        (Some("\"1\""), "bytes 5-9/10"),
        (Some("\"1\""), "bytes 4-9/11"),
        (Some("\"1\""), "bytes 4-8/10"),
        (Some("\"1\""), "nonsense"),
    ] {
        let cache = cache();
        put_part(&cache, "bytes=0-3", "bytes 0-3/10", "0123").await;
        let asked = strict(&[]);
        let permit = miss(&cache, NOW, &asked).await;
        let mut fields = vec![FRESH, ("content-range", stands)];
        fields.extend(tag.map(|tag| ("etag", tag)));
        let Stored::Unfitting(permit) = permit.store(&head(206, &fields), &asked, at(NOW)) else {
            panic!("{tag:?} {stands} was glued on")
        };
        assert!(permit.conditions(&asked).is_empty(), "the next question is for the whole");
        let (_, mut writer) = fill(permit, &asked, NOW, &head(200, &[FRESH]));
        writer.push(&Bytes::from_static(b"another"));
        writer.finish().expect("the right length");
        assert_eq!(read(hit(&cache, NOW, &asked).await, NOW, &asked).await.2, "another");
    }
}

#[tokio::test]
async fn a_part_never_takes_the_place_of_a_whole() {
    let cache = cache();
    let asked = range("bytes=0-1");
    let permit = miss(&cache, NOW, &asked).await;
    let (_, mut writer) =
        fill(permit, &asked, NOW, &head(206, &[FRESH, TAG, ("content-range", "bytes 0-1/4")]));
    writer.push(&Bytes::from_static(b"pa"));
    // The whole comes while the part does: nobody waits for it, and it stays.
    put(&cache, NOW, &strict(&[]), &[FRESH, TAG], "page").await;
    writer.finish().expect("the right length");
    let whole = strict(&[]);
    assert_eq!(read(hit(&cache, NOW, &whole).await, NOW, &whole).await.2, "page");
}

#[tokio::test]
async fn a_part_that_contradicts_itself_is_not_stored() {
    for fields in [
        [FRESH, ("content-range", "bytes 0-3/10"), ("content-length", "3")],
        [FRESH, ("content-range", "bytes 0-3/*"), ("content-length", "4")],
        [FRESH, ("content-type", "multipart/byteranges; boundary=x"), ("content-range", "bytes 0-3/10")],
    ] {
        let cache = cache();
        let asked = range("bytes=0-3");
        let permit = miss(&cache, NOW, &asked).await;
        let stored = permit.store(&head(206, &fields), &asked, at(NOW));
        assert!(matches!(stored, Stored::Pass(PassReason::Partial)), "{fields:?}");
    }
}

#[tokio::test]
async fn a_stale_part_is_confirmed_as_a_part() {
    let cache = cache();
    put_part(&cache, "bytes=2-6", "bytes 2-6/10", "23456").await;
    let (later, asked) = (NOW + 61_000, range("bytes=3-4"));
    let permit = miss(&cache, later, &asked).await;
    assert_eq!(permit.conditions(&asked)["if-none-match"], "\"1\"");
    let Ok(own) = permit.confirm(&map(&[FRESH, TAG]), &asked, at(later)) else { panic!("confirmed") };
    assert_eq!(read(own, later, &asked).await.2, "34");
    assert_eq!(read(hit(&cache, later, &asked).await, later, &asked).await.0, 206);
}

#[tokio::test]
async fn the_safe_cache_fetches_the_whole_for_a_range() {
    let cache = cache();
    let asked = range("bytes=1-2").under(Policy::SAFE);
    let permit = miss(&cache, NOW, &asked).await;
    assert!(permit.conditions(&asked).is_empty());
    let stored = permit.store(&head(206, &[FRESH, ("content-range", "bytes 1-2/4")]), &asked, at(NOW));
    assert!(matches!(stored, Stored::Pass(PassReason::Partial)));
    let again = cache.look_up(NOW, &asked).await;
    assert!(matches!(again, Lookup::Miss(_)), "{}", name(&again));
}
