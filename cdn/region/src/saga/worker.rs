//! Drives the rows of checkouts and orders: takes one that is due, asks the provider what its state wants, and writes down
//! what it heard. Any number of workers may do so, in this process or in others over the same database; each can die at
//! any moment.
//!
//! Whoever waits for the outcome of a checkout ([`Payments::settled`]) is woken when its row has come to rest, and reads
//! the row: the answer is what is written, never what a worker remembers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use souk_commerce::id::{OrderId, SiteId};
use souk_commerce::order::OrderState;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::machine::{Op, Outcome, Step};
use super::provider::{MessageRefused, NotFoundOut, Providers, key};
use super::reconcile::{Report, Scope, compare};
use super::stripe::DEADLINE;
use crate::clock;
use crate::pair::held::Held;
use crate::store::checkout::{After, Claimed, Heard, Hinted};
use crate::store::order::Standing;
use crate::store::{Store, StoreError};
use crate::telemetry::Telemetry;

/// Calls of providers at once. At a second each, 32 checkouts a second.
const WORKERS: usize = 32;
/// Of one shop: a provider that hangs for its 20 s keeps the others' shoppers waiting for nothing.
const WORKERS_OF_SITE_MAX: usize = 16;
/// How often a worker that nobody has rung for looks: as late may a row be that another process has left.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often whoever waits for a payment looks whether a worker of another process has settled it. A shopper notices no
/// more; 32 who wait ask 128 times a second, each for one row by its key.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// While all that is due is of shops that have their share.
const FULL_PAUSE: Duration = Duration::from_millis(250);
/// After an error of the store.
const STORE_PAUSE: Duration = Duration::from_secs(1);
/// How often old rows are taken away.
const SWEEP_EVERY: Duration = Duration::from_secs(3_600);
/// How often the consumers of events are called when nobody has rung.
const CONSUME_EVERY: Duration = Duration::from_secs(2);
/// How often a shop's books are compared with its provider's.
const RECONCILE_EVERY_MS: u64 = 24 * 3_600_000;
/// How often it is looked whether that time has come: spread over the shops by when each was compared last.
const RECONCILE_LOOK: Duration = Duration::from_secs(600);
/// How far a comparison looks back: three of its days, so that a provider that was away for two is made up for.
pub(crate) const RECONCILE_BACK_MS: u64 = 3 * 24 * 3_600_000;
/// A payment may be made so long after its order was written down.
const RECONCILE_SLACK_MS: u64 = 24 * 3_600_000;
/// Pages of a hundred that one comparison reads: 200,000 payments, as many rows as are read of ours.
const PAGES_MAX: usize = 2_000;
/// How long a call that is written down waits to be the standby's as well: well within a lease (60 s).
const STANDBY_WAIT_MAX: Duration = Duration::from_secs(20);
/// A row is not worked on in the last part of its lease, in which a call might outlast it.
const MARGIN_MS: u64 = DEADLINE.as_millis() as u64 + 5_000;
/// Longest message of a provider: an event holds a whole object.
pub(crate) const MESSAGE_BYTES_MAX: usize = 256 << 10;

/// Everything that has to do with paying, for whoever takes orders and for the workers.
#[derive(Clone)]
pub(crate) struct Payments {
    store: Store,
    providers: Arc<Providers>,
    telemetry: Arc<Telemetry>,
    /// What the standby holds.
    held: Arc<Held>,
    /// Rung when a row becomes due.
    bell: Arc<Notify>,
    waiting: Arc<Mutex<HashMap<OrderId, Waiting>>>,
    busy: Arc<Mutex<HashMap<SiteId, usize>>>,
    /// One comparison at a time: each holds both sides' lists, some 50 MB at their limits.
    comparing: Arc<Semaphore>,
}

/// What a task of [`Payments::run`] is there for.
#[derive(Debug, Clone, Copy)]
enum Duty {
    Work,
    Consume,
    Sweep,
    Reconcile,
}

struct Waiting {
    woken: Arc<Notify>,
    count: usize,
}

/// What a worker found to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    Work,
    /// Nothing is due, or all of it is of shops that have their share.
    Nothing,
}

impl Payments {
    pub(crate) fn new(
        store: Store,
        providers: Arc<Providers>,
        telemetry: Arc<Telemetry>,
        held: Arc<Held>,
    ) -> Self {
        Self {
            store,
            providers,
            telemetry,
            held,
            bell: Arc::default(),
            waiting: Arc::default(),
            busy: Arc::default(),
            comparing: Arc::new(Semaphore::new(1)),
        }
    }

    pub(crate) fn providers(&self) -> &Providers {
        &self.providers
    }

    /// A row has become due.
    pub(crate) fn ring(&self) {
        self.bell.notify_one();
    }

    /// How a checkout stands, as soon as it is decided or after `wait_max`. A worker of this process rings; what one of
    /// another process over the same database has written is found by looking.
    ///
    /// Cancel safe: the checkout goes on without whoever waits for it.
    pub(crate) async fn settled(
        &self,
        order: OrderId,
        wait_max: Duration,
    ) -> Result<Option<Standing>, StoreError> {
        let ticket = Ticket::take(&self.waiting, order);
        let give_up = Instant::now() + wait_max;
        let look_every = if self.store.is_shared() { LOOK_AGAIN } else { wait_max };
        loop {
            let woken = ticket.woken.notified();
            tokio::pin!(woken);
            // Before the look: what is written after it rings.
            woken.as_mut().enable();
            let standing = self.store.standing(order).await?;
            if !matches!(standing, Some(Standing::Pending(_))) || Instant::now() >= give_up {
                return Ok(standing);
            }
            let look_again = give_up.min(Instant::now() + look_every);
            tokio::select! {
                () = woken => {}
                () = tokio::time::sleep_until(look_again) => {}
            }
        }
    }

    /// Runs until shutdown. A step that is under way then is taken up again by whoever comes after.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let mut tasks = JoinSet::new();
        let mut duties = vec![Duty::Consume, Duty::Sweep, Duty::Reconcile];
        if !self.providers.is_empty() {
            let sites: Vec<_> = self.providers.sites().map(ToString::to_string).collect();
            tracing::info!(?sites, "payments are taken at checkout");
            duties.extend([Duty::Work; WORKERS]);
        }
        let start = |tasks: &mut JoinSet<()>, duty: Duty, after: Duration| {
            let this = self.clone();
            let task = tasks.spawn(async move {
                tokio::time::sleep(after).await;
                this.attend(duty).await;
            });
            (task.id(), duty)
        };
        let mut running: HashMap<_, _> =
            duties.into_iter().map(|duty| start(&mut tasks, duty, Duration::ZERO)).collect();
        loop {
            let ended = tokio::select! {
                Some(ended) = tasks.join_next_with_id() => ended,
                () = shutdown.cancelled() => break,
            };
            let Err(error) = ended else { continue };
            // Its row is free when its lease ends. Without another one in its place, payments would come to an end in silence.
            if let Some(duty) = running.remove(&error.id()) {
                tracing::error!(%error, ?duty, "a task of the payments panicked: another one takes its place");
                running.extend([start(&mut tasks, duty, STORE_PAUSE)]);
            }
        }
        // At any await: that is what the rows are for.
        tasks.shutdown().await;
    }

    /// Does its duty, and never ends.
    async fn attend(self, duty: Duty) {
        match duty {
            Duty::Work => self.work().await,
            Duty::Consume => self.consume().await,
            Duty::Sweep => self.sweep().await,
            Duty::Reconcile => self.reconcile_daily().await,
        }
    }

    async fn work(self) {
        loop {
            let rung = self.bell.notified();
            match self.work_once(clock::now_ms).await {
                Ok(Found::Work) => {}
                Ok(Found::Nothing) => {
                    let due = self.store.checkout_due(&[]).await.unwrap_or_default();
                    let wait = match due.map(|due_ms| due_ms.saturating_sub(clock::now_ms())) {
                        None => LOOK_EVERY,
                        // Due, and of a shop that has its share: whoever gives a place back rings.
                        Some(0) => FULL_PAUSE,
                        Some(wait_ms) => Duration::from_millis(wait_ms).min(LOOK_EVERY),
                    };
                    let _rung = tokio::time::timeout(wait, rung).await;
                }
                Err(error) => {
                    tracing::error!(%error, "a payment worker cannot use the store");
                    tokio::time::sleep(STORE_PAUSE).await;
                }
            }
        }
    }

    /// One row, until it rests.
    async fn work_once(&self, now_ms: impl Fn() -> u64) -> Result<Found, StoreError> {
        let Some((claimed, place)) = self.claim(now_ms()).await? else { return Ok(Found::Nothing) };
        // Another worker may find another one.
        self.ring();
        let mut next = Some(claimed);
        while let Some(claimed) = next.take() {
            // A row before a call: the standby's row too, for whoever takes over asks under the same key.
            if matches!(claimed.step, Step::Send { .. })
                && let Err(error) = self.held.demand(&self.store, STANDBY_WAIT_MAX).await
            {
                tracing::warn!(order = %claimed.charge.order, %error, "a payment is not asked for: it is taken up again when its lease ends");
                break;
            }
            if now_ms().saturating_add(MARGIN_MS) > claimed.until_ms {
                tracing::warn!(order = %claimed.charge.order, "a payment waited too long for its worker: another one takes it");
                break;
            }
            let heard = self.ask(&claimed).await;
            next = self.conclude(claimed, heard, now_ms()).await?;
        }
        drop(place);
        self.ring();
        Ok(Found::Work)
    }

    /// Takes a row up, and a place among the calls of its shop.
    async fn claim(&self, now_ms: u64) -> Result<Option<(Claimed, Place)>, StoreError> {
        let full: Vec<SiteId> = {
            let busy = self.busy.lock();
            let full = busy.iter().filter(|(_, count)| **count >= WORKERS_OF_SITE_MAX);
            full.map(|(site, _)| site.clone()).collect()
        };
        // Asked on a reader first: a shop whose provider hangs must not make the one writer look over all that it has due.
        match self.store.checkout_due(&full).await? {
            Some(due_ms) if due_ms <= now_ms => {}
            _ => return Ok(None),
        }
        let claimed = self.store.claim_checkout(now_ms, &full).await?;
        Ok(claimed.map(|claimed| {
            let place = Place::take(&self.busy, claimed.charge.site.clone());
            (claimed, place)
        }))
    }

    /// Does what a row wants done. Nothing is decided here.
    pub(crate) async fn ask(&self, claimed: &Claimed) -> Heard {
        let charge = &claimed.charge;
        let Some(terms) = self.providers.of(&charge.site) else {
            tracing::error!(
                site = %charge.site, order = %charge.order,
                "an order waits for its payment, and the shop has no [[payments]] any more: put it back"
            );
            return match claimed.step {
                Step::Send { op, attempt } => Heard::Outcome { op, attempt, outcome: Outcome::NotNow },
                Step::LookUp | Step::Rest => Heard::NothingFound,
            };
        };
        let provider = &terms.provider;
        match claimed.step {
            Step::Send { op, attempt } => {
                let key = key(charge.order, op, attempt);
                let outcome = match op {
                    Op::Authorize => provider.authorize(&key, charge).await,
                    Op::Capture => provider.capture(&key, charge).await,
                    Op::Void => provider.void(&key, charge).await,
                    Op::Refund => provider.refund(&key, charge).await,
                };
                self.telemetry.payment_call(op.name(), outcome_name(&outcome));
                Heard::Outcome { op, attempt, outcome }
            }
            Step::LookUp => match provider.look_up(charge).await {
                Ok(found) => {
                    self.telemetry.payment_call("look_up", found.name());
                    Heard::Found(found)
                }
                Err(error) => {
                    self.telemetry.payment_call("look_up", "failed");
                    tracing::warn!(order = %charge.order, %error, "a payment could not be looked up");
                    Heard::NothingFound
                }
            },
            Step::Rest => Heard::NothingFound,
        }
    }

    /// Writes down what was heard; answers the next step if there is one at once.
    pub(crate) async fn conclude(
        &self,
        claimed: Claimed,
        heard: Heard,
        now_ms: u64,
    ) -> Result<Option<Claimed>, StoreError> {
        let order = claimed.charge.order;
        match self.store.conclude_checkout(claimed, heard, now_ms).await? {
            After::More(claimed) => {
                // The order may have been placed, and the capture is nothing that the shopper waits for.
                self.wake(order);
                Ok(Some(claimed))
            }
            After::Rest { state } => {
                if state != OrderState::Pending {
                    self.wake(order);
                }
                Ok(None)
            }
            After::Lost => {
                tracing::warn!(%order, "a payment worker was overtaken: what it heard is not used");
                Ok(None)
            }
        }
    }

    fn wake(&self, order: OrderId) {
        if let Some(waiting) = self.waiting.lock().get(&order) {
            waiting.woken.notify_waiters();
        }
    }

    /// A provider's message: it is believed to be about something, and the provider is asked.
    pub(crate) async fn message(
        &self,
        site: &SiteId,
        signature: Option<&str>,
        body: &[u8],
    ) -> Result<Hinted, MessageError> {
        let terms = self.providers.of(site).ok_or(MessageError::NoProvider)?;
        let now_ms = clock::now_ms();
        let message = terms.provider.parse_webhook(signature, body, now_ms)?;
        let hinted =
            self.store.hint_order(site.clone(), message.id, message.order, message.reference, now_ms).await?;
        self.telemetry.payment_message(match hinted {
            Hinted::Noted(_) => "noted",
            Hinted::Repeated => "repeated",
            Hinted::Unknown => "unknown",
        });
        self.ring();
        Ok(hinted)
    }

    /// Compares a shop's books with its provider's, has differences followed, and keeps the report.
    pub(crate) async fn reconcile(&self, site: &SiteId, now_ms: u64) -> Result<Report, ReconcileError> {
        let terms = self.providers.of(site).ok_or(ReconcileError::NoProvider)?;
        let _turn = self.comparing.try_acquire().map_err(|_| ReconcileError::UnderWay)?;
        let since_ms = now_ms.saturating_sub(RECONCILE_BACK_MS);
        let (mut theirs, mut next, mut pages) = (Vec::new(), None, 0);
        let all_listed = loop {
            let page = terms.provider.list(site, since_ms, next.as_deref()).await?;
            theirs.extend(page.payments);
            pages += 1;
            next = page.next;
            if next.is_none() || pages == PAGES_MAX {
                break next.is_none();
            }
        };
        // Read after theirs: what they have, we had written down before. What has changed meanwhile is left for the next time.
        let ours = self.store.payments_since(site.clone(), since_ms.saturating_sub(RECONCILE_SLACK_MS));
        let (ours, all_read) = ours.await?;
        let report = compare(Scope { since_ms, asked_ms: now_ms, all_listed, all_read }, &ours, &theirs);
        for difference in &report.differences {
            self.telemetry.payment_mismatch(difference.what.name());
            tracing::error!(
                %site, order = %difference.order, what = difference.what.name(), ours = difference.ours,
                theirs = difference.theirs, followed = difference.is_followed,
                "a payment provider's books differ from ours"
            );
        }
        self.store.note_report(site.clone(), &report, now_ms).await?;
        self.ring();
        Ok(report)
    }

    async fn reconcile_daily(self) {
        loop {
            for site in self.providers.sites() {
                let last = self.store.payment_report(site.clone()).await;
                let last_ms = last.ok().flatten().map_or(0, |(at_ms, _)| at_ms);
                let now_ms = clock::now_ms();
                if now_ms < last_ms.saturating_add(RECONCILE_EVERY_MS) {
                    continue;
                }
                if let Err(error) = self.reconcile(site, now_ms).await {
                    tracing::error!(%site, %error, "a shop's books could not be compared with its payment provider's");
                }
            }
            tokio::time::sleep(RECONCILE_LOOK).await;
        }
    }

    async fn consume(self) {
        loop {
            match self.store.consume_events().await {
                Ok(0) => tokio::time::sleep(CONSUME_EVERY).await,
                Ok(_) => {}
                Err(error) => {
                    tracing::error!(%error, "events of orders are not consumed");
                    tokio::time::sleep(STORE_PAUSE).await;
                }
            }
        }
    }

    async fn sweep(self) {
        loop {
            if let Err(error) = self.sweep_once(clock::now_ms()).await {
                tracing::warn!(%error, "old rows of checkouts stay for now");
            }
            tokio::time::sleep(SWEEP_EVERY).await;
        }
    }

    /// Takes everything away that is old, some rows at a time; answers how many.
    pub(crate) async fn sweep_once(&self, now_ms: u64) -> Result<usize, StoreError> {
        let mut swept = 0;
        loop {
            let rows = self.store.sweep_checkouts(now_ms).await? + self.store.sweep_events(now_ms).await?;
            if rows == 0 {
                return Ok(swept);
            }
            swept += rows;
        }
    }
}

/// Why a provider's message was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MessageError {
    #[error("the shop has no payment provider")]
    NoProvider,
    #[error(transparent)]
    Refused(#[from] MessageRefused),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why books were not compared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReconcileError {
    #[error("the shop has no payment provider")]
    NoProvider,
    #[error("another comparison is under way")]
    UnderWay,
    #[error("the provider could not be asked: {0}")]
    Provider(#[from] NotFoundOut),
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn outcome_name(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Done { .. } => "done",
        Outcome::Declined { .. } => "declined",
        Outcome::Refused { .. } => "refused",
        Outcome::NotNow => "not_now",
        Outcome::Unknown { .. } => "unknown",
    }
}

/// Somebody waits for an order. As many entries as there are shoppers at the region's calls, which the link bounds.
struct Ticket {
    all: Arc<Mutex<HashMap<OrderId, Waiting>>>,
    order: OrderId,
    woken: Arc<Notify>,
}

impl Ticket {
    fn take(all: &Arc<Mutex<HashMap<OrderId, Waiting>>>, order: OrderId) -> Self {
        let mut waiting = all.lock();
        let entry = waiting.entry(order).or_insert_with(|| Waiting { woken: Arc::default(), count: 0 });
        entry.count += 1;
        Self { all: Arc::clone(all), order, woken: Arc::clone(&entry.woken) }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut waiting = self.all.lock();
        if let Some(entry) = waiting.get_mut(&self.order) {
            entry.count -= 1;
            if entry.count == 0 {
                waiting.remove(&self.order);
            }
        }
    }
}

/// A place among the calls of a shop.
struct Place {
    busy: Arc<Mutex<HashMap<SiteId, usize>>>,
    site: SiteId,
}

impl Place {
    fn take(busy: &Arc<Mutex<HashMap<SiteId, usize>>>, site: SiteId) -> Self {
        *busy.lock().entry(site.clone()).or_default() += 1;
        Self { busy: Arc::clone(busy), site }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut busy = self.busy.lock();
        if let Some(count) = busy.get_mut(&self.site) {
            *count -= 1;
            if *count == 0 {
                busy.remove(&self.site);
            }
        }
    }
}
