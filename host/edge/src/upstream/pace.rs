//! Bodies on their way through: how long they may be silent, and what they hold on to until they end.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use thiserror::Error;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep};

use crate::http::{BodyError, RequestBody};

/// A body that was silent for too long.
#[derive(Debug, Error)]
#[error("the upstream was silent for {0:?} in the middle of a body")]
pub(super) struct Silent(pub(super) Duration);

/// An upstream's response body that ends with an error when it is silent for too long, and that occupies its upstream
/// until it ends.
pub(super) struct Paced {
    body: Incoming,
    idle_max: Duration,
    sleep: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl Paced {
    pub(super) fn new(body: Incoming, idle_max: Duration, place: OwnedSemaphorePermit) -> Self {
        Self { body, idle_max, sleep: Box::pin(tokio::time::sleep(idle_max)), _place: place }
    }
}

impl Body for Paced {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            // A slow client polls seldom: the silence counts from the last poll that found something.
            this.sleep.as_mut().reset(Instant::now() + this.idle_max);
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        match this.sleep.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Some(Err(Box::new(Silent(this.idle_max))))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A client's request body that counts its frames, so that whoever waits for the response can tell an upload that
/// moves from an upstream that is silent.
pub(super) struct Counted {
    body: RequestBody,
    frames: Arc<AtomicU64>,
}

impl Counted {
    pub(super) fn new(body: RequestBody, frames: Arc<AtomicU64>) -> Self {
        Self { body, frames }
    }
}

impl Body for Counted {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if polled.is_ready() {
            self.frames.fetch_add(1, Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
