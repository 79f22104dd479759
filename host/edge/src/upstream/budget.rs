//! How many requests may be sent a second time.
//!
//! Retries help while failures are few, and multiply the load when everything fails, which is when a server can bear
//! it least. So each request pays a fifth of a token in, each further try takes a whole one, and a small steady income
//! lets a node with few requests retry too. Retries and hedges draw from the same bucket. Pure: time is an argument.

use std::time::Duration;

/// Thousandths of a token for each request: of five requests, one may be repeated.
const REQUEST_MILLI: u64 = 200;
/// Thousandths of a token for each second.
const SECOND_MILLI: u64 = 3_000;
/// The most that is saved up: what 500 requests pay in. A restart of a server breaks all that it was answering at once.
const SAVED_MILLI_MAX: u64 = 100_000;
/// What a try costs.
const TRY_MILLI: u64 = 1_000;

#[derive(Clone, Debug)]
pub(super) struct Budget {
    milli: u64,
    at: Duration,
}

impl Budget {
    /// Ten seconds' income: the first failures after a start are retried too.
    pub(super) fn new(now: Duration) -> Self {
        Self { milli: 10 * SECOND_MILLI, at: now }
    }

    /// A request came in.
    pub(super) fn deposit(&mut self, now: Duration) {
        self.earn(now);
        self.milli = (self.milli + REQUEST_MILLI).min(SAVED_MILLI_MAX);
    }

    /// Whether there is a token for one more try; it is taken.
    pub(super) fn withdraw(&mut self, now: Duration) -> bool {
        self.earn(now);
        let enough = self.milli >= TRY_MILLI;
        if enough {
            self.milli -= TRY_MILLI;
        }
        enough
    }

    /// Whole tokens.
    pub(super) fn tokens(&self) -> u64 {
        self.milli / TRY_MILLI
    }

    fn earn(&mut self, now: Duration) {
        let elapsed_ms = u64::try_from(now.saturating_sub(self.at).as_millis()).unwrap_or(u64::MAX);
        let income = elapsed_ms.saturating_mul(SECOND_MILLI) / 1_000;
        self.milli = self.milli.saturating_add(income).min(SAVED_MILLI_MAX);
        // Whole milliseconds are booked; the rest waits.
        self.at += Duration::from_millis(elapsed_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_fifth_of_the_requests_and_three_a_second() {
        let mut budget = Budget::new(s(0));
        while budget.withdraw(s(0)) {}
        for _ in 0..5 {
            assert!(!budget.withdraw(s(0)));
            budget.deposit(s(0));
        }
        assert!(budget.withdraw(s(0)) && !budget.withdraw(s(0)), "five requests pay for one retry");
        let in_a_second = std::iter::repeat_with(|| budget.withdraw(s(1))).take_while(|given| *given).count();
        assert_eq!(in_a_second, 3);
    }

    #[test]
    fn when_everything_fails_the_load_grows_by_a_fifth() {
        let mut budget = Budget::new(s(0));
        let mut retries = 0;
        // A thousand requests a second for a minute, all of which fail.
        for request in 0..60_000_u64 {
            let now = Duration::from_millis(request);
            budget.deposit(now);
            retries += u64::from(budget.withdraw(now));
        }
        let allowed = 60_000 / 5 + 60 * 3 + 30;
        assert!((allowed - 5..=allowed).contains(&retries), "{retries} of {allowed}");
    }

    #[test]
    fn savings_are_bounded_and_time_does_not_run_backwards() {
        let mut budget = Budget::new(s(0));
        budget.deposit(s(1_000_000));
        assert_eq!(budget.tokens(), 100);
        assert!(budget.withdraw(s(0)));
        assert_eq!(budget.tokens(), 99);
    }
}
