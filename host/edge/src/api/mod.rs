//! What a shopper's program may ask of a shop: products, carts, quotes, checkouts, orders.
//!
//! [`Ask`] is what every answer begins with: the node, the site as it was when the request came, and who asks. The
//! files below it hold one resource each. Called by [`crate::serve`]; errors leave as [`Problem`]s.

use std::sync::Arc;

use souk_commerce::cart::{Cart, LineKey};
use souk_commerce::id::{CartId, Country, Coupon};
use souk_commerce::money::Currency;
use souk_commerce::product::Listed;
use souk_commerce::site::{Hook, SiteSettings};
use souk_sandbox::chain::Unpriced;
use souk_sandbox::{Call, Crowded, SiteData, StopKind, Stopped, Task};

use crate::chain::SiteChain;
use crate::http::Exchange;
use crate::node::Node;
use crate::page_cache::{Noting, Reads};
use crate::rescue::{Problem, Refusal};
use crate::shelf::Shelf;
use crate::shopper::Shopper;
use crate::state::{ChangeError, CommitError, ReadError, Site};

pub mod carts;
pub mod checkout;
pub mod products;
pub mod quote;
pub mod reservation;
mod watch;

use watch::Watch;

/// One request for one shop.
#[derive(Debug)]
pub struct Ask<'a> {
    pub node: &'a Arc<Node>,
    pub site: &'a Arc<Site>,
    pub settings: &'a Arc<SiteSettings>,
    pub shopper: Shopper,
    pub exchange: &'a mut Exchange,
    /// Where it is noted what the answer is made from, if anybody wants to know.
    pub(crate) reads: Option<Arc<Reads>>,
}

/// A cart's lines as plugins see them.
pub(crate) type Lines = Vec<(LineKey, u32, Listed)>;

impl<'a> Ask<'a> {
    pub fn new(
        node: &'a Arc<Node>,
        site: &'a Arc<Site>,
        exchange: &'a mut Exchange,
    ) -> Result<Self, Problem> {
        let shopper = Shopper::of(&exchange.head.headers, site)?;
        let settings = site.settings.as_ref().ok_or_else(|| Problem::internal("a site lost its settings"))?;
        Ok(Self { node, site, settings, shopper, exchange, reads: None })
    }

    /// The site's plugins. A shop is not shown without its rules.
    async fn chain(&self) -> Result<Arc<SiteChain>, Problem> {
        self.node.chains.of(self.site).await.ok_or_else(|| {
            Problem::new(
                Refusal::ChainNotReady,
                "the shop's plugins are being fetched; its rules apply to every price",
            )
        })
    }

    /// Runs the site's plugins on what `f` asks of them, when it is the site's turn. What `f` needs it owns: a chain
    /// that is slow runs on a thread from which this one's other tasks are safe.
    async fn run<T, F>(&mut self, hook: Hook, cart: Option<(CartId, &Cart)>, f: F) -> Result<T, Problem>
    where
        T: Send + 'static,
        F: FnOnce(&souk_sandbox::Chain, &Call<'_>) -> T + Send + 'static,
    {
        let chain = self.chain().await?;
        let (now_ms, customer) = (self.exchange.now_ms, self.shopper.customer.as_deref());
        let shelf = Shelf::of(self.site, &self.node.journal, now_ms, customer);
        let shelf = match &self.reads {
            Some(reads) => Arc::new(Noting { site: shelf, reads: Arc::clone(reads) }),
            None => shelf,
        };
        let watch = self.exchange.is_timed().then(|| Arc::new(Watch::over(Arc::clone(&shelf))));
        let data = watch.clone().map_or(shelf, |watch| watch as Arc<dyn SiteData>);
        let about = About {
            now_ms: self.exchange.now_ms,
            currency: self.settings.currency,
            country: cart.and_then(|(_, cart)| cart.country().cloned()),
            language: self.shopper.language.clone(),
            segments: self.shopper.segments.clone(),
            customer: self.shopper.customer.clone(),
            coupons: cart.map(|(_, cart)| cart.coupons()).unwrap_or_default(),
            seed: cart.map_or(0, |(id, _)| id.seed()),
            data,
        };
        if !chain.has(hook) {
            // Nobody else's code runs: there is nothing to wait for.
            return Ok(about.ask(&chain, f));
        }
        let turn = self.node.share.enter(&self.site.id, Task::Hook(hook));
        let turn = self.exchange.timed("turn", turn).await?;
        let started = std::time::Instant::now();
        let value = turn.run(move || about.ask(&chain, f)).await;
        self.exchange.note(hook.name(), started);
        if let Some(watch) = watch {
            watch.tell(self.exchange);
        }
        Ok(value)
    }

    /// The lines that can be priced, and those whose product or price is gone.
    fn lines(&self, cart: &Cart) -> (Lines, Vec<LineKey>) {
        let mut lines = Lines::new();
        let mut gone = Vec::new();
        for (line, quantity) in cart.lines() {
            match self.site.listed(&line.sku) {
                Some(listed) => lines.push((line, quantity, listed)),
                None => gone.push(line),
            }
        }
        (lines, gone)
    }
}

/// What a [`Call`] says, for the thread on which it is made.
struct About {
    now_ms: u64,
    currency: Currency,
    country: Option<Country>,
    language: String,
    segments: Vec<String>,
    customer: Option<String>,
    coupons: Vec<Coupon>,
    seed: u64,
    data: Arc<dyn SiteData>,
}

impl About {
    fn ask<T>(self, chain: &SiteChain, f: impl FnOnce(&souk_sandbox::Chain, &Call<'_>) -> T) -> T {
        let Self { now_ms, currency, country, language, segments, customer, coupons, seed, data } = self;
        let call = Call {
            now_ms,
            currency,
            country,
            region: None,
            language,
            segments,
            customer,
            coupons,
            seed,
            data: &data,
        };
        chain.run(now_ms, |chain| f(chain, &call))
    }
}

impl From<Stopped> for Problem {
    fn from(stopped: Stopped) -> Self {
        let Stopped { plugin, release, hook, kind } = stopped;
        match kind {
            StopKind::Refused { code, message } => Self::new(Refusal::PluginRefused, message)
                .with("plugin", plugin.as_str())
                .with("reason", code),
            StopKind::FailClosed { reason } => {
                tracing::warn!(%plugin, release, %hook, reason, "a rule that must not be skipped has failed");
                Self::new(Refusal::RuleFailed, format!("the rule {plugin} could not be asked ({reason})"))
                    .with("plugin", plugin.as_str())
                    .with("reason", reason)
            }
        }
    }
}

impl From<Crowded> for Problem {
    fn from(crowded: Crowded) -> Self {
        Self::new(Refusal::PluginsCrowded, crowded.to_string())
    }
}

impl From<Unpriced> for Problem {
    fn from(error: Unpriced) -> Self {
        match error {
            Unpriced::Stopped(stopped) => stopped.into(),
            Unpriced::Overflow(overflow) => Self::new(Refusal::AmountTooLarge, overflow.to_string()),
        }
    }
}

impl From<CommitError> for Problem {
    fn from(error: CommitError) -> Self {
        let detail = error.to_string();
        match error {
            CommitError::NotEnrolled => Self::new(Refusal::NotEnrolled, detail),
            CommitError::EpochChanged => Self::new(Refusal::CartBusy, detail),
            CommitError::QueueFull => Self::new(Refusal::QueueFull, detail),
            CommitError::OutboxFull { .. } => Self::new(Refusal::OutboxFull, detail).retry_after(10),
            CommitError::DiskFull => Self::new(Refusal::DiskFull, detail).retry_after(10),
            // What exactly failed is in the log.
            CommitError::DiskFailed(_) => Self::new(Refusal::DiskFailed, "the disk failed").retry_after(10),
            CommitError::OutcomeUnknown => Self::new(Refusal::OutcomeUnknown, detail),
            CommitError::Stopped => Self::new(Refusal::Draining, detail),
        }
    }
}

impl From<ReadError> for Problem {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Reopening => Self::new(Refusal::DiskFailed, "the node's carts are being reopened"),
            ReadError::Failed(why) => Self::internal(why),
        }
    }
}

impl<E: Into<Self>> From<ChangeError<E>> for Problem {
    fn from(error: ChangeError<E>) -> Self {
        match error {
            ChangeError::Edit(refused) => refused.into(),
            ChangeError::Commit(error) => error.into(),
            ChangeError::Read(error) => error.into(),
        }
    }
}

/// The value of a query parameter. One that is said twice is refused: two readers could take two different ones.
fn query(exchange: &Exchange, name: &str) -> Result<Option<String>, Problem> {
    once(exchange.head.uri.query().unwrap_or_default(), name)
}

fn once(text: &str, name: &str) -> Result<Option<String>, Problem> {
    let mut values = url::form_urlencoded::parse(text.as_bytes()).filter(|(n, _)| n == name);
    let value = values.next().map(|(_, value)| value.into_owned());
    match values.next() {
        None => Ok(value),
        Some(_) => {
            Err(Problem::new(Refusal::BadQuery, format!("{name} is said twice: say it once"))
                .with("field", name))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_once_is_said_once() {
        assert_eq!(once("limit=2&q=a%20b", "q").expect("said once").as_deref(), Some("a b"));
        assert_eq!(once("limit=2", "q").expect("not said"), None);
        // Whoever may write to one of two places must not decide which is read.
        for text in ["limit=2&limit=2", "limit=1&x=&limit=3", "limit=1&%6cimit=3"] {
            let problem = once(text, "limit").expect_err("said twice");
            assert_eq!(problem.refusal, Refusal::BadQuery, "{text}");
            assert!(problem.detail.starts_with("limit is said twice"), "{}", problem.detail);
        }
    }
}
