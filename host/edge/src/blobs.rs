//! Files by the SHA-256 of their content: plugin components and the sites' static files.
//!
//! Owns `data_dir/blobs`. A blob that is not there is asked of the region once, however many wait for it, checked
//! against its name, and written whole or not at all. What a blob means is for the callers: [`crate::chain`],
//! [`crate::assets`].

use std::collections::HashSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use souk_commerce::call::{Request, Response};
use souk_commerce::id::Digest;
use tokio::sync::Semaphore;

use crate::uplink::{AskError, Uplink};

/// Blobs on their way at once: each may take up to the link's reply limit of memory.
const FETCHES_MAX: usize = 8;
/// One blob from the question to its last byte: the greatest at 300 KB/s. A way that is slower than a call allows must still
/// bring a plugin home.
const FETCH_DEADLINE: Duration = Duration::from_secs(120);
/// Names remembered as being on the disk; the disk itself is asked about others.
const KNOWN_MAX: u64 = 100_000;
/// A file that was written within this time is not swept, whoever may be about to use it.
const SWEEP_AGE_MIN: Duration = Duration::from_secs(600);

/// Why a blob cannot be had.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BlobError {
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error("the region does not have the blob {0}")]
    Unknown(Digest),
    #[error("the region sent other bytes than those named {0}")]
    Forged(Digest),
    #[error("the blob {digest} has {bytes} bytes, more than {bytes_max}")]
    TooLarge { digest: Digest, bytes: usize, bytes_max: u64 },
    #[error("the disk failed: {0}")]
    Disk(String),
}

/// The node's blobs. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Blobs {
    dir: Arc<Path>,
    uplink: Uplink,
    bytes_max: u64,
    known: moka::future::Cache<Digest, ()>,
    fetches: Arc<Semaphore>,
}

impl Blobs {
    pub fn open(data_dir: &Path, uplink: Uplink, bytes_max: u64) -> std::io::Result<Self> {
        let dir = data_dir.join("blobs");
        std::fs::create_dir_all(&dir)?;
        Ok(Self {
            dir: dir.into(),
            uplink,
            bytes_max,
            known: moka::future::Cache::new(KNOWN_MAX),
            fetches: Arc::new(Semaphore::new(FETCHES_MAX)),
        })
    }

    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.to_string())
    }

    /// Makes sure that the blob is on the disk. One fetch for all who ask at once.
    pub async fn ensure(&self, digest: Digest) -> Result<PathBuf, BlobError> {
        let path = self.path(&digest);
        let present = self.known.try_get_with(digest, async {
            if tokio::fs::try_exists(&path).await.unwrap_or(false) {
                return Ok(());
            }
            self.fetch(digest).await
        });
        present.await.map_err(|e: Arc<BlobError>| BlobError::clone(&e))?;
        Ok(path)
    }

    /// The bytes, checked against their name each time: a disk can rot.
    pub async fn load(&self, digest: Digest) -> Result<Bytes, BlobError> {
        for _ in 0..2 {
            let path = self.ensure(digest).await?;
            let read = tokio::task::spawn_blocking(move || {
                let bytes = std::fs::read(&path)?;
                Ok::<_, std::io::Error>((Digest::of(&bytes) == digest, bytes))
            });
            match read.await.map_err(|e| BlobError::Disk(e.to_string()))? {
                Ok((true, bytes)) => return Ok(bytes.into()),
                Ok((false, _)) => {
                    tracing::error!(%digest, "a blob on the disk has rotted: it is fetched again");
                    let _ = tokio::fs::remove_file(self.path(&digest)).await;
                }
                // Somebody has removed the file since it was seen.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(BlobError::Disk(error.to_string())),
            }
            self.known.invalidate(&digest).await;
        }
        Err(BlobError::Disk("the file does not keep what was written".to_owned()))
    }

    /// The blob as an open file and its length. Not checked against its name, which would mean to read all of it;
    /// [`Blobs::load`] does that.
    pub async fn open_file(&self, digest: Digest) -> Result<(tokio::fs::File, u64), BlobError> {
        let disk = |error: std::io::Error| BlobError::Disk(error.to_string());
        for _ in 0..2 {
            match tokio::fs::File::open(self.ensure(digest).await?).await {
                Ok(file) => {
                    let length = file.metadata().await.map_err(disk)?.len();
                    return Ok((file, length));
                }
                // Somebody has removed the file since it was seen.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    self.known.invalidate(&digest).await;
                }
                Err(error) => return Err(disk(error)),
            }
        }
        Err(BlobError::Disk("the file does not stay where it was written".to_owned()))
    }

    async fn fetch(&self, digest: Digest) -> Result<(), BlobError> {
        let _permit = self.fetches.acquire().await.expect("the semaphore is never closed");
        let give_up = tokio::time::Instant::now() + FETCH_DEADLINE;
        let answer = loop {
            match self.uplink.ask_for(&Request::Blob { digest }, FETCH_DEADLINE).await? {
                // The region has its hands full with blobs for others.
                Response::NotYet { retry_after_ms } => {
                    let again = tokio::time::Instant::now() + Duration::from_millis(retry_after_ms);
                    if again > give_up {
                        return Err(AskError::Unreachable("not yet".to_owned()).into());
                    }
                    tokio::time::sleep_until(again).await;
                }
                answer => break answer,
            }
        };
        let bytes = match answer {
            Response::Blob(bytes) => bytes,
            Response::NotFound => return Err(BlobError::Unknown(digest)),
            other => {
                return Err(AskError::Failed(format!("an answer about something else: {other:?}")).into());
            }
        };
        if bytes.len() as u64 > self.bytes_max {
            return Err(BlobError::TooLarge { digest, bytes: bytes.len(), bytes_max: self.bytes_max });
        }
        let path = self.path(&digest);
        let written = tokio::task::spawn_blocking(move || {
            if Digest::of(&bytes) != digest {
                return Err(BlobError::Forged(digest));
            }
            store(&path, &bytes).map_err(|e| BlobError::Disk(e.to_string()))
        });
        written.await.map_err(|e| BlobError::Disk(e.to_string()))?
    }

    /// Removes the oldest blobs until at most `bytes_max` are left, sparing those in `keep`. Blocking.
    pub fn sweep(&self, bytes_max: u64, keep: &HashSet<Digest>) -> std::io::Result<u64> {
        let mut files = Vec::new();
        let mut total = 0;
        for entry in std::fs::read_dir(&self.dir)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            total += meta.len();
            files.push((meta.modified().unwrap_or(SystemTime::UNIX_EPOCH), meta.len(), entry));
        }
        files.sort_by_key(|(written, ..)| *written);
        let now = SystemTime::now();
        let mut freed = 0;
        for (written, bytes, entry) in files {
            let young = now.duration_since(written).is_ok_and(|age| age < SWEEP_AGE_MIN);
            let name = entry.file_name();
            let digest = name.to_str().and_then(|name| name.parse::<Digest>().ok());
            // A name that is no digest is what a crash left of a write.
            let wanted = digest.is_some_and(|d| keep.contains(&d) || total - freed <= bytes_max);
            if young || wanted {
                continue;
            }
            std::fs::remove_file(entry.path())?;
            freed += bytes;
            if let Some(digest) = digest {
                let known = self.known.clone();
                // The cache is asynchronous and this thread is not; a late invalidation only costs one more look.
                tokio::runtime::Handle::current().block_on(async move { known.invalidate(&digest).await });
            }
        }
        Ok(freed)
    }
}

/// Whole or not at all: whoever sees the name sees the content.
fn store(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let draft = path.with_extension(format!("draft-{:08x}", rand::random::<u32>()));
    let written = std::fs::File::create(&draft).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    let placed = written.and_then(|()| std::fs::rename(&draft, path));
    if placed.is_err() {
        let _ = std::fs::remove_file(&draft);
    }
    placed
}

#[cfg(test)]
pub(crate) mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
    use souk_commerce::id::NodeId;
    use souk_link::{NodeLinkConfig, Pem, RegionAddress, TlsFiles, start_node};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::state::store::LinkStore;
    use crate::state::{Replica, State};

    /// A way to a region that is away.
    pub(crate) fn nowhere(dir: &Path) -> Uplink {
        let authority_key = KeyPair::generate().expect("a key pair");
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = authority.self_signed(&authority_key).expect("a certificate");
        let issuer = Issuer::new(authority, authority_key);
        let key = KeyPair::generate().expect("a key pair");
        let mut own = CertificateParams::default();
        own.subject_alt_names.push(SanType::URI("spiffe://souk/eu/edge/1".try_into().expect("a URI")));
        let cert = own.signed_by(&key, &issuer).expect("a certificate");
        let pem = |text: String| Pem::Bytes(text.into_bytes());
        let config = NodeLinkConfig {
            regions: vec![RegionAddress { addr: "127.0.0.1:1".to_owned(), server_name: "region".to_owned() }],
            tls: TlsFiles { ca: pem(ca.pem()), cert: pem(cert.pem()), key: pem(key.serialize_pem()) },
            node: 1,
            region: "eu".to_owned(),
            pop: "test".to_owned(),
            software: "test".to_owned(),
            schemas: vec![1],
            congestion: Default::default(),
        };
        let state = State::open(dir, NodeId(1), 1 << 20).expect("opens");
        let replica = Replica::open(dir, 0).expect("opens");
        let store = Arc::new(LinkStore {
            state: Arc::new(state),
            replica: Arc::new(replica),
            routes: Default::default(),
            terms: Default::default(),
        });
        let (link, _) = start_node(config, store, CancellationToken::new()).expect("a link");
        Uplink::new(link, Duration::from_secs(1))
    }

    #[tokio::test]
    async fn a_file_that_is_gone_is_asked_for_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let blobs = Blobs::open(dir.path(), nowhere(dir.path()), 1 << 20).expect("opens");
        let digest = Digest::of(b"content");
        std::fs::write(blobs.path(&digest), b"content").expect("written");
        assert_eq!(blobs.open_file(digest).await.expect("there").1, 7);
        std::fs::remove_file(blobs.path(&digest)).expect("removed");
        let gone = blobs.open_file(digest).await.expect_err("gone, and the region is away");
        assert!(matches!(gone, BlobError::Ask(AskError::Away)), "{gone}");
        std::fs::write(blobs.path(&digest), b"content").expect("written");
        assert_eq!(blobs.open_file(digest).await.expect("there again").1, 7);
    }
}
