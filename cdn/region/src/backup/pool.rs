//! The bytes that rows refer to, by digest: one file each, shared by all backups of a folder. So the second backup copies what
//! is new, and nothing in it is changed by a later one.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use souk_commerce::id::Digest;

use super::BackupError;
use super::folder::{create_private, make_private, settle};
use crate::blobs;

/// Bytes that are read at a time.
const CHUNK: usize = 256 << 10;

/// A folder of blobs that is written to: the pool of the backups, or a region's.
pub(super) struct Pool {
    dir: PathBuf,
    /// Folders with new names, to be flushed once at the end.
    touched: BTreeSet<PathBuf>,
}

/// What became of one blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Copied {
    /// It was there.
    Known {
        bytes: u64,
    },
    New {
        bytes: u64,
    },
    /// It is not at its source, or other bytes are.
    Absent,
}

impl Pool {
    pub(super) const fn of(dir: PathBuf) -> Self {
        Self { dir, touched: BTreeSet::new() }
    }

    pub(super) fn path(&self, digest: Digest) -> PathBuf {
        blobs::path_in(&self.dir, digest)
    }

    /// Copies one from another such folder, and reads it for its digest while doing so.
    pub(super) fn take(&mut self, digest: Digest, from: &Path) -> Result<Copied, BackupError> {
        let place = self.path(digest);
        let source = blobs::path_in(from, digest);
        let length = |path: &Path| match std::fs::metadata(path) {
            Ok(file) => Ok(Some(file.len())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(BackupError::of(path, e)),
        };
        let known = length(&place)?;
        let Some(bytes) = length(&source)? else {
            // Collected at its source since the rows were read, or it never came; an earlier backup may have it.
            return Ok(known.map_or(Copied::Absent, |bytes| Copied::Known { bytes }));
        };
        if known == Some(bytes) {
            return Ok(Copied::Known { bytes });
        }
        let folder = place.parent().expect("a blob lies in a folder of two letters").to_owned();
        make_private(&folder)?;
        let partial = self.dir.join("unfinished");
        make_private(&partial)?;
        let partial = partial.join(digest.to_string());
        let copied = copy(&source, &partial);
        let is_whole = matches!(&copied, Ok(found) if *found == digest);
        if !is_whole {
            let _gone_already = std::fs::remove_file(&partial);
            return copied.map(|_other| Copied::Absent);
        }
        std::fs::rename(&partial, &place).map_err(|e| BackupError::of(&place, e))?;
        self.touched.insert(folder);
        Ok(Copied::New { bytes })
    }

    /// Makes every new name durable.
    pub(super) fn settle(&mut self) -> Result<(), BackupError> {
        for folder in std::mem::take(&mut self.touched) {
            settle(&folder)?;
        }
        if self.dir.exists() { settle(&self.dir) } else { Ok(()) }
    }
}

fn copy(from: &Path, to: &Path) -> Result<Digest, BackupError> {
    let mut source = File::open(from).map_err(|e| BackupError::of(from, e))?;
    let mut target = create_private(to)?;
    let (mut hash, mut chunk) = (Sha256::new(), vec![0; CHUNK]);
    loop {
        let read = source.read(&mut chunk).map_err(|e| BackupError::of(from, e))?;
        if read == 0 {
            break;
        }
        hash.update(&chunk[..read]);
        target.write_all(&chunk[..read]).map_err(|e| BackupError::of(to, e))?;
    }
    target.sync_all().map_err(|e| BackupError::of(to, e))?;
    Ok(Digest(hash.finalize().into()))
}

/// The digests of a backup, a line each: `<64 hexadecimal digits> <bytes>`.
pub(super) fn line(digest: Digest, bytes: u64) -> String {
    format!("{digest} {bytes}\n")
}

pub(super) fn read_line(line: &str) -> Option<(Digest, u64)> {
    let (digest, bytes) = line.split_once(' ')?;
    Some((digest.parse().ok()?, bytes.parse().ok()?))
}
