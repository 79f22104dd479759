//! The merge rules in table form: which price and title win, what is refused.

use super::*;

const SHOP: &str = "sku,title,description,price,compare_at,floor,stock,tags,attributes";

/// Text in, products and refusals out: `SKU price[/compare_at] "title" …` and `line name`.
fn check(heading: &str, rows: &[&str]) -> (Vec<ProductRow>, Vec<(u64, &'static str)>) {
    check_with(heading, rows, false)
}

fn check_with(heading: &str, rows: &[&str], allow_free: bool) -> (Vec<ProductRow>, Vec<(u64, &'static str)>) {
    let headings: Vec<String> = heading.split(',').map(str::to_owned).collect();
    let map = ColumnMap::new(&headings, &[]).expect("the headings of a test make a catalogue");
    let mut merge = Merge::new(map, Rules { currency: "GBP".parse().expect("a currency"), allow_free });
    let mut refused = Vec::new();
    for (line, row) in (2..).zip(rows) {
        let fields: Vec<&str> = row.split(',').collect();
        if let Err(refusal) = merge.row(line, &fields) {
            refused.push((line, refusal.name()));
        }
    }
    (merge.finish(), refused)
}

#[test]
fn a_row_becomes_a_product_with_exact_amounts() {
    let (products, refused) =
        check(SHOP, &["A-1, Mug ,A mug,2.55,3.0,1.10,7,kitchen; sale ,colour=red;size=L"]);
    assert_eq!(refused, []);
    assert_eq!(
        serde_json::to_value(&products).expect("serialises"),
        serde_json::json!([{
            "sku": "A-1", "title": "Mug", "description": "A mug", "price": 255, "compare_at": 300, "floor": 110,
            "stock": 7, "tags": ["kitchen", "sale"], "attributes": [["colour", "red"], ["size", "L"]],
        }])
    );
}

#[test]
fn each_wrong_row_is_refused_by_name_and_spoils_no_other() {
    for (row, name) in [
        ("A,t,d,1.00,,,1,", "columns"),
        (",t,d,1.00,,,1,,", "no_sku"),
        ("a~b,t,d,1.00,,,1,,", "bad_sku"),
        ("A,t,d,,,,1,,", "no_price"),
        ("A,t,d,1.005,,,1,,", "bad_price"),
        ("A,t,d,£1,,,1,,", "bad_price"),
        ("A,t,d,1e3,,,1,,", "bad_price"),
        ("A,t,d,99999999999999999999,,,1,,", "bad_price"),
        ("A,t,d,0.00,,,1,,", "zero_price"),
        ("A,t,d,-1,,,1,,", "negative_price"),
        ("A,t,d,1,-2,,1,,", "negative_price"),
        ("A,t,d,1,,,-1,,", "bad_stock"),
        ("A,t,d,1,,,many,,", "bad_stock"),
        ("A,t,d,1,,,1,,colour", "bad_attribute"),
    ] {
        let (products, refused) = check(SHOP, &[row, "GOOD,t,d,1,,,1,,"]);
        assert_eq!(refused, [(2, name)], "{row}");
        assert_eq!(products.len(), 1, "{row}");
    }
}

#[test]
fn free_products_are_accepted_when_asked_for() {
    let (products, refused) = check_with("sku,title,price", &["GIFT,Sample,0"], true);
    assert_eq!((products[0].price, refused), (Minor::ZERO, vec![]));
}

#[test]
fn the_price_is_the_one_seen_most_often_and_of_equals_the_latest() {
    let of = |rows: &[&str]| check("sku,title,price", rows).0[0].price.0;
    assert_eq!(of(&["A,t,2.55", "A,t,2.10", "A,t,2.55", "A,t,9.99"]), 255, "most often");
    assert_eq!(of(&["A,t,2.55", "A,t,2.10"]), 210, "of equals the latest");
    assert_eq!(of(&["A,t,2.10", "A,t,2.55", "A,t,2.55", "A,t,2.10"]), 210, "of equals the one seen last");
    assert_eq!(of(&["A,t,0", "A,t,-5", "A,t,1.25"]), 125, "a refused row has no say");
    assert_eq!(of(&["A,t,2.5", "A,t,2.10", "A,t,2.50"]), 250, "spelling does not split the count");
}

#[test]
fn the_title_is_the_most_frequent_that_is_not_empty() {
    let of = |rows: &[&str]| check("sku,title,price", rows).0[0].title.clone();
    assert_eq!(of(&["A,,1", "A,,1", "A,MUG,1"]), "MUG");
    assert_eq!(of(&["A,MUG,1", "A,damaged?,1", "A,MUG,1"]), "MUG");
    assert_eq!(of(&["A,OLD,1", "A,NEW,1"]), "NEW");
    assert_eq!(of(&["A,,1"]), "A", "a product without a title is called by its SKU");
}

#[test]
fn compare_at_and_floor_belong_to_the_chosen_price() {
    let (products, _) = check("sku,title,price,compare_at,floor", &["A,t,2,4,1", "A,t,2,3,", "A,t,5,6,5"]);
    assert_eq!(
        (products[0].price, products[0].compare_at, products[0].floor),
        (Minor(200), Some(Some(Minor(300))), Some(None))
    );
}

#[test]
fn a_file_without_the_columns_says_nothing_of_floor_and_compare_at_and_an_empty_cell_says_null() {
    let json = |heading: &str, row: &str| serde_json::to_value(&check(heading, &[row]).0[0]).expect("JSON");
    let silent = json("sku,title,price", "A,t,2");
    assert!(silent.get("floor").is_none() && silent.get("compare_at").is_none(), "{silent}");
    let cleared = json("sku,title,price,compare_at,floor", "A,t,2,,");
    assert!(cleared["floor"].is_null() && cleared["compare_at"].is_null(), "{cleared}");
    assert!(cleared.get("floor").is_some() && cleared.get("compare_at").is_some(), "{cleared}");
}

#[test]
fn a_thousand_prices_of_one_product_still_end_with_the_latest() {
    let rows: Vec<String> = (1..=1_000).map(|pence| format!("POST,postage,{pence}.01")).collect();
    let rows: Vec<&str> = rows.iter().map(String::as_str).collect();
    assert_eq!(check("sku,title,price", &rows).0[0].price, Minor(100_001));
}

#[test]
fn the_same_rows_give_the_same_products_in_the_order_of_their_skus() {
    let rows = ["B,b,1", "A,a,1", "C,c,1"];
    let (first, _) = check("sku,title,price", &rows);
    assert_eq!(first, check("sku,title,price", &rows).0);
    assert_eq!(first.iter().map(|p| p.sku.as_str()).collect::<Vec<_>>(), ["A", "B", "C"]);
}
