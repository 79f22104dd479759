//! What the link asks of the two sides: the node's outbox and replica, the region's durable state.

use std::{future::Future, pin::Pin};

use souk_replication::{
    Batch, Cursor, EpochNo, Fold, Heads, Hello, Log, Mark, Node, NodeState, OutboxPosition, Seq,
    SnapshotPage, Staging, Tail, Term,
};
use tokio::sync::watch;

use crate::{Call, Refusal, Reply};

/// A future of a trait behind `Arc<dyn …>`.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Why a store did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Not now: a lock, a full queue, a time-out. The same request will be made again.
    #[error("store busy: {0}")]
    Busy(String),
    /// It failed in a way that a new try may not mend. The connection ends and starts anew, with back-off.
    #[error("store failed: {0}")]
    Failed(String),
}

/// What the link needs from a node. All methods may be called at any time, the async ones never two at once per log.
pub trait NodeStore: Send + Sync + 'static {
    /// Where the outbox stands: a cheap look at memory.
    fn outbox_position(&self) -> OutboxPosition;

    /// Tells the newest durable operation; the link reads it only after it is durable.
    fn outbox_changed(&self) -> watch::Receiver<Seq>;

    /// Operations from `from` on, in order and without a gap: at most `ops_max` of them and `bytes_max` bytes, but at least
    /// one if it is there. May block for a disk read: the link calls it on a blocking thread.
    fn read(&self, from: Seq, ops_max: usize, bytes_max: usize) -> Result<Vec<(Seq, Vec<u8>)>, StoreError>;

    /// Whether [`Self::read`] never blocks, and so needs no thread: a store in memory.
    fn reads_in_place(&self) -> bool {
        false
    }

    /// The region has committed everything up to `to` of `epoch`: those operations need not be kept. What they fold to is
    /// [`OutboxPosition::acked`] from then on; [`OutboxPosition::anchor`] is what those fold to that are forgotten, and moves
    /// in the transaction that forgets them. Idempotent.
    fn trim(&self, epoch: EpochNo, to: Seq, fold: Option<Fold>) -> BoxFuture<'_, Result<(), StoreError>>;

    /// The region has this epoch up to here only: it was restored from a backup. What is kept beyond is to be acknowledged
    /// anew. A store that keeps nothing that is acknowledged never hears this.
    fn go_back(&self, epoch: EpochNo, to: Mark) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Starts `epoch`, durably. Operations that are still kept move into it, numbered 1, 2, 3… in their order with their
    /// bytes unchanged (they are idempotent at the region); new ones follow. The anchor is [`Fold::EMPTY`] again. Returns the
    /// new position. Idempotent.
    fn begin_epoch(&self, epoch: EpochNo) -> BoxFuture<'_, Result<OutboxPosition, StoreError>>;

    /// How far each log is applied, and in which history of the region; a log that is not listed is at 0.
    fn cursors(&self) -> Vec<Cursor>;

    /// Snapshots that were interrupted, as they are staged durably; the region goes on with them. None: each begins anew.
    fn stagings(&self) -> Vec<Staging> {
        Vec::new()
    }

    /// The greatest term of its region that the node has met, as it was noted; 0: none.
    fn term(&self) -> Term {
        0
    }

    /// Notes a term that is greater, durably: from then on no home of a lower one is believed, after a restart too.
    fn note_term(&self, _term: Term) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Applies rows and cursor in one transaction, as [`souk_replication::Part`] says, and returns when it is durable.
    /// `region_epoch` becomes that of the cursor, in the transaction that moves it: a cursor that has lost its history is
    /// taken for one of a restored region's.
    fn apply(&self, tail: Tail, region_epoch: u32) -> BoxFuture<'_, Result<(), StoreError>>;
}

/// A run of a log, or that it must be a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TailRead {
    /// Changes (from, to], with [`souk_replication::Part::Changes`]. `to == from` when there is nothing.
    Tail(Tail),
    /// Changes after `from` are no longer kept: the node needs a snapshot.
    Gone,
}

/// What the link needs from a region.
pub trait RegionStore: Send + Sync + 'static {
    /// A node says hello: note it, and tell what is kept about it. The link decides about epochs.
    fn hello(&self, node: Node, hello: Hello) -> BoxFuture<'_, Result<Option<NodeState>, StoreError>>;

    /// Seals any older epoch of the node and starts `epoch` with mark 0, durably. Never goes back.
    fn begin_epoch(&self, node: Node, epoch: EpochNo) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Commits operations in one transaction with the mark and what it folds to ([`Fold::with`] for each, dead ones too; from
    /// [`Fold::EMPTY`] at the start of an epoch): skips those at or below it, refuses a gap. An operation that
    /// can never be applied goes to a dead letter in the same transaction. Calls for one node come one after the other.
    fn apply(&self, node: Node, batch: Batch) -> BoxFuture<'_, Result<Mark, StoreError>>;

    /// Newest version of each log; changes wake the link.
    fn log_changed(&self) -> watch::Receiver<Heads>;

    /// Changes of `log` after `from`: about `bytes_max` bytes, at most `limits::TAIL_RECORDS_MAX` records, and at least one
    /// record if there is any.
    fn tail(&self, log: Log, from: u64, bytes_max: usize) -> BoxFuture<'_, Result<TailRead, StoreError>>;

    /// A page of the whole state of `log`; `resume` is `next` of the page before and `None` for the first. Pages may be read
    /// from a moving state: rows changed meanwhile come again in the changes after the version of the first page.
    fn snapshot(
        &self,
        log: Log,
        resume: Option<Vec<u8>>,
        bytes_max: usize,
    ) -> BoxFuture<'_, Result<SnapshotPage, StoreError>>;

    /// Answers a call. It may be dropped half-way when its deadline passes or the node goes.
    fn call(&self, node: Node, call: Call) -> BoxFuture<'_, Result<Reply, Refusal>>;

    /// A node says that it has met a home of this region of a greater term, and was rejected for it. Its word proves nothing: a node
    /// may be in somebody's hands, or remember another region of this name. Must be quick and must not block.
    fn later_home_named(&self, _node: Node, _met: Term) {}

    /// The node has applied `log` durably up to `version`: a note for status tables. Must be quick and must not block.
    fn applied(&self, node: Node, log: Log, version: u64);
}
