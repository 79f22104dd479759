//! `souk plugin deploy`, `releases`, `rollback`, `remove`: a release's way to every node, and back. [`super::push`] is what
//! comes before.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use souk_commerce::id::{Digest, PluginName, SiteId};
use souk_commerce::site::{Grants, OnFault};
use url::Url;

use crate::control::RegionClient;
use crate::failure::Usage;
use crate::terminal::{self, DIM, GOOD, WARN};

/// How long a deploy waits for the nodes, if nothing is said.
const WAIT: Duration = Duration::from_secs(30);
const SETTINGS_BYTES_MAX: u64 = 64 << 10;
/// How long one question for the nodes waits at the region.
pub(crate) const ROLLOUT_WAIT: Duration = Duration::from_secs(5);
/// Nodes that say they cannot run the release are not waited for longer than this.
pub(super) const REFUSED_PATIENCE: Duration = Duration::from_secs(3);

/// Where the shop is, and who asks.
#[derive(Debug, Clone, Args)]
pub(crate) struct ShopArgs {
    /// The region's control address, such as http://127.0.0.1:7080
    #[arg(long, global = true, value_name = "URL", env = "SOUK_REGION")]
    region: Option<Url>,
    /// A token of the site
    #[arg(long, global = true, value_name = "TOKEN", env = "SOUK_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// The shop
    #[arg(long, global = true, value_name = "SITE", env = "SOUK_SITE")]
    site: Option<SiteId>,
    /// Print one JSON object instead of text
    #[arg(long, global = true)]
    json: bool,
}

/// A shop at its region.
pub(crate) struct Shop {
    pub(crate) region: RegionClient,
    pub(crate) site: SiteId,
    pub(crate) json: bool,
}

impl ShopArgs {
    pub(crate) fn open(self) -> anyhow::Result<Shop> {
        let missing = |what: &str| Usage(what.to_owned());
        let site = self.site.ok_or_else(|| missing("say which shop with --site or SOUK_SITE"))?;
        let url =
            self.region.ok_or_else(|| missing("say where the region is with --region or SOUK_REGION"))?;
        let token = self.token.ok_or_else(|| missing("give a token with SOUK_TOKEN or --token"))?;
        let region = RegionClient::new(&url, &token).map_err(Usage)?;
        Ok(Shop { region, site, json: self.json })
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  souk plugin deploy tea-week\n  \
                        souk plugin deploy tea-week --settings tea-week.json --on-fault closed\n  \
                        souk plugin deploy tea-week --release 3\n  \
                        souk plugin deploy reviews --route /reviews --allow-host api.example.com\n\n\
                        Without --release it makes a new release of the component that was pushed last; what is not named\n\
                        stays as it is in the release that is active. It ends when every connected node runs it.")]
pub(crate) struct DeployArgs {
    #[arg(value_name = "PLUGIN")]
    plugin: PluginName,
    /// A release that there is, as it is
    #[arg(long, value_name = "NUMBER", conflicts_with_all = [
        "component", "settings", "on_fault", "allow_host", "env", "config", "route", "reuse", "record",
    ])]
    release: Option<u32>,
    /// The SHA-256 of another component than the one pushed last
    #[arg(long, value_name = "SHA256")]
    component: Option<Digest>,
    /// The plugin's settings
    #[arg(long, value_name = "FILE.json")]
    settings: Option<PathBuf>,
    /// When the plugin fails: go on without it, or refuse the call
    #[arg(long, value_enum, value_name = "WHAT")]
    on_fault: Option<OnFaultChoice>,
    /// Place in the chain, from 0
    #[arg(long, value_name = "N")]
    position: Option<usize>,
    /// Let an HTTP plugin send requests to HOST: api.example.com, api.example.com:8443 or http://api.example.com
    #[arg(long, value_name = "HOST")]
    allow_host: Vec<String>,
    /// A variable of its environment
    #[arg(long, value_name = "NAME=VALUE", value_parser = name_and_value)]
    env: Vec<(String, String)>,
    /// A value of its wasi:config
    #[arg(long, value_name = "KEY=VALUE", value_parser = name_and_value)]
    config: Vec<(String, String)>,
    /// The path prefix under which an HTTP plugin answers
    #[arg(long, value_name = "PATH")]
    route: Option<String>,
    /// Let one instance of an HTTP plugin serve N requests, one after the other
    #[arg(long, value_name = "N")]
    reuse: Option<u32>,
    /// Record this many of 10,000 calls, for `souk plugin replay`
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=10_000))]
    record: Option<u16>,
    #[command(flatten)]
    wait: WaitArgs,
    #[command(flatten)]
    shop: ShopArgs,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum OnFaultChoice {
    Open,
    Closed,
}

#[derive(Debug, Args)]
pub(crate) struct WaitArgs {
    /// Wait until every connected node is ready; the default
    #[arg(long, overrides_with = "no_wait")]
    wait: bool,
    /// Do not wait for the nodes
    #[arg(long)]
    no_wait: bool,
    /// How long to wait for them, in seconds [default: 30, and 120 for a push]
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
}

impl WaitArgs {
    /// How long to wait for the nodes; none: not at all.
    pub(super) fn patience(&self, unless_said: Duration) -> Option<Duration> {
        (!self.no_wait).then(|| self.timeout.map_or(unless_said, Duration::from_secs))
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  souk plugin releases\n  souk plugin releases tea-week --json")]
pub(crate) struct ReleasesArgs {
    /// Only of this plugin
    #[arg(value_name = "PLUGIN")]
    plugin: Option<PluginName>,
    #[command(flatten)]
    shop: ShopArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  souk plugin rollback tea-week\n\n\
                        Goes back to the release that was active before; before a plugin's first release there was none, and it\n\
                        leaves the chain.")]
pub(crate) struct RollbackArgs {
    #[arg(value_name = "PLUGIN")]
    plugin: PluginName,
    /// Another release than the one before
    #[arg(long, value_name = "NUMBER")]
    to: Option<u32>,
    #[command(flatten)]
    wait: WaitArgs,
    #[command(flatten)]
    shop: ShopArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  souk plugin remove tea-week")]
pub(crate) struct RemoveArgs {
    #[arg(value_name = "PLUGIN")]
    plugin: PluginName,
    #[command(flatten)]
    wait: WaitArgs,
    #[command(flatten)]
    shop: ShopArgs,
}

fn name_and_value(text: &str) -> Result<(String, String), &'static str> {
    let (name, value) =
        text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or("write NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

pub(super) fn read(file: &Path, bytes_max: u64) -> anyhow::Result<Vec<u8>> {
    let wrong = |e: &dyn std::fmt::Display| Usage(format!("{}: {e}", file.display()));
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(file).map_err(|e| wrong(&e))?;
    opened.take(bytes_max + 1).read_to_end(&mut bytes).map_err(|e| wrong(&e))?;
    if bytes.len() as u64 > bytes_max {
        return Err(wrong(&format_args!("more than {bytes_max} bytes")).into());
    }
    Ok(bytes)
}

/// What a change of the chain answers.
#[derive(Debug, Deserialize, Serialize)]
struct Done {
    version: u64,
    before: Option<u32>,
    after: Option<u32>,
    changed: bool,
    chain: Vec<String>,
    #[serde(flatten)]
    rest: serde_json::Map<String, Value>,
}

pub(crate) async fn deploy(args: DeployArgs) -> anyhow::Result<ExitCode> {
    let mut wish = serde_json::Map::new();
    let mut put = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            wish.insert(name.to_owned(), value);
        }
    };
    put("number", args.release.map(Value::from));
    put("component", args.component.map(|digest| json!(digest)));
    if let Some(file) = &args.settings {
        let text = read(file, SETTINGS_BYTES_MAX)?;
        let settings =
            serde_json::from_slice(&text).map_err(|e| Usage(format!("{}: {e}", file.display())))?;
        put("settings", Some(settings));
    }
    let on_fault = args.on_fault.map(|choice| match choice {
        OnFaultChoice::Open => OnFault::Open,
        OnFaultChoice::Closed => OnFault::Closed,
    });
    put("on_fault", on_fault.map(|on_fault| json!(on_fault)));
    let grants = Grants {
        hosts: args.allow_host,
        env: args.env.into_iter().collect(),
        config: args.config.into_iter().collect(),
    };
    put("grants", (!grants.is_empty()).then(|| json!(grants)));
    put("route", args.route.map(Value::from));
    put("reuse", args.reuse.map(Value::from));
    put("record_bp", args.record.map(Value::from));
    put("position", args.position.map(Value::from));
    let shop = args.shop.open()?;
    let began = Instant::now();
    let done: Done =
        shop.region.change_plugin(&shop.site, &args.plugin, "deploy", &Value::Object(wish)).await?;
    finish(&shop, &args.plugin, done, &args.wait, began).await
}

pub(crate) async fn roll_back(args: RollbackArgs) -> anyhow::Result<ExitCode> {
    #[derive(Deserialize)]
    struct Now {
        active: Option<u32>,
        standby: Option<u32>,
    }
    let shop = args.shop.open()?;
    let began = Instant::now();
    // Both numbers are said aloud: a call that has to be repeated does not go back twice.
    let now: Now = shop.region.plugin(&shop.site, &args.plugin).await?;
    let active = now.active.ok_or_else(|| anyhow::anyhow!("{} is not in the chain", args.plugin))?;
    let back = json!({ "from": active, "to": args.to.or(now.standby) });
    let done: Done = shop.region.change_plugin(&shop.site, &args.plugin, "rollback", &back).await?;
    finish(&shop, &args.plugin, done, &args.wait, began).await
}

pub(crate) async fn remove(args: RemoveArgs) -> anyhow::Result<ExitCode> {
    let shop = args.shop.open()?;
    let began = Instant::now();
    let done: Done = shop.region.remove_plugin(&shop.site, &args.plugin).await?;
    finish(&shop, &args.plugin, done, &args.wait, began).await
}

#[derive(Debug, Deserialize, Serialize)]
struct Rollout {
    done: bool,
    nodes: Vec<NodeRuns>,
}

#[derive(Debug, Deserialize, Serialize)]
struct NodeRuns {
    node: u32,
    pop: String,
    version: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    after_ms: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

/// Tells what became of the chain, and waits for the nodes.
async fn finish(
    shop: &Shop,
    plugin: &PluginName,
    done: Done,
    wait: &WaitArgs,
    began: Instant,
) -> anyhow::Result<ExitCode> {
    if !shop.json {
        let what = match (done.before, done.after) {
            (_, Some(after)) if !done.changed => format!("release {after} runs already"),
            (Some(before), Some(after)) => format!("release {after}, after {before}"),
            (None, Some(after)) => format!("release {after}"),
            (_, None) => "out of the chain".to_owned(),
        };
        let chain = if done.chain.is_empty() { "no plugin".to_owned() } else { done.chain.join(" → ") };
        anstream::println!("{GOOD}{plugin}{GOOD:#}: {what} {DIM}({} runs {chain}){DIM:#}", shop.site);
    }
    let rollout = match wait.patience(WAIT) {
        Some(patience) => Some(until_all_run(shop, done.version, patience).await?),
        None => None,
    };
    let all = rollout.as_ref().is_none_or(|rollout| rollout.done);
    if shop.json {
        let seconds = began.elapsed().as_secs_f64();
        terminal::json(&json!({ "change": done, "rollout": rollout, "seconds": seconds }));
    } else if let Some(rollout) = &rollout {
        for node in &rollout.nodes {
            let NodeRuns { node: id, pop, .. } = node;
            if node.version >= done.version {
                let after = node.after_ms.map_or(String::new(), |ms| format!(" after {ms:.0} ms"));
                anstream::println!("  {pop}/{id}  runs it{after}");
            } else {
                let why = node.why.as_deref().unwrap_or("it has not said why");
                anstream::println!("  {pop}/{id}  {WARN}does not run it{WARN:#}: {why}");
            }
        }
        if rollout.nodes.is_empty() {
            anstream::println!("  {WARN}no node is connected{WARN:#}: each runs it when it is");
        }
        anstream::println!("{DIM}{:.2} s{DIM:#}", began.elapsed().as_secs_f64());
    }
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn until_all_run(shop: &Shop, version: u64, give_up: Duration) -> anyhow::Result<Rollout> {
    let began = Instant::now();
    loop {
        let left = give_up.saturating_sub(began.elapsed());
        let rollout: Rollout = shop.region.rollout(&shop.site, version, left.min(ROLLOUT_WAIT)).await?;
        let waiting: Vec<_> = rollout.nodes.iter().filter(|node| node.version < version).collect();
        let hopeless = !waiting.is_empty()
            && waiting.iter().all(|node| node.why.is_some())
            && began.elapsed() >= REFUSED_PATIENCE;
        if rollout.done || hopeless || began.elapsed() >= give_up {
            return Ok(rollout);
        }
    }
}

pub(crate) async fn releases(args: ReleasesArgs) -> anyhow::Result<ExitCode> {
    let shop = args.shop.open()?;
    let Some(plugin) = args.plugin else { return list(&shop).await };
    let answer: Value = shop.region.plugin(&shop.site, &plugin).await?;
    if shop.json {
        terminal::json(&answer);
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["", "release", "component", "answers", "on fault", "made"]);
    let number = |name: &str| answer[name].as_u64();
    for release in answer["releases"].as_array().into_iter().flatten() {
        let this = release["number"].as_u64();
        let mark = match this {
            this if this == number("active") => "active",
            this if this == number("standby") => "standby",
            _ => "",
        };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let hooks =
            release["hooks"].as_array().into_iter().flatten().map(text).collect::<Vec<_>>().join(", ");
        let answers = release["route"].as_str().map_or(hooks, str::to_owned);
        let component: String = text(&release["component"]).chars().take(12).collect();
        table.add_row([
            mark.to_owned(),
            this.unwrap_or_default().to_string(),
            component,
            answers,
            text(&release["on_fault"]),
            ago(release["created_ms"].as_u64().unwrap_or_default()),
        ]);
    }
    anstream::println!("{table}");
    Ok(ExitCode::SUCCESS)
}

async fn list(shop: &Shop) -> anyhow::Result<ExitCode> {
    let answer: Value = shop.region.plugins(&shop.site).await?;
    if shop.json {
        terminal::json(&answer);
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["plugin", "place", "active", "standby"]);
    for plugin in answer["plugins"].as_array().into_iter().flatten() {
        let number = |name: &str| plugin[name].as_u64().map_or_else(|| "-".to_owned(), |n| n.to_string());
        let name = plugin["plugin"].as_str().unwrap_or_default().to_owned();
        table.add_row([name, number("position"), number("active"), number("standby")]);
    }
    anstream::println!("{table}");
    Ok(ExitCode::SUCCESS)
}

/// How long ago, to the unit that matters.
pub(crate) fn ago(at_ms: u64) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let seconds = now.as_secs().saturating_sub(at_ms / 1000);
    match seconds {
        0..60 => format!("{seconds} s ago"),
        60..3_600 => format!("{} min ago", seconds / 60),
        3_600..86_400 => format!("{} h ago", seconds / 3_600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}
