//! What a region is raised as: what its store says that it is, until that changes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use souk_config::{RegionConfig, StoreConfig};
use souk_link::{RegionLinkConfig, StartError, start_region};
use souk_replication::{FIRST_TERM, Term};
use souk_sandbox::Compiler;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{RegionError, password, raise_home};
use crate::backup::{BackupError, door};
use crate::blobs::Blobs;
use crate::control;
use crate::journal::Journal;
use crate::own;
use crate::pair;
use crate::pair::home::PEERS_WAITING_MAX;
use crate::pair::rules::{ITSELF, TWINS, Verdict, meet};
use crate::pair::standby::{NoNodes, NotHome, NotHomeParts};
use crate::sealing;
use crate::store::backup::file_in;
use crate::store::pair::sink::Sink;
use crate::store::pair::standing::Standing;
use crate::store::{KekFile, claim};

/// How long a home of a pair waits at its start for the other region's word.
const ASK_AT_START_MAX: Duration = Duration::from_secs(2);

/// How long the address and the store of what a region was are waited for, and between two looks.
const FORMER_WAIT_MAX: Duration = Duration::from_secs(60);
const FORMER_PAUSE: Duration = Duration::from_millis(100);

/// Where people reach the region, whatever it becomes: while it changes, whoever comes waits and is not refused.
#[derive(Default)]
pub(super) struct ControlDoor(Option<std::net::TcpListener>);

impl ControlDoor {
    /// Listens there. The answer may be dropped: connections then wait for the next one.
    pub(super) async fn open(&mut self, addr: SocketAddr) -> Result<(TcpListener, SocketAddr), RegionError> {
        let refused =
            |e: std::io::Error| RegionError::Listen { what: "control API", addr, reason: e.to_string() };
        let kept = match self.0.take() {
            Some(kept) => kept,
            None => TcpListener::bind(addr).await.and_then(TcpListener::into_std).map_err(refused)?,
        };
        let listener = kept.try_clone().and_then(TcpListener::from_std).map_err(refused)?;
        self.0 = Some(kept);
        let at = listener.local_addr().map_err(refused)?;
        Ok((listener, at))
    }

    /// Nothing comes after what the region is: whoever comes is refused, and goes elsewhere.
    pub(super) fn close(&mut self) {
        self.0 = None;
    }
}

/// A region that runs as what it is.
pub(super) struct Stage {
    pub(super) link_addr: SocketAddr,
    pub(super) control_addr: SocketAddr,
    pub(super) join: JoinHandle<Result<(), RegionError>>,
}

/// A region as what its store says that it is, until that changes. `asks`: it was away, and may have been replaced meanwhile.
pub(super) async fn raise(
    config: &RegionConfig,
    compiler: &Compiler,
    asks: bool,
    door: &mut ControlDoor,
    shutdown: &CancellationToken,
) -> Result<Stage, RegionError> {
    let unusable =
        |reason: String| RegionError::Store { dir: config.region.data_dir.display().to_string(), reason };
    let is = match standing(config).await.map_err(unusable)? {
        Standing::Home { term } if asks => still_home(config, term).await?,
        is => is,
    };
    let stage = shutdown.child_token();
    let raised = match is {
        Standing::Home { term } => {
            raise_home(config.clone(), compiler.clone(), term, door, stage.clone()).await
        }
        other => raise_not_home(config, other, door, stage.clone()).await,
    };
    if raised.is_err() {
        // What had begun already.
        stage.cancel();
    }
    raised
}

/// The same of a region that was something else a moment ago: what is left of that is about to go, and is waited for.
pub(super) async fn raise_again(
    config: &RegionConfig,
    compiler: &Compiler,
    door: &mut ControlDoor,
    shutdown: &CancellationToken,
) -> Result<Stage, RegionError> {
    let give_up = Instant::now() + FORMER_WAIT_MAX;
    // Before the store is opened, which would have to be closed again for it.
    while std::net::UdpSocket::bind(config.listen.link).is_err() && Instant::now() < give_up {
        tokio::time::sleep(FORMER_PAUSE).await;
    }
    loop {
        match raise(config, compiler, false, door, shutdown).await {
            Err(error @ (RegionError::Listen { .. } | RegionError::Store { .. }))
                if Instant::now() < give_up =>
            {
                tracing::warn!(%error, "the region cannot become what it is to be yet: it tries again");
                tokio::time::sleep(FORMER_PAUSE).await;
            }
            raised => return raised,
        }
    }
}

/// What the store says that it is.
async fn standing(config: &RegionConfig) -> Result<Standing, String> {
    let config = config.clone();
    let read = move || {
        own::folder(&config.region.data_dir).map_err(|e| e.to_string())?;
        if config.store == StoreConfig::Sqlite && !file_in(&config.region.data_dir).exists() {
            return Ok(Standing::Home { term: FIRST_TERM });
        }
        door(&config).map_err(|e| e.to_string())?.standing().map_err(|e| e.to_string())
    };
    tokio::task::spawn_blocking(read).await.map_err(|e| e.to_string())?
}

/// A home of a pair asks the other region before it is one again: while it was away, another one may have taken over.
async fn still_home(config: &RegionConfig, term: Term) -> Result<Standing, RegionError> {
    let own = Standing::Home { term };
    let Some(pair) = &config.pair else { return Ok(own) };
    let failed = |why: String| RegionError::Pair(why);
    let dialer = pair::dialer(config, pair).map_err(|e| failed(e.to_string()))?;
    let stream = {
        let config = config.clone();
        let read = move || door(&config)?.change_stream().map_err(BackupError::from);
        // A store that is made in a moment has none.
        tokio::task::spawn_blocking(read).await.ok().and_then(Result::ok).flatten()
    };
    let greeting = pair::home::greeting(term, "", stream);
    let other = pair::home::ask(&dialer, &greeting, ASK_AT_START_MAX).await;
    dialer.close().await;
    let Some(other) = other else {
        tracing::warn!(
            "the other region of the pair does not answer: this one goes on as home, unless it hears of a later one"
        );
        return Ok(own);
    };
    match meet(own, stream, &other) {
        Verdict::Yield { to } => {
            let config = config.clone();
            let written = move || {
                let door = door(&config).map_err(|e| e.to_string())?;
                door.replaced(to).map_err(|e| e.to_string())
            };
            let written = tokio::task::spawn_blocking(written).await.map_err(|e| failed(e.to_string()))?;
            written.map_err(failed)
        }
        Verdict::Twins => Err(failed(TWINS.to_owned())),
        Verdict::Itself => Err(failed(ITSELF.to_owned())),
        Verdict::Serve | Verdict::Follow | Verdict::Stay(_) => Ok(own),
    }
}

/// A region that follows, or that was replaced: see [`crate::pair::standby`].
async fn raise_not_home(
    config: &RegionConfig,
    standing: Standing,
    control: &mut ControlDoor,
    stage: CancellationToken,
) -> Result<Stage, RegionError> {
    let dir = config.region.data_dir.clone();
    let unusable = |reason: String| RegionError::Store { dir: dir.display().to_string(), reason };
    let failed = |why: String| RegionError::Pair(why);
    let dialer = match (&config.pair, standing) {
        (Some(pair), Standing::Standby { .. }) => {
            Some(pair::dialer(config, pair).map_err(|e| failed(e.to_string()))?)
        }
        _ => None,
    };
    let opening = {
        let config = config.clone();
        tokio::task::spawn_blocking(move || {
            let dir = &config.region.data_dir;
            let is_file = config.store == StoreConfig::Sqlite;
            let claim = is_file.then(|| claim(dir)).transpose().map_err(|e| e.to_string())?;
            let seal = sealing::open(dir, config.control.seal_key.as_deref(), rand::random)?;
            let blobs =
                Blobs::open(dir, config.limits.blob_bytes_max, !is_file).map_err(|e| e.to_string())?;
            if matches!(standing, Standing::Standby { .. }) {
                // Of another process over a database that was made a standby.
                Journal::remove(dir).map_err(|e| format!("cannot remove its journal: {e}"))?;
            }
            let sink = match (&config.store, standing) {
                (StoreConfig::Sqlite, Standing::Standby { .. }) => Some(Sink::of_file(dir)),
                (StoreConfig::Postgres(database), Standing::Standby { .. }) => {
                    Some(Sink::of_server(database, password(database)?.as_deref()))
                }
                _ => None,
            };
            let sink = sink.transpose().map_err(|e| e.to_string())?;
            let door = door(&config).map_err(|e| e.to_string())?;
            Ok::<_, String>((claim, seal.id().to_owned(), Arc::new(blobs), sink, door))
        })
    };
    let (claim, seal_key, blobs, sink, door) =
        opening.await.map_err(|e| unusable(e.to_string()))?.map_err(unusable)?;

    let (listener, control_addr) = control.open(config.listen.control).await?;
    let (peers, peers_waiting) = mpsc::channel(PEERS_WAITING_MAX);
    let reset_key: [u8; 32] = rand::random();
    let mut link_config =
        RegionLinkConfig::new(config.listen.link, &config.region.name, pair::tls(config), reset_key.to_vec());
    link_config.closed = Some(NotHome::why_closed(standing));
    link_config.peers = Some(peers);
    let (link, link_task) =
        start_region(link_config, Arc::new(NoNodes::new()), stage.clone()).map_err(no_link)?;

    match standing {
        Standing::Standby { .. } if dialer.is_none() => tracing::error!(
            "this region is a standby, and its settings name no home to follow: add a table [pair]"
        ),
        Standing::Standby { .. } => tracing::info!("this region is the standby: it follows the home"),
        Standing::Replaced { term, by } => tracing::error!(
            term,
            by,
            "this region was home, and another one has taken over: it serves nobody. Back it up if the other one may lack something, and make it the standby (souk region follow --discard)"
        ),
        Standing::Home { .. } => {}
    }
    let region = NotHome::new(NotHomeParts {
        config: Arc::new(config.clone()),
        door,
        standing,
        blobs,
        kek: KekFile::new(&dir, config.vault.key_file.clone()),
        seal_key,
        dialer,
        sink,
        ended: stage.clone(),
    });
    let router = pair::standby::router(Arc::clone(&region));
    let control_task =
        tokio::spawn(control::serve(listener, router, stage.clone(), config.limits.drain_deadline));
    let running = tokio::spawn(region.run(peers_waiting));
    let link_addr = link.local_addr();
    let join = tokio::spawn(async move {
        stage.cancelled().await;
        for (name, task) in [("link", link_task), ("control API", control_task), ("standby", running)] {
            if let Err(error) = task.await {
                tracing::error!(name, %error, "a part of the region panicked");
            }
        }
        // Whatever it is next claims its file for itself.
        drop(claim);
        Ok(())
    });
    Ok(Stage { link_addr, control_addr, join })
}

/// A door that somebody else has may be free in a moment; a certificate stays wrong.
pub(super) fn no_link(error: StartError) -> RegionError {
    match error {
        StartError::Bind { addr, source } => {
            RegionError::Listen { what: "link", addr, reason: source.to_string() }
        }
        other => RegionError::Link(other),
    }
}
