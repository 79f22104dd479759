//! JavaScript: hooks run on QuickJS (1.6 MB, two seconds to build), HTTP plugins on StarlingMonkey (14 MB, fetch events).
//!
//! Before that esbuild makes one file of the source and what it imports: files beside it, packages of npm in either module
//! format, TypeScript. All tools come from npm, at the versions that the project's lock file pins, into the project's own
//! `node_modules`. QuickJS is built without any WASI import, so such a hook is as pure as a Rust one. The same bundle is not
//! made into a component twice ([`super::unchanged`]): the bytes would be others.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use super::build::{Made, run_tool, world};
use super::project::{Kind, Named, Project};
use super::unchanged::Inputs;

const NO_NODE: &str = "install Node.js 20 or newer (https://nodejs.org, or `apt-get install nodejs npm`)";

/// The contract, in the project.
const WIT: &str = "souk/wit";
/// npm's own list of what it has put into `node_modules`, with versions and hashes.
const INSTALLED: &str = "node_modules/.package-lock.json";
const BUNDLER: &str = "esbuild/bin/esbuild";
/// Both engines know the language of that year; what is newer is rewritten.
const TARGET: &str = "--target=es2023";

/// Builds a project whose component is to lie at `file`.
pub(super) fn build(
    project: &Project,
    named: &Named,
    file: &Path,
    note: &(dyn Fn(String) + Sync),
) -> anyhow::Result<Made> {
    let script = match named.hook {
        Kind::Http => "@bytecodealliance/jco/dist/jco.js",
        _ => "componentize-qjs/cli.mjs",
    };
    let [tool, bundler] = install(&project.dir, [script, BUNDLER], note)?;
    let version = version(&tool)?;
    let scratch = tempfile::tempdir().context("create a folder for the component")?;
    note(format!("{}: bundling", named.name));
    let source = scratch.path().join("plugin.js");
    bundle(&bundler, project, named, &source)?;
    let world = world(named);
    let (command, options): (&[&str], &[&str]) = match named.hook {
        Kind::Http => (&["componentize"], &["--wit", WIT, "-n", &world]),
        _ => (&[], &["--wit", WIT, "-n", &world, "--stub-wasi", "--sync", "--js"]),
    };
    let mut inputs = Inputs::default();
    for word in [&*version].iter().chain(command).chain(options) {
        inputs.word(word);
    }
    // What npm has installed, the packages that the tool is made of among them. Another package manager has no such list.
    let installed = project.dir.join(INSTALLED);
    if installed.is_file() {
        inputs.file(&installed)?;
    }
    inputs.file(&source)?;
    inputs.folder(&project.dir.join(WIT))?;
    if let Some(component) = inputs.last(&project.dir, file) {
        return Ok(Made { component, tool: version });
    }
    note(format!("{}: making the component", named.name));
    let out = scratch.path().join("plugin.wasm");
    // Node is called itself: a shim of npm's would be one more process that a Ctrl-C leaves behind.
    let mut node = Command::new("node");
    node.current_dir(&project.dir).arg(&tool).args(command);
    match named.hook {
        Kind::Http => node.arg(&source).args(options),
        _ => node.args(options).arg(&source),
    };
    run_tool(node.arg("-o").arg(&out), NO_NODE)?;
    let component = std::fs::read(&out).context("read what the tool wrote")?;
    inputs.made(&project.dir, &component)?;
    Ok(Made { component, tool: version })
}

/// One file of the source and everything that it imports but the host.
fn bundle(bundler: &Path, project: &Project, named: &Named, out: &Path) -> anyhow::Result<()> {
    let mut esbuild = Command::new(bundler);
    esbuild.current_dir(&project.dir).arg(&named.source);
    // Neither a browser nor Node: packages are asked for their plain module first, then for whatever they have.
    esbuild.args(["--bundle", "--format=esm", "--platform=neutral", "--main-fields=module,main"]);
    esbuild.args(["--external:souk:*", "--external:wasi:*", TARGET, "--log-level=warning", "--color=false"]);
    let mut outfile = std::ffi::OsString::from("--outfile=");
    outfile.push(out);
    run_tool(esbuild.arg(outfile), NO_NODE).map(drop)
}

/// The tools' scripts in the project's `node_modules`, fetched there if one is absent.
fn install<const N: usize>(
    dir: &Path,
    scripts: [&str; N],
    note: &(dyn Fn(String) + Sync),
) -> anyhow::Result<[PathBuf; N]> {
    let tools = scripts.map(|script| dir.join("node_modules").join(script));
    if !tools.iter().all(|tool| tool.is_file()) {
        note("fetching the pinned tools with npm".to_owned());
        // Not `ci`: a lock file names no package for a platform that the registry it was made from lacked, and `ci` then
        // refuses. Versions are exact in package.json, and the lock file's hashes are checked all the same.
        run_tool(Command::new("npm").current_dir(dir).args(["install", "--no-audit", "--no-fund"]), NO_NODE)
            .context("fetch the tools that package.json names")?;
    }
    for (tool, script) in tools.iter().zip(scripts) {
        anyhow::ensure!(
            tool.is_file(),
            "npm installed no {script}; package.json must name the tool as a development dependency, as that of \
             `souk plugin new` does"
        );
    }
    Ok(tools)
}

/// `componentize-qjs 0.4.5`, from the package that the script belongs to.
fn version(tool: &Path) -> anyhow::Result<String> {
    #[derive(serde::Deserialize)]
    struct Package {
        name: String,
        version: String,
    }
    let file = tool.ancestors().map(|dir| dir.join("package.json")).find(|file| file.is_file());
    let file = file.with_context(|| format!("find the package of {}", tool.display()))?;
    let text = std::fs::read(&file).with_context(|| format!("read {}", file.display()))?;
    let Package { name, version } =
        serde_json::from_slice(&text).with_context(|| format!("read {}", file.display()))?;
    Ok(format!("{name} {version}"))
}
