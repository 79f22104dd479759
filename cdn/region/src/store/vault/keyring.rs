//! The keyring: keys of sites and of shoppers, wrapped, apart from what they seal.
//!
//! A file of its own beside SQLite's, a schema of its own in PostgreSQL: what is saved with the store can be restored for years,
//! and a key that is in it is not destroyed. Each statement is a transaction; there is none over two of them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags};
use souk_commerce::id::SiteId;

use super::SubjectId;
use crate::own;
use crate::store::StoreError;
use crate::store::engine::{Engine, Mode, Session, params, sqlite};

/// Its name in the data folder.
const FILE: &str = "keyring.db";
/// Keys of sites, in one answer: as many as a region has sites.
const SITES_MAX: usize = 100_000;
/// How long a copy of the keyring that is being made is waited for.
const LOG_CUT_WAIT_MAX: Duration = Duration::from_secs(2);
/// `CREATE ... IF NOT EXISTS` does not keep two processes apart that begin at the same moment.
const SET_UP_ATTEMPTS_MAX: usize = 4;

/// The key of a site.
pub(super) struct SiteRow {
    pub(super) kek: String,
    pub(super) wrapped: Vec<u8>,
}

/// The key of a shopper.
pub(super) struct SubjectRow {
    pub(super) id: SubjectId,
    pub(super) wrapped: Vec<u8>,
}

fn select_kek(schema: &str) -> String {
    format!("SELECT kek FROM {schema}key_of_keys WHERE one = 1")
}

/// Where the keyring is.
enum Place {
    File(std::path::PathBuf),
    Server(Arc<dyn Engine>),
}

impl Place {
    fn open(&self) -> Result<Box<dyn Session>, StoreError> {
        match self {
            Self::File(path) => {
                own::file(path)?;
                let conn = Connection::open(path)?;
                sqlite::prepare(&conn)?;
                // A commit is on the disk, by one flush. What is deleted is overwritten, and then the log is cut.
                conn.pragma_update_and_check(None, "secure_delete", true, |_| Ok(()))?;
                conn.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))?;
                conn.pragma_update(None, "synchronous", "full")?;
                Ok(Box::new(conn))
            }
            Self::Server(engine) => engine.open(Mode::Write),
        }
    }

    /// What stands before the names of its tables.
    fn schema(&self) -> &'static str {
        match self {
            Self::File(_) => "",
            Self::Server(_) => "souk_vault.",
        }
    }

    fn set_up(&self, session: &dyn Session) -> Result<(), StoreError> {
        let (schema, blob, text) = match self {
            Self::File(_) => ("", "BLOB", "TEXT"),
            Self::Server(_) => {
                session.execute("CREATE SCHEMA IF NOT EXISTS souk_vault", &[])?;
                ("souk_vault.", "BYTEA", "TEXT COLLATE \"C\"")
            }
        };
        session.execute(
            &format!(
                "CREATE TABLE IF NOT EXISTS {schema}key_of_site (
                     site {text} PRIMARY KEY, kek {text} NOT NULL, wrapped {blob} NOT NULL)"
            ),
            &[],
        )?;
        session.execute(
            &format!(
                "CREATE TABLE IF NOT EXISTS {schema}key_of_keys (
                     one BIGINT PRIMARY KEY CHECK (one = 1), kek {text} NOT NULL)"
            ),
            &[],
        )?;
        session.execute(
            &format!(
                "CREATE TABLE IF NOT EXISTS {schema}key_of_shopper (
                     id {blob} PRIMARY KEY NOT NULL CHECK (length(id) = 16),
                     site {text} NOT NULL,
                     -- A keyed hash of the customer's number.
                     named {blob} NOT NULL CHECK (length(named) = 32),
                     wrapped {blob} NOT NULL,
                     UNIQUE (site, named))"
            ),
            &[],
        )?;
        session.execute(
            &format!(
                "CREATE TABLE IF NOT EXISTS {schema}key_destroyed (
                     id {blob} PRIMARY KEY NOT NULL CHECK (length(id) = 16),
                     site {text} NOT NULL)"
            ),
            &[],
        )?;
        Ok(())
    }
}

pub(in crate::store) struct Keyring {
    place: Place,
    /// None after it was lost, until the next question.
    session: Mutex<Option<Box<dyn Session>>>,
}

impl Keyring {
    pub(in crate::store) fn of_file(dir: &Path) -> Result<Self, StoreError> {
        Self::open(Place::File(dir.join(FILE)))
    }

    pub(in crate::store) fn of_server(engine: Arc<dyn Engine>) -> Result<Self, StoreError> {
        Self::open(Place::Server(engine))
    }

    fn open(place: Place) -> Result<Self, StoreError> {
        let session = place.open()?;
        let mut attempt = 1;
        while let Err(error) = place.set_up(&*session) {
            if attempt == SET_UP_ATTEMPTS_MAX {
                return Err(error);
            }
            attempt += 1;
        }
        Ok(Self { place, session: Mutex::new(Some(session)) })
    }

    /// Under which key of keys the keyring in this folder was begun, or wrapped last; none: there is no keyring. Makes nothing.
    pub(super) fn kek_in(dir: &Path) -> Result<Option<String>, StoreError> {
        let file = dir.join(FILE);
        if !file.exists() {
            return Ok(None);
        }
        let conn = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let session: &dyn Session = &conn;
        let is_there = session
            .exists("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'key_of_keys'", &[])?;
        if is_there { session.find(&select_kek(""), &[], |row| row.get(0)) } else { Ok(None) }
    }

    /// The same of a server.
    pub(super) fn kek_at(engine: &dyn Engine) -> Result<Option<String>, StoreError> {
        let session = engine.open(Mode::Read)?;
        let tables = "SELECT 1 FROM pg_catalog.pg_tables WHERE schemaname = 'souk_vault' AND tablename = 'key_of_keys'";
        if session.exists(tables, &[])? {
            session.find(&select_kek("souk_vault."), &[], |row| row.get(0))
        } else {
            Ok(None)
        }
    }

    /// Runs one statement, once more on a new connection if the old one is lost: each may be repeated.
    pub(super) fn ask<T>(
        &self,
        mut ask: impl FnMut(&dyn Session, &str) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut held = self.session.lock();
        for _ in 0..2 {
            let session = match held.take() {
                Some(session) => session,
                None => self.place.open()?,
            };
            match ask(&*session, self.place.schema()) {
                Err(StoreError::Lost(why)) => tracing::debug!(why, "the connection to the keyring is lost"),
                answer => {
                    *held = Some(session);
                    return answer;
                }
            }
        }
        Err(StoreError::Lost("the keyring".to_owned()))
    }

    /// The name of the key of keys under which the keyring was begun, or wrapped last.
    pub(super) fn kek(&self) -> Result<Option<String>, StoreError> {
        self.ask(|sql, schema| sql.find(&select_kek(schema), &[], |row| row.get(0)))
    }

    /// Begins under this one; answers under which it has begun.
    pub(super) fn begin(&self, kek: &str) -> Result<String, StoreError> {
        self.ask(|sql, schema| {
            let insert =
                format!("INSERT INTO {schema}key_of_keys (one, kek) VALUES (1, ?1) ON CONFLICT DO NOTHING");
            sql.execute(&insert, params![kek]).map(|_| ())
        })?;
        self.kek()?.ok_or_else(|| StoreError::corrupt("key_of_keys", "a row that was just written is gone"))
    }

    pub(super) fn set_kek(&self, kek: &str) -> Result<(), StoreError> {
        self.ask(|sql, schema| {
            let update = format!("UPDATE {schema}key_of_keys SET kek = ?1 WHERE one = 1");
            sql.execute(&update, params![kek]).map(|_| ())
        })
    }

    pub(super) fn sites(&self) -> Result<Vec<(SiteId, SiteRow)>, StoreError> {
        self.ask(|sql, schema| {
            let select = format!("SELECT site, kek, wrapped FROM {schema}key_of_site ORDER BY site LIMIT ?1");
            sql.list(&select, params![SITES_MAX], |row| {
                let site: String = row.get(0)?;
                let site = site.parse().map_err(|e| StoreError::corrupt("key_of_site", e))?;
                Ok((site, SiteRow { kek: row.get(1)?, wrapped: row.get(2)? }))
            })
        })
    }

    pub(super) fn site(&self, site: &SiteId) -> Result<Option<SiteRow>, StoreError> {
        self.ask(|sql, schema| {
            let select = format!("SELECT kek, wrapped FROM {schema}key_of_site WHERE site = ?1");
            sql.find(&select, params![site.as_str()], |row| {
                Ok(SiteRow { kek: row.get(0)?, wrapped: row.get(1)? })
            })
        })
    }

    /// Nothing, if there is one.
    pub(super) fn add_site(&self, site: &SiteId, row: &SiteRow) -> Result<(), StoreError> {
        self.ask(|sql, schema| {
            let insert = format!(
                "INSERT INTO {schema}key_of_site (site, kek, wrapped) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING"
            );
            sql.execute(&insert, params![site.as_str(), row.kek, row.wrapped]).map(|_| ())
        })
    }

    /// Wrapped anew; nothing, if another process has done it.
    pub(super) fn replace_site(&self, site: &SiteId, old: &SiteRow, new: &SiteRow) -> Result<(), StoreError> {
        self.ask(|sql, schema| {
            let update =
                format!("UPDATE {schema}key_of_site SET kek = ?3, wrapped = ?4 WHERE site = ?1 AND kek = ?2");
            sql.execute(&update, params![site.as_str(), old.kek, new.kek, new.wrapped]).map(|_| ())
        })
    }

    fn find(&self, site: &SiteId, column: &str, value: &[u8]) -> Result<Option<SubjectRow>, StoreError> {
        self.ask(|sql, schema| {
            let select =
                format!("SELECT id, wrapped FROM {schema}key_of_shopper WHERE site = ?1 AND {column} = ?2");
            sql.find(&select, params![site.as_str(), value], |row| {
                Ok(SubjectRow { id: row.get(0)?, wrapped: row.get(1)? })
            })
        })
    }

    pub(super) fn subject(&self, site: &SiteId, named: &[u8; 32]) -> Result<Option<SubjectRow>, StoreError> {
        self.find(site, "named", named)
    }

    pub(super) fn subject_by_id(
        &self,
        site: &SiteId,
        id: &SubjectId,
    ) -> Result<Option<SubjectRow>, StoreError> {
        self.find(site, "id", id)
    }

    /// Nothing, if the shopper has one.
    pub(super) fn add_subject(
        &self,
        site: &SiteId,
        named: &[u8; 32],
        row: &SubjectRow,
    ) -> Result<(), StoreError> {
        self.ask(|sql, schema| {
            let insert = format!(
                "INSERT INTO {schema}key_of_shopper (id, site, named, wrapped) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (site, named) DO NOTHING"
            );
            sql.execute(&insert, params![row.id, site.as_str(), named, row.wrapped]).map(|_| ())
        })
    }

    /// Numbers whose keys were destroyed, after `after`, a page at a time.
    pub(super) fn destroyed(
        &self,
        after: Option<&SubjectId>,
        limit: usize,
    ) -> Result<Vec<(String, SubjectId)>, StoreError> {
        let after = after.map_or(&[][..], |id| &id[..]);
        self.ask(|sql, schema| {
            let select =
                format!("SELECT site, id FROM {schema}key_destroyed WHERE id > ?1 ORDER BY id LIMIT ?2");
            sql.list(&select, params![after, limit], |row| Ok((row.get(0)?, row.get(1)?)))
        })
    }

    /// What it held is overwritten when this returns, as far as the engine can say.
    pub(super) fn remove_subject(&self, site: &SiteId, id: &SubjectId) -> Result<(), StoreError> {
        self.strike_out(site, id)?;
        self.cut_log()
    }

    /// The first step: that it was destroyed tells a backup's rows about an erased shopper from those whose keyring is lost.
    pub(in crate::store) fn note_destroyed(&self, site: &SiteId, id: &SubjectId) -> Result<(), StoreError> {
        self.ask(|sql, schema| {
            let note = format!(
                "INSERT INTO {schema}key_destroyed (id, site) VALUES (?1, ?2) ON CONFLICT DO NOTHING"
            );
            sql.execute(&note, params![id, site.as_str()]).map(drop)
        })
    }

    /// Takes a key out. It is in the log until that is cut.
    pub(super) fn strike_out(&self, site: &SiteId, id: &SubjectId) -> Result<(), StoreError> {
        self.note_destroyed(site, id)?;
        self.ask(|sql, schema| {
            let delete = format!("DELETE FROM {schema}key_of_shopper WHERE site = ?1 AND id = ?2");
            sql.execute(&delete, params![site.as_str(), id]).map(drop)
        })
    }

    /// What was taken out is in no log any more when this returns. Busy: somebody copies the keyring. Asked again, it is cut.
    pub(super) fn cut_log(&self) -> Result<(), StoreError> {
        self.ask(
            |sql, _| {
                if sql.checkpoint(true, LOG_CUT_WAIT_MAX)? { Ok(()) } else { Err(StoreError::Busy) }
            },
        )
    }
}
