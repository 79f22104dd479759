//! A request, as the cache sees it.
//!
//! Owns the reading of a request's own wishes. The edge makes one `Asked` an exchange, before anything is looked up.

use http::header::{AUTHORIZATION, HeaderMap, IF_MATCH, IF_UNMODIFIED_SINCE, RANGE};
use http::{Method, Request};

use crate::directives::RequestDirectives;
use crate::key::Key;
use crate::policy::Policy;
use crate::reason::PassReason;

/// What one request asks for: where (the key), which variant (the fields), and under which conditions.
#[derive(Clone, Debug)]
pub struct Asked {
    pub key: Key,
    pub method: Method,
    /// The client's fields, without hop-by-hop ones. Variants, conditions and ranges are judged by these, never by
    /// the fields that are forwarded.
    pub headers: HeaderMap,
    pub directives: RequestDirectives,
    /// How far the cache goes for this resource. It must depend on nothing but the key, or two requests for one entry would
    /// disagree about what may be done with it.
    pub policy: Policy,
    /// Nothing stale will do, whoever allowed it: another cache asks, which would keep it as if it were not stale.
    pub by_cache: bool,
}

impl Asked {
    pub fn new(key: Key, method: Method, headers: HeaderMap) -> Self {
        let directives = RequestDirectives::of(&headers);
        Self { key, method, headers, directives, policy: Policy::SAFE, by_cache: false }
    }

    /// The same under another policy than the safe one.
    #[must_use]
    pub fn under(self, policy: Policy) -> Self {
        Self { policy, ..self }
    }

    /// The same on behalf of another cache that trusts this one.
    #[must_use]
    pub fn by_cache(self) -> Self {
        Self { by_cache: true, ..self }
    }

    pub fn of<B>(key: Key, request: &Request<B>) -> Self {
        Self::new(key, request.method().clone(), request.headers().clone())
    }

    pub fn is_head(&self) -> bool {
        self.method == Method::HEAD
    }

    /// Credentials for the upstream: then only a response that says so may be shared.
    pub fn is_authorized(&self) -> bool {
        self.headers.contains_key(AUTHORIZATION)
    }

    pub fn wants_range(&self) -> bool {
        self.headers.contains_key(RANGE)
    }

    /// What the client asks of caches, where it has a say in that.
    pub(crate) fn obeyed(&self) -> Option<&RequestDirectives> {
        self.policy.client_directives.then_some(&self.directives)
    }

    /// What about the request alone keeps it from the cache.
    pub(crate) fn pass_reason(&self) -> Option<PassReason> {
        if !matches!(self.method, Method::GET | Method::HEAD) {
            return Some(PassReason::Method);
        }
        // Only the upstream can say that a precondition for a change holds (RFC 9110 section 13.2.1).
        if self.headers.contains_key(IF_MATCH) || self.headers.contains_key(IF_UNMODIFIED_SINCE) {
            return Some(PassReason::Precondition);
        }
        self.policy.pass.then_some(PassReason::Policy)
    }
}
