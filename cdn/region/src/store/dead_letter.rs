//! Table `dead_letter`: operations that nodes have accepted and this region cannot apply.
//!
//! One is put there in the transaction that moves the mark past it, so it holds up nobody and is never dropped. It stays until
//! an operator has it applied after all (its site was made meanwhile, or a newer release can read it) or gives it up.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use super::audit::{self, Actor, Deed};
use super::engine::params;
use super::{Decision, Store, StoreError, Tx, cart};

/// Longest list in one answer.
pub(crate) const LETTERS_LISTED_MAX: usize = 1_000;

/// Which operation: written `node.epoch.seq`, and never given out twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LetterId {
    pub(crate) node: u32,
    pub(crate) epoch: u32,
    pub(crate) seq: u64,
}

impl fmt::Display for LetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.node, self.epoch, self.seq)
    }
}

/// The text is not `node.epoch.seq`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotALetter;

impl FromStr for LetterId {
    type Err = NotALetter;

    fn from_str(text: &str) -> Result<Self, NotALetter> {
        let mut parts = text.split('.');
        let mut next = || parts.next().filter(|part| part.bytes().all(|b| b.is_ascii_digit()));
        let (node, epoch, seq) = (next(), next(), next());
        let id =
            || Some(Self { node: node?.parse().ok()?, epoch: epoch?.parse().ok()?, seq: seq?.parse().ok()? });
        id().filter(|_| parts.next().is_none()).ok_or(NotALetter)
    }
}

/// One line of the list. The operation itself is a shopper's, and not shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Letter {
    pub(crate) id: String,
    pub(crate) node: u32,
    pub(crate) epoch: u32,
    pub(crate) seq: u64,
    /// Its first word is the reason's name.
    pub(crate) reason: String,
    pub(crate) bytes: u64,
    pub(crate) at_ms: u64,
}

/// What became of another try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Retried {
    Applied,
    /// It still cannot be; it stays, with this reason.
    Unfit(String),
    NotThere,
}

/// Keeps an operation, in the transaction that moves the mark past it.
pub(super) fn bury(tx: &Tx<'_>, id: LetterId, body: &[u8], reason: &str) -> Result<(), StoreError> {
    let sql =
        "INSERT INTO dead_letter (node, epoch, seq, body, reason, at_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    let LetterId { node, epoch, seq } = id;
    tx.sql.execute(sql, params![node, epoch, seq, body, reason, tx.now_ms])?;
    Ok(())
}

fn body_of(tx: &Tx<'_>, LetterId { node, epoch, seq }: LetterId) -> Result<Option<Vec<u8>>, StoreError> {
    let sql = "SELECT body FROM dead_letter WHERE node = ?1 AND epoch = ?2 AND seq = ?3";
    tx.sql.find(sql, params![node, epoch, seq], |row| row.get(0))
}

/// Takes it away, and writes down who did, and why.
fn remove(
    tx: &Tx<'_>,
    id: LetterId,
    body: &[u8],
    action: &'static str,
    actor: &Actor,
) -> Result<(), StoreError> {
    let LetterId { node, epoch, seq } = id;
    let sql = "DELETE FROM dead_letter WHERE node = ?1 AND epoch = ?2 AND seq = ?3";
    tx.sql.execute(sql, params![node, epoch, seq])?;
    let detail = serde_json::json!({ "bytes": body.len() });
    audit::record(tx, actor, &Deed { action, subject: id.to_string(), detail })
}

impl Store {
    /// In the order of node, epoch and number, after `after`.
    pub(crate) async fn dead_letters(
        &self,
        after: Option<LetterId>,
        limit: usize,
    ) -> Result<Vec<Letter>, StoreError> {
        self.read(move |conn| {
            let sql = "SELECT node, epoch, seq, reason, length(body), at_ms FROM dead_letter
                       WHERE (node, epoch, seq) > (?1, ?2, ?3) ORDER BY node, epoch, seq LIMIT ?4";
            let LetterId { node, epoch, seq } = after.unwrap_or(LetterId { node: 0, epoch: 0, seq: 0 });
            conn.list(sql, params![node, epoch, seq, limit.min(LETTERS_LISTED_MAX)], |row| {
                let id = LetterId { node: row.get(0)?, epoch: row.get(1)?, seq: row.get(2)? };
                Ok(Letter {
                    id: id.to_string(),
                    node: id.node,
                    epoch: id.epoch,
                    seq: id.seq,
                    reason: row.get(3)?,
                    bytes: row.get(4)?,
                    at_ms: row.get(5)?,
                })
            })
        })
        .await
    }

    /// How many there are: zero, or somebody has to look.
    pub(crate) async fn dead_letters_count(&self) -> Result<u64, StoreError> {
        self.read(|conn| conn.one("SELECT count(*) FROM dead_letter", &[], |row| row.get(0))).await
    }

    /// Tries an operation again. Late is as good as in time: a delta merges in any order, once.
    pub(crate) async fn retry_dead_letter(&self, id: LetterId, actor: Actor) -> Result<Retried, StoreError> {
        self.write(move |tx| {
            let Some(body) = body_of(tx, id)? else { return Ok(Decision::Undo(Retried::NotThere)) };
            if let Err(reason) = cart::apply_one(tx, id.node, id.epoch, &body)? {
                return Ok(Decision::Undo(Retried::Unfit(reason)));
            }
            remove(tx, id, &body, "dead_letter.applied", &actor)?;
            Ok(Decision::Keep(Retried::Applied))
        })
        .await
    }

    /// Gives an operation up. False: there is none.
    pub(crate) async fn discard_dead_letter(&self, id: LetterId, actor: Actor) -> Result<bool, StoreError> {
        self.write(move |tx| {
            let Some(body) = body_of(tx, id)? else { return Ok(Decision::Undo(false)) };
            remove(tx, id, &body, "dead_letter.discarded", &actor)?;
            Ok(Decision::Keep(true))
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_three_numbers() {
        let id = LetterId { node: 7, epoch: 3, seq: 41 };
        assert_eq!((id.to_string().as_str(), "7.3.41".parse()), ("7.3.41", Ok(id)));
        for wrong in ["", "7.3", "7.3.41.1", "7..41", "-7.3.41", "+7.3.41", "7.3.x", "4294967296.1.1"] {
            assert_eq!(wrong.parse::<LetterId>(), Err(NotALetter), "{wrong}");
        }
    }
}
