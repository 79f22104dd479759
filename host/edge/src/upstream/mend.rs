//! A body that a peer broke off, ended by the upstream: a node that is killed costs no answer, not even one that has begun.
//!
//! The upstream is asked for the whole. What the clients have had of it already is compared by its SHA-256, and what comes
//! after that is passed on. So they get the bytes of one version, the upstream's own of now; where those before were of
//! another, their answer breaks off.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use aws_lc_rs::digest;
use bytes::Bytes;
use http::header::{
    CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, LAST_MODIFIED,
};
use http::{StatusCode, response};
use http_body::{Body, Frame};
use souk_cache::{Asked, FillWriter};
use thiserror::Error;

use super::error::{body_cause, chain};
use super::forward;
use super::pace::Paced;
use super::pour::{Poured, pour};
use super::proxy::{Arrival, Proxy};
use super::shield::Member;
use crate::http::BodyError;

/// What two heads must agree in for their bodies to be one.
const OF_THE_BODY: [HeaderName; 4] = [CONTENT_TYPE, CONTENT_ENCODING, ETAG, LAST_MODIFIED];

/// An answer of a peer whose body is arriving.
pub(super) struct Begun {
    pub(super) head: response::Parts,
    pub(super) asked: Asked,
    pub(super) from: Arrival,
    pub(super) peer: Arc<Member>,
}

/// Why a body cannot be ended.
#[derive(Debug, Error)]
enum NoRest {
    #[error("the upstream has another version by now")]
    Changed,
    #[error(transparent)]
    Broken(#[from] BodyError),
}

impl Proxy {
    /// Moves a peer's body into the cache, whether or not a client still reads it.
    pub(super) async fn pump_shared(&self, body: Paced, mut writer: FillWriter, begun: Begun) {
        let metrics = self.metrics();
        let mut had = Had::default();
        let poured = pour(body, &mut writer, |chunk| {
            metrics.fill_bytes.inc_by(chunk.len() as u64);
            had.note(chunk);
        });
        // One that hangs in the middle of a body is as good as one that breaks it off.
        let poured = tokio::select! {
            biased;
            poured = poured => poured,
            () = begun.peer.until_away() => Poured::Broken("it is away".into()),
        };
        let key = &begun.asked.key;
        let Poured::Broken(error) = poured else { return self.settle(poured, writer, key) };
        let (cause, bytes) = (body_cause(&error), had.bytes);
        tracing::warn!(url = %key, cause, bytes, "a peer broke off in the middle of a body; asking the upstream for the rest");
        let mended = match self.rest(&begun, had).await {
            Ok(rest) => {
                let count = |chunk: &Bytes| {
                    metrics.fill_bytes.inc_by(chunk.len() as u64);
                };
                pour(rest, &mut writer, count).await
            }
            Err(error) => Poured::Broken(error.into()),
        };
        metrics.peer_body(if matches!(mended, Poured::Broken(_)) { "broken" } else { "mended" });
        self.settle(mended, writer, key);
    }

    /// What of the upstream's own answer the clients have not had.
    async fn rest(&self, begun: &Begun, had: Had) -> Result<Rest<Paced>, NoRest> {
        let Begun { head, asked, from, .. } = begun;
        let request = forward::fill(asked, &HeaderMap::new(), &self.signature(from));
        let (_when, answered) = self.ask(&asked.key, request, None, None, &from.tries).await;
        let response = answered.map_err(|error| NoRest::Broken(chain(&error).into()))?;
        if !is_of_one_body(head, response.status(), response.headers()) {
            return Err(NoRest::Changed);
        }
        Ok(had.skip_in(response.into_body()))
    }
}

/// Whether a whole response may have the body that another began with this head.
fn is_of_one_body(begun: &response::Parts, status: StatusCode, headers: &HeaderMap) -> bool {
    let same = |name: &HeaderName| begun.headers.get(name) == headers.get(name);
    // A length that only one of them knows says nothing against the other.
    let lengths = begun.headers.get(CONTENT_LENGTH).zip(headers.get(CONTENT_LENGTH));
    status == begun.status
        && status != StatusCode::PARTIAL_CONTENT
        && lengths.is_none_or(|(one, other)| one == other)
        && OF_THE_BODY.iter().all(same)
}

/// What has come of a body.
struct Had {
    sum: digest::Context,
    bytes: u64,
}

impl Default for Had {
    fn default() -> Self {
        Self { sum: digest::Context::new(&digest::SHA256), bytes: 0 }
    }
}

impl Had {
    fn note(&mut self, chunk: &Bytes) {
        self.sum.update(chunk);
        self.bytes += chunk.len() as u64;
    }

    /// What comes after it in a body that begins with the same.
    fn skip_in<B>(self, body: B) -> Rest<B> {
        Rest { body, left: self.bytes, expected: Some(self.sum.finish()), seen: Self::default() }
    }
}

/// A body without a beginning that is known already.
struct Rest<B> {
    body: B,
    /// Of the beginning.
    left: u64,
    /// Until it has been compared.
    expected: Option<digest::Digest>,
    seen: Had,
}

impl<B> Rest<B> {
    /// What of a piece comes after the beginning, or that it is another one's.
    fn after(&mut self, mut chunk: Bytes) -> Result<Bytes, NoRest> {
        let of_beginning = usize::try_from(self.left).unwrap_or(usize::MAX).min(chunk.len());
        let beginning = chunk.split_to(of_beginning);
        self.seen.note(&beginning);
        self.left -= of_beginning as u64;
        if self.left == 0
            && let Some(expected) = self.expected.take()
        {
            let seen = std::mem::take(&mut self.seen).sum.finish();
            if seen.as_ref() != expected.as_ref() {
                return Err(NoRest::Changed);
            }
        }
        Ok(chunk)
    }
}

impl<B: Body<Data = Bytes, Error = BodyError> + Unpin> Body for Rest<B> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                // It is shorter than what was there before, or all that is left is to be compared.
                None => {
                    let last = self.after(Bytes::new());
                    let is_whole = self.left == 0 && last.is_ok();
                    return Poll::Ready((!is_whole).then(|| Err(NoRest::Changed.into())));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok(frame)) => frame,
            };
            let Ok(chunk) = frame.into_data() else { continue };
            match self.after(chunk) {
                Ok(rest) if rest.is_empty() => {}
                Ok(rest) => return Poll::Ready(Some(Ok(Frame::data(rest)))),
                Err(error) => return Poll::Ready(Some(Err(error.into()))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use http::Response;
    use http_body_util::{BodyExt as _, StreamBody};

    use super::*;

    /// What is left of `now`, in pieces of so many bytes, for those who have had `had`.
    async fn rest(had: &str, now: &str, piece: usize) -> Option<String> {
        let mut seen = Had::default();
        seen.note(&Bytes::copy_from_slice(had.as_bytes()));
        let pieces = now.as_bytes().chunks(piece).map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece))));
        let body = StreamBody::new(stream::iter(pieces.collect::<Vec<Result<_, BodyError>>>()));
        let rest = seen.skip_in(body).collect().await.ok()?.to_bytes();
        Some(String::from_utf8(rest.to_vec()).expect("text"))
    }

    #[tokio::test]
    async fn the_rest_of_the_same_body_is_passed_on_and_of_another_nothing() {
        for piece in 1..12 {
            for (had, now, left) in [
                ("", "a page of tea", Some("a page of tea")),
                ("a page", "a page of tea", Some(" of tea")),
                ("a page of tea", "a page of tea", Some("")),
                ("a page", "a mug of tea", None),
                ("a page", "a pag", None),
                ("a page", "", None),
                ("", "", Some("")),
            ] {
                assert_eq!(rest(had, now, piece).await.as_deref(), left, "{had:?} of {now:?} by {piece}");
            }
        }
    }

    #[test]
    fn heads_of_one_body_agree() {
        let head = |fields: &[(&'static str, &str)]| {
            let mut response = Response::new(());
            for (name, value) in fields {
                response.headers_mut().insert(*name, value.parse().expect("a value"));
            }
            response.into_parts().0
        };
        let begun = head(&[("etag", "\"a\""), ("content-type", "text/html"), ("content-length", "9")]);
        for (other, is_same) in [
            (head(&[("etag", "\"a\""), ("content-type", "text/html"), ("content-length", "9")]), true),
            (head(&[("etag", "\"a\""), ("content-type", "text/html"), ("date", "now")]), true),
            (head(&[("etag", "\"a\""), ("content-type", "text/html"), ("content-length", "8")]), false),
            (head(&[("etag", "\"b\""), ("content-type", "text/html")]), false),
            (head(&[("content-type", "text/html")]), false),
            (head(&[("etag", "\"a\""), ("content-type", "text/html"), ("content-encoding", "br")]), false),
        ] {
            assert_eq!(is_of_one_body(&begun, StatusCode::OK, &other.headers), is_same, "{other:?}");
            assert!(!is_of_one_body(&begun, StatusCode::NOT_FOUND, &other.headers));
        }
    }
}
