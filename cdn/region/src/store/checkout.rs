//! Tables `checkout` and `payment_call`: the life of an order's money as rows, and who is working on which.
//!
//! What may follow what, [`crate::saga::machine`] decides; here each of its states is written down together with what it
//! brings about (order, stock, cart, event) in one transaction. A row is worked on by whoever has leased it. Each lease
//! has a number, and what comes back under an older one is not heard: a worker that was taken for dead can do no harm.

mod row;

use serde::Serialize;
use souk_commerce::id::{OrderId, SiteId};
use souk_commerce::money::Minor;
use souk_commerce::order::{Order, OrderState};
use souk_commerce::payment::PaymentMethod;

use super::audit::{self, Actor, Deed};
use super::engine::{Session, params};
use super::order::{self, Known, Payment, Sealed, Standing, Uncounted};
use super::{Decision, Store, StoreError, Tx, shopper};
use crate::saga::machine::{By, Found, Money, NotNow, Op, Outcome, Saga, Step, Wish};
use crate::saga::reconcile::{Ours, Report};
use row::{COLUMNS, Row, corrupt, load, load_invoiced, named, read};

/// How long a worker holds a row: a call of 20 s, twice, and room for a commit behind a long import.
pub(crate) const LEASE_MS: u64 = 60_000;
/// Rows that turn out to need nothing, passed over in one claim.
const PASSED_OVER_MAX: usize = 16;
/// A checkout that was refused its payment answers to its key so long. Longer than any shop's page stays open.
const DECLINED_KEPT_MS: u64 = 30 * 86_400_000;
/// A provider repeats a message for three days.
const MESSAGES_KEPT_MS: u64 = 7 * 86_400_000;
/// Rows that one sweep takes away: the writer is not held up for long.
const SWEPT_MAX: usize = 1_000;

/// What a provider has to know of an order.
#[derive(Debug, Clone)]
pub(crate) struct Charge {
    pub(crate) order: OrderId,
    pub(crate) site: SiteId,
    pub(crate) amount: Minor,
    pub(crate) currency: String,
    pub(crate) method: Option<PaymentMethod>,
    pub(crate) reference: Option<String>,
}

/// A row in somebody's hands, and what is to be done with it. What it names has been written down.
#[derive(Debug, Clone)]
pub(crate) struct Claimed {
    pub(crate) charge: Charge,
    pub(crate) step: Step,
    pub(crate) until_ms: u64,
    fence: u64,
}

/// What has become of a step.
#[derive(Debug, Clone)]
pub(crate) enum Heard {
    Outcome {
        op: Op,
        attempt: u32,
        outcome: Outcome,
    },
    Found(Found),
    /// The provider could not be asked.
    NothingFound,
}

impl Heard {
    fn name(&self) -> String {
        match self {
            Self::Outcome { outcome, .. } => match outcome {
                Outcome::Done { .. } => "done".to_owned(),
                Outcome::Declined { code } => format!("declined: {code}"),
                Outcome::Refused { code } => format!("refused: {code}"),
                Outcome::NotNow => "not_now".to_owned(),
                Outcome::Unknown { .. } => "unknown".to_owned(),
            },
            Self::Found(found) => format!("looked up: {}", found.name()),
            Self::NothingFound => "not looked up".to_owned(),
        }
    }
}

/// What comes after a step.
#[derive(Debug)]
pub(crate) enum After {
    /// Another step, now.
    More(Claimed),
    /// The row is given back.
    Rest { state: OrderState },
    /// Somebody else has taken it over: what was heard is for nobody.
    Lost,
}

/// The answer to a merchant's wish.
#[derive(Debug)]
pub(crate) enum Wished {
    Noted(Box<Detail>),
    NoOrder,
    NotNow(NotNow),
}

/// What became of a provider's message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hinted {
    Noted(OrderId),
    /// It has come before.
    Repeated,
    /// It is about nothing of ours.
    Unknown,
}

/// An order with its money, as a merchant sees it.
#[derive(Debug, Serialize)]
pub(crate) struct Detail {
    #[serde(flatten)]
    pub(crate) order: Order,
    pub(crate) payment: PaymentDetail,
}

#[derive(Debug, Serialize)]
pub(crate) struct PaymentDetail {
    pub(crate) by: &'static str,
    pub(crate) money: &'static str,
    pub(crate) goods: &'static str,
    /// The provider's name of the payment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reference: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) why: Option<String>,
    /// A call whose outcome is not known yet.
    pub(crate) is_waiting: bool,
    /// Something is about to be asked of the provider.
    #[serde(skip)]
    pub(crate) is_due: bool,
    pub(crate) calls: Vec<CallDetail>,
}

#[derive(Debug, Serialize)]
pub(crate) struct CallDetail {
    op: String,
    attempt: u32,
    first_ms: u64,
    tries: u32,
    outcome: Option<String>,
}

/// What an idempotency key leads to, where it has led to no order.
pub(super) fn known(
    conn: &dyn Session,
    site: &SiteId,
    key: &str,
    request_hash: &[u8; 32],
) -> Result<Known, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM checkout WHERE site = ?1 AND idempotency_key = ?2");
    let found = conn.find(&sql, params![site.as_str(), key], read)?;
    match found {
        None => Ok(Known::Unused),
        Some(row) if row.request_hash != *request_hash => Ok(Known::Other),
        Some(row) => Ok(Known::Same(row.standing(conn)?)),
    }
}

pub(super) fn standing(conn: &dyn Session, order: OrderId) -> Result<Option<Standing>, StoreError> {
    load(conn, order)?.map(|row| row.standing(conn)).transpose()
}

/// Writes a reservation down. Its stock has been taken and its cart sealed in this transaction.
pub(super) fn begin(
    tx: &Tx<'_>,
    sealed: &Sealed,
    uncounted: &Uncounted,
    payment: &Payment,
    now_ms: u64,
) -> Result<(), StoreError> {
    let Sealed { draft, owner } = sealed;
    let order = &draft.order;
    let row = Row {
        order: order.id,
        site: order.site.clone(),
        cart: order.cart,
        idempotency_key: draft.idempotency_key.clone(),
        request_hash: draft.request_hash,
        amount: order.quote.total,
        currency: order.quote.currency.code().to_owned(),
        body: Some(order::encode(order)?),
        uncounted: uncounted.stored()?,
        method: Some(payment.method.clone()),
        saga: Saga::reserved(payment.capture, now_ms),
        fence: 0,
        leased_until_ms: 0,
        owner: *owner,
    };
    row.insert(tx, now_ms)?;
    row.save(tx, "", now_ms)
}

/// An order with its money, what is the shopper's still sealed.
pub(super) fn detail(conn: &dyn Session, order: OrderId) -> Result<Option<Detail>, StoreError> {
    let row = match load(conn, order)? {
        Some(row) => Some(row),
        None => load_invoiced(conn, order)?,
    };
    row.map(|row| row.detail(conn)).transpose()
}

fn claim(tx: &Tx<'_>, now_ms: u64, busy_sites: &str) -> Result<Option<Claimed>, StoreError> {
    for _ in 0..PASSED_OVER_MAX {
        let sql = "UPDATE checkout SET fence = fence + 1 WHERE order_id = (
                       SELECT order_id FROM checkout
                       WHERE due_ms <= ?1 AND leased_until_ms <= ?1 AND ?2 NOT LIKE '%,' || site || ',%'
                       ORDER BY due_ms LIMIT 1)
                   RETURNING order_id";
        let Some(order) = tx.sql.find(sql, params![now_ms, busy_sites], |row| row.get(0))? else {
            return Ok(None);
        };
        let mut row = load(tx.sql, OrderId(order))?.ok_or_else(|| corrupt("a row that was found is gone"))?;
        row.saga.resume();
        if let Some(claimed) = take_up(tx, &mut row, "", now_ms)? {
            return Ok(Some(claimed));
        }
    }
    Ok(None)
}

/// The next step of a row, written down; none: it rests, and is given back.
fn take_up(tx: &Tx<'_>, row: &mut Row, ended: &str, now_ms: u64) -> Result<Option<Claimed>, StoreError> {
    let step = row.saga.step(now_ms);
    row.leased_until_ms = if step == Step::Rest { 0 } else { now_ms.saturating_add(LEASE_MS) };
    row.save(tx, ended, now_ms)?;
    if step == Step::Rest {
        return Ok(None);
    }
    // It is due again when the lease ends: whoever holds it may die, and then it is for whoever comes after.
    Ok(Some(Claimed { charge: row.charge(), step, until_ms: row.leased_until_ms, fence: row.fence }))
}

fn conclude(
    tx: &Tx<'_>,
    claimed: &Claimed,
    heard: Heard,
    now_ms: u64,
) -> Result<Decision<After>, StoreError> {
    let Some(mut row) = load(tx.sql, claimed.charge.order)?.filter(|row| row.fence == claimed.fence) else {
        return Ok(Decision::Undo(After::Lost));
    };
    let ended = heard.name();
    let effects = match heard {
        Heard::Outcome { op, attempt, outcome } => row.saga.outcome(op, attempt, outcome, now_ms),
        Heard::Found(found) => row.saga.found(&found, now_ms),
        Heard::NothingFound => {
            row.saga.found_nothing_out();
            Vec::new()
        }
    };
    row.bring_about(tx, &effects, now_ms)?;
    Ok(Decision::Keep(match take_up(tx, &mut row, &ended, now_ms)? {
        Some(claimed) => After::More(claimed),
        None => After::Rest { state: row.saga.order_state() },
    }))
}

fn wish(
    tx: &Tx<'_>,
    site: &SiteId,
    id: OrderId,
    wish: Wish,
    actor: &Actor,
    now_ms: u64,
) -> Result<Decision<Wished>, StoreError> {
    let (found, is_new) = match load(tx.sql, id)? {
        Some(row) => (Some(row), false),
        None => (load_invoiced(tx.sql, id)?, true),
    };
    let Some(mut row) = found.filter(|row| row.site == *site) else {
        return Ok(Decision::Undo(Wished::NoOrder));
    };
    let before = row.saga.clone();
    let effects = match row.saga.wish(wish, now_ms) {
        Ok(effects) => effects,
        Err(not_now) => return Ok(Decision::Undo(Wished::NotNow(not_now))),
    };
    if row.saga == before {
        return Ok(Decision::Undo(Wished::Noted(Box::new(row.detail(tx.sql)?))));
    }
    if is_new {
        row.insert(tx, now_ms)?;
    }
    row.bring_about(tx, &effects, now_ms)?;
    row.save(tx, "given up", now_ms)?;
    let action = match wish {
        Wish::Capture => "order.capture",
        Wish::Fulfil => "order.fulfil",
        Wish::Cancel => "order.cancel",
        Wish::Refund => "order.refund",
    };
    let detail = serde_json::json!({
        "before": before.order_state().name(), "after": row.saga.order_state().name(), "money": row.saga.money.name(),
    });
    audit::record(tx, actor, &Deed { action, subject: format!("{site}/{id}"), detail })?;
    Ok(Decision::Keep(Wished::Noted(Box::new(row.detail(tx.sql)?))))
}

fn hint(
    tx: &Tx<'_>,
    site: &SiteId,
    message: &str,
    order: Option<OrderId>,
    reference: Option<&str>,
    now_ms: u64,
) -> Result<Decision<Hinted>, StoreError> {
    let sql = "INSERT INTO payment_message (site, id, at_ms) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING";
    if tx.sql.execute(sql, params![site.as_str(), message, now_ms])? == 0 {
        return Ok(Decision::Undo(Hinted::Repeated));
    }
    Ok(Decision::Keep(look(tx, site, order, reference, now_ms)?))
}

/// Has the provider asked about an order, by whoever takes its row up next.
fn look(
    tx: &Tx<'_>,
    site: &SiteId,
    order: Option<OrderId>,
    reference: Option<&str>,
    now_ms: u64,
) -> Result<Hinted, StoreError> {
    let by_reference = || -> Result<Option<OrderId>, StoreError> {
        let Some(reference) = reference else { return Ok(None) };
        let sql = "SELECT order_id FROM checkout WHERE site = ?1 AND reference = ?2";
        let found = tx.sql.find(sql, params![site.as_str(), reference], |row| row.get(0))?;
        Ok(found.map(OrderId))
    };
    let Some(order) = order.map_or_else(by_reference, |order| Ok(Some(order)))? else {
        return Ok(Hinted::Unknown);
    };
    let Some(mut row) = load(tx.sql, order)?.filter(|row| row.site == *site && row.saga.by == By::Provider)
    else {
        return Ok(Hinted::Unknown);
    };
    if row.saga.reference.is_none() {
        // Not known yet, and the provider names it.
        row.saga.reference = reference.map(str::to_owned);
    }
    row.saga.hint();
    row.save(tx, "", now_ms)?;
    Ok(Hinted::Noted(order))
}

/// Names of sites for a statement: a comma stands in none.
fn between_commas(sites: &[SiteId]) -> String {
    sites.iter().fold(",".to_owned(), |names, site| names + site.as_str() + ",")
}

/// Rows of one comparison. At some 100 bytes each, 20 MB.
const COMPARED_MAX: usize = 200_000;

impl Store {
    /// What we know of a site's payments since a moment, and whether that is all.
    pub(crate) async fn payments_since(
        &self,
        site: SiteId,
        since_ms: u64,
    ) -> Result<(Vec<Ours>, bool), StoreError> {
        self.read(move |conn| {
            let sql = "SELECT order_id, money, amount, reference, created_ms, changed_ms, due_ms IS NOT NULL FROM checkout
                       WHERE site = ?1 AND created_ms >= ?2 AND by_whom = 'provider' ORDER BY created_ms LIMIT ?3";
            let ours: Vec<Ours> = conn.list(sql, params![site.as_str(), since_ms, COMPARED_MAX], |row| {
                Ok(Ours {
                    order: OrderId(row.get(0)?),
                    money: named(Money::by_name(&row.get::<String>(1)?), "money")?,
                    amount: row.get(2)?,
                    reference: row.get(3)?,
                    created_ms: row.get(4)?,
                    changed_ms: row.get(5)?,
                    is_moving: row.get(6)?,
                })
            })?;
            let is_whole = ours.len() < COMPARED_MAX;
            Ok((ours, is_whole))
        })
        .await
    }

    /// Keeps a comparison's report, and has what it follows looked at.
    pub(crate) async fn note_report(
        &self,
        site: SiteId,
        report: &Report,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        let body = serde_json::to_string(report).map_err(corrupt)?;
        let followed = report.differences.iter().filter(|d| d.is_followed);
        let followed: Vec<_> = followed.map(|d| (d.order, d.reference.clone())).collect();
        self.write(move |tx| {
            // By the provider's name of it: what ended because nothing was found has no other.
            for (order, reference) in &followed {
                look(tx, &site, Some(*order), reference.as_deref(), now_ms)?;
            }
            let sql = "INSERT INTO payment_report (site, at_ms, body) VALUES (?1, ?2, ?3)
                       ON CONFLICT (site) DO UPDATE SET at_ms = ?2, body = ?3";
            tx.sql.execute(sql, params![site.as_str(), now_ms, body])?;
            Ok(Decision::Keep(()))
        })
        .await
    }

    /// The last report, and when it was made.
    pub(crate) async fn payment_report(
        &self,
        site: SiteId,
    ) -> Result<Option<(u64, serde_json::Value)>, StoreError> {
        self.read(move |conn| {
            let sql = "SELECT at_ms, body FROM payment_report WHERE site = ?1";
            let found: Option<(u64, String)> =
                conn.find(sql, params![site.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))?;
            found.map(|(at_ms, body)| Ok((at_ms, serde_json::from_str(&body).map_err(corrupt)?))).transpose()
        })
        .await
    }

    /// When the next row is due, but for those of `busy_sites`; none: all rest.
    pub(crate) async fn checkout_due(&self, busy_sites: &[SiteId]) -> Result<Option<u64>, StoreError> {
        let busy = between_commas(busy_sites);
        self.read(move |conn| {
            let sql = "SELECT due_ms FROM checkout
                       WHERE due_ms IS NOT NULL AND ?1 NOT LIKE '%,' || site || ',%' ORDER BY due_ms LIMIT 1";
            conn.find(sql, params![busy], |row| row.get(0))
        })
        .await
    }

    /// Takes up a row that is due, unless it is of one of `busy_sites`.
    pub(crate) async fn claim_checkout(
        &self,
        now_ms: u64,
        busy_sites: &[SiteId],
    ) -> Result<Option<Claimed>, StoreError> {
        let busy = between_commas(busy_sites);
        self.write(move |tx| claim(tx, now_ms, &busy).map(Decision::Keep)).await
    }

    /// Writes down what was heard, with everything that follows from it.
    pub(crate) async fn conclude_checkout(
        &self,
        claimed: Claimed,
        heard: Heard,
        now_ms: u64,
    ) -> Result<After, StoreError> {
        self.write(move |tx| conclude(tx, &claimed, heard.clone(), now_ms)).await
    }

    pub(crate) async fn wish_order(
        &self,
        site: SiteId,
        order: OrderId,
        what: Wish,
        actor: Actor,
        now_ms: u64,
    ) -> Result<Wished, StoreError> {
        let wished = self.write(move |tx| wish(tx, &site, order, what, &actor, now_ms)).await?;
        self.open_wished(wished).await
    }

    /// Notes a provider's message about an order, by its number or by the provider's name of its payment.
    pub(crate) async fn hint_order(
        &self,
        site: SiteId,
        message: String,
        order: Option<OrderId>,
        reference: Option<String>,
        now_ms: u64,
    ) -> Result<Hinted, StoreError> {
        self.write(move |tx| hint(tx, &site, &message, order, reference.as_deref(), now_ms)).await
    }

    /// How a checkout stands; none: there is none.
    pub(crate) async fn standing(&self, order: OrderId) -> Result<Option<Standing>, StoreError> {
        let vault = self.vault.clone();
        self.read(move |conn| {
            let standing = match order::find(conn, order)? {
                Some(order) => Some(Standing::Placed(Box::new(order))),
                None => standing(conn, order)?,
            };
            standing.map(|standing| shopper::open_standing(&vault, standing)).transpose()
        })
        .await
    }

    /// An order with its money; none: the site has no such order.
    pub(crate) async fn order_detail(
        &self,
        site: SiteId,
        order: OrderId,
    ) -> Result<Option<Detail>, StoreError> {
        let vault = self.vault.clone();
        self.read(move |conn| {
            let detail = detail(conn, order)?.filter(|detail| detail.order.site == site);
            detail.map(|detail| shopper::open_detail(&vault, detail)).transpose()
        })
        .await
    }

    /// How many calls have no known outcome, and since when the oldest. One that is asked for again because it was refused
    /// counts from its first attempt: nobody must think that it is new.
    pub(crate) async fn payments_waiting(&self) -> Result<(u64, Option<u64>), StoreError> {
        self.read(|conn| {
            let sql = "SELECT count(*), min((SELECT min(past.first_ms) FROM payment_call AS past
                              WHERE past.order_id = asked.order_id AND past.op = asked.op
                              AND (past.refused = 1 OR past.outcome IS NULL)))
                       FROM payment_call AS asked WHERE asked.outcome IS NULL";
            conn.one(sql, &[], |row| Ok((row.get(0)?, row.get(1)?)))
        })
        .await
    }

    /// Takes away what nobody asks for any more; answers how many rows.
    pub(crate) async fn sweep_checkouts(&self, now_ms: u64) -> Result<usize, StoreError> {
        self.write(move |tx| {
            let before_ms = now_ms.saturating_sub(DECLINED_KEPT_MS);
            let old = "SELECT order_id FROM checkout
                       WHERE placed = 0 AND money IN ('void', 'refunded') AND due_ms IS NULL AND changed_ms < ?1
                       ORDER BY changed_ms, order_id LIMIT ?2";
            let limits = params![before_ms, SWEPT_MAX];
            let sql = format!("DELETE FROM payment_call WHERE order_id IN ({old})");
            tx.sql.execute(&sql, limits)?;
            let sql = format!("DELETE FROM checkout WHERE order_id IN ({old})");
            let mut swept = tx.sql.execute(&sql, limits)?;
            let sql = "DELETE FROM payment_message WHERE (site, id) IN (
                           SELECT site, id FROM payment_message WHERE at_ms < ?1 LIMIT ?2)";
            let before_ms = now_ms.saturating_sub(MESSAGES_KEPT_MS);
            swept += tx.sql.execute(sql, params![before_ms, SWEPT_MAX])?;
            Ok(Decision::Keep(swept))
        })
        .await
    }
}
