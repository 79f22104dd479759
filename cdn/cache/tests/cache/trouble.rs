//! What errors, forgetfulness and unlucky moments do to the cache: nothing that lasts.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use souk_cache::cache::Failure;
use souk_cache::entry::Resource;
use souk_cache::shelf::{Change, MemoryShelf, Shelf, Size};
use souk_cache::{Cache, FillWriter, Key, Lookup, Stored};
use tokio::runtime::Builder;

use crate::{NOW, at, cache, fill, get, head, limits, miss, name, put};

#[tokio::test]
async fn an_error_of_the_upstream_switches_neither_cache_nor_single_flight_off() {
    for (status, fields) in [
        (500, &[][..]),
        (501, &[]),
        (503, &[("cache-control", "no-store")]),
        (503, &[("set-cookie", "a=b"), ("vary", "*")]),
        (599, &[]),
        (400, &[]),
        (400, &[("vary", "cookie")]),
        (404, &[("set-cookie", "a=b")]),
        (429, &[("cache-control", "no-store")]),
    ] {
        let cache = cache();
        let asked = get("/hot", &[]);
        let permit = miss(&cache, NOW, &asked).await;
        assert!(matches!(permit.store(&head(status, fields), &asked, at(NOW)), Stored::Pass(_)));
        let permit = miss(&cache, NOW, &asked).await;
        let waiting = {
            let (cache, asked) = (cache.clone(), asked.clone());
            tokio::spawn(async move { name(&cache.look_up(NOW, &asked).await) })
        };
        tokio::task::yield_now().await;
        let (_, writer) = fill(permit, &asked, NOW, &head(200, &[("cache-control", "max-age=60")]));
        assert!(waiting.await.expect("no panic").starts_with("hit Joined"), "{status} {fields:?}");
        writer.finish().expect("the right length");
        assert_eq!(name(&cache.look_up(NOW, &asked).await), "hit Fresh", "{status} {fields:?}");
    }
}

#[tokio::test]
async fn an_error_that_says_itself_that_it_is_not_to_be_stored_is_remembered() {
    for fields in [&[("cache-control", "no-store")][..], &[("cache-control", "private")], &[("expires", "0")]]
    {
        let cache = cache();
        let asked = get("/gone", &[]);
        let permit = miss(&cache, NOW, &asked).await;
        assert!(matches!(permit.store(&head(404, fields), &asked, at(NOW)), Stored::Pass(_)));
        assert_eq!(name(&cache.look_up(NOW, &asked).await), "pass remembered", "{fields:?}");
    }
}

#[tokio::test]
async fn what_one_client_caused_leaves_what_is_stored() {
    let fields = [("cache-control", "max-age=1, stale-if-error=600"), ("etag", "\"1\"")];
    let later = NOW + 5_000;
    for (request, status, kept) in [
        (&[("authorization", "x")][..], 200, true),
        (&[("cache-control", "no-store")], 200, true),
        (&[("cookie", "far too long")], 400, true),
        (&[("cookie", "far too long")], 431, true),
        (&[], 503, true),
        (&[], 404, false),
        (&[], 410, false),
    ] {
        let cache = cache();
        put(&cache, NOW, &get("/a", &[]), &fields, "page").await;
        let asked = get("/a", request);
        let permit = miss(&cache, later, &asked).await;
        let lifetime: &[_] = if status == 200 { &[("cache-control", "max-age=60")] } else { &[] };
        assert!(matches!(permit.store(&head(status, lifetime), &asked, at(later)), Stored::Pass(_)));
        let next = miss(&cache, later, &get("/a", &[])).await;
        let stale = next.stale_on_error(later, Failure("unreachable"));
        assert_eq!(stale.is_some(), kept, "{request:?} {status}");
    }
}

#[tokio::test]
async fn a_remembered_key_still_has_its_stale_entry_for_errors() {
    let cache = cache();
    let (english, french) =
        (get("/a", &[("accept-language", "en")]), get("/a", &[("accept-language", "fr")]));
    let vary = ("vary", "accept-language");
    put(&cache, NOW, &english, &[("cache-control", "max-age=1, stale-if-error=60"), vary], "hello").await;
    let later = NOW + 5_000;
    // Another variant makes the key one that is remembered as uncacheable.
    let permit = miss(&cache, later, &french).await;
    let private = head(200, &[("cache-control", "private"), vary]);
    assert!(matches!(permit.store(&private, &french, at(later)), Stored::Pass(_)));
    assert_eq!(name(&cache.look_up(later, &french).await), "pass remembered");

    let permit = miss(&cache, later, &english).await;
    assert!(permit.stale_on_error(later, Failure("unreachable")).is_some());
    permit.fail(Failure("unreachable"));
}

/// A shelf on which something happens right after it was read for the next time.
struct Watched {
    shelf: MemoryShelf,
    then: Arc<Mutex<Option<FillWriter>>>,
}

impl Shelf for Watched {
    fn find(&self, key: &Key) -> Option<Arc<Resource>> {
        let found = self.shelf.find(key);
        let writer = self.then.lock().take();
        if let Some(writer) = writer {
            writer.finish().expect("the right length");
        }
        found
    }

    fn update(&self, key: Key, change: Change<'_>) {
        self.shelf.update(key, change);
    }

    fn remove(&self, key: &Key) {
        self.shelf.remove(key);
    }

    fn size(&self) -> Size {
        self.shelf.size()
    }
}

#[tokio::test]
async fn a_fill_that_lands_after_the_shelf_was_read_is_not_fetched_again() {
    let then = Arc::<Mutex<Option<FillWriter>>>::default();
    let shelf = Watched { shelf: MemoryShelf::new(1 << 20), then: Arc::clone(&then) };
    let cache = Cache::on(Box::new(shelf), limits());
    let asked = get("/a", &[]);
    let fields = [("cache-control", "max-age=1, stale-while-revalidate=60")];
    let (_, mut writer) = fill(miss(&cache, NOW, &asked).await, &asked, NOW, &head(200, &fields));
    writer.push(&Bytes::from_static(b"page"));
    *then.lock() = Some(writer);
    assert_eq!(name(&cache.look_up(NOW, &asked).await), "hit Fresh", "and no second fetch");

    // The same when what was read may still be sent: the refresh has just ended, and needs no successor.
    let later = NOW + 5_000;
    let Lookup::Stale(_, permit) = cache.look_up(later, &asked).await else { panic!("stale") };
    let (_, writer) = fill(permit, &asked, later, &head(200, &fields));
    *then.lock() = Some(writer);
    assert_eq!(name(&cache.look_up(later, &asked).await), "hit Fresh");
}

#[test]
fn joining_a_body_while_it_outgrows_its_limit_locks_nobody_out() {
    // If a joiner held the flights while it wants the body, and a body that outgrows its limit holds itself while it
    // wants the flights, then both would wait for ever, and every miss with them.
    const ROUNDS: usize = 1_000;
    let (done, ended) = sync_channel(1);
    let worker = std::thread::spawn(move || {
        let cache = cache();
        let round = Arc::new(AtomicUsize::new(usize::MAX));
        let joiners = [(); 2].map(|()| {
            let (cache, round) = (cache.clone(), Arc::clone(&round));
            std::thread::spawn(move || {
                let runtime = Builder::new_current_thread().build().expect("a runtime");
                loop {
                    match round.load(Ordering::Acquire) {
                        ROUNDS => return,
                        usize::MAX => std::thread::yield_now(),
                        now => {
                            let asked = get(&format!("/{now}"), &[]);
                            drop(runtime.block_on(cache.look_up(NOW, &asked)));
                        }
                    }
                }
            })
        });
        let runtime = Builder::new_current_thread().build().expect("a runtime");
        let most = Bytes::from(vec![7; 1 << 16]);
        for now in 0..ROUNDS {
            let asked = get(&format!("/{now}"), &[]);
            let permit = runtime.block_on(miss(&cache, NOW, &asked));
            let (first, mut writer) =
                fill(permit, &asked, NOW, &head(200, &[("cache-control", "max-age=60")]));
            writer.push(&most);
            round.store(now, Ordering::Release);
            std::thread::yield_now();
            writer.push(&Bytes::from_static(b"too much"));
            drop((first, writer));
        }
        round.store(ROUNDS, Ordering::Release);
        for joiner in joiners {
            joiner.join().expect("no panic");
        }
        // Nobody listens any more only where the test has failed already.
        done.send(()).ok();
    });
    assert!(ended.recv_timeout(Duration::from_secs(60)).is_ok(), "threads wait for each other");
    worker.join().expect("no panic");
}
