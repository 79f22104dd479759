//! What the node keeps: its outbox and carts (`state.redb`), and its replica of the shop (`replica.redb`).
//!
//! The two files have different worth. `state.redb` holds what exists nowhere else: it is written by one thread
//! ([`committer`]), answered for only when it is on the disk, and a broken one stops the node. `replica.redb` can be
//! fetched again: a broken one is moved aside, said aloud, and refilled.
//!
//! Called by the API (carts, the shop as it is now) and by the link ([`store`]). Knows neither HTTP nor QUIC.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use redb::{Database, ReadTransaction, ReadableDatabase as _};
use souk_commerce::call::{Granted, HOLDS_MAX, Want};
use souk_commerce::cart::{Cart, Delta, Edit};
use souk_commerce::clock::{Hlc, HlcClock};
use souk_commerce::id::{Epoch, HoldId, NodeId, OrderId, SiteId, Sku};
use souk_commerce::op::Operation;
use souk_link::Fold;
use tokio::sync::{Notify, oneshot, watch};

pub mod carts;
pub mod committer;
mod erasing;
mod leases;
pub mod outbox;
pub mod replica;
mod rows;
pub mod store;
mod sweep;
pub mod terms;
mod view;
pub mod world;

#[cfg(test)]
mod tests;

pub use carts::{CartGuard, CartKey, Held, Hold, Position, Seen};
pub use committer::{CommitError, Gate, Hand};
pub use leases::Leased;
pub use outbox::{Disk, Erased, Facts, Renewed};
pub use replica::{Replica, ReplicaError};
pub use world::{Site, World};

use carts::{CartLocks, CartRow};
use committer::{Change, Committer, Leases, Work};
use leases::{LeaseRow, Steady};
use outbox::FileDisk;

/// Memory for carts that were changed lately: about 100,000 everyday carts.
const CART_CACHE_BYTES: u64 = 64 << 20;
/// The share of the time in which the file may be written anew.
const RENEWED_ONE_IN: u32 = 10;
/// Carts on one page of the list for operators.
pub const CART_PAGE_MAX: usize = 1_000;

type CartCache = moka::sync::Cache<CartKey, Arc<Held>>;

/// Why the node's state cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot make the data directory {}: {source}", path.display())]
    DataDir { path: PathBuf, source: std::io::Error },
    #[error("{} is in use by another process", path.display())]
    InUse { path: PathBuf },
    #[error(
        "cannot open {}: {source}. It holds changes that the region may not have: restore it from a backup, \
         or move it away to give them up", path.display()
    )]
    Broken { path: PathBuf, source: Box<redb::Error> },
    #[error("{} belongs to node {owner}, and this is node {node}: give each node a data directory of its own", path.display())]
    AnotherNode { path: PathBuf, owner: u32, node: u32 },
    #[error("cannot start the committer thread: {0}")]
    Thread(std::io::Error),
    #[error(transparent)]
    Replica(#[from] ReplicaError),
}

impl OpenError {
    /// Whether it may pass: another process has the files open.
    pub fn is_in_use(&self) -> bool {
        matches!(self, Self::InUse { .. } | Self::Replica(ReplicaError::InUse { .. }))
    }
}

/// Why a cart cannot be read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    #[error("state.redb is being reopened after an error")]
    Reopening,
    #[error("state.redb cannot be read: {0}")]
    Failed(String),
}

impl From<redb::Error> for ReadError {
    fn from(error: redb::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

/// What the committer has done, for the metrics.
#[derive(Debug, Default)]
pub struct CommitStats {
    pub commits: AtomicU64,
    pub changes: AtomicU64,
    pub micros: AtomicU64,
    pub failures: AtomicU64,
    pub largest_batch: AtomicU64,
    /// Carts held, and their bytes as the last pass over them has found them.
    pub carts: AtomicU64,
    pub cart_bytes: AtomicU64,
    pub carts_forgotten: AtomicU64,
    /// Times that the file was written anew, and what that took.
    pub renewals: AtomicU64,
    pub renewal_micros: AtomicU64,
}

impl CommitStats {
    fn note(&self, changes: usize, spent: Duration) {
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.changes.fetch_add(changes as u64, Ordering::Relaxed);
        self.micros.fetch_add(u64::try_from(spent.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.largest_batch.fetch_max(changes as u64, Ordering::Relaxed);
    }

    fn note_carts(&self, step: &sweep::Step) {
        let forgotten = step.expired.len() as u64;
        self.carts.store(step.carts.saturating_sub(forgotten), Ordering::Relaxed);
        self.carts_forgotten.fetch_add(forgotten, Ordering::Relaxed);
        if let Some(bytes) = step.bytes {
            self.cart_bytes.store(bytes, Ordering::Relaxed);
        }
    }
}

/// The node's outbox and carts.
#[derive(Debug)]
pub struct State {
    node: NodeId,
    outbox_bytes_max: u64,
    db: Arc<RwLock<Option<Database>>>,
    queue: Mutex<Option<SyncSender<Work>>>,
    facts: watch::Receiver<Facts>,
    newest: watch::Receiver<u64>,
    gate: watch::Receiver<Gate>,
    carts: CartCache,
    locks: Arc<CartLocks>,
    /// When the file may be written anew again.
    erasing: tokio::sync::Mutex<Option<tokio::time::Instant>>,
    steady: Arc<Steady>,
    clock: Mutex<HlcClock>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Told of each piece of work, for a committer that has no thread.
    wanted: Arc<Notify>,
    stats: Arc<CommitStats>,
}

impl State {
    /// Opens `dir/state.redb`, or makes it. What the region acknowledges is forgotten at once.
    pub fn open(dir: &Path, node: NodeId, outbox_bytes_max: u64) -> Result<Self, OpenError> {
        Self::open_keeping(dir, node, outbox_bytes_max, (0, Duration::ZERO))
    }

    /// The same; so many bytes of what the region acknowledges are kept for so long, for a region that comes back from a backup.
    pub fn open_keeping(
        dir: &Path,
        node: NodeId,
        outbox_bytes_max: u64,
        kept: (u64, Duration),
    ) -> Result<Self, OpenError> {
        std::fs::create_dir_all(dir).map_err(|source| OpenError::DataDir { path: dir.to_owned(), source })?;
        let disk = Arc::new(FileDisk::new(dir));
        Self::open_on_keeping(disk, &dir.join("state.redb"), node, outbox_bytes_max, kept)
    }

    #[cfg(test)]
    fn open_on(
        disk: Arc<dyn Disk>,
        path: &Path,
        node: NodeId,
        outbox_bytes_max: u64,
    ) -> Result<Self, OpenError> {
        Self::open_on_keeping(disk, path, node, outbox_bytes_max, (0, Duration::ZERO))
    }

    fn open_on_keeping(
        disk: Arc<dyn Disk>,
        path: &Path,
        node: NodeId,
        outbox_bytes_max: u64,
        kept: (u64, Duration),
    ) -> Result<Self, OpenError> {
        let (state, Hand { committer, .. }) = Self::open_by_hand(disk, path, node, outbox_bytes_max, kept)?;
        let thread = std::thread::Builder::new()
            .name("souk-committer".to_owned())
            .spawn(move || committer.run())
            .map_err(OpenError::Thread)?;
        *state.thread.lock() = Some(thread);
        Ok(state)
    }

    /// The same without the thread: nothing is written but in the turns of the [`Hand`]. `path` is what errors call the file.
    pub fn open_by_hand(
        disk: Arc<dyn Disk>,
        path: &Path,
        node: NodeId,
        outbox_bytes_max: u64,
        kept: (u64, Duration),
    ) -> Result<(Self, Hand), OpenError> {
        let broken =
            |source: redb::Error| OpenError::Broken { path: path.to_owned(), source: Box::new(source) };
        let db = disk.open().map_err(|error| match error {
            redb::DatabaseError::DatabaseAlreadyOpen => OpenError::InUse { path: path.to_owned() },
            other => broken(other.into()),
        })?;
        let owner = outbox::init(&db, node.0).map_err(broken)?;
        if owner != node.0 {
            return Err(OpenError::AnotherNode { path: path.to_owned(), owner, node: node.0 });
        }
        let facts = outbox::load(&db).map_err(broken)?;
        let (publish, published) = watch::channel(facts);
        let (newest, newest_seen) = watch::channel(facts.last());
        let (gate, gate_seen) = watch::channel(Gate::Open);
        let (send, queue) = sync_channel(committer::QUEUE_MAX);
        let db = Arc::new(RwLock::new(Some(db)));
        let stats = Arc::new(CommitStats::default());
        let carts = moka::sync::Cache::builder()
            .max_capacity(CART_CACHE_BYTES)
            // An entry in memory takes about thrice what it takes on disk.
            .weigher(|_, held: &Arc<Held>| {
                256 + 200 * u32::try_from(held.cart.lines().len()).unwrap_or(u32::MAX / 256)
            })
            .build();
        let steady = Arc::new(Steady::of_this_machine());
        let now = std::time::Instant::now();
        let committer = Committer {
            steady: steady.clone(),
            disk,
            db: db.clone(),
            queue,
            facts,
            published: publish,
            newest,
            gate,
            carts: carts.clone(),
            stats: stats.clone(),
            pending_trim: None,
            looked: None,
            sweep: sweep::Sweep::new(now),
            kept,
            aged: now,
            renew_not_before: None,
            unwiped: None,
            view_only: false,
            now,
        };
        let wanted = Arc::new(Notify::new());
        let hand = Hand { committer, wanted: wanted.clone() };
        let state = Self {
            node,
            outbox_bytes_max,
            db,
            queue: Mutex::new(Some(send)),
            facts: published,
            newest: newest_seen,
            gate: gate_seen,
            carts,
            locks: Arc::default(),
            erasing: tokio::sync::Mutex::default(),
            steady,
            clock: Mutex::new(HlcClock::after(Hlc(facts.stamp))),
            thread: Mutex::new(None),
            wanted,
            stats,
        };
        Ok((state, hand))
    }

    /// Writes what is queued and closes the file. Later changes are refused; blocks until done.
    pub fn close(&self) {
        drop(self.queue.lock().take());
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the committer thread panicked");
        }
    }

    pub fn node(&self) -> NodeId {
        self.node
    }

    /// None until the region has enrolled the node: it may not write before.
    pub fn epoch(&self) -> Option<Epoch> {
        self.facts.borrow().epoch
    }

    pub fn facts(&self) -> Facts {
        *self.facts.borrow()
    }

    /// The newest operation on the disk, as it changes.
    pub fn newest(&self) -> watch::Receiver<u64> {
        self.newest.clone()
    }

    pub fn gate(&self) -> Gate {
        self.gate.borrow().clone()
    }

    pub fn stats(&self) -> &CommitStats {
        &self.stats
    }

    /// The right to change a cart. Cancel safe.
    pub async fn lock(&self, key: CartKey) -> CartGuard {
        self.locks.lock(key).await
    }

    /// A cart as it was last committed, if this node holds it.
    pub fn find(&self, key: &CartKey) -> Result<Option<Arc<Held>>, ReadError> {
        if let Some(held) = self.carts.get(key) {
            return Ok(Some(held));
        }
        // Not put into the memory: only the committer may, or a slow reader could put an old cart over a new one.
        self.read(|txn| {
            let row = txn
                .open_table(outbox::CART)?
                .get(outbox::cart_key(key))?
                .map(|row| Held::from_bytes(row.value()));
            Ok(row)
        })?
        .transpose()
        .map(|held| held.map(Arc::new))
        .map_err(ReadError::Failed)
    }

    /// The carts after (site, cart), in the order of their keys: at most [`CART_PAGE_MAX`].
    pub fn list(
        &self,
        after: Option<&CartKey>,
        limit: usize,
    ) -> Result<Vec<(CartKey, Arc<Held>)>, ReadError> {
        let rows = self.read(|txn| {
            let table = txn.open_table(outbox::CART)?;
            let from = after
                .map_or(std::ops::Bound::Unbounded, |key| std::ops::Bound::Excluded(outbox::cart_key(key)));
            let mut rows = Vec::new();
            for row in table.range((from, std::ops::Bound::Unbounded))?.take(limit.min(CART_PAGE_MAX)) {
                let (key, value) = row?;
                let (site, cart) = key.value();
                rows.push((site.to_owned(), outbox::cart_id(cart), value.value().to_vec()));
            }
            Ok(rows)
        })?;
        let parsed = rows.into_iter().map(|(site, cart, bytes)| {
            let site: SiteId = site.parse().map_err(|e| ReadError::Failed(format!("{e}")))?;
            Ok((CartKey { site, cart }, Arc::new(Held::from_bytes(&bytes).map_err(ReadError::Failed)?)))
        });
        parsed.collect()
    }

    fn read<T>(&self, f: impl FnOnce(&ReadTransaction) -> Result<T, redb::Error>) -> Result<T, ReadError> {
        let db = self.db.read();
        let db = db.as_ref().ok_or(ReadError::Reopening)?;
        let txn = db.begin_read().map_err(redb::Error::from)?;
        Ok(f(&txn)?)
    }

    /// Operations from `from` on, in order, for the link.
    pub fn operations(
        &self,
        from: u64,
        ops_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<(u64, Vec<u8>)>, ReadError> {
        self.read(|txn| {
            let mut ops = Vec::new();
            let mut bytes = 0;
            for row in txn.open_table(outbox::OUTBOX)?.range(from..)? {
                let (seq, op) = row?;
                bytes += op.value().len();
                if ops.len() >= ops_max || (bytes > bytes_max && !ops.is_empty()) {
                    break;
                }
                ops.push((seq.value(), op.value().to_vec()));
            }
            Ok(ops)
        })
    }

    /// Whether a write would be refused at once, and why.
    pub fn check_writable(&self) -> Result<Epoch, CommitError> {
        let facts = *self.facts.borrow();
        let epoch = facts.epoch.ok_or(CommitError::NotEnrolled)?;
        self.gate.borrow().check()?;
        if facts.outbox_bytes >= self.outbox_bytes_max {
            return Err(CommitError::OutboxFull { bytes_max: self.outbox_bytes_max });
        }
        Ok(epoch)
    }

    /// Makes one change of one cart durable: `edit` says what; the operation, the cart and its position are one
    /// transaction. Returns when they are on the disk.
    ///
    /// An edit that changes nothing writes nothing. Cancel safe in this sense: once the change is queued it will be
    /// tried whether or not anybody waits, and the guard travels with it, so no one can build on the state before.
    pub async fn change<E>(
        &self,
        mut guard: CartGuard,
        mut held: Held,
        now_ms: u64,
        edit: impl Fn(&mut Edit<'_>) -> Result<(), E>,
    ) -> Result<(CartGuard, Arc<Held>), ChangeError<E>> {
        loop {
            let epoch = self.check_writable()?;
            let stamp = {
                let mut clock = self.clock.lock();
                if let Some(newest) = held.cart.newest() {
                    // A stamp from a clock that is far ahead is not followed; ours may then lose a tie, once.
                    let _ = clock.observe(newest, now_ms);
                }
                clock.tick(now_ms)
            };
            let mut draft = held.cart.edit(self.node, epoch, stamp);
            edit(&mut draft).map_err(ChangeError::Edit)?;
            let delta = draft.finish();
            if delta.is_empty() {
                return Ok((guard, Arc::new(held)));
            }
            let mut next = held.clone();
            next.cart.apply(&delta);
            next.touched_ms = Some(now_ms);
            let ops = operations(guard.key(), now_ms, delta);
            let key = guard.key().clone();
            let draft = Write { epoch: Some(epoch), ops, stamp: stamp.0, ..Write::of(next) };
            match self.submit(guard, draft).await {
                Ok(done) => return Ok(done),
                // Rare, and the edit is still wanted: make it again in the new epoch.
                Err(CommitError::EpochChanged) => {
                    guard = self.lock(key.clone()).await;
                    held = self
                        .find(&key)
                        .map_err(ChangeError::Read)?
                        .map_or_else(Held::default, Arc::unwrap_or_clone);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Stores what is known of a cart from elsewhere (its state at the region, its order). No operation is made of
    /// it: the region knows it already.
    pub async fn store(&self, guard: CartGuard, held: Held) -> Result<(CartGuard, Arc<Held>), CommitError> {
        self.gate.borrow().check()?;
        self.submit(guard, Write::of(held)).await
    }

    /// Promises units to a cart out of what is lent to this node: each want wholly, or not at all. What it got is among its
    /// [`Held::holds`]. The operations that say so, what is left of the leases, and the cart are one transaction. Returns when it
    /// is on the disk.
    pub async fn promise(
        &self,
        guard: CartGuard,
        mut held: Held,
        now_ms: u64,
        wants: Vec<Want>,
    ) -> Result<(CartGuard, Arc<Held>), CommitError> {
        let epoch = self.check_writable()?;
        held.touched_ms = Some(now_ms);
        self.submit(guard, Write { epoch: Some(epoch), wants, at_ms: now_ms, ..Write::of(held) }).await
    }

    /// Gives up what a cart was promised.
    pub async fn give_up(
        &self,
        guard: CartGuard,
        mut held: Held,
        now_ms: u64,
    ) -> Result<(CartGuard, Arc<Held>), CommitError> {
        let epoch = self.check_writable()?;
        let holds: Vec<_> = held.holds.drain(..).map(|hold| hold.id).collect();
        if holds.is_empty() {
            return Ok((guard, Arc::new(held)));
        }
        let (site, cart) = (guard.key().site.clone(), guard.key().cart);
        let release = |holds: &[HoldId]| {
            let holds = holds.to_vec();
            Operation::Release { site: site.clone(), cart, at_ms: now_ms, holds }.to_bytes()
        };
        // 17 KB each: a cart that was changed often may have more than one operation holds.
        let ops = holds.chunks(HOLDS_MAX).map(release).collect();
        self.submit(guard, Write { epoch: Some(epoch), ops, ..Write::of(held) }).await
    }

    /// What is lent to this node.
    pub fn leases(&self) -> Result<Vec<Leased>, ReadError> {
        let rows = self.read(|txn| {
            let mut rows = Vec::new();
            for row in txn.open_table(outbox::LEASE)?.range::<(&str, &str)>(..)? {
                let (key, value) = row?;
                let (site, sku) = key.value();
                rows.push((site.to_owned(), sku.to_owned(), minicbor::decode::<LeaseRow>(value.value())));
            }
            Ok(rows)
        })?;
        let parsed = rows.into_iter().map(|(site, sku, row)| {
            let failed = |e: &dyn std::fmt::Display| ReadError::Failed(e.to_string());
            let (site, sku): (SiteId, Sku) =
                (site.parse().map_err(|e| failed(&e))?, sku.parse().map_err(|e| failed(&e))?);
            Ok(row.map_err(|e| failed(&e))?.shown(site, sku, &self.steady))
        });
        parsed.collect()
    }

    /// Writes down what is lent to this node: all of it, in answer to question `turn` that was asked at `asked_ms` of
    /// [`Self::steady_ms`]. A lease that is not named is over when this returns.
    pub async fn set_leases(
        &self,
        turn: u64,
        asked_ms: u64,
        granted: Vec<Granted>,
    ) -> Result<(), CommitError> {
        let (done, written) = oneshot::channel();
        self.send(Work::Leases(Leases { turn, asked_ms, granted }, done))?;
        written.await.unwrap_or(Err(CommitError::Stopped))
    }

    /// The clock by which leases end.
    pub fn steady_ms(&self) -> u64 {
        self.steady.now_ms()
    }

    /// The carts of this node that erased ones may be, by what the region says of them. Blocking: it looks at every key of
    /// those sites, at some 3 million a second.
    pub fn erased(&self, carts: &Erased) -> Result<Vec<CartKey>, ReadError> {
        self.read(|txn| {
            let table = txn.open_table(outbox::CART)?;
            let mut found = Vec::new();
            for (site, tags) in carts {
                for row in table.range((site.as_str(), 0)..=(site.as_str(), u128::MAX))? {
                    let cart = outbox::cart_id(row?.0.value().1);
                    if tags.contains(&cart.tag(site)) {
                        found.push(CartKey { site: site.clone(), cart });
                    }
                }
            }
            Ok(found)
        })
    }

    /// Forgets carts for good, and what is left of them and of others in the file: it is written anew, even if there are none
    /// here any more. Returns when that is done. Whoever is changing one of them is waited for.
    ///
    /// Writing the file anew holds shoppers' changes up: it is done for a tenth of the time at most, however many are erased.
    pub async fn erase(&self, carts: Vec<CartKey>, told: Erased) -> Result<(), CommitError> {
        let mut not_before = self.erasing.lock().await;
        if let Some(at) = *not_before {
            tokio::time::sleep_until(at).await;
        }
        let mut guards = Vec::with_capacity(carts.len());
        for key in carts {
            // In no order that matters: nobody else holds two.
            guards.push(self.lock(key).await);
        }
        let began = tokio::time::Instant::now();
        let (done, erased) = oneshot::channel();
        self.send(Work::Erase(guards, told, done))?;
        let erased = erased.await.unwrap_or(Err(CommitError::Stopped));
        *not_before = Some(began + began.elapsed() * RENEWED_ONE_IN);
        erased
    }

    /// Notes the order that sealed a cart.
    pub async fn seal(
        &self,
        guard: CartGuard,
        mut held: Held,
        order: OrderId,
    ) -> Result<CartGuard, CommitError> {
        held.order = Some(order);
        Ok(self.store(guard, held).await?.0)
    }

    async fn submit(
        &self,
        guard: CartGuard,
        Write { epoch, ops, wants, at_ms, held, stamp }: Write,
    ) -> Result<(CartGuard, Arc<Held>), CommitError> {
        let (done, durable) = oneshot::channel();
        let row: CartRow = held.to_row();
        let change = Change { guard, epoch, ops, held, row, wants, at_ms, stamp, done };
        self.send(Work::Change(Box::new(change)))?;
        durable.await.unwrap_or(Err(CommitError::Stopped))
    }

    fn send(&self, work: Work) -> Result<(), CommitError> {
        let queue = self.queue.lock();
        let Some(queue) = queue.as_ref() else { return Err(CommitError::Stopped) };
        queue.try_send(work).map_err(|error| match error {
            TrySendError::Full(_) => CommitError::QueueFull,
            TrySendError::Disconnected(_) => CommitError::Stopped,
        })?;
        self.wanted.notify_one();
        Ok(())
    }

    /// The region has everything up to `to`. Returns at once: forgetting needs no sync of its own.
    pub fn trim(&self, epoch: Epoch, to: u64, fold: Option<Fold>) {
        // A full queue only means that a later acknowledgement, which is cumulative, will do it.
        let _ = self.send(Work::Trim { epoch, to, fold });
    }

    /// The region was restored, and has this epoch up to here only: what is kept beyond is unacknowledged again, and is sent.
    pub async fn go_back(&self, epoch: Epoch, to: u64, fold: Option<Fold>) -> Result<(), CommitError> {
        let (done, gone_back) = oneshot::channel();
        self.send(Work::GoBack { epoch, to, fold, done })?;
        gone_back.await.unwrap_or(Err(CommitError::Stopped))
    }

    /// Begins the epoch that the region has minted, and numbers what it keeps 1, 2, 3… again.
    ///
    /// The region does this when it has seen more of this node than the node itself remembers: the disk was restored
    /// from a backup; or when it lacks what this node has not kept: it was restored itself. What is still in the outbox keeps
    /// its content, dots included. Operations that the region had
    /// applied before are then applied twice under other numbers, and that is nothing: a delta is idempotent by its
    /// dots. What would hurt is the opposite, to give new dots to old content (an addition would count twice). New
    /// edits take their dots in the new epoch, so they cannot meet the dots of the life that was lost. The window
    /// that remains: a node that accepts writes between the restored backup and its first welcome makes dots in the
    /// old epoch, and one of them may be a dot that the lost life has used on the same cart; that change is lost.
    /// A node restored from a backup is therefore to be started with its region in reach.
    pub async fn begin_epoch(&self, epoch: Epoch) -> Result<(), CommitError> {
        let (done, begun) = oneshot::channel();
        self.send(Work::BeginEpoch { epoch, done })?;
        begun.await.unwrap_or(Err(CommitError::Stopped))
    }
}

/// What is to be written of one cart.
struct Write {
    epoch: Option<Epoch>,
    ops: Vec<Vec<u8>>,
    wants: Vec<Want>,
    at_ms: u64,
    held: Held,
    stamp: u64,
}

impl Write {
    const fn of(held: Held) -> Self {
        Self { epoch: None, ops: Vec::new(), wants: Vec::new(), at_ms: 0, held, stamp: 0 }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        // Not joined: a process that is told to go must not wait for a disk.
        drop(self.queue.lock().take());
    }
}

fn operations(key: &CartKey, at_ms: u64, delta: Delta) -> Vec<Vec<u8>> {
    let whole = |delta| Operation::Cart { site: key.site.clone(), cart: key.cart, at_ms, delta }.to_bytes();
    delta.split().into_iter().map(whole).collect()
}

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError<E> {
    #[error("the edit was refused")]
    Edit(E),
    #[error(transparent)]
    Commit(#[from] CommitError),
    #[error(transparent)]
    Read(ReadError),
}

/// An empty cart, not yet known to anyone.
impl Held {
    pub fn with_cart(cart: Cart) -> Self {
        Self { cart, ..Self::default() }
    }
}
