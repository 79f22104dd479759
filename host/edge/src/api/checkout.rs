//! `POST /api/checkouts` and `GET /api/orders/{id}`: what only the region can decide.
//!
//! The node states the total that the shopper saw and where its own last write of the cart is; the region prices
//! again with the same plugins and takes the stock. The cart's lock is held over the question, so that no change of
//! this node can slip between the order and the seal.

use http::header::{LOCATION, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use souk_commerce::call::{self, CheckoutRequest};
use souk_commerce::id::{CartId, OrderId};
use souk_commerce::money::Minor;
use souk_commerce::payment::PaymentMethod;

use super::Ask;
use super::carts::{Found, sealed};
use crate::http::{Body, RequestBody, json, read_json};
use crate::rescue::{Problem, Refusal};
use crate::shopper;
use crate::state::{CartGuard, CartKey, Held};
use crate::uplink::AskError;

/// Longest idempotency key: two UUIDs with room to spare.
const KEY_BYTES_MAX: usize = 128;
/// When a shopper whose payment is not known yet may ask again. Most are known within seconds.
const PENDING_RETRY_S: u32 = 2;
/// A total that no cart has: the region looks the key up, and can place no order that is not there yet.
const NO_TOTAL: Minor = Minor(-1);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewCheckout {
    cart: String,
    /// The total that the shopper saw; without it, the total that this node would quote now.
    total: Option<Minor>,
    /// What the shop's payment provider has given to pay with.
    payment: Option<String>,
}

impl Ask<'_> {
    /// Not cancel safe half-way: [`crate::serve`] runs it in a task of its own.
    pub async fn check_out(&mut self, body: RequestBody) -> Result<Response<Body>, Problem> {
        let idempotency_key = self.idempotency_key()?;
        let bytes_max = usize::try_from(self.node.limits.request_body_bytes_max).unwrap_or(usize::MAX);
        let wish: NewCheckout = read_json(&self.exchange.head.headers, body, bytes_max).await?;
        let cart: CartId =
            wish.cart.parse().map_err(|e| Problem::new(Refusal::BadId, format!("cart: {e}")))?;
        // What was wrong with it is not repeated: it may be a card's number.
        let payment: Option<PaymentMethod> = wish.payment.as_deref().map(str::parse).transpose().map_err(
            |e: souk_commerce::id::InvalidName| Problem::new(Refusal::BadPayment, format!("use {}", e.rule)),
        )?;
        let guard = self.lock(CartKey { site: self.site.id.clone(), cart }).await?;
        let (guard, Found { held, stale, in_doubt, .. }) = self.find_locked(guard).await?.for_change()?;
        if stale || in_doubt {
            // Once the fetches have succeeded, the region has every place that the shopper has seen. Until then an
            // order could leave out a line that was answered for.
            let refusal = match self.node.uplink.status().connected {
                true => Refusal::RegionBusy,
                false if in_doubt => Refusal::RegionUnreachable,
                false => Refusal::CartElsewhere,
            };
            return Err(Problem::new(
                refusal,
                "the cart may have been changed or ordered elsewhere, and the region cannot say yet; \
                 try again with the same key",
            )
            .retry_after(2));
        }
        // What is refused here may have been ordered before, and then the answer to the same key is the order.
        let priced = match (wish.total, held.order) {
            (Some(total), _) => Ok(total),
            (None, Some(_)) => Ok(NO_TOTAL),
            (None, None) => self.price_whole(cart, &held).await,
        };
        let (quoted_total, refused) = match priced {
            Ok(total) => (total, None),
            Err(problem) => (NO_TOTAL, Some(problem)),
        };
        let request = CheckoutRequest {
            site: self.site.id.clone(),
            cart,
            after: held.last.map(|at| (at.epoch, at.seq)),
            request_hash: self.request_hash(cart, wish.total, payment.as_ref()),
            idempotency_key,
            country: held.cart.country().cloned(),
            language: self.shopper.language.clone(),
            customer: self.shopper.customer.clone(),
            segments: self.shopper.segments.clone(),
            quoted_total,
            now_ms: self.exchange.now_ms,
            payment,
        };
        let request = call::Request::Checkout(request);
        let answer = match self.exchange.timed("region", self.node.uplink.ask(&request)).await {
            Ok(answer) => answer,
            // The key has not been looked up, so even what is refused here may be an order already.
            Err(AskError::Away) => return Err(AskError::Away.into()),
            Err(error) => return Ok(self.leave_open(error, guard, Held::clone(&held)).await),
        };
        match refused {
            Some(problem) if finds_no_order(&answer) => Err(problem),
            _ => self.settle(answer, guard, Held::clone(&held)).await,
        }
    }

    /// The region may have placed the order. Until it has said so or denied it, the cart takes no change: this node
    /// keeps that in mind, and so does the shopper's browser, for other nodes.
    ///
    /// A node that is killed between the question and this note forgets the doubt; the region then refuses what it is
    /// sent about a sealed cart, and the shopper learns it at his next checkout.
    async fn leave_open(&self, error: AskError, guard: CartGuard, held: Held) -> Response<Body> {
        tracing::warn!(%error, "it is not known whether a checkout has placed its order");
        self.in_doubt(Problem::from(error).into_response(), guard, held).await
    }

    async fn in_doubt(
        &self,
        mut response: Response<Body>,
        guard: CartGuard,
        mut held: Held,
    ) -> Response<Body> {
        let cart = guard.key().cart;
        // The checkout has taken them, or may have; what the region holds all the same counts when it is asked again.
        held.holds.clear();
        let (headers, secure) = (response.headers_mut(), self.exchange.peer.tls);
        if held.order.is_some() {
            shopper::order_cookies(headers, secure, cart);
            return response;
        }
        shopper::unresolved_cookies(headers, secure, cart);
        held.unresolved_ms = Some(self.exchange.now_ms);
        if let Err(error) = self.node.state.store(guard, held).await {
            tracing::warn!(%error, "a checkout without an answer could not be noted here");
        }
        response
    }

    async fn price_whole(&mut self, cart: CartId, held: &Held) -> Result<Minor, Problem> {
        if held.cart.lines().is_empty() {
            return Err(Problem::new(Refusal::CartEmpty, "add a line first"));
        }
        let quote = self.price(cart, held).await?;
        if quote.unavailable.is_empty() {
            return Ok(quote.total);
        }
        let gone: Vec<_> = quote.unavailable.iter().map(|line| line.to_string()).collect();
        let why = format!("take out {}", gone.join(", "));
        Err(Problem::new(Refusal::Unavailable, why).with("lines", gone))
    }

    /// What the region has answered to a checkout.
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
            // The region has it, and the payment's outcome is not known yet. The cart stays closed until it is.
            call::Response::Pending(order) => {
                let mut response = json(StatusCode::ACCEPTED, &order)?;
                let headers = response.headers_mut();
                if let Ok(location) = HeaderValue::from_str(&format!("/api/orders/{}", order.id)) {
                    headers.insert(LOCATION, location);
                }
                headers.insert(RETRY_AFTER, PENDING_RETRY_S.into());
                Ok(self.in_doubt(response, guard, held).await)
            }
            call::Response::Declined { code } => {
                self.forget_holds(guard, held).await;
                Err(Problem::new(
                    Refusal::PaymentDeclined,
                    "nothing was charged and nothing was ordered; ask again with a new key and another payment",
                )
                .with("reason", code))
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
            // The order may stand, and the region's standby does not have it yet. The cart stays closed until both do.
            call::Response::Failed { code, .. } if code == "standby_away" => {
                let problem = Problem::new(
                    Refusal::StandbyAway,
                    "the order may stand, and is not safe yet; ask again with the same key",
                )
                .retry_after(2);
                Ok(self.in_doubt(problem.into_response(), guard, held).await)
            }
            call::Response::Failed { code, message } => {
                Err(Problem::new(Refusal::RegionFailed, message).with("reason", code))
            }
            other @ (call::Response::Cart { .. }
            | call::Response::Blob(_)
            | call::Response::Noted
            | call::Response::Reserved(_)
            | call::Response::Stock { .. }
            | call::Response::NotOffered
            | call::Response::Digests(_)) => {
                Err(AskError::Failed(format!("an answer about something else: {other:?}")).into())
            }
        }
    }

    /// What the cart was promised went into the checkout, and is free for everybody now that there is no order.
    async fn forget_holds(&self, guard: CartGuard, mut held: Held) {
        if held.holds.is_empty() {
            return;
        }
        held.holds.clear();
        if let Err(error) = self.node.state.store(guard, held).await {
            tracing::warn!(%error, "a cart whose checkout was declined still shows what it was promised");
        }
    }

    /// The order stands whether or not this node can note it: the region refuses what comes later.
    async fn seal(&self, guard: CartGuard, mut held: Held, order: OrderId) {
        held.unresolved_ms = None;
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
        let missing = || Problem::new(Refusal::IdempotencyKeyMissing, rule.clone());
        let refuse = || Problem::new(Refusal::BadIdempotencyKey, rule.clone());
        let text = values.next().ok_or_else(missing)?.to_str().map_err(|_| refuse())?.trim();
        let valid = (1..=KEY_BYTES_MAX).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_graphic() || b == b' ')
            && values.next().is_none();
        if valid { Ok(text.to_owned()) } else { Err(refuse()) }
    }

    /// What was asked, in one number. Not what is in the cart: a shopper who asks again after a lost answer must get
    /// that answer, whatever has happened to the cart since.
    fn request_hash(&self, cart: CartId, total: Option<Minor>, payment: Option<&PaymentMethod>) -> [u8; 32] {
        let customer = self.shopper.customer.as_deref();
        let mut hash = Sha256::new();
        hash.update(b"souk checkout 1\0");
        hash.update(cart.0);
        hash.update(total.map_or(-1, |t| t.0).to_be_bytes());
        hash.update([u8::from(customer.is_some())]);
        hash.update(customer.unwrap_or_default());
        // Only where there is one: without it, the question is the same as before there were payments.
        if let Some(payment) = payment {
            hash.update(b"\0payment\0");
            hash.update(payment.reveal());
        }
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

/// Whether the region has looked the key and the cart up, found no order, and made none.
fn finds_no_order(answer: &call::Response) -> bool {
    matches!(
        answer,
        call::Response::PriceChanged(_)
            | call::Response::OutOfStock { .. }
            | call::Response::Refused { .. }
            | call::Response::CartEmpty
            | call::Response::NotFound
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_of_this_node_yields_to_whatever_may_be_an_order() {
        let refused = call::Response::Refused { code: "c".to_owned(), message: "m".to_owned() };
        let failed = call::Response::Failed { code: "c".to_owned(), message: "m".to_owned() };
        for answer in [refused, call::Response::CartEmpty, call::Response::NotFound] {
            assert!(finds_no_order(&answer), "{answer:?}");
        }
        let sealed = call::Response::CartSealed { order: OrderId([1; 16]) };
        let declined = call::Response::Declined { code: "c".to_owned() };
        for answer in [
            sealed,
            call::Response::KeyReused,
            call::Response::NotYet { retry_after_ms: 1 },
            failed,
            declined,
        ] {
            assert!(!finds_no_order(&answer), "{answer:?}");
        }
    }
}
