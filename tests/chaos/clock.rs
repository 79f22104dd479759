//! The clock of one node jumps by days, forth and back, while the other's is right and shoppers change the same carts at both.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use souk_tests::cluster::{Plan, Spec};
use souk_tests::http::Client;
use souk_tests::skip;

use crate::run::{Row, SERVES_WITHIN, count, seed};
use crate::seed::mix;
use crate::shop::HOST;
use crate::shoppers::Habits;

const DAY: i64 = 86_400;
/// Seconds that the clock is wrong by, one after the other.
const JUMPS: &[i64] = &[DAY, 0, -DAY, 3_600, -2, 10 * DAY, -10 * DAY, 1];
/// `Mon, 30 Nov 2026`.
const DAY_BYTES: usize = 16;
/// Changes that the node acknowledges in each time, at least.
const CHANGES_MIN: u64 = 20;

/// Debian's package puts it beside the other libraries of the machine's architecture.
fn library() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").ok()?;
    folders
        .filter_map(|entry| Some(entry.ok()?.path().join("faketime/libfaketimeMT.so.1")))
        .find(|path| path.exists())
}

/// The clock is right by so many seconds more from now on.
fn set(file: &Path, seconds: i64) -> Result<()> {
    let new = file.with_extension("new");
    std::fs::write(&new, format!("{seconds:+}\n"))?;
    Ok(std::fs::rename(new, file)?)
}

/// The day that a node's answers are of.
async fn dated(row: &Row, node: usize) -> Result<String> {
    let shopper = Client::new(row.cluster.nodes[node].http()?).with("host", HOST);
    let answer = shopper.get("/api/products?limit=1").await?;
    let date = answer.header("date").to_owned();
    ensure!(date.len() > DAY_BYTES, "an answer without a date: {}", answer.status);
    Ok(date[..DAY_BYTES].to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clock() -> Result<()> {
    let Some(library) = library() else {
        skip("clock", "no libfaketime: install faketime");
        return Ok(());
    };
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("offset");
    set(&file, 0)?;
    let environment = [
        ("LD_PRELOAD", library.display().to_string()),
        ("FAKETIME_TIMESTAMP_FILE", file.display().to_string()),
        ("FAKETIME_NO_CACHE", "1".to_owned()),
        // Timers are right on a machine whose clock is wrong.
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ("DONT_FAKE_MONOTONIC", "1".to_owned()),
    ];
    let environment = environment.map(|(name, value)| (name.to_owned(), value)).to_vec();
    let plan =
        Plan { nodes: vec![Spec { environment, ..Spec::default() }, Spec::default()], ..Plan::default() };
    let habits = Habits { shoppers: 16, ordered_percent: 20, seed: seed(), ..Habits::default() };
    let row = Row::open("clock", plan, habits).await?;
    let jumps = count(JUMPS.len() as u64, 200);
    for number in 0..jumps {
        let seconds = match JUMPS.get(usize::try_from(number)?) {
            Some(known) => *known,
            None => i64::try_from(mix(seed(), number, 3) % 172_800)? - DAY,
        };
        set(&file, seconds)?;
        let before = row.crowd.acknowledged_by(0);
        let served = row.crowd.writes_at(0, before, CHANGES_MIN, SERVES_WITHIN).await;
        if seconds.abs() >= DAY {
            let [wrong, right] = [dated(&row, 0).await?, dated(&row, 1).await?];
            ensure!(wrong != right, "the clock did not jump by {seconds} s: both nodes say {right}");
        }
        let words = row.cluster.nodes[0].last_words();
        ensure!(served, "node 1 acknowledges nothing with its clock wrong by {seconds} s: {words}");
        row.region_commits().await?;
    }
    set(&file, 0)?;
    row.close(&format!("{jumps} jumps of a node's clock by up to ten days, forth and back")).await?;
    Ok(())
}
