//! The second engine: the same limits, the same contract, and a count of every instruction.
//!
//! Counting makes a guest 24 to 34 % slower, so the engine that serves shoppers does not. This one is for replays,
//! tests and forecasts. Its count is exact and the same on every machine and in every run: it is wasmtime's fuel, one
//! for each WebAssembly operator that does something (`nop`, `drop`, `block`, `loop`, `unreachable`, `return`, `else`
//! and `end` are free), from instantiation to post-return. Of a call that traps, what the innermost function did since its
//! last branch or call is not in it.
//!
//! [`CostCurve`] is how the count grows with the size of a cart, and where it meets the deadline.

use std::time::{Duration, Instant};

use serde::Serialize;
use souk_commerce::id::PluginName;

use crate::fault::{EngineError, Fault};
use crate::hook::{Allowance, HookEngine, HookPlugin, Invocation, SiteData};
use crate::limits::HookLimits;
use crate::record::{Context, Outcome, Subject};

/// What each metered call gets. Nothing runs out of it: at one operator a nanosecond it lasts 292 years.
pub(crate) const FUEL: u64 = i64::MAX.unsigned_abs();

/// An engine that counts. Components are compiled for it anew: its code is other code.
pub fn engine(limits: HookLimits) -> Result<HookEngine, EngineError> {
    HookEngine::with(limits, true)
}

/// One measured call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metered {
    pub outcome: Outcome,
    pub instructions: u64,
    pub host_calls: u32,
}

/// What a call is given beside its subject, for as many calls as one likes.
pub struct Setting<'a> {
    pub plugin: &'a PluginName,
    pub context: &'a Context,
    pub data: &'a std::sync::Arc<dyn SiteData>,
    pub allowance: Allowance,
}

impl Setting<'_> {
    /// Runs one call on a plugin of a metered engine. On another engine the count is 0.
    pub fn count(&self, plugin: &HookPlugin, subject: &Subject) -> Result<Metered, Fault> {
        let call = self.context.call(self.data);
        let invocation = Invocation::new(&call, self.plugin, &self.context.settings, self.allowance);
        let outcome = subject.ask(plugin, &invocation)?;
        Ok(Metered {
            outcome,
            instructions: invocation.instructions.get().unwrap_or_default(),
            host_calls: invocation.host_calls_used.get(),
        })
    }

    /// The median wall time of several runs of one call, on a plugin of the engine that serves shoppers.
    pub fn time(&self, plugin: &HookPlugin, subject: &Subject, runs: u32) -> Result<Duration, Fault> {
        let mut times = Vec::new();
        for _ in 0..runs.max(1) {
            let call = self.context.call(self.data);
            let invocation = Invocation::new(&call, self.plugin, &self.context.settings, self.allowance);
            let start = Instant::now();
            subject.ask(plugin, &invocation)?;
            times.push(start.elapsed());
        }
        times.sort_unstable();
        Ok(times[times.len() / 2])
    }
}

/// One size of cart on a cost curve.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct CostPoint {
    pub lines: u32,
    pub instructions: u64,
    /// Median on this machine, with instantiation and the copying of arguments.
    pub micros: f64,
}

/// How a hook's cost grows with the cart. Points by ascending number of lines.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CostCurve {
    pub points: Vec<CostPoint>,
}

impl CostCurve {
    /// The smallest cart that is over `budget`, by a straight line between the measured points around it; beyond the
    /// last point by the growth of the last two. None if no cart of up to `lines_max` lines is.
    pub fn over_budget_at(&self, budget: Duration, lines_max: u32) -> Option<u32> {
        let budget = budget.as_secs_f64() * 1e6;
        let first = self.points.first()?;
        if first.micros > budget {
            return Some(first.lines);
        }
        for pair in self.points.windows(2) {
            if pair[1].micros > budget {
                return Some(crossing(pair[0], pair[1], budget).min(pair[1].lines));
            }
        }
        let [.., before, last] = self.points.as_slice() else { return None };
        if last.micros <= before.micros {
            return None;
        }
        let lines = crossing(*before, *last, budget);
        (lines <= lines_max).then_some(lines)
    }

    /// Instructions that each further line costs, between the smallest and the greatest cart.
    pub fn instructions_per_line(&self) -> Option<f64> {
        let (first, last) = (self.points.first()?, self.points.last()?);
        let lines = last.lines.checked_sub(first.lines).filter(|lines| *lines > 0)?;
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        let more = last.instructions as f64 - first.instructions as f64;
        Some(more / f64::from(lines))
    }
}

/// The first whole number of lines at which the line through two points is over `budget`; `b` is dearer than `a`.
fn crossing(a: CostPoint, b: CostPoint, budget: f64) -> u32 {
    let slope = (b.micros - a.micros) / f64::from(b.lines - a.lines).max(1.0);
    let lines = f64::from(a.lines) + (budget - a.micros) / slope;
    // Saturates: a curve that is nearly flat crosses nowhere that matters.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "saturating and not negative"
    )]
    let whole = lines.max(0.0).floor() as u32;
    whole.saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(points: &[(u32, f64)]) -> CostCurve {
        let point = |&(lines, micros)| CostPoint { lines, instructions: u64::from(lines) * 100, micros };
        CostCurve { points: points.iter().map(point).collect() }
    }

    #[test]
    fn a_budget_is_crossed_between_points_beyond_them_or_never() {
        let budget = Duration::from_millis(5);
        assert_eq!(
            curve(&[(1, 10.0), (101, 1_010.0), (1_001, 10_010.0)]).over_budget_at(budget, 1_000),
            Some(501)
        );
        assert_eq!(curve(&[(1, 10.0), (101, 1_010.0)]).over_budget_at(budget, 1_000), Some(501), "beyond");
        assert_eq!(curve(&[(1, 10.0), (101, 1_010.0)]).over_budget_at(budget, 400), None, "no such cart");
        assert_eq!(curve(&[(1, 10.0), (101, 10.0)]).over_budget_at(budget, 1_000), None, "flat");
        assert_eq!(curve(&[(1, 6_000.0), (2, 7_000.0)]).over_budget_at(budget, 1_000), Some(1));
        assert_eq!(curve(&[]).over_budget_at(budget, 1_000), None);
        assert_eq!(curve(&[(1, 0.0), (11, 1.0)]).instructions_per_line(), Some(100.0));
    }
}
