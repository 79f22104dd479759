//! One connection to PostgreSQL: statements prepared once each, values in their wire types, errors by their meaning.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::error::Error as _;
use std::ops::ControlFlow;
use std::time::Duration;

use bytes::BytesMut;
use tokio_postgres::error::Severity;
use tokio_postgres::types::{IsNull, ToSql, Type};
use tokio_postgres::{Client, Statement};

use super::super::{Columns, Dialect, EachRow, Mode, Param, Row, Session, Uncommitted, Value};
use super::wait::{send_off, wait};
use crate::store::StoreError;

/// What the server allows a statement, in its own words. An import of 16 MiB takes seconds.
const STATEMENT_TIMEOUT: &str = "30s";
/// How long a writing transaction waits for that of another process. A process that died holds its lock until the server
/// notices, and nobody is served meanwhile: whoever asked is told to come again.
const LOCK_TIMEOUT: &str = "5s";
/// A writer says the next thing within milliseconds. One that is silent for so long is dead, and holds the only lock.
const SILENCE_TIMEOUT: &str = "10s";
/// The server's own limit and as much again for the way: a connection that has not answered by then is lost. What has no
/// such limit at the server is waited for with [`PATIENCE_MAX`].
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(60);

/// Rows of one page of a long answer. The largest are orders of 8 MiB, and there are few of them: a page of everyday rows is
/// some hundred KiB.
const ROWS_PER_PAGE: usize = 100;
/// What only ends when it is done: a migration of tables of years, and the wait for one that another process has under way.
/// A server that is lost meanwhile shows on the connection; this is for one that hangs and keeps it.
const PATIENCE_MAX: Duration = Duration::from_secs(7 * 86_400);

/// An error as the store tells it. Only the message: a detail may quote a row.
pub(super) fn told(error: &tokio_postgres::Error) -> StoreError {
    if let Some(refused) = error.as_db_error() {
        let (code, message) = (refused.code().code().to_owned(), refused.message().to_owned());
        let is_end = matches!(refused.parsed_severity(), Some(Severity::Fatal | Severity::Panic))
            || refused.severity() == "FATAL";
        return if is_end {
            StoreError::Lost(format!("{message} ({code})"))
        } else {
            StoreError::Refused { code, message }
        };
    }
    let source = error.source().map(|source| format!(": {source}")).unwrap_or_default();
    let is_lost = error.is_closed() || error.source().is_some_and(|s| s.is::<std::io::Error>());
    let text = format!("{error}{source}");
    if is_lost {
        StoreError::Lost(text)
    } else {
        StoreError::Refused { code: "client".to_owned(), message: text }
    }
}

pub(in crate::store) struct PgSession {
    client: Client,
    mode: Mode,
    /// [`ANSWER_WAIT_MAX`].
    answer_wait_max: Duration,
    /// By their portable text. As many as the store has statements.
    statements: RefCell<HashMap<String, Statement>>,
    /// An answer was not waited for to its end: what comes next would be another's.
    is_late: Cell<bool>,
}

impl PgSession {
    pub(super) fn new(client: Client, mode: Mode) -> Self {
        let answer_wait_max = ANSWER_WAIT_MAX;
        Self { client, mode, answer_wait_max, statements: RefCell::default(), is_late: Cell::new(false) }
    }

    #[cfg(test)]
    pub(super) const fn answer_within_for_tests(&mut self, wait_max: Duration) {
        self.answer_wait_max = wait_max;
    }

    fn answer<T>(
        &self,
        future: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, StoreError> {
        self.answer_within(self.answer_wait_max, future)
    }

    fn answer_within<T>(
        &self,
        wait_max: Duration,
        future: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, StoreError> {
        match wait(future, wait_max) {
            Some(answer) => answer.map_err(|error| told(&error)),
            None => {
                self.is_late.set(true);
                Err(StoreError::Lost("the server does not answer".to_owned()))
            }
        }
    }

    /// Statements without parameters, in one round trip.
    pub(in crate::store) fn script(&self, sql: &str) -> Result<(), StoreError> {
        self.answer(self.client.batch_execute(sql))
    }

    /// The same, however long it takes.
    pub(in crate::store) fn script_patiently(&self, sql: &str) -> Result<(), StoreError> {
        self.answer_within(PATIENCE_MAX, self.client.batch_execute(sql))
    }

    fn prepared(&self, sql: &str) -> Result<Statement, StoreError> {
        if let Some(statement) = self.statements.borrow().get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.answer(self.client.prepare(&numbered(sql)))?;
        self.statements.borrow_mut().insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }
}

/// `?1` as PostgreSQL writes it: `$1`. No text of ours within quotes has a question mark before a digit.
fn numbered(sql: &str) -> String {
    let mut numbered = String::with_capacity(sql.len());
    let mut chars = sql.chars().peekable();
    while let Some(char) = chars.next() {
        let is_parameter = char == '?' && chars.peek().is_some_and(char::is_ascii_digit);
        numbered.push(if is_parameter { '$' } else { char });
    }
    numbered
}

fn values<'a>(params: &'a [&dyn Param]) -> Result<Vec<Value<'a>>, StoreError> {
    params.iter().map(|param| param.value()).collect()
}

fn by_reference<'a>(values: &'a [Value<'_>]) -> Vec<&'a (dyn ToSql + Sync)> {
    values.iter().map(|value| value as &(dyn ToSql + Sync)).collect()
}

impl ToSql for Value<'_> {
    fn to_sql(
        &self,
        ty: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match *self {
            Self::Null => Ok(IsNull::Yes),
            Self::Int(number) if *ty == Type::INT8 => number.to_sql(ty, out),
            Self::Int(number) if *ty == Type::INT4 => i32::try_from(number)?.to_sql(ty, out),
            Self::Text(text) if *ty == Type::TEXT => without_nul(text).to_sql(ty, out),
            Self::Blob(bytes) if *ty == Type::BYTEA => bytes.to_sql(ty, out),
            value => Err(format!("a statement wants {ty} and is given {}", value.kind()).into()),
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn to_sql_checked(
        &self,
        ty: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        self.to_sql(ty, out)
    }
}

/// A text here cannot hold the character 0. Nobody can read it either, and an order must not fail for it.
fn without_nul(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { Cow::Owned(text.replace('\0', "\u{fffd}")) } else { Cow::Borrowed(text) }
}

impl Columns for tokio_postgres::Row {
    fn column(&self, index: usize) -> Result<Value<'_>, StoreError> {
        let unreadable = |error: tokio_postgres::Error| told(&error);
        let Some(column) = self.columns().get(index) else {
            return Err(StoreError::Column { index, found: "nothing", wanted: "a column" });
        };
        let value = match *column.type_() {
            Type::INT8 => self.try_get::<_, Option<i64>>(index).map_err(unreadable)?.map(Value::Int),
            Type::INT4 => {
                self.try_get::<_, Option<i32>>(index).map_err(unreadable)?.map(|n| Value::Int(n.into()))
            }
            Type::BOOL => {
                self.try_get::<_, Option<bool>>(index).map_err(unreadable)?.map(|b| Value::Int(b.into()))
            }
            Type::TEXT => self.try_get::<_, Option<&str>>(index).map_err(unreadable)?.map(Value::Text),
            Type::BYTEA => self.try_get::<_, Option<&[u8]>>(index).map_err(unreadable)?.map(Value::Blob),
            _ => return Err(StoreError::Column { index, found: "another type", wanted: "one of ours" }),
        };
        Ok(value.unwrap_or(Value::Null))
    }
}

impl Session for PgSession {
    fn dialect(&self) -> Dialect {
        Dialect::Postgres
    }

    fn run(&self, sql: &str, params: &[&dyn Param]) -> Result<usize, StoreError> {
        let statement = self.prepared(sql)?;
        let values = values(params)?;
        let rows = self.answer(self.client.execute(&statement, &by_reference(&values)))?;
        Ok(usize::try_from(rows).unwrap_or(usize::MAX))
    }

    fn each(&self, sql: &str, params: &[&dyn Param], row: &mut EachRow<'_>) -> Result<(), StoreError> {
        let statement = self.prepared(sql)?;
        let values = values(params)?;
        for found in &self.answer(self.client.query(&statement, &by_reference(&values)))? {
            if let ControlFlow::Break(()) = row(&Row::new(found))? {
                break;
            }
        }
        Ok(())
    }

    fn stream(&self, sql: &str, row: &mut EachRow<'_>) -> Result<(), StoreError> {
        self.script(&format!("DECLARE page NO SCROLL CURSOR FOR {sql}"))?;
        let fetch = format!("FETCH FORWARD {ROWS_PER_PAGE} FROM page");
        loop {
            // Not by a statement that is kept: what a cursor answers has another form for each query.
            let page = self.answer(self.client.query(&fetch, &[]))?;
            for found in &page {
                if let ControlFlow::Break(()) = row(&Row::new(found))? {
                    return self.script("CLOSE page");
                }
            }
            if page.len() < ROWS_PER_PAGE {
                return self.script("CLOSE page");
            }
        }
    }

    fn begin(&self, mode: Mode) -> Result<(), StoreError> {
        match mode {
            Mode::Read => self.script(&format!(
                "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
                 SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT}'"
            )),
            // Read committed: what is read after the lock was given is what its last holder has left.
            Mode::Write => self.script(&format!(
                "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = '{LOCK_TIMEOUT}';
                 SET LOCAL idle_in_transaction_session_timeout = '{SILENCE_TIMEOUT}';
                 SET LOCAL statement_timeout = '{STATEMENT_TIMEOUT}';
                 UPDATE store SET commits = commits + 1 WHERE one = 1"
            )),
        }
    }

    fn begin_patiently(&self) -> Result<(), StoreError> {
        self.script_patiently(&format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED;
             SET LOCAL idle_in_transaction_session_timeout = '{SILENCE_TIMEOUT}';
             UPDATE store SET commits = commits + 1 WHERE one = 1"
        ))
    }

    fn commit(&self) -> Result<(), Uncommitted> {
        self.script("COMMIT").map_err(|error| match error {
            // 40003 and class 08 say that the server does not know either, and "client" that its answer was none.
            StoreError::Refused { ref code, .. }
                if code != "client" && code != "40003" && !code.starts_with("08") =>
            {
                Uncommitted::Not(error)
            }
            _ => Uncommitted::Unknown(error),
        })
    }

    fn roll_back(&self) -> bool {
        if self.client.is_closed() || self.is_late.get() {
            return false;
        }
        match self.mode {
            // It has nothing to undo, and whoever gives it back may not be made to wait.
            Mode::Read => {
                send_off(self.client.batch_execute("ROLLBACK"));
                true
            }
            Mode::Write => self.script("ROLLBACK").is_ok(),
        }
    }

    fn mark(&self) -> Result<(), StoreError> {
        self.script("SAVEPOINT command")
    }

    fn settle(&self, keep: bool) -> Result<(), StoreError> {
        self.script(if keep {
            "RELEASE SAVEPOINT command"
        } else {
            "ROLLBACK TO SAVEPOINT command; RELEASE SAVEPOINT command"
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_numbered_as_the_server_writes_them() {
        let sql = "SELECT ?1, '?' || x FROM t WHERE a = ?12 AND b LIKE '%?,%'";
        assert_eq!(numbered(sql), "SELECT $1, '?' || x FROM t WHERE a = $12 AND b LIKE '%?,%'");
    }
}
