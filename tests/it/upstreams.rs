//! Merchants' own servers behind a node: two sites with upstreams on two nodes of a demo, servers that count who asks, and
//! the region that takes back what was stored.

use std::collections::HashMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use parking_lot::Mutex;
use serde_json::{Value, json};
use souk_commerce::id::Digest;
use souk_tests::demo::{Demo, PATIENCE, until};
use souk_tests::http::{Answer, Client};
use souk_tests::proxy::Proxy;
use souk_tests::souk;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::pages::PageGuest;

const ONE: (&str, &str) = ("one", "one.example");
const TWO: (&str, &str) = ("two", "two.example");
const COLD: usize = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_serves_merchants_own_servers_with_the_whole_cache() -> Result<()> {
    const NAME: &str = "a_node_serves_merchants_own_servers_with_the_whole_cache";
    if let Some(why) = souk_tests::no_wasm_toolchain() {
        souk_tests::skip(NAME, &why);
        return Ok(());
    }
    let servers = [Origin::start("main").await?, Origin::start("blog").await?, Origin::start("two").await?];
    let collector = Origin::start("collector").await?;
    let settings = settings(&servers, &collector)?;
    let path = settings.path().to_str().context("a path that is text")?;
    let demo = Demo::start_with(&["--keep", "--node-config", path]).await?;
    let world = World::open(&demo, &servers).await?;
    world.hits_and_misses().await?;
    world.the_shops_own_parts_go_first(&demo).await?;
    world.tenants_never_cross().await?;
    world.unsafe_requests_take_back().await?;
    world.purges_come_from_the_region(&demo).await?;
    world.operators_see_it(&demo).await?;
    world.requests_are_told_of(&demo, &collector).await?;
    world.an_upstream_that_is_down(&demo).await?;
    // A node that comes back without its region and without its servers has what its disk has.
    world.warm_the_disk(&demo).await?;
    let left = demo.stop_keeping().await?;
    let node = Node::start(&left.path().join("demo/edge-lon"))?;
    let node = node.until_ready().await?;
    let asked = world.asked();
    for (host, path) in [(ONE.1, "/page/disk"), (ONE.1, "/blog/disk"), (TWO.1, "/page/disk")] {
        let shop = Client::new(node.http).with("host", host);
        // The shop's plugins wake with the first request for one of its paths.
        let answer = until(&format!("{host}{path} is answered"), async || {
            let answer = shop.get(path).await?;
            Ok(if answer.status == 200 { Ok(answer) } else { Err(answer.text()) })
        })
        .await?;
        ensure_hit(path, &answer)?;
    }
    ensure!(
        world.asked() == asked,
        "the servers were asked after the restart: {asked:?} {:?}",
        world.asked()
    );
    node.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_takes_the_limits_of_a_node_as_flags() -> Result<()> {
    let origin = Origin::start("main").await?;
    let proxy = Proxy::start_with(
        origin.addr,
        &["--request-deadline", "300 ms", "--header-bytes-max", "8 KiB", "--connect-timeout", "2 s"],
    )
    .await?;
    let client = Client::new(proxy.addr);
    ensure!(client.get("/page/a").await?.status == 200);
    let late = client.get("/never").await?;
    ensure!((late.status.as_u16(), late.code().as_str()) == (504, "deadline_passed"), "{}", late.text());
    let large = client.with("x-large", &"x".repeat(10 << 10)).get("/page/a").await?;
    ensure!((large.status.as_u16(), large.code().as_str()) == (431, "head_too_large"), "{}", large.text());
    proxy.stop().await?;
    // One a second: no machine is so slow that a hundred of them take a hundred seconds.
    let proxy = Proxy::start_with(origin.addr, &["--rate-per-address", "1"]).await?;
    let client = Client::new(proxy.addr);
    let mut refused = None;
    for _ in 0..100 {
        let answer = client.get("/page/a").await?;
        if answer.status != 200 {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.context("as often as anybody likes")?;
    ensure!(refused.status == 429 && refused.json()["limit"] == "address", "{}", refused.text());
    ensure!(refused.headers.contains_key("retry-after"));
    let metrics = Client::new(proxy.admin).get("/metrics").await?.text();
    ensure!(metrics.contains("souk_proxy_refusals_total{reason=\"too_many_requests\"} 1"), "{metrics}");
    proxy.stop().await
}

/// The nodes' `[[upstreams]]`, and who looks at requests.
fn settings(servers: &[Origin; 3], collector: &Origin) -> Result<tempfile::NamedTempFile> {
    let [main, blog, two] = servers;
    let mut file = tempfile::NamedTempFile::new()?;
    let route = |site: &str, path: &str, server: &Origin, below: &str| {
        let server = format!("http://{}{below}", server.addr);
        format!("[[upstreams]]\nsite = \"{site}\"\npath = \"{path}\"\nservers = [\"{server}\"]\n")
    };
    // The blog knows itself by another path.
    let text = [
        route(ONE.0, "/", main, ""),
        route(ONE.0, "/blog", blog, "/base"),
        route(TWO.0, "/", two, ""),
        format!("[trace]\ncollector = \"http://{}\"\nper_mille = 1000\n", collector.addr),
        "[access_log]\nfile = \"access.log\"\n".to_owned(),
    ];
    file.write_all(text.concat().as_bytes())?;
    Ok(file)
}

struct World<'a> {
    region: Client,
    nodes: Vec<Client>,
    servers: &'a [Origin; 3],
}

impl<'a> World<'a> {
    async fn open(demo: &Demo, servers: &'a [Origin; 3]) -> Result<Self> {
        let nodes = demo.nodes().iter().map(|node| Client::new(node.http)).collect();
        let world = Self { region: demo.operator(), nodes, servers };
        for (site, host) in [ONE, TWO] {
            let settings = json!({"site": site, "hosts": [host], "currency": "GBP"});
            succeeded(&world.region.put(&format!("/v1/sites/{site}"), settings).await?)?;
            let products =
                json!({"products": [{"sku": "MUG", "title": "A mug", "price": 1000, "stock": 10}]});
            succeeded(&world.region.post(&format!("/v1/sites/{site}/products"), products).await?)?;
        }
        let guest = PageGuest { reads: "/api/products/MUG", fields: &[("cache-control", "max-age=600")] };
        let component = guest.component();
        let digest = Digest::of(&component).to_string();
        succeeded(&world.region.put_bytes(&format!("/v1/blobs/{digest}"), component.into()).await?)?;
        let release =
            json!({"plugin": "mug", "component": digest, "kind": "http", "route": "/mug", "settings": {}});
        let path = format!("/v1/sites/{}/releases", ONE.0);
        succeeded(&world.region.put(&path, json!({"releases": [release]})).await?)?;
        for node in &world.nodes {
            for (host, path, part) in
                [(ONE.1, "/mug", "A mug"), (ONE.1, "/page/first", "main"), (TWO.1, "/page/first", "two")]
            {
                until(&format!("{host}{path} is served"), async || {
                    let answer = node.with("host", host).get(path).await?;
                    let text = answer.text();
                    Ok(if answer.status == 200 && text.contains(part) { Ok(()) } else { Err(text) })
                })
                .await?;
            }
        }
        Ok(world)
    }

    /// The same shop at each node.
    fn shops(&self, (_, host): (&str, &'static str)) -> Vec<Client> {
        self.nodes.iter().map(|node| node.with("host", host)).collect()
    }

    fn asked(&self) -> Vec<HashMap<String, u32>> {
        self.servers.iter().map(Origin::asked).collect()
    }

    async fn hits_and_misses(&self) -> Result<()> {
        for (index, shop) in self.shops(ONE).into_iter().enumerate() {
            let path = format!("/page/cold-{index}");
            let mut cold = JoinSet::new();
            for _ in 0..COLD {
                let (shop, path) = (shop.clone(), path.clone());
                cold.spawn(async move { shop.get(&path).await });
            }
            while let Some(answer) = cold.join_next().await {
                let answer = answer??;
                ensure!(answer.text() == format!("main {path} 1"), "{}", answer.text());
            }
            ensure!(self.servers[0].times(&path) == 1, "{COLD} cold requests are one fetch");
            let hit = shop.with("x-souk-timing", "1").get(&path).await?;
            ensure_hit(&path, &hit)?;
            let timing = hit.header("server-timing");
            ensure!(timing.contains("total;dur=") && timing.contains("cache;dur="), "{timing}");
            ensure!(!timing.contains("upstream"), "a hit asks nobody: {timing}");
            ensure!(hit.header("x-souk-node").contains('/'), "every answer names its node");
            ensure!(!hit.headers.contains_key("surrogate-key"), "tags are nobody's business");
            // What may not be stored is asked for each time.
            for time in 1..=2 {
                let answer = shop.get(&format!("/private/{index}")).await?;
                ensure!(answer.text() == format!("main /private/{index} {time}"), "{}", answer.text());
                ensure!(!is_hit(&answer) && answer.header("cache-status").starts_with("Souk; fwd="));
            }
            // Longer than any answer of the shop's own, and in pieces.
            let large = shop.get(&format!("/large/{index}")).await?;
            ensure!(large.body.len() > 1 << 20, "{} bytes", large.body.len());
            ensure_hit("large", &shop.get(&format!("/large/{index}")).await?)?;
            // The route with a path of its own, under the path that its server knows.
            ensure!(shop.get("/blog/a?x=1").await?.text().starts_with("blog /base/blog/a?x=1 "));
            ensure!(shop.get("/blogger").await?.text().starts_with("main /blogger "));
            let moved = shop.get("/blog/moved").await?;
            ensure!(moved.header("location") == "/blog/a", "{}", moved.header("location"));
        }
        Ok(())
    }

    async fn the_shops_own_parts_go_first(&self, demo: &Demo) -> Result<()> {
        let before = self.asked();
        for (shop, node) in self.shops(ONE).into_iter().zip(demo.nodes()) {
            ensure!(shop.get("/api/products/MUG").await?.json()["title"] == "A mug");
            ensure!(shop.get("/mug").await?.json()["title"] == "A mug", "the plugin's page");
            ensure!(shop.post("/api/carts", json!({})).await?.status.is_success(), "a cart is made");
            let wrong = shop.get("/api/nothing").await?;
            ensure!((wrong.status.as_u16(), wrong.code()) == (404, "no_such_route".to_owned()));
            // Neither a page of a plugin nor an upstream is asked with a method that no request has.
            for (method, path) in [("TRACE", "/mug"), ("get", "/mug"), ("TRACE", "/page/a"), ("trace", "/")] {
                let answer = raw(node.http, method, path).await?;
                ensure!(
                    answer.starts_with("HTTP/1.1 405 ") && answer.contains("method_not_allowed"),
                    "{method} {path}: {answer}"
                );
            }
            for path in ["/blog/../page/a", "/blog/%2e%2e/page/a", "/blog/..%2fpage/a", "/blog/..;/page/a"] {
                let answer = raw(node.http, "GET", path).await?;
                ensure!(
                    answer.starts_with("HTTP/1.1 400 ") && answer.contains("bad_path"),
                    "{path}: {answer}"
                );
            }
        }
        ensure!(self.asked() == before, "nobody asked the servers for what the shop has: {:?}", self.asked());
        Ok(())
    }

    async fn tenants_never_cross(&self) -> Result<()> {
        for (one, two) in self.shops(ONE).into_iter().zip(self.shops(TWO)) {
            for _ in 0..2 {
                ensure!(one.get("/page/same").await?.text().starts_with("main /page/same "));
                ensure!(two.get("/page/same").await?.text().starts_with("two /page/same "));
            }
            // The other site has no blog: its server is asked under its own path.
            ensure!(two.get("/blog/a").await?.text().starts_with("two /blog/a "));
            // Nobody's word makes one shop's page another's.
            let forged = one.with("x-forwarded-host", TWO.1).with("forwarded", "host=two.example");
            ensure!(forged.get("/page/same").await?.text().starts_with("main /page/same "));
        }
        Ok(())
    }

    async fn unsafe_requests_take_back(&self) -> Result<()> {
        let shop = &self.shops(ONE)[0];
        let first = shop.get("/page/changes").await?.text();
        ensure!(shop.get("/page/changes").await?.text() == first);
        let posted = shop.post("/page/changes", json!({"stars": 5})).await?;
        ensure!(posted.text().ends_with("{\"stars\":5}"), "its body arrives: {}", posted.text());
        ensure!(shop.get("/page/changes").await?.text() != first, "changed by the POST");
        Ok(())
    }

    /// Acknowledged by every node, and then gone on every node; everything else stays.
    async fn purges_come_from_the_region(&self, demo: &Demo) -> Result<()> {
        let paths = ["/page/tagged", "/page/other", "/blog/tagged"];
        let keep = async || {
            for shop in [self.shops(ONE), self.shops(TWO)].concat() {
                for path in paths {
                    shop.get(path).await?;
                    ensure_hit(path, &shop.get(path).await?)?;
                }
            }
            anyhow::Ok(())
        };
        let (all, tagged) = (paths.as_slice(), ["/page/tagged", "/blog/tagged"].as_slice());
        for (args, gone, how) in [
            (&["--tag", "banner"][..], tagged, "purged"),
            (&["--url", "/blog/tagged"], &["/blog/tagged"], "purged"),
            (&["--url", "http://one.example/page/other"], &["/page/other"], "purged"),
            (&["--prefix", "/blog"], &["/blog/tagged"], "purged"),
            (&["--everything"], all, "purged"),
            (&["--tag", "banner", "--soft"], tagged, "soft_purged"),
        ] {
            keep().await?;
            purge(demo, args).await?;
            for shop in self.shops(ONE) {
                for path in paths {
                    let answer = shop.get(path).await?;
                    let said = answer.header("cache-status");
                    let was = said.ends_with(&format!("detail={how}"));
                    ensure!(was == gone.contains(&path), "{args:?}, {path}: {said}");
                    ensure!(was || is_hit(&answer), "{args:?}, {path}: {said}");
                }
            }
            for shop in self.shops(TWO) {
                for path in paths {
                    ensure_hit(path, &shop.get(path).await?)?;
                }
            }
        }
        // A change of the shop's rows takes no page of its server's.
        keep().await?;
        let price = json!({"price": 900});
        succeeded(&self.region.put(&format!("/v1/sites/{}/prices/MUG", ONE.0), price).await?)?;
        for shop in self.shops(ONE) {
            until("the mug costs 900", async || {
                let shown = shop.get("/api/products/MUG").await?.json();
                Ok(if shown["price"] == 900 { Ok(()) } else { Err(shown.to_string()) })
            })
            .await?;
            ensure!(shop.get("/mug").await?.json()["price"] == 900, "the plugin's page in the same step");
            for path in paths {
                ensure_hit(path, &shop.get(path).await?)?;
            }
        }
        Ok(())
    }

    async fn operators_see_it(&self, demo: &Demo) -> Result<()> {
        let admin = demo.nodes()[0].admin;
        let operator = Client::new(admin);
        let routes = operator.get("/upstreams").await?.json()["routes"].clone();
        let routes: Vec<_> = routes
            .as_array()
            .context("a list")?
            .iter()
            .map(|r| (r["site"].clone(), r["path"].clone()))
            .collect();
        ensure!(
            routes
                == [("one", "/blog"), ("one", "/"), ("two", "/")]
                    .map(|(site, path)| (json!(site), json!(path))),
            "{routes:?}"
        );
        // Whatever else the region had to say of the mug (what is left of it, say) takes its page back once more.
        let shop = &self.shops(ONE)[0];
        until("the plugin's page is a hit", async || {
            let answer = shop.get("/mug").await?;
            Ok(if is_hit(&answer) { Ok(()) } else { Err(answer.header("cache-status").to_owned()) })
        })
        .await?;
        let metrics = operator.get("/metrics").await?.text();
        for line in [
            "souk_proxy_requests_total{outcome=\"hit\"}",
            "souk_proxy_purges ",
            "souk_site_cache_requests_total{site=\"one\",of=\"upstreams\",outcome=\"hit\"}",
            "souk_site_cache_reasons_total{site=\"one\",of=\"upstreams\",reason=\"private\"}",
            "souk_site_cache_requests_total{site=\"two\",of=\"upstreams\",outcome=\"fill\"}",
            "souk_site_cache_requests_total{site=\"one\",of=\"pages\",outcome=\"hit\"}",
            "souk_access_lines_dropped 0",
            "souk_proxy_disk_on 1",
            &format!(
                "souk_proxy_server_addresses{{server=\"{}\",state=\"serving\"}} 1",
                self.servers[0].addr
            ),
            "souk_http_requests_total{route=\"upstream\",status=\"200\"}",
        ] {
            ensure!(metrics.contains(line), "no {line} in\n{metrics}");
        }
        let ready = operator.get("/readyz").await?;
        ensure!(ready.status == 200, "{}", ready.text());
        let explain = async |url: &str| {
            let mut command = Command::new(souk());
            command.args(["cache", "explain", url, "--json", "--admin", &admin.to_string()]);
            tokio::task::spawn_blocking(move || command.output()).await?.context("run souk")
        };
        self.shops(ONE)[0].get("/blog/tagged").await?;
        let said = explain("http://one.example/blog/tagged").await?;
        let explained: Value = serde_json::from_slice(&said.stdout).with_context(|| format!("{said:?}"))?;
        ensure!(explained["outcome"] == "hit" && explained["key"]["site"] == "one", "{explained}");
        ensure!(explained["policy"]["route"] == "/blog=safe", "{explained}");
        // The node's own answers are explained by their own cache: a listing before it is asked for, and after.
        for (path, outcome) in [("/api/products", "fetches"), ("/api/products?limit=3", "hit")] {
            if outcome == "hit" {
                self.shops(ONE)[0].get(path).await?;
            }
            let said = explain(&format!("http://one.example{path}")).await?;
            let explained: Value =
                serde_json::from_slice(&said.stdout).with_context(|| format!("{said:?}"))?;
            ensure!(explained["of"] == "api" && explained["outcome"] == outcome, "{explained}");
            ensure!(explained["key"]["target"] == path, "{explained}");
            ensure!(outcome != "hit" || explained["tier"] == "memory", "{explained}");
        }
        self.shops(ONE)[0].get("/mug").await?;
        let said = explain("http://one.example/mug").await?;
        let explained: Value = serde_json::from_slice(&said.stdout).with_context(|| format!("{said:?}"))?;
        ensure!(explained["of"] == "plugin" && explained["outcome"] == "hit", "{explained}");
        ensure!(explained["stored"]["freshness"]["freshness_lifetime_s"] == 600, "{explained}");
        let said = explain("http://one.example/api/carts/1").await?;
        ensure!(!said.status.success(), "a cart is in no cache: {said:?}");
        Ok(())
    }

    /// In the log and in traces, all of them and nothing that is a shopper's own.
    async fn requests_are_told_of(&self, demo: &Demo, collector: &Origin) -> Result<()> {
        let shop =
            self.shops(ONE)[0].with("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00");
        let created = shop.post("/api/carts", json!({"country": "GB"})).await?.json();
        let cart = created["cart"].as_str().context("a cart has a number")?.to_owned();
        ensure!(shop.get(&format!("/api/carts/{cart}")).await?.status == 200);
        shop.get("/page/told?secret=x").await?;
        shop.get("/page/told?secret=x").await?;
        let file = demo.dir().join("demo/edge-lon/access.log");
        let lines = until("every request has its line", async || {
            let text = std::fs::read_to_string(&file)?;
            let lines: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
            let told = lines.iter().filter(|line| line["path"] == "/page/told").count();
            let carts = lines.iter().any(|line| line["path"] == "/api/carts/-");
            Ok(if told == 2 && carts { Ok(lines) } else { Err(text) })
        })
        .await?;
        let told: Vec<_> = lines.iter().filter(|line| line["path"] == "/page/told").collect();
        ensure!((&told[0]["cache"], &told[1]["cache"]) == (&json!("fill"), &json!("hit")), "{told:?}");
        ensure!(told[0]["upstream_us"].is_u64() && told[1]["upstream_us"].is_null(), "{told:?}");
        ensure!(told[0]["trace"] == "0af7651916cd43dd8448eb211c80319c", "{told:?}");
        let page = lines.iter().find(|line| line["path"] == "/mug").context("a plugin's page has a line")?;
        ensure!(page["cache"].is_string(), "{page}");
        until("the collector has them", async || {
            let bodies = collector.sent.lock().clone();
            Ok(if bodies.contains("/page/told") && bodies.contains("/api/carts/-") {
                Ok(())
            } else {
                Err(bodies)
            })
        })
        .await?;
        let written = std::fs::read_to_string(&file)? + &collector.sent.lock();
        ensure!(!written.contains(&cart), "a cart's number was written down");
        ensure!(!written.contains("secret"), "a query was written down");
        Ok(())
    }

    /// What is stored stands in where its server allowed it; without it, the problem has a name, and the shop sells on.
    async fn an_upstream_that_is_down(&self, demo: &Demo) -> Result<()> {
        for shop in self.shops(TWO) {
            shop.get("/stale/a").await?;
            ensure_hit("/stale/a", &shop.get("/stale/a").await?)?;
        }
        purge_of(demo, TWO.0, &["--url", "/stale/a", "--soft"]).await?;
        self.servers[2].down.store(true, Ordering::SeqCst);
        for shop in self.shops(TWO) {
            let stale = shop.get("/stale/a").await?;
            ensure!(stale.status == 200 && stale.text().starts_with("two /stale/a "), "{}", stale.text());
            ensure!(is_hit(&stale), "{}", stale.header("cache-status"));
            let none = shop.get("/page/never-seen").await?;
            ensure!(
                (none.status.as_u16(), none.code().as_str()) == (502, "upstream_broke"),
                "{}",
                none.text()
            );
            ensure!(none.header("cache-control") == "no-store", "and is kept by nobody");
            ensure!(shop.get("/api/products/MUG").await?.status == 200, "the shop sells on");
        }
        for shop in self.shops(ONE) {
            ensure!(shop.get("/page/never-seen").await?.status == 200, "the other merchant's server is well");
        }
        self.servers[2].down.store(false, Ordering::SeqCst);
        Ok(())
    }

    async fn warm_the_disk(&self, demo: &Demo) -> Result<()> {
        let node = &self.nodes[0];
        for (host, path) in [(ONE.1, "/page/disk"), (ONE.1, "/blog/disk"), (TWO.1, "/page/disk")] {
            until(&format!("{host}{path} is kept"), async || {
                let shop = node.with("host", host);
                let kept = shop.get(path).await?.status == 200 && is_hit(&shop.get(path).await?);
                Ok(if kept { Ok(()) } else { Err("no hit".to_owned()) })
            })
            .await?;
        }
        let operator = Client::new(demo.nodes()[0].admin);
        until("the disk has them", async || {
            let metrics = operator.get("/metrics").await?.text();
            let queued = metrics.lines().find_map(|line| line.strip_prefix("souk_proxy_disk_queued "));
            Ok(if queued == Some("0") { Ok(()) } else { Err(format!("{queued:?} wait")) })
        })
        .await
    }
}

async fn purge(demo: &Demo, args: &[&str]) -> Result<()> {
    purge_of(demo, ONE.0, args).await
}

async fn purge_of(demo: &Demo, site: &str, args: &[&str]) -> Result<()> {
    let mut command = Command::new(souk());
    command.arg("purge").args(args).args(["--wait", "--json"]).envs(demo.operator_environment());
    command.env("SOUK_SITE", site);
    let done = tokio::task::spawn_blocking(move || command.output()).await??;
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    ensure!(done.status.success(), "{said}{}", String::from_utf8_lossy(&done.stderr));
    let said: Value = serde_json::from_str(&said).with_context(|| said)?;
    let nodes = said["obeyed"]["nodes"].as_array().context("the nodes are listed")?;
    ensure!(nodes.len() == 2 && nodes.iter().all(|node| node["obeyed"] == true), "{said}");
    Ok(())
}

/// What one request for a path of the first shop is answered, with the path exactly as it is written.
async fn raw(node: SocketAddr, method: &str, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(node).await?;
    let request = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", ONE.1);
    stream.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut text)).await.context("no answer")??;
    Ok(text)
}

fn is_hit(answer: &Answer) -> bool {
    answer.header("cache-status").starts_with("Souk; hit")
}

fn ensure_hit(path: &str, answer: &Answer) -> Result<()> {
    ensure!(is_hit(answer), "{path} is no hit: {} {}", answer.status, answer.header("cache-status"));
    Ok(())
}

fn succeeded(answer: &Answer) -> Result<()> {
    ensure!(answer.status.is_success(), "{}: {}", answer.status, answer.text());
    Ok(())
}

/// One node of a demo that has ended, alone: without its region.
struct Node {
    child: Child,
    ready: tempfile::TempDir,
}

/// The same when it answers.
struct ReadyNode {
    child: Child,
    http: SocketAddr,
}

impl Node {
    fn start(folder: &Path) -> Result<Self> {
        let ready = tempfile::tempdir()?;
        let child = Command::new(souk())
            .args(["edge", "--config"])
            .arg(folder.join("config.toml"))
            .arg("--ready-file")
            .arg(ready.path().join("ready.json"))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start `souk edge`")?;
        Ok(Self { child, ready })
    }

    async fn until_ready(mut self) -> Result<ReadyNode> {
        let file = self.ready.path().join("ready.json");
        let http = until("the node is back", async || {
            let text = std::fs::read(&file).unwrap_or_default();
            let ready: Option<Value> = serde_json::from_slice(&text).ok();
            let http = ready.and_then(|ready| ready["http"].as_str()?.parse().ok());
            Ok(http.ok_or_else(|| "no ready file".to_owned()))
        })
        .await;
        match http {
            Ok(http) => Ok(ReadyNode { child: self.child, http }),
            Err(error) => {
                let _ = self.child.kill();
                let _ = self.child.wait();
                Err(error)
            }
        }
    }
}

impl ReadyNode {
    async fn stop(mut self) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGTERM)?;
        let ended = async {
            loop {
                if let Some(status) = self.child.try_wait()? {
                    ensure!(status.success(), "the node ended: {status}");
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, ended).await.context("the node does not end")?
    }
}

impl Drop for ReadyNode {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A merchant's server. Its pages say who it is, what it was asked for, and how often.
struct Origin {
    addr: SocketAddr,
    asked: Arc<Mutex<HashMap<String, u32>>>,
    /// All that was posted to it.
    sent: Arc<Mutex<String>>,
    /// It breaks every connection off.
    down: Arc<AtomicBool>,
}

impl Origin {
    async fn start(name: &'static str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        let asked = Arc::<Mutex<HashMap<String, u32>>>::default();
        let down = Arc::new(AtomicBool::new(false));
        let sent = Arc::<Mutex<String>>::default();
        let (counted, is_down, posted) = (Arc::clone(&asked), Arc::clone(&down), Arc::clone(&sent));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (counted, is_down, posted) =
                    (Arc::clone(&counted), Arc::clone(&is_down), Arc::clone(&posted));
                let service = service_fn(move |request: Request<Incoming>| {
                    let (counted, is_down, posted) =
                        (Arc::clone(&counted), Arc::clone(&is_down), Arc::clone(&posted));
                    async move {
                        if is_down.load(Ordering::SeqCst) {
                            return Err("down");
                        }
                        answer(name, request, &counted, &posted).await
                    }
                });
                let served = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                tokio::spawn(async { drop(served.await) });
            }
        });
        Ok(Self { addr, asked, sent, down })
    }

    fn asked(&self) -> HashMap<String, u32> {
        self.asked.lock().clone()
    }

    fn times(&self, path: &str) -> u32 {
        self.asked.lock().get(path).copied().unwrap_or_default()
    }
}

async fn answer(
    name: &str,
    request: Request<Incoming>,
    counted: &Mutex<HashMap<String, u32>>,
    posted: &Mutex<String>,
) -> Result<Response<Full<Bytes>>, &'static str> {
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str()).to_owned();
    let is_post = request.method() == Method::POST;
    let sent = request.into_body().collect().await.map_err(|_| "the body broke off")?.to_bytes();
    let times = {
        let mut counted = counted.lock();
        let times = counted.entry(target.clone()).or_default();
        *times += 1;
        *times
    };
    posted.lock().push_str(&String::from_utf8_lossy(&sent));
    if target.starts_with("/never") {
        return std::future::pending().await;
    }
    let mut body = format!("{name} {target} {times}");
    let mut response = Response::builder();
    let lives = match target.as_str() {
        path if path.starts_with("/private") => "private",
        path if path.starts_with("/stale") => "max-age=600, stale-if-error=600",
        _ => "max-age=600",
    };
    response = response.header("cache-control", lives);
    if target.ends_with("tagged") {
        response = response.header("surrogate-key", "banner");
    }
    if target.ends_with("/moved") {
        response = response.status(302).header("location", "/base/blog/a");
    }
    if target.starts_with("/large") {
        body.push_str(&".".repeat(1 << 20));
    }
    if is_post {
        body.push_str(&String::from_utf8_lossy(&sent));
    }
    response.body(Full::new(Bytes::from(body))).map_err(|_| "a response")
}
