//! Drives cargo: which package lies in a folder, and how it becomes a core module.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;

use super::TARGET;
use super::toolchain::Toolchain;

/// Lines of cargo's output that an error repeats.
const OUTPUT_LINES_MAX: usize = 400;

/// The profile that plugins are built with: fast code, small file, and names kept for the backtrace of a trap.
/// `strip = "symbols"` would also strip the section that holds the component's type.
const PROFILE: [&str; 7] = [
    "profile.souk-plugin.inherits='release'",
    "profile.souk-plugin.opt-level=3",
    "profile.souk-plugin.lto=true",
    "profile.souk-plugin.codegen-units=1",
    "profile.souk-plugin.debug=false",
    "profile.souk-plugin.strip='debuginfo'",
    "profile.souk-plugin.panic='abort'",
];

/// The linker puts the stack first: with its usual 1 MiB, every page that a plugin writes to would lie beyond the first
/// pages that the sandbox keeps resident between calls, and each call would pay for faults. Rules need no deep stack.
const LINK: &str = "-Clink-arg=-zstack-size=65536";

/// What the caller's own build set for itself, and would break a build for another target.
const FOREIGN_ENV: [&str; 8] = [
    "RUSTFLAGS",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_TARGET_DIR",
    "CARGO_BUILD_TARGET_DIR",
    "RUSTC",
    "RUSTC_WORKSPACE_WRAPPER",
];

/// A crate that can become a plugin.
#[derive(Debug)]
pub(crate) struct Package {
    pub(crate) name: String,
    dir: PathBuf,
    /// Cargo's target folder for the host: plugins have a folder of their own in it, so that the two builds do not
    /// wait for one lock.
    target_directory: PathBuf,
}

/// Why a folder did not become a core module.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CargoError {
    #[error("{} is not a folder", .0.display())]
    NotAFolder(PathBuf),
    #[error("{} is not a Rust crate: it has no Cargo.toml", .0.display())]
    NotACrate(PathBuf),
    #[error("{} is a workspace, not a crate; name the folder of one of its members", .0.display())]
    NotAPackage(PathBuf),
    #[error(
        "{name} builds no Wasm module; add to its Cargo.toml:\n\n  [lib]\n  crate-type = [\"cdylib\", \"rlib\"]\n"
    )]
    NoCdylib { name: String },
    #[error("cargo cannot be started ({0}); install Rust: https://rustup.rs")]
    NoCargo(std::io::Error),
    #[error("cargo does not understand {}:\n{output}", dir.display())]
    Metadata { dir: PathBuf, output: String },
    #[error("cargo could not build {name}:\n{output}")]
    Build { name: String, output: String },
    #[error("cargo said that it built {0}, but named no Wasm file")]
    NoModule(String),
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<MetadataPackage>,
    target_directory: PathBuf,
}

#[derive(Deserialize)]
struct MetadataPackage {
    name: String,
    manifest_path: PathBuf,
    targets: Vec<MetadataTarget>,
}

#[derive(Deserialize)]
struct MetadataTarget {
    crate_types: Vec<String>,
}

/// The one kind of message that matters here.
#[derive(Deserialize)]
struct Message {
    reason: String,
    #[serde(default)]
    manifest_path: PathBuf,
    #[serde(default)]
    filenames: Vec<PathBuf>,
}

impl Package {
    pub(crate) fn read(dir: &Path) -> Result<Self, CargoError> {
        let dir = dir.canonicalize().map_err(|_| CargoError::NotAFolder(dir.to_owned()))?;
        if !dir.is_dir() {
            return Err(CargoError::NotAFolder(dir));
        }
        let manifest = dir.join("Cargo.toml");
        if !manifest.is_file() {
            return Err(CargoError::NotACrate(dir));
        }
        let output = command(&dir)
            .args(["metadata", "--no-deps", "--format-version", "1"])
            .stdin(Stdio::null())
            .output()
            .map_err(CargoError::NoCargo)?;
        let wrong = |output: String| CargoError::Metadata { dir: dir.clone(), output };
        if !output.status.success() {
            return Err(wrong(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        let metadata: Metadata = serde_json::from_slice(&output.stdout).map_err(|e| wrong(e.to_string()))?;
        let package = metadata.packages.into_iter().find(|p| p.manifest_path == manifest);
        let Some(package) = package else { return Err(CargoError::NotAPackage(dir)) };
        if !package.targets.iter().any(|t| t.crate_types.iter().any(|kind| kind == "cdylib")) {
            return Err(CargoError::NoCdylib { name: package.name });
        }
        Ok(Self { name: package.name, dir, target_directory: metadata.target_directory })
    }

    /// Where components lie unless the user says otherwise.
    pub(crate) fn out_dir(&self) -> PathBuf {
        self.target_directory.join("souk-plugins")
    }

    /// Runs cargo, which rebuilds only what has changed, and answers the core module's path.
    pub(crate) fn compile(
        &self,
        toolchain: &Toolchain,
        note: &(dyn Fn(String) + Sync),
    ) -> Result<PathBuf, CargoError> {
        let mut cargo = command(&self.dir);
        cargo.args(["build", "--lib", "--target", TARGET, "--profile", "souk-plugin"]);
        cargo.arg("--target-dir").arg(self.out_dir().join("build"));
        for setting in PROFILE {
            cargo.args(["--config", setting]);
        }
        cargo.args(["--message-format", "json-render-diagnostics", "--color", "never"]);
        cargo.env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS", LINK);
        toolchain.apply(&mut cargo);
        let mut child = cargo
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(CargoError::NoCargo)?;
        let stderr = child.stderr.take().expect("standard error was asked for as a pipe");
        let stdout = child.stdout.take().expect("standard output was asked for as a pipe");
        let manifest = self.dir.join("Cargo.toml");
        // Both pipes are read at once: a full one that nobody reads would stop cargo.
        let (module, output) = std::thread::scope(|scope| {
            let messages = scope.spawn(|| find_module(BufReader::new(stdout), &manifest));
            let mut output = VecDeque::new();
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if line.trim_start().starts_with("Compiling") {
                    note(format!("{}: {}", self.name, line.trim()));
                }
                if output.len() == OUTPUT_LINES_MAX {
                    output.pop_front();
                }
                output.push_back(line);
            }
            (messages.join().expect("reading cargo's messages does not panic"), output)
        });
        let status = child.wait().map_err(CargoError::NoCargo)?;
        if !status.success() {
            return Err(CargoError::Build { name: self.name.clone(), output: Vec::from(output).join("\n") });
        }
        module.ok_or_else(|| CargoError::NoModule(self.name.clone()))
    }
}

fn find_module(messages: impl std::io::BufRead, manifest: &Path) -> Option<PathBuf> {
    let mut module = None;
    for line in messages.lines().map_while(Result::ok) {
        let Ok(message) = serde_json::from_str::<Message>(&line) else { continue };
        if message.reason == "compiler-artifact" && message.manifest_path == manifest {
            let wasm = message.filenames.into_iter().find(|f| f.extension().is_some_and(|e| e == "wasm"));
            module = wasm.or(module);
        }
    }
    module
}

/// Cargo as the crate's own folder would choose it (a `rust-toolchain.toml` there is honoured).
fn command(dir: &Path) -> Command {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(dir);
    for name in FOREIGN_ENV {
        cargo.env_remove(name);
    }
    cargo
}
