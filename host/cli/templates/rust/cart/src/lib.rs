//! At most so many of one product in a cart. Settings: `{"most": 12}`

use serde::Deserialize;
use souk_sdk::prelude::*;

pub struct Plugin;

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    most: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { most: 12 }
    }
}

impl Cart for Plugin {
    fn review(ctx: &Context, _before: &[Line], change: &Change) -> Answer<Vec<CartOp>> {
        let Settings { most } = ctx.settings_as()?;
        Ok(match change {
            Change::Remove(_) => vec![],
            Change::Add(_) | Change::Set(_) => vec![CartOp::Cap(most)],
        })
    }
}

souk_sdk::export_cart!(Plugin);

#[cfg(test)]
mod tests {
    use souk_sdk::testing;

    use super::*;

    #[test]
    fn what_is_added_is_capped() {
        let said = Plugin::review(&testing::context(), &[], &Change::Add(("MUG".to_owned(), 40)));
        assert_eq!(said, Ok(vec![CartOp::Cap(12)]));
    }

    #[test]
    fn taking_out_is_always_allowed() {
        assert_eq!(Plugin::review(&testing::context(), &[], &Change::Remove(0)), Ok(vec![]));
    }
}
