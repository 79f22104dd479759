//! The link as its two users see it: real QUIC over loopback, stores in memory, certificates minted here.

#![expect(clippy::unwrap_used, reason = "a test says what it expects by unwrapping")]

mod admission;
mod calls;
mod identity;
mod logs;
mod operations;
mod peers;
mod world;
