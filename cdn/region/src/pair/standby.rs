//! A region that is not home: it follows the home, and takes over when an operator says so; or it was replaced, and says that.
//!
//! It serves no node and no merchant. Its link takes the other region of the pair only and sends nodes away by name; its control API
//! says how it is, and takes the one command there is. What becomes of it then, [`crate::running`] raises from the store's new word.
//! How files come that rows name: [`files`].

mod files;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use minicbor::bytes::ByteArray;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use souk_config::RegionConfig;
use souk_link::{
    Batch, BoxFuture, Call, EpochNo, Heads, Hello, Log, Mark, Node, NodeState, PeerConnection, PeerDialer,
    Refusal, RegionStore, Reply, SnapshotPage, StoreError as LinkStoreError, TailRead, Term,
};
use subtle::ConstantTimeEq as _;
use tokio::sync::{Mutex as AsyncMutex, Notify, mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::home::{ask, greet, hear};
use super::rules::{Verdict, meet};
use crate::blobs::Blobs;
use crate::control::problem_of_standby;
use crate::store::KekFile;
use crate::store::backup::Door;
use crate::store::pair::frame::{Down, Greeting, Held as HeldFrame, Holds, PROTOCOL, decode, encode};
use crate::store::pair::sink::{Sink, SinkError, Taken};
use crate::store::pair::standing::{Followed, NotSo, Standing, TakenOver};
use crate::telemetry::PairMetrics;
use files::FILES_PAUSE;

/// Between two tries to reach the home.
const REDIAL_PAUSE: Duration = Duration::from_secs(1);
/// Longest of them while this end cannot take in what it is sent (a full disk): each try may be a copy of everything.
const REDIAL_PAUSE_MAX: Duration = Duration::from_secs(30);
/// A home that sends nothing for so long, not even that nothing has changed, reads a large table, or is gone.
const SILENT_MAX: Duration = Duration::from_secs(35);
/// How long the other region may take to say that it is home, before it is taken over by force: a dialling and an answer, each over
/// the slowest line that a pair is for.
const LATER_HOME_WAIT_MAX: Duration = Duration::from_secs(5);

/// What is known of the following, for whoever looks.
#[derive(Debug, Clone, Default)]
struct Shown {
    is_connected: bool,
    /// Why not, or what else is wrong.
    trouble: Option<String>,
    /// When the home was last heard to have nothing more, by the clock of this machine.
    equal_at: Option<Instant>,
    /// The home's clock as it was heard last, and when.
    heard: Option<(u64, Instant)>,
    rows: u64,
    files_missing: u64,
}

/// Why the home is not followed any more.
enum Ended {
    /// This end could not take in what was sent.
    Untaken(String),
    /// Anything else: the home may be back in a moment.
    Unfollowed(String),
}

/// A region that is not home.
pub(crate) struct NotHome {
    config: Arc<RegionConfig>,
    pub(crate) region: String,
    pub(crate) operator_token_sha256: [u8; 32],
    pub(crate) door: Door,
    pub(crate) blobs: Arc<Blobs>,
    pub(crate) kek: KekFile,
    pub(crate) seal_key: String,
    /// None: it does not follow.
    pub(crate) dialer: Option<PeerDialer>,
    standing: Mutex<Standing>,
    shown: Mutex<Shown>,
    /// Held while a frame is taken in, and while the store changes hands.
    sink: Option<Arc<AsyncMutex<Option<Sink>>>>,
    files: Notify,
    metrics: PairMetrics,
    /// Cancelled when the store has become something else.
    ended: CancellationToken,
}

/// The parts of a [`NotHome`], named.
pub(crate) struct NotHomeParts {
    pub(crate) config: Arc<RegionConfig>,
    pub(crate) door: Door,
    pub(crate) standing: Standing,
    pub(crate) blobs: Arc<Blobs>,
    pub(crate) kek: KekFile,
    pub(crate) seal_key: String,
    pub(crate) dialer: Option<PeerDialer>,
    pub(crate) sink: Option<Sink>,
    pub(crate) ended: CancellationToken,
}

impl NotHome {
    pub(crate) fn new(parts: NotHomeParts) -> Arc<Self> {
        let NotHomeParts { config, door, standing, blobs, kek, seal_key, dialer, sink, ended } = parts;
        Arc::new(Self {
            region: config.region.name.clone(),
            operator_token_sha256: config.control.operator_token_sha256,
            config,
            door,
            blobs,
            kek,
            seal_key,
            dialer,
            standing: Mutex::new(standing),
            shown: Mutex::default(),
            sink: sink.map(|sink| Arc::new(AsyncMutex::new(Some(sink)))),
            files: Notify::new(),
            metrics: PairMetrics::new(),
            ended,
        })
    }

    /// Why a node is sent away.
    pub(crate) fn why_closed(standing: Standing) -> String {
        match standing {
            Standing::Replaced { term, by } => {
                format!(
                    "this was the region's home in term {term}, and another one has replaced it (term {by})"
                )
            }
            _ => "this region follows the home, which is elsewhere".to_owned(),
        }
    }

    fn holds(&self) -> Option<Holds> {
        match *self.standing.lock() {
            Standing::Standby { followed: Some(Followed { stream, seq, .. }), .. } => {
                Some(Holds { stream: ByteArray::from(stream), seq })
            }
            _ => None,
        }
    }

    fn greeting(&self, follows: bool) -> Greeting {
        let holds = self.holds();
        let standing = *self.standing.lock();
        Greeting {
            protocol: PROTOCOL,
            role: standing.name().to_owned(),
            term: standing.term(),
            software: concat!("souk ", env!("CARGO_PKG_VERSION")).to_owned(),
            holds,
            seal_key: None,
            follows,
            stream: None,
        }
    }

    /// Answers the other region when it asks, and follows it, until the store has become something else.
    pub(crate) async fn run(self: Arc<Self>, mut peers: mpsc::Receiver<PeerConnection>) {
        let ended = self.ended.clone();
        let answering = async {
            while let Some(peer) = peers.recv().await {
                match hear(&peer, &self.greeting(false)).await {
                    Ok((other, _)) => {
                        tracing::debug!(role = other.role, term = other.term, "the other region has asked")
                    }
                    Err(why) => tracing::debug!(why, "the other region is not understood"),
                }
                let _ended = timeout(FILES_PAUSE, peer.closed()).await;
            }
            std::future::pending::<()>().await;
        };
        let following = async {
            let Some(dialer) = self.dialer.clone() else { return std::future::pending().await };
            if self.sink.is_none() {
                return std::future::pending().await;
            }
            let (mut said, mut pause) = (String::new(), REDIAL_PAUSE);
            loop {
                let ended = self.follow(&dialer).await;
                pause = match &ended {
                    Ended::Untaken(_) => (pause * 2).min(REDIAL_PAUSE_MAX),
                    Ended::Unfollowed(_) => REDIAL_PAUSE,
                };
                let (Ended::Untaken(why) | Ended::Unfollowed(why)) = ended;
                if let Some(sink) = &self.sink
                    && let Some(sink) = sink.lock().await.as_mut()
                {
                    sink.give_up();
                }
                if why != said {
                    tracing::warn!(why, "the home is not followed at the moment");
                    said.clone_from(&why);
                }
                self.not_followed(why);
                tokio::time::sleep(pause).await;
            }
        };
        tokio::select! {
            () = ended.cancelled() => {}
            () = answering => {}
            () = following => {}
        }
        if let Some(dialer) = &self.dialer {
            dialer.close().await;
        }
    }

    fn not_followed(&self, why: String) {
        let mut shown = self.shown.lock();
        (shown.is_connected, shown.trouble) = (false, Some(why));
    }

    /// Reads again how far the store is. Of a commit whose answer was lost nobody knows whether it was one, and the home has to go on
    /// from what is on the disk.
    async fn look_again(&self) -> Result<(), Ended> {
        let door = self.door.clone();
        let read = tokio::task::spawn_blocking(move || door.standing()).await;
        let read = read.map_err(|error| Ended::Unfollowed(error.to_string()))?;
        match read.map_err(|error| Ended::Unfollowed(error.to_string()))? {
            standing @ Standing::Standby { .. } => {
                *self.standing.lock() = standing;
                Ok(())
            }
            Standing::Home { .. } | Standing::Replaced { .. } => {
                // Another process over the same database was told to take over.
                self.ended.cancel();
                Err(Ended::Unfollowed(SinkError::NotStandby.to_string()))
            }
        }
    }

    /// Follows the home for as long as a connection holds. Returns why it came to an end.
    async fn follow(&self, dialer: &PeerDialer) -> Ended {
        if let Err(ended) = self.look_again().await {
            return ended;
        }
        let peer = match dialer.dial().await {
            Ok(peer) => peer,
            Err(fault) => return Ended::Unfollowed(fault.to_string()),
        };
        let (home, stream) = match greet(&peer, &self.greeting(true)).await {
            Ok(greeted) => greeted,
            Err(why) => return Ended::Unfollowed(why),
        };
        let standing = *self.standing.lock();
        match meet(standing, None, &home) {
            Verdict::Follow => {}
            Verdict::Stay(why) => return Ended::Unfollowed(why.to_owned()),
            other => {
                let (role, term) = (&home.role, home.term);
                return Ended::Unfollowed(format!("the other region is {role} in term {term}: {other:?}"));
            }
        }
        if home.seal_key.as_ref() != Some(&self.seal_key) {
            return Ended::Unfollowed(format!(
                "the home vouches for its releases with key {}, and this region has {}: give it the same ([control] seal_key)",
                home.seal_key.as_deref().unwrap_or("none"),
                self.seal_key
            ));
        }
        tracing::info!(peer = %peer.remote(), software = home.software, term = home.term, "the home is followed");
        {
            let mut shown = self.shown.lock();
            (shown.is_connected, shown.trouble) = (true, None);
        }
        self.files.notify_one();
        let (mut sender, mut receiver) = stream.split();
        let rows = async {
            loop {
                let frame = match timeout(SILENT_MAX, receiver.receive()).await {
                    Ok(Ok(frame)) => frame,
                    Ok(Err(error)) => {
                        let why = PeerDialer::why_closed(&peer);
                        return Ended::Unfollowed(
                            why.map_or_else(|| error.to_string(), |why| why.to_string()),
                        );
                    }
                    Err(_) => return Ended::Unfollowed("the home says nothing any more".to_owned()),
                };
                let frame: Down = match decode(&frame) {
                    Ok(frame) => frame,
                    Err(why) => return Ended::Unfollowed(why),
                };
                match self.take(frame).await {
                    Ok(None) => {}
                    Ok(Some(held)) => {
                        if let Err(error) = sender.send(&encode(&held)).await {
                            return Ended::Unfollowed(error.to_string());
                        }
                    }
                    Err(SinkError::NotStandby) => {
                        // Another process over the same database was told to take over.
                        self.ended.cancel();
                        return Ended::Unfollowed(SinkError::NotStandby.to_string());
                    }
                    Err(error) => {
                        tracing::error!(%error, "what the home sends cannot be taken in");
                        return Ended::Untaken(error.to_string());
                    }
                }
            }
        };
        tokio::select! {
            ended = rows => ended,
            never = self.fetch_files(&peer) => match never {},
        }
    }

    /// Takes a frame in; answers what the home is to be told.
    async fn take(&self, frame: Down) -> Result<Option<HeldFrame>, SinkError> {
        let count = match &frame {
            Down::Rows { count, .. } => u64::from(*count),
            _ => 0,
        };
        let kek = matches!(frame, Down::End { .. }).then(|| self.kek.clone());
        let sink = Arc::clone(self.sink.as_ref().ok_or(SinkError::NotStandby)?);
        // Held by the thread until it is done, whoever still waits for it: whoever takes over waits for that.
        let mut held = sink.lock_owned().await;
        let work = move || {
            let Some(sink) = held.as_mut() else { return (Err(SinkError::NotStandby), None) };
            let taken = sink.take(frame);
            (taken, kek.map(|kek| sink.demand_opens_with(&kek)))
        };
        let (taken, opens) = tokio::task::spawn_blocking(work)
            .await
            .map_err(|e| SinkError::Frame(format!("taking a frame in panicked: {e}")))?;
        let mut shown = self.shown.lock();
        shown.rows += count;
        if let Some(Err(error)) = opens {
            if shown.trouble.is_none() {
                tracing::error!(%error, "this standby could not take over");
            }
            shown.trouble = Some(error.to_string());
        }
        match taken? {
            Taken::More => Ok(None),
            Taken::Idle { at_ms } => {
                (shown.equal_at, shown.heard) = (Some(Instant::now()), Some((at_ms, Instant::now())));
                drop(shown);
                // The home hears that this end lives.
                Ok(self.holds().map(|Holds { seq, .. }| HeldFrame { seq }))
            }
            Taken::Held { followed, names_blobs } => {
                (shown.equal_at, shown.heard) =
                    (Some(Instant::now()), Some((followed.at_ms, Instant::now())));
                drop(shown);
                let mut standing = self.standing.lock();
                *standing =
                    Standing::Standby { followed: Some(followed), met: standing.term().max(followed.term) };
                drop(standing);
                if names_blobs {
                    self.files.notify_one();
                }
                Ok(Some(HeldFrame { seq: followed.seq }))
            }
        }
    }

    /// The term of a home that replaced this region and lives: taken over by force, it would keep orders that nobody else has. None
    /// too if it cannot be asked, as one that is gone.
    async fn later_home(&self) -> Option<Term> {
        let Standing::Replaced { term, .. } = *self.standing.lock() else { return None };
        let pair = self.config.pair.as_ref()?;
        let dialer = super::dialer(&self.config, pair)
            .inspect_err(
                |error| tracing::warn!(%error, "the other region cannot be asked whether it is home"),
            )
            .ok()?;
        let other = ask(&dialer, &self.greeting(false), LATER_HOME_WAIT_MAX).await;
        dialer.close().await;
        let home = Standing::Home { term }.name();
        other.filter(|other| other.role == home && other.term > term).map(|other| other.term)
    }

    /// Makes this region the home. Waits until no frame is being taken in; none is any more after that.
    async fn take_over(&self, by: serde_json::Value, force: bool) -> Result<TakenOver, Response> {
        let refused = |code: &'static str, why: String| {
            problem_of_standby(StatusCode::CONFLICT, code, "This region cannot take over", why)
        };
        if force && let Some(term) = self.later_home().await {
            let why = format!(
                "the other region is home in term {term} and answers: stop it first, and back it up, for what it alone has taken; or \
                 make this one follow it (souk region follow)"
            );
            return Err(refused("home_lives", why));
        }
        let mut sink = match &self.sink {
            Some(sink) => Some(sink.lock().await),
            None => None,
        };
        if let Some(sink) = sink.as_mut().and_then(|guard| guard.as_mut()) {
            sink.give_up();
            if let Err(error) = sink.demand_opens_with(&self.kek) {
                return Err(refused("keys_missing", error.to_string()));
            }
        }
        let door = self.door.clone();
        let taken = tokio::task::spawn_blocking(move || door.take_over(&by, force)).await;
        match taken {
            Ok(Ok(Ok(taken))) => {
                // For good: whoever still has a frame finds nothing to put it into.
                if let Some(guard) = sink.as_mut() {
                    **guard = None;
                }
                Ok(taken)
            }
            Ok(Ok(Err(why))) => {
                let code = match why {
                    NotSo::Home(_) => "home_already",
                    NotSo::Empty => "nothing_followed",
                    NotSo::Replaced { .. } => "replaced",
                    NotSo::Inhabited(_) => "inhabited",
                    NotSo::Exhausted => "terms_exhausted",
                };
                Err(refused(code, why.to_string()))
            }
            Ok(Err(error)) => Err(problem_of_standby(
                StatusCode::SERVICE_UNAVAILABLE,
                "store_busy",
                "The store does not answer",
                error.to_string(),
            )),
            Err(error) => Err(problem_of_standby(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                "The region failed",
                error.to_string(),
            )),
        }
    }

    /// How it is, for people and programs.
    fn status(&self) -> PairStatus {
        let (standing, shown) = (*self.standing.lock(), self.shown.lock().clone());
        let as_of_ms = match standing {
            Standing::Standby { followed, .. } => followed.map(|followed| followed.at_ms),
            _ => None,
        };
        PairStatus {
            region: self.region.clone(),
            role: standing.name(),
            term: standing.term(),
            ack_level: None,
            connected: shown.is_connected,
            trouble: shown.trouble,
            lag_rows: None,
            lag_ms: shown.equal_at.map(|at| millis(at.elapsed())),
            as_of_ms,
            files_missing: Some(shown.files_missing),
            later_home_named: None,
        }
    }
}

fn millis(of: Duration) -> u64 {
    u64::try_from(of.as_millis()).unwrap_or(u64::MAX)
}

/// How a region of a pair is: `GET /v1/pair` of either.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct PairStatus {
    pub(crate) region: String,
    pub(crate) role: &'static str,
    /// The term that it is home in, or of the home that it knows.
    pub(crate) term: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ack_level: Option<u8>,
    /// Of a home: a standby follows. Of a standby: it follows.
    pub(crate) connected: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) trouble: Option<String>,
    /// Of a home: what its standby lacks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) lag_rows: Option<u64>,
    /// For how long the standby has lacked something, as far as this region knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) lag_ms: Option<u64>,
    /// Of a standby: the moment that it would go on from, by the home's clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) as_of_ms: Option<u64>,
    /// Of a standby: files that rows name and that are not here yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) files_missing: Option<u64>,
    /// Of a home: how often it has rejected a node that says it has met a later one, since start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) later_home_named: Option<u64>,
}

/// What a region that is not home answers by HTTP.
pub(crate) fn router(region: Arc<NotHome>) -> Router {
    Router::new()
        .route("/v1/pair", get(pair))
        .route("/v1/status", get(pair))
        .route("/v1/takeover", post(takeover))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(not_ready))
        .route("/metrics", get(metrics))
        .fallback(not_ready)
        .with_state(region)
}

/// The operator's name, as the audit log has it.
#[expect(clippy::result_large_err, reason = "the refusal is the answer")]
fn operator(region: &NotHome, headers: &HeaderMap) -> Result<String, Response> {
    let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = value
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let hash: Option<[u8; 32]> = token.map(|(_, token)| Sha256::digest(token.trim().as_bytes()).into());
    match hash {
        Some(hash) if bool::from(hash.ct_eq(&region.operator_token_sha256)) => {
            Ok(format!("operator:{}", &hex::encode(hash)[..12]))
        }
        _ => Err(problem_of_standby(
            StatusCode::UNAUTHORIZED,
            "unauthorized",
            "Not allowed",
            "A region that is not home knows the operator's token only.".to_owned(),
        )),
    }
}

async fn pair(State(region): State<Arc<NotHome>>, headers: HeaderMap) -> Response {
    match operator(&region, &headers) {
        Ok(_) => Json(region.status()).into_response(),
        Err(refused) => refused,
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wish {
    #[serde(default)]
    force: bool,
}

async fn takeover(
    State(region): State<Arc<NotHome>>,
    headers: HeaderMap,
    body: axum::body::Bytes,
) -> Response {
    let actor = match operator(&region, &headers) {
        Ok(actor) => actor,
        Err(refused) => return refused,
    };
    let wish = if body.is_empty() { Ok(Wish::default()) } else { serde_json::from_slice(&body) };
    let Wish { force } = match wish {
        Ok(wish) => wish,
        Err(error) => {
            return problem_of_standby(
                StatusCode::UNPROCESSABLE_ENTITY,
                "invalid_value",
                "A value is not acceptable",
                error.to_string(),
            );
        }
    };
    let by = json!({ "actor": actor, "peer": "", "force": force });
    match region.take_over(by, force).await {
        Ok(taken) => {
            tracing::warn!(
                actor,
                term = taken.term,
                as_of_ms = taken.as_of_ms,
                "this region takes over: it is home from now on"
            );
            region.ended.cancel();
            Json(taken).into_response()
        }
        Err(refused) => refused,
    }
}

async fn not_ready(State(region): State<Arc<NotHome>>) -> Response {
    let standing = *region.standing.lock();
    problem_of_standby(
        StatusCode::SERVICE_UNAVAILABLE,
        "not_home",
        "This region is not home",
        NotHome::why_closed(standing),
    )
}

async fn metrics(State(region): State<Arc<NotHome>>) -> Response {
    let rows = region.shown.lock().rows;
    let page = region.metrics.page_of_standby(&region.status(), rows);
    match page {
        Ok(page) => {
            let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
            ([(header::CONTENT_TYPE, kind)], page).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "writing the metrics page");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// What stands behind a link that takes no nodes.
pub(crate) struct NoNodes {
    heads: watch::Receiver<Heads>,
    _sender: watch::Sender<Heads>,
}

impl NoNodes {
    pub(crate) fn new() -> Self {
        let (sender, heads) = watch::channel(Heads::default());
        Self { heads, _sender: sender }
    }
}

fn nobody<T: Send + 'static>() -> BoxFuture<'static, Result<T, LinkStoreError>> {
    Box::pin(std::future::ready(Err(LinkStoreError::Busy("this region is not home".to_owned()))))
}

impl RegionStore for NoNodes {
    fn hello(&self, _: Node, _: Hello) -> BoxFuture<'_, Result<Option<NodeState>, LinkStoreError>> {
        nobody()
    }

    fn begin_epoch(&self, _: Node, _: EpochNo) -> BoxFuture<'_, Result<(), LinkStoreError>> {
        nobody()
    }

    fn apply(&self, _: Node, _: Batch) -> BoxFuture<'_, Result<Mark, LinkStoreError>> {
        nobody()
    }

    fn log_changed(&self) -> watch::Receiver<Heads> {
        self.heads.clone()
    }

    fn tail(&self, _: Log, _: u64, _: usize) -> BoxFuture<'_, Result<TailRead, LinkStoreError>> {
        nobody()
    }

    fn snapshot(
        &self,
        _: Log,
        _: Option<Vec<u8>>,
        _: usize,
    ) -> BoxFuture<'_, Result<SnapshotPage, LinkStoreError>> {
        nobody()
    }

    fn call(&self, _: Node, _: Call) -> BoxFuture<'_, Result<Reply, Refusal>> {
        let refusal = Refusal { code: "not_home".to_owned(), message: "this region is not home".to_owned() };
        Box::pin(std::future::ready(Err(refusal)))
    }

    fn applied(&self, _: Node, _: Log, _: u64) {}
}

#[cfg(test)]
mod tests;
