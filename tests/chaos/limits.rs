//! A node may have no more files, or no more memory.

use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use souk_tests::cluster::{Plan, Spec};
use souk_tests::demo::memory_of;
use souk_tests::http::Client;
use souk_tests::skip;
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::run::{Row, SERVES_WITHIN, count, seed};
use crate::shop::{HOST, sku};
use crate::shoppers::Habits;

/// Files of a node in all: its own, its shoppers', and some.
const FILES_MAX: usize = 160;
/// Connections of somebody who says nothing, at most.
const IDLE: usize = 2 * FILES_MAX;
const POLL: Duration = Duration::from_millis(20);

fn files_of(pid: u32) -> Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// Idle connections take every file that a node may have. Who is connected is served; the region is killed and comes back
/// meanwhile; and when the idle ones have gone, everybody is served again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fd_exhaustion() -> Result<()> {
    if Command::new("prlimit").arg("--version").output().is_err() {
        skip("fd_exhaustion", "no prlimit");
        return Ok(());
    }
    let under = vec!["prlimit".to_owned(), format!("--nofile={FILES_MAX}:{FILES_MAX}")];
    let plan = Plan { nodes: vec![Spec { under, ..Spec::default() }, Spec::default()], ..Plan::default() };
    let habits = Habits { shoppers: 16, ordered_percent: 20, seed: seed(), ..Habits::default() };
    let mut row = Row::open("fd_exhaustion", plan, habits).await?;
    let rounds = count(2, 20);
    let (mut written, mut taken) = (0, 0);
    for _ in 0..rounds {
        ensure!(
            row.crowd.writes_at(0, row.crowd.acknowledged_by(0), 20, SERVES_WITHIN).await,
            "node 1 is not served"
        );
        let door = row.cluster.nodes[0].http()?;
        let (pid, began) = (row.cluster.nodes[0].pid()?, Instant::now());
        let mut idle = Vec::new();
        while files_of(pid)? < FILES_MAX {
            ensure!(
                began.elapsed() < SERVES_WITHIN,
                "the node has {} files, and may have more",
                files_of(pid)?
            );
            // Of those that it does not accept some wait in the kernel's queue, and then nobody gets in. One that waits is no
            // proof of that, for a busy machine is late as well: the node's files are.
            if idle.len() < IDLE
                && let Ok(connected) = tokio::time::timeout(POLL, TcpStream::connect(door)).await
            {
                idle.push(connected?);
            } else {
                sleep(POLL).await;
            }
        }
        taken += idle.len();
        let before = row.crowd.acknowledged_by(0);
        row.cluster.region.kill()?;
        sleep(Duration::from_millis(500)).await;
        row.cluster.region.start().await?;
        sleep(Duration::from_millis(500)).await;
        written += row.crowd.acknowledged_by(0) - before;
        drop(idle);
        let began = Instant::now();
        loop {
            let fresh = Client::new(door).with("host", HOST);
            let path = format!("/api/products/{}", sku(0));
            let asked = fresh.get(&path);
            if let Ok(Ok(answer)) = tokio::time::timeout(Duration::from_secs(2), asked).await
                && answer.status == 200
            {
                break;
            }
            let words = row.cluster.nodes[0].last_words();
            ensure!(
                began.elapsed() < SERVES_WITHIN,
                "nobody new is served after the files are free: {words}"
            );
        }
        row.region_commits().await?;
    }
    ensure!(written > 0, "who was connected was not served while the node had no file left");
    let what = format!(
        "{rounds} times a node that may have {FILES_MAX} files had them all taken, by {taken} idle connections; the region killed \
         meanwhile; {written} changes acknowledged with no file left"
    );
    row.close(&what).await?;
    Ok(())
}

/// A memory cgroup of the first kind. Dropping it takes it away.
struct Cage(PathBuf);

impl Cage {
    fn make() -> Result<Self, String> {
        let path = Path::new("/sys/fs/cgroup/memory").join(format!("souk-chaos-{}", std::process::id()));
        std::fs::create_dir(&path).map_err(|error| format!("no memory cgroup ({error})"))?;
        Ok(Self(path))
    }

    /// In it from its first moment on.
    fn under(&self) -> Vec<String> {
        let line = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", self.0.display());
        ["sh", "-c", &line, "sh"].map(str::to_owned).to_vec()
    }

    fn limit(&self, bytes: i64) -> std::io::Result<()> {
        std::fs::write(self.0.join("memory.limit_in_bytes"), bytes.to_string())
    }
}

impl Drop for Cage {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// A node's memory is taken from it, a mebibyte at a time, until the kernel ends it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_limit() -> Result<()> {
    let cage = match Cage::make() {
        Ok(cage) => cage,
        Err(why) => {
            skip("memory_limit", &why);
            return Ok(());
        }
    };
    let caged = Spec { under: cage.under(), ..Spec::default() };
    let habits = Habits { shoppers: 16, ordered_percent: 20, seed: seed(), ..Habits::default() };
    let plan = Plan { nodes: vec![caged, Spec::default()], ..Plan::default() };
    let mut row = Row::open("memory_limit", plan, habits).await?;
    let rounds = count(2, 20);
    let mut least = u64::MAX;
    for _ in 0..rounds {
        ensure!(
            row.crowd.writes_at(0, row.crowd.acknowledged_by(0), 50, SERVES_WITHIN).await,
            "node 1 is not served"
        );
        let node = &mut row.cluster.nodes[0];
        let (_, resident) = memory_of(&[("node".to_owned(), node.pid()?)])?.pop().context("one process")?;
        let mut limit = i64::try_from(resident)?;
        let began = Instant::now();
        let status = loop {
            if let Some(status) = node.ended()? {
                break status;
            }
            // What cannot be taken now is tried again: its pages are in use.
            if cage.limit(limit).is_ok() {
                limit -= 1 << 20;
            }
            ensure!(began.elapsed() < SERVES_WITHIN, "the kernel does not end the node at {limit} bytes");
            sleep(POLL).await;
        };
        ensure!(status.signal() == Some(9), "the node ended by itself: {status}\n{}", node.last_words());
        least = least.min(u64::try_from(limit)?);
        cage.limit(-1)?;
        node.start().await?;
    }
    row.close(&format!(
        "{rounds} times a node's memory was taken until the kernel killed it, at {} MB",
        least >> 20
    ))
    .await?;
    Ok(())
}
