//! Reads invoices and says of every row that it cannot use what is wrong with it.
//!
//! Pure beside reading the one file. A row is an intended line of a cart; rows of one invoice number are one shopper.
//! What a price is worth here: nothing. The shop's catalogue says what a thing costs; a row whose own price is not
//! positive is an adjustment of somebody's books and no purchase, so it is refused.

use std::collections::HashMap;
use std::fmt;
use std::io::{BufReader, Cursor, Read};
use std::path::Path;

use anyhow::Context as _;
use souk_commerce::id::{Country, Sku};

use super::country::{Destination, destination};
use crate::import;

/// Largest file after unpacking: a hundred times the data that this was written for, and a bound on a gzip bomb.
const FILE_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// Most lines of one invoice; more than any cart may hold.
const INVOICE_LINES_MAX: usize = 10_000;
/// The greatest quantity that a row may ask for; the site's limit on a line.
pub(super) const QUANTITY_MAX: u32 = 100_000;

/// One purchase of one shopper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Invoice {
    pub(super) number: String,
    pub(super) country: Option<Country>,
    /// Who bought, where the shop knows.
    pub(super) customer: Option<String>,
    pub(super) lines: Vec<(Sku, u32)>,
}

/// Why a row is not a line of a cart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Reason {
    Unreadable,
    Cancellation,
    SkuNotValid,
    QuantityNotANumber,
    QuantityNotPositive,
    QuantityTooLarge,
    PriceNotANumber,
    PriceNotPositive,
    UnknownCountry,
    NotInCatalogue,
    InvoiceTooLong,
}

impl Reason {
    /// For machines; the same word as in the JSON report.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::Cancellation => "cancellation",
            Self::SkuNotValid => "sku_not_valid",
            Self::QuantityNotANumber => "quantity_not_a_number",
            Self::QuantityNotPositive => "quantity_not_positive",
            Self::QuantityTooLarge => "quantity_too_large",
            Self::PriceNotANumber => "price_not_a_number",
            Self::PriceNotPositive => "price_not_positive",
            Self::UnknownCountry => "unknown_country",
            Self::NotInCatalogue => "not_in_catalogue",
            Self::InvoiceTooLong => "invoice_too_long",
        }
    }

    pub(super) fn sentence(self) -> &'static str {
        match self {
            Self::Unreadable => "the row has not the columns that the heading promises",
            Self::Cancellation => "the invoice is a cancellation (its number begins with C)",
            Self::SkuNotValid => "the stock code is not a valid SKU",
            Self::QuantityNotANumber => "the quantity is not a whole number",
            Self::QuantityNotPositive => "the quantity is zero or negative",
            Self::QuantityTooLarge => "the quantity is more than a line may hold",
            Self::PriceNotANumber => "the price is not a decimal number",
            Self::PriceNotPositive => {
                "the price is zero or negative: a correction of the books, not a purchase"
            }
            Self::UnknownCountry => "the country is not known",
            Self::NotInCatalogue => "the catalogue has no price for the stock code",
            Self::InvoiceTooLong => "the invoice has more lines than a cart can have",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.sentence())
    }
}

/// A row that was not used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused {
    /// Counted from 1, the heading included: what an editor shows.
    pub(super) line: u64,
    pub(super) invoice: String,
    pub(super) sku: String,
    pub(super) reason: Reason,
}

/// What a file says.
#[derive(Debug, Default)]
pub(super) struct Invoices {
    /// In the order in which they first appear.
    pub(super) invoices: Vec<Invoice>,
    pub(super) rows: u64,
    pub(super) refused: Vec<Refused>,
    /// Invoice numbers seen, those included that lost all their rows.
    pub(super) numbers: usize,
}

/// Reads `file`. `sold` says whether the catalogue has a price for a SKU.
pub(super) fn read(file: &Path, sold: impl Fn(&Sku) -> bool) -> anyhow::Result<Invoices> {
    open(file)
        .and_then(|input| parse(input, sold))
        .with_context(|| format!("read invoices from {}", file.display()))
}

/// Whether the file can be read and has the columns.
pub(super) fn check(file: &Path) -> anyhow::Result<()> {
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(open(file)?);
    Columns::find(reader.byte_headers().context("read the heading")?).map(drop)
}

/// The file's text, unpacked if its first bytes say gzip.
pub(super) fn open(file: &Path) -> anyhow::Result<Box<dyn Read>> {
    let bytes = std::fs::read(file)?;
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return Ok(Box::new(Cursor::new(bytes)));
    }
    let unpacked = flate2::bufread::MultiGzDecoder::new(Cursor::new(bytes)).take(FILE_BYTES_MAX);
    Ok(Box::new(BufReader::new(unpacked)))
}

/// Where the columns are, whatever their order.
struct Columns {
    invoice: usize,
    sku: usize,
    quantity: usize,
    price: usize,
    customer: usize,
    country: usize,
}

impl Columns {
    fn find(heading: &csv::ByteRecord) -> anyhow::Result<Self> {
        let column = |name: &str| {
            heading
                .iter()
                .position(|h| text(h).trim_start_matches('\u{feff}').eq_ignore_ascii_case(name))
                .with_context(|| format!("the heading has no column {name}; needed are InvoiceNo, StockCode, Quantity, UnitPrice, CustomerID and Country"))
        };
        Ok(Self {
            invoice: column("InvoiceNo")?,
            sku: column("StockCode")?,
            quantity: column("Quantity")?,
            price: column("UnitPrice")?,
            customer: column("CustomerID")?,
            country: column("Country")?,
        })
    }
}

/// A field as text. Old exports are not UTF-8; the columns that count are ASCII, so a stranger's byte in them only
/// makes the field invalid, and in a description it does not matter.
fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(field).trim().to_owned()
}

fn parse(input: impl Read, sold: impl Fn(&Sku) -> bool) -> anyhow::Result<Invoices> {
    // Ended by the line feed alone: of "\r\n" the parser would begin the next record at the "\n" and count one line less.
    // What is left of it is white space at the end of the last field.
    let mut reader = csv::ReaderBuilder::new()
        .flexible(true)
        .terminator(csv::Terminator::Any(b'\n'))
        .from_reader(import::ended(input));
    let columns = Columns::find(reader.byte_headers().context("read the heading")?)?;
    let width = reader.byte_headers().map_or(0, csv::ByteRecord::len);
    let mut found = Invoices::default();
    // Position of an invoice in `found.invoices`; none while it has no usable row.
    let mut places: HashMap<String, Option<usize>> = HashMap::new();
    let mut record = csv::ByteRecord::new();
    while reader.read_byte_record(&mut record).context("read a row")? {
        if record.len() == 1 && record.get(0).is_some_and(|field| field.trim_ascii().is_empty()) {
            continue;
        }
        found.rows += 1;
        let line = import::first_line(&reader, &record);
        let field = |column: usize| record.get(column).map(text).unwrap_or_default();
        let (number, sku) = (field(columns.invoice), field(columns.sku));
        let place = places.entry(number.clone()).or_default();
        let usable =
            if record.len() == width { usable(&columns, &field, &sold) } else { Err(Reason::Unreadable) };
        let refuse = |reason| Refused { line, invoice: number.clone(), sku: sku.clone(), reason };
        match usable {
            Err(reason) => found.refused.push(refuse(reason)),
            Ok((sku, quantity, country)) => {
                let at = *place.get_or_insert_with(|| {
                    let customer = Some(field(columns.customer)).filter(|c| !c.is_empty());
                    found.invoices.push(Invoice {
                        number: number.clone(),
                        country,
                        customer,
                        lines: Vec::new(),
                    });
                    found.invoices.len() - 1
                });
                let lines = &mut found.invoices[at].lines;
                if lines.len() < INVOICE_LINES_MAX {
                    lines.push((sku, quantity));
                } else {
                    found.refused.push(refuse(Reason::InvoiceTooLong));
                }
            }
        }
    }
    found.numbers = places.len();
    Ok(found)
}

/// The line that a row asks for, or the first thing that is wrong with it.
fn usable(
    columns: &Columns,
    field: &impl Fn(usize) -> String,
    sold: &impl Fn(&Sku) -> bool,
) -> Result<(Sku, u32, Option<Country>), Reason> {
    if field(columns.invoice).is_empty() {
        return Err(Reason::Unreadable);
    }
    if field(columns.invoice).starts_with(['C', 'c']) {
        return Err(Reason::Cancellation);
    }
    let sku: Sku = field(columns.sku).parse().map_err(|_| Reason::SkuNotValid)?;
    let quantity: i64 = field(columns.quantity).parse().map_err(|_| Reason::QuantityNotANumber)?;
    if quantity <= 0 {
        return Err(Reason::QuantityNotPositive);
    }
    let quantity =
        u32::try_from(quantity).ok().filter(|q| *q <= QUANTITY_MAX).ok_or(Reason::QuantityTooLarge)?;
    let price: f64 = field(columns.price).parse().map_err(|_| Reason::PriceNotANumber)?;
    if !price.is_finite() {
        return Err(Reason::PriceNotANumber);
    }
    // Only the sign is looked at; what a thing costs is the catalogue's word, read exactly elsewhere.
    if price <= 0.0 {
        return Err(Reason::PriceNotPositive);
    }
    let country = match destination(&field(columns.country)) {
        None => return Err(Reason::UnknownCountry),
        Some(Destination::Nowhere) => None,
        Some(Destination::To(country)) => Some(country),
    };
    if sold(&sku) { Ok((sku, quantity, country)) } else { Err(Reason::NotInCatalogue) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADING: &str = "InvoiceNo,StockCode,Description,Quantity,UnitPrice,CustomerID,Country\r\n";

    fn read_text(rows: &str) -> Invoices {
        parse(format!("{HEADING}{rows}").as_bytes(), |sku| sku.as_str() != "NOPRICE")
            .expect("a readable file")
    }

    #[test]
    fn rows_of_one_number_are_one_shopper_in_the_order_of_the_file() {
        let found = read_text(
            "1,A,thing,2,1.50,17850,United Kingdom\r\n2,B,\"a, b\",1,3,,EIRE\r\n1,C,thing,1,0.01,17850,United Kingdom\r\n",
        );
        assert_eq!((found.rows, found.numbers, found.refused.len()), (3, 2, 0));
        let sku = |s: &str| s.parse::<Sku>().expect("a sku");
        assert_eq!(found.invoices[0].lines, [(sku("A"), 2), (sku("C"), 1)]);
        assert_eq!(found.invoices[0].customer.as_deref(), Some("17850"));
        assert_eq!(found.invoices[1].customer, None);
        assert_eq!(found.invoices[1].country, "IE".parse().ok());
    }

    #[test]
    fn every_refused_row_has_its_line_and_one_reason() {
        for (row, reason) in [
            ("C1,A,x,1,1,1,France", Reason::Cancellation),
            ("1,A~B,x,1,1,1,France", Reason::SkuNotValid),
            ("1,,x,1,1,1,France", Reason::SkuNotValid),
            ("1,A,x,one,1,1,France", Reason::QuantityNotANumber),
            ("1,A,x,0,1,1,France", Reason::QuantityNotPositive),
            ("1,A,x,-9360,0.03,1,France", Reason::QuantityNotPositive),
            ("1,A,x,1000000000,1,1,France", Reason::QuantityTooLarge),
            ("1,A,x,1,gratis,1,France", Reason::PriceNotANumber),
            ("1,A,x,1,NaN,1,France", Reason::PriceNotANumber),
            ("1,A,x,1,0,1,France", Reason::PriceNotPositive),
            ("1,A,x,1,-11062.06,1,France", Reason::PriceNotPositive),
            ("1,A,x,1,1,1,Atlantis", Reason::UnknownCountry),
            ("1,NOPRICE,x,1,1,1,France", Reason::NotInCatalogue),
            ("1,A,x,1", Reason::Unreadable),
            (",A,x,1,1,1,France", Reason::Unreadable),
        ] {
            let found = read_text(&format!("9,A,good,1,1,,France\r\n{row}\r\n"));
            assert_eq!(found.refused.len(), 1, "{row}");
            assert_eq!((found.refused[0].line, found.refused[0].reason), (3, reason), "{row}");
            assert_eq!(found.invoices.len(), 1, "{row}");
        }
    }

    #[test]
    fn blank_lines_count_where_they_are() {
        let found = read_text("\n\r\n1,A,\"two\nlines\",1,1,,France\n\n1,A,x,0,1,,France");
        assert_eq!((found.rows, found.refused[0].line), (2, 7));
    }

    #[test]
    fn descriptions_need_not_be_utf_8() {
        let mut bytes = HEADING.as_bytes().to_vec();
        bytes.extend(b"1,A,Voucher \xa340.00,1,34.04,,United Kingdom\r\n");
        assert_eq!(parse(bytes.as_slice(), |_| true).expect("a readable file").invoices.len(), 1);
    }

    #[test]
    fn a_file_without_the_columns_says_which_one_is_missing() {
        let error = parse("InvoiceNo,Quantity\n".as_bytes(), |_| true).expect_err("no StockCode");
        assert!(format!("{error:#}").contains("StockCode"), "{error:#}");
    }
}
