//! The replay of a small file of invoices that the project carries: odd rows, dying nodes and a cut link included.
//! What it must show is in its own report: nothing acknowledged is lost, nothing differs.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

fn invoices() -> PathBuf {
    souk_tests::root().join("tests/it/data/invoices.csv")
}

/// Runs a demo with a replay to its end.
pub(crate) fn replay(options: &[&str]) -> Result<(Output, Value)> {
    let output = Command::new(souk_tests::souk())
        .args(["demo", "--exit", "--json", "--replay"])
        .arg(invoices())
        .args(options)
        .current_dir(souk_tests::root())
        .stdin(Stdio::null())
        .output()
        .context("run `souk demo --replay`")?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let last = stdout.lines().last().with_context(|| format!("no report: {said}"))?;
    let report =
        serde_json::from_str(last).with_context(|| format!("the last line is no report: {last}\n{said}"))?;
    Ok((output, report))
}

pub(crate) fn nothing_is_lost(output: &Output, report: &Value) -> Result<()> {
    let verdict = report["verdict"].as_object().context("a report without a verdict")?;
    for (name, finding) in verdict {
        ensure!(finding["count"] == 0, "{name}: {finding}");
    }
    ensure!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[tokio::test]
async fn every_row_of_the_invoices_is_met_and_nothing_is_lost() -> Result<()> {
    if let Some(why) = souk_tests::no_wasm_toolchain() {
        souk_tests::skip("every_row_of_the_invoices_is_met_and_nothing_is_lost", &why);
        return Ok(());
    }
    let refused = tempfile::NamedTempFile::new()?;
    let list = refused.path().to_str().context("a temporary path is UTF-8")?.to_owned();
    let (output, report) = tokio::task::spawn_blocking(move || replay(&["--refused", &list])).await??;
    nothing_is_lost(&output, &report)?;
    let reasons = json!({
        "unreadable": 1, "cancellation": 3, "sku_not_valid": 1, "quantity_not_a_number": 1,
        "quantity_not_positive": 2, "quantity_too_large": 1, "price_not_a_number": 1, "price_not_positive": 3,
        "unknown_country": 1,
    });
    ensure!(report["rows"]["refused_by_reason"] == reasons, "{}", report["rows"]);
    ensure!(report["carts"] == 60 && report["orders_acknowledged"] == 60, "{report}");
    ensure!(report["orders_at_region"] == 60, "{report}");
    ensure!(report["moves"].as_u64() > Some(0), "nobody changed PoP: {report}");
    let listed = std::fs::read_to_string(refused.path())?;
    ensure!(listed.lines().count() == 15, "a heading and a line for each refused row:\n{listed}");
    Ok(())
}

#[tokio::test]
async fn nothing_is_lost_while_nodes_die_and_the_link_is_cut() -> Result<()> {
    if let Some(why) = souk_tests::no_wasm_toolchain() {
        souk_tests::skip("nothing_is_lost_while_nodes_die_and_the_link_is_cut", &why);
        return Ok(());
    }
    let options = ["--kill-edge", "--cut-region", "--rate", "60", "--seed", "7"];
    let (output, report) = tokio::task::spawn_blocking(move || replay(&options)).await??;
    nothing_is_lost(&output, &report)?;
    ensure!(report["kills"].as_u64() > Some(0), "no node was killed: {report}");
    ensure!(
        report["cut"]["add_line"]["count"].as_u64() > Some(0),
        "nobody added anything during the cut: {report}"
    );
    ensure!(report["orders_acknowledged"] == 60, "{report}");
    Ok(())
}
