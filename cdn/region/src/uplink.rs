//! What nodes may ask of a region: the link's view of the store, and the meaning of its calls.

use std::sync::Arc;
use std::time::{Duration, Instant};

use souk_commerce::call::{
    HOLDS_MAX, JournalBatch, RESERVE_WANTS_MAX, Request, ReserveRequest, Response, STOCK_PRODUCTS_MAX,
    StockQuestion,
};
use souk_commerce::id::{CartId, Epoch, GrantId, NodeId, OrderId, SiteId};
use souk_commerce::journal::{BATCH_ENTRIES_MAX, RECORDING_BYTES_MAX, RecordingBlob};
use souk_link::{
    Batch, BoxFuture, Call, EpochNo, Heads, Hello, Log, Mark, Node, NodeState, Part, Refusal, RegionStore,
    Reply, SnapshotPage, StoreError as LinkStoreError, Tail, TailRead, limits,
};
use souk_replication::{EpochDecision, Gone, Term, decide_epoch, reckon};
use souk_sandbox::record::Recording;
use tokio::sync::watch;

use crate::blobs::BlobError;
use crate::checkout::{Checkouts, RETRY_AFTER_MS};
use crate::digests::Digests;
use crate::journal::Journal;
use crate::lending::{Lending, Lent};
use crate::obeyed::Obeyed;
use crate::pair::held::{ANSWER_WAIT_MAX, APPLY_WAIT_MAX, Held, NotHeld};
use crate::pair::rumour::Rumours;
use crate::rollout::Rollout;
use crate::store::cart::Apply;
use crate::store::escrow::StockAnswer;
use crate::store::log::{PageMax, Run};
use crate::store::{Store, StoreError};
use crate::telemetry::Telemetry;

/// The only method there is: the request says what it asks. Other numbers are for other protocols to come.
const METHOD_ASK: u16 = 1;
/// Schemas of operations that the store reads. A new one is read here a release before any node writes it.
pub(crate) const OPERATION_SCHEMAS: [u16; 1] = [1];
/// Longest name of a place or of a program that a node may give itself: it is stored and shown.
const NAME_CHARS_MAX: usize = 64;

pub(crate) struct Uplink {
    pub(crate) store: Store,
    pub(crate) blobs: Lending,
    pub(crate) checkouts: Checkouts,
    pub(crate) journal: Journal,
    pub(crate) rollout: Arc<Rollout>,
    pub(crate) obeyed: Arc<Obeyed>,
    pub(crate) digests: Digests,
    pub(crate) telemetry: Arc<Telemetry>,
    /// What the standby holds.
    pub(crate) held: Arc<Held>,
    /// What nodes say of a later home.
    pub(crate) rumours: Arc<Rumours>,
    /// How long a question waits for the outbox that it depends on.
    pub(crate) wait_max: Duration,
}

/// An answer that could not be found out; the details are for our log only.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Blob(#[from] BlobError),
}

fn to_link(error: StoreError) -> LinkStoreError {
    if error.is_transient() {
        LinkStoreError::Busy(error.to_string())
    } else {
        LinkStoreError::Failed(error.to_string())
    }
}

fn unheld(error: NotHeld) -> LinkStoreError {
    match error {
        NotHeld::Away => LinkStoreError::Busy(error.to_string()),
        NotHeld::Store(error) => to_link(error),
    }
}

/// A name that a node gives, fit to be stored and shown.
fn tame(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(NAME_CHARS_MAX).collect()
}

impl Uplink {
    async fn apply_batch(&self, node: Node, batch: Batch) -> Result<Mark, LinkStoreError> {
        let started = Instant::now();
        let epoch = batch.epoch;
        let outcome =
            self.store.apply_batch(node, batch.epoch, batch.first_seq, batch.ops).await.map_err(to_link)?;
        self.telemetry.apply_seconds.observe(started.elapsed().as_secs_f64());
        match outcome {
            Apply::Applied(applied) => {
                self.telemetry.batch("applied");
                self.telemetry.applied(&applied);
            }
            // The mark says where to go on; the session asks for the missing operations.
            Apply::Gap { hwm } => {
                self.telemetry.batch("gap");
                tracing::debug!(node, epoch, hwm, "operations are missing before a batch");
            }
            Apply::NotOpen => {
                self.telemetry.batch("epoch_not_open");
                return Err(LinkStoreError::Failed(format!(
                    "epoch {epoch} of node {node} takes no operations"
                )));
            }
        }
        // As of the last commit, so at least as far as this one; and before it is asked what the standby has: another process may
        // commit more of this node's while we wait.
        let mark = self.store.marks().get(node, epoch);
        self.held.demand(&self.store, APPLY_WAIT_MAX).await.map_err(unheld)?;
        mark.ok_or_else(|| LinkStoreError::Failed(format!("epoch {epoch} of node {node} has no mark")))
    }

    async fn fetch_cart(
        &self,
        site: SiteId,
        cart: CartId,
        min: Option<(NodeId, Epoch, u64)>,
    ) -> Result<Response, AskError> {
        if let Some((NodeId(node), Epoch(epoch), seq)) = min {
            let reached = self.store.marks().reached(node, epoch, seq);
            if tokio::time::timeout(self.wait_max, reached).await.is_err()
                && self.store.is_open(node, epoch).await?
            {
                return Ok(Response::NotYet { retry_after_ms: RETRY_AFTER_MS });
            }
            // In a sealed epoch nothing arrives any more: its rest comes under a new number. What we have is the answer.
        }
        let row = self.store.cart(site, cart).await?;
        Ok(match row {
            Some(row) => Response::Cart { state: Some(row.state), order: row.order, pending: row.pending },
            None => Response::Cart { state: None, order: None, pending: None },
        })
    }

    /// Whether what this region has just done, or looked up, is the standby's too.
    async fn is_safe(&self) -> Result<bool, StoreError> {
        match self.held.demand(&self.store, ANSWER_WAIT_MAX).await {
            Ok(()) => Ok(true),
            Err(NotHeld::Away) => Ok(false),
            Err(NotHeld::Store(error)) => Err(error),
        }
    }

    async fn order(&self, site: SiteId, order: OrderId) -> Result<Response, AskError> {
        let found = self.store.order(order).await?;
        if !self.is_safe().await? {
            return Ok(Response::NotYet { retry_after_ms: RETRY_AFTER_MS });
        }
        // Whoever knows another shop's order number must not learn that it exists.
        Ok(found.filter(|order| order.site == site).map_or(Response::NotFound, Response::Placed))
    }

    /// A part of the journal of the node's plugins.
    async fn note(&self, node: Node, batch: JournalBatch) -> Result<Response, AskError> {
        if batch.entries.len() > BATCH_ENTRIES_MAX {
            let message = format!("{} entries are more than {BATCH_ENTRIES_MAX}", batch.entries.len());
            return Ok(Response::Failed { code: "batch_too_large".to_owned(), message });
        }
        self.journal.write_batch(NodeId(node), batch).await?;
        Ok(Response::Noted)
    }

    async fn keep(&self, node: Node, recording: RecordingBlob) -> Result<Response, AskError> {
        let bytes = recording.bytes.len();
        if bytes > RECORDING_BYTES_MAX {
            let message = format!("{bytes} bytes are more than {RECORDING_BYTES_MAX}");
            return Ok(Response::Failed { code: "recording_too_large".to_owned(), message });
        }
        // It may have waited at the node while its shopper was erased.
        let seed = Recording::decode(&recording.bytes).map(|it| it.context.seed);
        if let Ok(seed) = seed
            && self.store.is_erased_seed(recording.site.clone(), seed).await?
        {
            return Ok(Response::Noted);
        }
        self.journal.keep(Some(NodeId(node)), recording).await?;
        Ok(Response::Noted)
    }

    /// Units for a cart, out of what is free here.
    async fn reserve(&self, node: Node, request: ReserveRequest) -> Result<Response, AskError> {
        let ReserveRequest { site, cart, known, wants, after } = request;
        if wants.len() > RESERVE_WANTS_MAX || known.len() > HOLDS_MAX {
            let message = format!("{} products and {} holds are too many", wants.len(), known.len());
            return Ok(Response::Failed { code: "reservation_too_large".to_owned(), message });
        }
        if let Some((Epoch(epoch), seq)) = after {
            let reached = self.store.marks().reached(node, epoch, seq);
            if tokio::time::timeout(self.wait_max, reached).await.is_err() {
                return Ok(Response::NotYet { retry_after_ms: RETRY_AFTER_MS });
            }
        }
        let Some(promised) = self.store.reserve_stock(site, cart, known, wants).await? else {
            return Ok(Response::NotOffered);
        };
        if !self.is_safe().await? {
            return Ok(Response::NotYet { retry_after_ms: RETRY_AFTER_MS });
        }
        for promised in &promised {
            let outcome = match (promised.uncounted, promised.holds.is_empty()) {
                (true, _) => "uncounted",
                (_, true) => "short",
                (_, false) => "promised",
            };
            self.telemetry.reservation(outcome, 1);
        }
        Ok(Response::Reserved(promised))
    }

    /// What the node has of lent stock from now on.
    async fn stock(&self, node: Node, question: StockQuestion) -> Result<Response, AskError> {
        if question.open.len() > STOCK_PRODUCTS_MAX || question.wanted.len() > STOCK_PRODUCTS_MAX {
            let message =
                format!("{} grants and {} products are too many", question.open.len(), question.wanted.len());
            return Ok(Response::Failed { code: "question_too_large".to_owned(), message });
        }
        let mut answer = self.store.answer_on_stock(node, question, || GrantId(rand::random())).await?;
        // Units that the standby does not know to be lent are not lent: the node asks again.
        if !self.is_safe().await? {
            answer = StockAnswer::NotYet;
        }
        let (outcome, response) = match answer {
            StockAnswer::NotYet => ("not_yet", Response::NotYet { retry_after_ms: RETRY_AFTER_MS }),
            StockAnswer::Old(turn) => ("old", Response::Stock { older_than: Some(turn), grants: Vec::new() }),
            StockAnswer::Grants(grants) => ("answered", Response::Stock { older_than: None, grants }),
        };
        self.telemetry.stock_question(outcome);
        Ok(response)
    }

    /// The answer, encoded: a blob is encoded once for all who ask.
    async fn reply(&self, node: Node, request: Request) -> Result<Reply, AskError> {
        let response = match request {
            Request::Blob { digest } => match self.blobs.lend(digest).await? {
                Lent::Reply(body) => return Ok(Reply { body }),
                Lent::Absent => Response::NotFound,
                Lent::Busy => Response::NotYet { retry_after_ms: RETRY_AFTER_MS },
            },
            Request::FetchCart { site, cart, min } => self.fetch_cart(site, cart, min).await?,
            Request::Checkout(request) => self.checkouts.check_out(node, request).await,
            Request::Order { site, order } => self.order(site, order).await?,
            Request::Journal(batch) => self.note(node, batch).await?,
            Request::Recording(recording) => self.keep(node, recording).await?,
            Request::Running { whole, chains } => {
                self.rollout.report(node, whole, chains);
                Response::Noted
            }
            Request::Reserve(request) => self.reserve(node, request).await?,
            Request::Stock(question) => self.stock(node, question).await?,
            Request::Digests => Response::Digests(self.digests.recent().await),
        };
        Ok(Reply { body: response.to_bytes().into() })
    }
}

impl RegionStore for Uplink {
    fn hello(&self, node: Node, hello: Hello) -> BoxFuture<'_, Result<Option<NodeState>, LinkStoreError>> {
        Box::pin(async move {
            if hello.diverged {
                tracing::error!(
                    node,
                    epoch = hello.epoch,
                    "a node's outbox is not the one that this region knows: its disk was restored; it gets a new epoch"
                );
            }
            let kept =
                self.store.greet(node, tame(&hello.pop), tame(&hello.software)).await.map_err(to_link)?;
            let gone = reckon(&hello, kept);
            for Gone { epoch, first, last } in &gone {
                let pop = tame(&hello.pop);
                match last {
                    Some(last) => tracing::error!(
                        "node {node} ({pop}): operations {first}-{last} of epoch {epoch} are gone"
                    ),
                    None => tracing::error!(
                        "node {node} ({pop}): operations from {first} of epoch {epoch} on may be gone: the node has moved on"
                    ),
                }
            }
            if !gone.is_empty() {
                self.store.note_gone(node, gone).await.map_err(to_link)?;
            }
            match (kept, self.held.demand(&self.store, ANSWER_WAIT_MAX).await) {
                (kept, Ok(())) => Ok(kept),
                // The standby would not know its new epoch: none is begun, and it comes again.
                (kept, Err(error @ NotHeld::Away))
                    if matches!(decide_epoch(&hello, kept), EpochDecision::Mint(_)) =>
                {
                    Err(unheld(error))
                }
                // Purges and prices reach the node all the same.
                (kept, Err(NotHeld::Away)) => Ok(kept.map(|kept| self.held.told(&hello, kept))),
                (_, Err(error @ NotHeld::Store(_))) => Err(unheld(error)),
            }
        })
    }

    fn begin_epoch(&self, node: Node, epoch: EpochNo) -> BoxFuture<'_, Result<(), LinkStoreError>> {
        Box::pin(async move {
            if self.store.begin_epoch(node, epoch).await.map_err(to_link)? {
                tracing::info!(node, epoch, "a node begins a new epoch");
                // Else a home that takes over would not know it, and take what was sent in the one before for lost.
                self.held.demand(&self.store, ANSWER_WAIT_MAX).await.map_err(unheld)
            } else {
                Err(LinkStoreError::Failed(format!("node {node} has an epoch above {epoch} already")))
            }
        })
    }

    fn apply(&self, node: Node, batch: Batch) -> BoxFuture<'_, Result<Mark, LinkStoreError>> {
        Box::pin(self.apply_batch(node, batch))
    }

    fn log_changed(&self) -> watch::Receiver<Heads> {
        self.store.log_heads()
    }

    fn tail(&self, log: Log, from: u64, bytes_max: usize) -> BoxFuture<'_, Result<TailRead, LinkStoreError>> {
        Box::pin(async move {
            let page = PageMax { records: limits::TAIL_RECORDS_MAX, bytes: bytes_max };
            Ok(match self.store.changes(log, from, page).await.map_err(to_link)? {
                Run::Changes { to, records } => {
                    TailRead::Tail(Tail { log, from, to, part: Part::Changes, records, next: None })
                }
                Run::TooFarBehind => TailRead::Gone,
            })
        })
    }

    fn snapshot(
        &self,
        log: Log,
        resume: Option<Vec<u8>>,
        bytes_max: usize,
    ) -> BoxFuture<'_, Result<SnapshotPage, LinkStoreError>> {
        Box::pin(async move {
            let page = PageMax { records: limits::TAIL_RECORDS_MAX, bytes: bytes_max };
            self.store.snapshot(log, resume, page).await.map_err(to_link)
        })
    }

    fn call(&self, node: Node, call: Call) -> BoxFuture<'_, Result<Reply, Refusal>> {
        Box::pin(async move {
            if call.method != METHOD_ASK {
                let message = format!("this region knows no method {}", call.method);
                return Err(Refusal { code: "method_unknown".to_owned(), message });
            }
            let request = Request::from_bytes(&call.body).map_err(|error| {
                tracing::warn!(node, method = call.method, %error, "a node asks what we do not understand");
                Refusal { code: "request_unreadable".to_owned(), message: error.to_string() }
            })?;
            Ok(self.reply(node, request).await.unwrap_or_else(|error| {
                tracing::error!(node, %error, "a question of a node failed");
                let response = match error {
                    AskError::Store(error) if error.is_transient() => {
                        Response::NotYet { retry_after_ms: RETRY_AFTER_MS }
                    }
                    _ => Response::Failed {
                        code: "region_failed".to_owned(),
                        message: "The region could not answer.".to_owned(),
                    },
                };
                Reply { body: response.to_bytes().into() }
            }))
        })
    }

    fn later_home_named(&self, node: Node, met: Term) {
        self.rumours.hear(node, met);
    }

    fn applied(&self, node: Node, log: Log, version: u64) {
        tracing::trace!(node, %log, version, "a node has applied");
        if log == Log::Purge {
            self.obeyed.acknowledged(node, version);
        }
    }
}
