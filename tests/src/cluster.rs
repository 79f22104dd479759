//! A region and its nodes as processes that a test may kill, start again on the same ports, put on disks of its choice, run
//! under other programs, and part from each other: what the chaos suite breaks.
//!
//! Everything listens on an address of 127.0.0.0/8 that is this test process's own. The kernel gives outgoing connections ports
//! on 127.0.0.1, so none of them ever sits on the port that a killed server comes back to.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use serde_json::{Value, json};
use souk_link::relay::Relay;
use tempfile::TempDir;

use crate::http::{Answer, Client};
use crate::identity::{Identity, REGION, TOKEN};
use crate::souk;

/// A debug build that replays a journal on a busy machine; nothing that starts at all takes this long.
const STARTS_WITHIN: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);
/// What a process wrote last, for the reader of a failure.
const LAST_WORDS_BYTES: usize = 4_096;

/// How one process is raised.
#[derive(Debug, Clone, Default)]
pub struct Spec {
    /// Where its data lies; without it, in the cluster's own folder.
    pub data: Option<PathBuf>,
    /// Added to its configuration, table by table.
    pub config: Vec<(&'static str, Value)>,
    /// A program that becomes `souk`, with its arguments.
    pub under: Vec<String>,
    /// Another `souk` than that of the tests.
    pub binary: Option<PathBuf>,
    pub environment: Vec<(String, String)>,
}

/// What is raised.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    pub region: Spec,
    pub nodes: Vec<Spec>,
    /// Puts a relay between the nodes and the region, seeded.
    pub relay: Option<u64>,
    /// Files beside the region's configuration.
    pub files: Vec<(&'static str, String)>,
}

impl Plan {
    /// A region and so many nodes, with nothing special about them.
    pub fn of(nodes: usize) -> Self {
        Self { nodes: vec![Spec::default(); nodes], ..Self::default() }
    }
}

/// What a process says when it listens; before that, nothing.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub struct Ready {
    http: Option<SocketAddr>,
    admin: Option<SocketAddr>,
    link: Option<SocketAddr>,
    control: Option<SocketAddr>,
}

impl Ready {
    /// Where shoppers and a node's operators reach it, or any place on an address.
    pub fn doors(&self, ip: Ipv4Addr) -> [String; 2] {
        let port = |known: Option<SocketAddr>| known.unwrap_or_else(|| SocketAddr::from((ip, 0))).to_string();
        [port(self.http), port(self.admin)]
    }

    /// Where a region's operators reach it.
    pub fn control(&self, ip: Ipv4Addr) -> String {
        self.control.unwrap_or_else(|| SocketAddr::from((ip, 0))).to_string()
    }
}

/// A region or a node, running or not. Dropping it ends it.
#[derive(Debug)]
pub struct Server {
    name: String,
    command: &'static str,
    folder: PathBuf,
    under: Vec<String>,
    binary: Option<PathBuf>,
    environment: Vec<(String, String)>,
    running: Option<Child>,
    ready: Ready,
}

impl Server {
    /// Writes a configuration, starts the process and waits until it listens; from then on it comes back where it was.
    pub async fn raise(
        name: String,
        command: &'static str,
        folder: PathBuf,
        spec: &Spec,
        config: impl Fn(Ready) -> Value,
    ) -> Result<Self> {
        std::fs::create_dir_all(&folder)?;
        let write = |ready: Ready| -> Result<()> {
            let mut config = config(ready);
            for (table, more) in &spec.config {
                config[*table] = more.clone();
            }
            Ok(std::fs::write(folder.join("config.toml"), toml::to_string(&config)?)?)
        };
        write(Ready::default())?;
        let mut server = Self {
            name,
            command,
            folder: folder.clone(),
            under: spec.under.clone(),
            binary: spec.binary.clone(),
            environment: spec.environment.clone(),
            running: None,
            ready: Ready::default(),
        };
        server.start().await?;
        // From here on it comes back where it was.
        write(server.ready)?;
        Ok(server)
    }

    /// Starts it, and waits until it listens.
    pub async fn start(&mut self) -> Result<()> {
        ensure!(self.running.is_none(), "{} runs already", self.name);
        let file = self.folder.join("ready.json");
        let _ = std::fs::remove_file(&file);
        let log = std::fs::File::options().create(true).append(true).open(self.log())?;
        let mut argv: Vec<_> = self.under.iter().map(Into::into).collect();
        argv.push(match &self.binary {
            Some(binary) => binary.as_os_str().to_owned(),
            None => souk().as_os_str().to_owned(),
        });
        let mut command = Command::new(&argv[0]);
        command
            .args(&argv[1..])
            .arg(self.command)
            .arg("--config")
            .arg(self.folder.join("config.toml"))
            .arg("--ready-file")
            .arg(&file)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let child = command.spawn().with_context(|| format!("start {}", self.name))?;
        self.running = Some(child);
        let began = Instant::now();
        loop {
            if let Some(ready) =
                std::fs::read(&file).ok().and_then(|text| serde_json::from_slice::<Ready>(&text).ok())
            {
                self.ready = ready;
                return Ok(());
            }
            if let Some(status) = self.ended()? {
                bail!("{} ended: {status}\n{}", self.name, self.last_words());
            }
            ensure!(began.elapsed() < STARTS_WITHIN, "{} did not come up\n{}", self.name, self.last_words());
            tokio::time::sleep(POLL).await;
        }
    }

    /// SIGKILL, and waits until the kernel has taken its files from it.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.running.take().with_context(|| format!("{} does not run", self.name))?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Stops it as a power failure does: from here on it says nothing more to anybody. What it has asked the kernel for may still
    /// be under way.
    pub fn freeze(&self) -> Result<()> {
        let pid = self.pid()?;
        kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGSTOP)?;
        let began = Instant::now();
        while !all_stopped(pid)? {
            ensure!(began.elapsed() < STARTS_WITHIN, "{} does not stop", self.name);
            std::thread::yield_now();
        }
        Ok(())
    }

    /// SIGTERM: it is to end in order.
    pub fn tell_to_stop(&self) -> Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.pid()?)?), Signal::SIGTERM)?)
    }

    /// Another process of the same node or region, not started yet: with the same data, on the same port for shoppers, and on one
    /// of its own for operators, who mean one process and no other.
    pub fn successor(&self) -> Result<Self> {
        let mut config: Value = toml::from_str(&std::fs::read_to_string(self.config())?)?;
        config["listen"]["http"] = json!(self.http()?);
        config["listen"]["admin"] = json!(SocketAddr::from((own_address(), 0)));
        std::fs::write(self.config(), toml::to_string(&config)?)?;
        Ok(Self {
            name: format!("{}, the next one", self.name),
            command: self.command,
            folder: self.folder.clone(),
            under: self.under.clone(),
            binary: self.binary.clone(),
            environment: self.environment.clone(),
            running: None,
            ready: Ready::default(),
        })
    }

    /// SIGKILL, in the middle of whatever it does. [`Self::kill`] then takes note of it.
    pub fn shoot(&self) -> Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.pid()?)?), Signal::SIGKILL)?)
    }

    /// Lets it go on after [`Self::freeze`].
    pub fn thaw(&self) -> Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.pid()?)?), Signal::SIGCONT)?)
    }

    /// How it has ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let Some(child) = &mut self.running else { return Ok(None) };
        let status = child.try_wait()?;
        if status.is_some() {
            self.running = None;
        }
        Ok(status)
    }

    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    pub fn pid(&self) -> Result<u32> {
        Ok(self.running.as_ref().with_context(|| format!("{} does not run", self.name))?.id())
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it runs under from its next start on.
    pub fn run_under(&mut self, under: Vec<String>) {
        self.under = under;
    }

    /// Which `souk` it is from its next start on; none: that of the tests.
    pub fn run_program(&mut self, binary: Option<PathBuf>) {
        self.binary = binary;
    }

    /// What it is started with.
    pub fn config(&self) -> PathBuf {
        self.folder.join("config.toml")
    }

    pub fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// The end of its log.
    pub fn last_words(&self) -> String {
        let text = std::fs::read(self.log()).unwrap_or_default();
        String::from_utf8_lossy(&text[text.len().saturating_sub(LAST_WORDS_BYTES)..]).into_owned()
    }

    /// Where shoppers reach it.
    pub fn http(&self) -> Result<SocketAddr> {
        self.ready.http.with_context(|| format!("{} has no door for shoppers", self.name))
    }

    /// Where its operators reach it.
    pub fn admin(&self) -> Result<SocketAddr> {
        let addr = if self.command == "region" { self.ready.control } else { self.ready.admin };
        addr.with_context(|| format!("{} has no door for operators", self.name))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.running.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The processes, and what is between them.
#[derive(Debug)]
pub struct Cluster {
    pub region: Server,
    pub nodes: Vec<Server>,
    relay: Option<Relay>,
    dir: TempDir,
}

impl Cluster {
    pub async fn raise(plan: Plan) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("souk-chaos-").tempdir()?;
        let count = u32::try_from(plan.nodes.len())?;
        let identity = Identity::create(dir.path(), count)?;
        let ip = own_address();
        let port = |known: Option<SocketAddr>| known.unwrap_or_else(|| SocketAddr::from((ip, 0))).to_string();
        let folder = dir.path().join("region");
        std::fs::create_dir_all(&folder)?;
        for (name, text) in &plan.files {
            std::fs::write(folder.join(name), text)?;
        }
        let data = |spec: &Spec, folder: &Path| spec.data.clone().unwrap_or_else(|| folder.join("data"));
        let region_data = data(&plan.region, &folder);
        let region = Server::raise("region".to_owned(), "region", folder, &plan.region, |ready| {
            json!({
                "region": { "name": REGION, "data_dir": region_data },
                "listen": { "link": port(ready.link), "control": port(ready.control) },
                "link": identity.region_link(),
                "control": identity.control(),
                "vault": identity.vault(),
                "log": { "filter": "warn" },
            })
        })
        .await?;
        let link = region.ready.link.context("the region says where its link is")?;
        let relay =
            plan.relay.map(|seed| Relay::seeded(SocketAddr::from((ip, 0)), link, seed)).transpose()?;
        let dial = relay.as_ref().map_or(link, Relay::local_addr).to_string();
        let mut nodes = Vec::new();
        for (id, spec) in (1_u32..).zip(&plan.nodes) {
            let name = format!("edge-{id}");
            let folder = dir.path().join(&name);
            let node_data = data(spec, &folder);
            let node = Server::raise(name, "edge", folder, spec, |ready| {
                json!({
                    "node": { "id": id, "pop": format!("pop{id}"), "region": REGION, "data_dir": node_data },
                    "listen": { "http": port(ready.http), "admin": port(ready.admin) },
                    "link": identity.node_link(id, &dial),
                    "log": { "filter": "warn" },
                })
            });
            nodes.push(node.await?);
        }
        Ok(Self { region, nodes, relay, dir })
    }

    /// Ends everything, and leaves the folder for whoever looks for the reason of a failure.
    pub fn keep(self) -> PathBuf {
        self.dir.keep()
    }

    /// What is between the nodes and the region.
    pub fn relay(&self) -> Result<&Relay> {
        self.relay.as_ref().context("this cluster was raised without a relay")
    }

    /// The operator at the region's control API.
    pub fn operator(&self) -> Result<Client> {
        Ok(Client::new(self.region.admin()?).with("authorization", &format!("Bearer {TOKEN}")))
    }

    /// Makes a shop that answers to a host, and waits until every node sells its products.
    pub async fn open_shop(&self, site: &str, host: &str, products: &Value) -> Result<()> {
        let operator = self.operator()?;
        let settings = json!({ "site": site, "hosts": [host], "currency": "GBP" });
        succeeded(&operator.put(&format!("/v1/sites/{site}"), settings).await?)?;
        let path = format!("/v1/sites/{site}/products");
        succeeded(&operator.post(&path, json!({ "products": products })).await?)?;
        for node in &self.nodes {
            let shopper = Client::new(node.http()?).with("host", host);
            for sku in products.as_array().into_iter().flatten().filter_map(|product| product["sku"].as_str())
            {
                let began = Instant::now();
                loop {
                    let answer = shopper.get(&format!("/api/products/{sku}")).await?;
                    if answer.status == 200 && answer.json()["price"].is_number() {
                        break;
                    }
                    let (name, said) = (node.name(), answer.text());
                    ensure!(began.elapsed() < STARTS_WITHIN, "{name} does not sell {sku}: {said}");
                    tokio::time::sleep(POLL).await;
                }
            }
        }
        Ok(())
    }
}

/// Whether each thread is stopped, or in a call of the kernel that cannot be interrupted, behind which it stops.
fn all_stopped(pid: u32) -> Result<bool> {
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread that has just ended says nothing either.
        let Ok(stat) = std::fs::read_to_string(task?.path().join("stat")) else { continue };
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        if !matches!(state, Some('T' | 'D')) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn succeeded(answer: &Answer) -> Result<()> {
    ensure!(answer.status.is_success(), "{}: {}", answer.status, answer.text());
    Ok(())
}

/// An address of this process's own, by its number (which has at most 22 bits), in a part of 127.0.0.0/8 that nobody uses.
pub fn own_address() -> Ipv4Addr {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 64 | (high & 0x3f), middle, low)
}
