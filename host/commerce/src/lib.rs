//! The shop's own arithmetic: money, products, the cart as a CRDT, quotes and the price guard.
//!
//! Pure. No I/O, no clock, no randomness, no allocation that the caller's limits do not bound. The node and the
//! region both decide with this crate, so that a price computed at the edge and one computed at checkout can only
//! differ in their inputs.
//!
//! Reading order: [`id`] and [`money`] (words), [`product`] (what is sold), [`clock`] (hybrid logical time),
//! [`cart`] (what a shopper wants), [`quote`] (what it costs), [`site`] (a merchant's settings and releases), [`slips`]
//! (what he did not mean), [`seal`] (who vouches for a release), [`token`] (by which a merchant is known to a region), [`order`] (what was
//! sold) and [`payment`] (by what it is paid), and then how all of it travels: [`op`] (node to region), [`feed`] (region to node), [`call`] (a question
//! that a node asks its region), [`journal`] (what plugins did, for people to read), [`purge`] (what caches
//! are to forget), [`lineage`] (which files are versions of one another).

pub mod call;
pub mod cart;
pub mod clock;
mod codec;
pub mod feed;
pub mod id;
pub mod journal;
pub mod lineage;
pub mod money;
pub mod op;
pub mod order;
pub mod payment;
pub mod product;
pub mod purge;
pub mod quote;
pub mod seal;
pub mod site;
pub mod slips;
pub mod token;

pub use codec::DecodeError;
