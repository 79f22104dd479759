//! Files that rows name, from the home: apart from the rows, which they never hold back.

use std::convert::Infallible;
use std::fmt::Display;
use std::time::Duration;

use minicbor::bytes::ByteArray;
use souk_commerce::id::Digest;
use souk_link::{PeerConnection, PeerDialer};
use tokio::time::timeout;

use super::NotHome;
use crate::blobs::BlobError;
use crate::store::StoreError;
use crate::store::pair::frame::{BlobPart, Opening, WantBlob, decode, encode};

/// Between two looks whether files are missing, while rows that name files come.
pub(super) const FILES_PAUSE: Duration = Duration::from_secs(2);
/// The longest pause, to which it doubles while a look brings nothing: a disk that is full stays so for minutes, and a damaged file
/// until somebody puts it again.
const FILES_PAUSE_MAX: Duration = Duration::from_mins(1);
/// A part of a file may take so long.
const FILE_WAIT_MAX: Duration = Duration::from_secs(30);

/// Why a file is not here yet.
#[derive(Debug)]
enum Unfetched {
    /// This disk does not take it, and will take none.
    Ours(String),
    /// It does not come, or not as it should.
    Theirs(String),
}

impl Unfetched {
    fn theirs(why: impl Display) -> Self {
        Self::Theirs(why.to_string())
    }
}

impl From<BlobError> for Unfetched {
    fn from(error: BlobError) -> Self {
        match error {
            BlobError::Io(_) => Self::Ours(error.to_string()),
            other => Self::Theirs(other.to_string()),
        }
    }
}

/// How long to wait after a look that brought some files and failed for others.
fn pause_after(pause: Duration, brought: u64, failed: u64) -> Duration {
    if brought == 0 && failed > 0 { (pause * 2).min(FILES_PAUSE_MAX) } else { FILES_PAUSE }
}

impl NotHome {
    /// Fetches files that rows name and that are not here, for as long as the connection holds. What one fails for (its bytes are
    /// damaged at the home, a full disk) keeps neither rows back nor the others, and is tried again.
    pub(super) async fn fetch_files(&self, peer: &PeerConnection) -> Infallible {
        let mut pause = FILES_PAUSE;
        loop {
            self.files.notified().await;
            let missing = match self.missing().await {
                Ok(missing) => missing,
                Err(why) => {
                    tracing::warn!(why, "which files are missing cannot be found out");
                    self.files.notify_one();
                    Vec::new()
                }
            };
            self.shown.lock().files_missing = missing.len() as u64;
            let (mut brought, mut failed) = (0_u64, 0_u64);
            for digest in missing {
                match self.fetch(peer, digest).await {
                    Ok(true) => {
                        brought += 1;
                        self.shown.lock().files_missing -= 1;
                    }
                    // It is missing there too: counted, and told in the status.
                    Ok(false) => tracing::warn!(%digest, "a file that rows name is not at the home"),
                    Err(unfetched) => {
                        // What one fails for, all of them may: one line for each look.
                        if failed == 0 {
                            let (Unfetched::Ours(why) | Unfetched::Theirs(why)) = &unfetched;
                            tracing::warn!(why, %digest, "a file that rows name is not here yet");
                        }
                        failed += 1;
                        self.files.notify_one();
                        if matches!(unfetched, Unfetched::Ours(_)) || PeerDialer::why_closed(peer).is_some() {
                            break;
                        }
                    }
                }
            }
            if failed > 1 {
                tracing::warn!(failed, "files that rows name are not here yet");
            }
            pause = pause_after(pause, brought, failed);
            tokio::time::sleep(pause).await;
        }
    }

    async fn missing(&self) -> Result<Vec<Digest>, String> {
        let door = self.door.clone();
        let named = tokio::task::spawn_blocking(move || {
            let mut named = Vec::new();
            door.look()?.blobs(&mut |digest| {
                named.push(digest);
                Ok(())
            })?;
            Ok::<_, StoreError>(named)
        });
        let named = named.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        let mut missing = Vec::new();
        for digest in named {
            if self.blobs.size(digest).await.map_err(|e| e.to_string())?.is_none() {
                missing.push(digest);
            }
        }
        Ok(missing)
    }

    /// False: the home does not have it.
    async fn fetch(&self, peer: &PeerConnection, digest: Digest) -> Result<bool, Unfetched> {
        let mut stream = peer.open().await.map_err(Unfetched::theirs)?;
        let want = WantBlob { digest: ByteArray::from(digest.0) };
        stream.send(&encode(&Opening::WantBlob(want))).await.map_err(Unfetched::theirs)?;
        let mut upload = self.blobs.begin().await?;
        loop {
            let part = timeout(FILE_WAIT_MAX, stream.receive()).await;
            let part = part.map_err(|_| Unfetched::theirs("it does not come"))?.map_err(Unfetched::theirs)?;
            let part: BlobPart = decode(&part).map_err(Unfetched::theirs)?;
            match part.bytes {
                None => return Ok(false),
                Some(bytes) if bytes.is_empty() => break,
                Some(bytes) => upload.write(&bytes).await?,
            }
        }
        upload.finish(digest).await?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests;
