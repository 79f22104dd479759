//! What a node has sent and the region has not committed: the way up.
//!
//! Owns the place in the outbox, credit, the batches in flight and the two patiences of sending (linger and redial).

use std::collections::VecDeque;

use crate::{
    Batch, Credit, EpochNo, NodeFault, Seq,
    limits::{
        BATCH_BYTES_MAX, BATCH_OPS_MAX, IN_FLIGHT_BATCHES_MAX, LINGER_MS, OP_BYTES_MAX, REDIAL_AFTER_MS,
        REDIAL_EVERY_MS,
    },
    planted::{Bug, planted},
};

/// A batch in flight.
#[derive(Debug)]
struct Sent {
    last: Seq,
    ops: usize,
    bytes: usize,
}

/// A read of the outbox that the window wants.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Want {
    pub(super) from: Seq,
    pub(super) ops_max: usize,
    pub(super) bytes_max: usize,
}

#[derive(Debug)]
pub(super) struct SendWindow {
    epoch: EpochNo,
    schema: u16,
    /// Everything up to here is committed at the region.
    acked: Seq,
    /// The first operation that is not sent on this connection.
    next: Seq,
    /// The newest operation in the outbox.
    last: Seq,
    in_flight: VecDeque<Sent>,
    in_flight_ops: usize,
    in_flight_bytes: usize,
    credit: Credit,
    /// A read is under way.
    reading: bool,
    /// Since when the operation `next` waits.
    waiting_since_ms: u64,
    /// When the region last showed that it works on what we send, or when we began to wait for that.
    progress_ms: u64,
    /// When a redial was last asked for.
    redial_ms: Option<u64>,
}

impl SendWindow {
    pub(super) fn new(epoch: EpochNo, schema: u16, hwm: Seq, last: Seq, credit: Credit, now_ms: u64) -> Self {
        Self {
            epoch,
            schema,
            acked: hwm,
            next: hwm + 1,
            last,
            in_flight: VecDeque::new(),
            in_flight_ops: 0,
            in_flight_bytes: 0,
            credit,
            reading: false,
            waiting_since_ms: now_ms,
            progress_ms: now_ms,
            redial_ms: None,
        }
    }

    pub(super) const fn epoch(&self) -> EpochNo {
        self.epoch
    }

    pub(super) const fn acked(&self) -> Seq {
        self.acked
    }

    pub(super) const fn last(&self) -> Seq {
        self.last
    }

    /// The newest operation that is sent on this connection.
    pub(super) const fn sent(&self) -> Seq {
        self.next - 1
    }

    /// What must hold at every moment, whatever the peer does.
    #[cfg(test)]
    pub(super) fn check_bounds(&self) {
        assert!(self.in_flight.len() <= IN_FLIGHT_BATCHES_MAX, "more batches on their way than their limit");
        let (ops, bytes) =
            self.in_flight.iter().fold((0, 0), |(ops, bytes), sent| (ops + sent.ops, bytes + sent.bytes));
        let credit = (crate::limits::CREDIT_OPS_MAX as usize, crate::limits::CREDIT_BYTES_MAX as usize);
        assert!(ops <= credit.0 && bytes <= credit.1 + OP_BYTES_MAX, "{ops} operations on their way");
        assert!(self.acked < self.next && self.next <= self.last + 1, "sent what was never accepted");
    }

    pub(super) fn on_outbox(&mut self, last: Seq, now_ms: u64) {
        if last <= self.last {
            return;
        }
        if self.next > self.last {
            self.waiting_since_ms = now_ms;
        }
        self.last = last;
    }

    /// Returns whether the mark moved. A mark beyond what was ever accepted is refused by the caller's check of `last`.
    pub(super) fn on_ack(&mut self, epoch: EpochNo, hwm: Seq, now_ms: u64) -> bool {
        self.progress_ms = now_ms;
        if epoch != self.epoch || hwm <= self.acked {
            return false;
        }
        self.acked = hwm;
        self.next = self.next.max(hwm + 1);
        while self.in_flight.front().is_some_and(|sent| sent.last <= hwm) {
            if let Some(sent) = self.in_flight.pop_front() {
                self.forget(&sent);
            }
        }
        true
    }

    pub(super) fn on_credit(&mut self, credit: Credit, now_ms: u64) {
        self.progress_ms = now_ms;
        self.credit = credit;
    }

    /// The region works on what it has.
    pub(super) const fn on_pulse(&mut self, now_ms: u64) {
        self.progress_ms = now_ms;
    }

    /// The region misses operations: go back. What it has committed is never sent again.
    pub(super) fn on_resend(&mut self, epoch: EpochNo, from: Seq, now_ms: u64) {
        self.progress_ms = now_ms;
        let from = from.max(self.acked + 1) + u64::from(planted(Bug::ResendTooFar));
        if epoch != self.epoch || from >= self.next {
            return;
        }
        while self.in_flight.back().is_some_and(|sent| sent.last >= from) {
            if let Some(sent) = self.in_flight.pop_back() {
                self.forget(&sent);
            }
        }
        self.next = from;
        self.waiting_since_ms = now_ms;
    }

    fn forget(&mut self, sent: &Sent) {
        if planted(Bug::CreditLeak) {
            return;
        }
        self.in_flight_ops -= sent.ops;
        self.in_flight_bytes -= sent.bytes;
    }

    /// When the next batch may go, if there is anything to send and room for it.
    fn ready_ms(&self) -> Option<u64> {
        if self.reading || self.next > self.last || self.in_flight.len() >= IN_FLIGHT_BATCHES_MAX {
            return None;
        }
        if self.in_flight_ops >= self.credit.ops as usize
            || self.in_flight_bytes >= self.credit.bytes as usize
        {
            return None;
        }
        let full = self.last - self.next + 1 >= BATCH_OPS_MAX as u64;
        // With nothing in flight waiting gains nothing: an idle shop's operation goes at once.
        let linger = if full || self.in_flight.is_empty() { 0 } else { LINGER_MS };
        Some(self.waiting_since_ms + linger)
    }

    pub(super) fn next_read(&mut self, now_ms: u64) -> Option<Want> {
        if self.ready_ms()? > now_ms {
            return None;
        }
        self.reading = true;
        let ops_left = self.credit.ops as usize - self.in_flight_ops;
        let bytes_left = self.credit.bytes as usize - self.in_flight_bytes;
        Some(Want {
            from: self.next,
            ops_max: ops_left.min(BATCH_OPS_MAX),
            // At least one operation comes, even when it overshoots what is left.
            bytes_max: bytes_left.min(BATCH_BYTES_MAX),
        })
    }

    /// Takes what was read. `None`: the read is out of date, or brought nothing.
    pub(super) fn on_ops(
        &mut self,
        from: Seq,
        ops: Vec<Vec<u8>>,
        now_ms: u64,
    ) -> Result<Option<Batch>, NodeFault> {
        self.reading = false;
        if from != self.next || ops.is_empty() {
            return Ok(None);
        }
        let bytes: usize = ops.iter().map(Vec::len).sum();
        if ops.len() > BATCH_OPS_MAX || bytes > BATCH_BYTES_MAX {
            return Err(match ops.iter().position(|op| op.len() > OP_BYTES_MAX) {
                Some(at) => NodeFault::OperationTooLarge(from + at as u64),
                None => NodeFault::Outbox("it returned more than was asked for"),
            });
        }
        let batch = Batch { epoch: self.epoch, first_seq: from, schema: self.schema, ops };
        let last = batch.last_seq();
        if last > self.last {
            // Read past the announced end: those operations are durable too, the announcement is on its way.
            self.last = last;
        }
        if self.in_flight.is_empty() {
            self.progress_ms = now_ms;
        }
        self.in_flight_ops += batch.ops.len();
        self.in_flight_bytes += bytes;
        self.in_flight.push_back(Sent { last, ops: batch.ops.len(), bytes });
        self.next = last + 1;
        self.waiting_since_ms = now_ms;
        Ok(Some(batch))
    }

    /// Whether it is time to try a second connection; asks at most once per [`REDIAL_EVERY_MS`].
    pub(super) fn redial(&mut self, now_ms: u64) -> bool {
        if self.redial_at().is_none_or(|at| at > now_ms) {
            return false;
        }
        self.redial_ms = Some(now_ms);
        true
    }

    fn redial_at(&self) -> Option<u64> {
        if self.in_flight.is_empty() {
            return None;
        }
        let stalled = self.progress_ms + REDIAL_AFTER_MS;
        Some(self.redial_ms.map_or(stalled, |at| stalled.max(at + REDIAL_EVERY_MS)))
    }

    pub(super) fn next_deadline(&self) -> Option<u64> {
        [self.ready_ms(), self.redial_at()].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{CREDIT_BYTES_MAX, CREDIT_OPS_MAX};

    const CREDIT: Credit = Credit { ops: CREDIT_OPS_MAX, bytes: CREDIT_BYTES_MAX };

    fn ops(n: usize) -> Vec<Vec<u8>> {
        vec![vec![7; 10]; n]
    }

    #[test]
    fn first_operation_goes_at_once_and_the_next_lingers() {
        let mut window = SendWindow::new(1, 1, 0, 0, CREDIT, 0);
        assert_eq!(window.next_read(100), None);
        window.on_outbox(1, 100);
        assert_eq!(window.next_read(100).map(|w| w.from), Some(1));
        let batch = window.on_ops(1, ops(1), 100).expect("a good read").expect("a batch");
        assert_eq!((batch.first_seq, batch.last_seq()), (1, 1));
        window.on_outbox(2, 101);
        assert_eq!(window.next_read(105), None);
        assert_eq!(window.next_deadline(), Some(106));
        assert_eq!(window.next_read(106).map(|w| w.from), Some(2));
    }

    #[test]
    fn credit_bounds_what_is_in_flight_and_an_ack_gives_it_back() {
        let mut window = SendWindow::new(1, 1, 0, 2_000, Credit { ops: 600, bytes: 1 << 20 }, 0);
        assert_eq!(window.next_read(0).map(|w| w.ops_max), Some(512));
        window.on_ops(1, ops(512), 0).expect("a good read");
        assert_eq!(window.next_read(0).map(|w| w.ops_max), Some(88));
        window.on_ops(513, ops(88), 0).expect("a good read");
        assert_eq!(window.next_read(0), None);
        assert!(window.on_ack(1, 512, 1));
        assert_eq!(window.next_read(1).map(|w| w.from), Some(601));
    }

    #[test]
    fn resend_goes_back_but_never_below_the_mark() {
        let mut window = SendWindow::new(1, 1, 0, 30, CREDIT, 0);
        for from in [1, 11, 21] {
            window.next_read(100);
            window.on_ops(from, ops(10), 0).expect("a good read");
        }
        assert!(window.on_ack(1, 10, 0));
        window.on_resend(1, 3, 0);
        assert_eq!(window.next_read(100).map(|w| w.from), Some(11));
        // The answer to a read from before the resend is out of date.
        assert_eq!(window.on_ops(31, ops(1), 0), Ok(None));
    }

    #[test]
    fn redial_after_patience_and_then_once_a_second() {
        let mut window = SendWindow::new(1, 1, 0, 1, CREDIT, 0);
        window.next_read(0);
        window.on_ops(1, ops(1), 0).expect("a good read");
        assert!(!window.redial(REDIAL_AFTER_MS - 1));
        assert!(window.redial(REDIAL_AFTER_MS));
        assert!(!window.redial(REDIAL_AFTER_MS + 1));
        assert!(window.redial(REDIAL_AFTER_MS + REDIAL_EVERY_MS));
        window.on_pulse(4_000);
        assert!(!window.redial(4_000 + REDIAL_AFTER_MS - 1));
        window.on_ack(1, 1, 5_000);
        assert_eq!(window.next_deadline(), None);
    }
}
