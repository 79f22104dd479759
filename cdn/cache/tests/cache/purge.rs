//! What is taken back is not sent again, whatever was under way; and nothing else is.

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::Method;
use proptest::prelude::*;
use souk_cache::{
    Asked, Cache, FillPermit, FillWriter, Key, Lookup, PassReason, Place, Purge, Scheme, Scope, Stored, Tag,
};

use crate::{NOW, ask, at, cache, fill, get, head, hit, map, miss, name, put, read};

const FRESH: (&str, &str) = ("cache-control", "max-age=60");

fn tag(text: &str, soft: bool) -> [Purge; 1] {
    [Purge { scope: Scope::Tag(Tag::named("site", text)), soft }]
}

fn at_url(text: &str) -> [Purge; 1] {
    [Purge { scope: Scope::Url(Place::parse("site", text).expect("a place")), soft: false }]
}

#[tokio::test]
async fn a_tag_takes_back_what_names_it_and_says_so() {
    let cache = cache();
    for (target, keys) in [("/red", "colour red"), ("/blue", "colour blue"), ("/none", "")] {
        put(&cache, NOW, &get(target, &[]), &[FRESH, ("surrogate-key", keys), ("cache-tag", keys)], "x")
            .await;
    }
    let (_, headers, _) = read(hit(&cache, NOW, &get("/red", &[])).await, NOW, &get("/red", &[])).await;
    assert!(!headers.contains_key("surrogate-key") && !headers.contains_key("cache-tag"), "{headers:?}");

    cache.purge(NOW, &tag("red", false));
    let asked = get("/red", &[]);
    let permit = miss(&cache, NOW, &asked).await;
    assert!(permit.conditions(&asked).is_empty(), "what is gone has no validator");
    let (filled, writer) = fill(permit, &asked, NOW, &head(200, &[FRESH]));
    writer.finish().expect("the right length");
    let (_, headers, _) = read(filled, NOW, &asked).await;
    assert_eq!(headers["cache-status"], "Souk; fwd=uri-miss; fwd-status=200; stored; ttl=60; detail=purged");
    for target in ["/blue", "/none"] {
        assert_eq!(name(&cache.look_up(NOW, &get(target, &[])).await), "hit Fresh", "{target}");
    }
    cache.purge(NOW, &tag("colour", false));
    assert_eq!(name(&cache.look_up(NOW, &get("/blue", &[])).await), "miss");
    assert_eq!(name(&cache.look_up(NOW, &get("/none", &[])).await), "hit Fresh");
    let purged = cache.purged();
    assert_eq!((purged.steps, purged.entries_gone, purged.names), (2, 2, 2));
}

#[tokio::test]
async fn a_soft_purge_asks_again_and_stands_in_where_it_may() {
    let cache = cache();
    let fields = [
        ("cache-control", "max-age=60, stale-while-revalidate=10, stale-if-error=600"),
        ("etag", "\"1\""),
        ("surrogate-key", "red"),
    ];
    let asked = get("/a", &[]);
    put(&cache, NOW, &asked, &fields, "x").await;
    cache.purge(NOW + 20_000, &tag("red", true));
    let soon = NOW + 25_000;
    let Lookup::Stale(stale, permit) = cache.look_up(soon, &asked).await else { panic!("stale") };
    let (_, headers, _) = read(stale, soon, &asked).await;
    assert_eq!(headers["cache-status"], "Souk; hit; ttl=-5; detail=stale_while_revalidate");
    assert_eq!(permit.conditions(&asked)["if-none-match"], "\"1\"");
    drop(permit);
    // The grace counts from the purge.
    let later = NOW + 31_000;
    let permit = miss(&cache, later, &asked).await;
    let error = souk_cache::cache::Failure("unreachable");
    assert!(permit.stale_on_error(later, error).is_some());
    let Ok(confirmed) = permit.confirm(&map(&[("etag", "\"1\"")]), &asked, at(later)) else {
        panic!("confirmed")
    };
    let (_, headers, _) = read(confirmed, later, &asked).await;
    assert_eq!(
        headers["cache-status"],
        "Souk; fwd=stale; fwd-status=304; stored; ttl=60; detail=soft_purged"
    );
    assert_eq!(name(&cache.look_up(later, &asked).await), "hit Fresh");
    // The 304 named no tags: those of before count on.
    cache.purge(later, &tag("red", false));
    assert_eq!(name(&cache.look_up(later, &asked).await), "miss");
    assert_eq!(cache.purged().entries_softened, 1);
}

#[tokio::test]
async fn a_page_that_was_purged_softly_at_once_is_still_fetched_once_for_all() {
    let cache = cache();
    let asked = get("/a", &[]);
    put(&cache, NOW, &asked, &[FRESH, ("surrogate-key", "red")], "x").await;
    cache.purge(NOW, &tag("red", true));
    let _permit = miss(&cache, NOW, &asked).await;
    assert!(cache.look_up(NOW, &asked).now_or_never().is_none(), "the second one waits for the first");
}

#[tokio::test]
async fn what_was_under_way_during_a_purge_is_neither_stored_nor_joined() {
    let cache = cache();
    let asked = get("/a", &[]);
    let old = miss(&cache, NOW, &asked).await;
    let waited = {
        let (cache, asked) = (cache.clone(), asked.clone());
        tokio::spawn(async move { name(&cache.look_up(NOW, &asked).await) })
    };
    tokio::task::yield_now().await;
    cache.purge(NOW, &tag("red", false));
    // It may have been made before or after: nobody knows, so whoever comes now fetches for itself.
    let (client, mut writer) = fill(old, &asked, NOW, &head(200, &[FRESH, ("surrogate-key", "red")]));
    assert_eq!(waited.await.expect("no panic"), "miss", "it has looked again");
    let new = miss(&cache, NOW, &asked).await;
    writer.push(&Bytes::from_static(b"old"));
    writer.finish().expect("the right length");
    assert_eq!(read(client, NOW, &asked).await.2, "old", "its own client asked before");
    let (_, mut writer) = fill(new, &asked, NOW, &head(200, &[FRESH, ("surrogate-key", "red")]));
    writer.push(&Bytes::from_static(b"new"));
    writer.finish().expect("the right length");
    assert_eq!(read(hit(&cache, NOW, &asked).await, NOW, &asked).await.2, "new");
}

#[tokio::test]
async fn an_unconcerned_purge_lets_fills_be_joined() {
    let cache = cache();
    let asked = get("/a", &[]);
    let permit = miss(&cache, NOW, &asked).await;
    cache.purge(NOW, &tag("blue", false));
    let (_, writer) = fill(permit, &asked, NOW, &head(200, &[FRESH, ("surrogate-key", "red")]));
    assert_eq!(name(&cache.look_up(NOW, &asked).await), "hit Joined(UriMiss)");
    writer.finish().expect("the right length");
    assert_eq!(name(&cache.look_up(NOW, &asked).await), "hit Fresh");
}

#[tokio::test]
async fn tags_that_come_with_the_body_count_and_until_then_any_purge_does() {
    let cache = cache();
    let asked = get("/a", &[]);
    let price = Tag::automatic("site", "price:MUG");
    let purge = |tag: Tag| [Purge { scope: Scope::Tag(tag), soft: false }];
    let begin = async || {
        let mut permit = miss(&cache, NOW, &asked).await;
        permit.leave_tags_open();
        fill(permit, &asked, NOW, &head(200, &[FRESH]))
    };
    let (_, writer) = begin().await;
    assert_eq!(name(&cache.look_up(NOW, &asked).await), "hit Joined(UriMiss)");
    cache.purge(NOW, &purge(Tag::automatic("site", "price:PEN")));
    assert_eq!(name(&cache.look_up(NOW, &asked).await), "miss", "it may have read the pen's price");
    writer.finish_with(&[price]).expect("the right length");
    assert_eq!(name(&cache.look_up(NOW, &asked).await), "hit Fresh", "it has not");
    cache.purge(NOW, &purge(price));
    let (_, writer) = begin().await;
    cache.purge(NOW, &purge(price));
    writer.finish_with(&[price]).expect("the right length");
    assert_eq!(name(&cache.look_up(NOW, &asked).await), "miss", "read while it was purged");
    let (_, writer) = begin().await;
    let many: Vec<_> = (0..2_000).map(|n| Tag::automatic("site", &n.to_string())).collect();
    writer.finish_with(&many).expect("the right length");
    assert_eq!(name(&cache.look_up(NOW, &asked).await), "pass remembered", "more than can be kept");
}

#[tokio::test]
async fn an_address_takes_every_variant_and_a_site_no_other_sites() {
    let cache = cache();
    let fields = [FRESH, ("vary", "accept-language"), ("surrogate-key", "red")];
    let of = |site: &str, language: &str| {
        let key = Key::new(site, Scheme::Http, "shop.example", "/a?b").expect("a key");
        Asked::new(key, Method::GET, map(&[("accept-language", language)]))
    };
    let fill_all = async || {
        for site in ["site", "other"] {
            for language in ["en", "de"] {
                let asked = of(site, language);
                if let Lookup::Miss(permit) = cache.look_up(NOW, &asked).await {
                    let (_, writer) = fill(permit, &asked, NOW, &head(200, &fields));
                    writer.finish().expect("the right length");
                }
            }
        }
    };
    let everything = [Purge { scope: Scope::Site("site".into()), soft: false }];
    for purge in [at_url("/a?b"), at_url("https://shop.example/a?b"), tag("red", false), everything] {
        fill_all().await;
        cache.purge(NOW, &purge);
        for language in ["en", "de"] {
            assert_eq!(name(&cache.look_up(NOW, &of("site", language)).await), "miss", "{purge:?}");
            assert_eq!(name(&cache.look_up(NOW, &of("other", language)).await), "hit Fresh", "{purge:?}");
        }
    }
}

#[tokio::test]
async fn a_change_of_a_group_takes_the_group_and_too_many_tags_are_not_stored() {
    let cache = cache();
    put(&cache, NOW, &get("/a", &[]), &[FRESH, ("cache-groups", "\"scripts\", \"all\"")], "x").await;
    put(&cache, NOW, &get("/b", &[]), &[FRESH, ("surrogate-key", "scripts")], "x").await;
    let posted = ask(Method::POST, "/other", &[]);
    cache.invalidate_groups(NOW, &posted, &map(&[("cache-group-invalidation", "\"scripts\"")]));
    assert_eq!(name(&cache.look_up(NOW, &get("/a", &[])).await), "miss");
    assert_eq!(name(&cache.look_up(NOW, &get("/b", &[])).await), "hit Fresh", "a key is no group");
    let asked = get("/c", &[]);
    let permit = miss(&cache, NOW, &asked).await;
    let many = head(200, &[FRESH, ("surrogate-key", &"t ".repeat(1_025))]);
    assert!(matches!(permit.store(&many, &asked, at(NOW)), Stored::Pass(PassReason::TooManyTags)));
}

/// Responses are numbered; each has its number for a body.
#[derive(Clone, Debug)]
enum Step {
    /// Looks up a key, and keeps the permit if it gets one.
    LookUp {
        key: usize,
    },
    /// The oldest permit's head comes, with these tags; `late` come with the end of its body.
    Head {
        tags: Vec<usize>,
        late: Option<Vec<usize>>,
    },
    /// The oldest body ends.
    End,
    /// The oldest permit is given up.
    Drop,
    Purge {
        scope: usize,
        soft: bool,
    },
}

const KEYS: [&str; 3] = ["/a", "/a/b", "/c"];
const TAGS: [&str; 3] = ["red", "blue", "grey"];

fn scope(number: usize) -> Scope {
    let place = |text: &str| Place::parse("site", text).expect("a place");
    match number {
        0..=2 => Scope::Tag(Tag::named("site", TAGS[number])),
        3 => Scope::Url(place("/a")),
        4 => Scope::Prefix(place("/a")),
        5 => Scope::Tag(Tag::named("elsewhere", "red")),
        6 => Scope::Site("site".into()),
        _ => Scope::Everything,
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let tags = || proptest::collection::vec(0..TAGS.len(), 0..3);
    let step = prop_oneof![
        4 => (0..KEYS.len()).prop_map(|key| Step::LookUp { key }),
        4 => (tags(), proptest::option::of(tags())).prop_map(|(tags, late)| Step::Head { tags, late }),
        4 => Just(Step::End),
        1 => Just(Step::Drop),
        3 => (0..8usize, any::<bool>()).prop_map(|(scope, soft)| Step::Purge { scope, soft }),
    ];
    proptest::collection::vec(step, 1..60)
}

/// What the model knows of a response.
#[derive(Clone, Debug)]
struct Made {
    key: usize,
    /// The step at which its request began.
    began: usize,
    tags: Vec<usize>,
}

impl Made {
    fn is_hit_by(&self, scope: usize) -> bool {
        match scope {
            0..=2 => self.tags.contains(&scope),
            3 => self.key == 0,
            4 => self.key < 2,
            5 => false,
            _ => true,
        }
    }
}

struct World {
    cache: Cache,
    permits: Vec<(FillPermit, usize, usize)>,
    bodies: Vec<(FillWriter, usize, Vec<usize>)>,
    made: Vec<Made>,
    /// Whose bodies have ended, by key, in the order of their ends.
    ended: Vec<usize>,
    purges: Vec<(usize, usize, bool)>,
}

impl World {
    /// Whether something that a response was made from was purged since it began.
    fn is_purged(&self, made: &Made, soft_too: bool) -> bool {
        self.purges.iter().any(|(step, scope, soft)| {
            *step > made.began && (soft_too || !soft || *scope > 6) && made.is_hit_by(*scope)
        })
    }

    fn look_up(&mut self, step: usize, key: usize) {
        let asked = get(KEYS[key], &[]);
        // None: it would wait for a head that this very world is to bring.
        let Some(found) = self.cache.look_up(NOW, &asked).now_or_never() else { return };
        let hit = match found {
            Lookup::Hit(hit) => hit,
            Lookup::Miss(permit) => {
                self.permits.push((permit, key, step));
                // The newest that has ended and holds must have been found.
                let newest = self.ended.iter().rev().map(|n| &self.made[*n]).find(|made| made.key == key);
                if let Some(made) = newest {
                    let later_began = self
                        .ended
                        .iter()
                        .map(|n| &self.made[*n])
                        .any(|m| m.key == key && m.began > made.began);
                    assert!(later_began || self.is_purged(made, true), "{made:?} was lost");
                }
                return;
            }
            other => panic!("{}", name(&other)),
        };
        let (head, body) = hit.respond(NOW, &asked).into_parts();
        drop(body);
        let number: usize = head.headers["x-number"].to_str().expect("text").parse().expect("a number");
        let made = &self.made[number];
        assert_eq!(made.key, key);
        assert!(!self.is_purged(made, true), "{made:?} was sent after {:?}", self.purges);
    }

    fn head(&mut self, tags: &[usize], late: Option<&Vec<usize>>) {
        if self.permits.is_empty() {
            return;
        }
        let (mut permit, key, began) = self.permits.remove(0);
        let asked = get(KEYS[key], &[]);
        let number = self.made.len();
        let all = tags.iter().chain(late.into_iter().flatten()).copied().collect();
        self.made.push(Made { key, began, tags: all });
        if late.is_some() {
            permit.leave_tags_open();
        }
        let names = tags.iter().map(|tag| TAGS[*tag]).collect::<Vec<_>>().join(" ");
        let head = head(200, &[FRESH, ("surrogate-key", &names), ("x-number", &number.to_string())]);
        let (_, writer) = fill(permit, &asked, NOW, &head);
        self.bodies.push((writer, number, late.cloned().unwrap_or_default()));
    }

    fn run(&mut self, steps: &[Step]) {
        for (number, step) in steps.iter().enumerate() {
            match step {
                Step::LookUp { key } => self.look_up(number, *key),
                Step::Head { tags, late } => self.head(tags, late.as_ref()),
                Step::End if !self.bodies.is_empty() => {
                    let (writer, made, late) = self.bodies.remove(0);
                    let late: Vec<_> = late.iter().map(|tag| Tag::named("site", TAGS[*tag])).collect();
                    writer.finish_with(&late).expect("no length was said");
                    self.ended.push(made);
                }
                Step::End => {}
                Step::Drop if !self.permits.is_empty() => drop(self.permits.remove(0)),
                Step::Drop => {}
                Step::Purge { scope: of, soft } => {
                    self.cache.purge(NOW, &[Purge { scope: scope(*of), soft: *soft }]);
                    self.purges.push((number, *of, *soft));
                }
            }
        }
    }
}

proptest! {
    /// Look-ups, heads, ends of bodies and purges in any order. What is sent was made from nothing that was purged since
    /// its request began; and what was not purged is not lost.
    #[test]
    fn no_purge_is_overtaken_and_none_takes_too_much(steps in steps()) {
        let mut world = World {
            cache: cache(),
            permits: Vec::new(),
            bodies: Vec::new(),
            made: Vec::new(),
            ended: Vec::new(),
            purges: Vec::new(),
        };
        world.run(&steps);
    }
}
