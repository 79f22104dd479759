//! `GET /api/products`, searched or whole, and `GET /api/products/{sku}` for whoever is nobody in particular, out of what is kept.
//!
//! An answer may be kept when nothing personal went in: no token. What goes in beside the shop's own data is the language,
//! by which it varies, and the time, which plugins of the `catalog` hook see. Without such a plugin an answer depends on
//! rows alone, and stays until one of them changes; with one it is kept for `limits.catalogue_lifetime`, for a rule that
//! begins at midnight must not begin tomorrow noon. Clients are told to ask each time, and have a validator to ask with.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{
    ACCEPT_LANGUAGE, ACCEPT_RANGES, AUTHORIZATION, CACHE_CONTROL, ETAG, HeaderMap, HeaderName, HeaderValue,
    IF_NONE_MATCH, VARY,
};
use http::{Request, Response, StatusCode, response};
use http_body_util::BodyExt as _;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use souk_cache::freshness::Exchanged;
use souk_cache::{Asked, Explanation, FillPermit, Hit, Key, Lookup, PassReason, Scheme, Stored};
use souk_commerce::id::{Digest, SiteId};
use souk_commerce::site::Hook;
use souk_search::Position;

use crate::admission::admit;
use crate::api::Ask;
use crate::api::products::{PAGE_DEFAULT, PageAsked, Wanted, page_asked_for};
use crate::http::{Body, Exchange, full};
use crate::listen::Peer;
use crate::node::Node;
use crate::page_cache::Reads;
use crate::rescue::{Problem, Refusal};
use crate::route::Route;
use crate::shopper::Shopper;
use crate::state::Site;

/// How long an answer is kept that depends on rows alone: a bound for what nobody has thought of.
const PLAIN_LIFETIME: Duration = Duration::from_secs(3_600);
/// Only between this module and the cache (RFC 9213); no client sees it.
const CDN_CACHE_CONTROL: HeaderName = HeaderName::from_static("cdn-cache-control");
/// What is between the terms of a query, and behind the beginning of one.
const TERMS: &AsciiSet = &NON_ALPHANUMERIC.remove(b'+').remove(b'*');
/// Digits of the tag: 64 bits of a SHA-256.
const ETAG_DIGITS: usize = 16;

/// Put on an answer in whose making a plugin failed and was passed over: right for one, and not to be kept for others.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Degraded;

/// Answers from what is kept, or makes the answer and keeps it. Routes of the catalogue only.
pub(crate) async fn answer(
    node: &Arc<Node>,
    site: &Arc<Site>,
    exchange: &mut Exchange,
    host: &str,
    route: &Route,
) -> Result<Response<Body>, Problem> {
    let personal = exchange.head.headers.contains_key(AUTHORIZATION);
    if personal || node.pages.0.catalogue_lifetime.is_zero() {
        return make(node, site, exchange, route, None).await;
    }
    let asked = asked(site, exchange, host, route)?;
    let pages = &node.pages;
    match pages.cache().look_up(exchange.now_ms, &asked).await {
        Lookup::Hit(hit) | Lookup::Stale(hit, _) | Lookup::Failed(_, Some(hit)) => {
            Ok(send(node, hit, &asked, exchange))
        }
        Lookup::Miss(permit) => match fill(node, &site.id, exchange, route, &asked, permit).await? {
            Made::Kept(hit) => Ok(send(node, hit, &asked, exchange)),
            Made::Passed(response, reason) => Ok(pages.passed(&site.id, response, reason)),
        },
        Lookup::Pass(reason) => {
            let made = make(node, site, exchange, route, None).await?;
            Ok(pages.passed(&site.id, made, reason))
        }
        // What failed for another has a reason of its own here, in its own words.
        Lookup::Failed(_, None) => make(node, site, exchange, route, None).await,
        // No client's wishes but its language and what it has are passed on.
        Lookup::OnlyIfCached => {
            Err(Problem::internal("a request is for what is stored, and nobody asked for that"))
        }
    }
}

/// What would become of a request for an answer of the catalogue, and how far its cache goes in words. None: of no other is
/// anything kept. Nothing happens.
pub(crate) fn explain(
    node: &Node,
    site: &Site,
    exchange: &Exchange,
    host: &str,
    route: &Route,
) -> Option<(Result<Explanation, Problem>, String)> {
    if !matches!(route, Route::ListProducts | Route::ShowProduct(_)) {
        return None;
    }
    let lifetime = node.pages.0.catalogue_lifetime.as_secs();
    let why = format!(
        "for answers of the shop's API: kept until a row changes that it was made from, {} s at most; {lifetime} s where a catalog plugin has a hand in it",
        PLAIN_LIFETIME.as_secs()
    );
    let explained = admit(&exchange.head).and_then(|_| asked(site, exchange, host, route)).map(|asked| {
        let explanation = node.pages.cache().explain(exchange.now_ms, &asked);
        if exchange.head.headers.contains_key(AUTHORIZATION) {
            // Whoever shows a token is somebody, and answered anew.
            explanation.passing(PassReason::Authorization)
        } else if lifetime == 0 {
            explanation.passing(PassReason::Policy)
        } else {
            explanation
        }
    });
    Some((explained, why))
}

/// A request as the cache sees it: in one spelling, with what can make a difference to its answer and nothing else.
fn asked(site: &Site, exchange: &Exchange, host: &str, route: &Route) -> Result<Asked, Problem> {
    let shopper = Shopper::of(&exchange.head.headers, site)?;
    let target = target(exchange, route)?;
    let mut headers = HeaderMap::with_capacity(2);
    if let Ok(language) = HeaderValue::from_str(&shopper.language) {
        headers.insert(ACCEPT_LANGUAGE, language);
    }
    let head = &exchange.head;
    for value in head.headers.get_all(IF_NONE_MATCH) {
        headers.append(IF_NONE_MATCH, value.clone());
    }
    let key = Key::new(site.id.as_str(), Scheme::Http, host, &target);
    let key = key.map_err(|error| Problem::new(Refusal::BadPath, error.to_string()))?;
    Ok(Asked::new(key, head.method.clone(), headers))
}

/// What the answer to a GET of this target is kept as; none if it is not the catalogue's.
pub(crate) fn keyed_as(written: &str) -> Option<String> {
    let (head, ()) = Request::get(written).body(()).ok()?.into_parts();
    let route = Route::find(&head.method, head.uri.path()).ok()?;
    // The target knows nothing of who asks.
    let nobody = Peer { addr: (Ipv4Addr::UNSPECIFIED, 0).into(), tls: false };
    match route {
        Route::ListProducts | Route::ShowProduct(_) => target(&Exchange::new(head, nobody, 0), &route).ok(),
        _ => None,
    }
}

/// The one spelling of what is asked for.
fn target(exchange: &Exchange, route: &Route) -> Result<String, Problem> {
    Ok(match route {
        Route::ShowProduct(sku) => {
            format!("/api/products/{}", utf8_percent_encode(sku.as_str(), NON_ALPHANUMERIC))
        }
        _ => {
            let PageAsked { limit, of } = page_asked_for(exchange)?;
            let limit = (limit != PAGE_DEFAULT).then(|| format!("limit={limit}"));
            let (words, after) = match of {
                Wanted::All { after } => (None, after.map(|sku| hex::encode(sku.as_str()))),
                Wanted::Matches { query, after } => (Some(query), after.map(Position::cursor)),
            };
            // Whoever types the same words in another order has the same answer.
            let words = words.map(|query| format!("q={}", utf8_percent_encode(&query.spelled(), TERMS)));
            let after = after.map(|cursor| format!("cursor={cursor}"));
            let query: Vec<_> = words.into_iter().chain(limit).chain(after).collect();
            // As it is written by whoever wants it purged.
            let mark = if query.is_empty() { "" } else { "?" };
            format!("/api/products{mark}{}", query.join("&"))
        }
    })
}

enum Made {
    Kept(Hit),
    Passed(Response<Body>, PassReason),
}

/// Makes an answer and keeps it. The permit's place in the order of changes is older than all that is read here.
async fn fill(
    node: &Arc<Node>,
    site: &SiteId,
    exchange: &mut Exchange,
    route: &Route,
    asked: &Asked,
    mut permit: FillPermit,
) -> Result<Made, Problem> {
    let world = node.replica.world();
    let site = world.site(site).ok_or_else(|| Problem::new(Refusal::UnknownHost, "the shop is gone"))?;
    let reads = Reads::of(&site.id);
    let began = Instant::now();
    let (head, body) = match make(node, site, exchange, route, Some(&reads)).await {
        Ok(response) => response.into_parts(),
        // A refusal is `no-store`: those who wait are told to go alone.
        Err(problem) => problem.into_response().into_parts(),
    };
    let bytes = body.collect().await.map_err(Problem::internal)?.to_bytes();
    let stored_head = storable(node, site, &head, &bytes).await;
    permit.tag(reads.tags());
    let spent_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let when = Exchanged { asked_ms: exchange.now_ms, answered_ms: exchange.now_ms.saturating_add(spent_ms) };
    match permit.store(&stored_head, asked, when) {
        Stored::Filling(hit, mut writer) => {
            writer.push(&bytes);
            writer.finish().map_err(Problem::internal)?;
            Ok(Made::Kept(hit))
        }
        Stored::Pass(reason) => Ok(Made::Passed(Response::from_parts(head, full(bytes)), reason)),
        Stored::Unfitting(_) => Err(Problem::internal("a part was asked for where there are none")),
    }
}

/// The head under which an answer is offered to the cache.
async fn storable(node: &Arc<Node>, site: &Site, head: &response::Parts, bytes: &Bytes) -> response::Parts {
    let mut stored = head.clone();
    if head.status != StatusCode::OK || head.extensions.get::<Degraded>().is_some() {
        return stored;
    }
    // By the chain of now: if another one has come into use meanwhile, the answer is invalid already.
    let has_hook = match node.chains.of(site).await {
        Some(chain) => chain.has(Hook::Catalog),
        None => true,
    };
    let lifetime = if has_hook { node.pages.0.catalogue_lifetime } else { PLAIN_LIFETIME };
    let headers = &mut stored.headers;
    headers.insert(CDN_CACHE_CONTROL, number("max-age=", lifetime.as_secs()));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    let digest = Digest::of(bytes).to_string();
    let etag = format!("\"{}\"", &digest[..ETAG_DIGITS]);
    headers.insert(ETAG, HeaderValue::from_str(&etag).expect("hexadecimal digits are visible ASCII"));
    if has_hook {
        headers.insert(VARY, HeaderValue::from_static("accept-language"));
    }
    stored
}

fn number(before: &str, seconds: u64) -> HeaderValue {
    HeaderValue::from_str(&format!("{before}{seconds}")).expect("a directive and a number are visible ASCII")
}

fn send(node: &Node, hit: Hit, asked: &Asked, exchange: &Exchange) -> Response<Body> {
    let spent_ms = u64::try_from(exchange.started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let mut response = node.pages.send(hit, asked, exchange.now_ms.saturating_add(spent_ms));
    let headers = response.headers_mut();
    headers.remove(CDN_CACHE_CONTROL);
    headers.remove(ACCEPT_RANGES);
    response
}

async fn make(
    node: &Arc<Node>,
    site: &Arc<Site>,
    exchange: &mut Exchange,
    route: &Route,
    reads: Option<&Arc<Reads>>,
) -> Result<Response<Body>, Problem> {
    let mut ask = Ask::new(node, site, exchange)?;
    ask.reads = reads.cloned();
    ask.catalogue(route).await
}

#[cfg(test)]
mod tests {
    use super::keyed_as;

    #[test]
    fn an_answer_of_the_catalogue_has_one_key_however_it_is_asked_for() {
        let key = |written: &str| keyed_as(written);
        assert_eq!(key("/api/products?limit=3&q=green+tea"), key("/api/products?q=green%20tea&limit=3"));
        assert_eq!(key("/%61pi/products").as_deref(), Some("/api/products"));
        assert_eq!(key("/api/products?limit=3&x=1").as_deref(), Some("/api/products?limit=3"));
        assert_eq!(key("/api/products/A%2DB"), key("/api/products/A-B"));
        for other in ["/tea", "/api/carts", "/api/products?limit=none", "//", "/api/orders/x"] {
            assert_eq!(key(other), None, "{other}");
        }
    }
}
