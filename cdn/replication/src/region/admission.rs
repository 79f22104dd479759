//! When a node that comes may be greeted. A fleet that has lost its region comes back all at once; greeted all at once, it would
//! make the region's store wait for seven reads and a commit of every node before it can commit a single operation.

use crate::limits::{ADMISSION_WAIT_MS_MAX, GREETINGS_PER_SECOND_MAX};

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
}

impl Admission {
    /// Greets so many a second, at least one and at most [`GREETINGS_PER_SECOND_MAX`].
    #[must_use]
    pub fn new(per_second: u32) -> Self {
        let gap_us = 1_000_000 / u64::from(per_second.clamp(1, GREETINGS_PER_SECOND_MAX));
        Self { gap_us, next_us: 0, back_us: 0 }
    }

    /// A node comes at `now_ms`; `random` is any number, fresh for each.
    ///
    /// Who waits has a place in the order. Who has to come back has none, since it may never; it gets a time after those who
    /// wait, each another one, and a little by chance, so that nodes which take the pause more or less exactly do not meet again.
    pub fn admit(&mut self, now_ms: u64, random: u64) -> Admit {
        let now_us = now_ms.saturating_mul(1_000);
        let place_us = self.next_us.max(now_us);
        let ms = (place_us - now_us).div_ceil(1_000);
        if ms <= ADMISSION_WAIT_MS_MAX {
            self.next_us = place_us.saturating_add(self.gap_us);
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
            assert_eq!(admission.admit(now_ms, 7), Admit::After { ms: 0 });
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
            match admission.admit(now_ms, node.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) {
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
