//! The region's files are its own: nobody else reads them, and no second process writes them.
//!
//! Knows nothing of what is in them. A standby or a backup opens the same files through here.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

/// Held by the process that writes the folder; its content says nothing.
const CLAIM: &str = "in-use";
/// How long a process waits for one that is ending: longer than a region takes to finish what it has accepted.
const CLAIM_WAIT_MAX: Duration = Duration::from_secs(5);
const CLAIM_PAUSE: Duration = Duration::from_millis(50);

/// Makes the folder, if it is not there, for its owner only. One that is there keeps its mode: an operator chose it.
pub(crate) fn folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Makes an empty file that its owner alone can read, if there is none: orders are in it. SQLite takes an empty one for a
/// new database, and gives its companions the same mode.
pub(crate) fn file(path: &Path) -> io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Keeps every other process from the folder for as long as the answer lives; the kernel ends it with the process,
/// however that dies. Waits a little for one that is going. An error of kind `WouldBlock` is another one that stays.
pub(crate) fn claim(dir: &Path) -> io::Result<File> {
    claim_within(dir, CLAIM_WAIT_MAX)
}

fn claim_within(dir: &Path, wait_max: Duration) -> io::Result<File> {
    let held =
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(dir.join(CLAIM))?;
    let began = Instant::now();
    loop {
        match held.try_lock() {
            Ok(()) => return Ok(held),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if began.elapsed() < wait_max => std::thread::sleep(CLAIM_PAUSE),
            Err(TryLockError::WouldBlock) => return Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_folder_has_one_owner_and_is_free_again_after_him() {
        let home = tempfile::tempdir().expect("a folder");
        let dir = home.path().join("region");
        folder(&dir).expect("made");
        file(&dir.join("region.db")).expect("made");
        file(&dir.join("region.db")).expect("there");
        let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode(&dir), mode(&dir.join("region.db"))), (0o700, 0o600));

        let first = claim_within(&dir, Duration::ZERO).expect("free");
        let second = claim_within(&dir, Duration::ZERO).expect_err("taken");
        assert_eq!(second.kind(), io::ErrorKind::WouldBlock);
        drop(first);
        // A test beside this one may be starting a process, which has a copy until its program begins.
        claim(&dir).expect("free again");
    }
}
