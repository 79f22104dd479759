//! How fast all shoppers together may act.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::Rate;

/// Hands out moments, evenly spaced. Shoppers that are late use theirs at once, so the rate holds over time.
#[derive(Debug)]
pub(super) struct Pace {
    began: Instant,
    /// None: whenever they like.
    spacing: Option<Duration>,
    given: AtomicU64,
}

impl Pace {
    pub(super) fn new(rate: Rate) -> Self {
        let spacing = match rate {
            Rate::Max => None,
            Rate::PerSecond(rate) => Some(Duration::from_secs_f64(1.0 / rate)),
        };
        Self { began: Instant::now(), spacing, given: AtomicU64::new(0) }
    }

    pub(super) async fn wait(&self) {
        if let Some(spacing) = self.spacing {
            sleep_until(self.began + offset(spacing, self.given.fetch_add(1, Ordering::Relaxed))).await;
        }
    }
}

/// When the moment of that number comes, counted from the beginning.
fn offset(spacing: Duration, number: u64) -> Duration {
    let nanos = spacing.as_nanos().saturating_mul(u128::from(number));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX / 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_evenly_spaced_and_do_not_drift() {
        let spacing = Duration::from_secs_f64(1.0 / 3_000.0);
        assert_eq!(offset(spacing, 0), Duration::ZERO);
        assert_eq!(
            offset(spacing, 3_000_000).as_secs(),
            999,
            "a thousand seconds, less what a nanosecond rounds away"
        );
        assert!(offset(Duration::MAX, u64::MAX) > Duration::from_secs(1 << 30));
    }
}
