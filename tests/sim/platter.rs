//! A disk that forgets: what is not synced is lost sector by sector when the power goes, and it can be full or fail.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use redb::{Database, DatabaseError, StorageBackend};
use souk_edge::state::{Disk, Renewed};

use crate::dice::Dice;

/// What a disk writes at once.
const SECTOR_BYTES: u64 = 512;
/// Memory that redb may use for pages of a file as small as a world's.
const PAGE_CACHE_BYTES: usize = 1 << 20;

/// One file on a disk. It outlives the processes that have it open.
#[derive(Clone)]
pub(crate) struct Platter {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    /// What is there when the power comes back.
    durable: Vec<u8>,
    /// What a reader sees: the page cache over it.
    seen: Vec<u8>,
    /// Sectors in which the two may differ.
    dirty: BTreeSet<u64>,
    /// Which opening of the file may use it.
    opening: u64,
    full: bool,
    sync_fails: bool,
    /// After so many writes and syncs the power goes.
    fuse: Option<u64>,
    dice: Dice,
}

impl fmt::Debug for Platter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Platter").field("bytes", &self.inner.lock().seen.len()).finish_non_exhaustive()
    }
}

fn power_is_off() -> io::Error {
    io::Error::other("the power is off")
}

impl Platter {
    pub(crate) fn new(dice: Dice) -> Self {
        let (durable, seen, dirty) = (Vec::new(), Vec::new(), BTreeSet::new());
        let inner =
            Inner { durable, seen, dirty, opening: 0, full: false, sync_fails: false, fuse: None, dice };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    /// The power goes. Of what was not synced, each sector is there or not: all, none, or some.
    pub(crate) fn cut_power(&self) {
        let mut inner = self.inner.lock();
        let fate = inner.dice.below(4);
        let torn = inner.dice.roll();
        let Inner { durable, seen, dirty, .. } = &mut *inner;
        for sector in std::mem::take(dirty) {
            // By its place and not by the order of writing: the same world tears the same sectors.
            if fate == 0 || (fate > 1 && Dice::of(torn, sector).chance(500)) {
                let from = (sector * SECTOR_BYTES) as usize;
                let to = (from + SECTOR_BYTES as usize).min(seen.len()).min(durable.len());
                if from < to {
                    durable[from..to].copy_from_slice(&seen[from..to]);
                }
            }
        }
        *seen = durable.clone();
        inner.opening += 1;
        inner.fuse = None;
    }

    /// The process that has it open is gone; what it wrote is not.
    pub(crate) fn close_by_force(&self) {
        let mut inner = self.inner.lock();
        inner.opening += 1;
        inner.fuse = None;
    }

    /// After so many writes and syncs the power goes.
    pub(crate) fn light_fuse(&self, after: u64) {
        self.inner.lock().fuse = Some(after);
    }

    /// Whether the power went by a fuse.
    pub(crate) fn is_off(&self) -> bool {
        self.inner.lock().fuse == Some(0)
    }

    pub(crate) fn set_full(&self, full: bool) {
        self.inner.lock().full = full;
    }

    pub(crate) fn set_sync_fails(&self, fails: bool) {
        self.inner.lock().sync_fails = fails;
    }

    /// An image of it as a volume's snapshot takes it: what is synced.
    pub(crate) fn image(&self) -> Vec<u8> {
        self.inner.lock().durable.clone()
    }

    /// Another disk in its place.
    pub(crate) fn replace(&self, image: &[u8]) {
        let mut inner = self.inner.lock();
        (inner.durable, inner.seen) = (image.to_vec(), image.to_vec());
        inner.dirty.clear();
        inner.opening += 1;
        inner.fuse = None;
    }
}

impl Disk for Platter {
    fn open(&self) -> Result<Database, DatabaseError> {
        let opening = {
            let mut inner = self.inner.lock();
            if inner.fuse == Some(0) {
                return Err(redb::StorageError::from(power_is_off()).into());
            }
            inner.opening += 1;
            inner.opening
        };
        let file = File { platter: self.clone(), opening };
        Database::builder().set_cache_size(PAGE_CACHE_BYTES).create_with_backend(file)
    }

    fn view(&self) -> Result<Database, DatabaseError> {
        let inner = self.inner.lock();
        if inner.fuse == Some(0) {
            return Err(redb::StorageError::from(power_is_off()).into());
        }
        let copy = Copied { bytes: Mutex::new(inner.seen.clone()) };
        drop(inner);
        Database::builder().set_cache_size(PAGE_CACHE_BYTES).create_with_backend(copy)
    }

    fn renew(&self, _live: &Database) -> Result<Option<Renewed>, redb::Error> {
        Ok(None)
    }

    fn settle(&self) -> io::Result<()> {
        Ok(())
    }

    fn probe(&self) -> io::Result<()> {
        let inner = self.inner.lock();
        match () {
            () if inner.fuse == Some(0) => Err(power_is_off()),
            () if inner.full => Err(io::ErrorKind::StorageFull.into()),
            () if inner.sync_fails => Err(io::Error::other("the sync failed")),
            () => Ok(()),
        }
    }

    /// The free space of a file system says nothing of a quota: what is full is found out by writing.
    fn has_room(&self) -> bool {
        true
    }
}

/// One opening of the file.
#[derive(Debug)]
struct File {
    platter: Platter,
    opening: u64,
}

impl File {
    /// For reading: whoever has opened it last.
    fn lock(&self) -> io::Result<parking_lot::MutexGuard<'_, Inner>> {
        let inner = self.platter.inner.lock();
        if inner.opening == self.opening && inner.fuse != Some(0) { Ok(inner) } else { Err(power_is_off()) }
    }

    /// For changing, which burns the fuse.
    fn change(&self) -> io::Result<parking_lot::MutexGuard<'_, Inner>> {
        let mut inner = self.lock()?;
        if let Some(fuse) = &mut inner.fuse {
            *fuse -= 1;
            if *fuse == 0 {
                return Err(power_is_off());
            }
        }
        Ok(inner)
    }
}

impl StorageBackend for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.lock()?.seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let inner = self.lock()?;
        let from = offset as usize;
        out.copy_from_slice(inner.seen.get(from..from + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    /// Taken for durable at once, as by a file system whose journal orders it.
    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut inner = self.change()?;
        if inner.full && len > inner.seen.len() as u64 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        inner.seen.resize(len as usize, 0);
        inner.durable.resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut inner = self.change()?;
        if inner.sync_fails {
            return Err(io::Error::other("the sync failed"));
        }
        let Inner { durable, seen, dirty, .. } = &mut *inner;
        for sector in std::mem::take(dirty) {
            let from = (sector * SECTOR_BYTES) as usize;
            let to = (from + SECTOR_BYTES as usize).min(seen.len());
            if from < to {
                durable[from..to].copy_from_slice(&seen[from..to]);
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut inner = self.change()?;
        if inner.full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let from = offset as usize;
        let place = inner.seen.get_mut(from..from + data.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        place.copy_from_slice(data);
        let last = (offset + data.len().max(1) as u64 - 1) / SECTOR_BYTES;
        inner.dirty.extend(offset / SECTOR_BYTES..=last);
        Ok(())
    }
}

/// A copy that is written to and thrown away: what a node looks at while its disk takes nothing.
#[derive(Debug)]
struct Copied {
    bytes: Mutex<Vec<u8>>,
}

impl StorageBackend for Copied {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.lock().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let bytes = self.bytes.lock();
        let from = offset as usize;
        out.copy_from_slice(bytes.get(from..from + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.bytes.lock().resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let from = offset as usize;
        self.bytes.lock()[from..from + data.len()].copy_from_slice(data);
        Ok(())
    }
}
