//! The body of a guest's answer. It ends well only if the guest finished it, at the length that it said.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use tokio::task::AbortHandle;
use wasmtime_wasi_http::WasiBody;

use super::{HttpFault, HttpLimits, trailers};

/// Empty chunks that are skipped at a time. HTTP/2 has no flow control for empty frames, so none is ever sent.
const EMPTY_CHUNKS_MAX: usize = 32;

/// How a guest's run ended. Set before its store is dropped: a dropped store closes the body's channel, and a closed
/// channel alone looks like a finished body.
pub(super) type Outcome = OnceLock<Result<(), HttpFault>>;

/// Ends a guest's run when dropped, unless told that the run may go on.
pub(super) struct Running(Option<AbortHandle>);

impl Running {
    /// None: the run has ended already.
    pub(super) fn new(task: Option<AbortHandle>) -> Self {
        Self(task)
    }

    /// The guest may finish what it does after its answer, within its limits.
    fn detach(&mut self) {
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
    inner: WasiBody,
    outcome: Arc<Outcome>,
    running: Running,
    /// What is missing of the length that the guest said.
    missing: Option<u64>,
    /// What any body may still have.
    left: u64,
    limits: Arc<HttpLimits>,
}

impl Body {
    pub(super) fn new(
        inner: WasiBody,
        length: Option<u64>,
        outcome: Arc<Outcome>,
        running: Running,
        limits: Arc<HttpLimits>,
    ) -> Self {
        let mut body =
            Self { inner, outcome, running, missing: length, left: limits.answer_bytes_max, limits };
        // An empty body is not asked for anything: that it is dropped at once is not a client that went away.
        if length == Some(0) || body.inner.is_end_stream() {
            body.running.detach();
        }
        body
    }

    fn count(&mut self, bytes: u64) -> Result<(), HttpFault> {
        self.left = self.left.checked_sub(bytes).ok_or(HttpFault::TooLarge)?;
        if let Some(missing) = &mut self.missing {
            *missing = missing.checked_sub(bytes).ok_or(HttpFault::Unfinished)?;
            if *missing == 0 {
                // hyper does not ask again: it has what was promised.
                self.running.detach();
            }
        }
        Ok(())
    }

    /// Whether a body that has ended here ended well.
    fn ended(&self) -> Result<(), HttpFault> {
        match self.outcome.get() {
            Some(Err(fault)) => Err(fault.clone()),
            // Finished, while the guest still runs or after it ended well.
            None | Some(Ok(())) if self.missing.is_none_or(|missing| missing == 0) => Ok(()),
            None | Some(Ok(())) => Err(HttpFault::Unfinished),
        }
    }

    fn pass(&mut self, frame: Frame<Bytes>) -> Result<Option<Frame<Bytes>>, HttpFault> {
        match frame.into_data() {
            Ok(data) if data.is_empty() => Ok(None),
            Ok(data) => {
                self.count(data.len() as u64)?;
                Ok(Some(Frame::data(data)))
            }
            Err(frame) => {
                self.ended()?;
                self.running.detach();
                let fields =
                    frame.into_trailers().ok().and_then(|fields| trailers::outgoing(fields, &self.limits));
                Ok(fields.map(Frame::trailers))
            }
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = HttpFault;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpFault>>> {
        for _ in 0..EMPTY_CHUNKS_MAX {
            let passed = match ready!(Pin::new(&mut self.inner).poll_frame(context)) {
                Some(Ok(frame)) => self.pass(frame),
                // The store's end is the cause, if it has one to tell.
                Some(Err(_)) => Err(self.ended().err().unwrap_or(HttpFault::Unfinished)),
                None => match self.ended() {
                    Ok(()) => {
                        self.running.detach();
                        return Poll::Ready(None);
                    }
                    Err(fault) => Err(fault),
                },
            };
            match passed {
                Ok(Some(frame)) => return Poll::Ready(Some(Ok(frame))),
                Ok(None) => {}
                Err(fault) => return Poll::Ready(Some(Err(fault))),
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream() && self.ended().is_ok()
    }

    fn size_hint(&self) -> SizeHint {
        self.missing.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, Empty, Full};

    use super::*;

    /// Whether the guest behind a body may go on when the body is dropped unread.
    async fn goes_on(inner: WasiBody, length: Option<u64>) -> bool {
        let task = tokio::spawn(std::future::pending::<()>());
        let running = Running::new(Some(task.abort_handle()));
        drop(Body::new(inner, length, Arc::default(), running, Arc::default()));
        tokio::time::timeout(std::time::Duration::from_millis(50), task).await.is_err()
    }

    #[tokio::test]
    async fn a_guest_whose_answer_is_empty_may_finish_its_work() {
        let full = || Full::new(Bytes::from("x")).map_err(|never| match never {}).boxed_unsync();
        let empty = || Empty::new().map_err(|never| match never {}).boxed_unsync();
        assert!(goes_on(empty(), None).await);
        assert!(goes_on(full(), Some(0)).await, "nobody asks for more than the length says");
        assert!(!goes_on(full(), None).await && !goes_on(full(), Some(1)).await, "its client went away");
    }
}
