//! What a store remembers of having been restored from a backup: rows of table `meta`, and table `operations_gone`.
//!
//! A restored store is to be given a new history of its logs, once, before a node is let in. For a day after that its region
//! meets what only a restored one meets in good faith, and is lenient there. What nodes cannot bring again is written down by
//! number, until an operator has read it.

use souk_replication::Gone;

use super::audit::{self, Actor, Deed};
use super::backup::NUMBERS_SKIPPED;
use super::backup::tables::Table;
use super::engine::{Session, params};
use super::{Decision, Store, StoreError, Tx};

/// How long a restored region waits for what nodes have kept. As long as they keep it.
const CATCHING_UP_MS: u64 = 86_400_000;
/// A new history is to be begun.
const PENDING: &str = "restore_pending";
/// When the last one was begun.
const SINCE: &str = "restored_ms";
/// Runs of lost operations in one answer.
pub(crate) const GONE_LISTED_MAX: usize = 1_000;

/// In the transaction that fills an empty store from a backup, or makes one the home. Asked for already, it is asked for once: a
/// restored store may become the home before a region has begun its new history.
pub(super) fn ask_for_new_history(conn: &dyn Session) -> Result<(), StoreError> {
    let sql = "INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2";
    conn.execute(sql, params![PENDING, 1_u64.to_be_bytes()])?;
    Ok(())
}

/// In the transaction that gives up what a store holds: the history of what comes in its place is the home's.
pub(super) fn ask_for_no_history(conn: &dyn Session) -> Result<(), StoreError> {
    conn.execute("DELETE FROM meta WHERE key = ?1", params![PENDING]).map(drop)
}

/// Numbers that columns give out by themselves go on far beyond those that are here: what this store goes on from has given out
/// more since.
pub(super) fn skip_numbers(conn: &dyn Session, tables: &[Table]) -> Result<(), StoreError> {
    let dialect = conn.dialect();
    for table in tables {
        let Some(column) = &table.counter else { continue };
        let sql = format!("SELECT coalesce(max({column}), 0) FROM {}", table.name);
        let greatest: u64 = conn.one(&sql, &[], |row| row.get(0))?;
        let given: u64 = conn.one(&dialect.last_given_out(&table.name, column), &[], |row| row.get(0))?;
        let last = greatest.max(given) + NUMBERS_SKIPPED;
        for sql in dialect.give_out_after(&table.name, column) {
            conn.execute(&sql, params![last])?;
        }
    }
    Ok(())
}

/// Whether the region was restored a short while ago: what nodes have sent before it is on its way again, in any order.
pub(super) fn is_catching_up(tx: &Tx<'_>) -> Result<bool, StoreError> {
    let sql = "SELECT value FROM meta WHERE key = ?1";
    let since: Option<[u8; 8]> = tx.sql.find(sql, params![SINCE], |row| row.get(0))?;
    Ok(since.is_some_and(|since| tx.now_ms < u64::from_be_bytes(since).saturating_add(CATCHING_UP_MS)))
}

/// Operations of a node that this region lacks and the node has not kept.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(crate) struct GoneRow {
    pub(crate) node: u32,
    pub(crate) pop: String,
    pub(crate) epoch: u32,
    pub(crate) first: u64,
    /// None: how many there were, nobody knows any more.
    pub(crate) last: Option<u64>,
    pub(crate) noted_ms: u64,
}

impl Store {
    pub(crate) async fn wants_new_history(&self) -> Result<bool, StoreError> {
        self.read(|conn| conn.exists("SELECT 1 FROM meta WHERE key = ?1", params![PENDING])).await
    }

    /// The new history has begun. Last of its steps: a crash before it begins another one, which costs another snapshot.
    pub(crate) async fn new_history_has_begun(
        &self,
        actor: Actor,
        region_epoch: u32,
    ) -> Result<(), StoreError> {
        self.write(move |tx| {
            tx.sql.execute("DELETE FROM meta WHERE key = ?1", params![PENDING])?;
            let sql =
                "INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2";
            tx.sql.execute(sql, params![SINCE, tx.now_ms.to_be_bytes()])?;
            // What shops' books said of their providers' is of the lost store: each is compared anew, at once.
            tx.sql.execute("DELETE FROM payment_report", &[])?;
            let detail = serde_json::json!({ "region_epoch": region_epoch });
            audit::record(tx, &actor, &Deed { action: "region.restored", subject: String::new(), detail })?;
            Ok(Decision::Keep(()))
        })
        .await
    }

    /// Writes down what a node cannot bring again. Told twice, it is written once.
    pub(crate) async fn note_gone(&self, node: u32, gone: Vec<Gone>) -> Result<(), StoreError> {
        self.write(move |tx| {
            for Gone { epoch, first, last } in &gone {
                let sql = "INSERT INTO operations_gone (node, epoch, first_seq, last_seq, noted_ms) VALUES (?1, ?2, ?3, ?4, ?5)
                           ON CONFLICT (node, epoch, first_seq) DO NOTHING";
                tx.sql.execute(sql, params![node, epoch, first, last, tx.now_ms])?;
            }
            Ok(Decision::Keep(()))
        })
        .await
    }

    /// What is gone and nobody has read yet.
    pub(crate) async fn gone(&self) -> Result<Vec<GoneRow>, StoreError> {
        self.read(|conn| {
            let sql = "SELECT g.node, coalesce(n.pop, ''), g.epoch, g.first_seq, g.last_seq, g.noted_ms
                       FROM operations_gone g LEFT JOIN node n ON n.node = g.node
                       WHERE g.read_ms IS NULL ORDER BY g.node, g.epoch, g.first_seq LIMIT ?1";
            conn.list(sql, params![GONE_LISTED_MAX], |row| {
                Ok(GoneRow {
                    node: row.get(0)?,
                    pop: row.get(1)?,
                    epoch: row.get(2)?,
                    first: row.get(3)?,
                    last: row.get(4)?,
                    noted_ms: row.get(5)?,
                })
            })
        })
        .await
    }

    /// An operator has read it: no alarm any more. Answers how many runs there were.
    pub(crate) async fn gone_is_read(&self, actor: Actor) -> Result<usize, StoreError> {
        self.write(move |tx| {
            let sql = "UPDATE operations_gone SET read_ms = ?1 WHERE read_ms IS NULL";
            let runs = tx.sql.execute(sql, params![tx.now_ms])?;
            if runs > 0 {
                let detail = serde_json::json!({ "runs": runs });
                let deed = Deed { action: "operations_gone.read", subject: String::new(), detail };
                audit::record(tx, &actor, &deed)?;
            }
            Ok(Decision::Keep(runs))
        })
        .await
    }

    /// Runs of operations that are gone and that nobody has read about; and how many operations they are, as far as that is
    /// known: at least one each.
    pub(crate) async fn gone_totals(&self) -> Result<(u64, u64), StoreError> {
        self.read(|conn| {
            let sql =
                "SELECT count(*), CAST(coalesce(sum(coalesce(last_seq - first_seq + 1, 1)), 0) AS BIGINT)
                       FROM operations_gone WHERE read_ms IS NULL";
            conn.one(sql, &[], |row| Ok((row.get(0)?, row.get(1)?)))
        })
        .await
    }
}
