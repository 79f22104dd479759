//! When nodes have obeyed a purge: what `souk purge --wait` shows.
//!
//! In memory only, and by this region's own clock: from the moment before a purge was written to the arrival of the
//! node's acknowledgement. *Whether* a node has obeyed, its cursor says, which outlives everything here.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::watch;

/// Acknowledgements remembered of each node, and purges whose moment is. At 24 bytes each 1.5 MB for 1,000 nodes.
const ACKS_PER_NODE_MAX: usize = 64;
const PURGES_MAX: usize = 1_000;

#[derive(Default)]
struct Known {
    /// By node: the log's version and when it was acknowledged, in order.
    acks: BTreeMap<u32, VecDeque<(u64, Instant)>>,
    /// The log's version and when the purge began, in order.
    purges: VecDeque<(u64, Instant)>,
}

pub(crate) struct Obeyed {
    known: Mutex<Known>,
    changed: watch::Sender<()>,
}

impl Obeyed {
    pub(crate) fn new() -> Self {
        Self { known: Mutex::default(), changed: watch::Sender::new(()) }
    }

    /// A purge was written; `began` is from before that, for a node's word may overtake this one.
    pub(crate) fn published(&self, version: u64, began: Instant) {
        let mut known = self.known.lock();
        known.purges.push_back((version, began));
        if known.purges.len() > PURGES_MAX {
            known.purges.pop_front();
        }
    }

    /// A node has applied the purge log up to `version`.
    pub(crate) fn acknowledged(&self, node: u32, version: u64) {
        let now = Instant::now();
        let mut known = self.known.lock();
        let acks = known.acks.entry(node).or_default();
        // The region was restored, or the node's disk: what was said before is of another history.
        while acks.back().is_some_and(|(last, _)| *last >= version) {
            acks.pop_back();
        }
        acks.push_back((version, now));
        if acks.len() > ACKS_PER_NODE_MAX {
            acks.pop_front();
        }
        drop(known);
        self.changed.send_replace(());
    }

    /// Has whoever waits look again.
    pub(crate) fn stir(&self) {
        self.changed.send_replace(());
    }

    /// Whether the node has said so: a moment before its cursor shows it.
    pub(crate) fn has(&self, node: u32, version: u64) -> bool {
        let known = self.known.lock();
        known.acks.get(&node).and_then(VecDeque::back).is_some_and(|(last, _)| *last >= version)
    }

    /// How long a node took to obey a purge, where both moments are remembered.
    pub(crate) fn after(&self, node: u32, version: u64) -> Option<Duration> {
        let known = self.known.lock();
        let (_, began) = known.purges.iter().rev().find(|(of, _)| *of == version)?;
        let acks = known.acks.get(&node)?;
        // One before it must be there, or none was ever dropped: else an earlier word may be what counts.
        let at = acks.iter().position(|(of, _)| *of >= version)?;
        if at == 0 && acks.len() >= ACKS_PER_NODE_MAX {
            return None;
        }
        acks[at].1.checked_duration_since(*began)
    }

    /// Moves when a node has spoken.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_node_counts_from_the_purge_to_its_first_word() {
        let obeyed = Obeyed::new();
        let began = Instant::now() - Duration::from_secs(1);
        // The node's word overtakes the handler's.
        obeyed.acknowledged(1, 5);
        assert_eq!(obeyed.after(1, 5), None);
        obeyed.published(5, began);
        let after = obeyed.after(1, 5).expect("both are known");
        assert!(after >= Duration::from_secs(1));
        obeyed.acknowledged(1, 9);
        assert_eq!(obeyed.after(1, 5), Some(after), "the first word counts");
        assert_eq!(obeyed.after(2, 5), None, "another node has said nothing");
        // One word for several purges.
        obeyed.published(8, Instant::now() - Duration::from_secs(5));
        assert!(obeyed.after(1, 8).expect("both are known") >= Duration::from_secs(4));
        for version in 10..200 {
            obeyed.acknowledged(1, version);
        }
        assert_eq!(obeyed.after(1, 5), None, "its word is not remembered any more");
        obeyed.acknowledged(1, 3);
        assert_eq!(obeyed.known.lock().acks[&1].len(), 1, "another history");
    }
}
