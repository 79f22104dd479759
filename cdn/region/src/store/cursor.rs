//! Tables `node` and `cursor`: how far each node's outbox has been applied.

use std::collections::BTreeMap;

use parking_lot::RwLock;
use souk_replication::{Fold, Mark, NodeState};
use tokio::sync::watch;

use super::engine::{Row, Session, params};
use super::{Decision, Store, StoreError, Tx};

/// The applied marks as of the last commit, for those who wait for one. A copy of table `cursor`: 32 bytes per
/// epoch that was ever minted.
pub(crate) struct Marks {
    by_epoch: RwLock<BTreeMap<(u32, u32), Mark>>,
    moved: watch::Sender<u64>,
}

impl Marks {
    pub(super) fn load(conn: &dyn Session) -> Result<Self, StoreError> {
        let by_epoch = conn.list("SELECT node, epoch, hwm, fold FROM cursor", &[], Self::read)?;
        Ok(Self { by_epoch: RwLock::new(by_epoch), moved: watch::Sender::new(0) })
    }

    /// A row of (node, epoch, hwm, fold).
    pub(super) fn read(row: &Row<'_>) -> Result<((u32, u32), Mark), StoreError> {
        let mark = Mark { hwm: row.get(2)?, fold: fold_of(row.get(3)?) };
        Ok(((row.get(0)?, row.get(1)?), mark))
    }

    pub(super) fn advance(&self, marks: &[((u32, u32), Mark)]) {
        if marks.is_empty() {
            return;
        }
        let mut by_epoch = self.by_epoch.write();
        for (key, moved) in marks {
            let mark = by_epoch.entry(*key).or_insert(*moved);
            if moved.hwm > mark.hwm {
                *mark = *moved;
            }
        }
        drop(by_epoch);
        self.moved.send_modify(|count| *count += 1);
    }

    pub(crate) fn get(&self, node: u32, epoch: u32) -> Option<Mark> {
        self.by_epoch.read().get(&(node, epoch)).copied()
    }

    /// Waits until the operation is applied. The caller bounds the wait. Cancel safe: it only looks.
    pub(crate) async fn reached(&self, node: u32, epoch: u32, seq: u64) {
        let mut moved = self.moved.subscribe();
        while self.get(node, epoch).is_none_or(|mark| mark.hwm < seq) {
            if moved.changed().await.is_err() {
                // The sender is a field of `self`: it cannot be gone while we are borrowed.
                return;
            }
        }
    }
}

/// A node as the region knows it.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct NodeRow {
    pub(crate) node: u32,
    pub(crate) pop: String,
    pub(crate) software: String,
    pub(crate) first_seen_ms: u64,
    pub(crate) last_hello_ms: u64,
    pub(crate) epoch: Option<u32>,
    pub(crate) hwm: Option<u64>,
}

/// The mark of an epoch that takes operations.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cursor {
    pub(super) hwm: u64,
    /// `None` below operations that an older version applied.
    pub(super) fold: Option<Fold>,
    pub(super) sealed: bool,
}

/// The number of a fold as SQLite keeps it: the same bits, signed.
fn fold_of(kept: Option<i64>) -> Option<Fold> {
    kept.map(|number| Fold::from_number(number.cast_unsigned()))
}

pub(super) fn find(conn: &dyn Session, node: u32, epoch: u32) -> Result<Option<Cursor>, StoreError> {
    let sql = "SELECT hwm, sealed, fold FROM cursor WHERE node = ?1 AND epoch = ?2";
    conn.find(sql, params![node, epoch], |row| {
        Ok(Cursor { hwm: row.get(0)?, sealed: row.get(1)?, fold: fold_of(row.get(2)?) })
    })
}

/// Moves the mark, in the transaction that applied everything up to it.
pub(super) fn advance(tx: &Tx<'_>, node: u32, epoch: u32, hwm: u64, fold: Fold) -> Result<(), StoreError> {
    let sql = "UPDATE cursor SET hwm = ?3, fold = ?4 WHERE node = ?1 AND epoch = ?2 AND hwm < ?3";
    tx.sql.execute(sql, params![node, epoch, hwm, fold.number().cast_signed()])?;
    tx.mark_moved(node, epoch, Mark { hwm, fold: Some(fold) });
    Ok(())
}

impl Store {
    /// Notes that a node has said hello, and tells its newest epoch, if it ever had one, with its mark.
    pub(crate) async fn greet(
        &self,
        node: u32,
        pop: String,
        software: String,
    ) -> Result<Option<NodeState>, StoreError> {
        self.write(move |tx| {
            let sql = "INSERT INTO node (node, pop, software, first_seen_ms, last_hello_ms) VALUES (?1, ?2, ?3, ?4, ?4)
                       ON CONFLICT (node) DO UPDATE SET pop = ?2, software = ?3, last_hello_ms = ?4";
            tx.sql.execute(sql, params![node, pop, software, tx.now_ms])?;
            let sql = "SELECT epoch, hwm, fold FROM cursor WHERE node = ?1 ORDER BY epoch DESC LIMIT 1";
            let newest = tx.sql.find(sql, params![node], |row| {
                Ok(NodeState { epoch: row.get(0)?, hwm: row.get(1)?, fold: fold_of(row.get(2)?) })
            })?;
            Ok(Decision::Keep(newest))
        })
        .await
    }

    /// Starts an epoch of a node that has said hello, with mark 0, and seals every older one: a number of theirs that
    /// arrives later is refused, because it could mean two things. Asked again for the newest, it does nothing.
    pub(crate) async fn begin_epoch(&self, node: u32, epoch: u32) -> Result<bool, StoreError> {
        self.write(move |tx| {
            let newer = "SELECT 1 FROM cursor WHERE node = ?1 AND epoch > ?2";
            if tx.sql.exists(newer, params![node, epoch])? {
                return Ok(Decision::Undo(false));
            }
            let sql = "UPDATE cursor SET sealed = 1 WHERE node = ?1 AND epoch < ?2 AND sealed = 0";
            tx.sql.execute(sql, params![node, epoch])?;
            let sql =
                "INSERT INTO cursor (node, epoch, hwm, sealed, minted_ms, fold) VALUES (?1, ?2, 0, 0, ?3, ?4)
                       ON CONFLICT (node, epoch) DO NOTHING";
            let fold = Fold::EMPTY;
            tx.sql.execute(sql, params![node, epoch, tx.now_ms, fold.number().cast_signed()])?;
            tx.mark_moved(node, epoch, Mark { hwm: 0, fold: Some(fold) });
            Ok(Decision::Keep(true))
        })
        .await
    }

    /// Whether operations of this epoch can still arrive.
    pub(crate) async fn is_open(&self, node: u32, epoch: u32) -> Result<bool, StoreError> {
        self.read(move |conn| Ok(find(conn, node, epoch)?.is_some_and(|cursor| !cursor.sealed))).await
    }

    /// Every node that ever said hello, with its current epoch.
    pub(crate) async fn nodes(&self) -> Result<Vec<NodeRow>, StoreError> {
        self.read(|conn| {
            let sql = "SELECT n.node, pop, software, first_seen_ms, last_hello_ms, c.epoch, c.hwm FROM node n
                       LEFT JOIN cursor c ON c.node = n.node AND c.sealed = 0 ORDER BY n.node";
            conn.list(sql, &[], |row| {
                Ok(NodeRow {
                    node: row.get(0)?,
                    pop: row.get(1)?,
                    software: row.get(2)?,
                    first_seen_ms: row.get(3)?,
                    last_hello_ms: row.get(4)?,
                    epoch: row.get(5)?,
                    hwm: row.get(6)?,
                })
            })
        })
        .await
    }
}
