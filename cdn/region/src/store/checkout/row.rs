//! A row of `checkout` with its open call: read whole, decided by, written whole.

use std::ops::ControlFlow;

use souk_commerce::id::{CartId, OrderId, SiteId};
use souk_commerce::money::Minor;
use souk_commerce::order::{Order, OrderState};
use souk_commerce::payment::PaymentMethod;

use super::super::engine::{Row as SqlRow, Session, params};
use super::super::order::{self, Standing, Uncounted};
use super::super::vault::Owner;
use super::super::{StoreError, Tx, cart, event, goods};
use super::{CallDetail, Charge, Detail, PaymentDetail};
use crate::saga::machine::{By, Call, Effect, Goods, Money, Op, Saga};

/// A row with everything that is decided by.
pub(super) struct Row {
    pub(super) order: OrderId,
    pub(super) site: SiteId,
    pub(super) cart: CartId,
    pub(super) idempotency_key: String,
    pub(super) request_hash: [u8; 32],
    pub(super) amount: Minor,
    pub(super) currency: String,
    pub(super) body: Option<Vec<u8>>,
    pub(super) uncounted: Option<String>,
    pub(super) method: Option<PaymentMethod>,
    pub(super) saga: Saga,
    pub(super) fence: u64,
    pub(super) leased_until_ms: u64,
    pub(super) owner: Owner,
}

pub(super) const COLUMNS: &str = "order_id, site, cart, idempotency_key, request_hash, amount, currency, body, uncounted, method,
                       by_whom, money, goods, placed, capture, cancel, look, reference, why, fence, leased_until_ms,
                       created_ms, subject, sealed";

pub(super) fn corrupt(detail: impl std::fmt::Display) -> StoreError {
    StoreError::corrupt("checkout", detail)
}

pub(super) fn named<T>(what: Option<T>, column: &str) -> Result<T, StoreError> {
    what.ok_or_else(|| corrupt(format!("the column {column} holds a word that is not known")))
}

pub(super) fn read(row: &SqlRow<'_>) -> Result<Row, StoreError> {
    let (site, method): (String, Option<String>) = (row.get(1)?, row.get(9)?);
    let (by, money, goods): (String, String, String) = (row.get(10)?, row.get(11)?, row.get(12)?);
    let mut saga = Saga::reserved(false, 0);
    saga.by = named(By::by_name(&by), "by_whom")?;
    saga.money = named(Money::by_name(&money), "money")?;
    saga.goods = named(Goods::by_name(&goods), "goods")?;
    saga.placed = row.get(13)?;
    saga.capture = row.get(14)?;
    saga.cancel = row.get(15)?;
    saga.look = row.get(16)?;
    saga.reference = row.get(17)?;
    saga.why = row.get(18)?;
    saga.since_ms = row.get(21)?;
    Ok(Row {
        order: OrderId(row.get(0)?),
        site: site.parse().map_err(corrupt)?,
        cart: CartId(row.get(2)?),
        idempotency_key: row.get(3)?,
        request_hash: row.get(4)?,
        amount: Minor(row.get(5)?),
        currency: row.get(6)?,
        body: row.get(7)?,
        uncounted: row.get(8)?,
        method: method.map(|text| text.parse::<PaymentMethod>()).transpose().map_err(corrupt)?,
        saga,
        fence: row.get(19)?,
        leased_until_ms: row.get(20)?,
        owner: Owner { subject: row.get(22)?, is_sealed: row.get(23)? },
    })
}

pub(super) fn load(conn: &dyn Session, order: OrderId) -> Result<Option<Row>, StoreError> {
    let Some(mut row) =
        conn.find(&format!("SELECT {COLUMNS} FROM checkout WHERE order_id = ?1"), params![order.0], read)?
    else {
        return Ok(None);
    };
    let sql = "SELECT op, attempt, first_ms, tries, sent, maybe, answered, refused, outcome IS NULL
               FROM payment_call WHERE order_id = ?1";
    conn.each(sql, params![order.0], &mut |found| {
        let op = named(Op::by_name(&found.get::<String>(0)?), "op")?;
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
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(Some(row))
}

/// An order that nothing was done with yet: it is paid by invoice.
pub(super) fn load_invoiced(conn: &dyn Session, id: OrderId) -> Result<Option<Row>, StoreError> {
    let sql = "SELECT id, site, cart, idempotency_key, request_hash, total, currency, NULL, uncounted, NULL,
                      'invoice', 'authorized', 'held', 1, 0, 0, 0, NULL, NULL, 0, 0, placed_ms, subject, sealed
               FROM orders WHERE id = ?1";
    let row = conn.find(sql, params![id.0], read)?;
    Ok(row.map(|mut row| {
        let since_ms = row.saga.since_ms;
        row.saga = Saga::invoiced();
        row.saga.since_ms = since_ms;
        row
    }))
}

impl Row {
    pub(super) fn charge(&self) -> Charge {
        Charge {
            order: self.order,
            site: self.site.clone(),
            amount: self.amount,
            currency: self.currency.clone(),
            method: self.method.clone(),
            reference: self.saga.reference.clone(),
        }
    }

    pub(super) fn written(&self, conn: &dyn Session) -> Result<Order, StoreError> {
        match &self.body {
            Some(body) => order::decode(body, self.saga.order_state()),
            None => order::find(conn, self.order)?
                .map(|order| Order { state: self.saga.order_state(), ..order })
                .ok_or_else(|| corrupt("there is no order to it")),
        }
    }

    pub(super) fn standing(&self, conn: &dyn Session) -> Result<Standing, StoreError> {
        let order = Box::new(self.written(conn)?);
        Ok(match order.state {
            OrderState::Pending => Standing::Pending(order),
            OrderState::Declined => {
                Standing::Declined(order, self.saga.why.clone().unwrap_or_else(|| "declined".to_owned()))
            }
            _ => Standing::Placed(order),
        })
    }

    pub(super) fn insert(&self, tx: &Tx<'_>, now_ms: u64) -> Result<(), StoreError> {
        let sql = "INSERT INTO checkout (order_id, site, cart, idempotency_key, request_hash, amount, currency, body,
                          uncounted, by_whom, money, goods, placed, capture, cancel, look, created_ms, changed_ms,
                          subject, sealed)
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, 0, 0, 0, 0, ?13, ?13, ?14, ?15)";
        tx.sql.execute(
            sql,
            params![
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
                now_ms,
                self.owner.subject,
                self.owner.is_sealed
            ],
        )?;
        Ok(())
    }

    /// Writes the state down, with its call. `ended`: what became of a call that is not waited for any more.
    pub(super) fn save(&self, tx: &Tx<'_>, ended: &str, now_ms: u64) -> Result<(), StoreError> {
        let saga = &self.saga;
        let is_needed = matches!(saga.money, Money::Unasked | Money::Authorizing);
        let method = self.method.as_ref().filter(|_| is_needed).map(PaymentMethod::reveal);
        // Not before its lease ends: what is in somebody's hands is not looked over by those who seek work.
        let due_ms = saga.due_in_ms().map(|wait_ms| now_ms.saturating_add(wait_ms).max(self.leased_until_ms));
        let sql = "UPDATE checkout SET method = ?2, money = ?3, goods = ?4, placed = ?5, capture = ?6, cancel = ?7,
                          look = ?8, reference = ?9, why = ?10, due_ms = ?11, leased_until_ms = ?12, changed_ms = ?13,
                          body = CASE WHEN CAST(?5 AS BIGINT) = 1 THEN NULL ELSE body END
                   WHERE order_id = ?1";
        tx.sql.execute(
            sql,
            params![
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
            ],
        )?;
        let open = saga.call.as_ref().map_or(("", 0), |call| (call.op.name(), call.attempt));
        let sql = "UPDATE payment_call SET outcome = ?4, ended_ms = ?5, sent = 0
                   WHERE order_id = ?1 AND outcome IS NULL AND NOT (op = ?2 AND attempt = ?3)";
        tx.sql.execute(sql, params![self.order.0, open.0, open.1, ended, now_ms])?;
        if let Some(call) = &saga.call {
            let sql = "INSERT INTO payment_call (order_id, op, attempt, first_ms, tries, sent, maybe, answered, refused)
                       VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT (order_id, op, attempt) DO UPDATE
                       SET tries = ?5, sent = ?6, maybe = ?7, answered = ?8, refused = ?9";
            tx.sql.execute(
                sql,
                params![
                    self.order.0,
                    call.op.name(),
                    call.attempt,
                    call.first_ms,
                    call.tries,
                    call.sent,
                    call.maybe,
                    call.answered,
                    call.refused
                ],
            )?;
        }
        if saga.placed {
            let sql = "UPDATE orders SET state = ?2 WHERE id = ?1 AND state <> ?2";
            tx.sql.execute(sql, params![self.order.0, saga.order_state().name()])?;
        }
        Ok(())
    }

    /// Brings about what a change of the state brings with it. Before [`Row::save`], which forgets the body.
    pub(super) fn bring_about(&self, tx: &Tx<'_>, effects: &[Effect], now_ms: u64) -> Result<(), StoreError> {
        if effects.is_empty() {
            return Ok(());
        }
        let written = self.written(tx.sql)?;
        let uncounted = Uncounted::read(self.uncounted.clone())?;
        for effect in effects {
            match effect {
                Effect::Place => {
                    let (key, hash) = (&self.idempotency_key, &self.request_hash);
                    order::insert(tx, &written, self.owner, key, hash, &uncounted)?;
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

    pub(super) fn detail(&self, conn: &dyn Session) -> Result<Detail, StoreError> {
        let sql = "SELECT op, attempt, first_ms, tries, outcome FROM payment_call WHERE order_id = ?1
                   ORDER BY first_ms, op, attempt";
        let calls = conn.list(sql, params![self.order.0], |row| {
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
                calls,
            },
        })
    }
}
