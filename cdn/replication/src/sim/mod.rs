//! The two sessions over a hostile channel, in virtual time: a hundred thousand seeded worlds, each with its own mix of loss,
//! repetition, delay, reordering, cuts of both ways or of one, crashes that lose what was not synced, full disks, clocks that
//! jump, disks put back from backups, and failing stores.
//!
//! During a world: nothing is forgotten that the region has not committed, operations are applied once and in order, cursors
//! never go back in one history of a log, no change of one history is applied on top of another, and every buffer keeps to its
//! limit; each unit of stock is in one place, and what a node has promised out of a grant is kept. After it: the world heals, and both sides must come to agree within a bounded time, with every operation that a
//! shopper was told is safe applied, or kept as a dead letter if it cannot be.
//!
//! ```text
//! cargo test -p souk-replication --lib sim                                      some worlds, and every planted bug
//! SOUK_SIM_SEEDS=100000 cargo test --release -p souk-replication --lib sim      all of them
//! SOUK_SIM_SEED=4711 cargo test -p souk-replication --lib sim -- --nocapture    one world, and its story
//! SOUK_SIM_SEED=4711 SOUK_SIM_BUG=CreditLeak cargo test …                       the same, with a planted bug
//! ```

mod dice;
mod disks;
mod fate;
mod path;
mod stock;
mod story;
mod world;

use std::{
    collections::BTreeMap,
    io::Write as _,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::planted::{Bug, plant};

use self::world::World;

/// All that there are, for a build that is to be trusted.
const SEEDS_ALL: u64 = 100_000;
/// What an ordinary `cargo test` lives through: some seconds on an idle machine.
const SEEDS_USUAL: u64 = 4_000;
/// A planted bug must show in so many worlds; the shyest takes some hundreds.
const SEEDS_FOR_A_BUG: u64 = 20_000;
/// Lines of the story of a failed world that are shown unasked.
const STORY_LINES_SHOWN: usize = 80;

/// Paths that the worlds must really take: a simulation that never redials proves nothing about redialling.
const MUST_HAPPEN: [&str; 40] = [
    "accept",
    "apply",
    "apply_failed",
    "clock_jump",
    "cut",
    "cut_for_good",
    "cut_one_way",
    "dead_letter",
    "disk_full",
    "diverged",
    "grant",
    "grant_home",
    "grant_home_by_time",
    "grant_prolonged",
    "late_apply",
    "mixed_releases",
    "new_epoch",
    "node_crash",
    "node_disk_full",
    "node_restored",
    "old_question",
    "promise_refused",
    "promised",
    "promised_cut_off",
    "pulse",
    "redial",
    "region_crash",
    "region_disk_full",
    "region_rebuilt",
    "region_restored",
    "removed",
    "resend",
    "rewind",
    "sent_again",
    "snapshot",
    "snapshot_resumed",
    "tail_kept_untold",
    "tail_lost",
    "upgraded",
    "world",
];

type Seen = BTreeMap<&'static str, u64>;

/// A world in which something was not as it must be.
#[derive(Debug)]
struct Violation {
    seed: u64,
    what: String,
}

#[expect(clippy::disallowed_methods, reason = "a test, not the crate: how a person says which worlds to run")]
fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn number(name: &str) -> Option<u64> {
    setting(name).map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

/// Past the harness, which shows nothing of a test that passes: whoever runs fewer worlds than all must hear it.
fn say(line: &str) {
    // A closed standard error is no reason to fail.
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn live(seed: u64) -> Result<Seen, Violation> {
    catch_unwind(AssertUnwindSafe(|| World::new(seed).run())).map_err(|panic| {
        let what = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()))
            .unwrap_or_else(|| "a panic without words".to_owned());
        Violation { seed, what }
    })
}

/// Lives through these worlds on all processors. The violation with the smallest seed comes back, the same every time.
fn live_through(seeds: Range<u64>, bug: Option<Bug>) -> Result<Seen, Violation> {
    let next = AtomicU64::new(seeds.start);
    let end = AtomicU64::new(seeds.end);
    let outcome = Mutex::new((Seen::new(), None::<Violation>));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                plant(bug);
                let mut seen = Seen::new();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end.load(Ordering::Relaxed) {
                        break;
                    }
                    match live(seed) {
                        Ok(world) => {
                            *seen.entry("world").or_default() += 1;
                            world
                                .into_iter()
                                .for_each(|(what, times)| *seen.entry(what).or_default() += times);
                        }
                        Err(violation) => {
                            // Worlds before this one are still under way, and may be worse.
                            end.fetch_min(seed, Ordering::Relaxed);
                            let first = &mut outcome.lock().unwrap().1;
                            if first.as_ref().is_none_or(|first| seed < first.seed) {
                                *first = Some(violation);
                            }
                        }
                    }
                }
                let whole = &mut outcome.lock().unwrap().0;
                seen.into_iter().for_each(|(what, times)| *whole.entry(what).or_default() += times);
            });
        }
    });
    match outcome.into_inner().unwrap() {
        (_, Some(violation)) => Err(violation),
        (seen, None) => Ok(seen),
    }
}

/// The last lines of what led to it, and how to see all.
fn explain(violation: &Violation) -> String {
    story::begin();
    let again = live(violation.seed);
    let story = story::end();
    assert!(again.is_err(), "seed {} fails only sometimes: the simulation is broken", violation.seed);
    let shown = &story[story.len().saturating_sub(STORY_LINES_SHOWN)..];
    let Violation { seed, what } = violation;
    format!(
        "{}\nseed {seed}: {what}\nits whole story: SOUK_SIM_SEED={seed} cargo test -p souk-replication --lib sim -- --nocapture",
        shown.join("\n")
    )
}

/// One world, told from its beginning.
fn tell(seed: u64) {
    let bug = setting("SOUK_SIM_BUG");
    plant(
        bug.map(|name| {
            Bug::from_name(&name).unwrap_or_else(|| panic!("SOUK_SIM_BUG: one of {:?}", Bug::ALL))
        }),
    );
    story::begin();
    let lived = live(seed);
    story::end().iter().for_each(|line| say(line));
    plant(None);
    match lived {
        Ok(seen) => say(&format!("seed {seed} is well: {seen:?}")),
        Err(Violation { what, .. }) => panic!("seed {seed}: {what}"),
    }
}

#[test]
fn both_sides_agree_whatever_happens() {
    if let Some(seed) = number("SOUK_SIM_SEED") {
        return tell(seed);
    }
    let count = number("SOUK_SIM_SEEDS").unwrap_or(SEEDS_USUAL);
    if count < SEEDS_ALL {
        say(&format!(
            "replication's simulation: {count} of {SEEDS_ALL} worlds (SOUK_SIM_SEEDS={SEEDS_ALL} lives through all)"
        ));
    }
    let seen = live_through(0..count, None).unwrap_or_else(|violation| panic!("{}", explain(&violation)));
    say(&format!("replication's simulation: {seen:?}"));
    for what in MUST_HAPPEN {
        assert!(seen.contains_key(what), "no seed reached: {what}");
    }
}

#[test]
fn every_planted_bug_is_found() {
    if setting("SOUK_SIM_SEED").is_some() {
        return;
    }
    let mut unseen = Vec::new();
    for bug in Bug::ALL {
        match live_through(0..SEEDS_FOR_A_BUG, Some(bug)) {
            Err(Violation { seed, what }) => {
                let what: String = what.lines().next().unwrap_or_default().chars().take(100).collect();
                say(&format!("planted {bug:?}: found by seed {seed}: {what}"));
            }
            Ok(_) => unseen.push(bug),
        }
    }
    assert!(unseen.is_empty(), "the simulation is blind to {unseen:?}");
}

#[test]
fn the_same_seed_is_the_same_world() {
    let told = |seed| {
        story::begin();
        let lived = live(seed).map_err(|violation| violation.what);
        (lived, story::end())
    };
    for seed in [3, 77, 4_096] {
        assert!(told(seed) == told(seed), "seed {seed}");
    }
}
