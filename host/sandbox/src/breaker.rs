//! Takes a plugin that keeps failing out of a chain for a while, so that it cannot use up the node's time.
//!
//! Pure: the time is the call's. One per step and hook.
//!
//! Calls overlap, so what one says when it ends may be about a breaker that has changed since it began. A breaker
//! therefore goes through **turns**: a new one begins when it opens, when a probe goes out, when the probe comes back
//! in vain, and when it closes. Each call bears the turn that it began in, and is heard only while that lasts. So a
//! burst of faults opens the breaker once, an old call's success does not close it, and only the latest probe decides.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// Faults in a row that open the breaker.
const FAULTS_MAX: u32 = 5;
/// First and longest time for which it stays open.
const OPEN_MS_MIN: u64 = 1_000;
const OPEN_MS_MAX: u64 = 60_000;

#[derive(Default)]
pub(crate) struct Breaker {
    /// A packed [`Turn`], changed under the lock only: the healthy path reads this and nothing else.
    turn: AtomicU64,
    open: Mutex<Open>,
}

/// The turn and its faults in a row; the breaker is open from [`FAULTS_MAX`] on.
#[derive(Clone, Copy)]
struct Turn {
    number: u32,
    faults: u32,
}

impl Turn {
    fn is_open(self) -> bool {
        self.faults >= FAULTS_MAX
    }

    fn next(self, faults: u32) -> Self {
        Self { number: self.number.wrapping_add(1), faults }
    }
}

/// Meaningful while the breaker is open.
#[derive(Default)]
struct Open {
    /// When the next probe may go out.
    retry_at_ms: u64,
    /// How long the breaker stays open this time.
    wait_ms: u64,
}

/// Leave to make one call, whose outcome is to be reported with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Permit {
    /// The breaker was closed. Says nothing if it has opened meanwhile.
    Normal { turn: u32 },
    /// The one call that an open breaker lets through: closes it, or makes it wait for twice as long.
    Probe { turn: u32 },
}

impl Permit {
    /// Whether the breaker is still as this call found it.
    fn is_of(self, now: Turn) -> bool {
        let (turn, found_open) = match self {
            Self::Normal { turn } => (turn, false),
            Self::Probe { turn } => (turn, true),
        };
        (turn, found_open) == (now.number, now.is_open())
    }
}

impl Breaker {
    /// Leave for a call now, if there is any. Of the calls that ask an open breaker after its time, one is let
    /// through: the probe. Should its outcome never be reported, the next one goes out after another period.
    pub(crate) fn permits(&self, now_ms: u64) -> Option<Permit> {
        let turn = self.turn();
        if !turn.is_open() {
            return Some(Permit::Normal { turn: turn.number });
        }
        let mut open = self.open.lock();
        let turn = self.turn();
        if !turn.is_open() {
            return Some(Permit::Normal { turn: turn.number });
        }
        // A clock that was set back must not keep a plugin out for ever.
        let due = now_ms >= open.retry_at_ms || open.retry_at_ms - now_ms > OPEN_MS_MAX;
        due.then(|| {
            open.retry_at_ms = now_ms.saturating_add(open.wait_ms);
            let turn = turn.next(turn.faults);
            self.begin(turn);
            Permit::Probe { turn: turn.number }
        })
    }

    pub(crate) fn on_success(&self, permit: Permit) {
        // Without a fault in this turn there is nothing to forget.
        if self.turn().faults == 0 {
            return;
        }
        let _open = self.open.lock();
        let turn = self.turn();
        if permit.is_of(turn) {
            self.begin(if turn.is_open() { turn.next(0) } else { Turn { faults: 0, ..turn } });
        }
    }

    /// True if this fault took the plugin out of the chain.
    pub(crate) fn on_fault(&self, permit: Permit, now_ms: u64) -> bool {
        let mut open = self.open.lock();
        let turn = self.turn();
        if !permit.is_of(turn) {
            return false;
        }
        let was_open = turn.is_open();
        let mut after = Turn { faults: turn.faults.saturating_add(1), ..turn };
        if after.is_open() {
            after = turn.next(FAULTS_MAX);
            open.wait_ms = if was_open { (open.wait_ms * 2).min(OPEN_MS_MAX) } else { OPEN_MS_MIN };
            open.retry_at_ms = now_ms.saturating_add(open.wait_ms);
        }
        self.begin(after);
        !was_open && after.is_open()
    }

    fn turn(&self) -> Turn {
        // Relaxed: number and faults are one value, and whoever decides something reads it under the lock.
        let packed = self.turn.load(Ordering::Relaxed);
        Turn { number: (packed >> 32) as u32, faults: (packed & u64::from(u32::MAX)) as u32 }
    }

    /// Only with the lock held.
    fn begin(&self, turn: Turn) {
        self.turn.store(u64::from(turn.number) << 32 | u64::from(turn.faults), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Breaker {
        fn normal(&self, now_ms: u64) -> Permit {
            let permit = self.permits(now_ms).expect("closed");
            assert!(matches!(permit, Permit::Normal { .. }), "{permit:?}");
            permit
        }

        fn probe(&self, now_ms: u64) -> Permit {
            let permit = self.permits(now_ms).expect("due");
            assert!(matches!(permit, Permit::Probe { .. }), "{permit:?}");
            permit
        }

        fn keeps_out(&self, now_ms: u64) -> bool {
            self.permits(now_ms).is_none()
        }
    }

    fn opened(at_ms: u64) -> Breaker {
        let breaker = Breaker::default();
        for n in 1..=FAULTS_MAX {
            assert_eq!(breaker.on_fault(breaker.normal(at_ms), at_ms), n == FAULTS_MAX);
        }
        breaker
    }

    #[test]
    fn five_faults_in_a_row_open_it_and_a_success_between_does_not_let_them_add_up() {
        let breaker = Breaker::default();
        for _ in 0..20 {
            for _ in 0..FAULTS_MAX - 1 {
                assert!(!breaker.on_fault(breaker.normal(0), 0));
            }
            breaker.on_success(breaker.normal(0));
        }
        assert!(opened(0).keeps_out(999));
    }

    #[test]
    fn one_probe_goes_out_and_its_success_closes() {
        let breaker = opened(10);
        assert!(breaker.keeps_out(1_009));
        let probe = breaker.probe(1_010);
        assert!(breaker.keeps_out(1_011), "only one");
        breaker.on_success(probe);
        breaker.normal(1_012);
        // And from the beginning: five faults, then one second.
        for _ in 0..FAULTS_MAX {
            breaker.on_fault(breaker.normal(2_000), 2_000);
        }
        assert!(breaker.keeps_out(2_999));
        breaker.probe(3_000);
    }

    #[test]
    fn failed_probes_double_the_wait_up_to_a_minute() {
        let breaker = opened(0);
        let mut now = 0;
        for wait in [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000] {
            assert!(breaker.keeps_out(now + wait - 1), "{wait}");
            now += wait;
            assert!(!breaker.on_fault(breaker.probe(now), now), "{wait}: it was out before");
        }
    }

    #[test]
    fn neither_a_lost_probe_nor_a_clock_set_back_keeps_it_open() {
        let breaker = opened(1_000_000_000);
        breaker.probe(1_000_001_000);
        breaker.probe(1_000_002_000);
        breaker.probe(5);
    }

    #[test]
    fn a_burst_of_faults_opens_it_once_and_for_the_shortest_time() {
        let breaker = Breaker::default();
        let burst: Vec<_> = (0..64).map(|_| breaker.normal(0)).collect();
        let opened: Vec<_> = burst.into_iter().map(|permit| breaker.on_fault(permit, 7)).collect();
        assert_eq!(opened.iter().filter(|opened| **opened).count(), 1);
        assert!(breaker.keeps_out(1_006));
        breaker.probe(1_007);
    }

    #[test]
    fn a_call_that_began_before_it_opened_changes_nothing_afterwards() {
        let breaker = Breaker::default();
        let old: [Permit; 8] = std::array::from_fn(|_| breaker.normal(0));
        for _ in 0..FAULTS_MAX {
            breaker.on_fault(breaker.normal(0), 0);
        }
        breaker.on_success(old[0]);
        assert!(breaker.keeps_out(999), "an old success closed it");
        breaker.on_fault(old[1], 999);
        // Nor while the probe is out.
        let probe = breaker.probe(1_000);
        breaker.on_success(old[2]);
        breaker.on_fault(old[3], 1_001);
        assert!(breaker.keeps_out(1_002));
        breaker.on_fault(probe, 1_003);
        assert!(breaker.keeps_out(3_002), "the probe failed: two seconds");
        breaker.on_success(breaker.probe(3_003));
        // Nor after it has closed again.
        for permit in &old[4..] {
            breaker.on_fault(*permit, 3_004);
        }
        assert!(!breaker.on_fault(breaker.normal(3_005), 3_005), "old faults were counted");
        breaker.normal(3_006);
    }

    #[test]
    fn only_the_latest_probe_decides() {
        let breaker = opened(0);
        let lost = breaker.probe(1_000);
        let latest = breaker.probe(2_000);
        breaker.on_success(lost);
        breaker.on_fault(lost, 2_001);
        assert!(breaker.keeps_out(2_002));
        breaker.on_success(latest);
        breaker.on_fault(latest, 2_003);
        breaker.normal(2_004);
    }
}
