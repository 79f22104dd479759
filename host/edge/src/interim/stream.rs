//! Interim responses on a stream of HTTP/3, where each is a frame of its own before the final response's.
//!
//! No question of place here: whoever answers the request ([`crate::http3`]) is also the only one who writes to its stream. What
//! is said waits in a bounded queue until the stream takes it, or the final response is there and the rest is sent before it.

use std::collections::VecDeque;
use std::sync::Arc;

use http::header::HeaderMap;
use http::{Response, StatusCode};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{WAITING_BYTES_MAX, head};

/// What one request's speaker and the writer of its stream share.
#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    said: Notify,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Response<()>>,
    /// Names and values of those that wait.
    bytes: usize,
    has_ended: bool,
}

impl Queue {
    /// False if the final response has begun or too much waits already.
    pub(super) fn say(&self, status: StatusCode, headers: &HeaderMap) -> bool {
        let mut head = head(headers);
        *head.status_mut() = status;
        let bytes = bytes_of(&head);
        {
            let mut state = self.state.lock();
            if state.has_ended || state.bytes + bytes > WAITING_BYTES_MAX {
                return false;
            }
            state.bytes += bytes;
            state.waiting.push_back(head);
        }
        self.said.notify_one();
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
        self.0.state.lock().has_ended = true;
        self.0.said.notify_one();
    }

    /// The next one; none after the end.
    ///
    /// Cancel safe: what is not returned waits on.
    pub(crate) async fn next(&self) -> Option<Response<()>> {
        loop {
            {
                let mut state = self.0.state.lock();
                if let Some(head) = state.waiting.pop_front() {
                    state.bytes -= bytes_of(&head);
                    return Some(head);
                }
                if state.has_ended {
                    return None;
                }
            }
            self.0.said.notified().await;
        }
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
}
