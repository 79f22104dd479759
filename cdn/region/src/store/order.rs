//! Tables `orders` and `order_line`, and the transaction that makes an order, or holds what one needs.
//!
//! A price is computed outside the writer, because plugins may take milliseconds; [`place`] and [`reserve`] then prove
//! inside the writer that nothing it rests on has moved. Stock is only decided here. What happens to a reservation and to
//! an order afterwards is [`super::checkout`]'s.

use std::collections::BTreeMap;

use souk_commerce::id::{CartId, Digest, OrderId, SiteId, Sku};
use souk_commerce::order::{Order, OrderState};
use souk_commerce::payment::PaymentMethod;

use super::engine::{Session, params};
use super::goods::{self, GoodsVersions};
use super::vault::{Owner, Vault};
use super::{Decision, Store, StoreError, Tx, cart, checkout, escrow, event, release, shopper, site};
use crate::saga::machine::Event;

/// Longest list of orders in one answer.
pub(crate) const ORDERS_LISTED_MAX: usize = 1_000;
/// Largest order: a quote of 1,000 lines with eight adjustments each is about 2 MiB.
const ORDER_BYTES_MAX: usize = 8 << 20;

/// An order that is ready to be made if the world is still as it was when it was priced.
#[derive(Debug, Clone)]
pub(crate) struct Draft {
    pub(crate) order: Order,
    pub(crate) idempotency_key: String,
    pub(crate) request_hash: [u8; 32],
    pub(crate) basis: Basis,
}

/// A draft as it is written down: what of it is the shopper's is sealed.
pub(super) struct Sealed {
    pub(super) draft: Draft,
    pub(super) owner: Owner,
}

/// Everything that a computed price rests on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Basis {
    pub(crate) cart: Digest,
    pub(crate) site_version: u64,
    pub(crate) release_version: u64,
    /// Every product that was looked at, by the cart or by a plugin.
    pub(crate) goods: BTreeMap<Sku, GoodsVersions>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Place {
    Placed,
    /// Stock is held and the cart closed; the payment decides.
    Reserved,
    /// The same question had been answered: this is the same answer.
    Repeated(Standing),
    KeyReused,
    CartSealed(OrderId),
    /// Another checkout of this cart waits for its payment.
    UnderWay,
    /// Something that the price rests on has changed: compute it again.
    Moved,
    OutOfStock {
        sku: Sku,
        available: u64,
    },
}

/// What an idempotency key leads to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Known {
    Unused,
    Same(Standing),
    Other,
}

/// How a checkout stands.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Standing {
    Placed(Box<Order>),
    /// Stock is held; whether the payment is assured is not known yet.
    Pending(Box<Order>),
    /// It never became an order.
    Declined(Box<Order>, String),
}

impl Standing {
    /// The order, whatever has become of it.
    pub(crate) fn into_order(self) -> Order {
        match self {
            Self::Placed(order) | Self::Pending(order) | Self::Declined(order, _) => *order,
        }
    }
}

/// How a draft is to be paid.
#[derive(Debug, Clone)]
pub(crate) struct Payment {
    pub(crate) method: PaymentMethod,
    /// Take the money as soon as the order is placed.
    pub(crate) capture: bool,
}

/// One line of the list of orders.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct OrderListed {
    pub(crate) position: u64,
    pub(crate) order: OrderId,
    pub(crate) cart: CartId,
    pub(crate) state: String,
    pub(crate) currency: String,
    pub(crate) total: i64,
    pub(crate) placed_ms: u64,
}

/// An order as it was written, in the state that it has come to.
pub(super) fn decode(body: &[u8], state: OrderState) -> Result<Order, StoreError> {
    let order: Order = minicbor::decode(body).map_err(|e| StoreError::corrupt("orders", e))?;
    Ok(Order { state, ..order })
}

fn state(name: &str) -> Result<OrderState, StoreError> {
    OrderState::by_name(name)
        .ok_or_else(|| StoreError::corrupt("orders", format!("no state is called {name:?}")))
}

pub(super) fn encode(order: &Order) -> Result<Vec<u8>, StoreError> {
    let body = minicbor::to_vec(order).map_err(|e| StoreError::corrupt("orders", e))?;
    if body.len() > ORDER_BYTES_MAX {
        let detail = format!("{} bytes are more than an order may have", body.len());
        return Err(StoreError::corrupt("orders", detail));
    }
    Ok(body)
}

pub(super) fn find(conn: &dyn Session, id: OrderId) -> Result<Option<Order>, StoreError> {
    let found: Option<(Vec<u8>, String)> =
        conn.find("SELECT body, state FROM orders WHERE id = ?1", params![id.0], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?;
    found.map(|(body, name)| decode(&body, state(&name)?)).transpose()
}

pub(super) fn known(
    conn: &dyn Session,
    site: &SiteId,
    idempotency_key: &str,
    request_hash: &[u8; 32],
) -> Result<Known, StoreError> {
    let sql = "SELECT request_hash, body, state FROM orders WHERE site = ?1 AND idempotency_key = ?2";
    let found: Option<([u8; 32], Vec<u8>, String)> =
        conn.find(sql, params![site.as_str(), idempotency_key], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })?;
    match found {
        None => checkout::known(conn, site, idempotency_key, request_hash),
        Some((hash, ..)) if hash != *request_hash => Ok(Known::Other),
        Some((_, body, name)) => Ok(Known::Same(Standing::Placed(Box::new(decode(&body, state(&name)?)?)))),
    }
}

/// Whether anything under the price has moved since it was computed.
fn has_moved(
    tx: &Tx<'_>,
    site: &SiteId,
    cart_now: Option<Digest>,
    basis: &Basis,
) -> Result<bool, StoreError> {
    if cart_now != Some(basis.cart)
        || site::version(tx.sql, site)? != basis.site_version
        || release::version(tx.sql, site)? != basis.release_version
    {
        return Ok(true);
    }
    for (sku, seen) in &basis.goods {
        if goods::versions(tx.sql, site, sku)? != *seen {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Takes the units of a draft and closes its cart, or says what stands against it.
fn take(tx: &Tx<'_>, vault: &Vault, sealed: &Sealed) -> Result<Result<Uncounted, Place>, StoreError> {
    let Sealed { draft, owner } = sealed;
    let order = &draft.order;
    match known(tx.sql, &order.site, &draft.idempotency_key, &draft.request_hash)? {
        Known::Same(standing) => return Ok(Err(Place::Repeated(standing))),
        Known::Other => return Ok(Err(Place::KeyReused)),
        Known::Unused => {}
    }
    if shopper::is_leaving(tx.sql, vault, &order.site, *owner)? {
        return Ok(Err(Place::Moved));
    }
    let cart = cart::find(tx.sql, &order.site, order.cart)?;
    match &cart {
        Some(cart::CartRow { order: Some(sealed_by), .. }) => return Ok(Err(Place::CartSealed(*sealed_by))),
        Some(cart::CartRow { pending: Some(_), .. }) => return Ok(Err(Place::UnderWay)),
        _ => {}
    }
    if has_moved(tx, &order.site, cart.map(|cart| cart.digest), &draft.basis)? {
        return Ok(Err(Place::Moved));
    }
    let uncounted = match escrow::sell(tx, &order.site, order.cart, units(order))? {
        Ok(uncounted) => uncounted,
        Err((sku, available)) => return Ok(Err(Place::OutOfStock { sku, available })),
    };
    if !cart::seal(tx, &order.site, order.cart, order.id)? {
        return Err(StoreError::corrupt("cart", "the cart could not be sealed although it was open"));
    }
    Ok(Ok(Uncounted(uncounted)))
}

/// Products of an order of which no units were taken: none go back, should they be counted by then.
#[derive(Debug, Clone, Default)]
pub(super) struct Uncounted(pub(super) Vec<Sku>);

impl Uncounted {
    pub(super) fn stored(&self) -> Result<Option<String>, StoreError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        serde_json::to_string(&self.0).map(Some).map_err(|e| StoreError::corrupt("orders", e))
    }

    pub(super) fn read(stored: Option<String>) -> Result<Self, StoreError> {
        let Some(stored) = stored else { return Ok(Self::default()) };
        serde_json::from_str(&stored).map(Self).map_err(|e| StoreError::corrupt("orders", e))
    }
}

/// One product may stand on several lines (the shopper's and a plugin's): stock is taken once for all of them.
pub(super) fn units(order: &Order) -> BTreeMap<Sku, u64> {
    let mut units = BTreeMap::new();
    for line in &order.quote.lines {
        *units.entry(line.line.sku.clone()).or_default() += u64::from(line.quantity);
    }
    units
}

fn place(tx: &Tx<'_>, vault: &Vault, sealed: &Sealed) -> Result<Decision<Place>, StoreError> {
    let Sealed { draft, owner } = sealed;
    let uncounted = match take(tx, vault, sealed)? {
        Ok(uncounted) => uncounted,
        Err(obstacle) => return Ok(Decision::Undo(obstacle)),
    };
    insert(tx, &draft.order, *owner, &draft.idempotency_key, &draft.request_hash, &uncounted)?;
    event::tell(tx, &draft.order, Event::Placed, tx.now_ms)?;
    Ok(Decision::Keep(Place::Placed))
}

/// Takes the stock and closes the cart, and leaves the rest to the payment.
fn reserve(
    tx: &Tx<'_>,
    vault: &Vault,
    sealed: &Sealed,
    payment: &Payment,
    now_ms: u64,
) -> Result<Decision<Place>, StoreError> {
    match take(tx, vault, sealed)? {
        Ok(uncounted) => checkout::begin(tx, sealed, &uncounted, payment, now_ms)?,
        Err(obstacle) => return Ok(Decision::Undo(obstacle)),
    }
    Ok(Decision::Keep(Place::Reserved))
}

pub(super) fn insert(
    tx: &Tx<'_>,
    order: &Order,
    owner: Owner,
    idempotency_key: &str,
    request_hash: &[u8; 32],
    uncounted: &Uncounted,
) -> Result<(), StoreError> {
    let body = encode(order)?;
    let sql = "INSERT INTO orders (id, site, cart, idempotency_key, request_hash, state, currency, total, body, placed_ms, uncounted, subject, sealed)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13) RETURNING position";
    let position: u64 = tx.sql.one(
        sql,
        params![
            order.id.0,
            order.site.as_str(),
            order.cart.0,
            idempotency_key,
            request_hash,
            order.state.name(),
            order.quote.currency.code(),
            order.quote.total.0,
            body,
            order.placed_ms,
            uncounted.stored()?,
            owner.subject,
            owner.is_sealed
        ],
        |row| row.get(0),
    )?;
    let sql = "INSERT INTO order_line (position, line, sku, added_by, title, quantity, unit_price, total)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
    for (index, line) in order.quote.lines.iter().enumerate() {
        tx.sql.execute(
            sql,
            params![
                position,
                index,
                line.line.sku.as_str(),
                line.line.added_by.as_ref().map(|plugin| plugin.as_str()),
                line.title,
                line.quantity,
                line.unit_price.0,
                line.total.0
            ],
        )?;
    }
    Ok(())
}

impl Store {
    /// Makes the order, or says why not. Everything or nothing: order, lines, seal of the cart, stock, stock hints.
    pub(crate) async fn place(&self, draft: Draft) -> Result<Place, StoreError> {
        let sealed = self.seal_draft(draft).await?;
        self.place_sealed(sealed).await
    }

    pub(super) async fn place_sealed(&self, sealed: Sealed) -> Result<Place, StoreError> {
        let vault = self.vault.clone();
        let place = self.write(move |tx| place(tx, &vault, &sealed)).await?;
        self.open_place(place).await
    }

    /// The same for one that a provider is to assure: the order is placed when it has.
    pub(crate) async fn reserve(
        &self,
        draft: Draft,
        payment: Payment,
        now_ms: u64,
    ) -> Result<Place, StoreError> {
        let sealed = self.seal_draft(draft).await?;
        self.reserve_sealed(sealed, payment, now_ms).await
    }

    pub(super) async fn reserve_sealed(
        &self,
        sealed: Sealed,
        payment: Payment,
        now_ms: u64,
    ) -> Result<Place, StoreError> {
        let vault = self.vault.clone();
        let place = self.write(move |tx| reserve(tx, &vault, &sealed, &payment, now_ms)).await?;
        self.open_place(place).await
    }

    /// Also one that waits for its payment, or was refused it.
    pub(crate) async fn order(&self, id: OrderId) -> Result<Option<Order>, StoreError> {
        let vault = self.vault.clone();
        self.read(move |conn| {
            let order = match find(conn, id)? {
                Some(order) => Some(order),
                None => checkout::standing(conn, id)?.map(Standing::into_order),
            };
            order.map(|order| shopper::open(&vault, order)).transpose()
        })
        .await
    }

    /// Orders of a site in the order in which they were placed, after position `after`.
    pub(crate) async fn orders(
        &self,
        site: SiteId,
        after: u64,
        limit: usize,
    ) -> Result<Vec<OrderListed>, StoreError> {
        self.read(move |conn| {
            let sql = "SELECT position, id, cart, state, currency, total, placed_ms FROM orders
                       WHERE site = ?1 AND position > ?2 ORDER BY position LIMIT ?3";
            conn.list(sql, params![site.as_str(), after, limit.min(ORDERS_LISTED_MAX)], |row| {
                Ok(OrderListed {
                    position: row.get(0)?,
                    order: OrderId(row.get(1)?),
                    cart: CartId(row.get(2)?),
                    state: row.get(3)?,
                    currency: row.get(4)?,
                    total: row.get(5)?,
                    placed_ms: row.get(6)?,
                })
            })
        })
        .await
    }
}
