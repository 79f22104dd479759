//! Tables `release` and `release_set`: every plugin release of a site, and the chain that is active.
//!
//! A release is immutable once it has a number. Whatever changes the chain (the whole of it, a deploy, a roll-back, a
//! removal) is one transaction: the number, the seal, the set with its standby, the entry of the log, the audit record.

mod numbered;

use souk_commerce::id::{Digest, PluginName, SiteId};
use souk_commerce::site::{
    COMING_MAX, Grants, Hook, InvalidSettings, Kind, OnFault, RELEASES_MAX, Release, ReleaseSet,
    SETTINGS_BYTES_MAX,
};
use souk_replication::{Log, Record};
use souk_sandbox::admit::Capabilities;

use super::audit::{self, Actor, Deed};
use super::engine::{Session, params};
use super::log::{self, PageMax};
use super::push;
use super::{Decision, Store, StoreError, Tx};
use numbered::{Draft, by_number, decode, number, previous};

/// Releases of one plugin that are told of, the newest first.
pub(crate) const RELEASES_LISTED_MAX: usize = 200;

/// What a deploy changes of the release that is active; what it does not name stays, or has its default.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Changes {
    /// None: the one that was pushed last.
    pub(crate) component: Option<Digest>,
    pub(crate) settings: Option<serde_json::Value>,
    pub(crate) on_fault: Option<OnFault>,
    pub(crate) grants: Option<Grants>,
    pub(crate) route: Option<String>,
    pub(crate) reuse: Option<u32>,
    pub(crate) record_bp: Option<u16>,
}

/// One plugin of a chain that is put whole.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Link {
    pub(crate) plugin: PluginName,
    pub(crate) component: Digest,
    /// What the component is.
    pub(crate) kind: Kind,
    pub(crate) hooks: Vec<Hook>,
    /// But for the component.
    pub(crate) changes: Changes,
}

/// Which release of a plugin is to be active.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Wanted {
    Number(u32),
    New(Box<Changes>),
    /// The one before. `from` is the number that the caller believes to be active, so that a repeated call does not go
    /// back twice; `to` another one than the standby.
    Before {
        from: Option<u32>,
        to: Option<u32>,
    },
    Nothing,
}

/// One change of one plugin of a chain.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Change {
    pub(crate) plugin: PluginName,
    pub(crate) wanted: Wanted,
    /// Place in the chain, from 0. None: where it is, a new one last.
    pub(crate) position: Option<usize>,
}

/// A chain as it is after a change, and what was active of the plugin before and after.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Changed {
    pub(crate) set: ReleaseSet,
    pub(crate) before: Option<u32>,
    pub(crate) after: Option<u32>,
    pub(crate) changed: bool,
}

/// Why a chain stays as it is.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(crate) enum Stays {
    #[error("there is no such site")]
    NoSite,
    #[error("the plugin has no release {0}")]
    NoRelease(u32),
    #[error("the plugin is not in the chain")]
    NotActive,
    #[error("release {active} is active, not {from}")]
    Moved { active: u32, from: u32 },
    #[error("no component was pushed for the plugin")]
    NothingPushed,
    #[error("component {0} was not pushed for the plugin")]
    NotPushed(Digest),
    #[error("{0}")]
    Invalid(InvalidSettings),
    /// Of a chain that was put whole.
    #[error("{why}")]
    InvalidLink { index: usize, why: InvalidSettings },
    #[error("route {route} is that of plugin {plugin}")]
    RouteTaken { route: String, plugin: PluginName },
    #[error("{plugins} plugins are more than {RELEASES_MAX}: they share one deadline")]
    TooMany { plugins: usize },
    /// The chain does not fit a record of its log.
    #[error("the chain has {bytes} bytes of JSON, more than {SETTINGS_BYTES_MAX}")]
    TooLarge { bytes: usize },
}

/// A release and when it was made.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub(crate) struct ReleaseRow {
    #[serde(flatten)]
    pub(crate) release: Release,
    pub(crate) created_ms: u64,
}

type Outcome<T> = Result<Result<T, Stays>, StoreError>;

pub(super) fn find(conn: &dyn Session, site: &SiteId) -> Result<Option<ReleaseSet>, StoreError> {
    let body: Option<String> =
        conn.find("SELECT body FROM release_set WHERE site = ?1", params![site.as_str()], |row| row.get(0))?;
    body.map(|body| {
        ReleaseSet::from_bytes(body.as_bytes()).map_err(|e| StoreError::corrupt("release_set", e))
    })
    .transpose()
}

pub(super) fn version(conn: &dyn Session, site: &SiteId) -> Result<u64, StoreError> {
    Ok(conn
        .find("SELECT version FROM release_set WHERE site = ?1", params![site.as_str()], |row| row.get(0))?
        .unwrap_or(0))
}

pub(super) fn active(conn: &dyn Session, site: &SiteId) -> Result<ReleaseSet, StoreError> {
    Ok(find(conn, site)?.unwrap_or_else(|| ReleaseSet::empty(site.clone())))
}

/// Per plugin of the new chain the release to go back to: the one that was active before a step forward; after a step
/// back the one before that, because the one that was left was left for a reason.
fn standby(tx: &Tx<'_>, before: &ReleaseSet, releases: &[Release]) -> Result<Vec<Release>, StoreError> {
    let mut kept = Vec::new();
    for release in releases {
        let of_plugin = |other: &&Release| other.plugin == release.plugin;
        let found = match before.releases.iter().find(of_plugin) {
            Some(was) if was.number < release.number => Some(was.clone()),
            // A set without seals is of a version that knew no standby: none is named, and yet there may be one.
            Some(was) if was.number == release.number && was.seal.is_some() => {
                before.standby.iter().find(of_plugin).cloned()
            }
            Some(_) => previous(tx, &before.site, release)?,
            None => None,
        };
        kept.extend(found);
    }
    Ok(kept)
}

/// Makes `releases` the chain: seals what another key or none has sealed, writes, publishes.
fn write(
    tx: &Tx<'_>,
    before: &ReleaseSet,
    mut releases: Vec<Release>,
    action: &'static str,
    actor: &Actor,
) -> Outcome<Option<ReleaseSet>> {
    if releases.len() > RELEASES_MAX {
        return Ok(Err(Stays::TooMany { plugins: releases.len() }));
    }
    for (index, release) in releases.iter().enumerate() {
        let Some(route) = &release.route else { continue };
        // `/reviews` and `/reviews/` take the same paths.
        let same = |other: &&Release| {
            other.route.as_ref().is_some_and(|r| r.trim_end_matches('/') == route.trim_end_matches('/'))
        };
        if let Some(other) = releases[..index].iter().find(same) {
            return Ok(Err(Stays::RouteTaken { route: route.clone(), plugin: other.plugin.clone() }));
        }
    }
    let site = &before.site;
    let mut standby = standby(tx, before, &releases)?;
    let mut coming = before.coming.clone();
    coming.retain(|ahead| !releases.iter().any(|release| release.component == ahead.component));
    let seal = &tx.settings.seal;
    for release in releases.iter_mut().chain(&mut standby).chain(&mut coming) {
        if release.seal.as_ref().is_none_or(|sealed| sealed.key != seal.id()) {
            seal.seal(site, release);
        }
    }
    let is_sealed = before.seal.as_ref().is_some_and(|sealed| sealed.key == seal.id());
    // There is nothing to vouch for at a site that never had a set.
    if before.releases == releases && before.standby == standby && (is_sealed || before.version == 0) {
        return Ok(Ok(None));
    }
    let set = ReleaseSet { releases, standby, coming, ..before.clone() };
    let set = match publish_chain(tx, set)? {
        Ok(set) => set,
        Err(stays) => return Ok(Err(stays)),
    };
    let chain = |set: &ReleaseSet| -> Vec<String> {
        set.releases.iter().map(|r| format!("{}#{} {}", r.plugin, r.number, r.component)).collect()
    };
    let detail = serde_json::json!({ "version": set.version, "before": chain(before), "after": chain(&set) });
    audit::record(tx, actor, &Deed { action, subject: site.to_string(), detail })?;
    Ok(Ok(Some(set)))
}

/// Says that a site has no plugins. A node that has once had a set of a site of this name, from a region that was lost, takes
/// the absence of one for a message that was kept from it.
pub(super) fn begin(tx: &Tx<'_>, site: &SiteId) -> Result<(), StoreError> {
    if find(tx.sql, site)?.is_none()
        && let Err(stays) = publish(tx, ReleaseSet::empty(site.clone()))?
    {
        return Err(StoreError::corrupt("release_set", stays));
    }
    Ok(())
}

/// Publishes a set; one that has no room, without the news of what is to come: to change the chain comes first.
fn publish_chain(tx: &Tx<'_>, set: ReleaseSet) -> Outcome<ReleaseSet> {
    if set.coming.is_empty() {
        return publish(tx, set);
    }
    match publish(tx, set.clone())? {
        Err(Stays::TooLarge { .. }) => publish(tx, ReleaseSet { coming: Vec::new(), ..set }),
        outcome => Ok(outcome),
    }
}

/// Gives a set its version, its number and its seal, and writes the row and the entry of the log.
fn publish(tx: &Tx<'_>, mut set: ReleaseSet) -> Outcome<ReleaseSet> {
    set.version = log::next_version(tx, Log::Release)?;
    // By the clock, and not only one more than before: what a region wrote after the backup that it came back from had
    // greater numbers than the backup knows of, and nodes have had them.
    set.number = tx.now_ms.max(set.number + 1);
    tx.settings.seal.seal_set(&mut set);
    let body = set.to_bytes();
    if body.len() > SETTINGS_BYTES_MAX {
        return Ok(Err(Stays::TooLarge { bytes: body.len() }));
    }
    log::append(tx, Log::Release, &body)?;
    let json = String::from_utf8(body).map_err(|e| StoreError::corrupt("release_set", e))?;
    let sql = "INSERT INTO release_set (site, body, version) VALUES (?1, ?2, ?3)
               ON CONFLICT (site) DO UPDATE SET body = ?2, version = ?3";
    tx.sql.execute(sql, params![set.site.as_str(), json, set.version])?;
    Ok(Ok(set))
}

/// Tells the nodes of a component that was pushed, so that they have compiled it before it is deployed. The chain stays
/// as it is; where there is no room for the news, the deploy takes its time instead.
pub(super) fn announce(
    tx: &Tx<'_>,
    site: &SiteId,
    plugin: &PluginName,
    component: Digest,
    capabilities: &Capabilities,
) -> Result<(), StoreError> {
    let Some(kind) = capabilities.kind() else { return Ok(()) };
    let mut set = active(tx.sql, site)?;
    // What stands by is announced like the rest: a node does without a standby that it cannot compile, and so says nothing
    // of it.
    if set.releases.iter().chain(&set.coming).any(|known| known.component == component) {
        return Ok(());
    }
    let mut ahead = Draft {
        plugin: plugin.clone(),
        component,
        kind,
        hooks: capabilities.hooks.clone(),
        settings: serde_json::Value::Null,
        on_fault: OnFault::default(),
        grants: Grants::default(),
        route: None,
        reuse: 0,
        record_bp: 0,
    }
    .numbered(0);
    tx.settings.seal.seal(site, &mut ahead);
    set.coming.retain(|other| other.plugin != *plugin);
    set.coming.push(ahead);
    if set.coming.len() > COMING_MAX {
        set.coming.remove(0);
    }
    let _told = publish(tx, set)?;
    Ok(())
}

/// Tells the nodes that a component is not to come any more.
pub(super) fn withdraw(tx: &Tx<'_>, site: &SiteId, component: Digest) -> Result<(), StoreError> {
    let mut set = active(tx.sql, site)?;
    let before = set.coming.len();
    set.coming.retain(|ahead| ahead.component != component);
    if set.coming.len() < before {
        let _told = publish(tx, set)?;
    }
    Ok(())
}

fn put(tx: &Tx<'_>, site: &SiteId, links: Vec<Link>, actor: &Actor) -> Outcome<ReleaseSet> {
    if !super::site::exists(tx.sql, site)? {
        return Ok(Err(Stays::NoSite));
    }
    let before = active(tx.sql, site)?;
    let mut releases = Vec::with_capacity(links.len());
    for (index, Link { plugin, component, kind, hooks, changes }) in links.into_iter().enumerate() {
        let was = before.releases.iter().find(|release| release.plugin == plugin);
        match number(tx, site, changes.draft(plugin, component, (kind, hooks), was), was)? {
            Ok(release) => releases.push(release),
            Err(Stays::Invalid(why)) => return Ok(Err(Stays::InvalidLink { index, why })),
            Err(stays) => return Ok(Err(stays)),
        }
    }
    Ok(write(tx, &before, releases, "releases.put", actor)?.map(|set| set.unwrap_or(before)))
}

/// Whether the site ever had a release of the plugin, or was brought a component of it.
fn is_known(tx: &Tx<'_>, site: &SiteId, plugin: &PluginName) -> Result<bool, StoreError> {
    let sql = "SELECT 1 FROM release WHERE site = ?1 AND plugin = ?2
               UNION ALL SELECT 1 FROM push WHERE site = ?1 AND plugin = ?2";
    tx.sql.exists(sql, params![site.as_str(), plugin.as_str()])
}

/// The release that a change wants to be active; none if the plugin is to leave the chain.
fn choose(
    tx: &Tx<'_>,
    before: &ReleaseSet,
    active: Option<&Release>,
    plugin: &PluginName,
    wanted: Wanted,
) -> Outcome<Option<Release>> {
    let site = &before.site;
    let numbered = |number: u32| -> Outcome<Option<Release>> {
        Ok(by_number(tx.sql, site, plugin, number)?.map(Some).ok_or(Stays::NoRelease(number)))
    };
    match wanted {
        Wanted::Number(number) => numbered(number),
        Wanted::New(changes) => {
            let changes = *changes;
            let Some(pushed) = push::find(tx.sql, site, plugin, changes.component)? else {
                return Ok(Err(changes.component.map_or(Stays::NothingPushed, Stays::NotPushed)));
            };
            let Some(kind) = pushed.capabilities.kind() else {
                return Ok(Err(Stays::NothingPushed));
            };
            let made_of = (kind, pushed.capabilities.hooks);
            let draft = changes.draft(plugin.clone(), pushed.component, made_of, active);
            Ok(number(tx, site, draft, active)?.map(Some))
        }
        Wanted::Before { from, to } => {
            let Some(active) = active else {
                return Ok(Err(Stays::NotActive));
            };
            if let Some(from) = from
                && from != active.number
            {
                let there = to == Some(active.number);
                let moved = Stays::Moved { active: active.number, from };
                return Ok(if there { Ok(Some(active.clone())) } else { Err(moved) });
            }
            match to.or_else(|| before.standby.iter().find(|r| r.plugin == *plugin).map(|r| r.number)) {
                Some(number) => numbered(number),
                // Before its first release there was no plugin.
                None => Ok(Ok(None)),
            }
        }
        // Said twice, it is as true as said once; of a plugin that never was, it is a mistake.
        Wanted::Nothing if active.is_none() && !is_known(tx, site, plugin)? => Ok(Err(Stays::NotActive)),
        Wanted::Nothing => Ok(Ok(None)),
    }
}

fn change(tx: &Tx<'_>, site: &SiteId, change: Change, actor: &Actor) -> Outcome<Changed> {
    if !super::site::exists(tx.sql, site)? {
        return Ok(Err(Stays::NoSite));
    }
    let Change { plugin, wanted, position } = change;
    let before = active(tx.sql, site)?;
    let at = before.releases.iter().position(|release| release.plugin == plugin);
    let was = at.map(|at| &before.releases[at]);
    let action = match wanted {
        Wanted::Before { .. } => "plugin.rollback",
        Wanted::Nothing => "plugin.remove",
        Wanted::Number(_) | Wanted::New(_) => "plugin.deploy",
    };
    let chosen = match choose(tx, &before, was, &plugin, wanted)? {
        Ok(chosen) => chosen,
        Err(stays) => return Ok(Err(stays)),
    };
    let mut releases = before.releases.clone();
    if let Some(at) = at {
        releases.remove(at);
    }
    let (from, to) = (was.map(|r| r.number), chosen.as_ref().map(|r| r.number));
    if let Some(chosen) = chosen {
        let place = position.or(at).unwrap_or(releases.len()).min(releases.len());
        releases.insert(place, chosen);
    }
    Ok(write(tx, &before, releases, action, actor)?.map(|written| Changed {
        changed: written.is_some(),
        set: written.unwrap_or_else(|| before.clone()),
        before: from,
        after: to,
    }))
}

/// Keeps what was done, or nothing of it.
fn decided<T>(outcome: Result<T, Stays>) -> Decision<Result<T, Stays>> {
    match outcome {
        Ok(done) => Decision::Keep(Ok(done)),
        Err(stays) => Decision::Undo(Err(stays)),
    }
}

/// The chains that changed after `from`, oldest change first.
pub(super) fn changed(
    conn: &dyn Session,
    from: u64,
    page: PageMax,
) -> Result<(Vec<Record>, bool), StoreError> {
    let sql = "SELECT version, body FROM release_set WHERE version > ?1 ORDER BY version LIMIT ?2";
    page.read(conn, sql, &[], from, |row| {
        Ok(Record { version: row.get(0)?, body: row.get::<String>(1)?.into_bytes() })
    })
}

impl Store {
    /// Makes `links` the whole chain of the site.
    pub(crate) async fn put_releases(
        &self,
        site: SiteId,
        links: Vec<Link>,
        actor: Actor,
    ) -> Result<Result<ReleaseSet, Stays>, StoreError> {
        self.write(move |tx| put(tx, &site, links.clone(), &actor).map(decided)).await
    }

    /// Changes one plugin of the chain.
    pub(crate) async fn change_plugin(
        &self,
        site: SiteId,
        wanted: Change,
        actor: Actor,
    ) -> Result<Result<Changed, Stays>, StoreError> {
        self.write(move |tx| change(tx, &site, wanted.clone(), &actor).map(decided)).await
    }

    /// The component that a deploy would put into the chain; none of what it cannot deploy, and of any other change.
    pub(crate) async fn component_of(
        &self,
        site: SiteId,
        plugin: PluginName,
        wanted: Wanted,
    ) -> Result<Option<Digest>, StoreError> {
        self.read(move |conn| match wanted {
            Wanted::Number(number) => Ok(by_number(conn, &site, &plugin, number)?.map(|r| r.component)),
            Wanted::New(changes) => {
                Ok(push::find(conn, &site, &plugin, changes.component)?.map(|pushed| pushed.component))
            }
            Wanted::Before { .. } | Wanted::Nothing => Ok(None),
        })
        .await
    }

    /// Seals with the region's present key every active chain that another one has sealed, or none: after an update
    /// from a version without seals, or after the key was changed. A site that an older version left without a set gets an
    /// empty one. Returns how many.
    pub(crate) async fn seal_chains(&self, actor: Actor) -> Result<usize, StoreError> {
        self.write(move |tx| {
            let bodies: Vec<String> =
                tx.sql.list("SELECT body FROM release_set ORDER BY site", &[], |row| row.get(0))?;
            let mut sealed = 0;
            for body in bodies {
                let before = ReleaseSet::from_bytes(body.as_bytes())
                    .map_err(|e| StoreError::corrupt("release_set", e))?;
                let releases = before.releases.clone();
                match write(tx, &before, releases, "releases.seal", &actor)? {
                    Ok(written) => sealed += usize::from(written.is_some()),
                    Err(stays) => tracing::error!(site = %before.site, %stays, "a chain cannot be sealed"),
                }
            }
            let sql = "SELECT site FROM site WHERE site NOT IN (SELECT site FROM release_set) ORDER BY site";
            let bare: Vec<String> = tx.sql.list(sql, &[], |row| row.get(0))?;
            for site in &bare {
                begin(tx, &site.parse().map_err(|e| StoreError::corrupt("site", e))?)?;
            }
            sealed += bare.len();
            Ok(Decision::Keep(sealed))
        })
        .await
    }

    /// Numbers the sets of all sites anew, above whatever a lost database had given out since this one was saved. A site
    /// that has none here may have had one there: it gets an empty one.
    pub(crate) async fn renumber_sets(&self) -> Result<usize, StoreError> {
        self.write(|tx| {
            let sites: Vec<String> =
                tx.sql.list("SELECT site FROM site ORDER BY site", &[], |row| row.get(0))?;
            for site in &sites {
                let site = site.parse().map_err(|e| StoreError::corrupt("site", e))?;
                if let Err(stays) = publish_chain(tx, active(tx.sql, &site)?)? {
                    tracing::error!(%site, %stays, "a chain cannot be numbered anew");
                }
            }
            Ok(Decision::Keep(sites.len()))
        })
        .await
    }

    /// The active chain; an empty one of version 0 if there never was any.
    pub(crate) async fn releases(&self, site: SiteId) -> Result<ReleaseSet, StoreError> {
        self.read(move |conn| active(conn, &site)).await
    }

    /// The releases of one plugin, the newest first.
    pub(crate) async fn releases_of(
        &self,
        site: SiteId,
        plugin: PluginName,
    ) -> Result<Vec<ReleaseRow>, StoreError> {
        self.read(move |conn| {
            let sql = "SELECT body, created_ms FROM release WHERE site = ?1 AND plugin = ?2
                       ORDER BY number DESC LIMIT ?3";
            conn.list(sql, params![site.as_str(), plugin.as_str(), RELEASES_LISTED_MAX], |row| {
                Ok(ReleaseRow { release: decode(&row.get::<String>(0)?)?, created_ms: row.get(1)? })
            })
        })
        .await
    }

    /// Whether a release of the plugin at this site, active or not, is of this component.
    pub(crate) async fn is_released(
        &self,
        site: SiteId,
        plugin: PluginName,
        component: Digest,
    ) -> Result<bool, StoreError> {
        self.read(move |conn| {
            let of_release = conn.dialect().component_of_release();
            let sql = format!("SELECT 1 FROM release WHERE {of_release} = ?3 AND site = ?1 AND plugin = ?2");
            let named = params![site.as_str(), plugin.as_str(), component.to_string()];
            conn.exists(&sql, named)
        })
        .await
    }

    /// Every plugin that the site has ever released or been brought, by name.
    pub(crate) async fn plugins(&self, site: SiteId) -> Result<Vec<String>, StoreError> {
        self.read(move |conn| {
            let sql =
                "SELECT plugin FROM release WHERE site = ?1 UNION SELECT plugin FROM push WHERE site = ?1
                       ORDER BY plugin LIMIT 1000";
            conn.list(sql, params![site.as_str()], |row| row.get(0))
        })
        .await
    }
}

#[cfg(test)]
mod tests;
