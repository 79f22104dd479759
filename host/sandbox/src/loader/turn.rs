//! Who compiles next. A compilation keeps a processor busy for up to a minute, so few run at once and few wait.
//!
//! One merchant has one place at a time: while a hostile component burns its child's budget, the other places go on
//! serving the others.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;
use souk_commerce::id::SiteId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::CompileLimits;

/// Compilations that one merchant may have waiting: a chain of 16 plugins, all new, in two releases.
const WAITING_PER_OWNER_MAX: usize = 32;

pub(super) struct Turns {
    places: Arc<Semaphore>,
    waiting_max: usize,
    queue: Arc<Mutex<Queue>>,
    gauge: Gauge,
}

#[derive(Default)]
struct Queue {
    waiting: usize,
    owners: HashMap<SiteId, Owner>,
}

struct Owner {
    place: Arc<Semaphore>,
    waiting: usize,
}

/// A place among those who compile.
pub(super) struct Turn {
    _place: OwnedSemaphorePermit,
    _own: Option<OwnedSemaphorePermit>,
}

/// A seat in the queue; leaves it when dropped, whether its turn came or not.
struct Seat<'a> {
    turns: &'a Turns,
    owner: Option<&'a SiteId>,
}

impl Turns {
    pub(super) fn new(limits: &CompileLimits, gauge: Gauge) -> Self {
        Self {
            places: Arc::new(Semaphore::new(limits.at_once_max.max(1))),
            waiting_max: limits.waiting_max,
            queue: Arc::default(),
            gauge,
        }
    }

    /// Waits for a place, in the order of asking. An error is the number of those who wait already.
    pub(super) async fn wait(&self, owner: Option<&SiteId>) -> Result<Turn, usize> {
        let (seat, own) = self.sit_down(owner)?;
        let never_closed = "the semaphore is never closed";
        // The merchant's own place first: who waits for it keeps no common place empty.
        let own = match own {
            Some(own) => Some(own.acquire_owned().await.expect(never_closed)),
            None => None,
        };
        let place = Arc::clone(&self.places).acquire_owned().await.expect(never_closed);
        drop(seat);
        Ok(Turn { _place: place, _own: own })
    }

    fn sit_down<'a>(
        &'a self,
        owner: Option<&'a SiteId>,
    ) -> Result<(Seat<'a>, Option<Arc<Semaphore>>), usize> {
        let mut queue = self.queue.lock();
        if queue.waiting >= self.waiting_max {
            return Err(queue.waiting);
        }
        let own = match owner {
            None => None,
            Some(site) => {
                // Whoever neither waits nor compiles is forgotten.
                queue.owners.retain(|_, owner| owner.waiting > 0 || Arc::strong_count(&owner.place) > 1);
                let owner = queue
                    .owners
                    .entry(site.clone())
                    .or_insert_with(|| Owner { place: Arc::new(Semaphore::new(1)), waiting: 0 });
                if owner.waiting >= WAITING_PER_OWNER_MAX {
                    return Err(owner.waiting);
                }
                owner.waiting += 1;
                Some(Arc::clone(&owner.place))
            }
        };
        queue.waiting += 1;
        self.gauge.set(i64::try_from(queue.waiting).unwrap_or(i64::MAX));
        Ok((Seat { turns: self, owner }, own))
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let mut queue = self.turns.queue.lock();
        queue.waiting -= 1;
        self.turns.gauge.set(i64::try_from(queue.waiting).unwrap_or(i64::MAX));
        if let Some(owner) = self.owner.and_then(|site| queue.owners.get_mut(site)) {
            owner.waiting -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn turns(at_once_max: usize, waiting_max: usize) -> Turns {
        Turns::new(&CompileLimits { at_once_max, waiting_max, ..CompileLimits::default() }, Gauge::default())
    }

    fn site(name: &str) -> SiteId {
        name.parse().unwrap()
    }

    #[test]
    fn one_merchant_has_one_place_and_others_have_the_rest() {
        let turns = turns(2, 10);
        let (greedy, other) = (site("greedy"), site("other"));
        let first = turns.wait(Some(&greedy)).now_or_never().expect("a place is free");
        let mut second = Box::pin(turns.wait(Some(&greedy)));
        assert!(second.as_mut().now_or_never().is_none(), "its own place is taken");
        let others =
            turns.wait(Some(&other)).now_or_never().expect("the second place is not for the greedy one");
        drop(first);
        assert!(second.as_mut().now_or_never().is_some());
        drop(others);
    }

    #[test]
    fn the_queue_is_bounded_and_who_gives_up_leaves_it() {
        let turns = turns(1, 1);
        let running = turns.wait(None).now_or_never().expect("free").expect("not full");
        let mut waiting = Box::pin(turns.wait(None));
        assert!(waiting.as_mut().now_or_never().is_none());
        assert_eq!(turns.wait(None).now_or_never().expect("refused at once").err(), Some(1));
        drop(waiting);
        assert_eq!(turns.queue.lock().waiting, 0);
        drop(running);
        let many: Vec<_> = (0..3).map(|i| site(&format!("site-{i}"))).collect();
        for site in &many {
            drop(turns.wait(Some(site)).now_or_never().expect("free"));
        }
        assert!(turns.queue.lock().owners.len() <= 1, "owners at rest are forgotten");
    }
}
