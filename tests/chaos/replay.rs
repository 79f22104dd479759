//! The same recorded shoppers twice: at a region on SQLite that is killed half-way and comes back, and at one in two processes
//! over PostgreSQL of which one is killed half-way for good. In the same moment the broker of its events loses the server that
//! leads. Same orders and same money, to the penny; and a listener is told of each order, repetitions removed by id.
//!
//! ```text
//! cargo test -p souk-tests --test chaos replay                                     a sample that the project carries
//! SOUK_REPLAY_FILE=online-retail.csv.gz cargo test -p souk-tests --test chaos replay -- --nocapture
//! ```
//!
//! `SOUK_REPLAY_CARTS` says how many of the file's invoices, `SOUK_REPLAY_RATE` how many operations a second.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use souk_tests::demo::Demo;
use souk_tests::{no_wasm_toolchain, say, skip};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::broker::{self, Listener, Nats, arrive, is_whole, leader, messages, outbox};
use crate::run::{SERVES_WITHIN, metric, seed, turn};
use crate::server::Server;

/// The demo's region, and the shop that the replay opens.
const REGION: &str = "demo";
const SITE: &str = "retail";
/// Slow enough for a sample of some seconds to have a middle.
const RATE: &str = "60";
/// Events that arrive while the server is away before it comes back.
const EVENTS_MIN: u64 = 12;
/// However long the file: its shoppers give up one by one, long before.
const REPORT_WITHIN: Duration = Duration::from_secs(6 * 3_600);
const POLL: Duration = Duration::from_millis(20);

fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn invoices() -> PathBuf {
    setting("SOUK_REPLAY_FILE")
        .map_or_else(|| souk_tests::root().join("tests/it/data/invoices.csv"), PathBuf::from)
}

/// What came of one run.
struct Sold {
    report: Value,
    /// What the listener was told of each order, sorted: orders' own numbers are drawn by lot.
    totals: Vec<i64>,
    line: String,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replay() -> Result<()> {
    let Some(program) = broker::program() else {
        skip("replay", "no nats-server: install nats-server");
        return Ok(());
    };
    if let Some(why) = no_wasm_toolchain() {
        skip("replay", &why);
        return Ok(());
    }
    let Some(postgres) = Server::own() else {
        skip("replay", "no PostgreSQL: install postgresql");
        return Ok(());
    };
    let _turn = turn().await;
    let one = run(&program, &[]).await.context("on SQLite")?;
    say(&format!("chaos replay: on SQLite {}", one.line));
    let (folder, database) = postgres.database();
    let url = format!("postgres://souk@{}/{database}", folder.replace('/', "%2F"));
    let other = run(&program, &["--store", &url, "--regions", "2"]).await.context("over PostgreSQL")?;
    say(&format!("chaos replay: over PostgreSQL, two processes, {}", other.line));
    for part in ["orders_at_region", "money_at_region", "orders_digest"] {
        let (one, other) = (&one.report[part], &other.report[part]);
        ensure!(one == other, "{part}: {one} on SQLite, {other} over PostgreSQL");
    }
    ensure!(one.totals == other.totals, "the listeners were told of other amounts");
    let digest = one.report["orders_digest"].as_str().context("a digest")?;
    say(&format!(
        "chaos replay: {} orders, {} minor units, the same on both (digest {})",
        one.report["orders_at_region"],
        one.report["money_at_region"],
        &digest[..16.min(digest.len())]
    ));
    Ok(())
}

async fn run(program: &Path, store: &[&str]) -> Result<Sold> {
    let mut nats = Nats::start(program.to_owned())?;
    let settings = tempfile::NamedTempFile::new()?;
    std::fs::write(settings.path(), toml::to_string(&json!({ "events": nats.settings() }))?)?;
    let (file, seed) = (invoices(), seed().to_string());
    let rate = setting("SOUK_REPLAY_RATE").unwrap_or_else(|| RATE.to_owned());
    let carts = setting("SOUK_REPLAY_CARTS");
    let shown = |path: &Path| path.to_str().map(str::to_owned).context("a path is text");
    let (file, settings_file) = (shown(&file)?, shown(settings.path())?);
    let mut arguments = vec!["--region-config", &settings_file, "--replay", &file, "--kill-region"];
    arguments.extend(["--rate", &rate, "--seed", &seed]);
    arguments.extend(carts.iter().flat_map(|carts| ["--carts", carts]));
    arguments.extend(store);
    let mut demo = Demo::start_with(&arguments).await?;

    let listener = Listener::connect(&nats, REGION, SITE).await?;
    let context = listener.context.clone();
    let (leave, left) = watch::channel(false);
    let listening = tokio::spawn(listen(listener, left));
    // Half-way the demo kills a process of the region, and the broker's leader dies with it.
    let victim = Path::new("/proc").join(demo.region_pid()?.to_string());
    let mut stream = is_whole(&context, &nats).await?;
    let mut before = 0;
    while victim.exists() {
        if let Some(now) = messages(&context).await {
            before = now;
        }
        sleep(POLL).await;
    }
    // Who leads now, if anybody can say.
    let _unknown = stream.info().await;
    let member = leader(&stream)?;
    nats.kill(member)?;
    let away = arrive(&context, before, EVENTS_MIN, &nats).await?;
    nats.start_member(member)?;
    is_whole(&context, &nats).await?;

    let report = demo.report(REPORT_WITHIN).await?;
    let verdict = report["verdict"].as_object().context("a report without a verdict")?;
    let wrong: Vec<_> = verdict.iter().filter(|(_, finding)| finding["count"] != 0).collect();
    ensure!(wrong.is_empty(), "{wrong:?}");
    ensure!(report["region_kills"] == 1, "{report}");
    leave.send_replace(true);
    let mut listener = listening.await??;
    let operator = demo.operator();
    let happened = outbox(&operator, SITE).await?;
    listener.listen_to_all_of(&happened, &nats).await?;
    let totals = compare(&listener, &happened, &report)?;
    until_nothing_waits(&demo).await?;
    let line = format!(
        "{} orders of {} carts, {} operations in {:.0} s, {} minor units, each verdict 0; its process killed half-way, and the \
         server of NATS that led ({EVENTS_MIN} more events after {} ms): {} messages, {} repeated and told by their ids, {} \
         events, one of each order, {} minor units",
        report["orders_at_region"],
        report["carts"],
        report["operations_acknowledged"],
        report["seconds"].as_f64().unwrap_or_default(),
        report["money_at_region"],
        away.as_millis(),
        listener.heard.messages,
        listener.heard.repeated(),
        listener.heard.events.len(),
        totals.iter().sum::<i64>(),
    );
    demo.stop().await?;
    Ok(Sold { report, totals, line })
}

async fn listen(mut listener: Listener, mut left: watch::Receiver<bool>) -> Result<Listener> {
    while !*left.borrow_and_update() {
        listener.listen().await?;
    }
    Ok(listener)
}

/// What the listener was told, beside the outbox and the report. Answers the amounts.
fn compare(listener: &Listener, happened: &[Value], report: &Value) -> Result<Vec<i64>> {
    listener.heard.is_all_of(happened)?;
    let mut orders: BTreeMap<&str, i64> = BTreeMap::new();
    for event in listener.heard.events.values() {
        ensure!(event["type"] == "souk.order.placed", "nobody asked for {event}");
        let order = event["subject"].as_str().context("an order")?;
        let total = event["data"]["total"].as_i64().context("a total")?;
        ensure!(orders.insert(order, total).is_none(), "order {order} was placed twice");
    }
    let money: i64 = orders.values().sum();
    ensure!(report["orders_at_region"] == orders.len(), "{} orders were told: {report}", orders.len());
    ensure!(report["money_at_region"] == money, "{money} was told: {report}");
    let mut totals: Vec<_> = orders.into_values().collect();
    totals.sort_unstable();
    Ok(totals)
}

/// Whoever hands on notes how far he is after the broker has said that it has it.
async fn until_nothing_waits(demo: &Demo) -> Result<()> {
    let began = Instant::now();
    loop {
        let waiting = metric(&demo.operator(), "souk_region_events_waiting").await?;
        if waiting == 0.0 {
            return Ok(());
        }
        ensure!(began.elapsed() < SERVES_WITHIN, "{waiting} events wait");
        sleep(POLL).await;
    }
}
