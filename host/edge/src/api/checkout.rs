//! `POST /api/checkouts` and `GET /api/orders/{id}`: what only the region can decide.
//!
//! The node states the total that the shopper saw and where its own last write of the cart is; the region prices
//! again with the same plugins and takes the stock. The cart's lock is held over the question, so that no change of
//! this node can slip between the order and the seal.

use http::header::LOCATION;
use http::{HeaderValue, Response, StatusCode};
use hyper::body::Incoming;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use souk_commerce::call::{self, CheckoutRequest};
use souk_commerce::id::{CartId, OrderId};
use souk_commerce::money::Minor;

use super::Ask;
use super::carts::{Found, sealed};
use crate::http::{Body, json, read_json};
use crate::rescue::{Problem, Refusal};
use crate::shopper;
use crate::state::{CartGuard, CartKey, Held};
use crate::uplink::AskError;

/// Longest idempotency key: two UUIDs with room to spare.
const KEY_BYTES_MAX: usize = 128;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewCheckout {
    cart: String,
    /// The total that the shopper saw; without it, the total that this node would quote now.
    total: Option<Minor>,
}

impl Ask<'_> {
    /// Not cancel safe half-way: [`crate::serve`] runs it in a task of its own.
    pub async fn check_out(&mut self, body: Incoming) -> Result<Response<Body>, Problem> {
        let idempotency_key = self.idempotency_key()?;
        let bytes_max = usize::try_from(self.node.limits.request_body_bytes_max).unwrap_or(usize::MAX);
        let wish: NewCheckout = read_json(&self.exchange.head.headers, body, bytes_max).await?;
        let cart: CartId = wish.cart.parse().map_err(|e| Problem::new(Refusal::BadId, format!("{e}")))?;
        let guard = self.lock(CartKey { site: self.site.id.clone(), cart }).await?;
        let (guard, Found { held, .. }) = self.find_locked(guard).await?.for_change()?;
        let quoted_total = match (wish.total, held.order) {
            (Some(total), _) => total,
            // Ordered already: the region knows the key or says so, and looks at no total.
            (None, Some(_)) => Minor::ZERO,
            (None, None) => self.price_whole(cart, &held)?,
        };
        let request = CheckoutRequest {
            site: self.site.id.clone(),
            cart,
            after: held.last.map(|at| (at.epoch, at.seq)),
            request_hash: self.request_hash(cart, wish.total),
            idempotency_key,
            country: held.cart.country().cloned(),
            language: self.shopper.language.clone(),
            customer: self.shopper.customer.clone(),
            segments: self.shopper.segments.clone(),
            quoted_total,
            now_ms: self.exchange.now_ms,
        };
        let request = call::Request::Checkout(request);
        let answer = self.exchange.timed("region", self.node.uplink.ask(&request)).await?;
        self.settle(answer, guard, Held::clone(&held)).await
    }

    fn price_whole(&mut self, cart: CartId, held: &Held) -> Result<Minor, Problem> {
        if held.cart.lines().is_empty() {
            return Err(Problem::new(Refusal::CartEmpty, "add a line first"));
        }
        let quote = self.price(cart, held)?;
        if quote.unavailable.is_empty() {
            return Ok(quote.total);
        }
        let gone: Vec<_> = quote.unavailable.iter().map(|line| line.to_string()).collect();
        let why = format!("take out {}", gone.join(", "));
        Err(Problem::new(Refusal::Unavailable, why).with("lines", gone))
    }

    async fn settle(
        &mut self,
        answer: call::Response,
        guard: CartGuard,
        held: Held,
    ) -> Result<Response<Body>, Problem> {
        match answer {
            call::Response::Placed(order) => {
                self.seal(guard, held, order.id).await;
                let mut response = json(StatusCode::CREATED, &order)?;
                if let Ok(location) = HeaderValue::from_str(&format!("/api/orders/{}", order.id)) {
                    response.headers_mut().insert(LOCATION, location);
                }
                shopper::order_cookies(response.headers_mut(), self.exchange.peer.tls, order.cart);
                Ok(response)
            }
            call::Response::PriceChanged(quote) => {
                let quote = serde_json::to_value(&quote).map_err(Problem::internal)?;
                Err(Problem::new(
                    Refusal::PriceChanged,
                    "show the shopper the new total and ask again, with a new key",
                )
                .with("quote", quote))
            }
            call::Response::OutOfStock { sku, available } => {
                let why = format!("{available} of {sku} are left");
                Err(Problem::new(Refusal::OutOfStock, why)
                    .with("sku", sku.as_str())
                    .with("available", available))
            }
            call::Response::Refused { code, message } => {
                Err(Problem::new(Refusal::PluginRefused, message).with("reason", code))
            }
            call::Response::KeyReused => Err(Problem::new(
                Refusal::KeyReused,
                "the key belongs to a checkout of something else: take a new one",
            )),
            call::Response::CartEmpty => Err(Problem::new(Refusal::CartEmpty, "add a line first")),
            call::Response::CartSealed { order } => {
                self.seal(guard, held, order).await;
                Err(sealed(order))
            }
            call::Response::NotFound => {
                Err(Problem::new(Refusal::CartEmpty, "the cart has never had a line"))
            }
            call::Response::NotYet { retry_after_ms } => {
                let seconds = u32::try_from(retry_after_ms.div_ceil(1_000)).unwrap_or(u32::MAX).max(1);
                Err(Problem::new(
                    Refusal::RegionBusy,
                    "the region has not received the last change of the cart yet; \
                     try again with the same key",
                )
                .retry_after(seconds))
            }
            call::Response::Failed { code, message } => {
                Err(Problem::new(Refusal::RegionFailed, message).with("reason", code))
            }
            other @ (call::Response::Cart { .. } | call::Response::Blob(_)) => {
                Err(AskError::Failed(format!("an answer about something else: {other:?}")).into())
            }
        }
    }

    /// The order stands whether or not this node can note it: the region refuses what comes later.
    async fn seal(&self, guard: CartGuard, held: Held, order: OrderId) {
        if held.order.is_none()
            && let Err(error) = self.node.state.seal(guard, held, order).await
        {
            tracing::warn!(%error, ?order, "a cart was ordered, and its seal could not be kept here");
        }
    }

    fn idempotency_key(&self) -> Result<String, Problem> {
        let mut values = self.exchange.head.headers.get_all("idempotency-key").iter();
        let rule = format!(
            "send a header Idempotency-Key of 1 to {KEY_BYTES_MAX} printable characters, new for each order"
        );
        let refuse = || Problem::new(Refusal::IdempotencyKeyMissing, rule.clone());
        let text = values.next().ok_or_else(refuse)?.to_str().map_err(|_| refuse())?.trim();
        let valid = (1..=KEY_BYTES_MAX).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_graphic() || b == b' ')
            && values.next().is_none();
        if valid { Ok(text.to_owned()) } else { Err(refuse()) }
    }

    /// What was asked, in one number. Not what is in the cart: a shopper who asks again after a lost answer must get
    /// that answer, whatever has happened to the cart since.
    fn request_hash(&self, cart: CartId, total: Option<Minor>) -> [u8; 32] {
        let customer = self.shopper.customer.as_deref();
        let mut hash = Sha256::new();
        hash.update(b"souk checkout 1\0");
        hash.update(cart.0);
        hash.update(total.map_or(-1, |t| t.0).to_be_bytes());
        hash.update([u8::from(customer.is_some())]);
        hash.update(customer.unwrap_or_default());
        hash.finalize().into()
    }

    pub async fn show_order(&mut self, order: OrderId) -> Result<Response<Body>, Problem> {
        let request = call::Request::Order { site: self.site.id.clone(), order };
        match self.exchange.timed("region", self.node.uplink.ask(&request)).await? {
            call::Response::Placed(order) => json(StatusCode::OK, &order),
            call::Response::NotFound => {
                Err(Problem::new(Refusal::UnknownOrder, "no order of this shop has this number"))
            }
            call::Response::NotYet { .. } => Err(Problem::new(Refusal::RegionBusy, "try again")),
            call::Response::Failed { code, message } => {
                Err(Problem::new(Refusal::RegionFailed, message).with("reason", code))
            }
            other => Err(AskError::Failed(format!("an answer about something else: {other:?}")).into()),
        }
    }
}
