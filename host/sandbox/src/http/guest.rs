//! What the store of an HTTP guest holds: WASI with nothing in it but what its terms say.

use std::future::Future;
use std::sync::Arc;

use http::{Request, Response};
use wasmtime::component::ResourceTable;
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_config::WasiConfig;
use wasmtime_wasi_http::p2::body::{HostOutgoingBody, StreamContext};
use wasmtime_wasi_http::{
    Error as WasiHttpError, ForbiddenHeaderFilter, RequestOptions, WasiBody, WasiHttpCtx, WasiHttpCtxView,
    WasiHttpHooks, WasiHttpView,
};

use super::outbound::{Indoors, Outbound, is_reserved};
use super::output::Output;
use super::service::Settled;
use super::{HttpLimits, Stream, head};
use crate::hook::Space;

/// Random bytes that one call may ask for: more is another call, and costs the guest its time.
const RANDOM_BYTES_MAX: u64 = 64 << 10;
/// Fields of one message, as wasi:http counts them (some 40 bytes each beside their text). Half of what it allows by
/// itself, because a guest can hold as many sets of fields as it has handles: 64 MiB, as much as it has memory.
const FIELDS_BYTES_MAX: usize = 64 << 10;
/// A body's chunk, and the chunks of one answer that wait for the network: 192 KiB with the one that is always there.
/// A small answer fits whole, so that its guest ends without having waited.
const CHUNK_BYTES_MAX: usize = 64 << 10;
const CHUNKS_MAX: usize = 2;

/// The data of a store.
pub(super) struct Guest {
    wasi: WasiCtx,
    http: WasiHttpCtx,
    hooks: Hooks,
    table: ResourceTable,
    pub(super) space: Space,
    output: [Output; 2],
    pub(super) settled: Arc<Settled>,
}

impl Guest {
    pub(super) fn new(limits: &HttpLimits, settled: &Arc<Settled>) -> Self {
        let mut table = ResourceTable::new();
        table.set_max_capacity(limits.handles_max);
        let output = [Stream::Stdout, Stream::Stderr]
            .map(|stream| Output::new(&settled.printed, stream, limits.output_bytes_max));
        let mut wasi = WasiCtx::builder();
        wasi.stdout(output[0].clone()).stderr(output[1].clone()).max_random_size(RANDOM_BYTES_MAX);
        if !settled.env.is_empty() {
            wasi.envs(&settled.env);
        }
        let mut http = WasiHttpCtx::new();
        http.set_field_size_limit(FIELDS_BYTES_MAX);
        let outbound = settled.room.outbound.for_run();
        Self {
            wasi: wasi.build(),
            http,
            hooks: Hooks { outbound, settled: Arc::clone(settled), sent: 0, indoors: None },
            table,
            space: Space::new(limits.memory_bytes_max, limits.table_elements_max)
                .within(&settled.room.memory),
            output,
            settled: Arc::clone(settled),
        }
    }

    /// A request has ended well. What its answer's body still lacks will never come: it must not look whole.
    pub(super) fn abort_unfinished(&mut self) {
        for entry in self.table.iter_mut() {
            let entry: &mut dyn std::any::Any = entry;
            if let Some(body) = entry.downcast_mut::<HostOutgoingBody>() {
                let (finished, _) = HostOutgoingBody::new(StreamContext::Response, None, 1, 1);
                std::mem::replace(body, finished).abort();
            }
        }
    }

    /// Whether a request that the guest sent is still under way, or its answer unread: until its instance is gone each
    /// holds a connection, and nobody knows when a quiet service is used next.
    pub(super) fn is_abroad(&self) -> bool {
        self.hooks.outbound.is_under_way()
    }

    /// Whether the guest keeps so many handles that another request might find no place for its own: most guests that
    /// forget to drop one forget it with every request.
    pub(super) fn is_cluttered(&mut self, limits: &HttpLimits) -> bool {
        self.table.iter_mut().take(limits.handles_max / 2).count() >= limits.handles_max / 2
    }

    /// Budgets that are a request's begin anew with the next request of the same instance.
    pub(super) fn renew(&mut self, limits: &HttpLimits) {
        self.hooks.sent = 0;
        self.hooks.indoors = None;
        for output in &self.output {
            output.renew(limits.output_bytes_max);
        }
    }

    /// Who answers this run's requests that do not leave the process.
    pub(super) fn let_in(&mut self, indoors: Option<Arc<dyn Indoors>>) {
        self.hooks.indoors = indoors;
    }

    pub(super) fn config(&mut self) -> WasiConfig<'_> {
        WasiConfig::new(&self.settled.config)
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

/// What wasi:http leaves to its host.
struct Hooks {
    outbound: Outbound,
    settled: Arc<Settled>,
    /// Requests that this run has sent.
    sent: u32,
    /// This run's own: another run of the same instance has another.
    indoors: Option<Arc<dyn Indoors>>,
}

impl WasiHttpHooks for Hooks {
    fn forbidden_header_filter(&mut self) -> ForbiddenHeaderFilter {
        head::forbidden_filter()
    }

    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _: Box<dyn Future<Output = Result<(), WasiHttpError>> + Send>,
    ) -> Box<
        dyn Future<
                Output = Result<
                    (Response<WasiBody>, Box<dyn Future<Output = Result<(), WasiHttpError>> + Send>),
                    WasiHttpError,
                >,
            > + Send,
    > {
        let sent = self.sent;
        self.sent = sent.saturating_add(1);
        let hosts = Arc::clone(&self.settled.hosts);
        let (outbound, options) = (self.outbound.clone(), options.unwrap_or_default());
        let indoors = self.indoors.clone();
        Box::new(async move {
            let nothing_left: Box<dyn Future<Output = _> + Send> = Box::new(std::future::ready(Ok(())));
            let answer = if is_reserved(request.uri()) {
                outbound.answer_indoors(indoors, sent, request, options).await?
            } else {
                outbound.send(hosts, sent, request, options).await?
            };
            Ok((answer, nothing_left))
        })
    }

    fn p2_outgoing_body_buffer_chunks(&mut self) -> usize {
        CHUNKS_MAX
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        CHUNK_BYTES_MAX
    }

    fn p3_outgoing_body_chunk_size(&mut self) -> usize {
        CHUNK_BYTES_MAX
    }

    // What the guest's peers do wrong is told to the guest, not to the operator's log.
    fn p2_error_from_hyper(
        &mut self,
        _: &hyper::Error,
    ) -> wasmtime_wasi_http::p2::bindings::http::types::ErrorCode {
        wasmtime_wasi_http::p2::bindings::http::types::ErrorCode::HttpProtocolError
    }

    fn p3_error_from_hyper(
        &mut self,
        _: &hyper::Error,
    ) -> wasmtime_wasi_http::p3::bindings::http::types::ErrorCode {
        wasmtime_wasi_http::p3::bindings::http::types::ErrorCode::HttpProtocolError
    }
}
