//! `/v1/sites/{site}/tokens`: who else may. The operator mints a token where it will be used and tells the region its
//! hash: the secret itself travels nowhere.

use std::collections::BTreeSet;

use axum::extract::{Path, State};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use souk_commerce::token::ID_DIGITS;

use super::problem::Problem;
use super::{Answer, Body, Shared, Site};
use crate::clock;
use crate::store::audit::Actor;
use crate::store::token::{Minted, PutToken, TOKENS_LIVE_MAX, TokenRow, Verb};

/// Longest life of a token. A year is long enough to forget it; one that lives for ever is found by somebody else.
const LIFE_MS_MAX: u64 = 366 * 24 * 3600 * 1000;
const NAME_CHARS_MAX: usize = 80;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    /// SHA-256 of the whole token, in hexadecimal digits.
    sha256: String,
    name: String,
    verbs: BTreeSet<Verb>,
    expires_ms: u64,
}

#[derive(Deserialize)]
pub(super) struct InPath {
    id: String,
}

fn check_id(id: &str) -> Result<(), Problem> {
    let hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    if id.len() == ID_DIGITS && id.bytes().all(hex) {
        return Ok(());
    }
    Err(Problem::invalid("id", format!("an id of a token has {ID_DIGITS} hexadecimal digits")))
}

pub(super) async fn put(
    State(control): State<Shared>,
    Extension(actor): Extension<Actor>,
    Site(site): Site,
    Path(InPath { id }): Path<InPath>,
    Body(Wanted { sha256, name, verbs, expires_ms }): Body<Wanted>,
) -> Answer<TokenRow> {
    check_id(&id)?;
    let mut hash = [0; 32];
    // The text is not echoed: someone may have sent the token itself.
    hex::decode_to_slice(&sha256, &mut hash)
        .map_err(|_| Problem::invalid("sha256", "this is not a SHA-256 in 64 hexadecimal digits"))?;
    if name.chars().count() > NAME_CHARS_MAX || name.chars().any(char::is_control) {
        return Err(Problem::invalid("name", format!("a name has at most {NAME_CHARS_MAX} characters")));
    }
    if verbs.is_empty() {
        return Err(Problem::invalid("verbs", "a token without a verb opens nothing"));
    }
    let now_ms = clock::now_ms();
    if expires_ms <= now_ms || expires_ms - now_ms > LIFE_MS_MAX {
        let detail = "a token expires after now, and within 366 days";
        return Err(Problem::invalid("expires_ms", detail));
    }
    let minted = Minted { id, site: site.clone(), sha256: hash, name, verbs, expires_ms };
    match control.store.put_token(minted, actor).await? {
        PutToken::Made(row) | PutToken::Unchanged(row) => Ok(Json(row)),
        PutToken::NoSite => Err(Problem::no_site(&site)),
        PutToken::Taken => Err(Problem::conflict("id_taken", "another token has this id")),
        PutToken::Full => {
            let detail =
                format!("site {site} has {TOKENS_LIVE_MAX} tokens that are neither revoked nor expired");
            Err(Problem::conflict("too_many_tokens", detail).remedy("Revoke one that nobody uses."))
        }
    }
}

#[derive(Serialize)]
pub(super) struct Tokens {
    tokens: Vec<TokenRow>,
}

pub(super) async fn list(State(control): State<Shared>, Site(site): Site) -> Answer<Tokens> {
    if control.store.site(site.clone()).await?.is_none() {
        return Err(Problem::no_site(&site));
    }
    Ok(Json(Tokens { tokens: control.store.tokens(site).await? }))
}

#[derive(Serialize)]
pub(super) struct Revoked {
    revoked: String,
}

pub(super) async fn revoke(
    State(control): State<Shared>,
    Extension(actor): Extension<Actor>,
    Site(site): Site,
    Path(InPath { id }): Path<InPath>,
) -> Answer<Revoked> {
    check_id(&id)?;
    if control.store.revoke_token(site, id.clone(), actor).await? {
        Ok(Json(Revoked { revoked: id }))
    } else {
        Err(Problem::not_found("such token"))
    }
}
