//! The answer to a plain GET that is stored and fresh, as it is sent.
//!
//! A shorter way to what [`Cache::look_up`] and [`Hit::respond`] come to, for the commonest of all requests: no key is
//! made, no field of the request copied, and the head is made once a second. Whatever is not plain (a purge to be looked
//! into, something stale, a part, a body that still grows, an encoding to be made) has no answer here, and goes the long
//! way. The head comes from `Hit::respond` itself, so both ways say the same.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode};

use super::Cache;
use crate::admit::content_length;
use crate::asked::Asked;
use crate::body::CacheBody;
use crate::coding::{self, Coding};
use crate::entry::{Chunks, Entry, StoredBody};
use crate::freshness::Use;
use crate::hit::Hit;
use crate::in_file::BodyFile;
use crate::key::KeyRef;
use crate::policy::Policy;
use crate::prepared::Head;
use crate::status::How;

/// A GET without conditions and without a range.
pub struct PlainGet<'a> {
    pub key: KeyRef<'a>,
    pub policy: Policy,
    /// Whether it can be answered with the pages of a file.
    pub lends: bool,
    /// It says something to caches (`Cache-Control`, `Pragma`).
    pub directs: bool,
    /// Makes the client's fields, as [`Asked::headers`] has them. Only where something depends on them.
    pub fields: &'a dyn Fn() -> HeaderMap,
    /// Writes a head, all but its end; none where this one cannot be sent so.
    pub write: fn(&Response<()>) -> Option<Bytes>,
}

/// An answer with nothing left to do but to send it.
#[derive(Debug)]
pub struct AtHand {
    head: Arc<Head>,
    body: Chunks,
    file: Option<Arc<BodyFile>>,
}

/// The same in bytes.
#[derive(Debug)]
pub struct InBytes {
    /// As [`PlainGet::write`] has written it.
    pub head: Bytes,
    /// All of the body, in order.
    pub body: Arc<[Bytes]>,
    /// All of it once more, where the client can be lent it.
    pub file: Option<Arc<BodyFile>>,
}

impl AtHand {
    /// None where [`PlainGet::write`] wrote none.
    pub fn into_bytes(self) -> Option<InBytes> {
        Some(InBytes { head: self.head.bytes.clone()?, body: Arc::clone(&self.body.list), file: self.file })
    }

    /// The same as a message.
    pub fn into_response(self) -> Response<CacheBody> {
        let mut response = Response::new(CacheBody::whole(self.body));
        *response.headers_mut() = self.head.fields.clone();
        response
    }
}

impl Cache {
    /// The answer to a plain GET, if [`look_up`](Self::look_up) would find it fresh. Changes nothing and waits for nobody.
    pub fn at_hand(&self, now_ms: u64, plain: &PlainGet<'_>) -> Option<AtHand> {
        if plain.policy.client_directives && plain.directs {
            return None;
        }
        let resource = self.0.shelf.find_at_hand(plain.key)?;
        let mut fields = None;
        let entry = match resource.only() {
            Some(only) => only,
            None => resource.select(fields.get_or_insert_with(|| (plain.fields)()))?,
        };
        let StoredBody::Whole(whole) = &entry.body else { return None };
        let fresh = entry.freshness.usable(now_ms, None) == Use::Fresh;
        let all = entry.status == StatusCode::OK && entry.span.is_none();
        if !fresh || !all || !self.0.purges.is_untouched(&entry.birth) {
            return None;
        }
        let asked =
            |fields: HeaderMap| Asked::new(plain.key.to_key(), Method::GET, fields).under(plain.policy);
        if whole.encodings.is_none() || !plain.policy.compress {
            // What is sent depends on no field of the request.
            let of = (None, whole.total());
            let head = prepared(entry, now_ms, of, || asked(HeaderMap::new()), plain.write)?;
            return Some(self.with_file(plain, head, whole.clone()));
        }
        let asked = asked(fields.unwrap_or_else(|| (plain.fields)()));
        if coding::is_due(entry, &asked) {
            return None;
        }
        let (coding, sent) = match coding::chosen(entry, &asked) {
            Some((coding, encoded)) => (Some(coding), encoded.clone()),
            None => (None, whole.clone()),
        };
        let head = prepared(entry, now_ms, (coding, sent.total()), || asked, plain.write)?;
        Some(self.with_file(plain, head, sent))
    }

    fn with_file(&self, plain: &PlainGet<'_>, head: Arc<Head>, body: Chunks) -> AtHand {
        let place = body.in_file.as_ref().filter(|_| plain.lends);
        let file = place.and_then(|place| place.get(&body.list, &self.0.files));
        AtHand { head, body, file }
    }
}

/// The head of a hit: the last one that was made, or one that is made now. None where it does not say the length of the body
/// that will follow it: nothing between here and the socket would notice, and the client would read what comes next for its rest.
fn prepared(
    entry: &Arc<Entry>,
    now_ms: u64,
    (coding, length): (Option<Coding>, u64),
    asked: impl FnOnce() -> Asked,
    write: fn(&Response<()>) -> Option<Bytes>,
) -> Option<Arc<Head>> {
    let age_s = entry.freshness.age_s(now_ms);
    if let Some(head) = entry.prepared.get(coding, age_s) {
        return Some(head);
    }
    let response = Hit::new(Arc::clone(entry), How::Fresh).respond(now_ms, &asked()).map(|_| ());
    if response.status() != StatusCode::OK || content_length(response.headers()) != Some(length) {
        return None;
    }
    let bytes = write(&response);
    let head = Arc::new(Head::new(age_s, response.into_parts().0.headers, bytes));
    entry.prepared.put(coding, Arc::clone(&head));
    Some(head)
}
