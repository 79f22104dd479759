//! Where a region hands events on to: nowhere but its own queue, or to a broker that the rest of a company listens to.

use std::path::PathBuf;

use serde::Deserialize;

use crate::error::Problem;
use crate::shared::{self, Base, NamedFile};
use crate::store::is_this_machine;

/// Who gets events beside those who ask the control API.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum EventsConfig {
    /// Nobody: the region's own consumers read its queue, and so may merchants.
    #[default]
    InProcess,
    Nats(NatsConfig),
    RabbitMq(RabbitMqConfig),
}

/// Where a broker is, and how to get in. Whoever shows this shows no secret: the password is read when it is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerConfig {
    /// `host:port` of members of one cluster.
    pub servers: Vec<String>,
    pub login: Option<BrokerLogin>,
    pub tls: BrokerTls,
}

/// A stream of NATS JetStream. The members of its cluster that are not named are named by the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NatsConfig {
    pub broker: BrokerConfig,
    /// Its name. It is made if it is not there.
    pub stream: String,
    /// Servers that hold each event before it counts as published.
    pub replicas: u8,
}

/// A quorum queue of RabbitMQ behind a topic exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RabbitMqConfig {
    pub broker: BrokerConfig,
    pub virtual_host: String,
    pub exchange: String,
    pub queue: String,
    /// Both are made if they are not there, and the queue is bound. Otherwise somebody else does that.
    pub declare: bool,
    /// Servers that a queue which is made is kept by.
    pub replicas: u8,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerLogin {
    pub user: String,
    /// Holds the password and nothing else.
    pub password_file: PathBuf,
}

impl EventsConfig {
    pub(crate) fn named_files(&self) -> Vec<NamedFile<'_>> {
        let broker = match self {
            Self::InProcess => return Vec::new(),
            Self::Nats(nats) => &nats.broker,
            Self::RabbitMq(rabbitmq) => &rabbitmq.broker,
        };
        let password = broker.login.as_ref().map(|login| &login.password_file);
        let (ca, identity) = match &broker.tls {
            BrokerTls::Verified { ca, identity } => (ca.as_ref(), identity.as_ref()),
            BrokerTls::Off => (None, None),
        };
        [
            NamedFile::maybe("events.password_file", password),
            NamedFile::maybe("events.ca", ca),
            NamedFile::maybe("events.cert", identity.map(|(cert, _)| cert)),
            NamedFile::maybe("events.key", identity.map(|(_, key)| key)),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BrokerTls {
    /// To this machine only, unless it was asked for by name.
    Off,
    /// The server shows a certificate for its name.
    Verified {
        /// Who signed it. None: one of the authorities that browsers trust.
        ca: Option<PathBuf>,
        /// What the region shows: its certificate and the key of that.
        identity: Option<(PathBuf, PathBuf)>,
    },
}

/// More than a cluster that agrees on each message has members.
const SERVERS_MAX: usize = 16;
/// What JetStream keeps at most, and more than RabbitMQ advises.
const REPLICAS_MAX: u8 = 5;
/// With so many servers named, each event is held by so many: one may be lost.
const REPLICAS_USUAL: u8 = 3;
/// A name becomes a folder of the server's, and a part of subjects that are 255 bytes at most.
const STREAM_BYTES_MAX: usize = 64;
/// Names of queues, exchanges and virtual hosts are sent with a length of one byte.
const RABBITMQ_NAME_BYTES_MAX: usize = 255;
/// A topic exchange that the regions of a company share.
const EXCHANGE_USUAL: &str = "souk";
const VIRTUAL_HOST_USUAL: &str = "/";

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawEvents {
    broker: Option<RawBroker>,
    servers: Option<Vec<String>>,
    user: Option<String>,
    password_file: Option<PathBuf>,
    tls: Option<RawTls>,
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    stream: Option<String>,
    virtual_host: Option<String>,
    exchange: Option<String>,
    queue: Option<String>,
    declare: Option<bool>,
    replicas: Option<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawBroker {
    None,
    Nats,
    RabbitMq,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawTls {
    Verify,
    Off,
}

impl RawEvents {
    /// `region`: its name, after which a stream or a queue is called that the file gives no name.
    pub(crate) fn validate(self, region: &str, base: &Base<'_>) -> Result<EventsConfig, Problem> {
        let broker = self.broker.unwrap_or(RawBroker::None);
        if let Some(key) = self.settings_of_others(broker) {
            return Err(match broker {
                RawBroker::None => Problem::new(
                    key,
                    "the region's own queue has no such setting",
                    "write broker = \"nats\" or broker = \"rabbitmq\" beside it, or take it out",
                ),
                RawBroker::Nats => Problem::new(key, "NATS has no such setting", "take it out"),
                RawBroker::RabbitMq => Problem::new(key, "RabbitMQ has no such setting", "take it out"),
            });
        }
        match broker {
            RawBroker::None => Ok(EventsConfig::InProcess),
            RawBroker::Nats => self.nats(region, base).map(EventsConfig::Nats),
            RawBroker::RabbitMq => self.rabbitmq(region, base).map(EventsConfig::RabbitMq),
        }
    }

    /// The first setting that is there and that such a broker does not have.
    fn settings_of_others(&self, broker: RawBroker) -> Option<&'static str> {
        use RawBroker::{Nats, RabbitMq};
        let Self {
            broker: _,
            servers,
            user,
            password_file,
            tls,
            ca,
            cert,
            key,
            stream,
            virtual_host,
            exchange,
            queue,
            declare,
            replicas,
        } = self;
        let (both, nats, rabbitmq): (&[_], &[_], &[_]) = (&[Nats, RabbitMq], &[Nats], &[RabbitMq]);
        let settings = [
            ("events.servers", servers.is_some(), both),
            ("events.user", user.is_some(), both),
            ("events.password_file", password_file.is_some(), both),
            ("events.tls", tls.is_some(), both),
            ("events.ca", ca.is_some(), both),
            ("events.cert", cert.is_some(), both),
            ("events.key", key.is_some(), both),
            ("events.stream", stream.is_some(), nats),
            ("events.virtual_host", virtual_host.is_some(), rabbitmq),
            ("events.exchange", exchange.is_some(), rabbitmq),
            ("events.queue", queue.is_some(), rabbitmq),
            ("events.declare", declare.is_some(), rabbitmq),
            ("events.replicas", replicas.is_some(), both),
        ];
        let foreign = |(_, is_set, of): &(_, bool, &[RawBroker])| *is_set && !of.contains(&broker);
        settings.into_iter().find(foreign).map(|(key, ..)| key)
    }

    fn nats(mut self, region: &str, base: &Base<'_>) -> Result<NatsConfig, Problem> {
        let broker = self.broker("nats-1.example:4222", "nats", base)?;
        let stream = self.stream.unwrap_or_else(|| format!("souk-{region}"));
        let is_name = (1..=STREAM_BYTES_MAX).contains(&stream.len())
            && stream.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        if !is_name {
            let remedy = format!("write 1 to {STREAM_BYTES_MAX} letters, digits, '-' and '_'");
            return Err(Problem::new("events.stream", format!("{stream:?} is no name of a stream"), remedy));
        }
        let replicas = replicas(self.replicas, broker.servers.len())?;
        Ok(NatsConfig { broker, stream, replicas })
    }

    fn rabbitmq(mut self, region: &str, base: &Base<'_>) -> Result<RabbitMqConfig, Problem> {
        let broker = self.broker("rabbitmq-1.example:5671", "rabbitmq", base)?;
        let shows_certificate = matches!(broker.tls, BrokerTls::Verified { identity: Some(_), .. });
        if broker.login.is_none() && !shows_certificate && !is_here(&broker.servers) {
            return Err(Problem::new(
                "events.user",
                "RabbitMQ lets nobody in from another machine who does not say who he is",
                "write user and password_file; or cert and key, for servers with rabbitmq_auth_mechanism_ssl",
            ));
        }
        let declare = self.declare.unwrap_or(true);
        if let (false, Some(_)) = (declare, self.replicas) {
            return Err(Problem::new(
                "events.replicas",
                "whoever makes the queue says how many servers keep it",
                "take it out, or take declare = false out",
            ));
        }
        Ok(RabbitMqConfig {
            virtual_host: name("events.virtual_host", self.virtual_host, || VIRTUAL_HOST_USUAL.to_owned())?,
            exchange: name("events.exchange", self.exchange, || EXCHANGE_USUAL.to_owned())?,
            queue: name("events.queue", self.queue, || format!("souk-{region}"))?,
            declare,
            replicas: replicas(self.replicas, broker.servers.len())?,
            broker,
        })
    }

    /// What is the same whoever it is. `example`: one of its servers.
    fn broker(&mut self, example: &str, kind: &str, base: &Base<'_>) -> Result<BrokerConfig, Problem> {
        let servers = servers(self.servers.take().unwrap_or_default(), example, kind)?;
        let is_here = is_here(&servers);
        let login = match (self.user.take(), self.password_file.take()) {
            (None, None) => None,
            (Some(user), Some(file)) if !user.is_empty() => {
                Some(BrokerLogin { user, password_file: base.path("events.password_file", &file)? })
            }
            (Some(_), _) => {
                return Err(Problem::new(
                    "events.user",
                    "a user logs in with a password",
                    "write his name here, and name a file that holds the password in password_file",
                ));
            }
            (None, Some(_)) => {
                return Err(Problem::new(
                    "events.password_file",
                    "nobody is said to log in with it",
                    "name the user beside it: user = \"souk\"",
                ));
            }
        };
        let identity = match (self.cert.take(), self.key.take()) {
            (None, None) => None,
            (Some(cert), Some(key)) => {
                Some((base.path("events.cert", &cert)?, base.path("events.key", &key)?))
            }
            (Some(_), None) => {
                return Err(Problem::new("events.cert", "it has no key", "name its private key in key"));
            }
            (None, Some(_)) => {
                return Err(Problem::new("events.key", "it has no certificate", "name that in cert"));
            }
        };
        let names_tls = self.ca.is_some() || identity.is_some();
        let tls = match self.tls {
            Some(RawTls::Off) if names_tls => {
                return Err(Problem::new(
                    "events.tls",
                    "it is off, and yet there is a certificate",
                    "write tls = \"verify\", or take ca, cert and key out",
                ));
            }
            Some(RawTls::Off) => BrokerTls::Off,
            None if is_here && !names_tls => BrokerTls::Off,
            Some(RawTls::Verify) | None => {
                let ca = self.ca.as_deref().map(|path| base.path("events.ca", path)).transpose()?;
                BrokerTls::Verified { ca, identity }
            }
        };
        Ok(BrokerConfig { servers, login, tls })
    }
}

/// `servers`: how many are named.
fn replicas(wanted: Option<u8>, servers: usize) -> Result<u8, Problem> {
    let usual = if servers >= REPLICAS_USUAL.into() { REPLICAS_USUAL } else { 1 };
    let replicas = wanted.unwrap_or(usual);
    if (1..=REPLICAS_MAX).contains(&replicas) && !replicas.is_multiple_of(2) {
        return Ok(replicas);
    }
    Err(Problem::new(
        "events.replicas",
        format!("a stream has no {replicas} copies of which more than half can agree as well as of one less"),
        "write 3, of which one may be lost; or 5, or 1 for a server that is alone",
    ))
}

/// A name of RabbitMQ's.
fn name(key: &'static str, name: Option<String>, usual: impl FnOnce() -> String) -> Result<String, Problem> {
    let name = name.unwrap_or_else(usual);
    let is_name = (1..=RABBITMQ_NAME_BYTES_MAX).contains(&name.len()) && !name.contains(char::is_control);
    if is_name {
        return Ok(name);
    }
    let remedy = format!("write 1 to {RABBITMQ_NAME_BYTES_MAX} bytes of it, or take it out");
    Err(Problem::new(key, format!("{name:?} is no name in RabbitMQ"), remedy))
}

fn servers(texts: Vec<String>, example: &str, kind: &str) -> Result<Vec<String>, Problem> {
    let key = "events.servers";
    if texts.is_empty() {
        return Err(Problem::new(
            key,
            format!("broker = \"{kind}\" needs to be found"),
            format!("write where its servers are, such as servers = [\"{example}\"]"),
        ));
    }
    if texts.len() > SERVERS_MAX {
        let problem = format!("{} servers are more than {SERVERS_MAX}", texts.len());
        return Err(Problem::new(key, problem, "name some members of one cluster"));
    }
    // A user or a password in an address would be shown and logged: `host:port` has no place for them.
    let server = |(index, text)| shared::host_and_port(&format!("{key}[{index}]"), text);
    texts.into_iter().enumerate().map(server).collect()
}

/// All of them on this machine.
fn is_here(servers: &[String]) -> bool {
    servers.iter().all(|server| is_this_machine(host_of(server)))
}

fn host_of(server: &str) -> &str {
    let host = server.rsplit_once(':').map_or(server, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}
