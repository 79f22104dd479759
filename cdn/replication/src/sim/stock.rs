//! One product's units in a world: lent to the node, promised there, and brought home ([`crate::escrow`]).
//!
//! Questions and answers about grants travel beside the sessions, as the product's calls do: one at a time, given up after a
//! while, and what was given up may still reach the region after the next one has. The dice are their own, so that a world
//! has the same misfortunes whatever becomes of its stock.

use std::collections::BTreeMap;

use crate::{
    EpochNo, NodeState, Seq,
    escrow::{Closed, Grant, HOT_PER_MINUTE, Lease, Ledger, Terms, more_for},
    planted::{Bug, planted},
};

use super::{
    disks::{Op, is_poison},
    world::{Event, NODE, REGION, World},
};

/// Short, so that a world sees many ends.
const TERMS: Terms = Terms { life_ms: 3_000, hold_ms: 2_000, margin_ms: 300 };
const UNITS: u64 = 2_000;
/// What a hot product is asked for.
const HOT: u64 = 800;
/// A question without an answer is given up after this.
const PATIENCE_MS: u64 = 1_000;
/// A node that starts again numbers its questions beyond any that it has asked before.
const TURNS_PER_START: u64 = 1_000;

/// Whether an operation is a promise, if the node can make it.
pub(super) const fn is_promise(op: Op) -> bool {
    op % 3 == 1 && !is_poison(op)
}

/// What a promise took, in the operation's own words.
#[derive(Debug, Clone, Copy)]
pub(super) struct Promise {
    grant: u64,
    units: u64,
    at: u64,
}

/// In the node's one file, beside the outbox.
#[derive(Debug, Clone, Default)]
pub(super) struct NodeStock {
    turn: u64,
    lease: Option<(u64, Lease)>,
}

impl NodeStock {
    /// In the transaction that appends the operation.
    pub(super) fn promise(&mut self, op: Op, node_ms: u64, at: u64) -> Option<Promise> {
        let (grant, lease) = self.lease.as_mut()?;
        let units = 1 + op % 4;
        lease.take(units, node_ms).then_some(Promise { grant: *grant, units, at })
    }
}

/// In the region's database, beside the mark.
#[derive(Debug, Clone)]
pub(super) struct RegionStock {
    ledger: Ledger,
    grants: BTreeMap<u64, Grant>,
    holds: BTreeMap<Op, (u64, u64)>,
    turn: u64,
}

impl RegionStock {
    pub(super) fn new() -> Self {
        Self { ledger: Ledger::of(UNITS), grants: BTreeMap::new(), holds: BTreeMap::new(), turn: 0 }
    }

    pub(super) const fn is_home(&self) -> bool {
        self.ledger.granted == 0
    }

    /// In the transaction that moves the mark. False: the promise cannot be kept.
    pub(super) fn take_in(&mut self, op: Op, promise: &Promise, region_ms: u64) -> bool {
        let taken = self.grants.get_mut(&promise.grant).is_some_and(|grant| grant.take(promise.units));
        if taken {
            self.ledger.consume(promise.units).expect("what is left of grants is granted");
        } else if planted(Bug::LateReservationTaken) {
            self.ledger.reserved += promise.units;
        }
        if taken || planted(Bug::LateReservationTaken) {
            self.holds.insert(op, (promise.units, region_ms + TERMS.hold_ms));
        }
        taken || planted(Bug::LateReservationTaken)
    }

    fn check(&self) {
        let Self { ledger, grants, holds, .. } = self;
        assert!(ledger.is_whole(), "a unit is in two places or in none: {ledger:?}");
        let left: u64 = grants.values().map(Grant::left).sum();
        assert_eq!(ledger.granted, left, "what is granted is not what is left of the grants");
        let held: u64 = holds.values().map(|(units, _)| units).sum();
        assert_eq!(ledger.reserved, held, "what is reserved is not what is held");
    }

    /// Brings home what has come to its end. Returns how many grants, and how many of them by time alone.
    fn bring_home(&mut self, mark: Option<NodeState>, region_ms: u64) -> (u64, u64) {
        let ended: Vec<u64> = self
            .grants
            .iter()
            .filter(|(_, grant)| grant.is_back(mark, TERMS, region_ms))
            .map(|(id, _)| *id)
            .collect();
        let mut by_time = 0;
        for id in &ended {
            let grant = self.grants.remove(id).expect("just found");
            by_time += u64::from(grant.closed.is_none());
            self.ledger.reclaim(grant.left()).expect("what is left of grants is granted");
        }
        let lapsed: Vec<Op> =
            self.holds.iter().filter(|(_, (_, until))| *until <= region_ms).map(|(op, _)| *op).collect();
        for op in lapsed {
            let (units, _) = self.holds.remove(&op).expect("just found");
            self.ledger.release(units).expect("what is held is reserved");
        }
        (ended.len() as u64, by_time)
    }
}

/// A node's question.
#[derive(Debug)]
pub(super) struct Question {
    turn: u64,
    epoch: Option<EpochNo>,
    last: Seq,
    open: Option<u64>,
    per_minute: u64,
}

/// A region's answer.
#[derive(Debug)]
pub(super) enum Word {
    /// A later question was answered: this is its number.
    Old(u64),
    /// The one grant that the node has from now on, with all that was granted, and how long it lives.
    Grant(Option<(u64, u64, u64)>),
}

impl World {
    /// The promises that broke in a commit may be only those that had lapsed by themselves.
    pub(super) fn check_promises(&mut self, broken: &[Op]) {
        self.region.stock.check();
        for op in broken {
            self.note("promise_refused");
            let Promise { at, .. } = self.promises[op];
            assert!(
                self.stock_excused || self.now >= at + TERMS.hold_ms,
                "a promise is broken: {op}, made at {at} and refused at {}",
                self.now
            );
        }
    }

    /// Each operation that is a promise takes its units, or is none; what is left is what the node accepts.
    pub(super) fn make_promises(&mut self, ops: &[Op]) -> Vec<Op> {
        let (node_ms, now) = (self.clock(NODE), self.now);
        let mut kept = Vec::with_capacity(ops.len());
        for op in ops {
            if !is_promise(*op) {
                kept.push(*op);
            } else if let Some(promise) = self.node.stock.promise(*op, node_ms, now) {
                self.note(if self.path_is_dead() { "promised_cut_off" } else { "promised" });
                self.tell("node disk", || format!("promises {promise:?} in {op}"));
                self.promises.insert(*op, promise);
                kept.push(*op);
            }
        }
        kept
    }

    /// The node asks, unless it waits for an answer.
    pub(super) fn ask_for_stock(&mut self) {
        let pause = 150 + self.stock_dice.below(500);
        self.plan(pause, 0, Event::StockAsk);
        if self.asking.is_some_and(|(_, since)| self.now < since + PATIENCE_MS) {
            return;
        }
        if self.link.is_none() || self.climate.older.contains(&true) {
            return;
        }
        self.turns = self.turns.max(self.node.stock.turn) + 1;
        let is_hot = !self.healed && !self.stock_dice.chance(250);
        let question = Question {
            turn: self.turns,
            open: self.node.stock.lease.as_ref().map(|(grant, _)| *grant),
            epoch: self.node.epoch,
            last: self.node.last,
            per_minute: if is_hot { HOT } else { 0 },
        };
        self.asking = Some((self.turns, self.now));
        self.asked_ms = self.clock(NODE);
        // What is given up may wait in the region for its turn, beyond the end of the connection.
        let waits = if self.stock_dice.chance(100) && !self.healed { 3_000 } else { 200 };
        let travels = 20 + self.stock_dice.below(waits);
        if !self.path_is_dead() {
            self.plan(travels, 0, Event::StockAsked(question));
        }
    }

    /// The region decides, in one transaction.
    pub(super) fn decide_on_stock(&mut self, question: &Question) {
        let &Question { turn, epoch, last, open, per_minute } = question;
        if self.is_full(REGION) || self.region.node.map(|node| node.epoch) != epoch {
            return;
        }
        let Some(epoch) = epoch else { return };
        let region_ms = self.clock(REGION);
        let stock = &mut self.region.stock;
        if turn <= stock.turn && !planted(Bug::OldQuestionHeard) {
            let word = Word::Old(stock.turn);
            self.note("old_question");
            return self.answer_on_stock(turn, word);
        }
        stock.turn = turn;
        for (id, grant) in &mut stock.grants {
            if Some(*id) != open && grant.closed.is_none_or(|closed| closed.epoch != epoch) {
                grant.closed = Some(Closed { epoch, seq: last });
            }
        }
        let lives_ms = TERMS.life_ms;
        let live = open.and_then(|id| stock.grants.get_mut(&id).map(|grant| (id, grant)));
        let live = live.filter(|(_, grant)| grant.closed.is_none());
        let held = live.as_ref().map_or(0, |(_, grant)| grant.left());
        let more = more_for(&stock.ledger, held, per_minute, TERMS);
        let named = match live {
            Some(_) if per_minute < HOT_PER_MINUTE => None,
            Some((id, grant)) => {
                stock.ledger.grant(more).expect("more than there is was not sized");
                grant.units += more;
                grant.expires_ms = grant.expires_ms.max(region_ms + lives_ms);
                Some(("grant_prolonged", (id, grant.units, lives_ms)))
            }
            None if more == 0 => None,
            None => {
                stock.ledger.grant(more).expect("more than there is was not sized");
                self.grants_made += 1;
                let expires_ms = region_ms + lives_ms;
                let grant = Grant { units: more, consumed: 0, expires_ms, closed: None };
                stock.grants.insert(self.grants_made, grant);
                Some(("grant", (self.grants_made, more, lives_ms)))
            }
        };
        stock.check();
        if let Some((what, _)) = named {
            self.note(what);
        }
        self.tell("region disk", || format!("{question:?} is answered by {named:?}"));
        self.answer_on_stock(turn, Word::Grant(named.map(|(_, named)| named)));
    }

    fn answer_on_stock(&mut self, turn: u64, word: Word) {
        let travels = 20 + self.stock_dice.below(200);
        if let Some(number) = self.link.as_ref().map(|link| link.number).filter(|_| !self.path_is_dead()) {
            self.plan(travels, number, Event::StockAnswered { turn, word });
        }
    }

    /// The node writes down what it has, if it still waits for this answer.
    pub(super) fn note_stock(&mut self, turn: u64, word: &Word) {
        if self.asking.is_none_or(|(asked, _)| asked != turn) {
            return;
        }
        self.asking = None;
        if self.is_full(NODE) {
            return;
        }
        match *word {
            Word::Old(newest) => self.turns = self.turns.max(newest),
            Word::Grant(named) => {
                let stock = &mut self.node.stock;
                stock.turn = stock.turn.max(turn);
                let used = |id| stock.lease.filter(|(had, _)| *had == id).map_or(0, |(_, lease)| lease.used);
                stock.lease = named.map(|(id, units, lives_ms)| {
                    let until_ms = Lease::until(self.asked_ms, lives_ms);
                    (id, Lease { units, used: used(id), until_ms })
                });
                let lease = stock.lease;
                self.tell("node disk", || format!("has {lease:?}"));
            }
        }
    }

    /// The region's own day: it sells, promises lapse, grants come home.
    pub(super) fn keep_stock(&mut self) {
        let pause = 100 + self.stock_dice.below(400);
        self.plan(pause, 0, Event::StockKeep);
        if self.is_full(REGION) {
            return;
        }
        let (region_ms, mark) = (self.clock(REGION), self.region.node);
        let stock = &mut self.region.stock;
        let (home, by_time) = stock.bring_home(mark, region_ms);
        if !self.healed {
            // Too few is a no, and no matter.
            let _ = stock.ledger.sell(self.stock_dice.below(20));
            if let Some((op, (units, _))) = stock.holds.pop_first() {
                if self.stock_dice.chance(500) {
                    stock.ledger.sell_reserved(units).expect("what is held is reserved");
                } else {
                    stock.holds.insert(op, (units, region_ms));
                }
            }
            if stock.ledger.available < UNITS / 4 {
                let unsold = stock.ledger.unsold();
                stock.ledger.recount(unsold + UNITS / 2);
            }
        }
        stock.check();
        for _ in 0..home {
            self.note("grant_home");
        }
        if by_time > 0 {
            self.note("grant_home_by_time");
        }
    }

    /// The node starts again.
    pub(super) fn restart_stock(&mut self) {
        self.asking = None;
        // On its disk before the first question: one of its former life may be on its way still.
        self.node.stock.turn += TURNS_PER_START;
        self.turns = self.node.stock.turn;
    }
}
