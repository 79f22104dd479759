//! A region and nodes as an operator starts them, from configuration files: without the demo's shop and plugins, with TLS
//! for shoppers, and ended or started again by the test.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rcgen::{KeyPair, PublicKeyData as _};
use rustls::pki_types::{CertificateDer, ServerName};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use souk_link::relay::Relay;
use tokio::net::TcpStream;

use crate::http::{Answer, Client};
use crate::identity::{Identity, REGION, TOKEN, params};
use crate::souk;

const DAY: Duration = Duration::from_secs(24 * 3_600);
const STARTS_WITHIN: Duration = Duration::from_secs(60);

/// What a process says when it listens.
#[derive(Debug, Clone, Copy, Deserialize)]
struct Ready {
    http: Option<SocketAddr>,
    https: Option<SocketAddr>,
    admin: Option<SocketAddr>,
    link: Option<SocketAddr>,
    control: Option<SocketAddr>,
}

/// Names of the nodes' settings, folders and logs.
const NODES: [&str; 2] = ["edge", "second"];

/// A process that ends when this is dropped.
struct Process(Child);

impl Process {
    fn end(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// A region, in one process or several, and a node, or two. Dropping it ends all.
pub struct Stage {
    node: Option<Process>,
    second: Option<(Process, Ready)>,
    regions: Vec<RegionProcess>,
    ready: Ready,
    certificate: CertificateDer<'static>,
    /// SHA-256 of its key, as browsers pin it.
    pin: String,
    dir: tempfile::TempDir,
}

struct RegionProcess {
    name: String,
    /// Gone once it was killed.
    process: Mutex<Option<Process>>,
    /// What is between the nodes and it, and can be cut.
    relay: Relay,
    link: SocketAddr,
    control: SocketAddr,
}

/// What there is beside the usual.
struct Plan {
    has_second_node: bool,
    /// `[store]` of the region; none: SQLite.
    store: Option<Value>,
    processes: usize,
    /// `[limits]` of the region.
    limits: Value,
}

impl Default for Plan {
    fn default() -> Self {
        Self { has_second_node: false, store: None, processes: 1, limits: json!({}) }
    }
}

impl Stage {
    /// `hosts`: what the certificate for shoppers is for.
    pub async fn raise(hosts: &[&str]) -> Result<Self> {
        Self::raise_with(hosts, Plan::default()).await
    }

    /// A region and two nodes.
    pub async fn raise_pair(hosts: &[&str]) -> Result<Self> {
        Self::raise_with(hosts, Plan { has_second_node: true, ..Plan::default() }).await
    }

    /// The same, with `[limits]` of the region's.
    pub async fn raise_pair_under(hosts: &[&str], limits: Value) -> Result<Self> {
        Self::raise_with(hosts, Plan { has_second_node: true, limits, ..Plan::default() }).await
    }

    /// A region in so many processes over one `[store]`, and two nodes: the first asks the first process before the others,
    /// the second the last.
    pub async fn raise_over(hosts: &[&str], store: Value, processes: usize) -> Result<Self> {
        let plan = Plan { has_second_node: true, store: Some(store), processes, ..Plan::default() };
        Self::raise_with(hosts, plan).await
    }

    async fn raise_with(hosts: &[&str], plan: Plan) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("souk-test-").tempdir()?;
        let at = |name: &str| dir.path().join(name);
        let identity = Identity::create(dir.path(), 2)?;
        let shown = KeyPair::generate()?;
        let certificate = params(hosts, DAY)?.self_signed(&shown)?;
        let pin = Sha256::digest(shown.subject_public_key_info());
        let pin = base64::engine::general_purpose::STANDARD.encode(pin);
        std::fs::write(at("shop.pem"), certificate.pem())?;
        std::fs::write(at("shop.key"), shown.serialize_pem())?;

        let mut regions = Vec::with_capacity(plan.processes);
        for number in 0..plan.processes {
            let name = if number == 0 { "region".to_owned() } else { format!("region-{number}") };
            regions.push(raise_region(dir.path(), name, &identity, &plan).await?);
        }
        let mut dialled: Vec<String> = regions.iter().map(|r| r.relay.local_addr().to_string()).collect();
        for (id, name) in [1, 2].into_iter().zip(NODES) {
            write_config(
                dir.path(),
                name,
                &json!({
                    "node": { "id": id, "pop": "test", "region": REGION, "data_dir": at(&format!("{name}.data")) },
                    "listen": {
                        "http": "127.0.0.1:0",
                        "admin": "127.0.0.1:0",
                        "https": { "addr": "127.0.0.1:0", "cert": at("shop.pem"), "key": at("shop.key") },
                    },
                    "link": identity.node_link_to(id, &dialled),
                    "log": { "filter": "warn" },
                }),
            )?;
            dialled.reverse();
        }
        let (node, ready) = start(dir.path(), "edge", "edge").await?;
        let second =
            if plan.has_second_node { Some(start(dir.path(), "edge", "second").await?) } else { None };
        let certificate = certificate.der().clone();
        Ok(Self { node: Some(node), second, regions, ready, certificate, pin, dir })
    }

    /// Kills the node and starts it again with what it has on the disk; it listens elsewhere then.
    pub async fn restart_node(&mut self) -> Result<()> {
        self.node = None;
        let (node, ready) = start(self.dir.path(), "edge", "edge").await?;
        (self.node, self.ready) = (Some(node), ready);
        Ok(())
    }

    /// Kills the first node (0) or the second.
    pub fn kill_node(&mut self, node: usize) {
        match node {
            0 => self.node = None,
            _ => {
                if let Some((process, _)) = &mut self.second {
                    process.end();
                }
            }
        }
    }

    /// Starts it again with what is in its folder; it listens elsewhere then.
    pub async fn start_node(&mut self, node: usize) -> Result<()> {
        let (process, ready) = start(self.dir.path(), "edge", NODES[node]).await?;
        match node {
            0 => (self.node, self.ready) = (Some(process), ready),
            _ => self.second = Some((process, ready)),
        }
        Ok(())
    }

    /// Where a node keeps what it has.
    pub fn node_dir(&self, node: usize) -> PathBuf {
        self.dir.path().join(format!("{}.data", NODES[node]))
    }

    /// A node's own words to operators.
    pub async fn admin_at(&self, node: usize, path: &str) -> Result<Answer> {
        let admin = self.ready_of(node)?.admin.context("the node says where its admin port is")?;
        Client::new(admin).get(path).await
    }

    /// The node's TLS door.
    pub fn https(&self) -> Result<SocketAddr> {
        self.ready.https.context("the node says where it listens with TLS")
    }

    /// By which a browser knows the node's key, which no authority vouches for.
    pub fn pin(&self) -> &str {
        &self.pin
    }

    /// A shopper of a shop without TLS.
    pub fn in_clear(&self, host: &str) -> Result<Client> {
        let addr = self.ready.http.context("the node says where it listens")?;
        Ok(Client::new(addr).with("host", host))
    }

    /// Loses every datagram between the nodes and the region from now on.
    pub fn cut(&self) {
        self.regions.iter().for_each(|region| region.relay.cut());
    }

    /// Carries them again.
    pub fn heal(&self) {
        self.regions.iter().for_each(|region| region.relay.heal());
    }

    /// Kills a process of the region, the first being 0. To the nodes it is silent from then on.
    pub fn kill_region(&self, number: usize) {
        drop(self.regions[number].process.lock().take());
    }

    /// Starts a process of the region that was killed with what it has on the disk; its control API listens elsewhere then,
    /// and nodes find it where it was.
    pub async fn restart_region(&mut self, number: usize) -> Result<()> {
        let before = &self.regions[number];
        let (name, link) = (before.name.clone(), before.link);
        let config = self.dir.path().join(format!("{name}.toml"));
        let text = std::fs::read_to_string(&config)?;
        let mut fixed: toml::Table = text.parse()?;
        fixed["listen"]["link"] = toml::Value::String(link.to_string());
        std::fs::write(&config, toml::to_string(&fixed)?)?;
        let (process, ready) = start(self.dir.path(), "region", &name).await?;
        let region = &mut self.regions[number];
        *region.process.lock() = Some(process);
        region.control = ready.control.context("the region says where its control API is")?;
        Ok(())
    }

    /// The address under which a node knows a process of the region.
    pub fn dialled(&self, number: usize) -> SocketAddr {
        self.regions[number].relay.local_addr()
    }

    /// A shopper of a shop without TLS, at the first node (0) or the second.
    pub fn shopper_at(&self, node: usize, host: &str) -> Result<Client> {
        let addr = self.ready_of(node)?.http.context("the node says where it listens")?;
        Ok(Client::new(addr).with("host", host))
    }

    /// The operator at the region's control API.
    pub fn operator(&self) -> Client {
        self.operator_at(0)
    }

    /// The same of a process of the region.
    pub fn operator_at(&self, number: usize) -> Client {
        Client::new(self.regions[number].control).with("authorization", &format!("Bearer {TOKEN}"))
    }

    /// What the first node (0) or the second says of itself.
    pub async fn status_of(&self, node: usize) -> Result<Value> {
        let admin = self.ready_of(node)?.admin.context("the node says where its admin port is")?;
        Ok(Client::new(admin).get("/v1/status").await?.json())
    }

    fn ready_of(&self, node: usize) -> Result<Ready> {
        match node {
            0 => Ok(self.ready),
            _ => self.second.as_ref().map(|(_, ready)| *ready).context("there is one node only"),
        }
    }

    /// The value of a metric of the node, by its line up to the value; 0 while it is not there.
    pub async fn metric(&self, line: &str) -> Result<u64> {
        self.metric_at(0, line).await
    }

    /// The same of the first node (0) or the second.
    pub async fn metric_at(&self, node: usize, line: &str) -> Result<u64> {
        let admin = self.ready_of(node)?.admin.context("the node says where its admin port is")?;
        let admin = Client::new(admin);
        let page = admin.get("/metrics").await?.text();
        let value = page
            .lines()
            .find_map(|l| l.strip_prefix(line))
            .map_or(Ok(0.0), |rest| rest.trim().parse::<f64>())?;
        Ok(value as u64)
    }

    /// Makes a site that answers to a host.
    pub async fn open_site(&self, site: &str, host: &str) -> Result<()> {
        let operator = self.operator();
        let settings: Value = json!({ "site": site, "hosts": [host], "currency": "GBP" });
        let answer = operator.put(&format!("/v1/sites/{site}"), settings).await?;
        ensure!(answer.status.is_success(), "{}: {}", answer.status, answer.text());
        Ok(())
    }

    /// `souk site push` of a folder with these files.
    pub async fn push(&self, site: &str, files: &[(&str, &[u8])]) -> Result<()> {
        let folder = tempfile::tempdir_in(self.dir.path())?;
        for (path, content) in files {
            let file = folder.path().join(path.trim_start_matches('/'));
            std::fs::create_dir_all(file.parent().context("a file is in a folder")?)?;
            std::fs::write(file, content)?;
        }
        let mut push = Command::new(souk());
        push.args(["site", "push"])
            .arg(folder.path())
            .args(["--site", site, "--token", TOKEN, "--region"])
            .arg(format!("http://{}", self.regions[0].control))
            .stdin(Stdio::null());
        let pushed = tokio::task::spawn_blocking(move || push.output()).await??;
        ensure!(pushed.status.success(), "{}", String::from_utf8_lossy(&pushed.stderr));
        Ok(())
    }

    /// A question by TLS, on a connection of its own.
    pub async fn ask(&self, host: &str, path: &str, fields: &[(&str, &str)]) -> Result<Answer> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.certificate.clone())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let tcp = TcpStream::connect(self.https()?).await?;
        let name = ServerName::try_from(host.to_owned())?;
        let tls = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
        let (mut send, connection) = http1::handshake(TokioIo::new(tls)).await?;
        tokio::spawn(connection);
        let mut request = Request::get(path).header(header::HOST, host).header(header::CONNECTION, "close");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let (head, body) = send.send_request(request.body(Empty::<Bytes>::new())?).await?.into_parts();
        Ok(Answer { status: head.status, headers: head.headers, body: body.collect().await?.to_bytes() })
    }
}

async fn raise_region(dir: &Path, name: String, identity: &Identity, plan: &Plan) -> Result<RegionProcess> {
    let data = dir.join(format!("{name}.data"));
    let mut config = json!({
        "region": { "name": REGION, "data_dir": data },
        "listen": { "link": "127.0.0.1:0", "control": "127.0.0.1:0" },
        "link": identity.region_link(),
        "control": identity.control(),
        "vault": identity.vault(),
        "limits": plan.limits,
        "log": { "filter": "warn" },
    });
    if let Some(store) = &plan.store {
        config["store"] = store.clone();
        // One folder of blobs for all, as a shared file system would be.
        let blobs = dir.join("blobs");
        std::fs::create_dir_all(&blobs)?;
        std::fs::create_dir_all(&data)?;
        std::os::unix::fs::symlink(&blobs, data.join("blobs"))?;
    }
    write_config(dir, &name, &config)?;
    let (process, ready) = start(dir, "region", &name).await?;
    let link = ready.link.context("the region says where its link is")?;
    let control = ready.control.context("the region says where its control API is")?;
    let relay = Relay::start("127.0.0.1:0".parse()?, link)?;
    Ok(RegionProcess { name, process: Mutex::new(Some(process)), relay, link, control })
}

fn write_config(dir: &Path, name: &str, config: &Value) -> Result<()> {
    std::fs::write(dir.join(format!("{name}.toml")), toml::to_string(config)?)?;
    Ok(())
}

async fn start(dir: &Path, command: &str, name: &str) -> Result<(Process, Ready)> {
    let ready: PathBuf = dir.join(format!("{name}.ready"));
    let _ = std::fs::remove_file(&ready);
    let log = std::fs::File::options().create(true).append(true).open(dir.join(format!("{name}.log")))?;
    let child = Command::new(souk())
        .arg(command)
        .arg("--config")
        .arg(dir.join(format!("{name}.toml")))
        .arg("--ready-file")
        .arg(&ready)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .with_context(|| format!("start `souk {command}`"))?;
    let mut process = Process(child);
    let began = Instant::now();
    loop {
        if let Some(ready) = std::fs::read(&ready).ok().and_then(|text| serde_json::from_slice(&text).ok()) {
            return Ok((process, ready));
        }
        if let Some(status) = process.0.try_wait()? {
            let log = std::fs::read_to_string(dir.join(format!("{name}.log"))).unwrap_or_default();
            bail!("`souk {command}` ended: {status}\n{log}");
        }
        ensure!(began.elapsed() < STARTS_WITHIN, "`souk {command}` did not come up");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
