//! How long a request waits for the disk, and when the disk is not asked at all.
//!
//! A disk that fails says so; one that hangs says nothing, and every question to it is a request that is held. So each wait
//! has an end, and after one that nothing else came back in either, the tier is *set aside*: nobody asks it, until one
//! request in a while finds that it answers again.
//!
//! Pure: the moments come from whoever asks, the waits themselves are the caller's.

use std::time::Duration;

/// For a read, from its place in the queue to its entry in memory. A full queue of 256 reads at 10 ms each takes four
/// threads 0.64 s, the largest object (32 MiB) a disk of 100 MB/s 0.34 s; an upstream that is asked instead has answered
/// by then.
const READ_MAX: Duration = Duration::from_secs(1);
/// For a removal to be on the disk. It waits for what was written before it, 4 MiB at most, and for one sync.
const PERSIST_MAX: Duration = Duration::from_secs(2);
/// For what the folder holds: the lists of all of its files, or every record of the one that a kill has left. Who starts
/// goes on from memory then, and has the rest when it is read.
const OPEN_MAX: Duration = Duration::from_secs(30);
/// For the threads to end. 16 MiB wait to be written at most, or two objects; a second for them would be a slow disk.
const CLOSE_MAX: Duration = Duration::from_secs(10);

/// How long the tier is set aside after the first read that did not come back. It doubles with each try that does not
/// either, so that a dead disk costs a request a second in [`ASIDE_MS_MAX`].
const ASIDE_MS_MIN: u64 = 5_000;
const ASIDE_MS_MAX: u64 = 60_000;

/// The longest waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    pub(super) read: Duration,
    pub(super) persist: Duration,
    pub(super) open: Duration,
    pub(super) close: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { read: READ_MAX, persist: PERSIST_MAX, open: OPEN_MAX, close: CLOSE_MAX }
    }
}

/// Whether reads come back.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Reads that came back in time.
    in_time: u64,
    aside: Option<Aside>,
}

/// That they do not: since when it is so, and when one may try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Aside {
    since_ms: u64,
    until_ms: u64,
    tries: u32,
}

impl Watch {
    pub(super) fn is_aside(&self) -> bool {
        self.aside.is_some()
    }

    /// What [`late`](Self::late) is told of when a read began.
    pub(super) fn in_time(&self) -> u64 {
        self.in_time
    }

    /// Whether a request of this moment may wait for a read. While the tier is set aside one may in a while, to find out.
    pub(super) fn may_ask(&mut self, now_ms: u64) -> bool {
        let Some(aside) = &mut self.aside else { return true };
        // By the wall clock: one that was set back makes no longer wait.
        let is_due = now_ms >= aside.until_ms || now_ms < aside.since_ms;
        if is_due {
            // Whether or not it ever tells what came of it, nobody else tries for as long as this.
            *aside = Aside::from(now_ms, aside.tries.saturating_add(1));
        }
        is_due
    }

    /// A read did not come back in time, and `in_time` others had when it began. True if the tier is set aside for it now.
    pub(super) fn late(&mut self, now_ms: u64, in_time: u64) -> bool {
        // Others came back while it did not: this one is slow, or its place on the disk is bad, and the disk is not.
        if self.in_time != in_time || self.aside.is_some() {
            return false;
        }
        self.aside = Some(Aside::from(now_ms, 0));
        true
    }

    /// A read came back in time. True if the tier was set aside until now.
    pub(super) fn came_back(&mut self) -> bool {
        self.in_time += 1;
        self.aside.take().is_some()
    }
}

impl Aside {
    fn from(now_ms: u64, tries: u32) -> Self {
        let wait_ms = ASIDE_MS_MIN.saturating_mul(1 << tries.min(16)).min(ASIDE_MS_MAX);
        Self { since_ms: now_ms, until_ms: now_ms.saturating_add(wait_ms), tries }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000_000;

    #[test]
    fn one_that_is_late_alone_sets_nothing_aside() {
        let mut watch = Watch::default();
        let began = watch.in_time();
        assert!(!watch.came_back(), "another's");
        assert!(!watch.late(NOW, began));
        assert!(watch.may_ask(NOW) && !watch.is_aside());
    }

    #[test]
    fn a_disk_that_hangs_is_tried_seldom_and_more_and_more_so() {
        let mut watch = Watch::default();
        assert!(watch.late(NOW, watch.in_time()));
        assert!(!watch.late(NOW, watch.in_time()), "it is aside already");
        let mut tried = Vec::new();
        for second in 0..300 {
            if watch.may_ask(NOW + second * 1_000) {
                assert!(!watch.may_ask(NOW + second * 1_000), "one at a time");
                tried.push(second);
            }
        }
        assert_eq!(tried, [5, 15, 35, 75, 135, 195, 255]);
        assert!(watch.came_back(), "somebody is to hear of it");
        assert!(watch.may_ask(NOW) && watch.may_ask(NOW));
        assert!(watch.late(NOW, watch.in_time()));
        assert!(watch.may_ask(NOW - 1), "a clock that was set back");
    }
}
