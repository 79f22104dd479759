//! What stands between a client's bytes and the servers of HTTP/1.1 (hyper) and HTTP/2 ([`crate::http2`]): the strict reader of
//! HTTP/1.1, the budgets of HTTP/2, and the clocks.
//!
//! ```text
//! socket -> TLS -> Wire -> interim -> hyper -> desk
//!                   |  \-> h2 -> http2 --------/
//!                   |
//!                   +- Requests  (head, chunks)   HTTP/1.1: where each request ends, or why it is refused
//!                   +- Streams   (frames)         HTTP/2: who owes whom, or why the connection ends
//!                   +- Allowance, one timer       whose turn it is, and since when
//! ```
//!
//! Below, hyper stands for whichever of the two it is. The bytes that hyper gets are those that came, or fewer. A head that is not all there is kept until it is, so that
//! hyper never has the half of one that is refused in the end. In the place of a refused request hyper gets a request of
//! our own, which the service answers with the problem ([`crate::gate::Tie::refusal`]): so the answer comes after those of
//! the requests before it, is whole, and closes. What follows is discarded.
//!
//! Memory of one connection, at most: the head that is kept (`header_bytes_max`) and a read of [`READ_BYTES`]; hyper's own
//! buffers for HTTP/1.1 (`header_bytes_max` to read, as much to write); for HTTP/2 1 MiB of bodies not yet read, 64 KiB of
//! answers and 16 KiB of hints for each of 100 streams, and 1,024 followed streams of 160 bytes. With the defaults that is
//! 0.2 MiB over HTTP/1.1 and 9.2 MiB over HTTP/2, which only a client that is waited for can hold, and for as long as its allowance.
//!
//! A plain request whose answer is at hand is answered here, and hyper never learns of it ([`prompt`]): only between the
//! requests that hyper has, when it holds nothing of them any more, so that no byte goes between its own. Any other hit
//! costs a scan of the head for line feeds and a second parse, and no allocation.
//!
//! Small frames of HTTP/2 are kept together for a moment ([`cork`]), and a body that stands in a file is lent to its socket
//! ([`lend`]).

mod chunks;
mod cork;
mod fault;
mod frames;
mod head;
mod lend;
mod prompt;
mod rate;
mod requests;
mod streams;

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

pub use fault::{End, Fault};
pub use head::FIELDS_MAX;
use lend::Lend;
use prompt::Out;
pub(crate) use prompt::Prompt;
pub use prompt::{Plain, Ready};
pub(crate) use rate::Allowance;
pub use rate::BYTES_PER_S_MIN;
use requests::{Requests, Rest};
pub use streams::Forbearance;
use streams::{StreamLimits, Streams};

use crate::gate::Tie;

/// A read while a head is kept.
const READ_BYTES: usize = 8 * 1024;
/// What hyper reads in the place of a refused request. It never gets past the service.
const REFUSED: &[u8] = b"GET / HTTP/1.1\r\nHost: refused.invalid\r\nConnection: close\r\n\r\n";
/// What a client may still send after it was refused, before its connection is torn down under its feet: a socket that is
/// closed with unread bytes takes back the answer.
const LINGER_BYTES_MAX: usize = 256 * 1024;
const LINGER_MAX: Duration = Duration::from_secs(2);

/// What the client is expected to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spoken {
    Http1,
    Http2,
    /// In clear text the first bytes say it.
    Either,
}

/// How long a client may be waited for.
#[derive(Debug, Clone)]
pub struct WireLimits {
    pub head_bytes_max: usize,
    /// A head, from its first byte to its last; and the first one, from when the connection is there.
    pub head_max: Duration,
    /// Between requests.
    pub idle_max: Duration,
    /// A request body, at less than [`BYTES_PER_S_MIN`]: the cell that a phone has just left, and the next one.
    pub upload_max: Duration,
    /// An answer, at less than [`BYTES_PER_S_MIN`].
    pub download_max: Duration,
    /// The window of a new stream of HTTP/2, for the client's body.
    pub stream_window_bytes: u32,
    pub http2: Forbearance,
}

/// A client's connection, as hyper reads and writes it.
pub struct Wire<S> {
    stream: S,
    tie: Arc<Tie>,
    limits: WireLimits,
    follow: Follow,
    /// A head that is not all there, or what hyper has no room for yet.
    kept: BytesMut,
    /// So much of that may pass.
    released: usize,
    life: Life,
    /// Since when a head is being kept.
    head_since: Instant,
    /// Since when nobody wants anything of anybody.
    quiet_since: Option<Instant>,
    upload: Allowance,
    download: Allowance,
    clock: Pin<Box<Sleep>>,
    linger: Option<(Instant, usize)>,
    prompt: Option<Box<dyn Prompt>>,
    /// How a body goes out of a file, where the socket can be lent one.
    lend: Option<Lend<S>>,
    /// An answer that hyper does not know of.
    out: Option<Out>,
    /// hyper may hold bytes that are to be written.
    unflushed: bool,
    /// Frames that hyper takes for written.
    corked: BytesMut,
    /// Some of them came since hyper flushed last.
    corked_more: bool,
}

enum Follow {
    Undecided,
    Requests(Requests),
    Streams(Box<Streams>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Open,
    /// hyper has the last thing that it will read.
    Refused,
    /// For hyper, the client has nothing more to say.
    Ended,
    /// Reading and writing fail.
    Broken(End),
}

/// What a deadline that has passed was about.
#[derive(Debug, Clone, Copy)]
enum Due {
    End(End),
    Fault { fault: Fault, head: bool },
}

/// What reading has come to.
enum Came {
    /// hyper has some bytes.
    Passed,
    /// Look again: there may be something to pass, or another state.
    Again,
    End,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub fn new(stream: S, spoken: Spoken, limits: WireLimits, tie: Arc<Tie>) -> Self {
        let now = Instant::now();
        let mut wire = Self {
            stream,
            tie,
            follow: Follow::Undecided,
            kept: BytesMut::new(),
            released: 0,
            life: Life::Open,
            head_since: now,
            quiet_since: None,
            upload: Allowance::new(limits.upload_max),
            download: Allowance::new(limits.download_max),
            clock: Box::pin(tokio::time::sleep_until(now + limits.head_max)),
            linger: None,
            prompt: None,
            lend: None,
            out: None,
            unflushed: false,
            corked: BytesMut::new(),
            corked_more: false,
            limits,
        };
        match spoken {
            Spoken::Http1 => wire.speak_http1(),
            Spoken::Http2 => wire.speak_http2(now),
            Spoken::Either => {}
        }
        wire
    }

    /// Asks `prompt` first, if there is one.
    #[must_use]
    pub(crate) fn prompted_by(self, prompt: Option<Box<dyn Prompt>>) -> Self {
        Self { prompt, ..self }
    }

    fn speak_http1(&mut self) {
        self.follow = Follow::Requests(Requests::new(self.limits.head_bytes_max));
    }

    fn speak_http2(&mut self, now: Instant) {
        let limits = StreamLimits {
            upload_max: self.limits.upload_max,
            window_bytes: self.limits.stream_window_bytes,
            forbearance: self.limits.http2,
        };
        self.follow = Follow::Streams(Box::new(Streams::new(limits, now)));
    }

    /// What the client speaks, as soon as its bytes say so; they are passed on after that. None if it has left before, or has
    /// been shown out.
    ///
    /// Cancel safe.
    pub(crate) async fn spoken(&mut self) -> io::Result<Option<Spoken>> {
        poll_fn(|cx| self.poll_spoken(cx)).await
    }

    fn poll_spoken(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Spoken>>> {
        loop {
            match (&self.follow, self.life) {
                (Follow::Requests(_), _) => return Poll::Ready(Ok(Some(Spoken::Http1))),
                (Follow::Streams(_), _) => return Poll::Ready(Ok(Some(Spoken::Http2))),
                (Follow::Undecided, Life::Open) => {}
                (Follow::Undecided, Life::Broken(end)) => return Poll::Ready(Err(broken(end))),
                (Follow::Undecided, Life::Ended | Life::Refused) => return Poll::Ready(Ok(None)),
            }
            let was_silent = self.kept.is_empty();
            match self.poll_kept(cx) {
                Poll::Ready(Ok(Came::End)) => self.life = Life::Ended,
                Poll::Ready(Ok(Came::Passed | Came::Again)) => {
                    self.quiet_since = None;
                    self.tie.busy();
                    if was_silent {
                        self.head_since = Instant::now();
                    }
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending if self.waited(cx) => {}
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// How far these bytes may go: of the socket, or kept ones with what came since.
    fn follow(&mut self, bytes: &[u8]) -> Result<(usize, Rest), End> {
        if let Follow::Undecided = self.follow {
            if bytes.starts_with(frames::PREFACE) {
                self.speak_http2(Instant::now());
            } else if frames::PREFACE.starts_with(bytes) {
                return Ok((0, Rest::Kept));
            } else {
                self.speak_http1();
            }
        }
        match &mut self.follow {
            Follow::Undecided => Ok((0, Rest::Kept)),
            Follow::Requests(requests) => {
                let before = requests.heads();
                if requests.is_in_body() {
                    let now = Instant::now();
                    self.upload.rest(now);
                    self.upload.earn(bytes.len(), now);
                }
                let followed = requests.follow(bytes);
                if requests.heads() != before {
                    self.upload = Allowance::new(self.limits.upload_max);
                }
                Ok((followed.pass, followed.rest))
            }
            Follow::Streams(streams) => {
                streams.read(bytes, Instant::now())?;
                Ok((bytes.len(), Rest::None))
            }
        }
    }

    /// Straight into hyper's buffer: the common way.
    fn poll_direct(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<Came>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let came = buf.filled().get(before..).unwrap_or_default();
        if came.is_empty() {
            return Poll::Ready(Ok(Came::End));
        }
        self.quiet_since = None;
        self.tie.busy();
        if before == 0 && self.answer_at_once(came) {
            buf.clear();
            return Poll::Ready(Ok(Came::Again));
        }
        let (pass, rest) = match self.follow(came) {
            Ok(followed) => followed,
            Err(end) => {
                self.end(end, cx);
                (0, Rest::None)
            }
        };
        match rest {
            Rest::None => {}
            Rest::Kept => {
                self.kept.extend_from_slice(came.get(pass..).unwrap_or_default());
                self.head_since = Instant::now();
            }
            Rest::Refused { fault, head } => self.refuse(fault, head, 0),
        }
        buf.set_filled(before + pass);
        Poll::Ready(Ok(if pass > 0 { Came::Passed } else { Came::Again }))
    }

    /// Behind the head that is kept.
    fn poll_kept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Came>> {
        self.kept.reserve(READ_BYTES);
        let read = tokio_util::io::poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.kept);
        if ready!(read)? == 0 {
            return Poll::Ready(Ok(Came::End));
        }
        let kept = std::mem::take(&mut self.kept);
        let followed = self.follow(&kept);
        self.kept = kept;
        match followed {
            Err(end) => self.end(end, cx),
            Ok((pass, Rest::Refused { fault, head })) => self.refuse(fault, head, pass),
            Ok((pass, Rest::None | Rest::Kept)) => {
                if pass > 0 {
                    self.head_since = Instant::now();
                }
                self.released = pass;
            }
        }
        Poll::Ready(Ok(Came::Again))
    }

    /// Gives hyper what may pass.
    fn release(&mut self, buf: &mut ReadBuf<'_>) {
        let length = self.released.min(buf.remaining());
        buf.put_slice(self.kept.get(..length).unwrap_or_default());
        self.released -= length;
        self.kept.advance(length);
        if self.kept.is_empty() {
            // An idle connection holds no buffer.
            self.kept = BytesMut::new();
        }
    }

    /// Nothing of the client passes any more but the first `pass` bytes that are kept.
    fn refuse(&mut self, fault: Fault, head: bool, pass: usize) {
        let Follow::Requests(requests) = &self.follow else { return };
        self.tie.refuse(requests.heads() + u64::from(head), fault);
        self.tie.ended(End::Refused);
        self.kept.truncate(pass);
        if head {
            self.kept.extend_from_slice(REFUSED);
            self.life = Life::Refused;
        } else {
            self.life = Life::Ended;
        }
        self.released = self.kept.len();
    }

    fn end(&mut self, end: End, cx: &mut Context<'_>) {
        self.tie.ended(end);
        self.life = match end {
            End::Idle | End::Shed => Life::Ended,
            _ => Life::Broken(end),
        };
        if let Follow::Streams(streams) = &self.follow
            && let Some(frame) = streams.goodbye(self.life == Life::Ended)
            && end != End::ReadsTooSlowly
        {
            // As far as it goes: whoever does not read does not read this either. Behind what hyper takes for written.
            self.corked.extend_from_slice(&frame);
            if let Poll::Ready(Ok(written)) = Pin::new(&mut self.stream).poll_write(cx, &self.corked) {
                self.corked.advance(written);
            }
            let _ = Pin::new(&mut self.stream).poll_flush(cx);
        }
    }

    /// Nothing comes: whose turn is it, and for how long may it stay so? True if something was done about it.
    fn waited(&mut self, cx: &mut Context<'_>) -> bool {
        self.tie.listen(cx.waker());
        let now = Instant::now();
        if let Follow::Requests(requests) = &self.follow
            && requests.is_in_body()
        {
            self.upload.wait(now);
        }
        if self.settle(now) {
            self.end(End::Shed, cx);
            return true;
        }
        let due = self.check(now, cx);
        due.is_some_and(|due| {
            self.act(due, cx);
            true
        })
    }

    /// Whether nobody wants anything of anybody. Whoever has not asked for anything yet wants nothing, half a head or none.
    fn asks_nothing(&self) -> bool {
        match &self.follow {
            Follow::Undecided => true,
            // hyper may have an answer whole, of which the client has little.
            Follow::Requests(requests) => {
                !requests.is_in_body() && self.tie.is_free() && !self.download.is_waiting()
            }
            Follow::Streams(streams) => streams.is_idle(),
        }
    }

    /// Notes since when nobody wants anything. True if the connection is to give its place away.
    fn settle(&mut self, now: Instant) -> bool {
        let asks_nothing = self.asks_nothing();
        if asks_nothing && self.kept.is_empty() {
            self.quiet_since.get_or_insert(now);
        } else {
            self.quiet_since = None;
        }
        if asks_nothing {
            return self.tie.idle(now);
        }
        self.tie.busy();
        false
    }

    /// What is due, or a timer for the next thing that will be.
    fn check(&mut self, mut now: Instant, cx: &mut Context<'_>) -> Option<Due> {
        loop {
            let (deadline, due) = self.due()?;
            if deadline <= now {
                return Some(due);
            }
            // A timer that comes too early is looked at again then: it is set for requests and not for reads.
            if deadline < self.clock.deadline() || self.clock.is_elapsed() {
                self.clock.as_mut().reset(deadline);
            }
            if self.clock.as_mut().poll(cx).is_pending() {
                return None;
            }
            now = Instant::now();
        }
    }

    fn due(&self) -> Option<(Instant, Due)> {
        let quiet = |requests: u64| {
            let most = if requests == 0 { self.limits.head_max } else { self.limits.idle_max };
            self.quiet_since.map(|since| (since + most, Due::End(End::Idle)))
        };
        let peers = match &self.follow {
            _ if self.life != Life::Open => None,
            Follow::Undecided => Some((self.head_since + self.limits.head_max, Due::End(End::Idle))),
            Follow::Requests(requests) if requests.is_in_body() => {
                let due = Due::Fault { fault: Fault::BodyTooSlow, head: false };
                self.upload.deadline().map(|deadline| (deadline, due))
            }
            Follow::Requests(_) if !self.kept.is_empty() => {
                let due = Due::Fault { fault: Fault::HeadTooSlow, head: true };
                Some((self.head_since + self.limits.head_max, due))
            }
            Follow::Requests(requests) => quiet(requests.heads()),
            Follow::Streams(streams) => {
                let stream = streams.deadline().map(|(deadline, end)| (deadline, Due::End(end)));
                stream.into_iter().chain(quiet(streams.requests())).min_by_key(|(deadline, _)| *deadline)
            }
        };
        let download = self.download.deadline().map(|at| (at, Due::End(End::ReadsTooSlowly)));
        peers.into_iter().chain(download).min_by_key(|(deadline, _)| *deadline)
    }

    fn act(&mut self, due: Due, cx: &mut Context<'_>) {
        match due {
            Due::End(end) => self.end(end, cx),
            Due::Fault { fault, head } => self.refuse(fault, head, 0),
        }
    }

    /// What writing has come to; `slices` is what was to be written.
    fn wrote(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<usize>>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(self.moved(cx, polled))?;
        self.earn_download(written);
        self.follow_written(written, slices);
        Poll::Ready(Ok(written))
    }

    fn earn_download(&mut self, written: usize) {
        if !self.download.is_untouched() {
            self.download.earn(written, Instant::now());
        }
    }

    fn follow_written(&mut self, written: usize, slices: &[IoSlice<'_>]) {
        if let Follow::Streams(streams) = &mut self.follow {
            let (now, mut left) = (Instant::now(), written);
            for slice in slices {
                let step = left.min(slice.len());
                streams.wrote(slice.get(..step).unwrap_or_default(), now);
                left -= step;
            }
        }
    }

    /// The client takes our bytes, or it is its turn to.
    fn moved<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            if !self.download.is_untouched() {
                self.download.rest(Instant::now());
            }
            return polled;
        }
        self.download.wait(Instant::now());
        self.clocked(cx).map(Err)
    }

    /// Looks at the clock while writing; an error if the connection is over.
    fn clocked(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        while let Some(due) = self.check(Instant::now(), cx) {
            self.act(due, cx);
            if let Life::Broken(end) = self.life {
                return Poll::Ready(broken(end));
            }
        }
        Poll::Pending
    }

    /// Whether the client is still sending what nobody will read.
    fn is_unread(&self) -> bool {
        match &self.follow {
            // Not one that is idle or was told to go: nothing of it is on its way, and its place is wanted.
            Follow::Requests(requests) => self.life == Life::Refused || requests.is_in_body(),
            _ => false,
        }
    }

    /// Reads and forgets, so that the answer arrives.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let (until, mut left) =
            *self.linger.get_or_insert_with(|| (Instant::now() + LINGER_MAX, LINGER_BYTES_MAX));
        let mut bytes = [0; 2048];
        while left > 0 {
            let mut buf = ReadBuf::new(&mut bytes);
            match Pin::new(&mut self.stream).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    left = left.saturating_sub(buf.filled().len());
                    self.linger = Some((until, left));
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => {
                    if self.clock.deadline() != until {
                        self.clock.as_mut().reset(until);
                    }
                    return self.clock.as_mut().poll(cx);
                }
            }
        }
        Poll::Ready(())
    }
}

fn broken(end: End) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, end.name())
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Wire<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if this.out.is_some() {
                ready!(this.poll_out(cx))?;
            }
            if this.released > 0 {
                this.release(buf);
                return Poll::Ready(Ok(()));
            }
            match this.life {
                Life::Open => {}
                // hyper is told by our own request to read no further. It looks whether the client is still there.
                Life::Refused => return Poll::Pending,
                Life::Ended => return Poll::Ready(Ok(())),
                Life::Broken(end) => return Poll::Ready(Err(broken(end))),
            }
            let came = if this.kept.is_empty() { this.poll_direct(cx, buf) } else { this.poll_kept(cx) };
            match came {
                Poll::Ready(Ok(Came::Passed)) => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(Came::Again)) => {}
                Poll::Ready(Ok(Came::End)) => {
                    let fault = match &this.follow {
                        Follow::Requests(requests) => requests.finish(&this.kept),
                        _ => None,
                    };
                    match fault {
                        Some(fault) => this.refuse(fault, true, 0),
                        None => this.life = Life::Ended,
                    }
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending if this.waited(cx) => {}
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_given(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_given(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.out.is_some() {
            // hyper holds nothing, and what is on its way is waited for where it is written.
            return Poll::Ready(Ok(()));
        }
        if !this.corked.is_empty() {
            if this.expects_more() {
                // Those that are not answered by then will not be at once: what there is goes in the next round.
                cx.waker().wake_by_ref();
            } else {
                ready!(this.poll_uncork(cx))?;
            }
        }
        let polled = Pin::new(&mut this.stream).poll_flush(cx);
        ready!(this.moved(cx, polled))?;
        this.unflushed = false;
        // What has been written may have been the last that was wanted, or have shut a window, and hyper does not read again
        // before it has a reason to.
        let quiet = this.life == Life::Open && this.quiet_since.is_none() && this.asks_nothing();
        if quiet && this.settle(Instant::now()) {
            this.end(End::Shed, cx);
            cx.waker().wake_by_ref();
        }
        let stalled = matches!(&this.follow, Follow::Streams(streams) if streams.deadline().is_some());
        if (quiet || stalled)
            && let Poll::Ready(error) = this.clocked(cx)
        {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !matches!(this.life, Life::Broken(_)) {
            ready!(this.poll_out(cx))?;
            ready!(this.poll_uncork(cx))?;
        }
        if this.linger.is_none() {
            let polled = Pin::new(&mut this.stream).poll_shutdown(cx);
            ready!(this.moved(cx, polled))?;
        }
        if this.is_unread() {
            ready!(this.poll_linger(cx));
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests;
