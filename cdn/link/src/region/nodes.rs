//! Who is connected: one session per node, the newest wins.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use quinn::Connection;
use souk_replication::{EpochNo, Heads, Hello, Node, Seq};
use tokio::{
    sync::{Mutex as AsyncMutex, OwnedMutexGuard},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::ConnectedNode;

use super::plain;

/// What a session tells about itself as it goes.
#[derive(Debug, Default)]
pub(super) struct Progress {
    hello: Mutex<(String, String)>,
    epoch: Mutex<(EpochNo, Seq, Heads)>,
}

impl Progress {
    pub(super) fn set_hello(&self, hello: &Hello) {
        *locked(&self.hello) = (hello.pop.clone(), hello.software.clone());
    }

    pub(super) fn set(&self, epoch: EpochNo, hwm: Seq, cursors: Heads) {
        *locked(&self.epoch) = (epoch, hwm, cursors);
    }
}

#[derive(Debug)]
struct Entry {
    /// Which takeover made this entry.
    generation: u64,
    /// Ends the session.
    superseded: CancellationToken,
    connection: Connection,
    since: Instant,
    progress: Arc<Progress>,
}

/// All connected nodes.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    entries: Mutex<BTreeMap<Node, Entry>>,
    /// Each held by the session that may call the store for its node. Kept while anybody holds it or waits for it, which is longer
    /// than an entry: a session that took over and went away leaves the one before it in a commit.
    lanes: Mutex<BTreeMap<Node, Weak<AsyncMutex<()>>>>,
    generations: AtomicU64,
}

/// A session's right to be the one of its node, until it is dropped or superseded.
#[derive(Debug)]
pub(super) struct Claim {
    nodes: Arc<Nodes>,
    node: Node,
    generation: u64,
    pub(super) superseded: CancellationToken,
    lane: Arc<AsyncMutex<()>>,
}

impl Nodes {
    /// Makes this connection the one of its node and tells an older session to end. Wait for [`Claim::lane`] before calling
    /// the store: the older session may still be in a commit.
    pub(super) fn claim(
        self: &Arc<Self>,
        node: Node,
        connection: &Connection,
        progress: &Arc<Progress>,
    ) -> Claim {
        let generation = self.generations.fetch_add(1, Ordering::Relaxed);
        let superseded = CancellationToken::new();
        let mut entries = locked(&self.entries);
        if let Some(old) = entries.get(&node) {
            old.superseded.cancel();
        }
        let lane = self.lane_of(node);
        let entry = Entry {
            generation,
            superseded: superseded.clone(),
            connection: connection.clone(),
            since: Instant::now(),
            progress: progress.clone(),
        };
        entries.insert(node, entry);
        Claim { nodes: self.clone(), node, generation, superseded, lane }
    }

    fn lane_of(&self, node: Node) -> Arc<AsyncMutex<()>> {
        let mut lanes = locked(&self.lanes);
        lanes.retain(|_, lane| lane.strong_count() > 0);
        let lane = lanes.get(&node).and_then(Weak::upgrade).unwrap_or_default();
        lanes.insert(node, Arc::downgrade(&lane));
        lane
    }

    pub(super) fn list(&self) -> Vec<ConnectedNode> {
        let entries = locked(&self.entries);
        let welcomed = entries.iter().filter_map(|(&node, entry)| {
            let (epoch, hwm, cursors) = *locked(&entry.progress.epoch);
            let (pop, software) = locked(&entry.progress.hello).clone();
            (epoch > 0).then(|| ConnectedNode {
                node,
                pop,
                software,
                address: plain(entry.connection.remote_address()),
                epoch,
                hwm,
                cursors,
                up_for: entry.since.elapsed(),
                rtt: entry.connection.rtt(),
            })
        });
        welcomed.collect()
    }
}

impl Claim {
    /// Whether another connection has become the one of the node.
    pub(super) fn is_past(&self) -> bool {
        let entries = locked(&self.nodes.entries);
        entries.get(&self.node).is_none_or(|entry| entry.generation != self.generation)
    }

    /// Waits until no other session of this node is in the store.
    pub(super) fn lane(&self) -> impl Future<Output = OwnedMutexGuard<()>> + use<> {
        self.lane.clone().lock_owned()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut entries = locked(&self.nodes.entries);
        if entries.get(&self.node).is_some_and(|entry| entry.generation == self.generation) {
            entries.remove(&self.node);
        }
    }
}

/// These locks guard plain values, whole at every moment: a panic elsewhere does not spoil them.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
