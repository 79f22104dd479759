//! How long a peer may keep us waiting: a minimum rate as an allowance of time.
//!
//! An [`Allowance`] is spent while we wait for the peer and earned with the bytes that it moves. It is never more than
//! its maximum, so whoever was fast for an hour may not rest for longer than whoever has just come; and only waiting
//! spends it, so our own slowness is nobody's fault. One byte now and then does not keep it alive.

use std::time::Duration;

use tokio::time::Instant;

/// The least that a peer must move, either way. A modem of 1990 moves ten times as much.
pub const BYTES_PER_S_MIN: u64 = 240;
/// What one byte earns.
const PER_BYTE: Duration = Duration::from_nanos(1_000_000_000 / BYTES_PER_S_MIN);

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Allowance {
    left: Duration,
    most: Duration,
    since: Option<Instant>,
}

impl Allowance {
    pub(crate) fn new(most: Duration) -> Self {
        Self { left: most, most, since: None }
    }

    /// It is the peer's turn, from now on or already.
    pub(crate) fn wait(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// It is our turn.
    pub(crate) fn rest(&mut self, now: Instant) {
        if let Some(since) = self.since.take() {
            self.left = self.left.saturating_sub(now.saturating_duration_since(since));
        }
    }

    /// The peer moved so many bytes. Whether it is its turn stays as it was.
    pub(crate) fn earn(&mut self, bytes: usize, now: Instant) {
        let waiting = self.since.is_some();
        self.rest(now);
        // Whoever has spent it all is late, whatever comes now.
        if !self.left.is_zero() {
            let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
            self.left = self.left.saturating_add(PER_BYTE.saturating_mul(bytes)).min(self.most);
        }
        if waiting {
            self.since = Some(now);
        }
    }

    /// When the peer has waited too long, if it is its turn.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.since.map(|since| since + self.left)
    }

    pub(crate) fn is_waiting(&self) -> bool {
        self.since.is_some()
    }

    /// Nothing would change by [`Self::earn`] or [`Self::rest`]: spares the hot path a look at the clock.
    pub(crate) fn is_untouched(&self) -> bool {
        self.since.is_none() && self.left == self.most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_secs(30);

    fn at(start: Instant, s: u64) -> Instant {
        start + Duration::from_secs(s)
    }

    #[test]
    fn one_byte_now_and_then_does_not_keep_a_peer_alive() {
        let start = Instant::now();
        let mut allowance = Allowance::new(MOST);
        let mut now = start;
        allowance.wait(now);
        while allowance.deadline().is_some_and(|deadline| deadline > now) {
            now += Duration::from_secs(1);
            allowance.earn(1, now);
        }
        assert!(now >= at(start, 30) && now <= at(start, 31), "{:?}", now - start);
    }

    #[test]
    fn whoever_keeps_the_rate_goes_on_and_whoever_was_fast_may_not_rest_for_ever() {
        let start = Instant::now();
        let mut allowance = Allowance::new(MOST);
        allowance.wait(start);
        for s in 1..10_000 {
            allowance.earn(usize::try_from(BYTES_PER_S_MIN).expect("small"), at(start, s));
            assert!(allowance.deadline().expect("its turn") > at(start, s));
        }
        allowance.earn(1 << 30, at(start, 10_000));
        assert_eq!(allowance.deadline(), Some(at(start, 10_030)));
    }

    #[test]
    fn our_own_time_is_not_the_peers() {
        let start = Instant::now();
        let mut allowance = Allowance::new(MOST);
        assert_eq!((allowance.deadline(), allowance.is_untouched()), (None, true));
        allowance.wait(start);
        allowance.wait(at(start, 5));
        allowance.rest(at(start, 10));
        assert_eq!(allowance.deadline(), None);
        allowance.wait(at(start, 1_000));
        assert_eq!(allowance.deadline(), Some(at(start, 1_020)));
    }
}
