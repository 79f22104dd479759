//! Table `cart`, and the one way into it: batches of operations from nodes.
//!
//! An order seals a cart: what arrives for it later is still merged, so that node and region come to hold the same
//! state, but it is in no order, and no second order can be made of it.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use souk_commerce::cart::{CART_BYTES_MAX, Cart, Delta};
use souk_commerce::id::{CartId, Digest, Epoch, NodeId, OrderId, SiteId};
use souk_commerce::op::Operation;
use souk_replication::Fold;

use super::dead_letter::{self, LetterId};
use super::engine::{Param, Row, Session, many, params};
use super::escrow::{self, Kept};
use super::{Decision, Store, StoreError, Tx, cursor, restored};

/// Decoded carts that one batch keeps before it writes them. A cart of 100 lines takes about 20 KiB: 10 MiB.
const CARTS_OPEN_MAX: usize = 512;
/// What a byte of an operation can add to a stored cart: the dot that it puts is also remembered as seen.
const GROWTH_PER_DELTA_BYTE: usize = 2;
/// A stamp this far ahead of our clock is counted and logged: the sender's clock, or ours, needs a look. It is applied
/// all the same, because the operation was answered; the worst that a wrong clock does is win ties that it should
/// have lost, until somebody who has seen the result changes it.
const CLOCK_AHEAD_MS_MAX: u64 = 5_000;
/// A stamp this far ahead (ten years) is no clock's: a machine so wrong finds every certificate expired and has no
/// link. Refused, because behind a country with the last stamp there is room for no other.
const STAMP_AHEAD_MS_MAX: u64 = 10 * 366 * 24 * 3_600 * 1_000;
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
    /// Applied although stamped by a clock that is far ahead of ours.
    pub(crate) clock_ahead: u64,
    /// Applied without some of its drops: they named other nodes' dots that have not arrived here.
    pub(crate) drops_ignored: u64,
    /// Promises of units that are held from now on.
    pub(crate) promises: u64,
    /// Promises of units that were the node's no more: their carts have no hold.
    pub(crate) promises_refused: u64,
}

impl Applied {
    fn count(&mut self, merged: &Merged) {
        self.applied += 1;
        self.late += u64::from(merged.late);
        self.clock_ahead += u64::from(merged.ahead_ms > CLOCK_AHEAD_MS_MAX);
        self.drops_ignored += u64::from(merged.drops_ignored > 0);
        self.promises += u64::from(merged.kept == Some(Kept::Held));
        self.promises_refused += u64::from(matches!(merged.kept, Some(Kept::Refused(_))));
    }
}

/// Why one operation was not applied. The first word is the reason's name.
#[derive(Debug, thiserror::Error)]
enum Unfit {
    #[error("unreadable: {0}")]
    Unreadable(String),
    #[error("site_unknown: there is no site {0} here")]
    SiteUnknown(SiteId),
    #[error("cart_corrupt: {0}")]
    CartCorrupt(StoreError),
    #[error("cart_too_large: it would have more than {CART_BYTES_MAX} bytes, and nobody could read it")]
    CartTooLarge,
    #[error("foreign_dot: it puts a dot that is not the sender's own, or of an epoch to come")]
    ForeignDot,
    #[error("clock_ahead: it is stamped {0} ms ahead of our clock, which no clock is")]
    ClockAhead(u64),
}

/// What is worth telling of an operation that was applied.
#[derive(Debug, Clone, Copy, Default)]
struct Merged {
    late: bool,
    ahead_ms: u64,
    drops_ignored: usize,
    /// Of a promise of units.
    kept: Option<Kept>,
}

/// A cart as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CartRow {
    pub(crate) state: Vec<u8>,
    pub(crate) digest: Digest,
    pub(crate) order: Option<OrderId>,
    /// A checkout holds it whose payment is not known yet.
    pub(crate) pending: Option<OrderId>,
    /// Its shopper was erased. It is empty and takes nothing; to whoever still has it, it is ordered.
    pub(crate) is_erased: bool,
}

/// One line of the list of carts.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct CartListed {
    pub(crate) cart: CartId,
    pub(crate) digest: Digest,
    pub(crate) order: Option<OrderId>,
    pub(crate) updated_ms: u64,
}

/// The columns that [`read`] reads.
const COLUMNS: &str = "cart, state, digest, order_id, EXISTS (SELECT 1 FROM orders WHERE id = order_id)";

fn read(row: &Row<'_>) -> Result<(CartId, CartRow), StoreError> {
    let order = row.get::<Option<[u8; 16]>>(3)?.map(OrderId);
    let (order, pending) = if row.get(4)? { (order, None) } else { (None, order) };
    let found = CartRow { state: row.get(1)?, digest: Digest(row.get(2)?), order, pending, is_erased: false };
    Ok((CartId(row.get(0)?), found))
}

pub(super) fn find(conn: &dyn Session, site: &SiteId, cart: CartId) -> Result<Option<CartRow>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM cart WHERE site = ?1 AND cart = ?2");
    match conn.find(&sql, params![site.as_str(), cart.0], read)? {
        Some((_, found)) => Ok(Some(found)),
        None => erased(conn, site, cart),
    }
}

/// The same for many carts of a site: a row, or none, for each of them.
fn find_many(
    conn: &dyn Session,
    site: &SiteId,
    carts: &[CartId],
) -> Result<BTreeMap<CartId, Option<CartRow>>, StoreError> {
    let mut found: BTreeMap<_, _> = carts.iter().map(|cart| (*cart, None)).collect();
    for run in many::runs(carts) {
        let sql =
            format!("SELECT {COLUMNS} FROM cart WHERE site = ?1 AND cart IN ({})", many::holes(2, run.len()));
        let site: &dyn Param = &site.as_str();
        let params: Vec<_> = std::iter::once(site).chain(run.iter().map(|cart| &cart.0 as _)).collect();
        conn.each(&sql, &params, &mut |row| {
            let (cart, row) = read(row)?;
            found.insert(cart, Some(row));
            Ok(ControlFlow::Continue(()))
        })?;
    }
    let missing: Vec<(CartId, [u8; 16])> =
        found.iter().filter(|(_, row)| row.is_none()).map(|(cart, _)| (*cart, cart.tag(site).0)).collect();
    for run in many::runs(&missing) {
        let sql =
            format!("SELECT tag FROM cart_erased WHERE site = ?1 AND tag IN ({})", many::holes(2, run.len()));
        let named: &dyn Param = &site.as_str();
        let params: Vec<_> = std::iter::once(named).chain(run.iter().map(|(_, tag)| tag as _)).collect();
        for tag in conn.list::<[u8; 16], Vec<_>>(&sql, &params, |row| row.get(0))? {
            for (cart, _) in run.iter().filter(|(_, of)| *of == tag) {
                found.insert(*cart, Some(closed(site, *cart)));
            }
        }
    }
    Ok(found)
}

/// An operation that comes late must not bring an erased cart back, and what is answered must not be dropped in silence: so
/// it is closed, by an order that nobody finds.
fn erased(conn: &dyn Session, site: &SiteId, cart: CartId) -> Result<Option<CartRow>, StoreError> {
    Ok(is_erased(conn, site, cart)?.then(|| closed(site, cart)))
}

fn closed(site: &SiteId, cart: CartId) -> CartRow {
    let state = Cart::new().to_bytes();
    let (digest, order) = (Digest::of(&state), Some(OrderId(cart.tag(site).0)));
    CartRow { state, digest, order, pending: None, is_erased: true }
}

pub(super) fn is_erased(conn: &dyn Session, site: &SiteId, cart: CartId) -> Result<bool, StoreError> {
    let sql = "SELECT 1 FROM cart_erased WHERE site = ?1 AND tag = ?2";
    conn.exists(sql, params![site.as_str(), cart.tag(site).0])
}

/// Marks the cart as ordered. False: it is already.
pub(super) fn seal(tx: &Tx<'_>, site: &SiteId, cart: CartId, order: OrderId) -> Result<bool, StoreError> {
    let sql = "UPDATE cart SET order_id = ?3 WHERE site = ?1 AND cart = ?2 AND order_id IS NULL";
    Ok(tx.sql.execute(sql, params![site.as_str(), cart.0, order.0])? == 1)
}

/// Takes the seal of a checkout that has not become an order away again.
pub(super) fn unseal(tx: &Tx<'_>, site: &SiteId, cart: CartId, order: OrderId) -> Result<(), StoreError> {
    let sql = "UPDATE cart SET order_id = NULL WHERE site = ?1 AND cart = ?2 AND order_id = ?3";
    tx.sql.execute(sql, params![site.as_str(), cart.0, order.0])?;
    Ok(())
}

/// The carts that a batch touches, decoded once each.
struct OpenCarts<'a> {
    tx: &'a Tx<'a>,
    sender: (NodeId, Epoch),
    carts: BTreeMap<(SiteId, CartId), Open>,
    sites: BTreeMap<SiteId, bool>,
    /// This region was restored a short while ago. Asked only where it matters.
    is_catching_up: Option<bool>,
}

struct Open {
    cart: Cart,
    sealed: bool,
    erased: bool,
    /// Something was merged into it.
    is_changed: bool,
    /// At most so many bytes when encoded.
    bytes: usize,
}

impl Open {
    fn load(row: Option<CartRow>) -> Result<Self, StoreError> {
        match row {
            None => Ok(Self { cart: Cart::new(), sealed: false, erased: false, is_changed: false, bytes: 0 }),
            Some(row) => Ok(Self {
                cart: decode(&row.state)?,
                sealed: row.order.is_some(),
                erased: row.is_erased,
                is_changed: false,
                bytes: row.state.len(),
            }),
        }
    }
}

impl<'a> OpenCarts<'a> {
    const fn new(tx: &'a Tx<'a>, sender: (NodeId, Epoch)) -> Self {
        Self { tx, sender, carts: BTreeMap::new(), sites: BTreeMap::new(), is_catching_up: None }
    }

    /// Looks up, in few round trips, the carts that some operations are about. What cannot be read is left for
    /// [`Self::merge`] to find and to tell.
    fn open(&mut self, operations: &[Result<Operation, String>]) -> Result<(), StoreError> {
        let mut wanted: BTreeMap<&SiteId, BTreeSet<CartId>> = BTreeMap::new();
        for operation in operations {
            if let Ok(Operation::Cart { site, cart, .. }) = operation {
                wanted.entry(site).or_default().insert(*cart);
            }
        }
        for (site, carts) in wanted {
            // Whoever names a site that is not here is refused before he is asked which cart.
            if !self.knows_site(site)? {
                continue;
            }
            let is_new = |cart: &CartId| !self.carts.contains_key(&(site.clone(), *cart));
            let new: Vec<CartId> = carts.into_iter().filter(is_new).collect();
            if self.carts.len() + new.len() > CARTS_OPEN_MAX {
                self.write()?;
            }
            for (cart, row) in find_many(self.tx.sql, site, &new)? {
                if let Ok(open) = Open::load(row) {
                    self.carts.insert((site.clone(), cart), open);
                }
            }
        }
        Ok(())
    }

    /// One operation, of so many bytes as it came.
    fn take_in(
        &mut self,
        operation: Result<Operation, String>,
        bytes: usize,
    ) -> Result<Result<Merged, Unfit>, StoreError> {
        match operation {
            Ok(Operation::Cart { site, cart, delta, .. }) => self.merge(site, cart, delta, bytes),
            Ok(Operation::Reserve { site, cart, hold, sku, units, grant, at_ms }) => {
                if !self.knows_site(&site)? {
                    return Ok(Err(Unfit::SiteUnknown(site)));
                }
                let node = self.sender.0.0;
                if is_erased(self.tx.sql, &site, cart)? {
                    escrow::take_back(self.tx, node, (&site, &sku), (hold, units), (grant, at_ms))?;
                    return Ok(Ok(Merged { late: true, ..Merged::default() }));
                }
                let promise = (&site, cart, &sku);
                let kept = escrow::take_in(self.tx, node, promise, (hold, units), (grant, at_ms))?;
                Ok(Ok(Merged { kept: Some(kept), ..Merged::default() }))
            }
            Ok(Operation::Release { site, cart, holds, .. }) => {
                escrow::release(self.tx, &site, cart, &holds)?;
                Ok(Ok(Merged::default()))
            }
            Err(why) => Ok(Err(Unfit::Unreadable(why))),
        }
    }

    fn knows_site(&mut self, site: &SiteId) -> Result<bool, StoreError> {
        if let Some(known) = self.sites.get(site) {
            return Ok(*known);
        }
        let known = super::site::exists(self.tx.sql, site)?;
        self.sites.insert(site.clone(), known);
        Ok(known)
    }

    /// Merges one operation. The inner error is the operation's own, and it alone is buried for it: a cart that nobody
    /// can read must not hold up every other cart of its node.
    ///
    /// A node's certificate lets it speak for itself. Dots of other nodes that it puts are refused. Dots of others that
    /// it drops and we have not seen are left out, and the rest is applied: an honest node has other nodes' dots from
    /// here, so only a region that was restored from a backup meets such a drop in good faith. While that one waits for what
    /// the nodes have kept, it takes such a drop on trust: what it drops is on its way from another node, and what a shopper
    /// has taken out of a cart must not come back.
    fn merge(
        &mut self,
        site: SiteId,
        id: CartId,
        mut delta: Delta,
        bytes: usize,
    ) -> Result<Result<Merged, Unfit>, StoreError> {
        let (node, epoch) = self.sender;
        if !delta.is_by(node, epoch) {
            return Ok(Err(Unfit::ForeignDot));
        }
        if !self.knows_site(&site)? {
            return Ok(Err(Unfit::SiteUnknown(site)));
        }
        if self.carts.len() >= CARTS_OPEN_MAX && !self.carts.contains_key(&(site.clone(), id)) {
            self.write()?;
        }
        let row = |site: &SiteId| find(self.tx.sql, site, id);
        let open = match self.carts.entry((site, id)) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(place) => match Open::load(row(&place.key().0)?) {
                Ok(open) => place.insert(open),
                Err(error) => return Ok(Err(Unfit::CartCorrupt(error))),
            },
        };
        if open.erased {
            return Ok(Ok(Merged { late: true, ..Merged::default() }));
        }
        let stamp = delta.newest().unwrap_or_default();
        let ahead_ms = stamp.ms().saturating_sub(self.tx.now_ms);
        // Who answers a stamp that we have let in goes one beyond it, and is no more to blame than we are.
        let follows = || open.cart.newest().is_some_and(|seen| stamp.0 <= seen.0.saturating_add(1));
        if ahead_ms > STAMP_AHEAD_MS_MAX && !follows() {
            return Ok(Err(Unfit::ClockAhead(ahead_ms)));
        }
        let grown = open.bytes + GROWTH_PER_DELTA_BYTE * bytes;
        if grown > CART_BYTES_MAX {
            return Ok(Err(Unfit::CartTooLarge));
        }
        open.bytes = grown;
        let mut failed = None;
        let drops_ignored = delta.retain_drops(|dot| {
            dot.is_by(node, epoch)
                || open.cart.has_seen(dot)
                || *self.is_catching_up.get_or_insert_with(|| {
                    restored::is_catching_up(self.tx).map_err(|error| failed = Some(error)).unwrap_or(false)
                })
        });
        if let Some(error) = failed {
            return Err(error);
        }
        open.cart.apply(&delta);
        open.is_changed = true;
        Ok(Ok(Merged { late: open.sealed, ahead_ms, drops_ignored, kept: None }))
    }

    fn write(&mut self) -> Result<(), StoreError> {
        const COLUMNS: usize = 5;
        let carts = std::mem::take(&mut self.carts).into_iter().filter(|(_, open)| open.is_changed);
        let rows: Vec<_> = carts
            .map(|((site, id), open)| {
                let state = open.cart.to_bytes();
                // What `Cart::digest` is, without encoding the cart a second time.
                let digest = Digest::of(&state);
                (site, id, state, digest)
            })
            .collect();
        for run in many::runs(&rows) {
            let sql = format!(
                "INSERT INTO cart (site, cart, state, digest, updated_ms) VALUES {}
                 ON CONFLICT (site, cart) DO UPDATE
                 SET state = excluded.state, digest = excluded.digest, updated_ms = excluded.updated_ms",
                many::rows(run.len(), COLUMNS)
            );
            let sites: Vec<&str> = run.iter().map(|(site, ..)| site.as_str()).collect();
            let mut params: Vec<&dyn Param> = Vec::with_capacity(run.len() * COLUMNS);
            for (site, (_, id, state, digest)) in sites.iter().zip(run) {
                params.extend(params![*site, id.0, *state, digest.0, self.tx.now_ms]);
            }
            self.tx.sql.execute(&sql, &params)?;
        }
        Ok(())
    }
}

fn decoded(body: &[u8]) -> Result<Operation, String> {
    Operation::from_bytes(body).map_err(|error| error.to_string())
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
    // Where an older version has left off, a new fold begins: it is compared with itself only.
    let mut fold = mark.fold.unwrap_or(Fold::EMPTY);
    let sender = (NodeId(node), Epoch(epoch));
    let mut carts = OpenCarts::new(tx, sender);
    let mut ahead_ms_most = 0;
    let seen = mark.hwm.saturating_add(1).saturating_sub(first_seq).min(ops.len() as u64);
    outcome.skipped = seen;
    let fresh = ops.get(usize::try_from(seen).unwrap_or(usize::MAX)..).unwrap_or_default();
    let mut numbers = first_seq + seen..;
    // No window is about more carts than may be open.
    for window in fresh.chunks(CARTS_OPEN_MAX) {
        let operations: Vec<_> = window.iter().map(|body| decoded(body)).collect();
        carts.open(&operations)?;
        for ((body, seq), operation) in window.iter().zip(numbers.by_ref()).zip(operations) {
            outcome.hwm = seq;
            fold = fold.with(body);
            let reason = match carts.take_in(operation, body.len())? {
                Ok(merged) => {
                    outcome.count(&merged);
                    if let Some(Kept::Refused(reason)) = merged.kept {
                        tracing::warn!(
                            node,
                            epoch,
                            seq,
                            reason,
                            "a node has promised units that it does not have"
                        );
                    }
                    ahead_ms_most = merged.ahead_ms.max(ahead_ms_most);
                    continue;
                }
                Err(unfit) => unfit.to_string(),
            };
            outcome.dead += 1;
            tracing::error!(
                node,
                epoch,
                seq,
                reason,
                "an operation that a node accepted cannot be applied: kept as a dead letter"
            );
            dead_letter::bury(tx, LetterId { node, epoch, seq }, body, &reason)?;
        }
    }
    carts.write()?;
    // Once a batch: a node with a wrong clock is wrong in every operation.
    if outcome.clock_ahead > 0 {
        tracing::warn!(
            node,
            epoch,
            operations = outcome.clock_ahead,
            ahead_ms = ahead_ms_most,
            "a node's stamps are far ahead of this clock: one of the two is wrong"
        );
    }
    if outcome.drops_ignored > 0 {
        tracing::warn!(
            node,
            epoch,
            operations = outcome.drops_ignored,
            "a node takes away what never arrived here: it is forging, or this region was restored from a backup"
        );
    }
    if outcome.hwm > mark.hwm {
        cursor::advance(tx, node, epoch, outcome.hwm, fold)?;
    }
    Ok(Apply::Applied(outcome))
}

/// One operation on its own: one that could not be applied when it came. The inner error is the reason why it still cannot.
pub(super) fn apply_one(
    tx: &Tx<'_>,
    node: u32,
    epoch: u32,
    body: &[u8],
) -> Result<Result<(), String>, StoreError> {
    let mut carts = OpenCarts::new(tx, (NodeId(node), Epoch(epoch)));
    match carts.take_in(decoded(body), body.len())? {
        Ok(_) => carts.write().map(Ok),
        Err(unfit) => Ok(Err(unfit.to_string())),
    }
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
            // The empty blob sorts before every other.
            let after = after.map_or(Vec::new(), |cart| cart.0.to_vec());
            conn.list(sql, params![site.as_str(), after, limit.min(CARTS_LISTED_MAX)], |row| {
                Ok(CartListed {
                    cart: CartId(row.get(0)?),
                    digest: Digest(row.get(1)?),
                    order: row.get::<Option<[u8; 16]>>(2)?.map(OrderId),
                    updated_ms: row.get(3)?,
                })
            })
        })
        .await
    }
}
