//! Units that a region lends to its nodes, so that a node can promise stock while it is cut off and the region never sells
//! a unit twice. Pure: rows and clocks come in, decisions come out.
//!
//! A region **grants** units of a hot product to a node: they leave `available` when they are granted ([`Ledger`]), and are
//! the node's to promise until the grant ends ([`Lease`], on the node's own clock). There is one live grant per node and
//! product; it is topped up and prolonged each time that the node asks. A node promises units in the transaction that
//! appends the operation which says so, and the region takes that operation as a reservation.
//!
//! A grant ends in one way only: the region does not name it in an answer, the node forgets it durably, and says in its next
//! question what it still has, and up to where its outbox goes. When the region has everything up to there, nothing more can
//! come of that grant, and what is left of it goes back ([`Grant::is_back`]). No clock has a part in this. For a node that
//! never comes back there is a second way: whatever it promised before the grant's end has lapsed by itself once the longest
//! hold has passed after that end. Then too there is no promise that could be broken.
//!
//! What comes after all of that (the node's disk was put back from a backup, a clock went wrong) is refused by the region,
//! which counts what each grant has given: a promise may be broken then, and no unit is sold twice.

mod grant;
mod ledger;
mod size;

pub use grant::{Closed, Grant, Lease, Terms};
pub use ledger::{Ledger, NotEnough};
pub use size::{HOT_PER_MINUTE, KEPT_BACK_PARTS, UNITS_GRANTED_MAX, more_for};
