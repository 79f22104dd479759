//! The merchant's own HTTP server, and the caching reverse proxy in front of it.
//!
//! Owns connections to upstreams, their time-outs, what is forwarded and what is not, and the driver of the cache: who
//! looks up, fetches and fills. It refuses to know listeners and sites; whatever accepts a request hands it to
//! [`Proxy::handle`]. Storing and freshness are decided in the cache crate, never here.
//!
//! ```text
//!   Proxy::handle -> cache.look_up -> Hit            -> client
//!                                  -> Miss (permit)  -> a task of its own: Upstream::ask -> permit.store -> body
//!                                  -> Pass (reason)  -> Upstream::ask -> client
//! ```
//!
//! A fetch that fills the cache runs in its own task, so that a client who leaves does not waste it.

mod client;
mod connect;
pub(crate) mod forward;
mod pace;
mod proxy;
mod telemetry;

pub use client::{SetupError, Upstream, UpstreamError};
pub use proxy::{Proxy, ProxyError};
pub use telemetry::{Outcome, ProxyMetrics, Reason, Wait};

#[cfg(test)]
mod tests;
