//! Processor time of a guest that runs in slices, on whatever thread polls it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use wasmtime::UpdateDeadline;

use crate::ticker::thread_cpu_time;

/// How long a guest may keep a thread before others run. A guest that yields half-way leaves its memory behind in the
/// caches of a thread that then begins another: an interpreter's answer takes about a tick, and is better ended. No
/// longer than a chain of hooks may keep the same thread.
const SLICE_NS: u64 = 4_000_000;

/// The account of one request, shared by its future (which knows when it runs) and its store's epoch callback (which
/// can stop it).
///
/// As with hooks, a request that ends within the tick in which it began costs nothing here. The first tick that ends
/// while the guest runs starts the account, and from then on the processor clock of the polling thread is read around
/// each poll: what other processes take on a busy machine never counts.
pub(super) struct Meter {
    budget_ns: u64,
    /// Processor time of all polls that ended since the account was started.
    spent_ns: AtomicU64,
    /// The thread's processor time when the current poll, or the account, began; 0 before that.
    began_ns: AtomicU64,
}

impl Meter {
    pub(super) fn new(budget: Duration) -> Arc<Self> {
        Arc::new(Self {
            budget_ns: nanoseconds(budget),
            spent_ns: AtomicU64::new(0),
            began_ns: AtomicU64::new(0),
        })
    }

    /// A new account, for the next request of the same store.
    pub(super) fn renew(&self) {
        self.spent_ns.store(0, Ordering::Relaxed);
        self.began_ns.store(0, Ordering::Relaxed);
    }

    fn begin(&self) {
        if self.began_ns.load(Ordering::Relaxed) != 0 {
            self.began_ns.store(processor_now_ns(), Ordering::Relaxed);
        }
    }

    fn end(&self) {
        let began_ns = self.began_ns.load(Ordering::Relaxed);
        if began_ns != 0 {
            self.spent_ns.fetch_add(processor_now_ns().saturating_sub(began_ns), Ordering::Relaxed);
        }
    }

    /// The guest has run to the end of a tick: let it go on, let others run, or stop it.
    pub(super) fn on_tick(&self) -> UpdateDeadline {
        let began_ns = self.began_ns.load(Ordering::Relaxed);
        if began_ns == 0 {
            self.began_ns.store(processor_now_ns(), Ordering::Relaxed);
            return UpdateDeadline::Continue(1);
        }
        let poll_ns = processor_now_ns().saturating_sub(began_ns);
        if self.spent_ns.load(Ordering::Relaxed).saturating_add(poll_ns) >= self.budget_ns {
            UpdateDeadline::Interrupt
        } else if poll_ns >= SLICE_NS {
            UpdateDeadline::Yield(1)
        } else {
            UpdateDeadline::Continue(1)
        }
    }
}

/// A future whose polls are metered.
pub(super) struct Metered<'a, F> {
    pub(super) meter: Arc<Meter>,
    pub(super) future: Pin<&'a mut F>,
}

impl<F: Future> Future for Metered<'_, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        self.meter.begin();
        let result = self.future.as_mut().poll(context);
        self.meter.end();
        result
    }
}

fn processor_now_ns() -> u64 {
    // Never 0, which says that nothing began.
    nanoseconds(thread_cpu_time()).max(1)
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
