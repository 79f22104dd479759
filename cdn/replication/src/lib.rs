//! The sync protocol between an edge node and its region, as pure state machines.
//!
//! Owns: the wire format ([`wire`]), the two ends of one connection ([`NodeSession`], [`RegionSession`]) and every rule
//! about order, acknowledgement, credit, epochs and cursors. Refuses to know: sockets, QUIC, clocks, randomness, files and
//! what an operation or a record means. Time comes in as `now_ms` of any monotonic clock; work to do comes out as outputs.
//! Called by `souk-link`, which drives it over quinn, and by the simulation (`sim`, in this crate's tests), which drives it over
//! a hostile channel.
//!
//! The methods of a session sort by their verb, as in quinn-proto: `handle` takes an input in, `poll_output` gives one
//! action out (call it until it says `None` after each input), `next_deadline` says when to call `handle` with
//! [`NodeInput::Tick`] or [`RegionInput::Tick`] at the latest, and the rest are getters.
//!
//! ```text
//!   node outbox --ReadOps--> NodeSession ==batches==> RegionSession --Apply--> region store
//!                 trim <---- (control)   <== Ack ===                <-Applied-
//!   node store <--Apply----- NodeSession <==tails==== RegionSession <--Tail--- region logs
//!                                        == Applied =>
//! ```

pub mod escrow;
mod fold;
pub mod limits;
mod log;
mod node;
mod planted;
mod region;
mod rows;
#[cfg(test)]
mod sim;
mod term;
pub mod wire;

pub use fold::Fold;
pub use log::{Cursor, Heads, Log, Part, Record, Staging, Tail};
pub use node::{NodeFacts, NodeFault, NodeInput, NodeOutput, NodeSession, OutboxPosition};
pub use region::{
    Admission, Admit, EpochDecision, Gone, Mark, NodeState, RegionFacts, RegionFault, RegionInput,
    RegionOutput, RegionSession, SnapshotPage, decide_epoch, reckon,
};
pub use rows::RowsDigest;
pub use term::{FIRST_TERM, Term, is_replaced};
pub use wire::{
    Ack, Applied, Batch, CodecError, Control, Credit, Hello, Pulse, Reject, RejectReason, Resend, Rewind,
    Welcome,
};

/// Place of an operation in a node's outbox, counted 1, 2, 3… within one epoch.
pub type Seq = u64;
/// Number of a node, as its certificate says it.
pub type Node = u32;
/// Number of a node's epoch: minted by the region, never reused.
pub type EpochNo = u32;
