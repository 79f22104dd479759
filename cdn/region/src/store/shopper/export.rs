//! Everything that the region keeps of a shopper, for the shopper, a page at a time.

use serde::Serialize;
use souk_commerce::cart::LineKey;
use souk_commerce::id::{CartId, Country, Coupon, OrderId, SiteId};

use super::super::audit::{self, Actor, Deed};
use super::super::checkout::{self, Detail};
use super::super::engine::params;
use super::super::vault::SubjectId;
use super::super::{Decision, Store, StoreError, cart};
use super::older::check_all_sealed;
use super::open_detail;

/// Orders of one page: of the greatest there are, 80 MB; of everyday ones 40 KB.
const PAGE_MAX: usize = 10;

/// One record of an export.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Exported {
    /// An order, or a checkout that waits or was declined, with its money.
    Order {
        order: Box<Detail>,
        #[serde(skip_serializing_if = "Option::is_none")]
        cart: Option<Cart>,
    },
}

/// What is left in the cart of an order.
#[derive(Debug, Serialize)]
pub(crate) struct Cart {
    cart: CartId,
    country: Option<Country>,
    lines: Vec<Line>,
    coupons: Vec<Coupon>,
}

#[derive(Debug, Serialize)]
struct Line {
    line: LineKey,
    quantity: u32,
}

/// Where an export goes on.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) enum After {
    #[default]
    Begin,
    /// This position of `orders`.
    Order(u64),
    /// This row of `checkout`.
    Checkout(u64, OrderId),
}

impl Store {
    /// Whose export it is, and that somebody asked for it. None: nothing is kept of this shopper.
    pub(crate) async fn begin_export(
        &self,
        site: SiteId,
        customer: String,
        actor: Actor,
    ) -> Result<Option<SubjectId>, StoreError> {
        self.read(|conn| check_all_sealed(conn)).await?;
        let of = site.clone();
        let asked = move |vault: &super::Vault| {
            Ok((vault.find(&of, &customer)?.map(|subject| subject.id), vault.trace(&of, &customer)?))
        };
        let (subject, named) = self.with_vault(asked).await?;
        if subject.is_some() {
            self.write(move |tx| {
                let detail = serde_json::json!({ "named": hex::encode(named) });
                let deed = Deed { action: "shopper.exported", subject: site.to_string(), detail };
                audit::record(tx, &actor, &deed).map(Decision::Keep)
            })
            .await?;
        }
        Ok(subject)
    }

    /// The next records of an export, and where to go on; none: that was all.
    pub(crate) async fn export(
        &self,
        site: SiteId,
        subject: SubjectId,
        after: After,
    ) -> Result<(Vec<Exported>, Option<After>), StoreError> {
        let vault = self.vault.clone();
        self.read(move |conn| {
            let orders = |position: u64| {
                let sql = "SELECT id, position FROM orders WHERE subject = ?1 AND position > ?2 ORDER BY position LIMIT ?3";
                conn.list::<_, Vec<_>>(sql, params![subject, position, PAGE_MAX], |row| {
                    Ok((OrderId(row.get(0)?), After::Order(row.get(1)?)))
                })
            };
            let checkouts = |created_ms: u64, id: OrderId| {
                let sql = "SELECT order_id, created_ms FROM checkout WHERE subject = ?1 AND body IS NOT NULL
                           AND (created_ms, order_id) > (?2, ?3) ORDER BY created_ms, order_id LIMIT ?4";
                conn.list::<_, Vec<_>>(sql, params![subject, created_ms, id.0, PAGE_MAX], |row| {
                    let id = OrderId(row.get(0)?);
                    Ok((id, After::Checkout(row.get(1)?, id)))
                })
            };
            let found = match after {
                After::Begin => orders(0)?,
                After::Order(position) => orders(position)?,
                After::Checkout(created_ms, id) => checkouts(created_ms, id)?,
            };
            let found = if found.is_empty() && !matches!(after, After::Checkout(..)) {
                checkouts(0, OrderId([0; 16]))?
            } else {
                found
            };
            let next = found.last().map(|(_, after)| *after);
            let mut records = Vec::with_capacity(found.len());
            for (id, _) in found {
                let Some(detail) = checkout::detail(conn, id)? else { continue };
                let cart = cart_of(conn, &site, detail.order.cart)?;
                records.push(Exported::Order { order: Box::new(open_detail(&vault, detail)?), cart });
            }
            Ok((records, next))
        })
        .await
    }
}

fn cart_of(
    conn: &dyn super::super::engine::Session,
    site: &SiteId,
    id: CartId,
) -> Result<Option<Cart>, StoreError> {
    let Some(row) = cart::find(conn, site, id)?.filter(|row| !row.is_erased) else { return Ok(None) };
    let cart = cart::decode(&row.state)?;
    let lines = cart.lines().into_iter().map(|(line, quantity)| Line { line, quantity }).collect();
    Ok(Some(Cart { cart: id, country: cart.country().cloned(), lines, coupons: cart.coupons() }))
}
