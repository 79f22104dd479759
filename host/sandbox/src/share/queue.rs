//! The queue itself: who waits, who is next, and each site's virtual clock. No thread, no clock of its own, no I/O.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use souk_commerce::id::SiteId;

/// What a call of a site that nobody knows yet is charged at first: a typical hook.
const COST_FIRST_NS: u64 = 100_000;
/// A site whose calls cost this much is one of long calls. Ten typical hooks, and a tenth of what a shopper notices.
const LONG_NS: u64 = 1_000_000;
/// Sites whose clocks are kept at least. A clock in the past says nothing and is forgotten when there are more.
const FLOWS_KEPT_MIN: usize = 1_024;

/// Nanoseconds of processor time, divided by a weight.
type Virtual = u64;

/// `W` is how a caller who waits is told.
pub(super) struct Queue<W> {
    turns: usize,
    running: usize,
    waiting_max: usize,
    /// The clock of whoever was let in last.
    now: Virtual,
    /// The clock of whoever is furthest ahead.
    latest: Virtual,
    flows: HashMap<SiteId, Flow<W>>,
    /// Sites that could use a turn now, by their clocks.
    ready: BTreeSet<(Virtual, SiteId)>,
    sweep_at: usize,
    /// Whether a caller who waits has given up.
    is_gone: fn(&W) -> bool,
}

/// What the queue knows of one site.
struct Flow<W> {
    weight: u32,
    /// The site's clock: where its last call will have ended.
    finish: Virtual,
    /// What a call of this site costs, lately.
    cost_ns: u64,
    running: usize,
    waiting: VecDeque<W>,
    /// Its key in [`Queue::ready`], if it is there.
    ready_at: Option<Virtual>,
}

/// A turn that was given, with what it was charged.
#[derive(Debug)]
pub(super) struct Grant {
    site: SiteId,
    charged_ns: u64,
    /// The site's calls have been long lately.
    pub(super) is_long: bool,
}

impl Grant {
    pub(super) fn site(&self) -> &SiteId {
        &self.site
    }
}

#[derive(Debug)]
pub(super) enum Asked {
    Granted(Grant),
    Queued,
    Full { waiting: usize },
}

impl<W> Flow<W> {
    fn new() -> Self {
        Self {
            weight: 1,
            finish: 0,
            cost_ns: COST_FIRST_NS,
            running: 0,
            waiting: VecDeque::new(),
            ready_at: None,
        }
    }

    fn is_long(&self) -> bool {
        self.cost_ns >= LONG_NS
    }

    /// Whether the site may have one more of the turns. One of long calls leaves one for the others.
    fn may_run(&self, turns: usize) -> bool {
        self.running < if self.is_long() { turns - 1 } else { turns }
    }

    fn is_idle(&self) -> bool {
        self.running == 0 && self.waiting.is_empty()
    }

    fn virtually(&self, ns: u64) -> Virtual {
        ns / u64::from(self.weight)
    }

    /// Quickly up, slowly down: a site that is sometimes long is to be taken for one that is.
    fn learn(&mut self, used_ns: u64) {
        self.cost_ns = if used_ns > self.cost_ns {
            self.cost_ns.midpoint(used_ns)
        } else {
            self.cost_ns - self.cost_ns / 16 + used_ns / 16
        };
    }
}

impl<W> Queue<W> {
    /// `turns` is at least two.
    pub(super) fn new(turns: usize, waiting_max: usize, is_gone: fn(&W) -> bool) -> Self {
        assert!(turns >= 2, "one turn could not be kept free of long calls");
        Self {
            turns,
            running: 0,
            waiting_max,
            now: 0,
            latest: 0,
            flows: HashMap::new(),
            ready: BTreeSet::new(),
            sweep_at: FLOWS_KEPT_MIN,
            is_gone,
        }
    }

    pub(super) fn weigh(&mut self, site: &SiteId, weight: u32) {
        self.flow(site).weight = weight.max(1);
    }

    fn flow(&mut self, site: &SiteId) -> &mut Flow<W> {
        if !self.flows.contains_key(site) {
            if self.flows.len() >= self.sweep_at {
                let now = self.now;
                self.flows.retain(|_, flow| !flow.is_idle() || flow.finish > now || flow.weight != 1);
                self.sweep_at = (self.flows.len() * 2).max(FLOWS_KEPT_MIN);
            }
            self.flows.insert(site.clone(), Flow::new());
        }
        self.flows.get_mut(site).expect("put there just now")
    }

    /// A turn, or a place in the site's queue, in which `waiter` is put.
    pub(super) fn ask(&mut self, site: &SiteId, may_refuse: bool, waiter: impl FnOnce() -> W) -> Asked {
        let (turns, waiting_max, is_gone) = (self.turns, self.waiting_max, self.is_gone);
        let free = self.running < turns && self.ready.is_empty();
        let flow = self.flow(site);
        if free && flow.waiting.is_empty() && flow.may_run(turns) {
            return Asked::Granted(self.admit(site));
        }
        if may_refuse && flow.waiting.len() >= waiting_max {
            flow.waiting.retain(|waiter| !is_gone(waiter));
            if flow.waiting.len() >= waiting_max {
                return Asked::Full { waiting: flow.waiting.len() };
            }
        }
        flow.waiting.push_back(waiter());
        self.place(site);
        Asked::Queued
    }

    /// Ends a turn that has used so much, and gives what is free to whoever is next.
    pub(super) fn give_back(&mut self, grant: &Grant, used: Duration) -> Vec<(W, Grant)> {
        let used_ns = u64::try_from(used.as_nanos()).unwrap_or(u64::MAX);
        let flow = self.flow(&grant.site);
        // The clock may go back, but never to before the call began: `charged` was added to it then.
        let charged = flow.virtually(grant.charged_ns);
        flow.finish = flow.finish.saturating_sub(charged).saturating_add(flow.virtually(used_ns));
        flow.learn(used_ns);
        flow.running -= 1;
        let finish = flow.finish;
        self.latest = self.latest.max(finish);
        self.running -= 1;
        self.place(&grant.site);

        let (mut next, is_gone) = (Vec::new(), self.is_gone);
        while self.running < self.turns {
            let Some((at, site)) = self.ready.pop_first() else { break };
            let flow = self.flow(&site);
            flow.ready_at = None;
            let waiter = std::iter::from_fn(|| flow.waiting.pop_front()).find(|waiter| !is_gone(waiter));
            if let Some(waiter) = waiter {
                self.now = self.now.max(at);
                next.push((waiter, self.admit(&site)));
            }
            self.place(&site);
        }
        if self.running == 0 {
            // Nobody wants anything: whatever was used was free.
            self.now = self.now.max(self.latest);
        }
        next
    }

    fn admit(&mut self, site: &SiteId) -> Grant {
        let now = self.now;
        let flow = self.flow(site);
        let start = flow.finish.max(now);
        let charged_ns = flow.cost_ns;
        flow.finish = start.saturating_add(flow.virtually(charged_ns));
        flow.running += 1;
        let is_long = flow.is_long();
        self.now = start;
        self.running += 1;
        Grant { site: site.clone(), charged_ns, is_long }
    }

    /// Puts a site where it belongs in `ready`, or takes it out.
    fn place(&mut self, site: &SiteId) {
        let (turns, now) = (self.turns, self.now);
        let flow = self.flow(site);
        let at = (!flow.waiting.is_empty() && flow.may_run(turns)).then(|| flow.finish.max(now));
        let was = std::mem::replace(&mut flow.ready_at, at);
        if was != at {
            if let Some(was) = was {
                self.ready.remove(&(was, site.clone()));
            }
            if let Some(at) = at {
                self.ready.insert((at, site.clone()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn site(name: &str) -> SiteId {
        name.parse().expect("a site")
    }

    /// A machine on which each call of a site takes its time, and every site always has more.
    struct World {
        queue: Queue<SiteId>,
        running: Vec<(Duration, Grant)>,
        now: Duration,
        calls: HashMap<SiteId, (Duration, usize)>,
        used: HashMap<SiteId, Duration>,
    }

    impl World {
        fn new(turns: usize) -> Self {
            let queue = Queue::new(turns, 1_000, |_| false);
            Self {
                queue,
                running: Vec::new(),
                now: Duration::ZERO,
                calls: HashMap::new(),
                used: HashMap::new(),
            }
        }

        fn add(&mut self, name: &str, call: Duration, at_once: usize) {
            self.calls.insert(site(name), (call, at_once));
            (0..at_once).for_each(|_| self.ask(&site(name)));
        }

        fn ask(&mut self, name: &SiteId) {
            if let Asked::Granted(grant) = self.queue.ask(name, true, || name.clone()) {
                self.begin(grant);
            }
        }

        fn begin(&mut self, grant: Grant) {
            self.running.push((self.now + self.calls[&grant.site].0, grant));
        }

        /// The next call ends, and its caller asks again.
        fn step(&mut self) {
            let first = (0..self.running.len()).min_by_key(|&i| self.running[i].0).expect("something runs");
            let (ends, grant) = self.running.swap_remove(first);
            self.now = ends;
            let took = self.calls[&grant.site].0;
            *self.used.entry(grant.site.clone()).or_default() += took;
            for (_, next) in self.queue.give_back(&grant, took) {
                self.begin(next);
            }
            self.ask(&grant.site);
        }

        fn run_for(&mut self, time: Duration) {
            let end = self.now + time;
            while self.now < end {
                self.step();
            }
        }

        fn used(&self, name: &str) -> f64 {
            self.used.get(&site(name)).copied().unwrap_or_default().as_secs_f64()
        }
    }

    #[test]
    fn sites_get_the_same_processor_time_however_long_their_calls_and_however_many() {
        let mut world = World::new(4);
        world.add("long", 5 * MS, 60);
        world.add("short", MS / 10, 8);
        world.add("middling", MS, 16);
        world.run_for(2_000 * MS);
        let each: Vec<f64> = ["long", "short", "middling"].iter().map(|name| world.used(name)).collect();
        let whole: f64 = each.iter().sum();
        assert!(whole > 4.0 * 2.0 * 0.98, "turns stood idle: {whole}");
        for used in &each {
            assert!((used / whole - 1.0 / 3.0).abs() < 0.02, "{each:?}");
        }
    }

    #[test]
    fn a_weight_is_so_many_times_the_share() {
        let mut world = World::new(2);
        world.add("big", MS / 4, 20);
        world.add("small", MS / 4, 20);
        world.queue.weigh(&site("big"), 3);
        world.run_for(1_000 * MS);
        let ratio = world.used("big") / world.used("small");
        assert!((2.9..3.1).contains(&ratio), "{ratio}");
    }

    #[test]
    fn a_site_of_long_calls_leaves_a_turn_for_whoever_comes() {
        let mut world = World::new(2);
        world.add("long", 5 * MS, 50);
        world.run_for(100 * MS);
        for _ in 0..100 {
            let Asked::Granted(grant) = world.queue.ask(&site("quick"), true, || site("quick")) else {
                panic!("a call of 0.1 ms waits for one of 5 ms");
            };
            assert!(!grant.is_long);
            assert!(world.queue.give_back(&grant, MS / 10).is_empty());
            world.step();
        }
    }

    #[test]
    fn nobody_saves_up_and_nobody_pays_for_what_was_free() {
        let mut world = World::new(2);
        // Ten seconds alone, while the other has nothing to do ...
        world.add("first", MS / 2, 10);
        world.run_for(10_000 * MS);
        let alone = world.used("first");
        // ... and then both get the same at once.
        world.add("second", MS / 2, 10);
        world.run_for(200 * MS);
        let (first, second) = (world.used("first") - alone, world.used("second"));
        assert!((first / second - 1.0).abs() < 0.05, "{first} {second}");
    }

    #[test]
    fn callers_that_gave_up_cost_nothing() {
        let mut queue: Queue<u32> = Queue::new(2, 5, |waiter| *waiter != 4);
        let grant = |asked| match asked {
            Asked::Granted(grant) => grant,
            other => panic!("{other:?}"),
        };
        let held = [grant(queue.ask(&site("a"), true, || 0)), grant(queue.ask(&site("a"), true, || 0))];
        for waiter in 1..=5 {
            assert!(matches!(queue.ask(&site("a"), true, || waiter), Asked::Queued));
        }
        // The queue looks full, and one of five still waits.
        assert!(matches!(queue.ask(&site("a"), true, || 6), Asked::Queued));
        let next = queue.give_back(&held[0], MS / 10);
        assert_eq!(next.iter().map(|(waiter, _)| *waiter).collect::<Vec<_>>(), [4]);
        assert!(queue.give_back(&held[1], MS / 10).is_empty());
        assert!(queue.give_back(&next[0].1, MS / 10).is_empty());
        assert_eq!((queue.running, queue.ready.len()), (0, 0));
    }

    #[test]
    fn clocks_in_the_past_are_forgotten() {
        let mut queue: Queue<()> = Queue::new(2, 10, |()| false);
        for n in 0..10 * FLOWS_KEPT_MIN {
            let Asked::Granted(grant) = queue.ask(&site(&format!("s{n}")), true, || ()) else {
                panic!("free")
            };
            queue.give_back(&grant, MS / 100);
        }
        assert!(queue.flows.len() <= 3 * FLOWS_KEPT_MIN, "{}", queue.flows.len());
    }
}
