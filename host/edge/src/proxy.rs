//! `souk proxy`: the node's listener in front of a merchant's own server, without a region.
//!
//! Everything about caching and fetching is [`crate::upstream`]'s; here it only gets a socket and a page of metrics.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use http::{Request, Response};
use prometheus_client::registry::Registry;
use souk_config::proxy::ProxyConfig;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::doors::OpenDoors;
use crate::http::{Body, RequestBody, check_framing, now_ms};
use crate::http3::Http3Metrics;
use crate::listen::{Answer, ListenLimits, Listener, Peer, Sockets};
use crate::pages::Pages;
use crate::running::{Listening, RunError, Running};
use crate::upstream::Proxy;

struct ProxyDoor(Proxy);

impl Answer for ProxyDoor {
    fn answer(
        self: Arc<Self>,
        request: Request<RequestBody>,
        peer: Peer,
    ) -> BoxFuture<'static, Response<Body>> {
        Box::pin(async move {
            let (head, body) = request.into_parts();
            if let Err(problem) = check_framing(&head) {
                return problem.into_response();
            }
            self.0.handle(Request::from_parts(head, body), peer, now_ms()).await
        })
    }

    fn passes_interims(&self) -> bool {
        true
    }
}

/// Starts the proxy. Returns when it listens.
pub async fn run_proxy(config: ProxyConfig, shutdown: CancellationToken) -> Result<Running, RunError> {
    let mut registry = Registry::default();
    let open = OpenDoors::open(&config.doors, &Http3Metrics::register(&mut registry))?;
    // Whoever takes over from a process has its admin address too.
    let sockets = Sockets { shared: config.doors.reuse_port, workers: 1 };
    let admin = config.admin.map(|addr| Listener::open(addr, sockets)).transpose()?;
    let proxy = Proxy::new(config).map_err(|e| RunError::Proxy(e.to_string()))?;
    let door = Arc::new(ProxyDoor(proxy));
    // Bound, so that who comes meanwhile waits instead of being refused.
    door.0.ready().await;
    let listening = Listening { admin: admin.as_ref().map(Listener::addr), ..open.listening() };
    let (doors, helpers) = (TaskTracker::new(), TaskTracker::new());
    let limits = ListenLimits::default();
    let gate = limits.gate();
    open.serve(&limits, &gate, &door, (&doors, &helpers), &shutdown);
    if let Some(admin) = admin {
        door.0.register(&mut registry);
        gate.register(&mut registry);
        let (door, proxy) = (Arc::clone(&door), door.0.clone());
        let pages = Pages::new(registry, move || door.0.sample())
            .with_report("/upstreams", move || proxy.upstreams());
        doors.spawn(admin.serve(None, ListenLimits::default(), Arc::new(pages), shutdown));
    }
    doors.close();
    helpers.close();
    let done = tokio::spawn(async move {
        doors.wait().await;
        helpers.wait().await;
        door.0.close().await;
    });
    Ok(Running { listening, done })
}
