//! How the region is, for people, for load balancers and for Prometheus.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, header};
use serde::Serialize;
use souk_replication::Heads;

use super::problem::Problem;
use super::{Answer, Shared};
use crate::clock;
use crate::store::Counts;
use crate::store::cursor::NodeRow;

#[derive(Serialize)]
pub(super) struct Status {
    region: String,
    logs: BTreeMap<&'static str, u64>,
    nodes: Vec<Node>,
    counts: Counts,
}

#[derive(Serialize)]
struct Node {
    #[serde(flatten)]
    known: NodeRow,
    connected: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    link: Option<Link>,
}

/// What only a node has that is connected to this process.
#[derive(Serialize)]
struct Link {
    address: String,
    rtt_ms: f64,
    up_ms: u64,
    cursors: BTreeMap<&'static str, u64>,
}

fn by_name(heads: &Heads) -> BTreeMap<&'static str, u64> {
    heads.iter().map(|(log, version)| (log.name(), version)).collect()
}

pub(super) async fn status(State(control): State<Shared>) -> Answer<Status> {
    let logs = by_name(&control.store.log_heads().borrow());
    let connected: BTreeMap<_, _> = control.link.nodes().into_iter().map(|node| (node.node, node)).collect();
    let elsewhere = control.presence.elsewhere();
    let nodes = control.store.nodes().await?.into_iter().map(|known| {
        let link = connected.get(&known.node).map(|node| Link {
            address: node.address.to_string(),
            rtt_ms: node.rtt.as_secs_f64() * 1e3,
            up_ms: u64::try_from(node.up_for.as_millis()).unwrap_or(u64::MAX),
            cursors: by_name(&node.cursors),
        });
        Node { connected: link.is_some() || elsewhere.contains_key(&known.node), known, link }
    });
    let nodes = nodes.collect();
    Ok(Json(Status { region: control.region.clone(), logs, nodes, counts: control.store.counts().await? }))
}

/// The process answers.
pub(super) async fn health() -> &'static str {
    "ok\n"
}

/// The store answers too.
pub(super) async fn ready(State(control): State<Shared>) -> Result<&'static str, Problem> {
    control.store.check().await?;
    Ok("ready\n")
}

pub(super) async fn metrics(State(control): State<Shared>) -> Result<Response, Problem> {
    let heads = *control.store.log_heads().borrow();
    let dead_letters = control.store.dead_letters_count().await?;
    // The page comes without it too: whoever scrapes wants to see a store that cannot be read.
    if let Ok((waiting, oldest_ms)) = control.store.payments_waiting().await {
        let longest_ms = oldest_ms.map_or(0, |oldest_ms| clock::now_ms().saturating_sub(oldest_ms));
        control.telemetry.payments_waiting(waiting, longest_ms);
    }
    if let Ok(gone) = control.store.gone_totals().await {
        control.telemetry.operations_gone(gone);
    }
    if let Ok(totals) = control.store.stock_totals().await {
        control.telemetry.stock_totals(totals);
    }
    if let Ok(status) = control.pair.of(&control.region, &control.store).await {
        control.telemetry.pair.set(&status, control.pair.rows());
    }
    let page = control
        .telemetry
        .page(&control.store, control.journal.counts(), &heads, control.link.nodes().len(), dead_letters)
        .map_err(|error| {
            tracing::error!(%error, "writing the metrics page");
            Problem::internal()
        })?;
    let content_type = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    Ok(([(header::CONTENT_TYPE, content_type)], page).into_response())
}
