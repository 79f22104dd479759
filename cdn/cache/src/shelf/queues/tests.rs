//! The queues against a model that is too simple to be wrong: plain lists, searched from end to end.

use std::cell::RefCell;

use proptest::prelude::*;

use super::*;

/// Uses by slot, as the table of a shelf has them.
#[derive(Default)]
struct Counters(RefCell<HashMap<Slot, u8>>);

impl Uses for Counters {
    fn get(&self, _: u64, slot: Slot) -> u8 {
        self.0.borrow().get(&slot).copied().unwrap_or(0)
    }

    fn set(&self, _: u64, slot: Slot, uses: u8) {
        self.0.borrow_mut().insert(slot, uses);
    }
}

/// What the shelf makes of the queues, without its locks.
struct Ours {
    queues: Queues,
    uses: Counters,
    slots: HashMap<u64, Slot>,
}

impl Ours {
    fn new(bytes_max: u64, site_bytes_max: u64) -> Self {
        Self {
            queues: Queues::new(bytes_max, site_bytes_max),
            uses: Counters::default(),
            slots: HashMap::new(),
        }
    }

    /// Whether it was there.
    fn ask(&mut self, hash: u64, weight: u64, site: &str) -> bool {
        if let Some(slot) = self.slots.get(&hash) {
            let uses = self.uses.get(hash, *slot);
            self.uses.set(hash, *slot, (uses + 1).min(USES_MAX));
            return true;
        }
        if self.queues.has_room_for(weight) {
            let mut gone = Vec::new();
            let slot = self.queues.admit(hash, weight, site, &self.uses, &mut gone);
            self.forget(&gone);
            self.slots.insert(hash, slot);
            self.uses.set(hash, slot, 0);
        }
        false
    }

    fn forget(&mut self, gone: &[Victim]) {
        for victim in gone {
            assert_eq!(self.slots.remove(&victim.hash), Some(victim.slot));
        }
    }

    fn remove(&mut self, hash: u64) {
        if let Some(slot) = self.slots.remove(&hash) {
            self.queues.remove(slot);
        }
    }

    fn reweigh(&mut self, hash: u64, weight: u64) {
        if let Some(slot) = self.slots.get(&hash).copied().filter(|_| self.queues.has_room_for(weight)) {
            let mut gone = Vec::new();
            self.queues.reweigh(slot, weight, &self.uses, &mut gone);
            self.forget(&gone);
        }
    }
}

/// S3-FIFO as it is told, for one site.
#[derive(Default)]
struct Model {
    /// The oldest first: hash, weight, uses.
    small: Vec<(u64, u64, u8)>,
    main: Vec<(u64, u64, u8)>,
    ghost: Vec<(u64, u64)>,
    bytes_max: u64,
}

fn sum<T>(list: &[T], weight: impl Fn(&T) -> u64) -> u64 {
    list.iter().map(weight).sum()
}

impl Model {
    fn ask(&mut self, hash: u64, weight: u64) -> bool {
        if let Some(held) = self.small.iter_mut().chain(&mut self.main).find(|held| held.0 == hash) {
            held.2 = (held.2 + 1).min(USES_MAX);
            return true;
        }
        if weight > self.bytes_max {
            return false;
        }
        let returns = self.ghost.iter().position(|held| held.0 == hash).map(|at| self.ghost.remove(at));
        self.make_room(weight);
        if returns.is_some() { &mut self.main } else { &mut self.small }.push((hash, weight, 0));
        false
    }

    fn make_room(&mut self, weight: u64) {
        let ghost_max = self.bytes_max - self.bytes_max / 10;
        while sum(&self.small, |held| held.1) + sum(&self.main, |held| held.1) + weight > self.bytes_max {
            let small = sum(&self.small, |held| held.1);
            if self.main.is_empty() || (!self.small.is_empty() && small > self.bytes_max / 10) {
                let (hash, weight, uses) = self.small.remove(0);
                if uses >= 1 {
                    self.main.push((hash, weight, 0));
                    continue;
                }
                self.ghost.push((hash, weight));
                while sum(&self.ghost, |held| held.1) > ghost_max {
                    self.ghost.remove(0);
                }
            } else {
                let (hash, weight, uses) = self.main.remove(0);
                if uses > 0 {
                    self.main.push((hash, weight, uses - 1));
                }
            }
        }
    }

    fn remove(&mut self, hash: u64) {
        self.small.retain(|held| held.0 != hash);
        self.main.retain(|held| held.0 != hash);
    }

    fn reweigh(&mut self, hash: u64, weight: u64) {
        if weight > self.bytes_max {
            return;
        }
        if let Some(held) = self.small.iter_mut().chain(&mut self.main).find(|held| held.0 == hash) {
            held.1 = weight;
        }
        self.make_room(0);
    }

    fn hashes(&self) -> Vec<u64> {
        let mut all: Vec<u64> = self.small.iter().chain(&self.main).map(|held| held.0).collect();
        all.sort_unstable();
        all
    }
}

#[derive(Clone, Debug)]
enum Step {
    Ask(u64, u64),
    Remove(u64),
    Reweigh(u64, u64),
}

fn step() -> impl Strategy<Value = Step> {
    let key = || (0u64..40, 0u64..4).prop_map(|(any, few)| if few == 0 { any } else { any % 8 });
    prop_oneof![
        8 => (key(), 1u64..30).prop_map(|(key, weight)| Step::Ask(key, weight)),
        1 => key().prop_map(Step::Remove),
        1 => (key(), 1u64..30).prop_map(|(key, weight)| Step::Reweigh(key, weight)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn holds_what_a_naive_model_holds(
        bytes_max in 10u64..200, steps in proptest::collection::vec(step(), 1..400),
    ) {
        let mut ours = Ours::new(bytes_max, bytes_max);
        let mut model = Model { bytes_max, ..Model::default() };
        for step in steps {
            match step {
                Step::Ask(hash, weight) => {
                    prop_assert_eq!(ours.ask(hash, weight, "s"), model.ask(hash, weight));
                }
                Step::Remove(hash) => {
                    ours.remove(hash);
                    model.remove(hash);
                }
                Step::Reweigh(hash, weight) => {
                    ours.reweigh(hash, weight);
                    model.reweigh(hash, weight);
                }
            }
            let mut held: Vec<u64> = ours.slots.keys().copied().collect();
            held.sort_unstable();
            prop_assert_eq!(held, model.hashes());
            prop_assert!(ours.queues.bytes() <= bytes_max);
            prop_assert_eq!(ours.queues.keys(), ours.slots.len() as u64);
        }
    }

    #[test]
    fn no_site_is_ever_above_its_quota_nor_all_of_them_above_the_memory(
        site_bytes_max in 10u64..120,
        steps in proptest::collection::vec((0u64..60, 1u64..30, 0usize..3), 1..400),
    ) {
        const NAMES: [&str; 3] = ["a", "b", "c"];
        let mut ours = Ours::new(100, site_bytes_max);
        for (key, weight, site) in steps {
            ours.ask(key * 3 + site as u64, weight, NAMES[site]);
            let mut all = 0;
            for name in NAMES {
                let held = ours.queues.sites.get(name).map_or(0, |site| site.list.bytes);
                prop_assert!(held <= site_bytes_max, "{} holds {}", name, held);
                all += held;
            }
            prop_assert!(all <= 100 && all == ours.queues.bytes());
        }
    }
}

/// The share of hits of a quiet site over a trace of its own, beside a neighbour who writes ten times as much and asks for
/// each of its pages often enough to have it kept.
fn hits(beside_a_greedy_one: bool, site_bytes_max: u64) -> f64 {
    const PAGES: u64 = 400;
    const ASKED: u32 = 40_000;
    let mut ours = Ours::new(1_000, site_bytes_max);
    let (mut hits, mut random, mut greedy) = (0, 7u64, 1_000_000);
    for _ in 0..ASKED {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let share = (random >> 33) as f64 / (1u64 << 31) as f64;
        // Popularity falls: some pages are asked for all the time, most of them now and then.
        let page = (share * share * PAGES as f64) as u64;
        hits += u32::from(ours.ask(page, 1, "quiet"));
        for _ in 0..if beside_a_greedy_one { 10 } else { 0 } {
            greedy += 1;
            for _ in 0..3 {
                ours.ask(greedy, 1, "greedy");
            }
        }
    }
    f64::from(hits) / f64::from(ASKED)
}

#[test]
fn a_site_that_writes_ten_times_as_much_does_not_push_others_out() {
    let (alone, beside) = (hits(false, 500), hits(true, 500));
    assert!(alone - beside < 0.05, "{alone} alone, {beside} beside the greedy one");
    let without_quota = hits(true, 1_000);
    assert!(alone - without_quota > 0.05, "the trace needs no quota: {without_quota} without one");
}

#[test]
fn what_is_asked_for_once_never_displaces_what_is_asked_for_twice() {
    let mut ours = Ours::new(100, 100);
    for page in 0..80 {
        ours.ask(page, 1, "s");
        ours.ask(page, 1, "s");
    }
    // A crawler reads the whole shop.
    for page in 1_000..11_000 {
        ours.ask(page, 1, "s");
    }
    assert!((0..80).all(|page| ours.slots.contains_key(&page)));
}
