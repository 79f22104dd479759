//! What waits to be carried to the region: one queue per site, each with a share of its own.
//!
//! Pure: time is an argument. Three limits keep a site's noise its own:
//!
//! * a **rate** per site, with a part of the burst that only faults, refusals and warnings may use, so that a flood of
//!   good news never hides the bad;
//! * a **length** per site: while the region is away the newest entries are kept, and the oldest make room;
//! * the **node's** bytes: when they are used up, sites that have more than an equal share make room.
//!
//! What does not get through is counted, and the count stands in the journal where the hole is.

use std::collections::{HashMap, VecDeque};

use souk_commerce::id::{NodeId, SiteId};
use souk_commerce::journal::{BATCH_BYTES_MAX, BATCH_ENTRIES_MAX, Entry, Event, Level, Outcome};

/// Entries per second of one site in the long run. A chain of five plugins that logs a line per call fills it with 50
/// quotes a second: enough to watch a shop, too little to bury a disk.
pub(super) const RATE_PER_SECOND: u64 = 500;
/// Entries at once: the whole log of a test run or of a burst of shoppers.
pub(super) const BURST: u64 = 5_000;
/// Of the burst, for what a merchant must not miss.
pub(super) const RESERVED: u64 = 500;
/// Bytes that one site may have waiting: a whole burst of lines of the usual length, 400 bytes in memory.
pub(super) const SITE_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Bytes of all sites together. Each keeps its newest entry whatever the others do, so with more than 14,000 sites that
/// all speak at once it is as many times 1.2 KiB.
pub(super) const NODE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Entries of one site in a row when others wait too.
const QUANTUM: usize = 64;
/// An entry without its text, as it lies in memory.
const ENTRY_BYTES: usize = size_of::<Entry>();

/// All queues of the node.
#[derive(Debug)]
pub(super) struct Queues {
    node: NodeId,
    sites: HashMap<SiteId, SiteQueue>,
    /// Sites with something to carry, each once, in the order of their turns.
    ready: VecDeque<SiteId>,
    bytes: usize,
}

#[derive(Debug)]
struct SiteQueue {
    kept: VecDeque<Entry>,
    bytes: usize,
    /// Entries that were lost before the oldest that is kept.
    lost: u64,
    /// Thousandths of an entry that may still be taken, …
    allowance: u64,
    /// … as of then.
    filled_ms: u64,
    ready: bool,
}

/// What became of an entry, and how many older ones made room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Taken {
    /// False: the site has used up its rate.
    pub(super) kept: bool,
    pub(super) displaced: u64,
}

impl Queues {
    pub(super) fn new(node: NodeId) -> Self {
        Self { node, sites: HashMap::new(), ready: VecDeque::new(), bytes: 0 }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.ready.is_empty()
    }

    /// Takes an entry in. `now_ms` is of a clock that never goes back.
    pub(super) fn push(&mut self, entry: Entry, now_ms: u64) -> Taken {
        if !self.sites.contains_key(&entry.site) {
            self.sites.insert(entry.site.clone(), SiteQueue::new(now_ms));
        }
        let queue = self.sites.get_mut(&entry.site).expect("it was put there if it was not");
        if !queue.ready {
            queue.ready = true;
            self.ready.push_back(entry.site.clone());
        }
        let before = queue.bytes;
        let kept = queue.may_take(&entry, now_ms);
        if kept {
            queue.keep(entry);
        } else {
            queue.mark_hole(&entry);
        }
        let mut displaced = queue.make_room(SITE_BYTES_MAX);
        self.bytes = self.bytes - before + queue.bytes;
        displaced += self.make_room();
        Taken { kept, displaced }
    }

    /// While all sites together hold too much, those with more than an equal share give their oldest. There is one as long
    /// as there is too much, and what it gives lasts for as many bytes to come.
    fn make_room(&mut self) -> u64 {
        let (mut displaced, sites) = (0, self.ready.len());
        for _ in 0..sites {
            if self.bytes <= NODE_BYTES_MAX {
                break;
            }
            let Some(site) = self.ready.pop_front() else { break };
            if let Some(queue) = self.sites.get_mut(&site) {
                let before = queue.bytes;
                displaced += queue.make_room(NODE_BYTES_MAX / sites);
                self.bytes = self.bytes - before + queue.bytes;
            }
            self.ready.push_back(site);
        }
        displaced
    }

    /// So many entries of a site that had been taken out could not be carried.
    pub(super) fn lost(&mut self, site: &SiteId, count: u64, now_ms: u64) {
        let queue = self.sites.entry(site.clone()).or_insert_with(|| SiteQueue::new(now_ms));
        queue.lost += count;
        if !queue.ready {
            queue.ready = true;
            self.ready.push_back(site.clone());
        }
    }

    /// Takes out what travels next: the sites in turn, at most one batch.
    pub(super) fn take(&mut self, wall_ms: u64, now_ms: u64) -> Vec<Entry> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while let Some(site) = self.ready.pop_front() {
            let Some(queue) = self.sites.get_mut(&site) else { continue };
            let before = queue.bytes;
            let full = queue.take(&mut batch, &mut bytes, &site, self.node, wall_ms);
            self.bytes = self.bytes - before + queue.bytes;
            if queue.kept.is_empty() && queue.lost == 0 {
                queue.ready = false;
                if queue.is_idle(now_ms) {
                    self.sites.remove(&site);
                }
            } else {
                self.ready.push_back(site);
            }
            if full {
                break;
            }
        }
        batch
    }

    /// Forgets sites that have been silent for long.
    pub(super) fn forget_idle(&mut self, now_ms: u64) {
        self.sites.retain(|_, queue| queue.ready || !queue.is_idle(now_ms));
    }
}

impl SiteQueue {
    fn new(now_ms: u64) -> Self {
        Self {
            kept: VecDeque::new(),
            bytes: 0,
            lost: 0,
            allowance: BURST * 1_000,
            filled_ms: now_ms,
            ready: false,
        }
    }

    /// Spends the site's rate on an entry, if it has enough left for one of its kind.
    fn may_take(&mut self, entry: &Entry, now_ms: u64) -> bool {
        let passed_ms = now_ms.saturating_sub(self.filled_ms);
        self.filled_ms = self.filled_ms.max(now_ms);
        // A rate per second is as many thousandths per millisecond.
        self.allowance =
            self.allowance.saturating_add(passed_ms.saturating_mul(RATE_PER_SECOND)).min(BURST * 1_000);
        let floor = if is_bad_news(&entry.event) { 0 } else { RESERVED * 1_000 };
        if self.allowance < floor + 1_000 {
            return false;
        }
        self.allowance -= 1_000;
        true
    }

    fn keep(&mut self, entry: Entry) {
        self.bytes += weight(&entry);
        self.kept.push_back(entry);
    }

    /// Lets the oldest go until the site has its share; says how many.
    fn make_room(&mut self, share: usize) -> u64 {
        let mut displaced = 0;
        while self.bytes > share && self.kept.len() > 1 {
            let Some(oldest) = self.kept.pop_front() else { break };
            self.bytes -= weight(&oldest);
            // A hole that goes is still as large as it was.
            displaced += match oldest.event {
                Event::Dropped { count } => count,
                _ => 1,
            };
        }
        self.lost += displaced;
        displaced
    }

    /// Counts an entry that is not taken, in the place where it would be.
    fn mark_hole(&mut self, entry: &Entry) {
        match self.kept.back_mut() {
            Some(Entry { event: Event::Dropped { count }, .. }) => *count += 1,
            Some(_) => {
                let event = Event::Dropped { count: 1 };
                self.keep(Entry {
                    site: entry.site.clone(),
                    at_ms: entry.at_ms,
                    node: entry.node,
                    source: None,
                    call: None,
                    event,
                });
            }
            None => self.lost += 1,
        }
    }

    /// Moves up to a quantum into the batch. True: the batch has no room for the next.
    fn take(
        &mut self,
        batch: &mut Vec<Entry>,
        bytes: &mut usize,
        site: &SiteId,
        node: NodeId,
        wall_ms: u64,
    ) -> bool {
        let room = |batch: &Vec<Entry>, bytes: usize, next: usize| {
            batch.len() < BATCH_ENTRIES_MAX && bytes + next <= BATCH_BYTES_MAX
        };
        if self.lost > 0 {
            let hole = Entry {
                site: site.clone(),
                at_ms: self.kept.front().map_or(wall_ms, |entry| entry.at_ms),
                node: Some(node),
                source: None,
                call: None,
                event: Event::Dropped { count: self.lost },
            };
            let next = weight(&hole);
            if !room(batch, *bytes, next) {
                return true;
            }
            *bytes += next;
            self.lost = 0;
            batch.push(hole);
        }
        for _ in 0..QUANTUM {
            let Some(entry) = self.kept.front() else { return false };
            let next = weight(entry);
            if !room(batch, *bytes, next) {
                return true;
            }
            *bytes += next;
            self.bytes -= next;
            batch.extend(self.kept.pop_front());
        }
        false
    }

    fn is_idle(&self, now_ms: u64) -> bool {
        // With a full allowance it is as good as new.
        let passed_ms = now_ms.saturating_sub(self.filled_ms);
        self.kept.is_empty()
            && self.lost == 0
            && self.allowance.saturating_add(passed_ms.saturating_mul(RATE_PER_SECOND)) >= BURST * 1_000
    }
}

/// What an entry takes in memory, its names included, although all entries of a site share them: so that it is never less
/// than the entry's encoding, and one number bounds both.
fn weight(entry: &Entry) -> usize {
    ENTRY_BYTES
        + entry.site.as_str().len()
        + entry.source.as_ref().map_or(0, |source| source.plugin.as_str().len())
        + match &entry.event {
            Event::Log { text, .. } => text.len(),
            Event::Fault { fault, detail } => fault.len() + detail.len(),
            Event::Call { outcome: Outcome::Refused { code, message }, .. } => code.len() + message.len(),
            Event::Call { outcome: Outcome::Failed { fault }, .. } => fault.len(),
            Event::Call { outcome: Outcome::Ok, .. } | Event::Dropped { .. } | Event::Recorded { .. } => 0,
        }
}

/// What a merchant must not miss.
fn is_bad_news(event: &Event) -> bool {
    match event {
        Event::Fault { .. } | Event::Dropped { .. } => true,
        Event::Log { level, .. } => *level >= Level::Warn,
        Event::Call { outcome, .. } => *outcome != Outcome::Ok,
        Event::Recorded { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(name: &str) -> SiteId {
        name.parse().expect("a site")
    }

    fn log(of: &str, level: Level, text: impl Into<String>) -> Entry {
        Entry {
            site: site(of),
            at_ms: 7,
            node: Some(NodeId(1)),
            source: None,
            call: None,
            event: Event::Log { level, text: text.into() },
        }
    }

    const KEPT: Taken = Taken { kept: true, displaced: 0 };

    fn queues() -> Queues {
        Queues::new(NodeId(1))
    }

    /// Everything that waits, batch after batch.
    fn drain(queues: &mut Queues) -> Vec<Entry> {
        let mut all = Vec::new();
        while !queues.is_empty() {
            let batch = queues.take(9, 0);
            assert!(batch.len() <= BATCH_ENTRIES_MAX && !batch.is_empty());
            all.extend(batch);
        }
        assert_eq!(queues.bytes(), 0);
        all
    }

    fn dropped(entries: &[Entry]) -> u64 {
        entries
            .iter()
            .map(|e| match e.event {
                Event::Dropped { count } => count,
                _ => 0,
            })
            .sum()
    }

    fn text_of(entry: &Entry) -> &str {
        match &entry.event {
            Event::Log { text, .. } => text,
            _ => "",
        }
    }

    #[test]
    fn entries_come_out_as_they_went_in() {
        let mut queues = queues();
        for n in 0..1_000 {
            assert_eq!(queues.push(log("shop", Level::Info, n.to_string()), 0), KEPT);
        }
        let all = drain(&mut queues);
        assert!(all.iter().map(text_of).eq((0..1_000).map(|n| n.to_string())));
    }

    #[test]
    fn a_flood_of_good_news_does_not_hide_the_bad_and_the_hole_is_where_it_was() {
        let mut queues = queues();
        let flood = BURST + 100;
        for _ in 0..flood {
            queues.push(log("shop", Level::Debug, ""), 0);
        }
        assert_eq!(queues.push(log("shop", Level::Error, "bad"), 0), KEPT);
        assert!(!queues.push(log("shop", Level::Debug, ""), 0).kept);
        let all = drain(&mut queues);
        assert_eq!(dropped(&all), RESERVED + 100 + 1);
        let [.., before, bad, after] = all.as_slice() else { panic!("three at least") };
        assert_eq!(before.event, Event::Dropped { count: RESERVED + 100 });
        assert_eq!(text_of(bad), "bad");
        assert_eq!(after.event, Event::Dropped { count: 1 });
    }

    #[test]
    fn a_site_gets_its_rate_back_with_time_and_no_more_than_the_burst() {
        let mut queues = queues();
        let good = |queues: &mut Queues, now| {
            (0..2 * BURST).filter(|_| queues.push(log("shop", Level::Info, ""), now).kept).count() as u64
        };
        assert_eq!(good(&mut queues, 0), BURST - RESERVED);
        drain(&mut queues);
        assert_eq!(good(&mut queues, 1_000), RATE_PER_SECOND);
        drain(&mut queues);
        assert_eq!(good(&mut queues, 900), 0, "a clock that goes back gives nothing");
        drain(&mut queues);
        assert_eq!(good(&mut queues, 10_000_000), BURST - RESERVED);
    }

    #[test]
    fn while_nothing_is_carried_the_newest_are_kept_and_the_rest_is_counted() {
        let mut queues = queues();
        let count = 4_000;
        for n in 0..count {
            queues.push(log("shop", Level::Info, format!("{n:0>900}")), 0);
            assert!(queues.bytes() <= SITE_BYTES_MAX);
        }
        let all = drain(&mut queues);
        assert_eq!(all.len() as u64 - 1 + dropped(&all), count);
        assert!(matches!(all[0].event, Event::Dropped { count } if count > 1_000), "{:?}", all[0]);
        assert_eq!(text_of(all.last().expect("some")), format!("{:0>900}", count - 1));
    }

    #[test]
    fn one_sites_flood_costs_another_neither_place_nor_turn() {
        let mut queues = queues();
        for n in 0..4_000 {
            queues.push(log("loud", Level::Info, format!("{n}")), 0);
        }
        queues.push(log("quiet", Level::Info, "here"), 0);
        let first = queues.take(9, 0);
        let at = first.iter().position(|e| e.site == site("quiet")).expect("in the first batch");
        assert!(at <= QUANTUM, "{at}");
    }

    #[test]
    fn the_node_never_holds_more_than_its_limit_and_a_late_site_still_gets_in() {
        let mut queues = queues();
        for s in 0..200 {
            for n in 0..600 {
                queues.push(log(&format!("shop-{s}"), Level::Info, format!("{n:0>1000}")), 0);
            }
            assert!(queues.bytes() <= NODE_BYTES_MAX, "{} bytes with {s} sites", queues.bytes());
        }
        assert!(queues.push(log("late", Level::Info, "here"), 0).kept);
        let all = drain(&mut queues);
        assert!(all.iter().any(|e| e.site == site("late") && text_of(e) == "here"));
        let kept = all.iter().filter(|e| !matches!(e.event, Event::Dropped { .. })).count() as u64;
        assert_eq!(kept + dropped(&all), 200 * 600 + 1, "each is kept or counted");
    }

    #[test]
    fn a_batch_is_within_what_the_region_takes() {
        let mut queues = queues();
        for s in 0..8 {
            for _ in 0..200 {
                queues.push(log(&format!("shop-{s}"), Level::Info, "x".repeat(1_024)), 0);
            }
        }
        while !queues.is_empty() {
            let batch = queues.take(9, 0);
            let bytes: usize = batch.iter().map(|entry| entry.to_bytes().len()).sum();
            assert!(bytes <= BATCH_BYTES_MAX, "{bytes}");
        }
    }

    #[test]
    fn what_could_not_be_carried_is_a_hole_before_what_follows() {
        let mut queues = queues();
        queues.push(log("shop", Level::Info, "next"), 0);
        queues.lost(&site("shop"), 12, 0);
        queues.lost(&site("gone"), 3, 0);
        let all = drain(&mut queues);
        assert_eq!(all[0].event, Event::Dropped { count: 12 });
        assert_eq!(text_of(&all[1]), "next");
        assert_eq!((all[2].site.clone(), all[2].at_ms), (site("gone"), 9));
        queues.forget_idle(u64::MAX);
        assert!(queues.sites.is_empty());
    }
}
