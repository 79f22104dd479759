//! The shop's own arithmetic: money, products, the cart as a CRDT, quotes and the price guard.
//!
//! Pure. No I/O, no clock, no randomness, no allocation that the caller's limits do not bound. The node and the
//! region both decide with this crate, so that a price computed at the edge and one computed at checkout can only
//! differ in their inputs.
//!
//! Reading order: [`id`] and [`money`] (words), [`product`] (what is sold), [`clock`] (hybrid logical time),
//! [`cart`] (what a shopper wants), [`op`] (how a change of it travels), [`quote`] (what it costs),
//! [`site`] (a merchant's settings).

pub mod id;
pub mod money;
pub mod product;
pub mod clock;
pub mod cart;
pub mod op;
pub mod quote;
pub mod site;
