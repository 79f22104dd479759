//! What a chain tells of its steps: to the merchant's journal as each one ends, and to whoever asks why a price is
//! what it is.
//!
//! Two readers, who may not know the same. An [`Explanation`] is for whoever holds the cart: what he pays and why, in the
//! words that were meant for him. What was said and not taken, the guard's rules, what the call could have used and what
//! exactly failed are the merchant's: lines of the journal under the name of the call, which the explanation gives.
//!
//! Made by [`crate::chain`]; nothing is decided from it. What this module refuses to know: where a journal is kept.

use std::time::Duration;

use serde::Serialize;
use souk_commerce::cart::LineKey;
use souk_commerce::id::{Digest, PluginName};
use souk_commerce::journal::CallId;
use souk_commerce::money::Minor;
use souk_commerce::quote::{AdjustEffect, Adjustment, Quote, Target};
use souk_commerce::site::{Guard, Hook};

use crate::hook::Allowance;

/// One call of a plugin that has ended, or that its breaker did not let begin.
#[derive(Debug, Clone)]
pub struct Ended<'a> {
    /// The name of the call; none if it did not begin.
    pub call: Option<CallId>,
    pub plugin: &'a PluginName,
    pub release: u32,
    pub component: Digest,
    pub hook: Hook,
    /// Wall time; zero if the call did not begin.
    pub duration: Duration,
    pub host_calls: u32,
    pub outcome: Outcome<'a>,
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome<'a> {
    Answered,
    /// The plugin said no, on purpose.
    Refused {
        code: &'a str,
        message: &'a str,
    },
    /// The plugin failed, or its breaker is open, or its answer broke the price guard: `reason` is the name of the
    /// fault or of the rule.
    Failed {
        reason: &'static str,
        detail: &'a str,
    },
}

/// Why a cart costs what it costs: the merchant's prices, then what each release made of them, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The cart at the merchant's prices.
    pub base: Minor,
    pub steps: Vec<StepAccount>,
}

/// What one release made of the price.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StepAccount {
    pub plugin: PluginName,
    pub release: u32,
    /// Under which name the merchant finds the rest; none if the release was not called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub call: Option<CallId>,
    /// This is the release of before, asked because the active one broke the price guard.
    pub standby: bool,
    pub outcome: StepOutcome,
    /// The name of the fault, of the broken rule, or of the refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What of the release's words was taken, in its order.
    pub said: Vec<Said>,
    /// The lines that it changed.
    pub lines: Vec<LineChange>,
    /// The cart's total.
    pub before: Minor,
    pub after: Minor,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StepOutcome {
    /// What it said was taken, all of it.
    Applied,
    /// It had nothing to say.
    Silent,
    /// It refused to price this cart.
    Refused,
    /// It failed or was not asked.
    Failed,
    /// What it said broke a rule of the price guard, and none of it was taken.
    DroppedByGuard,
}

/// One adjustment as the plugin said it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Said {
    /// None: the whole cart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<LineKey>,
    #[serde(flatten)]
    pub effect: Effect,
    pub code: String,
    pub label: String,
    /// What it came to; none if it was not taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub amount: Option<Minor>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Basis points of the running amount.
    PercentBp(i32),
    AddedAmount(Minor),
    UnitPrice(Minor),
}

/// A line's total before and after a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LineChange {
    pub line: LineKey,
    pub before: Minor,
    pub after: Minor,
}

/// A quote before a step, as far as an account needs it.
pub(crate) struct Before {
    lines: Vec<(Minor, usize)>,
    cart_adjustments: usize,
    total: Minor,
}

impl Before {
    pub(crate) fn of(quote: &Quote) -> Self {
        Self {
            lines: quote.lines.iter().map(|line| (line.total, line.adjustments.len())).collect(),
            cart_adjustments: quote.adjustments.len(),
            total: quote.total,
        }
    }

    /// What a release changed, with what it said; `said` is in the order in which it was applied, if it was.
    pub(crate) fn account_for(&self, said: &[Adjustment], after: &Quote) -> Changes {
        let mut next: Vec<usize> = self.lines.iter().map(|(_, adjustments)| *adjustments).collect();
        let mut next_of_cart = self.cart_adjustments;
        let take = |at: &mut usize, applied: &[souk_commerce::quote::Applied]| {
            let amount = applied.get(*at).map(|applied| applied.amount);
            *at += 1;
            amount
        };
        let said = said
            .iter()
            .map(|adjustment| {
                let (line, amount) = match adjustment.target {
                    Target::Cart => (None, take(&mut next_of_cart, &after.adjustments)),
                    Target::Line(index) => match (after.lines.get(index), next.get_mut(index)) {
                        (Some(line), Some(at)) => (Some(line.line.clone()), take(at, &line.adjustments)),
                        _ => (None, None),
                    },
                };
                Said {
                    line,
                    effect: match adjustment.effect {
                        AdjustEffect::Percent(bp) => Effect::PercentBp(bp),
                        AdjustEffect::Amount(amount) => Effect::AddedAmount(amount),
                        AdjustEffect::UnitPrice(price) => Effect::UnitPrice(price),
                    },
                    code: adjustment.code.clone(),
                    label: adjustment.label.clone(),
                    amount,
                }
            })
            .collect();
        let lines = self.lines.iter().zip(&after.lines).filter(|((before, _), line)| *before != line.total);
        let lines = lines
            .map(|((before, _), line)| LineChange {
                line: line.line.clone(),
                before: *before,
                after: line.total,
            })
            .collect();
        Changes { said, lines, before: self.total, after: after.total }
    }
}

pub(crate) struct Changes {
    pub(crate) said: Vec<Said>,
    pub(crate) lines: Vec<LineChange>,
    pub(crate) before: Minor,
    pub(crate) after: Minor,
}

/// Of what a release said, in the journal. A cart of hundreds of lines has hundreds of adjustments, and anybody who
/// holds one can ask for an explanation.
const CONFIDED_MAX: usize = 8;

impl Changes {
    /// What only the merchant may know of a step, line by line.
    pub(crate) fn confidential(
        &self,
        guard: &Guard,
        outcome: StepOutcome,
        share: Allowance,
        spent: Duration,
        host_calls: u32,
    ) -> Vec<String> {
        let mut lines = vec![format!(
            "explain: {} {} -> {}, {} us of {}, {host_calls} host calls of {}, guard {}",
            json(&outcome),
            self.before.0,
            self.after.0,
            micros(spent),
            micros(share.deadline),
            share.host_calls,
            json(guard),
        )];
        lines.extend(self.said.iter().take(CONFIDED_MAX).map(|said| format!("explain: said {}", json(said))));
        if self.said.len() > CONFIDED_MAX {
            lines.push(format!("explain: said {} more", self.said.len() - CONFIDED_MAX));
        }
        lines
    }
}

/// The account is of plain numbers and names: there is nothing in it that JSON could not say.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
