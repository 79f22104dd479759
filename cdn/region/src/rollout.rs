//! Who runs what, and who has compiled what was pushed: what nodes say of themselves, so that a push and a deploy can wait
//! for them.
//!
//! In memory only: a node says everything again when its link begins anew. Times are this region's own, from the moment
//! before a set was written to the arrival of the node's word.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use souk_commerce::call::{Ahead, RUNNING_WHY_BYTES_MAX, RunningChain};
use souk_commerce::id::{Digest, SiteId};
use souk_commerce::journal::bounded;
use souk_commerce::site::COMING_MAX;
use tokio::sync::watch;

/// Sites that one node may speak of: more than a region has, and at 200 bytes each 20 MB; 50 MB if none of them runs, and
/// 200 MB if none of four components each can be compiled either.
const SITES_PER_NODE_MAX: usize = 100_000;
/// Sites whose last change, and pushes whose moment, is remembered to the millisecond.
const PUBLISHED_MAX: usize = 10_000;

/// What a node runs for a site, as far as it has said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Runs {
    pub(crate) version: u64,
    /// Since the set that the region published last, if this is it.
    pub(crate) after: Option<Duration>,
    pub(crate) why: Option<String>,
}

/// How far a node is with a component that was announced to it, as far as it has said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Readiness {
    /// It has not said anything at all.
    Unheard,
    /// It has said nothing of this component yet, or that it comes to it.
    Waiting,
    /// It is of a version that does not say.
    Silent,
    /// Since the push, if the push was before it.
    Compiled { after: Option<Duration> },
    /// It is tried again.
    Failing { why: String },
    /// It is not, or only much later.
    Refused { why: String },
}

struct Said {
    version: u64,
    /// When the node first spoke of this version.
    at: Instant,
    why: Option<String>,
    /// And when first of each as compiled. None: the node is of a version that does not say.
    ahead: Option<Vec<(Ahead, Instant)>>,
}

#[derive(Default)]
struct Known {
    nodes: BTreeMap<u32, HashMap<SiteId, Said>>,
    published: HashMap<SiteId, (u64, Instant)>,
    pushed: HashMap<(SiteId, Digest), Instant>,
}

/// Makes room for one more.
fn forget_oldest<K: Clone + Eq + std::hash::Hash, V>(map: &mut HashMap<K, V>, at: impl Fn(&V) -> Instant) {
    if map.len() >= PUBLISHED_MAX {
        let oldest = map.iter().min_by_key(|(_, value)| at(value)).map(|(key, _)| key.clone());
        oldest.and_then(|key| map.remove(&key));
    }
}

/// What a node says of a failure, as long as a node may make it, and nothing that a terminal would obey.
fn tame(why: String) -> String {
    bounded(why.replace(char::is_control, " "), RUNNING_WHY_BYTES_MAX)
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
        forget_oldest(&mut known.published, |(_, at)| *at);
        known.published.insert(site.clone(), (version, began));
    }

    /// A component was brought; `began` is from before it was announced.
    pub(crate) fn pushed(&self, site: &SiteId, component: Digest, began: Instant) {
        let mut known = self.known.lock();
        forget_oldest(&mut known.pushed, |at| *at);
        known.pushed.insert((site.clone(), component), began);
    }

    /// A node speaks.
    pub(crate) fn report(&self, node: u32, whole: bool, chains: Vec<RunningChain>) {
        let now = Instant::now();
        let mut known = self.known.lock();
        let sites = known.nodes.entry(node).or_default();
        let mut before = if whole { std::mem::take(sites) } else { HashMap::new() };
        for RunningChain { site, version, why, ahead } in chains {
            if sites.len() >= SITES_PER_NODE_MAX && !sites.contains_key(&site) {
                continue;
            }
            let known = before.remove(&site).or_else(|| sites.remove(&site));
            let at = known.as_ref().filter(|said| said.version == version).map_or(now, |said| said.at);
            let compiled = known.and_then(|said| said.ahead).unwrap_or_default();
            let first_said = |ahead: &Ahead| {
                let before = compiled.iter().find(|(other, _)| {
                    other.component == ahead.component && other.compiled == ahead.compiled
                });
                before.map_or(now, |(_, at)| *at)
            };
            let ahead = ahead.map(|ahead| {
                let kept = ahead.into_iter().take(COMING_MAX);
                kept.map(|ahead| {
                    let at = first_said(&ahead);
                    (Ahead { why: ahead.why.map(tame), ..ahead }, at)
                })
                .collect()
            });
            sites.insert(site, Said { version, at, why: why.map(tame), ahead });
        }
        drop(known);
        self.changed.send_replace(());
    }

    /// What a node has said of these sites, to be told to others.
    pub(crate) fn said(&self, node: u32, sites: &[SiteId]) -> Vec<RunningChain> {
        let known = self.known.lock();
        let Some(of_node) = known.nodes.get(&node) else { return Vec::new() };
        let chain = |(site, said): (&SiteId, &Said)| RunningChain {
            site: site.clone(),
            version: said.version,
            why: said.why.clone(),
            ahead: said.ahead.as_ref().map(|ahead| ahead.iter().map(|(ahead, _)| ahead.clone()).collect()),
        };
        sites.iter().filter_map(|site| of_node.get_key_value(site)).map(chain).collect()
    }

    /// Has whoever waits look again.
    pub(crate) fn stir(&self) {
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

    /// How far a node is with a component that the site's set announces.
    pub(crate) fn readiness(&self, node: u32, site: &SiteId, component: Digest) -> Readiness {
        let known = self.known.lock();
        let Some(sites) = known.nodes.get(&node) else { return Readiness::Unheard };
        let Some(said) = sites.get(site) else { return Readiness::Waiting };
        let Some(ahead) = &said.ahead else { return Readiness::Silent };
        let Some((ahead, at)) = ahead.iter().find(|(ahead, _)| ahead.component == component) else {
            return Readiness::Waiting;
        };
        match (&ahead.why, ahead.compiled, ahead.refused) {
            (_, true, _) => {
                let pushed = known.pushed.get(&(site.clone(), component));
                Readiness::Compiled { after: pushed.and_then(|began| at.checked_duration_since(*began)) }
            }
            (why, false, true) => Readiness::Refused { why: why.clone().unwrap_or_default() },
            (Some(why), false, false) => Readiness::Failing { why: why.clone() },
            (None, false, false) => Readiness::Waiting,
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
        vec![RunningChain { site: site(), version, why: why.map(str::to_owned), ahead: None }]
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

    #[test]
    fn a_node_is_ready_when_it_says_so_and_one_that_cannot_say_is_known_for_it() {
        let rollout = Rollout::new();
        let component = Digest::of(b"pushed");
        let is = || rollout.readiness(1, &site(), component);
        let say = |compiled: bool, refused: bool, why: Option<&str>| {
            let ahead = Ahead { component, compiled, refused, why: why.map(str::to_owned) };
            let chain = RunningChain { site: site(), version: 3, why: None, ahead: Some(vec![ahead]) };
            rollout.report(1, false, vec![chain]);
        };
        assert_eq!(is(), Readiness::Unheard);
        rollout.report(1, true, Vec::new());
        assert_eq!(is(), Readiness::Waiting, "it does not know the set yet");
        rollout.report(1, false, chain(3, None));
        assert_eq!(is(), Readiness::Silent);
        say(false, false, None);
        assert_eq!(is(), Readiness::Waiting);
        say(false, false, Some("no\u{1b}room"));
        assert_eq!(is(), Readiness::Failing { why: "no room".to_owned() });
        say(false, true, Some("a bomb"));
        assert_eq!(is(), Readiness::Refused { why: "a bomb".to_owned() });
        say(true, false, None);
        assert_eq!(is(), Readiness::Compiled { after: None });
        rollout.pushed(&site(), component, Instant::now() - Duration::from_secs(60));
        let first = is();
        assert!(matches!(first, Readiness::Compiled { after: Some(after) } if after.as_secs() >= 59));
        say(true, false, None);
        assert_eq!(is(), first, "the first word counts");
        rollout.pushed(&site(), component, Instant::now() + Duration::from_secs(60));
        assert_eq!(is(), Readiness::Compiled { after: None }, "it was there before");
        assert_eq!(rollout.readiness(1, &site(), Digest::of(b"another")), Readiness::Waiting);
    }

    #[test]
    fn a_node_cannot_speak_of_more_than_a_set_announces() {
        let rollout = Rollout::new();
        let ahead = |i: u8| Ahead { component: Digest([i; 32]), compiled: true, refused: false, why: None };
        let many = (0..100).map(ahead).collect();
        rollout.report(
            1,
            true,
            vec![RunningChain { site: site(), version: 1, why: None, ahead: Some(many) }],
        );
        let known = rollout.known.lock();
        assert_eq!(known.nodes[&1][&site()].ahead.as_ref().map(Vec::len), Some(COMING_MAX));
    }
}
