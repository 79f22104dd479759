//! How the committer forgets carts for good: their rows, what is left of them in the outbox, and the bytes in the file.

use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::CommitError;
use super::carts::CartGuard;
use super::committer::{Committer, Gate};
use super::outbox::{self, Draft, Erased, Renewed};

/// How soon a file that could not be written anew is tried again.
const RENEW_AGAIN: Duration = Duration::from_secs(30);

impl Committer {
    /// Forgets carts for good: they are gone from the tables, and what is left of them from the file. What is still in the
    /// outbox goes to the region, which drops it; when it is acknowledged, the file is written anew once more.
    pub(super) fn erase(&mut self, carts: &[CartGuard], told: &Erased) -> Result<(), CommitError> {
        self.gate.borrow().check()?;
        let keys: Vec<_> = carts.iter().map(|guard| guard.key().clone()).collect();
        let written = (|| {
            let db = self.db.read();
            let Some(db) = db.as_ref() else { return Err(redb::Error::DatabaseClosed) };
            let txn = db.begin_write()?;
            let mut draft = Draft::new(&txn, self.facts)?;
            draft.forget(&keys)?;
            draft.forget_about(told)?;
            let facts = draft.finish()?;
            txn.commit()?;
            Ok(facts)
        })();
        let facts = match written {
            Ok(facts) => facts,
            Err(error) => return Err(self.learn(error)),
        };
        keys.iter().for_each(|key| self.carts.invalidate(key));
        self.publish(facts);
        self.renew().map_err(|error| CommitError::DiskFailed(error.to_string()))
    }

    /// What the region has acknowledged is kept for a day for one that comes back from a backup. Erasing goes before.
    fn forget_kept_to(&mut self, upto: u64) -> Result<(), redb::Error> {
        let facts = {
            let db = self.db.read();
            let Some(db) = db.as_ref() else { return Err(redb::Error::DatabaseClosed) };
            let txn = db.begin_write()?;
            let mut draft = Draft::new(&txn, self.facts)?;
            draft.forget_kept_to(upto)?;
            let facts = draft.finish()?;
            txn.commit()?;
            facts
        };
        self.publish(facts);
        Ok(())
    }

    /// Writes the file anew, and overwrites the old one. If the new one does not come about, nothing is changed. Once it has the
    /// name it is the one that is written to, whatever happens: what went into the old one would be found by nobody.
    fn renew(&mut self) -> Result<(), redb::Error> {
        let began = Instant::now();
        let renewed = match self.db.read().as_ref() {
            Some(db) => self.disk.renew(db)?,
            None => return Err(redb::Error::DatabaseClosed),
        };
        let Some(Renewed { db, old }) = renewed else { return Ok(()) };
        let before = self.db.write().replace(db);
        // It writes to its file when it is closed: only then is that overwritten.
        drop(before);
        self.unwiped = Some(old);
        if let Err(error) = self.settle() {
            tracing::error!(%error, "the power may take its name from the new state.redb: writes are refused, reads go on");
            self.stats.failures.fetch_add(1, Ordering::Relaxed);
            self.gate.send_replace(Gate::Failed(error.to_string()));
            self.looked = Some(self.now);
            return Err(redb::Error::Io(error));
        }
        let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.stats.renewals.fetch_add(1, Ordering::Relaxed);
        self.stats.renewal_micros.fetch_add(micros, Ordering::Relaxed);
        Ok(())
    }

    /// Makes sure that the new file keeps its name, and overwrites the one that had it before.
    pub(super) fn settle(&mut self) -> io::Result<()> {
        if self.unwiped.is_none() {
            return Ok(());
        }
        self.disk.settle()?;
        // One that cannot be overwritten is given up: it has no name, and there is a new one at the next try.
        self.unwiped.take().map_or(Ok(()), |mut old| outbox::wipe(&mut old))
    }

    /// The operations that an erasure has left in the outbox are with the region.
    pub(super) fn renew_late(&mut self) {
        if *self.gate.borrow() != Gate::Open || self.renew_not_before.is_some_and(|at| self.now < at) {
            return;
        }
        let upto = self.facts.renew_after.unwrap_or_default();
        if let Err(error) = self.forget_kept_to(upto).and_then(|()| self.renew()) {
            tracing::warn!(%error, "state.redb cannot be written anew: bytes of erased carts are still in it; trying again");
            self.renew_not_before = Some(self.now + RENEW_AGAIN);
            return;
        }
        // Last: a crash before it writes the file anew once more.
        let written = (|| {
            let db = self.db.read();
            let Some(db) = db.as_ref() else { return Err(redb::Error::DatabaseClosed) };
            let txn = db.begin_write()?;
            let mut draft = Draft::new(&txn, self.facts)?;
            draft.facts.renew_after = None;
            let facts = draft.finish()?;
            txn.commit()?;
            Ok(facts)
        })();
        match written {
            Ok(facts) => self.publish(facts),
            Err(error) => {
                self.learn(error);
            }
        }
    }
}
