//! From rows to products: what a row must be, and what many rows of one product add up to. Pure.
//!
//! **The rule for a product that occurs in many rows.** Its price is the one that was seen most often; of equally
//! frequent ones the one seen last. Its title is chosen in the same way among those that are not empty; a product that
//! never had one is called by its SKU. Compare-at price and floor come from the last row with the chosen price, so that
//! they belong together. Description, image, tags, attributes and stock are those of the last row that has any.
//!
//! An invoice file gives this rule its reason: one clerk's discount or slip must not become the shop's price.

use std::collections::BTreeMap;

use serde::Serialize;
use souk_commerce::id::Sku;
use souk_commerce::money::{Currency, Minor, MoneyError};

use super::map::{ColumnMap, Field};

/// Products in one file. Beyond it, a file is not one shop's catalogue.
pub(crate) const PRODUCTS_MAX: usize = 1_000_000;
/// Different prices remembered for one product. Beyond it new ones are read but not counted. Postage has another price
/// on each of a thousand invoices; of so many the latest is to be chosen, so none of them may be missed.
const PRICES_MAX: usize = 10_000;
/// Different titles remembered for one product. Beyond it new ones are read but not counted: the most frequent of so
/// many is already there.
const TITLES_MAX: usize = 256;
const TITLE_CHARS_MAX: usize = 300;
const DESCRIPTION_BYTES_MAX: usize = 16 * 1024;
const TAGS_MAX: usize = 64;
const ATTRIBUTES_MAX: usize = 64;

/// A product as the control API takes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct ProductRow {
    pub(crate) sku: Sku,
    pub(crate) title: String,
    pub(crate) description: String,
    pub(crate) tags: Vec<String>,
    pub(crate) attributes: Vec<(String, String)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) image: Option<String>,
    pub(crate) price: Minor,
    /// Left out where the file has no such column: what the region knows stays. `null` where the cell is empty: there
    /// is none any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) compare_at: Option<Option<Minor>>,
    /// As `compare_at`: a file that does not speak of floors must not open the door to prices below them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) floor: Option<Option<Minor>>,
    /// Left out where the file says nothing about stock: what the region knows stays.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stock: Option<u32>,
    /// The last line of the file that spoke of it; not sent.
    #[serde(skip)]
    pub(crate) line: u64,
}

/// Why a row is not part of the catalogue.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the row has {found} columns, the heading {expected}")]
    Columns { found: usize, expected: usize },
    #[error("the SKU is empty")]
    NoSku,
    #[error("{0}")]
    BadSku(String),
    #[error("the price is empty")]
    NoPrice,
    #[error("the {field} is wrong: {reason}")]
    BadPrice { field: &'static str, reason: MoneyError },
    #[error("the price is 0, and free products are accepted with --allow-free only")]
    ZeroPrice,
    #[error("the floor {floor} is above the price {price}")]
    FloorAbovePrice { floor: String, price: String },
    #[error("the {field} {text} is negative")]
    NegativePrice { field: &'static str, text: String },
    #[error("the stock {0:?} is not a whole number from 0 to 4294967295")]
    BadStock(String),
    #[error("the {field} is longer than {max}")]
    TooLong { field: &'static str, max: usize },
    #[error("the attribute {0:?} is not name=value")]
    BadAttribute(String),
    #[error("the file has more than {PRODUCTS_MAX} products")]
    TooManyProducts,
    #[error("the region refused it: {0}")]
    Region(String),
}

/// What a name of [`Refusal::name`] means, for a table of counts.
pub(crate) fn in_words(name: &str) -> &str {
    match name {
        "columns" => "not as many columns as the heading has",
        "no_sku" => "no SKU",
        "bad_sku" => "not a valid SKU",
        "no_price" => "no price",
        "bad_price" => "a price that is not an amount of the currency",
        "zero_price" => "a price of 0",
        "floor_above_price" => "a floor above the price",
        "negative_price" => "a negative price",
        "bad_stock" => "a stock that is not a whole number",
        "too_long" => "a field that is too long",
        "bad_attribute" => "an attribute that is not name=value",
        "too_many_products" => "more products than a file may have",
        "region" => "refused by the region",
        other => other,
    }
}

impl Refusal {
    /// For counting, and for scripts.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Columns { .. } => "columns",
            Self::NoSku => "no_sku",
            Self::BadSku(_) => "bad_sku",
            Self::NoPrice => "no_price",
            Self::BadPrice { .. } => "bad_price",
            Self::ZeroPrice => "zero_price",
            Self::FloorAbovePrice { .. } => "floor_above_price",
            Self::NegativePrice { .. } => "negative_price",
            Self::BadStock(_) => "bad_stock",
            Self::TooLong { .. } => "too_long",
            Self::BadAttribute(_) => "bad_attribute",
            Self::TooManyProducts => "too_many_products",
            Self::Region(_) => "region",
        }
    }
}

/// How amounts are read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) currency: Currency,
    pub(crate) allow_free: bool,
}

/// Collects rows until the file ends.
pub(crate) struct Merge {
    map: ColumnMap,
    rules: Rules,
    products: BTreeMap<Sku, Seen>,
}

/// What one product's rows have said so far.
#[derive(Default)]
struct Seen {
    line: u64,
    prices: BTreeMap<Minor, PriceSeen>,
    titles: Vec<TitleSeen>,
    description: String,
    tags: Vec<String>,
    attributes: Vec<(String, String)>,
    image: Option<String>,
    stock: Option<u32>,
}

struct PriceSeen {
    compare_at: Option<Minor>,
    floor: Option<Minor>,
    count: u64,
    line: u64,
}

struct TitleSeen {
    title: String,
    count: u64,
    line: u64,
}

/// One row that is right in itself.
struct Row {
    sku: Sku,
    title: String,
    description: String,
    price: Minor,
    compare_at: Option<Minor>,
    floor: Option<Minor>,
    stock: Option<u32>,
    tags: Vec<String>,
    attributes: Vec<(String, String)>,
    image: Option<String>,
}

impl Merge {
    pub(crate) fn new(map: ColumnMap, rules: Rules) -> Self {
        Self { map, rules, products: BTreeMap::new() }
    }

    /// Takes one row; `line` is where it begins in the file. A refused row leaves nothing behind.
    pub(crate) fn row(&mut self, line: u64, fields: &[&str]) -> Result<(), Refusal> {
        let row = read(&self.map, self.rules, fields)?;
        if self.products.len() >= PRODUCTS_MAX && !self.products.contains_key(&row.sku) {
            return Err(Refusal::TooManyProducts);
        }
        self.products.entry(row.sku.clone()).or_default().add(line, row);
        Ok(())
    }

    /// The products in the order of their SKUs, so that the same file gives the same calls.
    pub(crate) fn finish(self) -> Vec<ProductRow> {
        let Self { map, products, .. } = self;
        products.into_iter().map(|(sku, seen)| seen.decide(sku, &map)).collect()
    }
}

impl Seen {
    fn add(&mut self, line: u64, row: Row) {
        self.line = line;
        let Row { price, compare_at, floor, .. } = row;
        if let Some(seen) = self.prices.get_mut(&price) {
            *seen = PriceSeen { compare_at, floor, count: seen.count + 1, line };
        } else if self.prices.len() < PRICES_MAX {
            self.prices.insert(price, PriceSeen { compare_at, floor, count: 1, line });
        }
        if let Some(seen) = self.titles.iter_mut().find(|seen| seen.title == row.title) {
            (seen.count, seen.line) = (seen.count + 1, line);
        } else if !row.title.is_empty() && self.titles.len() < TITLES_MAX {
            self.titles.push(TitleSeen { title: row.title, count: 1, line });
        }
        replace_unless_empty(&mut self.description, row.description, String::is_empty);
        replace_unless_empty(&mut self.tags, row.tags, Vec::is_empty);
        replace_unless_empty(&mut self.attributes, row.attributes, Vec::is_empty);
        self.image = row.image.or_else(|| self.image.take());
        self.stock = row.stock.or(self.stock);
    }

    fn decide(self, sku: Sku, map: &ColumnMap) -> ProductRow {
        let (price, seen) = self
            .prices
            .into_iter()
            .max_by_key(|(_, seen)| (seen.count, seen.line))
            .expect("a product is entered with its first row, and each row has a price");
        let title = self.titles.into_iter().max_by_key(|seen| (seen.count, seen.line)).map(|seen| seen.title);
        ProductRow {
            title: title.unwrap_or_else(|| sku.to_string()),
            sku,
            description: self.description,
            tags: self.tags,
            attributes: self.attributes,
            image: self.image,
            price,
            compare_at: map.has(&Field::CompareAt).then_some(seen.compare_at),
            floor: map.has(&Field::Floor).then_some(seen.floor),
            stock: self.stock,
            line: self.line,
        }
    }
}

fn replace_unless_empty<T>(kept: &mut T, new: T, empty: fn(&T) -> bool) {
    if !empty(&new) {
        *kept = new;
    }
}

fn read(map: &ColumnMap, rules: Rules, fields: &[&str]) -> Result<Row, Refusal> {
    if fields.len() != map.width() {
        return Err(Refusal::Columns { found: fields.len(), expected: map.width() });
    }
    let (mut sku, mut price) = (Err(Refusal::NoSku), Err(Refusal::NoPrice));
    let (mut compare_at, mut floor, mut stock, mut image) = (None, None, None, None);
    let (mut title, mut description) = (String::new(), String::new());
    let (mut tags, mut attributes) = (Vec::new(), Vec::new());
    for (at, field) in map.columns() {
        let text = fields[*at].trim();
        if text.is_empty() {
            continue;
        }
        match field {
            Field::Sku => {
                sku = text.parse().map_err(|e: souk_commerce::id::InvalidName| Refusal::BadSku(e.to_string()))
            }
            Field::Title => title = bounded("title", text, text.chars().count(), TITLE_CHARS_MAX)?,
            Field::Description => {
                description = bounded("description", text, text.len(), DESCRIPTION_BYTES_MAX)?
            }
            Field::Price => price = self::price(rules, text),
            Field::CompareAt => compare_at = Some(amount(rules, "compare-at price", text)?),
            Field::Floor => floor = Some(amount(rules, "floor", text)?),
            Field::Stock => stock = Some(text.parse().map_err(|_| Refusal::BadStock(short(text)))?),
            Field::Tags => tags = list("tags", text, TAGS_MAX)?,
            Field::Attributes => {
                for pair in list("attributes", text, ATTRIBUTES_MAX)? {
                    let (name, value) =
                        pair.split_once('=').ok_or_else(|| Refusal::BadAttribute(short(&pair)))?;
                    attributes.push((name.trim().to_owned(), value.trim().to_owned()));
                }
            }
            Field::Attribute(name) => attributes.push((name.clone(), text.to_owned())),
            Field::Image => image = Some(bounded("image", text, text.len(), 1_024)?),
        }
    }
    let (sku, price) = (sku?, price?);
    if let Some(floor) = floor.filter(|floor| *floor > price) {
        let (floor, price) = (rules.currency.format(floor), rules.currency.format(price));
        return Err(Refusal::FloorAbovePrice { floor, price });
    }
    Ok(Row { sku, title, description, price, compare_at, floor, stock, tags, attributes, image })
}

fn price(rules: Rules, text: &str) -> Result<Minor, Refusal> {
    let price = amount(rules, "price", text)?;
    if price == Minor::ZERO && !rules.allow_free { Err(Refusal::ZeroPrice) } else { Ok(price) }
}

fn amount(rules: Rules, field: &'static str, text: &str) -> Result<Minor, Refusal> {
    let amount = rules.currency.parse_decimal(text).map_err(|reason| Refusal::BadPrice { field, reason })?;
    if amount.is_negative() { Err(Refusal::NegativePrice { field, text: short(text) }) } else { Ok(amount) }
}

fn bounded(field: &'static str, text: &str, length: usize, max: usize) -> Result<String, Refusal> {
    if length > max { Err(Refusal::TooLong { field, max }) } else { Ok(text.to_owned()) }
}

/// `a; b;c`.
fn list(field: &'static str, text: &str, max: usize) -> Result<Vec<String>, Refusal> {
    let items: Vec<String> =
        text.split(';').map(str::trim).filter(|t| !t.is_empty()).map(str::to_owned).collect();
    if items.len() > max { Err(Refusal::TooLong { field, max }) } else { Ok(items) }
}

/// What is echoed of a hostile file is bounded.
fn short(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(test)]
mod tests;
