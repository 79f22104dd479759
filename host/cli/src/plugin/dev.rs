//! `souk plugin dev`: watch, rebuild, and serve a shop with the plugin on the real node code.
//!
//! A region and a node run as the demo's do ([`crate::demo::local`]). Each change of a file of the project is a build; each
//! build that gives another component is a release. What does not build is shown, and the shop goes on with the one before.
//!
//! A build is a process group of its own, whose temporary files lie in the shop's folder: Ctrl-C in the middle of one
//! leaves neither a compiler nor a file behind.

use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::{Args, ValueEnum as _};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use notify::{EventKind, RecursiveMode, Watcher as _};
use souk_commerce::id::{Digest, PluginName};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use super::build::Built;
use super::project::{Kind, Named, Project};
use crate::args::ToolchainChoice;
use crate::demo::local::{Door, LocalShop};
use crate::failure::Usage;
use crate::terminal::{self, BOLD, DIM, GOOD, Step, WARN};

/// An editor saves a file in several steps, and a formatter follows: one build for all of it.
const SETTLED: Duration = Duration::from_millis(80);
/// What tools write, and no build reads.
const NOT_WATCHED: [&str; 8] =
    ["build", "target", "node_modules", ".venv", ".git", "__pycache__", "Cargo.lock", "package-lock.json"];

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  souk plugin dev\n  souk plugin dev tea-week --settings settings.json --shop ../my-shop\n\n\
                        --shop DIR holds the shop as `souk site` takes it: site.json, products.csv and, if wanted, www/."
)]
pub(crate) struct DevArgs {
    /// The project's folder
    #[arg(value_name = "DIR", default_value = ".")]
    pub(crate) dir: PathBuf,
    /// A shop of your own [default: the sample shop]
    #[arg(long, value_name = "DIR")]
    pub(crate) shop: Option<PathBuf>,
    /// Settings to hand to the plugin (JSON); watched as well
    #[arg(long, value_name = "FILE")]
    pub(crate) settings: Option<PathBuf>,
    /// The node's port; its admin port is the next [default: free ones]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1024..=65_500))]
    pub(crate) http_base: Option<u16>,
    /// Which Rust compiler to use
    #[arg(long, value_enum, default_value_t, env = "SOUK_TOOLCHAIN")]
    pub(crate) toolchain: ToolchainChoice,
}

pub(crate) fn command(args: DevArgs) -> anyhow::Result<ExitCode> {
    crate::block_on(run(args))
}

async fn run(args: DevArgs) -> anyhow::Result<ExitCode> {
    let project = Project::read(&args.dir)?;
    let mut shop = LocalShop::raise(args.shop.as_deref(), args.http_base).await?;
    let door = shop.door.clone();
    let scratch = shop.folder().to_owned();
    let told = tokio::select! {
        over = follow(&args, &project, &door, &scratch) => over,
        over = shop.until_over() => over,
    };
    shop.end().await;
    told.map(|()| ExitCode::SUCCESS)
}

/// Builds and releases, now and after each change. Ends only with an error that no further change can mend.
async fn follow(args: &DevArgs, project: &Project, door: &Door, scratch: &Path) -> anyhow::Result<()> {
    let (_watcher, mut changed) = watch(project, args.settings.as_deref())?;
    announce(door, project);
    let mut live: Option<Digest> = None;
    loop {
        match turn(args, project, door, scratch, live.as_ref()).await {
            Ok(now) => live = Some(now),
            Err(error) => {
                anstream::eprintln!("{WARN}✗{WARN:#} {error:#}");
                let still = if live.is_some() {
                    "The shop goes on with the build before"
                } else {
                    "Nothing is live yet"
                };
                anstream::eprintln!("  {DIM}{still}; save a file to try again.{DIM:#}");
            }
        }
        if changed.recv().await.is_none() {
            anyhow::bail!("the folder is no longer watched");
        }
        tokio::time::sleep(SETTLED).await;
        // Whatever came meanwhile belongs to the same change.
        let _ = changed.try_recv();
    }
}

/// One build, and one release if it gave something new. Answers what is live: component and settings together.
async fn turn(
    args: &DevArgs,
    project: &Project,
    door: &Door,
    scratch: &Path,
    live: Option<&Digest>,
) -> anyhow::Result<Digest> {
    let settings = read_settings(args.settings.as_deref())?;
    let step = Step::start("Building");
    let built = build(&project.dir, args.toolchain, scratch).await?;
    let bytes = std::fs::read(&built.file).with_context(|| format!("read {}", built.file.display()))?;
    let what = Digest::of(format!("{} {settings}", built.sha256).as_bytes());
    if live == Some(&what) {
        step.done("nothing has changed");
        return Ok(what);
    }
    step.done(&format!("{}, {}", built.plugin, terminal::size(built.bytes)));
    let since = Instant::now();
    let plugin: PluginName = built.plugin.parse().context("name the plugin")?;
    // The merchant's own way to a region, so that what is refused there is refused here.
    let _: serde_json::Value = door.region.push_component(&door.site, &plugin, bytes.into()).await?;
    let mut wish = serde_json::json!({ "component": built.sha256, "settings": settings });
    if let Some(Named { name, hook: Kind::Http, .. }) = &project.named {
        wish["route"] = format!("/{name}").into();
    }
    let _: serde_json::Value = door.region.change_plugin(&door.site, &plugin, "deploy", &wish).await?;
    door.until_live().await?;
    anstream::eprintln!("{GOOD}✓{GOOD:#} Live {DIM}({} ms){DIM:#}", since.elapsed().as_millis());
    Ok(what)
}

/// `souk plugin build` of the project. Dropping the future ends it with everything that it has started.
async fn build(project: &Path, toolchain: ToolchainChoice, scratch: &Path) -> anyhow::Result<Built> {
    // This very program, even if its file was replaced since it began.
    let mut build = tokio::process::Command::new("/proc/self/exe");
    build.arg0("souk").args(["plugin", "build", "--json"]).arg(project).env("TMPDIR", scratch);
    if let Some(choice) = toolchain.to_possible_value() {
        build.args(["--toolchain", choice.get_name()]);
    }
    build.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = build.spawn().context("start the build")?;
    let group = Group::led_by(&child)?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    // Whatever the build has left behind holds its pipes open; with the group they are closed.
    let (said, errors, ()) = tokio::join!(read(stdout), read(stderr), group.end_with_its_leader());
    let status = child.wait().await.context("wait for the build")?;
    if status.success() {
        return serde_json::from_slice(&said?).context("read what the build says");
    }
    let errors = errors?;
    let errors = String::from_utf8_lossy(&errors);
    let errors = errors.trim();
    anyhow::bail!("{}", errors.strip_prefix("error: ").unwrap_or(errors))
}

async fn read(pipe: Option<impl AsyncRead + Unpin>) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        pipe.read_to_end(&mut bytes).await.context("read what the build says")?;
    }
    Ok(bytes)
}

/// A child that leads a group of processes, all ended when this is dropped. That must be before the child is asked after:
/// from then on its number, and so the group's, may be somebody else's.
struct Group(Pid);

impl Group {
    fn led_by(child: &tokio::process::Child) -> anyhow::Result<Self> {
        let leader = child.id().and_then(|id| i32::try_from(id).ok());
        Ok(Self(Pid::from_raw(leader.context("a child that nobody asked after has a number")?)))
    }

    /// Waits for the leader's end, without asking after it, and ends the others.
    async fn end_with_its_leader(self) {
        let leader = Id::Pid(self.0);
        // An error would mean that there is no such child: then it has ended too.
        let _ = spawn_blocking(move || waitid(leader, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)).await;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Finds the leader at least, which may have ended.
        let _ = killpg(self.0, Signal::SIGKILL);
    }
}

fn read_settings(file: Option<&Path>) -> anyhow::Result<serde_json::Value> {
    let Some(file) = file else { return Ok(serde_json::json!({})) };
    let text = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("read {}", file.display()))
}

fn announce(door: &Door, project: &Project) {
    let Some(node) = door.nodes.first() else { return };
    let url = format!("http://localhost:{}", node.http.port());
    let at = match &project.named {
        Some(named) if named.hook == Kind::Http => format!("{url}/{}/", named.name),
        _ => format!("{url}/"),
    };
    anstream::eprintln!("\n  {BOLD}{at}{BOLD:#}   {DIM}node's admin {}{DIM:#}", node.admin);
    anstream::eprintln!(
        "  {DIM}Save a file of {} and look again. Ctrl-C ends everything.{DIM:#}\n",
        project.dir.display()
    );
}

/// Tells of changes to what a build reads. One place in the queue is enough: a build reads everything.
fn watch(
    project: &Project,
    settings: Option<&Path>,
) -> anyhow::Result<(notify::RecommendedWatcher, mpsc::Receiver<()>)> {
    let (tell, told) = mpsc::channel(1);
    let root = project.dir.clone();
    let settings = settings.map(|file| file.canonicalize()).transpose();
    let settings = settings.map_err(|e| Usage(format!("--settings: {e}")))?;
    let watched = settings.clone();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // What cannot be told is said by the next change.
        let Ok(event) = event else { return };
        let read = |path: &PathBuf| watched.as_ref() == Some(path) || is_source(&root, path);
        if !matches!(event.kind, EventKind::Access(_)) && event.paths.iter().any(read) {
            // Full: a build is due already.
            let _ = tell.try_send(());
        }
    })
    .context("watch files")?;
    let mut add =
        |path: &Path, mode| watcher.watch(path, mode).with_context(|| format!("watch {}", path.display()));
    // Folder by folder: what tools install below the project is tens of thousands of files.
    add(&project.dir, RecursiveMode::NonRecursive)?;
    for entry in std::fs::read_dir(&project.dir).context("read the project's folder")? {
        let path = entry?.path();
        if path.is_dir() && is_source(&project.dir, &path) {
            add(&path, RecursiveMode::Recursive)?;
        }
    }
    if let Some(folder) = settings.as_deref().and_then(Path::parent) {
        add(folder, RecursiveMode::NonRecursive)?;
    }
    Ok((watcher, told))
}

/// Below the project, and not where tools write.
fn is_source(root: &Path, path: &Path) -> bool {
    let Ok(below) = path.strip_prefix(root) else { return false };
    let mut parts = below.components().map(|part| part.as_os_str().to_string_lossy());
    !parts.any(|part| NOT_WATCHED.contains(&part.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tools_write_is_no_source() {
        let root = Path::new("/p");
        for (path, source) in [
            ("/p/src/plugin.js", true),
            ("/p/plugin.toml", true),
            ("/p/build/x.wasm", false),
            ("/p/src/__pycache__/plugin.pyc", false),
            ("/p/Cargo.lock", false),
            ("/p/package-lock.json", false),
            ("/elsewhere/src/plugin.js", false),
        ] {
            assert_eq!(is_source(root, Path::new(path)), source, "{path}");
        }
    }

    #[tokio::test]
    async fn what_a_build_leaves_behind_ends_with_it() {
        // The straggler holds the pipe: reading ends only if it does.
        let mut shell = tokio::process::Command::new("sh");
        shell.args(["-c", "sleep 600 & echo done"]).stdout(Stdio::piped()).process_group(0);
        let mut child = shell.spawn().expect("a shell");
        let group = Group::led_by(&child).expect("a leader");
        let stdout = child.stdout.take();
        let over = async { tokio::join!(read(stdout), group.end_with_its_leader()) };
        let (said, ()) = tokio::time::timeout(Duration::from_secs(60), over).await.expect("in time");
        assert_eq!(said.expect("what it said"), b"done\n");
        assert!(child.wait().await.expect("the shell").success(), "it had ended before its group was ended");
    }

    #[tokio::test]
    async fn a_saved_file_is_told_and_a_built_one_is_not() {
        let dir = tempfile::tempdir().expect("a folder");
        let root = dir.path().canonicalize().expect("the folder");
        for folder in ["src", "build"] {
            std::fs::create_dir(root.join(folder)).expect("a folder");
        }
        let project =
            Project { dir: root.clone(), named: None, language: super::super::project::Language::Rust };
        let (_watcher, mut told) = watch(&project, None).expect("a watcher");
        std::fs::write(root.join("build/x.wasm"), "x").expect("a file");
        let quiet = tokio::time::timeout(Duration::from_millis(200), told.recv()).await;
        assert!(quiet.is_err(), "a build is no change");
        std::fs::write(root.join("src/plugin.js"), "x").expect("a file");
        tokio::time::timeout(Duration::from_secs(10), told.recv()).await.expect("in time").expect("a change");
    }
}
