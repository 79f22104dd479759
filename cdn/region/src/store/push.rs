//! Table `push`: the components that merchants brought, and what each can do.
//!
//! A site may only deploy what was pushed to it: to know the digest of another merchant's component is not to have it.

use serde::Serialize;
use souk_commerce::id::{Digest, PluginName, SiteId};
use souk_sandbox::admit::Capabilities;

use super::audit::{self, Actor, Deed};
use super::engine::{Row, Session, params};
use super::release;
use super::{Decision, Store, StoreError, Tx};

/// Bytes of components that one site may keep: at 32 MiB each the last 64 of the largest, thousands of usual ones.
pub(crate) const PUSHED_BYTES_MAX: u64 = 2 << 30;
/// Components that one site may keep.
pub(crate) const PUSHES_MAX: u64 = 2_000;

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct PushRow {
    pub(crate) component: Digest,
    pub(crate) capabilities: Capabilities,
    pub(crate) pushed_ms: u64,
    #[serde(skip)]
    pub(crate) bytes: u64,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum PutPush {
    /// False: it was here.
    Kept {
        created: bool,
    },
    NoSite,
    /// The site keeps as much as it may.
    Full {
        bytes: u64,
        pushes: u64,
    },
}

fn read(row: &Row<'_>) -> Result<PushRow, StoreError> {
    let capabilities: String = row.get(1)?;
    Ok(PushRow {
        component: Digest(row.get(0)?),
        capabilities: serde_json::from_str(&capabilities).map_err(|e| StoreError::corrupt("push", e))?,
        pushed_ms: row.get(2)?,
        bytes: row.get(3)?,
    })
}

/// This component of this plugin; or, without a digest, the one that was pushed last.
pub(super) fn find(
    conn: &dyn Session,
    site: &SiteId,
    plugin: &PluginName,
    component: Option<Digest>,
) -> Result<Option<PushRow>, StoreError> {
    let sql = "SELECT component, capabilities, pushed_ms, bytes FROM push
               WHERE site = ?1 AND plugin = ?2 AND (component = ?3 OR ?3 IS NULL) ORDER BY seq DESC LIMIT 1";
    let component = component.map(|digest| digest.0);
    conn.find(sql, params![site.as_str(), plugin.as_str(), component], read)
}

/// What would become of a push of so many bytes.
fn judge(
    conn: &dyn Session,
    site: &SiteId,
    plugin: &PluginName,
    component: Digest,
    bytes_more: u64,
) -> Result<PutPush, StoreError> {
    if !super::site::exists(conn, site)? {
        return Ok(PutPush::NoSite);
    }
    let created = find(conn, site, plugin, Some(component))?.is_none();
    let (pushes, bytes): (u64, u64) = conn.one(
        "SELECT count(*), CAST(coalesce(sum(bytes), 0) AS BIGINT) FROM push WHERE site = ?1",
        params![site.as_str()],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    if created && (pushes >= PUSHES_MAX || bytes.saturating_add(bytes_more) > PUSHED_BYTES_MAX) {
        return Ok(PutPush::Full { bytes, pushes });
    }
    Ok(PutPush::Kept { created })
}

fn put(
    tx: &Tx<'_>,
    site: &SiteId,
    plugin: &PluginName,
    row: &PushRow,
    actor: &Actor,
) -> Result<Decision<PutPush>, StoreError> {
    let judged = judge(tx.sql, site, plugin, row.component, row.bytes)?;
    let PutPush::Kept { created } = judged else { return Ok(Decision::Undo(judged)) };
    let capabilities =
        serde_json::to_string(&row.capabilities).map_err(|error| StoreError::corrupt("push", error))?;
    // Pushed again, it is the latest again.
    let sql = "INSERT INTO push (site, plugin, component, capabilities, bytes, pushed_ms, seq)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, (SELECT coalesce(max(seq), 0) + 1 FROM push))
               ON CONFLICT (site, plugin, component) DO UPDATE
               SET capabilities = ?4, pushed_ms = ?6, seq = (SELECT max(seq) + 1 FROM push)";
    tx.sql.execute(
        sql,
        params![site.as_str(), plugin.as_str(), row.component.0, capabilities, row.bytes, tx.now_ms],
    )?;
    if created {
        let detail = serde_json::json!({ "plugin": plugin, "component": row.component, "bytes": row.bytes });
        audit::record(tx, actor, &Deed { action: "plugin.push", subject: site.to_string(), detail })?;
    }
    release::announce(tx, site, plugin, row.component, &row.capabilities)?;
    Ok(Decision::Keep(PutPush::Kept { created }))
}

impl Store {
    /// Asked before the bytes are kept: whether a push of this component would be.
    pub(crate) async fn may_push(
        &self,
        site: SiteId,
        plugin: PluginName,
        component: Digest,
        bytes: u64,
    ) -> Result<PutPush, StoreError> {
        self.read(move |conn| judge(conn, &site, &plugin, component, bytes)).await
    }

    pub(crate) async fn put_push(
        &self,
        site: SiteId,
        plugin: PluginName,
        row: PushRow,
        actor: Actor,
    ) -> Result<PutPush, StoreError> {
        self.write(move |tx| put(tx, &site, &plugin, &row, &actor)).await
    }

    pub(crate) async fn push(
        &self,
        site: SiteId,
        plugin: PluginName,
        component: Option<Digest>,
    ) -> Result<Option<PushRow>, StoreError> {
        self.read(move |conn| find(conn, &site, &plugin, component)).await
    }
}
