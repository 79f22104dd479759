//! What is in a backup, and how to know that it still is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use souk_commerce::id::Digest;

use super::BackupError;
use super::folder::write_whole;

/// Of the files and of this one. A reader of a newer format reads the older ones.
pub(super) const FORMAT: u32 = 1;
pub(super) const FILE: &str = "manifest.json";
/// The digest of that file, in words: nothing in a backup is not covered by one.
const DIGEST_FILE: &str = "manifest.sha256";
/// A manifest names some forty files; whatever is larger is none of ours.
const BYTES_MAX: u64 = 16 << 20;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub(super) format: u32,
    /// The program that made it.
    pub(super) made_by: String,
    pub(super) made_ms: u64,
    pub(super) region: String,
    /// The number of the history that it is a moment of.
    pub(super) region_epoch: u32,
    /// Which home of the region it was; 0 in a backup of a release that had but one.
    #[serde(default)]
    pub(super) term: u64,
    /// `sqlite` or `postgres`; either can take it.
    pub(super) engine: String,
    /// Version of the tables.
    pub(super) schema: usize,
    /// Newest version of each log.
    pub(super) heads: BTreeMap<String, u64>,
    /// The last numbers that columns have given out by themselves, by table.
    pub(super) counters: BTreeMap<String, u64>,
    /// The key that seals the region's releases, by its name. It is not in here.
    pub(super) seal_key: Option<String>,
    /// In the order in which they are put back.
    pub(super) tables: Vec<TableFile>,
    pub(super) blobs: BlobList,
    /// Digests that rows refer to and whose bytes were not at the region, or other ones.
    pub(super) absent: Vec<Digest>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TableFile {
    pub(super) table: String,
    pub(super) columns: Vec<String>,
    pub(super) rows: u64,
    pub(super) bytes: u64,
    pub(super) sha256: Digest,
}

impl TableFile {
    pub(super) fn file(&self) -> String {
        file_of(&self.table)
    }
}

pub(super) fn file_of(table: &str) -> String {
    format!("{table}.rows")
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BlobList {
    pub(super) count: u64,
    /// Of the blobs together.
    pub(super) bytes: u64,
    /// Of the list.
    pub(super) sha256: Digest,
}

impl Manifest {
    /// Its last file: what is there before it is not a backup yet.
    pub(super) fn write(&self, folder: &Path) -> Result<(), BackupError> {
        let text = serde_json::to_string_pretty(self).expect("a manifest has string keys only") + "\n";
        let digest = Digest::of(text.as_bytes()).to_string() + "\n";
        write_whole(&folder.join(DIGEST_FILE), digest.as_bytes())?;
        write_whole(&folder.join(FILE), text.as_bytes())
    }

    pub(super) fn read(folder: &Path) -> Result<Result<Self, String>, BackupError> {
        let read = |name: &str| {
            let path = folder.join(name);
            let length = std::fs::metadata(&path).map_err(|e| BackupError::of(&path, e))?.len();
            if length > BYTES_MAX {
                return Ok(Vec::new());
            }
            std::fs::read(&path).map_err(|e| BackupError::of(&path, e))
        };
        let text = read(FILE)?;
        let told = read(DIGEST_FILE)?;
        let actual = Digest(Sha256::digest(&text).into()).to_string() + "\n";
        if told != actual.as_bytes() {
            return Ok(Err(format!("{FILE} is not what {DIGEST_FILE} says")));
        }
        #[derive(Deserialize)]
        struct OfAnyFormat {
            format: u32,
        }
        match serde_json::from_slice::<OfAnyFormat>(&text) {
            Ok(OfAnyFormat { format }) if format > FORMAT => {
                return Err(BackupError::NewerFormat { format, known: FORMAT });
            }
            _ => {}
        }
        Ok(serde_json::from_slice(&text).map_err(|e| format!("{FILE} cannot be read: {e}")))
    }

    pub(super) fn rows_of(&self, table: &str) -> u64 {
        self.tables.iter().find(|file| file.table == table).map_or(0, |file| file.rows)
    }

    pub(super) fn sizes(&self) -> super::Sizes {
        super::Sizes {
            rows: self.tables.iter().map(|file| file.rows).sum(),
            orders: self.rows_of("orders"),
            carts: self.rows_of("cart"),
            blobs: self.blobs.count,
            blob_bytes: self.blobs.bytes,
        }
    }
}

/// The backup that was meant: the folder itself, or the newest in it.
pub(super) fn find(dir: &Path) -> Result<PathBuf, BackupError> {
    if dir.join(FILE).is_file() {
        return Ok(dir.to_owned());
    }
    let newest = match all(dir) {
        Err(BackupError::Folder { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => None,
        found => found?.pop(),
    };
    newest.ok_or_else(|| BackupError::NoBackup { path: dir.to_owned() })
}

/// The backups in a folder, the oldest first: their names are their times.
pub(super) fn all(dir: &Path) -> Result<Vec<PathBuf>, BackupError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| BackupError::of(dir, e))? {
        let entry = entry.map_err(|e| BackupError::of(dir, e))?;
        let is_hidden = entry.file_name().to_string_lossy().starts_with('.');
        if !is_hidden && entry.path().join(FILE).is_file() {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}
