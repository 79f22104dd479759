//! Length-prefixed, checksummed frames: `length u32 | crc32c u32 | payload`, numbers little-endian.

use super::CodecError;

/// Bytes before the payload of a frame.
pub const FRAME_HEADER_BYTES: usize = 8;

/// Wraps a payload into a frame.
///
/// # Panics
/// When the payload is longer than `u32::MAX`; senders keep limits far below.
#[must_use]
pub fn seal_frame(payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("senders keep payloads far below 4 GiB");
    let mut frame = Vec::with_capacity(FRAME_HEADER_BYTES + payload.len());
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&crc32c::crc32c(payload).to_le_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// Length of the payload that a frame header announces, checked against `limit` before anybody allocates it.
pub fn frame_length(
    header: &[u8; FRAME_HEADER_BYTES],
    what: &'static str,
    limit: usize,
) -> Result<usize, CodecError> {
    let [l0, l1, l2, l3, ..] = *header;
    let length = u32::from_le_bytes([l0, l1, l2, l3]);
    match usize::try_from(length) {
        Ok(length) if length <= limit => Ok(length),
        _ => Err(CodecError::TooLarge { what, is: u64::from(length), limit }),
    }
}

/// Checks a payload against its frame header.
pub fn open_frame(
    header: &[u8; FRAME_HEADER_BYTES],
    payload: &[u8],
    what: &'static str,
    limit: usize,
) -> Result<(), CodecError> {
    let need = frame_length(header, what, limit)?;
    if payload.len() < need {
        return Err(CodecError::Truncated { have: payload.len(), need });
    }
    if payload.len() > need {
        return Err(CodecError::Trailing(payload.len().saturating_sub(need)));
    }
    let [.., c0, c1, c2, c3] = *header;
    if crc32c::crc32c(payload) == u32::from_le_bytes([c0, c1, c2, c3]) {
        Ok(())
    } else {
        Err(CodecError::Checksum(what))
    }
}
