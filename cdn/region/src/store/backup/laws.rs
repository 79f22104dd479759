//! What must hold between the rows of a store at any committed moment: what a backup is checked against, and a store that runs.
//!
//! A constraint of a table says what must hold within a row, and an engine keeps it. These are the sums and references over
//! several tables, and what is inside of rows: money, units, carts, the chain of the audit log.

use std::ops::ControlFlow;

use souk_commerce::id::Digest;
use souk_commerce::money::Minor;
use souk_commerce::order::{Order, OrderState};
use souk_replication::Log;

use crate::store::audit::{self, Chain};
use crate::store::engine::Session;
use crate::store::{StoreError, cart, order};

/// Breaches of one law that are named; a table that was mangled has as many as rows.
const NAMED_MAX: usize = 20;

/// A law as a query: each row of its answer, one text, names a breach.
struct Law {
    says: &'static str,
    breaches: String,
}

fn laws(conn: &dyn Session) -> Vec<Law> {
    let hex = |column: &str| conn.dialect().hex(column);
    let law = |says, breaches: String| Law { says, breaches };
    let sums = |place: &str, units: &str, table: &str| {
        format!(
            "SELECT s.site || '/' || s.sku FROM stock s LEFT JOIN (
                 SELECT site, sku, CAST(sum({units}) AS BIGINT) AS units FROM {table} WHERE ended_ms IS NULL GROUP BY site, sku
             ) t ON t.site = s.site AND t.sku = s.sku WHERE s.{place} <> coalesce(t.units, 0)"
        )
    };
    let without_row = |table: &str| {
        format!(
            "SELECT t.site || '/' || t.sku FROM {table} t WHERE ended_ms IS NULL
             AND NOT EXISTS (SELECT 1 FROM stock s WHERE s.site = t.site AND s.sku = t.sku)"
        )
    };
    let mut laws = vec![
        law(
            "every unit that was received is in one place",
            "SELECT site || '/' || sku FROM stock WHERE received <> sold + reserved + granted + coalesce(available, 0)"
                .to_owned(),
        ),
        law("units are reserved as they are promised to carts", sums("reserved", "units", "stock_hold")),
        law("units are granted as they are lent to nodes", sums("granted", "units - consumed", "stock_grant")),
        law("what is promised is of a product with stock", without_row("stock_hold")),
        law("what is lent is of a product with stock", without_row("stock_grant")),
        law(
            "a log has every entry from its floor to its head",
            "SELECT 'log ' || CAST(h.log AS TEXT) FROM log_head h LEFT JOIN (
                 SELECT log, count(*) AS entries, min(version) AS lowest, max(version) AS highest FROM log GROUP BY log
             ) l ON l.log = h.log
             WHERE coalesce(l.entries, 0) <> h.version - h.floor
                OR l.entries > 0 AND (l.lowest <> h.floor + 1 OR l.highest <> h.version)"
                .to_owned(),
        ),
        law(
            "a node sends in one epoch at a time",
            "SELECT 'node ' || CAST(node AS TEXT) FROM cursor WHERE sealed = 0 GROUP BY node HAVING count(*) > 1"
                .to_owned(),
        ),
        law(
            "a node's open epoch is its newest",
            "SELECT 'node ' || CAST(c.node AS TEXT) || ', epoch ' || CAST(c.epoch AS TEXT) FROM cursor c WHERE c.sealed = 0
             AND EXISTS (SELECT 1 FROM cursor n WHERE n.node = c.node AND n.epoch > c.epoch)"
                .to_owned(),
        ),
        law(
            "an order has sealed its cart",
            format!(
                // The order of a shopper who was erased stands under its own number.
                "SELECT 'order ' || {} FROM orders o WHERE o.cart <> o.id AND NOT EXISTS (
                     SELECT 1 FROM cart c WHERE c.site = o.site AND c.cart = o.cart AND c.order_id = o.id)",
                hex("o.id")
            ),
        ),
        law(
            "what has sealed a cart is an order or a checkout",
            format!(
                "SELECT 'cart ' || {} FROM cart c WHERE c.order_id IS NOT NULL
                 AND NOT EXISTS (SELECT 1 FROM orders o WHERE o.id = c.order_id)
                 AND NOT EXISTS (SELECT 1 FROM checkout k WHERE k.order_id = c.order_id)",
                hex("c.cart")
            ),
        ),
        law(
            "a checkout that is placed is an order, and one that is not has what it will be",
            format!(
                "SELECT 'checkout ' || {} FROM checkout k WHERE placed = 1
                 AND NOT EXISTS (SELECT 1 FROM orders o WHERE o.id = k.order_id)",
                hex("k.order_id")
            ),
        ),
        law(
            "the lines of an order are listed",
            format!(
                "SELECT 'order ' || {} FROM orders o
                 WHERE NOT EXISTS (SELECT 1 FROM order_line l WHERE l.position = o.position)",
                hex("o.id")
            ),
        ),
    ];
    for (table, log) in [
        ("site", Log::Config),
        ("product", Log::Catalog),
        ("price", Log::Price),
        ("stock", Log::Stock),
        ("asset", Log::Asset),
        ("release_set", Log::Release),
    ] {
        laws.push(law(
            "no row is newer than its log",
            format!(
                "SELECT '{table} of ' || site FROM {table} WHERE version > (SELECT version FROM log_head WHERE log = {})",
                log.code()
            ),
        ));
    }
    laws
}

/// What does not hold, in words. Holds as much as it names.
pub(super) fn broken(conn: &dyn Session) -> Result<Vec<String>, StoreError> {
    let mut broken = Vec::new();
    for Law { says, breaches } in laws(conn) {
        let found: Vec<String> =
            conn.list(&format!("{breaches} LIMIT {NAMED_MAX}"), &[], |row| row.get::<String>(0))?;
        broken.extend(found.into_iter().map(|what| format!("{says}: not so of {what}")));
    }
    orders(conn, &mut broken)?;
    carts(conn, &mut broken)?;
    releases(conn, &mut broken)?;
    if let Chain::BrokenAt { seq } = audit::chain(conn)? {
        broken.push(format!("each row of the audit log is bound to the one before: not so of row {seq}"));
    }
    Ok(broken)
}

fn note(broken: &mut Vec<String>, named: &mut usize, what: impl FnOnce() -> String) {
    *named += 1;
    if *named <= NAMED_MAX {
        broken.push(what());
    }
}

/// An order's money adds up, and what is written beside it is the same.
fn orders(conn: &dyn Session, broken: &mut Vec<String>) -> Result<(), StoreError> {
    let mut named = 0;
    let hex = conn.dialect().hex("o.id");
    let sql = format!(
        "SELECT {hex}, o.total, o.currency, o.site, o.body, l.lines, l.total FROM orders o LEFT JOIN (
             SELECT position, count(*) AS lines, CAST(sum(total) AS BIGINT) AS total FROM order_line GROUP BY position
         ) l ON l.position = o.position"
    );
    conn.stream(&sql, &mut |row| {
        let id: String = row.get(0)?;
        let total: i64 = row.get(1)?;
        let (currency, site): (String, String) = (row.get(2)?, row.get(3)?);
        let body: Vec<u8> = row.get(4)?;
        let (lines, lines_total): (Option<u64>, Option<i64>) = (row.get(5)?, row.get(6)?);
        let found = match order::decode(&body, OrderState::Placed) {
            Err(error) => Err(error.to_string()),
            Ok(order) => adds_up(&order).and_then(|()| {
                let quote = &order.quote;
                let listed = (lines.unwrap_or(0), lines_total.unwrap_or(0));
                if (quote.total.0, quote.currency.code(), order.site.as_str()) != (total, &*currency, &*site)
                {
                    return Err("the row says something else than the order".to_owned());
                }
                if listed != (quote.lines.len() as u64, quote.subtotal.0) {
                    return Err(format!("{} lines of {} are listed", listed.0, listed.1));
                }
                Ok(())
            }),
        };
        if let Err(why) = found {
            note(broken, &mut named, || format!("an order's money adds up: not so of order {id}: {why}"));
        }
        Ok(ControlFlow::Continue(()))
    })
}

fn adds_up(order: &Order) -> Result<(), String> {
    let sum = |amounts: &mut dyn Iterator<Item = Minor>| -> i128 { amounts.map(|a| i128::from(a.0)).sum() };
    let quote = &order.quote;
    for line in &quote.lines {
        if i128::from(line.unit_price.0) * i128::from(line.quantity) != i128::from(line.amount.0) {
            return Err(format!("{} times {} is not {}", line.quantity, line.unit_price, line.amount));
        }
        let adjusted =
            i128::from(line.amount.0) + sum(&mut line.adjustments.iter().map(|applied| applied.amount));
        if adjusted != i128::from(line.total.0) {
            return Err(format!("line {} comes to {adjusted} and says {}", line.line, line.total));
        }
    }
    let subtotal = sum(&mut quote.lines.iter().map(|line| line.total));
    let total = subtotal + sum(&mut quote.adjustments.iter().map(|applied| applied.amount));
    if (subtotal, total) != (quote.subtotal.0.into(), quote.total.0.into()) {
        return Err(format!("it comes to {subtotal} and {total}"));
    }
    Ok(())
}

/// A cart can be read, and is what its digest says.
fn carts(conn: &dyn Session, broken: &mut Vec<String>) -> Result<(), StoreError> {
    let mut named = 0;
    let sql = format!("SELECT {}, state, digest FROM cart", conn.dialect().hex("cart"));
    conn.stream(&sql, &mut |row| {
        let state: Vec<u8> = row.get(1)?;
        let is_whole = Digest::of(&state).0 == row.get::<[u8; 32]>(2)? && cart::decode(&state).is_ok();
        if !is_whole {
            let id: String = row.get(0)?;
            note(broken, &mut named, || format!("a cart is what its digest says: not so of cart {id}"));
        }
        Ok(ControlFlow::Continue(()))
    })
}

/// A release can be read.
fn releases(conn: &dyn Session, broken: &mut Vec<String>) -> Result<(), StoreError> {
    let mut named = 0;
    conn.stream("SELECT site || '/' || plugin, body FROM release", &mut |row| {
        let body: String = row.get(1)?;
        if let Err(error) = serde_json::from_str::<souk_commerce::site::Release>(&body) {
            let of: String = row.get(0)?;
            note(broken, &mut named, || format!("a release can be read: not so of one of {of}: {error}"));
        }
        Ok(ControlFlow::Continue(()))
    })
}
