//! Who asks: the shopper's token, language, and what the cookies say of earlier writes.
//!
//! Owns the reading and writing of these three; decides nothing with them. The token's text never leaves this file.

use http::header::{ACCEPT_LANGUAGE, AUTHORIZATION, COOKIE, HeaderMap, HeaderValue};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Validation};
use serde::Deserialize;
use souk_commerce::id::{CartId, Epoch, NodeId};
use souk_commerce::site::SiteSettings;

use crate::rescue::{Problem, Refusal};
use crate::state::world::ShopperKey;
use crate::state::{Position, Seen, Site};

/// A token longer than this is not one of ours: a subject, thirty segments and a signature need less than half.
const TOKEN_BYTES_MAX: usize = 4 * 1024;
/// Each is copied into every plugin call.
const SEGMENTS_MAX: usize = 32;
const SEGMENT_BYTES_MAX: usize = 64;
const CUSTOMER_BYTES_MAX: usize = 128;
const LANGUAGE_BYTES_MAX: usize = 35;
/// How far the merchant's clock may be from ours when a token has just run out.
const LEEWAY_S: u64 = 30;
/// Places that the read-your-writes cookie names: the PoPs that one shopper meets within minutes.
const TOKENS_MAX: usize = 4;
const SEEN_COOKIE: &str = "souk_seen";
const CART_COOKIE: &str = "souk_cart";
/// The cart that was ordered last: a PoP that holds a copy of it cannot know that it is sealed.
const ORDERED_COOKIE: &str = "souk_ordered";
/// A month: as long as a shopper expects a cart to be there.
const COOKIE_AGE_S: u32 = 30 * 24 * 3600;
/// How long a checkout without an answer makes every PoP ask the region about the cart.
const UNRESOLVED_AGE_S: u32 = 600;

/// What is known of whoever asks.
#[derive(Debug, Clone, Default)]
pub struct Shopper {
    pub customer: Option<String>,
    pub segments: Vec<String>,
    pub language: String,
}

#[derive(Deserialize)]
struct Claims {
    sub: Option<String>,
    #[serde(default)]
    segments: Vec<String>,
}

impl Shopper {
    /// Who asks a site, once its settings are here.
    pub fn of(headers: &HeaderMap, site: &Site) -> Result<Self, Problem> {
        let settings = site.settings.as_ref().ok_or_else(|| {
            Problem::new(Refusal::UnknownHost, "the shop's settings have not arrived at this node")
        })?;
        Self::read(headers, settings, &site.shopper_key)
    }

    /// Reads the request's token, if there is one. A token that does not verify is an error, not a stranger: a
    /// customer would otherwise silently lose his prices.
    pub fn read(headers: &HeaderMap, settings: &SiteSettings, key: &ShopperKey) -> Result<Self, Problem> {
        let language = language(headers).unwrap_or_else(|| settings.language.clone());
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let Some(value) = values.next() else { return Ok(Self { language, ..Self::default() }) };
        let refuse = |why: &str| Problem::new(Refusal::BadToken, why);
        if values.next().is_some() {
            return Err(refuse("there is more than one Authorization"));
        }
        let text = value.to_str().map_err(|_| refuse("Authorization is not text"))?;
        let token = text
            .split_once(' ')
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim())
            .ok_or_else(|| refuse("Authorization is not a Bearer token"))?;
        if token.len() > TOKEN_BYTES_MAX {
            return Err(refuse("the token is too long"));
        }
        let key = match key {
            ShopperKey::Ed25519(key) => key,
            ShopperKey::None => return Err(refuse("this shop has no key to verify shopper tokens with")),
            ShopperKey::Unreadable(_) => {
                return Err(refuse("the shop's key cannot be read; its merchant must set it again"));
            }
        };
        let mut rules = Validation::new(Algorithm::EdDSA);
        rules.leeway = LEEWAY_S;
        rules.validate_nbf = true;
        // The key is one site's own, so a token cannot be for another audience.
        rules.validate_aud = false;
        let claims =
            jsonwebtoken::decode::<Claims>(token, key, &rules).map_err(|e| refuse(reason(e.kind())))?.claims;
        let fits = claims.segments.len() <= SEGMENTS_MAX
            && claims.segments.iter().all(|s| s.len() <= SEGMENT_BYTES_MAX)
            && claims.sub.as_ref().is_none_or(|s| s.len() <= CUSTOMER_BYTES_MAX);
        if !fits {
            return Err(refuse(
                "the token has too many segments, or one that is too long, or too long a subject",
            ));
        }
        Ok(Self { customer: claims.sub, segments: claims.segments, language })
    }
}

fn reason(kind: &ErrorKind) -> &'static str {
    match kind {
        ErrorKind::ExpiredSignature => "the token has expired",
        ErrorKind::ImmatureSignature => "the token is not valid yet",
        ErrorKind::InvalidSignature => "the signature is not by the shop's key",
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName => "the token is not signed with EdDSA",
        ErrorKind::MissingRequiredClaim(_) => "the token does not say when it expires (exp)",
        ErrorKind::InvalidClaimFormat(_) | ErrorKind::Json(_) => "the token's claims cannot be read",
        _ => "it is not a token that can be read",
    }
}

/// The first language that the shopper's browser names, if it looks like one.
fn language(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(ACCEPT_LANGUAGE)?.to_str().ok()?;
    let first = text.split([',', ';']).next()?.trim();
    let valid = (2..=LANGUAGE_BYTES_MAX).contains(&first.len())
        && first.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    valid.then(|| first.to_owned())
}

/// The places that the `souk_seen` cookie names; whatever cannot be read is not there.
pub fn seen(headers: &HeaderMap) -> Vec<Seen> {
    cookie_value(headers, SEEN_COOKIE)
        .map(|value| value.split('_').filter_map(parse_seen).take(TOKENS_MAX).collect())
        .unwrap_or_default()
}

/// The cart that this shopper has ordered last, if the `souk_ordered` cookie says so. Only a reason to ask the region.
pub fn ordered(headers: &HeaderMap) -> Option<CartId> {
    cookie_value(headers, ORDERED_COOKIE)?.parse().ok()
}

fn cookie_value(headers: &HeaderMap, name: &str) -> Option<String> {
    let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    cookies
        .flat_map(cookie::Cookie::split_parse)
        .filter_map(Result::ok)
        .find(|cookie| cookie.name() == name)
        .map(|cookie| cookie.value().to_owned())
}

fn parse_seen(text: &str) -> Option<Seen> {
    let mut numbers = text.splitn(3, '.');
    let node = NodeId(numbers.next()?.parse().ok()?);
    let epoch = Epoch(numbers.next()?.parse().ok()?);
    let seq = numbers.next()?.parse().ok()?;
    Some(Seen { node, at: Position { epoch, seq } })
}

/// What the cookie shall say after a read or a write of a cart whose last operation here is at `last`: this node's
/// place, which never goes back, and the places that must still be named beside it.
///
/// Only an operation that was made on top of the merged copy leads whoever asks the region for it to all that was in
/// that copy; so after one (`wrote`) the places in `missing` are enough, and after a read all of them stay.
pub fn places(
    node: NodeId,
    cookie: Vec<Seen>,
    missing: Vec<Seen>,
    last: Position,
    wrote: bool,
) -> (Seen, Vec<Seen>) {
    let own = cookie.iter().filter(|s| s.node == node).map(|s| s.at).max().map_or(last, |at| at.max(last));
    let mut others = if wrote { missing.clone() } else { cookie };
    others.retain(|s| s.node != node || (s.at.epoch != own.epoch && missing.contains(s)));
    (Seen { node, at: own }, others)
}

/// The cookies after a read or a write: the place of this node, then the others of [`places`].
pub fn write_cookies(
    headers: &mut HeaderMap,
    secure: bool,
    cart: CartId,
    own: Seen,
    others: impl IntoIterator<Item = Seen>,
) {
    let mut tokens = vec![own];
    tokens.extend(others.into_iter().take(TOKENS_MAX - 1));
    let text = |s: &Seen| format!("{}.{}.{}", s.node, s.at.epoch.0, s.at.seq);
    let tokens = tokens.iter().map(text).collect::<Vec<_>>().join("_");
    // The cart's number is part of every address that the page asks for, so the page must be able to read it.
    append(headers, secure, CART_COOKIE, &cart.to_string(), false, COOKIE_AGE_S);
    append(headers, secure, SEEN_COOKIE, &tokens, true, COOKIE_AGE_S);
}

/// The cookies after an order: this cart is done with, wherever the shopper goes next.
pub fn order_cookies(headers: &mut HeaderMap, secure: bool, cart: CartId) {
    append(headers, secure, ORDERED_COOKIE, &cart.to_string(), true, COOKIE_AGE_S);
}

/// The cookies after a checkout whose outcome is not known: the same doubt, for as long as it is worth a question.
pub fn unresolved_cookies(headers: &mut HeaderMap, secure: bool, cart: CartId) {
    append(headers, secure, ORDERED_COOKIE, &cart.to_string(), true, UNRESOLVED_AGE_S);
}

fn append(headers: &mut HeaderMap, secure: bool, name: &str, value: &str, http_only: bool, age_s: u32) {
    let mut text = format!("{name}={value}; Path=/; Max-Age={age_s}; SameSite=Lax");
    if http_only {
        text.push_str("; HttpOnly");
    }
    if secure {
        text.push_str("; Secure");
    }
    if let Ok(value) = HeaderValue::from_str(&text) {
        headers.append(http::header::SET_COOKIE, value);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use jsonwebtoken::{DecodingKey, EncodingKey, Header};

    use super::*;

    fn settings() -> SiteSettings {
        SiteSettings::new("shop".parse().expect("a site"), "GBP".parse().expect("a currency"))
    }

    fn with(name: http::HeaderName, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_str(value).expect("a header value"));
        headers
    }

    fn pair() -> (EncodingKey, SiteSettings, ShopperKey) {
        let made = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key pair");
        let sign = EncodingKey::from_ed_pem(made.serialize_pem().as_bytes()).expect("a private key");
        let public = made.public_key_pem();
        let verify = DecodingKey::from_ed_pem(public.as_bytes()).expect("a public key");
        (
            sign,
            SiteSettings { shopper_key: Some(public), ..settings() },
            ShopperKey::Ed25519(Arc::new(verify)),
        )
    }

    #[test]
    fn a_token_by_the_shops_key_says_who_asks() {
        let (sign, settings, key) = pair();
        let claims =
            serde_json::json!({"sub": "c-17", "segments": ["trade", "gold"], "exp": 4_000_000_000_u64});
        let token = jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), &claims, &sign).expect("a token");
        let shopper =
            Shopper::read(&with(AUTHORIZATION, &format!("bearer {token}")), &settings, &key).expect("valid");
        assert_eq!(shopper.customer.as_deref(), Some("c-17"));
        assert_eq!(shopper.segments, ["trade", "gold"]);
        let (_, _, another) = pair();
        let refused = Shopper::read(&with(AUTHORIZATION, &format!("Bearer {token}")), &settings, &another);
        assert_eq!(refused.expect_err("another shop's").detail, "the signature is not by the shop's key");
    }

    #[test]
    fn a_bad_token_is_refused_by_name_and_never_echoed() {
        let (sign, settings, key) = pair();
        let token = |claims: serde_json::Value| {
            jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), &claims, &sign).expect("a token")
        };
        let expired = token(serde_json::json!({"sub": "c", "exp": 1_000}));
        let endless = token(serde_json::json!({"sub": "c"}));
        for (value, detail) in [
            ("Basic eA==".to_owned(), "Authorization is not a Bearer token"),
            ("Bearer abc".to_owned(), "it is not a token that can be read"),
            (format!("Bearer {expired}x"), "the signature is not by the shop's key"),
            (format!("Bearer {}", "x".repeat(5_000)), "the token is too long"),
        ] {
            let refused = Shopper::read(&with(AUTHORIZATION, &value), &settings, &key).expect_err(detail);
            assert_eq!(refused.refusal, Refusal::BadToken);
            assert!(
                !refused.detail.contains("abc") && !refused.detail.contains(&expired),
                "{}",
                refused.detail
            );
        }
        for token in [expired, endless] {
            let refused = Shopper::read(&with(AUTHORIZATION, &format!("Bearer {token}")), &settings, &key);
            assert_eq!(refused.expect_err("not valid").refusal, Refusal::BadToken);
        }
        let none = Shopper::read(&with(AUTHORIZATION, "Bearer x"), &settings, &ShopperKey::None);
        assert!(none.expect_err("no key").detail.contains("no key"));
    }

    #[test]
    fn what_a_shopper_has_seen_survives_the_cookie() {
        let token = |node, seq| Seen { node: NodeId(node), at: Position { epoch: Epoch(2), seq } };
        let mut headers = HeaderMap::new();
        let others = [token(2, 9), token(3, 4), token(4, 4), token(5, 5)];
        write_cookies(&mut headers, true, CartId([7; 16]), token(1, 5), others);
        let set: Vec<_> = headers.get_all("set-cookie").iter().map(|v| v.to_str().expect("text")).collect();
        assert_eq!(
            set[0],
            format!("souk_cart={}; Path=/; Max-Age=2592000; SameSite=Lax; Secure", "07".repeat(16))
        );
        assert_eq!(
            set[1],
            "souk_seen=1.2.5_2.2.9_3.2.4_4.2.4; Path=/; Max-Age=2592000; SameSite=Lax; HttpOnly; Secure"
        );
        let sent = with(COOKIE, "a=b; souk_seen=1.2.5_x_2.2.9_9; c=d");
        assert_eq!(seen(&sent), [token(1, 5), token(2, 9)]);
        assert_eq!(seen(&HeaderMap::new()), []);
    }

    #[test]
    fn a_place_never_goes_back_and_a_read_forgets_none() {
        let at = |epoch, seq| Position { epoch: Epoch(epoch), seq };
        let seen = |node, epoch, seq| Seen { node: NodeId(node), at: at(epoch, seq) };
        let cookie = vec![seen(1, 2, 12), seen(2, 1, 9)];
        let of = |cookie: &[Seen], missing: &[Seen], last, wrote| {
            places(NodeId(1), cookie.to_vec(), missing.to_vec(), last, wrote)
        };
        let (own, others) = of(&cookie, &[], at(2, 5), false);
        assert_eq!((own, others), (seen(1, 2, 12), vec![seen(2, 1, 9)]), "another cart was changed at 12");
        let (own, others) = of(&cookie, &[], at(2, 13), true);
        assert_eq!((own, others), (seen(1, 2, 13), vec![]), "13 was made on a copy that held 2's place");
        let (own, others) = of(&cookie, &[seen(2, 1, 9)], at(2, 13), true);
        assert_eq!((own, others), (seen(1, 2, 13), vec![seen(2, 1, 9)]), "13 was made on a stale copy");
        let old = [seen(1, 1, 50)];
        let (own, others) = of(&old, &old, at(2, 1), true);
        assert_eq!((own, others), (seen(1, 2, 1), vec![seen(1, 1, 50)]), "a life that is not fetched yet");
        assert_eq!(of(&old, &[], at(2, 1), false), (seen(1, 2, 1), vec![]));
    }

    #[test]
    fn the_language_is_the_browsers_first_or_the_sites() {
        let read = |value: &str| {
            let site = SiteSettings { language: "en-GB".to_owned(), ..settings() };
            Shopper::read(&with(ACCEPT_LANGUAGE, value), &site, &ShopperKey::None).expect("no token").language
        };
        assert_eq!(read("fr-FR,fr;q=0.9"), "fr-FR");
        assert_eq!(read("*"), "en-GB");
        assert_eq!(read(&"x".repeat(40)), "en-GB");
    }
}
