//! An instance of a component, and one run of it: from its instantiation to the end of its work for a request.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;

use http::uri::{Authority, Scheme};
use http::{Request, Response, header};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use wasmtime::Store;
use wasmtime_wasi_http::p2::bindings::http::types::Scheme as Scheme02;
use wasmtime_wasi_http::{FieldMap, WasiBody, WasiHttpView as _, p2, p3};

use super::HttpFault;
use super::body::Outcome;
use super::engine::{HttpPlugin, Pre};
use super::guest::Guest;
use super::meter::{Meter, Metered};
use super::outbound::Indoors;
use super::service::{Idle, Settled};
use crate::fault::classify;

/// What a guest answers with, whatever version of wasi:http it speaks.
pub(super) enum Head {
    Response(Response<WasiBody>),
    /// The name of its error.
    Error(String),
}

/// A store, with an instance in it as soon as it has run once.
pub(super) struct Live {
    store: Store<Guest>,
    export: Option<Export>,
    meter: Arc<Meter>,
    served: u32,
}

enum Export {
    V02(p2::bindings::Proxy),
    V03(p3::bindings::Service),
}

impl Live {
    /// A store with every limit armed: instantiation is part of the request.
    pub(super) fn new(plugin: &HttpPlugin, settled: &Arc<Settled>) -> Self {
        let engine = plugin.engine();
        let limits = engine.limits();
        let meter = Meter::new(limits.processor_max, plugin.credit().toll());
        let guest = Guest::new(limits, settled);
        let mut store = Store::new(plugin.wasm(), guest);
        store.limiter(|guest| &mut guest.space);
        store.set_hostcall_fuel(limits.lifted_bytes_max);
        store.set_max_component_handles(limits.handles_max);
        let on_tick = Arc::clone(&meter);
        store.epoch_deadline_callback(move |_| Ok(on_tick.on_tick()));
        store.set_epoch_deadline(1);
        Self { store, export: None, meter, served: 0 }
    }

    async fn serve(
        &mut self,
        pre: &Pre,
        request: Request<WasiBody>,
        send_head: oneshot::Sender<Head>,
    ) -> Result<(), HttpFault> {
        let Self { store, export, .. } = self;
        if export.is_none() {
            let made = match pre {
                Pre::V02(pre) => pre.instantiate_async(&mut *store).await.map(Export::V02),
                Pre::V03(pre) => pre.instantiate_async(&mut *store).await.map(Export::V03),
            };
            *export = Some(made.map_err(|error| failed(&error, store))?);
        }
        match export {
            Some(Export::V02(proxy)) => serve_02(store, proxy, request, send_head).await,
            Some(Export::V03(service)) => serve_03(store, service, request, send_head).await,
            None => Err(HttpFault::Internal("there is no instance".to_owned())),
        }
    }

    /// Ready for another request, or used up.
    fn renew(mut self, plugin: &HttpPlugin, reuse: u32) -> Option<Self> {
        self.served += 1;
        let limits = plugin.engine().limits();
        let guest = self.store.data_mut();
        if self.served >= reuse || guest.is_abroad() || guest.is_cluttered(limits) {
            return None;
        }
        guest.renew(limits);
        self.meter.renew(plugin.credit().toll());
        self.store.set_epoch_deadline(1);
        Some(self)
    }
}

fn failed(error: &wasmtime::Error, store: &Store<Guest>) -> HttpFault {
    classify(error, store.data().space.refused()).into()
}

async fn serve_02(
    store: &mut Store<Guest>,
    proxy: &p2::bindings::Proxy,
    request: Request<WasiBody>,
    send_head: oneshot::Sender<Head>,
) -> Result<(), HttpFault> {
    let scheme = match request.uri().scheme() {
        Some(scheme) if *scheme == Scheme::HTTPS => Scheme02::Https,
        _ => Scheme02::Http,
    };
    let mut http = store.data_mut().http();
    let request = http
        .new_incoming_request(scheme, request)
        .map_err(|error| HttpFault::BadRequest(error.to_string()))?;
    let out = http
        .new_response_outparam_from_callback(move |answered| {
            let head = match answered {
                Ok(response) => Head::Response(response),
                Err(code) => Head::Error(format!("{code:?}")),
            };
            // Fails when nobody waits any more: then this run is about to be ended.
            let _ = send_head.send(head);
        })
        .map_err(|error| HttpFault::Internal(error.to_string()))?;
    let ended = proxy.wasi_http_incoming_handler().call_handle(&mut *store, request, out).await;
    ended.map_err(|error| failed(&error, store))?;
    store.data_mut().abort_unfinished();
    Ok(())
}

async fn serve_03(
    store: &mut Store<Guest>,
    service: &p3::bindings::Service,
    request: Request<WasiBody>,
    send_head: oneshot::Sender<Head>,
) -> Result<(), HttpFault> {
    let (parts, body) = request.into_parts();
    let authority = match (parts.uri.authority(), parts.headers.get(header::HOST)) {
        (Some(authority), _) => authority.clone(),
        (None, Some(host)) => Authority::try_from(host.as_bytes())
            .map_err(|error| HttpFault::BadRequest(format!("its host is not valid: {error}")))?,
        (None, None) => return Err(HttpFault::BadRequest("it names no host".to_owned())),
    };
    let scheme = parts.uri.scheme().cloned().unwrap_or(Scheme::HTTP);
    let path = parts.uri.path_and_query().cloned();
    let fields = FieldMap::new_immutable(store.data_mut().http().hooks, parts.headers);
    let (request, uploaded) =
        p3::Request::new(parts.method, Some(scheme), Some(authority), path, fields, None, body);
    let ended = store
        .run_concurrent(async |accessor| {
            let head = match service.handle(accessor, request).await? {
                Ok(response) => {
                    let response = accessor.with(|mut access| response.into_http(&mut access, uploaded))?;
                    Head::Response(response)
                }
                Err(code) => Head::Error(format!("{code:?}")),
            };
            // As above.
            let _ = send_head.send(head);
            // The answer's body is written by the guest's task, which goes on after it has returned the head.
            poll_fn(|context| accessor.poll_no_interesting_tasks(context)).await;
            wasmtime::error::Ok(())
        })
        .await;
    match ended {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) | Err(error) => Err(failed(&error, store)),
    }
}

/// One request's run: on its caller's task until it first waits, then on a task of its own.
pub(super) struct Run {
    pub(super) live: Live,
    pub(super) plugin: Arc<HttpPlugin>,
    pub(super) idle: Arc<Idle>,
    pub(super) outcome: Arc<Outcome>,
    pub(super) place: OwnedSemaphorePermit,
    pub(super) indoors: Option<Arc<dyn Indoors>>,
}

impl Run {
    pub(super) async fn finish(self, request: Request<WasiBody>, send_head: oneshot::Sender<Head>) {
        // The place first, so dropped last: an instance without a place is one more than there may be.
        let Self { place: _place, mut live, plugin, idle, outcome, indoors } = self;
        live.store.data_mut().let_in(indoors);
        let settled = Arc::clone(&live.store.data().settled);
        // Declared after the store, so dropped before it, also by a panic of the host: then the body must not end
        // as if the guest had finished it.
        let last_word = LastWord { outcome, settled: &settled };
        settled.metrics.running.inc();
        let _running = AtWork(&settled);
        let _ticking = plugin.engine().ticking();
        let wall_max = plugin.engine().limits().wall_max;
        let meter = Arc::clone(&live.meter);
        let result = {
            let serving = pin!(live.serve(plugin.pre(), request, send_head));
            let metered = Metered { meter: Arc::clone(&meter), future: serving };
            in_turn(&settled, wall_max, metered).await
        };
        plugin.credit().settle(meter.toll());
        if let Err(fault) = &result {
            settled.metrics.count_fault(fault.name());
            tracing::debug!(target: "souk::guest", component = &**plugin.label(), fault = fault.name(), "{fault}");
        }
        let well = result.is_ok();
        // The first word counts, and a panic's comes after it.
        let _ = last_word.outcome.set(result);
        if well
            && settled.reuse > 1
            && settled.room.memory.is_roomy()
            && let Some(live) = live.renew(&plugin, settled.reuse)
        {
            idle.put(live);
        }
    }
}

/// Runs a guest within its wall time and, where sites share the processors, in its site's turns.
async fn in_turn(
    settled: &Settled,
    wall_max: std::time::Duration,
    guest: impl Future<Output = Result<(), HttpFault>> + Send,
) -> Result<(), HttpFault> {
    let ended = match &settled.share {
        None => tokio::time::timeout(wall_max, guest).await,
        Some((share, site)) => tokio::time::timeout(wall_max, share.pace(site, guest))
            .await
            .map(|paced| paced.unwrap_or_else(|crowded| Err(HttpFault::Crowded(crowded)))),
    };
    ended.unwrap_or(Err(HttpFault::Timeout))
}

/// Counts a guest at work.
struct AtWork<'a>(&'a Settled);

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        self.0.metrics.running.dec();
    }
}

/// Says how the run has ended if it could not say so itself: its task was ended, or the host has panicked in it.
struct LastWord<'a> {
    outcome: Arc<Outcome>,
    settled: &'a Settled,
}

impl Drop for LastWord<'_> {
    fn drop(&mut self) {
        let panics = std::thread::panicking();
        let why = if panics { "the host has panicked" } else { "the guest's task was ended" };
        let fault = HttpFault::Internal(why.to_owned());
        // A task is ended by somebody who knows why. A panic is nobody's but the host's, and counted here.
        let name = fault.name();
        if self.outcome.set(Err(fault)).is_ok() && panics {
            self.settled.metrics.count_fault(name);
        }
    }
}
