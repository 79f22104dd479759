//! A run of a log on the wire: the payload of one frame of a log stream.

use minicbor::{Decode, Decoder, Encode, Encoder, bytes::ByteVec, decode, encode};

use crate::{
    Log, Part, Record, Tail,
    limits::{RECORD_BYTES_MAX, RESUME_BYTES_MAX, TAIL_RECORDS_MAX, TAIL_WIRE_BYTES_MAX},
};

use super::CodecError;

#[derive(Encode, Decode)]
#[cbor(map)]
struct TailWire {
    #[n(0)]
    log: u8,
    #[n(1)]
    from: u64,
    #[n(2)]
    to: u64,
    /// Index of the snapshot part; absent for changes.
    #[n(3)]
    index: Option<u32>,
    #[n(4)]
    last: bool,
    #[n(5)]
    #[cbor(encode_with = "encode_records", decode_with = "decode_records")]
    records: Vec<RecordWire>,
    /// Absent in tails of older regions.
    #[n(6)]
    next: Option<ByteVec>,
}

#[derive(Encode, Decode)]
#[cbor(map)]
struct RecordWire {
    #[n(0)]
    version: u64,
    #[n(1)]
    body: ByteVec,
}

fn encode_records<C, W: encode::Write>(
    records: &Vec<RecordWire>,
    e: &mut Encoder<W>,
    ctx: &mut C,
) -> Result<(), encode::Error<W::Error>> {
    records.encode(e, ctx)
}

/// Counts while it decodes: a tiny record costs more memory than wire, so the limit must hold before all are there.
fn decode_records<C>(d: &mut Decoder<'_>, ctx: &mut C) -> Result<Vec<RecordWire>, decode::Error> {
    let mut records = Vec::new();
    for record in d.array_iter_with(ctx)? {
        if records.len() == TAIL_RECORDS_MAX {
            return Err(decode::Error::message("more records than TAIL_RECORDS_MAX"));
        }
        records.push(record?);
    }
    Ok(records)
}

impl Tail {
    /// Encodes the payload of a frame of the log's stream (see [`super::seal_frame`]).
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let (index, last) = match self.part {
            Part::Changes => (None, false),
            Part::Snapshot { index, last } => (Some(index), last),
        };
        let records = self
            .records
            .iter()
            .map(|r| RecordWire { version: r.version, body: r.body.clone().into() })
            .collect();
        let next = self.next.clone().map(ByteVec::from);
        let wire =
            TailWire { log: self.log.code(), from: self.from, to: self.to, index, last, records, next };
        minicbor::to_vec(wire).expect("encoding into a Vec cannot fail")
    }

    /// Decodes the payload of a frame. `Ok(None)`: a log that this build does not know.
    pub fn decode(payload: &[u8]) -> Result<Option<Self>, CodecError> {
        if payload.len() > TAIL_WIRE_BYTES_MAX {
            return Err(CodecError::TooLarge {
                what: "tail",
                is: payload.len() as u64,
                limit: TAIL_WIRE_BYTES_MAX,
            });
        }
        let wire: TailWire = decode(payload).map_err(|e| CodecError::malformed("tail", &e))?;
        let Some(log) = Log::from_code(wire.log) else { return Ok(None) };
        let part = wire.index.map_or(Part::Changes, |index| Part::Snapshot { index, last: wire.last });
        if part == Part::Changes && wire.to < wire.from {
            return Err(CodecError::Impossible { what: "tail", detail: "ends before it starts" });
        }
        let mut records = Vec::with_capacity(wire.records.len());
        for record in wire.records {
            let body = Vec::from(record.body);
            if body.len() > RECORD_BYTES_MAX {
                return Err(CodecError::TooLarge {
                    what: "record",
                    is: body.len() as u64,
                    limit: RECORD_BYTES_MAX,
                });
            }
            if part == Part::Changes && !(record.version > wire.from && record.version <= wire.to) {
                return Err(CodecError::Impossible {
                    what: "tail",
                    detail: "a record outside of its versions",
                });
            }
            records.push(Record { version: record.version, body });
        }
        let next = wire.next.map(Vec::from);
        if let Some(next) = next.as_ref().filter(|next| next.len() > RESUME_BYTES_MAX) {
            let is = next.len() as u64;
            return Err(CodecError::TooLarge { what: "place in a snapshot", is, limit: RESUME_BYTES_MAX });
        }
        Ok(Some(Self { log, from: wire.from, to: wire.to, part, records, next }))
    }

    /// Bytes of all records.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.records.iter().map(|record| record.body.len()).sum()
    }
}
