//! Recorded calls from outside: made by a node and by the region's own checkout, fetched by their names, and run again in
//! another process with nothing at hand but a token. And who may not.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use souk_tests::demo::{Demo, SAMPLE_SKUS, until};
use souk_tests::http::Client;
use souk_tests::{say, skip, souk};

use super::guests::{self, GOOD, Guest};
use crate::shop::with_cookies;

const PRICING: &str = "one-off";
const CHECKOUT: &str = "packer";
const RIVAL: &str = "rival";

/// Takes one per cent off the cart, when it has looked at a product that is not in it and said so in the log.
const PRICE: Guest = Guest {
    run: "(i64.store (i32.const 2048) (i64.const 0x3230312d414554)) ;; TEA-102
          (call $lookup (i32.const 2048) (i32.const 7) (i32.const 512))
          (call $log (i32.const 1) (i32.const 2048) (i32.const 7))
          (i32.store (i32.const 272) (i32.const -100))
          (i32.const 64)",
    ..GOOD
};
/// The same, but two per cent.
const CHEAPER: Guest = Guest {
    run: "(i64.store (i32.const 2048) (i64.const 0x3230312d414554))
          (call $lookup (i32.const 2048) (i32.const 7) (i32.const 512))
          (call $log (i32.const 1) (i32.const 2048) (i32.const 7))
          (i32.store (i32.const 272) (i32.const -200))
          (i32.const 64)",
    ..GOOD
};

/// Puts a note on each order, when it has asked for a value that the shop does not have.
const REVIEW: &str = r#"(module
    (import "souk:plugin/host@0.1.0" "kv-get" (func $kv (param i32 i32 i32)))
    (memory (export "memory") 4)
    (global $heap (mut i32) (i32.const 4096))
    (func (export "cabi_realloc")
        (param $old i32) (param $old_size i32) (param $align i32) (param $size i32) (result i32)
        (local $p i32)
        (local.set $p (i32.and (i32.add (global.get $heap) (i32.const 7)) (i32.const -8)))
        (global.set $heap (i32.add (local.get $p) (local.get $size)))
        (local.get $p))
    (func (export "souk:plugin/checkout@0.1.0#review") (param $in i32) (result i32)
        (call $kv (i32.const 1024) (i32.const 3) (i32.const 512))
        (i32.const 64))
    (func (export "cabi_post_souk:plugin/checkout@0.1.0#review") (param $out i32))
    ;; ok([{ code: "box", text: "Mind the box" }])
    (data (i32.const 64) "\00\00\00\00\00\01\00\00\01\00\00\00")
    (data (i32.const 256) "\00\04\00\00\03\00\00\00\03\04\00\00\0c\00\00\00")
    (data (i32.const 1024) "boxMind the box"))"#;

#[tokio::test]
async fn a_call_of_a_node_and_one_of_the_region_are_run_again_by_name() -> Result<()> {
    if let Some(why) = souk_tests::no_wasm_toolchain() {
        skip("a_call_of_a_node_and_one_of_the_region_are_run_again_by_name", &why);
        return Ok(());
    }
    let demo = Demo::start().await?;
    let folder = tempfile::tempdir()?;
    let desk = Desk { environment: demo.merchant_environment().into(), dir: folder.path() };
    for (plugin, component) in
        [(PRICING, PRICE.component()), (CHECKOUT, guests::component("checkout-plugin", REVIEW))]
    {
        std::fs::write(folder.path().join(format!("{plugin}.wasm")), component)?;
        desk.succeeds(&["plugin", "push", &format!("{plugin}.wasm")]).await?;
        desk.succeeds(&["plugin", "deploy", plugin, "--record", "10000"]).await?;
        // A replay that finds it here would not ask the region.
        std::fs::remove_file(folder.path().join(format!("{plugin}.wasm")))?;
    }
    order_something(&demo).await?;

    let of_node = recorded(&desk, PRICING, |line| line["node"].is_u64()).await?;
    let priced = recorded(&desk, PRICING, |line| line["node"].is_null()).await?;
    let reviewed = recorded(&desk, CHECKOUT, |line| line["node"].is_null()).await?;
    for (call, hook) in [(&of_node, "pricing"), (&priced, "pricing"), (&reviewed, "checkout")] {
        let report: Value =
            serde_json::from_str(&desk.succeeds(&["plugin", "replay", call, "--json"]).await?)?;
        let counts =
            ["calls", "identical", "different", "failed", "omitted"].map(|name| report[name].clone());
        ensure!(counts == [1, 1, 0, 0, 0], "{call}: {report}");
        ensure!(report["hooks"] == json!({ hook: 1 }), "{call}: {report}");
    }
    let all = desk.succeeds(&["plugin", "replay", &of_node, &priced, &reviewed]).await?;
    ensure!(all.contains("3 identical, 0 different, 0 failed"), "{all}");
    say(&format!("three calls by name, in another process: {}", all.trim()));

    what_another_component_would_have_cost(&desk, &of_node).await.context("another component")?;
    a_recording_holds_what_the_plugin_asked(&demo, &priced).await.context("the recording")?;
    who_may_fetch_a_call(&demo, &desk, &reviewed).await.context("who may")?;
    demo.stop().await
}

/// A shopper's cart becomes an order: priced by a node, then by the region, which alone reviews it.
async fn order_something(demo: &Demo) -> Result<()> {
    let shopper = demo.shopper(0);
    let created = shopper.post("/api/carts", json!({"country": "GB"})).await?;
    ensure!(created.status == 201, "{}", created.text());
    let cart = created.json()["cart"].as_str().context("a cart has a name")?.to_owned();
    let shopper = with_cookies(&shopper, &created);
    let line = json!({"sku": SAMPLE_SKUS[0], "quantity": 3});
    let added = shopper.post(&format!("/api/carts/{cart}/lines"), line).await?;
    ensure!(added.status == 200, "{}", added.text());
    let quote = shopper.get(&format!("/api/carts/{cart}/quote")).await?;
    ensure!(quote.text().contains(PRICING), "the plugin has a say: {}", quote.text());
    let shopper = shopper.with("idempotency-key", "recorded");
    let order = json!({"cart": cart, "total": quote.json()["total"]});
    let order = shopper.post("/api/checkouts", order).await?;
    ensure!(
        order.status == 201 && order.text().contains("Mind the box"),
        "{}: {}",
        order.status,
        order.text()
    );
    Ok(())
}

/// The name of a recorded call as the log tells it; the API's list has it too.
async fn recorded(desk: &Desk<'_>, plugin: &str, wanted: impl Fn(&Value) -> bool) -> Result<String> {
    let call = until("a recorded call in the log", async || {
        let log = desk.succeeds(&["plugin", "logs", plugin, "--kind", "recorded", "--json"]).await?;
        let lines: Vec<Value> = log.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let call = lines.iter().find(|line| wanted(line)).and_then(|line| line["call"].as_str());
        Ok(call.map(str::to_owned).ok_or(log))
    })
    .await?;
    let listed = desk.client(&desk.environment)?.get(&desk.path(&format!("/calls?plugin={plugin}"))).await?;
    let listed = listed.json();
    let known =
        listed["calls"].as_array().is_some_and(|calls| calls.iter().any(|known| known["id"] == *call));
    ensure!(known, "{call} is not listed: {listed}");
    Ok(call)
}

async fn what_another_component_would_have_cost(desk: &Desk<'_>, call: &str) -> Result<()> {
    std::fs::write(desk.dir.join("cheaper.wasm"), CHEAPER.component())?;
    let done =
        desk.souk(&desk.environment, &["plugin", "replay", call, "--component", "cheaper.wasm"]).await?;
    ensure!(done.code == Some(1), "as diff does: {done:?}");
    ensure!(done.out.contains("0 identical, 1 different, 0 failed"), "{done:?}");
    ensure!(done.out.contains("1 of 1 prices changed"), "{done:?}");
    Ok(())
}

/// The region's own, in which the answers of the host must be those of the moment when the order was priced.
async fn a_recording_holds_what_the_plugin_asked(demo: &Demo, call: &str) -> Result<()> {
    let recording = demo.operator().get(&demo.site(&format!("/calls/{call}"))).await?;
    ensure!(recording.header("content-type") == "application/json", "{}", recording.text());
    let recording = recording.json();
    ensure!(recording["live"] == "same", "{recording}");
    let asked = recording["host_calls"].to_string();
    ensure!(asked.contains("TEA-102") && asked.contains("title"), "a product with its title: {asked}");
    Ok(())
}

async fn who_may_fetch_a_call(demo: &Demo, desk: &Desk<'_>, call: &str) -> Result<()> {
    let settings = json!({"site": RIVAL, "hosts": ["rival.example"], "currency": "GBP"});
    let made = demo.operator().put(&format!("/v1/sites/{RIVAL}"), settings).await?;
    ensure!(made.status.is_success(), "{}", made.text());
    let site = desk.environment[1].1.clone();
    let component = desk.client(&desk.environment)?.get(&desk.path(&format!("/calls/{call}"))).await?;
    let component = component.json()["component"].as_str().context("a digest")?.to_owned();
    let fetched = format!("/v1/sites/{site}/plugins/{CHECKOUT}/components/{component}");

    // What `replay --help` asks for is enough.
    let reader = token(demo, desk, &site, "read,logs").await?;
    let done = desk.souk(&reader, &["plugin", "replay", call]).await?;
    ensure!(done.code == Some(0) && done.out.contains("1 identical"), "{done:?}");

    // Half of it is refused by the name of the other half.
    let read = token(demo, desk, &site, "read").await?;
    refused(&desk.souk(&read, &["plugin", "replay", call]).await?, "logs")?;
    ensure!(desk.client(&read)?.get(&fetched).await?.status == 200, "a release's component is read");
    let logs = token(demo, desk, &site, "logs").await?;
    refused(&desk.souk(&logs, &["plugin", "replay", call]).await?, "read")?;
    ensure!(desk.client(&logs)?.get(&fetched).await?.status == 403, "a component is more than a log");
    std::fs::write(desk.dir.join("own.wasm"), guests::component("checkout-plugin", REVIEW))?;
    let done = desk.souk(&logs, &["plugin", "replay", call, "--component", "own.wasm"]).await?;
    ensure!(done.code == Some(0) && done.out.contains("1 identical"), "{done:?}");

    // For another shop's merchant there is neither shop, nor call, nor component.
    let rival = token(demo, desk, RIVAL, "admin").await?;
    let mut peeping = rival.clone();
    peeping[1].1 = site;
    for environment in [&rival, &peeping] {
        refused(&desk.souk(environment, &["plugin", "replay", call]).await?, "not_found")?;
    }
    let asked = desk.client(&rival)?;
    for path in [
        fetched,
        format!("/v1/sites/{RIVAL}/plugins/{CHECKOUT}/components/{component}"),
        desk.path(&format!("/calls/{call}")),
        format!("/v1/sites/{RIVAL}/calls/{call}"),
    ] {
        let answer = asked.get(&path).await?;
        ensure!(answer.status == 404, "{path}: {} {}", answer.status, answer.text());
    }
    Ok(())
}

/// Says why, by name, with nothing of the call.
fn refused(done: &Done, why: &str) -> Result<()> {
    ensure!(done.code == Some(1) && done.out.is_empty(), "{done:?}");
    ensure!(done.err.contains(why), "not {why}: {done:?}");
    Ok(())
}

/// Another token of a site, for some verbs, as the operator makes it.
async fn token(demo: &Demo, desk: &Desk<'_>, site: &str, verbs: &str) -> Result<Environment> {
    let mut operator = Environment::from(demo.operator_environment());
    operator[1].1 = site.to_owned();
    let made = desk.souk(&operator, &["site", "token", "create", "--allow", verbs, "--json"]).await?;
    ensure!(made.code == Some(0), "{made:?}");
    let made: Value = serde_json::from_str(&made.out)?;
    operator[2].1 = made["token"].as_str().context("a token is shown once")?.to_owned();
    Ok(operator)
}

/// Region, site, token.
type Environment = Vec<(&'static str, String)>;

/// A merchant's folder, and whoever types in it.
struct Desk<'a> {
    environment: Environment,
    dir: &'a Path,
}

#[derive(Debug)]
struct Done {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Desk<'_> {
    async fn souk(&self, environment: &Environment, args: &[&str]) -> Result<Done> {
        let mut command = Command::new(souk());
        command.current_dir(self.dir).args(args).envs(environment.iter().cloned()).stdin(Stdio::null());
        let done = tokio::task::spawn_blocking(move || command.output()).await??;
        Ok(Done {
            code: done.status.code(),
            out: String::from_utf8(done.stdout)?,
            err: String::from_utf8_lossy(&done.stderr).into_owned(),
        })
    }

    /// One command of the merchant's own; what it printed.
    async fn succeeds(&self, args: &[&str]) -> Result<String> {
        let done = self.souk(&self.environment, args).await?;
        ensure!(done.code == Some(0), "souk {}: {done:?}", args.join(" "));
        Ok(done.out)
    }

    fn client(&self, environment: &Environment) -> Result<Client> {
        let [(_, region), _, (_, token)] = &environment[..] else { anyhow::bail!("three variables") };
        let addr = region.trim_start_matches("http://").parse()?;
        Ok(Client::new(addr).with("authorization", &format!("Bearer {token}")))
    }

    fn path(&self, rest: &str) -> String {
        format!("/v1/sites/{}{rest}", self.environment[1].1)
    }
}
