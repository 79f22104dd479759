//! The wire format of `souk-sync/1`: what each kind of stream carries, as bytes.
//!
//! Owns: encoding, decoding and every size check. Refuses to know: what the frames make a session do. Decoding garbage gives
//! a [`CodecError`] and never allocates more than a small multiple of the bytes at hand.
//!
//! Everything that can grow is a CBOR map with numbered fields: a decoder skips fields that it does not know and gives
//! defaults to fields that are not there, so that a node and a region one release apart understand each other.

mod batch;
mod control;
mod error;
mod frame;
mod tail;

pub use batch::{Batch, BatchHeader, Encoding};
pub use control::{
    Ack, Applied, Control, Credit, Hello, LogVersion, Pulse, Reject, RejectReason, Resend, Rewind, Staged,
    StagedLog, Welcome, busy_message, come_back_ms, feature,
};
pub use error::CodecError;
pub use frame::{FRAME_HEADER_BYTES, frame_length, open_frame, seal_frame};
