//! Where a plugin's time goes: a flame graph in the format of the Firefox profiler.
//!
//! One call of a hook is too short for a sampling profiler (some 50 us), so the same call is made again and again,
//! each time in a fresh instance, while a clock of its own stops the guest every 100 us to look at its stack.
//! For a machine of a developer; nothing here runs on a node.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use wasmtime::{AsContext, GuestProfiler};

use crate::fault::Fault;
use crate::hook::{HookPlugin, Invocation};
use crate::metered::Setting;
use crate::record::Subject;

/// Between two looks at the stack. Shorter ones find the thread that advances the clock asleep.
const INTERVAL: Duration = Duration::from_micros(100);

/// What the store of a profiled call carries.
#[derive(Clone)]
pub(crate) struct Sampling(Arc<Shared>);

struct Shared {
    profiler: Mutex<Option<GuestProfiler>>,
    samples: AtomicU64,
}

impl Sampling {
    pub(crate) fn sample(&self, store: impl AsContext) {
        if let Some(profiler) = &mut *self.0.profiler.lock() {
            profiler.sample(store, INTERVAL);
            self.0.samples.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A finished profile.
#[derive(Debug)]
pub struct Profile {
    /// For <https://profiler.firefox.com>.
    pub json: Vec<u8>,
    pub samples: u64,
    pub calls: u64,
}

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    #[error("the call that was to be profiled failed: {0}")]
    Call(Fault),
    #[error("the profiler cannot be set up: {0}")]
    Setup(String),
    #[error("the profiler's clock thread cannot be started: {0}")]
    Clock(std::io::Error),
}

/// Repeats one call for as long as `time` says. `plugin` must be of an engine that does not count instructions, or
/// the counting is what is seen.
pub fn profile(
    plugin: &HookPlugin,
    setting: &Setting<'_>,
    subject: &Subject,
    time: Duration,
) -> Result<Profile, ProfileError> {
    let engine = plugin.engine().wasmtime();
    let component = plugin.component().clone();
    let profiler = GuestProfiler::new_component(engine, setting.plugin.as_str(), INTERVAL, component, [])
        .map_err(|error| ProfileError::Setup(format!("{error:#}")))?;
    let sampling =
        Sampling(Arc::new(Shared { profiler: Mutex::new(Some(profiler)), samples: AtomicU64::new(0) }));
    let ended = AtomicBool::new(false);
    let calls = std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("souk-profile".to_owned())
            .spawn_scoped(scope, || {
                while !ended.load(Ordering::Relaxed) {
                    std::thread::sleep(INTERVAL);
                    engine.increment_epoch();
                }
            })
            .map_err(ProfileError::Clock)?;
        let calls = repeat(plugin, setting, subject, time, &sampling);
        ended.store(true, Ordering::Relaxed);
        calls.map_err(ProfileError::Call)
    })?;
    let profiler = sampling.0.profiler.lock().take().expect("only this function takes it");
    let mut json = Vec::new();
    profiler.finish(&mut json).map_err(|error| ProfileError::Setup(format!("{error:#}")))?;
    Ok(Profile { json, samples: sampling.0.samples.load(Ordering::Relaxed), calls })
}

fn repeat(
    plugin: &HookPlugin,
    setting: &Setting<'_>,
    subject: &Subject,
    time: Duration,
    sampling: &Sampling,
) -> Result<u64, Fault> {
    let start = Instant::now();
    let mut calls = 0;
    while start.elapsed() < time {
        let call = setting.context.call(setting.data);
        let mut invocation =
            Invocation::new(&call, setting.plugin, &setting.context.settings, setting.allowance);
        invocation.profiler = Some(sampling.clone());
        subject.ask(plugin, &invocation)?;
        calls += 1;
    }
    Ok(calls)
}
