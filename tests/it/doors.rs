//! The doors of `souk proxy` beside those for shoppers, and who stands before those of a node.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use serde_json::{Value, json};
use souk_tests::cluster::{Cluster, Plan, Spec, own_address};
use souk_tests::http::Client;
use souk_tests::proxy::Proxy;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// Nothing here takes longer unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Operators' door has places for a few; whoever leaves connections lying there loses the oldest of them, and shuts nobody out.
#[tokio::test]
async fn operators_have_a_few_connections_and_always_one_more() -> Result<()> {
    // Nobody asks it for anything.
    let upstream = TcpListener::bind("127.0.0.1:0").await?;
    let proxy = Proxy::start(upstream.local_addr()?).await?;
    let mut idle = Vec::new();
    for _ in 0..80 {
        let mut stream = TcpStream::connect(proxy.admin).await?;
        is_alive(&mut stream).await?;
        idle.push(stream);
    }
    // 80 less the 64 that have a place. Which is idle first is told by the node: a connection whose task is held up after its
    // answer has gone is idle after its neighbours, so a few more than the sixteen oldest are looked at.
    let closed: FuturesUnordered<_> = idle[..24]
        .iter_mut()
        .map(async |stream| {
            // In order or not: it is closed.
            drop(stream.read_to_end(&mut Vec::new()).await);
        })
        .collect();
    let closed = timeout(PATIENCE, closed.take(16).count()).await;
    ensure!(closed.context("fewer than sixteen of the oldest are closed")? == 16);
    for stream in &mut idle[56..] {
        is_alive(stream).await?;
    }
    Ok(())
}

/// A balancer that a node trusts says who its client is; of one that it does not, nobody takes a word.
#[tokio::test]
async fn a_node_takes_the_word_of_a_balancer_that_it_trusts() -> Result<()> {
    const HOST: &str = "shop.example";
    const CLIENT: &str = "203.0.113.9";
    let folder = tempfile::tempdir()?;
    let door = SocketAddr::from((own_address(), 0)).to_string();
    let node = |name: &str, trust: Value| {
        let config = vec![
            ("listen", json!({ "http": door, "admin": door, "trust": trust })),
            ("access_log", json!({ "file": folder.path().join(name), "format": "json" })),
        ];
        Spec { config, ..Spec::default() }
    };
    let nodes = vec![node("trusts", json!(["127.0.0.0/8"])), node("does not", json!([]))];
    let cluster = Cluster::raise(Plan { nodes, ..Plan::default() }).await?;
    cluster.open_shop("shop", HOST, &json!([{ "sku": "MUG", "title": "A mug", "price": 1000 }])).await?;
    for (node, name, is_believed) in [(0, "trusts", true), (1, "does not", false)] {
        let balancer = Client::new(cluster.nodes[node].http()?)
            .with("host", HOST)
            // The first is what the client wrote itself.
            .with("x-forwarded-for", &format!("198.51.100.1, {CLIENT}"))
            .with("x-forwarded-proto", "https");
        let cart = balancer.post("/api/carts", json!({ "country": "GB" })).await?.json();
        let lines = format!("/api/carts/{}/lines", cart["cart"].as_str().context("a cart has a name")?);
        let added = balancer.post(&lines, json!({ "sku": "MUG", "quantity": 1 })).await?;
        let cookie = added.header("set-cookie");
        ensure!(!cookie.is_empty() && cookie.contains("Secure") == is_believed, "{name}: {cookie:?}");
        let logged = async {
            loop {
                let log = std::fs::read_to_string(folder.path().join(name)).unwrap_or_default();
                if let Some(line) = log.lines().find(|line| line.contains("/lines")) {
                    return line.to_owned();
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let line = timeout(PATIENCE, logged).await.context("no line of the request")?;
        ensure!(line.contains(CLIENT) == is_believed && !line.contains("198.51.100.1"), "{name}: {line}");
    }
    Ok(())
}

/// Asks on a connection and reads the answer to its end.
async fn is_alive(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n").await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"}") {
        let read = timeout(PATIENCE, stream.read_buf(&mut answer)).await.context("an operator waits")??;
        ensure!(read > 0, "the connection is closed after {:?}", String::from_utf8_lossy(&answer));
    }
    ensure!(answer.starts_with(b"HTTP/1.1 200"), "{:?}", String::from_utf8_lossy(&answer));
    Ok(())
}
