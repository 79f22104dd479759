//! Who fetches what is missing: look-up, single flight, and the permits that store.
//!
//! A *flight* is one fetch under way for a key and variant. Whoever starts it holds its [`FillPermit`]; whoever comes
//! later waits for the head of the response (never longer than that), and then reads along. Waiting has three other
//! ends: the response may not be shared (then each goes alone, and the key is remembered so that the next ones do not
//! even wait, nor, when the memory is to be renewed, for the one that renews it, unless they have something stale in hand), the fetch failed (then it failed for all who waited: a dead upstream is not asked once a waiter), or the
//! permit was dropped (then one of those who waited takes over).
//!
//! Hits touch the shelf only. The table of flights is locked by misses, for a few instructions and one more look at the
//! shelf. Whoever holds it takes no lock of a body: a body that outgrows its limit lands its flight under its own.
//!
//! Behind the shelf there may be a disk. Only a look-up that the shelf has nothing for asks it, and waits for it no longer
//! than the disk tier lets it.

mod at_hand;
mod explain;
mod flight;
mod invalidation;
mod permit;
mod stock;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Method, StatusCode, response};
use moka::sync::Cache as Moka;
use parking_lot::Mutex;

pub use self::at_hand::{AtHand, InBytes, PlainGet};
pub use self::explain::{Explanation, Outcome, StoredFacts, Tier};
use self::flight::{Boarding, Flight, Phase, Waiting};
pub(crate) use self::permit::Completion;
pub use self::permit::FillPermit;
use self::permit::Making;
use self::stock::{Found, Looking, Selected};
use crate::admit::admit;
use crate::asked::Asked;
use crate::coding::{self, EncodingDue};
use crate::directives::ResponseDirectives;
use crate::disk::{Disk, DiskError, DiskLimits, Reading, Tell};
use crate::entry::Entry;
use crate::fill::{FillBudget, FillWriter};
use crate::freshness::{Exchanged, Use, is_explicit};
use crate::hit::Hit;
use crate::in_file::Room;
use crate::key::Key;
use crate::part;
use crate::purge::Purges;
use crate::reason::PassReason;
use crate::shelf::{MemoryShelf, Shelf, Size};
use crate::status::{Forwarded, How};

/// Times that a request looks again after waiting for a variant that is not its own.
const ROUNDS_MAX: usize = 4;
/// How long an uncacheable key is remembered. Short, so that a page that became cacheable is found out.
const REMEMBERED_FOR_MS: u64 = 30_000;
/// How long after that one request at a time finds out what became of the key, and the others pass as before instead of
/// waiting for its answer, which renews what is remembered. A key that nobody asks for in ten minutes is unknown again, so
/// that an answer of long ago takes nobody's protection from a stampede.
const DOUBTED_FOR_MS: u64 = 600_000;
/// Bytes of keys that are remembered as uncacheable.
const REMEMBERED_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// Memory for bodies that stand in a file too, beside that for stored responses: an eighth of it.
const FILES_SHARE: u64 = 8;

/// What a cache may use.
#[derive(Clone, Copy, Debug)]
pub struct CacheLimits {
    /// Memory for stored responses.
    pub memory_bytes_max: u64,
    /// The largest response that is stored.
    pub object_bytes_max: u64,
    /// Memory for responses that are still arriving, beside `memory_bytes_max`.
    pub fill_bytes_max: u64,
}

/// A cache. Clones are the same cache.
#[derive(Clone)]
pub struct Cache(Arc<Inner>);

struct Inner {
    shelf: Arc<dyn Shelf>,
    disk: Option<Disk>,
    flights: Mutex<HashMap<Key, Vec<Arc<Flight>>>>,
    /// Keys that were uncacheable, and until when that is believed.
    remembered: Moka<Key, Remembered>,
    waiters: AtomicUsize,
    purges: Arc<Purges>,
    /// Entries that a look-up found to be purged: gone, and made stale.
    purged: [AtomicU64; 2],
    budget: Arc<FillBudget>,
    /// For bodies in files.
    files: Arc<Room>,
    object_bytes_max: u64,
}

/// That a key was uncacheable.
#[derive(Clone, Copy, Debug)]
struct Remembered {
    until_ms: u64,
    reason: PassReason,
}

/// What the cache says to a request.
pub enum Lookup {
    /// Send this. Nothing else is to be done.
    Hit(Hit),
    /// Send this now, and use the permit to refresh it behind the client's back.
    Stale(Hit, FillPermit),
    /// Ask the upstream, and store its answer with the permit.
    Miss(FillPermit),
    /// Ask the upstream; its answer is not stored.
    Pass(PassReason),
    /// The fetch that this request waited for failed. What is stored may be sent if the upstream allowed it.
    Failed(Failure, Option<Hit>),
    /// The client wanted only what is stored, and nothing is: 504.
    OnlyIfCached,
}

impl Lookup {
    fn joined(entry: Arc<Entry>, why: Forwarded) -> Self {
        let hit = Hit::new(entry, How::Joined(why));
        if hit.has_place() { Self::Hit(hit) } else { Self::Pass(PassReason::FillEnded) }
    }
}

/// The name under which the driver failed a fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure(pub &'static str);

/// A moment in the order of purges: what is read after it was taken is as new as every purge before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Began(u64);

/// What purges have done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Purged {
    /// Steps in which something was purged.
    pub steps: u64,
    /// Entries that a look-up found purged and removed.
    pub entries_gone: u64,
    /// Entries that a look-up found softly purged.
    pub entries_softened: u64,
    /// Names and prefixes that are remembered as purged.
    pub names: u64,
}

/// What became of a response that was offered to the cache.
pub enum Stored {
    /// It is being stored: answer the client with the hit and write the upstream's body into the writer.
    Filling(Hit, FillWriter),
    /// It may not be stored, and why.
    Pass(PassReason),
    /// A part that does not fit what is stored, for a client that asked for the whole: ask for the whole.
    Unfitting(FillPermit),
}

impl Cache {
    pub fn new(limits: CacheLimits) -> Self {
        Self::on(Box::new(MemoryShelf::new(limits.memory_bytes_max)), limits)
    }

    /// A cache on another shelf.
    pub fn on(shelf: Box<dyn Shelf>, limits: CacheLimits) -> Self {
        Self::shared(shelf, limits, limits.fill_bytes_max)
    }

    /// A cache on a shelf of several sites, none of which takes more than `site_fill_bytes_max` for responses that are
    /// arriving. What of the stored ones a site may have is the shelf's business.
    pub fn shared(shelf: Box<dyn Shelf>, limits: CacheLimits, site_fill_bytes_max: u64) -> Self {
        Self::with(shelf.into(), None, Arc::default(), limits, site_fill_bytes_max)
    }

    /// The same as [`shared`](Self::shared), with a folder `dir` that outlives it. What goes wrong with the disk later is told
    /// to `tell`.
    pub fn with_disk(
        shelf: Box<dyn Shelf>,
        limits: CacheLimits,
        site_fill_bytes_max: u64,
        dir: &Path,
        disk: DiskLimits,
        tell: Tell,
    ) -> Result<Self, DiskError> {
        let shelf: Arc<dyn Shelf> = shelf.into();
        let purges = Arc::new(Purges::over_a_log());
        let disk = Disk::open(dir, disk, Arc::clone(&shelf), Arc::clone(&purges), tell)?;
        Ok(Self::with(shelf, Some(disk), purges, limits, site_fill_bytes_max))
    }

    fn with(
        shelf: Arc<dyn Shelf>,
        disk: Option<Disk>,
        purges: Arc<Purges>,
        limits: CacheLimits,
        site_fill_bytes_max: u64,
    ) -> Self {
        Self(Arc::new(Inner {
            shelf,
            disk,
            flights: Mutex::default(),
            remembered: Moka::builder()
                .name("uncacheable")
                .max_capacity(REMEMBERED_BYTES_MAX)
                .weigher(|key: &Key, _| u32::try_from(key.bytes()).unwrap_or(u32::MAX))
                .build(),
            waiters: AtomicUsize::new(0),
            purges,
            purged: Default::default(),
            budget: Arc::new(FillBudget::new(limits.fill_bytes_max, site_fill_bytes_max)),
            files: Arc::new(Room::new(limits.memory_bytes_max / FILES_SHARE)),
            object_bytes_max: limits.object_bytes_max,
        }))
    }

    /// Looks a request up. Waits, if at all, for the head of a response that another request is fetching.
    ///
    /// Cancel safe: a request that stops waiting leaves nothing behind.
    pub async fn look_up(&self, now_ms: u64, asked: &Asked) -> Lookup {
        if let Some(lookup) = by_request(asked) {
            return lookup;
        }
        let mut asks_disk = true;
        // One more for the disk.
        for _ in 0..=ROUNDS_MAX {
            let waiting = match self.decide(now_ms, asked, asks_disk) {
                Decision::Now(lookup) => return lookup,
                Decision::Wait(waiting) => waiting,
                Decision::Read(reading) => {
                    asks_disk = false;
                    reading.done().await;
                    continue;
                }
            };
            match waiting.head().await {
                Phase::Growing(entry) if self.may_join(&entry, asked) => {
                    return Lookup::joined(entry, Forwarded::UriMiss);
                }
                Phase::Confirmed(entry) if self.may_join(&entry, asked) => {
                    return Lookup::joined(entry, Forwarded::Stale);
                }
                Phase::Alone(reason) => return Lookup::Pass(reason),
                Phase::NotShared => return Lookup::Miss(self.permit_alone(asked, None)),
                Phase::Failed(failure) => return self.failed(now_ms, asked, failure),
                Phase::Growing(_) | Phase::Confirmed(_) | Phase::Waiting | Phase::Dropped => {}
            }
        }
        Lookup::Pass(PassReason::VariantUnsettled)
    }

    /// The disk tier, if there is one: for its figures, its beginning and its end.
    pub fn disk(&self) -> Option<&Disk> {
        self.0.disk.as_ref()
    }

    /// The permit to store the answer to a POST as what a GET of the same target is answered with, where its upstream
    /// says how long it holds (RFC 9110 section 9.3.3). That it holds for this very target, by `Content-Location`, is the
    /// caller's to know, who can resolve a reference; and so is it to invalidate before. `began` is from before the POST.
    pub fn permit_for_post(
        &self,
        asked: &Asked,
        head: &response::Parts,
        when: Exchanged,
        Began(born): Began,
    ) -> Option<FillPermit> {
        let inner = &self.0;
        let told = asked.method == Method::POST
            && head.status == StatusCode::OK
            && is_explicit(&head.headers, &ResponseDirectives::of(&head.headers));
        // Judged before there is a permit: its refusal would count against the page.
        let permitted =
            asked.policy.store_posts && told && admit(head, asked, inner.object_bytes_max, when).is_ok();
        permitted.then(|| {
            let mut permit = self.permit_alone(asked, Some(Forwarded::Method));
            permit.making.born = born;
            permit
        })
    }

    /// Puts an encoding beside the bytes that it was made of, if they are still stored. One that saves too little is
    /// dropped, and not asked for again.
    pub fn add_encoding(&self, due: &EncodingDue, encoded: Bytes) {
        let made = coding::judged(encoded, due.total());
        self.0.shelf.update(due.key.clone(), &mut |held| {
            held.map(|resource| resource.with_encoding(&due.body, due.coding(), &made))
        });
    }

    /// Bytes and keys stored.
    pub fn size(&self) -> Size {
        self.0.shelf.size()
    }

    /// Bytes of responses that are still arriving.
    pub fn filling_bytes(&self) -> u64 {
        self.0.budget.used()
    }

    /// Bytes of bodies that stand in a file too.
    pub fn in_file_bytes(&self) -> u64 {
        self.0.files.bytes()
    }

    /// Requests that wait for the head of a response that another one is fetching.
    pub fn waiting(&self) -> usize {
        self.0.waiters.load(Ordering::Relaxed)
    }

    fn decide(&self, now_ms: u64, asked: &Asked, asks_disk: bool) -> Decision {
        let mut found = self.find(now_ms, asked, Looking::Up);
        if asks_disk
            && found.resource.is_none()
            && let Some(reading) = self.0.disk.as_ref().and_then(|disk| disk.read(&asked.key, now_ms))
        {
            return Decision::Read(reading);
        }
        if let Some(lookup) = self.without_flight(now_ms, asked, &found) {
            return Decision::Now(lookup);
        }
        let mut flights = self.0.flights.lock();
        let list = flights.get(&asked.key).map_or(&[][..], Vec::as_slice);
        let flying = self.of_use(list, asked);
        match &flying {
            Some(flight) => match found.aboard(flight, self, now_ms, asked) {
                Boarding::Send(hit) => return Decision::Now(Lookup::Hit(hit)),
                Boarding::Join(entry) => {
                    // Its body has a lock of its own, whose holder may be about to land.
                    drop(flights);
                    return Decision::Now(Lookup::joined(entry, found.why));
                }
                Boarding::Wait(phase) => {
                    return match Waiting::new(&self.0, phase) {
                        Some(waiting) => Decision::Wait(waiting),
                        None => Decision::Now(Lookup::Pass(PassReason::WaitersFull)),
                    };
                }
                Boarding::Pass => return Decision::Now(Lookup::Pass(PassReason::Remembered)),
                Boarding::Alone => {}
            },
            // A flight stores before it lands: one that did both since the shelf was read has left its response there.
            None => {
                let was_purged = found.why == Forwarded::Purged;
                found = self.find(now_ms, asked, Looking::Up);
                if was_purged && found.why == Forwarded::UriMiss {
                    // Removed by the first look.
                    found.why = Forwarded::Purged;
                }
                if let Some(lookup) = self.without_flight(now_ms, asked, &found) {
                    return Decision::Now(lookup);
                }
            }
        }
        // The answer to a range that is forwarded is a part, and no use to whoever wants another.
        let a_part = asked.policy.store_parts && found.entry.is_none() && part::is_wanted(asked);
        let joinable = flying.is_none() && !a_part;
        let flight = Flight::new(asked, found.resource.as_deref(), list, joinable);
        flights.entry(asked.key.clone()).or_default().push(Arc::clone(&flight));
        drop(flights);
        let hit = found.stale_hit();
        let permit = self.permit(asked, flight, (found.entry, found.part), found.why);
        Decision::Now(match hit {
            Some(hit) => Lookup::Stale(hit, permit),
            None => Lookup::Miss(permit),
        })
    }

    /// The answer where the flights do not matter.
    fn without_flight(&self, now_ms: u64, asked: &Asked, found: &Found) -> Option<Lookup> {
        if let (Some(entry), Use::Fresh) = (&found.entry, found.usable) {
            return Some(Lookup::Hit(Hit::new(Arc::clone(entry), How::Fresh)));
        }
        if let Some(hit) = found.stale_hit() {
            // A HEAD cannot refresh what it is answered with.
            return asked.is_head().then_some(Lookup::Hit(hit));
        }
        if asked.directives.only_if_cached {
            return Some(Lookup::OnlyIfCached);
        }
        if asked.is_head() {
            return Some(Lookup::Pass(PassReason::Head));
        }
        // What may stand in for an error is worth a permit: without one, nobody would look at it.
        let rescue = found.may_rescue(now_ms);
        let remembered = self.0.recall(&asked.key, now_ms).filter(|_| !rescue)?;
        let sliced = remembered.reason == PassReason::Sliced;
        Some(Lookup::Pass(if sliced { PassReason::Sliced } else { PassReason::Remembered }))
    }

    /// A permit beside the flight that could not be shared, or without any.
    fn permit_alone(&self, asked: &Asked, why: Option<Forwarded>) -> FillPermit {
        let Selected { resource, entry: stale, part, .. } = self.selected(asked, Looking::Up);
        let why = match (why, &stale) {
            (Some(why), _) => why,
            (None, Some(_)) => Forwarded::Stale,
            (None, None) => Forwarded::UriMiss,
        };
        let mut flights = self.0.flights.lock();
        let list = flights.entry(asked.key.clone()).or_default();
        let flight = Flight::new(asked, resource.as_deref(), list, false);
        list.push(Arc::clone(&flight));
        self.permit(asked, flight, (stale, part), why)
    }

    fn permit(
        &self,
        asked: &Asked,
        flight: Arc<Flight>,
        (stale, part): (Option<Arc<Entry>>, Option<Arc<Entry>>),
        why: Forwarded,
    ) -> FillPermit {
        FillPermit {
            cache: self.clone(),
            key: asked.key.clone(),
            flight,
            stale,
            part,
            why,
            making: Box::new(Making { born: self.0.purges.number(), tags: Vec::new(), open: false }),
            settled: false,
        }
    }

    fn failed(&self, now_ms: u64, asked: &Asked, failure: Failure) -> Lookup {
        let entry =
            self.selected(asked, Looking::Up).entry.filter(|entry| entry.freshness.usable_on_error(now_ms));
        let hit = entry.map(|entry| Hit::new(entry, How::OnError(failure.0)));
        Lookup::Failed(failure, hit)
    }
}

/// The answer to what keeps itself from the cache.
fn by_request(asked: &Asked) -> Option<Lookup> {
    let reason = asked.pass_reason()?;
    let wants_stored = reason == PassReason::Policy && asked.directives.only_if_cached;
    Some(if wants_stored { Lookup::OnlyIfCached } else { Lookup::Pass(reason) })
}

enum Decision {
    Now(Lookup),
    Wait(Waiting),
    Read(Reading),
}
