//! The region's end of a connection.

mod admission;
mod credit;
mod epoch;
mod feed;
mod intake;

use std::collections::VecDeque;

use crate::{
    Ack, Batch, EpochNo, Fold, Heads, Hello, Log, Node, Record, Reject, RejectReason, Seq, Tail, Term,
    Welcome, is_replaced,
    limits::{GREETING_MS_MAX, TAIL_BYTES_TARGET},
    planted::{Bug, planted},
    wire::{Control, LogVersion, feature},
};

#[cfg(test)]
use crate::limits::{REORDER_BATCHES_MAX, TAILS_IN_FLIGHT_MAX};

pub use self::admission::{Admission, Admit};
pub use self::epoch::{EpochDecision, Gone, decide_epoch, reckon};
use self::{
    credit::CreditPolicy,
    feed::{Feed, Want},
    intake::{Intake, Taken},
};

/// What a region keeps about a node, durably.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeState {
    /// The epoch in which it accepts operations.
    pub epoch: EpochNo,
    /// Everything up to here is committed.
    pub hwm: Seq,
    /// What that folds to; `None` when a release that did not fold has committed it.
    pub fold: Option<Fold>,
}

impl NodeState {
    const fn ack(self) -> Ack {
        let Self { epoch, hwm, fold } = self;
        Ack { epoch, hwm, fold }
    }
}

/// How far a region has committed a node's operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mark {
    /// Everything up to here is committed.
    pub hwm: Seq,
    /// What that folds to; `None` when a release that did not fold has committed a part of it.
    pub fold: Option<Fold>,
}

/// A page of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotPage {
    /// The version of the whole snapshot; that of the first page counts.
    pub version: u64,
    /// Rows.
    pub records: Vec<Record>,
    /// Where the next page starts, in words of the store; `None` on the last page.
    pub next: Option<Vec<u8>>,
}

/// Who a region is, for Welcome.
#[derive(Debug, Clone, Default)]
pub struct RegionFacts {
    /// Its name.
    pub region: String,
    /// The number of its history of the logs: another one when it was restored, rebuilt or failed over.
    pub region_epoch: u32,
    /// Its software and version.
    pub software: String,
    /// Schemas of operations that it reads; none: whatever comes, its store decides.
    pub schemas: Vec<u16>,
    /// Which home of the region it is.
    pub term: Term,
}

impl RegionFacts {
    fn check_schemas(&self, written: &[u16]) -> Result<(), RegionFault> {
        if self.schemas.is_empty() || written.iter().any(|schema| self.schemas.contains(schema)) {
            return Ok(());
        }
        Err(RegionFault::Schema { node: written.to_vec(), region: self.schemas.clone() })
    }
}

/// What happens to a region's session.
#[derive(Debug)]
pub enum RegionInput {
    /// A control frame came.
    Control(Control),
    /// Answer to [`RegionOutput::LoadNode`].
    NodeLoaded(Option<NodeState>),
    /// Answer to [`RegionOutput::BeginEpoch`]: it is durable.
    EpochBegun(EpochNo),
    /// A batch came.
    Batch(Batch),
    /// Answer to [`RegionOutput::Apply`]: everything up to here is committed.
    Applied(Mark),
    /// Answer to [`RegionOutput::Apply`]: not now.
    ApplyFailed,
    /// Logs have moved.
    Heads(Heads),
    /// Answer to [`RegionOutput::ReadTail`].
    TailRead {
        /// As asked.
        ticket: u32,
        /// What is there; may be empty.
        tail: Tail,
    },
    /// Answer to [`RegionOutput::ReadTail`]: changes that far back are not kept.
    TailGone {
        /// As asked.
        log: Log,
        /// As asked.
        ticket: u32,
    },
    /// Answer to [`RegionOutput::ReadSnapshot`].
    PageRead {
        /// As asked.
        log: Log,
        /// As asked.
        ticket: u32,
        /// What is there.
        page: SnapshotPage,
    },
    /// Answer to either read: not now.
    ReadFailed {
        /// As asked.
        log: Log,
        /// As asked.
        ticket: u32,
    },
    /// Time has passed.
    Tick,
}

/// What a region's driver has to do.
#[derive(Debug, PartialEq, Eq)]
pub enum RegionOutput {
    /// Note the node and load what is kept about it.
    LoadNode(Box<Hello>),
    /// Seal older epochs and start this one, durably.
    BeginEpoch(EpochNo),
    /// Send this on the control stream, in this order.
    Control(Control),
    /// Commit these. At most one at a time.
    Apply(Batch),
    /// Read changes of a log.
    ReadTail {
        /// Which log.
        log: Log,
        /// To be given back.
        ticket: u32,
        /// After this version.
        from: u64,
        /// About so much.
        bytes_max: usize,
    },
    /// Read a page of a snapshot of a log.
    ReadSnapshot {
        /// Which log.
        log: Log,
        /// To be given back.
        ticket: u32,
        /// `next` of the page before.
        resume: Option<Vec<u8>>,
        /// About so much.
        bytes_max: usize,
    },
    /// Send this on the stream of its log, in this order.
    Tail(Tail),
    /// The node has applied a log up to here.
    NoteApplied {
        /// Which log.
        log: Log,
        /// Up to where.
        version: u64,
    },
    /// Nothing more will come of this session: end the connection. A [`Reject`] stands before it in the outputs.
    Fault(RegionFault),
}

/// Why a region's session ends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegionFault {
    /// The node says nothing.
    #[error("the node does not say hello")]
    NoHello,
    /// Hello names another node than the certificate.
    #[error("the certificate says node {certificate}, hello says node {hello}")]
    WrongNode {
        /// Who it is.
        certificate: Node,
        /// Who it says it is.
        hello: Node,
    },
    /// The node broke the protocol.
    #[error("the node broke the protocol: {0}")]
    Protocol(&'static str),
    /// No epoch number is left for this node: give it another node number.
    #[error("no epoch number is left")]
    EpochsExhausted,
    /// The node writes what this region cannot read: upgrade the region first.
    #[error(
        "the node writes operations in schemas {node:?}, this region reads {region:?}: upgrade the region first"
    )]
    Schema {
        /// What it writes.
        node: Vec<u16>,
        /// What we read.
        region: Vec<u16>,
    },
    /// The node says that it has met a later home of this region: it is not served here, for it would take back what that one has
    /// told it. Whether it is so, its word does not prove.
    #[error("the node has met a later home of the region (term {met}) than this one (term {own})")]
    Replaced {
        /// Ours.
        own: Term,
        /// What the node says that it has met.
        met: Term,
    },
    /// The region's own store answers nonsense.
    #[error("the store is broken: {0}")]
    Store(&'static str),
}

impl RegionFault {
    const fn reason(&self) -> RejectReason {
        match self {
            Self::WrongNode { .. } => RejectReason::WrongNode,
            Self::NoHello | Self::Protocol(_) => RejectReason::Protocol,
            Self::Schema { .. } => RejectReason::Schema,
            Self::Replaced { .. } => RejectReason::Replaced,
            Self::EpochsExhausted | Self::Store(_) => RejectReason::Unavailable,
        }
    }
}

#[derive(Debug)]
enum Stage {
    Greeting {
        until_ms: u64,
    },
    Loading(Box<Hello>),
    BeginningEpoch {
        hello: Box<Hello>,
        epoch: EpochNo,
    },
    Open(Box<Open>),
    /// A fault was told.
    Ended,
}

/// Everything that a greeted connection has.
#[derive(Debug)]
struct Open {
    intake: Intake,
    credit: CreditPolicy,
    /// One per log, the most urgent first.
    feeds: Vec<Feed>,
}

/// The region's end of one connection to a node.
///
/// Holds nothing that must outlive the connection. The node is who its certificate says, not who Hello says.
#[derive(Debug)]
pub struct RegionSession {
    node: Node,
    facts: RegionFacts,
    heads: Heads,
    stage: Stage,
    outputs: VecDeque<RegionOutput>,
}

impl RegionSession {
    /// A session on a fresh connection of `node`.
    #[must_use]
    pub const fn new(node: Node, facts: RegionFacts, heads: Heads, now_ms: u64) -> Self {
        let stage = Stage::Greeting { until_ms: now_ms + GREETING_MS_MAX };
        Self { node, facts, heads, stage, outputs: VecDeque::new() }
    }

    /// Takes one input in.
    pub fn handle(&mut self, input: RegionInput, now_ms: u64) {
        if matches!(self.stage, Stage::Ended) {
            return;
        }
        let result = match input {
            RegionInput::Control(frame) => self.handle_control(frame, now_ms),
            RegionInput::NodeLoaded(state) => self.handle_node_loaded(state, now_ms),
            RegionInput::EpochBegun(begun) => self.handle_epoch_begun(begun, now_ms),
            RegionInput::Tick if matches!(self.stage, Stage::Greeting { until_ms } if until_ms <= now_ms) => {
                Err(RegionFault::NoHello)
            }
            RegionInput::Heads(heads) => {
                self.heads = heads;
                self.handle_open(RegionInput::Heads(heads), now_ms)
            }
            other => self.handle_open(other, now_ms),
        };
        match result {
            Ok(()) => self.advance(now_ms),
            Err(fault) => self.end(fault),
        }
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<RegionOutput> {
        self.outputs.pop_front()
    }

    /// When to tick at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        match &self.stage {
            Stage::Greeting { until_ms } => Some(*until_ms),
            Stage::Open(open) => {
                open.feeds.iter().filter_map(Feed::next_deadline).chain(open.intake.next_deadline()).min()
            }
            Stage::Loading(_) | Stage::BeginningEpoch { .. } | Stage::Ended => None,
        }
    }

    /// The node's epoch and mark, once open.
    #[must_use]
    pub const fn state(&self) -> Option<NodeState> {
        match &self.stage {
            Stage::Open(open) => Some(open.intake.state()),
            _ => None,
        }
    }

    /// How far the node has applied each log, once open.
    #[must_use]
    pub fn cursors(&self) -> Heads {
        match &self.stage {
            Stage::Open(open) => Log::ALL.into_iter().zip(open.feeds.iter().map(Feed::applied)).collect(),
            _ => Heads::default(),
        }
    }

    fn handle_control(&mut self, frame: Control, now_ms: u64) -> Result<(), RegionFault> {
        match (&mut self.stage, frame) {
            (Stage::Greeting { .. }, Control::Hello(hello)) if hello.node != self.node => {
                Err(RegionFault::WrongNode { certificate: self.node, hello: hello.node })
            }
            (Stage::Greeting { .. }, Control::Hello(hello)) if is_replaced(self.facts.term, hello.term) => {
                Err(RegionFault::Replaced { own: self.facts.term, met: hello.term })
            }
            (Stage::Greeting { .. }, Control::Hello(hello)) => {
                if hello.min_retained_seq > hello.last_seq.saturating_add(1) {
                    return Err(RegionFault::Protocol("hello keeps operations that it never accepted"));
                }
                if !hello.schemas.is_empty() {
                    self.facts.check_schemas(&hello.schemas)?;
                }
                self.outputs.push_back(RegionOutput::LoadNode(Box::new(hello.clone())));
                self.stage = Stage::Loading(Box::new(hello));
                Ok(())
            }
            (Stage::Open(open), Control::Applied(applied)) => {
                if let Some(log) = Log::from_code(applied.log)
                    && open.feeds[log.index()].on_applied(applied, now_ms)
                {
                    self.outputs.push_back(RegionOutput::NoteApplied { log, version: applied.version });
                }
                Ok(())
            }
            (Stage::Open(open), Control::Rewind(rewind)) => {
                if let Some(log) = Log::from_code(rewind.log) {
                    open.feeds[log.index()].on_rewind(rewind.version, now_ms);
                }
                Ok(())
            }
            // A frame of a newer release, or a repeated Hello.
            _ => Ok(()),
        }
    }

    fn handle_node_loaded(&mut self, state: Option<NodeState>, now_ms: u64) -> Result<(), RegionFault> {
        let Stage::Loading(hello) = &self.stage else {
            return Ok(());
        };
        let hello = hello.clone();
        match decide_epoch(&hello, state) {
            EpochDecision::Keep(state) => {
                self.welcome(&hello, state, now_ms);
                Ok(())
            }
            EpochDecision::Mint(epoch) => {
                self.outputs.push_back(RegionOutput::BeginEpoch(epoch));
                self.stage = Stage::BeginningEpoch { hello, epoch };
                Ok(())
            }
            EpochDecision::Exhausted => Err(RegionFault::EpochsExhausted),
        }
    }

    fn handle_epoch_begun(&mut self, begun: EpochNo, now_ms: u64) -> Result<(), RegionFault> {
        let Stage::BeginningEpoch { hello, epoch } = &self.stage else {
            return Ok(());
        };
        if begun != *epoch {
            return Err(RegionFault::Store("it began another epoch"));
        }
        let hello = hello.clone();
        self.welcome(&hello, NodeState { epoch: begun, hwm: 0, fold: Some(Fold::EMPTY) }, now_ms);
        Ok(())
    }

    fn welcome(&mut self, hello: &Hello, state: NodeState, now_ms: u64) {
        let region_epoch = self.facts.region_epoch;
        let feeds: Vec<Feed> = Log::ALL
            .into_iter()
            .map(|log| Feed::new(&hello.cursor(log), hello.staging(log), region_epoch, &self.heads, now_ms))
            .collect();
        let credit = CreditPolicy::new();
        let first = credit.credit();
        let resets = Log::ALL.into_iter().zip(&feeds).filter(|(_, feed)| feed.turns_back());
        let welcome = Welcome {
            region: self.facts.region.clone(),
            region_epoch,
            epoch: state.epoch,
            hwm: state.hwm,
            credit_ops: first.ops,
            credit_bytes: first.bytes,
            heads: LogVersion::list(&self.heads),
            resets: resets.map(|(log, _)| log.code()).collect(),
            software: self.facts.software.clone(),
            fold: state.fold,
            schemas: self.facts.schemas.clone(),
            features: feature::OURS,
            term: self.facts.term,
        };
        self.outputs.push_back(RegionOutput::Control(welcome.into()));
        self.stage = Stage::Open(Box::new(Open { intake: Intake::new(state, now_ms), credit, feeds }));
    }

    fn handle_open(&mut self, input: RegionInput, now_ms: u64) -> Result<(), RegionFault> {
        let Stage::Open(open) = &mut self.stage else {
            return match input {
                RegionInput::Batch(_) => Err(RegionFault::Protocol("a batch before Welcome")),
                _ => Ok(()),
            };
        };
        match input {
            RegionInput::Batch(batch) => {
                self.facts.check_schemas(&[batch.schema])?;
                if open.intake.on_batch(batch, now_ms)? == Taken::Old {
                    self.outputs.push_back(RegionOutput::Control(open.intake.state().ack().into()));
                }
            }
            RegionInput::Applied(mark) => {
                let took_ms = open.intake.on_applied(mark, now_ms)?;
                self.outputs.push_back(RegionOutput::Control(open.intake.state().ack().into()));
                let credit = open.credit.on_commit(took_ms);
                self.outputs.extend(credit.map(|credit| RegionOutput::Control(credit.into())));
            }
            RegionInput::ApplyFailed => open.intake.on_failed(now_ms),
            RegionInput::Heads(heads) => {
                for (log, head) in heads.iter() {
                    open.feeds[log.index()].on_head(head);
                }
            }
            RegionInput::TailRead { ticket, tail } => {
                let tail = open.feeds[tail.log.index()].on_tail(ticket, tail, now_ms)?;
                self.outputs.extend(tail.map(RegionOutput::Tail));
            }
            RegionInput::TailGone { log, ticket } => open.feeds[log.index()].on_gone(ticket),
            RegionInput::PageRead { log, ticket, page } => {
                let tail = open.feeds[log.index()].on_page(ticket, page, now_ms)?;
                self.outputs.extend(tail.map(RegionOutput::Tail));
            }
            RegionInput::ReadFailed { log, ticket } => open.feeds[log.index()].on_read_failed(ticket, now_ms),
            RegionInput::Tick => {
                for feed in &mut open.feeds {
                    feed.on_tick(now_ms);
                }
            }
            RegionInput::Control(_) | RegionInput::NodeLoaded(_) | RegionInput::EpochBegun(_) => {}
        }
        Ok(())
    }

    /// Starts whatever has become possible.
    fn advance(&mut self, now_ms: u64) {
        let Stage::Open(open) = &mut self.stage else {
            return;
        };
        if let Some(batch) = open.intake.next_apply(now_ms) {
            if planted(Bug::AckBeforeCommit) {
                let early = NodeState { hwm: batch.last_seq(), ..open.intake.state() };
                self.outputs.push_back(RegionOutput::Control(early.ack().into()));
            }
            self.outputs.push_back(RegionOutput::Apply(batch));
        }
        self.outputs
            .extend(open.intake.next_resend(now_ms).map(|resend| RegionOutput::Control(resend.into())));
        self.outputs.extend(open.intake.next_pulse(now_ms).map(|pulse| RegionOutput::Control(pulse.into())));
        for (log, feed) in Log::ALL.into_iter().zip(&mut open.feeds) {
            let bytes_max = TAIL_BYTES_TARGET;
            self.outputs.extend(feed.next_read(now_ms).map(|want| match want {
                Want::Tail { ticket, from } => RegionOutput::ReadTail { log, ticket, from, bytes_max },
                Want::Snapshot { ticket, resume } => {
                    RegionOutput::ReadSnapshot { log, ticket, resume, bytes_max }
                }
            }));
        }
    }

    /// What must hold at every moment, whatever the peer does.
    #[cfg(test)]
    pub(crate) fn check_bounds(&self) {
        let Stage::Open(open) = &self.stage else { return };
        assert!(open.intake.waiting() <= REORDER_BATCHES_MAX, "more batches out of order than their limit");
        for feed in &open.feeds {
            assert!(feed.in_flight() <= TAILS_IN_FLIGHT_MAX, "more tails on their way than the window");
        }
    }

    fn end(&mut self, fault: RegionFault) {
        let reject = Reject { reason: fault.reason().code(), message: fault.to_string() };
        self.outputs.push_back(RegionOutput::Control(reject.into()));
        self.outputs.push_back(RegionOutput::Fault(fault));
        self.stage = Stage::Ended;
    }
}
