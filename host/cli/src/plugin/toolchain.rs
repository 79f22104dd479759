//! Finds a compiler that can build for Wasm, in the order that costs the user least.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::{TARGET, debian};
use crate::args::ToolchainChoice;

/// `rustup target add` fetches about 25 MB. Where its server cannot be reached it would try for many minutes.
const RUSTUP_DEADLINE: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(50);

/// A compiler that can build for Wasm.
#[derive(Debug, Clone)]
pub(crate) enum Toolchain {
    /// The compiler on the PATH has the target.
    Installed { version: String },
    /// A compiler of the distribution, unpacked into our own folder, that builds the standard library itself.
    Debian(debian::Unpacked),
}

/// Why there is none, with everything that was tried.
#[derive(Debug, thiserror::Error)]
#[error(
    "no compiler for {TARGET} was found:\n{}\nInstall it with `rustup target add {TARGET}` (Rust from https://rustup.rs), \
     or set SOUK_TOOLCHAIN_DIR to a folder that may hold 1 GB and try again",
    tried.iter().map(|t| format!("  - {t}")).collect::<Vec<_>>().join("\n")
)]
pub(crate) struct NoToolchain {
    tried: Vec<String>,
}

impl Toolchain {
    /// `dir` is the crate: its `rust-toolchain.toml` decides which rustup toolchain is asked.
    pub(crate) fn find(
        choice: ToolchainChoice,
        dir: &Path,
        note: &(dyn Fn(String) + Sync),
    ) -> Result<Self, NoToolchain> {
        let mut tried = Vec::new();
        if choice != ToolchainChoice::Debian {
            match installed(dir) {
                Ok(toolchain) => return Ok(toolchain),
                Err(reason) => tried.push(reason),
            }
            // Where a Debian compiler was fetched before, rustup was asked before, in vain.
            let fetched = if choice == ToolchainChoice::Auto { debian::unpacked() } else { None };
            if let Some(toolchain) = fetched {
                return Ok(Self::Debian(toolchain));
            }
            note(format!("asking rustup for {TARGET}"));
            match rustup_target_add(dir).and_then(|()| installed(dir)) {
                Ok(toolchain) => return Ok(toolchain),
                Err(reason) => tried.push(reason),
            }
        }
        if choice != ToolchainChoice::Rustup {
            match debian::fetch(note) {
                Ok(toolchain) => return Ok(Self::Debian(toolchain)),
                Err(reason) => tried.push(format!("Debian's compiler: {reason}")),
            }
        }
        Err(NoToolchain { tried })
    }

    /// Makes a cargo command use this compiler.
    pub(crate) fn apply(&self, cargo: &mut Command) {
        if let Self::Debian(unpacked) = self {
            unpacked.apply(cargo);
        }
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Installed { version } => f.write_str(version),
            Self::Debian(unpacked) => write!(f, "{} of the distribution", unpacked.version()),
        }
    }
}

/// Does the compiler on the PATH have the target's standard library? It need not come from rustup.
fn installed(dir: &Path) -> Result<Toolchain, String> {
    let sysroot = sysroot(dir)?;
    let libraries = sysroot.join("lib/rustlib").join(TARGET).join("lib");
    let has_core = std::fs::read_dir(&libraries).is_ok_and(|mut files| {
        files.any(|f| f.is_ok_and(|f| f.file_name().to_string_lossy().starts_with("libcore-")))
    });
    if !has_core {
        return Err(format!(
            "the compiler on the PATH has no standard library for it ({} is absent)",
            libraries.display()
        ));
    }
    let version = output(Command::new("rustc").arg("--version").current_dir(dir))?;
    Ok(Toolchain::Installed { version: version.split(" (").next().unwrap_or(&version).to_owned() })
}

/// Where the compiler that `dir` chooses is installed.
pub(super) fn sysroot(dir: &Path) -> Result<PathBuf, String> {
    output(Command::new("rustc").args(["--print", "sysroot"]).current_dir(dir)).map(PathBuf::from)
}

fn rustup_target_add(dir: &Path) -> Result<(), String> {
    let mut rustup = Command::new("rustup");
    rustup.args(["target", "add", TARGET]).current_dir(dir).env("RUSTUP_MAX_RETRIES", "1");
    let errors = tempfile::tempfile().map_err(|e| format!("rustup: {e}"))?;
    let stderr = errors.try_clone().map_err(|e| format!("rustup: {e}"))?;
    let mut child = rustup
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .map_err(|e| format!("rustup cannot be started: {e}"))?;
    let give_up = Instant::now() + RUSTUP_DEADLINE;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(_)) => return Err(format!("rustup target add {TARGET}: {}", last_line(errors))),
            Ok(None) if Instant::now() < give_up => std::thread::sleep(POLL),
            Ok(None) => {
                // Whatever comes of it, the child is ours to end and to reap.
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!(
                    "rustup target add {TARGET}: no answer within {} s",
                    RUSTUP_DEADLINE.as_secs()
                ));
            }
            Err(e) => return Err(format!("rustup: {e}")),
        }
    }
}

fn last_line(mut file: std::fs::File) -> String {
    use std::io::{Read as _, Seek as _};
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.read_to_string(&mut text));
    let line = text.lines().rev().map(str::trim).find(|l| !l.is_empty());
    match (read, line) {
        (Ok(_), Some(line)) => line.to_owned(),
        _ => "it failed without a word".to_owned(),
    }
}

/// A short command's standard output, or why there is none.
pub(super) fn output(command: &mut Command) -> Result<String, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let done = command.stdin(Stdio::null()).output().map_err(|e| format!("{name} cannot be started: {e}"))?;
    if !done.status.success() {
        let errors = String::from_utf8_lossy(&done.stderr);
        let line = errors.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("it failed without a word");
        return Err(format!("{name}: {}", line.trim()));
    }
    Ok(String::from_utf8_lossy(&done.stdout).trim().to_owned())
}
