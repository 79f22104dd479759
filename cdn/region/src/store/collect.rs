//! What nobody needs any more among the components that were pushed.
//!
//! A component is needed for as long as any release of its site refers to it, active or not: a merchant may go back to every
//! release there was, and a recorded call is replayed with the component of its release. What was pushed and never released
//! goes when it is old enough, with its place in the announced set; its bytes go when no other site has them either.

use souk_commerce::id::{Digest, PluginName, SiteId};

use super::audit::{self, Actor, Deed};
use super::engine::{Dialect, Session, params};
use super::release;
use super::{Decision, Store, StoreError, Tx};

/// Pushes that are looked for at a time, so that no reader is held long.
const PAGE_MAX: usize = 100;

/// A push that no release refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stale {
    pub(crate) site: SiteId,
    pub(crate) plugin: PluginName,
    pub(crate) component: Digest,
    pub(crate) bytes: u64,
}

fn is_stale(dialect: Dialect) -> String {
    let (component, pushed) = (dialect.component_of_release(), dialect.hex("push.component"));
    format!(
        "pushed_ms < ?1 AND NOT EXISTS (SELECT 1 FROM release WHERE {component} = {pushed} AND release.site = push.site)"
    )
}

fn stale(conn: &dyn Session, before_ms: u64) -> Result<Vec<Stale>, StoreError> {
    let is_stale = is_stale(conn.dialect());
    let sql = format!(
        "SELECT site, plugin, component, bytes FROM push WHERE {is_stale} ORDER BY seq LIMIT {PAGE_MAX}"
    );
    conn.list(&sql, params![before_ms], |row| {
        let (site, plugin): (String, String) = (row.get(0)?, row.get(1)?);
        let site = site.parse().map_err(|e| StoreError::corrupt("push", e))?;
        let plugin = plugin.parse().map_err(|e| StoreError::corrupt("push", e))?;
        Ok(Stale { site, plugin, component: Digest(row.get(2)?), bytes: row.get(3)? })
    })
}

/// Takes one away, if it is still stale: it may have been pushed again or deployed since it was found.
fn collect(tx: &Tx<'_>, stale: &Stale, before_ms: u64, actor: &Actor) -> Result<bool, StoreError> {
    let Stale { site, plugin, component, bytes } = stale;
    let is_stale = is_stale(tx.sql.dialect());
    let sql = format!("DELETE FROM push WHERE {is_stale} AND site = ?2 AND plugin = ?3 AND component = ?4");
    let gone = tx.sql.execute(&sql, params![before_ms, site.as_str(), plugin.as_str(), component.0])?;
    if gone == 0 {
        return Ok(false);
    }
    let detail = serde_json::json!({ "plugin": plugin, "component": component, "bytes": bytes });
    audit::record(tx, actor, &Deed { action: "plugin.collect", subject: site.to_string(), detail })?;
    // Pushed under two names, it is announced once, and is so for the other.
    let sql = "SELECT 1 FROM push WHERE site = ?1 AND component = ?2";
    if !tx.sql.exists(sql, params![site.as_str(), component.0])? {
        release::withdraw(tx, site, *component)?;
    }
    Ok(true)
}

/// Whether anything still refers to these bytes: a push or a release of any site, a file of a site or a former version
/// of one, or an operator who
/// brought them under their name.
fn is_needed(conn: &dyn Session, digest: Digest) -> Result<bool, StoreError> {
    let component = conn.dialect().component_of_release();
    let sql = format!(
        "SELECT EXISTS (SELECT 1 FROM push WHERE component = ?1)
             OR EXISTS (SELECT 1 FROM release WHERE {component} = ?2)
             OR EXISTS (SELECT 1 FROM asset WHERE digest = ?1)
             OR EXISTS (SELECT 1 FROM asset_former WHERE digest = ?1)
             OR EXISTS (SELECT 1 FROM audit WHERE subject = ?2 AND action = 'blob.put')"
    );
    conn.one(&sql, params![digest.0, digest.to_string()], |row| row.get(0))
}

impl Store {
    /// Some of the pushes from before `before_ms` that no release refers to.
    pub(crate) async fn stale_pushes(&self, before_ms: u64) -> Result<Vec<Stale>, StoreError> {
        self.read(move |conn| stale(conn, before_ms)).await
    }

    /// Forgets a push; false if it is needed by now.
    pub(crate) async fn collect_push(
        &self,
        found: Stale,
        before_ms: u64,
        actor: Actor,
    ) -> Result<bool, StoreError> {
        self.write(move |tx| collect(tx, &found, before_ms, &actor).map(Decision::Keep)).await
    }

    pub(crate) async fn is_blob_needed(&self, digest: Digest) -> Result<bool, StoreError> {
        self.read(move |conn| is_needed(conn, digest)).await
    }

    /// Has `take` run, if no row refers to these bytes, before any other one can. False: somebody needs them. `take` may be
    /// run more than once, and with an error of this all of it is void.
    pub(crate) async fn take_unneeded(
        &self,
        digest: Digest,
        take: impl Fn() -> Result<(), StoreError> + Send + 'static,
    ) -> Result<bool, StoreError> {
        self.write(move |tx| {
            if is_needed(tx.sql, digest)? {
                return Ok(Decision::Undo(false));
            }
            take()?;
            Ok(Decision::Keep(true))
        })
        .await
    }
}
