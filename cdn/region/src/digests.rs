//! What the rows of each log come to, for nodes to compare with theirs.
//!
//! To sum a log up is to read all of it. So it is done when somebody asks, for all who ask, and not more often than is written
//! below; until then the sum of a moment ago is the answer, with the version that it is of.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use souk_commerce::call::LogDigest;
use souk_replication::{Log, RowsDigest};
use tokio::sync::Mutex;

use crate::store::Store;

/// A log that moves all the time is summed up so often: nodes ask each minute.
const SUMMED_EVERY: Duration = Duration::from_secs(20);
/// And so many times as long as it takes are between two sums: one of a hundred million rows takes two minutes, and is not all
/// that a reader of the store ever does.
const REST_TIMES: u32 = 50;

/// So long a question waits for a sum. Most are there sooner; the rest is for the next one, a minute later.
const WAITED_MAX: Duration = Duration::from_secs(2);

struct Summed {
    version: u64,
    digest: RowsDigest,
    at: Instant,
    took: Duration,
}

impl Summed {
    fn is_due(&self, head: u64, now: Instant) -> bool {
        self.version != head && now.duration_since(self.at) >= SUMMED_EVERY.max(self.took * REST_TIMES)
    }
}

/// A handle; clones share the sums.
#[derive(Clone)]
pub(crate) struct Digests {
    store: Store,
    region_epoch: u32,
    known: Arc<parking_lot::Mutex<HashMap<Log, Summed>>>,
    /// Held by the one task that sums up.
    summing: Arc<Mutex<()>>,
}

impl Digests {
    pub(crate) fn new(store: Store, region_epoch: u32) -> Self {
        Self { store, region_epoch, known: Arc::default(), summing: Arc::default() }
    }

    /// Of every log that has been summed up. A log that has moved is summed up for whoever asks next, if that takes long.
    pub(crate) async fn recent(&self) -> Vec<LogDigest> {
        let heads = *self.store.log_heads().borrow();
        let now = Instant::now();
        let is_due = {
            let known = self.known.lock();
            logs().any(|log| known.get(&log).is_none_or(|known| known.is_due(heads.get(log), now)))
        };
        // In a task of its own: a question that is given up does not take what was read so far with it, to be begun again by the
        // next one.
        if is_due && let Ok(turn) = Arc::clone(&self.summing).try_lock_owned() {
            let this = self.clone();
            let summing = tokio::spawn(async move {
                this.sum_up(Summed::is_due).await;
                drop(turn);
            });
            let _ = tokio::time::timeout(WAITED_MAX, summing).await;
        }
        self.told()
    }

    /// Of every log, as they are now.
    pub(crate) async fn now(&self) -> Vec<LogDigest> {
        let turn = Arc::clone(&self.summing).lock_owned().await;
        let this = self.clone();
        let summing = tokio::spawn(async move {
            this.sum_up(|known, head, _| known.version != head).await;
            drop(turn);
        });
        if let Err(stopped) = summing.await {
            tracing::error!(%stopped, "the logs were not summed up");
        }
        self.told()
    }

    async fn sum_up(&self, is_due: fn(&Summed, u64, Instant) -> bool) {
        for log in logs() {
            let began = Instant::now();
            let head = self.store.log_heads().borrow().get(log);
            if !self.known.lock().get(&log).is_none_or(|known| is_due(known, head, began)) {
                continue;
            }
            match self.store.digest(log).await {
                Ok((version, digest)) => {
                    let now = Instant::now();
                    let summed = Summed { version, digest, at: now, took: now.duration_since(began) };
                    self.known.lock().insert(log, summed);
                }
                Err(error) => tracing::warn!(%log, %error, "a log cannot be summed up now"),
            }
        }
    }

    fn told(&self) -> Vec<LogDigest> {
        let known = self.known.lock();
        let told = logs().filter_map(|log| {
            let Summed { version, digest, .. } = known.get(&log)?;
            Some(LogDigest {
                log: log.code(),
                region_epoch: self.region_epoch,
                version: *version,
                rows: digest.rows(),
                sum: digest.sum(),
            })
        });
        told.collect()
    }
}

/// Of purges nothing is kept but that they were.
fn logs() -> impl Iterator<Item = Log> {
    Log::ALL.into_iter().filter(|log| *log != Log::Purge)
}
