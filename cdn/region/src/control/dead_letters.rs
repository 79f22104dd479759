//! `/v1/dead-letters`: operations of nodes that could not be applied, and what becomes of them; and `/v1/operations-gone`: those
//! that are lost since this region was restored from a backup.

use axum::extract::{Path, State};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};

use super::problem::Problem;
use super::{Answer, Query, Shared};
use crate::store::audit::Actor;
use crate::store::dead_letter::{Letter, LetterId, Retried};
use crate::store::restored::GoneRow;

/// A page when nobody says how long.
const LIMIT_DEFAULT: usize = 100;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Page {
    after: Option<String>,
    limit: Option<usize>,
}

fn letter(field: &'static str, text: &str) -> Result<LetterId, Problem> {
    let detail = "a dead letter is named by node, epoch and number, such as 7.3.41";
    text.parse().map_err(|_| Problem::invalid(field, detail))
}

pub(super) async fn list(
    State(control): State<Shared>,
    Query(Page { after, limit }): Query<Page>,
) -> Answer<Vec<Letter>> {
    let after = after.map(|text| letter("after", &text)).transpose()?;
    Ok(Json(control.store.dead_letters(after, limit.unwrap_or(LIMIT_DEFAULT).max(1)).await?))
}

#[derive(Serialize)]
pub(super) struct Settled {
    id: String,
    outcome: &'static str,
}

/// Tries it again.
pub(super) async fn retry(
    State(control): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(id): Path<String>,
) -> Answer<Settled> {
    let id = letter("id", &id)?;
    match control.store.retry_dead_letter(id, actor).await? {
        Retried::Applied => Ok(Json(Settled { id: id.to_string(), outcome: "applied" })),
        Retried::NotThere => Err(Problem::not_found("such dead letter")),
        Retried::Unfit(reason) => Err(Problem::conflict("still_dead", reason)
            .remedy("Mend what the reason names and try again, or give the operation up with DELETE.")),
    }
}

/// Gives it up.
pub(super) async fn discard(
    State(control): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(id): Path<String>,
) -> Answer<Settled> {
    let id = letter("id", &id)?;
    if control.store.discard_dead_letter(id, actor).await? {
        tracing::warn!(%id, "an operator gives a dead letter up");
        Ok(Json(Settled { id: id.to_string(), outcome: "discarded" }))
    } else {
        Err(Problem::not_found("such dead letter"))
    }
}

/// What this region lacks, and no node has kept.
pub(super) async fn gone(State(control): State<Shared>) -> Answer<Vec<GoneRow>> {
    Ok(Json(control.store.gone().await?))
}

#[derive(Serialize)]
pub(super) struct Read {
    runs: usize,
}

/// An operator has read it: the alarm is over.
pub(super) async fn gone_is_read(
    State(control): State<Shared>,
    Extension(actor): Extension<Actor>,
) -> Answer<Read> {
    Ok(Json(Read { runs: control.store.gone_is_read(actor).await? }))
}
