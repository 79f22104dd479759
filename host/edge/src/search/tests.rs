//! The indexes of a node, over a replica without a region.

use souk_commerce::feed::{PriceChange, ProductChange};
use souk_commerce::money::Minor;
use souk_commerce::product::{PriceRow, Product};
use souk_link::{Part, Record, Tail};

use super::*;

struct World {
    _dir: tempfile::TempDir,
    replica: Arc<Replica>,
    searches: Searches,
}

fn site(name: &str) -> SiteId {
    name.parse().expect("a site")
}

fn product(sku: &str, title: &str) -> Product {
    Product {
        sku: sku.parse().expect("a sku"),
        title: title.to_owned(),
        description: String::new(),
        tags: Vec::new(),
        attributes: Vec::new(),
        image: None,
    }
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let replica = Arc::new(Replica::open(dir.path(), 0).expect("opens"));
        let metrics = SearchMetrics::register(&mut prometheus_client::registry::Registry::default());
        let searches = Searches::open(dir.path(), Arc::clone(&replica), metrics).expect("a folder");
        Self { _dir: dir, replica, searches }
    }

    fn apply(&mut self, log: Log, bodies: impl IntoIterator<Item = Vec<u8>>) {
        let from = self.replica.cursors().get(log);
        let records: Vec<_> =
            bodies.into_iter().zip(from + 1..).map(|(body, version)| Record { version, body }).collect();
        let to = from + records.len() as u64;
        let tail = Tail { log, from, to, part: Part::Changes, records, next: None };
        self.replica.apply(&tail).expect("applied");
    }

    /// On sale for a pound.
    fn put(&mut self, of: &str, products: &[Product]) {
        let of = site(of);
        let content = |p: &Product| {
            ProductChange { site: of.clone(), sku: p.sku.clone(), product: Some(p.clone()) }.to_bytes()
        };
        let price = |p: &Product| {
            let price = Some(PriceRow::of(Minor(100)));
            PriceChange { site: of.clone(), sku: p.sku.clone(), price }.to_bytes()
        };
        self.apply(Log::Catalog, products.iter().map(content).collect::<Vec<_>>());
        self.apply(Log::Price, products.iter().map(price).collect::<Vec<_>>());
    }

    async fn page(
        &self,
        of: &str,
        typed: &str,
        after: Option<Position>,
        limit: usize,
    ) -> Result<Found, Unsearched> {
        let world = self.replica.world();
        let site = world.site(&site(of)).expect("the site is there");
        let query = Query::parse(typed).expect("a query");
        self.searches.find(site, query, after, limit).await
    }

    async fn find(&self, of: &str, typed: &str) -> Vec<String> {
        let found = self.page(of, typed, None, 100).await.expect("found");
        assert!(!found.is_behind);
        found.listed.iter().map(|listed| listed.product.sku.to_string()).collect()
    }

    fn told(&self, sku: &str) -> bool {
        self.replica
            .world()
            .site(&site("shop"))
            .is_some_and(|s| s.listed(&sku.parse().expect("a sku")).is_some())
    }
}

#[tokio::test]
async fn what_is_visible_is_found_and_what_is_not_on_sale_is_not() {
    let mut world = World::new();
    world.put("shop", &[product("A", "Red mug"), product("B", "Blue mug")]);
    world.put("other", &[product("C", "Green mug")]);
    assert_eq!(world.find("shop", "red").await, ["A"]);
    assert_eq!(world.find("shop", "mug").await.len(), 2);
    assert_eq!(world.find("other", "mug").await, ["C"], "tenants never meet");
    assert_eq!(world.find("other", "red").await, [""; 0]);

    world.put("shop", &[product("A", "Cup")]);
    assert_eq!(world.find("shop", "red").await, [""; 0], "not by its old title");
    assert_eq!(world.find("shop", "cup").await, ["A"]);
    let gone = PriceChange { site: site("shop"), sku: "A".parse().expect("a sku"), price: None };
    world.apply(Log::Price, [gone.to_bytes()]);
    assert!(!world.told("A"));
    assert_eq!(world.find("shop", "cup").await, [""; 0], "it has no price");
    let gone = ProductChange { site: site("shop"), sku: "B".parse().expect("a sku"), product: None };
    world.apply(Log::Catalog, [gone.to_bytes()]);
    assert_eq!(world.find("shop", "mug").await, [""; 0]);
}

#[tokio::test]
async fn pages_follow_each_other_without_a_gap_or_a_repetition() {
    let mut world = World::new();
    let products: Vec<_> = (0..25).map(|n| product(&format!("M{n}"), &format!("Mug {n}"))).collect();
    world.put("shop", &products);
    let (mut after, mut seen) = (None, Vec::new());
    loop {
        let found = world.page("shop", "mug", after, 10).await.expect("found");
        seen.extend(found.listed.iter().map(|listed| listed.product.sku.to_string()));
        after = found.next;
        if after.is_none() {
            break;
        }
    }
    let in_one = world.find("shop", "mug").await;
    assert_eq!((seen.len(), &seen), (25, &in_one));
}

#[tokio::test]
async fn an_import_is_taken_in_beside_searches_which_say_that_they_are_behind() {
    let mut world = World::new();
    let many: Vec<_> = (0..CAUGHT_UP_FIRST_MAX * 3).map(|n| product(&format!("M{n}"), "Mug")).collect();
    world.put("shop", &many);
    let first = world.page("shop", "mug", None, 1).await;
    assert!(
        matches!(first, Err(Unsearched::Building { left }) if left == CAUGHT_UP_FIRST_MAX * 2),
        "{first:?}"
    );
    let shutdown = CancellationToken::new();
    let kept = world.searches.catch_up(&site("shop"), &shutdown).await.expect("indexed");
    assert_eq!(kept.len(), many.len());
    assert_eq!(world.find("shop", "mug").await.len(), 100);

    // Every title changes, more than a search takes in. What it still has in old words is not found by them.
    let renamed: Vec<_> = many.iter().map(|p| product(p.sku.as_str(), "Cup")).collect();
    world.put("shop", &renamed);
    let behind = world.page("shop", "mug", None, 100).await.expect("found");
    assert!(behind.is_behind && behind.listed.is_empty(), "{behind:?}");
    let behind = world.page("shop", "cup", None, 100).await.expect("found");
    assert!(behind.is_behind && behind.listed.len() == 100);
    world.searches.catch_up(&site("shop"), &shutdown).await.expect("indexed");
    assert_eq!(world.find("shop", "mug").await, [""; 0]);
}

#[tokio::test]
async fn a_broken_or_missing_file_is_made_anew() {
    let mut world = World::new();
    world.put("shop", &[product("A", "Red mug")]);
    assert_eq!(world.find("shop", "mug").await, ["A"]);
    let path = world.searches.0.dir.join("shop.db");
    {
        let place = world.searches.0.place(&site("shop"));
        place.desk.lock().await.close(&world.searches.0.metrics);
    }
    std::fs::write(&path, vec![7; 9_000]).expect("written");
    assert_eq!(world.find("shop", "mug").await, ["A"]);
    assert_eq!(world.searches.0.metrics.rebuilds.get(), 1);
    {
        let place = world.searches.0.place(&site("shop"));
        place.desk.lock().await.close(&world.searches.0.metrics);
    }
    souk_search::Index::remove(&path).expect("removed");
    assert_eq!(world.find("shop", "mug").await, ["A"], "a file that went away while it was closed");
}

#[tokio::test]
async fn no_more_files_are_open_than_may_be_and_a_closed_one_goes_on() {
    let mut world = World::new();
    let sites: Vec<_> = (0..OPEN_MAX + 5).map(|n| format!("shop-{n}")).collect();
    for name in &sites {
        world.put(name, &[product("A", &format!("Mug of {name}"))]);
        assert_eq!(world.find(name, "mug").await, ["A"]);
    }
    let open = || {
        let places = world.searches.0.places.lock();
        places.values().filter(|place| place.used.load(Ordering::Relaxed) > 0).count()
    };
    assert_eq!(open(), OPEN_MAX);
    assert_eq!(world.searches.0.place(&site("shop-0")).used.load(Ordering::Relaxed), 0, "the oldest");
    assert_eq!(world.find("shop-0", "mug").await, ["A"]);
    assert_eq!(open(), OPEN_MAX);
}

#[tokio::test]
async fn a_site_that_many_search_says_so_and_the_others_are_answered() {
    let mut world = World::new();
    world.put("shop", &[product("A", "Mug")]);
    world.put("other", &[product("B", "Mug")]);
    let place = world.searches.0.place(&site("shop"));
    let held = place.waiting.acquire_many(u32::try_from(WAITING_MAX).expect("small")).await.expect("open");
    let busy = world.page("shop", "mug", None, 1).await;
    assert!(matches!(busy, Err(Unsearched::Busy)), "{busy:?}");
    assert_eq!(world.find("other", "mug").await, ["B"]);
    drop(held);
    assert_eq!(world.find("shop", "mug").await, ["A"]);
}

#[tokio::test]
async fn the_keeper_indexes_ahead_and_removes_what_is_nobodys() {
    let mut world = World::new();
    std::fs::write(world.searches.0.dir.join("gone.db"), b"of a site that is not served any more")
        .expect("written");
    world.put("shop", &[product("A", "Mug")]);
    world.replica.note_heads(&world.replica.cursors()).expect("noted");
    let shutdown = CancellationToken::new();
    let keeper = tokio::spawn(world.searches.clone().keep(shutdown.clone()));
    while world.searches.0.metrics.version.get() != 1 {
        tokio::task::yield_now().await;
    }
    assert!(!world.searches.0.dir.join("gone.db").exists());
    assert_eq!(world.searches.0.metrics.updates.get(), 1);
    shutdown.cancel();
    keeper.await.expect("ends");
}
