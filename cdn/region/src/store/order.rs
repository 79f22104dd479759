//! Tables `orders` and `order_line`, and the transaction that makes an order.
//!
//! A price is computed outside the writer, because plugins may take milliseconds; [`place`] then proves inside the
//! writer that nothing it rests on has moved. Stock is only decided here.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension as _, params};
use souk_commerce::id::{CartId, Digest, OrderId, SiteId, Sku};
use souk_commerce::order::Order;

use super::goods::{self, GoodsVersions};
use super::{Decision, Store, StoreError, Tx, cart, release, site};

/// Longest list of orders in one answer.
pub(crate) const ORDERS_LISTED_MAX: usize = 1_000;
/// Largest order: a quote of 1,000 lines with eight adjustments each is about 2 MiB.
const ORDER_BYTES_MAX: usize = 8 << 20;

/// An order that is ready to be made if the world is still as it was when it was priced.
#[derive(Debug, Clone)]
pub(crate) struct Draft {
    pub(crate) order: Order,
    pub(crate) idempotency_key: String,
    pub(crate) request_hash: [u8; 32],
    pub(crate) basis: Basis,
}

/// Everything that a computed price rests on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Basis {
    pub(crate) cart: Digest,
    pub(crate) site_version: u64,
    pub(crate) release_version: u64,
    /// Every product that was looked at, by the cart or by a plugin.
    pub(crate) goods: BTreeMap<Sku, GoodsVersions>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Place {
    Placed,
    /// The same question had been answered: this is the same answer.
    Repeated(Box<Order>),
    KeyReused,
    CartSealed(OrderId),
    /// Something that the price rests on has changed: compute it again.
    Moved,
    OutOfStock {
        sku: Sku,
        available: u64,
    },
}

/// What an idempotency key leads to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Known {
    Unused,
    Same(Box<Order>),
    Other,
}

/// One line of the list of orders.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct OrderListed {
    pub(crate) position: u64,
    pub(crate) order: OrderId,
    pub(crate) cart: CartId,
    pub(crate) state: String,
    pub(crate) currency: String,
    pub(crate) total: i64,
    pub(crate) placed_ms: u64,
}

fn decode(body: &[u8]) -> Result<Order, StoreError> {
    minicbor::decode(body).map_err(|e| StoreError::corrupt("orders", e))
}

pub(crate) fn known(
    conn: &Connection,
    site: &SiteId,
    idempotency_key: &str,
    request_hash: &[u8; 32],
) -> Result<Known, StoreError> {
    let sql = "SELECT request_hash, body FROM orders WHERE site = ?1 AND idempotency_key = ?2";
    let found: Option<([u8; 32], Vec<u8>)> = conn
        .prepare_cached(sql)?
        .query_row(params![site.as_str(), idempotency_key], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    match found {
        None => Ok(Known::Unused),
        Some((hash, _)) if hash != *request_hash => Ok(Known::Other),
        Some((_, body)) => Ok(Known::Same(Box::new(decode(&body)?))),
    }
}

/// Whether anything under the price has moved since it was computed.
fn has_moved(
    tx: &Tx<'_>,
    site: &SiteId,
    cart_now: Option<Digest>,
    basis: &Basis,
) -> Result<bool, StoreError> {
    if cart_now != Some(basis.cart)
        || site::version(tx.sql, site)? != basis.site_version
        || release::version(tx.sql, site)? != basis.release_version
    {
        return Ok(true);
    }
    for (sku, seen) in &basis.goods {
        if goods::versions(tx.sql, site, sku)? != *seen {
            return Ok(true);
        }
    }
    Ok(false)
}

fn place(tx: &Tx<'_>, draft: &Draft) -> Result<Decision<Place>, StoreError> {
    let order = &draft.order;
    match known(tx.sql, &order.site, &draft.idempotency_key, &draft.request_hash)? {
        Known::Same(order) => return Ok(Decision::Undo(Place::Repeated(order))),
        Known::Other => return Ok(Decision::Undo(Place::KeyReused)),
        Known::Unused => {}
    }
    let cart = cart::find(tx.sql, &order.site, order.cart)?;
    if let Some(sealed_by) = cart.as_ref().and_then(|cart| cart.order) {
        return Ok(Decision::Undo(Place::CartSealed(sealed_by)));
    }
    if has_moved(tx, &order.site, cart.map(|cart| cart.digest), &draft.basis)? {
        return Ok(Decision::Undo(Place::Moved));
    }
    // One product may stand on several lines (the shopper's and a plugin's): stock is taken once for all of them.
    let mut units: BTreeMap<&Sku, u64> = BTreeMap::new();
    for line in &order.quote.lines {
        *units.entry(&line.line.sku).or_default() += u64::from(line.quantity);
    }
    for (sku, units) in units {
        if let Err(available) = goods::take(tx, &order.site, sku, units)? {
            return Ok(Decision::Undo(Place::OutOfStock { sku: sku.clone(), available }));
        }
    }
    insert(tx, draft)?;
    if !cart::seal(tx, &order.site, order.cart, order.id)? {
        return Err(StoreError::corrupt("cart", "the cart could not be sealed although it was open"));
    }
    Ok(Decision::Keep(Place::Placed))
}

fn insert(tx: &Tx<'_>, draft: &Draft) -> Result<(), StoreError> {
    let order = &draft.order;
    let body = minicbor::to_vec(order).map_err(|e| StoreError::corrupt("orders", e))?;
    if body.len() > ORDER_BYTES_MAX {
        return Err(StoreError::corrupt(
            "orders",
            format!("{} bytes are more than an order may have", body.len()),
        ));
    }
    let sql = "INSERT INTO orders (id, site, cart, idempotency_key, request_hash, state, currency, total, body, placed_ms)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) RETURNING position";
    let position: u64 = tx.sql.prepare_cached(sql)?.query_row(
        params![
            order.id.0,
            order.site.as_str(),
            order.cart.0,
            draft.idempotency_key,
            draft.request_hash,
            order.state.name(),
            order.quote.currency.code(),
            order.quote.total.0,
            body,
            order.placed_ms
        ],
        |row| row.get(0),
    )?;
    let sql = "INSERT INTO order_line (position, line, sku, added_by, title, quantity, unit_price, total)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
    let mut insert = tx.sql.prepare_cached(sql)?;
    for (index, line) in order.quote.lines.iter().enumerate() {
        insert.execute(params![
            position,
            index,
            line.line.sku.as_str(),
            line.line.added_by.as_ref().map(|plugin| plugin.as_str()),
            line.title,
            line.quantity,
            line.unit_price.0,
            line.total.0
        ])?;
    }
    Ok(())
}

impl Store {
    /// Makes the order, or says why not. Everything or nothing: order, lines, seal of the cart, stock, stock hints.
    pub(crate) async fn place(&self, draft: Draft) -> Result<Place, StoreError> {
        self.write(move |tx| place(tx, &draft)).await
    }

    pub(crate) async fn order(&self, id: OrderId) -> Result<Option<Order>, StoreError> {
        self.read(move |conn| {
            let mut select = conn.prepare_cached("SELECT body FROM orders WHERE id = ?1")?;
            let body: Option<Vec<u8>> = select.query_row([id.0], |row| row.get(0)).optional()?;
            body.map(|body| decode(&body)).transpose()
        })
        .await
    }

    /// Orders of a site in the order in which they were placed, after position `after`.
    pub(crate) async fn orders(
        &self,
        site: SiteId,
        after: u64,
        limit: usize,
    ) -> Result<Vec<OrderListed>, StoreError> {
        self.read(move |conn| {
            let sql = "SELECT position, id, cart, state, currency, total, placed_ms FROM orders
                       WHERE site = ?1 AND position > ?2 ORDER BY position LIMIT ?3";
            let mut select = conn.prepare_cached(sql)?;
            let rows =
                select.query_map(params![site.as_str(), after, limit.min(ORDERS_LISTED_MAX)], |row| {
                    Ok(OrderListed {
                        position: row.get(0)?,
                        order: OrderId(row.get(1)?),
                        cart: CartId(row.get(2)?),
                        state: row.get(3)?,
                        currency: row.get(4)?,
                        total: row.get(5)?,
                        placed_ms: row.get(6)?,
                    })
                })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }
}
