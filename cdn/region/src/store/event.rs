//! Tables `event`, `event_consumer` and `sales`: what has happened to orders, and what a shop has sold.
//!
//! The outbox. A row is written by the transaction in which the thing happened, so that there is none without the other.
//! Whoever reads it keeps its own place: the region's consumers in `event_consumer`, moved by the transaction that holds
//! what they made of it, merchants' programs wherever they like ([`Store::events`]), a broker's publisher in
//! [`super::publisher`].
//!
//! To read on behind a place is right because numbers are given in the order of the commits: a number is drawn within a
//! writing transaction, and there is one of those at a time, over all processes (in PostgreSQL: the row that each holds from
//! its first statement until it is committed and seen). Whoever takes that away has to give readers another order; a test
//! of the shared database holds a transaction open to see that nobody passes it.

use std::ops::ControlFlow;

use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use souk_commerce::id::{OrderId, SiteId};
use souk_commerce::order::Order;

use super::engine::{Row, params};
use super::{Decision, Store, StoreError, Tx};
use crate::saga::machine::Event;

/// Longest list of events in one answer.
pub(crate) const EVENTS_LISTED_MAX: usize = 1_000;
/// A merchant's program that was away for so long reads the list of orders instead.
pub(crate) const EVENTS_KEPT_MS: u64 = 30 * 86_400_000;
/// Events that a consumer takes in one transaction: some 5 ms of the one writer.
const EVENTS_AT_ONCE_MAX: usize = 200;
/// Rows that one sweep takes away.
const SWEPT_MAX: usize = 2_000;
/// The consumer that keeps the table `sales`.
const SALES: &str = "sales";
const DAY_MS: u64 = 86_400_000;

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct EventRow {
    /// Ever greater, but in a store that was put back from a backup: there, numbers are given a second time.
    pub(crate) seq: u64,
    /// The name by which a reader knows an event that comes twice.
    pub(crate) id: String,
    pub(crate) at_ms: u64,
    pub(crate) order: OrderId,
    pub(crate) kind: String,
    pub(crate) detail: Value,
}

/// What a shop has sold on one day (UTC), in minor units.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct SalesDay {
    /// Days since 1970-01-01.
    pub(crate) day: u64,
    pub(crate) currency: String,
    pub(crate) orders: u64,
    pub(crate) placed: i64,
    pub(crate) captured: i64,
    pub(crate) cancelled: i64,
    pub(crate) refunded: i64,
}

/// Writes an event, in the transaction of what it tells. Nothing of the shopper is in it.
pub(super) fn tell(tx: &Tx<'_>, order: &Order, event: Event, now_ms: u64) -> Result<(), StoreError> {
    let detail = json!({
        "cart": order.cart, "state": order.state.name(), "currency": order.quote.currency.code(),
        "total": order.quote.total,
    });
    write(tx, &order.site, order.id, event, &detail, now_ms)
}

fn write(
    tx: &Tx<'_>,
    site: &SiteId,
    order: OrderId,
    event: Event,
    detail: &Value,
    now_ms: u64,
) -> Result<(), StoreError> {
    let sql = "INSERT INTO event (site, order_id, kind, body, at_ms) VALUES (?1, ?2, ?3, ?4, ?5)";
    tx.sql.execute(sql, params![site.as_str(), order.0, event.name(), detail.to_string(), now_ms])?;
    Ok(())
}

/// The events after a consumer's place, each given to `consume`, and the place moved behind them. In one transaction: an
/// event is consumed once, whatever happens.
fn consume(
    tx: &Tx<'_>,
    name: &str,
    mut each: impl FnMut(&str, &EventRow) -> Result<(), StoreError>,
) -> Result<usize, StoreError> {
    let place: Option<u64> =
        tx.sql.find("SELECT seq FROM event_consumer WHERE name = ?1", params![name], |row| row.get(0))?;
    let sql = format!("SELECT site, {EVENT_COLUMNS} FROM event WHERE seq > ?1 ORDER BY seq LIMIT ?2");
    let (mut count, mut last) = (0, 0);
    tx.sql.each(&sql, params![place.unwrap_or(0), EVENTS_AT_ONCE_MAX], &mut |row| {
        let site: String = row.get(0)?;
        let event = read(row, 1)?;
        each(&site, &event)?;
        (count, last) = (count + 1, event.seq);
        Ok(ControlFlow::Continue(()))
    })?;
    if count > 0 {
        let sql = "INSERT INTO event_consumer (name, seq) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET seq = ?2";
        tx.sql.execute(sql, params![name, last])?;
    }
    Ok(count)
}

/// What [`read`] reads, in its order.
pub(super) const EVENT_COLUMNS: &str = "seq, at_ms, order_id, kind, body";

pub(super) fn read(row: &Row<'_>, first: usize) -> Result<EventRow, StoreError> {
    let detail: String = row.get(first + 4)?;
    let (seq, at_ms) = (row.get(first)?, row.get(first + 1)?);
    let (order, kind): (_, String) = (OrderId(row.get(first + 2)?), row.get(first + 3)?);
    Ok(EventRow {
        id: id(seq, at_ms, order, &kind),
        seq,
        at_ms,
        order,
        kind,
        // A row that somebody broke is shown as it is.
        detail: serde_json::from_str(&detail).unwrap_or(Value::String(detail)),
    })
}

/// The number, and eight bytes of SHA-256 of what happened: a store from a backup gives the number to something else.
fn id(seq: u64, at_ms: u64, order: OrderId, kind: &str) -> String {
    let digest = Sha256::new_with_prefix("souk event\n").chain_update(format!("{order}\n{kind}\n{at_ms}"));
    format!("{seq}-{}", hex::encode(&digest.finalize()[..8]))
}

fn count_sales(tx: &Tx<'_>) -> Result<usize, StoreError> {
    consume(tx, SALES, |site, event| {
        let column = match Event::by_name(&event.kind) {
            Some(Event::Placed) => "placed",
            Some(Event::Captured) => "captured",
            Some(Event::Cancelled) => "cancelled",
            Some(Event::Refunded) => "refunded",
            _ => return Ok(()),
        };
        let orders = u64::from(column == "placed");
        let total = event.detail["total"].as_i64().unwrap_or(0);
        let currency = event.detail["currency"].as_str().unwrap_or_default();
        let sql = format!(
            "INSERT INTO sales (site, day, currency, orders, {column}) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (site, day, currency) DO UPDATE SET orders = sales.orders + ?4, {column} = sales.{column} + ?5"
        );
        let day = event.at_ms / DAY_MS;
        tx.sql.execute(&sql, params![site, day, currency, orders, total])?;
        Ok(())
    })
}

impl Store {
    /// Events of a site after `after`, oldest first.
    pub(crate) async fn events(
        &self,
        site: SiteId,
        after: u64,
        limit: usize,
    ) -> Result<Vec<EventRow>, StoreError> {
        self.read(move |conn| {
            let sql = format!(
                "SELECT {EVENT_COLUMNS} FROM event WHERE site = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3"
            );
            let limits = params![site.as_str(), after, limit.min(EVENTS_LISTED_MAX)];
            conn.list(&sql, limits, |row| read(row, 0))
        })
        .await
    }

    /// Lets the region's own consumers read on; answers how many events they took. Whole when it answers 0.
    pub(crate) async fn consume_events(&self) -> Result<usize, StoreError> {
        // Asked on a reader first: an idle region writes nothing.
        let behind = self
            .read(|conn| {
                let sql = "SELECT (SELECT max(seq) FROM event)
                               > coalesce((SELECT seq FROM event_consumer WHERE name = ?1), 0)";
                let behind: Option<bool> = conn.one(sql, params![SALES], |row| row.get(0))?;
                Ok(behind == Some(true))
            })
            .await?;
        if !behind {
            return Ok(0);
        }
        self.write(|tx| count_sales(tx).map(Decision::Keep)).await
    }

    /// What a site has sold, the newest days first.
    pub(crate) async fn sales(&self, site: SiteId, limit: usize) -> Result<Vec<SalesDay>, StoreError> {
        self.read(move |conn| {
            let sql = "SELECT day, currency, orders, placed, captured, cancelled, refunded FROM sales
                       WHERE site = ?1 ORDER BY day DESC, currency LIMIT ?2";
            conn.list(sql, params![site.as_str(), limit.min(EVENTS_LISTED_MAX)], |row| {
                Ok(SalesDay {
                    day: row.get(0)?,
                    currency: row.get(1)?,
                    orders: row.get(2)?,
                    placed: row.get(3)?,
                    captured: row.get(4)?,
                    cancelled: row.get(5)?,
                    refunded: row.get(6)?,
                })
            })
        })
        .await
    }

    /// Takes old events away that every consumer has read; answers how many.
    pub(crate) async fn sweep_events(&self, now_ms: u64) -> Result<usize, StoreError> {
        self.write(move |tx| {
            let sql = "DELETE FROM event WHERE seq IN (
                           SELECT seq FROM event WHERE at_ms < ?1
                           AND seq <= coalesce((SELECT min(seq) FROM event_consumer), 0) LIMIT ?2)";
            let before_ms = now_ms.saturating_sub(EVENTS_KEPT_MS);
            Ok(Decision::Keep(tx.sql.execute(sql, params![before_ms, SWEPT_MAX])?))
        })
        .await
    }

    /// An event of an order that is not there.
    #[cfg(test)]
    pub(crate) async fn happen(
        &self,
        site: SiteId,
        order: OrderId,
        event: Event,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        self.write(move |tx| {
            write(tx, &site, order, event, &json!({ "state": "captured" }), now_ms).map(Decision::Keep)
        })
        .await
    }

    /// The same, and the transaction ends when somebody says so.
    #[cfg(test)]
    pub(super) async fn happen_slowly(
        &self,
        site: SiteId,
        order: OrderId,
        ends: std::sync::mpsc::Receiver<()>,
    ) -> Result<(), StoreError> {
        let ends = parking_lot::Mutex::new(ends);
        self.write(move |tx| {
            write(tx, &site, order, Event::Placed, &json!({}), 1)?;
            let _said = ends.lock().recv();
            Ok(Decision::Keep(()))
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Programs that we do not know remember it.
    #[test]
    fn an_id_stays_what_it_is_and_differs_where_a_number_comes_again() {
        let order = OrderId([1; 16]);
        assert_eq!(id(42, 1_700_000_000_123, order, "order.placed"), "42-1e135c35d3b5a811");
        let others = [
            id(42, 1_700_000_000_124, order, "order.placed"),
            id(42, 1_700_000_000_123, order, "checkout.declined"),
            id(42, 1_700_000_000_123, OrderId([2; 16]), "order.placed"),
        ];
        assert!(others.iter().all(|other| !other.ends_with("-1e135c35d3b5a811")));
    }
}
