//! `souk region backup`, `verify` and `restore`: a region's truth in a folder, and back.
//!
//! It owns the files of a backup: what is in them ([`manifest`], [`rows`]), how they come to be there whole or not at all
//! ([`folder`]), and which bytes that rows refer to lie beside them ([`pool`]). What rows there are and what must hold between
//! them is the store's ([`crate::store::backup`]). One form for both engines: what was SQLite's can become PostgreSQL's.
//!
//! ```text
//! DIR/                          as many backups as are kept
//!   blobs/ab/cdef…              bytes by digest, once for all of them
//!   20261130T130522Z/           one backup
//!     manifest.json             what is in it; written last
//!     manifest.sha256
//!     orders.rows …             a file for each table
//!     blobs.list                the digests that its rows refer to
//! ```
//!
//! Called by the command line, without a region of its own: the one that runs is left alone.

mod checking;
mod folder;
mod making;
mod manifest;
mod pool;
mod pruning;
mod restoring;
pub(crate) mod rows;

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use souk_config::{RegionConfig, StoreConfig};

pub use checking::{Checked, verify, verify_running};
pub use making::{Made, back_up};
pub use restoring::{Restored, Waived, restore};

use crate::running;
use crate::store::StoreError;
use crate::store::backup::{Door, file_in};

/// Faults that one report names; a disk that is broken has millions.
const FAULTS_MAX: usize = 100;

/// Why there is no backup, or nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("the region's database: {0}")]
    Store(String),
    #[error("cannot use {}: {source}", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("the disk of {} is full: free some room and ask again. Nothing was left half-done there", path.display())]
    Full { path: PathBuf },
    #[error("another backup is being made in {}: wait until it has ended", path.display())]
    Busy { path: PathBuf },
    #[error("there is no region in {}: nothing to back up", path.display())]
    NoRegion { path: PathBuf },
    #[error("{} is no backup: name the folder that holds a manifest.json, or the one that backups are made in", path.display())]
    NoBackup { path: PathBuf },
    #[error(
        "the backup is of format {format}, and this program reads up to {known}: use the release that made it, or a newer one"
    )]
    NewerFormat { format: u32, known: u32 },
    #[error("the backup is broken, and nothing was restored: {}", faults.join("; "))]
    Broken { faults: Vec<String> },
    #[error("a backup is restored into an empty place only: {0}")]
    NotEmpty(String),
    #[error(
        "the releases in the backup are sealed with key {backup}, and this region has {}: put the key's file in its place, \
         or restore with --other-seal-key and give the nodes the new public key",
        own.as_deref().unwrap_or("none")
    )]
    OtherSealKey { backup: String, own: Option<String> },
    #[error(
        "orders in the backup hold names and notes that are sealed under shoppers' keys, and {0}. Put vault.key and the keyring of \
         the region that was into their places (docs/BACKUP.md), or restore with --without-keyring: then nobody ever reads them"
    )]
    NoKeyring(String),
}

impl BackupError {
    fn of(path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                Self::Full { path: path.to_owned() }
            }
            _ => Self::Folder { path: path.to_owned(), source },
        }
    }

    /// An error of the store while `path` was written to.
    fn while_writing(path: &Path, error: StoreError) -> Self {
        match error {
            StoreError::Io(source) => Self::of(path, source),
            full if full.is_full() => Self::Full { path: path.to_owned() },
            other => other.into(),
        }
    }
}

impl From<StoreError> for BackupError {
    fn from(error: StoreError) -> Self {
        Self::Store(error.to_string())
    }
}

/// What is being done, for whoever waits: `done` of `of`, where that is known.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// A table, or `blobs`.
    pub what: &'a str,
    pub done: u64,
    pub of: Option<u64>,
}

/// Is told how far it is.
pub type Told<'a> = dyn FnMut(Progress<'_>) + 'a;

/// What an operator is told at the end, of any of the three.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Sizes {
    pub rows: u64,
    pub orders: u64,
    pub carts: u64,
    pub blobs: u64,
    pub blob_bytes: u64,
}

/// Opens the database of a configuration, without a region.
pub(crate) fn door(config: &RegionConfig) -> Result<Door, BackupError> {
    match &config.store {
        StoreConfig::Sqlite => Ok(Door::sqlite(file_in(&config.region.data_dir))),
        StoreConfig::Postgres(database) => {
            let password = running::password(database).map_err(BackupError::Store)?;
            Ok(Door::postgres(database, password.as_deref())?)
        }
    }
}
