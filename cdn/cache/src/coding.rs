//! Content codings that the cache adds to what it has stored: which responses are worth one, and what a client gets.
//!
//! Owns the choice and the head of an encoded response (RFC 9110 sections 8.4, 8.8.3 and 12.5.3). Refuses to know the
//! codecs: whoever has threads to spare makes the bytes of an [`EncodingDue`] and hands them back to the cache. They stand
//! beside the identity bytes in the same entry, so that a purge, a 304 and the memory's bound reach both.
//!
//! Only what everybody may have is stored, so no secret of one shopper is compressed beside what another one chose
//! (BREACH); and a response that sets a cookie is left alone even where a policy stores it.

use http::header::{
    ACCEPT_ENCODING, ACCEPT_RANGES, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG,
    HeaderMap, HeaderValue, SET_COOKIE, VARY,
};
use http::{Method, StatusCode};

use crate::asked::Asked;
use crate::directives::forbids_transform;
use crate::entry::{Chunks, Entry, StoredBody};
use crate::key::Key;

/// Below this a head is a good part of the message, and packets are not saved.
const BODY_BYTES_MIN: u64 = 1024;
/// Above this an encoding takes seconds; what is larger is mostly not text.
const BODY_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// An encoding that is larger than so many tenths of the identity is not worth the client's work.
const WORTH_TENTHS: u64 = 9;
/// Fields that speak of the very bytes: what they say of the identity would be a lie about its encoding.
const DIGESTS: [&str; 4] = ["content-digest", "repr-digest", "digest", "content-md5"];

/// A coding that is made here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Coding {
    Br,
    Zstd,
    Gzip,
}

impl Coding {
    /// The one that makes the smallest text first: what is made where a client takes any.
    pub const ALL: [Self; 3] = [Self::Br, Self::Zstd, Self::Gzip];

    /// Its name in `Content-Encoding`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Br => "br",
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
        }
    }

    pub(crate) const fn place(self) -> usize {
        match self {
            Self::Br => 0,
            Self::Zstd => 1,
            Self::Gzip => 2,
        }
    }
}

/// The encodings of one body.
#[derive(Clone, Debug, Default)]
pub(crate) struct Encodings([Made; 3]);

#[derive(Clone, Debug, Default)]
pub(crate) enum Made {
    #[default]
    NotYet,
    /// It was tried, and saves too little.
    Worthless,
    Bytes(Chunks),
}

impl Encodings {
    fn of(&self, coding: Coding) -> &Made {
        &self.0[coding.place()]
    }

    pub(crate) fn with(&self, coding: Coding, made: Made) -> Self {
        let mut out = self.clone();
        out.0[coding.place()] = made;
        out
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.made().map(|(_, chunks)| chunks.total()).sum()
    }

    pub(crate) fn made(&self) -> impl Iterator<Item = (Coding, &Chunks)> {
        Coding::ALL.into_iter().filter_map(|coding| match self.of(coding) {
            Made::Bytes(chunks) => Some((coding, chunks)),
            Made::NotYet | Made::Worthless => None,
        })
    }
}

/// What became of an attempt to encode `of` bytes.
pub(crate) fn judged(encoded: bytes::Bytes, of: u64) -> Made {
    let worth = (encoded.len() as u64).saturating_mul(10) <= of.saturating_mul(WORTH_TENTHS);
    if worth { Made::Bytes(Chunks::new(vec![encoded])) } else { Made::Worthless }
}

/// An encoding that a client would have liked and that is not there yet.
#[derive(Clone, Debug)]
pub struct EncodingDue {
    pub(crate) key: Key,
    pub(crate) body: Chunks,
    coding: Coding,
}

impl EncodingDue {
    pub fn coding(&self) -> Coding {
        self.coding
    }

    /// The bytes to encode, in order.
    pub fn pieces(&self) -> &[bytes::Bytes] {
        &self.body.list
    }

    pub fn total(&self) -> u64 {
        self.body.total()
    }

    /// What tells two of them apart, while both are kept.
    pub fn id(&self) -> (usize, Coding) {
        (self.body.list.as_ptr() as usize, self.coding)
    }
}

/// Whether a stored response with this head and so many bytes may be encoded, and is worth it.
pub(crate) fn is_codable(status: StatusCode, headers: &HeaderMap, bytes: u64) -> bool {
    status == StatusCode::OK
        && (BODY_BYTES_MIN..=BODY_BYTES_MAX).contains(&bytes)
        && ![CONTENT_ENCODING, CONTENT_RANGE, SET_COOKIE].iter().any(|name| headers.contains_key(name))
        && !DIGESTS.iter().any(|name| headers.contains_key(*name))
        && headers.get(CONTENT_TYPE).is_some_and(|kind| is_text(kind.as_bytes()))
        && !forbids_transform(headers)
}

/// Whether a media type is one that compresses: text, and what is written in text.
fn is_text(kind: &[u8]) -> bool {
    let essence = kind.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    let essence = essence.to_ascii_lowercase();
    // Events are sent one by one; whoever waits for one must not wait for a block.
    (essence.starts_with(b"text/") && essence != b"text/event-stream")
        || essence.ends_with(b"+json")
        || essence.ends_with(b"+xml")
        || matches!(
            essence.as_slice(),
            b"application/json"
                | b"application/javascript"
                | b"application/xml"
                | b"application/x-ndjson"
                | b"application/wasm"
                | b"font/ttf"
                | b"font/otf"
        )
}

/// What a client likes, in thousandths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Weights {
    codings: [u16; 3],
    /// Nothing where it is not said: then it is taken, and liked least.
    identity: Option<u16>,
}

impl Weights {
    fn of(request: &HeaderMap) -> Self {
        let mut named = [None; 3];
        let (mut identity, mut any) = (None, None);
        for line in request.get_all(ACCEPT_ENCODING) {
            for member in line.as_bytes().split(|byte| *byte == b',') {
                let mut parts = member.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
                let name = parts.next().unwrap_or_default().to_ascii_lowercase();
                let weight = parts.find_map(weight).unwrap_or(1_000);
                match name.as_slice() {
                    b"br" => named[Coding::Br.place()] = Some(weight),
                    b"zstd" => named[Coding::Zstd.place()] = Some(weight),
                    b"gzip" | b"x-gzip" => named[Coding::Gzip.place()] = Some(weight),
                    b"identity" => identity = Some(weight),
                    b"*" => any = Some(weight),
                    _ => {}
                }
            }
        }
        let mut codings = named.map(|weight| weight.unwrap_or(0));
        // `*` is what old clients and tools send: gzip is the one coding that all of those really read.
        codings[Coding::Gzip.place()] = named[Coding::Gzip.place()].or(any).unwrap_or(0);
        // `*;q=0` shuts identity out too, unless it is named.
        Self { codings, identity: identity.or_else(|| any.filter(|weight| *weight == 0)) }
    }

    fn coding(&self, coding: Coding) -> u16 {
        self.codings[coding.place()]
    }

    /// Whether a coding of this weight is sent rather than the bytes as they are.
    fn prefers(&self, weight: u16) -> bool {
        weight > 0 && self.identity.is_none_or(|identity| weight >= identity)
    }

    fn takes_identity(&self) -> bool {
        self.identity != Some(0)
    }
}

/// How much a request likes a coding that it names, in thousandths. Nothing where it does not name it.
pub fn weight_of(request: &HeaderMap, coding: &str) -> Option<u16> {
    let lines = request.get_all(ACCEPT_ENCODING).iter();
    lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b',')).find_map(|member| {
        let mut parts = member.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
        let named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case(coding.as_bytes()));
        named.then(|| parts.find_map(weight).unwrap_or(1_000))
    })
}

/// `q=0.5` as 500. Nothing for another parameter; what cannot be read is no wish.
fn weight(parameter: &[u8]) -> Option<u16> {
    let text = std::str::from_utf8(parameter).ok()?;
    let (name, value) = text.split_once('=')?;
    if !name.trim().eq_ignore_ascii_case("q") {
        return None;
    }
    let value = value.trim();
    let (whole, part) = value.split_once('.').unwrap_or((value, ""));
    let digits = part.len() <= 3 && part.bytes().all(|byte| byte.is_ascii_digit());
    let thousandths = format!("{part:0<3}").parse().unwrap_or(0);
    Some(match (whole, thousandths) {
        ("1", 0) if digits => 1_000,
        ("0", thousandths) if digits => thousandths,
        _ => 0,
    })
}

/// The encodings of a body that this request may be answered with.
fn encodings<'a>(entry: &'a Entry, asked: &Asked) -> Option<(&'a Chunks, &'a Encodings)> {
    let StoredBody::Whole(chunks) = &entry.body else { return None };
    let retrieval = matches!(asked.method, Method::GET | Method::HEAD);
    let encodings = chunks.encodings.as_deref().filter(|_| asked.policy.compress && retrieval)?;
    Some((chunks, encodings))
}

/// Head and bytes of the encoding that a request is answered with; nothing for the bytes as they are.
///
/// A range is cut from the identity, whose tag is the upstream's and may be a strong one.
pub(crate) fn select(entry: &Entry, asked: &Asked) -> Option<(HeaderMap, Chunks)> {
    let (coding, chunks) = chosen(entry, asked)?;
    Some((head(&entry.headers, coding, chunks.total()), chunks.clone()))
}

/// The encoding that a request is answered with; nothing for the bytes as they are.
pub(crate) fn chosen<'a>(entry: &'a Entry, asked: &Asked) -> Option<(Coding, &'a Chunks)> {
    let (_, encodings) = encodings(entry, asked)?;
    let weights = Weights::of(&asked.headers);
    if asked.wants_range() && weights.takes_identity() {
        return None;
    }
    encodings
        .made()
        .filter(|(coding, _)| weights.prefers(weights.coding(*coding)))
        .max_by_key(|(coding, chunks)| (weights.coding(*coding), u64::MAX - chunks.total()))
}

/// The encoding that this request would like best of all and that nobody has made yet.
pub(crate) fn due(key: &Key, entry: &Entry, asked: &Asked) -> Option<EncodingDue> {
    let (coding, body) = missing(entry, asked)?;
    Some(EncodingDue { key: key.clone(), body: body.clone(), coding })
}

/// Whether there is one.
pub(crate) fn is_due(entry: &Entry, asked: &Asked) -> bool {
    missing(entry, asked).is_some()
}

fn missing<'a>(entry: &'a Entry, asked: &Asked) -> Option<(Coding, &'a Chunks)> {
    let (body, encodings) = encodings(entry, asked)?;
    let weights = Weights::of(&asked.headers);
    // Of equals the first: `max_by_key` would take the last.
    let liked = Coding::ALL.into_iter().rev().max_by_key(|coding| weights.coding(*coding))?;
    let missing = matches!(encodings.of(liked), Made::NotYet);
    (weights.prefers(weights.coding(liked)) && missing).then_some((liked, body))
}

/// Says that another client may get other bytes, where this entry can be encoded, or will be once it is whole.
pub(crate) fn vary(headers: &mut HeaderMap, entry: &Entry, asked: &Asked) {
    let will_be = || {
        let bytes = entry.length().unwrap_or(BODY_BYTES_MIN);
        asked.policy.compress && is_codable(entry.status, &entry.headers, bytes)
    };
    let can_be = match &entry.body {
        StoredBody::Whole(_) => encodings(entry, asked).is_some(),
        StoredBody::Growing(_) => entry.span.is_none() && will_be(),
    };
    if can_be {
        add_vary(headers);
    }
}

/// The head of the encoded response. Its tag is weak: the same page, and not the same bytes (RFC 9110 section 8.8.3.3).
fn head(identity: &HeaderMap, coding: Coding, bytes: u64) -> HeaderMap {
    let mut headers = identity.clone();
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(bytes));
    headers.remove(ACCEPT_RANGES);
    if let Some(tag) = headers.get(ETAG).filter(|tag| tag.as_bytes().starts_with(b"\"")) {
        let weak = [b"W/".as_slice(), tag.as_bytes()].concat();
        match HeaderValue::from_bytes(&weak) {
            Ok(weak) => headers.insert(ETAG, weak),
            Err(_) => headers.remove(ETAG),
        };
    }
    add_vary(&mut headers);
    headers
}

fn add_vary(headers: &mut HeaderMap) {
    let says = |line: &HeaderValue| {
        line.as_bytes()
            .split(|byte| *byte == b',')
            .any(|member| member.trim_ascii().eq_ignore_ascii_case(ACCEPT_ENCODING.as_str().as_bytes()))
    };
    if !headers.get_all(VARY).iter().any(says) {
        headers.append(VARY, HeaderValue::from_static("accept-encoding"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(text: &str) -> Weights {
        let mut map = HeaderMap::new();
        map.insert(ACCEPT_ENCODING, text.parse().expect("test header"));
        Weights::of(&map)
    }

    #[test]
    fn weights_are_read_as_they_are_meant() {
        let table = [
            ("br, gzip", [1_000, 0, 1_000], None),
            ("gzip;q=0.5, BR;q=0.25, zstd ; Q=1.0", [250, 1_000, 500], None),
            ("gzip;q=0", [0, 0, 0], None),
            ("*", [0, 0, 1_000], None),
            ("*;q=0", [0, 0, 0], Some(0)),
            ("identity;q=0, *;q=0.1", [0, 0, 100], Some(0)),
            ("identity, gzip;q=0.2", [0, 0, 200], Some(1_000)),
            ("gzip;q=0, *", [0, 0, 0], None),
            ("x-gzip", [0, 0, 1_000], None),
            ("gzip;q=1.5", [0, 0, 0], None),
            ("gzip;q=0.1234", [0, 0, 0], None),
            ("gzip;q=", [0, 0, 0], None),
            ("", [0, 0, 0], None),
        ];
        for (text, codings, identity) in table {
            assert_eq!(weights(text), Weights { codings, identity }, "{text}");
        }
    }

    #[test]
    fn identity_is_sent_where_it_is_liked_more() {
        assert!(weights("gzip").prefers(1_000));
        assert!(!weights("identity, gzip;q=0.5").prefers(500));
        assert!(weights("identity;q=0.5, gzip").prefers(1_000));
        assert!(!weights("br").prefers(0));
    }

    #[test]
    fn only_whole_texts_without_a_say_in_their_bytes_are_encoded() {
        let judge = |status: u16, fields: &[(&'static str, &str)], bytes| {
            let mut map = HeaderMap::new();
            map.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
            for (name, value) in fields {
                map.insert(*name, value.parse().expect("test header"));
            }
            is_codable(StatusCode::from_u16(status).expect("a status"), &map, bytes)
        };
        assert!(judge(200, &[], 2_000));
        for kind in ["application/json", "image/svg+xml", "Text/CSS", "application/ld+json"] {
            assert!(judge(200, &[("content-type", kind)], 2_000), "{kind}");
        }
        for kind in ["image/png", "text/event-stream", "application/zip", "video/mp4", "texty/x"] {
            assert!(!judge(200, &[("content-type", kind)], 2_000), "{kind}");
        }
        for (name, value) in [
            ("content-encoding", "gzip"),
            ("set-cookie", "a=b"),
            ("cache-control", "max-age=1, No-Transform"),
            ("cdn-cache-control", "no-transform"),
            ("repr-digest", "sha-256=:x:"),
        ] {
            assert!(!judge(200, &[(name, value)], 2_000), "{name}");
        }
        assert!(!judge(404, &[], 2_000) && !judge(200, &[], 1_023) && !judge(200, &[], BODY_BYTES_MAX + 1));
    }

    #[test]
    fn the_encoded_head_speaks_of_the_encoded_bytes() {
        let mut identity = HeaderMap::new();
        for (name, value) in [
            ("etag", "\"a\""),
            ("content-length", "2000"),
            ("vary", "shop-currency"),
            ("accept-ranges", "bytes"),
        ] {
            identity.insert(name, value.parse().expect("test header"));
        }
        let encoded = head(&identity, Coding::Br, 300);
        assert_eq!(
            (&encoded[ETAG], &encoded[CONTENT_LENGTH]),
            (&"W/\"a\"".parse().expect("a tag"), &300.into())
        );
        assert_eq!(encoded[CONTENT_ENCODING], "br");
        assert!(!encoded.contains_key(ACCEPT_RANGES));
        let vary: Vec<_> = encoded.get_all(VARY).iter().collect();
        assert_eq!(vary, ["shop-currency", "accept-encoding"]);
        assert_eq!(head(&encoded, Coding::Br, 300), encoded, "said once");
    }
}
