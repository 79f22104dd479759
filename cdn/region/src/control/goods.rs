//! `/v1/sites/{site}/products`, `prices` and `stock`.

use std::collections::HashMap;

use axum::Extension;
use axum::Json;
use axum::extract::{Path, State};
use serde::{Deserialize, Deserializer, Serialize};
use souk_commerce::id::{SiteId, Sku};
use souk_commerce::money::{Currency, Minor};
use souk_commerce::product::{InvalidProduct, PriceRow, Product, StockHint};

use super::problem::Problem;
use super::{Answer, Body, Shared, named};
use crate::store::audit::Actor;
use crate::store::escrow::StockReport;
use crate::store::goods::{self, Available, GoodsRow, PricePut, Put};

/// Rows of one import: one transaction, during which no other writes. At about 50 µs a row it lasts 50 ms.
const ROWS_MAX: usize = 1_000;
/// Units of one product. More is a mistake in a file, not a warehouse.
const UNITS_MAX: u64 = 1_000_000_000;
/// Reasons that are told one by one.
const REFUSALS_TOLD_MAX: usize = ROWS_MAX;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Import {
    products: Vec<serde_json::Value>,
}

/// One row as the caller writes it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    sku: Sku,
    title: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    tags: Vec<String>,
    #[serde(default)]
    attributes: Vec<(String, String)>,
    #[serde(default)]
    image: Option<String>,
    /// Left out: the price stays as it is.
    #[serde(default)]
    price: Option<Minor>,
    /// Left out: what was said before stays. `null`: nothing is struck through any more.
    #[serde(default, deserialize_with = "present")]
    compare_at: Option<Option<Minor>>,
    /// Left out: the floor stays, whatever a file without that column knows. `null`: there is none any more.
    #[serde(default, deserialize_with = "present")]
    floor: Option<Option<Minor>>,
    /// What is not sold, with what is promised and lent: what somebody counts who counts a shelf. Left out: the stock stays
    /// as it is. `null`: it is not counted.
    #[serde(default, deserialize_with = "present")]
    stock: Option<Available>,
}

/// Tells a field that is `null` from one that is not there.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

#[derive(Serialize)]
pub(super) struct Outcome {
    created: u64,
    updated: u64,
    unchanged: u64,
    refused: Vec<Refused>,
}

#[derive(Serialize)]
struct Refused {
    index: usize,
    sku: Option<String>,
    reason: String,
}

fn check_units(units: Available) -> Result<(), String> {
    match units {
        Some(units) if units > UNITS_MAX => Err(format!("stock is {units}, more than {UNITS_MAX}")),
        _ => Ok(()),
    }
}

fn read_row(value: serde_json::Value, currency: Currency) -> Result<GoodsRow, String> {
    let told = |error: InvalidProduct| error.told_in(currency);
    let row: Row = serde_json::from_value(value).map_err(|e| e.to_string())?;
    let price = match row.price {
        Some(price) => Some(PricePut { price, compare_at: row.compare_at, floor: row.floor }),
        None if row.compare_at.is_some() || row.floor.is_some() => {
            return Err("compare_at and floor need a price beside them".to_owned());
        }
        None => None,
    };
    let product = Product {
        sku: row.sku,
        title: row.title,
        description: row.description,
        tags: row.tags,
        attributes: row.attributes,
        image: row.image,
    };
    product.check().map_err(told)?;
    // What this row alone says. Whether it fits to what stays is seen beside it, in the transaction.
    price.map_or(Ok(()), |price| price.over(None).check()).map_err(told)?;
    row.stock.map_or(Ok(()), check_units)?;
    Ok(GoodsRow { product, price, stock: row.stock })
}

/// In which a site's prices are told to a person.
async fn currency_of(control: &Shared, site: &SiteId) -> Result<Currency, Problem> {
    let row = control.store.site(site.clone()).await?;
    row.map(|row| row.settings.currency).ok_or_else(|| Problem::no_site(site))
}

pub(super) async fn import(
    State(control): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(site): Path<String>,
    Body(import): Body<Import>,
) -> Answer<Outcome> {
    let site: SiteId = named("site", &site)?;
    if import.products.len() > ROWS_MAX {
        let detail = format!("{} rows are more than {ROWS_MAX}", import.products.len());
        return Err(Problem::invalid("products", detail).remedy("Send them in several requests."));
    }
    let currency = currency_of(&control, &site).await?;
    let (mut rows, mut refused) = (Vec::with_capacity(import.products.len()), Vec::new());
    let mut indices = Vec::with_capacity(rows.capacity());
    let mut first_at: HashMap<Sku, usize> = HashMap::new();
    for (index, value) in import.products.into_iter().enumerate() {
        let sku = value.get("sku").and_then(|sku| sku.as_str()).map(|sku| sku.chars().take(80).collect());
        let row =
            read_row(value, currency).and_then(|row| match first_at.insert(row.product.sku.clone(), index) {
                // Were both taken, the same file would change the row twice at each import.
                Some(first) => Err(format!("row {first} of this request is about the same sku")),
                None => Ok(row),
            });
        match row {
            Ok(row) => {
                rows.push(row);
                indices.push(index);
            }
            Err(reason) if refused.len() < REFUSALS_TOLD_MAX => refused.push(Refused { index, sku, reason }),
            Err(_) => {}
        }
    }
    let skus: Vec<Sku> = rows.iter().map(|row| row.product.sku.clone()).collect();
    let done =
        control.store.import(site.clone(), rows, actor).await?.ok_or_else(|| Problem::no_site(&site))?;
    let goods::Imported { created, updated, unchanged, misfits } = done;
    for goods::Misfit { row, error } in misfits {
        let reason = error.told_in(currency);
        refused.push(Refused { index: indices[row], sku: Some(skus[row].to_string()), reason });
    }
    refused.sort_by_key(|refused| refused.index);
    Ok(Json(Outcome { created, updated, unchanged, refused }))
}

#[derive(Serialize)]
pub(super) struct Detail {
    #[serde(flatten)]
    product: Product,
    product_version: u64,
    price: Option<PriceRow>,
    price_version: u64,
    stock: Stock,
}

#[derive(Serialize)]
struct Stock {
    counted: bool,
    available: Available,
    hint: StockHint,
}

pub(super) async fn get(
    State(control): State<Shared>,
    Path((site, sku)): Path<(String, String)>,
) -> Answer<Detail> {
    let (site, sku): (SiteId, Sku) = (named("site", &site)?, named("sku", &sku)?);
    let found = control.store.goods(site.clone(), sku.clone()).await?;
    let goods = found.ok_or_else(|| Problem::not_found(&format!("product {sku} at site {site}")))?;
    let available = goods.stock.flatten();
    Ok(Json(Detail {
        product: goods.product,
        product_version: goods.product_version,
        price: goods.price,
        price_version: goods.price_version,
        stock: Stock { counted: available.is_some(), available, hint: goods.hint },
    }))
}

/// Where the units are.
pub(super) async fn get_stock(
    State(control): State<Shared>,
    Path((site, sku)): Path<(String, String)>,
) -> Answer<StockReport> {
    let (site, sku): (SiteId, Sku) = (named("site", &site)?, named("sku", &sku)?);
    let report = control.store.stock_report(site.clone(), sku.clone()).await?;
    report.map(Json).ok_or_else(|| {
        Problem::not_found(&format!("stock of {sku} at site {site}"))
            .remedy(format!("Say how much there is with PUT /v1/sites/{site}/stock/{sku}."))
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Price {
    price: Minor,
    #[serde(default)]
    compare_at: Option<Minor>,
    #[serde(default)]
    floor: Option<Minor>,
}

#[derive(Serialize)]
pub(super) struct Version {
    version: u64,
    changed: bool,
}

fn written(put: Put, site: &SiteId, sku: &Sku) -> Answer<Version> {
    match put {
        Put::Written { version } => Ok(Json(Version { version, changed: true })),
        Put::Unchanged { version } => Ok(Json(Version { version, changed: false })),
        Put::NoSite => Err(Problem::no_site(site)),
        Put::NoProduct => Err(Problem::not_found(&format!("product {sku} at site {site}"))
            .remedy(format!("Import it with POST /v1/sites/{site}/products."))),
        Put::Moved { available } => {
            let now = available.map_or_else(|| "not counted".to_owned(), |units| units.to_string());
            let detail = format!("The stock of {sku} at site {site} is not what was expected: it is {now}.");
            Err(Problem::conflict("stock_moved", detail).remedy(
                "If this request was sent before, it may have been done. Read the product, and count anew.",
            ))
        }
    }
}

pub(super) async fn put_price(
    State(control): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path((site, sku)): Path<(String, String)>,
    Body(Price { price, compare_at, floor }): Body<Price>,
) -> Answer<Version> {
    let (site, sku): (SiteId, Sku) = (named("site", &site)?, named("sku", &sku)?);
    let row = PriceRow { price, compare_at, floor };
    if let Err(error) = row.check() {
        return Err(Problem::invalid("price", error.told_in(currency_of(&control, &site).await?)));
    }
    let put = control.store.put_price(site.clone(), sku.clone(), row, actor).await?;
    written(put, &site, &sku)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Units {
    /// What is free to be sold, beside what is promised and lent. `null`: not counted. It has to be said: leaving it out is not the same as having no limit.
    #[serde(deserialize_with = "Available::deserialize")]
    available: Available,
    /// What it was when the caller looked. Without it, a repetition puts back what was sold in between.
    #[serde(default, deserialize_with = "present")]
    expected: Option<Available>,
}

pub(super) async fn put_stock(
    State(control): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path((site, sku)): Path<(String, String)>,
    Body(Units { available, expected }): Body<Units>,
) -> Answer<Version> {
    let (site, sku): (SiteId, Sku) = (named("site", &site)?, named("sku", &sku)?);
    check_units(available).map_err(|reason| Problem::invalid("available", reason))?;
    let (of, at) = (sku.clone(), site.clone());
    let put = match expected {
        Some(expected) => control.store.swap_stock(at, of, expected, available, actor).await?,
        None => control.store.put_stock(at, of, available, actor).await?,
    };
    written(put, &site, &sku)
}
