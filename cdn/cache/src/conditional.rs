//! Conditional requests, both ways: what a client already has (RFC 9110 section 13), and what the upstream is asked.

use http::HeaderMap;
use http::header::{
    CONTENT_LENGTH, DATE, ETAG, HeaderValue, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, LAST_MODIFIED,
};

use crate::date;

/// Fields that make a request conditional or partial. They are the client's and are not forwarded with a fill, for a
/// fill needs the whole.
pub const OF_THE_CLIENT: [http::HeaderName; 4] =
    [IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_RANGE, http::header::RANGE];

/// Whether the client has what the stored 200 is: then 304 is the answer.
pub fn not_modified(request: &HeaderMap, stored: &HeaderMap) -> bool {
    if request.contains_key(IF_NONE_MATCH) {
        // With If-None-Match there, If-Modified-Since does not count at all.
        return match stored.get(ETAG) {
            Some(tag) => {
                request.get_all(IF_NONE_MATCH).iter().any(|line| lists_tag(line.as_bytes(), tag.as_bytes()))
            }
            None => request.get_all(IF_NONE_MATCH).iter().any(|line| line.as_bytes().trim_ascii() == b"*"),
        };
    }
    let Some(since) = request.get(IF_MODIFIED_SINCE).and_then(|value| date::parse(value.as_bytes())) else {
        return false;
    };
    // Section 4.3.2 of RFC 9111: without Last-Modified the Date of the stored response is the best guess.
    let changed = stored.get(LAST_MODIFIED).or_else(|| stored.get(DATE));
    changed.and_then(|value| date::parse(value.as_bytes())).is_some_and(|changed| changed <= since)
}

/// Whether a range of the stored response fits the part that the client has (RFC 9110 section 13.1.5).
pub fn if_range_holds(request: &HeaderMap, stored: &HeaderMap) -> bool {
    let Some(condition) = request.get(IF_RANGE) else { return true };
    let condition = condition.as_bytes().trim_ascii();
    if condition.starts_with(b"\"") {
        return stored.get(ETAG).is_some_and(|tag| tag.as_bytes() == condition);
    }
    if condition.starts_with(b"W/") {
        // A weak tag cannot vouch for bytes.
        return false;
    }
    let changed = stored.get(LAST_MODIFIED).and_then(|value| date::parse(value.as_bytes()));
    changed.is_some() && changed == date::parse(condition)
}

/// The conditions that ask the upstream whether the stored response still holds. Empty without a validator.
pub fn validators(stored: &HeaderMap) -> HeaderMap {
    let mut out = HeaderMap::with_capacity(2);
    let mut copy = |from, to| {
        if let Some(value) = stored.get(from) {
            out.insert(to, HeaderValue::clone(value));
        }
    };
    copy(ETAG, IF_NONE_MATCH);
    copy(LAST_MODIFIED, IF_MODIFIED_SINCE);
    out
}

/// Whether a 304 speaks of the stored response: its validators, where it has any, are the stored ones (RFC 9111
/// section 4.3.4). A cache that ignores this glues the head of one version to the body of another.
pub fn confirms(fresh: &HeaderMap, stored: &HeaderMap) -> bool {
    if let Some(tag) = fresh.get(ETAG) {
        return stored.get(ETAG).is_some_and(|held| opaque(held.as_bytes()) == opaque(tag.as_bytes()));
    }
    match fresh.get(LAST_MODIFIED) {
        Some(changed) => stored.get(LAST_MODIFIED) == Some(changed),
        None => true,
    }
}

/// What a 200 that answered a HEAD says of the response that is stored for a GET (RFC 9111 section 4.3.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Likeness {
    /// The same representation: a validator vouches for it and nothing speaks against it.
    Same,
    /// Another one.
    Other,
    /// Neither is said.
    Unknown,
}

pub(crate) fn likeness(fresh: &HeaderMap, stored: &HeaderMap) -> Likeness {
    let agrees = |name: http::HeaderName| Some(fresh.get(&name)? == stored.get(&name)?);
    let validators = [agrees(ETAG), agrees(LAST_MODIFIED)];
    if validators.contains(&Some(false)) || agrees(CONTENT_LENGTH) == Some(false) {
        Likeness::Other
    } else if validators.contains(&Some(true)) {
        Likeness::Same
    } else {
        Likeness::Unknown
    }
}

/// Weak comparison: the tag without `W/`.
fn opaque(tag: &[u8]) -> &[u8] {
    let tag = tag.trim_ascii();
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

/// Whether a list of entity tags has this one. Commas may stand inside of tags.
fn lists_tag(list: &[u8], tag: &[u8]) -> bool {
    let wanted = opaque(tag);
    let mut rest = list.trim_ascii();
    if rest == b"*" {
        return true;
    }
    while !rest.is_empty() {
        rest = rest.trim_ascii_start();
        if let Some(after) = rest.strip_prefix(b",") {
            rest = after;
            continue;
        }
        let weak = if rest.starts_with(b"W/") { 2 } else { 0 };
        let end = match rest.get(weak) {
            Some(b'"') => match rest[weak + 1..].iter().position(|byte| *byte == b'"') {
                Some(at) => weak + 1 + at + 1,
                None => rest.len(),
            },
            // Not a tag by the book, but servers make unquoted ones: up to the next comma.
            _ => rest.iter().position(|byte| *byte == b',').unwrap_or(rest.len()),
        };
        if opaque(&rest[..end]) == wanted {
            return true;
        }
        rest = &rest[end..];
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn map(lines: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(
                http::HeaderName::from_bytes(name.as_bytes()).expect("name"),
                value.parse().expect("value"),
            );
        }
        map
    }

    const OLD: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const NEW: &str = "Mon, 07 Nov 1994 08:49:37 GMT";

    #[test]
    fn a_client_that_has_it_gets_304() {
        type Fields<'a> = &'a [(&'a str, &'a str)];
        let table: &[(Fields<'_>, Fields<'_>, bool)] = &[
            (&[("if-none-match", "\"a\"")], &[("etag", "\"a\"")], true),
            (&[("if-none-match", "W/\"a\"")], &[("etag", "\"a\"")], true),
            (&[("if-none-match", "\"a\"")], &[("etag", "W/\"a\"")], true),
            (&[("if-none-match", "\"x,y\" , W/\"a\"")], &[("etag", "\"a\"")], true),
            (&[("if-none-match", "\"x,a\"")], &[("etag", "\"a\"")], false),
            (&[("if-none-match", "\"x\""), ("if-none-match", "\"a\"")], &[("etag", "\"a\"")], true),
            (&[("if-none-match", "*")], &[], true),
            (&[("if-none-match", "\"a\"")], &[], false),
            (&[("if-none-match", "a")], &[("etag", "a")], true),
            (
                &[("if-none-match", "\"b\""), ("if-modified-since", NEW)],
                &[("etag", "\"a\""), ("last-modified", OLD)],
                false,
            ),
            (&[("if-modified-since", NEW)], &[("last-modified", OLD)], true),
            (&[("if-modified-since", OLD)], &[("last-modified", OLD)], true),
            (&[("if-modified-since", OLD)], &[("last-modified", NEW)], false),
            (&[("if-modified-since", NEW)], &[("date", OLD)], true),
            (&[("if-modified-since", "soon")], &[("last-modified", OLD)], false),
            (&[], &[("etag", "\"a\"")], false),
        ];
        for (request, stored, want) in table {
            assert_eq!(not_modified(&map(request), &map(stored)), *want, "{request:?} {stored:?}");
        }
    }

    #[test]
    fn ranges_need_a_strong_match() {
        let stored = map(&[("etag", "\"a\""), ("last-modified", OLD)]);
        for (condition, want) in
            [("\"a\"", true), ("\"b\"", false), ("W/\"a\"", false), (OLD, true), (NEW, false)]
        {
            assert_eq!(if_range_holds(&map(&[("if-range", condition)]), &stored), want, "{condition}");
        }
        assert!(if_range_holds(&map(&[]), &stored));
        assert!(!if_range_holds(&map(&[("if-range", "W/\"a\"")]), &map(&[("etag", "W/\"a\"")])));
    }

    #[test]
    fn a_304_of_another_version_confirms_nothing() {
        let stored = map(&[("etag", "\"a\""), ("last-modified", OLD)]);
        assert!(confirms(&map(&[]), &stored));
        assert!(confirms(&map(&[("etag", "W/\"a\"")]), &stored));
        assert!(!confirms(&map(&[("etag", "\"b\"")]), &stored));
        assert!(!confirms(&map(&[("last-modified", NEW)]), &stored));
    }

    proptest! {
        #[test]
        fn any_list_is_read_without_a_panic(list in proptest::collection::vec(any::<u8>(), 0..80)) {
            lists_tag(&list, b"\"a\"");
        }
    }
}
