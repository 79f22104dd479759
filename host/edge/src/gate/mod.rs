//! What the listeners of a node let in: connections, one address' part of them, and work in flight.
//!
//! Owns the counts and who goes when there is no place. Refuses to know what connections say ([`crate::wire`]) and what
//! answers mean. One gate stands before all public listeners; the operators' listener has its own, so that whoever fills
//! one does not shut out who wants to see why.

mod address;
mod handshake;
mod rates;
mod telemetry;

use std::collections::HashMap;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::http::{Body, BodyError};
use crate::rescue::{Problem, Refusal};
use crate::wire::{End, Fault};
use address::Address;
pub use rates::Rates;
pub use telemetry::GateMetrics;

/// Requests of one connection that may be in flight. HTTP/2 counts open streams and has as many; here a request counts
/// until its work has ended, whoever has reset its stream.
const WORK_PER_CONNECTION_MAX: usize = 128;
/// Idle connections that are chosen at once for being closed: looking through all of them costs some 100 us at 10,000.
const CHOSEN_MAX: usize = 32;
/// How long somebody who waits for a place waits until another idle connection is looked for.
const PLACE_EVERY: Duration = Duration::from_millis(100);
/// When to come back to a node that has too much to do.
const RETRY_AFTER_S: u32 = 1;

/// The maxima of a gate.
#[derive(Debug, Clone)]
pub struct GateLimits {
    pub connections_max: usize,
    /// Connections of one IPv4 address, or one /64 of IPv6.
    pub connections_per_address_max: usize,
    /// Requests in flight, beyond which new ones are told to come back.
    pub requests_in_flight_max: usize,
}

/// What one address has.
#[derive(Debug, Default)]
struct Part {
    connections: usize,
    handshakes: usize,
}

/// See the module.
#[derive(Debug)]
pub struct Gate {
    limits: GateLimits,
    places: Arc<Semaphore>,
    addresses: Mutex<HashMap<Address, Part>>,
    connections: Mutex<HashMap<u64, Weak<Tie>>>,
    /// The longest idle connections when they were last looked for, the longest at the end.
    chosen: Mutex<Vec<(u64, Weak<Tie>)>>,
    next: AtomicU64,
    work: AtomicUsize,
    handshakes: AtomicUsize,
    started: Instant,
    metrics: GateMetrics,
}

impl Gate {
    pub fn new(limits: GateLimits) -> Arc<Self> {
        Arc::new(Self {
            places: Arc::new(Semaphore::new(limits.connections_max)),
            limits,
            addresses: Mutex::default(),
            connections: Mutex::default(),
            chosen: Mutex::default(),
            next: AtomicU64::new(0),
            work: AtomicUsize::new(0),
            handshakes: AtomicUsize::new(0),
            started: Instant::now(),
            metrics: GateMetrics::default(),
        })
    }

    pub fn register(&self, registry: &mut Registry) {
        self.metrics.register(registry);
    }

    /// Lets a peer in, or not if its address has as many connections as it may.
    pub fn admit(self: &Arc<Self>, peer: IpAddr) -> Option<Arc<Tie>> {
        let address = Address::of(peer);
        {
            let mut addresses = self.addresses.lock();
            let part = addresses.entry(address).or_default();
            if part.connections >= self.limits.connections_per_address_max {
                self.metrics.turned_away("address_full");
                return None;
            }
            part.connections += 1;
        }
        self.metrics.connections.inc();
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let tie = Arc::new(Tie {
            gate: Arc::clone(self),
            number,
            address,
            in_flight: AtomicUsize::new(0),
            begun: AtomicU64::new(0),
            refused: OnceLock::new(),
            turned_away: AtomicBool::new(false),
            idle_since: AtomicU64::new(0),
            shed: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        });
        self.connections.lock().insert(number, Arc::downgrade(&tie));
        Some(tie)
    }

    /// A place for a connection that is there already. Where none is free, the longest idle connection loses its own.
    ///
    /// Cancel safe: nobody has a place until this returns.
    pub async fn place(&self) -> OwnedSemaphorePermit {
        loop {
            let wanted = Arc::clone(&self.places).acquire_owned();
            if self.places.available_permits() == 0 {
                self.shed();
            }
            if let Ok(place) = tokio::time::timeout(PLACE_EVERY, wanted).await {
                return place.expect("the semaphore is never closed");
            }
        }
    }

    /// A place that is free now.
    pub(crate) fn place_now(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.places).try_acquire_owned().ok()
    }

    /// Tells the longest idle connection to go, if there is one.
    fn shed(&self) {
        let mut chosen = self.chosen.lock();
        for _ in 0..2 {
            while let Some((since, tie)) = chosen.pop() {
                if let Some(tie) = tie.upgrade()
                    && tie.idle_since.load(Ordering::Relaxed) == since
                {
                    tie.shed.store(true, Ordering::Relaxed);
                    tie.waker.wake();
                    return;
                }
            }
            *chosen = self.longest_idle();
        }
    }

    fn longest_idle(&self) -> Vec<(u64, Weak<Tie>)> {
        let mut idle: Vec<_> = {
            let connections = self.connections.lock();
            let idle = connections.values().filter_map(|weak| {
                let tie = weak.upgrade()?;
                let since = tie.idle_since.load(Ordering::Relaxed);
                // Who was told to go is going.
                // Of those idle since the same millisecond, the oldest connection.
                let age = (since, tie.number);
                (since > 0 && !tie.shed.load(Ordering::Relaxed)).then(|| (age, weak.clone()))
            });
            idle.collect()
        };
        idle.sort_unstable_by_key(|(age, _)| std::cmp::Reverse(*age));
        let longest = idle.split_off(idle.len().saturating_sub(CHOSEN_MAX));
        longest.into_iter().map(|((since, _), weak)| (since, weak)).collect()
    }

    /// Milliseconds since the gate stands, and never 0.
    fn stamp(&self, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.started).as_millis();
        u64::try_from(passed).unwrap_or(u64::MAX).saturating_add(1)
    }
}

/// What a connection's reader, its service and the gate tell each other.
#[derive(Debug)]
pub struct Tie {
    gate: Arc<Gate>,
    number: u64,
    address: Address,
    in_flight: AtomicUsize,
    /// Requests that the service has been asked, which for HTTP/1.1 is one after the other.
    begun: AtomicU64,
    /// The request of HTTP/1.1, counted from one, that is refused by its bytes.
    refused: OnceLock<(u64, Fault)>,
    /// The last request was turned away: its answer may not have been written yet, although its work has ended.
    turned_away: AtomicBool,
    /// 0 while the connection is not idle.
    idle_since: AtomicU64,
    shed: AtomicBool,
    waker: AtomicWaker,
}

impl Tie {
    /// The request with this number is refused, and nothing after it will be read.
    pub(crate) fn refuse(&self, number: u64, fault: Fault) {
        if self.refused.set((number, fault)).is_ok() {
            self.gate.metrics.refused(fault.name());
        }
    }

    pub(crate) fn ended(&self, end: End) {
        self.gate.metrics.ended(end.name());
    }

    /// Whether no request is in flight.
    pub(crate) fn is_free(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed) == 0
    }

    /// The connection is idle, since now or before. True if it is told to go.
    pub(crate) fn idle(&self, now: Instant) -> bool {
        if self.idle_since.load(Ordering::Relaxed) == 0 {
            self.idle_since.store(self.gate.stamp(now), Ordering::Relaxed);
        }
        self.shed.load(Ordering::Relaxed)
    }

    pub(crate) fn busy(&self) {
        self.idle_since.store(0, Ordering::Relaxed);
        // Somebody else is looked for.
        self.shed.store(false, Ordering::Relaxed);
    }

    /// Who is woken when the connection is told to go.
    pub(crate) fn listen(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// Whether the service has been asked all of these requests and has answered them, and there is room for one more that
    /// is answered at once.
    pub(crate) fn is_ready_after(&self, requests: u64) -> bool {
        self.begun.load(Ordering::Relaxed) == requests
            && self.is_free()
            && !self.turned_away.load(Ordering::Relaxed)
            && self.gate.work.load(Ordering::Relaxed) < self.gate.limits.requests_in_flight_max
    }

    /// A request was answered without the service.
    pub(crate) fn answered_at_once(&self) {
        self.begun.fetch_add(1, Ordering::Relaxed);
    }

    /// The work of such an answer whose client has to be waited for.
    pub(crate) fn begin_sending(self: &Arc<Self>) -> Work {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.gate.work.fetch_add(1, Ordering::Relaxed);
        self.gate.metrics.in_flight.inc();
        Work { tie: Arc::clone(self), number: self.begun.load(Ordering::Relaxed) }
    }

    /// Begins the work on a request; it ends when what this returns is dropped. A problem if there is too much of it.
    pub fn begin(self: &Arc<Self>) -> Result<Work, Problem> {
        let number = self.begun.fetch_add(1, Ordering::Relaxed) + 1;
        let own = self.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        let all = self.gate.work.fetch_add(1, Ordering::Relaxed) + 1;
        self.gate.metrics.in_flight.inc();
        let work = Work { tie: Arc::clone(self), number };
        let fits = own <= WORK_PER_CONNECTION_MAX && all <= self.gate.limits.requests_in_flight_max;
        self.turned_away.store(!fits, Ordering::Relaxed);
        if fits {
            return Ok(work);
        }
        self.gate.metrics.turned_away("overloaded");
        let why = if own > WORK_PER_CONNECTION_MAX {
            "this connection has as many requests in flight as it may"
        } else {
            "the node has as many requests in flight as it may"
        };
        Err(Problem::new(Refusal::Overloaded, why).retry_after(RETRY_AFTER_S))
    }
}

impl Drop for Tie {
    fn drop(&mut self) {
        let gate = &self.gate;
        gate.connections.lock().remove(&self.number);
        let mut addresses = gate.addresses.lock();
        if let Some(part) = addresses.get_mut(&self.address) {
            part.connections -= 1;
            if part.connections == 0 {
                addresses.remove(&self.address);
            }
        }
        gate.metrics.connections.dec();
    }
}

/// A request in flight.
#[derive(Debug)]
pub struct Work {
    tie: Arc<Tie>,
    number: u64,
}

impl Work {
    /// Why this request is refused, as far as its bytes have come. Only of HTTP/1.1: there, requests are answered in the
    /// order in which they are read.
    pub fn refusal(&self) -> Option<Problem> {
        let (number, fault) = self.tie.refused.get()?;
        (*number == self.number).then(|| fault.problem())
    }

    /// Goes on until the answer has been sent, or dropped.
    pub fn until_sent(self, body: Body) -> Worked {
        Worked { body, _work: Some(self) }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.tie.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.tie.gate.work.fetch_sub(1, Ordering::Relaxed);
        self.tie.gate.metrics.in_flight.dec();
    }
}

/// An answer's body, which is work until it ends.
pub struct Worked {
    body: Body,
    _work: Option<Work>,
}

impl Worked {
    /// The body of an answer that took no work.
    pub fn free(body: Body) -> Self {
        Self { body, _work: None }
    }
}

impl http_body::Body for Worked {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests;
