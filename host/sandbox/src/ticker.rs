//! The clock of engines: one thread that advances their epochs once a millisecond of wall time.
//!
//! One thread instead of a timer per call: a guest compares a counter at each loop and function entry,
//! which costs it nearly nothing, and a timer per call would cost more than the call.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::time::ClockId;
use wasmtime::Engine;

pub(crate) const TICK: Duration = Duration::from_millis(1);

/// Ends its thread when dropped.
pub(crate) struct Ticker {
    ended: Arc<AtomicBool>,
}

impl Ticker {
    pub(crate) fn start<const N: usize>(engines: [&Engine; N]) -> std::io::Result<Self> {
        let ended = Arc::new(AtomicBool::new(false));
        // Weak: the thread must not be what keeps an engine alive.
        let engines = engines.map(Engine::weak);
        let stop = Arc::clone(&ended);
        std::thread::Builder::new().name("souk-epoch".to_owned()).stack_size(64 << 10).spawn(move || {
            let start = Instant::now();
            let mut ticks = 0;
            while !stop.load(Ordering::Relaxed) {
                std::thread::sleep(TICK);
                // The thread may have slept longer than it asked for; the epoch stays true to the wall clock.
                let due = start.elapsed().as_millis();
                for engine in &engines {
                    let Some(engine) = engine.upgrade() else { return };
                    for _ in ticks..due {
                        engine.increment_epoch();
                    }
                }
                ticks = due;
            }
        })?;
        Ok(Self { ended })
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
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
