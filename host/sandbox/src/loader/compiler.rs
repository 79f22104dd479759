//! This side of the child process that compiles: starts it, feeds it, bounds it, and gives its end a name.
//!
//! The child is the same binary under another command, so that its code generator is the one that the artefact is
//! checked against. It gets the component and nothing else: no environment, no descriptors, no working directory of
//! ours. Its limits are its own work ([`super::child`]); the wall clock and the size of its answer are ours.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use bytes::Bytes;
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::task::spawn_blocking;

use super::child::Answer;
use super::confine::Layers;
use super::order::Order;
use crate::fault::{Complaint, bounded};
use crate::unhurried;

/// Of what a child says on its standard error: the message of a panic.
const STDERR_BYTES_MAX: u64 = 4 << 10;
/// Before what a child made: which kind of answer, and the layers that held the child.
const HEAD_BYTES: u64 = 2;
/// Of a component whose child made a call that no compiler makes.
const FORBIDDEN: &str = "compile_forbidden";
/// `(component (core module (func)))`: takes nobody over.
const HARMLESS: &[u8] = b"\0asm\x0d\0\x01\0\x01\x18\
    \0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x03\x02\x01\0\x0a\x04\x01\x02\0\x0b";

/// Where components are compiled.
#[derive(Debug, Clone)]
pub enum Compiler {
    /// In this process, which a hostile component may then keep busy and fill.
    InProcess,
    /// `program arguments… ORDER` calls [`super::compile`].
    Child { program: PathBuf, arguments: Vec<OsString> },
}

impl Compiler {
    /// A child that runs this very program, even if its file was replaced since it began.
    pub fn this_program(arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        Self::Child {
            program: PathBuf::from("/proc/self/exe"),
            arguments: arguments.into_iter().map(Into::into).collect(),
        }
    }
}

/// What compiling may cost.
#[derive(Debug, Clone)]
pub struct CompileLimits {
    /// Processor time of one compilation. JavaScript on StarlingMonkey takes 18 s, Python 14, QuickJS 3.
    pub processor_max: Duration,
    /// Wall time of one compilation. Children are nice: on a busy machine they get a fraction of a processor.
    pub wall_max: Duration,
    /// Address space of one compilation. StarlingMonkey takes 662 MB of it (378 MB of memory), Python 634.
    pub memory_bytes_max: u64,
    /// Machine code of one component: 39 MB for Python.
    pub artefact_bytes_max: u64,
    /// Compilations at once. Two, so that one merchant's long one is not in everybody's way.
    pub at_once_max: usize,
    /// Components that wait for a compiler. Each is at most 32 MiB in memory.
    pub waiting_max: usize,
}

impl Default for CompileLimits {
    fn default() -> Self {
        Self {
            processor_max: Duration::from_secs(60),
            wall_max: Duration::from_secs(240),
            memory_bytes_max: 1 << 30,
            artefact_bytes_max: 128 << 20,
            at_once_max: 2,
            waiting_max: 64,
        }
    }
}

/// Why there is no artefact.
#[derive(Debug)]
pub(super) enum CompileFault {
    /// The component's doing. The complaint's code says which limit or rule it broke.
    Component(Complaint),
    /// This machine's doing.
    Host(String),
}

impl CompileFault {
    pub(super) fn component(code: &'static str, detail: &str) -> Self {
        Self::Component(Complaint::new(code, detail))
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Component(complaint) => complaint.code,
            Self::Host(_) => "host",
        }
    }
}

/// Compiles one component. Dropping the future kills the child.
///
/// A merchant is told that a component took the compiler over only if a harmless one does not end in the same way: a
/// libc or an allocator that needs another call makes it whatever is compiled, and that is nobody's attack.
pub(super) async fn compile(
    program: &Path,
    arguments: &[OsString],
    order: &Order,
    limits: &CompileLimits,
    component: Bytes,
) -> Result<Compiled, CompileFault> {
    let made = run(program, arguments, order, limits, component).await;
    if !matches!(&made, Err(CompileFault::Component(complaint)) if complaint.code == FORBIDDEN) {
        return made;
    }
    match run(program, arguments, order, limits, Bytes::from_static(HARMLESS)).await {
        Ok(_) => made,
        Err(fault) => Err(CompileFault::Host(format!(
            "it was ended for a call that no compiler makes, and fails of a harmless component too ({}): nobody can \
             say that it was this one's doing",
            fault.name()
        ))),
    }
}

async fn run(
    program: &Path,
    arguments: &[OsString],
    order: &Order,
    limits: &CompileLimits,
    component: Bytes,
) -> Result<Compiled, CompileFault> {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .arg(order.to_string())
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A Ctrl-C at the terminal is for us to act on, not for our children.
        .process_group(0)
        .kill_on_drop(true);
    let child = unhurried::start(command)
        .await
        .map_err(|error| CompileFault::Host(format!("cannot start {}: {error}", program.display())))?;
    let wall_max = limits.wall_max;
    match tokio::time::timeout(wall_max, converse(child, component, limits.artefact_bytes_max)).await {
        Ok(ended) => ended?.into_artefact(order, limits),
        Err(_) => Err(CompileFault::Host(format!("no answer within {} s", wall_max.as_secs()))),
    }
}

/// What a child has made, and what held it meanwhile.
#[derive(Debug)]
pub(super) struct Compiled {
    pub(super) artefact: Vec<u8>,
    pub(super) layers: Layers,
}

/// All that a child has said.
struct Ended {
    status: ExitStatus,
    answer: Vec<u8>,
    words: String,
    /// Processor time that it had, if the kernel could say.
    spent: Option<Duration>,
}

async fn converse(
    mut child: Child,
    component: Bytes,
    artefact_bytes_max: u64,
) -> Result<Ended, CompileFault> {
    let piped = "all three are piped";
    let mut stdin = child.stdin.take().expect(piped);
    let stdout = child.stdout.take().expect(piped);
    let mut stderr = child.stderr.take().expect(piped);
    let mut answer = Vec::new();
    let mut words = Vec::new();
    let tell = async {
        // A child that ended early has said why; that it does not listen is no news. Its standard input stays open
        // until it has ended: the end of it means that we are gone.
        let _ = stdin.write_all(&(component.len() as u64).to_le_bytes()).await;
        let _ = stdin.write_all(&component).await;
        let _ = stdin.flush().await;
    };
    // Whatever is more than it may have is not taken, and a child that finds its output closed ends.
    let hear = async { stdout.take(artefact_bytes_max + HEAD_BYTES + 1).read_to_end(&mut answer).await };
    let overhear = async {
        let _ = (&mut stderr).take(STDERR_BYTES_MAX).read_to_end(&mut words).await;
        // The rest is thrown away, so that nobody waits for somebody to read it.
        let _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
    };
    let ((), heard, ()) = tokio::join!(tell, hear, overhear);
    heard.map_err(|error| CompileFault::Host(format!("cannot read the compiler's answer: {error}")))?;
    if answer.len() as u64 > artefact_bytes_max + HEAD_BYTES {
        return Err(CompileFault::component(
            "artefact_too_large",
            &format!("its machine code has more than {artefact_bytes_max} bytes"),
        ));
    }
    let spent = match child.id().and_then(|pid| i32::try_from(pid).ok()) {
        Some(pid) => {
            spawn_blocking(move || spent_until_its_end(Pid::from_raw(pid)).ok()).await.unwrap_or_default()
        }
        None => None,
    };
    let status =
        child.wait().await.map_err(|error| CompileFault::Host(format!("the compiler is lost: {error}")))?;
    Ok(Ended { status, answer, words: String::from_utf8_lossy(&words).into_owned(), spent })
}

/// Waits for the end of a child and leaves it to be asked after: until then the kernel still has its clock.
fn spent_until_its_end(child: Pid) -> nix::Result<Duration> {
    waitid(Id::Pid(child), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)?;
    clock_gettime(ClockId::pid_cpu_clock_id(child)?).map(Duration::from)
}

impl Ended {
    fn into_artefact(mut self, order: &Order, limits: &CompileLimits) -> Result<Compiled, CompileFault> {
        if let Some(signal) = self.status.signal().and_then(|number| Signal::try_from(number).ok()) {
            return Err(self.killed(signal, order, limits));
        }
        let head = match self.answer.first_chunk::<{ HEAD_BYTES as usize }>() {
            Some([tag, layers]) => Answer::of(*tag).zip(Layers::of(*layers)),
            None => None,
        };
        self.answer.drain(..self.answer.len().min(HEAD_BYTES as usize));
        let text = || bounded(&String::from_utf8_lossy(&self.answer), 1 << 10);
        match head {
            Some((Answer::Artefact, layers)) if self.status.success() => {
                Ok(Compiled { artefact: self.answer, layers })
            }
            Some((Answer::Rejected, _)) => Err(CompileFault::component("does_not_compile", &text())),
            Some((Answer::NoMemory, _)) => Err(out_of_memory(limits)),
            Some((Answer::Unable, _)) => Err(CompileFault::Host(text())),
            // A panic of the code generator: it is what this component made of it.
            _ if self.status.code() == Some(101) => Err(self.crashed("panicked")),
            Some((Answer::Artefact, _)) | None => Err(CompileFault::Host(format!(
                "it ended with {} and said {:?}",
                self.status,
                self.first_words()
            ))),
        }
    }

    fn killed(&self, signal: Signal, order: &Order, limits: &CompileLimits) -> CompileFault {
        match signal {
            Signal::SIGXCPU => out_of_time(order),
            // The kernel's second word, to a process that does not listen to the first.
            Signal::SIGKILL
                if self.spent.is_some_and(|spent| spent >= Duration::from_secs(order.processor_s_max)) =>
            {
                out_of_time(order)
            }
            // What the kernel does to a process that makes a call that no compiler makes.
            Signal::SIGSYS => CompileFault::component(
                FORBIDDEN,
                "the compiler tried to reach beyond itself while it compiled this: the component took it over",
            ),
            // What Rust does when an allocation fails, after saying so.
            Signal::SIGABRT if self.words.contains("memory allocation of") => out_of_memory(limits),
            Signal::SIGSEGV | Signal::SIGBUS | Signal::SIGABRT | Signal::SIGILL | Signal::SIGFPE => {
                self.crashed(signal.as_str())
            }
            signal => CompileFault::Host(format!("somebody ended it with {signal}")),
        }
    }

    fn crashed(&self, how: &str) -> CompileFault {
        let words = self.first_words();
        CompileFault::component(
            "compile_crash",
            &format!("the compiler does not survive it ({how}): {words}"),
        )
    }

    fn first_words(&self) -> String {
        bounded(self.words.trim(), 300)
    }
}

fn out_of_time(order: &Order) -> CompileFault {
    CompileFault::component(
        "compile_time",
        &format!("compiling it takes more than {} s of a processor", order.processor_s_max),
    )
}

fn out_of_memory(limits: &CompileLimits) -> CompileFault {
    CompileFault::component(
        "compile_memory",
        &format!("compiling it takes more than {} MiB of memory", limits.memory_bytes_max >> 20),
    )
}
