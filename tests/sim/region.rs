//! The region of a world: a store that keeps the contract of `souk_link::RegionStore` in memory, behind the real link.
//!
//! Its transactions take time, fail, and end after whoever asked has gone; what is committed survives the process. It merges what
//! nodes send as a region does, with the real operations and carts. The store of a real region (SQLite, PostgreSQL) has threads
//! and sockets of its own and is tried where those can be killed: `tests/chaos`, and the conformance suite of its stores.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use souk_commerce::cart::Cart;
use souk_commerce::feed::{PriceChange, ProductChange, StockChange};
use souk_commerce::id::{CartId, SiteId, Sku};
use souk_commerce::money::Minor;
use souk_commerce::op::Operation;
use souk_commerce::product::{PriceRow, Product, StockHint};
use souk_link::{
    Batch, BoxFuture, Call, EpochNo, Fold, Heads, Hello, Log, Mark, Node, NodeState, Part, Record, Refusal,
    RegionStore, Reply, SnapshotPage, StoreError, Tail, TailRead,
};
use souk_replication::limits::APPLY_OPS_MAX;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::dice::{Climate, Dice};
use crate::process::Life;
use crate::story::{must, note, tell, violate};
use crate::{Planted, is_planted};

/// The only site that the region knows.
pub(crate) const SITE: &str = "shop";
/// A site that nodes know and the region does not: its operations can never be applied.
pub(crate) const UNKNOWN_SITE: &str = "ghost";
/// Logs that a world publishes in.
pub(crate) const LOGS: [Log; 4] = [Log::Purge, Log::Price, Log::Stock, Log::Catalog];
/// A change that lasts longer is as good as one of a store that hangs.
const SLOW_MS_MAX: u64 = 2_500;

/// An operation, by its bytes.
pub(crate) type OpId = u64;

pub(crate) fn op_id(bytes: &[u8]) -> OpId {
    use std::hash::{DefaultHasher, Hasher as _};
    // With fixed keys: the same in every process.
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

pub(crate) fn sku(key: u8) -> Sku {
    format!("K{key}").parse().expect("a sku")
}

/// A row of a log: what has its key, and whether that is gone with it; long in a log that is to take its time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) key: u8,
    pub(crate) gone: bool,
    pub(crate) filler: u16,
}

fn body(log: Log, entry: Entry, version: u64) -> Vec<u8> {
    let site: SiteId = SITE.parse().expect("a site");
    let sku = sku(entry.key);
    match log {
        Log::Price => {
            let price = (!entry.gone).then(|| PriceRow::of(Minor(version as i64)));
            PriceChange { site, sku, price }.to_bytes()
        }
        Log::Stock => StockChange { site, sku, hint: StockHint::Low(version as u32) }.to_bytes(),
        Log::Catalog => {
            let product = (!entry.gone).then(|| Product {
                sku: sku.clone(),
                title: title(version),
                description: "x".repeat(entry.filler.into()),
                tags: Vec::new(),
                attributes: Vec::new(),
                image: None,
            });
            ProductChange { site, sku, product }.to_bytes()
        }
        // What cannot be read purges everything.
        _ => vec![0xff, entry.key],
    }
}

pub(crate) fn title(version: u64) -> String {
    format!("of version {version}")
}

/// What is committed: it survives the process, and is what a backup holds.
#[derive(Debug, Clone)]
pub(crate) struct RegionDisk {
    pub(crate) node: Option<NodeState>,
    pub(crate) history: u32,
    /// In the order of their first application, dead ones too.
    pub(crate) applied: Vec<OpId>,
    pub(crate) known: BTreeSet<OpId>,
    pub(crate) dead: BTreeSet<OpId>,
    numbers: BTreeSet<(EpochNo, u64)>,
    pub(crate) carts: BTreeMap<CartId, Cart>,
    pub(crate) logs: BTreeMap<Log, Vec<Entry>>,
    kept_from: BTreeMap<Log, u64>,
}

impl RegionDisk {
    pub(crate) fn heads(&self) -> Heads {
        let mut heads = Heads::default();
        self.logs.iter().for_each(|(log, entries)| heads.set(*log, entries.len() as u64));
        heads
    }

    /// Key -> version that changed it last, of what is there.
    pub(crate) fn table(&self, log: Log) -> BTreeMap<u8, (u64, Entry)> {
        let mut table = BTreeMap::new();
        for (version, entry) in (1..).zip(self.logs.get(&log).into_iter().flatten()) {
            if log == Log::Purge || entry.gone {
                table.remove(&entry.key);
            } else {
                table.insert(entry.key, (version, *entry));
            }
        }
        table
    }

    /// One transaction: operations above the mark, the mark, and what it folds to.
    fn commit(&mut self, batch: &Batch, count: usize) -> Mark {
        let Some(node) = self.node.as_mut() else { unreachable!("it was looked at before") };
        for (seq, bytes) in (batch.first_seq..).zip(&batch.ops[..count]) {
            if seq <= node.hwm {
                continue;
            }
            let id = op_id(bytes);
            must(self.numbers.insert((node.epoch, seq)), || {
                format!("operation {seq} of epoch {} is applied twice", node.epoch)
            });
            node.hwm = seq;
            node.fold = Some(node.fold.unwrap_or(Fold::EMPTY).with(bytes));
            // Known already only when it comes again under a new epoch.
            if !self.known.insert(id) {
                note("came_again");
                continue;
            }
            self.applied.push(id);
            match Operation::from_bytes(bytes) {
                Ok(Operation::Cart { site, cart, delta, .. }) if site.as_str() == SITE => {
                    self.carts.entry(cart).or_default().apply(&delta);
                }
                Ok(_) => {
                    note("dead_letter");
                    self.dead.insert(id);
                }
                Err(error) => violate(format!("an operation does not decode: {error}")),
            }
        }
        Mark { hwm: node.hwm, fold: node.fold }
    }
}

/// The region's data, over all lives of its process.
#[derive(Debug)]
pub(crate) struct Region {
    pub(crate) disk: Mutex<RegionDisk>,
    heads: watch::Sender<Heads>,
    dice: Mutex<Dice>,
    climate: Mutex<Climate>,
    pub(crate) full_until: Mutex<Instant>,
    /// Whether a session of the node is in the store.
    inside: Mutex<Option<&'static str>>,
    /// Newest version of each log that the node has said is applied, of this history.
    pub(crate) noted: Mutex<BTreeMap<Log, u64>>,
    /// Told of every commit.
    pub(crate) committed: watch::Sender<u64>,
}

impl Region {
    pub(crate) fn new(climate: Climate, dice: Dice) -> Arc<Self> {
        let disk = RegionDisk {
            node: None,
            history: 1,
            applied: Vec::new(),
            known: BTreeSet::new(),
            dead: BTreeSet::new(),
            numbers: BTreeSet::new(),
            carts: BTreeMap::new(),
            logs: BTreeMap::new(),
            kept_from: BTreeMap::new(),
        };
        Arc::new(Self {
            disk: Mutex::new(disk),
            heads: watch::Sender::new(Heads::default()),
            dice: Mutex::new(dice),
            climate: Mutex::new(climate),
            full_until: Mutex::new(Instant::now()),
            inside: Mutex::default(),
            noted: Mutex::default(),
            committed: watch::Sender::new(0),
        })
    }

    pub(crate) fn heal(&self, climate: Climate) {
        *self.climate.lock() = climate;
        *self.full_until.lock() = Instant::now();
    }

    pub(crate) fn is_full(&self) -> bool {
        *self.full_until.lock() > Instant::now()
    }

    /// A process that starts knows what the disk knows, and nobody is in its store.
    pub(crate) fn restart(&self) {
        *self.inside.lock() = None;
        self.heads.send_replace(self.disk.lock().heads());
    }

    /// Another disk in its place, from a backup; its history gets a number that none had.
    pub(crate) fn restore(&self, backup: &RegionDisk, history: u32) {
        let mut disk = self.disk.lock();
        *disk = backup.clone();
        disk.history = history;
        self.noted.lock().clear();
    }

    pub(crate) fn publish(&self, log: Log, entry: Entry) -> u64 {
        let mut disk = self.disk.lock();
        let entries = disk.logs.entry(log).or_default();
        entries.push(entry);
        let version = entries.len() as u64;
        let heads = disk.heads();
        drop(disk);
        self.heads.send_replace(heads);
        version
    }

    /// Changes up to here are not kept: whoever is further behind needs a snapshot.
    pub(crate) fn cut_tail(&self, log: Log, kept: u64) {
        let mut disk = self.disk.lock();
        let head = disk.heads().get(log);
        disk.kept_from.insert(log, head.saturating_sub(kept));
    }

    fn takes(&self) -> Duration {
        let slow = self.climate.lock().slow_store;
        let mut dice = self.dice.lock();
        if dice.chance(slow) { dice.ms(SLOW_MS_MAX) } else { Duration::from_millis(1 + dice.below(8)) }
    }

    fn fails(&self) -> bool {
        let failure = self.climate.lock().store_failure;
        self.is_full() || self.dice.lock().chance(failure)
    }
}

/// Whoever holds it is in the store for the node.
struct Inside(Arc<Region>);

impl Inside {
    fn enter(region: &Arc<Region>, what: &'static str) -> Self {
        let before = region.inside.lock().replace(what);
        must(before.is_none(), || {
            format!("two sessions of a node are in the store at once: {what} during {}", before.unwrap_or(""))
        });
        Self(region.clone())
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        *self.0.inside.lock() = None;
    }
}

/// The store as one life of the region's process has it.
#[derive(Debug)]
pub(crate) struct LivingRegion {
    pub(crate) region: Arc<Region>,
    pub(crate) life: Arc<Life>,
}

impl LivingRegion {
    /// A transaction: it ends, one way or the other, although whoever asked may have gone; unless the process ends first.
    async fn transaction<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&Arc<Region>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        // One that answers before its time is not to be found by this already.
        let inside = (!is_planted(Planted::RegionTellsEarly)).then(|| Inside::enter(&self.region, what));
        let (done, answer) = oneshot::channel();
        let (before, after) = (self.region.takes(), self.region.takes());
        let region = self.region.clone();
        self.life.spawn(async move {
            tokio::time::sleep(before / 2).await;
            let outcome = work(&region);
            // Committed, and nobody has been told yet.
            tokio::time::sleep(after / 2).await;
            drop(inside);
            let _ = done.send(outcome);
        });
        answer.await.unwrap_or_else(|_| Err(StoreError::Failed("the process ends".to_owned())))
    }
}

fn busy<T>() -> Result<T, StoreError> {
    Err(StoreError::Busy("in this world".to_owned()))
}

impl RegionStore for LivingRegion {
    fn hello(&self, _: Node, hello: Hello) -> BoxFuture<'_, Result<Option<NodeState>, StoreError>> {
        tell("region", || {
            format!(
                "hears Hello: epoch {:?}, keeps {}..={}{}",
                hello.epoch,
                hello.min_retained_seq,
                hello.last_seq,
                if hello.diverged { ", DIVERGED" } else { "" }
            )
        });
        note("hello");
        if hello.diverged {
            note("diverged");
        }
        Box::pin(self.transaction("hello", |region| {
            if region.is_full() { busy() } else { Ok(region.disk.lock().node) }
        }))
    }

    fn begin_epoch(&self, _: Node, epoch: EpochNo) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.transaction("begin_epoch", move |region| {
            if region.is_full() {
                return busy();
            }
            let mut disk = region.disk.lock();
            must(disk.node.is_none_or(|old| old.epoch < epoch), || format!("epoch {epoch} comes again"));
            disk.node = Some(NodeState { epoch, hwm: 0, fold: Some(Fold::EMPTY) });
            note("new_epoch");
            tell("region disk", || format!("begins epoch {epoch}"));
            Ok(())
        }))
    }

    fn apply(&self, _: Node, batch: Batch) -> BoxFuture<'_, Result<Mark, StoreError>> {
        let (first, last, count) = (batch.first_seq, batch.last_seq(), batch.ops.len());
        must(count <= APPLY_OPS_MAX, || format!("{count} operations in one apply"));
        let early = is_planted(Planted::RegionTellsEarly);
        Box::pin(async move {
            let region = self.region.clone();
            let told_early = early.then(|| region.disk.lock().clone().commit(&batch, count));
            let committed = self.transaction("apply", move |region| {
                let epoch = batch.epoch;
                if region.fails() {
                    note("apply_failed");
                    tell("region disk", || format!("refuses {first}..={last} of epoch {epoch}"));
                    return busy();
                }
                let mut disk = region.disk.lock();
                let Some(node) = disk.node.filter(|node| node.epoch == epoch) else {
                    return Err(StoreError::Failed(format!("epoch {epoch} takes no operations")));
                };
                must(first <= node.hwm + 1, || {
                    format!("the store was handed a gap: {first} after {}", node.hwm)
                });
                // A store with a smaller transaction commits a part.
                let part = region.climate.lock().store_failure / 4;
                let count = if region.dice.lock().chance(part) { count.div_ceil(2) } else { count };
                let mark = disk.commit(&batch, count);
                drop(disk);
                note("apply");
                tell("region disk", || {
                    format!("commits {first}..={last} of epoch {epoch}: the mark is {}", mark.hwm)
                });
                region.committed.send_modify(|commits| *commits += 1);
                Ok(mark)
            });
            match told_early {
                Some(mark) => {
                    let waits = tokio::time::timeout(Duration::ZERO, committed);
                    drop(waits.await);
                    Ok(mark)
                }
                None => committed.await,
            }
        })
    }

    fn log_changed(&self) -> watch::Receiver<Heads> {
        self.region.heads.subscribe()
    }

    fn tail(&self, log: Log, from: u64, bytes_max: usize) -> BoxFuture<'_, Result<TailRead, StoreError>> {
        Box::pin(async move {
            tokio::time::sleep(self.region.takes()).await;
            if self.region.fails() {
                return busy();
            }
            let disk = self.region.disk.lock();
            if from < disk.kept_from.get(&log).copied().unwrap_or(0) {
                return Ok(TailRead::Gone);
            }
            let mut bytes = 0;
            let entries = (1..).zip(disk.logs.get(&log).into_iter().flatten()).skip(from as usize);
            let mut records = Vec::new();
            for (version, entry) in entries {
                let body = body(log, *entry, version);
                bytes += body.len();
                if bytes > bytes_max && !records.is_empty() {
                    break;
                }
                records.push(Record { version, body });
            }
            let to = records.last().map_or(from, |record| record.version);
            Ok(TailRead::Tail(Tail { log, from, to, part: Part::Changes, records, next: None }))
        })
    }

    fn snapshot(
        &self,
        log: Log,
        resume: Option<Vec<u8>>,
        _: usize,
    ) -> BoxFuture<'_, Result<SnapshotPage, StoreError>> {
        Box::pin(async move {
            tokio::time::sleep(self.region.takes()).await;
            if self.region.fails() {
                return busy();
            }
            note(if resume.is_some() { "snapshot_page" } else { "snapshot" });
            let records_max = 1 + self.region.dice.lock().below(8) as usize;
            let disk = self.region.disk.lock();
            let after = resume.and_then(|at| at.first().copied());
            let mut rows =
                disk.table(log).into_iter().filter(|(key, _)| after.is_none_or(|after| *key > after));
            let page: Vec<_> = rows.by_ref().take(records_max).collect();
            let next = rows.next().and_then(|_| page.last()).map(|(key, _)| vec![*key]);
            let record = |(_, (version, entry)): &(u8, (u64, Entry))| Record {
                version: *version,
                body: body(log, *entry, *version),
            };
            let records = page.iter().map(record).collect();
            Ok(SnapshotPage { version: disk.heads().get(log), records, next })
        })
    }

    fn call(&self, _: Node, call: Call) -> BoxFuture<'_, Result<Reply, Refusal>> {
        Box::pin(async move {
            tokio::time::sleep(self.region.takes()).await;
            Ok(Reply { body: call.body })
        })
    }

    fn applied(&self, _: Node, log: Log, version: u64) {
        let before = self.region.noted.lock().insert(log, version);
        must(before.is_none_or(|before| before <= version), || {
            format!("the cursor of {log} goes back: {version} after {before:?}")
        });
        if log != Log::Purge || before.is_none() {
            tell("region", || format!("hears that {log} is applied up to {version}"));
        }
    }
}
