//! `souk plugin dev` as a merchant uses it: save a file, look at the quote; break the file, read why; Ctrl-C. In Rust with
//! the merchant's own shop, in JavaScript with the sample shop.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
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
    dev.until_heard("Live", live + 1).await?;

    // Ctrl-C in the middle of a build: what the tools have started must end too.
    std::fs::write(&source, original.replace(edit.says[0], edit.says[1]))?;
    dev.until_builds().await?;
    let said = dev.interrupt().await?;
    ensure!(said.matches("Live").count() == live + 1, "the build came to its end: {said}");
    Ok(())
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

/// A running `souk plugin dev`, in a group of its own as a shell would start it, and in a session of its own as a terminal
/// has: whatever comes of it stays in that session, whoever its parent is by then.
struct Dev {
    child: Child,
    said: Arc<Mutex<String>>,
    /// Everything temporary.
    temporary: TempDir,
}

impl Dev {
    fn start(project: &Path, shop: Option<&Path>) -> Result<Self> {
        let temporary = tempfile::tempdir()?;
        // Becomes what it starts, so that the child is the session's leader.
        let mut dev = Command::new("setsid");
        dev.arg(souk()).args(["plugin", "dev"]).arg(project).env("TMPDIR", temporary.path());
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

    async fn until_builds(&self) -> Result<()> {
        let began = Instant::now();
        while !self.processes()?.iter().any(|process| process.line.contains("plugin build")) {
            ensure!(began.elapsed() < PATIENCE, "nobody builds: {}", self.said());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Ctrl-C, as a terminal sends it; then nothing of it is left. Answers what it said.
    async fn interrupt(mut self) -> Result<String> {
        let began = Instant::now();
        killpg(self.id()?, Signal::SIGINT).context("interrupt it")?;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            ensure!(began.elapsed() < PATIENCE, "it does not end: {}", self.said());
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        ensure!(status.success(), "{status}: {}", self.said());
        // A process that was killed may be seen for a moment more.
        while let [process, ..] = &self.processes()?[..] {
            ensure!(began.elapsed() < PATIENCE, "left behind: {}", process.line);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let left: Vec<PathBuf> = std::fs::read_dir(self.temporary.path())?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<_>>()?;
        ensure!(left.is_empty(), "left behind: {left:?}");
        Ok(self.said())
    }

    fn id(&self) -> Result<Pid> {
        Ok(Pid::from_raw(i32::try_from(self.child.id())?))
    }

    /// Everything that it has started and that still runs, and itself: the processes of its session, and those that keep
    /// their temporary files where it was told to. Neither alone is enough: whoever leaves the session takes the
    /// environment along, and compilers are given none.
    fn processes(&self) -> Result<Vec<Process>> {
        let session = self.child.id().to_string();
        let mark = format!("TMPDIR={}", self.temporary.path().display());
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc")? {
            let entry = entry?;
            let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            // Others' processes, and those that end meanwhile, are not ours.
            let read = |file: &str| std::fs::read(entry.path().join(file)).unwrap_or_default();
            let stat = String::from_utf8_lossy(&read("stat")).into_owned();
            // Behind the name, which may hold anything: state, parent, group, session.
            let Some((_, stat)) = stat.rsplit_once(") ") else { continue };
            let fields: Vec<&str> = stat.split(' ').take(4).collect();
            let [state, _, _, its_session] = fields[..] else { continue };
            let marked = || {
                let environment = read("environ");
                environment.split(|&b| b == 0).any(|variable| variable.starts_with(mark.as_bytes()))
            };
            // One that has ended and was not asked after yet runs no more.
            if state != "Z" && (its_session == session || marked()) {
                let line = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
                found.push(Process { id: Pid::from_raw(id), line });
            }
        }
        Ok(found)
    }
}

/// One that was found running.
struct Process {
    id: Pid,
    line: String,
}

impl Drop for Dev {
    fn drop(&mut self) {
        // Of a test that has failed: its processes end with it, a build's too, which are groups of their own. It is asked
        // after only then, so that its number is nobody else's meanwhile.
        let _ = self.child.kill();
        for process in self.processes().unwrap_or_default() {
            let _ = kill(process.id, Signal::SIGKILL);
        }
        let _ = self.child.wait();
    }
}
