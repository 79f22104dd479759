//! What is taken back: single keys after an unsafe request, and whatever was made from something that was purged.

use std::sync::atomic::Ordering;

use http::HeaderMap;

use super::{Began, Cache, Purged};
use crate::asked::Asked;
use crate::key::Key;
use crate::purge::{Purge, Scope};
use crate::tags;

impl Cache {
    /// Drops what is stored for `key`, and keeps what is being fetched for it from being stored: it may be older than
    /// the change that made this necessary.
    pub fn invalidate(&self, key: &Key) {
        let flights = self.0.flights.lock().remove(key);
        for flight in flights.into_iter().flatten() {
            flight.doomed.store(true, Ordering::Release);
        }
        self.0.shelf.update(key.clone(), &mut |_| {
            self.0.forget_on_disk(key);
            None
        });
        self.0.remembered.invalidate(key);
    }

    /// Drops of what is stored for `key` that whose fields say so. What is being fetched goes on: it may be what takes its
    /// place.
    pub fn invalidate_where(&self, key: &Key, is_gone: impl Fn(&HeaderMap) -> bool) {
        self.0.shelf.update(key.clone(), &mut |held| {
            let Some(held) = held else {
                // The memory may have let go of it, and the disk not.
                self.0.forget_on_disk(key);
                return None;
            };
            let gone: Vec<_> = held.entries().filter(|entry| is_gone(&entry.headers)).cloned().collect();
            if !gone.is_empty() {
                self.0.forget_on_disk(key);
            }
            gone.iter().try_fold(held.clone(), |rest, entry| rest.without(entry))
        });
    }

    /// What made `key` uncacheable is over: the next request asks like the first one.
    pub fn forget_uncacheable(&self, key: &Key) {
        self.0.remembered.invalidate(key);
    }

    /// Resolves when every invalidation up to now outlives a restart of this process and of its machine. It holds for
    /// look-ups at once, so only who acknowledges it to somebody waits for this. False where it cannot be promised:
    /// another process has the folder, or its disk hangs or failed.
    pub async fn persisted(&self) -> bool {
        match &self.0.disk {
            Some(disk) => disk.persisted().await,
            None => true,
        }
    }

    /// Takes back what was made from any of these, in one step: nothing of it is sent to a request that begins after this
    /// has returned, and what is being fetched for it is not taken for new. Costs the same however much is stored.
    ///
    /// Returns the number of the step, of those of this process. The disk writes it down behind what it has: who
    /// acknowledges it waits for [`persisted`](Self::persisted).
    pub fn purge(&self, now_ms: u64, purges: &[Purge]) -> u64 {
        let step = self.0.purges.apply(now_ms, purges);
        let number = self.0.purges.count_of(&step);
        if let Some(disk) = &self.0.disk {
            // After the table: what is judged from here on is judged by it, and what was before is written by now or
            // waits behind this.
            disk.purge(step);
        }
        number
    }

    /// Now, in the order of purges. Permits take it by themselves.
    pub fn begin(&self) -> Began {
        Began(self.0.purges.number())
    }

    /// The groups that the answer to an unsafe request says it has changed (RFC 9875 section 3) are fetched anew.
    pub fn invalidate_groups(&self, now_ms: u64, asked: &Asked, response: &HeaderMap) {
        let groups = tags::changed_groups(response, &asked.key);
        if !groups.is_empty() {
            let purges = groups.into_iter().map(|tag| Purge { scope: Scope::Tag(tag), soft: false });
            self.purge(now_ms, &purges.collect::<Vec<_>>());
        }
    }

    pub fn purged(&self) -> Purged {
        let [gone, softened] = &self.0.purged;
        let (names, prefixes) = self.0.purges.size();
        Purged {
            steps: self.0.purges.steps(),
            entries_gone: gone.load(Ordering::Relaxed),
            entries_softened: softened.load(Ordering::Relaxed),
            names: (names + prefixes) as u64,
        }
    }
}
