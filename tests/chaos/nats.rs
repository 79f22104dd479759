//! Events on their way to three servers of NATS, of which one after the other is killed, and the region too: whoever listens
//! gets each event that is in the region's outbox, the repetitions told by their ids, those of an order as they happened.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use souk_tests::cluster::{Cluster, Plan, Spec};
use souk_tests::http::Client;
use souk_tests::identity::REGION;
use souk_tests::skip;
use tokio::time::sleep;

use crate::broker::{self, Listener, Nats, SERVERS, is_whole, messages, outbox};
use crate::run::{Row, SERVES_WITHIN, count, metric, seed};
use crate::seed::mix;
use crate::shop::SITE;
use crate::shoppers::Habits;

/// Events that arrive while a server is away before it comes back, at least.
const EVENTS_MIN: u64 = 12;
const POLL: Duration = Duration::from_millis(50);
const PAGE: usize = 1_000;

/// Waits until [`EVENTS_MIN`] more messages are in the stream.
async fn arrive(listener: &Listener, nats: &Nats) -> Result<Duration> {
    let began = Instant::now();
    let before = loop {
        if let Some(before) = messages(&listener.context).await {
            break before;
        }
        ensure!(began.elapsed() < SERVES_WITHIN, "nobody knows of the stream\n{}", nats.last_words());
        sleep(POLL).await;
    };
    broker::arrive(&listener.context, before, EVENTS_MIN, nats).await?;
    Ok(began.elapsed())
}

/// What a merchant does to a shop's orders until he is told to go: money, goods, and second thoughts.
pub(crate) async fn merchant(operator: Client, mut done: tokio::sync::watch::Receiver<bool>) -> Result<u64> {
    let (mut after, mut number, mut wishes) = (0, 0, 0);
    while !*done.borrow_and_update() {
        // The region may be away.
        let page = format!("/v1/sites/{SITE}/orders?limit={PAGE}&after={after}");
        if let Ok(answer) = operator.get(&page).await
            && answer.status == 200
        {
            let orders = answer.json();
            let last = orders.as_array().and_then(|orders| orders.last()?["position"].as_u64());
            after = last.unwrap_or(after);
            let ids = orders.as_array().into_iter().flatten().filter_map(|order| order["order"].as_str());
            for id in ids {
                number += 1;
                let words: &[&str] = match mix(seed(), number, 11) % 3 {
                    0 => &["capture", "fulfil"],
                    1 => &["capture", "fulfil", "refund"],
                    _ => &["cancel"],
                };
                for word in words {
                    let path = format!("/v1/sites/{SITE}/orders/{id}/{word}");
                    match operator.send(http::Method::POST, &path, None).await {
                        Ok(answer) if answer.status.is_success() => wishes += 1,
                        // What is refunded before it has gone would go back to the shelf.
                        _ => break,
                    }
                }
            }
        }
        let _ended = tokio::time::timeout(Duration::from_millis(300), done.changed()).await;
    }
    Ok(wishes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_node_loss() -> Result<()> {
    let Some(program) = broker::program() else {
        skip("nats_node_loss", "no nats-server: install nats-server");
        return Ok(());
    };
    let mut nats = Nats::start(program)?;
    let region = Spec { config: vec![("events", nats.settings())], ..Spec::default() };
    let habits =
        Habits { shoppers: 16, additions_max: 4, ordered_percent: 90, seed: seed(), ..Habits::default() };
    let mut row = Row::open("nats_node_loss", Plan { region, ..Plan::of(2) }, habits).await?;
    let mut listener = Listener::connect(&nats, REGION, SITE).await?;
    let operator = row.cluster.operator()?;
    let (leave, left) = tokio::sync::watch::channel(false);
    let selling = tokio::spawn(merchant(operator.clone(), left));

    is_whole(&listener.context, &nats).await?;
    let kills = count(3, 30);
    let (mut regions, mut slowest) = (0, Duration::ZERO);
    for number in 0..kills {
        arrive(&listener, &nats).await?;
        sleep(Duration::from_micros(mix(seed(), number, 4) % 100_000)).await;
        let member = usize::try_from(number)? % SERVERS;
        nats.kill(member)?;
        if number % 2 == 1 {
            row.cluster.region.kill()?;
            sleep(Duration::from_millis(mix(seed(), number, 5) % 200)).await;
            row.cluster.region.start().await?;
            row.restart_nodes().await?;
            regions += 1;
        }
        slowest = slowest.max(arrive(&listener, &nats).await?);
        nats.start_member(member)?;
        is_whole(&listener.context, &nats).await?;
    }
    // And once all of them: events wait, and nobody else is kept waiting.
    for member in 0..SERVERS {
        nats.kill(member)?;
    }
    let before = row.crowd.orders();
    let began = Instant::now();
    while row.crowd.orders() < before + EVENTS_MIN {
        ensure!(began.elapsed() < SERVES_WITHIN, "without a broker nobody may order");
        sleep(POLL).await;
    }
    let ready = operator.get("/readyz").await?;
    ensure!(ready.status == 200, "a broker that is away is no reason to take no orders: {}", ready.text());
    for member in 0..SERVERS {
        nats.start_member(member)?;
    }
    is_whole(&listener.context, &nats).await?;
    leave.send_replace(true);
    let wishes = selling.await??;

    let what = format!(
        "{kills} SIGKILLs of one of three nats-servers, {regions} of the region, and once all three servers; {wishes} wishes of a \
         merchant; the longest wait for {EVENTS_MIN} events with a server away {} ms",
        slowest.as_millis()
    );
    row.close_with(&what, async |cluster: &Cluster| compare(cluster, &mut listener, &nats).await).await?;
    Ok(())
}

/// Reads the stream as a listener does, and compares it with the outbox.
async fn compare(cluster: &Cluster, listener: &mut Listener, nats: &Nats) -> Result<String> {
    let operator = cluster.operator()?;
    let outbox = outbox(&operator, SITE).await?;
    ensure!(!outbox.is_empty(), "nothing has happened");
    is_whole(&listener.context, nats).await?;
    listener.listen_to_all_of(&outbox, nats).await?;
    let (orders, several) = listener.heard.is_all_of(&outbox)?;
    let waiting = metric(&operator, "souk_region_events_waiting").await?;
    Ok(format!(
        "{} events of {orders} orders ({several} with several) in the outbox, {} messages at the listener: 0 missing, {} \
         repeated and told by their ids, each order's in order, {waiting} waiting; ",
        outbox.len(),
        listener.heard.messages,
        listener.heard.repeated(),
    ))
}
