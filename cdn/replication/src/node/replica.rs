//! How far a node has each log, and what of it is on its way into the store: the way down.

use std::collections::VecDeque;

use crate::{
    Applied, Cursor, Log, NodeFault, Part, Staging, Tail,
    limits::TAILS_IN_FLIGHT_MAX,
    planted::{Bug, planted},
    wire::{Rewind, Staged},
};

/// A region keeps to its window of tails; after a rewind a second window can be on its way.
const QUEUE_MAX: usize = 2 * TAILS_IN_FLIGHT_MAX;

/// A place in a log: applied to `cursor`, and perhaps in the middle of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Place {
    cursor: u64,
    /// The history that `cursor` counts.
    region_epoch: Option<u32>,
    staged: Option<Stage>,
}

/// The parts of one reading of a snapshot that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stage {
    attempt: u64,
    version: u64,
    parts: u32,
}

impl Place {
    const fn after(self, tail: &Tail, region_epoch: u32) -> Self {
        match tail.part {
            Part::Changes | Part::Snapshot { last: true, .. } => {
                Self { cursor: tail.to, region_epoch: Some(region_epoch), staged: None }
            }
            Part::Snapshot { index, last: false } => {
                let staged = Stage { attempt: tail.from, version: tail.to, parts: index.saturating_add(1) };
                Self { staged: Some(staged), ..self }
            }
        }
    }
}

/// What a tail is to a replica.
#[derive(Debug, PartialEq, Eq)]
enum Fit {
    Continues,
    /// Applied or queued already.
    Old,
    /// Something before it is missing.
    Gap,
    /// It begins before what we have and ends after it: the region does not know how far we are.
    Straddles,
}

/// What to tell the region about a tail that is not applied.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Applied(Applied),
    Rewind(Rewind),
}

/// One log at the node.
#[derive(Debug)]
pub(super) struct Replica {
    log: Log,
    /// What the store has durably.
    durable: Place,
    /// What it will have when everything that is queued is applied.
    ahead: Place,
    /// The region may turn this log back with a snapshot, since it was restored to before our cursor.
    may_go_back: bool,
    /// A rewind was asked for and nothing fitting came since: say it once.
    rewinding: bool,
    /// A tail found no room: to be asked for when there is some.
    dropped: bool,
    queue: VecDeque<Tail>,
    applying: Option<Place>,
}

impl Replica {
    /// `staged`: what an earlier connection has brought of a snapshot; a region that goes on with it says attempt 0.
    pub(super) fn new(Cursor { log, version, region_epoch }: Cursor, staged: Option<&Staging>) -> Self {
        let staged = staged.map(|&Staging { version, parts, .. }| Stage { attempt: 0, version, parts });
        let place = Place { cursor: version, region_epoch, staged };
        Self {
            log,
            durable: place,
            ahead: place,
            may_go_back: false,
            rewinding: false,
            dropped: false,
            queue: VecDeque::new(),
            applying: None,
        }
    }

    pub(super) const fn cursor(&self) -> u64 {
        self.durable.cursor
    }

    pub(super) const fn allow_going_back(&mut self) {
        self.may_go_back = true;
    }

    /// Tails that wait, for the simulation to bound.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.queue.len()
    }

    fn fit(&self, tail: &Tail) -> Fit {
        let Place { cursor, staged, .. } = self.ahead;
        match tail.part {
            // Their numbers may fit ours, but ours count what is to be given up.
            Part::Changes if self.may_go_back => Fit::Gap,
            Part::Changes if tail.to <= cursor && planted(Bug::DownTwice) => Fit::Continues,
            Part::Changes if tail.to <= cursor => Fit::Old,
            Part::Changes if tail.from == cursor => Fit::Continues,
            Part::Changes if tail.from < cursor => Fit::Straddles,
            Part::Changes => Fit::Gap,
            Part::Snapshot { .. } if tail.to <= cursor && !self.may_go_back => Fit::Old,
            Part::Snapshot { index, .. } => match staged {
                Some(staged) if tail.from < staged.attempt => Fit::Old,
                Some(staged) if tail.from == staged.attempt && index < staged.parts => Fit::Old,
                Some(Stage { attempt, version, parts })
                    if (attempt, version, parts) == (tail.from, tail.to, index) =>
                {
                    Fit::Continues
                }
                _ if index == 0 => Fit::Continues,
                _ => Fit::Gap,
            },
        }
    }

    /// Takes a tail in; says what to answer when it will not be applied.
    pub(super) fn on_tail(&mut self, tail: Tail, region_epoch: u32) -> Option<Answer> {
        debug_assert_eq!(tail.log, self.log, "a session hands a tail to the replica of its log");
        match self.fit(&tail) {
            Fit::Old => Some(Answer::Applied(self.applied())),
            Fit::Gap if self.rewinding => None,
            // Whatever was asked before has not arrived: a region that had heard it would begin where we are.
            Fit::Gap | Fit::Straddles => {
                self.rewinding = true;
                Some(Answer::Rewind(Rewind { log: self.log.code(), version: self.ahead.cursor }))
            }
            // A store that cannot write for minutes meets a region that sends again and again: neither is at fault.
            Fit::Continues if self.queue.len() >= QUEUE_MAX => {
                self.dropped = true;
                None
            }
            Fit::Continues => {
                self.rewinding = false;
                self.ahead = self.ahead.after(&tail, region_epoch);
                if matches!(tail.part, Part::Snapshot { last: true, .. }) {
                    self.may_go_back = false;
                }
                self.queue.push_back(tail);
                None
            }
        }
    }

    /// The next tail for the store, if it is idle.
    pub(super) fn next_apply(&mut self, region_epoch: u32) -> Option<Tail> {
        if self.applying.is_some() {
            return None;
        }
        let tail = self.queue.pop_front()?;
        self.applying = Some(self.durable.after(&tail, region_epoch));
        Some(tail)
    }

    /// The store has applied what it was given.
    pub(super) fn on_applied(&mut self) -> Result<Applied, NodeFault> {
        let Some(place) = self.applying.take() else {
            return Err(NodeFault::Protocol("applied without an apply"));
        };
        self.durable = place;
        Ok(self.applied())
    }

    /// What was dropped for want of room, once the store has caught up.
    pub(super) fn ask_again(&mut self) -> Option<Rewind> {
        if !self.dropped || self.applying.is_some() || !self.queue.is_empty() {
            return None;
        }
        (self.dropped, self.rewinding) = (false, true);
        Some(Rewind { log: self.log.code(), version: self.ahead.cursor })
    }

    const fn applied(&self) -> Applied {
        let staged = match self.durable.staged {
            Some(Stage { version, parts, .. }) => Some(Staged { version, parts }),
            None => None,
        };
        let Place { cursor: version, region_epoch, .. } = self.durable;
        Applied { log: self.log.code(), version, staged, region_epoch }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(version: u64) -> Replica {
        Replica::new(Cursor { log: Log::Price, version, region_epoch: Some(3) }, None)
    }

    fn changes(from: u64, to: u64) -> Tail {
        Tail { log: Log::Price, from, to, part: Part::Changes, records: Vec::new(), next: None }
    }

    fn part(to: u64, index: u32, last: bool) -> Tail {
        Tail {
            log: Log::Price,
            from: 1,
            to,
            part: Part::Snapshot { index, last },
            records: Vec::new(),
            next: None,
        }
    }

    #[test]
    fn one_apply_at_a_time_and_the_cursor_moves_only_afterwards() {
        let mut replica = replica(5);
        assert_eq!(replica.on_tail(changes(5, 8), 3), None);
        assert_eq!(replica.on_tail(changes(8, 9), 3), None);
        assert_eq!(replica.next_apply(3), Some(changes(5, 8)));
        assert_eq!(replica.next_apply(3), None);
        assert_eq!(replica.cursor(), 5);
        assert_eq!(replica.on_applied().map(|a| a.version), Ok(8));
        assert_eq!(replica.next_apply(3), Some(changes(8, 9)));
    }

    #[test]
    fn a_gap_is_told_once_and_an_old_tail_is_acknowledged_again() {
        let mut replica = replica(5);
        let rewind = Answer::Rewind(Rewind { log: Log::Price.code(), version: 5 });
        assert_eq!(replica.on_tail(changes(7, 8), 3), Some(rewind));
        assert_eq!(replica.on_tail(changes(8, 9), 3), None);
        assert!(matches!(replica.on_tail(changes(3, 5), 3), Some(Answer::Applied(a)) if a.version == 5));
        assert_eq!(replica.on_tail(changes(5, 8), 3), None);
        assert_eq!(replica.next_apply(3), Some(changes(5, 8)));
    }

    #[test]
    fn a_region_that_has_not_heard_how_far_we_are_is_told_again() {
        let mut replica = replica(5);
        let rewind = || Some(Answer::Rewind(Rewind { log: Log::Price.code(), version: 5 }));
        assert_eq!(replica.on_tail(changes(7, 8), 3), rewind(), "and that is lost");
        // It waits, and sends again from what it last heard of, cut elsewhere.
        assert_eq!(replica.on_tail(changes(3, 6), 3), rewind());
        assert_eq!(replica.on_tail(changes(6, 8), 3), None);
        assert_eq!(replica.on_tail(changes(5, 8), 3), None);
        assert_eq!(replica.next_apply(3), Some(changes(5, 8)));
    }

    #[test]
    fn what_finds_no_room_is_asked_for_when_the_store_has_caught_up() {
        let mut replica = replica(0);
        for to in 1..=QUEUE_MAX as u64 + 2 {
            assert_eq!(replica.on_tail(changes(to - 1, to), 3).is_some(), to == QUEUE_MAX as u64 + 2, "{to}");
        }
        for left in (0..QUEUE_MAX).rev() {
            replica.next_apply(3).expect("a tail to apply");
            assert_eq!(replica.ask_again(), None);
            replica.on_applied().expect("an apply is under way");
            let asked = replica.ask_again().map(|rewind| rewind.version);
            assert_eq!(asked, (left == 0).then_some(QUEUE_MAX as u64));
        }
        assert_eq!(replica.ask_again(), None, "once");
    }

    #[test]
    fn a_snapshot_moves_the_cursor_with_its_last_part_only() {
        let mut replica = replica(5);
        for (index, last) in [(0, false), (1, false), (2, true)] {
            assert_eq!(replica.on_tail(part(90, index, last), 3), None);
        }
        for (cursor, parts) in [(5, Some(1)), (5, Some(2)), (90, None)] {
            replica.next_apply(3).expect("a part to apply");
            let applied = replica.on_applied().expect("an apply is under way");
            assert_eq!((applied.version, applied.staged.map(|s| s.parts)), (cursor, parts));
        }
    }

    #[test]
    fn a_snapshot_of_an_earlier_connection_goes_on_or_begins_anew() {
        let staged = Staging { log: Log::Price, version: 90, parts: 2, region_epoch: 3, next: vec![1] };
        let cursor = Cursor { log: Log::Price, version: 5, region_epoch: Some(3) };
        let resumed = |index, attempt| Tail { from: attempt, ..part(90, index, index == 2) };
        let mut replica = Replica::new(cursor, Some(&staged));
        assert_eq!(replica.on_tail(resumed(2, 0), 3), None);
        replica.next_apply(3).expect("a part to apply");
        assert_eq!(replica.on_applied().map(|a| a.version), Ok(90));
        let mut replica = Replica::new(cursor, Some(&staged));
        assert!(matches!(replica.on_tail(resumed(1, 1), 3), Some(Answer::Rewind(_))), "of another reading");
        assert_eq!(replica.on_tail(resumed(0, 1), 3), None, "from the beginning");
    }

    #[test]
    fn a_snapshot_turns_a_log_back_only_when_the_region_said_so() {
        let mut replica = replica(50);
        assert!(matches!(replica.on_tail(part(20, 0, true), 3), Some(Answer::Applied(_))));
        replica.allow_going_back();
        assert!(matches!(replica.on_tail(changes(50, 51), 3), Some(Answer::Rewind(_))), "after a lost one");
        assert_eq!(replica.on_tail(part(20, 0, true), 3), None);
        replica.next_apply(3).expect("a part to apply");
        assert_eq!(replica.on_applied().map(|a| a.version), Ok(20));
    }

    #[test]
    fn the_history_is_told_with_the_cursor_that_counts_it() {
        let mut replica = Replica::new(Cursor { log: Log::Price, version: 50, region_epoch: Some(2) }, None);
        replica.allow_going_back();
        for (index, last, history) in [(0, false, 2), (1, true, 3)] {
            assert_eq!(replica.on_tail(part(50, index, last), 3), None);
            replica.next_apply(3).expect("a part to apply");
            let applied = replica.on_applied().expect("an apply is under way");
            assert_eq!((applied.version, applied.region_epoch), (50, Some(history)));
        }
    }
}
