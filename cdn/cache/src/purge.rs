//! What was made invalid, and whether a response was made before that.
//!
//! A counter goes up with each purge. A purge writes its number beside the name that it takes back; a response remembers
//! the number at which its request *began*. A response is invalid if one of its names bears a greater number. So a purge
//! costs the same however much is stored, a response that was under way during a purge is never taken for one that came
//! after it, and a hit compares two numbers for as long as nothing is purged.
//!
//! The table of names ([`table`]) is bounded. When it is full the oldest number leaves it and becomes the *floor* of its
//! site: everything of that site that was begun before the floor is invalid, whatever it was made from. Too much, and never
//! too little.
//!
//! A disk keeps each step in its log ([`step`]), and a later life takes the table up from there.
//!
//! Pure but for its lock, which purges take, and hits only after one.

mod place;
mod step;
mod table;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

pub(crate) use self::place::spelled;
pub use self::place::{BadPlace, Place};
pub(crate) use self::step::Step;
use self::table::{Mark, Room, Table};
use crate::key::Key;
use crate::tags::{Birth, Tag};

/// Names in the table. At some 64 bytes each 16 MiB, if all of them were purged; a catalogue of 80,000 products changed
/// whole, prices, stock and all, fits.
const NAMES_MAX: usize = 262_144;
/// Prefixes in the table, of all sites. Each is compared with every hit of its site once after each purge.
const PREFIXES_MAX: usize = 1_024;

/// Where the numbers of a process begin that has a log of former ones: above all that those have counted to, at ten
/// thousand purges a second for nine hundred years.
pub(crate) const LIFE: u64 = 1 << 48;

/// One thing to forget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Purge {
    pub scope: Scope,
    /// Soft: what is stored becomes stale instead of gone. It may stand in where its upstream allowed that
    /// (`stale-while-revalidate`, `stale-if-error`), and is asked for before it is sent otherwise.
    pub soft: bool,
}

/// What of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    Everything,
    Site(Box<str>),
    Tag(Tag),
    /// Every variant of one target.
    Url(Place),
    /// Every target under a path: `/blog` takes `/blog`, `/blog/x` and `/blog?x`, not `/blogger`.
    Prefix(Place),
}

/// Whether a response still holds, after what was purged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Valid,
    /// Stale since `at_ms`; `counted` purges are in this verdict.
    Softened {
        at_ms: u64,
        counted: u64,
    },
    Gone,
}

/// What was purged so far.
#[derive(Debug)]
pub(crate) struct Purges {
    /// The number that this process began with.
    start: u64,
    number: AtomicU64,
    table: RwLock<Table>,
    room: Room,
}

impl Default for Purges {
    fn default() -> Self {
        Self::from(0)
    }
}

impl Purges {
    /// For what outlives the process, together with its purges.
    pub(crate) fn over_a_log() -> Self {
        Self::from(LIFE)
    }

    fn from(start: u64) -> Self {
        let room = Room { names_max: NAMES_MAX, prefixes_max: PREFIXES_MAX };
        Self { start, number: AtomicU64::new(start), table: RwLock::default(), room }
    }

    /// The number of the last purge. Whoever is about to read what a response is made of takes it first.
    pub(crate) fn number(&self) -> u64 {
        self.number.load(Ordering::Acquire)
    }

    /// Steps of this process.
    pub(crate) fn steps(&self) -> u64 {
        self.number() - self.start
    }

    /// The number of a step among those of this process.
    pub(crate) fn count_of(&self, step: &Step) -> u64 {
        step.number() - self.start
    }

    /// Takes all of it back in one step.
    pub(crate) fn apply(&self, now_ms: u64, purges: &[Purge]) -> Step {
        let mut table = self.table.write();
        let step = Step::of(self.number.load(Ordering::Relaxed) + 1, now_ms, purges);
        table.take(&step, self.room);
        // The table first: who reads the number finds what it stands for.
        self.number.store(step.number(), Ordering::Release);
        step
    }

    /// Whether nothing was purged since [`judge`](Self::judge) found this birth valid last.
    pub(crate) fn is_untouched(&self, birth: &Birth) -> bool {
        birth.checked() == self.number()
    }

    pub(crate) fn judge(&self, key: &Key, birth: &Birth) -> Verdict {
        let number = self.number();
        if birth.checked() == number {
            return Verdict::Valid;
        }
        if birth.is_open() {
            // What it is made from is not known yet: it may be anything.
            return if birth.born() == number { Verdict::Valid } else { Verdict::Gone };
        }
        let table = self.table.read();
        let number = self.number();
        // In another life than this table.
        if birth.born() > number {
            return Verdict::Gone;
        }
        let mut soft_ms = None;
        let is_gone = |mark: &Mark| {
            if mark.soft > birth.soft_from() {
                soft_ms = Some(soft_ms.map_or(mark.soft_ms, |at: u64| at.min(mark.soft_ms)));
            }
            mark.hard > birth.born()
        };
        if table.concerns(key, birth.born(), birth.tags(), is_gone) {
            return Verdict::Gone;
        }
        match soft_ms {
            Some(at_ms) => Verdict::Softened { at_ms, counted: number },
            None => {
                birth.note_checked(number);
                Verdict::Valid
            }
        }
    }

    /// Names and prefixes in the table.
    pub(crate) fn size(&self) -> (usize, usize) {
        self.table.read().size()
    }

    /// A table of what former lives have purged, as their log says.
    pub(crate) fn former(&self) -> Former {
        Former { table: Table::default(), room: self.room }
    }

    /// Takes up where former lives have stopped. What was stored in one may be used from here on, and not before.
    pub(crate) fn adopt(&self, former: Former) {
        self.table.write().under(former.table, self.room);
    }
}

/// What was purged in former lives.
#[derive(Debug)]
pub(crate) struct Former {
    table: Table,
    room: Room,
}

impl Former {
    /// The next step of their log.
    pub(crate) fn take(&mut self, step: &Step) {
        self.table.take(step, self.room);
    }
}
