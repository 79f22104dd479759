//! The home's end of a pair: serves its standby, and ends when another home has come.
//!
//! A home hears of another one in two ways: from the other region, when that asks or is asked, and from its own store, in which another
//! process has written that down. Whichever comes first, [`Fence`] writes it down; from that commit on the store's writer refuses, and
//! the region ends as a home. A node that has met it is a reason to ask ([`super::rumour`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use minicbor::bytes::ByteArray;
use parking_lot::Mutex;
use souk_commerce::id::Digest;
use souk_config::AckLevel;
use souk_link::{PeerConnection, PeerDialer, PeerError, PeerStream};
use souk_replication::{FIRST_TERM, Term};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, timeout};
use tokio_util::sync::CancellationToken;

use super::held::{HANGS, Held};
use super::rules::{ITSELF, TWINS, Verdict, meet};
use super::rumour::Rumours;
use crate::blobs::Blobs;
use crate::clock;
use crate::store::pair::capture::{KEPT_FOR_COPY_MAX, KEPT_MAX};
use crate::store::pair::frame::{
    BlobPart, Down, Greeting, Held as HeldFrame, Holds, Opening, PROTOCOL, StreamId, WantBlob, decode, encode,
};
use crate::store::pair::source::{Sent, Source};
use crate::store::pair::standing::Standing;
use crate::store::{Store, StoreError};

/// Connections of the other region that wait to be looked at.
pub(crate) const PEERS_WAITING_MAX: usize = 4;
/// Connections of the other region at once: its processes, and one that dials anew.
const PEERS_MAX: usize = 16;
/// From a connection to its greeting, either way.
const GREETING_MAX: Duration = Duration::from_secs(5);
/// How often a home without a standby asks whether the other region is home: at level 1 it may go on beside a new one for so long. As
/// often at most it asks because a node has said so: whoever has a node's certificate makes it ask no more than that.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How often it is looked whether another process over the same database has heard of a later home.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often a standby that lacks nothing is told so: it knows by that that its home lives.
const IDLE_EVERY: Duration = Duration::from_secs(1);
/// Frames read ahead of the line: 1 MiB, or as many of the longest rows.
const FRAMES_AHEAD_MAX: usize = 4;
/// How long a standby may leave a frame unread, or everything unanswered, though its connection lives: a home that sends is in a read
/// transaction, which keeps what it reads from being cleared away. The longest row (8 MiB) takes 67 s over a free line of 1 Mbit/s, and a
/// standby waits for whoever reads its file for 25 s.
pub(crate) const FRAME_TAKEN_MAX: Duration = Duration::from_secs(100);
/// A standby of which not even a datagram has come for so long may be gone: three keep-alives.
const FOLLOWER_SILENT_MAX: Duration = Duration::from_secs(3);
/// What the standby holds is forgotten here so often, and what is too much. At 5,000 rows a second it is 5 MB.
const FORGET_EVERY: Duration = Duration::from_secs(10);
/// Between two tries to write down that this home was replaced.
const FENCE_PAUSE: Duration = Duration::from_millis(250);
/// Files on their way to the standby at once: each is in memory as a whole.
const FILES_MAX: usize = 4;
/// A part of a file.
const FILE_PART_BYTES: usize = 1 << 20;

/// Ends a home that has been replaced. Clones are the same.
#[derive(Clone)]
pub(crate) struct Fence {
    met: Arc<watch::Sender<Term>>,
}

impl Fence {
    pub(crate) fn new() -> Self {
        Self { met: Arc::new(watch::Sender::new(FIRST_TERM)) }
    }

    /// The other region has met a home of this term, or this store has. Not on a node's word: what is written down stays.
    pub(crate) fn met(&self, term: Term) {
        self.met.send_if_modified(|met| {
            let is_later = term > *met;
            *met = (*met).max(term);
            is_later
        });
    }

    /// Waits until this home, of term `own`, is replaced, writes it down, and ends it. Whatever was not committed by then is not
    /// committed here any more.
    pub(crate) async fn run(self, store: Store, own: Term, home: CancellationToken) {
        let mut changed = self.met.subscribe();
        let mut look = tokio::time::interval(LOOK_EVERY);
        let mut is_told = false;
        loop {
            let met = *changed.borrow_and_update();
            if met > own {
                let at = store.clone();
                let why = match tokio::task::spawn_blocking(move || at.replaced(met)).await {
                    Ok(Ok(_)) => {
                        tracing::error!(
                            own,
                            met,
                            "another home of this region has taken over: this one acknowledges, orders and charges nothing any more"
                        );
                        home.cancel();
                        return;
                    }
                    Ok(Err(error)) => error.to_string(),
                    Err(error) => error.to_string(),
                };
                if !std::mem::replace(&mut is_told, true) {
                    tracing::error!(
                        why,
                        met,
                        "that this home was replaced cannot be written down: it is tried again"
                    );
                }
                if home.run_until_cancelled(tokio::time::sleep(FENCE_PAUSE)).await.is_none() {
                    return;
                }
                continue;
            }
            tokio::select! {
                moved = changed.changed() => if moved.is_err() { return },
                // Another process over the same database may have heard of it.
                _ = look.tick(), if store.is_shared() => {
                    if let Ok(Standing::Replaced { by, .. }) = store.role().await {
                        self.met(by);
                    }
                }
                () = home.cancelled() => return,
            }
        }
    }
}

/// What a home says of itself.
pub(crate) fn greeting(term: Term, seal_key: &str, stream: Option<StreamId>) -> Greeting {
    Greeting {
        protocol: PROTOCOL,
        role: Standing::Home { term }.name().to_owned(),
        term,
        software: concat!("souk ", env!("CARGO_PKG_VERSION")).to_owned(),
        holds: None,
        seal_key: Some(seal_key.to_owned()),
        follows: false,
        stream: stream.map(ByteArray::from),
    }
}

/// Says who we are to whoever answers, and hears who that is. None: nobody answers.
pub(crate) async fn ask(dialer: &PeerDialer, own: &Greeting, wait_max: Duration) -> Option<Greeting> {
    let asking = async {
        let peer = dialer.dial().await.map_err(|fault| fault.to_string())?;
        let asked = greet(&peer, own).await.map(|(greeting, _)| greeting);
        peer.close("asked");
        asked
    };
    match timeout(wait_max, asking).await {
        Ok(Ok(greeting)) => Some(greeting),
        Ok(Err(why)) => {
            tracing::debug!(why, "the other region of the pair does not answer");
            None
        }
        Err(_) => None,
    }
}

/// Begins a stream with who we are.
pub(crate) async fn greet(peer: &PeerConnection, own: &Greeting) -> Result<(Greeting, PeerStream), String> {
    let greeted = async {
        let mut stream = peer.open().await?;
        stream.send(&encode(&Opening::Greeting(own.clone()))).await?;
        let said = stream.receive().await?;
        Ok::<_, PeerError>((said, stream))
    };
    let (said, stream) =
        timeout(GREETING_MAX, greeted).await.map_err(|_| "it does not say who it is".to_owned())?.map_err(
            |error| PeerDialer::why_closed(peer).map_or_else(|| error.to_string(), |why| why.to_string()),
        )?;
    Ok((decode(&said)?, stream))
}

/// Hears who has dialled, and says who we are.
pub(crate) async fn hear(peer: &PeerConnection, own: &Greeting) -> Result<(Greeting, PeerStream), String> {
    let heard = async {
        let mut stream = peer.accept().await.map_err(|e| e.to_string())?;
        let said = stream.receive().await.map_err(|e| e.to_string())?;
        let Opening::Greeting(greeting) = decode(&said)? else {
            return Err("it asks before it says who it is".to_owned());
        };
        stream.send(&encode(own)).await.map_err(|e| e.to_string())?;
        Ok((greeting, stream))
    };
    timeout(GREETING_MAX, heard).await.map_err(|_| "it does not say who it is".to_owned())?
}

/// A home that is one of a pair.
pub(crate) struct HomeEnd {
    pub(crate) store: Store,
    pub(crate) blobs: Arc<Blobs>,
    pub(crate) held: Arc<Held>,
    pub(crate) fence: Fence,
    pub(crate) rumours: Arc<Rumours>,
    pub(crate) term: Term,
    pub(crate) seal_key: String,
    /// None: it notes nothing, and nobody can follow.
    pub(crate) stream: Option<StreamId>,
    pub(crate) dialer: PeerDialer,
    pub(crate) follower: Mutex<Option<Follower>>,
    /// [`FRAME_TAKEN_MAX`]; less in a test.
    pub(crate) frame_taken_max: Duration,
}

/// The standby's connection.
pub(crate) struct Follower {
    peer: PeerConnection,
    /// When anything of it was heard last: a keep-alive a second at least.
    heard: Arc<Mutex<Instant>>,
}

impl HomeEnd {
    /// Serves the other region until shutdown.
    pub(crate) async fn run(self, mut peers: mpsc::Receiver<PeerConnection>, shutdown: CancellationToken) {
        let this = Arc::new(self);
        let mut serving = JoinSet::new();
        // One question at a time: it may take longer than the time between two.
        let mut asking = JoinSet::new();
        let mut ask_again = tokio::time::interval(ASK_EVERY);
        ask_again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(ended) = serving.join_next() => {
                    if let Err(error) = ended && error.is_panic() {
                        tracing::error!(%error, "serving the standby panicked");
                    }
                }
                Some(peer) = peers.recv() => {
                    if serving.len() >= PEERS_MAX {
                        peer.close("the region is busy with its peer already");
                        continue;
                    }
                    let this = Arc::clone(&this);
                    serving.spawn(async move { this.serve(&peer).await });
                }
                Some(ended) = asking.join_next() => {
                    if let Err(error) = ended && error.is_panic() {
                        tracing::error!(%error, "asking the other region panicked");
                    }
                }
                _ = ask_again.tick() => {
                    if asking.is_empty() && (this.rumours.take_unasked() || !this.held.known().is_connected) {
                        let this = Arc::clone(&this);
                        asking.spawn(async move { this.look_around().await });
                    }
                }
            }
        }
        asking.shutdown().await;
        serving.shutdown().await;
        this.dialer.close().await;
    }

    fn own(&self) -> Greeting {
        greeting(self.term, &self.seal_key, self.stream)
    }

    /// Asks whether the other region is home: nobody follows, or a node says that there is a later one. What is noted for a standby
    /// that is away is bounded here.
    async fn look_around(&self) {
        if let Some(other) = ask(&self.dialer, &self.own(), GREETING_MAX).await {
            self.judge(&other);
        }
        // Another process over the same database serves the standby.
        if self.held.is_alone() && matches!(self.store.is_alone().await, Ok(false)) {
            self.held.not_alone();
        }
        if !self.held.known().is_connected {
            // Another process may be at it, and send all rows.
            let kept_max = if self.store.is_shared() { KEPT_FOR_COPY_MAX } else { KEPT_MAX };
            self.forget(0, kept_max).await;
        }
    }

    /// What is noted has a bound, whatever becomes of the standby.
    async fn forget(&self, held: u64, kept_max: u64) {
        if let Err(error) = self.store.forget_changes(held, kept_max).await {
            tracing::debug!(%error, "what is noted for a standby is not cut back");
        }
    }

    /// What another region's word means. True: it is our standby and wants to be served.
    fn judge(&self, other: &Greeting) -> bool {
        let verdict = meet(Standing::Home { term: self.term }, self.stream, other);
        self.held.set_trouble(match &verdict {
            Verdict::Twins => Some(TWINS),
            Verdict::Itself => Some(ITSELF),
            _ => None,
        });
        match verdict {
            Verdict::Serve => return true,
            Verdict::Yield { to } => self.fence.met(to),
            Verdict::Stay(why) => tracing::debug!(why, "the other region of the pair was met"),
            // Told above; the last is a standby's.
            Verdict::Twins | Verdict::Itself | Verdict::Follow => {}
        }
        false
    }

    async fn serve(&self, peer: &PeerConnection) {
        let (other, stream) = match hear(peer, &self.own()).await {
            Ok(heard) => heard,
            Err(why) => {
                tracing::warn!(peer = %peer.remote(), why, "the other region of the pair is not understood");
                return peer.close(&why);
            }
        };
        if !self.judge(&other) {
            // It ends the connection when it has read who we are.
            let _ended = timeout(GREETING_MAX, peer.closed()).await;
            return;
        }
        let heard = Arc::new(Mutex::new(Instant::now()));
        if !self.take_on(peer, &heard) {
            return peer.close("another process of the standby follows already");
        }
        tracing::info!(peer = %peer.remote(), software = other.software, "a standby follows");
        self.held.connected(true);
        let ended = self.follow(peer, stream, other.holds, &heard).await;
        let mut follower = self.follower.lock();
        if follower.as_ref().is_some_and(|follower| Arc::ptr_eq(&follower.heard, &heard)) {
            *follower = None;
            self.held.connected(false);
        }
        drop(follower);
        tracing::warn!(peer = %peer.remote(), why = ended, "the standby is gone");
        peer.close(&ended);
    }

    /// One follows at a time; a connection on which nothing is heard any more gives way to the next.
    fn take_on(&self, peer: &PeerConnection, heard: &Arc<Mutex<Instant>>) -> bool {
        let mut follower = self.follower.lock();
        if let Some(other) = &*follower {
            if other.heard.lock().elapsed() < FOLLOWER_SILENT_MAX {
                return false;
            }
            other.peer.close("another connection of the standby has taken over");
        }
        *follower = Some(Follower { peer: peer.clone(), heard: Arc::clone(heard) });
        true
    }

    /// Sends what the standby lacks, again and again. Returns why it came to an end.
    async fn follow(
        &self,
        peer: &PeerConnection,
        stream: PeerStream,
        holds: Option<Holds>,
        said: &Mutex<Instant>,
    ) -> String {
        let (mut sender, mut receiver) = stream.split();
        let (heard, mut held) = watch::channel(0_u64);
        let is_copying = AtomicBool::new(false);
        let hear = async {
            loop {
                let frame = match receiver.receive().await {
                    Ok(frame) => frame,
                    Err(error) => return error.to_string(),
                };
                match decode::<HeldFrame>(&frame) {
                    Ok(frame) => {
                        *said.lock() = Instant::now();
                        heard.send_replace(frame.seq)
                    }
                    Err(why) => return why,
                };
            }
        };
        let speak = async {
            let mut source = match self.store.source() {
                Ok(source) => source,
                Err(error) => return error.to_string(),
            };
            let mut commits = self.store.commits();
            let mut holds = holds;
            let mut told = None;
            loop {
                commits.mark_unchanged();
                let began = Instant::now();
                let (back, sent) = match self.send(source, holds, &mut sender, &is_copying).await {
                    Ok(sent) => sent,
                    Err(why) => return why,
                };
                source = back;
                let Some(sent) = sent else {
                    let seq = holds.map_or(0, |holds| holds.seq);
                    // It holds everything, and the home that was told so has died since.
                    if let Err(error) = self.end_alone().await {
                        return error.to_string();
                    }
                    self.held.held(seq, 0, &[], true, began);
                    is_copying.store(false, Ordering::Relaxed);
                    // Whoever has heard it of the standby before may have died before it was written down.
                    if let Err(error) = self.tell_others(seq, &mut told).await {
                        return error.to_string();
                    }
                    if timeout(IDLE_EVERY, commits.changed()).await.is_err() {
                        let idle = Down::Idle { at_ms: clock::now_ms() };
                        if let Err(why) = self.hand(&mut sender, &idle).await {
                            return why;
                        }
                    }
                    continue;
                };
                match timeout(self.frame_taken_max, held.wait_for(|seq| *seq >= sent.to)).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(_)) => return "the standby says nothing any more".to_owned(),
                    Err(_) => return self.hangs(),
                }
                // What changed while all rows were copied is still to come.
                is_copying.store(sent.is_whole, Ordering::Relaxed);
                if sent.is_whole {
                    tracing::info!(rows = sent.rows, "the standby has all rows");
                }
                let is_all = !commits.has_changed().unwrap_or(false);
                self.held.held(sent.to, sent.rows, &sent.marks, is_all, began);
                holds = Some(Holds { stream: ByteArray::from(sent.stream), seq: sent.to });
                if let Err(error) = self.tell_others(sent.to, &mut told).await {
                    return error.to_string();
                }
            }
        };
        // Beside the sending, which waits for a standby that takes its time.
        let forget = async {
            loop {
                tokio::time::sleep(FORGET_EVERY).await;
                let kept_max = if is_copying.load(Ordering::Relaxed) { KEPT_FOR_COPY_MAX } else { KEPT_MAX };
                self.forget(self.held.known().seq, kept_max).await;
            }
        };
        // A standby that takes a large part in says nothing for a while, and lives.
        let listen = async {
            let mut before = peer.datagrams();
            loop {
                tokio::time::sleep(IDLE_EVERY).await;
                let datagrams = peer.datagrams();
                if datagrams != before {
                    (before, *said.lock()) = (datagrams, Instant::now());
                }
            }
        };
        tokio::select! {
            why = hear => why,
            why = speak => why,
            () = listen => "nobody listens any more".to_owned(),
            () = forget => "nothing is forgotten any more".to_owned(),
            why = self.hand_out(peer) => why,
        }
    }

    /// A standby holds everything, or does so in a moment: what counts is what both have.
    async fn end_alone(&self) -> Result<(), StoreError> {
        if self.held.is_alone() {
            // First in the store: a home that forgot it would promise again what its standby does not have.
            self.store.is_not_alone().await?;
            self.held.not_alone();
            tracing::info!("this home is not alone any more");
        }
        Ok(())
    }

    /// Tells the other processes over the same database up to where the standby holds everything, unless they were `told` that.
    async fn tell_others(&self, seq: u64, told: &mut Option<u64>) -> Result<(), StoreError> {
        if self.held.level() == AckLevel::Two && self.store.is_shared() && *told != Some(seq) {
            self.store.note_held_by_standby(seq).await?;
            *told = Some(seq);
        }
        Ok(())
    }

    /// One answer of the source, on its way as it is read.
    async fn send(
        &self,
        mut source: Source,
        holds: Option<Holds>,
        sender: &mut souk_link::PeerSender,
        is_copying: &AtomicBool,
    ) -> Result<(Source, Option<Sent>), String> {
        let (term, now_ms) = (self.term, clock::now_ms());
        let (frames, mut read) = mpsc::channel(FRAMES_AHEAD_MAX);
        let reading = tokio::task::spawn_blocking(move || {
            let sent = source.send(holds, term, now_ms, &mut |frame| frames.blocking_send(frame).is_ok());
            drop(frames);
            (source, sent)
        });
        while let Some(frame) = read.recv().await {
            match &frame {
                Down::Begin { whole: true, .. } => is_copying.store(true, Ordering::Relaxed),
                // With it the standby is one that can take over, whether or not its word of that reaches us.
                Down::End { .. } => self.end_alone().await.map_err(|e| e.to_string())?,
                _ => {}
            }
            self.hand(sender, &frame).await?;
        }
        let (source, sent) = reading.await.map_err(|e| e.to_string())?;
        Ok((source, sent.map_err(|e: StoreError| e.to_string())?))
    }

    async fn hand(&self, sender: &mut souk_link::PeerSender, frame: &Down) -> Result<(), String> {
        match timeout(self.frame_taken_max, sender.send(&encode(frame))).await {
            Ok(sent) => sent.map_err(|e| e.to_string()),
            Err(_) => Err(self.hangs()),
        }
    }

    /// Why the connection of a standby ends that lives and takes nothing.
    fn hangs(&self) -> String {
        self.held.hangs();
        HANGS.to_owned()
    }

    /// Files that rows refer to, a stream each. Returns why it came to an end.
    async fn hand_out(&self, peer: &PeerConnection) -> String {
        let mut files = JoinSet::new();
        // Kept over the turns: a stream that was accepted and whose first byte is on its way would be lost with it.
        let accepting = peer.accept();
        tokio::pin!(accepting);
        loop {
            let stream = tokio::select! {
                Some(_ended) = files.join_next() => continue,
                stream = &mut accepting, if files.len() < FILES_MAX => stream,
            };
            match stream {
                Ok(stream) => {
                    accepting.set(peer.accept());
                    let blobs = Arc::clone(&self.blobs);
                    files.spawn(async move {
                        if let Err(why) = hand_out_one(&blobs, stream).await {
                            tracing::debug!(why, "a file was not handed to the standby");
                        }
                    });
                }
                Err(error) => return error.to_string(),
            }
        }
    }
}

async fn hand_out_one(blobs: &Blobs, stream: PeerStream) -> Result<(), String> {
    let (mut sender, mut receiver) = stream.split();
    let said = receiver.receive().await.map_err(|e| e.to_string())?;
    let Opening::WantBlob(WantBlob { digest }) = decode(&said)? else {
        return Err("it says twice who it is".to_owned());
    };
    let part = |bytes: Option<&[u8]>| encode(&BlobPart { bytes: bytes.map(|bytes| bytes.to_vec().into()) });
    let loaded = blobs.load(Digest(*digest)).await;
    match loaded {
        Ok(Some(bytes)) => {
            for chunk in bytes.chunks(FILE_PART_BYTES) {
                sender.send(&part(Some(chunk))).await.map_err(|e| e.to_string())?;
            }
            sender.send(&part(Some(&[]))).await.map_err(|e| e.to_string())?;
        }
        Ok(None) => sender.send(&part(None)).await.map_err(|e| e.to_string())?,
        Err(error) => return Err(error.to_string()),
    }
    sender.finish();
    // Until the standby has read it: a stream that is dropped is cut off.
    let _ended = receiver.receive().await;
    Ok(())
}

#[cfg(test)]
pub(super) mod tests;
