//! The nodes of one place before merchants' servers, as processes: what is asked of the servers, whoever asks the nodes; what a
//! purge takes from all of them; and what becomes of requests when one of them dies, hangs, or is not who it says.

mod origin;

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use souk_tests::cluster::{Cluster, Plan, Spec, own_address};
use souk_tests::demo::until;
use souk_tests::http::{Answer, Client};
use souk_tests::say;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use self::origin::{HALF_BYTES, Origin};

const ONE: (&str, &str) = ("one", "one.example");
const TWO: (&str, &str) = ("two", "two.example");
/// Clients of each node in the stampede.
const CLIENTS: usize = 1_000;
/// Times that nodes may lose each other before a test gives up.
const DISTURBED_MAX: u32 = 10;
/// Purges under load.
const ROUNDS: u32 = 12;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nodes_of_a_place_fetch_each_thing_once() -> Result<()> {
    let place = Place::raise(3, 3).await?;
    place.undisturbed(async |round| place.stampede(round).await).await?;
    place.undisturbed(async |round| place.both_caches_say_what_they_did(round).await).await?;
    place.undisturbed(async |round| place.sites_never_cross(round).await).await?;
    place.undisturbed(async |round| place.what_is_not_stored_is_still_answered(round).await).await?;
    place.undisturbed(async |round| place.an_upstream_is_no_peer(round).await).await?;
    place.undisturbed(async |round| place.shoppers_are_no_peers(round).await).await?;
    place.undisturbed(async |round| place.a_purge_takes_from_all_and_costs_one_fetch(round).await).await?;
    place.a_purge_is_not_undone_under_load().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_or_hangs_costs_no_answer() -> Result<()> {
    let mut place = Place::raise(3, 3).await?;
    Box::pin(place.a_node_dies_in_the_middle_of_a_body()).await?;
    place.undisturbed(async |round| place.the_last_two_share_what_is_left(round).await).await?;
    place.a_node_dies_under_load().await?;
    Box::pin(place.a_node_hangs()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_but_the_listed_nodes_is_let_in() -> Result<()> {
    // The third lists the others, and they do not list it.
    let place = Place::raise(3, 2).await?;
    place.strangers_are_refused_by_the_handshake().await?;
    let [listed, stranger] = [0, 2].map(|node| place.shop(node, ONE));
    let (listed, stranger) = (listed?, stranger?);
    ensure!(listed.get("/page/a").await?.text() == "one /page/a 1");
    let alone = stranger.get("/page/a").await?;
    ensure!(alone.text() == "one /page/a 2", "it fetches for itself: {}", alone.text());
    ensure!(place.metric(2, "souk_proxy_peer_fills_total{outcome=\"answered\"}").await? == 0);
    Ok(())
}

/// A region, and nodes that stand in one place.
struct Place {
    cluster: Cluster,
    origins: [Origin; 2],
    doors: Vec<SocketAddr>,
    /// How many of the nodes list each other.
    listed: usize,
}

impl Place {
    async fn raise(nodes: usize, listed: usize) -> Result<Self> {
        let origins = [Origin::start("one").await?, Origin::start("two").await?];
        let doors = free_addresses(nodes)?;
        let route = |(site, _): (&str, &str), origin: &Origin| json!({ "site": site, "servers": [format!("http://{}", origin.addr)] });
        let upstreams = json!([route(ONE, &origins[0]), route(TWO, &origins[1])]);
        let spec = |node: usize| {
            let others =
                (0..listed.max(if node < listed { 0 } else { nodes })).filter(|other| *other != node);
            let others = others.map(|other| json!({ "id": other + 1, "addr": doors[other].to_string() }));
            let peers = json!({ "listen": doors[node].to_string(), "nodes": others.collect::<Vec<_>>() });
            Spec { config: vec![("upstreams", upstreams.clone()), ("peers", peers)], ..Spec::default() }
        };
        let plan = Plan { nodes: (0..nodes).map(spec).collect(), ..Plan::default() };
        let cluster = Cluster::raise(plan).await?;
        let products = json!([{ "sku": "MUG", "title": "A mug", "price": 1000, "stock": 10 }]);
        for (site, host) in [ONE, TWO] {
            cluster.open_shop(site, host, &products).await?;
        }
        let place = Self { cluster, origins, doors, listed };
        place.until_all_are_there().await?;
        Ok(place)
    }

    /// Does something that holds where no node takes another for dead. On a machine where processes get no turn for a second
    /// they may, and then fetch more: that is what is wanted, so it is done once more. Without such an excuse it has failed.
    async fn undisturbed(&self, stage: impl AsyncFn(u32) -> Result<()>) -> Result<()> {
        for round in 0..DISTURBED_MAX {
            self.until_all_are_there().await?;
            let before = self.excuses().await?;
            match stage(round).await {
                Ok(()) => return Ok(()),
                Err(error) if self.excuses().await? == before => return Err(error),
                Err(error) => say(&format!("nodes took each other for dead: {error:#}")),
            }
        }
        bail!("nodes took each other for dead in each of {DISTURBED_MAX} rounds")
    }

    /// How often a node has gone to the upstream because another one seemed to be away.
    async fn excuses(&self) -> Result<u64> {
        let mut all = 0;
        for node in (0..self.cluster.nodes.len()).filter(|node| self.cluster.nodes[*node].is_running()) {
            for outcome in ["away", "lost", "failed"] {
                all += self
                    .metric(node, &format!("souk_proxy_peer_fills_total{{outcome=\"{outcome}\"}}"))
                    .await?;
            }
        }
        Ok(all)
    }

    /// Until each listed node that runs knows that the others are there which run.
    async fn until_all_are_there(&self) -> Result<()> {
        let running: Vec<_> =
            (0..self.listed).filter(|node| self.cluster.nodes[*node].is_running()).collect();
        for node in &running {
            until("the peers are there", async || {
                let page = self.admin(*node)?.get("/metrics").await?.text();
                let up = page
                    .lines()
                    .filter(|line| line.starts_with("souk_proxy_peer_up{") && line.ends_with(" 1"));
                Ok(if up.count() + 1 == running.len() { Ok(()) } else { Err(page) })
            })
            .await?;
        }
        Ok(())
    }

    fn shop(&self, node: usize, (_, host): (&str, &str)) -> Result<Client> {
        Ok(Client::new(self.cluster.nodes[node].http()?).with("host", host))
    }

    fn shops(&self, site: (&str, &str)) -> Result<Vec<Client>> {
        (0..self.cluster.nodes.len()).map(|node| self.shop(node, site)).collect()
    }

    fn admin(&self, node: usize) -> Result<Client> {
        Ok(Client::new(self.cluster.nodes[node].admin()?))
    }

    async fn metric(&self, node: usize, line: &str) -> Result<u64> {
        let page = self.admin(node)?.get("/metrics").await?.text();
        let value = page.lines().find_map(|l| l.strip_prefix(line)).map(|rest| rest.trim().parse::<f64>());
        Ok(value.transpose()?.unwrap_or_default() as u64)
    }

    /// The nodes that a page is asked of in turn, by what `node` thinks; 0 is the first node.
    async fn homes(&self, node: usize, path: &str) -> Result<Vec<usize>> {
        let question = format!("/explain?url=http://{}{path}", ONE.1);
        let said = Client::new(self.cluster.nodes[node].admin()?).with("accept", "application/json");
        let said = said.get(&question).await?.json();
        let homes = said["homes"].as_array().with_context(|| format!("homes: {said}"))?;
        let number = |home: &Value| home["node"].as_str()?.rsplit('/').next()?.parse::<usize>().ok();
        homes.iter().map(|home| Ok(number(home).context("a node has a number")? - 1)).collect()
    }

    /// A page whose home is this node, of a kind that no other call gets.
    async fn page_of(&self, home: usize, kind: &str) -> Result<String> {
        for number in 0..200 {
            let path = format!("{kind}/{number}");
            if self.homes(0, &path).await?[0] == home {
                return Ok(path);
            }
        }
        bail!("none of 200 pages has its home at node {home}")
    }

    async fn stampede(&self, round: u32) -> Result<()> {
        let path = format!("/held/cold-{round}");
        let origin = &self.origins[0];
        origin.close();
        let shops = self.shops(ONE)?;
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            for shop in &shops {
                let (shop, path) = (shop.clone(), path.clone());
                clients.spawn(async move { shop.get(&path).await });
            }
        }
        // Whoever is to wait, waits: of each node's clients one asks for all of them.
        for node in 0..shops.len() {
            until("the clients wait", async || {
                let waiting = self.metric(node, "souk_proxy_waiting").await?;
                Ok(if waiting as usize >= CLIENTS - 1 { Ok(()) } else { Err(waiting.to_string()) })
            })
            .await?;
        }
        ensure!(origin.times(&path) == 1, "{} requests upstream", origin.times(&path));
        origin.open();
        while let Some(answer) = clients.join_next().await {
            let answer = answer??;
            ensure!(answer.status == 200 && answer.text() == format!("one {path} 1"), "{}", answer.text());
        }
        ensure!(origin.times(&path) == 1);
        Ok(())
    }

    async fn both_caches_say_what_they_did(&self, round: u32) -> Result<()> {
        let path = format!("/page/said-{round}");
        let path = path.as_str();
        let homes: BTreeSet<_> =
            [self.homes(0, path).await?, self.homes(1, path).await?, self.homes(2, path).await?].into();
        ensure!(homes.len() == 1, "all nodes name the same home: {homes:?}");
        let order = self.homes(0, path).await?;
        let home = format!("Souk/pop{0}/{0}; ", order[0] + 1);
        let text = Client::new(self.cluster.nodes[0].admin()?)
            .get(&format!("/explain?url=http://{}{path}", ONE.1))
            .await?
            .text();
        ensure!(text.contains("\nhome        pop"), "{text}");
        let shops = self.shops(ONE)?;
        // A node that is not the home asks it, which asks the upstream.
        let first = shops[order[1]].get(path).await?;
        let said = lines(&first);
        ensure!(said.len() == 2 && said[0].starts_with(&home), "{said:?}");
        ensure!(said[0].contains("fwd=uri-miss; fwd-status=200; stored"), "{said:?}");
        ensure!(said[1].starts_with("Souk; fwd=uri-miss; fwd-status=200; stored; ttl="), "{said:?}");
        // The home has it.
        let own = shops[order[0]].get(path).await?;
        ensure!(lines(&own).len() == 1 && lines(&own)[0].starts_with("Souk; hit; ttl="), "{:?}", lines(&own));
        // And gives it to the last one, no younger than it is.
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        let third = shops[order[2]].get(path).await?;
        let said = lines(&third);
        ensure!(said.len() == 2 && said[0].starts_with(&format!("{home}hit; ttl=")), "{said:?}");
        ensure!(said[1].starts_with("Souk; fwd=uri-miss; "), "{said:?}");
        let age: u32 = third.header("age").parse().context("an age")?;
        ensure!(age >= 1, "{age}");
        let again = shops[order[2]].get(path).await?;
        ensure!(
            lines(&again).last().is_some_and(|line| line.starts_with("Souk; hit; ")),
            "{:?}",
            lines(&again)
        );
        for answer in [&first, &own, &third, &again] {
            ensure!(answer.text() == format!("one {path} 1"), "{}", answer.text());
            let mut inner = answer.headers.keys().filter(|name| name.as_str().starts_with("x-souk-"));
            ensure!(inner.all(|name| name == "x-souk-node"), "{:?}", answer.headers);
            ensure!(!answer.headers.contains_key("surrogate-key"));
        }
        ensure!(self.origins[0].times(path) == 1);
        Ok(())
    }

    async fn sites_never_cross(&self, round: u32) -> Result<()> {
        for number in 0..6 {
            let path = format!("/page/same-{round}-{number}");
            for (one, two) in self.shops(ONE)?.into_iter().zip(self.shops(TWO)?) {
                let (one, two) = (one.get(&path).await?.text(), two.get(&path).await?.text());
                ensure!((one, two) == (format!("one {path} 1"), format!("two {path} 1")));
            }
        }
        Ok(())
    }

    async fn what_is_not_stored_is_still_answered(&self, round: u32) -> Result<()> {
        for number in (0..6).map(|number| format!("{round}-{number}")) {
            let path = format!("/private/{number}");
            for (before, shop) in (0..).zip(self.shops(ONE)?) {
                let text = shop.get(&path).await?.text();
                ensure!(text == format!("one {path} {}", before + 1), "each its own answer: {text}");
            }
            let gone = format!("/gone/{number}");
            for shop in self.shops(ONE)? {
                ensure!(shop.get(&gone).await?.status == 404);
            }
            ensure!(self.origins[0].times(&gone) == 1, "a 404 that may be stored is shared too");
            let broken = format!("/broken/{number}");
            for shop in self.shops(ONE)? {
                ensure!(shop.get(&broken).await?.status == 500);
            }
        }
        Ok(())
    }

    /// Its refusals are answers, however much they look like a node's own: nobody is asked once more for one.
    async fn an_upstream_is_no_peer(&self, round: u32) -> Result<()> {
        for number in 0..6 {
            let path = format!("/busy/{round}-{number}");
            for (before, shop) in (0..).zip(self.shops(ONE)?) {
                let answer = shop.get(&path).await?;
                ensure!(answer.status == 503 && answer.text() == format!("one {path} {}", before + 1));
                let mut inner = answer.headers.keys().filter(|name| name.as_str().starts_with("x-souk-"));
                ensure!(inner.all(|name| name == "x-souk-node"), "{:?}", answer.headers);
            }
        }
        Ok(())
    }

    /// What peers say to each other means nothing from a shopper.
    async fn shoppers_are_no_peers(&self, round: u32) -> Result<()> {
        let path = format!("/page/forged-{round}");
        for shop in self.shops(ONE)? {
            for asks in ["alive", "page;two;-.0"] {
                let forged = shop.with("x-souk-asks", asks).with("x-souk-peer", "1;00");
                let answer = forged.get(&path).await?;
                ensure!(
                    answer.status == 200 && answer.text() == format!("one {path} 1"),
                    "{}",
                    answer.text()
                );
                ensure!(!answer.headers.contains_key("x-souk-answers"), "{:?}", answer.headers);
                ensure!(!answer.headers.contains_key("x-souk-tags"), "{:?}", answer.headers);
            }
        }
        ensure!(!self.origins[0].has_seen_words_of_nodes(), "an upstream hears nothing of it");
        Ok(())
    }

    async fn purge(&self, wish: Value) -> Result<()> {
        let operator = self.cluster.operator()?;
        let path = format!("/v1/sites/{}/purges", ONE.0);
        let answer = operator.post(&path, wish).await?;
        ensure!(answer.status.is_success(), "{}", answer.text());
        let version = answer.json()["version"].as_u64().context("a purge has a number")?;
        let waited = operator.get(&format!("{path}/{version}?wait_ms=30000")).await?;
        let nodes = waited.json()["nodes"].as_array().cloned().unwrap_or_default();
        let obeyed = nodes.iter().filter(|node| node["obeyed"] == true);
        ensure!(obeyed.count() == self.cluster.nodes.len(), "{}", waited.text());
        Ok(())
    }

    async fn a_purge_takes_from_all_and_costs_one_fetch(&self, round: u32) -> Result<()> {
        let path = format!("/tagged/a-{round}");
        let path = path.as_str();
        let origin = &self.origins[0];
        let mut fetches = 1;
        for wish in [
            json!({ "tags": ["banner"] }),
            json!({ "tags": ["banner"], "soft": true }),
            json!({ "urls": [path] }),
            json!({ "prefixes": ["/tagged"] }),
            json!({ "everything": true }),
        ] {
            for shop in self.shops(ONE)? {
                ensure!(shop.get(path).await?.text() == format!("one {path} {fetches}"));
            }
            self.purge(wish.clone()).await?;
            fetches += 1;
            for shop in self.shops(ONE)? {
                let answer = shop.get(path).await?;
                let text = answer.text();
                ensure!(text == format!("one {path} {fetches}"), "{wish}: {text} {:?}", lines(&answer));
            }
            ensure!(origin.times(path) == fetches, "{wish}: {} fetches", origin.times(path));
        }
        Ok(())
    }

    /// Shoppers everywhere all the time, and a page that changes. Whoever asks after a purge was acknowledged gets what was
    /// published before it, or newer: no node brings back what another one still had.
    async fn a_purge_is_not_undone_under_load(&self) -> Result<()> {
        let origin = &self.origins[0];
        let ends = Arc::new(AtomicBool::new(false));
        let mut shoppers = JoinSet::new();
        for shop in self.shops(ONE)? {
            for _ in 0..4 {
                let (shop, ends) = (shop.clone(), Arc::clone(&ends));
                shoppers.spawn(async move {
                    let mut last = 0;
                    while !ends.load(Ordering::SeqCst) {
                        let answer = shop.get("/live/a").await?;
                        ensure!(answer.status == 200, "{}", answer.text());
                        last = last.max(version(&answer)?);
                    }
                    anyhow::Ok(last)
                });
            }
        }
        for round in 1..=ROUNDS {
            origin.publish(round);
            self.purge(json!({ "tags": ["live"] })).await?;
            for _ in 0..3 {
                for shop in self.shops(ONE)? {
                    let answer = shop.get("/live/a").await?;
                    let found = version(&answer)?;
                    ensure!(
                        found >= round,
                        "version {found} after {round} was published: {:?}",
                        lines(&answer)
                    );
                }
            }
        }
        ends.store(true, Ordering::SeqCst);
        while let Some(last) = shoppers.join_next().await {
            ensure!(last?? <= ROUNDS);
        }
        Ok(())
    }

    async fn a_node_dies_in_the_middle_of_a_body(&mut self) -> Result<()> {
        self.until_all_are_there().await?;
        let path = self.page_of(2, "/halves/dies").await?;
        let (mut stream, mut got) = Box::pin(self.half_of(&path)).await?;
        self.cluster.nodes[2].kill()?;
        self.other_half_of(&path, &mut stream, &mut got).await?;
        ensure!(self.metric(0, "souk_proxy_peer_bodies_total{outcome=\"mended\"}").await? == 1);
        Ok(())
    }

    /// The first half of a page whose home is another node than the one that is asked.
    async fn half_of(&self, path: &str) -> Result<(TcpStream, Vec<u8>)> {
        self.origins[0].close();
        let mut stream = TcpStream::connect(self.cluster.nodes[0].http()?).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", ONE.1);
        stream.write_all(request.as_bytes()).await?;
        let mut got = Vec::new();
        while body_bytes(&got) < HALF_BYTES {
            let mut chunk = [0; 16 * 1024];
            let length = stream.read(&mut chunk).await?;
            ensure!(length > 0, "the answer ended early: {}", String::from_utf8_lossy(&got));
            got.extend_from_slice(&chunk[..length]);
        }
        ensure!(self.origins[0].times(path) == 1, "the home asked, and nobody else");
        Ok((stream, got))
    }

    /// The rest of it, which the upstream is asked for once more.
    async fn other_half_of(&self, path: &str, stream: &mut TcpStream, got: &mut Vec<u8>) -> Result<()> {
        until("the upstream is asked for the rest", async || {
            Ok(if self.origins[0].times(path) == 2 { Ok(()) } else { Err("it is not".to_owned()) })
        })
        .await?;
        self.origins[0].open();
        stream.read_to_end(got).await?;
        let at = got.len() - body_bytes(got);
        ensure!(got[at..] == *origin::halves(path), "the whole page, once: {} bytes", got.len() - at);
        Ok(())
    }

    /// A key whose home is gone has its next node for a home.
    async fn the_last_two_share_what_is_left(&self, round: u32) -> Result<()> {
        let mut moved = 0;
        for number in 0..20 {
            let path = format!("/page/moved-{round}-{number}");
            moved += usize::from(self.homes(0, &path).await?[0] == 2);
            for node in 0..2 {
                let text = self.shop(node, ONE)?.get(&path).await?.text();
                ensure!(text == format!("one {path} 1"), "{text}");
            }
        }
        ensure!(moved > 0, "the dead node was nobody's home");
        Ok(())
    }

    async fn a_node_dies_under_load(&mut self) -> Result<()> {
        self.cluster.nodes[2].start().await?;
        self.until_all_are_there().await?;
        let mut shoppers = JoinSet::new();
        for node in 0..2 {
            for shopper in 0..8 {
                let shop = self.shop(node, ONE)?;
                shoppers.spawn(async move {
                    for number in 0..150 {
                        // Most of it cold, so that homes are asked all the time.
                        let path = format!("/page/load-{}", number * 4 + shopper % 4);
                        let answer = shop.get(&path).await?;
                        ensure!(answer.status == 200, "{path}: {} {}", answer.status, answer.text());
                        ensure!(answer.text().starts_with(&format!("one {path} ")), "{}", answer.text());
                    }
                    Ok(())
                });
            }
        }
        // In the middle of it.
        until("half of it is done", async || {
            Ok(if self.origins[0].all() > 300 { Ok(()) } else { Err(self.origins[0].all().to_string()) })
        })
        .await?;
        self.cluster.nodes[2].kill()?;
        while let Some(done) = shoppers.join_next().await {
            done??;
        }
        Ok(())
    }

    /// It has connections, and says nothing on them.
    async fn a_node_hangs(&mut self) -> Result<()> {
        self.cluster.nodes[2].start().await?;
        self.until_all_are_there().await?;
        let paths = [self.page_of(2, "/page/hang-a").await?, self.page_of(2, "/page/hang-b").await?];
        let half = self.page_of(2, "/halves/hangs").await?;
        let (mut stream, mut got) = Box::pin(self.half_of(&half)).await?;
        self.cluster.nodes[2].freeze()?;
        let shop = self.shop(0, ONE)?;
        for path in &paths {
            let answer = shop.get(path).await?;
            ensure!(answer.text() == format!("one {path} 1"), "{}", answer.text());
        }
        let lost = self.metric(0, "souk_proxy_peer_fills_total{outcome=\"lost\"}").await?;
        let away = self.metric(0, "souk_proxy_peer_fills_total{outcome=\"away\"}").await?;
        ensure!(lost + away >= 2, "the first waited until it was known, or knew: {lost}, {away}");
        self.other_half_of(&half, &mut stream, &mut got).await
    }

    async fn strangers_are_refused_by_the_handshake(&self) -> Result<()> {
        let door = self.doors[0];
        let authority = self.file("ca.pem")?;
        for (who, is_let_in) in [
            (Some("edge-2"), true),
            (Some("edge-3"), false),
            (Some("edge-1"), false),
            (Some("region"), false),
            (None, false),
        ] {
            let identity = match who {
                Some(name) => Some((self.file(&format!("{name}.pem"))?, self.file(&format!("{name}.key"))?)),
                None => None,
            };
            let asked = ask_at_door(door, &authority, identity).await;
            ensure!(asked.is_ok() == is_let_in, "{who:?}: {asked:?}");
        }
        // In clear text there is nobody either.
        let mut clear = TcpStream::connect(door).await?;
        clear
            .write_all(b"GET /page/a HTTP/1.1\r\nhost: one.example\r\nx-souk-asks: page;one;-.0\r\n\r\n")
            .await?;
        let mut got = Vec::new();
        // Reset or ended: whichever comes first.
        drop(clear.read_to_end(&mut got).await);
        ensure!(!got.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&got));
        Ok(())
    }

    /// A file of the authority's.
    fn file(&self, name: &str) -> Result<PathBuf> {
        let config = self.cluster.nodes[0].config();
        let folder = config.ancestors().nth(2).context("a node's folder is in the cluster's")?;
        Ok(folder.join(name))
    }
}

/// Says hello at a door for peers, and asks whether anybody is there, by HTTP/2.
async fn ask_at_door(
    door: SocketAddr,
    authority: &std::path::Path,
    identity: Option<(PathBuf, PathBuf)>,
) -> Result<()> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority)?)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer));
    let mut config = match identity {
        Some((cert, key)) => builder.with_client_auth_cert(
            vec![CertificateDer::from_pem_file(cert)?],
            PrivateKeyDer::from_pem_file(key)?,
        )?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = TcpStream::connect(door).await?;
    let name = ServerName::try_from("peer")?;
    let tls = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
    // Whether the door believes the certificate shows with its first word.
    let executor = hyper_util::rt::TokioExecutor::new();
    let io = hyper_util::rt::TokioIo::new(tls);
    let (mut send, connection) = hyper::client::conn::http2::handshake(executor, io).await?;
    let connection = tokio::spawn(connection);
    let request = http::Request::get("https://peer/").header("x-souk-asks", "alive");
    let request = request.body(http_body_util::Empty::<bytes::Bytes>::new())?;
    let answered = send.send_request(request).await;
    connection.abort();
    ensure!(answered?.status() == 204);
    Ok(())
}

/// The client's side is not what is tested.
#[derive(Debug)]
struct AnyServer;

impl rustls::client::danger::ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Addresses that nobody listens on, of this process's own.
fn free_addresses(count: usize) -> Result<Vec<SocketAddr>> {
    let taken = (0..count).map(|_| TcpListener::bind((own_address(), 0))).collect::<Result<Vec<_>, _>>()?;
    Ok(taken.iter().map(TcpListener::local_addr).collect::<Result<_, _>>()?)
}

/// What the caches on the way say, the first of them first.
fn lines(answer: &Answer) -> Vec<&str> {
    answer.headers.get_all("cache-status").iter().filter_map(|line| line.to_str().ok()).collect()
}

/// Bytes behind the head of what was read.
fn body_bytes(got: &[u8]) -> usize {
    got.windows(4).position(|end| end == b"\r\n\r\n").map(|at| got.len() - at - 4).unwrap_or_default()
}

/// Which version of a page that changes this is.
fn version(answer: &Answer) -> Result<u32> {
    let text = answer.text();
    let version = text.strip_prefix("version ").and_then(|number| number.parse().ok());
    version.with_context(|| text.clone())
}
