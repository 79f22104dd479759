//! Whether one server may be asked: outlier ejection and circuit breaker in one mechanism, for they are the same thing.
//!
//! ```text
//!   Serving --failures--> Ejected --its time is over--> Trial --two answers--> Returning --slow start--> Serving
//!                            ^------- one failure --------'
//! ```
//!
//! *Ejected* is what a circuit breaker calls open, *Trial* what it calls half-open. Beside this stands what active checks
//! say: a server whose checks fail is out until they pass, whatever its state. Pure: time is an argument. The bound on how
//! many servers may be out is [`super::roster`]'s, which knows all of them.

use std::time::Duration;

/// Failures in a row. Fewer would eject a server for the shoppers whom one deployment of it meets.
const FAILURES_IN_A_ROW_MAX: u32 = 5;
/// Requests of one window from which on its share of failures means something.
const WINDOW_REQUESTS_MIN: u32 = 20;
/// Of these, as many failures as successes.
const WINDOW_FAILURES_PERCENT_MAX: u32 = 50;
const WINDOW: Duration = Duration::from_secs(10);
/// The first ejection; each further one takes twice as long. Longer than the restart of a small process.
const EJECTION: Duration = Duration::from_secs(5);
/// The longest ejection: a server that was repaired is noticed within five minutes without a check.
const EJECTION_MAX: Duration = Duration::from_secs(300);
/// Requests on trial at once, and answers of them until the server is back.
const TRIALS_AT_ONCE_MAX: u32 = 1;
const TRIALS_PASSED_MIN: u32 = 2;
/// How long only such requests are sent on trial as can be sent again elsewhere. After that any: a shop whose requests are
/// all POSTs would never get its server back.
const TRIAL_PATIENCE: Duration = Duration::from_secs(10);
/// How long a server that came back gets less than its weight, so that its caches and connections can warm up.
const SLOW_START: Duration = Duration::from_secs(30);
/// Of its weight, at the beginning of the slow start.
const SLOW_START_SHARE: f64 = 0.1;

/// What a request says of the server that it was sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Good,
    /// No connection, a broken one, no answer in time, or 502, 503 or 504. Not 500: one page with a mistake in it, asked
    /// for by anybody, must not take a server away from all others.
    Bad,
}

/// Why a server was ejected: the label of the metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    ConsecutiveFailures,
    ErrorRatio,
    TrialFailed,
    Check,
}

impl Cause {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::ConsecutiveFailures => "consecutive_failures",
            Self::ErrorRatio => "error_ratio",
            Self::TrialFailed => "trial_failed",
            Self::Check => "check",
        }
    }
}

/// The state of a server at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Serving,
    Ejected,
    Trial,
    Returning,
    /// Its checks fail.
    Failing,
}

impl State {
    pub(super) const ALL: [Self; 5] =
        [Self::Serving, Self::Ejected, Self::Trial, Self::Returning, Self::Failing];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Ejected => "ejected",
            Self::Trial => "trial",
            Self::Returning => "returning",
            Self::Failing => "failing",
        }
    }
}

/// How many checks in a row change what is thought of a server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Thresholds {
    pub(super) failed: u32,
    pub(super) passed: u32,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Serving,
    /// Ejected before `until`, on trial from then on.
    Out {
        until: Duration,
    },
    Returning {
        since: Duration,
    },
}

#[derive(Clone, Debug)]
pub(super) struct Health {
    phase: Phase,
    failures_in_a_row: u32,
    window_from: Duration,
    requests: u32,
    failures: u32,
    /// Ejections one soon after the other.
    ejections: u32,
    /// When the last ejection is forgotten.
    forgotten_at: Duration,
    trials: u32,
    trials_passed: u32,
    checks_failing: bool,
    /// Checks in a row that contradict `checks_failing`.
    checks_against: u32,
}

impl Health {
    /// A server that was there from the beginning.
    pub(super) fn serving(now: Duration) -> Self {
        Self {
            phase: Phase::Serving,
            failures_in_a_row: 0,
            window_from: now,
            requests: 0,
            failures: 0,
            ejections: 0,
            forgotten_at: now,
            trials: 0,
            trials_passed: 0,
            checks_failing: false,
            checks_against: 0,
        }
    }

    /// A server that joined others: it starts slowly.
    pub(super) fn joining(now: Duration) -> Self {
        Self { phase: Phase::Returning { since: now }, ..Self::serving(now) }
    }

    pub(super) fn state(&self, now: Duration) -> State {
        if self.checks_failing {
            return State::Failing;
        }
        match self.phase {
            Phase::Out { until } if now < until => State::Ejected,
            Phase::Out { .. } => State::Trial,
            Phase::Returning { since } if now < since + SLOW_START => State::Returning,
            Phase::Serving | Phase::Returning { .. } => State::Serving,
        }
    }

    /// Whether the server is among those that share the requests.
    pub(super) fn is_in(&self, now: Duration) -> bool {
        matches!(self.state(now), State::Serving | State::Returning)
    }

    /// Whether the server was put out for what requests met: what the bound on ejections counts.
    pub(super) fn is_ejected(&self) -> bool {
        matches!(self.phase, Phase::Out { .. })
    }

    /// The part of its weight that the server gets.
    pub(super) fn share(&self, now: Duration) -> f64 {
        match self.phase {
            Phase::Returning { since } => {
                let done = now.saturating_sub(since).as_secs_f64() / SLOW_START.as_secs_f64();
                done.clamp(SLOW_START_SHARE, 1.0)
            }
            _ => 1.0,
        }
    }

    /// Begins a trial, if one may begin. `repeatable`: the request can be sent elsewhere if it fails here.
    pub(super) fn try_out(&mut self, now: Duration, repeatable: bool) -> bool {
        let Phase::Out { until } = self.phase else { return false };
        let free = self.state(now) == State::Trial && self.trials < TRIALS_AT_ONCE_MAX;
        let begins = free && (repeatable || now >= until + TRIAL_PATIENCE);
        self.trials += u32::from(begins);
        begins
    }

    /// A trial has ended, with a verdict or without.
    pub(super) fn end_trial(&mut self) {
        self.trials = self.trials.saturating_sub(1);
    }

    /// Takes note of one request. `may_eject` says whether one more server may be put out. Returns why it was.
    pub(super) fn judge(&mut self, now: Duration, verdict: Verdict, may_eject: bool) -> Option<Cause> {
        if now.saturating_sub(self.window_from) >= WINDOW {
            (self.window_from, self.requests, self.failures) = (now, 0, 0);
        }
        self.requests += 1;
        match verdict {
            Verdict::Good => {
                self.failures_in_a_row = 0;
                self.pass(now);
                None
            }
            Verdict::Bad => {
                self.failures += 1;
                self.failures_in_a_row += 1;
                let cause = self.cause(now)?;
                (may_eject || cause == Cause::TrialFailed).then(|| self.eject(now, cause))
            }
        }
    }

    /// Takes note of an active check. Returns the cause where it put the server out.
    pub(super) fn check(&mut self, now: Duration, passed: bool, thresholds: Thresholds) -> Option<Cause> {
        if passed != self.checks_failing {
            self.checks_against = 0;
            return None;
        }
        self.checks_against += 1;
        let needed = if passed { thresholds.passed } else { thresholds.failed };
        if self.checks_against < needed {
            return None;
        }
        self.checks_against = 0;
        self.checks_failing = !passed;
        if passed && !self.is_ejected() {
            self.phase = Phase::Returning { since: now };
        }
        (!passed).then_some(Cause::Check)
    }

    fn pass(&mut self, now: Duration) {
        match self.phase {
            // An answer to a request that was sent before the ejection is no trial.
            Phase::Out { until } if now >= until => {
                self.trials_passed += 1;
                if self.trials_passed >= TRIALS_PASSED_MIN {
                    self.phase = Phase::Returning { since: now };
                }
            }
            Phase::Out { .. } => {}
            Phase::Serving | Phase::Returning { .. } => {
                if now >= self.forgotten_at {
                    self.ejections = 0;
                }
            }
        }
    }

    fn cause(&self, now: Duration) -> Option<Cause> {
        match self.phase {
            Phase::Out { until } if now >= until => Some(Cause::TrialFailed),
            Phase::Out { .. } => None,
            _ if self.failures_in_a_row >= FAILURES_IN_A_ROW_MAX => Some(Cause::ConsecutiveFailures),
            _ if self.requests >= WINDOW_REQUESTS_MIN
                && self.failures * 100 >= self.requests * WINDOW_FAILURES_PERCENT_MAX =>
            {
                Some(Cause::ErrorRatio)
            }
            _ => None,
        }
    }

    fn eject(&mut self, now: Duration, cause: Cause) -> Cause {
        let time = EJECTION.saturating_mul(1 << self.ejections.min(16)).min(EJECTION_MAX);
        self.ejections += 1;
        self.phase = Phase::Out { until: now + time };
        // Whoever serves as long as it was out has made good.
        self.forgotten_at = now + time * 2;
        self.trials_passed = 0;
        self.failures_in_a_row = 0;
        (self.window_from, self.requests, self.failures) = (now, 0, 0);
        cause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn fail(health: &mut Health, now: Duration, times: u32) -> Option<Cause> {
        (0..times).map(|_| health.judge(now, Verdict::Bad, true)).last().flatten()
    }

    #[test]
    fn five_failures_in_a_row_eject_and_a_success_between_does_not() {
        let mut health = Health::serving(s(0));
        assert_eq!(fail(&mut health, s(0), 4), None);
        health.judge(s(0), Verdict::Good, true);
        assert_eq!(fail(&mut health, s(0), 4), None);
        assert_eq!(fail(&mut health, s(0), 1), Some(Cause::ConsecutiveFailures));
        assert_eq!(health.state(s(4)), State::Ejected);
        assert_eq!(health.state(s(5)), State::Trial);
    }

    #[test]
    fn half_of_twenty_eject() {
        let mut health = Health::serving(s(0));
        let mut causes = Vec::new();
        for request in 0..40 {
            let verdict = if request % 2 == 0 { Verdict::Good } else { Verdict::Bad };
            causes.extend(health.judge(s(1), verdict, true).map(|cause| (request, cause)));
        }
        assert_eq!(causes, [(19, Cause::ErrorRatio)]);
        // The same over a longer time is no accident to react to.
        let mut slow = Health::serving(s(0));
        for request in 0..40 {
            let verdict = if request % 2 == 0 { Verdict::Good } else { Verdict::Bad };
            assert_eq!(slow.judge(s(request * 2), verdict, true), None);
        }
    }

    #[test]
    fn the_way_back_is_a_trial_and_a_slow_start() {
        let mut health = Health::serving(s(0));
        fail(&mut health, s(0), 5);
        assert!(!health.try_out(s(4), true), "not before its time");
        assert!(health.try_out(s(5), true));
        assert!(!health.try_out(s(5), true), "one at once");
        assert_eq!(health.judge(s(5), Verdict::Good, true), None);
        health.end_trial();
        assert_eq!(health.state(s(5)), State::Trial, "one answer is not enough");
        assert!(health.try_out(s(5), true));
        health.judge(s(6), Verdict::Good, true);
        health.end_trial();
        assert_eq!(health.state(s(6)), State::Returning);
        assert!((health.share(s(6)) - 0.1).abs() < 1e-9);
        assert!((health.share(s(21)) - 0.5).abs() < 1e-9);
        assert_eq!((health.state(s(36)), health.share(s(36))), (State::Serving, 1.0));
    }

    #[test]
    fn a_failed_trial_ejects_for_twice_as_long_up_to_a_bound() {
        let mut health = Health::serving(s(0));
        let mut now = s(0);
        fail(&mut health, now, 5);
        let mut times = Vec::new();
        for _ in 0..8 {
            let began = now;
            while !health.try_out(now, true) {
                now += s(1);
            }
            times.push((now - began).as_secs());
            // A trial that fails ejects even where nobody else may be ejected.
            assert_eq!(health.judge(now, Verdict::Bad, false), Some(Cause::TrialFailed));
            health.end_trial();
        }
        assert_eq!(times, [5, 10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn ejections_are_forgotten_after_serving_as_long() {
        let mut health = Health::serving(s(0));
        fail(&mut health, s(0), 5);
        for _ in 0..2 {
            health.judge(s(5), Verdict::Good, true);
        }
        health.judge(s(10), Verdict::Good, true);
        fail(&mut health, s(10), 5);
        assert_eq!(health.state(s(15)), State::Trial, "the first time again");
        // One soon after it is the second.
        for _ in 0..2 {
            health.judge(s(15), Verdict::Good, true);
        }
        fail(&mut health, s(16), 5);
        assert_eq!(health.state(s(25)), State::Ejected);
        assert_eq!(health.state(s(26)), State::Trial);
    }

    #[test]
    fn where_nobody_may_be_ejected_nobody_is() {
        let mut health = Health::serving(s(0));
        for _ in 0..100 {
            assert_eq!(health.judge(s(0), Verdict::Bad, false), None);
        }
        assert!(health.is_in(s(0)));
    }

    #[test]
    fn late_answers_of_before_the_ejection_are_no_trials() {
        let mut health = Health::serving(s(0));
        fail(&mut health, s(0), 5);
        for _ in 0..10 {
            health.judge(s(1), Verdict::Good, true);
            health.judge(s(1), Verdict::Bad, true);
        }
        assert_eq!(health.state(s(4)), State::Ejected);
        assert_eq!(health.state(s(5)), State::Trial);
    }

    #[test]
    fn requests_that_cannot_be_repeated_are_tried_out_late() {
        let mut health = Health::serving(s(0));
        fail(&mut health, s(0), 5);
        assert!(!health.try_out(s(14), false));
        assert!(health.try_out(s(15), false));
    }

    #[test]
    fn checks_put_out_and_let_in_by_their_thresholds() {
        let thresholds = Thresholds { failed: 3, passed: 2 };
        let mut health = Health::serving(s(0));
        let mut check = |passed| (health.check(s(1), passed, thresholds), health.state(s(1)));
        assert_eq!(check(false), (None, State::Serving));
        assert_eq!(check(false), (None, State::Serving));
        assert_eq!(check(true), (None, State::Serving), "two failures and a success are none");
        check(false);
        check(false);
        assert_eq!(check(false), (Some(Cause::Check), State::Failing));
        assert_eq!(check(true), (None, State::Failing));
        assert_eq!(check(true), (None, State::Returning));
    }
}
