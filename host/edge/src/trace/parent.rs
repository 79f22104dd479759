//! W3C Trace Context, level 1: the `traceparent` of a request, read strictly and passed on with a parent of our own.
//!
//! Owns the syntax. Refuses to know who samples and where spans go. Ids are arguments.

use std::fmt;

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub(super) const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// The length of version 00, which later versions begin with.
const BYTES: usize = 55;

/// One request's place in a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TraceParent {
    trace: u128,
    parent: u64,
    flags: u8,
}

impl TraceParent {
    /// What a request says, if it says it once and well.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut lines = headers.get_all(TRACEPARENT).iter();
        let (Some(only), None) = (lines.next(), lines.next()) else { return None };
        Self::parse(only.as_bytes())
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let (head, tail) = text.split_at_checked(BYTES)?;
        let version = head.get(..2)?;
        // Version 00 ends here; of later ones the rest is not ours to read, and ff is no version.
        let ends_well = if version == b"00" { tail.is_empty() } else { tail.is_empty() || tail[0] == b'-' };
        let dashes = [2, 35, 52].iter().all(|at| head.get(*at) == Some(&b'-'));
        let number = |range: std::ops::Range<usize>| {
            let digits = head.get(range)?;
            let lower = digits.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            u128::from_str_radix(std::str::from_utf8(digits).ok().filter(|_| lower)?, 16).ok()
        };
        let (version, trace) = (number(0..2)?, number(3..35)?);
        let (parent, flags) = (u64::try_from(number(36..52)?).ok()?, u8::try_from(number(53..55)?).ok()?);
        (dashes && ends_well && version != 0xff && trace != 0 && parent != 0).then_some(Self {
            trace,
            parent,
            flags,
        })
    }

    /// A trace that begins here. Nought is no id.
    pub(super) fn new(trace: u128, parent: u64, sampled: bool) -> Self {
        Self { trace: trace.max(1), parent: parent.max(1), flags: u8::from(sampled) }
    }

    /// The same trace with another parent: what whoever is asked next is told. Sampled is what either of us samples.
    pub(super) fn child(self, parent: u64, sampled: bool) -> Self {
        Self { parent: parent.max(1), flags: self.flags | u8::from(sampled), ..self }
    }

    pub(super) fn trace(&self) -> u128 {
        self.trace
    }

    pub(super) fn parent(&self) -> u64 {
        self.parent
    }

    /// Takes the place of what a request says. A state without a parent to go with means nothing.
    pub(super) fn tell(self, headers: &mut HeaderMap, is_new: bool) {
        let text = HeaderValue::from_str(&self.to_string()).expect("hexadecimal digits and dashes");
        headers.insert(TRACEPARENT, text);
        if is_new {
            headers.remove(TRACESTATE);
        }
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Of the flags, version 00 knows the lowest: sampled.
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.parent, self.flags & 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn parse(text: &str) -> Option<String> {
        TraceParent::parse(text.as_bytes()).map(|parent| parent.to_string())
    }

    #[test]
    fn a_parent_is_good_or_it_is_none() {
        assert_eq!(parse(GOOD).as_deref(), Some(GOOD));
        // A later version is read as far as we know it, and passed on as ours.
        assert_eq!(parse(&format!("cc{}-more", &GOOD[2..])).as_deref(), Some(GOOD));
        for bad in [
            "",
            "00",
            &GOOD[..54],
            &format!("{GOOD}-more"),
            &format!("cc{}more", &GOOD[2..]),
            &format!("ff{}", &GOOD[2..]),
            &GOOD.to_uppercase(),
            &GOOD.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            &GOOD.replace("b7ad6b7169203331", &"0".repeat(16)),
            &GOOD.replace('-', "_"),
            &GOOD.replace("0af7", "+af7"),
            &GOOD.replace("0af7", "0a\u{e9}"),
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        let mut twice = HeaderMap::new();
        twice.append(TRACEPARENT, GOOD.parse().expect("a value"));
        assert!(TraceParent::of(&twice).is_some());
        twice.append(TRACEPARENT, GOOD.parse().expect("a value"));
        assert_eq!(TraceParent::of(&twice), None, "said twice");
    }

    #[test]
    fn whoever_is_asked_next_has_us_for_a_parent() {
        let theirs = TraceParent::parse(GOOD.as_bytes()).expect("good");
        let mut headers = HeaderMap::new();
        headers.insert(TRACESTATE, "a=b".parse().expect("a value"));
        theirs.child(0xff, false).tell(&mut headers, false);
        assert_eq!(headers[TRACEPARENT], "00-0af7651916cd43dd8448eb211c80319c-00000000000000ff-01");
        assert_eq!(headers[TRACESTATE], "a=b");
        TraceParent::new(0, 0, false).tell(&mut headers, true);
        assert!(parse(headers[TRACEPARENT].to_str().expect("text")).is_some(), "nought is no id");
        assert!(!headers.contains_key(TRACESTATE));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = TraceParent::parse(&bytes);
        }
    }
}
