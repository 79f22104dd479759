//! How many requests are worked on at once, so that nobody's stand in another's way.
//!
//! Only requests that were found to be allowed take a turn. Merchants take theirs one per site: a slow upload, or a
//! component that compiles for a minute, keeps back its own shop and never another's roll-back. Pushes have turns of
//! their own, because they take longest.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use parking_lot::Mutex;
use souk_commerce::id::SiteId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use super::authority::{Action, Principal};
use crate::store::token::Verb;

/// Requests with a body that are worked on at once, in each of the three lanes. A body in memory grows up to sixteenfold
/// when it is parsed; more would not be faster either, because there is one writer. A push is 32 MiB at most.
const BODIES_AT_ONCE_MAX: usize = 4;
/// How long a request waits for its turn to send a body.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// Who waits for nodes at a time, all sites together: each holds one of the 256 connections.
const WAITERS_MAX: usize = 64;
/// And of one site: its people and its machines, each with a deploy of their own.
const WAITERS_OF_SITE_MAX: usize = 8;
/// Components on their way to merchants at once, 32 MiB each at most; one of a site.
const DOWNLOADS_MAX: usize = 4;

pub(super) struct Turns {
    operator: Semaphore,
    changes: Lane,
    pushes: Lane,
    /// Of those who wait for a release to run everywhere.
    pub(super) rollouts: Lane,
    /// Of components on their way to merchants.
    pub(super) downloads: Lane,
}

/// Held for as long as the request is worked on.
pub(super) struct Turn<'a> {
    _of_site: Option<OwnedSemaphorePermit>,
    _of_all: SemaphorePermit<'a>,
}

/// The same, for what outlives its request's handler.
pub(super) struct OwnTurn {
    _of_site: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

/// Too many were before this one.
pub(super) struct Busy;

impl Turns {
    pub(super) fn new() -> Self {
        Self {
            operator: Semaphore::new(BODIES_AT_ONCE_MAX),
            changes: Lane::new(BODIES_AT_ONCE_MAX, 1),
            pushes: Lane::new(BODIES_AT_ONCE_MAX, 1),
            rollouts: Lane::new(WAITERS_MAX, WAITERS_OF_SITE_MAX),
            downloads: Lane::new(DOWNLOADS_MAX, 1),
        }
    }

    /// None: the request needs no turn. Cancel safe: a turn that nobody waits for any more is given back.
    pub(super) async fn take(
        &self,
        principal: &Principal,
        action: Action,
        method: &Method,
    ) -> Result<Option<Turn<'_>>, Busy> {
        if matches!(*method, Method::GET | Method::HEAD) {
            return Ok(None);
        }
        let taking = async {
            match principal {
                Principal::Operator => {
                    Some(Turn { _of_site: None, _of_all: self.operator.acquire().await.ok()? })
                }
                Principal::Merchant { site, .. } if action == Action::Site(Verb::Push) => {
                    self.pushes.enter(site).await
                }
                Principal::Merchant { site, .. } => self.changes.enter(site).await,
            }
        };
        match tokio::time::timeout(WAIT_MAX, taking).await {
            Ok(Some(turn)) => Ok(Some(turn)),
            _ => Err(Busy),
        }
    }
}

/// So many at once, and so many of one site.
pub(super) struct Lane {
    all: Arc<Semaphore>,
    sites: Mutex<HashMap<SiteId, Arc<Semaphore>>>,
    of_site_max: usize,
}

impl Lane {
    fn new(all_max: usize, of_site_max: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all_max)), sites: Mutex::default(), of_site_max }
    }

    fn of(&self, site: &SiteId) -> Arc<Semaphore> {
        let mut sites = self.sites.lock();
        // Sites of which nobody is here or waits: each of them holds a clone.
        sites.retain(|_, places| Arc::strong_count(places) > 1);
        Arc::clone(sites.entry(site.clone()).or_insert_with(|| Arc::new(Semaphore::new(self.of_site_max))))
    }

    async fn enter(&self, site: &SiteId) -> Option<Turn<'_>> {
        // Its own place first: whoever waits for that must not hold one that others could use.
        let of_site = self.of(site).acquire_owned().await.ok()?;
        Some(Turn { _of_site: Some(of_site), _of_all: self.all.acquire().await.ok()? })
    }

    /// Without waiting.
    pub(super) fn try_enter(&self, site: &SiteId) -> Result<Turn<'_>, Busy> {
        let of_site = self.of(site).try_acquire_owned().map_err(|_| Busy)?;
        Ok(Turn { _of_site: Some(of_site), _of_all: self.all.try_acquire().map_err(|_| Busy)? })
    }

    /// Without waiting.
    pub(super) fn try_enter_owned(&self, site: &SiteId) -> Result<OwnTurn, Busy> {
        let of_site = self.of(site).try_acquire_owned().map_err(|_| Busy)?;
        let of_all = Arc::clone(&self.all).try_acquire_owned().map_err(|_| Busy)?;
        Ok(OwnTurn { _of_site: of_site, _of_all: of_all })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merchant(site: &str) -> Principal {
        Principal::Merchant { site: site.parse().unwrap(), verbs: [Verb::Admin].into() }
    }

    #[tokio::test]
    async fn one_shops_uploads_keep_no_other_shop_waiting() {
        let turns = Turns::new();
        let deploy = Action::Site(Verb::Deploy);
        let (greedy, other) = (merchant("greedy"), merchant("other"));
        let held = turns.take(&greedy, deploy, &Method::POST).await;
        assert!(matches!(held, Ok(Some(_))));
        let mut waiting: Vec<_> =
            (0..4).map(|_| Box::pin(turns.take(&greedy, deploy, &Method::POST))).collect();
        for turn in &mut waiting {
            let soon = tokio::time::timeout(Duration::from_millis(20), turn).await;
            assert!(soon.is_err(), "one at a time");
        }
        assert!(matches!(turns.take(&other, deploy, &Method::POST).await, Ok(Some(_))), "the other shop");
        let push = turns.take(&greedy, Action::Site(Verb::Push), &Method::PUT).await;
        assert!(matches!(push, Ok(Some(_))), "a push waits for pushes only");
        assert!(matches!(turns.take(&greedy, deploy, &Method::GET).await, Ok(None)), "a look needs no turn");
        drop((held, waiting));
        assert!(turns.take(&greedy, deploy, &Method::POST).await.is_ok());
    }

    #[test]
    fn a_site_that_waits_often_leaves_others_their_places() {
        let lane = Lane::new(3, 2);
        let (greedy, other): (SiteId, SiteId) = ("greedy".parse().unwrap(), "other".parse().unwrap());
        let _held = (lane.try_enter(&greedy), lane.try_enter(&greedy));
        assert!(lane.try_enter(&greedy).is_err());
        let last = lane.try_enter(&other);
        assert!(last.is_ok() && lane.try_enter(&other).is_err(), "no more than there are");
        drop(last);
        assert!(lane.try_enter(&other).is_ok());
        assert_eq!(lane.sites.lock().len(), 2);
    }
}
