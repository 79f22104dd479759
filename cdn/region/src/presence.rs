//! The nodes of the other processes over the same database, so that a deploy or a purge that waits, waits for all of them,
//! whichever process was asked.
//!
//! Each process writes down who is connected to it and what they say of themselves, when that changes, and reads what the
//! others have written. What it reads it hands to [`Rollout`] and [`Obeyed`] as if the node had said it here. A node that
//! is connected here is never believed to be elsewhere. Where there is no other process, this does nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use souk_commerce::call::{Request, RunningChain};
use souk_commerce::id::SiteId;
use souk_link::RegionLink;
use souk_replication::{Heads, Log};
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::obeyed::Obeyed;
use crate::rollout::Rollout;
use crate::store::present::{Heard, PresentNode};
use crate::store::{Store, StoreError};

/// How often a process says what has changed, and looks what others say: a wait for a node elsewhere takes up to twice as
/// long more.
const TELL_EVERY: Duration = Duration::from_millis(250);
/// And at least so often, for as long as it lives.
const RENEW_EVERY: Duration = Duration::from_secs(5);
/// After an error of the store.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(1);
/// Of the sites whose chains changed last it is told what nodes run: those for which somebody may wait. At most some 16 KB
/// for a node, all of them with four components on the way.
pub(crate) const SITES_TOLD_MAX: usize = 32;

/// A node that is connected to another process.
#[derive(Debug, Clone)]
pub(crate) struct Elsewhere {
    pub(crate) pop: String,
    /// When this process first heard of it.
    pub(crate) since: Instant,
    pub(crate) cursors: Heads,
    chains: Vec<u8>,
}

pub(crate) struct Presence {
    store: Store,
    link: RegionLink,
    rollout: Arc<Rollout>,
    obeyed: Arc<Obeyed>,
    /// Tells this life of this process from all others.
    process: [u8; 16],
    elsewhere: Mutex<BTreeMap<u32, Elsewhere>>,
}

/// What was told last.
#[derive(Default)]
struct Told {
    nodes: BTreeMap<u32, PresentNode>,
    at: Option<Instant>,
    sites: Vec<SiteId>,
    release_head: u64,
    /// What others have told.
    heard: Heard,
}

impl Presence {
    pub(crate) fn new(
        store: Store,
        link: RegionLink,
        rollout: Arc<Rollout>,
        obeyed: Arc<Obeyed>,
        process: [u8; 16],
    ) -> Self {
        Self { store, link, rollout, obeyed, process, elsewhere: Mutex::default() }
    }

    /// Nodes that are connected to another process and not to this one.
    pub(crate) fn elsewhere(&self) -> BTreeMap<u32, Elsewhere> {
        self.elsewhere.lock().clone()
    }

    /// Ends when the token is cancelled; what it has written lapses.
    pub(crate) async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        if !self.store.is_shared() {
            return;
        }
        let mut told = Told::default();
        loop {
            let pause = match self.round(&mut told).await {
                Ok(()) => TELL_EVERY,
                Err(_) if shutdown.is_cancelled() => return,
                Err(error) => {
                    tracing::warn!(%error, "which nodes are connected to other processes is not known now");
                    PAUSE_AFTER_FAILURE
                }
            };
            if shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
        }
    }

    async fn round(&self, told: &mut Told) -> Result<(), StoreError> {
        let release_head = self.store.log_heads().borrow().get(Log::Release);
        if told.at.is_none() || release_head != told.release_head {
            told.sites = self.store.sites_released_last(SITES_TOLD_MAX).await?;
            told.release_head = release_head;
        }
        let nodes = self.present(&told.sites);
        let is_new = |(node, present): &(&u32, &PresentNode)| told.nodes.get(*node) != Some(*present);
        let changed: Vec<_> = nodes.iter().filter(is_new).map(|(_, present)| present.clone()).collect();
        let gone: Vec<_> = told.nodes.keys().filter(|node| !nodes.contains_key(node)).copied().collect();
        let is_due = told.at.is_none_or(|at| at.elapsed() >= RENEW_EVERY);
        if is_due || !changed.is_empty() || !gone.is_empty() {
            let is_first = told.at.is_none();
            if self.store.tell_present(self.process, changed, gone).await? || is_first {
                (told.nodes, told.at) = (nodes, Some(Instant::now()));
            } else {
                // Taken for dead: what was told before is forgotten.
                (told.nodes, told.at) = (BTreeMap::new(), None);
            }
        }
        let before = std::mem::take(&mut told.heard);
        told.heard = self.store.present_elsewhere(self.process, clock::now_ms(), before).await?;
        self.hear(told.heard.values().flat_map(|(_, nodes)| nodes.iter()));
        Ok(())
    }

    /// What this process has to say.
    fn present(&self, sites: &[SiteId]) -> BTreeMap<u32, PresentNode> {
        let connected = self.link.nodes().into_iter().map(|node| {
            let chains = encode(self.rollout.said(node.node, sites));
            let purge = node.cursors.get(Log::Purge);
            (node.node, PresentNode { node: node.node, pop: node.pop, purge, chains })
        });
        connected.collect()
    }

    /// Takes in what the others say.
    fn hear<'a>(&self, present: impl Iterator<Item = &'a PresentNode>) {
        let here: Vec<u32> = self.link.nodes().iter().map(|node| node.node).collect();
        let mut elsewhere = self.elsewhere.lock();
        let mut before = std::mem::take(&mut *elsewhere);
        // A node that has just moved is told of by the process that it left, too, until that is known to be dead: whoever has
        // seen it further has seen it last.
        let mut furthest: BTreeMap<u32, &PresentNode> = BTreeMap::new();
        for told in present.filter(|told| !here.contains(&told.node)) {
            if furthest.get(&told.node).is_none_or(|other| other.purge <= told.purge) {
                furthest.insert(told.node, told);
            }
        }
        for PresentNode { node, pop, purge, chains } in furthest.into_values() {
            let (node, purge) = (*node, *purge);
            let known = before.remove(&node);
            if known.as_ref().is_none_or(|known| known.cursors.get(Log::Purge) != purge) {
                self.obeyed.acknowledged(node, purge);
            }
            if known.as_ref().is_none_or(|known| known.chains != *chains) {
                match decode(chains) {
                    // One that has said nothing yet is not made to have said something.
                    Ok(said) if said.is_empty() => {}
                    Ok(said) => self.rollout.report(node, false, said),
                    Err(error) => tracing::warn!(node, error, "another process says what is not understood"),
                }
            }
            let mut cursors = Heads::default();
            cursors.set(Log::Purge, purge);
            let since = known.as_ref().map_or_else(Instant::now, |known| known.since);
            let chains = match known {
                Some(known) if known.chains == *chains => known.chains,
                _ => chains.clone(),
            };
            elsewhere.insert(node, Elsewhere { pop: pop.clone(), since, cursors, chains });
        }
        drop(elsewhere);
        if !before.is_empty() {
            // Whoever waits for one that has gone looks again.
            self.rollout.stir();
            self.obeyed.stir();
        }
    }
}

/// As the node itself would say it, so that a process of another release reads it.
fn encode(chains: Vec<RunningChain>) -> Vec<u8> {
    Request::Running { whole: false, chains }.to_bytes()
}

fn decode(bytes: &[u8]) -> Result<Vec<RunningChain>, String> {
    match Request::from_bytes(bytes) {
        Ok(Request::Running { chains, .. }) => Ok(chains),
        Ok(_) => Err("it is no word of a node about what it runs".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}
