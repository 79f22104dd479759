//! `souk plugin inspect`: what a component is and what it can do, without running any of it.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use souk_commerce::id::Digest;
use souk_sandbox::admit::{self, Capabilities, Change};
use souk_sandbox::{Complaint, HookLimits};

use super::trial;
use crate::args::ToolchainChoice;
use crate::failure::Usage;
use crate::terminal::{self, BOLD, DIM, GOOD, WARN};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  souk plugin inspect build/tea-week.wasm\n  \
                        souk plugin inspect new.wasm --against old.wasm --json\n\n\
                        Ends with 0 if a region would admit the component, else with 1.")]
pub(crate) struct InspectArgs {
    /// A component, or a project, which is built first
    #[arg(value_name = "FILE|DIR", default_value = ".")]
    pub(crate) plugin: PathBuf,
    /// Say what changed since this component
    #[arg(long, value_name = "FILE")]
    pub(crate) against: Option<PathBuf>,
    /// Which Rust compiler to build a project with
    #[arg(long, value_enum, default_value_t, env = "SOUK_TOOLCHAIN")]
    pub(crate) toolchain: ToolchainChoice,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    file: PathBuf,
    sha256: Digest,
    /// `hooks`, `http`, or neither.
    kind: Option<&'static str>,
    /// The versions of `souk:plugin` that its names mention.
    contract: Vec<String>,
    capabilities: Capabilities,
    complaints: Vec<Wrong>,
    #[serde(skip_serializing_if = "Option::is_none")]
    changes: Option<Vec<Change>>,
}

#[derive(Debug, Serialize)]
struct Wrong {
    code: &'static str,
    detail: String,
}

impl From<Complaint> for Wrong {
    fn from(complaint: Complaint) -> Self {
        Self { code: complaint.code, detail: complaint.detail }
    }
}

pub(crate) fn command(args: &InspectArgs) -> anyhow::Result<ExitCode> {
    let subject = trial::subject(&args.plugin, args.toolchain)?;
    let memory_bytes_max = HookLimits::default().memory_bytes_max;
    let capabilities = look(&subject.bytes, &subject.file)?;
    let kind = capabilities.kind();
    let judged = match kind {
        Some(souk_commerce::site::Kind::Http) => {
            admit::http(&subject.bytes, souk_sandbox::http::HttpLimits::default().memory_bytes_max)
        }
        Some(souk_commerce::site::Kind::Hooks) | None => admit::hooks(&subject.bytes, memory_bytes_max),
    };
    let complaints: Vec<Wrong> = judged
        .err()
        .map(|refused| refused.complaints)
        .unwrap_or_default()
        .into_iter()
        .map(Wrong::from)
        .collect();
    let changes = match &args.against {
        Some(old) => Some(look(&trial::read_component(old)?, old)?.diff(&capabilities)),
        None => None,
    };
    let report = Report {
        sha256: Digest::of(&subject.bytes),
        file: subject.file,
        kind: kind.map(souk_commerce::site::Kind::name),
        contract: versions(&capabilities),
        capabilities,
        complaints,
        changes,
    };
    if args.json {
        terminal::json(&report);
    } else {
        print(&report);
    }
    Ok(ExitCode::from(u8::from(!report.complaints.is_empty())))
}

/// The capabilities of a component of any kind: the limits on its shape are the only judgement here.
fn look(bytes: &[u8], file: &std::path::Path) -> anyhow::Result<Capabilities> {
    // No limit on memory: how much a component may have depends on its kind, which is yet to be seen.
    admit::inspect(bytes, usize::MAX)
        .map_err(|refused| Usage(format!("{}: {refused}", file.display())).into())
}

fn versions(capabilities: &Capabilities) -> Vec<String> {
    let names = capabilities.exports.iter().chain(capabilities.imports.keys());
    let mut versions: Vec<String> = names
        .filter_map(|name| name.strip_prefix("souk:plugin/")?.split_once('@'))
        .map(|(_, version)| version.to_owned())
        .collect();
    versions.sort_unstable();
    versions.dedup();
    versions
}

fn print(report: &Report) {
    let capabilities = &report.capabilities;
    let hooks: Vec<&str> = capabilities.hooks.iter().map(|hook| hook.name()).collect();
    let or_none = |text: String| if text.is_empty() { "none".to_owned() } else { text };
    anstream::println!("{BOLD}{}{BOLD:#}", report.file.display());
    anstream::println!("  sha256    {}", report.sha256);
    anstream::println!("  size      {}", terminal::size(capabilities.bytes));
    anstream::println!("  kind      {}", report.kind.unwrap_or("neither hooks nor http"));
    anstream::println!("  hooks     {}", or_none(hooks.join(", ")));
    anstream::println!("  contract  {}", or_none(report.contract.join(", ")));
    anstream::println!("  memory    {} to begin with", terminal::size(capabilities.memory_bytes_min));
    for (i, export) in capabilities.exports.iter().enumerate() {
        anstream::println!("  {:8}  {export}", if i == 0 { "exports" } else { "" });
    }
    if capabilities.imports.is_empty() {
        anstream::println!("  imports   none");
    }
    for (i, (import, functions)) in capabilities.imports.iter().enumerate() {
        let functions: Vec<&str> = functions.iter().map(String::as_str).collect();
        let functions = functions.join(", ");
        anstream::println!("  {:8}  {import} {DIM}{functions}{DIM:#}", if i == 0 { "imports" } else { "" });
    }
    if let Some(changes) = &report.changes {
        if changes.is_empty() {
            anstream::println!("  changes   none in what it can do");
        }
        for (i, change) in changes.iter().enumerate() {
            anstream::println!("  {:8}  {change}", if i == 0 { "changes" } else { "" });
        }
    }
    if report.complaints.is_empty() {
        anstream::println!("  {GOOD}a region would admit it{GOOD:#}");
    } else {
        anstream::println!("  {WARN}a region would refuse it{WARN:#}:");
        for wrong in &report.complaints {
            anstream::println!("    {} ({})", wrong.detail, wrong.code);
        }
    }
}
