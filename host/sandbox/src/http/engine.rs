//! The HTTP engine, loading a component into it, and the way of one request through a guest.

use std::error::Error as StdError;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http::uri::Scheme as UriScheme;
use http::{HeaderName, Request, Response};
use http_body_util::BodyExt as _;
use souk_commerce::id::Digest;
use tokio::sync::oneshot;
use wasmtime::component::{Component, Linker, ResourceTable};
use wasmtime::{Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, Store};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;
use wasmtime_wasi_http::{
    DEFAULT_FORBIDDEN_HEADERS, Error as WasiHttpError, ForbiddenHeaderFilter, RequestOptions, WasiBody,
    WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks, WasiHttpView,
};

use super::body::{Body, Outcome, Running};
use super::meter::{Meter, Metered};
use super::output::Output;
use super::{HttpFault, HttpLimits};
use crate::admit;
use crate::fault::{Complaint, EngineError, Refused, bounded, classify};
use crate::hook::{Space, restrict};
use crate::limits::{CORE_INSTANCES_PER_COMPONENT_MAX, MEMORIES_PER_COMPONENT_MAX, TABLES_PER_COMPONENT_MAX};
use crate::ticker::Ticker;

/// How much is shown of the error that a guest answers with: some codes carry a text of its choice.
const CODE_BYTES_MAX: usize = 200;
/// Kept resident in a freed slot: see the hook engine. 64 KiB is also the best of the measured row for HTTP guests.
const KEEP_RESIDENT_BYTES: usize = 64 << 10;

/// Compiles HTTP plugins and runs their requests. Cheap to clone.
#[derive(Clone)]
pub struct HttpEngine {
    shared: Arc<Shared>,
}

struct Shared {
    engine: Engine,
    linker: Linker<Guest>,
    limits: HttpLimits,
    _ticker: Ticker,
}

/// A loaded `wasi:http` component.
pub struct HttpPlugin {
    engine: HttpEngine,
    digest: Digest,
    /// The beginning of the digest: how the log names the component.
    label: Arc<str>,
    pre: ProxyPre<Guest>,
}

impl HttpEngine {
    pub fn new(limits: HttpLimits) -> Result<Self, EngineError> {
        let setup = |error: wasmtime::Error| EngineError::Setup(format!("{error:#}"));
        let engine = Engine::new(&config(&limits)).map_err(setup)?;
        let mut linker = Linker::new(&engine);
        // All of WASI 0.2 is linked, because language runtimes import all of it to start; what the context grants
        // is next to nothing.
        wasmtime_wasi::p2::add_to_linker_async(&mut linker).map_err(setup)?;
        wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker).map_err(setup)?;
        let ticker = Ticker::start(&engine).map_err(EngineError::Ticker)?;
        Ok(Self { shared: Arc::new(Shared { engine, linker, limits, _ticker: ticker }) })
    }

    /// Checks, compiles and links a component. Takes seconds for a large one.
    pub fn load(&self, component: &[u8]) -> Result<Arc<HttpPlugin>, Refused> {
        let shape = admit::inspect(component, self.shared.limits.memory_bytes_max)?;
        admit::http_contract(&shape)?;
        let compiled = Component::new(&self.shared.engine, component)
            .map_err(|error| Refused::because("does_not_compile", format!("{error:#}")))?;
        let pre = self
            .shared
            .linker
            .instantiate_pre(&compiled)
            .map_err(|error| Refused::because("import_type", format!("{error:#}")))?;
        let pre = ProxyPre::new(pre).map_err(|error| Refused {
            complaints: vec![Complaint::new("export_type", &format!("{error:#}"))],
        })?;
        let digest = Digest::of(component);
        let label = digest.to_string()[..12].into();
        Ok(Arc::new(HttpPlugin { engine: self.clone(), digest, label, pre }))
    }

    pub fn limits(&self) -> &HttpLimits {
        &self.shared.limits
    }
}

impl HttpPlugin {
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Puts one request to a fresh instance and answers as soon as the guest has given the head.
    ///
    /// Must run within a tokio runtime: the guest runs in a task of its own. Cancel safe: dropping the future, or
    /// later the body before its end, stops the guest.
    pub async fn handle<B>(&self, request: Request<B>) -> Result<Response<Body>, HttpFault>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        let limits = &self.engine.shared.limits;
        let meter = Meter::new(limits.processor_max);
        let mut store = Store::new(&self.engine.shared.engine, Guest::new(limits, &self.label));
        store.limiter(|guest| &mut guest.space);
        store.set_hostcall_fuel(limits.lifted_bytes_max);
        store.set_max_component_handles(limits.handles_max);
        let on_tick = Arc::clone(&meter);
        store.epoch_deadline_callback(move |_| Ok(on_tick.on_tick()));
        store.set_epoch_deadline(1);

        let (send_head, head) = oneshot::channel();
        let scheme = match request.uri().scheme() {
            Some(scheme) if *scheme == UriScheme::HTTPS => Scheme::Https,
            _ => Scheme::Http,
        };
        let request = request.map(|body| body.map_err(|error| upload_error(error.into())));
        let request = store
            .data_mut()
            .http()
            .new_incoming_request(scheme, request)
            .map_err(|error| HttpFault::BadRequest(error.to_string()))?;
        let out = store
            .data_mut()
            .http()
            .new_response_outparam(send_head)
            .map_err(|error| HttpFault::Internal(error.to_string()))?;

        let outcome = Arc::new(Outcome::new());
        let run = Run {
            store,
            pre: self.pre.clone(),
            meter,
            wall_max: limits.wall_max,
            outcome: Arc::clone(&outcome),
        };
        let running = Running::new(tokio::spawn(run.finish(request, out)).abort_handle());
        match head.await {
            Ok(Ok(response)) => {
                check_head(&response, limits)?;
                Ok(response.map(|inner| Body { inner, outcome, running }))
            }
            Ok(Err(code)) => Err(HttpFault::Guest(bounded(&format!("{code:?}"), CODE_BYTES_MAX))),
            // The sender went with the store, and the outcome was there before.
            Err(_) => Err(match outcome.get() {
                Some(Err(fault)) => fault.clone(),
                Some(Ok(())) | None => HttpFault::NoResponse,
            }),
        }
    }
}

/// One run of a guest, from its instantiation to the end of its work.
struct Run {
    store: Store<Guest>,
    pre: ProxyPre<Guest>,
    meter: Arc<Meter>,
    wall_max: std::time::Duration,
    outcome: Arc<Outcome>,
}

impl Run {
    async fn finish(
        self,
        request: wasmtime::component::Resource<wasmtime_wasi_http::p2::types::HostIncomingRequest>,
        out: wasmtime::component::Resource<wasmtime_wasi_http::p2::types::HostResponseOutparam>,
    ) {
        let Self { mut store, pre, meter, wall_max, outcome } = self;
        // Declared after the store, so dropped before it, also by a panic of the host: then the body must not end
        // as if the guest had finished it.
        let panicked = Panicked(outcome);
        let guest = async {
            let proxy = pre.instantiate_async(&mut store).await?;
            proxy.wasi_http_incoming_handler().call_handle(&mut store, request, out).await
        };
        let ended = tokio::time::timeout(wall_max, Metered { meter, future: Box::pin(guest) }).await;
        let result = match ended {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(classify(&error, store.data().space.refused()).into()),
            Err(_) => Err(HttpFault::Timeout),
        };
        if let Err(fault) = &result {
            tracing::debug!(target: "souk::guest", component = &*store.data().label, fault = fault.name(), "{fault}");
        }
        // The first word counts; nobody else speaks before a panic.
        let _ = panicked.0.set(result);
    }
}

/// Leaves word of a panic, if nothing else was said.
struct Panicked(Arc<OnceLock<Result<(), HttpFault>>>);

impl Drop for Panicked {
    fn drop(&mut self) {
        // Fails when the outcome is already there, as it should be.
        let _ = self.0.set(Err(HttpFault::Internal("the guest's task was ended".to_owned())));
    }
}

/// The data of a store: WASI with nothing in it.
struct Guest {
    wasi: WasiCtx,
    http: WasiHttpCtx,
    hooks: Denied,
    table: ResourceTable,
    space: Space,
    label: Arc<str>,
}

impl Guest {
    fn new(limits: &HttpLimits, label: &Arc<str>) -> Self {
        let mut table = ResourceTable::new();
        table.set_max_capacity(limits.handles_max);
        let wasi = WasiCtx::builder()
            .stdout(Output::new(label, "stdout", limits.output_bytes_max))
            .stderr(Output::new(label, "stderr", limits.output_bytes_max))
            .allow_tcp(false)
            .allow_udp(false)
            .allow_ip_name_lookup(false)
            .build();
        Self {
            wasi,
            http: WasiHttpCtx::new(),
            hooks: Denied,
            table,
            space: Space::new(limits.memory_bytes_max, limits.table_elements_max),
            label: Arc::clone(label),
        }
    }
}

impl WasiView for Guest {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for Guest {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: &mut self.hooks }
    }
}

/// Outbound HTTP is not granted: the guest gets `HTTP-request-denied`, by its name in the standard.
struct Denied;

impl WasiHttpHooks for Denied {
    fn forbidden_header_filter(&mut self) -> ForbiddenHeaderFilter {
        static FILTER: OnceLock<ForbiddenHeaderFilter> = OnceLock::new();
        // Shared: this is asked for with every set of fields.
        Arc::clone(FILTER.get_or_init(|| Arc::new(is_forbidden)))
    }

    fn send_request(
        &mut self,
        _: Request<WasiBody>,
        _: Option<RequestOptions>,
        _: Box<dyn Future<Output = Result<(), WasiHttpError>> + Send>,
    ) -> Box<
        dyn Future<
                Output = Result<
                    (Response<WasiBody>, Box<dyn Future<Output = Result<(), WasiHttpError>> + Send>),
                    WasiHttpError,
                >,
            > + Send,
    > {
        Box::new(std::future::ready(Err(WasiHttpError::HttpRequestDenied)))
    }
}

/// Fields that frame a message or speak for a proxy are the host's to write.
fn is_forbidden(name: &HeaderName) -> bool {
    DEFAULT_FORBIDDEN_HEADERS.contains(name) || matches!(name.as_str(), "forwarded" | "te" | "trailer")
}

fn check_head(response: &Response<HyperOutgoingBody>, limits: &HttpLimits) -> Result<(), HttpFault> {
    let fields = response.headers();
    let bytes: usize = fields.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if fields.len() > limits.fields_max {
        Err(HttpFault::BadResponse(format!("{} fields are more than {}", fields.len(), limits.fields_max)))
    } else if bytes > limits.field_bytes_max {
        Err(HttpFault::BadResponse(format!(
            "{bytes} bytes of fields are more than {}",
            limits.field_bytes_max
        )))
    } else {
        Ok(())
    }
}

fn upload_error(error: Box<dyn StdError + Send + Sync>) -> WasiHttpError {
    match error.downcast::<hyper::Error>() {
        Ok(error) => WasiHttpError::Hyper(*error),
        Err(_) => WasiHttpError::ConnectionTerminated,
    }
}

fn config(limits: &HttpLimits) -> Config {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(limits.requests_max)
        .total_core_instances(limits.requests_max.max(CORE_INSTANCES_PER_COMPONENT_MAX) * 4)
        .total_memories(limits.requests_max * 2)
        .total_tables(limits.requests_max * 4)
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
        .max_wasm_stack(limits.stack_bytes_max)
        // 0.2 guests need no component-model concurrency: 41 k requests a second instead of 27 k.
        .concurrency_support(false);
    restrict(&mut config);
    config
}
