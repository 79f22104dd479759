//! One exchange over HTTP/2: a request's head, and the answer on its way out, with what is said before it.
//!
//! A future without a box: its connection polls it where it stands, and gives it to a task only if it has to wait.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{Method, Request, Response};
use http_body::Body as _;

use super::upload::Upload;
use crate::gate::Worked;
use crate::http::{Outgoing, RequestBody, Torn, join_cookies};
use crate::interim::Hints;
use crate::listen::{Asked, Desk};

/// Why an answer did not arrive whole.
#[derive(Debug, thiserror::Error)]
enum Broken {
    /// The client's word, or the connection's end.
    #[error("the stream was reset: {0}")]
    Reset(Reason),
    #[error("{0}")]
    Stream(#[from] h2::Error),
    #[error("the stream takes nothing more")]
    Closed,
    #[error("{0}")]
    Torn(#[from] Torn),
}

/// See the module. Dropped before its end, its stream is reset and its handler dropped, whatever it is at.
pub(super) struct Exchange {
    reply: SendResponse<Bytes>,
    at: At,
}

enum At {
    Asked { asked: Asked, hints: Option<Hints> },
    Answered(Pump),
}

impl Exchange {
    pub(super) fn begin(request: Request<RecvStream>, reply: SendResponse<Bytes>, desk: &Arc<Desk>) -> Self {
        let (mut head, stream) = request.into_parts();
        join_cookies(&mut head.headers);
        let hints = desk.passes_interims().then(Hints::default);
        if let Some(hints) = &hints {
            head.extensions.insert(hints.interims());
        }
        // What follows a CONNECT is no body, and nobody here has a use for it.
        let body = if head.method == Method::CONNECT {
            RequestBody::empty()
        } else {
            Upload::begin(stream, &head.headers)
        };
        let asked = desk.ask(Request::from_parts(head, body));
        Self { reply, at: At::Asked { asked, hints } }
    }

    fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        if let At::Asked { asked, hints } = &mut self.at {
            let answered = Pin::new(&mut *asked).poll(cx);
            if let Some(hints) = hints {
                if answered.is_ready() {
                    hints.end();
                }
                say(&mut self.reply, hints, cx);
            }
            let Poll::Ready(response) = answered else {
                // Registered for: who has left is not worked for.
                return self.reply.poll_reset(cx).map(|reset| Err(Broken::Reset(reset?)));
            };
            let to_head = asked.is_to_head();
            match self.begin_answer(response, to_head)? {
                Some(pump) => self.at = At::Answered(pump),
                None => return Poll::Ready(Ok(())),
            }
        }
        match &mut self.at {
            At::Answered(pump) => pump.poll(cx),
            At::Asked { .. } => Poll::Pending,
        }
    }

    /// Sends the head; what is left to be done is its body's.
    fn begin_answer(&mut self, response: Response<Worked>, to_head: bool) -> Result<Option<Pump>, Broken> {
        let (head, body) = Outgoing::of(response, to_head);
        let ends = body.is_end_stream();
        let stream = self.reply.send_response(head, ends).inspect_err(|_| {
            self.reply.send_reset(Reason::INTERNAL_ERROR);
        })?;
        Ok((!ends).then_some(Pump { stream, body, waiting: None }))
    }
}

impl Future for Exchange {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let sent = ready!(self.poll_sent(cx));
        if let Err(error) = sent {
            tracing::debug!(%error, "an answer over HTTP/2 did not arrive whole");
        }
        Poll::Ready(())
    }
}

/// Hands on what has been said. One stream's hints take no more than what may wait of them, and the rest is dropped: h2 does
/// not tell what it has written, and a client that reads nothing is not to fill it.
fn say(reply: &mut SendResponse<Bytes>, hints: &Hints, cx: &mut Context<'_>) {
    while let Poll::Ready(Some(hint)) = hints.poll_take(cx) {
        // h2 would write it to a stream that has been reset, too.
        if reply.poll_reset(cx).is_ready() || reply.send_informational(hint).is_err() {
            return;
        }
    }
}

/// A body on its way into a stream, as fast as the stream's window opens.
struct Pump {
    stream: SendStream<Bytes>,
    body: Outgoing<Worked>,
    /// A piece that has no room yet, and whether it is the last.
    waiting: Option<(Bytes, bool)>,
}

impl Pump {
    /// Ready when h2 has all of it, or it will never be whole: then the stream is reset, so that nobody takes the half for it.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let sent = ready!(self.poll_whole(cx));
        if let Err(Broken::Torn(_)) = sent {
            self.stream.send_reset(Reason::INTERNAL_ERROR);
        }
        Poll::Ready(sent)
    }

    fn poll_whole(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        loop {
            if self.waiting.is_some() {
                ready!(self.poll_room(cx))?;
                if let Some((data, is_last)) = self.waiting.take() {
                    self.stream.send_data(data, is_last)?;
                    if is_last {
                        return Poll::Ready(Ok(()));
                    }
                }
            }
            let frame = match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(frame)) => frame?,
                Poll::Ready(None) => {
                    self.stream.send_data(Bytes::new(), true)?;
                    return Poll::Ready(Ok(()));
                }
                Poll::Pending => {
                    return self.stream.poll_reset(cx).map(|reset| Err(Broken::Reset(reset?)));
                }
            };
            match frame.into_data() {
                Ok(data) if data.is_empty() && !self.body.is_end_stream() => {}
                // What has no length needs no window.
                Ok(data) if data.is_empty() => {
                    self.stream.send_data(data, true)?;
                    return Poll::Ready(Ok(()));
                }
                Ok(data) => {
                    // One byte: a stream that reserves more, or before it has something to send, takes it from those that have
                    // (hyper's issue 4003). h2 raises it to what it is given.
                    self.stream.reserve_capacity(1);
                    self.waiting = Some((data, self.body.is_end_stream()));
                }
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        self.stream.reserve_capacity(0);
                        self.stream.send_trailers(trailers)?;
                        return Poll::Ready(Ok(()));
                    }
                }
            }
        }
    }

    /// Ready when the stream takes something, or nothing any more.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        while self.stream.capacity() == 0 {
            match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(error.into())),
                None => return Poll::Ready(Err(Broken::Closed)),
            }
        }
        Poll::Ready(Ok(()))
    }
}
