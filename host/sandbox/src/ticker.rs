//! The clock of engines: one thread that advances their epochs once a millisecond of wall time, while guests run.
//!
//! One thread instead of a timer per call: a guest compares a counter at each loop and function entry,
//! which costs it nearly nothing, and a timer per call would cost more than the call. When no guest has run for a while
//! the thread sleeps, and the next call wakes it: a node that runs no plugins must not pay a thousand wake-ups a second
//! for their deadlines.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::Thread;
use std::time::{Duration, Instant};

use nix::time::ClockId;
use wasmtime::Engine;

pub(crate) const TICK: Duration = Duration::from_millis(1);
/// Ticks without a guest after which the thread sleeps. To wake it costs a call some microseconds, so that a node that is
/// asked sixteen times a second or more never does, and one that is asked less does it less.
const IDLE_TICKS: u32 = 64;
/// In [`Pulse::calls`]: one call that has begun, above those that run.
const BEGUN: u64 = 1 << 32;

/// Ends its thread when dropped.
pub(crate) struct Ticker {
    pulse: Arc<Pulse>,
    thread: Thread,
}

#[derive(Default)]
struct Pulse {
    /// How many calls run (the lower half) and have begun (the upper half, which wraps): one number, so that a call pays for one
    /// atomic operation at either end.
    calls: AtomicU64,
    asleep: AtomicBool,
    ended: AtomicBool,
}

/// A guest may run: the clock ticks as long as this lives.
pub(crate) struct Ticking<'a> {
    pulse: &'a Pulse,
}

impl Ticker {
    pub(crate) fn start<const N: usize>(engines: [&Engine; N]) -> std::io::Result<Self> {
        // Weak: the thread must not be what keeps an engine alive.
        let engines = engines.map(Engine::weak);
        Self::ticking_with(move |count| {
            engines.iter().all(|engine| {
                let engine = engine.upgrade();
                engine.inspect(|engine| (0..count).for_each(|_| engine.increment_epoch())).is_some()
            })
        })
    }

    /// `tick` is told how many ticks are due, and says whether anybody wants more.
    fn ticking_with(tick: impl Fn(u128) -> bool + Send + 'static) -> std::io::Result<Self> {
        let pulse = Arc::<Pulse>::default();
        let thread =
            std::thread::Builder::new().name("souk-epoch".to_owned()).stack_size(64 << 10).spawn({
                let pulse = Arc::clone(&pulse);
                move || pulse.keep(tick)
            })?;
        Ok(Self { pulse, thread: thread.thread().clone() })
    }

    /// To be held from before a store's deadline is set until its guest has stopped.
    pub(crate) fn ticking(&self) -> Ticking<'_> {
        self.pulse.calls.fetch_add(BEGUN + 1, Ordering::SeqCst);
        // The thread says that it sleeps and then looks for calls; a call is noted and then looks whether it sleeps. One of
        // the two sees the other.
        if self.pulse.asleep.load(Ordering::SeqCst) && self.pulse.asleep.swap(false, Ordering::SeqCst) {
            self.thread.unpark();
        }
        Ticking { pulse: &self.pulse }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.pulse.ended.store(true, Ordering::SeqCst);
        self.thread.unpark();
    }
}

impl Drop for Ticking<'_> {
    fn drop(&mut self) {
        self.pulse.calls.fetch_sub(1, Ordering::Release);
    }
}

impl Pulse {
    /// Ticks until the ticker is dropped, or `tick` says that its engines are gone.
    fn keep(&self, tick: impl Fn(u128) -> bool) {
        let (mut start, mut ticks) = (Instant::now(), 0);
        let (mut seen, mut idle) = (self.calls.load(Ordering::Acquire), 0);
        while !self.ended.load(Ordering::SeqCst) {
            std::thread::sleep(TICK);
            // The thread may have slept longer than it asked for; the epoch stays true to the wall clock.
            let due = start.elapsed().as_millis();
            if !tick(due - ticks) {
                return;
            }
            ticks = due;
            let calls = self.calls.load(Ordering::Acquire);
            idle = if calls == seen && is_quiet(calls) { idle + 1 } else { 0 };
            seen = calls;
            if idle >= IDLE_TICKS {
                self.sleep(seen);
                idle = 0;
                // What passed meanwhile is no guest's time: the call that woke this thread has its first tick whole.
                (start, ticks) = (Instant::now(), 0);
            }
        }
    }

    /// Sleeps until a call begins; `seen` were the calls before.
    fn sleep(&self, seen: u64) {
        self.asleep.store(true, Ordering::SeqCst);
        if self.calls.load(Ordering::SeqCst) != seen {
            self.asleep.store(false, Ordering::SeqCst);
        }
        // Woken by a call, which takes `asleep` back, by the end, or by nobody.
        while self.asleep.load(Ordering::SeqCst) && !self.ended.load(Ordering::SeqCst) {
            std::thread::park();
        }
    }
}

fn is_quiet(calls: u64) -> bool {
    calls.is_multiple_of(BEGUN)
}

/// Processor time that this thread has used so far.
pub(crate) fn thread_cpu_time() -> Duration {
    ClockId::CLOCK_THREAD_CPUTIME_ID.now().map_or(Duration::ZERO, Duration::from)
}

/// Processor time of one guest, summed over the intervals between looks at its thread's clock.
///
/// On a virtual machine that clock is not to be trusted with a single interval: of the time in which the hypervisor runs
/// somebody else, the kernel books some as the thread's own, 324 of 328 ms in one that was seen. A guest that computes is looked at
/// about once a tick. So the first few intervals that are much longer count as a tick: for a plugin to which that happens
/// now and then ([`Credit`]).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Toll {
    spent: Duration,
    long: u32,
    forgiven_max: u32,
}

impl Toll {
    const LONG_MIN: Duration = Duration::from_millis(2);

    pub(crate) fn add(&mut self, interval: Duration) {
        let is_long = interval >= Self::LONG_MIN;
        let is_forgiven = is_long && self.long < self.forgiven_max;
        self.long += u32::from(is_long);
        self.spent = self.spent.saturating_add(if is_forgiven { TICK } else { interval });
    }

    pub(crate) fn spent(&self) -> Duration {
        self.spent
    }
}

/// What one plugin is still forgiven. The hypervisor meets everybody now and then; a plugin that has long intervals call
/// after call does something that cannot be looked into, such as copying its whole memory, and pays for all of it.
#[derive(Debug, Default)]
pub(crate) struct Credit {
    /// Long intervals lately: more by each, less by one with each call that has none.
    long: AtomicU32,
}

impl Credit {
    /// Of one call.
    const FORGIVEN_MAX: u32 = 3;
    /// Long intervals after which nothing is forgiven.
    const LONG_MAX: u32 = 8;

    /// For the next call.
    pub(crate) fn toll(&self) -> Toll {
        let is_used_up = self.long.load(Ordering::Relaxed) >= Self::LONG_MAX;
        let forgiven_max = if is_used_up { 0 } else { Self::FORGIVEN_MAX };
        Toll { spent: Duration::ZERO, long: 0, forgiven_max }
    }

    /// A call has ended; none: it was over before anybody looked.
    pub(crate) fn settle(&self, toll: Option<Toll>) {
        let long = toll.map_or(0, |toll| toll.long);
        if long == 0 && self.long.load(Ordering::Relaxed) == 0 {
            return;
        }
        let settled = |now: u32| {
            Some(if long == 0 {
                now.saturating_sub(1)
            } else {
                now.saturating_add(long).min(2 * Self::LONG_MAX)
            })
        };
        // Always some.
        let _ = self.long.fetch_update(Ordering::Relaxed, Ordering::Relaxed, settled);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spent(credit: &Credit, intervals: &[u64]) -> u128 {
        let mut toll = credit.toll();
        intervals.iter().for_each(|ms| toll.add(Duration::from_millis(*ms)));
        credit.settle(Some(toll));
        toll.spent().as_millis()
    }

    #[test]
    fn the_clock_ticks_while_a_call_runs_and_sleeps_after_the_last() {
        let ticks = Arc::new(AtomicU64::new(0));
        let ticker = Ticker::ticking_with({
            let ticks = Arc::clone(&ticks);
            move |count| {
                ticks.fetch_add(u64::try_from(count).expect("few"), Ordering::SeqCst);
                true
            }
        });
        let ticker = ticker.expect("a thread");
        let ticked = || ticks.load(Ordering::SeqCst);
        let is_asleep = || ticker.pulse.asleep.load(Ordering::SeqCst);
        let until = |what: &dyn Fn() -> bool| {
            while !what() {
                std::thread::yield_now();
            }
        };
        for _ in 0..3 {
            until(&is_asleep);
            let before = ticked();
            std::thread::sleep(TICK * 10);
            assert_eq!(ticked(), before, "nobody wants to know the time");
            let calls = [ticker.ticking(), ticker.ticking()];
            // Twice as long as it stays awake without calls.
            until(&|| ticked() >= before + 2 * u64::from(IDLE_TICKS));
            assert!(!is_asleep(), "two calls run, and no other begins");
            drop(calls);
        }
        until(&is_asleep);
    }

    #[test]
    fn a_few_long_intervals_are_the_hypervisors() {
        let credit = Credit::default();
        assert_eq!(spent(&credit, &[1, 324, 1, 50, 2]), 5);
        for _ in 0..3 {
            credit.settle(None);
        }
        assert_eq!(spent(&credit, &[1, 324, 50, 2, 40]), 44, "the fourth of one call is its own");
    }

    #[test]
    fn whoever_has_them_call_after_call_pays_until_it_has_none() {
        let credit = Credit::default();
        let calls: Vec<u128> = (0..8).map(|_| spent(&credit, &[35, 35, 35])).collect();
        assert_eq!(calls, [3, 3, 3, 105, 105, 105, 105, 105]);
        for _ in 0..9 {
            assert_eq!(spent(&credit, &[1]), 1);
        }
        assert_eq!(spent(&credit, &[35]), 1);
    }
}
