//! A batch of operations: the atomic unit of the way up. One batch fills one stream.
//!
//! `header length u16 | header (CBOR map) | body`, where the body is `(length u32 | operation)*`, possibly compressed by
//! the link. The checksum is of the body as it stands on the wire.

use minicbor::{Decode, Encode};

use crate::{
    EpochNo, Seq,
    limits::{BATCH_BYTES_MAX, BATCH_OPS_MAX, BATCH_WIRE_BYTES_MAX, OP_BYTES_MAX},
};

use super::CodecError;

/// A header of a newer release may be longer than ours; this is plenty.
const HEADER_BYTES_MAX: usize = 1_024;

/// How the body of a batch is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Encoding {
    /// As it is.
    #[n(0)]
    Raw,
    /// Zstandard; `raw_bytes` says how much comes out.
    #[n(1)]
    Zstd,
}

/// What stands before the operations.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct BatchHeader {
    /// Epoch of the node.
    #[n(0)]
    pub epoch: EpochNo,
    /// Number of the first operation; the others follow without a gap.
    #[n(1)]
    pub first_seq: Seq,
    /// How many.
    #[n(2)]
    pub count: u16,
    /// Schema of the operations.
    #[n(3)]
    pub schema: u16,
    /// crc32c of the body on the wire.
    #[n(4)]
    pub crc32c: u32,
    /// How the body is written.
    #[n(5)]
    pub encoding: Encoding,
    /// Length of the body when written raw.
    #[n(6)]
    pub raw_bytes: u32,
}

/// Consecutive operations of one node and epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Epoch of the node.
    pub epoch: EpochNo,
    /// Number of the first operation.
    pub first_seq: Seq,
    /// Schema of the operations.
    pub schema: u16,
    /// The operations `first_seq`, `first_seq + 1`, …; never empty on the wire.
    pub ops: Vec<Vec<u8>>,
}

impl Batch {
    /// Number of the last operation.
    #[must_use]
    pub const fn last_seq(&self) -> Seq {
        self.first_seq.saturating_add(self.ops.len() as u64).saturating_sub(1)
    }

    /// Bytes of all operations.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.ops.iter().map(Vec::len).sum()
    }

    /// The operations written raw, for the link to compress or to send as they are.
    #[must_use]
    pub fn raw_body(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(self.bytes() + 4 * self.ops.len());
        for op in &self.ops {
            let length = u32::try_from(op.len()).expect("an operation is at most OP_BYTES_MAX");
            body.extend_from_slice(&length.to_le_bytes());
            body.extend_from_slice(op);
        }
        body
    }

    /// The whole batch with a body that is written as `encoding` says.
    #[must_use]
    pub fn seal(&self, encoding: Encoding, raw_bytes: usize, body: &[u8]) -> Vec<u8> {
        let header = BatchHeader {
            epoch: self.epoch,
            first_seq: self.first_seq,
            count: u16::try_from(self.ops.len()).expect("a batch has at most BATCH_OPS_MAX operations"),
            schema: self.schema,
            crc32c: crc32c::crc32c(body),
            encoding,
            raw_bytes: u32::try_from(raw_bytes).expect("a batch is at most BATCH_WIRE_BYTES_MAX"),
        };
        let header = minicbor::to_vec(&header).expect("encoding into a Vec cannot fail");
        let length = u16::try_from(header.len()).expect("our header is some 40 bytes");
        let mut wire = Vec::with_capacity(2 + header.len() + body.len());
        wire.extend_from_slice(&length.to_le_bytes());
        wire.extend_from_slice(&header);
        wire.extend_from_slice(body);
        wire
    }

    /// The whole batch, not compressed.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let body = self.raw_body();
        self.seal(Encoding::Raw, body.len(), &body)
    }

    /// Decodes what [`Batch::encode`] wrote.
    pub fn decode(wire: &[u8]) -> Result<Self, CodecError> {
        let (header, body) = BatchHeader::open(wire)?;
        if header.encoding != Encoding::Raw {
            return Err(CodecError::Impossible {
                what: "batch",
                detail: "compressed where raw was expected",
            });
        }
        header.unpack(body)
    }
}

impl BatchHeader {
    /// Splits a batch into header and body, and checks header, sizes and checksum.
    pub fn open(wire: &[u8]) -> Result<(Self, &[u8]), CodecError> {
        if wire.len() > BATCH_WIRE_BYTES_MAX + HEADER_BYTES_MAX {
            return Err(CodecError::TooLarge {
                what: "batch",
                is: wire.len() as u64,
                limit: BATCH_WIRE_BYTES_MAX + HEADER_BYTES_MAX,
            });
        }
        let Some((length, rest)) = wire.split_first_chunk::<2>() else {
            return Err(CodecError::Truncated { have: wire.len(), need: 2 });
        };
        let length = usize::from(u16::from_le_bytes(*length));
        if length > HEADER_BYTES_MAX {
            return Err(CodecError::TooLarge {
                what: "batch header",
                is: length as u64,
                limit: HEADER_BYTES_MAX,
            });
        }
        let Some((header, body)) = rest.split_at_checked(length) else {
            return Err(CodecError::Truncated { have: rest.len(), need: length });
        };
        let header: Self = minicbor::decode(header).map_err(|e| CodecError::malformed("batch header", &e))?;
        header.check()?;
        if crc32c::crc32c(body) != header.crc32c {
            return Err(CodecError::Checksum("batch"));
        }
        Ok((header, body))
    }

    fn check(&self) -> Result<(), CodecError> {
        if usize::from(self.count) > BATCH_OPS_MAX {
            let is = u64::from(self.count);
            return Err(CodecError::TooLarge { what: "batch count", is, limit: BATCH_OPS_MAX });
        }
        if self.raw_bytes as usize > BATCH_WIRE_BYTES_MAX {
            let is = u64::from(self.raw_bytes);
            return Err(CodecError::TooLarge { what: "batch body", is, limit: BATCH_WIRE_BYTES_MAX });
        }
        if self.count == 0 || self.first_seq == 0 {
            return Err(CodecError::Impossible { what: "batch", detail: "empty, or numbered from 0" });
        }
        if self.first_seq.checked_add(u64::from(self.count)).is_none() {
            return Err(CodecError::Impossible { what: "batch", detail: "numbers overflow" });
        }
        Ok(())
    }

    /// Takes the operations out of a raw body.
    pub fn unpack(&self, mut raw: &[u8]) -> Result<Batch, CodecError> {
        if raw.len() != self.raw_bytes as usize {
            return Err(CodecError::Truncated { have: raw.len(), need: self.raw_bytes as usize });
        }
        let mut ops = Vec::with_capacity(usize::from(self.count).min(BATCH_OPS_MAX));
        let mut bytes = 0_usize;
        for _ in 0..self.count {
            let Some((length, rest)) = raw.split_first_chunk::<4>() else {
                return Err(CodecError::Truncated { have: raw.len(), need: 4 });
            };
            let length = u32::from_le_bytes(*length) as usize;
            if length > OP_BYTES_MAX {
                return Err(CodecError::TooLarge {
                    what: "operation",
                    is: length as u64,
                    limit: OP_BYTES_MAX,
                });
            }
            let Some((op, rest)) = rest.split_at_checked(length) else {
                return Err(CodecError::Truncated { have: rest.len(), need: length });
            };
            bytes = bytes.saturating_add(length);
            ops.push(op.to_vec());
            raw = rest;
        }
        if !raw.is_empty() {
            return Err(CodecError::Trailing(raw.len()));
        }
        if bytes > BATCH_BYTES_MAX {
            return Err(CodecError::TooLarge { what: "batch", is: bytes as u64, limit: BATCH_BYTES_MAX });
        }
        Ok(Batch { epoch: self.epoch, first_seq: self.first_seq, schema: self.schema, ops })
    }
}
