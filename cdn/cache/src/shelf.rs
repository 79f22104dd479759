//! Where entries stand in memory. The seam behind which the memory tier can be exchanged.
//!
//! Owns eviction. Refuses to know freshness: a stale entry is worth keeping for its validator.

mod queues;

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use hashbrown::HashTable;
use parking_lot::{Mutex, RwLock};

use self::queues::{Queues, Slot, USES_MAX, Uses};
use crate::entry::Resource;
use crate::key::{Key, KeyRef};

/// Tables that a hit chooses from. Many more than cores, so that two hits rarely meet in one.
const SHARDS: usize = 64;

/// The change that [`Shelf::update`] makes: the resource held now in, the one to hold out. It may be called again, and
/// must not come back to the shelf.
pub type Change<'a> = &'a mut dyn FnMut(Option<&Resource>) -> Option<Resource>;

/// A store of resources by key. Looking up must be cheap and take no lock that all keys share.
pub trait Shelf: Send + Sync {
    fn find(&self, key: &Key) -> Option<Arc<Resource>>;
    /// The same for somebody who has no use for it: it counts for nothing.
    fn peek(&self, key: &Key) -> Option<Arc<Resource>> {
        self.find(key)
    }
    /// What [`find`](Self::find) finds, by borrowed words. A shelf that cannot do this has nothing at hand.
    fn find_at_hand(&self, _key: KeyRef<'_>) -> Option<Arc<Resource>> {
        None
    }
    /// Changes one resource, atomically for this key.
    fn update(&self, key: Key, change: Change<'_>);
    fn remove(&self, key: &Key);
    /// Bytes and keys held, as of the last housekeeping.
    fn size(&self) -> Size;
}

/// What a shelf holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    pub bytes: u64,
    pub keys: u64,
}

/// The memory tier: S3-FIFO, weighed by bytes (`docs/decisions/2026-11-30-the-memory-tier.md`).
///
/// A hit takes the read lock of one table of [`SHARDS`] and counts its use there; the order of eviction is touched by
/// writers only, who have fetched something and queue for one lock. Their common lock is what makes the bound on bytes
/// exact, an update atomic, and every order of locks the same: the queues first, then one table.
///
/// Keys are hashed with SipHash under a seed of this process, for clients choose them.
pub struct MemoryShelf {
    hasher: RandomState,
    tables: Tables,
    queues: Mutex<Queues>,
}

struct Tables(Box<[Table]>);

/// On a cache line of its own (two are fetched at once), so that readers of one table do not slow those of the next.
#[repr(align(128))]
struct Table(RwLock<HashTable<Held>>);

struct Held {
    hash: u64,
    slot: Slot,
    uses: AtomicU8,
    key: Key,
    resource: Arc<Resource>,
}

impl MemoryShelf {
    /// A shelf whose sites may each have all of it.
    pub fn new(bytes_max: u64) -> Self {
        Self::shared(bytes_max, bytes_max)
    }

    /// A shelf where no site holds more than `site_bytes_max`: whoever would, makes room among its own entries.
    pub fn shared(bytes_max: u64, site_bytes_max: u64) -> Self {
        let table = || Table(RwLock::new(HashTable::new()));
        Self {
            hasher: RandomState::new(),
            tables: Tables(std::iter::repeat_with(table).take(SHARDS).collect()),
            queues: Mutex::new(Queues::new(bytes_max, site_bytes_max)),
        }
    }

    /// Puts a new entry or a changed one to its place. What had to go for it is handed out, to be dropped without a lock.
    fn put(
        &self,
        queues: &mut Queues,
        hash: u64,
        key: Key,
        resource: Resource,
        slot: Option<Slot>,
    ) -> Vec<Held> {
        let weight = (key.bytes() as u64).saturating_add(resource.bytes() as u64);
        if !queues.has_room_for(weight) {
            return slot.and_then(|slot| self.take_out(queues, hash, slot)).into_iter().collect();
        }
        let mut gone = Vec::new();
        match slot {
            Some(slot) => {
                let mut table = self.tables.of(hash).write();
                if let Some(held) = table.find_mut(hash, |held| held.slot == slot) {
                    held.resource = Arc::new(resource);
                }
                drop(table);
                queues.reweigh(slot, weight, &self.tables, &mut gone);
            }
            None => {
                let slot = queues.admit(hash, weight, key.site(), &self.tables, &mut gone);
                let held = Held { hash, slot, uses: AtomicU8::new(0), key, resource: Arc::new(resource) };
                self.tables.of(hash).write().insert_unique(hash, held, |held| held.hash);
            }
        }
        gone.into_iter().filter_map(|victim| self.tables.take(victim.hash, victim.slot)).collect()
    }

    fn take_out(&self, queues: &mut Queues, hash: u64, slot: Slot) -> Option<Held> {
        queues.remove(slot);
        self.tables.take(hash, slot)
    }
}

impl Tables {
    fn of(&self, hash: u64) -> &RwLock<HashTable<Held>> {
        // Bits in the middle: a table uses both ends itself.
        &self.0[(hash >> 32) as usize % SHARDS].0
    }

    fn take(&self, hash: u64, slot: Slot) -> Option<Held> {
        let mut table = self.of(hash).write();
        table.find_entry(hash, |held| held.slot == slot).ok().map(|held| held.remove().0)
    }
}

impl Uses for Tables {
    fn get(&self, hash: u64, slot: Slot) -> u8 {
        let table = self.of(hash).read();
        table.find(hash, |held| held.slot == slot).map_or(0, |held| held.uses.load(Ordering::Relaxed))
    }

    fn set(&self, hash: u64, slot: Slot, uses: u8) {
        let table = self.of(hash).read();
        if let Some(held) = table.find(hash, |held| held.slot == slot) {
            held.uses.store(uses, Ordering::Relaxed);
        }
    }
}

impl Shelf for MemoryShelf {
    fn find(&self, key: &Key) -> Option<Arc<Resource>> {
        self.find_at_hand(key.borrowed())
    }

    fn find_at_hand(&self, key: KeyRef<'_>) -> Option<Arc<Resource>> {
        let hash = self.hasher.hash_one(key);
        let table = self.tables.of(hash).read();
        let held = table.find(hash, |held| held.key.borrowed() == key)?;
        // Written only until it is full: what everybody asks for is no line that all cores write. Two hits at once may
        // count as one.
        let uses = held.uses.load(Ordering::Relaxed);
        if uses < USES_MAX {
            held.uses.store(uses + 1, Ordering::Relaxed);
        }
        Some(Arc::clone(&held.resource))
    }

    fn peek(&self, key: &Key) -> Option<Arc<Resource>> {
        let hash = self.hasher.hash_one(key);
        let table = self.tables.of(hash).read();
        table.find(hash, |held| held.key == *key).map(|held| Arc::clone(&held.resource))
    }

    fn update(&self, key: Key, change: Change<'_>) {
        let hash = self.hasher.hash_one(&key);
        let mut queues = self.queues.lock();
        let table = self.tables.of(hash).read();
        let held = table.find(hash, |held| held.key == key);
        let held = held.map(|held| (held.slot, Arc::clone(&held.resource)));
        drop(table);
        let slot = held.as_ref().map(|(slot, _)| *slot);
        let changed = change(held.as_ref().map(|(_, resource)| &**resource));
        let gone = match (changed, slot) {
            (Some(resource), slot) => self.put(&mut queues, hash, key, resource, slot),
            (None, Some(slot)) => self.take_out(&mut queues, hash, slot).into_iter().collect(),
            (None, None) => Vec::new(),
        };
        drop(queues);
        // Megabytes are freed here, and nobody waits for it.
        drop((gone, held));
    }

    fn remove(&self, key: &Key) {
        self.update(key.clone(), &mut |_| None);
    }

    fn size(&self) -> Size {
        let queues = self.queues.lock();
        Size { bytes: queues.bytes(), keys: queues.keys() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use http::{HeaderMap, Response};

    use super::*;
    use crate::admit::Admitted;
    use crate::directives::ResponseDirectives;
    use crate::entry::{Chunks, Entry, StoredBody};
    use crate::freshness::{Exchanged, Freshness};
    use crate::key::Scheme;
    use crate::tags::Birth;
    use crate::vary::Variant;

    fn key(target: &str) -> Key {
        Key::new("shop", Scheme::Http, "shop.example", target).expect("valid")
    }

    /// An entry whose `x` says which one it is.
    fn entry(x: usize, variant: &str, bytes: usize) -> Arc<Entry> {
        let when = Exchanged { asked_ms: 0, answered_ms: 0 };
        let (mut head, ()) = Response::new(()).into_parts();
        head.headers.insert("x", x.into());
        let mut request = HeaderMap::new();
        request.insert("v", variant.parse().expect("a value"));
        let variant = Variant::named([http::HeaderName::from_static("v")], &request, false);
        let freshness = Freshness::stale_at_once(&ResponseDirectives::of(&head.headers), when);
        let admitted = Admitted { freshness, variant, forbidden: Vec::new(), length: None };
        let body = StoredBody::Whole(Chunks::new(vec![vec![0u8; bytes].into()]));
        Arc::new(Entry::new(&head, admitted, 0, body, Birth::from_parts(0, 0, [])))
    }

    #[test]
    fn holds_what_was_put_and_never_more_than_its_bytes() {
        let shelf = MemoryShelf::new(100_000);
        for n in 0..1_000 {
            shelf.update(key(&format!("/{n}")), &mut |held| {
                Some(held.cloned().unwrap_or_default().with(entry(n, "", n % 7_000)))
            });
            assert!(shelf.find(&key(&format!("/{n}"))).is_some(), "what is new is there: {n}");
            assert!(shelf.size().bytes <= 100_000);
        }
        let held = (0..1_000).filter(|n| shelf.find(&key(&format!("/{n}"))).is_some()).count();
        assert_eq!(shelf.size().keys, held as u64);
        shelf.update(key("/large"), &mut |_| Some(Resource::default().with(entry(0, "", 100_001))));
        assert!(shelf.find(&key("/large")).is_none(), "larger than all of it");
        for n in 0..1_000 {
            shelf.remove(&key(&format!("/{n}")));
        }
        assert_eq!(shelf.size(), Size::default());
    }

    #[test]
    fn an_entry_that_outgrows_the_shelf_leaves_it() {
        let shelf = MemoryShelf::new(10_000);
        shelf.update(key("/a"), &mut |_| Some(Resource::default().with(entry(0, "", 10))));
        shelf.update(key("/a"), &mut |held| {
            Some(held.cloned().unwrap_or_default().with(entry(0, "b", 10_000)))
        });
        assert!(shelf.find(&key("/a")).is_none());
        assert_eq!(shelf.size(), Size::default());
    }

    /// Each thread adds its own variants to the same few keys, and takes what it has put there before out again.
    #[test]
    fn updates_of_one_key_at_once_lose_nothing() {
        const THREADS: usize = 4;
        const ROUNDS: usize = 2_000;
        let shelf = MemoryShelf::new(u64::MAX / 4);
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let shelf = &shelf;
                scope.spawn(move || {
                    let mut last: HashMap<String, Arc<Entry>> = HashMap::new();
                    for round in 0..ROUNDS {
                        let target = format!("/{}", round % 3);
                        let new = entry(round, &thread.to_string(), 1);
                        let before = last.insert(target.clone(), Arc::clone(&new));
                        shelf.update(key(&target), &mut |held| {
                            if let Some(before) = &before {
                                let held = held.expect("four threads have put something here");
                                assert!(held.holds(before), "an update was lost");
                            }
                            Some(held.cloned().unwrap_or_default().with(Arc::clone(&new)))
                        });
                        let found = shelf.find(&key(&target)).expect("just put");
                        assert!(found.holds(&new));
                    }
                });
            }
        });
        for n in 0..3 {
            assert_eq!(shelf.find(&key(&format!("/{n}"))).expect("held").len(), THREADS);
        }
        assert_eq!(shelf.size().keys, 3);
    }

    /// Whatever is removed at the same time as others put and evict: what is left fits and is counted rightly.
    #[test]
    fn threads_that_put_and_remove_leave_exact_counts() {
        let shelf = MemoryShelf::new(50_000);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let shelf = &shelf;
                scope.spawn(move || {
                    for round in 0..3_000 {
                        let target = format!("/{}", (round * 7 + thread) % 97);
                        if round % 5 == 0 {
                            shelf.remove(&key(&target));
                        } else {
                            let new = entry(round, "", round % 1_500);
                            shelf.update(key(&target), &mut |_| {
                                Some(Resource::default().with(Arc::clone(&new)))
                            });
                        }
                        assert!(shelf.size().bytes <= 50_000);
                    }
                });
            }
        });
        let found = (0..97).filter_map(|n| shelf.find(&key(&format!("/{n}"))).map(|held| (n, held)));
        let (mut keys, mut bytes) = (0, 0);
        for (n, held) in found {
            keys += 1;
            bytes += (key(&format!("/{n}")).bytes() + held.bytes()) as u64;
        }
        assert_eq!(shelf.size(), Size { bytes, keys });
    }
}
