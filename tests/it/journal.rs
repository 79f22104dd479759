//! The merchant's log from outside: what every node's plugins did, as it happens, and after the region was away.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use souk_tests::demo::{Demo, PATIENCE, SAMPLE_SKUS};
use souk_tests::http::Client;
use souk_tests::{say, skip, souk};

/// Quotes while the region is away.
const QUOTES_AWAY: usize = 20;

#[tokio::test]
async fn a_merchant_follows_every_nodes_calls_also_those_that_happened_while_the_region_was_away()
-> Result<()> {
    if let Some(why) = souk_tests::no_wasm_toolchain() {
        skip("a_merchant_follows_every_nodes_calls", &why);
        return Ok(());
    }
    let demo = Demo::start().await?;
    let shoppers = [demo.shopper(0), demo.shopper(1)];
    let carts = [cart(&shoppers[0]).await?, cart(&shoppers[1]).await?];
    let log = Follower::start(&demo, &["--kind", "call", "--hook", "pricing"])?;
    // From here on every line is of a call that this test makes.
    tokio::time::sleep(Duration::from_secs(1)).await;
    log.drain();

    let mut nodes = BTreeSet::new();
    for (shopper, cart) in shoppers.iter().zip(&carts) {
        let since = Instant::now();
        quote(shopper, cart).await?;
        // A chain may have several pricing plugins: what is left of the node before is passed over.
        let line = loop {
            let line = log.next()?;
            if line["node"].as_u64().is_none_or(|node| !nodes.contains(&node)) {
                break line;
            }
        };
        say(&format!(
            "a call of node {} was read {} ms after its request",
            line["node"],
            since.elapsed().as_millis()
        ));
        ensure!(line["outcome"] == "ok" && line["duration_us"].is_u64(), "{line}");
        ensure!(line["plugin"].is_string() && line["release"] == 1 && line["call"].is_string(), "{line}");
        nodes.insert(line["node"].as_u64().context("a node's number")?);
    }
    ensure!(nodes.len() == 2, "both nodes tell: {nodes:?}");

    // A region that stands still is away: nothing is answered, and nothing may be lost.
    log.drain();
    signal("STOP", demo.region_pid()?)?;
    for _ in 0..QUOTES_AWAY {
        quote(&shoppers[0], &carts[0]).await?;
    }
    signal("CONT", demo.region_pid()?)?;
    let calls: BTreeSet<String> = (0..QUOTES_AWAY)
        .map(|_| Ok(log.next()?["call"].as_str().context("a call has a name")?.to_owned()))
        .collect::<Result<_>>()?;
    ensure!(calls.len() == QUOTES_AWAY, "each once: {} of {QUOTES_AWAY}", calls.len());

    // The same log of another shop does not exist for this merchant, nor any for a stranger.
    let token = demo.merchant_environment().into_iter().find(|(name, _)| *name == "SOUK_TOKEN");
    let (_, token) = token.context("the demo gives a token")?;
    let merchant = Client::new(demo.control()).with("authorization", &format!("Bearer {token}"));
    ensure!(merchant.get(&demo.site("/logs")).await?.status == 200);
    for path in ["logs", "calls", "calls/00000000000000000000000000"] {
        let other = merchant.get(&format!("/v1/sites/other/{path}")).await?;
        ensure!(other.status == 404, "{path}: {}", other.text());
        let stranger = Client::new(demo.control()).get(&demo.site(&format!("/{path}"))).await?;
        ensure!(stranger.status == 401, "{path}: {}", stranger.text());
    }
    drop(log);
    demo.stop().await
}

async fn cart(shopper: &Client) -> Result<String> {
    let created = shopper.post("/api/carts", json!({"country": "GB"})).await?;
    ensure!(created.status == 201, "{}", created.text());
    let cart = created.json()["cart"].as_str().context("a cart has a name")?.to_owned();
    let added = shopper
        .post(&format!("/api/carts/{cart}/lines"), json!({"sku": SAMPLE_SKUS[0], "quantity": 2}))
        .await?;
    ensure!(added.status.is_success(), "{}", added.text());
    Ok(cart)
}

async fn quote(shopper: &Client, cart: &str) -> Result<()> {
    let answer = shopper.get(&format!("/api/carts/{cart}/quote")).await?;
    ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
    Ok(())
}

fn signal(name: &str, pid: u32) -> Result<()> {
    let done = Command::new("kill").args([format!("-{name}"), pid.to_string()]).status()?;
    ensure!(done.success(), "kill -{name} {pid}");
    Ok(())
}

/// `souk plugin logs -f` in another process, as the merchant.
struct Follower {
    child: Child,
    lines: Receiver<Value>,
}

impl Follower {
    fn start(demo: &Demo, filters: &[&str]) -> Result<Self> {
        let mut child = Command::new(souk())
            .args(["plugin", "logs", "--follow", "--json", "-n", "1"])
            .args(filters)
            .envs(demo.merchant_environment())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("start `souk plugin logs`")?;
        let stdout = child.stdout.take().context("its output is a pipe")?;
        let (tell, lines) = sync_channel(10_000);
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let value = serde_json::from_str(&line).unwrap_or(Value::String(line));
                if tell.send(value).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, lines })
    }

    fn drain(&self) {
        while self.lines.try_recv().is_ok() {}
    }

    /// The next line, which must be a call's.
    fn next(&self) -> Result<Value> {
        let line = self.lines.recv_timeout(PATIENCE).context("no line came")?;
        if line["kind"] != "call" {
            bail!("not a call: {line}");
        }
        Ok(line)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
