//! Processor time of a guest that runs in slices, on whatever thread polls it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use wasmtime::UpdateDeadline;

use crate::ticker::thread_cpu_time;

/// The account of one request, shared by its future (which knows when it runs) and its store's epoch callback (which
/// can stop it).
///
/// As with hooks, the first half of the budget is counted by the wall clock around each poll, which is cheap and
/// counts too much on a busy machine. From then on the thread's processor clock decides.
pub(super) struct Meter {
    started: Instant,
    half_ns: u64,
    /// Wall time of all polls that ended.
    polled_ns: AtomicU64,
    /// When the current poll began, since `started`.
    poll_began_ns: AtomicU64,
    /// Processor time of all polls that ended since the first half was used up.
    processor_ns: AtomicU64,
    /// The thread's processor time when the current poll, or the second half, began; 0 in the first half.
    processor_began_ns: AtomicU64,
}

impl Meter {
    pub(super) fn new(budget: Duration) -> Arc<Self> {
        Arc::new(Self {
            started: Instant::now(),
            half_ns: nanoseconds(budget / 2),
            polled_ns: AtomicU64::new(0),
            poll_began_ns: AtomicU64::new(0),
            processor_ns: AtomicU64::new(0),
            processor_began_ns: AtomicU64::new(0),
        })
    }

    fn now_ns(&self) -> u64 {
        nanoseconds(self.started.elapsed())
    }

    fn begin(&self) {
        self.poll_began_ns.store(self.now_ns(), Ordering::Relaxed);
        if self.processor_began_ns.load(Ordering::Relaxed) != 0 {
            self.processor_began_ns.store(processor_now_ns(), Ordering::Relaxed);
        }
    }

    fn end(&self) {
        let wall_ns = self.now_ns().saturating_sub(self.poll_began_ns.load(Ordering::Relaxed));
        self.polled_ns.fetch_add(wall_ns, Ordering::Relaxed);
        let began_ns = self.processor_began_ns.load(Ordering::Relaxed);
        if began_ns != 0 {
            self.processor_ns.fetch_add(processor_now_ns().saturating_sub(began_ns), Ordering::Relaxed);
        }
    }

    /// The guest has run to the end of a tick: let others run, or stop it.
    pub(super) fn on_tick(&self) -> UpdateDeadline {
        let began_ns = self.processor_began_ns.load(Ordering::Relaxed);
        if began_ns == 0 {
            let poll_ns = self.now_ns().saturating_sub(self.poll_began_ns.load(Ordering::Relaxed));
            if self.polled_ns.load(Ordering::Relaxed).saturating_add(poll_ns) >= self.half_ns {
                self.processor_began_ns.store(processor_now_ns(), Ordering::Relaxed);
            }
        } else {
            let poll_ns = processor_now_ns().saturating_sub(began_ns);
            if self.processor_ns.load(Ordering::Relaxed).saturating_add(poll_ns) >= self.half_ns {
                return UpdateDeadline::Interrupt;
            }
        }
        UpdateDeadline::Yield(1)
    }
}

/// A future whose polls are metered.
pub(super) struct Metered<F> {
    pub(super) meter: Arc<Meter>,
    pub(super) future: Pin<Box<F>>,
}

impl<F: Future> Future for Metered<F> {
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
