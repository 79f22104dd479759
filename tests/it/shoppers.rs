//! A merchant gives a shopper what is kept of him, and erases him: gone from the region, the nodes, the logs and the key of
//! older copies, also at a node that was away; and an auditor sees that it happened.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use rcgen::KeyPair;
use serde_json::{Value, json};
use souk_tests::cluster::{Cluster, Plan, Spec};
use souk_tests::demo::until;
use souk_tests::http::Client;
use souk_tests::identity::TOKEN;
use souk_tests::{say, souk};

use crate::shop::with_cookies;

const HOST: &str = "keep.example";
const ADA: &str = "ada.lovelace@example.com";
const BOB: &str = "bob@example.com";
/// What ada's browser makes up, and sends with an order.
const KEY: &str = "ada-wants-it-1815";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_erased_shopper_is_gone_everywhere_and_an_auditor_sees_it() -> Result<()> {
    let dir = tempfile::Builder::new().prefix("souk-shoppers-").tempdir()?;
    let folder = |name: &str| dir.path().join(name);
    let verbose = ("log", json!({ "filter": "info" }));
    let node = |name: &str| Spec {
        data: Some(folder(name)),
        config: vec![verbose.clone(), ("access_log", json!({ "file": folder(&format!("{name}.access")) }))],
        ..Spec::default()
    };
    let region = Spec { data: Some(folder("region")), config: vec![verbose.clone()], ..Spec::default() };
    let plan = Plan { region, nodes: vec![node("first"), node("second")], ..Plan::default() };
    let mut cluster = Cluster::raise(plan).await?;
    let products = json!([{ "sku": "MUG", "title": "A mug", "price": 1000, "stock": 100 }]);
    cluster.open_shop("keep", HOST, &products).await?;
    let shop = Shop::open(&cluster).await?;

    // Two orders and a cart of ada's, over both nodes; an order and a cart of bob's.
    let first = shop.order(&cluster, 0, ADA, KEY).await?;
    let second = shop.order(&cluster, 1, ADA, "ada-again").await?;
    let (left, browser) = shop.cart(&cluster, 1, ADA).await?;
    let of_bob = shop.order(&cluster, 0, BOB, "bob").await?;
    let (kept, _) = shop.cart(&cluster, 0, BOB).await?;
    let operator = cluster.operator()?;
    until("every cart at the region", async || {
        let listed = operator.get("/v1/sites/keep/carts").await?.json();
        let count = listed.as_array().map_or(0, Vec::len);
        Ok(if count == 5 { Ok(()) } else { Err(listed.to_string()) })
    })
    .await?;

    // The merchant's own token, and nothing beyond its verb.
    let merchant =
        shop.run(&cluster, TOKEN, &["site", "token", "create", "--allow", "shoppers", "--json"]).await?;
    let merchant = json_of(&merchant.0)?["token"].as_str().context("a token")?.to_owned();
    let (exported, complaint) = shop.run(&cluster, &merchant, &["shopper", "export", ADA]).await?;
    let records: Vec<Value> = exported.lines().map(json_of).collect::<Result<_>>()?;
    let kinds: Vec<_> = records.iter().map(|record| record["kind"].as_str().unwrap_or_default()).collect();
    ensure!(kinds == ["shopper", "order", "order", "end"], "{exported} {complaint}");
    ensure!(records[0]["customer"] == ADA && records[3]["orders"] == 2, "{exported}");
    for (record, order) in records[1..3].iter().zip([&first, &second]) {
        ensure!(record["order"]["id"] == order.id.as_str() && record["order"]["customer"] == ADA, "{record}");
        ensure!(record["cart"]["lines"][0]["quantity"] == 2, "{record}");
    }

    // A copy as of now. Nothing in it is anybody's name.
    let backup = folder("backup");
    std::fs::create_dir(&backup)?;
    for file in ["region.db", "region.db-wal"] {
        std::fs::copy(folder("region").join(file), backup.join(file))?;
    }
    ensure!(found_in(&backup, ADA.as_bytes())?.is_empty(), "a backup names a shopper");
    ensure!(!found_in(&folder("second"), &raw(&left)?)?.is_empty(), "the node has her cart");

    // One node is away while she is erased.
    cluster.nodes[1].kill()?;
    let erase = ["shopper", "erase", ADA, "--cart", left.as_str(), "--wait", "--json"];
    let (told, complaint) = shop.run(&cluster, &merchant, &erase).await?;
    let told = json_of(&told).context(complaint)?;
    ensure!(told["erased"]["orders"] == 2 && told["erased"]["carts"] == 3, "{told}");
    ensure!(told["erased"]["ended_ms"].is_u64() && told["erased"]["before"] == false, "{told}");
    let nodes = told["obeyed"]["nodes"].as_array().context("the nodes")?;
    ensure!(nodes.len() == 1 && nodes[0]["obeyed"] == true && nodes[0]["after_ms"].is_number(), "{told}");
    say(&format!("erased at the node that was there after {} ms", nodes[0]["after_ms"]));

    // She is gone from that node when it says so; the other one obeys when it is back.
    let numbers = [&first.cart, &second.cart, &left];
    gone(&folder("first"), &numbers)?;
    cluster.nodes[1].start().await?;
    let version = told["erased"]["version"].as_u64().context("a version")?;
    let path = format!("/v1/sites/keep/erasures/{version}");
    let as_merchant =
        Client::new(cluster.region.admin()?).with("authorization", &format!("Bearer {merchant}"));
    until("both nodes have obeyed", async || {
        let answer = as_merchant.get(&path).await?.json();
        let count = answer["nodes"].as_array().map_or(0, Vec::len);
        Ok(if answer["done"] == true && count == 2 { Ok(()) } else { Err(answer.to_string()) })
    })
    .await?;
    until("nothing of her on any disk", async || {
        Ok(gone(dir.path(), &numbers).map_err(|error| error.to_string()))
    })
    .await?;
    for server in [&cluster.region, &cluster.nodes[0], &cluster.nodes[1]] {
        gone(&server.log(), &numbers).with_context(|| format!("the log of {}", server.name()))?;
    }
    let logged = std::fs::read_to_string(folder("first.access"))?;
    ensure!(logged.contains("/api/carts/-"), "the access log was written: {logged}");

    // What her browser still has leads nowhere, and takes nothing in silence.
    let line = json!({ "sku": "MUG", "quantity": 1 });
    let late = browser.post(&format!("/api/carts/{left}/lines"), line).await;
    // The node came back elsewhere or not: on its own port.
    let late = late?;
    ensure!(late.status == 409 && late.code() == "cart_sealed", "{}: {}", late.status, late.text());

    // The books are whole, and bob is as he was.
    for (order, customer) in [(&first, Value::Null), (&second, Value::Null), (&of_bob, json!(BOB))] {
        let kept = operator.get(&format!("/v1/sites/keep/orders/{}", order.id)).await?.json();
        ensure!(kept["quote"]["total"] == 2000 && kept["customer"] == customer, "{kept}");
    }
    let carts = operator.get("/v1/sites/keep/carts").await?.json();
    let listed: Vec<_> =
        carts.as_array().into_iter().flatten().filter_map(|cart| cart["cart"].as_str()).collect();
    ensure!(
        listed.len() == 2 && listed.contains(&kept.as_str()) && listed.contains(&of_bob.cart.as_str()),
        "{carts}"
    );

    // An auditor: it happened, the chain is whole, and wanted again it is what it was.
    let rows = operator.get("/v1/audit?limit=1000").await?.json();
    let of = |action: &str| {
        rows.as_array()
            .into_iter()
            .flatten()
            .filter(|row| row["action"] == action)
            .cloned()
            .collect::<Vec<_>>()
    };
    let named = &told["erased"]["named"];
    for action in ["shopper.exported", "shopper.erased", "shopper.key_destroyed"] {
        let rows = of(action);
        ensure!(rows.len() == 1 && rows[0]["detail"]["named"] == *named, "{action}: {rows:?}");
    }
    ensure!(of("shopper.erased")[0]["actor"].as_str().is_some_and(|actor| !actor.is_empty()));
    ensure!(!rows.to_string().contains(ADA));
    let (listed, _) = shop.audit(&cluster, &["list", "--action", "shopper."]).await?;
    ensure!(listed.lines().count() == 6 && listed.contains(named.as_str().context("a hash")?), "{listed}");
    let (verified, _) = shop.audit(&cluster, &["verify"]).await?;
    ensure!(verified.starts_with("whole"), "{verified}");
    let (again, _) = shop.run(&cluster, &merchant, &["shopper", "erase", ADA, "--json"]).await?;
    let again = json_of(&again)?;
    ensure!(
        again["erased"]["before"] == true && again["erased"]["erasure"] == told["erased"]["erasure"],
        "{again}"
    );
    let (_, refused) = shop.run(&cluster, &merchant, &["shopper", "export", ADA]).await?;
    ensure!(refused.contains("no shopper of this number"), "{refused}");
    Ok(())
}

struct Order {
    id: String,
    cart: String,
}

struct Shop {
    secret: String,
}

impl Shop {
    /// Gives the shop a key for its shoppers, and waits until both nodes know it.
    async fn open(cluster: &Cluster) -> Result<Self> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519)?;
        let settings = json!({ "site": "keep", "hosts": [HOST], "currency": "GBP", "shopper_key": key.public_key_pem() });
        let answer = cluster.operator()?.put("/v1/sites/keep", settings).await?;
        ensure!(answer.status == 200, "{}", answer.text());
        let shop = Self { secret: key.serialize_pem() };
        for node in 0..cluster.nodes.len() {
            let shopper = shop.shopper(cluster, node, "nobody")?;
            until("a node that knows the shop's key", async || {
                let answer = shopper.get("/api/products").await?;
                Ok(if answer.status == 200 { Ok(()) } else { Err(answer.text()) })
            })
            .await?;
        }
        Ok(shop)
    }

    /// Somebody who has signed in at the shop.
    fn shopper(&self, cluster: &Cluster, node: usize, customer: &str) -> Result<Client> {
        let expires = SystemTime::now().duration_since(UNIX_EPOCH)? + Duration::from_secs(3_600);
        let claims = json!({ "sub": customer, "exp": expires.as_secs() });
        let key = jsonwebtoken::EncodingKey::from_ed_pem(self.secret.as_bytes())?;
        let header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::EdDSA);
        let token = jsonwebtoken::encode(&header, &claims, &key)?;
        let client = Client::new(cluster.nodes[node].http()?).with("host", HOST);
        Ok(client.with("authorization", &format!("Bearer {token}")))
    }

    /// A cart with two mugs, and the browser that has it.
    async fn cart(&self, cluster: &Cluster, node: usize, customer: &str) -> Result<(String, Client)> {
        let shopper = self.shopper(cluster, node, customer)?;
        let answer = shopper.post("/api/carts", json!({ "country": "GB" })).await?;
        ensure!(answer.status == 201, "{}", answer.text());
        let cart = answer.json()["cart"].as_str().context("a cart has a number")?.to_owned();
        let shopper = with_cookies(&shopper, &answer);
        let line = json!({ "sku": "MUG", "quantity": 2 });
        let answer = shopper.post(&format!("/api/carts/{cart}/lines"), line).await?;
        ensure!(answer.status == 200, "{}", answer.text());
        Ok((cart, with_cookies(&shopper, &answer)))
    }

    async fn order(&self, cluster: &Cluster, node: usize, customer: &str, key: &str) -> Result<Order> {
        let (cart, shopper) = self.cart(cluster, node, customer).await?;
        let question = json!({ "cart": cart, "total": 2000 });
        let shopper = shopper.with("idempotency-key", key);
        let answer = until("an order", async || {
            let answer = shopper.post("/api/checkouts", question.clone()).await?;
            Ok(if answer.status == 201 { Ok(answer.json()) } else { Err(answer.text()) })
        })
        .await?;
        ensure!(answer["customer"] == customer, "{answer}");
        Ok(Order { id: answer["id"].as_str().context("an order has a number")?.to_owned(), cart })
    }

    /// `souk …` at this shop: what it wrote, and what it complained of.
    async fn run(&self, cluster: &Cluster, token: &str, args: &[&str]) -> Result<(String, String)> {
        self.souk(cluster, &[args, &["--site", "keep", "--token", token]].concat()).await
    }

    /// `souk audit …`, by the operator.
    async fn audit(&self, cluster: &Cluster, args: &[&str]) -> Result<(String, String)> {
        self.souk(cluster, &[&["audit"][..], args, &["--token", TOKEN]].concat()).await
    }

    async fn souk(&self, cluster: &Cluster, args: &[&str]) -> Result<(String, String)> {
        let mut command = Command::new(souk());
        command.args(args).arg("--region").arg(format!("http://{}", cluster.region.admin()?));
        let ran = tokio::task::spawn_blocking(move || command.output()).await??;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok((text(ran.stdout), text(ran.stderr)))
    }
}

fn json_of(text: &str) -> Result<Value> {
    serde_json::from_str(text).with_context(|| text.to_owned())
}

/// The bytes of a number.
fn raw(number: &str) -> Result<Vec<u8>> {
    Ok(hex::decode(number)?)
}

/// Files under a path that hold these bytes.
fn found_in(path: &Path, what: &[u8]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    if path.is_dir() {
        for entry in std::fs::read_dir(path)? {
            found.extend(found_in(&entry?.path(), what)?);
        }
    } else if std::fs::read(path).is_ok_and(|bytes| bytes.windows(what.len()).any(|window| window == what)) {
        found.push(path.to_owned());
    }
    Ok(found)
}

/// That nothing under a path is ada's: her number, the key of her order, her carts in every way in which they are written. A copy
/// that was made before is looked at for names only.
fn gone(path: &Path, carts: &[&String]) -> Result<()> {
    let mut wanted = vec![ADA.as_bytes().to_vec(), KEY.as_bytes().to_vec()];
    for cart in carts {
        let bytes = raw(cart)?;
        // As a number, the node's file has it the other way round.
        wanted.extend([cart.as_bytes().to_vec(), bytes.iter().rev().copied().collect(), bytes]);
    }
    for (index, what) in wanted.iter().enumerate() {
        let found = found_in(path, what)?;
        let found: Vec<_> =
            found.into_iter().filter(|file| !file.iter().any(|part| part == "backup")).collect();
        ensure!(found.is_empty(), "{index}: {found:?} hold {:?}", String::from_utf8_lossy(what));
    }
    Ok(())
}
