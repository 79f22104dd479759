//! One file of the log: records behind each other, and at the end of a finished one a list of them.
//!
//! Owns the form of the file and what can be trusted of one that a crash or a bad disk has left: a record is either
//! whole and itself, or it is not there. It never writes into what has been written.
//!
//! ```text
//!   "SOUKSEG2", number      16 bytes
//!   record, record, …       see `record`
//!   list record             place of each record, and what a start is to know of it: it reads this instead of them
//!   place of the list, CRC, "SkEn"
//! ```

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use minicbor::{Decode, Encode};

use super::record::{self, HEADER_BYTES, Header, KeyRecord, Kind, META_BYTES_MAX};
use crate::key::Key;
use crate::purge::{LIFE, Step};

pub(super) const START_BYTES: u64 = 16;
pub(super) const TRAILER_BYTES: u64 = 16;
const MAGIC: &[u8; 8] = b"SOUKSEG2";
const TRAILER_MAGIC: &[u8; 4] = b"SkEn";
const SUFFIX: &str = ".segment";
/// Longest list that is read. The records of the largest segment, all of them as small as they get, are half of it.
const LIST_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Where a record stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) segment: u64,
    pub(super) at: u64,
    pub(super) meta_bytes: u32,
    pub(super) body_bytes: u64,
}

impl Place {
    pub(super) fn record_bytes(&self) -> u64 {
        (HEADER_BYTES as u64 + u64::from(self.meta_bytes)).saturating_add(self.body_bytes)
    }
}

/// A record, as the list names it.
#[derive(Debug, Encode, Decode)]
pub(super) struct Listed {
    #[n(0)]
    pub(super) at: u64,
    #[n(1)]
    pub(super) meta_bytes: u32,
    #[n(2)]
    pub(super) body_bytes: u64,
    #[n(3)]
    pub(super) what: What,
}

/// What a start is to know of a record.
#[derive(Clone, Debug, Encode, Decode)]
pub(super) enum What {
    #[n(1)]
    Response {
        #[n(0)]
        key: KeyRecord,
        #[n(1)]
        variant: u32,
        /// The number of its birth.
        #[n(2)]
        born: u64,
    },
    #[n(2)]
    Removal {
        #[n(0)]
        key: KeyRecord,
    },
    #[n(4)]
    Purge {
        #[n(0)]
        step: Step,
    },
}

/// A record that a start has found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) place: Place,
    pub(super) what: Meant,
}

/// [`What`], read.
#[derive(Debug)]
pub(super) enum Meant {
    Response { key: Key, variant: u32, born: u64 },
    Removal { key: Key },
    Purge { step: Step },
}

impl What {
    /// None of what nobody has written: a key that no request can have, a number that no life can count to.
    fn read(self) -> Option<Meant> {
        let counts = |number: u64| (number < LIFE).then_some(number);
        Some(match self {
            Self::Response { key, variant, born } => {
                Meant::Response { key: key.key().ok()?, variant, born: counts(born)? }
            }
            Self::Removal { key } => Meant::Removal { key: key.key().ok()? },
            Self::Purge { step } => {
                counts(step.number())?;
                Meant::Purge { step }
            }
        })
    }
}

/// How the readable part of a segment ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// After a record.
    Whole,
    /// In the middle of the last one: whoever wrote it was killed. Nothing that was acknowledged is missing.
    Torn,
    /// At something that was written and cannot be read any more. What follows it is lost, removals too.
    Damaged,
}

/// What a start reads of a segment.
#[derive(Debug)]
pub(super) struct Scanned {
    pub(super) records: Vec<Found>,
    pub(super) bytes: u64,
    pub(super) end: End,
}

pub(super) fn path_of(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016x}{SUFFIX}"))
}

/// The number in the name of a segment's file. None where it is a file of somebody else.
pub(super) fn number_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(SUFFIX).filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

pub(super) fn start_of(number: u64) -> [u8; START_BYTES as usize] {
    let mut out = [0; START_BYTES as usize];
    out[..8].copy_from_slice(MAGIC);
    out[8..].copy_from_slice(&number.to_le_bytes());
    out
}

pub(super) fn trailer_of(list_at: u64) -> [u8; TRAILER_BYTES as usize] {
    let mut out = [0; TRAILER_BYTES as usize];
    out[..8].copy_from_slice(&list_at.to_le_bytes());
    let crc = crc32c::crc32c(&out[..8]);
    out[8..12].copy_from_slice(&crc.to_le_bytes());
    out[12..].copy_from_slice(TRAILER_MAGIC);
    out
}

/// What the records of a segment are, by its list or one by one. None where it was torn before its first record.
pub(super) fn scan(file: &File, number: u64) -> io::Result<Option<Scanned>> {
    let bytes = file.metadata()?.len();
    let mut start = [0; START_BYTES as usize];
    if bytes < START_BYTES {
        return Ok(None);
    }
    file.read_exact_at(&mut start, 0)?;
    if start != start_of(number) {
        // Of another version, or of another name, or rotten: what it removed cannot be known either.
        return Ok(Some(Scanned { records: Vec::new(), bytes, end: End::Damaged }));
    }
    if let Some(records) = by_list(file, number, bytes)? {
        return Ok(Some(Scanned { records, bytes, end: End::Whole }));
    }
    let (records, end) = one_by_one(file, number, bytes)?;
    Ok(Some(Scanned { records, bytes, end }))
}

fn by_list(file: &File, number: u64, bytes: u64) -> io::Result<Option<Vec<Found>>> {
    let Some(end) = bytes.checked_sub(TRAILER_BYTES) else { return Ok(None) };
    let mut trailer = [0; TRAILER_BYTES as usize];
    file.read_exact_at(&mut trailer, end)?;
    let at = u64::from_le_bytes(trailer[..8].try_into().expect("eight bytes"));
    if trailer != trailer_of(at) || at < START_BYTES || at.saturating_add(HEADER_BYTES as u64) > end {
        return Ok(None);
    }
    let Ok(header) = read_header(file, at)? else { return Ok(None) };
    let fits = header.kind == Kind::List && at.checked_add(header.record_bytes()) == Some(end);
    if !fits || u64::from(header.meta_bytes) > LIST_BYTES_MAX {
        return Ok(None);
    }
    let list = read_meta(file, at, &header)?;
    if header.check_meta(&list).is_err() {
        return Ok(None);
    }
    let mut records = Vec::new();
    let mut decoder = minicbor::Decoder::new(&list);
    while decoder.position() < list.len() {
        let Ok(listed) = decoder.decode::<Listed>() else { return Ok(None) };
        let Listed { at: place, meta_bytes, body_bytes, what } = listed;
        let place = Place { segment: number, at: place, meta_bytes, body_bytes };
        let inside = place.at >= START_BYTES
            && place.at.checked_add(place.record_bytes()).is_some_and(|record_end| record_end <= at);
        let Some(what) = what.read().filter(|_| inside) else { return Ok(None) };
        records.push(Found { place, what });
    }
    Ok(Some(records))
}

fn one_by_one(file: &File, number: u64, bytes: u64) -> io::Result<(Vec<Found>, End)> {
    let mut records = Vec::new();
    let mut at = START_BYTES;
    loop {
        let left = bytes - at;
        if left == 0 {
            return Ok((records, End::Whole));
        }
        if left < HEADER_BYTES as u64 {
            return Ok((records, End::Torn));
        }
        let Ok(header) = read_header(file, at)? else { return Ok((records, End::Damaged)) };
        if header.kind == Kind::List {
            // Written after everything else, and not readable itself, or we were not here.
            return Ok((records, End::Whole));
        }
        if header.record_bytes() > left {
            return Ok((records, End::Torn));
        }
        if header.meta_bytes as usize > META_BYTES_MAX {
            return Ok((records, End::Damaged));
        }
        let meta = read_meta(file, at, &header)?;
        match found(&header, &meta, number, at) {
            Some(found) => records.push(found),
            // What it took back, nobody knows.
            None if matches!(header.kind, Kind::Removal | Kind::Purge) => {
                return Ok((records, End::Damaged));
            }
            None => {}
        }
        at += header.record_bytes();
    }
}

fn found(header: &Header, meta: &[u8], number: u64, at: u64) -> Option<Found> {
    header.check_meta(meta).ok()?;
    let what = match header.kind {
        Kind::Removal => Meant::Removal { key: record::key_of(meta).ok()? },
        Kind::Purge => What::Purge { step: record::step_of(meta).ok()? }.read()?,
        Kind::Response => {
            let (key, entry) = record::entry_of(meta, Bytes::new()).ok()?;
            let born = entry.birth.born();
            if born >= LIFE {
                return None;
            }
            Meant::Response { key, variant: record::variant_of(&entry), born }
        }
        Kind::List => return None,
    };
    let place = Place { segment: number, at, meta_bytes: header.meta_bytes, body_bytes: header.body_bytes };
    Some(Found { place, what })
}

fn read_header(file: &File, at: u64) -> io::Result<Result<Header, record::Corrupt>> {
    let mut bytes = [0; HEADER_BYTES];
    file.read_exact_at(&mut bytes, at)?;
    Ok(Header::read(&bytes))
}

fn read_meta(file: &File, at: u64, header: &Header) -> io::Result<Vec<u8>> {
    let mut meta = vec![0; header.meta_bytes as usize];
    file.read_exact_at(&mut meta, at + HEADER_BYTES as u64)?;
    Ok(meta)
}

/// A whole record, its checksums compared. The outer error is the disk's, the inner one says what the bytes are not.
pub(super) fn read(file: &File, place: Place) -> io::Result<Result<Raw, record::Corrupt>> {
    let front_bytes = HEADER_BYTES + place.meta_bytes as usize;
    let mut front = vec![0; front_bytes];
    match file.read_exact_at(&mut front, place.at) {
        // The file is shorter than it was: nothing that the disk would say no to.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Ok(Err(record::Corrupt::Header));
        }
        done => done?,
    }
    let header = match Header::read(front[..HEADER_BYTES].try_into().expect("the length of a header")) {
        Ok(header) => header,
        Err(corrupt) => return Ok(Err(corrupt)),
    };
    if header.meta_bytes != place.meta_bytes || header.body_bytes != place.body_bytes {
        return Ok(Err(record::Corrupt::Header));
    }
    let mut body = vec![0; usize::try_from(place.body_bytes).unwrap_or(usize::MAX)];
    match file.read_exact_at(&mut body, place.at + front_bytes as u64) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Ok(Err(record::Corrupt::Checksum));
        }
        done => done?,
    }
    let meta = front.split_off(HEADER_BYTES);
    Ok(header.check_meta(&meta).and_then(|()| header.check_body(&body)).map(|()| Raw {
        header,
        meta,
        body: body.into(),
    }))
}

/// A record whose checksums hold.
#[derive(Debug)]
pub(super) struct Raw {
    pub(super) header: Header,
    pub(super) meta: Vec<u8>,
    pub(super) body: Bytes,
}
