//! The writer: one thread, one connection, many commands per commit.
//!
//! A commit costs a flush of the disk however much it carries, so commands that wait while one commit is under way
//! share the next. Each runs between a mark and its settlement: one that fails leaves its neighbours alone. Answers go out
//! after the commit, in one step with what it changed for those who wait (log heads, applied marks).
//!
//! An engine may give a transaction up for another one's sake, or lose its connection before the commit: then nothing of it
//! is there, and all its commands are run again, a bounded number of times. A connection that is lost during the commit
//! leaves the outcome open; that is what the answer says.

use std::cell::RefCell;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use souk_replication::{Heads, Log, Mark};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};

use super::cursor::Marks;
use super::engine::{Engine, Mode, Session, Uncommitted};
use super::log;
use super::pair::standing;
use super::readers::Readers;
use super::{StoreError, StoreSettings};
use crate::clock;

/// Commands waiting. Each is a batch of at most 64 KiB, an import of at most 16 MiB, or a few hundred bytes: the
/// links' credits and the control listener's connections bound the sum long before.
const QUEUE_MAX: usize = 256;
/// A command that cannot even be queued for this long is told that the store is busy.
const QUEUE_WAIT_MAX: Duration = Duration::from_secs(5);
/// Commands per commit. At about 100 µs each the first one waits 13 ms for the others.
const COMMANDS_PER_COMMIT_MAX: usize = 128;
/// A commit does not take on another command after this, so that one import does not make a checkout wait for ten.
const COMMIT_FILL_MAX: Duration = Duration::from_millis(20);

/// Runs of one transaction. Each waits longer than the one before: six are over within half a second, before which a
/// database that changes its leader is not there again, and after which whoever asked may ask anew.
const ATTEMPTS_MAX: u32 = 6;
/// The first wait between two runs is at most this, each further one at most twice the one before; by chance shorter, so
/// that two processes that met do not meet again.
const PAUSE_FIRST_MAX: Duration = Duration::from_millis(10);

/// How long readers are waited for, and withheld, to cut the write-ahead log back. No price takes as long.
const WAL_READERS_WAIT_MAX: Duration = Duration::from_millis(500);
/// Before the next try after one that did not come off.
const WAL_CUT_PAUSE: Duration = Duration::from_secs(10);

/// What a command wants done with its own writes.
pub(super) enum Decision<T> {
    Keep(T),
    /// Answer, but leave nothing behind: a refusal found half-way.
    Undo(T),
}

/// A command's view of the writer's transaction.
pub(super) struct Tx<'a> {
    pub(super) sql: &'a dyn Session,
    /// One clock reading per command: rows that belong together bear the same time.
    pub(super) now_ms: u64,
    pub(super) settings: &'a StoreSettings,
    effects: RefCell<Effects>,
}

/// What others must learn once the transaction is on the disk.
#[derive(Default)]
struct Effects {
    logs_moved: bool,
    cut_log: bool,
    marks: Vec<((u32, u32), Mark)>,
}

impl Tx<'_> {
    pub(super) fn log_moved(&self) {
        self.effects.borrow_mut().logs_moved = true;
    }

    /// What this command overwrites must not stay in the write-ahead log.
    pub(super) fn cut_log(&self) {
        self.effects.borrow_mut().cut_log = true;
    }

    pub(super) fn mark_moved(&self, node: u32, epoch: u32, mark: Mark) {
        self.effects.borrow_mut().marks.push(((node, epoch), mark));
    }
}

/// Who is told of what was committed.
#[derive(Clone)]
pub(super) struct Told {
    pub(super) heads: Arc<watch::Sender<Heads>>,
    pub(super) marks: Arc<Marks>,
    /// Counted at each commit.
    pub(super) commits: Arc<watch::Sender<u64>>,
}

impl Told {
    /// Heads as they were read from the database. They never go back, and news of two commits may cross.
    pub(super) fn heads(&self, read: &Heads) {
        self.heads.send_if_modified(|heads| {
            let before = *heads;
            for log in Log::ALL {
                heads.set(log, heads.get(log).max(read.get(log)));
            }
            *heads != before
        });
    }
}

/// The write-ahead log, and what it takes to cut it back.
pub(super) struct Wal {
    pub(super) path: PathBuf,
    pub(super) bytes_max: u64,
    pub(super) readers: Arc<Readers<Box<dyn Session>>>,
    /// Keeps other processes from the file until the writer ends.
    pub(super) _claim: File,
}

/// What the writer counts; read by the metrics page.
#[derive(Debug, Default)]
pub(crate) struct WriterMetrics {
    pub(crate) commits: AtomicU64,
    pub(crate) commands: AtomicU64,
    pub(crate) failed: AtomicU64,
    /// Transactions that were run once more.
    pub(crate) repeated: AtomicU64,
    /// Of the last commit, in microseconds, flush included.
    pub(crate) commit_us_last: AtomicU64,
    /// Bytes of the write-ahead log.
    pub(crate) wal_bytes: AtomicU64,
}

type Queue = mpsc::Sender<Box<dyn Job>>;

#[derive(Clone)]
pub(super) struct Writer {
    /// Gone once the store is closed.
    queue: Arc<Mutex<Option<Queue>>>,
    thread: Arc<Mutex<Option<std::thread::JoinHandle<()>>>>,
    metrics: Arc<WriterMetrics>,
}

impl Writer {
    /// `session` is one of `engine`'s; when it breaks, it is replaced by another.
    pub(super) fn start(
        engine: Arc<dyn Engine>,
        session: Box<dyn Session>,
        settings: StoreSettings,
        told: Told,
        wal: Option<Wal>,
    ) -> Result<Self, StoreError> {
        let (queue, jobs) = mpsc::channel(QUEUE_MAX);
        let metrics = Arc::new(WriterMetrics::default());
        let worker = Worker {
            engine,
            session: Some(session),
            jobs,
            settings,
            told,
            metrics: Arc::clone(&metrics),
            wal,
            // None only in a test without a runtime; then nobody is withheld.
            runtime: Handle::try_current().ok(),
            cut_not_before: Instant::now(),
            cut_wanted: false,
            is_home: false,
        };
        let thread =
            std::thread::Builder::new().name("region-writer".to_owned()).spawn(move || worker.run())?;
        Ok(Self {
            queue: Arc::new(Mutex::new(Some(queue))),
            thread: Arc::new(Mutex::new(Some(thread))),
            metrics,
        })
    }

    pub(super) fn metrics(&self) -> &WriterMetrics {
        &self.metrics
    }

    pub(super) async fn submit<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Fn(&Tx<'_>) -> Result<Decision<T>, StoreError> + Send + 'static,
    {
        let queue = self.queue.lock().clone().ok_or(StoreError::Closed)?;
        let (reply, answer) = oneshot::channel();
        let command: Box<dyn Job> = Box::new(Command { work, outcome: None, reply });
        match tokio::time::timeout(QUEUE_WAIT_MAX, queue.send(command)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(StoreError::Closed),
            Err(_) => return Err(StoreError::Busy),
        }
        // From here on the command runs whether or not anyone waits; without an answer its outcome is unknown.
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    pub(super) fn close(&self) {
        drop(self.queue.lock().take());
        let thread = self.thread.lock().take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the writer thread of the store panicked");
        }
    }
}

/// Why the transaction that commands shared did not end well.
enum Failed {
    Not(String),
    Unknown(String),
}

/// A command without its types, as the queue carries it.
trait Job: Send {
    /// Runs between a mark and its settlement, once more in each run of the transaction. True keeps its writes; an error is
    /// one for which the whole transaction is to be run again.
    fn run(&mut self, tx: &Tx<'_>) -> Result<bool, StoreError>;
    /// Gives the answer.
    fn answer(self: Box<Self>, failed: Option<&Failed>);
}

struct Command<T, F> {
    work: F,
    outcome: Option<Result<T, StoreError>>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<T, F> Job for Command<T, F>
where
    T: Send,
    F: Fn(&Tx<'_>) -> Result<Decision<T>, StoreError> + Send,
{
    fn run(&mut self, tx: &Tx<'_>) -> Result<bool, StoreError> {
        let (keep, outcome) = match catch_unwind(AssertUnwindSafe(|| (self.work)(tx))) {
            Ok(Ok(Decision::Keep(value))) => (true, Ok(value)),
            Ok(Ok(Decision::Undo(value))) => (false, Ok(value)),
            Ok(Err(error)) if error.is_conflict() => return Err(error),
            Ok(Err(error)) => (false, Err(error)),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
                (false, Err(StoreError::Panicked(text.to_owned())))
            }
        };
        self.outcome = Some(outcome);
        Ok(keep)
    }

    fn answer(self: Box<Self>, failed: Option<&Failed>) {
        let outcome = match (failed, self.outcome) {
            (None, Some(outcome)) => outcome,
            (Some(Failed::Not(reason)), _) => Err(StoreError::NotCommitted(reason.clone())),
            (Some(Failed::Unknown(reason)), _) => Err(StoreError::Unknown(reason.clone())),
            (None, None) => Err(StoreError::NotCommitted("the command was not run".to_owned())),
        };
        // The caller may have gone; the work stands.
        let _delivered = self.reply.send(outcome);
    }
}

struct Worker {
    engine: Arc<dyn Engine>,
    /// Gone when it broke; the next transaction opens another.
    session: Option<Box<dyn Session>>,
    jobs: mpsc::Receiver<Box<dyn Job>>,
    settings: StoreSettings,
    told: Told,
    metrics: Arc<WriterMetrics>,
    wal: Option<Wal>,
    runtime: Option<Handle>,
    /// After a cut that did not come off.
    cut_not_before: Instant,
    /// However short the log is: something in it was erased.
    cut_wanted: bool,
    /// The store has said that it is a home.
    is_home: bool,
}

impl Worker {
    fn run(mut self) {
        while let Some(first) = self.jobs.blocking_recv() {
            let started = Instant::now();
            let mut jobs = Vec::with_capacity(COMMANDS_PER_COMMIT_MAX);
            jobs.push(first);
            let failed = self.transaction(&mut jobs, started).err();
            let took = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.metrics.commit_us_last.store(took, Ordering::Relaxed);
            self.metrics.commits.fetch_add(1, Ordering::Relaxed);
            self.metrics.commands.fetch_add(jobs.len() as u64, Ordering::Relaxed);
            if failed.is_some() {
                self.metrics.failed.fetch_add(jobs.len() as u64, Ordering::Relaxed);
            }
            for job in jobs {
                job.answer(failed.as_ref());
            }
            self.bound_wal();
        }
    }

    /// Cuts the write-ahead log back when it is too long. Answers have gone out; the next commands wait a moment.
    fn bound_wal(&mut self) {
        let Some(wal) = &self.wal else { return };
        let length = || std::fs::metadata(&wal.path).map_or(0, |file| file.len());
        let mut bytes = length();
        if (bytes > wal.bytes_max || self.cut_wanted) && Instant::now() >= self.cut_not_before {
            match self.cut_wal(wal) {
                Ok(()) => self.cut_wanted = false,
                Err(reason) => {
                    tracing::warn!(bytes, reason, "the write-ahead log is not cut back");
                    self.cut_not_before = Instant::now() + WAL_CUT_PAUSE;
                }
            }
            bytes = length();
        }
        self.metrics.wal_bytes.store(bytes, Ordering::Relaxed);
    }

    fn cut_wal(&self, wal: &Wal) -> Result<(), String> {
        let Some(session) = &self.session else { return Err("there is no connection".to_owned()) };
        let withheld = match &self.runtime {
            Some(runtime) => runtime.block_on(wal.readers.withhold(WAL_READERS_WAIT_MAX)),
            None => None,
        };
        // A reader that goes on for longer, or one of another process (a backup): what can be moved is moved, and the
        // next try cuts.
        match session.checkpoint(withheld.is_some(), WAL_READERS_WAIT_MAX) {
            Ok(true) if withheld.is_some() => Ok(()),
            Ok(_) => Err("somebody is reading".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// One transaction, run until it is committed or given up, and told to those who wait. `jobs` holds the first command
    /// and gets those that are taken along, whatever becomes of them, so that each is answered.
    fn transaction(&mut self, jobs: &mut Vec<Box<dyn Job>>, started: Instant) -> Result<(), Failed> {
        let mut attempt = 1;
        loop {
            let error = match self.attempt(jobs, started) {
                Ok(()) => return Ok(()),
                Err(Uncommitted::Unknown(error)) => {
                    tracing::error!(%error, commands = jobs.len(), "whether a commit of the store succeeded is not known");
                    return Err(Failed::Unknown(error.to_string()));
                }
                Err(Uncommitted::Not(error)) => error,
            };
            if !error.is_conflict() || attempt == ATTEMPTS_MAX {
                if error.is_transient() {
                    // Nobody behind fares better, and each would wait as long again.
                    while let Ok(job) = self.jobs.try_recv() {
                        jobs.push(job);
                    }
                }
                tracing::error!(%error, attempt, commands = jobs.len(), "a commit of the store failed");
                return Err(Failed::Not(error.to_string()));
            }
            tracing::debug!(%error, attempt, "a transaction of the store is run again");
            self.metrics.repeated.fetch_add(1, Ordering::Relaxed);
            let pause_max = PAUSE_FIRST_MAX * 2_u32.pow(attempt - 1);
            std::thread::sleep(pause_max.mul_f64(rand::random_range(0.5..1.0)));
            attempt += 1;
        }
    }

    fn attempt(&mut self, jobs: &mut Vec<Box<dyn Job>>, started: Instant) -> Result<(), Uncommitted> {
        let session = match self.session.take() {
            Some(session) => session,
            None => self.engine.open(Mode::Write).map_err(Uncommitted::Not)?,
        };
        let mut effects = Effects::default();
        let outcome = self.commit(&*session, jobs, started, &mut effects);
        let is_whole = outcome.is_ok() || session.roll_back();
        self.session = is_whole.then_some(session);
        let heads = outcome?;
        self.cut_wanted |= effects.cut_log;
        self.told.marks.advance(&effects.marks);
        self.told.commits.send_modify(|count| *count += 1);
        if let Some(heads) = heads {
            self.told.heads(&heads);
        }
        Ok(())
    }

    /// Runs the commands and commits. Returns the heads of the logs if they have moved.
    fn commit(
        &mut self,
        session: &dyn Session,
        jobs: &mut Vec<Box<dyn Job>>,
        started: Instant,
        effects: &mut Effects,
    ) -> Result<Option<Heads>, Uncommitted> {
        session.begin(Mode::Write).map_err(Uncommitted::Not)?;
        self.demand_home(session).map_err(Uncommitted::Not)?;
        let mut next = 0;
        while let Some(job) = jobs.get_mut(next) {
            self.command(session, job.as_mut(), effects).map_err(Uncommitted::Not)?;
            next += 1;
            let has_room = next < COMMANDS_PER_COMMIT_MAX && started.elapsed() < COMMIT_FILL_MAX;
            if next == jobs.len()
                && has_room
                && let Ok(job) = self.jobs.try_recv()
            {
                jobs.push(job);
            }
        }
        let heads = effects.logs_moved.then(|| log::heads(session)).transpose().map_err(Uncommitted::Not)?;
        session.commit()?;
        Ok(heads)
    }

    /// Looked at in each transaction, or once: of a file that nobody else has, only a region of a pair makes anything else.
    fn demand_home(&mut self, session: &dyn Session) -> Result<(), StoreError> {
        if !self.is_home || self.settings.is_followed || self.engine.is_shared() {
            standing::demand_home(session)?;
            self.is_home = true;
        }
        Ok(())
    }

    fn command(
        &self,
        session: &dyn Session,
        job: &mut dyn Job,
        effects: &mut Effects,
    ) -> Result<(), StoreError> {
        session.mark()?;
        let tx = Tx {
            sql: session,
            now_ms: clock::now_ms(),
            settings: &self.settings,
            effects: RefCell::default(),
        };
        let keep = job.run(&tx)?;
        if keep {
            let caused = tx.effects.into_inner();
            effects.logs_moved |= caused.logs_moved;
            effects.cut_log |= caused.cut_log;
            effects.marks.extend(caused.marks);
        }
        session.settle(keep)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::store::Store;
    use crate::store::audit::{Actor, Deed};

    const WAL_MAX: u64 = 256 << 10;

    /// Reads without a pause, two at a time, so that a reader is about at every moment: SQLite alone never cuts then.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_write_ahead_log_stays_short_under_readers_without_end() {
        let dir = tempfile::tempdir().expect("a directory");
        let settings = StoreSettings::for_tests(1_000);
        let store = Store::open_with(dir.path(), settings, WAL_MAX).expect("opens");
        let ended = Arc::new(AtomicBool::new(false));
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let (store, ended) = (store.clone(), Arc::clone(&ended));
                tokio::spawn(async move {
                    while !ended.load(Ordering::Relaxed) {
                        let slow = |conn: &dyn Session| {
                            conn.one("SELECT count(*) FROM audit", &[], |_| Ok(()))?;
                            std::thread::sleep(Duration::from_millis(5));
                            Ok(())
                        };
                        store.read(slow).await.expect("reads");
                    }
                })
            })
            .collect();
        let (mut longest, mut cut) = (0, 0);
        for _ in 0..60 {
            let detail = serde_json::Value::String("x".repeat(20 << 10));
            let actor = Actor { name: "test".to_owned(), peer: String::new() };
            let deed = Deed { action: "test", subject: String::new(), detail };
            store.record(actor, deed).await.expect("written");
            let bytes = store.writer_metrics().wal_bytes.load(Ordering::Relaxed);
            cut += u32::from(bytes < longest);
            longest = longest.max(bytes);
        }
        ended.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.await.expect("ends");
        }
        assert!(cut > 0 && longest < 2 * WAL_MAX, "{longest} bytes, cut {cut} times");
        store.close();
    }
}
