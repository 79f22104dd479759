//! The hook engine: wasmtime with every limit set, and the way of a component into it.

use std::sync::Arc;

use souk_commerce::id::Digest;
use wasmtime::component::{Component, HasSelf, Linker};
use wasmtime::{Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, Store};

use super::Invocation;
use super::bindings::souk::plugin::host;
use super::guest::{Deadline, Guest};
use super::plugin::HookPlugin;
use crate::admit;
use crate::fault::{EngineError, Refused};
use crate::limits::{
    CORE_INSTANCES_PER_COMPONENT_MAX, HookLimits, MEMORIES_PER_COMPONENT_MAX, TABLES_PER_COMPONENT_MAX,
};
use crate::loader::{EngineKind, Loads};
use crate::ticker::{Ticker, Ticking, Toll, thread_cpu_time};

/// Memory of a freed slot that stays resident and is zeroed or reset in place instead of being given back to the
/// kernel: about what a hook dirties. Within it a page costs 0.1 us per call, beyond it 1 us.
const KEEP_RESIDENT_BYTES: usize = 64 << 10;

/// Compiles hook plugins and runs their calls. Cheap to clone; the clock thread ends with the last clone and the
/// last [`HookPlugin`].
#[derive(Clone)]
pub struct HookEngine {
    shared: Arc<Shared>,
}

struct Shared {
    engine: Engine,
    linker: Linker<Guest>,
    limits: HookLimits,
    metered: bool,
    ticker: Ticker,
}

impl HookEngine {
    pub fn new(limits: HookLimits) -> Result<Self, EngineError> {
        Self::with(limits, false)
    }

    /// One that counts instructions: see [`crate::metered`].
    pub(crate) fn with(limits: HookLimits, metered: bool) -> Result<Self, EngineError> {
        let setup = |error: wasmtime::Error| EngineError::Setup(format!("{error:#}"));
        let mut config = config(&limits);
        config.consume_fuel(metered);
        let engine = Engine::new(&config).map_err(setup)?;
        let mut linker = Linker::new(&engine);
        host::add_to_linker::<Guest, HasSelf<Guest>>(&mut linker, |guest| guest).map_err(setup)?;
        let ticker = Ticker::start([&engine]).map_err(EngineError::Ticker)?;
        Ok(Self { shared: Arc::new(Shared { engine, linker, limits, metered, ticker }) })
    }

    /// Checks a component's structure and contract, compiles it in this process, and resolves everything that can be
    /// resolved before a call. For tests and a merchant's own tools: a node has a [`crate::Loader`].
    pub fn load(&self, component: &[u8]) -> Result<Arc<HookPlugin>, Refused> {
        admit::hooks(component, self.shared.limits.memory_bytes_max)?;
        let compiled = Component::new(&self.shared.engine, component)
            .map_err(|error| Refused::because("does_not_compile", format!("{error:#}")))?;
        self.link(compiled, Digest::of(component))
    }

    fn link(&self, compiled: Component, digest: Digest) -> Result<Arc<HookPlugin>, Refused> {
        let border = compiled.component_type();
        let hooks = admit::hooks_among(border.exports(&self.shared.engine).map(|(name, _)| name));
        let pre = self
            .shared
            .linker
            .instantiate_pre(&compiled)
            .map_err(|error| Refused::because("import_type", format!("{error:#}")))?;
        HookPlugin::link(self.clone(), digest, pre, &hooks).map(Arc::new)
    }

    pub fn limits(&self) -> &HookLimits {
        &self.shared.limits
    }

    /// For [`crate::profile`], which advances the clock itself.
    pub(crate) fn wasmtime(&self) -> &Engine {
        &self.shared.engine
    }

    pub(super) fn is_metered(&self) -> bool {
        self.shared.metered
    }

    /// To be held as long as a call runs: without it the call's clock stands still.
    pub(super) fn ticking(&self) -> Ticking<'_> {
        self.shared.ticker.ticking()
    }

    /// A store for one call, its deadline already running: instantiation is part of the call.
    pub(super) fn store(&self, invocation: &Invocation<'_>, toll: Toll) -> Store<Guest> {
        let limits = &self.shared.limits;
        let guest = Guest::new(
            limits,
            invocation.allowance,
            toll,
            Arc::clone(invocation.call.data),
            invocation.plugin.clone(),
            invocation.profiler.clone(),
        );
        let mut store = Store::new(&self.shared.engine, guest);
        store.limiter(|guest| &mut guest.space);
        store.set_hostcall_fuel(limits.lifted_bytes_max);
        if self.shared.metered {
            store.set_fuel(crate::metered::FUEL).expect("a metered engine consumes fuel");
        }
        store.epoch_deadline_callback(|mut context| {
            if let Some(profiler) = context.data().profiler.clone() {
                profiler.sample(&context);
            }
            Ok(context.data_mut().deadline.on_tick(thread_cpu_time())?)
        });
        store.set_epoch_deadline(Deadline::FIRST_TICKS);
        store
    }
}

impl Loads for HookEngine {
    type Plugin = HookPlugin;
    const KINDS: &'static [EngineKind] = &[EngineKind::Hooks];

    fn wasm(&self, _: EngineKind) -> &Engine {
        &self.shared.engine
    }

    fn admit(&self, component: &[u8]) -> Result<EngineKind, Refused> {
        admit::hooks(component, self.shared.limits.memory_bytes_max).map(|_| EngineKind::Hooks)
    }

    fn link(&self, _: EngineKind, compiled: Component, digest: Digest) -> Result<Arc<HookPlugin>, Refused> {
        Self::link(self, compiled, digest)
    }

    fn memory_bytes_max(&self) -> usize {
        self.shared.limits.memory_bytes_max
    }
}

/// The settings that code is compiled for. The limits of calls are not among them.
pub(crate) fn default_config() -> Config {
    config(&HookLimits::default())
}

fn config(limits: &HookLimits) -> Config {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(limits.calls_max)
        // A number, and no memory until it is used.
        .total_core_instances(limits.calls_max.saturating_mul(CORE_INSTANCES_PER_COMPONENT_MAX))
        // Address space, for 32 calls at a time of a component that has as many of each as any may: a site of such
        // calls has at most all turns but one, and must not leave the others' calls without.
        .total_memories(limits.calls_max.max(MEMORIES_PER_COMPONENT_MAX) * 4)
        .total_tables(limits.calls_max.max(TABLES_PER_COMPONENT_MAX / 4) * 16)
        .max_core_instances_per_component(CORE_INSTANCES_PER_COMPONENT_MAX)
        .max_memories_per_component(MEMORIES_PER_COMPONENT_MAX)
        .max_tables_per_component(TABLES_PER_COMPONENT_MAX)
        .max_memory_size(limits.memory_bytes_max)
        .table_elements(limits.table_elements_max)
        .linear_memory_keep_resident(KEEP_RESIDENT_BYTES)
        .table_keep_resident(KEEP_RESIDENT_BYTES);
    let mut config = Config::new();
    config
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool))
        .memory_init_cow(true)
        .epoch_interruption(true)
        .max_wasm_stack(limits.stack_bytes_max)
        // Nothing asynchronous runs here, and without the tables for it a call costs 145 ns instead of 507.
        .concurrency_support(false)
        // The same input gives the same output on every machine.
        .cranelift_nan_canonicalization(true)
        .relaxed_simd_deterministic(true);
    restrict(&mut config);
    config
}

/// What no guest of ours needs and no advisory should reach us through.
pub(crate) fn restrict(config: &mut Config) {
    config
        .wasm_memory64(false)
        .wasm_relaxed_simd(false)
        .wasm_stack_switching(false)
        .wasm_wide_arithmetic(false)
        .wasm_custom_page_sizes(false)
        .wasm_component_model_error_context(false)
        // The engine for wasi:http 0.3 allows it again.
        .wasm_component_model_async(false)
        .wasm_component_model_map(false)
        .wasm_component_model_fixed_length_lists(false)
        .wasm_component_model_implements(false)
        // A trap reports function names; a hostile DWARF section is parsed by nobody.
        .wasm_backtrace_details(wasmtime::WasmBacktraceDetails::Disable);
    config.wasm_features(
        wasmtime::WasmFeatures::GC
            | wasmtime::WasmFeatures::FUNCTION_REFERENCES
            | wasmtime::WasmFeatures::EXCEPTIONS
            | wasmtime::WasmFeatures::LEGACY_EXCEPTIONS
            | wasmtime::WasmFeatures::THREADS
            | wasmtime::WasmFeatures::SHARED_EVERYTHING_THREADS,
        false,
    );
}
