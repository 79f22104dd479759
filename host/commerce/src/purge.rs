//! What a merchant asks the caches to forget: the body of a purge, as people write it and as it travels.

use std::borrow::Cow;
use std::collections::BTreeSet;

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// Things that one purge may name. Who has more says so by a tag that all of them bear, or in several purges.
pub const PURGE_ITEMS_MAX: usize = 256;
/// The longest tag: what the caches read of one.
pub const PURGE_TAG_BYTES_MAX: usize = 1_024;
/// The longest address or prefix. Longer ones are purged by their prefix.
pub const PURGE_PLACE_BYTES_MAX: usize = 2_048;
/// All of them together: the purge travels as one record of a log.
pub const PURGE_BYTES_MAX: usize = 32 * 1_024;

/// What to forget of one site.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, Encode, Decode)]
#[serde(default, deny_unknown_fields)]
pub struct Forget {
    /// As responses name them in `Surrogate-Key` or `Cache-Tag`.
    #[n(0)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// A path with its query, on every host of the site; or a whole address, on its host only.
    #[n(1)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// The same, with all that is under it: `/blog` takes `/blog`, `/blog/x` and `/blog?x`, not `/blogger`.
    #[n(2)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub prefixes: Vec<String>,
    /// All of the site.
    #[n(3)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub everything: bool,
    /// It becomes stale instead of gone: it may stand in while it is fetched anew, where its upstream allowed that.
    #[n(4)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub soft: bool,
}

/// Why a purge is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPurge {
    #[error("it names nothing: say tags, urls, prefixes or \"everything\": true")]
    Nothing,
    #[error(
        "{items} things are more than {PURGE_ITEMS_MAX}: send several purges, or give the responses a tag in common"
    )]
    TooMany { items: usize },
    #[error("{bytes} bytes are more than {PURGE_BYTES_MAX}: send several purges")]
    TooLarge { bytes: usize },
    #[error(
        "{field}[{index}] is not 1 to {PURGE_TAG_BYTES_MAX} visible ASCII characters without a comma (blanks inside are allowed)"
    )]
    Tag { field: &'static str, index: usize },
    #[error(
        "{field}[{index}] is neither a path such as /tea?size=2 nor an address such as https://shop.example/tea, of at most {PURGE_PLACE_BYTES_MAX} visible ASCII characters"
    )]
    Place { field: &'static str, index: usize },
}

impl BadPurge {
    /// Which field was wrong.
    pub fn field(&self) -> String {
        match self {
            Self::Nothing | Self::TooMany { .. } | Self::TooLarge { .. } => "body".to_owned(),
            Self::Tag { field, index } | Self::Place { field, index } => format!("{field}[{index}]"),
        }
    }
}

impl Forget {
    /// The same, with other URLs that what a URL names is kept under, each of them once. `others` gets scheme and authority of
    /// each (nothing, where it is a path on every host) and its target.
    #[must_use]
    pub fn known_as(&self, mut others: impl FnMut(&str, &str) -> Vec<String>) -> Self {
        let named: BTreeSet<&str> = self.urls.iter().map(String::as_str).collect();
        let others: BTreeSet<String> = self
            .urls
            .iter()
            .flat_map(|url| {
                let (address, target) = split(url);
                others(address, &target)
            })
            .filter(|other| !named.contains(other.as_str()))
            .collect();
        Self { urls: self.urls.iter().cloned().chain(others).collect(), ..self.clone() }
    }

    /// Checked wherever a purge comes from outside.
    pub fn check(&self) -> Result<(), BadPurge> {
        let Self { tags, urls, prefixes, everything, soft: _ } = self;
        let items = tags.len() + urls.len() + prefixes.len();
        if items == 0 && !everything {
            return Err(BadPurge::Nothing);
        }
        if items > PURGE_ITEMS_MAX {
            return Err(BadPurge::TooMany { items });
        }
        let bytes = tags.iter().chain(urls).chain(prefixes).map(String::len).sum();
        if bytes > PURGE_BYTES_MAX {
            return Err(BadPurge::TooLarge { bytes });
        }
        if let Some(index) = tags.iter().position(|tag| !is_tag(tag)) {
            return Err(BadPurge::Tag { field: "tags", index });
        }
        for (field, places) in [("urls", urls), ("prefixes", prefixes)] {
            if let Some(index) = places.iter().position(|place| !is_place(place)) {
                return Err(BadPurge::Place { field, index });
            }
        }
        Ok(())
    }
}

/// Scheme and authority of a URL or a prefix (nothing, where it is a path on every host), and the target.
pub fn split(place: &str) -> (&str, Cow<'_, str>) {
    let authority = if place.starts_with('/') { None } else { place.find("://").map(|at| at + 3) };
    let Some(authority) = authority else { return ("", Cow::Borrowed(place)) };
    let at = place[authority..].find(['/', '?']).map_or(place.len(), |at| authority + at);
    let (address, target) = place.split_at(at);
    (address, if target.starts_with('/') { Cow::Borrowed(target) } else { Cow::Owned(format!("/{target}")) })
}

fn is_tag(text: &str) -> bool {
    (1..=PURGE_TAG_BYTES_MAX).contains(&text.len())
        && text.trim() == text
        && text.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b',')
}

/// What the caches read more closely: here only the form.
fn is_place(text: &str) -> bool {
    let begins = ["/", "http://", "https://"].iter().any(|start| text.starts_with(start));
    begins && text.len() <= PURGE_PLACE_BYTES_MAX && text.bytes().all(|b| b.is_ascii_graphic() && b != b'#')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_may_be_known_by_others_each_of_which_is_said_once() {
        let urls =
            ["/tea?b&a", "https://shop.example?b&a", "http://Shop.example:80/x?u=http://y/z?b", "/tea"];
        let forget = Forget { urls: urls.map(ToOwned::to_owned).to_vec(), ..Forget::default() };
        let mut seen = Vec::new();
        let known = forget.known_as(|address, target| {
            seen.push((address.to_owned(), target.to_owned()));
            // As two hosts of a site say it whose rules are alike.
            vec![format!("{address}{}", target.split('?').next().unwrap_or_default()); 2]
        });
        let expected = [
            ("", "/tea?b&a"),
            ("https://shop.example", "/?b&a"),
            ("http://Shop.example:80", "/x?u=http://y/z?b"),
            ("", "/tea"),
        ];
        assert_eq!(seen, expected.map(|(address, target)| (address.to_owned(), target.to_owned())));
        let more = ["http://Shop.example:80/x", "https://shop.example/"];
        assert_eq!(known.urls, urls.iter().chain(&more).map(|url| (*url).to_owned()).collect::<Vec<_>>());
    }

    fn read(json: &str) -> Result<Forget, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn a_purge_says_what_and_how() {
        let forget =
            read(r#"{"tags":["red","very red"],"urls":["/tea?size=2"],"soft":true}"#).expect("readable");
        assert_eq!(forget.check(), Ok(()));
        assert!(forget.soft && !forget.everything);
        assert_eq!(read(r#"{"everything":true}"#).expect("readable").check(), Ok(()));
        assert!(read(r#"{"tag":["red"]}"#).expect_err("a slip").contains("tags"));
    }

    #[test]
    fn what_could_not_be_obeyed_is_refused_by_name() {
        let text = |json: &str| read(json).expect("readable").check().map_err(|bad| bad.field());
        assert_eq!(text("{}"), Err("body".to_owned()));
        assert_eq!(text(r#"{"soft":true}"#), Err("body".to_owned()));
        assert_eq!(text(r#"{"tags":["ok",""]}"#), Err("tags[1]".to_owned()));
        assert_eq!(text(r#"{"tags":["a,b"]}"#), Err("tags[0]".to_owned()));
        assert_eq!(text(r#"{"urls":["tea"]}"#), Err("urls[0]".to_owned()));
        assert_eq!(text(r#"{"prefixes":["/ok","/a b"]}"#), Err("prefixes[1]".to_owned()));
        let many = Forget { tags: vec!["t".to_owned(); PURGE_ITEMS_MAX + 1], ..Forget::default() };
        assert!(matches!(many.check(), Err(BadPurge::TooMany { .. })));
        let large = Forget { tags: vec!["t".repeat(PURGE_TAG_BYTES_MAX); 40], ..Forget::default() };
        assert!(matches!(large.check(), Err(BadPurge::TooLarge { .. })));
    }
}
