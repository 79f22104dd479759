//! `/v1/sites/{site}/releases`: the chain of plugins of a site, always whole. The operator's way; merchants have
//! [`super::plugins`].

use std::collections::BTreeSet;
use std::time::Instant;

use axum::extract::State;
use axum::{Extension, Json};
use serde::Deserialize;
use souk_commerce::id::{Digest, PluginName, SiteId};
use souk_commerce::site::{
    Grants, InvalidSettings, Kind, OnFault, RECORD_BP_MAX, RELEASE_SETTINGS_BYTES_MAX, RELEASES_MAX,
    ReleaseSet,
};

use super::problem::Problem;
use super::{Answer, Body, Shared, Site};
use crate::chains::LoadError;
use crate::store::audit::Actor;
use crate::store::release::{Draft, Stays};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Chain {
    releases: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    plugin: PluginName,
    component: Digest,
    #[serde(default)]
    settings: serde_json::Value,
    #[serde(default)]
    on_fault: OnFault,
    #[serde(default)]
    record_bp: u16,
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
    let mut drafts = Vec::with_capacity(releases.len());
    for (index, row) in releases.into_iter().enumerate() {
        let Row { plugin, component, settings, on_fault, record_bp } = row;
        let field = |name| format!("releases[{index}].{name}");
        if !names.insert(plugin.clone()) {
            return Err(Problem::invalid(field("plugin"), format!("{plugin} stands in the chain twice")));
        }
        let bytes = settings.to_string().len();
        if bytes > RELEASE_SETTINGS_BYTES_MAX {
            let detail = format!("the settings have {bytes} bytes, more than {RELEASE_SETTINGS_BYTES_MAX}");
            return Err(
                Problem::invalid(field("settings"), detail).remedy("Keep tables in the site's \"kv\".")
            );
        }
        let loaded = control
            .chains
            .plugin(&site, component)
            .await
            .map_err(|error| refused(field("component"), error))?;
        drafts.push(Draft {
            plugin,
            component,
            kind: Kind::Hooks,
            hooks: loaded.hooks().to_vec(),
            settings,
            on_fault,
            grants: Grants::default(),
            route: None,
            reuse: 0,
            record_bp: record_bp.min(RECORD_BP_MAX),
        });
    }
    let began = Instant::now();
    let set =
        control.store.put_releases(site.clone(), drafts, actor).await?.map_err(|why| stays(&site, why))?;
    control.rollout.published(&site, set.version, began);
    Ok(Json(set))
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
        Stays::Invalid(InvalidSettings::NoRoute) => {
            Problem::invalid("route", detail).remedy("Say under which path it answers: --route /reviews")
        }
        Stays::Invalid(_) => Problem::invalid("release", detail),
        Stays::RouteTaken { .. } => Problem::conflict("route_taken", detail),
        Stays::TooMany { .. } => Problem::invalid("releases", detail),
        Stays::TooLarge { .. } => {
            Problem::invalid("releases", detail).remedy("Make the settings of the plugins smaller.")
        }
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
