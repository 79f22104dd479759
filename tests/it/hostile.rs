//! Hostile plugins in the running shop: each ends its own call, the quote names it and what it did, the price is
//! the one without it, and the neighbours are served meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use souk_commerce::id::Digest;
use souk_tests::demo::{Demo, SAMPLE_SKUS, until};

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
/// Enough for a p99 that means something, few enough for a test.
const NEIGHBOUR_CALLS: usize = 500;

#[tokio::test]
async fn a_hostile_plugin_ends_its_own_call_only() -> Result<()> {
    if let Some(why) = souk_tests::no_wasm_toolchain() {
        souk_tests::skip("a_hostile_plugin_ends_its_own_call_only", &why);
        return Ok(());
    }
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
    let path = format!("/api/carts/{cart}/quote");
    let honest = shopper.get(&path).await?.json();
    let chain = demo.operator().get(&demo.site("/releases")).await?.json();
    let quiet = neighbours_p99(&demo).await?;

    for (name, guest, reason) in [
        ("loops", LOOP, "deadline"),
        ("allocates", ALLOCATE, "memory"),
        ("traps", TRAP, "trap"),
        ("pays-you", NEGATIVE, "negative_price"),
    ] {
        release(&demo, &chain, name, guest).await.with_context(|| format!("release {name}"))?;
        let quote = until("the hostile plugin in the quote", || async {
            let quote = shopper.get(&path).await?.json();
            let named = fallbacks(&quote).any(|f| f["plugin"] == name);
            Ok(if named { Ok(quote) } else { Err(format!("{}", quote["fallbacks"])) })
        })
        .await?;
        let said = fallbacks(&quote).find(|f| f["plugin"] == name).context("named above")?;
        ensure!(said["reason"] == reason, "{name}: {said}, not {reason}");
        ensure!(
            quote["total"] == honest["total"],
            "{name} changed the total from {} to {}",
            honest["total"],
            quote["total"]
        );
        let (noisy, ()) = tokio::try_join!(neighbours_p99(&demo), quotes_for_a_while(&demo, &path))?;
        say(&format!("{name}: neighbours' p99 {noisy:.1?}, {quiet:.1?} before"));
    }
    let restored = demo.operator().put(&demo.site("/releases"), releases_of(&chain)).await?;
    ensure!(restored.status.is_success(), "{}", restored.text());
    until("a clean quote", || async {
        let quote = shopper.get(&path).await?.json();
        Ok(if fallbacks(&quote).next().is_none() { Ok(()) } else { Err(format!("{}", quote["fallbacks"])) })
    })
    .await?;
    demo.stop().await
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

/// Calls of other shoppers that the hostile plugin has no part in.
async fn neighbours_p99(demo: &Demo) -> Result<Duration> {
    let shopper = demo.shopper(0);
    let mut latencies = Vec::with_capacity(NEIGHBOUR_CALLS);
    for call in 0..NEIGHBOUR_CALLS {
        let began = Instant::now();
        let answer = shopper.get(&format!("/api/products/{}", SAMPLE_SKUS[call % SAMPLE_SKUS.len()])).await?;
        ensure!(answer.status == 200, "a neighbour was refused: {}", answer.text());
        latencies.push(began.elapsed());
    }
    latencies.sort_unstable();
    Ok(latencies[NEIGHBOUR_CALLS * 99 / 100])
}

async fn quotes_for_a_while(demo: &Demo, path: &str) -> Result<()> {
    let shopper = demo.shopper(0);
    for _ in 0..NEIGHBOUR_CALLS / 2 {
        let answer = shopper.get(path).await?;
        ensure!(answer.status == 200, "a quote was refused: {}", answer.text());
    }
    Ok(())
}

#[expect(
    clippy::print_stderr,
    reason = "a figure for the reader of the test's output; nothing depends on it"
)]
fn say(line: &str) {
    eprintln!("{line}");
}
