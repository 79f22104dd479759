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
//! known in memory ([`index`]); a start reads the list at the end of each segment. A removal is a record as well, and on
//! the disk before it is acknowledged ([`Disk::persisted`]).
//!
//! Files are touched by threads of its own only ([`writer`], [`reader`]), behind bounded queues: no request waits for
//! a write, and one waits for a read only if the memory has nothing and the index something. What there is no room for
//! in a queue is dropped and counted. An error of the disk ends the tier and no request.
//!
//! It knows no clock (freshness is by the wall clock, and in the record) and no log: it tells an operator's ear.

mod index;
mod log;
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

use self::record::HEADER_BYTES;
use self::state::{Counters, Job, Shared, State, Task};
use crate::entry::{Entry, StoredBody};
use crate::key::Key;
use crate::shelf::Shelf;

/// Fresh for less than this is not worth a write: it would hardly outlive a restart.
const FRESH_S_MIN: u32 = 60;
/// No object takes more than this part of the disk.
const OBJECT_SHARE: u64 = 4;
/// Bodies that wait to be written: what a slow disk writes in a tenth of a second, or two of the largest objects.
const QUEUE_BYTES_MIN: u64 = 16 * 1024 * 1024;
const QUEUE_OBJECTS: u64 = 2;
/// Records that wait to be written.
const QUEUE_MAX: usize = 4_096;
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
        "the folder of stored responses could not be emptied: delete its files before the next start, or what was removed comes back"
    )]
    Left,
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
    pub written: u64,
    pub written_bytes: u64,
    /// Responses that were not written, for too much waited already.
    pub dropped: u64,
    /// Reads that were not tried, for too many waited already.
    pub reads_dropped: u64,
    /// Records whose checksums did not fit.
    pub corrupt: u64,
    pub errors: u64,
}

/// A folder of stored responses. Dropping it writes what waits, and ends its threads.
pub struct Disk {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// A read that is under way.
pub(crate) struct Reading(oneshot::Receiver<()>);

impl Reading {
    /// Resolves when what there was to read is in memory.
    pub(crate) async fn done(self) {
        // Answered by nothing: whoever has read lets go of the other end.
        let _ = self.0.await;
    }
}

impl Disk {
    /// Opens a folder and starts to read it. What is read goes to `shelf`, whose [`Shelf::update`] is also what orders
    /// removals and reads of one key: [`offer`](Self::offer) and [`remove`](Self::remove) are to be called within it.
    pub(crate) fn open(
        dir: &Path,
        limits: DiskLimits,
        shelf: Arc<dyn Shelf>,
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
            shelf,
            tell,
            hasher: RandomState::new(),
            state: Mutex::new(State::default()),
            to_write: Condvar::new(),
            to_read: Condvar::new(),
            phase: watch::Sender::new(Phase::Opening),
            durable: watch::Sender::new(0),
            counters: Counters::default(),
        });
        let disk = Self { shared: Arc::clone(&shared), threads: Mutex::default() };
        let start = |name: String, work: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name).spawn(work).map_err(refused)
        };
        let mut threads = disk.threads.lock();
        let own = Arc::clone(&shared);
        threads.push(start("disk-write".to_owned(), Box::new(move || writer::run(&own, &lock)))?);
        for number in 0..READERS {
            let own = Arc::clone(&shared);
            threads.push(start(format!("disk-read-{number}"), Box::new(move || reader::run(&own)))?);
        }
        drop(threads);
        Ok(disk)
    }

    /// Resolves when what the folder holds is known, or cannot be for now.
    pub async fn ready(&self) {
        let mut phase = self.shared.phase.subscribe();
        // The sender is as old as this.
        let _ = phase.wait_for(|phase| *phase != Phase::Opening).await;
    }

    /// Resolves when every removal up to now outlives a restart, a kill and a power cut. While another process has the
    /// folder none can be written: then it is false, at once, and they are written when that process ends.
    pub async fn persisted(&self) -> bool {
        let (asked, phase) = {
            let state = self.shared.state.lock();
            (state.removals, state.phase)
        };
        let mut durable = self.shared.durable.subscribe();
        if phase == Phase::Busy && *durable.borrow() < asked {
            return false;
        }
        // The sender is as old as this.
        durable.wait_for(|durable| *durable >= asked).await.is_ok()
    }

    /// Writes what waits, and ends. Blocks meanwhile; what comes later is not stored.
    pub fn close(&self) {
        self.shared.close();
        for thread in std::mem::take(&mut *self.threads.lock()) {
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
            written: read(&counters.written),
            written_bytes: read(&counters.written_bytes),
            dropped: read(&counters.dropped),
            reads_dropped: read(&counters.reads_dropped),
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
        let object_bytes_max = shared.limits.object_bytes_max.min(shared.limits.bytes_max / OBJECT_SHARE);
        let is_worth_it = entry.freshness.fresh_for_s() >= FRESH_S_MIN && chunks.total() <= object_bytes_max;
        let bytes = chunks.total() + HEADER_BYTES as u64;
        let queue_bytes_max = (object_bytes_max * QUEUE_OBJECTS).max(QUEUE_BYTES_MIN);
        let mut state = shared.state.lock();
        if state.phase == Phase::Off || state.is_closed {
            return;
        }
        // What the folder holds, nobody knows before it was read.
        let may_be_older = state.phase != Phase::On;
        let superseded = state.index.remove_where(print, |held| held.variant == variant);
        let has_room = state.queued_bytes + bytes <= queue_bytes_max && state.queue_len() < QUEUE_MAX;
        if is_worth_it && has_room {
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

    /// Starts to read a key into memory. None where the disk has nothing for it. `purges`: how many there were so far.
    pub(crate) fn read(&self, key: &Key, now_ms: u64, purges: u64) -> Option<Reading> {
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
        let (waiter, reading) = oneshot::channel();
        state.reads.entry(print).or_default().push(waiter);
        state.waiting += 1;
        if is_first {
            state.jobs.push_back(Job { print, key: key.clone(), now_ms, purges });
            drop(state);
            shared.to_read.notify_one();
        }
        Some(Reading(reading))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.close();
    }
}
