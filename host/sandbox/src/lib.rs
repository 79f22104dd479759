//! Runs code that merchants wrote and nobody here has read. The only crate that knows wasmtime.
//!
//! Two engines, because two kinds of guest want different things of one:
//!
//! * [`HookEngine`] runs **hook plugins**: typed commerce functions of `souk:plugin` (`sdk/wit`) that import no
//!   WASI, so that the same input gives the same output on every machine. Calls are synchronous, on the caller's
//!   thread, with a fresh instance per call. [`Chain`] is what the node and the region use: a site's releases in
//!   order, with budgets, breakers, metrics and the price guard.
//! * [`http::HttpEngine`] runs **HTTP plugins**: any `wasi:http` component, 0.2 or 0.3, asynchronous, with a fresh
//!   instance per request or, where a release asks for it, one that serves several.
//!
//! What this crate refuses to know: listening sockets (the only ones it opens are of requests that an HTTP plugin sends
//! to a granted host), storage, sites' routes, who the shopper is. A guest sees what a
//! [`Call`] or an HTTP request carries, and what [`SiteData`] answers.
//!
//! Invariants, each of which has a hostile guest in `tests/`:
//! * no guest runs without a deadline, a memory limit, a stack limit and a host-call budget;
//! * a hook's store is used for one call, whatever its outcome; an HTTP plugin's never again after a fault;
//! * every value that comes out of a guest is checked before anything uses it;
//! * every way to fail has a name ([`Fault`], [`http::HttpFault`], [`Refused`]).
//!
//! Reading order: [`limits`], [`fault`], [`admit`] (what may be loaded), [`loader`] (from bytes to a plugin), [`hook`] (one call of one plugin),
//! [`chain`] (a site's plugins together), [`account`] (what a chain tells of itself), [`share`] (whose turn it is),
//! [`metrics`], [`http`].

pub mod account;
pub mod admit;
pub mod chain;
pub mod fault;
pub mod hook;
pub mod http;
pub mod limits;
pub mod loader;
pub mod metered;
pub mod metrics;
pub mod profile;
pub mod record;
pub mod scribe;
pub mod share;

mod artefact;
mod breaker;
mod ledger;
mod ticker;
mod unhurried;

pub use chain::{
    CartOp, Chain, Note, Presented, PresentedProduct, Requested, Reviewed, StopKind, Stopped, Unpriced,
};
pub use fault::{Complaint, EngineError, Fault, Refused};
pub use hook::{Call, HookEngine, HookPlugin, Level, SiteData};
pub use limits::HookLimits;
pub use loader::{CompileLimits, Compiler, Confinement, LoadError, Loader, LoaderMetrics, LoaderSettings};
pub use metrics::Metrics;
pub use share::{Crowded, Share, ShareLimits, ShareMetrics, Task};
pub use unhurried::unhurried;
