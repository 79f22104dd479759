//! The first-party catalogue plugin: what a shopper sees first, with which badges, and what not at all.
//!
//! ```json
//! {
//!   "hide": [ { "tag": "draft" }, { "tag": "blade", "countries": ["FR", "DE"] } ],
//!   "rank": [ { "tag": "bestseller", "by": 100 }, { "tag": "clearance", "by": -50 } ],
//!   "badges": [ { "tag": "new", "badge": "New" } ],
//!   "reduced_badge": true,
//!   "low_stock_at": 5,
//!   "low_stock_badge": "Only {n} left"
//! }
//! ```
//!
//! Every field may be left out: the lists are then empty, `reduced_badge` is `true`, `low_stock_at` is 0 (never) and
//! `low_stock_badge` is as above. Settings that are the empty string or `null` mean `{}`. An unknown field, a wrong
//! type or a value out of range refuses the page with code `bad_settings`.
//!
//! For each product, in this order:
//!
//! 1. **Hide.** If a rule's `tag` is on the product and the shopper's country is among its `countries` (or it has
//!    none): the product is left out, and nothing else is said about it. A shopper from nowhere is in no country.
//! 2. **Rank.** The sum of `by` over all rules whose tag is on the product. Higher comes first.
//! 3. **Badges**, at most [`BADGES_MAX`]: those of `badges` in the order of the settings; then, with `reduced_badge`
//!    and a `compare-at` above the price, `-20 %` (whole per cent, rounded down: a shop must not promise more than it
//!    gives; nothing below 1 %); then, if at most `low_stock_at` are left, `low_stock_badge` with their number.
//!
//! A product about which nothing is to be said gets no presentation and is shown as it is.

mod rules;
pub mod settings;

pub use rules::BADGES_MAX;
pub use settings::Settings;

use souk_sdk::prelude::*;

/// The plugin.
#[derive(Debug)]
pub struct Shelf;

impl Catalog for Shelf {
    fn present(ctx: &Context, products: &[Product]) -> Answer<Vec<Presentation>> {
        let settings: Settings = ctx.settings_as()?;
        settings.check().map_err(|wrong| Refusal::new("bad_settings", &format!("settings: {wrong}")))?;
        Ok(products.iter().filter_map(|product| rules::present(&settings, ctx, product)).collect())
    }
}

souk_sdk::export_catalog!(Shelf);
