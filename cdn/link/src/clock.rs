//! The monotonic clock of a session: milliseconds since it began. The only place where protocol time is read.

use tokio::time::Instant;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn now_ms(self) -> u64 {
        u64::try_from(self.0.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Sleeps until a session's deadline; for ever when it has none.
    pub(crate) async fn sleep_until(self, deadline_ms: Option<u64>) {
        match deadline_ms {
            Some(at) => tokio::time::sleep_until(self.0 + std::time::Duration::from_millis(at)).await,
            None => std::future::pending().await,
        }
    }
}
