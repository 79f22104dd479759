//! Test doubles for the host, and short ways to write a call down.
//!
//! Each thread has a host of its own, so tests do not see each other's; [`reset`] empties it.
//!
//! ```
//! use souk_sdk::{host, testing};
//!
//! testing::set_kv("motd", "hello");
//! testing::set_product(testing::product("MUG", 255));
//! assert_eq!(host::kv_get("motd").as_deref(), Some(&b"hello"[..]));
//! assert_eq!(host::lookup_product("MUG").map(|p| p.price), Some(255));
//!
//! host::warn("only one mug left");
//! assert_eq!(testing::logged().len(), 1);
//! ```

use std::cell::RefCell;
use std::collections::BTreeMap;

use crate::host::Level;
use crate::{Context, Line, Minor, Product, StockHint};

#[derive(Default)]
struct Host {
    products: BTreeMap<String, Product>,
    kv: BTreeMap<String, Vec<u8>>,
    log: Vec<(Level, String)>,
}

thread_local! {
    static HOST: RefCell<Host> = RefCell::default();
}

/// Forgets every product, value and log line of this thread's host.
pub fn reset() {
    HOST.take();
}

/// Lets [`host::lookup_product`](crate::host::lookup_product) find a product.
pub fn set_product(product: Product) {
    HOST.with_borrow_mut(|host| host.products.insert(product.sku.clone(), product));
}

/// Lets [`host::kv_get`](crate::host::kv_get) find a value.
pub fn set_kv(key: &str, value: impl Into<Vec<u8>>) {
    HOST.with_borrow_mut(|host| host.kv.insert(key.to_owned(), value.into()));
}

/// What was logged on this thread since the last [`reset`].
pub fn logged() -> Vec<(Level, String)> {
    HOST.with_borrow(|host| host.log.clone())
}

pub(crate) fn log(level: Level, text: &str) {
    HOST.with_borrow_mut(|host| host.log.push((level, text.to_owned())));
}

pub(crate) fn lookup_product(sku: &str) -> Option<Product> {
    HOST.with_borrow(|host| host.products.get(sku).cloned())
}

pub(crate) fn kv_get(key: &str) -> Option<Vec<u8>> {
    HOST.with_borrow(|host| host.kv.get(key).cloned())
}

/// A call in pounds at the beginning of time, from nowhere, by no one. Change what the test is about:
///
/// ```
/// # use souk_sdk::{Context, testing};
/// let ctx = Context { country: "FR".to_owned(), ..testing::context() };
/// ```
pub fn context() -> Context {
    Context {
        now_ms: 0,
        currency: "GBP".to_owned(),
        country: String::new(),
        region: None,
        language: "en-GB".to_owned(),
        segments: Vec::new(),
        customer: None,
        coupons: Vec::new(),
        seed: 0,
        settings: String::new(),
    }
}

/// A call with these settings.
pub fn context_with(settings: &str) -> Context {
    Context { settings: settings.to_owned(), ..context() }
}

/// A product in stock, whose title is its SKU.
pub fn product(sku: &str, price: Minor) -> Product {
    Product {
        sku: sku.to_owned(),
        title: sku.to_owned(),
        price,
        compare_at: None,
        tags: Vec::new(),
        attributes: Vec::new(),
        stock: StockHint::InStock,
    }
}

/// A product with tags.
pub fn tagged(sku: &str, price: Minor, tags: &[&str]) -> Product {
    Product { tags: tags.iter().map(|tag| (*tag).to_owned()).collect(), ..product(sku, price) }
}

/// A line that the shopper added, at the product's price.
pub fn line(id: u32, product: Product, quantity: u32) -> Line {
    Line { id, quantity, amount: product.price.saturating_mul(quantity.into()), product, added_by: None }
}

/// A line that a plugin added.
pub fn line_added_by(plugin: &str, id: u32, product: Product, quantity: u32) -> Line {
    Line { added_by: Some(plugin.to_owned()), ..line(id, product, quantity) }
}
