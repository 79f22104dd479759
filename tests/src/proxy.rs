//! A running `souk proxy` before a server of the test's own.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use tempfile::TempDir;

use crate::souk;

const STARTS_WITHIN: Duration = Duration::from_secs(60);

/// Dropping it ends it.
pub struct Proxy {
    child: Child,
    /// In clear text, or else with TLS.
    pub addr: SocketAddr,
    /// With TLS, if there is such a door.
    pub https: Option<SocketAddr>,
    /// Health and metrics.
    pub admin: SocketAddr,
    _dir: TempDir,
}

/// One that was asked to end.
pub struct Ending(Proxy);

impl Ending {
    /// Waits until it has ended, in order.
    pub async fn has_stopped(self) -> Result<()> {
        self.0.has_ended().await
    }
}

#[derive(Deserialize)]
struct Ready {
    http: Option<SocketAddr>,
    https: Option<SocketAddr>,
    admin: SocketAddr,
}

impl Proxy {
    pub async fn start(upstream: SocketAddr) -> Result<Self> {
        Self::start_with(upstream, &[]).await
    }

    /// The same with more flags.
    pub async fn start_with(upstream: SocketAddr, flags: &[&str]) -> Result<Self> {
        Self::with(upstream, &[&["--listen", "127.0.0.1:0"], flags].concat()).await
    }

    /// The same with doors of one's own.
    pub async fn with(upstream: SocketAddr, flags: &[&str]) -> Result<Self> {
        Self::spawn(Command::new(souk()), upstream, flags).await
    }

    /// The same on these cores alone, of which it knows no others.
    pub async fn pinned(upstream: SocketAddr, cores: &[usize], flags: &[&str]) -> Result<Self> {
        let cores: Vec<String> = cores.iter().map(ToString::to_string).collect();
        // It becomes what it starts.
        let mut command = Command::new("taskset");
        command.args(["-c", &cores.join(",")]).arg(souk());
        Self::spawn(command, upstream, flags).await
    }

    async fn spawn(mut command: Command, upstream: SocketAddr, flags: &[&str]) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let ready = dir.path().join("ready.json");
        let mut child = command
            .args(["proxy", "--admin", "127.0.0.1:0", "--log", "error", "--upstream"])
            .arg(format!("http://{upstream}"))
            .arg("--ready-file")
            .arg(&ready)
            .args(flags)
            .stdin(Stdio::null())
            .spawn()
            .context("start `souk proxy`")?;
        let began = Instant::now();
        loop {
            let text = std::fs::read(&ready).ok();
            if let Some(Ready { http, https, admin }) =
                text.and_then(|text| serde_json::from_slice(&text).ok())
            {
                let addr = http.or(https).context("it listens nowhere")?;
                return Ok(Self { child, addr, https, admin, _dir: dir });
            }
            if let Some(status) = child.try_wait()? {
                bail!("`souk proxy` ended: {status}");
            }
            ensure!(began.elapsed() < STARTS_WITHIN, "`souk proxy` did not come up");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Asks it to end, and waits until it has.
    pub async fn stop(self) -> Result<()> {
        self.tell_to_stop()?.has_stopped().await
    }

    /// Asks it to end.
    pub fn tell_to_stop(self) -> Result<Ending> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGTERM)?;
        Ok(Ending(self))
    }

    async fn has_ended(mut self) -> Result<()> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "`souk proxy` ended: {status}");
                return Ok(());
            }
            ensure!(began.elapsed() < STARTS_WITHIN, "`souk proxy` did not end");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Proxy {
    /// The number of its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What the process holds in memory, in KiB.
    pub fn resident_kib(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        line.trim().trim_end_matches("kB").trim().parse().context("VmRSS is no number")
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
