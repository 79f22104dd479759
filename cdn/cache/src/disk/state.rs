//! What the threads of the disk tier and the requests share, under one lock that nobody holds while a disk works.
//!
//! Owns the order of things: a removal takes everything of its key out of the queue, and goes before all that waits to be
//! stored. So in the log a removal stands behind everything that it removes and before what came later, a restart
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

use super::gate::Gate;
use super::index::Index;
use super::offers::Offers;
use super::patience::{Patience, Watch};
use super::segment::{Place, Raw};
use super::{DiskLimits, Notice, Numbers, Phase, READERS, Tell};
use crate::entry::{Entry, Resource};
use crate::key::Key;
use crate::purge::{Purges, Step};
use crate::shelf::Shelf;
use crate::tags::Tag;

/// Removals that wait to be written. More at once are cheaper and as right as the removal of everything.
const REMOVALS_MAX: usize = 65_536;
/// Their bytes: 65,536 keys of the usual 100 to 200 bytes and what they are kept in fit, and as many of the longest, half
/// a gigabyte, do not. They pile up only while the folder is another process's, or while the disk hangs.
const REMOVAL_BYTES_MAX: u64 = 16 * 1024 * 1024;

pub(super) struct Shared {
    pub(super) dir: PathBuf,
    pub(super) limits: DiskLimits,
    pub(super) patience: Patience,
    pub(super) shelf: Arc<dyn Shelf>,
    /// What was purged: nothing of it is written or read.
    pub(super) purges: Arc<Purges>,
    pub(super) tell: Tell,
    pub(super) gate: Gate,
    pub(super) hasher: RandomState,
    pub(super) state: Mutex<State>,
    /// There is something to write, or to end.
    pub(super) to_write: Condvar,
    /// There is something to read, or to end.
    pub(super) to_read: Condvar,
    pub(super) phase: watch::Sender<Phase>,
    pub(super) promise: watch::Sender<Promise>,
    /// Threads that have not ended.
    pub(super) running: Mutex<usize>,
    pub(super) ended: Condvar,
    pub(super) counters: Counters,
}

/// What is promised of removals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Promise {
    /// Removals that a restart will know of.
    pub(super) kept: u64,
    /// Nothing is left that a restart could bring back, nor will be.
    pub(super) is_empty: bool,
    /// There is nobody to write what is not written by now, and what it would remove may still be there.
    pub(super) is_broken: bool,
}

impl Promise {
    pub(super) fn keeps(self, removals: u64) -> bool {
        self.is_empty || self.kept >= removals
    }
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) hits: AtomicU64,
    pub(super) misses: AtomicU64,
    pub(super) purged: AtomicU64,
    pub(super) written: AtomicU64,
    pub(super) written_bytes: AtomicU64,
    pub(super) dropped: AtomicU64,
    pub(super) reads_dropped: AtomicU64,
    pub(super) late: AtomicU64,
    pub(super) set_aside: AtomicU64,
    pub(super) unpersisted: AtomicU64,
    pub(super) wipes: AtomicU64,
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
    /// Removals, in the order in which they were asked for. They go first.
    urgent: VecDeque<Task>,
    urgent_bytes: u64,
    /// Records to be stored.
    queue: VecDeque<Task>,
    /// Records that wait to be written, by the hash of their keys.
    queued: HashMap<u64, u32>,
    pub(super) queued_bytes: u64,
    /// Those of them that were offered.
    pub(super) offers: Offers,
    /// The hash of the key whose record is being written, and whether it was removed meanwhile.
    writing: Option<(u64, bool)>,
    /// Removals that were ever asked for.
    pub(super) removals: u64,
    /// How far the disk was when somebody had waited for it in vain. Nobody waits again while it is no further.
    pub(super) stuck_at: Option<u64>,
    pub(super) numbers: Numbers,
    pub(super) jobs: VecDeque<Job>,
    /// Who waits for a key to be read.
    pub(super) reads: HashMap<u64, Waiters>,
    pub(super) waiting: usize,
    /// Readers that are at it.
    busy: usize,
    pub(super) watch: Watch,
}

/// Who waits for a read.
#[derive(Default)]
pub(super) struct Waiters {
    list: Vec<oneshot::Sender<()>>,
    /// It should have come back. Nobody waits for it any more.
    is_late: bool,
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
    Purge(Step),
    /// Everything goes: that many removals, and whatever else there is.
    Wipe {
        removals: u64,
        garbage: Box<Garbage>,
    },
}

/// What was written where.
#[derive(Clone, Copy, Debug)]
pub(super) struct Written {
    pub(super) place: Place,
    pub(super) variant: u32,
    pub(super) share: u16,
}

/// What takes long to be freed. Whoever holds it frees it, without the lock.
#[derive(Default)]
pub(super) struct Garbage {
    _index: Index,
    _queue: VecDeque<Task>,
    _queued: HashMap<u64, u32>,
    _urgent: VecDeque<Task>,
}

/// A key to be read, for a request of that moment.
pub(super) struct Job {
    pub(super) print: u64,
    pub(super) key: Key,
    pub(super) now_ms: u64,
    /// Who only wants to see what is there. None: it goes into memory, for those who wait.
    pub(super) look: Option<oneshot::Sender<Option<Resource>>>,
}

impl Task {
    fn record(&self) -> Option<(u64, u64)> {
        match self {
            Self::Store { print, bytes, .. } => Some((*print, *bytes)),
            Self::Keep { print, raw, .. } => Some((*print, raw.header.record_bytes())),
            Self::Remove { .. } | Self::Purge(_) | Self::Wipe { .. } => None,
        }
    }

    /// Of a response that was offered: the share of its site, and its bytes.
    fn offered(&self) -> Option<(u16, u64)> {
        match self {
            Self::Store { key, bytes, .. } => Some((Tag::share_of(key.site()), *bytes)),
            _ => None,
        }
    }
}

impl State {
    pub(super) fn waiting_to_be_written(&self) -> usize {
        self.urgent.len() + self.queue.len() + usize::from(self.writing.is_some())
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

    /// In front of all that waits to be stored: it is older than that, and of no key that was removed.
    pub(super) fn push_front(&mut self, task: Task) {
        self.count(&task);
        self.queue.push_front(task);
    }

    fn count(&mut self, task: &Task) {
        if let Some((print, bytes)) = task.record() {
            *self.queued.entry(print).or_default() += 1;
            self.queued_bytes += bytes;
        }
        if let Some((share, bytes)) = task.offered() {
            self.offers.add(share, bytes);
        }
    }

    /// Takes a record out of everything that is, waits or is just being written. Whether it was anywhere.
    fn forget(&mut self, print: u64) -> bool {
        let mut was_there = self.index.remove(print);
        if self.queued.remove(&print).is_some() {
            was_there = true;
            let (mut freed, offers) = (0, &mut self.offers);
            self.queue.retain(|task| match task.record() {
                Some((other, bytes)) if other == print => {
                    freed += bytes;
                    if let Some((share, bytes)) = task.offered() {
                        offers.remove(share, bytes);
                    }
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
        if was_there || self.phase != Phase::On {
            self.push_removal(print, key);
        }
    }

    /// The same where what stood in the index has been taken out already, and something older may stand in the log.
    pub(super) fn supersede(&mut self, print: u64, key: &Key) {
        self.forget(print);
        self.push_removal(print, key);
    }

    fn push_removal(&mut self, print: u64, key: &Key) {
        self.push_urgent(Task::Remove { print, key: key.clone() }, key.bytes() as u64);
    }

    /// A purge, to be known by whoever reads the log after this life.
    pub(super) fn purge(&mut self, step: Step) {
        let bytes = step.bytes() as u64;
        self.push_urgent(Task::Purge(step), bytes);
    }

    fn push_urgent(&mut self, task: Task, bytes: u64) {
        self.removals += 1;
        if self.phase == Phase::Off {
            // Nobody writes it. It holds when the folder is empty, and not before.
            return;
        }
        let bytes = bytes + size_of::<Task>() as u64;
        if self.urgent.len() < REMOVALS_MAX && self.urgent_bytes + bytes <= REMOVAL_BYTES_MAX {
            self.urgent_bytes += bytes;
            self.urgent.push_back(task);
        } else {
            self.wipe();
        }
    }

    pub(super) fn remove_all(&mut self) {
        self.removals += 1;
        if self.phase != Phase::Off {
            self.wipe();
        }
    }

    /// Removes everything; the removal itself is counted by the caller.
    fn wipe(&mut self) {
        let (mut removals, mut garbage) = (1, None);
        if self.waits_to_be_wiped()
            && let Some(Task::Wipe { removals: waiting, garbage: waits }) = self.urgent.pop_front()
        {
            removals += waiting;
            garbage = Some(waits);
        }
        removals += self.urgent.len() as u64;
        let more = self.empty();
        // The writer frees it, once: what came since it was last given something, two queues at most, is freed here.
        let garbage = garbage.unwrap_or_else(|| Box::new(more));
        self.urgent.push_back(Task::Wipe { removals, garbage });
    }

    /// Nothing is here any more, and nothing waits to be. To be freed by somebody who has time.
    #[must_use = "freeing it takes long: not under the lock"]
    pub(super) fn empty(&mut self) -> Garbage {
        self.urgent_bytes = 0;
        self.queued_bytes = 0;
        self.offers = Offers::default();
        if let Some((_, is_gone)) = &mut self.writing {
            *is_gone = true;
        }
        Garbage {
            _index: std::mem::take(&mut self.index),
            _queue: std::mem::take(&mut self.queue),
            _queued: std::mem::take(&mut self.queued),
            _urgent: std::mem::take(&mut self.urgent),
        }
    }

    /// The next thing to write; all removals at once, for they share one wait for the disk.
    fn take(&mut self) -> Vec<Task> {
        if self.waits_to_be_wiped() {
            return self.urgent.pop_front().into_iter().collect();
        }
        if !self.urgent.is_empty() {
            self.urgent_bytes = 0;
            return std::mem::take(&mut self.urgent).into();
        }
        let Some(next) = self.queue.pop_front() else { return Vec::new() };
        if let Some((print, bytes)) = next.record() {
            self.queued_bytes -= bytes;
            if let Some((share, bytes)) = next.offered() {
                self.offers.remove(share, bytes);
            }
            if let Some(count) = self.queued.get_mut(&print) {
                *count -= 1;
                if *count == 0 {
                    self.queued.remove(&print);
                }
            }
            self.writing = Some((print, false));
        }
        vec![next]
    }

    /// A record was written, or was not. It counts unless it was removed meanwhile, or something newer waits.
    pub(super) fn written(&mut self, written: Option<Written>) {
        let Some((print, is_gone)) = self.writing.take() else { return };
        if let Some(Written { place, variant, share }) = written
            && !is_gone
            && !self.waits(print, variant)
        {
            self.index.put(print, place, variant, share);
        }
    }

    /// What was asked for while the folder was read, or another process's: the keys that were removed, and the variants
    /// that are newer in the queue than in the folder.
    pub(super) fn asked_meanwhile(&self) -> Vec<(u64, Option<u32>)> {
        let asked = self.urgent.iter().chain(&self.queue).filter_map(|task| match task {
            Task::Remove { print, .. } => Some((*print, None)),
            Task::Store { print, variant, .. } => Some((*print, Some(*variant))),
            Task::Keep { .. } | Task::Purge(_) | Task::Wipe { .. } => None,
        });
        asked.collect()
    }

    /// Whether the next thing to be done is to give everything up.
    pub(super) fn waits_to_be_wiped(&self) -> bool {
        matches!(self.urgent.front(), Some(Task::Wipe { .. }))
    }

    /// Whether a request of this moment may wait for this key, as far as it is known how the disk does.
    pub(super) fn may_wait(&mut self, print: u64, now_ms: u64) -> bool {
        let is_late = self.reads.get(&print).is_some_and(|waiters| waiters.is_late);
        // Where every reader hangs, nobody would find out that the disk answers again.
        let nobody_reads = self.watch.is_aside() && self.busy >= READERS;
        !is_late && !nobody_reads && self.watch.may_ask(now_ms)
    }

    /// A place among those who wait for this key. True beside it for the first of them, who starts the read.
    pub(super) fn wait_for(&mut self, print: u64) -> (oneshot::Receiver<()>, bool) {
        let (waiter, reading) = oneshot::channel();
        let is_first = !self.reads.contains_key(&print);
        self.reads.entry(print).or_default().list.push(waiter);
        self.waiting += 1;
        (reading, is_first)
    }

    /// Nobody waits any longer for this read.
    pub(super) fn let_go(&mut self, print: u64) {
        if let Some(at) = self.jobs.iter().position(|job| job.look.is_none() && job.print == print) {
            self.jobs.remove(at);
            self.done_waiting(print);
        } else if let Some(waiters) = self.reads.get_mut(&print) {
            self.waiting -= waiters.list.len();
            waiters.list.clear();
            waiters.is_late = true;
        }
    }

    /// Nobody waits any longer for any read.
    pub(super) fn let_all_go(&mut self) {
        for job in std::mem::take(&mut self.jobs) {
            if job.look.is_none() {
                self.done_waiting(job.print);
            }
        }
        for waiters in self.reads.values_mut() {
            self.waiting -= waiters.list.len();
            waiters.list.clear();
            waiters.is_late = true;
        }
    }

    fn done_waiting(&mut self, print: u64) -> Option<Waiters> {
        let waiters = self.reads.remove(&print)?;
        self.waiting -= waiters.list.len();
        Some(waiters)
    }

    /// A read is over, of this key if anybody waited for it. True if the tier was set aside until now.
    fn done_reading(&mut self, print: Option<u64>) -> bool {
        self.busy -= 1;
        let Some(print) = print else { return false };
        let in_time = self.done_waiting(print).is_some_and(|waiters| !waiters.is_late);
        in_time && self.watch.came_back()
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

    /// What is to be read next; whoever gets it says when it is [`done_reading`](Self::done_reading).
    pub(super) fn next_job(&self) -> Option<Job> {
        let mut state = self.state.lock();
        loop {
            if state.is_closed || state.phase == Phase::Off {
                return None;
            }
            if let Some(job) = state.jobs.pop_front() {
                state.busy += 1;
                return Some(job);
            }
            self.to_read.wait(&mut state);
        }
    }

    pub(super) fn done_reading(&self, print: Option<u64>) {
        let answers_again = self.state.lock().done_reading(print);
        if answers_again {
            (self.tell)(Notice::Answers);
        }
    }

    /// Somebody has waited for a read as long as anybody may, since `now_ms`; `in_time` others had come back before.
    pub(super) fn late(&self, print: u64, now_ms: u64, in_time: u64) {
        let waited_ms = u64::try_from(self.patience.read.as_millis()).unwrap_or(u64::MAX);
        let is_set_aside = {
            let mut state = self.state.lock();
            let is_set_aside = state.watch.late(now_ms.saturating_add(waited_ms), in_time);
            if is_set_aside {
                state.let_all_go()
            } else {
                state.let_go(print)
            }
            is_set_aside
        };
        Counters::add(&self.counters.late, 1);
        if is_set_aside {
            Counters::add(&self.counters.set_aside, 1);
            (self.tell)(Notice::Hangs { waited_ms });
        }
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        self.state.lock().phase = phase;
        self.phase.send_replace(phase);
    }

    /// The disk failed: from here on there is none. Requests go on from memory; the writer empties the folder if it can.
    pub(super) fn turn_off(&self, doing: &'static str, source: io::Error) {
        let garbage = {
            let mut state = self.state.lock();
            if state.phase == Phase::Off {
                return;
            }
            state.phase = Phase::Off;
            state.let_all_go();
            let files = std::mem::take(&mut state.files);
            (state.empty(), files)
        };
        drop(garbage);
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
            state.let_all_go();
        }
        self.to_write.notify_all();
        self.to_read.notify_all();
    }
}
