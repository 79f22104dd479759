//! HTTP/3's view of a QUIC connection: what the h3 crate asks of a transport, on quinn.
//!
//! An adapter of our own (docs/decisions/2026-11-30-http3-transport.md), for what has to be decided under h3: frames are
//! watched by [`super::frames`], an answer that is dropped half-way is reset and never ends as if it were whole, and
//! whoever works on a request learns that its client is gone.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::future::BoxFuture;
use h3::error::Code;
use h3::quic::{self, ConnectionErrorIncoming, StreamErrorIncoming, StreamId, WriteBuf};
use parking_lot::Mutex;
use quinn::{ConnectionError, ReadError, VarInt, WriteError};

use super::frames::{FrameFault, FrameGuard};

/// What is read of a stream at once: more than any head that a browser sends.
const READ_BYTES: usize = 4 * 1024;

pub(super) type Resolver = h3::server::RequestResolver<Transport, Bytes>;

fn number(code: Code) -> VarInt {
    VarInt::from_u64(code.value()).expect("HTTP/3's error codes are small")
}

/// The far end of a request's answer, outside of h3.
pub(super) struct Client {
    /// Resolves when the answer is wanted no more: its client has it whole, refuses the rest, or is gone.
    pub(super) done: BoxFuture<'static, ()>,
    resets: Arc<AtomicBool>,
}

impl Client {
    /// From now on an answer that is dropped before its end is reset.
    pub(super) fn must_be_whole(&self) {
        self.resets.store(true, Ordering::Relaxed);
    }
}

/// Where the client of the request that was accepted last is put: h3 hands on no more than its own stream.
pub(super) type LastClient = Arc<Mutex<Option<Client>>>;

type Waiting<T> = Option<BoxFuture<'static, Result<T, ConnectionError>>>;

/// A QUIC connection for h3's server.
pub(super) struct Transport {
    connection: quinn::Connection,
    bidi: Waiting<(quinn::SendStream, quinn::RecvStream)>,
    uni: Waiting<quinn::RecvStream>,
    opener: Opener,
    last: LastClient,
}

impl Transport {
    pub(super) fn new(connection: quinn::Connection) -> (Self, LastClient) {
        let last = LastClient::default();
        let opener = Opener { connection: connection.clone(), uni: None };
        (Self { connection, bidi: None, uni: None, opener, last: Arc::clone(&last) }, last)
    }
}

impl quic::Connection<Bytes> for Transport {
    type RecvStream = RecvStream;
    type OpenStreams = Opener;

    fn poll_accept_recv(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<RecvStream, ConnectionErrorIncoming>> {
        let waiting = self.uni.get_or_insert_with(|| {
            let connection = self.connection.clone();
            Box::pin(async move { connection.accept_uni().await })
        });
        let accepted = ready!(waiting.as_mut().poll(cx));
        self.uni = None;
        let stream = accepted.map_err(lost)?;
        Poll::Ready(Ok(RecvStream::new(stream, self.connection.clone(), FrameGuard::unidirectional())))
    }

    fn poll_accept_bidi(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<BidiStream, ConnectionErrorIncoming>> {
        let waiting = self.bidi.get_or_insert_with(|| {
            let connection = self.connection.clone();
            Box::pin(async move { connection.accept_bi().await })
        });
        let accepted = ready!(waiting.as_mut().poll(cx));
        self.bidi = None;
        let (send, receive) = accepted.map_err(lost)?;
        let resets = Arc::new(AtomicBool::new(false));
        let stopped = send.stopped();
        let done = Box::pin(async move { drop(stopped.await) });
        *self.last.lock() = Some(Client { done, resets: Arc::clone(&resets) });
        Poll::Ready(Ok(BidiStream {
            send: SendStream { stream: send, writing: None, ended: false, resets },
            receive: RecvStream::new(receive, self.connection.clone(), FrameGuard::request()),
        }))
    }

    fn opener(&self) -> Opener {
        Opener { connection: self.connection.clone(), uni: None }
    }
}

impl quic::OpenStreams<Bytes> for Transport {
    type BidiStream = BidiStream;
    type SendStream = SendStream;

    fn poll_open_bidi(&mut self, cx: &mut Context<'_>) -> Poll<Result<BidiStream, StreamErrorIncoming>> {
        self.opener.poll_open_bidi(cx)
    }

    fn poll_open_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<SendStream, StreamErrorIncoming>> {
        self.opener.poll_open_send(cx)
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        self.opener.close(code, reason);
    }
}

/// Opens the server's own streams: control and QPACK.
pub(super) struct Opener {
    connection: quinn::Connection,
    uni: Waiting<quinn::SendStream>,
}

impl quic::OpenStreams<Bytes> for Opener {
    type BidiStream = BidiStream;
    type SendStream = SendStream;

    fn poll_open_bidi(&mut self, _: &mut Context<'_>) -> Poll<Result<BidiStream, StreamErrorIncoming>> {
        // RFC 9114 section 6.1: there are no server-initiated bidirectional streams.
        Poll::Ready(Err(StreamErrorIncoming::Unknown("a server asks nothing".into())))
    }

    fn poll_open_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<SendStream, StreamErrorIncoming>> {
        let waiting = self.uni.get_or_insert_with(|| {
            let connection = self.connection.clone();
            Box::pin(async move { connection.open_uni().await })
        });
        let opened = ready!(waiting.as_mut().poll(cx));
        self.uni = None;
        let stream = opened.map_err(stream_lost)?;
        Poll::Ready(Ok(SendStream { stream, writing: None, ended: false, resets: Arc::default() }))
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        self.connection.close(number(code), reason);
    }
}

/// A request's stream.
pub(super) struct BidiStream {
    send: SendStream,
    receive: RecvStream,
}

impl quic::BidiStream<Bytes> for BidiStream {
    type SendStream = SendStream;
    type RecvStream = RecvStream;

    fn split(self) -> (SendStream, RecvStream) {
        (self.send, self.receive)
    }
}

impl quic::RecvStream for BidiStream {
    type Buf = Bytes;

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        let polled = self.receive.poll_data(cx);
        if self.receive.is_malformed {
            // A head, for which nobody else can answer.
            quic::SendStream::<Bytes>::reset(&mut self.send, Code::H3_MESSAGE_ERROR.value());
        }
        polled
    }

    fn stop_sending(&mut self, code: u64) {
        self.receive.stop_sending(code);
    }

    fn recv_id(&self) -> StreamId {
        self.receive.recv_id()
    }
}

impl quic::SendStream<Bytes> for BidiStream {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.send.poll_ready(cx)
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        self.send.send_data(data)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.send.poll_finish(cx)
    }

    fn reset(&mut self, code: u64) {
        self.send.reset(code);
    }

    fn send_id(&self) -> StreamId {
        self.send.send_id()
    }
}

/// What the peer sends on one stream.
pub(super) struct RecvStream {
    stream: quinn::RecvStream,
    connection: quinn::Connection,
    guard: FrameGuard,
    buffer: BytesMut,
    /// What came is no request, and nothing more is read of it.
    is_malformed: bool,
}

impl RecvStream {
    fn new(stream: quinn::RecvStream, connection: quinn::Connection, guard: FrameGuard) -> Self {
        Self { stream, connection, guard, buffer: BytesMut::new(), is_malformed: false }
    }

    /// RFC 9114 section 7.1: a frame that cannot be right is an error of the connection. Section 4.1.2: a malformed request is
    /// one of its stream.
    fn give_up(&mut self, fault: FrameFault) -> StreamErrorIncoming {
        let code = match fault {
            FrameFault::TooLarge | FrameFault::TooManyEmpty => Code::H3_EXCESSIVE_LOAD,
            FrameFault::Unfinished => Code::H3_FRAME_ERROR,
            FrameFault::Malformed(_) => {
                self.is_malformed = true;
                let _ = self.stream.stop(number(Code::H3_MESSAGE_ERROR));
                return StreamErrorIncoming::Unknown(fault.into());
            }
        };
        self.connection.close(number(code), fault.to_string().as_bytes());
        stream_lost(ConnectionError::LocallyClosed)
    }
}

impl quic::RecvStream for RecvStream {
    type Buf = Bytes;

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        if self.is_malformed {
            return Poll::Ready(Err(StreamErrorIncoming::Unknown("the request is malformed".into())));
        }
        if self.buffer.len() < READ_BYTES / 4 {
            self.buffer.resize(READ_BYTES, 0);
        }
        let read = ready!(self.stream.poll_read(cx, &mut self.buffer)).map_err(|error| match error {
            ReadError::Reset(code) => StreamErrorIncoming::StreamTerminated { error_code: code.into_inner() },
            ReadError::ConnectionLost(error) => stream_lost(error),
            other => StreamErrorIncoming::Unknown(other.into()),
        })?;
        if read == 0 {
            self.guard.end().map_err(|fault| self.give_up(fault))?;
            return Poll::Ready(Ok(None));
        }
        let bytes = self.buffer.split_to(read).freeze();
        self.guard.see(&bytes).map_err(|fault| self.give_up(fault))?;
        Poll::Ready(Ok(Some(bytes)))
    }

    fn stop_sending(&mut self, code: u64) {
        // It may have ended by itself.
        let _ = self.stream.stop(VarInt::from_u64(code).unwrap_or_else(|_| number(Code::H3_NO_ERROR)));
    }

    fn recv_id(&self) -> StreamId {
        stream_id(self.stream.id())
    }
}

impl Drop for RecvStream {
    fn drop(&mut self) {
        // RFC 9114 section 4.1: whoever has answered needs no more of the request, and says that nothing is wrong.
        let _ = self.stream.stop(number(Code::H3_NO_ERROR));
    }
}

/// What is sent on one stream.
pub(super) struct SendStream {
    stream: quinn::SendStream,
    writing: Option<WriteBuf<Bytes>>,
    /// Finished or reset.
    ended: bool,
    resets: Arc<AtomicBool>,
}

impl quic::SendStream<Bytes> for SendStream {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        if let Some(data) = &mut self.writing {
            while data.has_remaining() {
                let written = ready!(Pin::new(&mut self.stream).poll_write(cx, data.chunk()));
                data.advance(written.map_err(unwritten)?);
            }
        }
        self.writing = None;
        Poll::Ready(Ok(()))
    }

    fn send_data<T: Into<WriteBuf<Bytes>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        if self.writing.is_some() {
            return Err(StreamErrorIncoming::Unknown("the frame before is not written yet".into()));
        }
        self.writing = Some(data.into());
        Ok(())
    }

    fn poll_finish(&mut self, _: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.ended = true;
        Poll::Ready(self.stream.finish().map_err(|error| StreamErrorIncoming::Unknown(error.into())))
    }

    fn reset(&mut self, code: u64) {
        self.ended = true;
        let _ = self.stream.reset(VarInt::from_u64(code).unwrap_or_else(|_| number(Code::H3_INTERNAL_ERROR)));
    }

    fn send_id(&self) -> StreamId {
        stream_id(self.stream.id())
    }
}

impl Drop for SendStream {
    fn drop(&mut self) {
        // quinn would finish it: half an answer would look whole.
        if !self.ended && self.resets.load(Ordering::Relaxed) {
            let _ = self.stream.reset(number(Code::H3_INTERNAL_ERROR));
        }
    }
}

fn stream_id(id: quinn::StreamId) -> StreamId {
    StreamId::try_from(u64::from(id)).expect("HTTP/3 and QUIC number streams alike")
}

fn unwritten(error: WriteError) -> StreamErrorIncoming {
    match error {
        WriteError::Stopped(code) => StreamErrorIncoming::StreamTerminated { error_code: code.into_inner() },
        WriteError::ConnectionLost(error) => stream_lost(error),
        other => StreamErrorIncoming::Unknown(other.into()),
    }
}

fn stream_lost(error: ConnectionError) -> StreamErrorIncoming {
    StreamErrorIncoming::ConnectionErrorIncoming { connection_error: lost(error) }
}

fn lost(error: ConnectionError) -> ConnectionErrorIncoming {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            ConnectionErrorIncoming::ApplicationClose { error_code: close.error_code.into_inner() }
        }
        ConnectionError::TimedOut => ConnectionErrorIncoming::Timeout,
        other => ConnectionErrorIncoming::Undefined(Arc::new(other)),
    }
}
