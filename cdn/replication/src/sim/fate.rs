//! What befalls a world: what people do, and what goes wrong.

use std::collections::BTreeSet;

use crate::{
    Log, RegionInput,
    planted::{Bug, planted},
};

use super::{
    disks::{GONE, Op},
    stock::is_promise,
    story,
    world::{Event, NODE, REGION, World},
};

/// A path that is cut is noticed after this, as by QUIC's idle time-out.
const IDLE_MS: u64 = 12_000;
/// Longest cut that heals by itself; others last as long as the world is hostile.
const CUT_MS_MAX: u64 = 6_000;
const FULL_MS_MAX: u64 = 5_000;
/// Longest time that a node whose disk was put back serves before it meets its region.
const AWAY_MS_MAX: u64 = 4_000;
/// A machine that was suspended, or whose hypervisor was.
const JUMP_MS_MAX: u64 = 24 * 3_600 * 1_000;

impl World {
    // ---- what people do

    pub(super) fn accept(&mut self) {
        if self.node.epoch.is_some() {
            let burst = self.climate.bursts && self.dice.chance(30);
            let count = if burst { self.dice.below(600) } else { 1 + self.dice.below(5) };
            for _ in 0..count {
                self.unsynced.push(self.next_op);
                if planted(Bug::ToldEarly) && !is_promise(self.next_op) {
                    self.told.insert(self.next_op);
                }
                self.next_op += 1;
            }
            self.note("accept");
            if !self.syncing {
                self.syncing = true;
                let (takes, boot) = (1 + self.dice.below(30), self.boots);
                self.plan(takes, 0, Event::Synced { boot });
            }
        }
        if !self.healed {
            let pause = self.dice.below(600);
            self.plan(pause, 0, Event::Accept);
        }
    }

    pub(super) fn publish(&mut self) {
        let log = Log::ALL[self.dice.below(3) as usize];
        for _ in 0..=self.dice.below(9) {
            let mut key = self.dice.below(20) as u8;
            if self.dice.chance(150) {
                self.note("removed");
                key |= GONE;
            }
            self.region.logs.entry(log).or_default().push(key);
        }
        if self.dice.chance(200) {
            // The tail is cut off here and there: whoever is further behind needs a snapshot.
            let head = self.region.heads().get(log);
            self.region.kept_from.insert(log, head - self.dice.below(5).min(head));
        }
        let heads = self.region.heads();
        self.tell("region", || format!("publishes {log} up to {}", heads.get(log)));
        self.region_in(RegionInput::Heads(heads));
        if !self.healed {
            let pause = self.dice.below(1_500);
            self.plan(pause, 0, Event::Publish);
        }
    }

    // ---- what goes wrong

    pub(super) fn misfortune(&mut self) {
        if self.healed {
            return;
        }
        let pause = self.dice.below(self.climate.misfortune_every_ms);
        self.plan(pause, 0, Event::Misfortune);
        match self.dice.below(9) {
            0 | 1 => self.cut(),
            2 => self.jump(),
            3 => self.fill(),
            4 | 5 => self.crash_node(),
            6 => self.crash_region(),
            7 => {
                if self.climate.node_restores && self.dice.chance(600) {
                    self.restore_node();
                } else {
                    self.node_backup = self.node.clone();
                }
            }
            _ => {
                if self.climate.region_restores && self.dice.chance(300) {
                    self.restore_region();
                } else {
                    self.region_backup = self.region.clone();
                }
            }
        }
    }

    /// The path dies, both ways or one; it heals by itself, or not before the world does.
    fn cut(&mut self) {
        let (up, down) = [(true, true), (true, false), (false, true)][self.dice.below(3) as usize];
        let lasts = if self.dice.chance(40) {
            self.note("cut_for_good");
            u64::MAX / 2
        } else {
            self.dice.below(CUT_MS_MAX)
        };
        self.note(if up && down { "cut" } else { "cut_one_way" });
        self.tell("MISFORTUNE", || format!("the path is cut for {lasts} ms, up: {up}, down: {down}"));
        for (dead_until, cut) in self.dead_until.iter_mut().zip([up, down]) {
            if cut {
                *dead_until = (*dead_until).max(self.now + lasts);
            }
        }
        if let Some(number) = self.link.as_ref().map(|link| link.number) {
            self.plan(IDLE_MS, number, Event::Dead);
        }
    }

    /// One side's clock jumps ahead: a blink, or a day.
    fn jump(&mut self) {
        let most = if self.dice.chance(200) { JUMP_MS_MAX } else { 10_000 };
        let (side, ahead) = (self.dice.below(2) as usize, self.dice.below(most));
        self.note("clock_jump");
        self.tell("MISFORTUNE", || format!("clock {side} (node, region) jumps by {ahead} ms"));
        self.clocks[side] += ahead;
        // A region that takes a day for passed lets go what was lent.
        self.stock_excused |= side == REGION;
    }

    fn fill(&mut self) {
        let (side, lasts) = (self.dice.below(2) as usize, self.dice.below(FULL_MS_MAX));
        self.note("disk_full");
        self.tell("MISFORTUNE", || format!("disk {side} (node, region) is full for {lasts} ms"));
        self.full_until[side] = self.now + lasts;
    }

    /// The node's process dies. A sync that was under way has reached the disk, or not: nobody was told either way.
    fn crash_node(&mut self) {
        self.note("node_crash");
        self.tell("MISFORTUNE", || "the node crashes".to_owned());
        self.disconnect();
        self.upgrade(NODE);
        let ops = std::mem::take(&mut self.unsynced);
        (self.boots, self.syncing) = (self.boots + 1, false);
        self.restart_stock();
        if ops.is_empty() {
            return;
        }
        if self.dice.chance(500) && !self.is_full(NODE) {
            self.note("tail_kept_untold");
            self.tell("node disk", || format!("holds {}, whose shoppers were not told", story::ops(&ops)));
            self.persist(&ops);
        } else {
            self.note("tail_lost");
            self.tell("node disk", || format!("never saw {}", story::ops(&ops)));
        }
    }

    /// A process of the release before comes back as one of this.
    fn upgrade(&mut self, side: usize) {
        if self.climate.older[side] && self.dice.chance(500) {
            self.note("upgraded");
            self.tell("operator", || format!("upgrades side {side} (node, region)"));
            self.climate.older[side] = false;
        }
    }

    fn crash_region(&mut self) {
        self.note("region_crash");
        self.tell("MISFORTUNE", || "the region crashes".to_owned());
        self.disconnect();
        self.upgrade(REGION);
        if self.climate.rebuilds && self.dice.chance(300) {
            self.rebuild();
        }
    }

    /// The node's disk is replaced by an old copy of it, and it goes on at once. What only the lost disk held is lost with it,
    /// and that is no fault.
    fn restore_node(&mut self) {
        self.note("node_restored");
        self.tell("MISFORTUNE", || {
            format!("the node's disk is an old one: {:?}", self.node_backup.position())
        });
        self.disconnect();
        // It is a while until it meets its region again, and shoppers do not wait for that.
        let away = self.dice.below(AWAY_MS_MAX);
        self.dead_until[NODE] = self.dead_until[NODE].max(self.now + away);
        self.restores += 1;
        (self.boots, self.syncing, self.diverged) = (self.boots + 1, false, false);
        self.unsynced.clear();
        self.node = self.node_backup.clone();
        self.restart_stock();
        self.stock_excused = true;
        self.excuse();
    }

    /// The region comes back from an old copy of its disk, and numbers its history anew as its operator's handbook says. What
    /// it has forgotten and the node has trimmed is lost.
    fn restore_region(&mut self) {
        self.note("region_restored");
        self.tell("MISFORTUNE", || format!("the region's disk is an old one: {:?}", self.region_backup.node));
        self.disconnect();
        // What the lost disk has acknowledged is forgotten, whether or not the node has come to it.
        self.finish_trims();
        self.restores += 1;
        self.region = self.region_backup.clone();
        self.histories += 1;
        self.region.history = self.histories;
        self.full_until[REGION] = 0;
        self.stock_excused = true;
        self.excuse();
        // An older image of the node would bring back what was just given up.
        self.node_backup = self.node.clone();
    }

    fn excuse(&mut self) {
        let kept: BTreeSet<Op> = self.node.ops.values().copied().collect();
        let Self { region, accepted, told, .. } = self;
        let there = |op: &Op| region.known.contains(op) || kept.contains(op);
        accepted.retain(there);
        told.retain(there);
    }

    /// The region comes back with another history of its logs, which soon has the same versions with other rows: at once with
    /// as many, or after the next publications.
    fn rebuild(&mut self) {
        self.note("region_rebuilt");
        self.tell("MISFORTUNE", || "and its logs begin a new history".to_owned());
        self.histories += 1;
        let Self { region, dice, histories, .. } = self;
        region.rebuild(
            *histories,
            |length| if dice.chance(300) { 0 } else { length - dice.below(10).min(length) },
        );
        for log in Log::ALL {
            if self.dice.chance(500) {
                let keys = (0..self.dice.below(12)).map(|_| self.dice.below(20) as u8).collect::<Vec<_>>();
                self.region.logs.entry(log).or_default().extend(keys);
            }
        }
    }
}
