//! Tables `meta`, `log_head` and `log`: the versions of the logs down.
//!
//! A log's head moves in the transaction of the rows it tells about. The newest entries are kept as they were
//! written; a node further behind gets the state instead, so what is kept is a matter of speed, not of truth.

use std::ops::ControlFlow;

use souk_replication::{Heads, Log, Record};

use super::engine::{Param, Row, Session, Value, params};
use super::pair::capture;
use super::{Decision, Store, StoreError, Tx};

/// Bytes of one log's kept entries. Past it the oldest go, however few there are.
const LOG_BYTES_KEPT_MAX: u64 = 512 << 20;
/// The tail is cut once per this many appends, and so many entries at a time.
const TRIM_EVERY: u64 = 1_024;

/// A run of a log, or the news that the node is too far behind for one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Run {
    Changes {
        to: u64,
        records: Vec<Record>,
    },
    /// The entries after the cursor are gone, or the cursor is of another history.
    TooFarBehind,
}

/// What makes this store this one and no other.
#[derive(Clone)]
pub(crate) struct Identity {
    /// The number of this history of the logs: a region that was set up afresh must not be mistaken for the one whose
    /// versions a node has counted.
    pub(crate) region_epoch: u32,
    /// Key of the link's stateless resets: the same over restarts, so that a restarted region ends the dead connections of
    /// its former life at once. A secret.
    pub(crate) reset_key: [u8; 32],
}

/// How much of a log one read may return.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PageMax {
    pub(crate) records: usize,
    pub(crate) bytes: usize,
}

/// How many rows a page asks for at first; twice as many each further time. The whole of an answer is sent before its first
/// row is looked at (elsewhere than in SQLite), and a page of 256 KiB is full after some 2,000 rows of a price or a few of a
/// chain's settings: so at most as many rows come in vain as fit, or these. Seven questions reach a page's most records.
const PAGE_ROWS_FIRST: usize = 64;

impl PageMax {
    /// Reads rows until the page is full, and says whether it is. The first row always fits: a page makes progress.
    ///
    /// The statement has, after the parameters `of`, the version after which it begins and its limit; it orders by the
    /// version.
    pub(super) fn read(
        self,
        conn: &dyn Session,
        sql: &str,
        of: &[&dyn Param],
        after: u64,
        mut read: impl FnMut(&Row<'_>) -> Result<Record, StoreError>,
    ) -> Result<(Vec<Record>, bool), StoreError> {
        let (mut records, mut bytes, mut is_full) = (Vec::new(), 0, false);
        let (mut after, mut ask) = (after, PAGE_ROWS_FIRST);
        loop {
            let limit = ask.min(self.records - records.len());
            let mut found = 0;
            let params: Vec<&dyn Param> = of.iter().copied().chain([&after as &dyn Param, &limit]).collect();
            conn.each(sql, &params, &mut |row| {
                let record = read(row)?;
                bytes += record.body.len();
                found += 1;
                records.push(record);
                is_full = records.len() >= self.records || bytes >= self.bytes;
                Ok(if is_full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?;
            let Some(last) = records.last().filter(|_| !is_full && found == limit) else {
                return Ok((records, is_full));
            };
            after = last.version;
            ask *= 2;
        }
    }
}

pub(super) fn prepare(conn: &dyn Session) -> Result<(), StoreError> {
    for log in Log::ALL {
        let sql = "INSERT INTO log_head (log, version, floor, bytes) VALUES (?1, 0, 0, 0) ON CONFLICT (log) DO NOTHING";
        conn.execute(sql, params![log.code()])?;
    }
    Ok(())
}

pub(super) fn heads(conn: &dyn Session) -> Result<Heads, StoreError> {
    let mut heads = Heads::default();
    conn.each("SELECT log, version FROM log_head", &[], &mut |row| {
        // A log that this build does not know was written by a newer one; it is kept and not served.
        if let Some(log) = Log::from_code(row.get(0)?) {
            heads.set(log, row.get(1)?);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(heads)
}

/// The version that the next [`append`] to this log in this transaction will make.
pub(super) fn next_version(tx: &Tx<'_>, log: Log) -> Result<u64, StoreError> {
    tx.sql.one("SELECT version + 1 FROM log_head WHERE log = ?1", params![log.code()], |row| row.get(0))
}

/// Adds one entry and returns its version.
pub(super) fn append(tx: &Tx<'_>, log: Log, body: &[u8]) -> Result<u64, StoreError> {
    let version: u64 = {
        let sql =
            "UPDATE log_head SET version = version + 1, bytes = bytes + ?2 WHERE log = ?1 RETURNING version";
        tx.sql.one(sql, params![log.code(), body.len()], |row| row.get(0))?
    };
    tx.sql.execute(
        "INSERT INTO log (log, version, body) VALUES (?1, ?2, ?3)",
        params![log.code(), version, body],
    )?;
    tx.log_moved();
    if version.is_multiple_of(TRIM_EVERY) {
        trim(tx, log, version)?;
    }
    Ok(version)
}

/// Cuts the oldest entries once there are too many, by number or by bytes.
fn trim(tx: &Tx<'_>, log: Log, head: u64) -> Result<(), StoreError> {
    let (mut floor, mut bytes): (u64, u64) =
        tx.sql.one("SELECT floor, bytes FROM log_head WHERE log = ?1", params![log.code()], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?;
    let keep_from = head.saturating_sub(tx.settings.log_entries_kept_max);
    while floor < keep_from || bytes > LOG_BYTES_KEPT_MAX && floor < head {
        let step = (floor + TRIM_EVERY).min(head);
        let step = if bytes > LOG_BYTES_KEPT_MAX { step } else { step.min(keep_from) };
        let sql =
            "SELECT CAST(coalesce(sum(length(body)), 0) AS BIGINT) FROM log WHERE log = ?1 AND version <= ?2";
        let freed: u64 = tx.sql.one(sql, params![log.code(), step], |row| row.get(0))?;
        let sql = "DELETE FROM log WHERE log = ?1 AND version <= ?2";
        tx.sql.execute(sql, params![log.code(), step])?;
        floor = step;
        bytes = bytes.saturating_sub(freed);
    }
    let sql = "UPDATE log_head SET floor = ?2, bytes = ?3 WHERE log = ?1";
    tx.sql.execute(sql, params![log.code(), floor, bytes])?;
    Ok(())
}

/// Entries after `from`, in order, as many as fit.
pub(super) fn changes(conn: &dyn Session, log: Log, from: u64, page: PageMax) -> Result<Run, StoreError> {
    let (head, floor): (u64, u64) =
        conn.one("SELECT version, floor FROM log_head WHERE log = ?1", params![log.code()], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?;
    if from < floor || from > head {
        return Ok(Run::TooFarBehind);
    }
    let sql = "SELECT version, body FROM log WHERE log = ?1 AND version > ?2 ORDER BY version LIMIT ?3";
    let (records, _) = page.read(conn, sql, params![log.code()], from, |row| {
        Ok(Record { version: row.get(0)?, body: row.get(1)? })
    })?;
    let to = records.last().map_or(from, |record| record.version);
    Ok(Run::Changes { to, records })
}

/// The number of the history, however an engine keeps it.
pub(super) fn epoch_of(row: &Row<'_>) -> Result<u32, StoreError> {
    let unreadable = || StoreError::corrupt("meta", "the region's epoch is no number");
    match row.value(0)? {
        Value::Blob(bytes) => bytes.try_into().map(u32::from_be_bytes).map_err(|_| unreadable()),
        _ => row.get(0),
    }
}

impl Store {
    /// Who this store is. Made once, from the randomness that the caller brings.
    pub(crate) async fn identity(&self, fresh: Identity) -> Result<Identity, StoreError> {
        self.write(move |tx| {
            let epoch = tx.sql.dialect().epoch_in_meta(fresh.region_epoch);
            let sql = "INSERT INTO meta (key, value) VALUES ('region_epoch', ?1), ('reset_key', ?2)
                       ON CONFLICT (key) DO NOTHING";
            tx.sql.execute(sql, params![epoch, fresh.reset_key])?;
            let sql = "SELECT value FROM meta WHERE key = ?1";
            let found = Identity {
                region_epoch: tx.sql.one(sql, params!["region_epoch"], epoch_of)?,
                reset_key: tx.sql.one(sql, params!["reset_key"], |row| row.get(0))?,
            };
            Ok(Decision::Keep(found))
        })
        .await
    }

    /// Numbers the history of the logs anew: what nodes have counted so far says nothing about it any more, and each takes
    /// every log whole. So does a standby with the rows.
    pub(crate) async fn begin_history(&self, region_epoch: u32) -> Result<(), StoreError> {
        let stream = rand::random();
        self.write(move |tx| {
            capture::begin_anew(tx.sql, stream)?;
            let epoch = tx.sql.dialect().epoch_in_meta(region_epoch);
            let sql = "INSERT INTO meta (key, value) VALUES ('region_epoch', ?1)
                       ON CONFLICT (key) DO UPDATE SET value = ?1";
            tx.sql.execute(sql, params![epoch])?;
            Ok(Decision::Keep(()))
        })
        .await
    }

    /// Entries of `log` after `from`.
    pub(crate) async fn changes(&self, log: Log, from: u64, page: PageMax) -> Result<Run, StoreError> {
        self.read(move |conn| changes(conn, log, from, page)).await
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use rusqlite::Connection;

    use super::super::engine::{Dialect, EachRow, Mode, Uncommitted};
    use super::*;

    /// A session that notes how many rows it is asked for.
    struct Asked {
        rows: Connection,
        limits: RefCell<Vec<i64>>,
    }

    impl Session for Asked {
        fn dialect(&self) -> Dialect {
            self.rows.dialect()
        }

        fn run(&self, sql: &str, params: &[&dyn Param]) -> Result<usize, StoreError> {
            self.rows.run(sql, params)
        }

        fn each(&self, sql: &str, params: &[&dyn Param], row: &mut EachRow<'_>) -> Result<(), StoreError> {
            if let Some(Ok(Value::Int(limit))) = params.last().map(|limit| limit.value()) {
                self.limits.borrow_mut().push(limit);
            }
            self.rows.each(sql, params, row)
        }

        fn begin(&self, mode: Mode) -> Result<(), StoreError> {
            self.rows.begin(mode)
        }

        fn commit(&self) -> Result<(), Uncommitted> {
            Session::commit(&self.rows)
        }

        fn roll_back(&self) -> bool {
            self.rows.roll_back()
        }

        fn mark(&self) -> Result<(), StoreError> {
            self.rows.mark()
        }

        fn settle(&self, keep: bool) -> Result<(), StoreError> {
            self.rows.settle(keep)
        }
    }

    #[test]
    fn a_page_asks_for_few_rows_first_and_for_no_more_than_it_can_hold() {
        let rows = Connection::open_in_memory().expect("memory is there");
        rows.execute_batch("CREATE TABLE of_a_log (version INTEGER, body BLOB)").expect("a table");
        for version in 1..=1_000_u64 {
            let sql = "INSERT INTO of_a_log VALUES (?1, zeroblob(10))";
            Session::run(&rows, sql, params![version]).expect("a row");
        }
        let asked = Asked { rows, limits: RefCell::default() };
        let page = |page: PageMax, after: u64| {
            let sql = "SELECT version, body FROM of_a_log WHERE version > ?1 ORDER BY version LIMIT ?2";
            let read = |row: &Row<'_>| Ok(Record { version: row.get(0)?, body: row.get(1)? });
            let (records, is_full) = page.read(&asked, sql, &[], after, read).expect("a page");
            let versions: Vec<u64> = records.iter().map(|record| record.version).collect();
            (versions, is_full, asked.limits.take())
        };
        let by_bytes = PageMax { records: 16_384, bytes: 1_000 };
        assert_eq!(page(by_bytes, 0), ((1..=100).collect(), true, vec![64, 128]), "and not 16,384 rows");
        assert_eq!(page(by_bytes, 990), ((991..=1_000).collect(), false, vec![64]));
        let by_records = PageMax { records: 300, bytes: 1 << 20 };
        assert_eq!(page(by_records, 5), ((6..=305).collect(), true, vec![64, 128, 108]));
        let whole = PageMax { records: 16_384, bytes: 1 << 20 };
        assert_eq!(page(whole, 0), ((1..=1_000).collect(), false, vec![64, 128, 256, 512, 1_024]));
        assert_eq!(page(whole, 1_000), (Vec::new(), false, vec![64]));
    }
}
