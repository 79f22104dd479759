//! The lane for long calls: threads of lower priority than those that serve requests.
//!
//! A thread that runs a plugin for milliseconds is not to be waited for by one that has microseconds of work, and on
//! a machine with few processors only the kernel can see to that. A thread may lower its priority and not raise it
//! again, so these are threads of their own.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use parking_lot::Mutex;

pub(super) type Job = Box<dyn FnOnce() + Send>;

/// How nice the lane's threads are. A step of 1 is about 10 % of a processor that two threads want: at 10 the lane
/// gets a tenth of it, and all of it when nobody else wants it.
const NICENESS: i32 = 10;
/// The guest's 512 KiB, the host's own frames, and room.
const STACK_BYTES: usize = 2 << 20;

/// Ends its threads when dropped, after what they have begun.
pub(super) struct Lane {
    jobs: SyncSender<Job>,
}

impl Lane {
    /// `threads`: one for each long call that may run, so that a job never waits for another.
    pub(super) fn start(threads: usize) -> std::io::Result<Self> {
        let (jobs, queue) = sync_channel::<Job>(threads);
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..threads {
            let queue = Arc::clone(&queue);
            let thread = std::thread::Builder::new().name("souk-lane".to_owned()).stack_size(STACK_BYTES);
            thread.spawn(move || work(&queue))?;
        }
        Ok(Self { jobs })
    }

    /// Does not block: whoever has a turn finds a free thread, or one that is about to be.
    pub(super) fn run(&self, job: Job) {
        self.jobs.send(job).expect("the threads live as long as this end of the channel");
    }
}

fn work(queue: &Mutex<Receiver<Job>>) {
    if let Err(error) = rustix::process::nice(NICENESS) {
        tracing::warn!(%error, "the lane for long calls runs at normal priority");
    }
    loop {
        // Held while waiting: the next thread waits for the lock instead, which is the same.
        let job = queue.lock().recv();
        match job {
            Ok(job) => job(),
            Err(_) => return,
        }
    }
}
