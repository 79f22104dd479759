//! The power is cut under writes: the process stops, the file system goes down with what it has not written, the journal is
//! replayed, and the process starts again on what it finds.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use souk_tests::cluster::{Plan, Spec};
use souk_tests::skip;
use tokio::time::sleep;

use crate::disks::LoopDisk;
use crate::run::{Row, SERVES_WITHIN, count, seed};
use crate::seed::mix;
use crate::shoppers::Habits;

/// Room for a state, a replica and a database that grow for half an hour, and for the node's own floor of free space.
const DISK_MIB: u64 = 512;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn powercut() -> Result<()> {
    let (mut of_node, mut of_region) = match (LoopDisk::make(DISK_MIB)?, LoopDisk::make(DISK_MIB)?) {
        (Ok(one), Ok(other)) => (one, other),
        (Err(why), _) | (_, Err(why)) => {
            skip("powercut", &why);
            return Ok(());
        }
    };
    let on = |disk: &LoopDisk| Spec { data: Some(disk.path().join("data")), ..Spec::default() };
    let plan = Plan { region: on(&of_region), nodes: vec![on(&of_node), Spec::default()], ..Plan::default() };
    let habits = Habits { shoppers: 24, ordered_percent: 30, seed: seed(), ..Habits::default() };
    let mut row = Row::open("powercut", plan, habits).await?;
    let cuts = count(9, 210);
    let (mut done, mut vanished, mut slowest) = (0, 0, Duration::ZERO);
    for number in 0.. {
        if done >= cuts {
            break;
        }
        // The node, the region, and the rack that both are in.
        let (node, region) = (number % 3 != 1, number % 3 != 0);
        if region {
            row.region_commits().await?;
        }
        if node {
            let before = row.crowd.acknowledged_by(0);
            let served = row.crowd.writes_at(0, before, 1 + mix(seed(), number, 3) % 40, SERVES_WITHIN).await;
            ensure!(served, "node 1 acknowledges nothing: {}", row.cluster.nodes[0].last_words());
        }
        sleep(Duration::from_micros(mix(seed(), number, 4) % 20_000)).await;
        // A machine without power says nothing. A process that lived on would: in the moment in which ext4 goes down an fsync can
        // succeed whose data never comes to be, and what rests on it would be acknowledged.
        if node {
            row.cluster.nodes[0].freeze()?;
        }
        if region {
            row.cluster.region.freeze()?;
        }
        if node {
            of_node.cut()?;
        }
        if region {
            of_region.cut()?;
        }
        let mut cut = Vec::new();
        if node {
            row.cluster.nodes[0].kill()?;
            cut.push(&mut of_node);
        }
        if region {
            row.cluster.region.kill()?;
            cut.push(&mut of_region);
        }
        for disk in cut {
            done += 1;
            vanished += u64::from(disk.power_on()?);
        }
        let began = Instant::now();
        if region {
            row.cluster.region.start().await?;
        }
        if node {
            row.cluster.nodes[0].start().await?;
        }
        slowest = slowest.max(began.elapsed());
    }
    ensure!(vanished > 0, "a file that nobody had synced outlived every cut: nothing was cut");
    let what = format!(
        "{done} power cuts of a node's disk, the region's, and both (a file that was not synced was gone after {vanished}), \
         slowest return {} ms",
        slowest.as_millis()
    );
    row.close(&what).await?;
    Ok(())
}
