//! The other side: the process that compiles one component and ends.
//!
//! It reads a component on standard input and writes machine code on standard output. Before it reads the first byte
//! it takes away from itself whatever compiling does not need, so that a component that takes the compiler over holds
//! a process without files, sockets or privileges, for a minute ([`super::confine`]). What it could still do is write a hostile artefact,
//! which is why nobody but the sandbox's loader listens to it, and why a region admits only what merchants with a
//! token upload.
//!
//! Called by the command line's hidden `compile` command, with the argument that [`super::order`] wrote.

use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use nix::sys::signal::{Signal, kill};
use nix::unistd::getpid;
use wasmtime::Engine;

use super::confine::{Layers, confine, shut};
use super::order::Order;
use crate::admit::COMPONENT_BYTES_MAX;
use crate::artefact::compatibility;

/// The first byte of what the child writes. The second says which [`Layers`] held it.
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
    run_with(order, precompile)
}

fn precompile(engine: &Engine, component: &[u8]) -> (Answer, Vec<u8>) {
    match engine.precompile_component(component) {
        Ok(artefact) => (Answer::Artefact, artefact),
        Err(error) if is_out_of_memory(&error) => (Answer::NoMemory, Vec::new()),
        Err(error) => (Answer::Rejected, format!("{error:#}").into_bytes()),
    }
}

/// What a test puts in place of the compiler, as somebody would who took it over by a component: it says how far it
/// came, or nothing of a component that takes nobody over.
#[doc(hidden)]
pub fn run_taken_over(order: &Order, attempt: impl FnOnce(&[u8]) -> Option<String>) -> ExitCode {
    run_with(order, |engine, component| match attempt(component) {
        Some(told) => unable(&told),
        None => precompile(engine, component),
    })
}

fn run_with(order: &Order, compile: impl FnOnce(&Engine, &[u8]) -> (Answer, Vec<u8>)) -> ExitCode {
    let (layers, (answer, bytes)) = match prepare(order) {
        Ok(ready) => (ready.layers, ready.work(compile)),
        Err(why) => (Layers::default(), unable(&why)),
    };
    let mut stdout = io::stdout().lock();
    let told = stdout
        .write_all(&[answer as u8, layers.to_byte()])
        .and_then(|()| stdout.write_all(&bytes))
        .and_then(|()| stdout.flush());
    if told.is_ok() && answer == Answer::Artefact { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A process that has nothing left but the compiler and its pipes.
struct Ready {
    engine: Engine,
    layers: Layers,
    watch: SyncSender<()>,
}

/// Everything that needs more than compiling does, and then the end of it.
fn prepare(order: &Order) -> Result<Ready, String> {
    let engine = Engine::new(&order.kind.compile_config())
        .map_err(|error| format!("cannot set up the compiler: {error:#}"))?;
    if compatibility(&engine) != order.compatible {
        return Err("this program compiles for other settings than those asked for".to_owned());
    }
    let unlimited = |error: io::Error| format!("cannot limit itself: {error}");
    let layers = confine(order).map_err(unlimited)?;
    let (watch, begin) = sync_channel(1);
    end_with_parent(begin).map_err(|error| format!("cannot watch its parent: {error}"))?;
    let layers = shut(order, layers).map_err(unlimited)?;
    Ok(Ready { engine, layers, watch })
}

impl Ready {
    fn work(self, compile: impl FnOnce(&Engine, &[u8]) -> (Answer, Vec<u8>)) -> (Answer, Vec<u8>) {
        let component = match read(&mut io::stdin().lock()) {
            Ok(component) => component,
            Err(error) => return unable(&format!("cannot read the component: {error}")),
        };
        // Whatever else the parent says is its end.
        let _ = self.watch.send(());
        compile(&self.engine, &component)
    }
}

fn unable(why: &str) -> (Answer, Vec<u8>) {
    (Answer::Unable, why.as_bytes().to_vec())
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
/// it follows the death of the thread that started us, which may be a short-lived one. It is started while threads can
/// be, and reads when it is told that the component has been read.
fn end_with_parent(begin: Receiver<()>) -> io::Result<()> {
    std::thread::Builder::new().name("parent-watch".to_owned()).stack_size(64 << 10).spawn(move || {
        if begin.recv().is_err() {
            // The process is about to end by itself.
            return;
        }
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
