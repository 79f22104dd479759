//! The clock of engines: one thread that advances their epochs once a millisecond of wall time.
//!
//! One thread instead of a timer per call: a guest compares a counter at each loop and function entry,
//! which costs it nearly nothing, and a timer per call would cost more than the call.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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
/// about once a tick. So the first few intervals that are much longer count as a tick; whoever has more of them does
/// something that cannot be looked into, such as copying its whole memory, and pays for it.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Toll {
    spent: Duration,
    odd: u32,
}

impl Toll {
    const ODD_MIN: Duration = Duration::from_millis(2);
    const ODD_MAX: u32 = 3;

    pub(crate) fn add(&mut self, interval: Duration) {
        let is_odd = interval >= Self::ODD_MIN && self.odd < Self::ODD_MAX;
        self.odd += u32::from(is_odd);
        self.spent = self.spent.saturating_add(if is_odd { TICK } else { interval });
    }

    pub(crate) fn spent(&self) -> Duration {
        self.spent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_long_intervals_are_the_hypervisors_and_many_the_guests() {
        let mut toll = Toll::default();
        for ms in [1, 324, 1, 50, 2] {
            toll.add(Duration::from_millis(ms));
        }
        assert_eq!(toll.spent(), Duration::from_millis(5));
        toll.add(Duration::from_millis(40));
        assert_eq!(toll.spent(), Duration::from_millis(45));
    }
}
