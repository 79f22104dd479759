//! What nobody needs any more among the components that were pushed.
//!
//! A component is needed for as long as any release of its site refers to it, active or not: a merchant may go back to every
//! release there was, and a recorded call is replayed with the component of its release. What was pushed and never released
//! goes when it is old enough, with its place in the announced set; its bytes go when no other site has them either.

use rusqlite::{Connection, OptionalExtension as _, params};
use souk_commerce::id::{Digest, PluginName, SiteId};

use super::audit::{self, Actor, Deed};
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

const IS_STALE: &str = "pushed_ms < ?1 AND NOT EXISTS (
    SELECT 1 FROM release WHERE json_extract(body, '$.component') = lower(hex(push.component)) AND release.site = push.site)";

fn stale(conn: &Connection, before_ms: u64) -> Result<Vec<Stale>, StoreError> {
    let sql = format!(
        "SELECT site, plugin, component, bytes FROM push WHERE {IS_STALE} ORDER BY seq LIMIT {PAGE_MAX}"
    );
    let mut select = conn.prepare_cached(&sql)?;
    let rows = select.query_map([before_ms], |row| {
        Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get(2)?, row.get(3)?))
    })?;
    rows.map(|row| {
        let (site, plugin, component, bytes) = row?;
        let site = site.parse().map_err(|e| StoreError::corrupt("push", e))?;
        let plugin = plugin.parse().map_err(|e| StoreError::corrupt("push", e))?;
        Ok(Stale { site, plugin, component: Digest(component), bytes })
    })
    .collect()
}

/// Takes one away, if it is still stale: it may have been pushed again or deployed since it was found.
fn collect(tx: &Tx<'_>, stale: &Stale, before_ms: u64, actor: &Actor) -> Result<bool, StoreError> {
    let Stale { site, plugin, component, bytes } = stale;
    let sql = format!("DELETE FROM push WHERE {IS_STALE} AND site = ?2 AND plugin = ?3 AND component = ?4");
    let gone = tx.sql.prepare_cached(&sql)?.execute(params![
        before_ms,
        site.as_str(),
        plugin.as_str(),
        component.0
    ])?;
    if gone == 0 {
        return Ok(false);
    }
    let detail = serde_json::json!({ "plugin": plugin, "component": component, "bytes": bytes });
    audit::record(tx, actor, &Deed { action: "plugin.collect", subject: site.to_string(), detail })?;
    // Pushed under two names, it is announced once, and is so for the other.
    let sql = "SELECT 1 FROM push WHERE site = ?1 AND component = ?2";
    if !tx.sql.prepare_cached(sql)?.exists(params![site.as_str(), component.0])? {
        release::withdraw(tx, site, *component)?;
    }
    Ok(true)
}

/// Whether anything still refers to these bytes: a push or a release of any site, a file of a site or a former version
/// of one, or an operator who
/// brought them under their name.
fn is_needed(conn: &Connection, digest: Digest) -> Result<bool, StoreError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM push WHERE component = ?1)
                   OR EXISTS (SELECT 1 FROM release WHERE json_extract(body, '$.component') = ?2)
                   OR EXISTS (SELECT 1 FROM asset WHERE digest = ?1)
                   OR EXISTS (SELECT 1 FROM asset_former WHERE digest = ?1)
                   OR EXISTS (SELECT 1 FROM audit WHERE subject = ?2 AND action = 'blob.put')";
    let mut select = conn.prepare_cached(sql)?;
    let needed: Option<bool> =
        select.query_row(params![digest.0, digest.to_string()], |row| row.get(0)).optional()?;
    Ok(needed.unwrap_or(false))
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
}
