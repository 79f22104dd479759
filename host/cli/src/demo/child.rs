//! One process of the demo: the same program with another command, its own folder, its own log.
//!
//! A child cannot outlive the demo: it holds one end of a pipe and ends when the other is closed, which the kernel does
//! even for a parent that was killed. It leads a process group of its own, so that Ctrl-C reaches the demo alone, and
//! the demo ends the others in its order.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::Instant;

use crate::process::Ready;

/// From the start of a process to its ready file, on a machine that is busy with a build.
const READY_DEADLINE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
/// From SIGTERM to SIGKILL: the drain deadline of a node and a little more.
const END_DEADLINE: Duration = Duration::from_secs(12);
/// What is shown of the log of a child that failed.
const LOG_TAIL_LINES: usize = 15;
const LOG_TAIL_BYTES: u64 = 16 * 1024;

/// What a child is; may be started more than once.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    pub(crate) name: String,
    /// `edge` or `region`.
    pub(crate) command: &'static str,
    pub(crate) config: PathBuf,
    pub(crate) folder: PathBuf,
}

impl Spec {
    fn ready_file(&self) -> PathBuf {
        self.folder.join("ready.json")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.folder.join("log.txt")
    }

    /// Starts the process and waits until it listens.
    pub(crate) async fn start(&self) -> anyhow::Result<(Running, Ready)> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log())
            .with_context(|| format!("open {}", self.log().display()))?;
        match std::fs::remove_file(self.ready_file()) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).context("remove the old ready file");
            }
            _ => {}
        }
        let program = std::env::current_exe().context("find this program's own file")?;
        let mut child = Command::new(program)
            .arg(self.command)
            .arg("--config")
            .arg(&self.config)
            .arg("--ready-file")
            .arg(self.ready_file())
            .arg("--exit-with-parent")
            .env("NO_COLOR", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("start {}", self.name))?;
        let lifeline = child.stdin.take().context("the child's standard input is a pipe")?;
        let mut running = Running { spec: self.clone(), child, _lifeline: lifeline };
        let ready = running.until_ready().await?;
        Ok((running, ready))
    }
}

/// A child that runs.
pub(crate) struct Running {
    spec: Spec,
    child: Child,
    /// Closed when this is dropped, however that happens: the child then ends.
    _lifeline: ChildStdin,
}

impl Running {
    pub(crate) fn spec(&self) -> &Spec {
        &self.spec
    }

    async fn until_ready(&mut self) -> anyhow::Result<Ready> {
        let give_up = Instant::now() + READY_DEADLINE;
        loop {
            if let Ok(text) = std::fs::read(self.spec.ready_file()) {
                return serde_json::from_slice(&text)
                    .with_context(|| format!("read the ready file of {}", self.spec.name));
            }
            if let Some(status) = self.child.try_wait().context("ask for a child's state")? {
                bail!("{}", self.epitaph(status));
            }
            if Instant::now() > give_up {
                let seconds = READY_DEADLINE.as_secs();
                bail!(
                    "{} does not answer after {seconds} s; its log ends:\n{}",
                    self.spec.name,
                    tail(&self.spec.log())
                );
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Has it ended by itself? Then with what words.
    pub(crate) fn failure(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok()??;
        Some(self.epitaph(status))
    }

    fn epitaph(&self, status: ExitStatus) -> String {
        format!("{} ended ({status}); its log ends:\n{}", self.spec.name, tail(&self.spec.log()))
    }

    /// SIGKILL: what a power cut would leave behind.
    pub(crate) async fn kill(mut self) -> anyhow::Result<Spec> {
        self.child.kill().await.with_context(|| format!("kill {}", self.spec.name))?;
        Ok(self.spec)
    }

    /// SIGTERM, then patience, then SIGKILL. Answers false if it had to be killed.
    pub(crate) async fn end(mut self) -> bool {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok());
        if let Some(pid) = pid {
            // It may have ended meanwhile; then there is nobody to signal, and the wait answers at once.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let ended = tokio::time::timeout(END_DEADLINE, self.child.wait()).await.is_ok();
        if !ended {
            let _ = self.child.kill().await;
        }
        ended
    }
}

/// The last lines of a log.
fn tail(log: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(log)?;
        let from = file.metadata()?.len().saturating_sub(LOG_TAIL_BYTES);
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_else(|e| format!("(the log cannot be read: {e})"));
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(LOG_TAIL_LINES);
    lines[from..].iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}
