//! Table `audit`: who changed what, each row bound to the one before.
//!
//! A row's hash covers its fields and the hash of its predecessor, so that a row that was changed, dropped or put in
//! afterwards breaks the chain at that place. It does not help against someone who rewrites the whole chain; for that its
//! head is to be kept elsewhere too.

use std::ops::ControlFlow;

use sha2::{Digest as _, Sha256};

use super::engine::{Session, params};
use super::{Decision, Store, StoreError, Tx};

/// Longest page of the audit log in one answer.
pub(crate) const AUDIT_LISTED_MAX: usize = 1_000;

/// Who asks for a change, as far as the control API knows.
#[derive(Debug, Clone)]
pub(crate) struct Actor {
    /// A fingerprint of the token, never the token.
    pub(crate) name: String,
    pub(crate) peer: String,
}

/// What is written about a change.
#[derive(Debug, Clone)]
pub(crate) struct Deed {
    pub(crate) action: &'static str,
    pub(crate) subject: String,
    pub(crate) detail: serde_json::Value,
}

#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct AuditRow {
    pub(crate) seq: u64,
    pub(crate) at_ms: u64,
    pub(crate) actor: String,
    pub(crate) peer: String,
    pub(crate) action: String,
    pub(crate) subject: String,
    pub(crate) detail: serde_json::Value,
    pub(crate) hash: String,
}

/// The chain as far as it was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chain {
    Whole { rows: u64 },
    BrokenAt { seq: u64 },
}

struct Fields<'a> {
    seq: u64,
    at_ms: u64,
    texts: [&'a str; 5],
    prev: [u8; 32],
}

impl Fields<'_> {
    fn hash(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(self.prev);
        hash.update(self.seq.to_be_bytes());
        hash.update(self.at_ms.to_be_bytes());
        for text in self.texts {
            // Each length goes first: no two rows read the same when their fields are put end to end.
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text);
        }
        hash.finalize().into()
    }
}

/// Adds a row, in the transaction of the change that it tells about.
pub(super) fn record(tx: &Tx<'_>, actor: &Actor, deed: &Deed) -> Result<(), StoreError> {
    let last: Option<(u64, [u8; 32])> =
        tx.sql.find("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1", &[], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?;
    let (seq, prev) = last.map_or((1, [0; 32]), |(seq, hash)| (seq + 1, hash));
    let detail = deed.detail.to_string();
    let texts = [actor.name.as_str(), &actor.peer, deed.action, &deed.subject, &detail];
    let hash = Fields { seq, at_ms: tx.now_ms, texts, prev }.hash();
    let sql = "INSERT INTO audit (seq, at_ms, actor, peer, action, subject, detail, prev, hash)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
    let [actor, peer, action, subject, detail] = texts;
    tx.sql.execute(sql, params![seq, tx.now_ms, actor, peer, action, subject, detail, prev, hash])?;
    Ok(())
}

impl Store {
    /// A row about something that is not in the database, such as a blob.
    pub(crate) async fn record(&self, actor: Actor, deed: Deed) -> Result<(), StoreError> {
        self.write(move |tx| record(tx, &actor, &deed).map(Decision::Keep)).await
    }

    /// The same, unless there is a row about this action on this subject: for what may be repeated.
    pub(crate) async fn record_once(&self, actor: Actor, deed: Deed) -> Result<(), StoreError> {
        self.write(move |tx| {
            let sql = "SELECT 1 FROM audit WHERE action = ?1 AND subject = ?2";
            if !tx.sql.exists(sql, params![deed.action, deed.subject.as_str()])? {
                record(tx, &actor, &deed)?;
            }
            Ok(Decision::Keep(()))
        })
        .await
    }

    pub(crate) async fn audit(&self, after: u64, limit: usize) -> Result<Vec<AuditRow>, StoreError> {
        self.read(move |conn| {
            let sql = "SELECT seq, at_ms, actor, peer, action, subject, detail, hash FROM audit
                       WHERE seq > ?1 ORDER BY seq LIMIT ?2";
            conn.list(sql, params![after, limit.min(AUDIT_LISTED_MAX)], |row| {
                let detail: String = row.get(6)?;
                Ok(AuditRow {
                    seq: row.get(0)?,
                    at_ms: row.get(1)?,
                    actor: row.get(2)?,
                    peer: row.get(3)?,
                    action: row.get(4)?,
                    subject: row.get(5)?,
                    // A row that somebody broke is shown as it is, not hidden behind an error.
                    detail: serde_json::from_str(&detail).unwrap_or(serde_json::Value::String(detail)),
                    hash: hex::encode(row.get::<[u8; 32]>(7)?),
                })
            })
        })
        .await
    }

    /// Follows the whole chain, in pages, on a reader.
    pub(crate) async fn audit_chain(&self) -> Result<Chain, StoreError> {
        self.read(chain).await
    }
}

/// Follows the whole chain, in pages.
pub(super) fn chain(conn: &dyn Session) -> Result<Chain, StoreError> {
    let sql = "SELECT seq, at_ms, actor, peer, action, subject, detail, prev, hash FROM audit
               WHERE seq > ?1 ORDER BY seq LIMIT ?2";
    let (mut seen, mut prev, mut broken) = (0, [0; 32], None);
    loop {
        let before = seen;
        conn.each(sql, params![before, AUDIT_LISTED_MAX], &mut |row| {
            let seq: u64 = row.get(0)?;
            let texts: [String; 5] = [row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?, row.get(6)?];
            let texts = texts.each_ref().map(String::as_str);
            let hash = Fields { seq, at_ms: row.get(1)?, texts, prev }.hash();
            if seq != seen + 1 || row.get::<[u8; 32]>(7)? != prev || row.get::<[u8; 32]>(8)? != hash {
                broken = Some(seq);
                return Ok(ControlFlow::Break(()));
            }
            (seen, prev) = (seq, hash);
            Ok(ControlFlow::Continue(()))
        })?;
        match broken {
            Some(seq) => return Ok(Chain::BrokenAt { seq }),
            None if seen == before => return Ok(Chain::Whole { rows: seen }),
            None => {}
        }
    }
}
