//! A component with its terms (what it may reach and is told), and the way of one request through it.

use std::collections::VecDeque;
use std::error::Error as StdError;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Limited};
use parking_lot::Mutex;
use souk_commerce::id::{PluginName, SiteId};
use souk_commerce::site::Release;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use wasmtime_wasi_config::WasiConfigVariables;
use wasmtime_wasi_http::{Error as WasiHttpError, WasiBody};

use super::body::{Body, Outcome, Running};
use super::engine::HttpPlugin;
use super::live::{Head, Live, Run};
use super::metrics::ServiceMetrics;
use super::outbound::{BadGrant, Grant, Indoors};
use super::output::{Log, Printed};
use super::room::Room;
use super::trailers::{self, Nominated};
use super::{HttpFault, head, spell};
use crate::fault::bounded;
use crate::share::Share;

/// Instances that one service keeps for its next requests …
const IDLE_MAX: usize = 64;
/// … and for how long: a quiet service gives its memory back when it is used next.
const IDLE_FOR: Duration = Duration::from_secs(30);
/// How much is shown of the error that a guest answers with: some codes carry a text of its choice.
const CODE_BYTES_MAX: usize = 200;

/// What one mounted component may do, and what it is told.
#[derive(Clone, Default)]
pub struct Terms {
    /// Whose it is: the labels of its metrics, and whose share of the processors it uses.
    pub owner: Option<(SiteId, PluginName)>,
    /// What it may send requests to.
    pub hosts: Vec<Grant>,
    /// Its environment.
    pub env: Vec<(String, String)>,
    /// What `wasi:config/store` answers.
    pub config: Vec<(String, String)>,
    /// Requests that one instance serves, one after the other; 0 and 1 both mean a fresh instance for each. What one
    /// request left in the instance's memory, the next one finds.
    pub reuse: u32,
    /// Takes what it prints; the process's log if there is none.
    pub printed: Option<Arc<dyn Printed>>,
    /// The turns of this process, where several sites share it. Needs an owner.
    pub share: Option<Share>,
}

impl Terms {
    /// Those of a site's release.
    pub fn of(site: &SiteId, release: &Release) -> Result<Self, BadGrant> {
        let pairs = |map: &std::collections::BTreeMap<String, String>| {
            map.iter().map(|(name, value)| (name.clone(), value.clone())).collect()
        };
        Ok(Self {
            owner: Some((site.clone(), release.plugin.clone())),
            hosts: release.grants.hosts.iter().map(|host| host.parse()).collect::<Result<_, _>>()?,
            env: pairs(&release.grants.env),
            config: pairs(&release.grants.config),
            reuse: release.reuse,
            printed: None,
            share: None,
        })
    }
}

/// Terms in the form in which every store of the service shares them.
pub(super) struct Settled {
    pub(super) hosts: Arc<[Grant]>,
    pub(super) env: Vec<(String, String)>,
    pub(super) config: WasiConfigVariables,
    pub(super) printed: Arc<dyn Printed>,
    pub(super) reuse: u32,
    pub(super) share: Option<(Share, SiteId)>,
    pub(super) room: Arc<Room>,
    pub(super) metrics: ServiceMetrics,
}

impl Settled {
    fn of(plugin: &HttpPlugin, terms: Terms) -> Self {
        let Terms { owner, hosts, env, config, reuse, printed, share } = terms;
        Self {
            hosts: hosts.into(),
            env,
            config: config.into_iter().collect(),
            printed: printed.unwrap_or_else(|| Arc::new(Log(Arc::clone(plugin.label())))),
            reuse,
            room: plugin.engine().rooms().of(owner.as_ref().map(|(site, _)| site)),
            share: share.zip(owner.as_ref().map(|(site, _)| site.clone())),
            metrics: plugin.engine().metrics().service(owner.as_ref()),
        }
    }
}

/// A component ready to answer requests. Share it: its idle instances are its own.
pub struct HttpService {
    plugin: Arc<HttpPlugin>,
    settled: Arc<Settled>,
    idle: Arc<Idle>,
}

impl HttpService {
    pub fn new(plugin: Arc<HttpPlugin>, terms: Terms) -> Self {
        let settled = Arc::new(Settled::of(&plugin, terms));
        let idle = Arc::new(Idle { instances: Mutex::default(), all: Arc::clone(plugin.engine().idle()) });
        Self { plugin, settled, idle }
    }

    pub fn plugin(&self) -> &Arc<HttpPlugin> {
        &self.plugin
    }

    /// Puts one request to an instance and answers as soon as the guest has given the head. The request is http unless
    /// its target says https.
    ///
    /// Must run within a tokio runtime: a guest that waits goes on in a task of its own. Cancel safe: dropping the
    /// future, or later the body before its end, stops the guest.
    pub async fn handle<B>(&self, request: Request<B>) -> Result<Response<Body>, HttpFault>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        self.handle_with(request, None).await
    }

    /// The same for a guest whose requests to [`super::INDOORS_HOST`] are answered, by `indoors`.
    pub async fn handle_with<B>(
        &self,
        request: Request<B>,
        indoors: Option<Arc<dyn Indoors>>,
    ) -> Result<Response<Body>, HttpFault>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        let metrics = &self.settled.metrics;
        let began = Instant::now();
        metrics.requests.inc();
        let answered = self.exchange(request, indoors).await;
        metrics.seconds.observe(began.elapsed().as_secs_f64());
        answered
    }

    async fn exchange<B>(
        &self,
        request: Request<B>,
        indoors: Option<Arc<dyn Indoors>>,
    ) -> Result<Response<Body>, HttpFault>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        let limits = self.plugin.engine().limits();
        // Before it holds a place.
        spell::give_way().await;
        let place = self.settled.room.take_place().inspect_err(|fault| self.count(fault))?;
        let (mut parts, body) = request.into_parts();
        let nominated = head::incoming(&mut parts);
        let request = Request::from_parts(parts, upload(body, limits.upload_bytes_max, nominated));

        let (send_head, head) = oneshot::channel();
        let outcome = Arc::new(Outcome::new());
        let run = Run {
            live: self.live(),
            plugin: Arc::clone(&self.plugin),
            idle: Arc::clone(&self.idle),
            outcome: Arc::clone(&outcome),
            place,
            indoors,
        };
        let task = begin(run.finish(request, send_head)).await;
        if task.is_none()
            && let Some(Err(fault)) = outcome.get()
        {
            // It has ended before anything of its answer was sent: whoever asked is told so, though there may be a head.
            // Counted where it happened.
            return Err(fault.clone());
        }
        let running = Running::new(task.as_ref().map(JoinHandle::abort_handle));
        match head.await {
            Ok(Head::Response(response)) => {
                let (response, length) =
                    head::outgoing(response, limits).inspect_err(|fault| self.count(fault))?;
                let limits = Arc::clone(limits);
                Ok(response.map(|inner| Body::new(inner, length, outcome, running, limits)))
            }
            Ok(Head::Error(code)) => {
                let fault = HttpFault::Guest(bounded(&code, CODE_BYTES_MAX));
                self.count(&fault);
                Err(fault)
            }
            Err(_) => Err(self.without_head(task, &outcome).await),
        }
    }

    /// Why there will be no head. The sender goes a moment before the run leaves its word, or long before, if the guest
    /// lets go of it and works on.
    async fn without_head(&self, task: Option<JoinHandle<()>>, outcome: &Outcome) -> HttpFault {
        let mut was_ended = false;
        if let Some(task) = task {
            // Ends a guest that works on. A run that has failed already is past being ended.
            task.abort();
            was_ended = task.await.is_err_and(|error| error.is_cancelled());
        }
        match outcome.get() {
            // Counted where it happened.
            Some(Err(fault)) if !was_ended => fault.clone(),
            _ => {
                self.count(&HttpFault::NoResponse);
                HttpFault::NoResponse
            }
        }
    }

    fn count(&self, fault: &HttpFault) {
        self.settled.metrics.count_fault(fault.name());
    }

    /// An instance that has served and may serve again, else the makings of a fresh one.
    fn live(&self) -> Live {
        match self.idle.take() {
            Some(live) => {
                self.settled.metrics.reused.inc();
                live
            }
            None => {
                self.settled.metrics.fresh.inc();
                Live::new(&self.plugin, &self.settled)
            }
        }
    }
}

/// Runs a guest on its caller's task until it first waits; what is left then gets a task of its own.
///
/// A small answer fits into the channel to its reader, so most guests never wait, and a task for each would cost more
/// than their limits do. The guest keeps the caller's thread no longer than any thread: it yields after a slice, and
/// [`spell`] sees to it that its caller's next guest does not simply go on.
async fn begin(run: impl Future<Output = ()> + Send + 'static) -> Option<JoinHandle<()>> {
    let mut run = Box::pin(run);
    let polled = poll_fn(|context| {
        let began = Instant::now();
        // As a task would: a panic of the host ends one run, which has left word of it, and not the connection.
        let polled = catch_unwind(AssertUnwindSafe(|| run.as_mut().poll(context)));
        spell::ran(began.elapsed());
        Poll::Ready(polled)
    })
    .await;
    matches!(polled, Ok(Poll::Pending)).then(|| tokio::spawn(run))
}

/// A request's body as the guest reads it: bounded, and with trailers that say nothing of the head. Most requests have
/// none, and then nothing is allocated.
fn upload<B>(body: B, bytes_max: u64, nominated: Nominated) -> WasiBody
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    if body.is_end_stream() {
        return UnsyncBoxBody::new(Empty::new().map_err(|never| match never {}));
    }
    let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX);
    let body = Limited::new(body, bytes_max).map_err(upload_error);
    body.map_frame(move |frame| trailers::cleaned(frame, &nominated)).boxed_unsync()
}

fn upload_error(error: Box<dyn StdError + Send + Sync>) -> WasiHttpError {
    if error.is::<http_body_util::LengthLimitError>() {
        return WasiHttpError::HttpRequestBodySize(None);
    }
    match error.downcast::<hyper::Error>() {
        Ok(error) => WasiHttpError::Hyper(*error),
        Err(_) => WasiHttpError::ConnectionTerminated,
    }
}

/// Instances between two requests. Each holds a place of the engine's pool, so their number is bounded per service
/// and over all.
pub(super) struct Idle {
    instances: Mutex<VecDeque<(Instant, Live)>>,
    all: Arc<IdleCount>,
}

/// How many instances idle in one engine.
pub(super) struct IdleCount {
    count: AtomicU32,
    count_max: u32,
}

impl IdleCount {
    /// A quarter of the pool: whoever comes must find places, however many services keep instances.
    pub(super) fn of_pool(requests_max: u32) -> Arc<Self> {
        Arc::new(Self { count: AtomicU32::new(0), count_max: requests_max / 4 })
    }
}

impl Idle {
    /// The one that was used last: its memory is the warmest, and the others grow old enough to go.
    fn take(&self) -> Option<Live> {
        let (_, live) = self.instances.lock().pop_back()?;
        self.all.count.fetch_sub(1, Ordering::Relaxed);
        Some(live)
    }

    pub(super) fn put(&self, live: Live) {
        let now = Instant::now();
        if self.all.count.fetch_add(1, Ordering::Relaxed) >= self.all.count_max {
            self.all.count.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let mut instances = self.instances.lock();
        instances.push_back((now, live));
        let old = |(since, _): &(Instant, Live)| now.duration_since(*since) > IDLE_FOR;
        let gone = if instances.len() > IDLE_MAX || instances.front().is_some_and(old) {
            instances.pop_front()
        } else {
            None
        };
        drop(instances);
        if gone.is_some() {
            self.all.count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        let left = u32::try_from(self.instances.get_mut().len()).unwrap_or(u32::MAX);
        self.all.count.fetch_sub(left, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::{HeaderMap, HeaderValue};
    use http_body::Frame;
    use http_body_util::StreamBody;

    use super::*;

    #[tokio::test]
    async fn a_guest_reads_no_trailer_that_speaks_for_the_head() {
        let mut parts = Request::new(()).into_parts().0;
        parts.headers.insert("connection", HeaderValue::from_static("x-hop"));
        let nominated = head::incoming(&mut parts);
        let mut sent = HeaderMap::new();
        for name in ["x-sum", "x-hop", "authorization", "content-length", "host"] {
            sent.insert(name, HeaderValue::from_static("1"));
        }
        let frames = [Frame::data(Bytes::from_static(b"hello")), Frame::trailers(sent)];
        let body = StreamBody::new(futures_util::stream::iter(frames.map(Ok::<_, Infallible>)));
        let read = upload(body, 5, nominated).collect().await.expect("a body");
        let names: Vec<_> = read.trailers().expect("trailers").keys().map(|name| name.as_str()).collect();
        assert_eq!(names, ["x-sum"]);
        assert_eq!(read.to_bytes(), "hello");
    }
}
