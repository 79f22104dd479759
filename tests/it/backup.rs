//! A region is backed up while it runs, goes on, is lost with its disk, and comes back from the backup: what nodes were told is
//! safe is there again, by what they have kept; what they have not kept is told by number; and what is broken is not restored.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use souk_tests::cluster::{Cluster, Plan, Server, Spec};
use souk_tests::http::Client;
use souk_tests::{say, skip, souk};
use tokio::time::sleep;

use crate::shop::with_cookies;

const SITE: &str = "shop";
const HOST: &str = "shop.example";
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
/// Carts at each node before the backup, and as many after it.
const CARTS: usize = 12;

/// `souk region …`, to its end.
async fn region(arguments: Vec<String>) -> Result<Output> {
    let mut command = Command::new(souk());
    command.arg("region").args(arguments).stdin(Stdio::null());
    Ok(tokio::task::spawn_blocking(move || command.output()).await??)
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

async fn backup(server: &Server, dir: &Path) -> Result<Output> {
    region(
        ["backup", "--json", "--config"]
            .map(str::to_owned)
            .into_iter()
            .chain([shown(&server.config()), shown(dir)])
            .collect(),
    )
    .await
}

async fn restore(server: &Server, dir: &Path) -> Result<Output> {
    region(
        ["restore", "--json", "--config"]
            .map(str::to_owned)
            .into_iter()
            .chain([shown(&server.config()), shown(dir)])
            .collect(),
    )
    .await
}

async fn verify(dir: &Path) -> Result<Output> {
    region(vec!["verify".to_owned(), "--json".to_owned(), shown(dir)]).await
}

fn succeeded(output: &Output) -> Result<Value> {
    let (said, why) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{}: {said}{why}", output.status);
    Ok(serde_json::from_str(&said)?)
}

/// A shopper, and what he was told is in his cart.
struct Shopper {
    /// Where, counted from 0.
    node: usize,
    client: Client,
    cart: String,
    lines: BTreeMap<String, u64>,
}

impl Shopper {
    async fn enter(cluster: &Cluster, node: usize) -> Result<Self> {
        let client = Client::new(cluster.nodes[node].http()?).with("host", HOST);
        let answer = client.post("/api/carts", json!({ "country": "GB" })).await?;
        ensure!(answer.status == 201, "{}: {}", answer.status, answer.text());
        let cart = answer.json()["cart"].as_str().context("a cart has a name")?.to_owned();
        Ok(Self { node, client: with_cookies(&client, &answer), cart, lines: BTreeMap::new() })
    }

    async fn add(&mut self, sku: &str, quantity: u64) -> Result<()> {
        let path = format!("/api/carts/{}/lines", self.cart);
        let answer = self.client.post(&path, json!({ "sku": sku, "quantity": quantity })).await?;
        ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
        *self.lines.entry(sku.to_owned()).or_default() += quantity;
        Ok(())
    }

    async fn order(&self) -> Result<Value> {
        let quote = self.client.get(&format!("/api/carts/{}/quote", self.cart)).await?.json();
        let client = self.client.with("idempotency-key", &self.cart);
        let asked = json!({ "cart": self.cart, "total": quote["total"] });
        let began = Instant::now();
        loop {
            let answer = client.post("/api/checkouts", asked.clone()).await?;
            if answer.status == 201 || answer.status == 200 {
                return Ok(answer.json());
            }
            ensure!(began.elapsed() < PATIENCE, "{}: {}", answer.status, answer.text());
            sleep(POLL).await;
        }
    }
}

/// The region has everything that the nodes have accepted.
async fn drained(cluster: &Cluster) -> Result<()> {
    let began = Instant::now();
    for node in &cluster.nodes {
        loop {
            let status = Client::new(node.admin()?).get("/v1/status").await?.json();
            if status["outbox"]["unacked"] == 0 && status["link"]["connected"] == true {
                break;
            }
            ensure!(
                began.elapsed() < PATIENCE,
                "{} keeps {}, {}",
                node.name(),
                status["outbox"],
                status["link"]
            );
            sleep(POLL).await;
        }
    }
    Ok(())
}

/// What the region has of a cart, line by line; none if it does not know it.
async fn at_region(cluster: &Cluster, cart: &str) -> Result<BTreeMap<String, u64>> {
    let answer = cluster.operator()?.get(&format!("/v1/sites/{SITE}/carts/{cart}")).await?;
    if answer.status == 404 {
        return Ok(BTreeMap::new());
    }
    ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
    let cart = answer.json();
    let lines = cart["lines"].as_array().context("a cart has lines")?;
    Ok(lines
        .iter()
        .filter_map(|line| Some((line["line"].as_str()?.to_owned(), line["quantity"].as_u64()?)))
        .collect())
}

async fn metric(cluster: &Cluster, name: &str) -> Result<f64> {
    let page = cluster.operator()?.get("/metrics").await?.text();
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned));
    Ok(line.with_context(|| format!("no {name} in {page}"))?.trim().parse()?)
}

fn products(price: u64) -> Value {
    json!([
        { "sku": "MUG", "title": "A mug", "price": price, "stock": 5_000 },
        { "sku": "PEN", "title": "A pen", "price": 200, "stock": 5_000 },
    ])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_that_is_lost_with_its_disk_comes_back_with_all_that_its_nodes_have_kept() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (data, kept) = (folder.path().join("region"), folder.path().join("backups"));
    let forgetful = Spec { config: vec![("limits", json!({ "outbox_kept_for": "0s" }))], ..Spec::default() };
    let plan = Plan {
        region: Spec { data: Some(data.clone()), ..Spec::default() },
        nodes: vec![Spec::default(), Spec::default(), forgetful],
        ..Plan::default()
    };
    let mut cluster = Cluster::raise(plan).await?;
    cluster.open_shop(SITE, HOST, &products(1_000)).await?;

    // A day at the shop.
    let mut shoppers = Vec::new();
    for number in 0..CARTS * 3 {
        let mut shopper = Shopper::enter(&cluster, number % 3).await?;
        shopper.add("MUG", 1 + number as u64 % 3).await?;
        shoppers.push(shopper);
    }
    let mut early = Shopper::enter(&cluster, 0).await?;
    early.add("MUG", 2).await?;
    let order = early.order().await?;
    drained(&cluster).await?;

    // A backup while it goes on.
    let mut busy = Shopper::enter(&cluster, 1).await?;
    let writing = tokio::spawn(async move {
        for _ in 0..60 {
            busy.add("PEN", 1).await?;
        }
        anyhow::Ok(busy)
    });
    let began = Instant::now();
    let made = succeeded(&backup(&cluster.region, &kept).await?)?;
    let took = began.elapsed();
    ensure!(made["orders"] == 1 && made["rows"].as_u64() > Some(50), "{made}");
    shoppers.push(writing.await??);
    let checked = succeeded(&verify(&kept).await?)?;
    ensure!(checked["faults"] == json!([]), "{checked}");

    // What the backup does not know: lines in old carts and new ones, at each node, all applied and acknowledged by the region.
    for (number, shopper) in shoppers.iter_mut().enumerate() {
        shopper.add("PEN", 1 + number as u64 % 4).await?;
    }
    for number in 0..CARTS * 3 {
        let mut shopper = Shopper::enter(&cluster, number % 3).await?;
        shopper.add("MUG", 7).await?;
        shoppers.push(shopper);
    }
    let mut late = Shopper::enter(&cluster, 0).await?;
    late.add("MUG", 1).await?;
    let lost_order = late.order().await?;
    // And a price that will be as it was.
    let operator = cluster.operator()?;
    let answer =
        operator.post(&format!("/v1/sites/{SITE}/products"), json!({ "products": products(900) })).await?;
    ensure!(answer.status == 200, "{}", answer.text());
    until_price(&cluster, 900).await?;
    drained(&cluster).await?;
    let former = metric(&cluster, "souk_region_operations_gone").await?;
    ensure!(former == 0.0, "{former}");

    // The disk is gone. The nodes go on.
    cluster.region.kill()?;
    std::fs::remove_dir_all(&data)?;
    for shopper in shoppers.iter_mut().step_by(5) {
        shopper.add("PEN", 1).await?;
    }

    // A byte of the backup has changed: nothing is restored.
    let newest = std::path::PathBuf::from(made["path"].as_str().context("where it is")?);
    let file = newest.join("cart.rows");
    let whole = std::fs::read(&file)?;
    let mut broken = whole.clone();
    broken[whole.len() / 2] ^= 1;
    std::fs::write(&file, broken)?;
    let found = verify(&kept).await?;
    ensure!(
        found.status.code() == Some(1) && String::from_utf8_lossy(&found.stdout).contains("cart.rows"),
        "{found:?}"
    );
    let refused = restore(&cluster.region, &kept).await?;
    ensure!(refused.status.code() == Some(1) && !data.join("region.db").exists(), "{refused:?}");
    std::fs::write(&file, whole)?;

    let began = Instant::now();
    let restored = succeeded(&restore(&cluster.region, &kept).await?)?;
    let restoring = began.elapsed();
    ensure!(restored["orders"] == 1 && restored["former_epoch"] == made["region_epoch"], "{restored}");
    let twice = restore(&cluster.region, &kept).await?;
    ensure!(
        !twice.status.success() && String::from_utf8_lossy(&twice.stderr).contains("region.db"),
        "{twice:?}"
    );
    let began = Instant::now();
    cluster.region.start().await?;
    drained(&cluster).await?;
    let caught_up = began.elapsed();

    // The price is as the backup has it, at every node: a node that was ahead has gone back.
    until_price(&cluster, 1_000).await?;
    // What the two nodes that keep were told is safe is there again.
    let (mut whole, mut short) = (0, 0);
    for Shopper { node, cart, lines, .. } in &shoppers {
        let mut found = at_region(&cluster, cart).await?;
        // A node may not have come to what it is to send again.
        while *node != 2 && found != *lines && began.elapsed() < PATIENCE {
            sleep(POLL).await;
            found = at_region(&cluster, cart).await?;
        }
        if found == *lines {
            whole += 1;
        } else {
            ensure!(*node == 2, "cart {cart} of node {node}: {found:?}, and was told {lines:?}");
            short += 1;
        }
    }
    drained(&cluster).await?;
    ensure!(whole >= CARTS * 4 && short > 0, "{whole} whole, {short} short");
    // What the third has not kept is told, by number, until somebody has read it.
    let gone = operator.get("/v1/operations-gone").await?.json();
    let runs = gone.as_array().context("a list")?;
    ensure!(
        runs.len() == 1 && runs[0]["node"] == 3 && runs[0]["first"].as_u64() <= runs[0]["last"].as_u64(),
        "{gone}"
    );
    let counted = metric(&cluster, "souk_region_operations_gone").await?;
    let run = |field: &str| runs[0][field].as_u64().context("a number");
    ensure!(counted as u64 == run("last")? - run("first")? + 1, "{counted} of {gone}");
    let read = operator.send(http::Method::DELETE, "/v1/operations-gone", None).await?;
    ensure!(
        read.status == 200 && metric(&cluster, "souk_region_operations_gone").await? == 0.0,
        "{}",
        read.text()
    );

    // The order that the backup has is repeated, not made again. The other one the region does not know any more.
    let again = early.order().await?;
    ensure!(again["id"].is_string() && again["id"] == order["id"], "{order} and {again}");
    let orders = operator.get(&format!("/v1/sites/{SITE}/orders?limit=1000")).await?.json();
    ensure!(
        orders.as_array().map(Vec::len) == Some(1)
            && !orders.to_string().contains(lost_order["id"].as_str().context("a name")?),
        "{orders}"
    );
    let audit = operator.get("/v1/audit?limit=1000").await?.text();
    ensure!(audit.contains("region.restored"), "{audit}");
    let checked = succeeded(
        &region(vec![
            "verify".to_owned(),
            "--json".to_owned(),
            "--config".to_owned(),
            shown(&cluster.region.config()),
        ])
        .await?,
    )?;
    ensure!(checked["faults"] == json!([]), "{checked}");
    say(&format!(
        "backup of {} rows while it ran: {} ms; restore: {} ms; nodes had sent again what they kept {} ms after the start. \
         {whole} carts whole, {short} of the node that keeps nothing short of {} operations, told by number",
        made["rows"],
        took.as_millis(),
        restoring.as_millis(),
        caught_up.as_millis(),
        counted
    ));
    Ok(())
}

async fn until_price(cluster: &Cluster, price: u64) -> Result<()> {
    let began = Instant::now();
    for node in &cluster.nodes {
        let shopper = Client::new(node.http()?).with("host", HOST);
        loop {
            let product = shopper.get("/api/products/MUG").await?.json();
            if product["price"] == price {
                break;
            }
            ensure!(began.elapsed() < PATIENCE, "{} sells at {product}", node.name());
            sleep(POLL).await;
        }
    }
    Ok(())
}

/// A file system in memory that is soon full. Dropping it takes it away.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// Or why there can be none here.
    fn make(bytes: u64) -> Result<Result<Self, String>> {
        let folder = tempfile::tempdir()?;
        let size = format!("size={bytes}");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "souk-small"])
            .arg(folder.path())
            .output();
        Ok(match mounted {
            Ok(output) if output.status.success() => Ok(Self(folder)),
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Err(error) => Err(format!("no mount ({error})")),
        })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).output();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_full_is_named_and_holds_no_half_of_a_backup() -> Result<()> {
    let small = match SmallDisk::make(96 << 10)? {
        Ok(small) => small,
        Err(why) => {
            skip("a_disk_that_is_full_is_named_and_holds_no_half_of_a_backup", &why);
            return Ok(());
        }
    };
    let cluster = Cluster::raise(Plan::of(0)).await?;
    let description =
        (0..3_000_u64).map(|n| format!("{:x} ", n.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect::<String>();
    let rows: Vec<_> = (0..4)
        .map(|n| json!({ "sku": format!("S{n}"), "title": "A thing", "description": &description[n * 100..][..8_000], "price": 1 }))
        .collect();
    cluster.open_shop(SITE, HOST, &json!(rows)).await?;
    let kept = small.0.path().join("backups");
    let mut made = 0;
    let refused = loop {
        let output = backup(&cluster.region, &kept).await?;
        if !output.status.success() {
            break output;
        }
        made += 1;
        ensure!(made < 50, "a disk of 96 KiB holds fifty backups");
    };
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.status.code() == Some(1) && why.contains("is full: free some room"), "{why}");
    let names: Vec<_> = std::fs::read_dir(&kept)?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    ensure!(!names.iter().any(|name| name.starts_with(".unfinished")), "{names:?}");
    ensure!(
        names.iter().filter(|name| name.ends_with('Z') || name.contains("Z-")).count() == made,
        "{names:?}"
    );
    if made > 0 {
        succeeded(&verify(&kept).await?)?;
    }
    // There is room again, and the next one is whole.
    let roomy = tempfile::tempdir()?;
    succeeded(&backup(&cluster.region, roomy.path()).await?)?;
    succeeded(&verify(roomy.path()).await?)?;
    Ok(())
}
