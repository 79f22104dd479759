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

use super::gate::Doing;
use super::index::{BYTES_PER_OBJECT, Held};
use super::log::{Log, Record};
use super::record::{self, Header, KeyRecord, Kind, META_BYTES_MAX};
use super::segment::{self, End, Meant, Place, Raw, What};
use super::state::{Counters, Shared, Task, Written};
use super::{DiskLimits, Notice, Numbers, OBJECT_SHARE, Phase};
use crate::entry::{Entry, StoredBody};
use crate::key::Key;
use crate::purge::{Step, Verdict};
use crate::tags::Tag;

/// How often a folder is asked for that another process has: a node that drains while its successor starts.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// Keys that are put into the index or taken out of it at once, while whoever looks something up waits.
const BATCH: usize = 256;
/// Files at most: those of a full disk, and many short ones of processes that were restarted.
const FILES_MAX: usize = 256;
/// Bytes after which a sync is due in any case: a removal waits for what was written before it, which is no more than this.
const UNSYNCED_MAX: u64 = 4 * 1024 * 1024;
/// Of a segment that goes, the half that is in use is kept at most: each deletion frees something. What sites have in it that
/// have little of the disk is kept whole. A segment, 64 MiB at most, waits in memory for it.
const KEPT_DIVISOR: u64 = 2;
/// A purge of more than this is written as several records: the smallest disk takes one of them.
const STEP_BYTES_MAX: usize = 64 * 1024;
/// How often a folder is emptied that could not be. Seldom: what a disk that fails is asked is hardly ever answered.
const EMPTY_AGAIN: Duration = Duration::from_secs(5);

pub(super) fn run(shared: &Arc<Shared>, lock: &File) {
    let mut last = Last { shared, owns: false, is_empty: false };
    if !own_folder(shared, lock) {
        return;
    }
    last.owns = true;
    let log = Log::new(shared.dir.clone(), shared.limits.bytes_max);
    let mut writer = Writer { shared, log, numbers: Numbers::default(), told_full: false };
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
        // What was removed must not come back with the next start. The disk may fail at that, too.
        last.is_empty = empty_at_last(shared);
    } else {
        // Without the last list the next start reads the records themselves.
        let _ = writer.log.seal();
    }
}

/// Whoever waits for a removal is told when there is nobody left to write it, and what that means.
struct Last<'a> {
    shared: &'a Shared,
    /// The folder is this process's own.
    owns: bool,
    /// Nothing is left in it.
    is_empty: bool,
}

impl Drop for Last<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.turn_off("write", io::Error::other("its thread panicked"));
            // Removals that waited are obeyed so, too.
            self.is_empty = self.owns && empty(self.shared).is_ok();
        }
        let is_empty = self.is_empty;
        self.shared.promise.send_modify(|promise| {
            promise.is_empty = is_empty;
            promise.is_broken = !is_empty;
        });
    }
}

/// Empties the folder of a tier that is off, however often it takes. False if this process ends before that.
fn empty_at_last(shared: &Shared) -> bool {
    let mut told = false;
    while empty(shared).is_err() {
        if !std::mem::replace(&mut told, true) {
            (shared.tell)(Notice::Left);
            shared.promise.send_modify(|promise| promise.is_broken = true);
        }
        let mut state = shared.state.lock();
        if state.is_closed {
            return false;
        }
        shared.to_write.wait_for(&mut state, EMPTY_AGAIN);
    }
    true
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

/// Deletes every segment of the folder. One that is not there any more is empty.
fn empty(shared: &Shared) -> io::Result<()> {
    shared.gate.pass(Doing::Empty)?;
    let listed = match std::fs::read_dir(&shared.dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        listed => listed?,
    };
    for entry in listed {
        let entry = entry?;
        if entry.file_name().to_str().and_then(segment::number_of).is_some() {
            std::fs::remove_file(entry.path())?;
        }
    }
    sync_folder(&shared.dir)
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
    numbers: Numbers,
    told_full: bool,
}

impl Writer<'_> {
    /// Reads what an earlier process left.
    fn take_over(&mut self) -> io::Result<()> {
        let dir = &self.shared.dir;
        let mut former = self.shared.purges.former();
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
                // What was purged of that is gone with it, and the numbers go on.
                former = self.shared.purges.former();
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
                match found.what {
                    Meant::Response { key, variant, born } => {
                        let print = self.shared.print(&key);
                        state.index.put(print, found.place, variant, Tag::share_of(key.site()));
                        self.numbers.former = self.numbers.former.max(born);
                        prints.push(print);
                    }
                    Meant::Removal { key } => {
                        let print = self.shared.print(&key);
                        state.index.remove(print);
                        prints.push(print);
                    }
                    Meant::Purge { step } => {
                        self.numbers.former = self.numbers.former.max(step.number());
                        former.take(&step);
                    }
                }
            }
            drop(state);
            self.log.adopt(number, file, scanned.bytes, prints);
        }
        // Before anything of it can be read.
        self.shared.purges.adopt(former);
        // The setting may be smaller than it was.
        while self.log.bytes() > self.shared.limits.bytes_max
            && let Some(oldest) = self.log.oldest()
        {
            self.evict(oldest, false)?;
        }
        Ok(())
    }

    /// Lets look-ups in. What was asked for while the folder was read, or another process's, holds from their first one on,
    /// whether or not it is written yet.
    fn announce(&self) {
        self.gauge();
        let asked = {
            let mut state = self.shared.state.lock();
            state.numbers = self.numbers;
            // What is asked for from here on finds the index as it is.
            state.asked_meanwhile()
        };
        for batch in asked.chunks(BATCH) {
            let mut state = self.shared.state.lock();
            for (print, variant) in batch {
                state
                    .index
                    .remove_where(*print, |held| variant.is_none_or(|variant| held.variant == variant));
            }
        }
        let (objects, garbage) = {
            let mut state = self.shared.state.lock();
            let given_up = state.waits_to_be_wiped();
            let garbage = given_up.then(|| std::mem::take(&mut state.index));
            state.phase = Phase::On;
            (state.index.objects(), garbage)
        };
        drop(garbage);
        (self.shared.tell)(Notice::Opened { objects, bytes: self.log.bytes() });
        self.shared.phase.send_replace(Phase::On);
    }

    fn gauge(&self) {
        let counters = &self.shared.counters;
        counters.bytes.store(self.log.bytes(), Ordering::Relaxed);
        counters.segments.store(self.log.segments() as u64, Ordering::Relaxed);
    }

    fn work(&mut self, tasks: Vec<Task>) -> io::Result<()> {
        let mut removals = Vec::new();
        let mut steps = Vec::new();
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
                Task::Purge(step) => steps.push(step),
                Task::Wipe { removals, garbage } => {
                    drop(garbage);
                    self.delete_all()?;
                    Counters::add(&self.shared.counters.wipes, 1);
                    self.shared.promise.send_modify(|promise| promise.kept += removals);
                }
            }
        }
        if removals.is_empty() && steps.is_empty() { Ok(()) } else { self.take_back(removals, &steps) }
    }

    /// Writes an entry as far as it holds now. What is purged from now on is written behind it.
    fn store(&mut self, print: u64, key: &Key, entry: &Entry) -> io::Result<Option<Written>> {
        let variant = record::variant_of(entry);
        let softened;
        let entry = match self.shared.purges.judge(key, &entry.birth) {
            Verdict::Valid => entry,
            Verdict::Softened { at_ms, counted } => {
                // The purge may leave the log before this does.
                softened = entry.softened(at_ms, counted);
                &softened
            }
            Verdict::Gone => {
                self.withdraw(print, key)?;
                return Ok(None);
            }
        };
        let StoredBody::Whole(chunks) = &entry.body else { return Ok(None) };
        let born = self.numbers.to_log(entry.birth.born());
        let meta = record::meta_of(key, entry, born);
        let header = Header::of(Kind::Response, &meta, &chunks.list);
        let what = What::Response { key: KeyRecord::of(key), variant, born };
        let record = Record { header, meta: &meta, body: &chunks.list, what, print: Some(print) };
        let place = self.write(&record)?;
        if place.is_none() {
            self.withdraw(print, key)?;
        }
        Ok(place.map(|place| Written { place, variant, share: Tag::share_of(key.site()) }))
    }

    /// What was to take the place of something older is not written: the older one is not to come back as the newest.
    fn withdraw(&mut self, print: u64, key: &Key) -> io::Result<()> {
        if self.log.oldest().is_some() {
            self.write_removal(print, key)?;
        }
        Ok(())
    }

    /// Writes a record once more that was read from a segment that goes, if nothing of it was purged: the purge may leave
    /// the log before it does.
    fn keep(&mut self, print: u64, raw: &Raw, variant: u32) -> io::Result<Option<Written>> {
        let Ok((key, entry)) = record::entry_of(&raw.meta, bytes::Bytes::new()) else { return Ok(None) };
        let born = entry.birth.born();
        let birth = entry.birth.clone().born_at(self.numbers.of_log(born));
        if self.shared.purges.judge(&key, &birth) != Verdict::Valid {
            return Ok(None);
        }
        let body = [raw.body.clone()];
        let what = What::Response { key: KeyRecord::of(&key), variant, born };
        let record = Record { header: raw.header, meta: &raw.meta, body: &body, what, print: Some(print) };
        let place = self.write(&record)?;
        Ok(place.map(|place| Written { place, variant, share: Tag::share_of(key.site()) }))
    }

    /// Writes that these keys are removed and these names purged, and waits for the disk to have it.
    fn take_back(&mut self, removals: Vec<(u64, Key)>, steps: &[Step]) -> io::Result<()> {
        let asked = (removals.len() + steps.len()) as u64;
        // An empty folder gives nothing back.
        for (print, key) in removals {
            self.withdraw(print, &key)?;
        }
        for step in steps {
            if self.log.oldest().is_some() {
                self.write_step(step)?;
            }
        }
        self.sync()?;
        self.shared.promise.send_modify(|promise| promise.kept += asked);
        Ok(())
    }

    fn write_removal(&mut self, print: u64, key: &Key) -> io::Result<()> {
        let meta = record::removal_of(key);
        let header = Header::of(Kind::Removal, &meta, &[]);
        let what = What::Removal { key: KeyRecord::of(key) };
        self.write_or_wipe(&Record { header, meta: &meta, body: &[], what, print: Some(print) })
    }

    fn write_step(&mut self, step: &Step) -> io::Result<()> {
        let number = self.numbers.to_log(step.number());
        for step in step.parts(number, STEP_BYTES_MAX) {
            let meta = record::encoded(&step);
            let header = Header::of(Kind::Purge, &meta, &[]);
            self.write_or_wipe(&Record {
                header,
                meta: &meta,
                body: &[],
                what: What::Purge { step },
                print: None,
            })?;
        }
        Ok(())
    }

    /// Writes what takes something back. Where there is no room for that, nothing is there that it could be about.
    fn write_or_wipe(&mut self, record: &Record<'_>) -> io::Result<()> {
        match self.write(record)? {
            Some(_) => Ok(()),
            None => self.delete_all(),
        }
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
        match self.shared.gate.pass(Doing::Sync).and_then(|()| self.log.sync()) {
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
        self.shared.gate.pass(Doing::Write)?;
        let (number, file, is_new) = self.log.active()?;
        if is_new {
            self.shared.state.lock().files.insert(number, file);
        }
        self.log.append(record)
    }

    /// Deletes a segment. What was read of it since it was written, and what a site has in it that has little, is put in front
    /// of the queue once more, if `keeps`.
    fn evict(&mut self, number: u64, keeps: bool) -> io::Result<()> {
        let Some(segment) = self.log.get(number) else { return Ok(()) };
        let (mut prints, file) = (segment.prints.clone(), Arc::clone(&segment.file));
        prints.sort_unstable();
        prints.dedup();
        let mut left = if keeps { self.log.segment_bytes() / KEPT_DIVISOR } else { 0 };
        let DiskLimits { bytes_max, shared: is_shared, .. } = self.shared.limits;
        for batch in prints.chunks(BATCH) {
            // Whether its site is poor beside each.
            let mut wanted: Vec<(u64, Held, bool)> = Vec::new();
            if keeps {
                let state = self.shared.state.lock();
                let is_poor = |held: &Held| is_shared && state.index.is_poor(held.share, bytes_max);
                for print in batch {
                    let here = state.index.get(*print).iter().filter(|held| held.place.segment == number);
                    let all = here.map(|held| (*print, *held, is_poor(held)));
                    wanted.extend(all.filter(|(_, held, is_poor)| held.is_used || *is_poor));
                }
            }
            let mut kept = Vec::new();
            for (print, held, is_poor) in wanted {
                let bytes = held.place.record_bytes();
                if !is_poor && bytes > left {
                    continue;
                }
                if let Ok(raw) = segment::read(&file, held.place)? {
                    if !is_poor {
                        left -= bytes;
                    }
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
        let garbage = {
            let mut state = self.shared.state.lock();
            (std::mem::take(&mut state.index), std::mem::take(&mut state.files))
        };
        drop(garbage);
        while let Some(oldest) = self.log.oldest() {
            self.log.delete(oldest)?;
        }
        sync_folder(&self.shared.dir)
    }
}
