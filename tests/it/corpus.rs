//! The hostile corpus against the running product: each component ends as expected, by name, and whoever is beside it
//! is served as before.
//!
//! What it costs the neighbours is measured by [`measure`], when that is asked for.

mod measure;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use souk_commerce::id::Digest;
use souk_tests::demo::{Demo, SAMPLE_SKUS, until};
use souk_tests::http::{Answer, Client};
use souk_tests::say;

use super::hostile_corpus::bombs::{REFUSED, STARTS};
use super::hostile_corpus::hooks::HOOKS;
use super::hostile_corpus::http::{HTTP, HttpHostile, Seen};
use super::hostile_corpus::{Expected, Hostile};

const VILLAIN: &str = "villain";
const VILLAINS_HOST: &str = "villain.example";

#[tokio::test]
async fn every_hostile_hook_of_the_corpus_ends_as_expected() -> Result<()> {
    if let Some(why) = souk_tests::no_wasm_toolchain() {
        souk_tests::skip("every_hostile_hook_of_the_corpus_ends_as_expected", &why);
        return Ok(());
    }
    let demo = Demo::start().await?;
    let villain = Villain::open(&demo).await?;
    let honest = neighbours_total(&demo).await?;
    let before = demo.processes()?;
    let mut table = Table::default();
    for hostile in REFUSED {
        table.row(hostile.name, villain.upload(hostile).await);
    }
    for (name, make) in STARTS {
        table.row(name, villain.start_dearly(name, make()).await);
    }
    for hostile in HOOKS {
        table.row(hostile.name, villain.run(hostile).await);
    }
    table.end("hooks and what must not get in")?;
    ensure!(demo.processes()? == before, "a process of ours did not survive");
    ensure!(neighbours_total(&demo).await? == honest, "the neighbour's price is another");
    demo.stop().await
}

#[test]
fn every_hostile_http_component_of_the_corpus_ends_as_expected() -> Result<()> {
    let mut table = Table::default();
    for hostile in HTTP {
        table.row(hostile.name, serve(hostile));
    }
    table.end("wasi:http components")
}

/// What a plugin that means well looks like in these tests.
const GOOD_PLUGIN: Hostile =
    Hostile { name: "good", make: || super::guests::GOOD.component(), expected: Expected::Contained };

/// A site of the same region and nodes, whose merchant means ill.
struct Villain<'a> {
    demo: &'a Demo,
    shopper: Client,
    quote: String,
    honest: Value,
}

impl<'a> Villain<'a> {
    async fn open(demo: &'a Demo) -> Result<Self> {
        let operator = demo.operator();
        let settings = json!({"site": VILLAIN, "hosts": [VILLAINS_HOST], "currency": "GBP"});
        let site = format!("/v1/sites/{VILLAIN}");
        succeeded(&operator.put(&site, settings).await?)?;
        let products = json!({"products": [{"sku": "MUG", "title": "A mug", "price": 1000, "stock": 1000}]});
        succeeded(&operator.post(&format!("{site}/products"), products).await?)?;
        let shopper = Client::new(demo.nodes()[0].http).with("host", VILLAINS_HOST);
        let cart = until("the villain's shop", || async {
            let opened = shopper.post("/api/carts", json!({"country": "GB"})).await?;
            Ok(if opened.status.is_success() { Ok(opened.json()) } else { Err(opened.text()) })
        })
        .await?;
        let cart = cart["cart"].as_str().context("a cart has a name")?.to_owned();
        until("the villain's mug", || async {
            let added = shopper
                .post(&format!("/api/carts/{cart}/lines"), json!({"sku": "MUG", "quantity": 3}))
                .await?;
            Ok(if added.status == 200 { Ok(()) } else { Err(added.text()) })
        })
        .await?;
        let quote = format!("/api/carts/{cart}/quote");
        let honest = shopper.get(&quote).await?.json()["total"].clone();
        Ok(Self { demo, shopper, quote, honest })
    }

    /// Puts a chain and returns the region's answer.
    async fn put(&self, chain: &[(&str, Vec<u8>)]) -> Result<Answer> {
        let operator = self.demo.operator();
        let mut releases = Vec::with_capacity(chain.len());
        for (name, component) in chain {
            let digest = Digest::of(component).to_string();
            let stored = operator.put_bytes(&format!("/v1/blobs/{digest}"), component.clone().into()).await?;
            if !stored.status.is_success() {
                return Ok(stored);
            }
            releases.push(json!({"plugin": name, "component": digest, "settings": {}, "on_fault": "open"}));
        }
        operator.put(&format!("/v1/sites/{VILLAIN}/releases"), json!({"releases": releases})).await
    }

    /// What must not get in: whether the answer names the reason, in one line that steers no terminal.
    async fn upload(&self, hostile: &Hostile) -> Result<Outcome> {
        let Expected::Refused(codes) = hostile.expected else { bail!("{} is to be let in", hostile.name) };
        let answer = self.put(&[(hostile.name, (hostile.make)())]).await?;
        let text = answer.text();
        let named = codes.iter().find(|code| text.contains(**code));
        let right = answer.status.is_client_error() && named.is_some() && !text.chars().any(char::is_control);
        Ok(Outcome { right, said: named.map_or_else(|| said(&answer), |code| format!("refused: {code}")) })
    }

    /// What may be let in or not, and in both cases may not keep the region from answering, nor a shopper.
    async fn start_dearly(&self, name: &str, component: Vec<u8>) -> Result<Outcome> {
        let offered = self.put(&[(name, component)]).await?;
        if !offered.status.is_success() {
            return Ok(Outcome { right: offered.status.is_client_error(), said: said(&offered) });
        }
        self.until_running(&offered).await?;
        // The quickest of three, which its breaker does not yet keep from asking it: a machine that has others to serve may
        // hold up one of them, a component that is dear is dear each time.
        let mut took = Duration::MAX;
        for _ in 0..3 {
            let began = Instant::now();
            let quote = self.shopper.get(&self.quote).await?;
            if quote.status != 200 {
                return Ok(Outcome { right: false, said: said(&quote) });
            }
            took = took.min(began.elapsed());
        }
        // Twenty times the deadline of a hook: what it does between two looks at the clock is bounded too.
        Ok(Outcome { right: took < Duration::from_millis(100), said: format!("runs, {took:.1?} a quote") })
    }

    async fn deploy(&self, chain: &[&Hostile]) -> Result<()> {
        let chain: Vec<_> = chain.iter().map(|hostile| (hostile.name, (hostile.make)())).collect();
        let put = self.put(&chain).await?;
        succeeded(&put)?;
        self.until_running(&put).await
    }

    /// Until the first node prices with the chain that the region answered with.
    async fn until_running(&self, put: &Answer) -> Result<()> {
        let version = put.json()["version"].as_u64().context("a chain has a version")?;
        let node = Client::new(self.demo.nodes()[0].admin);
        until("the villain's chain", || async {
            // A site that nobody asked for sleeps.
            let quote = self.shopper.get(&self.quote).await?;
            let status = node.get("/v1/status").await?.json();
            let heard = status["logs"]["release"]["cursor"].as_u64() >= Some(version);
            let pending = status["chains_pending"].as_array().cloned().unwrap_or_default();
            let running = heard && quote.status == 200 && !pending.iter().any(|p| p["site"] == VILLAIN);
            Ok(if running { Ok(()) } else { Err(format!("{} {status}", said(&quote))) })
        })
        .await
    }

    /// What is let in: the reason in the quote, and a price that it did not change.
    async fn run(&self, hostile: &Hostile) -> Result<Outcome> {
        let answer = self.put(&[(hostile.name, (hostile.make)())]).await?;
        if !answer.status.is_success() {
            return Ok(Outcome { right: false, said: said(&answer) });
        }
        self.until_running(&answer).await?;
        // The first calls of a breaker that is closed. The machine may stand still in one of them, which then ends as
        // busy or late; what a component does it does each time.
        let mut outcome = self.once(hostile).await?;
        for _ in 0..2 {
            let was_late = ["busy", "deadline"].iter().any(|late| outcome.said.contains(late));
            if !outcome.right && was_late && outcome.said.ends_with(&format!("total {}", self.honest)) {
                outcome = self.once(hostile).await?;
            }
        }
        Ok(outcome)
    }

    /// One quote with it in the chain.
    async fn once(&self, hostile: &Hostile) -> Result<Outcome> {
        let quote = self.shopper.get(&self.quote).await?.json();
        let fallbacks = quote["fallbacks"].as_array().cloned().unwrap_or_default();
        let reason =
            fallbacks.iter().find(|f| f["plugin"] == hostile.name).and_then(|f| f["reason"].as_str());
        Ok(match (hostile.expected, reason) {
            (Expected::Fault(names), Some(reason)) => Outcome {
                right: names.contains(&reason) && quote["total"] == self.honest,
                said: format!("fault: {reason}, total {}", quote["total"]),
            },
            (Expected::Contained, None) => Outcome { right: true, said: "contained".to_owned() },
            (_, reason) => Outcome { right: false, said: format!("{reason:?}, total {}", quote["total"]) },
        })
    }
}

/// The sample shop: another site on the same node.
struct Neighbour {
    shopper: Client,
    quote: String,
}

impl Neighbour {
    async fn open(demo: &Demo) -> Result<Self> {
        let shopper = demo.shopper(0);
        let opened = shopper.post("/api/carts", json!({"country": "GB"})).await?.json();
        let cart = opened["cart"].as_str().context("a cart has a name")?.to_owned();
        for sku in SAMPLE_SKUS {
            let line = json!({"sku": sku, "quantity": 3});
            succeeded(&shopper.post(&format!("/api/carts/{cart}/lines"), line).await?)?;
        }
        Ok(Self { shopper, quote: format!("/api/carts/{cart}/quote") })
    }
}

async fn neighbours_total(demo: &Demo) -> Result<Value> {
    let neighbour = Neighbour::open(demo).await?;
    let quote = neighbour.shopper.get(&neighbour.quote).await?.json();
    ensure!(quote["fallbacks"].as_array().is_none_or(Vec::is_empty), "{quote}");
    Ok(quote["total"].clone())
}

fn succeeded(answer: &Answer) -> Result<()> {
    ensure!(answer.status.is_success(), "{}", said(answer));
    Ok(())
}

/// The beginning of an answer.
fn said(answer: &Answer) -> String {
    let text: String = answer.text().chars().filter(|c| !c.is_control()).take(160).collect();
    format!("{} {text}", answer.status)
}

struct Outcome {
    right: bool,
    said: String,
}

#[derive(Default)]
struct Table {
    rows: Vec<(String, Outcome)>,
}

impl Table {
    /// An error is an outcome that nobody expected; the rest of the corpus still runs.
    fn row(&mut self, name: &str, outcome: Result<Outcome>) {
        let outcome = outcome.unwrap_or_else(|error| Outcome { right: false, said: format!("{error:#}") });
        self.rows.push((name.to_owned(), outcome));
    }

    fn end(self, what: &str) -> Result<()> {
        for (name, Outcome { right, said }) in &self.rows {
            say(&format!("  {} {name:<40} {said}", if *right { "ok   " } else { "WRONG" }));
        }
        let right = self.rows.iter().filter(|(_, outcome)| outcome.right).count();
        say(&format!("{what}: outcome as expected {right}/{}", self.rows.len()));
        let wrong: Vec<_> = self
            .rows
            .iter()
            .filter(|(_, o)| !o.right)
            .map(|(name, o)| format!("{name}: {}", o.said))
            .collect();
        ensure!(wrong.is_empty(), "not as expected:\n{}", wrong.join("\n"));
        Ok(())
    }
}

/// The longest that one guest may take: its own ten seconds and a busy machine.
const HTTP_ANSWER_MAX: Duration = Duration::from_secs(25);

/// Serves the component in a process of its own and looks at the bytes on the wire, twice: the second request must
/// fare as the first did.
fn serve(hostile: &HttpHostile) -> Result<Outcome> {
    let served = Served::start(&(hostile.make)())?;
    let first = exchange(served.addr)?;
    let second = exchange(served.addr)?;
    let fits = |seen: &Message| match (hostile.seen, seen) {
        (Seen::Whole(statuses), Message::Whole(status)) => statuses.contains(status),
        (Seen::BrokenOff, Message::Whole(status)) => (500..=504).contains(status),
        (Seen::BrokenOff, Message::BrokenOff(_)) => true,
        (Seen::Framed, Message::Whole(_) | Message::BrokenOff(_)) => true,
        _ => false,
    };
    Ok(Outcome { right: fits(&first) && fits(&second), said: first.to_string() })
}

struct Served {
    child: Child,
    addr: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Served {
    fn start(component: &[u8]) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let (file, ready) = (dir.path().join("guest.wasm"), dir.path().join("ready.json"));
        std::fs::write(&file, component)?;
        let mut child = Command::new(souk_tests::souk())
            .arg("serve")
            .arg(&file)
            .args(["--listen", "127.0.0.1:0", "--log", "error", "--ready-file"])
            .arg(&ready)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start `souk serve`")?;
        let deadline = Instant::now() + Duration::from_secs(60);
        let text = loop {
            if let Ok(text) = std::fs::read(&ready) {
                break text;
            }
            if let Some(status) = child.try_wait()? {
                bail!("`souk serve` ended: {status}");
            }
            ensure!(Instant::now() < deadline, "`souk serve` is not ready");
            std::thread::sleep(Duration::from_millis(10));
        };
        let told: Value = serde_json::from_slice(&text)?;
        let addr = told["http"].as_str().and_then(|addr| addr.parse().ok()).context("where it listens")?;
        Ok(Self { child, addr, _dir: dir })
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What came over the wire.
enum Message {
    Whole(u16),
    BrokenOff(Option<u16>),
    /// Something that a client could take for framing and that the host did not write.
    Smuggled(String),
}

impl std::fmt::Display for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Whole(status) => write!(f, "whole: {status}"),
            Self::BrokenOff(Some(status)) => write!(f, "broken off after the head of a {status}"),
            Self::BrokenOff(None) => f.write_str("broken off before its head"),
            Self::Smuggled(what) => write!(f, "smuggled: {what}"),
        }
    }
}

fn exchange(addr: SocketAddr) -> Result<Message> {
    let mut socket = TcpStream::connect(addr)?;
    socket.set_read_timeout(Some(HTTP_ANSWER_MAX))?;
    socket.write_all(b"GET / HTTP/1.1\r\nhost: shop.example\r\nconnection: close\r\n\r\n")?;
    let mut bytes = Vec::new();
    match socket.take(64 << 20).read_to_end(&mut bytes) {
        Ok(_) => {}
        // A reset: the answer broke off.
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(error) => return Err(error).context("read the answer"),
    }
    read_message(&bytes)
}

/// Reads one HTTP/1.1 message as strictly as it can be read.
fn read_message(bytes: &[u8]) -> Result<Message> {
    let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else {
        // The guest failed so soon that the head had not left yet.
        return Ok(Message::BrokenOff(None));
    };
    let head = std::str::from_utf8(&bytes[..end])?;
    let body = &bytes[end + 4..];
    let mut lines = head.split("\r\n");
    let status: u16 = lines
        .next()
        .and_then(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok())
        .with_context(|| format!("a status line: {head}"))?;
    let (mut lengths, mut codings) = (Vec::new(), Vec::new());
    for line in lines {
        let (name, value) = line.split_once(':').with_context(|| format!("a field: {line:?}"))?;
        match name.to_ascii_lowercase().as_str() {
            "content-length" => lengths.push(value.trim().to_owned()),
            "transfer-encoding" => codings.push(value.trim().to_owned()),
            "connection" if !value.trim().eq_ignore_ascii_case("close") => {
                return Ok(Message::Smuggled(line.to_owned()));
            }
            "smuggled" | "upgrade" => return Ok(Message::Smuggled(line.to_owned())),
            _ if line.contains(['\r', '\n', '\0']) => return Ok(Message::Smuggled(line.to_owned())),
            _ => {}
        }
    }
    let rest = match (lengths.as_slice(), codings.as_slice()) {
        ([length], []) => {
            let length: usize = length.parse()?;
            if body.len() < length {
                return Ok(Message::BrokenOff(Some(status)));
            }
            &body[length..]
        }
        ([], [coding]) if coding == "chunked" => match after_chunks(body)? {
            Some(rest) => rest,
            None => return Ok(Message::BrokenOff(Some(status))),
        },
        _ => return Ok(Message::Smuggled(format!("lengths {lengths:?}, codings {codings:?}"))),
    };
    if rest.is_empty() {
        Ok(Message::Whole(status))
    } else {
        Ok(Message::Smuggled(format!("{} bytes after the end", rest.len())))
    }
}

/// What follows the last chunk and its trailers; nothing if the body breaks off before.
fn after_chunks(mut body: &[u8]) -> Result<Option<&[u8]>> {
    loop {
        let Some(end) = body.windows(2).position(|w| w == b"\r\n") else { return Ok(None) };
        let size = usize::from_str_radix(std::str::from_utf8(&body[..end])?, 16)?;
        body = &body[end + 2..];
        if size == 0 {
            loop {
                let Some(end) = body.windows(2).position(|w| w == b"\r\n") else { return Ok(None) };
                body = &body[end + 2..];
                if end == 0 {
                    return Ok(Some(body));
                }
            }
        }
        if body.len() < size + 2 {
            return Ok(None);
        }
        ensure!(&body[size..size + 2] == b"\r\n", "a chunk ends with a line break");
        body = &body[size + 2..];
    }
}
