//! What is sold: a product's content, its price, and a hint about its stock.
//!
//! The three travel in different logs because they change at different rates and with different care, and meet at
//! the node as a [`Listed`]. Nothing here knows who may see a product or what a shopper pays: that is the plugins'.

use std::sync::Arc;

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::id::Sku;
use crate::money::{Currency, MINOR_MAX, Minor};

/// Longest title of a product.
pub const TITLE_BYTES_MAX: usize = 500;
/// Longest description of a product.
pub const DESCRIPTION_BYTES_MAX: usize = 16 * 1024;
/// Most tags that a product may carry; each is copied into every plugin call that sees the product.
pub const TAGS_MAX: usize = 64;
/// Most attributes that a product may carry, for the same reason.
pub const ATTRIBUTES_MAX: usize = 64;
/// Longest tag, attribute name or attribute value.
pub const WORD_BYTES_MAX: usize = 200;
/// Longest address of an image.
pub const IMAGE_BYTES_MAX: usize = 2_000;

/// What is known at the edge about stock. Never a promise: the region decides at checkout.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, Encode, Decode)]
#[serde(rename_all = "snake_case")]
pub enum StockHint {
    #[default]
    #[n(0)]
    Unknown,
    #[n(1)]
    Out,
    /// So many are left.
    #[n(2)]
    Low(#[n(0)] u32),
    #[n(3)]
    InStock,
}

/// A product's content, without its price.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Encode, Decode)]
pub struct Product {
    #[n(0)]
    pub sku: Sku,
    #[n(1)]
    pub title: String,
    #[n(2)]
    #[serde(default)]
    pub description: String,
    #[n(3)]
    #[serde(default)]
    pub tags: Vec<String>,
    #[n(4)]
    #[serde(default)]
    pub attributes: Vec<(String, String)>,
    #[n(5)]
    #[serde(default)]
    pub image: Option<String>,
}

/// A product's price.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Encode, Decode)]
pub struct PriceRow {
    #[n(0)]
    pub price: Minor,
    /// The price to show as struck through.
    #[n(1)]
    #[serde(default)]
    pub compare_at: Option<Minor>,
    /// No plugin can sell one unit for less.
    #[n(2)]
    #[serde(default)]
    pub floor: Option<Minor>,
}

/// A product as a node sells it: content joined with price and stock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub product: Arc<Product>,
    pub price: PriceRow,
    /// The version of the price log at which this price was set.
    pub price_version: u64,
    pub stock: StockHint,
}

/// Why a product or its price was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidProduct {
    #[error("the title is empty")]
    NoTitle,
    #[error("{field} has {bytes} bytes, more than {bytes_max}")]
    TooLong { field: &'static str, bytes: usize, bytes_max: usize },
    #[error("{count} {field}, more than {count_max}")]
    TooMany { field: &'static str, count: usize, count_max: usize },
    #[error("{field} is {amount}, outside 0 to {MINOR_MAX} minor units")]
    Amount { field: &'static str, amount: Minor },
    #[error("the floor {floor} is above the price {price}")]
    FloorAbovePrice { floor: Minor, price: Minor },
}

impl InvalidProduct {
    /// The same for a person, who counts in pounds.
    pub fn told_in(&self, currency: Currency) -> String {
        let told = |amount: &Minor| format!("{} {currency}", currency.format(*amount));
        match self {
            Self::Amount { field, amount } => {
                format!("{field} is {}, outside 0 to {}", told(amount), told(&Minor(MINOR_MAX)))
            }
            Self::FloorAbovePrice { floor, price } => {
                format!("the floor {} is above the price {}", told(floor), told(price))
            }
            other => other.to_string(),
        }
    }
}

impl Product {
    /// Checked by the region before a product enters the catalogue log; nodes rely on it.
    pub fn check(&self) -> Result<(), InvalidProduct> {
        if self.title.trim().is_empty() {
            return Err(InvalidProduct::NoTitle);
        }
        let bounded = |field, text: &str, bytes_max| {
            let bytes = text.len();
            if bytes <= bytes_max { Ok(()) } else { Err(InvalidProduct::TooLong { field, bytes, bytes_max }) }
        };
        let few = |field, count, count_max| {
            if count <= count_max { Ok(()) } else { Err(InvalidProduct::TooMany { field, count, count_max }) }
        };
        bounded("title", &self.title, TITLE_BYTES_MAX)?;
        bounded("description", &self.description, DESCRIPTION_BYTES_MAX)?;
        bounded("image", self.image.as_deref().unwrap_or_default(), IMAGE_BYTES_MAX)?;
        few("tags", self.tags.len(), TAGS_MAX)?;
        few("attributes", self.attributes.len(), ATTRIBUTES_MAX)?;
        for tag in &self.tags {
            bounded("a tag", tag, WORD_BYTES_MAX)?;
        }
        for (name, value) in &self.attributes {
            bounded("the name of an attribute", name, WORD_BYTES_MAX)?;
            bounded("the value of an attribute", value, WORD_BYTES_MAX)?;
        }
        Ok(())
    }
}

impl PriceRow {
    /// A price with nothing else said.
    pub fn of(price: Minor) -> Self {
        Self { price, compare_at: None, floor: None }
    }

    /// Checked by the region before a price enters the price log.
    pub fn check(&self) -> Result<(), InvalidProduct> {
        let in_range = |field, amount: Minor| {
            if (0..=MINOR_MAX).contains(&amount.0) {
                Ok(())
            } else {
                Err(InvalidProduct::Amount { field, amount })
            }
        };
        in_range("price", self.price)?;
        in_range("compare_at", self.compare_at.unwrap_or_default())?;
        let floor = self.floor.unwrap_or_default();
        in_range("floor", floor)?;
        // A floor above the price would make the undiscounted price illegal.
        if floor > self.price {
            return Err(InvalidProduct::FloorAbovePrice { floor, price: self.price });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_price_must_be_payable_and_its_floor_below_it() {
        let row = |price, compare_at: Option<i64>, floor: Option<i64>| PriceRow {
            price: Minor(price),
            compare_at: compare_at.map(Minor),
            floor: floor.map(Minor),
        };
        for good in [row(0, None, None), row(100, Some(120), Some(100)), row(MINOR_MAX, Some(1), Some(0))] {
            assert_eq!(good.check(), Ok(()), "{good:?}");
        }
        for bad in [
            row(-1, None, None),
            row(MINOR_MAX + 1, None, None),
            row(1, Some(-1), None),
            row(1, None, Some(2)),
            row(1, None, Some(-2)),
            row(i64::MIN, None, None),
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_person_is_told_of_pounds() {
        let error = PriceRow { price: Minor(1_000), compare_at: None, floor: Some(Minor(1_250)) }.check();
        let told =
            |currency: &str| error.clone().expect_err("a floor").told_in(currency.parse().expect("one"));
        assert_eq!(told("GBP"), "the floor 12.50 GBP is above the price 10.00 GBP");
        assert_eq!(told("JPY"), "the floor 1250 JPY is above the price 1000 JPY");
        let error = PriceRow::of(Minor(-1)).check().expect_err("below nothing");
        let told = error.told_in("GBP".parse().expect("one"));
        assert_eq!(told, "price is -0.01 GBP, outside 0 to 100000000000.00 GBP");
        let long = InvalidProduct::NoTitle;
        assert_eq!(long.told_in("GBP".parse().expect("one")), "the title is empty");
    }

    #[test]
    fn a_product_must_fit_its_limits() {
        let good = Product {
            sku: "MUG".parse().expect("a sku"),
            title: "Mug".to_owned(),
            description: String::new(),
            tags: vec!["kitchen".to_owned()],
            attributes: vec![],
            image: None,
        };
        assert_eq!(good.check(), Ok(()));
        assert_eq!(Product { title: " ".to_owned(), ..good.clone() }.check(), Err(InvalidProduct::NoTitle));
        let many = Product { tags: vec![String::new(); TAGS_MAX + 1], ..good.clone() };
        assert!(matches!(many.check(), Err(InvalidProduct::TooMany { field: "tags", .. })));
        let long = Product { description: "x".repeat(DESCRIPTION_BYTES_MAX + 1), ..good };
        assert!(matches!(long.check(), Err(InvalidProduct::TooLong { field: "description", .. })));
    }
}
