//! `souk plugin dev` as a merchant uses it: save a file, look at the quote; break the file, read why; Ctrl-C. In Rust with
//! the merchant's own shop, in JavaScript with the sample shop.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;
use souk_tests::demo::SAMPLE_SKUS;
use souk_tests::http::Client;
use souk_tests::tools::{self, Language};
use souk_tests::{skip, souk};
use tempfile::TempDir;

use crate::shop::with_cookies;

/// A first build compiles the SDK's dependencies; a debug build of the host takes seconds for each component.
const PATIENCE: Duration = Duration::from_secs(300);
const PRODUCT: &str = "MUG";

/// What of a template is edited, and how it looks then.
struct Edit {
    file: &'static str,
    says: [&'static str; 2],
}

#[tokio::test]
async fn rust_in_a_shop_of_ones_own() -> Result<()> {
    let shop = tempfile::tempdir()?;
    std::fs::write(
        shop.path().join("site.json"),
        json!({ "site": "corner", "currency": "GBP" }).to_string(),
    )?;
    std::fs::write(
        shop.path().join("products.csv"),
        format!("sku,title,price,stock,tags\n{PRODUCT},Mug,10.00,5,bestseller\n"),
    )?;
    let edit = Edit { file: "src/lib.rs", says: ["off_bp: 1000 }", "off_bp: 2500 }"] };
    a_morning(Language::Rust, &edit, Some(shop.path()), PRODUCT).await
}

#[tokio::test]
async fn javascript_in_the_sample_shop() -> Result<()> {
    let edit = Edit { file: "src/plugin.js", says: ["off_bp = 1000", "off_bp = 2500"] };
    a_morning(Language::Js, &edit, None, SAMPLE_SKUS[0]).await
}

async fn a_morning(language: Language, edit: &Edit, shop: Option<&Path>, sku: &str) -> Result<()> {
    let project = match tools::project("dev", language, "pricing")? {
        Ok(project) => project,
        Err(why) => {
            skip(&format!("plugin dev in {}", language.word()), &why);
            return Ok(());
        }
    };
    let source = project.join(edit.file);
    let original = std::fs::read_to_string(&source)?;
    ensure!(original.contains(edit.says[0]), "the template has changed: {original}");

    let mut dev = Dev::start(&project, shop)?;
    let node = dev.node().await?;
    dev.until_heard("Live", 1).await?;
    ensure!(percent_off(node, sku).await? == 10, "the template's own price");

    std::fs::write(&source, original.replace(edit.says[0], edit.says[1]))?;
    dev.until_quoted(node, sku, 25).await?;

    // Said a moment after the node does it.
    dev.until_heard("Live", 2).await?;
    let live = dev.heard("Live");
    std::fs::write(&source, "this is no source {")?;
    dev.until_heard("The shop goes on with the build before", 1).await?;
    ensure!(dev.said().contains(edit.file), "the error names the file: {}", dev.said());
    ensure!(percent_off(node, sku).await? == 25, "the build before is still there");
    ensure!(dev.heard("Live") == live, "nothing was released: {}", dev.said());

    std::fs::write(&source, &original)?;
    dev.until_quoted(node, sku, 10).await?;

    // Ctrl-C in the middle of a build: what the tools have started must end too.
    std::fs::write(&source, original.replace(edit.says[0], edit.says[1]))?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    dev.interrupt().await
}

/// How much of the price the plugin takes off, asked as a shopper who has just come.
async fn percent_off(node: SocketAddr, sku: &str) -> Result<i64> {
    let shopper = Client::new(node);
    let created = shopper.post("/api/carts", json!({ "country": "GB" })).await?;
    ensure!(created.status == 201, "{}", created.text());
    let cart = created.json()["cart"].as_str().context("a cart has a name")?.to_owned();
    let shopper = with_cookies(&shopper, &created);
    let added =
        shopper.post(&format!("/api/carts/{cart}/lines"), json!({ "sku": sku, "quantity": 2 })).await?;
    ensure!(added.status.is_success(), "{}", added.text());
    let shopper = with_cookies(&shopper, &added);
    let quote = shopper.get(&format!("/api/carts/{cart}/quote")).await?;
    ensure!(quote.status == 200, "{}", quote.text());
    let line = &quote.json()["lines"][0];
    let (amount, total) =
        (line["amount"].as_i64().context("an amount")?, line["total"].as_i64().context("a total")?);
    Ok((amount - total) * 100 / amount)
}

/// A running `souk plugin dev`, in a group of its own as a shell would start it.
struct Dev {
    child: Child,
    said: Arc<Mutex<String>>,
    /// Everything temporary.
    temporary: TempDir,
}

impl Dev {
    fn start(project: &Path, shop: Option<&Path>) -> Result<Self> {
        let temporary = tempfile::tempdir()?;
        let mut dev = Command::new(souk());
        dev.args(["plugin", "dev"]).arg(project).env("TMPDIR", temporary.path()).process_group(0);
        if let Some(shop) = shop {
            dev.arg("--shop").arg(shop);
        }
        let mut child =
            dev.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().context("start `souk plugin dev`")?;
        let mut errors = child.stderr.take().context("its words")?;
        let said = Arc::new(Mutex::new(String::new()));
        let heard = Arc::clone(&said);
        std::thread::spawn(move || {
            let mut some = [0; 4096];
            while let Ok(read @ 1..) = std::io::Read::read(&mut errors, &mut some) {
                heard
                    .lock()
                    .expect("nobody panics with it")
                    .push_str(&String::from_utf8_lossy(&some[..read]));
            }
        });
        Ok(Self { child, said, temporary })
    }

    fn said(&self) -> String {
        self.said.lock().expect("nobody panics with it").clone()
    }

    fn heard(&self, words: &str) -> usize {
        self.said().matches(words).count()
    }

    async fn until_heard(&mut self, words: &str, times: usize) -> Result<()> {
        let began = Instant::now();
        while self.heard(words) < times {
            if let Some(status) = self.child.try_wait()? {
                bail!("`souk plugin dev` ended ({status}): {}", self.said());
            }
            ensure!(began.elapsed() < PATIENCE, "no \"{words}\" in: {}", self.said());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    async fn node(&mut self) -> Result<SocketAddr> {
        self.until_heard("Ctrl-C ends everything", 1).await?;
        let said = self.said();
        let (_, port) = said.split_once("http://localhost:").context("the shop's address")?;
        let port: String = port.chars().take_while(char::is_ascii_digit).collect();
        Ok(SocketAddr::from(([127, 0, 0, 1], port.parse()?)))
    }

    async fn until_quoted(&self, node: SocketAddr, sku: &str, percent: i64) -> Result<()> {
        let began = Instant::now();
        while percent_off(node, sku).await? != percent {
            ensure!(began.elapsed() < PATIENCE, "{percent} % off is not quoted: {}", self.said());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// Ctrl-C, as a terminal sends it; then nothing of it is left.
    async fn interrupt(mut self) -> Result<()> {
        let began = Instant::now();
        let group = self.child.id();
        let sent = Command::new("kill").args(["-INT", "--", &format!("-{group}")]).status()?;
        ensure!(sent.success(), "kill: {sent}");
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            ensure!(began.elapsed() < PATIENCE, "it does not end: {}", self.said());
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        ensure!(status.success(), "{status}: {}", self.said());
        // A process that was killed may be seen for a moment more.
        while let [process, ..] = &processes_of(self.temporary.path())?[..] {
            ensure!(began.elapsed() < PATIENCE, "left behind: {process}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let left: Vec<PathBuf> = std::fs::read_dir(self.temporary.path())?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<_>>()?;
        ensure!(left.is_empty(), "left behind: {left:?}");
        Ok(())
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // Of a test that has failed; its processes end with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The command lines of all processes that were told to keep their temporary files there or below: everything that
/// `souk plugin dev` starts inherits that.
fn processes_of(temporary: &Path) -> Result<Vec<String>> {
    let mark = format!("TMPDIR={}", temporary.display());
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let process = entry?.path();
        // Others' processes, and those that end meanwhile, are not ours.
        let Ok(environment) = std::fs::read(process.join("environ")) else { continue };
        if environment.split(|&b| b == 0).any(|variable| variable.starts_with(mark.as_bytes())) {
            let line = std::fs::read(process.join("cmdline")).unwrap_or_default();
            found.push(String::from_utf8_lossy(&line).replace('\0', " "));
        }
    }
    Ok(found)
}
