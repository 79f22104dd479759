//! The shop that is sold from while things break: what its products cost, and how many there are.

use serde_json::{Value, json};

pub(crate) const SITE: &str = "chaos";
pub(crate) const HOST: &str = "chaos.example";
/// Products that are never sold out.
pub(crate) const PRODUCTS: usize = 8;
pub(crate) const STOCK: u64 = 1_000_000;
/// The one that everybody wants, where a row sells it.
pub(crate) const SCARCE: &str = "LAST";

pub(crate) fn sku(index: usize) -> String {
    format!("MUG-{}", index % PRODUCTS)
}

/// Different for each product, so that money tells what was sold.
pub(crate) fn price(sku: &str) -> i64 {
    match sku.strip_prefix("MUG-").and_then(|index| index.parse::<i64>().ok()) {
        Some(index) => 199 + 101 * index,
        None => 5_000,
    }
}

/// What the region is given, with so many of the scarce one.
pub(crate) fn products(scarce: Option<u64>) -> Value {
    let product = |sku: &str, stock: u64| json!({ "sku": sku, "title": format!("The {sku}"), "price": price(sku), "stock": stock });
    let plenty = (0..PRODUCTS).map(|index| product(&sku(index), STOCK));
    plenty.chain(scarce.map(|stock| product(SCARCE, stock))).collect()
}
