//! Table `stock` as a ledger, and `stock_grant`, `stock_hold` and `stock_node`: who was promised which units, and who may promise.
//!
//! What may move where is [`souk_replication::escrow`]'s; here each move is one transaction with what causes it: an order, a
//! shopper's wish, an operation of a node, the end of a hold. A row of `stock` is written whole, and a CHECK of its table says
//! once more that every unit is in one place.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use souk_commerce::call::{Held, Promised, StockQuestion, Want};
use souk_commerce::id::{CartId, GrantId, HoldId, SiteId, Sku};
use souk_commerce::site::{GRANT_MINUTES_MAX, RESERVATION_MINUTES_MAX, Reservations};
use souk_replication::escrow::{Ledger, NotEnough, UNITS_GRANTED_MAX};

use super::engine::{Param, Row, Session, params};
use super::goods::{self, Available};
use super::{Decision, Store, StoreError, Tx, cart, restored, site};

mod lending;
#[cfg(test)]
mod tests;

pub(crate) use lending::StockAnswer;
use lending::{answer, mark_of, read_grants};

/// What the region waits before it lets go of what a node that is away may have promised, beyond the longest of those
/// promises: its own clock may have been set ahead by so much meanwhile.
const MARGIN_MS: u64 = 60_000;
/// Grants and holds that ended are kept so long, grants for a day less: an operation that comes again must find its hold, or no
/// grant to take from.
const HOLDS_KEPT_MS: u64 = 8 * 86_400_000;
const GRANTS_KEPT_MS: u64 = 7 * 86_400_000;
/// The longest that any shop promises and lends.
const HOLD_MS_MAX: u64 = RESERVATION_MINUTES_MAX as u64 * 60_000;
const GRANT_MS_MAX: u64 = GRANT_MINUTES_MAX as u64 * 60_000;
/// Rows of one pass over what has ended: the writer is not held up for long.
const PASS_MAX: usize = 100;
/// Most grants in a report about one product: as many as a region has nodes.
const GRANTS_LISTED_MAX: usize = 1_000;

fn corrupt(detail: impl std::fmt::Display) -> StoreError {
    StoreError::corrupt("stock", detail)
}

/// Units that rows say are somewhere, and the ledger does not have there.
fn not_there(error: NotEnough) -> StoreError {
    corrupt(error)
}

/// A row of `stock`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct StockRow {
    pub(super) ledger: Ledger,
    pub(super) is_counted: bool,
    version: u64,
}

impl StockRow {
    pub(super) fn available(&self) -> Available {
        self.is_counted.then_some(self.ledger.available)
    }

    /// What nodes show of it: what a shopper may still get, from the region or from a node.
    pub(super) fn open(&self) -> Available {
        self.is_counted.then(|| self.ledger.open())
    }
}

pub(super) fn load(conn: &dyn Session, site: &SiteId, sku: &Sku) -> Result<Option<StockRow>, StoreError> {
    let sql = "SELECT available, received, sold, reserved, granted, short, counted, version
               FROM stock WHERE site = ?1 AND sku = ?2";
    conn.find(sql, params![site.as_str(), sku.as_str()], |row| {
        let available: Available = row.get(0)?;
        let ledger = Ledger {
            available: available.unwrap_or(0),
            received: row.get(1)?,
            sold: row.get(2)?,
            reserved: row.get(3)?,
            granted: row.get(4)?,
            short: row.get(5)?,
            counted: row.get(6)?,
        };
        Ok(StockRow { ledger, is_counted: available.is_some(), version: row.get(7)? })
    })
}

/// Writes a row whole, and tells the nodes if what they show of it changes.
pub(super) fn save(
    tx: &Tx<'_>,
    site: &SiteId,
    sku: &Sku,
    before: Option<&StockRow>,
    mut after: StockRow,
) -> Result<(), StoreError> {
    if !after.is_counted {
        // Nobody counts what is there; what is promised and lent still comes back.
        let Ledger { sold, reserved, granted, .. } = after.ledger;
        after.ledger =
            Ledger { sold, reserved, granted, received: sold + reserved + granted, ..Ledger::default() };
    }
    let hint = goods::hint(Some(after.open()));
    if before.is_none() || goods::hint(before.map(StockRow::open)) != hint {
        after.version = goods::tell_stock(tx, site, sku, hint)?;
    }
    let sql =
        "INSERT INTO stock (site, sku, available, received, sold, reserved, granted, short, counted, version)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
               ON CONFLICT (site, sku) DO UPDATE SET available = ?3, received = ?4, sold = ?5, reserved = ?6,
                   granted = ?7, short = ?8, counted = ?9, version = ?10";
    let Ledger { received, sold, reserved, granted, short, counted, .. } = after.ledger;
    tx.sql.execute(
        sql,
        params![
            site.as_str(),
            sku.as_str(),
            after.available(),
            received,
            sold,
            reserved,
            granted,
            short,
            counted,
            after.version
        ],
    )?;
    Ok(())
}

/// Moves units of a product that has a row.
fn change(
    tx: &Tx<'_>,
    site: &SiteId,
    sku: &Sku,
    change: impl FnOnce(&mut Ledger) -> Result<(), NotEnough>,
) -> Result<(), StoreError> {
    let before = load(tx.sql, site, sku)?.ok_or_else(|| corrupt("units of a product without a row"))?;
    let mut after = before;
    change(&mut after.ledger).map_err(not_there)?;
    save(tx, site, sku, Some(&before), after)
}

/// A hold that has not ended.
#[derive(Debug)]
struct HoldRow {
    id: HoldId,
    site: SiteId,
    sku: Sku,
    units: u64,
    until_ms: u64,
}

const HOLD: &str = "SELECT id, site, sku, units, until_ms FROM stock_hold";

fn named<T: std::str::FromStr<Err: std::fmt::Display>>(row: &Row<'_>, index: usize) -> Result<T, StoreError> {
    row.get::<String>(index)?.parse().map_err(corrupt)
}

fn read_holds(conn: &dyn Session, rest: &str, params: &[&dyn Param]) -> Result<Vec<HoldRow>, StoreError> {
    conn.list(&format!("{HOLD} {rest}"), params, |row| {
        Ok(HoldRow {
            id: HoldId(row.get(0)?),
            site: named(row, 1)?,
            sku: named(row, 2)?,
            units: row.get(3)?,
            until_ms: row.get(4)?,
        })
    })
}

fn holds_of(conn: &dyn Session, site: &SiteId, cart: CartId) -> Result<Vec<HoldRow>, StoreError> {
    read_holds(
        conn,
        "WHERE site = ?1 AND cart = ?2 AND ended_ms IS NULL ORDER BY id",
        params![site.as_str(), cart.0],
    )
}

fn insert_hold(
    tx: &Tx<'_>,
    (site, cart, sku): (&SiteId, CartId, &Sku),
    (id, units): (HoldId, u64),
    grant: Option<GrantId>,
    (state, until_ms, ended_ms): (&str, u64, Option<u64>),
) -> Result<(), StoreError> {
    let sql = "INSERT INTO stock_hold (id, site, cart, sku, units, grant_id, state, until_ms, ended_ms)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
    let grant = grant.map(|grant| grant.0);
    tx.sql.execute(
        sql,
        params![id.0, site.as_str(), cart.0, sku.as_str(), units, grant, state, until_ms, ended_ms],
    )?;
    Ok(())
}

fn end_hold(tx: &Tx<'_>, id: HoldId, state: &str) -> Result<(), StoreError> {
    let sql = "UPDATE stock_hold SET state = ?2, ended_ms = ?3 WHERE id = ?1 AND ended_ms IS NULL";
    tx.sql.execute(sql, params![id.0, state, tx.now_ms])?;
    Ok(())
}

/// Sells units to whoever has a cart: those that the cart was promised first, then what is free. What it was promised beyond
/// that is free again. Answers what is not counted; `Err`: of this product there are only so many, and nothing may be kept
/// of what was done.
pub(super) fn sell(
    tx: &Tx<'_>,
    site: &SiteId,
    cart: CartId,
    units: BTreeMap<Sku, u64>,
) -> Result<Result<Vec<Sku>, (Sku, u64)>, StoreError> {
    let holds = holds_of(tx.sql, site, cart)?;
    let mut promised: BTreeMap<Sku, u64> = BTreeMap::new();
    for hold in &holds {
        *promised.entry(hold.sku.clone()).or_default() += hold.units;
    }
    let mut uncounted = Vec::new();
    for (sku, wanted) in units {
        let Some(before) = load(tx.sql, site, &sku)?.filter(|row| row.is_counted) else {
            uncounted.push(sku);
            continue;
        };
        let mut after = before;
        let own = promised.get(&sku).copied().unwrap_or(0).min(wanted);
        after.ledger.sell_reserved(own).map_err(not_there)?;
        if let Err(NotEnough { there }) = after.ledger.sell(wanted - own) {
            return Ok(Err((sku, there + own)));
        }
        save(tx, site, &sku, Some(&before), after)?;
        promised.entry(sku).and_modify(|left| *left -= own);
    }
    for (sku, left) in promised.into_iter().filter(|(_, left)| *left > 0) {
        change(tx, site, &sku, |ledger| ledger.release(left))?;
    }
    for hold in holds {
        end_hold(tx, hold.id, "sold")?;
    }
    Ok(Ok(uncounted))
}

/// Promises units that no node has to a cart: each product wholly, or not at all.
fn reserve(
    tx: &Tx<'_>,
    site: &SiteId,
    cart: CartId,
    known: &BTreeSet<HoldId>,
    wants: &[Want],
) -> Result<Option<Vec<Promised>>, StoreError> {
    let Some(row) = site::find(tx.sql, site)? else { return Ok(None) };
    let terms: Reservations = row.settings.reservations;
    if !terms.enabled || cart::is_erased(tx.sql, site, cart)? {
        return Ok(None);
    }
    let hold_ms = terms.hold_ms();
    let mut found = holds_of(tx.sql, site, cart)?;
    found.retain(|hold| !known.contains(&hold.id));
    let mut promised = Vec::with_capacity(wants.len());
    for Want { hold, sku, units } in wants {
        let (hold, units) = (*hold, *units);
        let mut answer = Promised { sku: sku.clone(), holds: Vec::new(), uncounted: false, available: 0 };
        let Some(before) = load(tx.sql, site, &answer.sku)?.filter(|row| row.is_counted) else {
            answer.uncounted = true;
            promised.push(answer);
            continue;
        };
        let mut holds: Vec<Held> = found
            .iter()
            .filter(|hold| hold.sku == answer.sku)
            .map(|hold| Held {
                hold: hold.id,
                units: hold.units,
                lives_ms: hold.until_ms.saturating_sub(tx.now_ms),
            })
            .collect();
        let more = units.saturating_sub(holds.iter().map(|hold| hold.units).sum());
        let mut after = before;
        match after.ledger.reserve(more) {
            Err(NotEnough { there }) => answer.available = there,
            Ok(()) => {
                if more > 0 && !is_known(tx.sql, hold)? {
                    save(tx, site, &answer.sku, Some(&before), after)?;
                    let until_ms = tx.now_ms.saturating_add(hold_ms);
                    insert_hold(tx, (site, cart, &answer.sku), (hold, more), None, ("held", until_ms, None))?;
                    holds.push(Held { hold, units: more, lives_ms: hold_ms });
                }
                answer.holds = holds;
            }
        }
        promised.push(answer);
    }
    Ok(Some(promised))
}

fn is_known(conn: &dyn Session, hold: HoldId) -> Result<bool, StoreError> {
    conn.exists("SELECT 1 FROM stock_hold WHERE id = ?1", params![hold.0])
}

/// What became of a promise that a node has made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    Held,
    /// It has come before.
    Repeated,
    /// Its units are not the node's any more. The cart has no hold, and its checkout takes what is free.
    Refused(&'static str),
}

/// Takes in what a node has promised out of its grant, in the transaction that moves the mark past it.
pub(super) fn take_in(
    tx: &Tx<'_>,
    node: u32,
    (site, cart, sku): (&SiteId, CartId, &Sku),
    (hold, units): (HoldId, u64),
    (grant, at_ms): (GrantId, u64),
) -> Result<Kept, StoreError> {
    if is_known(tx.sql, hold)? {
        return Ok(Kept::Repeated);
    }
    let found = read_grants(tx.sql, "WHERE id = ?1", params![grant.0])?.pop();
    let refused = match found {
        None if may_be_mended(tx, units, at_ms)? => {
            if mend(tx, (site, cart, sku), (hold, units), grant)? {
                return Ok(Kept::Held);
            }
            "grant_forgotten"
        }
        None => "grant_unknown",
        Some(row) if (row.node, &row.site, &row.sku) != (node, site, sku) => "grant_of_another",
        Some(row) if row.ended_ms.is_some() => "grant_ended",
        Some(mut row) => {
            if units > 0 && row.grant.take(units) {
                row.save(tx)?;
                change(tx, site, sku, |ledger| ledger.consume(units))?;
                // From now and not from when it was made: the two clocks may differ, and a promise is kept rather too long.
                let until_ms = tx.now_ms.saturating_add(row.hold_ms);
                insert_hold(tx, (site, cart, sku), (hold, units), Some(grant), ("held", until_ms, None))?;
                return Ok(Kept::Held);
            }
            "grant_exceeded"
        }
    };
    // As many as a row holds: what a node says that is wrong must not stop its outbox.
    let units = units.min(UNITS_GRANTED_MAX);
    insert_hold(tx, (site, cart, sku), (hold, units), Some(grant), ("refused", tx.now_ms, Some(tx.now_ms)))?;
    Ok(Kept::Refused(refused))
}

/// The same for a cart whose shopper was erased while this was on its way: what the node has taken out of its grant is free
/// again, and the number of the cart, which is the right to it, is not written down.
pub(super) fn take_back(
    tx: &Tx<'_>,
    node: u32,
    (site, sku): (&SiteId, &Sku),
    (hold, units): (HoldId, u64),
    promised: (GrantId, u64),
) -> Result<(), StoreError> {
    let nobody = CartId(hold.0);
    take_in(tx, node, (site, nobody, sku), (hold, units), promised)?;
    give_back(tx, site, nobody)
}

/// A grant that nobody knows: either it ended more than a week ago, or this region was restored from a backup that is older
/// than the grant. Then the shopper was promised units in good faith, unless that promise is long over.
fn may_be_mended(tx: &Tx<'_>, units: u64, at_ms: u64) -> Result<bool, StoreError> {
    let lasts_ms = HOLD_MS_MAX + MARGIN_MS;
    Ok(units > 0 && tx.now_ms.saturating_sub(at_ms) < lasts_ms && restored::is_catching_up(tx)?)
}

/// The backup has the units of a forgotten grant where they were before it: among those that are free. As many are promised
/// now as the node has promised, if they are still there.
fn mend(
    tx: &Tx<'_>,
    (site, cart, sku): (&SiteId, CartId, &Sku),
    (hold, units): (HoldId, u64),
    grant: GrantId,
) -> Result<bool, StoreError> {
    let Some(before) = load(tx.sql, site, sku)?.filter(|row| row.is_counted) else { return Ok(false) };
    let mut after = before;
    if after.ledger.reserve(units).is_err() {
        return Ok(false);
    }
    save(tx, site, sku, Some(&before), after)?;
    let until_ms = tx.now_ms.saturating_add(HOLD_MS_MAX);
    insert_hold(tx, (site, cart, sku), (hold, units), Some(grant), ("held", until_ms, None))?;
    Ok(true)
}

/// A shopper gives up what a cart was promised.
pub(super) fn release(tx: &Tx<'_>, site: &SiteId, cart: CartId, holds: &[HoldId]) -> Result<(), StoreError> {
    for hold in holds_of(tx.sql, site, cart)?.into_iter().filter(|hold| holds.contains(&hold.id)) {
        change(tx, site, &hold.sku, |ledger| ledger.release(hold.units))?;
        end_hold(tx, hold.id, "released")?;
    }
    Ok(())
}

/// Ends whatever a cart was promised and has not bought.
pub(super) fn give_back(tx: &Tx<'_>, site: &SiteId, cart: CartId) -> Result<(), StoreError> {
    let held: Vec<HoldId> = holds_of(tx.sql, site, cart)?.into_iter().map(|hold| hold.id).collect();
    release(tx, site, cart, &held)
}

/// What has come to its end in one pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Ended {
    /// Holds whose time was over.
    pub(crate) expired: u64,
    /// Grants of which everything has come.
    pub(crate) returned: u64,
    /// Grants of nodes that have not come back, and whose promises are all over.
    pub(crate) lapsed: u64,
    /// Rows of the past, taken away.
    pub(crate) swept: u64,
    /// There may be more to do at once.
    pub(crate) is_full: bool,
}

/// Grants that are back, as far as a query can say; [`souk_replication::escrow::Grant::is_back`] decides. `?1`: now, `?2`: the margin.
const BACK: &str = "WHERE ended_ms IS NULL AND (expires_ms + hold_ms + ?2 <= ?1 OR EXISTS (
                        SELECT 1 FROM cursor WHERE cursor.node = stock_grant.node AND cursor.epoch = stock_grant.closed_epoch
                        AND cursor.sealed = 0 AND cursor.hwm >= stock_grant.closed_seq))
                    ORDER BY id LIMIT ?3";

fn is_due(conn: &dyn Session, now_ms: u64) -> Result<bool, StoreError> {
    let sql = "SELECT 1 FROM stock_hold WHERE ended_ms IS NULL AND until_ms <= ?1 LIMIT 1";
    if conn.exists(sql, params![now_ms])? {
        return Ok(true);
    }
    if !read_grants(conn, BACK, params![now_ms, MARGIN_MS, 1])?.is_empty() {
        return Ok(true);
    }
    let sql = "SELECT 1 FROM stock_hold WHERE ended_ms < ?1 LIMIT 1";
    conn.exists(sql, params![now_ms.saturating_sub(HOLDS_KEPT_MS)])
}

fn end(tx: &Tx<'_>, now_ms: u64) -> Result<Ended, StoreError> {
    let mut ended = Ended::default();
    // Nothing lasts longer than this from now: what says so was written by a clock that was ahead.
    let sql = "UPDATE stock_hold SET until_ms = ?1 WHERE ended_ms IS NULL AND until_ms > ?1";
    tx.sql.execute(sql, params![now_ms.saturating_add(HOLD_MS_MAX)])?;
    let sql = "UPDATE stock_grant SET expires_ms = ?1 WHERE ended_ms IS NULL AND expires_ms > ?1";
    tx.sql.execute(sql, params![now_ms.saturating_add(GRANT_MS_MAX)])?;
    let due = "WHERE ended_ms IS NULL AND until_ms <= ?1 ORDER BY until_ms, id LIMIT ?2";
    let holds = read_holds(tx.sql, due, params![now_ms, PASS_MAX])?;
    ended.is_full = holds.len() == PASS_MAX;
    for hold in holds {
        change(tx, &hold.site, &hold.sku, |ledger| ledger.release(hold.units))?;
        end_hold(tx, hold.id, "expired")?;
        ended.expired += 1;
    }
    let back = read_grants(tx.sql, BACK, params![now_ms, MARGIN_MS, PASS_MAX])?;
    ended.is_full |= back.len() == PASS_MAX;
    for mut row in back {
        if !row.grant.is_back(mark_of(tx.sql, row.node)?, row.terms(), now_ms) {
            continue;
        }
        let left = row.grant.left();
        change(tx, &row.site, &row.sku, |ledger| ledger.reclaim(left))?;
        row.ended_ms = Some(now_ms);
        row.save(tx)?;
        *(if row.grant.closed.is_some() { &mut ended.returned } else { &mut ended.lapsed }) += 1;
    }
    for (table, kept_ms) in [("stock_grant", GRANTS_KEPT_MS), ("stock_hold", HOLDS_KEPT_MS)] {
        let sql = format!(
            "DELETE FROM {table} WHERE id IN (SELECT id FROM {table} WHERE ended_ms < ?1 ORDER BY ended_ms, id LIMIT ?2)"
        );
        let before_ms = now_ms.saturating_sub(kept_ms);
        ended.swept += tx.sql.execute(&sql, params![before_ms, PASS_MAX])? as u64;
    }
    Ok(ended)
}

/// Where a product's units are, for its merchant.
#[derive(Debug, Serialize)]
pub(crate) struct StockReport {
    pub(crate) counted: bool,
    pub(crate) received: u64,
    pub(crate) sold: u64,
    pub(crate) reserved: u64,
    pub(crate) granted: u64,
    pub(crate) available: Available,
    /// What is not sold: available, reserved and granted.
    pub(crate) unsold: u64,
    /// Units that were counted away while they were promised or lent: so many do not become available when they come back.
    pub(crate) short: u64,
    pub(crate) grants: Vec<GrantReport>,
    pub(crate) holds: u64,
}

#[derive(Debug, Serialize)]
pub(crate) struct GrantReport {
    grant: GrantId,
    node: u32,
    units: u64,
    consumed: u64,
    expires_ms: u64,
    /// The node has given it up, and operations of it may be on their way.
    closed: bool,
}

/// Over all products.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct StockTotals {
    pub(crate) grants: u64,
    pub(crate) granted: u64,
    pub(crate) holds: u64,
    pub(crate) reserved: u64,
}

impl Store {
    /// Promises units to a cart. None: the site does not do that, or is unknown, or the cart's shopper was erased.
    pub(crate) async fn reserve_stock(
        &self,
        site: SiteId,
        cart: CartId,
        known: Vec<HoldId>,
        wants: Vec<Want>,
    ) -> Result<Option<Vec<Promised>>, StoreError> {
        let known = known.into_iter().collect();
        self.write(move |tx| reserve(tx, &site, cart, &known, &wants).map(Decision::Keep)).await
    }

    pub(crate) async fn answer_on_stock(
        &self,
        node: u32,
        question: StockQuestion,
        new_id: impl Fn() -> GrantId + Send + 'static,
    ) -> Result<StockAnswer, StoreError> {
        self.write(move |tx| answer(tx, node, &question, &new_id).map(Decision::Keep)).await
    }

    /// Ends what has come to its end, a bounded number at a time; writes nothing if that is nothing.
    pub(crate) async fn end_stock(&self, now_ms: u64) -> Result<Ended, StoreError> {
        if !self.read(move |conn| is_due(conn, now_ms)).await? {
            return Ok(Ended::default());
        }
        self.write(move |tx| end(tx, now_ms).map(Decision::Keep)).await
    }

    /// None: nothing was ever said about this product's stock.
    pub(crate) async fn stock_report(
        &self,
        site: SiteId,
        sku: Sku,
    ) -> Result<Option<StockReport>, StoreError> {
        self.read(move |conn| {
            let Some(row) = load(conn, &site, &sku)? else { return Ok(None) };
            let rest = "WHERE site = ?1 AND sku = ?2 AND ended_ms IS NULL ORDER BY node, id LIMIT ?3";
            let of = params![site.as_str(), sku.as_str(), GRANTS_LISTED_MAX];
            let grants = read_grants(conn, rest, of)?.into_iter().map(|row| GrantReport {
                grant: row.id,
                node: row.node,
                units: row.grant.units,
                consumed: row.grant.consumed,
                expires_ms: row.grant.expires_ms,
                closed: row.grant.closed.is_some(),
            });
            let sql = "SELECT count(*) FROM stock_hold WHERE site = ?1 AND sku = ?2 AND ended_ms IS NULL";
            let of = params![site.as_str(), sku.as_str()];
            let holds = conn.one(sql, of, |row| row.get(0))?;
            let Ledger { received, sold, reserved, granted, short, .. } = row.ledger;
            Ok(Some(StockReport {
                counted: row.is_counted,
                received,
                sold,
                reserved,
                granted,
                available: row.available(),
                unsold: row.ledger.unsold(),
                short,
                grants: grants.collect(),
                holds,
            }))
        })
        .await
    }

    pub(crate) async fn stock_totals(&self) -> Result<StockTotals, StoreError> {
        self.read(|conn| {
            let sql = "SELECT count(*), CAST(coalesce(sum(units - consumed), 0) AS BIGINT)
                       FROM stock_grant WHERE ended_ms IS NULL";
            let (grants, granted) = conn.one(sql, &[], |row| Ok((row.get(0)?, row.get(1)?)))?;
            let sql = "SELECT count(*), CAST(coalesce(sum(units), 0) AS BIGINT)
                       FROM stock_hold WHERE ended_ms IS NULL";
            let (holds, reserved) = conn.one(sql, &[], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(StockTotals { grants, granted, holds, reserved })
        })
        .await
    }
}
