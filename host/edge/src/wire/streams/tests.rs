//! What two sides owe each other, frame by frame: windows kept shut, streams cancelled, frames that ask for nothing.

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
        let limits = StreamLimits { forbearance, upload_max: Duration::from_secs(10), window_bytes: 65_536 };
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
