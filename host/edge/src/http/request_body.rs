//! The body of a request, whichever protocol brought it.
//!
//! Handlers see one type, so that none of them depends on a protocol's server. Bodies of HTTP/1.1 (hyper's own) and HTTP/2 are
//! neither boxed nor copied.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::BodyError;
use crate::{http2, http3};

/// The body of every request.
#[derive(Debug)]
pub struct RequestBody(Source);

#[derive(Debug)]
enum Source {
    Empty,
    Http1(Incoming),
    Http2(http2::Upload),
    Http3(Box<http3::Upload>),
}

impl RequestBody {
    /// The body of a request that has none.
    pub const fn empty() -> Self {
        Self(Source::Empty)
    }
}

impl From<Incoming> for RequestBody {
    fn from(body: Incoming) -> Self {
        Self(Source::Http1(body))
    }
}

impl From<http2::Upload> for RequestBody {
    fn from(body: http2::Upload) -> Self {
        Self(Source::Http2(body))
    }
}

impl From<Box<http3::Upload>> for RequestBody {
    fn from(body: Box<http3::Upload>) -> Self {
        Self(Source::Http3(body))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.0 {
            Source::Empty => Poll::Ready(None),
            Source::Http1(body) => {
                Pin::new(body).poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(Into::into)))
            }
            Source::Http2(body) => Pin::new(body).poll_frame(cx),
            Source::Http3(body) => Pin::new(&mut **body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Source::Empty => true,
            Source::Http1(body) => body.is_end_stream(),
            Source::Http2(body) => body.is_end_stream(),
            Source::Http3(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Source::Empty => SizeHint::with_exact(0),
            Source::Http1(body) => body.size_hint(),
            Source::Http2(body) => body.size_hint(),
            Source::Http3(body) => body.size_hint(),
        }
    }
}
