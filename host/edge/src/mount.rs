//! A site's HTTP releases on their routes: which one a path belongs to, and the way of a request into it.
//!
//! Owns what the component is told of the request beside what its client said, and the order of things with the cache: a
//! page is kept if its own fields allow that, with the names of what it read of its shop. Refuses to know how a component is
//! loaded ([`crate::chain`]), what it may do (`souk_sandbox::http`) and what may be stored (`souk_cache`). Called by
//! [`crate::serve`], which has checked the request's framing and authority.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, HOST, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode, request};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty};
use souk_cache::cache::Failure;
use souk_cache::fields::remove_hop_by_hop;
use souk_cache::freshness::Exchanged;
use souk_cache::key::MethodClass;
use souk_cache::{
    Asked, Explanation, FillPermit, FillWriter, Hit, Key, Lookup, PassReason, Purge, Scheme, Scope, Stored,
    conditional, vary,
};
use souk_commerce::id::SiteId;
use souk_sandbox::http::HttpFault;

use crate::admission::admit;
use crate::chain::{Chains, Mount, SiteChain};
use crate::component::{Answered, absolute, refused};
use crate::http::{Body, BodyError, Exchange, RequestBody, later, now_ms};
use crate::listen::Peer;
use crate::node::Node;
use crate::page_cache::{Reads, Room};
use crate::rescue::{Problem, Refusal};
use crate::route::Route;
use crate::state::Site;
use crate::upstream::forward;
use crate::upstream::pour::{Poured, pour};

/// How requests of guests sign themselves: see the sandbox's outbound requests.
const GUEST: &str = "souk-guest";
/// Times that a component is asked for one page: a 304 that speaks of another version costs a second question.
const QUESTIONS_MAX: usize = 2;

/// The chain whose HTTP release answers this path, and the decoded path; none if the path is the shop's own.
pub(crate) async fn find(
    chains: &Arc<Chains>,
    site: &Site,
    head: &request::Parts,
) -> Result<Option<(Arc<SiteChain>, String)>, Problem> {
    if !chains.has_mounts(site) {
        return Ok(None);
    }
    // Read as any path of the shop, so that no spelling of a route passes by its component.
    let Some(path) = Route::beside_the_api(head.uri.path())? else { return Ok(None) };
    let Some(chain) = chains.of(site).await else {
        return Err(Problem::new(Refusal::ChainNotReady, "the shop's plugins are being fetched"));
    };
    Ok(chain.mount_of(&path).is_some().then_some((chain, path)))
}

/// One page: out of what is kept, or by the component on its route.
pub(crate) async fn answer(
    node: &Arc<Node>,
    site: &Arc<Site>,
    found: (Arc<SiteChain>, String),
    exchange: &Exchange,
    host: &str,
    body: RequestBody,
) -> Result<Response<Body>, Problem> {
    check_loop(&exchange.head.headers)?;
    let mut head = exchange.head.clone();
    // What a client could say to pretend to be somebody else.
    forward::remove_unkeyed(&mut head.headers);
    let asked = asked(site, &head, host, exchange.peer.tls)?;
    if exchange.peer.tls {
        head.uri = absolute(&head.uri, "https", host)?;
    }
    let (chain, path) = found;
    let page = Page { node: Arc::clone(node), site: site.id.clone(), path, head, peer: exchange.peer };
    if brings_a_body(&asked) {
        return page.pass(site, &chain, &asked, body, PassReason::Body).await;
    }
    let now_ms = || later(exchange.now_ms, exchange.started);
    let pages = &node.pages;
    match pages.cache().look_up(exchange.now_ms, &asked).await {
        Lookup::Hit(hit) | Lookup::Failed(_, Some(hit)) => Ok(pages.send(hit, &asked, now_ms())),
        Lookup::Stale(hit, permit) => {
            let asked_again = asked.clone();
            // Nobody waits for it; what goes wrong is in the journal.
            tokio::spawn(async move { page.fill(permit, &asked_again).await.is_ok() });
            Ok(pages.send(hit, &asked, now_ms()))
        }
        Lookup::Miss(permit) => match page.fill(permit, &asked).await? {
            Filled::Hit(hit) => Ok(pages.send(hit, &asked, now_ms())),
            Filled::Pass(response, reason) => Ok(pages.passed(&site.id, response, reason)),
        },
        Lookup::Pass(reason) => page.pass(site, &chain, &asked, body, reason).await,
        Lookup::Failed(Failure(name), None) => {
            let why = "the shop's plugin for this path did not answer";
            Err(Problem::new(Refusal::ComponentFailed, why).with("fault", name))
        }
        Lookup::OnlyIfCached => {
            let why = "The request asks for what is stored, and nothing is.";
            Err(Problem::new(Refusal::OnlyIfCached, why))
        }
    }
}

/// What would become of a request for a page. Nothing happens.
pub(crate) fn explain(
    node: &Node,
    site: &Site,
    head: &request::Parts,
    host: &str,
    tls: bool,
    now_ms: u64,
) -> Result<Explanation, Problem> {
    admit(head)?;
    check_loop(&head.headers)?;
    let mut head = head.clone();
    forward::remove_unkeyed(&mut head.headers);
    let asked = asked(site, &head, host, tls)?;
    let explanation = node.pages.cache().explain(now_ms, &asked);
    Ok(if brings_a_body(&asked) { explanation.passing(PassReason::Body) } else { explanation })
}

/// What answers a path, in words.
pub(crate) fn name(chain: &SiteChain, path: &str) -> String {
    let plugin = chain.mount_of(path).map_or_else(String::new, |mount| {
        format!("{}, release {}, on route {}: ", mount.plugin, mount.release, mount.route)
    });
    format!("{plugin}what its page was made from takes it back")
}

fn check_loop(headers: &HeaderMap) -> Result<(), Problem> {
    if forward::loops(headers, GUEST) {
        let why = "a component's own request leads to a component again";
        return Err(Problem::new(Refusal::LoopDetected, why));
    }
    Ok(())
}

/// Whether a request comes with a body that no key tells the meaning of.
fn brings_a_body(asked: &Asked) -> bool {
    MethodClass::of(&asked.method) == MethodClass::Retrieval && forward::announces_body(&asked.headers)
}

/// A request as the cache sees it: everything that the component is told is in the key, or in the fields that it may vary
/// by.
fn asked(site: &Site, head: &request::Parts, host: &str, tls: bool) -> Result<Asked, Problem> {
    let scheme = if tls { Scheme::Https } else { Scheme::Http };
    let authority = match head.uri.authority() {
        Some(authority) => authority.as_str(),
        None => head.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or(host),
    };
    let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
    let key = Key::new(site.id.as_str(), scheme, authority, target);
    let key = key.map_err(|error| Problem::new(Refusal::BadPath, error.to_string()))?;
    let mut headers = head.headers.clone();
    remove_hop_by_hop(&mut headers);
    Ok(Asked::new(key, head.method.clone(), headers))
}

/// A page to be made: all that it takes, also when its client has gone.
struct Page {
    node: Arc<Node>,
    site: SiteId,
    path: String,
    head: request::Parts,
    peer: Peer,
}

enum Filled {
    Hit(Hit),
    Pass(Response<Body>, PassReason),
}

impl Page {
    /// Has the component make the page for everybody. Dropping it before the head has come lets one of those who wait take
    /// over; from then on the page is made to its end, whoever reads it.
    async fn fill(self, mut permit: FillPermit, asked: &Asked) -> Result<Filled, Problem> {
        let mut conditions = permit.conditions(asked);
        for _ in 0..QUESTIONS_MAX {
            // After the permit: what is read from here on is no older than its place in the order of changes.
            let world = self.node.replica.world();
            let site = world
                .site(&self.site)
                .ok_or_else(|| Problem::new(Refusal::UnknownHost, "the shop is gone"))?;
            let chain = self.node.chains.of(site).await;
            let chain = chain.ok_or_else(|| {
                Problem::new(Refusal::ChainNotReady, "the shop's plugins are being fetched")
            })?;
            let Some(mount) = chain.mount_of(&self.path) else {
                return Err(Problem::new(Refusal::NoAsset, "the shop has just taken this page down"));
            };
            let reads = Reads::of(&self.site);
            let request = self.request_to_store(asked, &conditions);
            let asked_ms = now_ms();
            let began = Instant::now();
            let answered = self.ask(mount, site, request, &reads).await;
            let when = Exchanged { asked_ms, answered_ms: later(asked_ms, began) };
            let response = match answered {
                Ok(response) => response,
                Err(fault) => {
                    let failure = Failure(fault.name());
                    let stale = permit.stale_on_error(when.answered_ms, failure);
                    permit.fail(failure);
                    return stale.map(Filled::Hit).ok_or_else(|| told(&fault));
                }
            };
            if response.status() == StatusCode::NOT_MODIFIED && !conditions.is_empty() {
                permit.tag(reads.tags());
                match permit.confirm(response.headers(), asked, when) {
                    Ok(hit) => return Ok(Filled::Hit(hit)),
                    Err(unconfirmed) => {
                        permit = unconfirmed;
                        conditions.clear();
                        continue;
                    }
                }
            }
            if matches!(response.status().as_u16(), 500 | 502 | 503 | 504) {
                let failure = Failure("plugin_status");
                if let Some(stale) = permit.stale_on_error(when.answered_ms, failure) {
                    permit.fail(failure);
                    return Ok(Filled::Hit(stale));
                }
            }
            let (head, body) = response.into_parts();
            // It may read of its shop until its body ends.
            permit.leave_tags_open();
            return match permit.store(&head, asked, when) {
                Stored::Filling(hit, writer) => {
                    let key = asked.key.clone();
                    tokio::spawn(pump(body, writer, reads, key));
                    Ok(Filled::Hit(hit))
                }
                Stored::Pass(reason) => {
                    Ok(Filled::Pass(Response::from_parts(head, UnsyncBoxBody::new(body)), reason))
                }
                Stored::Unfitting(_) => Err(Problem::internal("a part was asked for where there are none")),
            };
        }
        let broken = HttpFault::BadResponse("304 to a request without conditions".to_owned());
        permit.fail(Failure(broken.name()));
        Err(told(&broken))
    }

    /// For this client alone.
    async fn pass(
        self,
        site: &Arc<Site>,
        chain: &SiteChain,
        asked: &Asked,
        body: RequestBody,
        reason: PassReason,
    ) -> Result<Response<Body>, Problem> {
        let Some(mount) = chain.mount_of(&self.path) else {
            return Err(Problem::internal("a mount went away"));
        };
        // Nor what a client could say behind the body.
        let body = body.map_frame(|frame| match frame.into_trailers() {
            Ok(mut fields) => {
                forward::remove_unkeyed(&mut fields);
                Frame::trailers(fields)
            }
            Err(frame) => frame,
        });
        let asked_ms = now_ms();
        let began = Instant::now();
        let request = Request::from_parts(self.head.clone(), body);
        let response =
            self.ask(mount, site, request, &Reads::of(&site.id)).await.map_err(|fault| told(&fault))?;
        let cache = self.node.pages.cache();
        let (head, body) = response.into_parts();
        let when = Exchanged { asked_ms, answered_ms: later(asked_ms, began) };
        if MethodClass::of(&asked.method) == MethodClass::Unsafe
            && (head.status.is_success() || head.status.is_redirection())
        {
            // RFC 9111 section 4.4.
            cache.invalidate(&asked.key);
            if head.headers.contains_key("cache-group-invalidation") {
                // The table of purges is all sites' together: a name that a plugin makes up takes no place in it.
                let site = Scope::Site(asked.key.site().into());
                cache.purge(when.answered_ms, &[Purge { scope: site, soft: false }]);
            }
        }
        if asked.is_head() {
            cache.freshen(asked, &head, when);
        }
        let response = Response::from_parts(head, UnsyncBoxBody::new(body));
        Ok(self.node.pages.passed(&self.site, response, reason))
    }

    /// Puts a request to the component.
    async fn ask<B>(
        &self,
        mount: &Mount,
        site: &Arc<Site>,
        request: Request<B>,
        reads: &Arc<Reads>,
    ) -> Result<Response<Answered>, HttpFault>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError>,
    {
        let room = Room {
            node: Arc::clone(&self.node),
            site: Arc::clone(site),
            reads: Arc::clone(reads),
            peer: self.peer,
            now_ms: now_ms(),
        };
        let began = Instant::now();
        let answered = mount.service.handle_with(request, Some(Arc::new(room))).await;
        mount.prints.answered(began.elapsed(), answered.as_ref().err());
        let prints = Arc::clone(&mount.prints);
        // If it breaks off, its merchant reads of it.
        answered
            .map(|response| response.map(|body| Answered::new(body, move |fault| prints.broke_off(fault))))
    }

    /// The request for a page to store: with what the cache asks for in the place of the client's own conditions and range.
    fn request_to_store(&self, asked: &Asked, conditions: &HeaderMap) -> Request<Empty<Bytes>> {
        let mut head = self.head.clone();
        head.method = Method::GET;
        for name in conditional::OF_THE_CLIENT {
            head.headers.remove(name);
        }
        // The spelling that variants are compared in.
        match vary::accept_encoding(&asked.headers) {
            Some(codings) => head.headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(codings)),
            None => head.headers.remove(ACCEPT_ENCODING),
        };
        head.headers.extend(conditions.iter().map(|(name, value)| (name.clone(), value.clone())));
        Request::from_parts(head, Empty::new())
    }
}

/// Moves a page into the cache, whether or not a client still reads it. Only at its end it is known what it was made from.
async fn pump(body: Answered, mut writer: FillWriter, reads: Arc<Reads>, key: Key) {
    let ended = match pour(body, &mut writer, |_| ()).await {
        Poured::Whole if reads.is_degraded() => writer.finish_unstored(),
        Poured::Whole => writer.finish_with(&reads.tags()),
        // Of a fault its merchant reads. The writer goes, and every reader's body is aborted.
        Poured::Unread | Poured::Broken(_) => return,
    };
    if let Err(error) = ended {
        tracing::warn!(url = %key, %error, "a plugin's page had another length than it said");
    }
}

/// What a shopper reads of a fault: its name. The words are the merchant's, and in the journal: a trap names functions
/// of the component, and an error holds whatever the component put there.
fn told(fault: &HttpFault) -> Problem {
    let detail = match fault {
        HttpFault::BadRequest(why) => why.clone(),
        _ => "the shop's plugin for this path did not answer".to_owned(),
    };
    refused(fault, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shopper_reads_the_name_of_a_fault_and_none_of_its_words() {
        for fault in [
            HttpFault::Trap("unreachable, in secret_rule".to_owned()),
            HttpFault::Guest("InternalError(Some(\"secret_rule\"))".to_owned()),
            HttpFault::Internal("secret_rule".to_owned()),
        ] {
            let text = format!("{:?}", told(&fault));
            assert!(text.contains(fault.name()) && !text.contains("secret_rule"), "{text}");
        }
    }
}
