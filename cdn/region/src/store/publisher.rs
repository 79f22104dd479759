//! Table `event_publisher`: up to where events have been handed to a broker, and which process hands them on now.
//!
//! Like a consumer of [`super::event`], but what it does with an event is not in the database: so the place is moved after
//! the broker has said that it holds everything up to there, and an event may be handed over twice. One process does it at a
//! time, by a lease; whoever takes it over counts `fence` up, and what the former one says then is not heard.
//! `crate::events` is the only caller.

use souk_commerce::id::SiteId;

use super::engine::{Row, params};
use super::event::{EVENT_COLUMNS, EventRow, read};
use super::{Decision, Store, StoreError};

/// How long a process may hand events on before it has to ask again. Whoever takes over from one that died waits for so long;
/// and it is twice what a batch takes at most ([`crate::events`]), in which the process says nothing to the store.
pub(crate) const LEASE_MS: u64 = 15_000;
/// Events that are counted as waiting. Of more it is enough to know that.
pub(crate) const WAITING_COUNTED_MAX: u64 = 100_000;

/// Where the broker keeps what it is handed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sink {
    /// Another one after it was made anew: it has nothing of what the former one had.
    pub(crate) stream: String,
    /// Of the newest message that it holds or has held; 0 where none are counted.
    pub(crate) head: u64,
}

/// How far a publisher is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The broker holds every event up to this number.
    pub(crate) place: u64,
    pub(crate) stream: String,
    pub(crate) last: Held,
    /// Of the turn in which that was noted.
    pub(crate) fence: u64,
}

/// The newest message that the broker has acknowledged; zeroes before the first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Held {
    /// Where it is in the stream.
    pub(crate) position: u64,
    /// The number of its event.
    pub(crate) event: u64,
}

/// What is to be done, as it looks from outside of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Look {
    /// None: nothing was ever handed on.
    pub(crate) progress: Option<Progress>,
    /// The number of the newest event; 0 without any.
    pub(crate) newest: u64,
}

/// The right to hand events on, for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) fence: u64,
    pub(crate) place: u64,
    pub(crate) last: Held,
    pub(crate) until_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    Ours(Turn),
    /// Another process is at it, until then at least.
    Anothers {
        until_ms: u64,
    },
}

/// What came of going back to the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Forgotten {
    /// It is there already.
    Nothing,
    /// Events had been handed on, and are again.
    Events,
    /// Somebody has had a turn meanwhile: nothing was done.
    Anothers,
}

/// What has not been handed on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Waiting {
    /// At most [`WAITING_COUNTED_MAX`].
    pub(crate) events: u64,
    /// When the oldest happened.
    pub(crate) since_ms: Option<u64>,
}

struct Stored {
    progress: Progress,
    until_ms: u64,
}

const STORED: &str =
    "SELECT seq, stream, position, event, leased_until_ms, fence FROM event_publisher WHERE name = ?1";

fn stored(row: &Row<'_>) -> Result<Stored, StoreError> {
    let last = Held { position: row.get(2)?, event: row.get(3)? };
    let progress = Progress { place: row.get(0)?, stream: row.get(1)?, last, fence: row.get(5)? };
    Ok(Stored { progress, until_ms: row.get(4)? })
}

impl Store {
    pub(crate) async fn look_at_publisher(&self, name: String) -> Result<Look, StoreError> {
        self.read(move |conn| {
            let progress = conn.find(STORED, params![name], stored)?.map(|row| row.progress);
            let newest = conn.one("SELECT coalesce(max(seq), 0) FROM event", &[], |row| row.get(0))?;
            Ok(Look { progress, newest })
        })
        .await
    }

    /// Takes the turn, or holds on to the one that has the fence `held`. A store that no other process can have open leaves
    /// no turn to one that is gone.
    pub(crate) async fn claim_events(
        &self,
        name: String,
        stream: String,
        held: Option<u64>,
        now_ms: u64,
    ) -> Result<Claim, StoreError> {
        let is_shared = self.others.is_some();
        self.write(move |tx| {
            let until_ms = now_ms.saturating_add(LEASE_MS);
            let Some(row) = tx.sql.find(STORED, params![name], stored)? else {
                let sql =
                    "INSERT INTO event_publisher (name, seq, stream, position, event, leased_until_ms, fence)
                           VALUES (?1, 0, ?2, 0, 0, ?3, 1)";
                tx.sql.execute(sql, params![name, stream, until_ms])?;
                let turn = Turn { fence: 1, place: 0, last: Held::default(), until_ms };
                return Ok(Decision::Keep(Claim::Ours(turn)));
            };
            let is_held = held == Some(row.progress.fence);
            if is_shared && !is_held && row.until_ms > now_ms {
                return Ok(Decision::Undo(Claim::Anothers { until_ms: row.until_ms }));
            }
            let fence = if is_held { row.progress.fence } else { row.progress.fence + 1 };
            let (place, last) = if row.progress.stream == stream {
                (row.progress.place, row.progress.last)
            } else {
                (0, Held::default())
            };
            let sql = "UPDATE event_publisher SET seq = ?2, stream = ?3, position = ?4, event = ?5,
                       leased_until_ms = ?6, fence = ?7 WHERE name = ?1";
            let of = params![name, place, stream, last.position, last.event, until_ms, fence];
            tx.sql.execute(sql, of)?;
            Ok(Decision::Keep(Claim::Ours(Turn { fence, place, last, until_ms })))
        })
        .await
    }

    /// Notes that the broker holds everything up to `place`, and gives the turn back if nothing more is to be done with it.
    /// False: it is another one's, who has noted as much or will.
    pub(crate) async fn note_published(
        &self,
        name: String,
        turn: Turn,
        gives_up: bool,
    ) -> Result<bool, StoreError> {
        self.write(move |tx| {
            let until_ms = if gives_up { 0 } else { turn.until_ms };
            let sql = "UPDATE event_publisher SET seq = ?3, position = ?4, event = ?5, leased_until_ms = ?6
                       WHERE name = ?1 AND fence = ?2";
            let of = params![name, turn.fence, turn.place, turn.last.position, turn.last.event, until_ms];
            Ok(Decision::Keep(tx.sql.execute(sql, of)? == 1))
        })
        .await
    }

    /// Of a stream that has lost its end: goes back to `slack` events before what it still holds, or to the beginning if that
    /// is not known, and gives the turn back. False: the turn is another one's.
    pub(crate) async fn publish_again(
        &self,
        name: String,
        turn: Turn,
        still: Option<Held>,
        slack: usize,
    ) -> Result<bool, StoreError> {
        self.write(move |tx| {
            let last = still.unwrap_or_default();
            let sql = "SELECT seq FROM event WHERE seq < ?1 ORDER BY seq DESC LIMIT 1 OFFSET ?2";
            let place: Option<u64> = tx.sql.find(sql, params![last.event, slack], |row| row.get(0))?;
            let place = place.unwrap_or(0).min(turn.place);
            let sql = "UPDATE event_publisher SET seq = ?3, position = ?4, event = ?5, leased_until_ms = 0,
                       fence = fence + 1 WHERE name = ?1 AND fence = ?2";
            let of = params![name, turn.fence, place, last.position, last.event];
            Ok(Decision::Keep(tx.sql.execute(sql, of)? == 1))
        })
        .await
    }

    /// Of a queue that is not there: goes back to the beginning, and takes the turn from whoever has it, who may be about to note
    /// what that queue held. Whoever has had a turn since the one with `fence` (None: before the first one) knows better, and
    /// nothing is forgotten.
    pub(crate) async fn forget_published(
        &self,
        name: String,
        fence: Option<u64>,
    ) -> Result<Forgotten, StoreError> {
        self.write(move |tx| {
            let row = tx.sql.find(STORED, params![name], stored)?;
            if row.as_ref().map(|row| row.progress.fence) != fence {
                return Ok(Decision::Undo(Forgotten::Anothers));
            }
            let Some(row) = row else { return Ok(Decision::Undo(Forgotten::Nothing)) };
            let sql = "UPDATE event_publisher SET seq = 0, position = 0, event = 0, leased_until_ms = 0,
                       fence = fence + 1 WHERE name = ?1";
            tx.sql.execute(sql, params![name])?;
            let forgotten = if row.progress.place > 0 { Forgotten::Events } else { Forgotten::Nothing };
            Ok(Decision::Keep(forgotten))
        })
        .await
    }

    /// Events of all sites after a place, oldest first.
    pub(crate) async fn events_after(
        &self,
        place: u64,
        limit: usize,
    ) -> Result<Vec<(SiteId, EventRow)>, StoreError> {
        self.read(move |conn| {
            let sql = format!("SELECT site, {EVENT_COLUMNS} FROM event WHERE seq > ?1 ORDER BY seq LIMIT ?2");
            conn.list(&sql, params![place, limit], |row| {
                let site: String = row.get(0)?;
                let site = site.parse::<SiteId>().map_err(|e| StoreError::corrupt("event", e))?;
                Ok((site, read(row, 1)?))
            })
        })
        .await
    }

    /// What waits to be handed on.
    pub(crate) async fn waiting_events(&self, name: String) -> Result<Waiting, StoreError> {
        self.read(move |conn| {
            let sql = "SELECT count(*), min(at_ms) FROM (
                           SELECT at_ms FROM event
                           WHERE seq > coalesce((SELECT seq FROM event_publisher WHERE name = ?1), 0)
                           ORDER BY seq LIMIT ?2) AS waiting";
            conn.one(sql, params![name, WAITING_COUNTED_MAX], |row| {
                Ok(Waiting { events: row.get(0)?, since_ms: row.get(1)? })
            })
        })
        .await
    }
}
