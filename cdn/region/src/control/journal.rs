//! `/v1/sites/{site}/logs` and `/calls`: what a site's plugins did, for the site's own people.

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, header};
use serde::{Deserialize, Serialize};
use souk_commerce::id::{PluginName, SiteId};
use souk_commerce::journal::{CallId, Level};
use souk_commerce::site::Hook;

use super::problem::Problem;
use super::{Answer, Query, Shared, Site, named};
use crate::journal::{Filter, Kind, Page, Recorded};

/// A page when nobody says how long, and the longest: 1,000 entries are 1.5 MB at most.
const LIMIT_DEFAULT: usize = 200;
const LIMIT_MAX: usize = 1_000;
/// Longest wait for news. Below the thirty seconds after which proxies lose patience.
const WAIT_MAX: Duration = Duration::from_secs(20);

/// The words of a filter stand side by side with those of the page: a query has no nesting.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LogQuery {
    /// The entries after this one; without it the newest.
    after: Option<u64>,
    limit: Option<usize>,
    /// If there is nothing, wait so long for something.
    #[serde(default)]
    wait_ms: u64,
    plugin: Option<PluginName>,
    release: Option<u32>,
    hook: Option<Hook>,
    call: Option<CallId>,
    level: Option<Level>,
    kind: Option<Kind>,
}

pub(super) async fn logs(
    State(control): State<Shared>,
    Site(site): Site,
    Query(query): Query<LogQuery>,
) -> Answer<Page> {
    is_there(&control, &site).await?;
    let LogQuery { after, limit, wait_ms, plugin, release, hook, call, level, kind } = query;
    let filter = Filter { plugin, release, hook, call, level, kind };
    let limit = limit.unwrap_or(LIMIT_DEFAULT).clamp(1, LIMIT_MAX);
    let wait = Duration::from_millis(wait_ms).min(WAIT_MAX);
    Ok(Json(control.journal.entries(&site, filter, after, limit, wait).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CallQuery {
    /// The calls before this one; without it the newest.
    before: Option<CallId>,
    limit: Option<usize>,
    plugin: Option<PluginName>,
    release: Option<u32>,
    hook: Option<Hook>,
}

#[derive(Serialize)]
pub(super) struct Calls {
    calls: Vec<Recorded>,
    /// Ask for what comes before this; none: that was all.
    before: Option<CallId>,
}

pub(super) async fn calls(
    State(control): State<Shared>,
    Site(site): Site,
    Query(query): Query<CallQuery>,
) -> Answer<Calls> {
    is_there(&control, &site).await?;
    let CallQuery { before, limit, plugin, release, hook } = query;
    let filter = Filter { plugin, release, hook, ..Filter::default() };
    let limit = limit.unwrap_or(LIMIT_DEFAULT).clamp(1, LIMIT_MAX);
    let (calls, before) = control.journal.recordings(site, filter, before, limit).await?;
    Ok(Json(Calls { calls, before }))
}

/// The recording as it was made.
pub(super) async fn call(
    State(control): State<Shared>,
    Path((site, call)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let (site, call): (SiteId, CallId) = (named("site", &site)?, named("call", &call)?);
    is_there(&control, &site).await?;
    let bytes = control.journal.recording(site, call).await?;
    let bytes = bytes.ok_or_else(|| {
        Problem::not_found("recording of such a call")
            .remedy("GET /v1/sites/{site}/calls lists those that there are; a release says how many of its calls are recorded.")
    })?;
    let mut response = bytes.into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

async fn is_there(control: &Shared, site: &SiteId) -> Result<(), Problem> {
    match control.store.site(site.clone()).await? {
        Some(_) => Ok(()),
        None => Err(Problem::no_site(site)),
    }
}
