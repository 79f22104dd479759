//! What one site takes of what all share.

use souk_cache::PassReason;
use souk_cache::shelf::MemoryShelf;

use super::*;

fn of(site: &str, target: &str) -> Asked {
    let key = Key::new(site, Scheme::Http, "shop.example", target).expect("a key");
    Asked::new(key, Method::GET, HeaderMap::new())
}

#[tokio::test]
async fn a_site_whose_answers_arrive_slowly_keeps_no_other_sites_from_being_stored() {
    let limits = limits();
    let shelf = Box::new(MemoryShelf::new(limits.memory_bytes_max));
    let cache = Cache::shared(shelf, limits, limits.fill_bytes_max / 2);
    let fields = [("cache-control", "max-age=60")];
    let piece = Bytes::from(vec![b'x'; 1 << 15]);
    let mut arriving = Vec::new();
    // A quarter of all: half of that is a site's.
    for n in 0..4 {
        let asked = of("loud", &format!("/{n}"));
        let (_, mut writer) = fill(miss(&cache, NOW, &asked).await, &asked, NOW, &head(200, &fields));
        writer.push(&piece);
        arriving.push(writer);
    }
    assert_eq!(cache.filling_bytes(), limits.fill_bytes_max / 2);
    let one_more = of("loud", "/more");
    let refused = miss(&cache, NOW, &one_more).await.store(&head(200, &fields), &one_more, at(NOW));
    assert!(matches!(refused, Stored::Pass(PassReason::FillMemory)), "more than its part");

    let quiet = of("quiet", "/a");
    let (_, mut writer) = fill(miss(&cache, NOW, &quiet).await, &quiet, NOW, &head(200, &fields));
    writer.push(&piece);
    writer.finish().expect("the right length");
    drop(hit(&cache, NOW, &quiet).await);

    drop(arriving);
    assert_eq!(cache.filling_bytes(), 0);
    let (_, writer) = fill(miss(&cache, NOW, &one_more).await, &one_more, NOW, &head(200, &fields));
    writer.finish().expect("the right length");
}

#[tokio::test]
async fn a_page_that_finds_no_memory_is_not_taken_for_one_that_is_too_large() {
    let limits = limits();
    let shelf = Box::new(MemoryShelf::new(limits.memory_bytes_max));
    let cache = Cache::shared(shelf, limits, limits.fill_bytes_max);
    let fields = [("cache-control", "max-age=60")];
    let piece = Bytes::from(vec![b'x'; 1 << 15]);
    let page = of("quiet", "/a");
    let (_, mut writer) = fill(miss(&cache, NOW, &page).await, &page, NOW, &head(200, &fields));
    // Others take all of it while it comes.
    let mut arriving = Vec::new();
    for n in 0..8 {
        let asked = of("loud", &format!("/{n}"));
        let (_, mut writer) = fill(miss(&cache, NOW, &asked).await, &asked, NOW, &head(200, &fields));
        writer.push(&piece);
        arriving.push(writer);
    }
    writer.push(&piece);
    writer.finish().expect("the right length");
    drop(arriving);
    // What was too little then is enough now.
    let (_, mut writer) = fill(miss(&cache, NOW, &page).await, &page, NOW, &head(200, &fields));
    writer.push(&piece);
    writer.finish().expect("the right length");
    drop(hit(&cache, NOW, &page).await);
    // One that is too large is passed for a while.
    let large = of("quiet", "/large");
    let (_, mut writer) = fill(miss(&cache, NOW, &large).await, &large, NOW, &head(200, &fields));
    (0..3).for_each(|_| writer.push(&piece));
    writer.finish().expect("the right length");
    let after = cache.look_up(NOW, &large).await;
    assert!(matches!(after, Lookup::Pass(PassReason::Remembered)), "{}", name(&after));
}
