//! From an older release to this one while shoppers buy: the region first, then one node after the other, each killed and started
//! as the other program on what it left on its disk. In between, programs of both releases are on one link.
//!
//! The older one is whatever `SOUK_OLDER_BINARY` names: a package of the last release, or a build of an older tree. What the wire
//! itself was is kept in `cdn/replication/tests/releases`.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use souk_tests::cluster::{Plan, Spec};
use souk_tests::skip;

use crate::run::{Row, SERVES_WITHIN, seed};
use crate::shoppers::Habits;

/// Changes that each node acknowledges in each state of the mix.
const CHANGES_MIN: u64 = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upgrade() -> Result<()> {
    let Some(older) = std::env::var_os("SOUK_OLDER_BINARY").map(PathBuf::from) else {
        skip("upgrade", "SOUK_OLDER_BINARY names no program of an older release");
        return Ok(());
    };
    let version = Command::new(&older).arg("--version").output().context("run the older program")?;
    let version = String::from_utf8_lossy(&version.stdout).trim().to_owned();
    ensure!(!version.is_empty(), "{} does not say which release it is", older.display());
    let spec = || Spec { binary: Some(older.clone()), ..Spec::default() };
    let plan = Plan { region: spec(), nodes: vec![spec(), spec()], ..Plan::default() };
    let habits = Habits { shoppers: 24, ordered_percent: 40, seed: seed(), ..Habits::default() };
    let mut row = Row::open("upgrade", plan, habits).await?;
    let mut slowest = Duration::ZERO;
    both_serve(&row, "all of the older release").await?;
    for (step, state) in ["a new region", "a new region and a new node", "all new"].into_iter().enumerate() {
        let server = match step {
            0 => &mut row.cluster.region,
            node => &mut row.cluster.nodes[node - 1],
        };
        let began = Instant::now();
        server.kill()?;
        server.run_program(None);
        server.start().await?;
        slowest = slowest.max(began.elapsed());
        both_serve(&row, state).await?;
    }
    row.close(&format!(
        "from {version} to this build: the region, then two nodes, one after the other; at least {CHANGES_MIN} changes of each node \
         taken by the region in each of four mixes, slowest return {} ms",
        slowest.as_millis()
    ))
    .await?;
    Ok(())
}

/// Each node acknowledges changes, and the region takes some of what they send.
async fn both_serve(row: &Row, state: &str) -> Result<()> {
    for (number, node) in row.cluster.nodes.iter().enumerate() {
        let before = row.crowd.acknowledged_by(number);
        let serves = row.crowd.writes_at(number, before, CHANGES_MIN, SERVES_WITHIN).await;
        ensure!(serves, "{state}: {} acknowledges nothing: {}", node.name(), node.last_words());
    }
    row.region_commits().await.with_context(|| state.to_owned())
}
