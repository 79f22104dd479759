//! A site's plugins together: their order, their shared budget, and what a plugin that fails does to a call.
//!
//! Each plugin sees the result of the one before. A chain shares one deadline and one host-call budget; a plugin's
//! share is what is left, divided by the plugins to come, so that what one does not use passes on to the next.
//!
//! What this module refuses to know: carts as the node stores them, routes, HTTP. The node and the region both price
//! through [`Chain::price`], and a release's `on_fault` decides for both.

use std::sync::Arc;
use std::time::{Duration, Instant};

use souk_commerce::cart::LineKey;
use souk_commerce::id::{PluginName, SiteId, Sku};
use souk_commerce::money::{AmountOverflow, Minor};
use souk_commerce::product::Listed;
use souk_commerce::quote::{Fallback, Quote};
use souk_commerce::site::{Guard, Hook, OnFault, Release};

use crate::breaker::{Breaker, Permit};
use crate::fault::Fault;
use crate::hook::{Allowance, Invocation, LineView};
use crate::hook::{Call, HookPlugin, Presentation};
use crate::metrics::{Metrics, StepMetrics};

pub use crate::hook::{CartOp, Requested};

/// A site's active releases with their loaded plugins, breakers and metrics. Immutable and shared; a deploy makes a
/// new one.
pub struct Chain {
    catalog: Vec<Step>,
    pricing: Vec<Step>,
    cart: Vec<Step>,
    checkout: Vec<Step>,
}

/// One hook of one release.
struct Step {
    plugin: PluginName,
    release: u32,
    hook: Hook,
    on_fault: OnFault,
    settings: Arc<str>,
    loaded: Arc<HookPlugin>,
    breaker: Breaker,
    metrics: StepMetrics,
}

/// A call that a plugin ended: it refused, or it failed and its release says that the call must not go on without it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{plugin} (release {release}, {hook}) {kind}")]
pub struct Stopped {
    pub plugin: PluginName,
    pub release: u32,
    pub hook: Hook,
    pub kind: StopKind,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StopKind {
    #[error("refused: {message} ({code})")]
    Refused { code: String, message: String },
    #[error("failed and may not be skipped: {reason}")]
    FailClosed { reason: String },
}

/// Why a cart has no quote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unpriced {
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// The cart is worth more than an amount can say.
    #[error(transparent)]
    Overflow(#[from] AmountOverflow),
}

/// A page of products as this shopper sees it.
#[derive(Debug, Clone, Default)]
pub struct Presented {
    pub items: Vec<PresentedProduct>,
    pub fallbacks: Vec<Fallback>,
}

#[derive(Debug, Clone)]
pub struct PresentedProduct {
    pub listed: Listed,
    pub title: String,
    pub badges: Vec<String>,
}

/// A change that the plugins accepted, with what they want done beside it.
#[derive(Debug, Clone, Default)]
pub struct Reviewed {
    /// In the order of the chain.
    pub ops: Vec<(PluginName, CartOp)>,
    pub fallbacks: Vec<Fallback>,
}

/// What a checkout plugin left on an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    pub plugin: PluginName,
    pub code: String,
    pub text: String,
}

/// Badges that a product shows, whatever the number of plugins that want some.
const BADGES_SHOWN_MAX: usize = 8;

impl Chain {
    /// A chain whose metrics nobody collects.
    pub fn new(steps: Vec<(Release, Arc<HookPlugin>)>) -> Self {
        Self::assemble(None, steps, &Metrics::default())
    }

    pub fn with_metrics(site: &SiteId, steps: Vec<(Release, Arc<HookPlugin>)>, metrics: &Metrics) -> Self {
        Self::assemble(Some(site), steps, metrics)
    }

    pub fn empty() -> Self {
        Self::new(Vec::new())
    }

    fn assemble(site: Option<&SiteId>, releases: Vec<(Release, Arc<HookPlugin>)>, metrics: &Metrics) -> Self {
        let mut chain =
            Self { catalog: Vec::new(), pricing: Vec::new(), cart: Vec::new(), checkout: Vec::new() };
        for (release, loaded) in releases {
            let settings: Arc<str> = release.settings.to_string().into();
            for &hook in loaded.hooks().iter().filter(|hook| release.hooks.contains(hook)) {
                let step = Step {
                    plugin: release.plugin.clone(),
                    release: release.number,
                    hook,
                    on_fault: release.on_fault,
                    settings: Arc::clone(&settings),
                    loaded: Arc::clone(&loaded),
                    breaker: Breaker::default(),
                    metrics: metrics.step(site, &release.plugin, hook),
                };
                match hook {
                    Hook::Catalog => chain.catalog.push(step),
                    Hook::Pricing => chain.pricing.push(step),
                    Hook::Cart => chain.cart.push(step),
                    Hook::Checkout => chain.checkout.push(step),
                }
            }
        }
        chain
    }

    /// Whether any plugin has this hook: a caller can save itself the arguments.
    pub fn has(&self, hook: Hook) -> bool {
        let steps = match hook {
            Hook::Catalog => &self.catalog,
            Hook::Pricing => &self.pricing,
            Hook::Cart => &self.cart,
            Hook::Checkout => &self.checkout,
        };
        !steps.is_empty()
    }

    /// Hides, ranks, badges and relabels. A page is always shown: a plugin that fails or refuses here is skipped,
    /// whatever its release says, because a shop without badges is better than none.
    pub fn present(&self, call: &Call<'_>, products: Vec<Listed>) -> Presented {
        let mut presented = Presented::default();
        let mut shown: Vec<Shown> = products.into_iter().map(Shown::new).collect();
        let mut budget = Budget::of(&self.catalog);
        for step in &self.catalog {
            // The next plugin sees what this one left, in its order.
            let page: Vec<Listed> = shown.iter().map(|item| item.listed.clone()).collect();
            match step.ask(call, &mut budget, |loaded, invocation| loaded.present(invocation, &page)) {
                Ok(presentations) => arrange(&mut shown, presentations),
                Err(miss) => presented.fallbacks.push(miss.fallback(step)),
            }
        }
        presented.items = shown
            .into_iter()
            .map(|item| PresentedProduct {
                title: item.title.unwrap_or_else(|| item.listed.product.title.clone()),
                listed: item.listed,
                badges: item.badges,
            })
            .collect();
        presented
    }

    /// Asks the cart hooks about a change. The operations are all the plugins'; whether they fit the site's limits
    /// is the caller's to see.
    pub fn review_change(
        &self,
        call: &Call<'_>,
        before: &[(LineKey, u32, Listed)],
        change: &Requested,
    ) -> Result<Reviewed, Stopped> {
        let mut reviewed = Reviewed::default();
        let mut budget = Budget::of(&self.cart);
        let mut lines = before.to_vec();
        let mut change = change.clone();
        for step in &self.cart {
            let views = views(&lines);
            let answer = step.ask(call, &mut budget, |loaded, invocation| {
                let ops = loaded.review_change(invocation, &views, &change)?;
                put_products(call, ops)
            });
            match answer {
                Ok(ops) => {
                    for (op, product) in ops {
                        foresee(&mut lines, &mut change, &step.plugin, &op, product);
                        reviewed.ops.push((step.plugin.clone(), op));
                    }
                }
                Err(miss) => miss.settle(step, &mut reviewed.fallbacks)?,
            }
        }
        Ok(reviewed)
    }

    /// The price of a cart: the merchant's prices, adjusted by each pricing plugin in turn under the price guard.
    /// A plugin that fails, or whose adjustments break a rule, changes nothing and is named in `fallbacks`.
    pub fn price(
        &self,
        call: &Call<'_>,
        guard: &Guard,
        lines: Vec<(LineKey, u32, Listed)>,
    ) -> Result<Quote, Unpriced> {
        let country = call.country.clone();
        if self.pricing.is_empty() || lines.is_empty() {
            return Ok(Quote::base(call.currency, country, lines)?);
        }
        let mut quote = Quote::base(call.currency, country, lines.clone())?;
        let floors: Vec<Option<Minor>> = lines.iter().map(|(_, _, listed)| listed.price.floor).collect();
        let mut views = views(&lines);
        let mut budget = Budget::of(&self.pricing);
        for step in &self.pricing {
            for (view, line) in views.iter_mut().zip(&quote.lines) {
                view.amount = line.total;
            }
            match step.ask(call, &mut budget, |loaded, invocation| loaded.adjust(invocation, &views)) {
                Ok(adjustments) => {
                    if let Err(broken) = quote.apply(&step.plugin, step.release, adjustments, &floors, guard)
                    {
                        step.metrics.count_fault(broken.name());
                        let miss = Miss::Failed { reason: broken.name(), detail: broken.to_string() };
                        miss.settle(step, &mut quote.fallbacks)?;
                    }
                }
                Err(miss) => miss.settle(step, &mut quote.fallbacks)?,
            }
        }
        Ok(quote)
    }

    /// The last look at an order. `lines` are those that `quote` was made of.
    pub fn review_order(
        &self,
        call: &Call<'_>,
        quote: &Quote,
        lines: &[(LineKey, u32, Listed)],
    ) -> Result<Vec<Note>, Stopped> {
        let mut notes = Vec::new();
        let mut skipped = Vec::new();
        let mut budget = Budget::of(&self.checkout);
        let mut views = views(lines);
        for (view, line) in views.iter_mut().zip(&quote.lines) {
            view.amount = line.total;
        }
        for step in &self.checkout {
            let answer = step.ask(call, &mut budget, |loaded, invocation| {
                loaded.review_order(invocation, &views, quote.total)
            });
            match answer {
                Ok(texts) => notes.extend(texts.into_iter().map(|(code, text)| Note {
                    plugin: step.plugin.clone(),
                    code,
                    text,
                })),
                Err(miss) => miss.settle(step, &mut skipped)?,
            }
        }
        Ok(notes)
    }
}

impl Step {
    /// One call of this step's plugin, within its share of the budget, past its breaker and into its metrics.
    fn ask<R>(
        &self,
        call: &Call<'_>,
        budget: &mut Budget,
        hook: impl FnOnce(&HookPlugin, &Invocation<'_>) -> Result<R, Fault>,
    ) -> Result<R, Miss> {
        let share = budget.next_share();
        let Some(permit) = self.breaker.permits(call.now_ms) else {
            self.metrics.count_fault("breaker_open");
            return Err(Miss::Failed {
                reason: "breaker_open",
                detail: "the plugin failed too often and is tried again later".to_owned(),
            });
        };
        let invocation = Invocation::new(call, &self.plugin, &self.settings, share);
        let start = Instant::now();
        let answer = hook(&self.loaded, &invocation);
        let elapsed = start.elapsed();
        budget.spend(share, elapsed, invocation.host_calls_used.get());
        self.metrics.calls.inc();
        self.metrics.seconds.observe(elapsed.as_secs_f64());
        match answer {
            Ok(answer) => {
                self.breaker.on_success(permit);
                Ok(answer)
            }
            Err(fault) => {
                self.note(&fault, permit, call.now_ms);
                Err(Miss::from(fault))
            }
        }
    }

    fn note(&self, fault: &Fault, permit: Permit, now_ms: u64) {
        self.metrics.count_fault(fault.name());
        if !fault.is_the_plugins() {
            // An answer, or the host's own trouble: either way the plugin did not fail.
            if matches!(fault, Fault::Refused { .. }) {
                self.breaker.on_success(permit);
            }
            return;
        }
        if self.breaker.on_fault(permit, now_ms) {
            tracing::warn!(plugin = %self.plugin, release = self.release, hook = %self.hook, %fault,
                "plugin taken out of the chain for a while");
        }
    }
}

/// A step that added nothing to the result.
enum Miss {
    Refused { code: String, message: String },
    Failed { reason: &'static str, detail: String },
}

impl From<Fault> for Miss {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Refused { code, message } => Self::Refused { code, message },
            fault => Self::Failed { reason: fault.name(), detail: fault.to_string() },
        }
    }
}

impl Miss {
    fn fallback(self, step: &Step) -> Fallback {
        let (reason, detail) = match self {
            Self::Refused { code, message } => ("refused", format!("{message} ({code})")),
            Self::Failed { reason, detail } => (reason, detail),
        };
        Fallback {
            plugin: step.plugin.clone(),
            release: step.release,
            hook: step.hook,
            reason: reason.to_owned(),
            detail,
        }
    }

    /// A refusal ends the call. A failure ends it if the release says so; else it is written down and skipped.
    fn settle(self, step: &Step, fallbacks: &mut Vec<Fallback>) -> Result<(), Stopped> {
        let kind = match self {
            Self::Refused { code, message } => StopKind::Refused { code, message },
            Self::Failed { reason, .. } if step.on_fault == OnFault::Closed => {
                StopKind::FailClosed { reason: reason.to_owned() }
            }
            Self::Failed { .. } => {
                fallbacks.push(self.fallback(step));
                return Ok(());
            }
        };
        Err(Stopped { plugin: step.plugin.clone(), release: step.release, hook: step.hook, kind })
    }
}

/// What is left of a chain's budget for the steps to come.
struct Budget {
    deadline: Duration,
    host_calls: u32,
    steps: u32,
}

impl Budget {
    fn of(steps: &[Step]) -> Self {
        let whole = steps.first().map_or(Allowance { deadline: Duration::ZERO, host_calls: 0 }, |step| {
            Allowance::from(step.loaded.engine().limits())
        });
        Self {
            deadline: whole.deadline,
            host_calls: whole.host_calls,
            steps: u32::try_from(steps.len()).unwrap_or(u32::MAX),
        }
    }

    fn next_share(&mut self) -> Allowance {
        let steps = self.steps.max(1);
        self.steps = steps - 1;
        Allowance { deadline: self.deadline / steps, host_calls: self.host_calls / steps }
    }

    fn spend(&mut self, share: Allowance, elapsed: Duration, host_calls: u32) {
        // A thread that had to wait for a processor spent wall time of its own share only.
        self.deadline = self.deadline.saturating_sub(elapsed.min(share.deadline));
        self.host_calls = self.host_calls.saturating_sub(host_calls);
    }
}

fn views(lines: &[(LineKey, u32, Listed)]) -> Vec<LineView<'_>> {
    lines
        .iter()
        .map(|(key, quantity, listed)| LineView {
            key,
            quantity: *quantity,
            listed,
            // Beyond the range of an amount a cart cannot be priced anyway; a plugin sees the greatest there is.
            amount: listed.price.price.times(*quantity).unwrap_or(Minor(souk_commerce::money::MINOR_MAX)),
        })
        .collect()
}

/// A product on its way through the catalogue plugins.
struct Shown {
    listed: Listed,
    title: Option<String>,
    badges: Vec<String>,
    rank: i32,
}

impl Shown {
    fn new(listed: Listed) -> Self {
        Self { listed, title: None, badges: Vec::new(), rank: 0 }
    }
}

fn arrange(shown: &mut Vec<Shown>, presentations: Vec<Presentation>) {
    let mut by_sku: std::collections::HashMap<Sku, Presentation> =
        presentations.into_iter().map(|presentation| (presentation.sku.clone(), presentation)).collect();
    shown.retain_mut(|item| {
        item.rank = 0;
        let Some(presentation) = by_sku.remove(&item.listed.product.sku) else { return true };
        item.rank = presentation.rank;
        item.badges.extend(presentation.badges);
        item.badges.truncate(BADGES_SHOWN_MAX);
        if presentation.title.is_some() {
            item.title = presentation.title;
        }
        !presentation.hidden
    });
    // Stable: equal ranks keep the order that they came in.
    shown.sort_by_key(|item| std::cmp::Reverse(item.rank));
}

/// Looks up the products that a plugin wants to put into the cart. One that the site does not have spoils its whole
/// answer: half a bundle is worse than none.
fn put_products(call: &Call<'_>, ops: Vec<CartOp>) -> Result<Vec<(CartOp, Option<Listed>)>, Fault> {
    ops.into_iter()
        .map(|op| match &op {
            CartOp::Put { sku, quantity } if *quantity > 0 => match call.data.product(sku.as_str()) {
                Some(listed) => Ok((op, Some(listed))),
                None => Err(Fault::BadValue(format!("puts {sku}, which this site does not sell"))),
            },
            _ => Ok((op, None)),
        })
        .collect()
}

/// Changes what the next plugin sees as if the operation had already been done.
fn foresee(
    lines: &mut Vec<(LineKey, u32, Listed)>,
    change: &mut Requested,
    plugin: &PluginName,
    op: &CartOp,
    product: Option<Listed>,
) {
    match op {
        CartOp::Remove(key) => lines.retain(|(line, _, _)| line != key),
        CartOp::Put { sku, quantity } => {
            let key = LineKey::added(sku.clone(), plugin.clone());
            lines.retain(|(line, _, _)| *line != key);
            if let Some(listed) = product {
                lines.push((key, *quantity, listed));
            }
        }
        CartOp::Cap(cap) => match change {
            Requested::Add { sku, quantity } => {
                let there = lines.iter().find(|(line, _, _)| line.added_by.is_none() && line.sku == *sku);
                *quantity =
                    (*quantity).min(cap.saturating_sub(there.map_or(0, |(_, quantity, _)| *quantity)));
            }
            Requested::Set { quantity, .. } => *quantity = (*quantity).min(*cap),
            Requested::Remove { .. } => {}
        },
    }
}
