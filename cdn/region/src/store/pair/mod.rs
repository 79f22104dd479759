//! What makes two stores a pair: which of them is home, and how the other one comes to hold the same rows.
//!
//! [`standing`] is the word of a store on what it is, which its one writer looks at in each transaction. [`capture`] notes the
//! key of each row that a home writes; [`source`] reads what those rows are now, of one moment; [`sink`] puts them into the
//! standby's store, all of a moment or nothing. Rows travel as [`frame`]s. All of it blocks, on either engine; who speaks with whom, and
//! when, is [`crate::pair`]'s.

pub(crate) mod capture;
pub(crate) mod frame;
pub(crate) mod sink;
pub(crate) mod source;
pub(crate) mod standing;
#[cfg(test)]
mod tests;
