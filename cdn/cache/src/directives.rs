//! `Cache-Control` of requests and responses, and `CDN-Cache-Control` of responses.
//!
//! Owns the syntax and nothing else. Servers write `Cache-Control` by hand, so it is read with tolerance; and where a
//! text can be read in two ways, the stricter reading counts: of two `max-age` the smaller, of a malformed one zero.
//! `CDN-Cache-Control` (RFC 9213) is a structured field: it is valid, or it is ignored whole.

use http::header::{CACHE_CONTROL, HeaderMap, HeaderName, PRAGMA};
use sfv::{BareItem, Dictionary, ListEntry, Parser};

/// Directives read of one message. A header of 32 KiB has fewer; what comes later is not read, and the message counts
/// as `no-store`.
const DIRECTIVES_MAX: usize = 128;
/// Fields named by one `no-cache="…"` or `private="…"`. With more of them the directive counts as unqualified.
const FIELDS_MAX: usize = 32;
const CDN_CACHE_CONTROL: HeaderName = HeaderName::from_static("cdn-cache-control");

/// What a response says about being stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResponseDirectives {
    pub no_store: bool,
    pub no_cache: bool,
    pub private: bool,
    pub public: bool,
    pub must_revalidate: bool,
    pub proxy_revalidate: bool,
    pub must_understand: bool,
    pub max_age_s: Option<u32>,
    pub s_maxage_s: Option<u32>,
    pub stale_while_revalidate_s: Option<u32>,
    pub stale_if_error_s: Option<u32>,
    /// Fields that `no-cache="…"` and `private="…"` forbid to replay: the rest of the response may be stored.
    pub fields: Vec<HeaderName>,
    /// From a valid `CDN-Cache-Control`: then `Expires` does not count either.
    pub targeted: bool,
}

/// What a client asks of caches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestDirectives {
    pub no_store: bool,
    pub no_cache: bool,
    pub only_if_cached: bool,
    pub max_age_s: Option<u32>,
    pub min_fresh_s: Option<u32>,
    /// `max-stale` without a value accepts any age.
    pub max_stale_s: Option<u32>,
}

impl ResponseDirectives {
    /// `CDN-Cache-Control` where it is valid, else `Cache-Control`.
    pub fn of(headers: &HeaderMap) -> Self {
        Self::targeted(headers).unwrap_or_else(|| Self::untargeted(headers))
    }

    fn untargeted(headers: &HeaderMap) -> Self {
        let mut out = Self::default();
        let complete = each_directive(headers, |name, value| out.take(name, value));
        if !complete {
            out.no_store = true;
        }
        out
    }

    fn take(&mut self, name: &str, value: Value<'_>) {
        match name {
            "no-store" => self.no_store = true,
            "no-cache" => match value.fields() {
                Some(fields) => self.forbid(fields, |own| own.no_cache = true),
                None => self.no_cache = true,
            },
            "private" => match value.fields() {
                Some(fields) => self.forbid(fields, |own| own.private = true),
                None => self.private = true,
            },
            "public" => self.public = true,
            "must-revalidate" => self.must_revalidate = true,
            "proxy-revalidate" => self.proxy_revalidate = true,
            "must-understand" => self.must_understand = true,
            "max-age" => stricter(&mut self.max_age_s, value.delta_or_zero()),
            "s-maxage" => stricter(&mut self.s_maxage_s, value.delta_or_zero()),
            "stale-while-revalidate" => stricter(&mut self.stale_while_revalidate_s, value.delta_or_zero()),
            "stale-if-error" => stricter(&mut self.stale_if_error_s, value.delta_or_zero()),
            _ => {}
        }
    }

    fn forbid(&mut self, fields: Vec<HeaderName>, overflow: impl FnOnce(&mut Self)) {
        if self.fields.len() + fields.len() > FIELDS_MAX {
            overflow(self);
        } else {
            self.fields.extend(fields);
        }
    }

    /// RFC 9213: a valid, non-empty dictionary takes the place of `Cache-Control` and `Expires` wholly.
    fn targeted(headers: &HeaderMap) -> Option<Self> {
        let mut lines = headers.get_all(CDN_CACHE_CONTROL).iter().peekable();
        lines.peek()?;
        let mut text = Vec::new();
        for line in lines {
            if !text.is_empty() {
                text.extend_from_slice(b", ");
            }
            text.extend_from_slice(line.as_bytes());
        }
        let dictionary: Dictionary = Parser::new(&text).parse().ok()?;
        if dictionary.is_empty() {
            return None;
        }
        let mut out = Self { targeted: true, ..Self::default() };
        for (name, entry) in &dictionary {
            let ListEntry::Item(item) = entry else { continue };
            let said = !matches!(item.bare_item, BareItem::Boolean(false));
            let delta = match item.bare_item {
                BareItem::Integer(seconds) => {
                    Some(u32::try_from(i64::from(seconds).max(0)).unwrap_or(u32::MAX))
                }
                _ => None,
            };
            match name.as_str() {
                "no-store" => out.no_store |= said,
                "no-cache" => out.no_cache |= said,
                "private" => out.private |= said,
                "public" => out.public |= said,
                "must-revalidate" => out.must_revalidate |= said,
                "proxy-revalidate" => out.proxy_revalidate |= said,
                "must-understand" => out.must_understand |= said,
                "max-age" => out.max_age_s = delta,
                "s-maxage" => out.s_maxage_s = delta,
                "stale-while-revalidate" => out.stale_while_revalidate_s = delta,
                "stale-if-error" => out.stale_if_error_s = delta,
                _ => {}
            }
        }
        Some(out)
    }
}

/// Whether the upstream wants its bytes left as they are (RFC 9111 section 5.2.2.6), said in either field.
pub(crate) fn forbids_transform(headers: &HeaderMap) -> bool {
    let mut forbidden = false;
    let complete = each_directive(headers, |name, _| forbidden |= name == "no-transform");
    let targeted = headers.get_all(CDN_CACHE_CONTROL).iter().any(|line| {
        line.as_bytes().split(|byte| *byte == b',').any(|member| member.trim_ascii() == b"no-transform")
    });
    forbidden || targeted || !complete
}

impl RequestDirectives {
    pub fn of(headers: &HeaderMap) -> Self {
        let mut out = Self::default();
        each_directive(headers, |name, value| match name {
            "no-store" => out.no_store = true,
            "no-cache" => out.no_cache = true,
            "only-if-cached" => out.only_if_cached = true,
            "max-age" => stricter(&mut out.max_age_s, value.delta_or_zero()),
            "min-fresh" => {
                // Of two `min-fresh` the greater is the stricter one.
                out.min_fresh_s = Some(out.min_fresh_s.unwrap_or(0).max(value.delta().unwrap_or(u32::MAX)));
            }
            "max-stale" => stricter(
                &mut out.max_stale_s,
                if value.is_absent() { u32::MAX } else { value.delta_or_zero() },
            ),
            _ => {}
        });
        // RFC 9111 section 5.4: `Pragma: no-cache` counts only where Cache-Control is absent.
        if !headers.contains_key(CACHE_CONTROL) {
            out.no_cache |= headers.get_all(PRAGMA).iter().any(|line| {
                line.as_bytes()
                    .split(|b| *b == b',')
                    .any(|p| p.trim_ascii().eq_ignore_ascii_case(b"no-cache"))
            });
        }
        out
    }
}

fn stricter(slot: &mut Option<u32>, seconds: u32) {
    *slot = Some(slot.map_or(seconds, |held| held.min(seconds)));
}

/// The argument of one directive, as it stands in the text.
#[derive(Clone, Copy, Debug)]
enum Value<'a> {
    Absent,
    Token(&'a [u8]),
    /// The inside of a quoted string; escapes are left in, for no argument that counts here has one.
    Quoted(&'a [u8]),
    /// Blanks around `=`, an unclosed quote, or bytes after one.
    Malformed,
}

impl Value<'_> {
    fn is_absent(self) -> bool {
        matches!(self, Self::Absent)
    }

    /// RFC 9111 section 1.2.2: digits only, and what does not fit saturates.
    fn delta(self) -> Option<u32> {
        let (Self::Token(text) | Self::Quoted(text)) = self else { return None };
        delta_seconds(text)
    }

    /// A lifetime that cannot be read is none.
    fn delta_or_zero(self) -> u32 {
        self.delta().unwrap_or(0)
    }

    /// The field names of the qualified form; nothing where the directive is unqualified or cannot be read.
    fn fields(self) -> Option<Vec<HeaderName>> {
        let (Self::Quoted(text) | Self::Token(text)) = self else { return None };
        let names: Vec<_> = text
            .split(|byte| *byte == b',')
            .map(<[u8]>::trim_ascii)
            .filter(|name| !name.is_empty())
            .map(HeaderName::from_bytes)
            .collect::<Result<_, _>>()
            .ok()?;
        (!names.is_empty() && names.len() <= FIELDS_MAX).then_some(names)
    }
}

/// Digits to seconds, saturating. `Age` has the same syntax.
pub(crate) fn delta_seconds(text: &[u8]) -> Option<u32> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u32, |sum, byte| {
        let digit = byte.is_ascii_digit().then(|| u32::from(byte - b'0'))?;
        Some(sum.saturating_mul(10).saturating_add(digit))
    })
}

/// Calls `take` with each directive of all `Cache-Control` lines, names in lower case. False if there were too many.
fn each_directive(headers: &HeaderMap, mut take: impl FnMut(&str, Value<'_>)) -> bool {
    let mut left = DIRECTIVES_MAX;
    for line in headers.get_all(CACHE_CONTROL) {
        let mut rest = line.as_bytes();
        while !rest.is_empty() {
            let (member, after) = split_member(rest);
            rest = after;
            let member = member.trim_ascii();
            if member.is_empty() {
                continue;
            }
            if left == 0 {
                return false;
            }
            left -= 1;
            let (name, value) = split_directive(member);
            if let Ok(name) = std::str::from_utf8(name) {
                take(&name.to_ascii_lowercase(), value);
            }
        }
    }
    true
}

/// Cuts at the first comma outside of a quoted string. An unclosed quote reaches to the end of the line.
fn split_member(text: &[u8]) -> (&[u8], &[u8]) {
    let mut quoted = false;
    let mut escaped = false;
    for (at, byte) in text.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' if !quoted => return (&text[..at], &text[at + 1..]),
            _ => {}
        }
    }
    (text, &[])
}

fn split_directive(member: &[u8]) -> (&[u8], Value<'_>) {
    let Some(at) = member.iter().position(|byte| *byte == b'=') else {
        return (member, Value::Absent);
    };
    let (name, text) = (&member[..at], &member[at + 1..]);
    let trimmed = name.trim_ascii_end();
    let value = if trimmed.len() != name.len() || text.first().is_none_or(u8::is_ascii_whitespace) {
        Value::Malformed
    } else if let Some(inside) = text.strip_prefix(b"\"") {
        match inside.strip_suffix(b"\"") {
            Some(inside) if !inside.contains(&b'"') => Value::Quoted(inside),
            _ => Value::Malformed,
        }
    } else {
        Value::Token(text)
    };
    (trimmed, value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(*name, value.parse().expect("test header"));
        }
        map
    }

    fn cc(text: &str) -> ResponseDirectives {
        ResponseDirectives::of(&headers(&[("cache-control", text)]))
    }

    #[test]
    fn names_are_read_in_any_case() {
        assert!(cc("No-StOrE").no_store);
        assert_eq!(cc("MAX-AGE=5").max_age_s, Some(5));
    }

    #[test]
    fn lifetimes_read_strictly_and_the_smaller_counts() {
        let table = [
            ("max-age=3600", Some(3600)),
            ("max-age=\"3600\"", Some(3600)),
            ("max-age=003600", Some(3600)),
            ("max-age=99999999999", Some(u32::MAX)),
            ("max-age=1800, max-age=1", Some(1)),
            ("max-age=1, max-age=1800", Some(1)),
            ("max-age='3600'", Some(0)),
            ("max-age=3600.5", Some(0)),
            ("max-age=-1", Some(0)),
            ("max-age=3600a", Some(0)),
            ("max-age =3600", Some(0)),
            ("max-age= 3600", Some(0)),
            ("max-age=", Some(0)),
            ("max-age", Some(0)),
            ("extension=\"max-age=3600\", max-age=1", Some(1)),
            ("extension=\"a\\\", max-age=9\", max-age=2", Some(2)),
            ("xmax-age=3600", None),
            (" , ,max-age=7,, ", Some(7)),
        ];
        for (text, want) in table {
            assert_eq!(cc(text).max_age_s, want, "{text}");
        }
    }

    #[test]
    fn lines_are_one_list() {
        let said = ResponseDirectives::of(&headers(&[
            ("cache-control", "public"),
            ("cache-control", "max-age=5, must-revalidate"),
        ]));
        assert!(said.public && said.must_revalidate);
        assert_eq!(said.max_age_s, Some(5));
    }

    #[test]
    fn qualified_forms_forbid_fields_only() {
        let said = cc("no-cache=\"a, B\", private=set-cookie, max-age=5");
        assert!(!said.no_cache && !said.private);
        assert_eq!(said.fields, ["a", "b", "set-cookie"]);
        assert!(cc("private=\"a b\"").private, "what cannot be read is unqualified");
        assert!(cc("no-cache=\"\"").no_cache);
    }

    #[test]
    fn a_flood_of_directives_is_not_stored() {
        assert!(cc(&"x,".repeat(1_000)).no_store);
    }

    #[test]
    fn a_targeted_field_is_valid_or_ignored_whole() {
        let both = |cdn: &str| {
            ResponseDirectives::of(&headers(&[("cache-control", "max-age=1"), ("cdn-cache-control", cdn)]))
        };
        assert_eq!(both("max-age=100").max_age_s, Some(100));
        assert_eq!(both("max-age=99999999999").max_age_s, Some(u32::MAX));
        assert_eq!(both("max-age=-5").max_age_s, Some(0));
        assert_eq!(both("foobar, max-age=9;x=1").max_age_s, Some(9));
        for ignored in ["MaX-aGe=100", "max-age =100", "max-age= 100", "max-age=100,", "", "max-age=\"x"] {
            let said = both(ignored);
            assert_eq!((said.max_age_s, said.targeted), (Some(1), false), "{ignored}");
        }
        assert!(both("no-store").no_store);
        assert!(!both("no-store=?0").no_store);
        assert_eq!(both("max-age=\"100\"").max_age_s, None, "a string is no lifetime");
    }

    #[test]
    fn requests_speak_pragma_only_alone() {
        assert!(RequestDirectives::of(&headers(&[("pragma", "No-Cache")])).no_cache);
        let both = headers(&[("pragma", "no-cache"), ("cache-control", "max-age=1")]);
        assert!(!RequestDirectives::of(&both).no_cache);
        assert_eq!(
            RequestDirectives::of(&headers(&[("cache-control", "max-stale")])).max_stale_s,
            Some(u32::MAX)
        );
        let twice = headers(&[("cache-control", "min-fresh=5, min-fresh=9")]);
        assert_eq!(RequestDirectives::of(&twice).min_fresh_s, Some(9));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(value) = http::HeaderValue::from_bytes(&bytes) {
                let mut map = HeaderMap::new();
                map.insert(CACHE_CONTROL, value.clone());
                map.insert(CDN_CACHE_CONTROL, value.clone());
                map.insert(PRAGMA, value);
                ResponseDirectives::of(&map);
                ResponseDirectives::untargeted(&map);
                RequestDirectives::of(&map);
            }
        }

        #[test]
        fn no_store_is_found_wherever_it_stands(before in "[a-z=, \"0-9]{0,40}", after in "[a-z=, 0-9]{0,40}") {
            // A quote that is still open before it would make it part of a string.
            prop_assume!(before.matches('"').count() % 2 == 0);
            let text = format!("{before},no-store,{after}");
            prop_assert!(cc(&text).no_store);
        }
    }
}
