//! `souk plugin test`: the project's own tests, then its fixtures in the real sandbox.
//!
//! A fixture is a file of `fixtures/`. That of a hook is a call: `souk_sandbox::record::Fixture` says what is in it, `souk
//! plugin replay --save` makes one of a call that was recorded in production, and its instructions are counted exactly. That
//! of an HTTP plugin is an [`exchange`].

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;
use souk_commerce::site;
use souk_sandbox::record::{self, Fixture, Outcome};
use souk_sandbox::{HookPlugin, admit, metered};

use super::exchange;
use super::project::Project;
use super::trial::{self, FIXTURES, grouped};
use crate::args::ToolchainChoice;
use crate::failure::Usage;
use crate::terminal::{self, BOLD, DIM, GOOD, Step, WARN};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  souk plugin test\n  souk plugin test build/tea-week.wasm --fixtures fixtures --json\n\n\
                        The project's own tests run first (cargo test, npm test, unittest). Then each fixture is run in the sandbox: its outcome must be\n\
                        what the fixture expects. Those of hooks run twice, and both runs must take the same number of instructions.\n\
                        Ends with 0 if all fixtures pass, else with 1."
)]
pub(crate) struct TestArgs {
    /// A project, which is built first, or a component
    #[arg(value_name = "DIR|FILE", default_value = ".")]
    pub(crate) plugin: PathBuf,
    /// The folder of fixtures [default: fixtures in the project, or beside the component]
    #[arg(long, value_name = "DIR")]
    pub(crate) fixtures: Option<PathBuf>,
    /// Leave out the project's own tests
    #[arg(long)]
    pub(crate) no_native: bool,
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
    passed: usize,
    failed: usize,
    fixtures: Vec<Verdict>,
}

#[derive(Debug, Serialize)]
struct Verdict {
    file: String,
    name: String,
    passed: bool,
    instructions: Option<u64>,
    /// What is wrong, in sentences.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    wrong: Vec<String>,
}

pub(crate) fn command(args: &TestArgs) -> anyhow::Result<ExitCode> {
    let project = if args.plugin.is_dir() { Some(Project::read(&args.plugin)?) } else { None };
    let folder = args.fixtures.clone().unwrap_or_else(|| beside(&args.plugin));
    let native = project.as_ref().filter(|_| !args.no_native).and_then(Project::unit_tests);
    let ran_natively = native.is_some();
    if let Some(tests) = native {
        run_natively(tests)?;
    }
    let subject = trial::subject(&args.plugin, args.toolchain)?;
    let verdicts = match kind_of(&subject)? {
        // Its own tests may say all that there is to say; without them there must be something else.
        Some(site::Kind::Http) if ran_natively && args.fixtures.is_none() && !folder.is_dir() => Vec::new(),
        Some(site::Kind::Http) => exchanges(&folder, &subject)?,
        Some(site::Kind::Hooks) | None => calls(&folder, &subject)?,
    };
    if verdicts.is_empty() && (!ran_natively || args.fixtures.is_some()) {
        return Err(Usage(format!("{} has no fixtures: there is nothing to test", folder.display())).into());
    }
    let passed = verdicts.iter().filter(|verdict| verdict.passed).count();
    let judged =
        Report { component: subject.file, passed, failed: verdicts.len() - passed, fixtures: verdicts };
    report(args, &judged);
    Ok(ExitCode::from(u8::from(judged.failed > 0)))
}

/// What it is called for; none if it is no plugin, which loading it explains.
fn kind_of(subject: &trial::Subject) -> anyhow::Result<Option<site::Kind>> {
    let capabilities = admit::inspect(&subject.bytes, usize::MAX)
        .map_err(|refused| Usage(format!("{}: {refused}", subject.file.display())))?;
    Ok(capabilities.kind())
}

/// Runs each fixture of an HTTP plugin.
fn exchanges(folder: &Path, subject: &trial::Subject) -> anyhow::Result<Vec<Verdict>> {
    let exchanges = exchange::exchanges(folder)?;
    let step = Step::start(format!("Compiling {}", subject.file.display()));
    let judged = exchange::judge(&subject.bytes, &exchanges)
        .with_context(|| format!("test {}", subject.file.display()))?;
    step.done("");
    let verdicts = exchanges.into_iter().zip(judged).map(|((file, exchange), wrong)| Verdict {
        file,
        name: exchange.name,
        passed: wrong.is_empty(),
        instructions: None,
        wrong,
    });
    Ok(verdicts.collect())
}

/// Runs each fixture of a hook, a call each.
fn calls(folder: &Path, subject: &trial::Subject) -> anyhow::Result<Vec<Verdict>> {
    let fixtures = trial::fixtures(folder)?;
    let Some((_, first)) = fixtures.first() else {
        return Err(Usage(format!(
            "{} has no fixtures; `souk plugin replay CALL --save {}/NAME.json` makes one of a recorded call",
            folder.display(),
            folder.display()
        ))
        .into());
    };
    let engine = metered::engine(replay_limits(first, subject))?;
    let plugin = engine.load(&subject.bytes).with_context(|| format!("load {}", subject.file.display()))?;
    Ok(fixtures.into_iter().map(|(file, fixture)| judge(&plugin, subject, file, &fixture)).collect())
}

fn report(args: &TestArgs, report: &Report) {
    if args.json {
        terminal::json(report);
    } else {
        print(report);
    }
}

fn beside(plugin: &Path) -> PathBuf {
    if plugin.is_dir() { plugin.join(FIXTURES) } else { plugin.with_file_name(FIXTURES) }
}

/// The tests that run at native speed. Their output goes to the terminal as it is.
fn run_natively(mut tests: Command) -> anyhow::Result<()> {
    let name = tests.get_program().to_string_lossy().into_owned();
    // Standard output is for the result alone.
    let status = tests.stdin(Stdio::null()).stdout(std::io::stderr()).status();
    let status = status.with_context(|| format!("start {name}"))?;
    anyhow::ensure!(status.success(), "the project's own tests fail ({name}: {status})");
    Ok(())
}

/// All fixtures have the platform's limits.
fn replay_limits(fixture: &Fixture, subject: &trial::Subject) -> souk_sandbox::HookLimits {
    let recording = as_recording(fixture, subject);
    souk_sandbox::HookLimits::for_replay(&recording.limits)
}

fn as_recording(fixture: &Fixture, subject: &trial::Subject) -> record::Recording {
    fixture.recording(
        "fixture".parse().expect("a label of lower-case letters"),
        subject.plugin.clone(),
        souk_commerce::id::Digest::of(&subject.bytes),
    )
}

fn judge(plugin: &HookPlugin, subject: &trial::Subject, file: String, fixture: &Fixture) -> Verdict {
    let recording = as_recording(fixture, subject);
    let mut verdict =
        Verdict { file, name: fixture.name.clone(), passed: false, instructions: None, wrong: Vec::new() };
    let (first, second) = match (record::replay(plugin, &recording), record::replay(plugin, &recording)) {
        (Ok(first), Ok(second)) => (first, second),
        (Err(error), _) | (_, Err(error)) => {
            verdict.wrong.push(error.to_string());
            return verdict;
        }
    };
    verdict.instructions = first.instructions;
    if !fixture.meets(&first.outcome) {
        verdict.wrong.push(format!("expected {}", shown(&fixture.expect)));
        verdict.wrong.push(format!("came out {}", shown(&first.outcome)));
        for question in &first.unrecorded {
            verdict.wrong.push(format!("asked {question}, which the fixture does not answer"));
        }
    }
    if first != second {
        verdict
            .wrong
            .push("a second run was not the same: the sandbox is broken, please report it".to_owned());
    }
    if let (Some(count), Some(most)) = (first.instructions, fixture.instructions_max)
        && count > most
    {
        verdict.wrong.push(format!("{} instructions, more than {}", grouped(count), grouped(most)));
    }
    verdict.passed = verdict.wrong.is_empty();
    verdict
}

fn shown(outcome: &Outcome) -> String {
    serde_json::to_string(outcome).expect("outcomes have string keys only")
}

fn print(report: &Report) {
    for verdict in &report.fixtures {
        let title = if verdict.name.is_empty() { &verdict.file } else { &verdict.name };
        let count = verdict.instructions.map(|n| format!("{} instructions", grouped(n))).unwrap_or_default();
        if verdict.passed {
            anstream::println!("{GOOD}✓{GOOD:#} {title} {DIM}{count}{DIM:#}");
        } else {
            anstream::println!("{WARN}✗{WARN:#} {title} {DIM}{} {count}{DIM:#}", verdict.file);
            for wrong in &verdict.wrong {
                anstream::println!("    {wrong}");
            }
        }
    }
    if report.fixtures.is_empty() {
        anstream::println!("{DIM}no fixtures: its own tests were all that was run{DIM:#}");
        return;
    }
    anstream::println!("{BOLD}{} passed, {} failed{BOLD:#}", report.passed, report.failed);
}
