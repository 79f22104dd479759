//! The queue itself: who waits, who is next, and each site's virtual clock. No thread, no clock of its own, no I/O.
//!
//! A call is **long** if the site's calls for that [`Task`] have cost a millisecond or more lately, else **short**. At
//! most `turns - 1` long calls run at a time. A short call takes a free turn, or one **beside** a running long call
//! of a hook whose site is further ahead than its own: the long one runs in the lane, where the kernel takes its
//! processor away for it, so that this is a preemption in all but name. A long poll of an HTTP plugin runs where requests
//! are served, so nothing is put beside it; it ends with its slice.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use souk_commerce::id::SiteId;

use super::Task;

/// What a call that nobody knows yet is charged at first: a typical hook.
const COST_FIRST_NS: u64 = 100_000;
/// A call that costs this much is long. Ten typical hooks, and a tenth of what a shopper notices.
const LONG_NS: u64 = 1_000_000;
/// What one call can teach: twice a hook's deadline. More than that is time which the hypervisor took and the kernel booked
/// as the thread's own, and would keep a short task in the lane for a hundred calls.
const COST_NS_MAX: u64 = 10_000_000;
/// Sites whose clocks are kept at least. A clock in the past says nothing and is forgotten when there are more.
const FLOWS_KEPT_MIN: usize = 1_024;

/// Nanoseconds of processor time, divided by a weight.
type Virtual = u64;

/// `W` is how a caller who waits is told.
pub(super) struct Queue<W> {
    turns: usize,
    short_running: usize,
    /// For each long call that runs, the clock of a site that may pass it: before where its own site's clock was put when
    /// it began. Nobody passes what does not run in the lane.
    long_running: Vec<Virtual>,
    waiting_max: usize,
    /// The clock of whoever was let in last.
    now: Virtual,
    /// The clock of whoever is furthest ahead.
    latest: Virtual,
    flows: HashMap<SiteId, Flow<W>>,
    /// The first call that waits for each task of each site, by the sites' clocks.
    short_ready: BTreeSet<Ready>,
    long_ready: BTreeSet<Ready>,
    /// Numbers the callers that wait, in the order in which they came.
    arrivals: u64,
    sweep_at: usize,
    /// Whether a caller who waits has given up.
    is_gone: fn(&W) -> bool,
}

/// By clock; within a site whoever has waited longer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Ready {
    at: Virtual,
    arrival: u64,
    site: SiteId,
    task: Task,
}

/// What the queue knows of one site.
struct Flow<W> {
    weight: u32,
    /// The site's clock: where its last call will have ended.
    finish: Virtual,
    running: usize,
    lines: [Line<W>; Task::COUNT],
}

/// The calls of one site for one task.
struct Line<W> {
    /// What one costs, lately.
    cost_ns: u64,
    waiting: VecDeque<(u64, W)>,
    /// Its place among those that are ready, if it has one.
    place: Option<Place>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    at: Virtual,
    arrival: u64,
    is_long: bool,
}

/// A turn that was given, with what it was charged.
#[derive(Debug)]
pub(super) struct Grant {
    site: SiteId,
    task: Task,
    /// By the weight that the site had then.
    charged: Virtual,
    /// Among [`Queue::long_running`], if it is long.
    passed_before: Virtual,
    /// The site's calls for this task have been long lately.
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

impl<W> Line<W> {
    fn new() -> Self {
        Self { cost_ns: COST_FIRST_NS, waiting: VecDeque::new(), place: None }
    }

    fn is_long(&self) -> bool {
        self.cost_ns >= LONG_NS
    }

    /// Quickly up, slowly down: what is sometimes long is to be taken for long.
    fn learn(&mut self, used_ns: u64) {
        let used_ns = used_ns.min(COST_NS_MAX);
        self.cost_ns = if used_ns > self.cost_ns {
            self.cost_ns.midpoint(used_ns)
        } else {
            self.cost_ns - self.cost_ns / 16 + used_ns / 16
        };
    }
}

impl<W> Flow<W> {
    fn new() -> Self {
        Self { weight: 1, finish: 0, running: 0, lines: std::array::from_fn(|_| Line::new()) }
    }

    fn is_idle(&self) -> bool {
        self.running == 0 && self.lines.iter().all(|line| line.waiting.is_empty())
    }

    fn virtually(&self, ns: u64) -> Virtual {
        ns / u64::from(self.weight)
    }
}

impl<W> Queue<W> {
    /// `turns` is at least two.
    pub(super) fn new(turns: usize, waiting_max: usize, is_gone: fn(&W) -> bool) -> Self {
        assert!(turns >= 2, "one turn could not be kept free of long calls");
        Self {
            turns,
            short_running: 0,
            long_running: Vec::with_capacity(turns),
            waiting_max,
            now: 0,
            latest: 0,
            flows: HashMap::new(),
            short_ready: BTreeSet::new(),
            long_ready: BTreeSet::new(),
            arrivals: 0,
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

    /// Whether a call whose site's clock is at `at` may begin now.
    fn may_begin(&self, is_long: bool, at: Virtual) -> bool {
        let running = self.short_running + self.long_running.len();
        if is_long {
            return running < self.turns && self.long_running.len() < self.turns - 1;
        }
        let behind_me = || self.long_running.iter().filter(|&&long| long > at).count();
        self.short_running < self.turns && (running < self.turns || running < self.turns + behind_me())
    }

    fn ready(&mut self, is_long: bool) -> &mut BTreeSet<Ready> {
        if is_long { &mut self.long_ready } else { &mut self.short_ready }
    }

    /// A turn, or a place in the site's queue, in which `waiter` is put.
    pub(super) fn ask(
        &mut self,
        site: &SiteId,
        task: Task,
        may_refuse: bool,
        waiter: impl FnOnce() -> W,
    ) -> Asked {
        let (now, waiting_max, is_gone) = (self.now, self.waiting_max, self.is_gone);
        let flow = self.flow(site);
        let at = flow.finish.max(now);
        let line = &mut flow.lines[task.index()];
        let (is_long, is_first) = (line.is_long(), line.waiting.is_empty());
        if is_first
            && self.may_begin(is_long, at)
            && self.ready(is_long).first().is_none_or(|first| at < first.at)
        {
            return Asked::Granted(self.admit(site, task));
        }
        let waiting = &mut self.flow(site).lines[task.index()].waiting;
        if may_refuse && waiting.len() >= waiting_max {
            waiting.retain(|(_, waiter)| !is_gone(waiter));
            if waiting.len() >= waiting_max {
                return Asked::Full { waiting: waiting.len() };
            }
        }
        let arrival = self.arrivals;
        self.arrivals += 1;
        self.flow(site).lines[task.index()].waiting.push_back((arrival, waiter()));
        self.place(site);
        Asked::Queued
    }

    /// Ends a turn that has used so much, and gives what is free to whoever is next.
    pub(super) fn give_back(&mut self, grant: &Grant, used: Duration) -> Vec<(W, Grant)> {
        let used_ns = u64::try_from(used.as_nanos()).unwrap_or(u64::MAX);
        let flow = self.flow(&grant.site);
        // The clock may go back, but never to before the call began: `charged` was added to it then.
        flow.finish = flow.finish.saturating_sub(grant.charged).saturating_add(flow.virtually(used_ns));
        flow.lines[grant.task.index()].learn(used_ns);
        flow.running -= 1;
        let finish = flow.finish;
        self.latest = self.latest.max(finish);
        if grant.is_long {
            let at = self.long_running.iter().position(|&before| before == grant.passed_before);
            self.long_running.swap_remove(at.expect("noted when it began"));
        } else {
            self.short_running -= 1;
        }
        self.place(&grant.site);

        let mut next = Vec::new();
        while let Some(Ready { at, site, task, .. }) = self.next() {
            let is_gone = self.is_gone;
            let line = &mut self.flow(&site).lines[task.index()];
            let waiter = std::iter::from_fn(|| line.waiting.pop_front()).find(|(_, waiter)| !is_gone(waiter));
            if let Some((_, waiter)) = waiter {
                self.now = self.now.max(at);
                next.push((waiter, self.admit(&site, task)));
            }
            self.place(&site);
        }
        if self.short_running == 0 && self.long_running.is_empty() {
            // Nobody wants anything: whatever was used was free.
            self.now = self.now.max(self.latest);
        }
        next
    }

    /// Whoever may begin now and is furthest behind.
    fn next(&self) -> Option<Ready> {
        let may_begin = |is_long: bool| {
            move |ready: &&Ready| {
                // Those after the first are further ahead: if it may not begin, they may not.
                self.may_begin(is_long, ready.at)
            }
        };
        let short = self.short_ready.first().filter(may_begin(false));
        let long = self.long_ready.first().filter(may_begin(true));
        short.into_iter().chain(long).min().cloned()
    }

    fn admit(&mut self, site: &SiteId, task: Task) -> Grant {
        let now = self.now;
        let flow = self.flow(site);
        let start = flow.finish.max(now);
        let line = &flow.lines[task.index()];
        let (charged, is_long) = (flow.virtually(line.cost_ns), line.is_long());
        let finish = start.saturating_add(charged);
        flow.finish = finish;
        flow.running += 1;
        self.now = start;
        let passed_before = if task == Task::Http { 0 } else { finish };
        if is_long {
            self.long_running.push(passed_before);
        } else {
            self.short_running += 1;
        }
        Grant { site: site.clone(), task, charged, passed_before, is_long }
    }

    /// Puts what waits of a site where it belongs among those that are ready.
    fn place(&mut self, site: &SiteId) {
        let now = self.now;
        for task in Task::ALL {
            let flow = self.flow(site);
            let at = flow.finish.max(now);
            let line = &mut flow.lines[task.index()];
            let is_long = line.is_long();
            let place = line.waiting.front().map(|&(arrival, _)| Place { at, arrival, is_long });
            let was = std::mem::replace(&mut line.place, place);
            if was == place {
                continue;
            }
            let ready = |Place { at, arrival, .. }: Place| Ready { at, arrival, site: site.clone(), task };
            if let Some(was) = was {
                self.ready(was.is_long).remove(&ready(was));
            }
            if let Some(place) = place {
                self.ready(place.is_long).insert(ready(place));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use souk_commerce::site::Hook;

    use super::*;

    const PRICING: Task = Task::Hook(Hook::Pricing);
    const CATALOG: Task = Task::Hook(Hook::Catalog);

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
            if let Asked::Granted(grant) = self.queue.ask(name, PRICING, true, || name.clone()) {
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
    fn long_calls_leave_a_turn_for_whoever_comes_their_own_site_too() {
        let mut world = World::new(2);
        world.add("long", 5 * MS, 50);
        world.run_for(100 * MS);
        for (name, task) in [("quick", PRICING), ("long", CATALOG)].repeat(50) {
            let Asked::Granted(grant) = world.queue.ask(&site(name), task, true, || site(name)) else {
                panic!("a call of 0.1 ms of {name} waits for one of 5 ms");
            };
            assert!(!grant.is_long);
            assert!(world.queue.give_back(&grant, MS / 10).is_empty());
            world.step();
        }
    }

    #[test]
    fn short_calls_take_every_turn_beside_a_long_one_until_their_site_has_used_as_much() {
        let mut world = World::new(2);
        world.add("long", 5 * MS, 1);
        world.run_for(100 * MS);
        let quick = site("quick");
        let mut held = Vec::new();
        let mut beside = 0;
        // Two at a time, while the long call goes on.
        loop {
            match world.queue.ask(&quick, PRICING, true, || quick.clone()) {
                Asked::Granted(grant) => held.push(grant),
                Asked::Queued => break,
                Asked::Full { waiting } => panic!("{waiting} wait"),
            }
            if held.len() == 2 {
                beside += 1;
                assert!(world.queue.give_back(&held.remove(0), MS / 10).is_empty());
            }
        }
        assert!((40..=60).contains(&beside), "{beside} calls of 0.1 ms overtook one of 5 ms");
        assert_eq!(held.len(), 1, "one turn is the short calls' in any case");
    }

    #[test]
    fn nothing_is_put_beside_a_long_poll() {
        let mut queue: Queue<()> = Queue::new(2, 10, |()| false);
        let (http, quick) = (site("http"), site("quick"));
        for _ in 0..5 {
            let Asked::Granted(grant) = queue.ask(&http, Task::Http, true, || ()) else { panic!("free") };
            assert!(queue.give_back(&grant, 4 * MS).is_empty());
        }
        assert!(matches!(queue.ask(&http, Task::Http, true, || ()), Asked::Granted(grant) if grant.is_long));
        assert!(matches!(queue.ask(&quick, PRICING, true, || ()), Asked::Granted(_)));
        assert!(matches!(queue.ask(&quick, PRICING, true, || ()), Asked::Queued));
    }

    #[test]
    fn what_waits_for_one_task_is_not_refused_for_another() {
        let mut queue: Queue<()> = Queue::new(2, 1, |()| false);
        let a = site("a");
        let held: Vec<_> = (0..2).map(|_| queue.ask(&a, PRICING, true, || ())).collect();
        assert!(held.iter().all(|asked| matches!(asked, Asked::Granted(_))));
        assert!(matches!(queue.ask(&a, PRICING, true, || ()), Asked::Queued));
        assert!(matches!(queue.ask(&a, PRICING, true, || ()), Asked::Full { waiting: 1 }));
        assert!(matches!(queue.ask(&a, CATALOG, true, || ()), Asked::Queued));
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
        let held = [
            grant(queue.ask(&site("a"), PRICING, true, || 0)),
            grant(queue.ask(&site("a"), PRICING, true, || 0)),
        ];
        for waiter in 1..=5 {
            assert!(matches!(queue.ask(&site("a"), PRICING, true, || waiter), Asked::Queued));
        }
        // The queue looks full, and one of five still waits.
        assert!(matches!(queue.ask(&site("a"), PRICING, true, || 6), Asked::Queued));
        let next = queue.give_back(&held[0], MS / 10);
        assert_eq!(next.iter().map(|(waiter, _)| *waiter).collect::<Vec<_>>(), [4]);
        assert!(queue.give_back(&held[1], MS / 10).is_empty());
        assert!(queue.give_back(&next[0].1, MS / 10).is_empty());
        assert_eq!((queue.short_running, queue.long_running.len()), (0, 0));
        assert!(queue.short_ready.is_empty() && queue.long_ready.is_empty());
    }

    #[test]
    fn clocks_in_the_past_are_forgotten() {
        let mut queue: Queue<()> = Queue::new(2, 10, |()| false);
        for n in 0..10 * FLOWS_KEPT_MIN {
            let Asked::Granted(grant) = queue.ask(&site(&format!("s{n}")), PRICING, true, || ()) else {
                panic!("free")
            };
            queue.give_back(&grant, MS / 100);
        }
        assert!(queue.flows.len() <= 3 * FLOWS_KEPT_MIN, "{}", queue.flows.len());
    }
}
