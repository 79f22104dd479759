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

    /// The policy of the calling thread, as `/proc` tells it: field 41 of `stat`, 5 for the idle class.
    fn policy() -> u32 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").expect("a thread");
        let (_, after_name) = stat.rsplit_once(") ").expect("a name in brackets");
        after_name.split(' ').nth(38).and_then(|field| field.parse().ok()).expect("a policy")
    }

    #[tokio::test]
    async fn it_is_done_in_the_idle_class_and_a_panic_is_told() {
        let (before, within) = (policy(), unhurried(policy).await.expect("no panic"));
        assert_eq!((before, within, policy()), (0, 5, 0));
        let panic = unhurried(|| -> () { panic!("on purpose") }).await.expect_err("a panic");
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"on purpose"));
    }
}
