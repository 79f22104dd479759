//! `souk proxy`: the node's listener in front of a merchant's own server, without a region.
//!
//! Everything about caching and fetching is [`crate::upstream`]'s; here it only gets a socket and a page of metrics.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use http::{Request, Response};
use hyper::body::Incoming;
use prometheus_client::registry::Registry;
use souk_config::proxy::ProxyConfig;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::http::{Body, check_framing, now_ms};
use crate::listen::{Answer, ListenLimits, Listener, Peer};
use crate::pages::Pages;
use crate::running::{RunError, Running};
use crate::upstream::Proxy;

struct ProxyDoor(Proxy);

impl Answer for ProxyDoor {
    fn answer(self: Arc<Self>, request: Request<Incoming>, peer: Peer) -> BoxFuture<'static, Response<Body>> {
        Box::pin(async move {
            let (head, body) = request.into_parts();
            if let Err(problem) = check_framing(&head) {
                return problem.into_response();
            }
            self.0.handle(Request::from_parts(head, body), peer.addr, now_ms()).await
        })
    }

    fn passes_interims(&self) -> bool {
        true
    }
}

/// Starts the proxy. Returns when it listens.
pub async fn run_proxy(config: ProxyConfig, shutdown: CancellationToken) -> Result<Running, RunError> {
    let listener = Listener::bind(config.listen).await?;
    let admin = match config.admin {
        Some(addr) => Some(Listener::bind(addr).await?),
        None => None,
    };
    let proxy = Proxy::new(config).map_err(|e| RunError::Proxy(e.to_string()))?;
    let door = Arc::new(ProxyDoor(proxy));
    let (http, admin_addr) = (listener.addr(), admin.as_ref().map(Listener::addr));
    let doors = TaskTracker::new();
    doors.spawn(listener.serve(None, ListenLimits::default(), door.clone(), shutdown.clone()));
    if let Some(admin) = admin {
        let mut registry = Registry::default();
        door.0.register(&mut registry);
        let pages = Pages::new(registry, move || door.0.sample());
        doors.spawn(admin.serve(None, ListenLimits::default(), Arc::new(pages), shutdown));
    }
    doors.close();
    let done = tokio::spawn(async move { doors.wait().await });
    Ok(Running { http: Some(http), https: None, admin: admin_addr, done })
}
