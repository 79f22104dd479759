//! A future that runs in turns.

use std::pin::Pin;
use std::task::{Context, Poll};

use souk_commerce::id::SiteId;
use tokio::sync::oneshot;

use super::{Crowded, Entered, Share, Task, Turn};

/// See [`Share::pace`]. Dropping it drops the future and its place in the queue.
pub struct Paced<F> {
    share: Share,
    site: SiteId,
    // Pinned for itself, so that this type needs no projection: one allocation beside those of a whole guest.
    future: Pin<Box<F>>,
    waiting: Option<oneshot::Receiver<Turn>>,
    begun: bool,
}

impl<F: Future> Paced<F> {
    pub(super) fn new(share: Share, site: SiteId, future: F) -> Self {
        Self { share, site, future: Box::pin(future), waiting: None, begun: false }
    }

    fn poll_turn(&mut self, context: &mut Context<'_>) -> Poll<Result<Turn, Crowded>> {
        let mut turn = match self.waiting.take() {
            Some(turn) => turn,
            // What has begun is not refused any more: its number is bounded by the instances that there can be.
            None => match self.share.ask(&self.site, Task::Http, !self.begun) {
                Ok(Entered::Now(turn)) => return Poll::Ready(Ok(turn)),
                Ok(Entered::Later(turn)) => turn,
                Err(crowded) => return Poll::Ready(Err(crowded)),
            },
        };
        match Pin::new(&mut turn).poll(context) {
            Poll::Ready(turn) => Poll::Ready(Ok(turn.expect("the queue outlives whoever waits in it"))),
            Poll::Pending => {
                self.waiting = Some(turn);
                Poll::Pending
            }
        }
    }
}

impl<F: Future> Future for Paced<F> {
    type Output = Result<F::Output, Crowded>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let mut turn = match this.poll_turn(context) {
            Poll::Ready(Ok(turn)) => turn,
            Poll::Ready(Err(crowded)) => return Poll::Ready(Err(crowded)),
            Poll::Pending => return Poll::Pending,
        };
        this.begun = true;
        turn.measure(|| this.future.as_mut().poll(context)).map(Ok)
    }
}
