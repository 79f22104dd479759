//! The link between an edge node and its region: drives `souk-replication` over QUIC.
//!
//! Owns: connections, streams, TLS identity, time and randomness of the sync protocol, and the tasks that run them.
//! Refuses to know: what an operation, a record or a call means, and how the two stores keep them. It is the only crate
//! that knows quinn for sync. Called by the edge ([`start_node`]) and by the region ([`start_region`]).
//!
//! The two stores are traits behind an `Arc<dyn …>`; their slow methods return a [`BoxFuture`], so an implementation reads
//! `fn apply(&self, tail: Tail) -> BoxFuture<'_, Result<(), StoreError>> { Box::pin(async move { … }) }`.

mod call;
mod clock;
mod ground;
mod identity;
mod node;
mod peer;
pub mod planted;
mod region;
pub mod relay;
mod status;
mod store;
mod stream;
mod tls;
mod transport;

pub use call::{CALL_BYTES_MAX, Call, CallError, REPLY_BYTES_MAX, Refusal, Reply};
pub use ground::Ground;
pub use identity::{Identity, IdentityError};
pub use node::{Congestion, NodeLink, NodeLinkConfig, RegionAddress, start_node, start_node_on};
pub use peer::{
    PEER_FRAME_BYTES_MAX, PeerConnection, PeerDialer, PeerError, PeerReceiver, PeerSender, PeerStream,
};
pub use region::{ConnectedNode, RegionLink, RegionLinkConfig, start_region, start_region_on};
pub use status::{LinkFault, LinkState, LinkStatus};
pub use store::{BoxFuture, NodeStore, RegionStore, StoreError, TailRead};
pub use tls::{ALPN, Pem, Piece, StartError, TlsFiles};

pub use souk_replication::{
    Batch, Cursor, EpochNo, Fold, Heads, Hello, Log, Mark, Node, NodeState, OutboxPosition, Part, Record,
    RowsDigest, Seq, SnapshotPage, Staging, Tail, Term, limits,
};
