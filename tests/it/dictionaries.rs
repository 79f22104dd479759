//! Compression dictionaries for a site's files (RFC 9842), from the merchant's push to what a browser gets: a region and a
//! node as an operator starts them, asked over TLS, and decoders that are not the node's own code.

use std::io::Read as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use sha2::{Digest as _, Sha256};
use souk_tests::demo::until;
use souk_tests::http::Answer;
use souk_tests::stage::Stage;
use souk_tests::{say, skip};

use super::http3::chromium;

const SHOP: &str = "shop.example";
const OTHER: &str = "other.example";
const ALL: &str = "gzip, deflate, br, zstd, dcb, dcz";
const DCB: [u8; 4] = [0xff, 0x44, 0x43, 0x42];
const DCZ: [u8; 8] = [0x5e, 0x2a, 0x4d, 0x18, 0x20, 0x00, 0x00, 0x00];

fn sha256(content: &[u8]) -> [u8; 32] {
    Sha256::digest(content).into()
}

fn available(content: &[u8]) -> String {
    format!(":{}:", base64::engine::general_purpose::STANDARD.encode(sha256(content)))
}

/// A bundle of some 100 KiB that a general coding cannot make much of.
fn bundle(seed: u64) -> Vec<u8> {
    let line = |number: u64| {
        let hash = sha256(&(seed * 1_000_000 + number).to_le_bytes());
        let word: String = hash[..12].iter().map(|byte| format!("{byte:02x}")).collect();
        format!("define(\"m{number}\", (r) => r(\"{word}\"));\n")
    };
    (0..2_000).map(line).collect::<String>().into_bytes()
}

/// The next version: one module changed, one more.
fn next(bundle: &[u8]) -> Vec<u8> {
    let text = String::from_utf8(bundle.to_vec()).expect("text");
    (text.replace("define(\"m700\"", "redefine(\"m700\"") + "define(\"more\", () => 1);\n").into_bytes()
}

/// What a client that knows RFC 9842 makes of an answer.
fn decode(answer: &Answer, dictionary: &[u8]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let body = &answer.body[..];
    let after = |magic: &[u8]| -> Result<&[u8]> {
        let rest = body.strip_prefix(magic).context("it begins otherwise")?;
        rest.strip_prefix(&sha256(dictionary)[..]).context("it is told from something else")
    };
    match answer.header("content-encoding") {
        "dcz" => {
            let frame = after(&DCZ)?;
            zstd::stream::read::Decoder::with_ref_prefix(frame, dictionary)?.read_to_end(&mut out)?;
            // The head is a frame that decoders skip, so that a plain one reads all of it.
            let mut whole = Vec::new();
            zstd::stream::read::Decoder::with_ref_prefix(body, dictionary)?.read_to_end(&mut whole)?;
            ensure!(whole == out, "with its head it means something else");
        }
        "dcb" => {
            let stream = after(&DCB)?;
            brotli::Decompressor::new_with_custom_dict(stream, 4_096, dictionary.to_vec().into())
                .read_to_end(&mut out)?;
        }
        "br" => drop(brotli::Decompressor::new(body, 4_096).read_to_end(&mut out)?),
        "" => out = body.to_vec(),
        other => anyhow::bail!("{other} was not asked for"),
    }
    Ok(out)
}

/// Asks until the node has made the difference.
async fn told(stage: &Stage, host: &str, path: &str, coding: &str, has: &[u8]) -> Result<Answer> {
    let has = available(has);
    let fields = [("accept-encoding", coding), ("available-dictionary", has.as_str())];
    until("the difference is made", async || {
        let answer = stage.ask(host, path, &fields).await?;
        let seen = format!("{} {:?}", answer.status, answer.headers);
        Ok(if answer.header("content-encoding") == coding { Ok(answer) } else { Err(seen) })
    })
    .await
}

async fn shows(stage: &Stage, host: &str, path: &str, content: &[u8]) -> Result<Answer> {
    until("the node shows the push", async || {
        let answer = stage.ask(host, path, &[]).await?;
        Ok(if answer.status == 200 && answer.body == content {
            Ok(answer)
        } else {
            Err(answer.status.to_string())
        })
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_costs_who_has_the_version_before_it_its_difference() -> Result<()> {
    let mut stage = Stage::raise(&[SHOP, OTHER]).await?;
    stage.open_site("shop", SHOP).await?;
    stage.open_site("other", OTHER).await?;
    let one = bundle(1);
    let (two, theirs) = (next(&one), bundle(2));
    let page: &[u8] = b"<!doctype html><title>shop</title>";
    stage.push("shop", &[("/index.html", page), ("/app.js", &one)]).await?;
    stage.push("other", &[("/app.js", &theirs)]).await?;
    let first = shows(&stage, SHOP, "/app.js", &one).await?;
    shows(&stage, OTHER, "/app.js", &theirs).await?;
    ensure!(
        first.header("use-as-dictionary").starts_with("match=\"/app.js\", id=\"")
            && first.header("vary") == "accept-encoding, available-dictionary",
        "{:?}",
        first.headers
    );
    stage.push("shop", &[("/index.html", page), ("/app.js", &two)]).await?;
    shows(&stage, SHOP, "/app.js", &two).await?;

    let mut sizes = Vec::new();
    for coding in ["dcz", "dcb"] {
        let answer = told(&stage, SHOP, "/app.js", coding, &one).await?;
        ensure!(decode(&answer, &one)? == two, "{coding} leads elsewhere");
        ensure!(answer.header("vary") == "accept-encoding, available-dictionary", "{:?}", answer.headers);
        let tag = answer.header("etag").to_owned();
        ensure!(tag.starts_with('"') && tag.contains(coding), "a strong tag of its own: {tag}");
        let again = stage.ask(SHOP, "/app.js", &[("if-none-match", &tag)]).await?;
        ensure!(again.status == 304 && again.body.is_empty(), "{}", again.status);
        sizes.push(answer.body.len());
    }
    let whole = told(&stage, SHOP, "/app.js", "br", &theirs).await?;
    ensure!(decode(&whole, b"")? == two);
    ensure!(sizes.iter().all(|size| size * 50 < whole.body.len()), "{sizes:?} of {}", whole.body.len());
    say(&format!(
        "a bundle of {} bytes with one module changed: br {}, dcz {}, dcb {}",
        two.len(),
        whole.body.len(),
        sizes[0],
        sizes[1]
    ));

    // Whoever has something else, or nothing, or no TLS, gets what stands by itself.
    for has in [theirs.as_slice(), two.as_slice(), b"never seen"] {
        let fields = [("accept-encoding", ALL), ("available-dictionary", &available(has) as &str)];
        let answer = stage.ask(SHOP, "/app.js", &fields).await?;
        ensure!(
            answer.header("content-encoding") == "br" && decode(&answer, b"")? == two,
            "{:?}",
            answer.headers
        );
    }
    let clear =
        stage.in_clear(SHOP)?.with("accept-encoding", ALL).with("available-dictionary", &available(&one));
    let clear = clear.get("/app.js").await?;
    ensure!(clear.header("content-encoding") == "br" && clear.header("use-as-dictionary").is_empty());
    // Nor does one site's version help at the other.
    for coding in ["dcz", "dcb"] {
        let fields = [("accept-encoding", coding), ("available-dictionary", &available(&one) as &str)];
        let answer = stage.ask(OTHER, "/app.js", &fields).await?;
        ensure!(
            answer.header("content-encoding").is_empty() && answer.body == theirs,
            "{:?}",
            answer.headers
        );
    }
    let page = stage.ask(SHOP, "/", &[("accept-encoding", ALL)]).await?;
    ensure!(page.header("use-as-dictionary").is_empty(), "a page is never fresh");

    // The node is killed; what it knows of versions it has on its disk.
    stage.restart_node().await?;
    shows(&stage, SHOP, "/app.js", &two).await?;
    let answer = told(&stage, SHOP, "/app.js", "dcz", &one).await?;
    ensure!(decode(&answer, &one)? == two);
    // Four pushes later the first version is forgotten, and the last three are not.
    let mut versions = vec![two];
    for _ in 0..3 {
        let version = next(versions.last().expect("one at least"));
        stage.push("shop", &[("/app.js", &version)]).await?;
        versions.push(version);
    }
    let newest = versions.pop().expect("five");
    shows(&stage, SHOP, "/app.js", &newest).await?;
    for version in &versions {
        let answer = told(&stage, SHOP, "/app.js", "dcz", version).await?;
        ensure!(decode(&answer, version)? == newest);
    }
    let unknown = stage.metric("souk_asset_dictionaries_unknown_total").await?;
    let fields = [("accept-encoding", "dcz"), ("available-dictionary", &available(&one) as &str)];
    let answer = stage.ask(SHOP, "/app.js", &fields).await?;
    ensure!(answer.header("content-encoding").is_empty() && answer.body == newest);
    ensure!(stage.metric("souk_asset_dictionaries_unknown_total").await? == unknown + 1, "it is counted");
    Ok(())
}

/// Loads the first version, and then the second until it comes as a difference, and says how long it was on the way.
const BOOT: &str = "(async () => {\
      const load = async (path) => { const r = await fetch(path, {cache: 'reload'}); return (await r.text()).length; };\
      const told = (path) => performance.getEntriesByName(new URL(path, location.href).href).at(-1).encodedBodySize;\
      const length = await load(document.body.dataset.old);\
      let size = 0, fresh = 0;\
      for (let i = 0; i < 100 && (size === 0 || size > 5000); i++) {\
        await new Promise((r) => setTimeout(r, 100));\
        fresh = await load(document.body.dataset.fresh); size = told(document.body.dataset.fresh);\
      }\
      document.getElementById('said').textContent = `old ${length}, new ${fresh} in ${size} bytes`;\
    })()";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chromium_loads_a_new_version_as_its_difference() -> Result<()> {
    let Some(chromium) = chromium() else {
        skip("Chromium loads a new version as its difference", "no chromium");
        return Ok(());
    };
    let stage = Stage::raise(&["localhost"]).await?;
    stage.open_site("shop", "localhost").await?;
    let old = bundle(1);
    let new = next(&old);
    let named = |content: &[u8]| {
        let digits: String = sha256(content)[..4].iter().map(|byte| format!("{byte:02x}")).collect();
        format!("/app-{digits}.js")
    };
    let (old_name, new_name) = (named(&old), named(&new));
    stage.push("shop", &[(&old_name, &old), ("/boot.js", BOOT.as_bytes())]).await?;
    let page = format!(
        "<!doctype html><title>shop</title><body data-old='{old_name}' data-fresh='{new_name}'>\
         <p id=said></p><script src='/boot.js'></script></body>"
    );
    let files = [
        ("/index.html", page.as_bytes()),
        (old_name.as_str(), old.as_slice()),
        (new_name.as_str(), new.as_slice()),
        ("/boot.js", BOOT.as_bytes()),
    ];
    stage.push("shop", &files).await?;
    shows(&stage, "localhost", &new_name, &new).await?;
    let shown = shows(&stage, "localhost", &old_name, &old).await?;
    ensure!(shown.header("use-as-dictionary").starts_with("match=\"/app-*.js\""), "{:?}", shown.headers);
    let before = [
        stage.metric("souk_asset_sent_total{coding=\"dcz\"}").await?,
        stage.metric("souk_asset_sent_total{coding=\"dcb\"}").await?,
    ];

    let profile = stage.dir().join("profile");
    let mut browser = Command::new(chromium);
    browser
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
        .args(["--disable-background-networking", "--no-proxy-server"])
        // Not `::1` first, where nobody listens.
        .arg("--host-resolver-rules=MAP localhost 127.0.0.1")
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("--ignore-certificate-errors-spki-list={}", stage.pin))
        .args(["--virtual-time-budget=60000", "--timeout=60000", "--dump-dom"])
        .arg(format!("https://localhost:{}/", stage.https()?.port()))
        .stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || browser.output()).await??;
    let dom = String::from_utf8_lossy(&output.stdout).into_owned();
    let said =
        dom.split("<p id=\"said\">").nth(1).and_then(|rest| rest.split("</p>").next()).unwrap_or_default();
    let (lengths, size) = said
        .rsplit_once(" in ")
        .with_context(|| format!("{dom}\n{}", String::from_utf8_lossy(&output.stderr)))?;
    ensure!(lengths == format!("old {}, new {}", old.len(), new.len()), "{said}");
    let size: usize = size.trim_end_matches(" bytes").parse()?;
    let after = [
        stage.metric("souk_asset_sent_total{coding=\"dcz\"}").await?,
        stage.metric("souk_asset_sent_total{coding=\"dcb\"}").await?,
    ];
    ensure!(size < 5_000 && after != before, "it came whole, in {size} bytes: {before:?} {after:?}");
    say(&format!(
        "Chromium: a bundle of {} bytes, told from the version before it, in {size} bytes",
        new.len()
    ));
    Ok(())
}
