//! The body of a response from the cache: all of an entry or a slice of it, whole already or still growing.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use thiserror::Error;

use crate::entry::{Chunks, StoredBody};
use crate::fill::Reader;

/// Why a body ends before its end. The server must break the connection: a clean end would be a lie.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum BodyAborted {
    #[error("the upstream broke off in the middle of the body")]
    Upstream,
    #[error("the client read too slowly for a body that is not stored")]
    TooSlow,
}

/// Bytes from the cache, without a copy.
#[derive(Debug)]
pub struct CacheBody {
    source: Source,
    skip: u64,
    /// Bytes still to be sent; nothing where the upstream did not say how many there are.
    left: Option<u64>,
}

#[derive(Debug)]
enum Source {
    Empty,
    Aborted,
    Whole { chunks: Chunks, next: usize },
    Growing(Reader),
}

impl CacheBody {
    pub fn empty() -> Self {
        Self { source: Source::Empty, skip: 0, left: Some(0) }
    }

    /// All of these bytes.
    pub(crate) fn whole(chunks: Chunks) -> Self {
        let left = Some(chunks.total());
        Self { source: Source::Whole { chunks, next: 0 }, skip: 0, left }
    }

    /// The body of a fill that broke before anybody could read along.
    pub(crate) fn aborted() -> Self {
        Self { source: Source::Aborted, skip: 0, left: None }
    }

    /// The `length` bytes from `first` on. Called before anything was read.
    pub(crate) fn slice(self, first: u64, length: u64) -> Self {
        Self { skip: first, left: Some(length), ..self }
    }

    /// `left` bytes from byte `skip` on; all there are without `left`. None if the fill is gone from under it.
    pub(crate) fn of(body: &StoredBody, skip: u64, left: Option<u64>) -> Option<Self> {
        let source = match body {
            StoredBody::Whole(chunks) => Source::Whole { chunks: chunks.clone(), next: 0 },
            StoredBody::Growing(growing) => Source::Growing(growing.reader()?),
        };
        Some(Self { source, skip, left })
    }
}

impl Body for CacheBody {
    type Data = Bytes;
    type Error = BodyAborted;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyAborted>>> {
        let this = &mut *self;
        loop {
            if this.left == Some(0) {
                // The slice is complete; what follows in a fill is not this client's concern.
                this.source = Source::Empty;
                return Poll::Ready(None);
            }
            let chunk = match &mut this.source {
                Source::Empty => return Poll::Ready(None),
                Source::Aborted => return Poll::Ready(Some(Err(BodyAborted::Upstream))),
                Source::Whole { chunks, next } => match chunks.list.get(*next) {
                    Some(chunk) => {
                        *next += 1;
                        Some(chunk.clone())
                    }
                    None => None,
                },
                Source::Growing(reader) => ready!(reader.poll_chunk(cx)).transpose()?,
            };
            let Some(mut chunk) = chunk else { return Poll::Ready(None) };
            let length = chunk.len() as u64;
            if this.skip >= length {
                this.skip -= length;
                continue;
            }
            let skip = usize::try_from(this.skip).expect("less than the length of a chunk");
            let mut chunk = chunk.split_off(skip);
            this.skip = 0;
            if let Some(left) = &mut this.left {
                let take = usize::try_from(*left).unwrap_or(usize::MAX).min(chunk.len());
                chunk.truncate(take);
                *left -= take as u64;
            }
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
