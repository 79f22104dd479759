//! Blobs on their way to nodes: how much memory they may hold, and that all who ask for one share it.
//!
//! A new release makes every node of a region ask for the same megabytes in the same second. The bytes of an answer are
//! counted from before they are read until the last node has them: the count goes with the buffer, and the link holds
//! that until its stream is done. Called by [`crate::uplink`]; knows nothing of nodes.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use hyper::body::Bytes;
use parking_lot::Mutex;
use souk_commerce::call::Response;
use souk_commerce::id::Digest;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::blobs::{BlobError, Blobs};

/// Bytes of blobs in memory on their way to nodes: eight of the greatest at once, each shared by all who fetch it.
const LENT_BYTES_MAX: u64 = 256 << 20;
/// Who may wait for room. Each holds one of the link's places for calls; the others belong to checkouts.
const WAITING_MAX: usize = 64;
/// The unit in which bytes are counted, so that they fit the number of permits of a semaphore.
const UNIT: u64 = 1 << 10;

/// An answer about a blob.
pub(crate) enum Lent {
    /// [`Response::Blob`], encoded.
    Reply(Bytes),
    Absent,
    /// Too many wait already.
    Busy,
}

pub(crate) struct Lending {
    blobs: Arc<Blobs>,
    room: Arc<Semaphore>,
    units_max: u32,
    waiting: Semaphore,
    lent: Mutex<HashMap<Digest, Slot>>,
}

/// Held while one loads it; the others then find it there.
type Slot = Arc<tokio::sync::Mutex<Weak<Loan>>>;

struct Loan {
    reply: Vec<u8>,
    /// Given back with the last buffer that shows these bytes.
    _room: OwnedSemaphorePermit,
}

struct Shown(Arc<Loan>);

impl AsRef<[u8]> for Shown {
    fn as_ref(&self) -> &[u8] {
        &self.0.reply
    }
}

impl Lending {
    pub(crate) fn new(blobs: Arc<Blobs>) -> Self {
        Self::with_room(blobs, LENT_BYTES_MAX)
    }

    fn with_room(blobs: Arc<Blobs>, bytes_max: u64) -> Self {
        let units_max = u32::try_from(bytes_max / UNIT).unwrap_or(u32::MAX);
        Self {
            blobs,
            room: Arc::new(Semaphore::new(units_max as usize)),
            units_max,
            waiting: Semaphore::new(WAITING_MAX),
            lent: Mutex::default(),
        }
    }

    /// The answer about a blob, once there is room for it. The caller bounds the wait. Cancel safe.
    pub(crate) async fn lend(&self, digest: Digest) -> Result<Lent, BlobError> {
        let Ok(_turn) = self.waiting.try_acquire() else { return Ok(Lent::Busy) };
        let slot = self.slot(digest);
        let mut slot = slot.lock().await;
        if let Some(loan) = slot.upgrade() {
            return Ok(Lent::Reply(Bytes::from_owner(Shown(loan))));
        }
        let Some(bytes) = self.blobs.size(digest).await? else { return Ok(Lent::Absent) };
        // Twice, because encoding copies. More than there is at all waits for all there is.
        let once = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).max(1);
        let units = once.saturating_mul(2).min(self.units_max);
        let room = Arc::clone(&self.room).acquire_many_owned(units).await;
        let mut room = room.expect("the semaphore is never closed");
        let Some(blob) = self.blobs.load(digest).await? else { return Ok(Lent::Absent) };
        let reply = Response::Blob(blob).to_bytes();
        drop(room.split((units / 2) as usize));
        let loan = Arc::new(Loan { reply, _room: room });
        *slot = Arc::downgrade(&loan);
        Ok(Lent::Reply(Bytes::from_owner(Shown(loan))))
    }

    fn slot(&self, digest: Digest) -> Slot {
        let mut lent = self.lent.lock();
        // What nobody holds or waits for any more; as many entries stay as there are calls and loans.
        lent.retain(|_, slot| {
            Arc::strong_count(slot) > 1 || slot.try_lock().is_ok_and(|loan| loan.strong_count() > 0)
        });
        Arc::clone(lent.entry(digest).or_default())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn put(blobs: &Arc<Blobs>, fill: u8) -> Digest {
        let content = vec![fill; 100 << 10];
        let mut upload = blobs.begin().await.expect("begins");
        upload.write(&content).await.expect("written");
        upload.finish(Digest::of(&content)).await.expect("kept");
        Digest::of(&content)
    }

    async fn lend(lending: &Lending, digest: Digest) -> Option<Bytes> {
        let asked = tokio::time::timeout(Duration::from_millis(100), lending.lend(digest)).await.ok()?;
        match asked.expect("the disk is well") {
            Lent::Reply(reply) => Some(reply),
            Lent::Absent | Lent::Busy => None,
        }
    }

    #[tokio::test]
    async fn a_blob_is_shared_and_its_room_is_held_until_the_last_has_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let blobs = Arc::new(Blobs::open(dir.path(), 1 << 20, false).expect("opens"));
        let (first, second) = (put(&blobs, 1).await, put(&blobs, 2).await);
        // Room for one, while it is encoded twice.
        let lending = Lending::with_room(Arc::clone(&blobs), 200 << 10);
        let one = lend(&lending, first).await.expect("lent");
        let other = lend(&lending, first).await.expect("lent again");
        assert_eq!(one.as_ptr(), other.as_ptr(), "the same bytes");
        assert!(matches!(Response::from_bytes(&one), Ok(Response::Blob(blob)) if Digest::of(&blob) == first));
        assert!(lend(&lending, second).await.is_none(), "no room");
        drop(one);
        assert!(lend(&lending, second).await.is_none(), "the other one is still on its way");
        drop(other);
        assert!(lend(&lending, second).await.is_some());
        assert!(matches!(lending.lend(Digest::of(b"nothing")).await, Ok(Lent::Absent)));
        assert_eq!(lending.room.available_permits(), 200, "all of it comes back");
        let _waiting = lending.waiting.try_acquire_many(64).expect("free");
        assert!(matches!(lending.lend(first).await, Ok(Lent::Busy)));
    }
}
