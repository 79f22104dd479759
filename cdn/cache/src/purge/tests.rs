//! The table of purges by itself: what it judges, and what becomes of it when it is full.

use super::*;
use crate::key::Scheme;

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

fn small(names_max: usize, prefixes_max: usize) -> Purges {
    Purges { room: Room { names_max, prefixes_max }, ..Purges::default() }
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
    let purges = small(8, PREFIXES_MAX);
    let key = key("shop", "shop.example", "/tea");
    let old = birth(&purges, &key, &["t0"]);
    let unconcerned = birth(&purges, &key, &["never purged"]);
    for n in 0..8 {
        purge(&purges, Scope::Tag(Tag::named("shop", &format!("t{n}"))), false);
    }
    assert_eq!((purges.judge(&key, &old), purges.judge(&key, &unconcerned)), (Verdict::Gone, Verdict::Valid));
    // Purged again: its old number must not count as having left the table.
    purge(&purges, Scope::Tag(Tag::named("shop", "t0")), false);
    let young = birth(&purges, &key, &["t0"]);
    purge(&purges, Scope::Tag(Tag::named("shop", "t8")), false);
    assert_eq!(purges.size().0, 8);
    assert_eq!((purges.judge(&key, &old), purges.judge(&key, &unconcerned)), (Verdict::Gone, Verdict::Gone));
    assert_eq!(purges.judge(&key, &young), Verdict::Valid);
    for n in 0..1_000 {
        purge(&purges, Scope::Tag(Tag::named("shop", &format!("t{}", n % 4))), n % 2 == 0);
    }
    assert_eq!(purges.size().0, 8);
    assert!(purges.table.read().longest_order() <= 33);
}

#[test]
fn a_site_that_purges_much_loses_its_own_and_nobody_elses() {
    let purges = small(64, 8);
    let [quiet, loud] = ["quiet", "loud"].map(|site| (site, key(site, "shop.example", "/tea")));
    let birth_of = |(_, key): &(&str, Key)| birth(&purges, key, &["blue"]);
    let (old_quiet, old_loud) = (birth_of(&quiet), birth_of(&loud));
    purge(&purges, Scope::Tag(Tag::named("quiet", "red")), false);
    let red = birth(&Purges::default(), &quiet.1, &["red"]);
    let place = |site: &str, n: usize| Scope::Prefix(Place::parse(site, &format!("/{n}")).expect("a place"));
    purge(&purges, place("quiet", 0), false);
    for n in 0..500 {
        purge(&purges, Scope::Tag(Tag::named("loud", &n.to_string())), false);
        purge(&purges, place("loud", n), false);
    }
    assert_eq!(purges.size(), (64, 8));
    assert_eq!(purges.judge(&loud.1, &old_loud), Verdict::Gone, "more than it may have");
    assert_eq!(purges.judge(&quiet.1, &old_quiet), Verdict::Valid, "of another site");
    assert_eq!(purges.judge(&quiet.1, &red), Verdict::Gone, "and what it purged itself is remembered");
}

#[test]
fn prefixes_are_bounded_too() {
    let purges = Purges::default();
    let [shop, others] = ["shop", "other"].map(|site| key(site, "shop.example", "/tea"));
    let old = birth(&purges, &shop, &[]);
    let old_other = birth(&purges, &others, &[]);
    for n in 0..=PREFIXES_MAX {
        let place = Place::parse("other", &format!("/{n}")).expect("a place");
        purge(&purges, Scope::Prefix(place), false);
    }
    assert_eq!(purges.size().1, PREFIXES_MAX);
    assert_eq!(purges.judge(&shop, &old), Verdict::Valid, "of another site");
    assert_eq!(purges.judge(&others, &old_other), Verdict::Gone);
    assert_eq!(purges.judge(&others, &birth(&purges, &others, &[])), Verdict::Valid);
}

/// What the next life knows that reads these steps in its log.
fn next_life(steps: &[Step]) -> Purges {
    let purges = Purges::over_a_log();
    let mut former = purges.former();
    for step in steps {
        let written = minicbor::to_vec(step).expect("a vector takes everything");
        former.take(&minicbor::decode(&written).expect("as it was written"));
    }
    purges.adopt(former);
    purges
}

#[test]
fn the_next_life_judges_as_the_former_one_did() {
    let purges = Purges::default();
    let key = key("shop", "shop.example", "/tea/green");
    let red = birth(&purges, &key, &["red"]);
    let mut steps =
        vec![purges.apply(NOW, &[Purge { scope: Scope::Tag(Tag::named("shop", "red")), soft: false }])];
    let blue = birth(&purges, &key, &["blue"]);
    let place = Place::parse("shop", "https://shop.example/tea").expect("a place");
    steps.push(purges.apply(NOW, &[Purge { scope: Scope::Prefix(place), soft: true }]));
    let grey = birth(&purges, &key, &["grey"]);
    // Whatever order they were written in.
    for steps in [steps.clone(), steps.into_iter().rev().collect()] {
        let next = next_life(&steps);
        let number = next.number();
        assert_eq!(next.judge(&key, &red), Verdict::Gone);
        assert_eq!(next.judge(&key, &blue), Verdict::Softened { at_ms: NOW, counted: number });
        assert_eq!(next.judge(&key, &grey), Verdict::Valid);
        // What it purges itself is later than all of it; what it makes itself is later than what they purged.
        let own = birth(&next, &key, &["red"]);
        assert_eq!(next.judge(&key, &own), Verdict::Valid);
        purge(&next, Scope::Tag(Tag::named("shop", "grey")), false);
        assert_eq!(next.judge(&key, &grey), Verdict::Gone);
        assert_eq!(next.judge(&key, &own), Verdict::Valid);
        assert_eq!(next.steps(), 1);
    }
}

#[test]
fn what_was_purged_before_the_log_was_read_holds_for_what_stands_in_it() {
    let next = Purges::over_a_log();
    let key = key("shop", "shop.example", "/tea");
    let [red, blue, grey] = ["red", "blue", "grey"].map(|tag| birth(&Purges::default(), &key, &[tag]));
    for tag in ["red", "other"] {
        purge(&next, Scope::Tag(Tag::named("shop", tag)), false);
    }
    let own = birth(&next, &key, &["red", "blue"]);
    let former = Purges::default();
    let mut log = next.former();
    for tag in ["blue", "red"] {
        log.take(&former.apply(NOW, &[Purge { scope: Scope::Tag(Tag::named("shop", tag)), soft: false }]));
    }
    next.adopt(log);
    assert_eq!(next.size().0, 3);
    assert_eq!([&red, &blue].map(|birth| next.judge(&key, birth)), [Verdict::Gone; 2]);
    assert_eq!([&grey, &own].map(|birth| next.judge(&key, birth)), [Verdict::Valid; 2]);
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
