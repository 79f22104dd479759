//! Takes old backups away, and the blobs that no other one refers to.

use std::collections::HashSet;
use std::io;
use std::num::NonZeroUsize;

use souk_commerce::id::Digest;

use super::checking::listed;
use super::folder::Folder;
use super::making::BLOBS;
use super::{BackupError, manifest};

/// Keeps the newest `keep`, and returns how many were taken away. A backup that is taken away is none from its first step on:
/// who is killed in between leaves what the next one clears.
///
/// Holds the digests of those that stay, 32 bytes each.
pub(super) fn prune(folder: &Folder, keep: NonZeroUsize) -> Result<usize, BackupError> {
    let mut backups = manifest::all(&folder.dir)?;
    let gone = backups.len().saturating_sub(keep.get());
    if gone == 0 {
        return Ok(0);
    }
    for old in backups.drain(..gone) {
        folder.discard(&old)?;
    }
    let mut needed: HashSet<Digest> = HashSet::new();
    for backup in &backups {
        listed(backup, &mut |digest, _| {
            needed.insert(digest);
            Ok(())
        })?;
    }
    let pool = folder.dir.join(BLOBS);
    let failed = |e| BackupError::of(&pool, e);
    let folders = match std::fs::read_dir(&pool) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(gone),
        folders => folders.map_err(failed)?,
    };
    for within in folders {
        let within = within.map_err(failed)?;
        let prefix = within.file_name().to_string_lossy().into_owned();
        if prefix.len() != 2 {
            continue;
        }
        for file in std::fs::read_dir(within.path()).map_err(failed)? {
            let file = file.map_err(failed)?;
            let name = format!("{prefix}{}", file.file_name().to_string_lossy());
            if name.parse::<Digest>().is_ok_and(|digest| !needed.contains(&digest)) {
                std::fs::remove_file(file.path()).map_err(failed)?;
            }
        }
    }
    Ok(gone)
}
