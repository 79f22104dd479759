//! Tables `region_process` and `present_node`, where several processes share a database: which node is connected to which
//! of them, and what it has said lately. Rows of the moment, made with the database itself (`schema`): those of a process
//! that says nothing any more lapse.

use std::collections::BTreeMap;
use std::sync::Arc;

use souk_commerce::id::SiteId;

use super::engine::{Session, params};
use super::{Decision, Store, StoreError};

/// How long a process is believed to live after its last word: a writer that is held up by another one's import for its
/// 5 s twice still renews in time.
const LIVES_MS: u64 = 15_000;

/// What a process says of a node that is connected to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PresentNode {
    pub(crate) node: u32,
    pub(crate) pop: String,
    /// Up to where it has applied the purge log.
    pub(crate) purge: u64,
    /// What it runs, encoded.
    pub(crate) chains: Vec<u8>,
}

fn nodes_of(conn: &dyn Session, process: [u8; 16]) -> Result<Vec<PresentNode>, StoreError> {
    let sql = "SELECT node, pop, purge, chains FROM present_node WHERE process = ?1 ORDER BY node";
    conn.list(sql, params![process], |row| {
        Ok(PresentNode { node: row.get(0)?, pop: row.get(1)?, purge: row.get(2)?, chains: row.get(3)? })
    })
}

/// What processes have said last, each with the end of its life that it said with it. That grows with each word.
pub(crate) type Heard = BTreeMap<[u8; 16], (u64, Arc<Vec<PresentNode>>)>;

impl Store {
    /// Says that a process lives, and what has changed of its nodes. False: it was taken for dead meanwhile, or is new, and
    /// has to say everything.
    pub(crate) async fn tell_present(
        &self,
        process: [u8; 16],
        changed: Vec<PresentNode>,
        gone: Vec<u32>,
    ) -> Result<bool, StoreError> {
        self.write(move |tx| {
            let sql = "DELETE FROM present_node WHERE process NOT IN (
                           SELECT process FROM region_process WHERE until_ms >= ?1)";
            tx.sql.execute(sql, params![tx.now_ms])?;
            tx.sql.execute("DELETE FROM region_process WHERE until_ms < ?1", params![tx.now_ms])?;
            let until_ms = tx.now_ms.saturating_add(LIVES_MS);
            // Greater with each word, also within one millisecond: whoever listens asks for what is new by it.
            let sql =
                "UPDATE region_process SET until_ms = CASE WHEN until_ms >= ?2 THEN until_ms + 1 ELSE ?2 END
                       WHERE process = ?1";
            let is_known = tx.sql.execute(sql, params![process, until_ms])? > 0;
            if !is_known {
                let sql = "INSERT INTO region_process (process, until_ms) VALUES (?1, ?2)";
                tx.sql.execute(sql, params![process, until_ms])?;
            }
            for PresentNode { node, pop, purge, chains } in &changed {
                let sql =
                    "INSERT INTO present_node (process, node, pop, purge, chains) VALUES (?1, ?2, ?3, ?4, ?5)
                           ON CONFLICT (process, node) DO UPDATE SET pop = ?3, purge = ?4, chains = ?5";
                tx.sql.execute(sql, params![process, node, pop, purge, chains])?;
            }
            for node in &gone {
                let sql = "DELETE FROM present_node WHERE process = ?1 AND node = ?2";
                tx.sql.execute(sql, params![process, node])?;
            }
            Ok(Decision::Keep(is_known))
        })
        .await
    }

    /// What other processes that live say of their nodes. Of one that has said nothing since `before` was heard, no node is read
    /// again: they are many, and this is asked several times a second.
    pub(crate) async fn present_elsewhere(
        &self,
        process: [u8; 16],
        now_ms: u64,
        before: Heard,
    ) -> Result<Heard, StoreError> {
        self.read(move |conn| {
            let sql = "SELECT process, until_ms FROM region_process WHERE process <> ?1 AND until_ms >= ?2";
            let living: Vec<([u8; 16], u64)> =
                conn.list(sql, params![process, now_ms], |row| Ok((row.get(0)?, row.get(1)?)))?;
            let mut heard = Heard::new();
            for (other, until_ms) in living {
                let said = match before.get(&other) {
                    Some((then, said)) if *then == until_ms => Arc::clone(said),
                    _ => Arc::new(nodes_of(conn, other)?),
                };
                heard.insert(other, (until_ms, said));
            }
            Ok(heard)
        })
        .await
    }

    /// The sites whose chains changed last, so many at most.
    pub(crate) async fn sites_released_last(&self, max: usize) -> Result<Vec<SiteId>, StoreError> {
        self.read(move |conn| {
            let sql = "SELECT site FROM release_set ORDER BY version DESC LIMIT ?1";
            let sites: Vec<String> = conn.list(sql, params![max], |row| row.get(0))?;
            let site = |name: String| name.parse().map_err(|e| StoreError::corrupt("release_set", e));
            sites.into_iter().map(site).collect()
        })
        .await
    }
}
