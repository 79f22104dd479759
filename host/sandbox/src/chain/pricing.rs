//! A cart's way through the pricing plugins, under the price guard.
//!
//! **Last known good.** A pricing release whose answer breaks the price guard is replaced for that call by the release
//! of its plugin that was active before it ([`super::Chain::with_standby`]). After five such answers in a row, none that
//! kept the guard between them, it is not asked at all but for a probe now and then: a breaker of its own decides that,
//! as another does for plugins that fail. Without a standby release the price is the one without the plugin.
//!
//! Refuses to know the rules of the guard: those are `souk_commerce`'s. Called by [`super::Chain::price`].

use souk_commerce::money::Minor;
use souk_commerce::quote::{Fallback, Quote};
use souk_commerce::site::Guard;

use super::Stopped;
use super::budget::Budget;
use super::step::{Miss, Step, Version};
use crate::account::{Before, StepAccount, StepOutcome};
use crate::hook::{Allowance, Call, LineView};

/// A cart on its way through the pricing plugins.
pub(super) struct Pricing<'a> {
    pub(super) call: &'a Call<'a>,
    pub(super) guard: &'a Guard,
    pub(super) floors: &'a [Option<Minor>],
    pub(super) views: Vec<LineView<'a>>,
    pub(super) budget: Budget,
    pub(super) quote: Quote,
    /// Where an account of each step goes, if somebody wants one.
    pub(super) account: Option<&'a mut Vec<StepAccount>>,
}

impl Pricing<'_> {
    /// Asks each plugin in turn.
    pub(super) fn through(mut self, steps: &[Step]) -> Result<Quote, Stopped> {
        for step in steps {
            self.ask(step)?;
        }
        Ok(self.quote)
    }

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
        let fallback = match standby.guard_breaker.permits(now_ms) {
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
            None => Miss::not_asked(
                "guard_open",
                "the release broke the price guard too often and is tried again later",
            )
            .fallback(step, &step.active),
        };
        step.metrics.standby_calls.inc();
        self.quote.fallbacks.push(Fallback { instead: Some(standby.version.release), ..fallback });
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
        let before = self.account.is_some().then(|| Before::of(&self.quote));
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
                        if step.alarm.permits(self.call.now_ms) {
                            tracing::warn!(plugin = %step.plugin, release = version.release, %broken,
                                "answers break the price guard; said once a minute at most, counted in the metrics");
                        }
                        let detail = broken.to_string();
                        let miss = Miss::Failed { call: spent.call, reason: broken.name(), detail };
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
        let miss = taken.as_ref().err().map(|not| &not.miss);
        if let (Some(before), Some(accounts)) = (before, &mut self.account) {
            let changes = before.account_for(&said, &self.quote);
            step.confide(self.call, self.guard, outcome, share, spent, &changes);
            accounts.push(StepAccount {
                plugin: step.plugin.clone(),
                release: version.release,
                call: spent.call,
                standby,
                outcome,
                reason: miss.map(|miss| miss.reason().to_owned()),
                said: changes.said.into_iter().filter(|said| said.amount.is_some()).collect(),
                lines: changes.lines,
                before: changes.before,
                after: changes.after,
            });
        }
        step.tell(self.call, version, spent, miss);
        taken
    }
}

/// An answer that changed no price, and whether it was the price guard that dropped it.
struct NotTaken {
    miss: Miss,
    by_guard: bool,
}
