//! `/v1/sites/{site}/plugins`: the merchant's day. Push a component, deploy a release of it, go back, look. Whether the
//! nodes have followed is asked in [`super::readiness`].

use std::time::Instant;

use axum::extract::{Path, State};
use axum::{Extension, Json};
use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::{Deserialize, Serialize};
use souk_commerce::id::{Digest, PluginName, SiteId};
use souk_commerce::site::{Grants, Kind, OnFault, Release};
use souk_sandbox::admit::{COMPONENT_BYTES_MAX, Capabilities};

use super::blobs::{finish, still_here};
use super::problem::Problem;
use super::releases::{refused, stays};
use super::{Answer, Body, Shared, Site, named};
use crate::blobs::Held;
use crate::collect::PUSH_KEPT_MS;
use crate::store::audit::Actor;
use crate::store::push::{PUSHED_BYTES_MAX, PUSHES_MAX, PushRow, PutPush};
use crate::store::release::{Change, Changed, Changes, ReleaseRow, Wanted};

#[derive(Deserialize)]
pub(super) struct InPath {
    plugin: String,
}

impl InPath {
    fn name(&self) -> Result<PluginName, Problem> {
        named("plugin", &self.plugin)
    }
}

#[derive(Deserialize)]
pub(super) struct ComponentInPath {
    plugin: String,
    digest: String,
}

impl ComponentInPath {
    pub(super) fn names(&self) -> Result<(PluginName, Digest), Problem> {
        Ok((named("plugin", &self.plugin)?, named("digest", &self.digest)?))
    }
}

/// What a push answers.
#[derive(Serialize)]
pub(super) struct Pushed {
    plugin: PluginName,
    component: Digest,
    bytes: u64,
    kind: Option<Kind>,
    /// False: the site had it.
    created: bool,
    capabilities: Capabilities,
    /// Against what the changes are told: the release that is active, else what was pushed before; else nothing.
    since: Option<Since>,
    changes: Vec<String>,
}

#[derive(Serialize)]
struct Since {
    #[serde(skip_serializing_if = "Option::is_none")]
    release: Option<u32>,
    component: Digest,
}

pub(super) async fn push(
    State(control): State<Shared>,
    Extension(actor): Extension<Actor>,
    Site(site): Site,
    Path(path): Path<ComponentInPath>,
    body: axum::body::Body,
) -> Answer<Pushed> {
    let (plugin, digest) = path.names()?;
    // Always whole, also when the region has a blob of this name: to know a digest is not to have the component.
    let component = read(body).await?;
    let bytes = component.len() as u64;
    let (actual, component) = tokio::task::spawn_blocking(move || (Digest::of(&component), component))
        .await
        .map_err(|_| Problem::internal())?;
    if actual != digest {
        return Err(Problem::invalid("digest", format!("the body is {actual}")));
    }
    // Before anything is compiled or written: bytes that nobody counts would stay for ever.
    is_kept(&site, control.store.may_push(site.clone(), plugin.clone(), digest, bytes).await?)?;
    let admitted = control.chains.admit(&site, digest, component.clone()).await;
    let capabilities = admitted.map_err(|error| refused("component".to_owned(), error))?;
    let before = known(&control, &site, &plugin, digest).await?;
    control.rollout.pushed(&site, digest, Instant::now());
    let row = PushRow { component: digest, capabilities: capabilities.clone(), pushed_ms: 0, bytes };
    let created = finish(keep(Shared::clone(&control), actor, site, plugin.clone(), row, component)).await?;
    let changes = before.as_ref().map_or_else(Vec::new, |(_, before)| before.diff(&capabilities));
    Ok(Json(Pushed {
        plugin,
        component: digest,
        bytes,
        kind: capabilities.kind(),
        created,
        since: before.map(|(since, _)| since),
        changes: changes.iter().map(ToString::to_string).collect(),
        capabilities,
    }))
}

async fn read(body: axum::body::Body) -> Result<Bytes, Problem> {
    match Limited::new(body, COMPONENT_BYTES_MAX).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(Problem::too_large(format!("a component has at most {COMPONENT_BYTES_MAX} bytes")))
        }
        Err(error) => Err(Problem::broken_body(error.to_string())),
    }
}

/// What the merchant compares with.
async fn known(
    control: &Shared,
    site: &SiteId,
    plugin: &PluginName,
    digest: Digest,
) -> Result<Option<(Since, Capabilities)>, Problem> {
    let set = control.store.releases(site.clone()).await?;
    let active = set.releases.iter().find(|release| release.plugin == *plugin);
    let asked = active.map(|release| release.component);
    let row = control.store.push(site.clone(), plugin.clone(), asked).await?;
    let row = row.filter(|row| asked.is_some() || row.component != digest);
    Ok(row.map(|row| {
        let release = active.map(|release| release.number);
        (Since { release, component: row.component }, row.capabilities)
    }))
}

/// Keeps a component that was judged and compiled: what the compiler has to say it has said before, and not at the
/// deploy.
async fn keep(
    control: Shared,
    actor: Actor,
    site: SiteId,
    plugin: PluginName,
    row: PushRow,
    component: Bytes,
) -> Result<bool, Problem> {
    let digest = row.component;
    let _relied_on = control.blobs.relied_on().await;
    if !matches!(control.blobs.check(digest).await?, Held::Whole { .. }) {
        let mut upload = control.blobs.begin().await?;
        upload.write(&component).await?;
        upload.finish(digest).await?;
    }
    let created = is_kept(&site, control.store.put_push(site.clone(), plugin, row, actor).await?)?;
    still_here(&control.blobs, [digest]).await?;
    Ok(created)
}

/// True: it is new.
fn is_kept(site: &SiteId, put: PutPush) -> Result<bool, Problem> {
    match put {
        PutPush::Kept { created } => Ok(created),
        PutPush::NoSite => Err(Problem::no_site(site)),
        PutPush::Full { bytes, pushes } => {
            let detail = format!(
                "site {site} keeps {pushes} components of {bytes} bytes; it may keep {PUSHES_MAX} of \
                 {PUSHED_BYTES_MAX}"
            );
            Err(Problem::conflict("storage_full", detail)
                .remedy(format!(
                    "What no release refers to goes {} days after it was pushed. Until then deploy one that is there \
                     (souk plugin deploy NAME --component SHA256), or ask the operator for room.",
                    PUSH_KEPT_MS / 86_400_000
                )))
        }
    }
}

/// A deploy: a release that exists by its `number`, or a new one. What is not named stays as it is in the release that
/// is active.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Wish {
    number: Option<u32>,
    component: Option<Digest>,
    settings: Option<serde_json::Value>,
    on_fault: Option<OnFault>,
    grants: Option<Grants>,
    route: Option<String>,
    reuse: Option<u32>,
    record_bp: Option<u16>,
    /// Place in the chain, from 0.
    position: Option<usize>,
}

/// What a change of the chain answers.
#[derive(Serialize)]
pub(super) struct Done {
    site: SiteId,
    plugin: PluginName,
    /// Of the site's release set: what nodes are waited for with.
    version: u64,
    before: Option<u32>,
    after: Option<u32>,
    changed: bool,
    release: Option<Release>,
    chain: Vec<String>,
}

pub(super) async fn deploy(
    State(control): State<Shared>,
    Extension(actor): Extension<Actor>,
    Site(site): Site,
    Path(path): Path<InPath>,
    Body(wish): Body<Wish>,
) -> Answer<Done> {
    let Wish { number, component, settings, on_fault, grants, route, reuse, record_bp, position } = wish;
    let changes = Changes { component, settings, on_fault, grants, route, reuse, record_bp };
    let wanted = match number {
        Some(_) if changes != Changes::default() => {
            let detail = "a release that exists is immutable: its number stands alone, but for the position";
            return Err(Problem::invalid("number", detail));
        }
        Some(number) => Wanted::Number(number),
        None => Wanted::New(Box::new(changes)),
    };
    apply(control, actor, site, Change { plugin: path.name()?, wanted, position }).await
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Back {
    /// The release that the caller believes to be active: with it, a repeated call does not go back twice.
    from: Option<u32>,
    /// Another one than the standby.
    to: Option<u32>,
}

pub(super) async fn roll_back(
    State(control): State<Shared>,
    Extension(actor): Extension<Actor>,
    Site(site): Site,
    Path(path): Path<InPath>,
    Body(Back { from, to }): Body<Back>,
) -> Answer<Done> {
    let wanted = Wanted::Before { from, to };
    apply(control, actor, site, Change { plugin: path.name()?, wanted, position: None }).await
}

pub(super) async fn remove(
    State(control): State<Shared>,
    Extension(actor): Extension<Actor>,
    Site(site): Site,
    Path(path): Path<InPath>,
) -> Answer<Done> {
    let wanted = Wanted::Nothing;
    apply(control, actor, site, Change { plugin: path.name()?, wanted, position: None }).await
}

async fn apply(control: Shared, actor: Actor, site: SiteId, change: Change) -> Answer<Done> {
    let (began, plugin) = (Instant::now(), change.plugin.clone());
    let Changed { set, before, after, changed } =
        finish(change_chain(Shared::clone(&control), actor, site.clone(), change)).await?;
    if changed {
        control.rollout.published(&site, set.version, began);
    }
    let chain = set.releases.iter().map(|r| format!("{}#{}", r.plugin, r.number)).collect();
    let release = set.releases.into_iter().find(|release| release.plugin == plugin);
    Ok(Json(Done { site, plugin, version: set.version, before, after, changed, release, chain }))
}

/// Changes a chain to what the region has the bytes of: a database may be older than the folder of blobs, or the other way
/// round. Not asked of a step back, for which the nodes keep what they need: an emergency is no time to refuse.
async fn change_chain(
    control: Shared,
    actor: Actor,
    site: SiteId,
    change: Change,
) -> Result<Changed, Problem> {
    let _relied_on = control.blobs.relied_on().await;
    let named =
        control.store.component_of(site.clone(), change.plugin.clone(), change.wanted.clone()).await?;
    if let Some(component) = named
        && control.blobs.size(component).await?.is_none()
    {
        let detail = format!("the region does not have the bytes of component {component}");
        return Err(Problem::invalid("component", detail)
            .remedy(format!("Push it again: souk plugin push FILE --plugin {}", change.plugin)));
    }
    let done = control.store.change_plugin(site.clone(), change, actor).await?;
    done.map_err(|why| stays(&site, why))
}

#[derive(Serialize)]
pub(super) struct Plugins {
    site: SiteId,
    version: u64,
    plugins: Vec<Plugin>,
}

#[derive(Serialize)]
struct Plugin {
    plugin: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    active: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    standby: Option<u32>,
}

pub(super) async fn list(State(control): State<Shared>, Site(site): Site) -> Answer<Plugins> {
    if control.store.site(site.clone()).await?.is_none() {
        return Err(Problem::no_site(&site));
    }
    let set = control.store.releases(site.clone()).await?;
    let names = control.store.plugins(site.clone()).await?;
    let number = |releases: &[Release], name: &str| {
        releases.iter().find(|release| release.plugin.as_str() == name).map(|release| release.number)
    };
    let plugins = names.into_iter().map(|plugin| Plugin {
        position: set.releases.iter().position(|release| release.plugin.as_str() == plugin),
        active: number(&set.releases, &plugin),
        standby: number(&set.standby, &plugin),
        plugin,
    });
    Ok(Json(Plugins { site, version: set.version, plugins: plugins.collect() }))
}

#[derive(Serialize)]
pub(super) struct Releases {
    plugin: PluginName,
    active: Option<u32>,
    /// What a roll-back goes to.
    standby: Option<u32>,
    /// The newest first.
    releases: Vec<ReleaseRow>,
}

pub(super) async fn releases(
    State(control): State<Shared>,
    Site(site): Site,
    Path(path): Path<InPath>,
) -> Answer<Releases> {
    let plugin = path.name()?;
    let set = control.store.releases(site.clone()).await?;
    let releases = control.store.releases_of(site, plugin.clone()).await?;
    if releases.is_empty() {
        return Err(Problem::not_found(&format!("release of a plugin {plugin}")));
    }
    let number = |releases: &[Release]| releases.iter().find(|r| r.plugin == plugin).map(|r| r.number);
    let (active, standby) = (number(&set.releases), number(&set.standby));
    Ok(Json(Releases { plugin, active, standby, releases }))
}
