//! Tables `release` and `release_set`: every plugin release of a site, and the chain that is active.

use rusqlite::{Connection, OptionalExtension as _, params};
use souk_commerce::id::{Digest, PluginName, SiteId};
use souk_commerce::site::{Grants, Hook, Kind, OnFault, Release, ReleaseSet, SETTINGS_BYTES_MAX};
use souk_replication::{Log, Record};

use super::audit::{self, Actor, Deed};
use super::log::{self, PageMax};
use super::{Decision, Store, StoreError, Tx};

/// A release as it is asked for: the store gives it its number.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Draft {
    pub(crate) plugin: PluginName,
    pub(crate) component: Digest,
    pub(crate) hooks: Vec<Hook>,
    pub(crate) settings: serde_json::Value,
    pub(crate) on_fault: OnFault,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum PutReleases {
    Written(ReleaseSet),
    Unchanged(ReleaseSet),
    NoSite,
    /// The chain does not fit a record of its log. Nothing was kept.
    TooLarge {
        bytes: usize,
    },
}

fn encode(release: &Release) -> Result<String, StoreError> {
    serde_json::to_string(release).map_err(|e| StoreError::corrupt("release", e))
}

pub(super) fn find(conn: &Connection, site: &SiteId) -> Result<Option<ReleaseSet>, StoreError> {
    let mut select = conn.prepare_cached("SELECT body FROM release_set WHERE site = ?1")?;
    let body: Option<String> = select.query_row([site.as_str()], |row| row.get(0)).optional()?;
    body.map(|body| {
        ReleaseSet::from_bytes(body.as_bytes()).map_err(|e| StoreError::corrupt("release_set", e))
    })
    .transpose()
}

pub(super) fn version(conn: &Connection, site: &SiteId) -> Result<u64, StoreError> {
    let mut select = conn.prepare_cached("SELECT version FROM release_set WHERE site = ?1")?;
    Ok(select.query_row([site.as_str()], |row| row.get(0)).optional()?.unwrap_or(0))
}

/// The number of this very release, old or new: who rolls back sees the number that it had.
fn number(tx: &Tx<'_>, site: &SiteId, draft: &Draft) -> Result<Release, StoreError> {
    let sql = "SELECT body FROM release WHERE site = ?1 AND plugin = ?2 ORDER BY number DESC";
    let mut select = tx.sql.prepare_cached(sql)?;
    let mut rows = select.query(params![site.as_str(), draft.plugin.as_str()])?;
    let mut highest = 0;
    while let Some(row) = rows.next()? {
        let body: String = row.get(0)?;
        let release: Release = serde_json::from_str(&body).map_err(|e| StoreError::corrupt("release", e))?;
        highest = highest.max(release.number);
        if release.component == draft.component
            && release.settings == draft.settings
            && release.on_fault == draft.on_fault
        {
            return Ok(release);
        }
    }
    let release = Release {
        plugin: draft.plugin.clone(),
        number: highest + 1,
        component: draft.component,
        hooks: draft.hooks.clone(),
        settings: draft.settings.clone(),
        on_fault: draft.on_fault,
        kind: Kind::Hooks,
        grants: Grants::default(),
        route: None,
        reuse: 0,
        record_bp: 0,
        seal: None,
    };
    let sql = "INSERT INTO release (site, plugin, number, body, created_ms) VALUES (?1, ?2, ?3, ?4, ?5)";
    tx.sql.prepare_cached(sql)?.execute(params![
        site.as_str(),
        release.plugin.as_str(),
        release.number,
        encode(&release)?,
        tx.now_ms
    ])?;
    Ok(release)
}

fn put(
    tx: &Tx<'_>,
    site: &SiteId,
    drafts: &[Draft],
    actor: &Actor,
) -> Result<Decision<PutReleases>, StoreError> {
    if !super::site::exists(tx.sql, site)? {
        return Ok(Decision::Undo(PutReleases::NoSite));
    }
    let releases = drafts.iter().map(|draft| number(tx, site, draft)).collect::<Result<Vec<_>, _>>()?;
    let before = find(tx.sql, site)?;
    if let Some(before) = &before
        && before.releases == releases
    {
        return Ok(Decision::Keep(PutReleases::Unchanged(before.clone())));
    }
    let set = ReleaseSet { site: site.clone(), version: log::next_version(tx, Log::Release)?, releases, standby: Vec::new() };
    let body = set.to_bytes();
    if body.len() > SETTINGS_BYTES_MAX {
        return Ok(Decision::Undo(PutReleases::TooLarge { bytes: body.len() }));
    }
    log::append(tx, Log::Release, &body)?;
    let json = String::from_utf8(body).map_err(|e| StoreError::corrupt("release_set", e))?;
    let sql = "INSERT INTO release_set (site, body, version) VALUES (?1, ?2, ?3)
               ON CONFLICT (site) DO UPDATE SET body = ?2, version = ?3";
    tx.sql.prepare_cached(sql)?.execute(params![site.as_str(), json, set.version])?;
    let chain = |set: &ReleaseSet| -> Vec<String> {
        set.releases.iter().map(|r| format!("{}#{} {}", r.plugin, r.number, r.component)).collect()
    };
    let detail = serde_json::json!({
        "version": set.version,
        "before": before.as_ref().map(chain),
        "after": chain(&set),
    });
    audit::record(tx, actor, &Deed { action: "releases.put", subject: site.to_string(), detail })?;
    Ok(Decision::Keep(PutReleases::Written(set)))
}

/// The chains that changed after `from`, oldest change first.
pub(super) fn changed(
    conn: &Connection,
    from: u64,
    page: PageMax,
) -> Result<(Vec<Record>, bool), StoreError> {
    let sql = "SELECT version, body FROM release_set WHERE version > ?1 ORDER BY version";
    let mut select = conn.prepare_cached(sql)?;
    let rows = select.query_map([from], |row| {
        Ok(Record { version: row.get(0)?, body: row.get::<_, String>(1)?.into_bytes() })
    })?;
    page.fill(rows.map(|row| row.map_err(StoreError::from)))
}

impl Store {
    /// Makes `drafts` the whole chain of the site.
    pub(crate) async fn put_releases(
        &self,
        site: SiteId,
        drafts: Vec<Draft>,
        actor: Actor,
    ) -> Result<PutReleases, StoreError> {
        self.write(move |tx| put(tx, &site, &drafts, &actor)).await
    }

    /// The active chain; an empty one of version 0 if there never was any.
    pub(crate) async fn releases(&self, site: SiteId) -> Result<ReleaseSet, StoreError> {
        self.read(move |conn| active(conn, &site)).await
    }
}

pub(super) fn active(conn: &Connection, site: &SiteId) -> Result<ReleaseSet, StoreError> {
    let found = find(conn, site)?;
    Ok(found.unwrap_or_else(|| ReleaseSet::empty(site.clone())))
}
