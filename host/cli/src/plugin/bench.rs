//! `souk plugin bench`: what a hook costs, how that grows with the cart, and where in the plugin it goes.
//!
//! Instructions are exact (the metered engine); times are medians on this machine, on the engine that serves shoppers.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;
use souk_commerce::id::Sku;
use souk_commerce::site::Hook;
use souk_sandbox::hook::Allowance;
use souk_sandbox::metered::{self, CostCurve, CostPoint, Setting};
use souk_sandbox::record::{
    self, Fixture, Input, Line, Outcome, Playback, REPLAY_DEADLINE, Recording, Subject,
};
use souk_sandbox::{Fault, HookLimits, HookPlugin, SiteData, profile};

use super::trial::{self, FIXTURES, grouped};
use crate::args::ToolchainChoice;
use crate::failure::Usage;
use crate::terminal::{self, BOLD, DIM, GOOD, Step, WARN};

/// Sizes of cart that are measured. A site's carts have at most 1,000 lines unless its operator says otherwise.
const LINES: [u32; 10] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000];
/// Runs of each size for its median.
const RUNS: u32 = 25;
/// How long a profile is taken: some twenty thousand looks at the stack.
const FLAME_TIME: Duration = Duration::from_secs(2);

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  souk plugin bench\n  souk plugin bench build/tea-week.wasm --fixture fixtures/trade.json --flame profile.json\n\n\
                        The lines of the fixture are repeated, each time as other products, until the cart has the size that is measured.\n\
                        Load the file of --flame into https://profiler.firefox.com; it does not leave your machine."
)]
pub(crate) struct BenchArgs {
    /// A project, which is built first, or a component
    #[arg(value_name = "DIR|FILE", default_value = ".")]
    pub(crate) plugin: PathBuf,
    /// The call to repeat [default: the first fixture of the project, else a cart of mugs]
    #[arg(long, value_name = "FILE")]
    pub(crate) fixture: Option<PathBuf>,
    /// The deadline to hold the cost against, in milliseconds [default: the platform's]
    #[arg(long, value_name = "MS")]
    pub(crate) deadline_ms: Option<f64>,
    /// Write a profile of the call in the format of the Firefox profiler
    #[arg(long, value_name = "OUT.json")]
    pub(crate) flame: Option<PathBuf>,
    /// The size of cart to profile
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) flame_lines: u32,
    /// Which Rust compiler to build a project with
    #[arg(long, value_enum, default_value_t, env = "SOUK_TOOLCHAIN")]
    pub(crate) toolchain: ToolchainChoice,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    component: PathBuf,
    hook: Hook,
    deadline_ms: f64,
    #[serde(flatten)]
    curve: CostCurve,
    /// The smallest cart that takes longer than the deadline on this machine.
    over_deadline_at_lines: Option<u32>,
    instructions_per_line: Option<f64>,
    /// Where the plugin stopped answering.
    #[serde(skip_serializing_if = "Option::is_none")]
    fails: Option<Failing>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flame: Option<Flame>,
}

#[derive(Debug, Serialize)]
struct Failing {
    lines: u32,
    why: String,
}

#[derive(Debug, Serialize)]
struct Flame {
    file: PathBuf,
    samples: u64,
    calls: u64,
}

pub(crate) fn command(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    let subject = trial::subject(&args.plugin, args.toolchain)?;
    // Beyond the deadline too: the point of a curve is to see where it goes.
    let limits =
        HookLimits { deadline: REPLAY_DEADLINE, wall_max: REPLAY_DEADLINE * 3, ..HookLimits::default() };
    let step = Step::start("Compiling for both engines");
    let fast = souk_sandbox::HookEngine::new(limits.clone())?
        .load(&subject.bytes)
        .with_context(|| format!("load {}", subject.file.display()))?;
    let counting = metered::engine(limits.clone())?.load(&subject.bytes)?;
    step.done("");
    let fixture = match &args.fixture {
        Some(file) => trial::fixture(file)?,
        None => a_fixture(&args.plugin, &fast)?,
    };
    let base = fixture.recording("bench".parse().expect("a label"), subject.plugin.clone(), fast.digest());
    if !fast.hooks().contains(&base.hook) {
        return Err(Usage(format!("{} has no {} hook", subject.file.display(), base.hook)).into());
    }
    let own = HookLimits::default();
    let deadline = args.deadline_ms.map_or(own.deadline, |ms| Duration::from_secs_f64(ms.max(0.0) / 1e3));
    let data: Arc<dyn SiteData> = Playback::of(&base.host_calls);
    let setting = Setting {
        plugin: &subject.plugin,
        context: &base.context,
        data: &data,
        allowance: Allowance { deadline: REPLAY_DEADLINE, host_calls: own.host_calls_max },
    };
    let step = Step::counted("Measuring", LINES.len() as u64);
    let mut curve = CostCurve { points: Vec::new() };
    let mut fails = None;
    for lines in LINES {
        step.note(format!("{lines} lines"));
        match measure(&setting, &fast, &counting, &of_size(&base, lines)) {
            Ok((instructions, time)) => {
                curve.points.push(CostPoint { lines, instructions, micros: time.as_secs_f64() * 1e6 })
            }
            Err(why) => {
                fails = Some(Failing { lines, why });
                break;
            }
        }
        step.advance(1);
    }
    step.done(&format!("{} sizes", curve.points.len()));
    let flame = match &args.flame {
        Some(file) => Some(flame(&setting, &fast, &of_size(&base, args.flame_lines), file)?),
        None => None,
    };
    let report = Report {
        component: subject.file,
        hook: base.hook,
        deadline_ms: deadline.as_secs_f64() * 1e3,
        over_deadline_at_lines: curve.over_budget_at(deadline, 100_000),
        instructions_per_line: curve.instructions_per_line(),
        curve,
        fails,
        flame,
    };
    if args.json {
        terminal::json(&report);
    } else {
        print(&report);
    }
    Ok(ExitCode::from(u8::from(report.curve.points.is_empty())))
}

/// Exact count and median time of one call. A plugin that fails has no cost worth a point on a curve.
fn measure(
    setting: &Setting<'_>,
    fast: &HookPlugin,
    counting: &HookPlugin,
    subject: &Subject,
) -> Result<(u64, Duration), String> {
    let host = |fault: Fault| fault.to_string();
    let counted = setting.count(counting, subject).map_err(host)?;
    if let Outcome::Failed { fault, detail } = counted.outcome {
        return Err(format!("{detail} ({fault})"));
    }
    let time = setting.time(fast, subject, RUNS).map_err(host)?;
    Ok((counted.instructions, time))
}

fn flame(
    setting: &Setting<'_>,
    fast: &HookPlugin,
    subject: &Subject,
    file: &std::path::Path,
) -> anyhow::Result<Flame> {
    let step = Step::start("Profiling");
    let taken = profile::profile(fast, setting, subject, FLAME_TIME)?;
    std::fs::write(file, &taken.json).with_context(|| format!("write {}", file.display()))?;
    step.done(&format!("{} samples of {} calls", taken.samples, taken.calls));
    Ok(Flame { file: file.to_owned(), samples: taken.samples, calls: taken.calls })
}

/// The first fixture of the project that is about a hook of the plugin; else a call that any shop could make.
fn a_fixture(plugin: &std::path::Path, loaded: &HookPlugin) -> anyhow::Result<Fixture> {
    let folder = if plugin.is_dir() { plugin.join(FIXTURES) } else { plugin.with_file_name(FIXTURES) };
    let fixtures = if folder.is_dir() { trial::fixtures(&folder)? } else { Vec::new() };
    if let Some((_, fixture)) =
        fixtures.into_iter().find(|(_, fixture)| loaded.hooks().contains(&fixture.input.hook()))
    {
        return Ok(fixture);
    }
    let mug = r#"{"sku": "MUG", "title": "Mug, stoneware", "price": 1250, "tags": ["kitchen", "gift"],
                  "attributes": [["colour", "blue"]], "stock": "in_stock"}"#;
    let lines = format!(r#""lines": [{{"quantity": 2, "product": {mug}}}]"#);
    let input = match loaded.hooks().first() {
        Some(Hook::Catalog) => format!(r#"{{"catalog": {{"products": [{mug}]}}}}"#),
        Some(Hook::Pricing) => format!(r#"{{"pricing": {{{lines}}}}}"#),
        Some(Hook::Cart) => {
            format!(r#"{{"cart": {{{lines}, "change": {{"add": {{"sku": "MUG", "quantity": 1}}}}}}}}"#)
        }
        Some(Hook::Checkout) => format!(r#"{{"checkout": {{{lines}, "total": 2500}}}}"#),
        None => return Err(Usage("the component has no hook".to_owned()).into()),
    };
    let text = format!(
        r#"{{"souk_fixture": 1, "context": {{"currency": "GBP", "country": "GB", "now_ms": 1750000000000}},
             "input": {input}, "expect": {{"adjusted": []}}}}"#
    );
    Ok(Fixture::decode(text.as_bytes()).expect("this file's own text is a fixture"))
}

/// The recorded call with so many lines (or products): its own, again and again, each time as other products.
fn of_size(base: &Recording, size: u32) -> Subject {
    let lines = |lines: &[Line]| -> Vec<Line> {
        let again = lines.iter().cycle().take(if lines.is_empty() { 0 } else { size as usize });
        again.zip(0_u32..).map(|(line, i)| renamed(line, i)).collect()
    };
    let input = match &base.input {
        Input::Catalog { products } => {
            let again = products.iter().cycle().take(if products.is_empty() { 0 } else { size as usize });
            let products = again
                .zip(0_u32..)
                .map(|(good, i)| record::Good { sku: numbered(&good.sku, i), ..good.clone() });
            Input::Catalog { products: products.collect() }
        }
        Input::Pricing { lines: all } => Input::Pricing { lines: lines(all) },
        Input::Cart { lines: all, change } => Input::Cart { lines: lines(all), change: change.clone() },
        Input::Checkout { lines: all, total } => Input::Checkout { lines: lines(all), total: *total },
    };
    Subject::from(&input)
}

fn renamed(line: &Line, i: u32) -> Line {
    let mut line = line.clone();
    line.line.sku = numbered(&line.line.sku, i);
    line.product.sku = line.line.sku.clone();
    line
}

/// The first of a kind keeps its name: a plugin may look for it.
fn numbered(sku: &Sku, i: u32) -> Sku {
    if i == 0 {
        return sku.clone();
    }
    let number = format!("-{i}");
    let kept = &sku.as_str()[..sku.as_str().len().min(souk_commerce::id::SKU_BYTES_MAX - number.len())];
    format!("{kept}{number}").parse().unwrap_or_else(|_| sku.clone())
}

fn print(report: &Report) {
    anstream::println!("{BOLD}{}, {} hook{BOLD:#}", report.component.display(), report.hook);
    anstream::println!("  {DIM}{:>8}  {:>14}  {:>12}{DIM:#}", "lines", "instructions", "time");
    for point in &report.curve.points {
        anstream::println!(
            "  {:>8}  {:>14}  {:>9.1} us",
            point.lines,
            grouped(point.instructions),
            point.micros
        );
    }
    if let Some(each) = report.instructions_per_line {
        anstream::println!("  {each:.0} instructions for each further line");
    }
    if let Some(failing) = &report.fails {
        anstream::println!("  {WARN}fails at {} lines{WARN:#}: {}", failing.lines, failing.why);
    }
    match report.over_deadline_at_lines {
        Some(lines) => anstream::println!(
            "  {WARN}over budget at {lines} lines{WARN:#}: the whole chain has {} ms, on this machine",
            report.deadline_ms
        ),
        None => anstream::println!("  {GOOD}within {} ms{GOOD:#} at any size", report.deadline_ms),
    }
    if let Some(flame) = &report.flame {
        anstream::println!(
            "  {} samples of {} calls in {}: load it into https://profiler.firefox.com",
            flame.samples,
            flame.calls,
            flame.file.display()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cart_of_any_size_has_distinct_products_and_keeps_the_first() {
        let sku: Sku = "x".repeat(64).parse().expect("a sku");
        assert_eq!(numbered(&sku, 0), sku);
        let names: std::collections::HashSet<String> =
            (0..1_000).map(|i| numbered(&sku, i).as_str().to_owned()).collect();
        assert_eq!(names.len(), 1_000);
    }
}
