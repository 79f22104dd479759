//! How long the latest answers took: what a hedge's delay is taken from. Pure.

use std::time::Duration;

/// Answers that are remembered. The 95th percentile of fewer would be one of a dozen.
const KEPT: usize = 256;
/// Answers without which nothing can be said.
const KNOWN_MIN: usize = 64;
/// Answers after which the percentile is computed anew.
const STALE_AFTER: usize = 32;

#[derive(Debug, Default)]
pub(super) struct Waits {
    ring: Vec<Duration>,
    next: usize,
    /// The percentile that was computed last, what of, and how many answers ago.
    computed: Option<(u8, Duration)>,
    since: usize,
}

impl Waits {
    pub(super) fn note(&mut self, wait: Duration) {
        if self.ring.len() < KEPT {
            self.ring.push(wait);
        } else {
            self.ring[self.next] = wait;
        }
        self.next = (self.next + 1) % KEPT;
        self.since += 1;
    }

    /// The time within which `percent` of the answers came; none before there were enough of them.
    pub(super) fn percentile(&mut self, percent: u8) -> Option<Duration> {
        if self.ring.len() < KNOWN_MIN {
            return None;
        }
        match self.computed {
            Some((of, known)) if of == percent && self.since < STALE_AFTER => Some(known),
            _ => {
                let mut sorted = self.ring.clone();
                sorted.sort_unstable();
                let known = sorted[(sorted.len() - 1) * usize::from(percent.min(100)) / 100];
                (self.computed, self.since) = (Some((percent, known)), 0);
                Some(known)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_of_the_latest_answers() {
        let mut waits = Waits::default();
        let ms = Duration::from_millis;
        for wait in 0..63 {
            waits.note(ms(wait));
        }
        assert_eq!(waits.percentile(95), None, "too few");
        for wait in 63..100 {
            waits.note(ms(wait));
        }
        assert_eq!(waits.percentile(95), Some(ms(94)));
        assert_eq!(waits.percentile(50), Some(ms(49)));
        for _ in 0..KEPT {
            waits.note(ms(7));
        }
        assert_eq!(waits.percentile(95), Some(ms(7)), "what is old is forgotten");
    }
}
