//! NATS JetStream as a broker: one stream, made or checked, each message acknowledged by the servers that keep it.
//!
//! The only file that knows the client. It dials by itself, again and again, and knows the members of the cluster that the
//! first one names; nothing here waits for longer than [`ANSWER_WAIT_MAX`].
//!
//! The server removes repetitions within its window by `Nats-Msg-Id`, which is the event's id. That spares listeners most
//! of them, and is relied on for nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::header::NATS_MESSAGE_ID;
use async_nats::jetstream::context::{Context, ContextBuilder, GetStreamErrorKind, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{Config, DiscardPolicy, Info, LastRawMessageErrorKind, StorageType};
use async_nats::{Client, ConnectOptions, Event, ServerAddr};
use futures_util::future::BoxFuture;
use souk_config::NatsConfig;

use super::envelope::{CONTENT_TYPE, Message, SUBJECT, seq_of};
use super::login;
use super::{ANSWER_WAIT_MAX, Acknowledgement, Broker, Found, NotHeld, Receipt, UNACKNOWLEDGED_MAX};
use crate::store::event::EVENTS_KEPT_MS;
use crate::store::publisher::Sink;
use crate::telemetry::Telemetry;

/// A connection that says nothing for two of these is given up.
const PING_EVERY: Duration = Duration::from_secs(5);
/// For one server. The next is tried then.
const CONNECT_WAIT_MAX: Duration = Duration::from_secs(5);
/// Between two tries of a server while none is there; by chance between half of it and all.
const DIAL_PAUSE_MAX: Duration = Duration::from_secs(4);
/// What the client may hold for a connection that is not there: what is sent is bounded by its acknowledgements.
const CLIENT_QUEUE_MAX: usize = 2 * UNACKNOWLEDGED_MAX;
/// For how long a stream that we make knows names again. The servers' own default: a broker that was away for longer gets what
/// was on its way a second time, and a name that a server took and lost again ([`NotHeld::Unsettled`]) is free after it.
const DUPLICATES_KNOWN: Duration = Duration::from_secs(120);

pub(super) struct Nats {
    client: Client,
    context: Context,
    connections: Arc<AtomicU64>,
    stream: String,
    /// `souk.REGION.>`: ours.
    subjects: String,
    replicas: usize,
}

impl Nats {
    /// Reads what it needs to log in, and begins to dial. An error is one of the settings, never the broker's.
    pub(super) async fn dial(
        config: NatsConfig,
        region: &str,
        telemetry: Arc<Telemetry>,
    ) -> Result<Self, String> {
        let connections = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&connections);
        let members = config.broker.servers.len();
        let mut options = ConnectOptions::new()
            .name(format!("souk region {region}"))
            .retry_on_initial_connect()
            .no_echo()
            .ping_interval(PING_EVERY)
            .connection_timeout(CONNECT_WAIT_MAX)
            .request_timeout(Some(ANSWER_WAIT_MAX))
            .client_capacity(CLIENT_QUEUE_MAX)
            .reconnect_delay_callback(move |attempts| {
                // At once after a loss, each once: another member is there.
                let longest = if attempts <= members { Duration::ZERO } else { DIAL_PAUSE_MAX };
                longest.mul_f64(rand::random_range(0.5..1.0))
            })
            .event_callback(move |event| {
                match &event {
                    Event::Connected => {
                        counted.fetch_add(1, Ordering::Relaxed);
                        telemetry.events_broker(true);
                    }
                    Event::Disconnected => telemetry.events_broker(false),
                    _ => {}
                }
                tracing::debug!(%event, "the events' broker");
                std::future::ready(())
            });
        if let Some(login) = config.broker.login {
            let password = login::password(&login.password_file).await?;
            options = options.user_and_password(login.user, password);
        }
        if let Some(tls) = login::tls(&config.broker.tls)? {
            options = options.require_tls(true).tls_client_config(tls);
        }
        let server = |text: &String| {
            text.parse::<ServerAddr>().map_err(|e| format!("the address of the server {text}: {e}"))
        };
        let servers = config.broker.servers.iter().map(server).collect::<Result<Vec<_>, _>>()?;
        let client = options.connect(servers).await.map_err(|e| e.to_string())?;
        let context = ContextBuilder::new()
            .timeout(ANSWER_WAIT_MAX)
            .max_ack_inflight(CLIENT_QUEUE_MAX)
            .build(client.clone());
        Ok(Self {
            client,
            context,
            connections,
            stream: config.stream,
            subjects: format!("{SUBJECT}.{region}.>"),
            replicas: config.replicas.into(),
        })
    }

    /// What we make where nothing is.
    fn wanted(&self) -> Config {
        Config {
            name: self.stream.clone(),
            description: Some("events of orders, by souk".to_owned()),
            subjects: vec![self.subjects.clone()],
            storage: StorageType::File,
            discard: DiscardPolicy::Old,
            num_replicas: self.replicas,
            max_age: Duration::from_millis(EVENTS_KEPT_MS),
            duplicate_window: DUPLICATES_KNOWN,
            ..Config::default()
        }
    }

    async fn find_or_make(&self) -> Result<Info, NotHeld> {
        if self.client.connection_state() != State::Connected {
            return Err(NotHeld::Away("no server answers".to_owned()));
        }
        let error = match self.context.get_stream(&self.stream).await {
            Ok(stream) => return Ok(stream.cached_info().clone()),
            Err(error) => error,
        };
        match error.kind() {
            GetStreamErrorKind::JetStream(error) if error.code() == 404 => {}
            GetStreamErrorKind::JetStream(error) => return Err(NotHeld::Refused(error.to_string())),
            _ => return Err(NotHeld::Away(error.to_string())),
        }
        let made = self.context.create_stream(self.wanted()).await;
        let stream = made.map_err(|e| {
            NotHeld::Refused(format!("to make the stream {} with {} copies: {e}", self.stream, self.replicas))
        })?;
        tracing::info!(stream = self.stream, replicas = self.replicas, "made the stream for events");
        Ok(stream.cached_info().clone())
    }
}

impl Broker for Nats {
    fn name(&self) -> String {
        format!("nats/{}", self.stream)
    }

    fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// A stream that was made anew has another time at which it was made: it is known by that, whoever makes it.
    fn prepare(&self, _anew: bool) -> BoxFuture<'_, Result<Option<Sink>, NotHeld>> {
        Box::pin(async move {
            let info = self.find_or_make().await?;
            unfit(&info.config, &self.subjects, self.replicas)
                .map_or(Ok(()), |why| Err(NotHeld::Refused(format!("the stream {} {why}", self.stream))))?;
            Ok(Some(Sink {
                stream: info.created.unix_timestamp_nanos().to_string(),
                head: info.state.last_sequence,
            }))
        })
    }

    fn send<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Result<Acknowledgement, NotHeld>> {
        Box::pin(async move {
            if self.client.connection_state() != State::Connected {
                // It would be kept for the next connection, behind what comes in another way.
                return Err(NotHeld::Away("the connection is lost".to_owned()));
            }
            let publish = PublishMessage::build()
                .payload(message.body.clone())
                .header("Content-Type", CONTENT_TYPE)
                .message_id(&message.id)
                .expected_stream(&self.stream);
            let sent = self.context.send_publish(message.subject.clone(), publish).await;
            let acknowledgement = sent.map_err(|e| not_held(&e))?;
            let acknowledgement: Acknowledgement = Box::pin(async move {
                let ack = acknowledgement.await.map_err(|e| not_held(&e))?;
                if ack.sequence == 0 {
                    // A server that was given it, and has not heard from the others that they have it too.
                    return Err(NotHeld::Unsettled);
                }
                Ok(Receipt { position: Some(ack.sequence), is_repeated: ack.duplicate })
            });
            Ok(acknowledgement)
        })
    }

    fn at(&self, position: u64) -> BoxFuture<'_, Result<Found, NotHeld>> {
        Box::pin(async move {
            let away = |e: &dyn std::fmt::Display| NotHeld::Away(e.to_string());
            let stream = self.context.get_stream_no_info(&self.stream).await.map_err(|e| away(&e))?;
            let message = match stream.get_raw_message(position).await {
                Ok(message) => message,
                Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
                    return Ok(Found::Nothing);
                }
                Err(error) => return Err(away(&error)),
            };
            let is_ours = message.subject.starts_with(self.subjects.trim_end_matches('>'));
            let id = message.headers.get(NATS_MESSAGE_ID).map(|id| id.as_str()).filter(|_| is_ours);
            Ok(id.and_then(seq_of).map_or(Found::Anothers, Found::Event))
        })
    }
}

fn not_held(error: &async_nats::jetstream::context::PublishError) -> NotHeld {
    match error.kind() {
        PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe | PublishErrorKind::StreamNotFound => {
            NotHeld::Away(error.to_string())
        }
        _ => NotHeld::Refused(error.to_string()),
    }
}

/// What a stream that is there does not keep as it has to, and how that is mended.
fn unfit(config: &Config, subjects: &str, replicas: usize) -> Option<String> {
    let edit = "`nats stream edit` changes it";
    if config.mirror.is_some() {
        Some("mirrors another one: name that in events.stream".to_owned())
    } else if config.sealed {
        Some("is sealed: name another one in events.stream".to_owned())
    } else if config.no_ack {
        Some(format!("acknowledges nothing (no_ack): {edit}"))
    } else if config.storage != StorageType::File {
        Some(
            "is kept in memory: make it anew with file storage, or name another one in events.stream"
                .to_owned(),
        )
    } else if !config.subjects.iter().any(|pattern| covers(pattern, subjects)) {
        Some(format!("does not take {subjects}: {edit}"))
    } else if config.num_replicas < replicas {
        let has = config.num_replicas;
        Some(format!(
            "has {has} copies where events.replicas asks for {replicas}: {edit}, or write {has} there"
        ))
    } else {
        None
    }
}

/// Whether a pattern of subjects takes everything that another one takes, of which only the end is open.
fn covers(pattern: &str, subjects: &str) -> bool {
    let (mut pattern, mut subjects) = (pattern.split('.'), subjects.split('.'));
    loop {
        match (pattern.next(), subjects.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(word)) if word != ">" => {}
            (Some(one), Some(other)) if one == other => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use souk_config::{BrokerConfig, BrokerLogin, BrokerTls};

    use super::*;

    #[tokio::test]
    async fn what_is_needed_to_log_in_is_named_when_it_is_not_there() {
        let at = |name: &str| std::path::PathBuf::from(format!("/nowhere/{name}"));
        let config = |login, tls| NatsConfig {
            broker: BrokerConfig { servers: vec!["127.0.0.1:1".to_owned()], login, tls },
            stream: "s".to_owned(),
            replicas: 1,
        };
        let dial = async |config| Nats::dial(config, "eu-west", Arc::new(Telemetry::new())).await.err();
        let login = BrokerLogin { user: "souk".to_owned(), password_file: at("password") };
        let error = dial(config(Some(login), BrokerTls::Off)).await.expect("there is no file");
        assert!(error.starts_with("the password in /nowhere/password: "), "{error}");
        let tls = BrokerTls::Verified { ca: Some(at("ca.pem")), identity: None };
        let error = dial(config(None, tls)).await.expect("there is no file");
        assert!(error.starts_with("the certificate in /nowhere/ca.pem: "), "{error}");
        let tls = BrokerTls::Verified { ca: None, identity: Some((at("own.pem"), at("own.key"))) };
        let error = dial(config(None, tls)).await.expect("there is no file");
        assert!(error.starts_with("the key in /nowhere/own.key: "), "{error}");
        // A broker that is not there is nothing that keeps a region from starting.
        let away = Nats::dial(config(None, BrokerTls::Off), "eu-west", Arc::new(Telemetry::new())).await;
        let away = away.expect("the settings are right");
        assert!(matches!(away.prepare(false).await, Err(NotHeld::Away(_))));
    }

    #[test]
    fn a_stream_takes_our_subjects_or_is_refused_with_what_to_do() {
        let ours = "souk.eu-west.>";
        for pattern in [ours, ">", "souk.>", "*.eu-west.>", "*.*.>", "souk.*.>"] {
            assert!(covers(pattern, ours), "{pattern}");
        }
        for pattern in
            ["souk.eu-west.shop.>", "souk.us.>", "souk.*", "souk.eu-west", "souk.eu-west.*", "other.>", ""]
        {
            assert!(!covers(pattern, ours), "{pattern}");
        }
        let good = Config { subjects: vec![ours.to_owned()], num_replicas: 3, ..Config::default() };
        assert_eq!(unfit(&good, ours, 3), None);
        assert_eq!(unfit(&Config { num_replicas: 5, ..good.clone() }, ours, 3), None, "more is well");
        for (config, said) in [
            (Config { num_replicas: 1, ..good.clone() }, "has 1 copies where events.replicas asks for 3"),
            (Config { storage: StorageType::Memory, ..good.clone() }, "is kept in memory"),
            (Config { no_ack: true, ..good.clone() }, "acknowledges nothing"),
            (Config { sealed: true, ..good.clone() }, "is sealed"),
            (Config { subjects: vec!["orders.>".to_owned()], ..good }, "does not take souk.eu-west.>"),
        ] {
            let why = unfit(&config, ours, 3).expect(said);
            assert!(why.starts_with(said), "{why}");
        }
    }
}
