//! The node's state as the link sees it: an implementation of `souk_link::NodeStore`.
//!
//! Translates and little more: outbox to [`super::State`], tails to [`super::Replica`], and purges before that to what is kept
//! of upstreams. Called by `souk_link` only.

use std::sync::Arc;

use souk_commerce::id::Epoch;
use souk_link::{
    BoxFuture, Cursor, EpochNo, Fold, Log, Mark, NodeStore, OutboxPosition, Part, Record, Seq, Staging,
    StoreError, Tail, Term,
};
use tokio::sync::watch;

use super::replica::ApplyError;
use super::terms::Terms;
use super::world::Row;
use super::{CommitError, Erased, Facts, ReadError, Replica, State};
use crate::routes::Routes;
use crate::upstream::PurgeMark;

/// Outbox and replica, for the link.
#[derive(Debug, Clone)]
pub struct LinkStore {
    pub state: Arc<State>,
    pub replica: Arc<Replica>,
    /// What is kept of merchants' own servers, which purges take back.
    pub(crate) routes: Routes,
    /// Which homes of the region it has met.
    pub(crate) terms: Terms,
}

fn position(facts: &Facts) -> OutboxPosition {
    let Facts { epoch, first, anchor, acked, acked_fold, .. } = *facts;
    let acked = Mark { hwm: acked, fold: acked_fold };
    OutboxPosition { epoch: epoch.map(|e| e.0), first, last: facts.last(), anchor, acked }
}

impl From<ReadError> for StoreError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Reopening => Self::Busy(error.to_string()),
            ReadError::Failed(_) => Self::Failed(error.to_string()),
        }
    }
}

impl From<CommitError> for StoreError {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::QueueFull | CommitError::DiskFull | CommitError::OutcomeUnknown => {
                Self::Busy(error.to_string())
            }
            _ => Self::Failed(error.to_string()),
        }
    }
}

impl LinkStore {
    /// Of a node that keeps nothing of merchants' own servers.
    pub fn without_upstreams(state: Arc<State>, replica: Arc<Replica>) -> Self {
        Self { state, replica, routes: Routes::default(), terms: Terms::default() }
    }

    /// Applies a tail on the caller's thread, without what there is of upstreams: for a simulation, which has one thread.
    pub fn apply_in_place(&self, tail: &Tail, region_epoch: u32) -> Result<(), StoreError> {
        outcome(self.replica.apply_of(tail, region_epoch))
    }

    /// Obeys what a tail purges of upstreams' responses, before its cursor says that it was obeyed: a node that is killed in
    /// between purges twice. A tail that is refused afterwards has purged too much, which is no harm.
    async fn forget(&self, tail: &Tail, region_epoch: u32) -> Result<(), StoreError> {
        if tail.log != Log::Purge || self.routes.is_empty() {
            return Ok(());
        }
        let read = |record: &Record| match Row::read(Log::Purge, &record.body) {
            Ok(Row::Purge(change)) => change,
            _ => None,
        };
        let (changes, from) = match tail.part {
            Part::Changes => (tail.records.iter().map(read).collect(), Some(tail.from)),
            // The log comes whole: whatever it meant is meant.
            Part::Snapshot { last: true, .. } => (vec![None], None),
            Part::Snapshot { .. } => return Ok(()),
        };
        let to = PurgeMark { history: Some(region_epoch), version: tail.to };
        if self.routes.forget(&changes, from, to).await {
            return Ok(());
        }
        let why =
            "the disk of upstreams' responses does not say that it has forgotten: the purge is done again";
        tracing::warn!(why, "a purge is not acknowledged yet");
        Err(StoreError::Busy(why.to_owned()))
    }
}

fn outcome(applied: Result<(), ApplyError>) -> Result<(), StoreError> {
    match applied {
        Ok(()) => Ok(()),
        Err(error @ ApplyError::Disk(_)) => Err(StoreError::Busy(error.to_string())),
        Err(error) => {
            tracing::error!(%error, "a tail cannot be applied: its log stands still");
            Err(StoreError::Failed(error.to_string()))
        }
    }
}

/// Carts that a tail of the purge log erases.
fn erased(tail: &Tail) -> Erased {
    let mut carts = Erased::new();
    for record in tail.records.iter().filter(|_| tail.log == Log::Purge) {
        if let Ok(Row::Purge(Some(change))) = Row::read(Log::Purge, &record.body)
            && !change.carts.is_empty()
        {
            carts.entry(change.site).or_default().extend(change.carts);
        }
    }
    carts
}

impl LinkStore {
    /// Obeys what a tail erases, before its cursor says that it was obeyed. Changes and snapshot alike: a cart that was erased
    /// once stays so.
    async fn erase(&self, tail: &Tail) -> Result<(), StoreError> {
        let carts = erased(tail);
        if carts.is_empty() {
            return Ok(());
        }
        let busy = |why: String| {
            tracing::warn!(why, "carts are not erased yet: it is tried again");
            StoreError::Busy(why)
        };
        let state = Arc::clone(&self.state);
        let found =
            tokio::task::spawn_blocking(move || state.erased(&carts).map(|found| (found, carts))).await;
        let (found, carts) = found.map_err(|e| busy(e.to_string()))?.map_err(|e| busy(e.to_string()))?;
        let count = found.len();
        self.state.erase(found, carts).await.map_err(|e| busy(e.to_string()))?;
        tracing::info!(
            carts = count,
            "carts of a shopper who was erased are gone, and state.redb is written anew"
        );
        Ok(())
    }
}

impl NodeStore for LinkStore {
    fn outbox_position(&self) -> OutboxPosition {
        position(&self.state.facts())
    }

    fn outbox_changed(&self) -> watch::Receiver<Seq> {
        self.state.newest()
    }

    fn read(&self, from: Seq, ops_max: usize, bytes_max: usize) -> Result<Vec<(Seq, Vec<u8>)>, StoreError> {
        Ok(self.state.operations(from, ops_max, bytes_max)?)
    }

    fn trim(&self, epoch: EpochNo, to: Seq, fold: Option<Fold>) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            self.state.trim(Epoch(epoch), to, fold);
            Ok(())
        })
    }

    fn go_back(&self, epoch: EpochNo, to: Mark) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move { Ok(self.state.go_back(Epoch(epoch), to.hwm, to.fold).await?) })
    }

    fn begin_epoch(&self, epoch: EpochNo) -> BoxFuture<'_, Result<OutboxPosition, StoreError>> {
        Box::pin(async move {
            self.state.begin_epoch(Epoch(epoch)).await?;
            Ok(position(&self.state.facts()))
        })
    }

    fn cursors(&self) -> Vec<Cursor> {
        let world = self.replica.world();
        let region_epoch = |code| world.histories.get(&code).copied();
        let cursors = world.cursors.iter();
        cursors
            .map(|(log, version)| Cursor { log, version, region_epoch: region_epoch(log.code()) })
            .collect()
    }

    fn term(&self) -> Term {
        self.terms.met()
    }

    fn note_term(&self, term: Term) -> BoxFuture<'_, Result<(), StoreError>> {
        let terms = self.terms.clone();
        Box::pin(async move {
            let noted = tokio::task::spawn_blocking(move || terms.note(term)).await;
            let failed =
                |why: String| StoreError::Failed(format!("the region's term cannot be written down: {why}"));
            noted.map_err(|e| failed(e.to_string()))?.map_err(|e| failed(e.to_string()))
        })
    }

    fn stagings(&self) -> Vec<Staging> {
        self.replica.stagings()
    }

    fn apply(&self, tail: Tail, region_epoch: u32) -> BoxFuture<'_, Result<(), StoreError>> {
        let replica = self.replica.clone();
        Box::pin(async move {
            self.forget(&tail, region_epoch).await?;
            self.erase(&tail).await?;
            let applied = tokio::task::spawn_blocking(move || replica.apply_of(&tail, region_epoch)).await;
            applied.map_or_else(|stopped| Err(StoreError::Failed(stopped.to_string())), outcome)
        })
    }
}

#[cfg(test)]
mod tests {
    use souk_commerce::id::NodeId;

    use super::*;

    #[tokio::test]
    async fn a_cursor_keeps_the_history_that_it_counts_over_a_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        let open = || LinkStore {
            state: Arc::new(State::open(dir.path(), NodeId(1), 1 << 20).expect("opens")),
            replica: Arc::new(Replica::open(dir.path(), 0).expect("opens")),
            routes: Routes::default(),
            terms: Terms::default(),
        };
        let of_price = |store: &LinkStore| store.cursors().into_iter().find(|c| c.log == Log::Price);
        let store = open();
        assert_eq!(of_price(&store), Some(Cursor { log: Log::Price, version: 0, region_epoch: None }));
        let part = Part::Snapshot { index: 0, last: true };
        for (region_epoch, to, part) in [(7, 5, Part::Changes), (9, 3, part)] {
            let tail = Tail { log: Log::Price, from: 0, to, part, records: Vec::new(), next: None };
            store.apply(tail, region_epoch).await.expect("applied");
            let expected = Cursor { log: Log::Price, version: to, region_epoch: Some(region_epoch) };
            assert_eq!(of_price(&store), Some(expected));
        }
        store.state.close();
        drop(store);
        assert_eq!(of_price(&open()).map(|c| (c.version, c.region_epoch)), Some((3, Some(9))));
    }
}
