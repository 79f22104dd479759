//! A node is replaced by a new process under load, on the same port and with the same data: every request is answered, and a
//! cart has each line that was acknowledged, by whichever of the two.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use souk_tests::cluster::{Cluster, Plan, Spec, own_address};
use souk_tests::http::Client;
use souk_tests::say;
use tokio::time::timeout;

use super::{CLIENTS, Load, PATIENCE};

const HOST: &str = "shop.example";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_process_of_a_node_takes_over_and_every_line_is_there() -> Result<()> {
    let door = SocketAddr::from((own_address(), 0)).to_string();
    let config = vec![
        ("listen", json!({ "http": door, "admin": door, "reuse_port": true })),
        ("log", json!({ "filter": "info" })),
    ];
    let plan = Plan { nodes: vec![Spec { config, ..Spec::default() }], ..Plan::default() };
    let mut cluster = Cluster::raise(plan).await?;
    cluster.open_shop("shop", HOST, &json!([{ "sku": "MUG", "title": "A mug", "price": 1000 }])).await?;
    let mut old = cluster.nodes.remove(0);
    let addr = old.http()?;

    let load = Arc::new(Load::default());
    let clients = (0..2 * CLIENTS).map(|i| tokio::spawn(buy(Arc::clone(&load), addr, i % 2 == 0)));
    let clients: Vec<_> = clients.collect();
    load.goes_on().await?;
    let mut new = old.successor()?;
    let starts = tokio::spawn(async move { new.start().await.map(|()| new) });
    let waits = async {
        while !old.last_words().contains("waiting for the process before") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, waits).await.context("the new process does not wait for the old one")?;
    // Who comes to the new one's socket meanwhile waits with it.
    let began = Instant::now();
    old.tell_to_stop()?;
    while old.ended()?.is_none() {
        ensure!(began.elapsed() < PATIENCE, "the old process does not end");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let drained = began.elapsed();
    let new = timeout(PATIENCE, starts).await???;
    let opened = began.elapsed();
    ensure!(new.http()? == addr, "they share a port");
    load.goes_on().await?;
    load.stop.store(true, Ordering::SeqCst);

    let (mut requests, mut lines) = (0, 0);
    for client in clients {
        let done = client.await??;
        let cart = shopper(addr).get(&format!("/api/carts/{}", done.cart)).await?.json();
        let quantity = cart["lines"][0]["quantity"].as_u64().unwrap_or_default();
        ensure!(
            quantity == done.added,
            "{} of {} acknowledged units are there: {cart}",
            quantity,
            done.added
        );
        (requests, lines) = (requests + done.requests, lines + done.added);
    }
    say(&format!(
        "{requests} requests while one process of a node took over from another: 0 failed, {lines} lines acknowledged and all \
         there. The old one ended after {} ms, the new one answered after {} ms",
        drained.as_millis(),
        opened.as_millis(),
    ));
    Ok(())
}

fn shopper(addr: SocketAddr) -> Client {
    Client::new(addr).with("host", HOST)
}

/// What one client has seen.
struct Done {
    cart: String,
    added: u64,
    requests: u64,
}

/// Looks at a product and puts it into a cart, in turn. `keeps` its connection, or opens one for each request.
async fn buy(load: Arc<Load>, addr: SocketAddr, keeps: bool) -> Result<Done> {
    let kept = shopper(addr);
    let client = || if keeps { kept.clone() } else { shopper(addr).with("connection", "close") };
    let opened = client().post("/api/carts", json!({ "country": "GB" })).await?.json();
    let cart = opened["cart"].as_str().context("a cart has a name")?.to_owned();
    let mut done = Done { cart, added: 0, requests: 1 };
    while !load.stop.load(Ordering::SeqCst) {
        let looked = client().get("/api/products/MUG").await.with_context(|| format!("kept {keeps}"))?;
        ensure!(looked.status == 200, "{}: {}", looked.status, looked.text());
        let lines = format!("/api/carts/{}/lines", done.cart);
        let added = client().post(&lines, json!({ "sku": "MUG", "quantity": 1 })).await;
        let added = added.with_context(|| format!("kept {keeps}"))?;
        ensure!(added.status == 200, "{}: {}", added.status, added.text());
        done.added += 1;
        done.requests += 2;
        load.answered.fetch_add(2, Ordering::SeqCst);
    }
    Ok(done)
}
