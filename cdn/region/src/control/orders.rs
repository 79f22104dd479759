//! `/v1/sites/{site}/orders/{order}`, `events`, `sales`: the life of an order, for the merchant; and what payment providers
//! say (`/webhooks/payments/{site}`).

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use souk_commerce::id::{OrderId, SiteId};

use super::problem::Problem;
use super::reads::Page;
use super::{Answer, Query, Shared, Site, named};
use crate::clock;
use crate::saga::machine::Wish;
use crate::saga::reconcile::Report;
use crate::saga::worker::{MessageError, ReconcileError};
use crate::store::audit::Actor;
use crate::store::checkout::{Detail, Hinted, Wished};
use crate::store::event::{EventRow, SalesDay};

/// The header in which Stripe signs.
const SIGNATURE: &str = "stripe-signature";

fn no_order() -> Problem {
    Problem::not_found("such order")
}

pub(super) async fn get(
    State(control): State<Shared>,
    Path((site, order)): Path<(String, String)>,
) -> Answer<Detail> {
    let (site, order): (SiteId, OrderId) = (named("site", &site)?, named("order", &order)?);
    control.store.order_detail(site, order).await?.map(Json).ok_or_else(no_order)
}

/// `POST …/orders/{order}/capture`, `fulfil`, `cancel`, `refund`: what the merchant wants. Wanted twice, it is done once.
///
/// 200: it is so. 202: the provider has been or will be asked, and the order says what came of it.
pub(super) async fn wish(
    State(control): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path((site, order, wish)): Path<(String, String, String)>,
) -> Result<Response, Problem> {
    let (site, order): (SiteId, OrderId) = (named("site", &site)?, named("order", &order)?);
    let wish = Wish::by_name(&wish).ok_or_else(|| {
        Problem::not_found(&format!("way to change an order called {wish:?}"))
            .remedy("Use capture, fulfil, cancel or refund.")
    })?;
    match control.store.wish_order(site, order, wish, actor, clock::now_ms()).await? {
        Wished::Noted(detail) => {
            control.payments.ring();
            let is_waiting = detail.payment.is_waiting || detail.payment.is_due;
            let status = if is_waiting { StatusCode::ACCEPTED } else { StatusCode::OK };
            Ok((status, Json(detail)).into_response())
        }
        Wished::NoOrder => Err(no_order()),
        Wished::NotNow(not_now) => {
            let detail = format!("The order is {}.", not_now.state.name());
            Err(Problem::conflict("order_not_ready", detail).remedy(not_now.remedy))
        }
    }
}

/// What has happened to the site's orders, oldest first. A reader keeps the last `seq` that it has dealt with.
pub(super) async fn events(
    State(control): State<Shared>,
    Site(site): Site,
    Query(page): Query<Page<u64>>,
) -> Answer<Vec<EventRow>> {
    Ok(Json(control.store.events(site, page.after.unwrap_or(0), page.limit()).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Newest {
    limit: Option<usize>,
}

pub(super) async fn sales(
    State(control): State<Shared>,
    Site(site): Site,
    Query(newest): Query<Newest>,
) -> Answer<Vec<SalesDay>> {
    const DAYS_DEFAULT: usize = 30;
    Ok(Json(control.store.sales(site, newest.limit.unwrap_or(DAYS_DEFAULT).max(1)).await?))
}

fn no_payments(site: &SiteId) -> Problem {
    Problem::not_found(&format!("payment provider of site {site}"))
        .remedy("Its orders are paid by invoice; [[payments]] in the region's file gives it one.")
}

/// What the last comparison with the provider's books came to.
pub(super) async fn report(State(control): State<Shared>, Site(site): Site) -> Answer<serde_json::Value> {
    let report = control.store.payment_report(site.clone()).await?;
    report.map(|(_, report)| Json(report)).ok_or_else(|| {
        Problem::not_found(&format!("report about the payments of site {site}")).remedy(
            "One is made each day of a shop with a payment provider, and now by POST …/payments/reconcile.",
        )
    })
}

/// Compares the books now. Differences are followed, and the report names them.
pub(super) async fn reconcile(State(control): State<Shared>, Site(site): Site) -> Answer<Report> {
    match control.payments.reconcile(&site, clock::now_ms()).await {
        Ok(report) => Ok(Json(report)),
        Err(ReconcileError::NoProvider) => Err(no_payments(&site)),
        Err(ReconcileError::UnderWay) => {
            let detail = "The books of this shop or of another one are being compared.";
            Err(Problem::conflict("comparison_under_way", detail)
                .remedy("Ask again in a minute, or read the last report: GET …/payments/report."))
        }
        Err(ReconcileError::Provider(error)) => {
            tracing::warn!(%site, %error, "a payment provider's books could not be read");
            Err(Problem::provider_failed())
        }
        Err(ReconcileError::Store(error)) => Err(error.into()),
    }
}

#[derive(Serialize)]
pub(super) struct Received {
    received: bool,
}

/// A provider's message. What it says is not believed: the provider is asked about the order that it names.
pub(super) async fn message(
    State(control): State<Shared>,
    Path(site): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer<Received> {
    // A site that is not there and one that is paid by invoice are the same to a stranger.
    let absent = || Problem::not_found("such endpoint");
    let site: SiteId = site.parse().map_err(|_| absent())?;
    let signature = headers.get(SIGNATURE).and_then(|value| value.to_str().ok());
    match control.payments.message(&site, signature, &body).await {
        Ok(Hinted::Noted(_) | Hinted::Repeated | Hinted::Unknown) => Ok(Json(Received { received: true })),
        Err(MessageError::NoProvider) => Err(absent()),
        Err(MessageError::Refused(why)) => {
            tracing::warn!(%site, %why, "a message in a payment provider's name is not read");
            Err(Problem::message_refused(why.to_string()))
        }
        Err(MessageError::Store(error)) => Err(error.into()),
    }
}
