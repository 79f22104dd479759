//! Frames of the control stream, in both directions.
//!
//! A payload is `kind u16 little-endian | CBOR map`. A kind that this build does not know decodes to [`Control::Unknown`],
//! and sessions skip it: a newer peer may say more than we understand.

use minicbor::{Decode, Encode, bytes::ByteVec};

use crate::{
    Cursor, EpochNo, Fold, Heads, Log, Node, Seq, Staging, Term,
    limits::{CONTROL_BYTES_MAX, RESUME_BYTES_MAX},
};

use super::CodecError;

/// What a peer can do beyond the first release: a bit each. Nobody uses what the other side has not named, and unknown bits are
/// somebody's future.
pub mod feature {
    /// Reads batches that are compressed with Zstandard.
    pub const ZSTD: u64 = 1;
    /// All that this build knows.
    pub const OURS: u64 = ZSTD;
}

/// First frame of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct Hello {
    /// Who the node says it is; must be what its certificate says.
    #[n(0)]
    pub node: Node,
    /// The epoch that the node's outbox is in, if it has one.
    #[n(1)]
    pub epoch: Option<EpochNo>,
    /// The last operation that the node has accepted in that epoch; 0 when none.
    #[n(2)]
    pub last_seq: Seq,
    /// The oldest operation that it still holds; `last_seq + 1` when it holds none.
    #[n(3)]
    pub min_retained_seq: Seq,
    /// How far it has applied each log.
    #[n(4)]
    pub cursors: Vec<LogVersion>,
    /// Schemas of operations that it writes.
    #[n(5)]
    pub schemas: Vec<u16>,
    /// Its software and version, for people.
    #[n(6)]
    pub software: String,
    /// Its point of presence, for people and the console.
    #[n(7)]
    #[cbor(default)]
    pub pop: String,
    /// The node has found that its operations up to the region's mark are others than the region's ([`Welcome::fold`]): it
    /// needs a new epoch, whatever the numbers say.
    #[n(8)]
    #[cbor(default)]
    pub diverged: bool,
    /// What it can do beyond the first release, see [`feature`].
    #[n(9)]
    #[cbor(default)]
    pub features: u64,
    /// Snapshots that were interrupted, to go on with. Older regions begin them anew.
    #[n(10)]
    #[cbor(default)]
    pub stagings: Vec<StagedLog>,
    /// The greatest term of its region that it has met ([`crate::Term`]): a home of a lower one rejects it, and asks
    /// whoever knows whether it was replaced. 0: none that said so.
    #[n(11)]
    #[cbor(default)]
    pub term: Term,
}

/// A snapshot that was interrupted: [`Staging`] on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct StagedLog {
    /// [`Log::code`].
    #[n(0)]
    pub log: u8,
    /// Version of the snapshot.
    #[n(1)]
    pub version: u64,
    /// Parts staged, from index 0.
    #[n(2)]
    pub parts: u32,
    /// The history that `version` counts.
    #[n(3)]
    pub region_epoch: u32,
    /// Where the next part starts, in words of the region's store.
    #[n(4)]
    pub next: ByteVec,
}

impl From<&Staging> for StagedLog {
    fn from(staging: &Staging) -> Self {
        let Staging { log, version, parts, region_epoch, next } = staging;
        Self {
            log: log.code(),
            version: *version,
            parts: *parts,
            region_epoch: *region_epoch,
            next: next.clone().into(),
        }
    }
}

impl Hello {
    /// The snapshot of this log that the node would go on with. A place too long to be ours is none.
    #[must_use]
    pub fn staging(&self, log: Log) -> Option<Staging> {
        let told = self.stagings.iter().rfind(|told| told.log == log.code())?;
        let &StagedLog { version, parts, region_epoch, .. } = told;
        let next = told.next.to_vec();
        (next.len() <= RESUME_BYTES_MAX).then_some(Staging { log, version, parts, region_epoch, next })
    }

    /// The node's cursor in this log.
    #[must_use]
    pub fn cursor(&self, log: Log) -> Cursor {
        let told = self.cursors.iter().rfind(|told| told.log == log.code());
        told.map_or(Cursor { log, version: 0, region_epoch: None }, |told| Cursor {
            log,
            version: told.version,
            region_epoch: told.region_epoch,
        })
    }
}

/// A log and a version of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct LogVersion {
    /// [`Log::code`]; may be a log that this build does not know.
    #[n(0)]
    pub log: u8,
    /// The version.
    #[n(1)]
    pub version: u64,
    /// In Hello: [`Cursor::region_epoch`]. Older nodes do not send it.
    #[n(2)]
    pub region_epoch: Option<u32>,
}

impl LogVersion {
    /// Versions of all logs, for the wire.
    #[must_use]
    pub fn list(heads: &Heads) -> Vec<Self> {
        heads.iter().map(|(log, version)| Self { log: log.code(), version, region_epoch: None }).collect()
    }
}

impl From<&Cursor> for LogVersion {
    fn from(cursor: &Cursor) -> Self {
        Self { log: cursor.log.code(), version: cursor.version, region_epoch: cursor.region_epoch }
    }
}

fn known(list: &[LogVersion]) -> Heads {
    list.iter().filter_map(|entry| Some((Log::from_code(entry.log)?, entry.version))).collect()
}

/// The region's answer to [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
#[cbor(map)]
pub struct Welcome {
    /// Name of the region.
    #[n(0)]
    pub region: String,
    /// The number of this history of the logs: another one when the region was restored, rebuilt or failed over. A node keeps
    /// it beside its cursors, because a version of one history says nothing about another.
    #[n(1)]
    pub region_epoch: u32,
    /// The epoch to send in. Differs from the one in Hello: the node begins it before it sends anything.
    #[n(2)]
    pub epoch: EpochNo,
    /// Operations of `epoch` that the region has committed: everything up to here.
    #[n(3)]
    pub hwm: Seq,
    /// First credit.
    #[n(4)]
    pub credit_ops: u32,
    /// First credit.
    #[n(5)]
    pub credit_bytes: u32,
    /// Newest version of each log.
    #[n(6)]
    pub heads: Vec<LogVersion>,
    /// Logs of which the node has another history or is ahead of the region (the region was restored): a snapshot may turn
    /// these back.
    #[n(7)]
    #[cbor(default)]
    pub resets: Vec<u8>,
    /// Its software and version, for people.
    #[n(8)]
    #[cbor(default)]
    pub software: String,
    /// What the operations up to `hwm` fold to; the node compares it with its own. Older regions do not say.
    #[n(9)]
    pub fold: Option<Fold>,
    /// Schemas of operations that it reads; none: it does not say, and reads whatever this protocol has carried so far.
    #[n(10)]
    #[cbor(default)]
    pub schemas: Vec<u16>,
    /// What it can do beyond the first release, see [`feature`].
    #[n(11)]
    #[cbor(default)]
    pub features: u64,
    /// Which home of the region this is ([`crate::Term`]). A node goes to none of a lower one than it has met.
    #[n(12)]
    #[cbor(default)]
    pub term: Term,
}

impl Welcome {
    /// The heads of the logs that this build knows.
    #[must_use]
    pub fn known_heads(&self) -> Heads {
        known(&self.heads)
    }
}

/// Everything up to `hwm` is committed at the region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Ack {
    /// In which epoch.
    #[n(0)]
    pub epoch: EpochNo,
    /// Up to where.
    #[n(1)]
    pub hwm: Seq,
    /// What the operations up to there fold to; the node keeps it beside what it trims. Older regions do not say.
    #[n(2)]
    pub fold: Option<Fold>,
}

/// How much a node may have sent that is not committed. Absolute, not additive: a repeated frame changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Credit {
    /// Operations; 0 pauses the node.
    #[n(0)]
    pub ops: u32,
    /// Bytes.
    #[n(1)]
    pub bytes: u32,
}

/// The region has batches and is still committing: the link is well, do not redial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Pulse {
    /// What is committed so far.
    #[n(0)]
    pub hwm: Seq,
}

/// There is a gap: send again from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Resend {
    /// In which epoch.
    #[n(0)]
    pub epoch: EpochNo,
    /// First operation wanted.
    #[n(1)]
    pub from: Seq,
}

/// Node to region: the log is applied durably to here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Applied {
    /// Which log, [`Log::code`].
    #[n(0)]
    pub log: u8,
    /// The cursor.
    #[n(1)]
    pub version: u64,
    /// How much of a snapshot is staged and not yet swapped in.
    #[n(2)]
    pub staged: Option<Staged>,
    /// The history that `version` counts, see [`Cursor::region_epoch`]. Older nodes do not send it.
    #[n(3)]
    pub region_epoch: Option<u32>,
}

/// A snapshot on its way in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Staged {
    /// Version of the snapshot.
    #[n(0)]
    pub version: u64,
    /// Parts staged, from index 0.
    #[n(1)]
    pub parts: u32,
}

/// Node to region: what came does not continue what I have; send this log again from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Rewind {
    /// Which log, [`Log::code`].
    #[n(0)]
    pub log: u8,
    /// The cursor.
    #[n(1)]
    pub version: u64,
}

/// The region will not serve this connection.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Reject {
    /// [`RejectReason::code`].
    #[n(0)]
    pub reason: u16,
    /// For people.
    #[n(1)]
    pub message: String,
}

/// Why a region rejects a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RejectReason {
    /// Hello names another node than the certificate.
    WrongNode,
    /// A newer connection of the same node took over.
    Superseded,
    /// Too many nodes.
    Full,
    /// The peer broke the protocol.
    Protocol,
    /// The region's store does not answer; try later.
    Unavailable,
    /// The region is going away; reconnect.
    Shutdown,
    /// The node writes operations in schemas that the region does not read.
    Schema,
    /// Too many nodes come at once; the message says when to come back.
    Busy,
    /// It follows the region's home, and is not the home.
    Standby,
    /// Another home has replaced it: the node has met one of a greater term.
    Replaced,
    /// A reason of a newer release.
    Other(u16),
}

/// Longest pause that a node takes from its region: who says more is wrong, or not a region.
const COME_BACK_MS_MAX: u64 = 60_000;

/// The words of a [`RejectReason::Busy`]: for people, and for [`come_back_ms`].
#[must_use]
pub fn busy_message(ms: u64) -> String {
    format!("too many nodes come at once; come back in {ms} ms")
}

/// When the words of a [`RejectReason::Busy`] say to come back.
#[must_use]
pub fn come_back_ms(message: &str) -> Option<u64> {
    let (_, rest) = message.rsplit_once(" in ")?;
    rest.strip_suffix(" ms")?.parse().ok().map(|ms: u64| ms.min(COME_BACK_MS_MAX))
}

impl RejectReason {
    /// Number on the wire.
    #[must_use]
    pub const fn code(self) -> u16 {
        match self {
            Self::WrongNode => 1,
            Self::Superseded => 2,
            Self::Full => 3,
            Self::Protocol => 4,
            Self::Unavailable => 5,
            Self::Shutdown => 6,
            Self::Schema => 7,
            Self::Busy => 8,
            Self::Standby => 9,
            Self::Replaced => 10,
            Self::Other(code) => code,
        }
    }

    /// The reason with this number.
    #[must_use]
    pub const fn from_code(code: u16) -> Self {
        match code {
            1 => Self::WrongNode,
            2 => Self::Superseded,
            3 => Self::Full,
            4 => Self::Protocol,
            5 => Self::Unavailable,
            6 => Self::Shutdown,
            7 => Self::Schema,
            8 => Self::Busy,
            9 => Self::Standby,
            10 => Self::Replaced,
            other => Self::Other(other),
        }
    }

    /// Stable name for logs and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::WrongNode => "wrong_node",
            Self::Superseded => "superseded",
            Self::Full => "full",
            Self::Protocol => "protocol",
            Self::Unavailable => "unavailable",
            Self::Shutdown => "shutdown",
            Self::Schema => "schema",
            Self::Busy => "busy",
            Self::Standby => "standby",
            Self::Replaced => "replaced",
            Self::Other(_) => "other",
        }
    }
}

macro_rules! control {
    ($($kind:literal $name:ident),+ $(,)?) => {
        /// One frame of the control stream.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Control {
            $(#[doc = concat!("Kind ", stringify!($kind), ".")] $name($name),)+
            /// A kind of a newer release; skipped.
            Unknown(u16),
        }

        impl Control {
            /// Encodes the payload of a frame (see [`super::seal_frame`]).
            ///
            /// # Panics
            /// Never: encoding into memory cannot fail.
            #[must_use]
            pub fn encode(&self) -> Vec<u8> {
                let (kind, body): (u16, Vec<u8>) = match self {
                    $(Self::$name(frame) => {
                        ($kind, minicbor::to_vec(frame).expect("encoding into a Vec cannot fail"))
                    })+
                    Self::Unknown(kind) => (*kind, minicbor::to_vec(()).expect("encoding into a Vec cannot fail")),
                };
                let mut payload = Vec::with_capacity(body.len().saturating_add(2));
                payload.extend_from_slice(&kind.to_le_bytes());
                payload.extend_from_slice(&body);
                payload
            }

            /// Decodes the payload of a frame.
            pub fn decode(payload: &[u8]) -> Result<Self, CodecError> {
                if payload.len() > CONTROL_BYTES_MAX {
                    return Err(CodecError::TooLarge {
                        what: "control frame", is: payload.len() as u64, limit: CONTROL_BYTES_MAX,
                    });
                }
                let Some((kind, body)) = payload.split_first_chunk::<2>() else {
                    return Err(CodecError::Truncated { have: payload.len(), need: 2 });
                };
                match u16::from_le_bytes(*kind) {
                    $($kind => minicbor::decode(body)
                        .map(Self::$name)
                        .map_err(|e| CodecError::malformed(stringify!($name), &e)),)+
                    other => Ok(Self::Unknown(other)),
                }
            }
        }

        $(impl From<$name> for Control {
            fn from(frame: $name) -> Self {
                Self::$name(frame)
            }
        })+
    };
}

control! {
    1 Hello, 2 Welcome, 3 Ack, 4 Credit, 5 Pulse, 6 Resend, 7 Applied, 8 Rewind, 9 Reject,
}
