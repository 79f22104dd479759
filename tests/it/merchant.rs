//! The merchant's day by the README alone: from an empty folder to a changed price at both nodes, and back, with the very
//! commands that stand there. Once in Rust, once in JavaScript where npm is.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use souk_tests::demo::{Demo, SAMPLE_SKUS, until};
use souk_tests::http::Client;
use souk_tests::{root, say, skip, souk};

use crate::shop::with_cookies;

/// A product of the sample shop that carries the tag of the template.
const SKU: &str = SAMPLE_SKUS[0];
/// What `souk plugin new tea-week` makes its plugin say.
const NAME: &str = "tea-week";
const CODE: &str = "tea_week";
const LABEL: &str = "Tea week";
/// Where the README's walk begins, and how many commands it says it has, `cd` and the look at the quote included.
const WALK: &str = "From nothing to a changed price on the running demo.";
const COMMANDS: (usize, &str) = (8, "These eight commands are all.");

#[tokio::test]
async fn from_nothing_to_a_changed_price_and_back() -> Result<()> {
    if let Some(why) = souk_tests::no_wasm_toolchain() {
        skip("from_nothing_to_a_changed_price_and_back", &why);
        return Ok(());
    }
    let demo = Demo::start().await?;
    a_day(&demo, "rust").await.context("in Rust")?;
    let npm = Command::new("npm").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if npm.is_ok_and(|status| status.success()) {
        a_day(&demo, "js").await.context("in JavaScript")?;
    } else {
        skip("from_nothing_to_a_changed_price_and_back, in JavaScript", "no npm");
    }
    demo.stop().await
}

async fn a_day(demo: &Demo, language: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let shoppers = [demo.shopper(0), demo.shopper(1)];
    let (cart, shoppers) = fill_a_cart(&shoppers).await?;
    let before = quotes(&shoppers, &cart).await?;
    ensure!(before.iter().all(|quote| !says(quote)), "nothing is said yet: {before:?}");

    let mut dir = folder.path().to_owned();
    let (mut made, mut pushing, mut live) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    let mut ready = String::new();
    let commands = commands_of_the_readme(language)?;
    for command in &commands {
        let words: Vec<&str> = command.split_whitespace().collect();
        let since = Instant::now();
        match &words[..] {
            ["cd", into] => dir.push(into),
            ["curl", ..] => {
                let after = quotes(&shoppers, &cart).await?;
                ensure!(after.iter().all(says), "the new adjustment with its label: {after:?}");
                ensure!(after[0]["total"] == after[1]["total"], "both nodes say the same");
                ensure!(after[0]["total"].as_i64() < before[0]["total"].as_i64(), "the price has changed");
            }
            ["souk", args @ ..] => {
                let deploys = args.starts_with(&["plugin", "deploy"]);
                let (said, seen) = tokio::join!(as_merchant(demo, &dir, args), async {
                    if deploys {
                        tokio::try_join!(
                            until_it_says(&shoppers[0], &cart),
                            until_it_says(&shoppers[1], &cart)
                        )?;
                    }
                    Ok::<_, anyhow::Error>(since.elapsed())
                });
                let said = said?;
                match args.get(1) {
                    Some(&"new" | &"build" | &"test") => made += since.elapsed(),
                    Some(&"push") => (pushing, ready) = (since.elapsed(), said),
                    Some(&"deploy") => live = seen?,
                    _ => {}
                }
            }
            _ => bail!("the README has a command that this test does not know: {command}"),
        }
    }
    // A push ends when both nodes have compiled the component, and says so of each.
    let ready: Vec<_> = ready.lines().filter(|line| line.contains("has compiled it after")).collect();
    ensure!(ready.len() == 2, "{ready:?}");
    ensure!(live > Duration::ZERO, "the README deploys");
    until("both nodes quote as before", async || {
        let now = quotes(&shoppers, &cart).await?;
        let same = now.iter().zip(&before).all(|(now, before)| now["total"] == before["total"] && !says(now));
        Ok(if same { Ok(()) } else { Err(format!("{now:?}")) })
    })
    .await?;
    say(&format!(
        "{language}: {} commands; new, build and test {:.1} s; push until both nodes have compiled it {:.1} s ({}); \
         from the start of `deploy` to both nodes quoting it {} ms",
        commands.len(),
        made.as_secs_f64(),
        pushing.as_secs_f64(),
        ready.iter().map(|line| line.trim()).collect::<Vec<_>>().join(", "),
        live.as_millis()
    ));
    Ok(())
}

/// What stands behind the prompts of the README's walk, in a language that it names.
fn commands_of_the_readme(language: &str) -> Result<Vec<String>> {
    let readme = std::fs::read_to_string(root().join("README.md"))?;
    let (_, walk) = readme.split_once(WALK).context("the README has the walk")?;
    let (_, block) = walk.split_once("```console\n").context("its commands")?;
    let (block, after) = block.split_once("```").context("and their end")?;
    ensure!(block.contains(&format!("--lang {language}")), "the README speaks of {language}");
    let typed = block.lines().filter_map(|line| line.strip_prefix("$ "));
    let commands: Vec<String> = typed
        .map(|line| line.split_once(" #").map_or(line, |(command, _)| command).trim().to_owned())
        .map(|command| command.replace("--lang rust", &format!("--lang {language}")))
        .collect();
    ensure!(commands.len() == COMMANDS.0 && after.trim_start().starts_with(COMMANDS.1), "{commands:?}");
    Ok(commands)
}

/// One command of the README, as the merchant of the sample shop; answers what it printed.
async fn as_merchant(demo: &Demo, dir: &Path, args: &[&str]) -> Result<String> {
    let mut command = Command::new(souk());
    command.current_dir(dir).args(args).stdin(Stdio::null()).envs(demo.merchant_environment());
    // The merchant's cargo has a target folder of its own, and waits for nobody who builds this workspace.
    command.env_remove("CARGO_TARGET_DIR");
    let shown = args.join(" ");
    let done = tokio::task::spawn_blocking(move || command.output()).await??;
    let errors = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "souk {shown}: {}\n{errors}", done.status);
    Ok(String::from_utf8(done.stdout)?)
}

/// A cart with the product, and its shopper at both nodes.
async fn fill_a_cart(shoppers: &[Client; 2]) -> Result<(String, [Client; 2])> {
    let created = shoppers[0].post("/api/carts", json!({"country": "GB"})).await?;
    ensure!(created.status == 201, "{}", created.text());
    let cart = created.json()["cart"].as_str().context("a cart has a name")?.to_owned();
    let lines = format!("/api/carts/{cart}/lines");
    let added = shoppers[0].post(&lines, json!({"sku": SKU, "quantity": 2})).await?;
    ensure!(added.status.is_success(), "{}", added.text());
    // As a browser does: without its cookies the second node would keep the cart as it first saw it, perhaps empty.
    let shoppers = shoppers.each_ref().map(|shopper| with_cookies(shopper, &added));
    until("the cart is known at both nodes", async || {
        let quotes = quotes(&shoppers, &cart).await;
        Ok(quotes.map(drop).map_err(|e| format!("{e:#}")))
    })
    .await?;
    Ok((cart, shoppers))
}

async fn quotes(shoppers: &[Client; 2], cart: &str) -> Result<[Value; 2]> {
    Ok([quote(&shoppers[0], cart).await?, quote(&shoppers[1], cart).await?])
}

async fn quote(shopper: &Client, cart: &str) -> Result<Value> {
    let answer = shopper.get(&format!("/api/carts/{cart}/quote")).await?;
    ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
    let quote = answer.json();
    ensure!(quote["lines"].as_array().is_some_and(|lines| lines.len() == 1), "{quote}");
    Ok(quote)
}

async fn until_it_says(shopper: &Client, cart: &str) -> Result<()> {
    until("the new adjustment is quoted", async || {
        let quote = quote(shopper, cart).await?;
        Ok(if says(&quote) { Ok(()) } else { Err(quote.to_string()) })
    })
    .await
}

/// Does the quote show the new adjustment, with its label?
fn says(quote: &Value) -> bool {
    let line = &quote["lines"][0]["adjustments"];
    let mut adjustments = line.as_array().into_iter().flatten();
    adjustments.any(|said| said["plugin"] == NAME && said["code"] == CODE && said["label"] == LABEL)
}
