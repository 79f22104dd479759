//! `/api/carts/{id}/reservation`: a cart is promised its units for a while, before it is ordered.
//!
//! What this node has been lent it promises by itself, with the region away too; for the rest it asks the region. Each product
//! is promised wholly or not at all, and what is not has a reason. A promise is not renewed by asking again while it lasts:
//! nobody keeps a unit from the others for ever. A checkout takes what the cart was promised first.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::{Response, StatusCode};
use serde::Serialize;
use souk_commerce::call::{self, HOLDS_MAX, Promised, RESERVE_WANTS_MAX, ReserveRequest, Want};
use souk_commerce::id::{CartId, HoldId, Sku};

use super::Ask;
use super::carts::{Found, Locked, mark, sealed};
use crate::http::{Body, empty, json};
use crate::rescue::{Problem, Refusal};
use crate::state::{CartGuard, CartKey, Held, Hold};

#[derive(Serialize)]
struct ReservationView {
    cart: CartId,
    /// Everything in the cart is promised.
    complete: bool,
    /// When the first promise ends.
    until_ms: Option<u64>,
    products: Vec<ProductView>,
}

#[derive(Serialize)]
struct ProductView {
    sku: Sku,
    /// In the cart, over all of its lines.
    quantity: u64,
    promised: u64,
    until_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    /// What is free, when that is less than was wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    available: Option<u64>,
}

/// Why a product is not promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    OutOfStock {
        available: u64,
    },
    /// None of it is lent to this node, and the region is away.
    RegionUnreachable,
    RegionBusy,
    /// Nobody counts it, so there is nothing to promise: whoever orders gets it.
    NotCounted,
    /// The cart has as many promises as a cart may: what it has lapses, or is given up.
    TooMany,
}

impl Reason {
    const fn name(self) -> &'static str {
        match self {
            Self::OutOfStock { .. } => "out_of_stock",
            Self::RegionUnreachable => "region_unreachable",
            Self::RegionBusy => "region_busy",
            Self::NotCounted => "not_counted",
            Self::TooMany => "too_many_promises",
        }
    }
}

type Reasons = BTreeMap<Sku, Reason>;

fn wanted(held: &Held) -> BTreeMap<Sku, u64> {
    let mut wanted = BTreeMap::new();
    for (line, quantity) in held.cart.lines() {
        *wanted.entry(line.sku).or_default() += u64::from(quantity);
    }
    wanted
}

fn promised(held: &Held, sku: &Sku) -> u64 {
    held.holds.iter().filter(|hold| hold.sku == *sku).map(|hold| hold.units).sum()
}

/// What the cart lacks, each under a name of its own.
fn lacking(held: &Held) -> Vec<Want> {
    let wants = wanted(held).into_iter().filter_map(|(sku, quantity)| {
        let units = quantity.saturating_sub(promised(held, &sku));
        (units > 0).then(|| Want { hold: HoldId(rand::random()), sku, units })
    });
    // What a cart has beyond that cannot be spoken of, and would be counted twice.
    wants.take(HOLDS_MAX.saturating_sub(held.holds.len())).collect()
}

fn view(cart: CartId, held: &Held, reasons: &Reasons) -> ReservationView {
    let products = wanted(held).into_iter().map(|(sku, quantity)| {
        let promised = promised(held, &sku);
        let ends = held.holds.iter().filter(|hold| hold.sku == sku).map(|hold| hold.until_ms);
        let reason = reasons.get(&sku).copied().filter(|_| promised < quantity);
        ProductView {
            quantity,
            promised,
            until_ms: ends.min(),
            reason: reason.map(Reason::name),
            available: match reason {
                Some(Reason::OutOfStock { available }) => Some(available),
                _ => None,
            },
            sku,
        }
    });
    let products: Vec<_> = products.collect();
    let is_whole = |product: &ProductView| {
        product.promised >= product.quantity || product.reason == Some(Reason::NotCounted.name())
    };
    ReservationView {
        cart,
        complete: products.iter().all(is_whole),
        until_ms: products.iter().filter_map(|product| product.until_ms).min(),
        products,
    }
}

impl Ask<'_> {
    /// What the cart is promised, as far as this node knows.
    pub async fn show_reservation(&mut self, cart: CartId) -> Result<Response<Body>, Problem> {
        let Found { held, stale, .. } = self.find(cart).await?;
        let mut held = Arc::unwrap_or_clone(held);
        held.drop_lapsed(self.exchange.now_ms);
        let mut response = json(StatusCode::OK, &view(cart, &held, &Reasons::new()))?;
        mark(&mut response, stale);
        Ok(response)
    }

    pub async fn reserve(&mut self, cart: CartId) -> Result<Response<Body>, Problem> {
        if !self.settings.reservations.enabled {
            return Err(not_offered());
        }
        let (guard, mut held, stale) = self.open_cart(cart).await?;
        if held.cart.lines().is_empty() {
            return Err(Problem::new(Refusal::CartEmpty, "add a line first"));
        }
        let (before, now_ms) = (held.last, self.exchange.now_ms);
        held.drop_lapsed(now_ms);
        let wants = lacking(&held);
        for want in &wants {
            self.node.stock.want(&self.site.id, &want.sku, want.units);
        }
        let (guard, held) = if wants.is_empty() {
            (guard, Arc::new(held))
        } else {
            let promise = self.node.state.promise(guard, held, now_ms, wants.clone());
            self.exchange.timed("commit", promise).await?
        };
        let rest = lacking(&held);
        for want in wants.iter().filter(|want| rest.iter().all(|rest| rest.sku != want.sku)) {
            tracing::trace!(sku = %want.sku, "promised of what is lent to this node");
            self.node.stock.count("here");
        }
        let mut reasons = Reasons::new();
        let held = if rest.is_empty() {
            drop(guard);
            held
        } else {
            let mut held = Arc::unwrap_or_clone(held);
            let got = self.ask_region(cart, &mut held, rest, &mut reasons).await?;
            match got {
                true => self.node.state.store(guard, held).await?.1,
                false => Arc::new(held),
            }
        };
        if held.holds.len() >= HOLDS_MAX {
            for (sku, quantity) in wanted(&held) {
                if promised(&held, &sku) < quantity {
                    reasons.entry(sku).or_insert(Reason::TooMany);
                }
            }
        }
        for reason in reasons.values() {
            self.node.stock.count(reason.name());
        }
        let mut response = json(StatusCode::OK, &view(cart, &held, &reasons))?;
        mark(&mut response, stale);
        self.remember(&mut response, cart, &held, held.last != before);
        Ok(response)
    }

    pub async fn give_up_reservation(&mut self, cart: CartId) -> Result<Response<Body>, Problem> {
        let (guard, held, stale) = self.open_cart(cart).await?;
        let (before, now_ms) = (held.last, self.exchange.now_ms);
        let given_up = self.node.state.give_up(guard, held, now_ms);
        let (_, held) = self.exchange.timed("commit", given_up).await?;
        let mut response = Response::new(empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        mark(&mut response, stale);
        self.remember(&mut response, cart, &held, held.last != before);
        Ok(response)
    }

    /// A cart that can be promised something, and the right to do so.
    async fn open_cart(&mut self, cart: CartId) -> Result<(CartGuard, Held, bool), Problem> {
        self.node.state.check_writable()?;
        let guard = self.lock(CartKey { site: self.site.id.clone(), cart }).await?;
        let locked: Locked = self.find_locked(guard).await?;
        let (guard, Found { held, stale, in_doubt, pending }) = locked.for_change()?;
        if let Some(order) = held.order {
            return Err(sealed(order));
        }
        if let Some(order) = pending {
            return Err(Problem::new(Refusal::CheckoutPending, "its units are held for the checkout")
                .with("order", order.to_string())
                .retry_after(2));
        }
        if in_doubt {
            return Err(Problem::new(
                Refusal::RegionUnreachable,
                "the cart may have been ordered, and the region cannot be asked now",
            )
            .retry_after(2));
        }
        Ok((guard, Arc::unwrap_or_clone(held), stale))
    }

    /// Has the region promise what is not lent to this node. True: there is something to be noted.
    async fn ask_region(
        &mut self,
        cart: CartId,
        held: &mut Held,
        wants: Vec<Want>,
        reasons: &mut Reasons,
    ) -> Result<bool, Problem> {
        let now_ms = self.exchange.now_ms;
        let known = held.holds.iter().map(|hold| hold.id).take(HOLDS_MAX).collect();
        let skus: Vec<Sku> = wants.iter().map(|want| want.sku.clone()).collect();
        let site = self.site.id.clone();
        let wants = wants.into_iter().take(RESERVE_WANTS_MAX).collect();
        let after = held.last.map(|at| (at.epoch, at.seq));
        let request = call::Request::Reserve(ReserveRequest { site, cart, known, wants, after });
        let answer = self.exchange.timed("region", self.node.uplink.ask(&request)).await;
        let none = |reason| skus.iter().map(move |sku| (sku.clone(), reason));
        match answer {
            Ok(call::Response::Reserved(answers)) => {
                for Promised { sku, holds, uncounted, available } in answers {
                    if uncounted {
                        reasons.insert(sku, Reason::NotCounted);
                    } else if holds.is_empty() {
                        reasons.insert(sku, Reason::OutOfStock { available });
                    } else {
                        self.node.stock.count("region");
                        for told in holds {
                            let until_ms = now_ms.saturating_add(told.lives_ms);
                            if held.holds.iter().all(|hold| hold.id != told.hold) {
                                let (sku, units) = (sku.clone(), told.units);
                                held.holds.push(Hold { id: told.hold, sku, units, until_ms });
                            }
                        }
                    }
                }
                Ok(true)
            }
            Ok(call::Response::NotOffered) => Err(not_offered()),
            Ok(call::Response::NotYet { .. }) => {
                reasons.extend(none(Reason::RegionBusy));
                Ok(false)
            }
            Ok(other) => {
                tracing::warn!(?other, "the region does not say what it has promised");
                reasons.extend(none(Reason::RegionUnreachable));
                Ok(false)
            }
            // What it may have promised all the same counts at the next question, or lapses.
            Err(error) => {
                tracing::debug!(%error, "the region could not be asked for units");
                reasons.extend(none(Reason::RegionUnreachable));
                Ok(false)
            }
        }
    }
}

fn not_offered() -> Problem {
    Problem::new(Refusal::ReservationsOff, "order at once: the units of an order are taken when it is placed")
}

#[cfg(test)]
mod tests {
    use souk_commerce::cart::{Cart, Entry, LineKey};
    use souk_commerce::clock::Hlc;
    use souk_commerce::id::{Epoch, NodeId};

    use super::*;

    fn sku(text: &str) -> Sku {
        text.parse().expect("a sku")
    }

    fn hold(text: &str, units: u64, until_ms: u64) -> Hold {
        Hold { id: HoldId([1; 16]), sku: sku(text), units, until_ms }
    }

    fn held(lines: &[(&str, i32)]) -> Held {
        let mut cart = Cart::new();
        let mut edit = cart.edit(NodeId(1), Epoch(1), Hlc(5));
        for (name, quantity) in lines {
            edit.add(Entry::Line(LineKey::of(sku(name))), *quantity).expect("room");
        }
        let delta = edit.finish();
        cart.apply(&delta);
        Held::with_cart(cart)
    }

    #[test]
    fn a_cart_lacks_what_it_holds_beyond_its_promises() {
        let mut held = held(&[("A", 3), ("B", 2), ("C", 1)]);
        held.holds = vec![hold("A", 2, 100), hold("B", 2, 50), hold("C", 5, 9)];
        held.drop_lapsed(9);
        let lacking: Vec<_> = lacking(&held).into_iter().map(|want| (want.sku, want.units)).collect();
        assert_eq!(lacking, [(sku("A"), 1), (sku("C"), 1)]);
        let reasons = Reasons::from([
            (sku("A"), Reason::OutOfStock { available: 0 }),
            (sku("B"), Reason::RegionBusy),
            (sku("C"), Reason::NotCounted),
        ]);
        let view = serde_json::to_value(view(CartId([2; 16]), &held, &reasons)).expect("JSON");
        let expected = serde_json::json!({
            "cart": CartId([2; 16]),
            "complete": false,
            "until_ms": 50,
            "products": [
                { "sku": "A", "quantity": 3, "promised": 2, "until_ms": 100, "reason": "out_of_stock", "available": 0 },
                { "sku": "B", "quantity": 2, "promised": 2, "until_ms": 50 },
                { "sku": "C", "quantity": 1, "promised": 0, "until_ms": null, "reason": "not_counted" },
            ],
        });
        assert_eq!(view, expected);
    }
}
