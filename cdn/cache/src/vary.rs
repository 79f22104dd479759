//! Which variant of a resource a request asks for: `Vary`, with values normalised so that spellings share an entry.

use http::header::{
    ACCEPT_ENCODING, ACCEPT_LANGUAGE, AUTHORIZATION, COOKIE, HeaderMap, HeaderName, USER_AGENT, VARY,
};

use crate::language;
use crate::reason::PassReason;

/// Variants kept of one key. Encodings times a few languages; more is somebody counting through values.
pub const VARIANTS_MAX: usize = 16;
/// Fields that one response may vary by.
const FIELDS_MAX: usize = 8;

/// A mark that no field value can hold keeps a meaning apart from a text that looks like one.
const MEANT: char = '\u{1}';

/// The fields a stored response varies by, with the normalised values of the request that it answered.
#[derive(Clone, Debug, Default)]
pub struct Variant {
    fields: Vec<(HeaderName, Option<Box<str>>)>,
    languages: Languages,
}

/// How `Accept-Language` is compared.
#[derive(Clone, Debug, Default)]
enum Languages {
    /// By its text: the order of a list may mean something to the upstream.
    #[default]
    AsWritten,
    /// By its weights. A response in one language is also what a request gets that wants this language most.
    Negotiated { content: Option<Box<str>> },
}

/// What was asked for tells variants apart. The language that came of it does not: a newer answer to the same wish takes
/// the place of the older one, whatever language it is in.
impl PartialEq for Variant {
    fn eq(&self, other: &Self) -> bool {
        self.fields == other.fields
    }
}

impl Eq for Variant {}

impl Variant {
    /// The variant that a response with these headers is, for the request that it answered. `negotiates` compares
    /// languages by their weights.
    pub fn of(response: &HeaderMap, request: &HeaderMap, negotiates: bool) -> Result<Self, PassReason> {
        let mut names: Vec<HeaderName> = Vec::new();
        for line in response.get_all(VARY) {
            for member in line.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                if member.is_empty() {
                    continue;
                }
                // `*`, and what is no field name: what it depends on cannot be known.
                let name = HeaderName::from_bytes(member).map_err(|_| PassReason::VaryAny)?;
                if name.as_str() == "*" {
                    return Err(PassReason::VaryAny);
                }
                if [COOKIE, USER_AGENT, AUTHORIZATION].contains(&name) {
                    return Err(PassReason::VaryPersonal);
                }
                if !names.contains(&name) {
                    names.push(name);
                }
            }
            if names.len() > FIELDS_MAX {
                return Err(PassReason::VaryTooMany);
            }
        }
        names.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
        let mut variant = Self::named(names, request, negotiates);
        if let Languages::Negotiated { content } = &mut variant.languages {
            *content = language::of_content(response);
        }
        Ok(variant)
    }

    /// The request's values of these fields.
    pub fn named(names: impl IntoIterator<Item = HeaderName>, request: &HeaderMap, negotiates: bool) -> Self {
        let languages =
            if negotiates { Languages::Negotiated { content: None } } else { Languages::AsWritten };
        let fields = names
            .into_iter()
            .map(|name| {
                let value = normalise(&name, request, &languages);
                (name, value)
            })
            .collect();
        Self { fields, languages }
    }

    /// This variant, told apart by the fields of `other` too; both are of one request.
    ///
    /// A 304 may name fewer fields in `Vary` than the 200 that it confirms, but the bytes vary by as many as before.
    pub fn and(mut self, other: &Self) -> Result<Self, PassReason> {
        for (name, value) in &other.fields {
            if !self.names().any(|own| own == name) {
                self.fields.push((name.clone(), value.clone()));
            }
        }
        if self.fields.len() > FIELDS_MAX {
            return Err(PassReason::VaryTooMany);
        }
        self.fields.sort_unstable_by(|(a, _), (b, _)| a.as_str().cmp(b.as_str()));
        Ok(self)
    }

    pub fn names(&self) -> impl Iterator<Item = &HeaderName> {
        self.fields.iter().map(|(name, _)| name)
    }

    /// The fields with the values that they are compared by. None is a field that the request does not have.
    pub fn fields(&self) -> impl Iterator<Item = (&HeaderName, Option<&str>)> {
        self.fields
            .iter()
            .map(|(name, value)| (name, value.as_deref().map(|value| value.trim_start_matches(MEANT))))
    }

    /// Whether `request` selects this variant.
    pub fn matches(&self, request: &HeaderMap) -> bool {
        self.fields.iter().all(|(name, value)| {
            normalise(name, request, &self.languages) == *value
                || (*name == ACCEPT_LANGUAGE && self.is_favourite_of(request))
        })
    }

    /// Whether it is in the language that the request wants most.
    fn is_favourite_of(&self, request: &HeaderMap) -> bool {
        match &self.languages {
            Languages::Negotiated { content: Some(content) } => {
                language::favourite(request).is_some_and(|wanted| *wanted == **content)
            }
            Languages::AsWritten | Languages::Negotiated { content: None } => false,
        }
    }

    /// What there is to write down of it: the fields with what was asked for in them, and, where languages are negotiated,
    /// the one that came of it.
    pub(crate) fn parts(&self) -> (impl Iterator<Item = (&HeaderName, Option<&str>)>, Option<Option<&str>>) {
        let negotiated = match &self.languages {
            Languages::AsWritten => None,
            Languages::Negotiated { content } => Some(content.as_deref()),
        };
        (self.fields.iter().map(|(name, value)| (name, value.as_deref())), negotiated)
    }

    /// The variant of [`parts`](Self::parts) that were written down.
    pub(crate) fn from_parts(
        fields: Vec<(HeaderName, Option<Box<str>>)>,
        negotiated: Option<Option<Box<str>>>,
    ) -> Self {
        let languages = negotiated.map_or(Languages::AsWritten, |content| Languages::Negotiated { content });
        Self { fields, languages }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.fields.iter().map(|(_, value)| 48 + value.as_ref().map_or(0, |text| text.len())).sum()
    }
}

/// The value of a field with everything taken out that cannot make a difference.
fn normalise(name: &HeaderName, request: &HeaderMap, languages: &Languages) -> Option<Box<str>> {
    if *name == ACCEPT_ENCODING {
        return accept_encoding(request).map(Into::into);
    }
    if let Languages::Negotiated { .. } = languages
        && *name == ACCEPT_LANGUAGE
        && let Some(meant) = language::canonical(request)
    {
        return Some(format!("{MEANT}{meant}").into());
    }
    let mut out = String::new();
    let mut any = false;
    for line in request.get_all(name) {
        any = true;
        for member in line.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            if !out.is_empty() {
                out.push(',');
            }
            // Not valid UTF-8 is still told apart, byte by byte.
            for byte in member {
                out.push(char::from(*byte));
            }
        }
    }
    if *name == ACCEPT_LANGUAGE {
        out.make_ascii_lowercase();
        out.retain(|c| c != ' ');
    }
    any.then(|| out.into())
}

/// The codings that a node and its upstreams know, best first.
const CODINGS: [&str; 3] = ["zstd", "br", "gzip"];

/// `Accept-Encoding` as it is compared and forwarded: the known codings that the client takes, in one order and
/// spelling. None where it takes none of them. Six spellings of the same wish are one fetch.
pub fn accept_encoding(request: &HeaderMap) -> Option<&'static str> {
    let mut taken = [None::<bool>; CODINGS.len()];
    let mut any = false;
    for line in request.get_all(ACCEPT_ENCODING) {
        for member in line.as_bytes().split(|byte| *byte == b',') {
            let mut parts = member.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
            let coding = parts.next().unwrap_or_default();
            let wanted = !parts.any(is_zero_weight);
            if coding == b"*" {
                any = wanted;
            }
            for (slot, known) in taken.iter_mut().zip(CODINGS) {
                let same = coding.eq_ignore_ascii_case(known.as_bytes())
                    || (known == "gzip" && coding.eq_ignore_ascii_case(b"x-gzip"));
                if same {
                    *slot = Some(wanted);
                }
            }
        }
    }
    // `*` is what old clients and tools send: gzip is the one coding that all of those really read.
    let [zstd, br, gzip] = taken;
    match (zstd.unwrap_or(false), br.unwrap_or(false), gzip.unwrap_or(any)) {
        (true, true, true) => Some("zstd, br, gzip"),
        (true, true, false) => Some("zstd, br"),
        (true, false, true) => Some("zstd, gzip"),
        (true, false, false) => Some("zstd"),
        (false, true, true) => Some("br, gzip"),
        (false, true, false) => Some("br"),
        (false, false, true) => Some("gzip"),
        (false, false, false) => None,
    }
}

/// `q=0`, `q=0.0` and the like.
fn is_zero_weight(parameter: &[u8]) -> bool {
    let mut halves = parameter.splitn(2, |byte| *byte == b'=').map(<[u8]>::trim_ascii);
    let (name, value) = (halves.next().unwrap_or_default(), halves.next().unwrap_or_default());
    name.eq_ignore_ascii_case(b"q")
        && !value.is_empty()
        && value.iter().all(|byte| matches!(byte, b'0' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(*name, value.parse().expect("test header"));
        }
        map
    }

    #[test]
    fn star_counts_wherever_it_stands() {
        let request = map(&[]);
        for lines in [&[("vary", "*")][..], &[("vary", "Foo, *")], &[("vary", "Foo"), ("vary", ", *")]] {
            assert_eq!(Variant::of(&map(lines), &request, false), Err(PassReason::VaryAny), "{lines:?}");
        }
        assert_eq!(Variant::of(&map(&[("vary", "a b")]), &request, false), Err(PassReason::VaryAny));
        assert_eq!(Variant::of(&map(&[("vary", "Cookie")]), &request, false), Err(PassReason::VaryPersonal));
        assert_eq!(
            Variant::of(&map(&[("vary", "a,b,c,d,e,f,g,h,i")]), &request, false),
            Err(PassReason::VaryTooMany)
        );
    }

    #[test]
    fn absent_and_empty_are_different_and_order_of_names_is_not() {
        let empty = Variant::of(&map(&[("vary", "Foo")]), &map(&[("foo", "")]), false).expect("keyed");
        assert!(!empty.matches(&map(&[])));
        let request = map(&[("foo", "1"), ("bar", "2")]);
        assert_eq!(
            Variant::of(&map(&[("vary", "Foo, bar")]), &request, false),
            Variant::of(&map(&[("vary", "BAR"), ("vary", "foo, foo")]), &request, false)
        );
    }

    #[test]
    fn blanks_and_lines_make_no_difference() {
        let one = Variant::of(&map(&[("vary", "foo")]), &map(&[("foo", "1, 2")]), false).expect("keyed");
        assert!(one.matches(&map(&[("foo", "1,2")])));
        assert!(one.matches(&map(&[("foo", "1"), ("foo", "2")])));
        assert!(!one.matches(&map(&[("foo", "2,1")])));
        let language = Variant::of(
            &map(&[("vary", "accept-language")]),
            &map(&[("accept-language", "EN-gb; q=1")]),
            false,
        );
        assert!(language.expect("keyed").matches(&map(&[("accept-language", "en-GB;q=1")])));
    }

    #[test]
    fn spellings_of_accept_encoding_are_one() {
        for text in [
            "gzip, br",
            "br,gzip",
            "BR;q=1.0, gzip;q=0.8",
            "gzip;q=0.1,br, deflate",
            "br, x-gzip",
            "br, *;q=0.1",
        ] {
            assert_eq!(accept_encoding(&map(&[("accept-encoding", text)])), Some("br, gzip"), "{text}");
        }
        assert_eq!(
            accept_encoding(&map(&[("accept-encoding", "gzip, deflate, br, zstd")])),
            Some("zstd, br, gzip")
        );
        for text in ["", "identity", "gzip;q=0", "gzip; Q=0.000", "*;q=0", "deflate"] {
            assert_eq!(accept_encoding(&map(&[("accept-encoding", text)])), None, "{text}");
        }
        assert_eq!(accept_encoding(&map(&[("accept-encoding", "gzip;q=0, *")])), None);
    }

    #[test]
    fn a_negotiated_language_is_found_by_its_weight() {
        let german = map(&[("vary", "accept-language, x"), ("content-language", "DE")]);
        let request = map(&[("accept-language", "en, de"), ("x", "1")]);
        let variant = Variant::of(&german, &request, true).expect("keyed");
        for found in ["de, en", "fr;q=0.5, de;q=1.0", "de"] {
            assert!(variant.matches(&map(&[("accept-language", found), ("x", "1")])), "{found}");
        }
        assert!(
            !variant.matches(&map(&[("accept-language", "de"), ("x", "2")])),
            "the other field still counts"
        );
        for other in ["en", "fr, de", "de;q=0.5, en"] {
            assert!(!variant.matches(&map(&[("accept-language", other), ("x", "1")])), "{other}");
        }
        let as_written = Variant::of(&german, &request, false).expect("keyed");
        assert!(!as_written.matches(&map(&[("accept-language", "de, en"), ("x", "1")])));
    }
}
