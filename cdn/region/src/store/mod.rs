//! The truth, in SQLite: one file, one writer, many readers.
//!
//! It owns every statement of SQL in this crate (one file per group of tables) and the rule that an answer is given
//! only after the commit that makes it true. It knows no HTTP, no QUIC, no plugin. Callers see typed operations
//! (`import`, `apply_batch`, `place`, `tail`, ...), never a connection: a second engine stands behind the same
//! operations when one machine is too small.
//!
//! Reading order: [`schema`], [`writer`] (group commit), [`readers`], [`log`] (versions of the logs down), [`cursor`],
//! [`cart`] and [`dead_letter`] (what nodes send up), [`site`], [`goods`], [`asset`], [`push`] and [`release`], [`purge`], [`feed`] (what goes down), [`order`],
//! [`checkout`] (its payment and its life) and [`event`] (what the world is told of it), [`token`], [`audit`].

pub(crate) mod asset;
pub(crate) mod audit;
pub(crate) mod cart;
pub(crate) mod checkout;
mod collect;
pub(crate) mod cursor;
pub(crate) mod dead_letter;
pub(crate) mod event;
mod feed;
pub(crate) mod goods;
pub(crate) mod log;
pub(crate) mod order;
mod purge;
pub(crate) mod push;
pub(crate) mod readers;
pub(crate) mod release;
mod schema;
pub(crate) mod site;
#[cfg(test)]
mod tests;
pub(crate) mod token;
mod view;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;
use souk_commerce::seal::SealKey;
use tokio::sync::watch;

pub(crate) use view::View;
use writer::{Decision, Tx};

/// How long a connection waits for another one's lock. In WAL mode only a checkpoint makes anyone wait.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// 16 MiB of pages per connection: with four readers and the writer 80 MiB at most.
const CACHE_KIB_PER_CONNECTION: i64 = 16 * 1024;
/// More than the number of distinct statements in this crate, so that none is compiled twice.
const STATEMENTS_CACHED: usize = 128;
/// A write-ahead log above this is cut back by the writer, with the readers withheld for a moment. SQLite does it by itself
/// only when no reader is about, and a busy region has one at every moment: the log would grow until the disk is full.
const WAL_BYTES_MAX: u64 = 256 << 20;
/// After a checkpoint the write-ahead log is cut back to this.
const WAL_BYTES_KEPT: i64 = 64 << 20;

/// Why an operation on the store did not happen.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The queue stayed full. Nothing was done; try again later.
    #[error("the store has more work waiting than it can finish in time")]
    Busy,
    /// The region is going down. Nothing was done.
    #[error("the store is closed")]
    Closed,
    /// The transaction that this command shared with others did not commit. Nothing was done.
    #[error("the transaction was not committed: {0}")]
    NotCommitted(String),
    #[error("the database refused: {0}")]
    Sqlite(#[from] rusqlite::Error),
    #[error("the database was written by a newer version: schema {version}, this program knows {known}")]
    TooNew { version: usize, known: usize },
    #[error("a row of table {table} does not decode: {detail}")]
    Corrupt { table: &'static str, detail: String },
    #[error("a command panicked: {0}")]
    Panicked(String),
    #[error("cannot reach the database file: {0}")]
    Io(#[from] std::io::Error),
}

impl StoreError {
    pub(crate) fn corrupt(table: &'static str, detail: impl std::fmt::Display) -> Self {
        Self::Corrupt { table, detail: detail.to_string() }
    }

    /// Whether the same request may succeed a moment later.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Busy | Self::Closed | Self::NotCommitted(_) => true,
            Self::Sqlite(e) => matches!(
                e.sqlite_error_code(),
                Some(
                    rusqlite::ErrorCode::DatabaseBusy
                        | rusqlite::ErrorCode::DatabaseLocked
                        | rusqlite::ErrorCode::DiskFull
                )
            ),
            _ => false,
        }
    }
}

/// Settings of a store that its owner chooses.
#[derive(Debug, Clone)]
pub(crate) struct StoreSettings {
    pub(crate) log_entries_kept_max: u64,
    /// Vouches for releases.
    pub(crate) seal: Arc<SealKey>,
}

#[cfg(test)]
impl StoreSettings {
    pub(crate) fn for_tests(log_entries_kept_max: u64) -> Self {
        Self { log_entries_kept_max, seal: Arc::new(SealKey::generate(&[5; 32])) }
    }
}

/// How many rows there are of what people ask about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Counts {
    pub(crate) sites: u64,
    pub(crate) products: u64,
    pub(crate) carts: u64,
    pub(crate) orders: u64,
    pub(crate) dead_letters: u64,
}

/// A handle; clones share the writer and the readers.
#[derive(Clone)]
pub(crate) struct Store {
    writer: writer::Writer,
    readers: Arc<readers::Readers>,
    marks: Arc<cursor::Marks>,
}

impl Store {
    /// Opens or makes the database in `dir`. Blocks on the disk; call it before serving.
    pub(crate) fn open(dir: &Path, settings: StoreSettings) -> Result<Self, StoreError> {
        Self::open_with(dir, settings, WAL_BYTES_MAX)
    }

    fn open_with(dir: &Path, settings: StoreSettings, wal_bytes_max: u64) -> Result<Self, StoreError> {
        std::fs::create_dir_all(dir)?;
        let path = dir.join("region.db");
        let mut conn = Connection::open(&path)?;
        schema::prepare(&conn)?;
        schema::migrate(&mut conn)?;
        log::prepare(&conn)?;
        let heads = log::heads(&conn)?;
        let marks = Arc::new(cursor::Marks::load(&conn)?);
        let readers = Arc::new(readers::Readers::open(&path)?);
        let wal = writer::Wal {
            path: dir.join("region.db-wal"),
            bytes_max: wal_bytes_max,
            readers: Arc::clone(&readers),
        };
        let writer = writer::Writer::start(conn, settings, heads, Arc::clone(&marks), wal)?;
        Ok(Self { writer, readers, marks })
    }

    /// Moves at each commit that appended to a log.
    pub(crate) fn log_heads(&self) -> watch::Receiver<souk_replication::Heads> {
        self.writer.log_heads()
    }

    /// Up to where each outbox has been applied.
    pub(crate) fn marks(&self) -> &cursor::Marks {
        &self.marks
    }

    pub(crate) fn writer_metrics(&self) -> &writer::WriterMetrics {
        self.writer.metrics()
    }

    /// Runs `work` in a transaction of the writer and answers after it is on the disk.
    ///
    /// Cancel safety: dropping the future gives up the answer, not the work.
    async fn write<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Tx<'_>) -> Result<Decision<T>, StoreError> + Send + 'static,
    {
        self.writer.submit(work).await
    }

    /// Runs `work` on a reader, in one read transaction: it sees one committed state and may take its time.
    pub(crate) async fn read<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        Arc::clone(&self.readers).run(work).await
    }

    /// Whether the database can be read now.
    pub(crate) async fn check(&self) -> Result<(), StoreError> {
        self.read(|conn| Ok(conn.query_row("SELECT 1", [], |_| Ok(()))?)).await
    }

    pub(crate) async fn counts(&self) -> Result<Counts, StoreError> {
        self.read(|conn| {
            let sql = "SELECT (SELECT count(*) FROM site), (SELECT count(*) FROM product WHERE content IS NOT NULL),
                              (SELECT count(*) FROM cart), (SELECT count(*) FROM orders), (SELECT count(*) FROM dead_letter)";
            let counts = conn.query_row(sql, [], |row| {
                Ok(Counts {
                    sites: row.get(0)?,
                    products: row.get(1)?,
                    carts: row.get(2)?,
                    orders: row.get(3)?,
                    dead_letters: row.get(4)?,
                })
            })?;
            Ok(counts)
        })
        .await
    }

    /// Takes no more work, finishes what was accepted, closes the file. Blocks until the writer has ended.
    pub(crate) fn close(&self) {
        self.writer.close();
    }
}
