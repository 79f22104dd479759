//! One site's index, and how it follows the site's catalogue. Blocking.
//!
//! The catalogue is an immutable map of which every version shares its unchanged parts with the one before. So to know what has
//! changed since the index was brought up to a version is to compare two maps, which passes over what they share; whichever way a
//! change came (a log, a snapshot, a file that was opened again), it is seen. After a start, when there is no version to compare with,
//! the fingerprints in the file say which products it has as they are.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use imbl::ordmap::DiffItem;
use souk_commerce::id::Sku;
use souk_commerce::product::{Listed, Product};
use souk_search::{Change, Document, Fault, Index, Position, Query, fingerprint};

use super::telemetry::SearchMetrics;
use crate::state::Site;

/// A site's products at one moment.
pub(super) type Goods = imbl::OrdMap<Sku, Arc<Product>>;

/// Matches that are looked at for one page. More are passed over where a shop has few of its products on sale, and the page says
/// where it goes on.
const LOOKED_AT_MAX: usize = 4_000;

/// A page of an answer.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// The best first. All of them are on sale.
    pub(crate) listed: Vec<Listed>,
    /// After which place the next page begins, if there may be more.
    pub(crate) next: Option<Position>,
    /// More has changed than could be taken in: what is new may be missing.
    pub(crate) is_behind: bool,
}

#[derive(Debug)]
pub(super) struct Desk {
    path: PathBuf,
    index: Option<Index>,
    /// The catalogue that the index was brought to, but for the backlog. None: what the file holds is not known.
    followed: Option<Goods>,
    /// Products that it does not have as they are in `followed`.
    backlog: BTreeSet<Sku>,
    /// What the metrics were told of it.
    told: Told,
}

/// An index's part in the sums over all.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Told {
    pub(super) open: i64,
    pub(super) products: i64,
    pub(super) bytes: i64,
    pub(super) left: i64,
}

impl Desk {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, index: None, followed: None, backlog: BTreeSet::new(), told: Told::default() }
    }

    pub(super) fn is_open(&self) -> bool {
        self.index.is_some()
    }

    /// Whether it has never held the whole catalogue: an answer would lack most of it.
    pub(super) fn is_being_built(&self) -> bool {
        !self.backlog.is_empty() && self.index.as_ref().is_some_and(|index| !index.is_whole())
    }

    /// Products that are still to be taken in.
    pub(super) fn left(&self) -> usize {
        self.backlog.len()
    }

    pub(super) fn followed(&self) -> Option<Goods> {
        self.followed.clone()
    }

    /// Closes the file. What it holds stays known.
    pub(super) fn close(&mut self, metrics: &SearchMetrics) {
        self.index = None;
        self.tell(metrics);
    }

    /// Closes the file, of which nothing is believed any more.
    pub(super) fn give_up(&mut self, metrics: &SearchMetrics) {
        self.followed = None;
        self.backlog.clear();
        self.close(metrics);
    }

    /// Removes the file: the next who asks makes another.
    pub(super) fn begin_anew(&mut self, metrics: &SearchMetrics) {
        metrics.rebuilds.inc();
        self.give_up(metrics);
        if let Err(error) = Index::remove(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a broken index cannot be removed");
        }
    }

    /// Brings the index towards `goods`, by at most so many products.
    pub(super) fn follow(
        &mut self,
        goods: &Goods,
        changes_max: usize,
        metrics: &SearchMetrics,
    ) -> Result<(), Fault> {
        if self.index.is_some()
            && self.backlog.is_empty()
            && self.followed.as_ref().is_some_and(|before| before.ptr_eq(goods))
        {
            return Ok(());
        }
        let followed = match self.step(goods, changes_max, metrics) {
            Err(Fault::Broken(why)) => {
                tracing::warn!(path = %self.path.display(), why, "an index is broken: it is made anew");
                self.begin_anew(metrics);
                self.step(goods, changes_max, metrics)
            }
            followed => followed,
        };
        self.tell(metrics);
        followed
    }

    fn step(&mut self, goods: &Goods, changes_max: usize, metrics: &SearchMetrics) -> Result<(), Fault> {
        if self.index.is_none() {
            let index = Index::open(&self.path)?;
            if !index.is_whole() {
                // Half made in a former life, or gone while it was closed.
                self.followed = None;
            }
            self.index = Some(index);
        }
        let Self { index: Some(index), followed, backlog, .. } = self else { return Ok(()) };
        match followed {
            Some(before) if before.ptr_eq(goods) => {}
            Some(before) => backlog.extend(before.diff(goods).map(|item| match item {
                DiffItem::Add(sku, _) | DiffItem::Remove(sku, _) => sku.clone(),
                DiffItem::Update { new: (sku, _), .. } => sku.clone(),
            })),
            None => *backlog = unlike(index, goods)?,
        }
        *followed = Some(goods.clone());
        if !backlog.is_empty() {
            let batch: Vec<Sku> = backlog.iter().take(changes_max).cloned().collect();
            let changes = batch
                .iter()
                .map(|sku| Change { sku: sku.as_str(), product: goods.get(sku).map(|product| &**product) });
            let count = index.apply(changes)?;
            metrics.updates.inc_by(count as u64);
            for sku in &batch {
                backlog.remove(sku);
            }
        }
        if backlog.is_empty() { index.set_whole() } else { Ok(()) }
    }

    /// Looks a page up. The file is open, and as far as [`Self::follow`] brought it.
    pub(super) fn find(
        &self,
        site: &Site,
        query: &Query,
        after: Option<Position>,
        limit: usize,
    ) -> Result<Found, Fault> {
        let index = self.index.as_ref().ok_or_else(|| Fault::Failed("it is closed".to_owned()))?;
        let mut found = Found { is_behind: !self.backlog.is_empty(), ..Found::default() };
        let mut last = None;
        let mut more = false;
        let mut looked_at = 0;
        index.find(query, after, |sku, position| {
            let listed = sku.parse().ok().and_then(|sku: Sku| site.listed(&sku));
            looked_at += 1;
            // The file may have a product's words of before.
            let listed = listed.filter(|listed| {
                !self.backlog.contains(&listed.product.sku)
                    || query.tier(&Document::of(&listed.product)).is_some()
            });
            match listed {
                Some(_) if found.listed.len() == limit => {
                    more = true;
                    return ControlFlow::Break(());
                }
                Some(listed) => found.listed.push(listed),
                None if looked_at < LOOKED_AT_MAX => return ControlFlow::Continue(()),
                None => {
                    (last, more) = (Some(position), true);
                    return ControlFlow::Break(());
                }
            }
            last = Some(position);
            ControlFlow::Continue(())
        })?;
        found.next = last.filter(|_| more);
        Ok(found)
    }

    fn tell(&mut self, metrics: &SearchMetrics) {
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let left = number(self.backlog.len() as u64);
        let products = self.followed.as_ref().map_or(0, |goods| number(goods.len() as u64));
        let now = match &self.index {
            Some(index) => {
                Told { open: 1, products, bytes: index.bytes().map_or(self.told.bytes, number), left }
            }
            // On the disk it is as it was.
            None => Told { open: 0, products, left, ..self.told },
        };
        metrics.moved(self.told, now);
        self.told = now;
    }
}

/// Products that the file lacks, has in other words, or has still.
fn unlike(index: &Index, goods: &Goods) -> Result<BTreeSet<Sku>, Fault> {
    let mut unlike: BTreeSet<Sku> = goods.keys().cloned().collect();
    let mut stranger = None;
    index.held(|sku, print| match sku.parse::<Sku>() {
        Ok(sku) if goods.get(&sku).is_some_and(|product| fingerprint(product) == print) => {
            unlike.remove(&sku);
        }
        Ok(sku) => {
            unlike.insert(sku);
        }
        Err(error) => stranger = Some(error.to_string()),
    })?;
    stranger.map_or(Ok(unlike), |why| Err(Fault::Broken(why)))
}
