//! A region in two processes over one PostgreSQL, one of which is killed in the middle of a sale: what was acknowledged is
//! there, once and to the penny, whoever is asked.

#[path = "../../cdn/region/src/store/tests/server.rs"]
#[expect(dead_code, reason = "what the region's own tests do to a server besides is theirs")]
mod server;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use server::Server;
use souk_tests::demo::until;
use souk_tests::http::Client;
use souk_tests::stage::Stage;
use souk_tests::{say, skip};
use tokio::task::JoinSet;

use crate::replay::{nothing_is_lost, replay};
use crate::shop::with_cookies;

const HOST: &str = "shop.example";
const SHOPPERS: usize = 60;
/// At once.
const CROWD: usize = 6;
const UNITS: u64 = 1_000;
/// What each thing costs.
const PRICES: [(&str, u64); 3] = [("MUG", 1_099), ("PEN", 251), ("CAP", 1_733)];

/// An empty database on a server of the tests' own; none where there is no PostgreSQL.
fn postgres(test: &str) -> Option<String> {
    let Some(server) = Server::shared() else {
        skip(test, "no PostgreSQL on this machine");
        return None;
    };
    let (folder, database) = server.database();
    Some(format!("postgres://souk@{}/{database}", folder.replace('/', "%2F")))
}

async fn open_shop(stage: &Stage) -> Result<()> {
    stage.open_site("shop", HOST).await?;
    let row = |(sku, price): (&str, u64)| json!({ "sku": sku, "title": sku, "price": price, "stock": UNITS });
    let products: Vec<Value> = PRICES.map(row).into();
    // What the operator tells one process, a node that is connected to the other hears as well.
    let answer =
        stage.operator_at(1).post("/v1/sites/shop/products", json!({ "products": products })).await?;
    ensure!(answer.status == 200, "{}", answer.text());
    for node in [0, 1] {
        let shopper = stage.shopper_at(node, HOST)?;
        for (sku, _) in PRICES {
            until("the product is at the node", async || {
                let answer = shopper.get(&format!("/api/products/{sku}")).await?;
                Ok(if answer.status == 200 { Ok(()) } else { Err(answer.text()) })
            })
            .await?;
        }
    }
    Ok(())
}

/// Which process a node is connected to.
async fn process_of(stage: &Stage, node: usize) -> Result<Option<usize>> {
    let link = stage.status_of(node).await?["link"].clone();
    let at = |number: &usize| link["address"] == stage.dialled(*number).to_string();
    Ok([0, 1].into_iter().find(at).filter(|_| link["connected"] == true))
}

/// What was told of each order, by its number: the total, and what was bought.
type Orders = BTreeMap<String, (u64, Vec<(&'static str, u64)>)>;

/// What a shopper was told: the order's number, its total, and what was bought.
struct Told {
    order: String,
    total: u64,
    bought: Vec<(&'static str, u64)>,
}

/// Fills a cart and orders it, with the same key until the answer is yes.
async fn shop(stage: &Stage, number: usize) -> Result<Told> {
    let client = stage.shopper_at(number % 2, HOST)?;
    let made = client.post("/api/carts", json!({})).await?;
    ensure!(made.status == 201, "{}: {}", made.status, made.text());
    let cart = made.json()["cart"].as_str().context("a cart has a name")?.to_owned();
    let client = with_cookies(&client, &made);
    let (mut bought, mut total) = (Vec::new(), 0);
    for (index, (sku, price)) in PRICES.into_iter().enumerate().take(1 + number % 3) {
        let quantity = 1 + ((number + index) % 4) as u64;
        let line = json!({ "sku": sku, "quantity": quantity });
        let added = client.post(&format!("/api/carts/{cart}/lines"), line).await?;
        ensure!(added.status == 200, "{}: {}", added.status, added.text());
        bought.push((sku, quantity));
        total += quantity * price;
    }
    let client = client.with("idempotency-key", &cart);
    let placed = until("a checkout is answered", async || {
        let answer = client.post("/api/checkouts", json!({ "cart": cart, "total": total })).await?;
        Ok(match answer.status.as_u16() {
            201 => Ok(answer.json()),
            _ => Err(format!("{}: {}", answer.status, answer.text())),
        })
    })
    .await?;
    let order = placed["id"].as_str().with_context(|| format!("an order has a number: {placed}"))?.to_owned();
    Ok(Told { order, total, bought })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_process_is_killed_in_the_middle_of_a_sale_and_no_penny_is_lost() -> Result<()> {
    let test = "a_region_process_is_killed_in_the_middle_of_a_sale_and_no_penny_is_lost";
    let Some(url) = postgres(test) else { return Ok(()) };
    let store = json!({ "engine": "postgres", "url": url });
    let mut stage = Arc::new(Stage::raise_over(&[HOST], store, 2).await?);
    open_shop(&stage).await?;
    ensure!(process_of(&stage, 0).await? == Some(0) && process_of(&stage, 1).await? == Some(1));
    a_wait_is_for_the_nodes_of_all_processes(&stage).await?;

    let (next, told) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut crowd = JoinSet::new();
    for _ in 0..CROWD {
        let (stage, next, told) = (Arc::clone(&stage), Arc::clone(&next), Arc::clone(&told));
        crowd.spawn(async move {
            let mut orders = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= SHOPPERS {
                    return Ok::<_, anyhow::Error>(orders);
                }
                orders.push(shop(&stage, number).await.with_context(|| format!("shopper {number}"))?);
                // Others are in the middle of theirs.
                if told.fetch_add(1, Ordering::Relaxed) == SHOPPERS / 2 {
                    stage.kill_region(0);
                }
            }
        });
    }
    let mut orders = Orders::new();
    while let Some(joined) = crowd.join_next().await {
        for Told { order, total, bought } in joined?? {
            ensure!(orders.insert(order.clone(), (total, bought)).is_none(), "{order} was told twice");
        }
    }
    ensure!(orders.len() == SHOPPERS, "{} orders", orders.len());
    for node in [0, 1] {
        until("the node is at the process that is left, and has handed over what it had", async || {
            let (at, status) = (process_of(&stage, node).await?, stage.status_of(node).await?);
            let is_there = at == Some(1) && status["outbox"]["unacked"] == 0;
            Ok(if is_there { Ok(()) } else { Err(format!("{at:?}, {}", status["outbox"])) })
        })
        .await?;
    }

    check_books(&stage.operator_at(1), &orders).await?;
    let stage = Arc::get_mut(&mut stage).context("the shoppers have gone")?;
    stage.restart_region(0).await?;
    check_books(&stage.operator_at(0), &orders).await?;
    both_answer_alike(stage, orders.keys().next().context("an order")?).await
}

/// Whichever process is asked whether the nodes have followed, it speaks of all of them.
async fn a_wait_is_for_the_nodes_of_all_processes(stage: &Stage) -> Result<()> {
    for process in [0, 1] {
        let operator = stage.operator_at(process);
        until("a process knows of both nodes", async || {
            let status = operator.get("/v1/status").await?.json();
            let nodes = status["nodes"].as_array().map_or(&[][..], Vec::as_slice);
            let connected = nodes.iter().filter(|node| node["connected"] == true).count();
            Ok(if connected == 2 { Ok(()) } else { Err(status.to_string()) })
        })
        .await?;
        let told = operator.post("/v1/sites/shop/purges", json!({ "tags": ["all"] })).await?;
        ensure!(told.status == 200, "{}: {}", told.status, told.text());
        let version = told.json()["version"].as_u64().context("a purge has a version")?;
        let obeyed = operator.get(&format!("/v1/sites/shop/purges/{version}?wait_ms=20000")).await?.json();
        ensure!(obeyed["done"] == true, "{obeyed}");
        let runs = operator.get("/v1/sites/shop/rollout?wait_ms=20000").await?.json();
        ensure!(runs["done"] == true, "{runs}");
        for nodes in [&obeyed["nodes"], &runs["nodes"]] {
            let nodes = nodes.as_array().context("a list of nodes")?;
            let numbers: Vec<_> = nodes.iter().filter_map(|node| node["node"].as_u64()).collect();
            ensure!(numbers == [1, 2], "{nodes:?}");
        }
    }
    Ok(())
}

/// The orders of the region, its money and its stock, beside what shoppers were told.
async fn check_books(operator: &Client, told: &Orders) -> Result<()> {
    let listed = operator.get("/v1/sites/shop/orders?limit=1000").await?.json();
    let listed = listed.as_array().context("a list of orders")?;
    let of = |row: &Value| Some((row["order"].as_str()?.to_owned(), row["total"].as_u64()?));
    let listed: Vec<_> = listed.iter().filter_map(of).collect();
    let by_order: BTreeMap<_, _> = listed.iter().cloned().collect();
    ensure!(listed.len() == by_order.len(), "an order is listed twice: {listed:?}");
    let totals: BTreeMap<_, _> = told.iter().map(|(order, (total, _))| (order.clone(), *total)).collect();
    ensure!(by_order == totals, "told {totals:?}\nlisted {by_order:?}");
    let mut sold = BTreeMap::<&str, u64>::new();
    for (sku, quantity) in told.values().flat_map(|(_, bought)| bought) {
        *sold.entry(*sku).or_default() += quantity;
    }
    for (sku, sold) in sold {
        let stock = operator.get(&format!("/v1/sites/shop/stock/{sku}")).await?.json();
        ensure!(stock["sold"] == sold && stock["available"] == UNITS - sold, "{sold} of {sku} sold: {stock}");
    }
    let chain = operator.get("/v1/audit/chain").await?.json();
    ensure!(chain["whole"] == true, "{chain}");
    let money: u64 = by_order.values().sum();
    say(&format!("two region processes, one killed: {} orders, {money} pennies", by_order.len()));
    Ok(())
}

/// Every page of the control API that is about the shop, and not about the process that is asked.
async fn both_answer_alike(stage: &Stage, order: &str) -> Result<()> {
    let cart = stage.operator_at(0).get("/v1/sites/shop/carts?limit=1").await?.json()[0]["cart"].clone();
    let cart = cart.as_str().context("a cart")?.to_owned();
    for path in [
        "/v1/sites/shop".to_owned(),
        "/v1/sites/shop/orders?limit=1000".to_owned(),
        format!("/v1/orders/{order}"),
        format!("/v1/sites/shop/orders/{order}"),
        "/v1/sites/shop/carts?limit=1000".to_owned(),
        format!("/v1/sites/shop/carts/{cart}"),
        "/v1/sites/shop/products/MUG".to_owned(),
        "/v1/sites/shop/stock/MUG".to_owned(),
        "/v1/sites/shop/releases".to_owned(),
        "/v1/audit".to_owned(),
        "/v1/audit/chain".to_owned(),
    ] {
        let (one, other) = (stage.operator_at(0).get(&path).await?, stage.operator_at(1).get(&path).await?);
        ensure!(one.status == 200, "{path}: {} {}", one.status, one.text());
        ensure!(one.text() == other.text(), "{path}: {} and {}", one.text(), other.text());
    }
    let (one, other) =
        (stage.operator_at(0).get("/v1/status").await?, stage.operator_at(1).get("/v1/status").await?);
    for part in ["region", "logs", "counts"] {
        ensure!(one.json()[part] == other.json()[part], "{part}: {} and {}", one.text(), other.text());
    }
    Ok(())
}

/// The same shoppers at a region on SQLite, which is killed and comes back, and at one in two processes over PostgreSQL, of
/// which one is killed for good.
#[tokio::test]
async fn the_replay_sells_the_same_on_both_engines_while_a_region_process_is_killed() -> Result<()> {
    let test = "the_replay_sells_the_same_on_both_engines_while_a_region_process_is_killed";
    if let Some(why) = souk_tests::no_wasm_toolchain() {
        skip(test, &why);
        return Ok(());
    }
    let Some(url) = postgres(test) else { return Ok(()) };
    let run = async |options: Vec<String>| {
        let ran = tokio::task::spawn_blocking(move || {
            let options: Vec<&str> = options.iter().map(String::as_str).collect();
            replay(&options)
        });
        let (output, report) = ran.await??;
        nothing_is_lost(&output, &report)?;
        ensure!(report["region_kills"] == 1, "{report}");
        Ok::<_, anyhow::Error>(report)
    };
    let options = ["--kill-region", "--rate", "60"].map(str::to_owned);
    let one = run(options.to_vec()).await.context("on SQLite")?;
    let over = ["--store".to_owned(), url, "--regions".to_owned(), "2".to_owned()];
    let other = run([&options[..], &over[..]].concat()).await.context("on PostgreSQL")?;
    for part in ["orders_at_region", "money_at_region", "orders_digest"] {
        ensure!(one[part] == other[part], "{part}: {} on SQLite, {} on PostgreSQL", one[part], other[part]);
    }
    say(&format!(
        "the replay on both engines: {} orders, {}",
        one["orders_at_region"], one["money_at_region"]
    ));
    Ok(())
}
