//! The body of an HTTP/3 request: data and trailers, as long as its `Content-Length` says and no longer.
//!
//! h3 counts nothing (RFC 9114 section 4.1.2 leaves a message whose length is wrong malformed), so it is done here.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use h3::error::Code;
use h3::server::RequestStream;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body::{Body, Frame, SizeHint};

use super::transport::RecvStream;
use crate::http::BodyError;

/// Why a body has no right end.
#[derive(Debug, thiserror::Error)]
enum Malformed {
    #[error("the body is longer than its Content-Length")]
    TooLong,
    #[error("the body is shorter than its Content-Length")]
    TooShort,
}

/// Streams in as it is read: what is not read fills the stream's window and stops its sender.
pub(crate) struct Upload {
    stream: RequestStream<RecvStream, Bytes>,
    /// Read ahead, to find out whether there is a body at all.
    first: Option<Frame<Bytes>>,
    /// What `Content-Length` leaves.
    left: Option<u64>,
    at: At,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    Data,
    Trailers,
    End,
}

impl Upload {
    /// The body that follows a head; none if the request has ended with it.
    pub(super) async fn begin(
        stream: RequestStream<RecvStream, Bytes>,
        headers: &HeaderMap,
    ) -> Result<Option<Box<Self>>, BodyError> {
        // Admission refuses a length that is none.
        let left = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        let mut upload = Box::new(Self { stream, first: None, left, at: At::Data });
        // Most requests have no body, and their end is there together with their head. Handlers must not take them for
        // uploads, which cannot be sent twice.
        match poll_fn(|cx| Poll::Ready(Pin::new(&mut *upload).poll_frame(cx))).await {
            Poll::Ready(None) => return Ok(None),
            Poll::Ready(Some(first)) => upload.first = Some(first?),
            Poll::Pending => {}
        }
        Ok(Some(upload))
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        match ready!(self.stream.poll_recv_data(cx)) {
            Ok(Some(mut data)) => {
                let data = data.copy_to_bytes(data.remaining());
                let length = data.len() as u64;
                if let Some(left) = &mut self.left {
                    match left.checked_sub(length) {
                        Some(rest) => *left = rest,
                        None => return Poll::Ready(Some(Err(self.malformed(Malformed::TooLong)))),
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

    fn malformed(&mut self, why: Malformed) -> BodyError {
        self.at = At::End;
        self.stream.stop_sending(Code::H3_MESSAGE_ERROR);
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
            return Poll::Ready(Some(Err(this.malformed(Malformed::TooShort))));
        }
        let trailers = ready!(this.stream.poll_recv_trailers(cx));
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
