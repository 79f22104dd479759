//! What is a shopper's: sealed while it is kept, whole when he wants it, gone when he wants it gone.

use std::collections::BTreeSet;

use serde_json::Value;
use souk_commerce::feed::PurgeChange;
use souk_commerce::order::Note;
use souk_commerce::quote::Applied as Adjusted;

use super::super::order::{Known, Payment};
use super::super::shopper::{After, Erased, Erasure, Whom};
use super::*;

const ADA: &str = "ada@example.com";
const SECRETS: [&str; 3] = [ADA, "leave it with the neighbour", "10 % for"];

on_every_engine! {
    what_is_a_shoppers_is_sealed_and_comes_back_as_it_was,
    an_erased_shopper_is_gone_the_books_stay_and_an_auditor_sees_it,
    a_guest_goes_by_a_cart_and_a_cart_of_another_stays,
    an_order_whose_payment_is_not_decided_keeps_its_shopper,
    an_erasure_that_a_crash_cut_short_is_finished_at_the_next_start,
    orders_of_an_older_version_are_sealed,
    an_export_has_every_order_of_its_shopper_and_no_other,
    an_order_that_was_sealed_before_its_shopper_was_erased_is_sealed_again,
}

/// An order of this customer's with everything that may say who it is.
async fn personal(store: &Store, cart: u8, customer: Option<&str>) -> Draft {
    let mut draft = draft(store, cart, &[("PEN", 2)], &format!("key-{cart}")).await;
    let plugin: souk_commerce::id::PluginName = "rules".parse().unwrap();
    draft.order.customer = customer.map(str::to_owned);
    let text = SECRETS[1].to_owned();
    draft.order.notes = vec![Note { plugin: plugin.clone(), code: "gift".to_owned(), text }];
    let label = |label: String| Adjusted {
        plugin: plugin.clone(),
        release: 1,
        code: "loyal".to_owned(),
        label,
        amount: Minor(0),
    };
    let named = customer.map_or_else(|| "nobody".to_owned(), |customer| format!("{} {customer}", SECRETS[2]));
    draft.order.quote.lines[0].adjustments = vec![label("plain".to_owned()), label(named.clone())];
    draft.order.quote.adjustments = vec![label(named)];
    draft
}

/// An erasure whose process died before it destroyed the key.
pub(crate) struct Begun {
    pub(crate) store: Store,
    pub(crate) erased_ms: u64,
}

impl Begun {
    pub(crate) async fn new(home: &Home) -> Self {
        let store = shop(home).await;
        let draft = personal(&store, 1, Some(ADA)).await;
        store.place(draft).await.unwrap();
        let subject = Some(store.vault.find(&site(), ADA).unwrap().expect("a key").id);
        let named = store.vault.trace(&site(), ADA).unwrap();
        let whom = Whom { subject, carts: BTreeSet::new(), named };
        let begun = store.begin_erasure(site(), whom, actor()).await.unwrap();
        let Erased::Now(Erasure { erased_ms, ended_ms: None, .. }) = begun else { panic!("{begun:?}") };
        Self { store, erased_ms }
    }

    /// Whether an order of the shopper's is taken, and not put off.
    pub(crate) async fn can_order(&self) -> bool {
        let draft = personal(&self.store, 9, Some(ADA)).await;
        match self.store.place(draft).await.unwrap() {
            Place::Placed => true,
            Place::Moved => false,
            other => panic!("{other:?}"),
        }
    }
}

/// What stands in the rows of an order.
async fn rows(store: &Store, draft: &Draft) -> String {
    let id = draft.order.id;
    let rows = store.read(move |conn| {
        let sql = "SELECT body, request_hash, idempotency_key FROM orders WHERE id = ?1";
        conn.one(sql, params![id.0], |row| {
            let (body, hash): (Vec<u8>, Vec<u8>) = (row.get(0)?, row.get(1)?);
            let key: String = row.get(2)?;
            Ok(format!("{} {} {key}", String::from_utf8_lossy(&body), hex::encode(hash)))
        })
    });
    rows.await.unwrap()
}

async fn erase(store: &Store, customer: &str) -> Erased {
    store.erase_shopper(site(), Some(customer.to_owned()), BTreeSet::new(), actor()).await.unwrap()
}

async fn erased(store: &Store, customer: &str) -> Erasure {
    let Erased::Now(erasure) = erase(store, customer).await else { panic!("it is erased") };
    assert!(erasure.ended_ms.is_some(), "{erasure:?}");
    erasure
}

async fn what_is_a_shoppers_is_sealed_and_comes_back_as_it_was(home: Home) {
    let store = shop(&home).await;
    let draft = personal(&store, 1, Some(ADA)).await;
    assert_eq!(store.place(draft.clone()).await.unwrap(), Place::Placed);
    let row = rows(&store, &draft).await;
    for secret in SECRETS {
        assert!(!row.contains(secret), "{row}");
    }
    assert!(row.contains("plain"), "what says nothing of anybody stays as it is");
    // The question is made of the customer's number and of what stands in the row: its hash would tell a guess.
    assert!(!row.contains(&hex::encode(draft.request_hash)), "{row}");
    let repeated = Place::Repeated(Standing::Placed(Box::new(draft.order.clone())));
    assert_eq!(store.place(draft.clone()).await.unwrap(), repeated);
    let known = store.view().await.unwrap();
    let known = known.known_order(&site(), "key-1", Some(ADA), &draft.request_hash).unwrap();
    assert_eq!(known, Known::Same(Standing::Placed(Box::new(draft.order.clone()))));
    let mut of_bob = draft.clone();
    of_bob.order.customer = Some("bob".to_owned());
    assert_eq!(store.place(of_bob).await.unwrap(), Place::KeyReused);

    // A note of somebody without a number is sealed too.
    let guest = personal(&store, 2, None).await;
    assert_eq!(store.place(guest.clone()).await.unwrap(), Place::Placed);
    assert!(!rows(&store, &guest).await.contains(SECRETS[1]));
    store.close();
    let store = home.open();
    for draft in [draft, guest] {
        assert_eq!(store.order(draft.order.id).await.unwrap(), Some(draft.order.clone()));
        let detail = store.order_detail(site(), draft.order.id).await.unwrap().unwrap();
        assert_eq!(detail.order, draft.order);
    }
}

async fn an_erased_shopper_is_gone_the_books_stay_and_an_auditor_sees_it(home: Home) {
    let store = shop(&home).await;
    let (of_ada, of_bob) = (personal(&store, 1, Some(ADA)).await, personal(&store, 2, Some("bob")).await);
    for draft in [&of_ada, &of_bob] {
        assert_eq!(store.place(draft.clone()).await.unwrap(), Place::Placed);
    }
    let before = store.orders(site(), 0, 10).await.unwrap();
    assert_eq!(erase(&store, "nobody").await, Erased::Nothing);
    let erasure = erased(&store, ADA).await;
    assert_eq!((erasure.orders, erasure.checkouts, erasure.carts), (1, 0, 1));

    let order = store.order(of_ada.order.id).await.unwrap().expect("the order stays");
    assert_eq!((order.customer.as_deref(), order.notes.len()), (None, 0));
    assert_eq!(order.quote.total, of_ada.order.quote.total);
    assert_eq!(order.quote.lines[0].adjustments[0].label, "plain");
    assert!(!format!("{order:?}").contains("ada") && order.cart != of_ada.order.cart, "{order:?}");
    let row = rows(&store, &of_ada).await;
    assert!(row.contains("erased-") && !row.contains("key-1"), "{row}");
    let after = store.orders(site(), 0, 10).await.unwrap();
    let books = |listed: &[order::OrderListed]| -> Vec<_> {
        listed.iter().map(|it| (it.order, it.total, it.currency.clone(), it.state.clone())).collect()
    };
    assert_eq!(books(&after), books(&before));
    assert_eq!(store.order(of_bob.order.id).await.unwrap(), Some(of_bob.order.clone()), "nobody else's");
    let told = store.events(site(), 0, 10).await.unwrap();
    assert_eq!((&told[0].detail["cart"], told[1].detail["cart"].is_string()), (&Value::Null, true));

    // The cart is closed for good, and what comes late brings nothing back.
    let mut late = Shopper::new(101, 1, 1);
    late.add("PEN", 2);
    let op = late.add("PEN", 5);
    let Apply::Applied(outcome) = store.apply_batch(101, 1, 2, vec![op]).await.unwrap() else {
        panic!("a gap")
    };
    assert_eq!((outcome.hwm, outcome.late, outcome.dead), (2, 1, 0));
    let cart = store.cart(site(), of_ada.order.cart).await.unwrap().expect("it is known to be closed");
    assert!(cart.is_erased && cart.order.is_some() && cart::decode(&cart.state).unwrap().lines().is_empty());
    assert_eq!(store.carts(site(), None, 10).await.unwrap().len(), 1, "bob's");
    assert!(matches!(store.place(of_ada.clone()).await.unwrap(), Place::CartSealed(_)));

    // Nodes are told by the log, those that were away for long by its snapshot, and neither tells anybody which cart.
    let Run::Changes { records, .. } = store.changes(Log::Purge, 0, PAGE).await.unwrap() else {
        panic!("all is there")
    };
    let snapshot = store.snapshot(Log::Purge, None, PAGE).await.unwrap();
    assert_eq!((records.last().map(|it| it.version), &snapshot.records), (Some(erasure.version), &records));
    let change = PurgeChange::from_bytes(&records[0].body).unwrap();
    assert_eq!(change.carts, [of_ada.order.cart.tag(&site())]);

    let rows = store.audit(0, 100).await.unwrap();
    let of_erasure: Vec<_> = rows.iter().filter(|row| row.action.starts_with("shopper.")).collect();
    let actions: Vec<_> = of_erasure.iter().map(|row| row.action.as_str()).collect();
    assert_eq!(actions, ["shopper.erased", "shopper.key_destroyed"]);
    for row in of_erasure {
        assert_eq!(row.detail["named"], erasure.named.as_str());
        assert!(!format!("{row:?}").contains(ADA));
    }
    assert!(matches!(store.audit_chain().await.unwrap(), Chain::Whole { .. }));

    assert_eq!(erase(&store, ADA).await, Erased::Before(erasure.clone()), "wanted twice, done once");
    assert_eq!(store.audit(0, 100).await.unwrap().len(), rows.len());
    // Whoever comes back is another one, and can go again.
    let again = personal(&store, 3, Some(ADA)).await;
    assert_eq!(store.place(again.clone()).await.unwrap(), Place::Placed);
    assert_eq!(store.order(again.order.id).await.unwrap(), Some(again.order));
    let second = erased(&store, ADA).await;
    assert!(second.version > erasure.version && second.named == erasure.named);
    assert_eq!(store.erasures(site()).await.unwrap().len(), 2);
}

#[tokio::test]
async fn an_older_copy_of_the_store_opens_nothing_with_the_keyring_of_after() {
    let home = Home::sqlite();
    let store = shop(&home).await;
    let draft = personal(&store, 1, Some(ADA)).await;
    assert_eq!(store.place(draft.clone()).await.unwrap(), Place::Placed);
    let files = ["region.db", "region.db-wal"];
    let copy = |names: &[&str], to: &Path| {
        for name in names {
            std::fs::copy(home.dir().join(name), to.join(name)).unwrap();
        }
    };
    let (backup, both) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    copy(&files, backup.path());
    copy(&files, both.path());
    copy(&["keyring.db", "keyring.db-wal"], both.path());
    erased(&store, ADA).await;
    store.close();
    copy(&["keyring.db"], backup.path());
    for dir in [home.dir(), backup.path()] {
        for file in std::fs::read_dir(dir).unwrap() {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            for secret in SECRETS {
                assert!(!bytes.windows(secret.len()).any(|at| at == secret.as_bytes()), "{secret}");
            }
        }
    }
    let opened = |dir: &Path| Store::open(dir, StoreSettings::for_tests(1_000_000)).unwrap();
    let old = opened(both.path());
    assert_eq!(old.order(draft.order.id).await.unwrap(), Some(draft.order.clone()), "with the key it opens");
    let restored = opened(backup.path());
    let order = restored.order(draft.order.id).await.unwrap().unwrap();
    assert_eq!((order.customer.as_deref(), order.notes.len()), (None, 0));
    assert_eq!(order.quote.adjustments[0].label, "[erased]");
    assert_eq!(erase(&restored, ADA).await, Erased::Nothing, "no way leads from the number to the row");
    // A region that is told that it was restored finds what has no key, and erases it again.
    assert_eq!(restored.erase_orphans(actor()).await.unwrap(), 1);
    assert_eq!(restored.erase_orphans(actor()).await.unwrap(), 0);
    assert!(restored.cart(site(), draft.order.cart).await.unwrap().unwrap().is_erased);
    let alone = tempfile::tempdir().unwrap();
    copy(&["region.db"], alone.path());
    for start in ["first", "next"] {
        let erased = opened(alone.path()).erase_orphans(actor()).await.unwrap();
        assert_eq!(erased, 0, "a lost keyring erases nobody, at the {start} start");
    }
}

async fn a_guest_goes_by_a_cart_and_a_cart_of_another_stays(home: Home) {
    let store = shop(&home).await;
    let (guest, of_ada) = (personal(&store, 1, None).await, personal(&store, 2, Some(ADA)).await);
    for draft in [&guest, &of_ada] {
        assert_eq!(store.place(draft.clone()).await.unwrap(), Place::Placed);
    }
    // A cart that was never ordered.
    draft(&store, 3, &[("PEN", 1)], "never").await;
    let erase = async |customer: Option<&str>, carts: &[u8]| {
        let carts = carts.iter().map(|n| CartId([*n; 16])).collect();
        store.erase_shopper(site(), customer.map(str::to_owned), carts, actor()).await.unwrap()
    };
    assert_eq!(erase(None, &[1, 2]).await, Erased::Another(CartId([2; 16])));
    assert_eq!(store.order(guest.order.id).await.unwrap(), Some(guest.order.clone()), "nothing was touched");
    let Erased::Now(erasure) = erase(None, &[1, 9]).await else { panic!("it is erased") };
    assert_eq!((erasure.orders, erasure.carts, erasure.ended_ms.is_some()), (1, 2, true));
    let unheard = store.cart(site(), CartId([9; 16])).await.unwrap();
    assert!(unheard.is_some_and(|cart| cart.is_erased), "a node that is away may have it");
    assert!(store.order(guest.order.id).await.unwrap().unwrap().notes.is_empty());
    assert_eq!(erase(None, &[1, 9]).await, Erased::Before(erasure));
    assert_eq!(erase(None, &[9]).await, Erased::Nothing);
    let Erased::Now(erasure) = erase(Some(ADA), &[2, 3]).await else { panic!("it is erased") };
    assert_eq!((erasure.orders, erasure.carts), (1, 2), "with a cart that no order says to be hers");
    assert!(store.cart(site(), CartId([3; 16])).await.unwrap().unwrap().is_erased);
    assert!(store.carts(site(), None, 10).await.unwrap().is_empty());
}

async fn an_order_whose_payment_is_not_decided_keeps_its_shopper(home: Home) {
    let store = shop(&home).await;
    let draft = personal(&store, 1, Some(ADA)).await;
    let payment = Payment { method: "pm_card".parse().unwrap(), capture: true };
    assert_eq!(store.reserve(draft.clone(), payment, 5).await.unwrap(), Place::Reserved);
    let standing = store.standing(draft.order.id).await.unwrap().expect("it waits");
    let pending = Order { state: OrderState::Pending, ..draft.order.clone() };
    assert_eq!(standing, Standing::Pending(Box::new(pending.clone())));
    assert_eq!(erase(&store, ADA).await, Erased::Busy(draft.order.id));
    assert_eq!(store.order(draft.order.id).await.unwrap(), Some(pending), "nothing was touched");
}

/// Between the sealing of an order and its transaction a whole erasure has room, and half of one.
async fn an_order_that_was_sealed_before_its_shopper_was_erased_is_sealed_again(home: Home) {
    let store = shop(&home).await;
    let first = personal(&store, 1, Some(ADA)).await;
    store.place(first).await.unwrap();
    let (drafts, payment) = (
        [personal(&store, 2, Some(ADA)).await, personal(&store, 3, Some(ADA)).await],
        Payment { method: "pm_card".parse().unwrap(), capture: true },
    );
    let mut seals = Vec::new();
    for draft in [&drafts[0], &drafts[0], &drafts[1], &drafts[1]] {
        seals.push(store.seal_draft(draft.clone()).await.unwrap());
    }
    let mut seals = seals.into_iter();
    let mut next = || seals.next().unwrap();
    let subject = store.vault.find(&site(), ADA).unwrap().expect("a key").id;
    let named = store.vault.trace(&site(), ADA).unwrap();
    let whom = Whom { subject: Some(subject), carts: BTreeSet::new(), named };
    store.begin_erasure(site(), whom, actor()).await.unwrap();
    assert_eq!(store.place_sealed(next()).await.unwrap(), Place::Moved, "its key is about to go");
    assert_eq!(store.reserve_sealed(next(), payment.clone(), 5).await.unwrap(), Place::Moved);
    assert_eq!(store.end_erasures(u64::MAX, actor()).await.unwrap(), 1);
    assert_eq!(store.place_sealed(next()).await.unwrap(), Place::Moved, "its key is gone");
    assert_eq!(store.reserve_sealed(next(), payment.clone(), 5).await.unwrap(), Place::Moved);
    // Asked again, as a checkout asks, it is somebody with a new key.
    let [one, two] = drafts;
    assert_eq!(store.place(one.clone()).await.unwrap(), Place::Placed);
    assert_eq!(store.reserve(two, payment, 5).await.unwrap(), Place::Reserved);
    assert_eq!(store.order(one.order.id).await.unwrap(), Some(one.order));
}

async fn an_erasure_that_a_crash_cut_short_is_finished_at_the_next_start(home: Home) {
    Begun::new(&home).await.store.close();
    let store = home.open();
    let named = store.vault.trace(&site(), ADA).unwrap();
    assert!(store.vault.find(&site(), ADA).unwrap().is_some(), "the crash came before the key");
    assert_eq!(store.end_erasures(u64::MAX, actor()).await.unwrap(), 1);
    assert_eq!(store.end_erasures(u64::MAX, actor()).await.unwrap(), 0);
    assert!(store.vault.find(&site(), ADA).unwrap().is_none());
    let Erased::Before(erasure) = erase(&store, ADA).await else { panic!("it is done") };
    assert!(erasure.ended_ms.is_some());
    // The same, by the same wish again: the key is gone, and nothing says so yet.
    let draft = personal(&store, 2, Some(ADA)).await;
    store.place(draft).await.unwrap();
    let subject = store.vault.find(&site(), ADA).unwrap().expect("a key").id;
    let whom = Whom { subject: Some(subject), carts: BTreeSet::new(), named };
    store.begin_erasure(site(), whom, actor()).await.unwrap();
    store.vault.destroy(&site(), &subject).unwrap();
    let Erased::Before(erasure) = erase(&store, ADA).await else { panic!("it is done") };
    assert!(erasure.ended_ms.is_some() && erasure.orders == 1);
    let told = store.audit(0, 100).await.unwrap();
    assert_eq!(told.iter().filter(|row| row.action == "shopper.key_destroyed").count(), 2);
}

async fn orders_of_an_older_version_are_sealed(home: Home) {
    let store = shop(&home).await;
    let draft = personal(&store, 1, Some(ADA)).await;
    store.place(draft.clone()).await.unwrap();
    let (order, hash) = (draft.order.clone(), draft.request_hash);
    store
        .write(move |tx| {
            let body = order::encode(&order)?;
            let sql =
                "UPDATE orders SET body = ?2, request_hash = ?3, subject = NULL, sealed = 0 WHERE id = ?1";
            tx.sql.execute(sql, params![order.id.0, body, hash])?;
            Ok(Decision::Keep(()))
        })
        .await
        .unwrap();
    let known = async || {
        let view = store.view().await.unwrap();
        view.known_order(&site(), "key-1", Some(ADA), &hash).unwrap()
    };
    let same = Known::Same(Standing::Placed(Box::new(draft.order.clone())));
    assert!(rows(&store, &draft).await.contains(ADA));
    assert_eq!(known().await, same, "as it is");
    let early = store.erase_shopper(site(), Some(ADA.to_owned()), BTreeSet::new(), actor()).await;
    assert!(matches!(early, Err(StoreError::Busy)), "it would miss what is not sealed yet: {early:?}");
    assert_eq!(store.seal_older().await.unwrap(), 1);
    assert_eq!(store.seal_older().await.unwrap(), 0);
    assert!(!rows(&store, &draft).await.contains(ADA));
    assert_eq!(known().await, same);
    assert_eq!(store.order(draft.order.id).await.unwrap(), Some(draft.order.clone()));
    assert_eq!(erased(&store, ADA).await.orders, 1, "and it is found");
}

async fn an_export_has_every_order_of_its_shopper_and_no_other(home: Home) {
    let store = shop(&home).await;
    let mut expected = Vec::new();
    for cart in 1..=23 {
        let draft = personal(&store, cart, Some(if cart % 11 == 0 { "bob" } else { ADA })).await;
        store.place(draft.clone()).await.unwrap();
        if cart % 11 != 0 {
            expected.push(draft.order);
        }
    }
    let waiting = personal(&store, 24, Some(ADA)).await;
    let payment = Payment { method: "pm_card".parse().unwrap(), capture: true };
    store.reserve(waiting.clone(), payment, 5).await.unwrap();
    assert_eq!(store.begin_export(site(), "nobody".to_owned(), actor()).await.unwrap(), None);
    let subject = store.begin_export(site(), ADA.to_owned(), actor()).await.unwrap().expect("known");
    let (mut after, mut found) = (Some(After::Begin), Vec::new());
    while let Some(place) = after {
        let (records, next) = store.export(site(), subject, place).await.unwrap();
        for record in records {
            let record = serde_json::to_value(record).unwrap();
            assert_eq!(
                (&record["kind"], &record["cart"]["lines"][0]["quantity"]),
                (&"order".into(), &2.into())
            );
            found.push(record["order"].clone());
        }
        after = next;
    }
    let ids = |of: &[Value]| of.iter().map(|order| order["id"].clone()).collect::<Vec<_>>();
    let orders: Vec<_> = expected.iter().map(|order| serde_json::to_value(order).unwrap()).collect();
    assert_eq!(ids(&found)[..orders.len()], ids(&orders)[..]);
    assert_eq!((found.len(), found[21]["state"].as_str()), (orders.len() + 1, Some("pending")));
    assert!(found.iter().all(|order| order["customer"] == ADA && order["notes"][0]["text"] == SECRETS[1]));
    let rows = store.audit(0, 100).await.unwrap();
    assert_eq!(rows.iter().filter(|row| row.action == "shopper.exported").count(), 1);
}
