//! The region from outside: what a node asks over the link's trait, and what an operator asks over HTTP.

use std::sync::Arc;
use std::time::Duration;

use souk_commerce::call::{CheckoutRequest, Request, Response};
use souk_commerce::cart::{Cart, Entry, LineKey};
use souk_commerce::clock::Hlc;
use souk_commerce::id::{CartId, Epoch, NodeId, SiteId};
use souk_commerce::money::Minor;
use souk_commerce::op::Operation;
use souk_commerce::order::Order;
use souk_commerce::product::PriceRow;
use souk_commerce::site::SiteSettings;
use souk_link::{Batch, Call, Fold, Hello, NodeState, RegionStore as _};
use souk_sandbox::http::{HttpEngine, HttpLimits};
use souk_sandbox::{HookEngine, HookLimits, Loader, Share, ShareLimits};
use tokio_util::sync::CancellationToken;

use crate::blobs::Blobs;
use crate::chains::{Chains, Sandbox};
use crate::checkout::Checkouts;
use crate::clock;
use crate::digests::Digests;
use crate::journal::Journal;
use crate::lending::Lending;
use crate::obeyed::Obeyed;
use crate::pair::held::Held;
use crate::pair::rumour::Rumours;
use crate::rollout::Rollout;
use crate::saga::provider::Providers;
use crate::saga::worker::Payments;
use crate::store::StoreSettings;
use crate::store::audit::Actor;
use crate::store::goods::GoodsRow;
use crate::store::site::By;
use crate::store::tests::home::Home;
use crate::telemetry::Telemetry;
use crate::uplink::Uplink;

const WAIT: Duration = Duration::from_millis(200);

/// Of a region without a standby.
fn held() -> Arc<Held> {
    Arc::new(Held::new(souk_config::AckLevel::One, false))
}

fn site() -> SiteId {
    "shop".parse().unwrap()
}

fn actor() -> Actor {
    Actor { name: "operator:test".to_owned(), peer: String::new() }
}

/// A region without sockets, and one node that talks to it.
struct World {
    _dirs: (tempfile::TempDir, Home),
    region: Arc<Uplink>,
    seq: u64,
}

impl World {
    async fn new() -> Self {
        let (dir, home) = (tempfile::tempdir().unwrap(), Home::chosen());
        let store = home.open_with(StoreSettings::for_tests(1_000));
        let blobs = Arc::new(Blobs::open(dir.path(), 1 << 20, false).unwrap());
        let telemetry = Arc::new(Telemetry::new());
        let sandbox = Sandbox {
            engine: HookEngine::new(HookLimits::default()).unwrap(),
            http: HttpEngine::new(HttpLimits::default()).unwrap(),
            loader: Loader::in_process(),
        };
        let chains = Arc::new(Chains::new(sandbox, Arc::clone(&blobs), telemetry.hooks.clone(), None));
        let journal = Journal::open(dir.path(), CancellationToken::new()).unwrap();
        let payments =
            Payments::new(store.clone(), Arc::new(Providers::default()), Arc::clone(&telemetry), held());
        let checkouts = Checkouts {
            payments,
            held: held(),
            payment_wait_max: WAIT,
            share: Share::new(&ShareLimits::default(), telemetry.share.clone()).unwrap(),
            store: store.clone(),
            chains,
            telemetry: Arc::clone(&telemetry),
            journal: journal.clone(),
            wait_max: WAIT,
        };
        let blobs = Lending::new(blobs);
        let digests = Digests::new(store.clone(), 7);
        let region = Arc::new(Uplink {
            store,
            blobs,
            checkouts,
            journal,
            rollout: Rollout::new(),
            obeyed: Arc::new(Obeyed::new()),
            digests,
            telemetry,
            held: held(),
            rumours: Arc::new(Rumours::new(1, false)),
            wait_max: WAIT,
        });
        let world = Self { _dirs: (dir, home), region, seq: 0 };
        let settings = SiteSettings::new(site(), "GBP".parse().unwrap());
        world.region.store.put_site(settings, By::Operator, actor()).await.unwrap();
        world.sell("MUG", 1_000, Some(5)).await;
        let hello = Hello {
            node: 1,
            epoch: None,
            last_seq: 0,
            min_retained_seq: 1,
            cursors: vec![],
            schemas: vec![1],
            software: "test".to_owned(),
            pop: "lon".to_owned(),
            diverged: false,
            features: 0,
            stagings: vec![],
            term: 0,
        };
        assert_eq!(world.region.hello(1, hello.clone()).await.unwrap(), None);
        world.region.begin_epoch(1, 1).await.unwrap();
        let begun = NodeState { epoch: 1, hwm: 0, fold: Some(Fold::EMPTY) };
        assert_eq!(world.region.hello(1, hello).await.unwrap(), Some(begun));
        world
    }

    async fn sell(&self, sku: &str, price: i64, units: Option<u64>) {
        let product = serde_json::from_value(serde_json::json!({ "sku": sku, "title": sku })).unwrap();
        let row = GoodsRow { product, price: Some(PriceRow::of(Minor(price)).into()), stock: Some(units) };
        self.region.store.import(site(), vec![row], actor()).await.unwrap().unwrap();
    }

    fn operation(cart: CartId, lines: &[(&str, i32)]) -> Vec<u8> {
        let empty = Cart::new();
        let mut edit = empty.edit(NodeId(1), Epoch(1), Hlc(1));
        for (sku, quantity) in lines {
            edit.add(Entry::Line(LineKey::of(sku.parse().unwrap())), *quantity).unwrap();
        }
        Operation::Cart { site: site(), cart, at_ms: 1, delta: edit.finish() }.to_bytes()
    }

    /// A cart that the region has applied.
    async fn cart(&mut self, number: u8, lines: &[(&str, i32)]) -> CartId {
        let cart = CartId([number; 16]);
        let batch =
            Batch { epoch: 1, first_seq: self.seq + 1, schema: 1, ops: vec![Self::operation(cart, lines)] };
        self.seq = self.region.apply(1, batch).await.unwrap().hwm;
        cart
    }

    async fn ask(&self, request: Request) -> Response {
        let call = Call { method: 1, body: request.to_bytes().into() };
        Response::from_bytes(&self.region.call(1, call).await.unwrap().body).unwrap()
    }

    fn checkout(&self, cart: CartId, key: &str, total: i64) -> CheckoutRequest {
        CheckoutRequest {
            site: site(),
            cart,
            after: Some((Epoch(1), self.seq)),
            idempotency_key: key.to_owned(),
            request_hash: [1; 32],
            country: Some("GB".parse().unwrap()),
            language: "en".to_owned(),
            customer: None,
            segments: vec![],
            quoted_total: Minor(total),
            now_ms: clock::now_ms(),
            payment: None,
        }
    }

    async fn check_out(&self, cart: CartId, key: &str, total: i64) -> Response {
        self.ask(Request::Checkout(self.checkout(cart, key, total))).await
    }
}

fn placed(response: Response) -> Order {
    match response {
        Response::Placed(order) => order,
        other => panic!("{other:?}"),
    }
}

/// At level 2, and nobody follows.
#[tokio::test]
async fn a_node_that_would_need_an_epoch_waits_for_the_standby_outside() {
    let mut world = World::new().await;
    let region = Arc::get_mut(&mut world.region).expect("it is ours alone");
    region.held = Arc::new(Held::new(souk_config::AckLevel::Two, false));
    let hello = |node, epoch| Hello {
        node,
        epoch,
        min_retained_seq: 1,
        schemas: vec![1],
        pop: "lon".to_owned(),
        ..Hello::default()
    };
    for _ in 0..3 {
        let away = world.region.hello(2, hello(2, None)).await;
        assert!(matches!(&away, Err(souk_link::StoreError::Busy(_))), "{away:?}");
        assert!(world.region.hello(1, hello(1, None)).await.is_err(), "one that was emptied");
    }
    let kept = world.region.store.greet(2, "lon".to_owned(), "test".to_owned()).await.unwrap();
    assert_eq!(kept, None, "no epoch was begun for it");
    // One that goes on where it was is let in: prices reach it, and what it sends waits.
    let kept = world.region.hello(1, hello(1, Some(1))).await.unwrap();
    assert_eq!(kept.map(|kept| (kept.epoch, kept.hwm)), Some((1, 0)));
}

#[tokio::test]
async fn a_cart_becomes_one_order_however_often_it_is_asked_for() {
    let mut world = World::new().await;
    let cart = world.cart(1, &[("MUG", 2)]).await;
    let order = placed(world.check_out(cart, "k1", 2_000).await);
    assert_eq!((order.quote.total, order.quote.lines.len(), order.cart), (Minor(2_000), 1, cart));
    assert_eq!(placed(world.check_out(cart, "k1", 2_000).await), order, "the same key gives the same order");
    let other = CheckoutRequest { request_hash: [2; 32], ..world.checkout(cart, "k1", 2_000) };
    assert_eq!(world.ask(Request::Checkout(other)).await, Response::KeyReused);
    assert_eq!(world.check_out(cart, "k2", 2_000).await, Response::CartSealed { order: order.id });
    assert_eq!(
        world.ask(Request::Order { site: site(), order: order.id }).await,
        Response::Placed(order.clone())
    );
    let elsewhere = Request::Order { site: "rival".parse().unwrap(), order: order.id };
    assert_eq!(world.ask(elsewhere).await, Response::NotFound);
    let Response::Cart { state: Some(_), order: sealed_by, pending: None } =
        world.ask(Request::FetchCart { site: site(), cart, min: None }).await
    else {
        panic!("the cart is there")
    };
    assert_eq!(sealed_by, Some(order.id));
}

#[tokio::test]
async fn a_total_that_the_region_does_not_compute_is_not_charged() {
    let mut world = World::new().await;
    let cart = world.cart(1, &[("MUG", 2)]).await;
    let Response::PriceChanged(quote) = world.check_out(cart, "k1", 1).await else {
        panic!("a forged total was taken")
    };
    assert_eq!(quote.total, Minor(2_000));
    world.sell("MUG", 900, Some(5)).await;
    let Response::PriceChanged(quote) = world.check_out(cart, "k1", 2_000).await else {
        panic!("the price has changed")
    };
    assert_eq!(quote.total, Minor(1_800));
    placed(world.check_out(cart, "k1", 1_800).await);
}

#[tokio::test]
async fn what_cannot_be_sold_is_refused_by_name() {
    let mut world = World::new().await;
    let too_many = world.cart(1, &[("MUG", 6)]).await;
    let sku = "MUG".parse().unwrap();
    assert_eq!(world.check_out(too_many, "k1", 6_000).await, Response::OutOfStock { sku, available: 5 });
    let gone = world.cart(2, &[("MUG", 1), ("GONE", 1)]).await;
    let sku = "GONE".parse().unwrap();
    assert_eq!(world.check_out(gone, "k2", 1_000).await, Response::OutOfStock { sku, available: 0 });
    let empty = world.cart(3, &[]).await;
    assert_eq!(world.check_out(empty, "k3", 0).await, Response::CartEmpty);
    assert_eq!(world.check_out(CartId([9; 16]), "k4", 0).await, Response::NotFound);
    assert!(
        matches!(world.check_out(empty, "", 0).await, Response::Failed { code, .. } if code == "idempotency_key_invalid")
    );
}

#[tokio::test]
async fn a_question_waits_for_the_outbox_that_it_depends_on() {
    let mut world = World::new().await;
    let cart = world.cart(1, &[("MUG", 1)]).await;
    let early =
        CheckoutRequest { after: Some((Epoch(1), world.seq + 1)), ..world.checkout(cart, "k1", 1_000) };
    assert!(matches!(world.ask(Request::Checkout(early.clone())).await, Response::NotYet { .. }));
    let fetch = |seq| Request::FetchCart { site: site(), cart, min: Some((NodeId(1), Epoch(1), seq)) };
    assert!(matches!(world.ask(fetch(2)).await, Response::NotYet { .. }));

    let region = Arc::clone(&world.region);
    let asked = tokio::spawn(async move {
        let call = Call { method: 1, body: Request::Checkout(early).to_bytes().into() };
        Response::from_bytes(&region.call(1, call).await.unwrap().body).unwrap()
    });
    tokio::task::yield_now().await;
    world.cart(2, &[("MUG", 1)]).await;
    placed(asked.await.unwrap());
    assert!(matches!(world.ask(fetch(2)).await, Response::Cart { state: Some(_), .. }));

    // What was promised in an epoch that has ended comes under another number: the answer is what there is.
    world.region.begin_epoch(1, 2).await.unwrap();
    assert!(matches!(world.ask(fetch(99)).await, Response::Cart { state: Some(_), .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_checkouts_at_once_never_sell_more_than_there_is() {
    let mut world = World::new().await;
    let mut carts = Vec::new();
    for number in 1..=12 {
        carts.push(world.cart(number, &[("MUG", 1)]).await);
    }
    let world = Arc::new(world);
    let asked: Vec<_> = carts
        .into_iter()
        .map(|cart| {
            let world = Arc::clone(&world);
            tokio::spawn(async move { world.check_out(cart, &cart.to_string(), 1_000).await })
        })
        .collect();
    let (mut sold, mut refused) = (0, 0);
    for asked in asked {
        match asked.await.unwrap() {
            Response::Placed(_) => sold += 1,
            Response::OutOfStock { .. } => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((sold, refused), (5, 7));
}

#[tokio::test]
async fn garbage_from_a_node_is_refused_and_a_missing_blob_is_not_found() {
    let world = World::new().await;
    let refused = world.region.call(1, Call { method: 1, body: b"garbage".to_vec().into() }).await;
    assert_eq!(refused.unwrap_err().code, "request_unreadable");
    let digest = souk_commerce::id::Digest::of(b"x");
    assert_eq!(world.ask(Request::Blob { digest }).await, Response::NotFound);
}
