//! Interim responses (1xx, RFC 9110 section 15.2) on their way to a client: early hints above all.
//!
//! Over HTTP/2 and HTTP/3 they are sent as what they are ([`stream`]). Over HTTP/1.1 hyper's server has no words for them, so they
//! are written under it, into the stream of bytes that it writes. Owns the one question that this raises: where in that stream
//! there is a place for them. Refuses to know where they come from; [`crate::upstream`] hands them on, [`crate::listen`] puts the
//! [`Line`] under each connection that may need it.
//!
//! A place is where everything of the response before has left hyper and nothing of the response to this request has
//! reached it. hyper flushes the stream under it exactly when its own buffer is empty, so *flushed* is known here. A
//! request's [`Turn`] ends when its response is made, before hyper writes any of it. What was said by then is written
//! before hyper's next byte; where hyper still held bytes of the response before (a client that pipelines and reads
//! slowly), it is dropped: interim responses are hints.
//!
//! HTTP/1.0 knows no interim responses.

mod stream;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf as _, BytesMut};
use http::header::{CONTENT_LENGTH, HeaderMap};
use http::{Response, StatusCode};
use parking_lot::Mutex;
use souk_cache::fields::remove_hop_by_hop;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

pub(crate) use self::stream::Hints;

/// Bytes of interim responses that wait for a client; what does not fit is dropped. Early hints of a large shop have some
/// 4 KiB of `Link`.
const WAITING_BYTES_MAX: usize = 16 * 1024;

/// What the writers of one connection share: hyper through [`InterimIo`], and whoever holds the turn.
#[derive(Debug, Default)]
pub struct Line(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Whether hyper holds no byte that it was given to write.
    flushed: bool,
    waiting: BytesMut,
    /// The number of the request that may speak.
    speaker: Option<u64>,
    turns: u64,
    connection: Option<Waker>,
}

impl Default for State {
    fn default() -> Self {
        Self { flushed: true, waiting: BytesMut::new(), speaker: None, turns: 0, connection: None }
    }
}

impl Line {
    /// Begins the turn of a request that hyper has just read.
    pub fn begin(self: &Arc<Self>) -> Turn {
        let mut state = self.0.lock();
        state.turns += 1;
        let number = state.turns;
        // What still waits is in front of a response that is not this request's.
        state.speaker = state.waiting.is_empty().then_some(number);
        Turn { line: Arc::clone(self), number }
    }

    /// False if it is another request's turn or too much waits already.
    fn say(&self, number: u64, text: &[u8]) -> bool {
        let waker = {
            let mut state = self.0.lock();
            let room = state.waiting.len() + text.len() <= WAITING_BYTES_MAX;
            if state.speaker != Some(number) || !room {
                return false;
            }
            state.waiting.extend_from_slice(text);
            state.connection.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }
}

/// The time in which one request may be answered with interim responses. It ends when this is dropped.
#[derive(Debug)]
pub struct Turn {
    line: Arc<Line>,
    number: u64,
}

impl Turn {
    pub fn interims(&self) -> Interims {
        Interims(To::Line { line: Arc::clone(&self.line), number: self.number })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.line.0.lock();
        if state.speaker == Some(self.number) {
            state.speaker = None;
            if !state.flushed {
                state.waiting.clear();
            }
        }
    }
}

/// Says interim responses to one request. Clones say them to the same one.
#[derive(Clone, Debug)]
pub struct Interims(To);

#[derive(Clone, Debug)]
enum To {
    /// HTTP/1.1.
    Line { line: Arc<Line>, number: u64 },
    /// HTTP/2 and HTTP/3.
    Stream(Arc<stream::Queue>),
}

impl Interims {
    /// Sends an interim response as soon as there is a place for it. False where there is none: the final response has
    /// begun, too much waits already, or the status is not one that is passed on.
    ///
    /// 100 is the server's own answer to `Expect`, and 101 leaves HTTP.
    pub fn send(&self, status: StatusCode, headers: &HeaderMap) -> bool {
        if !(102..200).contains(&status.as_u16()) {
            return false;
        }
        match &self.0 {
            To::Line { line, number } => line.say(*number, &text(status, headers)),
            To::Stream(queue) => queue.say(status, headers),
        }
    }
}

/// What of an interim response is for whoever comes next.
fn head(headers: &HeaderMap) -> Response<()> {
    let mut head = Response::new(());
    *head.headers_mut() = headers.clone();
    remove_hop_by_hop(head.headers_mut());
    // RFC 9110 section 8.6: not in a response that has no content.
    head.headers_mut().remove(CONTENT_LENGTH);
    head
}

fn text(status: StatusCode, headers: &HeaderMap) -> Vec<u8> {
    let head = head(headers);
    let reason = status.canonical_reason().unwrap_or_default();
    let mut out = format!("HTTP/1.1 {} {reason}\r\n", status.as_str()).into_bytes();
    for (name, value) in head.headers() {
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
    out
}

/// A connection under hyper's HTTP/1.1 server, with a line beside it or without.
#[derive(Debug)]
pub struct InterimIo<S> {
    stream: S,
    line: Option<Arc<Line>>,
}

impl<S: AsyncWrite + Unpin> InterimIo<S> {
    pub fn new(stream: S, line: Option<Arc<Line>>) -> Self {
        Self { stream, line }
    }

    /// Writes what waits, where there is a place for it.
    fn poll_waiting(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(line) = &self.line else { return Poll::Ready(Ok(())) };
        let mut state = line.0.lock();
        while state.flushed && !state.waiting.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &state.waiting))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            state.waiting.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    /// hyper is about to write: until it flushes, nobody else does.
    fn poll_before_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_waiting(cx))?;
        if let Some(line) = &self.line {
            line.0.lock().flushed = false;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for InterimIo<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for InterimIo<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_before_write(cx))?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_before_write(cx))?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(line) = &self.line {
            let mut state = line.0.lock();
            state.flushed = true;
            // hyper flushes whenever it is polled, so whoever speaks next wakes the right task.
            match &mut state.connection {
                Some(waker) => waker.clone_from(cx.waker()),
                none => *none = Some(cx.waker().clone()),
            }
        }
        ready!(self.poll_waiting(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::time::Duration;

    use bytes::Bytes;
    use http::header::LINK;
    use http::{HeaderValue, Request};
    use http_body_util::Full;
    use hyper::body::Incoming;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    use super::*;

    /// hyper's server over a pipe of `capacity` bytes: it says two hints, `pause` lets the connection run between them
    /// and the answer, which is `body`.
    fn serve(capacity: usize, pause: bool, body: &'static str) -> DuplexStream {
        let (client, server) = tokio::io::duplex(capacity);
        let line = Arc::new(Line::default());
        let io = InterimIo::new(server, Some(Arc::clone(&line)));
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let turn = line.begin();
                async move {
                    let interims = turn.interims();
                    let path = request.uri().path().to_owned();
                    for number in 1..=2 {
                        let mut headers = HeaderMap::new();
                        let link = format!("<{path}/{number}>");
                        headers.insert(LINK, HeaderValue::from_str(&link).expect("text"));
                        headers.insert("connection", HeaderValue::from_static("x"));
                        headers.insert("x", HeaderValue::from_static("of this connection"));
                        interims.send(StatusCode::EARLY_HINTS, &headers);
                        if pause {
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                    }
                    drop(turn);
                    assert!(!interims.send(StatusCode::EARLY_HINTS, &HeaderMap::new()), "the turn is over");
                    let mut response = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
                    response.headers_mut().insert("path", HeaderValue::from_str(&path).expect("text"));
                    Ok::<_, Infallible>(response)
                }
            });
            let served = hyper::server::conn::http1::Builder::new()
                .auto_date_header(false)
                .half_close(true)
                .serve_connection(TokioIo::new(io), service);
            drop(served.await);
        });
        client
    }

    fn hint(path: &str, number: usize) -> String {
        format!("HTTP/1.1 103 Early Hints\r\nlink: <{path}/{number}>\r\n\r\n")
    }

    fn answer(path: &str, body: &str) -> String {
        format!("HTTP/1.1 200 OK\r\npath: {path}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    }

    async fn said(mut client: DuplexStream, requests: &str) -> String {
        client.write_all(requests.as_bytes()).await.expect("sent");
        client.shutdown().await.expect("half closed");
        let mut text = String::new();
        client.read_to_string(&mut text).await.expect("read");
        text
    }

    #[tokio::test]
    async fn hints_come_before_the_answer_and_in_order() {
        let requests = "GET /a HTTP/1.1\r\nhost: a\r\n\r\nGET /b HTTP/1.1\r\nhost: a\r\n\r\n";
        for pause in [false, true] {
            let text = said(serve(64 * 1024, pause, "page"), requests).await;
            let want: String = ["/a", "/b"]
                .map(|path| format!("{}{}{}", hint(path, 1), hint(path, 2), answer(path, "page")))
                .concat();
            assert_eq!(text, want, "pause {pause}");
        }
    }

    #[tokio::test]
    async fn a_pipe_of_a_few_bytes_tears_nothing() {
        let requests: String =
            ["/a", "/b", "/c", "/d"].map(|path| format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n")).concat();
        for capacity in [1, 3, 7, 50] {
            for pause in [false, true] {
                let (mut read, mut write) =
                    tokio::io::split(serve(capacity, pause, "a body that takes a while"));
                let sent = requests.clone();
                tokio::spawn(async move {
                    write.write_all(sent.as_bytes()).await.expect("sent");
                    write.shutdown().await.expect("half closed");
                });
                let mut text = String::new();
                read.read_to_string(&mut text).await.expect("read");
                // A hint may be missing, where the answer before it was still on its way; nothing else may.
                let mut rest = text.as_str();
                for path in ["/a", "/b", "/c", "/d"] {
                    for number in 1..=2 {
                        rest = rest.strip_prefix(hint(path, number).as_str()).unwrap_or(rest);
                    }
                    let whole = answer(path, "a body that takes a while");
                    rest = rest.strip_prefix(whole.as_str()).unwrap_or_else(|| panic!("{path} in {text}"));
                }
                assert_eq!(rest, "");
            }
        }
    }

    #[tokio::test]
    async fn only_what_is_interim_is_said_and_not_without_end() {
        let line = Arc::new(Line::default());
        let turn = line.begin();
        let interims = turn.interims();
        for status in [100, 101, 200, 404] {
            assert!(!interims.send(StatusCode::from_u16(status).expect("a status"), &HeaderMap::new()));
        }
        let said = (0..10_000).filter(|_| interims.send(StatusCode::PROCESSING, &HeaderMap::new())).count();
        assert_eq!(said, WAITING_BYTES_MAX / "HTTP/1.1 102 Processing\r\n\r\n".len());
        drop(turn);
        // They wait still, in front of an answer that is not the next request's.
        assert!(!line.begin().interims().send(StatusCode::PROCESSING, &HeaderMap::new()));

        let line = Arc::new(Line::default());
        let large = HeaderMap::from_iter([(
            LINK,
            HeaderValue::from_bytes(&[b'a'; WAITING_BYTES_MAX]).expect("text"),
        )]);
        assert!(!line.begin().interims().send(StatusCode::EARLY_HINTS, &large));
    }
}
