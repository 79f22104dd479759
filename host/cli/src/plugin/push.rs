//! `souk plugin push`: brings a component to the region, and waits until the nodes have compiled it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use souk_commerce::id::{Digest, PluginName};

use super::release::{REFUSED_PATIENCE, ROLLOUT_WAIT, Shop, ShopArgs, WaitArgs, read};
use crate::control::ControlError;
use crate::failure::Usage;
use crate::terminal::{self, BOLD, DIM, GOOD, Step, WARN};

/// The region takes no larger component.
const COMPONENT_BYTES_MAX: u64 = 32 << 20;
/// How long the nodes are waited for, if nothing is said: twice what one may spend on compiling a component.
const WAIT: Duration = Duration::from_secs(120);

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  souk plugin push tea-week.wasm --plugin tea-week\n\n\
                        Nothing runs yet: `souk plugin deploy NAME` does that. Everything that is wrong with a component is\n\
                        said at once; what it can do is compared with the release that is active. It ends when every connected node\n\
                        has compiled it, so that a deploy takes milliseconds.")]
pub(crate) struct PushArgs {
    #[arg(value_name = "FILE.wasm")]
    file: PathBuf,
    /// The plugin's name [default: the file's]
    #[arg(long, value_name = "NAME")]
    plugin: Option<PluginName>,
    #[command(flatten)]
    wait: WaitArgs,
    #[command(flatten)]
    shop: ShopArgs,
}

#[derive(Debug, Deserialize)]
struct Pushed {
    bytes: u64,
    created: bool,
    component: Digest,
    capabilities: Capabilities,
    since: Option<Since>,
    changes: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Since {
    release: Option<u32>,
}

#[derive(Debug, Deserialize)]
struct Capabilities {
    imports: BTreeMap<String, Value>,
    hooks: Vec<String>,
    http: Option<String>,
}

pub(crate) async fn push(args: PushArgs) -> anyhow::Result<ExitCode> {
    let shop = args.shop.open()?;
    let plugin = match args.plugin {
        Some(plugin) => plugin,
        None => {
            let stem = args.file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            stem.parse().map_err(|e| Usage(format!("{e}; name the plugin with --plugin")))?
        }
    };
    let component = read(&args.file, COMPONENT_BYTES_MAX)?;
    let answer: Value = match shop.region.push_component(&shop.site, &plugin, component.into()).await {
        Ok(answer) => answer,
        Err(error) => return refused(&shop, error),
    };
    let pushed = Pushed::deserialize(&answer).context("understand the region's answer")?;
    if !shop.json {
        tell(&plugin, &pushed);
    }
    let nodes = match args.wait.patience(WAIT) {
        Some(patience) => until_all_ready(&shop, &plugin, pushed.component, patience).await?,
        None => None,
    };
    let all = nodes.as_ref().is_none_or(Ready::is_good);
    if shop.json {
        let mut answer = answer;
        answer["nodes"] = json!(nodes);
        terminal::json(&answer);
    } else {
        if let Some(ready) = &nodes {
            ready.tell();
        }
        anstream::println!("Run it with {BOLD}souk plugin deploy {plugin}{BOLD:#}");
    }
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn tell(plugin: &PluginName, pushed: &Pushed) {
    let known = if pushed.created { "" } else { ", as before" };
    anstream::println!(
        "{GOOD}{plugin}{GOOD:#} is at the region{known}: {} {DIM}sha256:{}{DIM:#}",
        terminal::size(pushed.bytes),
        pushed.component
    );
    let serves = match &pushed.capabilities.http {
        Some(version) => vec![format!("wasi:http {version}")],
        None => pushed.capabilities.hooks.clone(),
    };
    anstream::println!("  answers   {}", serves.join(", "));
    let imports: Vec<_> = pushed.capabilities.imports.keys().map(String::as_str).collect();
    anstream::println!(
        "  asks for  {}",
        if imports.is_empty() { "nothing".to_owned() } else { imports.join(", ") }
    );
    match (&pushed.since, pushed.changes.as_slice()) {
        (None, _) => {}
        (Some(since), changes) => {
            let since =
                since.release.map_or_else(|| "the push before".to_owned(), |n| format!("release {n}"));
            if changes.is_empty() {
                anstream::println!("  {DIM}it can do what {since} can{DIM:#}");
            }
            for change in changes {
                anstream::println!("  {WARN}since {since}{WARN:#} {change}");
            }
        }
    }
}

/// What the nodes have made of the component.
#[derive(Debug, Deserialize, Serialize)]
struct Ready {
    announced: bool,
    done: bool,
    nodes: Vec<NodeReady>,
}

#[derive(Debug, Deserialize, Serialize)]
struct NodeReady {
    node: u32,
    pop: String,
    state: Progress,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    after_ms: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum Progress {
    Compiled,
    Waiting,
    Failing,
    Refused,
    Silent,
    Away,
    /// What a newer region may say.
    #[serde(other)]
    Unknown,
}

impl Ready {
    /// Whether every node that could be waited for has compiled it.
    fn is_good(&self) -> bool {
        self.done && self.nodes.iter().all(|node| node.state != Progress::Refused)
    }

    fn open(&self) -> impl Iterator<Item = &NodeReady> {
        self.nodes.iter().filter(|node| matches!(node.state, Progress::Waiting | Progress::Failing))
    }

    fn tell(&self) {
        if !self.announced {
            anstream::println!(
                "  {WARN}the nodes were not told of it{WARN:#}: too many others wait to be deployed; they compile it at the deploy"
            );
        } else if self.nodes.iter().all(|node| node.state == Progress::Away) {
            anstream::println!("  {WARN}no node is connected{WARN:#}: each compiles it when it is");
        }
        for NodeReady { node, pop, state, after_ms, why } in &self.nodes {
            let why = why.as_deref().unwrap_or("it has not said why");
            match state {
                Progress::Compiled => {
                    let when = after_ms.map_or(" already".to_owned(), |ms| format!(" after {ms:.0} ms"));
                    anstream::println!("  {pop}/{node}  has compiled it{when}");
                }
                Progress::Waiting => anstream::println!("  {pop}/{node}  {WARN}is not done yet{WARN:#}"),
                Progress::Failing => {
                    anstream::println!("  {pop}/{node}  {WARN}cannot compile it yet{WARN:#}: {why}");
                }
                Progress::Refused => anstream::println!("  {pop}/{node}  {WARN}refuses it{WARN:#}: {why}"),
                Progress::Silent | Progress::Unknown => {
                    anstream::println!("  {pop}/{node}  {DIM}does not say what it has compiled{DIM:#}");
                }
                Progress::Away => {
                    anstream::println!(
                        "  {pop}/{node}  {WARN}is not connected{WARN:#}: it compiles it when it is"
                    );
                }
            }
        }
    }
}

async fn until_all_ready(
    shop: &Shop,
    plugin: &PluginName,
    component: Digest,
    patience: Duration,
) -> anyhow::Result<Option<Ready>> {
    let began = Instant::now();
    // It draws on a terminal only, and on standard error.
    let step = Step::start("the nodes compile it");
    loop {
        let left = patience.saturating_sub(began.elapsed());
        let asked = shop.region.ready(&shop.site, plugin, component, left.min(ROLLOUT_WAIT)).await;
        let ready: Ready = match asked {
            Ok(ready) => ready,
            // A region of a version that does not know.
            Err(error) if error.is_not_found() => {
                terminal::warn("the region is of a version that does not say which nodes are ready");
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let hopeless = ready.open().next().is_some()
            && ready.open().all(|node| node.state == Progress::Failing)
            && began.elapsed() >= REFUSED_PATIENCE;
        if ready.done || hopeless || began.elapsed() >= patience {
            return Ok(Some(ready));
        }
        let open: Vec<_> = ready.open().map(|node| format!("{}/{}", node.pop, node.node)).collect();
        step.note(format!("not yet: {}", open.join(", ")));
    }
}

/// Each complaint on a line of its own: a merchant mends them all before the next attempt.
fn refused(shop: &Shop, error: ControlError) -> anyhow::Result<ExitCode> {
    let ControlError::Refused { code, complaints, .. } = &error else { return Err(error.into()) };
    if complaints.is_empty() {
        return Err(error.into());
    }
    if shop.json {
        terminal::json(&json!({ "refused": true, "code": code, "complaints": complaints }));
        return Ok(ExitCode::FAILURE);
    }
    for complaint in complaints {
        anstream::eprintln!("{WARN}{}{WARN:#} {}", complaint.code, complaint.detail);
    }
    let reasons = if complaints.len() == 1 { "reason" } else { "reasons" };
    Err(anyhow::anyhow!("the component is refused for {} {reasons}", complaints.len()))
}
