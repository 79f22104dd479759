//! Events on their way to a quorum queue on three servers of RabbitMQ, of which the one that leads it is killed again and
//! again, and the region too: whoever reads the queue gets each event that is in the region's outbox, the repetitions told by
//! their ids, those of an order as they happened.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use amqprs::channel::{
    BasicAckArguments, BasicConsumeArguments, BasicQosArguments, Channel, ConsumerMessage,
};
use amqprs::connection::{Connection, OpenConnectionArguments};
use amqprs::tls::TlsAdaptor;
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use souk_tests::cluster::{Cluster, Plan, Spec, own_address};
use souk_tests::identity::REGION;
use souk_tests::skip;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::block_in_place;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

use crate::broker::{Heard, PASSWORD, USER, certify, client_tls, outbox};
use crate::nats::merchant;
use crate::rabbitmq_servers::{self, Servers};
use crate::run::{Row, SERVES_WITHIN, count, metric, seed};
use crate::seed::mix;
use crate::shop::SITE;
use crate::shoppers::Habits;

const SERVERS: usize = 3;
const QUEUE: &str = "souk-events";
/// Events that arrive while a server is away before it comes back, at least.
const EVENTS_MIN: u64 = 12;
/// Messages that a reader holds without having said that it is done with them.
const HELD_MAX: u16 = 100;
/// What comes, comes at once; a server that was killed has nothing.
const ASKS_FOR: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(50);
/// A member that comes back, elections, and what it has missed.
const WHOLE_WITHIN: Duration = Duration::from_secs(120);

/// Somebody who takes a shop's events out of the queue, and deals with each once.
struct Reader {
    opens: Vec<OpenConnectionArguments>,
    next: usize,
    reading: Option<Reading>,
    heard: Heard,
    /// What the routing keys of his shop's events begin with.
    keys: String,
}

struct Reading {
    _connection: Connection,
    channel: Channel,
    messages: UnboundedReceiver<ConsumerMessage>,
}

impl Reader {
    fn new(servers: &Servers) -> Result<Self> {
        let tls = TlsConnector::from(Arc::new(client_tls(&servers.file(""))?));
        let open = |port: &u16| {
            let ip = servers.ip.to_string();
            let adaptor = TlsAdaptor::new(tls.clone(), ip.clone());
            OpenConnectionArguments::new(&ip, *port, USER, PASSWORD).tls_adaptor(adaptor).finish()
        };
        let opens = servers.ports.iter().map(open).collect();
        let keys = format!("souk.{REGION}.{SITE}.");
        Ok(Self { opens, next: 0, reading: None, heard: Heard::default(), keys })
    }

    async fn connect(open: &OpenConnectionArguments) -> Result<Reading> {
        let connection = Connection::open(open).await?;
        let channel = connection.open_channel(None).await?;
        channel.basic_qos(BasicQosArguments::new(0, HELD_MAX, false)).await?;
        let arguments = BasicConsumeArguments::new(QUEUE, "").finish();
        let (_, messages) = channel.basic_consume_rx(arguments).await?;
        Ok(Reading { _connection: connection, channel, messages })
    }

    /// Takes what there is, or comes within [`ASKS_FOR`].
    async fn read(&mut self) -> Result<()> {
        let Some(reading) = &mut self.reading else {
            let open = &self.opens[self.next % self.opens.len()];
            self.next += 1;
            match timeout(SERVES_WITHIN, Self::connect(open)).await {
                Ok(Ok(reading)) => self.reading = Some(reading),
                // The server is away, or there is no queue yet.
                Ok(Err(_)) | Err(_) => sleep(POLL).await,
            }
            return Ok(());
        };
        let Ok(message) = timeout(ASKS_FOR, reading.messages.recv()).await else { return Ok(()) };
        let Some(message) = message else {
            self.reading = None;
            return Ok(());
        };
        let (Some(deliver), Some(properties), Some(body)) =
            (message.deliver, message.basic_properties, message.content)
        else {
            anyhow::bail!("half a message");
        };
        ensure!(properties.delivery_mode() == Some(2), "a message that a server would lose with its power");
        let id = properties.message_id().map(String::as_str);
        self.heard.hear(&body, id, deliver.routing_key(), &self.keys)?;
        // What is lost here brings the message again, which is told by its id.
        let done = BasicAckArguments::new(deliver.delivery_tag(), false);
        if reading.channel.basic_ack(done).await.is_err() {
            self.reading = None;
        }
        Ok(())
    }

    /// Reads until so many more have come.
    async fn more(&mut self, more: u64, servers: &Servers) -> Result<Duration> {
        let (began, before) = (Instant::now(), self.heard.messages);
        while self.heard.messages < before + more {
            let came = self.heard.messages - before;
            ensure!(began.elapsed() < SERVES_WITHIN, "{came} of {more} events\n{}", servers.last_words());
            self.read().await?;
        }
        Ok(began.elapsed())
    }
}

/// What a server that runs says about the queue.
fn queue(servers: &Servers, asked: usize) -> Option<Value> {
    let said = servers.ctl(asked, "list_queues name type leader online --formatter=json");
    let queues: Value = serde_json::from_str(&said).ok()?;
    queues.as_array()?.iter().find(|queue| queue["name"] == QUEUE).cloned()
}

/// Waits until the queue has a leader and every member is there: another one may go then. Answers who leads.
fn is_whole(servers: &Servers) -> Result<usize> {
    let began = Instant::now();
    loop {
        let queue = queue(servers, 0);
        if let Some(queue) = &queue
            && queue["online"].as_array().is_some_and(|online| online.len() == SERVERS)
            && let Some(leader) = queue["leader"].as_str().filter(|leader| !leader.is_empty())
        {
            ensure!(queue["type"] == "quorum", "{queue}");
            let number =
                leader.strip_prefix("souk").and_then(|leader| leader.split('@').next()?.parse().ok());
            return number.with_context(|| format!("{leader} is none of the servers"));
        }
        let in_time = began.elapsed() < WHOLE_WITHIN;
        ensure!(in_time, "the queue is not whole: {queue:?}\n{}", servers.last_words());
        std::thread::sleep(POLL);
    }
}

fn settings(folder: &Path, address: &str) -> String {
    let ip = own_address();
    if !folder.join("ca.pem").exists() {
        certify(folder, ip).expect("certificates are made");
        std::fs::write(folder.join("password"), format!("{PASSWORD}\n")).expect("the folder is ours");
    }
    let folder = folder.display();
    format!(
        "listeners.tcp = none\nlisteners.ssl.1 = {address}\nssl_options.cacertfile = {folder}/ca.pem\n\
         ssl_options.certfile = {folder}/server.pem\nssl_options.keyfile = {folder}/server.key\n\
         ssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = true\n\
         default_user = {USER}\ndefault_pass = {PASSWORD}"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_node_loss() -> Result<()> {
    if rabbitmq_servers::programs().is_none() {
        skip("rabbitmq_node_loss", "no rabbitmq-server: install rabbitmq-server");
        return Ok(());
    }
    let started = block_in_place(|| Servers::start(SERVERS, own_address(), settings));
    let servers = started.context("it was there a moment ago")?;
    let events = json!({
        "broker": "rabbitmq",
        "servers": (0..SERVERS).map(|member| servers.address(member)).collect::<Vec<_>>(),
        "user": USER,
        "password_file": servers.file("password"),
        "ca": servers.file("ca.pem"),
        "cert": servers.file("client.pem"),
        "key": servers.file("client.key"),
        "queue": QUEUE,
    });
    let region = Spec { config: vec![("events", events)], ..Spec::default() };
    let habits =
        Habits { shoppers: 16, additions_max: 4, ordered_percent: 90, seed: seed(), ..Habits::default() };
    let mut row = Row::open("rabbitmq_node_loss", Plan { region, ..Plan::of(2) }, habits).await?;
    let mut reader = Reader::new(&servers)?;
    let operator = row.cluster.operator()?;
    let (leave, left) = tokio::sync::watch::channel(false);
    let selling = tokio::spawn(merchant(operator.clone(), left));

    let kills = count(3, 30);
    let (mut regions, mut slowest) = (0, Duration::ZERO);
    for number in 0..kills {
        reader.more(EVENTS_MIN, &servers).await?;
        let leader = block_in_place(|| is_whole(&servers))?;
        sleep(Duration::from_micros(mix(seed(), number, 4) % 100_000)).await;
        block_in_place(|| servers.kill(leader));
        if number % 2 == 1 {
            row.cluster.region.kill()?;
            sleep(Duration::from_millis(mix(seed(), number, 5) % 200)).await;
            row.cluster.region.start().await?;
            row.restart_nodes().await?;
            regions += 1;
        }
        slowest = slowest.max(reader.more(EVENTS_MIN, &servers).await?);
        block_in_place(|| {
            servers.start_member(leader);
            servers.is_there(leader);
            is_whole(&servers)
        })?;
    }
    // And once all of them: events wait, and nobody else is kept waiting.
    block_in_place(|| (0..SERVERS).for_each(|member| servers.kill(member)));
    let before = row.crowd.orders();
    let began = Instant::now();
    while row.crowd.orders() < before + EVENTS_MIN {
        ensure!(began.elapsed() < SERVES_WITHIN, "without a broker nobody may order");
        sleep(POLL).await;
    }
    let ready = operator.get("/readyz").await?;
    ensure!(ready.status == 200, "a broker that is away is no reason to take no orders: {}", ready.text());
    block_in_place(|| {
        (0..SERVERS).for_each(|member| servers.start_member(member));
        (0..SERVERS).for_each(|member| servers.is_there(member));
        is_whole(&servers)
    })?;
    leave.send_replace(true);
    let wishes = selling.await??;

    let what = format!(
        "{kills} SIGKILLs of the server that led the queue, of three, {regions} of the region, and once all three servers; {wishes} \
         wishes of a merchant; the longest wait for {EVENTS_MIN} events with a server away {} ms",
        slowest.as_millis()
    );
    row.close_with(&what, async |cluster: &Cluster| compare(cluster, &mut reader, &servers).await).await?;
    Ok(())
}

/// Reads the rest of the queue, and compares what came with the outbox.
async fn compare(cluster: &Cluster, reader: &mut Reader, servers: &Servers) -> Result<String> {
    let operator = cluster.operator()?;
    let outbox = outbox(&operator, SITE).await?;
    ensure!(!outbox.is_empty(), "nothing has happened");
    let began = Instant::now();
    while reader.heard.events.len() < outbox.len() {
        let (heard, words) = (reader.heard.events.len(), servers.last_words());
        ensure!(began.elapsed() < SERVES_WITHIN, "{heard} of {} events have come\n{words}", outbox.len());
        reader.read().await?;
    }
    let (orders, several) = reader.heard.is_all_of(&outbox)?;
    let waiting = metric(&operator, "souk_region_events_waiting").await?;
    Ok(format!(
        "{} events of {orders} orders ({several} with several) in the outbox, {} messages at the reader: 0 missing, {} \
         repeated and told by their ids, each order's in order, {waiting} waiting; ",
        outbox.len(),
        reader.heard.messages,
        reader.heard.repeated(),
    ))
}
