//! `/v1/sites/{site}/releases`: the chain of plugins of a site, always whole.

use std::collections::BTreeSet;

use axum::extract::State;
use axum::{Extension, Json};
use serde::Deserialize;
use souk_commerce::id::{Digest, PluginName};
use souk_commerce::site::{
    OnFault, RELEASE_SETTINGS_BYTES_MAX, RELEASES_MAX, ReleaseSet, SETTINGS_BYTES_MAX,
};

use super::problem::Problem;
use super::{Answer, Body, Shared, Site};
use crate::chains::LoadError;
use crate::store::audit::Actor;
use crate::store::release::{Draft, PutReleases};

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
        let Row { plugin, component, settings, on_fault } = row;
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
        let loaded =
            control.chains.plugin(component).await.map_err(|error| refused(field("component"), error))?;
        let hooks = loaded.hooks().to_vec();
        drafts.push(Draft { plugin, component, hooks, settings, on_fault });
    }
    match control.store.put_releases(site.clone(), drafts, actor).await? {
        PutReleases::Written(set) | PutReleases::Unchanged(set) => Ok(Json(set)),
        PutReleases::NoSite => Err(Problem::no_site(&site)),
        PutReleases::TooLarge { bytes } => {
            let detail = format!("the chain has {bytes} bytes of JSON, more than {SETTINGS_BYTES_MAX}");
            Err(Problem::invalid("releases", detail).remedy("Make the settings of the plugins smaller."))
        }
    }
}

fn refused(field: String, error: LoadError) -> Problem {
    match error {
        LoadError::NoBlob(digest) => Problem::invalid(field, format!("there is no blob {digest}"))
            .remedy(format!("Upload it first: PUT /v1/blobs/{digest}")),
        LoadError::Refused(refused) => Problem::invalid(field, refused.to_string())
            .remedy("Build it with `souk plugin build`, which checks the same things."),
        LoadError::Blob(error) => error.into(),
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
