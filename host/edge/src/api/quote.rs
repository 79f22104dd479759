//! `GET /api/carts/{id}/quote`: what the cart costs and why, by the prices that this node holds now.

use http::{Response, StatusCode};
use serde::Serialize;
use souk_commerce::id::CartId;
use souk_commerce::quote::Quote;

use super::Ask;
use super::carts::{Found, mark};
use crate::http::{Body, json};
use crate::rescue::Problem;
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
}

impl Ask<'_> {
    pub async fn show_quote(&mut self, cart: CartId) -> Result<Response<Body>, Problem> {
        let Found { held, stale, .. } = self.find(cart).await?;
        let quote = self.price(cart, &held)?;
        let status = self.node.uplink.status();
        let stale_ms = (!status.connected)
            .then(|| u64::try_from(status.since.elapsed().as_millis()).unwrap_or(u64::MAX));
        let (pop, node) = (self.node.pop.as_str(), self.node.state.node().0);
        let mut response = json(StatusCode::OK, &QuoteView { cart, quote: &quote, pop, node, stale_ms })?;
        mark(&mut response, stale);
        // What was quoted must be known at the next PoP too.
        self.remember(&mut response, cart, &held, false);
        Ok(response)
    }

    pub(super) fn price(&mut self, id: CartId, held: &Held) -> Result<Quote, Problem> {
        let (lines, gone) = self.lines(&held.cart);
        let guard = self.settings.guard;
        let mut quote =
            self.run("pricing", Some((id, &held.cart)), |chain, call| chain.price(call, &guard, lines))??;
        quote.unavailable = gone;
        Ok(quote)
    }
}
