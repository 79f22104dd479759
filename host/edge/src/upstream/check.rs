//! Active health checks: each server is asked for a path at an interval, by nobody's request.
//!
//! They find a dead server before a shopper does, and notice that one is back without trying a shopper's request on it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::header::{HOST, HeaderValue, USER_AGENT};
use http::{Method, Request, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use souk_config::HealthCheck;
use tokio::time::{sleep, timeout};

use super::fleet::{Fleet, Server};
use super::health::Thresholds;

/// Bytes of a check's body that are read.
const BODY_BYTES_MAX: usize = 64 * 1024;
const AGENT: &str = concat!("souk/", env!("CARGO_PKG_VERSION"), " health check");

/// Checks all servers until it is dropped.
pub(super) async fn keep(fleet: Arc<Fleet>, check: HealthCheck) {
    let thresholds = Thresholds { failed: check.failed_min, passed: check.passed_min };
    loop {
        let servers = fleet.servers();
        let (fleet, check) = (&fleet, &check);
        join_all(servers.iter().map(|server| async move {
            let passed = timeout(check.timeout, passes(fleet, server, check)).await.unwrap_or(false);
            fleet.checked(server, passed, thresholds);
        }))
        .await;
        // A tenth more or less, so that the nodes of a place do not check in step.
        sleep(check.every.mul_f64(0.9 + 0.2 * rand::random::<f64>())).await;
    }
}

async fn passes(fleet: &Fleet, server: &Arc<Server>, check: &HealthCheck) -> bool {
    // A new connection, where HTTP/2 does not share one: whether it can be made is what a check is for.
    let Ok(mut line) = server.pool.line(true).await else { return false };
    let name = fleet.name_of(server);
    let mut request = Request::new(Empty::<Bytes>::new().map_err(|never| match never {}).boxed_unsync());
    *request.method_mut() = Method::GET;
    let uri = Uri::builder().path_and_query(check.path.as_str());
    let uri = if line.is_h2() {
        uri.scheme(name.scheme.clone()).authority(name.authority.clone()).build()
    } else {
        let host = HeaderValue::from_str(name.authority.as_str()).expect("an authority is a field value");
        request.headers_mut().insert(HOST, host);
        uri.build()
    };
    *request.uri_mut() = uri.expect("the path of a check is validated");
    request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(AGENT));
    let Ok(response) = line.exchange(request).await else { return false };
    let passed = check.passes(response.status().as_u16());
    // What it says does not matter; that it does not end in time does.
    drop(Limited::new(response.into_body(), BODY_BYTES_MAX).collect().await);
    passed
}

/// How often idle connections are looked through.
const PRUNE_EVERY: Duration = Duration::from_secs(1);

/// Closes idle connections in time until it is dropped.
pub(super) async fn prune(fleet: Arc<Fleet>) {
    loop {
        sleep(PRUNE_EVERY).await;
        fleet.prune();
    }
}
