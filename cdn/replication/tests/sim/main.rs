//! The two sessions over a hostile channel, in virtual time: ten thousand seeded worlds, each with its own mix of loss,
//! repetition, reordering, cuts, crashes, restored disks and failing stores.
//!
//! During a world: nothing is trimmed that the region has not committed, operations are applied once and in order, cursors
//! never go back in one history of a log, and no change of one history is applied on top of another. After it: the world heals, and both sides must come to agree within a bounded time.
//! A failure prints its seed; `SOUK_SIM_SEED=<seed> cargo test -p souk-replication --test sim` runs that one alone.

#![expect(clippy::unwrap_used, reason = "a test says what it expects by unwrapping")]

mod disks;
mod world;

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use world::World;

const SEEDS: std::ops::Range<u64> = 0..10_000;

/// Paths that the seeds must really reach: a simulation that never redials proves nothing about redialling.
const MUST_HAPPEN: [&str; 14] = [
    "accept",
    "apply",
    "apply_failed",
    "resend",
    "pulse",
    "redial",
    "rewind",
    "snapshot",
    "cut",
    "node_crash",
    "region_crash",
    "region_rebuilt",
    "node_restored",
    "new_epoch",
];

fn run(seed: u64) -> BTreeMap<&'static str, u64> {
    let outcome = std::panic::catch_unwind(|| World::new(seed).run());
    outcome.unwrap_or_else(|_| panic!("seed {seed} failed; run it alone with SOUK_SIM_SEED={seed}"))
}

#[test]
fn both_sides_agree_whatever_happens() {
    #[expect(clippy::disallowed_methods, reason = "a test, not the crate: the way to run one seed alone")]
    let alone = std::env::var("SOUK_SIM_SEED");
    if let Ok(seed) = alone {
        let seen = run(seed.parse().expect("SOUK_SIM_SEED is a number"));
        eprintln!("{seen:?}");
        return;
    }
    let next = AtomicU64::new(SEEDS.start);
    let seen = Mutex::new(BTreeMap::<&str, u64>::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= SEEDS.end {
                        break;
                    }
                    for (what, times) in run(seed) {
                        *seen.lock().unwrap().entry(what).or_default() += times;
                    }
                }
            });
        }
    });
    let seen = seen.into_inner().unwrap();
    eprintln!("{seen:?}");
    for what in MUST_HAPPEN {
        assert!(seen.contains_key(what), "no seed reached: {what}");
    }
}

#[test]
fn the_same_seed_is_the_same_world() {
    for seed in [3, 77, 4_096] {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
}
