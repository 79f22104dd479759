//! Projects in every language for the tests that build some: begun with `souk plugin new`, their tools fetched once.
//!
//! Tools of other languages are large (jco 500 MB, zig 400 MB), so each is fetched into one project that outlives the
//! run, and the others borrow it. What is absent is fetched only if `SOUK_TEST_FETCH` is set, as it is in CI; that goes
//! for the crates of a Rust project too.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

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
        match self {
            Self::Rust => no_wasm_toolchain(),
            Self::Js => (!runs("npm", &["--version"])).then(|| "no npm".to_owned()),
            Self::Python => (!can_have_python()).then(|| "no python3 with venv and pip".to_owned()),
            Self::C if std::env::var_os("SOUK_CC").is_some() => None,
            Self::C => {
                (!can_have_python()).then(|| "no python3 with venv and pip to fetch zig with".to_owned())
            }
        }
    }
}

fn runs(program: &str, args: &[&str]) -> bool {
    let mut program = Command::new(program);
    program.args(args).stdin(Stdio::null()).output().is_ok_and(|said| said.status.success())
}

/// A folder of its own for pip takes more than Python where distributions ship that apart: `venv` itself is there and says
/// what it does, and only making one fails.
fn can_have_python() -> bool {
    runs("python3", &["-c", "import ensurepip, venv"])
}

/// A Python with these packages of PyPI (`name==version`) and no others: the folder of its `bin`. It outlives the run.
pub fn python(name: &str, packages: &[&str]) -> Result<Begun> {
    if !can_have_python() {
        return Ok(Err("no python3 with venv and pip".to_owned()));
    }
    let keepers = shelf().join("tools");
    std::fs::create_dir_all(&keepers)?;
    let fetching = File::create(keepers.join(format!("python-{name}.lock")))?;
    fetching.lock().context("wait for who fetches the same packages")?;
    let keeper = keepers.join(format!("python-{name}"));
    let (mark, pins) = (keeper.join("fetched"), packages.join("\n"));
    if std::fs::read_to_string(&mark).is_ok_and(|fetched| fetched == pins) {
        return Ok(Ok(keeper));
    }
    if !may_fetch() {
        let place = keeper.display();
        return Ok(Err(format!("{name} is not here; SOUK_TEST_FETCH=1 fetches it into {place}")));
    }
    if let Err(error) = std::fs::remove_dir_all(&keeper) {
        ensure!(error.kind() == std::io::ErrorKind::NotFound, "remove {}: {error}", keeper.display());
    }
    let done = |command: &mut Command| -> Result<()> {
        let output = command.stdin(Stdio::null()).output().context("start Python")?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "fetch {name}: {}\n{errors}", output.status);
        Ok(())
    };
    done(Command::new("python3").args(["-m", "venv"]).arg(&keeper))?;
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--prefer-binary"];
    done(Command::new(keeper.join("bin/python")).args(pip).args(packages))?;
    std::fs::write(&mark, pins)?;
    Ok(Ok(keeper))
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
    let dir = projects().join(format!("{name}-{}-{hook}", language.word()));
    begin(name, language, hook, &dir)?;
    let Some((folder, pins)) = language.tools() else {
        return Ok(crates_are_absent(&dir)?.map_or(Ok(dir), Err));
    };
    if language == Language::C && std::env::var_os("SOUK_CC").is_some() {
        return Ok(Ok(dir));
    }
    let pins = std::fs::read_to_string(dir.join(pins)).context("a project pins its tools")?;
    // Projects of other names want the same tools: fetched anew, they would go while somebody uses them.
    let pins = pins.replace(name, "tools");
    Ok(tools(language, hook, folder, pins.as_bytes())?.and_then(|tools| {
        std::os::unix::fs::symlink(&tools, dir.join(folder)).map_err(|e| e.to_string())?;
        Ok(dir)
    }))
}

/// The tools that such pins name, fetched by a project that is kept for nothing else.
fn tools(language: Language, hook: &str, folder: &str, pins: &[u8]) -> Result<Begun> {
    let kind = if language == Language::Js && hook != "http" { "hook" } else { "http" };
    let name = format!("{}-{kind}", language.word());
    let keepers = shelf().join("tools");
    std::fs::create_dir_all(&keepers)?;
    // One at a time, of this process and of others: a debug and a release run share the tools. The kernel gives the lock
    // back when the file is closed, however that comes.
    let fetching = File::create(keepers.join(format!("{name}.lock")))?;
    fetching.lock().context("wait for who fetches the same tools")?;
    let keeper = keepers.join(name);
    // Beside the tools: what was fetched, and that it was fetched whole.
    let mark = keeper.join("fetched");
    if std::fs::read(&mark).is_ok_and(|fetched| fetched == pins) {
        return Ok(Ok(keeper.join(folder)));
    }
    if !may_fetch() {
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

fn may_fetch() -> bool {
    std::env::var_os("SOUK_TEST_FETCH").is_some()
}

/// Why a crate that is not of this workspace cannot be built here: this workspace's own crates are no part of what it
/// needs. Writes its `Cargo.lock` if it has none.
pub fn crates_are_absent(dir: &Path) -> Result<Option<String>> {
    if may_fetch() {
        return Ok(None);
    }
    let asked = Command::new("cargo")
        .current_dir(dir)
        .args([
            "fetch",
            "--quiet",
            "--offline",
            "--target",
            "wasm32-unknown-unknown",
            "--target",
            "host-tuple",
        ])
        .stdin(Stdio::null())
        .output()
        .context("start cargo")?;
    let absent = || "its crates are not here; SOUK_TEST_FETCH=1 lets cargo fetch them".to_owned();
    Ok((!asked.status.success()).then(absent))
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

/// Projects are begun anew in each run, so a debug and a release run have their own.
pub fn projects() -> PathBuf {
    shelf().join("projects").join(if cfg!(debug_assertions) { "debug" } else { "release" })
}

/// Where such things are kept: in cargo's target folder, so that `cargo clean` is all that it takes to be rid of them.
pub fn shelf() -> PathBuf {
    let test = std::env::current_exe().expect("a running test has a path");
    let target = test.ancestors().nth(3).expect("test binaries lie in target/<profile>/deps");
    target.join("souk-tests")
}
