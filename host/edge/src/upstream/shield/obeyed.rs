//! How far the region's purges have come at this node, so that no peer's older copy undoes one.
//!
//! Two marks. *Heard* goes up before a purge takes anything back here, *obeyed* after it has. A node asks with what it has
//! heard, and a peer answers only if it has obeyed as much before it looks: then its answer holds against every purge that
//! the asking node has counted when it began. No clock is compared, and a mark of another history of the log is none.
//! Pure but for a lock.

use std::fmt;
use std::str::FromStr;

use parking_lot::Mutex;

/// A place in the region's log of purges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PurgeMark {
    /// The history that `version` counts: another one when the region was restored.
    pub(crate) history: Option<u32>,
    pub(crate) version: u64,
}

impl PurgeMark {
    /// Whether whoever is here has everything up to `other`.
    fn covers(self, other: Self) -> bool {
        other.version == 0 || (self.history == other.history && self.version >= other.version)
    }

    /// Whether it moves to `other`. A history that begins anew may begin lower: its log comes whole, and takes everything back.
    fn is_before(self, other: Self) -> bool {
        self.history != other.history || self.version < other.version
    }
}

/// `7.12`, or `-.0` where nothing was heard yet.
impl fmt::Display for PurgeMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.history {
            Some(history) => write!(f, "{history}.{}", self.version),
            None => write!(f, "-.{}", self.version),
        }
    }
}

impl FromStr for PurgeMark {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (history, version) = text.split_once('.').ok_or(())?;
        let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if !number(version) || (history != "-" && !number(history)) {
            return Err(());
        }
        let history = if history == "-" { None } else { Some(history.parse().map_err(|_| ())?) };
        Ok(Self { history, version: version.parse().map_err(|_| ())? })
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Obeyed(Mutex<Marks>);

#[derive(Clone, Copy, Debug)]
struct Marks {
    heard: PurgeMark,
    obeyed: PurgeMark,
}

impl Obeyed {
    /// Of a node whose cursor is here: it moves when a purge has been obeyed.
    pub(crate) fn at(cursor: PurgeMark) -> Self {
        Self(Mutex::new(Marks { heard: cursor, obeyed: cursor }))
    }

    /// Purges up to here are about to be obeyed.
    pub(crate) fn hear(&self, to: PurgeMark) {
        let mut marks = self.0.lock();
        if marks.heard.is_before(to) {
            marks.heard = to;
        }
    }

    /// Purges after `from` and up to `to` have been obeyed; none for `from`: everything was taken back.
    pub(crate) fn obey(&self, from: Option<u64>, to: PurgeMark) {
        let mut marks = self.0.lock();
        let obeyed = marks.obeyed;
        let follows = match from {
            None => true,
            // What is between would be missing.
            Some(from) => from <= obeyed.version && (obeyed.version == 0 || obeyed.history == to.history),
        };
        if follows && obeyed.is_before(to) {
            marks.obeyed = to;
        }
    }

    pub(crate) fn heard(&self) -> PurgeMark {
        self.0.lock().heard
    }

    /// Whether a peer who has heard so much may be answered out of what is here from now on.
    pub(crate) fn has_obeyed(&self, heard: PurgeMark) -> bool {
        self.0.lock().obeyed.covers(heard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(history: u32, version: u64) -> PurgeMark {
        PurgeMark { history: Some(history), version }
    }

    #[test]
    fn a_node_answers_for_what_it_has_obeyed_and_no_more() {
        let node = Obeyed::at(PurgeMark::default());
        assert!(node.has_obeyed(PurgeMark::default()), "nothing was purged yet");
        assert!(!node.has_obeyed(mark(7, 1)));
        node.hear(mark(7, 5));
        assert_eq!(node.heard(), mark(7, 5));
        assert!(!node.has_obeyed(mark(7, 5)), "it is still at it");
        node.obey(Some(0), mark(7, 5));
        assert!(node.has_obeyed(mark(7, 5)) && node.has_obeyed(mark(7, 1)) && !node.has_obeyed(mark(7, 6)));
        // The same again, and a part of it: a tail that could not be applied comes again.
        node.obey(Some(0), mark(7, 3));
        assert!(node.has_obeyed(mark(7, 5)));
        // What does not follow leaves a gap, which nobody has obeyed.
        node.hear(mark(7, 9));
        node.obey(Some(8), mark(7, 9));
        assert!(!node.has_obeyed(mark(7, 9)) && node.has_obeyed(mark(7, 5)));
        node.obey(Some(4), mark(7, 9));
        assert!(node.has_obeyed(mark(7, 9)));
    }

    #[test]
    fn versions_of_two_histories_are_not_compared() {
        let node = Obeyed::at(mark(7, 100));
        assert!(!node.has_obeyed(mark(9, 3)));
        node.hear(mark(9, 3));
        assert_eq!(node.heard(), mark(9, 3), "lower, and newer");
        node.obey(Some(2), mark(9, 3));
        assert!(!node.has_obeyed(mark(9, 3)), "what came before in that history is not here");
        node.obey(None, mark(9, 3));
        assert!(node.has_obeyed(mark(9, 3)) && !node.has_obeyed(mark(7, 100)));
        // One that begins with nothing goes on from there.
        node.obey(None, mark(11, 0));
        node.obey(Some(0), mark(11, 2));
        assert!(node.has_obeyed(mark(11, 2)));
        let old = Obeyed::at(PurgeMark { history: None, version: 4 });
        assert!(!old.has_obeyed(mark(7, 4)), "a cursor whose history nobody knows answers for nothing");
        old.obey(Some(4), mark(7, 5));
        assert!(!old.has_obeyed(mark(7, 5)));
    }
}
