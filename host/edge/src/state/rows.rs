//! What the rows of each log came to, version by version: to be compared with the region's sum of one of them.

use std::collections::{BTreeMap, VecDeque};

use souk_link::{Heads, Log, RowsDigest};

/// Versions of one log that are remembered. A region's sum is of a moment ago: at 40 bytes each these are 640 KiB for a log that
/// moves 200 times a second, and cover more than a minute of it.
const REMEMBERED_MAX: usize = 16_384;

/// One log's.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Draft {
    pub(super) now: RowsDigest,
    /// The newest row of a snapshot that moved while it was read: before the cursor is there, the rows are of no one version.
    settled_at: u64,
    anew: bool,
}

/// A [`Draft`] with the versions that it passed.
#[derive(Debug, Default)]
pub(super) struct Passing {
    draft: Draft,
    passed: Vec<(u64, RowsDigest)>,
}

impl std::ops::Deref for Passing {
    type Target = Draft;

    fn deref(&self) -> &Draft {
        &self.draft
    }
}

impl std::ops::DerefMut for Passing {
    fn deref_mut(&mut self) -> &mut Draft {
        &mut self.draft
    }
}

impl Passing {
    /// The log is at `version` now.
    pub(super) fn passed(&mut self, version: u64) {
        if version >= self.draft.settled_at {
            self.passed.push((version, self.draft.now));
        }
    }

    /// All rows are replaced.
    pub(super) fn begin_anew(&mut self) {
        *self = Self { draft: Draft { anew: true, ..Draft::default() }, passed: Vec::new() };
    }

    /// The snapshot is there, the log is at `version`, and none of its rows is newer than `newest`.
    pub(super) fn settle(&mut self, newest: u64, version: u64) {
        self.draft.settled_at = newest;
        self.passed(version);
    }
}

#[derive(Debug, Default)]
pub(super) struct Trail {
    draft: Draft,
    past: VecDeque<(u64, RowsDigest)>,
}

impl Trail {
    pub(super) fn now(&self) -> RowsDigest {
        self.draft.now
    }

    /// At that version, if it is remembered.
    pub(super) fn at(&self, version: u64) -> Option<RowsDigest> {
        let place = self.past.binary_search_by_key(&version, |(version, _)| *version).ok()?;
        self.past.get(place).map(|(_, digest)| *digest)
    }

    /// To be changed with a transaction, and given back when that is committed.
    pub(super) fn draft(&self) -> Passing {
        Passing { draft: self.draft, passed: Vec::new() }
    }
}

/// All logs'.
#[derive(Debug, Default)]
pub(super) struct Trails {
    logs: BTreeMap<Log, Trail>,
    none: Trail,
}

impl Trails {
    pub(super) fn get(&self, log: Log) -> &Trail {
        self.logs.get(&log).unwrap_or(&self.none)
    }

    /// At the start: one row of the file.
    pub(super) fn read(&mut self, log: Log, version: u64, body: &[u8]) {
        let draft = &mut self.logs.entry(log).or_default().draft;
        draft.now.add(version, body);
        draft.settled_at = draft.settled_at.max(version);
    }

    /// At the start: that was all of it.
    pub(super) fn begin(&mut self, cursors: &Heads) {
        for (log, cursor) in cursors.iter() {
            let mut passing = self.get(log).draft();
            passing.passed(cursor);
            self.take(log, passing);
        }
    }

    /// What was drafted is committed.
    pub(super) fn take(&mut self, log: Log, passing: Passing) {
        let trail = self.logs.entry(log).or_default();
        if passing.draft.anew {
            trail.past.clear();
        }
        trail.draft = Draft { anew: false, ..passing.draft };
        trail.past.extend(passing.passed);
        let too_many = trail.past.len().saturating_sub(REMEMBERED_MAX);
        trail.past.drain(..too_many);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_remembered_until_too_many_came_after_it() {
        let mut trails = Trails::default();
        trails.begin(&Heads::default());
        assert_eq!(trails.get(Log::Price).at(0), Some(RowsDigest::default()));
        let mut passing = trails.get(Log::Price).draft();
        for version in 1..=REMEMBERED_MAX as u64 + 1 {
            passing.now.add(version, b"row");
            passing.passed(version);
        }
        let now = passing.now;
        assert_eq!(trails.get(Log::Price).at(1), None, "a transaction that failed has changed nothing");
        trails.take(Log::Price, passing);
        let trail = trails.get(Log::Price);
        assert_eq!((trail.at(0), trail.at(1)), (None, None));
        assert_eq!(trail.at(2).map(|digest| digest.rows()), Some(2));
        assert_eq!((trail.now(), trail.at(REMEMBERED_MAX as u64 + 1)), (now, Some(now)));
    }

    #[test]
    fn rows_of_a_snapshot_that_moved_are_of_no_version_until_the_log_is_there() {
        let mut trails = Trails::default();
        trails.begin(&Heads::default());
        let mut passing = trails.get(Log::Stock).draft();
        passing.begin_anew();
        for version in [3, 9] {
            passing.now.add(version, b"row");
        }
        passing.settle(9, 5);
        trails.take(Log::Stock, passing);
        assert_eq!(trails.get(Log::Stock).at(5), None);
        assert_eq!(
            trails.get(Log::Stock).at(0),
            None,
            "what was before the snapshot is another state's past"
        );
        for (version, known) in [(8, false), (9, true), (10, true)] {
            let mut passing = trails.get(Log::Stock).draft();
            passing.passed(version);
            trails.take(Log::Stock, passing);
            assert_eq!(trails.get(Log::Stock).at(version).is_some(), known, "{version}");
        }
    }
}
