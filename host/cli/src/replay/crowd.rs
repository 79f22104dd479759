//! Lets all shoppers in, a bounded number at once, while things break around them.
//!
//! Owns the tasks: the shoppers', and the one that kills nodes and cuts the link through the stage. All of them have
//! ended when [`Crowd::run`] returns, and whatever was broken is whole again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

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
}

impl Crowd<'_> {
    /// Returns the books of all carts and how long it took.
    pub(super) async fn run(&self, invoices: Vec<Invoice>) -> anyhow::Result<(Vec<CartBook>, Duration)> {
        let total = invoices.len();
        let entered = Arc::new(AtomicUsize::new(0));
        let closing = CancellationToken::new();
        let mut faults = JoinSet::new();
        if self.options.kill_edge {
            faults.spawn(kill(self.stage.clone(), Arc::clone(&self.town), closing.clone()));
        }
        if self.options.cut_region {
            let middle = total * 2 / 5;
            faults.spawn(cut(
                self.stage.clone(),
                Arc::clone(&self.town),
                Arc::clone(&entered),
                middle,
                closing.clone(),
            ));
        }
        let began = Instant::now();
        let books = self.shop(invoices, &entered).await;
        let took = began.elapsed();
        closing.cancel();
        while let Some(ended) = faults.join_next().await {
            ended.context("the task that breaks things")?;
        }
        Ok((books?, took))
    }

    async fn shop(&self, invoices: Vec<Invoice>, entered: &AtomicUsize) -> anyhow::Result<Vec<CartBook>> {
        let places = Arc::new(Semaphore::new(AT_ONCE));
        let step = Step::counted("Replay", invoices.len() as u64);
        let mut books = Vec::with_capacity(invoices.len());
        let mut shoppers = JoinSet::new();
        for (index, invoice) in invoices.into_iter().enumerate() {
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

/// Kills one node after the other, never two at a time, until the shop closes.
async fn kill(stage: Stage, town: Arc<Town>, closing: CancellationToken) {
    let mut number = 0_u64;
    loop {
        let extra = mix(town.seed, number, 3) % 1_000;
        let pause = KILL_EVERY + KILL_EVERY.mul_f64(f64::from(u32::try_from(extra).unwrap_or(0)) / 1_000.0);
        tokio::select! {
            () = sleep(pause) => {}
            () = closing.cancelled() => return,
        }
        let victim = usize::try_from(number).unwrap_or(0) % stage.nodes.len();
        // Not cancelled half-way: who kills also brings back.
        match stage.faults.kill_and_restart(&stage.nodes[victim].name).await {
            Ok(()) => town.books.tally().kills += 1,
            Err(error) => {
                town.books.tally().faults.add(format!("kill {}: {error:#}", stage.nodes[victim].name))
            }
        }
        number += 1;
    }
}

/// Cuts the link once, when `middle` shoppers have entered.
async fn cut(
    stage: Stage,
    town: Arc<Town>,
    entered: Arc<AtomicUsize>,
    middle: usize,
    closing: CancellationToken,
) {
    while entered.load(Ordering::Relaxed) < middle {
        tokio::select! {
            () = sleep(POLL) => {}
            () = closing.cancelled() => return,
        }
    }
    if let Err(error) = stage.faults.cut().await {
        town.books.tally().faults.add(format!("cut the link: {error:#}"));
        return;
    }
    town.books.set_cut(true);
    sleep(CUT).await;
    town.books.set_cut(false);
    if let Err(error) = stage.faults.heal().await {
        town.books.tally().faults.add(format!("heal the link: {error:#}"));
    }
}
