//! One release older or newer: what the other side does not say yet, and what it says that we do not know.
//!
//! The frames of the release before are built by hand here, and so are its readers: they must not change with ours.

use minicbor::{Decode, Encode, Encoder};
use souk_replication::{
    Batch, Control, Fold, Heads, Hello, Log, Mark, NodeFacts, NodeFault, NodeInput, NodeOutput, NodeSession,
    NodeState, OutboxPosition, RegionFacts, RegionFault, RegionInput, RegionOutput, RegionSession,
    RejectReason, wire::feature,
};

/// Hello, Welcome and Ack as the release before reads and writes them.
mod older {
    use super::{Decode, Encode};

    #[derive(Debug, PartialEq, Encode, Decode)]
    #[cbor(map)]
    pub(crate) struct LogVersion {
        #[n(0)]
        pub(crate) log: u8,
        #[n(1)]
        pub(crate) version: u64,
        #[n(2)]
        pub(crate) region_epoch: Option<u32>,
    }

    #[derive(Debug, PartialEq, Encode, Decode)]
    #[cbor(map)]
    pub(crate) struct Hello {
        #[n(0)]
        pub(crate) node: u32,
        #[n(1)]
        pub(crate) epoch: Option<u32>,
        #[n(2)]
        pub(crate) last_seq: u64,
        #[n(3)]
        pub(crate) min_retained_seq: u64,
        #[n(4)]
        pub(crate) cursors: Vec<LogVersion>,
        #[n(5)]
        pub(crate) schemas: Vec<u16>,
        #[n(6)]
        pub(crate) software: String,
        #[n(7)]
        #[cbor(default)]
        pub(crate) pop: String,
    }

    #[derive(Debug, PartialEq, Encode, Decode)]
    #[cbor(map)]
    pub(crate) struct Welcome {
        #[n(0)]
        pub(crate) region: String,
        #[n(1)]
        pub(crate) region_epoch: u32,
        #[n(2)]
        pub(crate) epoch: u32,
        #[n(3)]
        pub(crate) hwm: u64,
        #[n(4)]
        pub(crate) credit_ops: u32,
        #[n(5)]
        pub(crate) credit_bytes: u32,
        #[n(6)]
        pub(crate) heads: Vec<LogVersion>,
        #[n(7)]
        #[cbor(default)]
        pub(crate) resets: Vec<u8>,
        #[n(8)]
        #[cbor(default)]
        pub(crate) software: String,
    }

    #[derive(Debug, PartialEq, Encode, Decode)]
    #[cbor(map)]
    pub(crate) struct Ack {
        #[n(0)]
        pub(crate) epoch: u32,
        #[n(1)]
        pub(crate) hwm: u64,
    }
}

const HELLO: u16 = 1;
const WELCOME: u16 = 2;
const ACK: u16 = 3;

/// A frame of the release before, as ours reads it.
fn from_older(kind: u16, frame: &impl Encode<()>) -> Control {
    let mut payload = kind.to_le_bytes().to_vec();
    minicbor::encode(frame, &mut payload).expect("encoding into a Vec cannot fail");
    Control::decode(&payload).expect("ours reads what the release before wrote")
}

/// A frame of ours, as the release before reads it.
fn to_older<T: for<'b> Decode<'b, ()>>(kind: u16, frame: &Control) -> T {
    let payload = frame.encode();
    let (of_kind, body) = payload.split_first_chunk::<2>().expect("a kind");
    assert_eq!(u16::from_le_bytes(*of_kind), kind);
    minicbor::decode(body).expect("the release before reads what ours writes")
}

fn region_of(schemas: &[u16]) -> RegionSession {
    let facts = RegionFacts {
        region: "eu".to_owned(),
        region_epoch: 4,
        software: "this".to_owned(),
        schemas: schemas.to_vec(),
        ..RegionFacts::default()
    };
    RegionSession::new(7, facts, Heads::from_iter([(Log::Price, 5)]), 0)
}

fn outputs(session: &mut RegionSession) -> Vec<RegionOutput> {
    std::iter::from_fn(|| session.poll_output()).collect()
}

fn wishes(session: &mut NodeSession) -> Vec<NodeOutput> {
    std::iter::from_fn(|| session.poll_output()).collect()
}

fn control(outputs: &[RegionOutput]) -> &Control {
    let mut frames = outputs.iter().filter_map(|output| match output {
        RegionOutput::Control(frame) => Some(frame),
        _ => None,
    });
    frames.next().expect("a frame")
}

fn older_hello() -> older::Hello {
    older::Hello {
        node: 7,
        epoch: Some(3),
        last_seq: 90,
        min_retained_seq: 41,
        cursors: vec![older::LogVersion { log: Log::Price.code(), version: 5, region_epoch: Some(4) }],
        schemas: vec![1],
        software: "older".to_owned(),
        pop: "lon".to_owned(),
    }
}

#[test]
fn a_node_one_release_older_syncs_with_this_region() {
    let mut region = region_of(&[1]);
    region.handle(RegionInput::Control(from_older(HELLO, &older_hello())), 0);
    assert!(matches!(&outputs(&mut region)[..], [RegionOutput::LoadNode(_)]));
    let known = NodeState { epoch: 3, hwm: 40, fold: Some(Fold::from_number(77)) };
    region.handle(RegionInput::NodeLoaded(Some(known)), 0);
    let welcome: older::Welcome = to_older(WELCOME, control(&outputs(&mut region)));
    assert_eq!((welcome.region_epoch, welcome.epoch, welcome.hwm), (4, 3, 40));
    assert_eq!((welcome.region.as_str(), welcome.resets), ("eu", vec![]));

    let batch = Batch { epoch: 3, first_seq: 41, schema: 1, ops: vec![b"an operation".to_vec()] };
    region.handle(RegionInput::Batch(Batch::decode(&batch.encode()).unwrap()), 1);
    assert_eq!(outputs(&mut region), [RegionOutput::Apply(batch)]);
    region.handle(RegionInput::Applied(Mark { hwm: 41, fold: Some(Fold::from_number(78)) }), 2);
    let ack: older::Ack = to_older(ACK, control(&outputs(&mut region)));
    assert_eq!(ack, older::Ack { epoch: 3, hwm: 41 });
}

fn node_of(schemas: &[u16]) -> (NodeSession, Control) {
    let facts = NodeFacts {
        node: 7,
        pop: "lon".to_owned(),
        software: "this".to_owned(),
        schemas: schemas.to_vec(),
        ..NodeFacts::default()
    };
    let anchor = Some(Fold::from_number(5));
    let acked = Mark { hwm: 30, fold: anchor };
    let outbox = OutboxPosition { epoch: Some(3), first: 31, last: 90, anchor, acked };
    let mut node = NodeSession::new(&facts, outbox, false, &[], &[], 0);
    match wishes(&mut node).pop() {
        Some(NodeOutput::Control(hello)) => (node, hello),
        other => panic!("Hello comes first, not {other:?}"),
    }
}

fn older_welcome() -> older::Welcome {
    older::Welcome {
        region: "eu".to_owned(),
        region_epoch: 4,
        epoch: 3,
        hwm: 40,
        credit_ops: 1_000,
        credit_bytes: 100_000,
        heads: vec![],
        resets: vec![],
        software: "older".to_owned(),
    }
}

#[test]
fn this_node_syncs_with_a_region_one_release_older() {
    let (mut node, hello) = node_of(&[1]);
    let hello: older::Hello = to_older(HELLO, &hello);
    assert_eq!((hello.node, hello.epoch, hello.last_seq, hello.min_retained_seq), (7, Some(3), 90, 31));

    node.handle(NodeInput::Control(from_older(WELCOME, &older_welcome())), 1);
    let done = wishes(&mut node);
    assert!(done.contains(&NodeOutput::Trim { epoch: 3, to: 40, fold: None }), "{done:?}");
    assert!(node.is_open() && node.features() == 0, "it has not said that it reads compressed batches");
    assert!(matches!(done.last(), Some(NodeOutput::ReadOps { from: 41, .. })), "{done:?}");
    node.handle(NodeInput::Ops { from: 41, ops: vec![b"an operation".to_vec()] }, 2);
    let sent = wishes(&mut node);
    assert!(
        matches!(&sent[..], [NodeOutput::Batch(batch), ..] if (batch.first_seq, batch.schema) == (41, 1))
    );
    node.handle(NodeInput::Control(from_older(ACK, &older::Ack { epoch: 3, hwm: 41 })), 3);
    assert!(wishes(&mut node).contains(&NodeOutput::Trim { epoch: 3, to: 41, fold: None }));
}

#[test]
fn what_a_newer_peer_adds_is_skipped_and_the_schema_that_both_know_is_taken() {
    // Hello with a field 40 that holds nested things, a feature bit and a log of the future.
    let mut payload = HELLO.to_le_bytes().to_vec();
    let mut e = Encoder::new(&mut payload);
    e.map(8).unwrap();
    e.u8(0).unwrap().u32(7).unwrap();
    e.u8(2).unwrap().u64(0).unwrap();
    e.u8(3).unwrap().u64(1).unwrap();
    e.u8(4)
        .unwrap()
        .array(1)
        .unwrap()
        .map(2)
        .unwrap()
        .u8(0)
        .unwrap()
        .u8(99)
        .unwrap()
        .u8(1)
        .unwrap()
        .u8(3)
        .unwrap();
    e.u8(5).unwrap().array(2).unwrap().u16(2).unwrap().u16(1).unwrap();
    e.u8(6).unwrap().str("newer").unwrap();
    e.u8(9).unwrap().u64(1 << 63 | feature::ZSTD).unwrap();
    e.u8(40).unwrap().array(1).unwrap().map(1).unwrap().str("deep").unwrap().null().unwrap();
    let mut region = region_of(&[1]);
    region.handle(RegionInput::Control(Control::decode(&payload).unwrap()), 0);
    region.handle(RegionInput::NodeLoaded(None), 0);
    region.handle(RegionInput::EpochBegun(1), 0);
    region.handle(RegionInput::Control(Control::Unknown(999)), 0);
    let said = outputs(&mut region);
    let Some(Control::Welcome(welcome)) = said.iter().find_map(|output| match output {
        RegionOutput::Control(frame) => Some(frame),
        _ => None,
    }) else {
        panic!("no Welcome in {said:?}")
    };
    assert_eq!((welcome.schemas.as_slice(), welcome.features), (&[1][..], feature::OURS));

    // And a node that would rather write schema 2 writes what this region reads.
    let (mut node, _) = node_of(&[2, 1]);
    let welcome = souk_replication::Welcome {
        fold: None,
        epoch: 3,
        hwm: 40,
        credit_ops: 9,
        credit_bytes: 99,
        ..welcome.clone()
    };
    node.handle(NodeInput::Control(welcome.into()), 1);
    wishes(&mut node);
    node.handle(NodeInput::Ops { from: 41, ops: vec![b"an operation".to_vec()] }, 2);
    assert!(matches!(&wishes(&mut node)[..], [NodeOutput::Batch(batch), ..] if batch.schema == 1));
    assert_eq!(node.features() & feature::ZSTD, feature::ZSTD);
}

#[test]
fn a_node_that_writes_what_the_region_cannot_read_is_told_what_to_do() {
    let mut region = region_of(&[1]);
    let hello = Hello { node: 7, min_retained_seq: 1, schemas: vec![2], ..Hello::default() };
    region.handle(RegionInput::Control(hello.into()), 0);
    let said = outputs(&mut region);
    let Control::Reject(reject) = control(&said) else { panic!("{said:?}") };
    assert_eq!(RejectReason::from_code(reject.reason), RejectReason::Schema);
    assert!(reject.message.contains("upgrade the region first"), "{}", reject.message);
    assert!(matches!(said.last(), Some(RegionOutput::Fault(RegionFault::Schema { .. }))));
}

#[test]
fn a_schema_that_was_not_greeted_is_refused_rather_than_buried() {
    let mut region = region_of(&[1]);
    region.handle(RegionInput::Control(from_older(HELLO, &older_hello())), 0);
    region.handle(RegionInput::NodeLoaded(Some(NodeState { epoch: 3, hwm: 40, fold: None })), 0);
    outputs(&mut region);
    let batch = Batch { epoch: 3, first_seq: 41, schema: 2, ops: vec![b"of the future".to_vec()] };
    region.handle(RegionInput::Batch(batch), 1);
    let said = outputs(&mut region);
    assert!(!said.iter().any(|output| matches!(output, RegionOutput::Apply(_))));
    assert!(matches!(said.last(), Some(RegionOutput::Fault(RegionFault::Schema { .. }))));
}

#[test]
fn a_node_that_has_met_a_later_home_is_rejected_and_told_why() {
    let mut region = region_of(&[1]);
    let hello = Hello { node: 7, min_retained_seq: 1, term: 2, ..Hello::default() };
    region.handle(RegionInput::Control(hello.into()), 0);
    let said = outputs(&mut region);
    let Some(RegionOutput::Control(Control::Reject(reject))) = said.first() else { panic!("{said:?}") };
    assert_eq!(RejectReason::from_code(reject.reason), RejectReason::Replaced);
    assert!(reject.message.contains("term 2"), "{}", reject.message);
    assert!(
        matches!(said.last(), Some(RegionOutput::Fault(RegionFault::Replaced { own: 0, met: 2 }))),
        "{said:?}"
    );
}

#[test]
fn a_node_does_not_go_back_to_a_home_that_was_replaced() {
    let welcome = |term| souk_replication::Welcome { term, epoch: 3, hwm: 40, ..Default::default() };
    let met = |term| {
        let facts = NodeFacts { node: 7, schemas: vec![1], term, ..NodeFacts::default() };
        let acked = Mark { hwm: 30, fold: None };
        let outbox = OutboxPosition { epoch: Some(3), first: 31, last: 90, anchor: None, acked };
        NodeSession::new(&facts, outbox, false, &[], &[], 0)
    };
    for (has_met, says, is_refused) in
        [(2, 1, true), (2, 0, true), (2, 2, false), (2, 3, false), (0, 5, false), (1, 0, false)]
    {
        let mut node = met(has_met);
        node.handle(NodeInput::Control(welcome(says).into()), 1);
        let refused = wishes(&mut node)
            .iter()
            .any(|wish| matches!(wish, NodeOutput::Fault(NodeFault::Replaced { .. })));
        assert_eq!((refused, node.is_open()), (is_refused, !is_refused), "met {has_met}, told {says}");
    }
}
