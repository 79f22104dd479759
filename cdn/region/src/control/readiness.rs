//! Whether the nodes have followed: which of them have compiled a component that was pushed, and which run a version of the
//! site's release set.
//!
//! Both answer when all connected nodes are there, or have said that they cannot be, or after `wait_ms`.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use serde::{Deserialize, Serialize};
use souk_commerce::id::{Digest, PluginName, SiteId};
use souk_commerce::site::ReleaseSet;
use souk_replication::Heads;
use tokio::time::Instant;

use super::plugins::ComponentInPath;
use super::problem::Problem;
use super::turns::{Busy, Turn};
use super::{Answer, Query, Shared, Site};
use crate::clock;
use crate::presence::SITES_TOLD_MAX;
use crate::rollout::Readiness;

/// How long one question waits; who wants to wait longer asks again.
const WAIT_MAX: Duration = Duration::from_secs(20);
/// A node that has not said a word of what it runs for so long after it connected is of a version that never does.
const SILENT_AFTER: Duration = Duration::from_secs(10);
/// A node that was here within this time and is not connected is told of; another has been taken down.
const MISSED_MS_MAX: u64 = 7 * 86_400_000;

/// A place among those who wait for nodes, and until when.
pub(super) struct Waiting<'a> {
    _place: Option<Turn<'a>>,
    pub(super) give_up: Instant,
}

impl<'a> Waiting<'a> {
    pub(super) fn begin(control: &'a Shared, site: &SiteId, wait_ms: Option<u64>) -> Result<Self, Problem> {
        let wait = Duration::from_millis(wait_ms.unwrap_or(0)).min(WAIT_MAX);
        let place = if wait.is_zero() {
            None
        } else {
            Some(control.turns.rollouts.try_enter(site).map_err(|Busy| Problem::busy())?)
        };
        Ok(Self { _place: place, give_up: Instant::now() + wait })
    }
}

pub(super) struct Connected {
    pub(super) pop: String,
    up_for: Duration,
    pub(super) cursors: Heads,
    /// To this process, and not to another one over the same database.
    is_here: bool,
}

/// By node: one that redials is there twice for a moment.
pub(super) fn connected(control: &Shared) -> BTreeMap<u32, Connected> {
    let elsewhere = control.presence.elsewhere().into_iter().map(|(node, seen)| {
        (
            node,
            Connected { pop: seen.pop, up_for: seen.since.elapsed(), cursors: seen.cursors, is_here: false },
        )
    });
    let here = control.link.nodes().into_iter().map(|node| {
        (node.node, Connected { pop: node.pop, up_for: node.up_for, cursors: node.cursors, is_here: true })
    });
    elsewhere.chain(here).collect()
}

/// Whether other processes say what their nodes run of a site.
async fn is_told_elsewhere(control: &Shared, site: &SiteId) -> Result<bool, Problem> {
    Ok(control.store.sites_released_last(SITES_TOLD_MAX).await?.contains(site))
}

pub(super) fn milliseconds(after: Duration) -> f64 {
    after.as_secs_f64() * 1e3
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Until {
    wait_ms: Option<u64>,
}

#[derive(Serialize)]
pub(super) struct Ready {
    site: SiteId,
    plugin: PluginName,
    component: Digest,
    /// False: the nodes were not told of it, because others were pushed after it or the set has no room. The deploy then
    /// takes as long as a node needs to compile it.
    announced: bool,
    /// Nothing is left to wait for.
    done: bool,
    nodes: Vec<NodeReady>,
}

#[derive(Serialize)]
struct NodeReady {
    node: u32,
    pop: String,
    state: Progress,
    /// From the push to the node's word that it is compiled, if it was not before.
    #[serde(skip_serializing_if = "Option::is_none")]
    after_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Progress {
    Compiled,
    Waiting,
    /// It has failed and is tried again.
    Failing,
    Refused,
    /// Of a version that does not say.
    Silent,
    /// Not connected: it compiles it when it is back.
    Away,
}

impl Progress {
    /// Whether there is something to wait for.
    fn is_open(self) -> bool {
        matches!(self, Self::Waiting | Self::Failing)
    }
}

/// Which nodes have compiled a component that was pushed; answers when nothing is left to wait for, or after `wait_ms`.
pub(super) async fn ready(
    State(control): State<Shared>,
    Site(site): Site,
    Path(path): Path<ComponentInPath>,
    Query(Until { wait_ms }): Query<Until>,
) -> Answer<Ready> {
    let (plugin, component) = path.names()?;
    if control.store.push(site.clone(), plugin.clone(), Some(component)).await?.is_none() {
        return Err(Problem::not_found(&format!("component {component} of plugin {plugin}")));
    }
    let waiting = Waiting::begin(&control, &site, wait_ms)?;
    let is_told = is_told_elsewhere(&control, &site).await?;
    let mut changes = control.rollout.changes();
    loop {
        changes.mark_unchanged();
        let set = control.store.releases(site.clone()).await?;
        let of_component = |release: &souk_commerce::site::Release| release.component == component;
        let in_chain = set.releases.iter().any(of_component);
        let announced = in_chain || set.coming.iter().any(of_component);
        let mut nodes = Vec::new();
        if announced {
            for (node, seen) in connected(&control).into_iter().filter(|(_, node)| node.is_here || is_told) {
                let (state, after, why) = if in_chain {
                    of_chain(&control, node, &set)
                } else {
                    of_component_ahead(control.rollout.readiness(node, &site, component), seen.up_for)
                };
                nodes.push(NodeReady { node, pop: seen.pop, state, after_ms: after.map(milliseconds), why });
            }
        }
        let done = !nodes.iter().any(|node| node.state.is_open());
        if done || tokio::time::timeout_at(waiting.give_up, changes.changed()).await.is_err() {
            if announced {
                nodes.extend(away(&control).await?);
            }
            return Ok(Json(Ready { site, plugin, component, announced, done, nodes }));
        }
    }
}

type Told = (Progress, Option<Duration>, Option<String>);

/// What is in the chain, a node has compiled when it runs the chain.
fn of_chain(control: &Shared, node: u32, set: &ReleaseSet) -> Told {
    let runs = control.rollout.of(node, &set.site);
    match runs.why {
        _ if runs.version >= set.version => (Progress::Compiled, None, None),
        Some(why) => (Progress::Failing, None, Some(why)),
        None => (Progress::Waiting, None, None),
    }
}

fn of_component_ahead(readiness: Readiness, up_for: Duration) -> Told {
    match readiness {
        Readiness::Unheard if up_for >= SILENT_AFTER => (Progress::Silent, None, None),
        Readiness::Unheard | Readiness::Waiting => (Progress::Waiting, None, None),
        Readiness::Silent => (Progress::Silent, None, None),
        Readiness::Compiled { after } => (Progress::Compiled, after, None),
        Readiness::Failing { why } => (Progress::Failing, None, Some(why)),
        Readiness::Refused { why } => (Progress::Refused, None, Some(why)),
    }
}

/// Nodes that were here lately and are not now.
async fn away(control: &Shared) -> Result<Vec<NodeReady>, Problem> {
    let since = clock::now_ms().saturating_sub(MISSED_MS_MAX);
    let known = control.store.nodes().await?.into_iter();
    let here = connected(control);
    let missed =
        known.filter(|node| node.last_hello_ms >= since && !here.contains_key(&node.node)).map(|node| {
            NodeReady { node: node.node, pop: node.pop, state: Progress::Away, after_ms: None, why: None }
        });
    Ok(missed.collect())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Version {
    version: Option<u64>,
    wait_ms: Option<u64>,
}

#[derive(Serialize)]
pub(super) struct Rollout {
    site: SiteId,
    version: u64,
    /// Every connected node runs this version or a newer one.
    done: bool,
    nodes: Vec<NodeRuns>,
}

#[derive(Serialize)]
struct NodeRuns {
    node: u32,
    pop: String,
    version: u64,
    /// From the region's beginning to write the set to the node's word that it runs, if it runs just that set.
    #[serde(skip_serializing_if = "Option::is_none")]
    after_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

/// Which nodes run a version of the site's release set; answers when all do, or after `wait_ms`.
pub(super) async fn rollout(
    State(control): State<Shared>,
    Site(site): Site,
    Query(Version { version, wait_ms }): Query<Version>,
) -> Answer<Rollout> {
    let version = match version {
        Some(version) => version,
        None => control.store.releases(site.clone()).await?.version,
    };
    let waiting = Waiting::begin(&control, &site, wait_ms)?;
    // One that has not changed for long is not spoken of between processes, and nobody waits for it.
    let is_told = is_told_elsewhere(&control, &site).await?;
    let mut changes = control.rollout.changes();
    loop {
        changes.mark_unchanged();
        let nodes: Vec<_> = connected(&control)
            .into_iter()
            .filter(|(_, node)| node.is_here || is_told)
            .map(|(node, Connected { pop, .. })| {
                let runs = control.rollout.of(node, &site);
                let after_ms = runs.after.map(milliseconds);
                NodeRuns { node, pop, version: runs.version, after_ms, why: runs.why }
            })
            .collect();
        let done = nodes.iter().all(|node| node.version >= version);
        if done || tokio::time::timeout_at(waiting.give_up, changes.changed()).await.is_err() {
            return Ok(Json(Rollout { site, version, done, nodes }));
        }
    }
}
