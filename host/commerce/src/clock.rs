//! Hybrid logical time: stamps that follow the wall clock where they can and never go back.
//!
//! A stamp only breaks ties between concurrent settings of one thing; the order of acceptance is the sequence number
//! of the outbox. The wall clock is an argument, so this file has none.

use std::fmt;

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// How far ahead of this machine's clock another's stamp may be. NTP keeps machines within tens of milliseconds;
/// beyond half a second a clock is wrong, and following it would let it win every tie for as long as it is wrong.
pub const CLOCK_AHEAD_MS_MAX: u64 = 500;

const COUNTER_BITS: u32 = 16;
const MS_MAX: u64 = (1 << (64 - COUNTER_BITS)) - 1;

/// 48 bits of milliseconds since 1970 and 16 bits of counter, so that comparing numbers compares stamps.
#[derive(
    Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Encode, Decode,
)]
#[serde(transparent)]
#[cbor(transparent)]
pub struct Hlc(#[n(0)] pub u64);

impl Hlc {
    /// The first stamp of a millisecond. A clock beyond the year 10889 stays there.
    pub fn at(ms: u64) -> Self {
        Self(ms.min(MS_MAX) << COUNTER_BITS)
    }

    pub fn ms(self) -> u64 {
        self.0 >> COUNTER_BITS
    }
}

impl fmt::Debug for Hlc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms+{}", self.ms(), self.0 & ((1 << COUNTER_BITS) - 1))
    }
}

/// Another machine's clock is too far ahead of ours (or ours is behind): its stamp was not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a stamp is {ahead_ms} ms ahead of this clock, more than {CLOCK_AHEAD_MS_MAX} ms")]
pub struct ClockAhead {
    pub ahead_ms: u64,
}

/// Makes stamps. One per process; persist [`HlcClock::last`] only if stamps must grow over restarts too.
#[derive(Debug, Clone, Default)]
pub struct HlcClock {
    last: Hlc,
}

impl HlcClock {
    /// Goes on after a stamp that this machine has given before.
    pub fn after(last: Hlc) -> Self {
        Self { last }
    }

    pub fn last(&self) -> Hlc {
        self.last
    }

    /// A stamp greater than every one given or observed before. While the wall clock stands still or has been set
    /// back, the counter moves, and after 65,536 stamps carries into the next millisecond.
    pub fn tick(&mut self, now_ms: u64) -> Hlc {
        self.last = Hlc::at(now_ms).max(Hlc(self.last.0.saturating_add(1)));
        self.last
    }

    /// Follows another machine's stamp, so that what is stamped here from now on is newer than it.
    pub fn observe(&mut self, remote: Hlc, now_ms: u64) -> Result<(), ClockAhead> {
        let ahead_ms = remote.ms().saturating_sub(now_ms);
        if ahead_ms > CLOCK_AHEAD_MS_MAX {
            return Err(ClockAhead { ahead_ms });
        }
        self.last = self.last.max(remote);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_clock_that_is_far_ahead_is_refused_and_forgotten() {
        let mut clock = HlcClock::default();
        let before = clock.tick(1_000);
        assert_eq!(clock.observe(Hlc::at(1_501), 1_000), Err(ClockAhead { ahead_ms: 501 }));
        assert_eq!(clock.last(), before);
        assert_eq!(clock.observe(Hlc::at(1_500), 1_000), Ok(()));
        assert!(clock.tick(1_000) > Hlc::at(1_500));
    }

    proptest! {
        #[test]
        fn stamps_only_grow(
            steps in prop::collection::vec((any::<bool>(), any::<u64>(), any::<u64>()), 1..200)
        ) {
            let mut clock = HlcClock::default();
            let mut last = Hlc::default();
            for (observes, now_ms, remote) in steps {
                let now_ms = now_ms >> 17;
                if observes {
                    let followed = clock.observe(Hlc(remote), now_ms);
                    prop_assert_eq!(followed.is_ok(), Hlc(remote).ms() <= now_ms + CLOCK_AHEAD_MS_MAX);
                    if followed.is_ok() {
                        last = last.max(Hlc(remote));
                    }
                } else {
                    let stamp = clock.tick(now_ms);
                    prop_assert!(stamp > last, "{:?} after {:?}", stamp, last);
                    prop_assert!(stamp.ms() >= now_ms);
                    last = stamp;
                }
            }
        }
    }
}
