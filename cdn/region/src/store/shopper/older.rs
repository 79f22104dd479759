//! Orders of a version that sealed nothing: sealed in the background, a few at a time.

use souk_commerce::id::{OrderId, SiteId};
use souk_commerce::order::Order;

use super::super::engine::{Session, params};
use super::super::vault::{SubjectId, Vault};
use super::super::{Decision, Store, StoreError, Tx, order};
use super::seal;

/// Rows of one step: each shopper's key is a flush of the keyring, so a step is a second at worst.
const STEP_MAX: usize = 200;

/// A row of `orders` or `checkout`.
struct Old {
    table: &'static str,
    id: OrderId,
    site: SiteId,
    /// None: of a checkout that has become an order, which has it.
    body: Option<Vec<u8>>,
    request_hash: [u8; 32],
}

/// What it becomes.
struct New {
    table: &'static str,
    id: OrderId,
    body: Option<Vec<u8>>,
    was: Option<Vec<u8>>,
    subject: Option<SubjectId>,
    request_hash: [u8; 32],
}

fn renew(vault: &Vault, old: Old) -> Result<New, StoreError> {
    let Old { table, id, body: was, mut request_hash, .. } = old;
    let (mut body, mut subject) = (None, None);
    if let Some(was) = &was {
        let order: Order = minicbor::decode(was).map_err(|e| StoreError::corrupt(table, e))?;
        let key = order.customer.as_deref().map(|customer| vault.subject(&old.site, customer)).transpose()?;
        if let Some(key) = &key {
            request_hash = key.question(&request_hash);
        }
        body = Some(order::encode(&seal(vault, order, key.as_ref())?)?);
        subject = key.map(|key| key.id);
    }
    Ok(New { table, id, body, was, subject, request_hash })
}

/// Unless somebody has changed the row meanwhile: then it is for the next step.
fn write(tx: &Tx<'_>, new: &New) -> Result<(), StoreError> {
    let New { table, id, body, was, subject, request_hash } = new;
    match *table {
        "orders" => {
            let sql = "UPDATE orders SET body = ?2, subject = ?3, request_hash = ?4, sealed = 1
                       WHERE id = ?1 AND sealed = 0 AND body = ?5";
            if tx.sql.execute(sql, params![id.0, body, subject, request_hash, was])? == 1 {
                // Its money's row says the same of whose it is.
                let sql = "UPDATE checkout SET subject = ?2, request_hash = ?3, sealed = 1
                           WHERE order_id = ?1 AND sealed = 0 AND body IS NULL";
                tx.sql.execute(sql, params![id.0, subject, request_hash])?;
            }
        }
        _ if body.is_some() => {
            let sql = "UPDATE checkout SET body = ?2, subject = ?3, request_hash = ?4, sealed = 1
                       WHERE order_id = ?1 AND sealed = 0 AND body = ?5";
            tx.sql.execute(sql, params![id.0, body, subject, request_hash, was])?;
        }
        // Its order was sealed before it, or has no shopper with a number.
        _ => {
            let sql = "UPDATE checkout SET sealed = 1, subject = (SELECT subject FROM orders WHERE id = ?1)
                       WHERE order_id = ?1 AND sealed = 0 AND body IS NULL
                       AND NOT EXISTS (SELECT 1 FROM orders WHERE id = ?1 AND sealed = 0)";
            tx.sql.execute(sql, params![id.0])?;
        }
    }
    Ok(())
}

/// Whether all that there is can be found by whose it is. Until then a wish to erase or export is asked to come again.
pub(super) fn check_all_sealed(conn: &dyn Session) -> Result<(), StoreError> {
    let sql =
        "SELECT 1 FROM orders WHERE sealed = 0 UNION ALL SELECT 1 FROM checkout WHERE sealed = 0 LIMIT 1";
    if conn.exists(sql, &[])? { Err(StoreError::Busy) } else { Ok(()) }
}

impl Store {
    /// Seals some of what an older version has left open; answers how many rows it looked at. Whole when it answers 0.
    pub(crate) async fn seal_older(&self) -> Result<usize, StoreError> {
        let vault = self.vault.clone();
        let renewed = self
            .read(move |conn| {
                let select = |table: &'static str, sql: &str| {
                    conn.list::<Old, Vec<Old>>(sql, params![STEP_MAX], |row| {
                        let site: String = row.get(1)?;
                        let site = site.parse().map_err(|e| StoreError::corrupt(table, e))?;
                        let id = OrderId(row.get(0)?);
                        Ok(Old { table, id, site, body: row.get(2)?, request_hash: row.get(3)? })
                    })
                };
                let mut old = select(
                    "orders",
                    "SELECT id, site, body, request_hash FROM orders WHERE sealed = 0 ORDER BY position LIMIT ?1",
                )?;
                if old.is_empty() {
                    old = select(
                        "checkout",
                        "SELECT order_id, site, body, request_hash FROM checkout WHERE sealed = 0
                         ORDER BY created_ms LIMIT ?1",
                    )?;
                }
                old.into_iter().map(|old| renew(&vault, old)).collect::<Result<Vec<New>, _>>()
            })
            .await?;
        let count = renewed.len();
        if count > 0 {
            self.write(move |tx| {
                renewed.iter().try_for_each(|new| write(tx, new))?;
                Ok(Decision::Keep(()))
            })
            .await?;
        }
        Ok(count)
    }
}
