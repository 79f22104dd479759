//! What the outside tests share: where the `souk` binary is, and how to say that something is skipped.

pub mod bindings;
pub mod cluster;
pub mod demo;
pub mod http;
pub mod identity;
pub mod load;
pub mod proxy;
pub mod stage;
pub mod tools;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The root of the workspace.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests crate is a folder of the workspace")
}

/// The `souk` binary of the profile that the tests themselves were built with, brought up to date once; or the one
/// that `SOUK_BINARY` names, which is taken as it is: a packaged one, or one that must not be built while it is measured.
pub fn souk() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(named) = std::env::var_os("SOUK_BINARY") {
            return named.into();
        }
        let release = !cfg!(debug_assertions);
        let mut build = Command::new(env!("CARGO"));
        build.current_dir(root()).args(["build", "--quiet", "--locked", "-p", "souk"]);
        if release {
            build.arg("--release");
        }
        let status = build.status().expect("cargo runs: it started this test");
        assert!(status.success(), "`cargo build -p souk` failed");
        // …/target/<profile>/deps/<test> lies beside …/target/<profile>/souk.
        let test = std::env::current_exe().expect("a running test has a path");
        let profile = test.ancestors().nth(2).expect("test binaries lie in <profile>/deps");
        profile.join("souk")
    })
}

/// Says that a test did not run, and why, in a form that a reader of CI's output finds.
#[expect(clippy::print_stderr, reason = "a skipped test must say so aloud")]
pub fn skip(test: &str, why: &str) {
    eprintln!("skipped: {test}: {why}");
}

/// A figure for the reader of a test's output; nothing depends on it.
#[expect(clippy::print_stderr, reason = "tests have no other way to speak")]
pub fn say(line: &str) {
    eprintln!("{line}");
}

/// Why plugins cannot be built here, or nothing. The compiler is fetched at the first call if need be.
pub fn no_wasm_toolchain() -> Option<String> {
    static REASON: OnceLock<Option<String>> = OnceLock::new();
    let ask = || {
        let build =
            Command::new(souk()).args(["plugin", "build", "plugins/pricing"]).current_dir(root()).output();
        let build = build.expect("the souk binary runs");
        let said = String::from_utf8_lossy(&build.stderr).into_owned();
        // Any other failure of the build is a failure of the test that needs it.
        said.contains("no compiler for wasm32-unknown-unknown was found").then_some(said)
    };
    REASON.get_or_init(ask).clone()
}
