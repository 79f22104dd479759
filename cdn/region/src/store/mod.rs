//! The truth, in a database: one writer, many readers.
//!
//! It owns every statement of SQL in this crate (one file per group of tables) and the rule that an answer is given
//! only after the commit that makes it true. It knows no HTTP, no QUIC, no plugin. Callers see typed operations
//! (`import`, `apply_batch`, `place`, `tail`, ...), never a connection; what runs the statements is an [`engine`].
//!
//! Reading order: [`engine`], [`schema`], [`writer`] (group commit), [`readers`], [`log`] (versions of the logs down), [`cursor`],
//! [`cart`] and [`dead_letter`] (what nodes send up), [`site`], [`goods`], [`escrow`] (who was promised which units), [`asset`], [`push`] and [`release`], [`purge`], [`feed`] (what goes down), [`order`],
//! [`checkout`] (its payment and its life), [`event`] (what the world is told of it) and [`publisher`] (how far a broker has it), [`token`], [`audit`]; [`vault`] (keys) and
//! [`shopper`] (what is sealed with them, exported, erased); [`others`] and [`present`] (where processes share a database); [`pair`] (where
//! another region follows).

pub(crate) mod asset;
pub(crate) mod audit;
pub(crate) mod backup;
pub(crate) mod cart;
pub(crate) mod checkout;
mod collect;
pub(crate) mod cursor;
pub(crate) mod dead_letter;
mod engine;
pub(crate) mod escrow;
pub(crate) mod event;
mod feed;
pub(crate) mod goods;
pub(crate) mod log;
pub(crate) mod order;
mod others;
pub(crate) mod pair;
pub(crate) mod present;
pub(crate) mod publisher;
mod purge;
pub(crate) mod push;
pub(crate) mod readers;
pub(crate) mod release;
pub(crate) mod restored;
mod schema;
pub(crate) mod search;
pub(crate) mod shopper;
pub(crate) mod site;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod token;
pub(crate) mod vault;
mod view;
mod writer;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use souk_commerce::seal::SealKey;
use souk_config::PostgresConfig;
use tokio::sync::watch;

use crate::own;
use engine::postgres::Postgres;
use engine::sqlite::Sqlite;
use engine::{Engine, Mode, Session};
pub(crate) use vault::KekFile;
use vault::{Keyring, Vault};
pub(crate) use view::View;
use writer::{Decision, Tx};

/// A write-ahead log above this is cut back by the writer, with the readers withheld for a moment. SQLite does it by itself
/// only when no reader is about, and a busy region has one at every moment: the log would grow until the disk is full.
const WAL_BYTES_MAX: u64 = 256 << 20;
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
    /// The database went away while the transaction was being committed: all of it is there, or nothing. To ask again is
    /// safe: what was done is not done twice.
    #[error("whether the transaction was committed is not known: {0}")]
    Unknown(String),
    #[error("the database refused: {0}")]
    Sqlite(#[from] rusqlite::Error),
    #[error("the database refused: {message} ({code})")]
    Refused { code: String, message: String },
    #[error("the database cannot be reached: {0}")]
    Lost(String),
    #[error("the database was written by a newer version: schema {version}, this program knows {known}")]
    TooNew { version: usize, known: usize },
    #[error("a row of table {table} does not decode: {detail}")]
    Corrupt { table: &'static str, detail: String },
    #[error("column {index} of a row holds {found} that is no {wanted}")]
    Column { index: usize, found: &'static str, wanted: &'static str },
    #[error("a statement that always has an answer had none: {0}")]
    NoRow(String),
    #[error("{0} is more than a column can hold")]
    NumberTooLarge(String),
    #[error("a command panicked: {0}")]
    Panicked(String),
    /// Another region is home, or is to be. Nothing was done here, and nothing will be.
    #[error("this region is not home: {0}")]
    NotHome(String),
    #[error("the vault: {0}")]
    Vault(String),
    /// SQLite would let both write, and each would serve what the other one had before.
    #[error("{} is in use by another process; several processes need PostgreSQL (docs/REGION.md)", .0.display())]
    InUse(PathBuf),
    #[error("cannot reach the database file: {0}")]
    Io(#[from] std::io::Error),
}

impl StoreError {
    pub(crate) fn corrupt(table: &'static str, detail: impl std::fmt::Display) -> Self {
        Self::Corrupt { table, detail: detail.to_string() }
    }

    /// Whether nothing is left of the transaction that met this, through no fault of its own, and it may succeed if it is
    /// run again: it was given up for another one's sake, or its connection was lost before the commit.
    fn is_conflict(&self) -> bool {
        match self {
            Self::Refused { code, .. } => matches!(code.as_str(), "40001" | "40P01"),
            Self::Lost(_) => true,
            _ => false,
        }
    }

    /// Whether the disk of the store takes nothing more.
    pub(crate) fn is_full(&self) -> bool {
        matches!(self, Self::Sqlite(e) if e.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull))
    }

    /// Whether the same request may succeed a moment later.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            // Elsewhere, or here when it is home again.
            Self::NotHome(_) => true,
            Self::Busy | Self::Closed | Self::NotCommitted(_) | Self::Unknown(_) => true,
            Self::Sqlite(e) => matches!(
                e.sqlite_error_code(),
                Some(
                    rusqlite::ErrorCode::DatabaseBusy
                        | rusqlite::ErrorCode::DatabaseLocked
                        | rusqlite::ErrorCode::DiskFull
                )
            ),
            Self::Lost(_) => true,
            // Transaction rolled back, too few resources, not in the right state (a lock that was not to be had), somebody
            // intervened (a time-out, a shutdown), the connection.
            Self::Refused { code, .. } => {
                ["40", "53", "55", "57", "08"].iter().any(|class| code.starts_with(class))
            }
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
    /// Wraps the keys by which what is a shopper's is sealed.
    pub(crate) kek: KekFile,
    /// The region is one of a pair: what changes is noted for its standby.
    pub(crate) is_followed: bool,
}

#[cfg(test)]
impl StoreSettings {
    pub(crate) fn for_tests(log_entries_kept_max: u64) -> Self {
        let kek = KekFile::for_tests(&[6]);
        Self { log_entries_kept_max, seal: Arc::new(SealKey::generate(&[5; 32])), kek, is_followed: false }
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

/// Makes the folder of a file, and keeps every other process from the file for as long as the answer lives: whoever writes it,
/// as a home or as a standby, has one. Waits a little for a process that is going.
pub(crate) fn claim(dir: &Path) -> Result<File, StoreError> {
    own::folder(dir)?;
    own::claim(dir).map_err(|error| match error.kind() {
        std::io::ErrorKind::WouldBlock => StoreError::InUse(dir.join("region.db")),
        _ => error.into(),
    })
}

/// A handle; clones share the writer and the readers.
#[derive(Clone)]
pub(crate) struct Store {
    writer: writer::Writer,
    readers: Arc<readers::Readers<Box<dyn Session>>>,
    marks: Arc<cursor::Marks>,
    heads: watch::Receiver<souk_replication::Heads>,
    vault: Vault,
    engine: Arc<dyn Engine>,
    /// Counts commits, for whoever sends them on.
    commits: watch::Receiver<u64>,
    /// Looks for what other processes commit, where there may be any.
    others: Option<Arc<others::Others>>,
}

impl Store {
    /// Opens or makes the database in `dir`. Blocks on the disk; call it before serving.
    pub(crate) fn open(dir: &Path, settings: StoreSettings) -> Result<Self, StoreError> {
        Self::open_with(dir, settings, WAL_BYTES_MAX)
    }

    fn open_with(dir: &Path, settings: StoreSettings, wal_bytes_max: u64) -> Result<Self, StoreError> {
        let claim = claim(dir)?;
        let path = dir.join("region.db");
        let wal = (dir.join("region.db-wal"), wal_bytes_max, claim);
        let keyring = Keyring::of_file(dir)?;
        Self::start(Arc::new(Sqlite::new(path)), keyring, settings, Some(wal))
    }

    /// Opens or makes the tables in a PostgreSQL. Blocks; call it before serving.
    pub(crate) fn open_postgres(
        database: &PostgresConfig,
        password: Option<&str>,
        settings: StoreSettings,
    ) -> Result<Self, StoreError> {
        let engine: Arc<dyn Engine> = Arc::new(Postgres::new(database, password)?);
        let keyring = Keyring::of_server(Arc::clone(&engine))?;
        Self::start(engine, keyring, settings, None)
    }

    /// `wal`: where the engine's write-ahead log lies, if it has one that we cut back, how long it may be, and what keeps
    /// other processes from it until the writer ends.
    fn start(
        engine: Arc<dyn Engine>,
        keyring: Keyring,
        settings: StoreSettings,
        wal: Option<(PathBuf, u64, File)>,
    ) -> Result<Self, StoreError> {
        let vault = Vault::open(&settings.kek, keyring)?;
        engine.migrate(schema::NEWEST)?;
        let session = engine.open(Mode::Write)?;
        pair::capture::begin(&*session, settings.is_followed)?;
        log::prepare(&*session)?;
        if vault.is_new() && session.exists("SELECT 1 FROM orders WHERE subject IS NOT NULL LIMIT 1", &[])? {
            tracing::error!(
                "the keyring is new and the store is not: names of shoppers in it cannot be read. If there is a copy of the keyring, stop now and put it there (docs/PRIVACY.md)"
            );
        }
        let (heads_tx, heads) = watch::channel(log::heads(&*session)?);
        let marks = Arc::new(cursor::Marks::load(&*session)?);
        let readers = Arc::new(readers::Readers::open({
            let engine = Arc::clone(&engine);
            move || engine.open(Mode::Read)
        })?);
        let wal = wal.map(|(path, bytes_max, claim)| writer::Wal {
            path,
            bytes_max,
            readers: Arc::clone(&readers),
            _claim: claim,
        });
        let (commits_tx, commits) = watch::channel(0);
        let told = writer::Told {
            heads: Arc::new(heads_tx),
            marks: Arc::clone(&marks),
            commits: Arc::new(commits_tx),
        };
        let others = if engine.is_shared() {
            Some(Arc::new(others::Others::watch(Arc::clone(&engine), told.clone())?))
        } else {
            None
        };
        let writer = writer::Writer::start(Arc::clone(&engine), session, settings, told, wal)?;
        Ok(Self { writer, readers, marks, heads, vault, engine, commits, others })
    }

    /// Whether other processes may be at work on the same database.
    pub(crate) const fn is_shared(&self) -> bool {
        self.others.is_some()
    }

    /// Moves at each commit that appended to a log.
    pub(crate) fn log_heads(&self) -> watch::Receiver<souk_replication::Heads> {
        self.heads.clone()
    }

    /// Moves at each commit, of this process and of others.
    pub(crate) fn commits(&self) -> watch::Receiver<u64> {
        self.commits.clone()
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
    /// It may be run more than once, if the engine gives a transaction up for another one's sake: then nothing of the
    /// former run is there.
    ///
    /// Cancel safety: dropping the future gives up the answer, not the work.
    async fn write<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Fn(&Tx<'_>) -> Result<Decision<T>, StoreError> + Send + 'static,
    {
        self.writer.submit(work).await
    }

    /// Runs `work` on a reader, in one read transaction: it sees one committed state and may take its time.
    async fn read<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&dyn Session) -> Result<T, StoreError> + Send + 'static,
    {
        Arc::clone(&self.readers).run(move |session| work(&**session)).await
    }

    /// Whether the database can be read now.
    pub(crate) async fn check(&self) -> Result<(), StoreError> {
        self.read(|conn| conn.one("SELECT 1", &[], |_| Ok(()))).await
    }

    pub(crate) async fn counts(&self) -> Result<Counts, StoreError> {
        self.read(|conn| {
            let sql = "SELECT (SELECT count(*) FROM site), (SELECT count(*) FROM product WHERE content IS NOT NULL),
                              (SELECT count(*) FROM cart), (SELECT count(*) FROM orders), (SELECT count(*) FROM dead_letter)";
            conn.one(sql, &[], |row| {
                Ok(Counts {
                    sites: row.get(0)?,
                    products: row.get(1)?,
                    carts: row.get(2)?,
                    orders: row.get(3)?,
                    dead_letters: row.get(4)?,
                })
            })
        })
        .await
    }

    /// Takes no more work, finishes what was accepted, closes the file. Blocks until the writer has ended.
    pub(crate) fn close(&self) {
        if let Some(others) = &self.others {
            others.close();
        }
        self.writer.close();
    }
}
