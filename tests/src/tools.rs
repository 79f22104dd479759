//! Projects in every language for the tests that build some: begun with `souk plugin new`, their tools fetched once.
//!
//! Tools of other languages are large (jco 500 MB, zig 400 MB), so each is fetched into one project that outlives the
//! run, and the others borrow it. What is absent is fetched only if `SOUK_TEST_FETCH` is set, as it is in CI.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;

use anyhow::{Context as _, Result, ensure};

use crate::{no_wasm_toolchain, root, souk};

/// A folder of this test's own, or why there is none.
pub type Begun = Result<PathBuf, String>;

/// A language of `souk plugin new`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    Rust,
    Js,
    Python,
    C,
}

impl Language {
    pub const ALL: [Self; 4] = [Self::Rust, Self::Js, Self::Python, Self::C];

    pub const fn word(self) -> &'static str {
        match self {
            Self::Rust => "rust",
            Self::Js => "js",
            Self::Python => "python",
            Self::C => "c",
        }
    }

    /// The folder of a project in which its tools lie, and the file there that pins them.
    const fn tools(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Rust => None,
            Self::Js => Some(("node_modules", "package.json")),
            Self::Python | Self::C => Some((".venv", "requirements.txt")),
        }
    }

    /// Why nothing can be built in it here.
    fn is_absent(self) -> Option<String> {
        let runs = |program: &str| {
            let mut program = Command::new(program);
            program.arg("--version").stdin(Stdio::null()).output().is_ok_and(|said| said.status.success())
        };
        match self {
            Self::Rust => no_wasm_toolchain(),
            Self::Js => (!runs("npm")).then(|| "no npm".to_owned()),
            Self::Python => (!runs("python3")).then(|| "no python3".to_owned()),
            Self::C if std::env::var_os("SOUK_CC").is_some() => None,
            Self::C => (!runs("python3")).then(|| "no python3 to fetch zig with".to_owned()),
        }
    }
}

/// Runs `souk` in a folder and answers what it printed.
pub fn run(dir: &Path, args: &[&str]) -> Result<String> {
    let Output { status, stdout, stderr } = Command::new(souk())
        .current_dir(dir)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .context("start souk")?;
    let errors = String::from_utf8_lossy(&stderr);
    ensure!(status.success(), "souk {}: {status}\n{errors}", args.join(" "));
    Ok(String::from_utf8(stdout)?)
}

/// A fresh project `name` for a hook, with its tools.
pub fn project(name: &str, language: Language, hook: &str) -> Result<Begun> {
    if let Some(why) = language.is_absent() {
        return Ok(Err(why));
    }
    let dir = shelf().join("projects").join(format!("{name}-{}-{hook}", language.word()));
    begin(name, language, hook, &dir)?;
    let Some((folder, pins)) = language.tools() else { return Ok(Ok(dir)) };
    if language == Language::C && std::env::var_os("SOUK_CC").is_some() {
        return Ok(Ok(dir));
    }
    let pins = std::fs::read(dir.join(pins)).context("a project pins its tools")?;
    Ok(tools(language, hook, folder, &pins)?.and_then(|tools| {
        std::os::unix::fs::symlink(&tools, dir.join(folder)).map_err(|e| e.to_string())?;
        Ok(dir)
    }))
}

/// The tools that such pins name, fetched by a project that is kept for nothing else.
fn tools(language: Language, hook: &str, folder: &str, pins: &[u8]) -> Result<Begun> {
    // One at a time: two tests would fetch the same.
    static FETCHING: Mutex<()> = Mutex::new(());
    let _fetching = FETCHING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let kind = if language == Language::Js && hook != "http" { "hook" } else { "http" };
    let keeper = shelf().join("tools").join(format!("{}-{kind}", language.word()));
    // Beside the tools: what was fetched, and that it was fetched whole.
    let mark = keeper.join("fetched");
    if std::fs::read(&mark).is_ok_and(|fetched| fetched == pins) {
        return Ok(Ok(keeper.join(folder)));
    }
    if std::env::var_os("SOUK_TEST_FETCH").is_none() {
        return Ok(Err(format!(
            "its tools are not here; SOUK_TEST_FETCH=1 fetches them into {}",
            keeper.display()
        )));
    }
    begin("tools", language, if kind == "hook" { "pricing" } else { "http" }, &keeper)?;
    run(&keeper, &["plugin", "build"]).with_context(|| format!("fetch the tools of {}", language.word()))?;
    std::fs::write(&mark, pins)?;
    Ok(Ok(keeper.join(folder)))
}

fn begin(name: &str, language: Language, hook: &str, dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
        _ => {}
    }
    let shown = dir.to_str().context("the target folder has a plain name")?;
    run(root(), &["plugin", "new", name, "--lang", language.word(), "--hook", hook, "--dir", shown])?;
    Ok(())
}

/// Where such things are kept: in cargo's target folder, so that `cargo clean` is all that it takes to be rid of them.
pub fn shelf() -> PathBuf {
    let test = std::env::current_exe().expect("a running test has a path");
    let target = test.ancestors().nth(3).expect("test binaries lie in target/<profile>/deps");
    target.join("souk-tests")
}
