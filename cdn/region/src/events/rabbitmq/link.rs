//! One connection with its one channel, on which the server confirms what it is given.
//!
//! The client reads and writes in tasks of its own and tells what comes through two callbacks; both lead to [`Confirms`]. What
//! the server has closed is not used again: a channel takes its connection with it.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use amqprs::callbacks::{ChannelCallback, ConnectionCallback};
use amqprs::channel::{BasicPublishArguments, Channel, ConfirmSelectArguments};
use amqprs::connection::{Connection, OpenConnectionArguments};
use amqprs::error::Error;
use amqprs::{Ack, BasicProperties, Cancel, Close, CloseChannel, Nack, Return};
use async_trait::async_trait;
use parking_lot::Mutex;
use tokio_util::task::AbortOnDropHandle;

use super::Seen;
use super::confirms::{Answer, Confirms, End};
use crate::events::envelope::{CONTENT_TYPE, Message};
use crate::events::{ANSWER_WAIT_MAX, NotHeld};

/// How often it is looked whether a connection is still there, besides being told: the client tells whoever listens then.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Of the sender, for whoever looks at a message in RabbitMQ's own pages.
const APP: &str = "souk";

pub(super) struct Link {
    pub(super) channel: Channel,
    shared: Shared,
    /// Ends when the connection does; nothing else says that it is lost.
    _watch: AbortOnDropHandle<()>,
    /// Dropped last: it says farewell.
    _connection: Connection,
}

/// What the client's tasks and ours know of a connection.
#[derive(Clone)]
struct Shared {
    confirms: Arc<Mutex<Confirms>>,
    seen: Seen,
}

impl Shared {
    fn end(&self, end: End) {
        let is_first = {
            let mut confirms = self.confirms.lock();
            let is_first = confirms.ended().is_none();
            confirms.end(end);
            is_first
        };
        if is_first {
            self.seen.connected(false);
        }
    }

    fn lost(&self, text: impl Into<String>) {
        self.end(End { code: None, text: text.into() });
    }
}

impl Link {
    pub(super) async fn dial(open: &OpenConnectionArguments, seen: &Seen) -> Result<Self, String> {
        let connection = Connection::open(open).await.map_err(opening)?;
        let shared = Shared { confirms: Arc::default(), seen: seen.clone() };
        let told = |e: Error| e.to_string();
        connection.register_callback(shared.clone()).await.map_err(told)?;
        let channel = connection.open_channel(None).await.map_err(told)?;
        channel.register_callback(shared.clone()).await.map_err(told)?;
        channel.confirm_select(ConfirmSelectArguments::default()).await.map_err(told)?;
        let (watched, tells) = (connection.clone(), shared.clone());
        let watch = tokio::spawn(async move {
            while watched.is_open() {
                let _told = tokio::time::timeout(LOOK_EVERY, watched.listen_network_io_failure()).await;
            }
            tells.lost("the connection is lost");
        });
        seen.connected(true);
        Ok(Self { channel, shared, _watch: AbortOnDropHandle::new(watch), _connection: connection })
    }

    /// None: it may be used.
    pub(super) fn ended(&self) -> Option<End> {
        self.shared.confirms.lock().ended().cloned()
    }

    /// Asks the server for something, and waits for it.
    pub(super) async fn asked<T>(&self, question: impl Future<Output = Result<T, Error>>) -> Result<(), End> {
        let text = match tokio::time::timeout(ANSWER_WAIT_MAX, question).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer for {} ms", ANSWER_WAIT_MAX.as_millis()),
        };
        // Why the server closed the channel is told before the question fails.
        self.shared.lost(text);
        Err(self.ended().expect("it was ended above"))
    }

    /// Sends. To be dropped in here leaves the numbers wrong: the link is not to be used then.
    pub(super) async fn publish(&self, exchange: &str, message: &Message) -> Result<Answer, NotHeld> {
        let properties = BasicProperties::default()
            .with_content_type(CONTENT_TYPE)
            .with_persistence(true)
            .with_message_id(&message.id)
            .with_app_id(APP)
            .finish();
        let arguments = BasicPublishArguments::new(exchange, &message.subject).mandatory(true).finish();
        let answer = self.shared.confirms.lock().sends(message.id.clone());
        if let Some(end) = self.ended() {
            return Err(NotHeld::Away(end.text));
        }
        let sent = self.channel.basic_publish(properties, message.body.to_vec(), arguments);
        match tokio::time::timeout(ANSWER_WAIT_MAX, sent).await {
            Ok(Ok(())) => Ok(answer),
            Ok(Err(error)) => {
                self.shared.lost(error.to_string());
                Err(NotHeld::Away(error.to_string()))
            }
            Err(_) => {
                let text = "what waits to be written is not taken".to_owned();
                self.shared.lost(text.clone());
                Err(NotHeld::Away(text))
            }
        }
    }

    /// For whoever waits longer than he may: what is said, and the connection is not used again.
    pub(super) fn gives_up(&self) -> impl FnOnce(String) + Send + use<> {
        let shared = self.shared.clone();
        move |why| shared.lost(why)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.lost("the connection was given up");
    }
}

/// A server that does not let somebody in hangs up without a word, unless a client says that it would listen; ours does not.
fn opening(error: Error) -> String {
    let text = error.to_string();
    let hangs_up = ["peer shutdown", "connection interrupted", "Connection reset by peer"];
    if matches!(error, Error::NetworkError(_)) && hangs_up.iter().any(|words| text.contains(words)) {
        format!("{text}: it hung up while it was logged in to. Is the user right, and his password?")
    } else {
        text
    }
}

#[async_trait]
impl ConnectionCallback for Shared {
    async fn close(&mut self, _: &Connection, close: Close) -> Result<(), Error> {
        self.end(End { code: Some(close.reply_code()), text: close.reply_text().clone() });
        Ok(())
    }

    async fn blocked(&mut self, _: &Connection, reason: String) {
        tracing::warn!(reason, "the events' broker takes nothing");
    }

    async fn unblocked(&mut self, _: &Connection) {}

    async fn secret_updated(&mut self, _: &Connection) {}
}

#[async_trait]
impl ChannelCallback for Shared {
    async fn close(&mut self, _: &Channel, close: CloseChannel) -> Result<(), Error> {
        self.end(End { code: Some(close.reply_code()), text: close.reply_text().clone() });
        Ok(())
    }

    async fn cancel(&mut self, _: &Channel, _: Cancel) -> Result<(), Error> {
        Ok(())
    }

    async fn flow(&mut self, _: &Channel, active: bool) -> Result<bool, Error> {
        Ok(active)
    }

    async fn publish_ack(&mut self, _: &Channel, ack: Ack) {
        self.confirms.lock().acked(ack.delivery_tag(), ack.mutiple());
    }

    async fn publish_nack(&mut self, _: &Channel, nack: Nack) {
        self.confirms.lock().nacked(nack.delivery_tag(), nack.multiple());
    }

    /// The message itself is not looked at, and not shown: it is somebody's order.
    async fn publish_return(
        &mut self,
        _: &Channel,
        returned: Return,
        properties: BasicProperties,
        _content: Vec<u8>,
    ) {
        let why = format!("{} {}", returned.reply_code(), returned.reply_text());
        let id = properties.message_id().map(String::as_str);
        let ended = {
            let mut confirms = self.confirms.lock();
            let was_ended = confirms.ended().is_some();
            confirms.returned(id, &why);
            !was_ended && confirms.ended().is_some()
        };
        if ended {
            self.seen.connected(false);
        }
    }
}
