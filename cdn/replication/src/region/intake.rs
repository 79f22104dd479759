//! Batches on their way into the region's store: put in order, joined, applied one after the other.
//!
//! Owns the reorder buffer, the mark, and the patience with gaps and with a store that fails.

use std::collections::BTreeMap;

use crate::{
    Batch, EpochNo, Fold, Mark, NodeState, Pulse, RegionFault, Resend, Seq,
    limits::{APPLY_OPS_MAX, GAP_MS_MAX, PULSE_EVERY_MS, REORDER_BATCHES_MAX, RETRY_MS_MAX, RETRY_MS_MIN},
    planted::{Bug, planted},
};

/// What became of a batch.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It waits for its turn.
    Kept,
    /// It is committed already: acknowledge again.
    Old,
    /// There is no room; it will be asked for again.
    Refused,
}

#[derive(Debug)]
pub(super) struct Intake {
    epoch: EpochNo,
    /// Everything up to here is committed.
    hwm: Seq,
    /// What that folds to, if the store knows.
    fold: Option<Fold>,
    /// Batches above the mark by their first operation, without the one that is being applied.
    waiting: BTreeMap<Seq, Batch>,
    /// Last operation of the apply call under way, and when it began.
    applying: Option<(Seq, u64)>,
    /// When the gap in front of `waiting` was seen, or when it was last asked for.
    gap_since_ms: Option<u64>,
    /// No apply before this, after the store failed.
    pause_until_ms: Option<u64>,
    retry_ms: u64,
    pulse_ms: u64,
}

impl Intake {
    pub(super) fn new(state: NodeState, now_ms: u64) -> Self {
        Self {
            epoch: state.epoch,
            hwm: state.hwm,
            fold: state.fold,
            waiting: BTreeMap::new(),
            applying: None,
            gap_since_ms: None,
            pause_until_ms: None,
            retry_ms: RETRY_MS_MIN,
            pulse_ms: now_ms,
        }
    }

    pub(super) const fn state(&self) -> NodeState {
        NodeState { epoch: self.epoch, hwm: self.hwm, fold: self.fold }
    }

    /// Everything up to here is committed or handed to the store.
    fn handed(&self) -> Seq {
        self.applying.map_or(self.hwm, |(last, _)| last)
    }

    pub(super) fn on_batch(&mut self, batch: Batch, now_ms: u64) -> Result<Taken, RegionFault> {
        if batch.epoch != self.epoch {
            return Err(RegionFault::Protocol("a batch of another epoch"));
        }
        if batch.ops.is_empty() || batch.first_seq == 0 {
            return Err(RegionFault::Protocol("an empty batch, or one numbered from 0"));
        }
        let last = batch.last_seq();
        if last <= self.handed() {
            return Ok(if last <= self.hwm { Taken::Old } else { Taken::Kept });
        }
        if self.waiting.get(&batch.first_seq).is_some_and(|kept| kept.last_seq() >= last) {
            return Ok(Taken::Kept);
        }
        if self.waiting.len() >= REORDER_BATCHES_MAX {
            // Keep the ones that come first: only they bring the mark forward.
            match self.waiting.last_key_value() {
                Some((&furthest, _)) if furthest > batch.first_seq => {
                    self.waiting.remove(&furthest);
                }
                _ => return Ok(Taken::Refused),
            }
        }
        self.waiting.insert(batch.first_seq, batch);
        self.watch_gap(now_ms);
        Ok(Taken::Kept)
    }

    fn watch_gap(&mut self, now_ms: u64) {
        let gap = self.waiting.first_key_value().is_some_and(|(&first, _)| first > self.handed() + 1);
        self.gap_since_ms = gap.then(|| self.gap_since_ms.unwrap_or(now_ms));
    }

    /// The next run of operations for the store, if it is idle.
    pub(super) fn next_apply(&mut self, now_ms: u64) -> Option<Batch> {
        if self.applying.is_some() || self.pause_until_ms.is_some() {
            return None;
        }
        let mut run: Option<Batch> = None;
        while let Some(entry) = self.waiting.first_entry() {
            let next = run.as_ref().map_or(self.hwm, Batch::last_seq) + 1;
            if *entry.key() > next && !planted(Bug::GapAccepted) {
                break;
            }
            if let Some(run) = &run
                && (entry.get().schema != run.schema || run.ops.len() + entry.get().ops.len() > APPLY_OPS_MAX)
            {
                break;
            }
            let mut batch = entry.remove();
            // At most APPLY_OPS_MAX can be skipped here: a batch is far smaller.
            let skip = next.saturating_sub(batch.first_seq);
            let skip = usize::try_from(skip).unwrap_or(usize::MAX).min(batch.ops.len());
            batch.ops.drain(..skip);
            batch.first_seq = batch.first_seq.max(next);
            match &mut run {
                _ if batch.ops.is_empty() => {}
                Some(run) if planted(Bug::OrderSwapped) => {
                    batch.ops.append(&mut run.ops);
                    run.ops = batch.ops;
                }
                Some(run) => run.ops.append(&mut batch.ops),
                None => run = Some(batch),
            }
        }
        let run = run?;
        self.applying = Some((run.last_seq(), now_ms));
        self.pulse_ms = now_ms;
        self.watch_gap(now_ms);
        Some(run)
    }

    /// The store has committed up to this mark. Returns how long the commit took.
    pub(super) fn on_applied(&mut self, Mark { hwm, fold }: Mark, now_ms: u64) -> Result<u64, RegionFault> {
        let Some((last, since_ms)) = self.applying.take() else {
            return Err(RegionFault::Store("it applied what it was not given"));
        };
        if hwm < self.hwm {
            return Err(RegionFault::Store("its mark went back"));
        }
        if hwm < last {
            // It committed less than it was given: whatever is missing must come again.
            self.gap_since_ms = Some(now_ms.saturating_sub(GAP_MS_MAX));
        }
        self.hwm = hwm;
        self.fold = fold;
        self.retry_ms = RETRY_MS_MIN;
        self.waiting.retain(|_, batch| batch.last_seq() > hwm);
        if hwm >= last {
            self.watch_gap(now_ms);
        }
        Ok(now_ms.saturating_sub(since_ms))
    }

    /// The store could not commit now. What it was given is gone with it, so everything is asked for again after a pause.
    pub(super) fn on_failed(&mut self, now_ms: u64) {
        self.applying = None;
        self.waiting.clear();
        self.gap_since_ms = None;
        self.pause_until_ms = Some(now_ms + self.retry_ms);
        self.retry_ms = (self.retry_ms * 2).min(RETRY_MS_MAX);
    }

    /// What to ask for again, if it is time.
    pub(super) fn next_resend(&mut self, now_ms: u64) -> Option<Resend> {
        if self.pause_until_ms.is_some_and(|until| until <= now_ms) {
            self.pause_until_ms = None;
            return Some(Resend { epoch: self.epoch, from: self.hwm + 1 });
        }
        if self.gap_since_ms.is_some_and(|since| since + GAP_MS_MAX <= now_ms) && self.applying.is_none() {
            self.gap_since_ms = Some(now_ms);
            return Some(Resend { epoch: self.epoch, from: self.hwm + 1 });
        }
        None
    }

    /// A sign of life while the store works, if it is time.
    pub(super) fn next_pulse(&mut self, now_ms: u64) -> Option<Pulse> {
        if self.pulse_at()? > now_ms {
            return None;
        }
        self.pulse_ms = now_ms;
        Some(Pulse { hwm: self.hwm })
    }

    fn pulse_at(&self) -> Option<u64> {
        (self.applying.is_some() || self.pause_until_ms.is_some()).then_some(self.pulse_ms + PULSE_EVERY_MS)
    }

    /// Batches out of order, for the simulation to bound.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn next_deadline(&self) -> Option<u64> {
        let gap = self.gap_since_ms.filter(|_| self.applying.is_none()).map(|since| since + GAP_MS_MAX);
        [gap, self.pause_until_ms, self.pulse_at()].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(first_seq: Seq, count: usize) -> Batch {
        Batch { epoch: 1, first_seq, schema: 1, ops: vec![vec![1]; count] }
    }

    fn intake(hwm: Seq) -> Intake {
        Intake::new(NodeState { epoch: 1, hwm, fold: None }, 0)
    }

    #[test]
    fn batches_are_put_in_order_joined_and_trimmed() {
        let mut intake = intake(10);
        assert_eq!(intake.on_batch(batch(21, 5), 0), Ok(Taken::Kept));
        assert_eq!(intake.next_apply(0), None);
        assert_eq!(intake.on_batch(batch(6, 15), 0), Ok(Taken::Kept));
        let run = intake.next_apply(0).expect("a run");
        assert_eq!((run.first_seq, run.last_seq()), (11, 25));
        assert_eq!(intake.on_batch(batch(11, 3), 0), Ok(Taken::Kept), "it is being applied");
        assert_eq!(intake.next_apply(0), None);
        assert_eq!(intake.on_applied(Mark { hwm: 25, fold: None }, 7), Ok(7));
        assert_eq!(intake.on_batch(batch(11, 3), 0), Ok(Taken::Old));
    }

    #[test]
    fn a_lasting_gap_is_asked_for() {
        let mut intake = intake(0);
        intake.on_batch(batch(3, 1), 5).expect("kept");
        assert_eq!(intake.next_resend(5 + GAP_MS_MAX - 1), None);
        assert_eq!(intake.next_deadline(), Some(5 + GAP_MS_MAX));
        assert_eq!(intake.next_resend(5 + GAP_MS_MAX), Some(Resend { epoch: 1, from: 1 }));
        assert_eq!(intake.next_resend(5 + GAP_MS_MAX), None);
    }

    #[test]
    fn the_buffer_is_bounded_and_keeps_what_comes_first() {
        let mut intake = intake(0);
        for n in 0..REORDER_BATCHES_MAX as u64 {
            assert_eq!(intake.on_batch(batch(10 + n, 1), 0), Ok(Taken::Kept));
        }
        assert_eq!(intake.on_batch(batch(1_000, 1), 0), Ok(Taken::Refused));
        assert_eq!(intake.on_batch(batch(1, 9), 0), Ok(Taken::Kept));
        assert_eq!(intake.waiting.len(), REORDER_BATCHES_MAX);
        assert_eq!(intake.next_apply(0).map(|run| run.ops.len()), Some(9 + REORDER_BATCHES_MAX - 1));
    }

    #[test]
    fn a_store_that_fails_is_tried_again_with_growing_pauses_and_signs_of_life() {
        let mut intake = intake(0);
        let mut now = 0;
        for pause in [RETRY_MS_MIN, 2 * RETRY_MS_MIN] {
            intake.on_batch(batch(1, 1), now).expect("kept");
            intake.next_apply(now).expect("a run");
            intake.on_failed(now);
            assert_eq!(intake.next_resend(now + pause - 1), None);
            now += pause;
            assert_eq!(intake.next_resend(now), Some(Resend { epoch: 1, from: 1 }));
        }
        intake.on_batch(batch(1, 1), now).expect("kept");
        intake.next_apply(now).expect("a run");
        assert_eq!(intake.next_pulse(now + PULSE_EVERY_MS), Some(Pulse { hwm: 0 }));
    }
}
