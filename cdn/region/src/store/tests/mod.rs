//! The store from its typed operations: what must hold whoever calls, in whatever order, whichever engine is under it.

mod applying;
mod backups;
pub(crate) mod home;
mod keeping;
mod logs;
mod orders;
mod pace;
mod server;
mod shared;
mod shoppers;

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
use super::engine::params;
use super::goods::{GoodsRow, Imported, Put};
use super::log::{PageMax, Run};
use super::order::{Basis, Draft, Place, Standing};
use super::site::By;
use super::*;
use home::{Home, on_every_engine};
pub(crate) use shoppers::Begun;

const PAGE: PageMax = PageMax { records: 1_000, bytes: 1 << 20 };

pub(crate) fn actor() -> Actor {
    Actor { name: "operator:test".to_owned(), peer: "127.0.0.1:1".to_owned() }
}

pub(crate) fn site() -> SiteId {
    "shop".parse().unwrap()
}

pub(crate) fn sku(text: &str) -> Sku {
    text.parse().unwrap()
}

pub(crate) fn row(name: &str, price: i64, stock: Option<Option<u64>>) -> GoodsRow {
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

/// A store with one site and three products: MUG (5 left), PEN (not counted), CAP (nothing said about stock).
async fn shop(home: &Home) -> Store {
    furnish(home.open()).await
}

pub(crate) async fn furnish(store: Store) -> Store {
    let settings = SiteSettings::new(site(), "GBP".parse().unwrap());
    store.put_site(settings, By::Operator, actor()).await.unwrap();
    let rows = vec![row("MUG", 1_000, Some(Some(5))), row("PEN", 200, Some(None)), row("CAP", 700, None)];
    let imported = store.import(site(), rows, actor()).await.unwrap().unwrap();
    assert_eq!(imported, Imported { created: 3, updated: 0, unchanged: 0, ..Imported::default() });
    store
}

/// A node that writes carts: its own copy of each cart, as a real node has.
pub(crate) struct Shopper {
    node: u32,
    epoch: u32,
    cart: CartId,
    state: Cart,
    clock: u64,
}

impl Shopper {
    pub(crate) fn new(node: u32, epoch: u32, cart: u8) -> Self {
        Self { node, epoch, cart: CartId([cart; 16]), state: Cart::new(), clock: 1 }
    }

    pub(crate) fn add(&mut self, name: &str, quantity: i32) -> Vec<u8> {
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

pub(crate) async fn enrol(store: &Store, node: u32, epoch: u32) {
    store.greet(node, "lon".to_owned(), "test".to_owned()).await.unwrap();
    assert!(store.begin_epoch(node, epoch).await.unwrap());
}

fn applied(hwm: u64, applied: u64, skipped: u64) -> Apply {
    Apply::Applied(Applied { hwm, applied, skipped, ..Applied::default() })
}

/// A cart with these lines, applied at the store, and an order of it that rests on what is there now.
pub(crate) async fn draft(store: &Store, cart: u8, lines: &[(&str, i32)], key: &str) -> Draft {
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

pub(crate) async fn left(store: &Store, name: &str) -> Option<Option<u64>> {
    store.goods(site(), sku(name)).await.unwrap().unwrap().stock
}
