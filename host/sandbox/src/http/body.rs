//! The body of a guest's answer. It ends well only if the guest finished it.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::task::AbortHandle;
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;

use super::HttpFault;

/// How a guest's run ended. Set before its store is dropped: a dropped store closes the body's channel, and a closed
/// channel alone looks like a finished body.
pub(super) type Outcome = OnceLock<Result<(), HttpFault>>;

/// Ends a guest's run when dropped, unless told that the run may go on.
pub(super) struct Running(Option<AbortHandle>);

impl Running {
    pub(super) fn new(task: AbortHandle) -> Self {
        Self(Some(task))
    }

    /// The guest may finish what it does after its answer, within its limits.
    pub(super) fn detach(&mut self) {
        self.0 = None;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(task) = self.0.take() {
            task.abort();
        }
    }
}

/// A streamed body. Dropping it before its end stops the guest: nobody is there to read.
pub struct Body {
    pub(super) inner: HyperOutgoingBody,
    pub(super) outcome: Arc<Outcome>,
    pub(super) running: Running,
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = HttpFault;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpFault>>> {
        let frame = std::task::ready!(Pin::new(&mut self.inner).poll_frame(context));
        Poll::Ready(match frame {
            Some(Ok(frame)) => Some(Ok(frame)),
            Some(Err(_)) => Some(Err(HttpFault::Unfinished)),
            None => match self.outcome.get() {
                Some(Err(fault)) => Some(Err(fault.clone())),
                // Finished, while the guest still runs or after it ended well.
                None | Some(Ok(())) => {
                    self.running.detach();
                    None
                }
            },
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
