//! Which form of a file a request gets: as it is, encoded, or as what it differs in from a version that the browser has
//! (RFC 9842).
//!
//! Pure. Reads the request's wishes, and says for which files a browser may offer this one as a dictionary. Refuses to know
//! what has been made already and how, which is [`super::variants`]'s and [`super::codec`]'s.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use sfv::{BareItem, Item, Parser};
use souk_cache::coding::weight_of;
use souk_commerce::feed::Asset;
use souk_commerce::id::Digest;
use souk_commerce::lineage::{Line, is_worth_telling};

pub(super) const AVAILABLE_DICTIONARY: HeaderName = HeaderName::from_static("available-dictionary");
pub(super) const USE_AS_DICTIONARY: HeaderName = HeaderName::from_static("use-as-dictionary");
const FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// Digits of the digest in a dictionary's `id`, and in the tags of what is told by it: enough that a person finds the file.
pub(super) const ID_DIGITS: usize = 16;

/// A form that is made here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Coding {
    /// Zstandard, with a version that the browser has as its dictionary.
    Dcz,
    Br,
    Zstd,
    Gzip,
}

impl Coding {
    /// What is made first of those that a client likes equally. A difference is the smallest by far.
    pub(super) const ALL: [Self; 4] = [Self::Dcz, Self::Br, Self::Zstd, Self::Gzip];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Dcz => "dcz",
            Self::Br => "br",
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
        }
    }

    pub(super) const fn is_difference(self) -> bool {
        matches!(self, Self::Dcz)
    }
}

/// What a request can be answered with beside the file as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Wishes {
    /// The best first, each with its weight in thousandths.
    pub(super) codings: Vec<(Coding, u16)>,
    /// The version that the client has: one of the file's former ones.
    pub(super) dictionary: Option<Digest>,
    /// The client has something, and it is none of those.
    pub(super) stranger: bool,
}

impl Wishes {
    /// `secure`: nobody between the client and this node can read along, nor can anybody who does not know these codings
    /// mistake what he passes on (RFC 9842 section 8).
    pub(super) fn of(headers: &HeaderMap, asset: &Asset, secure: bool) -> Self {
        if !is_worth_telling(asset) {
            return Self::default();
        }
        let offered = offered(headers).filter(|_| secure && is_readable(headers));
        let dictionary = offered.filter(|offer| asset.former.iter().any(|former| former.digest == *offer));
        let stranger = offered.is_some_and(|offer| dictionary.is_none() && offer != asset.digest);
        let any = weight_of(headers, "*");
        let identity = weight_of(headers, "identity");
        let weight = |coding: Coding| match coding {
            // Only who names it can read it.
            Coding::Dcz if dictionary.is_none() => 0,
            // `*` is what old clients and tools send: gzip is the one coding that all of those really read.
            Coding::Gzip => weight_of(headers, "gzip").or(any).unwrap_or(0),
            coding => weight_of(headers, coding.name()).unwrap_or(0),
        };
        let liked = |weight: u16| weight > 0 && identity.is_none_or(|identity| weight >= identity);
        let mut codings: Vec<_> = Coding::ALL
            .into_iter()
            .map(|coding| (coding, weight(coding)))
            .filter(|(_, weight)| liked(*weight))
            .collect();
        // Stable: of equals the first stays first.
        codings.sort_by_key(|(_, weight)| std::cmp::Reverse(*weight));
        Self { codings, dictionary, stranger }
    }
}

/// The version that a client says it has. One, said once, and written as a byte sequence of 32 bytes; else none.
fn offered(headers: &HeaderMap) -> Option<Digest> {
    let mut lines = headers.get_all(AVAILABLE_DICTIONARY).iter();
    let line = lines.next().filter(|_| lines.next().is_none())?;
    let item: Item = Parser::new(line.as_bytes()).parse().ok()?;
    let BareItem::ByteSequence(bytes) = item.bare_item else { return None };
    bytes.try_into().ok().map(Digest)
}

/// Whether whoever made the browser ask may read the answer anyway (RFC 9842 section 9.3): its length must tell nobody else
/// what the browser has. The files are shown to other sites' pages, but not their text: no answer here allows that.
fn is_readable(headers: &HeaderMap) -> bool {
    if headers.get(FETCH_SITE).is_some_and(|site| site == "same-origin") {
        return true;
    }
    headers.get(FETCH_MODE).is_none_or(|mode| mode == "navigate" || mode == "same-origin")
}

/// What lets a browser use this file as a dictionary for its successors. None of a file that is not worth it, that a pattern
/// cannot name, or that may not be used without asking: a dictionary is used while it is fresh (section 2.2.1).
pub(super) fn as_dictionary(
    headers: &HeaderMap,
    path: &str,
    asset: &Asset,
    secure: bool,
    has_lifetime: bool,
) -> Option<HeaderValue> {
    if !(secure && has_lifetime && is_worth_telling(asset) && is_readable(headers)) {
        return None;
    }
    let pattern = Line::of(path, &asset.digest).pattern()?;
    let id = &asset.digest.to_string()[..ID_DIGITS];
    HeaderValue::from_str(&format!("match=\"{pattern}\", id=\"{id}\"")).ok()
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use proptest::prelude::*;
    use souk_commerce::feed::Former;

    use super::*;

    fn file() -> Asset {
        let former = |text: &[u8]| Former { digest: Digest::of(text), bytes: 2_000 };
        let former = vec![former(b"two"), former(b"one")];
        Asset { former, ..Asset::new(Digest::of(b"three"), 2_000, "text/javascript".to_owned()) }
    }

    fn available(digest: &Digest) -> String {
        format!(":{}:", base64::engine::general_purpose::STANDARD.encode(digest.0))
    }

    fn request(fields: &[(&'static str, &str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    fn codings(fields: &[(&'static str, &str)]) -> Vec<&'static str> {
        let wishes = Wishes::of(&request(fields), &file(), true);
        wishes.codings.iter().map(|(coding, _)| coding.name()).collect()
    }

    #[test]
    fn a_difference_is_for_who_names_it_has_a_former_version_and_is_alone_with_us() {
        const ALL: &str = "gzip, deflate, br, zstd, dcb, dcz";
        let two = available(&Digest::of(b"two"));
        let had = [("accept-encoding", ALL), ("available-dictionary", two.as_str())];
        assert_eq!(codings(&had), ["dcz", "br", "zstd", "gzip"]);
        assert_eq!(Wishes::of(&request(&had), &file(), true).dictionary, Some(Digest::of(b"two")));
        let clear = Wishes::of(&request(&had), &file(), false);
        assert_eq!((clear.dictionary, clear.codings.len()), (None, 3), "only over TLS");
        for other in [
            available(&Digest::of(b"three")),
            available(&Digest::of(b"another site's")),
            format!("{two}, {two}"),
            two.replace(':', "\""),
            two[..10].to_owned() + ":",
            ":AAAA:".to_owned(),
            String::new(),
        ] {
            let had = [("accept-encoding", ALL), ("available-dictionary", other.as_str())];
            assert_eq!(codings(&had), ["br", "zstd", "gzip"], "{other}");
        }
        let mut twice = request(&had);
        twice.append(AVAILABLE_DICTIONARY, two.parse().unwrap());
        assert_eq!(Wishes::of(&twice, &file(), true).dictionary, None);
        // Parameters are for later versions of the field.
        let more = format!("{two};x=1");
        assert_eq!(codings(&[("accept-encoding", "dcz"), ("available-dictionary", &more)]), ["dcz"]);
        // To have one is not to be able to use it, and `*` is not a name.
        assert_eq!(codings(&[("accept-encoding", "br, *"), ("available-dictionary", &two)]), ["br", "gzip"]);
        let refused = "dcz;q=0.1, zstd;q=0, br;q=0.5";
        assert_eq!(codings(&[("accept-encoding", refused), ("available-dictionary", &two)]), ["br", "dcz"]);
        let whole = "dcz;q=0.5, identity";
        assert!(codings(&[("accept-encoding", whole), ("available-dictionary", &two)]).is_empty());
        assert!(codings(&[]).is_empty());
    }

    #[test]
    fn the_length_of_a_difference_is_for_who_may_read_it() {
        let two = available(&Digest::of(b"two"));
        for (site, mode, readable) in [
            (None, None, true),
            (Some("same-origin"), Some("no-cors"), true),
            (Some("same-origin"), Some("cors"), true),
            (Some("none"), Some("navigate"), true),
            (Some("cross-site"), Some("navigate"), true),
            (Some("cross-site"), Some("no-cors"), false),
            (Some("cross-site"), Some("cors"), false),
            (Some("same-site"), Some("no-cors"), false),
            (None, Some("websocket"), false),
        ] {
            let mut headers = request(&[("accept-encoding", "dcz"), ("available-dictionary", &two)]);
            if let Some(site) = site {
                headers.insert(FETCH_SITE, HeaderValue::from_static(site));
            }
            if let Some(mode) = mode {
                headers.insert(FETCH_MODE, HeaderValue::from_static(mode));
            }
            let seen = Wishes::of(&headers, &file(), true).dictionary.is_some();
            assert_eq!(seen, readable, "{site:?} {mode:?}");
            assert_eq!(as_dictionary(&headers, "/a.js", &file(), true, true).is_some(), readable);
        }
    }

    #[test]
    fn a_file_is_a_dictionary_for_its_line_while_it_is_fresh() {
        let file = file();
        let digits = file.digest.to_string();
        let told = |path: &str, asset: &Asset, secure, fresh| {
            let value = as_dictionary(&HeaderMap::new(), path, asset, secure, fresh)?;
            Some(value.to_str().unwrap().to_owned())
        };
        let id = &digits[..16];
        assert_eq!(told("/a.js", &file, true, true), Some(format!("match=\"/a.js\", id=\"{id}\"")));
        let named = format!("/a-{}.js", &digits[..8]);
        assert_eq!(told(&named, &file, true, true), Some(format!("match=\"/a-*.js\", id=\"{id}\"")));
        assert_eq!(told("/a.js", &file, false, true), None);
        assert_eq!(told("/a.js", &file, true, false), None);
        assert_eq!(told("/a (1).js", &file, true, true), None);
        let picture = Asset { content_type: "image/webp".to_owned(), ..file.clone() };
        assert_eq!(told("/a.js", &picture, true, true), None);
        let small = Asset { bytes: 100, ..file.clone() };
        assert_eq!(told("/a.js", &small, true, true), None);
        assert_eq!(Wishes::of(&request(&[("accept-encoding", "br")]), &small, true), Wishes::default());
    }

    proptest! {
        /// Whatever is sent: nothing that the client did not name, no difference from what is not a former version.
        #[test]
        fn nobody_gets_what_he_did_not_ask_for(accept in "[a-z*,;=. 0-9]{0,60}", available in ".{0,60}") {
            let mut headers = HeaderMap::new();
            for (name, value) in [("accept-encoding", accept.as_str()), ("available-dictionary", available.as_str())] {
                if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
                    headers.insert(HeaderName::from_static(name), value);
                }
            }
            let wishes = Wishes::of(&headers, &file(), true);
            prop_assert_eq!(wishes.dictionary, None);
            for (coding, weight) in wishes.codings {
                prop_assert!(weight > 0 && !coding.is_difference());
                let named = accept.contains(coding.name()) || coding == Coding::Gzip && accept.contains('*');
                prop_assert!(named, "{} for {}", coding.name(), accept);
            }
        }
    }
}
