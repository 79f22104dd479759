//! Carries the journal to the region: one batch at a time, a few recordings at a time, and never in a shopper's way.
//!
//! A batch whose answer is lost is sent again under the same number, and the region skips what it has. Both loops end
//! with the node, after a last, short try.

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use souk_commerce::call::{JournalBatch, Request, Response};
use souk_commerce::journal::{Entry, Event};
use tokio_util::sync::CancellationToken;

use super::{Journal, Shared};
use crate::http::now_ms;
use crate::uplink::{AskError, Uplink};

/// Entries wait so long for company. Somebody who follows a log reads it this much later; a node sends at most twenty
/// batches a second, 10,000 entries.
const COMPANY: Duration = Duration::from_millis(50);
/// Pause after a try that came to nothing, doubling up to the second value.
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// A region that answers, but not with a yes, has been asked often enough after so many times: what it will not have is
/// counted as lost, so that it does not keep back what comes after it.
const REFUSALS_MAX: u32 = 5;
/// Recordings on their way at a time: each is one call of at most 320 KiB.
const RECORDINGS_AT_ONCE_MAX: usize = 4;
/// What is left of the journal when the node ends may delay that end by so much.
const LAST_TRY_MAX: Duration = Duration::from_secs(1);

/// A way to ask the region; a test has another.
type Ask = dyn Fn(Request) -> BoxFuture<'static, Result<Response, AskError>> + Send + Sync;

/// What became of something that was to be carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Carried,
    Lost,
}

impl Journal {
    /// Carries until shutdown, and a moment longer.
    pub async fn carry(self, uplink: Uplink, shutdown: CancellationToken) {
        let ask = move |request: Request| -> BoxFuture<'static, _> {
            let uplink = uplink.clone();
            Box::pin(async move { uplink.ask(&request).await })
        };
        self.carry_with(&ask, &shutdown).await;
    }

    async fn carry_with(&self, ask: &Ask, shutdown: &CancellationToken) {
        let last_try_over = async {
            shutdown.cancelled().await;
            tokio::time::sleep(LAST_TRY_MAX).await;
        };
        tokio::select! {
            _ = async { tokio::join!(self.carry_entries(ask, shutdown), self.carry_recordings(ask, shutdown)) } => {}
            () = last_try_over => tracing::info!("the end of the plugins' journals is lost: the region does not take it"),
        }
    }

    async fn carry_entries(&self, ask: &Ask, shutdown: &CancellationToken) {
        let shared = &*self.0;
        let (life, mut first) = (rand::random(), 0_u64);
        loop {
            let ends = shutdown.run_until_cancelled(shared.entries_wait.notified()).await.is_none();
            loop {
                let _ends_early = shutdown.run_until_cancelled(tokio::time::sleep(COMPANY)).await;
                let entries = shared.take_entries();
                if entries.is_empty() {
                    break;
                }
                let count = entries.len() as u64;
                let request = Request::Journal(JournalBatch { life, first, entries });
                match insist(ask, &request).await {
                    Fate::Carried => shared.metrics.entries("carried", count),
                    Fate::Lost => shared.lost(&request),
                }
                // Whether or not the region has them: these numbers are used up.
                first += count;
            }
            if ends {
                return;
            }
        }
    }

    async fn carry_recordings(&self, ask: &Ask, shutdown: &CancellationToken) {
        let shared = &*self.0;
        loop {
            let ends = shutdown.run_until_cancelled(shared.recordings_wait.notified()).await.is_none();
            let mut lanes = FuturesUnordered::new();
            loop {
                while lanes.len() < RECORDINGS_AT_ONCE_MAX {
                    let Some(recording) = shared.recordings.lock().pop() else { break };
                    lanes.push(async move { insist(ask, &Request::Recording(recording)).await });
                }
                match lanes.next().await {
                    Some(Fate::Carried) => shared.metrics.recordings("carried"),
                    Some(Fate::Lost) => shared.metrics.recordings("lost"),
                    None => break,
                }
            }
            if ends {
                return;
            }
        }
    }
}

/// Asks until the region has it, or does not want it.
async fn insist(ask: &Ask, request: &Request) -> Fate {
    let (mut pause, mut refusals) = (RETRY_FIRST, 0);
    loop {
        let why = match ask(request.clone()).await {
            Ok(Response::Noted) => return Fate::Carried,
            Ok(Response::NotYet { .. }) | Err(AskError::Away | AskError::Unreachable(_) | AskError::Late) => {
                None
            }
            Ok(Response::Failed { code, .. }) => Some(code),
            Ok(_) => Some("an answer about something else".to_owned()),
            Err(AskError::Failed(why)) => Some(why),
        };
        if let Some(why) = why {
            refusals += 1;
            if refusals == REFUSALS_MAX {
                tracing::warn!(why, "the region does not take a part of the plugins' journals");
                return Fate::Lost;
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_MAX);
    }
}

impl Shared {
    fn take_entries(&self) -> Vec<Entry> {
        let now = self.elapsed_ms();
        let (entries, bytes) = {
            let mut queues = self.queues.lock();
            let entries = queues.take(now_ms(), now);
            if entries.is_empty() {
                queues.forget_idle(now);
            }
            (entries, queues.bytes())
        };
        self.metrics.bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        entries
    }

    /// The region will not have this batch: each of its sites shall know how much that was.
    fn lost(&self, request: &Request) {
        let Request::Journal(batch) = request else { return };
        self.metrics.entries("lost", batch.entries.len() as u64);
        let now = self.elapsed_ms();
        let mut queues = self.queues.lock();
        for entry in &batch.entries {
            let count = match entry.event {
                Event::Dropped { count } => count,
                _ => 1,
            };
            queues.lost(&entry.site, count, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;
    use souk_commerce::id::NodeId;
    use souk_commerce::journal::{CallIds, Level, RecordingBlob, Source};

    use super::super::JournalMetrics;
    use super::*;

    type Answers = Box<dyn Fn(usize) -> Result<Response, AskError> + Send + Sync>;

    /// A region that answers its nth question as it is told, and remembers what it was asked.
    fn region(answers: Answers) -> (Arc<Mutex<Vec<Request>>>, Box<Ask>) {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let answers = Arc::new(answers);
        let seen = Arc::clone(&asked);
        let ask = move |request: Request| -> BoxFuture<'static, _> {
            let (asked, answers) = (Arc::clone(&asked), Arc::clone(&answers));
            Box::pin(async move {
                let n = {
                    let mut asked = asked.lock();
                    asked.push(request);
                    asked.len() - 1
                };
                answers(n)
            })
        };
        (seen, Box::new(ask))
    }

    fn journal() -> Journal {
        Journal::new(NodeId(1), JournalMetrics::default())
    }

    fn entry(text: &str) -> Entry {
        Entry {
            site: "shop".parse().expect("a site"),
            at_ms: 7,
            node: Some(NodeId(1)),
            source: None,
            call: None,
            event: Event::Log { level: Level::Info, text: text.to_owned() },
        }
    }

    fn batches(asked: &[Request]) -> Vec<(u64, usize)> {
        let mut lives = Vec::new();
        let batches = asked.iter().filter_map(|request| match request {
            Request::Journal(batch) => {
                lives.push(batch.life);
                Some((batch.first, batch.entries.len()))
            }
            _ => None,
        });
        let batches = batches.collect();
        assert!(lives.windows(2).all(|two| two[0] == two[1]));
        batches
    }

    /// Carries for so long, by the paused clock.
    async fn carry_for(journal: &Journal, ask: &Ask, time: Duration) {
        let shutdown = CancellationToken::new();
        tokio::join!(journal.carry_with(ask, &shutdown), async {
            tokio::time::sleep(time).await;
            shutdown.cancel();
        });
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_whose_answer_is_lost_is_sent_again_under_its_number() {
        let journal = journal();
        let (asked, ask) = region(Box::new(|n| match n {
            0 => Err(AskError::Late),
            1 => Err(AskError::Away),
            2 => Ok(Response::NotYet { retry_after_ms: 1 }),
            _ => Ok(Response::Noted),
        }));
        let writer = async {
            journal.write(entry("one"));
            journal.write(entry("two"));
            tokio::time::sleep(Duration::from_secs(60)).await;
            journal.write(entry("three"));
        };
        tokio::join!(carry_for(&journal, &*ask, Duration::from_secs(120)), writer);
        assert_eq!(batches(&asked.lock()), [(0, 2), (0, 2), (0, 2), (0, 2), (2, 1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_region_will_not_have_is_a_hole_and_keeps_nothing_back() {
        let journal = journal();
        let (asked, ask) = region(Box::new(|n| match n {
            0..5 => Ok(Response::Failed { code: "no".to_owned(), message: String::new() }),
            _ => Ok(Response::Noted),
        }));
        journal.write(entry("one"));
        journal.write(entry("two"));
        carry_for(&journal, &*ask, Duration::from_secs(60)).await;
        let asked = asked.lock();
        assert_eq!(batches(&asked), [(0, 2), (0, 2), (0, 2), (0, 2), (0, 2), (2, 1)]);
        let Some(Request::Journal(last)) = asked.last() else { panic!("a batch") };
        assert_eq!(last.entries[0].event, Event::Dropped { count: 2 });
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_the_node_waits_for_the_journal_but_not_for_long() {
        let journal = journal();
        let (asked, ask) = region(Box::new(|_| Ok(Response::Noted)));
        let last_words = async {
            tokio::time::sleep(Duration::from_millis(999)).await;
            journal.write(entry("last"));
        };
        tokio::join!(carry_for(&journal, &*ask, Duration::from_secs(1)), last_words);
        assert_eq!(batches(&asked.lock()), [(0, 1)]);

        let (_, deaf) = region(Box::new(|_| Err(AskError::Away)));
        journal.write(entry("never heard"));
        let began = tokio::time::Instant::now();
        carry_for(&journal, &*deaf, Duration::from_secs(1)).await;
        assert_eq!(began.elapsed(), Duration::from_secs(1) + LAST_TRY_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn recordings_are_carried_beside_the_entries() {
        let journal = journal();
        let (asked, ask) =
            region(Box::new(|n| if n == 0 { Err(AskError::Late) } else { Ok(Response::Noted) }));
        let ids = CallIds::new(1);
        let plugin: souk_commerce::id::PluginName = "pricing".parse().expect("a plugin");
        for _ in 0..20 {
            journal.keep(RecordingBlob {
                id: ids.next(5),
                site: "shop".parse().expect("a site"),
                source: Source { plugin: plugin.clone(), release: 1, hook: None },
                at_ms: 5,
                bytes: vec![1; 1_000],
            });
        }
        carry_for(&journal, &*ask, Duration::from_secs(10)).await;
        let asked = asked.lock();
        let ids: std::collections::BTreeSet<_> = asked
            .iter()
            .filter_map(|request| match request {
                Request::Recording(recording) => Some(recording.id),
                _ => None,
            })
            .collect();
        assert_eq!((ids.len(), asked.len()), (20, 21), "one was asked for twice");
    }
}
