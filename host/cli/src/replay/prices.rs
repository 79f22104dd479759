//! What the file itself says a thing costs, read without a line of the platform's import.
//!
//! The oracle computes from these prices, so a mistake of the import (a decimal that was rounded, the wrong one of many
//! prices) shows as a difference instead of as two equal mistakes. It has its own reader of decimals and its own count,
//! and knows nothing of products, titles or HTTP.
//!
//! **The rule.** A row counts if it has as many columns as the heading, its stock code is a SKU, and its price is a
//! positive number of pounds that is a whole number of pence. The price seen in most rows is the price; of equals the
//! one that was seen last.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Read;
use std::path::Path;

use anyhow::Context as _;
use souk_commerce::id::Sku;

use super::books::Findings;
use super::invoices;
use super::oracle::{Article, Catalogue};

/// Pence by stock code.
pub(super) type Prices = BTreeMap<String, i64>;

/// Digits of a number of pounds: enough for every amount that the shop accepts, and no overflow.
const DIGITS_MAX: usize = 12;

pub(super) fn read(file: &Path) -> anyhow::Result<Prices> {
    invoices::open(file).and_then(parse).with_context(|| format!("read the prices of {}", file.display()))
}

fn parse(input: impl Read) -> anyhow::Result<Prices> {
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(input);
    let heading = reader.byte_headers().context("read the heading")?.clone();
    let column = |name: &str| {
        let at =
            heading.iter().position(|h| text(h).trim_start_matches('\u{feff}').eq_ignore_ascii_case(name));
        at.with_context(|| format!("the heading has no column {name}"))
    };
    let (code, price) = (column("StockCode")?, column("UnitPrice")?);
    // How often, and in which row last.
    let mut seen: HashMap<String, HashMap<i64, (u64, u64)>> = HashMap::new();
    let mut record = csv::ByteRecord::new();
    let mut row = 0_u64;
    while reader.read_byte_record(&mut record).context("read a row")? {
        row += 1;
        if record.len() != heading.len() {
            continue;
        }
        let (code, pence) = (text(&record[code]), pence(&text(&record[price])));
        if let Some(pence) = pence.filter(|_| code.parse::<Sku>().is_ok()) {
            let (count, last) = seen.entry(code).or_default().entry(pence).or_default();
            (*count, *last) = (*count + 1, row);
        }
    }
    let most = |prices: HashMap<i64, (u64, u64)>| prices.into_iter().max_by_key(|(_, seen)| *seen);
    Ok(seen.into_iter().filter_map(|(code, prices)| Some((code, most(prices)?.0))).collect())
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(field).trim().to_owned()
}

/// Exactly: `2.5` and `2.500` are 250, `2.505` is nothing, and neither is what is not positive.
fn pence(text: &str) -> Option<i64> {
    let (pounds, rest) = match text.split_once('.') {
        Some((_, "")) => return None,
        Some(parts) => parts,
        None => (text, ""),
    };
    if pounds.is_empty() || !pounds.bytes().chain(rest.bytes()).all(|b| b.is_ascii_digit()) {
        return None;
    }
    let pounds = pounds.trim_start_matches('0');
    if pounds.len() > DIGITS_MAX {
        return None;
    }
    let mut amount = 0_i64;
    for digit in pounds.bytes().chain(rest.bytes().chain(*b"00").take(2)) {
        amount = amount * 10 + i64::from(digit - b'0');
    }
    (amount > 0 && rest.bytes().skip(2).all(|b| b == b'0')).then_some(amount)
}

/// The catalogue to compute with: no rule of the replay asks for tags.
pub(super) fn catalogue(prices: &Prices) -> Catalogue {
    prices.iter().map(|(sku, price)| (sku.clone(), Article { price: *price, tags: Vec::new() })).collect()
}

/// Where the catalogue that a node sells is not what the file says.
pub(super) fn differences(file: &Prices, node: &Prices) -> Findings {
    let mut found = Findings::default();
    let codes: BTreeSet<&String> = file.keys().chain(node.keys()).collect();
    for code in codes {
        let say = |price: Option<&i64>| price.map_or_else(|| "nothing".to_owned(), i64::to_string);
        let (wanted, sold) = (file.get(code), node.get(code));
        if wanted != sold {
            found.add(format!("{code}: the file says {}, the nodes sell at {}", say(wanted), say(sold)));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import;

    const FILE: &str = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\r\n\
        1,A,mug,1,d,2.55,,France\r\n1,A,mug,1,d,2.10,,France\r\nC1,A,mug,-1,d,2.55,,France\r\n\
        1,B,pen,1,d,1.10,,France\r\n1,B,pen,1,d,0.9,,France\r\n1,B,pen,1,d,0,,France\r\n\
        1,PADS,pads,1,d,0.001,,France\r\n1,,none,1,d,5,,France\r\n1,C,short\r\n\r\n1,D,last,1,d,7,,France";

    #[test]
    fn pence_are_exact_or_nothing() {
        for (text, wanted) in [
            ("2.55", Some(255)),
            ("2.5", Some(250)),
            ("0.29", Some(29)),
            ("2.500", Some(250)),
            ("0012", Some(1_200)),
            ("38970", Some(3_897_000)),
            ("2.505", None),
            ("0", None),
            ("0.00", None),
            ("-1", None),
            ("1e3", None),
            (".5", None),
            ("5.", None),
            ("", None),
            ("1,5", None),
            ("9999999999999", None),
        ] {
            assert_eq!(pence(text), wanted, "{text:?}");
        }
    }

    #[test]
    fn the_file_and_the_import_agree_and_a_wrong_price_is_found() {
        let prices = parse(FILE.as_bytes()).expect("prices");
        let all: Vec<_> = prices.iter().map(|(sku, price)| (sku.as_str(), *price)).collect();
        assert_eq!(all, [("A", 255), ("B", 90), ("D", 700)], "most often; of equals the latest");
        let rules = import::Rules { currency: "GBP".parse().expect("a currency"), allow_free: false };
        let plan = import::Plan { choices: &[], rules, refused: None };
        let (rows, _) = import::read(FILE.as_bytes(), &plan).expect("a catalogue");
        let mut imported: Prices = rows.iter().map(|row| (row.sku.to_string(), row.price.0)).collect();
        assert_eq!(differences(&prices, &imported).count, 0);
        imported.insert("A".into(), 210);
        imported.remove("D");
        imported.insert("E".into(), 1);
        let found = differences(&prices, &imported);
        assert_eq!(found.count, 3);
        assert_eq!(found.described[0], "A: the file says 255, the nodes sell at 210");
    }
}
