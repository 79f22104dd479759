//! The other side: the process that compiles one component and ends.
//!
//! It reads a component on standard input and writes machine code on standard output. Before it reads the first byte
//! it takes away from itself whatever compiling does not need, so that a component that takes the compiler over holds
//! a process without files, sockets or privileges, for a minute. What it could still do is write a hostile artefact,
//! which is why nobody but the sandbox's loader listens to it, and why a region admits only what merchants with a
//! token upload.
//!
//! Called by the command line's hidden `compile` command, with the argument that [`super::order`] wrote.

use std::io::{self, Read, Write};
use std::process::ExitCode;

use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::getpid;
use wasmtime::Engine;

use super::order::Order;
use crate::admit::COMPONENT_BYTES_MAX;
use crate::artefact::compatibility;

/// After the limit's signal, until the kernel kills without asking.
const PROCESSOR_GRACE_S: u64 = 5;
/// Yields to everything else on the machine: shoppers wait for the others, nobody waits for this.
const NICENESS: i32 = 19;
/// New ones: standard input, output and error are open already and stay so. At three, whoever took this process over
/// could close one of them and open a socket in its place.
const DESCRIPTORS_MAX: u64 = 0;
/// New ones, threads among them, once the watch over the parent runs: compiling is one thread's work.
const PROCESSES_MAX: u64 = 0;

/// The first byte of what the child writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Answer {
    /// Machine code follows.
    Artefact = b'A',
    /// The component is not valid; the reason follows.
    Rejected = b'R',
    /// The memory was not enough.
    NoMemory = b'M',
    /// This side could not do its work; the reason follows.
    Unable = b'U',
}

impl Answer {
    pub(super) fn of(byte: u8) -> Option<Self> {
        [Self::Artefact, Self::Rejected, Self::NoMemory, Self::Unable]
            .into_iter()
            .find(|answer| *answer as u8 == byte)
    }
}

/// Compiles the component on standard input and writes what comes of it to standard output.
pub fn run(order: &Order) -> ExitCode {
    let (answer, bytes) = work(order);
    let mut stdout = io::stdout().lock();
    let told = stdout
        .write_all(&[answer as u8])
        .and_then(|()| stdout.write_all(&bytes))
        .and_then(|()| stdout.flush());
    if told.is_ok() && answer == Answer::Artefact { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn work(order: &Order) -> (Answer, Vec<u8>) {
    if let Err(error) = confine(order) {
        return unable(&format!("cannot limit itself: {error}"));
    }
    let component = match read(&mut io::stdin().lock()) {
        Ok(component) => component,
        Err(error) => return unable(&format!("cannot read the component: {error}")),
    };
    if let Err(error) = end_with_parent() {
        return unable(&format!("cannot watch its parent: {error}"));
    }
    if let Err(error) = setrlimit(Resource::RLIMIT_NPROC, PROCESSES_MAX, PROCESSES_MAX) {
        return unable(&format!("cannot limit itself: {error}"));
    }
    let engine = match Engine::new(&order.kind.compile_config()) {
        Ok(engine) => engine,
        Err(error) => return unable(&format!("cannot set up the compiler: {error:#}")),
    };
    if compatibility(&engine) != order.compatible {
        return unable("this program compiles for other settings than those asked for");
    }
    match engine.precompile_component(&component) {
        Ok(artefact) => (Answer::Artefact, artefact),
        Err(error) if is_out_of_memory(&error) => (Answer::NoMemory, Vec::new()),
        Err(error) => (Answer::Rejected, format!("{error:#}").into_bytes()),
    }
}

fn unable(why: &str) -> (Answer, Vec<u8>) {
    (Answer::Unable, why.as_bytes().to_vec())
}

/// Gives up what compiling does not need.
fn confine(order: &Order) -> io::Result<()> {
    close_inherited()?;
    let limit = |resource, max| setrlimit(resource, max, max);
    limit(Resource::RLIMIT_NOFILE, DESCRIPTORS_MAX)?;
    limit(Resource::RLIMIT_FSIZE, 0)?;
    limit(Resource::RLIMIT_CORE, 0)?;
    limit(Resource::RLIMIT_AS, order.memory_bytes_max)?;
    setrlimit(Resource::RLIMIT_CPU, order.processor_s_max, order.processor_s_max + PROCESSOR_GRACE_S)?;
    prctl::set_no_new_privs()?;
    // No other process of this user may look into this one, or write into it.
    prctl::set_dumpable(false)?;
    rustix::process::nice(NICENESS)?;
    Ok(())
}

/// Our own descriptors are closed by the kernel when another program begins; those that we were given without that
/// mark are not.
fn close_inherited() -> io::Result<()> {
    let mut inherited: Vec<i32> = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        inherited.extend(name.to_str().and_then(|name| name.parse::<i32>().ok()).filter(|fd| *fd > 2));
    }
    for fd in inherited {
        // One of them was the listing's own and is closed already.
        let _ = nix::unistd::close(fd);
    }
    Ok(())
}

/// The length in eight bytes, then as many: the end of the input is not the component's end but the parent's.
fn read(input: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 8];
    input.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > COMPONENT_BYTES_MAX as u64 {
        return Err(io::Error::other(format!("{length} bytes are more than {COMPONENT_BYTES_MAX}")));
    }
    let mut component = Vec::new();
    input.take(length).read_to_end(&mut component)?;
    if component.len() as u64 == length { Ok(component) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// Nobody waits for the work of a child whose parent is gone. A thread that reads, because the kernel's own signal for
/// it follows the death of the thread that started us, which may be a short-lived one.
fn end_with_parent() -> io::Result<()> {
    std::thread::Builder::new().name("parent-watch".to_owned()).stack_size(64 << 10).spawn(|| {
        let mut byte = [0];
        while io::stdin().read(&mut byte).is_ok_and(|n| n > 0) {}
        let _ = kill(getpid(), Signal::SIGKILL);
    })?;
    Ok(())
}

fn is_out_of_memory(error: &wasmtime::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<wasmtime::error::OutOfMemory>().is_some()
            || cause
                .downcast_ref::<io::Error>()
                .is_some_and(|error| error.kind() == io::ErrorKind::OutOfMemory)
            || cause
                .downcast_ref::<rustix::io::Errno>()
                .is_some_and(|error| *error == rustix::io::Errno::NOMEM)
    })
}
