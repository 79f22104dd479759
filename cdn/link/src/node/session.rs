//! One connection of a node, from Hello to its end: carries inputs to the session and does what it says.
//!
//! One loop owns the session. Tasks read and write streams and call the store; they speak to the loop through one bounded
//! channel and end with it. Work in the store is waited for at the end, so that the next session reads settled cursors.

use std::{sync::Arc, time::Duration};

use quinn::{Connection, RecvStream, SendStream};
use souk_replication::{
    Ack, Batch, Control, EpochNo, FIRST_TERM, Fold, Log, Mark, NodeFacts, NodeFault, NodeInput, NodeOutput,
    NodeSession, Seq, Tail, Term, wire::feature,
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, timeout},
};

use crate::{
    LinkFault, LinkState, NodeStore, StoreError,
    clock::Clock,
    planted::{Bug, planted},
    stream::{
        KIND_CONTROL, KIND_LOG, PRIORITY_BATCH, PRIORITY_CONTROL, StreamError, read_control, read_kind,
        read_tail, seal_batch, write_control,
    },
    transport::REGION_UNI_STREAMS_MAX,
};

use super::{Shared, dial::fault_of};

/// How often it is looked whether the region is silent, and how long it may be: two keep-alives without an answer, and half a
/// second for the way. With operations that it has not acknowledged the session redials sooner.
const LISTEN_EVERY: Duration = Duration::from_millis(500);
const SILENT_MAX: Duration = Duration::from_millis(2_500);
/// Events on their way to the loop; a full channel holds readers back, and QUIC the peer.
const EVENTS_MAX: usize = 256;
/// Control frames on their way out. A healthy link has a handful; so many mean that nothing leaves any more.
const CONTROL_MAX: usize = 1_024;
/// At shutdown: how long unacknowledged operations may take. They are durable and go out at the next start otherwise.
const DRAIN_MAX: Duration = Duration::from_secs(1);
/// How long the end of a session waits for the store.
const STORE_DRAIN_MAX: Duration = Duration::from_secs(10);
/// A busy store is asked again after this, so many times.
const BUSY_PAUSE: Duration = Duration::from_millis(100);
const BUSY_TRIES_MAX: u32 = 50;

/// Why a session ended.
pub(super) enum End {
    Shutdown,
    Fault(LinkFault),
    /// A second connection won; go on with it.
    Switch(Connection, String),
}

enum Event {
    Input(NodeInput),
    EpochBegun,
    TrimDone,
    /// A read found nothing from here on: the outbox has moved under it.
    Trimmed(Seq),
    Redialled(Result<(Connection, String), LinkFault>),
    Fault(LinkFault),
}

/// `diverged`: the connection before this one ended with [`LinkFault::Diverged`].
pub(super) async fn run(shared: &Shared, connection: Connection, address: String, diverged: bool) -> End {
    let (events, mut inbox) = mpsc::channel(EVENTS_MAX);
    let (control, outbox) = mpsc::channel(CONTROL_MAX);
    let clock = Clock::start(&*shared.dialer.ground);
    let position = shared.store.outbox_position();
    let (cursors, stagings) = (shared.store.cursors(), shared.store.stagings());
    let facts = NodeFacts { term: shared.store.term(), ..shared.facts.clone() };
    let mut driver = Driver {
        session: NodeSession::new(&facts, position, diverged, &cursors, &stagings, clock.now_ms()),
        shared,
        connection,
        address,
        clock,
        events,
        control,
        tasks: JoinSet::new(),
        store_tasks: JoinSet::new(),
        trimming: false,
        trim_next: None,
        redialling: None,
        heard: Heard { datagrams: 0, at: Instant::now() },
    };
    driver.tasks.spawn(speak(driver.connection.clone(), outbox, driver.events.clone()));
    driver.tasks.spawn(hear_logs(driver.connection.clone(), driver.events.clone()));
    let end = driver.drive(&mut inbox).await;
    drop(inbox);
    driver.finish(&end).await;
    end
}

struct Driver<'a> {
    session: NodeSession,
    shared: &'a Shared,
    connection: Connection,
    address: String,
    clock: Clock,
    events: mpsc::Sender<Event>,
    control: mpsc::Sender<Control>,
    /// Readers, writers and dialling: aborted at the end.
    tasks: JoinSet<()>,
    /// Calls of the store: waited for at the end.
    store_tasks: JoinSet<()>,
    trimming: bool,
    trim_next: Option<(EpochNo, Seq, Option<Fold>)>,
    redialling: Option<Redialling>,
    heard: Heard,
}

/// What there was when a redial began: if it has moved since, the old connection has won the race.
struct Redialling {
    mark: Option<(EpochNo, Seq)>,
    /// Datagrams, if it began because none came.
    datagrams: Option<u64>,
}

/// How long the region has been silent: QUIC's own answers count, so that an idle link is not taken for a dead one.
struct Heard {
    datagrams: u64,
    at: Instant,
}

impl Driver<'_> {
    /// Events in, outputs out, until something ends it.
    async fn drive(&mut self, inbox: &mut mpsc::Receiver<Event>) -> End {
        let mut outbox_changed = self.shared.store.outbox_changed();
        let mut outbox_open = true;
        let mut drain_until: Option<Instant> = None;
        let mut listen = tokio::time::interval(LISTEN_EVERY);
        listen.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if let Err(fault) = self.flush() {
                return End::Fault(self.explain(fault));
            }
            self.publish();
            if drain_until.is_some() && (!self.session.is_open() || self.session.unacked() == 0) {
                return End::Shutdown;
            }
            tokio::select! {
                // In this order, so that a run can be repeated: what decides comes before what there can be ever more of.
                biased;
                reason = self.connection.closed() => return End::Fault(fault_of(&reason)),
                () = sleep_until(drain_until) => return End::Shutdown,
                () = self.shared.shutdown.cancelled(), if drain_until.is_none() => {
                    drain_until = Some(Instant::now() + DRAIN_MAX);
                }
                Some(joined) = self.store_tasks.join_next() => {
                    if joined.is_err_and(|e| e.is_panic()) {
                        return End::Fault(LinkFault::Store("the store panicked".to_owned()));
                    }
                }
                Some(_) = self.tasks.join_next() => {}
                () = self.clock.sleep_until(self.session.next_deadline()) => self.handle(NodeInput::Tick),
                _ = listen.tick() => self.listen(),
                changed = outbox_changed.changed(), if outbox_open => {
                    outbox_open = changed.is_ok();
                    self.handle(NodeInput::Outbox(self.shared.store.outbox_position()));
                }
                event = inbox.recv() => match event.expect("the driver itself holds a sender") {
                    Event::Input(input) => self.handle(input),
                    Event::EpochBegun => {
                        // The outbox may have moved on since; take where it stands now.
                        let position = self.shared.store.outbox_position();
                        self.handle(NodeInput::EpochBegun(position));
                    }
                    Event::TrimDone => self.trimming = false,
                    Event::Trimmed(from) => {
                        self.handle(NodeInput::Outbox(self.shared.store.outbox_position()));
                        self.handle(NodeInput::Ops { from, ops: Vec::new() });
                    }
                    Event::Redialled(Ok(other)) => if let Some(end) = self.on_redialled(other) { return end },
                    Event::Redialled(Err(fault)) => {
                        tracing::debug!(fault = fault.name(), detail = %fault, "redial failed");
                        if !planted(Bug::RedialForgotten) {
                            self.redialling = None;
                        }
                    }
                    Event::Fault(fault) => return End::Fault(self.explain(fault)),
                },
            }
        }
    }

    fn handle(&mut self, input: NodeInput) {
        if let NodeInput::Tail(tail) = &input {
            self.note_head(tail);
        }
        self.session.handle(input, self.clock.now_ms());
    }

    /// Does everything that the session wants.
    fn flush(&mut self) -> Result<(), LinkFault> {
        while let Some(output) = self.session.poll_output() {
            match output {
                NodeOutput::Control(frame) => {
                    self.control
                        .try_send(frame)
                        .map_err(|_| LinkFault::Lost("control stream stalled".to_owned()))?;
                }
                NodeOutput::Batch(batch) => {
                    let zstd = self.session.features() & feature::ZSTD != 0;
                    let events = self.events.clone();
                    self.tasks.spawn(send_batch(self.connection.clone(), batch, zstd, events));
                }
                NodeOutput::ReadOps { from, ops_max, bytes_max } => {
                    let (store, events) = (self.shared.store.clone(), self.events.clone());
                    self.store_tasks.spawn(read_ops(store, from, ops_max, bytes_max, events));
                }
                NodeOutput::GoBack { epoch, to } => {
                    tracing::warn!(
                        epoch,
                        hwm = to.hwm,
                        "the region has fewer operations than it has acknowledged: it was restored, and they are sent again"
                    );
                    let (store, events) = (self.shared.store.clone(), self.events.clone());
                    self.store_tasks.spawn(go_back(store, epoch, to, events));
                }
                NodeOutput::Trim { epoch, to, fold } => self.trim_next = Some((epoch, to, fold)),
                NodeOutput::BeginEpoch(epoch) => {
                    tracing::info!(epoch, "the region begins a new epoch for this node");
                    let (store, events) = (self.shared.store.clone(), self.events.clone());
                    self.store_tasks.spawn(begin_epoch(store, epoch, events));
                }
                NodeOutput::Apply { tail, region_epoch } => {
                    let (store, events) = (self.shared.store.clone(), self.events.clone());
                    self.store_tasks.spawn(apply(store, tail, region_epoch, events));
                }
                NodeOutput::Welcomed(welcome) => self.on_welcomed(&welcome),
                NodeOutput::Redial => self.redial(None),
                NodeOutput::Fault(fault) => return Err(name(fault)),
            }
        }
        if !self.trimming
            && let Some((epoch, to, fold)) = self.trim_next.take()
        {
            self.trimming = true;
            let (store, events) = (self.shared.store.clone(), self.events.clone());
            self.store_tasks.spawn(trim(store, epoch, to, fold, events));
        }
        Ok(())
    }

    fn on_welcomed(&mut self, welcome: &souk_replication::Welcome) {
        tracing::info!(
            region = welcome.region,
            region_epoch = welcome.region_epoch,
            epoch = welcome.epoch,
            hwm = welcome.hwm,
            address = self.address,
            "link is up"
        );
        self.shared.set_state(LinkState::Up, None);
        self.shared.status.send_modify(|status| {
            status.region = Some(welcome.region.clone());
            status.address = Some(self.address.clone());
            status.region_heads = welcome.known_heads();
            status.term = welcome.term;
            status.connects += 1;
        });
        self.shared.connection.send_replace(Some(self.connection.clone()));
        // The first is every region's, and there is no home of a lower one to keep away from.
        if welcome.term > self.shared.store.term().max(FIRST_TERM) {
            let (store, term, events) = (self.shared.store.clone(), welcome.term, self.events.clone());
            self.store_tasks.spawn(note_term(store, term, events));
        }
    }

    fn note_head(&self, tail: &Tail) {
        self.shared.status.send_if_modified(|status| {
            let newer = tail.to > status.region_heads.get(tail.log);
            if newer {
                status.region_heads.set(tail.log, tail.to);
            }
            newer
        });
    }

    fn publish(&self) {
        let (acked, unacked, rtt) = (self.session.acked(), self.session.unacked(), self.connection.rtt());
        self.shared.status.send_if_modified(|status| {
            let (epoch, mark) =
                acked.map_or((status.epoch, status.acked), |(epoch, mark)| (Some(epoch), mark));
            let changed = (status.epoch, status.acked, status.unacked) != (epoch, mark, unacked);
            if changed {
                (status.epoch, status.acked, status.unacked) = (epoch, mark, unacked);
                status.rtt = status.connected.then_some(rtt);
            }
            changed
        });
    }

    /// Redials when the region has been silent for too long, whatever is under way: a call, or nothing at all.
    fn listen(&mut self) {
        let datagrams = self.datagrams();
        if datagrams != self.heard.datagrams {
            self.heard = Heard { datagrams, at: Instant::now() };
        } else if self.heard.at.elapsed() >= SILENT_MAX {
            self.redial(Some(datagrams));
        }
    }

    fn datagrams(&self) -> u64 {
        self.connection.stats().udp_rx.datagrams
    }

    /// Races a second connection against this one, which goes on meanwhile.
    fn redial(&mut self, datagrams: Option<u64>) {
        if self.redialling.is_some() || self.shared.shutdown.is_cancelled() {
            return;
        }
        tracing::info!(unacked = self.session.unacked(), "no progress, trying a second connection");
        self.redialling = Some(Redialling { mark: self.session.acked(), datagrams });
        self.shared.status.send_modify(|status| status.redials += 1);
        let (dialer, events) = (self.shared.dialer.clone(), self.events.clone());
        self.tasks.spawn(async move {
            // The loop has ended when nobody listens, and the connection is dropped with it.
            let _ = events.send(Event::Redialled(dialer.redial().await)).await;
        });
    }

    fn on_redialled(&mut self, (connection, address): (Connection, String)) -> Option<End> {
        let Redialling { mark, datagrams } = self.redialling.take()?;
        let is_heard = datagrams.is_some_and(|before| before != self.datagrams());
        if self.session.acked() == mark && !is_heard {
            return Some(End::Switch(connection, address));
        }
        // The first connection came back: the region never hears of the second.
        connection.close(0_u32.into(), b"not needed");
        None
    }

    /// The connection itself knows best why its streams broke.
    fn explain(&self, fault: LinkFault) -> LinkFault {
        match (self.connection.close_reason(), fault) {
            (Some(reason), LinkFault::Lost(_)) => fault_of(&reason),
            (_, fault) => fault,
        }
    }

    async fn finish(mut self, end: &End) {
        let reason: &[u8] = match end {
            End::Shutdown => b"shutdown",
            End::Switch(..) => b"superseded",
            End::Fault(_) => b"fault",
        };
        // First the connection: a stream that is dropped half-way would otherwise look finished.
        self.connection.close(0_u32.into(), reason);
        self.tasks.shutdown().await;
        let settled =
            timeout(STORE_DRAIN_MAX, async { while self.store_tasks.join_next().await.is_some() {} });
        if settled.await.is_err() {
            tracing::error!("the store does not come to an end; going on without it");
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn name(fault: NodeFault) -> LinkFault {
    match fault {
        NodeFault::Rejected { reason, message } => LinkFault::Rejected { reason, message },
        NodeFault::NoWelcome | NodeFault::Protocol(_) => LinkFault::Protocol(fault.to_string()),
        NodeFault::Diverged => LinkFault::Diverged,
        NodeFault::Replaced { own, met } => LinkFault::Replaced { own, met },
        NodeFault::Outbox(_) | NodeFault::OperationTooLarge(_) => LinkFault::Store(fault.to_string()),
    }
}

async fn note_term(store: Arc<dyn NodeStore>, term: Term, events: mpsc::Sender<Event>) {
    if let Err(error) = store.note_term(term).await {
        // Without it the next start might believe a home that was replaced: the link is tried again.
        let _ = events.send(Event::Fault(LinkFault::Store(error.to_string()))).await;
    }
}

fn broken(what: &str, error: &StreamError) -> LinkFault {
    match error {
        StreamError::Codec(e) => LinkFault::Protocol(format!("{what}: {e}")),
        StreamError::Ended | StreamError::Lost(_) => LinkFault::Lost(format!("{what}: {error}")),
    }
}

/// Opens the control stream, writes what comes from `outbox`, and reads what comes from the region.
async fn speak(connection: Connection, outbox: mpsc::Receiver<Control>, events: mpsc::Sender<Event>) {
    let opened = async {
        let (mut send, recv) = connection.open_bi().await.map_err(|e| e.to_string())?;
        send.set_priority(PRIORITY_CONTROL).map_err(|e| e.to_string())?;
        send.write_all(&[KIND_CONTROL]).await.map_err(|e| e.to_string())?;
        Ok::<_, String>((send, recv))
    };
    let fault = match opened.await {
        Ok((send, recv)) => tokio::select! {
            biased;
            fault = write_controls(send, outbox) => fault,
            fault = read_controls(recv, &events) => fault,
        },
        Err(detail) => LinkFault::Lost(detail),
    };
    let _ = events.send(Event::Fault(fault)).await;
}

async fn write_controls(mut send: SendStream, mut outbox: mpsc::Receiver<Control>) -> LinkFault {
    while let Some(frame) = outbox.recv().await {
        if let Err(e) = write_control(&mut send, &frame).await {
            return LinkFault::Lost(format!("control stream: {e}"));
        }
    }
    LinkFault::Lost("session over".to_owned())
}

async fn read_controls(mut recv: RecvStream, events: &mpsc::Sender<Event>) -> LinkFault {
    loop {
        match read_control(&mut recv).await {
            Ok(frame) => {
                if events.send(Event::Input(NodeInput::Control(frame))).await.is_err() {
                    return LinkFault::Lost("session over".to_owned());
                }
            }
            Err(e) => return broken("control stream", &e),
        }
    }
}

/// Takes in the streams of the logs, each read by a task of its own so that a big one delays no other.
async fn hear_logs(connection: Connection, events: mpsc::Sender<Event>) {
    let mut logs = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(_) = logs.join_next() => {}
            accepted = connection.accept_uni() => match accepted {
                Ok(stream) if logs.len() < REGION_UNI_STREAMS_MAX as usize => {
                    logs.spawn(hear_log(stream, events.clone()));
                }
                // The transport does not let more in.
                Ok(_) => {}
                Err(_) => return,
            },
        }
    }
}

async fn hear_log(mut stream: RecvStream, events: mpsc::Sender<Event>) {
    let read = async {
        if read_kind(&mut stream).await? != KIND_LOG {
            // A kind of a newer release: not ours to read.
            return Ok(());
        }
        loop {
            if let Some(tail) = read_tail(&mut stream).await?
                && events.send(Event::Input(NodeInput::Tail(tail))).await.is_err()
            {
                return Ok(());
            }
        }
    };
    match read.await {
        Ok(()) | Err(StreamError::Ended) => {}
        Err(error) => {
            let _ = events.send(Event::Fault(broken("log stream", &error))).await;
        }
    }
}

async fn send_batch(connection: Connection, batch: Batch, zstd: bool, events: mpsc::Sender<Event>) {
    let sent = async {
        let mut stream = connection.open_uni().await.map_err(|e| e.to_string())?;
        stream.set_priority(PRIORITY_BATCH).map_err(|e| e.to_string())?;
        stream.write_all(&seal_batch(&batch, zstd)).await.map_err(|e| e.to_string())?;
        stream.finish().map_err(|e| e.to_string())?;
        if planted(Bug::FinishedIsCommitted) && stream.stopped().await.is_ok_and(|code| code.is_none()) {
            let ack = Ack { epoch: batch.epoch, hwm: batch.last_seq(), fold: None };
            let _ = events.send(Event::Input(NodeInput::Control(Control::Ack(ack)))).await;
        }
        Ok::<_, String>(())
    };
    // A batch that does not arrive is asked for again, or comes again on the next connection.
    if let Err(detail) = sent.await {
        tracing::debug!(first_seq = batch.first_seq, detail, "batch not sent");
    }
}

/// Tries again while the store says that it is busy.
async fn patient<T, F>(mut attempt: impl FnMut() -> F) -> Result<T, LinkFault>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let mut tries = 0;
    loop {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(StoreError::Busy(_)) if tries < BUSY_TRIES_MAX => {
                tries += 1;
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            Err(error) => return Err(LinkFault::Store(error.to_string())),
        }
    }
}

async fn report(events: &mpsc::Sender<Event>, done: Result<Event, LinkFault>) {
    // Nobody listens any more when the session is over; the work is done all the same.
    let _ = events.send(done.unwrap_or_else(Event::Fault)).await;
}

async fn read_ops(
    store: Arc<dyn NodeStore>,
    from: Seq,
    ops_max: usize,
    bytes_max: usize,
    events: mpsc::Sender<Event>,
) {
    let read = patient(|| {
        let store = store.clone();
        async move {
            if store.reads_in_place() {
                return store.read(from, ops_max, bytes_max);
            }
            tokio::task::spawn_blocking(move || store.read(from, ops_max, bytes_max))
                .await
                .unwrap_or_else(|e| Err(StoreError::Failed(format!("reading the outbox: {e}"))))
        }
    });
    let ops = read.await.and_then(|ops| {
        if store.outbox_position().first > from {
            // Trimmed meanwhile, by an acknowledgement of the connection before this one.
            return Ok(Event::Trimmed(from));
        }
        let expected = (from..).zip(&ops);
        if expected.into_iter().any(|(seq, (is, _))| seq != *is) {
            return Err(LinkFault::Store(format!("the outbox has a gap after operation {from}")));
        }
        Ok(Event::Input(NodeInput::Ops { from, ops: ops.into_iter().map(|(_, op)| op).collect() }))
    });
    report(&events, ops).await;
}

async fn begin_epoch(store: Arc<dyn NodeStore>, epoch: EpochNo, events: mpsc::Sender<Event>) {
    let begun = patient(|| store.begin_epoch(epoch)).await;
    report(&events, begun.map(|_| Event::EpochBegun)).await;
}

async fn go_back(store: Arc<dyn NodeStore>, epoch: EpochNo, to: Mark, events: mpsc::Sender<Event>) {
    let gone_back = patient(|| store.go_back(epoch, to)).await;
    // Where the outbox stands now, it says at the next look.
    if let Err(fault) = gone_back {
        report(&events, Err(fault)).await;
    }
}

async fn apply(store: Arc<dyn NodeStore>, tail: Tail, region_epoch: u32, events: mpsc::Sender<Event>) {
    let log: Log = tail.log;
    if planted(Bug::AppliedEarly) {
        return early(store, tail, region_epoch, events).await;
    }
    let applied = patient(|| store.apply(tail.clone(), region_epoch)).await;
    report(&events, applied.map(|()| Event::Input(NodeInput::Applied(log)))).await;
}

/// See [`Bug::AppliedEarly`].
async fn early(store: Arc<dyn NodeStore>, tail: Tail, region_epoch: u32, events: mpsc::Sender<Event>) {
    report(&events, Ok(Event::Input(NodeInput::Applied(tail.log)))).await;
    // Long enough for the word to arrive.
    tokio::time::sleep(BUSY_PAUSE).await;
    let _ = patient(|| store.apply(tail.clone(), region_epoch)).await;
}

async fn trim(
    store: Arc<dyn NodeStore>,
    epoch: EpochNo,
    to: Seq,
    fold: Option<Fold>,
    events: mpsc::Sender<Event>,
) {
    let trimmed = patient(|| store.trim(epoch, to, fold)).await;
    report(&events, trimmed.map(|()| Event::TrimDone)).await;
}
