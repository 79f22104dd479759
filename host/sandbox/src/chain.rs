//! A site's plugins together: their order, their shared budget, and what a plugin that fails does to a call.
//!
//! Each plugin sees the result of the one before. A chain shares one deadline and one host-call budget; a plugin's
//! share is what is left, divided by the plugins to come, so that what one does not use passes on to the next.
//!
//! **Last known good.** A pricing release whose answer breaks the price guard is replaced for that call by the release
//! of its plugin that was active before it ([`Chain::with_standby`]). After five such answers in a row, none that kept
//! the guard between them, it is not asked at all but for a probe now and then: a [`Breaker`] of its own decides that,
//! as another does for plugins that fail. Without a standby release the price is the one without the plugin.
//!
//! What this module refuses to know: carts as the node stores them, routes, HTTP. The node and the region both price
//! through [`Chain::price`], and a release's `on_fault` decides for both.

use std::sync::Arc;
use std::time::{Duration, Instant};

use souk_commerce::cart::LineKey;
use souk_commerce::id::{Digest, PluginName, SiteId, Sku};
use souk_commerce::journal::CallId;
use souk_commerce::money::{AmountOverflow, Minor};
use souk_commerce::product::Listed;
use souk_commerce::quote::{Adjustment, Fallback, Quote};
use souk_commerce::site::{Guard, Hook, OnFault, Release};

use crate::account::{self, Before, Ended, Explanation, Outcome, StepAccount, StepOutcome};
use crate::breaker::{Breaker, Permit};
use crate::fault::Fault;
use crate::hook::{Allowance, Invocation, LineView};
use crate::hook::{Call, HookPlugin, Presentation};
use crate::metrics::{Metrics, StepMetrics};
use crate::record::{Studio, Tape};

pub use crate::hook::{CartOp, Requested};

/// A site's active releases with their loaded plugins, breakers and metrics. Immutable and shared; a deploy makes a
/// new one.
pub struct Chain {
    catalog: Vec<Step>,
    pricing: Vec<Step>,
    cart: Vec<Step>,
    checkout: Vec<Step>,
}

/// One hook of one plugin, in its place in the chain.
struct Step {
    plugin: PluginName,
    hook: Hook,
    on_fault: OnFault,
    active: Version,
    /// Of pricing only: the other hooks have no guard that an answer could break.
    standby: Option<Standby>,
    metrics: StepMetrics,
}

/// One release of a plugin, ready to be called.
struct Version {
    release: u32,
    component: Digest,
    settings: Arc<str>,
    loaded: Arc<HookPlugin>,
    /// For a plugin that fails.
    breaker: Breaker,
    record_bp: u16,
    tape: Option<Tape>,
}

struct Standby {
    version: Version,
    /// For an active release that breaks the price guard: while it is open, the standby release is asked at once.
    guard_breaker: Breaker,
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
                step.standby = Some(Standby { version, guard_breaker: Breaker::default() });
            }
        }
        self
    }

    /// Lets the calls of every release be recorded, as often as its `record_bp` and the studio's recorder want.
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

    /// The same, with an account of each step up to the end, be that a quote or not.
    pub fn explain(
        &self,
        call: &Call<'_>,
        guard: &Guard,
        lines: Vec<(LineKey, u32, Listed)>,
    ) -> (Result<Quote, Unpriced>, Explanation) {
        let mut explanation = Explanation { guard: *guard, base: Minor::ZERO, steps: Vec::new() };
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
        let mut pricing = Pricing {
            call,
            guard,
            floors: &floors,
            views: views(&lines),
            budget: Budget::of(&self.pricing),
            quote,
            steps: explanation.map(|explanation| &mut explanation.steps),
        };
        for step in &self.pricing {
            pricing.ask(step)?;
        }
        Ok(pricing.quote)
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

/// A cart on its way through the pricing plugins.
struct Pricing<'a> {
    call: &'a Call<'a>,
    guard: &'a Guard,
    floors: &'a [Option<Minor>],
    views: Vec<LineView<'a>>,
    budget: Budget,
    quote: Quote,
    /// Where an account of each step goes, if somebody wants one.
    steps: Option<&'a mut Vec<StepAccount>>,
}

impl Pricing<'_> {
    /// Asks the active release; the standby one if the active one breaks the guard, or has done so too often lately.
    fn ask(&mut self, step: &Step) -> Result<(), Stopped> {
        for (view, line) in self.views.iter_mut().zip(&self.quote.lines) {
            view.amount = line.total;
        }
        let share = self.budget.next_share();
        let Some(standby) = &step.standby else {
            return match self.ask_version(step, &step.active, share, false) {
                Ok(()) => Ok(()),
                Err(NotTaken { miss, .. }) => miss.settle(step, &step.active, &mut self.quote.fallbacks),
            };
        };
        let now_ms = self.call.now_ms;
        let reason = match standby.guard_breaker.permits(now_ms) {
            Some(permit) => match self.ask_version(step, &step.active, share, false) {
                Ok(()) => {
                    standby.guard_breaker.on_success(permit);
                    return Ok(());
                }
                // It said nothing that the guard could judge.
                Err(NotTaken { miss, by_guard: false }) => {
                    return miss.settle(step, &step.active, &mut self.quote.fallbacks);
                }
                Err(NotTaken { miss, by_guard: true }) => {
                    if standby.guard_breaker.on_fault(permit, now_ms) {
                        tracing::warn!(plugin = %step.plugin, release = step.active.release,
                            standby = standby.version.release,
                            "a release keeps breaking the price guard; the one before it is asked for a while");
                    }
                    miss.fallback(step, &step.active)
                }
            },
            None => Miss::Failed {
                reason: "guard_open",
                detail: "the release broke the price guard too often and is tried again later".to_owned(),
            }
            .fallback(step, &step.active),
        };
        step.metrics.standby_calls.inc();
        let detail = format!("{}; release {} is asked in its place", reason.detail, standby.version.release);
        self.quote.fallbacks.push(Fallback { detail, ..reason });
        let share = self.budget.further_share();
        match self.ask_version(step, &standby.version, share, true) {
            Ok(()) => Ok(()),
            Err(NotTaken { miss, .. }) => miss.settle(step, &standby.version, &mut self.quote.fallbacks),
        }
    }

    /// One call of one release, and what the price guard has to say about the answer.
    fn ask_version(
        &mut self,
        step: &Step,
        version: &Version,
        share: Allowance,
        standby: bool,
    ) -> Result<(), NotTaken> {
        let (answer, spent) = step.ask(self.call, version, share, &mut self.budget, |loaded, invocation| {
            invocation.guard.set(Some(*self.guard));
            loaded.adjust(invocation, &self.views)
        });
        let before = self.steps.is_some().then(|| Before::of(&self.quote));
        // Kept for the account only: the quote takes the words themselves.
        let (mut said, mut outcome) = (Vec::new(), StepOutcome::Silent);
        let taken = match answer {
            Ok(adjustments) => {
                if before.is_some() {
                    said.clone_from(&adjustments);
                }
                if !adjustments.is_empty() {
                    outcome = StepOutcome::Applied;
                }
                self.quote.apply(&step.plugin, version.release, adjustments, self.floors, self.guard).map_err(
                    |broken| {
                        outcome = StepOutcome::DroppedByGuard;
                        step.metrics.count_fault(broken.name());
                        step.metrics.guard_alarms.inc();
                        tracing::warn!(plugin = %step.plugin, release = version.release, %broken,
                            "an answer broke the price guard");
                        let miss = Miss::Failed { reason: broken.name(), detail: broken.to_string() };
                        NotTaken { miss, by_guard: true }
                    },
                )
            }
            Err(miss) => {
                outcome = match miss {
                    Miss::Refused { .. } => StepOutcome::Refused,
                    Miss::Failed { .. } => StepOutcome::Failed,
                };
                Err(NotTaken { miss, by_guard: false })
            }
        };
        step.tell(self.call, version, spent, taken.as_ref().err().map(|not| &not.miss));
        if let (Some(before), Some(steps)) = (before, &mut self.steps) {
            let miss = taken.as_ref().err().map(|not| &not.miss);
            steps.push(step.account(
                version,
                standby,
                outcome,
                share,
                spent,
                miss,
                &before,
                &said,
                &self.quote,
            ));
        }
        taken
    }
}

/// An answer that changed no price, and whether it was the price guard that dropped it.
struct NotTaken {
    miss: Miss,
    by_guard: bool,
}

/// What one call has used.
#[derive(Clone, Copy, Default)]
struct Spent {
    /// The name of the call, if one was made.
    call: Option<CallId>,
    duration: Duration,
    host_calls: u32,
}

impl Version {
    fn of(release: &Release, settings: &Arc<str>, loaded: &Arc<HookPlugin>) -> Self {
        Self {
            release: release.number,
            component: release.component,
            settings: Arc::clone(settings),
            loaded: Arc::clone(loaded),
            breaker: Breaker::default(),
            record_bp: release.record_bp,
            tape: None,
        }
    }
}

impl Step {
    /// One call of this step's plugin within the next share of the budget.
    fn call<R>(
        &self,
        call: &Call<'_>,
        budget: &mut Budget,
        hook: impl FnOnce(&HookPlugin, &Invocation<'_>) -> Result<R, Fault>,
    ) -> Result<R, Miss> {
        let share = budget.next_share();
        let (answer, spent) = self.ask(call, &self.active, share, budget, hook);
        self.tell(call, &self.active, spent, answer.as_ref().err());
        answer
    }

    /// One call of one release, past its breaker and into the metrics.
    fn ask<R>(
        &self,
        call: &Call<'_>,
        version: &Version,
        share: Allowance,
        budget: &mut Budget,
        hook: impl FnOnce(&HookPlugin, &Invocation<'_>) -> Result<R, Fault>,
    ) -> (Result<R, Miss>, Spent) {
        let Some(permit) = version.breaker.permits(call.now_ms) else {
            self.metrics.count_fault("breaker_open");
            let miss = Miss::Failed {
                reason: "breaker_open",
                detail: "the plugin failed too often and is tried again later".to_owned(),
            };
            return (Err(miss), Spent::default());
        };
        let invocation =
            Invocation::new(call, &self.plugin, &version.settings, share).on(version.tape.as_ref());
        let start = Instant::now();
        let answer = hook(&version.loaded, &invocation);
        let spent = Spent {
            call: Some(invocation.id),
            duration: start.elapsed(),
            host_calls: invocation.host_calls_used.get(),
        };
        budget.spend(share, spent);
        self.metrics.calls.inc();
        self.metrics.seconds.observe(spent.duration.as_secs_f64());
        let answer = match answer {
            Ok(answer) => {
                version.breaker.on_success(permit);
                Ok(answer)
            }
            Err(fault) => {
                self.note(version, &fault, permit, call.now_ms);
                Err(Miss::from(fault))
            }
        };
        (answer, spent)
    }

    fn note(&self, version: &Version, fault: &Fault, permit: Permit, now_ms: u64) {
        self.metrics.count_fault(fault.name());
        if !fault.is_the_plugins() {
            // An answer, or the host's own trouble: either way the plugin did not fail.
            if matches!(fault, Fault::Refused { .. }) {
                version.breaker.on_success(permit);
            }
            return;
        }
        if version.breaker.on_fault(permit, now_ms) {
            tracing::warn!(plugin = %self.plugin, release = version.release, hook = %self.hook, %fault,
                "plugin taken out of the chain for a while");
        }
    }

    /// Tells whoever keeps the merchant's journal.
    fn tell(&self, call: &Call<'_>, version: &Version, spent: Spent, miss: Option<&Miss>) {
        let outcome = match miss {
            None => Outcome::Answered,
            Some(Miss::Refused { code, message }) => Outcome::Refused { code, message },
            Some(Miss::Failed { reason, detail }) => Outcome::Failed { reason, detail },
        };
        call.data.ended(&Ended {
            call: spent.call,
            plugin: &self.plugin,
            release: version.release,
            component: version.component,
            hook: self.hook,
            duration: spent.duration,
            host_calls: spent.host_calls,
            outcome,
        });
    }

    #[expect(clippy::too_many_arguments, reason = "the columns of one row, each from another place")]
    fn account(
        &self,
        version: &Version,
        standby: bool,
        outcome: StepOutcome,
        share: Allowance,
        spent: Spent,
        miss: Option<&Miss>,
        before: &Before,
        said: &[Adjustment],
        quote: &Quote,
    ) -> StepAccount {
        let (reason, detail) = miss.map(Miss::words).unzip();
        let changes = before.account_for(said, quote);
        StepAccount {
            plugin: self.plugin.clone(),
            release: version.release,
            component: version.component,
            standby,
            outcome,
            reason,
            detail,
            duration_us: account::micros(spent.duration),
            allowance_us: account::micros(share.deadline),
            host_calls: spent.host_calls,
            said: changes.said,
            lines: changes.lines,
            before: changes.before,
            after: changes.after,
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
    /// Its name, and what there is to say about it.
    fn words(&self) -> (String, String) {
        match self {
            Self::Refused { code, message } => ("refused".to_owned(), format!("{message} ({code})")),
            Self::Failed { reason, detail } => ((*reason).to_owned(), detail.clone()),
        }
    }

    fn fallback(&self, step: &Step, version: &Version) -> Fallback {
        let (reason, detail) = self.words();
        Fallback { plugin: step.plugin.clone(), release: version.release, hook: step.hook, reason, detail }
    }

    /// A refusal ends the call. A failure ends it if the release says so; else it is written down and skipped.
    fn settle(self, step: &Step, version: &Version, fallbacks: &mut Vec<Fallback>) -> Result<(), Stopped> {
        let kind = match self {
            Self::Refused { code, message } => StopKind::Refused { code, message },
            Self::Failed { reason, .. } if step.on_fault == OnFault::Closed => {
                StopKind::FailClosed { reason: reason.to_owned() }
            }
            Self::Failed { .. } => {
                fallbacks.push(self.fallback(step, version));
                return Ok(());
            }
        };
        Err(Stopped { plugin: step.plugin.clone(), release: version.release, hook: step.hook, kind })
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
            Allowance::from(step.active.loaded.engine().limits())
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

    /// For a second call within one step: as much of what is left as each step to come has.
    fn further_share(&self) -> Allowance {
        let parts = self.steps + 1;
        Allowance { deadline: self.deadline / parts, host_calls: self.host_calls / parts }
    }

    fn spend(&mut self, share: Allowance, spent: Spent) {
        // A thread that had to wait for a processor spent wall time of its own share only.
        self.deadline = self.deadline.saturating_sub(spent.duration.min(share.deadline));
        self.host_calls = self.host_calls.saturating_sub(spent.host_calls);
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
