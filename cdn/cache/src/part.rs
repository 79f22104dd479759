//! Parts of a representation that are stored on their own (RFC 9111 sections 3.3 and 3.4): what a 206 says it is, which
//! ranges it can answer, and what it takes to complete it.
//!
//! Only a cache whose [`crate::Policy`] stores parts gets here; others fetch the whole and cut.

use http::HeaderMap;
use http::header::{CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderValue, IF_RANGE, RANGE};

use crate::asked::Asked;
use crate::conditional::if_range_holds;
use crate::entry::Entry;
use crate::range;

/// Longest `Content-Range` that is read: three numbers of 20 digits with their marks.
const CONTENT_RANGE_BYTES_MAX: usize = 80;

/// Where a stored part stands in the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The number of its first byte.
    pub first: u64,
    /// The number of the byte after its last one.
    pub end: u64,
    /// The length of the whole.
    pub complete: u64,
}

impl Span {
    /// What the head of a 206 with `length` bytes of content (where that is stated) is. None where it is several parts,
    /// where it does not say, or where it contradicts itself.
    pub fn of(headers: &HeaderMap, length: Option<u64>) -> Option<Self> {
        let mut lines = headers.get_all(CONTENT_RANGE).iter();
        let (Some(only), None) = (lines.next(), lines.next()) else { return None };
        let multipart = headers
            .get(CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().to_ascii_lowercase().starts_with(b"multipart/byteranges"));
        if multipart || only.len() > CONTENT_RANGE_BYTES_MAX {
            return None;
        }
        let text = only.to_str().ok()?.trim();
        let (unit, rest) = text.split_once(' ')?;
        let (range, complete) = rest.trim_start().split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let number = |text: &str| -> Option<u64> {
            text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
        };
        let (first, last, complete) = (number(first)?, number(last)?, number(complete)?);
        if !unit.eq_ignore_ascii_case("bytes") || last < first || last >= complete || length == Some(0) {
            return None;
        }
        let span = last - first + 1;
        let length = length.unwrap_or(span);
        if length == span {
            return Some(Self { first, end: last + 1, complete });
        }
        // Servers that count the last byte, or the length, one or more too far: the content cannot lie about itself,
        // and where it was to reach the end, it ends where the representation does.
        let to_the_end = last + 1 == complete;
        let is_shorter = to_the_end && length < span;
        // Summed up only where it is: a length that lies may be as long as numbers go.
        is_shorter.then(|| Self { first, end: first + length, complete: first + length })
    }

    pub fn length(&self) -> u64 {
        self.end - self.first
    }

    /// The bytes of this part that a request for one range may be answered with: first and last, both included.
    pub(crate) fn answers(&self, asked: &Asked, stored: &HeaderMap) -> Option<(u64, u64)> {
        let wanted = asked.headers.get(RANGE)?;
        if asked.is_head() || !if_range_holds(&asked.headers, stored) {
            return None;
        }
        match range::part(wanted.as_bytes(), self.complete) {
            range::Part::Slice { first, last } if self.first <= first && last < self.end => {
                Some((first, last))
            }
            _ => None,
        }
    }
}

/// Whether a request wants one range, so that it can be forwarded and what comes back be stored as a part.
pub(crate) fn is_wanted(asked: &Asked) -> bool {
    !asked.is_head() && asked.headers.get(RANGE).is_some_and(|range| range::is_single(range.as_bytes()))
}

/// The fields that ask for what is missing behind a stored beginning. None where the part is no beginning.
pub(crate) fn rest_of(entry: &Entry) -> Option<HeaderMap> {
    let span = entry.span.filter(|span| span.first == 0 && span.end < span.complete)?;
    let mut out = HeaderMap::with_capacity(2);
    let range = format!("bytes={}-", span.end);
    out.insert(RANGE, HeaderValue::from_str(&range).expect("a number is visible ASCII"));
    if let Some(tag) = strong_tag(&entry.headers) {
        out.insert(IF_RANGE, tag.clone());
    }
    Some(out)
}

/// Whether `fresh` is what follows the stored beginning, of the very same representation: the same strong tag (RFC 9110
/// section 15.3.7.3). A date is none, for two versions of one second are alike in it.
pub(crate) fn continues(stored: &Entry, fresh: &HeaderMap, length: Option<u64>) -> bool {
    let (Some(held), Some(tag)) = (strong_tag(&stored.headers), strong_tag(fresh)) else { return false };
    match (stored.span, Span::of(fresh, length)) {
        (Some(held_span), Some(next)) => {
            held == tag
                && held_span.first == 0
                && next.first == held_span.end
                && next.end == next.complete
                && next.complete == held_span.complete
        }
        _ => false,
    }
}

fn strong_tag(headers: &HeaderMap) -> Option<&HeaderValue> {
    headers.get(ETAG).filter(|tag| tag.as_bytes().starts_with(b"\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn span(text: &str, length: u64) -> Option<(u64, u64, u64)> {
        let mut map = HeaderMap::new();
        map.insert(CONTENT_RANGE, text.parse().expect("test header"));
        Span::of(&map, Some(length)).map(|span| (span.first, span.end, span.complete))
    }

    #[test]
    fn a_part_says_where_it_stands() {
        assert_eq!(span("bytes 0-4/10", 5), Some((0, 5, 10)));
        assert_eq!(span("Bytes 5-9/10", 5), Some((5, 10, 10)));
        for (text, length) in [
            ("bytes 0-4/10", 4),
            ("bytes 0-4/10", 6),
            ("bytes 0-4/*", 5),
            ("bytes */10", 5),
            ("bytes 4-0/10", 5),
            ("bytes 5-10/10", 6),
            ("items 0-4/10", 5),
            ("bytes 0-4", 5),
            ("bytes +0-4/10", 5),
            ("bytes 0-18446744073709551615/10", 5),
            ("bytes 0-0/1", 0),
            ("bytes 4-9/10", u64::MAX),
        ] {
            assert_eq!(span(text, length), None, "{text} with {length}");
        }
    }

    #[test]
    fn where_the_content_ends_before_its_range_does_the_content_counts() {
        assert_eq!(span("bytes 4-9/10", 5), Some((4, 9, 9)));
        // Not at the end: then something is lost.
        assert_eq!(span("bytes 4-8/10", 4), None);
    }

    proptest! {
        #[test]
        fn a_span_lies_inside_of_the_whole(text in "bytes [0-9*]{0,3}-?[0-9]{0,3}/[0-9*]{0,3}", length in 0u64..1_000) {
            if let Some((first, end, complete)) = span(&text, length) {
                prop_assert!(first < end && end <= complete && end - first == length);
            }
        }
    }
}
