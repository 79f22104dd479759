//! How long the client of an upload may let us wait: the least rate of every body, for a protocol whose bytes do not pass
//! [`crate::wire`].
//!
//! A client's time ends when its bytes wake us, and not when we come to read them: an upstream that is slow to take a body
//! must not cost the client its allowance.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::wire::Allowance;

/// Follows one upload.
pub(super) struct Pace {
    allowance: Allowance,
    clock: Option<Pin<Box<Sleep>>>,
    bell: Arc<Bell>,
}

/// Notes when it rings, and passes it on.
#[derive(Default)]
struct Bell {
    rang: Mutex<Option<Instant>>,
    reader: AtomicWaker,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.rang.lock().get_or_insert_with(Instant::now);
        self.reader.wake();
    }
}

impl Pace {
    /// `most`: how long a client may be waited for that sends nothing.
    pub(super) fn new(most: Duration) -> Self {
        Self { allowance: Allowance::new(most), clock: None, bell: Arc::default() }
    }

    /// What to look for the client's bytes with, in place of the reader's own waker.
    pub(super) fn watch(&self, cx: &Context<'_>) -> Waker {
        self.bell.reader.register(cx.waker());
        Waker::from(Arc::clone(&self.bell))
    }

    /// So many bytes were there.
    pub(super) fn moved(&mut self, bytes: usize) {
        let rang = self.bell.rang.lock().take();
        if !self.allowance.is_untouched() {
            let at = rang.unwrap_or_else(Instant::now);
            self.allowance.rest(at);
            self.allowance.earn(bytes, at);
        }
    }

    /// There were none. Ready when the client has been waited for too long.
    pub(super) fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // What rang was for nothing.
        self.bell.rang.lock().take();
        let now = Instant::now();
        self.allowance.wait(now);
        let Some(deadline) = self.allowance.deadline() else { return Poll::Pending };
        if deadline <= now {
            return Poll::Ready(());
        }
        let clock = self.clock.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if clock.deadline() != deadline {
            clock.as_mut().reset(deadline);
        }
        clock.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::task::noop_waker;

    use super::*;

    const MOST: Duration = Duration::from_secs(10);

    struct Upload {
        pace: Pace,
        bell: Waker,
    }

    impl Upload {
        fn new() -> Self {
            let pace = Pace::new(MOST);
            let bell = pace.watch(&Context::from_waker(&noop_waker()));
            Self { pace, bell }
        }

        fn is_late(&mut self) -> bool {
            self.pace.poll_late(&mut Context::from_waker(&noop_waker())).is_ready()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_byte_now_and_then_is_late_after_all_and_the_least_rate_is_not() {
        for (bytes, is_late) in [(1, true), (240, false)] {
            let mut upload = Upload::new();
            let mut late = false;
            for _ in 0..60 {
                late |= upload.is_late();
                tokio::time::advance(Duration::from_secs(1)).await;
                upload.bell.wake_by_ref();
                upload.pace.moved(bytes);
            }
            assert_eq!(late || upload.is_late(), is_late, "{bytes} bytes a second");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_reads_late_does_not_spend_the_clients_time() {
        let mut upload = Upload::new();
        for _ in 0..10 {
            assert!(!upload.is_late());
            tokio::time::advance(Duration::from_millis(100)).await;
            upload.bell.wake_by_ref();
            // An hour at the upstream's pace.
            tokio::time::advance(Duration::from_secs(3_600)).await;
            upload.pace.moved(1);
        }
        assert!(!upload.is_late());
        tokio::time::advance(MOST).await;
        assert!(upload.is_late(), "and one that says nothing is late");
    }
}
