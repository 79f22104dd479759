//! Files that rows name, from the home: apart from the rows, which they never hold back.

use std::convert::Infallible;
use std::time::Duration;

use minicbor::bytes::ByteArray;
use souk_commerce::id::Digest;
use souk_link::{PeerConnection, PeerDialer};
use tokio::time::timeout;

use super::NotHome;
use crate::store::StoreError;
use crate::store::pair::frame::{BlobPart, Opening, WantBlob, decode, encode};

/// Between two looks whether files are missing, while rows that name files come.
pub(super) const FILES_PAUSE: Duration = Duration::from_secs(2);
/// A part of a file may take so long.
const FILE_WAIT_MAX: Duration = Duration::from_secs(30);

impl NotHome {
    /// Fetches files that rows name and that are not here, for as long as the connection holds. What one fails for (its bytes are
    /// damaged at the home, a full disk) keeps neither rows back nor the others, and is tried again.
    pub(super) async fn fetch_files(&self, peer: &PeerConnection) -> Infallible {
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
            let mut failed = 0_u64;
            for digest in missing {
                match self.fetch(peer, digest).await {
                    Ok(true) => self.shown.lock().files_missing -= 1,
                    // It is missing there too: counted, and told in the status.
                    Ok(false) => tracing::warn!(%digest, "a file that rows name is not at the home"),
                    Err(why) => {
                        // What one fails for, all of them may: one line for each look.
                        if failed == 0 {
                            tracing::warn!(why, %digest, "a file that rows name is not here yet");
                        }
                        failed += 1;
                        self.files.notify_one();
                        if PeerDialer::why_closed(peer).is_some() {
                            break;
                        }
                    }
                }
            }
            if failed > 1 {
                tracing::warn!(failed, "files that rows name are not here yet");
            }
            tokio::time::sleep(FILES_PAUSE).await;
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
    async fn fetch(&self, peer: &PeerConnection, digest: Digest) -> Result<bool, String> {
        let mut stream = peer.open().await.map_err(|e| e.to_string())?;
        let want = WantBlob { digest: ByteArray::from(digest.0) };
        stream.send(&encode(&Opening::WantBlob(want))).await.map_err(|e| e.to_string())?;
        let mut upload = self.blobs.begin().await.map_err(|e| e.to_string())?;
        loop {
            let part = timeout(FILE_WAIT_MAX, stream.receive()).await.map_err(|_| "a file does not come")?;
            let part: BlobPart = decode(&part.map_err(|e| e.to_string())?)?;
            match part.bytes {
                None => return Ok(false),
                Some(bytes) if bytes.is_empty() => break,
                Some(bytes) => upload.write(&bytes).await.map_err(|e| e.to_string())?,
            }
        }
        upload.finish(digest).await.map_err(|e| e.to_string())?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests;
