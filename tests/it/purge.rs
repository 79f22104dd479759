//! What is changed at the region is new on every node in one step, and everything else stays where it is: prices, listings
//! and the pages that plugins make of them; and purges that a merchant asks for.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use souk_commerce::id::Digest;
use souk_tests::demo::{Demo, until};
use souk_tests::http::{Answer, Client};
use souk_tests::souk;

use super::pages::PageGuest;

const SITES: [(&str, &str); 2] = [("one", "one.example"), ("two", "two.example")];
const CACHED: &[(&str, &str)] = &[("cache-control", "max-age=600"), ("surrogate-key", "banner")];
/// Pages of a plugin, by their routes: what each reads of its shop.
const PAGES: [(&str, PageGuest); 3] = [
    ("/mug", PageGuest { reads: "/api/products/MUG", fields: CACHED }),
    ("/pen", PageGuest { reads: "/api/products/PEN", fields: &[("cache-control", "max-age=600")] }),
    ("/all", PageGuest { reads: "/api/products", fields: &[("cache-control", "max-age=600")] }),
];
/// What shows the mug, and what does not.
const OF_THE_MUG: [&str; 4] = ["/mug", "/all", "/api/products", "/api/products/MUG"];
const OF_THE_PEN: [&str; 2] = ["/pen", "/api/products/PEN"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_price_and_the_pages_made_from_it_change_together_and_others_stay() -> Result<()> {
    if let Some(why) = souk_tests::no_wasm_toolchain() {
        souk_tests::skip("a_price_and_the_pages_made_from_it_change_together_and_others_stay", &why);
        return Ok(());
    }
    let demo = Demo::start().await?;
    let world = World::open(&demo).await?;
    world.warm().await?;

    world.put("/prices/MUG", json!({"price": 900})).await?;
    for shop in world.shops(0) {
        // The node has the price when any of its answers has it: then all must.
        world.until_price(&shop, "/api/products/MUG", 900).await?;
        for path in OF_THE_MUG {
            let answer = shop.get(path).await?;
            ensure!(price_of("MUG", &answer) == 900, "{path} is old: {}", answer.text());
        }
        for path in OF_THE_PEN {
            ensure_hit(path, &shop.get(path).await?)?;
        }
    }
    // What is in stock is on the pages too, and a product that appears is on the listings.
    world.put("/stock/PEN", json!({"available": 0})).await?;
    for shop in world.shops(0) {
        until("the pen is out of stock", async || {
            let shown = shop.get("/api/products/PEN").await?.json();
            Ok(if shown["stock"] == "out" { Ok(()) } else { Err(shown.to_string()) })
        })
        .await?;
        ensure!(shop.get("/pen").await?.json()["stock"] == "out");
        ensure_hit("/mug", &shop.get("/mug").await?)?;
    }
    world.post("/products", json!({"products": [{"sku": "CUP", "title": "A cup", "price": 300}]})).await?;
    for shop in world.shops(0) {
        until("the cup is listed", async || {
            let listed = shop.get("/api/products").await?;
            Ok(if listed.text().contains("CUP") { Ok(()) } else { Err(listed.text()) })
        })
        .await?;
        ensure!(
            shop.get("/all").await?.text().contains("CUP"),
            "the plugin's listing has it in the same step"
        );
        for path in ["/mug", "/pen", "/api/products/MUG", "/api/products/PEN"] {
            ensure_hit(path, &shop.get(path).await?)?;
        }
    }
    world.the_other_site_has_lost_nothing().await?;
    world.purges(&demo).await?;
    world.personal_answers_are_nobody_elses().await?;
    demo.stop().await
}

struct World {
    region: Client,
    nodes: Vec<Client>,
}

impl World {
    async fn open(demo: &Demo) -> Result<Self> {
        let nodes = demo.nodes().iter().map(|node| Client::new(node.http)).collect();
        let world = Self { region: demo.operator(), nodes };
        for (site, host) in SITES {
            let settings = json!({"site": site, "hosts": [host], "currency": "GBP"});
            succeeded(&world.region.put(&format!("/v1/sites/{site}"), settings).await?)?;
            let products = json!({"products": [
                {"sku": "MUG", "title": "A mug", "price": 1000, "stock": 1000},
                {"sku": "PEN", "title": "A pen", "price": 200, "stock": 1000},
            ]});
            succeeded(&world.region.post(&format!("/v1/sites/{site}/products"), products).await?)?;
            let mut releases = Vec::new();
            for (route, guest) in PAGES {
                let component = guest.component();
                let digest = Digest::of(&component).to_string();
                succeeded(&world.region.put_bytes(&format!("/v1/blobs/{digest}"), component.into()).await?)?;
                releases.push(json!({
                    "plugin": &route[1..], "component": digest, "kind": "http", "route": route, "settings": {},
                }));
            }
            let path = format!("/v1/sites/{site}/releases");
            succeeded(&world.region.put(&path, json!({"releases": releases})).await?)?;
        }
        Ok(world)
    }

    /// The shops of one site, by node.
    fn shops(&self, site: usize) -> Vec<Client> {
        self.nodes.iter().map(|node| node.with("host", SITES[site].1)).collect()
    }

    async fn put(&self, path: &str, body: Value) -> Result<()> {
        succeeded(&self.region.put(&format!("/v1/sites/{}{path}", SITES[0].0), body).await?)
    }

    async fn post(&self, path: &str, body: Value) -> Result<()> {
        succeeded(&self.region.post(&format!("/v1/sites/{}{path}", SITES[0].0), body).await?)
    }

    /// Every page of both sites is kept on both nodes.
    async fn warm(&self) -> Result<()> {
        for shop in [self.shops(0), self.shops(1)].concat() {
            for path in OF_THE_MUG.iter().chain(&OF_THE_PEN) {
                until(&format!("{path} is kept"), async || {
                    let answer = shop.get(path).await?;
                    let text = answer.text();
                    let whole = text.contains("1000") || text.contains("200");
                    let kept = answer.status == 200 && whole && is_hit(&answer);
                    Ok(if kept {
                        Ok(())
                    } else {
                        Err(format!("{} {} {text}", answer.status, answer.header("cache-status")))
                    })
                })
                .await?;
            }
        }
        Ok(())
    }

    async fn until_price(&self, shop: &Client, path: &str, price: u64) -> Result<()> {
        until(&format!("{path} costs {price}"), async || {
            let answer = shop.get(path).await?;
            Ok(if price_of("MUG", &answer) == price { Ok(()) } else { Err(answer.text()) })
        })
        .await
    }

    async fn the_other_site_has_lost_nothing(&self) -> Result<()> {
        for shop in self.shops(1) {
            for path in OF_THE_MUG.iter().chain(&OF_THE_PEN) {
                let answer = shop.get(path).await?;
                ensure_hit(path, &answer)?;
                ensure!(!answer.text().contains("900"), "{path} of another site: {}", answer.text());
            }
        }
        Ok(())
    }

    /// As a merchant purges: by the tag that a page names itself, and by its address.
    async fn purges(&self, demo: &Demo) -> Result<()> {
        for shop in self.shops(0) {
            for path in ["/mug", "/pen"] {
                shop.get(path).await?;
                ensure_hit(path, &shop.get(path).await?)?;
            }
            ensure!(!shop.get("/mug").await?.headers.contains_key("surrogate-key"));
        }
        let purged = purge(demo, &["--tag", "banner", "--wait"]).await?;
        let nodes = purged["obeyed"]["nodes"].as_array().context("the nodes are listed")?;
        ensure!(nodes.len() == 2, "{purged}");
        ensure!(nodes.iter().all(|n| n["obeyed"] == true && n["after_ms"].as_f64().is_some()), "{purged}");
        for shop in self.shops(0) {
            let answer = shop.get("/mug").await?;
            let said = answer.header("cache-status");
            ensure!(said.starts_with("Souk; fwd=uri-miss") && said.ends_with("detail=purged"), "{said}");
            ensure_hit("/pen", &shop.get("/pen").await?)?;
            ensure_hit("/mug", &shop.get("/mug").await?)?;
        }
        purge(demo, &["--url", "/pen", "--prefix", "/api", "--soft", "--wait"]).await?;
        for shop in self.shops(0) {
            for path in ["/pen", "/api/products"] {
                let said = shop.get(path).await?;
                let said = said.header("cache-status");
                ensure!(
                    said.starts_with("Souk; fwd=stale") && said.ends_with("detail=soft_purged"),
                    "{path}: {said}"
                );
            }
            ensure_hit("/mug", &shop.get("/mug").await?)?;
        }
        self.the_other_site_has_lost_nothing().await
    }

    /// A token, even one that is refused, is answered past what is kept; and what is kept has a validator.
    async fn personal_answers_are_nobody_elses(&self) -> Result<()> {
        let shop = &self.shops(0)[0];
        let kept = shop.get("/api/products/MUG").await?;
        ensure!(
            kept.header("cache-control") == "no-cache" && !kept.headers.contains_key("cdn-cache-control")
        );
        let again = shop.with("if-none-match", kept.header("etag")).get("/api/products/MUG").await?;
        ensure!(again.status == 304, "{}", again.status);
        let refused = shop.with("authorization", "Bearer x").get("/api/products/MUG").await?;
        ensure!(refused.status == 401 && !is_hit(&refused), "{}", refused.text());
        Ok(())
    }
}

async fn purge(demo: &Demo, args: &[&str]) -> Result<Value> {
    let mut command = Command::new(souk());
    command.arg("purge").args(args).arg("--json").envs(demo.operator_environment());
    command.env("SOUK_SITE", SITES[0].0);
    let done = tokio::task::spawn_blocking(move || command.output()).await??;
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    ensure!(done.status.success(), "{said}{}", String::from_utf8_lossy(&done.stderr));
    serde_json::from_str(&said).with_context(|| said)
}

/// Of one product, or of the one with this name in a listing.
fn price_of(sku: &str, answer: &Answer) -> u64 {
    let shown = answer.json();
    let listed =
        shown["products"].as_array().and_then(|all| all.iter().find(|one| one["sku"] == sku)).cloned();
    listed.unwrap_or(shown)["price"].as_u64().unwrap_or_default()
}

fn is_hit(answer: &Answer) -> bool {
    answer.header("cache-status").starts_with("Souk; hit")
}

fn ensure_hit(path: &str, answer: &Answer) -> Result<()> {
    ensure!(is_hit(answer), "{path} is no hit: {} {}", answer.status, answer.header("cache-status"));
    Ok(())
}

fn succeeded(answer: &Answer) -> Result<()> {
    ensure!(answer.status.is_success(), "{}: {}", answer.status, answer.text());
    Ok(())
}
