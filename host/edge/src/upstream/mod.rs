//! The merchant's own HTTP server, and the caching reverse proxy in front of it.
//!
//! Owns connections to upstreams, their time-outs, what is forwarded and what is not, and the driver of the cache: who
//! looks up, fetches and fills. It refuses to know listeners and what else a site has; whatever accepts a request hands it to
//! [`Proxy::handle`], or asks [`crate::routes`] which of a node's proxies it is for. Storing and freshness are decided in the cache
//! crate, never here.
//!
//! ```text
//!   Proxy::handle -> cache.look_up -> Hit            -> client
//!                                  -> Miss (permit)  -> a task of its own: Upstream::ask -> permit.store -> body
//!                                  -> Pass (reason)  -> Upstream::ask -> client
//! ```
//!
//! A fetch that fills the cache ([`fill`]) runs in its own task, so that a client who leaves does not waste it; [`pass`] is the
//! way of what is not stored, [`kept`] what all upstreams of a process share, [`sliced`] puts large answers together of slices.
//!
//! `Upstream::ask` may try several servers. What decides is pure and has no clock: [`balance`] (which server), [`health`]
//! (whether it may be asked), [`roster`] (both together), [`retry`] and [`budget`] (whether once more). What acts is
//! [`client`] (the order of tries), [`attempt`] (one try), [`pool`] (connections), [`resolve`] and [`check`] (behind them).
//! [`shield`] stands before all of it: nodes of one place fetch through the one that [`rendezvous`] names, and [`mend`] ends
//! what one of them broke off.

mod at_hand;
mod attempt;
mod balance;
mod budget;
mod check;
mod client;
mod connect;
mod disk;
mod error;
pub(crate) mod explain;
mod fill;
mod fleet;
pub(crate) mod forward;
pub(crate) mod forwarded;
mod health;
mod kept;
mod mend;
mod pace;
mod pass;
mod pool;
pub(crate) mod pour;
mod press;
mod proxy;
mod rendezvous;
mod resolve;
mod retry;
mod roster;
mod setup;
mod shield;
mod sliced;
pub(crate) mod spent;
mod telemetry;
mod waits;

pub use client::{Tries, Upstream};
pub use error::{SetupError, UpstreamError};
pub use kept::ProxyError;
pub(crate) use kept::{Kept, Room};
pub(crate) use pool::H2_STREAM_WINDOW_BYTES as STREAM_WINDOW_BYTES;
pub use proxy::Proxy;
pub(crate) use shield::{Decline, OfPeer, Place, PurgeMark, Question, Shield};
pub use telemetry::{
    Encoding, OfServer, Outcome, PeerName, PressMetrics, ProxyMetrics, Reason, ServerMetrics, ServerOutcome,
    ServerProtocol, ServerReason, ServerState, Wait,
};

#[cfg(test)]
mod tests;
