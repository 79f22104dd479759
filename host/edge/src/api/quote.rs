//! `GET /api/carts/{id}/quote`: what the cart costs and why, by the prices that this node holds now.
//!
//! With `?explain=1` the answer to "why 12.40?": release by release what of its words was taken and what each line cost
//! before and after. A cart that has no price says so in the same words. Whoever holds the cart may ask, so an
//! explanation has neither faults nor the guard's rules: those are in the merchant's journal, under the calls' names.

use http::{Response, StatusCode};
use serde::Serialize;
use souk_commerce::id::CartId;
use souk_commerce::quote::Quote;
use souk_commerce::site::Hook;
use souk_sandbox::account::Explanation;
use souk_sandbox::{Call, Chain};

use super::carts::{Found, mark};
use super::{Ask, query};
use crate::http::{Body, json};
use crate::rescue::{Problem, Refusal};
use crate::state::Held;

#[derive(Serialize)]
struct QuoteView<'a> {
    cart: CartId,
    #[serde(flatten)]
    quote: &'a Quote,
    pop: &'a str,
    node: u32,
    /// For how long the region has been away, and with it every change of a price.
    #[serde(skip_serializing_if = "Option::is_none")]
    stale_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    explain: Option<Explanation>,
}

impl Ask<'_> {
    pub async fn show_quote(&mut self, cart: CartId) -> Result<Response<Body>, Problem> {
        let Found { held, stale, .. } = self.find(cart).await?;
        let (quote, explain) = match query(self.exchange, "explain").as_deref() {
            None | Some("0") => (self.price(cart, &held).await?, None),
            Some("1") => self.explain(cart, &held).await.map(|(quote, explain)| (quote, Some(explain)))?,
            Some(_) => return Err(Problem::new(Refusal::BadQuery, "explain must be 1 or 0")),
        };
        let status = self.node.uplink.status();
        let stale_ms = (!status.connected)
            .then(|| u64::try_from(status.since.elapsed().as_millis()).unwrap_or(u64::MAX));
        let (pop, node) = (self.node.pop.as_str(), self.node.state.node().0);
        let mut response =
            json(StatusCode::OK, &QuoteView { cart, quote: &quote, pop, node, stale_ms, explain })?;
        mark(&mut response, stale);
        // What was quoted must be known at the next PoP too.
        self.remember(&mut response, cart, &held, false);
        Ok(response)
    }

    pub(super) async fn price(&mut self, id: CartId, held: &Held) -> Result<Quote, Problem> {
        let (lines, gone) = self.lines(&held.cart);
        let guard = self.settings.guard;
        let price = move |chain: &Chain, call: &Call<'_>| chain.price(call, &guard, lines);
        let mut quote = self.run(Hook::Pricing, Some((id, &held.cart)), price).await??;
        quote.unavailable = gone;
        Ok(quote)
    }

    async fn explain(&mut self, id: CartId, held: &Held) -> Result<(Quote, Explanation), Problem> {
        let (lines, gone) = self.lines(&held.cart);
        let guard = self.settings.guard;
        let explain = move |chain: &Chain, call: &Call<'_>| chain.explain(call, &guard, lines);
        let (quote, explanation) = self.run(Hook::Pricing, Some((id, &held.cart)), explain).await?;
        match quote {
            Ok(quote) => Ok((Quote { unavailable: gone, ..quote }, explanation)),
            Err(unpriced) => {
                let view = serde_json::to_value(&explanation).map_err(Problem::internal)?;
                Err(Problem::from(unpriced).with("explain", view))
            }
        }
    }
}
