//! The first-party cart plugin: how much a shopper may take, and a gift that comes and goes with the total.
//!
//! ```json
//! {
//!   "max_per_line": 500,
//!   "max_lines": 200,
//!   "max_per_order": [
//!     { "sku": "22423", "max": 2 },
//!     { "tag": "limited", "max": 5, "message": "Five limited pieces to an order, please." }
//!   ],
//!   "gift": { "sku": "GIFT-BAG", "when_total_at_least": 5000, "quantity": 1 }
//! }
//! ```
//!
//! Every field may be left out, and then limits nothing or gives nothing; settings that are the empty string or
//! `null` mean `{}`. An unknown field, a wrong type or a value out of range refuses the change with code
//! `bad_settings`. Limits and totals count the shopper's own lines, never those that a plugin added.
//!
//! **The rules, in this order.**
//!
//! 1. A change of a line that a plugin added is refused (`part_of_offer`): it goes with its offer.
//! 2. A change that raises no quantity is always accepted, even where a limit was lowered after the fact.
//! 3. `max_lines`: a new line beyond so many different ones is refused (`too_many_lines`).
//! 4. `max_per_line` and each rule of `max_per_order` that is for the product (by its SKU, or by a tag and then over
//!    all lines with that tag together) leave room for so many pieces. If the change fits, it stands; if some of it
//!    fits, it is capped; if nothing of it fits, it is refused (`limit_reached`).
//! 5. `gift`: with the change (and the cap) taken into account, the sum of price times quantity decides whether the
//!    gift line is there. A gift that is unknown or out of stock is not given, because it would stop the checkout.
//!
//! Prices are the product's own, before any discount: what the cart is worth must not depend on the order of plugins.

mod limits;
pub mod settings;

pub use settings::Settings;

use souk_sdk::prelude::*;

/// The plugin.
#[derive(Debug)]
pub struct Keeper;

impl Cart for Keeper {
    fn review(ctx: &Context, before: &[Line], change: &Change) -> Answer<Vec<CartOp>> {
        let settings: Settings = ctx.settings_as()?;
        settings.check().map_err(|wrong| Refusal::new("bad_settings", &format!("settings: {wrong}")))?;
        limits::review(&settings, before, change)
    }
}

souk_sdk::export_cart!(Keeper);
