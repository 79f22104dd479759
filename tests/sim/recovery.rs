//! Worlds in which one thing happens, and how long it may take to get over it: virtual time, and so a figure to be held.

use std::time::Duration;

use souk_link::Log;
use tokio::time::{Instant, sleep};

use crate::dice::{Climate, Dice};
use crate::region::Entry;
use crate::story::{is_violated, must, note, tell, violate};
use crate::world::World;

/// The first operation is at the region within this after the path is well again, at 80 ms there and back.
pub(crate) const RECOVERY_MAX: Duration = Duration::from_secs(3);
/// A purge passes a catalogue that fills the line within this: what the line's queue holds, and a round trip.
const PURGE_MAX: Duration = Duration::from_millis(1_500);
/// Nothing takes so long.
const PATIENCE: Duration = Duration::from_secs(90);
const STEP: Duration = Duration::from_millis(10);

/// How long after the end of an outage the first operation and the first purge were where they belong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Recovery {
    pub(crate) first_delivery: Duration,
    pub(crate) first_purge: Duration,
    pub(crate) backlog: Duration,
}

async fn pass(world: &mut World, time: Duration, every_ms: u64, dice: &mut Dice) {
    let until = Instant::now() + time;
    let mut edit_at = Instant::now();
    while Instant::now() < until && !is_violated() {
        sleep(STEP).await;
        world.shop.move_clock(STEP.as_millis() as i64);
        if edit_at <= Instant::now() {
            world.edit();
            edit_at = Instant::now() + dice.ms(2 * every_ms);
        }
    }
}

/// Changes that fill the window of a connection: with less, each new one would be sent at once, and be the first to arrive.
const WINDOW_OF_EDITS: u64 = 400;

/// The path dies for so long, both ways, while shoppers go on: in a rush at first, if that is so.
pub(crate) async fn outage(seed: u64, lasts: Duration, loss: u64, rush: bool) -> Option<Recovery> {
    let mut dice = Dice::of(seed, 77);
    let climate = Climate { loss, ..Climate::calm() };
    let mut world = World::new(seed, climate.clone());
    pass(&mut world, Duration::from_secs(3), climate.op_every_ms, &mut dice).await;
    tell("MISFORTUNE", || format!("the path is cut for {} ms", lasts.as_millis()));
    world.net.cut([true, true], Instant::now() + Duration::from_secs(3_600));
    if rush {
        (0..WINDOW_OF_EDITS).for_each(|_| world.edit());
    }
    pass(&mut world, lasts / 2, climate.op_every_ms, &mut dice).await;
    let purge = world.region.publish(Log::Purge, Entry { key: 0, gone: false, filler: 0 });
    pass(&mut world, lasts / 2, climate.op_every_ms, &mut dice).await;
    world.net.heal(climate.clone());
    tell("world", || "the path is well".to_owned());
    let healed = Instant::now();
    let commits = *world.region.committed.borrow();
    let (mut delivery, mut purged, mut backlog) = (None, None, None);
    while (delivery.is_none() || purged.is_none() || backlog.is_none()) && !is_violated() {
        pass(&mut world, STEP, climate.op_every_ms, &mut dice).await;
        let passed = healed.elapsed();
        if *world.region.committed.borrow() > commits {
            delivery.get_or_insert(passed);
        }
        if world.region.noted.lock().get(&Log::Purge).is_some_and(|noted| *noted >= purge) {
            purged.get_or_insert(passed);
        }
        if delivery.is_some() && world.shop.waiting(&world.region.disk.lock()) < 10 {
            backlog.get_or_insert(passed);
        }
        if passed > PATIENCE {
            violate(format!("after an outage of {} ms nothing arrives", lasts.as_millis()));
        }
    }
    world.end().await;
    let recovery = Recovery { first_delivery: delivery?, first_purge: purged?, backlog: backlog? };
    tell("world", || format!("{recovery:?}"));
    Some(recovery)
}

/// As one of the worlds: an outage that the connection may outlive, or one that it does not, and the bound.
pub(crate) async fn outage_world(seed: u64) {
    let mut dice = Dice::of(seed, 78);
    let rush = dice.chance(600);
    let lasts = Duration::from_millis(2_000 + dice.below(if rush { 10_000 } else { 70_000 }));
    let loss = [0, 0, 20][dice.below(3) as usize];
    if let Some(recovery) = outage(seed, lasts, loss, rush).await {
        note("outage");
        must(recovery.first_delivery < RECOVERY_MAX && recovery.first_purge < 2 * RECOVERY_MAX, || {
            format!("an outage of {} ms at a loss of {loss} in a thousand: {recovery:?}", lasts.as_millis())
        });
    }
}

/// The region's process starts again while nobody has anything to send up: the node learns it from the reset that answers its
/// next sign of life, and a purge does not wait for a time-out.
pub(crate) async fn restart_world(seed: u64) {
    let mut dice = Dice::of(seed, 80);
    let mut world = World::new(seed, Climate::calm());
    pass(&mut world, Duration::from_secs(2), 40, &mut dice).await;
    let quiet = Duration::from_secs(1) + dice.ms(3_000);
    sleep(quiet).await;
    world.crash_region(false).await;
    let purge = world.region.publish(Log::Purge, Entry { key: 0, gone: false, filler: 0 });
    let began = Instant::now();
    let noted = |world: &World| world.region.noted.lock().get(&Log::Purge).copied().unwrap_or(0);
    while noted(&world) < purge && began.elapsed() < PATIENCE && !is_violated() {
        sleep(STEP).await;
    }
    note("restart");
    let took = began.elapsed();
    must(took < RECOVERY_MAX, || {
        format!("a purge took {} ms after a restart of the region", took.as_millis())
    });
    world.end().await;
}

/// A catalogue fills a narrow line, and a purge has to pass it.
pub(crate) async fn narrow_world(seed: u64) {
    let mut dice = Dice::of(seed, 79);
    let climate = Climate { bytes_per_s: 300_000, op_every_ms: 100, ..Climate::calm() };
    let mut world = World::new(seed, climate.clone());
    pass(&mut world, Duration::from_secs(2), climate.op_every_ms, &mut dice).await;
    for n in 0..120_u32 {
        world.region.publish(Log::Catalog, Entry { key: (n % 120) as u8, gone: false, filler: 10_000 });
    }
    tell("region", || "publishes a catalogue that takes the line four seconds".to_owned());
    let before = dice.ms(1_500);
    pass(&mut world, before, climate.op_every_ms, &mut dice).await;
    let purge = world.region.publish(Log::Purge, Entry { key: 0, gone: false, filler: 0 });
    tell("region", || "publishes a purge".to_owned());
    let began = Instant::now();
    let noted = |world: &World, log| world.region.noted.lock().get(&log).copied().unwrap_or(0);
    while noted(&world, Log::Purge) < purge && began.elapsed() < PATIENCE && !is_violated() {
        pass(&mut world, STEP, climate.op_every_ms, &mut dice).await;
    }
    let took = began.elapsed();
    note("narrow");
    if noted(&world, Log::Catalog) < 120 {
        note("purge_passed_catalogue");
    }
    must(took < PURGE_MAX, || format!("a purge took {} ms behind a catalogue", took.as_millis()));
    world.end().await;
}
