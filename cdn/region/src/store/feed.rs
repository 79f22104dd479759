//! The logs down as a node reads them: runs of changes, and whole states in pages.
//!
//! Each row bears the version at which it last changed. So a state is read in the order of those versions and can be
//! resumed after any of them; what moves while it is being read comes later in the same order, or in the changes
//! that follow.

use souk_replication::{Log, Record, RowsDigest, SnapshotPage};

use super::engine::Session;
use super::log::{self, PageMax};
use super::{Store, StoreError, asset, goods, release, shopper, site};

/// Where a snapshot goes on: its own version and the row after which to read. 16 bytes on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    version: u64,
    after: u64,
}

impl Place {
    fn to_bytes(self) -> Vec<u8> {
        [self.version.to_be_bytes(), self.after.to_be_bytes()].concat()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (version, after) = bytes.split_first_chunk()?;
        let after = after.try_into().ok()?;
        Some(Self { version: u64::from_be_bytes(*version), after: u64::from_be_bytes(after) })
    }
}

fn rows(conn: &dyn Session, log: Log, after: u64, page: PageMax) -> Result<(Vec<Record>, bool), StoreError> {
    match log {
        // A node that takes the log whole forgets all of its caches; of what it keeps itself, it forgets what was erased.
        Log::Purge => shopper::told(conn, after, page),
        Log::Config => site::changed(conn, after, page),
        Log::Release => release::changed(conn, after, page),
        Log::Price | Log::Stock | Log::Catalog => goods::changed(conn, log, after, page),
        Log::Asset => asset::changed(conn, after, page),
    }
}

/// Rows that are in memory at once while a log is summed up.
const SUMMED_AT_ONCE: PageMax = PageMax { records: 4_096, bytes: 4 << 20 };

impl Store {
    /// What the rows of `log` come to, and the log's version: both of one moment.
    pub(crate) async fn digest(&self, log: Log) -> Result<(u64, RowsDigest), StoreError> {
        self.read(move |conn| {
            let version = log::heads(conn)?.get(log);
            let (mut digest, mut after) = (RowsDigest::default(), 0);
            loop {
                let (records, more) = rows(conn, log, after, SUMMED_AT_ONCE)?;
                for record in &records {
                    digest.add(record.version, &record.body);
                }
                match records.last() {
                    Some(last) if more => after = last.version,
                    _ => return Ok((version, digest)),
                }
            }
        })
        .await
    }

    /// A page of the whole state of `log`; `resume` is what the page before named as `next`.
    pub(crate) async fn snapshot(
        &self,
        log: Log,
        resume: Option<Vec<u8>>,
        page: PageMax,
    ) -> Result<SnapshotPage, StoreError> {
        self.read(move |conn| {
            let place = match resume {
                None => Place { version: log::heads(conn)?.get(log), after: 0 },
                Some(bytes) => Place::from_bytes(&bytes).ok_or_else(|| {
                    StoreError::corrupt("log", "a snapshot is resumed at a place that is none")
                })?,
            };
            let (records, more) = rows(conn, log, place.after, page)?;
            let next =
                records.last().filter(|_| more).map(|last| Place { after: last.version, ..place }.to_bytes());
            Ok(SnapshotPage { version: place.version, records, next })
        })
        .await
    }
}
