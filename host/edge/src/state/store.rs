//! The node's state as the link sees it: an implementation of `souk_link::NodeStore`.
//!
//! Translates and nothing more: outbox to [`super::State`], tails to [`super::Replica`]. Called by `souk_link` only.

use std::sync::Arc;

use souk_commerce::id::Epoch;
use souk_link::{BoxFuture, Cursor, EpochNo, NodeStore, OutboxPosition, Seq, StoreError, Tail};
use tokio::sync::watch;

use super::replica::ApplyError;
use super::{CommitError, Facts, ReadError, Replica, State};

/// Outbox and replica, for the link.
#[derive(Debug, Clone)]
pub struct LinkStore {
    pub state: Arc<State>,
    pub replica: Arc<Replica>,
}

fn position(facts: &Facts) -> OutboxPosition {
    OutboxPosition { epoch: facts.epoch.map(|e| e.0), first: facts.first, last: facts.last() }
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

    fn trim(&self, epoch: EpochNo, to: Seq) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            self.state.trim(Epoch(epoch), to);
            Ok(())
        })
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

    fn apply(&self, tail: Tail, region_epoch: u32) -> BoxFuture<'_, Result<(), StoreError>> {
        let replica = self.replica.clone();
        Box::pin(async move {
            let applied = tokio::task::spawn_blocking(move || replica.apply_of(&tail, region_epoch)).await;
            match applied {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error @ ApplyError::Disk(_))) => Err(StoreError::Busy(error.to_string())),
                Ok(Err(error)) => {
                    tracing::error!(%error, "a tail cannot be applied: its log stands still");
                    Err(StoreError::Failed(error.to_string()))
                }
                Err(stopped) => Err(StoreError::Failed(stopped.to_string())),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use souk_commerce::id::NodeId;
    use souk_link::{Log, Part};

    use super::*;

    #[tokio::test]
    async fn a_cursor_keeps_the_history_that_it_counts_over_a_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        let open = || LinkStore {
            state: Arc::new(State::open(dir.path(), NodeId(1), 1 << 20).expect("opens")),
            replica: Arc::new(Replica::open(dir.path(), 0).expect("opens")),
        };
        let of_price = |store: &LinkStore| store.cursors().into_iter().find(|c| c.log == Log::Price);
        let store = open();
        assert_eq!(of_price(&store), Some(Cursor { log: Log::Price, version: 0, region_epoch: None }));
        let part = Part::Snapshot { index: 0, last: true };
        for (region_epoch, to, part) in [(7, 5, Part::Changes), (9, 3, part)] {
            let tail = Tail { log: Log::Price, from: 0, to, part, records: Vec::new() };
            store.apply(tail, region_epoch).await.expect("applied");
            let expected = Cursor { log: Log::Price, version: to, region_epoch: Some(region_epoch) };
            assert_eq!(of_price(&store), Some(expected));
        }
        store.state.close();
        drop(store);
        assert_eq!(of_price(&open()).map(|c| (c.version, c.region_epoch)), Some((3, Some(9))));
    }
}
