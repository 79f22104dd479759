//! One upstream behind the cache: one request from its head to its answer.
//!
//! Owns the order of things. [`super::fill`] fetches what is stored, [`super::pass`] what is not, [`super::kept`] is what all
//! upstreams of a process share; what may be stored is the cache crate's business, what is forwarded [`super::forward`]'s.
//! `souk proxy` has one of these, and a node one for each route.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use http::header::{HOST, HeaderMap, HeaderName, HeaderValue, TRAILER};
use http::{Method, Request, Response, Version, request};
use http_body_util::BodyExt as _;
use prometheus_client::registry::Registry;
use souk_cache::cache::Failure;
use souk_cache::fields::remove_hop_by_hop;
use souk_cache::freshness::Exchanged;
use souk_cache::key::{KeyError, MethodClass};
use souk_cache::status::{CACHE_STATUS, How};
use souk_cache::{
    Asked, Explanation, Hit, Key, Lookup, PassReason, Policy, Purge, Scheme, Scope, status, tags,
};
use souk_commerce::purge::Forget;
use souk_config::proxy::ProxyConfig;
use souk_config::{CachePolicy, UpstreamConfig};

use super::client::{Tries, Upstream};
use super::error::{UpstreamError, problem_of};
use super::fill::Fetched;
use super::forward::{self, Signature};
use super::forwarded::Sender;
use super::kept::{Kept, ProxyError, Room};
use super::pace::Paced;
use super::shield::{Decline, OfPeer, Question, Shield, words};
use super::sliced::{self, InSlices};
use super::spent::Spent;
use super::telemetry::ProxyMetrics;
use crate::access::Told;
use crate::admission::admit;
use crate::http::{Body, RequestBody, later, now_ms};
use crate::interim::Interims;
use crate::listen::Peer;
use crate::page_cache::scopes;
use crate::rescue::{Problem, Refusal};
use crate::trace::{Tracer, Watcher};

const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
/// All that `souk proxy` serves is one site.
const SITE: &str = "proxy";

/// A running upstream with its cache. Clones are the same.
#[derive(Clone)]
pub struct Proxy(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) kept: Kept,
    /// Whose keys all of its responses are stored under.
    pub(super) site: Box<str>,
    pub(super) upstream: Upstream,
    pub(super) shield: Option<Arc<Shield>>,
    config: UpstreamConfig,
}

/// How a request came to the node, and how often it left.
#[derive(Clone)]
pub(super) struct Arrival {
    sender: Sender,
    /// How the client asked: it is part of the key, and what the upstream is told.
    scheme: Scheme,
    version: Version,
    pub(super) tries: Arc<AtomicU32>,
    /// It came from another node of this place, and goes to none.
    pub(super) is_peer: bool,
}

impl Arrival {
    /// The same for a question of the node's own, none of whose tries is another one of the client's.
    pub(super) fn apart(&self) -> Self {
        Self { tries: Arc::default(), ..self.clone() }
    }
}

impl Proxy {
    /// All of a process: `souk proxy`.
    pub fn new(config: ProxyConfig) -> Result<Self, ProxyError> {
        let metrics = ProxyMetrics::default();
        let own_id = Kept::own_id();
        let tracer = config.trace.as_ref();
        let tracer = tracer.and_then(|trace| Tracer::start(trace, &own_id, metrics.traces.clone()));
        let room = Room {
            memory_bytes_max: config.memory_bytes_max,
            // There is one site, which may have all of it.
            site_bytes_max: config.memory_bytes_max,
            object_bytes_max: config.object_bytes_max,
            slice_from_bytes: config.slice_from_bytes,
            disk: config.disk,
            compress: config.upstream.compress,
        };
        let kept = Kept::open(&room, metrics, own_id, Watcher::new(config.access.is_some(), tracer), None)?;
        let peers = config.peers.as_ref();
        let shield = peers.map(|peers| Shield::of_proxies(peers, &config.upstream, kept.metrics().clone()));
        Self::on(kept, SITE, config.upstream, shield.transpose()?)
    }

    /// One of several that share a cache.
    pub(crate) fn on(
        kept: Kept,
        site: &str,
        config: UpstreamConfig,
        shield: Option<Arc<Shield>>,
    ) -> Result<Self, ProxyError> {
        let upstream = Upstream::new(&config, kept.metrics().clone())?;
        Ok(Self(Arc::new(Inner { kept, site: site.into(), upstream, shield, config })))
    }

    /// Answers one request. `now_ms` is when it arrived.
    ///
    /// Dropping the future leaves a fetch that fills the cache running, and ends one that does not.
    pub async fn handle(&self, request: Request<RequestBody>, peer: Peer, now_ms: u64) -> Response<Body> {
        let (mut head, body) = request.into_parts();
        let mut spent = Spent::begin(&head.headers);
        let watcher = self.0.kept.watcher();
        let watched = watcher.begin(&mut head, now_ms, |path| path.into());
        let mut response = self.serve(Request::from_parts(head, body), peer, now_ms, &mut spent).await;
        if let Some(timing) = spent.server_timing() {
            response.headers_mut().append(SERVER_TIMING, timing);
        }
        watcher.end(watched, spent.spans(), &mut response);
        response
    }

    /// The same for a caller who tells of requests itself; what this one spends its time on is noted in `spent`.
    pub(crate) async fn serve(
        &self,
        request: Request<RequestBody>,
        peer: Peer,
        now_ms: u64,
        spent: &mut Spent,
    ) -> Response<Body> {
        let (head, body) = request.into_parts();
        let from = self.arrival(&head, peer, now_ms);
        let Some(shield) = self.0.shield.as_ref().filter(|_| from.is_peer) else {
            return self.serve_one(Request::from_parts(head, body), from, now_ms, spent).await;
        };
        if Question::read(&head.headers) == Some(Question::Alive) {
            return shield.alive();
        }
        let _serving = shield.serve();
        let mut response = self.serve_one(Request::from_parts(head, body), from, now_ms, spent).await;
        shield.sign(&mut response);
        response
    }

    async fn serve_one(
        &self,
        request: Request<RequestBody>,
        from: Arrival,
        now_ms: u64,
        spent: &mut Spent,
    ) -> Response<Body> {
        let is_peer = from.is_peer;
        match self.answer(request, from, now_ms, spent).await {
            Ok(response) => response,
            // It may be this node's trouble alone.
            Err(Problem { refusal: Refusal::UpstreamUnreachable | Refusal::UpstreamTls, .. }) if is_peer => {
                self.decline(Decline::Unreachable)
            }
            Err(problem) => {
                let name = problem.refusal.code();
                let mut response = problem.into_response();
                status::append_refusal(response.headers_mut(), name);
                self.tell(&mut response, "refused", Some(name));
                if is_peer {
                    self.metrics().peer_question("refused");
                }
                response
            }
        }
    }

    /// Counts what became of a request, and notes it where anybody reads it.
    pub(super) fn tell(
        &self,
        response: &mut Response<Body>,
        outcome: &'static str,
        reason: Option<&'static str>,
    ) {
        self.0.kept.count(&self.0.site, outcome, reason);
        if self.0.kept.watcher().looks() {
            response.extensions_mut().insert(Told { outcome, reason });
        }
    }

    /// Registers what is counted. [`Proxy::sample`] before each reading brings the gauges up to date.
    pub fn register(&self, registry: &mut Registry) {
        self.metrics().register_watchers(registry);
        self.0.kept.register(registry);
    }

    /// Resolves when what an earlier process left on the disk is at hand, or cannot be for now.
    pub async fn ready(&self) {
        self.0.kept.ready().await;
    }

    /// Writes what waits for the disk, and lets go of its folder. Nothing is stored there afterwards.
    pub async fn close(&self) {
        self.0.kept.close().await;
    }

    pub fn sample(&self) {
        self.0.kept.sample(std::iter::once(self.upstream()));
    }

    /// The servers of the upstream, for operators.
    pub fn upstreams(&self) -> serde_json::Value {
        self.0.upstream.report()
    }

    /// Forgets, in one step, and returns the step's number when no restart brings back what was forgotten.
    ///
    /// Also whether that is certain: not while another process still has the folder of stored responses, nor where its disk
    /// hangs or failed.
    pub async fn purge(&self, forget: &Forget) -> (u64, bool) {
        if let Some(shield) = &self.0.shield {
            shield.purged(now_ms());
        }
        let soft = forget.soft;
        // What a request for each of them would be keyed as; and as it is written, for what the disk has from before a rule.
        let forget = &forget
            .known_as(|address, target| vec![format!("{address}{}", self.0.config.query.settle(target))]);
        let mut purges: Vec<_> =
            scopes(&self.0.site, forget).into_iter().map(|(_, scope)| Purge { scope, soft }).collect();
        if forget.everything && !soft {
            // There is no other site: a disk need not find that out response by response.
            purges = vec![Purge { scope: Scope::Everything, soft }];
        }
        let step = self.0.kept.purge(&purges);
        (step, self.0.kept.is_durable().await)
    }

    pub fn metrics(&self) -> &ProxyMetrics {
        self.0.kept.metrics()
    }

    pub(crate) fn upstream(&self) -> &Upstream {
        &self.0.upstream
    }

    pub(crate) fn config(&self) -> &UpstreamConfig {
        &self.0.config
    }

    /// What would become of a request with this head, with the stored head of what is kept in slices, or why it would be
    /// refused. Nothing happens.
    pub(super) async fn explain(
        &self,
        head: &request::Parts,
        peer: Peer,
        now_ms: u64,
    ) -> Result<(Explanation, Option<InSlices>), Problem> {
        let from = self.arrival(head, peer, now_ms);
        let asked = self.read(&mut head.clone(), &from)?;
        let explanation = self.0.kept.cache().explain_with_disk(now_ms, &asked).await;
        if from.is_peer {
            return Ok((explanation, None));
        }
        Ok(self.explain_sliced(explanation, &asked, now_ms).await)
    }

    async fn answer(
        &self,
        request: Request<RequestBody>,
        from: Arrival,
        now_ms: u64,
        spent: &mut Spent,
    ) -> Result<Response<Body>, Problem> {
        let started = spent.started();
        let (mut head, body) = request.into_parts();
        let interims = head.extensions.remove::<Interims>();
        let asked = self.read(&mut head, &from)?;
        let tries = Arc::clone(&from.tries);
        let mut found = self.0.kept.cache().look_up(now_ms, &asked).await;
        spent.looked_up();
        if sliced::may_be(&found) && !from.is_peer {
            match self.answer_sliced(found, &asked, &from).await? {
                Ok(response) => {
                    // Its slices were looked up, and fetched where they were missing.
                    spent.looked_up();
                    return Ok(with_tries(response, tries.load(Ordering::Relaxed)));
                }
                Err(other) => found = other,
            }
        }
        let answered = match found {
            Lookup::Hit(hit) => Ok(self.send(hit, &asked, &from, later(now_ms, started))),
            Lookup::Stale(hit, permit) => {
                // Nobody waits for this fill: its answer goes to the cache alone.
                self.start_fill(permit, asked.clone(), from.clone(), None);
                Ok(self.send(hit, &asked, &from, later(now_ms, started)))
            }
            Lookup::Miss(permit) => {
                let fetched = self.start_fill(permit, asked.clone(), from.clone(), interims).await;
                spent.fetched();
                // The task answers, or panicked.
                match fetched.map_err(Problem::internal)? {
                    Fetched::Hit(hit) => self.send_if_it_holds(hit, &asked, &from, later(now_ms, started)),
                    Fetched::Pass(response, reason) => {
                        Ok(self.send_uncached(*response, &asked, &from, reason))
                    }
                    Fetched::Sliced(_) if from.is_peer => Ok(self.decline(Decline::Sliced)),
                    Fetched::Sliced(head) => self.answer_now_sliced(head, asked, body, from).await,
                    Fetched::Failed(error) => Err(error.problem()),
                }
            }
            Lookup::Pass(PassReason::Sliced) if from.is_peer => Ok(self.decline(Decline::Sliced)),
            Lookup::Pass(reason) => {
                // On its own, so that a hit has no room for it.
                let passed = Box::pin(self.pass(asked, body, from, reason, interims)).await;
                spent.fetched();
                passed
            }
            Lookup::Failed(_, Some(hit)) => self.send_if_it_holds(hit, &asked, &from, later(now_ms, started)),
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
        let is_peer = head.extensions.get::<OfPeer>().is_some()
            || shield.is_some_and(|shield| shield.is_peer(&head.headers, host(head), target, now_ms));
        let sender = if is_peer {
            let trusted = [self.0.config.trusted.as_slice(), &[address.to_canonical().into()]].concat();
            Sender::of(&head.headers, address, &trusted)
        } else {
            // The door may have read it already, and says so.
            let known = head.extensions.get::<Sender>().cloned();
            known.unwrap_or_else(|| Sender::of(&head.headers, address, &self.0.config.trusted))
        };
        // What a trusted sender says of the client's own connection, else what this one is.
        let scheme = sender.scheme.unwrap_or(if peer.tls { Scheme::Https } else { Scheme::Http });
        Arrival { sender, scheme, version: head.version, tries: Arc::default(), is_peer }
    }

    /// What the request asks for, or why it is not served. Takes its fields.
    fn read(&self, head: &mut request::Parts, from: &Arrival) -> Result<Asked, Problem> {
        admit(head)?;
        // Before hop-by-hop fields go: `Connection: cdn-loop` must not make a loop invisible.
        if forward::loops(&head.headers, self.0.kept.signs_as()) {
            return Err(Problem::new(
                Refusal::LoopDetected,
                "CDN-Loop names this node: the upstream leads back to it.",
            ));
        }
        let class = MethodClass::of(&head.method);
        if class == MethodClass::Retrieval && forward::announces_body(&head.headers) {
            let why = "No cache can tell what its body would mean, and it is never forwarded. Use POST.";
            return Err(Problem::new(Refusal::BodyUnexpected, why));
        }
        let target = match head.uri.path_and_query().map_or("/", |path| path.as_str()) {
            // `OPTIONS *` is about the node, and the node has nothing to say: about the root, then.
            "*" => "/",
            target => target,
        };
        let target = &*self.0.config.query.settle(target);
        // The upstream's own path before the target is the same for all of them, so it is in no key.
        let key = Key::new(&self.0.site, from.scheme, host(head), target).map_err(refused)?;

        let policy = self.policy_of(target);
        let headers = forwarded(std::mem::take(&mut head.headers));
        let asked = Asked::new(key, head.method.clone(), headers).under(policy);
        Ok(if from.is_peer { asked.by_cache() } else { asked })
    }

    /// What the cache may do with what is at a target.
    pub(super) fn policy_of(&self, target: &str) -> Policy {
        let policy = match self.0.config.policy_of(target) {
            CachePolicy::Safe => Policy::SAFE,
            CachePolicy::Heuristic => Policy { heuristic_freshness: true, ..Policy::SAFE },
            CachePolicy::Strict => Policy::STRICT,
            CachePolicy::Pass => Policy::PASS,
        };
        Policy { compress: self.0.config.compress, ..policy }
    }

    /// Asks the upstream itself.
    pub(super) async fn ask(
        &self,
        key: &Key,
        request: Request<()>,
        body: Option<RequestBody>,
        interims: Option<Interims>,
        tries: &AtomicU32,
    ) -> (Exchanged, Result<Response<Paced>, UpstreamError>) {
        let asked_ms = now_ms();
        let started = Instant::now();
        let target = forward::target(key, &self.0.upstream);
        let mut answered = self.0.upstream.ask(&target, request, body, interims, tries).await;
        if let Ok(response) = &mut answered {
            // No upstream speaks for a node.
            words::remove_from(response.headers_mut());
        }
        // By the monotonic clock, so that a wall clock that is set back makes no negative delay.
        let when = Exchanged { asked_ms, answered_ms: later(asked_ms, started) };
        let metrics = self.0.kept.metrics();
        match &answered {
            Ok(_) => metrics.upstream_wait.0.observe(started.elapsed().as_secs_f64()),
            Err(error) => {
                metrics.upstream_error(error.name());
                let tries = tries.load(Ordering::Relaxed);
                tracing::warn!(
                    site = %self.0.site, code = error.name(), %error, tries, "the upstream did not answer"
                );
            }
        }
        (when, answered)
    }

    pub(super) fn signature<'a>(&'a self, from: &'a Arrival) -> Signature<'a> {
        Signature {
            own_id: self.0.kept.signs_as(),
            sender: &from.sender,
            version: from.version,
            host: self.0.config.host,
        }
    }

    /// The nodes of this place that a key's fill is asked of, in this order, and how each is. None where there is no other.
    pub(super) fn homes(&self, key: &Key) -> Option<Vec<(&str, &'static str)>> {
        self.0.shield.as_ref().map(|shield| shield.homes(key))
    }

    fn decline(&self, why: Decline) -> Response<Body> {
        match &self.0.shield {
            Some(shield) => shield.decline(why),
            // Nobody is a peer of a node that has none.
            None => Problem::internal("a peer is declined by a node without peers").into_response(),
        }
    }

    /// Sends a hit, but to a peer none that stands in for an upstream that failed: it would keep it as if it were not stale.
    fn send_if_it_holds(
        &self,
        hit: Hit,
        asked: &Asked,
        from: &Arrival,
        now_ms: u64,
    ) -> Result<Response<Body>, Problem> {
        match hit.how() {
            How::OnError(why) if from.is_peer => Err(problem_of(refusal_of(Failure(why)))),
            _ => Ok(self.send(hit, asked, from, now_ms)),
        }
    }

    pub(super) fn send(&self, hit: Hit, asked: &Asked, from: &Arrival, now_ms: u64) -> Response<Body> {
        let outcome = hit.how().name();
        let shield = self.0.shield.as_ref().filter(|_| from.is_peer);
        let tags = shield.map(|_| hit.tags().to_vec());
        if let Some(press) = self.0.kept.press()
            && let Some(due) = hit.encoding_due(asked)
        {
            press.offer(due);
        }
        let mut response = hit.respond(now_ms, asked).map(|body| body.map_err(Into::into).boxed_unsync());
        if let Some((shield, tags)) = shield.zip(tags) {
            shield.tell_tags(response.headers_mut(), &tags);
            self.metrics().peer_question(outcome);
        }
        self.tell(&mut response, outcome, None);
        response
    }

    pub(super) fn send_uncached(
        &self,
        response: Response<Paced>,
        asked: &Asked,
        from: &Arrival,
        reason: PassReason,
    ) -> Response<Body> {
        let upstream_status = response.status().as_u16();
        let mut response = response.map(|body| body.boxed_unsync());
        let trailer = response.headers().get(TRAILER).cloned();
        remove_hop_by_hop(response.headers_mut());
        if from.is_peer {
            // Whether it stores this is for the peer to judge, which knows it by its tags then.
            self.metrics().peer_question("pass");
        } else {
            tags::remove_from(response.headers_mut());
        }
        if let Some(trailer) = trailer.filter(|_| asked.method != Method::HEAD) {
            // This body passes with its trailers.
            response.headers_mut().insert(TRAILER, trailer);
        }
        status::append_pass(response.headers_mut(), reason, Some(upstream_status));
        self.tell(&mut response, "pass", Some(reason.name()));
        response
    }
}

/// The client's fields, without those that stay at the node.
pub(super) fn forwarded(mut headers: HeaderMap) -> HeaderMap {
    let on_the_road: Vec<_> = headers.get_all(forward::CDN_LOOP).iter().cloned().collect();
    remove_hop_by_hop(&mut headers);
    forward::remove_unkeyed(&mut headers);
    if !on_the_road.is_empty() {
        headers.remove(forward::CDN_LOOP);
        for member in on_the_road {
            headers.append(forward::CDN_LOOP, member);
        }
    }
    headers
}

/// Says how many servers were asked, where it was more than one. The parameter is our own: RFC 9211 knows none for it.
fn with_tries(mut response: Response<Body>, tries: u32) -> Response<Body> {
    if tries > 0 {
        response.extensions_mut().insert(Tries(tries));
    }
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

/// Whom the request is for, as the client wrote it.
fn host(head: &request::Parts) -> &str {
    match head.uri.authority() {
        Some(authority) => authority.as_str(),
        None => head.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default(),
    }
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
pub(super) fn refusal_of(failure: Failure) -> Refusal {
    Refusal::ALL.iter().copied().find(|refusal| refusal.code() == failure.0).unwrap_or(Refusal::UpstreamBroke)
}
