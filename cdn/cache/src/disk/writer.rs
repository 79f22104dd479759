//! The thread that owns the folder: it reads it at the start, writes what comes, and deletes the oldest for it.
//!
//! Whatever goes wrong here costs copies of what an upstream has, and never a request: a full file system makes it
//! delete more, any other error ends the tier.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::MutexGuard;

use super::index::Held;
use super::log::{Log, Record};
use super::record::{self, Header, KeyRecord, Kind, META_BYTES_MAX};
use super::segment::{self, End, Place, Raw};
use super::state::{Counters, Shared, Task};
use super::{Notice, OBJECT_SHARE, Phase};
use crate::entry::{Entry, StoredBody};
use crate::key::Key;

/// How often a folder is asked for that another process has: a node that drains while its successor starts.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// Keys that are put into the index or taken out of it at once, while whoever looks something up waits.
const BATCH: usize = 256;
/// Files at most: those of a full disk, and many short ones of processes that were restarted.
const FILES_MAX: usize = 256;
/// One object per so many bytes of the disk, so that the index stays below three per cent of it.
const BYTES_PER_OBJECT: u64 = 4 * 1024;
/// Bytes after which a sync is due in any case: a removal waits for what was written before it, which is no more than this.
const UNSYNCED_MAX: u64 = 4 * 1024 * 1024;
/// Of a segment that goes, the half that is in use is kept at most: each deletion frees something.
const KEPT_DIVISOR: u64 = 2;

pub(super) fn run(shared: &Arc<Shared>, lock: &File) {
    let _last = Last(shared);
    if !own_folder(shared, lock) {
        return;
    }
    let log = Log::new(shared.dir.clone(), shared.limits.bytes_max);
    let mut writer = Writer { shared, log, told_full: false };
    match writer.take_over() {
        Ok(()) => writer.announce(),
        Err(error) => shared.turn_off("read the folder", error),
    }
    while let Some(tasks) = shared.next_tasks() {
        if let Err(error) = writer.work(tasks) {
            shared.turn_off("write", error);
        }
        writer.gauge();
    }
    if shared.state.lock().phase == Phase::Off {
        // What was removed must not come back with the next start: the disk may fail at that, too.
        if empty(&shared.dir).is_err() {
            (shared.tell)(Notice::Left);
        }
    } else {
        // Without the last list the next start reads the records themselves.
        let _ = writer.log.seal();
    }
}

/// Whoever waits for a removal is let go when there is nobody left to write it.
struct Last<'a>(&'a Shared);

impl Drop for Last<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.turn_off("write", io::Error::other("its thread panicked"));
            // Removals that waited are obeyed so, too.
            let _ = empty(&self.0.dir);
        }
        self.0.durable.send_replace(u64::MAX);
    }
}

/// Waits until the folder is this process's own. False if that is not wanted any more.
fn own_folder(shared: &Shared, lock: &File) -> bool {
    loop {
        match lock.try_lock() {
            Ok(()) => return true,
            Err(TryLockError::WouldBlock) => {
                let was = shared.state.lock().phase;
                if was == Phase::Opening {
                    shared.set_phase(Phase::Busy);
                    (shared.tell)(Notice::Busy);
                }
            }
            Err(TryLockError::Error(error)) => {
                shared.turn_off("lock the folder", error);
                return false;
            }
        }
        let mut state = shared.state.lock();
        if state.is_closed {
            return false;
        }
        shared.to_write.wait_for(&mut state, ASK_AGAIN);
    }
}

/// Deletes every segment of a folder.
fn empty(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_str().and_then(segment::number_of).is_some() {
            std::fs::remove_file(entry.path())?;
        }
    }
    sync_folder(dir)
}

/// That a file is gone is known to the folder, and outlives a power cut when that is on the disk.
fn sync_folder(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Whether a file system has no room: what we hold of it is ours to give back.
fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

struct Writer<'a> {
    shared: &'a Shared,
    log: Log,
    told_full: bool,
}

impl Writer<'_> {
    /// Reads what an earlier process left.
    fn take_over(&mut self) -> io::Result<()> {
        let dir = &self.shared.dir;
        let mut numbers = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            numbers.extend(entry?.file_name().to_str().and_then(segment::number_of));
        }
        numbers.sort_unstable();
        for number in numbers {
            let path = segment::path_of(dir, number);
            let file = Arc::new(File::open(&path)?);
            let Some(scanned) = segment::scan(&file, number)? else {
                // Torn before its first record.
                std::fs::remove_file(&path)?;
                self.log.skip(number);
                continue;
            };
            if scanned.end == End::Damaged {
                // A removal may have stood in what cannot be read: nothing that is older is believed.
                (self.shared.tell)(Notice::Damaged { segment: number });
                self.delete_all()?;
                std::fs::remove_file(&path)?;
                self.log.skip(number);
                continue;
            }
            let mut prints = Vec::with_capacity(scanned.records.len());
            let mut state = self.shared.state.lock();
            state.files.insert(number, Arc::clone(&file));
            for (n, found) in scanned.records.into_iter().enumerate() {
                if n % BATCH == 0 {
                    // Requests look in here already, if the folder was another process's until now.
                    MutexGuard::bump(&mut state);
                }
                let print = self.shared.print(&found.key);
                if found.is_removal {
                    state.index.remove(print);
                } else {
                    state.index.put(print, found.place, found.variant);
                }
                prints.push(print);
            }
            drop(state);
            self.log.adopt(number, file, scanned.bytes, prints);
        }
        // The setting may be smaller than it was.
        while self.log.bytes() > self.shared.limits.bytes_max
            && let Some(oldest) = self.log.oldest()
        {
            self.evict(oldest, false)?;
        }
        Ok(())
    }

    fn announce(&self) {
        self.gauge();
        let objects = self.shared.state.lock().index.objects();
        (self.shared.tell)(Notice::Opened { objects, bytes: self.log.bytes() });
        self.shared.set_phase(Phase::On);
    }

    fn gauge(&self) {
        let counters = &self.shared.counters;
        counters.bytes.store(self.log.bytes(), Ordering::Relaxed);
        counters.segments.store(self.log.segments() as u64, Ordering::Relaxed);
    }

    fn work(&mut self, tasks: Vec<Task>) -> io::Result<()> {
        let mut removals = Vec::new();
        for task in tasks {
            match task {
                Task::Store { print, key, entry, .. } => {
                    let written = self.store(print, &key, &entry);
                    self.shared.state.lock().written(written.as_ref().ok().copied().flatten());
                    written?;
                }
                Task::Keep { print, raw, variant } => {
                    let written = self.keep(print, &raw, variant);
                    self.shared.state.lock().written(written.as_ref().ok().copied().flatten());
                    written?;
                }
                Task::Remove { print, key } => removals.push((print, key)),
                Task::Wipe { removals } => {
                    self.delete_all()?;
                    self.shared.durable.send_modify(|durable| *durable += removals);
                }
            }
        }
        if removals.is_empty() { Ok(()) } else { self.remove(removals) }
    }

    fn store(&mut self, print: u64, key: &Key, entry: &Entry) -> io::Result<Option<(Place, u32)>> {
        let StoredBody::Whole(chunks) = &entry.body else { return Ok(None) };
        let (meta, variant) = (record::meta_of(key, entry), record::variant_of(entry));
        let header = Header::of(Kind::Response, &meta, &chunks.list);
        let key = KeyRecord::of(key);
        let record = Record { header, meta: &meta, body: &chunks.list, key, print, variant };
        Ok(self.write(&record)?.map(|place| (place, variant)))
    }

    /// Writes a record once more that was read from a segment that goes.
    fn keep(&mut self, print: u64, raw: &Raw, variant: u32) -> io::Result<Option<(Place, u32)>> {
        let Ok(key) = record::key_of(&raw.meta) else { return Ok(None) };
        let body = [raw.body.clone()];
        let key = KeyRecord::of(&key);
        let record = Record { header: raw.header, meta: &raw.meta, body: &body, key, print, variant };
        Ok(self.write(&record)?.map(|place| (place, variant)))
    }

    /// Writes the removals of these keys, and waits for the disk to have them.
    fn remove(&mut self, removals: Vec<(u64, Key)>) -> io::Result<()> {
        let asked = removals.len() as u64;
        {
            // Those that were asked for before the folder was read are known by now.
            let mut state = self.shared.state.lock();
            for (print, _) in &removals {
                state.index.remove(*print);
            }
        }
        for (print, key) in removals {
            // An empty folder gives nothing back.
            if self.log.oldest().is_some() {
                let meta = record::removal_of(&key);
                let header = Header::of(Kind::Removal, &meta, &[]);
                let key = KeyRecord::of(&key);
                self.write(&Record { header, meta: &meta, body: &[], key, print, variant: 0 })?;
            }
        }
        self.sync()?;
        self.shared.durable.send_modify(|durable| *durable += asked);
        Ok(())
    }

    /// Appends a record, and deletes the oldest segments for it. None where it is too large, or where a full file system
    /// took nothing after everything of ours was deleted.
    fn write(&mut self, record: &Record<'_>) -> io::Result<Option<Place>> {
        let limits = &self.shared.limits;
        let bytes = record.header.record_bytes();
        if bytes > limits.bytes_max / OBJECT_SHARE || record.meta.len() > META_BYTES_MAX {
            return Ok(None);
        }
        loop {
            while !self.has_room_for(record) {
                let Some(oldest) = self.log.oldest() else { return Ok(None) };
                self.evict(oldest, true)?;
            }
            match self.append(record) {
                Ok(place) => {
                    Counters::add(&self.shared.counters.written, 1);
                    Counters::add(&self.shared.counters.written_bytes, bytes);
                    let kept = self.log.unsynced() < UNSYNCED_MAX || self.sync()?;
                    self.gauge();
                    return Ok(kept.then_some(place));
                }
                Err(error) if is_full(&error) => {
                    Counters::add(&self.shared.counters.errors, 1);
                    if !std::mem::replace(&mut self.told_full, true) {
                        (self.shared.tell)(Notice::Full);
                    }
                    let Some(oldest) = self.log.oldest() else { return Ok(None) };
                    self.evict(oldest, false)?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// False where a file system turned out to be full only now, and everything of ours was deleted.
    fn sync(&mut self) -> io::Result<bool> {
        match self.log.sync() {
            Ok(()) => Ok(true),
            Err(error) if is_full(&error) => {
                Counters::add(&self.shared.counters.errors, 1);
                self.delete_all()?;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn has_room_for(&self, record: &Record<'_>) -> bool {
        let objects_max = self.shared.limits.bytes_max / BYTES_PER_OBJECT;
        self.log.has_room_for(record)
            && self.log.segments() < FILES_MAX
            && self.shared.state.lock().index.objects() < objects_max
    }

    fn append(&mut self, record: &Record<'_>) -> io::Result<Place> {
        let (number, file, is_new) = self.log.active()?;
        if is_new {
            self.shared.state.lock().files.insert(number, file);
        }
        self.log.append(record)
    }

    /// Deletes a segment. What was read of it since it was written is put in front of the queue once more, if `keeps`.
    fn evict(&mut self, number: u64, keeps: bool) -> io::Result<()> {
        let Some(segment) = self.log.get(number) else { return Ok(()) };
        let (mut prints, file) = (segment.prints.clone(), Arc::clone(&segment.file));
        prints.sort_unstable();
        prints.dedup();
        let mut left = if keeps { self.log.segment_bytes() / KEPT_DIVISOR } else { 0 };
        for batch in prints.chunks(BATCH) {
            let mut used: Vec<(u64, Held)> = Vec::new();
            if keeps {
                let state = self.shared.state.lock();
                for print in batch {
                    let held = state.index.get(*print).iter();
                    used.extend(
                        held.filter(|held| held.place.segment == number && held.is_used)
                            .map(|held| (*print, *held)),
                    );
                }
            }
            let mut kept = Vec::new();
            for (print, held) in used {
                if held.place.record_bytes() > left {
                    continue;
                }
                if let Ok(raw) = segment::read(&file, held.place)? {
                    left -= held.place.record_bytes();
                    kept.push((print, held, raw));
                }
            }
            let mut state = self.shared.state.lock();
            for (print, held, raw) in kept {
                // Unless it was removed while it was read.
                if state.index.holds(print, held.place) {
                    state.push_front(Task::Keep { print, raw: Box::new(raw), variant: held.variant });
                }
            }
            for print in batch {
                state.index.remove_where(*print, |held| held.place.segment == number);
            }
        }
        self.shared.state.lock().files.remove(&number);
        self.log.delete(number)
    }

    fn delete_all(&mut self) -> io::Result<()> {
        {
            let mut state = self.shared.state.lock();
            state.index.clear();
            state.files.clear();
        }
        while let Some(oldest) = self.log.oldest() {
            self.log.delete(oldest)?;
        }
        sync_folder(&self.shared.dir)
    }
}
