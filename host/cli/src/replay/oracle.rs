//! An independent second opinion on every price.
//!
//! Recomputes a quote from the settings' JSON and the catalogue, following `plugins/pricing/README.md` and
//! the first page of `plugins/cart`, and compares it with what a node said. It shares no code with the plugins, the sandbox or
//! the platform's quote on purpose: its own rounding, its own reading of the settings. It knows nothing of HTTP.

use std::collections::BTreeMap;

use serde_json::Value;

/// What the catalogue says of one SKU.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Article {
    pub(super) price: i64,
    pub(super) tags: Vec<String>,
}

pub(super) type Catalogue = BTreeMap<String, Article>;

/// A cart as the shopper believes it to be.
#[derive(Debug, Clone, Default)]
pub(super) struct Basket {
    /// SKU -> quantity, the shopper's own lines only.
    pub(super) lines: BTreeMap<String, u32>,
    pub(super) coupons: Vec<String>,
    pub(super) country: Option<String>,
    pub(super) segments: Vec<String>,
}

/// One line of the expected quote.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ExpectedLine {
    pub(super) quantity: u32,
    pub(super) unit_price: i64,
    pub(super) amount: i64,
    /// Code and what it changed, in order.
    pub(super) adjustments: Vec<(String, i64)>,
    pub(super) total: i64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) lines: BTreeMap<String, ExpectedLine>,
    pub(super) adjustments: Vec<(String, i64)>,
    pub(super) subtotal: i64,
    pub(super) total: i64,
}

/// The rules of one site, as they were deployed.
#[derive(Debug, Clone)]
pub(super) struct Oracle {
    pub(super) catalogue: Catalogue,
    pub(super) pricing: Value,
    pub(super) cart: Value,
    /// The name under which the cart plugin is released: the second half of a gift line's id.
    pub(super) cart_plugin: String,
}

impl Oracle {
    pub(super) fn quote(&self, basket: &Basket, now_ms: u64) -> Expected {
        let mut expected = Expected::default();
        for (sku, &quantity) in &basket.lines {
            let article = self.catalogue.get(sku).cloned().unwrap_or_default();
            expected.lines.insert(sku.clone(), self.line(sku, &article, quantity, false, basket));
        }
        if let Some((sku, quantity)) = self.gift(basket) {
            let article = self.catalogue.get(&sku).cloned().unwrap_or_default();
            let line = self.line(&sku, &article, quantity, true, basket);
            expected.lines.insert(format!("{sku}~{}", self.cart_plugin), line);
        }
        expected.subtotal = expected.lines.values().map(|l| l.total).sum();
        expected.total = expected.subtotal;
        self.coupons(basket, now_ms, &mut expected);
        expected
    }

    /// Rules 1 to 4 of the pricing plugin, on one line.
    fn line(&self, sku: &str, article: &Article, quantity: u32, gift: bool, basket: &Basket) -> ExpectedLine {
        let amount = article.price * i64::from(quantity);
        let mut line = ExpectedLine {
            quantity,
            unit_price: article.price,
            amount,
            adjustments: Vec::new(),
            total: amount,
        };
        if gift && self.pricing["gifts_free"].as_bool().unwrap_or(true) {
            line.change("gift", -amount);
            return line;
        }
        let is_for = |rule: &Value| match (rule["sku"].as_str(), rule["tag"].as_str()) {
            (Some(wanted), _) => wanted == sku,
            (None, Some(tag)) => article.tags.iter().any(|t| t == tag),
            (None, None) => true,
        };
        let first_break = list(&self.pricing, "quantity_breaks").iter().find(|r| is_for(r));
        let best = first_break.and_then(|rule| {
            let reached = list(rule, "breaks").iter().filter(|b| int(b, "at") <= i64::from(quantity));
            reached.max_by_key(|b| int(b, "at"))
        });
        if let Some(best) = best {
            line.change("quantity_break", share(line.total, -int(best, "off_bp")));
        }
        let mut segment: Option<i64> = None;
        for rule in list(&self.pricing, "segments") {
            let mine = basket.segments.iter().any(|s| rule["segment"] == s.as_str());
            if mine && segment.is_none_or(|best| int(rule, "off_bp") > best) {
                segment = Some(int(rule, "off_bp"));
            }
        }
        if let Some(off) = segment {
            line.change("segment", share(line.total, -off));
        }
        if let Some(country) = &basket.country {
            for rule in list(&self.pricing, "countries") {
                if rule["country"] == country.as_str() && is_for(rule) {
                    line.change("country", share(line.total, int(rule, "change_bp")));
                }
            }
        }
        line
    }

    /// Rules 5 and 6: the coupons, on the whole cart.
    fn coupons(&self, basket: &Basket, now_ms: u64, expected: &mut Expected) {
        let goods = expected.subtotal;
        let now = i64::try_from(now_ms).unwrap_or(i64::MAX);
        for rule in list(&self.pricing, "coupons") {
            let code = rule["code"].as_str().unwrap_or_default();
            let entered = basket.coupons.iter().any(|c| c == code);
            let begun = rule["not_before"].as_i64().is_none_or(|at| at <= now);
            let open = rule["not_after"].as_i64().is_none_or(|at| now <= at);
            if !(entered && begun && open && goods >= int(rule, "min_total")) {
                continue;
            }
            let change = match rule["off_bp"].as_i64() {
                Some(off) => share(expected.total, -off),
                None if expected.total <= 0 => continue,
                None => -int(rule, "amount_off").min(expected.total),
            };
            expected.adjustments.push((format!("coupon.{}", code.to_ascii_lowercase()), change));
            expected.total += change;
        }
    }

    /// What the cart plugin puts into the cart by itself: rule 5 of its specification. Limits are not modelled; the
    /// replay's shop sets none that an invoice could meet.
    fn gift(&self, basket: &Basket) -> Option<(String, u32)> {
        let gift = &self.cart["gift"];
        let price = |sku: &String| self.catalogue.get(sku).map_or(0, |article| article.price);
        let worth: i64 = basket.lines.iter().map(|(sku, quantity)| price(sku) * i64::from(*quantity)).sum();
        let sku = gift["sku"].as_str().filter(|_| worth >= int(gift, "when_total_at_least"))?;
        let quantity = gift["quantity"].as_u64().unwrap_or(1);
        Some((sku.to_owned(), u32::try_from(quantity).unwrap_or(u32::MAX)))
    }
}

impl ExpectedLine {
    fn change(&mut self, code: &str, by: i64) {
        self.adjustments.push((code.to_owned(), by));
        self.total += by;
    }
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().map_or(&[], Vec::as_slice)
}

fn int(value: &Value, name: &str) -> i64 {
    value[name].as_i64().unwrap_or(0)
}

/// `basis_points` of `amount`, rounded half away from zero.
fn share(amount: i64, basis_points: i64) -> i64 {
    let product = i128::from(amount) * i128::from(basis_points);
    let (whole, rest) = (product / 10_000, product % 10_000);
    let carry = if rest.abs() * 2 >= 10_000 { product.signum() } else { 0 };
    i64::try_from(whole + carry).unwrap_or(i64::MAX)
}

/// Every place where the quote of a node is not what was expected, both sides said. Labels are the shop's free choice
/// and are not compared.
pub(super) fn differences(expected: &Expected, quote: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let mut check = |what: String, said: String, wanted: String| {
        if said != wanted {
            found.push(format!("{what}: the node says {said}, expected {wanted}"));
        }
    };
    let said: BTreeMap<&str, &Value> =
        list(quote, "lines").iter().map(|l| (l["line"].as_str().unwrap_or_default(), l)).collect();
    check("lines".into(), said.len().to_string(), expected.lines.len().to_string());
    for (id, line) in &expected.lines {
        let nothing = Value::Null;
        let node = said.get(id.as_str()).copied().unwrap_or(&nothing);
        for (field, wanted) in [
            ("quantity", i64::from(line.quantity)),
            ("unit_price", line.unit_price),
            ("amount", line.amount),
            ("total", line.total),
        ] {
            check(format!("{id} {field}"), node[field].to_string(), wanted.to_string());
        }
        check(format!("{id} adjustments"), changes(node), format!("{:?}", line.adjustments));
    }
    for id in said.keys().filter(|id| !expected.lines.contains_key(**id)) {
        check(format!("{id} quantity"), said[id]["quantity"].to_string(), "no such line".into());
    }
    check("adjustments".into(), changes(quote), format!("{:?}", expected.adjustments));
    check("subtotal".into(), quote["subtotal"].to_string(), expected.subtotal.to_string());
    check("total".into(), quote["total"].to_string(), expected.total.to_string());
    for name in ["fallbacks", "unavailable"] {
        let none = list(quote, name).is_empty();
        check(name.into(), if none { "none".into() } else { quote[name].to_string() }, "none".into());
    }
    found
}

fn changes(value: &Value) -> String {
    let list: Vec<(String, i64)> = list(value, "adjustments")
        .iter()
        .map(|a| (a["code"].as_str().unwrap_or_default().to_owned(), int(a, "amount")))
        .collect();
    format!("{list:?}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn oracle(pricing: Value) -> Oracle {
        let article =
            |price, tags: &[&str]| Article { price, tags: tags.iter().map(|t| (*t).to_owned()).collect() };
        let catalogue =
            [("MUG", article(255, &["mug"])), ("POT", article(1_999, &[])), ("PEN", article(1, &[]))];
        Oracle {
            catalogue: catalogue.into_iter().map(|(sku, a)| (sku.to_owned(), a)).collect(),
            pricing,
            cart: Value::Null,
            cart_plugin: "cart".into(),
        }
    }

    fn basket(lines: &[(&str, u32)]) -> Basket {
        Basket { lines: lines.iter().map(|(s, q)| ((*s).to_owned(), *q)).collect(), ..Basket::default() }
    }

    #[test]
    fn shares_round_half_away_from_zero() {
        for (amount, basis_points, result) in [
            (255, -1_000, -26),
            (255, 1_000, 26),
            (5, 5_000, 3),
            (1, 4_999, 0),
            (-5, 5_000, -3),
            (0, 9_999, 0),
        ] {
            assert_eq!(share(amount, basis_points), result, "{amount} at {basis_points}");
        }
    }

    #[test]
    fn quantity_breaks_take_the_first_rule_and_its_greatest_step() {
        let rules = json!({ "quantity_breaks": [
            { "tag": "mug", "breaks": [{ "at": 12, "off_bp": 500 }, { "at": 48, "off_bp": 1000 }] },
            { "breaks": [{ "at": 2, "off_bp": 100 }] },
        ]});
        // A mug below its own first step gets nothing, not the general rule.
        for (sku, quantity, total) in [
            ("MUG", 11, 2_805),
            ("MUG", 12, 2_907),
            ("MUG", 47, 11_386),
            ("MUG", 48, 11_016),
            ("POT", 1, 1_999),
            ("POT", 2, 3_958),
        ] {
            let quote = oracle(rules.clone()).quote(&basket(&[(sku, quantity)]), 0);
            assert_eq!(quote.total, total, "{quantity} {sku}");
        }
    }

    #[test]
    fn segment_then_countries_each_on_what_is_left() {
        let rules = json!({
            "segments": [{ "segment": "a", "off_bp": 500 }, { "segment": "trade", "off_bp": 1250 }],
            "countries": [
                { "country": "FR", "change_bp": 300 }, { "country": "FR", "sku": "MUG", "change_bp": -100 },
                { "country": "DE", "change_bp": 9000 },
            ],
        });
        let mut basket = basket(&[("MUG", 1), ("POT", 1)]);
        basket.segments = vec!["a".into(), "trade".into()];
        basket.country = Some("FR".into());
        let quote = oracle(rules).quote(&basket, 0);
        // 255 - 32 = 223, + 7 = 230, - 2 = 228; 1999 - 250 = 1749, + 52 = 1801.
        let adjustments = [("segment", -32), ("country", 7), ("country", -2)].map(|(c, a)| (c.to_owned(), a));
        assert_eq!(quote.lines["MUG"].adjustments, adjustments);
        assert_eq!((quote.lines["POT"].total, quote.total), (1_801, 2_029));
    }

    #[test]
    fn coupons_look_at_the_goods_and_reduce_what_is_left() {
        let rules = json!({ "coupons": [
            { "code": "TEN", "off_bp": 1000, "min_total": 2000 },
            { "code": "FIVER", "amount_off": 500, "min_total": 1999 },
            { "code": "OVER", "off_bp": 1000, "not_after": 99 },
            { "code": "ALL", "amount_off": 100_000 },
            { "code": "MORE", "amount_off": 1 },
        ]});
        let with = |coupons: &[&str], lines: &[(&str, u32)]| {
            let mut basket = basket(lines);
            basket.coupons = coupons.iter().map(|c| (*c).to_owned()).collect();
            let quote = oracle(rules.clone()).quote(&basket, 100);
            (quote.total, quote.adjustments.len())
        };
        assert_eq!(with(&["TEN"], &[("POT", 1)]), (1_999, 0), "below its least total");
        assert_eq!(
            with(&["FIVER", "TEN"], &[("POT", 1), ("PEN", 1)]),
            (1_300, 2),
            "in the order of the settings"
        );
        assert_eq!(with(&["OVER"], &[("POT", 2)]), (3_998, 0), "no longer valid");
        assert_eq!(with(&["ALL", "MORE"], &[("POT", 1)]), (0, 1), "nothing is left to reduce");
        assert_eq!(with(&["STRANGER"], &[("POT", 1)]), (1_999, 0), "a code that the shop does not know");
    }

    #[test]
    fn the_gift_comes_with_the_worth_of_the_shoppers_own_lines_and_is_free() {
        let mut oracle = oracle(json!({ "quantity_breaks": [{ "breaks": [{ "at": 1, "off_bp": 5000 }] }] }));
        oracle.cart = json!({ "gift": { "sku": "MUG", "when_total_at_least": 1999, "quantity": 3 } });
        let quote = oracle.quote(&basket(&[("PEN", 1_998)]), 0);
        assert!(!quote.lines.contains_key("MUG~cart"));
        // What counts is the price before any discount.
        let quote = oracle.quote(&basket(&[("POT", 1)]), 0);
        let gift = &quote.lines["MUG~cart"];
        assert_eq!((gift.quantity, gift.amount, gift.total), (3, 765, 0));
        assert_eq!(gift.adjustments, [("gift".to_owned(), -765)]);
        assert_eq!(quote.total, 999, "half of 1999 off is 1000, rounded away from zero");
        oracle.pricing = json!({ "gifts_free": false });
        assert_eq!(oracle.quote(&basket(&[("POT", 1)]), 0).total, 2_764);
    }

    #[test]
    fn a_difference_names_both_sides() {
        let expected = oracle(json!({})).quote(&basket(&[("MUG", 2)]), 0);
        let line = |total: i64| json!({ "line": "MUG", "quantity": 2, "unit_price": 255, "amount": 510, "adjustments": [], "total": total });
        let quote = |total: i64| json!({ "lines": [line(total)], "adjustments": [], "subtotal": total, "total": total, "fallbacks": [] });
        assert_eq!(differences(&expected, &quote(510)), Vec::<String>::new());
        let found = differences(&expected, &quote(509));
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].contains("509") && found[0].contains("510"), "{found:?}");
    }
}
