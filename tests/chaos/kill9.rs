//! SIGKILL under writes, and back again: of nodes, and of the region.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use souk_tests::cluster::Plan;
use tokio::time::sleep;

use crate::run::{Row, SERVES_WITHIN, count, seed};
use crate::seed::mix;
use crate::shoppers::Habits;

fn habits() -> Habits {
    Habits { shoppers: 24, ordered_percent: 30, seed: seed(), ..Habits::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill9_node() -> Result<()> {
    let mut row = Row::open("kill9_node", Plan::of(2), habits()).await?;
    let kills = count(12, 210);
    let mut slowest = Duration::ZERO;
    let mut done = 0;
    for number in 0.. {
        if done >= kills {
            break;
        }
        // One after the other, and every fifth time both.
        let both = number % 5 == 4;
        let victims = if both { vec![0, 1] } else { vec![usize::try_from(number % 2)?] };
        for &victim in &victims {
            let before = row.crowd.acknowledged_by(victim);
            let more = 1 + mix(seed(), number, 3) % 40;
            let served = row.crowd.writes_at(victim, before, more, SERVES_WITHIN).await;
            ensure!(
                served,
                "node {} acknowledges nothing: {}",
                victim + 1,
                row.cluster.nodes[victim].last_words()
            );
        }
        sleep(Duration::from_micros(mix(seed(), number, 4) % 20_000)).await;
        for &victim in &victims {
            row.cluster.nodes[victim].kill()?;
            done += 1;
        }
        sleep(Duration::from_millis(mix(seed(), number, 5) % 50)).await;
        for &victim in &victims {
            let began = Instant::now();
            row.cluster.nodes[victim].start().await?;
            slowest = slowest.max(began.elapsed());
        }
    }
    row.close(&format!("{done} SIGKILLs of two nodes, slowest return {} ms", slowest.as_millis())).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill9_region() -> Result<()> {
    let mut row = Row::open("kill9_region", Plan::of(2), habits()).await?;
    let kills = count(6, 210);
    let mut slowest = Duration::ZERO;
    for number in 0..kills {
        // Not before it has committed something of this life.
        row.region_commits().await?;
        sleep(Duration::from_micros(mix(seed(), number, 4) % 100_000)).await;
        row.cluster.region.kill()?;
        sleep(Duration::from_millis(mix(seed(), number, 5) % 200)).await;
        let began = Instant::now();
        row.cluster.region.start().await?;
        slowest = slowest.max(began.elapsed());
        if number % 3 == 2 {
            row.restart_nodes().await?;
        }
    }
    row.close(&format!(
        "{kills} SIGKILLs of the region, each third with both nodes, slowest return {} ms",
        slowest.as_millis()
    ))
    .await?;
    Ok(())
}
