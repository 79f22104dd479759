//! One hook of one plugin in its place in a chain: its releases, their breakers, and one call with its consequences.
//!
//! Owns what a failed call means for the calls to come (breaker, metrics) and for this one ([`Miss`]), and what the
//! merchant's journal is told. Refuses to know what a hook's answer means: that is [`super`]'s and [`super::pricing`]'s.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use souk_commerce::id::{Digest, PluginName};
use souk_commerce::journal::{CallId, Level};
use souk_commerce::quote::Fallback;
use souk_commerce::site::{Guard, Hook, OnFault, Release};

use super::budget::Budget;
use super::{StopKind, Stopped};
use crate::account::{Changes, Ended, Outcome, StepOutcome};
use crate::breaker::{Breaker, Permit};
use crate::fault::Fault;
use crate::hook::{Allowance, Call, HookPlugin, Invocation};
use crate::metrics::StepMetrics;
use crate::record::Tape;

/// One hook of one plugin, in its place in the chain.
pub(super) struct Step {
    pub(super) plugin: PluginName,
    pub(super) hook: Hook,
    pub(super) on_fault: OnFault,
    pub(super) active: Version,
    /// Of pricing only: the other hooks have no guard that an answer could break.
    pub(super) standby: Option<Standby>,
    /// For the operator's log: a merchant's mistake comes with every quote.
    pub(super) alarm: Seldom,
    pub(super) metrics: StepMetrics,
}

/// Lets something be said once in a while. How often there was something to say is a metric's to tell.
#[derive(Default)]
pub(super) struct Seldom {
    /// 0: nothing was said yet.
    said_at_ms: AtomicU64,
}

impl Seldom {
    const PERIOD_MS: u64 = 60_000;

    pub(super) fn permits(&self, now_ms: u64) -> bool {
        let said_at_ms = self.said_at_ms.load(Ordering::Relaxed);
        // A clock that was set back must not silence it for ever.
        let is_due = said_at_ms == 0 || now_ms.abs_diff(said_at_ms) >= Self::PERIOD_MS;
        // Of several at once, one speaks.
        is_due
            && self
                .said_at_ms
                .compare_exchange(said_at_ms, now_ms.max(1), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

/// One release of a plugin, ready to be called.
pub(super) struct Version {
    pub(super) release: u32,
    pub(super) component: Digest,
    pub(super) settings: Arc<str>,
    pub(super) loaded: Arc<HookPlugin>,
    /// For a plugin that fails.
    pub(super) breaker: Breaker,
    pub(super) record_bp: u16,
    pub(super) tape: Option<Tape>,
}

pub(super) struct Standby {
    pub(super) version: Version,
    /// For an active release that breaks the price guard: while it is open, the standby release is asked at once.
    pub(super) guard_breaker: Breaker,
}

impl Standby {
    pub(super) fn new(version: Version) -> Self {
        Self { version, guard_breaker: Breaker::default() }
    }
}

/// What one call has used.
#[derive(Clone, Copy, Default)]
pub(super) struct Spent {
    /// The name of the call, if one was made.
    pub(super) call: Option<CallId>,
    pub(super) duration: Duration,
    pub(super) host_calls: u32,
}

impl Version {
    pub(super) fn of(release: &Release, settings: &Arc<str>, loaded: &Arc<HookPlugin>) -> Self {
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
    pub(super) fn call<R>(
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
    pub(super) fn ask<R>(
        &self,
        call: &Call<'_>,
        version: &Version,
        share: Allowance,
        budget: &mut Budget,
        hook: impl FnOnce(&HookPlugin, &Invocation<'_>) -> Result<R, Fault>,
    ) -> (Result<R, Miss>, Spent) {
        let Some(permit) = version.breaker.permits(call.now_ms) else {
            self.metrics.count_fault("breaker_open");
            let miss =
                Miss::not_asked("breaker_open", "the plugin failed too often and is tried again later");
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
        budget.spend(share, &spent);
        self.metrics.calls.inc();
        self.metrics.seconds.observe(spent.duration.as_secs_f64());
        let answer = match answer {
            Ok(answer) => {
                version.breaker.on_success(permit);
                Ok(answer)
            }
            Err(fault) => {
                self.note(version, &fault, permit, call.now_ms);
                Err(Miss::of(fault, invocation.id))
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
    pub(super) fn tell(&self, call: &Call<'_>, version: &Version, spent: Spent, miss: Option<&Miss>) {
        let outcome = match miss {
            None => Outcome::Answered,
            Some(Miss::Refused { code, message, .. }) => Outcome::Refused { code, message },
            Some(Miss::Failed { reason, detail, .. }) => Outcome::Failed { reason, detail },
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

    /// What no shopper is to know, for the merchant who reads the journal: under the call's name, as lines that it
    /// might have logged itself.
    pub(super) fn confide(
        &self,
        call: &Call<'_>,
        guard: &Guard,
        outcome: StepOutcome,
        share: Allowance,
        spent: Spent,
        changes: &Changes,
    ) {
        // A call that its breaker did not let begin has no name to look for.
        if spent.call.is_none() {
            return;
        }
        for line in changes.confidential(guard, outcome, share, spent.duration, spent.host_calls) {
            call.data.log(&self.plugin, Level::Debug, &line);
        }
    }
}

/// A step that added nothing to the result.
pub(super) enum Miss {
    Refused { call: Option<CallId>, code: String, message: String },
    Failed { call: Option<CallId>, reason: &'static str, detail: String },
}

impl Miss {
    fn of(fault: Fault, call: CallId) -> Self {
        let call = Some(call);
        match fault {
            Fault::Refused { code, message } => Self::Refused { call, code, message },
            fault => Self::Failed { call, reason: fault.name(), detail: fault.to_string() },
        }
    }

    /// Of a release that a breaker keeps from being called.
    pub(super) fn not_asked(reason: &'static str, detail: &str) -> Self {
        Self::Failed { call: None, reason, detail: detail.to_owned() }
    }

    /// Its name. What else there is to say is for the merchant's journal.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Refused { .. } => "refused",
            Self::Failed { reason, .. } => reason,
        }
    }

    pub(super) fn fallback(&self, step: &Step, version: &Version) -> Fallback {
        let (Self::Refused { call, .. } | Self::Failed { call, .. }) = self;
        Fallback {
            plugin: step.plugin.clone(),
            release: version.release,
            hook: step.hook,
            reason: self.reason().to_owned(),
            call: *call,
            instead: None,
        }
    }

    /// A refusal ends the call. A failure ends it if the release says so; else it is written down and skipped.
    pub(super) fn settle(
        self,
        step: &Step,
        version: &Version,
        fallbacks: &mut Vec<Fallback>,
    ) -> Result<(), Stopped> {
        let kind = match self {
            Self::Refused { code, message, .. } => StopKind::Refused { code, message },
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_with_every_call_is_said_once_a_minute() {
        let alarm = Seldom::default();
        let said: Vec<u64> = (0..=130_000).step_by(10).filter(|&now_ms| alarm.permits(now_ms)).collect();
        assert_eq!(said, [0, 60_010, 120_010], "0 is told as 1, so the next is due a call later");
        assert!(!alarm.permits(130_001) && alarm.permits(5), "the clock was set back");
    }
}
