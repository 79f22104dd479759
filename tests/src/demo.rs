//! The product as a person starts it: `souk demo`, in a folder of its own, ended when the test ends.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

use crate::http::Client;
use crate::{root, souk};

/// Products of the sample shop that are always in stock.
pub const SAMPLE_SKUS: &[&str] = &["TEA-101", "TEA-102", "TEA-103", "TEA-104", "TEA-105"];
/// The first start compiles the plugins and may have to fetch a compiler for them.
const START_TIME_MAX: Duration = Duration::from_secs(900);
/// Lines that it says after it was ready and that nobody has read: a replay ends with one.
const LATER_LINES_MAX: usize = 4;
/// How long a changed world may take to be seen everywhere on a busy machine before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What `souk demo --json` says when it is ready.
#[derive(Debug, Deserialize)]
struct Ready {
    site: String,
    nodes: Vec<ReadyNode>,
    control: String,
    operator_token: String,
    merchant_token: String,
}

#[derive(Debug, Deserialize)]
struct ReadyNode {
    url: String,
    admin: String,
}

/// What a process of the demo says of itself in its ready file.
#[derive(Deserialize)]
struct ReadyFile {
    pid: u32,
}

/// Where a node listens.
#[derive(Debug, Clone, Copy)]
pub struct Node {
    pub http: SocketAddr,
    pub admin: SocketAddr,
}

/// A running demo. Dropping it ends its processes.
pub struct Demo {
    child: Child,
    /// What it says after it was ready.
    later: tokio::sync::mpsc::Receiver<String>,
    /// What it has said to a person, once it has ended.
    complaints: Option<std::thread::JoinHandle<String>>,
    nodes: Vec<Node>,
    control: SocketAddr,
    token: String,
    merchant_token: String,
    site: String,
    dir: TempDir,
}

impl Demo {
    /// Raises a region, two nodes and the sample shop, and waits until both nodes serve it.
    pub async fn start() -> Result<Self> {
        Self::start_with(&[]).await
    }

    /// The same with further arguments.
    pub async fn start_with(arguments: &[&str]) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("souk-test-").tempdir()?;
        let mut child = Command::new(souk())
            .args(["demo", "--json", "--dir"])
            .arg(dir.path().join("demo"))
            .args(arguments)
            .current_dir(root())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start `souk demo`")?;
        let stdout = child.stdout.take().context("the demo's output is a pipe")?;
        let mut stderr = child.stderr.take().context("the demo's errors are a pipe")?;
        let (tell, told) = mpsc::sync_channel(1);
        let (tell_later, later) = tokio::sync::mpsc::channel(LATER_LINES_MAX);
        std::thread::spawn(move || {
            let mut lines = BufReader::new(stdout).lines();
            let first = lines.next().and_then(Result::ok).unwrap_or_default();
            // A test that gave up no longer listens.
            let _ = tell.send(first);
            // What nobody reads is dropped, so that the demo never waits for a full pipe.
            lines.map_while(Result::ok).for_each(|line| drop(tell_later.try_send(line)));
        });
        let complaints = std::thread::spawn(move || {
            let mut text = String::new();
            let _ = stderr.read_to_string(&mut text);
            text
        });
        let waited = tokio::task::spawn_blocking(move || told.recv_timeout(START_TIME_MAX)).await?;
        let line = waited.unwrap_or_default();
        let Ok(Ready { site, nodes, control, operator_token: token, merchant_token }) =
            serde_json::from_str(&line)
        else {
            end(&mut child);
            bail!("the demo did not start: {line:?}\n{}", complaints.join().unwrap_or_default())
        };
        let nodes = nodes
            .iter()
            .map(|node| Ok(Node { http: loopback(&node.url)?, admin: loopback(&node.admin)? }))
            .collect::<Result<_>>()?;
        let control = loopback(&control)?;
        let complaints = Some(complaints);
        Ok(Self { child, later, complaints, nodes, control, token, merchant_token, site, dir })
    }

    /// What came of the replay that it was started with.
    pub async fn report(&mut self, within: Duration) -> Result<Value> {
        let said = tokio::time::timeout(within, self.later.recv()).await;
        let Some(line) = said.with_context(|| format!("no report within {within:?}"))? else {
            let words = self.complaints.take().and_then(|words| words.join().ok());
            bail!("the demo ended without a report: {}", words.unwrap_or_default());
        };
        serde_json::from_str(&line).with_context(|| format!("{line} is no report"))
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Where the region's control API listens.
    pub fn control(&self) -> SocketAddr {
        self.control
    }

    /// The region's process.
    pub fn region_pid(&self) -> Result<u32> {
        let text = std::fs::read(self.dir.path().join("demo/region/ready.json"))
            .context("read the region's ready file")?;
        Ok(serde_json::from_slice::<ReadyFile>(&text)?.pid)
    }

    /// Every process of the demo, by its folder.
    pub fn processes(&self) -> Result<Vec<(String, u32)>> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(self.dir.path().join("demo"))? {
            let folder = entry?.path();
            let Ok(text) = std::fs::read(folder.join("ready.json")) else { continue };
            let pid = serde_json::from_slice::<ReadyFile>(&text)?.pid;
            let alive = Path::new("/proc").join(pid.to_string()).exists();
            let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
            anyhow::ensure!(alive, "{name} has died");
            all.push((name, pid));
        }
        all.sort();
        Ok(all)
    }

    /// A shopper of the sample shop at one of the nodes.
    pub fn shopper(&self, node: usize) -> Client {
        Client::new(self.nodes[node].http).with("host", "localhost")
    }

    /// The operator at the region's control API.
    pub fn operator(&self) -> Client {
        Client::new(self.control).with("authorization", &format!("Bearer {}", self.token))
    }

    /// What the merchant of the sample shop exports in the shell, as `souk demo` prints it.
    pub fn merchant_environment(&self) -> [(&'static str, String); 3] {
        [
            ("SOUK_REGION", format!("http://{}", self.control)),
            ("SOUK_SITE", self.site.clone()),
            ("SOUK_TOKEN", self.merchant_token.clone()),
        ]
    }

    /// The same for whoever runs the region.
    pub fn operator_environment(&self) -> [(&'static str, String); 3] {
        let mut environment = self.merchant_environment();
        environment[2].1.clone_from(&self.token);
        environment
    }

    /// The path of the sample site's part of the control API.
    pub fn site(&self, rest: &str) -> String {
        format!("/v1/sites/{}{rest}", self.site)
    }

    /// Ends the demo as Ctrl-C does, and fails if it did not clean up after itself.
    pub async fn stop(self) -> Result<()> {
        let dir = self.stop_keeping().await?;
        let left = dir.path().join("demo");
        anyhow::ensure!(!left.exists(), "the demo left {} behind", left.display());
        Ok(())
    }

    /// The same for one that was started with `--keep`: its folder, in which `demo` is what it left.
    pub async fn stop_keeping(mut self) -> Result<TempDir> {
        terminate(self.child.id());
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                end(&mut self.child);
                bail!("the demo did not end on SIGTERM");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(std::mem::replace(&mut self.dir, TempDir::new()?))
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// The port of an address that the demo printed, on this machine.
fn loopback(url: &str) -> Result<SocketAddr> {
    let port = url.rsplit(':').next().and_then(|port| port.trim_end_matches('/').parse().ok());
    Ok(SocketAddr::from(([127, 0, 0, 1], port.with_context(|| format!("{url} has no port"))?)))
}

fn terminate(pid: u32) {
    let _ = Command::new("kill").args(["-TERM", &pid.to_string()]).status();
}

/// SIGTERM first, so that the demo ends its own children; SIGKILL if it will not.
fn end(child: &mut Child) {
    if matches!(child.try_wait(), Ok(Some(_))) {
        return;
    }
    terminate(child.id());
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        if matches!(child.try_wait(), Ok(Some(_))) {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// A page of the catalogue with one product on it, and for each call another page: one that no node has kept, so that the
/// shop's plugins are asked.
pub fn one_product(call: usize) -> String {
    let after: String = format!("A{call}").bytes().map(|byte| format!("{byte:02x}")).collect();
    format!("/api/products?limit=1&cursor={after}")
}

/// Resident bytes of each of the processes.
pub fn memory_of(processes: &[(String, u32)]) -> Result<Vec<(String, u64)>> {
    let resident = |(name, pid): &(String, u32)| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
        Ok((name.clone(), kib.context("a process says how much memory it has")? << 10))
    };
    processes.iter().map(resident).collect()
}

/// Asks again and again until the answer is there; fails with the last thing seen.
pub async fn until<T, F>(what: &str, mut ask: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<Result<T, String>>>,
{
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ask().await? {
            Ok(found) => return Ok(found),
            Err(seen) if Instant::now() > deadline => bail!("{what}: still {seen}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}
