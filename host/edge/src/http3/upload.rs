//! The body of an HTTP/3 request: data and trailers, as long as its `Content-Length` says and no longer, and no slower
//! than the other versions' may be.
//!
//! h3 counts nothing (RFC 9114 section 4.1.2 leaves a message whose length is wrong malformed), so it is done here.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use h3::error::Code;
use h3::server::RequestStream;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body::{Body, Frame, SizeHint};

use super::pace::Pace;
use super::transport::RecvStream;
use crate::http::BodyError;
use crate::wire::BYTES_PER_S_MIN;

/// Why a body has no right end.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("the body is longer than its Content-Length")]
    Long,
    #[error("the body is shorter than its Content-Length")]
    Short,
    #[error("the body came at less than {BYTES_PER_S_MIN} bytes a second")]
    Slow,
}

/// Whether a body came too slowly: whoever answers its request says so, whatever its reader made of it.
#[derive(Debug, Clone, Default)]
pub(super) struct Late(Arc<AtomicBool>);

impl Late {
    pub(super) fn is_late(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Streams in as it is read: what is not read fills the stream's window and stops its sender.
pub(crate) struct Upload {
    stream: RequestStream<RecvStream, Bytes>,
    /// Read ahead, to find out whether there is a body at all.
    first: Option<Frame<Bytes>>,
    /// What `Content-Length` leaves.
    left: Option<u64>,
    at: At,
    pace: Pace,
    late: Late,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    Data,
    Trailers,
    End,
}

impl Upload {
    /// The body that follows a head; none if the request has ended with it. `wait_max`: how long its client may be waited for.
    pub(super) async fn begin(
        stream: RequestStream<RecvStream, Bytes>,
        headers: &HeaderMap,
        wait_max: Duration,
    ) -> Result<Option<Box<Self>>, BodyError> {
        // Admission refuses a length that is none.
        let left = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        let (pace, late) = (Pace::new(wait_max), Late::default());
        let mut upload = Box::new(Self { stream, first: None, left, at: At::Data, pace, late });
        // Most requests have no body, and their end is there together with their head. Handlers must not take them for
        // uploads, which cannot be sent twice.
        match poll_fn(|cx| Poll::Ready(Pin::new(&mut *upload).poll_frame(cx))).await {
            Poll::Ready(None) => return Ok(None),
            Poll::Ready(Some(first)) => upload.first = Some(first?),
            Poll::Pending => {}
        }
        Ok(Some(upload))
    }

    pub(super) fn late(&self) -> Late {
        self.late.clone()
    }

    /// Nothing has come. An error when that has been so for too long.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        ready!(self.pace.poll_late(cx));
        self.late.0.store(true, Ordering::Relaxed);
        Poll::Ready(self.give_up(Fault::Slow, Code::H3_REQUEST_CANCELLED))
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        let watch = self.pace.watch(cx);
        let Poll::Ready(came) = self.stream.poll_recv_data(&mut Context::from_waker(&watch)) else {
            return self.poll_late(cx).map(|error| Some(Err(error)));
        };
        match came {
            Ok(Some(mut data)) => {
                let data = data.copy_to_bytes(data.remaining());
                self.pace.moved(data.len());
                let length = data.len() as u64;
                if let Some(left) = &mut self.left {
                    match left.checked_sub(length) {
                        Some(rest) => *left = rest,
                        None => return Poll::Ready(Some(Err(self.malformed(Fault::Long)))),
                    }
                }
                Poll::Ready(Some(Ok(data)))
            }
            Ok(None) => {
                self.at = At::Trailers;
                Poll::Ready(None)
            }
            Err(error) => {
                self.at = At::End;
                Poll::Ready(Some(Err(error.into())))
            }
        }
    }

    fn malformed(&mut self, why: Fault) -> BodyError {
        self.give_up(why, Code::H3_MESSAGE_ERROR)
    }

    fn give_up(&mut self, why: Fault, code: Code) -> BodyError {
        self.at = At::End;
        self.stream.stop_sending(code);
        why.into()
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if let Some(first) = this.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        if this.at == At::Data
            && let Some(data) = ready!(this.poll_data(cx))
        {
            return Poll::Ready(Some(data.map(Frame::data)));
        }
        if this.at == At::End {
            return Poll::Ready(None);
        }
        if this.left.is_some_and(|left| left > 0) {
            return Poll::Ready(Some(Err(this.malformed(Fault::Short))));
        }
        let watch = this.pace.watch(cx);
        let Poll::Ready(trailers) = this.stream.poll_recv_trailers(&mut Context::from_waker(&watch)) else {
            return this.poll_late(cx).map(|error| Some(Err(error)));
        };
        this.at = At::End;
        Poll::Ready(trailers.map(|fields| fields.map(Frame::trailers)).map_err(Into::into).transpose())
    }

    fn is_end_stream(&self) -> bool {
        self.at == At::End && self.first.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let first = self.first.as_ref().and_then(Frame::data_ref).map_or(0, |data| data.len() as u64);
        self.left.map_or_else(SizeHint::default, |left| SizeHint::with_exact(left + first))
    }
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upload").field("left", &self.left).finish_non_exhaustive()
    }
}
