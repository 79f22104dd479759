//! The monotonic clock of a session: milliseconds since it began. The only place where protocol time is read.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use quinn::Runtime;

use crate::Ground;

#[derive(Clone)]
pub(crate) struct Clock {
    runtime: Arc<dyn Runtime>,
    began: Instant,
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clock").field("began", &self.began).finish_non_exhaustive()
    }
}

impl Clock {
    /// From now on, in the time of the transport below.
    pub(crate) fn start(ground: &dyn Ground) -> Self {
        let runtime = ground.runtime();
        let began = runtime.now();
        Self { runtime, began }
    }

    pub(crate) fn now_ms(&self) -> u64 {
        let passed = self.runtime.now().saturating_duration_since(self.began);
        u64::try_from(passed.as_millis()).unwrap_or(u64::MAX)
    }

    /// Sleeps until a session's deadline; for ever when it has none.
    pub(crate) async fn sleep_until(&self, deadline_ms: Option<u64>) {
        match deadline_ms {
            Some(at) => tokio::time::sleep(Duration::from_millis(at.saturating_sub(self.now_ms()))).await,
            None => std::future::pending().await,
        }
    }
}
