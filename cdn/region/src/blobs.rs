//! Bytes by the name of their content: components of plugins and assets of sites, one file each.
//!
//! A file is written beside its place, flushed, and then renamed into it: a name either leads to the right bytes or to none.
//! Nothing here is ever changed, but that a file which the disk has damaged is replaced; what is not referred to any more
//! stays until [`crate::collect`] takes it away.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use souk_commerce::id::Digest;
use tokio::fs::File;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// An upload that another process has left alone for so long is of one that died: the control API waits for no byte as long.
const UNFINISHED_AGE_MIN: Duration = Duration::from_secs(3_600);

/// Why a blob was not stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BlobError {
    #[error("the blob has more than {bytes_max} bytes")]
    TooLarge { bytes_max: u64 },
    #[error("the bytes are those of {actual}")]
    OtherDigest { actual: Digest },
    #[error("the file of blob {0} holds other bytes than its name says")]
    Damaged(Digest),
    #[error("cannot use the folder of blobs: {0}")]
    Io(#[from] io::Error),
}

/// What is under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Held {
    Absent,
    Whole {
        bytes: u64,
    },
    /// The disk has forgotten what it was given: an upload replaces it.
    Damaged,
}

/// Where a blob lies in a folder of them.
pub(crate) fn path_in(dir: &Path, digest: Digest) -> PathBuf {
    let name = digest.to_string();
    let (folder, file) = name.split_at(2);
    dir.join(folder).join(file)
}

#[derive(Debug)]
pub(crate) struct Blobs {
    dir: PathBuf,
    bytes_max: u64,
    uploads: AtomicU64,
    /// Tells the uploads of this process from those of another one over the same folder.
    life: u64,
    relying: RwLock<()>,
}

impl Blobs {
    /// Opens or makes the folder, and clears away what former lives did not finish. `is_shared`: others may be at work in it.
    pub(crate) fn open(data_dir: &Path, bytes_max: u64, is_shared: bool) -> Result<Self, BlobError> {
        let age_min = if is_shared { UNFINISHED_AGE_MIN } else { Duration::ZERO };
        Self::open_clearing(data_dir, bytes_max, age_min)
    }

    fn open_clearing(data_dir: &Path, bytes_max: u64, age_min: Duration) -> Result<Self, BlobError> {
        let dir = data_dir.join("blobs");
        let unfinished = dir.join("unfinished");
        std::fs::create_dir_all(&unfinished)?;
        for file in std::fs::read_dir(&unfinished)? {
            let file = file?;
            // Another one may have finished or cleared it meanwhile.
            let age = file.metadata().and_then(|of| of.modified()).map(|at| at.elapsed().unwrap_or_default());
            if age.is_ok_and(|age| age >= age_min) {
                match std::fs::remove_file(file.path()) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e.into()),
                    _ => {}
                }
            }
        }
        let (uploads, life) = (AtomicU64::new(0), rand::random());
        Ok(Self { dir, bytes_max, uploads, life, relying: RwLock::new(()) })
    }

    fn path(&self, digest: Digest) -> PathBuf {
        path_in(&self.dir, digest)
    }

    /// Its length, if it is here: a look at the folder, not at the bytes.
    pub(crate) async fn size(&self, digest: Digest) -> Result<Option<u64>, BlobError> {
        match tokio::fs::metadata(self.path(digest)).await {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// The whole of it, checked against its name: a disk that forgets must not become a shop that lies.
    pub(crate) async fn load(&self, digest: Digest) -> Result<Option<Vec<u8>>, BlobError> {
        let path = self.path(digest);
        let read = move || match std::fs::read(path) {
            Ok(bytes) if Digest::of(&bytes) == digest => Ok(Some(bytes)),
            Ok(_) => Err(BlobError::Damaged(digest)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e.into()),
        };
        match tokio::task::spawn_blocking(read).await {
            Ok(result) => result,
            Err(e) => Err(BlobError::Io(io::Error::other(e))),
        }
    }

    /// What is here, read to its end.
    pub(crate) async fn check(&self, digest: Digest) -> Result<Held, BlobError> {
        let path = self.path(digest);
        let read = move || {
            let mut hash = Sha256::new();
            match std::fs::File::open(path).and_then(|mut file| io::copy(&mut file, &mut hash)) {
                Ok(bytes) if Digest(hash.finalize().into()) == digest => Ok(Held::Whole { bytes }),
                Ok(_) => Ok(Held::Damaged),
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Held::Absent),
                Err(e) => Err(e.into()),
            }
        };
        tokio::task::spawn_blocking(read).await.unwrap_or_else(|e| Err(io::Error::other(e).into()))
    }

    /// Makes the name of a blob that is here durable. The one who wrote it may have gone before the folders were flushed.
    pub(crate) async fn settle(&self, digest: Digest) -> Result<(), BlobError> {
        let place = self.path(digest);
        let folder = place.parent().expect("a blob lies in a folder of two letters");
        // The name is durable when its folder is, and a folder that is new when the one above is.
        File::open(folder).await?.sync_all().await?;
        File::open(&self.dir).await?.sync_all().await?;
        Ok(())
    }

    /// Held from finding or placing a blob until a row refers to it.
    pub(crate) async fn relied_on(&self) -> RwLockReadGuard<'_, ()> {
        self.relying.read().await
    }

    /// Leave to remove blobs to which no row refers; none while somebody may be about to write such a row. Asked for
    /// without waiting, so that who collects keeps nobody back who brings. It is of this process; those of others look once
    /// more when their row is written ([`Blobs::are_here`]).
    pub(crate) fn nobody_relies(&self) -> Option<RwLockWriteGuard<'_, ()>> {
        self.relying.try_write().ok()
    }

    /// Asked when a row that names them is committed: false, if another process has collected one of them before that.
    /// Whoever brought it then has to bring it again.
    pub(crate) async fn are_here(
        &self,
        digests: impl IntoIterator<Item = Digest>,
    ) -> Result<bool, BlobError> {
        for digest in digests {
            if self.size(digest).await?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Takes a blob from its place, so that it can still be put back. None: it is not here. Blocks.
    pub(crate) fn set_aside(&self, digest: Digest) -> Result<Option<Aside>, BlobError> {
        let number = self.uploads.fetch_add(1, Ordering::Relaxed);
        let aside = self.dir.join("unfinished").join(format!("{:016x}-{number}", self.life));
        let place = self.path(digest);
        match std::fs::rename(&place, &aside) {
            Ok(()) => Ok(Some(Aside { bytes: std::fs::metadata(&aside)?.len(), place, aside })),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Every blob whose file is at least so old.
    pub(crate) async fn list(&self, age_min: Duration) -> Result<Vec<Digest>, BlobError> {
        let dir = self.dir.clone();
        let list = move || {
            let mut found = Vec::new();
            for folder in std::fs::read_dir(dir)? {
                let folder = folder?;
                let prefix = folder.file_name().to_string_lossy().into_owned();
                if prefix.len() != 2 {
                    continue;
                }
                for file in std::fs::read_dir(folder.path())? {
                    let file = file?;
                    let age = file.metadata()?.modified()?.elapsed().unwrap_or_default();
                    let name = format!("{prefix}{}", file.file_name().to_string_lossy());
                    found.extend(name.parse::<Digest>().ok().filter(|_| age >= age_min));
                }
            }
            Ok(found)
        };
        tokio::task::spawn_blocking(list).await.unwrap_or_else(|e| Err(io::Error::other(e).into()))
    }

    pub(crate) async fn begin(self: &Arc<Self>) -> Result<Upload, BlobError> {
        let number = self.uploads.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join("unfinished").join(format!("{:016x}-{number}", self.life));
        let file = File::create(&path).await?;
        Ok(Upload {
            blobs: Arc::clone(self),
            path,
            file: Some(file),
            hash: Sha256::new(),
            bytes: 0,
            kept: false,
        })
    }
}

/// A blob on its way out.
#[derive(Debug)]
pub(crate) struct Aside {
    place: PathBuf,
    aside: PathBuf,
    pub(crate) bytes: u64,
}

impl Aside {
    /// For good. One that cannot be removed now goes with what is unfinished.
    pub(crate) fn remove(self) -> Result<(), BlobError> {
        Ok(std::fs::remove_file(self.aside)?)
    }

    /// Where it was, unless it was brought anew meanwhile.
    pub(crate) fn put_back(self) -> Result<(), BlobError> {
        match std::fs::hard_link(&self.aside, &self.place) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e.into()),
            _ => {}
        }
        self.remove()
    }
}

/// A blob on its way in. Dropped unfinished, it leaves nothing behind.
pub(crate) struct Upload {
    blobs: Arc<Blobs>,
    path: PathBuf,
    file: Option<File>,
    hash: Sha256,
    bytes: u64,
    kept: bool,
}

impl Upload {
    pub(crate) async fn write(&mut self, chunk: &[u8]) -> Result<(), BlobError> {
        self.bytes += chunk.len() as u64;
        if self.bytes > self.blobs.bytes_max {
            return Err(BlobError::TooLarge { bytes_max: self.blobs.bytes_max });
        }
        self.hash.update(chunk);
        self.file
            .as_mut()
            .expect("the file is closed only by finish, which consumes self")
            .write_all(chunk)
            .await?;
        Ok(())
    }

    /// Keeps the bytes under their name, on the disk. Returns how many they are. Not cancel safe: dropped half-way, the blob
    /// may be in its place and not yet durable.
    pub(crate) async fn finish(mut self, digest: Digest) -> Result<u64, BlobError> {
        let actual = Digest(std::mem::take(&mut self.hash).finalize().into());
        if actual != digest {
            return Err(BlobError::OtherDigest { actual });
        }
        let mut file = self.file.take().expect("the file is closed only by finish, which consumes self");
        file.flush().await?;
        file.sync_all().await?;
        drop(file);
        let place = self.blobs.path(digest);
        let folder = place.parent().expect("a blob lies in a folder of two letters");
        tokio::fs::create_dir_all(folder).await?;
        tokio::fs::rename(&self.path, &place).await?;
        self.kept = true;
        self.blobs.settle(digest).await?;
        Ok(self.bytes)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if !self.kept && std::fs::remove_file(&self.path).is_err() {
            tracing::debug!(path = %self.path.display(), "an unfinished upload stays until the next start");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_blob_is_whole_or_absent() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Arc::new(Blobs::open(dir.path(), 10, false).unwrap());
        let digest = Digest::of(b"hello");
        assert_eq!(blobs.size(digest).await.unwrap(), None);

        let mut upload = blobs.begin().await.unwrap();
        upload.write(b"hell").await.unwrap();
        drop(upload);
        assert_eq!(std::fs::read_dir(dir.path().join("blobs/unfinished")).unwrap().count(), 0);

        let mut upload = blobs.begin().await.unwrap();
        upload.write(b"hell").await.unwrap();
        assert!(matches!(upload.finish(digest).await, Err(BlobError::OtherDigest { .. })));
        let mut upload = blobs.begin().await.unwrap();
        assert!(matches!(upload.write(b"hello world").await, Err(BlobError::TooLarge { bytes_max: 10 })));
        drop(upload);

        for _ in 0..2 {
            let mut upload = blobs.begin().await.unwrap();
            upload.write(b"hel").await.unwrap();
            upload.write(b"lo").await.unwrap();
            assert_eq!(upload.finish(digest).await.unwrap(), 5);
        }
        assert_eq!(blobs.load(digest).await.unwrap().as_deref(), Some(&b"hello"[..]));

        std::fs::write(blobs.path(digest), b"jello").unwrap();
        assert!(matches!(blobs.load(digest).await, Err(BlobError::Damaged(_))));
        assert_eq!(blobs.check(digest).await.unwrap(), Held::Damaged);
        let mut upload = blobs.begin().await.unwrap();
        upload.write(b"hello").await.unwrap();
        upload.finish(digest).await.unwrap();
        assert_eq!(blobs.check(digest).await.unwrap(), Held::Whole { bytes: 5 });
        assert_eq!(blobs.check(Digest::of(b"nothing")).await.unwrap(), Held::Absent);
    }
    #[tokio::test]
    async fn an_upload_of_another_process_is_not_cleared_away() {
        let dir = tempfile::tempdir().unwrap();
        let one = Arc::new(Blobs::open(dir.path(), 10, true).unwrap());
        let digest = Digest::of(b"hello");
        let mut upload = one.begin().await.unwrap();
        upload.write(b"hel").await.unwrap();
        // One whose process dies in the middle of it.
        std::mem::forget(one.begin().await.unwrap());
        let _two = Blobs::open(dir.path(), 10, true).unwrap();
        upload.write(b"lo").await.unwrap();
        upload.finish(digest).await.unwrap();
        let unfinished = || std::fs::read_dir(dir.path().join("blobs/unfinished")).unwrap().count();
        assert_eq!(unfinished(), 1, "nobody knows yet whether its process has died");
        let _alone = Blobs::open(dir.path(), 10, false).unwrap();
        assert_eq!(unfinished(), 0);
        assert_eq!(one.load(digest).await.unwrap().as_deref(), Some(&b"hello"[..]));
    }

    #[tokio::test]
    async fn a_blob_that_is_set_aside_can_be_put_back() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Arc::new(Blobs::open(dir.path(), 10, true).unwrap());
        let digest = Digest::of(b"hello");
        assert!(blobs.set_aside(digest).unwrap().is_none());
        let bring = async || {
            let mut upload = blobs.begin().await.unwrap();
            upload.write(b"hello").await.unwrap();
            upload.finish(digest).await.unwrap();
        };
        bring().await;
        let aside = blobs.set_aside(digest).unwrap().unwrap();
        assert!(!blobs.are_here([digest]).await.unwrap());
        aside.put_back().unwrap();
        assert!(blobs.are_here([digest]).await.unwrap());
        let aside = blobs.set_aside(digest).unwrap().unwrap();
        bring().await;
        aside.put_back().unwrap();
        assert_eq!(blobs.check(digest).await.unwrap(), Held::Whole { bytes: 5 }, "brought anew meanwhile");
        blobs.set_aside(digest).unwrap().unwrap().remove().unwrap();
        assert_eq!(blobs.check(digest).await.unwrap(), Held::Absent);
        assert_eq!(std::fs::read_dir(dir.path().join("blobs/unfinished")).unwrap().count(), 0);
    }
}
