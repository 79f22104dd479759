//! A thread that waits for a future, with a limit. The store's operations block; the client of PostgreSQL does not.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Drives `future` on this thread until it ends. None: it had not ended after `wait_max`, and is dropped.
///
/// Unlike a runtime's `block_on` it may be called from anywhere. What is waited for must be driven by another thread; that
/// of a connection is ([`super::Postgres`]).
pub(super) fn wait<F: Future>(future: F, wait_max: Duration) -> Option<F::Output> {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let until = Instant::now() + wait_max;
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return Some(output);
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        std::thread::park_timeout(left);
    }
}

/// Polls `future` once, and drops it: for a request whose answer is of no interest.
pub(super) fn send_off<F: Future>(future: F) {
    let _answer = pin!(future).poll(&mut Context::from_waker(Waker::noop()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_thread_ends_is_waited_for_and_what_nobody_ends_is_not() {
        let (reply, answer) = tokio::sync::oneshot::channel();
        let other = std::thread::spawn(move || reply.send(7));
        assert_eq!(wait(answer, Duration::from_secs(60)), Some(Ok(7)));
        other.join().expect("ends").expect("somebody listened");
        assert_eq!(wait(std::future::pending::<()>(), Duration::from_millis(1)), None);
    }
}
