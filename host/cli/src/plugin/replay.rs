//! `souk plugin replay`: a recorded call again, bit for bit, on this machine.
//!
//! It owns where recordings and components come from, and the verdict. What a recording is, how it is run and how two
//! runs differ is `souk_sandbox::record`'s.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;
use souk_commerce::id::{Digest, SiteId};
use souk_commerce::journal::CallId;
use souk_commerce::money::{Currency, Minor};
use souk_sandbox::record::{
    self, Difference, Fixture, Limits, Live, MoneyChange, RECORDING_BYTES_MAX, Recording,
};
use souk_sandbox::{HookEngine, HookLimits, HookPlugin, metered};
use url::Url;

use super::trial::{self, grouped};
use crate::control::RegionClient;
use crate::failure::Usage;
use crate::terminal::{self, BOLD, DIM, GOOD, Step, WARN};

/// Where the components of a folder of recordings lie, each named by its digest.
pub(crate) const COMPONENTS: &str = "components";
/// Calls whose differences are told one by one.
const TOLD_MAX: usize = 20;
/// Lines of one call that are told.
const LINES_TOLD_MAX: usize = 12;
/// Engines that are kept: one for each combination of limits, and a set of recordings has one or two.
const ENGINES_MAX: usize = 16;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  souk plugin replay 01KAH3V5Y2QJ8M7W2N1T0C4R9D --component build/tea-week.wasm\n  \
    souk plugin replay recordings/ --json\n  \
    souk plugin replay recordings/ --component build/tea-week.wasm\n  \
    souk plugin replay call.json --save fixtures/trade.json\n\n\
    A call is looked up at the region; `souk plugin logs` names those that were recorded. Without --component, the recorded\n\
    component is looked for by its digest: DIGEST.wasm or components/DIGEST.wasm beside the recording; that of a call is\n\
    fetched from the region if it is not here.\n\
    Like diff, the command ends with 0 if every outcome is as it was recorded, with 1 if one is not."
)]
pub(crate) struct ReplayArgs {
    /// Recordings: files, folders of them, or names of calls
    #[arg(value_name = "FILE|DIR|CALL", required = true)]
    pub(crate) what: Vec<String>,
    /// Run this component instead of the recorded one
    #[arg(long, value_name = "FILE")]
    pub(crate) component: Option<PathBuf>,
    /// Write the call as a fixture for `souk plugin test`, expecting what came out; of one call only
    #[arg(long, value_name = "FILE")]
    pub(crate) save: Option<PathBuf>,
    /// Count instructions too
    #[arg(long)]
    pub(crate) count: bool,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
    /// The region's control address, such as http://127.0.0.1:7080
    #[arg(long, value_name = "URL", env = "SOUK_REGION")]
    pub(crate) region: Option<Url>,
    /// A token that may read the site and its calls (read, logs)
    #[arg(long, value_name = "TOKEN", env = "SOUK_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// The shop
    #[arg(long, value_name = "SITE", env = "SOUK_SITE")]
    pub(crate) site: Option<SiteId>,
}

/// A recording and where it is from.
struct Tape {
    name: String,
    folder: PathBuf,
    recording: Recording,
}

#[derive(Debug, Default, Serialize)]
struct Report {
    calls: usize,
    /// Same host calls, same outcome, bit for bit.
    identical: usize,
    different: usize,
    /// Too large to have been recorded whole.
    omitted: usize,
    /// Could not be run.
    failed: usize,
    /// Among all: recorded with another outcome than the shopper got, because the shopper is hashed in it.
    live_differed: usize,
    hooks: BTreeMap<&'static str, usize>,
    components: Vec<Digest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instructions: Option<u64>,
    /// Per currency: what all recorded pricing calls came to, then and now.
    money: BTreeMap<String, Sums>,
    /// The first of those that differ or failed.
    told: Vec<Told>,
}

#[derive(Debug, Default, Serialize)]
struct Sums {
    calls: usize,
    changed: usize,
    recorded: i128,
    replayed: i128,
}

#[derive(Debug, Serialize)]
struct Told {
    call: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    differences: Vec<Difference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    money: Option<MoneyChange>,
    #[serde(skip_serializing_if = "Option::is_none")]
    currency: Option<Currency>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unrecorded: Vec<String>,
}

pub(crate) async fn command(args: ReplayArgs) -> anyhow::Result<ExitCode> {
    let mut fetched = Fetched::new();
    let sources = sources(&args, &mut fetched).await?;
    if args.save.is_some() && sources.len() != 1 {
        return Err(Usage(format!("--save is for one call; {} are named", sources.len())).into());
    }
    // Compiling and running takes as long as it takes, and waits for nobody: not for a thread of the reactor.
    tokio::task::spawn_blocking(move || run(&args, sources, fetched)).await.context("the replay's thread")?
}

fn run(args: &ReplayArgs, sources: Vec<Source>, fetched: Fetched) -> anyhow::Result<ExitCode> {
    let mut shelf = Shelf::new(args, fetched)?;
    let mut report = Report::default();
    let step = Step::counted("Replaying", sources.len() as u64);
    for source in sources {
        let tape = source.read()?;
        play(&mut shelf, &tape, args, &mut report)?;
        step.advance(1);
    }
    report.components = shelf.loaded.keys().map(|(digest, _)| *digest).collect();
    report.components.sort_unstable();
    report.components.dedup();
    step.done(&format!("{} calls", report.calls));
    if args.json {
        terminal::json(&report);
    } else {
        print(&report, args.component.is_some());
    }
    Ok(ExitCode::from(u8::from(report.different + report.failed > 0)))
}

/// One recorded call, judged and counted.
fn play(shelf: &mut Shelf, tape: &Tape, args: &ReplayArgs, report: &mut Report) -> anyhow::Result<()> {
    let Tape { name, recording, .. } = tape;
    report.calls += 1;
    report.live_differed += usize::from(recording.live == Live::Differs);
    *report.hooks.entry(recording.hook.name()).or_default() += 1;
    if recording.omitted_bytes.is_some() {
        report.omitted += 1;
        return Ok(());
    }
    let plugin = shelf.plugin(tape)?;
    let replayed = match record::replay(&plugin, recording) {
        Ok(replayed) => replayed,
        Err(error) => {
            report.failed += 1;
            report.tell(Told { error: Some(error.to_string()), ..Told::of(name) });
            return Ok(());
        }
    };
    if let Some(count) = replayed.instructions {
        *report.instructions.get_or_insert(0) += count;
    }
    let money = record::money_change(recording, &replayed);
    if let Some(money) = &money {
        let sums = report.money.entry(recording.context.currency.code().to_owned()).or_default();
        sums.calls += 1;
        sums.changed += usize::from(!money.is_none());
        sums.recorded += i128::from(money.total_recorded.0);
        sums.replayed += i128::from(money.total_replayed.0);
    }
    let differences = record::compare(recording, &replayed);
    // That another component was run is what was asked for, not a finding.
    let same = differences
        .iter()
        .all(|difference| args.component.is_some() && matches!(difference, Difference::Component { .. }));
    if same {
        report.identical += 1;
    } else {
        report.different += 1;
        report.tell(Told {
            differences,
            money: money.filter(|money| !money.is_none()),
            currency: Some(recording.context.currency),
            unrecorded: replayed.unrecorded.clone(),
            ..Told::of(name)
        });
    }
    if let Some(file) = &args.save {
        let mut fixture = Fixture::of(recording, format!("call {name} of release {}", recording.release));
        fixture.expect = replayed.outcome;
        if let Some(folder) = file.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        }
        std::fs::write(file, fixture.encode()).with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

impl Told {
    fn of(call: &str) -> Self {
        Self {
            call: call.to_owned(),
            error: None,
            differences: Vec::new(),
            money: None,
            currency: None,
            unrecorded: Vec::new(),
        }
    }
}

impl Report {
    fn tell(&mut self, told: Told) {
        if self.told.len() < TOLD_MAX {
            self.told.push(told);
        }
    }
}

/// A recording that is yet to be read: ten thousand of them at once would be gigabytes.
enum Source {
    File(PathBuf),
    Fetched(CallId, Vec<u8>),
}

impl Source {
    fn read(self) -> anyhow::Result<Tape> {
        let (name, folder, bytes) = match self {
            Self::File(file) => {
                let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                let bytes = trial::read_bounded(&file, RECORDING_BYTES_MAX)?;
                let folder = file.parent().map(Path::to_owned).unwrap_or_default();
                (name, folder, bytes)
            }
            Self::Fetched(call, bytes) => (call.to_string(), PathBuf::new(), bytes),
        };
        let recording = Recording::decode(&bytes).map_err(|error| Usage(format!("{name}: {error}")))?;
        Ok(Tape { name, folder, recording })
    }
}

/// Components that the region gave, by their digests.
type Fetched = HashMap<Digest, Vec<u8>>;

async fn sources(args: &ReplayArgs, components: &mut Fetched) -> anyhow::Result<Vec<Source>> {
    let mut sources = Vec::new();
    for what in &args.what {
        let path = Path::new(what);
        if path.is_dir() {
            let files = trial::json_files(path)?;
            if files.is_empty() {
                return Err(Usage(format!("{what} holds no recordings (*.json)")).into());
            }
            sources.extend(files.into_iter().map(Source::File));
        } else if path.exists() {
            sources.push(Source::File(path.to_owned()));
        } else if let Ok(call) = what.parse::<CallId>() {
            sources.push(Source::Fetched(call, fetch(args, call, components).await?));
        } else {
            let text = format!("{what} is neither a file, nor a folder, nor the name of a call");
            return Err(Usage(text).into());
        }
    }
    Ok(sources)
}

/// A recorded call; and the component that it was recorded of, unless another is to be run or it is there.
async fn fetch(args: &ReplayArgs, call: CallId, components: &mut Fetched) -> anyhow::Result<Vec<u8>> {
    let missing = |what: &str| Usage(format!("to fetch call {call}, {what}"));
    let site = args.site.as_ref().ok_or_else(|| missing("say which shop with --site or SOUK_SITE"))?;
    let url = args
        .region
        .as_ref()
        .ok_or_else(|| missing("say where the region is with --region or SOUK_REGION"))?;
    let token = args.token.as_ref().ok_or_else(|| missing("give a token with SOUK_TOKEN or --token"))?;
    let region = RegionClient::new(url, token).map_err(Usage)?;
    let recording = region.recording(site, call).await.with_context(|| format!("fetch call {call}"))?;
    // What does not decode is said where all recordings are read.
    if let Ok(Recording { plugin, component, omitted_bytes: None, .. }) = Recording::decode(&recording)
        && args.component.is_none()
        && !components.contains_key(&component)
        && beside(Path::new(""), component).is_none()
    {
        let bytes = region.component(site, &plugin, component).await;
        let bytes = bytes.with_context(|| format!("fetch component {component} of plugin {plugin}"))?;
        anyhow::ensure!(
            Digest::of(&bytes) == component,
            "the region gave other bytes than those of {component}"
        );
        components.insert(component, bytes.to_vec());
    }
    Ok(recording.to_vec())
}

/// Engines by their limits and plugins by their digests, each made once.
struct Shelf {
    /// The component that is run whatever was recorded.
    instead: Option<Vec<u8>>,
    fetched: Fetched,
    count: bool,
    engines: Vec<(Limits, HookEngine)>,
    loaded: HashMap<(Digest, usize), Arc<HookPlugin>>,
}

impl Shelf {
    fn new(args: &ReplayArgs, fetched: Fetched) -> anyhow::Result<Self> {
        let instead = args.component.as_deref().map(trial::read_component).transpose()?;
        Ok(Self { instead, fetched, count: args.count, engines: Vec::new(), loaded: HashMap::new() })
    }

    fn plugin(&mut self, tape: &Tape) -> anyhow::Result<Arc<HookPlugin>> {
        let digest = match &self.instead {
            Some(component) => Digest::of(component),
            None => tape.recording.component,
        };
        let engine = self.engine(&tape.recording.limits)?;
        if let Some(plugin) = self.loaded.get(&(digest, engine)) {
            return Ok(Arc::clone(plugin));
        }
        let component = match (&self.instead, self.fetched.get(&digest)) {
            (Some(component), _) | (None, Some(component)) => component.clone(),
            (None, None) => find(&tape.folder, digest)?,
        };
        let plugin = self.engines[engine].1.load(&component).with_context(|| format!("load {digest}"))?;
        self.loaded.insert((digest, engine), Arc::clone(&plugin));
        Ok(plugin)
    }

    fn engine(&mut self, limits: &Limits) -> anyhow::Result<usize> {
        if let Some(known) = self.engines.iter().position(|(known, _)| known.same_engine(limits)) {
            return Ok(known);
        }
        if self.engines.len() == ENGINES_MAX {
            return Err(Usage(format!("the recordings have more than {ENGINES_MAX} kinds of limits")).into());
        }
        let own = HookLimits::for_replay(limits);
        let engine = if self.count { metered::engine(own)? } else { HookEngine::new(own)? };
        self.engines.push((limits.clone(), engine));
        Ok(self.engines.len() - 1)
    }
}

/// Where a component lies beside a recording.
fn beside(folder: &Path, digest: Digest) -> Option<PathBuf> {
    let name = format!("{digest}.wasm");
    [folder.join(COMPONENTS).join(&name), folder.join(&name)].into_iter().find(|file| file.is_file())
}

/// The component that was recorded, held against its digest.
fn find(folder: &Path, digest: Digest) -> anyhow::Result<Vec<u8>> {
    if let Some(file) = beside(folder, digest) {
        let component = trial::read_component(&file)?;
        if Digest::of(&component) != digest {
            return Err(
                Usage(format!("{} is not the component that it is named after", file.display())).into()
            );
        }
        return Ok(component);
    }
    Err(Usage(format!(
        "the recorded component {digest} is not beside the recording; name a component with --component"
    ))
    .into())
}

fn print(report: &Report, another: bool) {
    for told in &report.told {
        anstream::println!("{WARN}✗{WARN:#} {}", told.call);
        if let Some(error) = &told.error {
            anstream::println!("    {error}");
        }
        for difference in &told.differences {
            if !(another && matches!(difference, Difference::Component { .. })) {
                anstream::println!("    {difference}");
            }
        }
        for question in &told.unrecorded {
            anstream::println!("    {DIM}it asked {question}, which the recording does not answer{DIM:#}");
        }
        if let (Some(money), Some(currency)) = (&told.money, told.currency) {
            tell_money(money, currency);
        }
    }
    let untold = (report.different + report.failed).saturating_sub(report.told.len());
    if untold > 0 {
        anstream::println!("{DIM}and {untold} more{DIM:#}");
    }
    let verdict = if report.different + report.failed == 0 { GOOD } else { WARN };
    let hooks: Vec<String> = report.hooks.iter().map(|(hook, n)| format!("{n} {hook}")).collect();
    anstream::println!(
        "{BOLD}{} calls{BOLD:#} ({}): {verdict}{} identical{verdict:#}, {} different, {} failed, {} too large to be recorded",
        report.calls,
        hooks.join(", "),
        report.identical,
        report.different,
        report.failed,
        report.omitted,
    );
    for (currency, sums) in &report.money {
        anstream::println!(
            "  {} of {} prices changed; sum in {currency}, minor units: {} recorded, {} now",
            sums.changed,
            sums.calls,
            sums.recorded,
            sums.replayed
        );
    }
    if report.live_differed > 0 {
        anstream::println!(
            "  {DIM}{} were recorded with another outcome than the shopper got: it depends on who the shopper is, \
             which a recording does not hold{DIM:#}",
            report.live_differed
        );
    }
    if let Some(instructions) = report.instructions {
        anstream::println!("  {} instructions", grouped(instructions));
    }
}

fn tell_money(money: &MoneyChange, currency: Currency) {
    let amount = |minor: Minor| currency.format(minor);
    for line in money.lines.iter().take(LINES_TOLD_MAX) {
        anstream::println!(
            "    {} × {} {DIM}{}{DIM:#}  {} → {BOLD}{}{BOLD:#} ({:+})",
            line.quantity,
            line.line,
            line.title,
            amount(line.recorded),
            amount(line.replayed),
            line.replayed.0 - line.recorded.0
        );
    }
    if money.lines.len() > LINES_TOLD_MAX {
        anstream::println!("    {DIM}and {} more lines{DIM:#}", money.lines.len() - LINES_TOLD_MAX);
    }
    anstream::println!(
        "    total  {} → {BOLD}{}{BOLD:#} {currency}",
        amount(money.total_recorded),
        amount(money.total_replayed)
    );
    for (when, rule) in [("recorded", &money.guard_recorded), ("new", &money.guard_replayed)] {
        if let Some(rule) = rule {
            anstream::println!("    {WARN}the price guard drops the {when} answer{WARN:#}: {rule}");
        }
    }
}
