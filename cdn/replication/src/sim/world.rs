//! One seeded world: two disks, at most one connection between them, and a list of things that will happen.
//!
//! This file owns time, the agenda and what must be true; [`super::fate`] decides what befalls, [`super::path`] connects.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
};

use crate::{
    Batch, Control, Fold, Log, Mark, NodeInput, OutboxPosition, RegionInput, Tail,
    planted::{Bug, planted},
};

use super::{
    dice::{Climate, Dice},
    disks::{NodeDisk, Op, RegionDisk, is_poison},
    path::Link,
    stock::{Promise, Question, Word},
    story,
};

/// Acknowledged operations that a node keeps: none, as the release before; fewer than a restored region lacks; all.
const KEEPS: [usize; 4] = [0, 5, 200, usize::MAX];
/// How long a world is hostile.
const HOSTILE_MS: u64 = 15_000;
/// How long a healed world may take to agree: the patience of a feed, and some redials.
const HEAL_MS_MAX: u64 = 90_000;
/// A world takes some thousand steps; a storm of messages that answer each other takes any number.
const STEPS_MAX: u64 = 1_000_000;
/// A store that is busy is asked again so often, as the link does it.
const BUSY_TRIES_MAX: u32 = 50;
const BUSY_PAUSE_MS: u64 = 100;

/// Place of what both sides have, in pairs.
pub(super) const NODE: usize = 0;
pub(super) const REGION: usize = 1;

/// Something that will happen on the connection with this number (0: without one).
#[derive(Debug)]
pub(super) enum Event {
    Accept,
    /// The operations that wait are on the node's disk, if it has not crashed since.
    Synced {
        boot: u64,
    },
    Publish,
    Misfortune,
    Connect,
    /// The path has been dead for as long as a transport waits.
    Dead,
    ToRegion(Vec<u8>),
    ToNode(Vec<u8>),
    BatchToRegion(Vec<u8>),
    TailToNode(Vec<u8>),
    /// Answers of the stores, with what they change when they are due.
    NodeRead {
        from: u64,
        ops_max: usize,
        bytes_max: usize,
    },
    NodeApply {
        tail: Tail,
        region_epoch: u32,
        tries: u32,
    },
    NodeBegin {
        epoch: u32,
        tries: u32,
    },
    NodeTrim {
        boot: u64,
        epoch: u32,
        to: u64,
        fold: Option<Fold>,
    },
    RegionLoad,
    RegionBegin(u32),
    RegionApply(Batch),
    /// A transaction of a session that is gone commits after the next one has read the mark.
    LateApply {
        batch: Batch,
        restores: u64,
    },
    RegionAnswer(RegionInput),
    Tick,
    StockAsk,
    StockAsked(Question),
    StockAnswered {
        turn: u64,
        word: Word,
    },
    StockKeep,
}

pub(super) struct World {
    pub(super) dice: Dice,
    pub(super) climate: Climate,
    pub(super) now: u64,
    pub(super) healed: bool,
    /// What each side's clock says beyond `now`: they never agree, and jump.
    pub(super) clocks: [u64; 2],
    /// Until when each disk is full.
    pub(super) full_until: [u64; 2],
    /// Until when packets up and packets down are lost.
    pub(super) dead_until: [u64; 2],
    pub(super) node: NodeDisk,
    pub(super) node_backup: NodeDisk,
    pub(super) region: RegionDisk,
    pub(super) region_backup: RegionDisk,
    /// The newest number of a history that was given out.
    pub(super) histories: u32,
    /// Counts restores: what was under way before one is not of this world any more.
    pub(super) restores: u64,
    /// Counts the node's crashes.
    pub(super) boots: u64,
    /// Operations that the node has taken in and not on its disk yet.
    pub(super) unsynced: Vec<Op>,
    pub(super) syncing: bool,
    /// What is or was on the node's disk and must arrive, in order.
    pub(super) accepted: Vec<Op>,
    /// What shoppers were told is safe.
    pub(super) told: BTreeSet<Op>,
    pub(super) next_op: Op,
    pub(super) link: Option<Link>,
    pub(super) connections: u64,
    /// The last session found that its outbox is not the region's.
    pub(super) diverged: bool,
    pub(super) stock_dice: Dice,
    /// What each promise that is or was on the node's disk took.
    pub(super) promises: BTreeMap<Op, Promise>,
    /// Something has happened after which a promise may be broken: a disk put back, a region's clock gone wrong.
    pub(super) stock_excused: bool,
    /// The question that waits for its answer, since when, and when that was on the node's clock.
    pub(super) asking: Option<(u64, u64)>,
    pub(super) asked_ms: u64,
    pub(super) turns: u64,
    pub(super) grants_made: u64,
    agenda: BinaryHeap<Reverse<(u64, u64)>>,
    pub(super) events: BTreeMap<u64, (u64, Event)>,
    event_numbers: u64,
    steps: u64,
    seen: BTreeMap<&'static str, u64>,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        // Not rolled: a world is otherwise the same, whatever its node keeps.
        let keeps = KEEPS[seed as usize % KEEPS.len()];
        let climate = Climate::roll(&mut dice, keeps);
        let node = NodeDisk { keeps: climate.keeps, ..NodeDisk::default() };
        let clocks = [dice.below(1 << 40), dice.below(1 << 40)];
        Self {
            dice,
            climate,
            now: 0,
            healed: false,
            clocks,
            full_until: [0; 2],
            dead_until: [0; 2],
            node_backup: node.clone(),
            node,
            region: RegionDisk::new(),
            region_backup: RegionDisk::new(),
            histories: 1,
            restores: 0,
            boots: 0,
            unsynced: Vec::new(),
            syncing: false,
            accepted: Vec::new(),
            told: BTreeSet::new(),
            next_op: 0,
            link: None,
            connections: 0,
            diverged: false,
            stock_dice: Dice::new(!seed),
            promises: BTreeMap::new(),
            stock_excused: false,
            asking: None,
            asked_ms: 0,
            turns: 0,
            grants_made: 0,
            agenda: BinaryHeap::new(),
            events: BTreeMap::new(),
            event_numbers: 0,
            steps: 0,
            seen: BTreeMap::new(),
        }
    }

    /// Lives through the hostile time, heals, and checks that both sides agree. Returns what was seen how often.
    pub(super) fn run(mut self) -> BTreeMap<&'static str, u64> {
        self.tell("world", || format!("{:?}", self.climate));
        let begin = [Event::Connect, Event::Accept, Event::Publish, Event::Misfortune];
        for event in begin.into_iter().chain([Event::StockAsk, Event::StockKeep]) {
            self.plan(0, 0, event);
        }
        while self.now < HOSTILE_MS {
            self.step();
        }
        self.healed = true;
        (self.dead_until, self.full_until) = ([0; 2], [0; 2]);
        self.tell("world", || "all is well from here on".to_owned());
        while !self.agreed() {
            assert!(self.now < HOSTILE_MS + HEAL_MS_MAX, "no agreement: {}", self.describe());
            self.step();
        }
        self.check_order();
        assert_eq!(
            self.region.applied.len(),
            self.accepted.len(),
            "operations that were on the disk are lost"
        );
        let lost: Vec<_> = self.told.difference(&self.region.known).collect();
        assert!(lost.is_empty(), "promised and lost: {} operations from {:?} on", lost.len(), lost.first());
        let dead: BTreeSet<Op> = self.region.applied.iter().copied().filter(|op| is_poison(*op)).collect();
        assert_eq!(self.region.dead, dead, "what cannot be applied is kept, and nothing else");
        self.seen
    }

    /// What is applied is a beginning of what was accepted.
    fn check_order(&self) {
        let Self { region, accepted, .. } = self;
        for (n, op) in region.applied.iter().enumerate() {
            assert_eq!(
                Some(op),
                accepted.get(n),
                "at place {n} of what was accepted another operation is applied"
            );
        }
    }

    fn agreed(&self) -> bool {
        self.node.acked.hwm == self.node.last
            && self.region.node.is_none_or(|region| region.hwm == self.node.last)
            && self.unsynced.is_empty()
            && self.region.stock.is_home()
            && self.node.cursors == self.region.heads()
            && Log::ALL
                .iter()
                .all(|log| self.node.tables.get(log).cloned().unwrap_or_default() == self.region.table(*log))
    }

    fn describe(&self) -> String {
        let heads = self.region.heads();
        let Self { node, region, link, .. } = self;
        let rows = Log::ALL.iter().filter(|log| node.tables.get(log) != Some(&region.table(**log)));
        let differ: Vec<_> = rows.map(|log| log.name()).collect();
        format!(
            "node in epoch {:?} keeps {} at {:?}; region in {:?} at {heads:?}; rows that differ: {differ:?}; connected: {}, stock: {:?}",
            node.epoch,
            story::ops(&node.ops.values().copied().collect::<Vec<_>>()),
            node.cursors,
            region.node,
            link.is_some(),
            region.stock
        )
    }

    pub(super) fn note(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    pub(super) fn tell(&self, who: &str, what: impl FnOnce() -> String) {
        story::tell(self.now, who, what);
    }

    pub(super) fn plan(&mut self, after_ms: u64, connection: u64, event: Event) {
        self.plan_at(self.now + after_ms, connection, event);
    }

    pub(super) fn plan_at(&mut self, at: u64, connection: u64, event: Event) {
        self.event_numbers += 1;
        self.events.insert(self.event_numbers, (connection, event));
        self.agenda.push(Reverse((at, self.event_numbers)));
    }

    fn step(&mut self) {
        self.steps += 1;
        assert!(self.steps < STEPS_MAX, "a storm: {}", self.describe());
        let Some(Reverse((at, number))) = self.agenda.pop() else {
            panic!("both sides are content, and do not agree: {}", self.describe());
        };
        self.now = self.now.max(at);
        // Gone: it belonged to a connection that has ended.
        let Some((connection, event)) = self.events.remove(&number) else { return };
        if connection == 0 || self.link.as_ref().is_some_and(|link| link.number == connection) {
            self.happen(event);
            self.settle();
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Accept => self.accept(),
            Event::Synced { boot } => self.synced(boot),
            Event::Publish => self.publish(),
            Event::Misfortune => self.misfortune(),
            Event::Connect => self.connect(),
            Event::Dead => {
                if self.path_is_dead() {
                    self.tell("transport", || "the path is dead: idle time-out".to_owned());
                    self.disconnect();
                }
            }
            Event::ToRegion(bytes) => {
                let frame = Control::decode(&bytes).expect("frames arrive whole");
                if matches!(frame, Control::Rewind(_)) {
                    self.note("rewind");
                }
                self.tell("node -> region", || story::control(&frame));
                self.region_in(RegionInput::Control(frame));
            }
            Event::ToNode(bytes) => {
                let frame = Control::decode(&bytes).expect("frames arrive whole");
                match frame {
                    Control::Resend(_) => self.note("resend"),
                    Control::Pulse(_) => self.note("pulse"),
                    _ => {}
                }
                self.tell("node <- region", || story::control(&frame));
                self.node_in(NodeInput::Control(frame));
            }
            Event::BatchToRegion(bytes) => {
                let batch = Batch::decode(&bytes).expect("batches arrive whole");
                self.tell("node -> region", || story::batch(&batch));
                self.region_in(RegionInput::Batch(batch));
            }
            Event::TailToNode(bytes) => {
                let tail = Tail::decode(&bytes).expect("tails arrive whole").expect("of a known log");
                self.tell("node <- region", || story::tail(&tail));
                self.node_in(NodeInput::Tail(tail));
            }
            Event::NodeRead { from, ops_max, bytes_max } => {
                let ops = self.node.read(from, ops_max, bytes_max);
                if ops.is_empty() {
                    // As the link does it: where the outbox stands now, and then nothing.
                    let position = self.position();
                    self.node_in(NodeInput::Outbox(position));
                }
                self.node_in(NodeInput::Ops { from, ops });
            }
            Event::NodeApply { tail, region_epoch, tries } => self.node_apply(tail, region_epoch, tries),
            Event::NodeBegin { epoch, tries } => self.node_begin(epoch, tries),
            Event::NodeTrim { boot, epoch, to, fold } => {
                if boot == self.boots {
                    self.node_trim(epoch, to, fold);
                }
            }
            Event::RegionLoad | Event::RegionBegin(_) if self.is_full(REGION) => {
                self.tell("region disk", || "full: the session ends".to_owned());
                self.disconnect();
            }
            Event::RegionLoad => {
                let state = self.region.node;
                self.tell("region disk", || format!("knows the node as {state:?}"));
                self.region_in(RegionInput::NodeLoaded(state));
            }
            Event::RegionBegin(epoch) => {
                self.tell("region disk", || format!("begins epoch {epoch}"));
                self.region.begin_epoch(epoch);
                self.note("new_epoch");
                self.region_in(RegionInput::EpochBegun(epoch));
            }
            Event::RegionApply(batch) => self.region_apply(&batch),
            Event::LateApply { batch, restores } => {
                if restores == self.restores {
                    self.commit(&batch, false, "a late transaction");
                    self.note("late_apply");
                }
            }
            Event::RegionAnswer(input) => self.region_in(input),
            Event::StockAsk => self.ask_for_stock(),
            Event::StockAsked(question) => self.decide_on_stock(&question),
            Event::StockAnswered { turn, word } => self.note_stock(turn, &word),
            Event::StockKeep => self.keep_stock(),
            Event::Tick => {
                self.node_in(NodeInput::Tick);
                self.region_in(RegionInput::Tick);
            }
        }
    }

    /// Where the node's outbox stands. The release before does not know what it has forgotten.
    pub(super) fn position(&self) -> OutboxPosition {
        let OutboxPosition { anchor, acked, .. } = self.node.position();
        let folds = !self.climate.older[NODE];
        let (anchor, fold) = (anchor.filter(|_| folds), acked.fold.filter(|_| folds));
        OutboxPosition { anchor, acked: Mark { fold, ..acked }, ..self.node.position() }
    }

    // ---- the stores

    pub(super) fn is_full(&self, side: usize) -> bool {
        self.full_until[side] > self.now
    }

    fn node_apply(&mut self, tail: Tail, region_epoch: u32, tries: u32) {
        if self.is_full(NODE) {
            return self.busy(tries, |tries| Event::NodeApply { tail, region_epoch, tries });
        }
        self.tell("node disk", || format!("applies {}", story::tail(&tail)));
        self.node.apply(&tail, region_epoch);
        self.node_in(NodeInput::Applied(tail.log));
    }

    fn node_begin(&mut self, epoch: u32, tries: u32) {
        if self.is_full(NODE) {
            return self.busy(tries, |tries| Event::NodeBegin { epoch, tries });
        }
        let begun = self.node.begin_epoch(epoch);
        self.tell("node disk", || format!("begins epoch {epoch}: {begun}, keeps {:?}", self.position()));
        if begun {
            let position = self.position();
            self.node_in(NodeInput::EpochBegun(position));
        } else {
            self.disconnect();
        }
    }

    /// The node's disk is full: asked again for a while, then the connection ends.
    fn busy(&mut self, tries: u32, again: impl FnOnce(u32) -> Event) {
        self.note("node_disk_full");
        match self.link.as_ref().map(|link| link.number) {
            Some(number) if tries < BUSY_TRIES_MAX => self.plan(BUSY_PAUSE_MS, number, again(tries + 1)),
            _ => self.disconnect(),
        }
    }

    pub(super) fn node_trim(&mut self, epoch: u32, to: u64, fold: Option<Fold>) {
        if self.is_full(NODE) {
            let (until, boot) = (self.full_until[NODE], self.boots);
            return self.plan_at(until, 0, Event::NodeTrim { boot, epoch, to, fold });
        }
        self.tell("node disk", || format!("forgets epoch {epoch} up to {to}"));
        self.node.trim(epoch, to, fold.filter(|_| !self.climate.older[NODE]));
    }

    /// Does what a full disk has put off.
    pub(super) fn finish_trims(&mut self) {
        let put_off = |(number, (_, event)): (&u64, &(u64, Event))| {
            matches!(event, Event::NodeTrim { boot, .. } if *boot == self.boots).then_some(*number)
        };
        let put_off: Vec<u64> = self.events.iter().filter_map(put_off).collect();
        for number in put_off {
            if let Some((_, Event::NodeTrim { epoch, to, fold, .. })) = self.events.remove(&number) {
                self.node.trim(epoch, to, fold.filter(|_| !self.climate.older[NODE]));
            }
        }
    }

    fn region_apply(&mut self, batch: &Batch) {
        if self.is_full(REGION) || (!self.healed && self.dice.chance(self.climate.store_failure)) {
            self.note(if self.is_full(REGION) { "region_disk_full" } else { "apply_failed" });
            self.tell("region disk", || format!("refuses {}", story::batch(batch)));
            return self.region_in(RegionInput::ApplyFailed);
        }
        let hwm = self.region.node.map_or(0, |node| node.hwm);
        assert!(
            batch.first_seq <= hwm + 1,
            "the store was handed a gap: {} after {hwm}",
            story::batch(batch)
        );
        let partly = !self.healed && self.dice.chance(self.climate.store_failure / 4);
        let mark = self.commit(batch, partly, "commits");
        self.region_in(RegionInput::Applied(mark));
    }

    pub(super) fn commit(&mut self, batch: &Batch, partly: bool, how: &str) -> Mark {
        let before = self.region.dead.len();
        let region_ms = self.clock(REGION);
        let mut broken = Vec::new();
        let Self { region, promises, climate, .. } = self;
        let mark = region.apply(batch, partly, !climate.older[REGION], |stock, op| {
            if let Some(promise) = promises.get(&op)
                && !stock.take_in(op, promise, region_ms)
            {
                broken.push(op);
            }
        });
        self.tell("region disk", || format!("{how}: {}, the mark is {}", story::batch(batch), mark.hwm));
        self.note("apply");
        if self.region.dead.len() > before {
            self.note("dead_letter");
        }
        self.check_order();
        self.check_promises(&broken);
        mark
    }

    /// The operations that wait reach the disk in one sync, or are refused by it.
    fn synced(&mut self, boot: u64) {
        if boot != self.boots {
            return;
        }
        self.syncing = false;
        let ops = std::mem::take(&mut self.unsynced);
        if self.is_full(NODE) {
            self.note("node_disk_full");
            return self.tell("node disk", || format!("full: refuses {}", story::ops(&ops)));
        }
        self.tell("node disk", || format!("holds {}, and tells their shoppers", story::ops(&ops)));
        let kept = self.persist(&ops);
        self.told.extend(kept);
        let position = self.position();
        self.node_in(NodeInput::Outbox(position));
    }

    /// One transaction. Returns what it holds: a promise that cannot be made is not.
    pub(super) fn persist(&mut self, ops: &[Op]) -> Vec<Op> {
        let kept = self.make_promises(ops);
        for op in &kept {
            self.node.accept(*op);
            self.accepted.push(*op);
        }
        kept
    }

    /// Ends the connection on both sides. What a store was doing is done, or not, or done later.
    pub(super) fn disconnect(&mut self) {
        let Some(link) = self.link.take() else { return };
        self.tell("transport", || format!("connection {} ends", link.number));
        let of_link = |(number, (connection, _)): (&u64, &(u64, Event))| {
            (*connection == link.number).then_some(*number)
        };
        let pending: Vec<u64> = self.events.iter().filter_map(of_link).collect();
        for number in pending {
            let (_, event) = self.events.remove(&number).expect("just listed");
            let done = self.dice.chance(500);
            match event {
                Event::NodeApply { tail, region_epoch, .. } if done && !self.is_full(NODE) => {
                    self.tell("node disk", || format!("applies at last {}", story::tail(&tail)));
                    self.node.apply(&tail, region_epoch);
                }
                Event::NodeApply { tail, .. } if planted(Bug::CursorBeforeRows) => {
                    self.node.cursors.set(tail.log, tail.to);
                }
                Event::NodeBegin { epoch, .. } if done && !self.is_full(NODE) => {
                    self.tell("node disk", || format!("begins epoch {epoch} at last"));
                    self.node.begin_epoch(epoch);
                }
                Event::RegionBegin(epoch) if done && !self.is_full(REGION) => {
                    self.tell("region disk", || format!("begins epoch {epoch} at last"));
                    self.region.begin_epoch(epoch);
                }
                Event::RegionApply(batch) if done && !self.is_full(REGION) => {
                    if self.dice.chance(500) {
                        let (after, restores) = (self.dice.below(2_000), self.restores);
                        self.plan(after, 0, Event::LateApply { batch, restores });
                    } else {
                        self.commit(&batch, false, "commits at last");
                    }
                }
                _ => {}
            }
        }
        let pause = if self.healed { 0 } else { self.dice.below(300) };
        self.plan(pause, 0, Event::Connect);
    }
}
