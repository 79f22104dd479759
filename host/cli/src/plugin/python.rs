//! Python, with componentize-py: CPython itself, the plugin and what it imports become one component of 18 MB.
//!
//! The tool comes from PyPI, at the version that `requirements.txt` pins, into the project's own `.venv`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use super::build::{Made, run_tool, world};
use super::project::{Kind, Named, Project};

const NO_PYTHON: &str =
    "install Python 3.10 or newer (https://python.org, or `apt-get install python3 python3-venv`)";

pub(super) fn build(
    project: &Project,
    named: &Named,
    note: &(dyn Fn(String) + Sync),
) -> anyhow::Result<Made> {
    let tool = install(&project.dir, "componentize-py", note)?;
    let source = project.dir.join(&named.source);
    let folder = source.parent().context("a source file lies in a folder")?;
    let module = source.file_stem().context("a source file has a name")?;
    note(format!("{}: making the component", named.name));
    let scratch = tempfile::tempdir().context("create a folder for the component")?;
    let out = scratch.path().join("plugin.wasm");
    let mut python = Command::new(&tool);
    python.current_dir(&project.dir).args(["-q", "-d", "souk/wit", "-w", &world(named), "componentize"]);
    if named.hook != Kind::Http {
        // Without WASI a hook has no clock and no randomness, as the contract wants it.
        python.arg("--stub-wasi");
    }
    python.arg("-p").arg(folder).arg("-o").arg(&out).arg(module);
    run_tool(&mut python, NO_PYTHON)?;
    let component = std::fs::read(&out).context("read what the tool wrote")?;
    let version = run_tool(Command::new(&tool).arg("--version"), NO_PYTHON)?;
    Ok(Made { component, tool: version.trim().to_owned() })
}

/// A program of the project's `.venv`, fetched there if it is absent.
pub(super) fn install(dir: &Path, program: &str, note: &(dyn Fn(String) + Sync)) -> anyhow::Result<PathBuf> {
    let tool = dir.join(".venv/bin").join(program);
    if !tool.is_file() {
        note("fetching the pinned tools with pip into .venv".to_owned());
        run_tool(Command::new("python3").current_dir(dir).args(["-m", "venv", ".venv"]), NO_PYTHON)
            .context("make the project's .venv")?;
        let pip = dir.join(".venv/bin/pip");
        run_tool(
            Command::new(pip).current_dir(dir).args(["install", "-q", "-r", "requirements.txt"]),
            NO_PYTHON,
        )
        .context("fetch the tools that requirements.txt names")?;
    }
    anyhow::ensure!(tool.is_file(), "pip installed no {program}; requirements.txt must name it");
    Ok(tool)
}
