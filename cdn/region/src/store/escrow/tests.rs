//! Units from the store's side: in one place each, whatever happens in whatever order, and promised no oftener than they are there.

use proptest::{collection::vec, prelude::*};
use souk_commerce::call::{Granted, Wanted};
use souk_commerce::id::Epoch;
use souk_commerce::money::Minor;
use souk_commerce::op::Operation;
use souk_commerce::product::{PriceRow, Product};
use souk_commerce::site::SiteSettings;

use super::*;
use crate::store::audit::Actor;
use crate::store::cart::Apply;
use crate::store::goods::GoodsRow;
use crate::store::shopper::Erased;
use crate::store::site::By;
use crate::store::tests::home::{Home, on_every_engine};

const MINUTE: u64 = 60_000;
/// After this, every promise that a node made is over.
const LONG: u64 = 10 * MINUTE + 15 * MINUTE + MARGIN_MS;

fn shop() -> SiteId {
    "shop".parse().unwrap()
}

fn mug() -> Sku {
    "MUG".parse().unwrap()
}

fn cart(n: u8) -> CartId {
    CartId([n; 16])
}

fn name(n: u32) -> [u8; 16] {
    u128::from(n).to_be_bytes()
}

fn actor() -> Actor {
    Actor { name: "operator:test".to_owned(), peer: String::new() }
}

fn now_ms() -> u64 {
    crate::clock::now_ms()
}

/// The shop, which promises and lends.
fn promising() -> SiteSettings {
    let mut settings = SiteSettings::new(shop(), "GBP".parse().unwrap());
    settings.reservations.enabled = true;
    settings
}

/// A store with some mugs, and two nodes in their first epoch.
struct World {
    store: Store,
    sent: [u64; 2],
    turn: u64,
    named: u32,
    _home: Home,
}

impl World {
    async fn new(home: Home, units: u64) -> Self {
        let store = home.open();
        store.put_site(promising(), By::Operator, actor()).await.unwrap();
        for node in [1, 2] {
            store.greet(node, "lon".to_owned(), "test".to_owned()).await.unwrap();
            store.begin_epoch(node, 1).await.unwrap();
        }
        let world = Self { store, sent: [0; 2], turn: 0, named: 0, _home: home };
        world.count(units).await;
        world
    }

    /// What a merchant's import of so many does.
    async fn count(&self, units: u64) {
        let product = Product {
            sku: mug(),
            title: "A mug".to_owned(),
            description: String::new(),
            tags: vec![],
            attributes: vec![],
            image: None,
        };
        let price = Some(PriceRow::of(Minor(100)).into());
        let row = GoodsRow { product, price, stock: Some(Some(units)) };
        self.store.import(shop(), vec![row], actor()).await.unwrap().unwrap();
    }

    fn name(&mut self) -> [u8; 16] {
        self.named += 1;
        name(self.named)
    }

    async fn ask(&mut self, node: u32, open: &[GrantId], per_minute: u64) -> StockAnswer {
        self.turn += 1;
        self.ask_as(node, self.turn, open, per_minute).await
    }

    async fn ask_as(&mut self, node: u32, turn: u64, open: &[GrantId], per_minute: u64) -> StockAnswer {
        let last = self.sent[node as usize - 1];
        let wanted = vec![Wanted { site: shop(), sku: mug(), per_minute }];
        let question = StockQuestion { turn, epoch: Epoch(1), last, open: open.to_vec(), wanted };
        let id = GrantId(self.name());
        self.store.answer_on_stock(node, question, move || id).await.unwrap()
    }

    async fn granted(&mut self, node: u32, open: &[GrantId], per_minute: u64) -> Vec<Granted> {
        match self.ask(node, open, per_minute).await {
            StockAnswer::Grants(grants) => grants,
            other => panic!("{other:?}"),
        }
    }

    /// A node's promise, as it arrives.
    async fn promise(&mut self, node: u32, to: CartId, grant: GrantId, units: u64) -> bool {
        let hold = HoldId(self.name());
        let op = Operation::Reserve { site: shop(), cart: to, at_ms: 1, hold, sku: mug(), units, grant };
        self.send(node, &op).await
    }

    async fn send(&mut self, node: u32, op: &Operation) -> bool {
        let sent = &mut self.sent[node as usize - 1];
        *sent += 1;
        match self.store.apply_batch(node, 1, *sent, vec![op.to_bytes()]).await.unwrap() {
            Apply::Applied(applied) => {
                assert_eq!((applied.dead, applied.applied), (0, 1));
                applied.promises == 1
            }
            other => panic!("{other:?}"),
        }
    }

    async fn reserve(&mut self, to: CartId, units: u64) -> Promised {
        let want = Want { hold: HoldId(self.name()), sku: mug(), units };
        let promised = self.store.reserve_stock(shop(), to, vec![], vec![want]).await.unwrap();
        promised.expect("the shop promises").remove(0)
    }

    /// What an order of the cart takes.
    async fn sell(&self, to: CartId, units: u64) -> Result<Vec<Sku>, (Sku, u64)> {
        let units = BTreeMap::from([(mug(), units)]);
        let sold = self.store.write(move |tx| {
            Ok(match sell(tx, &shop(), to, units.clone())? {
                Ok(uncounted) => Decision::Keep(Ok(uncounted)),
                Err(short) => Decision::Undo(Err(short)),
            })
        });
        sold.await.unwrap()
    }

    async fn report(&self) -> StockReport {
        let report = self.store.stock_report(shop(), mug()).await.unwrap().expect("a row");
        let places = report.sold + report.reserved + report.granted + report.available.unwrap_or(0);
        assert_eq!(places, report.received, "{report:?}");
        let totals = self.store.stock_totals().await.unwrap();
        assert_eq!((totals.granted, totals.reserved), (report.granted, report.reserved), "{report:?}");
        report
    }
}

async fn a_cart_gets_what_it_was_promised_before_anybody_else(home: Home) {
    let mut world = World::new(home, 10).await;
    let promised = world.reserve(cart(1), 7).await;
    assert_eq!(promised.holds.iter().map(|hold| hold.units).sum::<u64>(), 7);
    assert_eq!(world.sell(cart(2), 4).await, Err((mug(), 3)), "the rest is promised");
    let short = world.reserve(cart(2), 4).await;
    assert_eq!((short.holds.len(), short.available), (0, 3), "wholly or not at all");
    assert_eq!(world.reserve(cart(1), 7).await.holds.len(), 1, "asked again, it is the same promise");
    assert_eq!(world.report().await.available, Some(3));
    assert_eq!(world.sell(cart(1), 9).await, Ok(vec![]), "seven of its own, and two that are free");
    let report = world.report().await;
    assert_eq!((report.sold, report.reserved, report.available, report.holds), (9, 0, Some(1), 0));
}

async fn what_is_promised_beyond_the_order_and_what_lapses_is_free_again(home: Home) {
    let mut world = World::new(home, 10).await;
    world.reserve(cart(1), 6).await;
    assert_eq!(world.sell(cart(1), 2).await, Ok(vec![]));
    assert_eq!(world.report().await.available, Some(8));
    world.reserve(cart(2), 8).await;
    assert_eq!(world.store.end_stock(now_ms() + 14 * MINUTE).await.unwrap(), Ended::default());
    let ended = world.store.end_stock(now_ms() + 16 * MINUTE).await.unwrap();
    assert_eq!((ended.expired, world.report().await.available), (1, Some(8)));
    let kept = world.reserve(cart(3), 5).await;
    let op = Operation::Release { site: shop(), cart: cart(3), at_ms: 1, holds: vec![kept.holds[0].hold] };
    world.send(1, &op).await;
    world.send(1, &op).await;
    let report = world.report().await;
    assert_eq!((report.available, report.reserved, report.sold), (Some(8), 0, 2));
}

async fn a_node_promises_out_of_its_grant_and_the_region_sells_none_of_it(home: Home) {
    let mut world = World::new(home, 1_000).await;
    let grant = world.granted(1, &[], 1_000_000).await.remove(0);
    assert_eq!((grant.units, world.report().await.available), (237, Some(763)));
    assert_eq!(world.sell(cart(9), 764).await, Err((mug(), 763)), "nor does anybody else get it");
    assert!(world.promise(1, cart(1), grant.grant, 3).await);
    assert!(!world.promise(2, cart(2), grant.grant, 3).await, "another node's");
    assert!(!world.promise(1, cart(2), grant.grant, 235).await, "more than is left");
    assert_eq!(world.sell(cart(1), 3).await, Ok(vec![]));
    let topped_up = world.granted(1, &[grant.grant], 1_000_000).await.remove(0);
    assert!(topped_up.grant == grant.grant && topped_up.units > grant.units);
    let report = world.report().await;
    assert_eq!((report.granted, report.sold), (topped_up.units - 3, 3));
    assert_eq!(world.granted(2, &[], 3).await, [], "not hot there");
    let other = world.granted(2, &[], 1_000_000).await.remove(0);
    assert!(
        other.units > 0 && world.report().await.available >= Some(50),
        "the last twentieth is the region's"
    );
}

async fn a_grant_comes_home_when_everything_that_it_gave_has_come(home: Home) {
    let mut world = World::new(home, 1_000).await;
    let grant = world.granted(1, &[], 1_000_000).await.remove(0).grant;
    // The node has written three operations, the last a promise, and none has arrived.
    world.sent[0] = 3;
    assert_eq!(world.granted(1, &[], 0).await, [], "it has given it up");
    world.sent[0] = 0;
    assert_eq!(world.store.end_stock(now_ms()).await.unwrap(), Ended::default(), "they are on their way");
    for n in 1..=3 {
        assert!(world.promise(1, cart(n), grant, 2).await, "kept, although the grant is over");
    }
    let ended = world.store.end_stock(now_ms()).await.unwrap();
    assert_eq!((ended.returned, ended.lapsed), (1, 0));
    let report = world.report().await;
    assert_eq!((report.granted, report.reserved, report.available), (0, 6, Some(994)));
}

async fn what_comes_after_a_node_was_given_up_is_refused_and_its_checkout_takes_what_is_free(home: Home) {
    let mut world = World::new(home, 100).await;
    let grant = world.granted(1, &[], 1_000_000).await.remove(0);
    assert_eq!(world.store.end_stock(now_ms() + LONG - MINUTE).await.unwrap(), Ended::default());
    assert_eq!(world.store.end_stock(now_ms() + LONG).await.unwrap().lapsed, 1);
    assert_eq!(world.report().await.available, Some(100));
    assert_eq!(world.sell(cart(7), 98).await, Ok(vec![]));
    assert!(!world.promise(1, cart(1), grant.grant, 5).await, "it is over");
    assert_eq!(world.sell(cart(1), 5).await, Err((mug(), 2)), "the checkout decides by what is there");
    assert_eq!(world.sell(cart(1), 2).await, Ok(vec![]));
    let report = world.report().await;
    assert_eq!((report.sold, report.received), (100, 100));
}

async fn what_comes_late_for_an_erased_cart_is_free_again_and_its_number_stands_nowhere(home: Home) {
    let mut world = World::new(home, 1_000).await;
    let grant = world.granted(1, &[], 1_000_000).await.remove(0);
    let before = world.report().await;
    let erased = world.store.erase_shopper(shop(), None, [cart(1)].into(), actor()).await.unwrap();
    assert!(matches!(erased, Erased::Now(_)), "{erased:?}");
    assert!(!world.promise(1, cart(1), grant.grant, 3).await, "nobody is promised anything");
    assert!(!world.promise(2, cart(1), grant.grant, 3).await, "nor by a node that lies");
    let want = Want { hold: HoldId(world.name()), sku: mug(), units: 2 };
    assert_eq!(world.store.reserve_stock(shop(), cart(1), vec![], vec![want]).await.unwrap(), None);
    let is_named =
        world.store.read(|conn| conn.exists("SELECT 1 FROM stock_hold WHERE cart = ?1", params![cart(1).0]));
    assert!(!is_named.await.unwrap(), "the number of the cart was written down again");
    let report = world.report().await;
    assert_eq!((report.granted, report.reserved, report.holds), (grant.units - 3, 0, 0));
    assert_eq!(report.available, before.available.map(|available| available + 3));
    assert!(world.promise(1, cart(2), grant.grant, 3).await, "another cart");
}

async fn a_question_that_comes_late_changes_nothing(home: Home) {
    let mut world = World::new(home, 1_000).await;
    let grant = world.granted(1, &[], 1_000).await.remove(0);
    assert_eq!(world.ask_as(1, 1, &[], 1_000).await, StockAnswer::Old(1));
    assert_eq!(world.granted(1, &[grant.grant], 1_000).await.len(), 1, "it is still the node's");
    let question = StockQuestion { turn: 9, epoch: Epoch(2), last: 0, open: vec![], wanted: vec![] };
    let answer = world.store.answer_on_stock(1, question, || GrantId([9; 16])).await.unwrap();
    assert_eq!(answer, StockAnswer::NotYet);
}

async fn who_counts_a_shelf_counts_what_is_promised_and_lent(home: Home) {
    let mut world = World::new(home, 1_000).await;
    let grant = world.granted(1, &[], 1_000_000).await.remove(0).grant;
    world.reserve(cart(1), 10).await;
    let out = 1_000 - world.report().await.available.unwrap();
    world.count(1_000).await;
    assert_eq!(world.report().await.available, Some(1_000 - out), "the same count changes nothing");
    world.count(100).await;
    let report = world.report().await;
    assert_eq!((report.available, report.short), (Some(0), out - 100), "fewer than are out");
    assert_eq!(world.sell(cart(2), 1).await, Err((mug(), 0)));
    assert_eq!(world.granted(1, &[grant], 1_000_000).await, [], "what is lent is called back");
    world.store.end_stock(now_ms() + LONG).await.unwrap();
    let report = world.report().await;
    assert_eq!((report.available, report.short, report.received), (Some(100), 0, 100));
    world.store.put_stock(shop(), mug(), None, actor()).await.unwrap();
    assert_eq!(world.sell(cart(2), 5_000).await, Ok(vec![mug()]), "nobody counts any more");
}

async fn a_shop_that_promises_nothing_lends_nothing(home: Home) {
    let mut world = World::new(home, 1_000).await;
    let grant = world.granted(1, &[], 1_000).await.remove(0).grant;
    let mut settings = promising();
    settings.reservations.at_nodes = false;
    world.store.put_site(settings.clone(), By::Operator, actor()).await.unwrap();
    assert_eq!(world.granted(1, &[grant], 1_000).await, [], "what is lent is called back");
    assert_eq!(world.granted(1, &[], 1_000).await, []);
    assert_eq!(world.store.end_stock(now_ms()).await.unwrap().returned, 1);
    assert_eq!(world.reserve(cart(1), 1).await.holds.len(), 1);
    settings.reservations.enabled = false;
    world.store.put_site(settings, By::Operator, actor()).await.unwrap();
    assert_eq!(world.store.reserve_stock(shop(), cart(2), vec![], vec![]).await.unwrap(), None);
}

on_every_engine! {
    a_cart_gets_what_it_was_promised_before_anybody_else,
    what_is_promised_beyond_the_order_and_what_lapses_is_free_again,
    a_node_promises_out_of_its_grant_and_the_region_sells_none_of_it,
    a_grant_comes_home_when_everything_that_it_gave_has_come,
    what_comes_after_a_node_was_given_up_is_refused_and_its_checkout_takes_what_is_free,
    a_question_that_comes_late_changes_nothing,
    who_counts_a_shelf_counts_what_is_promised_and_lent,
    a_shop_that_promises_nothing_lends_nothing,
    what_comes_late_for_an_erased_cart_is_free_again_and_its_number_stands_nowhere,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Two nodes, some carts, a merchant who counts, and time that passes, in any order; some nodes promise what they do not have.
    #[test]
    fn each_unit_is_in_one_place(steps in vec((0..9_u8, 0..6_u8, 1..60_u64), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new(Home::sqlite(), 300).await;
            let mut grants: [Vec<GrantId>; 2] = [vec![], vec![]];
            let mut ever: Vec<GrantId> = vec![];
            for (step, who, units) in steps {
                let node = u32::from(who % 2) + 1;
                let own = node as usize - 1;
                match step {
                    0 | 1 => {
                        let open = grants[own].clone();
                        let granted = world.granted(node, &open, units * 100).await;
                        grants[own] = granted.iter().map(|granted| granted.grant).collect();
                        ever.extend(&grants[own]);
                    }
                    2 => {
                        // It has forgotten what it had.
                        grants[own] = world.granted(node, &[], 0).await.iter().map(|granted| granted.grant).collect();
                    }
                    3 | 4 if !ever.is_empty() => {
                        let grant = ever[units as usize % ever.len()];
                        world.promise(node, cart(who), grant, units).await;
                    }
                    5 => {
                        world.reserve(cart(who), units).await;
                    }
                    6 => {
                        let before = world.report().await;
                        if world.sell(cart(who), units).await.is_ok() {
                            assert_eq!(world.report().await.sold, before.sold + units);
                        }
                    }
                    7 => {
                        let passed = units * MINUTE;
                        world.store.end_stock(now_ms() + passed).await.unwrap();
                    }
                    _ => world.count(units * 5).await,
                }
                let report = world.report().await;
                assert!(report.sold <= report.received, "{report:?}");
            }
        });
    }
}
