//! Who runs what: the release sets that nodes say they use, so that a deploy can wait for them.
//!
//! In memory only: a node says everything again when its link begins anew. Times are this region's own, from the moment
//! before a set was written to the arrival of the node's word.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use souk_commerce::call::{RUNNING_WHY_BYTES_MAX, RunningChain};
use souk_commerce::id::SiteId;
use souk_commerce::journal::bounded;
use tokio::sync::watch;

/// Sites that one node may speak of: more than a region has, and at 200 bytes each 20 MB; 50 MB if none of them runs.
const SITES_PER_NODE_MAX: usize = 100_000;
/// Sites whose last change is remembered to the millisecond.
const PUBLISHED_MAX: usize = 10_000;

/// What a node runs for a site, as far as it has said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Runs {
    pub(crate) version: u64,
    /// Since the set that the region published last, if this is it.
    pub(crate) after: Option<Duration>,
    pub(crate) why: Option<String>,
}

struct Said {
    version: u64,
    /// When the node first spoke of this version.
    at: Instant,
    why: Option<String>,
}

#[derive(Default)]
struct Known {
    nodes: BTreeMap<u32, HashMap<SiteId, Said>>,
    published: HashMap<SiteId, (u64, Instant)>,
}

pub(crate) struct Rollout {
    known: Mutex<Known>,
    changed: watch::Sender<()>,
}

impl Rollout {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { known: Mutex::default(), changed: watch::Sender::new(()) })
    }

    /// A set was written; `began` is from before that, for a node's word may overtake this one.
    pub(crate) fn published(&self, site: &SiteId, version: u64, began: Instant) {
        let mut known = self.known.lock();
        if known.published.len() >= PUBLISHED_MAX {
            let oldest = known.published.iter().min_by_key(|(_, (_, at))| *at).map(|(site, _)| site.clone());
            oldest.and_then(|site| known.published.remove(&site));
        }
        known.published.insert(site.clone(), (version, began));
    }

    /// A node speaks.
    pub(crate) fn report(&self, node: u32, whole: bool, chains: Vec<RunningChain>) {
        let now = Instant::now();
        let mut known = self.known.lock();
        let sites = known.nodes.entry(node).or_default();
        let mut before = if whole { std::mem::take(sites) } else { HashMap::new() };
        for RunningChain { site, version, why } in chains {
            // Kept and shown: as long as a node may make it, and nothing that a terminal would obey.
            let why = why.map(|why| bounded(why.replace(char::is_control, " "), RUNNING_WHY_BYTES_MAX));
            if sites.len() >= SITES_PER_NODE_MAX && !sites.contains_key(&site) {
                continue;
            }
            let known = before.remove(&site).or_else(|| sites.remove(&site));
            let at = known.filter(|said| said.version == version).map_or(now, |said| said.at);
            sites.insert(site, Said { version, at, why });
        }
        drop(known);
        self.changed.send_replace(());
    }

    pub(crate) fn of(&self, node: u32, site: &SiteId) -> Runs {
        let known = self.known.lock();
        let Some(said) = known.nodes.get(&node).and_then(|sites| sites.get(site)) else {
            return Runs::default();
        };
        let published = known.published.get(site).filter(|(version, _)| *version == said.version);
        Runs {
            version: said.version,
            after: published.and_then(|(_, began)| said.at.checked_duration_since(*began)),
            why: said.why.clone(),
        }
    }

    /// Moves when a node has spoken.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(version: u64, why: Option<&str>) -> Vec<RunningChain> {
        vec![RunningChain { site: site(), version, why: why.map(str::to_owned) }]
    }

    fn site() -> SiteId {
        "shop".parse().unwrap()
    }

    #[test]
    fn the_time_of_a_node_counts_from_the_set_that_it_runs() {
        let rollout = Rollout::new();
        rollout.report(1, true, chain(3, None));
        assert_eq!(rollout.of(1, &site()), Runs { version: 3, after: None, why: None });
        // The node's word overtakes the handler's: it is counted all the same when the handler has spoken.
        let began = Instant::now() - Duration::from_secs(1);
        rollout.report(1, false, chain(4, None));
        assert_eq!(rollout.of(1, &site()).after, None);
        rollout.published(&site(), 4, began);
        let after = rollout.of(1, &site()).after.expect("it runs what was published");
        assert!(after >= Duration::from_secs(1));
        rollout.report(1, true, chain(4, Some("said again")));
        assert_eq!(rollout.of(1, &site()).after, Some(after), "the first word counts");
        rollout.report(1, true, chain(4, Some(&"no\u{1b}".repeat(1_000))));
        let why = rollout.of(1, &site()).why.expect("a reason");
        assert!(why.len() <= RUNNING_WHY_BYTES_MAX && why.starts_with("no no "), "{why:?}");
        rollout.report(1, true, Vec::new());
        assert_eq!(rollout.of(1, &site()), Runs::default());
    }
}
