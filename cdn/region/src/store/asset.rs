//! Table `asset`: which blob each path of a site shows. Changed by whole manifests, told by single paths.

use std::collections::BTreeMap;

use rusqlite::{Connection, params};
use souk_commerce::feed::{Asset, AssetChange};
use souk_commerce::id::{Digest, SiteId};
use souk_replication::{Log, Record};

use super::audit::{self, Actor, Deed};
use super::log::{self, PageMax};
use super::{Decision, Store, StoreError, Tx};

/// Paths of one site. A shop with 5,000 pictures is a big one.
pub(crate) const ASSETS_MAX: usize = 20_000;

/// What a new manifest did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct AssetsPut {
    pub(crate) created: u64,
    pub(crate) updated: u64,
    pub(crate) removed: u64,
    pub(crate) unchanged: u64,
}

fn load(conn: &Connection, site: &SiteId) -> Result<BTreeMap<String, Asset>, StoreError> {
    let sql = "SELECT path, digest, bytes, content_type FROM asset WHERE site = ?1 AND digest IS NOT NULL";
    let mut select = conn.prepare_cached(sql)?;
    let rows = select.query_map([site.as_str()], |row| {
        let asset = Asset { digest: Digest(row.get(1)?), bytes: row.get(2)?, content_type: row.get(3)? };
        Ok((row.get(0)?, asset))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn write(tx: &Tx<'_>, site: &SiteId, path: &str, asset: Option<&Asset>) -> Result<(), StoreError> {
    let change = AssetChange { site: site.clone(), path: path.to_owned(), asset: asset.cloned() };
    let version = log::append(tx, Log::Asset, &change.to_bytes())?;
    let sql = "INSERT INTO asset (site, path, digest, bytes, content_type, version) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
               ON CONFLICT (site, path) DO UPDATE SET digest = ?3, bytes = ?4, content_type = ?5, version = ?6";
    tx.sql.prepare_cached(sql)?.execute(params![
        site.as_str(),
        path,
        asset.map(|asset| asset.digest.0),
        asset.map_or(0, |asset| asset.bytes),
        asset.map_or("", |asset| asset.content_type.as_str()),
        version
    ])?;
    Ok(())
}

fn put(
    tx: &Tx<'_>,
    site: &SiteId,
    manifest: &BTreeMap<String, Asset>,
    actor: &Actor,
) -> Result<Option<AssetsPut>, StoreError> {
    if !super::site::exists(tx.sql, site)? {
        return Ok(None);
    }
    let before = load(tx.sql, site)?;
    let mut counts = AssetsPut::default();
    for (path, asset) in manifest {
        match before.get(path) {
            Some(same) if same == asset => {
                counts.unchanged += 1;
                continue;
            }
            Some(_) => counts.updated += 1,
            None => counts.created += 1,
        }
        write(tx, site, path, Some(asset))?;
    }
    for path in before.keys().filter(|path| !manifest.contains_key(*path)) {
        write(tx, site, path, None)?;
        counts.removed += 1;
    }
    if counts.created + counts.updated + counts.removed > 0 {
        let AssetsPut { created, updated, removed, .. } = counts;
        let detail = serde_json::json!({ "created": created, "updated": updated, "removed": removed });
        audit::record(tx, actor, &Deed { action: "assets.put", subject: site.to_string(), detail })?;
    }
    Ok(Some(counts))
}

/// The paths that changed after `from`, oldest change first.
pub(super) fn changed(
    conn: &Connection,
    from: u64,
    page: PageMax,
) -> Result<(Vec<Record>, bool), StoreError> {
    let sql = "SELECT version, site, path, digest, bytes, content_type FROM asset
               WHERE version > ?1 AND digest IS NOT NULL ORDER BY version";
    let mut select = conn.prepare_cached(sql)?;
    let rows = select.query_map([from], |row| {
        let asset = Asset { digest: Digest(row.get(3)?), bytes: row.get(4)?, content_type: row.get(5)? };
        Ok((row.get(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?, asset))
    })?;
    page.fill(rows.map(|row| {
        let (version, site, path, asset) = row?;
        let site = site.parse().map_err(|e| StoreError::corrupt("asset", e))?;
        Ok(Record { version, body: AssetChange { site, path, asset: Some(asset) }.to_bytes() })
    }))
}

impl Store {
    /// Makes `manifest` the whole of the site's assets, in one transaction. None: there is no such site.
    pub(crate) async fn put_assets(
        &self,
        site: SiteId,
        manifest: BTreeMap<String, Asset>,
        actor: Actor,
    ) -> Result<Option<AssetsPut>, StoreError> {
        self.write(move |tx| put(tx, &site, &manifest, &actor).map(Decision::Keep)).await
    }

    pub(crate) async fn assets(&self, site: SiteId) -> Result<BTreeMap<String, Asset>, StoreError> {
        self.read(move |conn| load(conn, &site)).await
    }
}
