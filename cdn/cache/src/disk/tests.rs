//! The folder against everything that can happen to it. A copy of the folder of a tier that still runs is what a kill
//! leaves; bytes that are cut off or flipped are what a power cut and a bad disk leave.

mod handover;
mod hang;
mod shares;

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Response};
use proptest::prelude::*;
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

use super::record::{Header, Kind};
use super::segment::{End, Meant, START_BYTES};
use super::*;
use crate::admit::Admitted;
use crate::directives::ResponseDirectives;
use crate::entry::{Chunks, Resource};
use crate::freshness::{Exchanged, Freshness};
use crate::key::Scheme;
use crate::purge::{Purge, Scope};
use crate::shelf::MemoryShelf;
use crate::tags::{Birth, Tag};
use crate::vary::Variant;

const NOW: u64 = 1_800_000_000_000;
const LIMITS: DiskLimits = DiskLimits { bytes_max: 4 << 20, object_bytes_max: 1 << 20, shared: false };
/// Where the disk does not hang, nobody is to be let go because a machine is slow.
const PATIENT: Patience = Patience {
    read: Duration::from_secs(60),
    persist: Duration::from_secs(60),
    open: Duration::from_secs(60),
    close: Duration::from_secs(60),
};

fn key(n: usize) -> Key {
    Key::new("shop", Scheme::Http, "shop.example", &format!("/{n}")).expect("valid")
}

/// A body that says whose it is and which version, and of which no two parts are alike.
fn body(n: usize, version: usize, bytes: usize) -> Vec<u8> {
    let mut out = format!("{n}/{version}:").into_bytes();
    out.extend((0..bytes).map(|at| (at * 31 + n * 7 + version) as u8));
    out
}

fn entry_for(body: Vec<u8>, language: &str, max_age: &str) -> Arc<Entry> {
    let (mut head, ()) = Response::new(()).into_parts();
    head.headers.insert("cache-control", max_age.parse().expect("a value"));
    head.headers.append("x", "1".parse().expect("a value"));
    head.headers.append("x", "caf\u{e9}".parse().expect("a value"));
    let mut request = HeaderMap::new();
    request.insert("accept-language", language.parse().expect("a value"));
    let said = ResponseDirectives::of(&head.headers);
    let when = Exchanged { asked_ms: NOW, answered_ms: NOW };
    let freshness = Freshness::of(&head.headers, &said, false, when).expect("a lifetime");
    head.headers.insert("vary", "accept-language".parse().expect("a value"));
    head.headers.insert("content-language", language.parse().expect("a value"));
    let variant = Variant::of(&head.headers, &request, true).expect("keyed");
    let admitted = Admitted { freshness, variant, forbidden: Vec::new(), length: None };
    let chunks = Chunks::new(vec![body.into()]);
    let birth = Birth::from_parts(LIFE, LIFE, []);
    let entry = Entry::new(&head, admitted, NOW, StoredBody::Whole(chunks.clone()), birth.clone());
    Arc::new(entry.completed(chunks, birth))
}

fn entry(n: usize, version: usize, bytes: usize) -> Arc<Entry> {
    entry_for(body(n, version, bytes), "en", "max-age=3600")
}

/// An open tier over a memory that is as good as empty.
struct Tier {
    disk: Disk,
    shelf: Arc<dyn Shelf>,
    purges: Arc<Purges>,
    told: Arc<Mutex<Vec<String>>>,
    runtime: Runtime,
}

impl Tier {
    fn open(dir: &Path, limits: DiskLimits) -> Self {
        let tier = Self::open_at_once(dir, limits);
        tier.runtime.block_on(tier.disk.ready());
        tier
    }

    fn open_at_once(dir: &Path, limits: DiskLimits) -> Self {
        Self::open_with(dir, limits, PATIENT)
    }

    fn open_with(dir: &Path, limits: DiskLimits, patience: Patience) -> Self {
        let shelf: Arc<dyn Shelf> = Arc::new(MemoryShelf::new(16 << 20));
        let told = Arc::<Mutex<Vec<String>>>::default();
        let ear = Arc::clone(&told);
        let tell = Box::new(move |notice: Notice| ear.lock().push(notice.to_string()));
        let purges = Arc::new(Purges::over_a_log());
        let own = (Arc::clone(&shelf), Arc::clone(&purges));
        let disk = Disk::open_with(dir, limits, patience, own.0, own.1, tell).expect("a folder");
        let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
        Self { disk, shelf, purges, told, runtime }
    }

    fn settle(&self) {
        while self.disk.counts().queued > 0 {
            std::thread::yield_now();
        }
        self.persist();
    }

    fn persist(&self) {
        assert!(self.runtime.block_on(self.disk.persisted()));
    }

    fn read_at(&self, key: &Key, now_ms: u64) -> Option<Arc<Resource>> {
        self.shelf.remove(key);
        self.runtime.block_on(self.disk.read(key, now_ms)?.done());
        self.shelf.find(key)
    }

    /// The bodies of all variants, the newest first.
    fn read(&self, n: usize) -> Vec<Vec<u8>> {
        let found = self.read_at(&key(n), NOW);
        found.map(|held| held.entries().map(bytes_of).collect()).unwrap_or_default()
    }

    fn purge(&self, tag: &str) {
        let purge = Purge { scope: Scope::Tag(Tag::named("shop", tag)), soft: false };
        self.disk.purge(self.purges.apply(NOW, &[purge]));
        self.persist();
    }

    fn told(&self, what: &str) -> bool {
        self.told.lock().iter().any(|told| told.contains(what))
    }
}

impl Drop for Tier {
    /// A test that fails while a thread is held ends, too.
    fn drop(&mut self) {
        self.disk.shared.gate.open();
    }
}

fn bytes_of(entry: &Arc<Entry>) -> Vec<u8> {
    let StoredBody::Whole(chunks) = &entry.body else { panic!("not whole") };
    chunks.list.concat()
}

/// What a kill at this moment leaves.
fn image_of(dir: &Path) -> TempDir {
    let image = tempfile::tempdir().expect("a folder");
    for file in fs::read_dir(dir).expect("a folder") {
        let file = file.expect("an entry");
        fs::copy(file.path(), image.path().join(file.file_name())).expect("a copy");
    }
    image
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(dir).expect("a folder").map(|file| file.expect("an entry").path());
    let mut files: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|end| end == "segment")).collect();
    files.sort();
    files
}

#[test]
fn what_was_stored_is_there_after_a_kill_and_after_an_end_in_order() {
    let dir = tempfile::tempdir().expect("a folder");
    let tier = Tier::open(dir.path(), LIMITS);
    for n in 0..50 {
        tier.disk.offer(&key(n), &entry(n, 1, n * 997));
    }
    tier.settle();
    let killed = image_of(dir.path());
    drop(tier);
    for dir in [killed.path(), dir.path()] {
        let tier = Tier::open(dir, LIMITS);
        assert!(tier.told("50 stored responses"), "{:?}", tier.told.lock());
        for n in 0..50 {
            assert_eq!(tier.read(n), [body(n, 1, n * 997)]);
        }
        assert_eq!(tier.disk.counts().hits, 50);
    }
}

#[test]
fn a_head_comes_back_as_it_was() {
    let dir = tempfile::tempdir().expect("a folder");
    let stored = entry_for(b"hallo".to_vec(), "de", "max-age=3600, stale-while-revalidate=7");
    let tier = Tier::open(dir.path(), LIMITS);
    tier.disk.offer(&key(1), &stored);
    tier.disk.offer(&key(1), &entry_for(b"hello".to_vec(), "en", "max-age=3600"));
    tier.settle();
    let held = tier.read_at(&key(1), NOW).expect("held");
    let found = held.entries().find(|entry| bytes_of(entry) == b"hallo").expect("the first variant");
    assert_eq!(found.status, stored.status);
    assert_eq!(found.headers, stored.headers);
    assert_eq!(found.freshness, stored.freshness);
    assert_eq!(found.variant, stored.variant);
    let mut german = HeaderMap::new();
    german.insert("accept-language", "en;q=0.1, de".parse().expect("a value"));
    let selected = held.select(&german).map(bytes_of);
    assert_eq!(selected.as_deref(), Some(&b"hallo"[..]), "languages are still compared by weight");
    // A clock that was set back: how old it is cannot be known.
    assert!(tier.read_at(&key(1), NOW - 3_600_000).is_none());
}

#[test]
fn a_newer_version_takes_the_place_of_an_older_one_and_variants_stand_together() {
    let dir = tempfile::tempdir().expect("a folder");
    let tier = Tier::open(dir.path(), LIMITS);
    tier.disk.offer(&key(1), &entry(1, 1, 10));
    tier.disk.offer(&key(1), &entry_for(b"de".to_vec(), "de", "max-age=3600"));
    tier.settle();
    tier.disk.offer(&key(1), &entry(1, 2, 10));
    tier.settle();
    let killed = image_of(dir.path());
    for tier in [tier, Tier::open(killed.path(), LIMITS)] {
        assert_eq!(tier.read(1), [body(1, 2, 10), b"de".to_vec()]);
        assert_eq!(tier.disk.counts().objects, 2);
    }
}

#[test]
fn what_is_fresh_for_long_is_written_and_a_short_one_takes_its_place_with_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let tier = Tier::open(dir.path(), LIMITS);
    for lifetime in ["max-age=59", "no-cache", "max-age=3600, no-cache"] {
        tier.disk.offer(&key(1), &entry_for(b"x".to_vec(), "en", lifetime));
    }
    tier.settle();
    assert_eq!(tier.disk.counts().written, 0);
    tier.disk.offer(&key(1), &entry(1, 1, 10));
    tier.settle();
    tier.disk.offer(&key(1), &entry_for(b"x".to_vec(), "en", "max-age=5"));
    tier.settle();
    let killed = image_of(dir.path());
    for tier in [tier, Tier::open(killed.path(), LIMITS)] {
        assert!(tier.read(1).is_empty(), "older than what the memory had");
    }
}

#[test]
fn what_was_removed_stays_removed_over_a_kill_at_that_moment() {
    let dir = tempfile::tempdir().expect("a folder");
    let tier = Tier::open(dir.path(), LIMITS);
    for n in 0..20 {
        tier.disk.offer(&key(n), &entry(n, 1, 100));
    }
    tier.settle();
    for n in 0..10 {
        tier.disk.remove(&key(n));
        assert!(tier.read(n).is_empty(), "at once");
    }
    tier.persist();
    tier.disk.offer(&key(0), &entry(0, 2, 100));
    tier.settle();
    let killed = image_of(dir.path());
    drop(tier);
    for dir in [killed.path(), dir.path()] {
        let tier = Tier::open(dir, LIMITS);
        assert_eq!(tier.read(0), [body(0, 2, 100)], "stored again");
        for n in 1..20 {
            assert_eq!(tier.read(n).is_empty(), n < 10, "{n}");
        }
    }
}

#[test]
fn a_removal_takes_what_waits_and_costs_nothing_where_nothing_is() {
    let dir = tempfile::tempdir().expect("a folder");
    let tier = Tier::open(dir.path(), LIMITS);
    for round in 0..200 {
        // Waiting, being written, or written: whichever it is.
        tier.disk.offer(&key(1), &entry(1, round, 10_000));
        tier.disk.remove(&key(1));
    }
    tier.settle();
    assert!(tier.read(1).is_empty());
    let killed = image_of(dir.path());
    assert!(Tier::open(killed.path(), LIMITS).read(1).is_empty());
    let written = tier.disk.counts().written;
    for n in 100..200 {
        tier.disk.remove(&key(n));
    }
    tier.settle();
    assert_eq!(tier.disk.counts().written, written);
}

#[test]
fn everything_is_removed_at_once_and_what_comes_after_is_stored() {
    let dir = tempfile::tempdir().expect("a folder");
    let tier = Tier::open(dir.path(), LIMITS);
    for n in 0..20 {
        tier.disk.offer(&key(n), &entry(n, 1, 100));
        if n == 10 {
            tier.settle();
        }
    }
    // Some are written, some wait, one is just being written.
    tier.disk.remove_all();
    assert_eq!(tier.disk.counts().objects, 0, "at once");
    tier.disk.offer(&key(1), &entry(1, 2, 100));
    tier.settle();
    let killed = image_of(dir.path());
    for tier in [tier, Tier::open(killed.path(), LIMITS)] {
        let left: Vec<_> = (0..20).filter(|n| !tier.read(*n).is_empty()).collect();
        assert_eq!(left, [1]);
        assert_eq!(tier.read(1), [body(1, 2, 100)]);
    }
}

#[test]
fn files_never_take_more_than_their_bytes_and_what_is_in_use_stays() {
    const SMALL: DiskLimits = DiskLimits { bytes_max: 1 << 20, object_bytes_max: 1 << 18, shared: false };
    let dir = tempfile::tempdir().expect("a folder");
    let tier = Tier::open(dir.path(), SMALL);
    tier.disk.offer(&key(0), &entry(0, 1, 5_000));
    for n in 1..1_500 {
        tier.disk.offer(&key(n), &entry(n, 1, 1_000 + n % 9_000));
        tier.settle();
        if n % 10 == 0 {
            assert_eq!(tier.read(0), [body(0, 1, 5_000)], "asked for all the time, and gone after {n}");
        }
        let bytes: u64 =
            segments(dir.path()).iter().map(|path| fs::metadata(path).expect("a file").len()).sum();
        assert!(bytes <= SMALL.bytes_max, "{bytes} bytes");
        assert_eq!(bytes, tier.disk.counts().bytes);
    }
    assert!(tier.read(1).is_empty(), "the oldest goes");
    assert_eq!(tier.read(1_499).len(), 1);
    // Larger than a quarter of it.
    tier.disk.offer(&key(9_999), &entry(9_999, 1, 1 << 19));
    tier.settle();
    assert!(tier.read(9_999).is_empty());
    drop(tier);
    let smaller = DiskLimits { bytes_max: 1 << 19, ..SMALL };
    let tier = Tier::open(dir.path(), smaller);
    let bytes = tier.disk.counts().bytes;
    assert!(bytes <= smaller.bytes_max && bytes > 0, "{bytes} bytes after the setting was lowered");
}

#[test]
fn a_folder_of_another_version_and_files_of_others_are_no_obstacle() {
    let dir = tempfile::tempdir().expect("a folder");
    let other = segment::path_of(dir.path(), 7);
    fs::write(&other, b"SOUKSEG9 and what a later version writes").expect("a file");
    fs::write(segment::path_of(dir.path(), 8), b"").expect("a file");
    fs::write(dir.path().join("readme.segment"), b"mine").expect("a file");
    let tier = Tier::open(dir.path(), LIMITS);
    assert!(!other.exists() && tier.told("cannot be read"));
    tier.disk.offer(&key(1), &entry(1, 1, 10));
    tier.settle();
    assert_eq!(tier.read(1), [body(1, 1, 10)]);
    assert_eq!(fs::read(dir.path().join("readme.segment")).expect("a file"), b"mine");
    drop(tier);
    assert!(segments(dir.path()).iter().all(|path| *path != other), "its number is not used again");
}

#[test]
fn a_folder_that_cannot_be_one_is_refused_by_name() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("file");
    fs::write(&file, b"").expect("a file");
    let shelf: Arc<dyn Shelf> = Arc::new(MemoryShelf::new(1 << 20));
    let Err(refused) = Disk::open(&file, LIMITS, shelf, Arc::default(), Box::new(|_| {})) else {
        panic!("a file is no folder")
    };
    assert!(refused.to_string().contains("file"), "{refused}");
}

#[test]
fn when_the_folder_is_taken_away_the_tier_ends_and_nobody_waits() {
    let dir = tempfile::tempdir().expect("a folder");
    let tier = Tier::open(dir.path(), LIMITS);
    fs::remove_dir_all(dir.path()).expect("gone");
    tier.disk.offer(&key(1), &entry(1, 1, 10));
    while tier.disk.counts().phase != Phase::Off {
        std::thread::yield_now();
    }
    assert_eq!(tier.disk.counts().errors, 1);
    assert!(tier.read(1).is_empty());
    tier.disk.remove(&key(1));
    tier.persist();
    tier.disk.offer(&key(1), &entry(1, 1, 10));
    assert!(tier.told("going on from memory"), "{:?}", tier.told.lock());
}

#[test]
fn a_hash_never_decides() {
    let dir = tempfile::tempdir().expect("a folder");
    let tier = Tier::open(dir.path(), LIMITS);
    tier.disk.offer(&key(1), &entry(1, 1, 10));
    tier.settle();
    // As if both keys had one hash.
    let print = |n| tier.disk.shared.print(&key(n));
    let place = tier.disk.shared.state.lock().index.get(print(1))[0].place;
    tier.disk.shared.state.lock().index.put(print(2), place, 0, 0);
    assert!(tier.read(2).is_empty());
    assert_eq!(tier.read(1), [body(1, 1, 10)]);
}

#[test]
fn many_readers_of_one_key_are_one_read() {
    let dir = tempfile::tempdir().expect("a folder");
    let tier = Tier::open(dir.path(), LIMITS);
    tier.disk.offer(&key(1), &entry(1, 1, 100_000));
    tier.settle();
    let readings: Vec<_> = (0..500).map(|_| tier.disk.read(&key(1), NOW).expect("on the disk")).collect();
    for reading in readings {
        tier.runtime.block_on(reading.done());
    }
    assert!(tier.shelf.find(&key(1)).is_some());
    // Those that came after the first read had ended start another.
    assert!(tier.disk.counts().hits < 500, "{}", tier.disk.counts().hits);
}

/// Three generations in one segment, the middle ones removed: what a scan finds of every damage of its file.
fn one_segment() -> (TempDir, PathBuf, Vec<u8>) {
    let dir = tempfile::tempdir().expect("a folder");
    let tier = Tier::open(dir.path(), LIMITS);
    for n in 0..6 {
        tier.disk.offer(&key(n), &entry(n, 1, 40 + n));
    }
    tier.settle();
    for n in 2..4 {
        tier.disk.remove(&key(n));
        tier.persist();
    }
    tier.purge("red");
    tier.disk.offer(&key(4), &entry(4, 2, 30));
    drop(tier);
    let path = segments(dir.path()).pop().expect("a segment");
    let bytes = fs::read(&path).expect("a file");
    (dir, path, bytes)
}

/// Whether a record takes something back, its key, its body.
type Told = (bool, Option<Key>, Option<Vec<u8>>);

#[derive(Debug)]
struct Read {
    records: Vec<Told>,
    end: End,
}

fn scanned(path: &Path, number: u64) -> Option<Read> {
    let file = fs::File::open(path).expect("a file");
    let scanned = segment::scan(&file, number).expect("a file that can be read")?;
    let records = scanned.records.into_iter().map(|found| match found.what {
        Meant::Response { key, .. } => {
            let raw = segment::read(&file, found.place).expect("a file").ok();
            (false, Some(key), raw.map(|raw| raw.body.to_vec()))
        }
        Meant::Removal { key } => (true, Some(key), None),
        Meant::Purge { .. } => (true, None, None),
    });
    Some(Read { records: records.collect(), end: scanned.end })
}

#[test]
fn a_segment_cut_at_any_length_is_a_shorter_one() {
    let (_dir, path, bytes) = one_segment();
    let whole = scanned(&path, 0).expect("a segment").records;
    assert_eq!(whole.len(), 10);
    let mut lengths = Vec::new();
    for length in 0..bytes.len() {
        fs::write(&path, &bytes[..length]).expect("a file");
        let Some(read) = scanned(&path, 0) else {
            assert!(length < START_BYTES as usize, "{length}");
            continue;
        };
        assert_ne!(read.end, End::Damaged, "{length}");
        assert_eq!(read.records, whole[..read.records.len()], "cut at {length}");
        lengths.push(read.records.len());
    }
    assert!(lengths.is_sorted() && lengths.last() == Some(&10), "{lengths:?}");
}

#[test]
fn a_flipped_bit_anywhere_costs_records_and_makes_none() {
    let (_dir, path, bytes) = one_segment();
    let whole = scanned(&path, 0).expect("a segment").records;
    for has_list in [true, false] {
        let list_bytes = if has_list { 0 } else { 40 };
        for at in 0..bytes.len() - list_bytes {
            let mut damaged = bytes[..bytes.len() - list_bytes].to_vec();
            damaged[at] ^= 1 << (at % 8);
            fs::write(&path, &damaged).expect("a file");
            let Some(read) = scanned(&path, 0) else { continue };
            let removals = |records: &[Told]| records.iter().filter(|record| record.0).count();
            assert!(
                read.end == End::Damaged || removals(&read.records) == removals(&whole),
                "a removal is lost and nobody is told: byte {at}"
            );
            for record in &read.records {
                let (is_removal, key, body) = record;
                let known = whole.iter().any(|(other, other_key, other_body)| {
                    other == is_removal && other_key == key && (body.is_none() || other_body == body)
                });
                assert!(known, "byte {at} made {record:?}");
            }
        }
    }
}

#[test]
fn a_header_is_read_as_it_was_written_or_not_at_all() {
    let header = Header::of(Kind::Response, b"meta", &[Bytes::from_static(b"body")]);
    assert_eq!(Header::read(&header.to_bytes()), Ok(header));
    for at in 0..HEADER_BYTES * 8 {
        let mut bytes = header.to_bytes();
        bytes[at / 8] ^= 1 << (at % 8);
        assert!(Header::read(&bytes).is_err(), "bit {at}");
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Store(usize, usize),
    Remove(usize),
    Read(usize),
    /// Go on from what a kill leaves.
    Kill,
    /// The same, and something of the newest segment is cut off or flipped.
    Damage(u16, bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0usize..12, 1usize..3_000).prop_map(|(n, bytes)| Step::Store(n, bytes)),
        2 => (0usize..12).prop_map(Step::Remove),
        2 => (0usize..12).prop_map(Step::Read),
        1 => Just(Step::Kill),
        1 => (any::<u16>(), any::<bool>()).prop_map(|(at, cuts)| Step::Damage(at, cuts)),
    ]
}

/// Damages the newest segment behind what the disk has promised: `kept` bytes of it.
fn damage(dir: &Path, at: u16, cuts: bool, kept: u64) {
    let Some(path) = segments(dir).pop() else { return };
    let mut bytes = fs::read(&path).expect("a file");
    let from = usize::try_from(kept).expect("a small file").min(bytes.len());
    if from >= bytes.len() {
        return;
    }
    let at = from + usize::from(at) % (bytes.len() - from);
    if cuts {
        bytes.truncate(at);
    } else {
        bytes[at] ^= 1 << (at % 8);
    }
    fs::write(&path, bytes).expect("a file");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever happens: a key is answered with the body that was stored last or not at all, and never after it was
    /// removed. Without damage, with that body exactly.
    #[test]
    fn only_what_was_stored_last_is_ever_read(steps in proptest::collection::vec(step(), 1..60)) {
        let mut dir = tempfile::tempdir().expect("a folder");
        let mut tier = Tier::open(dir.path(), LIMITS);
        // Version and body of what was stored last, and whether a damage may have taken it.
        let mut last: HashMap<usize, (Vec<u8>, bool)> = HashMap::new();
        let mut older: HashMap<usize, Vec<Vec<u8>>> = HashMap::new();
        for (version, step) in steps.into_iter().enumerate() {
            match step {
                Step::Store(n, bytes) => {
                    let body = body(n, version, bytes);
                    tier.disk.offer(&key(n), &entry_for(body.clone(), "en", "max-age=3600"));
                    if let Some((before, _)) = last.insert(n, (body, false)) {
                        older.entry(n).or_default().push(before);
                    }
                    tier.settle();
                }
                Step::Remove(n) => {
                    tier.disk.remove(&key(n));
                    tier.persist();
                    last.remove(&n);
                    older.remove(&n);
                }
                Step::Read(n) => {
                    let read = tier.read(n);
                    match last.get(&n) {
                        None => prop_assert!(read.is_empty(), "{} was removed or never stored", n),
                        Some((body, false)) => prop_assert_eq!(&read, std::slice::from_ref(body)),
                        Some((body, true)) => {
                            // Behind a damage an earlier version may be the last one that there is.
                            let known = |found: &Vec<u8>| {
                                found == body || older.get(&n).is_some_and(|older| older.contains(found))
                            };
                            prop_assert!(read.len() <= 1 && read.iter().all(known));
                        }
                    }
                }
                Step::Kill | Step::Damage(..) => {
                    let image = image_of(dir.path());
                    // What a removal has waited for is on the disk, and so is everything in front of it.
                    let kept = promised(&image);
                    if let Step::Damage(at, cuts) = step {
                        damage(image.path(), at, cuts, kept);
                        last.values_mut().for_each(|(_, damaged)| *damaged = true);
                    }
                    drop(tier);
                    dir = image;
                    tier = Tier::open(dir.path(), LIMITS);
                }
            }
        }
        drop(tier);
    }
}

/// Bytes of the newest segment up to the end of its last removal.
fn promised(image: &TempDir) -> u64 {
    let Some(path) = segments(image.path()).pop() else { return 0 };
    let number = path.file_name().and_then(|name| segment::number_of(name.to_str()?)).expect("a segment");
    let file = fs::File::open(&path).expect("a file");
    let Some(scanned) = segment::scan(&file, number).expect("a file") else { return START_BYTES };
    let removals = scanned.records.iter().filter(|found| !matches!(found.what, Meant::Response { .. }));
    removals.map(|found| found.place.at + found.place.record_bytes()).max().unwrap_or(START_BYTES)
}
