//! Interim responses on a stream of HTTP/2 or HTTP/3, where each is a frame of its own before the final response's.
//!
//! No question of place here: whoever answers the request ([`crate::http2`], [`crate::http3`]) is also the only one who writes to
//! its stream. What is said waits in a bounded queue until the stream takes it, or the final response is there and the rest is
//! sent before it.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use http::header::HeaderMap;
use http::{Response, StatusCode};
use parking_lot::Mutex;

use super::{WAITING_BYTES_MAX, head};

/// What one request's speaker and the writer of its stream share.
#[derive(Debug, Default)]
pub(super) struct Queue(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Response<()>>,
    /// Names and values of those that wait, or wait no longer here but may do so behind the writer.
    bytes: usize,
    has_ended: bool,
    writer: Option<Waker>,
}

impl Queue {
    /// False if the final response has begun or too much waits already.
    pub(super) fn say(&self, status: StatusCode, headers: &HeaderMap) -> bool {
        let mut head = head(headers);
        *head.status_mut() = status;
        let bytes = bytes_of(&head);
        let writer = {
            let mut state = self.0.lock();
            if state.has_ended || state.bytes + bytes > WAITING_BYTES_MAX {
                return false;
            }
            state.bytes += bytes;
            state.waiting.push_back(head);
            state.writer.take()
        };
        if let Some(writer) = writer {
            writer.wake();
        }
        true
    }
}

/// As RFC 9114 counts a section: 32 bytes for each field, so that no number of small ones is free, and for `:status`.
fn bytes_of(head: &Response<()>) -> usize {
    let fields = head.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 32);
    fields.sum::<usize>() + 32
}

/// The writer's end. When it is dropped, nothing more can be said.
#[derive(Debug, Default)]
pub(crate) struct Hints(Arc<Queue>);

impl Hints {
    pub(crate) fn interims(&self) -> super::Interims {
        super::Interims(super::To::Stream(Arc::clone(&self.0)))
    }

    /// The final response is there: what waits is the last.
    pub(crate) fn end(&self) {
        self.0.0.lock().has_ended = true;
    }

    /// The next one; none after the end.
    ///
    /// Cancel safe: what is not returned waits on.
    pub(crate) async fn next(&self) -> Option<Response<()>> {
        let head = poll_fn(|cx| self.poll_take(cx)).await?;
        self.0.0.lock().bytes -= bytes_of(&head);
        Some(head)
    }

    /// The same for a writer that cannot tell when it has got rid of one: what is returned counts as waiting from then on.
    pub(crate) fn poll_take(&self, cx: &mut Context<'_>) -> Poll<Option<Response<()>>> {
        let mut state = self.0.0.lock();
        if let Some(head) = state.waiting.pop_front() {
            return Poll::Ready(Some(head));
        }
        if state.has_ended {
            return Poll::Ready(None);
        }
        match &mut state.writer {
            Some(writer) => writer.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

impl Drop for Hints {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use http::HeaderValue;
    use http::header::LINK;

    use super::*;

    fn link(text: &str) -> HeaderMap {
        HeaderMap::from_iter([(LINK, HeaderValue::from_str(text).expect("text"))])
    }

    #[tokio::test]
    async fn hints_come_in_order_and_end_with_the_answer() {
        let hints = Hints::default();
        let interims = hints.interims();
        assert!(hints.next().now_or_never().is_none());
        for text in ["</a>", "</b>"] {
            assert!(interims.send(StatusCode::EARLY_HINTS, &link(text)));
        }
        assert_eq!(hints.next().await.expect("one").headers()[LINK], "</a>");
        hints.end();
        assert!(!interims.send(StatusCode::EARLY_HINTS, &link("</c>")), "the answer is there");
        assert_eq!(hints.next().await.expect("one").headers()[LINK], "</b>");
        assert!(hints.next().await.is_none());
        drop(hints);
        assert!(!interims.send(StatusCode::EARLY_HINTS, &HeaderMap::new()));
    }

    #[tokio::test]
    async fn not_without_end_and_only_what_is_interim() {
        let hints = Hints::default();
        let interims = hints.interims();
        for status in [100, 101, 200] {
            let status = StatusCode::from_u16(status).expect("a status");
            assert!(!interims.send(status, &HeaderMap::new()));
        }
        let said = (0..10_000).filter(|_| interims.send(StatusCode::PROCESSING, &HeaderMap::new())).count();
        assert_eq!(said, WAITING_BYTES_MAX / 32);
        hints.next().await.expect("one");
        assert!(interims.send(StatusCode::PROCESSING, &HeaderMap::new()), "there is room again");
        assert!(!interims.send(StatusCode::EARLY_HINTS, &link(&"a".repeat(WAITING_BYTES_MAX))));
    }

    #[tokio::test]
    async fn what_is_taken_for_good_makes_no_room() {
        let hints = Hints::default();
        let interims = hints.interims();
        let mut taken = 0;
        for _ in 0..10_000 {
            interims.send(StatusCode::PROCESSING, &HeaderMap::new());
            let next = poll_fn(|cx| Poll::Ready(hints.poll_take(cx))).await;
            taken += usize::from(next.is_ready());
        }
        assert_eq!(taken, WAITING_BYTES_MAX / 32);
    }
}
