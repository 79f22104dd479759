//! The connection of a world: two sessions, and a path that loses, repeats, delays and reorders what is between them.

use crate::{
    Batch, Control, Log, NodeFacts, NodeFault, NodeInput, NodeOutput, NodeSession, Part, RegionFacts,
    RegionFault, RegionInput, RegionOutput, RegionSession, Tail,
};

use super::world::{Event, NODE, REGION, World};

/// The number in the node's certificate.
const NODE_NUMBER: u32 = 7;
/// Least time on the way.
const TRAVEL_MS_MIN: u64 = 20;

pub(super) struct Link {
    pub(super) number: u64,
    node: NodeSession,
    region: RegionSession,
    /// When the last frame of each ordered stream arrives: control up, control down, and the logs.
    arrivals: [u64; 2 + Log::COUNT],
    tick_at: u64,
}

/// The frame as the release before this one would have sent it.
fn older(frame: &Control) -> Control {
    let mut frame = frame.clone();
    match &mut frame {
        Control::Hello(hello) => {
            (hello.diverged, hello.features) = (false, 0);
            hello.stagings.clear();
        }
        Control::Welcome(welcome) => {
            (welcome.fold, welcome.features) = (None, 0);
            welcome.schemas.clear();
        }
        Control::Ack(ack) => ack.fold = None,
        _ => {}
    }
    frame
}

impl World {
    pub(super) fn path_is_dead(&self) -> bool {
        self.dead_until.iter().any(|until| *until > self.now)
    }

    pub(super) fn connect(&mut self) {
        if self.link.is_some() {
            return;
        }
        if self.path_is_dead() {
            // No handshake comes to an end when either way is dead.
            let pause = 50 + self.dice.below(500);
            return self.plan(pause, 0, Event::Connect);
        }
        self.connections += 1;
        let facts = NodeFacts { node: NODE_NUMBER, schemas: vec![1], ..NodeFacts::default() };
        if self.climate.older.contains(&true) {
            self.note("mixed_releases");
        }
        let region = RegionFacts {
            region: "sim".to_owned(),
            schemas: vec![1],
            region_epoch: self.region.history,
            ..RegionFacts::default()
        };
        let diverged = std::mem::take(&mut self.diverged);
        let (position, cursors) = (self.position(), self.node.cursors());
        let stagings: Vec<_> = self.node.stagings.values().cloned().collect();
        self.tell("transport", || format!("connection {}", self.connections));
        self.link = Some(Link {
            number: self.connections,
            node: NodeSession::new(&facts, position, diverged, &cursors, &stagings, self.clock(NODE)),
            region: RegionSession::new(NODE_NUMBER, region, self.region.heads(), self.clock(REGION)),
            arrivals: [self.now; 2 + Log::COUNT],
            tick_at: u64::MAX,
        });
    }

    pub(super) const fn clock(&self, side: usize) -> u64 {
        self.now + self.clocks[side]
    }

    pub(super) fn node_in(&mut self, input: NodeInput) {
        let now = self.clock(NODE);
        if let Some(link) = &mut self.link {
            link.node.handle(input, now);
            link.node.check_bounds();
        }
    }

    pub(super) fn region_in(&mut self, input: RegionInput) {
        let now = self.clock(REGION);
        if let Some(link) = &mut self.link {
            link.region.handle(input, now);
            link.region.check_bounds();
        }
    }

    /// Does what both sessions want, and plans their next tick.
    pub(super) fn settle(&mut self) {
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
        let (now, clocks) = (self.now, self.clocks);
        let Some(link) = &mut self.link else { return };
        let node = link.node.next_deadline().map(|at| at.saturating_sub(clocks[NODE]));
        let region = link.region.next_deadline().map(|at| at.saturating_sub(clocks[REGION]));
        let deadline = [node, region].into_iter().flatten().min();
        if let Some(at) = deadline.filter(|at| *at < link.tick_at || link.tick_at <= now) {
            let at = at.max(now + 1);
            link.tick_at = at;
            let number = link.number;
            self.plan_at(at, number, Event::Tick);
        }
    }

    fn on_node(&mut self, number: u64, output: NodeOutput) {
        match output {
            NodeOutput::Control(frame) => self.send_ordered(NODE, 0, &frame, Event::ToRegion),
            NodeOutput::Batch(batch) => self.send_batch(&batch),
            NodeOutput::ReadOps { from, ops_max, bytes_max } => {
                self.plan_store(number, Event::NodeRead { from, ops_max, bytes_max });
            }
            NodeOutput::GoBack { epoch, to } => {
                self.note("sent_again");
                self.tell("node", || format!("the region has only {} of epoch {epoch}", to.hwm));
                self.node.go_back(epoch, to);
            }
            NodeOutput::Trim { epoch, to, fold } => {
                let safe = self.region.node.expect("an acknowledging region knows the node");
                assert!(epoch < safe.epoch || to <= safe.hwm, "{to} is forgotten, committed is {}", safe.hwm);
                self.node_trim(epoch, to, fold);
            }
            NodeOutput::BeginEpoch(epoch) => self.plan_store(number, Event::NodeBegin { epoch, tries: 0 }),
            NodeOutput::Apply { tail, region_epoch } => {
                if let Part::Snapshot { .. } = tail.part {
                    self.note(if tail.from == 0 { "snapshot_resumed" } else { "snapshot" });
                }
                self.plan_store(number, Event::NodeApply { tail, region_epoch, tries: 0 });
            }
            NodeOutput::Welcomed(_) => {}
            NodeOutput::Redial => {
                self.note("redial");
                self.tell("node", || "no progress: tries a second connection".to_owned());
                // A dead path is dead for a second connection, too.
                if !self.path_is_dead() {
                    self.disconnect();
                }
            }
            NodeOutput::Fault(fault) => {
                self.tell("node", || format!("ends the connection: {fault}"));
                match fault {
                    NodeFault::NoWelcome => {}
                    NodeFault::Diverged => {
                        self.note("diverged");
                        self.diverged = true;
                    }
                    other => panic!("peers keep to the protocol: {other}"),
                }
                self.disconnect();
            }
        }
    }

    fn on_region(&mut self, number: u64, output: RegionOutput) {
        match output {
            RegionOutput::LoadNode(_) => self.plan_store(number, Event::RegionLoad),
            RegionOutput::BeginEpoch(epoch) => self.plan_store(number, Event::RegionBegin(epoch)),
            RegionOutput::Control(frame) => self.send_ordered(REGION, 1, &frame, Event::ToNode),
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
                    let page = self.region.page(log, resume.as_deref(), records_max);
                    RegionInput::PageRead { log, ticket, page }
                };
                self.plan_store(number, Event::RegionAnswer(answer));
            }
            RegionOutput::Tail(tail) => self.send_tail(&tail),
            RegionOutput::NoteApplied { log, version } => {
                assert!(version <= self.node.cursors.get(log), "told more than is applied");
            }
            RegionOutput::Fault(fault) => {
                self.tell("region", || format!("ends the connection: {fault}"));
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

    fn lost(&mut self, from: usize, per_mille: u64) -> bool {
        self.link.is_none()
            || self.dead_until[from] > self.now
            || (!self.healed && self.dice.chance(per_mille))
    }

    /// Control frames and tails come in the order of their stream; some are lost or repeated all the same.
    fn send_in_order(
        &mut self,
        from: usize,
        stream: usize,
        bytes: Vec<u8>,
        greeting: bool,
        event: fn(Vec<u8>) -> Event,
    ) {
        let loss = if greeting { 0 } else { self.climate.stream_loss };
        if self.lost(from, loss) {
            return;
        }
        let travels = TRAVEL_MS_MIN + self.dice.below(self.climate.latency_ms);
        let again = !greeting && !self.healed && self.dice.chance(self.climate.repeat);
        let link = self.link.as_mut().expect("lost without a link");
        let at = link.arrivals[stream].max(self.now + travels);
        link.arrivals[stream] = at;
        let number = link.number;
        if again {
            self.plan_at(at, number, event(bytes.clone()));
        }
        self.plan_at(at, number, event(bytes));
    }

    fn send_ordered(&mut self, from: usize, stream: usize, frame: &Control, event: fn(Vec<u8>) -> Event) {
        let greeting = matches!(frame, Control::Hello(_) | Control::Welcome(_) | Control::Reject(_));
        let frame = if self.climate.older[from] { older(frame) } else { frame.clone() };
        self.send_in_order(from, stream, frame.encode(), greeting, event);
    }

    fn send_tail(&mut self, tail: &Tail) {
        let stream = 1 + usize::from(tail.log.code());
        self.send_in_order(REGION, stream, tail.encode(), false, Event::TailToNode);
    }

    /// Batches have a stream each: lost, repeated and in any order.
    fn send_batch(&mut self, batch: &Batch) {
        if self.lost(NODE, self.climate.batch_loss) {
            return;
        }
        let times = if self.dice.chance(self.climate.repeat) { 2 } else { 1 };
        let number = self.link.as_ref().expect("lost without a link").number;
        for _ in 0..times {
            let travels = TRAVEL_MS_MIN + self.dice.below(170 + self.climate.latency_ms);
            self.plan(travels, number, Event::BatchToRegion(batch.encode()));
        }
    }
}
