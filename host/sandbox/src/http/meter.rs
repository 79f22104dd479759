//! Processor time of a guest that runs in slices, on whatever thread polls it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use wasmtime::UpdateDeadline;

use crate::ticker::{Toll, thread_cpu_time};

/// How long a guest may keep a thread before others run. A guest that yields half-way leaves its memory behind in the
/// caches of a thread that then begins another: an interpreter's answer takes about a tick, and is better ended. No
/// longer than a chain of hooks may keep the same thread.
const SLICE: Duration = Duration::from_millis(4);

/// The account of one request, shared by its future (which knows when it runs) and its store's epoch callback (which
/// can stop it).
///
/// As with hooks, a request that ends within the tick in which it began costs nothing here. The first tick that ends
/// while the guest runs starts the account, and from then on the processor clock of the polling thread is read around
/// each poll: what other processes take on a busy machine never counts.
pub(super) struct Meter {
    budget: Duration,
    /// None until the first tick ends while the guest runs. Never contended: whoever polls the guest runs it.
    account: Mutex<Option<Account>>,
    /// What a request begins with. Its own: what its plugin is forgiven changes from one to the next.
    toll: Mutex<Toll>,
}

#[derive(Clone, Copy)]
struct Account {
    /// The polling thread's processor time when the current poll, or the account, began …
    began: Duration,
    /// … and at the last look.
    looked: Duration,
    toll: Toll,
}

impl Account {
    fn look(&mut self) -> Duration {
        let now = thread_cpu_time();
        self.toll.add(now.saturating_sub(self.looked));
        self.looked = now;
        now
    }
}

impl Meter {
    pub(super) fn new(budget: Duration, toll: Toll) -> Arc<Self> {
        Arc::new(Self { budget, account: Mutex::new(None), toll: Mutex::new(toll) })
    }

    /// A new account, for the next request of the same store.
    pub(super) fn renew(&self, toll: Toll) {
        *self.account.lock() = None;
        *self.toll.lock() = toll;
    }

    /// What the request has been charged; none if it was over before anybody looked.
    pub(super) fn toll(&self) -> Option<Toll> {
        self.account.lock().map(|account| account.toll)
    }

    fn begin(&self) {
        if let Some(account) = &mut *self.account.lock() {
            // Another thread perhaps, with another clock.
            let now = thread_cpu_time();
            (account.began, account.looked) = (now, now);
        }
    }

    fn end(&self) {
        if let Some(account) = &mut *self.account.lock() {
            account.look();
        }
    }

    /// The guest has run to the end of a tick: let it go on, let others run, or stop it.
    pub(super) fn on_tick(&self) -> UpdateDeadline {
        let mut account = self.account.lock();
        let Some(account) = &mut *account else {
            let now = thread_cpu_time();
            *account = Some(Account { began: now, looked: now, toll: *self.toll.lock() });
            return UpdateDeadline::Continue(1);
        };
        let now = account.look();
        if account.toll.spent() >= self.budget {
            UpdateDeadline::Interrupt
        } else if now.saturating_sub(account.began) >= SLICE {
            UpdateDeadline::Yield(1)
        } else {
            UpdateDeadline::Continue(1)
        }
    }
}

/// A future whose polls are metered.
pub(super) struct Metered<'a, F> {
    pub(super) meter: Arc<Meter>,
    pub(super) future: Pin<&'a mut F>,
}

impl<F: Future> Future for Metered<'_, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        self.meter.begin();
        let result = self.future.as_mut().poll(context);
        self.meter.end();
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ticker::Credit;

    #[test]
    fn a_request_of_a_reused_instance_is_forgiven_what_its_plugin_is_forgiven_now() {
        let credit = Credit::default();
        let meter = Meter::new(Duration::from_millis(50), credit.toll());
        let long = Duration::from_millis(40);
        let mut spent = Vec::new();
        for _ in 0..4 {
            meter.on_tick();
            // Three intervals that nobody could look into.
            let mut account = meter.account.lock().expect("a tick has ended");
            (0..3).for_each(|_| account.toll.add(long));
            spent.push(account.toll.spent() >= long);
            credit.settle(Some(account.toll));
            meter.renew(credit.toll());
        }
        assert_eq!(spent, [false, false, false, true]);
    }
}
