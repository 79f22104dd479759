//! The running processes of a demo: one region, two nodes, and a relay between them where the link is to be cut.

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
use crate::failure::Usage;
use crate::process::Ready;
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
    /// Put a relay between nodes and region.
    pub(crate) with_relay: bool,
    /// Filter of the processes' logs.
    pub(crate) log: &'a str,
    /// What else every node's settings say.
    pub(crate) settings: &'a toml::Table,
}

/// Everything that runs. Dropping it ends the processes without ceremony; [`Processes::end`] ends them in order.
pub(crate) struct Processes {
    region: Mutex<Option<Running>>,
    nodes: Vec<Node>,
    relay: Option<Relay>,
    pub(crate) control: SocketAddr,
    pub(crate) link: SocketAddr,
}

struct Node {
    handle: NodeHandle,
    /// None while it is being restarted.
    running: Mutex<Option<Running>>,
}

impl Processes {
    pub(crate) async fn raise(plan: &Plan<'_>) -> anyhow::Result<Self> {
        let seal = plan.authority.seal()?;
        let (region, ready) = raise_region(plan, &seal).await?;
        let link = ready.link.context("the region's ready file names its link address")?;
        let control = ready.control.context("the region's ready file names its control address")?;
        let relay = if plan.with_relay { Some(start_relay(link)?) } else { None };
        let dial = relay.as_ref().map_or(link, Relay::local_addr);
        let mut nodes = Vec::new();
        for (i, pop) in (0_u16..).zip(plan.pops) {
            nodes.push(raise_node(plan, &seal, i, pop, dial).await?);
        }
        Ok(Self { region: Mutex::new(Some(region)), nodes, relay, control, link })
    }

    pub(crate) fn handles(&self) -> Vec<NodeHandle> {
        self.nodes.iter().map(|node| node.handle.clone()).collect()
    }

    /// Waits until a process ends that nobody ended, and says with what words.
    pub(crate) async fn until_one_fails(&self) -> String {
        loop {
            let all = std::iter::once(&self.region).chain(self.nodes.iter().map(|node| &node.running));
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
        let region = end_one(&self.region).await;
        nodes.into_iter().chain([region]).flatten().collect()
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

async fn raise_region(plan: &Plan<'_>, seal: &SealFiles) -> anyhow::Result<(Running, Ready)> {
    let folder = plan.folder.join("region");
    let identity = plan.authority.region()?;
    let config = write_config(
        &folder,
        &json!({
            "region": { "name": REGION, "data_dir": "data" },
            "listen": { "link": ANY_PORT, "control": ANY_PORT },
            "link": tls(&identity),
            "control": { "operator_token_sha256": plan.token.sha256(), "seal_key": seal.private },
            "vault": { "key_file": seal.vault },
            "log": { "format": "text", "filter": plan.log },
        }),
    )?;
    Spec { name: "region".to_owned(), command: "region", config, folder }.start().await
}

async fn raise_node(
    plan: &Plan<'_>,
    seal: &SealFiles,
    i: u16,
    pop: &str,
    dial: SocketAddr,
) -> anyhow::Result<Node> {
    let id = u32::from(i) + 1;
    let name = format!("edge-{pop}");
    let folder = plan.folder.join(&name);
    let identity = plan.authority.node(id)?;
    let ports = u16::try_from(plan.pops.len()).expect("a machine has a handful of nodes");
    let asked = |offset: u16| plan.http_base.map_or(0, |base| base + offset);
    let config_with = |http: SocketAddr, admin: SocketAddr| {
        let own = json!({
            "node": { "id": id, "pop": pop, "region": REGION, "data_dir": "data" },
            "listen": { "http": http.to_string(), "admin": admin.to_string() },
            "link": {
                "regions": [{ "addr": dial.to_string(), "server_name": SERVER_NAME }],
                "ca": identity.ca, "cert": identity.cert, "key": identity.key,
                "seal_keys": [seal.public],
            },
            "log": { "format": "text", "filter": plan.log },
        });
        with_settings(own, plan.settings)
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

/// The demo's own settings of a node, with those that somebody adds. What the demo sets is its own.
fn with_settings(mut own: serde_json::Value, added: &toml::Table) -> anyhow::Result<serde_json::Value> {
    for (name, table) in added {
        let table = serde_json::to_value(table).with_context(|| format!("read [{name}] of --node-config"))?;
        match &mut own[name.as_str()] {
            free if free.is_null() => *free = table,
            _ => {
                let why = format!("--node-config has [{name}], which the demo sets itself: leave it out");
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

    fn cut(&self) -> BoxFuture<'_, anyhow::Result<()>> {
        Box::pin(async { self.relay().map(Relay::cut) })
    }

    fn heal(&self) -> BoxFuture<'_, anyhow::Result<()>> {
        Box::pin(async { self.relay().map(Relay::heal) })
    }
}

impl StageFaults {
    fn relay(&self) -> anyhow::Result<&Relay> {
        self.0.relay.as_ref().context("the link can be cut only with --cut-region")
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
        let both = with_settings(own.clone(), &more).expect("added");
        assert_eq!((&both["node"], &both["upstreams"][0]["site"]), (&own["node"], &json!("shop")));
        let refused = with_settings(own, &read("[log]\nfilter = \"debug\"")).expect_err("the demo's own");
        assert!(refused.to_string().contains("[log]"), "{refused}");
    }
}
