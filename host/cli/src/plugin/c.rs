//! C, with any compiler that knows Wasm: `$SOUK_CC`, else a zig on the PATH, else zig from PyPI in the project's `.venv`.
//!
//! The compiler makes a core module of the plugin and the bindings beside it (`souk/bindings.c`, written by wit-bindgen
//! from the contract). The component's type is put in here, from the project's own WIT, so that no binary file has to
//! travel with the bindings.

use std::path::Path;
use std::process::Command;

use anyhow::Context as _;

use super::build::{Made, run_tool, world};
use super::project::{Named, Project};
use super::{component, python};

const NO_ZIG: &str =
    "install zig (https://ziglang.org/download), or name a C compiler for wasm32-wasi in SOUK_CC";

/// Small and quick, a library rather than a program, and a stack of one page: zig's own would be 16 MiB, which is all that
/// a hook may have.
const FLAGS: [&str; 6] =
    ["-target", "wasm32-wasi", "-Os", "-mexec-model=reactor", "-Wl,-z,stack-size=65536", "-Wall"];

pub(super) fn build(
    project: &Project,
    named: &Named,
    note: &(dyn Fn(String) + Sync),
) -> anyhow::Result<Made> {
    let mut compiler = compiler(&project.dir, note)?;
    note(format!("{}: compiling", named.name));
    let scratch = tempfile::tempdir().context("create a folder for the module")?;
    let out = scratch.path().join("plugin.wasm");
    let cc = compiler.current_dir(&project.dir).args(FLAGS).arg("-Isouk");
    cc.arg(&named.source).arg("souk/bindings.c").arg("-o").arg(&out);
    run_tool(cc, NO_ZIG)?;
    let core = std::fs::read(&out).context("read what the compiler wrote")?;
    let core = component::describe(core, &project.dir.join("souk/wit"), &world(named))?;
    let component =
        component::encode(&core).with_context(|| format!("make a component of {}", named.name))?;
    Ok(Made { component, tool: "C".to_owned() })
}

/// A compiler driver that takes clang's arguments.
fn compiler(dir: &Path, note: &(dyn Fn(String) + Sync)) -> anyhow::Result<Command> {
    if let Some(own) = std::env::var_os("SOUK_CC").filter(|v| !v.is_empty()) {
        return Ok(Command::new(own));
    }
    let on_path = Command::new("zig").arg("version").output().is_ok_and(|o| o.status.success());
    let mut zig =
        if on_path { Command::new("zig") } else { Command::new(python::install(dir, "python-zig", note)?) };
    zig.arg("cc");
    Ok(zig)
}
