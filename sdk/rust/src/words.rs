//! Short ways to say what plugins say most.

use crate::{Adjustment, Context, Effect, Line, Minor, Note, Presentation, Product, Refusal, Target};

/// The host accepts at most this much of a refusal's message.
const MESSAGE_BYTES_MAX: usize = 500;

impl Adjustment {
    /// `basis_points` of the running amount: -1000 is ten per cent off. `target` is a [`Line`] or [`Target::Cart`].
    pub fn percent(target: impl Into<Target>, basis_points: i32, code: &str, label: &str) -> Self {
        Self::new(target, Effect::Percent(basis_points), code, label)
    }

    /// Added to the running amount: -250 is 2.50 off in a currency with two decimals.
    pub fn amount(target: impl Into<Target>, amount: Minor, code: &str, label: &str) -> Self {
        Self::new(target, Effect::Amount(amount), code, label)
    }

    /// Replaces the price of one unit of a line.
    pub fn unit_price(line: &Line, price: Minor, code: &str, label: &str) -> Self {
        Self::new(line, Effect::UnitPrice(price), code, label)
    }

    fn new(target: impl Into<Target>, effect: Effect, code: &str, label: &str) -> Self {
        Self { target: target.into(), effect, code: code.to_owned(), label: label.to_owned() }
    }
}

impl From<&Line> for Target {
    fn from(line: &Line) -> Self {
        Self::Line(line.id)
    }
}

impl Presentation {
    /// Says nothing yet about a product.
    pub fn of(product: &Product) -> Self {
        Self { sku: product.sku.clone(), hidden: false, rank: 0, badges: Vec::new(), title: None }
    }

    /// Leaves the product out.
    pub fn hidden(product: &Product) -> Self {
        Self { hidden: true, ..Self::of(product) }
    }
}

impl Product {
    /// Whether the product carries exactly this tag.
    pub fn has_tag(&self, tag: &str) -> bool {
        self.tags.iter().any(|t| t == tag)
    }

    /// The value of an attribute.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

impl Note {
    /// A remark to keep with the order.
    pub fn new(code: &str, text: &str) -> Self {
        Self { code: code.to_owned(), text: text.to_owned() }
    }
}

impl Refusal {
    /// A "no". The code is `[a-z0-9_]{1,64}`; the message is for the shopper, and is cut after 500 bytes.
    pub fn new(code: &str, message: &str) -> Self {
        let mut end = message.len().min(MESSAGE_BYTES_MAX);
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        Self { code: code.to_owned(), message: message[..end].to_owned() }
    }
}

impl Context {
    /// The settings as a type of the plugin's own. No settings (the empty string or `null`) read as `{}`. What cannot
    /// be read is a refusal with code `bad_settings` and the place of the mistake; give the type
    /// `#[serde(deny_unknown_fields)]`, and a misspelt rule is a clear message instead of a silent nothing.
    ///
    /// ```
    /// # use souk_sdk::{Refusal, testing};
    /// #[derive(serde::Deserialize)]
    /// #[serde(deny_unknown_fields)]
    /// struct Settings {
    ///     off_bp: u32,
    /// }
    ///
    /// let settings: Settings = testing::context_with(r#"{ "off_bp": 500 }"#).settings_as()?;
    /// assert_eq!(settings.off_bp, 500);
    ///
    /// let refused = testing::context_with(r#"{ "off": 500 }"#).settings_as::<Settings>().err().unwrap();
    /// assert_eq!(refused.message, "settings: unknown field `off`, expected `off_bp` at line 1 column 7");
    /// # Ok::<(), Refusal>(())
    /// ```
    #[cfg(feature = "json")]
    pub fn settings_as<T: serde::de::DeserializeOwned>(&self) -> Result<T, Refusal> {
        let text = match self.settings.trim() {
            "" | "null" => "{}",
            text => text,
        };
        serde_json::from_str(text).map_err(|e| Refusal::new("bad_settings", &format!("settings: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn a_long_refusal_is_cut_between_characters() {
        let refusal = Refusal::new("too_long", &"é".repeat(400));
        assert_eq!(refusal.message.len(), 500);
        let refusal = Refusal::new("too_long", &format!("x{}", "é".repeat(400)));
        assert_eq!(refusal.message.len(), 499);
    }

    #[test]
    fn products_answer_for_their_tags_and_attributes() {
        let mut product = testing::tagged("MUG", 255, &["kitchen"]);
        product.attributes.push(("colour".to_owned(), "blue".to_owned()));
        assert!(product.has_tag("kitchen"));
        assert!(!product.has_tag("kit"));
        assert_eq!(product.attribute("colour"), Some("blue"));
        assert_eq!(product.attribute("size"), None);
    }

    #[cfg(feature = "json")]
    #[test]
    fn no_settings_are_empty_settings() {
        for settings in ["", " ", "null", "{}"] {
            let map: std::collections::BTreeMap<String, u32> =
                testing::context_with(settings).settings_as().expect("readable");
            assert!(map.is_empty());
        }
    }
}
