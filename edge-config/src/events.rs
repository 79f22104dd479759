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
}

/// A stream of NATS JetStream. Whoever shows this shows no secret: the password is read when it is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NatsConfig {
    /// `host:port` of members of one cluster; the others they name themselves.
    pub servers: Vec<String>,
    pub login: Option<NatsLogin>,
    pub tls: NatsTls,
    /// Its name. It is made if it is not there.
    pub stream: String,
    /// Servers that hold each event before it counts as published.
    pub replicas: u8,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NatsLogin {
    pub user: String,
    /// Holds the password and nothing else.
    pub password_file: PathBuf,
}

impl EventsConfig {
    pub(crate) fn named_files(&self) -> Vec<NamedFile<'_>> {
        let Self::Nats(broker) = self else { return Vec::new() };
        let password = broker.login.as_ref().map(|login| &login.password_file);
        let (ca, identity) = match &broker.tls {
            NatsTls::Verified { ca, identity } => (ca.as_ref(), identity.as_ref()),
            NatsTls::Off => (None, None),
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
pub enum NatsTls {
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

/// To begin with; a client learns the other members of a cluster from the first that answers.
const SERVERS_MAX: usize = 16;
/// What JetStream keeps at most.
const REPLICAS_MAX: u8 = 5;
/// With so many servers named, each event is held by so many: one may be lost.
const REPLICAS_USUAL: u8 = 3;
/// A name becomes a folder of the server's, and a part of subjects that are 255 bytes at most.
const STREAM_BYTES_MAX: usize = 64;

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
    replicas: Option<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawBroker {
    None,
    Nats,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawTls {
    Verify,
    Off,
}

impl RawEvents {
    /// `region`: its name, after which a stream is called that the file gives no name.
    pub(crate) fn validate(self, region: &str, base: &Base<'_>) -> Result<EventsConfig, Problem> {
        match self.broker.unwrap_or(RawBroker::None) {
            RawBroker::None => self.in_process(),
            RawBroker::Nats => self.nats(region, base).map(EventsConfig::Nats),
        }
    }

    fn in_process(self) -> Result<EventsConfig, Problem> {
        let Self { broker: _, servers, user, password_file, tls, ca, cert, key, stream, replicas } = self;
        let of_a_broker = [
            ("events.servers", servers.is_some()),
            ("events.user", user.is_some()),
            ("events.password_file", password_file.is_some()),
            ("events.tls", tls.is_some()),
            ("events.ca", ca.is_some()),
            ("events.cert", cert.is_some()),
            ("events.key", key.is_some()),
            ("events.stream", stream.is_some()),
            ("events.replicas", replicas.is_some()),
        ];
        match of_a_broker.into_iter().find(|(_, is_set)| *is_set) {
            None => Ok(EventsConfig::InProcess),
            Some((key, _)) => Err(Problem::new(
                key,
                "the region's own queue has no such setting",
                "write broker = \"nats\" beside it, or take it out",
            )),
        }
    }

    fn nats(self, region: &str, base: &Base<'_>) -> Result<NatsConfig, Problem> {
        let servers = servers(self.servers.unwrap_or_default())?;
        let is_here = servers.iter().all(|server| is_this_machine(host_of(server)));
        let login = match (self.user, self.password_file) {
            (None, None) => None,
            (Some(user), Some(file)) if !user.is_empty() => {
                Some(NatsLogin { user, password_file: base.path("events.password_file", &file)? })
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
        let identity = match (self.cert, self.key) {
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
            Some(RawTls::Off) => NatsTls::Off,
            None if is_here && !names_tls => NatsTls::Off,
            Some(RawTls::Verify) | None => {
                let ca = self.ca.as_deref().map(|path| base.path("events.ca", path)).transpose()?;
                NatsTls::Verified { ca, identity }
            }
        };
        let stream = self.stream.unwrap_or_else(|| format!("souk-{region}"));
        let is_name = (1..=STREAM_BYTES_MAX).contains(&stream.len())
            && stream.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        if !is_name {
            let remedy = format!("write 1 to {STREAM_BYTES_MAX} letters, digits, '-' and '_'");
            return Err(Problem::new("events.stream", format!("{stream:?} is no name of a stream"), remedy));
        }
        let usual = if servers.len() >= REPLICAS_USUAL.into() { REPLICAS_USUAL } else { 1 };
        let replicas = self.replicas.unwrap_or(usual);
        if !(1..=REPLICAS_MAX).contains(&replicas) || replicas.is_multiple_of(2) {
            return Err(Problem::new(
                "events.replicas",
                format!(
                    "a stream has no {replicas} copies of which more than half can agree as well as of one less"
                ),
                "write 3, of which one may be lost; or 5, or 1 for a server that is alone",
            ));
        }
        Ok(NatsConfig { servers, login, tls, stream, replicas })
    }
}

fn servers(texts: Vec<String>) -> Result<Vec<String>, Problem> {
    let key = "events.servers";
    if texts.is_empty() {
        return Err(Problem::new(
            key,
            "broker = \"nats\" needs to be found",
            "write where its servers are, such as servers = [\"nats-1.example:4222\"]",
        ));
    }
    if texts.len() > SERVERS_MAX {
        let problem = format!("{} servers are more than {SERVERS_MAX}", texts.len());
        return Err(Problem::new(key, problem, "name some members of one cluster; they name the others"));
    }
    // A user or a password in an address would be shown and logged: `host:port` has no place for them.
    let server = |(index, text)| shared::host_and_port(&format!("{key}[{index}]"), text);
    texts.into_iter().enumerate().map(server).collect()
}

fn host_of(server: &str) -> &str {
    let host = server.rsplit_once(':').map_or(server, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}
