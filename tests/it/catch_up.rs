//! A node that was away for a day comes back: by the tail, by a snapshot while it serves what it has, from an empty disk; and one
//! whose file has rotted sees it. Each time its rows come to what the region's come to.
//!
//! `SOUK_DAY_CHANGES=65000` for a day of the size of the recorded one; 4,000 by default.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use redb::{Database, ReadableTable as _, TableDefinition};
use serde_json::{Value, json};
use souk_commerce::feed::PriceChange;
use souk_link::Log;
use souk_tests::demo::until;
use souk_tests::say;
use souk_tests::stage::Stage;

const HOST: &str = "away.example";
const PRODUCTS: usize = 400;
const CHANGES_USUAL: usize = 4_000;
/// Entries of each log that the region keeps: fewer than the day brings.
const KEPT: usize = 1_000;
/// Prices that change while the node is away and can be had from the tail.
const A_MORNING: usize = 500;
/// As the node keeps them.
const ROWS: TableDefinition<'_, (u8, &str), (u64, &[u8])> = TableDefinition::new("rows");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_away_comes_to_the_same_rows_and_serves_meanwhile() -> Result<()> {
    let told = std::env::var("SOUK_DAY_CHANGES").ok().and_then(|count| count.parse().ok());
    let changes: usize = told.unwrap_or(CHANGES_USUAL);
    let mut stage = Stage::raise_pair_under(&[HOST], json!({ "log_entries_kept_max": KEPT })).await?;
    stage.open_site("away", HOST).await?;
    import(&stage, 1_000).await?;
    stage.push("away", &[("/index.html", b"<p>open"), ("/old.css", b"p { color: red }")]).await?;
    agree(&stage, 0).await?;
    agree(&stage, 1).await?;

    // The tail has it all.
    stage.kill_node(1);
    for n in 0..A_MORNING {
        set_price(&stage, n % PRODUCTS, 2_000 + n).await?;
    }
    let last = A_MORNING - 1;
    come_back(&mut stage, "by the tail", A_MORNING, last % PRODUCTS, 2_000 + last).await?;

    // Too much for the tail, and files that are gone meanwhile.
    stage.kill_node(1);
    for round in 0..changes.div_ceil(PRODUCTS) {
        import(&stage, 10_000 + round * PRODUCTS).await?;
    }
    stage.push("away", &[("/index.html", b"<p>still open")]).await?;
    let price = 10_000 + (changes.div_ceil(PRODUCTS) - 1) * PRODUCTS;
    come_back(&mut stage, "by a snapshot", changes, 0, price).await?;

    // Nothing at all.
    stage.kill_node(1);
    std::fs::remove_dir_all(stage.node_dir(1))?;
    let began = Instant::now();
    stage.start_node(1).await?;
    until("the node is ready again", || async {
        let answer = stage.admin_at(1, "/readyz").await?;
        Ok(if answer.status == 200 { Ok(()) } else { Err(answer.text()) })
    })
    .await?;
    say(&format!("catch up from an empty disk: ready after {:?}", began.elapsed()));
    agree(&stage, 1).await?;
    let shopper = stage.shopper_at(1, HOST)?;
    ensure!(shopper.get("/api/products/P0").await?.json()["price"] == price, "the newest price");

    // The file forgets a price. No cursor shows that.
    stage.kill_node(1);
    forget_price(&stage, 7)?;
    let began = Instant::now();
    stage.start_node(1).await?;
    let shopper = stage.shopper_at(1, HOST)?;
    let rotten = shopper.get("/api/products/P7").await?;
    until("the price is there again", || async {
        let answer = shopper.get("/api/products/P7").await?;
        Ok(if answer.status == 200 { Ok(()) } else { Err(answer.text()) })
    })
    .await?;
    say(&format!("catch up after rot: {} at first, mended after {:?}", rotten.status, began.elapsed()));
    agree(&stage, 1).await?;
    let repairs = stage.metric_at(1, r#"souk_log_repairs_total{log="price"} "#).await?;
    ensure!(repairs == 1, "the log of prices was fetched whole {repairs} times");
    let told = stage.metric_at(1, r#"souk_log_digests_total{log="price",outcome="differs"} "#).await?;
    ensure!(told == 1, "{told} comparisons differed");
    Ok(())
}

/// Starts the second node and asks it without a pause until it has the last price; nobody is turned away meanwhile.
async fn come_back(stage: &mut Stage, how: &str, changes: usize, product: usize, price: usize) -> Result<()> {
    let began = Instant::now();
    stage.start_node(1).await?;
    let started = began.elapsed();
    let shopper = stage.shopper_at(1, HOST)?;
    let mut answers = 0;
    let began = Instant::now();
    loop {
        let answer = shopper.get(&format!("/api/products/P{product}")).await?;
        ensure!(answer.status == 200, "{how}: {} {}", answer.status, answer.text());
        answers += 1;
        if answer.json()["price"] == price {
            break;
        }
        ensure!(began.elapsed() < Duration::from_secs(60), "{how}: still {}", answer.text());
    }
    say(&format!(
        "catch up {how}: {changes} changes, started in {started:?}, new after another {:?} and {answers} answers",
        began.elapsed()
    ));
    agree(stage, 1).await
}

/// The rows of that node come to what the region's come to, log by log.
async fn agree(stage: &Stage, node: usize) -> Result<()> {
    until("node and region agree", || async {
        let (here, there) =
            (stage.admin_at(node, "/v1/digests").await?, stage.operator().get("/v1/digests").await?);
        let (here, there) = (by_log(&here.json()), by_log(&there.json()));
        Ok(if here == there && !here.is_empty() {
            Ok(())
        } else {
            Err(format!("{here:?}, and the region {there:?}"))
        })
    })
    .await
}

fn by_log(digests: &Value) -> BTreeMap<String, (Value, Value, Value)> {
    let rows = digests.as_array().into_iter().flatten();
    let of = |row: &Value| (row["version"].clone(), row["rows"].clone(), row["digest"].clone());
    rows.map(|row| (row["log"].as_str().unwrap_or_default().to_owned(), of(row))).collect()
}

/// Imports every product with another price, stock and text.
async fn import(stage: &Stage, price: usize) -> Result<()> {
    let rows = (0..PRODUCTS).map(|n| {
        json!({ "sku": format!("P{n}"), "title": format!("Product {n} at {price}"), "price": price + n, "stock": price + n })
    });
    let rows: Vec<_> = rows.collect();
    let answer = stage.operator().post("/v1/sites/away/products", json!({ "products": rows })).await?;
    ensure!(answer.status == 200, "{}", answer.text());
    Ok(())
}

async fn set_price(stage: &Stage, product: usize, price: usize) -> Result<()> {
    let path = format!("/v1/sites/away/prices/P{product}");
    let answer = stage.operator().put(&path, json!({ "price": price })).await?;
    ensure!(answer.status == 200, "{}", answer.text());
    Ok(())
}

/// Makes the second node's file say that a product has no price.
fn forget_price(stage: &Stage, product: usize) -> Result<()> {
    let db = Database::open(stage.node_dir(1).join("replica.redb"))?;
    let txn = db.begin_write()?;
    {
        let mut rows = txn.open_table(ROWS)?;
        let name = format!("away\0P{product}");
        let key = (Log::Price.code(), name.as_str());
        let (version, body) = {
            let row = rows.get(key)?.context("the node has the price")?;
            let (version, body) = row.value();
            (version, PriceChange::from_bytes(body).context("a price")?)
        };
        let forgotten = PriceChange { price: None, ..body }.to_bytes();
        rows.insert(key, (version, forgotten.as_slice()))?;
    }
    txn.commit()?;
    Ok(())
}
