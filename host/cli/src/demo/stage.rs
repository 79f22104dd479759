//! The running processes of a demo: a region, in one process or several over one database, two nodes, and a relay before
//! each process of the region where the link is to be cut.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use futures_util::future::BoxFuture;
use serde_json::json;
use souk_link::relay::Relay;
use tokio::sync::Mutex;

use super::child::{Running, Spec};
use super::identity::{Authority, Identity, OperatorToken, REGION, SERVER_NAME, SealFiles};
use super::{NODE_CONFIG, REGION_CONFIG};
use crate::failure::Usage;
use crate::replay::{Faults, NodeHandle};

/// Where the nodes of a demo pretend to stand, the first of them as a rule.
pub(crate) const POPS: [&str; 8] = ["lon", "par", "fra", "ams", "mad", "mil", "sto", "dub"];
const ANY_PORT: &str = "127.0.0.1:0";

/// What the processes are raised with.
pub(crate) struct Plan<'a> {
    pub(crate) folder: &'a Path,
    pub(crate) authority: &'a Authority,
    pub(crate) token: &'a OperatorToken,
    /// The nodes, by the place where each pretends to stand.
    pub(crate) pops: &'a [&'static str],
    pub(crate) http_base: Option<u16>,
    /// Processes of the region; more than one need a `store`.
    pub(crate) regions: usize,
    /// The address of a PostgreSQL; none: SQLite.
    pub(crate) store: Option<&'a str>,
    /// Put a relay between nodes and region.
    pub(crate) with_relay: bool,
    /// Filter of the processes' logs.
    pub(crate) log: &'a str,
    /// What else every node's settings say.
    pub(crate) node_settings: &'a toml::Table,
    /// What else the settings of each process of the region say.
    pub(crate) region_settings: &'a toml::Table,
}

/// Everything that runs. Dropping it ends the processes without ceremony; [`Processes::end`] ends them in order.
pub(crate) struct Processes {
    regions: Vec<RegionProcess>,
    nodes: Vec<Node>,
    /// Of the process of the region that nobody kills.
    pub(crate) control: SocketAddr,
    pub(crate) link: SocketAddr,
}

struct RegionProcess {
    /// None when it was killed, or while it is being restarted.
    running: Mutex<Option<Running>>,
    relay: Option<Relay>,
    link: SocketAddr,
    control: SocketAddr,
}

impl RegionProcess {
    /// Where nodes look for it.
    fn dialled(&self) -> SocketAddr {
        self.relay.as_ref().map_or(self.link, Relay::local_addr)
    }
}

struct Node {
    handle: NodeHandle,
    /// None while it is being restarted.
    running: Mutex<Option<Running>>,
}

impl Processes {
    pub(crate) async fn raise(plan: &Plan<'_>) -> anyhow::Result<Self> {
        let seal = plan.authority.seal()?;
        let identity = plan.authority.region()?;
        let mut regions = Vec::new();
        for number in 0..plan.regions.max(1) {
            regions.push(raise_region(plan, &seal, &identity, number).await?);
        }
        let mut dial: Vec<SocketAddr> = regions.iter().map(RegionProcess::dialled).collect();
        let mut nodes = Vec::new();
        for (i, pop) in (0_u16..).zip(plan.pops) {
            nodes.push(raise_node(plan, &seal, i, pop, &dial).await?);
            // Each node asks another process first, so that all have work.
            dial.rotate_left(1);
        }
        let last = regions.last().context("a demo has a region")?;
        let (control, link) = (last.control, last.link);
        Ok(Self { regions, nodes, control, link })
    }

    pub(crate) fn handles(&self) -> Vec<NodeHandle> {
        self.nodes.iter().map(|node| node.handle.clone()).collect()
    }

    /// Waits until a process ends that nobody ended, and says with what words.
    pub(crate) async fn until_one_fails(&self) -> String {
        loop {
            let regions = self.regions.iter().map(|region| &region.running);
            let all = regions.chain(self.nodes.iter().map(|node| &node.running));
            for process in all {
                // A node that is being restarted is not failing: its lock is held until it listens again.
                if let Ok(mut running) = process.try_lock()
                    && let Some(words) = running.as_mut().and_then(Running::failure)
                {
                    return words;
                }
            }
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    }

    /// Nodes first, so that they can still tell the region what they have; then the region. Answers who had to be
    /// killed.
    pub(crate) async fn end(&self) -> Vec<String> {
        let nodes =
            futures_util::future::join_all(self.nodes.iter().map(|node| end_one(&node.running))).await;
        let regions = self.regions.iter().map(|region| end_one(&region.running));
        let regions = futures_util::future::join_all(regions).await;
        nodes.into_iter().chain(regions).flatten().collect()
    }
}

/// The process's name if it had to be killed.
async fn end_one(process: &Mutex<Option<Running>>) -> Option<String> {
    let running = process.lock().await.take()?;
    let name = running.spec().name.clone();
    if running.end().await { None } else { Some(name) }
}

fn start_relay(region: SocketAddr) -> anyhow::Result<Relay> {
    let any = ANY_PORT.parse().expect("the loopback address with port 0 is an address");
    Relay::start(any, region).context("start the relay between nodes and region")
}

async fn raise_region(
    plan: &Plan<'_>,
    seal: &SealFiles,
    identity: &Identity,
    number: usize,
) -> anyhow::Result<RegionProcess> {
    let name = if number == 0 { "region".to_owned() } else { format!("region-{}", number + 1) };
    let folder = plan.folder.join(&name);
    if plan.regions > 1 {
        share_blobs(plan.folder, &folder.join("data"))?;
    }
    let config_with = |link: String, control: String| {
        let mut config = json!({
            "region": { "name": REGION, "data_dir": "data" },
            "listen": { "link": link, "control": control },
            "link": tls(identity),
            "control": { "operator_token_sha256": plan.token.sha256(), "seal_key": seal.private },
            "vault": { "key_file": seal.vault },
            "log": { "format": "text", "filter": plan.log },
        });
        if let Some(url) = plan.store {
            config["store"] = json!({ "engine": "postgres", "url": url });
        }
        with_settings(config, plan.region_settings, REGION_CONFIG)
    };
    let config = write_config(&folder, &config_with(ANY_PORT.to_owned(), ANY_PORT.to_owned())?)?;
    let spec = Spec { name, command: "region", config, folder: folder.clone() };
    let (running, ready) = spec.start().await?;
    let link = ready.link.context("the region's ready file names its link address")?;
    let control = ready.control.context("the region's ready file names its control address")?;
    // From here on the ports are fixed: a process that is killed comes back where its nodes look for it.
    write_config(&folder, &config_with(link.to_string(), control.to_string())?)?;
    let relay = if plan.with_relay { Some(start_relay(link)?) } else { None };
    Ok(RegionProcess { running: Mutex::new(Some(running)), relay, link, control })
}

/// One folder of blobs for all processes of the region: what a shared file system is elsewhere.
fn share_blobs(folder: &Path, data: &Path) -> anyhow::Result<()> {
    let blobs = folder.join("blobs");
    for folder in [&blobs, data] {
        std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    std::os::unix::fs::symlink(&blobs, data.join("blobs")).context("share the folder of blobs")
}

async fn raise_node(
    plan: &Plan<'_>,
    seal: &SealFiles,
    i: u16,
    pop: &str,
    dial: &[SocketAddr],
) -> anyhow::Result<Node> {
    let id = u32::from(i) + 1;
    let name = format!("edge-{pop}");
    let folder = plan.folder.join(&name);
    let identity = plan.authority.node(id)?;
    let ports = u16::try_from(plan.pops.len()).expect("a machine has a handful of nodes");
    let asked = |offset: u16| plan.http_base.map_or(0, |base| base + offset);
    let region = |addr: &SocketAddr| json!({ "addr": addr.to_string(), "server_name": SERVER_NAME });
    let regions: Vec<_> = dial.iter().map(region).collect();
    let config_with = |http: SocketAddr, admin: SocketAddr| {
        let own = json!({
            "node": { "id": id, "pop": pop, "region": REGION, "data_dir": "data" },
            "listen": { "http": http.to_string(), "admin": admin.to_string() },
            "link": {
                "regions": regions,
                "ca": identity.ca, "cert": identity.cert, "key": identity.key,
                "seal_keys": [seal.public],
            },
            "log": { "format": "text", "filter": plan.log },
        });
        with_settings(own, plan.node_settings, NODE_CONFIG)
    };
    let local = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    let config = write_config(&folder, &config_with(local(asked(i)), local(asked(ports + i)))?)?;
    let (running, ready) =
        Spec { name: name.clone(), command: "edge", config, folder: folder.clone() }.start().await?;
    let http = ready.http.with_context(|| format!("the ready file of {name} names its HTTP address"))?;
    let admin = ready.admin.with_context(|| format!("the ready file of {name} names its admin address"))?;
    // From here on the ports are fixed: a node that is killed comes back where its shoppers look for it.
    write_config(&folder, &config_with(http, admin)?)?;
    let handle = NodeHandle { name, pop: pop.to_owned(), http, admin };
    Ok(Node { handle, running: Mutex::new(Some(running)) })
}

/// The demo's own settings of a process, with those that somebody adds by `option`. What the demo sets is its own.
fn with_settings(
    mut own: serde_json::Value,
    added: &toml::Table,
    option: &str,
) -> anyhow::Result<serde_json::Value> {
    for (name, table) in added {
        let table = serde_json::to_value(table).with_context(|| format!("read [{name}] of {option}"))?;
        match &mut own[name.as_str()] {
            free if free.is_null() => *free = table,
            _ => {
                let why = format!("{option} has [{name}], which the demo sets itself: leave it out");
                return Err(Usage(why).into());
            }
        }
    }
    Ok(own)
}

fn tls(identity: &Identity) -> serde_json::Value {
    json!({ "ca": identity.ca, "cert": identity.cert, "key": identity.key })
}

fn write_config(folder: &Path, config: &serde_json::Value) -> anyhow::Result<PathBuf> {
    std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let file = folder.join("config.toml");
    let text = toml::to_string(config).context("write a configuration as TOML")?;
    std::fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
    Ok(file)
}

/// What the replay may do to the processes.
#[derive(Clone)]
pub(crate) struct StageFaults(pub(crate) Arc<Processes>);

impl Faults for StageFaults {
    fn kill_and_restart<'a>(&'a self, node: &'a str) -> BoxFuture<'a, anyhow::Result<()>> {
        Box::pin(async move {
            let found = self.0.nodes.iter().find(|n| n.handle.name == node);
            let Some(found) = found else { bail!("no node is called {node}") };
            let mut slot = found.running.lock().await;
            let running = slot.take().with_context(|| format!("{node} does not run"))?;
            let spec = running.kill().await?;
            let (running, _) = spec.start().await.with_context(|| format!("restart {node}"))?;
            *slot = Some(running);
            Ok(())
        })
    }

    fn kill_region(&self) -> BoxFuture<'_, anyhow::Result<()>> {
        Box::pin(async {
            // Never the last: it is the one whose control API is asked.
            let victim = &self.0.regions[0];
            let mut slot = victim.running.lock().await;
            let spec = slot.take().context("the region does not run")?.kill().await?;
            if self.0.regions.len() == 1 {
                let (running, _) = spec.start().await.context("restart the region")?;
                *slot = Some(running);
            }
            Ok(())
        })
    }

    fn cut(&self) -> BoxFuture<'_, anyhow::Result<()>> {
        Box::pin(async { self.relays(Relay::cut) })
    }

    fn heal(&self) -> BoxFuture<'_, anyhow::Result<()>> {
        Box::pin(async { self.relays(Relay::heal) })
    }
}

impl StageFaults {
    fn relays(&self, act: impl Fn(&Relay)) -> anyhow::Result<()> {
        for region in &self.0.regions {
            act(region.relay.as_ref().context("the link can be cut only with --cut-region")?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_added_and_none_of_the_demos_is_changed() {
        let own = json!({"node": {"id": 1}, "log": {"filter": "info"}});
        let read = |text: &str| text.parse::<toml::Table>().expect("TOML");
        let more = read("[[upstreams]]\nsite = \"shop\"\nservers = [\"http://a\"]");
        let both = with_settings(own.clone(), &more, NODE_CONFIG).expect("added");
        assert_eq!((&both["node"], &both["upstreams"][0]["site"]), (&own["node"], &json!("shop")));
        let logs = read("[log]\nfilter = \"debug\"");
        let refused = with_settings(own, &logs, REGION_CONFIG).expect_err("the demo's own");
        assert!(refused.to_string().contains("--region-config has [log]"), "{refused}");
    }
}
