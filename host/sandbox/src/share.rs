//! Whose turn it is: each site's fair share of the processors that run plugins.
//!
//! **Start-time fair queueing** over processor time. Each site has a virtual clock that advances by the processor time
//! that its plugins have used, divided by the site's weight; of the sites that wait, the one whose clock is furthest
//! behind goes next. A site that has used nothing starts at the present, so that nobody saves up for a burst, and
//! nobody pays later for what he used while nobody else wanted it. What a call will cost is not known before: it is
//! charged what the site's calls cost lately, and the difference when it ends.
//!
//! A call is never taken off its processor half-way, so more rules keep **long** calls, those of a millisecond or
//! more, from making others wait for their ends:
//! * those of hooks run in the **lane** ([`lane`]): threads of lower priority, from which the threads that serve everybody else
//!   take the processor whenever they need it;
//! * there is always a turn that they do not hold;
//! * a short call does not wait for what is in the lane at all while its site is behind theirs.
//!
//! Whether a call is long is known of each [`Task`] of a site apart: a pricing plugin that loops does not send the
//! site's product pages to the lane, nor make them wait for it.
//!
//! A site whose queue for a task is full is refused by name ([`Crowded`]): its own shoppers wait, nobody else's.
//!
//! Called by whoever runs plugins for more than one site: [`Share::enter`] for a call of a chain, [`Share::pace`] for
//! the future of an HTTP plugin. What this module refuses to know: what a plugin is.

mod lane;
mod pace;
mod queue;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use souk_commerce::id::SiteId;
use souk_commerce::site::Hook;
use tokio::sync::oneshot;

pub use crate::metrics::ShareMetrics;
use crate::ticker::thread_cpu_time;
use lane::Lane;
pub use pace::Paced;
use queue::{Asked, Grant, Queue};

/// How many turns there are, and how many may wait for one.
#[derive(Debug, Clone)]
pub struct ShareLimits {
    /// Calls that run at the same time: as many as there are processors, because a call does nothing but compute.
    /// At least two, or long calls could not be kept from holding all of them.
    pub turns: usize,
    /// Calls of one site that wait with the same [`Task`]. At 5 ms a call, the last of them waits for less than the
    /// second after which a shopper gives up anyway.
    pub waiting_max: usize,
}

impl Default for ShareLimits {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self { turns: processors.max(2), waiting_max: 128 }
    }
}

/// What a site's turn is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Task {
    /// The site's chain of plugins with this hook.
    Hook(Hook),
    /// A poll of one of its HTTP plugins.
    Http,
}

impl Task {
    const ALL: [Self; Self::COUNT] = [
        Self::Hook(Hook::Catalog),
        Self::Hook(Hook::Pricing),
        Self::Hook(Hook::Cart),
        Self::Hook(Hook::Checkout),
        Self::Http,
    ];
    const COUNT: usize = Hook::ALL.len() + 1;

    /// Its place in [`Task::ALL`].
    fn index(self) -> usize {
        match self {
            Self::Hook(hook) => hook as usize,
            Self::Http => Hook::ALL.len(),
        }
    }
}

/// The site's queue is full: it asks for more than its share, and for longer than a queue can bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{waiting} calls of this shop's plugins wait for their turn already")]
pub struct Crowded {
    pub waiting: usize,
}

/// The turns of one process. Cheap to clone; the lane's threads end with the last clone.
#[derive(Clone)]
pub struct Share {
    inner: Arc<Inner>,
}

struct Inner {
    queue: Mutex<Queue<oneshot::Sender<Turn>>>,
    lane: Lane,
    metrics: ShareMetrics,
}

impl std::fmt::Debug for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Share").finish_non_exhaustive()
    }
}

/// Leave to run one call now. Given back when it is dropped.
#[derive(Debug)]
pub struct Turn {
    share: Share,
    grant: Grant,
    used: Duration,
}

enum Entered {
    Now(Turn),
    Later(oneshot::Receiver<Turn>),
}

impl Share {
    /// Fails if the lane's threads cannot be started.
    pub fn new(limits: &ShareLimits, metrics: ShareMetrics) -> std::io::Result<Self> {
        let turns = limits.turns.max(2);
        let queue = Mutex::new(Queue::new(turns, limits.waiting_max, oneshot::Sender::is_closed));
        // As many threads as there can be long calls.
        Ok(Self { inner: Arc::new(Inner { queue, lane: Lane::start(turns - 1)?, metrics }) })
    }

    /// Gives a site so many times the share of a site with weight 1, which is what each has at first.
    pub fn weigh(&self, site: &SiteId, weight: u32) {
        self.inner.queue.lock().weigh(site, weight);
    }

    /// Waits for a turn of this site. Cancel safe: whoever gives up leaves the queue.
    pub async fn enter(&self, site: &SiteId, task: Task) -> Result<Turn, Crowded> {
        match self.ask(site, task, true)? {
            Entered::Now(turn) => Ok(turn),
            Entered::Later(turn) => {
                let started = std::time::Instant::now();
                // Nobody drops a sender but with the last `Share`, of which `self` is one.
                let turn = turn.await.expect("the queue outlives whoever waits in it");
                self.inner.metrics.waited(site, started.elapsed());
                Ok(turn)
            }
        }
    }

    /// Runs `future` in turns of this site: each poll is one, so a guest that yields now and then shares its
    /// processor with all others.
    pub fn pace<F: Future>(&self, site: &SiteId, future: F) -> Paced<F> {
        Paced::new(self.clone(), site.clone(), future)
    }

    fn ask(&self, site: &SiteId, task: Task, may_refuse: bool) -> Result<Entered, Crowded> {
        let mut later = None;
        let asked = self.inner.queue.lock().ask(site, task, may_refuse, || {
            let (tell, told) = oneshot::channel();
            later = Some(told);
            tell
        });
        match asked {
            Asked::Granted(grant) => Ok(Entered::Now(self.turn(grant))),
            Asked::Queued => {
                Ok(Entered::Later(later.expect("whoever is put into the queue has made a channel")))
            }
            Asked::Full { waiting } => {
                self.inner.metrics.refused(site);
                Err(Crowded { waiting })
            }
        }
    }

    fn turn(&self, grant: Grant) -> Turn {
        Turn { share: self.clone(), grant, used: Duration::ZERO }
    }
}

impl Turn {
    /// Runs `work`, which computes and does not wait, and gives the turn back: here, or in the lane if the
    /// site's calls for this task have been long lately.
    ///
    /// A panic of `work` goes on in the caller. Not cancel safe in one way: work that has begun in the lane goes on,
    /// in its turn, and its result is lost.
    pub async fn run<T: Send + 'static>(self, work: impl FnOnce() -> T + Send + 'static) -> T {
        if !self.grant.is_long {
            return self.run_here(work);
        }
        let share = self.share.clone();
        let (tell, told) = oneshot::channel();
        share.inner.lane.run(Box::new(move || {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.run_here(work)));
            // Whoever gave up does not want it.
            let _ = tell.send(outcome);
        }));
        match told.await {
            Ok(Ok(value)) => value,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(_) => unreachable!("the lane runs all that it is given, and outlives this call's share"),
        }
    }

    /// The same on this thread, whatever the site's calls are like: for a thread that serves nobody else.
    pub fn run_here<T>(mut self, work: impl FnOnce() -> T) -> T {
        self.measure(work)
    }

    fn measure<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let before = thread_cpu_time();
        let value = work();
        self.used += thread_cpu_time().saturating_sub(before);
        value
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let inner = &self.share.inner;
        inner.metrics.used(self.grant.site(), self.used);
        let next = inner.queue.lock().give_back(&self.grant, self.used);
        for (tell, grant) in next {
            // Who has given up in this very moment gives the turn back by dropping it.
            let _ = tell.send(self.share.turn(grant));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::{Context, Waker};

    use super::*;

    const PRICING: Task = Task::Hook(Hook::Pricing);

    #[test]
    fn each_task_has_a_place() {
        assert!(Task::ALL.iter().enumerate().all(|(n, task)| task.index() == n));
    }

    fn share(turns: usize, waiting_max: usize) -> Share {
        Share::new(&ShareLimits { turns, waiting_max }, ShareMetrics::default()).expect("threads")
    }

    fn site(name: &str) -> SiteId {
        name.parse().expect("a site")
    }

    fn spin(time: Duration) {
        let start = thread_cpu_time();
        while thread_cpu_time() - start < time {
            std::hint::spin_loop();
        }
    }

    #[tokio::test]
    async fn a_full_queue_refuses_its_site_and_nobody_else() {
        let share = share(2, 1);
        let held = [
            share.enter(&site("a"), PRICING).await.expect("free"),
            share.enter(&site("a"), PRICING).await.expect("free"),
        ];
        let waiting = tokio::spawn({
            let share = share.clone();
            async move { share.enter(&site("a"), PRICING).await.map(drop) }
        });
        tokio::task::yield_now().await;
        assert_eq!(share.enter(&site("a"), PRICING).await.map(drop), Err(Crowded { waiting: 1 }));
        // Another site waits, but is not refused.
        let other = tokio::spawn({
            let share = share.clone();
            async move { share.enter(&site("b"), PRICING).await.map(drop) }
        });
        tokio::task::yield_now().await;
        assert!(!other.is_finished() && !waiting.is_finished());
        drop(held);
        assert_eq!(other.await.expect("no panic"), Ok(()));
        assert_eq!(waiting.await.expect("no panic"), Ok(()));
    }

    #[tokio::test]
    async fn who_gives_up_leaves_the_queue_and_no_turn_is_lost() {
        let share = share(2, 4);
        for _ in 0..50 {
            let held = [
                share.enter(&site("a"), PRICING).await.expect("free"),
                share.enter(&site("a"), PRICING).await.expect("free"),
            ];
            let gone: Vec<_> = (0..4).map(|_| Box::pin(share.enter_owned(site("a")))).collect();
            for mut future in gone {
                assert!(is_pending(future.as_mut()));
            }
            // All four places are taken by callers that are gone by now.
            let mut next = Box::pin(share.enter_owned(site("a")));
            assert!(is_pending(next.as_mut()), "refused because of callers that gave up");
            drop(held);
            drop(next.await.expect("granted"));
        }
    }

    fn is_pending<F: Future>(future: Pin<&mut F>) -> bool {
        future.poll(&mut Context::from_waker(Waker::noop())).is_pending()
    }

    impl Share {
        async fn enter_owned(&self, site: SiteId) -> Result<Turn, Crowded> {
            self.enter(&site, PRICING).await
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn long_calls_run_in_the_lane_and_a_panic_there_is_the_callers() {
        let share = share(2, 64);
        let thread = || std::thread::current().name().map(str::to_owned);
        for _ in 0..8 {
            share
                .enter(&site("slow"), PRICING)
                .await
                .expect("room")
                .run(|| spin(Duration::from_millis(3)))
                .await;
        }
        let place = share.enter(&site("slow"), PRICING).await.expect("room").run(thread).await;
        assert_eq!(place.as_deref(), Some("souk-lane"));
        let place = share.enter(&site("quick"), PRICING).await.expect("room").run(thread).await;
        assert_ne!(place.as_deref(), Some("souk-lane"));
        let panicking = tokio::spawn({
            let share = share.clone();
            async move {
                share.enter(&site("slow"), PRICING).await.expect("room").run(|| panic!("of the host")).await
            }
        });
        assert!(panicking.await.expect_err("a panic").is_panic());
        // The lane and the turn are still there.
        assert_eq!(share.enter(&site("slow"), PRICING).await.expect("room").run(|| 7).await, 7);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_paced_future_gives_its_turn_back_between_polls() {
        let share = share(2, 64);
        let polls = Arc::new(AtomicU32::new(0));
        let futures = (0..8).map(|_| {
            let polls = Arc::clone(&polls);
            share.pace(&site("a"), async move {
                for _ in 0..10 {
                    polls.fetch_add(1, Ordering::Relaxed);
                    tokio::task::yield_now().await;
                }
                // A wait of the guest's own holds no turn: with two turns, eight of these would never end.
                tokio::time::sleep(Duration::from_millis(5)).await;
                5
            })
        });
        let all: Vec<_> = futures.map(|paced| tokio::spawn(Box::pin(paced))).collect();
        for task in all {
            assert_eq!(task.await.expect("no panic"), Ok(5));
        }
        assert_eq!(polls.load(Ordering::Relaxed), 80);
    }
}
