//! The shop that the replay raises: its settings and the rules of its plugins.
//!
//! The rules are chosen so that every rule of the plugins meets somebody: steps of quantity with odd percentages that
//! have to be rounded, a segment, countries up and down, coupons in per cent and in pounds and one that is over, a gift.
//! Read by the region's plugins on one side and by the oracle on the other.

use serde_json::{Value, json};
use souk_commerce::id::SiteId;

/// The site's name and the host under which the nodes serve it.
pub(super) const SITE: &str = "retail";
pub(super) const HOST: &str = "retail.localhost";
/// Pieces of every article: whatever the file buys, the replay is about other things than empty shelves.
pub(super) const STOCK: u32 = 10_000_000;
/// The present of the cart plugin. An article of the replay's own, so that any file of invoices will do.
pub(super) const GIFT: &str = "REPLAY-GIFT";
pub(super) const GIFT_PRICE: i64 = 495;

pub(crate) fn site() -> SiteId {
    SITE.parse().expect("the name is a constant that is valid")
}

/// `shopper_key` is the public half of the key that signs the shoppers' tokens.
pub(super) fn settings(shopper_key: &str) -> Value {
    json!({
        "site": SITE,
        "name": "Replay",
        "hosts": [HOST],
        "currency": "GBP",
        "language": "en-GB",
        "limits": {
            "cart_lines_max": 1_000, "line_quantity_max": super::invoices::QUANTITY_MAX, "coupons_max": 10
        },
        "guard": { "line_discount_bp_max": 9_000, "cart_discount_bp_max": 9_000 },
        "shopper_key": shopper_key,
    })
}

pub(super) fn pricing() -> Value {
    json!({
        "gifts_free": true,
        "quantity_breaks": [
            { "sku": "85123A", "breaks": [{ "at": 6, "off_bp": 313 }, { "at": 32, "off_bp": 777 }] },
            { "sku": "84879", "breaks": [{ "at": 80, "off_bp": 1500 }], "label": "By the case" },
            { "breaks": [
                { "at": 12, "off_bp": 250 }, { "at": 48, "off_bp": 525 }, { "at": 144, "off_bp": 935 },
                { "at": 1000, "off_bp": 1410 },
            ] },
        ],
        "segments": [{ "segment": "guests", "off_bp": 100 }, { "segment": "trade", "off_bp": 725 }],
        "countries": [
            { "country": "IE", "change_bp": -215 },
            { "country": "NO", "change_bp": 333, "label": "Customs handling" },
            { "country": "CH", "change_bp": 333, "label": "Customs handling" },
            { "country": "JE", "change_bp": -1667 },
            { "country": "AU", "change_bp": 1250 },
            { "country": "FR", "change_bp": 137 },
            { "country": "FR", "sku": "22423", "change_bp": 450, "label": "Fragile" },
            { "country": "DE", "sku": "22423", "change_bp": 450, "label": "Fragile" },
        ],
        "coupons": [
            { "code": "REPLAY7", "off_bp": 777, "min_total": 1_000 },
            { "code": "FIVER", "amount_off": 500, "min_total": 5_000 },
            { "code": "GONE", "off_bp": 5_000, "not_after": 1_300_000_000_000_i64 },
        ],
    })
}

pub(super) fn cart() -> Value {
    json!({
        "max_lines": 1_000,
        "gift": { "sku": GIFT, "when_total_at_least": 7_500, "quantity": 2 },
    })
}
