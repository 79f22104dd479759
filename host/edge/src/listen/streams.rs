//! Where the streams of an HTTP/2 connection run.
//!
//! hyper gives each request a task. Where most answers are there at once, that is two turns of the scheduler and a write
//! of its own for each: so a stream may be polled once where it begins, and only one that has to wait becomes a task.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::{Context, Poll, Waker};

/// Runs streams of HTTP/2, and whatever else hyper wants done beside a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct StreamExecutor {
    /// Polls once before it makes a task.
    pub(super) first_here: bool,
}

impl<F> hyper::rt::Executor<F> for StreamExecutor
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, stream: F) {
        if !self.first_here {
            tokio::spawn(stream);
            return;
        }
        let mut stream = Box::pin(stream);
        // Whoever has to wait is polled again by its task, and tells that one's waker what to wake.
        let mut context = Context::from_waker(Waker::noop());
        // As in a task: a panic ends one stream, and not its connection. The hook has written where it was.
        match catch_unwind(AssertUnwindSafe(|| stream.as_mut().poll(&mut context))) {
            Ok(Poll::Pending) => drop(tokio::spawn(stream)),
            Ok(Poll::Ready(_)) | Err(_) => {}
        }
    }
}
