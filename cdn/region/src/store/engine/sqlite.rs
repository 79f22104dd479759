//! SQLite: one file, one connection that writes, many that read. The default, and all that one machine needs.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, ErrorCode, OpenFlags, Statement, ToSql};

use super::{Columns, Dialect, EachRow, Engine, Mode, Param, Row, Session, Uncommitted, Value};
use crate::own;
use crate::store::{StoreError, schema};

/// How long a connection waits for another one's lock. In WAL mode only a checkpoint makes anyone wait.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// 16 MiB of pages per connection: with four readers and the writer 80 MiB at most.
const CACHE_KIB_PER_CONNECTION: i64 = 16 * 1024;
/// More than the number of distinct statements in this crate, so that none is compiled twice.
const STATEMENTS_CACHED: usize = 192;
/// After a checkpoint the write-ahead log is cut back to this.
const WAL_BYTES_KEPT: i64 = 64 << 20;

/// The database in a file.
pub(in crate::store) struct Sqlite {
    path: PathBuf,
}

impl Sqlite {
    pub(in crate::store) fn new(path: PathBuf) -> Self {
        Self { path }
    }
}

/// Settings of every connection, reader or writer.
pub(in crate::store) fn prepare(conn: &Connection) -> Result<(), StoreError> {
    conn.busy_timeout(BUSY_TIMEOUT)?;
    conn.pragma_update(None, "foreign_keys", true)?;
    // A database file that somebody prepared must not run code of its own choosing.
    conn.pragma_update(None, "trusted_schema", false)?;
    conn.pragma_update(None, "cache_size", -CACHE_KIB_PER_CONNECTION)?;
    conn.set_prepared_statement_cache_capacity(STATEMENTS_CACHED);
    Ok(())
}

/// A connection that cannot change anything.
pub(in crate::store) fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    prepare(&conn)?;
    conn.pragma_update(None, "query_only", true)?;
    Ok(conn)
}

/// Settings of the one that writes, and of the file.
fn prepare_writer(conn: &Connection) -> Result<(), StoreError> {
    prepare(conn)?;
    // FULL: a commit is on the disk before anyone is told about it, power cut included.
    conn.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))?;
    conn.pragma_update(None, "synchronous", "full")?;
    conn.pragma_update(None, "journal_size_limit", WAL_BYTES_KEPT)?;
    // What a shopper had erased is not left in pages that nobody uses.
    conn.pragma_update_and_check(None, "secure_delete", true, |_| Ok(()))?;
    Ok(())
}

impl Engine for Sqlite {
    fn migrate(&self, to: usize) -> Result<(), StoreError> {
        own::file(&self.path)?;
        let mut conn = Connection::open(&self.path)?;
        prepare_writer(&conn)?;
        schema::migrate_sqlite(&mut conn, to)
    }

    fn open(&self, mode: Mode) -> Result<Box<dyn Session>, StoreError> {
        let conn = match mode {
            Mode::Read => open_reader(&self.path)?,
            Mode::Write => {
                let conn = Connection::open(&self.path)?;
                prepare_writer(&conn)?;
                conn
            }
        };
        Ok(Box::new(conn))
    }
}

impl ToSql for Value<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match *self {
            Self::Null => ValueRef::Null,
            Self::Int(number) => ValueRef::Integer(number),
            Self::Text(text) => ValueRef::Text(text.as_bytes()),
            Self::Blob(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

impl Columns for rusqlite::Row<'_> {
    fn column(&self, index: usize) -> Result<Value<'_>, StoreError> {
        Ok(match self.get_ref(index)? {
            ValueRef::Null => Value::Null,
            ValueRef::Integer(number) => Value::Int(number),
            ValueRef::Text(text) => Value::Text(
                std::str::from_utf8(text).map_err(|error| rusqlite::Error::Utf8Error(index, error))?,
            ),
            ValueRef::Blob(bytes) => Value::Blob(bytes),
            // No column of ours is one: the tables are strict.
            ValueRef::Real(_) => {
                return Err(StoreError::Column { index, found: "a fraction", wanted: "no such thing" });
            }
        })
    }
}

fn bind(statement: &mut Statement<'_>, params: &[&dyn Param]) -> Result<(), StoreError> {
    for (index, param) in params.iter().enumerate() {
        statement.raw_bind_parameter(index + 1, param.value()?)?;
    }
    Ok(())
}

impl Session for Connection {
    fn dialect(&self) -> Dialect {
        Dialect::Sqlite
    }

    fn run(&self, sql: &str, params: &[&dyn Param]) -> Result<usize, StoreError> {
        let mut statement = self.prepare_cached(sql)?;
        bind(&mut statement, params)?;
        Ok(statement.raw_execute()?)
    }

    fn each(&self, sql: &str, params: &[&dyn Param], row: &mut EachRow<'_>) -> Result<(), StoreError> {
        let mut statement = self.prepare_cached(sql)?;
        bind(&mut statement, params)?;
        let mut rows = statement.raw_query();
        while let Some(found) = rows.next()? {
            if let ControlFlow::Break(()) = row(&Row::new(found))? {
                break;
            }
        }
        Ok(())
    }

    fn begin(&self, mode: Mode) -> Result<(), StoreError> {
        self.execute_batch(match mode {
            Mode::Read => "BEGIN DEFERRED",
            Mode::Write => "BEGIN IMMEDIATE",
        })?;
        Ok(())
    }

    fn commit(&self) -> Result<(), Uncommitted> {
        // A commit that fails leaves the transaction open, or has ended it; [`Session::roll_back`] makes sure.
        self.execute_batch("COMMIT").map_err(|error| match error.sqlite_error_code() {
            // The flush failed: what was to be flushed may be there after a crash, until it is written over.
            Some(ErrorCode::SystemIoFailure) => Uncommitted::Unknown(error.into()),
            _ => Uncommitted::Not(error.into()),
        })
    }

    fn roll_back(&self) -> bool {
        if !self.is_autocommit() {
            // Were this to fail, the next BEGIN on the connection says so.
            let _ended = self.execute_batch("ROLLBACK");
        }
        true
    }

    fn mark(&self) -> Result<(), StoreError> {
        Ok(self.execute_batch("SAVEPOINT command")?)
    }

    fn settle(&self, keep: bool) -> Result<(), StoreError> {
        // Some errors of SQLite (a full disk) end the whole transaction; then this fails too, and so does the commit.
        Ok(self.execute_batch(if keep {
            "RELEASE command"
        } else {
            "ROLLBACK TO command; RELEASE command"
        })?)
    }

    fn checkpoint(&self, whole: bool, wait_max: Duration) -> Result<bool, StoreError> {
        let mode = if whole { "TRUNCATE" } else { "PASSIVE" };
        self.busy_timeout(wait_max)?;
        let blocked =
            self.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| row.get::<_, bool>(0));
        self.busy_timeout(BUSY_TIMEOUT)?;
        Ok(!blocked?)
    }
}
