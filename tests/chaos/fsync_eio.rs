//! The disk says that it could not keep what it was given: every sync of a node fails, then every sync of the region.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use souk_tests::cluster::{Plan, Server, Spec};
use souk_tests::http::Client;
use souk_tests::skip;
use tokio::time::sleep;

use crate::run::{Row, SERVES_WITHIN, count, seed};
use crate::seed::mix;
use crate::shop::{HOST, sku};
use crate::shoppers::Habits;

/// EIO.
const ERRNO: u32 = 5;
const REFUSAL: &str = "503 disk_failed";
const REFUSALS_MIN: u64 = 30;

/// `fiu-run` raises a process under libfiu, `fiu-ctrl` tells it what fails.
struct Fiu {
    folder: tempfile::TempDir,
}

impl Fiu {
    fn find() -> Result<Option<Self>> {
        let mut asking = Command::new("fiu-run");
        asking.arg("-h").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let is_here = asking.status().is_ok();
        Ok(if is_here { Some(Self { folder: tempfile::tempdir()? }) } else { None })
    }

    fn pipe(&self) -> PathBuf {
        self.folder.path().join("fiu")
    }

    /// Under it, a process fails where it is told to.
    fn spec(&self) -> Result<Spec> {
        let pipe = self.pipe();
        let pipe = pipe.to_str().context("a temporary path is text")?;
        let under = ["fiu-run", "-x", "-f", pipe].map(str::to_owned).to_vec();
        Ok(Spec { under, ..Spec::default() })
    }

    fn set(&self, server: &Server, is_failing: bool) -> Result<()> {
        for what in ["fsync", "fdatasync"] {
            let word = if is_failing {
                format!("enable name=posix/io/sync/{what},failinfo={ERRNO}")
            } else {
                format!("disable name=posix/io/sync/{what}")
            };
            // It waits for the process's answer, which a dead one does not give.
            let told = Command::new("timeout")
                .args(["20", "fiu-ctrl", "-f"])
                .arg(self.pipe())
                .args(["-c", &word, &server.pid()?.to_string()])
                .stdin(Stdio::null())
                .output()?;
            let said =
                String::from_utf8_lossy(&told.stderr).into_owned() + &String::from_utf8_lossy(&told.stdout);
            ensure!(told.status.success() && said.trim().is_empty(), "fiu-ctrl -c {word:?}: {said}");
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fsync_eio() -> Result<()> {
    let (Some(fiu), true) = (Fiu::find()?, Path::new("/usr/bin/timeout").exists()) else {
        skip("fsync_eio", "no fiu-run: install fiu-utils");
        return Ok(());
    };
    let plan = Plan { region: fiu.spec()?, nodes: vec![fiu.spec()?, Spec::default()], ..Plan::default() };
    let habits = Habits { shoppers: 16, ordered_percent: 30, seed: seed(), ..Habits::default() };
    let row = Row::open("fsync_eio", plan, habits).await?;
    let shopper = Client::new(row.cluster.nodes[0].http()?).with("host", HOST);
    let rounds = count(3, 40);
    let mut reads = 0_u64;
    for round in 0..rounds {
        let node = &row.cluster.nodes[0];
        let refused = row.crowd.refused(REFUSAL);
        fiu.set(node, true)?;
        let began = Instant::now();
        while row.crowd.refused(REFUSAL) < refused + REFUSALS_MIN {
            let words = node.last_words();
            ensure!(
                began.elapsed() < SERVES_WITHIN,
                "a node whose disk fails does not say {REFUSAL}: {words}"
            );
            let answer = shopper.get(&format!("/api/products/{}", sku(0))).await?;
            ensure!(answer.status == 200, "a read while the disk fails: {} {}", answer.status, answer.text());
            reads += 1;
            sleep(Duration::from_millis(20)).await;
        }
        fiu.set(node, false)?;
        let before = row.crowd.acknowledged_by(0);
        let served = row.crowd.writes_at(0, before, 20, SERVES_WITHIN).await;
        ensure!(served, "a node takes no writes after its disk is well: {}", node.last_words());

        fiu.set(&row.cluster.region, true)?;
        let before = row.crowd.acknowledged();
        sleep(Duration::from_millis(300 + mix(seed(), round, 3) % 900)).await;
        let written = row.crowd.acknowledged() - before;
        ensure!(written > 0, "the nodes take no writes while the region's disk fails");
        fiu.set(&row.cluster.region, false)?;
        row.region_commits().await?;
    }
    let what = format!(
        "{rounds} times every sync of a node, and of the region, failed with EIO; {} changes refused as {REFUSAL}, {reads} reads \
         answered meanwhile",
        row.crowd.refused(REFUSAL)
    );
    row.close(&what).await?;
    Ok(())
}
