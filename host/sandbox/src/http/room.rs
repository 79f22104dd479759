//! What one site may hold of an HTTP engine at a time.
//!
//! Turns ([`crate::share`]) divide the processors. A guest that waits for its peers has no turn and holds everything
//! else: an instance, its memory, its connections. So each of these has a bound per site beside the one for all, and a
//! shop whose guests hang is refused by name ([`HttpFault::SiteFull`]) while the others go on.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use souk_commerce::id::SiteId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{HttpFault, HttpLimits, Outbound};
use crate::ledger::Ledger;

/// The rooms of one engine.
pub(super) struct Rooms {
    of_sites: Mutex<HashMap<SiteId, Weak<Room>>>,
    limits: Arc<HttpLimits>,
    memory: Arc<Ledger>,
    outbound: Outbound,
}

/// One site's; all its services share it.
pub(super) struct Room {
    places: Arc<Semaphore>,
    pub(super) memory: Arc<Ledger>,
    pub(super) outbound: Outbound,
}

impl Rooms {
    pub(super) fn new(limits: &Arc<HttpLimits>, outbound: Outbound) -> Self {
        Self {
            of_sites: Mutex::default(),
            limits: Arc::clone(limits),
            memory: Ledger::new(limits.memory_all_bytes_max),
            outbound,
        }
    }

    /// A site's room; all that there is for a component that is nobody's, which has the process for itself.
    pub(super) fn of(&self, site: Option<&SiteId>) -> Arc<Room> {
        let limits = &self.limits;
        let Some(site) = site else {
            let (memory, outbound) = (Arc::clone(&self.memory), self.outbound.clone());
            return Arc::new(Room { places: places(limits.requests_max), memory, outbound });
        };
        let mut of_sites = self.of_sites.lock();
        if let Some(room) = of_sites.get(site).and_then(Weak::upgrade) {
            return room;
        }
        of_sites.retain(|_, room| room.strong_count() > 0);
        let room = Arc::new(Room {
            places: places(limits.requests_per_site_max),
            memory: Ledger::part(&self.memory, limits.memory_per_site_bytes_max),
            outbound: self.outbound.for_site(),
        });
        of_sites.insert(site.clone(), Arc::downgrade(&room));
        room
    }
}

fn places(count: u32) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(count as usize))
}

impl Room {
    /// A place for one run, held until its store is gone.
    pub(super) fn take_place(&self) -> Result<OwnedSemaphorePermit, HttpFault> {
        Arc::clone(&self.places).try_acquire_owned().map_err(|_| HttpFault::SiteFull)
    }
}
