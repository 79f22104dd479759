//! Lets all shoppers in, a bounded number at once, while things break around them.
//!
//! Owns the tasks: the shoppers', and those that kill nodes and cut the link through the stage. All of them have ended
//! when [`Crowd::run`] returns, and whatever was broken is whole again.
//!
//! What was asked for happens, however short the run is: the later shoppers stay outside until the first node has been
//! struck and until the link is cut, and so meet both.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::books::CartBook;
use super::invoices::Invoice;
use super::plan::mix;
use super::shopper::{Shopper, Town};
use super::token::Signer;
use super::{ReplayOptions, Stage};
use crate::terminal::Step;

/// Shoppers who act at once. Each has one request under way: enough to keep two nodes' group commits full.
const AT_ONCE: usize = 64;
/// Between the return of a killed node and the next kill, at least; up to twice as long.
const KILL_EVERY: Duration = Duration::from_secs(2);
/// How long the link is cut.
pub(super) const CUT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

pub(super) struct Crowd<'a> {
    pub(super) town: Arc<Town>,
    pub(super) stage: &'a Stage,
    pub(super) options: &'a ReplayOptions,
    pub(super) signer: Signer,
    /// How long the link is cut: [`CUT`].
    pub(super) cut: Duration,
}

/// A door that a fault opens: who comes so late waits there until it has happened, or has failed.
struct Door {
    /// This many shoppers enter before.
    before: usize,
    open: CancellationToken,
}

/// What a task that breaks things knows of the shop.
struct Trouble {
    stage: Stage,
    town: Arc<Town>,
    entered: Arc<AtomicUsize>,
    /// Begins when so many shoppers have entered.
    after: usize,
    closing: CancellationToken,
    /// Lets in those who wait for it. Opened by dropping it, so that nobody waits for a task that has ended.
    door: Option<DropGuard>,
}

impl Trouble {
    /// False: the shop has closed before.
    async fn begins(&self) -> bool {
        while self.entered.load(Ordering::Relaxed) < self.after {
            tokio::select! {
                () = sleep(POLL) => {}
                () = self.closing.cancelled() => return false,
            }
        }
        true
    }
}

impl Crowd<'_> {
    /// Returns the books of all carts and how long it took.
    pub(super) async fn run(&self, invoices: Vec<Invoice>) -> anyhow::Result<(Vec<CartBook>, Duration)> {
        let total = invoices.len();
        let entered = Arc::new(AtomicUsize::new(0));
        let closing = CancellationToken::new();
        let mut doors = Vec::new();
        let mut trouble = |after: usize, before: usize| {
            let open = CancellationToken::new();
            let door = Some(open.clone().drop_guard());
            doors.push(Door { before, open });
            let (stage, town) = (self.stage.clone(), Arc::clone(&self.town));
            Trouble { stage, town, entered: Arc::clone(&entered), after, closing: closing.clone(), door }
        };
        let mut faults = JoinSet::new();
        // Without a shopper nobody would meet them; the report says that they did not happen.
        if self.options.kill_edge && total > 0 {
            faults.spawn(kill(trouble(total / 4, total / 2)));
        }
        if self.options.cut_region && total > 0 {
            let middle = total * 2 / 5;
            faults.spawn(cut(trouble(middle, middle), self.cut));
        }
        if self.options.kill_region && total > 0 {
            faults.spawn(kill_region(trouble(total / 2, total / 2)));
        }
        let began = Instant::now();
        let books = self.shop(invoices, &entered, &doors).await;
        let took = began.elapsed();
        closing.cancel();
        while let Some(ended) = faults.join_next().await {
            ended.context("the task that breaks things")?;
        }
        Ok((books?, took))
    }

    async fn shop(
        &self,
        invoices: Vec<Invoice>,
        entered: &AtomicUsize,
        doors: &[Door],
    ) -> anyhow::Result<Vec<CartBook>> {
        let places = Arc::new(Semaphore::new(AT_ONCE));
        let step = Step::counted("Replay", invoices.len() as u64);
        let mut books = Vec::with_capacity(invoices.len());
        let mut shoppers = JoinSet::new();
        for (index, invoice) in invoices.into_iter().enumerate() {
            for door in doors.iter().filter(|door| door.before == index) {
                door.open.cancelled().await;
            }
            let place = Arc::clone(&places).acquire_owned().await.context("the semaphore is never closed")?;
            let token = invoice.customer.as_deref().map(|c| self.signer.sign(c, &["trade"])).transpose()?;
            let shopper = Shopper::new(Arc::clone(&self.town), index, token, place);
            shoppers.spawn(shopper.shop(invoice));
            entered.fetch_add(1, Ordering::Relaxed);
            while let Some(ended) = shoppers.try_join_next() {
                books.extend(ended.context("a shopper")?);
                step.advance(1);
            }
            self.note(&step);
        }
        while let Some(ended) = shoppers.join_next().await {
            books.extend(ended.context("a shopper")?);
            step.advance(1);
            self.note(&step);
        }
        step.done(&format!("{} carts", books.len()));
        Ok(books)
    }

    fn note(&self, step: &Step) {
        let cut = if self.town.books.is_cut() { ", the region is away" } else { "" };
        let tally = self.town.books.tally();
        step.note(format!("{} operations, {} kills{cut}", tally.acknowledged, tally.kills));
    }
}

/// Kills one node after the other, never two at a time, until the shop closes. The first kill does not wait for its
/// time where a quarter of the shoppers has entered earlier.
async fn kill(mut trouble: Trouble) {
    let nodes = trouble.stage.nodes.clone();
    let mut number = 0_u64;
    loop {
        let extra = mix(trouble.town.seed, number, 3) % 1_000;
        let pause = KILL_EVERY + KILL_EVERY.mul_f64(f64::from(u32::try_from(extra).unwrap_or(0)) / 1_000.0);
        tokio::select! {
            () = sleep(pause) => {}
            begins = trouble.begins(), if number == 0 => if !begins { return },
            () = trouble.closing.cancelled() => return,
        }
        let victim = &nodes[usize::try_from(number).unwrap_or(0) % nodes.len()];
        // The late shoppers come while the node is down, not when it is back.
        drop(trouble.door.take());
        // Not cancelled half-way: who kills also brings back.
        match trouble.stage.faults.kill_and_restart(&victim.name).await {
            Ok(()) => trouble.town.books.tally().kills += 1,
            Err(error) => {
                trouble.town.books.tally().faults.add(format!("kill {}: {error:#}", victim.name));
            }
        }
        number += 1;
    }
}

/// Kills a process of the region once.
async fn kill_region(mut trouble: Trouble) {
    if !trouble.begins().await {
        return;
    }
    let faults = Arc::clone(&trouble.stage.faults);
    // The late shoppers come while it is away.
    drop(trouble.door.take());
    match faults.kill_region().await {
        Ok(()) => trouble.town.books.tally().region_kills += 1,
        Err(error) => trouble.town.books.tally().faults.add(format!("kill the region: {error:#}")),
    }
}

/// Cuts the link once.
async fn cut(mut trouble: Trouble, how_long: Duration) {
    if !trouble.begins().await {
        return;
    }
    let faults = Arc::clone(&trouble.stage.faults);
    if let Err(error) = faults.cut().await {
        trouble.town.books.tally().faults.add(format!("cut the link: {error:#}"));
        return;
    }
    let since = Instant::now();
    trouble.town.books.set_cut(true);
    drop(trouble.door.take());
    sleep(how_long).await;
    trouble.town.books.set_cut(false);
    match faults.heal().await {
        Ok(()) => trouble.town.books.tally().cut = Some(since.elapsed()),
        Err(error) => trouble.town.books.tally().faults.add(format!("heal the link: {error:#}")),
    }
}

#[cfg(test)]
mod tests;
