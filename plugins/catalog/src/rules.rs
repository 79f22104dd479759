//! The rules, in the order of the crate's first page.

use souk_sdk::prelude::*;

use crate::settings::Settings;

/// The host takes at most so many badges for one product.
pub const BADGES_MAX: usize = 8;

pub(crate) fn present(settings: &Settings, ctx: &Context, product: &Product) -> Option<Presentation> {
    let hidden = settings
        .hide
        .iter()
        .filter(|rule| product.has_tag(&rule.tag))
        .any(|rule| rule.countries.is_empty() || rule.countries.contains(&ctx.country));
    if hidden {
        return Some(Presentation::hidden(product));
    }
    let rank = settings
        .rank
        .iter()
        .filter(|rule| product.has_tag(&rule.tag))
        .fold(0, |sum: i32, rule| sum.saturating_add(rule.by));
    let badges = badges(settings, product);
    (rank != 0 || !badges.is_empty()).then(|| Presentation { rank, badges, ..Presentation::of(product) })
}

fn badges(settings: &Settings, product: &Product) -> Vec<String> {
    let tagged =
        settings.badges.iter().filter(|rule| product.has_tag(&rule.tag)).map(|rule| rule.badge.clone());
    let reduced =
        reduction(product).filter(|_| settings.reduced_badge).map(|percent| format!("-{percent} %"));
    let low = match product.stock {
        StockHint::Low(left) if left <= settings.low_stock_at => {
            Some(settings.low_stock_badge.replace("{n}", &left.to_string()))
        }
        _ => None,
    };
    tagged.chain(reduced).chain(low).take(BADGES_MAX).collect()
}

/// Whole per cent below the price that is struck through.
fn reduction(product: &Product) -> Option<i128> {
    let compare_at = i128::from(product.compare_at.filter(|compare_at| *compare_at > 0)?);
    let percent = (compare_at - i128::from(product.price)) * 100 / compare_at;
    (1..=100).contains(&percent).then_some(percent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Shelf;
    use souk_sdk::testing;

    const SETTINGS: &str = r#"{
        "hide": [ { "tag": "draft" }, { "tag": "blade", "countries": ["FR", "DE"] } ],
        "rank": [ { "tag": "best", "by": 100 }, { "tag": "old", "by": -30 }, { "tag": "dear", "by": 2147483647 } ],
        "badges": [ { "tag": "new", "badge": "New" }, { "tag": "best", "badge": "Loved" } ],
        "low_stock_at": 3
    }"#;

    fn show(country: &str, product: Product) -> String {
        let ctx = Context { country: country.to_owned(), ..testing::context_with(SETTINGS) };
        match Shelf::present(&ctx, &[product]).expect("settings are right").as_slice() {
            [] => "as it is".to_owned(),
            [said] if said.hidden => "hidden".to_owned(),
            [said] => format!("{} {}", said.rank, said.badges.join("|")),
            _ => panic!("one product, one presentation"),
        }
    }

    #[test]
    fn each_rule_says_its_part() {
        let tagged = |tags: &[&str]| testing::tagged("P", 800, tags);
        let table = [
            ("", tagged(&[]), "as it is"),
            ("", tagged(&["draft", "best"]), "hidden"),
            ("FR", tagged(&["blade"]), "hidden"),
            ("GB", tagged(&["blade"]), "as it is"),
            ("", tagged(&["blade"]), "as it is"),
            ("", tagged(&["best", "old"]), "70 Loved"),
            ("", tagged(&["best", "dear"]), "2147483647 Loved"),
            ("", tagged(&["best", "new"]), "100 New|Loved"),
            ("", Product { compare_at: Some(1_000), ..tagged(&["new"]) }, "0 New|-20 %"),
            // 0.9 % is no badge, 33.3 % is 33.
            ("", Product { compare_at: Some(807), ..tagged(&[]) }, "as it is"),
            ("", Product { compare_at: Some(1_200), ..tagged(&[]) }, "0 -33 %"),
            ("", Product { compare_at: Some(700), ..tagged(&[]) }, "as it is"),
            ("", Product { compare_at: Some(0), ..tagged(&[]) }, "as it is"),
            ("", Product { compare_at: Some(i64::MAX), price: i64::MIN, ..tagged(&[]) }, "as it is"),
            ("", Product { stock: StockHint::Low(3), ..tagged(&[]) }, "0 Only 3 left"),
            ("", Product { stock: StockHint::Low(4), ..tagged(&[]) }, "as it is"),
            ("", Product { stock: StockHint::Out, ..tagged(&[]) }, "as it is"),
        ];
        for (country, product, shown) in table {
            assert_eq!(show(country, product.clone()), shown, "{country} {product:?}");
        }
    }

    #[test]
    fn wrong_settings_are_a_refusal_that_says_where() {
        for (settings, says) in [
            (r#"{ "hidden": [] }"#, "unknown field `hidden`"),
            (r#"{ "rank": [ { "tag": "a", "by": "9" } ] }"#, "invalid type: string \"9\""),
            (r#"{ "hide": [ { "tag": "a", "countries": ["France"] } ] }"#, "hide[0]: country \"France\""),
            (r#"{ "badges": [ { "tag": "a", "badge": "" } ] }"#, "badges[0]"),
            (r#"{ "low_stock_badge": "{n}{n}" }"#, "more than once"),
            ("nonsense", "expected ident"),
        ] {
            let refused = Shelf::present(&testing::context_with(settings), &[]).expect_err(settings);
            assert_eq!(refused.code, "bad_settings", "{settings}");
            assert!(refused.message.contains(says), "{settings}: {}", refused.message);
        }
        let longest = format!(r#"{{ "low_stock_badge": "{}{{n}}" }}"#, "x".repeat(30));
        let ctx = testing::context_with(&longest);
        assert_eq!(Shelf::present(&ctx, &[testing::product("P", 1)]), Ok(vec![]));
    }
}
