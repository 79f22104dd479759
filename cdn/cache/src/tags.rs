//! What a stored response was made from, as names by which it can be made invalid.
//!
//! A name is kept as 8 bytes: two that its site alone decides, its *share*, and six of a SHA-256 over its kind, its site and
//! its text. Two sites' tags are never the same, and what an upstream writes can never be one that the node gives itself,
//! for the kind is hashed in and no field has any say in it. If two names ever fell together, one purge would take away too
//! much and never too little: of an entry with 20 tags beside 262,144 purged names, once in 50 million.
//!
//! Owns the reading of `Surrogate-Key`, `Cache-Tag` and `Cache-Groups`. Refuses to know what was purged ([`crate::purge`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::header::{HeaderMap, HeaderName};
use sfv::{BareItem, List, ListEntry, Parser};
use sha2::{Digest as _, Sha256};

use crate::key::Key;
use crate::reason::PassReason;

/// Tags of one response, from fields and from the caller together. A listing of 100 products has 305 of its own, and
/// Fastly's limit for a `Surrogate-Key` is 16 KiB, some 1,000 names: 8 KiB of memory at the most. A response with more
/// is not stored, because a purge of one that was dropped would leave it standing.
pub const TAGS_MAX: usize = 1_024;
/// The longest tag that is read or purged: Fastly's and Cloudflare's limit.
pub const TAG_BYTES_MAX: usize = 1_024;

pub const SURROGATE_KEY: HeaderName = HeaderName::from_static("surrogate-key");
pub const CACHE_TAG: HeaderName = HeaderName::from_static("cache-tag");
const CACHE_GROUPS: HeaderName = HeaderName::from_static("cache-groups");
const CACHE_GROUP_INVALIDATION: HeaderName = HeaderName::from_static("cache-group-invalidation");

/// Bits of a tag that its site alone decides. Two sites of 65,536 meet in one share, and share what one may have.
const SHARE_BITS: u32 = 16;

/// The name of something that a response may have been made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(u64);

impl Tag {
    /// A tag in the words of the response itself: `Surrogate-Key`, `Cache-Tag`.
    pub fn named(site: &str, text: &str) -> Self {
        Self::of("named", site, "", text)
    }

    /// A tag that the node gives by itself. No field of a response can name it.
    pub fn automatic(site: &str, text: &str) -> Self {
        Self::of("automatic", site, "", text)
    }

    /// A group of RFC 9875, which is one origin's.
    pub(crate) fn group(key: &Key, text: &str) -> Self {
        let origin = format!("{}://{}", key.scheme().as_str(), key.authority());
        Self::of("group", key.site(), &origin, text)
    }

    /// What everything stored under this key is known by, whichever its variant.
    pub fn of_key(key: &Key) -> Self {
        Self::target(key.site(), Some(key.authority()), &crate::purge::spelled(key.target()))
    }

    /// Every entry of a site has it.
    pub(crate) fn site(site: &str) -> Self {
        Self::of("site", site, "", "")
    }

    /// Every variant of a target has it: on one authority, or on whichever.
    pub(crate) fn target(site: &str, authority: Option<&str>, target: &str) -> Self {
        match authority {
            Some(authority) => Self::of("host_target", site, authority, target),
            None => Self::of("target", site, "", target),
        }
    }

    fn of(kind: &str, site: &str, place: &str, text: &str) -> Self {
        let mut hash = Sha256::new();
        for part in [kind, site, place, text] {
            // Each length goes first: no two names read the same when their parts are put end to end.
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let digest: [u8; 32] = hash.finalize().into();
        let (first, _) = digest.split_first_chunk().expect("32 bytes begin with 8");
        let share = u64::from(Self::share_of(site)) << (u64::BITS - SHARE_BITS);
        Self(share | u64::from_be_bytes(*first) >> SHARE_BITS)
    }

    /// Whose share of what is remembered a purge of this takes.
    pub(crate) const fn share(self) -> u16 {
        let [high, low, ..] = self.0.to_be_bytes();
        u16::from_be_bytes([high, low])
    }

    /// The share of a site.
    pub(crate) fn share_of(site: &str) -> u16 {
        let [a, b, c, d] = crc32c::crc32c(site.as_bytes()).to_be_bytes();
        u16::from_be_bytes([a ^ c, b ^ d])
    }

    /// As a disk keeps it.
    pub const fn to_u64(self) -> u64 {
        self.0
    }

    pub const fn from_u64(number: u64) -> Self {
        Self(number)
    }
}

/// Reads a list of tags: blanks and commas set them apart in `Surrogate-Key`, commas in `Cache-Tag`.
fn listed(
    headers: &HeaderMap,
    name: &HeaderName,
    is_separator: fn(&u8) -> bool,
) -> Result<Vec<String>, PassReason> {
    let mut found = Vec::new();
    for line in headers.get_all(name) {
        for text in line.as_bytes().split(is_separator).map(<[u8]>::trim_ascii) {
            if text.is_empty() {
                continue;
            }
            if found.len() >= TAGS_MAX || text.len() > TAG_BYTES_MAX {
                return Err(PassReason::TooManyTags);
            }
            found.push(String::from_utf8_lossy(text).into_owned());
        }
    }
    Ok(found)
}

/// The strings of a structured list (RFC 9875 section 2). A field that is not valid counts as absent.
fn groups(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let mut text = Vec::new();
    for line in headers.get_all(name) {
        if !text.is_empty() {
            text.extend_from_slice(b", ");
        }
        text.extend_from_slice(line.as_bytes());
    }
    let Ok(list) = Parser::new(&text).parse::<List>() else { return Vec::new() };
    let strings = list.into_iter().filter_map(|entry| match entry {
        ListEntry::Item(item) => match item.bare_item {
            BareItem::String(text) => Some(text.as_str().to_owned()),
            _ => None,
        },
        ListEntry::InnerList(_) => None,
    });
    strings.take(TAGS_MAX).collect()
}

/// What a response says it was made from.
pub(crate) fn of_response(headers: &HeaderMap, key: &Key) -> Result<Vec<Tag>, PassReason> {
    let named = |text: &String| Tag::named(key.site(), text);
    let mut tags: Vec<Tag> = Vec::new();
    tags.extend(
        listed(headers, &SURROGATE_KEY, |byte| byte.is_ascii_whitespace() || *byte == b',')?
            .iter()
            .map(named),
    );
    tags.extend(listed(headers, &CACHE_TAG, |byte| *byte == b',')?.iter().map(named));
    if headers.contains_key(CACHE_GROUPS) {
        tags.extend(groups(headers, &CACHE_GROUPS).iter().map(|text| Tag::group(key, text)));
    }
    Ok(tags)
}

/// The groups that the answer to an unsafe request says it has changed (RFC 9875 section 3).
pub fn changed_groups(headers: &HeaderMap, key: &Key) -> Vec<Tag> {
    if !headers.contains_key(CACHE_GROUP_INVALIDATION) {
        return Vec::new();
    }
    groups(headers, &CACHE_GROUP_INVALIDATION).iter().map(|text| Tag::group(key, text)).collect()
}

/// Takes out what is between an upstream and its caches. Groups stay: a browser's cache may use them.
pub fn remove_from(headers: &mut HeaderMap) {
    headers.remove(SURROGATE_KEY);
    headers.remove(CACHE_TAG);
}

/// When a response was begun, and what it was made from.
#[derive(Debug)]
pub struct Birth {
    /// The purge counter when its request began: whatever was purged later may be in it.
    born: u64,
    /// Soft purges up to this one are in its freshness already.
    softened: u64,
    /// Nothing that was purged up to here concerns it. Moves forward by itself; a hit compares it and nothing else, as long
    /// as nothing is purged.
    checked: AtomicU64,
    tags: Arc<[Tag]>,
    /// More tags may come until the body ends.
    open: bool,
}

impl Clone for Birth {
    fn clone(&self) -> Self {
        Self {
            checked: AtomicU64::new(self.checked.load(Ordering::Relaxed)),
            tags: Arc::clone(&self.tags),
            ..*self
        }
    }
}

impl Birth {
    /// `tags` beside those that every response at `key` has.
    pub(crate) fn new(born: u64, key: &Key, mut tags: Vec<Tag>, open: bool) -> Result<Self, PassReason> {
        let target = crate::purge::spelled(key.target());
        tags.push(Tag::site(key.site()));
        tags.push(Tag::target(key.site(), None, &target));
        tags.push(Tag::target(key.site(), Some(key.authority()), &target));
        tags.sort_unstable();
        tags.dedup();
        // The three that it has by where it is are not counted.
        if tags.len() > TAGS_MAX + 3 {
            return Err(PassReason::TooManyTags);
        }
        Ok(Self { born, softened: born, checked: AtomicU64::new(born), tags: tags.into(), open })
    }

    /// The birth of a response made from two: as old as the older, and of all that either was made from. Too many tags in
    /// the end are none too many to keep: each of both is within its limit.
    pub(crate) fn and(&self, other: &Self) -> Self {
        let mut tags: Vec<Tag> = self.tags.iter().chain(other.tags.iter()).copied().collect();
        tags.sort_unstable();
        tags.dedup();
        let born = self.born.min(other.born);
        Self {
            born,
            softened: born,
            checked: AtomicU64::new(born),
            tags: tags.into(),
            open: self.open || other.open,
        }
    }

    /// The same with all its tags known.
    pub(crate) fn closed(&self, more: &[Tag]) -> Self {
        if more.is_empty() {
            return Self { open: false, ..self.clone() };
        }
        let mut tags: Vec<Tag> = self.tags.iter().chain(more).copied().collect();
        tags.sort_unstable();
        tags.dedup();
        Self { tags: tags.into(), open: false, checked: AtomicU64::new(self.born), ..*self }
    }

    pub(crate) fn softened(&self, at: u64) -> Self {
        Self { softened: at, ..self.clone() }
    }

    /// The same as this process counts, for what was written down as a log does.
    pub(crate) fn born_at(self, born: u64) -> Self {
        Self { born, softened: born, checked: AtomicU64::new(born), ..self }
    }

    /// Whether both count the same purges. How far each has been compared with later ones makes no difference.
    pub(crate) fn is_of(&self, other: &Self) -> bool {
        (self.born, self.softened, &self.tags) == (other.born, other.softened, &other.tags)
    }

    pub(crate) fn is_softened(&self) -> bool {
        self.softened > self.born
    }

    pub(crate) fn is_open(&self) -> bool {
        self.open
    }

    pub(crate) fn born(&self) -> u64 {
        self.born
    }

    pub(crate) fn soft_from(&self) -> u64 {
        self.softened
    }

    pub(crate) fn tags(&self) -> &Arc<[Tag]> {
        &self.tags
    }

    pub(crate) fn checked(&self) -> u64 {
        self.checked.load(Ordering::Relaxed)
    }

    pub(crate) fn note_checked(&self, at: u64) {
        self.checked.fetch_max(at, Ordering::Relaxed);
    }

    pub(crate) fn bytes(&self) -> usize {
        self.tags.len() * size_of::<Tag>()
    }

    /// As a disk keeps it: the counter, the soft counter, the tags. It means nothing without the purges that it counts
    /// ([`crate::purge`]).
    pub fn to_parts(&self) -> (u64, u64, Vec<u64>) {
        (self.born, self.softened, self.tags.iter().map(|tag| tag.to_u64()).collect())
    }

    pub fn from_parts(born: u64, softened: u64, tags: impl IntoIterator<Item = u64>) -> Self {
        let tags: Vec<Tag> = tags.into_iter().map(Tag::from_u64).collect();
        Self {
            born,
            softened: softened.max(born),
            checked: AtomicU64::new(born),
            tags: tags.into(),
            open: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Scheme;

    fn key() -> Key {
        Key::new("shop", Scheme::Https, "shop.example", "/a").expect("a key")
    }

    fn read(lines: &[(&'static str, &str)]) -> Result<Vec<Tag>, PassReason> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().expect("test header"));
        }
        of_response(&headers, &key())
    }

    #[test]
    fn fields_name_tags_of_their_own_site_in_their_own_kind() {
        let [red, two_words] = ["red", "very red"].map(|text| Tag::named("shop", text));
        assert_eq!(read(&[("surrogate-key", "red  red")]), Ok(vec![red, red]));
        assert_eq!(read(&[("cache-tag", " red,, very red ,")]), Ok(vec![red, two_words]));
        assert_eq!(read(&[("cache-groups", "\"red\"")]), Ok(vec![Tag::group(&key(), "red")]));
        assert_eq!(read(&[("cache-groups", "red, (")]), Ok(vec![]), "not valid: as if it were not there");
        for other in [Tag::named("other", "red"), Tag::automatic("shop", "red"), Tag::group(&key(), "red")] {
            assert_ne!(other, red);
            let is_of_shop = other != Tag::named("other", "red");
            assert_eq!(other.share() == red.share(), is_of_shop, "its site decides its share");
        }
        assert_ne!(Tag::named("a", "bc"), Tag::named("ab", "c"));
    }

    #[test]
    fn more_tags_than_are_kept_make_a_response_that_is_not() {
        let many = "t ".repeat(TAGS_MAX);
        assert_eq!(read(&[("surrogate-key", &many)]).map(|tags| tags.len()), Ok(TAGS_MAX));
        assert_eq!(read(&[("surrogate-key", &format!("{many} t"))]), Err(PassReason::TooManyTags));
        assert_eq!(read(&[("cache-tag", &"t".repeat(TAG_BYTES_MAX + 1))]), Err(PassReason::TooManyTags));
        let distinct = (0..=TAGS_MAX).map(|n| Tag::named("shop", &n.to_string())).collect();
        assert!(Birth::new(0, &key(), distinct, false).is_err());
    }

    #[test]
    fn a_birth_survives_being_written_down() {
        let birth = Birth::new(7, &key(), vec![Tag::named("shop", "red")], false).expect("few tags");
        let (born, softened, tags) = birth.softened(9).to_parts();
        let read = Birth::from_parts(born, softened, tags);
        assert_eq!((read.born(), read.soft_from(), read.tags()), (7, 9, birth.tags()));
    }
}
