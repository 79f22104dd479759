//! The disk tier of `souk proxy`, black box: the process is killed or ended, its file system is full, and an origin
//! counts who asks.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::json;
use souk_tests::http::Client;
use souk_tests::proxy::Proxy;
use souk_tests::say;
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};

const PAGES: usize = 60;
/// Nothing here takes longer unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_proxy_answers_from_its_disk_and_not_with_what_was_invalidated() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let dir = folder.path().join("cache");
    let origin = Origin::start(0).await?;
    let mut proxy = start(&origin, &dir, "64 MiB").await?;
    let first = read_all(&proxy).await?;
    wait_for(&proxy, "souk_proxy_disk_objects", |objects| objects == PAGES as f64).await?;

    // A change at the origin, through the proxy: its answer is the promise that nobody sees the old page again.
    ensure!(client(&proxy).send(Method::DELETE, "/page/7", None).await?.status == 200);
    for (how, ends_well) in [("SIGKILL", false), ("SIGTERM", true), ("SIGKILL", false)] {
        if ends_well {
            proxy.stop().await?;
        } else {
            drop(proxy);
        }
        proxy = start(&origin, &dir, "64 MiB").await?;
        let asked = origin.asked();
        let again = read_all(&proxy).await?;
        for (path, body) in &again {
            ensure!(path == "/page/7" || first.get(path) == Some(body), "{path} is another after {how}");
        }
        ensure!(again["/page/7"] != first["/page/7"], "the page that was removed is back after {how}");
        let fetched: Vec<_> = origin.asked_since(&asked);
        if how == "SIGKILL" && asked["/page/7"] == 1 {
            ensure!(fetched == ["/page/7"], "fetched after {how}: {fetched:?}");
            wait_for(&proxy, "souk_proxy_disk_queued", |queued| queued == 0.0).await?;
        } else {
            ensure!(fetched.is_empty(), "fetched after {how}: {fetched:?}");
        }
        say(&format!("{PAGES} pages after {how}: {} of the origin, the rest from the disk", fetched.len()));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_proxy_has_forgotten_what_was_purged_and_nothing_else() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let dir = folder.path().join("cache");
    let origin = Origin::start(0).await?;
    let mut proxy = start(&origin, &dir, "64 MiB").await?;
    read_all(&proxy).await?;
    let purges = [
        (json!({ "tags": ["colour-1"] }), (0..PAGES).filter(|n| n % 3 == 1).collect::<Vec<_>>()),
        (json!({ "prefixes": ["/page/2"], "urls": ["/page/5?x", "/page/6"] }), vec![2, 6]),
        (json!({ "everything": true }), (0..PAGES).collect()),
    ];
    for (wish, gone) in purges {
        wait_for(&proxy, "souk_proxy_disk_queued", |queued| queued == 0.0).await?;
        let answer = Client::new(proxy.admin).post("/purge", wish.clone()).await?;
        ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
        let durable = answer.json()["durable"] == true;
        drop(proxy);
        proxy = start(&origin, &dir, "64 MiB").await?;
        let asked = origin.asked();
        read_all(&proxy).await?;
        let mut fetched = origin.asked_since(&asked);
        let mut wanted: Vec<_> = gone.iter().map(|n| format!("/page/{n}")).collect();
        fetched.sort();
        wanted.sort();
        ensure!(fetched == wanted, "after {wish} and a kill were fetched {fetched:?}");
        say(&format!("{wish} (durable: {durable}) and SIGKILL: {} of {PAGES} pages fetched", gone.len()));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_file_system_costs_stored_pages_and_no_request() -> Result<()> {
    const BYTES: usize = 256 << 10;
    let Some(small) = Tmpfs::mount()? else {
        say("skipped: no file system of a few megabytes can be mounted here");
        return Ok(());
    };
    let origin = Origin::start(BYTES).await?;
    let proxy = start(&origin, &small.0.join("cache"), "1 GiB").await?;
    for round in 0..2 {
        for (path, body) in read_all(&proxy).await? {
            ensure!(body.len() > BYTES, "{path} is short in round {round}");
        }
        wait_for(&proxy, "souk_proxy_disk_queued", |queued| queued == 0.0).await?;
    }
    let read = |name: &'static str| metric(&proxy, name);
    let (on, errors, bytes) = (
        read("souk_proxy_disk_on").await?,
        read("souk_proxy_disk_errors_total").await?,
        read("souk_proxy_disk_bytes").await?,
    );
    ensure!(on == 1.0, "the tier is off");
    ensure!(errors > 0.0, "the file system was never full");
    ensure!(bytes > 0.0 && bytes < (8 << 20) as f64, "{bytes} bytes");
    say(&format!("{errors} times full, {bytes} bytes kept, the tier is on"));
    Ok(())
}

async fn start(origin: &Origin, dir: &Path, size: &str) -> Result<Proxy> {
    let dir = dir.to_str().context("a path that is text")?;
    Proxy::start_with(origin.addr, &["--disk", dir, "--disk-size", size]).await
}

/// One host, whatever port the proxy listens on this time: it is a part of what is asked for.
fn client(proxy: &Proxy) -> Client {
    Client::new(proxy.addr).with("host", "shop.example")
}

/// Each page once, all of them answered.
async fn read_all(proxy: &Proxy) -> Result<HashMap<String, Bytes>> {
    let client = client(proxy);
    let mut bodies = HashMap::new();
    for n in 0..PAGES {
        let path = format!("/page/{n}");
        let answer = client.get(&path).await?;
        ensure!(answer.status == 200, "{path}: {} {}", answer.status, answer.text());
        bodies.insert(path, answer.body);
    }
    Ok(bodies)
}

async fn metric(proxy: &Proxy, name: &str) -> Result<f64> {
    let page = Client::new(proxy.admin).get("/metrics").await?.text();
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.with_context(|| format!("no {name} in {page}"))?.trim().parse().context("a number")
}

async fn wait_for(proxy: &Proxy, name: &str, wanted: impl Fn(f64) -> bool) -> Result<()> {
    let arrives = async {
        while !wanted(metric(proxy, name).await?) {
            sleep(Duration::from_millis(5)).await;
        }
        anyhow::Ok(())
    };
    timeout(PATIENCE, arrives).await.with_context(|| format!("{name} never gets there"))?
}

/// Answers with a page that says how often it was asked for, and counts.
struct Origin {
    addr: SocketAddr,
    asked: Arc<Mutex<HashMap<String, u32>>>,
}

impl Origin {
    async fn start(padding: usize) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        let asked = Arc::<Mutex<HashMap<String, u32>>>::default();
        let counted = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let counted = Arc::clone(&counted);
                let answer = service_fn(move |request: Request<Incoming>| {
                    let mut body = String::new();
                    let number =
                        request.uri().path().rsplit('/').next().and_then(|n| n.parse::<usize>().ok());
                    let colour = format!("colour-{}", number.unwrap_or_default() % 3);
                    if request.method() == Method::GET {
                        let path = request.uri().path().to_owned();
                        let mut counted = counted.lock();
                        let times = counted.entry(path.clone()).or_insert(0);
                        *times += 1;
                        body = format!("{path} for the {times}. time{}", ".".repeat(padding));
                    }
                    let answer = Response::builder().header("cache-control", "max-age=3600");
                    let answer = answer.header("surrogate-key", colour);
                    async move { answer.body(Full::new(Bytes::from(body))) }
                });
                let served =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
                tokio::spawn(async { drop(served.await) });
            }
        });
        Ok(Self { addr, asked })
    }

    fn asked(&self) -> HashMap<String, u32> {
        self.asked.lock().clone()
    }

    fn asked_since(&self, before: &HashMap<String, u32>) -> Vec<String> {
        let now = self.asked();
        now.into_iter()
            .filter(|(path, times)| before.get(path) != Some(times))
            .map(|(path, _)| path)
            .collect()
    }
}

/// A file system of eight megabytes. Dropping it takes it away.
struct Tmpfs(PathBuf, #[expect(dead_code, reason = "the folder that it is mounted in")] tempfile::TempDir);

impl Tmpfs {
    /// None where this is not allowed.
    fn mount() -> Result<Option<Self>> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().to_owned();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=8m", "tmpfs"]).arg(&path).output();
        match mounted {
            Ok(done) if done.status.success() => Ok(Some(Self(path, folder))),
            _ => Ok(None),
        }
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: a process that is being killed may have a file open.
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}
