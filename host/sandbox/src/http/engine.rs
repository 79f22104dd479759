//! The HTTP engines, and loading a component into the one that its version of `wasi:http` needs.
//!
//! Two wasmtime engines: 0.2 has no use for the component model's concurrency, and is half as fast again without it;
//! 0.3 is made of it. What a component exports decides.

use std::sync::Arc;

use http::{Request, Response};
use souk_commerce::id::Digest;
use wasmtime::component::{Component, Linker};
use wasmtime::{Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};
use wasmtime_wasi::cli::{WasiCli, WasiCliView};
use wasmtime_wasi::p2::bindings::{cli, random};
use wasmtime_wasi::random::{WasiRandom, WasiRandomView};
use wasmtime_wasi_http::{p2, p3};

use super::closed;
use super::guest::Guest;
use super::room::Rooms;
use super::service::{HttpService, IdleCount, Terms};
use super::{Body, HttpFault, HttpLimits, HttpMetrics, Outbound, OutboundLimits, Reach};
use crate::admit;
use crate::fault::{Complaint, EngineError, Refused};
use crate::hook::restrict;
use crate::limits::{CORE_INSTANCES_PER_COMPONENT_MAX, MEMORIES_PER_COMPONENT_MAX, TABLES_PER_COMPONENT_MAX};
use crate::loader::{EngineKind, Loads};
use crate::ticker::{Credit, Ticker, Ticking};

/// Kept resident in a freed slot: see the hook engine. 64 KiB is also the best of the measured row for HTTP guests.
const KEEP_RESIDENT_BYTES: usize = 64 << 10;

/// Compiles HTTP plugins and runs their requests. Cheap to clone.
#[derive(Clone)]
pub struct HttpEngine {
    shared: Arc<Shared>,
}

struct Shared {
    v02: Side,
    v03: Side,
    limits: Arc<HttpLimits>,
    rooms: Rooms,
    metrics: HttpMetrics,
    idle: Arc<IdleCount>,
    ticker: Ticker,
}

/// The engine for one version of `wasi:http`.
struct Side {
    engine: Engine,
    linker: Linker<Guest>,
}

/// A component, linked.
pub(super) enum Pre {
    V02(p2::bindings::ProxyPre<Guest>),
    V03(p3::bindings::ServicePre<Guest>),
}

/// A loaded `wasi:http` component.
pub struct HttpPlugin {
    engine: HttpEngine,
    digest: Digest,
    /// The beginning of the digest: how the log names the component.
    label: Arc<str>,
    pre: Pre,
    credit: Credit,
}

impl HttpEngine {
    /// With the system's network and metrics that nobody reads: for tests and tools.
    pub fn new(limits: HttpLimits) -> Result<Self, EngineError> {
        let metrics = HttpMetrics::default();
        let outbound = Outbound::new(OutboundLimits::default(), Reach::Public, [], metrics.clone())
            .map_err(|error| EngineError::Setup(error.to_string()))?;
        Self::with(limits, outbound, metrics)
    }

    pub fn with(limits: HttpLimits, outbound: Outbound, metrics: HttpMetrics) -> Result<Self, EngineError> {
        let setup = |error: wasmtime::Error| EngineError::Setup(format!("{error:#}"));
        let v02 = Side::new(&config_02(&limits)).map_err(setup)?;
        let mut v03 = Side::new(&config_03(&limits)).map_err(setup)?;
        v03.link_03().map_err(setup)?;
        let ticker = Ticker::start([&v02.engine, &v03.engine]).map_err(EngineError::Ticker)?;
        let idle = IdleCount::of_pool(limits.requests_max);
        let limits = Arc::new(limits);
        let rooms = Rooms::new(&limits, outbound);
        let shared = Shared { v02, v03, limits, rooms, metrics, idle, ticker };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Checks a component, compiles it in this process, and links it. For tests and the command line: a node has a
    /// [`crate::Loader`].
    pub fn load(&self, component: &[u8]) -> Result<Arc<HttpPlugin>, Refused> {
        let kind = self.admit(component)?;
        let compiled = Component::new(self.wasm(kind), component)
            .map_err(|error| Refused::because("does_not_compile", format!("{error:#}")))?;
        self.link(kind, compiled, Digest::of(component))
    }

    pub fn limits(&self) -> &Arc<HttpLimits> {
        &self.shared.limits
    }

    /// To be held as long as a guest may run: without it its clock stands still.
    pub(super) fn ticking(&self) -> Ticking<'_> {
        self.shared.ticker.ticking()
    }

    pub(super) fn rooms(&self) -> &Rooms {
        &self.shared.rooms
    }

    pub(super) fn metrics(&self) -> &HttpMetrics {
        &self.shared.metrics
    }

    pub(super) fn idle(&self) -> &Arc<IdleCount> {
        &self.shared.idle
    }

    fn side(&self, kind: EngineKind) -> &Side {
        match kind {
            EngineKind::Http03 => &self.shared.v03,
            EngineKind::Http02 | EngineKind::Hooks => &self.shared.v02,
        }
    }
}

impl Side {
    /// With WASI 0.2, of which components for 0.3 import parts too: all of it, because language runtimes import all of it
    /// to start, but for what is closed to each ([`closed`]). What the context grants is next to nothing.
    fn new(config: &Config) -> wasmtime::Result<Self> {
        let engine = Engine::new(config)?;
        let mut linker = Linker::new(&engine);
        let l = &mut linker;
        wasmtime_wasi::p2::add_to_linker_proxy_interfaces_async(l)?;
        random::insecure::add_to_linker::<_, WasiRandom>(l, WasiRandomView::random)?;
        random::insecure_seed::add_to_linker::<_, WasiRandom>(l, WasiRandomView::random)?;
        cli::exit::add_to_linker::<_, WasiCli>(l, WasiCliView::cli)?;
        cli::environment::add_to_linker::<_, WasiCli>(l, WasiCliView::cli)?;
        cli::terminal_input::add_to_linker::<_, WasiCli>(l, WasiCliView::cli)?;
        cli::terminal_output::add_to_linker::<_, WasiCli>(l, WasiCliView::cli)?;
        cli::terminal_stdin::add_to_linker::<_, WasiCli>(l, WasiCliView::cli)?;
        cli::terminal_stdout::add_to_linker::<_, WasiCli>(l, WasiCliView::cli)?;
        cli::terminal_stderr::add_to_linker::<_, WasiCli>(l, WasiCliView::cli)?;
        p2::add_only_http_to_linker_async(l)?;
        wasmtime_wasi_config::add_to_linker(l, Guest::config)?;
        Ok(Self { engine, linker })
    }

    fn link_03(&mut self) -> wasmtime::Result<()> {
        let l = &mut self.linker;
        wasmtime_wasi::p3::cli::add_to_linker(l)?;
        wasmtime_wasi::p3::clocks::add_to_linker(l)?;
        wasmtime_wasi::p3::random::add_to_linker(l)?;
        p3::add_to_linker(l)
    }
}

impl Loads for HttpEngine {
    type Plugin = HttpPlugin;
    const KINDS: &'static [EngineKind] = &[EngineKind::Http02, EngineKind::Http03];

    fn wasm(&self, kind: EngineKind) -> &Engine {
        &self.side(kind).engine
    }

    fn admit(&self, component: &[u8]) -> Result<EngineKind, Refused> {
        let capabilities = admit::http(component, self.shared.limits.memory_bytes_max)?;
        // A component that speaks both is asked in the way that is quicker.
        let speaks_02 =
            capabilities.exports.iter().any(|export| export.starts_with("wasi:http/incoming-handler@0.2."));
        Ok(if speaks_02 { EngineKind::Http02 } else { EngineKind::Http03 })
    }

    fn link(
        &self,
        kind: EngineKind,
        compiled: Component,
        digest: Digest,
    ) -> Result<Arc<HttpPlugin>, Refused> {
        let pre = closed::link(&self.side(kind).linker, &compiled)
            .and_then(|linker| linker.instantiate_pre(&compiled))
            .map_err(|error| Refused::because("import_type", format!("{error:#}")))?;
        let pre = match kind {
            EngineKind::Http03 => p3::bindings::ServicePre::new(pre).map(Pre::V03),
            EngineKind::Http02 | EngineKind::Hooks => p2::bindings::ProxyPre::new(pre).map(Pre::V02),
        };
        let pre = pre.map_err(|error| Refused {
            complaints: vec![Complaint::new("export_type", &format!("{error:#}"))],
        })?;
        let label = digest.to_string()[..12].into();
        Ok(Arc::new(HttpPlugin { engine: self.clone(), digest, label, pre, credit: Credit::default() }))
    }

    fn memory_bytes_max(&self) -> usize {
        self.shared.limits.memory_bytes_max
    }
}

impl HttpPlugin {
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// One request to a fresh instance that was granted nothing. See [`HttpService::handle`].
    pub async fn handle<B>(self: &Arc<Self>, request: Request<B>) -> Result<Response<Body>, HttpFault>
    where
        B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        HttpService::new(Arc::clone(self), Terms::default()).handle(request).await
    }

    /// Machine code in memory.
    pub fn code_bytes(&self) -> usize {
        let component = match &self.pre {
            Pre::V02(pre) => pre.instance_pre().component(),
            Pre::V03(pre) => pre.instance_pre().component(),
        };
        let image = component.image_range();
        image.end.addr() - image.start.addr()
    }

    pub(super) fn engine(&self) -> &HttpEngine {
        &self.engine
    }

    pub(super) fn label(&self) -> &Arc<str> {
        &self.label
    }

    pub(super) fn credit(&self) -> &Credit {
        &self.credit
    }

    pub(super) fn pre(&self) -> &Pre {
        &self.pre
    }

    pub(super) fn wasm(&self) -> &Engine {
        match &self.pre {
            Pre::V02(pre) => pre.engine(),
            Pre::V03(pre) => pre.engine(),
        }
    }
}

/// The settings that code of this kind is compiled for. The limits of requests are not among them.
pub(crate) fn default_config(kind: EngineKind) -> Config {
    match kind {
        EngineKind::Http03 => config_03(&HttpLimits::default()),
        EngineKind::Http02 | EngineKind::Hooks => config_02(&HttpLimits::default()),
    }
}

fn config_02(limits: &HttpLimits) -> Config {
    let mut config = config(limits);
    // 41 k requests a second instead of 27 k.
    config.concurrency_support(false);
    config
}

fn config_03(limits: &HttpLimits) -> Config {
    let mut config = config(limits);
    config.concurrency_support(true).wasm_component_model_async(true);
    config
}

fn config(limits: &HttpLimits) -> Config {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(limits.requests_max)
        // A number, and no memory until it is used.
        .total_core_instances(limits.requests_max.saturating_mul(CORE_INSTANCES_PER_COMPONENT_MAX))
        // Address space. A site whose component has as many of each as any may takes a quarter of them in all its places.
        .total_memories(limits.requests_max.max(MEMORIES_PER_COMPONENT_MAX) * 4)
        .total_tables(limits.requests_max.max(TABLES_PER_COMPONENT_MAX / 4) * 16)
        .total_stacks(limits.requests_max)
        .max_core_instances_per_component(CORE_INSTANCES_PER_COMPONENT_MAX)
        .max_memories_per_component(MEMORIES_PER_COMPONENT_MAX)
        .max_tables_per_component(TABLES_PER_COMPONENT_MAX)
        .max_memory_size(limits.memory_bytes_max)
        .table_elements(limits.table_elements_max)
        .linear_memory_keep_resident(KEEP_RESIDENT_BYTES)
        .table_keep_resident(KEEP_RESIDENT_BYTES)
        .async_stack_keep_resident(KEEP_RESIDENT_BYTES);
    let mut config = Config::new();
    config
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool))
        .memory_init_cow(true)
        .epoch_interruption(true)
        .max_wasm_stack(limits.stack_bytes_max);
    restrict(&mut config);
    config
}
