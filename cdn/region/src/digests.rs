//! What the rows of each log come to, for nodes to compare with theirs.
//!
//! To sum a log up is to read all of it. So it is done when somebody asks, for all who ask, and not more often than is written
//! below; until then the sum of a moment ago is the answer, with the version that it is of.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use souk_commerce::call::LogDigest;
use souk_replication::{Log, RowsDigest};
use tokio::sync::Mutex;

use crate::store::{Store, StoreError};

/// A log that moves all the time is summed up so often: nodes ask each minute.
const SUMMED_EVERY: Duration = Duration::from_secs(20);
/// And so many times as long as it takes are between two sums: one of a hundred million rows takes two minutes, and is not all
/// that a reader of the store ever does.
const REST_TIMES: u32 = 50;

struct Summed {
    version: u64,
    digest: RowsDigest,
    at: Instant,
    took: Duration,
}

impl Summed {
    fn may_be_renewed(&self, now: Instant) -> bool {
        now.duration_since(self.at) >= SUMMED_EVERY.max(self.took * REST_TIMES)
    }
}

pub(crate) struct Digests {
    store: Store,
    region_epoch: u32,
    /// Held while one sums up; the others then find it there.
    summed: Mutex<HashMap<Log, Summed>>,
}

impl Digests {
    pub(crate) fn new(store: Store, region_epoch: u32) -> Self {
        Self { store, region_epoch, summed: Mutex::default() }
    }

    /// Of every log that has rows, and of a moment ago.
    pub(crate) async fn recent(&self) -> Result<Vec<LogDigest>, StoreError> {
        self.all(Summed::may_be_renewed).await
    }

    /// Of every log that has rows, as they are now.
    pub(crate) async fn now(&self) -> Result<Vec<LogDigest>, StoreError> {
        self.all(|_, _| true).await
    }

    async fn all(&self, may_be_renewed: fn(&Summed, Instant) -> bool) -> Result<Vec<LogDigest>, StoreError> {
        let mut summed = self.summed.lock().await;
        let heads = *self.store.log_heads().borrow();
        let mut all = Vec::with_capacity(Log::COUNT);
        // Of purges nothing is kept but that they were.
        for log in Log::ALL.into_iter().filter(|log| *log != Log::Purge) {
            let began = Instant::now();
            let stands = summed
                .get(&log)
                .is_some_and(|known| known.version == heads.get(log) || !may_be_renewed(known, began));
            if !stands {
                let (version, digest) = self.store.digest(log).await?;
                let now = Instant::now();
                summed.insert(log, Summed { version, digest, at: now, took: now.duration_since(began) });
            }
            if let Some(Summed { version, digest, .. }) = summed.get(&log) {
                all.push(LogDigest {
                    log: log.code(),
                    region_epoch: self.region_epoch,
                    version: *version,
                    rows: digest.rows(),
                    sum: digest.sum(),
                });
            }
        }
        Ok(all)
    }
}
