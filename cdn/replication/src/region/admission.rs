//! When a node that comes may be greeted. A fleet that has lost its region comes back all at once; greeted all at once, it would
//! make the region's store wait for seven reads and a commit of every node before it can commit a single operation.

use std::collections::BTreeMap;

use crate::{
    Node,
    limits::{ADMISSION_WAIT_MS_MAX, GREETINGS_PER_SECOND_MAX, NODE_GREETING_EVERY_MS, NODE_GREETINGS_BURST},
};

/// Nodes remembered before those are forgotten that have long been quiet. What is left is bounded by the greetings of the
/// last [`NODE_GREETINGS_BURST`] times [`NODE_GREETING_EVERY_MS`].
const REMEMBERED: usize = 1_024;

/// What a node that comes is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admit {
    /// To be greeted after this pause; 0 is at once.
    After {
        /// How long.
        ms: u64,
    },
    /// Too many wait already: to come back after this pause.
    ComeBack {
        /// How long.
        ms: u64,
    },
}

/// The order in which nodes are greeted, over all connections of a region.
#[derive(Debug)]
pub struct Admission {
    /// Between two greetings.
    gap_us: u64,
    /// When the next may be greeted.
    next_us: u64,
    /// When the next of those who were told to come back is expected.
    back_us: u64,
    /// Until when each node has used its own share up. One that falls and comes back again and again, or runs twice under one
    /// certificate, must not take the places of a whole fleet.
    shares: BTreeMap<Node, u64>,
}

impl Admission {
    /// Greets so many a second, at least one and at most [`GREETINGS_PER_SECOND_MAX`].
    #[must_use]
    pub fn new(per_second: u32) -> Self {
        let gap_us = 1_000_000 / u64::from(per_second.clamp(1, GREETINGS_PER_SECOND_MAX));
        Self { gap_us, next_us: 0, back_us: 0, shares: BTreeMap::new() }
    }

    /// This node comes at `now_ms`; `random` is any number, fresh for each.
    ///
    /// Who waits has a place in the order. Who has to come back has none, since it may never; it gets a time after those who
    /// wait, each another one, and a little by chance, so that nodes which take the pause more or less exactly do not meet again.
    ///
    /// A node that has used its own share up is told when it has one again, and costs the others nothing.
    pub fn admit(&mut self, node: Node, now_ms: u64, random: u64) -> Admit {
        const AHEAD_MS_MAX: u64 = NODE_GREETINGS_BURST * NODE_GREETING_EVERY_MS;
        let used_until_ms = self.shares.get(&node).map_or(now_ms, |until| now_ms.max(*until));
        let share_ms = used_until_ms + NODE_GREETING_EVERY_MS;
        if share_ms > now_ms + AHEAD_MS_MAX {
            return Admit::ComeBack { ms: share_ms - now_ms - AHEAD_MS_MAX };
        }
        let now_us = now_ms.saturating_mul(1_000);
        let place_us = self.next_us.max(now_us);
        let ms = (place_us - now_us).div_ceil(1_000);
        if ms <= ADMISSION_WAIT_MS_MAX {
            self.next_us = place_us.saturating_add(self.gap_us);
            if self.shares.len() >= REMEMBERED {
                self.shares.retain(|_, until| *until > now_ms);
            }
            self.shares.insert(node, share_ms);
            return Admit::After { ms };
        }
        self.back_us = self.back_us.max(place_us).saturating_add(self.gap_us);
        let chance_ms = random % (ADMISSION_WAIT_MS_MAX / 4);
        Admit::ComeBack { ms: (self.back_us - now_us).div_ceil(1_000).saturating_add(chance_ms) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_comes_alone_does_not_wait() {
        let mut admission = Admission::new(10);
        for now_ms in [0, 100, 5_000, 5_100] {
            assert_eq!(admission.admit(1, now_ms, 7), Admit::After { ms: 0 });
        }
    }

    #[test]
    fn a_node_that_comes_again_and_again_takes_no_place_of_the_others() {
        let mut admission = Admission::new(100);
        let mut let_in = 0;
        for now_ms in 0..10_000 {
            // A thousand times a second, ten times what is greeted of all.
            match admission.admit(1, now_ms, 7) {
                Admit::After { .. } => let_in += 1,
                Admit::ComeBack { ms } => assert!((1..=NODE_GREETING_EVERY_MS).contains(&ms), "{ms} ms"),
            }
            if now_ms % 1_000 == 500 {
                let other = 2 + u32::try_from(now_ms).unwrap();
                assert_eq!(admission.admit(other, now_ms, 7), Admit::After { ms: 0 }, "at {now_ms} ms");
            }
        }
        assert_eq!(let_in, 10 + NODE_GREETINGS_BURST - 1);
        for node in 0..3 * REMEMBERED {
            admission.admit(u32::try_from(node).unwrap(), 1_000_000 + 10 * node as u64, 7);
            assert!(admission.shares.len() <= REMEMBERED);
        }
    }

    #[test]
    fn a_fleet_that_comes_back_at_once_is_greeted_evenly_and_soon() {
        const FLEET: u64 = 2_000;
        let mut admission = Admission::new(200);
        // (when it comes, which node), the earliest first.
        let mut coming = std::collections::BTreeSet::from_iter((0..FLEET).map(|node| (node % 50, node)));
        let (mut greeted, mut tries) = (Vec::new(), 0);
        while let Some((now_ms, node)) = coming.pop_first() {
            tries += 1;
            let number = u32::try_from(node).unwrap();
            match admission.admit(number, now_ms, node.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) {
                Admit::After { ms } => greeted.push(now_ms + ms),
                Admit::ComeBack { ms } => {
                    coming.insert((now_ms + ms, node));
                }
            }
        }
        greeted.sort_unstable();
        assert_eq!(greeted.len() as u64, FLEET);
        for window in greeted.windows(201) {
            assert!(window[200] - window[0] >= 999, "more than 200 in the second from {} ms", window[0]);
        }
        let last = greeted[greeted.len() - 1];
        assert!(last < 15_000, "ten seconds' work took {last} ms");
        assert!(tries < 3 * FLEET, "{tries} tries: hardly anybody has to come a third time");
    }
}
