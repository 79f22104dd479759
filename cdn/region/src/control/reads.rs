//! Carts, orders and the audit log: what can only be looked at.

use axum::Json;
use axum::extract::{Path, State};
use serde::{Deserialize, Serialize};
use souk_commerce::cart::LineKey;
use souk_commerce::id::{CartId, Country, Coupon, Digest, OrderId, SiteId};
use souk_commerce::order::Order;
use souk_replication::Log;

use super::problem::Problem;
use super::{Answer, Query, Shared, Site, named};
use crate::store::audit::{AuditRow, Chain};
use crate::store::cart::{self, CartListed};
use crate::store::order::OrderListed;

/// A page when nobody says how long.
const LIMIT_DEFAULT: usize = 100;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Page<T> {
    pub(super) after: Option<T>,
    limit: Option<usize>,
}

impl<T> Page<T> {
    pub(super) fn limit(&self) -> usize {
        self.limit.unwrap_or(LIMIT_DEFAULT).max(1)
    }
}

pub(super) async fn carts(
    State(control): State<Shared>,
    Site(site): Site,
    Query(page): Query<Page<CartId>>,
) -> Answer<Vec<CartListed>> {
    Ok(Json(control.store.carts(site, page.after, page.limit()).await?))
}

#[derive(Serialize)]
pub(super) struct CartDetail {
    cart: CartId,
    digest: Digest,
    order: Option<OrderId>,
    country: Option<Country>,
    lines: Vec<Line>,
    coupons: Vec<Coupon>,
}

#[derive(Serialize)]
struct Line {
    line: LineKey,
    quantity: u32,
}

pub(super) async fn cart(
    State(control): State<Shared>,
    Path((site, id)): Path<(String, String)>,
) -> Answer<CartDetail> {
    let (site, id): (SiteId, CartId) = (named("site", &site)?, named("cart", &id)?);
    let row = control.store.cart(site, id).await?.ok_or_else(|| Problem::not_found("such cart"))?;
    let cart = cart::decode(&row.state)?;
    Ok(Json(CartDetail {
        cart: id,
        digest: row.digest,
        order: row.order,
        country: cart.country().cloned(),
        lines: cart.lines().into_iter().map(|(line, quantity)| Line { line, quantity }).collect(),
        coupons: cart.coupons(),
    }))
}

pub(super) async fn orders(
    State(control): State<Shared>,
    Site(site): Site,
    Query(page): Query<Page<u64>>,
) -> Answer<Vec<OrderListed>> {
    Ok(Json(control.store.orders(site, page.after.unwrap_or(0), page.limit()).await?))
}

pub(super) async fn order(State(control): State<Shared>, Path(id): Path<String>) -> Answer<Order> {
    let id: OrderId = named("order", &id)?;
    control.store.order(id).await?.map(Json).ok_or_else(|| Problem::not_found("such order"))
}

pub(super) async fn audit(
    State(control): State<Shared>,
    Query(page): Query<Page<u64>>,
) -> Answer<Vec<AuditRow>> {
    Ok(Json(control.store.audit(page.after.unwrap_or(0), page.limit()).await?))
}

#[derive(Serialize)]
pub(super) struct ChainState {
    whole: bool,
    /// How many rows were followed, or the number of the first that does not fit.
    row: u64,
}

/// Follows the audit log's chain of hashes.
pub(super) async fn audit_chain(State(control): State<Shared>) -> Answer<ChainState> {
    Ok(Json(match control.store.audit_chain().await? {
        Chain::Whole { rows } => ChainState { whole: true, row: rows },
        Chain::BrokenAt { seq } => ChainState { whole: false, row: seq },
    }))
}

/// What the rows of a log come to: the same numbers as at every node that is as far.
#[derive(Serialize)]
pub(super) struct LogDigested {
    log: String,
    version: u64,
    rows: u64,
    digest: String,
}

pub(super) async fn digests(State(control): State<Shared>) -> Answer<Vec<LogDigested>> {
    let logs = control.digests.now().await.into_iter().map(|digest| LogDigested {
        log: Log::from_code(digest.log).map_or_else(String::new, |log| log.to_string()),
        version: digest.version,
        rows: digest.rows,
        digest: hex::encode(digest.sum),
    });
    Ok(Json(logs.collect()))
}
