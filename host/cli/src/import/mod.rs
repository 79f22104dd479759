//! A catalogue from a file: reads CSV or CSV.gz, refuses rows by line and reason, sends the rest in bulk.
//!
//! [`map`] says which column is what, [`merge`] what a row must be and what many rows of one product add up to; both
//! are pure. This module is the file and the wire around them. Called by `souk site import` and by `demo`.

mod map;
mod merge;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Serialize;
use souk_commerce::id::{SiteId, Sku};

pub(crate) use self::map::{ColumnChoice, ColumnMap};
pub(crate) use self::merge::{Merge, ProductRow, Refusal, Rules, in_words};
use crate::control::RegionClient;
use crate::failure::Usage;
use crate::terminal::Step;

/// Rows in one call of the control API, which is one transaction. On PostgreSQL a row is some 14 round trips in the lock that
/// all processes of the region write under, 40 ms on a machine that is overloaded: others wait for that lock for 5 s.
const ROWS_PER_CALL: usize = 100;
/// Bytes in one call: well under the region's limit, so that long descriptions make more calls, not a refusal.
const BYTES_PER_CALL: usize = 1 << 20;
/// What a file may unpack to. Ends a gzip bomb; a million products with their texts are about 2 GiB.
const FILE_BYTES_MAX: u64 = 4 << 30;
/// Refused rows that the terminal and the JSON report list; the file of `--refused` has all of them.
pub(crate) const REFUSALS_SHOWN_MAX: usize = 20;

/// What came of an import.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    pub(crate) rows_read: u64,
    pub(crate) rows_refused: u64,
    /// Rows that were not UTF-8 and were taken for Windows-1252.
    pub(crate) rows_windows_1252: u64,
    pub(crate) products: u64,
    pub(crate) created: u64,
    pub(crate) updated: u64,
    pub(crate) unchanged: u64,
    pub(crate) refused_by_reason: BTreeMap<&'static str, u64>,
    /// The first [`REFUSALS_SHOWN_MAX`].
    pub(crate) refused: Vec<RefusedRow>,
}

#[derive(Debug, Serialize)]
pub(crate) struct RefusedRow {
    pub(crate) line: u64,
    pub(crate) sku: String,
    pub(crate) reason: &'static str,
    pub(crate) detail: String,
}

/// Where refused rows go: counted, the first few kept, all written to a file if one was asked for.
struct Refusals {
    file: Option<(PathBuf, csv::Writer<File>)>,
}

impl Refusals {
    fn to(file: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = file else { return Ok(Self { file: None }) };
        let mut writer =
            csv::Writer::from_path(path).with_context(|| format!("create {}", path.display()))?;
        writer.write_record(["line", "sku", "reason", "detail"])?;
        Ok(Self { file: Some((path.to_owned(), writer)) })
    }

    fn add(&mut self, report: &mut Report, line: u64, sku: String, refusal: &Refusal) -> anyhow::Result<()> {
        let row = RefusedRow { line, sku, reason: refusal.name(), detail: refusal.to_string() };
        report.rows_refused += 1;
        *report.refused_by_reason.entry(row.reason).or_default() += 1;
        if let Some((path, writer)) = &mut self.file {
            writer
                .write_record([&line.to_string(), &row.sku, row.reason, &row.detail])
                .with_context(|| format!("write {}", path.display()))?;
        }
        if report.refused.len() < REFUSALS_SHOWN_MAX {
            report.refused.push(row);
        }
        Ok(())
    }

    fn finish(self) -> anyhow::Result<()> {
        match self.file {
            Some((path, mut writer)) => writer.flush().with_context(|| format!("write {}", path.display())),
            None => Ok(()),
        }
    }
}

/// How to read a file.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) choices: &'a [ColumnChoice],
    pub(crate) rules: Rules,
    pub(crate) refused: Option<&'a Path>,
}

/// Opens a file, packed or not: what it is, its first bytes say, not its name.
pub(crate) fn open(path: &Path) -> anyhow::Result<Box<dyn Read + Send>> {
    let file = File::open(path).map_err(|e| Usage(format!("cannot open {}: {e}", path.display())))?;
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let packed = std::io::BufRead::fill_buf(&mut reader)
        .map_err(|e| Usage(format!("cannot read {}: {e}", path.display())))?;
    let is_gzip = packed.starts_with(&[0x1f, 0x8b]);
    Ok(if is_gzip { Box::new(flate2::bufread::MultiGzDecoder::new(reader)) } else { Box::new(reader) })
}

/// Reads a whole catalogue; the report holds what was refused so far.
pub(crate) fn read(input: impl Read, plan: &Plan<'_>) -> anyhow::Result<(Vec<ProductRow>, Report)> {
    let mut report = Report::default();
    let mut refusals = Refusals::to(plan.refused)?;
    // Ended by the line feed alone: of "\r\n" the parser would begin the next record at the "\n" and count one line
    // less. What is left of it is cut off by `decode`.
    let mut csv = csv::ReaderBuilder::new()
        .flexible(true)
        .terminator(csv::Terminator::Any(b'\n'))
        .from_reader(ended(input.take(FILE_BYTES_MAX)));
    let map = columns(csv.byte_headers().context("read the headings")?, plan.choices)?;
    let sku_column = map.columns().iter().find(|(_, f)| *f == map::Field::Sku).map(|(at, _)| *at);
    let mut merge = Merge::new(map, plan.rules);
    let mut record = csv::ByteRecord::new();
    while csv.read_byte_record(&mut record).context("read the file")? {
        if record.len() == 1 && record.get(0).is_some_and(|field| field.trim_ascii().is_empty()) {
            continue;
        }
        report.rows_read += 1;
        let line = first_line(&csv, &record);
        let (fields, foreign) = decode(&record);
        report.rows_windows_1252 += u64::from(foreign);
        let fields: Vec<&str> = fields.iter().map(Cow::as_ref).collect();
        if let Err(refusal) = merge.row(line, &fields) {
            let sku = sku_column.and_then(|at| fields.get(at));
            let sku = sku.map(|s| s.chars().take(80).collect()).unwrap_or_default();
            refusals.add(&mut report, line, sku, &refusal)?;
        }
    }
    refusals.finish()?;
    anyhow::ensure!(
        csv.position().byte() < FILE_BYTES_MAX,
        "the file unpacks to more than {FILE_BYTES_MAX} bytes"
    );
    let products = merge.finish();
    report.products = products.len() as u64;
    Ok((products, report))
}

/// What the columns of a file are, by its headings. Whether it is a table at all shows here, too.
fn columns(headings: &csv::ByteRecord, choices: &[ColumnChoice]) -> Result<ColumnMap, Usage> {
    let headings: Vec<String> = decode(headings).0.into_iter().map(Cow::into_owned).collect();
    let strange = |c: char| c.is_control() && c != '\t' && c != '\r' && c != '\n';
    if headings.iter().any(|heading| heading.contains(strange)) {
        return Err(Usage("this is not a CSV file in UTF-8".to_owned()));
    }
    if headings.iter().all(|heading| heading.trim().is_empty()) {
        return Err(Usage(
            "the file is empty: its first row names the columns, such as sku,title,price".to_owned(),
        ));
    }
    ColumnMap::new(&headings, choices).map_err(|error| match headings.as_slice() {
        [all] if all.contains([';', '\t']) => {
            let delimiter = if all.contains('\t') { "tabs" } else { "semicolons" };
            Usage(format!("the columns of this file are separated by {delimiter}, and commas are read: save it with commas"))
        }
        _ => Usage(error.to_string()),
    })
}

/// Whether the headings of a file are those of a catalogue.
pub(crate) fn check(file: &Path) -> anyhow::Result<()> {
    let mut csv = csv::ReaderBuilder::new().flexible(true).from_reader(open(file)?);
    columns(csv.byte_headers().context("read the headings")?, &[])?;
    Ok(())
}

/// The input with a line feed behind it, as [`first_line`] needs it. One too many is a blank line, which is skipped.
pub(crate) fn ended(input: impl Read) -> impl Read {
    input.chain(&b"\n"[..])
}

/// The line on which the record begins that was read last. The parser's own number is that of the blank lines before
/// it; so it is counted back from where the record ends.
pub(crate) fn first_line<R: Read>(csv: &csv::Reader<R>, record: &csv::ByteRecord) -> u64 {
    let within = record.as_slice().iter().filter(|b| **b == b'\n').count() as u64;
    let counted = csv.position().line().saturating_sub(1 + within);
    // A quote that is never closed swallows the line feed at the end, and ends nowhere.
    counted.max(record.position().map_or(0, csv::Position::line))
}

/// The fields of a row as text, without the carriage return of its end, and whether they had to be taken for
/// Windows-1252, which is what spreadsheets write where they do not write UTF-8 and in which every byte is a character.
/// A row is in one encoding: if one field is not UTF-8, none is.
fn decode(record: &csv::ByteRecord) -> (Vec<Cow<'_, str>>, bool) {
    let last = record.len().saturating_sub(1);
    let fields = || {
        record
            .iter()
            .enumerate()
            .map(move |(at, f)| if at == last { f.strip_suffix(b"\r").unwrap_or(f) } else { f })
    };
    let utf8: Result<Vec<_>, _> = fields().map(|f| std::str::from_utf8(f).map(Cow::Borrowed)).collect();
    match utf8 {
        Ok(fields) => (fields, false),
        Err(_) => {
            let decoded = fields().map(|f| encoding_rs::WINDOWS_1252.decode_without_bom_handling(f).0);
            (decoded.collect(), true)
        }
    }
}

/// Sends the products in bulk and adds the region's answers to the report. Sending the same again changes nothing.
pub(crate) async fn send(
    region: &RegionClient,
    site: &SiteId,
    products: &[ProductRow],
    refused: Option<&Path>,
    report: &mut Report,
    step: &Step,
) -> anyhow::Result<()> {
    let mut late: Vec<(u64, Sku, Refusal)> = Vec::new();
    for rows in calls(products)? {
        let answer = region.put_products(site, rows).await?;
        report.created += answer.created;
        report.updated += answer.updated;
        report.unchanged += answer.unchanged;
        for refusal in answer.refused {
            let row = rows.get(refusal.index).context("the region refused a row that was not sent")?;
            late.push((row.line, row.sku.clone(), Refusal::Region(refusal.reason)));
        }
        step.advance(rows.len() as u64);
    }
    if late.is_empty() {
        return Ok(());
    }
    report.products -= late.len() as u64;
    // The file was finished with the reading; the region's refusals are added behind.
    let mut file = match refused {
        Some(path) => {
            Some(std::fs::OpenOptions::new().append(true).open(path).context("add to the refused rows")?)
        }
        None => None,
    };
    let mut refusals =
        Refusals { file: file.take().zip(refused).map(|(f, p)| (p.to_owned(), csv::Writer::from_writer(f))) };
    for (line, sku, refusal) in late {
        refusals.add(report, line, sku.to_string(), &refusal)?;
    }
    refusals.finish()
}

/// Cuts the products into calls that are bounded in rows and in bytes.
fn calls(products: &[ProductRow]) -> anyhow::Result<Vec<&[ProductRow]>> {
    let mut calls = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (at, product) in products.iter().enumerate() {
        let size = serde_json::to_vec(product).context("write a product as JSON")?.len();
        if at > start && (at - start == ROWS_PER_CALL || bytes + size > BYTES_PER_CALL) {
            calls.push(&products[start..at]);
            (start, bytes) = (at, 0);
        }
        bytes += size;
    }
    if start < products.len() {
        calls.push(&products[start..]);
    }
    Ok(calls)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(refused: Option<&Path>) -> Plan<'_> {
        Plan {
            choices: &[],
            rules: Rules { currency: "GBP".parse().expect("a currency"), allow_free: false },
            refused,
        }
    }

    const FILE: &str =
        "StockCode,Description,UnitPrice\nA,\"a, quoted\nover lines\",1.50\nB,b,0\nC,c\nA,x,1.50\nD,d,2\n";

    #[test]
    fn refused_rows_carry_the_line_they_begin_on() {
        let folder = tempfile::tempdir().expect("a folder");
        let refused = folder.path().join("refused.csv");
        let (products, report) = read(FILE.as_bytes(), &plan(Some(&refused))).expect("a catalogue");
        assert_eq!(products.iter().map(|p| p.sku.as_str()).collect::<Vec<_>>(), ["A", "D"]);
        assert_eq!((report.rows_read, report.rows_refused, report.products), (5, 2, 2));
        assert_eq!(
            std::fs::read_to_string(&refused).expect("the list"),
            "line,sku,reason,detail\n\
             4,B,zero_price,\"the price is 0, and free products are accepted with --allow-free only\"\n\
             5,C,columns,\"the row has 2 columns, the heading 3\"\n"
        );
    }

    #[test]
    fn lines_that_end_as_on_windows_are_counted_as_an_editor_does() {
        let folder = tempfile::tempdir().expect("a folder");
        let refused = folder.path().join("refused.csv");
        let file =
            "sku,title,UnitPrice\r\nA,\"a\r\nb\",1\r\n\r\n  \r\nB,b,0\r\nC,c,\"2.50\"\r\nD,d\r\n\nE,e,x";
        let choice = "price=UnitPrice".parse().expect("a choice");
        let plan = Plan { choices: &[choice], ..plan(Some(&refused)) };
        let (products, report) = read(file.as_bytes(), &plan).expect("a catalogue");
        let prices: Vec<_> = products.iter().map(|p| (p.sku.as_str(), p.price.0)).collect();
        assert_eq!(prices, [("A", 100), ("C", 250)]);
        assert_eq!((report.rows_read, report.rows_refused), (5, 3), "a blank line is no row");
        let lines: Vec<_> = report.refused.iter().map(|r| (r.line, r.sku.as_str(), r.reason)).collect();
        assert_eq!(lines, [(6, "B", "zero_price"), (8, "D", "columns"), (10, "E", "bad_price")]);
        let wrong = read("sku,title\r\n".as_bytes(), &self::plan(None)).expect_err("no price");
        assert!(wrong.to_string().contains("the file has sku, title: name it"), "{wrong:#}");
    }

    #[test]
    fn what_is_no_table_with_commas_is_told_so() {
        let told = |file: &[u8]| read(file, &plan(None)).expect_err("no catalogue").to_string();
        assert_eq!(told(b"\x7fELF\x02\x01\x01\0\0"), "this is not a CSV file in UTF-8");
        assert!(told(b"").starts_with("the file is empty: "), "{}", told(b""));
        assert!(told(b"sku;title;price\nA;a;1\n").contains("separated by semicolons, and commas are read"));
        assert!(told(b"sku\ttitle\tprice\nA\ta\t1\n").contains("separated by tabs"));
        // One heading of a file with commas may hold a semicolon.
        assert!(told(b"sku,title;price\n").contains("no column is the title"));
    }

    #[test]
    fn a_row_that_is_not_utf_8_is_windows_1252() {
        let file = b"sku,title,price\nA,Voucher \xa340.00,34.04\nB,Caf\xc3\xa9,1\nC,\x80 \x81,1\n";
        let (products, report) = read(&file[..], &plan(None)).expect("a catalogue");
        let titles: Vec<_> = products.iter().map(|p| p.title.as_str()).collect();
        assert_eq!(titles, ["Voucher £40.00", "Café", "€ \u{81}"]);
        assert_eq!((report.rows_windows_1252, report.rows_refused), (2, 0));
    }

    #[test]
    fn a_packed_file_is_known_by_its_bytes() {
        use std::io::Write as _;
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("no-gz-in-the-name.csv");
        let mut gz =
            flate2::write::GzEncoder::new(File::create(&path).expect("a file"), flate2::Compression::fast());
        gz.write_all(FILE.as_bytes()).expect("written");
        gz.finish().expect("finished");
        let (products, _) = read(open(&path).expect("opens"), &plan(None)).expect("a catalogue");
        assert_eq!(products.len(), 2);
    }

    #[test]
    fn calls_are_bounded_in_rows_and_bytes() {
        let many: String = (0..250).map(|i| format!("S{i},t,1\n")).collect();
        let (products, _) =
            read(format!("sku,title,price\n{many}").as_bytes(), &plan(None)).expect("a catalogue");
        let sizes: Vec<_> = calls(&products).expect("calls").iter().map(|c| c.len()).collect();
        assert_eq!(sizes, [100, 100, 50]);
        let long = "x".repeat(16_000);
        let heavy: String = (0..600).map(|i| format!("S{i},t,1,{long}\n")).collect();
        let (products, _) = read(format!("sku,title,price,description\n{heavy}").as_bytes(), &plan(None))
            .expect("a catalogue");
        let calls = calls(&products).expect("calls");
        assert_eq!(calls.iter().map(|c| c.len()).sum::<usize>(), 600);
        assert!(calls.len() > 6, "by their bytes, and not by their number: {}", calls.len());
    }
}
