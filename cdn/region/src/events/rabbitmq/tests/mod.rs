//! What is decided without a server, and the publisher at a server: what it keeps, what it gives back, and who makes what.

mod server;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use amqprs::channel::{
    BasicConsumeArguments, Channel, ExchangeDeclareArguments, QueueDeleteArguments, QueueUnbindArguments,
};
use amqprs::connection::Connection;
use serde_json::Value;
use souk_commerce::id::{OrderId, SiteId};
use souk_commerce::site::SiteSettings;
use souk_config::{AckLevel, BrokerConfig, BrokerLogin};

use super::*;
use crate::events::{Publisher, Step, Trouble};
use crate::pair::held::Held;
use crate::saga::machine::Event;
use crate::store::Store;
use crate::store::audit::Actor;
use crate::store::site::By;
use crate::store::tests::home::Home;
use server::Servers;

const REGION: &str = "eu-west";
const PASSWORD: &str = "a password of the test's";

fn config(servers: Vec<String>, login: Option<BrokerLogin>, tls: BrokerTls) -> RabbitMqConfig {
    RabbitMqConfig {
        broker: BrokerConfig { servers, login, tls },
        virtual_host: "/".to_owned(),
        exchange: "souk".to_owned(),
        queue: "orders".to_owned(),
        declare: true,
        replicas: 1,
    }
}

async fn set_up(config: RabbitMqConfig) -> Result<RabbitMq, String> {
    RabbitMq::set_up(config, REGION, Arc::new(Telemetry::new())).await
}

#[tokio::test]
async fn what_is_needed_to_log_in_is_named_when_it_is_not_there() {
    let at = |name: &str| PathBuf::from(format!("/nowhere/{name}"));
    let here = || vec!["127.0.0.1:1".to_owned(), "[::1]:1".to_owned()];
    let login = BrokerLogin { user: "souk".to_owned(), password_file: at("password") };
    let error = set_up(config(here(), Some(login), BrokerTls::Off)).await.err().expect("there is no file");
    assert!(error.starts_with("the password in /nowhere/password: "), "{error}");
    let tls = BrokerTls::Verified { ca: None, identity: Some((at("own.pem"), at("own.key"))) };
    let error = set_up(config(here(), None, tls)).await.err().expect("there is no file");
    assert!(error.starts_with("the key in /nowhere/own.key: "), "{error}");
    // A broker that is not there is nothing that keeps a region from starting; each of its servers is asked.
    let away = set_up(config(here(), None, BrokerTls::Off)).await.expect("the settings are right");
    let Err(NotHeld::Away(why)) = away.prepare(false).await else { panic!("nobody is there") };
    assert!(why.contains("127.0.0.1:1: ") && why.contains("; ") && why.contains("[::1]:1: "), "{why}");
    assert_eq!(away.connections(), 0);
}

#[test]
fn a_queue_whose_servers_are_away_is_not_one_that_is_gone() {
    let end = |code, text: &str| End { code, text: text.to_owned() };
    assert!(is_absent(&end(Some(404), "NOT_FOUND - no queue 'orders' in vhost '/'")));
    assert!(!is_absent(&end(
        Some(404),
        "NOT_FOUND - queue 'orders' in vhost '/' process is stopped by supervisor"
    )));
    assert!(!is_absent(&end(
        Some(404),
        "NOT_FOUND - home node 'rabbit@a' of durable queue 'orders' in vhost '/' is down or inaccessible"
    )));
    assert!(!is_absent(&end(None, "no queue of answers")));
}

#[tokio::test]
async fn what_a_server_refuses_is_said_with_what_to_do() {
    let ours = set_up(config(vec!["127.0.0.1:1".to_owned()], None, BrokerTls::Off)).await.unwrap();
    let said = |code| match ours.not_done("to make the queue", &End { code, text: "it says so".to_owned() }) {
        NotHeld::Refused(text) => text,
        other => other.to_string(),
    };
    for (code, expected) in [
        (Some(406), "to make the queue: it says so; there is one that is otherwise: events.declare = false"),
        (Some(403), "to make the queue: it says so; let the user configure, write and read souk and orders"),
        (None, "the broker cannot be reached: to make the queue: it says so"),
        (Some(404), "the broker cannot be reached: to make the queue: it says so"),
    ] {
        assert!(said(code).starts_with(expected), "{}", said(code));
    }
    let gone = End { code: Some(404), text: "NOT_FOUND - no exchange 'souk' in vhost '/'".to_owned() };
    let said = ours.not_done("to look for the exchange", &gone).to_string();
    assert!(said.contains("make the exchange souk and the queue orders in /, or"), "{said}");
}

/// A region's store, and what is to be handed on from it.
struct World {
    _home: Home,
    store: Store,
    site: SiteId,
}

impl World {
    async fn new() -> Self {
        let home = Home::sqlite();
        let (store, site): (_, SiteId) = (home.open(), "shop".parse().unwrap());
        let actor = Actor { name: "test".to_owned(), peer: String::new() };
        let settings = SiteSettings::new(site.clone(), "GBP".parse().unwrap());
        store.put_site(settings, By::Operator, actor).await.unwrap();
        Self { _home: home, store, site }
    }

    async fn happen(&self, orders: &[u8]) {
        for order in orders {
            let site = self.site.clone();
            self.store.happen(site, OrderId([*order; 16]), Event::Captured, 1_000).await.unwrap();
        }
    }

    fn publisher(&self, broker: RabbitMq) -> Publisher {
        let pair = Arc::new(Held::new(AckLevel::One, false));
        let telemetry = Arc::new(Telemetry::new());
        Publisher::new(self.store.clone(), Box::new(broker), REGION.to_owned(), telemetry, pair)
    }

    /// Ids of everything that happened, as it did.
    async fn happened(&self) -> Vec<String> {
        self.store.events_after(0, 1_000).await.unwrap().into_iter().map(|(_, event)| event.id).collect()
    }

    async fn waiting(&self) -> u64 {
        self.store.waiting_events("rabbitmq/orders".to_owned()).await.unwrap().events
    }
}

/// Steps until nothing is left to be done. A server that has just started may need a moment.
async fn hand_on(publisher: &mut Publisher) {
    let mut last = None;
    for _ in 0..300 {
        match publisher.step(&|| 1_000).await {
            Ok(Step::Nothing) => return,
            Ok(_) => {}
            Err(trouble) => {
                last = Some(trouble);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    panic!("it does not come to an end: {last:?}");
}

/// Why a step fails.
async fn trouble(publisher: &mut Publisher) -> NotHeld {
    match publisher.step(&|| 1_000).await {
        Err(Trouble::Broker(error)) => error,
        other => panic!("{other:?}"),
    }
}

/// Somebody who reads and changes what is at the server.
struct Reader {
    channel: Channel,
    connection: Connection,
}

impl Reader {
    async fn connect(servers: &Servers) -> Self {
        let open = OpenConnectionArguments::new(&servers.ip.to_string(), servers.ports[0], "souk", PASSWORD);
        let connection = Connection::open(&open).await.unwrap();
        let channel = connection.open_channel(None).await.unwrap();
        Self { channel, connection }
    }

    /// Everything that is in the queue: routing key, properties, body. It is not there any more then.
    async fn read(&self) -> Vec<(String, amqprs::BasicProperties, Value)> {
        let queue = QueueDeclareArguments::new("orders").passive(true).finish();
        let (_, count, _) = self.channel.queue_declare(queue).await.unwrap().unwrap();
        let channel = self.connection.open_channel(None).await.unwrap();
        let consume = BasicConsumeArguments::new("orders", "").auto_ack(true).finish();
        let (_, mut messages) = channel.basic_consume_rx(consume).await.unwrap();
        let mut all = Vec::new();
        for _ in 0..count {
            let message = messages.recv().await.expect("the server is there");
            let body = serde_json::from_slice(&message.content.unwrap()).unwrap();
            let key = message.deliver.unwrap().routing_key().clone();
            all.push((key, message.basic_properties.unwrap(), body));
        }
        channel.close().await.unwrap();
        all
    }

    async fn ids(&self) -> Vec<String> {
        let id =
            |(_, properties, _): (_, amqprs::BasicProperties, _)| properties.message_id().unwrap().clone();
        self.read().await.into_iter().map(id).collect()
    }
}

/// One test for one server: it takes ten seconds to start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_gets_each_event_and_whatever_is_wrong_has_a_name() {
    let settings = |_: &Path, address: &str| {
        format!("listeners.tcp.1 = {address}\ndefault_user = souk\ndefault_pass = {PASSWORD}")
    };
    let Some(servers) = Servers::start(1, Ipv4Addr::LOCALHOST, settings) else { return };
    let folder = tempfile::tempdir().unwrap();
    let login = |password: &str| {
        let password_file = folder.path().join(format!("{}.password", password.len()));
        std::fs::write(&password_file, format!("{password}\n")).unwrap();
        Some(BrokerLogin { user: "souk".to_owned(), password_file })
    };
    let ours = |declare| RabbitMqConfig {
        declare,
        ..config(vec![servers.address(0)], login(PASSWORD), BrokerTls::Off)
    };
    let world = World::new().await;

    // Who is not let in is told so, without the password.
    let wrong = config(vec![servers.address(0)], login("hunter2"), BrokerTls::Off);
    let error = trouble(&mut world.publisher(set_up(wrong).await.unwrap())).await.to_string();
    assert!(error.contains("Is the user right") && !error.contains("hunter2"), "{error}");
    let mut elsewhere = ours(true);
    elsewhere.virtual_host = "nowhere".to_owned();
    let error = trouble(&mut world.publisher(set_up(elsewhere).await.unwrap())).await.to_string();
    assert!(error.contains("nowhere"), "{error}");

    // Whoever is told to make nothing says what is missing.
    world.happen(&[1]).await;
    let mut only_checks = world.publisher(set_up(ours(false)).await.unwrap());
    let error = trouble(&mut only_checks).await.to_string();
    assert!(error.contains("there is no queue orders in /; make it and bind it to souk with"), "{error}");

    // Otherwise everything is made, and each event is there once, as it happened.
    let mut publisher = world.publisher(set_up(ours(true)).await.unwrap());
    world.happen(&[1, 2, 1, 3]).await;
    hand_on(&mut publisher).await;
    let reader = Reader::connect(&servers).await;
    let read = reader.read().await;
    for (key, properties, body) in &read {
        assert_eq!(key, "souk.eu-west.shop.order.captured");
        assert_eq!(properties.content_type().map(String::as_str), Some("application/cloudevents+json"));
        assert_eq!(properties.delivery_mode(), Some(2), "it outlives the server");
        assert_eq!(body["id"].as_str(), properties.message_id().map(String::as_str));
    }
    let ids: Vec<_> =
        read.iter().map(|(_, properties, _)| properties.message_id().unwrap().clone()).collect();
    let happened = world.happened().await;
    assert_eq!((ids.len(), world.waiting().await), (happened.len(), 0));
    let sorted = |ids: &[String]| ids.iter().cloned().collect::<BTreeSet<_>>();
    assert_eq!(sorted(&ids), sorted(&happened));
    let of_one = |ids: &[String]| -> Vec<_> {
        ids.iter().filter(|id| [0, 1, 3].iter().any(|index| happened[*index] == **id)).cloned().collect()
    };
    assert_eq!(of_one(&ids), of_one(&happened), "those of order 1 as they happened");
    let kind = servers.ctl(0, "list_queues name type durable --formatter=json");
    assert!(kind.contains("\"quorum\"") && kind.contains("\"durable\":true"), "{kind}");

    // A message that no queue takes is not handed on, whatever the server confirms.
    hand_on(&mut only_checks).await;
    let unbind = QueueUnbindArguments::new("orders", "souk", "souk.eu-west.#");
    reader.channel.queue_unbind(unbind).await.unwrap();
    world.happen(&[4]).await;
    let error = trouble(&mut only_checks).await;
    assert_eq!(error.name(), "unroutable");
    assert!(error.to_string().contains("bind one to the exchange souk with souk.eu-west.#"), "{error}");
    assert_eq!((world.waiting().await, reader.ids().await.len()), (1, 0));
    // Whoever may make things binds it again when he looks; he has not looked since he connected.
    let mut again = world.publisher(set_up(ours(true)).await.unwrap());
    hand_on(&mut again).await;
    assert_eq!(reader.ids().await, world.happened().await[5..]);

    // A server that dies is waited for.
    world.happen(&[5]).await;
    servers.has_written_down("_orders");
    servers.kill(0);
    assert_eq!(trouble(&mut again).await.name(), "away");
    assert_eq!(trouble(&mut again).await.name(), "away");
    servers.start_member(0);
    servers.is_there(0);
    hand_on(&mut again).await;
    let reader = Reader::connect(&servers).await;
    assert_eq!((reader.ids().await, world.waiting().await), (world.happened().await[6..].to_vec(), 0));

    // A queue that somebody deleted is made again, and gets everything that is kept.
    reader.channel.queue_delete(QueueDeleteArguments::new("orders")).await.unwrap();
    world.happen(&[6]).await;
    assert_eq!(trouble(&mut again).await.name(), "unroutable");
    hand_on(&mut again).await;
    let ids = reader.ids().await;
    assert_eq!((ids.len(), sorted(&ids)), (8, sorted(&world.happened().await)));
    assert_eq!(world.waiting().await, 0);

    // One that is otherwise is refused, unless it is to be taken as it is.
    reader.channel.queue_delete(QueueDeleteArguments::new("orders")).await.unwrap();
    let classic = QueueDeclareArguments::durable_client_named("orders");
    reader.channel.queue_declare(classic).await.unwrap();
    let error = trouble(&mut world.publisher(set_up(ours(true)).await.unwrap())).await.to_string();
    assert!(error.contains("inequivalent arg") && error.contains("events.declare = false"), "{error}");
    let exchange = ExchangeDeclareArguments::new("souk", "topic").passive(true).finish();
    reader.channel.exchange_declare(exchange).await.expect("it is still there");
}
