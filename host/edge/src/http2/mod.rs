//! HTTP/2 for shoppers: one connection from its preface to its end.
//!
//! h2 keeps the protocol: frames, HPACK, windows, states of streams. Here is what a server does with it: requests to the
//! [`Desk`] and answers back ([`answer`]), bodies in both directions, pings, the end in order. hyper has such a server too,
//! which has no word for interim responses (docs/decisions/2026-11-30-http2-without-hyper.md). Refuses to know budgets and
//! clocks of a client's frames: they are the wire's, below ([`crate::wire`]).
//!
//! Where most answers are there at once, a task for each is two turns of the scheduler and a write of its own: so a request is
//! polled once where it was read, and only one that has to wait becomes a task. One that is slow therefore hinders no other.

mod answer;
mod keep_alive;
mod upload;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use h2::server::{Builder, Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::Request;
use tokio::io::{AsyncRead, AsyncWrite};

use self::answer::Exchange;
use self::keep_alive::{KeepAlive, Lost};
pub(crate) use self::upload::Upload;
use crate::http::BodyError;
use crate::listen::Desk;

/// A header list, counted as RFC 9113 does (name + value + 32): 16 KiB is twice what browsers send.
const HEADER_LIST_BYTES_MAX: u32 = 16 * 1024;
/// Requests that one connection may have open at once.
pub(crate) const STREAMS_MAX: u32 = 100;
/// What one stream may have waiting to be sent: 100 streams hold at most 6.4 MiB per connection.
const SEND_BYTES_MAX: usize = 64 * 1024;
/// Streams that the peer made us reset (MadeYouReset) until the connection is closed.
const LOCAL_RESETS_MAX: usize = 50;
/// What one stream may send before we read it: as much as the largest body that is read anywhere.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;

/// What a client is told of our limits, and those of which it is not. `pending_resets_max`: streams that it may reset before we
/// have looked at them (Rapid Reset) until the connection is closed.
pub(crate) fn protocol(pending_resets_max: usize) -> Builder {
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .max_send_buffer_size(SEND_BYTES_MAX)
        .max_pending_accept_reset_streams(pending_resets_max)
        .max_local_error_reset_streams(Some(LOCAL_RESETS_MAX))
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    builder
}

/// Serves a connection until its client leaves or breaks the protocol, or, when `ends` is ready, until what is open then has
/// been answered.
///
/// Not cancel safe: if the future is dropped, the connection breaks, and so does every stream of it.
pub(crate) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    io: S,
    protocol: &Builder,
    desk: Arc<Desk>,
    ends: impl Future<Output = ()>,
) -> Result<(), BodyError> {
    let mut ends = pin!(ends);
    let mut is_ending = false;
    let mut handshake = pin!(protocol.handshake(io));
    let mut connection = std::future::poll_fn(|cx| {
        // Whoever has just come is heard, and told then.
        is_ending = is_ending || ends.as_mut().poll(cx).is_ready();
        handshake.as_mut().poll(cx)
    })
    .await?;
    if is_ending {
        connection.graceful_shutdown();
    }
    let pings = connection.ping_pong().expect("they are taken once");
    let mut life = Life { connection, keep_alive: KeepAlive::new(pings), desk };
    std::future::poll_fn(|cx| {
        if !is_ending && ends.as_mut().poll(cx).is_ready() {
            is_ending = true;
            life.connection.graceful_shutdown();
        }
        life.poll(cx)
    })
    .await
}

/// One connection.
struct Life<S> {
    connection: Connection<S, Bytes>,
    keep_alive: KeepAlive,
    desk: Arc<Desk>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Life<S> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        loop {
            if self.keep_alive.poll_lost(cx).is_ready() {
                self.connection.abrupt_shutdown(Reason::NO_ERROR);
            }
            match ready!(self.connection.poll_accept(cx)?) {
                Some((request, reply)) => {
                    self.keep_alive.heard();
                    self.begin(request, reply);
                }
                None if self.keep_alive.is_lost() => return Poll::Ready(Err(Lost.into())),
                None => return Poll::Ready(Ok(())),
            }
        }
    }

    fn begin(&self, request: Request<RecvStream>, reply: SendResponse<Bytes>) {
        let mut exchange = Exchange::begin(request, reply, &self.desk);
        if !self.desk.is_brief() {
            // Ends with its stream, and that with the connection.
            tokio::spawn(exchange);
            return;
        }
        // Whoever has to wait is polled again by its task, and tells that one's waker what to wake.
        let mut context = Context::from_waker(Waker::noop());
        // As in a task: a panic ends one stream, and not its connection. The hook has written where it was.
        match catch_unwind(AssertUnwindSafe(|| Pin::new(&mut exchange).poll(&mut context))) {
            Ok(Poll::Pending) => drop(tokio::spawn(exchange)),
            Ok(Poll::Ready(())) | Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests;
