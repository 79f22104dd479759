//! Nothing breaks, and shoppers come and go for a while: does memory stay what it was?

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use souk_tests::cluster::{Cluster, Plan};
use souk_tests::demo::memory_of;
use tokio::time::sleep;

use crate::run::{Row, count, seed};
use crate::shoppers::Habits;

/// What a process may grow by in the second half, beside what its data grows by: allocators keep what they were once given.
const GROWTH_MAX: u64 = 48 << 20;
/// What a process may hold at all: its caches' limits are above what is written here.
const RESIDENT_MAX: u64 = 1 << 30;

fn resident(cluster: &Cluster) -> Result<Vec<(String, u64)>> {
    let servers = std::iter::once(&cluster.region).chain(&cluster.nodes);
    let processes = servers.map(|server| Ok((server.name().to_owned(), server.pid()?)));
    memory_of(&processes.collect::<Result<Vec<_>>>()?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn soak() -> Result<()> {
    let habits = Habits { shoppers: 24, ordered_percent: 30, seed: seed(), ..Habits::default() };
    let row = Row::open("soak", Plan::of(2), habits).await?;
    let lasts = Duration::from_secs(count(8, 60));
    let began = Instant::now();
    let mut half = None;
    let mut most = Vec::new();
    while began.elapsed() < lasts {
        sleep(Duration::from_millis(200)).await;
        most = resident(&row.cluster)?;
        if half.is_none() && began.elapsed() >= lasts / 2 {
            half = Some(most.clone());
        }
    }
    let half = half.unwrap_or_default();
    ensure!(!half.is_empty(), "the row has no middle: let it last some seconds");
    let mut figures = Vec::new();
    for ((name, before), (_, after)) in half.iter().zip(&most) {
        figures.push(format!("{name} {} then {} MB", before >> 20, after >> 20));
        ensure!(*after <= RESIDENT_MAX, "{name} holds {after} bytes");
        ensure!(after.saturating_sub(*before) <= GROWTH_MAX, "{name} grew from {before} to {after} bytes");
    }
    row.close(&format!(
        "{} s of shoppers, resident at half time and at the end: {}",
        lasts.as_secs(),
        figures.join(", ")
    ))
    .await?;
    Ok(())
}
