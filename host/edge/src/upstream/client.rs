//! One upstream: its servers, its places, and how a request is answered by one of them, if not by the first.
//!
//! Owns the order of tries. Which server is [`super::roster`]'s choice, whether a request may be sent again
//! [`super::retry`]'s, how many are [`super::budget`]'s; one try is [`super::attempt`]'s.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use http::uri::Scheme;
use http::{Method, Request, Response};
use parking_lot::Mutex;
use serde_json::{Value, json};
use souk_config::{HedgeAfter, UpstreamConfig};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use super::attempt::{Failed, Letter, Patience, attempt};
use super::budget::Budget;
use super::check;
use super::error::{SetupError, UpstreamError};
use super::fleet::{Fleet, Name, Visit};
use super::pace::{ClientBody, Paced, Upload};
use super::resolve::{self, Lookup};
use super::retry::{self, Again, Setback};
use super::roster::{Id, Wish};
use super::setup;
use super::telemetry::{ProxyMetrics, Seen};
use super::waits::Waits;
use crate::interim::Interims;

/// An upstream and the connections to it. Cheap to share behind an `Arc`.
pub struct Upstream {
    fleet: Arc<Fleet>,
    /// Without a slash at the end.
    prefix: String,
    places: Arc<Semaphore>,
    in_flight_max: usize,
    patience: Patience,
    retries_max: u32,
    hedge_after: Option<HedgeAfter>,
    budget: Mutex<Budget>,
    waits: Mutex<Waits>,
    metrics: ProxyMetrics,
    /// Look-ups, checks, and the closing of idle connections. They end with the upstream.
    _keepers: JoinSet<()>,
}

/// How many tries a response took, 0 of one from the cache: among the extensions of every response of the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tries(pub u32);

/// Servers that a request was sent to.
#[derive(Default)]
struct Tried {
    ids: Vec<Id>,
    count: u32,
}

impl Tried {
    fn at(&mut self, visit: &Visit) {
        self.ids.push(visit.id());
        self.count += 1;
    }
}

impl Upstream {
    /// Needs a running tokio: look-ups and checks begin at once.
    pub fn new(config: &UpstreamConfig, metrics: ProxyMetrics) -> Result<Self, SetupError> {
        Self::with_lookup(config, metrics, &resolve::system())
    }

    pub(super) fn with_lookup(
        config: &UpstreamConfig,
        metrics: ProxyMetrics,
        lookup: &Lookup,
    ) -> Result<Self, SetupError> {
        let names = setup::names(config, &metrics)?;
        Ok(Self::looked_up(names, config, metrics, lookup))
    }

    /// The same to servers that were set up by the caller. Those of the settings are not looked at.
    pub(super) fn to(names: Vec<Name>, config: &UpstreamConfig, metrics: ProxyMetrics) -> Self {
        Self::looked_up(names, config, metrics, &resolve::system())
    }

    fn looked_up(names: Vec<Name>, config: &UpstreamConfig, metrics: ProxyMetrics, lookup: &Lookup) -> Self {
        let fleet = Fleet::new(names, config.connect_timeout, metrics.clone());
        let mut keepers = JoinSet::new();
        for (index, name) in fleet.names.iter().enumerate() {
            if let Ok(address) = name.host.parse::<IpAddr>() {
                fleet.set(index, &[(address, name.port).into()]);
                fleet.settle();
            } else {
                let every = config.resolve_every;
                keepers.spawn(resolve::keep(Arc::clone(&fleet), index, Arc::clone(lookup), every));
            }
        }
        keepers.spawn(check::prune(Arc::clone(&fleet)));
        if let Some(health) = &config.health_check {
            keepers.spawn(check::keep(Arc::clone(&fleet), health.clone()));
        }
        Self {
            budget: Mutex::new(Budget::new(fleet.now())),
            fleet,
            prefix: config.prefix().to_owned(),
            places: Arc::new(Semaphore::new(config.in_flight_max)),
            in_flight_max: config.in_flight_max,
            patience: Patience { first_byte: config.first_byte_timeout, idle: config.idle_timeout },
            retries_max: config.retries_max,
            hedge_after: config.hedge_after,
            waits: Mutex::default(),
            metrics,
            _keepers: keepers,
        }
    }

    /// Scheme and authority of each configured server.
    pub(super) fn authorities(&self) -> impl Iterator<Item = (&Scheme, &str)> {
        self.fleet.names.iter().map(|name| (&name.scheme, name.authority.as_str()))
    }

    /// The path that stands before every forwarded one.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Requests that the upstream is answering.
    pub fn in_flight(&self) -> usize {
        self.in_flight_max - self.places.available_permits()
    }

    /// Adds what its servers are doing.
    pub(super) fn see(&self, seen: &mut Seen) {
        self.fleet.see(seen);
    }

    /// What operators are shown.
    pub(super) fn report(&self) -> Value {
        json!({
            "in_flight": self.in_flight(),
            "in_flight_max": self.in_flight_max,
            "retry_tokens": self.budget.lock().tokens(),
            "servers": self.fleet.report(),
        })
    }

    /// Sends a request and waits for the head of its response. `target` is path and query as they are on the wire. A
    /// `Host` among the fields is the one that every server sees; without one, each sees its own. Interim responses
    /// before the head go to `interims`. Each try is counted in `tries`.
    ///
    /// Dropping the future ends the exchange.
    pub(super) async fn ask(
        &self,
        target: &str,
        request: Request<()>,
        body: Option<ClientBody>,
        interims: Option<Interims>,
        tries: &AtomicU32,
    ) -> Result<Response<Paced>, UpstreamError> {
        let place = Arc::new(self.take_place()?);
        self.budget.lock().deposit(self.fleet.now());
        let (head, ()) = request.into_parts();
        let letter = Letter {
            method: head.method,
            headers: head.headers,
            target: target.to_owned(),
            upload: body.map(Upload::new),
            interims,
        };
        let mut tried = Tried::default();
        let repeatable = retry::again(&letter.method, letter.left(), Setback::Broke) != Again::No;
        let first = self.fleet.pick(Wish { repeatable, ..Wish::default() }).await;
        let Some(mut visit) = first else {
            return Err(UpstreamError::Unreachable("none of its names has an address".to_owned()));
        };
        loop {
            let before = tried.count;
            let answer = self.answer(visit, &letter, &mut tried, &place).await;
            tries.fetch_add(tried.count - before, Ordering::Relaxed);
            let setback = match &answer {
                Ok(response) => Setback::Status(response.status()),
                Err(failed) => failed.setback,
            };
            let next = self.next(&letter, setback, &tried);
            match (answer, next) {
                (Ok(response), None) => return Ok(response),
                (Err(failed), None) => return Err(failed.error),
                (answer, Some(another)) => {
                    let why = answer
                        .err()
                        .map_or_else(|| format!("{setback:?}"), |failed| failed.error.to_string());
                    tracing::debug!(tries = tried.count, %why, "asking another server");
                    visit = another;
                }
            }
        }
    }

    fn take_place(&self) -> Result<OwnedSemaphorePermit, UpstreamError> {
        let places = Arc::clone(&self.places);
        places.try_acquire_owned().map_err(|_| UpstreamError::Busy(self.in_flight_max))
    }

    /// The server of the next try, if there may be one and there is a token for it.
    fn next(&self, letter: &Letter, setback: Setback, tried: &Tried) -> Option<Visit> {
        let again = retry::again(&letter.method, letter.left(), setback);
        if again == Again::No || tried.count > self.retries_max {
            return None;
        }
        // An answer is given up only for a server that is well.
        let well = matches!(setback, Setback::Status(_));
        let elsewhere = self.fleet.has_other(&tried.ids, well);
        if !elsewhere && again == Again::Elsewhere {
            self.metrics.retry_denied("server");
            return None;
        }
        if !self.budget.lock().withdraw(self.fleet.now()) {
            self.metrics.retry_denied("budget");
            return None;
        }
        let ids = if elsewhere { tried.ids.as_slice() } else { &[] };
        let next = self.fleet.pick_now(Wish { repeatable: true, again: true, tried: ids });
        if next.is_some() {
            self.metrics.retry(setback.name());
        }
        next
    }

    /// One try, or two that run side by side.
    async fn answer(
        &self,
        visit: Visit,
        letter: &Letter,
        tried: &mut Tried,
        place: &Arc<OwnedSemaphorePermit>,
    ) -> Result<Response<Paced>, Failed> {
        tried.at(&visit);
        let mut first = std::pin::pin!(self.attempt(visit, letter, place));
        let Some(delay) = self.hedge_delay(letter, tried) else { return first.await };
        if let Ok(answer) = tokio::time::timeout(delay, &mut first).await {
            return answer;
        }
        let Some(second) = self.hedge(tried) else { return first.await };
        tried.at(&second);
        let mut second = std::pin::pin!(self.attempt(second, letter, place));
        // The first good answer counts; the other exchange ends by being dropped.
        tokio::select! {
            answer = &mut first => if is_good(&answer) { answer } else { second.await },
            answer = &mut second => if is_good(&answer) {
                self.metrics.hedge("won");
                answer
            } else {
                first.await
            },
        }
    }

    async fn attempt(
        &self,
        visit: Visit,
        letter: &Letter,
        place: &Arc<OwnedSemaphorePermit>,
    ) -> Result<Response<Paced>, Failed> {
        let began = Instant::now();
        let answer = attempt(visit, letter, self.patience, Arc::clone(place)).await;
        if self.hedge_after.is_some() && is_good(&answer) {
            self.waits.lock().note(began.elapsed());
        }
        answer
    }

    /// How long the first server is waited for before a second one is asked as well.
    fn hedge_delay(&self, letter: &Letter, tried: &Tried) -> Option<Duration> {
        let reads = matches!(letter.method, Method::GET | Method::HEAD) && letter.upload.is_none();
        match self.hedge_after.filter(|_| reads && tried.count == 1)? {
            HedgeAfter::Time(time) => Some(time),
            HedgeAfter::Percentile(percent) => self.waits.lock().percentile(percent),
        }
    }

    fn hedge(&self, tried: &Tried) -> Option<Visit> {
        if !self.fleet.has_other(&tried.ids, true) {
            self.metrics.hedge("no_server");
            return None;
        }
        if !self.budget.lock().withdraw(self.fleet.now()) {
            self.metrics.hedge("no_budget");
            return None;
        }
        let second = self.fleet.pick_now(Wish { repeatable: true, again: true, tried: &tried.ids });
        self.metrics.hedge("sent");
        second
    }
}

fn is_good(answer: &Result<Response<Paced>, Failed>) -> bool {
    answer.as_ref().is_ok_and(|response| !retry::is_servers_fault(response.status()))
}
