//! What is asked of whoever takes the money, and who that is for which shop.
//!
//! A provider must keep three promises, and no other is relied on. A request with a key that it has seen before is answered
//! as the first one was, and does nothing (for a day at least). It can be asked what it has of an order. And one payment
//! is captured once and refunded once, whatever keys it is asked with.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use souk_commerce::id::{OrderId, SiteId};
use souk_config::{Capture, PaymentProviderKind, PaymentsConfig};

use super::machine::{Found, Op, Outcome};
use super::stripe::{Http, Stripe};
use crate::store::checkout::Charge;

/// Longest secret in a file. Providers' keys have about a hundred characters.
const SECRET_BYTES_MAX: usize = 1_024;

/// Takes the money of one shop.
pub(crate) trait PaymentProvider: Send + Sync {
    /// Makes sure of the amount, and takes nothing yet.
    fn authorize<'a>(&'a self, key: &'a str, charge: &'a Charge) -> BoxFuture<'a, Outcome>;
    /// Takes the whole amount.
    fn capture<'a>(&'a self, key: &'a str, charge: &'a Charge) -> BoxFuture<'a, Outcome>;
    /// Gives up what was made sure of.
    fn void<'a>(&'a self, key: &'a str, charge: &'a Charge) -> BoxFuture<'a, Outcome>;
    /// Gives the whole amount back.
    fn refund<'a>(&'a self, key: &'a str, charge: &'a Charge) -> BoxFuture<'a, Outcome>;
    /// What there is of an order.
    fn look_up<'a>(&'a self, charge: &'a Charge) -> BoxFuture<'a, Result<Found, NotFoundOut>>;
    /// The payments of a shop made since a moment, a page at a time, for the comparison of the books. Those of another shop
    /// with the same account are none of its.
    fn list<'a>(
        &'a self,
        site: &'a SiteId,
        since_ms: u64,
        after: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Listing, NotFoundOut>>;
    /// What a message is about, if it is the provider's. It is believed to be about something, and nothing else.
    fn parse_webhook(
        &self,
        signature: Option<&str>,
        body: &[u8],
        now_ms: u64,
    ) -> Result<Message, MessageRefused>;
}

/// The provider could not say. The reason is for the log.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct NotFoundOut(pub(crate) String);

/// A page of the provider's books.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    pub(crate) payments: Vec<Listed>,
    /// Where the next page begins; none: this was the last.
    pub(crate) next: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) reference: String,
    /// None: not made by us.
    pub(crate) order: Option<OrderId>,
    pub(crate) found: Found,
    /// What was taken or made sure of, in minor units of the currency. None: it cannot be said in them.
    pub(crate) amount: Option<i64>,
}

/// A provider's message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) id: String,
    pub(crate) order: Option<OrderId>,
    pub(crate) reference: Option<String>,
}

/// Why a message is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MessageRefused {
    #[error("it bears no signature in the form t=…,v1=…")]
    Unsigned,
    #[error("its signature is not made with this shop's secret")]
    Forged,
    #[error("it was signed too long ago, or in the future: a repetition, or one of the two clocks is wrong")]
    OutOfTime,
    #[error("it is signed, and not in a form that is understood")]
    Unreadable,
}

/// Something that nobody may see. Neither shown nor compared.
pub(crate) struct Secret(String);

impl Secret {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Why a shop's payments cannot be set up. Never the secret.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetupError {
    #[error("cannot read {path}: {reason}")]
    File { path: String, reason: String },
    #[error("{path} holds no secret: one line of 1 to {SECRET_BYTES_MAX} printable characters is expected")]
    Secret { path: String },
    #[error("TLS: {0}")]
    Tls(String),
    #[error("{0}")]
    Name(#[from] souk_commerce::id::InvalidName),
}

/// How one shop is paid.
#[derive(Clone)]
pub(crate) struct Terms {
    pub(crate) provider: Arc<dyn PaymentProvider>,
    /// Take the money as soon as the order is placed.
    pub(crate) capture: bool,
}

/// Who takes the money of which shop. A shop without an entry sends invoices.
#[derive(Default)]
pub(crate) struct Providers(BTreeMap<SiteId, Terms>);

impl Providers {
    /// Reads the secrets. Blocks on the disk.
    pub(crate) fn set_up(configs: &[PaymentsConfig]) -> Result<Self, SetupError> {
        let mut providers = Self::default();
        if configs.is_empty() {
            return Ok(providers);
        }
        let http = Http::new()?;
        for config in configs {
            let provider: Arc<dyn PaymentProvider> = match config.provider {
                PaymentProviderKind::Stripe => Arc::new(Stripe::new(
                    http.clone(),
                    &config.api,
                    &secret(&config.secret_key_file)?,
                    secret(&config.webhook_secret_file)?,
                )?),
            };
            let terms = Terms { provider, capture: config.capture == Capture::AtOnce };
            providers.0.insert(config.site.parse()?, terms);
        }
        Ok(providers)
    }

    #[cfg(test)]
    pub(crate) fn of_one(site: SiteId, terms: Terms) -> Self {
        Self([(site, terms)].into())
    }

    pub(crate) fn of(&self, site: &SiteId) -> Option<&Terms> {
        self.0.get(site)
    }

    pub(crate) fn sites(&self) -> impl Iterator<Item = &SiteId> {
        self.0.keys()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn secret(path: &Path) -> Result<Secret, SetupError> {
    let shown = || path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|error| SetupError::File { path: shown(), reason: error.to_string() })?;
    let text = text.trim();
    if (1..=SECRET_BYTES_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic()) {
        Ok(Secret::new(text))
    } else {
        Err(SetupError::Secret { path: shown() })
    }
}

/// The key of a call: the same for each repetition of it, and for nothing else ever.
pub(crate) fn key(order: OrderId, op: Op, attempt: u32) -> String {
    format!("{order}:{}:{attempt}", op.name())
}
