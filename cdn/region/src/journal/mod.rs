//! What merchants' plugins did, kept for the merchants: a ring of entries and one of recorded calls per site.
//!
//! In a file of its own, `journal.db`: nothing is decided from it, so neither its size, nor its speed, nor its loss may
//! touch the store. Written by nodes ([`crate::uplink`]) and by the region's own checkouts, read through the control API.
//! Each site has its own numbers, its own bounds and its own readers; there is no question that two sites' entries answer.
//!
//! What this module refuses to know: who may read, and what is in a recording.
//!
//! Reading order: [`ring`] (tables and bounds), [`writer`], [`read`].

mod read;
mod ring;
#[cfg(test)]
mod tests;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::Connection;
use souk_commerce::call::JournalBatch;
use souk_commerce::id::{NodeId, SiteId};
use souk_commerce::journal::{CallId, Entry, RecordingBlob, Source};
use souk_sandbox::record::{Recorder, Recording};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::own;
use crate::store::StoreError;
use crate::store::readers::Readers;
pub(crate) use read::{Filter, Kind, Page, Recorded};
use ring::Ring;
pub(crate) use writer::JournalCounts;
use writer::{Command, Followed, Lost, QUEUE_MAX, Worker};

/// Its name in the data folder.
const FILE: &str = "journal.db";
/// How long anything is kept, if its ring is not full before.
const KEPT_MAX: Duration = Duration::from_secs(7 * 24 * 3_600);
/// How often old things are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(600);
/// A node that cannot hand in its batch for so long asks again later.
const QUEUE_WAIT_MAX: Duration = Duration::from_secs(5);
/// Who waits for something new at a time, all sites together: each holds one of the control API's 256 connections.
const FOLLOWERS_MAX: usize = 128;
/// And of one site: a team, with a window each.
const FOLLOWERS_OF_SITE_MAX: usize = 16;

/// A handle; clones share the writer and the readers.
#[derive(Clone)]
pub(crate) struct Journal(Arc<Shared>);

struct Shared {
    queue: Mutex<Option<mpsc::Sender<Command>>>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
    readers: Arc<Readers<Connection>>,
    counts: Arc<JournalCounts>,
    followed: Followed,
    followers: Semaphore,
    lost: Lost,
    shutdown: CancellationToken,
}

impl Journal {
    /// Takes the file in `dir` away, if there is one: of a region that has no plugins called any more, nobody sweeps it.
    pub(crate) fn remove(dir: &Path) -> std::io::Result<()> {
        for ending in ["", "-wal", "-shm"] {
            match std::fs::remove_file(dir.join(format!("{FILE}{ending}"))) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Opens or makes the file in `dir`. Blocks on the disk. Whoever follows stops at `shutdown`.
    pub(crate) fn open(dir: &Path, shutdown: CancellationToken) -> Result<Self, StoreError> {
        own::folder(dir)?;
        let path = dir.join(FILE);
        own::file(&path)?;
        let conn = Connection::open(&path)?;
        conn.busy_timeout(Duration::from_secs(5))?;
        conn.pragma_update(None, "trusted_schema", false)?;
        let ring = Ring::open(conn)?;
        let readers = Arc::new(Readers::of_file(path)?);
        let (queue, commands) = mpsc::channel(QUEUE_MAX);
        let (counts, followed, lost) =
            (Arc::<JournalCounts>::default(), Followed::default(), Lost::default());
        let worker = Worker {
            ring,
            commands,
            counts: Arc::clone(&counts),
            followed: Arc::clone(&followed),
            lost: Arc::clone(&lost),
        };
        let thread =
            std::thread::Builder::new().name("region-journal".to_owned()).spawn(move || worker.run())?;
        Ok(Self(Arc::new(Shared {
            queue: Mutex::new(Some(queue)),
            thread: Mutex::new(Some(thread)),
            readers,
            counts,
            followed,
            followers: Semaphore::new(FOLLOWERS_MAX),
            lost,
            shutdown,
        })))
    }

    pub(crate) fn counts(&self) -> &JournalCounts {
        &self.0.counts
    }

    /// Writes a node's entries down; answers when they are there. The same batch again changes nothing.
    pub(crate) async fn write_batch(&self, node: NodeId, batch: JournalBatch) -> Result<(), StoreError> {
        self.submit(|reply| Command::Batch { node, batch, reply }).await
    }

    /// Keeps a recorded call; answers when it is there. The same again changes nothing.
    pub(crate) async fn keep(
        &self,
        node: Option<NodeId>,
        recording: RecordingBlob,
    ) -> Result<(), StoreError> {
        self.submit(|reply| Command::Recording { node, recording, reply }).await
    }

    /// Takes out the site's recordings of calls about erased carts; answers when they are gone.
    pub(crate) async fn erase(&self, site: SiteId, seeds: Vec<u64>) -> Result<(), StoreError> {
        let seeds = seeds.into_iter().collect();
        self.submit(|reply| Command::Erase { site, seeds, reply }).await
    }

    /// Writes down what the region's own plugin calls have to tell. Never waits: what finds no room is counted.
    pub(crate) fn write(&self, entries: Vec<Entry>) {
        let Some(site) = entries.first().map(|entry| entry.site.clone()) else { return };
        let count = entries.len() as u64;
        let queue = self.0.queue.lock().clone();
        if queue.is_none_or(|queue| queue.try_send(Command::Own(entries)).is_err()) {
            self.0.counts.dropped.fetch_add(count, Ordering::Relaxed);
            *self.0.lost.lock().entry(site).or_default() += count;
        }
    }

    /// Keeps a call that the region itself has made. Never waits: what finds no room is counted.
    fn keep_own(&self, recording: RecordingBlob) {
        let site = recording.site.clone();
        let queue = self.0.queue.lock().clone();
        // Nobody waits for the answer; what goes wrong is in the writer's log.
        let (reply, _nobody) = oneshot::channel();
        let command = Command::Recording { node: None, recording, reply };
        if queue.is_none_or(|queue| queue.try_send(command).is_err()) {
            self.0.counts.dropped.fetch_add(1, Ordering::Relaxed);
            *self.0.lost.lock().entry(site).or_default() += 1;
        }
    }

    async fn submit(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<(), StoreError>>) -> Command,
    ) -> Result<(), StoreError> {
        let queue = self.0.queue.lock().clone().ok_or(StoreError::Closed)?;
        let (reply, answer) = oneshot::channel();
        match tokio::time::timeout(QUEUE_WAIT_MAX, queue.send(command(reply))).await {
            Ok(Ok(())) => answer.await.unwrap_or(Err(StoreError::Closed)),
            Ok(Err(_)) => Err(StoreError::Closed),
            Err(_) => Err(StoreError::Busy),
        }
    }

    /// The site's entries after `after`, or the newest. With a `wait`, waits so long for the first one.
    ///
    /// Cancel safe. [`StoreError::Busy`]: too many wait already.
    pub(crate) async fn entries(
        &self,
        site: &SiteId,
        filter: Filter,
        after: Option<u64>,
        limit: usize,
        wait: Duration,
    ) -> Result<Page, StoreError> {
        // Before the first look: what is written between the look and the wait must end the wait.
        let following = if wait.is_zero() { None } else { Some(self.follow(site)?) };
        let mut page = self.page(site, &filter, after, limit).await?;
        let Some((_place, mut head)) = following else { return Ok(page) };
        let until = tokio::time::Instant::now() + wait;
        while page.entries.is_empty() {
            if !page.more && !self.moves_beyond(page.after, &mut head, until).await {
                break;
            }
            page = self.page(site, &filter, Some(page.after), limit).await?;
        }
        Ok(page)
    }

    /// Waits until something stands behind the entry `after`; false: nothing came.
    async fn moves_beyond(
        &self,
        after: u64,
        head: &mut watch::Receiver<u64>,
        until: tokio::time::Instant,
    ) -> bool {
        // Looks at what there is before it waits: something may have come since the page was read.
        let news = head.wait_for(|next| *next > after.saturating_add(1));
        tokio::select! {
            news = tokio::time::timeout_at(until, news) => matches!(news, Ok(Ok(_))),
            () = self.0.shutdown.cancelled() => false,
        }
    }

    async fn page(
        &self,
        site: &SiteId,
        filter: &Filter,
        after: Option<u64>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        let (site, filter) = (site.clone(), filter.clone());
        Arc::clone(&self.0.readers).run(move |conn| read::entries(conn, &site, &filter, after, limit)).await
    }

    /// A place among the followers, and the number after the site's newest entry as it moves.
    fn follow(
        &self,
        site: &SiteId,
    ) -> Result<(tokio::sync::SemaphorePermit<'_>, watch::Receiver<u64>), StoreError> {
        let place = self.0.followers.try_acquire().map_err(|_| StoreError::Busy)?;
        let mut followed = self.0.followed.lock();
        let head = followed.entry(site.clone()).or_insert_with(|| watch::Sender::new(0));
        if head.receiver_count() >= FOLLOWERS_OF_SITE_MAX {
            return Err(StoreError::Busy);
        }
        Ok((place, head.subscribe()))
    }

    /// The site's recorded calls, the newest first, and where to go on if there are more.
    pub(crate) async fn recordings(
        &self,
        site: SiteId,
        filter: Filter,
        before: Option<CallId>,
        limit: usize,
    ) -> Result<(Vec<Recorded>, Option<CallId>), StoreError> {
        Arc::clone(&self.0.readers)
            .run(move |conn| read::recordings(conn, &site, &filter, before, limit))
            .await
    }

    pub(crate) async fn recording(&self, site: SiteId, call: CallId) -> Result<Option<Vec<u8>>, StoreError> {
        Arc::clone(&self.0.readers).run(move |conn| read::recording(conn, &site, call)).await
    }

    /// Takes out what is too old, until shutdown.
    pub(crate) async fn keep_tidy(self, shutdown: CancellationToken) {
        while shutdown.run_until_cancelled(tokio::time::sleep(SWEEP_EVERY)).await.is_some() {
            let kept_ms = u64::try_from(KEPT_MAX.as_millis()).unwrap_or(u64::MAX);
            self.sweep(clock::now_ms().saturating_sub(kept_ms));
            // Sites that nobody follows any more and that are silent.
            self.0.followed.lock().retain(|_, head| !head.is_closed());
        }
    }

    fn sweep(&self, before_ms: u64) {
        let queue = self.0.queue.lock().clone();
        // A full queue means that rings are being filled; the next time is early enough.
        if let Some(queue) = queue {
            let _later = queue.try_send(Command::Sweep { before_ms });
        }
    }

    /// Takes no more, finishes what was accepted, closes the file. Blocks until the writer has ended.
    pub(crate) fn close(&self) {
        drop(self.0.queue.lock().take());
        let thread = self.0.thread.lock().take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the journal's writer panicked");
        }
    }
}

impl Recorder for Journal {
    fn take(&self, id: CallId, recording: Recording) {
        let source = Source {
            plugin: recording.plugin.clone(),
            release: recording.release,
            hook: Some(recording.hook),
        };
        let (site, at_ms) = (recording.site.clone(), recording.context.now_ms);
        self.keep_own(RecordingBlob { id, site, source, at_ms, bytes: recording.encode() });
    }
}
