//! That the folder of responses may hold what was purged, written down beside it: a start empties it first.
//!
//! For a disk that does not take a purge (it hangs, or failed and cannot be emptied). The purge holds for now in any case; this
//! is what makes it outlive the process without the disk's word, so that a node can say that it has obeyed, and its link to
//! the region goes on. Owns one file. Where not even that can be written, nobody says anything.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::JoinHandle;

/// Beside the folder itself.
const SUFFIX: &str = "stale";
/// Until it is written: an empty file and its name. A disk that takes longer hangs as well.
const WRITTEN_WITHIN: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug)]
pub(super) struct Debt {
    file: Arc<Path>,
    is_noted: AtomicBool,
    /// One at a time: a disk that hangs holds one thread, however often it is asked.
    writing: Mutex<Option<JoinHandle<io::Result<()>>>>,
}

impl Debt {
    /// Empties the folder, if an earlier process has left word. Whoever calls has the node's data folder to itself.
    pub(super) fn settle(folder: &Path) -> io::Result<Self> {
        let file = folder.with_extension(SUFFIX);
        if file.try_exists()? {
            match std::fs::remove_dir_all(folder) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            sync_beside(&file)?;
            std::fs::remove_file(&file)?;
            tracing::warn!(
                folder = %folder.display(),
                "what was stored before is given up: an earlier process could not write down what was purged of it"
            );
        }
        Ok(Self { file: file.into(), is_noted: AtomicBool::new(false), writing: Mutex::default() })
    }

    /// Writes it down. False where that cannot be done.
    pub(super) async fn note(&self) -> bool {
        if self.is_noted.load(Ordering::Acquire) {
            return true;
        }
        let mut writing = self.writing.lock().await;
        let task = writing.get_or_insert_with(|| {
            let file = Arc::clone(&self.file);
            tokio::task::spawn_blocking(move || write(&file))
        });
        let Ok(written) = tokio::time::timeout(WRITTEN_WITHIN, task).await else { return false };
        *writing = None;
        let is_noted = matches!(written, Ok(Ok(())));
        self.is_noted.store(is_noted, Ordering::Release);
        is_noted
    }

    /// The disk says that it has forgotten everything: nothing is owed any more.
    pub(super) async fn clear(&self) {
        if !self.is_noted.swap(false, Ordering::AcqRel) {
            return;
        }
        let file = PathBuf::from(&*self.file);
        let removed = tokio::task::spawn_blocking(move || std::fs::remove_file(file)).await;
        if !matches!(removed, Ok(Ok(()))) {
            // A start empties the folder for nothing.
            tracing::warn!(file = %self.file.display(), "a note that is out of date cannot be removed");
        }
    }
}

fn write(file: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).create(true).truncate(false).open(file)?.sync_all()?;
    sync_beside(file)
}

/// The folder that a file is in.
fn sync_beside(file: &Path) -> io::Result<()> {
    file.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}
