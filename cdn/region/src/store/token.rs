//! Table `token`: merchants' tokens, of which only the hash is kept.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use souk_commerce::id::SiteId;

use super::audit::{self, Actor, Deed};
use super::engine::{Row, Session, params};
use super::{Decision, Store, StoreError, Tx};

/// Most tokens of a site that are neither revoked nor expired: one per person and one per machine of a large merchant,
/// each twice while it is changed.
pub(crate) const TOKENS_LIVE_MAX: u64 = 64;
/// A token that is used all day is written once a minute, not at each request.
const LAST_USED_EVERY_MS: u64 = 60_000;

/// What a token lets its bearer do at its site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verb {
    /// Look: settings, catalogue, releases, orders.
    Read,
    /// Bring components.
    Push,
    /// Change what runs: deploy, roll back, take out.
    Deploy,
    /// Read what plugins said and did.
    Logs,
    /// Have the nodes' caches forget.
    Purge,
    /// Act on orders: take their money, give it back, say that the goods are on their way.
    Orders,
    /// Give shoppers what is kept of them, and erase it.
    Shoppers,
    /// Change the shop itself: settings, catalogue, prices, stock, files. Whoever has it has the others too.
    Admin,
}

impl Verb {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Push => "push",
            Self::Deploy => "deploy",
            Self::Logs => "logs",
            Self::Purge => "purge",
            Self::Orders => "orders",
            Self::Shoppers => "shoppers",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A token as the operator makes it: the region sees its hash only.
#[derive(Debug, Clone)]
pub(crate) struct Minted {
    pub(crate) id: String,
    pub(crate) site: SiteId,
    pub(crate) sha256: [u8; 32],
    /// What it is for, in the operator's words.
    pub(crate) name: String,
    pub(crate) verbs: BTreeSet<Verb>,
    pub(crate) expires_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct TokenRow {
    pub(crate) id: String,
    #[serde(skip)]
    pub(crate) site: SiteId,
    #[serde(skip)]
    pub(crate) sha256: [u8; 32],
    pub(crate) name: String,
    pub(crate) verbs: BTreeSet<Verb>,
    pub(crate) created_ms: u64,
    pub(crate) expires_ms: u64,
    pub(crate) revoked_ms: Option<u64>,
    /// To the minute.
    pub(crate) last_used_ms: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PutToken {
    Made(TokenRow),
    /// This very token is there already.
    Unchanged(TokenRow),
    NoSite,
    /// The id belongs to another token.
    Taken,
    Full,
}

const COLUMNS: &str = "id, site, sha256, name, verbs, created_ms, expires_ms, revoked_ms, last_used_ms";

fn read(row: &Row<'_>) -> Result<TokenRow, StoreError> {
    let (site, verbs): (String, String) = (row.get(1)?, row.get(4)?);
    Ok(TokenRow {
        id: row.get(0)?,
        site: site.parse().map_err(|e| StoreError::corrupt("token", e))?,
        sha256: row.get(2)?,
        name: row.get(3)?,
        verbs: serde_json::from_str(&verbs).map_err(|e| StoreError::corrupt("token", e))?,
        created_ms: row.get(5)?,
        expires_ms: row.get(6)?,
        revoked_ms: row.get(7)?,
        last_used_ms: row.get(8)?,
    })
}

fn find(conn: &dyn Session, id: &str) -> Result<Option<TokenRow>, StoreError> {
    conn.find(&format!("SELECT {COLUMNS} FROM token WHERE id = ?1"), params![id], read)
}

fn put(tx: &Tx<'_>, minted: &Minted, actor: &Actor) -> Result<Decision<PutToken>, StoreError> {
    if !super::site::exists(tx.sql, &minted.site)? {
        return Ok(Decision::Undo(PutToken::NoSite));
    }
    if let Some(known) = find(tx.sql, &minted.id)? {
        let same = known.site == minted.site && known.sha256 == minted.sha256;
        return Ok(Decision::Undo(if same { PutToken::Unchanged(known) } else { PutToken::Taken }));
    }
    let sql = "SELECT count(*) FROM token WHERE site = ?1 AND revoked_ms IS NULL AND expires_ms > ?2";
    let live: u64 = tx.sql.one(sql, params![minted.site.as_str(), tx.now_ms], |row| row.get(0))?;
    if live >= TOKENS_LIVE_MAX {
        return Ok(Decision::Undo(PutToken::Full));
    }
    let verbs = serde_json::to_string(&minted.verbs).map_err(|e| StoreError::corrupt("token", e))?;
    let sql = "INSERT INTO token (id, site, sha256, name, verbs, created_ms, expires_ms)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    tx.sql.execute(
        sql,
        params![
            minted.id,
            minted.site.as_str(),
            minted.sha256,
            minted.name,
            verbs,
            tx.now_ms,
            minted.expires_ms
        ],
    )?;
    let detail = serde_json::json!({
        "token": minted.id, "name": minted.name, "verbs": minted.verbs, "expires_ms": minted.expires_ms,
    });
    let deed = Deed { action: "token.create", subject: minted.site.to_string(), detail };
    audit::record(tx, actor, &deed)?;
    let made = find(tx.sql, &minted.id)?;
    made.map(|row| Decision::Keep(PutToken::Made(row)))
        .ok_or_else(|| StoreError::corrupt("token", "a row that was written is not there"))
}

fn revoke(tx: &Tx<'_>, site: &SiteId, id: &str, actor: &Actor) -> Result<Decision<bool>, StoreError> {
    match find(tx.sql, id)?.filter(|token| token.site == *site) {
        None => return Ok(Decision::Undo(false)),
        Some(token) if token.revoked_ms.is_some() => return Ok(Decision::Undo(true)),
        Some(_) => {}
    }
    let sql = "UPDATE token SET revoked_ms = ?2 WHERE id = ?1";
    tx.sql.execute(sql, params![id, tx.now_ms])?;
    let detail = serde_json::json!({ "token": id });
    audit::record(tx, actor, &Deed { action: "token.revoke", subject: site.to_string(), detail })?;
    Ok(Decision::Keep(true))
}

impl Store {
    pub(crate) async fn put_token(&self, minted: Minted, actor: Actor) -> Result<PutToken, StoreError> {
        self.write(move |tx| put(tx, &minted, &actor)).await
    }

    /// False: this site has no such token.
    pub(crate) async fn revoke_token(
        &self,
        site: SiteId,
        id: String,
        actor: Actor,
    ) -> Result<bool, StoreError> {
        self.write(move |tx| revoke(tx, &site, &id, &actor)).await
    }

    pub(crate) async fn token(&self, id: String) -> Result<Option<TokenRow>, StoreError> {
        self.read(move |conn| find(conn, &id)).await
    }

    /// All of a site, also those that do not open anything any more: who had access is worth knowing.
    pub(crate) async fn tokens(&self, site: SiteId) -> Result<Vec<TokenRow>, StoreError> {
        self.read(move |conn| {
            let sql = format!("SELECT {COLUMNS} FROM token WHERE site = ?1 ORDER BY created_ms, id");
            conn.list(&sql, params![site.as_str()], read)
        })
        .await
    }

    /// Notes that a token was used, if the last note is older than a minute.
    pub(crate) async fn note_use(&self, token: &TokenRow, now_ms: u64) -> Result<(), StoreError> {
        if token.last_used_ms.is_some_and(|last| now_ms < last.saturating_add(LAST_USED_EVERY_MS)) {
            return Ok(());
        }
        let id = token.id.clone();
        self.write(move |tx| {
            let sql = "UPDATE token SET last_used_ms = ?2 WHERE id = ?1";
            tx.sql.execute(sql, params![id, tx.now_ms])?;
            Ok(Decision::Keep(()))
        })
        .await
    }
}
