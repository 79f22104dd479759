//! Ten shoppers for each unit, at two nodes whose link to the region is cut again and again: what is promised is kept, also
//! what a node has promised by itself, and nothing is sold that is not there.
//!
//! 600 shoppers by default; `SOUK_STOCK_SHOPPERS=10000` for the whole sale, 1,000 units.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http::Method;
use serde_json::{Value, json};
use souk_tests::demo::until;
use souk_tests::http::Client;
use souk_tests::say;
use souk_tests::stage::Stage;
use tokio::task::JoinSet;

use crate::shop::with_cookies;

const HOST: &str = "sale.example";
const SKU: &str = "MUG";
const PRICE: u64 = 100;
const SHOPPERS_USUAL: usize = 600;
const SHOPPERS_PER_UNIT: usize = 10;
/// Shoppers at once.
const CROWD: usize = 48;
/// The link is up so long, and then cut so long.
const UP: Duration = Duration::from_millis(3_000);
const CUT: Duration = Duration::from_millis(1_500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sale_over_a_flapping_link_keeps_every_promise_and_oversells_nothing() -> Result<()> {
    let told = std::env::var("SOUK_STOCK_SHOPPERS").ok().and_then(|count| count.parse().ok());
    let shoppers: usize = told.unwrap_or(SHOPPERS_USUAL);
    let units = shoppers / SHOPPERS_PER_UNIT;
    let stage = Arc::new(Stage::raise_pair(&[HOST]).await?);
    stage.open_site("sale", HOST).await?;
    let settings =
        json!({ "site": "sale", "hosts": [HOST], "currency": "GBP", "reservations": { "enabled": true } });
    let answer = stage.operator().put("/v1/sites/sale", settings).await?;
    ensure!(answer.status == 200, "{}", answer.text());
    put_on_sale(&stage, units).await?;
    let ordered = a_node_that_is_cut_off_promises_what_it_was_lent(&stage).await.context("cut off")?;

    let ended = Arc::new(AtomicBool::new(false));
    let flapping = {
        let (stage, ended) = (Arc::clone(&stage), Arc::clone(&ended));
        tokio::spawn(async move {
            let mut cuts = 0;
            while !ended.load(Ordering::Relaxed) {
                tokio::time::sleep(UP).await;
                stage.cut();
                cuts += 1;
                tokio::time::sleep(CUT).await;
                stage.heal();
            }
            cuts
        })
    };
    let next = Arc::new(AtomicUsize::new(0));
    let mut crowd = JoinSet::new();
    for _ in 0..CROWD {
        let (stage, next) = (Arc::clone(&stage), Arc::clone(&next));
        crowd.spawn(async move {
            let mut ends: BTreeMap<End, usize> = BTreeMap::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= shoppers {
                    return Ok::<_, anyhow::Error>(ends);
                }
                let end = shop(&stage, number).await.with_context(|| format!("shopper {number}"))?;
                *ends.entry(end).or_default() += 1;
            }
        });
    }
    let mut ends: BTreeMap<End, usize> = BTreeMap::new();
    while let Some(joined) = crowd.join_next().await {
        for (end, count) in joined?? {
            *ends.entry(end).or_default() += count;
        }
    }
    ended.store(true, Ordering::Relaxed);
    let cuts = flapping.await?;
    let count = |end| ends.get(&end).copied().unwrap_or(0);
    let placed = ordered + count(End::Promised) + count(End::Unpromised);

    // The shop lends no more: what nodes have comes home.
    let settings = json!({
        "site": "sale", "hosts": [HOST], "currency": "GBP", "reservations": { "enabled": true, "at_nodes": false },
    });
    let answer = stage.operator().put("/v1/sites/sale", settings).await?;
    ensure!(answer.status == 200, "{}", answer.text());
    let report = until("stock that is lent or promised comes home", || async {
        let report = report(&stage).await?;
        let out = report["granted"].as_u64().unwrap_or(1) + report["reserved"].as_u64().unwrap_or(1);
        Ok(if out == 0 { Ok(report) } else { Err(report.to_string()) })
    })
    .await?;
    let orders = stage.operator().get("/v1/sites/sale/orders?limit=1000").await?.json();
    let listed = orders.as_array().map_or(0, Vec::len);
    let sold = report["sold"].as_u64().context("what is sold")? as usize;
    let here = [
        stage.metric_at(0, r#"souk_reservations_total{outcome="here"} "#).await?,
        stage.metric_at(1, r#"souk_reservations_total{outcome="here"} "#).await?,
    ];
    say(&format!(
        "sale: {shoppers} shoppers, {units} units, {cuts} cuts: {ends:?}, {placed} orders told, {listed} at the region, \
         promised at the nodes {here:?}, books {report}"
    ));
    ensure!(
        sold == placed && listed == placed,
        "{placed} orders were told, {listed} are listed, {sold} are sold"
    );
    ensure!(sold <= units, "{sold} of {units} units are sold");
    let left = report["available"].as_u64().context("what is left")? as usize;
    ensure!(left + sold == units && report["received"] == units, "a unit is lost: {report}");
    // Nobody was turned away while there was something: the last ones went, too.
    ensure!(left == 0, "{left} units are left although ten wanted each");
    Ok(())
}

/// How it ended for one shopper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    /// Was promised a unit, and got it.
    Promised,
    /// Ordered without a promise.
    Unpromised,
    SoldOut,
}

async fn put_on_sale(stage: &Stage, units: usize) -> Result<()> {
    let row = json!({ "sku": SKU, "title": "A mug", "price": PRICE, "stock": units });
    let answer = stage.operator().post("/v1/sites/sale/products", json!({ "products": [row] })).await?;
    ensure!(answer.status == 200, "{}", answer.text());
    for node in [0, 1] {
        let shopper = stage.shopper_at(node, HOST)?;
        until("the product is at the node", || async {
            let answer = shopper.get(&format!("/api/products/{SKU}")).await?;
            Ok(if answer.status == 200 { Ok(()) } else { Err(answer.text()) })
        })
        .await?;
    }
    Ok(())
}

async fn report(stage: &Stage) -> Result<Value> {
    let report = stage.operator().get(&format!("/v1/sites/sale/stock/{SKU}")).await?.json();
    let of = |name: &str| report[name].as_u64().with_context(|| format!("{name} of {report}"));
    let places = of("sold")? + of("reserved")? + of("granted")? + of("available")?;
    ensure!(places == of("received")?, "a unit is in two places or in none: {report}");
    Ok(report)
}

/// A cart with one unit.
async fn fill_cart(client: &Client) -> Result<(String, Client)> {
    let answer = client.post("/api/carts", json!({})).await?;
    ensure!(answer.status == 201, "{}: {}", answer.status, answer.text());
    let cart = answer.json()["cart"].as_str().context("a cart has a name")?.to_owned();
    let client = with_cookies(client, &answer);
    let lines = format!("/api/carts/{cart}/lines");
    let answer = client.post(&lines, json!({ "sku": SKU, "quantity": 1 })).await?;
    ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
    Ok((cart, client))
}

async fn reserve(client: &Client, cart: &str) -> Result<Value> {
    let answer = client.send(Method::POST, &format!("/api/carts/{cart}/reservation"), None).await?;
    ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
    Ok(answer.json()["products"][0].clone())
}

/// Orders, with the same key until the region has said yes or no. False: no.
async fn order(client: &Client, cart: &str) -> Result<bool> {
    let client = client.with("idempotency-key", cart);
    until("a checkout is answered", || async {
        let answer = client.post("/api/checkouts", json!({ "cart": cart, "total": PRICE })).await?;
        Ok(match (answer.status.as_u16(), answer.code().as_str()) {
            (201, _) => Ok(true),
            (409, "out_of_stock") => Ok(false),
            _ => Err(format!("{}: {}", answer.status, answer.text())),
        })
    })
    .await
}

async fn shop(stage: &Stage, number: usize) -> Result<End> {
    let (cart, client) = fill_cart(&stage.shopper_at(number % 2, HOST)?).await?;
    // Some never ask for a promise.
    let is_careful = number % 4 != 3;
    for _ in 0..if is_careful { 8 } else { 0 } {
        let product = reserve(&client, &cart).await?;
        if product["promised"] == 1 {
            ensure!(order(&client, &cart).await?, "a unit was promised, and is out of stock: {product}");
            return Ok(End::Promised);
        }
        match product["reason"].as_str() {
            // Another one may give its up, or a node what it was lent; the shopper below asks once more by ordering.
            Some("out_of_stock") => break,
            Some("region_unreachable" | "region_busy") => tokio::time::sleep(CUT / 4).await,
            reason => anyhow::bail!("not promised because of {reason:?}: {product}"),
        }
    }
    Ok(if order(&client, &cart).await? { End::Unpromised } else { End::SoldOut })
}

/// Returns how many it has ordered.
async fn a_node_that_is_cut_off_promises_what_it_was_lent(stage: &Stage) -> Result<usize> {
    // A few shoppers make the product hot, and give up what they were promised.
    let client = stage.shopper_at(0, HOST)?;
    until("units are lent to the node", || async {
        let (cart, client) = fill_cart(&client).await?;
        reserve(&client, &cart).await?;
        let path = format!("/api/carts/{cart}/reservation");
        let answer = client.send(Method::DELETE, &path, None).await?;
        ensure!(answer.status == 204, "{}: {}", answer.status, answer.text());
        let lent = stage.metric_at(0, "souk_stock_units ").await?;
        Ok(if lent > 0 { Ok(lent) } else { Err("nothing".to_owned()) })
    })
    .await?;
    let (cart, client) = fill_cart(&client).await?;
    stage.cut();
    let product = reserve(&client, &cart).await?;
    ensure!(product["promised"] == 1 && product["reason"].is_null(), "{product}");
    let shown = client.get(&format!("/api/carts/{cart}/reservation")).await?.json();
    ensure!(shown["complete"] == true && shown["until_ms"].as_u64() > Some(0), "{shown}");
    stage.heal();
    ensure!(order(&client, &cart).await?, "what the node has promised is out of stock at the region");
    let books = report(stage).await?;
    ensure!(books["sold"] == 1, "{books}");
    Ok(1)
}
