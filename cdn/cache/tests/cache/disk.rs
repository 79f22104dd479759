//! A cache whose folder outlives it: what the next one answers, and what it must not.

use std::path::Path;

use souk_cache::disk::{DiskLimits, Phase};
use souk_cache::shelf::MemoryShelf;
use souk_cache::{Outcome, Purge, Scope, Tag, Tier};

use super::*;

pub(crate) fn open(dir: &Path) -> Cache {
    open_in(dir, limits().memory_bytes_max)
}

pub(crate) fn open_in(dir: &Path, memory_bytes_max: u64) -> Cache {
    let shelf = Box::new(MemoryShelf::new(memory_bytes_max));
    let disk = DiskLimits { bytes_max: 16 << 20, object_bytes_max: limits().object_bytes_max, shared: false };
    let told = Box::new(|_: souk_cache::disk::Notice| {});
    Cache::with_disk(shelf, limits(), limits().fill_bytes_max, dir, disk, told).expect("a folder")
}

/// After everything that was stored is written.
fn close(cache: Cache) {
    cache.disk().expect("it has one").close();
}

/// However long the machine takes for it.
pub(crate) async fn persist(cache: &Cache) {
    while !cache.persisted().await {
        tokio::task::yield_now().await;
    }
}

async fn reopen(cache: Cache, dir: &Path) -> Cache {
    close(cache);
    let cache = open(dir);
    cache.disk().expect("it has one").ready().await;
    cache
}

async fn opened(dir: &Path) -> Cache {
    let cache = open(dir);
    cache.disk().expect("it has one").ready().await;
    assert_eq!(cache.disk().expect("it has one").counts().phase, Phase::On);
    cache
}

#[tokio::test]
async fn the_next_process_answers_with_what_the_last_one_stored_and_it_has_aged() {
    let dir = tempfile::tempdir().expect("a folder");
    let cache = opened(dir.path()).await;
    let asked = get("/a", &[]);
    let fields = [("cache-control", "max-age=3600"), ("etag", "\"1\"")];
    put(&cache, NOW, &asked, &fields, "hello").await;
    let cache = reopen(cache, dir.path()).await;
    let later = NOW + 600_000;
    assert_eq!(cache.size().keys, 0, "memory is empty");
    let found = hit(&cache, later, &asked).await;
    let (status, headers, body) = read(found, later, &asked).await;
    assert_eq!((status, body.as_str()), (200, "hello"));
    assert_eq!(headers["age"], "600");
    assert_eq!(cache.size().keys, 1, "and it is in memory from now on");
    assert_eq!(cache.disk().expect("it has one").counts().hits, 1);

    // Stale by then: it is asked for with its validator, not sent.
    let cache = reopen(cache, dir.path()).await;
    let permit = miss(&cache, NOW + 3_601_000, &asked).await;
    assert_eq!(permit.conditions(&asked)["if-none-match"], "\"1\"");
}

#[tokio::test]
async fn ranges_heads_and_conditions_are_answered_from_the_disk_too() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut cache = opened(dir.path()).await;
    put(&cache, NOW, &get("/a", &[]), &[("cache-control", "max-age=3600"), ("etag", "\"1\"")], "hello").await;
    for (asked, wanted) in [
        (get("/a", &[("range", "bytes=1-2")]), (206, "el")),
        (ask(Method::HEAD, "/a", &[]), (200, "")),
        (get("/a", &[("if-none-match", "\"1\"")]), (304, "")),
        (get("/a", &[("cache-control", "only-if-cached")]), (200, "hello")),
    ] {
        cache = reopen(cache, dir.path()).await;
        let found = hit(&cache, NOW, &asked).await;
        let (status, _, body) = read(found, NOW, &asked).await;
        assert_eq!((status, body.as_str()), wanted);
    }
}

#[tokio::test]
async fn what_stands_on_the_disk_only_is_explained_and_stays_there() {
    let dir = tempfile::tempdir().expect("a folder");
    let cache = opened(dir.path()).await;
    let asked = get("/a", &[("accept-encoding", "br")]);
    let fields = [("cache-control", "max-age=3600"), ("etag", "\"1\""), ("vary", "accept-encoding")];
    put(&cache, NOW, &asked, &fields, "hello").await;
    assert_eq!(cache.explain_with_disk(NOW, &asked).await.tier, Tier::Memory);
    let cache = reopen(cache, dir.path()).await;
    let counts = || cache.disk().expect("it has one").counts();

    let later = NOW + 600_000;
    let said = cache.explain_with_disk(later, &asked).await;
    assert_eq!((said.tier, &said.outcome), (Tier::Disk, &Outcome::Hit), "{said}");
    let stored = said.stored.as_ref().expect("what stands there");
    assert_eq!(
        (stored.arithmetic.current_age_s, stored.arithmetic.ttl_s, stored.length),
        (600, 3_000, Some(5))
    );
    assert!(said.to_string().contains("\ntier        disk: "), "{said}");
    let other = cache.explain_with_disk(later, &get("/a", &[("accept-encoding", "gzip")])).await;
    assert!(matches!(&other.outcome, Outcome::Fetches { why, .. } if why.as_str() == "vary-miss"), "{other}");
    let refused = cache.explain_with_disk(later, &ask(Method::POST, "/a", &[])).await;
    assert!(matches!(refused.outcome, Outcome::Passes(_)) && refused.tier == Tier::Nowhere, "{refused}");
    assert_eq!((cache.size().keys, counts().hits, counts().misses), (0, 0, 0), "nothing has changed");
    // What the memory alone knows.
    assert_eq!(cache.explain(later, &asked).tier, Tier::Nowhere);

    // Softly purged it waits there for its validator to be asked with, and then it is gone.
    let all = |soft| [Purge { scope: Scope::Site("site".into()), soft }];
    cache.purge(later, &all(true));
    let softened = cache.explain_with_disk(later, &asked).await;
    let Outcome::Fetches { with, .. } = &softened.outcome else { panic!("{softened}") };
    assert_eq!((softened.tier, &with["if-none-match"]), (Tier::Disk, &"\"1\"".parse().expect("a value")));
    cache.purge(later, &all(false));
    assert_eq!(cache.explain_with_disk(later, &asked).await.tier, Tier::Nowhere);
    assert_eq!(counts().purged, 0, "whoever looks up finds that out");
}

#[tokio::test]
async fn a_request_does_what_was_explained_of_the_disk() {
    let dir = tempfile::tempdir().expect("a folder");
    let cache = opened(dir.path()).await;
    let asked = get("/a", &[]);
    put(&cache, NOW, &asked, &[("cache-control", "max-age=3600")], "hello").await;
    let cache = reopen(cache, dir.path()).await;
    let (status, headers) = cache.explain_with_disk(NOW, &asked).await.answer.expect("a hit has a head");
    let found = hit(&cache, NOW, &asked).await;
    let (did, _) = found.respond(NOW, &asked).into_parts();
    assert_eq!((status, headers), (did.status, did.headers));
    assert_eq!(cache.explain_with_disk(NOW, &asked).await.tier, Tier::Memory);
}

#[tokio::test]
async fn an_invalidation_that_was_acknowledged_holds_for_the_next_process() {
    let dir = tempfile::tempdir().expect("a folder");
    let cache = opened(dir.path()).await;
    let (gone, kept) = (get("/gone", &[]), get("/kept", &[]));
    let fields = [("cache-control", "max-age=3600")];
    put(&cache, NOW, &gone, &fields, "old").await;
    put(&cache, NOW, &kept, &fields, "kept").await;
    let cache = reopen(cache, dir.path()).await;
    // The memory of this one has neither.
    cache.invalidate(&gone.key);
    persist(&cache).await;
    drop(miss(&cache, NOW, &gone).await);
    let cache = reopen(cache, dir.path()).await;
    drop(miss(&cache, NOW, &gone).await);
    drop(hit(&cache, NOW, &kept).await);
}

#[tokio::test]
async fn a_response_that_was_under_way_during_an_invalidation_is_not_on_the_disk_either() {
    let dir = tempfile::tempdir().expect("a folder");
    let cache = opened(dir.path()).await;
    let asked = get("/a", &[]);
    let permit = miss(&cache, NOW, &asked).await;
    let (_, mut writer) = fill(permit, &asked, NOW, &head(200, &[("cache-control", "max-age=3600")]));
    writer.push(&Bytes::from_static(b"old"));
    cache.invalidate(&asked.key);
    writer.finish().expect("the right length");
    let cache = reopen(cache, dir.path()).await;
    drop(miss(&cache, NOW, &asked).await);
}

#[tokio::test]
async fn what_is_withdrawn_or_confirmed_is_so_on_the_disk() {
    let dir = tempfile::tempdir().expect("a folder");
    let cache = opened(dir.path()).await;
    let fields = [("cache-control", "max-age=100"), ("etag", "\"1\"")];
    let (gone, confirmed) = (get("/gone", &[]), get("/confirmed", &[]));
    for asked in [&gone, &confirmed] {
        put(&cache, NOW, asked, &fields, "hello").await;
    }
    let later = NOW + 200_000;
    let permit = miss(&cache, later, &gone).await;
    let Stored::Pass(_) = permit.store(&head(410, &[("cache-control", "no-store")]), &gone, at(later)) else {
        panic!("it may not be stored")
    };
    let permit = miss(&cache, later, &confirmed).await;
    assert!(permit.confirm(&map(&fields), &confirmed, at(later)).is_ok());
    let cache = reopen(cache, dir.path()).await;
    drop(miss(&cache, later, &gone).await);
    drop(hit(&cache, later + 50_000, &confirmed).await);
}

#[tokio::test]
async fn what_the_memory_has_no_room_for_is_answered_from_the_disk() {
    let dir = tempfile::tempdir().expect("a folder");
    let cache = opened(dir.path()).await;
    let body: &'static str = "0123456789abcdef".repeat(2_048).leak();
    let pages: Vec<_> = (0..100).map(|n| get(&format!("/{n}"), &[])).collect();
    for page in &pages {
        put(&cache, NOW, page, &[("cache-control", "max-age=3600")], body).await;
        // Slower than a disk: what is stored faster than it is written is dropped, and counted.
        while cache.disk().expect("it has one").counts().queued > 0 {
            tokio::task::yield_now().await;
        }
    }
    assert!(cache.size().keys < 40, "three megabytes in one");
    for page in &pages {
        drop(hit(&cache, NOW, page).await);
    }
    assert!(cache.disk().expect("it has one").counts().hits >= 60);
    assert!(cache.size().bytes <= limits().memory_bytes_max);
}

/// One key is stored, invalidated, pushed out of memory and looked up from several threads: whoever looks up after an
/// invalidation has ended sees nothing older, from the disk neither.
#[test]
fn nothing_older_than_an_invalidation_is_ever_read_back() {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    const ROUNDS: u64 = 300;
    let dir = tempfile::tempdir().expect("a folder");
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    // Room for two or three entries.
    let cache = open_in(dir.path(), 3_000);
    runtime().block_on(cache.disk().expect("it has one").ready());
    let (upstream, floor, done) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let looked_up = AtomicU64::new(0);
    let get_or_fetch = async |target: &str| -> Option<u64> {
        let asked = get(target, &[]);
        match cache.look_up(NOW, &asked).await {
            Lookup::Hit(found) => {
                let body = text(found.respond(NOW, &asked).into_body()).await.ok()?;
                Some(body.parse().expect("a number"))
            }
            Lookup::Miss(permit) => {
                let version = upstream.load(Ordering::Acquire).to_string();
                let head = head(200, &[("cache-control", "max-age=3600")]);
                let Stored::Filling(_, mut writer) = permit.store(&head, &asked, at(NOW)) else {
                    return None;
                };
                writer.push(&Bytes::from(version));
                writer.finish().expect("the right length");
                None
            }
            _ => None,
        }
    };
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (runtime, get_or_fetch, floor, done) = (&runtime, &get_or_fetch, &floor, &done);
            let looked_up = &looked_up;
            scope.spawn(move || {
                let runtime = runtime();
                for round in 0.. {
                    if done.load(Ordering::Acquire) {
                        return;
                    }
                    let before = floor.load(Ordering::Acquire);
                    if let Some(version) = runtime.block_on(get_or_fetch("/a")) {
                        assert!(
                            version >= before,
                            "version {version} after {before} was the oldest that held"
                        );
                    }
                    runtime.block_on(get_or_fetch(&format!("/noise/{thread}/{}", round % 5)));
                    looked_up.fetch_add(1, Ordering::Release);
                }
            });
        }
        for version in 1..=ROUNDS {
            upstream.store(version, Ordering::Release);
            cache.invalidate(&get("/a", &[]).key);
            floor.store(version, Ordering::Release);
            runtime().block_on(cache.persisted());
            // Long enough to be stored, written, pushed out and read back.
            let enough = looked_up.load(Ordering::Acquire) + 30;
            while looked_up.load(Ordering::Acquire) < enough {
                std::thread::yield_now();
            }
        }
        done.store(true, Ordering::Release);
    });
    let counts = cache.disk().expect("it has one").counts();
    assert!(counts.hits > ROUNDS, "the disk was not asked: {counts:?}");
    close(cache);
}

#[tokio::test]
async fn a_purge_holds_for_the_next_process_and_for_what_was_read_back_before_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let red = [Purge { scope: Scope::Tag(Tag::named("site", "red")), soft: false }];
    let tagged = [("cache-control", "max-age=3600"), ("surrogate-key", "red")];
    let (early, late, blue) = (get("/early", &[]), get("/late", &[]), get("/blue", &[]));
    let cache = opened(dir.path()).await;
    put(&cache, NOW, &early, &tagged, "old").await;
    put(&cache, NOW, &blue, &[("cache-control", "max-age=3600")], "blue").await;

    // Read back into memory by the next process, tags and all.
    let cache = reopen(cache, dir.path()).await;
    drop(hit(&cache, NOW, &early).await);
    drop(hit(&cache, NOW, &blue).await);
    cache.purge(NOW, &red);
    persist(&cache).await;
    drop(miss(&cache, NOW, &early).await);
    drop(hit(&cache, NOW, &blue).await);

    // What was made after it is kept, though the next process begins to count anew.
    put(&cache, NOW, &late, &tagged, "new").await;
    let cache = reopen(cache, dir.path()).await;
    drop(miss(&cache, NOW, &early).await);
    drop(hit(&cache, NOW, &late).await);
    drop(hit(&cache, NOW, &blue).await);
    cache.purge(NOW, &red);
    drop(miss(&cache, NOW, &late).await);
}
