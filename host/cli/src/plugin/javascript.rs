//! JavaScript: hooks run on QuickJS (1.6 MB, two seconds to build), HTTP plugins on StarlingMonkey (14 MB, fetch events).
//!
//! Both come from npm, at the versions that the project's lock file pins, into the project's own `node_modules`. QuickJS is
//! built without any WASI import, so such a hook is as pure as a Rust one.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use super::build::{Made, run_tool, world};
use super::project::{Kind, Named, Project};

const NO_NODE: &str = "install Node.js 20 or newer (https://nodejs.org, or `apt-get install nodejs npm`)";

pub(super) fn build(
    project: &Project,
    named: &Named,
    note: &(dyn Fn(String) + Sync),
) -> anyhow::Result<Made> {
    let script = match named.hook {
        Kind::Http => "@bytecodealliance/jco/dist/jco.js",
        _ => "componentize-qjs/cli.mjs",
    };
    let tool = install(&project.dir, script, note)?;
    note(format!("{}: making the component", named.name));
    let scratch = tempfile::tempdir().context("create a folder for the component")?;
    let out = scratch.path().join("plugin.wasm");
    // Node is called itself: a shim of npm's would be one more process that a Ctrl-C leaves behind.
    let mut node = Command::new("node");
    node.current_dir(&project.dir).arg(&tool);
    match named.hook {
        Kind::Http => {
            node.arg("componentize").arg(&named.source).args(["--wit", "souk/wit", "-n", &world(named)]);
        }
        _ => {
            node.args(["--wit", "souk/wit", "-n", &world(named), "--stub-wasi", "--sync", "--js"]);
            node.arg(&named.source);
        }
    }
    run_tool(node.arg("-o").arg(&out), NO_NODE)?;
    let component = std::fs::read(&out).context("read what the tool wrote")?;
    Ok(Made { component, tool: version(&tool)? })
}

/// The tool's script in the project's `node_modules`, fetched there if it is absent.
fn install(dir: &Path, script: &str, note: &(dyn Fn(String) + Sync)) -> anyhow::Result<PathBuf> {
    let tool = dir.join("node_modules").join(script);
    if !tool.is_file() {
        note("fetching the pinned tools with npm".to_owned());
        // Not `ci`: a lock file names no package for a platform that the registry it was made from lacked, and `ci` then
        // refuses. Versions are exact in package.json, and the lock file's hashes are checked all the same.
        run_tool(Command::new("npm").current_dir(dir).args(["install", "--no-audit", "--no-fund"]), NO_NODE)
            .context("fetch the tools that package.json names")?;
    }
    anyhow::ensure!(
        tool.is_file(),
        "npm installed no {script}; package.json must name the tool as a development dependency"
    );
    Ok(tool)
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
