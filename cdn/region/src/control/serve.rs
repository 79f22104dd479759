//! Connections of the control listener: permit, accept, spawn.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::access::Peer;

/// Connections at once. Operators, merchants' tools, a metrics scraper: dozens.
const CONNECTIONS_MAX: usize = 256;
/// From the first byte of a header to its last.
const HEADER_DEADLINE: Duration = Duration::from_secs(10);
/// Request line and fields together. A bearer token and a few more.
const HEADER_BYTES_MAX: usize = 16 << 10;
/// After an accept failed (no descriptors left): let some connections end first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `shutdown`, then lets requests under way end for at most `drain_max`.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    shutdown: CancellationToken,
    drain_max: Duration,
) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_ended) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = accept(&listener, &permits) => accepted,
        };
        let Some((stream, peer, permit)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let (router, shutdown) = (router.clone(), shutdown.clone());
        connections.spawn(async move {
            connection(stream, peer, router, shutdown).await;
            drop(permit);
        });
    }
    // Nobody waits at a door that does not open any more.
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(drain_max, drained).await.is_err() {
        tracing::warn!(open = connections.len(), "control connections are cut: they did not end in time");
        connections.abort_all();
    }
}

/// Cancel safe: a permit or a connection that nobody waits for any more is given back.
async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> Option<(TcpStream, Peer, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(permits).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, addr)) => Some((stream, Peer(addr), permit)),
        Err(error) => {
            tracing::warn!(%error, "accepting a control connection");
            None
        }
    }
}

async fn connection(stream: TcpStream, peer: Peer, router: Router, shutdown: CancellationToken) {
    // Answers are small and whole: waiting for more to send only delays them.
    let _unsupported = stream.set_nodelay(true);
    // Layering copies a few dozen routes: nothing beside a TCP handshake, and each request then knows its peer.
    let service = router.layer(axum::Extension(peer));
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_DEADLINE).max_buf_size(HEADER_BYTES_MAX);
    let serving = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    tokio::pin!(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = shutdown.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(peer = %peer.0, %error, "a control connection ended early");
    }
}
