//! A disk is full to the last byte, and later it is not: a node's, and the region's.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use souk_tests::cluster::{Plan, Spec};
use souk_tests::http::Client;
use souk_tests::skip;
use tokio::time::sleep;

use crate::disks::SmallDisk;
use crate::run::{Row, SERVES_WITHIN, count, seed};
use crate::seed::mix;
use crate::shop::{HOST, sku};
use crate::shoppers::Habits;

const DISK_MIB: u64 = 96;
/// What a node says to a change.
const REFUSAL: &str = "503 disk_full";
/// Refusals that are waited for: each of a few shoppers has met some.
const REFUSALS_MIN: u64 = 50;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disk_full() -> Result<()> {
    let (of_node, of_region) = match (SmallDisk::make(DISK_MIB)?, SmallDisk::make(DISK_MIB)?) {
        (Ok(one), Ok(other)) => (one, other),
        (Err(why), _) | (_, Err(why)) => {
            skip("disk_full", &why);
            return Ok(());
        }
    };
    let on = |disk: &SmallDisk| Spec { data: Some(disk.path().join("data")), ..Spec::default() };
    let plan = Plan { region: on(&of_region), nodes: vec![on(&of_node), Spec::default()], ..Plan::default() };
    let habits = Habits { shoppers: 16, ordered_percent: 30, seed: seed(), ..Habits::default() };
    let row = Row::open("disk_full", plan, habits).await?;
    let shopper = Client::new(row.cluster.nodes[0].http()?).with("host", HOST);
    ensure!(row.crowd.writes_at(0, 0, 50, SERVES_WITHIN).await, "node 1 acknowledges nothing");
    let carts = Client::new(row.cluster.nodes[0].admin()?).get("/v1/carts?limit=1").await?.json();
    let cart = format!("/api/carts/{}", carts["carts"][0]["cart"].as_str().context("the node has a cart")?);
    let rounds = count(2, 20);
    let (mut reads, mut filled) = (0_u64, 0);
    for round in 0..rounds {
        // The node's disk.
        let refused = row.crowd.refused(REFUSAL);
        filled += of_node.fill()?;
        let began = Instant::now();
        while row.crowd.refused(REFUSAL) < refused + REFUSALS_MIN {
            let words = row.cluster.nodes[0].last_words();
            ensure!(began.elapsed() < SERVES_WITHIN, "a node on a full disk does not say {REFUSAL}: {words}");
            // What it frees for itself is taken too.
            filled += of_node.fill()?;
            for path in [&cart, &format!("/api/products/{}", sku(0)), &format!("{cart}/quote")] {
                let answer = shopper.get(path).await?;
                ensure!(answer.status == 200, "{path} on a full disk: {} {}", answer.status, answer.text());
                reads += 1;
            }
            sleep(Duration::from_millis(20)).await;
        }
        of_node.free()?;
        let before = row.crowd.acknowledged_by(0);
        let served = row.crowd.writes_at(0, before, 20, SERVES_WITHIN).await;
        ensure!(
            served,
            "a node takes no writes after its disk is free: {}",
            row.cluster.nodes[0].last_words()
        );

        // The region's.
        filled += of_region.fill()?;
        let lasts = Duration::from_millis(800 + mix(seed(), round, 3) % 1_200);
        let (began, before) = (Instant::now(), row.crowd.acknowledged());
        while began.elapsed() < lasts {
            filled += of_region.fill()?;
            sleep(Duration::from_millis(50)).await;
        }
        let written = row.crowd.acknowledged() - before;
        ensure!(written > 0, "the nodes take no writes while the region's disk is full");
        of_region.free()?;
        row.region_commits().await?;
    }
    let what = format!(
        "{rounds} times the disk of a node and of the region full to the last byte ({} MB of ballast), {} changes refused as \
         {REFUSAL}, {reads} reads answered meanwhile",
        filled >> 20,
        row.crowd.refused(REFUSAL)
    );
    row.close(&what).await?;
    Ok(())
}
