//! The down logs: their names, their order of importance, and the unit in which they travel.

use crate::planted::{Bug, planted};

/// An ordered, versioned stream of changes from the region down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Log {
    /// Cache entries to forget. Its snapshot means: forget everything.
    Purge = 1,
    /// Settings of sites.
    Config = 2,
    /// Which plugin releases a site runs.
    Release = 3,
    /// Prices.
    Price = 4,
    /// Stock hints.
    Stock = 5,
    /// Manifest of static files.
    Asset = 6,
    /// Content of products.
    Catalog = 7,
}

impl Log {
    /// All logs, the most urgent first.
    pub const ALL: [Self; 7] =
        [Self::Purge, Self::Config, Self::Release, Self::Price, Self::Stock, Self::Asset, Self::Catalog];
    /// How many logs there are.
    pub const COUNT: usize = Self::ALL.len();

    /// The number of this log on the wire; never changes.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The log with this wire number, if this build knows it.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|log| log.code() == code)
    }

    /// Stream priority: greater goes first, so that a big catalogue never delays a purge.
    #[must_use]
    pub const fn priority(self) -> i32 {
        Self::COUNT as i32 - self as i32
    }

    /// Stable lower-case name for logs, metrics and tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Purge => "purge",
            Self::Config => "config",
            Self::Release => "release",
            Self::Price => "price",
            Self::Stock => "stock",
            Self::Asset => "asset",
            Self::Catalog => "catalog",
        }
    }

    /// Place in tables with a row per log.
    pub(crate) const fn index(self) -> usize {
        self as usize - 1
    }
}

impl std::fmt::Display for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// One version per log: the newest a region has, or the cursors of a node. 0 means nothing yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Heads([u64; Log::COUNT]);

impl Heads {
    /// The version for `log`.
    #[must_use]
    pub const fn get(&self, log: Log) -> u64 {
        self.0[log.index()]
    }

    /// Replaces the version for `log`.
    pub const fn set(&mut self, log: Log, version: u64) {
        self.0[log.index()] = version;
    }

    /// Every log with its version, the most urgent log first.
    pub fn iter(&self) -> impl Iterator<Item = (Log, u64)> + '_ {
        Log::ALL.into_iter().map(|log| (log, self.get(log)))
    }
}

impl FromIterator<(Log, u64)> for Heads {
    fn from_iter<I: IntoIterator<Item = (Log, u64)>>(versions: I) -> Self {
        let mut heads = Self::default();
        for (log, version) in versions {
            heads.set(log, version);
        }
        heads
    }
}

/// How far a node has applied a log, and in which history of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// Which log.
    pub log: Log,
    /// Applied durably up to here; 0 means nothing yet.
    pub version: u64,
    /// The history that `version` counts: the `region_epoch` of the Welcome under which it was applied. `None`: not known,
    /// because a release that did not note it has applied it.
    pub region_epoch: Option<u32>,
}

impl Cursor {
    /// Whether the version counts another history than this: then it says nothing about what the node has.
    #[must_use]
    pub fn is_of_another(&self, region_epoch: u32) -> bool {
        !planted(Bug::HistoryIgnored)
            && self.version > 0
            && self.region_epoch.is_some_and(|epoch| epoch != region_epoch)
    }
}

/// How much of a snapshot a node has staged durably: from here it goes on after a crash or on another connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Staging {
    /// Of which log.
    pub log: Log,
    /// Version of the snapshot.
    pub version: u64,
    /// Parts staged, from index 0.
    pub parts: u32,
    /// The history that `version` counts.
    pub region_epoch: u32,
    /// [`Tail::next`] of the last staged part.
    pub next: Vec<u8>,
}

/// One change of a log. What `body` means is between the region and the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Version of the log that this change made (in a snapshot: the version that last changed this row, if known).
    pub version: u64,
    /// The change, at most [`crate::limits::RECORD_BYTES_MAX`].
    pub body: Vec<u8>,
}

/// What a [`Tail`] is a part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Changes (from, to]. Apply rows and cursor := `to` in one transaction.
    Changes,
    /// Part `index` (0, 1, 2…) of the whole state of the log at version `to`.
    ///
    /// Index 0 throws away what an earlier, unfinished snapshot staged. Any but the last is staged together with what it takes
    /// to go on after it ([`Staging`]), in one transaction. The part with `last` replaces the log's whole state
    /// by what was staged and sets cursor := `to`, in one transaction; until then the node serves its old state. A row may
    /// already be newer than `to` when it was changed while the snapshot was read; the changes after `to` follow and settle it.
    Snapshot {
        /// Which part.
        index: u32,
        /// Whether it is the last one.
        last: bool,
    },
}

/// A run of a log on its way to a node: the unit of applying and of acknowledging.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tail {
    /// Which log.
    pub log: Log,
    /// For changes: the cursor that a node must have to apply them. For a snapshot: the attempt of this connection, which sets
    /// the parts of two readings of one version apart; a store need not look at it.
    pub from: u64,
    /// The cursor afterwards.
    pub to: u64,
    /// Changes, or a part of a snapshot.
    pub part: Part,
    /// In order of version (changes), in any order (snapshot). May be empty: versions can have been compacted away.
    pub records: Vec<Record>,
    /// For a part of a snapshot: where the next one starts, in words of the region's store. `None` after the last part, and
    /// from a region that cannot go on after an interruption.
    pub next: Option<Vec<u8>>,
}
