//! The node of a world: the real outbox and replica on disks that forget, behind the real link.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use parking_lot::Mutex;
use souk_commerce::id::NodeId;
use souk_edge::state::store::LinkStore;
use souk_edge::state::{Hand, Replica, State};
use souk_link::{
    BoxFuture, Cursor, EpochNo, Fold, Log, Mark, NodeLink, NodeLinkConfig, NodeStore, OutboxPosition,
    RegionAddress, Seq, Staging, StoreError, Tail, start_node_on,
};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::dice::{Climate, Dice};
use crate::identity::{Papers, REGION, SERVER_NAME};
use crate::net::Net;
use crate::platter::Platter;
use crate::process::{Life, WorldGround};
use crate::region::{Region, SITE, sku, title};
use crate::shop::Shop;
use crate::story::{must, note, tell, violate};

pub(crate) const NODE: u32 = 7;
const OUTBOX_BYTES_MAX: u64 = 1 << 30;
/// What the region has acknowledged is forgotten at once: what a restored region lacks is lost then, and the world counts it so.
const NOTHING_KEPT: (u64, Duration) = (0, Duration::ZERO);
/// A committer without work looks about after this.
const TURN_EVERY: Duration = Duration::from_millis(250);
/// Longest sync of an ordinary disk.
const SYNC_MS_MAX: u64 = 12;

/// One life of the node's process.
pub(crate) struct Node {
    pub(crate) life: Arc<Life>,
    pub(crate) state: Arc<State>,
    pub(crate) replica: Arc<Replica>,
    pub(crate) link: NodeLink,
}

/// What a node needs of its world.
pub(crate) struct Place<'a> {
    pub(crate) net: &'a Arc<Net>,
    pub(crate) region: &'a Arc<Region>,
    pub(crate) region_addr: SocketAddr,
    pub(crate) shop: &'a Arc<Shop>,
    pub(crate) outbox: &'a Platter,
    pub(crate) logs: &'a Platter,
    pub(crate) ahead_ms: &'a Arc<AtomicU64>,
    /// Told when the power went in the middle of a commit.
    pub(crate) fell: &'a Arc<Notify>,
    pub(crate) climate: &'a Climate,
    pub(crate) papers: &'a Papers,
}

/// The files of a node, opened.
pub(crate) struct Opened {
    pub(crate) state: Arc<State>,
    pub(crate) replica: Arc<Replica>,
    hand: Hand,
}

/// Opens what the disks hold, as a process does before it serves. None: that is a violation, which is told.
pub(crate) fn open(place: &Place<'_>) -> Option<Opened> {
    let outbox = Arc::new(place.outbox.clone());
    let opened =
        State::open_by_hand(outbox, Path::new("state.redb"), NodeId(NODE), OUTBOX_BYTES_MAX, NOTHING_KEPT);
    let (state, hand) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            violate(format!("the node cannot start: {error}"));
            return None;
        }
    };
    match Replica::open_on(Arc::new(place.logs.clone()), Path::new("replica.redb")) {
        Ok(replica) => Some(Opened { state: Arc::new(state), replica: Arc::new(replica), hand }),
        Err(error) => {
            violate(format!("the node cannot start: {error}"));
            None
        }
    }
}

impl Node {
    /// Starts the process over what was opened.
    pub(crate) fn start(place: &Place<'_>, opened: Opened, mut dice: Dice) -> Self {
        let Opened { state, replica, hand } = opened;
        let life = Life::begin();
        let ground_dice = Dice::new(dice.roll());
        let host = SocketAddr::from(([10, 0, 0, 7], 0));
        let ground = WorldGround::new(place.net, &life, host, ground_dice, place.ahead_ms);
        let config = NodeLinkConfig {
            regions: vec![RegionAddress {
                addr: place.region_addr.to_string(),
                server_name: SERVER_NAME.to_owned(),
            }],
            tls: place.papers.node.clone(),
            node: NODE,
            region: REGION.to_owned(),
            pop: "sim".to_owned(),
            software: "sim".to_owned(),
            schemas: vec![1],
            congestion: place.climate.congestion,
        };
        let store = Arc::new(Store {
            inner: LinkStore::without_upstreams(state.clone(), replica.clone()),
            life: life.clone(),
            logs: place.logs.clone(),
            fell: place.fell.clone(),
            region: place.region.clone(),
            dice: Mutex::new(Dice::new(dice.roll())),
        });
        let started = start_node_on(ground, config, store, CancellationToken::new());
        let (link, task) = started.expect("certificates of this world are good");
        life.adopt(task.abort_handle());
        life.spawn(commit(
            hand,
            Committing {
                state: state.clone(),
                shop: place.shop.clone(),
                region: place.region.clone(),
                disk: place.outbox.clone(),
                life: life.clone(),
                fell: place.fell.clone(),
                dice,
            },
        ));
        Self { life, state, replica, link }
    }

    /// Whether the node shows what the region's logs say.
    pub(crate) fn shows(&self, region: &Region) -> Result<(), String> {
        let disk = region.disk.lock();
        let world = self.replica.world();
        if world.cursors != disk.heads() {
            return Err(format!("cursors {:?}, heads {:?}", world.cursors, disk.heads()));
        }
        let (catalog, price, stock) =
            (disk.table(Log::Catalog), disk.table(Log::Price), disk.table(Log::Stock));
        let Some(site) = world.site(&SITE.parse().expect("a site")) else {
            let empty = catalog.is_empty() && price.is_empty() && stock.is_empty();
            return if empty { Ok(()) } else { Err("the site is not there".to_owned()) };
        };
        let here: Vec<_> =
            site.products.iter().map(|(sku, product)| (sku.clone(), product.title.clone())).collect();
        let mut there: Vec<_> =
            catalog.iter().map(|(key, (version, _))| (sku(*key), title(*version))).collect();
        there.sort();
        if here != there {
            return Err(format!("products {here:?}, and at the region {there:?}"));
        }
        for key in catalog.keys() {
            let here = site
                .listed(&sku(*key))
                .map(|listed| (listed.price.price.0 as u64, listed.price_version, listed.stock));
            let there = price.get(key).map(|(version, _)| {
                let hint = stock
                    .get(key)
                    .map(|(version, _)| souk_commerce::product::StockHint::Low(*version as u32));
                (*version, *version, hint.unwrap_or_default())
            });
            if here != there {
                return Err(format!("{}: {here:?}, and at the region {there:?}", sku(*key)));
            }
        }
        Ok(())
    }
}

struct Committing {
    state: Arc<State>,
    shop: Arc<Shop>,
    region: Arc<Region>,
    disk: Platter,
    life: Arc<Life>,
    fell: Arc<Notify>,
    dice: Dice,
}

/// The committer's thread, as a task: it wakes when it is wanted, and its syncs take virtual time.
async fn commit(mut hand: Hand, mut with: Committing) {
    let wanted = hand.wanted();
    loop {
        let _ = tokio::time::timeout(TURN_EVERY, wanted.notified()).await;
        tokio::time::sleep(Duration::from_millis(1 + with.dice.below(SYNC_MS_MAX))).await;
        hand.turn(Instant::now().into_std(), with.shop.wall_ms());
        if with.disk.is_off() {
            // Nobody hears anything of this process from here on.
            with.life.end();
            with.fell.notify_one();
            return;
        }
        with.shop.observe(&with.state, &with.region.disk.lock());
    }
}

/// The node's store, as `souk_edge` has it, with the blocking work done in place: a world has one thread.
struct Store {
    inner: LinkStore,
    life: Arc<Life>,
    logs: Platter,
    fell: Arc<Notify>,
    region: Arc<Region>,
    dice: Mutex<Dice>,
}

impl NodeStore for Store {
    fn outbox_position(&self) -> OutboxPosition {
        self.inner.outbox_position()
    }

    fn outbox_changed(&self) -> watch::Receiver<Seq> {
        self.inner.outbox_changed()
    }

    fn read(&self, from: Seq, ops_max: usize, bytes_max: usize) -> Result<Vec<(Seq, Vec<u8>)>, StoreError> {
        self.inner.read(from, ops_max, bytes_max)
    }

    fn reads_in_place(&self) -> bool {
        true
    }

    fn trim(&self, epoch: EpochNo, to: Seq, fold: Option<Fold>) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.trim(epoch, to, fold)
    }

    fn go_back(&self, epoch: EpochNo, to: Mark) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.go_back(epoch, to)
    }

    fn begin_epoch(&self, epoch: EpochNo) -> BoxFuture<'_, Result<OutboxPosition, StoreError>> {
        self.inner.begin_epoch(epoch)
    }

    fn cursors(&self) -> Vec<Cursor> {
        self.inner.cursors()
    }

    fn stagings(&self) -> Vec<Staging> {
        self.inner.stagings()
    }

    fn apply(&self, tail: Tail, region_epoch: u32) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let takes = self.dice.lock().ms(SYNC_MS_MAX);
            tokio::time::sleep(takes).await;
            let (log, to) = (tail.log, tail.to);
            let applied = self.inner.apply_in_place(&tail, region_epoch);
            if self.logs.is_off() {
                self.life.end();
                self.fell.notify_one();
                return std::future::pending().await;
            }
            match &applied {
                Ok(()) => {
                    note("tail_applied");
                    if matches!(tail.part, souk_link::Part::Snapshot { last: true, .. }) {
                        note("snapshot_applied");
                    }
                    let noted = self.region.noted.lock().get(&log).copied();
                    let history = self.region.disk.lock().history;
                    must(history != region_epoch || noted.is_none_or(|noted| noted <= to), || {
                        format!("{log} was said to be applied up to {noted:?}, and is at {to}")
                    });
                    tell("node", || format!("has {log} up to {to}, of history {region_epoch}"));
                }
                Err(error) => {
                    note("tail_refused");
                    tell("node", || format!("cannot take in {log} up to {to}: {error}"));
                }
            }
            applied
        })
    }
}
