//! The files of the disk tier, as their one writer sees them: it appends to the newest and deletes the oldest.
//!
//! Owns the bound on bytes: whoever appends asks for room first, and deletes until there is some.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use super::record::{self, HEADER_BYTES, Header, Kind};
use super::segment::{self, Listed, Place, START_BYTES, TRAILER_BYTES, What};

/// Segments that the disk is divided into. What is deleted at once is one of them: three per cent.
const SEGMENTS: u64 = 32;
/// A list in memory, and a second's work of a disk to copy what is kept of one.
const SEGMENT_BYTES_MAX: u64 = 64 * 1024 * 1024;
const SEGMENT_BYTES_MIN: u64 = 64 * 1024;
/// What a record costs in the list of its segment beside its key.
const LISTED_BYTES: u64 = 48;
/// Bodies up to here are put behind their head and written at once.
const JOINED_BYTES_MAX: u64 = 64 * 1024;

pub(super) struct Log {
    dir: PathBuf,
    bytes_max: u64,
    segment_bytes: u64,
    /// The oldest first.
    segments: BTreeMap<u64, Segment>,
    active: Option<Active>,
    next: u64,
    bytes: u64,
    /// Written since the last sync.
    unsynced: u64,
}

pub(super) struct Segment {
    pub(super) file: Arc<File>,
    bytes: u64,
    /// Of the keys of its records, where they have one, in the order in which they were written.
    pub(super) prints: Vec<u64>,
}

/// What is known of the segment that is being written.
struct Active {
    number: u64,
    list: Vec<u8>,
    /// Whether its name in the folder is on the disk.
    is_named: bool,
}

/// What is appended.
pub(super) struct Record<'a> {
    pub(super) header: Header,
    pub(super) meta: &'a [u8],
    pub(super) body: &'a [Bytes],
    pub(super) what: What,
    /// Of its key, if it has one.
    pub(super) print: Option<u64>,
}

impl Log {
    pub(super) fn new(dir: PathBuf, bytes_max: u64) -> Self {
        Self {
            dir,
            bytes_max,
            segment_bytes: (bytes_max / SEGMENTS).clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX),
            segments: BTreeMap::new(),
            active: None,
            next: 0,
            bytes: 0,
            unsynced: 0,
        }
    }

    /// Numbers go on behind this one.
    pub(super) fn skip(&mut self, number: u64) {
        self.next = self.next.max(number + 1);
    }

    /// Takes a segment over that was there before.
    pub(super) fn adopt(&mut self, number: u64, file: Arc<File>, bytes: u64, prints: Vec<u64>) {
        self.segments.insert(number, Segment { file, bytes, prints });
        self.bytes += bytes;
        self.skip(number);
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn segments(&self) -> usize {
        self.segments.len()
    }

    pub(super) fn segment_bytes(&self) -> u64 {
        self.segment_bytes
    }

    pub(super) fn oldest(&self) -> Option<u64> {
        self.segments.keys().next().copied()
    }

    pub(super) fn get(&self, number: u64) -> Option<&Segment> {
        self.segments.get(&number)
    }

    /// Whether a record fits, with all that will be written about it.
    pub(super) fn has_room_for(&self, record: &Record<'_>) -> bool {
        let listed = self.active.as_ref().map_or(0, |active| active.list.len() as u64);
        // The list has the key once more.
        let about = LISTED_BYTES + record.meta.len() as u64 + listed + HEADER_BYTES as u64;
        self.bytes + record.header.record_bytes() + about + START_BYTES + TRAILER_BYTES <= self.bytes_max
    }

    /// The segment that is appended to now: the newest, or a new one. True beside it if it is new.
    pub(super) fn active(&mut self) -> io::Result<(u64, Arc<File>, bool)> {
        if let Some(Active { number, .. }) = self.active
            && let Some(segment) = self.segments.get(&number)
        {
            if segment.bytes < self.segment_bytes {
                return Ok((number, Arc::clone(&segment.file), false));
            }
            self.seal()?;
        }
        let number = self.next;
        let path = segment::path_of(&self.dir, number);
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        let file = Arc::new(file);
        if let Err(error) = file.write_all_at(&segment::start_of(number), 0) {
            let _ = std::fs::remove_file(&path);
            return Err(error);
        }
        self.next += 1;
        self.active = Some(Active { number, list: Vec::new(), is_named: false });
        self.segments.insert(number, Segment { file: Arc::clone(&file), bytes: 0, prints: Vec::new() });
        self.grow(number, START_BYTES);
        Ok((number, file, true))
    }

    /// Appends to the active segment. After an error nothing of the record is there.
    pub(super) fn append(&mut self, record: &Record<'_>) -> io::Result<Place> {
        let (number, file, _) = self.active()?;
        let at = self.segments[&number].bytes;
        let Record { header, meta, body, what, print } = record;
        if let Err(error) = write(&file, at, header, meta, body) {
            // What stands behind the end is overwritten by the next record, or torn.
            let _ = file.set_len(at);
            return Err(error);
        }
        self.grow(number, header.record_bytes());
        self.unsynced += header.record_bytes();
        let place =
            Place { segment: number, at, meta_bytes: header.meta_bytes, body_bytes: header.body_bytes };
        let Place { meta_bytes, body_bytes, .. } = place;
        let listed = Listed { at, meta_bytes, body_bytes, what: what.clone() };
        if let Some(active) = &mut self.active {
            active.list.extend(record::encoded(&listed));
        }
        if let Some(segment) = self.segments.get_mut(&number) {
            segment.prints.extend(print);
        }
        Ok(place)
    }

    pub(super) fn unsynced(&self) -> u64 {
        self.unsynced
    }

    /// Makes what was appended outlive a power cut, and the name of its file.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.unsynced = 0;
        let Some(active) = &mut self.active else { return Ok(()) };
        if let Some(segment) = self.segments.get(&active.number) {
            segment.file.sync_data()?;
        }
        if !active.is_named {
            File::open(&self.dir)?.sync_all()?;
            active.is_named = true;
        }
        Ok(())
    }

    /// Ends the active segment with its list.
    pub(super) fn seal(&mut self) -> io::Result<()> {
        let Some(Active { number, list, .. }) = self.active.take() else { return Ok(()) };
        let Some(segment) = self.segments.get(&number) else { return Ok(()) };
        let (file, at) = (Arc::clone(&segment.file), segment.bytes);
        let header = Header::of(Kind::List, &list, &[]);
        let written = write(&file, at, &header, &list, &[]).and_then(|()| {
            file.write_all_at(&segment::trailer_of(at), at + header.record_bytes())?;
            Ok(header.record_bytes() + TRAILER_BYTES)
        });
        // Removals among its records may be promised with the next segment's.
        let written = written.and_then(|bytes| file.sync_data().map(|()| bytes));
        match written {
            Ok(bytes) => self.grow(number, bytes),
            Err(error) => {
                // Without a list its records are read one by one.
                let _ = file.set_len(at);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Deletes a segment. Whoever still reads it can go on; its bytes are free after that.
    pub(super) fn delete(&mut self, number: u64) -> io::Result<()> {
        if self.active.as_ref().is_some_and(|active| active.number == number) {
            self.active = None;
        }
        if let Some(segment) = self.segments.remove(&number) {
            self.bytes -= segment.bytes;
            std::fs::remove_file(segment::path_of(&self.dir, number))?;
        }
        Ok(())
    }

    fn grow(&mut self, number: u64, bytes: u64) {
        if let Some(segment) = self.segments.get_mut(&number) {
            segment.bytes += bytes;
            self.bytes += bytes;
        }
    }
}

fn write(file: &File, at: u64, header: &Header, meta: &[u8], body: &[Bytes]) -> io::Result<()> {
    let is_joined = header.body_bytes <= JOINED_BYTES_MAX;
    let mut front = Vec::with_capacity(HEADER_BYTES + meta.len());
    front.extend_from_slice(&header.to_bytes());
    front.extend_from_slice(meta);
    if is_joined {
        body.iter().for_each(|chunk| front.extend_from_slice(chunk));
    }
    file.write_all_at(&front, at)?;
    let mut at = at + front.len() as u64;
    if !is_joined {
        for chunk in body {
            file.write_all_at(chunk, at)?;
            at += chunk.len() as u64;
        }
    }
    Ok(())
}
