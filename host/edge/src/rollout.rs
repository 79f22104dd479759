//! Tells the region which release sets this node runs and what it has compiled of what was pushed, so that a merchant's
//! push and deploy can wait until every node is ready.
//!
//! Says what is new since the last word; all of it when the link has begun anew. Knows neither how a chain is prepared
//! ([`crate::chain`]) nor who waits. Nothing depends on it but that waiting: a word that is lost is said again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use souk_commerce::call::{
    Ahead, RUNNING_CHAINS_MAX, RUNNING_WHY_BYTES_MAX, Request, Response, RunningChain,
};
use souk_commerce::id::SiteId;
use souk_link::{Heads, Log};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::chain::Chains;
use crate::node::Node;
use crate::state::Replica;
use crate::uplink::{AskError, Uplink};

/// Before a word that did not arrive is said again: a region that is older than this node never takes it.
const RETRY: Duration = Duration::from_secs(5);

/// What was said of each site.
type Said = HashMap<SiteId, State>;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct State {
    /// The set in use.
    version: u64,
    /// Why not the newest.
    why: Option<String>,
    /// How far the node is with what is to come.
    ahead: Vec<Ahead>,
}

/// Runs until shutdown.
pub async fn tell(node: Arc<Node>, shutdown: CancellationToken) {
    let mut link = node.uplink.link().watch();
    let mut news = node.chains.news();
    let mut applied = node.replica.changed();
    let mut said = Said::new();
    // Which connection knows what was said.
    let mut told: Option<u64> = None;
    loop {
        let status = link.borrow_and_update().clone();
        news.mark_unchanged();
        applied.mark_unchanged();
        let released = node.replica.world().cursors.get(Log::Release);
        let mut missed = false;
        if status.connected {
            let whole = told != Some(status.connects);
            if whole {
                said.clear();
            }
            match say(&node.uplink, &node.chains, &node.replica, whole, &mut said).await {
                Ok(()) => told = Some(status.connects),
                Err(error) => {
                    tracing::debug!(%error, "the region does not learn which plugins run here");
                    told = None;
                    missed = true;
                }
            }
        }
        // Acknowledgements and prices move the same channels many times a second; neither is news here.
        let redialled =
            link.wait_for(|now| (now.connected, now.connects) != (status.connected, status.connects));
        let woken = async {
            tokio::select! {
                link = redialled => link.is_ok(),
                changed = news.changed() => changed.is_ok(),
                alive = release_moved(&mut applied, released) => alive,
                () = tokio::time::sleep(RETRY), if missed => true,
            }
        };
        if shutdown.run_until_cancelled(woken).await != Some(true) {
            return;
        }
    }
}

/// Waits for a release set to arrive. False: the replica is gone.
async fn release_moved(applied: &mut watch::Receiver<Heads>, from: u64) -> bool {
    loop {
        if applied.changed().await.is_err() {
            return false;
        }
        if applied.borrow_and_update().get(Log::Release) != from {
            return true;
        }
    }
}

async fn say(
    uplink: &Uplink,
    chains: &Chains,
    replica: &Replica,
    mut whole: bool,
    said: &mut Said,
) -> Result<(), AskError> {
    let now = state(chains, replica);
    said.retain(|site, _| now.contains_key(site));
    let new: Vec<_> = now.into_iter().filter(|(site, state)| said.get(site) != Some(state)).collect();
    let mut parts = new.chunks(RUNNING_CHAINS_MAX);
    // A region that has begun anew is told so even when there is nothing to tell.
    let mut part = parts.next().or_else(|| whole.then_some(&[]));
    while let Some(chains) = part {
        let chain = |(site, state): &(SiteId, State)| {
            let State { version, why, ahead } = state.clone();
            RunningChain { site: site.clone(), version, why, ahead: Some(ahead) }
        };
        let request = Request::Running { whole, chains: chains.iter().map(chain).collect() };
        match uplink.ask(&request).await? {
            Response::Noted => said.extend(chains.iter().cloned()),
            other => return Err(AskError::Failed(format!("{other:?}"))),
        }
        whole = false;
        part = parts.next();
    }
    Ok(())
}

/// What this node runs now, and what it has compiled of what is to come.
fn state(chains: &Chains, replica: &Replica) -> Said {
    let mut state = Said::new();
    for site in replica.world().sites() {
        let Some(set) = &site.releases else { continue };
        let mut ahead = chains.ahead(set);
        ahead.iter_mut().filter_map(|ahead| ahead.why.as_mut()).for_each(shorten);
        state.insert(site.id.clone(), State { ahead, ..State::default() });
    }
    for (site, version) in chains.running() {
        // Of a site whose set has not come from this region, what runs is another history's, and its version says nothing.
        if let Some(held) = state.get_mut(&site) {
            held.version = version;
        }
    }
    for pending in chains.pending(replica) {
        let held = state.entry(pending.site).or_default();
        held.version = pending.running.unwrap_or(0);
        held.why = pending.why;
        if let Some(why) = &mut held.why {
            shorten(why);
        }
    }
    state
}

fn shorten(why: &mut String) {
    why.truncate(why.floor_char_boundary(RUNNING_WHY_BYTES_MAX));
}
