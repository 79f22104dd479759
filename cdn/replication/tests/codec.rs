//! The wire format: what is written is read again, and garbage gets a name instead of a panic.

use proptest::{collection::vec, prelude::*};
use souk_replication::{
    Ack, Applied, Batch, CodecError, Control, Credit, Fold, Heads, Hello, Log, Part, Pulse, Record, Reject,
    Resend, Rewind, Staging, Tail, Welcome,
    limits::{BATCH_BYTES_MAX, CONTROL_BYTES_MAX},
    wire::{
        BatchHeader, FRAME_HEADER_BYTES, LogVersion, Staged, StagedLog, busy_message, come_back_ms,
        frame_length, open_frame, seal_frame,
    },
};

fn log() -> impl Strategy<Value = Log> {
    prop::sample::select(Log::ALL.to_vec())
}

fn hello() -> impl Strategy<Value = Control> {
    (any::<(u32, Option<u32>, u64, u64)>(), vec(any::<u64>(), Log::COUNT), vec(any::<u16>(), 0..4), ".{0,20}")
        .prop_map(|((node, epoch, last_seq, min_retained_seq), cursors, schemas, software)| {
            let cursors: Heads = Log::ALL.into_iter().zip(cursors).collect();
            let mut cursors = LogVersion::list(&cursors);
            cursors[0].region_epoch = epoch;
            let pop = software.clone();
            let diverged = last_seq % 2 == 1;
            let features = last_seq;
            let staged = Staging {
                log: Log::Price,
                version: last_seq,
                parts: node,
                region_epoch: node,
                next: last_seq.to_le_bytes().to_vec(),
            };
            let staged = StagedLog::from(&staged);
            Hello {
                node,
                epoch,
                last_seq,
                min_retained_seq,
                cursors,
                schemas,
                software,
                pop,
                diverged,
                features,
                stagings: vec![staged],
                term: last_seq,
            }
            .into()
        })
}

fn control() -> impl Strategy<Value = Control> {
    prop_oneof![
        hello(),
        (any::<(u32, u32, u64, u32, u32)>(), ".{0,20}").prop_map(
            |((region_epoch, epoch, hwm, credit_ops, credit_bytes), region)| {
                let resets = vec![Log::Price.code()];
                let software = region.clone();
                Welcome {
                    region,
                    region_epoch,
                    epoch,
                    hwm,
                    credit_ops,
                    credit_bytes,
                    heads: vec![],
                    resets,
                    software,
                    fold: (hwm % 2 == 0).then(|| Fold::from_number(hwm)),
                    schemas: vec![1, 2],
                    features: hwm,
                    term: hwm,
                }
                .into()
            }
        ),
        any::<(u32, u64, Option<u64>)>().prop_map(|(epoch, hwm, fold)| {
            let fold = fold.map(Fold::from_number);
            Ack { epoch, hwm, fold }.into()
        }),
        any::<(u32, u32)>().prop_map(|(ops, bytes)| Credit { ops, bytes }.into()),
        any::<u64>().prop_map(|hwm| Pulse { hwm }.into()),
        any::<(u32, u64)>().prop_map(|(epoch, from)| Resend { epoch, from }.into()),
        any::<(u8, u64, Option<(u64, u32)>, Option<u32>)>().prop_map(
            |(log, version, staged, region_epoch)| {
                let staged = staged.map(|(version, parts)| Staged { version, parts });
                Applied { log, version, staged, region_epoch }.into()
            }
        ),
        any::<(u8, u64)>().prop_map(|(log, version)| Rewind { log, version }.into()),
        (any::<u16>(), ".{0,20}").prop_map(|(reason, message)| Reject { reason, message }.into()),
    ]
}

fn tail() -> impl Strategy<Value = Tail> {
    (log(), 0..u64::MAX / 2, vec(vec(any::<u8>(), 0..50), 0..20), any::<Option<(u32, bool)>>()).prop_map(
        |(log, from, bodies, part)| {
            let records: Vec<_> =
                (from + 1..).zip(bodies).map(|(version, body)| Record { version, body }).collect();
            let part = part.map_or(Part::Changes, |(index, last)| Part::Snapshot { index, last });
            let next =
                matches!(part, Part::Snapshot { last: false, .. }).then(|| from.to_le_bytes().to_vec());
            Tail { log, from, to: from + records.len() as u64, part, records, next }
        },
    )
}

fn batch() -> impl Strategy<Value = Batch> {
    (any::<(u32, u16)>(), 1..u64::MAX / 2, vec(vec(any::<u8>(), 0..100), 1..50))
        .prop_map(|((epoch, schema), first_seq, ops)| Batch { epoch, first_seq, schema, ops })
}

proptest! {
    #[test]
    fn control_frames_survive(frame in control()) {
        prop_assert_eq!(Control::decode(&frame.encode()), Ok(frame));
    }

    #[test]
    fn tails_survive(tail in tail()) {
        prop_assert_eq!(Tail::decode(&tail.encode()), Ok(Some(tail)));
    }

    #[test]
    fn batches_survive(batch in batch()) {
        prop_assert_eq!(Batch::decode(&batch.encode()), Ok(batch));
    }

    #[test]
    fn garbage_has_a_name(garbage in vec(any::<u8>(), 0..300)) {
        // Whatever comes out, nothing panics, and an error says which.
        for name in [
            Control::decode(&garbage).err().map(|e| e.name()),
            Tail::decode(&garbage).err().map(|e| e.name()),
            Batch::decode(&garbage).err().map(|e| e.name()),
        ] {
            prop_assert!(name != Some(""));
        }
    }

    #[test]
    fn damage_is_noticed(batch in batch(), at in any::<prop::sample::Index>(), bit in 0..8_u8) {
        let mut wire = batch.encode();
        let at = at.index(wire.len());
        wire[at] ^= 1 << bit;
        // A flipped bit in the header may give another header; one in the operations is always an error.
        match Batch::decode(&wire) {
            Ok(other) => prop_assert_eq!(other.ops, batch.ops),
            Err(error) => prop_assert!(!error.name().is_empty()),
        }
    }

    #[test]
    fn truncation_is_noticed(batch in batch(), tail in tail(), cut in any::<prop::sample::Index>()) {
        let wire = batch.encode();
        prop_assert!(Batch::decode(&wire[..cut.index(wire.len())]).is_err());
        let wire = tail.encode();
        prop_assert!(Tail::decode(&wire[..cut.index(wire.len())]).is_err());
    }
}

#[test]
fn frames_announce_their_length_and_keep_their_limit() {
    let frame = seal_frame(b"payload");
    let (header, payload) = frame.split_first_chunk::<FRAME_HEADER_BYTES>().unwrap();
    assert_eq!(frame_length(header, "frame", 7), Ok(7));
    assert_eq!(open_frame(header, payload, "frame", 7), Ok(()));
    assert!(matches!(frame_length(header, "frame", 6), Err(CodecError::TooLarge { is: 7, limit: 6, .. })));
    assert_eq!(open_frame(header, b"pay1oad", "frame", 7), Err(CodecError::Checksum("frame")));
    assert_eq!(frame_length(&[255; 8], "frame", CONTROL_BYTES_MAX).map_err(|e| e.name()), Err("too_large"));
}

#[test]
fn a_frame_of_a_newer_release_is_skipped_and_its_new_fields_too() {
    let mut newer = 999_u16.to_le_bytes().to_vec();
    newer.extend_from_slice(&[0xa1, 0x00, 0x01]);
    assert_eq!(Control::decode(&newer), Ok(Control::Unknown(999)));
    // An Ack (kind 3) with a field 9 that holds nested things.
    let mut newer = 3_u16.to_le_bytes().to_vec();
    newer.extend_from_slice(&[0xa3, 0x00, 0x01, 0x01, 0x02, 0x09, 0x82, 0xa1, 0x01, 0x02, 0x80]);
    assert_eq!(Control::decode(&newer), Ok(Ack { epoch: 1, hwm: 2, fold: None }.into()));
}

#[test]
fn a_cursor_of_an_older_node_names_no_history() {
    // Applied (kind 7) as it was before it named one: log 1, version 9.
    let mut older = 7_u16.to_le_bytes().to_vec();
    older.extend_from_slice(&[0xa2, 0x00, 0x01, 0x01, 0x09]);
    let expected = Applied { log: 1, version: 9, staged: None, region_epoch: None };
    assert_eq!(Control::decode(&older), Ok(expected.into()));
    let hello =
        Hello { cursors: vec![LogVersion { log: 1, version: 9, region_epoch: None }], ..Hello::default() };
    assert!(!hello.cursor(Log::ALL[0]).is_of_another(3));
    assert_eq!(Control::decode(&Control::from(hello.clone()).encode()), Ok(hello.into()));
}

#[test]
fn a_small_message_cannot_claim_much_memory() {
    // An array of 2^60 records in a tail of 20 bytes.
    let claims = [0xa2, 0x00, 0x01, 0x05, 0x9b, 0x10, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(Tail::decode(&claims).map_err(|e| e.name()), Err("malformed"));
    let mut deep = vec![0xa1, 0x18, 0x63];
    deep.extend(vec![0x81; 60_000]);
    let mut frame = 3_u16.to_le_bytes().to_vec();
    frame.extend(deep);
    assert_eq!(Control::decode(&frame).map_err(|e| e.name()), Err("malformed"));
}

#[test]
fn a_busy_region_says_when_to_come_back() {
    assert_eq!(come_back_ms(&busy_message(1_234)), Some(1_234));
    assert_eq!(come_back_ms(&busy_message(u64::MAX)), Some(60_000), "nobody is sent away for ever");
    for other in ["", "come back in a while", "come back in -1 ms", "in 5 ms or so"] {
        assert_eq!(come_back_ms(other), None, "{other}");
    }
}

#[test]
fn a_header_cannot_announce_more_than_the_limits() {
    let mut batch = Batch { epoch: 1, first_seq: 1, schema: 1, ops: vec![vec![0; BATCH_BYTES_MAX + 1]] };
    let wire = batch.encode();
    assert_eq!(Batch::decode(&wire).map_err(|e| e.name()), Err("too_large"));
    batch.ops = vec![vec![1]];
    batch.first_seq = 0;
    assert_eq!(Batch::decode(&batch.encode()).map_err(|e| e.name()), Err("impossible"));
    batch.first_seq = u64::MAX;
    assert_eq!(BatchHeader::open(&batch.encode()).map(|_| ()).map_err(|e| e.name()), Err("impossible"));
}
