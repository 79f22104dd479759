//! A site's plugins together: their order, their shared budget, and what a plugin that fails does to a call.
//!
//! Each plugin sees the result of the one before. A chain shares one deadline and one host-call budget; a plugin's
//! share is what is left, divided by the plugins to come, so that what one does not use passes on to the next.
//!
//! What this module refuses to know: carts as the node stores them, routes, HTTP. The node and the region both price
//! through [`Chain::price`], and a release's `on_fault` decides for both.
//!
//! Reading order: this file (the hooks, in the words of a shop), [`pricing`] (a cart's way under the price guard, and the
//! release that stands by), [`step`] (one plugin's call), [`budget`] (what the steps share).

mod budget;
mod pricing;
mod step;

use std::sync::Arc;

use souk_commerce::cart::LineKey;
use souk_commerce::id::{PluginName, SiteId, Sku};
use souk_commerce::money::{AmountOverflow, Minor};
use souk_commerce::product::Listed;
use souk_commerce::quote::{Fallback, Quote};
use souk_commerce::site::{Guard, Hook, Release};

use crate::account::Explanation;
use crate::fault::Fault;
use crate::hook::{Call, HookPlugin, LineView, Presentation};
use crate::metrics::Metrics;
use crate::record::Studio;
use budget::Budget;
use pricing::Pricing;
use step::{Seldom, Standby, Step, Version};

pub use crate::hook::{CartOp, Requested};

/// A site's active releases with their loaded plugins, breakers and metrics. Immutable and shared; a deploy makes a
/// new one.
pub struct Chain {
    catalog: Vec<Step>,
    pricing: Vec<Step>,
    cart: Vec<Step>,
    checkout: Vec<Step>,
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
                    hook,
                    on_fault: release.on_fault,
                    active: Version::of(&release, &settings, &loaded),
                    standby: None,
                    alarm: Seldom::default(),
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

    /// Gives each pricing plugin the release that was active before: the last known good one. Those of plugins that
    /// the chain does not have are left out.
    #[must_use]
    pub fn with_standby(mut self, releases: Vec<(Release, Arc<HookPlugin>)>) -> Self {
        for (release, loaded) in releases {
            let prices = loaded.hooks().contains(&Hook::Pricing) && release.hooks.contains(&Hook::Pricing);
            let step = self.pricing.iter_mut().find(|step| step.plugin == release.plugin);
            if let Some(step) = step.filter(|_| prices) {
                let settings: Arc<str> = release.settings.to_string().into();
                let version = Version::of(&release, &settings, &loaded);
                step.standby = Some(Standby::new(version));
            }
        }
        self
    }

    /// Lets the calls of every release be recorded, as often as its `record_bp` says.
    #[must_use]
    pub fn recorded(mut self, site: &SiteId, studio: &Studio) -> Self {
        let hooks = [&mut self.catalog, &mut self.pricing, &mut self.cart, &mut self.checkout];
        for step in hooks.into_iter().flatten() {
            let standby = step.standby.as_mut().map(|standby| &mut standby.version);
            for version in standby.into_iter().chain([&mut step.active]) {
                version.tape = Some(studio.tape(site, &step.plugin, version.release, version.record_bp));
            }
        }
        self
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
            match step.call(call, &mut budget, |loaded, invocation| loaded.present(invocation, &page)) {
                Ok(presentations) => arrange(&mut shown, presentations),
                Err(miss) => presented.fallbacks.push(miss.fallback(step, &step.active)),
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
            let answer = step.call(call, &mut budget, |loaded, invocation| {
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
                Err(miss) => miss.settle(step, &step.active, &mut reviewed.fallbacks)?,
            }
        }
        Ok(reviewed)
    }

    /// The price of a cart: the merchant's prices, adjusted by each pricing plugin in turn under the price guard.
    /// A plugin that fails, or whose adjustments break a rule and who has no standby release that keeps it, changes
    /// nothing; whatever was not as it should be is named in `fallbacks`.
    pub fn price(
        &self,
        call: &Call<'_>,
        guard: &Guard,
        lines: Vec<(LineKey, u32, Listed)>,
    ) -> Result<Quote, Unpriced> {
        self.price_with(call, guard, lines, None)
    }

    /// The same, with an account of each step up to the end, be that a quote or not. The merchant's journal gets the
    /// whole of it, call by call; what a shopper may see is what is given back.
    pub fn explain(
        &self,
        call: &Call<'_>,
        guard: &Guard,
        lines: Vec<(LineKey, u32, Listed)>,
    ) -> (Result<Quote, Unpriced>, Explanation) {
        let mut explanation = Explanation { base: Minor::ZERO, steps: Vec::new() };
        let quote = self.price_with(call, guard, lines, Some(&mut explanation));
        (quote, explanation)
    }

    fn price_with(
        &self,
        call: &Call<'_>,
        guard: &Guard,
        lines: Vec<(LineKey, u32, Listed)>,
        mut explanation: Option<&mut Explanation>,
    ) -> Result<Quote, Unpriced> {
        let country = call.country.clone();
        let asked = !self.pricing.is_empty() && !lines.is_empty();
        let quote = Quote::base(call.currency, country, lines.clone())?;
        if let Some(explanation) = &mut explanation {
            explanation.base = quote.total;
        }
        if !asked {
            return Ok(quote);
        }
        let floors: Vec<Option<Minor>> = lines.iter().map(|(_, _, listed)| listed.price.floor).collect();
        let account = explanation.map(|explanation| &mut explanation.steps);
        let pricing = Pricing {
            call,
            guard,
            floors: &floors,
            views: views(&lines),
            budget: Budget::of(&self.pricing),
            quote,
            account,
        };
        Ok(pricing.through(&self.pricing)?)
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
            let answer = step.call(call, &mut budget, |loaded, invocation| {
                loaded.review_order(invocation, &views, quote.total)
            });
            match answer {
                Ok(texts) => notes.extend(texts.into_iter().map(|(code, text)| Note {
                    plugin: step.plugin.clone(),
                    code,
                    text,
                })),
                Err(miss) => miss.settle(step, &step.active, &mut skipped)?,
            }
        }
        Ok(notes)
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
