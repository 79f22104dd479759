//! What of a guest's request leaves, and the bounds of what comes back.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, EXPECT, HOST, HeaderValue};
use http::{HeaderName, Request};
use http_body::{Body, Frame, SizeHint};
use tokio::task::JoinHandle;
use tokio::time::{Instant, Sleep, sleep};
use wasmtime_wasi_http::{Error as WasiHttpError, WasiBody};

use super::grant::Grant;
use super::origin_form;
use crate::http::head;
use crate::http::trailers::{self, Nominated};

/// Fields of an answer's head, and the bytes of the head.
pub(super) const FIELDS_MAX: usize = 100;
pub(super) const HEAD_BYTES_MAX: usize = 64 << 10;

/// RFC 8586: a request that comes back to us through somebody else is recognised.
const CDN_LOOP: HeaderName = HeaderName::from_static("cdn-loop");
const LOOP_NAME: HeaderValue = HeaderValue::from_static("souk-guest");

/// The request as it is sent: to the host that was granted, framed by us.
pub(super) fn outgoing(request: Request<WasiBody>, to: &Grant, bytes_max: u64) -> Request<Upload> {
    let (mut parts, body) = request.into_parts();
    parts.uri = origin_form(&parts.uri);
    parts.version = http::Version::HTTP_11;
    parts.extensions.clear();
    let nominated = head::remove_hop_by_hop(&mut parts.headers);
    head::remove_forbidden(&mut parts.headers);
    parts.headers.remove(EXPECT);
    trailers::rebuild_announcement(&mut parts.headers, &nominated);
    // hyper frames by the body: with a length it holds the body to it.
    let said = head::take_length(&mut parts.headers);
    let host = HeaderValue::from_str(&to.authority()).expect("a grant's authority is ASCII");
    parts.headers.insert(HOST, host);
    parts.headers.append(CDN_LOOP, LOOP_NAME);
    let length = said.filter(|_| !body.is_end_stream());
    if let Some(length) = length {
        parts.headers.insert(CONTENT_LENGTH, length.into());
    }
    Request::from_parts(parts, Upload { body, left: bytes_max, nominated })
}

/// A guest's body on its way out, of bounded length.
pub(super) struct Upload {
    body: WasiBody,
    left: u64,
    nominated: Nominated,
}

impl Body for Upload {
    type Data = Bytes;
    type Error = WasiHttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, WasiHttpError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(data)) = frame.as_ref().map(|frame| frame.as_ref().map(Frame::data_ref))
            && let Some(bytes) = data
        {
            match self.left.checked_sub(bytes.len() as u64) {
                Some(left) => self.left = left,
                None => return Poll::Ready(Some(Err(WasiHttpError::HttpRequestBodySize(None)))),
            }
        }
        Poll::Ready(frame.map(|frame| frame.map(|frame| trailers::cleaned(frame, &self.nominated))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A task that ends with whoever holds it.
pub(super) struct Task(JoinHandle<()>);

impl Task {
    pub(super) fn spawn(work: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(work))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The body of an answer: of bounded length and without long pauses. Its connection ends with it.
pub(super) struct Incoming {
    body: hyper::body::Incoming,
    _driver: Task,
    pause_max: Duration,
    pause: Pin<Box<Sleep>>,
    left: u64,
    nominated: Nominated,
    /// Tells the guest's store that an answer of its is still unread.
    _run: Arc<()>,
}

impl Incoming {
    pub(super) fn new(
        body: hyper::body::Incoming,
        driver: Task,
        pause_max: Duration,
        bytes_max: u64,
        nominated: Nominated,
        run: Arc<()>,
    ) -> Self {
        let pause = Box::pin(sleep(pause_max));
        Self { body, _driver: driver, pause_max, pause, left: bytes_max, nominated, _run: run }
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = WasiHttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, WasiHttpError>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) else {
            ready!(self.pause.as_mut().poll(context));
            return Poll::Ready(Some(Err(WasiHttpError::ConnectionReadTimeout)));
        };
        let frame = match frame {
            None => return Poll::Ready(None),
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Poll::Ready(Some(Err(WasiHttpError::Hyper(error)))),
        };
        let until = Instant::now() + self.pause_max;
        self.pause.as_mut().reset(until);
        let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
        match self.left.checked_sub(bytes) {
            Some(left) => self.left = left,
            None => return Poll::Ready(Some(Err(WasiHttpError::HttpResponseBodySize(None)))),
        }
        Poll::Ready(Some(Ok(trailers::cleaned(frame, &self.nominated))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
