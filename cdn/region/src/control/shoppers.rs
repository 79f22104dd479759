//! `/v1/sites/{site}/shoppers/export` and `erase`, `/v1/sites/{site}/erasures`: what is kept of a shopper, for the shopper; and
//! that it is gone.
//!
//! The customer's number comes in a body: what is in a path is written into the logs of every proxy on the way.

use std::collections::BTreeSet;
use std::time::Instant;

use axum::body::{Body as Stream, Bytes};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures_util::stream;
use http::header::CONTENT_TYPE;
use serde::{Deserialize, Serialize};
use serde_json::json;
use souk_commerce::id::{CartId, SiteId};

use super::problem::Problem;
use super::{Answer, Body, Shared, Site};
use crate::clock;
use crate::store::StoreError;
use crate::store::audit::Actor;
use crate::store::shopper::{After, Erased, Erasure};
use crate::store::vault::SubjectId;

/// Longest number of a customer, as a node takes it from a token.
const CUSTOMER_BYTES_MAX: usize = 128;
/// Carts that one wish names besides those that became orders.
const CARTS_NAMED_MAX: usize = 1_000;
/// The form of an export's records: docs/PRIVACY.md.
const SCHEMA: u32 = 1;
/// One JSON object a line.
const LINES: &str = "application/x-ndjson";
/// How far back recordings of an erased cart may be: the journal keeps nothing longer.
const RECORDINGS_KEPT_MS: u64 = 8 * 86_400_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Who {
    customer: String,
}

/// Whom to erase: a customer, carts, or both.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Whom {
    customer: Option<String>,
    #[serde(default)]
    carts: BTreeSet<CartId>,
}

fn checked(customer: String) -> Result<String, Problem> {
    match customer.len() {
        1..=CUSTOMER_BYTES_MAX => Ok(customer),
        // Not echoed: it is a person's.
        bytes => Err(Problem::invalid(
            "customer",
            format!("The customer's number has {bytes} bytes, and not 1 to {CUSTOMER_BYTES_MAX}."),
        )
        .remedy("It is the `sub` of the tokens that the shop gives its shoppers.")),
    }
}

impl Whom {
    fn checked(self) -> Result<(Option<String>, BTreeSet<CartId>), Problem> {
        let Self { customer, carts } = self;
        if carts.len() > CARTS_NAMED_MAX || (customer.is_none() && carts.is_empty()) {
            let detail = format!("Name a customer, or 1 to {CARTS_NAMED_MAX} carts, or both.");
            return Err(Problem::invalid("carts", detail));
        }
        Ok((customer.map(checked).transpose()?, carts))
    }
}

fn no_shopper() -> Problem {
    Problem::not_found("shopper of this number whose data is kept").remedy(
        "Orders of shoppers without a number, and carts that were never ordered, are not known by one.",
    )
}

/// Where an export stands.
struct Export {
    control: Shared,
    site: SiteId,
    subject: SubjectId,
    /// None: only the end is left to say.
    after: Option<After>,
    orders: u64,
    /// The first line, until it has been sent.
    head: Option<Bytes>,
}

fn line(value: &impl Serialize) -> Result<Vec<u8>, StoreError> {
    let mut line = serde_json::to_vec(value).map_err(|e| StoreError::corrupt("orders", e))?;
    line.push(b'\n');
    Ok(line)
}

impl Export {
    /// The next part of it, and the rest; none: that was the end.
    async fn next(mut self) -> Result<Option<(Bytes, Option<Self>)>, StoreError> {
        if let Some(head) = self.head.take() {
            return Ok(Some((head, Some(self))));
        }
        let Some(after) = self.after else { return Ok(None) };
        let (records, next) = self.control.store.export(self.site.clone(), self.subject, after).await?;
        self.after = next;
        let mut part = Vec::new();
        for record in &records {
            part.extend(line(record)?);
        }
        self.orders += records.len() as u64;
        if self.after.is_some() {
            return Ok(Some((part.into(), Some(self))));
        }
        // Whoever does not see it has not got everything.
        part.extend(line(&json!({ "kind": "end", "orders": self.orders }))?);
        Ok(Some((part.into(), None)))
    }
}

/// All that is kept of a shopper, one record a line, ended by one that says so.
pub(super) async fn export(
    State(control): State<Shared>,
    Extension(actor): Extension<Actor>,
    Site(site): Site,
    Body(who): Body<Who>,
) -> Result<Response, Problem> {
    let customer = checked(who.customer)?;
    let subject = control.store.begin_export(site.clone(), customer.clone(), actor).await?;
    let subject = subject.ok_or_else(no_shopper)?;
    control.telemetry.shoppers_exported.inc();
    let head = json!({
        "kind": "shopper", "schema": SCHEMA, "region": control.region, "site": site, "customer": customer,
        "at_ms": clock::now_ms(),
    });
    let head = Some(line(&head)?.into());
    let export = Export { control, site, subject, after: Some(After::Begin), orders: 0, head };
    let parts = stream::try_unfold(Some(export), |export: Option<Export>| async move {
        match export {
            Some(export) => {
                export.next().await.inspect_err(|error| tracing::error!(%error, "an export broke off"))
            }
            None => Ok(None),
        }
    });
    Ok(([(CONTENT_TYPE, LINES)], Stream::from_stream(parts)).into_response())
}

#[derive(Serialize)]
pub(super) struct Told {
    site: SiteId,
    /// None: nothing was kept of this shopper.
    #[serde(flatten)]
    erasure: Option<Erasure>,
    /// It had happened before, and nothing has come since.
    before: bool,
}

/// Erases a shopper: answers when the region has, and the shopper's key is destroyed. The nodes obey by the purge log;
/// `…/erasures/{version}` says which have.
pub(super) async fn erase(
    State(control): State<Shared>,
    Extension(actor): Extension<Actor>,
    Site(site): Site,
    Body(whom): Body<Whom>,
) -> Answer<Told> {
    let (customer, carts) = whom.checked()?;
    let began = Instant::now();
    let erased = control.store.erase_shopper(site.clone(), customer, carts, actor).await?;
    let (erasure, before) = match erased {
        Erased::Now(erasure) => {
            control.obeyed.published(erasure.version, began);
            control.telemetry.shoppers_erased.inc();
            (Some(erasure), false)
        }
        Erased::Before(erasure) => (Some(erasure), true),
        Erased::Nothing => (None, false),
        Erased::Another(cart) => {
            let detail = format!("Cart {cart} became an order of another customer.");
            return Err(Problem::conflict("cart_of_another", detail)
                .remedy("Nothing was erased. Name the customer whose order it is, or leave this cart out."));
        }
        Erased::NoSite => return Err(Problem::no_site(&site)),
        Erased::Busy(order) => {
            let detail = format!("The payment of checkout {order} is neither assured nor refused yet.");
            return Err(Problem::conflict("shopper_busy", detail).remedy(format!(
                "Nothing was erased. Wait until it is decided, mostly some seconds: souk order show {order}. Then erase again."
            )));
        }
    };
    // All of the last days, not those of this wish only: one that was cut short may have left some.
    let since_ms = clock::now_ms().saturating_sub(RECORDINGS_KEPT_MS);
    let seeds = control.store.erased_seeds(site.clone(), since_ms).await?;
    if !seeds.is_empty() {
        control.journal.erase(site.clone(), seeds).await?;
    }
    Ok(Json(Told { site, erasure, before }))
}

/// The site's erasures, the newest first.
pub(super) async fn list(State(control): State<Shared>, Site(site): Site) -> Answer<Vec<Erasure>> {
    Ok(Json(control.store.erasures(site).await?))
}
