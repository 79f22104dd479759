//! Table `cart`, and the one way into it: batches of operations from nodes.
//!
//! An order seals a cart: what arrives for it later is still merged, so that node and region come to hold the same
//! state, but it is in no order, and no second order can be made of it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use rusqlite::{Connection, OptionalExtension as _, params};
use souk_commerce::cart::{CART_BYTES_MAX, Cart, Delta};
use souk_commerce::id::{CartId, Digest, OrderId, SiteId};
use souk_commerce::op::Operation;

use super::{Decision, Store, StoreError, Tx, cursor};

/// Decoded carts that one batch keeps before it writes them. A cart of 100 lines takes about 20 KiB: 10 MiB.
const CARTS_OPEN_MAX: usize = 512;
/// What a byte of an operation can add to a stored cart: the dot that it puts is also remembered as seen.
const GROWTH_PER_DELTA_BYTE: usize = 2;
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
    carts: BTreeMap<(SiteId, CartId), Open>,
    sites: BTreeMap<SiteId, bool>,
}

struct Open {
    cart: Cart,
    sealed: bool,
    /// At most so many bytes when encoded.
    bytes: usize,
}

impl Open {
    fn load(row: Option<CartRow>) -> Result<Self, StoreError> {
        match row {
            None => Ok(Self { cart: Cart::new(), sealed: false, bytes: 0 }),
            Some(row) => {
                Ok(Self { cart: decode(&row.state)?, sealed: row.order.is_some(), bytes: row.state.len() })
            }
        }
    }
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

    /// Merges one operation; true if an order has sealed the cart. The inner error is the operation's own, and it alone is
    /// buried for it: a cart that nobody can read must not hold up every other cart of its node.
    fn merge(
        &mut self,
        site: SiteId,
        id: CartId,
        delta: &Delta,
        bytes: usize,
    ) -> Result<Result<bool, String>, StoreError> {
        if !self.knows_site(&site)? {
            return Ok(Err(format!("site {site} is not known here")));
        }
        if self.carts.len() >= CARTS_OPEN_MAX && !self.carts.contains_key(&(site.clone(), id)) {
            self.write()?;
        }
        let row = |site: &SiteId| find(self.tx.sql, site, id);
        let open = match self.carts.entry((site, id)) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(place) => match Open::load(row(&place.key().0)?) {
                Ok(open) => place.insert(open),
                Err(error) => return Ok(Err(error.to_string())),
            },
        };
        let grown = open.bytes + GROWTH_PER_DELTA_BYTE * bytes;
        if grown > CART_BYTES_MAX {
            return Ok(Err(format!(
                "the cart would have more than {CART_BYTES_MAX} bytes, and nobody could read it"
            )));
        }
        open.bytes = grown;
        open.cart.apply(delta);
        Ok(Ok(open.sealed))
    }

    fn write(&mut self) -> Result<(), StoreError> {
        let sql = "INSERT INTO cart (site, cart, state, digest, updated_ms) VALUES (?1, ?2, ?3, ?4, ?5)
                   ON CONFLICT (site, cart) DO UPDATE SET state = ?3, digest = ?4, updated_ms = ?5";
        let mut upsert = self.tx.sql.prepare_cached(sql)?;
        for ((site, id), open) in std::mem::take(&mut self.carts) {
            let state = open.cart.to_bytes();
            // What `Cart::digest` is, without encoding the cart a second time.
            let digest = Digest::of(&state);
            upsert.execute(params![site.as_str(), id.0, state, digest.0, self.tx.now_ms])?;
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
        let merged = match Operation::from_bytes(body) {
            Ok(Operation::Cart { site, cart, delta, .. }) => carts.merge(site, cart, &delta, body.len())?,
            Err(error) => Err(error.to_string()),
        };
        let reason = match merged {
            Ok(sealed) => {
                outcome.late += u64::from(sealed);
                outcome.applied += 1;
                continue;
            }
            Err(reason) => reason,
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
