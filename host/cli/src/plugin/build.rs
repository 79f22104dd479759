//! `souk plugin build`: from a merchant's project to a checked component, in one command.
//!
//! ```text
//! project ─ language's own tools ─▶ core module or component ─ component ─▶ component ─ sandbox's check ─▶ file
//! ```
//!
//! It owns what all languages have in common: the check, the file, the report. How a language becomes Wasm is known to
//! [`cargo`], [`javascript`], [`python`] and [`c`] alone. `souk demo` builds the first-party plugins through [`build`],
//! [`super::dev`] rebuilds through [`build_project`].

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context as _, bail};
use clap::Args;
use serde::{Deserialize, Serialize};
use souk_commerce::id::Digest;

use super::project::{Language, Named, Project};
use super::toolchain::Toolchain;
use super::{c, cargo, component, javascript, python};
use crate::args::ToolchainChoice;
use crate::terminal::{self, BOLD, DIM, Step};

/// Lines of a tool's output that an error repeats: of its beginning, and of its end. Some say first what is wrong, some
/// last, and some print their manual in between.
const OUTPUT_LINES_MAX: usize = 25;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  souk plugin build\n  souk plugin build plugins/pricing --out pricing.wasm --json\n\n\
                        The folder holds a plugin.toml (`souk plugin new` writes it) or is a Rust crate.\n\
                        rust    a compiler for wasm32-unknown-unknown: a target that is installed, `rustup target add`, on Debian and\n        \
                        Ubuntu the distribution's compiler (downloaded with apt-get and unpacked into ~/.cache/souk or\n        \
                        $SOUK_TOOLCHAIN_DIR, nothing is installed)\n\
                        js      Node.js 20 or newer; `npm install` fetches the pinned tools into the project when they are absent\n\
                        python  Python 3.10 or newer; pip fetches the pinned tools into the project's .venv when they are absent\n\
                        c       $SOUK_CC, else zig, else zig from PyPI in the project's .venv"
)]
pub(crate) struct BuildArgs {
    /// The project's folder
    #[arg(value_name = "DIR", default_value = ".")]
    pub(crate) dir: PathBuf,
    /// Where to write the component [default: build/NAME.wasm; of a crate without plugin.toml souk-plugins/NAME.wasm
    /// under its target folder]
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Which Rust compiler to use
    #[arg(long, value_enum, default_value_t, env = "SOUK_TOOLCHAIN")]
    pub(crate) toolchain: ToolchainChoice,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

/// A component that was built and checked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Built {
    pub(crate) plugin: String,
    pub(crate) file: PathBuf,
    pub(crate) bytes: u64,
    pub(crate) sha256: Digest,
    /// The hooks it exports, by their names in the contract.
    pub(crate) hooks: Vec<String>,
    pub(crate) imports: Vec<String>,
    pub(crate) exports: Vec<String>,
    pub(crate) toolchain: String,
    pub(crate) seconds: f64,
}

pub(crate) fn command(args: &BuildArgs) -> anyhow::Result<ExitCode> {
    let project = Project::read(&args.dir)?;
    let step = Step::start(format!("Building {}", project.title()));
    let built = build_project(&project, args.toolchain, args.out.as_deref(), &|text| step.note(text))?;
    step.done(&terminal::size(built.bytes));
    if args.json {
        terminal::json(&built);
        return Ok(ExitCode::SUCCESS);
    }
    let listed = |names: &[String]| if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
    anstream::println!("{BOLD}{}{BOLD:#}", built.file.display());
    anstream::println!("  size      {}", terminal::size(built.bytes));
    anstream::println!("  sha256    {}", built.sha256);
    anstream::println!("  hooks     {}", listed(&built.hooks));
    anstream::println!("  exports   {}", listed(&built.exports));
    anstream::println!("  imports   {}", listed(&built.imports));
    anstream::println!("  {DIM}{} in {:.1} s{DIM:#}", built.toolchain, built.seconds);
    Ok(ExitCode::SUCCESS)
}

/// What a language's tools made of a project.
pub(super) struct Made {
    pub(super) component: Vec<u8>,
    /// The tool and its version, for the report.
    pub(super) tool: String,
}

/// Builds whatever the project is written in; `note` is told what is going on.
pub(crate) fn build_project(
    project: &Project,
    choice: ToolchainChoice,
    out: Option<&Path>,
    note: &(dyn Fn(String) + Sync),
) -> anyhow::Result<Built> {
    let since = Instant::now();
    let named = match &project.named {
        Some(named) if project.language != Language::Rust => named,
        _ => {
            let package = cargo::Package::read(&project.dir)?;
            let toolchain = Toolchain::find(choice, &project.dir, note)?;
            let out = out.map(Path::to_owned).or_else(|| project.component());
            let name = project.named.as_ref().map(|named| named.name.as_str());
            return build_package(&package, &toolchain, name, out, note);
        }
    };
    let file = out.map(Path::to_owned).or_else(|| project.component());
    let file = file.context("a project with a plugin.toml has a place for its component")?;
    let made = match project.language {
        Language::Js => javascript::build(project, named, &file, note)?,
        Language::Python => python::build(project, named, note)?,
        Language::C | Language::Rust => c::build(project, named, note)?,
    };
    finish(named.name.as_str(), made, file, since)
}

/// Builds one crate; `note` is told what is going on.
pub(crate) fn build(
    dir: &Path,
    toolchain: &Toolchain,
    note: &(dyn Fn(String) + Sync),
) -> anyhow::Result<Built> {
    build_package(&cargo::Package::read(dir)?, toolchain, None, None, note)
}

/// Finds the compiler once for several builds.
pub(crate) fn find_toolchain(
    choice: ToolchainChoice,
    dir: &Path,
    note: &(dyn Fn(String) + Sync),
) -> anyhow::Result<Toolchain> {
    Ok(Toolchain::find(choice, dir, note)?)
}

fn build_package(
    package: &cargo::Package,
    toolchain: &Toolchain,
    name: Option<&str>,
    out: Option<PathBuf>,
    note: &(dyn Fn(String) + Sync),
) -> anyhow::Result<Built> {
    let since = Instant::now();
    let name = name.unwrap_or(&package.name);
    let module = package.compile(toolchain, note)?;
    note(format!("{name}: making the component"));
    let core = std::fs::read(&module).with_context(|| format!("read {}", module.display()))?;
    let component = component::encode(&core).with_context(|| format!("make a component of {name}"))?;
    let file = out.unwrap_or_else(|| package.out_dir().join(format!("{name}.wasm")));
    finish(name, Made { component, tool: toolchain.to_string() }, file, since)
}

/// The same judgement for every language, then the file.
fn finish(name: &str, made: Made, file: PathBuf, since: Instant) -> anyhow::Result<Built> {
    let Made { component, tool } = made;
    let shape = component::Shape::read(&component)?;
    shape.check(name)?;
    if !shape.hooks.is_empty() {
        component::check_contract(&component)
            .with_context(|| format!("{name} breaks the plugin contract"))?;
    }
    write_if_changed(&file, &component)?;
    Ok(Built {
        plugin: name.to_owned(),
        file,
        bytes: component.len() as u64,
        sha256: Digest::of(&component),
        hooks: shape.hooks,
        imports: shape.imports,
        exports: shape.exports,
        toolchain: tool,
        seconds: since.elapsed().as_secs_f64(),
    })
}

/// Whole or not at all, and untouched where it would be the same: who watches the file is told of changes only.
pub(super) fn write_if_changed(file: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    if std::fs::read(file).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let folder = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let mut temporary = tempfile::NamedTempFile::new_in(folder)
        .with_context(|| format!("write into {}", folder.display()))?;
    std::io::Write::write_all(&mut temporary, bytes).with_context(|| format!("write {}", file.display()))?;
    temporary.persist(file).with_context(|| format!("write {}", file.display()))?;
    Ok(())
}

/// Runs another language's tool to its end. Its words are shown only if it fails; `missing` says how to get it.
pub(super) fn run_tool(tool: &mut Command, missing: &str) -> anyhow::Result<String> {
    let name = Path::new(tool.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let done = match tool.stdin(Stdio::null()).output() {
        Ok(done) => done,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => bail!("{name} is not installed; {missing}"),
        Err(e) => return Err(e).with_context(|| format!("start {name}")),
    };
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    if done.status.success() {
        return Ok(said);
    }
    let errors = String::from_utf8_lossy(&done.stderr);
    let lines: Vec<&str> = said.lines().chain(errors.lines()).filter(|l| !l.trim().is_empty()).collect();
    let end = lines.len().saturating_sub(OUTPUT_LINES_MAX).max(OUTPUT_LINES_MAX.min(lines.len()));
    let begin = OUTPUT_LINES_MAX.min(lines.len());
    let gap = if end > begin { "\n  …\n" } else { "\n" };
    let said = [lines[..begin].join("\n"), lines[end..].join("\n")].join(gap);
    bail!("{name} failed ({}):\n{}", done.status, said.trim_end())
}

/// The world of the contract that a project's hook is described by.
pub(super) fn world(named: &Named) -> String {
    format!("{}-plugin", named.hook)
}
