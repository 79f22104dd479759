//! No order below a least amount; a note on large ones. Settings: `{"least": 500}`

use serde::Deserialize;
use souk_sdk::prelude::*;

pub struct Plugin;

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    least: Minor,
}

impl Default for Settings {
    fn default() -> Self {
        Self { least: 500 }
    }
}

impl Checkout for Plugin {
    fn review(ctx: &Context, draft: &OrderDraft) -> Answer<Vec<Note>> {
        let Settings { least } = ctx.settings_as()?;
        if draft.total < least {
            let message = format!("Orders begin at {}.{:02} {}.", least / 100, least % 100, ctx.currency);
            return Err(Refusal::new("order_too_small", &message));
        }
        let large = draft.total >= 10_000;
        Ok(large.then(|| Note::new("signature", "Deliver against signature")).into_iter().collect())
    }
}

souk_sdk::export_checkout!(Plugin);

#[cfg(test)]
mod tests {
    use souk_sdk::testing;

    use super::*;

    fn review(total: Minor) -> Answer<Vec<Note>> {
        Plugin::review(&testing::context(), &OrderDraft { lines: vec![], total })
    }

    #[test]
    fn a_small_order_is_refused_with_a_reason() {
        let refused = review(499).expect_err("a refusal");
        assert_eq!((refused.code.as_str(), refused.message.as_str()), ("order_too_small", "Orders begin at 5.00 GBP."));
    }

    #[test]
    fn a_large_order_is_delivered_against_signature() {
        assert_eq!(review(9_999), Ok(vec![]));
        assert_eq!(review(10_000).expect("notes")[0].code, "signature");
    }
}
