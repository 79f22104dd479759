//! What was purged stays so, over kills, restarts and hand-overs of the folder; and all the rest is still there.

use std::collections::HashMap;
use std::path::Path;

use proptest::prelude::*;
use souk_cache::disk::{DiskLimits, Phase};
use souk_cache::shelf::MemoryShelf;
use souk_cache::{Place, Purge, Scope, Tag};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

use super::disk::{open_in, persist};
use super::*;

const KEYS: [&str; 6] = ["/a", "/a/b", "/a/c", "/d", "/e?f", "/g"];
const TAGS: [&str; 3] = ["red", "blue", "grey"];
/// Of the memory: next to nothing, so that most is read back, or room for all.
const MEMORIES: [u64; 2] = [3_000, 1 << 20];

#[derive(Clone, Debug)]
enum Step {
    /// A request; what is missing is fetched, and made from these.
    Ask {
        key: usize,
        tags: Vec<usize>,
    },
    Purge {
        scope: usize,
        soft: bool,
    },
    Invalidate {
        key: usize,
    },
    /// Go on from what a kill leaves.
    Kill,
    /// An orderly end, and the next process.
    Restart,
    /// The next process starts while this one has the folder, and is told to forget something before it gets it.
    HandOver {
        scope: Option<usize>,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0..KEYS.len(), proptest::collection::vec(0..TAGS.len(), 0..3))
            .prop_map(|(key, tags)| Step::Ask { key, tags }),
        3 => (0..8usize, any::<bool>()).prop_map(|(scope, soft)| Step::Purge { scope, soft }),
        1 => (0..KEYS.len()).prop_map(|key| Step::Invalidate { key }),
        1 => Just(Step::Kill),
        1 => Just(Step::Restart),
        1 => proptest::option::of(0..8usize).prop_map(|scope| Step::HandOver { scope }),
    ];
    proptest::collection::vec(step, 1..50)
}

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

/// What the model knows of what is stored.
#[derive(Clone, Debug)]
struct Made {
    version: usize,
    tags: Vec<usize>,
    /// Something that it was made from was purged since.
    purged: bool,
}

impl Made {
    fn is_hit_by(&self, key: usize, scope: usize) -> bool {
        match scope {
            0..=2 => self.tags.contains(&scope),
            3 => key == 0,
            4 => key < 3,
            5 => false,
            _ => true,
        }
    }
}

struct World {
    dir: TempDir,
    cache: Cache,
    memory: u64,
    made: HashMap<usize, Made>,
    runtime: Runtime,
}

impl World {
    fn new(memory: u64) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
        let cache = open_in(dir.path(), memory);
        let world = Self { dir, cache, memory, made: HashMap::new(), runtime };
        world.wait_until_open();
        world
    }

    fn wait_until_open(&self) {
        while self.cache.disk().expect("it has one").counts().phase != Phase::On {
            std::thread::yield_now();
        }
    }

    /// All that was stored is written.
    fn settle(&self) {
        while self.cache.disk().expect("it has one").counts().queued > 0 {
            std::thread::yield_now();
        }
    }

    /// Asks, and fetches what is missing. The version that was sent.
    fn ask(&mut self, version: usize, key: usize, tags: &[usize]) -> usize {
        let asked = get(KEYS[key], &[]);
        let names = tags.iter().map(|tag| TAGS[*tag]).collect::<Vec<_>>().join(" ");
        let fields = [("cache-control", "max-age=3600"), ("surrogate-key", names.as_str())];
        match self.runtime.block_on(self.cache.look_up(NOW, &asked)) {
            Lookup::Hit(found) => {
                let body = self.runtime.block_on(text(found.respond(NOW, &asked).into_body()));
                body.expect("whole").split('.').next().expect("a number").parse().expect("a number")
            }
            Lookup::Miss(permit) => {
                let (_, mut writer) = fill(permit, &asked, NOW, &head(200, &fields));
                writer.push(&Bytes::from(format!("{version}.{}", "x".repeat(900))));
                writer.finish().expect("the right length");
                self.made.insert(key, Made { version, tags: tags.to_vec(), purged: false });
                self.settle();
                version
            }
            other => panic!("{}", name(&other)),
        }
    }

    fn purge(&mut self, number: usize, soft: bool) {
        self.cache.purge(NOW, &[Purge { scope: scope(number), soft }]);
        for (key, made) in &mut self.made {
            made.purged |= made.is_hit_by(*key, number);
        }
    }

    fn persist(&self) {
        self.runtime.block_on(persist(&self.cache));
    }

    fn run(&mut self, steps: &[Step]) {
        for (version, step) in steps.iter().enumerate() {
            match step {
                Step::Ask { key, tags } => {
                    let held = self.made.get(key).filter(|made| !made.purged).map(|made| made.version);
                    assert_eq!(self.ask(version, *key, tags), held.unwrap_or(version), "{}", KEYS[*key]);
                }
                Step::Purge { scope, soft } => {
                    self.purge(*scope, *soft);
                    self.persist();
                }
                Step::Invalidate { key } => {
                    self.cache.invalidate(&get(KEYS[*key], &[]).key);
                    self.made.remove(key);
                    self.persist();
                }
                Step::Kill => {
                    let image = image_of(self.dir.path());
                    self.cache = open_in(image.path(), self.memory);
                    self.dir = image;
                    self.wait_until_open();
                }
                Step::Restart => {
                    self.cache.disk().expect("it has one").close();
                    self.cache = open_in(self.dir.path(), self.memory);
                    self.wait_until_open();
                }
                Step::HandOver { scope } => {
                    let successor = open_in(self.dir.path(), self.memory);
                    let former = std::mem::replace(&mut self.cache, successor);
                    if let Some(scope) = scope {
                        self.purge(*scope, false);
                    }
                    former.disk().expect("it has one").close();
                    self.wait_until_open();
                    self.persist();
                }
            }
        }
    }
}

/// What a kill at this moment leaves.
fn image_of(dir: &Path) -> TempDir {
    let image = tempfile::tempdir().expect("a folder");
    for file in std::fs::read_dir(dir).expect("a folder") {
        let file = file.expect("an entry");
        std::fs::copy(file.path(), image.path().join(file.file_name())).expect("a copy");
    }
    image
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever happens in between: what was purged is fetched, and what was not is answered as it was stored.
    #[test]
    fn exactly_what_was_purged_is_gone(steps in steps(), memory in 0..MEMORIES.len()) {
        World::new(MEMORIES[memory]).run(&steps);
    }
}

/// A disk that is full all the time: what is in use is copied from the oldest file to the newest, away from the purges
/// that stand behind it in the log. A kill in between, whenever the dice say so.
#[test]
fn what_is_kept_when_its_file_goes_is_not_kept_from_its_purge() {
    const KEYS: u64 = 40;
    const ROUNDS: u64 = 4_000;
    let limits_of_disk = DiskLimits { bytes_max: 256 << 10, object_bytes_max: 16 << 10, shared: false };
    let open = |dir: &Path| {
        let shelf = Box::new(MemoryShelf::new(16_000));
        let told = Box::new(|_: souk_cache::disk::Notice| {});
        let cache = Cache::with_disk(shelf, limits(), limits().fill_bytes_max, dir, limits_of_disk, told)
            .expect("a folder");
        while cache.disk().expect("it has one").counts().phase != Phase::On {
            std::thread::yield_now();
        }
        cache
    };
    let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
    let mut dice = 1_u64;
    let mut roll = |sides: u64| {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (dice >> 33) % sides
    };
    let mut dir = tempfile::tempdir().expect("a folder");
    let mut cache = open(dir.path());
    // When each tag was purged last, in rounds.
    let mut purged = HashMap::new();
    let (mut hits, mut kills) = (0, 0);
    for round in 1..=ROUNDS {
        match roll(100) {
            0 => {
                let image = image_of(dir.path());
                cache = open(image.path());
                dir = image;
                kills += 1;
            }
            1..=6 => {
                let tag = roll(10);
                let scope = Scope::Tag(Tag::named("site", &tag.to_string()));
                cache.purge(NOW, &[Purge { scope, soft: false }]);
                runtime.block_on(persist(&cache));
                purged.insert(tag, round);
            }
            _ => {
                // Some are asked for more than others.
                let key = roll(KEYS).min(roll(KEYS));
                let asked = get(&format!("/{key}"), &[]);
                match runtime.block_on(cache.look_up(NOW, &asked)) {
                    Lookup::Hit(found) => {
                        let (_, headers, _) = runtime.block_on(read(found, NOW, &asked));
                        let told = headers["x-made"].to_str().expect("text");
                        let (tag, made) = told.split_once('/').expect("two numbers");
                        let (tag, made): (u64, u64) =
                            (tag.parse().expect("a number"), made.parse().expect("a number"));
                        let last = purged.get(&tag).copied().unwrap_or_default();
                        assert!(made > last, "/{key} of round {made} is read in {round}: purged in {last}");
                        hits += 1;
                    }
                    Lookup::Miss(permit) => {
                        let tag = roll(10).to_string();
                        let made = format!("{tag}/{round}");
                        let fields = [
                            ("cache-control", "max-age=3600"),
                            ("surrogate-key", tag.as_str()),
                            ("x-made", made.as_str()),
                        ];
                        let (_, mut writer) = fill(permit, &asked, NOW, &head(200, &fields));
                        let bytes = 1_000 + usize::try_from(roll(9_000)).expect("small");
                        writer.push(&Bytes::from(vec![b'x'; bytes]));
                        writer.finish().expect("the right length");
                        while cache.disk().expect("it has one").counts().queued > 0 {
                            std::thread::yield_now();
                        }
                    }
                    other => panic!("{}", name(&other)),
                }
            }
        }
    }
    assert!(hits > ROUNDS / 10 && kills > 10, "{hits} hits, {kills} kills");
}
