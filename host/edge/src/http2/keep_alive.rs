//! Whether the other end of a quiet connection is still there.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep};

/// How long a connection asks for nothing until it is asked itself. Address translators forget a quiet connection after
/// 30 s and more.
const EVERY: Duration = Duration::from_secs(20);
/// How long it may take to answer: bufferbloat of a bad mobile link, twice.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Nobody answered at the other end.
#[derive(Debug, thiserror::Error)]
#[error("the client did not answer a ping within {} s", ANSWER_MAX.as_secs())]
pub(super) struct Lost;

/// The pings of one connection. Bodies that come or go do not count as a sign of life: a ping for each 20 s of them costs less
/// than a look at the clock for each piece.
pub(super) struct KeepAlive {
    pings: PingPong,
    state: State,
    timer: Pin<Box<Sleep>>,
    heard: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Resting,
    Asked,
    Lost,
    /// The connection has come to its end.
    Over,
}

impl KeepAlive {
    pub(super) fn new(pings: PingPong) -> Self {
        let heard = Instant::now();
        let timer = Box::pin(tokio::time::sleep_until(heard + EVERY));
        Self { pings, state: State::Resting, timer, heard }
    }

    /// The client has asked for something.
    pub(super) fn heard(&mut self) {
        self.heard = Instant::now();
    }

    pub(super) fn is_lost(&self) -> bool {
        self.state == State::Lost
    }

    /// Asks when it is time to. Ready once, when nobody has answered.
    pub(super) fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match self.state {
                State::Resting => {
                    if self.timer.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    let now = Instant::now();
                    let due = self.heard + EVERY;
                    if due > now {
                        self.timer.as_mut().reset(due);
                        continue;
                    }
                    self.state = match self.pings.send_ping(Ping::opaque()) {
                        Ok(()) => State::Asked,
                        Err(_) => State::Over,
                    };
                    self.timer.as_mut().reset(now + ANSWER_MAX);
                }
                State::Asked => match self.pings.poll_pong(cx) {
                    Poll::Ready(Ok(_)) => {
                        self.heard();
                        self.state = State::Resting;
                        self.timer.as_mut().reset(self.heard + EVERY);
                    }
                    Poll::Ready(Err(_)) => self.state = State::Over,
                    Poll::Pending if self.timer.as_mut().poll(cx).is_ready() => {
                        self.state = State::Lost;
                        return Poll::Ready(());
                    }
                    Poll::Pending => return Poll::Pending,
                },
                State::Lost | State::Over => return Poll::Pending,
            }
        }
    }
}
