//! What the threads of the disk tier and the requests share, under one lock that nobody holds while a disk works.
//!
//! Owns the order of things: a removal takes everything of its key out of the queue, and goes to its head; what is stored
//! joins the end. So in the log a removal stands behind everything that it removes and before what came later, a restart
//! finds what was true, and who waits for a removal waits for no responses.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};
use tokio::sync::{oneshot, watch};

use super::index::Index;
use super::segment::{Place, Raw};
use super::{DiskLimits, Notice, Phase, Tell};
use crate::entry::Entry;
use crate::key::Key;
use crate::shelf::Shelf;

/// Removals that wait to be written. More at once are cheaper and as right as the removal of everything.
const REMOVALS_MAX: usize = 65_536;

pub(super) struct Shared {
    pub(super) dir: PathBuf,
    pub(super) limits: DiskLimits,
    pub(super) shelf: Arc<dyn Shelf>,
    pub(super) tell: Tell,
    pub(super) hasher: RandomState,
    pub(super) state: Mutex<State>,
    /// There is something to write, or to end.
    pub(super) to_write: Condvar,
    /// There is something to read, or to end.
    pub(super) to_read: Condvar,
    pub(super) phase: watch::Sender<Phase>,
    /// Removals that a restart will know of.
    pub(super) durable: watch::Sender<u64>,
    pub(super) counters: Counters,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) hits: AtomicU64,
    pub(super) misses: AtomicU64,
    pub(super) written: AtomicU64,
    pub(super) written_bytes: AtomicU64,
    pub(super) dropped: AtomicU64,
    pub(super) reads_dropped: AtomicU64,
    pub(super) corrupt: AtomicU64,
    pub(super) errors: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) segments: AtomicU64,
}

impl Counters {
    pub(super) fn add(counter: &AtomicU64, more: u64) {
        counter.fetch_add(more, Ordering::Relaxed);
    }
}

#[derive(Default)]
pub(super) struct State {
    pub(super) phase: Phase,
    pub(super) is_closed: bool,
    pub(super) index: Index,
    pub(super) files: HashMap<u64, Arc<File>>,
    queue: VecDeque<Task>,
    /// Records that wait to be written, by the hash of their keys.
    queued: HashMap<u64, u32>,
    pub(super) queued_bytes: u64,
    queued_removals: usize,
    /// The hash of the key whose record is being written, and whether it was removed meanwhile.
    writing: Option<(u64, bool)>,
    /// Removals that were ever asked for.
    pub(super) removals: u64,
    pub(super) jobs: VecDeque<Job>,
    /// Who waits for a key to be read.
    pub(super) reads: HashMap<u64, Vec<oneshot::Sender<()>>>,
    pub(super) waiting: usize,
}

/// Something to be written.
pub(super) enum Task {
    Store {
        print: u64,
        key: Key,
        entry: Arc<Entry>,
        variant: u32,
        bytes: u64,
    },
    /// A record that was in use when its segment went.
    Keep {
        print: u64,
        raw: Box<Raw>,
        variant: u32,
    },
    Remove {
        print: u64,
        key: Key,
    },
    /// Everything goes: that many removals, and whatever else there is.
    Wipe {
        removals: u64,
    },
}

/// A key to be read, for a request of that moment.
pub(super) struct Job {
    pub(super) print: u64,
    pub(super) key: Key,
    pub(super) now_ms: u64,
    /// Purges before it: what is read holds against those that come after.
    pub(super) purges: u64,
}

impl Task {
    fn record(&self) -> Option<(u64, u64)> {
        match self {
            Self::Store { print, bytes, .. } => Some((*print, *bytes)),
            Self::Keep { print, raw, .. } => Some((*print, raw.header.record_bytes())),
            Self::Remove { .. } | Self::Wipe { .. } => None,
        }
    }
}

impl State {
    pub(super) fn queue_len(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn waiting_to_be_written(&self) -> usize {
        self.queue.len() + usize::from(self.writing.is_some())
    }

    pub(super) fn is_queued(&self, print: u64) -> bool {
        self.queued.contains_key(&print)
    }

    /// Whether something newer of this variant waits to be written.
    fn waits(&self, print: u64, variant: u32) -> bool {
        self.is_queued(print)
            && self.queue.iter().any(|task| match task {
                Task::Store { print: other, variant: others, .. } => (*other, *others) == (print, variant),
                _ => false,
            })
    }

    /// Behind everything else.
    pub(super) fn push(&mut self, task: Task) {
        self.count(&task);
        self.queue.push_back(task);
    }

    /// In front of everything else: it is older than all that waits to be stored, and of no key that was removed.
    pub(super) fn push_front(&mut self, task: Task) {
        self.count(&task);
        self.queue.push_front(task);
    }

    fn count(&mut self, task: &Task) {
        if let Some((print, bytes)) = task.record() {
            *self.queued.entry(print).or_default() += 1;
            self.queued_bytes += bytes;
        }
    }

    /// Takes a record out of everything that is, waits or is just being written. Whether it was anywhere.
    fn forget(&mut self, print: u64) -> bool {
        let mut was_there = self.index.remove(print);
        if self.queued.remove(&print).is_some() {
            was_there = true;
            let mut freed = 0;
            self.queue.retain(|task| match task.record() {
                Some((other, bytes)) if other == print => {
                    freed += bytes;
                    false
                }
                _ => true,
            });
            self.queued_bytes -= freed;
        }
        if let Some((writing, is_gone)) = &mut self.writing
            && *writing == print
        {
            *is_gone = true;
            was_there = true;
        }
        was_there
    }

    /// Removes a key, at once for every look-up and durably as soon as its turn comes. Nothing is written where nothing
    /// is known of it; before the folder was read, nobody knows.
    pub(super) fn remove(&mut self, print: u64, key: &Key) {
        let was_there = self.forget(print);
        let is_known = matches!(self.phase, Phase::On | Phase::Off);
        if was_there || !is_known {
            self.push_removal(print, key);
        }
    }

    /// The same where what stood in the index has been taken out already, and something older may stand in the log.
    pub(super) fn supersede(&mut self, print: u64, key: &Key) {
        self.forget(print);
        self.push_removal(print, key);
    }

    fn push_removal(&mut self, print: u64, key: &Key) {
        self.removals += 1;
        if self.queued_removals < REMOVALS_MAX {
            self.queued_removals += 1;
            self.queue.push_front(Task::Remove { print, key: key.clone() });
        } else {
            self.wipe();
        }
    }

    pub(super) fn remove_all(&mut self) {
        if self.phase != Phase::Off {
            self.removals += 1;
            self.wipe();
        }
    }

    /// Removes everything; the removal itself is counted by the caller.
    fn wipe(&mut self) {
        let waiting = self.queue.iter().map(|task| match task {
            Task::Remove { .. } => 1,
            Task::Wipe { removals } => *removals,
            Task::Store { .. } | Task::Keep { .. } => 0,
        });
        let removals = waiting.sum::<u64>() + 1;
        self.empty();
        self.queue.push_back(Task::Wipe { removals });
    }

    /// Nothing is here any more, and nothing waits to be.
    fn empty(&mut self) {
        self.index.clear();
        self.queue.clear();
        self.queued.clear();
        self.queued_bytes = 0;
        self.queued_removals = 0;
        if let Some((_, is_gone)) = &mut self.writing {
            *is_gone = true;
        }
    }

    /// The next thing to write; all removals that follow each other at once, for they share one wait for the disk.
    fn take(&mut self) -> Vec<Task> {
        let Some(first) = self.queue.pop_front() else { return Vec::new() };
        if let Some((print, bytes)) = first.record() {
            self.queued_bytes -= bytes;
            if let Some(count) = self.queued.get_mut(&print) {
                *count -= 1;
                if *count == 0 {
                    self.queued.remove(&print);
                }
            }
            self.writing = Some((print, false));
            return vec![first];
        }
        let mut taken = vec![first];
        while matches!(taken[0], Task::Remove { .. })
            && let Some(next) = self.queue.pop_front_if(|next| matches!(next, Task::Remove { .. }))
        {
            taken.push(next);
        }
        if matches!(taken[0], Task::Remove { .. }) {
            self.queued_removals -= taken.len();
        }
        taken
    }

    /// A record was written, or was not. It counts unless it was removed meanwhile, or something newer waits.
    pub(super) fn written(&mut self, place: Option<(Place, u32)>) {
        let Some((print, is_gone)) = self.writing.take() else { return };
        if let Some((place, variant)) = place
            && !is_gone
            && !self.waits(print, variant)
        {
            self.index.put(print, place, variant);
        }
    }

    /// Lets go of whoever waits for this key.
    pub(super) fn done_reading(&mut self, print: u64) {
        let waiters = self.reads.remove(&print).unwrap_or_default();
        self.waiting -= waiters.len();
    }
}

impl Shared {
    pub(super) fn print(&self, key: &Key) -> u64 {
        self.hasher.hash_one(key)
    }

    /// What is to be written next. Nothing after the end, or when the tier is off.
    pub(super) fn next_tasks(&self) -> Option<Vec<Task>> {
        let mut state = self.state.lock();
        loop {
            if state.phase == Phase::Off {
                return None;
            }
            let tasks = state.take();
            if !tasks.is_empty() {
                return Some(tasks);
            }
            if state.is_closed {
                return None;
            }
            self.to_write.wait(&mut state);
        }
    }

    pub(super) fn next_job(&self) -> Option<Job> {
        let mut state = self.state.lock();
        loop {
            if state.is_closed || state.phase == Phase::Off {
                return None;
            }
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            self.to_read.wait(&mut state);
        }
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        self.state.lock().phase = phase;
        self.phase.send_replace(phase);
    }

    /// The disk failed: from here on there is none. Requests go on from memory; the writer empties the folder if it can.
    pub(super) fn turn_off(&self, doing: &'static str, source: io::Error) {
        {
            let mut state = self.state.lock();
            if state.phase == Phase::Off {
                return;
            }
            state.phase = Phase::Off;
            state.empty();
            state.files.clear();
            state.jobs.clear();
            state.reads.clear();
            state.waiting = 0;
        }
        Counters::add(&self.counters.errors, 1);
        self.phase.send_replace(Phase::Off);
        self.to_write.notify_all();
        self.to_read.notify_all();
        (self.tell)(Notice::Failed { doing, source });
    }

    pub(super) fn close(&self) {
        {
            let mut state = self.state.lock();
            state.is_closed = true;
            state.jobs.clear();
            state.reads.clear();
            state.waiting = 0;
        }
        self.to_write.notify_all();
        self.to_read.notify_all();
    }
}
