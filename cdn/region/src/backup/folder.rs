//! Files that are there whole or not at all, and a folder that one process at a time works in.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::BackupError;

/// What is not finished is named so, and is nobody's as soon as the lock is free.
const UNFINISHED: &str = ".unfinished-";
const LOCK: &str = ".lock";

/// Shoppers' data is in there.
pub(super) fn make_private(path: &Path) -> Result<(), BackupError> {
    match DirBuilder::new().recursive(true).mode(0o700).create(path) {
        Err(e) => Err(BackupError::of(path, e)),
        Ok(()) => Ok(()),
    }
}

pub(super) fn create_private(path: &Path) -> Result<File, BackupError> {
    let opened = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    opened.map_err(|e| BackupError::of(path, e))
}

/// A name is durable when its folder is.
pub(super) fn settle(folder: &Path) -> Result<(), BackupError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|e| BackupError::of(folder, e))
}

/// A small file, written beside its place, flushed, and renamed into it.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), BackupError> {
    let partial = path.with_extension("partial");
    let mut file = create_private(&partial)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    written.and_then(|()| std::fs::rename(&partial, path)).map_err(|e| BackupError::of(path, e))
}

/// A folder of backups, as long as this process is the only one that makes any.
pub(super) struct Folder {
    pub(super) dir: PathBuf,
    _lock: File,
}

impl Folder {
    /// Makes it if it is not there, and clears away what a process before did not finish.
    pub(super) fn enter(dir: &Path) -> Result<Self, BackupError> {
        make_private(dir)?;
        let path = dir.join(LOCK);
        let lock = create_private(&path)?;
        lock.try_lock().map_err(|_| BackupError::Busy { path: dir.to_owned() })?;
        let entries = std::fs::read_dir(dir).map_err(|e| BackupError::of(dir, e))?;
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                std::fs::remove_dir_all(entry.path()).map_err(|e| BackupError::of(&entry.path(), e))?;
            }
        }
        Ok(Self { dir: dir.to_owned(), _lock: lock })
    }

    /// Takes a backup away, at once for whoever looks.
    pub(super) fn discard(&self, backup: &Path) -> Result<(), BackupError> {
        let hidden = self.dir.join(format!("{UNFINISHED}{:016x}", rand::random::<u64>()));
        std::fs::rename(backup, &hidden).map_err(|e| BackupError::of(backup, e))?;
        std::fs::remove_dir_all(&hidden).map_err(|e| BackupError::of(&hidden, e))
    }

    /// A place for a backup that is named when it is finished.
    pub(super) fn begin(&self) -> Result<Unfinished, BackupError> {
        let path = self.dir.join(format!("{UNFINISHED}{:016x}", rand::random::<u64>()));
        make_private(&path)?;
        Ok(Unfinished { path, is_kept: false })
    }
}

/// A backup on its way. Dropped unfinished, it leaves nothing behind.
pub(super) struct Unfinished {
    pub(super) path: PathBuf,
    is_kept: bool,
}

impl Unfinished {
    /// Gives it its name, durably. Returns where it is.
    pub(super) fn finish(mut self, folder: &Folder, name: &str) -> Result<PathBuf, BackupError> {
        settle(&self.path)?;
        let mut place = folder.dir.join(name);
        // Two within a second.
        for again in 2.. {
            if !place.exists() {
                break;
            }
            place = folder.dir.join(format!("{name}-{again:03}"));
        }
        std::fs::rename(&self.path, &place).map_err(|e| BackupError::of(&place, e))?;
        self.is_kept = true;
        settle(&folder.dir)?;
        Ok(place)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.is_kept && std::fs::remove_dir_all(&self.path).is_err() {
            tracing::warn!(path = %self.path.display(), "a backup that failed stays until the next one");
        }
    }
}
