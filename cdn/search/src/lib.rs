//! Searching a catalogue: what a query means, and an index that answers it from a file.
//!
//! One reading of texts and queries ([`text`], [`Query`], [`Document`]) for the node, which looks into an [`Index`] of its own,
//! and for the region, whose store keeps the same documents in its database. Whichever engine is asked, the same products
//! match and stand in the same order: an engine is told terms that are decided here, and no text ([why](../../../docs/decisions/2026-11-30-search-is-at-the-node.md)).
//!
//! The order: products that have every word in their title; then those that need the sku too; then tags and attributes; then
//! the description ([`Tier`]). Within a tier the shorter title first, and then an order that is the same everywhere
//! ([`Document::rank`]). Nothing counts how often a word is used elsewhere, so a page of an answer stays where it is while
//! other products come and go.
//!
//! Refuses to know: sites, prices, who may see what, threads and clocks. An [`Index`] is of one catalogue, and blocks.

mod document;
mod index;
mod query;
pub mod text;

pub use document::{Document, Position, TIERS, Tier};
pub use index::{Change, FORMAT, Fault, Index, fingerprint};
pub use query::{BadQuery, QUERY_BYTES_MAX, Query, TERMS_MAX, Term};
