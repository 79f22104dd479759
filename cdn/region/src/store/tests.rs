//! The store from its typed operations: what must hold whoever calls, in whatever order.

use std::path::Path;

use souk_commerce::cart::{Cart, Dot, Edit, Entry, LineKey};
use souk_commerce::clock::Hlc;
use souk_commerce::feed::{Asset, AssetChange, PriceChange, ProductChange, StockChange};
use souk_commerce::id::{CartId, Digest, Epoch, NodeId, OrderId, SiteId, Sku};
use souk_commerce::money::Minor;
use souk_commerce::op::Operation;
use souk_commerce::order::{Order, OrderState};
use souk_commerce::product::{Listed, PriceRow, Product, StockHint};
use souk_commerce::quote::Quote;
use souk_commerce::site::SiteSettings;
use souk_replication::{Fold, Log, Record};

use super::audit::{Actor, Chain};
use super::cart::{Applied, Apply};
use super::dead_letter::{LetterId, Retried};
use super::goods::{GoodsRow, Imported, Put};
use super::log::{PageMax, Run};
use super::order::{Basis, Draft, Place, Standing};
use super::site::By;
use super::*;

const PAGE: PageMax = PageMax { records: 1_000, bytes: 1 << 20 };

fn actor() -> Actor {
    Actor { name: "operator:test".to_owned(), peer: "127.0.0.1:1".to_owned() }
}

fn site() -> SiteId {
    "shop".parse().unwrap()
}

fn sku(text: &str) -> Sku {
    text.parse().unwrap()
}

fn row(name: &str, price: i64, stock: Option<Option<u64>>) -> GoodsRow {
    let product = Product {
        sku: sku(name),
        title: format!("The {name}"),
        description: String::new(),
        tags: vec![],
        attributes: vec![],
        image: None,
    };
    GoodsRow { product, price: Some(PriceRow::of(Minor(price)).into()), stock }
}

fn open(dir: &Path) -> Store {
    Store::open(dir, StoreSettings::for_tests(1_000_000)).unwrap()
}

/// A store with one site and three products: MUG (5 left), PEN (not counted), CAP (nothing said about stock).
async fn shop(dir: &Path) -> Store {
    let store = open(dir);
    let settings = SiteSettings::new(site(), "GBP".parse().unwrap());
    store.put_site(settings, By::Operator, actor()).await.unwrap();
    let rows = vec![row("MUG", 1_000, Some(Some(5))), row("PEN", 200, Some(None)), row("CAP", 700, None)];
    let imported = store.import(site(), rows, actor()).await.unwrap().unwrap();
    assert_eq!(imported, Imported { created: 3, updated: 0, unchanged: 0, ..Imported::default() });
    store
}

/// A node that writes carts: its own copy of each cart, as a real node has.
struct Shopper {
    node: u32,
    epoch: u32,
    cart: CartId,
    state: Cart,
    clock: u64,
}

impl Shopper {
    fn new(node: u32, epoch: u32, cart: u8) -> Self {
        Self { node, epoch, cart: CartId([cart; 16]), state: Cart::new(), clock: 1 }
    }

    fn add(&mut self, name: &str, quantity: i32) -> Vec<u8> {
        self.edit(|edit| edit.add(Entry::Line(LineKey::of(sku(name))), quantity).unwrap())
    }

    fn edit(&mut self, change: impl FnOnce(&mut Edit<'_>)) -> Vec<u8> {
        self.clock += 1;
        let mut edit = self.state.edit(NodeId(self.node), Epoch(self.epoch), Hlc(self.clock));
        change(&mut edit);
        let delta = edit.finish();
        self.state.apply(&delta);
        Operation::Cart { site: site(), cart: self.cart, at_ms: self.clock, delta }.to_bytes()
    }
}

async fn enrol(store: &Store, node: u32, epoch: u32) {
    store.greet(node, "lon".to_owned(), "test".to_owned()).await.unwrap();
    assert!(store.begin_epoch(node, epoch).await.unwrap());
}

fn applied(hwm: u64, applied: u64, skipped: u64) -> Apply {
    Apply::Applied(Applied { hwm, applied, skipped, ..Applied::default() })
}

#[tokio::test]
async fn operations_are_applied_once_in_order_and_replays_do_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = shop(dir.path()).await;
    enrol(&store, 1, 1).await;
    let mut shopper = Shopper::new(1, 1, 7);
    let ops: Vec<_> = (0..5).map(|_| shopper.add("MUG", 1)).collect();

    assert_eq!(store.apply_batch(1, 1, 1, ops[..3].to_vec()).await.unwrap(), applied(3, 3, 0));
    assert_eq!(store.apply_batch(1, 1, 1, ops[..3].to_vec()).await.unwrap(), applied(3, 0, 3), "a replay");
    assert_eq!(store.apply_batch(1, 1, 2, ops[1..].to_vec()).await.unwrap(), applied(5, 2, 2), "an overlap");
    let mark = store.marks().get(1, 1).expect("a mark");
    let folded = ops.iter().fold(Fold::EMPTY, |fold, op| fold.with(op));
    assert_eq!((mark.hwm, mark.fold), (5, Some(folded)), "each operation is folded once, replayed or not");
    let stored = store.cart(site(), shopper.cart).await.unwrap().unwrap();
    assert_eq!(stored.digest, shopper.state.digest());
    assert_eq!(stored.state, shopper.state.to_bytes());
}

#[tokio::test]
async fn a_gap_and_a_foreign_epoch_apply_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = shop(dir.path()).await;
    enrol(&store, 1, 1).await;
    let mut shopper = Shopper::new(1, 1, 7);
    let op = shopper.add("MUG", 1);
    assert_eq!(store.apply_batch(1, 1, 2, vec![op.clone()]).await.unwrap(), Apply::Gap { hwm: 0 });
    assert_eq!(store.apply_batch(1, 2, 1, vec![op.clone()]).await.unwrap(), Apply::NotOpen);
    assert_eq!(store.apply_batch(2, 1, 1, vec![op.clone()]).await.unwrap(), Apply::NotOpen);
    assert_eq!(store.cart(site(), shopper.cart).await.unwrap(), None);

    // A new epoch seals the old one: its numbers would mean two things.
    enrol(&store, 1, 2).await;
    assert_eq!(store.apply_batch(1, 1, 1, vec![op.clone()]).await.unwrap(), Apply::NotOpen);
    assert_eq!(store.apply_batch(1, 2, 1, vec![op]).await.unwrap(), applied(1, 1, 0));
    assert!(!store.begin_epoch(1, 1).await.unwrap(), "epochs never go back");
    assert!(store.begin_epoch(1, 2).await.unwrap(), "asked twice for the newest, it does nothing");
    let known = store.greet(1, "lon".to_owned(), "test".to_owned()).await.unwrap().expect("it said hello");
    assert_eq!((known.epoch, known.hwm), (2, 1));
    assert!(store.is_open(1, 2).await.unwrap() && !store.is_open(1, 1).await.unwrap());
}

#[tokio::test]
async fn what_cannot_be_applied_is_kept_and_does_not_stop_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let store = shop(dir.path()).await;
    enrol(&store, 1, 1).await;
    let mut shopper = Shopper::new(1, 1, 7);
    let unknown_site = Operation::Cart {
        site: "elsewhere".parse().unwrap(),
        cart: shopper.cart,
        at_ms: 1,
        delta: Cart::new().edit(NodeId(1), Epoch(1), Hlc(1)).finish(),
    };
    let ops =
        vec![shopper.add("MUG", 1), b"garbage".to_vec(), unknown_site.to_bytes(), shopper.add("PEN", 2)];
    let outcome = store.apply_batch(1, 1, 1, ops).await.unwrap();
    assert_eq!(outcome, Apply::Applied(Applied { hwm: 4, applied: 2, dead: 2, ..Applied::default() }));
    assert_eq!(burials(dir.path()), ["unreadable", "site_unknown"]);
    assert_eq!(store.counts().await.unwrap().dead_letters, 2);
    assert_eq!(store.cart(site(), shopper.cart).await.unwrap().unwrap().digest, shopper.state.digest());
}

#[tokio::test]
async fn a_dead_letter_is_listed_and_applied_or_given_up_by_an_operator() {
    let dir = tempfile::tempdir().unwrap();
    let store = shop(dir.path()).await;
    enrol(&store, 3, 2).await;
    // Another shop's cart, whose site is not there yet; and garbage.
    let (elsewhere, cart): (SiteId, _) = ("elsewhere".parse().unwrap(), CartId([9; 16]));
    let mut state = Cart::new();
    let mut edit = state.edit(NodeId(3), Epoch(2), Hlc(1));
    edit.add(Entry::Line(LineKey::of(sku("MUG"))), 2).unwrap();
    let delta = edit.finish();
    state.apply(&delta);
    let early = Operation::Cart { site: elsewhere.clone(), cart, at_ms: 1, delta }.to_bytes();
    store.apply_batch(3, 2, 1, vec![early, b"garbage".to_vec()]).await.unwrap();

    let (early, garbage) = (id("3.2.1"), id("3.2.2"));
    let listed = store.dead_letters(None, 10).await.unwrap();
    let shown: Vec<_> = listed.iter().map(|l| (l.id.as_str(), l.reason.split(':').next().unwrap())).collect();
    assert_eq!(shown, [("3.2.1", "site_unknown"), ("3.2.2", "unreadable")]);
    assert_eq!(store.dead_letters(Some(early), 10).await.unwrap(), listed[1..]);
    assert_eq!(store.dead_letters_count().await.unwrap(), 2);

    let still = store.retry_dead_letter(early, actor()).await.unwrap();
    assert!(matches!(&still, Retried::Unfit(why) if why.starts_with("site_unknown")), "{still:?}");
    let settings = SiteSettings::new(elsewhere.clone(), "GBP".parse().unwrap());
    store.put_site(settings, By::Operator, actor()).await.unwrap();
    assert_eq!(store.retry_dead_letter(early, actor()).await.unwrap(), Retried::Applied);
    assert_eq!(store.cart(elsewhere, cart).await.unwrap().unwrap().digest, state.digest());
    assert_eq!(store.retry_dead_letter(early, actor()).await.unwrap(), Retried::NotThere, "once");

    assert!(store.discard_dead_letter(garbage, actor()).await.unwrap());
    assert!(!store.discard_dead_letter(garbage, actor()).await.unwrap());
    assert_eq!(store.dead_letters_count().await.unwrap(), 0);
    let told: Vec<_> =
        store.audit(0, 100).await.unwrap().into_iter().map(|row| (row.action, row.subject)).collect();
    for deed in [("dead_letter.applied", "3.2.1"), ("dead_letter.discarded", "3.2.2")] {
        assert!(told.iter().any(|(action, subject)| (action.as_str(), subject.as_str()) == deed), "{deed:?}");
    }
}

fn id(text: &str) -> LetterId {
    text.parse().unwrap()
}

/// The reasons of all dead letters, by name.
fn burials(dir: &Path) -> Vec<String> {
    let conn = Connection::open(dir.join("region.db")).unwrap();
    let mut select = conn.prepare("SELECT reason FROM dead_letter ORDER BY node, epoch, seq").unwrap();
    let reasons = select.query_map([], |row| row.get::<_, String>(0)).unwrap();
    reasons.map(|reason| reason.unwrap().split(':').next().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_node_cannot_use_up_the_dots_of_another() {
    let dir = tempfile::tempdir().unwrap();
    let store = shop(dir.path()).await;
    enrol(&store, 1, 1).await;
    enrol(&store, 2, 1).await;
    let mut honest = Shopper::new(1, 1, 7);
    let acknowledged = honest.add("MUG", 2);

    // As the honest node, and as itself in an epoch that it does not have: both are buried.
    let (mut forger, mut ahead) = (Shopper::new(1, 1, 7), Shopper::new(2, 2, 7));
    let outcome = store.apply_batch(2, 1, 1, vec![forger.add("PEN", 9), ahead.add("PEN", 9)]).await.unwrap();
    assert_eq!(outcome, Apply::Applied(Applied { hwm: 2, dead: 2, ..Applied::default() }));
    assert_eq!(burials(dir.path()), ["foreign_dot", "foreign_dot"]);

    // A drop of a change that is still on its way goes nowhere; what comes with it is the node's own, and applied.
    let mut thief = Shopper::new(2, 1, 7);
    let Operation::Cart { site: shop, cart, at_ms, mut delta } =
        Operation::from_bytes(&thief.add("CAP", 1)).unwrap();
    delta.changes[0].drops = (1..100).map(|n| Dot { node: NodeId(1), epoch: Epoch(1), n }).collect();
    let theft = Operation::Cart { site: shop, cart, at_ms, delta }.to_bytes();
    let outcome = store.apply_batch(2, 1, 3, vec![theft]).await.unwrap();
    assert_eq!(
        outcome,
        Apply::Applied(Applied { hwm: 3, applied: 1, drops_ignored: 1, ..Applied::default() })
    );

    assert_eq!(store.apply_batch(1, 1, 1, vec![acknowledged]).await.unwrap(), applied(1, 1, 0));
    honest.state.merge(&thief.state);
    let stored = store.cart(site(), honest.cart).await.unwrap().unwrap();
    assert_eq!(stored.digest, honest.state.digest());

    // A roaming shopper's node has the cart from here, and takes away what it saw.
    thief.state = Cart::from_bytes(&stored.state).unwrap();
    let taken = thief.edit(|edit| edit.remove(Entry::Line(LineKey::of(sku("MUG")))));
    assert_eq!(store.apply_batch(2, 1, 4, vec![taken]).await.unwrap(), applied(4, 1, 0));
    let stored = store.cart(site(), honest.cart).await.unwrap().unwrap();
    assert_eq!(stored.digest, thief.state.digest());
}

#[tokio::test]
async fn what_was_accepted_in_an_older_epoch_is_applied_under_its_new_number() {
    let dir = tempfile::tempdir().unwrap();
    let store = shop(dir.path()).await;
    enrol(&store, 1, 1).await;
    let mut shopper = Shopper::new(1, 1, 7);
    let older = shopper.add("MUG", 1);
    enrol(&store, 1, 2).await;
    shopper.epoch = 2;
    assert_eq!(
        store.apply_batch(1, 2, 1, vec![older, shopper.add("MUG", 1)]).await.unwrap(),
        applied(2, 2, 0)
    );
    assert_eq!(store.cart(site(), shopper.cart).await.unwrap().unwrap().digest, shopper.state.digest());
}

#[tokio::test]
async fn a_clock_that_is_ahead_is_counted_and_one_that_no_clock_can_be_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = shop(dir.path()).await;
    enrol(&store, 1, 1).await;
    let now_ms = crate::clock::now_ms();
    let mut shopper = Shopper::new(1, 1, 7);
    let mut send = |at: Hlc| {
        shopper.clock = at.0 - 1;
        shopper.edit(|edit| edit.country("FR".parse().unwrap()))
    };
    let hour_ms = 3_600_000;
    let ops = vec![send(Hlc::at(now_ms)), send(Hlc::at(now_ms + hour_ms)), send(Hlc(u64::MAX - 9))];
    let outcome = store.apply_batch(1, 1, 1, ops).await.unwrap();
    let expected = Applied { hwm: 3, applied: 2, dead: 1, clock_ahead: 1, ..Applied::default() };
    assert_eq!(outcome, Apply::Applied(expected));
    assert_eq!(burials(dir.path()), ["clock_ahead"]);
    // The next shopper's country can still win.
    let stored = store.cart(site(), CartId([7; 16])).await.unwrap().unwrap();
    assert_eq!(Cart::from_bytes(&stored.state).unwrap().newest(), Some(Hlc::at(now_ms + hour_ms)));
}

#[tokio::test]
async fn a_cart_that_nobody_can_read_holds_up_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let store = shop(dir.path()).await;
    enrol(&store, 1, 1).await;
    let (mut broken, mut whole) = (Shopper::new(1, 1, 7), Shopper::new(1, 1, 8));
    store.apply_batch(1, 1, 1, vec![broken.add("MUG", 1)]).await.unwrap();
    Connection::open(dir.path().join("region.db"))
        .unwrap()
        .execute("UPDATE cart SET state = x'00'", [])
        .unwrap();
    let outcome = store.apply_batch(1, 1, 2, vec![broken.add("MUG", 1), whole.add("PEN", 1)]).await.unwrap();
    assert_eq!(outcome, Apply::Applied(Applied { hwm: 3, applied: 1, dead: 1, ..Applied::default() }));
    assert_eq!(store.cart(site(), whole.cart).await.unwrap().unwrap().digest, whole.state.digest());
}

#[tokio::test]
async fn waiting_for_an_operation_ends_when_it_is_applied() {
    let dir = tempfile::tempdir().unwrap();
    let store = shop(dir.path()).await;
    enrol(&store, 1, 1).await;
    let waiting = tokio::spawn({
        let store = store.clone();
        async move { store.marks().reached(1, 1, 2).await }
    });
    let mut shopper = Shopper::new(1, 1, 7);
    store.apply_batch(1, 1, 1, vec![shopper.add("MUG", 1)]).await.unwrap();
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    store.apply_batch(1, 1, 2, vec![shopper.add("MUG", 1)]).await.unwrap();
    waiting.await.unwrap();
}

#[tokio::test]
async fn an_import_that_runs_twice_ran_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = shop(dir.path()).await;
    let heads = *store.log_heads().borrow();
    let rows = || vec![row("MUG", 1_000, Some(Some(5))), row("PEN", 200, Some(None)), row("CAP", 700, None)];
    let again = store.import(site(), rows(), actor()).await.unwrap().unwrap();
    assert_eq!(again, Imported { created: 0, updated: 0, unchanged: 3, ..Imported::default() });
    assert_eq!(*store.log_heads().borrow(), heads, "no entry was written");

    let mut rows = rows();
    rows[0].price = Some(PriceRow::of(Minor(1_100)).into());
    let changed = store.import(site(), rows, actor()).await.unwrap().unwrap();
    assert_eq!(changed, Imported { created: 0, updated: 1, unchanged: 2, ..Imported::default() });
    let now = *store.log_heads().borrow();
    assert_eq!(now.get(Log::Price), heads.get(Log::Price) + 1);
    assert_eq!(
        (now.get(Log::Catalog), now.get(Log::Stock)),
        (heads.get(Log::Catalog), heads.get(Log::Stock))
    );
    assert_eq!(store.import("nobody".parse().unwrap(), vec![], actor()).await.unwrap(), None);
}

#[tokio::test]
async fn a_price_change_wakes_whoever_waits_for_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let store = shop(dir.path()).await;
    let mut heads = store.log_heads();
    heads.mark_unchanged();
    let put = store.put_price(site(), sku("MUG"), PriceRow::of(Minor(900)), actor()).await.unwrap();
    heads.changed().await.unwrap();
    let version = heads.borrow().get(Log::Price);
    assert_eq!(put, Put::Written { version });
    let Run::Changes { to, records } = store.changes(Log::Price, version - 1, PAGE).await.unwrap() else {
        panic!("the log is whole")
    };
    let change = PriceChange { site: site(), sku: sku("MUG"), price: Some(PriceRow::of(Minor(900))) };
    assert_eq!((to, records), (version, vec![Record { version, body: change.to_bytes() }]));
    let same = store.put_price(site(), sku("MUG"), PriceRow::of(Minor(900)), actor()).await.unwrap();
    assert_eq!(same, Put::Unchanged { version });
    assert_eq!(
        store.put_price(site(), sku("NIL"), PriceRow::of(Minor(1)), actor()).await.unwrap(),
        Put::NoProduct
    );
}

/// Rows by key, from either way of reading a log.
fn fold(log: Log, rows: &mut std::collections::BTreeMap<String, Vec<u8>>, records: &[Record]) {
    for record in records {
        let (key, gone) = match log {
            Log::Catalog => {
                let change = ProductChange::from_bytes(&record.body).unwrap();
                (change.sku.to_string(), change.product.is_none())
            }
            Log::Price => {
                let change = PriceChange::from_bytes(&record.body).unwrap();
                (change.sku.to_string(), change.price.is_none())
            }
            Log::Stock => (StockChange::from_bytes(&record.body).unwrap().sku.to_string(), false),
            _ => {
                let change = AssetChange::from_bytes(&record.body).unwrap();
                (change.path, change.asset.is_none())
            }
        };
        if gone {
            rows.remove(&key);
        } else {
            rows.insert(key, record.body.clone());
        }
    }
}

#[tokio::test]
async fn a_snapshot_in_pages_is_what_the_changes_add_up_to() {
    let dir = tempfile::tempdir().unwrap();
    let store = shop(dir.path()).await;
    let asset = |text: &str| Asset::new(Digest::of(text.as_bytes()), 2_000, "text/html".to_owned());
    let manifest =
        |files: &[(&str, &str)]| files.iter().map(|(path, text)| ((*path).to_owned(), asset(text))).collect();
    store
        .put_assets(site(), manifest(&[("/a", "a"), ("/b", "b"), ("/c", "c")]), actor())
        .await
        .unwrap()
        .unwrap();
    store.put_assets(site(), manifest(&[("/b", "b"), ("/d", "d")]), actor()).await.unwrap().unwrap();
    // A new version tells which it follows, in the changes and in the snapshot.
    store.put_assets(site(), manifest(&[("/b", "b2"), ("/d", "d")]), actor()).await.unwrap().unwrap();
    for price in 1..30 {
        store.put_price(site(), sku("MUG"), PriceRow::of(Minor(price)), actor()).await.unwrap();
        store.put_stock(site(), sku("PEN"), Some(price as u64 % 15), actor()).await.unwrap();
    }
    store.import(site(), vec![row("HAT", 5, Some(Some(0)))], actor()).await.unwrap().unwrap();

    for log in [Log::Catalog, Log::Price, Log::Stock, Log::Asset] {
        let (mut by_changes, mut cursor) = (std::collections::BTreeMap::new(), 0);
        loop {
            let run = store.changes(log, cursor, PageMax { records: 7, bytes: 1 << 20 }).await.unwrap();
            let Run::Changes { to, records } = run else { panic!("the log is whole") };
            fold(log, &mut by_changes, &records);
            if to == cursor {
                break;
            }
            cursor = to;
        }
        let (mut by_pages, mut resume, mut versions) = (std::collections::BTreeMap::new(), None, vec![]);
        loop {
            let page = store.snapshot(log, resume, PageMax { records: 1, bytes: 1 << 20 }).await.unwrap();
            fold(log, &mut by_pages, &page.records);
            versions.push(page.version);
            resume = page.next;
            if resume.is_none() {
                break;
            }
        }
        assert_eq!(by_pages, by_changes, "{log}");
        assert!(versions.iter().all(|version| *version == cursor), "{log}: one version for all pages");
    }
}

#[tokio::test]
async fn who_is_behind_the_kept_entries_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), StoreSettings::for_tests(100)).unwrap();
    store.put_site(SiteSettings::new(site(), "GBP".parse().unwrap()), By::Operator, actor()).await.unwrap();
    let rows = |price| (0..512).map(|n| row(&format!("S{n}"), price, None)).collect::<Vec<_>>();
    for price in 1..=2 {
        store.import(site(), rows(price), actor()).await.unwrap().unwrap();
    }
    let head = store.log_heads().borrow().get(Log::Price);
    assert_eq!(head, 1_024);
    assert_eq!(store.changes(Log::Price, head - 101, PAGE).await.unwrap(), Run::TooFarBehind);
    assert!(
        matches!(store.changes(Log::Price, head - 100, PAGE).await.unwrap(), Run::Changes { to, records } if to == head && records.len() == 100)
    );
    assert_eq!(
        store.changes(Log::Price, head + 1, PAGE).await.unwrap(),
        Run::TooFarBehind,
        "a cursor of another history"
    );
    let page = store.snapshot(Log::Price, None, PAGE).await.unwrap();
    assert_eq!((page.version, page.records.len(), page.next), (head, 512, None));
}

/// A cart with these lines, applied at the store, and an order of it that rests on what is there now.
async fn draft(store: &Store, cart: u8, lines: &[(&str, i32)], key: &str) -> Draft {
    let node = 100 + u32::from(cart);
    enrol(store, node, 1).await;
    let mut shopper = Shopper::new(node, 1, cart);
    let ops = lines.iter().map(|(name, quantity)| shopper.add(name, *quantity)).collect();
    store.apply_batch(node, 1, 1, ops).await.unwrap();
    order_of(store, &shopper, key).await
}

async fn order_of(store: &Store, shopper: &Shopper, key: &str) -> Draft {
    let settings = store.site(site()).await.unwrap().unwrap();
    let mut goods = std::collections::BTreeMap::new();
    let mut listed = Vec::new();
    for (line, quantity) in shopper.state.lines() {
        let found = store.goods(site(), line.sku.clone()).await.unwrap().unwrap();
        let versions = goods::GoodsVersions { product: found.product_version, price: found.price_version };
        goods.insert(line.sku.clone(), versions);
        let price = found.price.unwrap();
        let product = Arc::new(found.product);
        let stock = StockHint::Unknown;
        listed.push((line, quantity, Listed { product, price, price_version: found.price_version, stock }));
    }
    let quote = Quote::base(settings.settings.currency, None, listed).unwrap();
    Draft {
        order: Order {
            id: OrderId(rand::random()),
            site: site(),
            cart: shopper.cart,
            state: OrderState::Placed,
            quote,
            notes: vec![],
            placed_ms: 1,
            country: None,
            customer: None,
        },
        idempotency_key: key.to_owned(),
        request_hash: [7; 32],
        basis: Basis {
            cart: shopper.state.digest(),
            site_version: settings.version,
            release_version: 1,
            goods,
        },
    }
}

async fn left(store: &Store, name: &str) -> Option<Option<u64>> {
    store.goods(site(), sku(name)).await.unwrap().unwrap().stock
}

#[tokio::test]
async fn an_order_takes_its_stock_seals_its_cart_and_answers_the_same_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = shop(dir.path()).await;
    let draft = draft(&store, 1, &[("MUG", 2), ("PEN", 3), ("CAP", 1)], "key-1").await;
    assert_eq!(store.place(draft.clone()).await.unwrap(), Place::Placed);
    assert_eq!(left(&store, "MUG").await, Some(Some(3)));
    assert_eq!(left(&store, "PEN").await, Some(None), "not counted");
    assert_eq!(left(&store, "CAP").await, None, "never counted");

    let again = Draft { order: Order { id: OrderId([9; 16]), ..draft.order.clone() }, ..draft.clone() };
    assert_eq!(
        store.place(again).await.unwrap(),
        Place::Repeated(Standing::Placed(Box::new(draft.order.clone())))
    );
    let other = Draft { request_hash: [8; 32], ..draft.clone() };
    assert_eq!(store.place(other).await.unwrap(), Place::KeyReused);
    let second = Draft { idempotency_key: "key-2".to_owned(), ..draft.clone() };
    assert_eq!(store.place(second).await.unwrap(), Place::CartSealed(draft.order.id));
    assert_eq!(left(&store, "MUG").await, Some(Some(3)), "only the first one took anything");

    assert_eq!(store.order(draft.order.id).await.unwrap(), Some(draft.order.clone()));
    let listed = store.orders(site(), 0, 10).await.unwrap();
    assert_eq!(listed.len(), 1);
    assert!(store.orders(site(), listed[0].position, 10).await.unwrap().is_empty());
    assert_eq!(store.cart(site(), draft.order.cart).await.unwrap().unwrap().order, Some(draft.order.id));
    // Nodes were told: 5 was few, 3 is fewer.
    let head = store.log_heads().borrow().get(Log::Stock);
    let Run::Changes { records, .. } = store.changes(Log::Stock, head - 1, PAGE).await.unwrap() else {
        panic!()
    };
    assert_eq!(StockChange::from_bytes(&records[0].body).unwrap().hint, StockHint::Low(3));
}

#[tokio::test]
async fn an_order_that_lacks_stock_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let store = shop(dir.path()).await;
    // HAT sorts before MUG, so its stock is taken before MUG is found wanting.
    store.import(site(), vec![row("HAT", 10, Some(Some(50)))], actor()).await.unwrap().unwrap();
    let draft = draft(&store, 1, &[("HAT", 2), ("MUG", 6)], "key-1").await;
    let place = store.place(draft.clone()).await.unwrap();
    assert_eq!(place, Place::OutOfStock { sku: sku("MUG"), available: 5 });
    assert_eq!((left(&store, "HAT").await, left(&store, "MUG").await), (Some(Some(50)), Some(Some(5))));
    assert_eq!(store.counts().await.unwrap().orders, 0);
    assert_eq!(store.cart(site(), draft.order.cart).await.unwrap().unwrap().order, None);
}

#[tokio::test]
async fn an_order_is_not_made_of_a_world_that_has_moved() {
    let dir = tempfile::tempdir().unwrap();
    let store = shop(dir.path()).await;
    let draft = draft(&store, 1, &[("MUG", 1)], "key-1").await;
    store.put_price(site(), sku("MUG"), PriceRow::of(Minor(1)), actor()).await.unwrap();
    assert_eq!(store.place(draft.clone()).await.unwrap(), Place::Moved);
    store.put_price(site(), sku("PEN"), PriceRow::of(Minor(1)), actor()).await.unwrap();
    let mut shopper = Shopper::new(101, 1, 1);
    shopper.add("MUG", 1);
    let fresh = order_of(&store, &shopper, "key-1").await;
    assert_eq!(
        store
            .place(Draft { basis: Basis { site_version: 99, ..fresh.basis.clone() }, ..fresh.clone() })
            .await
            .unwrap(),
        Place::Moved
    );
    assert_eq!(
        store
            .place(Draft { basis: Basis { cart: Digest([0; 32]), ..fresh.basis.clone() }, ..fresh.clone() })
            .await
            .unwrap(),
        Place::Moved
    );
    // PEN is not part of this price: that it changed does not matter.
    assert_eq!(store.place(fresh).await.unwrap(), Place::Placed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_units_are_sold_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = shop(dir.path()).await;
    let mut drafts = Vec::new();
    for cart in 1..=20 {
        drafts.push(draft(&store, cart, &[("MUG", 1)], &format!("key-{cart}")).await);
    }
    let placing: Vec<_> = drafts
        .into_iter()
        .map(|draft| {
            tokio::spawn({
                let store = store.clone();
                async move { store.place(draft).await.unwrap() }
            })
        })
        .collect();
    let mut placed = 0;
    for place in placing {
        match place.await.unwrap() {
            Place::Placed => placed += 1,
            Place::OutOfStock { available: 0, .. } => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((placed, left(&store, "MUG").await), (5, Some(Some(0))));
}

#[tokio::test]
async fn a_late_operation_joins_its_cart_but_no_order() {
    let dir = tempfile::tempdir().unwrap();
    let store = shop(dir.path()).await;
    let draft = draft(&store, 1, &[("MUG", 1)], "key-1").await;
    assert_eq!(store.place(draft.clone()).await.unwrap(), Place::Placed);
    let mut shopper = Shopper::new(101, 1, 1);
    shopper.add("MUG", 1);
    let late = shopper.add("PEN", 1);
    let outcome = store.apply_batch(101, 1, 2, vec![late]).await.unwrap();
    assert_eq!(outcome, Apply::Applied(Applied { hwm: 2, applied: 1, late: 1, ..Applied::default() }));
    let cart = store.cart(site(), shopper.cart).await.unwrap().unwrap();
    assert_eq!((cart.digest, cart.order), (shopper.state.digest(), Some(draft.order.id)));
}

#[tokio::test]
async fn what_was_answered_is_there_after_an_unclean_stop() {
    let dir = tempfile::tempdir().unwrap();
    let store = shop(dir.path()).await;
    let draft = draft(&store, 1, &[("MUG", 2)], "key-1").await;
    assert_eq!(store.place(draft.clone()).await.unwrap(), Place::Placed);
    let heads = *store.log_heads().borrow();
    // The files as a power cut would leave them: copied while the writer and its WAL are still open.
    let copy = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(dir.path()).unwrap() {
        let file = file.unwrap();
        if !file.file_name().to_string_lossy().ends_with("-shm") {
            std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
        }
    }
    let after = open(copy.path());
    assert_eq!(*after.log_heads().borrow(), heads);
    assert_eq!(after.marks().get(101, 1).map(|mark| mark.hwm), Some(1));
    assert_eq!(after.order(draft.order.id).await.unwrap(), Some(draft.order.clone()));
    assert_eq!(left(&after, "MUG").await, Some(Some(3)));
    assert_eq!(
        after.place(draft.clone()).await.unwrap(),
        Place::Repeated(Standing::Placed(Box::new(draft.order)))
    );
    assert!(matches!(after.audit_chain().await.unwrap(), Chain::Whole { rows } if rows == 2));
}

#[tokio::test]
async fn a_failing_command_leaves_its_neighbours_alone() {
    let dir = tempfile::tempdir().unwrap();
    let store = shop(dir.path()).await;
    // Sent together they share a commit; either way the good ones must stand and the bad ones must leave nothing.
    let good = |n: i64| store.put_price(site(), sku("MUG"), PriceRow::of(Minor(n)), actor());
    let fails = store.write(|tx| -> Result<Decision<()>, StoreError> {
        log::append(tx, Log::Purge, b"half")?;
        tx.sql
            .execute("INSERT INTO stock (site, sku, available, version) VALUES ('shop', 'X', -1, 77)", [])?;
        Ok(Decision::Keep(()))
    });
    let panics = store.write(|tx| -> Result<Decision<()>, StoreError> {
        log::append(tx, Log::Purge, b"half")?;
        panic!("a bug");
    });
    let (first, failed, panicked, second) = tokio::join!(good(1), fails, panics, good(2));
    assert!(matches!(first.unwrap(), Put::Written { .. }) && matches!(second.unwrap(), Put::Written { .. }));
    assert!(matches!(failed, Err(StoreError::Sqlite(_))), "the CHECK on stock holds: {failed:?}");
    assert!(matches!(panicked, Err(StoreError::Panicked(text)) if text == "a bug"));
    assert_eq!(store.log_heads().borrow().get(Log::Purge), 0);
    assert_eq!(store.goods(site(), sku("MUG")).await.unwrap().unwrap().price.unwrap().price, Minor(2));
}

#[tokio::test]
async fn the_audit_log_shows_where_it_was_touched() {
    let dir = tempfile::tempdir().unwrap();
    let store = shop(dir.path()).await;
    for price in 1..5 {
        store.put_price(site(), sku("MUG"), PriceRow::of(Minor(price)), actor()).await.unwrap();
    }
    assert_eq!(store.audit_chain().await.unwrap(), Chain::Whole { rows: 6 });
    let rows = store.audit(0, 10).await.unwrap();
    assert_eq!((rows.len(), rows[2].action.as_str(), rows[2].subject.as_str()), (6, "price.put", "shop/MUG"));
    store.close();
    assert!(matches!(
        store.put_price(site(), sku("MUG"), PriceRow::of(Minor(9)), actor()).await,
        Err(StoreError::Closed)
    ));

    let conn = Connection::open(dir.path().join("region.db")).unwrap();
    assert!(conn.execute("DELETE FROM audit WHERE seq = 4", []).is_err(), "append-only");
    conn.execute_batch(
        "DROP TRIGGER audit_is_append_only_u; UPDATE audit SET actor = 'nobody' WHERE seq = 4;",
    )
    .unwrap();
    drop(conn);
    assert_eq!(open(dir.path()).audit_chain().await.unwrap(), Chain::BrokenAt { seq: 4 });
}

#[tokio::test]
async fn a_host_leads_to_one_site_and_a_currency_stays() {
    use super::site::PutSite;
    let dir = tempfile::tempdir().unwrap();
    let store = shop(dir.path()).await;
    let with_host = |name: &str| SiteSettings {
        hosts: vec!["shop.example".to_owned()],
        ..SiteSettings::new(name.parse().unwrap(), "GBP".parse().unwrap())
    };
    assert!(matches!(
        store.put_site(with_host("shop"), By::Operator, actor()).await.unwrap(),
        PutSite::Written { created: false, .. }
    ));
    assert!(matches!(
        store.put_site(with_host("shop"), By::Operator, actor()).await.unwrap(),
        PutSite::Unchanged { .. }
    ));
    let heads = *store.log_heads().borrow();
    let taken = store.put_site(with_host("rival"), By::Operator, actor()).await.unwrap();
    assert_eq!(taken, PutSite::HostTaken { host: "shop.example".to_owned(), site: "shop".to_owned() });
    let euros = SiteSettings { currency: "EUR".parse().unwrap(), ..with_host("shop") };
    assert_eq!(
        store.put_site(euros, By::Operator, actor()).await.unwrap(),
        PutSite::CurrencyChange { from: "GBP".to_owned() }
    );
    assert_eq!(*store.log_heads().borrow(), heads, "refusals leave no entry");
    assert_eq!(store.sites().await.unwrap(), ["shop"]);
}

#[tokio::test]
async fn a_merchant_takes_neither_a_host_nor_a_weight_and_loses_none() {
    use super::site::PutSite;
    let dir = tempfile::tempdir().unwrap();
    let store = shop(dir.path()).await;
    let settings = |hosts: &[&str], cpu_weight| SiteSettings {
        hosts: hosts.iter().map(|&host| host.to_owned()).collect(),
        cpu_weight,
        ..SiteSettings::new(site(), "GBP".parse().unwrap())
    };
    store.put_site(settings(&["a.example", "b.example"], Some(3)), By::Operator, actor()).await.unwrap();
    let ask = async |hosts: &[&str], weight| {
        store.put_site(settings(hosts, weight), By::Merchant, actor()).await.unwrap()
    };
    assert_eq!(ask(&["a.example", "c.example"], None).await, PutSite::HostsNotGiven);
    assert_eq!(ask(&["a.example"], Some(4)).await, PutSite::WeightNotGiven);
    assert!(matches!(ask(&["a.example"], None).await, PutSite::Written { created: false, .. }));
    let row = store.site(site()).await.unwrap().expect("a site");
    assert_eq!(
        (row.settings.hosts.len(), row.settings.cpu_weight),
        (1, Some(3)),
        "a host given up, a weight kept"
    );
    assert_eq!(
        ask(&["a.example", "b.example"], None).await,
        PutSite::HostsNotGiven,
        "what was given up is gone"
    );
}

/// Where the child of the next test keeps its store.
const KILLED_DIR: &str = "SOUK_REGION_TEST_KILLED_DIR";

/// The child: changes a price again and again and says each version that it was answered.
#[tokio::test]
async fn write_until_killed() {
    let Some(dir) = std::env::var_os(KILLED_DIR) else { return };
    let store = shop(Path::new(&dir)).await;
    for price in 1.. {
        let put = store.put_price(site(), sku("MUG"), PriceRow::of(Minor(price)), actor()).await.unwrap();
        let Put::Written { version } = put else { panic!("each price is new") };
        println!("answered {version} {price}");
    }
}

#[tokio::test]
async fn a_killed_process_loses_nothing_that_it_answered() {
    use std::io::{BufRead as _, BufReader};
    use std::process::{Command, Stdio};
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::tests::write_until_killed", "--nocapture"])
        .env(KILLED_DIR, dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut answered = (0, 0);
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for (count, line) in lines.map_while(Result::ok).filter(|line| line.contains("answered ")).enumerate() {
        let words: Vec<i64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
        answered = (words[0] as u64, words[1]);
        if count == 40 {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(answered.0 > 40);
    let after = open(dir.path());
    // What was under way may have been committed without an answer; what was answered must be there.
    let head = after.log_heads().borrow().get(Log::Price);
    assert!(head >= answered.0, "answered {answered:?}, found {head}");
    let price = after.goods(site(), sku("MUG")).await.unwrap().unwrap().price.unwrap().price;
    assert!(price.0 >= answered.1 && price.0 <= answered.1 + 1, "answered {answered:?}, found {price}");
    assert!(matches!(after.audit_chain().await.unwrap(), Chain::Whole { .. }));
}
