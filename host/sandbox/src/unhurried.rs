//! Work that only a merchant waits for, kept out of the way of those who serve shoppers.
//!
//! A thread of low priority gets a small share of a busy processor, but that does not do for the latency of the others:
//! under Linux's scheduler it may finish its slice (1.4 ms on two processors, 2.8 ms on eight or more) when one of them
//! wakes up. A thread in the idle class is preempted at once. So components are judged and compiled there
//! (docs/decisions/2026-11-30-the-idle-class.md says at which price). Knows nothing of components.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use thread_priority::ThreadPriority;
use thread_priority::unix::{
    NormalThreadSchedulePolicy, ThreadSchedulePolicy, set_thread_priority_and_policy, thread_native_id,
};
use tokio::process::{Child, Command};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};

/// Where the kernel has no idle class: a sixty-eighth of the weight of whoever serves shoppers.
const NICENESS: i32 = 19;
/// As many as compile at once: a component is judged just before it is compiled.
const AT_ONCE_MAX: usize = 2;

static PLACES: Semaphore = Semaphore::const_new(AT_ONCE_MAX);

/// Puts the calling thread into the kernel's idle class, for good.
pub(crate) fn yield_to_everybody() -> io::Result<()> {
    let idle = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
    match set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, idle) {
        Ok(()) => Ok(()),
        Err(_) => rustix::process::nice(NICENESS).map(drop).map_err(io::Error::from),
    }
}

/// Starts a process that is in the idle class from its first instruction.
///
/// Whoever starts one is held by the kernel until the other program has begun, some milliseconds for one of our size, and it
/// inherits the class of the thread that started it. A worker of the runtime would stand still meanwhile, with the requests
/// that are its own; so a thread does it on which nobody waits. Cancel safe: what was started and is not wanted is killed, if
/// the command says so.
pub(crate) async fn start(mut command: Command) -> io::Result<Child> {
    let (answer, answered) = oneshot::channel();
    let runtime = Handle::current();
    std::thread::Builder::new().name("souk-start".to_owned()).spawn(move || {
        if let Err(error) = yield_to_everybody() {
            tracing::warn!(%error, "a compiler starts at the priority of those who serve shoppers");
        }
        let _runtime = runtime.enter();
        drop(answer.send(command.spawn()));
    })?;
    answered.await.unwrap_or_else(|_| Err(io::Error::other("the thread that starts compilers has ended")))
}

/// Does `work` on a thread of its own in the idle class, at most [`AT_ONCE_MAX`] at a time. An error is its panic.
///
/// Cancel safe in that the work goes on without whoever asked for it, and keeps its place until it ends.
pub async fn unhurried<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> std::thread::Result<T> {
    let place = PLACES.acquire().await.expect("the semaphore is never closed");
    let (answer, answered) = oneshot::channel();
    let run = move || {
        let _place = place;
        if let Err(error) = yield_to_everybody() {
            tracing::warn!(%error, "a component is judged at the priority of those who serve shoppers");
        }
        // Whoever asked may have gone.
        drop(answer.send(catch_unwind(AssertUnwindSafe(work))));
    };
    if let Err(error) = std::thread::Builder::new().name("souk-unhurried".to_owned()).spawn(run) {
        // Its work went with it.
        return Err(Box::new(format!("no thread can be started: {error}")));
    }
    answered.await.unwrap_or_else(|gone| Err(Box::new(gone)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> u32 {
        policy_in(&std::fs::read_to_string("/proc/thread-self/stat").expect("a thread"))
    }

    /// A thread's policy, as `/proc` tells it: field 41 of `stat`, 5 for the idle class.
    fn policy_in(stat: &str) -> u32 {
        let (_, after_name) = stat.rsplit_once(") ").expect("a name in brackets");
        after_name.split(' ').nth(38).and_then(|field| field.parse().ok()).expect("a policy")
    }

    #[tokio::test]
    async fn a_process_is_in_the_idle_class_from_its_start() {
        let mut cat = Command::new("cat");
        cat.arg("/proc/self/stat").stdout(std::process::Stdio::piped()).kill_on_drop(true);
        let said = start(cat).await.expect("cat starts").wait_with_output().await.expect("cat ends");
        let stat = String::from_utf8(said.stdout).expect("text");
        assert_eq!((policy_in(&stat), policy()), (5, 0));
        let missing = start(Command::new("/nowhere/cat")).await.expect_err("no such program");
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn it_is_done_in_the_idle_class_and_a_panic_is_told() {
        let (before, within) = (policy(), unhurried(policy).await.expect("no panic"));
        assert_eq!((before, within, policy()), (0, 5, 0));
        let panic = unhurried(|| -> () { panic!("on purpose") }).await.expect_err("a panic");
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"on purpose"));
    }
}
