//! A badge for what is reduced, and what is sold out goes to the end of the page.

use souk_sdk::prelude::*;

pub struct Plugin;

impl Catalog for Plugin {
    fn present(_: &Context, products: &[Product]) -> Answer<Vec<Presentation>> {
        Ok(products.iter().map(present).collect())
    }
}

fn present(product: &Product) -> Presentation {
    let rank = if product.stock == StockHint::Out { -1 } else { 0 };
    let badges = match product.compare_at {
        Some(was) if was > product.price => vec![format!("-{} %", (was - product.price) * 100 / was)],
        _ => vec![],
    };
    Presentation { rank, badges, ..Presentation::of(product) }
}

souk_sdk::export_catalog!(Plugin);

#[cfg(test)]
mod tests {
    use souk_sdk::testing;

    use super::*;

    #[test]
    fn a_reduced_product_says_by_how_much() {
        let kettle = Product { compare_at: Some(5600), ..testing::product("KETTLE", 4800) };
        assert_eq!(present(&kettle).badges, ["-14 %"]);
    }

    #[test]
    fn what_is_sold_out_goes_to_the_end() {
        let gone = Product { stock: StockHint::Out, ..testing::product("BOWL", 900) };
        assert!(present(&gone).rank < present(&testing::product("MUG", 1250)).rank);
    }
}
