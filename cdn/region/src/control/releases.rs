//! `/v1/sites/{site}/releases`: the chain of plugins of a site, always whole. The operator's way; merchants have
//! [`super::plugins`].

use std::collections::BTreeSet;
use std::time::Instant;

use axum::extract::State;
use axum::{Extension, Json};
use serde::Deserialize;
use souk_commerce::id::{Digest, PluginName, SiteId};
use souk_commerce::site::{Grants, InvalidSettings, Kind, OnFault, RELEASES_MAX, ReleaseSet};

use super::blobs::{finish, still_here};
use super::problem::Problem;
use super::{Answer, Body, Shared, Site};
use crate::chains::LoadError;
use crate::store::audit::Actor;
use crate::store::release::{Changes, Link, Stays};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Chain {
    releases: Vec<Row>,
}

/// One plugin. What is not named stays as it is in the release of the plugin that is active, if that is of the same kind,
/// as with a deploy.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    plugin: PluginName,
    component: Digest,
    /// What the caller believes the component to be: another kind is refused.
    kind: Option<Kind>,
    settings: Option<serde_json::Value>,
    on_fault: Option<OnFault>,
    grants: Option<Grants>,
    route: Option<String>,
    reuse: Option<u32>,
    record_bp: Option<u16>,
}

pub(super) async fn put(
    State(control): State<Shared>,
    Extension(actor): Extension<Actor>,
    Site(site): Site,
    Body(Chain { releases }): Body<Chain>,
) -> Answer<ReleaseSet> {
    if releases.len() > RELEASES_MAX {
        let detail =
            format!("{} plugins are more than {RELEASES_MAX}: they share one deadline", releases.len());
        return Err(Problem::invalid("releases", detail));
    }
    let mut names = BTreeSet::new();
    let mut links = Vec::with_capacity(releases.len());
    for (index, row) in releases.into_iter().enumerate() {
        let field = |name| format!("releases[{index}].{name}");
        if !names.insert(row.plugin.clone()) {
            let detail = format!("{} stands in the chain twice", row.plugin);
            return Err(Problem::invalid(field("plugin"), detail));
        }
        let Row { plugin, component, kind: wanted, settings, on_fault, grants, route, reuse, record_bp } =
            row;
        let judged = control.chains.judge(&site, component).await;
        let judged = judged.map_err(|error| refused(field("component"), error))?;
        let kind = judged
            .kind()
            .ok_or_else(|| Problem::invalid(field("component"), "it exports neither a hook nor wasi:http"))?;
        if let Some(wanted) = wanted.filter(|wanted| *wanted != kind) {
            let detail = format!("component {component} is of kind {kind}, not {wanted}");
            return Err(Problem::invalid(field("kind"), detail));
        }
        let changes = Changes { component: None, settings, on_fault, grants, route, reuse, record_bp };
        links.push(Link { plugin, component, kind, hooks: judged.hooks, changes });
    }
    finish(replace(control, actor, site, links)).await.map(Json)
}

/// Makes `links` the chain, if what it is made of is still here: it was judged while it could be collected.
async fn replace(
    control: Shared,
    actor: Actor,
    site: SiteId,
    links: Vec<Link>,
) -> Result<ReleaseSet, Problem> {
    let _relied_on = control.blobs.relied_on().await;
    for (index, Link { component, .. }) in links.iter().enumerate() {
        if control.blobs.size(*component).await?.is_none() {
            return Err(refused(format!("releases[{index}].component"), LoadError::NoBlob(*component)));
        }
    }
    let components: Vec<_> = links.iter().map(|link| link.component).collect();
    let began = Instant::now();
    let set =
        control.store.put_releases(site.clone(), links, actor).await?.map_err(|why| stays(&site, why))?;
    control.rollout.published(&site, set.version, began);
    still_here(&control.blobs, components).await?;
    Ok(set)
}

/// Why a chain stays as it is.
pub(super) fn stays(site: &SiteId, why: Stays) -> Problem {
    let detail = why.to_string();
    match why {
        Stays::NoSite => Problem::no_site(site),
        Stays::NoRelease(_) | Stays::NotActive => Problem::not_found_because(detail),
        Stays::Moved { .. } => {
            Problem::conflict("moved", detail).remedy("Look at the releases, and decide again.")
        }
        Stays::NothingPushed | Stays::NotPushed(_) => Problem::invalid("component", detail)
            .remedy("Bring it first: souk plugin push FILE --plugin NAME"),
        Stays::Invalid(why) => invalid(why.field().to_owned(), &why),
        Stays::InvalidLink { index, why } => invalid(format!("releases[{index}].{}", why.field()), &why),
        Stays::RouteTaken { .. } => Problem::conflict("route_taken", detail),
        Stays::TooMany { .. } => Problem::invalid("releases", detail),
        Stays::TooLarge { .. } => {
            Problem::invalid("releases", detail).remedy("Make the settings of the plugins smaller.")
        }
    }
}

fn invalid(field: String, why: &InvalidSettings) -> Problem {
    let problem = Problem::invalid(field, why.to_string());
    match why {
        InvalidSettings::NoRoute => problem.remedy("Say under which path it answers: --route /reviews"),
        InvalidSettings::TooMuch { field: "settings", .. } => {
            problem.remedy("Keep tables in the site's \"kv\".")
        }
        _ => problem,
    }
}

pub(super) fn refused(field: String, error: LoadError) -> Problem {
    match error {
        LoadError::NoBlob(digest) => Problem::invalid(field, format!("there is no blob {digest}"))
            .remedy(format!("Upload it first: PUT /v1/blobs/{digest}")),
        LoadError::Refused(refused) => Problem::component_refused(field, &refused),
        LoadError::Blob(error) => error.into(),
        LoadError::NotNow(why) => {
            tracing::warn!(why, "a component cannot be compiled now");
            Problem::busy()
        }
        LoadError::Panicked => {
            tracing::error!("loading a component panicked");
            Problem::internal()
        }
    }
}

pub(super) async fn get(State(control): State<Shared>, Site(site): Site) -> Answer<ReleaseSet> {
    if control.store.site(site.clone()).await?.is_none() {
        return Err(Problem::no_site(&site));
    }
    Ok(Json(control.store.releases(site).await?))
}
