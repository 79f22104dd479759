//! Doors for the fuzz targets (`tests/fuzz`), in no build but theirs: what a bad disk can bring is read by what is private
//! here.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use bytes::Bytes;

use super::record::{self, HEADER_BYTES, Header, Kind};
use super::segment::{self, Meant, START_BYTES};
use crate::purge::Purges;

/// Reads the meta of a record as each that there is. What can be read comes back as it was when it is written again.
pub fn record(meta: &[u8]) {
    let _ = record::key_of(meta);
    if let Ok(step) = record::step_of(meta) {
        let written = record::encoded(&step);
        assert_eq!(record::step_of(&written).as_ref(), Ok(&step), "a step is written as it was read");
        let parts = step.parts(step.number(), 128);
        let mut former = Purges::over_a_log().former();
        parts.iter().for_each(|part| former.take(part));
    }
    let Ok((key, entry)) = record::entry_of(meta, Bytes::new()) else { return };
    let written = record::meta_of(&key, &entry, entry.birth.born());
    let (again_key, again) = record::entry_of(&written, Bytes::new()).expect("what was written here");
    assert_eq!(again_key, key);
    assert_eq!((again.status, &again.headers), (entry.status, &entry.headers));
    assert_eq!((again.freshness, &again.variant), (entry.freshness, &entry.variant));
    assert_eq!(again.birth.to_parts(), entry.birth.to_parts());
    assert_eq!(record::variant_of(&again), record::variant_of(&entry));
    let _ = entry.variant.matches(&entry.headers);
    for now_ms in [0, entry.freshness.received_ms(), u64::MAX] {
        let _ = (entry.freshness.usable(now_ms, None), entry.freshness.usable_on_error(now_ms));
        let _ = (entry.freshness.ttl_s(now_ms), entry.freshness.arithmetic(&entry.headers, now_ms, None));
    }
}

/// Bytes as a segment of the log, whose records have the checksums that they should have: behind those nothing else is
/// ever read. Every record that is found must be where it is said to be.
pub fn segment(file: &File, mut bytes: Vec<u8>) -> io::Result<()> {
    const NUMBER: u64 = 7;
    let start = usize::try_from(START_BYTES).expect("16");
    if bytes.len() >= start {
        bytes[..start].copy_from_slice(&segment::start_of(NUMBER));
        mend(&mut bytes[start..]);
    }
    file.set_len(0)?;
    file.write_all_at(&bytes, 0)?;
    let Some(scanned) = segment::scan(file, NUMBER)? else { return Ok(()) };
    for found in scanned.records {
        assert!(found.place.at + found.place.record_bytes() <= scanned.bytes, "inside of its file");
        if let (Meant::Response { key, .. }, Ok(raw)) = (&found.what, segment::read(file, found.place)?)
            && let Ok((read, _)) = record::entry_of(&raw.meta, raw.body)
            && raw.header.kind == Kind::Response
        {
            // A list may lie about the key; whoever reads compares.
            let _ = read == *key;
        }
    }
    Ok(())
}

/// Makes records of bytes: lengths that fit, and checksums of what stands there.
fn mend(mut rest: &mut [u8]) {
    while let Some((front, behind)) = rest.split_at_mut_checked(HEADER_BYTES) {
        let number = |at: usize| u32::from_le_bytes([front[at], front[at + 1], front[at + 2], front[at + 3]]);
        let kind = match number(4) % 4 {
            0 => Kind::Response,
            1 => Kind::Removal,
            2 => Kind::Purge,
            _ => Kind::List,
        };
        let meta_bytes = number(8) as usize % (behind.len() + 1);
        let (meta, behind) = behind.split_at_mut(meta_bytes);
        let body_bytes = number(12) as usize % (behind.len() + 1);
        let (body, behind) = behind.split_at_mut(body_bytes);
        let header = Header::of(kind, meta, &[Bytes::copy_from_slice(body)]);
        front.copy_from_slice(&header.to_bytes());
        rest = behind;
    }
}
