//! The link as its two users see it: real QUIC over loopback, stores in memory, certificates minted here.

mod calls;
mod identity;
mod logs;
mod operations;
mod world;
