//! Tables `checkout` and `payment_call`: the life of an order's money as rows, and who is working on which.
//!
//! What may follow what, [`crate::saga::machine`] decides; here each of its states is written down together with what it
//! brings about (order, stock, cart, event) in one transaction. A row is worked on by whoever has leased it. Each lease
//! has a number, and what comes back under an older one is not heard: a worker that was taken for dead can do no harm.

use rusqlite::{Connection, OptionalExtension as _, Row as SqlRow, params};
use serde::Serialize;
use souk_commerce::id::{CartId, OrderId, SiteId};
use souk_commerce::money::Minor;
use souk_commerce::order::{Order, OrderState};
use souk_commerce::payment::PaymentMethod;

use super::audit::{self, Actor, Deed};
use super::order::{self, Draft, Known, Payment, Standing, Uncounted};
use super::{Decision, Store, StoreError, Tx, cart, event, goods};
use crate::saga::machine::{By, Call, Effect, Found, Goods, Money, NotNow, Op, Outcome, Saga, Step, Wish};
use crate::saga::reconcile::{Ours, Report};

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

/// A row with everything that is decided by.
struct Row {
    order: OrderId,
    site: SiteId,
    cart: CartId,
    idempotency_key: String,
    request_hash: [u8; 32],
    amount: Minor,
    currency: String,
    body: Option<Vec<u8>>,
    uncounted: Option<String>,
    method: Option<PaymentMethod>,
    saga: Saga,
    fence: u64,
    leased_until_ms: u64,
}

const COLUMNS: &str = "order_id, site, cart, idempotency_key, request_hash, amount, currency, body, uncounted, method,
                       by_whom, money, goods, placed, capture, cancel, look, reference, why, fence, leased_until_ms,
                       created_ms";

fn corrupt(detail: impl std::fmt::Display) -> StoreError {
    StoreError::corrupt("checkout", detail)
}

fn named<T>(what: Option<T>, column: &str) -> Result<T, StoreError> {
    what.ok_or_else(|| corrupt(format!("the column {column} holds a word that is not known")))
}

fn read(row: &SqlRow<'_>) -> rusqlite::Result<Result<Row, StoreError>> {
    let (site, method): (String, Option<String>) = (row.get(1)?, row.get(9)?);
    let (by, money, goods): (String, String, String) = (row.get(10)?, row.get(11)?, row.get(12)?);
    let saga = || -> Result<Saga, StoreError> {
        let mut saga = Saga::reserved(false, 0);
        saga.by = named(By::by_name(&by), "by_whom")?;
        saga.money = named(Money::by_name(&money), "money")?;
        saga.goods = named(Goods::by_name(&goods), "goods")?;
        Ok(saga)
    };
    let method = method.map(|text| text.parse::<PaymentMethod>()).transpose();
    let (site, method, mut saga) = match (site.parse::<SiteId>(), method, saga()) {
        (Ok(site), Ok(method), Ok(saga)) => (site, method, saga),
        (Err(error), ..) | (_, Err(error), _) => return Ok(Err(corrupt(error))),
        (.., Err(error)) => return Ok(Err(error)),
    };
    saga.placed = row.get(13)?;
    saga.capture = row.get(14)?;
    saga.cancel = row.get(15)?;
    saga.look = row.get(16)?;
    saga.reference = row.get(17)?;
    saga.why = row.get(18)?;
    saga.since_ms = row.get(21)?;
    Ok(Ok(Row {
        order: OrderId(row.get(0)?),
        site,
        cart: CartId(row.get(2)?),
        idempotency_key: row.get(3)?,
        request_hash: row.get(4)?,
        amount: Minor(row.get(5)?),
        currency: row.get(6)?,
        body: row.get(7)?,
        uncounted: row.get(8)?,
        method,
        saga,
        fence: row.get(19)?,
        leased_until_ms: row.get(20)?,
    }))
}

fn load(conn: &Connection, order: OrderId) -> Result<Option<Row>, StoreError> {
    let mut select = conn.prepare_cached(&format!("SELECT {COLUMNS} FROM checkout WHERE order_id = ?1"))?;
    let Some(row) = select.query_row([order.0], read).optional()? else { return Ok(None) };
    let mut row = row?;
    let sql = "SELECT op, attempt, first_ms, tries, sent, maybe, answered, refused, outcome IS NULL
               FROM payment_call WHERE order_id = ?1";
    let mut select = conn.prepare_cached(sql)?;
    let mut calls = select.query([order.0])?;
    while let Some(found) = calls.next()? {
        let op = named(Op::by_name(found.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?), "op")?;
        let attempt: u32 = found.get(1)?;
        let attempts = &mut row.saga.attempts[op as usize];
        *attempts = attempt.max(*attempts);
        if found.get(8)? {
            let mut call = Call::stored(op, attempt, found.get(2)?);
            call.tries = found.get(3)?;
            call.sent = found.get(4)?;
            call.maybe = found.get(5)?;
            call.answered = found.get(6)?;
            call.refused = found.get(7)?;
            row.saga.call = Some(call);
        }
    }
    Ok(Some(row))
}

/// An order that nothing was done with yet: it is paid by invoice.
fn load_invoiced(conn: &Connection, id: OrderId) -> Result<Option<Row>, StoreError> {
    let sql = "SELECT id, site, cart, idempotency_key, request_hash, total, currency, NULL, uncounted, NULL,
                      'invoice', 'authorized', 'held', 1, 0, 0, 0, NULL, NULL, 0, 0, placed_ms
               FROM orders WHERE id = ?1";
    let row = conn.prepare_cached(sql)?.query_row([id.0], read).optional()?.transpose()?;
    Ok(row.map(|mut row| {
        let since_ms = row.saga.since_ms;
        row.saga = Saga::invoiced();
        row.saga.since_ms = since_ms;
        row
    }))
}

impl Row {
    fn charge(&self) -> Charge {
        Charge {
            order: self.order,
            site: self.site.clone(),
            amount: self.amount,
            currency: self.currency.clone(),
            method: self.method.clone(),
            reference: self.saga.reference.clone(),
        }
    }

    fn written(&self, conn: &Connection) -> Result<Order, StoreError> {
        match &self.body {
            Some(body) => order::decode(body, self.saga.order_state()),
            None => order::find(conn, self.order)?
                .map(|order| Order { state: self.saga.order_state(), ..order })
                .ok_or_else(|| corrupt("there is no order to it")),
        }
    }

    fn standing(&self, conn: &Connection) -> Result<Standing, StoreError> {
        let order = Box::new(self.written(conn)?);
        Ok(match order.state {
            OrderState::Pending => Standing::Pending(order),
            OrderState::Declined => {
                Standing::Declined(order, self.saga.why.clone().unwrap_or_else(|| "declined".to_owned()))
            }
            _ => Standing::Placed(order),
        })
    }

    fn insert(&self, tx: &Tx<'_>, now_ms: u64) -> Result<(), StoreError> {
        let sql = "INSERT INTO checkout (order_id, site, cart, idempotency_key, request_hash, amount, currency, body,
                          uncounted, by_whom, money, goods, placed, capture, cancel, look, created_ms, changed_ms)
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, 0, 0, 0, 0, ?13, ?13)";
        tx.sql.prepare_cached(sql)?.execute(params![
            self.order.0,
            self.site.as_str(),
            self.cart.0,
            self.idempotency_key,
            self.request_hash,
            self.amount.0,
            self.currency,
            self.body,
            self.uncounted,
            self.saga.by.name(),
            self.saga.money.name(),
            self.saga.goods.name(),
            now_ms
        ])?;
        Ok(())
    }

    /// Writes the state down, with its call. `ended`: what became of a call that is not waited for any more.
    fn save(&self, tx: &Tx<'_>, ended: &str, now_ms: u64) -> Result<(), StoreError> {
        let saga = &self.saga;
        let is_needed = matches!(saga.money, Money::Unasked | Money::Authorizing);
        let method = self.method.as_ref().filter(|_| is_needed).map(PaymentMethod::reveal);
        let due_ms = saga.due_in_ms().map(|wait_ms| now_ms.saturating_add(wait_ms));
        let sql = "UPDATE checkout SET method = ?2, money = ?3, goods = ?4, placed = ?5, capture = ?6, cancel = ?7,
                          look = ?8, reference = ?9, why = ?10, due_ms = ?11, leased_until_ms = ?12, changed_ms = ?13,
                          body = CASE WHEN ?5 THEN NULL ELSE body END
                   WHERE order_id = ?1";
        tx.sql.prepare_cached(sql)?.execute(params![
            self.order.0,
            method,
            saga.money.name(),
            saga.goods.name(),
            saga.placed,
            saga.capture,
            saga.cancel,
            saga.look,
            saga.reference,
            saga.why,
            due_ms,
            self.leased_until_ms,
            now_ms
        ])?;
        let open = saga.call.as_ref().map_or(("", 0), |call| (call.op.name(), call.attempt));
        let sql = "UPDATE payment_call SET outcome = ?4, ended_ms = ?5, sent = 0
                   WHERE order_id = ?1 AND outcome IS NULL AND (op, attempt) IS NOT (?2, ?3)";
        tx.sql.prepare_cached(sql)?.execute(params![self.order.0, open.0, open.1, ended, now_ms])?;
        if let Some(call) = &saga.call {
            let sql = "INSERT INTO payment_call (order_id, op, attempt, first_ms, tries, sent, maybe, answered, refused)
                       VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT (order_id, op, attempt) DO UPDATE
                       SET tries = ?5, sent = ?6, maybe = ?7, answered = ?8, refused = ?9";
            tx.sql.prepare_cached(sql)?.execute(params![
                self.order.0,
                call.op.name(),
                call.attempt,
                call.first_ms,
                call.tries,
                call.sent,
                call.maybe,
                call.answered,
                call.refused
            ])?;
        }
        if saga.placed {
            let sql = "UPDATE orders SET state = ?2 WHERE id = ?1 AND state <> ?2";
            tx.sql.prepare_cached(sql)?.execute(params![self.order.0, saga.order_state().name()])?;
        }
        Ok(())
    }

    /// Brings about what a change of the state brings with it. Before [`Row::save`], which forgets the body.
    fn bring_about(&self, tx: &Tx<'_>, effects: &[Effect], now_ms: u64) -> Result<(), StoreError> {
        if effects.is_empty() {
            return Ok(());
        }
        let written = self.written(tx.sql)?;
        let uncounted = Uncounted::read(self.uncounted.clone())?;
        for effect in effects {
            match effect {
                Effect::Place => {
                    order::insert(tx, &written, &self.idempotency_key, &self.request_hash, &uncounted)?;
                }
                Effect::Release => {
                    let counted =
                        order::units(&written).into_iter().filter(|(sku, _)| !uncounted.0.contains(sku));
                    for (sku, units) in counted {
                        goods::put_back(tx, &self.site, &sku, units)?;
                    }
                }
                Effect::OpenCart => cart::unseal(tx, &self.site, self.cart, self.order)?,
                Effect::Tell(what) => event::tell(tx, &written, *what, now_ms)?,
            }
        }
        Ok(())
    }

    fn detail(&self, conn: &Connection) -> Result<Detail, StoreError> {
        let sql = "SELECT op, attempt, first_ms, tries, outcome FROM payment_call WHERE order_id = ?1
                   ORDER BY first_ms, op, attempt";
        let mut select = conn.prepare_cached(sql)?;
        let calls = select.query_map([self.order.0], |row| {
            Ok(CallDetail {
                op: row.get(0)?,
                attempt: row.get(1)?,
                first_ms: row.get(2)?,
                tries: row.get(3)?,
                outcome: row.get(4)?,
            })
        })?;
        let saga = &self.saga;
        Ok(Detail {
            order: self.written(conn)?,
            payment: PaymentDetail {
                by: saga.by.name(),
                money: saga.money.name(),
                goods: saga.goods.name(),
                reference: saga.reference.clone(),
                why: saga.why.clone(),
                is_waiting: saga.call.is_some(),
                is_due: saga.due_in_ms().is_some(),
                calls: calls.collect::<Result<_, _>>()?,
            },
        })
    }
}

/// What an idempotency key leads to, where it has led to no order.
pub(super) fn known(
    conn: &Connection,
    site: &SiteId,
    key: &str,
    request_hash: &[u8; 32],
) -> Result<Known, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM checkout WHERE site = ?1 AND idempotency_key = ?2");
    let found = conn.prepare_cached(&sql)?.query_row(params![site.as_str(), key], read).optional()?;
    match found.transpose()? {
        None => Ok(Known::Unused),
        Some(row) if row.request_hash != *request_hash => Ok(Known::Other),
        Some(row) => Ok(Known::Same(row.standing(conn)?)),
    }
}

pub(super) fn standing(conn: &Connection, order: OrderId) -> Result<Option<Standing>, StoreError> {
    load(conn, order)?.map(|row| row.standing(conn)).transpose()
}

/// Writes a reservation down. Its stock has been taken and its cart sealed in this transaction.
pub(super) fn begin(
    tx: &Tx<'_>,
    draft: &Draft,
    uncounted: &Uncounted,
    payment: &Payment,
    now_ms: u64,
) -> Result<(), StoreError> {
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
    };
    row.insert(tx, now_ms)?;
    row.save(tx, "", now_ms)
}

fn claim(tx: &Tx<'_>, now_ms: u64, busy_sites: &str) -> Result<Option<Claimed>, StoreError> {
    for _ in 0..PASSED_OVER_MAX {
        let sql = "UPDATE checkout SET fence = fence + 1 WHERE order_id = (
                       SELECT order_id FROM checkout
                       WHERE due_ms <= ?1 AND leased_until_ms <= ?1 AND site NOT IN (SELECT value FROM json_each(?2))
                       ORDER BY due_ms LIMIT 1)
                   RETURNING order_id";
        let mut update = tx.sql.prepare_cached(sql)?;
        let Some(order) = update.query_row(params![now_ms, busy_sites], |row| row.get(0)).optional()? else {
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
    // It stays due: whoever holds it may die, and then it is for whoever comes after the lease.
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
    if tx.sql.prepare_cached(sql)?.execute(params![site.as_str(), message, now_ms])? == 0 {
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
        let mut select = tx.sql.prepare_cached(sql)?;
        let found = select.query_row(params![site.as_str(), reference], |row| row.get(0)).optional()?;
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
            let sql = "SELECT order_id, money, amount, reference, created_ms, due_ms IS NOT NULL FROM checkout
                       WHERE site = ?1 AND created_ms >= ?2 AND by_whom = 'provider' ORDER BY created_ms LIMIT ?3";
            let mut select = conn.prepare_cached(sql)?;
            let mut rows = select.query(params![site.as_str(), since_ms, COMPARED_MAX])?;
            let mut ours = Vec::new();
            while let Some(row) = rows.next()? {
                let money = Money::by_name(row.get_ref(1)?.as_str().map_err(rusqlite::Error::from)?);
                ours.push(Ours {
                    order: OrderId(row.get(0)?),
                    money: named(money, "money")?,
                    amount: row.get(2)?,
                    reference: row.get(3)?,
                    created_ms: row.get(4)?,
                    is_moving: row.get(5)?,
                });
            }
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
        let followed: Vec<OrderId> =
            report.differences.iter().filter(|d| d.is_followed).map(|d| d.order).collect();
        self.write(move |tx| {
            for order in followed {
                look(tx, &site, Some(order), None, now_ms)?;
            }
            let sql = "INSERT INTO payment_report (site, at_ms, body) VALUES (?1, ?2, ?3)
                       ON CONFLICT (site) DO UPDATE SET at_ms = ?2, body = ?3";
            tx.sql.prepare_cached(sql)?.execute(params![site.as_str(), now_ms, body])?;
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
            let found: Option<(u64, String)> = conn
                .prepare_cached(sql)?
                .query_row([site.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            found.map(|(at_ms, body)| Ok((at_ms, serde_json::from_str(&body).map_err(corrupt)?))).transpose()
        })
        .await
    }

    /// When the next row is due; none: all rest.
    pub(crate) async fn checkout_due(&self) -> Result<Option<u64>, StoreError> {
        self.read(|conn| {
            let sql = "SELECT max(due_ms, leased_until_ms) AS free_ms FROM checkout WHERE due_ms IS NOT NULL
                       ORDER BY free_ms LIMIT 1";
            Ok(conn.prepare_cached(sql)?.query_row([], |row| row.get(0)).optional()?)
        })
        .await
    }

    /// Takes up a row that is due, unless it is of one of `busy_sites`.
    pub(crate) async fn claim_checkout(
        &self,
        now_ms: u64,
        busy_sites: &[SiteId],
    ) -> Result<Option<Claimed>, StoreError> {
        let busy = serde_json::to_string(busy_sites).map_err(corrupt)?;
        self.write(move |tx| claim(tx, now_ms, &busy).map(Decision::Keep)).await
    }

    /// Writes down what was heard, with everything that follows from it.
    pub(crate) async fn conclude_checkout(
        &self,
        claimed: Claimed,
        heard: Heard,
        now_ms: u64,
    ) -> Result<After, StoreError> {
        self.write(move |tx| conclude(tx, &claimed, heard, now_ms)).await
    }

    pub(crate) async fn wish_order(
        &self,
        site: SiteId,
        order: OrderId,
        what: Wish,
        actor: Actor,
        now_ms: u64,
    ) -> Result<Wished, StoreError> {
        self.write(move |tx| wish(tx, &site, order, what, &actor, now_ms)).await
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
        self.read(move |conn| match order::find(conn, order)? {
            Some(order) => Ok(Some(Standing::Placed(Box::new(order)))),
            None => standing(conn, order),
        })
        .await
    }

    /// An order with its money; none: the site has no such order.
    pub(crate) async fn order_detail(
        &self,
        site: SiteId,
        order: OrderId,
    ) -> Result<Option<Detail>, StoreError> {
        self.read(move |conn| {
            let row = match load(conn, order)? {
                Some(row) => Some(row),
                None => load_invoiced(conn, order)?,
            };
            row.filter(|row| row.site == site).map(|row| row.detail(conn)).transpose()
        })
        .await
    }

    /// How many calls have no known outcome, and since when the oldest.
    pub(crate) async fn payments_waiting(&self) -> Result<(u64, Option<u64>), StoreError> {
        self.read(|conn| {
            let sql = "SELECT count(*), min(first_ms) FROM payment_call WHERE outcome IS NULL";
            Ok(conn.prepare_cached(sql)?.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?)
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
            tx.sql.prepare_cached(&sql)?.execute(limits)?;
            let sql = format!("DELETE FROM checkout WHERE order_id IN ({old})");
            let mut swept = tx.sql.prepare_cached(&sql)?.execute(limits)?;
            let sql = "DELETE FROM payment_message WHERE (site, id) IN (
                           SELECT site, id FROM payment_message WHERE at_ms < ?1 LIMIT ?2)";
            let before_ms = now_ms.saturating_sub(MESSAGES_KEPT_MS);
            swept += tx.sql.prepare_cached(sql)?.execute(params![before_ms, SWEPT_MAX])?;
            Ok(Decision::Keep(swept))
        })
        .await
    }
}
