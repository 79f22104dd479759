//! How long to wait after a broker that failed. Pure: chance is handed in.

use std::time::Duration;

/// After the first failure: a leader that is being elected is there in a second or two.
const FIRST: Duration = Duration::from_millis(250);
/// A broker that is down for an hour is asked two times a minute, by each process.
const LONGEST: Duration = Duration::from_secs(30);

/// Counts failures in a row.
#[derive(Debug, Default)]
pub(super) struct Pace {
    failures: u32,
}

impl Pace {
    /// True: the first success after a failure.
    pub(super) fn succeeded(&mut self) -> bool {
        std::mem::take(&mut self.failures) > 0
    }

    /// The pause before the next try: twice as long each time, and of that some part between half and all, by chance (0 to
    /// 1), so that processes that lost a broker together do not come back together.
    pub(super) fn failed(&mut self, chance: f64) -> Duration {
        let longest = FIRST.saturating_mul(2_u32.saturating_pow(self.failures)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        longest.mul_f64(0.5 + chance.clamp(0.0, 1.0) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_half_a_minute_and_begin_anew_after_a_success() {
        let mut pace = Pace::default();
        assert!(!pace.succeeded());
        let pauses: Vec<_> = (0..9).map(|_| pace.failed(1.0).as_millis()).collect();
        assert_eq!(pauses, [250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]);
        assert_eq!(pace.failed(0.0), LONGEST / 2);
        assert!(pace.succeeded() && !pace.succeeded());
        assert_eq!(pace.failed(0.0), FIRST / 2);
    }
}
