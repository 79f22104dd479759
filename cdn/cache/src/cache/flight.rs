//! Fetches under way: who may wait for one or join it, and how one leaves the table.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

use super::stock::Found;
use super::{Cache, Failure, Inner};
use crate::asked::Asked;
use crate::entry::{Entry, Resource};
use crate::hit::Hit;
use crate::key::Key;
use crate::purge::Verdict;
use crate::reason::PassReason;
use crate::vary::Variant;

/// Requests that may wait for heads of responses at once, over all keys. A request costs about 10 KiB: 160 MiB.
const WAITERS_MAX: usize = 16_384;

/// What a request does with a flight that is for it.
pub(super) enum Boarding {
    /// It has an answer already, and leaves the flight to refresh it.
    Send(Hit),
    Join(Arc<Entry>),
    Wait(watch::Receiver<Phase>),
    /// The key was uncacheable, and the flight finds out whether it still is: it goes as if there were none.
    Pass,
    /// It starts one of its own.
    Alone,
}

impl Found {
    pub(super) fn aboard(&self, flight: &Flight, cache: &Cache, now_ms: u64, asked: &Asked) -> Boarding {
        if let Some(hit) = self.stale_hit() {
            return Boarding::Send(hit);
        }
        let phase = flight.phase.subscribe();
        // The head may have come since the flight was found to fit, and may vary by more than was known then. Who waits
        // for a head that is there looks again at once.
        match &*phase.borrow() {
            Phase::Growing(entry) if cache.may_join(entry, asked) => {
                return Boarding::Join(Arc::clone(entry));
            }
            _ => {}
        }
        // Credentials, and entries that ask each time: the answer to one is hardly ever for another.
        let asks_each_time = self.entry.as_ref().is_some_and(|entry| entry.freshness.asks_each_time());
        if asked.is_authorized() || asks_each_time {
            return Boarding::Alone;
        }
        if self.is_doubted(cache, &asked.key, now_ms) { Boarding::Pass } else { Boarding::Wait(phase) }
    }

    /// Whether nobody is to wait for whoever finds out what the answer is now. What is doubted belongs to the key, of which one
    /// shopper's variant may have been private: where something of this very variant is stored, its answer was everybody's.
    pub(super) fn is_doubted(&self, cache: &Cache, key: &Key, now_ms: u64) -> bool {
        self.entry.is_none() && cache.0.is_doubted(key, now_ms)
    }
}

impl Cache {
    /// Whether a request may read along with a response that is arriving.
    pub(super) fn may_join(&self, entry: &Entry, asked: &Asked) -> bool {
        let judged = self.0.purges.judge(&asked.key, &entry.birth);
        entry.variant.matches(&asked.headers) && judged == Verdict::Valid
    }

    /// The fetch under way that a request may wait for or join.
    pub(super) fn of_use(&self, flights: &[Arc<Flight>], asked: &Asked) -> Option<Arc<Flight>> {
        flights.iter().find(|flight| flight.is_for(asked) && self.holds(flight, asked)).cloned()
    }

    /// Whether a flight is of use to a request that comes now. Of one whose head has not come nothing is known yet.
    fn holds(&self, flight: &Flight, asked: &Asked) -> bool {
        match &*flight.phase.borrow() {
            Phase::Growing(entry) => self.may_join(entry, asked),
            _ => true,
        }
    }
}

impl Inner {
    /// Takes a flight off the table.
    pub(super) fn land(&self, key: &Key, flight: &Arc<Flight>) {
        let mut flights = self.flights.lock();
        if let Some(list) = flights.get_mut(key) {
            list.retain(|held| !Arc::ptr_eq(held, flight));
            if list.is_empty() {
                flights.remove(key);
            }
        }
    }
}

/// One fetch under way.
pub(super) struct Flight {
    /// The variant it is for, by the fields that were known to matter when it started.
    variant: Variant,
    /// Whether others may wait for it and join it.
    pub(super) joinable: bool,
    /// Something was invalidated since it started: its response is not stored.
    pub(super) doomed: AtomicBool,
    pub(super) phase: watch::Sender<Phase>,
}

#[derive(Clone)]
pub(super) enum Phase {
    Waiting,
    Growing(Arc<Entry>),
    Confirmed(Arc<Entry>),
    /// The response may not be shared, for this reason.
    Alone(PassReason),
    /// The response is stored, but each use of it needs the upstream.
    NotShared,
    Failed(Failure),
    Dropped,
}

impl Flight {
    pub(super) fn new(
        asked: &Asked,
        resource: Option<&Resource>,
        flights: &[Arc<Self>],
        joinable: bool,
    ) -> Arc<Self> {
        let mut names = resource.map(Resource::names).unwrap_or_default();
        for flight in flights {
            if let Phase::Growing(entry) = &*flight.phase.borrow() {
                names.extend(
                    entry.variant.names().filter(|name| !names.contains(name)).cloned().collect::<Vec<_>>(),
                );
            }
        }
        Arc::new(Self {
            variant: Variant::named(names, &asked.headers, asked.policy.negotiate_languages),
            joinable,
            doomed: AtomicBool::new(false),
            phase: watch::Sender::new(Phase::Waiting),
        })
    }

    /// Whether a request may wait for this flight or join it.
    pub(super) fn is_for(&self, asked: &Asked) -> bool {
        self.joinable
            && match &*self.phase.borrow() {
                Phase::Growing(entry) => entry.variant.matches(&asked.headers),
                Phase::Waiting => self.variant.matches(&asked.headers),
                _ => false,
            }
    }
}

/// A place in the queue for the head of a response.
pub(super) struct Waiting {
    inner: Arc<Inner>,
    phase: watch::Receiver<Phase>,
}

impl Waiting {
    pub(super) fn new(inner: &Arc<Inner>, phase: watch::Receiver<Phase>) -> Option<Self> {
        if inner.waiters.fetch_add(1, Ordering::Relaxed) >= WAITERS_MAX {
            inner.waiters.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Self { inner: Arc::clone(inner), phase })
    }

    pub(super) async fn head(mut self) -> Phase {
        match self.phase.wait_for(|phase| !matches!(phase, Phase::Waiting)).await {
            Ok(phase) => phase.clone(),
            Err(_) => Phase::Dropped,
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.inner.waiters.fetch_sub(1, Ordering::Relaxed);
    }
}
