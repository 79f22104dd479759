//! The body of an HTTP/2 request: data and trailers, as long as its `Content-Length` says (h2 counts that itself, and resets
//! a stream whose body is longer or shorter).

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body::{Body, Frame, SizeHint};

use crate::http::{BodyError, RequestBody};

/// Streams in as it is read: what is not read fills the stream's window and stops its sender.
#[derive(Debug)]
pub(crate) struct Upload {
    stream: RecvStream,
    /// What `Content-Length` leaves.
    left: Option<u64>,
    data_has_ended: bool,
}

impl Upload {
    /// The body behind a head; none if the request has ended with it.
    pub(super) fn begin(stream: RecvStream, headers: &HeaderMap) -> RequestBody {
        if stream.is_end_stream() {
            return RequestBody::empty();
        }
        // Admission refuses a length that is none, or more than one.
        let left = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        RequestBody::from(Self { stream, left, data_has_ended: false })
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
        if !this.data_has_ended {
            // A stream that its client resets is an upload that is not whole, whatever the reset's reason is.
            if let Some(data) = ready!(this.stream.poll_data(cx)?) {
                // Fails only if more is given back than came.
                let _ = this.stream.flow_control().release_capacity(data.len());
                this.left = this.left.map(|left| left.saturating_sub(data.len() as u64));
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            this.data_has_ended = true;
        }
        let trailers = ready!(this.stream.poll_trailers(cx)?);
        Poll::Ready(trailers.map(|fields| Ok(Frame::trailers(fields))))
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
