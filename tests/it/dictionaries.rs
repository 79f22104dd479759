//! Compression dictionaries for a site's files (RFC 9842), from the merchant's push to what a browser gets: a region and a
//! node as an operator starts them, asked over TLS, and decoders that are not the node's own code.

use std::io::Read as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use sha2::{Digest as _, Sha256};
use souk_tests::demo::until;
use souk_tests::http::Answer;
use souk_tests::stage::Stage;
use souk_tests::{say, skip};

use crate::browser::{Browser, chromium};

const SHOP: &str = "shop.example";
/// Between two looks at a browser, and how many there are before it has failed: two minutes.
const PAUSE: Duration = Duration::from_millis(100);
const TRIES_MAX: u32 = 1_200;
const OTHER: &str = "other.example";
const ALL: &str = "gzip, deflate, br, zstd, dcb, dcz";
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
    let coding = "dcz";
    let answer = told(&stage, SHOP, "/app.js", coding, &one).await?;
    ensure!(decode(&answer, &one)? == two, "{coding} leads elsewhere");
    ensure!(answer.header("vary") == "accept-encoding, available-dictionary", "{:?}", answer.headers);
    let tag = answer.header("etag").to_owned();
    ensure!(tag.starts_with('"') && tag.contains(coding), "a strong tag of its own: {tag}");
    let again = stage.ask(SHOP, "/app.js", &[("if-none-match", &tag)]).await?;
    ensure!(again.status == 304 && again.body.is_empty(), "{}", again.status);
    sizes.push(answer.body.len());
    let whole = told(&stage, SHOP, "/app.js", "br", &theirs).await?;
    ensure!(decode(&whole, b"")? == two);
    ensure!(sizes.iter().all(|size| size * 50 < whole.body.len()), "{sizes:?} of {}", whole.body.len());
    say(&format!(
        "a bundle of {} bytes with one module changed: br {}, dcz {}",
        two.len(),
        whole.body.len(),
        sizes[0]
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
    let coding = "dcz";
    let fields = [("accept-encoding", coding), ("available-dictionary", &available(&one) as &str)];
    let answer = stage.ask(OTHER, "/app.js", &fields).await?;
    ensure!(answer.header("content-encoding").is_empty() && answer.body == theirs, "{:?}", answer.headers);
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

/// A bundle as a browser runs it: it says which version it is.
fn runs(version: u32) -> Vec<u8> {
    let line = |number: u64| {
        let hash = sha256(&number.to_le_bytes());
        let word: String = hash[..12].iter().map(|byte| format!("{byte:02x}")).collect();
        format!("void \"m{number} {word}\";\n")
    };
    let lines: String = (0..2_000).map(line).collect();
    format!("{lines}window.shop = {version};\n").into_bytes()
}

/// A page and its bundle, whose name holds its digest.
fn release(bundle: &[u8]) -> (String, String) {
    let digits: String = sha256(bundle)[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    let path = format!("/app-{digits}.js");
    (format!("<!doctype html><title>shop</title><script src=\"{path}\"></script>"), path)
}

/// Chromium, which has the first version, is sent what the second one differs in, and runs it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_that_has_a_version_runs_the_next_one_from_their_difference() -> Result<()> {
    let Some(program) = chromium() else {
        skip("a browser runs a bundle from its difference", "no chromium");
        return Ok(());
    };
    // To Chromium a dictionary is worth nothing over a certificate that no public authority vouches for, but on localhost.
    const HOST: &str = "localhost";
    let stage = Stage::raise(&[HOST]).await?;
    stage.open_site("shop", HOST).await?;
    let (one, two) = (runs(1), runs(2));
    let (page, path) = release(&one);
    stage.push("shop", &[("/index.html", page.as_bytes()), (&path, &one)]).await?;
    shows(&stage, HOST, &path, &one).await?;

    let mut browser = Browser::start(program, stage.pin()).await?;
    let url = format!("https://{HOST}:{}/", stage.https()?.port());
    browser.open(&url).await?;
    let mut seen = browser.evaluate("window.shop").await?;
    let mut tries = 0;
    while seen != 1 {
        tries += 1;
        ensure!(tries < TRIES_MAX, "the first version does not run: {seen}");
        tokio::time::sleep(PAUSE).await;
        seen = browser.evaluate("window.shop").await?;
    }
    // It keeps the response for a dictionary when it has found the time, and says so with whatever its pattern fits.
    let mut offered = Vec::new();
    while offered.is_empty() {
        tries += 1;
        ensure!(tries < TRIES_MAX, "Chromium offers no dictionary");
        tokio::time::sleep(PAUSE).await;
        browser.evaluate(&format!("fetch('/app-probe-{tries}.js').then(answer => answer.status)")).await?;
        offered = browser.sent("available-dictionary");
    }
    ensure!(offered.iter().all(|offer| *offer == available(&one)), "{offered:?}");

    let (page, path) = release(&two);
    stage.push("shop", &[("/index.html", page.as_bytes()), (&path, &two)]).await?;
    shows(&stage, HOST, &path, &two).await?;
    told(&stage, HOST, &path, "dcz", &one).await?;
    let sent = "souk_asset_sent_total{coding=\"dcz\"}";
    let before = stage.metric(sent).await?;
    browser.open(&url).await?;
    while browser.evaluate("window.shop").await? != 2 {
        tries += 1;
        ensure!(tries < TRIES_MAX, "the second version does not run");
        tokio::time::sleep(PAUSE).await;
    }
    let offered = browser.sent("available-dictionary");
    ensure!(stage.metric(sent).await? == before + 1, "it was sent the whole; it had offered {offered:?}");
    let entry = "performance.getEntriesByType('resource').filter(entry => entry.name.includes('/app-'))\
                 .map(entry => [entry.encodedBodySize, entry.decodedBodySize, entry.nextHopProtocol])[0]";
    let entry = browser.evaluate(entry).await?;
    ensure!(entry[1] == two.len() && entry[0].as_u64().is_some_and(|bytes| bytes < 1_000), "{entry}");
    browser.close().await?;
    say(&format!("Chromium: a bundle of {} bytes, of which one line is new, over dcz: {entry}", two.len()));
    Ok(())
}
