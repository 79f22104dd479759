//! Reading a site's journal: pages of entries, filtered, and recordings.

use rusqlite::{Connection, OptionalExtension as _, params};
use serde::{Deserialize, Serialize};
use souk_commerce::id::{PluginName, SiteId};
use souk_commerce::journal::{CallId, Entry, Event, Level};
use souk_commerce::site::Hook;

use crate::store::StoreError;

/// Entries that a filter looks at before it answers with what it has found, and where to go on: half a ring, 20 ms.
const LOOKED_AT_MAX: usize = 10_000;

/// Which entries somebody wants. A hole in the journal is never filtered out: it may be where the entry was.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Filter {
    pub(crate) plugin: Option<PluginName>,
    pub(crate) release: Option<u32>,
    pub(crate) hook: Option<Hook>,
    pub(crate) call: Option<CallId>,
    /// The least level of log lines; other kinds have none.
    pub(crate) level: Option<Level>,
    pub(crate) kind: Option<Kind>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    Log,
    Fault,
    Call,
    Recorded,
    Dropped,
}

impl Filter {
    fn wants(&self, entry: &Entry) -> bool {
        let kind = match &entry.event {
            Event::Log { .. } => Kind::Log,
            Event::Fault { .. } => Kind::Fault,
            Event::Call { .. } => Kind::Call,
            Event::Recorded { .. } => Kind::Recorded,
            Event::Dropped { .. } => return true,
        };
        let source = entry.source.as_ref();
        self.kind.is_none_or(|wanted| wanted == kind)
            && self.plugin.as_ref().is_none_or(|wanted| source.is_some_and(|s| s.plugin == *wanted))
            && self.release.is_none_or(|wanted| source.is_some_and(|s| s.release == wanted))
            && self.hook.is_none_or(|wanted| source.is_some_and(|s| s.hook == Some(wanted)))
            && self.call.is_none_or(|wanted| entry.call == Some(wanted))
            && match (self.level, &entry.event) {
                (Some(least), Event::Log { level, .. }) => *level >= least,
                _ => true,
            }
    }
}

/// An entry with its number in the site's journal.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Numbered {
    pub(crate) seq: u64,
    #[serde(flatten)]
    pub(crate) entry: Entry,
}

/// Some entries in order, and where to go on.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Page {
    pub(crate) entries: Vec<Numbered>,
    /// Ask for what comes after this.
    pub(crate) after: u64,
    /// The oldest entry that is still there; if it is above what was asked for, there is a gap.
    pub(crate) oldest: u64,
    /// Whether there is more at once.
    pub(crate) more: bool,
}

/// The entries after `after`, or without it the newest ones.
pub(super) fn entries(
    conn: &Connection,
    site: &SiteId,
    filter: &Filter,
    after: Option<u64>,
    limit: usize,
) -> Result<Page, StoreError> {
    let sql = "SELECT first, next FROM site WHERE site = ?1";
    let held: Option<(u64, u64)> = conn
        .prepare_cached(sql)?
        .query_row([site.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let (first, next) = held.unwrap_or((1, 1));
    let mut entries = Vec::new();
    let (order, bound) = match after {
        Some(_) => ("SELECT seq, body FROM entry WHERE site = ?1 AND seq > ?2 ORDER BY seq", after),
        None => ("SELECT seq, body FROM entry WHERE site = ?1 AND seq > ?2 ORDER BY seq DESC", Some(0)),
    };
    // A number that was never given out is of another file: what is new now comes after the newest of this one.
    let bound = bound.unwrap_or(0).min(next - 1);
    let mut statement = conn.prepare_cached(order)?;
    let mut rows = statement.query(params![site.as_str(), bound])?;
    let (mut seen, mut last, mut more) = (0, None, false);
    while let Some(row) = rows.next()? {
        if entries.len() == limit || seen == LOOKED_AT_MAX {
            more = true;
            break;
        }
        let (seq, body): (u64, Vec<u8>) = (row.get(0)?, row.get(1)?);
        let entry = Entry::from_bytes(&body).map_err(|e| StoreError::corrupt("entry", e))?;
        seen += 1;
        last = Some(seq);
        if filter.wants(&entry) {
            entries.push(Numbered { seq, entry });
        }
    }
    let after = match after {
        // A page that ends before the end goes on behind the last entry that was looked at.
        Some(_) => last.unwrap_or(bound),
        None => {
            entries.reverse();
            more = false;
            next - 1
        }
    };
    Ok(Page { entries, after, oldest: first, more })
}

/// A recorded call, without its bytes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Recorded {
    pub(crate) id: CallId,
    #[serde(flatten)]
    pub(crate) entry: Entry,
}

/// Recorded calls, the newest first.
pub(super) fn recordings(
    conn: &Connection,
    site: &SiteId,
    filter: &Filter,
    before: Option<CallId>,
    limit: usize,
) -> Result<(Vec<Recorded>, Option<CallId>), StoreError> {
    // No name of a call is greater than one that begins with this.
    let before = before.map_or_else(|| "8".to_owned(), |before| before.to_string());
    let sql = "SELECT head FROM recording WHERE site = ?1 AND call < ?2 ORDER BY call DESC";
    let mut statement = conn.prepare_cached(sql)?;
    let mut rows = statement.query(params![site.as_str(), before])?;
    let (mut found, mut seen, mut last) = (Vec::new(), 0, None);
    while let Some(row) = rows.next()? {
        if found.len() == limit || seen == LOOKED_AT_MAX {
            return Ok((found, last));
        }
        let head: Vec<u8> = row.get(0)?;
        let entry = Entry::from_bytes(&head).map_err(|e| StoreError::corrupt("recording", e))?;
        let id = entry.call.ok_or_else(|| StoreError::corrupt("recording", "a head without a call"))?;
        seen += 1;
        last = Some(id);
        if filter.wants(&entry) {
            found.push(Recorded { id, entry });
        }
    }
    Ok((found, None))
}

/// What was recorded.
pub(super) fn recording(
    conn: &Connection,
    site: &SiteId,
    call: CallId,
) -> Result<Option<Vec<u8>>, StoreError> {
    let sql = "SELECT body FROM recording WHERE site = ?1 AND call = ?2";
    let found = conn
        .prepare_cached(sql)?
        .query_row(params![site.as_str(), call.to_string()], |row| row.get(0))
        .optional()?;
    Ok(found)
}
