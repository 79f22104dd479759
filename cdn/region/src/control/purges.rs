//! `/v1/sites/{site}/purges`: what the nodes' caches are to forget, and which nodes have.

use std::time::Instant;

use axum::extract::{Path, State};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use souk_commerce::id::SiteId;
use souk_commerce::purge::Forget;
use souk_replication::Log;

use super::problem::Problem;
use super::readiness::{Waiting, connected, milliseconds};
use super::{Answer, Body, Query, Shared, Site};
use crate::store::audit::Actor;

#[derive(Serialize)]
pub(super) struct Told {
    site: SiteId,
    /// Of the purge log.
    version: u64,
}

pub(super) async fn post(
    State(control): State<Shared>,
    Extension(actor): Extension<Actor>,
    Site(site): Site,
    Body(forget): Body<Forget>,
) -> Answer<Told> {
    forget.check().map_err(|bad| Problem::invalid(bad.field(), bad.to_string()))?;
    let began = Instant::now();
    let version = control.store.purge(site.clone(), forget, actor).await?;
    let version = version.ok_or_else(|| Problem::no_site(&site))?;
    control.obeyed.published(version, began);
    Ok(Json(Told { site, version }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Until {
    wait_ms: Option<u64>,
}

#[derive(Serialize)]
pub(super) struct Purge {
    site: SiteId,
    version: u64,
    forget: Forget,
    /// Every connected node has obeyed. One that is away forgets before it applies anything else when it is back.
    done: bool,
    nodes: Vec<NodeObeys>,
}

#[derive(Serialize)]
struct NodeObeys {
    node: u32,
    pop: String,
    obeyed: bool,
    /// From the region's beginning to write the purge to the node's word that it is obeyed, if both are remembered.
    #[serde(skip_serializing_if = "Option::is_none")]
    after_ms: Option<f64>,
}

/// Which nodes have obeyed; answers when all have, or after `wait_ms`.
pub(super) async fn get(
    State(control): State<Shared>,
    Site(site): Site,
    Path((_, version)): Path<(String, String)>,
    Query(Until { wait_ms }): Query<Until>,
) -> Answer<Purge> {
    let version: u64 =
        version.parse().map_err(|_| Problem::invalid("version", "the version of a purge is a number"))?;
    // Another site's is none to this one.
    let change = control.store.purge_of(version).await?.filter(|change| change.site == site);
    let change = change.ok_or_else(|| Problem::not_found(&format!("purge {version} in the log")))?;
    let waiting = Waiting::begin(&control, &site, wait_ms)?;
    let mut changes = control.obeyed.changes();
    loop {
        changes.mark_unchanged();
        let nodes = connected(&control).into_iter().map(|(node, seen)| NodeObeys {
            node,
            pop: seen.pop,
            obeyed: seen.cursors.get(Log::Purge) >= version || control.obeyed.has(node, version),
            after_ms: control.obeyed.after(node, version).map(milliseconds),
        });
        let nodes: Vec<_> = nodes.collect();
        let done = nodes.iter().all(|node| node.obeyed);
        if done || tokio::time::timeout_at(waiting.give_up, changes.changed()).await.is_err() {
            return Ok(Json(Purge { site, version, forget: change.forget, done, nodes }));
        }
    }
}
