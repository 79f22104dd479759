//! Events on their way to three servers of NATS, of which one after the other is killed, and the region too: whoever listens
//! gets each event that is in the region's outbox, the repetitions told by their ids, those of an order as they happened. Over TLS
//! with certificates on both sides, and a password.

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::{self, stream::Stream};
use futures_util::StreamExt as _;
use rcgen::{BasicConstraints, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use souk_tests::cluster::{Cluster, Plan, Spec, own_address};
use souk_tests::http::Client;
use souk_tests::identity::{REGION, params};
use souk_tests::skip;
use tempfile::TempDir;
use tokio::time::sleep;

use crate::run::{Row, SERVES_WITHIN, count, seed};
use crate::seed::mix;
use crate::shop::SITE;
use crate::shoppers::Habits;

const SERVERS: usize = 3;
const STREAM: &str = "souk-events";
const LISTENER: &str = "warehouse";
const USER: &str = "souk";
const PASSWORD: &str = "a password of the test's";
/// Certificates are valid since an hour ago.
const VALID_SINCE: Duration = Duration::from_secs(3_600);
const POLL: Duration = Duration::from_millis(50);
/// A question to a server that was killed is asked again after so long: it is a part of what is measured.
const ASKS_FOR: Duration = Duration::from_secs(1);
/// Events that arrive while a server is away before it comes back, at least.
const EVENTS_MIN: u64 = 12;
const PAGE: usize = 1_000;
/// A member that comes back, elections, and what it has missed.
const WHOLE_WITHIN: Duration = Duration::from_secs(90);

/// Debian's package, or another one in the path.
fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let mut folders: Vec<_> = std::env::split_paths(&path).collect();
    folders.push("/usr/sbin".into());
    folders.into_iter().map(|folder| folder.join("nats-server")).find(|file| file.exists())
}

/// A cluster of them; dropping it ends all.
struct Nats {
    program: PathBuf,
    folder: TempDir,
    ip: Ipv4Addr,
    ports: Vec<u16>,
    running: Vec<Option<Child>>,
}

impl Nats {
    fn start(program: PathBuf) -> Result<Self> {
        let (folder, ip) = (tempfile::Builder::new().prefix("souk-nats-").tempdir()?, own_address());
        // Members have to know each other's ports before they start. Nobody else listens on this address.
        let held = (0..2 * SERVERS).map(|_| TcpListener::bind((ip, 0)));
        let held = held.collect::<Result<Vec<_>, _>>()?;
        let ports = held.iter().map(|listener| Ok(listener.local_addr()?.port()));
        let ports = ports.collect::<Result<Vec<_>>>()?;
        drop(held);
        certify(folder.path(), ip)?;
        std::fs::write(folder.path().join("password"), format!("{PASSWORD}\n"))?;
        let mut this = Self { program, folder, ip, ports, running: (0..SERVERS).map(|_| None).collect() };
        for member in 0..SERVERS {
            this.start_member(member)?;
        }
        Ok(this)
    }

    fn start_member(&mut self, member: usize) -> Result<()> {
        let routes = (0..SERVERS).map(|of| format!("nats://{}:{}", self.ip, self.ports[SERVERS + of]));
        let config = json!({
            "server_name": format!("n{member}"),
            "listen": format!("{}:{}", self.ip, self.ports[member]),
            "authorization": { "user": USER, "password": PASSWORD },
            // Both sides show who they are.
            "tls": {
                "cert_file": self.file("server.pem"),
                "key_file": self.file("server.key"),
                "ca_file": self.file("ca.pem"),
                "verify": true,
            },
            "jetstream": { "store_dir": self.path(member, "data"), "max_mem": 64 << 20, "max_file": 1 << 30 },
            "cluster": {
                "name": "souk",
                "listen": format!("{}:{}", self.ip, self.ports[SERVERS + member]),
                "routes": routes.collect::<Vec<_>>(),
            },
        });
        let file = self.path(member, "conf");
        std::fs::write(&file, config.to_string())?;
        let log = std::fs::File::options().create(true).append(true).open(self.path(member, "log"))?;
        let child = Command::new(&self.program)
            .arg("-c")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", self.program.display()))?;
        self.running[member] = Some(child);
        Ok(())
    }

    fn path(&self, member: usize, what: &str) -> PathBuf {
        self.file(&format!("n{member}.{what}"))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What a region is told of it.
    fn settings(&self) -> Value {
        json!({
            "broker": "nats",
            "servers": self.servers(),
            "user": USER,
            "password_file": self.file("password"),
            "ca": self.file("ca.pem"),
            "cert": self.file("client.pem"),
            "key": self.file("client.key"),
            "stream": STREAM,
        })
    }

    fn kill(&mut self, member: usize) -> Result<()> {
        let mut child = self.running[member].take().context("it runs")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    fn servers(&self) -> Vec<String> {
        (0..SERVERS).map(|member| format!("{}:{}", self.ip, self.ports[member])).collect()
    }

    /// What the servers said last, for the reader of a failure.
    fn last_words(&self) -> String {
        let words = |member: usize| {
            let text = std::fs::read_to_string(self.path(member, "log")).unwrap_or_default();
            let lines: Vec<_> = text.lines().rev().take(12).collect();
            format!("n{member}:\n{}", lines.into_iter().rev().collect::<Vec<_>>().join("\n"))
        };
        (0..SERVERS).map(words).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        for child in self.running.iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

async fn listener(nats: &Nats) -> Result<jetstream::Context> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(nats.file("ca.pem"))?)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_file(nats.file("client.pem"))?],
            PrivateKeyDer::from_pem_file(nats.file("client.key"))?,
        )?;
    let options = async_nats::ConnectOptions::with_user_and_password(USER.to_owned(), PASSWORD.to_owned())
        .require_tls(true)
        .tls_client_config(tls)
        .retry_on_initial_connect();
    let mut context = jetstream::new(options.connect(nats.servers()).await?);
    context.set_timeout(ASKS_FOR);
    Ok(context)
}

/// An authority, a certificate of all servers, and one of whoever connects.
fn certify(folder: &Path, ip: Ipv4Addr) -> Result<()> {
    let authority_key = KeyPair::generate()?;
    let mut authority = params(&[], VALID_SINCE)?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    std::fs::write(folder.join("ca.pem"), authority.self_signed(&authority_key)?.pem())?;
    let issuer = Issuer::new(authority, authority_key);
    for (name, names) in [("server", &[ip.to_string().as_str()] as &[&str]), ("client", &[])] {
        let mut own = params(names, VALID_SINCE)?;
        own.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        std::fs::write(folder.join(format!("{name}.pem")), own.signed_by(&key, &issuer)?.pem())?;
        std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem())?;
    }
    Ok(())
}

/// Waits until the stream has a leader and every copy is whole: another member may go then.
async fn is_whole(context: &jetstream::Context, nats: &Nats) -> Result<Stream> {
    let began = Instant::now();
    loop {
        let found = context.get_stream(STREAM).await;
        let stands = match &found {
            Ok(stream) => {
                let cluster = stream.cached_info().cluster.as_ref();
                let whole = cluster.is_some_and(|cluster| {
                    let copies = cluster.replicas.iter().filter(|copy| copy.current && !copy.offline);
                    cluster.leader.is_some() && copies.count() == SERVERS - 1
                });
                if whole { None } else { Some(format!("{cluster:?}")) }
            }
            Err(error) => Some(error.to_string()),
        };
        let Some(stands) = stands else { return Ok(found?) };
        ensure!(
            began.elapsed() < WHOLE_WITHIN,
            "the stream is not whole again: {stands}\n{}",
            nats.last_words()
        );
        sleep(POLL).await;
    }
}

async fn metric(admin: &Client, name: &str) -> Result<f64> {
    let page = admin.get("/metrics").await?.text();
    let values = page.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let (key, value) = line.rsplit_once(' ')?;
        (key.split('{').next() == Some(name)).then(|| value.parse::<f64>().ok())?
    });
    Ok(values.sum())
}

/// Waits until so many more messages are in the stream.
async fn arrive(context: &jetstream::Context, more: u64, nats: &Nats) -> Result<Duration> {
    let messages = async || Some(context.get_stream(STREAM).await.ok()?.cached_info().state.messages);
    let (began, mut before) = (Instant::now(), None);
    loop {
        let now = messages().await;
        before = before.or(now);
        if let (Some(before), Some(now)) = (before, now)
            && now >= before + more
        {
            return Ok(began.elapsed());
        }
        let words = nats.last_words();
        ensure!(began.elapsed() < SERVES_WITHIN, "{now:?} messages, {before:?} before\n{words}");
        sleep(POLL).await;
    }
}

/// Everything in the region's outbox.
async fn outbox(operator: &Client) -> Result<Vec<Value>> {
    let (mut all, mut after) = (Vec::new(), 0);
    loop {
        let page = operator.get(&format!("/v1/sites/{SITE}/events?after={after}&limit={PAGE}")).await?.json();
        let page = page.as_array().context("a list of events")?.clone();
        let Some(last) = page.last() else { return Ok(all) };
        after = last["seq"].as_u64().context("a number")?;
        all.extend(page);
    }
}

/// What a merchant does to a shop's orders until he is told to go: money, goods, and second thoughts.
async fn merchant(operator: Client, mut done: tokio::sync::watch::Receiver<bool>) -> Result<u64> {
    let (mut after, mut number, mut wishes) = (0, 0, 0);
    while !*done.borrow_and_update() {
        // The region may be away.
        let page = format!("/v1/sites/{SITE}/orders?limit={PAGE}&after={after}");
        if let Ok(answer) = operator.get(&page).await
            && answer.status == 200
        {
            let orders = answer.json();
            let last = orders.as_array().and_then(|orders| orders.last()?["position"].as_u64());
            after = last.unwrap_or(after);
            let ids = orders.as_array().into_iter().flatten().filter_map(|order| order["order"].as_str());
            for id in ids {
                number += 1;
                let words: &[&str] = match mix(seed(), number, 11) % 3 {
                    0 => &["capture", "fulfil"],
                    1 => &["capture", "fulfil", "refund"],
                    _ => &["cancel"],
                };
                for word in words {
                    let path = format!("/v1/sites/{SITE}/orders/{id}/{word}");
                    match operator.send(http::Method::POST, &path, None).await {
                        Ok(answer) if answer.status.is_success() => wishes += 1,
                        // What is refunded before it has gone would go back to the shelf.
                        _ => break,
                    }
                }
            }
        }
        let _ended = tokio::time::timeout(Duration::from_millis(300), done.changed()).await;
    }
    Ok(wishes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_node_loss() -> Result<()> {
    let Some(program) = program() else {
        skip("nats_node_loss", "no nats-server: install nats-server");
        return Ok(());
    };
    let mut nats = Nats::start(program)?;
    let region = Spec { config: vec![("events", nats.settings())], ..Spec::default() };
    let habits =
        Habits { shoppers: 16, additions_max: 4, ordered_percent: 90, seed: seed(), ..Habits::default() };
    let mut row = Row::open("nats_node_loss", Plan { region, ..Plan::of(2) }, habits).await?;
    let context = listener(&nats).await?;
    let operator = row.cluster.operator()?;
    let (leave, left) = tokio::sync::watch::channel(false);
    let selling = tokio::spawn(merchant(operator.clone(), left));

    is_whole(&context, &nats).await?;
    let kills = count(3, 30);
    let (mut regions, mut slowest) = (0, Duration::ZERO);
    for number in 0..kills {
        arrive(&context, EVENTS_MIN, &nats).await?;
        sleep(Duration::from_micros(mix(seed(), number, 4) % 100_000)).await;
        let member = usize::try_from(number)? % SERVERS;
        nats.kill(member)?;
        if number % 2 == 1 {
            row.cluster.region.kill()?;
            sleep(Duration::from_millis(mix(seed(), number, 5) % 200)).await;
            row.cluster.region.start().await?;
            row.restart_nodes().await?;
            regions += 1;
        }
        slowest = slowest.max(arrive(&context, EVENTS_MIN, &nats).await?);
        nats.start_member(member)?;
        is_whole(&context, &nats).await?;
    }
    // And once all of them: events wait, and nobody else is kept waiting.
    for member in 0..SERVERS {
        nats.kill(member)?;
    }
    let before = row.crowd.orders();
    let began = Instant::now();
    while row.crowd.orders() < before + EVENTS_MIN {
        ensure!(began.elapsed() < SERVES_WITHIN, "without a broker nobody may order");
        sleep(POLL).await;
    }
    let ready = operator.get("/readyz").await?;
    ensure!(ready.status == 200, "a broker that is away is no reason to take no orders: {}", ready.text());
    for member in 0..SERVERS {
        nats.start_member(member)?;
    }
    is_whole(&context, &nats).await?;
    leave.send_replace(true);
    let wishes = selling.await??;

    let what = format!(
        "{kills} SIGKILLs of one of three nats-servers, {regions} of the region, and once all three servers; {wishes} wishes of a \
         merchant; the longest wait for {EVENTS_MIN} events with a server away {} ms",
        slowest.as_millis()
    );
    row.close_with(&what, async |cluster: &Cluster| compare(cluster, &context, &nats).await).await?;
    Ok(())
}

/// Reads the stream as a listener does, and compares it with the outbox.
async fn compare(cluster: &Cluster, context: &jetstream::Context, nats: &Nats) -> Result<String> {
    let operator = cluster.operator()?;
    let outbox = outbox(&operator).await?;
    ensure!(!outbox.is_empty(), "nothing has happened");
    let stream = is_whole(context, nats).await?;
    let config = pull::Config {
        durable_name: Some(LISTENER.to_owned()),
        ack_policy: AckPolicy::Explicit,
        ..pull::Config::default()
    };
    let consumer: PullConsumer = stream.create_consumer(config).await.map_err(anyhow::Error::from)?;
    // By id, with the first that came; and each order's numbers as they came first.
    let mut events: HashMap<String, Value> = HashMap::new();
    let mut of_order: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    let (mut messages, began) = (0_u64, Instant::now());
    loop {
        let mut batch = consumer.fetch().max_messages(PAGE).messages().await?;
        while let Some(message) = batch.next().await {
            let message = message.map_err(|e| anyhow::anyhow!("{e}"))?;
            let event: Value = serde_json::from_slice(&message.payload)?;
            let id = event["id"].as_str().context("an id")?.to_owned();
            let header = message.headers.as_ref().and_then(|headers| headers.get("Nats-Msg-Id"));
            ensure!(header.is_some_and(|header| header.as_str() == id), "another id in the header: {event}");
            let kind =
                event["type"].as_str().and_then(|kind| kind.strip_prefix("souk.")).context("a type")?;
            let subject = format!("souk.{REGION}.{SITE}.{kind}");
            ensure!(message.subject.as_str() == subject, "{} is not {subject}", message.subject);
            messages += 1;
            message.ack().await.map_err(|e| anyhow::anyhow!("{e}"))?;
            let order = event["subject"].as_str().context("an order")?.to_owned();
            let number = event["sequence"].as_str().context("a sequence")?.parse()?;
            if events.insert(id, event).is_none() {
                of_order.entry(order).or_default().push(number);
            }
        }
        if events.len() >= outbox.len() {
            break;
        }
        let words = nats.last_words();
        ensure!(
            began.elapsed() < SERVES_WITHIN,
            "{} of {} events have come, {} wait\n{words}",
            events.len(),
            outbox.len(),
            metric(&operator, "souk_region_events_waiting").await?
        );
        sleep(POLL).await;
    }
    let mut happened: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for event in &outbox {
        let id = event["id"].as_str().context("an id")?;
        let told = events.get(id).with_context(|| format!("{event} was told to nobody"))?;
        ensure!(
            told["type"] == format!("souk.{}", event["kind"].as_str().unwrap_or_default()),
            "{event}: {told}"
        );
        ensure!(told["data"]["total"] == event["detail"]["total"], "another amount: {event}, {told}");
        ensure!(told["data"].get("cart").is_none(), "a cart's number is the cart: {told}");
        let order = event["order"].as_str().context("an order")?.to_owned();
        happened.entry(order).or_default().push(event["seq"].as_u64().context("a number")?);
    }
    ensure!(events.len() == outbox.len(), "{} events, {} happened", events.len(), outbox.len());
    ensure!(of_order == happened, "events of an order came in another order than they happened");
    let repeated = messages - events.len() as u64;
    let many = happened.values().filter(|events| events.len() > 1).count();
    let waiting = metric(&operator, "souk_region_events_waiting").await?;
    Ok(format!(
        "{} events of {} orders ({many} with several) in the outbox, {messages} messages at the listener: 0 missing, {repeated} \
         repeated and told by their ids, each order's in order, {waiting} waiting; ",
        outbox.len(),
        happened.len(),
    ))
}
