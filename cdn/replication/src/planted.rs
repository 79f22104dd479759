//! Bugs on purpose, for the simulation to find. This is the only seam: a product has none, because outside of this crate's own
//! tests the answer is a constant.

/// A bug that a line of this crate can be asked to have. The name says what goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bug {
    /// The region acknowledges what it has handed to its store, not what is committed.
    AckBeforeCommit,
    /// The region hands its store operations although some before them are missing.
    GapAccepted,
    /// Batches that are joined for one commit change places.
    OrderSwapped,
    /// A node disk from a backup goes on in its epoch although it is behind the mark.
    EpochKept,
    /// A node disk from a backup goes on in its epoch once it has overtaken the mark.
    MarkUnbound,
    /// The node sends again from one operation too late.
    ResendTooFar,
    /// Credit is not given back when a batch is committed.
    CreditLeak,
    /// The node forgets what it has sent, not what is committed.
    TrimTooFar,
    /// A snapshot is said to be as new as the log when it arrives, not when it was read.
    SeamSkipped,
    /// A repeated run of a log is applied again.
    DownTwice,
    /// A cursor is believed whichever history it counts.
    HistoryIgnored,
    /// What is left of a grant goes back although operations that took from it are on their way.
    ReclaimedEarly,
    /// A node goes on promising units after its grant has ended.
    GrantOutlived,
    /// In the node's store: an operation is promised before it is on the disk.
    #[cfg(test)]
    ToldEarly,
    /// In the node's store: the cursor is on the disk before the rows are.
    #[cfg(test)]
    CursorBeforeRows,
    /// In the node's store: a snapshot is laid over what was there, so that what was removed meanwhile stays.
    #[cfg(test)]
    SnapshotLaidOver,
    /// In the region's store: operations below the mark are applied again.
    #[cfg(test)]
    MarkNotChecked,
    /// In the region's store: an operation that cannot be applied stops those behind it.
    #[cfg(test)]
    DeadLetterStuck,
    /// In the region's store: a reservation is taken although its grant has gone back.
    #[cfg(test)]
    LateReservationTaken,
    /// In the region's store: a question that comes after a later one is answered as if it were new.
    #[cfg(test)]
    OldQuestionHeard,
}

/// Whether the product has this bug: it does not.
#[cfg(not(test))]
pub(crate) const fn planted(_: Bug) -> bool {
    false
}

#[cfg(test)]
pub(crate) use for_tests::{plant, planted};

#[cfg(test)]
mod for_tests {
    use std::cell::Cell;

    use super::Bug;

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    pub(crate) fn planted(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }

    /// From here on this thread has this bug, or none.
    pub(crate) fn plant(bug: Option<Bug>) {
        PLANTED.set(bug);
    }

    impl Bug {
        pub(crate) const ALL: [Self; 20] = [
            Self::AckBeforeCommit,
            Self::GapAccepted,
            Self::OrderSwapped,
            Self::EpochKept,
            Self::MarkUnbound,
            Self::ResendTooFar,
            Self::CreditLeak,
            Self::TrimTooFar,
            Self::SeamSkipped,
            Self::DownTwice,
            Self::HistoryIgnored,
            Self::ToldEarly,
            Self::CursorBeforeRows,
            Self::SnapshotLaidOver,
            Self::MarkNotChecked,
            Self::DeadLetterStuck,
            Self::ReclaimedEarly,
            Self::GrantOutlived,
            Self::LateReservationTaken,
            Self::OldQuestionHeard,
        ];

        pub(crate) fn from_name(name: &str) -> Option<Self> {
            Self::ALL.into_iter().find(|bug| format!("{bug:?}") == name)
        }
    }
}
