//! Hostile plugins in the running shop: each ends its own call, the quote names it and what it did, the price is
//! the one without it, and the neighbours are served meanwhile.
//!
//! How well they are served is a measurement and not a verdict: it needs a quiet machine and some minutes, so it is
//! asked for by name (`cargo test --release -p souk-tests --test it others_p99 -- --ignored --nocapture`) and prints
//! what it saw.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use souk_commerce::id::Digest;
use souk_tests::demo::{Demo, SAMPLE_SKUS, one_product, until};
use souk_tests::load::{Call, Machine, paced};

use super::guests::{GOOD, Guest};

const LOOP: Guest = Guest { run: "(loop $l (br $l)) (i32.const 64)", ..GOOD };
const ALLOCATE: Guest =
    Guest { run: "(loop $l (drop (memory.grow (i32.const 1))) (br $l)) (i32.const 64)", ..GOOD };
const TRAP: Guest = Guest { run: "unreachable", ..GOOD };
/// ok([{ target: cart, effect: amount(-1000000), code: "ten", label: "Ten off" }])
const NEGATIVE: Guest = Guest {
    fields: r#"
        (data (i32.const 64) "\00\00\00\00\00\01\00\00\01\00\00\00")
        (data (i32.const 256) "\01\00\00\00\00\00\00\00" "\01\00\00\00\00\00\00\00\c0\bd\f0\ff\ff\ff\ff\ff"
                              "\00\04\00\00\03\00\00\00" "\03\04\00\00\07\00\00\00")
        (data (i32.const 1024) "tenTen off")"#,
    ..GOOD
};
/// One that does what it should: ten per cent off.
const BEHAVES: &str = "behaves";
/// Each with the reason that the quote gives for leaving it out.
const HOSTILE: [(&str, Guest, &str); 4] = [
    ("loops", LOOP, "deadline"),
    ("allocates", ALLOCATE, "memory"),
    ("traps", TRAP, "trap"),
    ("pays-you", NEGATIVE, "negative_price"),
];

#[tokio::test]
async fn a_hostile_plugin_ends_its_own_call_only() -> Result<()> {
    if let Some(why) = souk_tests::no_wasm_toolchain() {
        souk_tests::skip("a_hostile_plugin_ends_its_own_call_only", &why);
        return Ok(());
    }
    let shop = Shop::open().await?;
    for (name, guest, reason) in HOSTILE {
        let quote = shop.deploy(Some((name, guest))).await?;
        let said = fallbacks(&quote).find(|f| f["plugin"] == name).context("waited for")?;
        ensure!(said["reason"] == reason, "{name}: {said}, not {reason}");
        let (honest, total) = (&shop.honest["total"], &quote["total"]);
        ensure!(total == honest, "{name} changed the total from {honest} to {total}");
        // Others are served all the while, and so is the cart that the hostile plugin is asked about.
        shop.traffic(Duration::from_millis(300)).await?;
    }
    shop.deploy(None).await?;
    shop.demo.stop().await
}

/// Rounds of each kind, in turn, so that what the machine does beside us meets them all alike: six thousand calls of each.
const ROUNDS: usize = 12;
const ROUND: Duration = Duration::from_secs(1);

#[tokio::test]
#[ignore = "a measurement of some minutes, for a quiet machine"]
async fn others_p99_holds_while_plugins_are_hostile() -> Result<()> {
    if let Some(why) = souk_tests::no_wasm_toolchain() {
        souk_tests::skip("others_p99_holds_while_plugins_are_hostile", &why);
        return Ok(());
    }
    let shop = Shop::open().await?;
    // One more plugin costs something whatever it does, so there is one that behaves, too.
    let peaceful = [("quiet", None), (BEHAVES, Some((BEHAVES, GOOD)))];
    let kinds: Vec<_> =
        peaceful.into_iter().chain(HOSTILE.map(|(name, guest, _)| (name, Some((name, guest))))).collect();
    let machine = Machine::watch()?;
    let mut calls: Vec<Vec<Call>> = vec![Vec::new(); kinds.len()];
    for _ in 0..ROUNDS {
        for ((_, hostile), calls) in kinds.iter().zip(&mut calls) {
            shop.deploy(*hostile).await?;
            calls.extend(shop.traffic(ROUND).await?);
        }
    }
    souk_tests::say(&format!(
        "other shoppers' requests, {}/s beside {}/s quotes, {ROUNDS} rounds of {ROUND:?} of each kind in turn:",
        pace_per_s(NEIGHBOUR_EVERY),
        pace_per_s(QUOTE_EVERY),
    ));
    let seen = machine.undisturbed(calls);
    for ((name, _), seen_beside) in kinds.iter().zip(&seen) {
        souk_tests::say(&seen_beside.row(name, &seen[0]));
    }
    shop.deploy(None).await?;
    shop.demo.stop().await
}

/// The sample shop, with a cart whose quote asks every pricing plugin.
struct Shop {
    demo: Demo,
    quote: String,
    honest: Value,
    chain: Value,
}

impl Shop {
    async fn open() -> Result<Self> {
        let demo = Demo::start().await?;
        let shopper = demo.shopper(0);
        let cart = shopper.post("/api/carts", json!({"country": "GB"})).await?.json()["cart"]
            .as_str()
            .context("a cart has a name")?
            .to_owned();
        let added = shopper
            .post(&format!("/api/carts/{cart}/lines"), json!({"sku": SAMPLE_SKUS[0], "quantity": 3}))
            .await?;
        ensure!(added.status == 200, "{}", added.text());
        let quote = format!("/api/carts/{cart}/quote");
        let honest = shopper.get(&quote).await?.json();
        let chain = demo.operator().get(&demo.site("/releases")).await?.json();
        Ok(Self { demo, quote, honest, chain })
    }

    /// Puts a guest behind the shop's own chain, or the chain alone, and waits for the quote that shows it.
    async fn deploy(&self, hostile: Option<(&str, Guest)>) -> Result<Value> {
        match hostile {
            Some((name, guest)) => {
                release(&self.demo, &self.chain, name, guest)
                    .await
                    .with_context(|| format!("release {name}"))?;
            }
            None => {
                let set =
                    self.demo.operator().put(&self.demo.site("/releases"), releases_of(&self.chain)).await?;
                ensure!(set.status.is_success(), "{}: {}", set.status, set.text());
            }
        }
        let shopper = self.demo.shopper(0);
        let extra: Vec<&str> = HOSTILE.iter().map(|(name, _, _)| *name).chain([BEHAVES]).collect();
        // The one that was put has left its mark, and no other has.
        let shows = |quote: &Value| {
            let marks = fallbacks(quote).chain(quote["adjustments"].as_array().into_iter().flatten());
            let mut marks =
                marks.filter_map(|mark| mark["plugin"].as_str()).filter(|name| extra.contains(name));
            match hostile {
                Some((name, _)) => marks.any(|mark| mark == name),
                None => marks.next().is_none(),
            }
        };
        until("the quote of the chain that was put", || async {
            let quote = shopper.get(&self.quote).await?.json();
            Ok(if shows(&quote) { Ok(quote) } else { Err(format!("{quote}")) })
        })
        .await
    }

    /// Other shoppers and the cart's own at the same time, each at its pace: the others' latencies.
    async fn traffic(&self, time: Duration) -> Result<Vec<Call>> {
        let others = self.demo.shopper(0);
        let buyer = self.demo.shopper(0);
        let products = |call: usize| {
            let path = one_product(call);
            let others = others.clone();
            async move { others.get(&path).await }
        };
        let quotes = |_| {
            let buyer = buyer.clone();
            async move { buyer.get(&self.quote).await }
        };
        let (latencies, _) =
            tokio::try_join!(paced(NEIGHBOUR_EVERY, time, products), paced(QUOTE_EVERY, time, quotes))?;
        Ok(latencies)
    }
}

/// The same load in every round: half a processor of a debug build, so that nobody waits for the load itself.
const NEIGHBOUR_EVERY: Duration = Duration::from_millis(2);
const QUOTE_EVERY: Duration = Duration::from_millis(10);

fn pace_per_s(every: Duration) -> u128 {
    Duration::from_secs(1).as_nanos() / every.as_nanos()
}

fn fallbacks(quote: &Value) -> impl Iterator<Item = &Value> {
    quote["fallbacks"].as_array().into_iter().flatten()
}

/// What `PUT …/releases` takes, of what `GET …/releases` gave.
fn releases_of(chain: &Value) -> Value {
    let releases = chain["releases"].as_array().into_iter().flatten().map(|r| {
        json!({"plugin": r["plugin"], "component": r["component"], "settings": r["settings"], "on_fault": r["on_fault"]})
    });
    json!({"releases": releases.collect::<Vec<_>>()})
}

/// Puts a guest behind the shop's own chain.
async fn release(demo: &Demo, chain: &Value, name: &str, guest: Guest) -> Result<()> {
    let component = guest.component();
    let digest = Digest::of(&component).to_string();
    let operator = demo.operator();
    let stored = operator.put_bytes(&format!("/v1/blobs/{digest}"), component.into()).await?;
    ensure!(stored.status.is_success(), "{}: {}", stored.status, stored.text());
    let mut releases = releases_of(chain);
    let rows = releases["releases"].as_array_mut().context("a chain is a list")?;
    rows.push(json!({"plugin": name, "component": digest, "settings": {}, "on_fault": "open"}));
    let set = operator.put(&demo.site("/releases"), releases).await?;
    ensure!(set.status.is_success(), "{}: {}", set.status, set.text());
    Ok(())
}
