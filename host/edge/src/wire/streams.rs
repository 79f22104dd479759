//! What the two sides of an HTTP/2 connection owe each other: frames that ask for nothing, streams that are cancelled,
//! and streams that one side does not let end.
//!
//! h2 keeps the protocol; it has no budget for what is allowed and useless, and no
//! clock for a stream whose window the client keeps shut. This follows the frames of both directions, by their heads and
//! the few numbers that move windows, and says when somebody must go. Pure: bytes and times in.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::fault::End;
use super::frames::{
    DATA, FrameHead, Frames, HEADERS, Next, PADDED, PREFACE, RST_STREAM, SETTINGS, WINDOW_UPDATE,
};
use super::rate::Allowance;

/// What a window is before anybody changes it (RFC 9113 §6.9.2).
const WINDOW_BYTES: i64 = 65_535;
const INITIAL_WINDOW_SIZE: u16 = 4;

/// Control frames that a connection may send ahead of asking for something. A browser begins with five and updates two
/// windows per response.
const CONTROL_MAX: u32 = 512;
/// What a request earns: its window updates, a cancellation, a ping.
const CONTROL_PER_REQUEST: usize = 8;
/// Bytes of a body, either way, for which one more window update is due. Small windows are updated each 16 KiB, twice.
const BYTES_PER_CONTROL: usize = 4 * 1024;
/// A window update of so much or more that gives back what was sent costs nothing. Go's client gives back 4 KiB at a time, of
/// two windows, as its program reads.
const UPDATE_BYTES_MIN: i64 = 1024;
/// What time earns: keep-alive pings, which ask for nothing and are no attack.
const CONTROL_PER_S: u32 = 2;
/// Payload of useless frames that counts as one frame more.
const USELESS_BYTES: usize = 1024;

/// Streams that are followed: those that h2 lets be open, and those that it has yet to refuse.
const OPEN_MAX: usize = 1_024;

/// What the client of one connection may have us bear before the connection ends, and with it every other stream.
#[derive(Debug, Clone, Copy)]
pub struct Forbearance {
    /// How long an answer may wait for its stream's window altogether ([`super::rate`]).
    pub stalled_max: Duration,
    /// Streams that may be cancelled at once.
    pub resets_max: u32,
    /// And from then on.
    pub resets_per_s: u32,
    /// Streams that may be cancelled before we have looked at them (Rapid Reset).
    pub pending_resets_max: usize,
}

impl Forbearance {
    /// A person's browser, or something that wears one down.
    pub const SHOPPERS: Self = Self {
        // A train through a tunnel.
        stalled_max: Duration::from_secs(30),
        // A page that is left with everything in flight, twice.
        resets_max: 200,
        // Scrubbing through a film cancels some ten requests a second.
        resets_per_s: 10,
        // A tenth of those; streams are looked at as fast as they come.
        pending_resets_max: 20,
    };
}

/// How long a stream may wait for its client, and what else it may do.
#[derive(Debug, Clone, Copy)]
pub(super) struct StreamLimits {
    pub(super) forbearance: Forbearance,
    /// For a body that the client has announced.
    pub(super) upload_max: Duration,
    /// The window of a new stream in the client's direction.
    pub(super) window_bytes: u32,
}

/// Both directions of one connection.
#[derive(Debug)]
pub(super) struct Streams {
    limits: StreamLimits,
    preface_left: usize,
    from_client: Direction,
    to_client: Direction,
    open: BTreeMap<u32, Stream>,
    /// Of these, how many the client is waited for.
    waiting: usize,
    /// The greatest stream that the client has opened.
    last: u32,
    requests: u64,
    /// What all answers together, and all uploads together, may still send.
    window_out: i64,
    window_in: i64,
    /// The window of a new stream in our direction, as the client has set it.
    initial_out: i64,
    control: Bucket,
    /// Window that the client has to give back: what was sent, of both windows.
    owed: i64,
    /// Bytes of bodies that have not earned anything yet.
    moved: usize,
    resets: Bucket,
}

#[derive(Debug)]
struct Stream {
    /// The answer's head has been sent, and its end has not. A head that is interim looks the same from here: whoever reads it
    /// and keeps its window shut is waited for from then on.
    answering: bool,
    window_out: i64,
    stalled: Allowance,
    /// The request has a body whose end has not come.
    uploading: bool,
    window_in: i64,
    upload: Allowance,
}

impl Streams {
    pub(super) fn new(limits: StreamLimits, now: Instant) -> Self {
        Self {
            limits,
            preface_left: PREFACE.len(),
            from_client: Direction::new(),
            to_client: Direction::new(),
            open: BTreeMap::new(),
            waiting: 0,
            last: 0,
            requests: 0,
            window_out: WINDOW_BYTES,
            window_in: WINDOW_BYTES,
            initial_out: WINDOW_BYTES,
            control: Bucket::new(CONTROL_MAX, CONTROL_PER_S, now),
            owed: 0,
            moved: 0,
            resets: Bucket::new(limits.forbearance.resets_max, limits.forbearance.resets_per_s, now),
        }
    }

    pub(super) fn requests(&self) -> u64 {
        self.requests
    }

    /// Whether no stream is open: the connection is idle.
    pub(super) fn is_idle(&self) -> bool {
        self.open.is_empty()
    }

    /// A frame that ends the connection, if one of our own may be written here.
    pub(super) fn goodbye(&self, calm: bool) -> Option<[u8; 17]> {
        const GOAWAY: u8 = 7;
        const NO_ERROR: u8 = 0;
        const ENHANCE_YOUR_CALM: u8 = 11;
        let [l0, l1, l2, l3] = self.last.to_be_bytes();
        let code = if calm { NO_ERROR } else { ENHANCE_YOUR_CALM };
        let frame = [0, 0, 8, GOAWAY, 0, 0, 0, 0, 0, l0, l1, l2, l3, 0, 0, 0, code];
        self.to_client.frames.is_between().then_some(frame)
    }

    /// When a stream has waited for the client too long, and for what.
    pub(super) fn deadline(&self) -> Option<(Instant, End)> {
        if self.waiting == 0 {
            return None;
        }
        let of = |allowance: &Allowance, end| allowance.deadline().map(|deadline| (deadline, end));
        self.open
            .values()
            .flat_map(|stream| {
                [of(&stream.stalled, End::StreamStalled), of(&stream.upload, End::UploadTooSlow)]
            })
            .flatten()
            .min_by_key(|(deadline, _)| *deadline)
    }

    /// Follows what the client sends.
    pub(super) fn read(&mut self, mut bytes: &[u8], now: Instant) -> Result<(), End> {
        let preface = self.preface_left.min(bytes.len());
        self.preface_left -= preface;
        bytes = &bytes[preface..];
        while let Some(seen) = self.from_client.next(&mut bytes) {
            match seen {
                Seen::Frame(head) => self.read_frame(head, now)?,
                Seen::Window { stream: 0, more } => {
                    self.updated(more, now)?;
                    let all = is_shut(self.window_out) != is_shut(self.window_out.saturating_add(more));
                    self.window_out = self.window_out.saturating_add(more);
                    self.settle(0, all, now);
                }
                Seen::Window { stream: id, more } => {
                    self.updated(more, now)?;
                    if let Some(stream) = self.open.get_mut(&id) {
                        stream.window_out = stream.window_out.saturating_add(more);
                    }
                    self.settle(id, false, now);
                }
                Seen::InitialWindow(initial) => {
                    let more = initial - self.initial_out;
                    self.initial_out = initial;
                    for stream in self.open.values_mut() {
                        stream.window_out = stream.window_out.saturating_add(more);
                    }
                    self.settle(0, true, now);
                }
            }
        }
        Ok(())
    }

    fn read_frame(&mut self, head: FrameHead, now: Instant) -> Result<(), End> {
        match head.kind {
            HEADERS if head.stream > self.last => self.opened(head.stream)?,
            // Trailers.
            HEADERS => {}
            DATA if head.length > 0 && head.flags & PADDED == 0 => {
                self.moved(head.length);
            }
            DATA if head.ends_stream() => {}
            RST_STREAM => {
                self.closed(head.stream);
                if !self.resets.take(1, now) {
                    return Err(End::ResetFlood);
                }
            }
            // Paid for where its number is known.
            WINDOW_UPDATE if head.length == 4 => {}
            _ if self.control.take(1 + head.length / USELESS_BYTES, now) => {}
            _ => return Err(End::ControlFlood),
        }
        let mut all = false;
        if head.kind == DATA {
            let after = self.window_in - length(head);
            all = is_shut(self.window_in) != is_shut(after);
            self.window_in = after;
        }
        if let Some(stream) = self.open.get_mut(&head.stream) {
            if head.kind == DATA {
                stream.window_in -= length(head);
                stream.upload.earn(head.length, now);
            }
            stream.uploading &= !head.ends_stream();
        }
        self.settle(head.stream, all, now);
        Ok(())
    }

    fn opened(&mut self, id: u32) -> Result<(), End> {
        self.last = id;
        self.requests += 1;
        self.control.earn(CONTROL_PER_REQUEST);
        if self.open.len() >= OPEN_MAX {
            return Err(End::StreamFlood);
        }
        let stream = Stream {
            answering: false,
            window_out: self.initial_out,
            stalled: Allowance::new(self.limits.forbearance.stalled_max),
            uploading: true,
            window_in: i64::from(self.limits.window_bytes),
            upload: Allowance::new(self.limits.upload_max),
        };
        self.open.insert(id, stream);
        Ok(())
    }

    fn updated(&mut self, more: i64, now: Instant) -> Result<(), End> {
        if more >= UPDATE_BYTES_MIN && self.owed >= more {
            self.owed -= more;
            return Ok(());
        }
        if self.control.take(1, now) { Ok(()) } else { Err(End::ControlFlood) }
    }

    fn moved(&mut self, bytes: usize) {
        self.moved += bytes;
        self.control.earn(self.moved / BYTES_PER_CONTROL);
        self.moved %= BYTES_PER_CONTROL;
    }

    /// Follows what we send.
    pub(super) fn wrote(&mut self, mut bytes: &[u8], now: Instant) {
        while let Some(seen) = self.to_client.next(&mut bytes) {
            match seen {
                Seen::Frame(head) => self.wrote_frame(head, now),
                Seen::Window { stream: 0, more } => {
                    let all = is_shut(self.window_in) != is_shut(self.window_in.saturating_add(more));
                    self.window_in = self.window_in.saturating_add(more);
                    self.settle(0, all, now);
                }
                Seen::Window { stream: id, more } => {
                    if let Some(stream) = self.open.get_mut(&id) {
                        stream.window_in = stream.window_in.saturating_add(more);
                    }
                    self.settle(id, false, now);
                }
                // Known before it is sent.
                Seen::InitialWindow(_) => {}
            }
        }
    }

    fn wrote_frame(&mut self, head: FrameHead, now: Instant) {
        let mut all = false;
        if head.kind == DATA {
            let after = self.window_out - length(head);
            all = is_shut(self.window_out) != is_shut(after);
            self.window_out = after;
            self.moved(head.length);
            // The stream's window and the connection's.
            self.owed = self.owed.saturating_add(2 * length(head));
        }
        if head.ends_stream() || head.kind == RST_STREAM {
            self.closed(head.stream);
        } else if let Some(stream) = self.open.get_mut(&head.stream) {
            stream.answering |= head.kind == HEADERS;
            if head.kind == DATA {
                stream.window_out -= length(head);
                stream.stalled.earn(head.length, now);
            }
        }
        self.settle(head.stream, all, now);
    }

    /// Whose turn it is, after something has changed for one stream, or for all.
    fn settle(&mut self, id: u32, all: bool, now: Instant) {
        let (out, incoming) = (is_shut(self.window_out), is_shut(self.window_in));
        if all {
            for stream in self.open.values_mut() {
                stream.settle(out, incoming, now);
            }
            self.waiting = self.open.values().filter(|stream| stream.is_waited_for()).count();
        } else if let Some(stream) = self.open.get_mut(&id) {
            let before = stream.is_waited_for();
            stream.settle(out, incoming, now);
            self.waiting = self.waiting + usize::from(stream.is_waited_for()) - usize::from(before);
        }
    }

    fn closed(&mut self, id: u32) {
        let was_waited_for = self.open.remove(&id).is_some_and(|stream| stream.is_waited_for());
        self.waiting -= usize::from(was_waited_for);
    }
}

impl Stream {
    fn is_waited_for(&self) -> bool {
        self.stalled.is_waiting() || self.upload.is_waiting()
    }

    /// `out`, `incoming`: the connection's own windows are shut.
    fn settle(&mut self, out: bool, incoming: bool, now: Instant) {
        if self.answering && (out || is_shut(self.window_out)) {
            self.stalled.wait(now);
        } else {
            self.stalled.rest(now);
        }
        if self.uploading && !incoming && !is_shut(self.window_in) {
            self.upload.wait(now);
        } else {
            self.upload.rest(now);
        }
    }
}

fn is_shut(window: i64) -> bool {
    window <= 0
}

fn length(head: FrameHead) -> i64 {
    i64::try_from(head.length).unwrap_or(i64::MAX)
}

/// One direction: its frames, and the numbers in them that move windows.
#[derive(Debug)]
struct Direction {
    frames: Frames,
    of: Option<FrameHead>,
    number: [u8; 6],
    have: usize,
}

#[derive(Debug)]
enum Seen {
    Frame(FrameHead),
    Window { stream: u32, more: i64 },
    InitialWindow(i64),
}

impl Direction {
    fn new() -> Self {
        Self { frames: Frames::new(), of: None, number: [0; 6], have: 0 }
    }

    fn next(&mut self, bytes: &mut &[u8]) -> Option<Seen> {
        loop {
            let size = match self.of {
                // A setting is an identifier and a value.
                Some(FrameHead { kind: SETTINGS, .. }) => 6,
                Some(FrameHead { kind: WINDOW_UPDATE, .. }) => 4,
                _ => 0,
            };
            let piece_max = if size == 0 { usize::MAX } else { size - self.have };
            match self.frames.next(bytes, piece_max)? {
                Next::Head(head) => {
                    (self.of, self.have) = (Some(head), 0);
                    return Some(Seen::Frame(head));
                }
                Next::Payload(_) if size == 0 => {}
                Next::Payload(piece) => {
                    self.number[self.have..self.have + piece.len()].copy_from_slice(piece);
                    self.have += piece.len();
                    if self.have == size {
                        self.have = 0;
                        if let Some(seen) = self.number() {
                            return Some(seen);
                        }
                    }
                }
            }
        }
    }

    fn number(&self) -> Option<Seen> {
        let [b0, b1, b2, b3, b4, b5] = self.number;
        match self.of? {
            FrameHead { kind: WINDOW_UPDATE, stream, .. } => {
                let more = i64::from(u32::from_be_bytes([b0, b1, b2, b3]) & 0x7fff_ffff);
                Some(Seen::Window { stream, more })
            }
            _ => (u16::from_be_bytes([b0, b1]) == INITIAL_WINDOW_SIZE)
                .then(|| Seen::InitialWindow(u32::from_be_bytes([b2, b3, b4, b5]).into())),
        }
    }
}

/// A budget that time fills, and what is useful.
#[derive(Debug)]
struct Bucket {
    left: u32,
    most: u32,
    per_s: u32,
    filled: Instant,
}

impl Bucket {
    fn new(most: u32, per_s: u32, now: Instant) -> Self {
        Self { left: most, most, per_s, filled: now }
    }

    fn earn(&mut self, count: usize) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.left = self.left.saturating_add(count).min(self.most);
    }

    /// Whether there was enough.
    fn take(&mut self, count: usize, now: Instant) -> bool {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        if self.left < count {
            let passed = now.saturating_duration_since(self.filled);
            let earned = passed.as_millis() * u128::from(self.per_s) / 1_000;
            self.filled = now;
            self.earn(usize::try_from(earned).unwrap_or(usize::MAX));
        }
        let paid = self.left.checked_sub(count);
        self.left = paid.unwrap_or(0);
        paid.is_some()
    }
}

#[cfg(test)]
mod tests;
