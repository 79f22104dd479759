//! Table `cart`, and the one way into it: batches of operations from nodes.
//!
//! An order seals a cart: what arrives for it later is still merged, so that node and region come to hold the same
//! state, but it is in no order, and no second order can be made of it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use rusqlite::{Connection, OptionalExtension as _, params};
use souk_commerce::cart::Cart;
use souk_commerce::id::{CartId, Digest, OrderId, SiteId};
use souk_commerce::op::Operation;

use super::{Decision, Store, StoreError, Tx, cursor};

/// Decoded carts that one batch keeps before it writes them. A cart of 100 lines takes about 20 KiB: 10 MiB.
const CARTS_OPEN_MAX: usize = 512;
/// Longest list of carts in one answer.
pub(crate) const CARTS_LISTED_MAX: usize = 1_000;

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Apply {
    Applied(Applied),
    /// The batch begins after the operation that we need next. Nothing was applied.
    Gap {
        hwm: u64,
    },
    /// We did not mint this epoch for this node, or have sealed it. Nothing was applied.
    NotOpen,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Applied {
    pub(crate) hwm: u64,
    pub(crate) applied: u64,
    /// Seen before: at or under the mark.
    pub(crate) skipped: u64,
    pub(crate) dead: u64,
    /// Merged into a cart that an order had sealed already.
    pub(crate) late: u64,
}

/// A cart as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CartRow {
    pub(crate) state: Vec<u8>,
    pub(crate) digest: Digest,
    pub(crate) order: Option<OrderId>,
}

/// One line of the list of carts.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct CartListed {
    pub(crate) cart: CartId,
    pub(crate) digest: Digest,
    pub(crate) order: Option<OrderId>,
    pub(crate) updated_ms: u64,
}

pub(super) fn find(conn: &Connection, site: &SiteId, cart: CartId) -> Result<Option<CartRow>, StoreError> {
    let sql = "SELECT state, digest, order_id FROM cart WHERE site = ?1 AND cart = ?2";
    let found = conn.prepare_cached(sql)?.query_row(params![site.as_str(), cart.0], |row| {
        Ok(CartRow {
            state: row.get(0)?,
            digest: Digest(row.get(1)?),
            order: row.get::<_, Option<[u8; 16]>>(2)?.map(OrderId),
        })
    });
    Ok(found.optional()?)
}

/// Marks the cart as ordered. False: it is already.
pub(super) fn seal(tx: &Tx<'_>, site: &SiteId, cart: CartId, order: OrderId) -> Result<bool, StoreError> {
    let sql = "UPDATE cart SET order_id = ?3 WHERE site = ?1 AND cart = ?2 AND order_id IS NULL";
    Ok(tx.sql.prepare_cached(sql)?.execute(params![site.as_str(), cart.0, order.0])? == 1)
}

/// The carts that a batch touches, decoded once each.
struct OpenCarts<'a> {
    tx: &'a Tx<'a>,
    carts: BTreeMap<(SiteId, CartId), (Cart, bool)>,
    sites: BTreeMap<SiteId, bool>,
}

impl OpenCarts<'_> {
    fn knows_site(&mut self, site: &SiteId) -> Result<bool, StoreError> {
        if let Some(known) = self.sites.get(site) {
            return Ok(*known);
        }
        let known = super::site::exists(self.tx.sql, site)?;
        self.sites.insert(site.clone(), known);
        Ok(known)
    }

    /// The cart and whether it is sealed.
    fn open(&mut self, site: &SiteId, id: CartId) -> Result<&mut (Cart, bool), StoreError> {
        if self.carts.len() >= CARTS_OPEN_MAX && !self.carts.contains_key(&(site.clone(), id)) {
            self.write()?;
        }
        match self.carts.entry((site.clone(), id)) {
            Entry::Occupied(open) => Ok(open.into_mut()),
            Entry::Vacant(place) => {
                let cart = match find(self.tx.sql, site, id)? {
                    Some(row) => (decode(&row.state)?, row.order.is_some()),
                    None => (Cart::new(), false),
                };
                Ok(place.insert(cart))
            }
        }
    }

    fn write(&mut self) -> Result<(), StoreError> {
        let sql = "INSERT INTO cart (site, cart, state, digest, updated_ms) VALUES (?1, ?2, ?3, ?4, ?5)
                   ON CONFLICT (site, cart) DO UPDATE SET state = ?3, digest = ?4, updated_ms = ?5";
        let mut upsert = self.tx.sql.prepare_cached(sql)?;
        for ((site, id), (cart, _)) in std::mem::take(&mut self.carts) {
            let state = cart.to_bytes();
            upsert.execute(params![site.as_str(), id.0, state, cart.digest().0, self.tx.now_ms])?;
        }
        Ok(())
    }
}

pub(crate) fn decode(state: &[u8]) -> Result<Cart, StoreError> {
    Cart::from_bytes(state).map_err(|e| StoreError::corrupt("cart", e))
}

fn apply(tx: &Tx<'_>, node: u32, epoch: u32, first_seq: u64, ops: &[Vec<u8>]) -> Result<Apply, StoreError> {
    let Some(mark) = cursor::find(tx.sql, node, epoch)?.filter(|mark| !mark.sealed) else {
        return Ok(Apply::NotOpen);
    };
    if first_seq > mark.hwm.saturating_add(1) {
        return Ok(Apply::Gap { hwm: mark.hwm });
    }
    let mut outcome = Applied { hwm: mark.hwm, ..Applied::default() };
    let mut carts = OpenCarts { tx, carts: BTreeMap::new(), sites: BTreeMap::new() };
    for (seq, body) in (first_seq..).zip(ops) {
        if seq <= mark.hwm {
            outcome.skipped += 1;
            continue;
        }
        outcome.hwm = seq;
        let reason = match Operation::from_bytes(body) {
            Ok(Operation::Cart { site, cart, delta, .. }) => {
                if carts.knows_site(&site)? {
                    let (cart, sealed) = carts.open(&site, cart)?;
                    cart.apply(&delta);
                    outcome.late += u64::from(*sealed);
                    outcome.applied += 1;
                    continue;
                }
                format!("site {site} is not known here")
            }
            Err(error) => error.to_string(),
        };
        outcome.dead += 1;
        tracing::error!(
            node,
            epoch,
            seq,
            reason,
            "an operation that a node accepted cannot be applied: kept as a dead letter"
        );
        cursor::bury(tx, (node, epoch, seq), body, &reason)?;
    }
    carts.write()?;
    if outcome.hwm > mark.hwm {
        cursor::advance(tx, node, epoch, outcome.hwm)?;
    }
    Ok(Apply::Applied(outcome))
}

impl Store {
    /// Applies a run of one outbox: everything above the mark, once, in order, or nothing.
    pub(crate) async fn apply_batch(
        &self,
        node: u32,
        epoch: u32,
        first_seq: u64,
        ops: Vec<Vec<u8>>,
    ) -> Result<Apply, StoreError> {
        self.write(move |tx| apply(tx, node, epoch, first_seq, &ops).map(Decision::Keep)).await
    }

    pub(crate) async fn cart(&self, site: SiteId, cart: CartId) -> Result<Option<CartRow>, StoreError> {
        self.read(move |conn| find(conn, &site, cart)).await
    }

    /// Carts of a site in the order of their numbers, after `after`.
    pub(crate) async fn carts(
        &self,
        site: SiteId,
        after: Option<CartId>,
        limit: usize,
    ) -> Result<Vec<CartListed>, StoreError> {
        self.read(move |conn| {
            let sql = "SELECT cart, digest, order_id, updated_ms FROM cart WHERE site = ?1 AND cart > ?2
                       ORDER BY cart LIMIT ?3";
            let mut select = conn.prepare_cached(sql)?;
            // The empty blob sorts before every other.
            let after = after.map_or(Vec::new(), |cart| cart.0.to_vec());
            let rows =
                select.query_map(params![site.as_str(), after, limit.min(CARTS_LISTED_MAX)], |row| {
                    Ok(CartListed {
                        cart: CartId(row.get(0)?),
                        digest: Digest(row.get(1)?),
                        order: row.get::<_, Option<[u8; 16]>>(2)?.map(OrderId),
                        updated_ms: row.get(3)?,
                    })
                })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }
}
