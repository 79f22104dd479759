//! The tables, and how they stay within their bounds: a ring of entries and one of recordings per site.
//!
//! One connection writes, the writer's. What a site holds is counted in its row, so that neither opening nor bounding
//! ever reads a ring through.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use rusqlite::{Connection, OptionalExtension as _, params};
use souk_commerce::call::JournalBatch;
use souk_commerce::id::{NodeId, SiteId};
use souk_commerce::journal::{Entry, Event, RecordingBlob};
use souk_sandbox::record::Recording;

use crate::store::StoreError;

/// Entries that a site may keep: a day of a shop that logs a line every four seconds, or the last 40 s of one at its rate.
pub(super) const SITE_ENTRIES_MAX: u64 = 20_000;
/// And their bytes: 400 of each, where the longest has 1.5 KiB.
pub(super) const SITE_BYTES_MAX: u64 = 8 << 20;
/// Recorded calls of a site, and their bytes: 10,000 of the usual 5 KB.
pub(super) const SITE_RECORDINGS_MAX: u64 = 20_000;
pub(super) const SITE_RECORDING_BYTES_MAX: u64 = 64 << 20;
/// All sites together. Above it the site that holds most gives.
pub(super) const REGION_BYTES_MAX: u64 = 4 << 30;
/// Sites with a journal. A node cannot make the region keep a row for each name that it thinks of.
pub(super) const SITES_MAX: usize = 100_000;
/// A ring that is full gives this share of its rows at once, so that it does not give one at each write.
const GIVES: u64 = 8;

const SCHEMA: &str = r"
-- `next` is the number of the site's next entry; those from `first` on are there.
CREATE TABLE IF NOT EXISTS site (
    site            TEXT PRIMARY KEY,
    first           INTEGER NOT NULL,
    next            INTEGER NOT NULL CHECK (next >= first),
    bytes           INTEGER NOT NULL,
    recordings      INTEGER NOT NULL,
    recording_bytes INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS entry (
    site    TEXT NOT NULL,
    seq     INTEGER NOT NULL,
    kept_ms INTEGER NOT NULL,
    body    BLOB NOT NULL,
    PRIMARY KEY (site, seq)
) STRICT, WITHOUT ROWID;
-- Names of calls sort by time.
CREATE TABLE IF NOT EXISTS recording (
    site    TEXT NOT NULL,
    call    TEXT NOT NULL,
    kept_ms INTEGER NOT NULL,
    head    BLOB NOT NULL,
    body    BLOB NOT NULL,
    UNIQUE (site, call)
) STRICT;
-- Up to where each life of a node has been written down.
CREATE TABLE IF NOT EXISTS mark (
    node INTEGER PRIMARY KEY,
    life INTEGER NOT NULL,
    next INTEGER NOT NULL
) STRICT;
";

/// What a site holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) first: u64,
    pub(super) next: u64,
    pub(super) bytes: u64,
    pub(super) recordings: u64,
    pub(super) recording_bytes: u64,
}

impl Held {
    fn whole(&self) -> u64 {
        self.bytes + self.recording_bytes
    }
}

/// The journal's file, as its writer sees it.
pub(super) struct Ring {
    pub(super) conn: Connection,
    /// As on the disk, but for the transaction that is under way.
    sites: BTreeMap<SiteId, Held>,
    bytes: u64,
    /// Sites whose row must be written before the commit.
    touched: BTreeSet<SiteId>,
}

impl Ring {
    pub(super) fn open(conn: Connection) -> Result<Self, StoreError> {
        conn.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))?;
        // A power cut may take the last moments of an account that nothing depends on; a crash of the program does not.
        conn.pragma_update(None, "synchronous", "normal")?;
        conn.pragma_update(None, "journal_size_limit", 16 << 20)?;
        // What a shopper had erased is not left in pages that nobody uses.
        conn.pragma_update_and_check(None, "secure_delete", true, |_| Ok(()))?;
        conn.execute_batch(SCHEMA)?;
        let mut ring = Self { conn, sites: BTreeMap::new(), bytes: 0, touched: BTreeSet::new() };
        ring.load()?;
        Ok(ring)
    }

    fn load(&mut self) -> Result<(), StoreError> {
        self.sites.clear();
        self.touched.clear();
        let sql = "SELECT site, first, next, bytes, recordings, recording_bytes FROM site";
        let mut rows = self.conn.prepare(sql)?;
        let mut rows = rows.query([])?;
        while let Some(row) = rows.next()? {
            let site: String = row.get(0)?;
            let site = site.parse().map_err(|e| StoreError::corrupt("site", e))?;
            let held = Held {
                first: row.get(1)?,
                next: row.get(2)?,
                bytes: row.get(3)?,
                recordings: row.get(4)?,
                recording_bytes: row.get(5)?,
            };
            self.sites.insert(site, held);
        }
        self.bytes = self.sites.values().map(Held::whole).sum();
        Ok(())
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn begin(&mut self) -> Result<(), StoreError> {
        Ok(self.conn.execute_batch("BEGIN IMMEDIATE")?)
    }

    /// Commits; says up to where each site's journal now reaches.
    pub(super) fn commit(&mut self) -> Result<Vec<(SiteId, u64)>, StoreError> {
        let touched = std::mem::take(&mut self.touched);
        let mut heads = Vec::with_capacity(touched.len());
        for site in touched {
            let held = self.sites.get(&site).copied().unwrap_or_default();
            let sql = "INSERT OR REPLACE INTO site (site, first, next, bytes, recordings, recording_bytes)
                       VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
            self.conn.prepare_cached(sql)?.execute(params![
                site.as_str(),
                held.first,
                held.next,
                held.bytes,
                held.recordings,
                held.recording_bytes
            ])?;
            heads.push((site, held.next));
        }
        self.conn.execute_batch("COMMIT")?;
        Ok(heads)
    }

    /// Undoes what the transaction did. What is counted in memory is read anew.
    pub(super) fn roll_back(&mut self) {
        if !self.conn.is_autocommit() {
            // Were this to fail, the next BEGIN says so.
            let _ended = self.conn.execute_batch("ROLLBACK");
        }
        if let Err(error) = self.load() {
            tracing::error!(%error, "reading the journal's counts again");
        }
    }

    /// Writes a node's entries down, but for those that are there already. Says how many were new.
    pub(super) fn write_batch(
        &mut self,
        node: NodeId,
        batch: JournalBatch,
        now_ms: u64,
    ) -> Result<u64, StoreError> {
        let life = batch.life.cast_signed();
        let known: Option<(i64, u64)> = self
            .conn
            .prepare_cached("SELECT life, next FROM mark WHERE node = ?1")?
            .query_row([node.0], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let next = known.filter(|(known, _)| *known == life).map_or(0, |(_, next)| next);
        let count = batch.entries.len() as u64;
        let seen = next.saturating_sub(batch.first).min(count);
        let sql = "INSERT OR REPLACE INTO mark (node, life, next) VALUES (?1, ?2, ?3)";
        let reached = batch.first.saturating_add(count).min(i64::MAX.cast_unsigned());
        self.conn.prepare_cached(sql)?.execute(params![node.0, life, next.max(reached)])?;
        for entry in batch.entries.into_iter().skip(usize::try_from(seen).unwrap_or(usize::MAX)) {
            // A node speaks for itself only.
            self.write(Entry { node: Some(node), ..entry }, now_ms)?;
        }
        Ok(count - seen)
    }

    /// Writes one entry down.
    pub(super) fn write(&mut self, entry: Entry, now_ms: u64) -> Result<(), StoreError> {
        let entry = entry.within_limits();
        let body = entry.to_bytes();
        let Some(held) = self.held(&entry.site) else { return Ok(()) };
        let seq = held.next;
        let sql = "INSERT INTO entry (site, seq, kept_ms, body) VALUES (?1, ?2, ?3, ?4)";
        self.conn.prepare_cached(sql)?.execute(params![entry.site.as_str(), seq, now_ms, body])?;
        self.change(&entry.site, |held| {
            held.next += 1;
            held.bytes += body.len() as u64;
        });
        self.bound(&entry.site)
    }

    /// Keeps a recorded call. False: it is there already.
    pub(super) fn keep(
        &mut self,
        node: Option<NodeId>,
        recording: RecordingBlob,
        now_ms: u64,
    ) -> Result<bool, StoreError> {
        let RecordingBlob { id, site, source, at_ms, bytes } = recording;
        if self.held(&site).is_none() {
            return Ok(false);
        }
        // The head is the entry that tells of it: the same row says what it is and stands in the journal.
        let event = Event::Recorded { bytes: bytes.len() as u64 };
        let entry = Entry { site, at_ms, node, source: Some(source), call: Some(id), event };
        let sql =
            "INSERT OR IGNORE INTO recording (site, call, kept_ms, head, body) VALUES (?1, ?2, ?3, ?4, ?5)";
        let kept = self.conn.prepare_cached(sql)?.execute(params![
            entry.site.as_str(),
            id.to_string(),
            now_ms,
            entry.to_bytes(),
            bytes
        ])?;
        if kept == 0 {
            return Ok(false);
        }
        self.change(&entry.site, |held| {
            held.recordings += 1;
            held.recording_bytes += bytes.len() as u64;
        });
        self.write(entry, now_ms)?;
        Ok(true)
    }

    /// Takes out what is older than `before_ms`.
    pub(super) fn sweep(&mut self, before_ms: u64) -> Result<(), StoreError> {
        let sites: Vec<SiteId> = self.sites.keys().cloned().collect();
        for site in sites {
            let Some(held) = self.held(&site) else { continue };
            let sql = "SELECT seq FROM entry WHERE site = ?1 AND kept_ms >= ?2 ORDER BY seq LIMIT 1";
            let young: Option<u64> = self
                .conn
                .prepare_cached(sql)?
                .query_row(params![site.as_str(), before_ms], |row| row.get(0))
                .optional()?;
            let first = young.unwrap_or(held.next);
            if first > held.first {
                self.forget_entries(&site, first)?;
            }
            let sql = "DELETE FROM recording WHERE site = ?1 AND kept_ms < ?2 RETURNING length(body)";
            if held.recordings > 0 {
                self.forget_recordings(&site, sql, before_ms)?;
            }
        }
        Ok(())
    }

    /// Takes out the site's recordings of calls with one of these seeds. It reads the whole ring: at most 64 MiB, half a second.
    pub(super) fn erase(&mut self, site: &SiteId, seeds: &HashSet<u64>) -> Result<(), StoreError> {
        let mut calls: Vec<String> = Vec::new();
        {
            let mut statement =
                self.conn.prepare_cached("SELECT call, body FROM recording WHERE site = ?1")?;
            let mut rows = statement.query([site.as_str()])?;
            while let Some(row) = rows.next()? {
                let body = row.get_ref(1)?.as_blob().unwrap_or_default();
                // One that cannot be read is of another version, and may be of anybody.
                if Recording::decode(body).map_or(true, |it| seeds.contains(&it.context.seed)) {
                    calls.push(row.get(0)?);
                }
            }
        }
        let sql = "DELETE FROM recording WHERE site = ?1 AND call = ?2 RETURNING length(body)";
        for call in calls {
            let freed: Option<u64> = self
                .conn
                .prepare_cached(sql)?
                .query_row(params![site.as_str(), call], |row| row.get(0))
                .optional()?;
            let Some(bytes) = freed else { continue };
            self.change(site, |held| {
                held.recordings = held.recordings.saturating_sub(1);
                held.recording_bytes = held.recording_bytes.saturating_sub(bytes);
            });
        }
        Ok(())
    }

    /// Moves the write-ahead log into the file and cuts it. If somebody reads, it is written over later.
    pub(super) fn cut_log(&self) {
        let cut = self.conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, bool>(0));
        if !matches!(cut, Ok(false)) {
            tracing::info!("somebody reads the journal: its write-ahead log is written over later");
        }
    }

    fn held(&mut self, site: &SiteId) -> Option<Held> {
        if let Some(held) = self.sites.get(site) {
            return Some(*held);
        }
        if self.sites.len() >= SITES_MAX {
            return None;
        }
        // From 1: a reader who has seen nothing asks for what comes after 0.
        let held = Held { first: 1, next: 1, ..Held::default() };
        self.sites.insert(site.clone(), held);
        Some(held)
    }

    fn change(&mut self, site: &SiteId, change: impl FnOnce(&mut Held)) {
        let Some(held) = self.sites.get_mut(site) else { return };
        let before = held.whole();
        change(held);
        self.bytes = self.bytes - before + held.whole();
        self.touched.insert(site.clone());
    }

    /// Lets the oldest go where a ring is full, or the whole file.
    fn bound(&mut self, site: &SiteId) -> Result<(), StoreError> {
        self.bound_site(site)?;
        while self.bytes > REGION_BYTES_MAX {
            let Some(greatest) = self.sites.iter().max_by_key(|(_, held)| held.whole()) else { break };
            let (greatest, held) = (greatest.0.clone(), *greatest.1);
            if held.recording_bytes >= held.bytes {
                self.give_recordings(&greatest, held)?;
            } else {
                self.give_entries(&greatest, held)?;
            }
        }
        Ok(())
    }

    fn bound_site(&mut self, site: &SiteId) -> Result<(), StoreError> {
        while let Some(held) = self.sites.get(site).copied() {
            if held.next - held.first > SITE_ENTRIES_MAX || held.bytes > SITE_BYTES_MAX {
                self.give_entries(site, held)?;
            } else if held.recordings > SITE_RECORDINGS_MAX || held.recording_bytes > SITE_RECORDING_BYTES_MAX
            {
                self.give_recordings(site, held)?;
            } else {
                break;
            }
        }
        Ok(())
    }

    fn give_entries(&mut self, site: &SiteId, held: Held) -> Result<(), StoreError> {
        let gives = ((held.next - held.first) / GIVES).max(1);
        self.forget_entries(site, held.first + gives)
    }

    fn give_recordings(&mut self, site: &SiteId, held: Held) -> Result<(), StoreError> {
        let gives = (held.recordings / GIVES).max(1);
        let sql = "DELETE FROM recording WHERE site = ?1 AND call IN
                   (SELECT call FROM recording WHERE site = ?1 ORDER BY call LIMIT ?2) RETURNING length(body)";
        self.forget_recordings(site, sql, gives)
    }

    /// Takes out the entries before `first`.
    fn forget_entries(&mut self, site: &SiteId, first: u64) -> Result<(), StoreError> {
        let sql = "DELETE FROM entry WHERE site = ?1 AND seq < ?2 RETURNING length(body)";
        let freed = self.freed(sql, site, first)?;
        self.change(site, |held| {
            held.first = first.min(held.next);
            held.bytes = held.bytes.saturating_sub(freed.1);
        });
        Ok(())
    }

    fn forget_recordings(&mut self, site: &SiteId, sql: &str, bound: u64) -> Result<(), StoreError> {
        let (rows, bytes) = self.freed(sql, site, bound)?;
        if rows == 0 {
            return Ok(());
        }
        self.change(site, |held| {
            held.recordings = held.recordings.saturating_sub(rows);
            held.recording_bytes = held.recording_bytes.saturating_sub(bytes);
        });
        Ok(())
    }

    /// Rows and bytes that a deletion took out.
    fn freed(&self, sql: &str, site: &SiteId, bound: u64) -> Result<(u64, u64), StoreError> {
        let mut statement = self.conn.prepare_cached(sql)?;
        let mut rows = statement.query(params![site.as_str(), bound])?;
        let mut freed = (0, 0);
        while let Some(row) = rows.next()? {
            freed.0 += 1;
            freed.1 += row.get::<_, u64>(0)?;
        }
        Ok(freed)
    }
}
