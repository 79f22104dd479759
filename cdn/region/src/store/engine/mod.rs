//! The seam between the store and a database: one set of statements, whoever runs them.
//!
//! The rest of the store writes SQL that every engine understands, with parameters `?1`, `?2`, and reads [`Row`]s; what an
//! engine says differently stands in [`dialect`]. A [`Session`] is one connection. It is used by one thread at a time and
//! blocks; what the store promises about commits is built on it by [`super::writer`] and [`super::readers`].
//!
//! What a portable statement is: no `INSERT OR IGNORE`, no `rowid`, no function of one engine, sums cast to `BIGINT`
//! (elsewhere they are wider than what they add up), columns of the table itself named with it in `ON CONFLICT ... DO UPDATE`,
//! a `LIMIT` wherever reading stops early (elsewhere the whole answer is sent).

pub(super) mod dialect;
pub(super) mod many;
pub(super) mod postgres;
pub(super) mod sqlite;

use std::ops::ControlFlow;
use std::time::Duration;

use super::StoreError;
pub(super) use dialect::Dialect;

/// What a column or a parameter can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Null,
    Int(i64),
    Text(&'a str),
    Blob(&'a [u8]),
}

impl Value<'_> {
    const fn kind(&self) -> &'static str {
        match self {
            Self::Null => "NULL",
            Self::Int(_) => "a number",
            Self::Text(_) => "a text",
            Self::Blob(_) => "bytes",
        }
    }
}

/// What can be handed to a statement.
pub(super) trait Param {
    fn value(&self) -> Result<Value<'_>, StoreError>;
}

impl<T: Param + ?Sized> Param for &T {
    fn value(&self) -> Result<Value<'_>, StoreError> {
        (**self).value()
    }
}

impl<T: Param> Param for Option<T> {
    fn value(&self) -> Result<Value<'_>, StoreError> {
        self.as_ref().map_or(Ok(Value::Null), Param::value)
    }
}

impl Param for str {
    fn value(&self) -> Result<Value<'_>, StoreError> {
        Ok(Value::Text(self))
    }
}

impl Param for String {
    fn value(&self) -> Result<Value<'_>, StoreError> {
        Ok(Value::Text(self))
    }
}

impl Param for Vec<u8> {
    fn value(&self) -> Result<Value<'_>, StoreError> {
        Ok(Value::Blob(self))
    }
}

impl Param for [u8] {
    fn value(&self) -> Result<Value<'_>, StoreError> {
        Ok(Value::Blob(self))
    }
}

impl<const N: usize> Param for [u8; N] {
    fn value(&self) -> Result<Value<'_>, StoreError> {
        Ok(Value::Blob(self))
    }
}

impl Param for bool {
    fn value(&self) -> Result<Value<'_>, StoreError> {
        Ok(Value::Int(i64::from(*self)))
    }
}

/// Numbers go in and out checked, never by a cast: what a column cannot hold is an error and not another number.
macro_rules! numbers {
    ($($type:ty),*) => {$(
        impl Param for $type {
            fn value(&self) -> Result<Value<'_>, StoreError> {
                i64::try_from(*self).map(Value::Int).map_err(|_| StoreError::NumberTooLarge(self.to_string()))
            }
        }

        impl FromValue for $type {
            fn from_value(value: Value<'_>) -> Option<Self> {
                match value {
                    Value::Int(number) => Self::try_from(number).ok(),
                    _ => None,
                }
            }
        }
    )*};
}
numbers!(i64, u64, u32, u16, u8, usize);

impl Param for i32 {
    fn value(&self) -> Result<Value<'_>, StoreError> {
        Ok(Value::Int(i64::from(*self)))
    }
}

/// What can be read from a column.
pub(super) trait FromValue: Sized {
    /// None: the value is of another kind, or does not fit.
    fn from_value(value: Value<'_>) -> Option<Self>;
}

impl<T: FromValue> FromValue for Option<T> {
    fn from_value(value: Value<'_>) -> Option<Self> {
        match value {
            Value::Null => Some(None),
            value => T::from_value(value).map(Some),
        }
    }
}

impl FromValue for bool {
    fn from_value(value: Value<'_>) -> Option<Self> {
        match value {
            Value::Int(number) => Some(number != 0),
            _ => None,
        }
    }
}

impl FromValue for String {
    fn from_value(value: Value<'_>) -> Option<Self> {
        match value {
            Value::Text(text) => Some(text.to_owned()),
            _ => None,
        }
    }
}

impl FromValue for Vec<u8> {
    fn from_value(value: Value<'_>) -> Option<Self> {
        match value {
            Value::Blob(bytes) => Some(bytes.to_vec()),
            _ => None,
        }
    }
}

impl<const N: usize> FromValue for [u8; N] {
    fn from_value(value: Value<'_>) -> Option<Self> {
        match value {
            Value::Blob(bytes) => bytes.try_into().ok(),
            _ => None,
        }
    }
}

/// Parameters of a statement, in the order of their numbers.
macro_rules! params {
    ($($param:expr),* $(,)?) => {
        &[$(&$param as &dyn $crate::store::engine::Param),*]
    };
}
pub(super) use params;

/// A row as an engine holds it.
pub(super) trait Columns {
    fn column(&self, index: usize) -> Result<Value<'_>, StoreError>;
}

/// A row of an answer, looked at while the engine holds it.
pub(super) struct Row<'a>(&'a dyn Columns);

impl<'a> Row<'a> {
    pub(super) fn new(columns: &'a dyn Columns) -> Self {
        Self(columns)
    }

    pub(super) fn get<T: FromValue>(&self, index: usize) -> Result<T, StoreError> {
        let value = self.0.column(index)?;
        T::from_value(value).ok_or_else(|| StoreError::Column {
            index,
            found: value.kind(),
            wanted: std::any::type_name::<T>(),
        })
    }

    pub(super) fn value(&self, index: usize) -> Result<Value<'_>, StoreError> {
        self.0.column(index)
    }
}

/// What a transaction is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Sees one committed state for as long as it lasts.
    Read,
    /// The only one that writes, over all processes, until it ends: what it reads, nobody changes.
    Write,
}

/// Why a commit was not heard to succeed.
#[derive(Debug)]
pub(super) enum Uncommitted {
    /// Nothing of the transaction is there.
    Not(StoreError),
    /// The engine went away before it answered: all of the transaction is there, or nothing.
    Unknown(StoreError),
}

/// Asks for a row, and says whether it wants another.
pub(super) type EachRow<'a> = dyn FnMut(&Row<'_>) -> Result<ControlFlow<()>, StoreError> + 'a;

/// One connection to a database. The store calls the methods of `dyn Session`, which are made of these.
pub(super) trait Session: Send {
    fn dialect(&self) -> Dialect;

    /// Runs a statement and returns how many rows it changed.
    fn run(&self, sql: &str, params: &[&dyn Param]) -> Result<usize, StoreError>;

    /// Runs a query and hands its rows out one by one. The session may be used meanwhile.
    fn each(&self, sql: &str, params: &[&dyn Param], row: &mut EachRow<'_>) -> Result<(), StoreError>;

    /// The same for an answer that may be as large as the database: only a page of it is held at a time. Within a
    /// transaction, one at a time.
    fn stream(&self, sql: &str, row: &mut EachRow<'_>) -> Result<(), StoreError> {
        self.each(sql, &[], row)
    }

    fn begin(&self, mode: Mode) -> Result<(), StoreError>;

    /// Begins a writing transaction, however long other processes have theirs: for what is done once, before anybody is served.
    fn begin_patiently(&self) -> Result<(), StoreError> {
        self.begin(Mode::Write)
    }

    fn commit(&self) -> Result<(), Uncommitted>;

    /// Ends a transaction that has nothing to keep, if there is one. False: the session is good for nothing any more.
    fn roll_back(&self) -> bool;

    /// Marks a place in the transaction to go back to.
    fn mark(&self) -> Result<(), StoreError>;

    /// Keeps what was done since the mark, or undoes it; the mark is gone.
    fn settle(&self, keep: bool) -> Result<(), StoreError>;

    /// Moves a write-ahead log of the engine's into the database, and cuts it back if `whole`. False: somebody was in the
    /// way. An engine that sees to its own log has nothing to do.
    fn checkpoint(&self, _whole: bool, _wait_max: Duration) -> Result<bool, StoreError> {
        Ok(true)
    }
}

impl dyn Session + '_ {
    pub(super) fn execute(&self, sql: &str, params: &[&dyn Param]) -> Result<usize, StoreError> {
        self.run(sql, params)
    }

    /// The first row, if there is any.
    pub(super) fn find<T>(
        &self,
        sql: &str,
        params: &[&dyn Param],
        mut read: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        let mut found = None;
        self.each(sql, params, &mut |row| {
            found = Some(read(row)?);
            Ok(ControlFlow::Break(()))
        })?;
        Ok(found)
    }

    /// The first row of an answer that always has one.
    pub(super) fn one<T>(
        &self,
        sql: &str,
        params: &[&dyn Param],
        read: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.find(sql, params, read)?.ok_or_else(|| StoreError::NoRow(sql.to_owned()))
    }

    /// Every row. The statement bounds their number.
    pub(super) fn list<T, C: Default + Extend<T>>(
        &self,
        sql: &str,
        params: &[&dyn Param],
        mut read: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<C, StoreError> {
        let mut list = C::default();
        self.each(sql, params, &mut |row| {
            list.extend([read(row)?]);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(list)
    }

    pub(super) fn exists(&self, sql: &str, params: &[&dyn Param]) -> Result<bool, StoreError> {
        Ok(self.find(sql, params, |_| Ok(()))?.is_some())
    }
}

/// A database that sessions can be had of.
pub(super) trait Engine: Send + Sync {
    /// Brings the tables to version `to`, and refuses those that a newer program has written.
    fn migrate(&self, to: usize) -> Result<(), StoreError>;

    fn open(&self, mode: Mode) -> Result<Box<dyn Session>, StoreError>;

    /// Whether other processes may be at work on the same database.
    fn is_shared(&self) -> bool {
        false
    }
}
