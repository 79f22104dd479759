//! Takes a plugin that keeps failing out of a chain for a while, so that it cannot use up the node's time.
//!
//! Pure: the time is the call's. One per step and hook.

use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;

/// Faults in a row that open the breaker.
const FAULTS_MAX: u32 = 5;
/// First and longest time for which it stays open.
const OPEN_MS_MIN: u64 = 1_000;
const OPEN_MS_MAX: u64 = 60_000;

#[derive(Default)]
pub(crate) struct Breaker {
    /// Faults in a row, kept beside the state: the healthy path reads only this.
    faults: AtomicU32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// When the next probe may go out. Meaningful while `open_ms` is not 0.
    retry_at_ms: u64,
    /// How long the breaker stays open this time; 0 when closed.
    open_ms: u64,
}

impl Breaker {
    /// Whether a call may go out now. Of the calls that ask an open breaker after its time, one is let through:
    /// the probe. Its outcome must be reported; should it be lost, the next probe goes out after another period.
    pub(crate) fn permits(&self, now_ms: u64) -> bool {
        if self.faults.load(Ordering::Relaxed) < FAULTS_MAX {
            return true;
        }
        let mut state = self.state.lock();
        // A clock that was set back must not keep a plugin out for ever.
        let due = now_ms >= state.retry_at_ms || state.retry_at_ms - now_ms > OPEN_MS_MAX;
        if due {
            state.retry_at_ms = now_ms.saturating_add(state.open_ms);
        }
        due
    }

    pub(crate) fn on_success(&self) {
        if self.faults.load(Ordering::Relaxed) != 0 {
            let mut state = self.state.lock();
            *state = State::default();
            self.faults.store(0, Ordering::Relaxed);
        }
    }

    pub(crate) fn on_fault(&self, now_ms: u64) {
        let mut state = self.state.lock();
        let faults = self.faults.load(Ordering::Relaxed).saturating_add(1);
        if faults >= FAULTS_MAX {
            state.open_ms = (state.open_ms * 2).clamp(OPEN_MS_MIN, OPEN_MS_MAX);
            state.retry_at_ms = now_ms.saturating_add(state.open_ms);
        }
        self.faults.store(faults, Ordering::Relaxed);
    }

    pub(crate) fn is_open(&self) -> bool {
        self.faults.load(Ordering::Relaxed) >= FAULTS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(at_ms: u64) -> Breaker {
        let breaker = Breaker::default();
        for _ in 0..FAULTS_MAX {
            assert!(breaker.permits(at_ms));
            breaker.on_fault(at_ms);
        }
        breaker
    }

    #[test]
    fn five_faults_in_a_row_open_it_and_a_success_between_does_not_let_them_add_up() {
        let breaker = Breaker::default();
        for _ in 0..20 {
            for _ in 0..FAULTS_MAX - 1 {
                breaker.on_fault(0);
            }
            assert!(breaker.permits(0));
            breaker.on_success();
        }
        assert!(!opened(0).permits(999));
    }

    #[test]
    fn one_probe_goes_out_and_its_success_closes() {
        let breaker = opened(10);
        assert!(!breaker.permits(1_009));
        assert!(breaker.permits(1_010), "the probe");
        assert!(!breaker.permits(1_011), "only one");
        breaker.on_success();
        assert!(breaker.permits(1_012) && breaker.permits(1_012));
    }

    #[test]
    fn failed_probes_double_the_wait_up_to_a_minute() {
        let breaker = opened(0);
        let mut now = 0;
        for wait in [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000] {
            assert!(!breaker.permits(now + wait - 1), "{wait}");
            now += wait;
            assert!(breaker.permits(now), "{wait}");
            breaker.on_fault(now);
        }
    }

    #[test]
    fn neither_a_lost_probe_nor_a_clock_set_back_keeps_it_open() {
        let breaker = opened(1_000_000_000);
        assert!(breaker.permits(1_000_001_000));
        assert!(breaker.permits(1_000_002_000), "the first probe never reported");
        assert!(breaker.permits(5), "the clock was set back");
    }
}
