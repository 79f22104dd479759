//! What is on the streams: their first byte, frames, and batches with their compression.

use quinn::{ReadExactError, RecvStream, SendStream};
use souk_replication::{
    Batch, CodecError,
    limits::{BATCH_WIRE_BYTES_MAX, CONTROL_BYTES_MAX, TAIL_WIRE_BYTES_MAX},
    wire::{BatchHeader, Control, Encoding, FRAME_HEADER_BYTES, frame_length, open_frame, seal_frame},
};

/// First byte of the node's control stream.
pub(crate) const KIND_CONTROL: u8 = 1;
/// First byte of a call.
pub(crate) const KIND_CALL: u8 = 2;
/// First byte of a batch.
pub(crate) const KIND_BATCH: u8 = 3;
/// First byte of the stream of a log.
pub(crate) const KIND_LOG: u8 = 4;

/// Stream priorities above those of the logs (see `Log::priority`): decisions before operations before data.
pub(crate) const PRIORITY_CONTROL: i32 = 100;
pub(crate) const PRIORITY_CALL: i32 = 50;
pub(crate) const PRIORITY_BATCH: i32 = 10;
/// Below every log: a blob of many megabytes waits for a price.
pub(crate) const PRIORITY_BLOB: i32 = -1;

/// A batch below this is not worth the call.
const COMPRESS_BYTES_MIN: usize = 512;
/// Fast; the operations of one batch resemble each other, so even this level halves them.
const ZSTD_LEVEL: i32 = 1;

/// Why reading a stream ended without what was expected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    /// The peer ended the stream between two frames.
    #[error("the stream ended")]
    Ended,
    /// The connection is lost, or the peer gave the stream up.
    #[error("{0}")]
    Lost(String),
    /// What came is not what the protocol says.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

impl From<ReadExactError> for StreamError {
    fn from(error: ReadExactError) -> Self {
        match error {
            ReadExactError::FinishedEarly(0) => Self::Ended,
            ReadExactError::FinishedEarly(have) => {
                Self::Codec(CodecError::Truncated { have, need: have + 1 })
            }
            ReadExactError::ReadError(e) => Self::Lost(e.to_string()),
        }
    }
}

pub(crate) async fn read_kind(stream: &mut RecvStream) -> Result<u8, StreamError> {
    let mut kind = [0];
    stream.read_exact(&mut kind).await?;
    Ok(kind[0])
}

/// Reads one frame. The length is checked before anything is allocated. Not cancel safe.
pub(crate) async fn read_frame(
    stream: &mut RecvStream,
    what: &'static str,
    limit: usize,
) -> Result<Vec<u8>, StreamError> {
    let mut header = [0; FRAME_HEADER_BYTES];
    stream.read_exact(&mut header).await?;
    let mut payload = vec![0; frame_length(&header, what, limit)?];
    stream.read_exact(&mut payload).await.map_err(|error| match error.into() {
        StreamError::Ended => StreamError::Codec(CodecError::Truncated { have: 0, need: payload.len() }),
        other => other,
    })?;
    open_frame(&header, &payload, what, limit)?;
    Ok(payload)
}

pub(crate) async fn read_control(stream: &mut RecvStream) -> Result<Control, StreamError> {
    Ok(Control::decode(&read_frame(stream, "control frame", CONTROL_BYTES_MAX).await?)?)
}

/// Reads the next tail of a log stream; `None` for a log that this build does not know.
pub(crate) async fn read_tail(
    stream: &mut RecvStream,
) -> Result<Option<souk_replication::Tail>, StreamError> {
    let payload = read_frame(stream, "tail", TAIL_WIRE_BYTES_MAX).await?;
    Ok(souk_replication::Tail::decode(&payload)?)
}

/// Reads a whole batch, after its first byte.
pub(crate) async fn read_batch(stream: &mut RecvStream) -> Result<Batch, StreamError> {
    // A header of a newer release may be longer than ours.
    let limit = BATCH_WIRE_BYTES_MAX + 2_048;
    let wire = stream.read_to_end(limit).await.map_err(|error| match error {
        quinn::ReadToEndError::TooLong => {
            StreamError::Codec(CodecError::TooLarge { what: "batch", is: limit as u64 + 1, limit })
        }
        quinn::ReadToEndError::Read(e) => StreamError::Lost(e.to_string()),
    })?;
    Ok(open_batch(&wire)?)
}

fn open_batch(wire: &[u8]) -> Result<Batch, CodecError> {
    let (header, body) = BatchHeader::open(wire)?;
    match header.encoding {
        Encoding::Raw => header.unpack(body),
        Encoding::Zstd => {
            let raw = zstd::bulk::decompress(body, header.raw_bytes as usize)
                .map_err(|e| CodecError::Malformed { what: "compressed batch", detail: e.to_string() })?;
            header.unpack(&raw)
        }
    }
}

/// The whole stream of a batch: first byte, header, body, compressed when that helps and the region reads it (`zstd`).
pub(crate) fn seal_batch(batch: &Batch, zstd: bool) -> Vec<u8> {
    let raw = batch.raw_body();
    let mut wire = vec![KIND_BATCH];
    if zstd
        && raw.len() >= COMPRESS_BYTES_MIN
        && let Ok(small) = zstd::bulk::compress(&raw, ZSTD_LEVEL)
        && small.len() < raw.len() - raw.len() / 8
    {
        wire.extend_from_slice(&batch.seal(Encoding::Zstd, raw.len(), &small));
    } else {
        wire.extend_from_slice(&batch.seal(Encoding::Raw, raw.len(), &raw));
    }
    wire
}

pub(crate) async fn write_control(stream: &mut SendStream, frame: &Control) -> Result<(), quinn::WriteError> {
    stream.write_all(&seal_frame(&frame.encode())).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(op: Vec<u8>, count: usize) -> Batch {
        Batch { epoch: 1, first_seq: 9, schema: 1, ops: vec![op; count] }
    }

    #[test]
    fn a_batch_survives_the_wire_and_shrinks_when_that_helps() {
        let alike = batch(b"the same shopper adds the same sku".to_vec(), 200);
        let wire = seal_batch(&alike, true);
        assert!(wire.len() < alike.bytes() / 4, "{} of {} bytes", wire.len(), alike.bytes());
        assert_eq!(open_batch(&wire[1..]).as_ref(), Ok(&alike));
        let wire = seal_batch(&alike, false);
        assert!(wire.len() > alike.bytes(), "a region that does not read it gets it raw");
        assert_eq!(Batch::decode(&wire[1..]), Ok(alike));
        let small = batch(vec![1, 2, 3], 2);
        assert_eq!(open_batch(&seal_batch(&small, true)[1..]), Ok(small));
    }

    #[test]
    fn a_compression_bomb_is_refused_by_its_announced_size() {
        let bomb = zstd::bulk::compress(&vec![0; 10 * 1024 * 1024], 1).expect("zeros compress");
        let wire = batch(vec![1], 1).seal(Encoding::Zstd, 1_000, &bomb);
        assert!(matches!(open_batch(&wire), Err(CodecError::Malformed { what: "compressed batch", .. })));
    }
}
