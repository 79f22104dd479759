//! `souk demo`: a region, two nodes and a shop on one machine, from nothing to URLs, and nothing left at the end.
//!
//! It tells one story: a folder, an authority, the plugins, the processes, the shop, and then either the user's curl or
//! the replay. [`identity`] makes what proves who is who, [`child`] is one process, [`stage`] all of them, [`shop`] what
//! is sold, [`local`] the same with one node, for whoever develops a plugin. It restarts nothing by itself: a process that fails ends the demo with the words of its log.

mod child;
mod identity;
pub(crate) mod local;
mod record;
mod shop;
mod stage;

pub(crate) use stage::POPS;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;
use souk_commerce::site::SiteSettings;
use souk_config::StoreConfig;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use url::Url;

use self::identity::{Authority, OperatorToken, ShopperKey};
use self::shop::ShopPlugin;
use self::stage::{Processes, StageFaults};
use crate::args::{DemoArgs, ReplayArgs};
use crate::control::RegionClient;
use crate::failure::Usage;
use crate::replay::{self, NodeHandle, ReplayOptions, Stage, StagedPlugin};
use crate::terminal::{self, BOLD, DIM, GOOD, Step};
use crate::token::{self, Verb};

/// How long the shopper's token that the demo prints is good for.
const SHOPPER_TOKEN_LIFE: Duration = Duration::from_secs(24 * 3600);

/// What the merchant of the sample shop may do.
const MERCHANT_MAY: [Verb; 5] = [Verb::Read, Verb::Push, Verb::Deploy, Verb::Logs, Verb::Purge];
const MERCHANT_TOKEN_DAYS: u32 = 30;

/// The options that name settings to be added.
const NODE_CONFIG: &str = "--node-config";
const REGION_CONFIG: &str = "--region-config";

/// What shells call a command that SIGINT ended: 128 and its number.
const INTERRUPTED: u8 = 130;

pub(crate) async fn command(args: DemoArgs) -> anyhow::Result<ExitCode> {
    let since = Instant::now();
    let sources = shop::find_sources(args.plugins.as_deref())?;
    let node_settings = added_settings(NODE_CONFIG, args.node_config.as_deref())?;
    let region_settings = added_settings(REGION_CONFIG, args.region_config.as_deref())?;
    check_regions(&args)?;
    check_replay(&args.replay)?;
    // Before the folder: from here on nothing is left behind, whenever the user has had enough.
    let mut ended = Ended::listen()?;
    let folder = Folder::create(args.dir.as_deref(), args.keep)?;
    let verdict = OnceLock::new();
    let interrupted =
        || Ok(ExitCode::from(code_when_interrupted(args.replay.file.is_some(), verdict.get().copied())));
    let toolchain = args.toolchain;
    let building = tokio::task::spawn_blocking(move || shop::build_plugins(&sources, toolchain));
    let plugins = tokio::select! {
        built = building => built.context("build the plugins")??,
        () = ended.wait() => return interrupted(),
    };
    let authority = Authority::create(&folder.path.join("identity"))?;
    let token = OperatorToken::mint();
    let plan = stage::Plan {
        folder: &folder.path,
        authority: &authority,
        token: &token,
        pops: &POPS[..args.nodes],
        http_base: args.http_base,
        regions: args.regions.into(),
        store: args.store.as_deref(),
        with_relay: args.replay.cut_region,
        // One line per request is welcome to a person, and a burden to a measurement.
        log: if args.replay.file.is_some() { "warn" } else { "info" },
        node_settings: &node_settings,
        region_settings: &region_settings,
    };
    let processes = if args.regions == 1 { String::new() } else { format!(" in {} processes", args.regions) };
    let step = Step::start(format!("Raising a region{processes} and {} nodes", args.nodes));
    let processes = tokio::select! {
        raised = Processes::raise(&plan) => Arc::new(raised?),
        () = ended.wait() => return interrupted(),
    };
    step.done(&folder.path.display().to_string());
    let told = tokio::select! {
        told = tell(&args, &processes, &plugins, &token, since, &verdict) => told,
        words = processes.until_one_fails() => Err(anyhow::anyhow!(words)),
        () = ended.wait() => interrupted(),
    };
    let step = Step::start("Ending the processes");
    let killed = processes.end().await;
    if killed.is_empty() {
        step.done(if folder.keep { "the folder stays" } else { "nothing is left" });
    } else {
        terminal::warn(&format!("{} did not end in time and had to be killed", killed.join(", ")));
    }
    told
}

/// What processes of a region cannot do together.
fn check_regions(args: &DemoArgs) -> Result<(), Usage> {
    if args.regions > 1 && args.store.is_none() {
        let why = "--regions: several processes need one database between them: name it with --store";
        return Err(Usage(why.to_owned()));
    }
    if let Some(url) = &args.store {
        StoreConfig::postgres(url).map_err(|why| Usage(format!("--store: {why}")))?;
    }
    if args.regions > 1 && args.replay.record.is_some() {
        let why = "--record: recordings lie at the process that a node is connected to: leave --regions out";
        return Err(Usage(why.to_owned()));
    }
    Ok(())
}

/// What only the replay will need is looked at before anything is built: the builds and the start take a quarter of a minute.
fn check_replay(args: &ReplayArgs) -> Result<(), Usage> {
    let wrong = |flag: &str, path: &Path, why: &dyn std::fmt::Display| {
        Usage(format!("{flag} {}: {why}", path.display()))
    };
    if let Some(file) = &args.file {
        replay::check(file).map_err(|error| wrong("--replay", file, &format_args!("{error:#}")))?;
    }
    if let Some(out) = &args.refused {
        let is_new = !out.exists();
        std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(out)
            .map_err(|error| wrong("--refused", out, &error))?;
        if is_new {
            // It is made again when there is something to write.
            std::fs::remove_file(out).map_err(|error| wrong("--refused", out, &error))?;
        }
    }
    if let Some(dir) = &args.record {
        record::check(dir)?;
        std::fs::create_dir_all(dir)
            .and_then(|()| tempfile::tempfile_in(dir))
            .map_err(|error| wrong("--record", dir, &error))?;
    }
    Ok(())
}

/// A database that somebody named may be anybody's.
async fn check_empty(region: &RegionClient) -> anyhow::Result<()> {
    #[derive(serde::Deserialize)]
    struct Status {
        counts: Counts,
    }
    #[derive(serde::Deserialize)]
    struct Counts {
        sites: u64,
    }
    let sites = region.status::<Status>().await?.counts.sites;
    if sites > 0 {
        return Err(Usage(format!("--store: the database has {sites} sites: name an empty one")).into());
    }
    Ok(())
}

/// What somebody adds to the settings of the nodes, or of the region.
fn added_settings(option: &str, file: Option<&Path>) -> anyhow::Result<toml::Table> {
    let Some(file) = file else { return Ok(toml::Table::new()) };
    let wrong = |why: String| Usage(format!("{option} {}: {why}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
    Ok(text.parse().map_err(|error: toml::de::Error| wrong(error.to_string()))?)
}

/// A demo is ended by Ctrl-C, which is no failure. A replay ends with its report: without one nothing is proved, and
/// with one it is what the report says, also when the shop stayed open behind it.
fn code_when_interrupted(replaying: bool, verdict: Option<u8>) -> u8 {
    verdict.unwrap_or(if replaying { INTERRUPTED } else { 0 })
}

/// Seeds the shop, says what to try, and replays if asked to.
async fn tell(
    args: &DemoArgs,
    processes: &Arc<Processes>,
    plugins: &[ShopPlugin],
    token: &OperatorToken,
    since: Instant,
    verdict: &OnceLock<u8>,
) -> anyhow::Result<ExitCode> {
    let control =
        Url::parse(&format!("http://{}", processes.control)).context("write the control address")?;
    let region = RegionClient::new(&control, token.secret()).map_err(anyhow::Error::msg)?;
    if args.store.is_some() {
        check_empty(&region).await?;
    }
    let shopper_key = ShopperKey::mint()?;
    let settings = shop::seed(&region, plugins, &shopper_key).await?;
    let nodes = processes.handles();
    let step = Step::start("Waiting for the nodes");
    shop::until_caught_up(&region, &nodes).await?;
    step.done("catalogue and plugins");
    let merchant = token::create(&region, &settings.site, "demo", &MERCHANT_MAY, MERCHANT_TOKEN_DAYS).await?;
    let shopper = shopper_key.token("demo-shopper", &["trade"], SHOPPER_TOKEN_LIFE)?;
    let ready =
        Announcement::new(&settings, &nodes, processes, [token.secret(), merchant.secret(), &shopper], since);
    if args.json {
        terminal::json(&ready)
    } else {
        ready.print(args.replay.file.is_some())
    }
    if let Some(options) = replay_options(&args.replay) {
        let stage = Stage {
            nodes,
            region_control: processes.control,
            operator_token: token.secret().to_owned(),
            shopper_signing_key: shopper_key.secret_pem.clone(),
            shopper_key: shopper_key.public_pem.clone(),
            plugins: plugins.iter().map(staged).collect(),
            faults: Arc::new(StageFaults(Arc::clone(processes))),
        };
        let report = match &args.replay.record {
            Some(dir) => recorded(dir, &region, plugins, &options, &stage).await?,
            None => replay::run(&options, &stage).await?,
        };
        verdict.get_or_init(|| report.exit_code());
        if args.json {
            terminal::json(&report);
        } else {
            anstream::println!("{}", report.table());
        }
        if args.replay.exit {
            return Ok(ExitCode::from(report.exit_code()));
        }
    }
    // Until Ctrl-C, or until a process fails: the caller waits for both beside this.
    std::future::pending().await
}

/// The replay, with its recordings fetched beside it.
async fn recorded(
    dir: &Path,
    region: &RegionClient,
    plugins: &[ShopPlugin],
    options: &ReplayOptions,
    stage: &Stage,
) -> anyhow::Result<replay::Report> {
    let recordings = record::Recordings::create(dir, plugins)?;
    let replayed = CancellationToken::new();
    let fetching = tokio::spawn(recordings.collect(region.clone(), replay::site(), replayed.clone()));
    let report = replay::run(options, stage).await?;
    replayed.cancel();
    let step = Step::start("Fetching the last recordings");
    let count = fetching.await.context("fetch the recordings")??;
    step.done(&format!("{count} in {}", dir.display()));
    Ok(report)
}

fn staged(plugin: &ShopPlugin) -> StagedPlugin {
    StagedPlugin { name: plugin.name.to_owned(), component: plugin.built.sha256.to_string() }
}

fn replay_options(args: &ReplayArgs) -> Option<ReplayOptions> {
    Some(ReplayOptions {
        file: args.file.clone()?,
        carts: args.carts,
        rate: args.rate,
        kill_edge: args.kill_edge,
        kill_region: args.kill_region,
        cut_region: args.cut_region,
        refused: args.refused.clone(),
        seed: args.seed,
        record: args.record.is_some(),
    })
}

/// Ctrl-C or SIGTERM; a second one while the processes end is the user's to repeat with SIGKILL.
struct Ended {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Ended {
    fn listen() -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).context("listen for SIGINT")?,
            terminate: signal(SignalKind::terminate()).context("listen for SIGTERM")?,
        })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// The one folder that the demo writes to; removed when this is dropped, unless it is to be kept.
struct Folder {
    path: PathBuf,
    keep: bool,
    temporary: Option<tempfile::TempDir>,
}

impl Folder {
    fn create(asked: Option<&Path>, keep: bool) -> anyhow::Result<Self> {
        let Some(asked) = asked else {
            let temporary =
                tempfile::Builder::new().prefix("souk-demo-").tempdir().context("create a folder")?;
            return Ok(Self { path: temporary.path().to_owned(), keep, temporary: Some(temporary) });
        };
        let used = std::fs::read_dir(asked).is_ok_and(|mut entries| entries.next().is_some());
        if used {
            let advice = "choose another folder, or remove what an earlier demo left";
            return Err(Usage(format!("{} is not empty; {advice}", asked.display())).into());
        }
        std::fs::create_dir_all(asked)
            .map_err(|e| Usage(format!("cannot create {}: {e}", asked.display())))?;
        let path = asked.canonicalize().with_context(|| format!("open {}", asked.display()))?;
        Ok(Self { path, keep, temporary: None })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let temporary = self.temporary.take();
        if self.keep {
            let path = temporary.map_or_else(|| self.path.clone(), tempfile::TempDir::keep);
            anstream::eprintln!("{DIM}kept: {}{DIM:#}", path.display());
        } else if temporary.is_none()
            && let Err(e) = std::fs::remove_dir_all(&self.path)
        {
            terminal::warn(&format!("{} could not be removed: {e}", self.path.display()));
        }
    }
}

/// What a person, or a script, needs to go on.
#[derive(Serialize)]
struct Announcement<'a> {
    site: &'a str,
    nodes: Vec<AnnouncedNode<'a>>,
    control: String,
    link: String,
    /// Shown here and stored nowhere.
    operator_token: &'a str,
    /// What a merchant of the sample shop works with; shown here and stored nowhere.
    merchant_token: &'a str,
    /// A shopper of the segment `trade`.
    shopper_token: &'a str,
    ready_seconds: f64,
}

#[derive(Serialize)]
struct AnnouncedNode<'a> {
    name: &'a str,
    pop: &'a str,
    url: String,
    admin: String,
}

impl<'a> Announcement<'a> {
    fn new(
        settings: &'a SiteSettings,
        nodes: &'a [NodeHandle],
        processes: &Processes,
        [operator_token, merchant_token, shopper_token]: [&'a str; 3],
        since: Instant,
    ) -> Self {
        // A name that every resolver takes to this machine, if the shop answers to it.
        let host = if settings.hosts.iter().any(|h| h == "localhost") { "localhost" } else { "127.0.0.1" };
        let nodes = nodes.iter().map(|node| AnnouncedNode {
            name: &node.name,
            pop: &node.pop,
            url: format!("http://{host}:{}", node.http.port()),
            admin: format!("http://{}", node.admin),
        });
        Self {
            site: settings.site.as_str(),
            nodes: nodes.collect(),
            control: format!("http://{}", processes.control),
            link: processes.link.to_string(),
            operator_token,
            merchant_token,
            shopper_token,
            ready_seconds: since.elapsed().as_secs_f64(),
        }
    }

    fn print(&self, replaying: bool) {
        anstream::println!(
            "\n{GOOD}The shop is open{GOOD:#} {DIM}after {:.1} s{DIM:#}\n",
            self.ready_seconds
        );
        for node in &self.nodes {
            anstream::println!(
                "  {BOLD}{}{BOLD:#}   node {} {DIM}(admin {}){DIM:#}",
                node.url,
                node.pop,
                node.admin
            );
        }
        anstream::println!("  {}   region {DIM}(control; nodes dial udp {}){DIM:#}", self.control, self.link);
        anstream::println!("\n  operator token  {} {DIM}(shown once){DIM:#}", self.operator_token);
        anstream::println!("  merchant token  {} {DIM}(shown once){DIM:#}", self.merchant_token);
        anstream::println!("  trade shopper   {DIM}{}{DIM:#}\n", self.shopper_token);
        if !replaying {
            self.print_what_to_try();
        }
    }

    fn print_what_to_try(&self) {
        let [first, second] = self.nodes.as_slice() else { return };
        let (url, other, site, souk) = (&first.url, &second.url, self.site, this_program());
        anstream::println!("{BOLD}Try{BOLD:#}");
        for (what, line) in [
            ("browse", format!("curl -s '{url}/api/products?limit=3'")),
            (
                "fill a cart",
                format!(
                    "CART=$(curl -s -X POST {url}/api/carts -H 'content-type: application/json' -d '{{\"country\":\"GB\"}}' \
                     | sed 's/.*\"cart\":\"\\([0-9a-f]*\\)\".*/\\1/')"
                ),
            ),
            (
                "",
                format!(
                    "curl -s -X POST {url}/api/carts/$CART/lines -H 'content-type: application/json' -d \
                     '{{\"sku\":\"TEA-101\",\"quantity\":6}}'"
                ),
            ),
            ("see the quote in the other place", format!("curl -s {other}/api/carts/$CART/quote")),
            (
                "order",
                format!(
                    "curl -s -X POST {url}/api/checkouts -H 'content-type: application/json' -H 'idempotency-key: try-1' \
                     -d \"{{\\\"cart\\\":\\\"$CART\\\"}}\""
                ),
            ),
            (
                "change a price everywhere",
                format!(
                    "SOUK_TOKEN={} {souk} site set-price TEA-101 31.50 --region {} --site {site}",
                    self.operator_token, self.control
                ),
            ),
            ("look inside", format!("curl -s {}/metrics", first.admin)),
        ] {
            if !what.is_empty() {
                anstream::println!("  {DIM}# {what}{DIM:#}");
            }
            anstream::println!("  {line}");
        }
        anstream::println!(
            "  {DIM}# work on the shop's plugins as its merchant: souk plugin new, build, push, deploy{DIM:#}"
        );
        anstream::println!(
            "  export SOUK_REGION={} SOUK_SITE={site} SOUK_TOKEN={}",
            self.control,
            self.merchant_token
        );
        anstream::println!("\nOpen {BOLD}{url}/{BOLD:#} in a browser. Ctrl-C ends everything.");
    }
}

/// How a shell finds this program again: a build in `target` is on nobody's PATH.
fn this_program() -> String {
    let path = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("souk"));
    quoted(&path.to_string_lossy())
}

/// As one word of a POSIX shell.
fn quoted(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-+:@%,=".contains(&b);
    if !text.is_empty() && text.bytes().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replay_without_a_report_has_not_succeeded() {
        assert_eq!(code_when_interrupted(false, None), 0, "Ctrl-C is how a demo ends");
        assert_eq!(code_when_interrupted(true, None), INTERRUPTED);
        assert_eq!(code_when_interrupted(true, Some(0)), 0);
        assert_eq!(code_when_interrupted(true, Some(1)), 1, "findings stay findings");
    }

    #[test]
    fn a_path_is_one_word_of_the_shell() {
        assert_eq!(quoted("/opt/souk-0.1/bin/souk"), "/opt/souk-0.1/bin/souk");
        assert_eq!(quoted("/my shop/souk"), "'/my shop/souk'");
        assert_eq!(quoted("/it's/$HOME"), r"'/it'\''s/$HOME'");
    }

    #[test]
    fn a_folder_that_is_used_is_refused_and_a_new_one_is_removed() {
        let outer = tempfile::tempdir().expect("a folder");
        let inner = outer.path().join("demo");
        let folder = Folder::create(Some(&inner), false).expect("a new folder");
        std::fs::write(inner.join("file"), "x").expect("a file");
        assert!(Folder::create(Some(&inner), false).is_err_and(|e| e.to_string().contains("is not empty")));
        drop(folder);
        assert!(!inner.exists());
    }

    #[test]
    fn a_folder_that_is_kept_stays() {
        let outer = tempfile::tempdir().expect("a folder");
        let inner = outer.path().join("demo");
        drop(Folder::create(Some(&inner), true).expect("a new folder"));
        assert!(inner.exists());
    }
}
