//! The node's end of a connection.

mod replica;
mod send;

use std::cmp::Ordering;
use std::collections::VecDeque;

use crate::{
    Batch, Credit, Cursor, EpochNo, Fold, Heads, Hello, Log, Mark, Node, RejectReason, Seq, Staging, Tail,
    Term, Welcome, is_replaced,
    limits::{BATCH_BYTES_MAX, BATCH_OPS_MAX, GREETING_MS_MAX, TAILS_IN_FLIGHT_MAX},
    planted::{Bug, planted},
    wire::{Control, LogVersion, StagedLog, feature},
};

use self::{
    replica::{Answer, Replica},
    send::{SendWindow, Want},
};

/// Tails that may overtake Welcome: the windows of all logs.
const EARLY_TAILS_MAX: usize = Log::COUNT * TAILS_IN_FLIGHT_MAX;

/// Where a node's outbox stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OutboxPosition {
    /// The epoch it is in; `None` before the first contact with a region.
    pub epoch: Option<EpochNo>,
    /// The oldest operation kept; `last + 1` when none is kept.
    pub first: Seq,
    /// The newest operation accepted, 0 when none was in this epoch.
    pub last: Seq,
    /// What the operations before `first` fold to; `None` when a release that did not note it has trimmed them.
    pub anchor: Option<Fold>,
    /// The region's newest mark that this outbox has heard of. Operations up to there need not be kept; those that are
    /// (`first` is at or below the mark) are there for a region that comes back from a backup.
    pub acked: Mark,
}

/// Who a node is, for Hello.
#[derive(Debug, Clone, Default)]
pub struct NodeFacts {
    /// Its number.
    pub node: Node,
    /// Its point of presence.
    pub pop: String,
    /// Its software and version.
    pub software: String,
    /// Schemas of operations, the one that it writes first.
    pub schemas: Vec<u16>,
    /// The greatest term of its region that it has met; 0: none.
    pub term: Term,
}

/// What happens to a node's session.
#[derive(Debug)]
pub enum NodeInput {
    /// A control frame came.
    Control(Control),
    /// The outbox has moved.
    Outbox(OutboxPosition),
    /// Answer to [`NodeOutput::ReadOps`]: the operations from `from` on.
    Ops {
        /// As asked.
        from: Seq,
        /// What is there.
        ops: Vec<Vec<u8>>,
    },
    /// Answer to [`NodeOutput::BeginEpoch`]: it is durable, and the outbox stands here now.
    EpochBegun(OutboxPosition),
    /// A tail came on the stream of its log.
    Tail(Tail),
    /// Answer to [`NodeOutput::Apply`]: it is durable.
    Applied(Log),
    /// Time has passed.
    Tick,
}

/// What a node's driver has to do.
#[derive(Debug, PartialEq, Eq)]
pub enum NodeOutput {
    /// Send this on the control stream, in this order.
    Control(Control),
    /// Send this on a stream of its own.
    Batch(Batch),
    /// Read the outbox and answer with [`NodeInput::Ops`].
    ReadOps {
        /// The first operation wanted.
        from: Seq,
        /// At most so many.
        ops_max: usize,
        /// At most so many bytes, but at least one operation.
        bytes_max: usize,
    },
    /// The region was restored: it has this epoch up to here only. What was kept beyond is not acknowledged any more, and is sent
    /// again.
    GoBack {
        /// Of this epoch.
        epoch: EpochNo,
        /// The mark.
        to: Mark,
    },
    /// The region has these: they need not be kept.
    Trim {
        /// Of this epoch.
        epoch: EpochNo,
        /// Everything up to here.
        to: Seq,
        /// What that folds to, to be kept with the position in the same transaction: [`OutboxPosition::acked`].
        fold: Option<Fold>,
    },
    /// Start this epoch durably and answer with [`NodeInput::EpochBegun`].
    BeginEpoch(EpochNo),
    /// Apply and answer with [`NodeInput::Applied`]. At most one at a time for each log.
    Apply {
        /// What to apply.
        tail: Tail,
        /// To be kept beside the cursor, in the same transaction: see [`Cursor::region_epoch`].
        region_epoch: u32,
    },
    /// The region welcomes us.
    Welcomed(Box<Welcome>),
    /// No progress: try a second connection beside this one.
    Redial,
    /// Nothing more will come of this session: end the connection.
    Fault(NodeFault),
}

/// Why a node's session ends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeFault {
    /// Hello is not answered.
    #[error("the region does not answer Hello")]
    NoWelcome,
    /// The region rejects us.
    #[error("rejected ({}): {message}", reason.name())]
    Rejected {
        /// Why.
        reason: RejectReason,
        /// For people.
        message: String,
    },
    /// The region broke the protocol.
    #[error("the region broke the protocol: {0}")]
    Protocol(&'static str),
    /// The outbox answers nonsense.
    #[error("the outbox is broken: {0}")]
    Outbox(&'static str),
    /// The region has had a later home than this, which we have met: what this one says is of the past.
    #[error("this home of the region (term {own}) has been replaced by another one (term {met})")]
    Replaced {
        /// Its own.
        own: Term,
        /// Ours.
        met: Term,
    },
    /// Below the region's mark the outbox holds other operations than the region. The next Hello has to say so.
    #[error(
        "this outbox and the region mean different operations by the same numbers: the disk was restored"
    )]
    Diverged,
    /// An operation that no batch can hold; the outbox should not have accepted it.
    #[error("operation {0} is longer than a batch can hold")]
    OperationTooLarge(Seq),
}

/// How far the greeting is.
#[derive(Debug)]
enum Stage {
    /// Hello is sent.
    Greeting { until_ms: u64 },
    /// The region wants a new epoch and the outbox is beginning it.
    BeginningEpoch(Box<Welcome>),
    /// The numbers join; whether they mean the same is being read.
    Verifying(Box<Verifying>),
    /// Operations flow.
    Open(SendWindow),
    /// A fault was told.
    Ended,
}

/// The outbox is folded up to the region's mark.
#[derive(Debug)]
struct Verifying {
    welcome: Welcome,
    /// What the region says.
    expected: Fold,
    /// Everything up to here is folded,
    upto: Seq,
    /// to this.
    fold: Fold,
    /// A read is under way.
    reading: bool,
}

/// The node's end of one connection to a region.
///
/// Holds nothing that must outlive the connection: a new session starts from the outbox position and the cursors.
#[derive(Debug)]
pub struct NodeSession {
    stage: Stage,
    /// Schemas that it writes; the first that the region reads is the one.
    schemas: Vec<u16>,
    /// What the region can do; nothing before Welcome.
    features: u64,
    /// A home of a lower one is refused.
    term: Term,
    outbox: OutboxPosition,
    replicas: Vec<Replica>,
    /// The history that this region's versions count; known from Welcome on.
    region_epoch: Option<u32>,
    /// Tails that overtook Welcome, which travels on another stream.
    early: VecDeque<Tail>,
    outputs: VecDeque<NodeOutput>,
}

impl NodeSession {
    /// A session on a fresh connection; its first output is Hello. `diverged`: the session before ended with
    /// [`NodeFault::Diverged`].
    #[must_use]
    pub fn new(
        facts: &NodeFacts,
        outbox: OutboxPosition,
        diverged: bool,
        cursors: &[Cursor],
        stagings: &[Staging],
        now_ms: u64,
    ) -> Self {
        let hello = Hello {
            node: facts.node,
            epoch: outbox.epoch,
            last_seq: outbox.last,
            min_retained_seq: outbox.first,
            cursors: cursors.iter().map(LogVersion::from).collect(),
            schemas: facts.schemas.clone(),
            software: facts.software.clone(),
            pop: facts.pop.clone(),
            diverged,
            features: feature::OURS,
            stagings: stagings.iter().map(StagedLog::from).collect(),
            term: facts.term,
        };
        let staged = |log| stagings.iter().rfind(|staging| staging.log == log);
        let replicas = Log::ALL.into_iter().map(|log| Replica::new(hello.cursor(log), staged(log))).collect();
        Self {
            stage: Stage::Greeting { until_ms: now_ms + GREETING_MS_MAX },
            schemas: facts.schemas.clone(),
            features: 0,
            term: facts.term,
            outbox,
            replicas,
            region_epoch: None,
            early: VecDeque::new(),
            outputs: VecDeque::from([NodeOutput::Control(hello.into())]),
        }
    }

    /// Takes one input in.
    pub fn handle(&mut self, input: NodeInput, now_ms: u64) {
        if matches!(self.stage, Stage::Ended) {
            return;
        }
        let result = match input {
            NodeInput::Control(frame) => self.handle_control(frame, now_ms),
            NodeInput::Outbox(position) => {
                self.handle_outbox(position, now_ms);
                Ok(())
            }
            NodeInput::Ops { from, ops } => self.handle_ops(from, ops, now_ms),
            NodeInput::EpochBegun(position) => self.handle_epoch_begun(position, now_ms),
            NodeInput::Tail(tail) => self.handle_tail(tail),
            NodeInput::Applied(log) => self.handle_applied(log),
            NodeInput::Tick => self.handle_tick(now_ms),
        };
        match result {
            Ok(()) => self.advance(now_ms),
            Err(fault) => self.end(fault),
        }
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<NodeOutput> {
        self.outputs.pop_front()
    }

    /// When to tick at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        match &self.stage {
            Stage::Greeting { until_ms } => Some(*until_ms),
            Stage::Open(window) => window.next_deadline(),
            Stage::BeginningEpoch(_) | Stage::Verifying(_) | Stage::Ended => None,
        }
    }

    /// Whether operations flow.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Open(_))
    }

    /// What the region has said that it can do, see [`feature`]; nothing before Welcome.
    #[must_use]
    pub const fn features(&self) -> u64 {
        self.features
    }

    /// Epoch and newest committed operation, once open.
    #[must_use]
    pub const fn acked(&self) -> Option<(EpochNo, Seq)> {
        match &self.stage {
            Stage::Open(window) => Some((window.epoch(), window.acked())),
            _ => None,
        }
    }

    /// Operations accepted and not known to be committed.
    #[must_use]
    pub const fn unacked(&self) -> u64 {
        match &self.stage {
            Stage::Open(window) => window.last().saturating_sub(window.acked()),
            _ => self.outbox.last.saturating_sub(self.outbox.acked.hwm),
        }
    }

    /// How far each log is applied durably.
    #[must_use]
    pub fn cursors(&self) -> Heads {
        Log::ALL.into_iter().zip(self.replicas.iter().map(Replica::cursor)).collect()
    }

    fn handle_control(&mut self, frame: Control, now_ms: u64) -> Result<(), NodeFault> {
        match (&mut self.stage, frame) {
            (Stage::Greeting { .. }, Control::Welcome(welcome)) => self.on_welcome(welcome, now_ms),
            (_, Control::Reject(reject)) => Err(NodeFault::Rejected {
                reason: RejectReason::from_code(reject.reason),
                message: reject.message,
            }),
            (Stage::Open(window), Control::Ack(ack)) => {
                if ack.epoch == window.epoch() && ack.hwm > window.last() {
                    return Err(NodeFault::Protocol("it acknowledges what was never sent"));
                }
                if window.on_ack(ack.epoch, ack.hwm, now_ms) {
                    let to = if planted(Bug::TrimTooFar) { window.sent() } else { ack.hwm };
                    self.outputs.push_back(NodeOutput::Trim { epoch: ack.epoch, to, fold: ack.fold });
                }
                Ok(())
            }
            (Stage::Open(window), Control::Credit(credit)) => {
                window.on_credit(credit, now_ms);
                Ok(())
            }
            (Stage::Open(window), Control::Pulse(_)) => {
                window.on_pulse(now_ms);
                Ok(())
            }
            (Stage::Open(window), Control::Resend(resend)) => {
                window.on_resend(resend.epoch, resend.from, now_ms);
                Ok(())
            }
            // A frame of a newer release, a repeated Welcome, or one that crosses the beginning of an epoch.
            _ => Ok(()),
        }
    }

    fn on_welcome(&mut self, welcome: Welcome, now_ms: u64) -> Result<(), NodeFault> {
        if is_replaced(welcome.term, self.term) {
            return Err(NodeFault::Replaced { own: welcome.term, met: self.term });
        }
        for log in welcome.resets.iter().filter_map(|code| Log::from_code(*code)) {
            self.replicas[log.index()].allow_going_back();
        }
        self.region_epoch = Some(welcome.region_epoch);
        self.features = welcome.features;
        if !welcome.schemas.is_empty() {
            self.schemas.retain(|schema| welcome.schemas.contains(schema));
            if self.schemas.is_empty() {
                return Err(NodeFault::Protocol("it welcomes us and reads none of our schemas"));
            }
        }
        for tail in std::mem::take(&mut self.early) {
            self.handle_tail(tail)?;
        }
        self.outputs.push_back(NodeOutput::Welcomed(Box::new(welcome.clone())));
        if self.outbox.epoch == Some(welcome.epoch) {
            self.verify(welcome, now_ms)
        } else {
            self.outputs.push_back(NodeOutput::BeginEpoch(welcome.epoch));
            self.stage = Stage::BeginningEpoch(Box::new(welcome));
            Ok(())
        }
    }

    /// The numbers go on; do they mean the same? A disk from a backup that has overtaken the mark shows only here.
    fn verify(&mut self, welcome: Welcome, now_ms: u64) -> Result<(), NodeFault> {
        let OutboxPosition { first, last, anchor, acked, .. } = self.outbox;
        // From the mark that was heard of last, and further back only with a region that has gone back itself: what is kept for
        // that is not read at each connection.
        let (upto, known) = match acked.fold {
            Some(fold) if (first.saturating_sub(1)..=welcome.hwm).contains(&acked.hwm) => {
                (acked.hwm, Some(fold))
            }
            _ => (first.saturating_sub(1), anchor),
        };
        match (welcome.fold, known) {
            (Some(expected), Some(fold))
                if (upto..=last).contains(&welcome.hwm) && !planted(Bug::MarkUnbound) =>
            {
                self.stage =
                    Stage::Verifying(Box::new(Verifying { welcome, expected, upto, fold, reading: false }));
                self.compare(now_ms)
            }
            // One of the two is of a release that does not fold; or the numbers do not join, which opening finds.
            _ => self.open(&welcome, now_ms),
        }
    }

    /// Ends the verification once the mark is reached.
    fn compare(&mut self, now_ms: u64) -> Result<(), NodeFault> {
        match &self.stage {
            Stage::Verifying(verifying) if verifying.upto < verifying.welcome.hwm => Ok(()),
            Stage::Verifying(verifying) if verifying.fold == verifying.expected => {
                let welcome = verifying.welcome.clone();
                self.open(&welcome, now_ms)
            }
            Stage::Verifying(_) => Err(NodeFault::Diverged),
            _ => Ok(()),
        }
    }

    /// Folds what was read.
    fn fold(&mut self, from: Seq, ops: &[Vec<u8>], now_ms: u64) -> Result<(), NodeFault> {
        let Stage::Verifying(verifying) = &mut self.stage else { return Ok(()) };
        verifying.reading = false;
        if from != verifying.upto + 1 {
            return Ok(());
        }
        if ops.is_empty() {
            // An acknowledgement of the connection before may have been trimmed meanwhile: go on from there.
            let OutboxPosition { first, anchor: Some(anchor), .. } = self.outbox else {
                return Err(NodeFault::Outbox("it trimmed without noting what"));
            };
            if first <= from || first > verifying.welcome.hwm + 1 {
                return Err(NodeFault::Outbox("operations that it keeps are not there"));
            }
            (verifying.upto, verifying.fold) = (first - 1, anchor);
        }
        for op in ops {
            if verifying.upto < verifying.welcome.hwm {
                verifying.upto += 1;
                verifying.fold = verifying.fold.with(op);
            }
        }
        self.compare(now_ms)
    }

    fn handle_epoch_begun(&mut self, position: OutboxPosition, now_ms: u64) -> Result<(), NodeFault> {
        let Stage::BeginningEpoch(welcome) = &self.stage else {
            return Ok(());
        };
        if position.epoch != Some(welcome.epoch) {
            return Err(NodeFault::Outbox("it did not begin the epoch that it was told to"));
        }
        self.outbox = position;
        let welcome = welcome.clone();
        self.open(&welcome, now_ms)
    }

    fn open(&mut self, welcome: &Welcome, now_ms: u64) -> Result<(), NodeFault> {
        if welcome.hwm > self.outbox.last {
            return Err(NodeFault::Protocol("it has more of this epoch than was ever accepted"));
        }
        if self.outbox.first > welcome.hwm + 1 {
            return Err(NodeFault::Outbox("operations that the region misses are trimmed"));
        }
        let Welcome { epoch, hwm, fold, .. } = *welcome;
        match hwm.cmp(&self.outbox.acked.hwm) {
            Ordering::Greater => self.outputs.push_back(NodeOutput::Trim { epoch, to: hwm, fold }),
            Ordering::Less => self.outputs.push_back(NodeOutput::GoBack { epoch, to: Mark { hwm, fold } }),
            Ordering::Equal => {}
        }
        let credit = Credit { ops: welcome.credit_ops, bytes: welcome.credit_bytes };
        self.stage = Stage::Open(SendWindow::new(
            welcome.epoch,
            self.schemas.first().copied().unwrap_or_default(),
            welcome.hwm,
            self.outbox.last,
            credit,
            now_ms,
        ));
        Ok(())
    }

    fn handle_outbox(&mut self, position: OutboxPosition, now_ms: u64) {
        if position.epoch != self.outbox.epoch {
            return;
        }
        self.outbox = position;
        if let Stage::Open(window) = &mut self.stage {
            window.on_outbox(position.last, now_ms);
        }
    }

    fn handle_ops(&mut self, from: Seq, ops: Vec<Vec<u8>>, now_ms: u64) -> Result<(), NodeFault> {
        match &mut self.stage {
            Stage::Verifying(_) => self.fold(from, &ops, now_ms),
            // Unless it is out of date: what is read may be acknowledged meanwhile.
            Stage::Open(window)
                if ops.is_empty() && window.sent() + 1 == from && self.outbox.first > from =>
            {
                Err(NodeFault::Outbox("it trimmed what the region has not acknowledged"))
            }
            Stage::Open(window) => {
                self.outputs.extend(window.on_ops(from, ops, now_ms)?.map(NodeOutput::Batch));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn handle_tail(&mut self, tail: Tail) -> Result<(), NodeFault> {
        let Some(region_epoch) = self.region_epoch else {
            if self.early.len() >= EARLY_TAILS_MAX {
                return Err(NodeFault::Protocol("more tails than the windows before Welcome"));
            }
            self.early.push_back(tail);
            return Ok(());
        };
        let answer = self.replicas[tail.log.index()].on_tail(tail, region_epoch);
        self.outputs.extend(answer.map(|answer| {
            NodeOutput::Control(match answer {
                Answer::Applied(applied) => applied.into(),
                Answer::Rewind(rewind) => rewind.into(),
            })
        }));
        Ok(())
    }

    fn handle_applied(&mut self, log: Log) -> Result<(), NodeFault> {
        let replica = &mut self.replicas[log.index()];
        self.outputs.push_back(NodeOutput::Control(replica.on_applied()?.into()));
        self.outputs.extend(replica.ask_again().map(|rewind| NodeOutput::Control(rewind.into())));
        Ok(())
    }

    fn handle_tick(&mut self, now_ms: u64) -> Result<(), NodeFault> {
        match &mut self.stage {
            Stage::Greeting { until_ms } if *until_ms <= now_ms => Err(NodeFault::NoWelcome),
            Stage::Open(window) => {
                if window.redial(now_ms) {
                    self.outputs.push_back(NodeOutput::Redial);
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Starts whatever has become possible.
    fn advance(&mut self, now_ms: u64) {
        match &mut self.stage {
            Stage::Open(window) => {
                if let Some(Want { from, ops_max, bytes_max }) = window.next_read(now_ms) {
                    self.outputs.push_back(NodeOutput::ReadOps { from, ops_max, bytes_max });
                }
            }
            Stage::Verifying(verifying) if !verifying.reading => {
                verifying.reading = true;
                let left = verifying.welcome.hwm - verifying.upto;
                self.outputs.push_back(NodeOutput::ReadOps {
                    from: verifying.upto + 1,
                    ops_max: usize::try_from(left).unwrap_or(usize::MAX).min(BATCH_OPS_MAX),
                    bytes_max: BATCH_BYTES_MAX,
                });
            }
            _ => {}
        }
        if let Some(region_epoch) = self.region_epoch {
            let next = self.replicas.iter_mut().filter_map(|replica| replica.next_apply(region_epoch));
            self.outputs.extend(next.map(|tail| NodeOutput::Apply { tail, region_epoch }));
        }
    }

    /// What must hold at every moment, whatever the peer does.
    #[cfg(test)]
    pub(crate) fn check_bounds(&self) {
        assert!(self.early.len() <= EARLY_TAILS_MAX, "more tails before Welcome than the windows");
        for replica in &self.replicas {
            assert!(replica.waiting() <= 2 * TAILS_IN_FLIGHT_MAX, "more tails waiting than two windows");
        }
        if let Stage::Open(window) = &self.stage {
            window.check_bounds();
        }
    }

    fn end(&mut self, fault: NodeFault) {
        self.stage = Stage::Ended;
        self.outputs.push_back(NodeOutput::Fault(fault));
    }
}
