//! Checkouts against a provider that is as bad as one can be, driven by workers that die at every step. Who was charged is
//! read from the provider's books, never from ours.

#[path = "../../tests/fake_provider/mod.rs"]
mod fake_provider;
mod hostile;
mod life;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use souk_commerce::cart::{Cart, Entry, LineKey};
use souk_commerce::clock::Hlc;
use souk_commerce::id::{CartId, Epoch, NodeId, OrderId, SiteId, Sku};
use souk_commerce::money::Minor;
use souk_commerce::op::Operation;
use souk_commerce::order::{Order, OrderState};
use souk_commerce::product::{Listed, PriceRow, StockHint};
use souk_commerce::quote::Quote;
use souk_commerce::site::SiteSettings;
use tokio_util::sync::CancellationToken;

use self::fake_provider::{BAD_CARD, FakeProvider, KEY, TROUBLES, Trouble, WEBHOOK_SECRET, now_s, sign};
use super::machine::{Found, KEY_TRUSTED_MS, Op, Outcome, Wish};
use super::provider::{
    Listing, Message, MessageRefused, NotFoundOut, PaymentProvider, Providers, Secret, Terms,
};
use super::stripe::{Http, Stripe};
use super::worker::{MessageError, Payments};
use crate::clock;
use crate::pair::held::Held;
use crate::store::audit::Actor;
use crate::store::checkout::{Charge, Hinted, LEASE_MS, Wished};
use crate::store::event::EventRow;
use crate::store::goods::{GoodsRow, GoodsVersions};
use crate::store::order::{Basis, Draft, Payment, Place, Standing};
use crate::store::site::By;
use crate::store::tests::home::Home;
use crate::store::{Store, StoreSettings};
use crate::telemetry::Telemetry;

/// Shorter than the provider's silence.
const DEADLINE: Duration = Duration::from_millis(150);
const NODE: u32 = 1;
/// Operations of one batch.
const BATCH: usize = 500;
const PRICE: i64 = 1_000;

/// Of a region without a standby.
fn held() -> Arc<Held> {
    Arc::new(Held::new(souk_config::AckLevel::One, false))
}

fn site() -> SiteId {
    "shop".parse().unwrap()
}

fn sku(number: usize) -> Sku {
    format!("SKU-{number}").parse().unwrap()
}

fn actor() -> Actor {
    Actor { name: "test".to_owned(), peer: String::new() }
}

/// A shop at a region, its provider, and a clock that the test moves.
struct World {
    home: Home,
    store: Store,
    payments: Payments,
    provider: Arc<FakeProvider>,
    now_ms: Arc<AtomicU64>,
    received: u64,
    products: usize,
}

/// What a worker's luck is at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Luck {
    Lives,
    DiesBeforeAsking,
    DiesBeforeWriting,
}

impl World {
    async fn new(provider: FakeProvider, capture: bool, products: usize, received: u64) -> Self {
        Self::on(Home::chosen(), provider, capture, products, received).await
    }

    async fn on(home: Home, provider: FakeProvider, capture: bool, products: usize, received: u64) -> Self {
        let store = home.open_with(StoreSettings::for_tests(1_000));
        let settings = SiteSettings::new(site(), "GBP".parse().unwrap());
        store.put_site(settings, By::Operator, actor()).await.unwrap();
        let rows = (0..products).map(|number| GoodsRow {
            product: serde_json::from_value(serde_json::json!({ "sku": sku(number), "title": "Thing" }))
                .unwrap(),
            price: Some(PriceRow::of(Minor(PRICE)).into()),
            stock: Some(Some(received)),
        });
        store.import(site(), rows.collect(), actor()).await.unwrap().unwrap();
        store.greet(NODE, "lon".to_owned(), "test".to_owned()).await.unwrap();
        store.begin_epoch(NODE, 1).await.unwrap();
        let payments = payments(&store, &provider, capture);
        let now_ms = Arc::new(AtomicU64::new(clock::now_ms()));
        Self { home, store, payments, provider: Arc::new(provider), now_ms, received, products }
    }

    fn now_ms(&self) -> u64 {
        self.now_ms.load(Ordering::SeqCst)
    }

    /// Carts of one line each, ready to be ordered.
    async fn carts(&self, count: usize) -> Vec<Draft> {
        let row = self.store.site(site()).await.unwrap().unwrap();
        let release_version = self.store.releases(site()).await.unwrap().version;
        let mut drafts = Vec::with_capacity(count);
        let mut ops = Vec::with_capacity(BATCH);
        let mut first = 1;
        for number in 0..count {
            let cart = CartId((number as u128 + 1).to_be_bytes());
            let mut state = Cart::new();
            let mut edit = state.edit(NodeId(NODE), Epoch(1), Hlc(1));
            let units = 1 + (number % 3) as i32;
            let bought = sku(number % self.products);
            edit.add(Entry::Line(LineKey::of(bought.clone())), units).unwrap();
            let delta = edit.finish();
            state.apply(&delta);
            ops.push(Operation::Cart { site: site(), cart, at_ms: 1, delta }.to_bytes());
            if ops.len() == BATCH || number + 1 == count {
                let batch = std::mem::take(&mut ops);
                let length = batch.len() as u64;
                self.store.apply_batch(NODE, 1, first, batch).await.unwrap();
                first += length;
            }
            let found = self.store.goods(site(), bought.clone()).await.unwrap().unwrap();
            let listed = Listed {
                product: Arc::new(found.product),
                price: found.price.unwrap(),
                price_version: found.price_version,
                stock: StockHint::Unknown,
            };
            let lines = vec![(LineKey::of(bought.clone()), units as u32, listed)];
            let order = Order {
                id: OrderId(rand::random()),
                site: site(),
                cart,
                state: OrderState::Placed,
                quote: Quote::base("GBP".parse().unwrap(), None, lines).unwrap(),
                notes: vec![],
                placed_ms: 1,
                country: None,
                customer: None,
            };
            let versions = GoodsVersions { product: found.product_version, price: found.price_version };
            drafts.push(Draft {
                order,
                idempotency_key: format!("key-{number}"),
                request_hash: [7; 32],
                basis: Basis {
                    cart: state.digest(),
                    site_version: row.version,
                    release_version,
                    goods: BTreeMap::from([(bought, versions)]),
                },
            });
        }
        drafts
    }

    async fn reserve(&self, draft: Draft, card: &str, capture: bool) -> Place {
        let payment = Payment { method: card.parse().unwrap(), capture };
        self.store.reserve(draft, payment, self.now_ms()).await.unwrap()
    }

    /// One worker takes up one row and works on it until it rests, or until its luck ends. False: there was none.
    async fn work(&self, mut luck: impl FnMut() -> Luck, asking: &AtomicUsize) -> bool {
        let claimed = self.store.claim_checkout(self.now_ms(), &[]).await.unwrap();
        let Some(claimed) = claimed else { return false };
        let mut next = Some(claimed);
        while let Some(claimed) = next.take() {
            let luck = luck();
            if luck == Luck::DiesBeforeAsking {
                return true;
            }
            asking.fetch_add(1, Ordering::SeqCst);
            let heard = self.payments.ask(&claimed).await;
            asking.fetch_sub(1, Ordering::SeqCst);
            if luck == Luck::DiesBeforeWriting {
                return true;
            }
            next = self.payments.conclude(claimed, heard, self.now_ms()).await.unwrap();
        }
        true
    }

    /// Works until every row rests; the clock leaps to whatever is due next.
    async fn calm(&self) {
        let idle = AtomicUsize::new(0);
        for _ in 0..10_000 {
            if self.work(|| Luck::Lives, &idle).await {
                continue;
            }
            let Some(due_ms) = self.store.checkout_due(&[]).await.unwrap() else { return };
            self.leap(due_ms).await;
        }
        panic!("the rows do not come to rest");
    }

    /// Not while the provider may still do something: hours pass here in a moment, and there they would not.
    async fn leap(&self, to_ms: u64) {
        while self.provider.is_busy() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.now_ms.fetch_max(to_ms, Ordering::SeqCst);
    }

    async fn standing(&self, order: OrderId) -> OrderState {
        self.store.order(order).await.unwrap().expect("the order is there").state
    }

    async fn wish(&self, order: OrderId, wish: Wish) -> Wished {
        self.store.wish_order(site(), order, wish, actor(), self.now_ms()).await.unwrap()
    }

    async fn events(&self, order: OrderId) -> Vec<String> {
        let events: Vec<EventRow> = self.store.events(site(), 0, 1_000).await.unwrap();
        events.into_iter().filter(|event| event.order == order).map(|event| event.kind).collect()
    }

    async fn available(&self) -> u64 {
        let mut available = 0;
        for number in 0..self.products {
            let goods = self.store.goods(site(), sku(number)).await.unwrap().unwrap();
            available += goods.stock.unwrap().unwrap();
        }
        available
    }

    /// Compares our books with the provider's, and with the shelf. Answers how many orders were charged.
    async fn check(&self, drafts: &[Draft]) -> u64 {
        let intents = self.provider.books(|books| {
            assert_eq!(books.misused, 0, "a key came with two questions");
            books.intents.clone()
        });
        let mut by_order: BTreeMap<String, Vec<_>> = BTreeMap::new();
        for intent in intents {
            by_order.entry(intent.order.clone()).or_default().push(intent);
        }
        let (mut kept, mut charged) = (0, 0);
        for draft in drafts {
            let order = &draft.order;
            let paid = by_order.get(&order.id.to_string()).map_or(&[][..], Vec::as_slice);
            assert!(paid.len() <= 1, "{} was asked for money {} times", order.id, paid.len());
            let status = paid.first().map_or("none", |intent| intent.status);
            if let Some(intent) = paid.first() {
                assert!(intent.captures <= 1 && intent.refunds <= intent.captures, "{intent:?}");
                assert_eq!(intent.amount, order.quote.total.0);
            }
            let was_refunded = paid.first().is_some_and(|intent| intent.refunded);
            let Some(found) = self.store.order(order.id).await.unwrap() else {
                assert_eq!(status, "none", "{}: money without a checkout", order.id);
                continue;
            };
            let expected: &[&str] = match found.state {
                OrderState::Placed => &["requires_capture"],
                OrderState::Captured | OrderState::Fulfilled | OrderState::Refunded => &["succeeded"],
                OrderState::Cancelled | OrderState::Declined => {
                    &["none", "canceled", "requires_payment_method"]
                }
                OrderState::Pending => panic!("{} is still pending", order.id),
            };
            assert!(expected.contains(&status), "{}: {:?}, and {status}", order.id, found.state);
            assert_eq!(was_refunded, found.state == OrderState::Refunded, "{}: {:?}", order.id, found.state);
            if matches!(found.state, OrderState::Placed | OrderState::Captured | OrderState::Fulfilled) {
                kept += order.quote.lines.iter().map(|line| u64::from(line.quantity)).sum::<u64>();
            }
            charged += u64::from(matches!(found.state, OrderState::Captured | OrderState::Fulfilled));
        }
        let received = self.received * self.products as u64;
        assert_eq!(kept + self.available().await, received, "sold and available are not what was received");
        charged
    }
}

fn payments(store: &Store, provider: &FakeProvider, capture: bool) -> Payments {
    let (key, webhook) = (Secret::new(KEY), Secret::new(WEBHOOK_SECRET));
    let stripe = Stripe::new(Http::new().unwrap(), &provider.api(), &key, webhook).unwrap();
    let terms = Terms { provider: Arc::new(stripe.with_deadline(DEADLINE)), capture };
    let providers = Arc::new(Providers::of_one(site(), terms));
    Payments::new(store.clone(), providers, Arc::new(Telemetry::new()), held())
}

/// A small generator, so that a run can be had again by its seed.
fn chance(seed: &AtomicU64) -> u64 {
    let mut x = seed.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[tokio::test]
async fn an_order_is_placed_when_its_payment_is_assured_and_captured_once() {
    let world = World::new(FakeProvider::honest().await, true, 1, 10).await;
    let draft = world.carts(1).await.remove(0);
    let order = draft.order.id;
    assert_eq!(world.reserve(draft.clone(), "pm_card_visa", true).await, Place::Reserved);
    assert_eq!(world.available().await, 9, "held while the bank is asked");
    assert_eq!(world.standing(order).await, OrderState::Pending);
    assert!(world.store.orders(site(), 0, 10).await.unwrap().is_empty(), "not an order yet");
    // Asked again meanwhile, by the same and by another question.
    let Place::Repeated(Standing::Pending(_)) = world.reserve(draft.clone(), "pm_card_visa", true).await
    else {
        panic!("the same key has the same answer")
    };
    let other = Draft { request_hash: [8; 32], ..draft.clone() };
    assert_eq!(world.reserve(other, "pm_card_visa", true).await, Place::KeyReused);
    let second = Draft { idempotency_key: "second".to_owned(), ..draft.clone() };
    assert_eq!(world.reserve(second, "pm_card_visa", true).await, Place::UnderWay);

    world.calm().await;
    assert_eq!(world.standing(order).await, OrderState::Captured);
    assert_eq!(world.check(std::slice::from_ref(&draft)).await, 1);
    assert_eq!(world.events(order).await, ["order.placed", "order.captured"]);
    let Place::Repeated(Standing::Placed(again)) = world.reserve(draft.clone(), "pm_card_visa", true).await
    else {
        panic!("the same key has the same answer")
    };
    assert_eq!(again.id, order);
    let second = Draft { idempotency_key: "second".to_owned(), ..draft };
    assert_eq!(world.reserve(second, "pm_card_visa", true).await, Place::CartSealed(order));
    let detail = world.store.order_detail(site(), order).await.unwrap().unwrap();
    let shown = serde_json::to_string(&detail).unwrap();
    assert!(!shown.contains("pm_card_visa") && shown.contains("pi_1"), "{shown}");
}

#[tokio::test]
async fn a_declined_card_gives_the_units_and_the_cart_back() {
    let world = World::new(FakeProvider::honest().await, true, 1, 10).await;
    let draft = world.carts(1).await.remove(0);
    world.reserve(draft.clone(), BAD_CARD, true).await;
    world.calm().await;
    let Place::Repeated(Standing::Declined(_, why)) = world.reserve(draft.clone(), BAD_CARD, true).await
    else {
        panic!("the same key has the same answer")
    };
    assert_eq!((why.as_str(), world.available().await), ("insufficient_funds", 10));
    assert_eq!(world.events(draft.order.id).await, ["checkout.declined"]);
    // Another card, another key, the same cart.
    let order = Order { id: OrderId([9; 16]), ..draft.order.clone() };
    let again = Draft { order, idempotency_key: "another".to_owned(), ..draft.clone() };
    assert_eq!(world.reserve(again.clone(), "pm_card_visa", true).await, Place::Reserved);
    world.calm().await;
    assert_eq!(world.check(&[draft, again]).await, 1);
}

/// Every trouble at every step of the way, and a worker that dies at each: always the same end.
#[tokio::test]
async fn a_worker_that_dies_at_any_step_is_replaced_and_nobody_pays_twice() {
    for trouble in TROUBLES {
        // Its own trouble for the first coming of each key; the second goes well.
        let manners = move |_: &str, nth| if nth == 1 { trouble } else { Trouble::Nothing };
        let provider = FakeProvider::start(Arc::new(manners)).await;
        let deaths = [Luck::DiesBeforeAsking, Luck::DiesBeforeWriting];
        let world = World::new(provider, true, 1, 100).await;
        let drafts = world.carts(9).await;
        let idle = AtomicUsize::new(0);
        for (number, draft) in drafts.iter().enumerate() {
            world.reserve(draft.clone(), "pm_card_visa", true).await;
            // The first with a long life, the others die at step 0, 1, 2, 3, in either way.
            let death = (number > 0).then(|| ((number - 1) / 2, deaths[(number - 1) % 2]));
            let mut step = 0;
            let mut luck = || {
                let now = step;
                step += 1;
                match death {
                    Some((at, how)) if at == now => how,
                    _ => Luck::Lives,
                }
            };
            while world.work(&mut luck, &idle).await {}
            world.calm().await;
            let state = world.standing(draft.order.id).await;
            let failed_for_good = matches!(trouble, Trouble::FailsFirst | Trouble::Busy);
            let expected = if failed_for_good { OrderState::Declined } else { OrderState::Captured };
            // Told "not now" before anything was sent, a checkout ends; told so after a death, it is tried again.
            if trouble != Trouble::Busy || number == 0 {
                assert_eq!(state, expected, "{trouble:?}, {death:?}");
            }
        }
        world.check(&drafts).await;
    }
}

/// A worker that was taken for dead comes back with an answer, and is not heard.
#[tokio::test]
async fn whoever_comes_back_after_his_lease_is_not_heard() {
    let world = World::new(FakeProvider::honest().await, true, 1, 10).await;
    let draft = world.carts(1).await.remove(0);
    world.reserve(draft.clone(), "pm_card_visa", true).await;
    assert_eq!(
        world.store.checkout_due(&[site()]).await.unwrap(),
        None,
        "it is of a shop that has its share"
    );
    let first = world.store.claim_checkout(world.now_ms(), &[]).await.unwrap().unwrap();
    let due = world.store.checkout_due(&[]).await.unwrap();
    assert_eq!(due, Some(first.until_ms), "nobody looks it over again before its lease ends");
    assert!(world.store.claim_checkout(world.now_ms(), &[]).await.unwrap().is_none(), "one at a time");
    let heard = world.payments.ask(&first).await;
    world.now_ms.fetch_add(LEASE_MS, Ordering::SeqCst);
    world.calm().await;
    let events = world.events(draft.order.id).await;
    assert!(world.payments.conclude(first, heard, world.now_ms()).await.unwrap().is_none());
    assert_eq!(world.events(draft.order.id).await, events);
    assert_eq!(world.check(&[draft]).await, 1);
}

/// A shopper waits at one process, and the worker of another one over the same database is the first to take the row.
#[tokio::test]
async fn what_another_process_has_settled_is_seen_by_whoever_waits() {
    let Some(home) = Home::postgres() else { return };
    let world = World::on(home, FakeProvider::honest().await, true, 1, 10).await;
    let draft = world.carts(1).await.remove(0);
    world.reserve(draft.clone(), "pm_card_visa", true).await;
    let here = payments(&world.home.open(), &world.provider, true);
    let settled = here.settled(draft.order.id, Duration::from_secs(3_600));
    tokio::pin!(settled);
    // Long enough for a first look.
    let early = tokio::time::timeout(Duration::from_millis(100), &mut settled).await;
    assert!(early.is_err(), "nobody works on it yet");
    world.calm().await;
    let settled =
        tokio::time::timeout(Duration::from_secs(60), settled).await.expect("it is found by looking");
    assert!(matches!(settled.unwrap(), Some(Standing::Placed(order)) if order.id == draft.order.id));
    // Whoever has no time left is told what is written by then.
    let again = here.settled(draft.order.id, Duration::ZERO).await.unwrap();
    assert!(matches!(again, Some(Standing::Placed(_))));
}

#[tokio::test]
async fn an_outcome_that_nobody_learns_for_a_day_ends_without_a_charge_or_with_one() {
    // Everything that is asked is lost, and look-ups work.
    let provider = FakeProvider::start(Arc::new(|_, _| Trouble::LostBefore)).await;
    let world = World::new(provider, true, 1, 10).await;
    let draft = world.carts(1).await.remove(0);
    let began_ms = world.now_ms();
    world.reserve(draft.clone(), "pm_card_visa", true).await;
    world.calm().await;
    assert_eq!(world.standing(draft.order.id).await, OrderState::Declined);
    assert!(world.now_ms() - began_ms >= KEY_TRUSTED_MS, "as long as the key might be answered");
    assert_eq!(world.check(&[draft]).await, 0);
}

/// The bank's answer comes when we have given the checkout up: the search knew nothing of it, and the comparison finds it.
#[tokio::test]
async fn money_that_comes_after_its_checkout_has_ended_is_given_back() {
    let provider = FakeProvider::start(Arc::new(|key: &str, _| {
        if key.contains(":authorize:") { Trouble::LostBefore } else { Trouble::Nothing }
    }))
    .await;
    let world = World::new(provider, true, 1, 10).await;
    let drafts = world.carts(2).await;
    for draft in &drafts {
        world.reserve(draft.clone(), "pm_card_visa", true).await;
    }
    world.calm().await;
    for (draft, status) in drafts.iter().zip(["requires_capture", "succeeded"]) {
        assert_eq!(world.standing(draft.order.id).await, OrderState::Declined);
        world.provider.orphan(&draft.order.id.to_string(), draft.order.quote.total.0, status);
    }
    let report = world.payments.reconcile(&site(), world.now_ms()).await.unwrap();
    assert!(report.differing == 2 && report.differences.iter().all(|d| d.is_followed), "{report:?}");
    world.calm().await;
    let left = world.provider.books(|books| books.intents.clone());
    assert_eq!((left[0].status, left[1].refunded, left[1].refunds), ("canceled", true, 1));
    let report = world.payments.reconcile(&site(), world.now_ms() + 1).await.unwrap();
    assert_eq!((report.agreed, report.differing), (2, 0), "{report:?}");
}

/// Somebody puts the key of another account into the shop's file.
#[tokio::test]
async fn a_provider_that_does_not_know_a_payment_has_not_given_it_up() {
    let mut world = World::new(FakeProvider::honest().await, false, 1, 10).await;
    let draft = world.carts(1).await.remove(0);
    let order = draft.order.id;
    world.reserve(draft.clone(), "pm_card_visa", false).await;
    world.calm().await;
    let other = FakeProvider::honest().await;
    let right = std::mem::replace(&mut world.payments, payments(&world.store, &other, false));
    world.wish(order, Wish::Cancel).await;
    let idle = AtomicUsize::new(0);
    for _ in 0..3 {
        while world.work(|| Luck::Lives, &idle).await {}
        let due_ms = world.store.checkout_due(&[]).await.unwrap().expect("it is asked again");
        world.leap(due_ms).await;
    }
    assert_eq!(world.events(order).await, ["order.placed", "order.cancelled"], "nothing is given up yet");
    world.payments = right;
    world.calm().await;
    assert_eq!(world.events(order).await, ["order.placed", "order.cancelled", "payment.voided"]);
    assert_eq!(world.check(&[draft]).await, 0);
}

/// Payments go on although every worker there is has panicked.
#[tokio::test]
async fn a_worker_that_panics_is_replaced() {
    const PANICS: usize = 40;
    const LOOKS_MAX: usize = 3_000;
    struct Panicking(Arc<AtomicUsize>);

    impl Panicking {
        fn asked(&self) -> Outcome {
            assert!(self.0.fetch_add(1, Ordering::SeqCst) >= PANICS, "a planted panic");
            Outcome::Done { reference: Some("pi_1".to_owned()) }
        }
    }

    impl PaymentProvider for Panicking {
        fn authorize<'a>(&'a self, _: &'a str, _: &'a Charge) -> BoxFuture<'a, Outcome> {
            Box::pin(async { self.asked() })
        }
        fn capture<'a>(&'a self, _: &'a str, _: &'a Charge) -> BoxFuture<'a, Outcome> {
            Box::pin(async { self.asked() })
        }
        fn void<'a>(&'a self, _: &'a str, _: &'a Charge) -> BoxFuture<'a, Outcome> {
            Box::pin(async { self.asked() })
        }
        fn refund<'a>(&'a self, _: &'a str, _: &'a Charge) -> BoxFuture<'a, Outcome> {
            Box::pin(async { self.asked() })
        }
        fn look_up<'a>(&'a self, _: &'a Charge) -> BoxFuture<'a, Result<Found, NotFoundOut>> {
            Box::pin(async { Ok(Found::Absent) })
        }
        fn list<'a>(
            &'a self,
            _: &'a SiteId,
            _: u64,
            _: Option<&'a str>,
        ) -> BoxFuture<'a, Result<Listing, NotFoundOut>> {
            Box::pin(async { Ok(Listing::default()) })
        }
        fn parse_webhook(&self, _: Option<&str>, _: &[u8], _: u64) -> Result<Message, MessageRefused> {
            Err(MessageRefused::Unreadable)
        }
    }

    let world = World::new(FakeProvider::honest().await, true, 1, 1_000).await;
    let asked = Arc::new(AtomicUsize::new(0));
    let terms = Terms { provider: Arc::new(Panicking(Arc::clone(&asked))), capture: false };
    let providers = Arc::new(Providers::of_one(site(), terms));
    let payments = Payments::new(world.store.clone(), providers, Arc::new(Telemetry::new()), held());
    let mut drafts = world.carts(PANICS + 1).await;
    let last = drafts.pop().unwrap();
    for draft in drafts {
        world.reserve(draft, "pm_card_visa", false).await;
    }
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(payments.clone().run(shutdown.clone()));
    for _ in 0..LOOKS_MAX {
        if asked.load(Ordering::SeqCst) >= PANICS {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(asked.load(Ordering::SeqCst) >= PANICS, "no worker is left");
    world.reserve(last.clone(), "pm_card_visa", false).await;
    payments.ring();
    let standing = payments.settled(last.order.id, Duration::from_secs(60)).await.unwrap();
    assert!(matches!(standing, Some(Standing::Placed(_))), "{standing:?}");
    shutdown.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn whatever_is_old_is_swept_however_much_it_is() {
    let world = World::new(FakeProvider::honest().await, true, 1, 10).await;
    let message = |number| {
        let (store, at_ms) = (world.store.clone(), world.now_ms());
        async move { store.hint_order(site(), format!("evt_{number}"), None, None, at_ms).await }
    };
    let hinted = futures_util::future::join_all((0..2_500).map(message)).await;
    assert!(hinted.into_iter().all(|hinted| hinted.unwrap() == Hinted::Unknown));
    assert_eq!(world.payments.sweep_once(world.now_ms()).await.unwrap(), 0);
    assert_eq!(world.payments.sweep_once(world.now_ms() + 8 * 86_400_000).await.unwrap(), 2_500);
}

#[tokio::test]
async fn a_message_is_a_hint_and_the_provider_is_asked() {
    let world = World::new(FakeProvider::honest().await, false, 1, 10).await;
    let draft = world.carts(1).await.remove(0);
    let order = draft.order.id;
    world.reserve(draft.clone(), "pm_card_visa", false).await;
    world.calm().await;
    // Somebody takes the money at the provider's own desk.
    world.provider.by_hand(&order.to_string(), |intent| {
        intent.status = "succeeded";
        intent.captures += 1;
    });
    let mut noted = 0;
    for (signature, body) in world.provider.messages() {
        let hinted = world.payments.message(&site(), Some(&signature), &body).await.unwrap();
        noted += u32::from(hinted == Hinted::Noted(order));
    }
    assert_eq!(noted, 2, "each of the two once, although both came twice");
    world.calm().await;
    assert_eq!(world.standing(order).await, OrderState::Captured);
    assert_eq!(world.check(std::slice::from_ref(&draft)).await, 1);

    // Who has not the secret, or plays an old message back, moves nothing.
    let body = format!(r#"{{"id":"evt_x","data":{{"object":{{"metadata":{{"souk_order":"{order}"}}}}}}}}"#);
    let forged = sign(&body, "whsec_wrong", now_s());
    let old = sign(&body, WEBHOOK_SECRET, now_s() - 3_600);
    for (signature, body) in [forged, old] {
        let refused = world.payments.message(&site(), Some(&signature), &body).await;
        assert!(matches!(refused, Err(MessageError::Refused(_))), "{refused:?}");
    }
    let nobody = world.payments.message(&"rival".parse().unwrap(), None, b"{}").await;
    assert!(matches!(nobody, Err(MessageError::NoProvider)));
    assert!(world.store.checkout_due(&[]).await.unwrap().is_none());
    // A lie under a true signature moves nothing either: the provider's books say captured.
    let lie = body.replace("evt_x", "evt_y").replace("\"metadata\"", "\"status\":\"canceled\",\"metadata\"");
    let (signature, lie) = sign(&lie, WEBHOOK_SECRET, now_s());
    assert_eq!(world.payments.message(&site(), Some(&signature), &lie).await.unwrap(), Hinted::Noted(order));
    world.calm().await;
    assert_eq!(world.standing(order).await, OrderState::Captured);
}

#[tokio::test]
async fn old_refusals_and_messages_are_swept_and_orders_stay() {
    let world = World::new(FakeProvider::honest().await, true, 1, 10).await;
    let drafts = world.carts(2).await;
    world.reserve(drafts[0].clone(), BAD_CARD, true).await;
    world.reserve(drafts[1].clone(), "pm_card_visa", true).await;
    world.calm().await;
    assert_eq!(world.store.sweep_checkouts(world.now_ms()).await.unwrap(), 0);
    let month_ms = 31 * 86_400_000;
    assert_eq!(world.store.sweep_checkouts(world.now_ms() + month_ms).await.unwrap(), 1);
    assert!(world.store.order(drafts[0].order.id).await.unwrap().is_none());
    assert_eq!(world.standing(drafts[1].order.id).await, OrderState::Captured);
    assert_eq!(world.store.sweep_events(world.now_ms() + month_ms).await.unwrap(), 0, "nobody has read them");
    while world.store.consume_events().await.unwrap() > 0 {}
    assert_eq!(world.store.sweep_events(world.now_ms() + month_ms).await.unwrap(), 3);
}

#[tokio::test]
async fn differences_between_the_books_are_found_followed_and_told() {
    let world = World::new(FakeProvider::honest().await, false, 1, 100).await;
    let drafts = world.carts(7).await;
    for draft in &drafts {
        let card = if draft.idempotency_key == "key-6" { BAD_CARD } else { "pm_card_visa" };
        world.reserve(draft.clone(), card, false).await;
    }
    world.calm().await;
    let report = world.payments.reconcile(&site(), world.now_ms()).await.unwrap();
    assert_eq!((report.compared, report.agreed, report.differing), (7, 7, 0), "{report:?}");
    assert!(report.is_whole);

    // Two are changed at the provider's own desk, one card's refusal turns out to hold money, and one is nobody's.
    let name = |index: usize| drafts[index].order.id.to_string();
    world.provider.by_hand(&name(0), |intent| {
        intent.status = "succeeded";
        intent.captures += 1;
    });
    world.provider.by_hand(&name(1), |intent| intent.status = "canceled");
    world.provider.orphan(&OrderId([9; 16]).to_string(), 1, "succeeded");
    world.wish(drafts[2].order.id, Wish::Cancel).await;
    world.calm().await;
    world.provider.by_hand(&name(2), |intent| intent.status = "requires_capture");
    let report = world.payments.reconcile(&site(), world.now_ms()).await.unwrap();
    let mut found: Vec<_> = report.differences.iter().map(|d| (d.what.name(), d.is_followed)).collect();
    found.sort_unstable();
    let money = ("money_differs", true);
    assert_eq!(found, [money, money, money, ("no_order", false)], "{report:?}");
    world.calm().await;
    assert_eq!(world.standing(drafts[0].order.id).await, OrderState::Captured);
    assert_eq!(world.standing(drafts[1].order.id).await, OrderState::Cancelled);
    assert_eq!(world.standing(drafts[2].order.id).await, OrderState::Cancelled);
    assert_eq!(world.check(&drafts).await, 1);
    let report = world.payments.reconcile(&site(), world.now_ms()).await.unwrap();
    assert_eq!((report.agreed, report.differing), (7, 1), "the orphan is left for people: {report:?}");
    let kept = world.store.payment_report(site()).await.unwrap().unwrap().1;
    assert_eq!(kept["differences"][0]["what"], "no_order");
}

#[test]
fn a_key_is_of_one_call_and_no_other() {
    let order = OrderId([1; 16]);
    let keys = [Op::Authorize, Op::Capture, Op::Void, Op::Refund]
        .map(|op| [super::provider::key(order, op, 1), super::provider::key(order, op, 2)]);
    let mut keys: Vec<_> = keys.concat();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 8);
    assert_eq!(keys[0], format!("{order}:authorize:1"));
}
