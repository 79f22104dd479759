//! The tables of `state.redb`: what must not be lost.
//!
//! `outbox(seq -> operation)`, `cart((site, id) -> row)`, `lease((site, sku) -> row)` and `meta(name -> number)` change together, in one
//! transaction. The file is kept apart from everything that can be fetched again, and small: redb reads all of it
//! after a crash. Knows tables and bytes; what an operation means is the caller's.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Debug;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use redb::{
    Database, DatabaseError, ReadableDatabase as _, ReadableTable as _, Table, TableDefinition,
    WriteTransaction,
};
use souk_commerce::call::{Granted, Want};
use souk_commerce::id::{CartId, CartTag, Epoch, SiteId};
use souk_commerce::op::Operation;
use souk_link::Fold;
use souk_link::planted::{Bug, planted};

use super::carts::{CartKey, CartRow, Hold, Position};
use super::leases::{LeaseRow, Steady};
use super::view::View;

pub(super) const OUTBOX: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("outbox");
/// Carts in the order of site and number.
pub(super) const CART: TableDefinition<'_, (&str, u128), &[u8]> = TableDefinition::new("cart");
/// Units that may be promised here, in the order of site and sku.
pub(super) const LEASE: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("lease");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

const NODE: &str = "node";
const EPOCH: &str = "epoch";
const NEXT_SEQ: &str = "next_seq";
const ACKED: &str = "acked";
/// Counts commits: after a commit whose outcome is not known, the number says whether it happened.
const COMMITS: &str = "commits";
const BYTES: &str = "outbox_bytes";
const KEPT_BYTES: &str = "kept_bytes";
/// What the operations up to [`ACKED`] fold to. Absent in a file of an older version, whose [`ANCHOR`] that is.
const ACKED_FOLD: &str = "acked_fold";
const STAMP: &str = "stamp";
/// No question about lent stock of an earlier start has a higher number.
const STOCK_TURN: &str = "stock_turn";
/// At each start the numbers go on so far beyond what was written down last, on the disk before the first question: one a second
/// for twelve days may have gone unanswered, and one of them may be on its way still.
const TURNS_PER_START: u64 = 1 << 20;
/// The last operation that may be about a cart that was erased, and one more; 0: none is. When it is acknowledged, the file is
/// written anew.
const RENEW_AFTER: &str = "renew_after";
/// What the operations before the first that is kept fold to (`souk_link::Fold`). Absent in a file whose last trim was an older
/// version's.
const ANCHOR: &str = "anchor";

/// Operations that are forgotten in one step because they are old. As many as a transaction writes.
const FORGOTTEN_MAX: u64 = 1_024;

/// Carts that were erased, as the region tells of them.
pub type Erased = BTreeMap<SiteId, HashSet<CartTag>>;

/// How much is kept of what the region has acknowledged.
#[derive(Debug, Clone, Copy)]
pub struct Keeping {
    pub bytes_max: u64,
    /// An operation that was accepted before this, by the wall clock, is too old. A clock that is wrong costs a restored
    /// region operations, or the disk room, and nothing else.
    pub since_ms: u64,
}

impl Keeping {
    pub const NOTHING: Self = Self { bytes_max: 0, since_ms: 0 };

    const fn is_none(&self) -> bool {
        self.bytes_max == 0
    }

    fn is_too_old(&self, op: &[u8]) -> bool {
        Operation::from_bytes(op).is_ok_and(|op| op.at_ms() < self.since_ms)
    }
}

/// Free space below which writes are refused: room for a transaction of 1,024 operations and for redb to repair.
pub const DISK_FREE_BYTES_MIN: u64 = 64 << 20;
/// What a probe writes to learn whether a disk that was full has room again.
const PROBE_BYTES: usize = 1 << 20;

/// The numbers beside the rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Facts {
    /// None before the first enrolment: the node may not write yet.
    pub epoch: Option<Epoch>,
    pub next_seq: u64,
    /// The oldest operation kept; `next_seq` if there is none.
    pub first: u64,
    pub acked: u64,
    /// What the operations up to `acked` fold to, if it was noted.
    pub acked_fold: Option<Fold>,
    /// What the operations before `first` fold to, if it was noted.
    pub anchor: Option<Fold>,
    /// Of operations that the region has not acknowledged.
    pub outbox_bytes: u64,
    /// Of those that it has, kept for a region that comes back from a backup.
    pub kept_bytes: u64,
    /// The last question about lent stock whose answer was written down.
    pub stock_turn: u64,
    /// When this operation is acknowledged, bytes of erased carts are left in the file, and it is written anew.
    pub(super) renew_after: Option<u64>,
    pub(super) commits: u64,
    /// Last stamp of the hybrid logical clock.
    pub(super) stamp: u64,
}

impl Facts {
    pub fn last(&self) -> u64 {
        self.next_seq.saturating_sub(1)
    }

    /// Whether operations of an erased cart may still be in the file.
    pub fn is_erasing(&self) -> bool {
        self.renew_after.is_some()
    }

    /// Operations that the region has not acknowledged.
    pub fn unacked(&self) -> u64 {
        self.last().saturating_sub(self.acked)
    }

    /// Operations that it has, and that are kept all the same.
    pub fn kept(&self) -> u64 {
        (self.acked + 1).saturating_sub(self.first)
    }
}

pub(super) fn cart_key(key: &CartKey) -> (&str, u128) {
    (key.site.as_str(), u128::from_be_bytes(key.cart.0))
}

pub(super) fn cart_id(number: u128) -> CartId {
    CartId(number.to_be_bytes())
}

/// Where the file lives. A trait, so that tests can put a disk under it that fails on demand.
pub trait Disk: Debug + Send + Sync + 'static {
    fn open(&self) -> Result<Database, DatabaseError>;
    /// The file as it is, without writing to it: what is written stays in memory.
    fn view(&self) -> Result<Database, DatabaseError>;
    /// Whether there is room to write: an error says why not.
    fn probe(&self) -> io::Result<()>;
    /// A cheap look before each commit.
    fn has_room(&self) -> bool;
    /// The same rows in a new file, which has the old one's name when this returns. None: this disk keeps nothing of what is
    /// deleted.
    fn renew(&self, live: &Database) -> Result<Option<Renewed>, redb::Error>;
    /// Makes it last that the new file has the name: until then a power failure may give it back to the old one.
    fn settle(&self) -> io::Result<()>;
}

#[derive(Debug)]
pub(super) struct FileDisk {
    file: PathBuf,
    dir: PathBuf,
}

/// Memory that redb may use for pages of this small file.
const PAGE_CACHE_BYTES: usize = 32 << 20;

impl FileDisk {
    pub(super) fn new(dir: &Path) -> Self {
        Self::of(dir, "state.redb")
    }

    pub(super) fn of(dir: &Path, name: &str) -> Self {
        Self { file: dir.join(name), dir: dir.to_owned() }
    }

    /// The new file, before it takes the old one's place.
    fn unfinished(&self) -> PathBuf {
        self.dir.join("state.redb.new")
    }
}

impl Disk for FileDisk {
    fn open(&self) -> Result<Database, DatabaseError> {
        // What a crash has left half-written, of carts too.
        let _absent = std::fs::remove_file(self.unfinished());
        Database::builder().set_cache_size(PAGE_CACHE_BYTES).create(&self.file)
    }

    fn view(&self) -> Result<Database, DatabaseError> {
        let file = File::open(&self.file).map_err(redb::StorageError::from)?;
        // Held as long as the view is: nobody else may write under it.
        file.try_lock().map_err(|_| DatabaseError::DatabaseAlreadyOpen)?;
        Database::builder().set_cache_size(PAGE_CACHE_BYTES).create_with_backend(View::of(file)?)
    }

    fn probe(&self) -> io::Result<()> {
        if !self.has_room() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let path = self.dir.join("state.probe");
        let written = File::create(&path).and_then(|mut file| {
            file.write_all(&vec![0; PROBE_BYTES])?;
            file.sync_all()
        });
        let removed = std::fs::remove_file(&path);
        written.and(removed)
    }

    fn renew(&self, live: &Database) -> Result<Option<Renewed>, redb::Error> {
        let io = redb::Error::Io;
        let path = self.unfinished();
        let bytes = std::fs::metadata(&self.file).map_err(io)?.len();
        // Twice the file, and what must be free beside it: shoppers' writes must not be refused for it.
        let has_room = rustix::fs::statvfs(&self.dir).is_ok_and(|fs| {
            fs.f_bavail.saturating_mul(fs.f_frsize) >= bytes.saturating_add(DISK_FREE_BYTES_MIN)
        });
        if !has_room || !self.has_room() {
            return Err(io(io::ErrorKind::StorageFull.into()));
        }
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
        let renewed = (|| {
            let old = File::options().write(true).open(&self.file).map_err(io)?;
            let db = Database::builder().set_cache_size(PAGE_CACHE_BYTES).create(&path)?;
            copy(live, &db)?;
            std::fs::rename(&path, &self.file).map_err(io)?;
            Ok(Renewed { db, old })
        })();
        if renewed.is_err() {
            let _absent = std::fs::remove_file(&path);
        }
        renewed.map(Some)
    }

    fn settle(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    fn has_room(&self) -> bool {
        // On a file system too small for the floor, a twentieth must do. Not knowing is no reason to refuse.
        rustix::fs::statvfs(&self.dir).map_or(true, |fs| {
            let floor = DISK_FREE_BYTES_MIN.min(fs.f_blocks.saturating_mul(fs.f_frsize) / 20);
            fs.f_bavail.saturating_mul(fs.f_frsize) >= floor
        })
    }
}

/// A new file, and the one whose place it has taken: still open, and without a name.
#[derive(Debug)]
pub struct Renewed {
    pub(super) db: Database,
    pub(super) old: File,
}

/// Copies what there is; what was deleted stays behind.
fn copy(live: &Database, fresh: &Database) -> Result<(), redb::Error> {
    let (from, to) = (live.begin_read()?, fresh.begin_write()?);
    {
        let mut table = to.open_table(OUTBOX)?;
        for row in from.open_table(OUTBOX)?.iter()? {
            let (key, value) = row?;
            table.insert(key.value(), value.value())?;
        }
        let mut table = to.open_table(CART)?;
        for row in from.open_table(CART)?.iter()? {
            let (key, value) = row?;
            table.insert(key.value(), value.value())?;
        }
        let mut table = to.open_table(LEASE)?;
        for row in from.open_table(LEASE)?.iter()? {
            let (key, value) = row?;
            table.insert(key.value(), value.value())?;
        }
        let mut table = to.open_table(META)?;
        for row in from.open_table(META)?.iter()? {
            let (key, value) = row?;
            table.insert(key.value(), value.value())?;
        }
    }
    to.commit()?;
    Ok(())
}

/// Overwrites a file that has no name any more, before its blocks are given back. A file system or a disk that writes elsewhere
/// than it is told keeps the bytes; nobody reaches them through it.
pub(super) fn wipe(file: &mut File) -> io::Result<()> {
    let mut left = file.metadata()?.len();
    let zeros = vec![0; PROBE_BYTES];
    while left > 0 {
        let part = left.min(PROBE_BYTES as u64);
        file.write_all(&zeros[..usize::try_from(part).unwrap_or(PROBE_BYTES)])?;
        left -= part;
    }
    file.sync_all()
}

fn lease_bytes(row: &LeaseRow) -> Vec<u8> {
    minicbor::to_vec(row).expect("writing into a Vec cannot fail, and no field of a lease refuses")
}

/// Makes the tables of a new file. Returns the node that the file belongs to.
pub(super) fn init(db: &Database, node: u32) -> Result<u32, redb::Error> {
    let txn = db.begin_write()?;
    let owner = {
        txn.open_table(CART)?;
        txn.open_table(OUTBOX)?;
        txn.open_table(LEASE)?;
        let mut meta = txn.open_table(META)?;
        let owner = meta.get(NODE)?.map(|owner| owner.value());
        if owner.is_none() {
            meta.insert(NODE, u64::from(node))?;
            meta.insert(NEXT_SEQ, 1)?;
        }
        let turn = meta.get(STOCK_TURN)?.map_or(0, |turn| turn.value());
        meta.insert(STOCK_TURN, turn.saturating_add(TURNS_PER_START))?;
        owner.map_or(node, |owner| u32::try_from(owner).unwrap_or(0))
    };
    txn.commit()?;
    Ok(owner)
}

/// Reads the numbers. Writes nothing: it is also how a full disk's file is looked at.
pub(super) fn load(db: &Database) -> Result<Facts, redb::Error> {
    let txn = db.begin_read()?;
    let meta = txn.open_table(META)?;
    let of = |name: &str| Ok::<_, redb::Error>(meta.get(name)?.map_or(0, |value| value.value()));
    let fold_of =
        |name: &str| Ok::<_, redb::Error>(meta.get(name)?.map(|number| Fold::from_number(number.value())));
    let next_seq = of(NEXT_SEQ)?;
    let first = txn.open_table(OUTBOX)?.first()?.map_or(next_seq, |(seq, _)| seq.value());
    Ok(Facts {
        epoch: u32::try_from(of(EPOCH)?).ok().filter(|&e| e > 0).map(Epoch),
        next_seq,
        first,
        acked: of(ACKED)?,
        acked_fold: fold_of(ACKED_FOLD)?.or(if first > of(ACKED)? { fold_of(ANCHOR)? } else { None }),
        anchor: fold_of(ANCHOR)?,
        outbox_bytes: of(BYTES)?,
        kept_bytes: of(KEPT_BYTES)?,
        stock_turn: of(STOCK_TURN)?,
        renew_after: of(RENEW_AFTER)?.checked_sub(1),
        commits: of(COMMITS)?,
        stamp: of(STAMP)?,
    })
}

/// One transaction under construction, with the numbers as they will be after it. Its tables are opened once, not for
/// each change of a batch.
pub(super) struct Draft<'a> {
    outbox: Table<'a, u64, &'static [u8]>,
    carts: Table<'a, (&'static str, u128), &'static [u8]>,
    leases: Table<'a, (&'static str, &'static str), &'static [u8]>,
    meta: Table<'a, &'static str, u64>,
    pub(super) facts: Facts,
}

impl<'a> Draft<'a> {
    pub(super) fn new(txn: &'a WriteTransaction, before: Facts) -> Result<Self, redb::Error> {
        Ok(Self {
            outbox: txn.open_table(OUTBOX)?,
            carts: txn.open_table(CART)?,
            leases: txn.open_table(LEASE)?,
            meta: txn.open_table(META)?,
            facts: Facts { commits: before.commits + 1, ..before },
        })
    }

    /// Appends the operations of one change and stores the cart that they lead to.
    pub(super) fn write(
        &mut self,
        key: &CartKey,
        row: &mut CartRow,
        ops: &[Vec<u8>],
    ) -> Result<(), redb::Error> {
        if let Some(epoch) = self.facts.epoch.filter(|_| !ops.is_empty()) {
            for op in ops {
                self.outbox.insert(self.facts.next_seq, op.as_slice())?;
                self.facts.next_seq += 1;
                self.facts.outbox_bytes += op.len() as u64;
            }
            row.last = Some(Position { epoch, seq: self.facts.last() });
        }
        self.carts.insert(cart_key(key), row.to_bytes().as_slice())?;
        Ok(())
    }

    /// Takes units for a cart out of what is lent, if there are so many: the operation that says so, and what the cart has
    /// from now on. All in the transaction that is being made.
    pub(super) fn promise(
        &mut self,
        key: &CartKey,
        want: &Want,
        at_ms: u64,
        steady: &Steady,
    ) -> Result<Option<(Vec<u8>, Hold)>, redb::Error> {
        let place = (key.site.as_str(), want.sku.as_str());
        let row = self.leases.get(place)?.map(|row| minicbor::decode::<LeaseRow>(row.value()));
        // One that cannot be read promises nothing, and is written anew with the next answer.
        let Some(Ok(mut row)) = row else { return Ok(None) };
        if want.units == 0 || !row.take(want.units, steady.now_ms(), steady.boot()) {
            return Ok(None);
        }
        self.leases.insert(place, lease_bytes(&row).as_slice())?;
        let Want { hold, sku, units } = want.clone();
        let kept = Hold { id: hold, sku: sku.clone(), units, until_ms: at_ms.saturating_add(row.hold_ms) };
        let (site, cart, grant) = (key.site.clone(), key.cart, row.grant);
        let op = Operation::Reserve { site, cart, at_ms, hold, sku, units, grant };
        Ok(Some((op.to_bytes(), kept)))
    }

    /// What the region has answered is what there is: a lease that it does not name is over.
    pub(super) fn set_leases(
        &mut self,
        turn: u64,
        asked_ms: u64,
        granted: &[Granted],
        steady: &Steady,
    ) -> Result<(), redb::Error> {
        let mut rows = Vec::with_capacity(granted.len());
        for told in granted {
            let before = self.leases.get((told.site.as_str(), told.sku.as_str()))?;
            let before = before.and_then(|row| minicbor::decode::<LeaseRow>(row.value()).ok());
            rows.push(LeaseRow::told(told, before.as_ref(), asked_ms, steady));
        }
        self.leases.retain(|_, _| false)?;
        for (told, row) in granted.iter().zip(&rows) {
            self.leases.insert((told.site.as_str(), told.sku.as_str()), lease_bytes(row).as_slice())?;
        }
        self.facts.stock_turn = self.facts.stock_turn.max(turn);
        Ok(())
    }

    /// Forgets carts.
    pub(super) fn forget(&mut self, carts: &[CartKey]) -> Result<(), redb::Error> {
        for key in carts {
            self.carts.remove(cart_key(key))?;
        }
        Ok(())
    }

    /// Notes what the region has acknowledged, and what it folds to. Of what it has, as much is kept as `keeping` says.
    pub(super) fn trim(&mut self, to: u64, fold: Option<Fold>, keeping: &Keeping) -> Result<(), redb::Error> {
        if to <= self.facts.acked || to > self.facts.last() {
            return Ok(());
        }
        // Without a fold, what is kept could not be told from what another disk has under the same numbers.
        if keeping.is_none() || fold.is_none() || self.facts.anchor.is_none() {
            let (acked, mut freed) = (self.facts.acked, 0);
            self.outbox.retain_in(..=to, |seq, op| {
                freed += if seq > acked { op.len() as u64 } else { 0 };
                false
            })?;
            let outbox_bytes = self.facts.outbox_bytes.saturating_sub(freed);
            self.facts = Facts {
                acked: to,
                acked_fold: fold,
                anchor: fold,
                outbox_bytes,
                kept_bytes: 0,
                ..self.facts
            };
            return Ok(());
        }
        let mut moved = 0;
        for entry in self.outbox.range(self.facts.acked + 1..=to)? {
            moved += entry?.1.value().len() as u64;
        }
        self.facts.outbox_bytes = self.facts.outbox_bytes.saturating_sub(moved);
        self.facts.kept_bytes += moved;
        (self.facts.acked, self.facts.acked_fold) = (to, fold);
        self.forget_kept(keeping)?;
        Ok(())
    }

    /// Forgets the oldest of what was acknowledged, as long as there are more bytes than are to be kept; and some that are too
    /// old. Returns how many.
    pub(super) fn forget_kept(&mut self, keeping: &Keeping) -> Result<u64, redb::Error> {
        let Some(mut anchor) = self.facts.anchor else { return Ok(0) };
        let (mut forgotten, mut upto, mut kept_bytes) = (0, 0, self.facts.kept_bytes);
        for entry in self.outbox.range(..=self.facts.acked)? {
            let (seq, op) = entry?;
            let is_too_old = || forgotten < FORGOTTEN_MAX && keeping.is_too_old(op.value());
            if kept_bytes <= keeping.bytes_max && !is_too_old() {
                break;
            }
            anchor = anchor.with(op.value());
            kept_bytes = kept_bytes.saturating_sub(op.value().len() as u64);
            (upto, forgotten) = (seq.value(), forgotten + 1);
        }
        if forgotten > 0 {
            self.outbox.retain_in(..=upto, |_, _| false)?;
            (self.facts.anchor, self.facts.kept_bytes) = (Some(anchor), kept_bytes);
        }
        Ok(forgotten)
    }

    /// Forgets what was acknowledged, up to the last operation about one of these carts; and notes the last one about them that
    /// is not acknowledged yet. What is kept beyond stays, for a region that comes back from a backup.
    pub(super) fn forget_about(&mut self, carts: &Erased) -> Result<(), redb::Error> {
        let (mut kept, mut unacked) = (None, None);
        for entry in self.outbox.iter()? {
            let (seq, op) = entry?;
            // One that cannot be read may be about any.
            let is_about = Operation::from_bytes(op.value()).map_or(true, |op| {
                let (site, cart) = op.subject();
                carts.get(site).is_some_and(|tags| tags.contains(&cart.tag(site)))
            });
            if is_about {
                let last = if seq.value() <= self.facts.acked { &mut kept } else { &mut unacked };
                *last = Some(seq.value());
            }
        }
        if let Some(upto) = kept {
            self.forget_kept_to(upto)?;
        }
        self.facts.renew_after = self.facts.renew_after.max(unacked);
        Ok(())
    }

    /// Forgets what was acknowledged up to here.
    pub(super) fn forget_kept_to(&mut self, upto: u64) -> Result<(), redb::Error> {
        let upto = upto.min(self.facts.acked);
        let mut anchor = self.facts.anchor;
        let mut kept_bytes = self.facts.kept_bytes;
        for entry in self.outbox.range(..=upto)? {
            let (_, op) = entry?;
            anchor = anchor.map(|anchor| anchor.with(op.value()));
            kept_bytes = kept_bytes.saturating_sub(op.value().len() as u64);
        }
        self.outbox.retain_in(..=upto, |_, _| false)?;
        (self.facts.anchor, self.facts.kept_bytes) = (anchor, kept_bytes);
        Ok(())
    }

    /// The region was restored, and has this epoch up to here only.
    pub(super) fn go_back(&mut self, to: u64, fold: Option<Fold>) -> Result<(), redb::Error> {
        if to >= self.facts.acked {
            return Ok(());
        }
        let all = self.facts.outbox_bytes + self.facts.kept_bytes;
        let outbox_bytes = self.bytes_from(to + 1)?;
        let kept_bytes = all.saturating_sub(outbox_bytes);
        self.facts = Facts { acked: to, acked_fold: fold, outbox_bytes, kept_bytes, ..self.facts };
        Ok(())
    }

    fn bytes_from(&self, seq: u64) -> Result<u64, redb::Error> {
        let mut bytes = 0;
        for entry in self.outbox.range(seq..)? {
            bytes += entry?.1.value().len() as u64;
        }
        Ok(bytes)
    }

    /// Begins a new epoch: what is kept is numbered 1, 2, 3… again, with its content unchanged, and the
    /// carts are told where their last operation is now. What was acknowledged is among it: the region that begins an epoch may
    /// have been restored, and an operation that it has already does nothing. See [`super::State::begin_epoch`].
    pub(super) fn renumber(&mut self, epoch: Epoch) -> Result<(), redb::Error> {
        if planted(Bug::EpochNotRenumbered) {
            (self.facts.epoch, self.facts.anchor) = (Some(epoch), Some(Fold::EMPTY));
            return Ok(());
        }
        let Self { outbox, carts, .. } = self;
        let mut kept = Vec::new();
        for entry in outbox.iter()? {
            let (_, op) = entry?;
            kept.push(op.value().to_vec());
        }
        outbox.retain(|_, _| false)?;
        let mut bytes = 0;
        for (seq, op) in (1_u64..).zip(&kept) {
            outbox.insert(seq, op.as_slice())?;
            bytes += op.len() as u64;
            let Ok(op) = Operation::from_bytes(op) else { continue };
            let (site, cart) = op.subject();
            let key = CartKey { site: site.clone(), cart };
            let row = carts.get(cart_key(&key))?.map(|row| minicbor::decode::<CartRow>(row.value()));
            if let Some(Ok(mut row)) = row {
                row.last = Some(Position { epoch, seq });
                carts.insert(cart_key(&key), row.to_bytes().as_slice())?;
            }
        }
        self.facts = Facts {
            epoch: Some(epoch),
            next_seq: kept.len() as u64 + 1,
            acked: 0,
            acked_fold: Some(Fold::EMPTY),
            anchor: Some(Fold::EMPTY),
            outbox_bytes: bytes,
            kept_bytes: 0,
            // What was acknowledged in the old epoch is not among them.
            renew_after: self.facts.renew_after.map(|_| kept.len() as u64),
            ..self.facts
        };
        Ok(())
    }

    /// Writes the numbers: the last thing before the commit.
    pub(super) fn finish(mut self) -> Result<Facts, redb::Error> {
        self.facts.first = self.outbox.first()?.map_or(self.facts.next_seq, |(seq, _)| seq.value());
        let Facts { epoch, next_seq, acked, acked_fold, anchor, outbox_bytes, kept_bytes, .. } = self.facts;
        let Facts { stock_turn, renew_after, commits, stamp, .. } = self.facts;
        let epoch = epoch.map_or(0, |e| e.0.into());
        for (name, value) in [
            (EPOCH, epoch),
            (NEXT_SEQ, next_seq),
            (ACKED, acked),
            (BYTES, outbox_bytes),
            (KEPT_BYTES, kept_bytes),
            (COMMITS, commits),
            (STAMP, stamp),
            (STOCK_TURN, stock_turn),
            (RENEW_AFTER, renew_after.map_or(0, |seq| seq.saturating_add(1))),
        ] {
            self.meta.insert(name, value)?;
        }
        for (name, fold) in [(ANCHOR, anchor), (ACKED_FOLD, acked_fold)] {
            match fold {
                Some(fold) => self.meta.insert(name, fold.number())?,
                None => self.meta.remove(name)?,
            };
        }
        Ok(self.facts)
    }
}
