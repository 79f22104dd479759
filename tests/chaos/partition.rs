//! The link between nodes and region through a relay: cut, cut one way, flapping, losing, slow and out of order; and a product
//! that everybody wants while it flaps.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use souk_link::relay::{Relay, Way, Weather};
use souk_tests::cluster::Plan;
use souk_tests::http::Client;
use tokio::time::sleep;

use crate::run::{Row, SERVES_WITHIN, count, is_full, seed};
use crate::seed::mix;
use crate::shop::SCARCE;
use crate::shoppers::Habits;

const POLL: Duration = Duration::from_millis(5);

const fn lossy(per_mille: u16) -> Weather {
    Weather { lost_per_mille: per_mille, ..Weather::CLEAR }
}

const fn slow(ms: u64, late_per_mille: u16) -> Weather {
    let delay = Duration::from_millis(ms);
    Weather { lost_per_mille: 0, delay, late_per_mille, late_by: Duration::from_millis(3 * ms) }
}

/// What the link goes through, by name; what a phase is made of comes again and again while it lasts.
const PHASES: &[(&str, &[(Weather, Weather)])] = &[
    ("cut", &[(Weather::CUT, Weather::CUT)]),
    ("cut on the way up", &[(Weather::CUT, Weather::CLEAR)]),
    ("cut on the way down", &[(Weather::CLEAR, Weather::CUT)]),
    ("flapping", &[(Weather::CUT, Weather::CUT), (Weather::CLEAR, Weather::CLEAR)]),
    ("flapping one way", &[(Weather::CUT, Weather::CLEAR), (Weather::CLEAR, Weather::CUT)]),
    ("one in ten lost", &[(lossy(100), lossy(100))]),
    ("40 ms away, out of order", &[(slow(40, 200), slow(40, 200))]),
    (
        "40 ms away, lossy",
        &[(Weather { lost_per_mille: 20, ..slow(40, 50) }, Weather { lost_per_mille: 20, ..slow(40, 50) })],
    ),
];

fn set(relay: &Relay, (up, down): (Weather, Weather)) {
    relay.set(Way::Up, up);
    relay.set(Way::Down, down);
}

/// One phase. What its weathers are changed for lasts a chance of 40 ms to 1 s.
async fn endure(relay: &Relay, weathers: &[(Weather, Weather)], lasts: Duration, chance: u64) -> u64 {
    let began = Instant::now();
    let mut changes = 0;
    while let Some(left) = lasts.checked_sub(began.elapsed()).filter(|left| !left.is_zero()) {
        let index = usize::try_from(changes).unwrap_or(0) % weathers.len();
        set(relay, weathers[index]);
        changes += 1;
        let next = Duration::from_millis(40 + mix(chance, changes, 7) % 960);
        sleep(if weathers.len() == 1 { left } else { next.min(left) }).await;
    }
    changes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partition() -> Result<()> {
    let habits = Habits { shoppers: 16, ordered_percent: 20, seed: seed(), ..Habits::default() };
    let plan = Plan { relay: Some(seed()), ..Plan::of(2) };
    let row = Row::open("partition", plan, habits).await?;
    let rounds = count(1, 10);
    let mut slowest = Duration::ZERO;
    let mut changes = 0;
    let mut cut_writes = 0;
    for round in 0..rounds {
        for (number, (name, weathers)) in (0_u64..).zip(PHASES) {
            let relay = row.cluster.relay()?;
            let chance = mix(seed(), round, number);
            let lasts = Duration::from_millis(if is_full() {
                1_500 + chance % 6_000
            } else {
                1_000 + chance % 1_000
            });
            let before = [row.crowd.acknowledged_by(0), row.crowd.acknowledged_by(1)];
            changes += endure(relay, weathers, lasts, chance).await;
            let written = row.crowd.acknowledged() - before[0] - before[1];
            ensure!(written > 0, "nobody was served while the link was {name}");
            cut_writes += written;
            relay.heal();
            // Until what was written meanwhile has gone up: the recovery of this phase.
            let began = Instant::now();
            for node in &row.cluster.nodes {
                let admin = Client::new(node.admin()?);
                let last =
                    admin.get("/v1/status").await?.json()["outbox"]["last"].as_u64().context("a number")?;
                while admin.get("/v1/status").await?.json()["outbox"]["acked"].as_u64() < Some(last) {
                    let words = node.last_words();
                    ensure!(
                        began.elapsed() < SERVES_WITHIN,
                        "{} does not get through after {name}: {words}",
                        node.name()
                    );
                    sleep(POLL).await;
                }
            }
            slowest = slowest.max(began.elapsed());
        }
    }
    let (carried, lost) = row.cluster.relay()?.counts();
    ensure!(lost > 0, "the relay has lost nothing");
    let phases = rounds * PHASES.len() as u64;
    let what = format!(
        "{phases} phases of {changes} weathers (datagrams: {carried} carried, {lost} lost), {cut_writes} changes acknowledged in \
         them, slowest catching up {} ms",
        slowest.as_millis()
    );
    row.close(&what).await?;
    Ok(())
}

/// Many more shoppers than units, at two nodes, while the link comes and goes: each unit is sold once, and all of them are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn oversell() -> Result<()> {
    let (units, shoppers) = (if is_full() { 1_000 } else { 100 }, if is_full() { 10_000 } else { 1_500 });
    let wanted = Some((SCARCE, usize::try_from(shoppers)?));
    let habits = Habits { shoppers: 48, scarce: wanted, alone: true, seed: seed(), ..Habits::default() };
    let plan = Plan { relay: Some(seed()), ..Plan::of(2) };
    let row = Row::open_with("oversell", plan, habits, Some(units)).await?;
    let mut changes = 0;
    while !row.crowd.has_left() {
        let lasts = Duration::from_millis(40 + mix(seed(), changes, 9) % 300);
        // Mostly open, or nobody would ever order.
        let relay = row.cluster.relay()?;
        let weather = match mix(seed(), changes, 8) % 8 {
            0 => (Weather::CUT, Weather::CUT),
            1 => (Weather::CLEAR, Weather::CUT),
            2 => (lossy(50), lossy(50)),
            _ => (Weather::CLEAR, Weather::CLEAR),
        };
        set(relay, weather);
        changes += 1;
        sleep(lasts).await;
    }
    row.cluster.relay()?.heal();
    let orders = row.crowd.orders();
    ensure!(orders <= units, "{orders} shoppers were promised {units} units");
    let what = format!(
        "{units} units wanted by {shoppers} shoppers at two nodes over a link with {changes} weathers: {orders} orders"
    );
    let verdict = row.close(&what).await?;
    ensure!(verdict.scarce_sold == units, "{} of {units} units were sold", verdict.scarce_sold);
    Ok(())
}
