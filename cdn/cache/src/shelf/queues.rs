//! In which order entries leave the memory: S3-FIFO, weighed by bytes, with a quota for each site.
//!
//! What is new waits in the *small* queue, a tenth of the memory. What nobody asks for again while it is there leaves
//! from there: a page that is asked for once never displaces one that is asked for often. What was asked for goes to
//! the *main* queue and gets another round for each time that it was used, three at most. Of what left the small queue
//! the *ghost* keeps the hash: who comes back while it is remembered goes to the main queue at once.
//!
//! Knows slots, hashes and weights; keys, values and locks are [`super::MemoryShelf`]'s. Nothing moves at a hit.
//! (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023.)

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// The number under which an entry stands here and in the table of the shelf.
pub(super) type Slot = u32;
/// Times that a use is remembered.
pub(super) const USES_MAX: u8 = 3;
/// Uses in the small queue that make an entry worth the main one.
const PROMOTED_FROM: u8 = 1;
/// The small queue's share of the memory.
const SMALL_DIVISOR: u64 = 10;
/// Second chances given before something leaves in any case. Hits that come faster than an eviction counts them down
/// could otherwise keep it from ending, and all the other writers waiting.
const CHANCES_MAX: u32 = 4_096;
const NONE: Slot = Slot::MAX;

/// Where uses are counted: beside the entries, for hits to reach without coming here.
pub(super) trait Uses {
    fn get(&self, hash: u64, slot: Slot) -> u8;
    fn set(&self, hash: u64, slot: Slot, uses: u8);
}

/// An entry that has to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Victim {
    pub(super) hash: u64,
    pub(super) slot: Slot,
}

/// The order of everything on one shelf.
#[derive(Debug)]
pub(super) struct Queues {
    places: Vec<Place>,
    free: Vec<Slot>,
    small: List,
    main: List,
    ghost: Ghost,
    sites: HashMap<Arc<str>, Site>,
    bytes_max: u64,
    site_bytes_max: u64,
}

#[derive(Debug)]
struct Place {
    hash: u64,
    weight: u64,
    site: Arc<str>,
    is_main: bool,
    /// Its neighbours in its queue, and among the entries of its site.
    links: [Links; 2],
}

#[derive(Debug, Default)]
struct Site {
    list: List,
    keys: u64,
}

const IN_QUEUE: usize = 0;
const IN_SITE: usize = 1;

#[derive(Clone, Copy, Debug)]
struct Links {
    newer: Slot,
    older: Slot,
}

/// A doubly linked list through the places: whatever is removed leaves no hole.
#[derive(Clone, Copy, Debug)]
struct List {
    newest: Slot,
    oldest: Slot,
    bytes: u64,
}

impl Default for List {
    fn default() -> Self {
        Self { newest: NONE, oldest: NONE, bytes: 0 }
    }
}

impl List {
    fn push(&mut self, places: &mut [Place], which: usize, slot: Slot) {
        places[slot as usize].links[which] = Links { newer: NONE, older: self.newest };
        match self.newest {
            NONE => self.oldest = slot,
            before => places[before as usize].links[which].newer = slot,
        }
        self.newest = slot;
        self.bytes += places[slot as usize].weight;
    }

    fn remove(&mut self, places: &mut [Place], which: usize, slot: Slot) {
        let Links { newer, older } = places[slot as usize].links[which];
        match newer {
            NONE => self.newest = older,
            newer => places[newer as usize].links[which].older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => places[older as usize].links[which].newer = newer,
        }
        self.bytes -= places[slot as usize].weight;
    }

    fn renew(&mut self, places: &mut [Place], which: usize, slot: Slot) {
        self.remove(places, which, slot);
        self.push(places, which, slot);
    }
}

impl Queues {
    /// `site_bytes_max` is what the entries of one site may hold of `bytes_max`.
    pub(super) fn new(bytes_max: u64, site_bytes_max: u64) -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
            small: List::default(),
            main: List::default(),
            ghost: Ghost::new(bytes_max - bytes_max / SMALL_DIVISOR),
            sites: HashMap::new(),
            bytes_max,
            site_bytes_max: site_bytes_max.min(bytes_max),
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.small.bytes + self.main.bytes
    }

    pub(super) fn keys(&self) -> u64 {
        (self.places.len() - self.free.len()) as u64
    }

    /// Whether something of this weight can stand here at all.
    pub(super) fn has_room_for(&self, weight: u64) -> bool {
        weight <= self.site_bytes_max
    }

    /// Makes room for a new entry and gives it a place. Only for what there [is room](Self::has_room_for) for.
    pub(super) fn admit(
        &mut self,
        hash: u64,
        weight: u64,
        site: &str,
        uses: &impl Uses,
        gone: &mut Vec<Victim>,
    ) -> Slot {
        let is_main = self.ghost.forget(hash);
        self.make_room(weight, site, uses, gone);
        let links = [Links { newer: NONE, older: NONE }; 2];
        let site =
            self.sites.get_key_value(site).map_or_else(|| Arc::from(site), |(name, _)| Arc::clone(name));
        let place = Place { hash, weight, site: Arc::clone(&site), is_main, links };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.places[slot as usize] = place;
                slot
            }
            None => {
                self.places.push(place);
                Slot::try_from(self.places.len() - 1)
                    .expect("four thousand million entries do not fit a memory")
            }
        };
        let queue = if is_main { &mut self.main } else { &mut self.small };
        queue.push(&mut self.places, IN_QUEUE, slot);
        let site = self.sites.entry(site).or_default();
        site.list.push(&mut self.places, IN_SITE, slot);
        site.keys += 1;
        slot
    }

    /// An entry has another weight now. It keeps its place, and may be among those that go.
    pub(super) fn reweigh(&mut self, slot: Slot, weight: u64, uses: &impl Uses, gone: &mut Vec<Victim>) {
        let place = &mut self.places[slot as usize];
        let before = std::mem::replace(&mut place.weight, weight);
        let queue = if place.is_main { &mut self.main } else { &mut self.small };
        queue.bytes = queue.bytes - before + weight;
        let site = Arc::clone(&place.site);
        if let Some(site) = self.sites.get_mut(&site) {
            site.list.bytes = site.list.bytes - before + weight;
        }
        if weight > before {
            self.make_room(0, &site, uses, gone);
        }
    }

    /// An entry is taken out by whoever owns it: nothing of it is remembered.
    pub(super) fn remove(&mut self, slot: Slot) {
        let queue = if self.places[slot as usize].is_main { &mut self.main } else { &mut self.small };
        queue.remove(&mut self.places, IN_QUEUE, slot);
        let name = std::mem::take(&mut self.places[slot as usize].site);
        if let Some(site) = self.sites.get_mut(&name) {
            site.list.remove(&mut self.places, IN_SITE, slot);
            site.keys -= 1;
            if site.keys == 0 {
                self.sites.remove(&name);
            }
        }
        self.free.push(slot);
    }

    fn make_room(&mut self, weight: u64, site: &str, uses: &impl Uses, gone: &mut Vec<Victim>) {
        // A site that is at its quota pays itself, before anybody else does. Where it may have all, the order of all counts.
        while self.site_bytes_max < self.bytes_max
            && let Some(held) = self.sites.get(site)
            && held.list.bytes + weight > self.site_bytes_max
        {
            let slot = self.oldest_of_site(site, uses);
            self.evict(slot, gone);
        }
        while self.bytes() + weight > self.bytes_max && self.keys() > 0 {
            let slot = self.next(uses);
            self.evict(slot, gone);
        }
    }

    fn evict(&mut self, slot: Slot, gone: &mut Vec<Victim>) {
        let Place { hash, weight, is_main, .. } = self.places[slot as usize];
        if !is_main {
            self.ghost.remember(hash, weight);
        }
        self.remove(slot);
        gone.push(Victim { hash, slot });
    }

    /// The entry that leaves next. There is one.
    fn next(&mut self, uses: &impl Uses) -> Slot {
        for _ in 0..CHANCES_MAX {
            let from_small = self.main.oldest == NONE
                || (self.small.oldest != NONE && self.small.bytes > self.bytes_max / SMALL_DIVISOR);
            let slot = if from_small { self.small.oldest } else { self.main.oldest };
            let used = uses.get(self.places[slot as usize].hash, slot);
            if from_small && used >= PROMOTED_FROM {
                self.small.remove(&mut self.places, IN_QUEUE, slot);
                self.main.push(&mut self.places, IN_QUEUE, slot);
                let place = &mut self.places[slot as usize];
                place.is_main = true;
                uses.set(place.hash, slot, 0);
            } else if !from_small && used > 0 {
                self.main.renew(&mut self.places, IN_QUEUE, slot);
                uses.set(self.places[slot as usize].hash, slot, used - 1);
            } else {
                return slot;
            }
        }
        if self.main.oldest == NONE { self.small.oldest } else { self.main.oldest }
    }

    /// The entry of one site that leaves next. There is one.
    fn oldest_of_site(&mut self, site: &str, uses: &impl Uses) -> Slot {
        let list = &mut self.sites.get_mut(site).expect("the caller has found it").list;
        for _ in 0..CHANCES_MAX {
            let slot = list.oldest;
            let hash = self.places[slot as usize].hash;
            let used = uses.get(hash, slot);
            if used == 0 {
                break;
            }
            uses.set(hash, slot, used - 1);
            list.renew(&mut self.places, IN_SITE, slot);
        }
        list.oldest
    }
}

/// Hashes of what left the small queue unasked for, as many bytes of it as the main queue may hold.
///
/// A hash costs some 50 bytes here, an entry never less than 600: a twelfth of the memory at the very most.
#[derive(Debug)]
struct Ghost {
    order: VecDeque<(u64, u64)>,
    /// The number and the weight of the remembered ones; what has another number in `order` has been forgotten.
    held: HashMap<u64, (u64, u64)>,
    next: u64,
    bytes: u64,
    bytes_max: u64,
}

impl Ghost {
    fn new(bytes_max: u64) -> Self {
        Self { order: VecDeque::new(), held: HashMap::new(), next: 0, bytes: 0, bytes_max }
    }

    fn remember(&mut self, hash: u64, weight: u64) {
        self.forget(hash);
        self.held.insert(hash, (self.next, weight));
        self.order.push_back((hash, self.next));
        self.next += 1;
        self.bytes += weight;
        while self.bytes > self.bytes_max
            && let Some((hash, number)) = self.order.pop_front()
        {
            if self.held.get(&hash).is_some_and(|(held, _)| *held == number) {
                self.forget(hash);
            }
        }
        // Those that came back leave holes.
        if self.order.len() > 2 * self.held.len() + 1_024 {
            self.order.retain(|(hash, number)| self.held.get(hash).is_some_and(|(held, _)| held == number));
        }
    }

    /// Whether it was remembered.
    fn forget(&mut self, hash: u64) -> bool {
        let Some((_, weight)) = self.held.remove(&hash) else { return false };
        self.bytes -= weight;
        true
    }
}

#[cfg(test)]
mod tests;
