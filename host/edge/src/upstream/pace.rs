//! Bodies on their way through: how long they may be silent, and what they hold on to until they end.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use parking_lot::Mutex;
use thiserror::Error;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep};

use super::fleet::Visit;
use super::pool::LineHold;
use super::retry::Left;

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
    held: Held,
}

/// What a response occupies: a place at its upstream, one at its server, and one on its connection.
pub(super) struct Held {
    pub(super) _place: Arc<OwnedSemaphorePermit>,
    pub(super) visit: Visit,
    pub(super) _line: LineHold,
}

impl Paced {
    pub(super) fn new(body: Incoming, idle_max: Duration, held: Held) -> Self {
        Self { body, idle_max, sleep: Box::pin(tokio::time::sleep(idle_max)), held }
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
            if matches!(frame, Some(Err(_))) {
                this.held.visit.body_broke();
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        match this.sleep.as_mut().poll(cx) {
            Poll::Ready(()) => {
                this.held.visit.body_broke();
                Poll::Ready(Some(Err(Box::new(Silent(this.idle_max)))))
            }
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

/// The body that a client sends.
pub(super) type ClientBody = RequestBody;

/// A client's request body, lent to one try after the other as long as nothing of it has been read. Counts its frames, so
/// that whoever waits for the response can tell an upload that moves from an upstream that is silent.
pub(super) struct Upload {
    lending: Mutex<Lending>,
    frames: AtomicU64,
}

struct Lending {
    body: ClientBody,
    /// The number of the loan that may read.
    loan: u64,
    /// The last that was seen of it was an error, or nothing yet.
    keeps_waiting: bool,
}

impl Upload {
    pub(super) fn new(body: ClientBody) -> Arc<Self> {
        let lending = Mutex::new(Lending { body, loan: 0, keeps_waiting: false });
        Arc::new(Self { lending, frames: AtomicU64::new(0) })
    }

    pub(super) fn left(&self) -> Left {
        if self.frames() == 0 { Left::Whole } else { Left::Begun }
    }

    /// Whether an exchange that ended now ended for what the client sent, or did not send.
    pub(super) fn keeps_waiting(&self) -> bool {
        self.lending.lock().keeps_waiting
    }

    pub(super) fn frames(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }

    /// Lends the body. Whoever had it before reads nothing any more: a try that was given up may still be polled by the
    /// task of its connection.
    pub(super) fn lend(self: &Arc<Self>) -> Lent {
        let mut lending = self.lending.lock();
        lending.loan += 1;
        Lent { upload: Arc::clone(self), loan: lending.loan }
    }
}

/// The body in the hands of one try.
pub(super) struct Lent {
    upload: Arc<Upload>,
    loan: u64,
}

/// The body was lent to another try.
#[derive(Debug, Error)]
#[error("the request is being sent elsewhere")]
struct TakenBack;

impl Body for Lent {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut lending = self.upload.lending.lock();
        if lending.loan != self.loan {
            return Poll::Ready(Some(Err(Box::new(TakenBack))));
        }
        let polled = Pin::new(&mut lending.body).poll_frame(cx);
        lending.keeps_waiting = matches!(polled, Poll::Pending | Poll::Ready(Some(Err(_))));
        if polled.is_ready() {
            self.upload.frames.fetch_add(1, Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.upload.lending.lock().body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.upload.lending.lock().body.size_hint()
    }
}
