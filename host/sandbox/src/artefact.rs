//! Machine code on the disk: kept whole, bounded, and loaded only if this node wrote it.
//!
//! Owns one directory. A file's name is its key: the component's digest and everything that decides what the compiler
//! makes of it. Loading machine code means to trust it, so each file carries a message authentication code under a
//! secret that this node minted and that only its user can read; one flipped bit anywhere, a file from another
//! machine, a file under another name: all are removed, counted and compiled again. This is the crate's only unsafe
//! code.
//!
//! Refuses to know what a plugin is, and who needs which. Called by [`crate::loader`], on threads that may block.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions, Permissions};
use std::hash::{Hash, Hasher};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use aws_lc_rs::hmac;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use sha2::{Digest as _, Sha256};
use souk_commerce::id::Digest;
use wasmtime::Engine;
use wasmtime::component::Component;

/// First bytes of a file. Another number when the layout changes: magic, key, code, machine code.
const MAGIC: &[u8; 8] = b"soukart1";
const KEY_BYTES: usize = 32;
const MAC_BYTES: usize = 32;
const HEAD_BYTES: usize = MAGIC.len() + KEY_BYTES + MAC_BYTES;
/// Counts what [`crate::admit`] refuses: an artefact of a component that would not be admitted today must not load.
const ADMISSION_REVISION: u32 = 2;
const SECRET_BYTES: usize = 32;
const SECRET_FILE: &str = "secret";
const SUFFIX: &str = ".art";
const DRAFT_SUFFIX: &str = ".draft";
/// Files in the directory: at 200 bytes of index each this is 20 MB.
const FILES_MAX: usize = 100_000;

/// What an artefact was made from and for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key([u8; KEY_BYTES]);

impl Key {
    pub(crate) fn of(component: Digest, kind: &str, engine: &Engine, memory_bytes_max: usize) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"souk artefact\0");
        hash.update(ADMISSION_REVISION.to_le_bytes());
        hash.update(component.0);
        hash.update((memory_bytes_max as u64).to_le_bytes());
        hash.update(kind.as_bytes());
        hash.update([0]);
        hash.update(compatibility(engine).as_bytes());
        Self(hash.finalize().into())
    }

    fn file_name(&self) -> String {
        hex::encode(self.0) + SUFFIX
    }

    fn of_file_name(name: &str) -> Option<Self> {
        let mut key = [0; KEY_BYTES];
        hex::decode_to_slice(name.strip_suffix(SUFFIX)?, &mut key).ok()?;
        Some(Self(key))
    }
}

/// Everything about an engine that decides whether it can load an artefact: wasmtime's version and settings, and the
/// processor.
pub(crate) fn compatibility(engine: &Engine) -> String {
    struct Sha(Sha256);
    impl Hasher for Sha {
        fn finish(&self) -> u64 {
            0
        }
        fn write(&mut self, bytes: &[u8]) {
            self.0.update(bytes);
        }
    }
    let mut hasher = Sha(Sha256::new());
    engine.precompile_compatibility_hash().hash(&mut hasher);
    hasher.0.finalize()[..16].iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Machine code that may be loaded: it comes from the compiler, or from a file that this node wrote.
pub(crate) struct Artefact {
    bytes: Vec<u8>,
    /// Where the machine code begins.
    at: usize,
}

impl Artefact {
    /// `code` must be what wasmtime's compiler returned, here or in a child process of ours.
    pub(crate) fn from_compiler(code: Vec<u8>) -> Self {
        Self { bytes: code, at: 0 }
    }

    fn code(&self) -> &[u8] {
        &self.bytes[self.at..]
    }

    /// Makes the code callable. Copies it: what lies on the disk may change, what was checked may not.
    pub(crate) fn load(&self, engine: &Engine) -> wasmtime::Result<Component> {
        // SAFETY: `deserialize` demands bytes that wasmtime's own compiler wrote. The two ways to make an `Artefact`
        // see to that: `from_compiler`, which is given only a compiler's output, and `Artefacts::find`, which gives
        // only bytes that carry this node's authentication code over exactly them, and this node authenticates only
        // what `from_compiler` made. They are in our own memory, where nobody changes them between check and use.
        #[expect(unsafe_code, reason = "loading machine code is what this module exists for")]
        unsafe {
            Component::deserialize(engine, self.code())
        }
    }
}

/// Counters of what happens to artefacts.
#[derive(Clone, Default)]
pub(crate) struct ArtefactMetrics {
    pub(crate) hits: Counter,
    pub(crate) stored: Counter,
    pub(crate) corrupt: Counter,
    pub(crate) unstored: Counter,
    pub(crate) evicted: Counter,
    pub(crate) bytes: Gauge,
}

/// The directory. All methods block.
pub(crate) struct Artefacts {
    dir: PathBuf,
    secret: hmac::Key,
    bytes_max: u64,
    file_bytes_max: u64,
    index: Mutex<Index>,
    metrics: ArtefactMetrics,
    /// How a file gets its content; tests put a full disk here.
    write: fn(&mut File, &[&[u8]]) -> io::Result<()>,
}

/// What lies in the directory, and in which order it was used.
#[derive(Default)]
struct Index {
    files: HashMap<Key, Entry>,
    by_use: BTreeMap<u64, Key>,
    uses: u64,
    bytes: u64,
}

#[derive(Clone, Copy)]
struct Entry {
    bytes: u64,
    used: u64,
}

impl Artefacts {
    pub(crate) fn open(
        dir: &Path,
        bytes_max: u64,
        code_bytes_max: u64,
        metrics: ArtefactMetrics,
    ) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let secret = hmac::Key::new(hmac::HMAC_SHA256, &secret(dir)?);
        let index = Index::read(dir)?;
        metrics.bytes.set(i64::try_from(index.bytes).unwrap_or(i64::MAX));
        let artefacts = Self {
            dir: dir.to_owned(),
            secret,
            bytes_max,
            file_bytes_max: code_bytes_max.saturating_add(HEAD_BYTES as u64),
            index: Mutex::new(index),
            metrics,
            write: write_synced,
        };
        // The limit may have been lowered since.
        artefacts.make_room(0);
        Ok(artefacts)
    }

    /// Whether there is a file for `key`. It may yet turn out to be rotten.
    pub(crate) fn has(&self, key: &Key) -> bool {
        self.index.lock().files.contains_key(key)
    }

    /// The artefact, if this node wrote what lies there.
    pub(crate) fn find(&self, key: &Key) -> Option<Artefact> {
        if !self.index.lock().touch(key) {
            return None;
        }
        match self.read(key) {
            Ok(Some(artefact)) => {
                self.metrics.hits.inc();
                Some(artefact)
            }
            Ok(None) => {
                self.metrics.corrupt.inc();
                tracing::error!(
                    file = key.file_name(),
                    "a file of machine code is not what this node wrote: it is removed"
                );
                self.forget(key);
                None
            }
            Err(error) => {
                tracing::warn!(%error, file = key.file_name(), "cannot read machine code from the disk");
                self.forget(key);
                None
            }
        }
    }

    fn read(&self, key: &Key) -> io::Result<Option<Artefact>> {
        let file = File::open(self.path(key))?;
        let length = file.metadata()?.len();
        if length > self.file_bytes_max || length < HEAD_BYTES as u64 {
            return Ok(None);
        }
        let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
        (&file).take(self.file_bytes_max).read_to_end(&mut bytes)?;
        // When it was last used, for whoever starts after us. A disk that cannot note it is no reason not to load.
        let _ = file.set_modified(SystemTime::now());
        let Some((head, code)) = bytes.split_at_checked(HEAD_BYTES) else { return Ok(None) };
        let (magic, rest) = head.split_at(MAGIC.len());
        let (named, mac) = rest.split_at(KEY_BYTES);
        if magic != MAGIC || named != key.0 {
            return Ok(None);
        }
        let mut authenticated = hmac::Context::with_key(&self.secret);
        authenticated.update(magic);
        authenticated.update(named);
        authenticated.update(code);
        // In constant time, although whoever can write here has better ways.
        let ours =
            aws_lc_rs::constant_time::verify_slices_are_equal(authenticated.sign().as_ref(), mac).is_ok();
        Ok(ours.then_some(Artefact { bytes, at: HEAD_BYTES }))
    }

    /// Keeps an artefact. If that fails, the plugin runs all the same and is compiled again after a restart.
    pub(crate) fn store(&self, key: &Key, artefact: &Artefact) {
        let bytes = (HEAD_BYTES + artefact.code().len()) as u64;
        if bytes > self.bytes_max {
            self.metrics.unstored.inc();
            return;
        }
        self.make_room(bytes);
        let mut written = self.put(key, artefact);
        if let Err(error) = &written
            && matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        {
            // The disk has less room than we were allowed: whatever was used least goes first.
            let half = self.index.lock().bytes / 2;
            self.make_room(self.bytes_max.saturating_sub(half));
            written = self.put(key, artefact);
        }
        match written {
            Ok(()) => {
                self.index.lock().insert(*key, bytes);
                self.metrics.stored.inc();
            }
            Err(error) => {
                self.metrics.unstored.inc();
                tracing::warn!(%error, "cannot keep machine code on the disk: it is compiled again when needed");
            }
        }
        self.note_bytes();
    }

    /// Whole or not at all, and there after a power cut.
    fn put(&self, key: &Key, artefact: &Artefact) -> io::Result<()> {
        let mut authenticated = hmac::Context::with_key(&self.secret);
        authenticated.update(MAGIC);
        authenticated.update(&key.0);
        authenticated.update(artefact.code());
        let mac = authenticated.sign();
        let path = self.path(key);
        let draft = path.with_extension(format!("{:08x}{DRAFT_SUFFIX}", self.index.lock().next_use()));
        let written = create_new(&draft)
            .and_then(|mut file| (self.write)(&mut file, &[MAGIC, &key.0, mac.as_ref(), artefact.code()]));
        let placed = written.and_then(|()| fs::rename(&draft, &path)).and_then(|()| sync_dir(&self.dir));
        if placed.is_err() {
            let _ = fs::remove_file(&draft);
        }
        placed
    }

    /// Removes what was used least, until `bytes` more fit.
    fn make_room(&self, bytes: u64) {
        loop {
            let oldest = {
                let index = self.index.lock();
                let fits =
                    index.bytes.saturating_add(bytes) <= self.bytes_max && index.files.len() < FILES_MAX;
                if fits { None } else { index.by_use.values().next().copied() }
            };
            let Some(oldest) = oldest else { return self.note_bytes() };
            self.forget(&oldest);
            self.metrics.evicted.inc();
        }
    }

    /// Removes an artefact.
    pub(crate) fn forget(&self, key: &Key) {
        self.index.lock().remove(key);
        if let Err(error) = fs::remove_file(self.path(key))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, file = key.file_name(), "cannot remove machine code from the disk");
        }
        self.note_bytes();
    }

    fn note_bytes(&self) {
        self.metrics.bytes.set(i64::try_from(self.index.lock().bytes).unwrap_or(i64::MAX));
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.dir.join(key.file_name())
    }
}

impl Index {
    /// What a former life left. Drafts are what a crash left of a write.
    fn read(dir: &Path) -> io::Result<Self> {
        let mut found = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.ends_with(DRAFT_SUFFIX) {
                fs::remove_file(entry.path())?;
            } else if let Some(key) = Key::of_file_name(&name) {
                let meta = entry.metadata()?;
                found.push((meta.modified().unwrap_or(SystemTime::UNIX_EPOCH), key, meta.len()));
            }
        }
        found.sort();
        let mut index = Self::default();
        for (_, key, bytes) in found {
            index.insert(key, bytes);
        }
        Ok(index)
    }

    fn next_use(&mut self) -> u64 {
        self.uses += 1;
        self.uses
    }

    fn insert(&mut self, key: Key, bytes: u64) {
        self.remove(&key);
        let used = self.next_use();
        self.files.insert(key, Entry { bytes, used });
        self.by_use.insert(used, key);
        self.bytes += bytes;
    }

    fn touch(&mut self, key: &Key) -> bool {
        let Some(entry) = self.files.get(key).copied() else { return false };
        self.insert(*key, entry.bytes);
        true
    }

    fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.files.remove(key) {
            self.by_use.remove(&entry.used);
            self.bytes -= entry.bytes;
        }
    }
}

/// The node's secret, minted at the first start. One that others could read is no secret: it is replaced, and with it
/// every artefact becomes worthless.
fn secret(dir: &Path) -> io::Result<[u8; SECRET_BYTES]> {
    let path = dir.join(SECRET_FILE);
    if let Ok(mut file) = File::open(&path) {
        let private = file.metadata()?.permissions().mode() & 0o077 == 0;
        let mut secret = Vec::new();
        (&mut file).take(SECRET_BYTES as u64 + 1).read_to_end(&mut secret)?;
        match secret.try_into() {
            Ok(secret) if private => return Ok(secret),
            _ => {
                tracing::warn!(path = %path.display(), "the secret of the kept machine code was not private and whole: a new one is minted")
            }
        }
        fs::remove_file(&path)?;
    }
    let mut secret = [0; SECRET_BYTES];
    aws_lc_rs::rand::fill(&mut secret).map_err(|_| io::Error::other("no randomness"))?;
    let draft = dir.join(format!("{SECRET_FILE}{DRAFT_SUFFIX}"));
    let _ = fs::remove_file(&draft);
    write_synced(&mut create_new(&draft)?, &[&secret])?;
    fs::rename(&draft, &path)?;
    sync_dir(dir)?;
    Ok(secret)
}

/// A file that nobody else can read, and that was not there.
fn create_new(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    // The process's mask may have taken bits away, never added any; this is for reading it back.
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}

fn write_synced(file: &mut File, parts: &[&[u8]]) -> io::Result<()> {
    for part in parts {
        file.write_all(part)?;
    }
    file.sync_all()
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const CODE: usize = 4_000;
    const FILE: u64 = (HEAD_BYTES + CODE) as u64;

    fn open(dir: &Path, files: u64) -> Artefacts {
        Artefacts::open(dir, files * FILE, 1 << 20, ArtefactMetrics::default()).unwrap()
    }

    fn key(i: u8) -> Key {
        Key([i; KEY_BYTES])
    }

    fn artefact(i: u8) -> Artefact {
        Artefact::from_compiler(vec![i; CODE])
    }

    #[test]
    fn what_was_stored_is_found_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path(), 10).store(&key(1), &artefact(1));
        let again = open(dir.path(), 10);
        assert!(again.has(&key(1)) && !again.has(&key(2)));
        assert_eq!(again.find(&key(1)).unwrap().code(), artefact(1).code());
        assert!(again.find(&key(2)).is_none());
        assert_eq!((again.metrics.hits.get(), again.metrics.corrupt.get()), (1, 0));
    }

    #[test]
    fn one_flipped_bit_anywhere_and_it_is_not_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let artefacts = open(dir.path(), 10);
        let path = artefacts.path(&key(1));
        let step = usize::try_from(FILE).unwrap() / 200;
        let places: Vec<_> = (0..200).map(|i| i * step).chain(0..HEAD_BYTES).collect();
        for (i, at) in places.iter().enumerate() {
            artefacts.store(&key(1), &artefact(7));
            let mut bytes = fs::read(&path).unwrap();
            bytes[*at] ^= 1 << (i % 8);
            fs::write(&path, bytes).unwrap();
            assert!(artefacts.find(&key(1)).is_none(), "byte {at}");
            assert!(!path.exists() && !artefacts.has(&key(1)), "byte {at}: it is removed");
        }
        assert_eq!(artefacts.metrics.corrupt.get(), places.len() as u64);
        for length in [0, 10, HEAD_BYTES, HEAD_BYTES + 1, CODE] {
            artefacts.store(&key(1), &artefact(7));
            File::options().write(true).open(&path).unwrap().set_len(length as u64).unwrap();
            assert!(artefacts.find(&key(1)).is_none(), "cut to {length}");
        }
    }

    #[test]
    fn a_file_of_another_node_or_under_another_name_is_not_loaded() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let artefacts = open(dir.path(), 10);
        artefacts.store(&key(1), &artefact(1));
        let file = artefacts.path(&key(1));
        fs::copy(&file, dir.path().join(key(2).file_name())).unwrap();
        let foreign = open(other.path(), 10);
        fs::copy(&file, foreign.path(&key(1))).unwrap();
        assert!(open(dir.path(), 10).find(&key(2)).is_none(), "another name");
        assert!(open(other.path(), 10).find(&key(1)).is_none(), "another node");
        assert!(artefacts.find(&key(1)).is_some());
    }

    #[test]
    fn a_secret_that_others_could_read_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path(), 10).store(&key(1), &artefact(1));
        let secret = dir.path().join(SECRET_FILE);
        assert_eq!(fs::metadata(&secret).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(open(dir.path(), 10).find(&key(1)).is_some());
        fs::set_permissions(&secret, Permissions::from_mode(0o644)).unwrap();
        assert!(open(dir.path(), 10).find(&key(1)).is_none());
        assert_eq!(fs::metadata(&secret).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn the_least_recently_used_goes_first_in_this_life_and_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let artefacts = open(dir.path(), 3);
        for i in 1..=3 {
            artefacts.store(&key(i), &artefact(i));
        }
        assert!(artefacts.find(&key(1)).is_some());
        artefacts.store(&key(4), &artefact(4));
        let kept = |artefacts: &Artefacts| (1..=4).filter(|i| artefacts.has(&key(*i))).collect::<Vec<_>>();
        assert_eq!(kept(&artefacts), [1, 3, 4]);
        assert_eq!((artefacts.metrics.evicted.get(), artefacts.index.lock().bytes), (1, 3 * FILE));
        // The clock of a file system may be coarse.
        let old = SystemTime::now() - Duration::from_secs(60);
        File::options().write(true).open(artefacts.path(&key(4))).unwrap().set_modified(old).unwrap();
        assert_eq!(kept(&open(dir.path(), 2)), [1, 3], "with less room");
    }

    #[test]
    fn a_full_disk_costs_what_was_used_least_and_no_plugin() {
        fn full(_: &mut File, _: &[&[u8]]) -> io::Result<()> {
            Err(io::ErrorKind::StorageFull.into())
        }
        let dir = tempfile::tempdir().unwrap();
        let mut artefacts = open(dir.path(), 10);
        for i in 1..=4 {
            artefacts.store(&key(i), &artefact(i));
        }
        artefacts.write = full;
        artefacts.store(&key(5), &artefact(5));
        assert!(!artefacts.has(&key(5)));
        assert_eq!(artefacts.index.lock().files.len(), 2, "half of it made room");
        assert!(artefacts.find(&key(4)).is_some());
        assert_eq!(artefacts.metrics.unstored.get(), 1);
        let drafts = fs::read_dir(dir.path()).unwrap().filter(|entry| {
            entry.as_ref().is_ok_and(|entry| entry.file_name().to_string_lossy().ends_with(DRAFT_SUFFIX))
        });
        assert_eq!(drafts.count(), 0);
        artefacts.write = write_synced;
        artefacts.store(&key(5), &artefact(5));
        assert!(artefacts.find(&key(5)).is_some(), "room again");
    }

    #[test]
    fn what_a_crash_left_is_cleared_away() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path(), 10).store(&key(1), &artefact(1));
        let draft = dir.path().join(format!("{}.00000009{DRAFT_SUFFIX}", hex::encode([1; 32])));
        fs::write(&draft, b"half").unwrap();
        assert!(open(dir.path(), 10).find(&key(1)).is_some());
        assert!(!draft.exists());
    }
}
