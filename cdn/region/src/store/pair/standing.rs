//! What a store is: home, standby, or a home that was replaced. Rows of table `meta`, which no backup and no standby takes over.
//!
//! The word stands in the store and not in a file of settings, so that it changes in one transaction, holds for every process
//! over the database, and a former home that comes back reads it before it does anything.

use std::sync::Arc;

use souk_replication::{FIRST_TERM, Term, is_replaced};

use super::capture;
use super::frame::StreamId;
use crate::store::backup::{Door, tables};
use crate::store::engine::{Mode, Session, Uncommitted, params};
use crate::store::{Decision, Store, StoreError, audit, restored, schema};

/// The term of the home that this store is or was.
const TERM: &str = "term";
/// There: this store follows a home.
const STANDBY: &str = "standby";
/// The greatest term that somebody has told this store of.
const MET: &str = "term_met";
/// Up to where this store holds what its home has, with which term; not there before it has all of it once.
const FOLLOWED: &str = "followed";
/// There: this home has taken over, and no standby has held everything since.
const ALONE: &str = "alone";
/// What an operator has done, to be written into the audit log by the region that starts.
const TOLD: &str = "takeover_told";

/// How far a standby is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Followed {
    pub(crate) stream: StreamId,
    /// Everything that the home had noted up to here.
    pub(crate) seq: u64,
    /// The home's.
    pub(crate) term: Term,
    /// The home's clock when it was so.
    pub(crate) at_ms: u64,
}

impl Followed {
    const BYTES: usize = 40;

    fn to_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::BYTES);
        bytes.extend_from_slice(&self.stream);
        for number in [self.seq, self.term, self.at_ms] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        bytes
    }

    fn of_bytes(bytes: [u8; Self::BYTES]) -> Self {
        let number = |at: usize| {
            let part = bytes[at..at + 8].try_into().expect("eight bytes of forty");
            u64::from_be_bytes(part)
        };
        let stream = bytes[..16].try_into().expect("sixteen bytes of forty");
        Self { stream, seq: number(16), term: number(24), at_ms: number(32) }
    }
}

/// What a store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    Home {
        term: Term,
    },
    Standby {
        /// None: it has not got everything yet.
        followed: Option<Followed>,
        /// No home of a lower term is followed.
        met: Term,
    },
    /// It was home, and another one is.
    Replaced {
        term: Term,
        by: Term,
    },
}

impl Standing {
    /// For logs, metrics and people.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Home { .. } => "home",
            Self::Standby { .. } => "standby",
            Self::Replaced { .. } => "replaced",
        }
    }

    /// The term that it knows of.
    pub(crate) const fn term(&self) -> Term {
        match self {
            Self::Home { term } => *term,
            Self::Standby { followed: Some(followed), .. } => followed.term,
            Self::Standby { followed: None, met } => *met,
            Self::Replaced { by, .. } => *by,
        }
    }
}

/// Why a store cannot become what an operator wants.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotSo {
    #[error("it is home already, in term {0}")]
    Home(Term),
    #[error(
        "it has never held all of its home's rows: what it would go on with is not a region. Restore a backup instead"
    )]
    Empty,
    #[error(
        "another home has replaced it (term {by}), and what it holds may be behind: if that one is gone for good, say so (force)"
    )]
    Replaced { by: Term },
    #[error(
        "there are rows in its table {0}: they would be replaced by the home's. Back it up if anybody may miss one (souk region \
         backup), then say so: --discard"
    )]
    Inhabited(String),
    #[error(
        "no term comes after the one that it has met: no region has been taken over so often, and somebody has made that number up"
    )]
    Exhausted,
}

/// What a takeover has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub(crate) struct TakenOver {
    pub(crate) term: Term,
    /// By the former home's clock: the moment that this store goes on from.
    pub(crate) as_of_ms: Option<u64>,
}

fn number(conn: &dyn Session, key: &str) -> Result<Option<u64>, StoreError> {
    let found: Option<[u8; 8]> =
        conn.find("SELECT value FROM meta WHERE key = ?1", params![key], |row| row.get(0))?;
    Ok(found.map(u64::from_be_bytes))
}

fn put(conn: &dyn Session, key: &str, value: &[u8]) -> Result<(), StoreError> {
    let sql = "INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2";
    conn.execute(sql, params![key, value]).map(drop)
}

fn forget(conn: &dyn Session, key: &str) -> Result<(), StoreError> {
    conn.execute("DELETE FROM meta WHERE key = ?1", params![key]).map(drop)
}

/// What the store is, as of the session's transaction.
pub(in crate::store) fn read(conn: &dyn Session) -> Result<Standing, StoreError> {
    let term = number(conn, TERM)?.unwrap_or(FIRST_TERM);
    let met = number(conn, MET)?.unwrap_or(FIRST_TERM);
    if number(conn, STANDBY)?.is_some() {
        let sql = "SELECT value FROM meta WHERE key = ?1";
        let followed: Option<[u8; Followed::BYTES]> = conn.find(sql, params![FOLLOWED], |row| row.get(0))?;
        return Ok(Standing::Standby { followed: followed.map(Followed::of_bytes), met });
    }
    Ok(if is_replaced(term, met) { Standing::Replaced { term, by: met } } else { Standing::Home { term } })
}

/// Whether a transaction of a home may go on: looked at within each where that may change, so that a store that was fenced commits
/// nothing any more, whichever process it was told by.
pub(in crate::store) fn demand_home(conn: &dyn Session) -> Result<(), StoreError> {
    let sql = "SELECT key, value FROM meta WHERE key IN (?1, ?2, ?3)";
    let (mut term, mut met, mut is_standby) = (FIRST_TERM, FIRST_TERM, false);
    conn.each(sql, params![TERM, MET, STANDBY], &mut |row| {
        let (key, value): (String, [u8; 8]) = (row.get(0)?, row.get(1)?);
        let value = u64::from_be_bytes(value);
        match key.as_str() {
            TERM => term = value,
            MET => met = value,
            _ => is_standby = true,
        }
        Ok(std::ops::ControlFlow::Continue(()))
    })?;
    match (is_standby, is_replaced(term, met)) {
        (true, _) => Err(StoreError::NotHome("it follows the region's home".to_owned())),
        (_, true) => {
            Err(StoreError::NotHome(format!("another home (term {met}) has replaced it (term {term})")))
        }
        (false, false) => Ok(()),
    }
}

/// In the transaction that has put everything in up to there.
pub(super) fn set_followed(conn: &dyn Session, followed: Followed) -> Result<(), StoreError> {
    put(conn, FOLLOWED, &followed.to_bytes())?;
    let met = number(conn, MET)?.unwrap_or(FIRST_TERM).max(followed.term);
    put(conn, MET, &met.to_be_bytes())
}

/// In a store that is filled from a backup of a home of this term.
pub(in crate::store) fn set_term(conn: &dyn Session, term: Term) -> Result<(), StoreError> {
    put(conn, TERM, &term.max(FIRST_TERM).to_be_bytes())?;
    put(conn, MET, &term.max(FIRST_TERM).to_be_bytes())
}

/// In a store that is made anew beside the one that it will replace.
pub(super) fn set_standby(conn: &dyn Session) -> Result<(), StoreError> {
    put(conn, STANDBY, &1_u64.to_be_bytes())
}

fn told(uncommitted: Uncommitted) -> StoreError {
    match uncommitted {
        Uncommitted::Not(error) | Uncommitted::Unknown(error) => error,
    }
}

impl Door {
    /// Runs `work` in a writing transaction of its own, beside a process that serves the store, or before there is one.
    fn change<T>(&self, work: impl FnOnce(&dyn Session) -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.engine.migrate(schema::NEWEST)?;
        let session = self.engine.open(Mode::Write)?;
        session.begin(Mode::Write)?;
        match work(&*session) {
            Ok(done) => session.commit().map(|()| done).map_err(told),
            Err(error) => {
                session.roll_back();
                Err(error)
            }
        }
    }

    /// What the store is, before anybody has it. One without tables is to be a home.
    pub(crate) fn standing(&self) -> Result<Standing, StoreError> {
        let session = self.engine.open(Mode::Read)?;
        let has_tables = match session.exists("SELECT 1 FROM meta LIMIT 1", &[]) {
            Ok(has_rows) => has_rows,
            // No such table.
            Err(StoreError::Refused { code, .. }) if code == "42P01" => false,
            Err(StoreError::Sqlite(error)) if error.to_string().contains("no such table") => false,
            Err(error) => return Err(error),
        };
        if has_tables { read(&*session) } else { Ok(Standing::Home { term: FIRST_TERM }) }
    }

    /// The stream that the store's changes are noted in, if they are: the same for each process over it.
    pub(crate) fn change_stream(&self) -> Result<Option<StreamId>, StoreError> {
        capture::stream(&*self.engine.open(Mode::Read)?)
    }

    /// A home of term `met` has replaced this one, if it is of a lower term. From this commit on it writes nothing.
    pub(crate) fn replaced(&self, met: Term) -> Result<Standing, StoreError> {
        self.change(|conn| {
            if number(conn, MET)?.unwrap_or(FIRST_TERM) < met {
                put(conn, MET, &met.to_be_bytes())?;
            }
            read(conn)
        })
    }

    /// Makes the store one that follows a home. What it holds is replaced by the home's rows; with `discard` even if it holds any.
    pub(crate) fn follow(&self, discard: bool) -> Result<Result<(), NotSo>, StoreError> {
        self.change(|conn| {
            if !discard {
                for table in tables::at(schema::NEWEST)? {
                    let is_own = table.name == "log_head";
                    if !is_own && conn.exists(&format!("SELECT 1 FROM {} LIMIT 1", table.name), &[])? {
                        return Ok(Err(NotSo::Inhabited(table.name)));
                    }
                }
            }
            let met = read(conn)?.term();
            put(conn, MET, &met.to_be_bytes())?;
            for key in [TERM, FOLLOWED, TOLD, ALONE] {
                forget(conn, key)?;
            }
            restored::ask_for_no_history(conn)?;
            capture::set_up(conn, false, [0; 16])?;
            set_standby(conn)?;
            Ok(Ok(()))
        })
    }

    /// Makes a standby the home, in the next term; or, with `force`, a replaced home again. The region that starts on it begins a
    /// new history, as one that was restored does. `by`: who wanted it, for the audit log.
    pub(crate) fn take_over(
        &self,
        by: &serde_json::Value,
        force: bool,
    ) -> Result<Result<TakenOver, NotSo>, StoreError> {
        self.change(|conn| {
            let as_of_ms = match read(conn)? {
                Standing::Home { term } => return Ok(Err(NotSo::Home(term))),
                Standing::Standby { followed: None, .. } => return Ok(Err(NotSo::Empty)),
                Standing::Standby { followed: Some(followed), .. } => Some(followed.at_ms),
                Standing::Replaced { by, .. } if !force => return Ok(Err(NotSo::Replaced { by })),
                Standing::Replaced { .. } => None,
            };
            let met = number(conn, MET)?.unwrap_or(FIRST_TERM);
            let Some(term) = met.checked_add(1) else { return Ok(Err(NotSo::Exhausted)) };
            put(conn, TERM, &term.to_be_bytes())?;
            put(conn, MET, &term.to_be_bytes())?;
            for key in [STANDBY, FOLLOWED] {
                forget(conn, key)?;
            }
            put(conn, ALONE, &1_u64.to_be_bytes())?;
            restored::skip_numbers(conn, &tables::at(schema::NEWEST)?)?;
            restored::ask_for_new_history(conn)?;
            let detail = serde_json::json!({ "term": term, "as_of_ms": as_of_ms, "by": by });
            put(conn, TOLD, detail.to_string().as_bytes())?;
            Ok(Ok(TakenOver { term, as_of_ms }))
        })
    }
}

impl Store {
    /// Says in the store that a home of term `met` has replaced this one. Beside the writer, which looks at it. Blocks.
    pub(crate) fn replaced(&self, met: Term) -> Result<Standing, StoreError> {
        Door::of(Arc::clone(&self.engine)).replaced(met)
    }

    /// What the store is.
    pub(crate) async fn role(&self) -> Result<Standing, StoreError> {
        self.read(read).await
    }

    /// Whether this home has taken over and no standby has held everything since: what it has counts, at level 2 too, for there is
    /// nobody else who could go on with less.
    pub(crate) async fn is_alone(&self) -> Result<bool, StoreError> {
        self.read(|conn| Ok(number(conn, ALONE)?.is_some())).await
    }

    /// A standby holds everything: from now on its word is waited for, after a restart too.
    pub(crate) async fn is_not_alone(&self) -> Result<(), StoreError> {
        self.write(|tx| forget(tx.sql, ALONE).map(Decision::Keep)).await
    }

    /// Writes a takeover into the audit log, once. Where there is none it only looks: a process starts beside others that write.
    pub(crate) async fn note_takeover(&self) -> Result<(), StoreError> {
        if !self.read(|conn| conn.exists("SELECT 1 FROM meta WHERE key = ?1", params![TOLD])).await? {
            return Ok(());
        }
        self.write(|tx| {
            let sql = "SELECT value FROM meta WHERE key = ?1";
            let Some(text) = tx.sql.find(sql, params![TOLD], |row| row.get::<Vec<u8>>(0))? else {
                return Ok(Decision::Undo(()));
            };
            let detail: serde_json::Value =
                serde_json::from_slice(&text).map_err(|e| StoreError::corrupt("meta", e))?;
            let of = |key: &str| detail["by"][key].as_str().unwrap_or_default().to_owned();
            let actor = audit::Actor { name: of("actor"), peer: of("peer") };
            let deed = audit::Deed { action: "region.taken_over", subject: String::new(), detail };
            audit::record(tx, &actor, &deed)?;
            forget(tx.sql, TOLD)?;
            Ok(Decision::Keep(()))
        })
        .await
    }
}
