//! Hands the events of orders on to a broker: the publisher behind the outbox.
//!
//! ```text
//!  what happens ──one commit──▶ event (outbox) ─publisher─▶ Broker ──▶ whoever listens there
//!                                    │   place: after the broker's acknowledgement
//!                                    └──▶ the region's own consumers, merchants' GET …/events
//! ```
//!
//! It owns when an event goes and when it counts as gone; how it is written ([`envelope`]), what may be on its way at once
//! ([`batch`]), how long to wait after a broker that failed ([`pace`]), how it is spoken to ([`Broker`]; [`nats`]). The events
//! themselves and the place are the store's.
//! Without a broker nothing of this runs: the outbox with its consumers is the in-process queue.
//!
//! What holds: each event reaches the broker at least once, under an id by which it is known again; of each order the
//! events arrive for the first time in the order in which they happened, whatever is lost, repeated or run twice: an event
//! is sent when the broker has acknowledged every earlier one of its order, and every publisher begins where everything
//! before was acknowledged. At `ack_level = 2` an event goes when the standby has it: whoever takes over tells no other story.

mod batch;
mod envelope;
mod login;
mod nats;
mod pace;
mod rabbitmq;
#[cfg(test)]
mod tests;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use souk_config::EventsConfig;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::pair;
use crate::store::publisher::{Claim, Forgotten, Held, Sink, Turn};
use crate::store::{Store, StoreError};
use crate::telemetry::Telemetry;
use batch::Batch;
use envelope::Message;
use nats::Nats;
use pace::Pace;
use rabbitmq::RabbitMq;

/// Events that are read, sent and acknowledged before the place moves: one commit for so many, and so many may come twice
/// after a crash. At 1 KB each, half a megabyte.
const BATCH_MAX: usize = 512;
/// Events without an acknowledgement. A cluster that needs 20 ms for one takes 3,200 a second then.
const UNACKNOWLEDGED_MAX: usize = 64;
/// For a broker to answer. Servers that elect a leader (some 4 s) are asked again meanwhile; across an ocean, with a flush,
/// an answer takes a fifth of it.
pub(crate) const ANSWER_WAIT_MAX: Duration = Duration::from_millis(2_500);
/// A batch is sent for so long at most. With the last answers it is over in half of the lease.
const SENDING_MS: u64 = 5_000;
/// How often it is looked whether something has happened: four small reads a second, and a quarter of a second at most
/// from the commit to the broker.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// While another process hands events on.
const OTHERS_PAUSE: Duration = Duration::from_secs(1);
/// How often what waits is counted.
const COUNT_EVERY_MS: u64 = 5_000;
/// Messages of others that are passed over in search of the last of ours, in a stream that is shared.
const LOOKED_AT_MAX: usize = 64;
/// How often the log says that a broker is still away.
const SAID_EVERY_MS: u64 = 600_000;

/// Why a broker does not hold a message as far as we know. Every one of them is tried again: the outbox keeps what waits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotHeld {
    #[error("the broker cannot be reached: {0}")]
    Away(String),
    #[error("the broker refuses: {0}")]
    Refused(String),
    /// It knows the message's name, and does not say that it holds the message.
    #[error("the broker is not done with a message that it was given before")]
    Unsettled,
    #[error("the stream has lost what it had acknowledged")]
    Lost,
    /// It takes messages, and has nowhere to keep this one.
    #[error("no queue takes the message: {0}")]
    Unroutable(String),
}

impl NotHeld {
    const fn name(&self) -> &'static str {
        match self {
            Self::Away(_) => "away",
            Self::Refused(_) => "refused",
            Self::Unsettled => "unsettled",
            Self::Lost => "lost",
            Self::Unroutable(_) => "unroutable",
        }
    }
}

/// That a broker holds a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Receipt {
    /// Where, in its stream. None: it counts none, as a queue does that hands out what it holds.
    pub(crate) position: Option<u64>,
    /// It held it already.
    pub(crate) is_repeated: bool,
}

/// What is at a position of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// The event of that number.
    Event(u64),
    /// Nothing, any more or yet.
    Nothing,
    Anothers,
}

pub(crate) type Acknowledgement = BoxFuture<'static, Result<Receipt, NotHeld>>;

/// A queue outside of the region that keeps messages for whoever listens there.
pub(crate) trait Broker: Send + Sync {
    /// Of the row in which the place is kept: which broker, which stream.
    fn name(&self) -> String;

    /// Another number whenever it was reached anew. What was known of the stream is known of the former connection.
    fn connections(&self) -> u64;

    /// Makes the stream, or finds it and checks that it keeps what it is given. None: it is not there, and nobody could tell
    /// the one that is made now from the one that was; it is to be asked again, and `anew`, when the place is back at the
    /// beginning.
    fn prepare(&self, anew: bool) -> BoxFuture<'_, Result<Option<Sink>, NotHeld>>;

    /// Sends. The acknowledgement is waited for [`ANSWER_WAIT_MAX`] at most, and says that the message is kept as the
    /// settings ask.
    fn send<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Result<Acknowledgement, NotHeld>>;

    /// What is at a position of the stream. Whoever counts none is not asked.
    fn at(&self, position: u64) -> BoxFuture<'_, Result<Found, NotHeld>>;
}

/// What [`Publisher::step`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// There may be more.
    Did,
    Nothing,
    Anothers,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    #[error(transparent)]
    Broker(#[from] NotHeld),
    #[error("the store: {0}")]
    Store(#[from] StoreError),
    /// The world would know of what a standby that takes over does not.
    #[error("the standby does not say that it has them (ack_level = 2)")]
    NotSafe,
    /// The message of the panic is in the log before.
    #[error("the publisher panicked: this is an error of the region's")]
    Panicked,
}

/// The one that hands on.
pub(crate) struct Publisher {
    store: Store,
    broker: Box<dyn Broker>,
    /// Of the events' source and subjects.
    region: String,
    telemetry: Arc<Telemetry>,
    pair: Arc<pair::held::Held>,
    sink: Option<Sink>,
    /// What [`Broker::connections`] said when the sink was looked at.
    looked_at: u64,
    turn: Option<Turn>,
}

impl Publisher {
    pub(crate) fn new(
        store: Store,
        broker: Box<dyn Broker>,
        region: String,
        telemetry: Arc<Telemetry>,
        pair: Arc<pair::held::Held>,
    ) -> Self {
        Self { store, broker, region, telemetry, pair, sink: None, looked_at: 0, turn: None }
    }

    /// The publisher that the settings ask for. The broker need not be there yet.
    pub(crate) async fn set_up(
        config: EventsConfig,
        region: &str,
        store: Store,
        telemetry: Arc<Telemetry>,
        pair: Arc<pair::held::Held>,
    ) -> Result<Option<Self>, String> {
        let broker: Box<dyn Broker> = match config {
            EventsConfig::InProcess => return Ok(None),
            EventsConfig::Nats(nats) => Box::new(Nats::dial(nats, region, Arc::clone(&telemetry)).await?),
            EventsConfig::RabbitMq(rabbitmq) => {
                Box::new(RabbitMq::set_up(rabbitmq, region, Arc::clone(&telemetry)).await?)
            }
        };
        Ok(Some(Self::new(store, broker, region.to_owned(), telemetry, pair)))
    }

    /// Runs until shutdown. What is on its way then comes again.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let mut pace = Pace::default();
        let (mut counted_ms, mut said_ms) = (0, 0);
        loop {
            let step = AssertUnwindSafe(self.step(&clock::now_ms)).catch_unwind();
            let Some(step) = shutdown.run_until_cancelled(step).await else { break };
            let step = step.unwrap_or_else(|_panic| {
                (self.sink, self.turn) = (None, None);
                Err(Trouble::Panicked)
            });
            let now_ms = clock::now_ms();
            let pause = match step {
                Ok(step) => {
                    if pace.succeeded() {
                        tracing::info!(broker = self.broker.name(), "events are handed on again");
                        said_ms = 0;
                    }
                    match step {
                        Step::Did => Duration::ZERO,
                        Step::Nothing => LOOK_EVERY,
                        Step::Anothers => OTHERS_PAUSE,
                    }
                }
                // Closed while it was asked.
                Err(_) if shutdown.is_cancelled() => break,
                Err(trouble) => {
                    if now_ms.saturating_sub(said_ms) >= SAID_EVERY_MS {
                        let broker = self.broker.name();
                        tracing::warn!(broker, %trouble, "events are not handed on; they wait in the outbox");
                        said_ms = now_ms;
                    }
                    pace.failed(rand::random_range(0.0..1.0))
                }
            };
            if now_ms.saturating_sub(counted_ms) >= COUNT_EVERY_MS {
                counted_ms = now_ms;
                if let Ok(waiting) = self.store.waiting_events(self.broker.name()).await {
                    self.telemetry.events_waiting(waiting, now_ms);
                }
            }
            if shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                break;
            }
        }
        if let Some(turn) = self.turn {
            // Another process need not wait for the end of the lease. It would, if this failed.
            let _noted = self.store.note_published(self.broker.name(), turn, true).await;
        }
    }

    /// Hands on what has happened since the place, a batch at most.
    ///
    /// Cancel safe: what was sent is sent again.
    pub(crate) async fn step(&mut self, now_ms: &(dyn Fn() -> u64 + Sync)) -> Result<Step, Trouble> {
        let outcome = self.try_step(now_ms).await;
        if let Err(trouble) = &outcome {
            // Whatever was known of it may be what is wrong.
            self.sink = None;
            if let Trouble::Broker(error) = trouble {
                self.telemetry.event_not_held(error.name());
                // Another process may reach the broker.
                if let Some(turn) = self.turn.take() {
                    self.store.note_published(self.broker.name(), turn, true).await?;
                }
            }
        }
        outcome
    }

    async fn try_step(&mut self, now_ms: &(dyn Fn() -> u64 + Sync)) -> Result<Step, Trouble> {
        let name = self.broker.name();
        let is_fresh = self.sink.is_none() || self.broker.connections() != self.looked_at;
        let mut sink = self.sink(false).await?;
        let look = self.store.look_at_publisher(name.clone()).await?;
        if let Some(progress) = &look.progress
            && progress.stream == sink.stream
            && progress.place >= look.newest
        {
            if progress.last.position > sink.head {
                // Another process may have moved it meanwhile.
                sink = self.sink(true).await?;
            }
            if progress.last.position <= sink.head {
                return Ok(Step::Nothing);
            }
        }
        let held = self.turn.map(|turn| turn.fence);
        let claim = self.store.claim_events(name.clone(), sink.stream.clone(), held, now_ms()).await?;
        let Claim::Ours(mut turn) = claim else {
            self.turn = None;
            return Ok(Step::Anothers);
        };
        self.turn = Some(turn);
        if look.progress.is_some_and(|progress| progress.stream != sink.stream) {
            tracing::warn!(
                broker = name,
                "the stream was made anew: every event that is kept is handed on again"
            );
        }
        if turn.last.position > sink.head {
            sink = self.sink(true).await?;
        }
        if turn.last.position > sink.head {
            return self.begin_again(turn, sink.head).await;
        }
        let was_handed_over = held != Some(turn.fence);
        if (is_fresh || was_handed_over) && turn.last.event > 0 {
            match self.broker.at(turn.last.position).await? {
                // What was kept long enough is gone in peace.
                Found::Nothing => {}
                Found::Event(event) if event == turn.last.event => {}
                // Somebody has written on where the end was lost, and did not live to note it.
                Found::Event(_) | Found::Anothers => return self.begin_again(turn, 0).await,
            }
        }
        let events = self.store.events_after(turn.place, BATCH_MAX).await?;
        let messages: Vec<_> =
            events.iter().map(|(site, event)| Message::of(&self.region, site, event)).collect();
        if !messages.is_empty() {
            // With the sending it is over within the lease.
            match self.pair.demand(&self.store, pair::held::ANSWER_WAIT_MAX).await {
                Ok(()) => {}
                Err(pair::held::NotHeld::Away) => return Err(Trouble::NotSafe),
                Err(pair::held::NotHeld::Store(error)) => return Err(error.into()),
            }
        }
        let sent = self.send_all(&messages, turn, now_ms).await;
        if let Some(position) = sent.behind {
            return self.begin_again(turn, position - 1).await;
        }
        turn.place = sent.place.unwrap_or(turn.place);
        if sent.last.position > turn.last.position {
            turn.last = sent.last;
        }
        self.turn = Some(turn);
        if let Some(sink) = &mut self.sink {
            sink.head = sink.head.max(turn.last.position);
        }
        if let Some(error) = sent.trouble {
            return Err(error.into());
        }
        if !self.store.note_published(name, turn, false).await? {
            self.turn = None;
        }
        Ok(Step::Did)
    }

    /// What is known of the stream, asked again if it may have become wrong.
    async fn sink(&mut self, anew: bool) -> Result<Sink, Trouble> {
        let connections = self.broker.connections();
        if let Some(sink) = &self.sink
            && !anew
            && connections == self.looked_at
        {
            return Ok(sink.clone());
        }
        let name = self.broker.name();
        let fence = self.store.look_at_publisher(name.clone()).await?.progress.map(|progress| progress.fence);
        let sink = match self.broker.prepare(false).await? {
            Some(sink) => sink,
            None => {
                // In this order: whoever dies in between finds nothing there, and does the same again.
                self.turn = None;
                match self.store.forget_published(name.clone(), fence).await? {
                    Forgotten::Nothing => {}
                    Forgotten::Events => tracing::warn!(
                        broker = name,
                        "the queue is gone: every event that is kept is handed on again"
                    ),
                    // He may have noted what the queue held that is gone: it is made when that is forgotten, too.
                    Forgotten::Anothers => {
                        return Err(
                            NotHeld::Away("another process had a turn while it was gone".to_owned()).into()
                        );
                    }
                }
                let made = self.broker.prepare(true).await?;
                made.ok_or_else(|| NotHeld::Away("the queue was made, and is not there".to_owned()))?
            }
        };
        (self.sink, self.looked_at) = (Some(sink.clone()), connections);
        Ok(sink)
    }

    async fn send_all(&self, messages: &[Message], turn: Turn, now_ms: &(dyn Fn() -> u64 + Sync)) -> Sent {
        let mut batch = Batch::new(messages.iter().map(|message| (message.seq, message.order)));
        let mut sent = Sent { place: None, last: Held::default(), behind: None, trouble: None };
        let mut acknowledgements = FuturesUnordered::new();
        let sends_until_ms = now_ms().saturating_add(SENDING_MS);
        loop {
            while sent.trouble.is_none()
                && now_ms() < sends_until_ms
                && let Some(index) = batch.send_next(UNACKNOWLEDGED_MAX)
            {
                match self.broker.send(&messages[index]).await {
                    Ok(acknowledgement) => {
                        acknowledgements.push(async move { (index, acknowledgement.await) });
                    }
                    Err(error) => {
                        batch.failed(index);
                        sent.trouble = Some(error);
                    }
                }
            }
            let Some((index, outcome)) = acknowledgements.next().await else { break };
            match outcome {
                Ok(receipt) => {
                    batch.held(index);
                    self.telemetry.event_held(receipt.is_repeated);
                    let Some(position) = receipt.position else { continue };
                    if position > sent.last.position {
                        sent.last = Held { position, event: messages[index].seq };
                    }
                    // What is new stands behind what was acknowledged before it was sent.
                    if !receipt.is_repeated && position <= turn.last.position {
                        let behind = sent.behind.get_or_insert(position);
                        *behind = (*behind).min(position);
                        sent.trouble.get_or_insert(NotHeld::Lost);
                    }
                }
                Err(error) => {
                    batch.failed(index);
                    sent.trouble.get_or_insert(error);
                }
            }
        }
        sent.place = batch.whole();
        sent
    }

    /// The stream has lost its end (servers that lost power before they had written what they acknowledged), behind `head` if
    /// that is known: goes back to what it still holds. Of one order an event may stand before what is older and of another
    /// one, by as much as a batch.
    async fn begin_again(&mut self, turn: Turn, head: u64) -> Result<Step, Trouble> {
        let name = self.broker.name();
        let still = self.still_holds(head).await;
        tracing::error!(
            broker = name,
            event = still.map(|held| held.event),
            "the stream has lost messages that it had acknowledged: what happened since then is handed on again"
        );
        self.telemetry.event_not_held(NotHeld::Lost.name());
        (self.turn, self.sink) = (None, None);
        self.store.publish_again(name, turn, still, BATCH_MAX).await?;
        Ok(Step::Did)
    }

    /// The newest event up to a position. None: it is not to be found, and everything that is kept goes again.
    async fn still_holds(&self, head: u64) -> Option<Held> {
        for position in (1..=head).rev().take(LOOKED_AT_MAX) {
            match self.broker.at(position).await {
                Ok(Found::Event(event)) => return Some(Held { position, event }),
                Ok(Found::Nothing | Found::Anothers) => {}
                Err(_) => return None,
            }
        }
        None
    }
}

/// What came of a batch.
struct Sent {
    /// The broker holds everything up to this number.
    place: Option<u64>,
    last: Held,
    /// Something new was put here, where something older had been acknowledged.
    behind: Option<u64>,
    trouble: Option<NotHeld>,
}
