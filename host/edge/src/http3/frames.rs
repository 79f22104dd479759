//! The frames of HTTP/3 as their bytes go by: what no peer may say, before anybody keeps it.
//!
//! The h3 crate holds a frame other than DATA until it is whole, however long it says that it is, and takes a DATA frame
//! that ends early for the end of a body. Both are decided here, below it, on the raw bytes of a stream. Pure: bytes in,
//! verdicts out.

use super::section::{FieldSection, SectionFault};

/// A HEADERS frame, compressed. Four times what a field section may have, as h3 counts it, so that a head that is a little
/// too large is still answered with 431.
const HEADERS_BYTES_MAX: u64 = 4 * super::HEADER_LIST_BYTES_MAX;
/// Any other frame but DATA: settings, GOAWAY, priorities, and what is unknown. A browser's are below 100 bytes.
const OTHER_BYTES_MAX: u64 = 4 * 1024;
/// Frames of one request that carry nothing of it. A browser greases with one or two.
const EMPTY_FRAMES_MAX: u32 = 64;

const DATA: u64 = 0x0;
const HEADERS: u64 = 0x1;
const CONTROL_STREAM: u64 = 0x0;

/// Why a stream is given up, and its connection with it where nothing else is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum FrameFault {
    #[error("a frame is larger than any that is read")]
    TooLarge,
    #[error("a request has too many frames that say nothing")]
    TooManyEmpty,
    #[error("the stream ended in the middle of a frame")]
    Unfinished,
    /// Of the request alone: its connection goes on.
    #[error("the request is malformed: {0}")]
    Malformed(SectionFault),
}

/// Follows one direction of one stream.
#[derive(Debug)]
pub(super) struct FrameGuard {
    at: At,
    empty: u32,
    /// A request's stream: frames that say nothing are counted, and fields are read along. On the control stream, which
    /// lives as long as its connection, they are not.
    is_request: bool,
    /// A HEADERS frame was there; a second one has trailers.
    has_head: bool,
    section: Option<FieldSection>,
}

#[derive(Debug)]
enum At {
    StreamType(Varint),
    Type(Varint),
    Length(u64, Varint),
    Payload(u64),
    /// No frames here: QPACK's streams, and those that nobody knows.
    Elsewhere,
}

impl FrameGuard {
    pub(super) const fn request() -> Self {
        Self { at: At::Type(Varint::NEW), empty: 0, is_request: true, has_head: false, section: None }
    }

    pub(super) const fn unidirectional() -> Self {
        Self { at: At::StreamType(Varint::NEW), empty: 0, is_request: false, has_head: false, section: None }
    }

    /// Looks at the next bytes.
    pub(super) fn see(&mut self, mut bytes: &[u8]) -> Result<(), FrameFault> {
        while let Some((&first, rest)) = bytes.split_first() {
            match &mut self.at {
                At::Elsewhere => return Ok(()),
                At::Payload(left) => {
                    let seen = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
                    *left -= seen as u64;
                    let (payload, rest) = bytes.split_at(seen);
                    if let Some(section) = &mut self.section {
                        section.see(payload).map_err(FrameFault::Malformed)?;
                    }
                    if *left == 0 {
                        self.at = At::Type(Varint::NEW);
                        self.section = None;
                    }
                    bytes = rest;
                    continue;
                }
                At::StreamType(number) => {
                    if let Some(kind) = number.push(first) {
                        self.at = if kind == CONTROL_STREAM { At::Type(Varint::NEW) } else { At::Elsewhere };
                    }
                }
                At::Type(number) => {
                    if let Some(kind) = number.push(first) {
                        self.at = At::Length(kind, Varint::NEW);
                    }
                }
                At::Length(kind, number) => {
                    if let Some(length) = number.push(first) {
                        let kind = *kind;
                        self.admit(kind, length)?;
                        self.at = if length == 0 {
                            self.section = None;
                            At::Type(Varint::NEW)
                        } else {
                            At::Payload(length)
                        };
                    }
                }
            }
            bytes = rest;
        }
        Ok(())
    }

    fn admit(&mut self, kind: u64, length: u64) -> Result<(), FrameFault> {
        let bytes_max = match kind {
            DATA => u64::MAX,
            HEADERS => HEADERS_BYTES_MAX,
            _ => OTHER_BYTES_MAX,
        };
        if length > bytes_max {
            return Err(FrameFault::TooLarge);
        }
        let says_something = kind == HEADERS || (kind == DATA && length > 0);
        if self.is_request && kind == HEADERS {
            self.section = Some(FieldSection::new(self.has_head));
            self.has_head = true;
        }
        if self.is_request && !says_something {
            self.empty += 1;
            if self.empty > EMPTY_FRAMES_MAX {
                return Err(FrameFault::TooManyEmpty);
            }
        }
        Ok(())
    }

    /// The stream has ended: was that between two frames?
    pub(super) fn end(&self) -> Result<(), FrameFault> {
        match &self.at {
            At::Elsewhere | At::StreamType(_) => Ok(()),
            At::Type(number) if number.is_new() => Ok(()),
            _ => Err(FrameFault::Unfinished),
        }
    }
}

/// A variable-length integer (RFC 9000 section 16), byte by byte.
#[derive(Debug)]
struct Varint {
    value: u64,
    /// Bytes that are still missing; none for one that has not begun.
    missing: Option<u8>,
}

impl Varint {
    const NEW: Self = Self { value: 0, missing: None };

    const fn is_new(&self) -> bool {
        self.missing.is_none()
    }

    /// The number, once its last byte is there.
    fn push(&mut self, byte: u8) -> Option<u64> {
        let missing = match self.missing {
            None => {
                self.value = u64::from(byte & 0x3f);
                (1_u8 << (byte >> 6)) - 1
            }
            Some(missing) => {
                self.value = self.value << 8 | u64::from(byte);
                missing - 1
            }
        };
        self.missing = Some(missing);
        (missing == 0).then_some(self.value)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn varint(value: u64) -> Vec<u8> {
        match value {
            0..0x40 => vec![value as u8],
            0x40..0x4000 => (value as u16 | 0x4000).to_be_bytes().to_vec(),
            0x4000..0x4000_0000 => (value as u32 | 0x8000_0000).to_be_bytes().to_vec(),
            _ => (value | 0xc000_0000_0000_0000).to_be_bytes().to_vec(),
        }
    }

    fn frame(kind: u64, length: u64) -> Vec<u8> {
        let payload = vec![b'x'; usize::try_from(length).expect("small")];
        [varint(kind), varint(length), payload].concat()
    }

    #[test]
    fn a_request_with_grease_and_trailers_passes() {
        let mut guard = FrameGuard::request();
        for bytes in [frame(0x21, 3), frame(HEADERS, 200), frame(DATA, 70_000), frame(HEADERS, 5)] {
            guard.see(&bytes).expect("allowed");
        }
        guard.end().expect("between two frames");
    }

    #[test]
    fn a_length_is_judged_before_its_bytes_come() {
        for (kind, length) in
            [(HEADERS, HEADERS_BYTES_MAX + 1), (0x4, OTHER_BYTES_MAX + 1), (0x21, 1 << 40), (0x41, 1 << 61)]
        {
            let said = [varint(kind), varint(length)].concat();
            assert_eq!(FrameGuard::request().see(&said), Err(FrameFault::TooLarge), "{kind}");
            let on_control = [varint(CONTROL_STREAM), said].concat();
            assert_eq!(FrameGuard::unidirectional().see(&on_control), Err(FrameFault::TooLarge), "{kind}");
        }
        let long = [varint(DATA), varint(1 << 61)].concat();
        FrameGuard::request().see(&long).expect("a body has no limit here");
    }

    #[test]
    fn other_streams_have_no_frames() {
        let mut qpack = FrameGuard::unidirectional();
        qpack.see(&[0x2, 0x1, 0xff, 0xff, 0xff]).expect("nobody reads it");
        qpack.end().expect("nobody reads it");
    }

    #[test]
    fn what_says_nothing_may_not_go_on_for_ever() {
        for kind in [DATA, 0x21] {
            let mut guard = FrameGuard::request();
            let passed = (0..).take_while(|_| guard.see(&frame(kind, 0)).is_ok()).count();
            assert_eq!(passed, EMPTY_FRAMES_MAX as usize);
        }
        let mut control = FrameGuard::unidirectional();
        control.see(&varint(CONTROL_STREAM)).expect("the control stream");
        for _ in 0..1_000 {
            control.see(&frame(0xf0700, 4)).expect("a priority");
        }
    }

    proptest! {
        /// However the bytes are cut, and wherever they end.
        #[test]
        fn cuts_make_no_difference(
            lengths in prop::collection::vec((prop::sample::select(vec![DATA, HEADERS, 0x21]), 0_u64..300), 0..8),
            size in 1_usize..50,
            lost in 0_usize..400,
        ) {
            let frames: Vec<_> = lengths.iter().map(|&(kind, length)| frame(kind, length)).collect();
            let whole = frames.concat();
            let kept = whole.len() - lost.min(whole.len());
            let mut guard = FrameGuard::request();
            for piece in whole[..kept].chunks(size) {
                prop_assert!(guard.see(piece).is_ok());
            }
            let mut ends = vec![0];
            for frame in &frames {
                ends.push(ends.last().expect("not empty") + frame.len());
            }
            prop_assert_eq!(guard.end().is_ok(), ends.contains(&kept));
        }
    }
}
