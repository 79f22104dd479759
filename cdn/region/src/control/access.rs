//! Who may: the operator's token, compared by its hash. And what is counted of every request.

use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{Method, header};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::problem::Problem;
use super::{REQUEST_DEADLINE, Shared};
use crate::store::audit::Actor;

/// How long a request waits for its turn to send a body.
const TURN_WAIT_MAX: Duration = Duration::from_secs(10);
/// Hex digits of the token's hash that name it in the audit log: enough to tell tokens apart, far too few to find one.
const FINGERPRINT_DIGITS: usize = 12;

/// The other end of the connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) SocketAddr);

/// Lets only the operator through, one deadline per request, a few bodies at once.
pub(super) async fn guard(State(control): State<Shared>, mut request: Request, next: Next) -> Response {
    let Some(name) = authenticate(&request, &control.operator_token_sha256) else {
        return Problem::unauthorized().into_response();
    };
    let peer = request.extensions().get::<Peer>().map_or_else(String::new, |Peer(addr)| addr.to_string());
    let changes = !matches!(*request.method(), Method::GET | Method::HEAD);
    tracing::debug!(actor = name, peer, method = %request.method(), path = request.uri().path(), "control request");
    request.extensions_mut().insert(Actor { name, peer });
    let _turn = if changes {
        match tokio::time::timeout(TURN_WAIT_MAX, control.bodies.acquire()).await {
            Ok(Ok(turn)) => Some(turn),
            _ => return Problem::busy().into_response(),
        }
    } else {
        None
    };
    match tokio::time::timeout(REQUEST_DEADLINE, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Problem::timeout().into_response(),
    }
}

/// The name of who bears the right token.
fn authenticate(request: &Request, expected: &[u8; 32]) -> Option<String> {
    let value = request.headers().get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let hash: [u8; 32] = Sha256::digest(token.trim().as_bytes()).into();
    // The hash already hides how much of a guess was right; comparing in constant time costs nothing and needs no proof.
    let same = bool::from(hash.ct_eq(expected));
    same.then(|| format!("operator:{}", &hex::encode(hash)[..FINGERPRINT_DIGITS]))
}

pub(super) async fn count(State(control): State<Shared>, request: Request, next: Next) -> Response {
    let method = request.method().clone();
    let response = next.run(request).await;
    control.telemetry.request(&method, response.status());
    response
}
