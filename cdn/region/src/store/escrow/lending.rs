//! Table `stock_grant`: which units a node may promise, and the answer to its question for some.
//!
//! A node says what it has and what it sells fast; it is answered with all that it has from then on. How much that is, is
//! [`souk_replication::escrow`]'s to say. When a grant has come home is the business of whoever ends it ([`super`]).

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use souk_commerce::call::{Granted, STOCK_PRODUCTS_MAX, StockQuestion};
use souk_commerce::id::{GrantId, SiteId, Sku};
use souk_commerce::site::Reservations;
use souk_replication::NodeState;
use souk_replication::escrow::{Closed, Grant, HOT_PER_MINUTE, Terms, more_for};

use super::{MARGIN_MS, StockRow, load, named, not_there, save};
use crate::store::engine::{Param, Session, params};
use crate::store::{StoreError, Tx, site};

/// A grant is prolonged once this part of its life is over.
const PROLONGED_PARTS: u64 = 10;

/// A row of `stock_grant`.
#[derive(Debug, Clone)]
pub(super) struct GrantRow {
    pub(super) id: GrantId,
    pub(super) node: u32,
    pub(super) site: SiteId,
    pub(super) sku: Sku,
    pub(super) grant: Grant,
    pub(super) hold_ms: u64,
    pub(super) ended_ms: Option<u64>,
}

const GRANT: &str =
    "SELECT id, node, site, sku, units, consumed, expires_ms, closed_epoch, closed_seq, hold_ms, ended_ms
                     FROM stock_grant";

pub(super) fn read_grants(
    conn: &dyn Session,
    rest: &str,
    params: &[&dyn Param],
) -> Result<Vec<GrantRow>, StoreError> {
    conn.list(&format!("{GRANT} {rest}"), params, |row| {
        let closed = match (row.get(7)?, row.get(8)?) {
            (Some(epoch), Some(seq)) => Some(Closed { epoch, seq }),
            _ => None,
        };
        Ok(GrantRow {
            id: GrantId(row.get(0)?),
            node: row.get(1)?,
            site: named(row, 2)?,
            sku: named(row, 3)?,
            grant: Grant { units: row.get(4)?, consumed: row.get(5)?, expires_ms: row.get(6)?, closed },
            hold_ms: row.get(9)?,
            ended_ms: row.get(10)?,
        })
    })
}

impl GrantRow {
    pub(super) fn save(&self, tx: &Tx<'_>) -> Result<(), StoreError> {
        let sql = "INSERT INTO stock_grant (id, node, site, sku, units, consumed, expires_ms, closed_epoch, closed_seq, hold_ms, ended_ms)
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11) ON CONFLICT (id) DO UPDATE
                   SET units = ?5, consumed = ?6, expires_ms = ?7, closed_epoch = ?8, closed_seq = ?9, hold_ms = ?10, ended_ms = ?11";
        let Grant { units, consumed, expires_ms, closed } = self.grant;
        tx.sql.execute(
            sql,
            params![
                self.id.0,
                self.node,
                self.site.as_str(),
                self.sku.as_str(),
                units,
                consumed,
                expires_ms,
                closed.map(|closed| closed.epoch),
                closed.map(|closed| closed.seq),
                self.hold_ms,
                self.ended_ms
            ],
        )?;
        Ok(())
    }

    pub(super) const fn terms(&self) -> Terms {
        Terms { life_ms: 0, hold_ms: self.hold_ms, margin_ms: MARGIN_MS }
    }

    fn told(&self, lives_ms: u64) -> Granted {
        Granted {
            grant: self.id,
            site: self.site.clone(),
            sku: self.sku.clone(),
            units: self.grant.units,
            lives_ms,
            hold_ms: self.hold_ms,
        }
    }
}

/// The answer to a node's question about lent stock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StockAnswer {
    /// The question speaks of an epoch that is not the node's any more, or not yet.
    NotYet,
    /// A later question was answered: its number.
    Old(u64),
    /// All the grants that the node has from now on.
    Grants(Vec<Granted>),
}

pub(super) fn mark_of(conn: &dyn Session, node: u32) -> Result<Option<NodeState>, StoreError> {
    let sql = "SELECT epoch, hwm FROM cursor WHERE node = ?1 ORDER BY epoch DESC LIMIT 1";
    conn.find(sql, params![node], |row| Ok(NodeState { epoch: row.get(0)?, hwm: row.get(1)?, fold: None }))
}

/// Decides what a node has of lent stock. `new_id`: chance, for the names of grants.
pub(super) fn answer(
    tx: &Tx<'_>,
    node: u32,
    question: &StockQuestion,
    new_id: impl Fn() -> GrantId,
) -> Result<StockAnswer, StoreError> {
    let &StockQuestion { turn, epoch, last, ref open, ref wanted } = question;
    if mark_of(tx.sql, node)?.is_none_or(|mark| mark.epoch != epoch.0) {
        return Ok(StockAnswer::NotYet);
    }
    let sql = "INSERT INTO stock_node (node, turn) VALUES (?1, ?2)
               ON CONFLICT (node) DO UPDATE SET turn = ?2 WHERE stock_node.turn < ?2";
    if tx.sql.execute(sql, params![node, turn])? == 0 {
        let sql = "SELECT turn FROM stock_node WHERE node = ?1";
        return Ok(StockAnswer::Old(tx.sql.one(sql, params![node], |row| row.get(0))?));
    }
    let open: BTreeSet<GrantId> = open.iter().copied().collect();
    let mut live: BTreeMap<(SiteId, Sku), GrantRow> = BTreeMap::new();
    for mut row in read_grants(tx.sql, "WHERE node = ?1 AND ended_ms IS NULL ORDER BY id", params![node])? {
        if !open.contains(&row.id) {
            // The first place is enough: a later one would run away from a mark that lags. A new epoch counts anew.
            if row.grant.closed.is_none_or(|closed| closed.epoch != epoch.0) {
                row.grant.closed = Some(Closed { epoch: epoch.0, seq: last });
                row.save(tx)?;
            }
        } else if row.grant.closed.is_none() {
            live.insert((row.site.clone(), row.sku.clone()), row);
        }
    }
    let mut terms: BTreeMap<SiteId, Option<Reservations>> = BTreeMap::new();
    let mut grants = Vec::new();
    let hot = wanted.iter().filter(|wanted| wanted.per_minute >= HOT_PER_MINUTE);
    for wanted in hot.take(STOCK_PRODUCTS_MAX) {
        let site = &wanted.site;
        let terms = match terms.entry(site.clone()) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(place) => {
                let terms = site::find(tx.sql, site)?.map(|row| row.settings.reservations);
                *place.insert(terms.filter(|terms| terms.enabled && terms.at_nodes))
            }
        };
        let Some(terms) = terms else { continue };
        // Counted away while it was lent: it is called back, and what is missing is taken from what comes home.
        let can_be_lent = |row: &StockRow| row.is_counted && row.ledger.short == 0;
        let Some(before) = load(tx.sql, site, &wanted.sku)?.filter(can_be_lent) else { continue };
        let (life_ms, hold_ms) = (terms.grant_ms(), terms.hold_ms());
        let mut row = match live.remove(&(site.clone(), wanted.sku.clone())) {
            // Promises are shorter now: this grant comes home, and the next one is made on the new terms.
            Some(row) if row.hold_ms > hold_ms => continue,
            Some(row) => row,
            None => GrantRow {
                id: new_id(),
                node,
                site: site.clone(),
                sku: wanted.sku.clone(),
                grant: Grant { units: 0, consumed: 0, expires_ms: 0, closed: None },
                hold_ms,
                ended_ms: None,
            },
        };
        let sizing = Terms { life_ms, hold_ms, margin_ms: MARGIN_MS };
        let more = more_for(&before.ledger, row.grant.left(), wanted.per_minute, sizing);
        if row.grant.units == 0 && more == 0 {
            continue;
        }
        if more > 0 {
            let mut after = before;
            after.ledger.grant(more).map_err(not_there)?;
            save(tx, site, &wanted.sku, Some(&before), after)?;
        }
        // Not with each question: a row that says the same is not written every second.
        let lives_ms = row.grant.expires_ms.saturating_sub(tx.now_ms);
        let is_young = lives_ms >= life_ms - life_ms / PROLONGED_PARTS;
        if more > 0 || !is_young || row.hold_ms < hold_ms {
            row.grant.units += more;
            row.grant.expires_ms = row.grant.expires_ms.max(tx.now_ms.saturating_add(life_ms));
            row.hold_ms = row.hold_ms.max(hold_ms);
            row.save(tx)?;
        }
        let lives_ms = row.grant.expires_ms.saturating_sub(tx.now_ms);
        grants.push(row.told(lives_ms.min(life_ms)));
    }
    Ok(StockAnswer::Grants(grants))
}
