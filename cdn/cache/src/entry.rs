//! What is stored: entries, and the few variants of one key that stand together.
//!
//! An entry never changes. A 304 or the end of a fill makes a new one that shares the bytes of the body, so that a hit
//! reads without a lock.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{
    AGE, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, DATE, HeaderMap, HeaderName, HeaderValue,
    SET_COOKIE, TRANSFER_ENCODING,
};
use http::{Response, StatusCode, response};

use crate::admit::Admitted;
use crate::coding::{self, Coding, Encodings, Made};
use crate::date;
use crate::directives::ResponseDirectives;
use crate::fields::{header_bytes, remove_hop_by_hop};
use crate::fill::Growing;
use crate::freshness::{Exchanged, Freshness};
use crate::in_file::InFile;
use crate::part::Span;
use crate::prepared::Prepared;
use crate::status::CACHE_STATUS;
use crate::tags::{self, Birth};
use crate::vary::{VARIANTS_MAX, Variant};

/// What the map and the entry cost beyond the bytes that are counted one by one.
const ENTRY_OVERHEAD_BYTES: usize = 512;
/// What one chunk costs beyond its bytes.
const CHUNK_OVERHEAD_BYTES: usize = 64;

/// One stored response.
#[derive(Clone, Debug)]
pub struct Entry {
    pub status: StatusCode,
    /// End-to-end fields, with a Date and without an Age.
    pub headers: HeaderMap,
    pub freshness: Freshness,
    pub variant: Variant,
    pub body: StoredBody,
    /// Where the body stands in the whole, if it is a part of it only.
    pub span: Option<Span>,
    /// What it was made from, and when.
    pub birth: Birth,
    /// Heads that were made of it for plain requests, while they still say the same.
    pub(crate) prepared: Prepared,
}

/// The bytes of an entry.
#[derive(Clone, Debug)]
pub enum StoredBody {
    Whole(Chunks),
    /// Still arriving: joiners read along.
    Growing(Arc<Growing>),
}

/// A whole body in reference-counted pieces.
#[derive(Clone, Debug)]
pub struct Chunks {
    pub(crate) list: Arc<[Bytes]>,
    pub(crate) total: u64,
    /// Its encodings, where it may have any.
    pub(crate) encodings: Option<Arc<Encodings>>,
    /// The same bytes in a file, where they may have one.
    pub(crate) in_file: Option<Arc<InFile>>,
}

impl Chunks {
    pub(crate) fn new(list: Vec<Bytes>) -> Self {
        let total = list.iter().map(|chunk| chunk.len() as u64).sum();
        Self { list: list.into(), total, encodings: None, in_file: InFile::of(total) }
    }

    /// The same bytes as the body of a response with this head: what encodings they have stays, if they may have any.
    fn under(self, status: StatusCode, headers: &HeaderMap) -> Self {
        let codable = coding::is_codable(status, headers, self.total);
        let encodings = codable.then(|| self.encodings.unwrap_or_default());
        Self { encodings, ..self }
    }

    pub fn total(&self) -> u64 {
        self.total
    }
}

impl StoredBody {
    pub(crate) fn under(self, status: StatusCode, headers: &HeaderMap) -> Self {
        match self {
            Self::Whole(chunks) => Self::Whole(chunks.under(status, headers)),
            growing @ Self::Growing(_) => growing,
        }
    }
}

impl Entry {
    /// The entry of a response with this head, admitted as said: a whole one.
    pub(crate) fn new(
        head: &response::Parts,
        admitted: Admitted,
        now_ms: u64,
        body: StoredBody,
        birth: Birth,
    ) -> Self {
        let mut headers = head.headers.clone();
        remove_hop_by_hop(&mut headers);
        for name in &admitted.forbidden {
            headers.remove(name);
        }
        tags::remove_from(&mut headers);
        // An upstream's own Cache-Status stays: it is a list, and each cache adds its member.
        headers.remove(AGE);
        add_date(&mut headers, now_ms);
        let Admitted { freshness, variant, .. } = admitted;
        let body = body.under(head.status, &headers);
        let prepared = Prepared::default();
        Self { status: head.status, headers, freshness, variant, body, span: None, birth, prepared }
    }

    /// The same entry as a part of the whole.
    pub(crate) fn with_span(mut self, span: Option<Span>) -> Self {
        if span.is_some() {
            // It is the part's, and what is sent of it is another part.
            self.headers.remove(CONTENT_LENGTH);
            if let StoredBody::Whole(chunks) = &mut self.body {
                chunks.encodings = None;
            }
        }
        self.span = span;
        self
    }

    /// The same entry, stale since `at_ms`; `counted` is the last purge that this takes into account.
    pub(crate) fn softened(&self, at_ms: u64, counted: u64) -> Self {
        let (freshness, birth) = (self.freshness.softened(at_ms), self.birth.softened(counted));
        Self { freshness, birth, ..self.clone() }
    }

    /// The same entry with its body whole, and all that it was made from.
    pub(crate) fn completed(&self, chunks: Chunks, birth: Birth) -> Self {
        let mut headers = self.headers.clone();
        let mut chunks = chunks;
        if self.span.is_none() {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(chunks.total));
            chunks = chunks.under(self.status, &headers);
        }
        Self { headers, body: StoredBody::Whole(chunks), birth, ..self.clone_without_body() }
    }

    fn clone_without_body(&self) -> Self {
        Self {
            status: self.status,
            headers: HeaderMap::new(),
            freshness: self.freshness,
            variant: self.variant.clone(),
            body: StoredBody::Whole(Chunks::new(Vec::new())),
            span: self.span,
            birth: self.birth.clone(),
            prepared: Prepared::default(),
        }
    }

    /// The head that the stored response has with the fields of a 304 (RFC 9111 section 3.2): to be judged like the
    /// head of a 200 before anything of it is kept.
    ///
    /// A cookie on a 304 is one client's, however shared the bytes are that it confirms: it does not become part of the
    /// head unless `keeps_cookies`.
    pub(crate) fn merged(&self, fresh: &HeaderMap, keeps_cookies: bool) -> response::Parts {
        let mut update = fresh.clone();
        remove_hop_by_hop(&mut update);
        let mut headers = self.headers.clone();
        // What the 304 does not say of time, the old response cannot say any more either.
        headers.remove(DATE);
        for name in update.keys() {
            if describes_the_body(name) || (*name == SET_COOKIE && !keeps_cookies) {
                continue;
            }
            headers.remove(name);
            for value in update.get_all(name) {
                headers.append(name, value.clone());
            }
        }
        let (mut head, ()) = Response::new(()).into_parts();
        head.status = self.status;
        head.headers = headers;
        head
    }

    /// With what this entry and a merged head are sent once more, where they may not be stored.
    pub(crate) fn admitted_once(&self, head: &response::Parts, when: Exchanged) -> Admitted {
        let said = ResponseDirectives::of(&head.headers);
        let freshness = Freshness::of(&head.headers, &said, false, when)
            .unwrap_or_else(|| Freshness::stale_at_once(&said, when));
        Admitted { freshness, variant: self.variant.clone(), forbidden: said.fields, length: None }
    }

    /// The fields of an upstream's answer that its own client gets and this entry does not hold: cookies, and what the
    /// upstream forbade to replay.
    pub(crate) fn withheld(&self, answer: &HeaderMap, forbidden: &[HeaderName]) -> HeaderMap {
        let mut answer = answer.clone();
        remove_hop_by_hop(&mut answer);
        let mut out = HeaderMap::new();
        for name in forbidden.iter().chain([&SET_COOKIE]) {
            let ours =
                describes_the_body(name) || [AGE, DATE, tags::SURROGATE_KEY, tags::CACHE_TAG].contains(name);
            if ours || out.contains_key(name) || self.headers.contains_key(name) {
                continue;
            }
            for value in answer.get_all(name) {
                out.append(name, value.clone());
            }
        }
        out
    }

    /// The same entry with one more encoding, if this is its body.
    fn with_encoding(&self, of: &Chunks, coding: Coding, made: &Made) -> Option<Self> {
        let StoredBody::Whole(chunks) = &self.body else { return None };
        let encodings = chunks.encodings.as_ref().filter(|_| Arc::ptr_eq(&chunks.list, &of.list))?;
        let encodings = Some(Arc::new(encodings.with(coding, made.clone())));
        Some(Self { body: StoredBody::Whole(Chunks { encodings, ..chunks.clone() }), ..self.clone() })
    }

    /// Whether both are the same response, however many encodings each has.
    fn is(self: &Arc<Self>, other: &Arc<Self>) -> bool {
        let same_bytes = match (&self.body, &other.body) {
            (StoredBody::Whole(own), StoredBody::Whole(others)) => Arc::ptr_eq(&own.list, &others.list),
            _ => false,
        };
        let same_age = self.freshness == other.freshness && self.birth.is_of(&other.birth);
        Arc::ptr_eq(self, other) || (same_bytes && same_age)
    }

    /// The length of the stored body, where it is known already.
    pub fn length(&self) -> Option<u64> {
        match &self.body {
            StoredBody::Whole(chunks) => Some(chunks.total),
            StoredBody::Growing(growing) => growing.length(),
        }
    }

    fn bytes(&self) -> usize {
        let body = match &self.body {
            StoredBody::Whole(chunks) => usize::try_from(chunks.total)
                .unwrap_or(usize::MAX)
                .saturating_add(chunks.list.len() * CHUNK_OVERHEAD_BYTES)
                .saturating_add(
                    chunks
                        .encodings
                        .as_ref()
                        .map_or(0, |encodings| usize::try_from(encodings.bytes()).unwrap_or(usize::MAX)),
                ),
            StoredBody::Growing(_) => 0,
        };
        // Once as they are stored, and twice in each coding in which they are sent: as fields and in bytes.
        let encodings = match &self.body {
            StoredBody::Whole(Chunks { encodings: Some(encodings), .. }) => encodings.made().count(),
            StoredBody::Whole(_) | StoredBody::Growing(_) => 0,
        };
        let heads = (3 + 2 * encodings) * header_bytes(&self.headers);
        let beside = heads + self.variant.bytes() + self.birth.bytes();
        body.saturating_add(beside + ENTRY_OVERHEAD_BYTES)
    }
}

/// Fields that a 304 cannot change, for the stored bytes are what they are.
fn describes_the_body(name: &HeaderName) -> bool {
    [CONTENT_LENGTH, CONTENT_ENCODING, CONTENT_RANGE, TRANSFER_ENCODING].contains(name)
        || *name == CACHE_STATUS
}

/// RFC 9110 section 6.6.1: a recipient with a clock dates what came without a date.
fn add_date(headers: &mut HeaderMap, now_ms: u64) {
    if !headers.contains_key(DATE) {
        let value = HeaderValue::from_str(&date::format(now_ms)).expect("a date is ASCII");
        headers.insert(DATE, value);
    }
}

/// The variants of one key, the newest first.
#[derive(Clone, Debug, Default)]
pub struct Resource {
    entries: Vec<Arc<Entry>>,
}

impl Resource {
    /// The newest entry that answers a request with these fields.
    pub fn select(&self, request: &HeaderMap) -> Option<&Arc<Entry>> {
        self.entries.iter().find(|entry| entry.variant.matches(request))
    }

    /// With `entry` in front, in the place of the same variant; at most [`VARIANTS_MAX`] of them.
    #[must_use]
    pub fn with(&self, entry: Arc<Entry>) -> Self {
        let mut entries = Vec::with_capacity((self.entries.len() + 1).min(VARIANTS_MAX));
        let others = self.entries.iter().filter(|held| held.variant != entry.variant).cloned();
        let others: Vec<_> = others.take(VARIANTS_MAX - 1).collect();
        entries.push(entry);
        entries.extend(others);
        Self { entries }
    }

    /// The only variant, if its upstream varies it by nothing.
    pub(crate) fn only(&self) -> Option<&Arc<Entry>> {
        match self.entries.as_slice() {
            [only] if only.variant.names().next().is_none() => Some(only),
            _ => None,
        }
    }

    /// The entry that is this variant, whatever else it is.
    pub(crate) fn of_variant(&self, variant: &Variant) -> Option<&Arc<Entry>> {
        self.entries.iter().find(|held| held.variant == *variant)
    }

    /// Whether this very entry stands here.
    pub fn holds(&self, entry: &Arc<Entry>) -> bool {
        self.entries.iter().any(|held| held.is(entry))
    }

    /// Without this very entry; nothing if no other is left.
    pub fn without(&self, gone: &Arc<Entry>) -> Option<Self> {
        let entries: Vec<_> = self.entries.iter().filter(|held| !held.is(gone)).cloned().collect();
        (!entries.is_empty()).then_some(Self { entries })
    }

    /// With one more encoding of this body.
    #[must_use]
    pub(crate) fn with_encoding(&self, of: &Chunks, coding: Coding, made: &Made) -> Self {
        let entries = self.entries.iter().map(|entry| match entry.with_encoding(of, coding, made) {
            Some(encoded) => Arc::new(encoded),
            None => Arc::clone(entry),
        });
        Self { entries: entries.collect() }
    }

    /// Every field that some variant varies by.
    pub fn names(&self) -> Vec<HeaderName> {
        let mut names: Vec<HeaderName> = Vec::new();
        for name in self.entries.iter().flat_map(|entry| entry.variant.names()) {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        names
    }

    /// The newest first.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries.iter()
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.entries.iter().map(|entry| entry.bytes()).fold(0, usize::saturating_add)
    }
}
