//! The home's end: what rows are now, of one moment, in the order in which they can be put in.
//!
//! It reads on a connection of its own, in one read transaction for each answer, beside the writer and the readers.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use minicbor::bytes::ByteArray;
use souk_replication::{Fold, Mark, Term};

use super::capture;
use super::frame::{Down, Holds, StreamId};
use crate::backup::rows;
use crate::store::backup::Cell;
use crate::store::backup::tables::{self, Kind, Table};
use crate::store::engine::{Engine, Mode, Param, Row, Session};
use crate::store::vault::{KeyRows, SubjectId, Vault};
use crate::store::{Store, StoreError, schema};

/// Rows asked for by one statement. As many parameters as the widest key has columns, sixteen times.
const ROWS_PER_SELECT: usize = 16;
/// A frame of rows is sent when it has so many bytes: what a stream's window holds. One row may be longer.
const FRAME_BYTES: usize = 256 << 10;
/// Tables whose rows are sealed with a shopper's key, which their column `subject` names.
const SEALED: [&str; 2] = ["orders", "checkout"];
/// Keys of rows that are gone, in one frame.
const KEYS_PER_FRAME: usize = 1_024;
/// Which rows of a table, beside those whose keys are named.
const ANY: &str = "";

/// What was handed out.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sent {
    pub(crate) stream: StreamId,
    /// The standby has everything up to here once it has this.
    pub(crate) to: u64,
    pub(crate) rows: u64,
    pub(crate) is_whole: bool,
    /// How far nodes' operations are in it, as far as that has moved: by node and epoch.
    pub(crate) marks: Vec<((u32, u32), Mark)>,
}

/// Takes a frame; false: nobody takes any more.
pub(crate) type Take<'a> = dyn FnMut(Down) -> bool + 'a;

/// Reads a home's rows for one standby.
pub(crate) struct Source {
    engine: Arc<dyn Engine>,
    vault: Vault,
    session: Option<Box<dyn Session>>,
    tables: Vec<Table>,
    /// The keys of sites have been sent on this connection.
    keys_are_sent: bool,
    /// Keys of shoppers that were destroyed, as far as this connection's standby was told: 16 bytes for each erasure that there ever
    /// was. The keyring has them in no order of time, and each erasure is told of by itself.
    destroyed: HashSet<SubjectId>,
}

impl Store {
    /// A reader for one standby.
    pub(crate) fn source(&self) -> Result<Source, StoreError> {
        Ok(Source {
            engine: Arc::clone(&self.engine),
            vault: self.vault.clone(),
            session: None,
            tables: tables::at(schema::NEWEST)?,
            keys_are_sent: false,
            destroyed: HashSet::new(),
        })
    }
}

impl Source {
    /// Hands out what a standby lacks that `holds` so much; none: it lacks nothing. Blocks.
    pub(crate) fn send(
        &mut self,
        holds: Option<Holds>,
        term: Term,
        now_ms: u64,
        take: &mut Take<'_>,
    ) -> Result<Option<Sent>, StoreError> {
        let session = match self.session.take() {
            Some(session) => session,
            None => self.engine.open(Mode::Read)?,
        };
        session.begin(Mode::Read)?;
        let sent = self.send_from(&*session, holds, term, now_ms, take);
        self.session = session.roll_back().then_some(session);
        sent
    }

    fn send_from(
        &mut self,
        conn: &dyn Session,
        holds: Option<Holds>,
        term: Term,
        now_ms: u64,
        take: &mut Take<'_>,
    ) -> Result<Option<Sent>, StoreError> {
        let Some(stream) = capture::stream(conn)? else {
            return Err(StoreError::NotHome("it does not note what its standby would need".to_owned()));
        };
        let (last, cut) = capture::span(conn)?;
        let after = holds
            .filter(|holds| *holds.stream == stream && (cut..=last).contains(&holds.seq))
            .map(|holds| holds.seq);
        if after == Some(last) {
            return Ok(None);
        }
        let mut out =
            Out { take, sent: Sent { stream, to: last, is_whole: after.is_none(), ..Sent::default() } };
        let is_whole = after.is_none();
        let stream = ByteArray::from(stream);
        out.frame(Down::Begin { stream, whole: is_whole, after: after.unwrap_or(0), term })?;
        match after {
            None => self.send_whole(conn, &mut out)?,
            Some(after) => self.send_changes(conn, after, &mut out)?,
        }
        out.frame(Down::End { seq: last, at_ms: now_ms })?;
        Ok(Some(out.sent))
    }

    fn send_whole(&mut self, conn: &dyn Session, out: &mut Out<'_, '_>) -> Result<(), StoreError> {
        self.destroyed.clear();
        self.send_keyring(out)?;
        self.vault.keyring_rows_of_shoppers(&mut |rows| out.keys(rows))?;
        for table in &self.tables {
            let mut part = Part::of(table);
            conn.stream(&format!("SELECT {} FROM {}", table.columns.join(", "), table.name), &mut |row| {
                part.add(row, out)?;
                Ok(ControlFlow::Continue(()))
            })?;
            part.end(out)?;
        }
        Ok(())
    }

    fn send_changes(
        &mut self,
        conn: &dyn Session,
        after: u64,
        out: &mut Out<'_, '_>,
    ) -> Result<(), StoreError> {
        let noted = capture::noted(conn, after)?;
        self.send_keys(conn, &noted, out)?;
        // Children before parents, so that nothing refers to what is gone; and before all that comes, so that a name or a number
        // that a row has given up is free for another.
        for table in self.tables.iter().rev() {
            let Some(keys) = noted.get(&table.name) else { continue };
            let gone: Vec<&String> = keys.iter().filter(|(_, gone)| **gone).map(|(key, _)| key).collect();
            for keys in gone.chunks(KEYS_PER_FRAME) {
                let keys = keys.iter().map(|key| (*key).clone()).collect();
                out.frame(Down::Gone { table: table.name.clone(), keys })?;
            }
        }
        for table in &self.tables {
            let Some(keys) = noted.get(&table.name) else { continue };
            let mut part = Part::of(table);
            let there = keys.iter().filter(|(_, gone)| !**gone).map(|(key, _)| cells_of(table, key));
            let there: Vec<Vec<Cell>> = there.collect::<Result<_, _>>()?;
            for rows in passes(&table.name) {
                each_of(conn, table, &table.columns.join(", "), rows, &there, &mut |row| part.add(row, out))?;
            }
            part.end(out)?;
        }
        Ok(())
    }

    /// The keys of shoppers of whom there are rows, before those rows; and what was destroyed.
    fn send_keys(
        &mut self,
        conn: &dyn Session,
        noted: &HashMap<String, HashMap<String, bool>>,
        out: &mut Out<'_, '_>,
    ) -> Result<(), StoreError> {
        let mut subjects: BTreeSet<SubjectId> = BTreeSet::new();
        for table in self.tables.iter().filter(|table| SEALED.contains(&table.name.as_str())) {
            let Some(keys) = noted.get(&table.name) else { continue };
            let there = keys.iter().filter(|(_, gone)| !**gone).map(|(key, _)| cells_of(table, key));
            let there: Vec<Vec<Cell>> = there.collect::<Result<_, _>>()?;
            each_of(conn, table, "subject", ANY, &there, &mut |row| {
                subjects.extend(row.get::<Option<SubjectId>>(0)?);
                Ok(())
            })?;
        }
        if !self.keys_are_sent {
            self.send_keyring(out)?;
        } else if noted.contains_key("erasure") {
            self.vault.keyring_rows_destroyed(&mut self.destroyed, &mut |rows| out.keys(rows))?;
        }
        self.vault.keyring_rows_of(&subjects, &mut |rows| out.keys(rows))
    }

    /// The keyring but for the keys of shoppers.
    fn send_keyring(&mut self, out: &mut Out<'_, '_>) -> Result<(), StoreError> {
        self.vault.keyring_rows_of_sites(&mut |rows| out.keys(rows))?;
        self.vault.keyring_rows_destroyed(&mut self.destroyed, &mut |rows| out.keys(rows))?;
        self.keys_are_sent = true;
        Ok(())
    }
}

/// Frames on their way out.
struct Out<'a, 'b> {
    take: &'a mut Take<'b>,
    sent: Sent,
}

impl Out<'_, '_> {
    fn frame(&mut self, frame: Down) -> Result<(), StoreError> {
        if (self.take)(frame) { Ok(()) } else { Err(StoreError::Closed) }
    }

    fn keys(&mut self, KeyRows { table, columns, rows }: KeyRows) -> Result<(), StoreError> {
        let mut bytes = Vec::new();
        for row in &rows {
            rows::encode(row, &mut bytes).map_err(|e| StoreError::corrupt(table, e))?;
        }
        let count = u32::try_from(rows.len()).unwrap_or(u32::MAX);
        let columns = columns.iter().map(|column| (*column).to_owned()).collect();
        self.frame(Down::Rows { table: table.to_owned(), columns, count, rows: bytes.into() })
    }
}

/// Rows of one table that wait for their frame.
struct Part<'a> {
    table: &'a Table,
    bytes: Vec<u8>,
    count: u32,
    cells: Vec<Cell>,
    /// Where a mark's columns are, in the table that has marks.
    mark: Option<[usize; 4]>,
}

impl<'a> Part<'a> {
    fn of(table: &'a Table) -> Self {
        let place = |name: &str| table.columns.iter().position(|column| column == name);
        let mark = (table.name == "cursor")
            .then(|| Some([place("node")?, place("epoch")?, place("hwm")?, place("fold")?]))
            .flatten();
        Self { table, bytes: Vec::new(), count: 0, cells: Vec::new(), mark }
    }

    fn add(&mut self, row: &Row<'_>, out: &mut Out<'_, '_>) -> Result<(), StoreError> {
        self.cells.clear();
        for index in 0..self.table.columns.len() {
            self.cells.push(Cell::of(row.value(index)?));
        }
        rows::encode(&self.cells, &mut self.bytes).map_err(|e| StoreError::corrupt("row_change", e))?;
        self.count += 1;
        if let Some([node, epoch, hwm, fold]) = self.mark {
            let fold: Option<i64> = row.get(fold)?;
            let fold = fold.map(|number| Fold::from_number(number.cast_unsigned()));
            out.sent.marks.push(((row.get(node)?, row.get(epoch)?), Mark { hwm: row.get(hwm)?, fold }));
        }
        if self.bytes.len() >= FRAME_BYTES { self.end(out) } else { Ok(()) }
    }

    fn end(&mut self, out: &mut Out<'_, '_>) -> Result<(), StoreError> {
        if self.count == 0 {
            return Ok(());
        }
        out.sent.rows += u64::from(self.count);
        let frame = Down::Rows {
            table: self.table.name.clone(),
            columns: self.table.columns.clone(),
            count: std::mem::take(&mut self.count),
            rows: std::mem::take(&mut self.bytes).into(),
        };
        out.frame(frame)
    }
}

/// The columns of a key as it was written down ([`capture`]).
pub(super) fn cells_of(table: &Table, key: &str) -> Result<Vec<Cell>, StoreError> {
    let unreadable = || StoreError::corrupt("row_change", format!("{key} is no key of table {}", table.name));
    let values: Vec<serde_json::Value> = serde_json::from_str(key).map_err(|_| unreadable())?;
    if values.len() != table.key.len() {
        return Err(unreadable());
    }
    let cells = table.key.iter().zip(values).map(|((_, kind), value)| {
        Some(match (kind, value) {
            (Kind::Text, serde_json::Value::String(text)) => Cell::Text(text),
            (Kind::Bytes, serde_json::Value::String(digits)) => Cell::Blob(hex::decode(digits).ok()?),
            (Kind::Number, value) => Cell::Int(value.as_i64()?),
            _ => return None,
        })
    });
    cells.collect::<Option<_>>().ok_or_else(unreadable)
}

/// Rows of a table of which one gives up what another takes, in an order in which they can be put in one by one.
fn passes(table: &str) -> &'static [&'static str] {
    match table {
        // One call of an order's provider is open at a time (`payment_call_open`), and the transaction that ends one begins the next.
        "payment_call" => &["AND outcome IS NOT NULL", "AND outcome IS NULL"],
        // What an erased shopper's order was asked for by, a browser may ask by again. It may begin so itself: then it is a matter of
        // chance, and of the next try.
        "orders" | "checkout" => {
            &["AND idempotency_key LIKE 'erased-%'", "AND idempotency_key NOT LIKE 'erased-%'"]
        }
        _ => &[ANY],
    }
}

/// Reads the rows of these keys, as many at once as one statement asks for. `rows`: which of them.
fn each_of(
    conn: &dyn Session,
    table: &Table,
    columns: &str,
    rows: &str,
    keys: &[Vec<Cell>],
    row: &mut dyn FnMut(&Row<'_>) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let select = |count: usize| {
        let width = table.key.len();
        let one = |at: usize| {
            let columns = table.key.iter().enumerate();
            let equal: Vec<_> = columns
                .map(|(index, (column, _))| format!("{column} = ?{}", at * width + index + 1))
                .collect();
            format!("({})", equal.join(" AND "))
        };
        let all: Vec<_> = (0..count).map(one).collect();
        format!("SELECT {columns} FROM {} WHERE ({}) {rows}", table.name, all.join(" OR "))
    };
    // Two statements for each table, so that none is made anew for each number of rows.
    let (many, single) = (select(ROWS_PER_SELECT), select(1));
    let mut ask = |sql: &str, keys: &[Vec<Cell>]| {
        let params: Vec<&dyn Param> = keys.iter().flatten().map(|cell| cell as &dyn Param).collect();
        conn.each(sql, &params, &mut |found| {
            row(found)?;
            Ok(ControlFlow::Continue(()))
        })
    };
    let mut chunks = keys.chunks_exact(ROWS_PER_SELECT);
    for keys in &mut chunks {
        ask(&many, keys)?;
    }
    for key in chunks.remainder() {
        ask(&single, std::slice::from_ref(key))?;
    }
    Ok(())
}

/// The tables by their names, each with its place among those that refer to each other.
pub(super) fn by_name(tables: Vec<Table>) -> BTreeMap<String, Table> {
    tables.into_iter().map(|table| (table.name.clone(), table)).collect()
}
