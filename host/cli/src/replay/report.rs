//! The verdict: what the books and the audit say, for people and for scripts.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::time::Duration;

use comfy_table::presets::NOTHING;
use comfy_table::{Cell, CellAlignment, Color, Table};
use hdrhistogram::Histogram;
use serde::Serialize;

use super::ReplayOptions;
use super::audit::Verdict;
use super::books::{Findings, Latency, Tally};
use super::invoices::{Invoices, Reason};
use crate::import;
use crate::terminal::BOLD;

/// Findings of one kind that the table shows; the JSON has up to two hundred.
const SHOWN_MAX: usize = 5;

/// What came of a replay.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Report {
    rows: Rows,
    catalogue: CatalogueReport,
    invoices: usize,
    /// Invoices that had no usable row.
    invoices_without_cart: usize,
    carts: u64,
    /// Durable changes: carts begun, lines and coupons changed, orders placed.
    operations_acknowledged: u64,
    /// Prices asked for and answered: reads, and no part of the operations.
    quotes: u64,
    orders_acknowledged: u64,
    orders_at_region: u64,
    /// In minor units.
    money_at_region: i64,
    /// The same in two runs that have sold the same at the same price.
    orders_digest: String,
    seconds: f64,
    operations_per_second: f64,
    latency: BTreeMap<&'static str, LatencyReport>,
    cut: Option<CutReport>,
    kills: u64,
    region_kills: u64,
    /// By what was answered.
    retries: BTreeMap<String, u64>,
    outcomes_unknown: u64,
    outcomes_unknown_done: u64,
    moves: u64,
    moves_put_off: u64,
    checkouts_put_off: u64,
    drained_ms: u64,
    copies_compared: u64,
    copies_refreshed: u64,
    verdict: VerdictReport,
}

#[derive(Debug, Clone, Serialize)]
struct Rows {
    read: u64,
    accepted: u64,
    refused: u64,
    /// Of the accepted, those of invoices beyond `--carts`.
    left_out: u64,
    refused_by_reason: BTreeMap<Reason, u64>,
}

#[derive(Debug, Clone, Serialize)]
struct CatalogueReport {
    products: u64,
    rows_refused: u64,
    refused_by_reason: BTreeMap<&'static str, u64>,
}

#[derive(Debug, Clone, Serialize)]
struct LatencyReport {
    count: u64,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

#[derive(Debug, Clone, Serialize)]
struct CutReport {
    seconds: u64,
    add_line: LatencyReport,
    quote: LatencyReport,
    add_line_refused: BTreeMap<String, u64>,
    quote_refused: BTreeMap<String, u64>,
}

/// A count and the first findings in words.
#[derive(Debug, Clone, Serialize)]
struct Finding {
    count: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    findings: Vec<String>,
}

/// All of it must be zero.
#[derive(Debug, Clone, Serialize)]
struct VerdictReport {
    acknowledged_lost: Finding,
    duplicates: Finding,
    differing_carts: Finding,
    differing_quotes: Finding,
    stale_reads: Finding,
    strange_lines: Finding,
    unanswered: Finding,
    refused_by_shop: Finding,
    differing_prices: Finding,
    faults_failed: Finding,
    did_not_happen: Finding,
}

impl VerdictReport {
    fn rows(&self) -> [(&'static str, &Finding); 11] {
        [
            ("acknowledged operations lost", &self.acknowledged_lost),
            ("duplicates (operations or orders)", &self.duplicates),
            ("carts that differ between node and region", &self.differing_carts),
            ("quotes that differ from the recomputation", &self.differing_quotes),
            ("travellers who saw an old cart", &self.stale_reads),
            ("lines of impossible quantity", &self.strange_lines),
            ("operations never answered", &self.unanswered),
            ("operations refused by the shop", &self.refused_by_shop),
            ("catalogue prices that are not those of the file", &self.differing_prices),
            ("faults that could not be made or healed", &self.faults_failed),
            ("asked for, and did not happen", &self.did_not_happen),
        ]
    }
}

/// What a report is made from, beside the verdict.
pub(super) struct Evidence<'a> {
    pub(super) import: &'a import::Report,
    pub(super) invoices: &'a Invoices,
    /// Invoices with a usable row.
    pub(super) usable: usize,
    pub(super) left_out: u64,
    /// Invoices that were to become carts.
    pub(super) wanted: usize,
    pub(super) options: &'a ReplayOptions,
    /// Between the file and the nodes' catalogue.
    pub(super) differing_prices: &'a Findings,
    pub(super) carts: u64,
    pub(super) orders: u64,
    pub(super) took: Duration,
}

impl Evidence<'_> {
    /// A replay that did less than it was asked for has proved nothing, however little it found.
    fn did_not_happen(&self, tally: &Tally) -> Findings {
        let mut found = Findings::default();
        if self.wanted == 0 {
            found.add(match self.usable {
                0 => "no invoice of the file has a usable row: there was no cart".to_owned(),
                usable => format!("--carts left none of {usable} invoices: there was no cart"),
            });
        }
        if self.carts != self.wanted as u64 {
            found.add(format!("{} invoices were to become carts, and {} did", self.wanted, self.carts));
        }
        if self.orders != self.carts {
            found.add(format!("{} carts were to become orders, and {} did", self.carts, self.orders));
        }
        if self.options.kill_edge && tally.kills == 0 {
            found.add("--kill-edge: no node was killed and started again");
        }
        if self.options.kill_region && tally.region_kills == 0 {
            found.add("--kill-region: no process of the region was killed");
        }
        if self.options.cut_region && tally.cut.is_none() {
            found.add("--cut-region: the link was not cut and healed");
        }
        found
    }
}

impl Report {
    pub(super) fn new(evidence: &Evidence<'_>, tally: &Tally, verdict: &Verdict) -> Self {
        let invoices = evidence.invoices;
        let seconds = evidence.took.as_secs_f64();
        let mut by_reason: BTreeMap<Reason, u64> = BTreeMap::new();
        for row in &invoices.refused {
            *by_reason.entry(row.reason).or_default() += 1;
        }
        let refused = invoices.refused.len() as u64;
        let operations = tally.acknowledged + evidence.carts;
        let cut = tally.cut.map(|lasted| CutReport {
            seconds: lasted.as_secs(),
            add_line: LatencyReport::of(&tally.add.during_cut),
            quote: LatencyReport::of(&tally.quote.during_cut),
            add_line_refused: tally.add.refused_during_cut.clone(),
            quote_refused: tally.quote.refused_during_cut.clone(),
        });
        let overall = |latency: &Latency| LatencyReport::of(&latency.overall);
        Self {
            rows: Rows {
                read: invoices.rows,
                accepted: invoices.rows - refused,
                refused,
                left_out: evidence.left_out,
                refused_by_reason: by_reason,
            },
            catalogue: CatalogueReport {
                products: evidence.import.products,
                rows_refused: evidence.import.rows_refused,
                refused_by_reason: evidence.import.refused_by_reason.clone(),
            },
            invoices: invoices.numbers,
            invoices_without_cart: invoices.numbers - evidence.usable,
            carts: evidence.carts,
            operations_acknowledged: operations,
            quotes: tally.quotes,
            orders_acknowledged: evidence.orders,
            orders_at_region: verdict.orders,
            money_at_region: verdict.money,
            orders_digest: verdict.orders_digest.clone(),
            seconds,
            operations_per_second: if seconds > 0.0 { count(operations) / seconds } else { 0.0 },
            latency: [("add_line", overall(&tally.add)), ("quote", overall(&tally.quote))].into(),
            cut,
            kills: tally.kills,
            region_kills: tally.region_kills,
            retries: tally.retries.clone(),
            outcomes_unknown: tally.unknown,
            outcomes_unknown_done: tally.unknown_done,
            moves: tally.moves,
            moves_put_off: tally.moves_put_off,
            checkouts_put_off: tally.checkouts_put_off,
            drained_ms: verdict.drained_ms,
            copies_compared: verdict.copies,
            copies_refreshed: verdict.refreshed,
            verdict: VerdictReport {
                acknowledged_lost: Finding::of(&verdict.lost),
                duplicates: Finding::of(&verdict.duplicates),
                differing_carts: Finding::of(&verdict.differing_carts),
                differing_quotes: Finding::of(&tally.differing_quotes),
                stale_reads: Finding::of(&tally.stale_reads),
                strange_lines: Finding::of(&tally.strange_lines),
                unanswered: Finding::of(&tally.unanswered),
                refused_by_shop: Finding::of(&tally.refused),
                differing_prices: Finding::of(evidence.differing_prices),
                faults_failed: Finding::of(&tally.faults),
                did_not_happen: Finding::of(&evidence.did_not_happen(tally)),
            },
        }
    }

    /// 0 when nothing was lost and nothing differs, else 1.
    pub(crate) fn exit_code(&self) -> u8 {
        u8::from(self.verdict.rows().iter().any(|(_, finding)| finding.count > 0))
    }

    /// Tables for people, and below them what was found.
    pub(crate) fn table(&self) -> String {
        let mut text = String::new();
        for (title, table) in [("What was read", self.read_table()), ("What was done", self.done_table())] {
            let _ = write!(text, "\n{BOLD}{title}{BOLD:#}\n{}\n", table.trim_fmt());
        }
        let mut verdict = table();
        for (name, finding) in self.verdict.rows() {
            let color = if finding.count == 0 { Color::Green } else { Color::Red };
            let value = Cell::new(finding.count).set_alignment(CellAlignment::Right).fg(color);
            verdict.add_row(vec![Cell::new(name), value]);
        }
        let _ = write!(text, "\n{BOLD}The verdict: all of this must be 0{BOLD:#}\n{}", verdict.trim_fmt());
        let mut sold = table();
        row(&mut sold, "orders at the region", self.orders_at_region);
        row(&mut sold, "their money, in minor units", self.money_at_region);
        row(&mut sold, "digest, invoice by invoice", &self.orders_digest);
        let _ = write!(text, "\n\n{BOLD}The same in every run{BOLD:#}\n{}", sold.trim_fmt());
        for (name, finding) in self.verdict.rows().into_iter().filter(|(_, f)| f.count > 0) {
            let _ = write!(text, "\n\n{name}: {}", finding.count);
            for line in finding.findings.iter().take(SHOWN_MAX) {
                let _ = write!(text, "\n  - {line}");
            }
            if finding.count > SHOWN_MAX as u64 {
                let _ = write!(text, "\n  - … (the JSON report has up to two hundred)");
            }
        }
        text
    }

    fn read_table(&self) -> Table {
        let mut table = table();
        row(&mut table, "rows", self.rows.read);
        row(&mut table, "rows accepted", self.rows.accepted);
        if self.rows.left_out > 0 {
            row(&mut table, "  of those left out by --carts", self.rows.left_out);
        }
        row(&mut table, "rows refused", self.rows.refused);
        for (reason, count) in &self.rows.refused_by_reason {
            row(&mut table, &format!("  {reason}"), count);
        }
        row(&mut table, "invoices / without a usable row", pair(self.invoices, self.invoices_without_cart));
        row(&mut table, "products imported", self.catalogue.products);
        for (reason, count) in &self.catalogue.refused_by_reason {
            row(&mut table, &format!("  rows that are no product: {}", import::in_words(reason)), count);
        }
        table
    }

    fn done_table(&self) -> Table {
        let mut table = table();
        row(&mut table, "carts", self.carts);
        row(&mut table, "operations acknowledged", self.operations_acknowledged);
        row(&mut table, "quotes answered", self.quotes);
        row(&mut table, "operations a second", format!("{:.0}", self.operations_per_second));
        row(&mut table, "seconds", format!("{:.1}", self.seconds));
        for (name, latency) in &self.latency {
            row(&mut table, &format!("{name} p50 / p99"), latency.text());
        }
        if let Some(cut) = &self.cut {
            for (name, latency, refused) in [
                ("add_line", &cut.add_line, &cut.add_line_refused),
                ("quote", &cut.quote, &cut.quote_refused),
            ] {
                row(
                    &mut table,
                    &format!("while cut off for {} s: {name} p50 / p99", cut.seconds),
                    latency.text(),
                );
                let refusals = refused.values().sum::<u64>();
                row(&mut table, &format!("  {name} answered / refused"), pair(latency.count, refusals));
                causes(&mut table, refused);
            }
        }
        let orders = pair(self.orders_acknowledged, self.orders_at_region);
        row(&mut table, "orders acknowledged / at the region", orders);
        row(&mut table, "checkouts that had to wait", self.checkouts_put_off);
        row(&mut table, "shoppers who changed PoP / stayed for now", pair(self.moves, self.moves_put_off));
        if self.kills > 0 {
            row(&mut table, "nodes killed", self.kills);
        }
        if self.region_kills > 0 {
            row(&mut table, "processes of the region killed", self.region_kills);
        }
        let unknown = pair(self.outcomes_unknown, self.outcomes_unknown_done);
        row(&mut table, "outcomes unknown / of those done", unknown);
        row(&mut table, "attempts repeated", self.retries.values().sum::<u64>());
        causes(&mut table, &self.retries);
        let copies = pair(self.copies_compared, self.copies_refreshed);
        row(&mut table, "copies at nodes compared / old ones refreshed", copies);
        table
    }
}

impl LatencyReport {
    fn of(histogram: &Histogram<u64>) -> Self {
        let ms = |quantile: f64| count(histogram.value_at_quantile(quantile)) / 1_000.0;
        let max_ms = if histogram.is_empty() { 0.0 } else { count(histogram.max()) / 1_000.0 };
        Self { count: histogram.len(), p50_ms: ms(0.5), p99_ms: ms(0.99), max_ms }
    }

    fn text(&self) -> String {
        format!("{:.2} / {:.2} ms", self.p50_ms, self.p99_ms)
    }
}

impl Finding {
    fn of(findings: &Findings) -> Self {
        Self { count: findings.count, findings: findings.described.clone() }
    }
}

fn table() -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table
}

fn row(table: &mut Table, name: &str, value: impl ToString) {
    table.add_row(vec![Cell::new(name), Cell::new(value.to_string()).set_alignment(CellAlignment::Right)]);
}

fn causes(table: &mut Table, counts: &BTreeMap<String, u64>) {
    for (cause, count) in counts {
        row(table, &format!("    {cause}"), count);
    }
}

fn pair(one: impl Display, other: impl Display) -> String {
    format!("{one} / {other}")
}

#[expect(clippy::cast_precision_loss, reason = "counts and microseconds are far below 2^52")]
fn count(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::super::Rate;
    use super::super::books::Books;
    use super::*;

    fn options(kill: bool, cut_region: bool) -> ReplayOptions {
        ReplayOptions {
            file: "invoices.csv".into(),
            carts: None,
            rate: Rate::Max,
            kill_edge: kill,
            kill_region: kill,
            cut_region,
            refused: None,
            record: false,
            seed: 1,
        }
    }

    /// The exit code and the report as a script reads it.
    fn report(
        change: impl FnOnce(&mut Evidence<'_>, &mut Tally),
        options: &ReplayOptions,
    ) -> (u8, serde_json::Value) {
        let (import, invoices, books) = (import::Report::default(), Invoices::default(), Books::new());
        let mut evidence = Evidence {
            import: &import,
            invoices: &Invoices { numbers: 3, ..invoices },
            usable: 2,
            left_out: 0,
            wanted: 2,
            options,
            differing_prices: &Findings::default(),
            carts: 2,
            orders: 2,
            took: Duration::from_secs(1),
        };
        let mut tally = books.tally();
        change(&mut evidence, &mut tally);
        let report = Report::new(&evidence, &tally, &Verdict::default());
        (report.exit_code(), serde_json::to_value(&report).expect("JSON"))
    }

    #[test]
    fn a_replay_that_did_less_than_was_asked_has_failed() {
        let (plain, broken) = (options(false, false), options(true, true));
        assert_eq!(report(|_, _| {}, &plain).0, 0);
        assert_eq!(report(|e, _| e.carts = 1, &plain).0, 1, "an invoice has vanished");
        assert_eq!(report(|e, _| e.orders = 1, &plain).0, 1, "a cart without an order");
        let nobody = |e: &mut Evidence<'_>, _: &mut Tally| (e.wanted, e.carts, e.orders) = (0, 0, 0);
        assert_eq!(report(nobody, &plain).0, 1, "nobody came");
        let (code, said) = report(|_, _| {}, &broken);
        assert_eq!((code, &said["verdict"]["did_not_happen"]["count"]), (1, &serde_json::json!(3)));
        assert!(said["cut"].is_null(), "what was asked for is not what happened");
        let happened = |_: &mut Evidence<'_>, t: &mut Tally| {
            (t.kills, t.region_kills, t.cut) = (1, 1, Some(Duration::from_millis(7_100)));
        };
        let (code, said) = report(happened, &broken);
        assert_eq!((code, &said["cut"]["seconds"]), (0, &serde_json::json!(7)));
    }

    #[test]
    fn quotes_are_no_operations() {
        let (_, said) = report(|_, t| (t.acknowledged, t.quotes) = (10, 5), &options(false, false));
        assert_eq!((&said["operations_acknowledged"], &said["quotes"]), (&12.into(), &5.into()));
    }
}
