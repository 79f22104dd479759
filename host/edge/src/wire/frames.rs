//! The frames of one direction of HTTP/2 (RFC 9113 §4.1): where each begins, whatever the pieces it comes in.
//!
//! Keeps nine bytes of a head and no payload. What frames mean is [`super::streams`]' business.

/// The connection preface of a client (§3.4).
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const HEAD_BYTES: usize = 9;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const WINDOW_UPDATE: u8 = 8;
/// Of DATA and HEADERS.
pub(super) const END_STREAM: u8 = 1;
/// Of DATA.
pub(super) const PADDED: u8 = 8;

/// The head of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameHead {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    pub(super) length: usize,
}

impl FrameHead {
    pub(super) fn ends_stream(&self) -> bool {
        matches!(self.kind, DATA | HEADERS) && self.flags & END_STREAM != 0
    }
}

/// The position in one direction.
#[derive(Debug)]
pub(super) struct Frames {
    head: [u8; HEAD_BYTES],
    have: usize,
    payload_left: usize,
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next<'b> {
    Head(FrameHead),
    /// A piece of the payload of the last frame.
    Payload(&'b [u8]),
}

impl Frames {
    pub(super) fn new() -> Self {
        Self { head: [0; HEAD_BYTES], have: 0, payload_left: 0 }
    }

    /// Whether a frame has ended here, and none has begun.
    pub(super) fn is_between(&self) -> bool {
        self.have == 0 && self.payload_left == 0
    }

    /// Takes the next thing from the front of `bytes`, of a payload at most `piece_max` bytes; nothing where they end.
    pub(super) fn next<'b>(&mut self, bytes: &mut &'b [u8], piece_max: usize) -> Option<Next<'b>> {
        if self.payload_left > 0 {
            let (piece, rest) = bytes.split_at(self.payload_left.min(bytes.len()).min(piece_max));
            *bytes = rest;
            self.payload_left -= piece.len();
            return (!piece.is_empty()).then_some(Next::Payload(piece));
        }
        let (piece, rest) = bytes.split_at((HEAD_BYTES - self.have).min(bytes.len()));
        *bytes = rest;
        self.head[self.have..self.have + piece.len()].copy_from_slice(piece);
        self.have += piece.len();
        if self.have < HEAD_BYTES {
            return None;
        }
        self.have = 0;
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = self.head;
        let length = u32::from_be_bytes([0, l0, l1, l2]) as usize;
        self.payload_left = length;
        // The first bit is reserved.
        let stream = u32::from_be_bytes([s0, s1, s2, s3]) & 0x7fff_ffff;
        Some(Next::Head(FrameHead { kind, flags, stream, length }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_in_pieces_of_any_size() {
        let mut bytes = Vec::new();
        let mut frame = |kind, flags, stream: u32, payload: &[u8]| {
            bytes.extend_from_slice(&u32::try_from(payload.len()).expect("small").to_be_bytes()[1..]);
            bytes.extend_from_slice(&[kind, flags]);
            bytes.extend_from_slice(&stream.to_be_bytes());
            bytes.extend_from_slice(payload);
        };
        frame(SETTINGS, 0, 0, &[0; 12]);
        frame(HEADERS, END_STREAM, 1, b"head");
        frame(DATA, 0, 0x8000_0003, &[]);
        frame(99, 7, 5, &[1; 300]);
        for size in [1, 2, 8, 9, 10, 1000] {
            let mut frames = Frames::new();
            let (mut heads, mut payload) = (Vec::new(), 0);
            for mut piece in bytes.chunks(size) {
                while let Some(next) = frames.next(&mut piece, 7) {
                    match next {
                        Next::Head(head) => heads.push((head.kind, head.stream, head.length)),
                        Next::Payload(piece) => payload += piece.len(),
                    }
                }
                assert!(piece.is_empty());
            }
            assert_eq!(heads, [(SETTINGS, 0, 12), (HEADERS, 1, 4), (DATA, 3, 0), (99, 5, 300)], "{size}");
            assert_eq!((payload, frames.is_between()), (316, true), "{size}");
        }
    }
}
