//! The state from outside: what is answered for is there after a crash, and a disk that refuses loses nothing.

use std::io;
use std::sync::atomic::AtomicBool;

use redb::{DatabaseError, StorageBackend};
use souk_commerce::cart::{CartFull, Entry, LineKey};
use souk_commerce::feed::{PriceChange, ProductChange};
use souk_commerce::id::{CartId, Sku};
use souk_commerce::money::Minor;
use souk_commerce::product::{PriceRow, Product};
use souk_commerce::site::SiteSettings;
use souk_link::{Fold, Log, NodeStore as _, Part, Record, RowsDigest, Staging, Tail};

use super::store::LinkStore;
use super::view::{Below, View};
use super::*;

mod erased;
mod kept;
mod promises;

const OUTBOX_MAX: u64 = 1 << 30;

fn sku(text: &str) -> Sku {
    text.parse().expect("a sku")
}

fn line(text: &str) -> Entry {
    Entry::Line(LineKey::of(sku(text)))
}

fn key(n: u8) -> CartKey {
    CartKey { site: "shop".parse().expect("a site"), cart: CartId([n; 16]) }
}

async fn add(state: &State, key: CartKey, text: &str, more: i32) -> Result<Arc<Held>, ChangeError<CartFull>> {
    let guard = state.lock(key.clone()).await;
    let held = state.find(&key).expect("readable").map_or_else(Held::default, Arc::unwrap_or_clone);
    let (_, held) = state.change(guard, held, 1_000, |edit| edit.add(line(text), more)).await?;
    Ok(held)
}

async fn enrolled(dir: &Path) -> State {
    let state = State::open(dir, NodeId(1), OUTBOX_MAX).expect("an openable directory");
    if state.epoch().is_none() {
        state.begin_epoch(Epoch(1)).await.expect("the first epoch");
    }
    state
}

/// A disk in memory that outlives its database and fails on demand.
#[derive(Debug, Clone, Default)]
struct Memory {
    bytes: Arc<Mutex<Vec<u8>>>,
    full: Arc<AtomicBool>,
    sync_fails: Arc<AtomicBool>,
    open_fails: Arc<AtomicBool>,
    /// Whoever holds it holds up every opening.
    open_waits: Arc<Mutex<()>>,
}

impl Memory {
    fn room(&self) -> io::Result<()> {
        if self.full.load(Ordering::Relaxed) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl StorageBackend for Memory {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.lock().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let bytes = self.bytes.lock();
        let from = offset as usize;
        out.copy_from_slice(bytes.get(from..from + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.room()?;
        self.bytes.lock().resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.sync_fails.load(Ordering::Relaxed) {
            Err(io::Error::other("the sync failed"))
        } else {
            Ok(())
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.room()?;
        let from = offset as usize;
        self.bytes.lock()[from..from + data.len()].copy_from_slice(data);
        Ok(())
    }
}

impl Below for Memory {
    fn len(&self) -> io::Result<u64> {
        StorageBackend::len(self)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        StorageBackend::read(self, offset, out)
    }
}

impl Disk for Memory {
    fn open(&self) -> Result<Database, DatabaseError> {
        let _waited = self.open_waits.lock();
        if self.open_fails.load(Ordering::Relaxed) {
            return Err(redb::StorageError::from(io::Error::other("the file cannot be opened")).into());
        }
        Database::builder().create_with_backend(self.clone())
    }

    fn view(&self) -> Result<Database, DatabaseError> {
        Database::builder().create_with_backend(View::of(self.clone())?)
    }

    fn probe(&self) -> io::Result<()> {
        self.room()?;
        StorageBackend::sync_data(self)
    }

    fn has_room(&self) -> bool {
        true
    }

    fn renew(&self, _live: &Database) -> Result<Option<Renewed>, redb::Error> {
        Ok(None)
    }

    fn settle(&self) -> io::Result<()> {
        Ok(())
    }
}

async fn on_memory(disk: &Memory) -> State {
    let state =
        State::open_on(Arc::new(disk.clone()), Path::new("memory"), NodeId(1), OUTBOX_MAX).expect("opens");
    if state.epoch().is_none() {
        state.begin_epoch(Epoch(1)).await.expect("the first epoch");
    }
    state
}

#[tokio::test]
async fn a_node_without_an_epoch_does_not_write() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = State::open(dir.path(), NodeId(1), OUTBOX_MAX).expect("opens");
    let refused = add(&state, key(1), "A", 1).await.expect_err("not enrolled");
    assert!(matches!(refused, ChangeError::Commit(CommitError::NotEnrolled)));
    assert_eq!(state.facts().last(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_is_there_after_a_crash() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = Arc::new(enrolled(dir.path()).await);
    let mut tasks = Vec::new();
    for n in 0..40_u8 {
        let state = state.clone();
        tasks.push(tokio::spawn(async move {
            for _ in 0..5 {
                add(&state, key(n % 8), "A", 1).await.expect("kept");
            }
        }));
    }
    for task in tasks {
        task.await.expect("a task");
    }
    let largest = state.stats().largest_batch.load(Ordering::Relaxed);
    assert!(largest > 1, "changes of different carts share a sync, but the largest batch was {largest}");
    // A crash, as far as one process can have one: the file is taken as it is.
    let copy = tempfile::tempdir().expect("a directory");
    std::fs::copy(dir.path().join("state.redb"), copy.path().join("state.redb")).expect("a copy");
    let again = State::open(copy.path(), NodeId(1), OUTBOX_MAX).expect("opens after a crash");
    assert_eq!(again.facts().last(), 200);
    assert_eq!(again.operations(1, 1_000, 1 << 20).expect("readable").len(), 200);
    for n in 0..8 {
        let held = again.find(&key(n)).expect("readable").expect("the cart");
        assert_eq!(held.cart.quantity(&line("A")), 25);
        assert_eq!(held.last.map(|p| p.epoch), Some(Epoch(1)));
    }
    let listed = again.list(Some(&key(3)), 2).expect("a page");
    assert_eq!(listed.into_iter().map(|(k, _)| k).collect::<Vec<_>>(), [key(4), key(5)]);
}

#[tokio::test]
async fn a_dropped_request_leaves_no_half_state() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = enrolled(dir.path()).await;
    for _ in 0..20 {
        let mut dropped = Box::pin(add(&state, key(1), "A", 1));
        let _ = futures_util::poll!(&mut dropped);
        drop(dropped);
        add(&state, key(1), "A", 1).await.expect("kept");
    }
    let held = state.find(&key(1)).expect("readable").expect("the cart");
    // Every operation in the outbox is in the cart: none was built on a state that another one was about to change.
    let mut replayed = Cart::new();
    for (_, op) in state.operations(1, 1_000, 1 << 20).expect("readable") {
        let Ok(Operation::Cart { delta, .. }) = Operation::from_bytes(&op) else {
            panic!("a change of a cart")
        };
        replayed.apply(&delta);
    }
    assert_eq!(replayed, held.cart);
    assert!(held.cart.quantity(&line("A")) >= 20);
}

#[tokio::test]
async fn a_full_disk_refuses_writes_and_recovers_by_itself() {
    let disk = Memory::default();
    let state = on_memory(&disk).await;
    add(&state, key(1), "A", 2).await.expect("kept");
    disk.full.store(true, Ordering::Relaxed);
    let refused = add(&state, key(1), "A", 3).await.expect_err("the disk is full");
    assert!(
        matches!(refused, ChangeError::Commit(CommitError::DiskFull | CommitError::OutcomeUnknown)),
        "{refused:?}"
    );
    assert_eq!(state.gate(), Gate::Full);
    let held = state.find(&key(1)).expect("reads go on").expect("the cart");
    assert_eq!(held.cart.quantity(&line("A")), 2);
    assert_eq!(state.operations(1, 9, 1 << 20).expect("the region still gets what is here").len(), 1);
    let refused = add(&state, key(2), "A", 3).await.expect_err("refused without trying");
    assert!(matches!(refused, ChangeError::Commit(CommitError::DiskFull)), "{refused:?}");
    disk.full.store(false, Ordering::Relaxed);
    let mut gate = state.gate.clone();
    tokio::time::timeout(Duration::from_secs(10), gate.wait_for(|g| *g == Gate::Open))
        .await
        .expect("in time")
        .expect("alive");
    assert_eq!(state.find(&key(1)).expect("readable").expect("the cart").cart.quantity(&line("A")), 2);
    let held = add(&state, key(1), "A", 5).await.expect("kept again");
    assert_eq!(held.cart.quantity(&line("A")), 7);
    assert_eq!(state.facts().last(), 2, "the refused change took no number");
}

#[tokio::test]
async fn a_sync_that_fails_is_never_answered_with_success() {
    let disk = Memory::default();
    let state = on_memory(&disk).await;
    add(&state, key(1), "A", 2).await.expect("kept");
    disk.sync_fails.store(true, Ordering::Relaxed);
    let refused = add(&state, key(1), "A", 3).await.expect_err("not on the disk");
    assert!(
        matches!(refused, ChangeError::Commit(CommitError::OutcomeUnknown | CommitError::DiskFailed(_))),
        "{refused:?}"
    );
    disk.sync_fails.store(false, Ordering::Relaxed);
    let mut gate = state.gate.clone();
    tokio::time::timeout(Duration::from_secs(10), gate.wait_for(|g| *g == Gate::Open))
        .await
        .expect("in time")
        .expect("alive");
    let held = add(&state, key(1), "B", 1).await.expect("kept again");
    // Whatever the outcome was, cart and outbox agree about it.
    let ops = state.operations(1, 10, 1 << 20).expect("readable").len();
    assert_eq!((held.cart.quantity(&line("A")), ops), if ops == 3 { (5, 3) } else { (2, 2) });
}

#[tokio::test]
async fn reads_go_on_when_the_file_cannot_be_reopened() {
    let disk = Memory::default();
    let state = on_memory(&disk).await;
    add(&state, key(1), "A", 2).await.expect("kept");
    disk.full.store(true, Ordering::Relaxed);
    add(&state, key(1), "A", 3).await.expect_err("the disk is full");
    disk.open_fails.store(true, Ordering::Relaxed);
    disk.full.store(false, Ordering::Relaxed);
    // Long enough for the committer to knock twice, and to fail.
    let until = std::time::Instant::now() + Duration::from_millis(1_300);
    let mut refused = 0;
    while std::time::Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(10)).await;
        refused = if state.list(None, 1).is_ok() { 0 } else { refused + 1 };
        assert!(refused < 10, "carts can be read between two attempts");
    }
    assert_ne!(state.gate(), Gate::Open);
    disk.open_fails.store(false, Ordering::Relaxed);
    let mut gate = state.gate.clone();
    let open = gate.wait_for(|g| *g == Gate::Open);
    tokio::time::timeout(Duration::from_secs(10), open).await.expect("in time").expect("alive");
    assert_eq!(add(&state, key(1), "A", 5).await.expect("kept again").cart.quantity(&line("A")), 7);
}

#[tokio::test]
async fn nobody_waits_for_a_file_that_opens_slowly() {
    let disk = Memory::default();
    let state = Arc::new(on_memory(&disk).await);
    add(&state, key(1), "A", 2).await.expect("kept");
    let slow = disk.open_waits.clone();
    let (held_up, go_on) = sync_channel::<()>(0);
    let (holding, held) = sync_channel(1);
    let holder = std::thread::spawn(move || {
        let _slow = slow.lock();
        holding.send(()).expect("the test waits");
        let _ = go_on.recv();
    });
    held.recv().expect("held");
    disk.sync_fails.store(true, Ordering::Relaxed);
    let adding = tokio::spawn({
        let state = state.clone();
        async move { add(&state, key(1), "A", 3).await.map(drop) }
    });
    // On this one thread: a read that blocked would never see the file opened.
    let refused = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            tokio::time::sleep(Duration::from_millis(5)).await;
            if let Err(refused) = state.list(None, 1) {
                break refused;
            }
        }
    });
    assert!(matches!(refused.await.expect("in time"), ReadError::Reopening));
    disk.sync_fails.store(false, Ordering::Relaxed);
    drop(held_up);
    holder.join().expect("the holder");
    adding.await.expect("a task").expect_err("not on the disk");
    assert_eq!(state.list(None, 1).expect("readable again").len(), 1);
}

#[tokio::test]
async fn an_old_cart_that_the_region_holds_is_forgotten() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = enrolled(dir.path()).await;
    for n in 1..=2 {
        add(&state, key(n), "A", 1).await.expect("kept");
    }
    // The tests' clock stands at 1970, so both are old; the region has the first only.
    state.trim(Epoch(1), 1, None);
    tokio::time::timeout(Duration::from_secs(10), async {
        while state.find(&key(1)).expect("readable").is_some() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("forgotten");
    assert!(state.find(&key(2)).expect("readable").is_some(), "only this node holds it");
    assert_eq!(state.list(None, 9).expect("readable").len(), 1);
    let stats = state.stats();
    assert_eq!((stats.carts.load(Ordering::Relaxed), stats.carts_forgotten.load(Ordering::Relaxed)), (1, 1));
    add(&state, key(2), "A", 1).await.expect("the file is well");
}

#[tokio::test]
async fn an_outbox_at_its_limit_refuses_writes_until_the_region_takes_some() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = State::open(dir.path(), NodeId(1), 300).expect("opens");
    state.begin_epoch(Epoch(1)).await.expect("an epoch");
    let refused = loop {
        if let Err(refused) = add(&state, key(1), "A", 1).await {
            break refused;
        }
    };
    assert!(matches!(refused, ChangeError::Commit(CommitError::OutboxFull { bytes_max: 300 })));
    let last = state.facts().last();
    state.trim(Epoch(9), last, None);
    state.trim(Epoch(1), last, Some(Fold::from_number(77)));
    tokio::time::timeout(Duration::from_secs(10), async {
        while state.facts().outbox_bytes > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the trim travels alone after a while");
    add(&state, key(1), "A", 1).await.expect("there is room again");
    assert_eq!(state.facts().first, last + 1);
    assert_eq!(state.facts().anchor, Some(Fold::from_number(77)), "what was forgotten is bound");
    assert_eq!(state.facts().unacked(), 1);
}

#[tokio::test]
async fn a_new_epoch_renumbers_and_keeps_the_content() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = enrolled(dir.path()).await;
    for n in 1..=3 {
        add(&state, key(n), "A", i32::from(n)).await.expect("kept");
    }
    state.trim(Epoch(1), 1, None);
    add(&state, key(1), "B", 1).await.expect("kept");
    let before: Vec<_> =
        state.operations(2, 10, 1 << 20).expect("readable").into_iter().map(|(_, op)| op).collect();
    let store = LinkStore {
        state: Arc::new(state),
        replica: Arc::new(Replica::open(dir.path(), 0).expect("opens")),
        routes: Default::default(),
        terms: Default::default(),
    };
    let position = store.begin_epoch(7).await.expect("begun");
    assert_eq!((position.epoch, position.first, position.last), (Some(7), 1, 3));
    assert_eq!(position.anchor, Some(Fold::EMPTY));
    assert_eq!(store.begin_epoch(7).await.expect("twice is once"), position);
    assert!(store.begin_epoch(6).await.is_err(), "an epoch never goes back");
    let after = store.read(1, 10, 1 << 20).expect("readable");
    assert_eq!(after.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(after.into_iter().map(|(_, op)| op).collect::<Vec<_>>(), before);
    let last = |n| store.state.find(&key(n)).expect("readable").expect("the cart").last;
    assert_eq!(last(2), Some(Position { epoch: Epoch(7), seq: 1 }));
    assert_eq!(last(1), Some(Position { epoch: Epoch(7), seq: 3 }));
    // An edit that was made in the old epoch is made again.
    add(&store.state, key(2), "C", 1).await.expect("kept");
    assert_eq!(store.state.facts().last(), 4);
}

#[test]
fn an_unfinished_snapshot_is_remembered_over_a_restart_with_its_rows() {
    let dir = tempfile::tempdir().expect("a directory");
    let part = |index, next: Option<&[u8]>, name: &str| {
        let part = Part::Snapshot { index, last: next.is_none() };
        let next = next.map(<[u8]>::to_vec);
        Tail { next, ..tail(Log::Catalog, 1, 9, part, vec![product(name)]) }
    };
    let replica = Replica::open(dir.path(), 0).expect("opens");
    replica.apply_of(&part(0, Some(b"k"), "A"), 3).expect("staged");
    replica.apply_of(&part(1, Some(b"m"), "B"), 3).expect("staged");
    let expected = Staging { log: Log::Catalog, version: 9, parts: 2, region_epoch: 3, next: b"m".to_vec() };
    assert_eq!(replica.stagings(), std::slice::from_ref(&expected));
    drop(replica);
    let replica = Replica::open(dir.path(), 0).expect("opens");
    assert_eq!((replica.stagings(), replica.cursors().get(Log::Catalog)), (vec![expected], 0));
    replica.apply_of(&part(2, None, "C"), 3).expect("whole");
    assert_eq!((replica.stagings(), replica.cursors().get(Log::Catalog)), (vec![], 9));
    drop(replica);
    assert_eq!(Replica::open(dir.path(), 0).expect("opens").stagings(), []);
}

#[tokio::test]
async fn a_directory_belongs_to_one_node_and_one_process() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = enrolled(dir.path()).await;
    assert!(matches!(State::open(dir.path(), NodeId(1), 1), Err(OpenError::InUse { .. })));
    state.close();
    assert!(matches!(
        State::open(dir.path(), NodeId(2), 1),
        Err(OpenError::AnotherNode { owner: 1, node: 2, .. })
    ));
}

fn tail(log: Log, from: u64, to: u64, part: Part, records: Vec<Vec<u8>>) -> Tail {
    let first = to + 1 - records.len() as u64;
    let records = records.into_iter().zip(first..).map(|(body, version)| Record { version, body }).collect();
    Tail { log, from, to, part, records, next: None }
}

fn product(text: &str) -> Vec<u8> {
    let product = Product {
        sku: sku(text),
        title: format!("Product {text}"),
        description: String::new(),
        tags: vec![],
        attributes: vec![],
        image: None,
    };
    ProductChange { site: key(0).site, sku: sku(text), product: Some(product) }.to_bytes()
}

fn price(text: &str, minor: i64) -> Vec<u8> {
    PriceChange { site: key(0).site, sku: sku(text), price: Some(PriceRow::of(Minor(minor))) }.to_bytes()
}

#[test]
fn a_price_is_visible_when_its_cursor_is() {
    let dir = tempfile::tempdir().expect("a directory");
    let replica = Replica::open(dir.path(), 0).expect("opens");
    let mut settings = SiteSettings::new(key(0).site, "GBP".parse().expect("a currency"));
    settings.hosts = vec!["shop.example".to_owned()];
    replica.apply(&tail(Log::Config, 0, 1, Part::Changes, vec![settings.to_bytes()])).expect("applied");
    replica
        .apply(&tail(Log::Catalog, 0, 2, Part::Changes, vec![product("A"), product("B")]))
        .expect("applied");
    replica.apply(&tail(Log::Price, 0, 5, Part::Changes, vec![price("A", 100)])).expect("applied");
    let before = replica.world();
    let gap = replica.apply(&tail(Log::Price, 4, 6, Part::Changes, vec![price("A", 1)]));
    assert!(matches!(gap, Err(replica::ApplyError::Gap { cursor: 5, from: 4, .. })));
    let garbage = replica.apply(&tail(Log::Price, 5, 7, Part::Changes, vec![price("A", 1), vec![0xff]]));
    assert!(matches!(garbage, Err(replica::ApplyError::BadRecord(_))));
    let seen = |replica: &Replica| {
        let world = replica.world();
        let site = world.site_of_host("shop.example").expect("the site").clone();
        site.listed(&sku("A")).map(|l| (l.price.price.0, l.price_version))
    };
    assert_eq!(seen(&replica), Some((100, 5)), "what was refused left nothing");
    replica.apply(&tail(Log::Price, 5, 6, Part::Changes, vec![price("A", 120)])).expect("applied");
    assert_eq!(seen(&replica), Some((120, 6)));
    let old = before.site_of_host("shop.example").and_then(|s| s.listed(&sku("A"))).expect("listed");
    assert_eq!(old.price.price, Minor(100), "a request keeps the moment it began in");
    assert!(
        before.site(&key(0).site).expect("the site").listed(&sku("B")).is_none(),
        "no price, not for sale"
    );
    drop(replica);
    let again = Replica::open(dir.path(), 0).expect("opens");
    assert_eq!(seen(&again), Some((120, 6)));
    assert_eq!((again.cursors().get(Log::Price), again.cursors().get(Log::Catalog)), (6, 2));
}

#[test]
fn a_snapshot_replaces_its_log_when_it_is_whole() {
    let dir = tempfile::tempdir().expect("a directory");
    let replica = Replica::open(dir.path(), 0).expect("opens");
    let skus = |replica: &Replica| {
        let world = replica.world();
        let site = world.site(&key(0).site).cloned();
        site.map_or_else(Vec::new, |s| s.products.keys().map(ToString::to_string).collect::<Vec<_>>())
    };
    let part = |index, last, name: &str| {
        tail(Log::Catalog, 0, 9, Part::Snapshot { index, last }, vec![product(name)])
    };
    replica.apply(&tail(Log::Catalog, 0, 1, Part::Changes, vec![product("OLD")])).expect("applied");
    replica.apply(&part(0, false, "LOST")).expect("staged");
    replica.apply(&part(0, false, "A")).expect("staged: index 0 begins anew");
    drop(replica);
    let replica = Replica::open(dir.path(), 0).expect("opens in the middle of a snapshot");
    assert_eq!(skus(&replica), ["OLD"]);
    replica.apply(&part(1, true, "B")).expect("applied");
    assert_eq!(skus(&replica), ["A", "B"]);
    assert_eq!(replica.cursors().get(Log::Catalog), 9);
    assert!(!replica.is_synced());
    let mut heads = replica.cursors();
    heads.set(Log::Price, 1);
    assert!(!replica.note_heads(&heads).expect("readable"));
    heads.set(Log::Price, 0);
    assert!(replica.note_heads(&heads).expect("kept"));
    drop(replica);
    let replica = Replica::open(dir.path(), 0).expect("opens");
    assert_eq!(skus(&replica), ["A", "B"]);
    assert!(replica.is_synced(), "a node that was complete once serves while its region is away");
}

#[test]
fn a_broken_replica_is_moved_aside_and_begun_again() {
    let dir = tempfile::tempdir().expect("a directory");
    drop(Replica::open(dir.path(), 0).expect("opens"));
    std::fs::write(dir.path().join("replica.redb"), b"this is not a database").expect("overwritten");
    let replica = Replica::open(dir.path(), 42).expect("opens all the same");
    assert_eq!(replica.cursors(), souk_link::Heads::default());
    assert!(dir.path().join("replica.redb.broken-42").exists());
}

#[test]
fn rows_come_to_the_same_by_changes_by_a_snapshot_and_from_the_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let replica = Replica::open(dir.path(), 0).expect("opens");
    let gone = ProductChange { site: key(0).site, sku: sku("A"), product: None }.to_bytes();
    let records = vec![product("A"), product("B"), product("A"), gone];
    replica.apply(&tail(Log::Catalog, 0, 4, Part::Changes, records)).expect("applied");
    let mut expected = RowsDigest::default();
    expected.add(2, &product("B"));
    assert_eq!(
        (replica.digest(Log::Catalog), replica.digest_at(Log::Catalog, 4)),
        (expected, Some(expected))
    );
    assert_eq!(replica.digest_at(Log::Catalog, 3).map(|digest| digest.rows()), Some(2), "a version ago");
    assert_eq!(replica.digest_at(Log::Catalog, 5), None, "not yet");
    drop(replica);
    let replica = Replica::open(dir.path(), 0).expect("opens");
    assert_eq!(replica.digest_at(Log::Catalog, 4), Some(expected));
    assert_eq!(replica.digest_at(Log::Catalog, 3), None, "the past went with the process");
    let snapshot = Tail {
        records: vec![Record { version: 2, body: product("B") }],
        ..tail(Log::Catalog, 4, 4, Part::Snapshot { index: 0, last: true }, vec![])
    };
    replica.apply_of(&snapshot, 9).expect("applied");
    assert_eq!(replica.digest_at(Log::Catalog, 4), Some(expected));
    assert_eq!(replica.rotten().expect("readable"), vec![]);
}

#[test]
fn a_log_that_is_mistrusted_is_of_no_history_and_served_until_it_comes_whole() {
    let dir = tempfile::tempdir().expect("a directory");
    let replica = Replica::open(dir.path(), 0).expect("opens");
    let history = |replica: &Replica, log: Log| replica.world().histories.get(&log.code()).copied();
    replica.apply_of(&tail(Log::Catalog, 0, 1, Part::Changes, vec![product("A")]), 9).expect("applied");
    replica.apply_of(&tail(Log::Price, 0, 1, Part::Changes, vec![price("A", 100)]), 9).expect("applied");
    replica.mistrust(&[Log::Price]).expect("written");
    let sells = |replica: &Replica| {
        replica.world().site(&key(0).site).and_then(|site| site.listed(&sku("A"))).is_some()
    };
    assert!(sells(&replica));
    drop(replica);
    let replica = Replica::open(dir.path(), 0).expect("opens");
    assert_eq!((history(&replica, Log::Price), history(&replica, Log::Catalog)), (Some(0), Some(9)));
    assert_eq!(replica.cursors().get(Log::Price), 1, "the region sees a cursor of another history");
    assert!(sells(&replica));
    replica
        .apply_of(&tail(Log::Price, 1, 2, Part::Changes, vec![price("B", 7)]), 9)
        .expect("it was on its way");
    assert_eq!((history(&replica, Log::Price), replica.given_up()), (Some(0), vec![Log::Price]));
    let whole = tail(Log::Price, 2, 2, Part::Snapshot { index: 0, last: true }, vec![price("A", 100)]);
    replica.apply_of(&whole, 9).expect("applied");
    assert_eq!((history(&replica, Log::Price), replica.given_up()), (Some(9), vec![]));
}
