//! Bugs on purpose, for the simulation of the whole pair to find (`tests/sim`), as `souk-replication` has them for its own.
//!
//! The simulation is another crate, so the flag is not `cfg(test)` but `cfg(debug_assertions)`: what is built for use (profiles
//! `release` and `dist`) has none, because there the answer is a constant.

/// A bug that a line of the link or of a node's state can be asked to have. The name says what goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// A redial that fails is the last: a dead connection is kept until it times out.
    RedialForgotten,
    /// Logs leave the region in the opposite order of their priority: a purge waits for the catalogue.
    PriorityInverted,
    /// A session calls the store while the one that it took over from is in a commit.
    LaneSkipped,
    /// A node that has found that its disk was put back does not say so at its next connection.
    DivergedForgotten,
    /// A tail is said to be applied when it is handed to the store.
    AppliedEarly,
    /// A batch that the peer's transport has got is taken for committed.
    FinishedIsCommitted,
    /// A silent region is asked as one that has refused is: one attempt at a time, and pauses that double.
    SilenceIsRefusal,
    /// In the node's state: a change is answered before its bytes are on the disk.
    ToldEarly,
    /// In the node's state: the cursor of a log is on the disk before its rows are.
    CursorBeforeRows,
    /// In the node's state: a new epoch keeps the numbers of the old one.
    EpochNotRenumbered,
    /// In the node's state: a replica whose disk has failed once goes on with the handle that redb uses no more.
    HandleKept,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::RedialForgotten,
        Self::PriorityInverted,
        Self::LaneSkipped,
        Self::DivergedForgotten,
        Self::AppliedEarly,
        Self::FinishedIsCommitted,
        Self::SilenceIsRefusal,
        Self::ToldEarly,
        Self::CursorBeforeRows,
        Self::EpochNotRenumbered,
        Self::HandleKept,
    ];
}

/// Whether the product has this bug: it does not.
#[cfg(not(debug_assertions))]
#[must_use]
pub const fn planted(_: Bug) -> bool {
    false
}

#[cfg(debug_assertions)]
pub use for_tests::{plant, planted};

#[cfg(debug_assertions)]
mod for_tests {
    use std::cell::Cell;

    use super::Bug;

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Whether this thread was asked to have this bug.
    #[must_use]
    pub fn planted(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }

    /// From here on this thread has this bug, or none.
    pub fn plant(bug: Option<Bug>) {
        PLANTED.set(bug);
    }
}
