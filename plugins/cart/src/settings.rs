//! What the merchant writes, and what is wrong with it. The crate's first page says what each field means.

use serde::Deserialize;
use souk_sdk::{Line, Minor, Product};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub max_per_line: Option<u32>,
    pub max_lines: Option<u32>,
    #[serde(default)]
    pub max_per_order: Vec<OrderLimit>,
    pub gift: Option<Gift>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrderLimit {
    pub sku: Option<String>,
    pub tag: Option<String>,
    pub max: u32,
    /// What the shopper reads when nothing more fits.
    pub message: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gift {
    pub sku: String,
    pub when_total_at_least: Minor,
    #[serde(default = "one")]
    pub quantity: u32,
}

fn one() -> u32 {
    1
}

impl Settings {
    /// Says what is wrong, by the path of the field, where the shape alone cannot.
    pub fn check(&self) -> Result<(), String> {
        if self.max_per_line == Some(0) {
            return Err("max_per_line is 0; leave it out if there is no limit".to_owned());
        }
        if self.max_lines == Some(0) {
            return Err("max_lines is 0; leave it out if there is no limit".to_owned());
        }
        for (i, limit) in self.max_per_order.iter().enumerate() {
            if limit.sku.is_some() == limit.tag.is_some() {
                return Err(format!("max_per_order[{i}]: exactly one of sku and tag is needed"));
            }
        }
        match &self.gift {
            Some(gift) if gift.sku.is_empty() => Err("gift: sku is empty".to_owned()),
            Some(gift) if gift.quantity == 0 => Err("gift: quantity is 0".to_owned()),
            Some(gift) if gift.when_total_at_least < 1 => {
                Err(format!("gift: when_total_at_least is {}, less than 1", gift.when_total_at_least))
            }
            _ => Ok(()),
        }
    }
}

impl OrderLimit {
    pub(crate) fn is_for(&self, product: &Product) -> bool {
        self.sku.as_ref().is_some_and(|sku| *sku == product.sku)
            || self.tag.as_ref().is_some_and(|tag| product.has_tag(tag))
    }

    pub(crate) fn counts(&self, line: &Line) -> bool {
        line.added_by.is_none() && self.is_for(&line.product)
    }
}
