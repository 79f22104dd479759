//! RabbitMQ as a broker: a topic exchange, and one quorum queue behind it whose members agree on each message before the
//! server confirms it.
//!
//! With [`link`] the only files that know the client. It is dialled when something is to be done and there is no connection:
//! the publisher's pace ([`super::pace`]) is the pause between two tries. Nothing here waits for longer than
//! [`ANSWER_WAIT_MAX`], or [`CONNECT_WAIT_MAX`] for each server.
//!
//! A queue forgets what was taken out of it and counts nothing that we could compare with, and knows no ids: readers remove
//! repetitions by `message_id`. One that is deleted and made again has no name of its own either, so the place goes back
//! before it is made ([`Broker::prepare`]).

mod confirms;
mod link;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use amqprs::channel::{ExchangeDeclareArguments, QueueBindArguments, QueueDeclareArguments};
use amqprs::connection::OpenConnectionArguments;
use amqprs::security::SecurityCredentials;
use amqprs::tls::TlsAdaptor;
use amqprs::{FieldTable, FieldValue};
use futures_util::future::BoxFuture;
use souk_config::{BrokerTls, RabbitMqConfig};
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;

use super::envelope::{Message, SUBJECT};
use super::{ANSWER_WAIT_MAX, Acknowledgement, Broker, Found, NotHeld, Receipt, login};
use crate::store::event::EVENTS_KEPT_MS;
use crate::store::publisher::Sink;
use crate::telemetry::Telemetry;
use confirms::End;
use link::Link;

/// For one server, with TLS and everything that is said before a channel is open: nine round trips, of which each may take half
/// a second. The next is tried then.
const CONNECT_WAIT_MAX: Duration = Duration::from_secs(5);
/// A connection over which nothing comes for two of these is given up.
const HEARTBEAT_SECS: u16 = 5;
/// What RabbitMQ lets in from its own machine until somebody takes that away.
const LOCAL_USER: &str = "guest";
/// Of a routing key: it is sent with a length of one byte.
const ROUTING_KEY_BYTES_MAX: usize = 255;
/// The server's numbers for what is not there, for what is there and is otherwise, and for what the user may not do.
const NOT_FOUND: u16 = 404;
const PRECONDITION_FAILED: u16 = 406;
const ACCESS_REFUSED: u16 = 403;

pub(super) struct RabbitMq {
    /// In the order in which they are tried.
    servers: Vec<Server>,
    virtual_host: String,
    exchange: String,
    queue: String,
    /// `souk.REGION.#`: ours.
    keys: String,
    declare: bool,
    replicas: u8,
    seen: Seen,
    /// None: nothing was dialled yet, or the connection is lost.
    link: Mutex<Option<Link>>,
    /// Of the server that is tried next.
    next: AtomicUsize,
}

/// How to get to one member of the cluster.
struct Server {
    name: String,
    open: OpenConnectionArguments,
}

/// What is told of connections while they come and go.
#[derive(Clone)]
struct Seen {
    /// One more with each that is made, and with each that ends.
    changes: Arc<AtomicU64>,
    telemetry: Arc<Telemetry>,
}

impl Seen {
    fn connected(&self, is_connected: bool) {
        self.changes.fetch_add(1, Ordering::Relaxed);
        self.telemetry.events_broker(is_connected);
    }
}

impl RabbitMq {
    /// Reads what it needs to log in. An error is one of the settings, never the broker's, who need not be there yet.
    pub(super) async fn set_up(
        config: RabbitMqConfig,
        region: &str,
        telemetry: Arc<Telemetry>,
    ) -> Result<Self, String> {
        let tls = login::tls(&config.broker.tls)?.map(|tls| TlsConnector::from(Arc::new(tls)));
        let shows_certificate = matches!(config.broker.tls, BrokerTls::Verified { identity: Some(_), .. });
        let credentials = match config.broker.login {
            Some(login) => {
                let password = login::password(&login.password_file).await?;
                SecurityCredentials::new_plain(&login.user, &password)
            }
            None if shows_certificate => SecurityCredentials::new_external(),
            None => SecurityCredentials::new_plain(LOCAL_USER, LOCAL_USER),
        };
        let server = |name: String| {
            let unusable = || format!("the address of the server {name}: it is no host and port");
            let (host, port) = name.rsplit_once(':').ok_or_else(unusable)?;
            let port = port.parse().map_err(|_| unusable())?;
            let mut open = OpenConnectionArguments::new(host, port, "", "");
            open.credentials(credentials.clone())
                .virtual_host(&config.virtual_host)
                .connection_name(&format!("souk region {region}"))
                .heartbeat(HEARTBEAT_SECS);
            if let Some(tls) = &tls {
                let shown = host.trim_start_matches('[').trim_end_matches(']');
                open.tls_adaptor(TlsAdaptor::new(tls.clone(), shown.to_owned()));
            }
            Ok(Server { name, open })
        };
        let servers = config.broker.servers.into_iter().map(server).collect::<Result<Vec<_>, String>>()?;
        Ok(Self {
            // Processes that begin together begin at different members.
            next: AtomicUsize::new(rand::random_range(0..servers.len())),
            servers,
            virtual_host: config.virtual_host,
            exchange: config.exchange,
            queue: config.queue,
            keys: format!("{SUBJECT}.{region}.#"),
            declare: config.declare,
            replicas: config.replicas,
            seen: Seen { changes: Arc::default(), telemetry },
            link: Mutex::new(None),
        })
    }

    /// A connection over which something may be said: the one that is there, or a new one to the first server that answers.
    async fn link(&self) -> Result<Link, NotHeld> {
        match self.link.lock().await.take() {
            Some(link) if link.ended().is_none() => return Ok(link),
            // Another member may do better than the one that let us down.
            Some(_) => drop(self.next.fetch_add(1, Ordering::Relaxed)),
            None => {}
        }
        let mut refusals = Vec::new();
        for _ in &self.servers {
            let server = &self.servers[self.next.load(Ordering::Relaxed) % self.servers.len()];
            let dialled = tokio::time::timeout(CONNECT_WAIT_MAX, Link::dial(&server.open, &self.seen)).await;
            let why = match dialled {
                Ok(Ok(link)) => {
                    tracing::debug!(server = server.name, "connected to the events' broker");
                    return Ok(link);
                }
                Ok(Err(why)) => why,
                Err(_) => format!("it has not answered for {} s", CONNECT_WAIT_MAX.as_secs()),
            };
            refusals.push(format!("{}: {why}", server.name));
            self.next.fetch_add(1, Ordering::Relaxed);
        }
        Err(NotHeld::Away(refusals.join("; ")))
    }

    /// Leaves the link for what is to be done next, who looks whether it is still any good.
    async fn leave(&self, link: Link) {
        *self.link.lock().await = Some(link);
    }

    /// Whether the queue is there; if so, everything is as it has to be.
    async fn look(&self, link: &Link) -> Result<bool, NotHeld> {
        let queue = QueueDeclareArguments::new(&self.queue).passive(true).finish();
        match link.asked(link.channel.queue_declare(queue)).await {
            Ok(_) => {}
            Err(end) if is_absent(&end) => return Ok(false),
            Err(end) => return Err(self.not_done("to look for the queue", &end)),
        }
        if self.declare {
            self.declare_all(link).await?;
        } else {
            let exchange = ExchangeDeclareArguments::new(&self.exchange, "topic").passive(true).finish();
            let found = link.asked(link.channel.exchange_declare(exchange)).await;
            found.map_err(|end| self.not_done("to look for the exchange", &end))?;
        }
        Ok(true)
    }

    /// The exchange, the queue and what the one gives to the other. What is there and is the same is left as it is.
    async fn declare_all(&self, link: &Link) -> Result<(), NotHeld> {
        let exchange = ExchangeDeclareArguments::new(&self.exchange, "topic").durable(true).finish();
        let done = link.asked(link.channel.exchange_declare(exchange)).await;
        done.map_err(|end| self.not_done("to make the exchange", &end))?;
        let mut queue = QueueDeclareArguments::durable_client_named(&self.queue);
        queue.arguments(wanted(self.replicas));
        let done = link.asked(link.channel.queue_declare(queue)).await;
        done.map_err(|end| self.not_done("to make the queue", &end))?;
        let bind = QueueBindArguments::new(&self.queue, &self.exchange, &self.keys);
        let done = link.asked(link.channel.queue_bind(bind)).await;
        done.map_err(|end| self.not_done("to bind the queue", &end))
    }

    /// In the words of whoever has to mend it.
    fn not_done(&self, what: &str, end: &End) -> NotHeld {
        let Self { virtual_host, exchange, queue, .. } = self;
        let mend = match end.code {
            Some(NOT_FOUND) if end.text.contains("no exchange") || is_absent(end) => format!(
                "make the exchange {exchange} and the queue {queue} in {virtual_host}, or leave events.declare out"
            ),
            Some(PRECONDITION_FAILED) => "there is one that is otherwise: events.declare = false takes it as it is; or give ours another name"
                .to_owned(),
            Some(ACCESS_REFUSED) => format!("let the user configure, write and read {exchange} and {queue} in {virtual_host}"),
            // A connection that is lost, or a server that is; a queue whose members are not there yet.
            _ => return NotHeld::Away(format!("{what}: {}", end.text)),
        };
        NotHeld::Refused(format!("{what}: {}; {mend}", end.text))
    }

    fn found(&self) -> Sink {
        // In another virtual host is another queue.
        Sink { stream: self.virtual_host.clone(), head: 0 }
    }
}

impl Broker for RabbitMq {
    fn name(&self) -> String {
        format!("rabbitmq/{}", self.queue)
    }

    fn connections(&self) -> u64 {
        self.seen.changes.load(Ordering::Relaxed)
    }

    fn prepare(&self, anew: bool) -> BoxFuture<'_, Result<Option<Sink>, NotHeld>> {
        Box::pin(async move {
            let link = self.link().await?;
            let outcome = if anew && self.declare {
                self.declare_all(&link).await.map(|()| {
                    tracing::info!(queue = self.queue, replicas = self.replicas, "made the queue for events");
                    true
                })
            } else {
                self.look(&link).await
            };
            self.leave(link).await;
            match outcome? {
                true => Ok(Some(self.found())),
                false if anew => Err(NotHeld::Refused(format!(
                    "there is no queue {} in {}; make it and bind it to {} with {}, or leave events.declare out",
                    self.queue, self.virtual_host, self.exchange, self.keys
                ))),
                false => Ok(None),
            }
        })
    }

    fn send<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Result<Acknowledgement, NotHeld>> {
        Box::pin(async move {
            if message.subject.len() > ROUTING_KEY_BYTES_MAX {
                let long = message.subject.len();
                return Err(NotHeld::Refused(format!(
                    "a routing key of {long} bytes, where {ROUTING_KEY_BYTES_MAX} are possible: {}",
                    message.subject
                )));
            }
            // Taken out while it is written to: of a message that was half sent nobody knows whether it has a number. Whoever is
            // dropped here takes the connection with him.
            let link = self.link.lock().await.take();
            let link = link.ok_or_else(|| NotHeld::Away("there is no connection".to_owned()))?;
            let answer = link.publish(&self.exchange, message).await;
            let gives_up = link.gives_up();
            self.leave(link).await;
            let answer = answer?;
            let exchange = self.exchange.clone();
            let keys = self.keys.clone();
            let acknowledgement: Acknowledgement = Box::pin(async move {
                let answer = tokio::time::timeout(ANSWER_WAIT_MAX, answer).await;
                match answer {
                    Ok(Ok(Ok(()))) => Ok(Receipt { position: None, is_repeated: false }),
                    Ok(Ok(Err(NotHeld::Unroutable(why)))) => Err(NotHeld::Unroutable(format!(
                        "{why}; bind one to the exchange {exchange} with {keys}"
                    ))),
                    Ok(Ok(Err(error))) => Err(error),
                    Ok(Err(_)) => Err(NotHeld::Away("the connection is lost".to_owned())),
                    Err(_) => {
                        let waited = ANSWER_WAIT_MAX.as_millis();
                        let text = format!(
                            "no confirm for {waited} ms: most of the queue's servers are away, or short of memory or disk"
                        );
                        gives_up(text.clone());
                        Err(NotHeld::Away(text))
                    }
                }
            });
            Ok(acknowledgement)
        })
    }

    fn at(&self, _position: u64) -> BoxFuture<'_, Result<Found, NotHeld>> {
        Box::pin(std::future::ready(Ok(Found::Nothing)))
    }
}

/// What the queue is made with. It cannot be changed afterwards: what an operator may want otherwise is left to policies.
fn wanted(replicas: u8) -> FieldTable {
    let mut arguments = FieldTable::new();
    let kept_ms = i64::try_from(EVENTS_KEPT_MS).unwrap_or(i64::MAX);
    for (key, value) in [
        ("x-queue-type", FieldValue::S("quorum".try_into().expect("a short text"))),
        ("x-quorum-initial-group-size", FieldValue::I(replicas.into())),
        // Or a reader whose server dies overtakes himself: what he had not read yet comes back after what he reads elsewhere.
        ("x-single-active-consumer", FieldValue::t(true)),
        // As long as the outbox keeps them. What nobody has fetched until then is gone, as from a stream.
        ("x-message-ttl", FieldValue::l(kept_ms)),
    ] {
        arguments.insert(key.try_into().expect("a short text"), value);
    }
    arguments
}

/// The queue is not there. One whose servers are away is not found either, and is there.
fn is_absent(end: &End) -> bool {
    end.code == Some(NOT_FOUND) && end.text.contains("no queue")
}

#[cfg(test)]
mod tests;
