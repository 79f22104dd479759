//! Large representations that are kept in slices of one size: which are, which slices a range needs, and whether what the
//! upstream sends is a slice of the very version that the answer began with.
//!
//! Owns no bytes: the head of a large representation and each of its slices are entries of their own, under keys that are
//! made here ([`HEAD_PIECE`], [`Version::piece`]), so that single flight, purges, quotas and the disk are theirs as they are
//! any entry's. A slice's key holds the version: slices of two versions can never stand for each other, and those of an old
//! one are found by nobody and leave the cache as what nobody asks for. Pure: heads in, decisions out.

use std::ops::RangeInclusive;

use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, DATE, ETAG, HeaderMap,
    HeaderName, HeaderValue, IF_RANGE, RANGE, TRANSFER_ENCODING,
};
use http::{StatusCode, response};

use crate::admit::content_length;
use crate::directives::ResponseDirectives;
use crate::part::Span;
use crate::tags::{CACHE_TAG, SURROGATE_KEY};

/// One slice: a few seconds of a film, and little beside a memory of a cache. A head of 1 KiB for each is a thousandth.
pub const SLICE_BYTES: u64 = 1 << 20;
/// The piece of a key under which the head of a large representation stands.
pub const HEAD_PIECE: &str = "head";
/// Where that head says the length of what it is the head of. Never sent.
const LENGTH: HeaderName = HeaderName::from_static("x-souk-sliced-length");
/// Longest representation that is kept in slices: nine petabytes, which is more than any file has, and a long way from where
/// sums of places overflow.
pub const LENGTH_MAX: u64 = 1 << 53;
/// Longest tag of a version: it is in the key of each slice.
const TAG_BYTES_MAX: usize = 256;
const CACHE_GROUPS: HeaderName = HeaderName::from_static("cache-groups");
/// A slice is what it is for as long as its version lives, and that is its head's to say: a year.
const FOR_EVER: &str = "max-age=31536000";

/// What tells one version of a large representation from every other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// Strong: byte for byte (RFC 9110 section 8.8.1).
    tag: HeaderValue,
    coding: Option<HeaderValue>,
    length: u64,
    slice_bytes: u64,
}

/// What the answer to a question for a slice is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The slice.
    Slice,
    /// Something of another version, or a sign that there is one.
    Changed,
    /// A sign that this upstream does not answer ranges as it says: the whole of the same version, a part that does not say of
    /// which, or one that may not be kept although the whole may.
    NoSlices,
    /// An error that says nothing of the version.
    Failed,
}

impl Version {
    /// The version that a 200 is the head of, if it is to be kept in slices of `slice_bytes`: longer than `from_bytes`, by an
    /// upstream that says it answers ranges, and with a strong tag.
    pub fn of(head: &response::Parts, from_bytes: u64, slice_bytes: u64) -> Option<Self> {
        let headers = &head.headers;
        let length = content_length(headers).filter(|length| *length > from_bytes)?;
        let ranges =
            headers.get(ACCEPT_RANGES).is_some_and(|units| units.as_bytes().eq_ignore_ascii_case(b"bytes"));
        let whole = !headers.contains_key(CONTENT_RANGE) && !headers.contains_key(TRANSFER_ENCODING);
        let is_ok = head.status == StatusCode::OK;
        (is_ok && ranges && whole).then(|| Self::told(headers, length, slice_bytes)).flatten()
    }

    /// The version that a stored head is of; [`Self::to_head`] made it.
    pub fn of_stored(headers: &HeaderMap, slice_bytes: u64) -> Option<Self> {
        let length = headers.get(LENGTH)?.to_str().ok()?.parse().ok()?;
        Self::told(headers, length, slice_bytes)
    }

    fn told(headers: &HeaderMap, length: u64, slice_bytes: u64) -> Option<Self> {
        let tag = strong_tag(headers)?.clone();
        let coding = only(headers, &CONTENT_ENCODING)?;
        // Also of a stored head, whose fields a 304 may have replaced.
        let is_sliceable = length > slice_bytes && length <= LENGTH_MAX;
        is_sliceable.then_some(Self { tag, coding, length, slice_bytes })
    }

    /// The head as it is stored: of no bytes, and with the length that it speaks of.
    pub fn to_head(&self, head: &response::Parts) -> response::Parts {
        let mut stored = head.clone();
        stored.headers.insert(CONTENT_LENGTH, HeaderValue::from(0));
        stored.headers.insert(LENGTH, HeaderValue::from(self.length));
        stored
    }

    /// Makes the head of an answer out of a stored one.
    pub fn reveal(headers: &mut HeaderMap) {
        headers.remove(LENGTH);
        headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    }

    pub fn length(&self) -> u64 {
        self.length
    }

    /// The slices that hold the bytes from `first` to `last`, both included.
    pub fn slices(&self, first: u64, last: u64) -> RangeInclusive<u64> {
        first / self.slice_bytes..=last.min(self.length - 1) / self.slice_bytes
    }

    /// The bytes of a slice, first and last, both included.
    pub fn bytes_of(&self, slice: u64) -> (u64, u64) {
        let first = slice * self.slice_bytes;
        (first, (first + self.slice_bytes).min(self.length) - 1)
    }

    /// What of a slice lies between `first` and `last` of the whole, counted from its own beginning. None: all of it.
    pub fn cut(&self, slice: u64, first: u64, last: u64) -> Option<HeaderValue> {
        let (own_first, own_last) = self.bytes_of(slice);
        let (from, to) = (own_first.max(first), own_last.min(last));
        ((from, to) != (own_first, own_last)).then(|| range(from - own_first, to - own_first))
    }

    /// The name of a slice in its key.
    pub fn piece(&self, slice: u64) -> String {
        let hex = |value: &HeaderValue| -> String {
            value.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
        };
        let coding = self.coding.as_ref().map(hex).unwrap_or_default();
        format!("{slice}.{}.{}.{}.{coding}", self.slice_bytes, self.length, hex(&self.tag))
    }

    /// What asks the upstream for a slice, of this version only.
    pub fn question(&self, slice: u64) -> HeaderMap {
        let (first, last) = self.bytes_of(slice);
        [(RANGE, range(first, last)), (IF_RANGE, self.tag.clone())].into_iter().collect()
    }

    /// What the upstream's answer to that question is.
    pub fn judge(&self, slice: u64, head: &response::Parts) -> Answer {
        let headers = &head.headers;
        let (first, last) = self.bytes_of(slice);
        let span = Span { first, end: last + 1, complete: self.length };
        match head.status {
            StatusCode::PARTIAL_CONTENT => {
                let said = ResponseDirectives::of(headers);
                if strong_tag(headers).is_none() || said.no_store || said.private {
                    return Answer::NoSlices;
                }
                let same = strong_tag(headers) == Some(&self.tag)
                    && only(headers, &CONTENT_ENCODING) == Some(self.coding.clone())
                    && Span::of(headers, content_length(headers)) == Some(span);
                if same { Answer::Slice } else { Answer::Changed }
            }
            StatusCode::OK if strong_tag(headers) == Some(&self.tag) => Answer::NoSlices,
            status if status.is_success() || status.is_redirection() => Answer::Changed,
            StatusCode::NOT_FOUND
            | StatusCode::GONE
            | StatusCode::PRECONDITION_FAILED
            | StatusCode::RANGE_NOT_SATISFIABLE => Answer::Changed,
            _ => Answer::Failed,
        }
    }

    /// A slice as it is stored: a whole of its own, with the names by which it is purged.
    pub fn to_slice(&self, slice: u64, head: &response::Parts) -> response::Parts {
        let (first, last) = self.bytes_of(slice);
        let mut stored = head.clone();
        stored.status = StatusCode::OK;
        let mut headers = HeaderMap::new();
        headers.insert(ETAG, self.tag.clone());
        headers.insert(CONTENT_LENGTH, HeaderValue::from(last - first + 1));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static(FOR_EVER));
        for name in [DATE, SURROGATE_KEY, CACHE_TAG, CACHE_GROUPS] {
            for value in head.headers.get_all(&name) {
                headers.append(name.clone(), value.clone());
            }
        }
        stored.headers = headers;
        stored
    }
}

fn range(first: u64, last: u64) -> HeaderValue {
    HeaderValue::from_str(&format!("bytes={first}-{last}")).expect("numbers are visible ASCII")
}

fn strong_tag(headers: &HeaderMap) -> Option<&HeaderValue> {
    let mut lines = headers.get_all(ETAG).iter();
    let tag = lines.next().filter(|_| lines.next().is_none())?;
    let quoted = tag.as_bytes().strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\""));
    (quoted.is_some_and(|inner| !inner.is_empty()) && tag.len() <= TAG_BYTES_MAX).then_some(tag)
}

/// The only line of a field, or that there is none; nothing where there are several.
fn only(headers: &HeaderMap, name: &HeaderName) -> Option<Option<HeaderValue>> {
    let mut lines = headers.get_all(name).iter();
    let first = lines.next().cloned();
    lines.next().is_none().then_some(first)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use http::Response;
    use proptest::prelude::*;

    use super::*;

    const FROM: u64 = 20;
    const SLICE: u64 = 8;

    fn head(status: u16, fields: &[(&str, &str)]) -> response::Parts {
        let mut builder = Response::builder().status(status);
        for (name, value) in fields {
            builder = builder.header(*name, *value);
        }
        builder.body(()).expect("a head").into_parts().0
    }

    fn large(tag: &str, length: u64) -> response::Parts {
        head(200, &[("etag", tag), ("accept-ranges", "bytes"), ("content-length", &length.to_string())])
    }

    #[test]
    fn large_is_what_is_long_has_ranges_and_a_strong_tag() {
        let good = large("\"a\"", 21);
        assert!(Version::of(&good, FROM, SLICE).is_some());
        let without = |name: &str| {
            let mut head = good.clone();
            head.headers.remove(name);
            Version::of(&head, FROM, SLICE)
        };
        for name in ["etag", "accept-ranges", "content-length"] {
            assert_eq!(without(name), None, "{name}");
        }
        for (name, value) in [
            ("etag", "W/\"a\""),
            ("etag", "a"),
            ("etag", "\"\""),
            ("accept-ranges", "none"),
            ("content-length", "20"),
            ("content-range", "bytes 0-20/21"),
            ("transfer-encoding", "chunked"),
        ] {
            let mut head = good.clone();
            head.headers.insert(HeaderName::from_static(name), value.parse().expect("a value"));
            assert_eq!(Version::of(&head, FROM, SLICE), None, "{name}: {value}");
        }
        assert_eq!(Version::of(&large(&format!("\"{}\"", "a".repeat(300)), 21), FROM, SLICE), None);
        for length in [LENGTH_MAX + 1, u64::MAX - 2] {
            assert_eq!(Version::of(&large("\"a\"", length), FROM, SLICE), None, "{length}");
        }
        let mut other_status = good.clone();
        other_status.status = StatusCode::NOT_FOUND;
        assert_eq!(Version::of(&other_status, FROM, SLICE), None);
    }

    #[test]
    fn a_stored_head_is_of_the_version_that_it_was_made_of() {
        let good = large("\"a\"", 21);
        let version = Version::of(&good, FROM, SLICE).expect("large");
        let mut stored = version.to_head(&good).headers;
        assert_eq!(stored["content-length"], "0");
        assert_eq!(Version::of_stored(&stored, SLICE), Some(version));
        // Fields that a 304 has brought.
        for length in ["0", "8", "18446744073709551613", "x"] {
            let mut replaced = stored.clone();
            replaced.insert(LENGTH, length.parse().expect("a value"));
            assert_eq!(Version::of_stored(&replaced, SLICE), None, "{length}");
        }
        Version::reveal(&mut stored);
        assert!(!stored.contains_key(LENGTH));
        assert_eq!(Version::of_stored(&stored, SLICE), None);
    }

    #[test]
    fn only_the_very_slice_of_the_very_version_is_one() {
        let version = Version::of(&large("\"a\"", 21), FROM, SLICE).expect("large");
        let part = |tag: &str, range: &str| {
            head(206, &[("etag", tag), ("content-range", range), ("content-length", "8")])
        };
        assert_eq!(version.judge(1, &part("\"a\"", "bytes 8-15/21")), Answer::Slice);
        for other in [
            part("\"b\"", "bytes 8-15/21"),
            part("\"a\"", "bytes 8-15/22"),
            part("\"a\"", "bytes 0-7/21"),
            part("\"a\"", "bytes 8-15/*"),
            head(206, &[("etag", "\"a\""), ("content-length", "8")]),
            head(200, &[("etag", "\"b\"")]),
            head(404, &[]),
            head(412, &[]),
            head(416, &[]),
        ] {
            assert_eq!(version.judge(1, &other), Answer::Changed, "{other:?}");
        }
        let mut coded = part("\"a\"", "bytes 8-15/21");
        coded.headers.insert(CONTENT_ENCODING, "br".parse().expect("a value"));
        assert_eq!(version.judge(1, &coded), Answer::Changed);
        for control in ["no-store", "private", "private, max-age=60"] {
            let mut closed = part("\"a\"", "bytes 8-15/21");
            closed.headers.insert(CACHE_CONTROL, control.parse().expect("a value"));
            assert_eq!(version.judge(1, &closed), Answer::NoSlices, "{control}");
        }
        let mut own = part("\"a\"", "bytes 8-15/21");
        own.headers.insert(CACHE_CONTROL, "private=\"set-cookie\", no-cache".parse().expect("a value"));
        assert_eq!(version.judge(1, &own), Answer::Slice);
        for other in [
            part("W/\"a\"", "bytes 8-15/21"),
            head(206, &[("content-range", "bytes 8-15/21")]),
            head(200, &[("etag", "\"a\"")]),
        ] {
            assert_eq!(version.judge(1, &other), Answer::NoSlices, "{other:?}");
        }
        for status in [429, 500, 503] {
            assert_eq!(version.judge(1, &head(status, &[])), Answer::Failed);
        }
        let stored = version.to_slice(2, &head(206, &[("surrogate-key", "film"), ("set-cookie", "a=b")]));
        assert_eq!(stored.headers["content-length"], "5");
        assert_eq!(stored.headers["surrogate-key"], "film");
        assert!(!stored.headers.contains_key("set-cookie") && stored.status == 200);
    }

    /// An upstream whose file changes, and that obeys `If-Range`, ignores it, or ignores ranges.
    #[derive(Clone, Copy, Debug)]
    enum Manner {
        Obeys,
        IgnoresIfRange,
        IgnoresRange,
        /// It is for others to know why.
        Fails,
    }

    fn manner() -> impl Strategy<Value = Manner> {
        prop_oneof![
            8 => Just(Manner::Obeys),
            2 => Just(Manner::IgnoresIfRange),
            1 => Just(Manner::IgnoresRange),
            1 => Just(Manner::Fails),
        ]
    }

    /// The bytes of a version: no two have a slice in common.
    fn content(version: u8, length: u64) -> Vec<u8> {
        (0..length).map(|at| version.wrapping_mul(37).wrapping_add(at as u8)).collect()
    }

    fn tag(version: u8) -> String {
        format!("\"v{version}\"")
    }

    fn answer(manner: Manner, now: (u8, u64), question: &HeaderMap) -> (response::Parts, Vec<u8>) {
        let (version, length) = now;
        let all = content(version, length);
        let whole = || (large(&tag(version), length), all.clone());
        let asked = question[RANGE].to_str().expect("text").strip_prefix("bytes=").expect("bytes").to_owned();
        let (first, last) = asked.split_once('-').expect("a range");
        let (first, last): (u64, u64) = (first.parse().expect("a number"), last.parse().expect("a number"));
        let same = question[IF_RANGE] == tag(version);
        match manner {
            Manner::Fails => (head(503, &[]), Vec::new()),
            Manner::IgnoresRange => whole(),
            Manner::Obeys if !same => whole(),
            _ if first >= length => (head(416, &[]), Vec::new()),
            _ => {
                let last = last.min(length - 1);
                let fields = [
                    ("etag", tag(version)),
                    ("content-range", format!("bytes {first}-{last}/{length}")),
                    ("content-length", (last - first + 1).to_string()),
                ];
                let fields: Vec<_> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
                (head(206, &fields), all[first as usize..=last as usize].to_vec())
            }
        }
    }

    /// One question of a client: what of the file, and how the upstream is just then. `changes` before the slice of that
    /// number the file becomes the next version.
    #[derive(Clone, Debug)]
    struct Step {
        range: (u64, u64),
        changes: Option<u64>,
        manner: Manner,
        /// What the cache has lost since.
        evicted: Option<usize>,
        head_is_stale: bool,
    }

    fn step() -> impl Strategy<Value = Step> {
        let range = (0_u64..70, 0_u64..70).prop_map(|(a, b)| (a.min(b), a.max(b)));
        let changes = prop_oneof![3 => Just(None), 1 => (0_u64..9).prop_map(Some)];
        let evicted = prop_oneof![2 => Just(None), 1 => (0_usize..9).prop_map(Some)];
        (range, changes, manner(), evicted, any::<bool>()).prop_map(
            |(range, changes, manner, evicted, head_is_stale)| Step {
                range,
                changes,
                manner,
                evicted,
                head_is_stale,
            },
        )
    }

    proptest! {
        /// Against a file that changes at any moment: an answer is the asked bytes of one version, the one whose tag it
        /// bears, or it breaks off; and what was sent before it broke off is of that version too.
        #[test]
        fn an_answer_is_of_one_version_or_breaks_off(
            lengths in proptest::collection::vec(21_u64..64, 1..6),
            steps in proptest::collection::vec(step(), 1..24),
        ) {
            let mut version = 0_u8;
            let now = |version: u8| (version, lengths[usize::from(version) % lengths.len()]);
            let mut slices: BTreeMap<String, Vec<u8>> = BTreeMap::new();
            let mut stored_head: Option<HeaderMap> = None;
            for step in steps {
                if let Some(at) = step.evicted && let Some(key) = slices.keys().nth(at).cloned() {
                    slices.remove(&key);
                }
                if step.head_is_stale {
                    // Fetched anew: what is stored under the same tag goes on to count.
                    stored_head = None;
                }
                let headers = stored_head.get_or_insert_with(|| {
                    let (version, length) = now(version);
                    let head = large(&tag(version), length);
                    Version::of(&head, FROM, SLICE).expect("large").to_head(&head).headers
                }).clone();
                let of = Version::of_stored(&headers, SLICE).expect("of a version");
                let (first, last) = step.range;
                if first >= of.length() {
                    continue;
                }
                let last = last.min(of.length() - 1);
                let (mut sent, mut broke_off) = (Vec::new(), false);
                for (number, slice) in of.slices(first, last).enumerate() {
                    if step.changes == Some(number as u64) {
                        version += 1;
                    }
                    let piece = match slices.get(&of.piece(slice)) {
                        Some(held) => held.clone(),
                        None => {
                            let (head, body) = answer(step.manner, now(version), &of.question(slice));
                            match of.judge(slice, &head) {
                                Answer::Slice => {
                                    let stored = of.to_slice(slice, &head);
                                    prop_assert_eq!(content_length(&stored.headers), Some(body.len() as u64));
                                    slices.insert(of.piece(slice), body.clone());
                                    body
                                }
                                Answer::Changed | Answer::NoSlices => {
                                    stored_head = None;
                                    broke_off = true;
                                    break;
                                }
                                Answer::Failed => {
                                    broke_off = true;
                                    break;
                                }
                            }
                        }
                    };
                    let (from, to) = match of.cut(slice, first, last) {
                        None => (0, piece.len() - 1),
                        Some(cut) => {
                            match crate::range::part(cut.as_bytes(), piece.len() as u64) {
                                crate::range::Part::Slice { first, last } => (first as usize, last as usize),
                                other => panic!("{other:?}"),
                            }
                        }
                    };
                    sent.extend_from_slice(&piece[from..=to]);
                }
                let told: u8 = headers[ETAG].to_str().unwrap().trim_matches(['"', 'v']).parse().unwrap();
                let whole = content(told, now(told).1);
                let wanted = &whole[first as usize..=last as usize];
                prop_assert!(wanted.starts_with(&sent), "bytes of another version");
                prop_assert!(broke_off || sent == wanted, "{} of {}", sent.len(), wanted.len());
            }
        }
    }
}
