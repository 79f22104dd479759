//! `/v1/sites`: merchants' settings.

use axum::Extension;
use axum::Json;
use axum::extract::State;
use serde::Serialize;
use serde_json::Value;
use souk_commerce::site::{SETTINGS_BYTES_MAX, SiteSettings};
use souk_commerce::slips;

use super::authority::Principal;
use super::problem::Problem;
use super::{Answer, Body, Shared, Site};
use crate::store::audit::Actor;
use crate::store::site::{By, PutSite};

#[derive(Serialize)]
pub(super) struct Written {
    version: u64,
    created: bool,
    changed: bool,
}

pub(super) async fn put(
    State(control): State<Shared>,
    Extension(actor): Extension<Actor>,
    Extension(principal): Extension<Principal>,
    Site(site): Site,
    Body(wanted): Body<Value>,
) -> Answer<Written> {
    let settings = read(&wanted)?;
    if settings.site != site {
        return Err(Problem::invalid(
            "site",
            format!("the body is about {}, the path about {site}", settings.site),
        ));
    }
    settings.check().map_err(|error| Problem::invalid("settings", error.to_string()))?;
    if let Some(host) = repeated(&settings.hosts) {
        return Err(Problem::invalid("hosts", format!("{host:?} is listed twice")));
    }
    let bytes = settings.to_bytes().len();
    if bytes > SETTINGS_BYTES_MAX {
        return Err(Problem::too_large(format!(
            "the settings have {bytes} bytes, more than {SETTINGS_BYTES_MAX}"
        ))
        .remedy("Move data out of \"kv\"."));
    }
    let by = if principal == Principal::Operator { By::Operator } else { By::Merchant };
    let written = |version, created, changed| Ok(Json(Written { version, created, changed }));
    match control.store.put_site(settings, by, actor).await? {
        PutSite::Written { version, created } => written(version, created, true),
        PutSite::Unchanged { version } => written(version, false, false),
        PutSite::HostsNotGiven => Err(Problem::not_permitted(None).remedy(
            "Only the operator gives a site another host name: ask for it, or leave \"hosts\" as it is.",
        )),
        PutSite::WeightNotGiven => Err(Problem::not_permitted(None).remedy(
            "Only the operator gives a site another weight: ask for it, or leave \"cpu_weight\" out.",
        )),
        // The other's name is for the operator.
        PutSite::HostTaken { host, .. } if by == By::Merchant => {
            Err(Problem::conflict("host_taken", format!("the host {host} leads elsewhere")))
        }
        PutSite::HostTaken { host, site: owner } => {
            Err(Problem::conflict("host_taken", format!("the host {host} already leads to site {owner}"))
                .remedy("Take it out of that site's \"hosts\" first."))
        }
        PutSite::CurrencyChange { from } => {
            let detail = format!("the prices of site {site} are amounts of {from}");
            Err(Problem::conflict("currency_fixed", detail).remedy("Make a new site for another currency."))
        }
    }
}

/// What was written, if all of it means something here.
fn read(written: &Value) -> Result<SiteSettings, Problem> {
    let Json(settings) = Json::<SiteSettings>::from_bytes(written.to_string().as_bytes())?;
    match slips::in_settings(written, &settings) {
        Some(slip) => Err(Problem::invalid(slip.field, slip.why)),
        None => Ok(settings),
    }
}

pub(super) async fn get(State(control): State<Shared>, Site(site): Site) -> Answer<SiteSettings> {
    let row = control.store.site(site.clone()).await?;
    row.map(|row| Json(row.settings)).ok_or_else(|| Problem::no_site(&site))
}

#[derive(Serialize)]
pub(super) struct Sites {
    sites: Vec<String>,
}

pub(super) async fn list(State(control): State<Shared>) -> Answer<Sites> {
    Ok(Json(Sites { sites: control.store.sites().await? }))
}

fn repeated(hosts: &[String]) -> Option<&String> {
    let mut seen = std::collections::BTreeSet::new();
    hosts.iter().find(|host| !seen.insert(*host))
}
