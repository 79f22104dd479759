//! The cache of a node: RFC 9111 decisions, storage of responses, and streaming single flight.
//!
//! It owns the answer to three questions: may this stored response be sent, may this response be stored, and who
//! fetches what is missing. It refuses to know sockets, clients of upstreams and clocks (`now_ms`, milliseconds
//! since 1970, is an argument everywhere) and it never decides by file extension or cookie name. Files are known to
//! [`disk`] alone, on threads of its own; how long that is waited for is the one timer here. The edge crate calls it.
//!
//! ```text
//!   request -> Asked ──look_up──> Hit(hit)            hit.respond() ──> 200 / 206 / 304
//!                                 Stale(hit, permit)  the same now, and the permit refreshes behind it
//!                                 Miss(permit)        permit.store(response) ──> FillWriter ──> joiners and shelf
//!                                 Pass(reason)        uncached, and it says why
//!                                 Failed(failure)     the fill that this request waited for failed
//! ```
//!
//! Only the holder of a [`FillPermit`] can store; there is no phase to be in wrongly.
//!
//! Reading order: [`key`] and [`asked`] (what is asked for), [`directives`], [`date`] and [`freshness`] (what the
//! upstream said), [`policy`], [`vary`], [`admit`] (may it be stored), [`entry`] (what is stored), [`conditional`], [`range`]
//! and [`part`] (what of it is sent), [`coding`] (in which coding), `prepared` (a head that is kept for a second), [`in_file`] (a body that the kernel sends by itself), [`slices`] (how
//! what is large is kept), [`fill`] and [`body`] (bytes that are still arriving), [`shelf`] (where entries stand),
//! [`disk`] (what outlives the process), [`cache`] (who fetches), [`hit`] (what one client gets), [`tags`] and [`purge`] (what it
//! was made from, and what of that was taken back), [`fields`], [`reason`] and [`status`] (what it says about itself).

pub mod admit;
pub mod asked;
pub mod body;
pub mod cache;
pub mod coding;
pub mod conditional;
pub mod date;
pub mod directives;
pub mod disk;
pub mod entry;
pub mod fields;
pub mod fill;
pub mod freshness;
pub mod hit;
pub mod in_file;
pub mod key;
mod language;
pub mod part;
pub mod policy;
mod prepared;
pub mod purge;
pub mod range;
pub mod reason;
pub mod shelf;
pub mod slices;
pub mod status;
pub mod tags;
pub mod vary;

pub use asked::Asked;
pub use body::{BodyAborted, CacheBody};
pub use cache::{Began, Cache, CacheLimits, Explanation, FillPermit, Lookup, Outcome, Stored, Tier};
pub use disk::{Disk, DiskLimits};
pub use fill::FillWriter;
pub use hit::Hit;
pub use key::{Key, Scheme};
pub use policy::Policy;
pub use purge::{Place, Purge, Scope};
pub use reason::PassReason;
pub use tags::Tag;
