//! What was made invalid, and whether a response was made before that.
//!
//! A counter goes up with each purge. A purge writes its number beside the name that it takes back; a response remembers
//! the number at which its request *began*. A response is invalid if one of its names bears a greater number. So a purge
//! costs the same however much is stored, a response that was under way during a purge is never taken for one that came
//! after it, and a hit compares two numbers for as long as nothing is purged.
//!
//! The table of names is bounded. When it is full the oldest number leaves it and becomes the *floor*: everything that was
//! begun before the floor is invalid, whatever it was made from. Too much, and never too little.
//!
//! Pure but for its lock, which purges take, and hits only after one.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};

use minicbor::{Decode, Encode};
use parking_lot::RwLock;
use thiserror::Error;

use crate::key::{Key, Scheme, normalise_authority};
use crate::tags::{Birth, Tag};

/// Names in the table. At some 64 bytes each 16 MiB, if all of them were purged; a catalogue of 80,000 products changed
/// whole, prices, stock and all, fits.
const MARKS_MAX: usize = 262_144;
/// Prefixes in the table, of all sites. Each is compared with every hit of its site once after each purge.
const PREFIXES_MAX: usize = 1_024;
/// The form of [`Purges::snapshot`].
const SNAPSHOT_VERSION: u8 = 1;

/// One thing to forget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Purge {
    pub scope: Scope,
    /// Soft: what is stored becomes stale instead of gone. It may stand in where its upstream allowed that
    /// (`stale-while-revalidate`, `stale-if-error`), and is asked for before it is sent otherwise.
    pub soft: bool,
}

/// What of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    Everything,
    Site(Box<str>),
    Tag(Tag),
    /// Every variant of one target.
    Url(Place),
    /// Every target under a path: `/blog` takes `/blog`, `/blog/x` and `/blog?x`, not `/blogger`.
    Prefix(Place),
}

/// Where on a site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    site: Box<str>,
    /// None: on whichever host of the site.
    authority: Option<Box<str>>,
    target: Box<str>,
}

/// Why a text is no place.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("write a path such as /tea?size=2, or a whole address such as https://shop.example/tea")]
pub struct BadPlace;

impl Place {
    /// A path on every host of the site, or an address (whose scheme makes no difference).
    pub fn parse(site: &str, text: &str) -> Result<Self, BadPlace> {
        let visible = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if text.len() > crate::key::TARGET_BYTES_MAX || !visible(text) || text.contains('#') {
            return Err(BadPlace);
        }
        let of = |authority, target: &str| Self {
            site: site.into(),
            authority,
            target: spelled(target).into_owned().into(),
        };
        if text.starts_with('/') {
            return Ok(of(None, text));
        }
        let (scheme, rest) = match text.split_once("://") {
            Some(("http", rest)) => (Scheme::Http, rest),
            Some(("https", rest)) => (Scheme::Https, rest),
            _ => return Err(BadPlace),
        };
        let at = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(at);
        let authority = normalise_authority(scheme, authority).map_err(|_| BadPlace)?;
        let target =
            if target.starts_with('/') { Cow::Borrowed(target) } else { format!("/{target}").into() };
        Ok(of(Some(authority), &target))
    }
}

/// A target in one spelling: what need not be encoded is not (RFC 3986 section 6.2.2.2), and digits are upper case. For
/// comparing only; what is forwarded and stored keeps its own.
pub(crate) fn spelled(target: &str) -> Cow<'_, str> {
    if !target.contains('%') {
        return Cow::Borrowed(target);
    }
    let (bytes, mut out, mut at) = (target.as_bytes(), String::with_capacity(target.len()), 0);
    while let Some(byte) = bytes.get(at) {
        let digits = bytes
            .get(at + 1..at + 3)
            .filter(|digits| *byte == b'%' && digits.iter().all(u8::is_ascii_hexdigit));
        match digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()) {
            Some(plain) if plain.is_ascii_alphanumeric() || b"-._~".contains(&plain) => {
                out.push(char::from(plain));
                at += 3;
            }
            Some(encoded) => {
                out.push_str(&format!("%{encoded:02X}"));
                at += 3;
            }
            None => {
                out.push(char::from(*byte));
                at += 1;
            }
        }
    }
    Cow::Owned(out)
}

fn is_under(target: &str, prefix: &str) -> bool {
    target.strip_prefix(prefix.trim_end_matches('/')).is_some_and(|rest| {
        rest.starts_with('/') || !prefix.ends_with('/') && (rest.is_empty() || rest.starts_with('?'))
    })
}

/// Whether a response still holds, after what was purged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Valid,
    /// Stale since `at_ms`; `counted` purges are in this verdict.
    Softened {
        at_ms: u64,
        counted: u64,
    },
    Gone,
}

/// When a name was purged last.
#[derive(Clone, Copy, Debug, Default, Encode, Decode)]
struct Mark {
    #[n(0)]
    hard: u64,
    #[n(1)]
    soft: u64,
    #[n(2)]
    soft_ms: u64,
}

impl Mark {
    fn note(&mut self, number: u64, soft: bool, now_ms: u64) {
        if soft {
            (self.soft, self.soft_ms) = (number, now_ms);
        } else {
            self.hard = number;
        }
    }

    fn last(self) -> u64 {
        self.hard.max(self.soft)
    }
}

#[derive(Clone, Debug, Encode, Decode)]
struct Prefix {
    #[n(0)]
    site: Box<str>,
    #[n(1)]
    authority: Option<Box<str>>,
    #[n(2)]
    path: Box<str>,
    #[n(3)]
    mark: Mark,
}

#[derive(Debug, Default)]
struct Table {
    marks: HashMap<u64, Mark>,
    /// The names in the order of their purges, so that the oldest is found. One that was purged again since is passed over.
    order: VecDeque<(u64, u64)>,
    prefixes: VecDeque<Prefix>,
    floor: u64,
}

/// What was purged so far.
#[derive(Debug)]
pub(crate) struct Purges {
    number: AtomicU64,
    table: RwLock<Table>,
    marks_max: usize,
}

impl Default for Purges {
    fn default() -> Self {
        Self { number: AtomicU64::new(0), table: RwLock::default(), marks_max: MARKS_MAX }
    }
}

/// As it is written down.
#[derive(Encode, Decode)]
struct Written {
    #[n(0)]
    version: u8,
    #[n(1)]
    number: u64,
    #[n(2)]
    floor: u64,
    #[n(3)]
    marks: Vec<(u64, Mark)>,
    #[n(4)]
    prefixes: Vec<Prefix>,
}

/// A snapshot that cannot be read: then nothing that was stored beside it may be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("the purges that were written down cannot be read: {0}")]
pub struct BadSnapshot(String);

impl Purges {
    /// The number of the last purge. Whoever is about to read what a response is made of takes it first.
    pub(crate) fn number(&self) -> u64 {
        self.number.load(Ordering::Acquire)
    }

    /// Takes all of it back in one step, and returns the number that it has.
    pub(crate) fn apply(&self, now_ms: u64, purges: &[Purge]) -> u64 {
        let mut table = self.table.write();
        let number = self.number.load(Ordering::Relaxed) + 1;
        for Purge { scope, soft } in purges {
            match scope {
                // Softly everything is as if each site were named, and which those are is not known here.
                Scope::Everything => table.floor = number,
                Scope::Site(site) => table.mark(Tag::site(site), number, *soft, now_ms),
                Scope::Tag(tag) => table.mark(*tag, number, *soft, now_ms),
                Scope::Url(Place { site, authority, target }) => {
                    table.mark(Tag::target(site, authority.as_deref(), target), number, *soft, now_ms);
                }
                Scope::Prefix(place) => table.mark_prefix(place, number, *soft, now_ms),
            }
        }
        table.make_room(self.marks_max);
        // The table first: who reads the number finds what it stands for.
        self.number.store(number, Ordering::Release);
        number
    }

    pub(crate) fn judge(&self, key: &Key, birth: &Birth) -> Verdict {
        let number = self.number();
        if birth.checked() == number {
            return Verdict::Valid;
        }
        if birth.is_open() {
            // What it is made from is not known yet: it may be anything.
            return if birth.born() == number { Verdict::Valid } else { Verdict::Gone };
        }
        let table = self.table.read();
        let number = self.number();
        // Begun before the floor, or in another life than this table.
        if birth.born() < table.floor || birth.born() > number {
            return Verdict::Gone;
        }
        let mut soft_ms = None;
        let mut judge = |mark: &Mark| {
            if mark.soft > birth.soft_from() {
                soft_ms = Some(soft_ms.map_or(mark.soft_ms, |at: u64| at.min(mark.soft_ms)));
            }
            mark.hard > birth.born()
        };
        if birth.tags().iter().filter_map(|tag| table.marks.get(&tag.to_u64())).any(&mut judge) {
            return Verdict::Gone;
        }
        let mut of_site = table.prefixes.iter().filter(|prefix| *prefix.site == *key.site()).peekable();
        if of_site.peek().is_some() {
            let target = spelled(key.target());
            let mut over = of_site.filter(|prefix| {
                prefix.authority.as_deref().is_none_or(|authority| authority == key.authority())
                    && is_under(&target, &prefix.path)
            });
            if over.any(|prefix| judge(&prefix.mark)) {
                return Verdict::Gone;
            }
        }
        match soft_ms {
            Some(at_ms) => Verdict::Softened { at_ms, counted: number },
            None => {
                birth.note_checked(number);
                Verdict::Valid
            }
        }
    }

    /// Names and prefixes in the table.
    pub(crate) fn size(&self) -> (usize, usize) {
        let table = self.table.read();
        (table.marks.len(), table.prefixes.len())
    }

    /// Everything, to be written down beside stored responses.
    pub(crate) fn snapshot(&self) -> Vec<u8> {
        let table = self.table.read();
        let written = Written {
            version: SNAPSHOT_VERSION,
            number: self.number(),
            floor: table.floor,
            marks: table.marks.iter().map(|(tag, mark)| (*tag, *mark)).collect(),
            prefixes: table.prefixes.iter().cloned().collect(),
        };
        minicbor::to_vec(written).expect("memory takes what is written to it")
    }

    /// Takes a snapshot for what was purged so far. Before anything is stored or looked up.
    pub(crate) fn restore(&self, bytes: &[u8]) -> Result<(), BadSnapshot> {
        let written: Written = minicbor::decode(bytes).map_err(|error| BadSnapshot(error.to_string()))?;
        if written.version != SNAPSHOT_VERSION {
            return Err(BadSnapshot(format!(
                "their form is {}, known is {SNAPSHOT_VERSION}",
                written.version
            )));
        }
        let mut table = self.table.write();
        let mut order: Vec<_> = written.marks.iter().map(|(tag, mark)| (mark.last(), *tag)).collect();
        order.sort_unstable();
        *table = Table {
            marks: written.marks.into_iter().collect(),
            order: order.into(),
            prefixes: written.prefixes.into(),
            floor: written.floor,
        };
        table.make_room(self.marks_max);
        self.number.store(written.number, Ordering::Release);
        Ok(())
    }
}

impl Table {
    fn mark(&mut self, tag: Tag, number: u64, soft: bool, now_ms: u64) {
        self.marks.entry(tag.to_u64()).or_default().note(number, soft, now_ms);
        self.order.push_back((number, tag.to_u64()));
    }

    fn mark_prefix(
        &mut self,
        Place { site, authority, target }: &Place,
        number: u64,
        soft: bool,
        now_ms: u64,
    ) {
        let same = |held: &Prefix| held.site == *site && held.authority == *authority && held.path == *target;
        // To the end again: the oldest is in front.
        let at = self.prefixes.iter().position(same);
        let mut prefix = at.and_then(|at| self.prefixes.remove(at)).unwrap_or_else(|| Prefix {
            site: site.clone(),
            authority: authority.clone(),
            path: target.clone(),
            mark: Mark::default(),
        });
        prefix.mark.note(number, soft, now_ms);
        self.prefixes.push_back(prefix);
    }

    /// What leaves the table becomes the floor.
    fn make_room(&mut self, marks_max: usize) {
        while self.marks.len() > marks_max
            && let Some((number, tag)) = self.order.pop_front()
        {
            // Purged again since: it stands further back too.
            if self.marks.get(&tag).is_some_and(|mark| mark.last() == number) {
                self.marks.remove(&tag);
                self.floor = self.floor.max(number);
            }
        }
        while self.prefixes.len() > PREFIXES_MAX
            && let Some(prefix) = self.prefixes.pop_front()
        {
            self.floor = self.floor.max(prefix.mark.last());
        }
        if self.order.len() > 2 * marks_max {
            let marks = &self.marks;
            self.order.retain(|(number, tag)| marks.get(tag).is_some_and(|mark| mark.last() == *number));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000_000;

    fn key(site: &str, authority: &str, target: &str) -> Key {
        Key::new(site, Scheme::Http, authority, target).expect("a key")
    }

    fn birth(purges: &Purges, key: &Key, tags: &[&str]) -> Birth {
        let tags = tags.iter().map(|text| Tag::named(key.site(), text)).collect();
        Birth::new(purges.number(), key, tags, false).expect("few tags")
    }

    fn purge(purges: &Purges, scope: Scope, soft: bool) {
        purges.apply(NOW, &[Purge { scope, soft }]);
    }

    #[test]
    fn each_scope_takes_what_it_names_and_nothing_beside_it() {
        let place = |text: &str| Place::parse("shop", text).expect("a place");
        let targets = ["/tea", "/tea?size=2", "/tea/green", "/teapot", "/%74ea", "/"];
        for (scope, gone) in [
            (Scope::Everything, &targets[..]),
            (Scope::Site("shop".into()), &targets),
            (Scope::Site("other".into()), &[]),
            (Scope::Tag(Tag::named("shop", "red")), &targets),
            (Scope::Tag(Tag::named("other", "red")), &[]),
            (Scope::Tag(Tag::automatic("shop", "red")), &[]),
            (Scope::Url(place("/tea")), &["/tea", "/%74ea"]),
            (Scope::Url(place("http://shop.example/t%65a?size=2")), &["/tea?size=2"]),
            (Scope::Url(place("https://Shop.Example:443/tea")), &["/tea", "/%74ea"]),
            (Scope::Url(place("https://other.example/tea")), &[]),
            (Scope::Prefix(place("/tea")), &["/tea", "/tea?size=2", "/tea/green", "/%74ea"]),
            (Scope::Prefix(place("/tea/")), &["/tea/green"]),
            (Scope::Prefix(place("https://shop.example")), &targets),
            (Scope::Prefix(place("https://other.example/")), &[]),
        ] {
            let purges = Purges::default();
            for target in targets {
                let key = key("shop", "shop.example", target);
                let before = birth(&purges, &key, &["red"]);
                assert_eq!(purges.judge(&key, &before), Verdict::Valid);
                let table = Purges::default();
                purge(&table, scope.clone(), false);
                let expected = if gone.contains(&target) { Verdict::Gone } else { Verdict::Valid };
                assert_eq!(table.judge(&key, &before), expected, "{scope:?} of {target}");
                let after = birth(&table, &key, &["red"]);
                assert_eq!(table.judge(&key, &after), Verdict::Valid, "made after {scope:?}");
            }
        }
    }

    #[test]
    fn a_soft_purge_says_since_when_and_only_once() {
        let purges = Purges::default();
        let key = key("shop", "shop.example", "/tea");
        let before = birth(&purges, &key, &["red"]);
        let soft = Purge { scope: Scope::Tag(Tag::named("shop", "red")), soft: true };
        purges.apply(NOW, &[soft]);
        let verdict = purges.judge(&key, &before);
        assert_eq!(verdict, Verdict::Softened { at_ms: NOW, counted: 1 });
        assert_eq!(purges.judge(&key, &before.softened(1)), Verdict::Valid);
        purge(&purges, Scope::Tag(Tag::named("shop", "red")), false);
        assert_eq!(purges.judge(&key, &before.softened(1)), Verdict::Gone, "and then a hard one");
    }

    #[test]
    fn a_full_table_takes_too_much_and_never_too_little() {
        let purges = Purges { marks_max: 8, ..Purges::default() };
        let key = key("shop", "shop.example", "/tea");
        let old = birth(&purges, &key, &["t0"]);
        let unconcerned = birth(&purges, &key, &["never purged"]);
        for n in 0..8 {
            purge(&purges, Scope::Tag(Tag::named("shop", &format!("t{n}"))), false);
        }
        assert_eq!(
            (purges.judge(&key, &old), purges.judge(&key, &unconcerned)),
            (Verdict::Gone, Verdict::Valid)
        );
        // Purged again: its old number must not count as having left the table.
        purge(&purges, Scope::Tag(Tag::named("shop", "t0")), false);
        let young = birth(&purges, &key, &["t0"]);
        purge(&purges, Scope::Tag(Tag::named("shop", "t8")), false);
        assert_eq!(purges.size().0, 8);
        assert_eq!(
            (purges.judge(&key, &old), purges.judge(&key, &unconcerned)),
            (Verdict::Gone, Verdict::Gone)
        );
        assert_eq!(purges.judge(&key, &young), Verdict::Valid);
        for n in 0..1_000 {
            purge(&purges, Scope::Tag(Tag::named("shop", &format!("t{}", n % 4))), n % 2 == 0);
        }
        let table = purges.table.read();
        assert!(
            table.marks.len() <= 8 && table.order.len() <= 17,
            "{} {}",
            table.marks.len(),
            table.order.len()
        );
    }

    #[test]
    fn prefixes_are_bounded_too() {
        let purges = Purges::default();
        let key = key("shop", "shop.example", "/tea");
        let old = birth(&purges, &key, &[]);
        for n in 0..=PREFIXES_MAX {
            let place = Place::parse("other", &format!("/{n}")).expect("a place");
            purge(&purges, Scope::Prefix(place), false);
        }
        assert_eq!(purges.size().1, PREFIXES_MAX);
        assert_eq!(purges.judge(&key, &old), Verdict::Gone);
        assert_eq!(purges.judge(&key, &birth(&purges, &key, &[])), Verdict::Valid);
    }

    #[test]
    fn what_is_written_down_judges_as_before_and_nothing_of_another_life_is_believed() {
        let purges = Purges::default();
        let key = key("shop", "shop.example", "/tea/green");
        let red = birth(&purges, &key, &["red"]);
        purge(&purges, Scope::Tag(Tag::named("shop", "red")), false);
        let blue = birth(&purges, &key, &["blue"]);
        let place = Place::parse("shop", "https://shop.example/tea").expect("a place");
        purge(&purges, Scope::Prefix(place), true);
        let again = Purges::default();
        again.restore(&purges.snapshot()).expect("readable");
        for birth in [&red, &blue] {
            let (born, softened, tags) = birth.to_parts();
            let read = Birth::from_parts(born, softened, tags);
            assert_eq!(again.judge(&key, &read), purges.judge(&key, birth));
        }
        assert_eq!(purges.judge(&key, &blue), Verdict::Softened { at_ms: NOW, counted: 2 });
        assert_eq!(again.judge(&key, &Birth::from_parts(3, 3, [])), Verdict::Gone, "born after the snapshot");
        assert!(again.restore(b"\x00garbage").is_err());
        assert_eq!(again.number(), 2, "a snapshot that cannot be read changes nothing");
    }

    #[test]
    fn what_is_no_place_is_refused() {
        for text in [
            "",
            "tea",
            "ftp://shop.example/",
            "//shop.example/",
            "/a b",
            "/é",
            "https://",
            "https://a@b/",
            "/a#b",
        ] {
            let read = Place::parse("shop", text);
            assert!(read.is_err() || text.starts_with("//"), "{text}");
        }
    }
}
