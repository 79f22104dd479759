//! `GET /api/carts/{id}/quote`: what the cart costs and why, by the prices that this node holds now.
//!
//! With `?explain=1` the answer to "why 12.40?": release by release what of its words was taken and what each line cost
//! before and after. A cart that has no price says so in the same words. Whoever holds the cart may ask, so an
//! explanation has neither faults nor the guard's rules: those are in the merchant's journal, under the calls' names.

use http::{Response, StatusCode};
use serde::Serialize;
use souk_commerce::id::{CartId, Coupon};
use souk_commerce::quote::{Applied, Quote};
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
    /// Coupons of the cart that no adjustment is of: not known, not valid now, or not for this cart.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unused_coupons: Vec<Coupon>,
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
        let (quote, explain) = match query(self.exchange, "explain")?.as_deref() {
            None | Some("0") => (self.price(cart, &held).await?, None),
            Some("1") => self.explain(cart, &held).await.map(|(quote, explain)| (quote, Some(explain)))?,
            Some(_) => return Err(Problem::new(Refusal::BadQuery, "explain must be 1 or 0")),
        };
        let status = self.node.uplink.status();
        let stale_ms = (!status.connected)
            .then(|| u64::try_from(status.since.elapsed().as_millis()).unwrap_or(u64::MAX));
        let (pop, node) = (self.node.pop.as_str(), self.node.state.node().0);
        let unused_coupons = unused(held.cart.coupons(), &quote);
        let view = QuoteView { cart, quote: &quote, unused_coupons, pop, node, stale_ms, explain };
        let mut response = json(StatusCode::OK, &view)?;
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

/// What comes before a coupon's own letters, in lower case, in the code of an adjustment that is of it.
const OF_COUPON: &str = "coupon.";

/// The coupons that have done nothing, as far as the plugins say.
fn unused(mut coupons: Vec<Coupon>, quote: &Quote) -> Vec<Coupon> {
    let all = quote.lines.iter().flat_map(|line| &line.adjustments).chain(&quote.adjustments);
    let of_coupon =
        |Applied { code, .. }: &Applied| code.strip_prefix(OF_COUPON).map(str::to_ascii_uppercase);
    let used: Vec<String> = all.filter_map(of_coupon).collect();
    coupons.retain(|coupon| !used.iter().any(|used| used == coupon.as_str()));
    coupons
}

#[cfg(test)]
mod tests {
    use souk_commerce::money::Minor;

    use super::*;

    #[test]
    fn a_coupon_without_an_adjustment_of_its_own_is_told() {
        let applied = |code: &str| Applied {
            plugin: "pricing".parse().expect("a plugin"),
            release: 1,
            code: code.to_owned(),
            label: String::new(),
            amount: Minor(-1),
        };
        let mut quote =
            Quote::base("GBP".parse().expect("a currency"), None, Vec::new()).expect("no overflow");
        quote.adjustments = ["coupon.ten", "spring", "coupon.ten-more"].map(applied).to_vec();
        let coupons =
            ["NONE", "SPRING", "TEN", "TEN-MORE"].map(|text| text.parse().expect("a coupon")).to_vec();
        let left: Vec<_> = unused(coupons, &quote).iter().map(|coupon| coupon.as_str().to_owned()).collect();
        assert_eq!(left, ["NONE", "SPRING"]);
    }
}
