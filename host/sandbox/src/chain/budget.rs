//! What the steps of a chain share: one deadline and one number of host calls.
//!
//! A step's share is what is left, divided by the steps to come, so that what one does not use passes on to the next.

use std::time::Duration;

use super::step::{Spent, Step};
use crate::hook::Allowance;

/// What is left of a chain's budget for the steps to come.
pub(super) struct Budget {
    deadline: Duration,
    host_calls: u32,
    steps: u32,
}

impl Budget {
    pub(super) fn of(steps: &[Step]) -> Self {
        let whole = steps.first().map_or(Allowance { deadline: Duration::ZERO, host_calls: 0 }, |step| {
            Allowance::from(step.active.loaded.engine().limits())
        });
        Self {
            deadline: whole.deadline,
            host_calls: whole.host_calls,
            steps: u32::try_from(steps.len()).unwrap_or(u32::MAX),
        }
    }

    pub(super) fn next_share(&mut self) -> Allowance {
        let steps = self.steps.max(1);
        self.steps = steps - 1;
        Allowance { deadline: self.deadline / steps, host_calls: self.host_calls / steps }
    }

    /// For a second call within one step: as much of what is left as each step to come has.
    pub(super) fn further_share(&self) -> Allowance {
        let parts = self.steps + 1;
        Allowance { deadline: self.deadline / parts, host_calls: self.host_calls / parts }
    }

    pub(super) fn spend(&mut self, share: Allowance, spent: &Spent) {
        // A thread that had to wait for a processor spent wall time of its own share only.
        self.deadline = self.deadline.saturating_sub(spent.duration.min(share.deadline));
        self.host_calls = self.host_calls.saturating_sub(spent.host_calls);
    }
}
