//! Table `release`: what has a number, for ever, and what is to get one.

use std::ops::ControlFlow;

use souk_commerce::id::{Digest, PluginName, SiteId};
use souk_commerce::site::{Grants, Hook, Kind, OnFault, Release};

use super::super::engine::{Session, params};
use super::super::{StoreError, Tx};
use super::{Changes, Outcome, Stays};

/// A release as it is asked for: the store gives it its number.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Draft {
    pub(super) plugin: PluginName,
    pub(super) component: Digest,
    pub(super) kind: Kind,
    pub(super) hooks: Vec<Hook>,
    pub(super) settings: serde_json::Value,
    pub(super) on_fault: OnFault,
    pub(super) grants: Grants,
    pub(super) route: Option<String>,
    pub(super) reuse: u32,
    pub(super) record_bp: u16,
}

impl Draft {
    pub(super) fn numbered(self, number: u32) -> Release {
        let Self { plugin, component, kind, hooks, settings, on_fault, grants, route, reuse, record_bp } =
            self;
        Release {
            plugin,
            number,
            component,
            hooks,
            settings,
            on_fault,
            kind,
            grants,
            route,
            reuse,
            record_bp,
            seal: None,
        }
    }
}

impl Changes {
    /// A release of `component`; what is not named is kept from the one that is active, if it is of the same kind: what
    /// another kind of component was granted is not handed on to this one.
    pub(super) fn draft(
        self,
        plugin: PluginName,
        component: Digest,
        (kind, hooks): (Kind, Vec<Hook>),
        active: Option<&Release>,
    ) -> Draft {
        let kept = active.filter(|release| release.kind == kind);
        Draft {
            plugin,
            component,
            kind,
            hooks,
            settings: self
                .settings
                .unwrap_or_else(|| kept.map_or(serde_json::Value::Null, |r| r.settings.clone())),
            on_fault: self.on_fault.unwrap_or_else(|| kept.map(|r| r.on_fault).unwrap_or_default()),
            grants: self.grants.unwrap_or_else(|| kept.map(|r| r.grants.clone()).unwrap_or_default()),
            route: self.route.or_else(|| kept.and_then(|r| r.route.clone())),
            reuse: self.reuse.unwrap_or_else(|| kept.map_or(0, |r| r.reuse)),
            record_bp: self.record_bp.unwrap_or_else(|| kept.map_or(0, |r| r.record_bp)),
        }
    }
}

fn encode(release: &Release) -> Result<String, StoreError> {
    serde_json::to_string(release).map_err(|e| StoreError::corrupt("release", e))
}

pub(super) fn decode(body: &str) -> Result<Release, StoreError> {
    serde_json::from_str(body).map_err(|e| StoreError::corrupt("release", e))
}

pub(super) fn by_number(
    conn: &dyn Session,
    site: &SiteId,
    plugin: &PluginName,
    number: u32,
) -> Result<Option<Release>, StoreError> {
    let sql = "SELECT body FROM release WHERE site = ?1 AND plugin = ?2 AND number = ?3";
    let found: Option<String> =
        conn.find(sql, params![site.as_str(), plugin.as_str(), number], |row| row.get(0))?;
    found.map(|body| decode(&body)).transpose()
}

/// The number of this very release, old or new: who asks for the same again sees the number that it had. A new one
/// remembers what was `active` before it.
pub(super) fn number(tx: &Tx<'_>, site: &SiteId, draft: Draft, active: Option<&Release>) -> Outcome<Release> {
    let mut release = draft.numbered(0);
    let content = Digest::of(&release.sealed_bytes(site)).0;
    if let Some(known) = known(tx, site, &release, content)? {
        return Ok(Ok(known));
    }
    let sql = "SELECT coalesce(max(number), 0) FROM release WHERE site = ?1 AND plugin = ?2";
    let of_plugin = params![site.as_str(), release.plugin.as_str()];
    let highest: u32 = tx.sql.one(sql, of_plugin, |row| row.get(0))?;
    release.number = highest + 1;
    if let Err(invalid) = release.check() {
        return Ok(Err(Stays::Invalid(invalid)));
    }
    tx.settings.seal.seal(site, &mut release);
    let sql = "INSERT INTO release (site, plugin, number, body, created_ms, content, follows)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    tx.sql.execute(
        sql,
        params![
            site.as_str(),
            release.plugin.as_str(),
            release.number,
            encode(&release)?,
            tx.now_ms,
            content,
            active.map_or(0, |active| active.number)
        ],
    )?;
    Ok(Ok(release))
}

/// The release that is this one but for its number and its seal.
fn known(
    tx: &Tx<'_>,
    site: &SiteId,
    wanted: &Release,
    content: [u8; 32],
) -> Result<Option<Release>, StoreError> {
    let sql = "SELECT body FROM release WHERE site = ?1 AND plugin = ?2 AND content = ?3 LIMIT 1";
    let found: Option<String> =
        tx.sql.find(sql, params![site.as_str(), wanted.plugin.as_str(), content], |row| row.get(0))?;
    if let Some(body) = found {
        return decode(&body).map(Some);
    }
    // Made by an older version, which only the operator could ask for: these rows do not become more.
    let sql = "SELECT body FROM release WHERE site = ?1 AND plugin = ?2 AND content IS NULL
               ORDER BY number DESC";
    let mut found = None;
    tx.sql.each(sql, params![site.as_str(), wanted.plugin.as_str()], &mut |row| {
        let release = decode(&row.get::<String>(0)?)?;
        if (Release { seal: None, number: wanted.number, ..release.clone() }) == *wanted {
            found = Some(release);
            return Ok(ControlFlow::Break(()));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(found)
}

/// The release that was active before this one. An older version did not write it down; its number before is the best
/// that is known then.
pub(super) fn previous(tx: &Tx<'_>, site: &SiteId, release: &Release) -> Result<Option<Release>, StoreError> {
    let sql = "SELECT follows FROM release WHERE site = ?1 AND plugin = ?2 AND number = ?3";
    let this = params![site.as_str(), release.plugin.as_str(), release.number];
    let follows: Option<Option<u32>> = tx.sql.find(sql, this, |row| row.get(0))?;
    if let Some(follows) = follows.flatten() {
        // There is no release 0.
        return by_number(tx.sql, site, &release.plugin, follows);
    }
    let sql = "SELECT body FROM release WHERE site = ?1 AND plugin = ?2 AND number < ?3
               ORDER BY number DESC LIMIT 1";
    let body: Option<String> = tx.sql.find(sql, this, |row| row.get(0))?;
    body.map(|body| decode(&body)).transpose()
}
