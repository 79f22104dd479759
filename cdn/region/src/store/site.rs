//! Tables `site` and `site_host`: merchants' settings, one entry of the Config log per change.

use souk_commerce::id::SiteId;
use souk_commerce::site::SiteSettings;
use souk_replication::{Log, Record};

use super::audit::{self, Actor, Deed};
use super::engine::{Session, params};
use super::log::{self, PageMax};
use super::release;
use super::{Decision, Store, StoreError, Tx};

/// What became of new settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PutSite {
    Written {
        version: u64,
        created: bool,
    },
    Unchanged {
        version: u64,
    },
    /// Another site answers to this host name.
    HostTaken {
        host: String,
        site: String,
    },
    /// Prices are numbers of the old currency's minor unit: they would all change their meaning.
    CurrencyChange {
        from: String,
    },
    /// A merchant asked for a host name that the site does not have.
    HostsNotGiven,
    /// A merchant asked for another weight than the site has.
    WeightNotGiven,
}

/// Whose settings they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    Operator,
    /// Neither a host name nor a share of the processors is theirs to take. A weight that is left out stays.
    Merchant,
}

/// Settings and the version of the Config log that wrote them.
#[derive(Debug, Clone)]
pub(crate) struct SiteRow {
    pub(crate) settings: SiteSettings,
    pub(crate) version: u64,
}

pub(super) fn exists(conn: &dyn Session, site: &SiteId) -> Result<bool, StoreError> {
    conn.exists("SELECT 1 FROM site WHERE site = ?1", params![site.as_str()])
}

pub(super) fn find(conn: &dyn Session, site: &SiteId) -> Result<Option<SiteRow>, StoreError> {
    let found: Option<(String, u64)> =
        conn.find("SELECT settings, version FROM site WHERE site = ?1", params![site.as_str()], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?;
    found
        .map(|(json, version)| {
            let settings =
                SiteSettings::from_bytes(json.as_bytes()).map_err(|e| StoreError::corrupt("site", e))?;
            Ok(SiteRow { settings, version })
        })
        .transpose()
}

pub(super) fn version(conn: &dyn Session, site: &SiteId) -> Result<u64, StoreError> {
    Ok(conn
        .find("SELECT version FROM site WHERE site = ?1", params![site.as_str()], |row| row.get(0))?
        .unwrap_or(0))
}

fn put(
    tx: &Tx<'_>,
    mut settings: SiteSettings,
    by: By,
    actor: &Actor,
) -> Result<Decision<PutSite>, StoreError> {
    let before = find(tx.sql, &settings.site)?;
    if by == By::Merchant {
        let (hosts, weight) = before
            .as_ref()
            .map_or((&[][..], None), |row| (row.settings.hosts.as_slice(), row.settings.cpu_weight));
        // A host name belongs to whoever asks for it first, and nobody has shown that it is theirs.
        if settings.hosts.iter().any(|host| !hosts.contains(host)) {
            return Ok(Decision::Undo(PutSite::HostsNotGiven));
        }
        // What one site gets more, others get less.
        if settings.cpu_weight.is_some() && settings.cpu_weight != weight {
            return Ok(Decision::Undo(PutSite::WeightNotGiven));
        }
        settings.cpu_weight = weight;
    }
    let (settings, site) = (&settings, &settings.site);
    if let Some(before) = &before {
        if before.settings == *settings {
            return Ok(Decision::Keep(PutSite::Unchanged { version: before.version }));
        }
        if before.settings.currency != settings.currency {
            return Ok(Decision::Undo(PutSite::CurrencyChange {
                from: before.settings.currency.to_string(),
            }));
        }
    }
    let body = settings.to_bytes();
    let version = log::append(tx, Log::Config, &body)?;
    let json = String::from_utf8(body).map_err(|e| StoreError::corrupt("site", e))?;
    let sql = "INSERT INTO site (site, settings, version) VALUES (?1, ?2, ?3)
               ON CONFLICT (site) DO UPDATE SET settings = ?2, version = ?3";
    tx.sql.execute(sql, params![site.as_str(), json, version])?;
    tx.sql.execute("DELETE FROM site_host WHERE site = ?1", params![site.as_str()])?;
    for host in &settings.hosts {
        let sql = "INSERT INTO site_host (host, site) VALUES (?1, ?2) ON CONFLICT (host) DO UPDATE SET host = site_host.host
                   RETURNING site";
        let owner: String = tx.sql.one(sql, params![host, site.as_str()], |row| row.get(0))?;
        if owner != site.as_str() {
            return Ok(Decision::Undo(PutSite::HostTaken { host: host.clone(), site: owner }));
        }
    }
    if before.is_none() {
        release::begin(tx, site)?;
    }
    let detail = serde_json::json!({ "version": version, "hosts": settings.hosts });
    audit::record(tx, actor, &Deed { action: "site.put", subject: site.to_string(), detail })?;
    Ok(Decision::Keep(PutSite::Written { version, created: before.is_none() }))
}

/// The settings that changed after `from`, oldest change first.
pub(super) fn changed(
    conn: &dyn Session,
    from: u64,
    page: PageMax,
) -> Result<(Vec<Record>, bool), StoreError> {
    let sql = "SELECT version, settings FROM site WHERE version > ?1 ORDER BY version LIMIT ?2";
    page.read(conn, sql, &[], from, |row| {
        Ok(Record { version: row.get(0)?, body: row.get::<String>(1)?.into_bytes() })
    })
}

impl Store {
    pub(crate) async fn put_site(
        &self,
        settings: SiteSettings,
        by: By,
        actor: Actor,
    ) -> Result<PutSite, StoreError> {
        self.write(move |tx| put(tx, settings.clone(), by, &actor)).await
    }

    pub(crate) async fn site(&self, site: SiteId) -> Result<Option<SiteRow>, StoreError> {
        self.read(move |conn| find(conn, &site)).await
    }

    pub(crate) async fn sites(&self) -> Result<Vec<String>, StoreError> {
        self.read(|conn| conn.list("SELECT site FROM site ORDER BY site", &[], |row| row.get(0))).await
    }
}
