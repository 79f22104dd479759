//! The standby's end: frames in, and at their end a store that is the home's of a moment; or what it was before.
//!
//! Rows that changed are one transaction. All rows are filled into a new file, which then takes the old one's place; on a server
//! they are one transaction too. Keys of shoppers go into the keyring first: a row that nobody can read must not be there.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use minicbor::Decoder;
use souk_config::PostgresConfig;
use souk_replication::Term;

use super::capture;
use super::frame::{Down, StreamId};
use super::source::{by_name, cells_of};
use super::standing::{self, Followed, Standing};
use crate::backup::rows;
use crate::store::backup::tables::{self, Table};
use crate::store::backup::{Cell, file_in};
use crate::store::engine::postgres::Postgres;
use crate::store::engine::sqlite::Sqlite;
use crate::store::engine::{Engine, Mode, Param, Session, Uncommitted};
use crate::store::vault::{Keyring, is_of_keyring};
use crate::store::{KekFile, StoreError, schema, search};

/// Rows that one statement puts in. With the widest table (26 columns) 416 parameters, of 32,766 that an engine takes.
const ROWS_PER_INSERT: usize = 16;
/// Rows of a whole copy in one transaction of a new file: some hundred megabytes. Its commit moves the write-ahead log, which is as
/// long, into the file, and the home waits for that ([`crate::pair::home::FRAME_TAKEN_MAX`]).
const ROWS_PER_COMMIT: usize = 50_000;
/// Nobody else has the file.
const CHECKPOINT_WAIT_MAX: Duration = Duration::from_secs(5);
/// Whoever reads the file that is about to be replaced is waited for so long: a backup of the largest region there is. Longer, and
/// the home would take this end for gone.
const READERS_WAIT_MAX: Duration = Duration::from_secs(20);
const READERS_PAUSE: Duration = Duration::from_millis(20);
/// A log in which something was erased is cut. Whoever reads the file is waited for so long, and asked again at the next part, or a
/// second later: at level 2 a checkout waits 1.5 s for the word that a part is held, and this comes before it.
const LOG_CUT_WAIT_MAX: Duration = Duration::from_millis(50);
/// Tables whose rows say that something was erased: what they came with has overwritten it.
const ERASES: [&str; 2] = ["cart_erased", "erasure"];
/// Tables whose rows name files.
const NAMES_BLOBS: [&str; 4] = ["asset", "asset_former", "push", "release"];

/// Why a standby cannot take what it is sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SinkError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the home sends what does not fit: {0}")]
    Frame(String),
    #[error("the home is of a newer release, whose {0} is not known here: upgrade the standby first")]
    Newer(String),
    /// Somebody has made it the home, or emptied it.
    #[error("this store follows nobody any more")]
    NotStandby,
}

/// What a frame has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    More,
    /// The store is the home's of this moment, and on the disk.
    Held {
        followed: Followed,
        /// Rows that name files have come.
        names_blobs: bool,
    },
    /// Nothing has changed at the home.
    Idle {
        at_ms: u64,
    },
}

enum Place {
    File(PathBuf),
    Server,
}

pub(crate) struct Sink {
    place: Place,
    engine: Arc<dyn Engine>,
    keyring: Keyring,
    tables: BTreeMap<String, Table>,
    /// For what changed.
    session: Option<Box<dyn Session>>,
    taking: Option<Taking>,
    /// Something in the write-ahead log was erased.
    cut_wanted: bool,
}

/// Between `Begin` and `End`.
struct Taking {
    stream: StreamId,
    is_whole: bool,
    after: u64,
    term: Term,
    names_blobs: bool,
    erases: bool,
    /// Set with the first row that is no key's.
    open: Option<Open>,
}

struct Open {
    session: Box<dyn Session>,
    /// Drives the connection, of a file that is new.
    _engine: Option<Arc<dyn Engine>>,
    /// The last table that rows came for.
    table: String,
    /// Rows since the transaction began.
    rows: usize,
}

fn told(uncommitted: Uncommitted) -> StoreError {
    match uncommitted {
        Uncommitted::Not(error) | Uncommitted::Unknown(error) => error,
    }
}

impl Sink {
    pub(crate) fn of_file(dir: &Path) -> Result<Self, StoreError> {
        let engine: Arc<dyn Engine> = Arc::new(Sqlite::new(file_in(dir)));
        Self::new(Place::File(dir.to_owned()), engine, Keyring::of_file(dir)?)
    }

    pub(crate) fn of_server(database: &PostgresConfig, password: Option<&str>) -> Result<Self, StoreError> {
        let engine: Arc<dyn Engine> = Arc::new(Postgres::new(database, password)?);
        let keyring = Keyring::of_server(Arc::clone(&engine))?;
        Self::new(Place::Server, engine, keyring)
    }

    fn new(place: Place, engine: Arc<dyn Engine>, keyring: Keyring) -> Result<Self, StoreError> {
        engine.migrate(schema::NEWEST)?;
        let tables = by_name(tables::at(schema::NEWEST)?);
        // Whoever was here before may have died before it was cut.
        let cut_wanted = true;
        Ok(Self { place, engine, keyring, tables, session: None, taking: None, cut_wanted })
    }

    /// Whether the keys of shoppers that have come could be used here.
    pub(crate) fn demand_opens_with(&self, kek: &KekFile) -> Result<(), StoreError> {
        self.keyring.demand_opens_with(kek)
    }

    /// What the connection that ended has left half-done is nothing, and takes no room.
    pub(crate) fn give_up(&mut self) {
        if let Some(Taking { open: Some(open), is_whole, .. }) = self.taking.take() {
            open.session.roll_back();
            drop(open);
            if is_whole {
                self.clear_partial();
            }
        }
    }

    /// Takes a frame. After an error nothing of what was begun is there. Blocks.
    pub(crate) fn take(&mut self, frame: Down) -> Result<Taken, SinkError> {
        let taken = self.take_in(frame);
        if taken.is_err() {
            self.give_up();
            self.clear_partial();
        }
        taken
    }

    fn clear_partial(&self) {
        if let Place::File(dir) = &self.place
            && let Err(error) = clear(&partial_in(dir))
        {
            tracing::warn!(%error, "what was begun of a whole copy stays until the next one begins");
        }
    }

    fn take_in(&mut self, frame: Down) -> Result<Taken, SinkError> {
        match frame {
            Down::Begin { stream, whole, after, term } => {
                if self.taking.is_some() {
                    return Err(SinkError::Frame("it begins before it has ended".to_owned()));
                }
                let (stream, names_blobs, erases) = (*stream, whole, false);
                let taking = Taking { stream, is_whole: whole, after, term, names_blobs, erases, open: None };
                self.taking = Some(taking);
                Ok(Taken::More)
            }
            Down::Rows { table, columns, count, rows } => {
                let rows = decode(&table, columns.len(), count, &rows)?;
                if is_of_keyring(&table) {
                    self.keyring.take_in(&table, &columns, &rows)?;
                } else {
                    self.put(&table, &columns, &rows)?;
                }
                Ok(Taken::More)
            }
            Down::Gone { table, keys } => {
                self.remove(&table, &keys)?;
                Ok(Taken::More)
            }
            Down::End { seq, at_ms } => self.end(seq, at_ms),
            Down::Idle { at_ms } => {
                self.cut_log();
                Ok(Taken::Idle { at_ms })
            }
        }
    }

    fn known(&self, name: &str) -> Result<&Table, SinkError> {
        self.tables.get(name).ok_or_else(|| SinkError::Newer(format!("table {name}")))
    }

    fn put(&mut self, name: &str, columns: &[String], rows: &[Vec<Cell>]) -> Result<(), SinkError> {
        let table = self.known(name)?.clone();
        if let Some(column) = columns.iter().find(|column| !table.columns.contains(column)) {
            return Err(SinkError::Newer(format!("column {column} of table {name}")));
        }
        let is_whole = {
            let taking = self.taking()?;
            taking.names_blobs |= NAMES_BLOBS.contains(&name);
            taking.erases |= ERASES.contains(&name);
            taking.is_whole
        };
        self.open()?;
        let in_file = matches!(self.place, Place::File(_));
        let open = self.taking()?.open.as_mut().expect("it was just opened");
        let is_next = open.table != name && !open.table.is_empty();
        // A file that nobody has yet need not be one transaction, whose write-ahead log would be as long as the file.
        if is_whole && in_file && (is_next || open.rows >= ROWS_PER_COMMIT) {
            open.session.commit().map_err(told)?;
            open.session.begin(Mode::Write)?;
            open.rows = 0;
        }
        name.clone_into(&mut open.table);
        open.rows += rows.len();
        let (many, one) = (insert(&table, columns, ROWS_PER_INSERT), insert(&table, columns, 1));
        let mut chunks = rows.chunks_exact(ROWS_PER_INSERT);
        for rows in &mut chunks {
            run(&*open.session, &many, rows)?;
        }
        for row in chunks.remainder() {
            run(&*open.session, &one, std::slice::from_ref(row))?;
        }
        Ok(())
    }

    fn remove(&mut self, name: &str, keys: &[String]) -> Result<(), SinkError> {
        let table = self.known(name)?.clone();
        self.open()?;
        let open = self.taking()?.open.as_mut().expect("it was just opened");
        let equal: Vec<_> =
            table.key.iter().enumerate().map(|(at, (column, _))| format!("{column} = ?{}", at + 1)).collect();
        let sql = format!("DELETE FROM {} WHERE {}", table.name, equal.join(" AND "));
        for key in keys {
            run(&*open.session, &sql, &[cells_of(&table, key)?])?;
        }
        Ok(())
    }

    fn taking(&mut self) -> Result<&mut Taking, SinkError> {
        self.taking.as_mut().ok_or_else(|| SinkError::Frame("rows before a beginning".to_owned()))
    }

    /// Begins the transaction, if it is not open.
    fn open(&mut self) -> Result<(), SinkError> {
        let kept = self.session.take();
        let (place, engine) = (&self.place, Arc::clone(&self.engine));
        let taking =
            self.taking.as_mut().ok_or_else(|| SinkError::Frame("rows before a beginning".to_owned()))?;
        if taking.open.is_some() {
            self.session = kept;
            return Ok(());
        }
        let open = match (place, taking.is_whole) {
            (Place::File(dir), true) => {
                drop(kept);
                let partial = partial_in(dir);
                clear(&partial)?;
                let engine: Arc<dyn Engine> = Arc::new(Sqlite::new(partial));
                engine.migrate(schema::NEWEST)?;
                let session = engine.open(Mode::Write)?;
                session.begin(Mode::Write)?;
                Open { session, _engine: Some(engine), table: String::new(), rows: 0 }
            }
            (_, is_whole) => {
                let session = match kept {
                    Some(session) => session,
                    None => engine.open(Mode::Write)?,
                };
                session.begin(Mode::Write)?;
                let open = Open { session, _engine: None, table: String::new(), rows: 0 };
                follows(&*open.session, taking)?;
                if is_whole {
                    // Triggers of a home that this was would note each row.
                    capture::set_up(&*open.session, false, [0; 16])?;
                    let names: Vec<_> = self.tables.keys().map(String::as_str).collect();
                    open.session.execute(&format!("TRUNCATE {}", names.join(", ")), &[])?;
                    // Made from its own products, when it was a home; of the other one's they are made when it is one again.
                    search::begin_anew(&*open.session)?;
                }
                open
            }
        };
        taking.open = Some(open);
        Ok(())
    }

    fn end(&mut self, seq: u64, at_ms: u64) -> Result<Taken, SinkError> {
        self.open()?;
        let Some(Taking { stream, is_whole, term, names_blobs, erases, open: Some(open), .. }) =
            self.taking.take()
        else {
            return Err(SinkError::Frame("an end without a beginning".to_owned()));
        };
        let followed = Followed { stream, seq, term, at_ms };
        let session = open.session;
        let done = (|| {
            standing::set_followed(&*session, followed)?;
            if is_whole {
                standing::set_standby(&*session)?;
            }
            session.commit().map_err(told)
        })();
        if let Err(error) = done {
            session.roll_back();
            return Err(error.into());
        }
        match &self.place {
            Place::File(dir) if is_whole => {
                if !session.checkpoint(true, CHECKPOINT_WAIT_MAX)? {
                    return Err(StoreError::Busy.into());
                }
                drop(session);
                self.replace(dir)?;
                // The log went with the file.
                self.cut_wanted = false;
            }
            _ => {
                self.session = Some(session);
                self.cut_wanted |= erases;
                self.cut_log();
            }
        }
        Ok(Taken::Held { followed, names_blobs })
    }

    /// Cuts the write-ahead log if something in it was erased, as the home does. What was taken in stands, whatever becomes of it.
    fn cut_log(&mut self) {
        if !self.cut_wanted || self.taking.is_some() {
            return;
        }
        let session = match self.session.take() {
            Some(session) => Ok(session),
            None => self.engine.open(Mode::Write),
        };
        let cut = session.and_then(|session| {
            let cut = session.checkpoint(true, LOG_CUT_WAIT_MAX);
            self.session = Some(session);
            cut
        });
        match cut {
            Ok(is_cut) => self.cut_wanted = !is_cut,
            Err(error) => {
                tracing::warn!(%error, "the write-ahead log, in which something was erased, is not cut yet")
            }
        }
    }

    /// The new file takes the old one's place. The old one's write-ahead log ends before: one that stayed would be taken for the
    /// new one's, and whoever still reads the old file by it would remove the new one's when he is done.
    fn replace(&self, dir: &Path) -> Result<(), SinkError> {
        let (file, partial) = (file_in(dir), partial_in(dir));
        let before = self.engine.open(Mode::Write)?;
        let standing = standing::read(&*before)?;
        if !matches!(standing, Standing::Standby { .. }) {
            clear(&partial)?;
            return Err(SinkError::NotStandby);
        }
        let was_home = matches!(standing, Standing::Standby { followed: None, .. })
            && before.exists("SELECT 1 FROM site LIMIT 1", &[])?;
        end_log(&*before)?;
        drop(before);
        // A home that was discarded may hold what nobody else has: it is kept beside the new one.
        if was_home {
            keep_former(&file, dir)?;
        }
        std::fs::File::open(&partial).and_then(|file| file.sync_all()).map_err(StoreError::Io)?;
        std::fs::rename(&partial, &file).map_err(StoreError::Io)?;
        clear(&partial)?;
        std::fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(StoreError::Io)?;
        Ok(())
    }
}

/// Whether the store still is the standby that the home speaks with.
fn follows(conn: &dyn Session, taking: &Taking) -> Result<(), SinkError> {
    let Standing::Standby { followed, .. } = standing::read(conn)? else { return Err(SinkError::NotStandby) };
    let fits = taking.is_whole
        || followed.is_some_and(|followed| followed.stream == taking.stream && followed.seq == taking.after);
    if fits { Ok(()) } else { Err(SinkError::Frame(format!("it goes on after {}", taking.after))) }
}

fn decode(table: &str, width: usize, count: u32, bytes: &[u8]) -> Result<Vec<Vec<Cell>>, SinkError> {
    let unreadable = |e: &dyn std::fmt::Display| SinkError::Frame(format!("a row of {table}: {e}"));
    let mut decoder = Decoder::new(bytes);
    let mut found = Vec::new();
    for _ in 0..count {
        let row = rows::decode_next(&mut decoder).map_err(|e| unreadable(&e))?;
        if row.len() != width {
            return Err(unreadable(&format!("{} cells for {width} columns", row.len())));
        }
        found.push(row);
    }
    Ok(found)
}

/// Puts in so many rows at once, or sets those that are there to what they are now.
fn insert(table: &Table, columns: &[String], rows: usize) -> String {
    let width = columns.len();
    let row = |row: usize| {
        let cells: Vec<_> = (1..=width).map(|column| format!("?{}", row * width + column)).collect();
        format!("({})", cells.join(", "))
    };
    let rows: Vec<_> = (0..rows).map(row).collect();
    let key: Vec<_> = table.key.iter().map(|(column, _)| column.as_str()).collect();
    let set: Vec<_> = columns
        .iter()
        .filter(|column| !key.contains(&column.as_str()))
        .map(|column| format!("{column} = excluded.{column}"))
        .collect();
    let then = if set.is_empty() { "NOTHING".to_owned() } else { format!("UPDATE SET {}", set.join(", ")) };
    format!(
        "INSERT INTO {} ({}) VALUES {} ON CONFLICT ({}) DO {then}",
        table.name,
        columns.join(", "),
        rows.join(", "),
        key.join(", ")
    )
}

fn run(session: &dyn Session, sql: &str, rows: &[Vec<Cell>]) -> Result<(), StoreError> {
    let cells: Vec<&dyn Param> = rows.iter().flatten().map(|cell| cell as &dyn Param).collect();
    session.execute(sql, &cells).map(drop)
}

/// Leaves a file without a write-ahead log. Only whoever has it alone can: readers beside it (the look for missing files, a backup)
/// are waited for.
fn end_log(conn: &dyn Session) -> Result<(), SinkError> {
    let give_up = Instant::now() + READERS_WAIT_MAX;
    loop {
        let mode = conn.one("PRAGMA journal_mode = delete", &[], |row| row.get::<String>(0));
        match mode {
            Ok(mode) if mode == "delete" => return Ok(()),
            Err(error) if !error.is_transient() => return Err(error.into()),
            _ if Instant::now() > give_up => return Err(StoreError::Busy.into()),
            _ => std::thread::sleep(READERS_PAUSE),
        }
    }
}

/// Keeps a file under a name that none has: `region.former.db`, or one with a number if former homes lie there already. The same
/// file under another name takes no room, and cannot be half there.
fn keep_former(file: &Path, dir: &Path) -> Result<(), StoreError> {
    for number in 1.. {
        let kept = match number {
            1 => dir.join("region.former.db"),
            number => dir.join(format!("region.former-{number}.db")),
        };
        match std::fs::hard_link(file, &kept) {
            Ok(()) => {
                tracing::warn!(file = %kept.display(), "what this store was as a home is kept: remove it when nobody misses anything");
                return Ok(());
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                // A crash after it was kept and before the new one took its place.
                if is_same(file, &kept)? {
                    return Ok(());
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    unreachable!("a folder does not hold so many files")
}

fn is_same(one: &Path, other: &Path) -> Result<bool, StoreError> {
    let of = |file: &Path| std::fs::metadata(file).map(|about| (about.dev(), about.ino()));
    Ok(of(one)? == of(other)?)
}

fn partial_in(dir: &Path) -> PathBuf {
    dir.join("region.db.partial")
}

fn beside(file: &Path, ending: &str) -> PathBuf {
    let mut name = file.to_owned().into_os_string();
    name.push(ending);
    PathBuf::from(name)
}

fn clear(file: &Path) -> Result<(), StoreError> {
    ["", "-wal", "-shm", "-journal"].into_iter().try_for_each(|ending| remove(&beside(file, ending)))
}

fn remove(file: &Path) -> Result<(), StoreError> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}
