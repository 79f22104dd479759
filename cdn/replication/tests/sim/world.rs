//! One seeded world: two disks, at most one connection between them, and a list of things that will happen.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
};

use souk_replication::{
    Batch, Control, Log, NodeFacts, NodeFault, NodeInput, NodeOutput, NodeSession, Part, RegionFacts,
    RegionFault, RegionInput, RegionOutput, RegionSession, Tail,
};

use super::disks::{NodeDisk, Op, RegionDisk};

const NODE: u32 = 7;
/// How long a world is hostile.
const HOSTILE_MS: u64 = 15_000;
/// How long a healed world may take to agree: the patience of a feed, and some redials.
const HEAL_MS_MAX: u64 = 90_000;
/// A connection whose path is cut is noticed after this, as by QUIC's idle time-out.
const IDLE_MS: u64 = 12_000;

/// SplitMix64: small, seeded, good enough to choose misfortunes.
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.roll() % n.max(1)
    }

    fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1_000) < per_mille
    }
}

/// How bad a world is, per thousand.
#[derive(Debug)]
struct Climate {
    batch_loss: u64,
    repeat: u64,
    stream_loss: u64,
    store_failure: u64,
    slow_store: u64,
    misfortune_every_ms: u64,
    restores: bool,
    rebuilds: bool,
}

/// Something that will happen on the connection with this number (0: without one).
#[derive(Debug)]
enum Event {
    Accept,
    Publish,
    Misfortune,
    Connect,
    /// The path was cut: both sides notice.
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
    },
    NodeBegin(u32),
    RegionLoad,
    RegionBegin(u32),
    RegionApply(Batch),
    RegionAnswer(RegionInput),
    Tick,
}

struct Link {
    number: u64,
    node: NodeSession,
    region: RegionSession,
    cut: bool,
    /// When the last frame of each ordered stream arrives: control up, control down, and the logs.
    arrivals: [u64; 2 + Log::COUNT],
    tick_at: u64,
}

pub(crate) struct World {
    dice: Dice,
    climate: Climate,
    now: u64,
    healed: bool,
    node: NodeDisk,
    backup: NodeDisk,
    region: RegionDisk,
    /// What shoppers were told is safe, in order.
    accepted: Vec<Op>,
    next_op: Op,
    link: Option<Link>,
    connections: u64,
    /// No new operation between the restore of a disk and the next Welcome.
    quiet: bool,
    agenda: BinaryHeap<Reverse<(u64, u64)>>,
    events: BTreeMap<u64, (u64, Event)>,
    event_numbers: u64,
    seen: BTreeMap<&'static str, u64>,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let mut harsh = |max: u64| if dice.chance(400) { 0 } else { dice.below(max) };
        let climate = Climate {
            batch_loss: harsh(300),
            repeat: harsh(200),
            stream_loss: harsh(100),
            store_failure: harsh(150),
            slow_store: harsh(200),
            misfortune_every_ms: 500 + harsh(6_000),
            restores: harsh(8) == 1,
            rebuilds: harsh(4) == 1,
        };
        Self {
            dice,
            climate,
            now: 0,
            healed: false,
            node: NodeDisk::default(),
            backup: NodeDisk::default(),
            region: RegionDisk::default(),
            accepted: Vec::new(),
            next_op: 0,
            link: None,
            connections: 0,
            quiet: false,
            agenda: BinaryHeap::new(),
            events: BTreeMap::new(),
            event_numbers: 0,
            seen: BTreeMap::new(),
        }
    }

    /// Lives through the hostile time, heals, and checks that both sides agree. Returns what was seen how often.
    pub(crate) fn run(mut self) -> BTreeMap<&'static str, u64> {
        for event in [Event::Connect, Event::Accept, Event::Publish, Event::Misfortune] {
            self.plan(0, 0, event);
        }
        while self.now < HOSTILE_MS {
            self.step();
        }
        self.healed = true;
        if let Some(link) = &mut self.link {
            link.cut = false;
        }
        while !self.agreed() {
            assert!(self.now < HOSTILE_MS + HEAL_MS_MAX, "no agreement: {}", self.describe());
            self.step();
        }
        assert_eq!(self.region.applied, self.accepted, "applied once, in order, nothing lost");
        self.seen
    }

    fn agreed(&self) -> bool {
        self.node.ops.is_empty()
            && self.node.cursors == self.region.heads()
            && Log::ALL
                .iter()
                .all(|log| self.node.tables.get(log).cloned().unwrap_or_default() == self.region.table(*log))
    }

    fn describe(&self) -> String {
        let heads = self.region.heads();
        format!(
            "node {:?}, region {:?} at {heads:?}, link {}",
            self.node,
            self.region.node,
            self.link.is_some()
        )
    }

    fn note(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    fn plan(&mut self, after_ms: u64, connection: u64, event: Event) {
        self.plan_at(self.now + after_ms, connection, event);
    }

    fn plan_at(&mut self, at: u64, connection: u64, event: Event) {
        self.event_numbers += 1;
        self.events.insert(self.event_numbers, (connection, event));
        self.agenda.push(Reverse((at, self.event_numbers)));
    }

    fn step(&mut self) {
        let Reverse((at, number)) = self.agenda.pop().expect("something always happens next");
        self.now = self.now.max(at);
        let (connection, event) = self.events.remove(&number).expect("an event is on the agenda once");
        if connection == 0 || self.link.as_ref().is_some_and(|link| link.number == connection) {
            self.happen(event);
            self.settle();
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Accept => self.accept(),
            Event::Publish => self.publish(),
            Event::Misfortune => self.misfortune(),
            Event::Connect => self.connect(),
            Event::Dead => self.disconnect(),
            Event::ToRegion(bytes) => {
                let frame = Control::decode(&bytes).expect("frames arrive whole");
                if matches!(frame, Control::Rewind(_)) {
                    self.note("rewind");
                }
                self.region_in(RegionInput::Control(frame));
            }
            Event::ToNode(bytes) => {
                let frame = Control::decode(&bytes).expect("frames arrive whole");
                match frame {
                    Control::Resend(_) => self.note("resend"),
                    Control::Pulse(_) => self.note("pulse"),
                    _ => {}
                }
                self.node_in(NodeInput::Control(frame));
            }
            Event::BatchToRegion(bytes) => {
                self.region_in(RegionInput::Batch(Batch::decode(&bytes).expect("batches arrive whole")));
            }
            Event::TailToNode(bytes) => {
                let tail = Tail::decode(&bytes).expect("tails arrive whole").expect("of a known log");
                self.node_in(NodeInput::Tail(tail));
            }
            Event::NodeRead { from, ops_max, bytes_max } => {
                let ops = self.node.read(from, ops_max, bytes_max);
                self.node_in(NodeInput::Ops { from, ops });
            }
            Event::NodeApply { tail, region_epoch } => {
                self.node.apply(&tail, region_epoch);
                self.node_in(NodeInput::Applied(tail.log));
            }
            Event::NodeBegin(epoch) => {
                self.node.begin_epoch(epoch);
                let position = self.node.position();
                self.node_in(NodeInput::EpochBegun(position));
            }
            Event::RegionLoad => {
                let state = self.region.node;
                self.region_in(RegionInput::NodeLoaded(state));
            }
            Event::RegionBegin(epoch) => {
                self.region.begin_epoch(epoch);
                self.note("new_epoch");
                self.region_in(RegionInput::EpochBegun(epoch));
            }
            Event::RegionApply(batch) => self.region_apply(&batch),
            Event::RegionAnswer(input) => self.region_in(input),
            Event::Tick => {
                self.node_in(NodeInput::Tick);
                self.region_in(RegionInput::Tick);
            }
        }
    }

    fn region_apply(&mut self, batch: &Batch) {
        if !self.healed && self.dice.chance(self.climate.store_failure) {
            self.note("apply_failed");
            return self.region_in(RegionInput::ApplyFailed);
        }
        let partly = !self.healed && self.dice.chance(self.climate.store_failure / 4);
        let hwm = self.region.apply(batch, partly);
        self.note("apply");
        let in_order = self.accepted.get(..self.region.applied.len());
        assert_eq!(Some(&self.region.applied[..]), in_order, "applied once and in order");
        self.region_in(RegionInput::Applied(hwm));
    }

    // ---- what people do

    fn accept(&mut self) {
        if self.node.epoch.is_some() && !self.quiet {
            for _ in 0..=self.dice.below(5) {
                self.node.accept(self.next_op);
                self.accepted.push(self.next_op);
                self.next_op += 1;
            }
            self.note("accept");
            let position = self.node.position();
            self.node_in(NodeInput::Outbox(position));
        }
        if !self.healed {
            let pause = self.dice.below(600);
            self.plan(pause, 0, Event::Accept);
        }
    }

    fn publish(&mut self) {
        let log = Log::ALL[self.dice.below(3) as usize];
        for _ in 0..=self.dice.below(9) {
            let key = self.dice.below(20) as u8;
            self.region.logs.entry(log).or_default().push(key);
        }
        if self.dice.chance(200) {
            // The tail is cut off here and there: whoever is further behind needs a snapshot.
            let head = self.region.heads().get(log);
            self.region.kept_from.insert(log, head - self.dice.below(5).min(head));
        }
        let heads = self.region.heads();
        self.region_in(RegionInput::Heads(heads));
        if !self.healed {
            let pause = self.dice.below(1_500);
            self.plan(pause, 0, Event::Publish);
        }
    }

    // ---- what goes wrong

    fn misfortune(&mut self) {
        if self.healed {
            return;
        }
        let pause = self.dice.below(self.climate.misfortune_every_ms);
        self.plan(pause, 0, Event::Misfortune);
        match self.dice.below(6) {
            0 | 1 => {
                if let Some(link) = &mut self.link
                    && !link.cut
                {
                    link.cut = true;
                    let number = link.number;
                    self.note("cut");
                    self.plan(IDLE_MS, number, Event::Dead);
                }
            }
            2 => {
                if let Some(link) = &mut self.link {
                    link.cut = false;
                }
            }
            3 => {
                self.note("node_crash");
                self.disconnect();
                self.node.staged.clear();
            }
            4 => {
                self.note("region_crash");
                self.disconnect();
                if self.climate.rebuilds && self.dice.chance(300) {
                    self.rebuild();
                }
            }
            _ if self.climate.restores && self.dice.chance(500) => self.restore(),
            _ => self.backup = self.node.clone(),
        }
    }

    /// The node's disk is replaced by an old copy of it. What only the lost disk held is lost with it, and that is no fault.
    fn restore(&mut self) {
        self.note("node_restored");
        self.disconnect();
        self.node = self.backup.clone();
        self.quiet = true;
        let kept: BTreeSet<Op> = self.node.ops.values().copied().collect();
        let known = &self.region.known;
        self.accepted.retain(|op| known.contains(op) || kept.contains(op));
    }

    /// The region comes back with another history of its logs, which soon has the same versions with other rows: at once with
    /// as many, or after the next publications.
    fn rebuild(&mut self) {
        self.note("region_rebuilt");
        let Self { region, dice, .. } = self;
        region.rebuild(|length| if dice.chance(300) { 0 } else { length - dice.below(10).min(length) });
        for log in Log::ALL {
            if self.dice.chance(500) {
                let keys = (0..self.dice.below(12)).map(|_| self.dice.below(20) as u8).collect::<Vec<_>>();
                self.region.logs.entry(log).or_default().extend(keys);
            }
        }
    }

    /// Ends the connection on both sides. What a store was doing is done or not.
    fn disconnect(&mut self) {
        let Some(link) = self.link.take() else { return };
        let pending: Vec<u64> = self
            .events
            .iter()
            .filter(|(_, (connection, _))| *connection == link.number)
            .map(|(n, _)| *n)
            .collect();
        for number in pending {
            let (_, event) = self.events.get(&number).expect("just listed");
            let done = self.dice.chance(500);
            match event {
                Event::NodeApply { tail, region_epoch } if done => {
                    let (tail, region_epoch) = (tail.clone(), *region_epoch);
                    self.node.apply(&tail, region_epoch);
                }
                Event::NodeBegin(epoch) if done => self.node.begin_epoch(*epoch),
                Event::RegionBegin(epoch) if done => self.region.begin_epoch(*epoch),
                Event::RegionApply(batch) if done => {
                    let batch = batch.clone();
                    self.region.apply(&batch, false);
                }
                _ => {}
            }
        }
        let pause = if self.healed { 0 } else { self.dice.below(300) };
        self.plan(pause, 0, Event::Connect);
    }

    // ---- the connection

    fn connect(&mut self) {
        if self.link.is_some() {
            return;
        }
        self.connections += 1;
        let facts = NodeFacts { node: NODE, schemas: vec![1], ..NodeFacts::default() };
        let region = RegionFacts {
            region: "sim".to_owned(),
            region_epoch: self.region.epoch(),
            ..RegionFacts::default()
        };
        self.link = Some(Link {
            number: self.connections,
            node: NodeSession::new(&facts, self.node.position(), &self.node.cursors(), self.now),
            region: RegionSession::new(NODE, region, self.region.heads(), self.now),
            cut: false,
            arrivals: [self.now; 2 + Log::COUNT],
            tick_at: u64::MAX,
        });
    }

    fn node_in(&mut self, input: NodeInput) {
        if let Some(link) = &mut self.link {
            link.node.handle(input, self.now);
        }
    }

    fn region_in(&mut self, input: RegionInput) {
        if let Some(link) = &mut self.link {
            link.region.handle(input, self.now);
        }
    }

    /// Does what both sessions want, and plans their next tick.
    fn settle(&mut self) {
        while let Some(link) = &mut self.link {
            let number = link.number;
            if let Some(output) = link.node.poll_output() {
                self.on_node(number, output);
            } else if let Some(output) = link.region.poll_output() {
                self.on_region(number, output);
            } else {
                break;
            }
        }
        let Some(link) = &mut self.link else { return };
        let deadline = [link.node.next_deadline(), link.region.next_deadline()].into_iter().flatten().min();
        if let Some(at) = deadline.filter(|at| *at < link.tick_at || link.tick_at <= self.now) {
            link.tick_at = at;
            let number = link.number;
            self.plan_at(at.max(self.now + 1), number, Event::Tick);
        }
    }

    fn on_node(&mut self, number: u64, output: NodeOutput) {
        match output {
            NodeOutput::Control(frame) => self.send_ordered(0, &frame, Event::ToRegion),
            NodeOutput::Batch(batch) => self.send_batch(&batch),
            NodeOutput::ReadOps { from, ops_max, bytes_max } => {
                self.plan_store(number, Event::NodeRead { from, ops_max, bytes_max });
            }
            NodeOutput::Trim { epoch, to } => {
                let safe = self.region.node.expect("an acknowledging region knows the node");
                assert!(epoch < safe.epoch || to <= safe.hwm, "trimmed before it was committed");
                self.node.trim(epoch, to);
            }
            NodeOutput::BeginEpoch(epoch) => self.plan_store(number, Event::NodeBegin(epoch)),
            NodeOutput::Apply { tail, region_epoch } => {
                if matches!(tail.part, Part::Snapshot { .. }) {
                    self.note("snapshot");
                }
                self.plan_store(number, Event::NodeApply { tail, region_epoch });
            }
            NodeOutput::Welcomed(_) => self.quiet = false,
            NodeOutput::Redial => {
                self.note("redial");
                // A dead path is dead for a second connection, too.
                if self.link.as_ref().is_some_and(|link| !link.cut) {
                    self.disconnect();
                }
            }
            NodeOutput::Fault(fault) => {
                assert_eq!(fault, NodeFault::NoWelcome, "peers keep to the protocol");
                self.disconnect();
            }
        }
    }

    fn on_region(&mut self, number: u64, output: RegionOutput) {
        match output {
            RegionOutput::LoadNode(_) => self.plan_store(number, Event::RegionLoad),
            RegionOutput::BeginEpoch(epoch) => self.plan_store(number, Event::RegionBegin(epoch)),
            RegionOutput::Control(frame) => self.send_ordered(1, &frame, Event::ToNode),
            RegionOutput::Apply(batch) => self.plan_store(number, Event::RegionApply(batch)),
            RegionOutput::ReadTail { log, ticket, from, .. } => {
                let records_max = 1 + self.dice.below(8) as usize;
                let answer = match self.region.tail(log, from, records_max) {
                    _ if self.read_fails() => RegionInput::ReadFailed { log, ticket },
                    Some(tail) => RegionInput::TailRead { ticket, tail },
                    None => RegionInput::TailGone { log, ticket },
                };
                self.plan_store(number, Event::RegionAnswer(answer));
            }
            RegionOutput::ReadSnapshot { log, ticket, resume, .. } => {
                let records_max = 1 + self.dice.below(8) as usize;
                let answer = if self.read_fails() {
                    RegionInput::ReadFailed { log, ticket }
                } else {
                    RegionInput::PageRead {
                        log,
                        ticket,
                        page: self.region.page(log, resume.as_deref(), records_max),
                    }
                };
                self.plan_store(number, Event::RegionAnswer(answer));
            }
            RegionOutput::Tail(tail) => self.send_tail(&tail),
            RegionOutput::NoteApplied { log, version } => {
                assert!(version <= self.node.cursors.get(log), "told more than is applied");
            }
            RegionOutput::Fault(fault) => {
                assert_eq!(fault, RegionFault::NoHello, "peers keep to the protocol");
                self.disconnect();
            }
        }
    }

    fn read_fails(&mut self) -> bool {
        !self.healed && self.dice.chance(self.climate.store_failure)
    }

    fn plan_store(&mut self, number: u64, event: Event) {
        let slow = !self.healed && self.dice.chance(self.climate.slow_store);
        let takes = if slow { self.dice.below(3_000) } else { self.dice.below(10) };
        self.plan(takes, number, event);
    }

    fn lost(&mut self, per_mille: u64) -> bool {
        self.link.as_ref().is_none_or(|link| link.cut) || (!self.healed && self.dice.chance(per_mille))
    }

    /// Control frames and tails come in the order of their stream; some are lost or repeated all the same.
    fn send_in_order(&mut self, stream: usize, bytes: Vec<u8>, greeting: bool, event: fn(Vec<u8>) -> Event) {
        let loss = if greeting { 0 } else { self.climate.stream_loss };
        if self.lost(loss) {
            return;
        }
        let travels = 20 + self.dice.below(30);
        let times = if !greeting && !self.healed && self.dice.chance(self.climate.repeat) { 2 } else { 1 };
        let link = self.link.as_mut().expect("lost without a link");
        let at = link.arrivals[stream].max(self.now + travels);
        link.arrivals[stream] = at;
        let number = link.number;
        for _ in 0..times {
            self.plan_at(at, number, event(bytes.clone()));
        }
    }

    fn send_ordered(&mut self, stream: usize, frame: &Control, event: fn(Vec<u8>) -> Event) {
        let greeting = matches!(frame, Control::Hello(_) | Control::Welcome(_) | Control::Reject(_));
        self.send_in_order(stream, frame.encode(), greeting, event);
    }

    fn send_tail(&mut self, tail: &Tail) {
        self.send_in_order(1 + usize::from(tail.log.code()), tail.encode(), false, Event::TailToNode);
    }

    /// Batches have a stream each: lost, repeated and in any order.
    fn send_batch(&mut self, batch: &Batch) {
        if self.lost(self.climate.batch_loss) {
            return;
        }
        let times = if self.dice.chance(self.climate.repeat) { 2 } else { 1 };
        let number = self.link.as_ref().expect("lost without a link").number;
        for _ in 0..times {
            let travels = 20 + self.dice.below(200);
            self.plan(travels, number, Event::BatchToRegion(batch.encode()));
        }
    }
}
