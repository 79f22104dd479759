//! Who is it: the operator's token, or a merchant's. Both are compared by their hashes. And what is counted of every
//! request. What the one may do is [`super::authority`]'s.

use std::net::SocketAddr;
use std::time::Instant;

use axum::Extension;
use axum::extract::{RawPathParams, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, header};
use sha2::{Digest as _, Sha256};
use souk_commerce::token::{NoToken, Token};
use subtle::ConstantTimeEq as _;

use super::authority::{self, Action, Denied, Principal, Resource};
use super::problem::Problem;
use super::turns::Busy;
use super::{REQUEST_DEADLINE, Shared};
use crate::clock;
use crate::store::StoreError;
use crate::store::audit::Actor;

/// Hex digits of the operator token's hash that name it in the audit log: enough to tell tokens apart, far too few to
/// find one.
const FINGERPRINT_DIGITS: usize = 12;

/// The other end of the connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) SocketAddr);

/// Why nobody was recognised. The answer says no more than the bearer has shown to know.
enum Unknown {
    /// None, another one, or one that was revoked.
    Refused,
    Damaged,
    Expired,
    Store(StoreError),
}

impl Unknown {
    fn name(&self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Damaged => "damaged",
            Self::Expired => "expired",
            Self::Store(_) => "store",
        }
    }
}

/// Lets only those through who are known, one deadline per request.
pub(super) async fn guard(State(control): State<Shared>, mut request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>().map(|Peer(addr)| *addr);
    // Taken out first: a request's body cannot be shared between threads while the store is asked.
    let bearer = request.headers().get(header::AUTHORIZATION).cloned();
    let (principal, name) = match authenticate(&control, bearer).await {
        Ok(known) => known,
        Err(unknown) => return refuse(&control, unknown, peer),
    };
    let peer = peer.map_or_else(String::new, |addr| addr.to_string());
    tracing::debug!(actor = name, peer, method = %request.method(), path = request.uri().path(), "control request");
    request.extensions_mut().insert(Actor { name, peer });
    request.extensions_mut().insert(principal);
    request.extensions_mut().insert(Shared::clone(&control));
    match tokio::time::timeout(REQUEST_DEADLINE, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Problem::timeout().into_response(),
    }
}

fn refuse(control: &Shared, unknown: Unknown, peer: Option<SocketAddr>) -> Response {
    control.telemetry.auth_failure(unknown.name());
    let problem = match unknown {
        Unknown::Store(error) => return Problem::from(error).into_response(),
        Unknown::Refused => Problem::unauthorized(),
        Unknown::Damaged => Problem::token_damaged(),
        Unknown::Expired => Problem::token_expired(),
    };
    match peer.and_then(|peer| control.throttle.refused(peer.ip(), Instant::now())) {
        Some(wait) => Problem::too_many_refusals(wait).into_response(),
        None => problem.into_response(),
    }
}

/// The bearer of the token, and the name that the audit log gives to the bearer.
async fn authenticate(control: &Shared, bearer: Option<HeaderValue>) -> Result<(Principal, String), Unknown> {
    let value = bearer.as_ref().and_then(|value| value.to_str().ok());
    let (scheme, token) = value.and_then(|value| value.split_once(' ')).ok_or(Unknown::Refused)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(Unknown::Refused);
    }
    let token = token.trim();
    let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
    // The hash already hides how much of a guess was right; comparing in constant time costs nothing and needs no proof.
    if bool::from(hash.ct_eq(&control.operator_token_sha256)) {
        let name = format!("operator:{}", &hex::encode(hash)[..FINGERPRINT_DIGITS]);
        return Ok((Principal::Operator, name));
    }
    let token = Token::parse(token).map_err(|error| match error {
        NoToken::Form => Unknown::Refused,
        NoToken::Check => Unknown::Damaged,
    })?;
    let row = control.store.token(token.id().to_owned()).await.map_err(Unknown::Store)?;
    let row = row.filter(|row| bool::from(token.sha256().ct_eq(&row.sha256))).ok_or(Unknown::Refused)?;
    if row.revoked_ms.is_some() {
        return Err(Unknown::Refused);
    }
    let now_ms = clock::now_ms();
    if row.expires_ms <= now_ms {
        return Err(Unknown::Expired);
    }
    if let Err(error) = control.store.note_use(&row, now_ms).await {
        // A merchant is not turned away because nobody could write down that they came.
        tracing::warn!(%error, token = row.id, "the use of a token is not noted");
    }
    Ok((Principal::Merchant { site: row.site, verbs: row.verbs }, format!("token:{}", row.id)))
}

/// Stands before every resource: see [`authority::authorize`] and [`super::turns`].
pub(super) async fn demand(
    State(action): State<Action>,
    Extension(control): Extension<Shared>,
    Extension(principal): Extension<Principal>,
    params: RawPathParams,
    request: Request,
    next: Next,
) -> Response {
    let named = params.iter().find(|(name, _)| *name == "site").map(|(_, site)| site);
    let site = named.map(str::parse).transpose();
    let resource = match &site {
        Ok(Some(site)) => Resource::Site(site),
        Ok(None) => Resource::Region,
        // No site has such a name. The operator is told why, by the handler.
        Err(_) if principal == Principal::Operator => Resource::Region,
        Err(_) => return Problem::hidden().into_response(),
    };
    match authority::authorize(&principal, action, resource) {
        Ok(()) => match control.turns.take(&principal, action, request.method()).await {
            Ok(_turn) => next.run(request).await,
            Err(Busy) => Problem::busy().into_response(),
        },
        Err(Denied::Hidden) => Problem::hidden().into_response(),
        Err(Denied::NotPermitted(verb)) => Problem::not_permitted(verb).into_response(),
    }
}

pub(super) async fn count(State(control): State<Shared>, request: Request, next: Next) -> Response {
    let method = request.method().clone();
    let response = next.run(request).await;
    control.telemetry.request(&method, response.status());
    response
}
