//! `souk plugin build`: from a Rust crate to a validated component, in one command and with no further tool.
//!
//! ```text
//! crate ─ toolchain ─▶ cargo ─▶ core module ─ component ─▶ component ─ sandbox's check ─▶ file
//! ```
//!
//! [`toolchain`] finds a compiler for Wasm (and [`debian`] fetches one where rustup cannot), [`cargo`] drives it,
//! [`component`] turns the result into a component and reads what it imports and exports. `souk demo` builds the
//! first-party plugins through the same [`build`].

mod cargo;
mod component;
mod debian;
mod toolchain;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context as _;
use serde::Serialize;
use souk_commerce::id::Digest;

use crate::args::{PluginBuildArgs, ToolchainChoice};
use crate::terminal::{self, BOLD, DIM, Step};

pub(crate) use self::toolchain::Toolchain;

/// The only target: a plugin that imports no system interface is the ideal sandbox.
const TARGET: &str = "wasm32-unknown-unknown";

/// A component that was built and checked.
#[derive(Debug, Clone, Serialize)]
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

pub(crate) fn command(args: &PluginBuildArgs) -> anyhow::Result<ExitCode> {
    let step = Step::start(format!("Building {}", args.dir.display()));
    let package = cargo::Package::read(&args.dir)?;
    let toolchain = Toolchain::find(args.toolchain, &args.dir, &|text| step.note(text))?;
    let built = build_package(&package, &toolchain, args.out.as_deref(), &|text| step.note(text))?;
    step.done(&format!("{}, {}", built.plugin, terminal::size(built.bytes)));
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

/// Builds one crate; `note` is told what is going on.
pub(crate) fn build(
    dir: &Path,
    toolchain: &Toolchain,
    note: &(dyn Fn(String) + Sync),
) -> anyhow::Result<Built> {
    build_package(&cargo::Package::read(dir)?, toolchain, None, note)
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
    out: Option<&Path>,
    note: &(dyn Fn(String) + Sync),
) -> anyhow::Result<Built> {
    let since = Instant::now();
    let module = package.compile(toolchain, note)?;
    note(format!("{}: making the component", package.name));
    let core = std::fs::read(&module).with_context(|| format!("read {}", module.display()))?;
    let component =
        component::encode(&core).with_context(|| format!("make a component of {}", package.name))?;
    let shape = component::Shape::read(&component)?;
    shape.check(&package.name)?;
    if !shape.hooks.is_empty() {
        component::check_contract(&component)
            .with_context(|| format!("{} breaks the plugin contract", package.name))?;
    }
    let file = match out {
        Some(out) => out.to_owned(),
        None => package.out_dir().join(format!("{}.wasm", package.name)),
    };
    write_if_changed(&file, &component)?;
    Ok(Built {
        plugin: package.name.clone(),
        file,
        bytes: component.len() as u64,
        sha256: Digest::of(&component),
        hooks: shape.hooks,
        imports: shape.imports,
        exports: shape.exports,
        toolchain: toolchain.to_string(),
        seconds: since.elapsed().as_secs_f64(),
    })
}

/// Whole or not at all, and untouched where it would be the same: who watches the file is told of changes only.
fn write_if_changed(file: &Path, bytes: &[u8]) -> anyhow::Result<()> {
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
