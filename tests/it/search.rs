//! Search as shoppers and merchants have it: at a node that is cut off from its region, as new as the catalogue, of one shop only,
//! and past no rule of the shop.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use souk_tests::demo::{Demo, memory_of, until};
use souk_tests::http::{Answer, Client};
use souk_tests::say;
use souk_tests::stage::Stage;

const ONE: (&str, &str) = ("one", "one.example");
const TWO: (&str, &str) = ("two", "two.example");

fn skus(answer: &Answer) -> Vec<String> {
    let products = answer.json()["products"].as_array().cloned().unwrap_or_default();
    products.iter().filter_map(|product| product["sku"].as_str().map(str::to_owned)).collect()
}

async fn found(shop: &Client, query: &str) -> Result<Vec<String>> {
    let answer = shop.get(&format!("/api/products?q={query}")).await?;
    ensure!(answer.status == 200, "{query}: {} {}", answer.status, answer.text());
    Ok(skus(&answer))
}

async fn until_found(shop: &Client, query: &str, expected: &[&str]) -> Result<()> {
    until(&format!("{query} finds {expected:?}"), async || {
        let answer = shop.get(&format!("/api/products?q={query}")).await?;
        let seen = if answer.status == 200 { skus(&answer) } else { vec![answer.text()] };
        Ok(if seen == expected { Ok(()) } else { Err(format!("{seen:?}")) })
    })
    .await
}

async fn put(stage: &Stage, site: &str, products: Value) -> Result<()> {
    let path = format!("/v1/sites/{site}/products");
    let answer = stage.operator().post(&path, json!({ "products": products })).await?;
    ensure!(answer.status.is_success() && answer.json()["refused"] == json!([]), "{}", answer.text());
    Ok(())
}

fn is_hit(answer: &Answer) -> bool {
    answer.header("cache-status").starts_with("Souk; hit")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shoppers_find_things_while_the_region_is_away_and_what_changes_is_found_as_it_is() -> Result<()> {
    let mut stage = Stage::raise(&[ONE.1, TWO.1]).await?;
    for (site, host) in [ONE, TWO] {
        stage.open_site(site, host).await?;
    }
    let products = json!([
        {"sku": "MUG-1", "title": "Mug", "price": 1000, "tags": ["kitchen"]},
        {"sku": "MUG-2", "title": "Very tall red mug", "price": 1200, "description": "Crème inside."},
        {"sku": "TEA-1", "title": "Crème brûlée tea", "price": 700, "description": "For a mug."},
        {"sku": "JP-1", "title": "急須セット", "price": 4000},
        {"sku": "NOT-FOR-SALE", "title": "Mug without a price"},
    ]);
    put(&stage, ONE.0, products).await?;
    put(&stage, TWO.0, json!([{"sku": "MUG-1", "title": "Their own mug", "price": 300}])).await?;
    let (one, two) = (stage.in_clear(ONE.1)?, stage.in_clear(TWO.1)?);
    until_found(&two, "mug", &["MUG-1"]).await?;
    until_found(&one, "mug", &["MUG-1", "MUG-2", "TEA-1"]).await?;

    let table: &[(&str, &[&str])] = &[
        ("mu", &["MUG-1", "MUG-2", "TEA-1"]),
        ("red+mug", &["MUG-2"]),
        ("MUG%20red", &["MUG-2"]),
        ("creme", &["TEA-1", "MUG-2"]),
        ("br%C3%BBl", &["TEA-1"]),
        ("tea1", &["TEA-1"]),
        ("kitchen", &["MUG-1"]),
        ("%E9%A0%88%E3%82%BB", &["JP-1"]),
        ("their", &[]),
        ("%22mug%22+OR+(", &[]),
        ("price", &[]),
    ];
    for (query, expected) in table {
        let found = found(&one, query).await?;
        ensure!(found == *expected, "{query}: {found:?}");
    }
    for (query, code) in [
        ("q=", "bad_query"),
        ("q=%22%2A%22", "bad_query"),
        ("q=mug&limit=0", "bad_query"),
        ("q=mug&cursor=4d5547", "bad_query"),
        ("cursor=00001000000000000", "bad_query"),
        (&format!("q={}", "x".repeat(301)), "bad_query"),
        (&format!("q={}", "ab+".repeat(90)), "200"),
    ] {
        let answer = one.get(&format!("/api/products?{query}")).await?;
        let seen = if answer.status == 200 { "200".to_owned() } else { answer.code() };
        ensure!(seen == code, "{query}: {}", answer.text());
    }
    let (mut seen, mut next) = (Vec::new(), Value::Null);
    loop {
        let cursor = next.as_str().map(|next| format!("&cursor={next}")).unwrap_or_default();
        let answer = one.get(&format!("/api/products?q=mug&limit=1{cursor}")).await?;
        seen.extend(skus(&answer));
        next = answer.json()["next"].clone();
        if next.is_null() {
            break;
        }
    }
    ensure!(seen == ["MUG-1", "MUG-2", "TEA-1"], "page by page: {seen:?}");

    what_is_kept_is_taken_back_where_it_changes(&stage, &one, &two).await?;
    the_merchant_finds_the_same(&stage).await?;

    // Without its region, and after a start without it.
    stage.cut();
    ensure!(found(&one, "lid").await? == ["MUG-1"]);
    stage.restart_node().await?;
    let one = stage.in_clear(ONE.1)?;
    ensure!(found(&one, "lid").await? == ["MUG-1"], "after a start");
    ensure!(found(&one, "brulee").await? == ["TEA-1"]);
    let rebuilt = stage.metric("souk_search_index_rebuilds_total ").await?;
    let updated = stage.metric("souk_search_index_updates_total ").await?;
    ensure!((rebuilt, updated) == (0, 0), "the files were good: {rebuilt} rebuilt, {updated} taken in");
    Ok(())
}

async fn what_is_kept_is_taken_back_where_it_changes(
    stage: &Stage,
    one: &Client,
    two: &Client,
) -> Result<()> {
    let warm = async |shop: &Client, query: &str| {
        until(&format!("{query} is kept"), async || {
            let answer = shop.get(&format!("/api/products?q={query}")).await?;
            Ok(if is_hit(&answer) { Ok(()) } else { Err(answer.header("cache-status").to_owned()) })
        })
        .await
    };
    for query in ["mug", "creme", "nothing-of-it"] {
        warm(one, query).await?;
    }
    warm(two, "mug").await?;
    // Typed in another order and spelling it is the same answer.
    warm(one, "mug+red").await?;
    ensure!(is_hit(&one.get("/api/products?q=Mug%2C+R%C3%A9d").await?), "in another spelling");

    // A price is on every answer that shows it, in the step in which it changes.
    let path = format!("/v1/sites/{}/prices/TEA-1", ONE.0);
    ensure!(stage.operator().put(&path, json!({"price": 777})).await?.status == 200);
    until("the price is there", async || {
        let seen = one.get("/api/products/TEA-1").await?.json();
        Ok(if seen["price"] == 777 { Ok(()) } else { Err(seen.to_string()) })
    })
    .await?;
    for query in ["mug", "creme"] {
        let answer = one.get(&format!("/api/products?q={query}")).await?;
        ensure!(!is_hit(&answer) && answer.text().contains("777"), "{query}: {}", answer.text());
    }
    ensure!(is_hit(&one.get("/api/products?q=mug+red").await?), "TEA-1 is not on it");

    // A title takes back what was looked for by one of its words, found or not, and nothing else.
    for query in ["mug", "creme", "lid", "nothing-of-it"] {
        warm(one, query).await?;
    }
    put(
        stage,
        ONE.0,
        json!([{"sku": "MUG-1", "title": "Mug with a lid", "price": 1000, "tags": ["kitchen"]}]),
    )
    .await?;
    until("the title is there", async || {
        let seen = one.get("/api/products/MUG-1").await?.json();
        Ok(if seen["title"] == "Mug with a lid" { Ok(()) } else { Err(seen.to_string()) })
    })
    .await?;
    ensure!(found(one, "lid").await? == ["MUG-1"], "found in the step in which it is visible");
    let answer = one.get("/api/products?q=mug").await?;
    ensure!(!is_hit(&answer) && answer.text().contains("Mug with a lid"), "{}", answer.text());
    for query in ["creme", "nothing-of-it"] {
        ensure!(is_hit(&one.get(&format!("/api/products?q={query}")).await?), "{query} has no word of it");
    }
    ensure!(is_hit(&two.get("/api/products?q=mug").await?), "another shop's");

    // What gets a price can be found.
    let path = format!("/v1/sites/{}/prices/NOT-FOR-SALE", ONE.0);
    warm(one, "without").await?;
    ensure!(found(one, "without").await?.is_empty());
    ensure!(stage.operator().put(&path, json!({"price": 5})).await?.status == 200);
    until_found(one, "without", &["NOT-FOR-SALE"]).await
}

async fn the_merchant_finds_the_same(stage: &Stage) -> Result<()> {
    let operator = stage.operator();
    let answer = operator.get(&format!("/v1/sites/{}/search?q=lid", ONE.0)).await?;
    ensure!(answer.status == 200 && skus(&answer) == ["MUG-1"], "{}", answer.text());
    ensure!(answer.json()["products"][0]["price"] == 1000 && answer.json()["behind"] == false);
    let theirs = operator.get(&format!("/v1/sites/{}/search?q=mug", TWO.0)).await?;
    ensure!(skus(&theirs) == ["MUG-1"] && theirs.text().contains("Their own mug"), "{}", theirs.text());
    let page = operator.get(&format!("/v1/sites/{}/search?q=mug&limit=1", ONE.0)).await?.json();
    let next = page["next"].as_str().context("there is more")?;
    let second = operator.get(&format!("/v1/sites/{}/search?q=mug&limit=1&after={next}", ONE.0)).await?;
    ensure!(skus(&second).len() == 1 && second.json()["products"][0]["sku"] != page["products"][0]["sku"]);
    for wrong in ["", "?q=", "?q=mug&after=x", "?q=mug&limit=1000", "?q=mug&x=1"] {
        let answer = operator.get(&format!("/v1/sites/{}/search{wrong}", ONE.0)).await?;
        ensure!(answer.status.is_client_error(), "{wrong}: {}", answer.text());
    }
    ensure!(operator.get("/v1/sites/nowhere/search?q=mug").await?.status == 404);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_shop_hides_is_not_found_and_its_badges_are_on_what_is() -> Result<()> {
    if let Some(why) = souk_tests::no_wasm_toolchain() {
        souk_tests::skip("what_a_shop_hides_is_not_found_and_its_badges_are_on_what_is", &why);
        return Ok(());
    }
    let demo = Demo::start().await?;
    let shop = demo.shopper(0);
    until("mugs are found", async || {
        let answer = shop.get("/api/products?q=everyday+mug").await?;
        let seen = if answer.status == 200 { skus(&answer) } else { Vec::new() };
        Ok(if seen.contains(&"TEA-105".to_owned()) { Ok(()) } else { Err(answer.text()) })
    })
    .await?;
    let indexed = async || {
        let metrics = Client::new(demo.nodes()[0].admin).get("/metrics").await?.text();
        let line = metrics.lines().find_map(|line| line.strip_prefix("souk_search_index_products "));
        line.context("it is measured")?.trim().parse::<u64>().context("a number")
    };
    let before = indexed().await?;
    // `gift-only` is hidden by the shop's rule, and an everyday mug has a badge by another.
    let products = json!({"products": [{"sku": "SECRET", "title": "Everyday mug, secret", "price": 1, "tags": ["gift-only"]}]});
    ensure!(demo.operator().post(&demo.site("/products"), products).await?.status == 200);
    let merchants = demo.operator().get(&demo.site("/search?q=secret")).await?;
    ensure!(skus(&merchants) == ["SECRET"], "{}", merchants.text());
    until("the node has the product", async || {
        // Hidden from its own page too: seen by what the index has taken in.
        let answer = shop.get("/api/products?q=secret+mug").await?;
        ensure!(answer.status == 200 && skus(&answer).is_empty(), "{}", answer.text());
        let has = indexed().await?;
        Ok(if has > before { Ok(()) } else { Err(format!("{has} products")) })
    })
    .await?;
    let answer = shop.get("/api/products?q=everyday+mug").await?;
    ensure!(!answer.text().contains("SECRET") && answer.text().contains("Bestseller"), "{}", answer.text());
    demo.stop().await
}

/// `cargo test -p souk-tests --test it --release -- --ignored search --nocapture` for the figures.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "imports 40,000 products and says what that costs"]
async fn forty_thousand_products_stay_searchable_while_they_come() -> Result<()> {
    let demo = Demo::start().await?;
    let (shop, operator) = (demo.shopper(0), demo.operator());
    let node = |all: Vec<(String, u64)>| {
        all.into_iter().find(|(name, _)| name.starts_with("lon")).map(|(_, bytes)| bytes >> 20)
    };
    let before = node(memory_of(&demo.processes()?)?);
    let began = Instant::now();
    let importing = async {
        for first in (0..40_000).step_by(1_000) {
            let product = |n: usize| json!({"sku": format!("IMP-{n}"), "title": title(n), "price": 100, "description": description(n)});
            let products: Vec<_> = (first..first + 1_000).map(product).collect();
            let answer = operator.post(&demo.site("/products"), json!({"products": products})).await?;
            ensure!(answer.status == 200, "{}", answer.text());
        }
        Ok(began.elapsed())
    };
    let done = std::sync::atomic::AtomicBool::new(false);
    let searching = async {
        let mut took = Vec::new();
        let mut count = 0_usize;
        while !done.load(std::sync::atomic::Ordering::Relaxed) {
            let asked = Instant::now();
            // Another question each time: nothing of it is kept.
            let answer = shop.get(&format!("/api/products?q=everyday+mug&limit={}", count % 100 + 1)).await?;
            ensure!(answer.status == 200 && answer.text().contains("Everyday mug"), "{}", answer.text());
            took.push(asked.elapsed());
            count += 1;
        }
        took.sort_unstable();
        Ok(took)
    };
    let importing = async {
        let took = importing.await?;
        until("the last one is found", async || {
            let answer = shop.get("/api/products?q=IMP-39999").await?;
            Ok(if skus(&answer) == ["IMP-39999"] { Ok(()) } else { Err(answer.text()) })
        })
        .await?;
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        Ok::<_, anyhow::Error>((took, began.elapsed()))
    };
    let ((imported, findable), took) = tokio::try_join!(importing, searching)?;
    let at = |share: f64| took[(took.len() as f64 * share) as usize].as_secs_f64() * 1e3;
    let metrics = Client::new(demo.nodes()[0].admin).get("/metrics").await?.text();
    let bytes = metrics.lines().find_map(|l| l.strip_prefix("souk_search_index_bytes ")).unwrap_or_default();
    say(&format!(
        "40,000 products: imported in {imported:.1?}, the last one found after {findable:.1?}; {} searches meanwhile, p50 {:.1} ms, p99 {:.1} ms; \
         the node from {before:?} to {:?} MiB, its indexes {bytes} bytes",
        took.len(),
        at(0.5),
        at(0.99),
        node(memory_of(&demo.processes()?)?)
    ));
    ensure!(took.len() > 10 && findable < Duration::from_secs(600));
    demo.stop().await
}

const WORDS: [&str; 24] = [
    "red",
    "blue",
    "white",
    "metal",
    "glass",
    "heart",
    "light",
    "holder",
    "vintage",
    "christmas",
    "paper",
    "set",
    "bag",
    "box",
    "retro",
    "spot",
    "jumbo",
    "lunch",
    "cake",
    "stand",
    "hanging",
    "bird",
    "ornament",
    "garden",
];

fn title(n: usize) -> String {
    let word = |of: usize| WORDS[of % WORDS.len()];
    format!("{} {} {} {n}", word(n), word(n / 24 + 7), word(n / 576 + 3))
}

fn description(n: usize) -> String {
    (0..30).map(|place| WORDS[(n * 7 + place * 11) % WORDS.len()]).collect::<Vec<_>>().join(" ")
}
