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
