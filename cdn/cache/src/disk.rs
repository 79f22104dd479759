//! The disk tier: what was stored, kept in a folder beside the memory, for after a restart and for what the memory has no
//! room for. `docs/decisions/2026-11-30-the-disk-tier.md` says why it is our own.
//!
//! ```text
//!   offer ─┐                                       ┌─ look-up that the memory cannot answer
//!          ├─▶ queue ─▶ writer ─▶ segment files ─▶ readers ─▶ memory
//!   remove ┘                         (log)
//! ```
//!
//! A log of segments: written behind each other, deleted from the oldest, never changed in between. What is where is
//! known in memory ([`index`]); a start reads the list at the end of each segment. A removal is a record as well, and so
//! is a purge: it is on the disk before it is acknowledged ([`Disk::persisted`]). Whatever is written or read is judged by
//! what was purged up to then, so a record needs to know of the purges behind it only, which leave the log after it.
//!
//! Files are touched by threads of its own only ([`writer`], [`reader`]), behind bounded queues: no request waits for
//! a write, and one waits for a read only if the memory has nothing and the index something, and never longer than
//! [`patience`] has it. What there is no room for in a queue is dropped and counted. An error of the disk ends the tier
//! and no request; a disk that hangs is set aside, and tried again.
//!
//! It knows no clock (freshness is by the wall clock, and in the record) and no log: it tells an operator's ear.

mod gate;
mod index;
mod log;
mod offers;
mod patience;
mod reader;
mod record;
mod segment;
mod state;
#[cfg(test)]
mod tests;
mod writer;

use std::fs::{DirBuilder, OpenOptions};
use std::hash::RandomState;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};
use thiserror::Error;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use self::gate::Gate;
use self::patience::Patience;
use self::record::HEADER_BYTES;
use self::state::{Counters, Job, Promise, Shared, State, Task};
use crate::entry::{Entry, Resource, StoredBody};
use crate::key::Key;
use crate::purge::{LIFE, Purges, Step};
use crate::shelf::Shelf;
use crate::tags::Tag;

/// Fresh for less than this is not worth a write: it would hardly outlive a restart.
const FRESH_S_MIN: u32 = 60;
/// No object takes more than this part of the disk.
const OBJECT_SHARE: u64 = 4;
/// Threads that read. An NVMe drive wants several questions at once, a plain one does not mind.
const READERS: usize = 4;
/// Keys that wait to be read. At 10,000 reads a second that is 25 ms; whoever finds it full asks the upstream.
const READS_MAX: usize = 256;
/// Requests that wait for a read, over all keys.
const WAITING_MAX: usize = 16_384;

/// What a disk tier may use.
#[derive(Clone, Copy, Debug)]
pub struct DiskLimits {
    /// Bytes of all files together.
    pub bytes_max: u64,
    /// The largest body that is written; never more than a quarter of `bytes_max`.
    pub object_bytes_max: u64,
    /// Whether several sites have it together. Then none fills the queue, and what others write does not push out what a
    /// site has that has little.
    pub shared: bool,
}

impl DiskLimits {
    /// The largest body that is written or read.
    fn largest_object(&self) -> u64 {
        self.object_bytes_max.min(self.bytes_max / OBJECT_SHARE)
    }
}

/// How a disk tier is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// What the folder holds is being read.
    #[default]
    Opening,
    /// Another process has the folder.
    Busy,
    On,
    /// The disk failed.
    Off,
}

/// Why there is no disk tier.
#[derive(Debug, Error)]
pub enum DiskError {
    #[error("cannot keep stored responses in {}: {source}", dir.display())]
    Folder { dir: PathBuf, source: io::Error },
}

/// What an operator should hear of.
#[derive(Debug, Error)]
pub enum Notice {
    #[error("{objects} stored responses of an earlier process are at hand, {bytes} bytes")]
    Opened { objects: u64, bytes: u64 },
    #[error("another process uses the folder of stored responses; going on from memory until it ends")]
    Busy,
    #[error("segment {segment:016x} cannot be read: it and all that is older are dropped")]
    Damaged { segment: u64 },
    #[error("the file system is full: stored responses are deleted to go on")]
    Full,
    #[error(
        "the disk of stored responses failed ({doing}): {source}; going on from memory alone until a restart"
    )]
    Failed { doing: &'static str, source: io::Error },
    #[error(
        "the folder of stored responses could not be emptied: it is tried again; delete its files before a next start, or what was removed comes back"
    )]
    Left,
    #[error(
        "the disk of stored responses does not answer: a read was waited for {waited_ms} ms in vain. Going on without it, and trying it again now and then"
    )]
    Hangs { waited_ms: u64 },
    #[error("the disk of stored responses answers again")]
    Answers,
    #[error(
        "a removal was waited for {waited_ms} ms and is not on the disk of stored responses yet: a restart before it is brings back what was removed"
    )]
    Unwritten { waited_ms: u64 },
    #[error("{threads} threads of the disk of stored responses do not end: what they hold is not waited for")]
    Stuck { threads: usize },
}

/// Where notices go.
pub type Tell = Box<dyn Fn(Notice) + Send + Sync>;

/// What a disk tier holds, and what it did since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub phase: Phase,
    pub bytes: u64,
    pub objects: u64,
    pub segments: u64,
    /// Bodies that wait to be written.
    pub queued_bytes: u64,
    /// Records that wait to be written, removals too, and the one that is being written.
    pub queued: u64,
    /// Keys that were read into memory.
    pub hits: u64,
    /// Keys that the index knew and the disk did not have.
    pub misses: u64,
    /// Responses that were found to be purged when they were read.
    pub purged: u64,
    pub written: u64,
    pub written_bytes: u64,
    /// Responses that were not written, for too much waited already.
    pub dropped: u64,
    /// Reads that were not tried, for too many waited already.
    pub reads_dropped: u64,
    /// Waits for a read that were given up: the upstream was asked instead.
    pub late: u64,
    /// Whether the tier is set aside now, and how often it was.
    pub is_aside: bool,
    pub set_aside: u64,
    /// Waits for a removal that were given up: it was answered without the promise that a restart knows of it.
    pub unpersisted: u64,
    /// Times that everything was given up at once.
    pub wipes: u64,
    /// Records whose checksums did not fit.
    pub corrupt: u64,
    pub errors: u64,
}

/// A folder of stored responses. Dropping it writes what waits, and ends its threads.
pub struct Disk {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What a thread of the tier does.
type Work = Box<dyn FnOnce(&Arc<Shared>) + Send>;

/// A read that is under way.
pub(crate) struct Reading {
    shared: Arc<Shared>,
    print: u64,
    /// Since when it is waited for, and how many others had come back by then.
    began_ms: u64,
    in_time: u64,
    done: oneshot::Receiver<()>,
}

impl Reading {
    /// Resolves when what there was to read is in memory, and in any case when nobody should wait any longer.
    ///
    /// Cancel safe: whoever stops waiting says nothing of the disk.
    pub(crate) async fn done(self) {
        let Self { shared, print, began_ms, in_time, done } = self;
        // Answered by nothing: whoever has read lets go of the other end.
        if timeout(shared.patience.read, done).await.is_err() {
            shared.late(print, began_ms, in_time);
        }
    }
}

/// A look that is under way.
pub(crate) struct Look {
    shared: Arc<Shared>,
    seen: oneshot::Receiver<Option<Resource>>,
}

/// The disk does not say what it has: it hangs, or has too much to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Silent;

impl Look {
    /// What is there, if it is told within the time that a request would wait for it.
    pub(crate) async fn seen(self) -> Result<Option<Resource>, Silent> {
        match timeout(self.shared.patience.read, self.seen).await {
            Ok(Ok(resource)) => Ok(resource),
            Ok(Err(_)) | Err(_) => Err(Silent),
        }
    }
}

/// How purges are counted. The log counts on from life to life. A process has no log before it has read it, and begins at
/// [`LIFE`], so that all that earlier ones have written was begun before whatever this one purges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Numbers {
    /// The greatest number in the log of earlier lives.
    former: u64,
}

impl Numbers {
    fn to_log(self, number: u64) -> u64 {
        number.checked_sub(LIFE).map_or(number, |own| self.former + own)
    }

    fn of_log(self, number: u64) -> u64 {
        match number.checked_sub(self.former) {
            Some(own @ 1..) => LIFE + own,
            _ => number,
        }
    }
}

impl Disk {
    /// Opens a folder and starts to read it. What is read goes to `shelf`, whose [`Shelf::update`] is also what orders
    /// removals and reads of one key: [`offer`](Self::offer) and [`remove`](Self::remove) are to be called within it.
    ///
    /// `purges` tells what does not hold any more, and takes up what earlier lives have purged; it counts from
    /// [`LIFE`] on.
    pub(crate) fn open(
        dir: &Path,
        limits: DiskLimits,
        shelf: Arc<dyn Shelf>,
        purges: Arc<Purges>,
        tell: Tell,
    ) -> Result<Self, DiskError> {
        Self::open_with(dir, limits, Patience::default(), shelf, purges, tell)
    }

    fn open_with(
        dir: &Path,
        limits: DiskLimits,
        patience: Patience,
        shelf: Arc<dyn Shelf>,
        purges: Arc<Purges>,
        tell: Tell,
    ) -> Result<Self, DiskError> {
        let refused = |source| DiskError::Folder { dir: dir.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(refused)?;
        let mut options = OpenOptions::new();
        let lock = options.write(true).create(true).truncate(false).mode(0o600).open(dir.join("lock"));
        let lock = lock.map_err(refused)?;
        let shared = Arc::new(Shared {
            dir: dir.to_owned(),
            limits,
            patience,
            shelf,
            purges,
            tell,
            gate: Gate::default(),
            hasher: RandomState::new(),
            state: Mutex::new(State::default()),
            to_write: Condvar::new(),
            to_read: Condvar::new(),
            phase: watch::Sender::new(Phase::Opening),
            promise: watch::Sender::new(Promise::default()),
            running: Mutex::new(0),
            ended: Condvar::new(),
            counters: Counters::default(),
        });
        let disk = Self { shared: Arc::clone(&shared), threads: Mutex::default() };
        let start = |name: String, work: Work| {
            let running = Running::one_more(&shared);
            let thread = std::thread::Builder::new().name(name);
            thread.spawn(move || work(&running.0)).map_err(refused)
        };
        let mut threads = disk.threads.lock();
        threads.push(start("disk-write".to_owned(), Box::new(move |own| writer::run(own, &lock)))?);
        for number in 0..READERS {
            threads.push(start(format!("disk-read-{number}"), Box::new(|own| reader::run(own)))?);
        }
        drop(threads);
        Ok(disk)
    }

    /// Resolves when what the folder holds is known, or cannot be for now: another process has it, or it takes too long.
    pub async fn ready(&self) {
        let mut phase = self.shared.phase.subscribe();
        // The sender is as old as this.
        let known = phase.wait_for(|phase| *phase != Phase::Opening);
        let _ = timeout(self.shared.patience.open, known).await;
    }

    /// Resolves when every removal up to now outlives a restart, a kill and a power cut. False where that cannot be
    /// promised: while another process has the folder none can be written (they are, when that process ends); a disk that
    /// hangs is waited for once and not again before it has moved on; and one that failed may have kept what was removed.
    pub async fn persisted(&self) -> bool {
        let shared = &self.shared;
        let (asked, phase, stuck_at) = {
            let state = shared.state.lock();
            (state.removals, state.phase, state.stuck_at)
        };
        let mut promise = shared.promise.subscribe();
        let now = *promise.borrow();
        if now.keeps(asked) {
            return true;
        }
        let hangs = stuck_at == Some(now.kept);
        if phase == Phase::Busy || now.is_broken || hangs {
            Counters::add(&shared.counters.unpersisted, 1);
            return false;
        }
        let settled = promise.wait_for(|promise| promise.keeps(asked) || promise.is_broken);
        let kept = match timeout(shared.patience.persist, settled).await {
            // The sender is as old as this.
            Ok(promise) => promise.is_ok_and(|promise| promise.keeps(asked)),
            Err(_) => {
                self.note_stuck();
                false
            }
        };
        if !kept {
            Counters::add(&shared.counters.unpersisted, 1);
        }
        kept
    }

    /// Somebody has waited for a removal as long as anybody may.
    fn note_stuck(&self) {
        let shared = &self.shared;
        let at = Some(shared.promise.borrow().kept);
        let is_new = std::mem::replace(&mut shared.state.lock().stuck_at, at) != at;
        if is_new {
            let waited_ms = u64::try_from(shared.patience.persist.as_millis()).unwrap_or(u64::MAX);
            (shared.tell)(Notice::Unwritten { waited_ms });
        }
    }

    /// Writes what waits, and ends. Blocks meanwhile, but not for a disk that hangs; what comes later is not stored.
    pub fn close(&self) {
        self.shared.close();
        let threads = std::mem::take(&mut *self.threads.lock());
        let left = {
            let mut running = self.shared.running.lock();
            while *running > 0
                && !self.shared.ended.wait_for(&mut running, self.shared.patience.close).timed_out()
            {
            }
            *running
        };
        if left > 0 && !threads.is_empty() {
            (self.shared.tell)(Notice::Stuck { threads: left });
            // They end when the disk lets go of them.
            return;
        }
        for thread in threads {
            // One that panicked has said so already.
            let _ = thread.join();
        }
    }

    pub fn counts(&self) -> Counts {
        let counters = &self.shared.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let state = self.shared.state.lock();
        Counts {
            phase: state.phase,
            bytes: read(&counters.bytes),
            objects: state.index.objects(),
            segments: read(&counters.segments),
            queued_bytes: state.queued_bytes,
            queued: state.waiting_to_be_written() as u64,
            hits: read(&counters.hits),
            misses: read(&counters.misses),
            purged: read(&counters.purged),
            written: read(&counters.written),
            written_bytes: read(&counters.written_bytes),
            dropped: read(&counters.dropped),
            reads_dropped: read(&counters.reads_dropped),
            late: read(&counters.late),
            is_aside: state.watch.is_aside(),
            set_aside: read(&counters.set_aside),
            unpersisted: read(&counters.unpersisted),
            wipes: read(&counters.wipes),
            corrupt: read(&counters.corrupt),
            errors: read(&counters.errors),
        }
    }

    /// An entry that was stored in memory just now. It is written when its turn comes; what the disk has of the same
    /// variant is not used any more.
    ///
    /// Written when it is stored and not when the memory lets go of it, for what the memory has is what a restart would
    /// lose, the most popular first. One that nobody asks for again costs its bytes once, in one go, and leaves with its
    /// segment; what was read from the disk by then is written once more.
    pub(crate) fn offer(&self, key: &Key, entry: &Arc<Entry>) {
        let StoredBody::Whole(chunks) = &entry.body else { return };
        if entry.span.is_some() {
            // A part: the rest of it will make a whole.
            return;
        }
        let shared = &self.shared;
        let (print, variant) = (shared.print(key), record::variant_of(entry));
        let (share, limits) = (Tag::share_of(key.site()), &shared.limits);
        let fits = chunks.total() <= limits.largest_object();
        let is_worth_it = entry.freshness.fresh_for_s() >= FRESH_S_MIN && fits;
        let bytes = chunks.total() + HEADER_BYTES as u64;
        let mut state = shared.state.lock();
        if state.phase == Phase::Off || state.is_closed {
            return;
        }
        // What the folder holds, nobody knows before it was read.
        let may_be_older = state.phase != Phase::On;
        let superseded = state.index.remove_where(print, |held| held.variant == variant);
        if is_worth_it && state.offers.has_room_for(share, bytes, limits) {
            let (key, entry) = (key.clone(), Arc::clone(entry));
            state.push(Task::Store { print, key, entry, variant, bytes });
        } else {
            if is_worth_it {
                Counters::add(&shared.counters.dropped, 1);
            }
            if superseded || may_be_older || state.is_queued(print) {
                // A restart must not bring the older one back as the newest.
                state.supersede(print, key);
            }
        }
        drop(state);
        shared.to_write.notify_one();
    }

    /// What is stored for a key does not hold any more, in whatever variant.
    pub(crate) fn remove(&self, key: &Key) {
        let print = self.shared.print(key);
        self.shared.state.lock().remove(print, key);
        self.shared.to_write.notify_one();
    }

    /// Nothing that was stored up to now holds any more. What is coarse is always right: for whoever cannot name the keys.
    pub fn remove_all(&self) {
        self.shared.state.lock().remove_all();
        self.shared.to_write.notify_one();
    }

    /// This was purged: what bears it is not read any more, and a restart will know of it.
    pub(crate) fn purge(&self, step: Step) {
        if step.takes_everything() {
            return self.remove_all();
        }
        self.shared.state.lock().purge(step);
        self.shared.to_write.notify_one();
    }

    /// An entry was found to be purged. The disk finds so too; that saves it the reading.
    pub(crate) fn forget(&self, key: &Key, entry: &Entry) {
        let (print, variant) = (self.shared.print(key), record::variant_of(entry));
        self.shared.state.lock().index.remove_where(print, |held| held.variant == variant);
    }

    /// Starts to read a key into memory. None where the disk has nothing for it, or is not asked now.
    pub(crate) fn read(&self, key: &Key, now_ms: u64) -> Option<Reading> {
        let shared = &self.shared;
        let print = shared.print(key);
        let mut state = shared.state.lock();
        if state.phase != Phase::On || state.is_closed || state.index.get(print).is_empty() {
            return None;
        }
        let is_first = !state.reads.contains_key(&print);
        if state.waiting >= WAITING_MAX || (is_first && state.jobs.len() >= READS_MAX) {
            Counters::add(&shared.counters.reads_dropped, 1);
            return None;
        }
        if !state.may_wait(print, now_ms) {
            return None;
        }
        let in_time = state.watch.in_time();
        let (done, is_first) = state.wait_for(print);
        if is_first {
            state.jobs.push_back(Job { print, key: key.clone(), now_ms, look: None });
            drop(state);
            shared.to_read.notify_one();
        }
        Some(Reading { shared: Arc::clone(shared), print, began_ms: now_ms, in_time, done })
    }

    /// Starts to look at what the disk has for a key, which stays where it is. None where it has nothing.
    pub(crate) fn look(&self, key: &Key, now_ms: u64) -> Option<Look> {
        let shared = &self.shared;
        let print = shared.print(key);
        let mut state = shared.state.lock();
        if state.phase != Phase::On || state.is_closed || state.index.get(print).is_empty() {
            return None;
        }
        let (answer, seen) = oneshot::channel();
        // A request would not wait for it either.
        if state.jobs.len() < READS_MAX && !state.watch.is_aside() {
            state.jobs.push_back(Job { print, key: key.clone(), now_ms, look: Some(answer) });
            drop(state);
            shared.to_read.notify_one();
        }
        Some(Look { shared: Arc::clone(shared), seen })
    }
}

/// One of its threads, from before it starts until it has ended.
struct Running(Arc<Shared>);

impl Running {
    fn one_more(shared: &Arc<Shared>) -> Self {
        *shared.running.lock() += 1;
        Self(Arc::clone(shared))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        *self.0.running.lock() -= 1;
        self.0.ended.notify_all();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.close();
    }
}
