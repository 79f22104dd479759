//! Ten per cent off every product with a tag. Settings: `{"tag": "bestseller", "off_bp": 1000}`

use serde::Deserialize;
use souk_sdk::prelude::*;

pub struct Plugin;

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    tag: String,
    off_bp: i32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { tag: "bestseller".to_owned(), off_bp: 1000 }
    }
}

impl Pricing for Plugin {
    fn adjust(ctx: &Context, lines: &[Line]) -> Answer<Vec<Adjustment>> {
        let Settings { tag, off_bp } = ctx.settings_as()?;
        let tagged = lines.iter().filter(|line| line.product.has_tag(&tag));
        Ok(tagged.map(|line| Adjustment::percent(line, -off_bp, "{{code}}", "{{title}}")).collect())
    }
}

souk_sdk::export_pricing!(Plugin);

#[cfg(test)]
mod tests {
    use souk_sdk::testing;

    use super::*;

    fn cart() -> [Line; 2] {
        let mug = testing::tagged("MUG", 1250, &["bestseller"]);
        [testing::line(0, mug, 2), testing::line(1, testing::product("BOWL", 900), 1)]
    }

    #[test]
    fn only_what_carries_the_tag_is_reduced() {
        let said = Plugin::adjust(&testing::context(), &cart()).expect("an answer");
        assert_eq!(said.len(), 1);
        assert_eq!((said[0].target, said[0].effect), (Target::Line(0), Effect::Percent(-1000)));
    }

    #[test]
    fn the_settings_say_what_and_how_much() {
        let ctx = testing::context_with(r#"{"tag": "sale", "off_bp": 500}"#);
        assert_eq!(Plugin::adjust(&ctx, &cart()), Ok(vec![]));
    }
}
