//! New releases while shoppers are served: not one request fails, and none is answered by a mix of releases.
//!
//! A shop has two pricing plugins and an HTTP plugin, all three of one generation. Each deploy puts all three of the other
//! generation, and eight clients ask all the while: four for quotes, four for a page of a quarter of a megabyte, so that
//! many of them are half read when the release changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use souk_commerce::id::Digest;
use souk_tests::demo::{Demo, until};
use souk_tests::http::{Answer, Client};

use super::guests::{GOOD, Guest};
use super::http_guests::HttpGuest;

const SITE: &str = "swap";
const HOST: &str = "swap.example";
const DEPLOYS: u64 = 10;
const CLIENTS: usize = 4;
/// Between two deploys, so that each generation is asked for some time.
const SETTLED: Duration = Duration::from_millis(200);
/// What three mugs of 10.00 cost by two plugins that each take ten per cent off, or twenty. By one of each it would be
/// 21.60.
const TOTALS: [u64; 2] = [2_430, 1_920];
const LETTERS: [u8; 2] = [b'A', b'B'];
const PAGE_BYTES: usize = 5 + 64 * 4_096;

const PRICES: [Guest; 2] = [
    Guest { run: "(i32.store (i32.const 272) (i32.const -1000)) (i32.const 64)", ..GOOD },
    Guest { run: "(i32.store (i32.const 272) (i32.const -2000)) (i32.const 64)", ..GOOD },
];

/// Five bytes and 64 chunks of 4 KiB, all of them the generation's letter.
macro_rules! page {
    ($letter:literal) => {
        HttpGuest {
            before_head: concat!(
                "(memory.fill (i32.const 1024) (i32.const ",
                $letter,
                ") (i32.const 5)) (memory.fill (i32.const 16384) (i32.const ",
                $letter,
                ") (i32.const 4096))"
            ),
            mid_body: "(loop $l
                (call $chunk (local.get $stream) (i32.const 16384) (i32.const 4096) (i32.const 96))
                (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 64))))",
            ..HttpGuest::GOOD
        }
    };
}
const PAGES: [HttpGuest; 2] = [page!("65"), page!("66")];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn releases_change_under_load_and_no_request_fails_or_sees_two_of_them() -> Result<()> {
    if let Some(why) = souk_tests::no_wasm_toolchain() {
        souk_tests::skip("releases_change_under_load_and_no_request_fails_or_sees_two_of_them", &why);
        return Ok(());
    }
    let demo = Demo::start().await?;
    let shop = Arc::new(Shop::open(&demo).await?);
    shop.deploy(0).await?;

    let ended = Arc::new(AtomicBool::new(false));
    let mut clients = Vec::new();
    for client in 0..2 * CLIENTS {
        let (shop, ended) = (Arc::clone(&shop), Arc::clone(&ended));
        clients.push(tokio::spawn(async move {
            let mut asked = [0_u64; 2];
            while !ended.load(Ordering::Relaxed) {
                let generation = shop.ask(client % 2 == 0).await?;
                asked[generation] += 1;
            }
            anyhow::Ok(asked)
        }));
    }
    let mut slowest = Duration::ZERO;
    for deploy in 1..=DEPLOYS {
        tokio::time::sleep(SETTLED).await;
        let began = Instant::now();
        shop.deploy(deploy).await?;
        slowest = slowest.max(began.elapsed());
    }
    tokio::time::sleep(SETTLED).await;
    ended.store(true, Ordering::Relaxed);
    let mut asked = [0; 2];
    for client in clients {
        let of_client = client.await?.context("a client beside the deploys")?;
        ensure!(
            of_client.iter().all(|count| *count > 0),
            "each client meets both generations: {of_client:?}"
        );
        (asked[0], asked[1]) = (asked[0] + of_client[0], asked[1] + of_client[1]);
    }
    souk_tests::say(&format!(
        "{DEPLOYS} deploys of three plugins under {} clients: {} and {} answers of the two generations, none failed, \
         none mixed; the slowest deploy took {} ms",
        2 * CLIENTS,
        asked[0],
        asked[1],
        slowest.as_millis()
    ));
    demo.stop().await
}

struct Shop {
    region: Client,
    shopper: Client,
    quote: String,
    /// Twice the number of the deploy that every request sees, and one more while the next one is on its way.
    phase: AtomicU64,
}

impl Shop {
    async fn open(demo: &Demo) -> Result<Self> {
        let region = demo.operator();
        let settings = json!({"site": SITE, "hosts": [HOST], "currency": "GBP"});
        succeeded(&region.put(&format!("/v1/sites/{SITE}"), settings).await?)?;
        let products = json!({"products": [{"sku": "MUG", "title": "A mug", "price": 1000, "stock": 1000}]});
        succeeded(&region.post(&format!("/v1/sites/{SITE}/products"), products).await?)?;
        let shopper = Client::new(demo.nodes()[0].http).with("host", HOST);
        let cart = until("the shop", async || {
            let opened = shopper.post("/api/carts", json!({"country": "GB"})).await?;
            Ok(if opened.status.is_success() { Ok(opened.json()) } else { Err(opened.text()) })
        })
        .await?;
        let cart = cart["cart"].as_str().context("a cart has a name")?.to_owned();
        until("the mug", async || {
            let line = json!({"sku": "MUG", "quantity": 3});
            let added = shopper.post(&format!("/api/carts/{cart}/lines"), line).await?;
            Ok(if added.status == 200 { Ok(()) } else { Err(added.text()) })
        })
        .await?;
        let quote = format!("/api/carts/{cart}/quote");
        Ok(Self { region, shopper, quote, phase: AtomicU64::new(0) })
    }

    /// Puts all three plugins of one generation in one step, and waits for the first answer by them.
    async fn deploy(&self, number: u64) -> Result<()> {
        let generation = (number % 2) as usize;
        self.phase.store(2 * number - u64::from(number > 0), Ordering::SeqCst);
        let mut releases = Vec::new();
        for (plugin, component, route) in [
            ("first", PRICES[generation].component(), None),
            ("second", PRICES[generation].component(), None),
            ("page", PAGES[generation].component(), Some("/page")),
        ] {
            let digest = Digest::of(&component).to_string();
            succeeded(&self.region.put_bytes(&format!("/v1/blobs/{digest}"), component.into()).await?)?;
            let mut release =
                json!({"plugin": plugin, "component": digest, "settings": {}, "on_fault": "closed"});
            if let Some(route) = route {
                release["kind"] = "http".into();
                release["route"] = route.into();
            }
            releases.push(release);
        }
        let path = format!("/v1/sites/{SITE}/releases");
        succeeded(&self.region.put(&path, json!({"releases": releases})).await?)?;
        until("the new releases", async || {
            let (quote, page) = (self.shopper.get(&self.quote).await?, self.shopper.get("/page/").await?);
            let shown = quote.json()["total"] == TOTALS[generation]
                && page.body.first() == Some(&LETTERS[generation]);
            Ok(if shown { Ok(()) } else { Err(format!("{} {}", quote.text(), page.status)) })
        })
        .await?;
        self.phase.store(2 * number, Ordering::SeqCst);
        Ok(())
    }

    /// One request; which generation has answered it, all of it.
    async fn ask(&self, quote: bool) -> Result<usize> {
        let phase = self.phase.load(Ordering::SeqCst);
        let generation = if quote { self.ask_quote().await? } else { self.ask_page().await? };
        // Between two deploys there is one right answer; while one is on its way there are two.
        if phase.is_multiple_of(2) && self.phase.load(Ordering::SeqCst) == phase {
            let wanted = (phase / 2 % 2) as usize;
            ensure!(generation == wanted, "generation {generation} after {wanted} was deployed");
        }
        Ok(generation)
    }

    async fn ask_quote(&self) -> Result<usize> {
        let answer = self.shopper.get(&self.quote).await?;
        ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
        let quote = answer.json();
        ensure!(quote["fallbacks"].as_array().is_none_or(Vec::is_empty), "{quote}");
        TOTALS
            .iter()
            .position(|total| quote["total"] == *total)
            .with_context(|| format!("a price by a mix of releases: {quote}"))
    }

    async fn ask_page(&self) -> Result<usize> {
        let answer = self.shopper.get("/page/").await?;
        ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
        let page = answer.body;
        ensure!(page.len() == PAGE_BYTES, "{} of {PAGE_BYTES} bytes", page.len());
        LETTERS
            .iter()
            .position(|letter| page.iter().all(|byte| byte == letter))
            .context("a page by a mix of releases")
    }
}

fn succeeded(answer: &Answer) -> Result<()> {
    ensure!(answer.status.is_success(), "{}: {}", answer.status, answer.text());
    Ok(())
}
