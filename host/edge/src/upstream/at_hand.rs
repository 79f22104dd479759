//! The short way to a hit: the answer to a plain request, for HTTP/1.1 in the bytes that hyper would write.
//!
//! Everything that the long way ([`Proxy::handle`]) asks of a request is asked here of one that is plain, or answered by
//! its being plain; where the two could differ, this one has no answer. `docs/decisions/2026-11-30-hits-before-hyper.md`
//! tells them apart check by check, and the tests beside [`crate::proxy`] hold them to the same bytes.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ALT_SVC, CONTENT_LENGTH};
use http::{Response, request};
use http_body_util::BodyExt as _;
use souk_cache::Scheme;
use souk_cache::cache::{AtHand, InBytes, PlainGet};
use souk_cache::key::KeyRef;

use super::proxy::{Proxy, forwarded};
use super::telemetry::HIT;
use crate::access::{AccessLog, TraceId};
use crate::http::{Body, OF_A_CONNECTION};
use crate::listen::Peer;
use crate::trace::Place;
use crate::wire::{Plain, Ready};

/// What a line of a head has beside name and value.
const FIELD_BYTES: usize = 4;

impl Proxy {
    /// The answer to a plain request of HTTP/1.1 that arrived at `now_ms`, if it is stored and fresh.
    ///
    /// `admits` is asked once there is one, and never where there is none: the long way asks it too.
    pub(crate) fn at_hand(
        &self,
        plain: &Plain<'_>,
        peer: Peer,
        now_ms: u64,
        log: Option<&Arc<AccessLog>>,
        admits: impl FnOnce() -> bool,
    ) -> Option<Ready> {
        let InBytes { head, body, file } = self.find_at_hand(plain, peer, now_ms)?.into_bytes()?;
        if !admits() {
            return None;
        }
        let line = match log {
            None => None,
            Some(log) => Some(log.line_of(plain, peer.addr.ip(), now_ms, self.trace_id())?),
        };
        self.0.kept.count(&self.0.site, HIT, None);
        Some(Ready { head, tail: Bytes::new(), body, file, line })
    }

    /// The same for one of HTTP/2 or HTTP/3.
    pub(crate) fn at_hand_as_message(
        &self,
        head: &request::Parts,
        has_no_body: bool,
        peer: Peer,
        now_ms: u64,
        admits: impl FnOnce() -> bool,
    ) -> Option<Response<Body>> {
        let plain = Plain::of_stream(head).filter(|_| has_no_body)?;
        let found = self.find_at_hand(&plain, peer, now_ms)?;
        if !admits() {
            return None;
        }
        let mut response = found.into_response().map(|body| body.map_err(Into::into).boxed_unsync());
        self.tell(&mut response, HIT, None);
        if let Some(id) = self.trace_id() {
            response.extensions_mut().insert(TraceId(id));
        }
        Some(response)
    }

    fn find_at_hand(&self, plain: &Plain<'_>, peer: Peer, now_ms: u64) -> Option<AtHand> {
        let inner = &self.0;
        // Who is sampled, and what a trusted sender says, is found out on the long way.
        let watcher = inner.kept.watcher();
        if watcher.traces() || (plain.traced && watcher.logs()) {
            return None;
        }
        if plain.vouches && (inner.shield.is_some() || !self.config().trusted.is_empty()) {
            return None;
        }
        let scheme = if peer.tls { Scheme::Https } else { Scheme::Http };
        let get = PlainGet {
            key: KeyRef::plain(&inner.site, scheme, plain.host, plain.target)?,
            policy: self.policy_of(plain.target),
            lends: plain.lends,
            directs: plain.directs,
            fields: &|| forwarded(plain.fields()),
            write: head_of,
        };
        inner.kept.cache().at_hand(now_ms, &get)
    }

    /// By which a line of the access log is found.
    fn trace_id(&self) -> Option<String> {
        self.0.kept.watcher().logs().then(|| Place::begin().id())
    }
}

/// A head as hyper writes it, up to its last field. None for one that hyper, or the door, would change.
fn head_of(response: &Response<()>) -> Option<Bytes> {
    let headers = response.headers();
    if OF_A_CONNECTION.iter().chain([&ALT_SVC]).any(|name| headers.contains_key(name)) {
        return None;
    }
    // hyper says the length of no bytes last.
    if headers.get(CONTENT_LENGTH).is_none_or(|length| length == "0") {
        return None;
    }
    let line: &[u8] = b"HTTP/1.1 200 OK\r\n";
    let fields: usize =
        headers.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD_BYTES).sum();
    let mut head = Vec::with_capacity(line.len() + fields);
    head.extend_from_slice(line);
    for (name, value) in headers {
        head.extend_from_slice(name.as_str().as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    Some(head.into())
}
