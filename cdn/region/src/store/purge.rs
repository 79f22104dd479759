//! Purges: entries of the `Purge` log. There is no table: what was to be forgotten is forgotten, and the log and the
//! audit remember that it was asked for.

use souk_commerce::feed::PurgeChange;
use souk_commerce::id::SiteId;
use souk_commerce::purge::Forget;
use souk_replication::Log;

use super::audit::{self, Actor, Deed};
use super::engine::{Session, params};
use super::{Decision, Store, StoreError, Tx, log};

/// Log entry and audit row in one transaction. None: there is no such site.
fn purge(tx: &Tx<'_>, change: &PurgeChange, actor: &Actor) -> Result<Option<u64>, StoreError> {
    let PurgeChange { site, forget, .. } = change;
    if !super::site::exists(tx.sql, site)? {
        return Ok(None);
    }
    let version = log::append(tx, Log::Purge, &change.to_bytes())?;
    let detail = serde_json::json!({ "version": version, "forget": forget });
    audit::record(tx, actor, &Deed { action: "purge", subject: site.to_string(), detail })?;
    Ok(Some(version))
}

fn find(conn: &dyn Session, version: u64) -> Result<Option<PurgeChange>, StoreError> {
    let sql = "SELECT body FROM log WHERE log = ?1 AND version = ?2";
    let body: Option<Vec<u8>> = conn.find(sql, params![Log::Purge.code(), version], |row| row.get(0))?;
    body.map(|body| PurgeChange::from_bytes(&body).map_err(|e| StoreError::corrupt("log", e))).transpose()
}

impl Store {
    /// Tells the nodes to forget, and returns the version of the log that says so. None: there is no such site.
    pub(crate) async fn purge(
        &self,
        site: SiteId,
        forget: Forget,
        actor: Actor,
    ) -> Result<Option<u64>, StoreError> {
        let change = PurgeChange::of(site, forget);
        self.write(move |tx| purge(tx, &change, &actor).map(Decision::Keep)).await
    }

    /// The purge of this version, while the log still has it.
    pub(crate) async fn purge_of(&self, version: u64) -> Result<Option<PurgeChange>, StoreError> {
        self.read(move |conn| find(conn, version)).await
    }
}
