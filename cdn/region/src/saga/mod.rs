//! From a cart whose units are held to money that was taken once: the checkout saga and the life of an order after it.
//!
//! ```text
//!  checkout ─reserve─▶ row ─▶ worker ──intent──▶ provider        one row per order: `crate::store::checkout`
//!                       ▲        │ ◀──outcome───────┘
//!      merchant's wish ─┤        ▼
//!  provider's message ──┘   place + event, capture, void, refund, release
//! ```
//!
//! A shop that names no provider sends invoices: its orders are placed by the transaction that takes their stock, and
//! nothing here has anything to do for them.
//!
//! Reading order: [`machine`] (what may follow what: pure), [`provider`] (what is asked of whoever takes the money),
//! [`stripe`] and [`signature`] (one of those, over HTTP), [`worker`] (who drives the rows), [`crate::store::checkout`]
//! (the rows), [`reconcile`] (both sides' books compared).

pub(crate) mod machine;
pub(crate) mod provider;
pub(crate) mod reconcile;
mod signature;
mod stripe;
#[cfg(test)]
mod tests;
pub(crate) mod worker;
