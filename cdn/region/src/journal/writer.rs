//! The journal's writer: one thread, many batches per commit. Answers go out after the commit.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use souk_commerce::call::JournalBatch;
use souk_commerce::id::{NodeId, SiteId};
use souk_commerce::journal::{Entry, Event, RecordingBlob};
use tokio::sync::{mpsc, oneshot, watch};

use super::ring::Ring;
use crate::clock;
use crate::store::StoreError;

/// Commands waiting: each is a batch of at most 64 KiB or a recording of at most 256 KiB, so 32 MiB at most.
pub(super) const QUEUE_MAX: usize = 128;
/// Commands per commit.
const COMMANDS_PER_COMMIT_MAX: usize = 64;

/// Something to write down.
pub(super) enum Command {
    Batch {
        node: NodeId,
        batch: JournalBatch,
        reply: oneshot::Sender<Result<(), StoreError>>,
    },
    Recording {
        node: Option<NodeId>,
        recording: RecordingBlob,
        reply: oneshot::Sender<Result<(), StoreError>>,
    },
    /// Of the region's own plugin calls. Nobody waits.
    Own(Vec<Entry>),
    Sweep {
        before_ms: u64,
    },
    /// Recordings of calls with these seeds: their shopper was erased.
    Erase {
        site: SiteId,
        seeds: HashSet<u64>,
        reply: oneshot::Sender<Result<(), StoreError>>,
    },
}

/// What the journal counts; read by the metrics page.
#[derive(Debug, Default)]
pub(crate) struct JournalCounts {
    pub(crate) entries: AtomicU64,
    pub(crate) recordings: AtomicU64,
    /// Entries of the region's own plugin calls that found the queue full.
    pub(crate) dropped: AtomicU64,
    pub(crate) failed_commits: AtomicU64,
    pub(crate) bytes: AtomicU64,
}

/// Sites that somebody follows, with the number after their newest entry.
pub(super) type Followed = Arc<Mutex<HashMap<SiteId, watch::Sender<u64>>>>;
/// Entries of the region's own that found no room, by site, until the next write tells of them.
pub(super) type Lost = Arc<Mutex<BTreeMap<SiteId, u64>>>;

pub(super) struct Worker {
    pub(super) ring: Ring,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) counts: Arc<JournalCounts>,
    pub(super) followed: Followed,
    pub(super) lost: Lost,
}

/// What a command is answered once the transaction is on the disk.
type Answer = Option<oneshot::Sender<Result<(), StoreError>>>;

impl Worker {
    pub(super) fn run(mut self) {
        self.counts.bytes.store(self.ring.bytes(), Ordering::Relaxed);
        while let Some(first) = self.commands.blocking_recv() {
            let mut answers: Vec<Answer> = Vec::with_capacity(COMMANDS_PER_COMMIT_MAX);
            let outcome = self.transaction(first, &mut answers);
            let failed = match outcome {
                Ok(heads) => {
                    self.publish(&heads);
                    None
                }
                Err(error) => {
                    tracing::error!(%error, commands = answers.len(), "a commit of the journal failed");
                    self.counts.failed_commits.fetch_add(1, Ordering::Relaxed);
                    self.ring.roll_back();
                    Some(error.to_string())
                }
            };
            self.counts.bytes.store(self.ring.bytes(), Ordering::Relaxed);
            for answer in answers.into_iter().flatten() {
                let outcome = failed.clone().map_or(Ok(()), |why| Err(StoreError::NotCommitted(why)));
                // The node may have gone; the work stands.
                let _delivered = answer.send(outcome);
            }
        }
        if let Err((_, error)) = self.ring.conn.close() {
            tracing::warn!(%error, "closing the journal");
        }
    }

    fn transaction(
        &mut self,
        first: Command,
        answers: &mut Vec<Answer>,
    ) -> Result<Vec<(SiteId, u64)>, StoreError> {
        let now_ms = clock::now_ms();
        let mut next = Some(first);
        let begun = self.ring.begin();
        let (mut entries, mut recordings, mut cut) = (0, 0, false);
        while let Some(command) = next.take() {
            let written = match command {
                Command::Batch { node, batch, reply } => {
                    answers.push(Some(reply));
                    begun.is_ok().then(|| self.ring.write_batch(node, batch, now_ms)).map(|new| {
                        entries += new?;
                        Ok(())
                    })
                }
                Command::Recording { node, recording, reply } => {
                    answers.push(Some(reply));
                    begun.is_ok().then(|| self.ring.keep(node, recording, now_ms)).map(|kept| {
                        recordings += u64::from(kept?);
                        Ok(())
                    })
                }
                Command::Own(own) => {
                    answers.push(None);
                    entries += own.len() as u64;
                    begun
                        .is_ok()
                        .then(|| own.into_iter().try_for_each(|entry| self.ring.write(entry, now_ms)))
                }
                Command::Sweep { before_ms } => {
                    answers.push(None);
                    begun.is_ok().then(|| self.ring.sweep(before_ms))
                }
                Command::Erase { site, seeds, reply } => {
                    answers.push(Some(reply));
                    cut = true;
                    begun.is_ok().then(|| self.ring.erase(&site, &seeds))
                }
            };
            written.transpose()?;
            if answers.len() < COMMANDS_PER_COMMIT_MAX {
                next = self.commands.try_recv().ok();
            }
        }
        begun?;
        self.tell_of_lost(now_ms)?;
        let heads = self.ring.commit()?;
        if cut {
            self.ring.cut_log();
        }
        self.counts.entries.fetch_add(entries, Ordering::Relaxed);
        self.counts.recordings.fetch_add(recordings, Ordering::Relaxed);
        Ok(heads)
    }

    /// Holes in what the region itself has to tell.
    fn tell_of_lost(&mut self, now_ms: u64) -> Result<(), StoreError> {
        let lost = std::mem::take(&mut *self.lost.lock());
        for (site, count) in lost {
            let event = Event::Dropped { count };
            let hole = Entry { site, at_ms: now_ms, node: None, source: None, call: None, event };
            self.ring.write(hole, now_ms)?;
        }
        Ok(())
    }

    fn publish(&self, heads: &[(SiteId, u64)]) {
        let mut followed = self.followed.lock();
        for (site, next) in heads {
            if let Some(head) = followed.get(site) {
                if head.is_closed() {
                    followed.remove(site);
                } else {
                    head.send_replace(*next);
                }
            }
        }
    }
}
