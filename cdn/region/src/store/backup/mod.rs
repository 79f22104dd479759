//! Every row of a store, out of it and into an empty one, whatever engine holds either.
//!
//! It opens a database beside the process that serves it: a snapshot is one read transaction, which keeps nobody waiting, and
//! an empty database has no process yet. The tables are the schema's own ([`tables`]); [`laws`] says what must hold between
//! rows. It knows no files of a backup: those are [`crate::backup`]'s, its caller.

pub(crate) mod laws;
pub(crate) mod tables;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use souk_commerce::id::Digest;
use souk_config::PostgresConfig;
use souk_replication::{Heads, Term};

use super::engine::postgres::Postgres;
use super::engine::sqlite::Sqlite;
use super::engine::{Dialect, Engine, Mode, Param, Session, Uncommitted, Value, params};
use super::pair::standing;
use super::vault::{self, KekFile};
use super::{StoreError, log, restored, schema};
use tables::Table;

/// Rows that one statement puts in. With the widest table (26 columns) 832 parameters, of 32,766 that an engine takes.
const ROWS_PER_INSERT: usize = 32;
/// Bytes of rows that wait for their statement.
const INSERT_BYTES_MAX: usize = 1 << 20;
/// What numbers are given out after in a restored store, beyond the greatest that the backup knows: the lost store has given
/// out more, and whoever reads on from one of those (a merchant's program that follows orders, a consumer of events) must not
/// be passed by. No shop sells so much between two backups, and a column has room for two thousand million restores.
pub(in crate::store) const NUMBERS_SKIPPED: u64 = 1 << 32;

/// A cell that outlives its row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cell {
    Null,
    Int(i64),
    Text(String),
    Blob(Vec<u8>),
}

impl Cell {
    /// Whether a shopper's text is in it, sealed.
    pub(crate) fn holds_sealed(&self) -> bool {
        match self {
            Self::Null | Self::Int(_) => false,
            Self::Text(text) => vault::holds_sealed(text.as_bytes()),
            Self::Blob(bytes) => vault::holds_sealed(bytes),
        }
    }

    pub(in crate::store) fn of(value: Value<'_>) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Int(number) => Self::Int(number),
            Value::Text(text) => Self::Text(text.to_owned()),
            Value::Blob(bytes) => Self::Blob(bytes.to_vec()),
        }
    }

    const fn bytes(&self) -> usize {
        match self {
            Self::Null | Self::Int(_) => 8,
            Self::Text(text) => text.len(),
            Self::Blob(bytes) => bytes.len(),
        }
    }
}

impl Param for Cell {
    fn value(&self) -> Result<Value<'_>, StoreError> {
        Ok(match self {
            Self::Null => Value::Null,
            Self::Int(number) => Value::Int(*number),
            Self::Text(text) => Value::Text(text),
            Self::Blob(bytes) => Value::Blob(bytes),
        })
    }
}

/// A database that is opened beside the process that serves it, or before there is one.
#[derive(Clone)]
pub(crate) struct Door {
    pub(in crate::store) engine: Arc<dyn Engine>,
    dialect: Dialect,
}

impl Door {
    /// The file of a region.
    pub(crate) fn sqlite(file: PathBuf) -> Self {
        Self { engine: Arc::new(Sqlite::new(file)), dialect: Dialect::Sqlite }
    }

    pub(crate) fn postgres(database: &PostgresConfig, password: Option<&str>) -> Result<Self, StoreError> {
        Ok(Self { engine: Arc::new(Postgres::new(database, password)?), dialect: Dialect::Postgres })
    }

    /// Of a store that is served.
    pub(in crate::store) fn of(engine: Arc<dyn Engine>) -> Self {
        // Servers are shared, and files are not.
        let dialect = if engine.is_shared() { Dialect::Postgres } else { Dialect::Sqlite };
        Self { engine, dialect }
    }

    pub(crate) const fn engine(&self) -> &'static str {
        match self.dialect {
            Dialect::Sqlite => "sqlite",
            Dialect::Postgres => "postgres",
        }
    }

    /// One committed state, for as long as it is held. Nobody waits for it; a file's write-ahead log grows meanwhile.
    pub(crate) fn look(&self) -> Result<Snapshot, StoreError> {
        let session = self.engine.open(Mode::Read)?;
        session.begin(Mode::Read)?;
        let version: usize = session.one(self.dialect.version_of_schema(), &[], |row| row.get(0))?;
        let tables = tables::at(version)?;
        let epoch = "SELECT value FROM meta WHERE key = 'region_epoch'";
        let region_epoch = session.find(epoch, &[], log::epoch_of)?;
        let term = standing::read(&*session)?.term();
        let heads = log::heads(&*session)?;
        let mut counters = BTreeMap::new();
        for table in &tables {
            if let Some(column) = &table.counter {
                let sql = self.dialect.last_given_out(&table.name, column);
                let last: u64 = session.one(&sql, &[], |row| row.get(0))?;
                counters.insert(table.name.clone(), last);
            }
        }
        let _engine = Arc::clone(&self.engine);
        Ok(Snapshot { session, version, tables, region_epoch, term, heads, counters, _engine })
    }

    /// Why what is sealed in a store could not be read in this place; none: it can. Changes nothing.
    pub(crate) fn lacks_keys(
        &self,
        data_dir: &Path,
        key_file: Option<PathBuf>,
    ) -> Result<Option<String>, StoreError> {
        let engine = match self.dialect {
            Dialect::Sqlite => None,
            Dialect::Postgres => Some(&*self.engine),
        };
        vault::lacking(data_dir, engine, &KekFile::new(data_dir, key_file))
    }

    /// Makes the tables of `version` where there are none, and begins to fill them. A database in which somebody has a row
    /// already is refused.
    pub(crate) fn fill(&self, version: usize) -> Result<Result<Filling, Inhabited>, StoreError> {
        let tables = tables::at(version)?;
        self.engine.migrate(version)?;
        let session = self.engine.open(Mode::Write)?;
        session.begin(Mode::Write)?;
        let found: usize = session.one(self.dialect.version_of_schema(), &[], |row| row.get(0))?;
        if found != version {
            return Ok(Err(Inhabited::OtherVersion { found }));
        }
        // What a region that was started once and never used has written, it writes again.
        let own = ["log_head"];
        for table in tables.iter().filter(|table| !own.contains(&table.name.as_str())) {
            if session.exists(&format!("SELECT 1 FROM {} LIMIT 1", table.name), &[])? {
                return Ok(Err(Inhabited::Rows { table: table.name.clone() }));
            }
        }
        for table in own.into_iter().chain(["meta"]) {
            session.execute(&format!("DELETE FROM {table}"), &[])?;
        }
        let (dialect, _engine) = (self.dialect, Arc::clone(&self.engine));
        Ok(Ok(Filling { session, dialect, tables, rows: Vec::new(), bytes: 0, _engine }))
    }

    /// Brings what was filled to this program's version.
    pub(crate) fn modernise(&self) -> Result<(), StoreError> {
        self.engine.migrate(schema::NEWEST)
    }
}

/// Why a database cannot be filled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Inhabited {
    #[error("there are rows in its table {table} already")]
    Rows { table: String },
    #[error("it has tables of version {found} already")]
    OtherVersion { found: usize },
}

/// A committed state that is being looked at.
pub(crate) struct Snapshot {
    session: Box<dyn Session>,
    pub(crate) version: usize,
    pub(crate) tables: Vec<Table>,
    /// None: no region was ever started on it.
    pub(crate) region_epoch: Option<u32>,
    /// Which home of the region it is, or follows.
    pub(crate) term: Term,
    pub(crate) heads: Heads,
    /// The last numbers that columns have given out by themselves, by table.
    pub(crate) counters: BTreeMap<String, u64>,
    /// Drives the connection.
    _engine: Arc<dyn Engine>,
}

impl Snapshot {
    /// Every row of a table, one at a time.
    pub(crate) fn rows(
        &self,
        table: &Table,
        take: &mut dyn FnMut(&[Cell]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut cells = Vec::with_capacity(table.columns.len());
        self.session.stream(&table.select(), &mut |row| {
            cells.clear();
            for index in 0..table.columns.len() {
                cells.push(Cell::of(row.value(index)?));
            }
            take(&cells)?;
            Ok(ControlFlow::Continue(()))
        })
    }

    /// Every blob that a row refers to, once each, in the order of their digests.
    pub(crate) fn blobs(
        &self,
        take: &mut dyn FnMut(Digest) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let dialect = self.session.dialect();
        let mut parts = vec![
            format!("SELECT {} FROM asset WHERE digest IS NOT NULL", dialect.hex("digest")),
            format!("SELECT {} FROM release", dialect.component_of_release()),
        ];
        // Not in tables of every version.
        for (table, column) in [("asset_former", "digest"), ("push", "component")] {
            if self.tables.iter().any(|known| known.name == table) {
                parts.push(format!("SELECT {} FROM {table}", dialect.hex(column)));
            }
        }
        let sql = format!("{} ORDER BY 1", parts.join(" UNION "));
        self.session.stream(&sql, &mut |row| {
            let name: String = row.get(0)?;
            take(name.parse().map_err(|e| StoreError::corrupt("release", e))?)?;
            Ok(ControlFlow::Continue(()))
        })
    }

    /// What does not hold, in words.
    pub(crate) fn broken_laws(&self) -> Result<Vec<String>, StoreError> {
        if self.version != schema::NEWEST {
            let version = self.version;
            let detail =
                format!("it is of version {version}, and the laws are those of version {}", schema::NEWEST);
            return Err(StoreError::corrupt("store", detail));
        }
        laws::broken(&*self.session)
    }
}

/// A database that is being filled. Dropped before its end, it leaves nothing: the server undoes what was not committed, and
/// of a file the caller takes away what there is.
pub(crate) struct Filling {
    session: Box<dyn Session>,
    dialect: Dialect,
    pub(crate) tables: Vec<Table>,
    /// Rows of one table that wait for their statement.
    rows: Vec<Vec<Cell>>,
    bytes: usize,
    /// Drives the connection.
    _engine: Arc<dyn Engine>,
}

impl Filling {
    /// Puts a row in, soon.
    pub(crate) fn put(&mut self, table: &Table, row: Vec<Cell>) -> Result<(), StoreError> {
        if row.len() != table.columns.len() {
            let detail = format!("a row of {} has {} cells", table.name, row.len());
            return Err(StoreError::corrupt("backup", detail));
        }
        self.bytes += row.iter().map(Cell::bytes).sum::<usize>();
        self.rows.push(row);
        if self.rows.len() < ROWS_PER_INSERT && self.bytes < INSERT_BYTES_MAX {
            return Ok(());
        }
        self.flush(table)
    }

    fn flush(&mut self, table: &Table) -> Result<(), StoreError> {
        // Two statements for each table, so that none is made anew for each number of rows.
        let at_once = if self.rows.len() == ROWS_PER_INSERT { ROWS_PER_INSERT } else { 1 };
        let sql = table.insert(at_once);
        for rows in self.rows.chunks(at_once) {
            let cells: Vec<&dyn Param> = rows.iter().flatten().map(|cell| cell as &dyn Param).collect();
            self.session.execute(&sql, &cells)?;
        }
        self.rows.clear();
        self.bytes = 0;
        Ok(())
    }

    /// Nothing more of this table comes.
    pub(crate) fn end_table(&mut self, table: &Table) -> Result<(), StoreError> {
        self.flush(table)?;
        // A file that nobody has yet need not be one transaction, whose write-ahead log would be as long as the file.
        if self.dialect == Dialect::Sqlite {
            self.session.commit().map_err(told)?;
            self.session.begin(Mode::Write)?;
        }
        Ok(())
    }

    /// Everything is there. `counters`: as the backup knows them. The region that starts on it is told that it was restored.
    pub(crate) fn end(self, counters: &BTreeMap<String, u64>, term: Term) -> Result<(), StoreError> {
        for table in &self.tables {
            let Some(column) = &table.counter else { continue };
            let sql = format!("SELECT coalesce(max({column}), 0) FROM {}", table.name);
            let greatest: u64 = self.session.one(&sql, &[], |row| row.get(0))?;
            let last = counters.get(&table.name).copied().unwrap_or(0).max(greatest) + NUMBERS_SKIPPED;
            for sql in self.dialect.give_out_after(&table.name, column) {
                self.session.execute(&sql, params![last])?;
            }
        }
        restored::ask_for_new_history(&*self.session)?;
        // Nodes that have met it go to no home of a lower one.
        standing::set_term(&*self.session, term)?;
        self.session.commit().map_err(told)?;
        self.session.checkpoint(true, CHECKPOINT_WAIT_MAX)?;
        Ok(())
    }
}

/// Nobody else has the file.
const CHECKPOINT_WAIT_MAX: std::time::Duration = std::time::Duration::from_secs(5);

fn told(uncommitted: Uncommitted) -> StoreError {
    match uncommitted {
        Uncommitted::Not(error) | Uncommitted::Unknown(error) => error,
    }
}

/// Where a region on SQLite has its rows.
pub(crate) fn file_in(data_dir: &Path) -> PathBuf {
    data_dir.join("region.db")
}
