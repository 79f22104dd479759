//! The node as a caching reverse proxy: one request from its head to its answer.
//!
//! Owns the order of things, and the tasks that fill the cache behind a client's back. What may be stored is the cache
//! crate's business, what is forwarded is [`super::forward`]'s.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::header::{HOST, HeaderMap, HeaderName, HeaderValue, TRAILER};
use http::{Method, Request, Response, StatusCode, Version, request};
use http_body_util::BodyExt as _;
use prometheus_client::registry::Registry;
use souk_cache::cache::Failure;
use souk_cache::disk::DiskError;
use souk_cache::fields::remove_hop_by_hop;
use souk_cache::freshness::Exchanged;
use souk_cache::key::{KeyError, MethodClass};
use souk_cache::status::CACHE_STATUS;
use souk_cache::{
    Asked, Cache, CacheLimits, Explanation, FillPermit, FillWriter, Hit, Key, Lookup, PassReason, Policy,
    Purge, Scheme, Stored, status, tags,
};
use souk_commerce::purge::Forget;
use souk_config::proxy::{CachePolicy, ProxyConfig};
use thiserror::Error;
use tokio::sync::oneshot;

use super::client::{Tries, Upstream};
use super::disk::{self, DiskMetrics};
use super::error::{SetupError, UpstreamError, body_cause, chain, problem_of};
use super::forward::{self, Signature};
use super::forwarded::Sender;
use super::pace::Paced;
use super::press::Press;
use super::shield::Shield;
use super::spent::{Spent, Witness};
use super::telemetry::ProxyMetrics;
use crate::access::{Told, TraceId, UpstreamTook};
use crate::http::{Body, RequestBody, authority, check_framing, now_ms};
use crate::interim::Interims;
use crate::listen::Peer;
use crate::page_cache::scopes;
use crate::rescue::{Problem, Refusal};
use crate::trace::{Place, Tracer};

/// Memory for responses that are still arriving: an eighth of what is stored.
const FILL_SHARE: u64 = 8;
/// Times that the upstream is asked for one fill: a 304 that speaks of another version costs a second question.
const QUESTIONS_MAX: usize = 2;
/// Longest that a relay waits for its slowest reader before it goes on without it.
const SLOWEST_READER_MAX: Duration = Duration::from_secs(30);

const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
/// How long after a purge the peers are not asked: until then it is to be sent to every node of the place.
const PEERS_BEHIND_MS: u64 = 60_000;
/// How long they are not asked for what an unsafe request has changed. Most pages live no longer.
const TAKEN_BACK_FOR: Duration = Duration::from_secs(3_600);
/// Bytes of such keys.
const TAKEN_BACK_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// All that one proxy serves is one site.
const SITE: &str = "proxy";

/// A running proxy. Clones are the same proxy.
#[derive(Clone)]
pub struct Proxy(Arc<Inner>);

struct Inner {
    /// Keys that an unsafe request has changed: a peer may have them as they were.
    taken_back: moka::sync::Cache<Key, ()>,
    /// When something was last purged.
    purged_ms: AtomicU64,
    upstream: Upstream,
    shield: Option<Shield>,
    cache: Cache,
    metrics: ProxyMetrics,
    /// Where encodings are made; none where they are not asked for.
    press: Option<Press>,
    /// To whom some requests are told of; nobody if there is no collector.
    tracer: Option<Tracer>,
    disk_metrics: DiskMetrics,
    own_id: String,
    config: ProxyConfig,
}

/// Why a proxy does not start.
#[derive(Debug, Error)]
pub enum ProxyError {
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error("cannot start the thread that encodes: {0}")]
    Press(std::io::Error),
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// How a request came to the node, and how often it left.
struct Arrival {
    sender: Sender,
    /// How the client asked: it is part of the key, and what the upstream is told.
    scheme: Scheme,
    version: Version,
    tries: Arc<AtomicU32>,
    /// It came from another node of this place, and goes to none.
    is_peer: bool,
}

/// What a fill tells the client that started it.
enum Fetched {
    Hit(Hit),
    Pass(Box<Response<Paced>>, PassReason),
    Failed(UpstreamError),
}

impl Proxy {
    pub fn new(config: ProxyConfig) -> Result<Self, ProxyError> {
        let limits = CacheLimits {
            memory_bytes_max: config.memory_bytes_max,
            object_bytes_max: config.object_bytes_max,
            // At least two objects, so that one large fill does not turn the next one into a relay.
            fill_bytes_max: (config.memory_bytes_max / FILL_SHARE)
                .max(config.object_bytes_max.saturating_mul(2)),
        };
        let metrics = ProxyMetrics::default();
        let shield = match &config.peers {
            Some(peers) => Some(Shield::new(peers, &config, metrics.clone())?),
            None => None,
        };
        let cache = disk::cache(limits, config.disk.as_ref())?;
        let press = config.compress.then(|| Press::start(cache.clone(), metrics.press.clone()));
        // A name of its own for each process: a chain of two proxies is no loop.
        let own_id = format!("souk-{:016x}", rand::random::<u64>());
        let tracer = config.trace.as_ref();
        let tracer = tracer.and_then(|trace| Tracer::start(trace, &own_id, metrics.traces.clone()));
        Ok(Self(Arc::new(Inner {
            taken_back: moka::sync::Cache::builder()
                .max_capacity(TAKEN_BACK_BYTES_MAX)
                .weigher(|key: &Key, ()| u32::try_from(key.bytes()).unwrap_or(u32::MAX))
                .time_to_live(TAKEN_BACK_FOR)
                .build(),
            purged_ms: AtomicU64::new(0),
            shield,
            upstream: Upstream::new(&config, metrics.clone())?,
            tracer,
            press: press.transpose().map_err(ProxyError::Press)?,
            cache,
            metrics,
            disk_metrics: DiskMetrics::default(),
            own_id,
            config,
        })))
    }

    /// Answers one request. `now_ms` is when it arrived.
    ///
    /// Dropping the future leaves a fetch that fills the cache running, and ends one that does not.
    pub async fn handle(&self, mut request: Request<RequestBody>, peer: Peer, now_ms: u64) -> Response<Body> {
        let mut spent = Spent::begin(request.headers());
        let sampled = self.0.tracer.as_ref().is_some_and(Tracer::samples);
        let place = Place::take(request.headers_mut(), sampled || self.is_logged(), sampled);
        let witness = place.filter(Place::is_sampled).map(|place| Witness::of(&request, place, now_ms));
        let mut response = match self.answer(request, peer, now_ms, &mut spent).await {
            Ok(response) => response,
            Err(problem) => {
                let name = problem.refusal.code();
                self.0.metrics.refusal(name);
                let mut response = problem.into_response();
                status::append_refusal(response.headers_mut(), name);
                self.tell(&mut response, "refused", Some(name));
                response
            }
        };
        if let Some(timing) = spent.server_timing() {
            response.headers_mut().append(SERVER_TIMING, timing);
        }
        if self.is_logged() {
            let told = response.extensions_mut();
            place.map(|place| told.insert(TraceId(place.id())));
            spent.at_upstream().map(|took| told.insert(UpstreamTook(took)));
        }
        if let (Some(tracer), Some(witness)) = (&self.0.tracer, witness) {
            tracer.offer(witness.testify(spent.spans(), &response));
        }
        response
    }

    /// Whether somebody writes down each request.
    fn is_logged(&self) -> bool {
        self.0.config.access.is_some()
    }

    /// Notes what became of a request, where anybody reads it.
    fn tell(&self, response: &mut Response<Body>, outcome: &'static str, reason: Option<&'static str>) {
        if self.is_logged() || self.0.tracer.is_some() {
            response.extensions_mut().insert(Told { outcome, reason });
        }
    }

    /// Registers what the proxy counts. [`Proxy::sample`] before each reading brings the gauges up to date.
    pub fn register(&self, registry: &mut Registry) {
        self.0.metrics.register(registry);
        if self.0.cache.disk().is_some() {
            self.0.disk_metrics.register(registry);
        }
    }

    /// Resolves when what an earlier process left on the disk is at hand, or cannot be for now.
    pub async fn ready(&self) {
        if let Some(disk) = self.0.cache.disk() {
            let started = Instant::now();
            disk.ready().await;
            let took_ms = started.elapsed().as_millis();
            tracing::info!(took_ms, phase = ?disk.counts().phase, "the disk tier was opened");
        }
    }

    /// Writes what waits for the disk, and lets go of its folder. Nothing is stored there afterwards.
    pub async fn close(&self) {
        let proxy = self.clone();
        let closed = tokio::task::spawn_blocking(move || {
            if let Some(disk) = proxy.0.cache.disk() {
                disk.close();
            }
        });
        if closed.await.is_err() {
            tracing::error!("the disk tier ended in disorder");
        }
    }

    pub fn sample(&self) {
        let size = self.0.cache.size();
        let count = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let metrics = &self.0.metrics;
        metrics.stored_bytes.set(count(size.bytes));
        metrics.stored_keys.set(count(size.keys));
        metrics.filling_bytes.set(count(self.0.cache.filling_bytes()));
        metrics.waiting.set(count(self.0.cache.waiting() as u64));
        let purged = self.0.cache.purged();
        metrics.purges.set(count(purged.steps));
        metrics.purged_gone.set(count(purged.entries_gone));
        metrics.purged_soft.set(count(purged.entries_softened));
        metrics.upstream_in_flight.set(count(self.0.upstream.in_flight() as u64));
        self.0.upstream.sample();
        if let Some(disk) = self.0.cache.disk() {
            self.0.disk_metrics.sample(disk.counts());
        }
    }

    /// The servers of the upstream, for operators.
    pub fn upstreams(&self) -> serde_json::Value {
        self.0.upstream.report()
    }

    /// Forgets, in one step, and returns the step's number when no restart brings back what was forgotten.
    ///
    /// Also whether that is certain: not while another process still has the folder of stored responses.
    pub async fn purge(&self, forget: &Forget) -> (u64, bool) {
        let prefix = self.0.upstream.prefix();
        // What is stored bears the targets that are forwarded.
        let forwarded = |places: &[String]| places.iter().map(|place| below(prefix, place)).collect();
        let (urls, prefixes) = (forwarded(&forget.urls), forwarded(&forget.prefixes));
        // What came by a peer came without its tags.
        let everything = forget.everything || (self.0.shield.is_some() && !forget.tags.is_empty());
        let wish = Forget { urls, prefixes, everything, ..forget.clone() };
        self.0.purged_ms.store(now_ms(), Ordering::Relaxed);
        let soft = wish.soft;
        let purges = scopes(SITE, &wish).into_iter().map(|(_, scope)| Purge { scope, soft });
        let step = self.0.cache.purge(now_ms(), &purges.collect::<Vec<_>>());
        (step, self.0.cache.persisted().await)
    }

    pub fn metrics(&self) -> &ProxyMetrics {
        &self.0.metrics
    }

    pub(super) fn config(&self) -> &ProxyConfig {
        &self.0.config
    }

    /// What would become of a request with this head, or why it would be refused. Nothing happens.
    pub(super) fn explain(
        &self,
        head: &request::Parts,
        peer: Peer,
        now_ms: u64,
    ) -> Result<Explanation, Problem> {
        let from = self.arrival(head, peer, now_ms);
        Ok(self.0.cache.explain(now_ms, &self.read(head, &from)?))
    }

    async fn answer(
        &self,
        request: Request<RequestBody>,
        peer: Peer,
        now_ms: u64,
        spent: &mut Spent,
    ) -> Result<Response<Body>, Problem> {
        let started = spent.started();
        let (mut head, body) = request.into_parts();
        let interims = head.extensions.remove::<Interims>();
        let from = self.arrival(&head, peer, now_ms);
        let asked = self.read(&head, &from)?;
        let tries = Arc::clone(&from.tries);
        let found = self.0.cache.look_up(now_ms, &asked).await;
        spent.looked_up();
        let answered = match found {
            Lookup::Hit(hit) => Ok(self.send(hit, &asked, later(now_ms, started))),
            Lookup::Stale(hit, permit) => {
                // Nobody waits for this fill: its answer goes to the cache alone.
                self.start_fill(permit, asked.clone(), from, None);
                Ok(self.send(hit, &asked, later(now_ms, started)))
            }
            Lookup::Miss(permit) => {
                let fetched = self.start_fill(permit, asked.clone(), from, interims).await;
                spent.fetched();
                // The task answers, or panicked.
                match fetched.map_err(Problem::internal)? {
                    Fetched::Hit(hit) => Ok(self.send(hit, &asked, later(now_ms, started))),
                    Fetched::Pass(response, reason) => Ok(self.send_uncached(*response, &asked, reason)),
                    Fetched::Failed(error) => Err(error.problem()),
                }
            }
            Lookup::Pass(reason) => {
                let passed = self.pass(asked, body, from, reason, interims).await;
                spent.fetched();
                passed
            }
            Lookup::Failed(_, Some(hit)) => Ok(self.send(hit, &asked, later(now_ms, started))),
            Lookup::Failed(failure, None) => Err(problem_of(refusal_of(failure))),
            Lookup::OnlyIfCached => Err(Problem::new(
                Refusal::OnlyIfCached,
                "The request asks for what is stored, and nothing is.",
            )),
        };
        answered.map(|response| with_tries(response, tries.load(Ordering::Relaxed)))
    }

    fn arrival(&self, head: &request::Parts, peer: Peer, now_ms: u64) -> Arrival {
        let address = peer.addr.ip();
        let target = head.uri.path_and_query().map_or("/", |path| path.as_str());
        let shield = self.0.shield.as_ref();
        let is_peer = shield.is_some_and(|shield| shield.is_peer(&head.headers, host(head), target, now_ms));
        let sender = if is_peer {
            let trusted = [self.0.config.trusted.as_slice(), &[address.to_canonical().into()]].concat();
            Sender::of(&head.headers, address, &trusted)
        } else {
            Sender::of(&head.headers, address, &self.0.config.trusted)
        };
        // What a trusted sender says of the client's own connection, else what this one is.
        let scheme = sender.scheme.unwrap_or(if peer.tls { Scheme::Https } else { Scheme::Http });
        Arrival { sender, scheme, version: head.version, tries: Arc::default(), is_peer }
    }

    /// What the request asks for, or why it is not served.
    fn read(&self, head: &request::Parts, from: &Arrival) -> Result<Asked, Problem> {
        check_framing(head)?;
        authority(head.version, &head.uri, &head.headers)?;
        // Before hop-by-hop fields go: `Connection: cdn-loop` must not make a loop invisible.
        if forward::loops(&head.headers, &self.0.own_id) {
            return Err(Problem::new(
                Refusal::LoopDetected,
                "CDN-Loop names this node: the upstream leads back to it.",
            ));
        }
        let class = MethodClass::of(&head.method);
        if matches!(head.method, Method::CONNECT | Method::TRACE) {
            return Err(Problem::method("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
        }
        if class == MethodClass::Retrieval && forward::announces_body(&head.headers) {
            let why = "No cache can tell what its body would mean, and it is never forwarded. Use POST.";
            return Err(Problem::new(Refusal::BodyUnexpected, why));
        }
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        let target = match (path, self.0.upstream.prefix()) {
            // `OPTIONS *` is about the node, and the node has nothing to say: about the root, then.
            ("*", prefix) => format!("{prefix}/"),
            (path, prefix) => format!("{prefix}{path}"),
        };
        let key = Key::new(SITE, from.scheme, host(head), &target).map_err(refused)?;

        let mut headers = head.headers.clone();
        let on_the_road: Vec<_> = headers.get_all(forward::CDN_LOOP).iter().cloned().collect();
        remove_hop_by_hop(&mut headers);
        forward::remove_unkeyed(&mut headers);
        headers.remove(forward::CDN_LOOP);
        for member in on_the_road {
            headers.append(forward::CDN_LOOP, member);
        }
        let policy = match self.0.config.policy_of(path) {
            CachePolicy::Safe => Policy::SAFE,
            CachePolicy::Strict => Policy::STRICT,
        };
        let policy = Policy { compress: self.0.config.compress, ..policy };
        Ok(Asked::new(key, head.method.clone(), headers).under(policy))
    }

    /// Starts the task that fetches and stores; the answer comes as soon as it has the head.
    /// Interim responses go to the client whose question it is, and to nobody who joins it.
    fn start_fill(
        &self,
        permit: FillPermit,
        asked: Asked,
        from: Arrival,
        interims: Option<Interims>,
    ) -> oneshot::Receiver<Fetched> {
        let (answer, answered) = oneshot::channel();
        let proxy = self.clone();
        tokio::spawn(async move { proxy.fill(permit, asked, from, interims, answer).await });
        answered
    }

    async fn fill(
        self,
        mut permit: FillPermit,
        asked: Asked,
        from: Arrival,
        interims: Option<Interims>,
        answer: oneshot::Sender<Fetched>,
    ) {
        let mut conditions = permit.conditions(&asked);
        for _ in 0..QUESTIONS_MAX {
            let request = || forward::fill(&asked, &conditions, &self.signature(&from));
            let shared = self.ask_peer(&asked, request, &from, interims.clone()).await;
            let (when, answered) = match shared {
                Some((when, response)) => (when, Ok(response)),
                None => self.ask(asked.key.target(), request(), None, interims.clone(), &from.tries).await,
            };
            let mut response = match answered {
                Ok(response) => response,
                Err(error) => {
                    let failure = Failure(error.name());
                    let stale = permit.stale_on_error(when.answered_ms, failure);
                    permit.fail(failure);
                    // A client that has gone does not want to know.
                    drop(answer.send(stale.map_or(Fetched::Failed(error), Fetched::Hit)));
                    return;
                }
            };
            // Before a 304 too: its fields become those of what is stored.
            forward::rewrite_location(response.headers_mut(), &self.0.upstream);
            if response.status() == StatusCode::NOT_MODIFIED && !conditions.is_empty() {
                match permit.confirm(response.headers(), &asked, when) {
                    Ok(hit) => {
                        drop(answer.send(Fetched::Hit(hit)));
                        return;
                    }
                    Err(unconfirmed) => {
                        permit = unconfirmed;
                        conditions.clear();
                        continue;
                    }
                }
            }
            if is_failure(response.status()) {
                let failure = Failure("upstream_status");
                if let Some(stale) = permit.stale_on_error(when.answered_ms, failure) {
                    self.0.metrics.upstream_error(failure.0);
                    permit.fail(failure);
                    drop(answer.send(Fetched::Hit(stale)));
                    return;
                }
            }
            let (head, body) = response.into_parts();
            match permit.store(&head, &asked, when) {
                Stored::Filling(hit, writer) => {
                    drop(answer.send(Fetched::Hit(hit)));
                    self.pump(body, writer, &asked.key).await;
                }
                Stored::Pass(reason) => {
                    drop(answer.send(Fetched::Pass(Box::new(Response::from_parts(head, body)), reason)));
                }
                Stored::Unfitting(unused) => {
                    permit = unused;
                    conditions.clear();
                    continue;
                }
            }
            return;
        }
        // A 304 or a 206 to a question without conditions and ranges.
        let error = UpstreamError::Broke("304 or 206 to a request for the whole".to_owned());
        permit.fail(Failure(error.name()));
        drop(answer.send(Fetched::Failed(error)));
    }

    /// Moves the upstream's body into the cache, whether or not a client still reads it.
    async fn pump(&self, mut body: Paced, mut writer: FillWriter, key: &Key) {
        let broken = loop {
            match tokio::time::timeout(SLOWEST_READER_MAX, writer.ready()).await {
                Ok(Ok(())) => {}
                // Not to be stored, and nobody reads it.
                Ok(Err(_)) => return,
                Err(_) => {
                    writer.cut_slowest();
                    continue;
                }
            }
            match body.frame().await {
                Some(Ok(frame)) => {
                    // Trailers are not stored, so nobody gets them.
                    if let Ok(chunk) = frame.into_data() {
                        self.0.metrics.fill_bytes.inc_by(chunk.len() as u64);
                        writer.push(&chunk);
                    }
                }
                Some(Err(error)) => break body_cause(&error),
                None => match writer.finish() {
                    Ok(()) => return,
                    Err(error) => break chain(&error),
                },
            }
        };
        // The writer is dropped by now, or by leaving: every reader's body is aborted.
        self.0.metrics.fills_broken.inc();
        tracing::warn!(url = %key, cause = %broken, "the upstream broke off in the middle of a body");
    }

    /// Asks the upstream on behalf of one client, and stores nothing.
    async fn pass(
        &self,
        asked: Asked,
        body: RequestBody,
        from: Arrival,
        reason: PassReason,
        interims: Option<Interims>,
    ) -> Result<Response<Body>, Problem> {
        let class = MethodClass::of(&asked.method);
        let request = forward::pass(&asked, &self.signature(&from));
        let body =
            (class != MethodClass::Retrieval && !http_body::Body::is_end_stream(&body)).then_some(body);
        let began = self.0.cache.begin();
        let (when, answered) = self.ask(asked.key.target(), request, body, interims, &from.tries).await;
        let mut response = answered.map_err(|error| error.problem())?;
        if class == MethodClass::Unsafe
            && (response.status().is_success() || response.status().is_redirection())
        {
            self.invalidate(&asked, response.headers());
            self.0.cache.invalidate_groups(when.answered_ms, &asked, response.headers());
            // The answer says that it is done: no restart may undo it.
            self.0.cache.persisted().await;
        }
        let answers_itself = forward::is_at_its_target(response.headers(), &asked, &self.0.upstream);
        forward::rewrite_location(response.headers_mut(), &self.0.upstream);
        let (head, body) = response.into_parts();
        if asked.is_head() {
            self.0.cache.freshen(&asked, &head, when);
        }
        let permit =
            answers_itself.then(|| self.0.cache.permit_for_post(&asked, &head, when, began)).flatten();
        match permit.map(|permit| permit.store(&head, &asked, when)) {
            Some(Stored::Filling(hit, writer)) => {
                let (proxy, key) = (self.clone(), asked.key.clone());
                tokio::spawn(async move { proxy.pump(body, writer, &key).await });
                Ok(self.send(hit, &asked, when.answered_ms))
            }
            _ => Ok(self.send_uncached(Response::from_parts(head, body), &asked, reason)),
        }
    }

    /// An unsafe request succeeded: what it may have changed is fetched anew (RFC 9111 section 4.4).
    fn invalidate(&self, asked: &Asked, response: &HeaderMap) {
        self.0.cache.invalidate(&asked.key);
        self.0.taken_back.insert(asked.key.clone(), ());
        for target in forward::changed_targets(response, asked, &self.0.upstream) {
            if let Ok(key) = asked.key.sibling(&target) {
                self.0.cache.invalidate(&key);
                self.0.taken_back.insert(key, ());
            }
        }
    }

    /// Asks the key's home among the nodes of this place, if that is another one and it answers.
    async fn ask_peer(
        &self,
        asked: &Asked,
        request: impl Fn() -> Request<()>,
        from: &Arrival,
        interims: Option<Interims>,
    ) -> Option<(Exchanged, Response<Paced>)> {
        let shield = self.0.shield.as_ref().filter(|_| !from.is_peer)?;
        let purged_ago_ms = now_ms().saturating_sub(self.0.purged_ms.load(Ordering::Relaxed));
        if purged_ago_ms < PEERS_BEHIND_MS || self.0.taken_back.contains_key(&asked.key) {
            // A peer may have what was taken back here.
            return None;
        }
        let (asked_ms, started) = (now_ms(), Instant::now());
        let response = shield.ask(asked, &self.0.upstream, request(), interims, asked_ms).await?;
        Some((Exchanged { asked_ms, answered_ms: later(asked_ms, started) }, response))
    }

    async fn ask(
        &self,
        target: &str,
        request: Request<()>,
        body: Option<RequestBody>,
        interims: Option<Interims>,
        tries: &AtomicU32,
    ) -> (Exchanged, Result<Response<Paced>, UpstreamError>) {
        let asked_ms = now_ms();
        let started = Instant::now();
        let answered = self.0.upstream.ask(target, request, body, interims, tries).await;
        // By the monotonic clock, so that a wall clock that is set back makes no negative delay.
        let when = Exchanged { asked_ms, answered_ms: later(asked_ms, started) };
        match &answered {
            Ok(_) => self.0.metrics.upstream_wait.0.observe(started.elapsed().as_secs_f64()),
            Err(error) => {
                self.0.metrics.upstream_error(error.name());
                let tries = tries.load(Ordering::Relaxed);
                tracing::warn!(code = error.name(), %error, tries, "the upstream did not answer");
            }
        }
        (when, answered)
    }

    fn signature<'a>(&'a self, from: &'a Arrival) -> Signature<'a> {
        Signature {
            own_id: &self.0.own_id,
            sender: &from.sender,
            version: from.version,
            host: self.0.config.host,
        }
    }

    fn send(&self, hit: Hit, asked: &Asked, now_ms: u64) -> Response<Body> {
        self.0.metrics.outcome(hit.how().name());
        if let Some(press) = &self.0.press
            && let Some(due) = hit.encoding_due(asked)
        {
            press.offer(due);
        }
        let outcome = hit.how().name();
        let mut response = hit.respond(now_ms, asked).map(|body| body.map_err(Into::into).boxed_unsync());
        self.tell(&mut response, outcome, None);
        response
    }

    fn send_uncached(&self, response: Response<Paced>, asked: &Asked, reason: PassReason) -> Response<Body> {
        self.0.metrics.pass(reason.name());
        let upstream_status = response.status().as_u16();
        let mut response = response.map(|body| body.boxed_unsync());
        let trailer = response.headers().get(TRAILER).cloned();
        remove_hop_by_hop(response.headers_mut());
        tags::remove_from(response.headers_mut());
        if let Some(trailer) = trailer.filter(|_| asked.method != Method::HEAD) {
            // This body passes with its trailers.
            response.headers_mut().insert(TRAILER, trailer);
        }
        status::append_pass(response.headers_mut(), reason, Some(upstream_status));
        self.tell(&mut response, "pass", Some(reason.name()));
        response
    }
}

/// Says how many servers were asked, where it was more than one. The parameter is our own: RFC 9211 knows none for it.
fn with_tries(mut response: Response<Body>, tries: u32) -> Response<Body> {
    response.extensions_mut().insert(Tries(tries));
    if tries <= 1 {
        return response;
    }
    // The node's own member is the last one, and a line of its own.
    let mut lines: Vec<_> = response.headers().get_all(CACHE_STATUS).iter().cloned().collect();
    let Some(own) = lines.pop() else { return response };
    let said = [own.as_bytes(), format!("; souk-tries={tries}").as_bytes()].concat();
    lines.push(HeaderValue::from_bytes(&said).expect("a value and visible ASCII"));
    response.headers_mut().remove(CACHE_STATUS);
    for line in lines {
        response.headers_mut().append(CACHE_STATUS, line);
    }
    response
}

/// A path or address of the node as the upstream knows it.
fn below(prefix: &str, place: &str) -> String {
    let at = match place.split_once("://") {
        Some((scheme, rest)) => scheme.len() + 3 + rest.find(['/', '?']).unwrap_or(rest.len()),
        None => 0,
    };
    let (address, target) = place.split_at(at);
    let slash = if target.starts_with('/') { "" } else { "/" };
    format!("{address}{prefix}{slash}{target}")
}

/// The wall clock after the time that passed since `started`.
fn later(now_ms: u64, started: Instant) -> u64 {
    now_ms.saturating_add(u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX))
}

/// Whom the request is for, as the client wrote it.
fn host(head: &request::Parts) -> &str {
    match head.uri.authority() {
        Some(authority) => authority.as_str(),
        None => head.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default(),
    }
}

/// Statuses in whose place a stale response may be sent (RFC 5861 section 4).
fn is_failure(status: StatusCode) -> bool {
    matches!(status.as_u16(), 500 | 502 | 503 | 504)
}

fn refused(error: KeyError) -> Problem {
    let refusal = match error {
        KeyError::Authority => Refusal::BadAuthority,
        KeyError::TargetTooLong => Refusal::UriTooLong,
        KeyError::TargetForm | KeyError::TargetPath => Refusal::BadPath,
    };
    Problem::new(refusal, error.to_string())
}

/// The refusal of a failure that another request's fetch met.
fn refusal_of(failure: Failure) -> Refusal {
    Refusal::ALL.iter().copied().find(|refusal| refusal.code() == failure.0).unwrap_or(Refusal::UpstreamBroke)
}
