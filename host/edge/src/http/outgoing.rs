//! An answer on its way into a stream of HTTP/2 or HTTP/3: its head as a server completes it, and its body, which ends
//! rightly or not at all.
//!
//! Both protocols' servers send what comes out of here ([`crate::http2`], [`crate::http3`]); how a stream takes it is theirs.
//! Whoever finds that a body is [`Torn`] must reset the stream, so that nobody takes the half for the whole.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, DATE, HeaderMap, TE};
use http::{Response, StatusCode};
use http_body::{Body, Frame, SizeHint};

use super::date::date_now;
use super::{BodyError, OF_A_CONNECTION};

/// Why an answer has no right end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Torn {
    #[error("the answer broke off: {0}")]
    Body(BodyError),
    #[error("the answer is not as long as it says")]
    Length,
}

/// A body that is as long as its head says.
#[derive(Debug)]
pub(crate) struct Outgoing<B> {
    body: B,
    /// What `Content-Length` leaves.
    left: Option<u64>,
}

impl<B: Body<Data = Bytes, Error = BodyError> + Unpin> Outgoing<B> {
    /// Completes an answer's head, and takes its body apart from it. `to_head`: it answers a HEAD, and has no body.
    pub(crate) fn of(response: Response<B>, to_head: bool) -> (Response<()>, Self) {
        let (mut head, body) = response.into_parts();
        complete(&mut head.headers, head.status, body.size_hint().exact(), to_head);
        let left = length_of_body(&head.headers, head.status, to_head);
        (Response::from_parts(head, ()), Self { body, left })
    }
}

impl<B: Body<Data = Bytes, Error = BodyError> + Unpin> Body for Outgoing<B> {
    type Data = Bytes;
    type Error = Torn;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Torn>>> {
        let this = &mut *self;
        let frame = match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
            Some(frame) => frame.map_err(Torn::Body)?,
            None if this.is_whole() => return Poll::Ready(None),
            None => return Poll::Ready(Some(Err(Torn::Length))),
        };
        Poll::Ready(Some(match frame.into_data() {
            Ok(data) => {
                if let Some(left) = &mut this.left {
                    *left = left.checked_sub(data.len() as u64).ok_or(Torn::Length)?;
                }
                Ok(Frame::data(data))
            }
            Err(frame) => match frame.into_trailers() {
                // They end the answer.
                Ok(_) if !this.is_whole() => Err(Torn::Length),
                Ok(mut trailers) => {
                    remove_of_a_connection(&mut trailers);
                    Ok(Frame::trailers(trailers))
                }
                // There is no third kind yet.
                Err(frame) => Ok(frame),
            },
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.is_whole() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B> Outgoing<B> {
    fn is_whole(&self) -> bool {
        self.left.is_none_or(|left| left == 0)
    }
}

/// What a server adds to a head, and what it leaves out.
fn complete(headers: &mut HeaderMap, status: StatusCode, length: Option<u64>, to_head: bool) {
    remove_of_a_connection(headers);
    if let Some(length) = length.filter(|_| !to_head && may_have_length(status)) {
        headers.entry(CONTENT_LENGTH).or_insert_with(|| length.into());
    }
    headers.entry(DATE).or_insert_with(date_now);
}

/// `TE` is a client's, and of its connection (RFC 9110 section 10.1.4).
fn remove_of_a_connection(headers: &mut HeaderMap) {
    for name in OF_A_CONNECTION.iter().chain([&TE]) {
        headers.remove(name);
    }
}

/// RFC 9110 section 8.6.
pub(crate) fn may_have_length(status: StatusCode) -> bool {
    !status.is_informational() && !matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// The bytes that must follow a head, where it says so.
fn length_of_body(headers: &HeaderMap, status: StatusCode, to_head: bool) -> Option<u64> {
    if to_head || !may_have_length(status) {
        return None;
    }
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use http::HeaderValue;
    use http_body_util::{BodyExt as _, StreamBody};

    use super::*;

    #[test]
    fn a_head_is_completed_and_says_nothing_of_connections() {
        let mut headers = HeaderMap::new();
        for name in OF_A_CONNECTION.iter().chain([&TE]) {
            headers.insert(name, HeaderValue::from_static("x"));
        }
        complete(&mut headers, StatusCode::OK, Some(3), false);
        assert_eq!(headers.len(), 2, "{headers:?}");
        assert_eq!(headers[CONTENT_LENGTH], "3");
        for (status, to_head) in [(StatusCode::NO_CONTENT, false), (StatusCode::OK, true)] {
            let mut headers = HeaderMap::new();
            complete(&mut headers, status, Some(0), to_head);
            assert!(!headers.contains_key(CONTENT_LENGTH), "{status} {to_head}");
        }
    }

    /// What becomes of these pieces under a head that says so many bytes; `None` is the body's own failure.
    async fn sent(says: Option<u64>, to_head: bool, pieces: &[Option<&'static str>]) -> Result<String, Torn> {
        let frames = pieces.iter().map(|piece| match piece {
            Some(text) => Ok(Frame::data(Bytes::from_static(text.as_bytes()))),
            None => Err(BodyError::from("gone")),
        });
        let mut response = Response::new(StreamBody::new(stream::iter(frames.collect::<Vec<_>>())));
        if let Some(says) = says {
            response.headers_mut().insert(CONTENT_LENGTH, says.into());
        }
        let (_, body) = Outgoing::of(response, to_head);
        let bytes = body.collect().await?.to_bytes();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    #[tokio::test]
    async fn a_body_ends_as_it_says_or_is_torn() {
        let two = [Some("ab"), Some("c")];
        assert_eq!(sent(None, false, &two).await.expect("whole"), "abc");
        assert_eq!(sent(Some(3), false, &two).await.expect("whole"), "abc");
        assert_eq!(sent(Some(3), true, &[]).await.expect("the answer to a HEAD"), "");
        for says in [0, 2, 4] {
            assert!(matches!(sent(Some(says), false, &two).await, Err(Torn::Length)), "{says}");
        }
        assert!(matches!(sent(Some(1), false, &[]).await, Err(Torn::Length)));
        assert!(matches!(sent(None, false, &[Some("ab"), None]).await, Err(Torn::Body(_))));
    }
}
