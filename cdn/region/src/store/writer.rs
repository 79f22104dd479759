//! The writer: one thread, one connection, many commands per commit.
//!
//! A commit costs a flush of the disk however much it carries, so commands that wait while one commit is under way
//! share the next. Each runs in a savepoint of its own: one that fails leaves its neighbours alone. Answers go out
//! after the commit, in one step with what it changed for those who wait (log heads, applied marks).

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rusqlite::Connection;
use souk_replication::{Heads, Mark};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};

use super::cursor::Marks;
use super::log;
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
    pub(super) sql: &'a Connection,
    /// One clock reading per command: rows that belong together bear the same time.
    pub(super) now_ms: u64,
    pub(super) settings: &'a StoreSettings,
    effects: RefCell<Effects>,
}

/// What others must learn once the transaction is on the disk.
#[derive(Default)]
struct Effects {
    logs_moved: bool,
    marks: Vec<((u32, u32), Mark)>,
}

impl Tx<'_> {
    pub(super) fn log_moved(&self) {
        self.effects.borrow_mut().logs_moved = true;
    }

    pub(super) fn mark_moved(&self, node: u32, epoch: u32, mark: Mark) {
        self.effects.borrow_mut().marks.push(((node, epoch), mark));
    }
}

/// The write-ahead log, and what it takes to cut it back.
pub(super) struct Wal {
    pub(super) path: PathBuf,
    pub(super) bytes_max: u64,
    pub(super) readers: Arc<Readers>,
}

/// What the writer counts; read by the metrics page.
#[derive(Debug, Default)]
pub(crate) struct WriterMetrics {
    pub(crate) commits: AtomicU64,
    pub(crate) commands: AtomicU64,
    pub(crate) failed: AtomicU64,
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
    heads: watch::Receiver<Heads>,
    metrics: Arc<WriterMetrics>,
}

impl Writer {
    pub(super) fn start(
        conn: Connection,
        settings: StoreSettings,
        heads: Heads,
        marks: Arc<Marks>,
        wal: Wal,
    ) -> Result<Self, StoreError> {
        let (queue, jobs) = mpsc::channel(QUEUE_MAX);
        let (heads_tx, heads) = watch::channel(heads);
        let metrics = Arc::new(WriterMetrics::default());
        let worker = Worker {
            conn,
            jobs,
            settings,
            heads: heads_tx,
            marks,
            metrics: Arc::clone(&metrics),
            wal,
            // None only in a test without a runtime; then nobody is withheld.
            runtime: Handle::try_current().ok(),
            cut_not_before: Instant::now(),
        };
        let thread =
            std::thread::Builder::new().name("region-writer".to_owned()).spawn(move || worker.run())?;
        Ok(Self {
            queue: Arc::new(Mutex::new(Some(queue))),
            thread: Arc::new(Mutex::new(Some(thread))),
            heads,
            metrics,
        })
    }

    pub(super) fn log_heads(&self) -> watch::Receiver<Heads> {
        self.heads.clone()
    }

    pub(super) fn metrics(&self) -> &WriterMetrics {
        &self.metrics
    }

    pub(super) async fn submit<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Tx<'_>) -> Result<Decision<T>, StoreError> + Send + 'static,
    {
        let queue = self.queue.lock().clone().ok_or(StoreError::Closed)?;
        let (reply, answer) = oneshot::channel();
        let command: Box<dyn Job> = Box::new(Command { work: Some(work), outcome: None, reply });
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

/// A command without its types, as the queue carries it.
trait Job: Send {
    /// Runs inside the command's savepoint. True keeps its writes.
    fn run(&mut self, tx: &Tx<'_>) -> bool;
    /// Gives the answer. `failed` is why the shared transaction did not commit, if so.
    fn answer(self: Box<Self>, failed: Option<&str>);
}

struct Command<T, F> {
    work: Option<F>,
    outcome: Option<Result<T, StoreError>>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<T, F> Job for Command<T, F>
where
    T: Send,
    F: FnOnce(&Tx<'_>) -> Result<Decision<T>, StoreError> + Send,
{
    fn run(&mut self, tx: &Tx<'_>) -> bool {
        let work = self.work.take().expect("a command is run once");
        // A bug in one command must end that command, not the region's only writer. Its savepoint is rolled back.
        let (keep, outcome) = match catch_unwind(AssertUnwindSafe(|| work(tx))) {
            Ok(Ok(Decision::Keep(value))) => (true, Ok(value)),
            Ok(Ok(Decision::Undo(value))) => (false, Ok(value)),
            Ok(Err(error)) => (false, Err(error)),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
                (false, Err(StoreError::Panicked(text.to_owned())))
            }
        };
        self.outcome = Some(outcome);
        keep
    }

    fn answer(self: Box<Self>, failed: Option<&str>) {
        let outcome = match (failed, self.outcome) {
            (None, Some(outcome)) => outcome,
            (Some(reason), _) => Err(StoreError::NotCommitted(reason.to_owned())),
            (None, None) => Err(StoreError::NotCommitted("the command was not run".to_owned())),
        };
        // The caller may have gone; the work stands.
        let _delivered = self.reply.send(outcome);
    }
}

struct Worker {
    conn: Connection,
    jobs: mpsc::Receiver<Box<dyn Job>>,
    settings: StoreSettings,
    heads: watch::Sender<Heads>,
    marks: Arc<Marks>,
    metrics: Arc<WriterMetrics>,
    wal: Wal,
    runtime: Option<Handle>,
    /// After a cut that did not come off.
    cut_not_before: Instant,
}

impl Worker {
    fn run(mut self) {
        while let Some(first) = self.jobs.blocking_recv() {
            let started = Instant::now();
            let mut done = Vec::with_capacity(COMMANDS_PER_COMMIT_MAX);
            let mut effects = Effects::default();
            let committed = self.transaction(first, started, &mut done, &mut effects);
            if let Err(error) = &committed {
                tracing::error!(%error, commands = done.len(), "a commit of the store failed");
                if !self.conn.is_autocommit() {
                    let _ended = self.conn.execute_batch("ROLLBACK");
                }
            }
            let took = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.metrics.commit_us_last.store(took, Ordering::Relaxed);
            self.metrics.commits.fetch_add(1, Ordering::Relaxed);
            self.metrics.commands.fetch_add(done.len() as u64, Ordering::Relaxed);
            let failed = committed.err().map(|error| error.to_string());
            if failed.is_none() {
                self.publish(effects);
            } else {
                self.metrics.failed.fetch_add(done.len() as u64, Ordering::Relaxed);
            }
            for job in done {
                job.answer(failed.as_deref());
            }
            self.bound_wal();
        }
        if let Err((_, error)) = self.conn.close() {
            tracing::warn!(%error, "closing the store");
        }
    }

    /// Cuts the write-ahead log back when it is too long. Answers have gone out; the next commands wait a moment.
    fn bound_wal(&mut self) {
        let mut bytes = std::fs::metadata(&self.wal.path).map_or(0, |file| file.len());
        if bytes > self.wal.bytes_max && Instant::now() >= self.cut_not_before {
            if let Err(reason) = self.cut_wal() {
                tracing::warn!(bytes, reason, "the write-ahead log is not cut back");
                self.cut_not_before = Instant::now() + WAL_CUT_PAUSE;
            }
            bytes = std::fs::metadata(&self.wal.path).map_or(0, |file| file.len());
        }
        self.metrics.wal_bytes.store(bytes, Ordering::Relaxed);
    }

    fn cut_wal(&self) -> Result<(), String> {
        let withheld = match &self.runtime {
            Some(runtime) => runtime.block_on(self.wal.readers.withhold(WAL_READERS_WAIT_MAX)),
            None => None,
        };
        // A reader that goes on for longer, or one of another process (a backup): what can be moved is moved, and the
        // next try cuts.
        let mode = if withheld.is_some() { "TRUNCATE" } else { "PASSIVE" };
        let sql = format!("PRAGMA wal_checkpoint({mode})");
        let waits = |max| self.conn.busy_timeout(max).map_err(|e| e.to_string());
        waits(WAL_READERS_WAIT_MAX)?;
        let blocked = self.conn.query_row(&sql, [], |row| row.get::<_, bool>(0));
        waits(super::BUSY_TIMEOUT)?;
        match blocked {
            Ok(false) if withheld.is_some() => Ok(()),
            Ok(_) => Err("somebody is reading".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// One transaction: the first command and those that are already waiting. `done` gets each command that was
    /// taken from the queue, whatever became of it, so that each is answered.
    fn transaction(
        &mut self,
        first: Box<dyn Job>,
        started: Instant,
        done: &mut Vec<Box<dyn Job>>,
        effects: &mut Effects,
    ) -> Result<(), StoreError> {
        let mut next = Some(first);
        let begun = self.conn.execute_batch("BEGIN IMMEDIATE");
        while let Some(mut job) = next.take() {
            let ran = match &begun {
                Ok(()) => self.savepoint(job.as_mut(), effects),
                Err(_) => Ok(()),
            };
            done.push(job);
            ran?;
            if done.len() < COMMANDS_PER_COMMIT_MAX && started.elapsed() < COMMIT_FILL_MAX {
                next = self.jobs.try_recv().ok();
            }
        }
        begun?;
        self.conn.execute_batch("COMMIT")?;
        Ok(())
    }

    fn savepoint(&self, job: &mut dyn Job, effects: &mut Effects) -> Result<(), StoreError> {
        self.conn.execute_batch("SAVEPOINT command")?;
        let tx = Tx {
            sql: &self.conn,
            now_ms: clock::now_ms(),
            settings: &self.settings,
            effects: RefCell::default(),
        };
        if job.run(&tx) {
            let caused = tx.effects.into_inner();
            effects.logs_moved |= caused.logs_moved;
            effects.marks.extend(caused.marks);
            self.conn.execute_batch("RELEASE command")?;
        } else {
            // Some errors of SQLite (a full disk) end the whole transaction; then this fails too, and so does the commit.
            self.conn.execute_batch("ROLLBACK TO command; RELEASE command")?;
        }
        Ok(())
    }

    fn publish(&self, effects: Effects) {
        self.marks.advance(&effects.marks);
        if effects.logs_moved {
            match log::heads(&self.conn) {
                Ok(heads) => drop(self.heads.send_replace(heads)),
                Err(error) => tracing::error!(%error, "reading the log heads after a commit"),
            }
        }
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
                        let slow = |conn: &Connection| {
                            conn.query_row("SELECT count(*) FROM audit", [], |_| Ok(()))?;
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
