//! Two regions of one name: the home is killed in the middle of a sale, its standby takes over, nodes go over by themselves, and the
//! former home is refused when it comes back.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use souk_tests::cluster::{Cluster, Plan, Ready, Server, Spec, own_address};
use souk_tests::demo::until;
use souk_tests::http::Client;
use souk_tests::identity::{Identity, REGION, SERVER_NAME, TOKEN};
use souk_tests::{say, souk};
use tokio::task::JoinSet;

use crate::shop::with_cookies;

const HOST: &str = "shop.example";
const SHOPPERS: usize = 40;
/// At once.
const CROWD: usize = 4;
const UNITS: u64 = 1_000;
const PRICES: [(&str, u64); 2] = [("MUG", 1_099), ("PEN", 251)];

/// Two regions, the first of which is home, and two nodes that know both.
struct Pair {
    regions: [Server; 2],
    nodes: Vec<Server>,
    /// Where the regions listen for nodes and for each other.
    links: [SocketAddr; 2],
    _dir: tempfile::TempDir,
}

fn free_port() -> Result<SocketAddr> {
    Ok(UdpSocket::bind((own_address(), 0))?.local_addr()?)
}

fn run(args: &[&str]) -> Result<Output> {
    Ok(Command::new(souk()).args(args).stdin(Stdio::null()).output()?)
}

/// `souk region follow`.
fn follow(config: &Path, more: &[&str]) -> Result<Output> {
    let config = config.display().to_string();
    run(&[&["region", "follow", "--config", &config], more].concat())
}

fn region_config(
    identity: &Identity,
    links: [SocketAddr; 2],
    number: usize,
    data: &Path,
    level: u8,
    control: String,
) -> Value {
    json!({
        "region": { "name": REGION, "data_dir": data },
        "listen": { "link": links[number].to_string(), "control": control },
        "link": identity.region_link(),
        "control": identity.control(),
        "vault": identity.vault(),
        "pair": { "addrs": [links[1 - number].to_string()], "server_name": SERVER_NAME, "ack_level": level },
        "log": { "filter": "warn,souk_region=info" },
    })
}

impl Pair {
    async fn raise(level: u8) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("souk-pair-").tempdir()?;
        let identity = Identity::create(dir.path(), 2)?;
        let (ip, links) = (own_address(), [free_port()?, free_port()?]);
        let folder = |name: &str| dir.path().join(name);
        let region = async |number: usize| {
            let name = ["home", "standby"][number];
            let data = folder(name).join("data");
            let config =
                |ready: Ready| region_config(&identity, links, number, &data, level, ready.control(ip));
            if number == 1 {
                std::fs::create_dir_all(folder(name))?;
                let file = folder(name).join("config.toml");
                std::fs::write(&file, toml::to_string(&config(Ready::default()))?)?;
                let made = follow(&file, &[])?;
                ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
            }
            Server::raise(name.to_owned(), "region", folder(name), &Spec::default(), config).await
        };
        let regions = [region(0).await?, region(1).await?];
        let mut nodes = Vec::new();
        for id in 1..=2 {
            let name = format!("edge-{id}");
            let data = folder(&name).join("data");
            // One asks the home first, the other the standby.
            let mut dialled = links.map(|link| link.to_string());
            if id == 2 {
                dialled.reverse();
            }
            let config = |ready: Ready| {
                let [http, admin] = ready.doors(ip);
                json!({
                    "node": { "id": id, "pop": format!("pop{id}"), "region": REGION, "data_dir": data },
                    "listen": { "http": http, "admin": admin },
                    "link": identity.node_link_to(id, &dialled),
                    "log": { "filter": "warn" },
                })
            };
            nodes.push(Server::raise(name.clone(), "edge", folder(&name), &Spec::default(), config).await?);
        }
        Ok(Self { regions, nodes, links, _dir: dir })
    }

    fn operator(&self, number: usize) -> Result<Client> {
        Ok(Client::new(self.regions[number].admin()?).with("authorization", &format!("Bearer {TOKEN}")))
    }

    /// `/v1/pair` of a region.
    async fn status(&self, number: usize) -> Result<Value> {
        Ok(self.operator(number)?.get("/v1/pair").await?.json())
    }

    /// Waits until a region says that it was replaced. While it becomes that, whoever asks may be cut off, and is never refused.
    async fn until_replaced(&self, number: usize) -> Result<()> {
        until("the former home has given way", async || {
            Ok(match self.status(number).await {
                Ok(status) if status["role"] == "replaced" && status["term"] == 2 => Ok(()),
                Ok(status) => Err(status.to_string()),
                Err(shut) => {
                    let said = format!("{shut:#}");
                    ensure!(!said.contains("refused"), "its door was shut: {said}");
                    Err(said)
                }
            })
        })
        .await
    }

    /// Waits until a home's standby has everything.
    async fn until_equal(&self, home: usize) -> Result<()> {
        until("the standby has everything", async || {
            let status = self.status(home).await?;
            let is_so = status["role"] == "home" && status["connected"] == true && status["lag_rows"] == 0;
            Ok(if is_so { Ok(()) } else { Err(status.to_string()) })
        })
        .await
    }

    async fn open_shop(&self) -> Result<()> {
        let operator = self.operator(0)?;
        let settings = json!({ "site": "shop", "hosts": [HOST], "currency": "GBP" });
        let answer = operator.put("/v1/sites/shop", settings).await?;
        ensure!(answer.status.is_success(), "{}", answer.text());
        let row =
            |(sku, price): (&str, u64)| json!({ "sku": sku, "title": sku, "price": price, "stock": UNITS });
        let products: Vec<Value> = PRICES.map(row).into();
        let answer = operator.post("/v1/sites/shop/products", json!({ "products": products })).await?;
        ensure!(answer.status.is_success(), "{}", answer.text());
        for node in 0..self.nodes.len() {
            let shopper = self.shopper(node)?;
            until("the product is at the node", async || {
                let answer = shopper.get("/api/products/PEN").await?;
                Ok(if answer.status == 200 { Ok(()) } else { Err(answer.text()) })
            })
            .await?;
        }
        // Goods reach a node before it may write.
        self.until_nodes_are_at(0, 1).await
    }

    fn shopper(&self, node: usize) -> Result<Client> {
        Ok(Client::new(self.nodes[node].http()?).with("host", HOST))
    }

    /// The link of a node, as it says.
    async fn link(&self, node: usize) -> Result<Value> {
        Ok(Client::new(self.nodes[node].admin()?).get("/v1/status").await?.json())
    }

    /// Waits until each node is at a region, and has handed over what it had.
    async fn until_nodes_are_at(&self, number: usize, term: u64) -> Result<()> {
        for node in 0..self.nodes.len() {
            until("a node is at the home, and has handed over what it had", async || {
                let status = self.link(node).await?;
                let link = &status["link"];
                let is_there = link["connected"] == true
                    && link["address"] == self.links[number].to_string()
                    && link["term"] == term
                    && status["outbox"]["epoch"].is_u64()
                    && status["outbox"]["unacked"] == 0;
                Ok(if is_there { Ok(()) } else { Err(status.to_string()) })
            })
            .await?;
        }
        Ok(())
    }

    /// `souk region takeover` at the standby.
    fn take_over(&self) -> Result<Output> {
        let region = format!("http://{}", self.regions[1].admin()?);
        run(&["region", "takeover", "--region", &region, "--token", TOKEN, "--json"])
    }
}

/// What a shopper was told: the cart and what is in it, and the order if one was told.
struct Told {
    /// With the shopper's cookies.
    client: Client,
    cart: String,
    bought: Vec<(&'static str, u64)>,
    order: Option<(String, u64)>,
}

/// Fills a cart, and orders it with the same key until the answer is yes.
async fn shop(pair: &Pair, number: usize, orders: bool) -> Result<Told> {
    let client = pair.shopper(number % 2)?;
    let made = client.post("/api/carts", json!({})).await?;
    ensure!(made.status == 201, "{}: {}", made.status, made.text());
    let cart = made.json()["cart"].as_str().context("a cart has a name")?.to_owned();
    let client = with_cookies(&client, &made);
    let (mut bought, mut total) = (Vec::new(), 0);
    for (index, (sku, price)) in PRICES.into_iter().enumerate().take(1 + number % 2) {
        let quantity = 1 + ((number + index) % 3) as u64;
        let line = json!({ "sku": sku, "quantity": quantity });
        // Accepted by the node, whatever the region does.
        let added = client.post(&format!("/api/carts/{cart}/lines"), line).await?;
        ensure!(added.status == 200, "{}: {}", added.status, added.text());
        bought.push((sku, quantity));
        total += quantity * price;
    }
    if !orders {
        return Ok(Told { client, cart, bought, order: None });
    }
    let asks = client.with("idempotency-key", &cart);
    let placed = until("a checkout is answered", async || {
        let answer = asks.post("/api/checkouts", json!({ "cart": cart, "total": total })).await?;
        Ok(match answer.status.as_u16() {
            201 => Ok(answer.json()),
            _ => Err(format!("{}: {}", answer.status, answer.text())),
        })
    })
    .await?;
    let order = placed["id"].as_str().with_context(|| format!("an order has a number: {placed}"))?.to_owned();
    Ok(Told { client, cart, bought, order: Some((order, total)) })
}

/// A crowd shops; when half of them are done, `at_half` happens once.
async fn sale(pair: &Arc<Pair>, orders: bool, at_half: impl FnOnce() -> Result<()>) -> Result<Vec<Told>> {
    let (next, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (half, reached) = tokio::sync::oneshot::channel();
    let half = Arc::new(std::sync::Mutex::new(Some(half)));
    let mut crowd = JoinSet::new();
    for _ in 0..CROWD {
        let (pair, next, done, half) =
            (Arc::clone(pair), Arc::clone(&next), Arc::clone(&done), Arc::clone(&half));
        crowd.spawn(async move {
            let mut told = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= SHOPPERS {
                    return Ok::<_, anyhow::Error>(told);
                }
                told.push(shop(&pair, number, orders).await.with_context(|| format!("shopper {number}"))?);
                if done.fetch_add(1, Ordering::Relaxed) == SHOPPERS / 2
                    && let Some(half) = half.lock().ok().and_then(|mut half| half.take())
                {
                    let _sent = half.send(());
                }
            }
        });
    }
    drop(half);
    let reached = reached.await;
    if reached.is_ok() {
        at_half()?;
    }
    let mut all = Vec::new();
    while let Some(joined) = crowd.join_next().await {
        all.extend(joined??);
    }
    reached.context("half of the crowd has shopped")?;
    Ok(all)
}

/// Each order that was told is there once, its money and its stock too.
async fn check_orders(operator: &Client, told: &[Told]) -> Result<u64> {
    let listed = operator.get("/v1/sites/shop/orders?limit=1000").await?.json();
    let of = |row: &Value| Some((row["order"].as_str()?.to_owned(), row["total"].as_u64()?));
    let listed: Vec<(String, u64)> = listed.as_array().into_iter().flatten().filter_map(of).collect();
    let by_order: BTreeMap<_, _> = listed.iter().cloned().collect();
    ensure!(listed.len() == by_order.len(), "an order is listed twice: {listed:?}");
    let expected: BTreeMap<_, _> = told.iter().filter_map(|told| told.order.clone()).collect();
    ensure!(by_order == expected, "told {expected:?}\nlisted {by_order:?}");
    let mut sold = BTreeMap::<&str, u64>::new();
    for (sku, quantity) in told.iter().filter(|told| told.order.is_some()).flat_map(|told| &told.bought) {
        *sold.entry(*sku).or_default() += quantity;
    }
    for (sku, sold) in sold {
        let stock = operator.get(&format!("/v1/sites/shop/stock/{sku}")).await?.json();
        ensure!(stock["sold"] == sold && stock["available"] == UNITS - sold, "{sold} of {sku} sold: {stock}");
    }
    let chain = operator.get("/v1/audit/chain").await?.json();
    ensure!(chain["whole"] == true, "{chain}");
    Ok(by_order.values().sum())
}

/// Each line that a shopper was told is in a cart is there.
async fn check_carts(operator: &Client, told: &[Told]) -> Result<()> {
    for Told { cart, bought, .. } in told {
        let seen = operator.get(&format!("/v1/sites/shop/carts/{cart}")).await?;
        ensure!(seen.status == 200, "cart {cart}: {} {}", seen.status, seen.text());
        let text = seen.json();
        let lines = text["lines"].as_array().with_context(|| format!("a cart has lines: {text}"))?;
        let found: BTreeMap<_, _> = lines
            .iter()
            .filter_map(|line| Some((line["line"].as_str()?, line["quantity"].as_u64()?)))
            .collect();
        let expected: BTreeMap<_, _> = bought.iter().copied().collect();
        ensure!(found == expected, "cart {cart}: told {expected:?}, found {text}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_home_is_killed_and_with_two_acknowledgements_no_order_is_lost() -> Result<()> {
    let pair = Pair::raise(2).await?;
    pair.until_equal(0).await?;
    pair.open_shop().await?;
    let refused = pair.operator(1)?.post("/v1/sites/shop/purges", json!({ "tags": ["all"] })).await?;
    ensure!(refused.status == 503 && refused.code() == "not_home", "{}", refused.text());

    let pair = Arc::new(pair);
    let told = sale(&pair, true, || {
        // The others are in the middle of theirs.
        pair.regions[0].shoot()?;
        let taken = pair.take_over()?;
        ensure!(taken.status.success(), "{}", String::from_utf8_lossy(&taken.stderr));
        let taken: Value = serde_json::from_slice(&taken.stdout)?;
        ensure!(taken["term"] == 2, "{taken}");
        Ok(())
    })
    .await?;
    let mut pair = Arc::try_unwrap(pair).ok().context("the shoppers have gone")?;
    pair.regions[0].kill()?;
    pair.until_nodes_are_at(1, 2).await?;
    let home = pair.operator(1)?;
    let money = check_orders(&home, &told).await?;
    say(&format!("the home killed in a sale, ack_level 2: {} orders, {money} pennies, 0 lost", told.len()));
    let gone = home.get("/v1/operations-gone").await?.json();
    ensure!(gone.as_array().is_some_and(Vec::is_empty), "{gone}");
    let audit = home.get("/v1/audit?limit=1000").await?.text();
    ensure!(audit.contains("region.taken_over"), "{audit}");

    the_former_home_is_refused(&mut pair).await?;
    the_former_home_becomes_the_standby(&mut pair).await?;
    check_orders(&pair.operator(1)?, &told).await?;
    Ok(())
}

async fn the_former_home_is_refused(pair: &mut Pair) -> Result<()> {
    pair.regions[0].start().await?;
    pair.until_replaced(0).await?;
    let operator = pair.operator(0)?;
    let refused = operator.get("/readyz").await?;
    ensure!(refused.status == 503 && refused.code() == "not_home", "{}", refused.text());
    let refused = operator.put("/v1/sites/shop/stock/MUG", json!({ "stock": 1 })).await?;
    ensure!(refused.status == 503 && refused.code() == "not_home", "{}", refused.text());
    let refused = operator.post("/v1/takeover", json!({})).await?;
    ensure!(refused.status == 409 && refused.code() == "replaced", "{}", refused.text());
    let page = operator.get("/metrics").await?.text();
    ensure!(page.contains("souk_region_pair_role{role=\"replaced\"} 1"), "{page}");
    pair.until_nodes_are_at(1, 2).await
}

async fn the_former_home_becomes_the_standby(pair: &mut Pair) -> Result<()> {
    pair.regions[0].kill()?;
    let config: PathBuf = pair.regions[0].config();
    let data = config.parent().context("a folder")?.join("data");
    let kept = data.with_file_name("backup");
    let [from, to] = [&config, &kept].map(|path| path.display().to_string());
    let saved = run(&["region", "backup", "--config", &from, &to])?;
    ensure!(saved.status.success(), "{}", String::from_utf8_lossy(&saved.stderr));
    let refused = follow(&config, &[])?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && said.contains("discard"), "{said}");
    let made = follow(&config, &["--discard"])?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    pair.regions[0].start().await?;
    pair.until_equal(1).await?;
    let status = pair.status(0).await?;
    ensure!(status["role"] == "standby" && status["term"] == 2, "{status}");
    ensure!(data.join("region.former.db").exists(), "what it was as a home is kept");
    // A standby has its folder to itself.
    let refused = follow(&config, &["--discard"])?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && said.contains("in use by another process"), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_home_is_killed_and_nodes_bring_what_its_standby_lacks() -> Result<()> {
    let pair = Pair::raise(1).await?;
    pair.until_equal(0).await?;
    pair.open_shop().await?;
    let pair = Arc::new(pair);
    // What the home acknowledges from there on its standby never hears of.
    let told = sale(&pair, false, || pair.regions[1].freeze()).await?;
    let mut pair = Arc::try_unwrap(pair).ok().context("the shoppers have gone")?;
    pair.until_nodes_are_at(0, 1).await?;
    pair.regions[0].kill()?;
    pair.regions[1].thaw()?;
    let began = Instant::now();
    let taken = pair.take_over()?;
    ensure!(taken.status.success(), "{}", String::from_utf8_lossy(&taken.stderr));
    pair.until_nodes_are_at(1, 2).await?;
    say(&format!(
        "all nodes at the new home {:.1} s after the takeover was asked for",
        began.elapsed().as_secs_f64()
    ));
    let home = pair.operator(1)?;
    // A node that has just been welcomed has yet to go back to what the new home has: until then it counts what the former one
    // had acknowledged.
    until("each cart is at the new home", async || {
        Ok(check_carts(&home, &told).await.map_err(|lost| format!("{lost:#}")))
    })
    .await?;
    let gone = home.get("/v1/operations-gone").await?.json();
    ensure!(gone.as_array().is_some_and(Vec::is_empty), "{gone}");
    say(&format!("the home killed, ack_level 1, its standby behind: {} carts, 0 lost", told.len()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_home_without_its_standby_acknowledges_nothing_and_a_replaced_one_gives_way() -> Result<()> {
    let mut pair = Pair::raise(2).await?;
    pair.until_equal(0).await?;
    pair.open_shop().await?;
    let first = shop(&pair, 1, true).await?;
    pair.regions[1].kill()?;
    // The cart is taken, the order is not promised.
    let waiting = shop(&pair, 3, false).await?;
    let client = waiting.client.with("idempotency-key", &waiting.cart);
    let total: u64 = waiting
        .bought
        .iter()
        .map(|(sku, n)| n * PRICES.iter().find(|(s, _)| s == sku).map_or(0, |p| p.1))
        .sum();
    let wish = json!({ "cart": waiting.cart, "total": total });
    let said = until("the checkout is refused by name", async || {
        let answer = client.post("/api/checkouts", wish.clone()).await?;
        Ok(if answer.code() == "standby_away" { Ok(answer) } else { Err(answer.text()) })
    })
    .await?;
    ensure!(said.status == 503 && said.header("retry-after") == "2", "{} {}", said.status, said.text());
    let unacked = pair.link(1).await?["outbox"]["unacked"].as_u64().unwrap_or(0);
    ensure!(unacked > 0, "{unacked} operations wait for the standby");
    // It comes back, and so does the answer to the same key.
    pair.regions[1].start().await?;
    let placed = until("the same key gives the order", async || {
        let answer = client.post("/api/checkouts", wish.clone()).await?;
        Ok(if answer.status == 201 { Ok(answer.json()) } else { Err(answer.text()) })
    })
    .await?;
    let order = placed["id"].as_str().context("an order")?.to_owned();
    let told = [first, Told { order: Some((order, total)), ..waiting }];
    pair.until_nodes_are_at(0, 1).await?;
    pair.until_equal(0).await?;

    // Taken over while the home lives: it hears of it, and its nodes go over.
    let taken = pair.take_over()?;
    ensure!(taken.status.success(), "{}", String::from_utf8_lossy(&taken.stderr));
    pair.until_replaced(0).await?;
    pair.until_nodes_are_at(1, 2).await?;
    check_orders(&pair.operator(1)?, &told).await?;

    // By force neither, while the later one answers: it may have orders that nobody else has.
    let forced = pair.operator(0)?.post("/v1/takeover", json!({ "force": true })).await?;
    ensure!(forced.status == 409 && forced.code() == "home_lives", "{} {}", forced.status, forced.text());
    // One that is gone is believed to be.
    pair.regions[1].kill()?;
    let forced = pair.operator(0)?.post("/v1/takeover", json!({ "force": true })).await?;
    ensure!(forced.status == 200 && forced.json()["term"] == 3, "{} {}", forced.status, forced.text());
    Ok(())
}

/// Has a node say that it has met the last home that there could ever be, and waits until the home tells its operator. A certificate
/// says which node that is, and not that it is honest.
async fn names_a_later_home(node: &mut Server, operator: &Client) -> Result<()> {
    node.kill()?;
    let data = node.config().parent().context("a folder")?.join("data");
    std::fs::write(data.join("term"), format!("{}\n", u64::MAX))?;
    node.start().await?;
    until("the home tells of the node that it rejects", async || {
        let status: Value = operator.get("/v1/pair").await?.json();
        let said = status["trouble"].as_str().unwrap_or_default();
        let is_told = said.contains("node 2") && said.contains(&u64::MAX.to_string());
        let is_counted = status["later_home_named"].as_u64().is_some_and(|times| times > 0);
        Ok(if is_told && is_counted { Ok(()) } else { Err(status.to_string()) })
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_nodes_word_ends_a_region_that_has_no_other() -> Result<()> {
    let mut alone = Cluster::raise(Plan::of(2)).await?;
    let operator = alone.operator()?;
    names_a_later_home(&mut alone.nodes[1], &operator).await?;
    let settings = json!({ "site": "shop", "hosts": [HOST], "currency": "GBP" });
    let answer = operator.put("/v1/sites/shop", settings).await?;
    ensure!(answer.status.is_success(), "{}", answer.text());
    // Nothing of it was written down.
    alone.region.kill()?;
    alone.region.start().await?;
    let status: Value = operator.get("/v1/pair").await?.json();
    ensure!(status["role"] == "home" && status["term"] == 1, "{status}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_nodes_word_ends_a_home_whose_standby_does_not_say_so() -> Result<()> {
    let mut pair = Pair::raise(2).await?;
    pair.until_equal(0).await?;
    pair.open_shop().await?;
    let operator = pair.operator(0)?;
    names_a_later_home(&mut pair.nodes[1], &operator).await?;
    // The honest node's shoppers are served.
    shop(&pair, 0, true).await?;
    let status = pair.status(0).await?;
    ensure!(status["role"] == "home" && status["term"] == 1, "{status}");
    // And what it has made up counts nowhere.
    let taken = pair.take_over()?;
    ensure!(taken.status.success(), "{}", String::from_utf8_lossy(&taken.stderr));
    let taken: Value = serde_json::from_slice(&taken.stdout)?;
    ensure!(taken["term"] == 2, "{taken}");
    Ok(())
}
