//! A body that is still arriving: one writer, many readers, each at its own pace.
//!
//! Owns the memory of the body until it is whole. A writer that goes away before [`FillWriter::finish`] aborts every
//! reader with an error: a client never takes half a body for a whole one. A body that outgrows its limit is no longer
//! kept: the fill becomes a relay, which drops what every reader has and reads on only as fast as the slowest of them.
//!
//! The lock is held for a few instructions and never across an await.

mod budget;

use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use thiserror::Error;

pub(crate) use self::budget::FillBudget;
use self::budget::SiteBudget;
use crate::body::BodyAborted;
use crate::cache::Completion;
use crate::entry::Chunks;
use crate::reason::PassReason;
use crate::tags::Tag;

/// Bytes that a relay holds for its slowest reader before it stops reading.
const RELAY_BYTES_MAX: u64 = 1024 * 1024;
/// Pieces of a stored body: large enough that a list of them is short, small enough that a slow client pins little.
const CHUNK_BYTES: usize = 64 * 1024;

/// The shared state of one fill.
#[derive(Debug)]
pub struct Growing {
    length: Option<u64>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    chunks: VecDeque<Bytes>,
    /// Chunks dropped from the front: the absolute number of the first one in `chunks`.
    dropped: u64,
    total: u64,
    buffered: u64,
    relay: bool,
    end: Option<End>,
    readers: BTreeMap<u64, Place>,
    reader_next: u64,
    writer: Option<Waker>,
}

#[derive(Debug)]
struct Place {
    /// Absolute number of the next chunk.
    next: u64,
    waker: Option<Waker>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Whole,
    Aborted,
}

impl Growing {
    pub(crate) fn new(length: Option<u64>) -> Arc<Self> {
        Arc::new(Self { length, state: Mutex::new(State::default()) })
    }

    /// What the upstream said it would send.
    pub(crate) fn length(&self) -> Option<u64> {
        self.length
    }

    /// A reader from the first byte. None for a relay, whose first bytes are gone.
    pub(crate) fn reader(self: &Arc<Self>) -> Option<Reader> {
        let mut state = self.state.lock();
        if state.relay || state.end == Some(End::Aborted) {
            return None;
        }
        let id = state.reader_next;
        state.reader_next += 1;
        state.readers.insert(id, Place { next: 0, waker: None });
        Some(Reader { growing: Arc::clone(self), id })
    }

    fn end(&self, end: End) {
        let mut state = self.state.lock();
        state.end = Some(end);
        state.wake_readers();
    }
}

impl State {
    fn wake_readers(&mut self) {
        for place in self.readers.values_mut() {
            if let Some(waker) = place.waker.take() {
                waker.wake();
            }
        }
    }

    /// In a relay: forget what every reader has.
    fn forget(&mut self) {
        if !self.relay {
            return;
        }
        let needed = self.readers.values().map(|place| place.next).min().unwrap_or(u64::MAX);
        while self.dropped < needed
            && let Some(chunk) = self.chunks.pop_front()
        {
            self.dropped += 1;
            self.buffered -= chunk.len() as u64;
        }
        if let Some(waker) = self.writer.take() {
            waker.wake();
        }
    }
}

/// One client's place in a growing body.
#[derive(Debug)]
pub(crate) struct Reader {
    growing: Arc<Growing>,
    id: u64,
}

impl Reader {
    pub(crate) fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyAborted>>> {
        let mut state = self.growing.state.lock();
        let dropped = state.dropped;
        let Some(place) = state.readers.get(&self.id) else {
            return Poll::Ready(Some(Err(BodyAborted::TooSlow)));
        };
        let at = usize::try_from(place.next - dropped).expect("a list in memory has a usize length");
        if let Some(chunk) = state.chunks.get(at).cloned() {
            state.readers.entry(self.id).and_modify(|place| place.next += 1);
            state.forget();
            return Poll::Ready(Some(Ok(chunk)));
        }
        match state.end {
            Some(End::Whole) => Poll::Ready(None),
            Some(End::Aborted) => Poll::Ready(Some(Err(BodyAborted::Upstream))),
            None => {
                state.readers.entry(self.id).and_modify(|place| place.waker = Some(cx.waker().clone()));
                Poll::Pending
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.growing.state.lock();
        state.readers.remove(&self.id);
        state.forget();
    }
}

/// Nobody reads a body that is not going to be stored: stop fetching it.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("every reader of a body that is too large to be stored has gone")]
pub struct NobodyReads;

/// The upstream sent another number of bytes than it announced.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the upstream announced {announced} bytes and sent {sent}")]
pub struct WrongLength {
    pub announced: u64,
    pub sent: u64,
}

/// Writes the body of a fill. Dropping it without [`finish`](Self::finish) aborts the body for every reader.
#[must_use = "dropping the writer aborts every reader"]
pub struct FillWriter {
    growing: Arc<Growing>,
    completion: Option<Completion>,
    budget: SiteBudget,
    charged: u64,
    object_bytes_max: u64,
}

impl FillWriter {
    pub(crate) fn new(
        growing: Arc<Growing>,
        completion: Completion,
        budget: SiteBudget,
        object_bytes_max: u64,
    ) -> Self {
        Self { growing, completion: Some(completion), budget, charged: 0, object_bytes_max }
    }

    /// Resolves when the next chunk may be pushed: at once, except in a relay whose slowest reader is behind.
    ///
    /// Cancel safe.
    pub async fn ready(&mut self) -> Result<(), NobodyReads> {
        poll_fn(|cx| {
            let mut state = self.growing.state.lock();
            if !state.relay {
                return Poll::Ready(Ok(()));
            }
            if state.readers.is_empty() {
                return Poll::Ready(Err(NobodyReads));
            }
            if state.buffered < RELAY_BYTES_MAX {
                return Poll::Ready(Ok(()));
            }
            state.writer = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Appends a chunk and wakes the readers.
    pub fn push(&mut self, chunk: &Bytes) {
        if chunk.is_empty() {
            return;
        }
        let bytes = chunk.len() as u64;
        let mut state = self.growing.state.lock();
        if !state.relay {
            self.charged += bytes;
            let refused = match (self.budget.charge(bytes), state.total + bytes <= self.object_bytes_max) {
                (_, false) => Some(PassReason::TooLarge),
                (false, true) => Some(PassReason::FillMemory),
                (true, true) => None,
            };
            if let Some(reason) = refused {
                state.relay = true;
                state.forget();
                if let Some(completion) = self.completion.take() {
                    completion.outgrew(reason);
                }
            }
        }
        // What comes off a connection is a slice of a larger read buffer, and would keep all of it alive.
        let chunk = if state.relay { chunk.clone() } else { Bytes::copy_from_slice(chunk) };
        state.total += bytes;
        state.buffered += bytes;
        state.chunks.push_back(chunk);
        state.wake_readers();
    }

    /// Cuts off the readers that a relay has been waiting for too long, so that the others can go on.
    pub fn cut_slowest(&mut self) {
        let mut state = self.growing.state.lock();
        let Some(slowest) = state.readers.values().map(|place| place.next).min() else { return };
        state.wake_readers();
        state.readers.retain(|_, place| place.next > slowest);
        state.forget();
    }

    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.growing.state.lock().total
    }

    /// The upstream's body is complete: store it and end the readers' bodies cleanly. A body of the wrong length is
    /// neither stored nor ended cleanly.
    pub fn finish(self) -> Result<(), WrongLength> {
        self.finish_with(&[])
    }

    /// The same for a body whose permit left its tags open: `more` is what else it was made from. Every reader has what it
    /// has; a body with more tags than are kept is not stored.
    pub fn finish_with(self, more: &[Tag]) -> Result<(), WrongLength> {
        self.end(Some(more))
    }

    /// The same for a body that turned out to be right for those who read it, and not to be kept for others.
    pub fn finish_unstored(self) -> Result<(), WrongLength> {
        self.end(None)
    }

    fn end(mut self, kept: Option<&[Tag]>) -> Result<(), WrongLength> {
        let (sent, list) = {
            let state = self.growing.state.lock();
            let list = if state.relay { Vec::new() } else { state.chunks.iter().cloned().collect() };
            (state.total, list)
        };
        if let Some(announced) = self.growing.length
            && announced != sent
        {
            return Err(WrongLength { announced, sent });
        }
        // Stored before the readers end: whoever has read the last byte finds the entry when it asks again.
        if let Some(completion) = self.completion.take() {
            match kept {
                Some(more) => completion.whole(Chunks::new(coalesce(list)), more),
                None => completion.aborted(),
            }
        }
        self.growing.end(End::Whole);
        Ok(())
    }
}

impl Drop for FillWriter {
    fn drop(&mut self) {
        self.budget.give_back(self.charged);
        // After `finish` both are done already: an end is final, and the completion is taken.
        if let Some(completion) = self.completion.take() {
            completion.aborted();
        }
        let ended = self.growing.state.lock().end.is_some();
        if !ended {
            self.growing.end(End::Aborted);
        }
    }
}

/// Few and even pieces out of many small ones. Bodies that came in large pieces are left as they are.
fn coalesce(list: Vec<Bytes>) -> Vec<Bytes> {
    let total: usize = list.iter().map(Bytes::len).sum();
    if list.len() <= 1 || total / list.len() >= CHUNK_BYTES / 8 {
        return list;
    }
    let mut out = Vec::with_capacity(total / CHUNK_BYTES + 1);
    let mut left = total;
    let mut piece = BytesMut::with_capacity(left.min(CHUNK_BYTES));
    for mut chunk in list {
        while !chunk.is_empty() {
            let part = chunk.split_to(chunk.len().min(CHUNK_BYTES - piece.len()));
            left -= part.len();
            piece.extend_from_slice(&part);
            if piece.len() == CHUNK_BYTES {
                out.push(
                    std::mem::replace(&mut piece, BytesMut::with_capacity(left.min(CHUNK_BYTES))).freeze(),
                );
            }
        }
    }
    if !piece.is_empty() {
        out.push(piece.freeze());
    }
    out
}
