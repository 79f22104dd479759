//! Who takes the money of which shop: `[[payments]]` of a region's file.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::Deserialize;
use url::Url;

use crate::error::Problem;
use crate::shared::Base;

/// Shops of one region with payments of their own. Each is a few hundred bytes and one key in memory.
const SHOPS_MAX: usize = 10_000;
/// Where Stripe answers.
const STRIPE: &str = "https://api.stripe.com";

/// How one shop is paid at checkout. A shop without an entry sends invoices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PaymentsConfig {
    pub site: String,
    pub provider: PaymentProviderKind,
    /// Where the provider answers, without a path.
    pub api: String,
    /// The shop's secret key at the provider, alone in a file that only the region can read.
    pub secret_key_file: PathBuf,
    /// The secret with which the provider signs its messages, likewise.
    pub webhook_secret_file: PathBuf,
    pub capture: Capture,
}

/// What a provider understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PaymentProviderKind {
    Stripe,
}

/// When the money is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Capture {
    /// As soon as the order is placed.
    #[default]
    AtOnce,
    /// When the merchant says so: `POST /v1/sites/{site}/orders/{order}/capture`.
    OnRequest,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawPayments {
    site: String,
    provider: RawProvider,
    api: Option<String>,
    secret_key_file: PathBuf,
    webhook_secret_file: PathBuf,
    capture: Option<RawCapture>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RawProvider {
    Stripe,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RawCapture {
    AtOnce,
    OnRequest,
}

pub(crate) fn validate(raw: Vec<RawPayments>, base: &Base<'_>) -> Result<Vec<PaymentsConfig>, Problem> {
    if raw.len() > SHOPS_MAX {
        let problem = format!("{} entries are more than {SHOPS_MAX}", raw.len());
        return Err(Problem::new("payments", problem, "spread the shops over several regions"));
    }
    let mut seen = BTreeSet::new();
    let mut payments = Vec::with_capacity(raw.len());
    for (index, raw) in raw.into_iter().enumerate() {
        let key = |name: &str| format!("payments[{index}].{name}");
        if !is_site(&raw.site) {
            return Err(Problem::new(
                key("site"),
                format!("{:?} is not a site", raw.site),
                "write 1 to 63 characters of a-z, 0-9 and '-', beginning with a letter or digit",
            ));
        }
        if !seen.insert(raw.site.clone()) {
            return Err(Problem::new(
                key("site"),
                format!("{:?} has an entry already", raw.site),
                "keep one [[payments]] of each site: two providers would each be asked for the money",
            ));
        }
        payments.push(PaymentsConfig {
            provider: match raw.provider {
                RawProvider::Stripe => PaymentProviderKind::Stripe,
            },
            api: api(&key("api"), raw.api.as_deref().unwrap_or(STRIPE))?,
            secret_key_file: base.path(&key("secret_key_file"), &raw.secret_key_file)?,
            webhook_secret_file: base.path(&key("webhook_secret_file"), &raw.webhook_secret_file)?,
            capture: match raw.capture {
                Some(RawCapture::AtOnce) | None => Capture::AtOnce,
                Some(RawCapture::OnRequest) => Capture::OnRequest,
            },
            site: raw.site,
        });
    }
    Ok(payments)
}

fn is_site(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && !text.starts_with('-')
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// The shop's key goes there with each request: in the clear to this machine only.
fn api(key: &str, text: &str) -> Result<String, Problem> {
    let refused = |why: &str| {
        Problem::new(
            key,
            format!("{text:?} {why}"),
            format!(
                "write an address such as {STRIPE:?}, or \"http://127.0.0.1:4242\" for a provider on this machine"
            ),
        )
    };
    let url = Url::parse(text).map_err(|_| refused("is not an address"))?;
    let is_bare = matches!(url.path(), "" | "/") && url.query().is_none() && url.fragment().is_none();
    if !is_bare || !url.username().is_empty() || url.password().is_some() {
        return Err(refused("has more than a host and a port"));
    }
    let is_here = match url.host() {
        Some(url::Host::Ipv4(ip)) => IpAddr::V4(ip).is_loopback(),
        Some(url::Host::Ipv6(ip)) => IpAddr::V6(ip).is_loopback(),
        Some(url::Host::Domain(_)) => false,
        None => return Err(refused("names no host")),
    };
    match url.scheme() {
        "https" => {}
        "http" if is_here => {}
        "http" => return Err(refused("would carry the shop's key in the clear")),
        _ => return Err(refused("is neither https nor http")),
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}
