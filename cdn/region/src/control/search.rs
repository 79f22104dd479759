//! `/v1/sites/{site}/search`: products by their words, for whoever keeps the shop. Shoppers search at the nodes.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use souk_commerce::money::Minor;
use souk_commerce::product::Product;
use souk_search::Query as Words;

use super::problem::Problem;
use super::{Answer, Query, Shared, Site};
use crate::store::search::{MATCHES_MAX, Place};

/// A page when nobody says how long.
const LIMIT_DEFAULT: usize = 24;
/// Steps by which an answer waits for what has just changed: 300 products, what a merchant puts there by hand.
const STEPS_FIRST_MAX: usize = 3;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    q: String,
    after: Option<String>,
    limit: Option<usize>,
}

#[derive(Serialize)]
pub(super) struct Page {
    products: Vec<Found>,
    /// Give it as `after` for the next page; null at the end.
    next: Option<String>,
    /// More has changed than is taken in yet: what is new may be missing.
    behind: bool,
}

#[derive(Serialize)]
struct Found {
    #[serde(flatten)]
    product: Product,
    /// Null: it is not on sale.
    price: Option<Minor>,
}

pub(super) async fn get(
    State(control): State<Shared>,
    Site(site): Site,
    Query(Asked { q, after, limit }): Query<Asked>,
) -> Answer<Page> {
    let words = Words::parse(&q).map_err(|error| Problem::invalid("q", error.to_string()))?;
    let place = |text: String| {
        Place::from_cursor(&text)
            .ok_or_else(|| Problem::invalid("after", "It must be the `next` of the page before."))
    };
    let after = after.map(place).transpose()?;
    let limit = limit.unwrap_or(LIMIT_DEFAULT);
    if !(1..=MATCHES_MAX).contains(&limit) {
        return Err(Problem::invalid("limit", format!("It must be a number from 1 to {MATCHES_MAX}.")));
    }
    for _ in 0..STEPS_FIRST_MAX {
        if control.store.index_products().await?.is_current {
            break;
        }
    }
    let found = control.store.matches(site.clone(), words, after, limit).await?;
    let found = found.ok_or_else(|| Problem::no_site(&site))?;
    let product = |found: crate::store::search::Match| Found { product: found.product, price: found.price };
    Ok(Json(Page {
        products: found.found.into_iter().map(product).collect(),
        next: found.next.as_ref().map(Place::cursor),
        behind: found.is_behind,
    }))
}
