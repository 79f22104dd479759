//! The first-party pricing plugin: quantity breaks, segment prices, country rules, coupons and free gifts.
//!
//! `README.md` beside this crate is the exact specification of the settings and of the order and rounding of the
//! rules. [`settings`] reads and checks what the merchant wrote, [`rules`] decides; neither knows that it runs in a
//! sandbox. It never computes what a shopper pays: the host does, from the adjustments that this plugin answers.
//!
//! ```
//! use souk_plugin_pricing::Rules;
//! use souk_sdk::prelude::*;
//! use souk_sdk::testing;
//!
//! let ctx = testing::context_with(
//!     r#"{ "quantity_breaks": [ { "tag": "mug", "breaks": [ { "at": 12, "off_bp": 500 } ] } ] }"#,
//! );
//! let adjustments = Rules::adjust(&ctx, &[testing::line(0, testing::tagged("M1", 255, &["mug"]), 12)])?;
//! assert_eq!(adjustments[0].label, "12 or more: 5 % off");
//! # Ok::<(), Refusal>(())
//! ```

pub mod rules;
pub mod settings;

use souk_sdk::prelude::*;

/// The plugin.
#[derive(Debug)]
pub struct Rules;

impl Pricing for Rules {
    fn adjust(ctx: &Context, lines: &[Line]) -> Answer<Vec<Adjustment>> {
        let settings: settings::Settings = ctx.settings_as()?;
        settings.check().map_err(|wrong| Refusal::new("bad_settings", &format!("settings: {wrong}")))?;
        Ok(rules::adjust(&settings, ctx, lines))
    }
}

souk_sdk::export_pricing!(Rules);

#[cfg(test)]
mod tests;
