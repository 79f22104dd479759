//! Tables `erasure` and `cart_erased`: a shopper goes, and that he went stays.
//!
//! One transaction takes the person out of the rows, closes the carts for good, tells the nodes (an entry of the `Purge` log) and
//! the audit log. Then the shopper's key is destroyed, and with it what older copies of the store hold of him. A region that dies
//! in between goes on at its next start, or another one over the same database for it: the row of `erasure` names the key until it
//! is gone.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use serde::Serialize;
use sha2::{Digest as _, Sha256};
use souk_commerce::feed::{CARTS_ERASED_MAX, PurgeChange};
use souk_commerce::id::{CartId, OrderId, SiteId};
use souk_commerce::op::Operation;
use souk_commerce::order::Order;
use souk_commerce::purge::Forget;
use souk_replication::{Log, Record};

use super::super::audit::{self, Actor, Deed};
use super::super::engine::{Param, Row, Session, params};
use super::super::log::PageMax;
use super::super::vault::{Owner, SubjectId, Vault};
use super::super::{Decision, Store, StoreError, Tx, cart, escrow, log, order, site};
use super::older::check_all_sealed;
use super::strip;
use crate::clock;

/// Erasures that are gone on with at once: more than a region can have under way when it dies.
const UNENDED_MAX: usize = 1_000;
/// Destroyed keys whose rows one question looks for.
const DESTROYED_AT_ONCE: usize = 200;
/// Carts of one site's erasures of a week, at 8 bytes each.
const SEEDS_MAX: usize = 1_000_000;
/// Longest list in one answer.
const ERASURES_LISTED_MAX: usize = 1_000;

/// That a shopper was erased. Nothing of it leads to the shopper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Erasure {
    /// Its name.
    pub(crate) erasure: String,
    pub(crate) erased_ms: u64,
    /// The entry of the purge log that tells the nodes.
    pub(crate) version: u64,
    /// Orders that are kept without the person.
    pub(crate) orders: u64,
    /// Checkouts that never became orders.
    pub(crate) checkouts: u64,
    pub(crate) carts: u64,
    /// What the audit log calls the shopper.
    pub(crate) named: String,
    /// When the key was destroyed.
    pub(crate) ended_ms: Option<u64>,
}

/// What became of the wish to erase a shopper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Erased {
    Now(Erasure),
    /// Nothing has come since.
    Before(Erasure),
    /// Nothing is kept of this shopper, and never was.
    Nothing,
    /// A payment of his is not decided yet.
    Busy(OrderId),
    /// A cart that was named became an order of somebody else.
    Another(CartId),
    NoSite,
}

/// Whom to erase: whoever has this key, and the carts that are named besides, with what guests ordered from them.
#[derive(Debug, Clone)]
pub(in crate::store) struct Whom {
    pub(in crate::store) subject: Option<SubjectId>,
    pub(in crate::store) carts: BTreeSet<CartId>,
    /// What the audit log calls him.
    pub(in crate::store) named: [u8; 32],
}

const COLUMNS: &str = "id, erased_ms, version, orders, checkouts, carts, named, ended_ms";

fn read(row: &Row<'_>) -> Result<Erasure, StoreError> {
    Ok(Erasure {
        erasure: hex::encode(row.get::<[u8; 16]>(0)?),
        erased_ms: row.get(1)?,
        version: row.get(2)?,
        orders: row.get(3)?,
        checkouts: row.get(4)?,
        carts: row.get(5)?,
        named: hex::encode(row.get::<[u8; 32]>(6)?),
        ended_ms: row.get(7)?,
    })
}

fn before(conn: &dyn Session, site: &SiteId, named: &[u8; 32]) -> Result<Option<Erasure>, StoreError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM erasure WHERE site = ?1 AND named = ?2 ORDER BY erased_ms DESC, id LIMIT 1"
    );
    conn.find(&sql, params![site.as_str(), named], read)
}

/// A checkout whose payment is neither assured nor refused: its order would have nobody to be for.
const UNDECIDED: &str = "placed = 0 AND (due_ms IS NOT NULL OR money IN ('unasked', 'authorizing'))";

/// A row that holds an order: its number, its cart, and what was written.
type Written = (OrderId, CartId, Option<Vec<u8>>);

fn rows_of(conn: &dyn Session, sql: &str, params: &[&dyn Param]) -> Result<Vec<Written>, StoreError> {
    conn.list(sql, params, |row| Ok((OrderId(row.get(0)?), CartId(row.get(1)?), row.get(2)?)))
}

/// What is to be erased.
#[derive(Default)]
struct Found {
    orders: Vec<Written>,
    checkouts: Vec<Written>,
    carts: BTreeSet<CartId>,
}

/// What there is of somebody, or what stands against it.
fn find(conn: &dyn Session, site: &SiteId, whom: &Whom) -> Result<Result<Found, Erased>, StoreError> {
    let mut found = Found::default();
    let mut busy = None;
    let undecided = |rest: &str, params: &[&dyn Param]| -> Result<Option<OrderId>, StoreError> {
        let sql = format!("SELECT order_id FROM checkout WHERE {UNDECIDED} AND {rest} LIMIT 1");
        Ok(conn.find(&sql, params, |row| row.get(0))?.map(OrderId))
    };
    if let Some(subject) = &whom.subject {
        busy = undecided("subject = ?1", params![subject])?;
        let sql = "SELECT id, cart, body FROM orders WHERE subject = ?1";
        found.orders = rows_of(conn, sql, params![subject])?;
        let sql = "SELECT order_id, cart, body FROM checkout WHERE subject = ?1";
        found.checkouts = rows_of(conn, sql, params![subject])?;
    }
    for cart in &whom.carts {
        match cart::find(conn, site, *cart)? {
            Some(row) if row.is_erased => continue,
            Some(_) => {}
            // A node that is away may have it: what it sends then is not taken in.
            None => {
                found.carts.insert(*cart);
                continue;
            }
        }
        let of_cart = params![site.as_str(), cart.0];
        for table in ["orders", "checkout"] {
            let sql =
                format!("SELECT subject FROM {table} WHERE site = ?1 AND cart = ?2 AND subject IS NOT NULL");
            let owner: Option<SubjectId> = conn.find(&sql, of_cart, |row| row.get(0))?;
            if owner.is_some_and(|owner| Some(owner) != whom.subject) {
                return Ok(Err(Erased::Another(*cart)));
            }
        }
        if busy.is_none() {
            busy = undecided("site = ?1 AND cart = ?2", of_cart)?;
        }
        // Of guests: whoever has a number was found by it.
        let sql = "SELECT id, cart, body FROM orders WHERE site = ?1 AND cart = ?2 AND subject IS NULL";
        found.orders.extend(rows_of(conn, sql, of_cart)?);
        let sql =
            "SELECT order_id, cart, body FROM checkout WHERE site = ?1 AND cart = ?2 AND subject IS NULL";
        found.checkouts.extend(rows_of(conn, sql, of_cart)?);
        found.carts.insert(*cart);
    }
    found.carts.extend(found.orders.iter().chain(&found.checkouts).map(|(_, cart, _)| *cart));
    Ok(busy.map_or(Ok(found), |order| Err(Erased::Busy(order))))
}

/// What identifies nobody: in place of a key that the shopper's browser chose, and of a hash of the question.
fn key_of(id: OrderId) -> String {
    format!("erased-{id}")
}

fn stripped(body: &[u8]) -> Result<Vec<u8>, StoreError> {
    let written: Order = minicbor::decode(body).map_err(|e| StoreError::corrupt("orders", e))?;
    order::encode(&strip(written))
}

/// The cart's number stands in what was told of its order too.
fn strip_events(tx: &Tx<'_>, order: OrderId) -> Result<(), StoreError> {
    let mut told: Vec<(u64, serde_json::Value)> = Vec::new();
    tx.sql.each("SELECT seq, body FROM event WHERE order_id = ?1", params![order.0], &mut |row| {
        // A row that somebody broke has no cart that anybody finds.
        if let Ok(body) = serde_json::from_str(&row.get::<String>(1)?) {
            told.push((row.get(0)?, body));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    for (seq, mut body) in told {
        body["cart"] = serde_json::Value::Null;
        let sql = "UPDATE event SET body = ?2 WHERE seq = ?1";
        tx.sql.execute(sql, params![seq, body.to_string()])?;
    }
    Ok(())
}

/// Takes a cart away for good. What it was still promised is free again.
fn close_cart(tx: &Tx<'_>, site: &SiteId, cart: CartId) -> Result<(), StoreError> {
    escrow::give_back(tx, site, cart)?;
    // What a promise has come to stays until it is swept, and is nobody's.
    let sql = "UPDATE stock_hold SET cart = id WHERE site = ?1 AND cart = ?2";
    tx.sql.execute(sql, params![site.as_str(), cart.0])?;
    tx.sql.execute("DELETE FROM cart WHERE site = ?1 AND cart = ?2", params![site.as_str(), cart.0])?;
    let sql =
        "INSERT INTO cart_erased (site, tag, seed, erased_ms) VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING";
    let (tag, seed) = (cart.tag(site).0, cart.seed().to_be_bytes());
    tx.sql.execute(sql, params![site.as_str(), tag, seed, tx.now_ms])?;
    Ok(())
}

/// Operations on the carts that could not be applied when they came.
fn drop_letters(tx: &Tx<'_>, site: &SiteId, carts: &BTreeSet<CartId>) -> Result<u64, StoreError> {
    let mut found: Vec<(u32, u32, u64)> = Vec::new();
    tx.sql.each("SELECT node, epoch, seq, body FROM dead_letter", &[], &mut |row| {
        let is_theirs = Operation::from_bytes(&row.get::<Vec<u8>>(3)?).is_ok_and(|op| {
            let (of, cart) = op.subject();
            of == site && carts.contains(&cart)
        });
        if is_theirs {
            found.push((row.get(0)?, row.get(1)?, row.get(2)?));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    for (node, epoch, seq) in &found {
        let sql = "DELETE FROM dead_letter WHERE node = ?1 AND epoch = ?2 AND seq = ?3";
        tx.sql.execute(sql, params![node, epoch, seq])?;
    }
    Ok(found.len() as u64)
}

fn erase(tx: &Tx<'_>, site: &SiteId, whom: &Whom, actor: &Actor) -> Result<Decision<Erased>, StoreError> {
    let Found { orders, checkouts, carts } = match find(tx.sql, site, whom)? {
        Ok(found) => found,
        Err(obstacle) => return Ok(Decision::Undo(obstacle)),
    };
    let named = &whom.named;
    if orders.is_empty() && checkouts.is_empty() && carts.is_empty() {
        // Done before; or a key that was made for an order which then was none.
        match before(tx.sql, site, named)? {
            Some(before) => return Ok(Decision::Undo(Erased::Before(before))),
            None if whom.subject.is_none() => return Ok(Decision::Undo(Erased::Nothing)),
            None => {}
        }
    }
    for (id, _, body) in &orders {
        let body = body.as_deref().map(stripped).transpose()?;
        // The cart's place is taken by a number that is unique too.
        let sql =
            "UPDATE orders SET body = ?2, cart = ?3, idempotency_key = ?4, request_hash = ?5, subject = NULL
                   WHERE id = ?1";
        tx.sql.execute(sql, params![id.0, body, id.0, key_of(*id), [0_u8; 32]])?;
        strip_events(tx, *id)?;
    }
    let mut unplaced = 0_u64;
    for (id, _, body) in &checkouts {
        unplaced += u64::from(body.is_some());
        let body = body.as_deref().map(stripped).transpose()?;
        let sql = "UPDATE checkout SET body = ?2, cart = ?3, idempotency_key = ?4, request_hash = ?5, method = NULL,
                          subject = NULL WHERE order_id = ?1";
        tx.sql.execute(sql, params![id.0, body, id.0, key_of(*id), [0_u8; 32]])?;
        strip_events(tx, *id)?;
    }
    for cart in &carts {
        close_cart(tx, site, *cart)?;
    }
    let letters = drop_letters(tx, site, &carts)?;
    // At least one entry, so that who waits for the nodes has something to wait for.
    let tags: Vec<_> = carts.iter().map(|cart| cart.tag(site)).collect();
    let mut parts: Vec<_> = tags.chunks(CARTS_ERASED_MAX).map(<[_]>::to_vec).collect();
    if parts.is_empty() {
        parts.push(Vec::new());
    }
    let mut version = 0;
    for carts in parts {
        let change = PurgeChange { carts, ..PurgeChange::of(site.clone(), Forget::default()) };
        let body = change.to_bytes();
        version = log::append(tx, Log::Purge, &body)?;
        if !change.carts.is_empty() {
            tx.sql.execute(
                "INSERT INTO erasure_told (version, body) VALUES (?1, ?2)",
                params![version, body],
            )?;
        }
    }
    let id: [u8; 16] = rand::random();
    let erasure = Erasure {
        erasure: hex::encode(id),
        erased_ms: tx.now_ms,
        version,
        orders: orders.len() as u64,
        checkouts: unplaced,
        carts: carts.len() as u64,
        named: hex::encode(named),
        ended_ms: None,
    };
    // Without a key there is nothing left to be done.
    let ended_ms = whom.subject.is_none().then_some(tx.now_ms);
    let erasure = Erasure { ended_ms, ..erasure };
    let sql = "INSERT INTO erasure (id, site, named, subject, version, orders, checkouts, carts, erased_ms, ended_ms)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
    let (orders, carts) = (erasure.orders, erasure.carts);
    tx.sql.execute(
        sql,
        params![
            id,
            site.as_str(),
            named,
            whom.subject,
            version,
            orders,
            unplaced,
            carts,
            tx.now_ms,
            ended_ms
        ],
    )?;
    let detail = serde_json::json!({
        "erasure": erasure.erasure, "named": erasure.named, "orders": orders, "checkouts": unplaced, "carts": carts,
        "dead_letters": letters, "version": version,
    });
    audit::record(tx, actor, &Deed { action: "shopper.erased", subject: site.to_string(), detail })?;
    tx.cut_log();
    Ok(Decision::Keep(Erased::Now(erasure)))
}

/// The key is gone: says so, once.
fn end(tx: &Tx<'_>, site: &SiteId, subject: &SubjectId, actor: &Actor) -> Result<u64, StoreError> {
    let sql = "SELECT id, named FROM erasure WHERE site = ?1 AND subject = ?2 ORDER BY erased_ms, id";
    let open: Vec<([u8; 16], [u8; 32])> =
        tx.sql.list(sql, params![site.as_str(), subject], |row| Ok((row.get(0)?, row.get(1)?)))?;
    for (id, named) in &open {
        let sql = "UPDATE erasure SET subject = NULL, ended_ms = ?2 WHERE id = ?1";
        tx.sql.execute(sql, params![id, tx.now_ms])?;
        let detail = serde_json::json!({ "erasure": hex::encode(id), "named": hex::encode(named) });
        audit::record(
            tx,
            actor,
            &Deed { action: "shopper.key_destroyed", subject: site.to_string(), detail },
        )?;
    }
    if !open.is_empty() {
        tx.cut_log();
    }
    Ok(tx.now_ms)
}

/// Whether the shopper whose key has sealed a row is being erased, or was since it was sealed: what is under a key that goes must
/// not be written any more. Whoever seals again has another key.
pub(in crate::store) fn is_leaving(
    conn: &dyn Session,
    vault: &Vault,
    site: &SiteId,
    owner: Owner,
) -> Result<bool, StoreError> {
    let Some(subject) = owner.subject else { return Ok(false) };
    let sql = "SELECT 1 FROM erasure WHERE site = ?1 AND subject = ?2";
    Ok(conn.exists(sql, params![site.as_str(), subject])? || !vault.has(site, &subject)?)
}

/// What a node that takes the purge log whole has to be told: every cart that was ever erased, a page at a time.
pub(in crate::store) fn told(
    conn: &dyn Session,
    after: u64,
    page: PageMax,
) -> Result<(Vec<Record>, bool), StoreError> {
    let sql = "SELECT version, body FROM erasure_told WHERE version > ?1 ORDER BY version LIMIT ?2";
    page.read(conn, sql, &[], after, |row| Ok(Record { version: row.get(0)?, body: row.get(1)? }))
}

impl Store {
    /// Erases a shopper: answers when it is on the disk, and the key destroyed. Wanted twice, it is done once. `carts`: of his
    /// too, though no order says so; they may be all that there is of a guest.
    ///
    /// Cancel safety: dropped half-way, it is finished by the same wish again, or at the next start.
    pub(crate) async fn erase_shopper(
        &self,
        site: SiteId,
        customer: Option<String>,
        carts: BTreeSet<CartId>,
        actor: Actor,
    ) -> Result<Erased, StoreError> {
        let of = site.clone();
        let exists = move |conn: &dyn Session| {
            check_all_sealed(conn)?;
            site::exists(conn, &of)
        };
        if !self.read(exists).await? {
            return Ok(Erased::NoSite);
        }
        let of = site.clone();
        let asked = move |vault: &Vault| {
            let subject = match &customer {
                Some(customer) => vault.find(&of, customer)?.map(|subject| subject.id),
                None => None,
            };
            // A guest is called by a cart.
            let name = customer.or_else(|| carts.first().map(|cart| format!("\0cart\0{cart}")));
            let named = vault.trace(&of, &name.unwrap_or_default())?;
            Ok(Whom { subject, carts, named })
        };
        let whom = self.with_vault(asked).await?;
        let subject = whom.subject;
        let erased = self.begin_erasure(site.clone(), whom, actor.clone()).await?;
        let ended_ms = match (subject, &erased) {
            (Some(subject), Erased::Now(_) | Erased::Before(_)) => {
                Some(self.destroy_key(site, subject, actor).await?)
            }
            // The key went, and what should have said so did not come to it.
            (None, Erased::Before(before)) if before.ended_ms.is_none() => {
                self.end_erasures(u64::MAX, actor).await?;
                Some(clock::now_ms())
            }
            _ => None,
        };
        let ended = |erasure: Erasure| Erasure { ended_ms: erasure.ended_ms.or(ended_ms), ..erasure };
        Ok(match erased {
            Erased::Now(erasure) => Erased::Now(ended(erasure)),
            Erased::Before(erasure) => Erased::Before(ended(erasure)),
            other => other,
        })
    }

    /// The first half: all but the key.
    pub(in crate::store) async fn begin_erasure(
        &self,
        site: SiteId,
        whom: Whom,
        actor: Actor,
    ) -> Result<Erased, StoreError> {
        self.write(move |tx| erase(tx, &site, &whom, &actor)).await
    }

    async fn destroy_key(&self, site: SiteId, subject: SubjectId, actor: Actor) -> Result<u64, StoreError> {
        let of = site.clone();
        self.with_vault(move |vault| vault.destroy(&of, &subject)).await?;
        self.write(move |tx| end(tx, &site, &subject, &actor).map(Decision::Keep)).await
    }

    /// Destroys the keys of erasures that were begun before `before_ms` and cut short by a crash; answers how many. Whoever
    /// is in the middle of one of them does the same, and it is done once.
    pub(crate) async fn end_erasures(&self, before_ms: u64, actor: Actor) -> Result<usize, StoreError> {
        let before_ms = i64::try_from(before_ms).unwrap_or(i64::MAX);
        let open: Vec<(SiteId, SubjectId)> = self
            .read(move |conn| {
                let sql = "SELECT site, subject FROM erasure WHERE subject IS NOT NULL AND erased_ms < ?1
                           ORDER BY erased_ms LIMIT ?2";
                conn.list(sql, params![before_ms, UNENDED_MAX], |row| {
                    let site: String = row.get(0)?;
                    Ok((site.parse().map_err(|e| StoreError::corrupt("erasure", e))?, row.get(1)?))
                })
            })
            .await?;
        let count = open.len();
        for (site, subject) in open {
            self.destroy_key(site, subject, actor.clone()).await?;
        }
        Ok(count)
    }

    /// Erases again what a backup has brought back of shoppers who were erased since. Their rows name keys that the keyring, which
    /// went on, says are destroyed; a key that is merely missing erases nobody. At each start: what could not be done at the last
    /// one is done now. Answers how many were erased again.
    pub(crate) async fn erase_orphans(&self, actor: Actor) -> Result<usize, StoreError> {
        let vault = self.vault.clone();
        let orphans: Vec<(SiteId, SubjectId)> = self
            .read(move |conn| {
                let (mut orphans, mut after) = (Vec::new(), None);
                loop {
                    let destroyed = vault.destroyed(after.as_ref(), DESTROYED_AT_ONCE)?;
                    let Some((_, last)) = destroyed.last() else { return Ok(orphans) };
                    after = Some(*last);
                    let marks: Vec<_> = (1..=destroyed.len()).map(|n| format!("?{n}")).collect();
                    let ids: Vec<&dyn Param> = destroyed.iter().map(|(_, id)| id as &dyn Param).collect();
                    let sql = format!(
                        "SELECT subject FROM orders WHERE subject IN ({0}) UNION SELECT subject FROM checkout WHERE subject IN ({0})",
                        marks.join(", ")
                    );
                    let found: Vec<SubjectId> = conn.list(&sql, &ids, |row| row.get::<SubjectId>(0))?;
                    orphans.extend(destroyed.into_iter().filter(|(_, id)| found.contains(id)));
                }
            })
            .await?;
        let mut erased = 0;
        for (site, subject) in orphans {
            // Whose it was, nobody knows any more.
            let named = Sha256::new().chain_update(b"souk erased shopper\0").chain_update(subject).finalize();
            let whom = Whom { subject: Some(subject), carts: BTreeSet::new(), named: named.into() };
            match self.begin_erasure(site.clone(), whom, actor.clone()).await? {
                Erased::Now(_) => {
                    self.destroy_key(site, subject, actor.clone()).await?;
                    erased += 1;
                }
                other => {
                    tracing::error!(%site, ?other, "a shopper who was erased after the backup cannot be erased from it yet, for his payment is not decided: it is tried again at the next start")
                }
            }
        }
        Ok(erased)
    }

    /// What plugins knew carts by that were erased since then.
    pub(crate) async fn erased_seeds(&self, site: SiteId, since_ms: u64) -> Result<Vec<u64>, StoreError> {
        self.read(move |conn| {
            let sql = "SELECT seed FROM cart_erased WHERE site = ?1 AND erased_ms >= ?2 LIMIT ?3";
            conn.list(sql, params![site.as_str(), since_ms, SEEDS_MAX], |row| {
                row.get(0).map(u64::from_be_bytes)
            })
        })
        .await
    }

    /// The site's erasures, the newest first.
    pub(crate) async fn erasures(&self, site: SiteId) -> Result<Vec<Erasure>, StoreError> {
        self.read(move |conn| {
            let sql =
                format!("SELECT {COLUMNS} FROM erasure WHERE site = ?1 ORDER BY erased_ms DESC, id LIMIT ?2");
            conn.list(&sql, params![site.as_str(), ERASURES_LISTED_MAX], read)
        })
        .await
    }

    /// Whether a call with this seed was about a cart that was erased: a recording of it may come late.
    pub(crate) async fn is_erased_seed(&self, site: SiteId, seed: u64) -> Result<bool, StoreError> {
        self.read(move |conn| {
            let sql = "SELECT 1 FROM cart_erased WHERE site = ?1 AND seed = ?2";
            conn.exists(sql, params![site.as_str(), seed.to_be_bytes()])
        })
        .await
    }
}
