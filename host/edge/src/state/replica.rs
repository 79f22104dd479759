//! The node's copy of what the region says: rows of the logs, their cursors, and the snapshot made of them.
//!
//! A tail's rows and its cursor are one transaction; only then is the snapshot swapped, so a price is either in the
//! file and in the next quote, or in neither. Everything here can be fetched again: a file that cannot be read is
//! moved aside with a loud word and the logs come whole. Knows nothing of who sends; called by [`super::store`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition, WriteTransaction};
use souk_link::planted::{Bug, planted};
use souk_link::{Heads, Log, Part, Record, RowsDigest, Staging, Tail};
use tokio::sync::watch;

use super::outbox::{Disk, FileDisk};
use super::rows::Trails;
use super::world::{BadRecord, Row, World};
use crate::page_cache::{PageCache, Touched};

/// Rows of every log: (log, key) -> (version, body as the region wrote it).
const ROWS: TableDefinition<'_, (u8, &str), (u64, &[u8])> = TableDefinition::new("rows");
/// Parts of snapshots that are not complete yet, in the order of arrival.
const STAGED: TableDefinition<'_, (u8, u64), (u64, &[u8])> = TableDefinition::new("staged");
/// How much of each is there: log -> (version, parts, `region_epoch`, where the next part starts).
const STAGED_AT: TableDefinition<'_, u8, (u64, u32, u32, &[u8])> = TableDefinition::new("staged_at");
const CURSOR: TableDefinition<'_, u8, u64> = TableDefinition::new("cursor");
/// The `region_epoch` under which each cursor was applied. A cursor without one is of a release that did not note it.
const HISTORY: TableDefinition<'_, u8, u32> = TableDefinition::new("history");

/// In [`CURSOR`]: whether the node has once been as new as its region. No log has this number.
const SYNCED: u8 = 0;

/// In [`HISTORY`], of a log whose rows are not believed any more: no region has this number, so its rows come whole.
const NO_HISTORY: u32 = 0;

#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    #[error("{} is in use by another process", path.display())]
    InUse { path: PathBuf },
    #[error("cannot make {}: {source}", path.display())]
    Create { path: PathBuf, source: Box<redb::Error> },
    #[error("cannot move the broken {} aside: {source}", path.display())]
    MoveAside { path: PathBuf, source: std::io::Error },
}

/// Why a tail was not applied. Nothing of it is visible then.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error("the {log} log is at {cursor} here, and the changes begin after {from}")]
    Gap { log: Log, cursor: u64, from: u64 },
    #[error(transparent)]
    BadRecord(#[from] BadRecord),
    #[error("replica.redb cannot be written: {0}")]
    Disk(#[from] redb::Error),
}

/// The replica. Applying blocks on the disk; reading never does.
#[derive(Debug)]
pub struct Replica {
    disk: Arc<dyn Disk>,
    /// Gone after an error of the disk, since redb uses no handle again that has met one; the next tail opens another.
    writer: Mutex<Option<Database>>,
    /// What the rows come to. Changed by whoever has the writer.
    trails: Mutex<Trails>,
    world: ArcSwap<World>,
    changed: watch::Sender<Heads>,
    synced: watch::Sender<bool>,
    /// What [`STAGED_AT`] holds.
    stagings: Mutex<Vec<Staging>>,
    /// Takes back what was made from rows that have changed.
    pages: Option<PageCache>,
}

impl Replica {
    /// Opens what the disk of a simulation holds. One that is broken is an error: there is nothing to move aside.
    pub fn open_on(disk: Arc<dyn Disk>, path: &Path) -> Result<Self, ReplicaError> {
        let broken =
            |source: redb::Error| ReplicaError::Create { path: path.to_owned(), source: Box::new(source) };
        let db = disk.open().map_err(|error| broken(error.into()))?;
        match fill(db) {
            Ok(opened) => Ok(Self::of(disk, opened)),
            Err(OpenFault::InUse) => Err(ReplicaError::InUse { path: path.to_owned() }),
            Err(OpenFault::Broken(why)) => Err(broken(redb::Error::Corrupted(why))),
        }
    }

    /// Opens `dir/replica.redb`. One that is broken is moved aside, and an empty one begun.
    pub fn open(dir: &Path, now_ms: u64) -> Result<Self, ReplicaError> {
        let path = dir.join("replica.redb");
        let disk = Arc::new(FileDisk::of(dir, "replica.redb"));
        let opened = match open(&*disk) {
            Ok(opened) => opened,
            Err(OpenFault::InUse) => return Err(ReplicaError::InUse { path }),
            Err(OpenFault::Broken(why)) => {
                let aside = dir.join(format!("replica.redb.broken-{now_ms}"));
                tracing::error!(why, aside = %aside.display(), "replica.redb is broken: it is moved aside and fetched again");
                std::fs::rename(&path, &aside)
                    .map_err(|source| ReplicaError::MoveAside { path: path.clone(), source })?;
                match open(&*disk) {
                    Ok(opened) => opened,
                    Err(OpenFault::InUse) => return Err(ReplicaError::InUse { path }),
                    Err(OpenFault::Broken(why)) => {
                        let source = Box::new(redb::Error::Corrupted(why));
                        return Err(ReplicaError::Create { path, source });
                    }
                }
            }
        };
        Ok(Self::of(disk, opened))
    }

    fn of(disk: Arc<dyn Disk>, (db, loaded, stagings): Opened) -> Self {
        let Loaded { world, synced, trails } = loaded;
        let (changed, _) = watch::channel(world.cursors);
        let (synced, _) = watch::channel(synced);
        Self {
            disk,
            writer: Mutex::new(Some(db)),
            trails: Mutex::new(trails),
            world: ArcSwap::from_pointee(world),
            changed,
            synced,
            stagings: Mutex::new(stagings),
            pages: None,
        }
    }

    /// With a cache of what is made from it.
    #[must_use]
    pub fn telling(self, pages: PageCache) -> Self {
        Self { pages: Some(pages), ..self }
    }

    /// Whether every log has once been as new as the region's. Before that a shop may lack half of its rules, and is
    /// not shown; after it the node serves what it has, however long the region is away.
    pub fn is_synced(&self) -> bool {
        *self.synced.borrow()
    }

    /// Remembers that the node has everything that its region had at `heads`, if so. Blocking, once.
    pub fn note_heads(&self, heads: &Heads) -> Result<bool, redb::Error> {
        if self.is_synced() {
            return Ok(true);
        }
        let cursors = self.cursors();
        if !heads.iter().all(|(log, head)| cursors.get(log) >= head) {
            return Ok(false);
        }
        self.with_writer(|db| {
            let txn = db.begin_write()?;
            txn.open_table(CURSOR)?.insert(SYNCED, 1)?;
            txn.commit()?;
            Ok::<_, redb::Error>(())
        })?;
        self.synced.send_replace(true);
        Ok(true)
    }

    /// The shops now. Hold it for the length of one request.
    pub fn world(&self) -> Arc<World> {
        self.world.load_full()
    }

    /// Fires after each applied tail.
    pub fn changed(&self) -> watch::Receiver<Heads> {
        self.changed.subscribe()
    }

    pub fn cursors(&self) -> Heads {
        self.world.load().cursors
    }

    /// Snapshots that were interrupted, and where each goes on.
    pub fn stagings(&self) -> Vec<Staging> {
        self.stagings.lock().clone()
    }

    /// What the rows of `log` came to at `version`, if that is known: not long ago, and under no snapshot that was still
    /// moving.
    pub fn digest_at(&self, log: Log, version: u64) -> Option<RowsDigest> {
        self.trails.lock().get(log).at(version)
    }

    /// What the rows of `log` come to now.
    pub fn digest(&self, log: Log) -> RowsDigest {
        self.trails.lock().get(log).now()
    }

    /// Reads every row of the file again: the logs whose rows do not come to what was written. Blocking, and long.
    pub fn rotten(&self) -> Result<Vec<Log>, redb::Error> {
        // Both of one moment.
        let (txn, now) = self.with_writer(|db| {
            let trails = self.trails.lock();
            Ok::<_, redb::Error>((db.begin_read()?, Log::ALL.map(|log| (log, trails.get(log).now()))))
        })?;
        let mut read = Log::ALL.map(|log| (log, RowsDigest::default()));
        for row in txn.open_table(ROWS)?.iter()? {
            let (key, value) = row?;
            let (version, body) = value.value();
            if let Some((_, digest)) = read.iter_mut().find(|(log, _)| log.code() == key.value().0) {
                digest.add(version, body);
            }
        }
        let differ = now.into_iter().zip(read).filter(|(now, read)| now.1 != read.1);
        Ok(differ.map(|((log, _), _)| log).collect())
    }

    /// Logs that were given up and have not come whole yet.
    pub fn given_up(&self) -> Vec<Log> {
        let world = self.world.load();
        Log::ALL.into_iter().filter(|log| world.histories.get(&log.code()) == Some(&NO_HISTORY)).collect()
    }

    /// Gives up the rows of these logs: at the next connection each comes whole. What is there is served until then. Blocking.
    pub fn mistrust(&self, logs: &[Log]) -> Result<(), redb::Error> {
        self.with_writer(|db| {
            let mut world = World::clone(&self.world.load());
            let txn = db.begin_write()?;
            for log in logs {
                txn.open_table(HISTORY)?.insert(log.code(), NO_HISTORY)?;
                world.histories.insert(log.code(), NO_HISTORY);
            }
            txn.commit()?;
            self.world.store(Arc::new(world));
            Ok(())
        })
    }

    /// In the one history that most tests have.
    #[cfg(test)]
    pub fn apply(&self, tail: &Tail) -> Result<(), ApplyError> {
        self.apply_of(tail, 1)
    }

    /// Applies a tail of this history: rows and cursor in one transaction, then the snapshot, then what was made from the
    /// rows that have changed is taken back. Whoever takes a place in the order of purges after that sees the new world;
    /// whoever took it before is overtaken by the purge, whichever world it saw. Blocking.
    pub fn apply_of(&self, tail: &Tail, region_epoch: u32) -> Result<(), ApplyError> {
        self.with_writer(|db| self.write(db, tail, region_epoch))
    }

    /// Lends the file. One that has met an error is closed, and opened anew by the next who asks: a full disk that was emptied
    /// needs no restart of the node.
    fn with_writer<T, E>(&self, work: impl FnOnce(&Database) -> Result<T, E>) -> Result<T, E>
    where
        E: From<redb::Error> + IsOfDisk,
    {
        let mut writer = self.writer.lock();
        let db = match writer.take() {
            Some(db) => db,
            None => self.reopen()?,
        };
        let done = work(&db);
        if !done.as_ref().is_err_and(IsOfDisk::is_of_disk) || planted(Bug::HandleKept) {
            *writer = Some(db);
        }
        done
    }

    /// What is in the file after an error is what counts: the transaction that met it may be there, or not.
    fn reopen(&self) -> Result<Database, redb::Error> {
        let (db, Loaded { world, synced, trails }, stagings) = match open(&*self.disk) {
            Ok(opened) => opened,
            Err(OpenFault::InUse) => return Err(redb::DatabaseError::DatabaseAlreadyOpen.into()),
            Err(OpenFault::Broken(why)) => return Err(redb::Error::Corrupted(why)),
        };
        tracing::info!("replica.redb is opened again after an error of the disk");
        let cursors = world.cursors;
        *self.trails.lock() = trails;
        self.world.store(Arc::new(world));
        *self.stagings.lock() = stagings;
        self.synced.send_replace(synced);
        if let Some(pages) = &self.pages {
            let mut touched = Touched::default();
            touched.everything();
            pages.forget(touched);
        }
        self.changed.send_replace(cursors);
        Ok(db)
    }

    fn write(&self, db: &Database, tail: &Tail, region_epoch: u32) -> Result<(), ApplyError> {
        let mut world = World::clone(&self.world.load());
        let cursor = world.cursors.get(tail.log);
        let mut touched = Touched::default();
        let mut trail = self.trails.lock().get(tail.log).draft();
        if planted(Bug::CursorBeforeRows) && tail.part == Part::Changes {
            let early = db.begin_write().map_err(redb::Error::from)?;
            early
                .open_table(CURSOR)
                .map_err(redb::Error::from)?
                .insert(tail.log.code(), tail.to)
                .map_err(redb::Error::from)?;
            early.commit().map_err(redb::Error::from)?;
        }
        let txn = db.begin_write().map_err(redb::Error::from)?;
        let visible = match tail.part {
            Part::Changes if tail.from != cursor => {
                return Err(ApplyError::Gap { log: tail.log, cursor, from: tail.from });
            }
            Part::Changes => {
                for Record { version, body } in &tail.records {
                    take_in(&txn, &mut world, &mut touched, &mut trail.now, tail.log, *version, body)?;
                    trail.passed(*version);
                }
                true
            }
            Part::Snapshot { index, last } => {
                stage(&txn, tail, index, region_epoch)?;
                if last {
                    trail.begin_anew();
                    let newest = replace(&txn, &mut world, &mut trail.now, tail.log)?;
                    trail.settle(newest.max(tail.to), tail.to);
                    // The chains speak for themselves when they are in use; nothing is made of files.
                    if !matches!(tail.log, Log::Release | Log::Asset) {
                        touched.everything();
                    }
                }
                last
            }
        };
        if visible {
            txn.open_table(CURSOR)
                .map_err(redb::Error::from)?
                .insert(tail.log.code(), tail.to)
                .map_err(redb::Error::from)?;
            // Changes that were on their way when the log was given up do not make its rows believed again.
            let is_given_up = world.histories.get(&tail.log.code()) == Some(&NO_HISTORY);
            let history = if is_given_up && tail.part == Part::Changes { NO_HISTORY } else { region_epoch };
            txn.open_table(HISTORY)
                .map_err(redb::Error::from)?
                .insert(tail.log.code(), history)
                .map_err(redb::Error::from)?;
            world.cursors.set(tail.log, tail.to);
            world.histories.insert(tail.log.code(), history);
        }
        txn.commit().map_err(redb::Error::from)?;
        if visible {
            self.trails.lock().take(tail.log, trail);
        }
        if matches!(tail.part, Part::Snapshot { .. }) {
            let mut stagings = self.stagings.lock();
            stagings.retain(|staging| staging.log != tail.log);
            stagings.extend(staging_after(tail, region_epoch));
        }
        if visible {
            let cursors = world.cursors;
            self.world.store(Arc::new(world));
            if let Some(pages) = &self.pages {
                pages.forget(touched);
            }
            self.changed.send_replace(cursors);
        }
        Ok(())
    }
}

/// Whether an error leaves a handle behind that redb will not use again.
trait IsOfDisk {
    fn is_of_disk(&self) -> bool;
}

impl IsOfDisk for redb::Error {
    fn is_of_disk(&self) -> bool {
        true
    }
}

impl IsOfDisk for ApplyError {
    fn is_of_disk(&self) -> bool {
        matches!(self, Self::Disk(_))
    }
}

/// One record into the table and into the world under construction.
fn take_in(
    txn: &WriteTransaction,
    world: &mut World,
    touched: &mut Touched,
    digest: &mut RowsDigest,
    log: Log,
    version: u64,
    body: &[u8],
) -> Result<(), ApplyError> {
    let row = Row::read(log, body)?;
    row.touches(world, touched);
    if let Some((key, stays)) = row.key() {
        let mut rows = txn.open_table(ROWS).map_err(redb::Error::from)?;
        let key = (log.code(), key.as_str());
        let before = if stays {
            digest.add(version, body);
            rows.insert(key, (version, body)).map_err(redb::Error::from)?
        } else {
            rows.remove(key).map_err(redb::Error::from)?
        };
        if let Some(before) = before {
            let (version, body) = before.value();
            digest.remove(version, body);
        }
    }
    world.apply(row, version);
    Ok(())
}

/// Where the snapshot goes on after this part, unless it is the last.
fn staging_after(tail: &Tail, region_epoch: u32) -> Option<Staging> {
    let Part::Snapshot { index, last: false } = tail.part else { return None };
    let next = tail.next.clone()?;
    Some(Staging { log: tail.log, version: tail.to, parts: index + 1, region_epoch, next })
}

/// Keeps a part of a snapshot until the last one is there. The old rows serve on.
fn stage(txn: &WriteTransaction, tail: &Tail, index: u32, region_epoch: u32) -> Result<(), redb::Error> {
    let mut staged = txn.open_table(STAGED)?;
    let log = tail.log.code();
    let mut staged_at = txn.open_table(STAGED_AT)?;
    match staging_after(tail, region_epoch) {
        Some(Staging { version, parts, region_epoch, next, .. }) => {
            staged_at.insert(log, (version, parts, region_epoch, next.as_slice()))?;
        }
        None => {
            staged_at.remove(log)?;
        }
    }
    if index == 0 {
        staged.retain_in((log, 0)..=(log, u64::MAX), |_, _| false)?;
    }
    let next = staged
        .range((log, 0)..=(log, u64::MAX))?
        .next_back()
        .transpose()?
        .map_or(0, |(k, _)| k.value().1 + 1);
    for (n, Record { version, body }) in (next..).zip(&tail.records) {
        staged.insert((log, n), (*version, body.as_slice()))?;
    }
    Ok(())
}

/// The snapshot is complete: it takes the place of the log's rows. Returns the newest version of a row: the state may have moved
/// while it was read.
fn replace(
    txn: &WriteTransaction,
    world: &mut World,
    digest: &mut RowsDigest,
    log: Log,
) -> Result<u64, ApplyError> {
    let code = log.code();
    {
        let mut rows = txn.open_table(ROWS).map_err(redb::Error::from)?;
        rows.retain(|(row_log, _), _| row_log != code).map_err(redb::Error::from)?;
    }
    world.clear(log);
    let mut newest = 0;
    let mut staged = txn.open_table(STAGED).map_err(redb::Error::from)?;
    for row in staged.range((code, 0)..=(code, u64::MAX)).map_err(redb::Error::from)? {
        let (_, value) = row.map_err(redb::Error::from)?;
        let (version, body) = value.value();
        // All of it is taken back anyway.
        take_in(txn, world, &mut Touched::default(), digest, log, version, body)?;
        newest = newest.max(version);
    }
    staged.retain_in((code, 0)..=(code, u64::MAX), |_, _| false).map_err(redb::Error::from)?;
    Ok(newest)
}

enum OpenFault {
    InUse,
    Broken(String),
}

/// What was made of the file.
struct Loaded {
    world: World,
    synced: bool,
    trails: Trails,
}

type Opened = (Database, Loaded, Vec<Staging>);

fn open(disk: &dyn Disk) -> Result<Opened, OpenFault> {
    let broken = |e: redb::Error| OpenFault::Broken(e.to_string());
    let db = disk.open().map_err(|e| match e {
        redb::DatabaseError::DatabaseAlreadyOpen => OpenFault::InUse,
        other => broken(other.into()),
    })?;
    fill(db)
}

fn fill(db: Database) -> Result<Opened, OpenFault> {
    let broken = |e: redb::Error| OpenFault::Broken(e.to_string());
    make_tables(&db).map_err(broken)?;
    let loaded = load(&db)?;
    let stagings = read_stagings(&db).map_err(broken)?;
    Ok((db, loaded, stagings))
}

fn make_tables(db: &Database) -> Result<(), redb::Error> {
    let txn = db.begin_write()?;
    txn.open_table(ROWS)?;
    txn.open_table(STAGED)?;
    txn.open_table(STAGED_AT)?;
    txn.open_table(CURSOR)?;
    txn.open_table(HISTORY)?;
    txn.commit()?;
    Ok(())
}

fn load(db: &Database) -> Result<Loaded, OpenFault> {
    let broken = |e: redb::Error| OpenFault::Broken(e.to_string());
    let (rows, cursors, histories, synced) = read(db).map_err(broken)?;
    let mut world = World::default();
    world.cursors = cursors;
    world.histories = histories;
    let mut trails = Trails::default();
    for (log, version, body) in rows {
        let row = Row::read(log, &body).map_err(|bad| OpenFault::Broken(bad.to_string()))?;
        world.apply(row, version);
        trails.read(log, version, &body);
    }
    trails.begin(&world.cursors);
    Ok(Loaded { world, synced, trails })
}

fn read_stagings(db: &Database) -> Result<Vec<Staging>, redb::Error> {
    let txn = db.begin_read()?;
    let mut stagings = Vec::new();
    for row in txn.open_table(STAGED_AT)?.iter()? {
        let (code, value) = row?;
        let (version, parts, region_epoch, next) = value.value();
        if let Some(log) = Log::from_code(code.value()) {
            stagings.push(Staging { log, version, parts, region_epoch, next: next.to_vec() });
        }
    }
    Ok(stagings)
}

type StoredRow = (Log, u64, Vec<u8>);

type Histories = std::collections::BTreeMap<u8, u32>;

fn read(db: &Database) -> Result<(Vec<StoredRow>, Heads, Histories, bool), redb::Error> {
    let txn = db.begin_read()?;
    let mut rows = Vec::new();
    for row in txn.open_table(ROWS)?.iter()? {
        let (key, value) = row?;
        let (version, body) = value.value();
        if let Some(log) = Log::from_code(key.value().0) {
            rows.push((log, version, body.to_vec()));
        }
    }
    let mut cursors = Heads::default();
    let mut synced = false;
    for row in txn.open_table(CURSOR)?.iter()? {
        let (code, version) = row?;
        match Log::from_code(code.value()) {
            Some(log) => cursors.set(log, version.value()),
            None => synced |= code.value() == SYNCED,
        }
    }
    let mut histories = Histories::new();
    for row in txn.open_table(HISTORY)?.iter()? {
        let (code, region_epoch) = row?;
        histories.insert(code.value(), region_epoch.value());
    }
    Ok((rows, cursors, histories, synced))
}
