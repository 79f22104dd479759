//! Where entries stand. The seam behind which the memory tier can be exchanged, and a disk tier put.
//!
//! Owns eviction. Refuses to know freshness: a stale entry is worth keeping for its validator.

use std::sync::Arc;

use moka::ops::compute::Op;
use moka::policy::EvictionPolicy;
use moka::sync::Cache as Moka;

use crate::entry::Resource;
use crate::key::Key;

/// The change that [`Shelf::update`] makes: the resource held now in, the one to hold out. It may be called again.
pub type Change<'a> = &'a mut dyn FnMut(Option<&Resource>) -> Option<Resource>;

/// A store of resources by key. Looking up must be cheap and take no lock that all keys share.
pub trait Shelf: Send + Sync {
    fn find(&self, key: &Key) -> Option<Arc<Resource>>;
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

/// The memory tier: moka, weighed by bytes.
///
/// Least recently used: moka's TinyLFU keeps what was popular and refuses what is new, and was below plain LRU on every
/// shop trace that it was measured on. Its hasher is seeded SipHash, for clients choose the keys.
pub struct MemoryShelf(Moka<Key, Arc<Resource>>);

impl MemoryShelf {
    pub fn new(bytes_max: u64) -> Self {
        Self(
            Moka::builder()
                .name("responses")
                .max_capacity(bytes_max)
                .weigher(|key: &Key, resource: &Arc<Resource>| {
                    u32::try_from(key.bytes().saturating_add(resource.bytes())).unwrap_or(u32::MAX)
                })
                .eviction_policy(EvictionPolicy::lru())
                .build(),
        )
    }
}

impl Shelf for MemoryShelf {
    fn find(&self, key: &Key) -> Option<Arc<Resource>> {
        self.0.get(key)
    }

    fn update(&self, key: Key, change: Change<'_>) {
        self.0.entry(key).and_compute_with(|held| {
            let held = held.map(moka::Entry::into_value);
            match (change(held.as_deref()), held.is_some()) {
                (Some(resource), _) => Op::Put(Arc::new(resource)),
                (None, true) => Op::Remove,
                (None, false) => Op::Nop,
            }
        });
    }

    fn remove(&self, key: &Key) {
        // Not `invalidate`: that does not wait its turn behind an update of the same key, and could be overtaken by it.
        self.0.entry_by_ref(key).and_compute_with(|held| if held.is_some() { Op::Remove } else { Op::Nop });
    }

    fn size(&self) -> Size {
        self.0.run_pending_tasks();
        Size { bytes: self.0.weighted_size(), keys: self.0.entry_count() }
    }
}
