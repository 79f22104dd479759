//! Who fetches what is missing: look-up, single flight, and the permits that store.
//!
//! A *flight* is one fetch under way for a key and variant. Whoever starts it holds its [`FillPermit`]; whoever comes
//! later waits for the head of the response (never longer than that), and then reads along. Waiting has three other
//! ends: the response may not be shared (then each goes alone, and the key is remembered so that the next ones do not
//! even wait), the fetch failed (then it failed for all who waited: a dead upstream is not asked once a waiter), or the
//! permit was dropped (then one of those who waited takes over).
//!
//! Hits touch the shelf only. The table of flights is locked by misses, for a few instructions and one more look at the
//! shelf. Whoever holds it takes no lock of a body: a body that outgrows its limit lands its flight under its own.
//!
//! Behind the shelf there may be a disk. Whatever changes the shelf tells it within the same [`Shelf::update`], so that both
//! agree on what came first; only a look-up that the shelf has nothing for asks it.

mod explain;
mod permit;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, response};
use moka::sync::Cache as Moka;
use parking_lot::Mutex;
use tokio::sync::watch;

pub use self::explain::{Explanation, Outcome, StoredFacts};
pub(crate) use self::permit::Completion;
pub use self::permit::FillPermit;
use self::permit::Making;
use crate::admit::{Admitted, admit, is_remembered};
use crate::asked::Asked;
use crate::coding::{self, EncodingDue};
use crate::conditional::{Likeness, likeness};
use crate::directives::ResponseDirectives;
use crate::disk::{Disk, DiskError, DiskLimits, Reading, Tell};
use crate::entry::{Entry, Resource};
use crate::fill::{FillBudget, FillWriter};
use crate::freshness::{Exchanged, Use, is_explicit};
use crate::hit::Hit;
use crate::key::Key;
use crate::part;
use crate::purge::{BadSnapshot, Purge, Purges, Scope, Verdict};
use crate::reason::PassReason;
use crate::shelf::{MemoryShelf, Shelf, Size};
use crate::status::{Forwarded, How};
use crate::tags;
use crate::vary::Variant;

/// Requests that may wait for heads of responses at once, over all keys. A request costs about 10 KiB: 160 MiB.
const WAITERS_MAX: usize = 16_384;
/// Times that a request looks again after waiting for a variant that is not its own.
const ROUNDS_MAX: usize = 4;
/// How long an uncacheable key is remembered. Short, so that a page that became cacheable is found out.
const REMEMBERED_FOR_MS: u64 = 30_000;
/// Bytes of keys that are remembered as uncacheable.
const REMEMBERED_BYTES_MAX: u64 = 8 * 1024 * 1024;

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
    purges: Purges,
    /// Entries that a look-up found to be purged: gone, and made stale.
    purged: [AtomicU64; 2],
    budget: Arc<FillBudget>,
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
        Self::with(shelf.into(), None, limits)
    }

    /// A cache whose folder `dir` outlives it. What goes wrong with the disk later is told to `tell`.
    pub fn with_disk(
        shelf: Box<dyn Shelf>,
        limits: CacheLimits,
        dir: &Path,
        disk: DiskLimits,
        tell: Tell,
    ) -> Result<Self, DiskError> {
        let shelf: Arc<dyn Shelf> = shelf.into();
        let disk = Disk::open(dir, disk, Arc::clone(&shelf), tell)?;
        Ok(Self::with(shelf, Some(disk), limits))
    }

    fn with(shelf: Arc<dyn Shelf>, disk: Option<Disk>, limits: CacheLimits) -> Self {
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
            purges: Purges::default(),
            purged: Default::default(),
            budget: Arc::new(FillBudget { used: AtomicU64::new(0), bytes_max: limits.fill_bytes_max }),
            object_bytes_max: limits.object_bytes_max,
        }))
    }

    /// Looks a request up. Waits, if at all, for the head of a response that another request is fetching.
    ///
    /// Cancel safe: a request that stops waiting leaves nothing behind.
    pub async fn look_up(&self, now_ms: u64, asked: &Asked) -> Lookup {
        if let Some(reason) = asked.pass_reason() {
            return Lookup::Pass(reason);
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

    /// Resolves when every invalidation up to now outlives a restart of this process and of its machine. It holds for
    /// look-ups at once, so only who acknowledges it to somebody waits for this. False where it cannot be promised yet,
    /// because another process has the folder.
    pub async fn persisted(&self) -> bool {
        match &self.0.disk {
            Some(disk) => disk.persisted().await,
            None => true,
        }
    }

    /// The disk tier, if there is one: for its figures, its beginning and its end.
    pub fn disk(&self) -> Option<&Disk> {
        self.0.disk.as_ref()
    }

    /// Takes back what was made from any of these, in one step: nothing of it is sent to a request that begins after this
    /// has returned, and what is being fetched for it is not taken for new. Costs the same however much is stored.
    ///
    /// The table of purges does not outlive the process, so a disk gives up all that it has: before, for what was stored
    /// up to now, and after, for what was stored meanwhile.
    pub fn purge(&self, now_ms: u64, purges: &[Purge]) -> u64 {
        let empty_disk = || {
            if let Some(disk) = &self.0.disk {
                disk.remove_all();
            }
        };
        empty_disk();
        let number = self.0.purges.apply(now_ms, purges);
        empty_disk();
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
            steps: self.0.purges.number(),
            entries_gone: gone.load(Ordering::Relaxed),
            entries_softened: softened.load(Ordering::Relaxed),
            names: (names + prefixes) as u64,
        }
    }

    /// What was purged, to be kept beside a shelf that outlives the process. An entry on such a shelf may be used only
    /// together with the purges of its own life, all of them: whoever cannot be sure of that starts with an empty shelf.
    pub fn snapshot_purges(&self) -> Vec<u8> {
        self.0.purges.snapshot()
    }

    /// Takes up where a former life has stopped. Before the first look-up.
    pub fn restore_purges(&self, snapshot: &[u8]) -> Result<(), BadSnapshot> {
        self.0.purges.restore(snapshot)
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

    /// A HEAD that went to the upstream was answered: what is stored for a GET of the same becomes as fresh as that
    /// answer where both speak of one representation, and goes where they do not (RFC 9111 section 4.3.5).
    pub fn freshen(&self, asked: &Asked, head: &response::Parts, when: Exchanged) {
        let inner = &self.0;
        let Some(stored) = self.selected(asked).entry.filter(|entry| entry.span.is_none()) else { return };
        if !asked.is_head() || head.status != StatusCode::OK || stored.status != StatusCode::OK {
            return;
        }
        // Whether the HEAD was asked before the purge or after it, nobody has noted.
        if stored.birth.is_softened() {
            return;
        }
        match likeness(&head.headers, &stored.headers) {
            Likeness::Unknown => {}
            Likeness::Other => {
                let _was_there = inner.forget(&asked.key, &stored);
            }
            Likeness::Same => {
                let head = stored.merged(&head.headers, asked.policy.store_set_cookie);
                let admitted = admit(&head, asked, inner.object_bytes_max, when);
                let Ok(admitted) = admitted else { return };
                let Ok(variant) = admitted.variant.clone().and(&stored.variant) else { return };
                let admitted = Admitted { variant, ..admitted };
                // As old as it was: the question may have been asked before a purge.
                let birth = stored.birth.clone();
                let entry = Entry::new(&head, admitted, when.answered_ms, stored.body.clone(), birth);
                // Where it is gone it was invalidated, or is newer than the question was.
                inner.replace(&asked.key, &stored, &Arc::new(entry));
            }
        }
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
        self.0.budget.used.load(Ordering::Relaxed)
    }

    /// Requests that wait for the head of a response that another one is fetching.
    pub fn waiting(&self) -> usize {
        self.0.waiters.load(Ordering::Relaxed)
    }

    fn decide(&self, now_ms: u64, asked: &Asked, asks_disk: bool) -> Decision {
        let mut found = self.find(now_ms, asked);
        if asks_disk
            && found.resource.is_none()
            && let Some(reading) =
                self.0.disk.as_ref().and_then(|disk| disk.read(&asked.key, now_ms, self.0.purges.number()))
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
            Some(flight) => match found.aboard(flight, self, asked) {
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
                Boarding::Alone => {}
            },
            // A flight stores before it lands: one that did both since the shelf was read has left its response there.
            None => {
                let was_purged = found.why == Forwarded::Purged;
                found = self.find(now_ms, asked);
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

    /// What the shelf has for a request.
    fn find(&self, now_ms: u64, asked: &Asked) -> Found {
        let Selected { resource, entry, part, was_purged } = self.selected(asked);
        let obeyed = asked.obeyed();
        let usable = entry.as_ref().map_or(Use::Ask, |entry| entry.freshness.usable(now_ms, obeyed));
        let why = match (&resource, &entry) {
            (_, Some(entry)) if usable == Use::Ask && entry.freshness.is_fresh(now_ms) => Forwarded::Request,
            (_, Some(entry)) if entry.birth.is_softened() => Forwarded::SoftPurged,
            (_, Some(_)) => Forwarded::Stale,
            _ if part.is_some() => Forwarded::Partial,
            _ if was_purged => Forwarded::Purged,
            (Some(_), None) => Forwarded::VaryMiss,
            (None, None) => Forwarded::UriMiss,
        };
        Found { resource, entry, part, usable, why }
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
        let rescue = found.entry.as_ref().is_some_and(|entry| entry.freshness.usable_on_error(now_ms));
        let remembered = self.0.recall(&asked.key, now_ms).is_some();
        (remembered && !rescue).then_some(Lookup::Pass(PassReason::Remembered))
    }

    /// What is stored for a request and holds: a response that can answer it, or a part that cannot.
    fn selected(&self, asked: &Asked) -> Selected {
        let inner = &self.0;
        let mut resource = inner.shelf.find(&asked.key);
        let mut was_purged = false;
        while let Some(entry) = resource.as_deref().and_then(|held| held.select(&asked.headers)).cloned() {
            let [gone, softened] = &inner.purged;
            let rest = || resource.as_deref().and_then(|held| held.without(&entry));
            let next = match inner.purges.judge(&asked.key, &entry.birth) {
                Verdict::Valid => break,
                Verdict::Gone => {
                    was_purged = true;
                    gone.fetch_add(inner.forget(&asked.key, &entry).into(), Ordering::Relaxed);
                    rest()
                }
                Verdict::Softened { at_ms, counted } => {
                    let softer = Arc::new(entry.softened(at_ms, counted));
                    softened.fetch_add(inner.replace(&asked.key, &entry, &softer).into(), Ordering::Relaxed);
                    Some(rest().unwrap_or_default().with(softer))
                }
            };
            resource = next.map(Arc::new);
        }
        let (entry, part) = usable_for(asked, resource.as_deref());
        Selected { resource, entry, part, was_purged }
    }

    /// Whether a request may read along with a response that is arriving.
    fn may_join(&self, entry: &Entry, asked: &Asked) -> bool {
        let judged = self.0.purges.judge(&asked.key, &entry.birth);
        entry.variant.matches(&asked.headers) && judged == Verdict::Valid
    }

    /// The fetch under way that a request may wait for or join.
    fn of_use(&self, flights: &[Arc<Flight>], asked: &Asked) -> Option<Arc<Flight>> {
        flights.iter().find(|flight| flight.is_for(asked) && self.holds(flight, asked)).cloned()
    }

    /// Whether a flight is of use to a request that comes now. Of one whose head has not come nothing is known yet.
    fn holds(&self, flight: &Flight, asked: &Asked) -> bool {
        match &*flight.phase.borrow() {
            Phase::Growing(entry) => self.may_join(entry, asked),
            _ => true,
        }
    }

    /// A permit beside the flight that could not be shared, or without any.
    fn permit_alone(&self, asked: &Asked, why: Option<Forwarded>) -> FillPermit {
        let Selected { resource, entry: stale, part, .. } = self.selected(asked);
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
        let entry = self.selected(asked).entry.filter(|entry| entry.freshness.usable_on_error(now_ms));
        let hit = entry.map(|entry| Hit::new(entry, How::OnError(failure.0)));
        Lookup::Failed(failure, hit)
    }
}

impl Inner {
    /// Takes a flight off the table.
    fn land(&self, key: &Key, flight: &Arc<Flight>) {
        let mut flights = self.flights.lock();
        if let Some(list) = flights.get_mut(key) {
            list.retain(|held| !Arc::ptr_eq(held, flight));
            if list.is_empty() {
                flights.remove(key);
            }
        }
    }

    fn remember(&self, key: &Key, status: StatusCode, reason: PassReason, now_ms: u64) {
        if is_remembered(status, reason) {
            let until_ms = now_ms.saturating_add(REMEMBERED_FOR_MS);
            self.remembered.insert(key.clone(), Remembered { until_ms, reason });
        }
    }

    /// What is remembered against a key, and still believed.
    fn recall(&self, key: &Key, now_ms: u64) -> Option<Remembered> {
        self.remembered.get(key).filter(|remembered| now_ms < remembered.until_ms)
    }

    /// Stores an entry: a new one, or one that was `confirmed` and takes the place of its former self.
    fn store(&self, key: &Key, flight: &Flight, entry: &Arc<Entry>, confirmed: Option<&Arc<Entry>>) {
        let purges = self.purges.number();
        self.shelf.update(key.clone(), &mut |held| {
            // Judged inside of the update: an invalidation either finds the entry and drops it, or is seen here.
            if flight.doomed.load(Ordering::Acquire) || self.purges.judge(key, &entry.birth) == Verdict::Gone
            {
                return held.cloned();
            }
            let is_newer = |other: &Arc<Entry>| other.birth.born() > entry.birth.born();
            if let Some(held) = held
                && held.of_variant(&entry.variant).is_some_and(is_newer)
            {
                // It was begun after a purge that this one was begun before.
                return Some(held.clone());
            }
            if let Some(held) = held
                && entry.span.is_some()
                && held.of_variant(&entry.variant).is_some_and(|other| other.span.is_none())
            {
                // The whole came while the part did.
                return Some(held.clone());
            }
            let others = match (held, confirmed) {
                (Some(held), Some(former)) if held.holds(former) => held.without(former),
                // Another flight has put something newer in its place.
                (Some(held), Some(_)) => return Some(held.clone()),
                (held, _) => held.cloned(),
            };
            match self.purges.judge(key, &entry.birth) {
                // The next process does not know of this purge.
                Verdict::Softened { at_ms, counted } => {
                    self.offer_to_disk(key, &Arc::new(entry.softened(at_ms, counted)));
                }
                Verdict::Valid | Verdict::Gone => self.offer_to_disk(key, entry),
            }
            Some(others.unwrap_or_default().with(Arc::clone(entry)))
        });
        if self.purges.number() != purges {
            // It may have been offered after the purge had emptied the disk.
            self.forget_on_disk(key);
        }
        self.remembered.invalidate(key);
    }

    /// Removes this very entry. Whether it was there.
    fn forget(&self, key: &Key, gone: &Arc<Entry>) -> bool {
        let mut was_there = false;
        self.shelf.update(key.clone(), &mut |held| {
            was_there = held.is_some_and(|held| held.holds(gone));
            // All variants of it: they are fetched again if somebody wants them after a restart.
            self.forget_on_disk(key);
            held?.without(gone)
        });
        was_there
    }

    /// Puts an entry in the place of its former self. Whether that was there.
    fn replace(&self, key: &Key, former: &Arc<Entry>, entry: &Arc<Entry>) -> bool {
        let mut was_there = false;
        self.shelf.update(key.clone(), &mut |held| {
            was_there = held.is_some_and(|held| held.holds(former));
            match held {
                Some(held) if was_there => {
                    self.offer_to_disk(key, entry);
                    Some(held.without(former).unwrap_or_default().with(Arc::clone(entry)))
                }
                other => other.cloned(),
            }
        });
        was_there
    }

    fn offer_to_disk(&self, key: &Key, entry: &Arc<Entry>) {
        if let Some(disk) = &self.disk {
            disk.offer(key, entry);
        }
    }

    fn forget_on_disk(&self, key: &Key) {
        if let Some(disk) = &self.disk {
            disk.remove(key);
        }
    }
}

enum Decision {
    Now(Lookup),
    Wait(Waiting),
    Read(Reading),
}

/// What the shelf has for a request, without what was purged.
struct Selected {
    resource: Option<Arc<Resource>>,
    entry: Option<Arc<Entry>>,
    part: Option<Arc<Entry>>,
    was_purged: bool,
}

/// What the shelf had for a request when it was read.
struct Found {
    resource: Option<Arc<Resource>>,
    entry: Option<Arc<Entry>>,
    /// A part, where it cannot answer what is asked for.
    part: Option<Arc<Entry>>,
    usable: Use,
    /// Why the upstream would be asked.
    why: Forwarded,
}

/// The entry that answers a request, or the part that does not.
fn usable_for(asked: &Asked, resource: Option<&Resource>) -> (Option<Arc<Entry>>, Option<Arc<Entry>>) {
    match resource.and_then(|resource| resource.select(&asked.headers)).cloned() {
        Some(entry) if entry.span.is_some_and(|span| span.answers(asked, &entry.headers).is_none()) => {
            (None, Some(entry))
        }
        entry => (entry, None),
    }
}

/// What a request does with a flight that is for it.
enum Boarding {
    /// It has an answer already, and leaves the flight to refresh it.
    Send(Hit),
    Join(Arc<Entry>),
    Wait(watch::Receiver<Phase>),
    /// It starts one of its own.
    Alone,
}

impl Found {
    fn stale_hit(&self) -> Option<Hit> {
        let entry = self.entry.as_ref().filter(|_| self.usable == Use::WhileRevalidating)?;
        Some(Hit::new(Arc::clone(entry), How::WhileRevalidating))
    }

    fn aboard(&self, flight: &Flight, cache: &Cache, asked: &Asked) -> Boarding {
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
        if asked.is_authorized() || asks_each_time { Boarding::Alone } else { Boarding::Wait(phase) }
    }
}

/// One fetch under way.
struct Flight {
    /// The variant it is for, by the fields that were known to matter when it started.
    variant: Variant,
    /// Whether others may wait for it and join it.
    joinable: bool,
    /// Something was invalidated since it started: its response is not stored.
    doomed: AtomicBool,
    phase: watch::Sender<Phase>,
}

#[derive(Clone)]
enum Phase {
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
    fn new(asked: &Asked, resource: Option<&Resource>, flights: &[Arc<Self>], joinable: bool) -> Arc<Self> {
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
    fn is_for(&self, asked: &Asked) -> bool {
        self.joinable
            && match &*self.phase.borrow() {
                Phase::Growing(entry) => entry.variant.matches(&asked.headers),
                Phase::Waiting => self.variant.matches(&asked.headers),
                _ => false,
            }
    }
}

/// A place in the queue for the head of a response.
struct Waiting {
    inner: Arc<Inner>,
    phase: watch::Receiver<Phase>,
}

impl Waiting {
    fn new(inner: &Arc<Inner>, phase: watch::Receiver<Phase>) -> Option<Self> {
        if inner.waiters.fetch_add(1, Ordering::Relaxed) >= WAITERS_MAX {
            inner.waiters.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Self { inner: Arc::clone(inner), phase })
    }

    async fn head(mut self) -> Phase {
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
