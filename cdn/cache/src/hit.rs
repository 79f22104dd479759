//! An answer out of a stored response: what one client gets of it.
//!
//! Owns the making of a 200, 206, 304 or 416 from an entry. Refuses to know why the entry may be sent, which is
//! [`crate::cache`]'s, who makes hits.

use std::sync::Arc;

use http::header::{ACCEPT_RANGES, AGE, CONTENT_LENGTH, CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use http::{Method, Response, StatusCode};

use crate::asked::Asked;
use crate::body::CacheBody;
use crate::coding::{self, EncodingDue};
use crate::conditional::{if_range_holds, not_modified};
use crate::entry::{Entry, StoredBody};
use crate::part::Span;
use crate::range::{self, Part};
use crate::status::{CACHE_STATUS, How};
use crate::tags::Tag;

/// A stored response that a request may be answered with.
#[derive(Debug)]
pub struct Hit {
    entry: Arc<Entry>,
    how: How,
    /// The place in a growing body, taken when the hit was made so that a relay cannot start before it.
    body: Option<CacheBody>,
    /// Fields of the upstream's answer that go to the client whose question it was, and into no store.
    own: Option<Box<HeaderMap>>,
}

impl Hit {
    pub(crate) fn new(entry: Arc<Entry>, how: How) -> Self {
        let body = CacheBody::of(&entry.body, 0, entry.length());
        Self { entry, how, body, own: None }
    }

    pub(crate) fn for_its_client(self, own: HeaderMap) -> Self {
        Self { own: (!own.is_empty()).then(|| Box::new(own)), ..self }
    }

    /// Whether its body can still be read from the first byte.
    pub(crate) fn has_place(&self) -> bool {
        self.body.is_some()
    }

    pub fn how(&self) -> How {
        self.how
    }

    pub fn status(&self) -> StatusCode {
        self.entry.status
    }

    pub fn age_s(&self, now_ms: u64) -> u32 {
        self.entry.freshness.age_s(now_ms)
    }

    /// The names of what it was made from, where it is and all of it included.
    pub fn tags(&self) -> &[Tag] {
        self.entry.birth.tags()
    }

    /// The response for this client: 304 if it has it already, 206 for one range, else the stored status.
    pub fn respond(self, now_ms: u64, asked: &Asked) -> Response<CacheBody> {
        let Self { entry, how, body, own } = self;
        let encoded = coding::select(&entry, asked);
        let stored = encoded.as_ref().map_or(&entry.headers, |(head, _)| head);
        let mut headers = stored.clone();
        coding::vary(&mut headers, &entry, asked);
        if let Some(own) = own {
            headers.extend(*own);
        }
        let age_s = entry.freshness.age_s(now_ms);
        if age_s > 0 || !matches!(how, How::Filled(_)) {
            headers.insert(AGE, HeaderValue::from(age_s));
        }
        headers.append(CACHE_STATUS, how.field(entry.freshness.ttl_s(now_ms), entry.status.as_u16()));

        // Conditions and ranges are about what a GET retrieves (RFC 9110 sections 13.2.1 and 14.2).
        let ok = entry.status == StatusCode::OK && matches!(asked.method, Method::GET | Method::HEAD);
        let mut status = entry.status;
        let mut body = match &encoded {
            Some((_, chunks)) => Some(CacheBody::whole(chunks.clone())),
            None => body,
        }
        // A fill that broke between the look-up and here has no reader: the body says so when it is polled.
        .unwrap_or_else(CacheBody::aborted);
        if ok && not_modified(&asked.headers, stored) {
            status = StatusCode::NOT_MODIFIED;
            headers.remove(CONTENT_LENGTH);
            headers.remove(CONTENT_RANGE);
            body = CacheBody::empty();
        } else if asked.is_head() {
            body = CacheBody::empty();
        } else if let Some(span) = entry.span {
            status = StatusCode::PARTIAL_CONTENT;
            body = of_part(body, span, &mut headers, &entry.headers, asked);
        } else if ok
            && encoded.is_none()
            && let Some(length) = entry.length()
        {
            headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
            let wanted = asked.headers.get(RANGE).filter(|_| if_range_holds(&asked.headers, &entry.headers));
            match wanted.map_or(Part::Whole, |wanted| range::part(wanted.as_bytes(), length)) {
                Part::Whole => {}
                Part::Slice { first, last } => {
                    status = StatusCode::PARTIAL_CONTENT;
                    headers.insert(CONTENT_RANGE, content_range(first, last, length));
                    headers.insert(CONTENT_LENGTH, HeaderValue::from(last - first + 1));
                    body = body.slice(first, last - first + 1);
                }
                Part::Unsatisfiable => {
                    status = StatusCode::RANGE_NOT_SATISFIABLE;
                    headers.insert(CONTENT_RANGE, text(&format!("bytes */{length}")));
                    headers.insert(CONTENT_LENGTH, HeaderValue::from(0u64));
                    body = CacheBody::empty();
                }
            }
        }
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }

    /// The encoding that this client would have liked, where the cache adds encodings and has not made it yet.
    pub fn encoding_due(&self, asked: &Asked) -> Option<EncodingDue> {
        coding::due(&asked.key, &self.entry, asked)
    }

    /// Whether all of the body is here.
    pub fn is_whole(&self) -> bool {
        matches!(self.entry.body, StoredBody::Whole(_))
    }
}

/// What of a stored part the client gets: the bytes that it asks for, or all of it where the upstream chose for this
/// very client. What it chose, it says itself, in the fields that only this client gets.
fn of_part(
    body: CacheBody,
    span: Span,
    headers: &mut HeaderMap,
    stored: &HeaderMap,
    asked: &Asked,
) -> CacheBody {
    let (first, last) = match span.answers(asked, stored) {
        Some(part) if !headers.contains_key(CONTENT_RANGE) => part,
        _ => (span.first, span.end - 1),
    };
    if !headers.contains_key(CONTENT_RANGE) {
        headers.insert(CONTENT_RANGE, content_range(first, last, span.complete));
    }
    headers.insert(CONTENT_LENGTH, HeaderValue::from(last - first + 1));
    body.slice(first - span.first, last - first + 1)
}

fn content_range(first: u64, last: u64, complete: u64) -> HeaderValue {
    text(&format!("bytes {first}-{last}/{complete}"))
}

fn text(value: &str) -> HeaderValue {
    HeaderValue::from_str(value).expect("numbers and a slash are visible ASCII")
}
