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
mod tests {
    use super::*;
    use crate::listen::ListenLimits;
    use crate::routes::PeerDoor;
    use crate::wire::frames::END_STREAM;
    use crate::wire::rate::BYTES_PER_S_MIN;

    const PING: u8 = 6;
    const CONTINUATION: u8 = 9;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("small").to_be_bytes();
        let head = [length[1], length[2], length[3], kind, flags];
        [&head[..], &stream.to_be_bytes(), payload].concat()
    }

    fn window(stream: u32, more: u32) -> Vec<u8> {
        frame(WINDOW_UPDATE, 0, stream, &more.to_be_bytes())
    }

    /// A connection whose client has said the preface.
    struct Pair {
        streams: Streams,
        start: Instant,
        now: Instant,
    }

    impl Pair {
        fn new() -> Self {
            Self::bearing(Forbearance::SHOPPERS)
        }

        fn bearing(forbearance: Forbearance) -> Self {
            let start = Instant::now();
            let limits =
                StreamLimits { forbearance, upload_max: Duration::from_secs(10), window_bytes: 65_536 };
            let mut pair = Self { streams: Streams::new(limits, start), start, now: start };
            pair.read(PREFACE).expect("the preface");
            pair.read(&frame(SETTINGS, 0, 0, &[])).expect("no settings");
            pair
        }

        fn read(&mut self, bytes: &[u8]) -> Result<(), End> {
            // In pieces, so that none of this depends on where a read ends.
            bytes.chunks(5).try_for_each(|piece| self.streams.read(piece, self.now))
        }

        fn write(&mut self, bytes: &[u8]) {
            bytes.chunks(5).for_each(|piece| self.streams.wrote(piece, self.now));
        }

        fn pass(&mut self, s: u64) {
            self.now += Duration::from_secs(s);
        }

        fn due(&self) -> Option<(u64, End)> {
            self.streams.deadline().map(|(at, end)| ((at - self.start).as_secs(), end))
        }

        /// How many of these are taken before the connection is closed, and as what.
        fn flood(&mut self, bytes: &[u8]) -> (usize, End) {
            for count in 0..100_000 {
                if let Err(end) = self.read(bytes) {
                    return (count, end);
                }
            }
            panic!("no end of them");
        }
    }

    #[test]
    fn frames_that_ask_for_nothing_have_a_budget() {
        for (bytes, name) in [
            (frame(PING, 0, 0, &[0; 8]), "ping"),
            (frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]), "settings"),
            (frame(2, 0, 1, &[0; 5]), "priority"),
            (frame(DATA, 0, 1, &[]), "empty data"),
            (frame(DATA, PADDED, 1, &[0; 200]), "padding"),
            (frame(CONTINUATION, 0, 1, &[]), "continuation"),
            (window(0, 1), "window update"),
            (frame(77, 0, 0, &[]), "unknown"),
        ] {
            let mut pair = Pair::new();
            let (count, end) = pair.flood(&bytes);
            assert_eq!(end, End::ControlFlood, "{name}");
            assert!((500..=512).contains(&count), "{name}: {count}");
        }
        // By size too.
        let (count, _) = Pair::new().flood(&frame(77, 0, 0, &[0; 16 * 1024]));
        assert!(count <= 32, "{count}");
    }

    #[test]
    fn what_is_useful_earns_it_back_and_so_does_time() {
        let mut pair = Pair::new();
        for id in 0..5_000 {
            let id = id * 2 + 1;
            pair.read(&frame(HEADERS, END_STREAM, id, b"head")).expect("a request");
            for _ in 0..4 {
                pair.read(&window(id, 100)).expect("window updates of its answer");
            }
            pair.write(&frame(HEADERS, END_STREAM, id, b"head"));
        }
        for _ in 0..5_000 {
            pair.read(&frame(PING, 0, 0, &[0; 8])).expect("a ping each second");
            pair.pass(1);
        }
        // A client with a large window that begins to read late, and gives it back by 4 KiB of both.
        pair.read(&frame(HEADERS, END_STREAM, 10_001, b"head")).expect("a request");
        for _ in 0..256 {
            pair.write(&frame(DATA, 0, 10_001, &[0; 16 * 1024]));
        }
        for _ in 0..1_024 {
            pair.read(&window(10_001, 4 * 1024)).expect("its window");
            pair.read(&window(0, 4 * 1024)).expect("the connection's window");
        }
        // A long answer in small pieces, and a client that opens its windows each 32 KiB.
        pair.read(&frame(HEADERS, END_STREAM, 20_001, b"head")).expect("a request");
        for round in 0..40_000 {
            pair.write(&frame(DATA, 0, 20_001, &[0; 1024]));
            if round % 32 == 0 {
                pair.read(&window(20_001, 32 * 1024)).expect("its window");
                pair.read(&window(0, 32 * 1024)).expect("the connection's window");
            }
        }
    }

    #[test]
    fn cancelling_has_a_budget_of_its_own() {
        let mut pair = Pair::new();
        let mut closed = None;
        for count in 0..10_000u32 {
            let id = count * 2 + 1;
            pair.read(&frame(HEADERS, END_STREAM, id, b"head")).expect("a request");
            if let Err(end) = pair.read(&frame(RST_STREAM, 0, id, &[0; 4])) {
                closed = Some((count, end));
                break;
            }
        }
        assert_eq!(closed, Some((Forbearance::SHOPPERS.resets_max, End::ResetFlood)));
        // As a person does, who leaves pages.
        let mut pair = Pair::new();
        for count in 0..2_000u32 {
            let id = count * 2 + 1;
            pair.read(&frame(HEADERS, END_STREAM, id, b"head")).expect("a request");
            pair.read(&frame(RST_STREAM, 0, id, &[0; 4])).expect("cancelled");
            if count % 10 == 0 {
                pair.pass(1);
            }
        }
    }

    #[test]
    fn a_stream_at_window_zero_has_a_lifetime_that_single_bytes_do_not_renew() {
        let mut pair = Pair::new();
        pair.read(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).expect("no window at all");
        pair.read(&frame(HEADERS, END_STREAM, 1, b"head")).expect("a request");
        assert_eq!(pair.due(), None, "it is our turn");
        pair.write(&frame(HEADERS, 0, 1, b"head"));
        assert_eq!(pair.due(), Some((30, End::StreamStalled)));
        for _ in 0..100 {
            pair.pass(1);
            pair.read(&window(1, 1)).expect("a byte");
            assert_eq!(pair.due(), None, "our turn");
            pair.write(&frame(DATA, 0, 1, b"x"));
            if pair.due().is_some_and(|(due, _)| due <= (pair.now - pair.start).as_secs()) {
                break;
            }
        }
        assert_eq!((pair.now - pair.start).as_secs(), 30);
    }

    /// It gives back half a window when its shopper has read that much, who reads as slowly as he may, and has rested before.
    #[test]
    fn a_peers_stream_waits_for_the_slowest_shopper_who_is_waited_for_himself() {
        const WINDOW: u32 = 256 * 1024;
        let half = WINDOW / 2;
        let begun = |forbearance| {
            let mut pair = Pair::bearing(forbearance);
            pair.read(&frame(SETTINGS, 0, 0, &[0, 4, 0, 4, 0, 0])).expect("a window of 256 KiB");
            pair.read(&window(0, 4 << 20)).expect("the connection's");
            pair.read(&frame(HEADERS, END_STREAM, 1, b"head")).expect("a request");
            pair.write(&frame(HEADERS, 0, 1, b"head"));
            (0..16).for_each(|_| pair.write(&frame(DATA, 0, 1, &[0; 16 * 1024])));
            pair
        };
        let mut pair = begun(PeerDoor::limits(ListenLimits::default()).http2);
        pair.pass(30);
        for _ in 0..50 {
            pair.pass(u64::from(half) / BYTES_PER_S_MIN);
            let (due, end) = pair.due().expect("its turn");
            assert!(due > (pair.now - pair.start).as_secs(), "{end:?} at {due} s");
            pair.read(&window(1, half)).expect("its window");
            pair.read(&window(0, half)).expect("the connection's");
            (0..8).for_each(|_| pair.write(&frame(DATA, 0, 1, &[0; 16 * 1024])));
        }
        // Nor does it wait for ever.
        let now = (pair.now - pair.start).as_secs();
        assert!(pair.due().is_some_and(|(due, _)| due - now < 20 * 60), "{:?}", pair.due());
        assert_eq!(begun(Forbearance::SHOPPERS).due(), Some((30, End::StreamStalled)));
    }

    #[test]
    fn a_peer_cancels_what_all_of_its_shoppers_have_left() {
        let limits = ListenLimits::default();
        let shoppers = u32::try_from(limits.requests_in_flight_max).expect("small");
        let mut pair = Pair::bearing(PeerDoor::limits(limits).http2);
        for round in 0..3 {
            for count in 0..shoppers {
                let id = (round * shoppers + count) * 2 + 1;
                pair.read(&frame(HEADERS, END_STREAM, id, b"head")).expect("a request");
                pair.read(&frame(RST_STREAM, 0, id, &[0; 4])).expect("cancelled");
            }
            pair.pass(1);
        }
    }

    #[test]
    fn the_connections_window_stalls_all_of_them_and_opening_it_frees_them() {
        let mut pair = Pair::new();
        for id in [1, 3] {
            pair.read(&frame(HEADERS, END_STREAM, id, b"head")).expect("a request");
            pair.read(&window(id, 1 << 20)).expect("room");
            pair.write(&frame(HEADERS, 0, id, b"head"));
        }
        for _ in 0..65 {
            pair.write(&frame(DATA, 0, 1, &[0; 1000]));
        }
        assert_eq!(pair.due(), None);
        pair.write(&frame(DATA, 0, 1, &[0; 535]));
        assert_eq!(pair.due(), Some((30, End::StreamStalled)));
        pair.pass(5);
        pair.read(&window(0, 100_000)).expect("room");
        assert_eq!(pair.due(), None);
        pair.write(&frame(DATA, END_STREAM, 1, &[0; 1000]));
        pair.write(&frame(DATA, END_STREAM, 3, &[0; 1000]));
        assert!(pair.streams.is_idle());
    }

    #[test]
    fn an_upload_must_go_on_while_it_is_the_clients_turn() {
        let mut pair = Pair::new();
        pair.read(&frame(HEADERS, 0, 1, b"head")).expect("a request with a body");
        assert_eq!(pair.due(), Some((10, End::UploadTooSlow)));
        pair.pass(8);
        pair.read(&frame(DATA, 0, 1, &[0; 2400])).expect("ten seconds' worth");
        assert_eq!(pair.due(), Some((18, End::UploadTooSlow)));
        // We do not read: its window is used up, and nobody is to blame but us.
        for _ in 0..64 {
            pair.read(&frame(DATA, 0, 1, &[0; 1000])).expect("more");
        }
        assert_eq!(pair.due(), None);
        pair.pass(1_000);
        pair.write(&window(1, 65_536));
        assert_eq!(pair.due(), None, "the connection's own window is shut");
        pair.write(&window(0, 65_536));
        assert!(pair.due().is_some());
        pair.read(&frame(DATA, END_STREAM, 1, &[])).expect("its end");
        assert_eq!(pair.due(), None);
        assert!(!pair.streams.is_idle());
        pair.write(&frame(RST_STREAM, 0, 1, &[0; 4]));
        assert!(pair.streams.is_idle());
    }

    #[test]
    fn a_goodbye_stands_between_frames() {
        let mut pair = Pair::new();
        pair.read(&frame(HEADERS, END_STREAM, 7, b"head")).expect("a request");
        let goodbye = pair.streams.goodbye(false).expect("between frames");
        assert_eq!(goodbye, *b"\0\0\x08\x07\0\0\0\0\0\0\0\0\x07\0\0\0\x0b");
        pair.streams.wrote(&frame(HEADERS, 0, 7, b"head")[..10], pair.now);
        assert_eq!(pair.streams.goodbye(true), None);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..500)) {
            let mut pair = Pair::new();
            let _ = pair.read(&bytes);
            pair.write(&bytes);
            let _ = pair.streams.deadline();
        }
    }
}
