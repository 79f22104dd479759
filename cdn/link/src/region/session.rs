//! One connection of a node at its region: carries inputs to the session and does what it says.
//!
//! One loop owns the session. Tasks read and write streams, answer calls and call the store; they speak to the loop through
//! one bounded channel and end with it. A commit is waited for at the end, so that the next session of the node reads a
//! settled mark.

use std::{sync::Arc, time::Duration};

use quinn::{Connection, RecvStream, SendStream};
use souk_replication::{
    Batch, Control, EpochNo, Hello, Log, Node, NodeState, RegionFault, RegionInput, RegionOutput,
    RegionSession, RejectReason, Seq, SnapshotPage, Tail, limits::TAILS_IN_FLIGHT_MAX, wire::seal_frame,
};
use tokio::{
    sync::{Mutex as AsyncMutex, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::JoinSet,
    time::timeout,
};

use crate::{
    RegionStore, StoreError, TailRead,
    call::{self, refusal},
    clock::Clock,
    planted::{Bug, planted},
    stream::{
        KIND_BATCH, KIND_CALL, KIND_CONTROL, KIND_LOG, PRIORITY_CONTROL, StreamError, read_batch,
        read_control, read_kind, write_control,
    },
};

use super::{
    Shared,
    nodes::{Claim, Progress},
    reject,
};

/// Events on their way to the loop; a full channel holds readers back, and QUIC the peer.
const EVENTS_MAX: usize = 256;
/// Control frames on their way out. A healthy link has a handful; so many mean that nothing leaves any more.
const CONTROL_MAX: usize = 1_024;
/// Tails of one log on their way out: the session's window, twice because a rewind sends a second one.
const TAILS_MAX: usize = 2 * TAILS_IN_FLIGHT_MAX + 1;
/// A peer that opens no control stream, or sends no first byte on a stream.
const FIRST_BYTE_MAX: Duration = Duration::from_secs(5);
/// How long the end of a session waits for a commit.
const STORE_DRAIN_MAX: Duration = Duration::from_secs(10);

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("the region is shutting down")]
    Shutdown,
    #[error("a newer connection of this node took over")]
    Superseded,
    #[error("{0}")]
    Lost(String),
    #[error(transparent)]
    Fault(#[from] RegionFault),
    #[error("protocol: {0}")]
    Protocol(String),
    #[error("{0}")]
    Store(StoreError),
}

impl End {
    const fn reason(&self) -> RejectReason {
        match self {
            Self::Shutdown => RejectReason::Shutdown,
            Self::Superseded => RejectReason::Superseded,
            Self::Fault(RegionFault::WrongNode { .. }) => RejectReason::WrongNode,
            Self::Fault(RegionFault::Schema { .. }) => RejectReason::Schema,
            Self::Fault(RegionFault::Replaced { .. }) => RejectReason::Replaced,
            Self::Lost(_)
            | Self::Protocol(_)
            | Self::Fault(RegionFault::NoHello | RegionFault::Protocol(_)) => RejectReason::Protocol,
            Self::Fault(_) | Self::Store(_) => RejectReason::Unavailable,
        }
    }
}

enum Event {
    Input(RegionInput),
    /// This session may call the store now.
    Lane(OwnedMutexGuard<()>, Box<Hello>),
    /// A page, and the right to read on.
    Page {
        log: Log,
        ticket: u32,
        page: SnapshotPage,
        permit: OwnedSemaphorePermit,
    },
    End(End),
}

pub(super) async fn run(node: Node, connection: Connection, shared: &Arc<Shared>) {
    let (events, mut inbox) = mpsc::channel(EVENTS_MAX);
    let (control, outbox) = mpsc::channel(CONTROL_MAX);
    let mut heads = shared.store.log_changed();
    let clock = Clock::start(&*shared.ground);
    let first = *heads.borrow_and_update();
    let mut driver = Driver {
        session: RegionSession::new(node, shared.facts.clone(), first, clock.now_ms()),
        node,
        connection,
        shared,
        clock,
        events,
        control,
        tails: Log::ALL.map(|_| None),
        permits: Log::ALL.map(|_| None),
        tasks: JoinSet::new(),
        store_tasks: JoinSet::new(),
        progress: Arc::default(),
        claim: None,
        lane: None,
    };
    let (opened, control_stream) = oneshot::channel();
    driver.tasks.spawn(accept_bi(
        driver.connection.clone(),
        node,
        shared.clone(),
        opened,
        driver.events.clone(),
    ));
    driver.tasks.spawn(speak(control_stream, outbox, driver.events.clone()));
    driver.tasks.spawn(hear_batches(driver.connection.clone(), driver.events.clone()));
    let end = driver.drive(&mut inbox, &mut heads).await;
    drop(inbox);
    driver.finish(&end).await;
}

struct Driver<'a> {
    session: RegionSession,
    node: Node,
    connection: Connection,
    shared: &'a Arc<Shared>,
    clock: Clock,
    events: mpsc::Sender<Event>,
    control: mpsc::Sender<Control>,
    /// Writers of the log streams, opened at the first tail.
    tails: [Option<mpsc::Sender<Tail>>; Log::COUNT],
    /// Rights to read a snapshot, held from its first page to its last.
    permits: [Option<OwnedSemaphorePermit>; Log::COUNT],
    /// Readers, writers and calls: aborted at the end.
    tasks: JoinSet<()>,
    /// Calls of the store that write: waited for at the end.
    store_tasks: JoinSet<()>,
    progress: Arc<Progress>,
    /// Set from Hello on.
    claim: Option<Claim>,
    /// Set when no older session of this node is in the store any more.
    lane: Option<OwnedMutexGuard<()>>,
}

impl Driver<'_> {
    /// Events in, outputs out, until something ends it.
    async fn drive(
        &mut self,
        inbox: &mut mpsc::Receiver<Event>,
        heads: &mut tokio::sync::watch::Receiver<souk_replication::Heads>,
    ) -> End {
        let mut heads_open = true;
        loop {
            if let Err(end) = self.flush() {
                return end;
            }
            if let Some(NodeState { epoch, hwm, .. }) = self.session.state() {
                self.progress.set(epoch, hwm, self.session.cursors());
            }
            let superseded = self.claim.as_ref().map(|claim| claim.superseded.clone());
            tokio::select! {
                // In this order, so that a run can be repeated: what decides comes before what there can be ever more of.
                biased;
                () = self.shared.shutdown.cancelled() => return End::Shutdown,
                () = cancelled(superseded) => return End::Superseded,
                reason = self.connection.closed() => return End::Lost(reason.to_string()),
                Some(joined) = self.store_tasks.join_next() => {
                    if joined.is_err_and(|e| e.is_panic()) {
                        return End::Store(StoreError::Failed("the store panicked".to_owned()));
                    }
                }
                Some(_) = self.tasks.join_next() => {}
                () = self.clock.sleep_until(self.session.next_deadline()) => self.handle(RegionInput::Tick),
                changed = heads.changed(), if heads_open => {
                    heads_open = changed.is_ok();
                    let heads = *heads.borrow_and_update();
                    self.handle(RegionInput::Heads(heads));
                }
                event = inbox.recv() => match event.expect("the driver itself holds a sender") {
                    Event::Input(input) => self.handle(input),
                    Event::Lane(guard, hello) => {
                        self.lane = Some(guard);
                        let (store, node, events) = (self.shared.store.clone(), self.node, self.events.clone());
                        self.store_tasks.spawn(load_node(store, node, hello, events));
                    }
                    Event::Page { log, ticket, page, permit } => {
                        let slot = &mut self.permits[slot(log)];
                        *slot = page.next.is_some().then_some(permit);
                        self.handle(RegionInput::PageRead { log, ticket, page });
                    }
                    Event::End(end) => return end,
                },
            }
        }
    }

    fn handle(&mut self, input: RegionInput) {
        self.session.handle(input, self.clock.now_ms());
    }

    /// Does everything that the session wants.
    fn flush(&mut self) -> Result<(), End> {
        while let Some(output) = self.session.poll_output() {
            let (store, events, node) = (self.shared.store.clone(), self.events.clone(), self.node);
            match output {
                RegionOutput::LoadNode(hello) => self.take_over(hello),
                RegionOutput::BeginEpoch(epoch) => {
                    tracing::info!(node, epoch, "a new epoch for this node");
                    self.store_tasks.spawn(begin_epoch(store, node, epoch, events));
                }
                RegionOutput::Control(frame) => {
                    if matches!(frame, Control::Welcome(_)) {
                        tracing::info!(node, peer = %self.connection.remote_address(), "node is up");
                    }
                    self.control
                        .try_send(frame)
                        .map_err(|_| End::Lost("control stream stalled".to_owned()))?;
                }
                RegionOutput::Apply(batch) => {
                    self.store_tasks.spawn(apply(store, node, batch, events));
                }
                RegionOutput::ReadTail { log, ticket, from, bytes_max } => {
                    self.permits[slot(log)] = None;
                    self.tasks.spawn(read_tail(store, log, ticket, from, bytes_max, events));
                }
                RegionOutput::ReadSnapshot { log, ticket, resume, bytes_max } => {
                    let permit = self.permits[slot(log)].take();
                    let gate = self.shared.snapshots.clone();
                    self.tasks.spawn(read_page(store, gate, permit, log, ticket, resume, bytes_max, events));
                }
                RegionOutput::Tail(tail) => self.send_tail(tail)?,
                RegionOutput::NoteApplied { log, version } => self.shared.store.applied(node, log, version),
                RegionOutput::Fault(fault) => {
                    if let RegionFault::Replaced { met, .. } = fault {
                        self.shared.store.later_home_named(node, met);
                    }
                    return Err(End::Fault(fault));
                }
            }
        }
        Ok(())
    }

    /// Hello makes this connection the one of its node. An older one ends, and its last commit is waited for.
    fn take_over(&mut self, hello: Box<Hello>) {
        self.progress.set_hello(&hello);
        let claim = self.shared.nodes.claim(self.node, &self.connection, &self.progress);
        if planted(Bug::LaneSkipped) {
            self.tasks.spawn(lane_of(
                Arc::<AsyncMutex<()>>::default().lock_owned(),
                hello,
                self.events.clone(),
            ));
        } else {
            self.tasks.spawn(lane_of(claim.lane(), hello, self.events.clone()));
        }
        self.claim = Some(claim);
    }

    fn send_tail(&mut self, tail: Tail) -> Result<(), End> {
        let log = tail.log;
        let writer = self.tails[slot(log)].get_or_insert_with(|| {
            let (writer, queue) = mpsc::channel(TAILS_MAX);
            self.tasks.spawn(write_tails(self.connection.clone(), log, queue, self.events.clone()));
            writer
        });
        writer.try_send(tail).map_err(|_| End::Lost(format!("the {log} stream stalled")))
    }

    async fn finish(mut self, end: &End) {
        match end {
            // It dials twice when a region is slow to answer, and lets the slower connection go.
            End::Lost(detail) if self.claim.as_ref().is_none_or(Claim::is_past) => {
                tracing::debug!(node = self.node, detail, "a connection that was not the node's own is gone");
            }
            End::Lost(detail) => tracing::info!(node = self.node, detail, "node is gone"),
            End::Shutdown | End::Superseded => {
                tracing::info!(node = self.node, reason = %end, "session ends")
            }
            End::Fault(_) | End::Protocol(_) | End::Store(_) => {
                tracing::warn!(node = self.node, reason = %end, "session ends");
            }
        }
        reject(&self.connection, end.reason(), &end.to_string());
        self.tasks.shutdown().await;
        let settled =
            timeout(STORE_DRAIN_MAX, async { while self.store_tasks.join_next().await.is_some() {} });
        if settled.await.is_err() {
            tracing::error!(node = self.node, "a commit does not come to an end; going on without it");
        }
        // The lane opens for the next session of this node only now.
        drop(self.lane);
        drop(self.claim);
    }
}

const fn slot(log: Log) -> usize {
    log.code() as usize - 1
}

async fn cancelled(token: Option<tokio_util::sync::CancellationToken>) {
    match token {
        Some(token) => token.cancelled().await,
        None => std::future::pending().await,
    }
}

async fn send(events: &mpsc::Sender<Event>, event: Event) {
    // Nobody listens any more when the session is over.
    let _ = events.send(event).await;
}

async fn lane_of(
    lane: impl Future<Output = OwnedMutexGuard<()>>,
    hello: Box<Hello>,
    events: mpsc::Sender<Event>,
) {
    send(&events, Event::Lane(lane.await, hello)).await;
}

async fn load_node(store: Arc<dyn RegionStore>, node: Node, hello: Box<Hello>, events: mpsc::Sender<Event>) {
    let loaded = store.hello(node, *hello).await;
    send(
        &events,
        loaded.map_or_else(|e| Event::End(End::Store(e)), |s| Event::Input(RegionInput::NodeLoaded(s))),
    )
    .await;
}

async fn begin_epoch(store: Arc<dyn RegionStore>, node: Node, epoch: EpochNo, events: mpsc::Sender<Event>) {
    let begun = store.begin_epoch(node, epoch).await;
    send(
        &events,
        begun.map_or_else(|e| Event::End(End::Store(e)), |()| Event::Input(RegionInput::EpochBegun(epoch))),
    )
    .await;
}

async fn apply(store: Arc<dyn RegionStore>, node: Node, batch: Batch, events: mpsc::Sender<Event>) {
    let (first_seq, count): (Seq, usize) = (batch.first_seq, batch.ops.len());
    let event = match store.apply(node, batch).await {
        Ok(mark) => Event::Input(RegionInput::Applied(mark)),
        Err(StoreError::Busy(detail)) => {
            tracing::warn!(node, first_seq, count, detail, "commit not possible now, trying again");
            Event::Input(RegionInput::ApplyFailed)
        }
        Err(error) => Event::End(End::Store(error)),
    };
    send(&events, event).await;
}

async fn read_tail(
    store: Arc<dyn RegionStore>,
    log: Log,
    ticket: u32,
    from: u64,
    bytes_max: usize,
    events: mpsc::Sender<Event>,
) {
    let event = match store.tail(log, from, bytes_max).await {
        Ok(TailRead::Tail(tail)) if tail.log == log => Event::Input(RegionInput::TailRead { ticket, tail }),
        Ok(TailRead::Tail(_)) => Event::End(End::Fault(RegionFault::Store("a tail of another log"))),
        Ok(TailRead::Gone) => Event::Input(RegionInput::TailGone { log, ticket }),
        Err(StoreError::Busy(_)) => Event::Input(RegionInput::ReadFailed { log, ticket }),
        Err(error) => Event::End(End::Store(error)),
    };
    send(&events, event).await;
}

#[expect(clippy::too_many_arguments, reason = "a task takes what it needs by value")]
async fn read_page(
    store: Arc<dyn RegionStore>,
    gate: Arc<Semaphore>,
    permit: Option<OwnedSemaphorePermit>,
    log: Log,
    ticket: u32,
    resume: Option<Vec<u8>>,
    bytes_max: usize,
    events: mpsc::Sender<Event>,
) {
    let permit = match permit {
        Some(permit) => permit,
        None => match gate.acquire_owned().await {
            Ok(permit) => permit,
            // Closed only when the region ends.
            Err(_) => return,
        },
    };
    let event = match store.snapshot(log, resume, bytes_max).await {
        Ok(page) => Event::Page { log, ticket, page, permit },
        Err(StoreError::Busy(_)) => Event::Input(RegionInput::ReadFailed { log, ticket }),
        Err(error) => Event::End(End::Store(error)),
    };
    send(&events, event).await;
}

fn broken(what: &str, error: &StreamError) -> End {
    match error {
        StreamError::Codec(e) => End::Protocol(format!("{what}: {e}")),
        StreamError::Ended | StreamError::Lost(_) => End::Lost(format!("{what}: {error}")),
    }
}

/// Takes in the control stream, once, and calls, each answered by a task of its own.
async fn accept_bi(
    connection: Connection,
    node: Node,
    shared: Arc<Shared>,
    opened: oneshot::Sender<(SendStream, RecvStream)>,
    events: mpsc::Sender<Event>,
) {
    let mut opened = Some(opened);
    let mut calls = JoinSet::new();
    let (controls, mut control_streams) = mpsc::channel(1);
    loop {
        tokio::select! {
            biased;
            Some(control) = control_streams.recv() => match opened.take() {
                // The receiver is gone only when the session is over.
                Some(opened) => drop(opened.send(control)),
                None => send(&events, Event::End(End::Protocol("a second control stream".to_owned()))).await,
            },
            Some(_) = calls.join_next() => {}
            accepted = connection.accept_bi() => {
                let Ok((send, recv)) = accepted else { return };
                calls.spawn(serve_bi(send, recv, node, shared.clone(), controls.clone()));
            }
        }
    }
}

async fn serve_bi(
    send: SendStream,
    mut recv: RecvStream,
    node: Node,
    shared: Arc<Shared>,
    controls: mpsc::Sender<(SendStream, RecvStream)>,
) {
    match timeout(FIRST_BYTE_MAX, read_kind(&mut recv)).await {
        Ok(Ok(KIND_CONTROL)) => {
            let _ = controls.send((send, recv)).await;
        }
        Ok(Ok(KIND_CALL)) => {
            let answered = call::answer(send, recv, |call| async move {
                match shared.calls.acquire().await {
                    Ok(_permit) => shared.store.call(node, call).await,
                    Err(_) => Err(refusal("shutdown", "the region is shutting down")),
                }
            });
            if let Err(error) = answered.await {
                tracing::debug!(node, %error, "call broke off");
            }
        }
        // A kind of a newer release, or a peer that says nothing: dropping the stream resets it.
        _ => {}
    }
}

/// Waits for the control stream, writes what comes from `outbox`, and reads what comes from the node.
async fn speak(
    stream: oneshot::Receiver<(SendStream, RecvStream)>,
    outbox: mpsc::Receiver<Control>,
    events: mpsc::Sender<Event>,
) {
    // The session's own patience ends a connection without a control stream.
    let Ok((send_stream, recv)) = stream.await else { return };
    let _ = send_stream.set_priority(PRIORITY_CONTROL);
    let end = tokio::select! {
        biased;
        end = write_controls(send_stream, outbox) => end,
        end = read_controls(recv, &events) => end,
    };
    send(&events, Event::End(end)).await;
}

async fn write_controls(mut stream: SendStream, mut outbox: mpsc::Receiver<Control>) -> End {
    while let Some(frame) = outbox.recv().await {
        if let Err(e) = write_control(&mut stream, &frame).await {
            return End::Lost(format!("control stream: {e}"));
        }
    }
    End::Lost("session over".to_owned())
}

async fn read_controls(mut stream: RecvStream, events: &mpsc::Sender<Event>) -> End {
    loop {
        match read_control(&mut stream).await {
            Ok(frame) => send(events, Event::Input(RegionInput::Control(frame))).await,
            Err(e) => return broken("control stream", &e),
        }
    }
}

/// Takes in batches, each read by a task of its own so that none waits for another's lost packet.
async fn hear_batches(connection: Connection, events: mpsc::Sender<Event>) {
    let mut batches = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(_) = batches.join_next() => {}
            accepted = connection.accept_uni() => match accepted {
                Ok(stream) => {
                    batches.spawn(hear_batch(stream, events.clone()));
                }
                Err(_) => return,
            },
        }
    }
}

async fn hear_batch(mut stream: RecvStream, events: mpsc::Sender<Event>) {
    let read = async {
        match read_kind(&mut stream).await? {
            KIND_BATCH => Ok(Some(read_batch(&mut stream).await?)),
            // A kind of a newer release.
            _ => Ok(None),
        }
    };
    match read.await {
        Ok(Some(batch)) => send(&events, Event::Input(RegionInput::Batch(batch))).await,
        Ok(None) => {}
        Err(error) => send(&events, Event::End(broken("batch", &error))).await,
    }
}

/// Writes one log, in order, on a stream of its own.
async fn write_tails(
    connection: Connection,
    log: Log,
    mut queue: mpsc::Receiver<Tail>,
    events: mpsc::Sender<Event>,
) {
    let written = async {
        let mut stream = connection.open_uni().await.map_err(|e| e.to_string())?;
        let priority = if planted(Bug::PriorityInverted) { -log.priority() } else { log.priority() };
        stream.set_priority(priority).map_err(|e| e.to_string())?;
        stream.write_all(&[KIND_LOG]).await.map_err(|e| e.to_string())?;
        while let Some(tail) = queue.recv().await {
            stream.write_all(&seal_frame(&tail.encode())).await.map_err(|e| e.to_string())?;
        }
        Ok::<_, String>(())
    };
    if let Err(detail) = written.await {
        send(&events, Event::End(End::Lost(format!("{log} stream: {detail}")))).await;
    }
}
