//! What a node makes of the sets that it is sent, with the real engines and a region that is away.

use std::time::Duration;

use souk_commerce::id::NodeId;
use souk_commerce::seal::SealKey;
use souk_commerce::site::{Grants, Hook, Kind, OnFault, Release};
use souk_link::{Log, Part, Record, Tail};
use souk_sandbox::http::{HttpEngine, HttpLimits};
use souk_sandbox::{HookEngine, HookLimits, Loader, Metrics};

use super::*;
use crate::blobs::Blobs;
use crate::blobs::tests::nowhere;
use crate::journal::{Journal, JournalMetrics};

/// Bytes that are a component and no plugin.
const NO_PLUGIN: &[u8] = b"\0asm\x0d\0\x01\0";

struct World {
    dir: tempfile::TempDir,
    chains: Arc<Chains>,
    replica: Arc<Replica>,
    key: SealKey,
}

fn site() -> SiteId {
    "shop".parse().expect("a site")
}

fn release(number: u32, component: &[u8]) -> Release {
    Release {
        plugin: "tea".parse().expect("a plugin"),
        number,
        component: Digest::of(component),
        hooks: vec![Hook::Pricing],
        settings: serde_json::Value::Null,
        on_fault: OnFault::Open,
        kind: Kind::Hooks,
        grants: Grants::default(),
        route: None,
        reuse: 0,
        record_bp: 0,
        seal: None,
    }
}

impl World {
    async fn new() -> Self {
        Self::over(tempfile::tempdir().expect("a directory"))
    }

    /// A node that starts on what is there.
    fn over(dir: tempfile::TempDir) -> Self {
        let away = tempfile::tempdir_in(dir.path()).expect("a directory").keep();
        let blobs = Blobs::open(dir.path(), nowhere(&away), 1 << 20).expect("opens");
        let key = SealKey::generate(&[7; 32]);
        let workshop = Workshop {
            engine: HookEngine::new(HookLimits::default()).expect("an engine"),
            http: HttpEngine::new(HttpLimits::default()).expect("an engine"),
            loader: Loader::in_process(),
            blobs,
            trusted: key.trusted(),
            floors: Floors::open(dir.path()).expect("opens"),
            metrics: Metrics::default(),
            share: None,
            studio: None,
            journal: Journal::new(NodeId(1), JournalMetrics::default()),
            plugins: Plugins::default(),
        };
        let room = Room { plugins_max: 10, code_bytes_max: 1 << 30 };
        let chains = Arc::new(Chains::new(workshop, room, Arc::new(Telemetry::new())));
        let replica = Arc::new(Replica::open(dir.path(), 0).expect("opens"));
        Self { dir, chains, replica, key }
    }

    /// The node ends and starts again.
    fn again(self) -> Self {
        let Self { dir, chains, replica, key: _ } = self;
        drop((chains, replica));
        Self::over(dir)
    }

    fn bring(&self, component: &[u8]) {
        let path = self.chains.workshop.blobs.path(&Digest::of(component));
        std::fs::write(path, component).expect("written");
    }

    /// A release that the region vouches for.
    fn sealed(&self, mut release: Release) -> Release {
        self.key.seal(&site(), &mut release);
        release
    }

    /// The next entry of the log of releases.
    fn arrives(&self, set: &ReleaseSet) {
        let from = self.replica.cursors().get(Log::Release);
        let records = vec![Record { version: from + 1, body: set.to_bytes() }];
        let tail = Tail { log: Log::Release, from, to: from + 1, part: Part::Changes, records, next: None };
        self.replica.apply(&tail).expect("applied");
    }

    /// What the region would send next.
    fn set(&self, number: u64, releases: Vec<Release>, coming: Vec<Release>) -> ReleaseSet {
        let version = self.replica.cursors().get(Log::Release) + 1;
        let mut set = ReleaseSet { version, number, releases, coming, ..ReleaseSet::empty(site()) };
        self.key.seal_set(&mut set);
        set
    }

    /// The same entry with another version, as a liar on the link would have to write it.
    fn replayed(&self, set: &ReleaseSet) -> ReleaseSet {
        ReleaseSet { version: self.replica.cursors().get(Log::Release) + 1, ..set.clone() }
    }

    fn keep(&self) -> (CancellationToken, tokio::task::JoinHandle<()>) {
        let shutdown = CancellationToken::new();
        let kept = Arc::clone(&self.chains).keep(Arc::clone(&self.replica), shutdown.clone());
        (shutdown, tokio::spawn(kept))
    }

    /// The number of the set in use.
    fn in_use(&self) -> Option<u64> {
        self.chains.in_use.load().get(&site()).map(|in_use| in_use.set.number)
    }

    async fn until_refused(&self, version: u64) -> String {
        let refused = |chains: &Chains| chains.pending(&self.replica).iter().any(|p| p.why.is_some());
        self.until("the set is refused", refused).await;
        let pending = self.chains.pending(&self.replica).pop().expect("refused");
        assert_eq!(pending.wanted, version);
        pending.why.expect("a reason")
    }

    async fn until(&self, what: &str, seen: impl Fn(&Chains) -> bool) {
        let mut news = self.chains.news();
        let waited = tokio::time::timeout(Duration::from_secs(60), async {
            while !seen(&self.chains) {
                news.changed().await.expect("the chains are there");
            }
        });
        waited.await.unwrap_or_else(|_| panic!("{what}: {:?}", self.chains.pending(&self.replica)));
    }
}

#[tokio::test]
async fn what_cannot_be_compiled_ahead_is_told_with_its_reason() {
    let world = World::new().await;
    let (shutdown, kept) = world.keep();
    world.bring(NO_PLUGIN);
    let bad = world.sealed(release(0, NO_PLUGIN));
    let unsealed = release(0, b"unsealed");
    let absent = world.sealed(release(0, b"absent"));
    let set = world.set(1, Vec::new(), vec![bad, unsealed, absent]);
    assert!(world.chains.ahead(&set).iter().all(|ahead| !ahead.compiled && ahead.why.is_none()));
    world.arrives(&set);
    let tried = |chains: &Chains| chains.ahead(&set).iter().all(|ahead| ahead.why.is_some());
    world.until("all are tried", tried).await;
    let told = world.chains.ahead(&set);
    let why = |i: usize| told[i].why.clone().unwrap_or_default();
    assert!(told[0].refused && why(0).contains("refused"), "{told:?}");
    assert!(told[1].refused && why(1).contains("has no seal"), "{told:?}");
    assert!(!told[2].refused, "it may come yet: {told:?}");
    assert!(told.iter().all(|ahead| !ahead.compiled));
    assert!(world.chains.telemetry.ahead_failures.get() >= 3);

    // It has come meanwhile, and it is tried again by itself.
    world.bring(b"absent");
    let refused = |chains: &Chains| chains.ahead(&set)[2].refused;
    world.until("the one that was absent is tried again", refused).await;
    // What is not announced any more is forgotten.
    world.arrives(&world.set(2, Vec::new(), Vec::new()));
    tokio::time::timeout(Duration::from_secs(60), async {
        while !world.chains.ahead.is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("forgotten");
    shutdown.cancel();
    kept.await.expect("it ends");
}

#[tokio::test]
async fn an_old_set_is_not_taken_back_however_truly_it_is_sealed() {
    let world = World::new().await;
    let nothing = |number: u64| world.set(number, Vec::new(), Vec::new());
    let (shutdown, kept) = world.keep();
    let old = nothing(5);
    world.arrives(&old);
    world.until("the first set is in use", |_| world.in_use() == Some(5)).await;
    // A roll-back is a set of its own, with a number of its own.
    world.arrives(&nothing(8));
    world.until("the second set is in use", |_| world.in_use() == Some(8)).await;

    let older = nothing(7);
    world.arrives(&older);
    let why = world.until_refused(3).await;
    assert!(why.contains("release set 7 is older than 8"), "{why}");
    // Its seal covers the version too, so that it cannot pass for another entry of the log.
    world.arrives(&world.replayed(&old));
    assert!(world.until_refused(4).await.contains("does not fit"));
    let mut bare = nothing(9);
    bare.seal = None;
    world.arrives(&bare);
    assert!(world.until_refused(5).await.contains("no seal"));
    world.arrives(&nothing(0));
    assert!(world.until_refused(6).await.contains("no number"));
    let pushed = world.sealed(release(0, NO_PLUGIN));
    world.arrives(&world.set(9, vec![pushed], Vec::new()));
    assert!(world.until_refused(7).await.contains("is no release"));
    assert_eq!(world.in_use(), Some(8), "through all of it");
    assert_eq!(world.chains.telemetry.chain_swaps.get(), 2);
    world.arrives(&nothing(9));
    world.until("the newest set is in use", |_| world.in_use() == Some(9)).await;
    shutdown.cancel();
    kept.await.expect("it ends");
}

#[tokio::test]
async fn a_node_that_starts_again_remembers_how_far_it_was_and_is_not_ready_with_less() {
    let world = World::new().await;
    world.arrives(&world.set(8, Vec::new(), Vec::new()));
    assert_eq!(world.chains.adopt(&world.replica), 1);
    let again = world.again();
    let shop = |world: &World| world.replica.world().site(&site()).expect("the site").clone();
    assert!(
        again.chains.of(&shop(&again)).await.is_some(),
        "what was accepted says that there are no plugins"
    );
    let mut bare = Site::clone(&shop(&again));
    bare.releases = None;
    assert!(again.chains.of(&bare).await.is_none(), "a set that did not come says nothing");
    assert_eq!(again.chains.adopt(&again.replica), 1, "what it had, it has");
    assert!(again.chains.of(&shop(&again)).await.is_some());

    again.arrives(&again.set(7, Vec::new(), Vec::new()));
    let last = again.again();
    assert_eq!(last.chains.adopt(&last.replica), 0);
    assert!(last.chains.of(&shop(&last)).await.is_none(), "no plugins is not what it had last");
    assert_eq!(last.chains.pending(&last.replica).len(), 1, "and it is not ready");
}

#[tokio::test]
async fn a_shop_of_a_region_set_up_afresh_is_served_as_soon_as_its_empty_set_is_here() {
    let world = World::new().await;
    world.chains.workshop.floors.accept(&site(), 8).expect("accepted");
    let set = world.set(9, Vec::new(), Vec::new());
    world.arrives(&set);
    let shop = || world.replica.world().site(&site()).expect("the site").clone();
    assert!(world.chains.of(&shop()).await.is_some(), "before it is in use");
    let (shutdown, kept) = world.keep();
    world.until("it is in use", |_| world.in_use() == Some(9)).await;
    assert!(world.chains.of(&shop()).await.is_some());
    shutdown.cancel();
    kept.await.expect("it ends");
}

#[tokio::test]
async fn a_set_of_a_lost_history_does_not_count_as_run_nor_keep_its_successor_back() {
    let world = World::new().await;
    let (shutdown, kept) = world.keep();
    // The lost region was far ahead.
    let mut lost = ReleaseSet { version: 900, number: 5, ..ReleaseSet::empty(site()) };
    world.key.seal_set(&mut lost);
    world.arrives(&lost);
    world.until("the lost region's set is in use", |_| world.in_use() == Some(5)).await;
    let pushed = world.sealed(release(0, b"absent"));
    world.arrives(&world.set(4, Vec::new(), vec![pushed.clone()]));
    let why = world.until_refused(2).await;
    let pending = world.chains.pending(&world.replica).pop().expect("pending");
    assert_eq!((pending.wanted, pending.running), (2, None), "version 900 is none of this history");
    let newest = world.replica.world().site(&site()).expect("the site").releases.clone().expect("a set");
    let [ahead] = &world.chains.ahead(&newest)[..] else { panic!("one is announced") };
    assert!(ahead.refused && !ahead.compiled, "{ahead:?}");
    assert_eq!(ahead.why.as_deref(), Some(why.as_str()), "whoever pushed learns why nobody compiles it");
    shutdown.cancel();
    kept.await.expect("it ends");
}

#[test]
fn a_failed_set_is_tried_again_at_its_time_and_a_newer_one_at_once() {
    let plugin: PluginName = "p".parse().expect("a name");
    let error = PrepareError::NotNow { plugin: plugin.clone(), why: "no".to_owned() };
    let start = Instant::now();
    let set = |version| Edition { version, number: 1 };
    let first = Failure::after(None, set(7), &error, start);
    assert_eq!(first.wait(set(7), start), Some(start + RETRY_FIRST));
    assert_eq!(first.wait(set(8), start), None, "a newer set");
    assert_eq!(first.wait(Edition { version: 7, number: 2 }, start), None, "of another history");
    assert_eq!(first.wait(set(7), start + RETRY_FIRST), None, "its time has come");
    let again = |before: &Failure, version| Failure::after(Some(before), set(version), &error, start);
    assert_eq!(again(&first, 7).pause, RETRY_FIRST * 2);
    assert_eq!(again(&first, 8).pause, RETRY_FIRST, "a newer set begins anew");
    let many = (0..20).fold(first, |before, _| again(&before, 7));
    assert_eq!(many.pause, RETRY_MAX);
    let refused = PrepareError::Refused { plugin, why: "bomb".to_owned() };
    assert_eq!(Failure::after(None, set(7), &refused, start).pause, RETRY_REFUSED);
}

#[test]
fn a_route_takes_its_path_and_what_is_under_it() {
    for (path, route, taken) in [
        ("/feed", "/feed", true),
        ("/feed/", "/feed", true),
        ("/feed/x/y", "/feed", true),
        ("/feed", "/feed/", true),
        ("/feeds", "/feed", false),
        ("/", "/feed", false),
        ("/anything", "/", true),
    ] {
        assert_eq!(is_under(path, route), taken, "{path} under {route}");
    }
}
