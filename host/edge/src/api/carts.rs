//! Carts: finding one wherever it was last changed, and the way of a change.
//!
//! A change is: the cart's lock, the shop's limits, the cart hooks, one operation, one durable commit, **then** the
//! answer. A cart that this node does not hold, or that the shopper's cookie says was changed elsewhere since, is
//! fetched through the region first; if the region is away, what is here is used: merging later loses nothing. Except
//! for a cart that may have been ordered: it changes only after the region has denied that.

mod plan;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Response, StatusCode};
use serde::{Deserialize, Serialize};
use souk_commerce::call;
use souk_commerce::cart::{Cart, CartFull, Edit, Entry, LineKey};
use souk_commerce::id::{CartId, Country, Coupon, OrderId, PluginName, Sku};
use souk_commerce::site::Hook;
use souk_commerce::slips;
use souk_sandbox::{Call, CartOp, Chain, Requested};

use self::plan::Plan;
use super::Ask;
use crate::http::{Body, RequestBody, empty, json, read_json};
use crate::rescue::{Problem, Refusal};
use crate::shopper;
use crate::state::{CartGuard, CartKey, CommitError, Held, Position, Seen};
use crate::uplink::AskError;

/// How long a change waits for another change of the same cart (or for its checkout).
const LOCK_WAIT_MAX: Duration = Duration::from_secs(8);
/// How long a fetch waits for its turn. A cart's lock is held meanwhile, and a stale answer beats a late one.
const FETCH_TURN_MAX: Duration = Duration::from_millis(250);
/// After so long no checkout is under way at the region any more: what it then says of the cart is final.
const CHECKOUT_SETTLES_MS: u64 = 60_000;
/// Says that newer writes from another node may be missing from the answer.
const STALE: &str = "x-souk-stale";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewCart {
    country: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewLine {
    sku: String,
    quantity: serde_json::Number,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewQuantity {
    quantity: serde_json::Number,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewCountry {
    country: String,
}

#[derive(Serialize)]
struct LineView {
    line: LineKey,
    sku: Sku,
    /// Null for a product that is no longer sold.
    title: Option<String>,
    quantity: u32,
    added_by: Option<PluginName>,
}

/// A wish that the shop's plugins allowed in part. Nobody has to compare what was asked for with what is there.
#[derive(Debug, Serialize)]
struct Limited {
    line: LineKey,
    /// What the line would have come to.
    wanted: u32,
    quantity: u32,
    plugin: PluginName,
}

#[derive(Serialize)]
struct CartView<'a> {
    cart: CartId,
    country: Option<&'a Country>,
    lines: Vec<LineView>,
    coupons: Vec<Coupon>,
    #[serde(skip_serializing_if = "Option::is_none")]
    order: Option<OrderId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limited: Option<Limited>,
}

/// A change that a shopper wants.
#[derive(Debug, Clone)]
pub enum Wish {
    Add { sku: Sku, quantity: u32 },
    Set { line: LineKey, quantity: u32 },
    Remove { line: LineKey },
    PutCoupon(Coupon),
    RemoveCoupon(Coupon),
    Country(Country),
    Empty,
}

/// A cart that was found, and whether newer writes may be missing from it.
pub(crate) struct Found {
    pub(crate) held: Arc<Held>,
    pub(crate) stale: bool,
    /// It may have been ordered, and the region could not be asked.
    pub(crate) in_doubt: bool,
    /// The region holds it for a checkout whose payment is not known yet.
    pub(crate) pending: Option<OrderId>,
}

/// A cart that was found by whoever holds its lock.
pub(super) struct Locked {
    /// Gone if what was fetched could not be kept: without it the cart can be shown, not changed.
    guard: Result<CartGuard, CommitError>,
    found: Found,
}

impl Locked {
    fn of(guard: CartGuard, found: Found) -> Self {
        Self { guard: Ok(guard), found }
    }

    pub(super) fn for_change(self) -> Result<(CartGuard, Found), Problem> {
        Ok((self.guard?, self.found))
    }
}

impl Ask<'_> {
    fn key(&self, cart: CartId) -> CartKey {
        CartKey { site: self.site.id.clone(), cart }
    }

    pub async fn create_cart(&mut self, body: RequestBody) -> Result<Response<Body>, Problem> {
        let NewCart { country } = self.body(body).await?;
        let country = country.as_deref().map(parse_country).transpose()?;
        let key = self.key(CartId(rand::random()));
        let guard = self.node.state.lock(key.clone()).await;
        let now_ms = self.exchange.now_ms;
        // A cart without a country has no operation yet: it begins to exist with its first line.
        let edit = |edit: &mut Edit<'_>| {
            if let Some(country) = &country {
                edit.country(country.clone());
            }
            Ok::<_, Problem>(())
        };
        self.node.state.check_writable()?;
        let changed = self.node.state.change(guard, Held::default(), now_ms, edit);
        let (guard, mut held) = self.exchange.timed("commit", changed).await?;
        if held.last.is_none() {
            let empty = Held { touched_ms: Some(now_ms), ..Held::clone(&held) };
            held = self.node.state.store(guard, empty).await?.1;
        }
        let mut response = self.show(StatusCode::CREATED, key.cart, &held, None)?;
        if let Ok(location) = HeaderValue::from_str(&format!("/api/carts/{}", key.cart)) {
            response.headers_mut().insert(http::header::LOCATION, location);
        }
        self.remember(&mut response, key.cart, &held, held.last.is_some());
        Ok(response)
    }

    pub async fn show_cart(&mut self, cart: CartId) -> Result<Response<Body>, Problem> {
        let Found { held, stale, .. } = self.find(cart).await?;
        let mut response = self.show(StatusCode::OK, cart, &held, None)?;
        mark(&mut response, stale);
        // What was shown must be shown elsewhere too: a write whose answer was lost is learned of here.
        self.remember(&mut response, cart, &held, false);
        Ok(response)
    }

    pub async fn add_line(&mut self, cart: CartId, body: RequestBody) -> Result<Response<Body>, Problem> {
        let NewLine { sku, quantity } = self.body(body).await?;
        let sku: Sku = sku.parse().map_err(|e| Problem::new(Refusal::UnknownSku, format!("{e}")))?;
        let quantity = self.quantity(&quantity, "")?;
        self.change(cart, Wish::Add { sku, quantity }).await
    }

    pub async fn set_line(
        &mut self,
        cart: CartId,
        line: LineKey,
        body: RequestBody,
    ) -> Result<Response<Body>, Problem> {
        let NewQuantity { quantity } = self.body(body).await?;
        let quantity = self.quantity(&quantity, "; to take the line out, DELETE it")?;
        self.change(cart, Wish::Set { line, quantity }).await
    }

    pub async fn set_country(&mut self, cart: CartId, body: RequestBody) -> Result<Response<Body>, Problem> {
        let NewCountry { country } = self.body(body).await?;
        self.change(cart, Wish::Country(parse_country(&country)?)).await
    }

    async fn body<T: serde::de::DeserializeOwned>(&mut self, body: RequestBody) -> Result<T, Problem> {
        let bytes_max = usize::try_from(self.node.limits.request_body_bytes_max).unwrap_or(usize::MAX);
        let headers = self.exchange.head.headers.clone();
        self.exchange.timed("body", read_json(&headers, body, bytes_max)).await
    }

    fn quantity(&self, number: &serde_json::Number, hint: &str) -> Result<u32, Problem> {
        let max = self.settings.limits.line_quantity_max;
        let quantity = number.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| (1..=max).contains(n));
        quantity.ok_or_else(|| {
            Problem::new(
                Refusal::QuantityOutOfRange,
                format!("quantity is {number}, it must be a whole number from 1 to {max}{hint}"),
            )
            .with("quantity_max", max)
        })
    }

    /// The way of a change.
    pub async fn change(&mut self, cart: CartId, wish: Wish) -> Result<Response<Body>, Problem> {
        self.node.state.check_writable()?;
        let key = self.key(cart);
        let guard = self.lock(key).await?;
        let (guard, Found { held, stale, in_doubt, pending }) =
            self.find_locked(guard).await?.for_change()?;
        if let Some(order) = held.order {
            return Err(sealed(order));
        }
        if let Some(order) = pending {
            return Err(Problem::new(
                Refusal::CheckoutPending,
                "a checkout of this cart waits for its payment; if that is declined, the cart is open again",
            )
            .with("order", order.to_string())
            .retry_after(2));
        }
        if in_doubt {
            // A change that is answered for must be in the order or refused, and here nobody knows which.
            return Err(Problem::new(
                Refusal::RegionUnreachable,
                "the cart may have been ordered, and the region cannot be asked now",
            )
            .retry_after(2));
        }
        let before = held.last;
        self.check(&held.cart, &wish).map_err(|problem| match problem.refusal {
            Refusal::UnknownLine if stale => self.not_here_yet(),
            _ => problem,
        })?;
        let ops = self.review(cart, &held.cart, &wish).await?;
        let mut plan = Plan::make(&held.cart, &wish, &ops, self.settings.limits.line_quantity_max);
        let limited = plan.limited.take();
        let now_ms = self.exchange.now_ms;
        let changed =
            self.node.state.change(guard, Arc::unwrap_or_clone(held), now_ms, |edit| plan.draw(edit));
        let (guard, held) = self.exchange.timed("commit", changed).await?;
        drop(guard);
        let mut response = match wish {
            Wish::Empty => {
                let mut response = Response::new(empty());
                *response.status_mut() = StatusCode::NO_CONTENT;
                response
            }
            _ => self.show(StatusCode::OK, cart, &held, limited)?,
        };
        mark(&mut response, stale);
        self.remember(&mut response, cart, &held, held.last != before);
        Ok(response)
    }

    /// A line that the copy here does not have, while the shopper has seen writes that it lacks.
    fn not_here_yet(&self) -> Problem {
        let refusal = match self.node.uplink.status().connected {
            true => Refusal::RegionBusy,
            false => Refusal::CartElsewhere,
        };
        let why = "the line may have been added at another node since this one last heard of the cart";
        Problem::new(refusal, why).retry_after(2)
    }

    pub(super) async fn lock(&mut self, key: CartKey) -> Result<CartGuard, Problem> {
        let waiting = tokio::time::timeout(LOCK_WAIT_MAX, self.node.state.lock(key));
        self.exchange.timed("lock", waiting).await.map_err(|_| {
            Problem::new(
                Refusal::CartBusy,
                format!("another change took more than {} s", LOCK_WAIT_MAX.as_secs()),
            )
        })
    }

    /// The shop's limits, which hold before any plugin is asked.
    fn check(&self, cart: &Cart, wish: &Wish) -> Result<(), Problem> {
        let limits = &self.settings.limits;
        match wish {
            Wish::Add { sku, quantity } => {
                if !self.site.products.contains_key(sku) {
                    let why = format!("there is no product {sku:?}");
                    return Err(Problem::new(Refusal::UnknownSku, why).with("sku", sku.as_str()));
                }
                if self.site.listed(sku).is_none() {
                    return Err(Problem::new(Refusal::NotForSale, format!("{sku:?} has no price"))
                        .with("sku", sku.as_str()));
                }
                let have = cart.quantity(&Entry::Line(LineKey::of(sku.clone())));
                if have == 0 && cart.lines().len() >= limits.cart_lines_max as usize {
                    let why = format!("a cart has at most {} lines", limits.cart_lines_max);
                    return Err(
                        Problem::new(Refusal::TooManyLines, why).with("lines_max", limits.cart_lines_max)
                    );
                }
                let max = limits.line_quantity_max;
                if have.saturating_add(*quantity) > max {
                    let why = format!(
                        "the line would have {}, it must be from 1 to {max}",
                        have.saturating_add(*quantity)
                    );
                    return Err(Problem::new(Refusal::QuantityOutOfRange, why).with("quantity_max", max));
                }
                Ok(())
            }
            Wish::Set { line, .. } if line.added_by.is_some() => {
                Err(Problem::new(Refusal::PluginLine, "its quantity cannot be set"))
            }
            Wish::Set { line, .. } | Wish::Remove { line } => {
                if cart.quantity(&Entry::Line(line.clone())) == 0 {
                    let why = format!("there is no line {line}");
                    return Err(Problem::new(Refusal::UnknownLine, why).with("line", line.to_string()));
                }
                Ok(())
            }
            Wish::PutCoupon(_) if cart.coupons().len() >= limits.coupons_max as usize => {
                let why = format!("a cart has at most {} coupons", limits.coupons_max);
                Err(Problem::new(Refusal::TooManyCoupons, why).with("coupons_max", limits.coupons_max))
            }
            Wish::PutCoupon(_) | Wish::RemoveCoupon(_) | Wish::Country(_) | Wish::Empty => Ok(()),
        }
    }

    /// Asks the cart hooks. An empty list accepts the change as it is.
    async fn review(
        &mut self,
        id: CartId,
        cart: &Cart,
        wish: &Wish,
    ) -> Result<Vec<(PluginName, CartOp)>, Problem> {
        let requested = match wish.clone() {
            Wish::Add { sku, quantity } => Requested::Add { sku, quantity },
            Wish::Set { line, quantity } => Requested::Set { line, quantity },
            Wish::Remove { line } => Requested::Remove { line },
            Wish::PutCoupon(_) | Wish::RemoveCoupon(_) | Wish::Country(_) | Wish::Empty => {
                return Ok(Vec::new());
            }
        };
        if !self.chain().await?.has(Hook::Cart) {
            return Ok(Vec::new());
        }
        let (before, _) = self.lines(cart);
        let review = move |chain: &Chain, call: &Call<'_>| chain.review_change(call, &before, &requested);
        let reviewed = self.run(Hook::Cart, Some((id, cart)), review).await??;
        Ok(reviewed.ops)
    }

    /// The cart, from here or from the region.
    pub(crate) async fn find(&mut self, cart: CartId) -> Result<Found, Problem> {
        let key = self.key(cart);
        let held = self.node.state.find(&key)?;
        if let Some(held) = &held
            && self.missing(held).is_empty()
            && !self.may_be_sealed(cart, held)
        {
            return Ok(Found { held: held.clone(), stale: false, in_doubt: false, pending: None });
        }
        let guard = self.lock(key).await?;
        Ok(self.find_locked(guard).await?.found)
    }

    /// Places in nodes' outboxes that the shopper has seen and this copy of the cart may not contain.
    fn missing(&self, held: &Held) -> Vec<Seen> {
        let (node, facts) = (self.node.state.node(), self.node.state.facts());
        let own = facts.epoch.map(|epoch| Position { epoch, seq: facts.last() });
        let mut seen = shopper::seen(&self.exchange.head.headers);
        seen.retain(|token| held.lacks(*token, node, own));
        seen
    }

    /// Whether the region may know a seal that the copy here does not: the shopper has ordered this cart at another
    /// node, or a checkout has got no answer.
    fn may_be_sealed(&self, cart: CartId, held: &Held) -> bool {
        held.order.is_none() && (held.unresolved_ms.is_some() || self.says_ordered(cart))
    }

    fn says_ordered(&self, cart: CartId) -> bool {
        shopper::ordered(&self.exchange.head.headers) == Some(cart)
    }

    /// The same for whoever may change it. What is fetched is merged and kept.
    pub(super) async fn find_locked(&mut self, guard: CartGuard) -> Result<Locked, Problem> {
        let here = self.node.state.find(guard.key())?;
        let missing =
            here.as_deref().map_or_else(|| self.missing(&Held::default()), |held| self.missing(held));
        let cart = guard.key().cart;
        let may_be_sealed =
            here.as_deref().map_or_else(|| self.says_ordered(cart), |held| self.may_be_sealed(cart, held));
        if let Some(held) = &here
            && missing.is_empty()
            && !may_be_sealed
        {
            let found = Found { held: held.clone(), stale: false, in_doubt: false, pending: None };
            return Ok(Locked::of(guard, found));
        }
        let known = here.is_some();
        let mut held = here.map_or_else(Held::default, Arc::unwrap_or_clone);
        let (mut found, mut asked, mut stale) = (known, false, false);
        let mut pending = None;
        let mut wanted: VecDeque<Option<Seen>> =
            if missing.is_empty() { [None].into() } else { missing.iter().copied().map(Some).collect() };
        while let Some(token) = wanted.pop_front() {
            match self.fetch(guard.key(), token).await {
                Ok(fetched) => {
                    asked = true;
                    if let Some((fetched, held_for)) = fetched {
                        pending = held_for;
                        held.cart.merge(&fetched.cart);
                        held.order = held.order.or(fetched.order);
                        found = true;
                    }
                    // The region has everything up to there, be it about this cart or about others.
                    token.into_iter().for_each(|token| held.note_seen(token));
                }
                Err(problem) if known => {
                    stale = true;
                    // One wait for a write that does not come is enough, and what the region has is better than nothing.
                    wanted.clear();
                    if token.is_some() && problem.refusal == Refusal::RegionBusy {
                        wanted.push_back(None);
                    }
                }
                // Never "there is no such cart": a client that is told so throws away a cart that the region may have.
                Err(problem) => return Err(elsewhere(problem, missing.is_empty())),
            }
        }
        if !found {
            return Err(unknown());
        }
        let in_doubt = may_be_sealed && !asked;
        if !asked {
            return Ok(Locked::of(guard, Found { held: Arc::new(held), stale, in_doubt, pending }));
        }
        let settled = |at: &u64| self.exchange.now_ms.saturating_sub(*at) >= CHECKOUT_SETTLES_MS;
        if pending.is_some() {
            // The region is asked again at the next look, however long the payment takes.
            held.unresolved_ms = Some(self.exchange.now_ms);
        } else if held.order.is_some() || held.unresolved_ms.as_ref().is_some_and(settled) {
            held.unresolved_ms = None;
        }
        held.touched_ms = Some(self.exchange.now_ms);
        Ok(match self.node.state.store(guard, held.clone()).await {
            Ok((guard, held)) => Locked::of(guard, Found { held, stale, in_doubt, pending }),
            Err(error) => {
                let found = Found { held: Arc::new(held), stale, in_doubt, pending };
                Locked { guard: Err(error), found }
            }
        })
    }

    /// One question to the region. Those that may have to wait there for a write stand in a queue of their own: a
    /// stranger can name a write that never comes.
    /// Also the checkout that holds the cart.
    async fn fetch(
        &mut self,
        key: &CartKey,
        min: Option<Seen>,
    ) -> Result<Option<(Held, Option<OrderId>)>, Problem> {
        let node = self.node;
        let turns = if min.is_some() { &node.fetches_after } else { &node.fetches };
        let Ok(turn) = tokio::time::timeout(FETCH_TURN_MAX, turns.acquire()).await else {
            node.telemetry.cart_fetch("crowded");
            return Err(Problem::new(Refusal::RegionBusy, "too many carts are being fetched at once"));
        };
        let _turn = turn.map_err(Problem::internal)?;
        let min = min.map(|s| (s.node, s.at.epoch, s.at.seq));
        let request = call::Request::FetchCart { site: key.site.clone(), cart: key.cart, min };
        let answer = self.exchange.timed("region", node.uplink.ask(&request)).await;
        let telemetry = &node.telemetry;
        match answer {
            Ok(call::Response::Cart { state: Some(state), order, pending }) => {
                telemetry.cart_fetch("found");
                let cart = Cart::from_bytes(&state).map_err(Problem::internal)?;
                Ok(Some((Held { order, ..Held::with_cart(cart) }, pending)))
            }
            Ok(call::Response::Cart { state: None, .. } | call::Response::NotFound) => {
                telemetry.cart_fetch("unknown");
                Ok(None)
            }
            Ok(call::Response::NotYet { .. }) => {
                telemetry.cart_fetch("not_yet");
                Err(Problem::new(
                    Refusal::RegionBusy,
                    "the node where the cart was changed has not sent the change yet",
                ))
            }
            Ok(other) => {
                telemetry.cart_fetch("failed");
                Err(Problem::from(AskError::Failed(format!("an answer about something else: {other:?}"))))
            }
            Err(error) => {
                telemetry.cart_fetch("unreachable");
                Err(error.into())
            }
        }
    }

    fn show(
        &self,
        status: StatusCode,
        cart: CartId,
        held: &Held,
        limited: Option<Limited>,
    ) -> Result<Response<Body>, Problem> {
        let lines = held.cart.lines().into_iter().map(|(line, quantity)| LineView {
            sku: line.sku.clone(),
            title: self.site.products.get(&line.sku).map(|p| p.title.clone()),
            quantity,
            added_by: line.added_by.clone(),
            line,
        });
        let view = CartView {
            cart,
            country: held.cart.country(),
            lines: lines.collect(),
            coupons: held.cart.coupons(),
            order: held.order,
            limited,
        };
        json(status, &view)
    }

    /// Tells the shopper where his last write is, and what else he must find at the next node.
    pub(super) fn remember(&self, response: &mut Response<Body>, cart: CartId, held: &Held, wrote: bool) {
        let Some(last) = held.last else { return };
        let cookie = shopper::seen(&self.exchange.head.headers);
        let (own, others) = shopper::places(self.node.state.node(), cookie, self.missing(held), last, wrote);
        shopper::write_cookies(response.headers_mut(), self.exchange.peer.tls, cart, own, others);
    }
}

pub(super) fn sealed(order: OrderId) -> Problem {
    Problem::new(Refusal::CartSealed, "begin a new cart for further purchases")
        .with("order", order.to_string())
}

fn unknown() -> Problem {
    Problem::new(Refusal::UnknownCart, "no cart has this number")
}

/// `is_guess`: nothing that the shopper sent says that there is such a cart.
fn elsewhere(problem: Problem, is_guess: bool) -> Problem {
    let why = match is_guess {
        true => "this node has no cart of this number, and the region, which may have it, is away",
        false => "the cart was last changed at another node, and the region is away",
    };
    match problem.refusal {
        Refusal::RegionUnreachable => Problem::new(Refusal::CartElsewhere, why).retry_after(2),
        _ => problem,
    }
}

pub(super) fn mark(response: &mut Response<Body>, stale: bool) {
    if stale {
        response.headers_mut().insert(STALE, HeaderValue::from_static("cart"));
    }
}

fn parse_country(text: &str) -> Result<Country, Problem> {
    let refuse = |why: String| Problem::new(Refusal::BadCountry, why).with("field", "country");
    let country: Country = text.parse().map_err(|e| refuse(format!("country: {e}")))?;
    if slips::is_country(country.as_str()) {
        return Ok(country);
    }
    Err(refuse(format!("country {country} is none of ISO 3166-1: write two letters such as GB")))
}

impl From<CartFull> for Problem {
    fn from(full: CartFull) -> Self {
        Self::new(Refusal::CartTooLarge, full.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_country_that_there_is_not_is_refused_by_its_field() {
        assert_eq!(parse_country("GB").expect("a country").as_str(), "GB");
        for text in ["ZZ", "gb", "UK", "GBR", ""] {
            let problem = parse_country(text).expect_err("no country");
            assert_eq!(problem.refusal, Refusal::BadCountry, "{text}");
            assert!(problem.detail.starts_with("country"), "{}", problem.detail);
        }
    }
}
