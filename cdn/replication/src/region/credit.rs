//! How much a node may have sent that is not committed: halves when commits are slow, grows back when they are not.

use crate::{
    Credit,
    limits::{COMMIT_SLOW_MS, CREDIT_BYTES_MAX, CREDIT_BYTES_MIN, CREDIT_OPS_MAX, CREDIT_OPS_MIN},
};

#[derive(Debug)]
pub(super) struct CreditPolicy {
    now: Credit,
}

impl CreditPolicy {
    pub(super) const fn new() -> Self {
        Self { now: Credit { ops: CREDIT_OPS_MAX, bytes: CREDIT_BYTES_MAX } }
    }

    pub(super) const fn credit(&self) -> Credit {
        self.now
    }

    /// Learns from a commit. Returns the credit when it changes.
    pub(super) fn on_commit(&mut self, took_ms: u64) -> Option<Credit> {
        let before = self.now;
        self.now = if took_ms > COMMIT_SLOW_MS {
            Credit { ops: before.ops / 2, bytes: before.bytes / 2 }
        } else {
            // A quarter more: fifteen good commits lead from the least to all.
            Credit { ops: before.ops + before.ops / 4, bytes: before.bytes + before.bytes / 4 }
        };
        self.now.ops = self.now.ops.clamp(CREDIT_OPS_MIN, CREDIT_OPS_MAX);
        self.now.bytes = self.now.bytes.clamp(CREDIT_BYTES_MIN, CREDIT_BYTES_MAX);
        (self.now != before).then_some(self.now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_commits_shrink_it_to_one_batch_and_quick_ones_restore_it() {
        let mut policy = CreditPolicy::new();
        assert_eq!(policy.on_commit(1), None);
        while policy.on_commit(COMMIT_SLOW_MS + 1).is_some() {}
        assert_eq!(policy.credit(), Credit { ops: CREDIT_OPS_MIN, bytes: CREDIT_BYTES_MIN });
        let mut commits = 0;
        while policy.on_commit(1).is_some() {
            commits += 1;
        }
        assert_eq!(policy.credit(), Credit { ops: CREDIT_OPS_MAX, bytes: CREDIT_BYTES_MAX });
        assert!(commits <= 20, "{commits} commits");
    }
}
