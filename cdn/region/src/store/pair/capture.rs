//! Table `row_change`: the keys of rows that were written, noted by triggers in the transaction that wrote them.
//!
//! What a row is now is read when it is sent, so a row that is written a thousand times while its standby is away is sent once.
//! Only a region of a pair has the triggers. They are made anew with a stream of a new name whenever there was a time without them,
//! or the tables changed: numbers of another stream say nothing.

use std::collections::HashMap;
use std::ops::ControlFlow;

use super::frame::StreamId;
use crate::store::backup::tables::{self, Kind, Table};
use crate::store::engine::{Dialect, Session, Uncommitted, params};
use crate::store::{Decision, Store, StoreError, schema};

/// Noted keys that are kept for a standby that lacks them: at some hundred bytes each 50 MB, and as much in memory when they are
/// sent. One that lacks more is given all rows anew.
pub(crate) const KEPT_MAX: u64 = 500_000;
/// The same while a standby takes all rows in, and until it has what changed meanwhile: 400 MB for a moment. A copy of 100 GB at
/// 100 MB/s takes a quarter of an hour, in which a region writes 4,000 rows a second before the copy begins anew.
pub(crate) const KEPT_FOR_COPY_MAX: u64 = 4_000_000;
/// Keys that one transaction takes away: those of a second.
const TAKEN_AWAY_MAX: u64 = 50_000;
const STREAM: &str = "change_stream";
/// For which version of the tables the triggers were made.
const STREAM_OF: &str = "change_stream_of";
/// Up to where noted keys may have been taken away.
const CUT: &str = "change_cut";
/// Up to where the standby holds everything.
const HELD: &str = "held_by_standby";

/// How a row's key is written down: an array in JSON, bytes as hexadecimal digits.
fn key(dialect: Dialect, table: &Table, row: &str) -> String {
    let column = |(name, kind): &(String, Kind)| match kind {
        Kind::Bytes => dialect.hex(&format!("{row}.{name}")),
        Kind::Number | Kind::Text => format!("{row}.{name}"),
    };
    let columns: Vec<_> = table.key.iter().map(column).collect();
    dialect.json_array(&columns)
}

/// The statements that make the triggers of a table.
fn triggers(dialect: Dialect, table: &Table) -> Vec<String> {
    let name = &table.name;
    let note = |row: &str, gone: u8| {
        format!(
            "INSERT INTO row_change (of_table, key, gone) VALUES ('{name}', {}, {gone});",
            key(dialect, table, row)
        )
    };
    let columns: Vec<_> = table.key.iter().map(|(column, _)| column.as_str()).collect();
    match dialect {
        Dialect::Sqlite => {
            let same: Vec<_> = columns.iter().map(|column| format!("OLD.{column} IS NEW.{column}")).collect();
            let (of, same) = (columns.join(", "), same.join(" AND "));
            let on = |ending: &str, when: &str, body: String| {
                format!("CREATE TRIGGER followed_{name}_{ending} AFTER {when} BEGIN {body} END")
            };
            vec![
                on("i", &format!("INSERT ON {name}"), note("NEW", 0)),
                on("u", &format!("UPDATE ON {name}"), note("NEW", 0)),
                on("k", &format!("UPDATE OF {of} ON {name} WHEN NOT ({same})"), note("OLD", 1)),
                on("d", &format!("DELETE ON {name}"), note("OLD", 1)),
            ]
        }
        Dialect::Postgres => {
            let moved: Vec<_> =
                columns.iter().map(|column| format!("OLD.{column} IS DISTINCT FROM NEW.{column}")).collect();
            vec![
                format!(
                    "CREATE OR REPLACE FUNCTION followed_{name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                         IF TG_OP = 'DELETE' THEN {} RETURN NULL; END IF;
                         IF TG_OP = 'UPDATE' AND ({}) THEN {} END IF;
                         {}
                         RETURN NULL;
                     END $$",
                    note("OLD", 1),
                    moved.join(" OR "),
                    note("OLD", 1),
                    note("NEW", 0)
                ),
                format!(
                    "CREATE TRIGGER followed AFTER INSERT OR UPDATE OR DELETE ON {name}
                     FOR EACH ROW EXECUTE FUNCTION followed_{name}()"
                ),
            ]
        }
    }
}

/// Takes the triggers of a table away, if it has any.
fn without_triggers(dialect: Dialect, table: &Table) -> Vec<String> {
    let name = &table.name;
    match dialect {
        Dialect::Sqlite => ["i", "u", "k", "d"]
            .map(|ending| format!("DROP TRIGGER IF EXISTS followed_{name}_{ending}"))
            .into(),
        Dialect::Postgres => vec![
            format!("DROP TRIGGER IF EXISTS followed ON {name}"),
            format!("DROP FUNCTION IF EXISTS followed_{name}()"),
        ],
    }
}

/// The stream that the store's changes are noted in, if they are.
pub(in crate::store) fn stream(conn: &dyn Session) -> Result<Option<StreamId>, StoreError> {
    conn.find("SELECT value FROM meta WHERE key = ?1", params![STREAM], |row| row.get(0))
}

fn version() -> [u8; 8] {
    (schema::NEWEST as u64).to_be_bytes()
}

/// Whether changes are noted as they are to be: of the tables as they are, or not at all.
fn is_set_up(conn: &dyn Session, is_followed: bool) -> Result<bool, StoreError> {
    let made_for: Option<[u8; 8]> =
        conn.find("SELECT value FROM meta WHERE key = ?1", params![STREAM_OF], |row| row.get(0))?;
    Ok(made_for == is_followed.then(version))
}

/// Begins to note changes, or ceases to, within a writing transaction. `fresh`: the name of a stream, if a new one is to be begun.
pub(in crate::store) fn set_up(
    conn: &dyn Session,
    is_followed: bool,
    fresh: StreamId,
) -> Result<(), StoreError> {
    if is_set_up(conn, is_followed)? {
        return Ok(());
    }
    let dialect = conn.dialect();
    for table in tables::at(schema::NEWEST)? {
        for sql in without_triggers(dialect, &table) {
            conn.execute(&sql, &[])?;
        }
        if is_followed {
            for sql in triggers(dialect, &table) {
                conn.execute(&sql, &[])?;
            }
        }
    }
    conn.execute("DELETE FROM meta WHERE key = ?1", params![STREAM_OF])?;
    end_stream(conn)?;
    if is_followed {
        conn.execute("INSERT INTO meta (key, value) VALUES (?1, ?2)", params![STREAM_OF, version()])?;
        begin_stream(conn, fresh)?;
    }
    Ok(())
}

/// Begins a stream of this name in place of the one there is, if changes are noted. What was noted before says nothing any more about
/// what is here: numbers go on from where a copy of this store was, and not from where a standby is.
pub(in crate::store) fn begin_anew(conn: &dyn Session, fresh: StreamId) -> Result<(), StoreError> {
    if stream(conn)?.is_none() {
        return Ok(());
    }
    end_stream(conn)?;
    begin_stream(conn, fresh)
}

fn end_stream(conn: &dyn Session) -> Result<(), StoreError> {
    conn.execute("DELETE FROM row_change", &[])?;
    conn.execute("DELETE FROM meta WHERE key IN (?1, ?2, ?3)", params![STREAM, CUT, HELD]).map(drop)
}

fn begin_stream(conn: &dyn Session, name: StreamId) -> Result<(), StoreError> {
    conn.execute("INSERT INTO meta (key, value) VALUES (?1, ?2)", params![STREAM, name])?;
    // The stream's own beginning, a row of no table: whoever holds it has everything that was there before, so nobody who has not
    // been given all of it is taken for one who lacks nothing.
    conn.execute("INSERT INTO row_change (of_table, key, gone) VALUES ('', '[]', 0)", &[]).map(drop)
}

/// The same, in a transaction of its own, before a store is served. Where there is nothing to do it needs no lock: a process starts
/// beside others that have theirs, for as long as an import takes.
pub(in crate::store) fn begin(session: &dyn Session, is_followed: bool) -> Result<(), StoreError> {
    if is_set_up(session, is_followed)? {
        return Ok(());
    }
    session.begin_patiently()?;
    let done = set_up(session, is_followed, rand::random()).and_then(|()| {
        session.commit().map_err(|error| match error {
            Uncommitted::Not(error) | Uncommitted::Unknown(error) => error,
        })
    });
    if done.is_err() {
        session.roll_back();
    }
    done
}

/// The last number that was noted, which is never taken away; and the least that one may hold and be sent what follows. Numbers have
/// gaps: on PostgreSQL what is undone has taken some.
pub(super) fn span(conn: &dyn Session) -> Result<(u64, u64), StoreError> {
    let last = conn.one("SELECT coalesce(max(seq), 0) FROM row_change", &[], |row| row.get(0))?;
    let cut: Option<[u8; 8]> =
        conn.find("SELECT value FROM meta WHERE key = ?1", params![CUT], |row| row.get(0))?;
    Ok((last, cut.map_or(0, u64::from_be_bytes)))
}

/// What was noted after `after`: by table, each key once, and whether its row is gone.
pub(super) fn noted(
    conn: &dyn Session,
    after: u64,
) -> Result<HashMap<String, HashMap<String, bool>>, StoreError> {
    let mut by_table: HashMap<String, HashMap<String, bool>> = HashMap::new();
    let sql = "SELECT of_table, key, gone FROM row_change WHERE seq > ?1 ORDER BY seq";
    conn.each(sql, params![after], &mut |row| {
        let (table, key, gone): (String, String, bool) = (row.get(0)?, row.get(1)?, row.get(2)?);
        by_table.entry(table).or_default().insert(key, gone);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(by_table)
}

/// What of the noted keys need not be kept.
enum Forget {
    Nothing {
        left: u64,
    },
    /// What one transaction takes away, of those up to `wanted`.
    UpTo {
        upto: u64,
        wanted: u64,
        last: u64,
    },
}

fn forgotten(conn: &dyn Session, held: u64, kept_max: u64) -> Result<Forget, StoreError> {
    let sql = "SELECT coalesce(min(seq), 0), coalesce(max(seq), 0) FROM row_change";
    let (first, last): (u64, u64) = conn.one(sql, &[], |row| Ok((row.get(0)?, row.get(1)?)))?;
    if last == 0 {
        return Ok(Forget::Nothing { left: 0 });
    }
    // The last one stays: it is how the next number is known to follow.
    let wanted = held.max(last.saturating_sub(kept_max)).min(last - 1);
    let upto = wanted.min(first.saturating_add(TAKEN_AWAY_MAX - 1));
    Ok(if upto < first {
        Forget::Nothing { left: last - first + 1 }
    } else {
        Forget::UpTo { upto, wanted, last }
    })
}

impl Store {
    /// The last number that was noted: whatever was committed before is at or below it. 0: nobody notes anything.
    pub(crate) async fn change_head(&self) -> Result<u64, StoreError> {
        self.read(|conn| Ok(span(conn)?.0)).await
    }

    /// The stream that changes are noted in, if they are.
    pub(crate) async fn change_stream(&self) -> Result<Option<StreamId>, StoreError> {
        self.read(stream).await
    }

    /// Up to where the standby has said that it holds everything, as any process has heard it: where several share the database.
    pub(crate) async fn held_by_standby(&self) -> Result<u64, StoreError> {
        self.read(|conn| {
            let held: Option<[u8; 8]> =
                conn.find("SELECT value FROM meta WHERE key = ?1", params![HELD], |row| row.get(0))?;
            Ok(held.map_or(0, u64::from_be_bytes))
        })
        .await
    }

    /// Tells the other processes so.
    pub(crate) async fn note_held_by_standby(&self, seq: u64) -> Result<(), StoreError> {
        self.write(move |tx| {
            let sql =
                "INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2";
            tx.sql.execute(sql, params![HELD, seq.to_be_bytes()])?;
            Ok(Decision::Keep(()))
        })
        .await
    }

    /// What the standby holds need not be kept; nor what is more than `kept_max`. Answers how many are left.
    pub(crate) async fn forget_changes(&self, held: u64, kept_max: u64) -> Result<u64, StoreError> {
        loop {
            let (left, is_all) = self.forget_some_changes(held, kept_max).await?;
            if is_all {
                return Ok(left);
            }
        }
    }

    /// As many as one transaction takes away; where there are none, it only looks: this is asked once a second. True: those were all.
    async fn forget_some_changes(&self, held: u64, kept_max: u64) -> Result<(u64, bool), StoreError> {
        if let Forget::Nothing { left } = self.read(move |conn| forgotten(conn, held, kept_max)).await? {
            return Ok((left, true));
        }
        self.write(move |tx| {
            let (upto, wanted, last) = match forgotten(tx.sql, held, kept_max)? {
                Forget::Nothing { left } => return Ok(Decision::Undo((left, true))),
                Forget::UpTo { upto, wanted, last } => (upto, wanted, last),
            };
            tx.sql.execute("DELETE FROM row_change WHERE seq <= ?1", params![upto])?;
            let sql =
                "INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2";
            tx.sql.execute(sql, params![CUT, upto.to_be_bytes()])?;
            Ok(Decision::Keep((last - upto, upto == wanted)))
        })
        .await
    }
}
