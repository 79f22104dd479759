//! `souk proxy`: the node's listener in front of a merchant's own server, without a region.
//!
//! Everything about caching and fetching is [`crate::upstream`]'s; here it only gets a socket, a page of metrics, and a door
//! for whoever wants it to forget: `POST /purge` beside the metrics, with the body of a purge at a region.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::header::AUTHORIZATION;
use http::{Method, Request, Response, StatusCode, request};
use http_body::Body as _;
use prometheus_client::registry::Registry;
use souk_commerce::purge::{BadPurge, Forget};
use souk_config::proxy::ProxyConfig;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::{AccessLog, Noted};
use crate::admission::admit;
use crate::doors::OpenDoors;
use crate::gate::Rates;
use crate::http::{Body, RequestBody, json, now_ms, read_json};
use crate::listen::{Answer, Listener, Peer, Sockets};
use crate::node::listen_limits;
use crate::pages::Pages;
use crate::rescue::{Problem, Refusal};
use crate::running::{Listening, RunError, Running};
use crate::upstream::Proxy;
use crate::upstream::explain::{self, Asking};
use crate::upstream::forwarded::Sender;
use crate::wire::{Plain, Ready};

/// A purge at its limits as JSON, with every character escaped.
const PURGE_BODY_BYTES_MAX: usize = 256 * 1024;

struct ProxyDoor {
    proxy: Proxy,
    access: Option<Arc<AccessLog>>,
    rates: Rates,
    request_deadline: Option<Duration>,
}

impl ProxyDoor {
    /// A refusal that comes before anything is looked up.
    fn admit(&self, head: &request::Parts, client: Peer) -> Result<(), Problem> {
        // First of all: what is no request counts, too.
        self.rates.check_address(client.addr.ip())?;
        admit(head)?;
        match head.headers.get(AUTHORIZATION) {
            Some(token) => self.rates.check_token(token.as_bytes()),
            None => Ok(()),
        }
    }

    /// Whom a connection speaks for, read once: what the senders say is left with the head, for the way to the upstream.
    fn hear(&self, head: &mut request::Parts, peer: Peer) -> Peer {
        let trusted = &self.proxy.config().trusted;
        if trusted.is_empty() {
            return peer;
        }
        let sender = Sender::of(&head.headers, peer.addr.ip(), trusted);
        let client = sender.client(peer);
        head.extensions.insert(sender);
        client
    }

    /// Whether an answer that is at hand may be given. Nobody speaks for another on this way. Where it may not, the long way asks once more, and says why.
    fn admits_at_hand(&self, peer: Peer) -> bool {
        self.rates.check_address(peer.addr.ip()).is_ok()
    }

    /// Notes a request in the access log, if there is one.
    fn note(&self, head: &request::Parts, client: Peer, now_ms: u64) -> Option<Noted> {
        self.access.as_ref().map(|log| log.note(head, None, client.addr.ip(), now_ms))
    }

    /// The answer to whatever it may be.
    fn answer_at_length(
        self: Arc<Self>,
        request: Request<RequestBody>,
        note: Option<Noted>,
        client: Peer,
        peer: Peer,
        now_ms: u64,
    ) -> BoxFuture<'static, Response<Body>> {
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let response = match self.admit(&head, client) {
                Ok(()) => self.handle(Request::from_parts(head, body), peer, now_ms).await,
                Err(problem) => self.refuse(problem),
            };
            noted(note, response)
        })
    }

    async fn handle(&self, request: Request<RequestBody>, peer: Peer, now_ms: u64) -> Response<Body> {
        let handled = self.proxy.handle(request, peer, now_ms);
        let Some(deadline) = self.request_deadline else { return handled.await };
        tokio::time::timeout(deadline, handled).await.unwrap_or_else(|_| {
            let why = format!("it was not done after {} ms", deadline.as_millis());
            self.refuse(Problem::new(Refusal::DeadlinePassed, why))
        })
    }

    fn refuse(&self, problem: Problem) -> Response<Body> {
        self.proxy.metrics().refusal(problem.refusal.code());
        problem.into_response()
    }
}

/// The answer with its line in the access log behind it, if there is a log.
fn noted(note: Option<Noted>, response: Response<Body>) -> Response<Body> {
    match note {
        Some(note) => note.answered(response),
        None => response,
    }
}

impl Answer for ProxyDoor {
    fn answer(
        self: Arc<Self>,
        request: Request<RequestBody>,
        peer: Peer,
    ) -> BoxFuture<'static, Response<Body>> {
        // Nothing before it is polled: whom the door turns away is neither looked up, nor counted, nor noted.
        Box::pin(async move {
            let now_ms = now_ms();
            let (mut head, body) = request.into_parts();
            let client = self.hear(&mut head, peer);
            let note = self.note(&head, client, now_ms);
            let at_hand = {
                let admits = || self.admits_at_hand(peer);
                self.proxy.at_hand_as_message(&head, body.is_end_stream(), peer, now_ms, admits)
            };
            match at_hand {
                Some(response) => noted(note, response),
                None => {
                    let request = Request::from_parts(head, body);
                    self.answer_at_length(request, note, client, peer, now_ms).await
                }
            }
        })
    }

    fn passes_interims(&self) -> bool {
        true
    }

    fn at_hand(&self, plain: &Plain<'_>, peer: Peer) -> Option<Ready> {
        let admits = || self.admits_at_hand(peer);
        self.proxy.at_hand(plain, peer, now_ms(), self.access.as_ref(), admits)
    }

    /// What has to be fetched is waited for; all else is looking up.
    fn is_brief(&self) -> bool {
        true
    }
}

/// The operators' side: what every such process has, what the cache would do, and the purge.
struct ProxyAdmin<P> {
    pages: Arc<P>,
    proxy: Proxy,
}

impl<P: Answer> Answer for ProxyAdmin<P> {
    fn answer(
        self: Arc<Self>,
        request: Request<RequestBody>,
        peer: Peer,
    ) -> BoxFuture<'static, Response<Body>> {
        match request.uri().path() {
            "/explain" => {
                let explained = async move {
                    let asking = Asking::read(request).await?;
                    asking.answer(&explain::of_proxy(&self.proxy, &asking, peer, now_ms()).await)
                };
                Box::pin(async move { explained.await.unwrap_or_else(Problem::into_response) })
            }
            "/purge" => {
                Box::pin(async move { self.purge(request).await.unwrap_or_else(Problem::into_response) })
            }
            _ => Arc::clone(&self.pages).answer(request, peer),
        }
    }
}

impl<P> ProxyAdmin<P> {
    async fn purge(&self, request: Request<RequestBody>) -> Result<Response<Body>, Problem> {
        if request.method() != Method::POST {
            return Err(Problem::method("POST"));
        }
        let (head, body) = request.into_parts();
        admit(&head)?;
        let forget: Forget = read_json(&head.headers, body, PURGE_BODY_BYTES_MAX).await?;
        let bad = |bad: BadPurge| Problem::new(Refusal::BadJson, bad.to_string()).with("field", bad.field());
        forget.check().map_err(bad)?;
        let (step, durable) = self.proxy.purge(&forget).await;
        json(StatusCode::OK, &serde_json::json!({ "purge": step, "durable": durable }))
    }
}

/// Starts the proxy. Returns when it listens.
pub fn run_proxy(
    config: ProxyConfig,
    shutdown: CancellationToken,
) -> BoxFuture<'static, Result<Running, RunError>> {
    // Compiled with this crate: see `run_node`.
    Box::pin(start(config, shutdown))
}

async fn start(config: ProxyConfig, shutdown: CancellationToken) -> Result<Running, RunError> {
    let mut registry = Registry::default();
    let open = OpenDoors::open(&config.doors, &mut registry)?;
    // Whoever takes over from a process has its admin address too.
    let sockets = Sockets { shared: config.doors.reuse_port, workers: 1 };
    let admin = config.admin.map(|addr| Listener::open(addr, sockets)).transpose()?;
    let access = config.access.as_ref().map(AccessLog::open).transpose();
    let access = access.map_err(|e| RunError::Proxy(format!("cannot open the access log: {e}")))?;
    let limits = listen_limits(&config.limits);
    let (rates, request_deadline) = (Rates::new(&config.rates), config.request_deadline);
    let proxy = Proxy::new(config).map_err(|e| RunError::Proxy(e.to_string()))?;
    let door = Arc::new(ProxyDoor { proxy, access, rates, request_deadline });
    // Bound, so that who comes meanwhile waits instead of being refused.
    door.proxy.ready().await;
    let listening = Listening { admin: admin.as_ref().map(Listener::addr), ..open.listening() };
    let (doors, helpers) = (TaskTracker::new(), TaskTracker::new());
    let gate = limits.gate();
    open.serve(&limits, &gate, door.clone(), (&doors, &helpers), &shutdown);
    if let Some(admin) = admin {
        door.proxy.register(&mut registry);
        gate.register(&mut registry);
        let (door, proxy) = (Arc::clone(&door), door.proxy.clone());
        let explained = proxy.clone();
        let refresh = move || {
            door.proxy.sample();
            door.proxy.metrics().set_access_dropped(door.access.as_ref().map_or(0, |log| log.dropped()));
        };
        let pages = Pages::new(registry, refresh).with_report("/upstreams", move || proxy.upstreams());
        let admin_door = Arc::new(ProxyAdmin { pages: Arc::new(pages), proxy: explained });
        doors.spawn(admin.serve(None, limits.for_operators(), admin_door, shutdown));
    }
    doors.close();
    helpers.close();
    let done = tokio::spawn(async move {
        doors.wait().await;
        helpers.wait().await;
        door.proxy.close().await;
    });
    Ok(Running { listening, done })
}

#[cfg(test)]
mod tests;
