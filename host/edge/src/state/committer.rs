//! The one thread that writes `state.redb`.
//!
//! Takes what is waiting (at most [`BATCH_MAX`] changes, never waiting for more), makes one transaction of it, and
//! answers each change only when its bytes are on the disk. At low load a change waits for one sync; at high load a
//! sync carries a thousand changes.
//!
//! A commit that fails has an **unknown** outcome: redb refuses everything until the file is reopened, and only the
//! commit counter found in it then says what happened. Until the disk accepts writes again they are refused by name,
//! and reads go on from the reopened file and the carts in memory.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use redb::{Database, Durability};
use souk_commerce::call::{Granted, Want};
use souk_commerce::id::Epoch;
use souk_link::Fold;
use souk_link::planted::{Bug, planted};
use tokio::sync::{Notify, oneshot, watch};

use super::carts::{CartGuard, CartRow, Held};
use super::leases::Steady;
use super::outbox::{self, Disk, Draft, Erased, Facts, Keeping};
use super::sweep::{self, Sweep};
use super::{CartCache, CommitStats};

/// Changes in one transaction: at 200 bytes each, 200 KiB and about 16 ms of work beside the sync.
pub const BATCH_MAX: usize = 1_024;
/// Changes that wait for the thread. Eight full transactions: more would wait longer than a shopper does.
pub const QUEUE_MAX: usize = 8 * BATCH_MAX;
/// A trim without company waits this long for a change to travel with: acknowledgements alone cost no sync each.
const TRIM_ALONE_AFTER: Duration = Duration::from_millis(250);
/// How often operations are looked for that were kept long enough: 1,024 go at a time, which keeps up with 1,000 a second, and
/// those that the shop makes beyond are bounded by their bytes.
const FORGET_EVERY: Duration = Duration::from_secs(1);
/// How often a disk that refused is asked again.
const PROBE_EVERY: Duration = Duration::from_millis(500);
/// How often free space is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Why a change was not kept, or not known to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    #[error("the node has no epoch yet")]
    NotEnrolled,
    /// The region began a new epoch between the edit and the commit: edit again.
    #[error("the epoch has changed")]
    EpochChanged,
    #[error("{QUEUE_MAX} changes are waiting already")]
    QueueFull,
    #[error("the outbox holds its {bytes_max} bytes: the region must take some first")]
    OutboxFull { bytes_max: u64 },
    #[error("the disk is full")]
    DiskFull,
    #[error("the disk failed: {0}")]
    DiskFailed(String),
    #[error("the disk failed and the change may have been kept")]
    OutcomeUnknown,
    #[error("the node is stopping")]
    Stopped,
}

/// Whether the disk takes writes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Gate {
    #[default]
    Open,
    Full,
    Failed(String),
}

impl Gate {
    pub(super) fn check(&self) -> Result<(), CommitError> {
        match self {
            Self::Open => Ok(()),
            Self::Full => Err(CommitError::DiskFull),
            Self::Failed(why) => Err(CommitError::DiskFailed(why.clone())),
        }
    }
}

/// One change of one cart, with the right to make it.
pub(super) struct Change {
    pub(super) guard: CartGuard,
    /// The epoch that the operations' dots were made in.
    pub(super) epoch: Option<Epoch>,
    pub(super) ops: Vec<Vec<u8>>,
    pub(super) held: Held,
    pub(super) row: CartRow,
    /// Units that it is to be promised, as many as are lent to this node.
    pub(super) wants: Vec<Want>,
    /// The wall clock of the request.
    pub(super) at_ms: u64,
    pub(super) stamp: u64,
    pub(super) done: oneshot::Sender<Result<(CartGuard, Arc<Held>), CommitError>>,
}

pub(super) enum Work {
    Change(Box<Change>),
    Trim { epoch: Epoch, to: u64, fold: Option<Fold> },
    GoBack { epoch: Epoch, to: u64, fold: Option<Fold>, done: oneshot::Sender<Result<(), CommitError>> },
    BeginEpoch { epoch: Epoch, done: oneshot::Sender<Result<(), CommitError>> },
    Leases(Leases, oneshot::Sender<Result<(), CommitError>>),
    Erase(Vec<CartGuard>, Erased, oneshot::Sender<Result<(), CommitError>>),
}

/// What the region has lent to this node, all of it, in answer to question `turn` that was asked at `asked_ms`.
pub(super) struct Leases {
    pub(super) turn: u64,
    pub(super) asked_ms: u64,
    pub(super) granted: Vec<Granted>,
}

pub(super) struct Committer {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) db: Arc<RwLock<Option<Database>>>,
    pub(super) queue: Receiver<Work>,
    pub(super) facts: Facts,
    pub(super) published: watch::Sender<Facts>,
    pub(super) newest: watch::Sender<u64>,
    pub(super) gate: watch::Sender<Gate>,
    pub(super) carts: CartCache,
    pub(super) stats: Arc<CommitStats>,
    /// Up to where, and what that folds to.
    pub(super) pending_trim: Option<(u64, Option<Fold>)>,
    pub(super) looked: Option<Instant>,
    pub(super) sweep: Sweep,
    pub(super) steady: Arc<Steady>,
    /// Of what the region has acknowledged, so many bytes are kept, and so long.
    pub(super) kept: (u64, Duration),
    /// When old operations were looked for last.
    pub(super) aged: Instant,
    /// After a try that failed.
    pub(super) renew_not_before: Option<Instant>,
    /// Had the file's name before, until it is certain that the new one keeps it. At most one: while there is one, nothing is written.
    pub(super) unwiped: Option<File>,
    /// What is open is a view of the file that nothing can be written to.
    pub(super) view_only: bool,
    /// When the turn that is being made began.
    pub(super) now: Instant,
}

/// A committer without its thread: whoever holds it says when its next turn is, and when that is. For a simulation, which has
/// one thread and a time of its own; see [`super::State::open_by_hand`].
pub struct Hand {
    pub(super) committer: Committer,
    pub(super) wanted: Arc<Notify>,
}

impl std::fmt::Debug for Hand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hand").field("facts", &self.committer.facts).finish_non_exhaustive()
    }
}

impl Hand {
    /// Told when there is something to do. A turn is due a quarter of a second later at the latest.
    pub fn wanted(&self) -> Arc<Notify> {
        self.wanted.clone()
    }

    /// Does what is waiting, as the thread does it when it wakes.
    pub fn turn(&mut self, now: Instant, wall_ms: u64) {
        let first = self.committer.queue.try_recv().ok();
        self.committer.turn(first, now, wall_ms);
    }
}

impl Committer {
    /// Runs until every sender is gone and what they sent is on the disk.
    pub(super) fn run(mut self) {
        loop {
            let first = match self.wait() {
                Ok(work) => Some(work),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            self.turn(first, Instant::now(), sweep::wall_ms());
        }
        // What has been acknowledged and not yet forgotten.
        self.commit(&mut Vec::new());
        if let Some(db) = self.db.write().take()
            && let Err(error) = db.close()
        {
            tracing::warn!(%error, "state.redb was not closed cleanly; it will be checked at the next start");
        }
    }

    /// Takes what is waiting behind `first`, and makes it last.
    fn turn(&mut self, first: Option<Work>, now: Instant, wall_ms: u64) {
        self.now = now;
        let mut changes = Vec::new();
        let (mut begin, mut back, mut leases, mut erase) = (None, None, None, None);
        let mut next = first;
        while let Some(work) = next {
            match work {
                Work::Change(change) => changes.push(*change),
                // An acknowledgement of an epoch that is over speaks of other numbers.
                Work::Trim { epoch, to, fold } if Some(epoch) == self.facts.epoch => {
                    if self.pending_trim.is_none_or(|(before, _)| before < to) {
                        self.pending_trim = Some((to, fold));
                    }
                }
                Work::Trim { .. } => {}
                Work::GoBack { epoch, to, fold, done } => {
                    back = Some((epoch, to, fold, done));
                    break;
                }
                Work::BeginEpoch { epoch, done } => {
                    begin = Some((epoch, done));
                    break;
                }
                Work::Leases(told, done) => {
                    leases = Some((told, done));
                    break;
                }
                Work::Erase(carts, told, done) => {
                    erase = Some((carts, told, done));
                    break;
                }
            }
            next = if changes.len() < BATCH_MAX { self.queue.try_recv().ok() } else { None };
        }
        self.knock();
        self.commit(&mut changes);
        if let Some((epoch, done)) = begin {
            // Whoever asked may have gone; the epoch is begun all the same.
            let _ = done.send(self.begin_epoch(epoch));
        }
        if let Some((epoch, to, fold, done)) = back {
            let _ = done.send(self.go_back(epoch, to, fold));
        }
        if let Some((told, done)) = leases {
            let _ = done.send(self.set_leases(&told));
        }
        if let Some((carts, told, done)) = erase {
            let _ = done.send(self.erase(&carts, &told));
        } else if self.facts.renew_after.is_some_and(|seq| self.facts.acked >= seq) {
            self.renew_late();
        }
        self.sweep(wall_ms);
        self.forget_old();
    }

    fn wait(&self) -> Result<Work, RecvTimeoutError> {
        let open = *self.gate.borrow() == Gate::Open;
        match (open, self.pending_trim) {
            (true, None) => self.queue.recv_timeout(sweep::STEP_EVERY),
            (true, Some(_)) => self.queue.recv_timeout(TRIM_ALONE_AFTER),
            (false, _) => self.queue.recv_timeout(PROBE_EVERY),
        }
    }

    /// Closes the gate before the disk is full, and opens it when there is room again.
    fn knock(&mut self) {
        if *self.gate.borrow() == Gate::Open {
            if self.looked.is_none_or(|at| self.now.saturating_duration_since(at) >= LOOK_EVERY) {
                self.looked = Some(self.now);
                if !self.disk.has_room() {
                    tracing::error!("the disk is nearly full: writes are refused, reads go on");
                    self.gate.send_replace(Gate::Full);
                }
            }
            return;
        }
        if self.looked.is_some_and(|at| self.now.saturating_duration_since(at) < PROBE_EVERY) {
            return;
        }
        self.looked = Some(self.now);
        let open = !self.view_only && self.db.read().is_some();
        if self.disk.probe().is_err() || self.settle().is_err() {
            return;
        }
        if open || self.reopen().is_ok() {
            tracing::info!("the disk takes writes again");
            self.gate.send_replace(Gate::Open);
        } else {
            // To try, the view was given up.
            self.view();
        }
    }

    fn commit(&mut self, changes: &mut Vec<Change>) {
        let admitted = self.gate.borrow().check();
        if let Err(refused) = admitted {
            for change in changes.drain(..) {
                change.fail(&refused);
            }
            return;
        }
        let epoch = self.facts.epoch;
        let (mut batch, outdated): (Vec<_>, Vec<_>) =
            changes.drain(..).partition(|c| !c.writes() || (c.epoch.is_some() && c.epoch == epoch));
        for change in outdated {
            change.fail(if epoch.is_none() { &CommitError::NotEnrolled } else { &CommitError::EpochChanged });
        }
        if batch.is_empty() && self.pending_trim.is_none() {
            return;
        }
        let started = Instant::now();
        match self.write(&mut batch) {
            Ok(facts) => {
                self.pending_trim = None;
                self.publish(facts);
                self.stats.note(batch.len(), started.elapsed());
                for change in batch {
                    change.succeed(&self.carts);
                }
            }
            Err(error) => {
                for change in &batch {
                    self.carts.invalidate(change.guard.key());
                }
                let outcome = self.learn(error);
                for change in batch {
                    change.fail(&outcome);
                }
            }
        }
    }

    /// Forgets a few of the carts that nobody needs here any more.
    fn sweep(&mut self, wall_ms: u64) {
        let now = self.now;
        if *self.gate.borrow() != Gate::Open || !self.sweep.is_due(now) {
            return;
        }
        let swept = (|| {
            let db = self.db.read();
            let Some(db) = db.as_ref() else { return Err(redb::Error::DatabaseClosed) };
            let step = self.sweep.step(db, &self.facts, now, wall_ms)?;
            if step.expired.is_empty() {
                return Ok((step, None));
            }
            let txn = db.begin_write()?;
            let mut draft = Draft::new(&txn, self.facts)?;
            draft.forget(&step.expired)?;
            let facts = draft.finish()?;
            txn.commit()?;
            Ok((step, Some(facts)))
        })();
        match swept {
            Ok((step, facts)) => {
                // A reader that has just found the row could not have put it into the memory: only this thread does.
                step.expired.iter().for_each(|key| self.carts.invalidate(key));
                self.stats.note_carts(&step);
                if let Some(facts) = facts {
                    self.publish(facts);
                }
            }
            Err(error) => {
                self.learn(error);
            }
        }
    }

    fn write(&self, batch: &mut [Change]) -> Result<Facts, redb::Error> {
        let db = self.db.read();
        let Some(db) = db.as_ref() else { return Err(redb::Error::DatabaseClosed) };
        let mut txn = db.begin_write()?;
        if planted(Bug::ToldEarly) {
            let _ = txn.set_durability(Durability::None);
        }
        let mut draft = Draft::new(&txn, self.facts)?;
        for Change { guard, ops, row, wants, at_ms, stamp, .. } in batch {
            for want in wants.iter() {
                if let Some((op, hold)) = draft.promise(guard.key(), want, *at_ms, &self.steady)? {
                    ops.push(op);
                    row.holds.push(hold);
                }
            }
            draft.write(guard.key(), row, ops)?;
            draft.facts.stamp = draft.facts.stamp.max(*stamp);
        }
        if let Some((to, fold)) = self.pending_trim {
            draft.trim(to, fold, &self.keeping())?;
        }
        let facts = draft.finish()?;
        txn.commit()?;
        Ok(facts)
    }

    fn keeping(&self) -> Keeping {
        let (bytes_max, kept_for) = self.kept;
        if kept_for.is_zero() {
            return Keeping::NOTHING;
        }
        let kept_ms = u64::try_from(kept_for.as_millis()).unwrap_or(u64::MAX);
        Keeping { bytes_max, since_ms: sweep::wall_ms().saturating_sub(kept_ms) }
    }

    /// Forgets some of the acknowledged operations that have been kept long enough.
    fn forget_old(&mut self) {
        if self.facts.kept_bytes == 0
            || self.now.saturating_duration_since(self.aged) < FORGET_EVERY
            || *self.gate.borrow() != Gate::Open
        {
            return;
        }
        self.aged = self.now;
        let keeping = self.keeping();
        let forgotten = (|| {
            let db = self.db.read();
            let Some(db) = db.as_ref() else { return Err(redb::Error::DatabaseClosed) };
            let txn = db.begin_write()?;
            let mut draft = Draft::new(&txn, self.facts)?;
            if draft.forget_kept(&keeping)? == 0 {
                return Ok(None);
            }
            let facts = draft.finish()?;
            txn.commit()?;
            Ok(Some(facts))
        })();
        match forgotten {
            Ok(Some(facts)) => self.publish(facts),
            Ok(None) => {}
            Err(error) => {
                self.learn(error);
            }
        }
    }

    fn go_back(&mut self, epoch: Epoch, to: u64, fold: Option<Fold>) -> Result<(), CommitError> {
        self.gate.borrow().check()?;
        if self.facts.epoch != Some(epoch) {
            return Ok(());
        }
        let written = (|| {
            let db = self.db.read();
            let Some(db) = db.as_ref() else { return Err(redb::Error::DatabaseClosed) };
            let txn = db.begin_write()?;
            let mut draft = Draft::new(&txn, self.facts)?;
            draft.go_back(to, fold)?;
            let facts = draft.finish()?;
            txn.commit()?;
            Ok(facts)
        })();
        match written {
            Ok(facts) => {
                tracing::warn!(
                    epoch = epoch.0,
                    acked = to,
                    again = facts.unacked(),
                    "the region was restored from a backup: it is sent again what it has forgotten"
                );
                self.publish(facts);
                Ok(())
            }
            Err(error) => Err(self.learn(error)),
        }
    }

    fn begin_epoch(&mut self, epoch: Epoch) -> Result<(), CommitError> {
        self.gate.borrow().check()?;
        match self.facts.epoch {
            Some(current) if current == epoch => return Ok(()),
            Some(current) if current > epoch => {
                return Err(CommitError::DiskFailed(format!(
                    "epoch {} is older than {}",
                    epoch.0, current.0
                )));
            }
            _ => {}
        }
        let written = (|| {
            let db = self.db.read();
            let Some(db) = db.as_ref() else { return Err(redb::Error::DatabaseClosed) };
            let txn = db.begin_write()?;
            let mut draft = Draft::new(&txn, self.facts)?;
            draft.renumber(epoch)?;
            let facts = draft.finish()?;
            txn.commit()?;
            Ok(facts)
        })();
        match written {
            Ok(facts) => {
                let kept = facts.last();
                tracing::info!(epoch = epoch.0, kept, "a new epoch begins");
                self.pending_trim = None;
                // Their rows have other positions now.
                self.carts.invalidate_all();
                self.publish(facts);
                Ok(())
            }
            Err(error) => Err(self.learn(error)),
        }
    }

    fn set_leases(&mut self, told: &Leases) -> Result<(), CommitError> {
        self.gate.borrow().check()?;
        let written = (|| {
            let db = self.db.read();
            let Some(db) = db.as_ref() else { return Err(redb::Error::DatabaseClosed) };
            let txn = db.begin_write()?;
            let mut draft = Draft::new(&txn, self.facts)?;
            draft.set_leases(told.turn, told.asked_ms, &told.granted, &self.steady)?;
            let facts = draft.finish()?;
            txn.commit()?;
            Ok(facts)
        })();
        match written {
            Ok(facts) => {
                self.publish(facts);
                Ok(())
            }
            Err(error) => Err(self.learn(error)),
        }
    }

    pub(super) fn publish(&mut self, facts: Facts) {
        self.facts = facts;
        self.published.send_replace(facts);
        // A trim is no news to the link.
        self.newest.send_if_modified(|newest| std::mem::replace(newest, facts.last()) != facts.last());
    }

    /// After a failed commit: closes the gate, reopens the file and finds out what is in it.
    pub(super) fn learn(&mut self, error: redb::Error) -> CommitError {
        let full = is_full(&error);
        tracing::error!(%error, full, "cannot write state.redb: writes are refused, reads go on");
        self.stats.failures.fetch_add(1, Ordering::Relaxed);
        self.gate.send_replace(if full { Gate::Full } else { Gate::Failed(error.to_string()) });
        self.looked = Some(self.now);
        let tried = self.facts.commits + 1;
        let seen = match self.reopen() {
            Ok(()) => true,
            Err(_) => self.view(),
        };
        match () {
            // It is in the file as the kernel shows it, but the sync that would make it last has failed.
            () if !seen || self.facts.commits == tried => CommitError::OutcomeUnknown,
            () if full => CommitError::DiskFull,
            () => CommitError::DiskFailed(error.to_string()),
        }
    }

    fn reopen(&mut self) -> Result<(), redb::Error> {
        // redb will not use a handle that has met an error again, and the file's lock goes with the handle. To close
        // it and to repair the file take as long as the disk likes: not under the lock, for which the threads of the
        // reactor would wait. Reads are refused by name meanwhile.
        let broken = self.db.write().take();
        drop(broken);
        let opened = self.disk.open().map_err(redb::Error::from).and_then(|db| {
            let facts = outbox::load(&db)?;
            Ok((db, facts))
        });
        match opened {
            Ok((db, facts)) => {
                *self.db.write() = Some(db);
                self.view_only = false;
                self.publish(facts);
                Ok(())
            }
            Err(error) => {
                tracing::error!(%error, "cannot reopen state.redb for writing; trying again");
                Err(error)
            }
        }
    }

    /// To open a file after an error, redb must write to it, and this disk takes nothing. So that reads go on, its
    /// repair is done in memory, over a view of the file.
    fn view(&mut self) -> bool {
        let opened = self.disk.view().map_err(redb::Error::from).and_then(|db| {
            let facts = outbox::load(&db)?;
            Ok((db, facts))
        });
        match opened {
            Ok((db, facts)) => {
                *self.db.write() = Some(db);
                self.view_only = true;
                self.publish(facts);
                true
            }
            Err(error) => {
                tracing::error!(%error, "state.redb cannot even be read; only carts in memory can be shown");
                false
            }
        }
    }
}

impl Change {
    /// Whether it appends to the outbox, and so belongs to an epoch.
    fn writes(&self) -> bool {
        !self.ops.is_empty() || !self.wants.is_empty()
    }

    fn fail(self, why: &CommitError) {
        // The guard goes with the change: the next one reads what is stored.
        let _ = self.done.send(Err(why.clone()));
    }

    fn succeed(self, carts: &CartCache) {
        let Self { guard, mut held, row, done, .. } = self;
        (held.last, held.holds) = (row.last, row.holds);
        let held = Arc::new(held);
        carts.insert(guard.key().clone(), held.clone());
        // A shopper who has gone does not need to hear of it; the guard is released with the message.
        let _ = done.send(Ok((guard, held)));
    }
}

fn is_full(error: &redb::Error) -> bool {
    let redb::Error::Io(io) = error else { return false };
    matches!(
        io.kind(),
        std::io::ErrorKind::StorageFull
            | std::io::ErrorKind::QuotaExceeded
            | std::io::ErrorKind::FileTooLarge
    )
}
