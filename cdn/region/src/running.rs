//! Raises a region and takes it down in order: as its home here, as what else its store may say that it is in [`role`].

mod role;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use souk_config::{
    CompilerConfig, PASSWORD_VARIABLE, PostgresConfig, RegionConfig, RegionLimits, Seccomp, StoreConfig,
};
use souk_link::{RegionLinkConfig, StartError, start_region};
use souk_replication::Term;
use souk_sandbox::http::{HttpEngine, HttpLimits};
use souk_sandbox::record::Studio;
use souk_sandbox::{
    CompileLimits, Compiler, Confinement, HookEngine, HookLimits, Loader, LoaderMetrics, LoaderSettings,
    Share, ShareLimits,
};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::blobs::Blobs;
use crate::chains::{Chains, Sandbox};
use crate::checkout::Checkouts;
use crate::collect::Collector;
use crate::control::{self, ControlParts, HomeStatus};
use crate::digests::Digests;
use crate::erasures::Unended;
use crate::events::Publisher;
use crate::journal::Journal;
use crate::lending::Lending;
use crate::obeyed::Obeyed;
use crate::own;
use crate::pair;
use crate::pair::held::Held;
use crate::pair::home::{FRAME_TAKEN_MAX, Fence, HomeEnd, PEERS_WAITING_MAX};
use crate::pair::rumour::Rumours;
use crate::presence::Presence;
use crate::rollout::Rollout;
use crate::saga::provider::Providers;
use crate::saga::worker::Payments;
use crate::sealing;
use crate::stock::StockKeeper;
use crate::store::audit::Actor;
use crate::store::log::Identity;
use crate::store::{KekFile, Store, StoreError, StoreSettings};
use crate::telemetry::Telemetry;
use crate::uplink::{OPERATION_SCHEMAS, Uplink};
use role::{ControlDoor, Stage};

/// Before a store that is busy is asked again to seal what is old.
const SEAL_PAUSE: Duration = Duration::from_secs(1);
/// An operator makes this file in the data directory when the database there comes from a backup.
const RESTORED_MARK: &str = "restored";

/// How long a region that starts waits for a busy store, and between two tries.
const START_WAIT_MAX: Duration = Duration::from_secs(60);
const START_PAUSE: Duration = Duration::from_millis(200);

/// A region that listens.
#[derive(Debug)]
pub struct Running {
    /// Where nodes reach it, QUIC over UDP.
    pub link_addr: SocketAddr,
    /// Where people reach it, HTTP.
    pub control_addr: SocketAddr,
    /// Ends after the shutdown token is cancelled and everything accepted is on the disk.
    pub join: JoinHandle<Result<(), RegionError>>,
}

/// Why a region could not be raised, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    #[error("cannot open the region's store in {dir}: {reason}")]
    Store { dir: String, reason: String },
    #[error("cannot listen on {addr} for the {what}: {reason}")]
    Listen { what: &'static str, addr: SocketAddr, reason: String },
    #[error("cannot start the link to the nodes: {0}")]
    Link(StartError),
    #[error("cannot start the sandbox: {0}")]
    Sandbox(String),
    #[error("cannot set up the payments: {0}")]
    Payments(String),
    #[error("cannot set up the way of events to their broker: {0}")]
    Events(String),
    #[error("cannot be one of a pair of regions: {0}")]
    Pair(String),
    #[error("the {0} ended although nobody asked it to")]
    Ended(&'static str),
}

/// Opens the store, listens, and returns as soon as both doors are open (port 0 picks a free one).
///
/// A `SIGKILL` at any moment loses nothing that was answered: the store answers after its commit. Cancelling `shutdown`
/// only spares those who are in the middle of a question.
///
/// `compiler`: where plugins are compiled.
pub fn run(
    config: RegionConfig,
    compiler: Compiler,
    shutdown: CancellationToken,
) -> BoxFuture<'static, Result<Running, RegionError>> {
    // Boxed here, so that a region is compiled with this crate and not with the program that awaits it.
    Box::pin(start(config, compiler, shutdown))
}

async fn start(
    mut config: RegionConfig,
    compiler: Compiler,
    shutdown: CancellationToken,
) -> Result<Running, RegionError> {
    let mut door = ControlDoor::default();
    let mut stage = role::raise(&config, &compiler, true, &mut door, &shutdown).await?;
    let (link_addr, control_addr) = (stage.link_addr, stage.control_addr);
    // Whatever it becomes, it is found where it was.
    (config.listen.link, config.listen.control) = (link_addr, control_addr);
    let join = tokio::spawn(async move {
        loop {
            let ended = match shutdown.run_until_cancelled(&mut stage.join).await {
                Some(ended) => ended,
                None => {
                    door.close();
                    stage.join.await
                }
            };
            ended.unwrap_or(Err(RegionError::Ended("region")))?;
            if shutdown.is_cancelled() {
                return Ok(());
            }
            // Its store is something else than it was.
            let again = Box::pin(role::raise_again(&config, &compiler, &mut door, &shutdown));
            match shutdown.run_until_cancelled(again).await {
                Some(raised) => stage = raised?,
                None => return Ok(()),
            }
        }
    });
    Ok(Running { link_addr, control_addr, join })
}

/// A region that is home. `shutdown` ends it as such.
async fn raise_home(
    config: RegionConfig,
    compiler: Compiler,
    term: Term,
    door: &mut ControlDoor,
    shutdown: CancellationToken,
) -> Result<Stage, RegionError> {
    let dir = config.region.data_dir.clone();
    let unusable = |reason: String| RegionError::Store { dir: dir.display().to_string(), reason };
    let is_followed = config.pair.is_some();
    let log_entries_kept_max = config.limits.log_entries_kept_max.into();
    let seal_key = config.control.seal_key.clone();
    let (blob_dir, blob_bytes_max) = (dir.clone(), config.limits.blob_bytes_max);
    let (store_config, vault_config) = (config.store.clone(), config.vault.clone());
    let (store_dir, journal_shutdown) = (dir.clone(), shutdown.clone());
    let opening = tokio::task::spawn_blocking(move || {
        own::folder(&store_dir).map_err(|e| e.to_string())?;
        let seal = Arc::new(sealing::open(&store_dir, seal_key.as_deref(), rand::random)?);
        let kek = KekFile::new(&store_dir, vault_config.key_file);
        let seal_key = seal.id().to_owned();
        let settings = StoreSettings { log_entries_kept_max, seal, kek, is_followed };
        let store = open_store(&store_dir, &store_config, settings)?;
        let blobs = Blobs::open(&blob_dir, blob_bytes_max, store.is_shared()).map_err(|e| e.to_string())?;
        let journal = Journal::open(&store_dir, journal_shutdown).map_err(|e| e.to_string())?;
        Ok::<_, String>((store, Arc::new(blobs), journal, seal_key))
    });
    let (store, blobs, journal, seal_id) =
        opening.await.map_err(|e| unusable(e.to_string()))?.map_err(unusable)?;
    // The epoch is positive and, told from another one's by chance, greater than it half the time: what counts is that it differs.
    let fresh = Identity { region_epoch: rand::random_range(1..=u32::MAX / 2), reset_key: rand::random() };
    begin_history_if_restored(&dir, &store, fresh.region_epoch).await.map_err(unusable)?;
    let identity = patiently(|| store.identity(fresh.clone())).await.map_err(unusable)?;
    patiently(|| store.note_takeover()).await.map_err(unusable)?;
    let itself = Actor { name: "region".to_owned(), peer: String::new() };
    match patiently(|| store.end_erasures(u64::MAX, itself.clone())).await.map_err(unusable)? {
        0 => {}
        keys => tracing::info!(keys, "erasures that were cut short are finished"),
    }
    match patiently(|| store.erase_orphans(itself.clone())).await.map_err(unusable)? {
        0 => {}
        shoppers => tracing::warn!(
            shoppers,
            "the store held shoppers who have been erased, as a backup does: they are erased again"
        ),
    }
    match patiently(|| store.seal_chains(itself.clone())).await.map_err(unusable)? {
        0 => {}
        chains => tracing::info!(chains, "active chains are sealed with the region's present key"),
    }

    let telemetry = Arc::new(Telemetry::new());
    let settings = config.payments.clone();
    let providers = tokio::task::spawn_blocking(move || Providers::set_up(&settings)).await;
    let providers = providers
        .map_err(|e| RegionError::Payments(e.to_string()))?
        .map_err(|e| RegionError::Payments(e.to_string()))?;
    let level = config.pair.as_ref().map(|pair| pair.ack_level).unwrap_or_default();
    let is_alone = patiently(|| store.is_alone()).await.map_err(unusable)?;
    let held = Arc::new(Held::new(level, is_alone));
    let payments =
        Payments::new(store.clone(), Arc::new(providers), Arc::clone(&telemetry), Arc::clone(&held));
    let publisher = Publisher::set_up(
        config.events.clone(),
        &config.region.name,
        store.clone(),
        Arc::clone(&telemetry),
        Arc::clone(&held),
    );
    let publisher = publisher.await.map_err(RegionError::Events)?;
    let sandbox = sandbox(&dir, &config.limits, compiler, config.compiler, telemetry.loader.clone()).await?;
    // Shoppers are hashed under a key that nobody keeps, as on a node.
    let studio = Studio::start(Arc::new(journal.clone()), rand::random(), telemetry.studio.clone());
    let studio = studio
        .map_err(|e| RegionError::Sandbox(format!("cannot start the thread that records calls: {e}")))?;
    let chains = Chains::new(sandbox, Arc::clone(&blobs), telemetry.hooks.clone(), Some(studio));
    let chains = Arc::new(chains);
    let wait_max = config.limits.checkout_wait;
    let share = Share::new(&ShareLimits::default(), telemetry.share.clone())
        .map_err(|e| RegionError::Sandbox(format!("cannot start the lane for long calls: {e}")))?;
    let checkouts = Checkouts {
        share,
        store: store.clone(),
        chains: Arc::clone(&chains),
        telemetry: Arc::clone(&telemetry),
        journal: journal.clone(),
        payments: payments.clone(),
        held: Arc::clone(&held),
        wait_max,
        payment_wait_max: config.limits.payment_wait,
    };
    let fence = Fence::new();
    let rumours = Arc::new(Rumours::new(term, is_followed));
    let rollout = Rollout::new();
    let obeyed = Arc::new(Obeyed::new());
    let digests = Digests::new(store.clone(), identity.region_epoch);
    let uplink = Arc::new(Uplink {
        store: store.clone(),
        blobs: Lending::new(Arc::clone(&blobs)),
        checkouts,
        journal: journal.clone(),
        rollout: Arc::clone(&rollout),
        obeyed: Arc::clone(&obeyed),
        digests: digests.clone(),
        telemetry: Arc::clone(&telemetry),
        held: Arc::clone(&held),
        rumours: Arc::clone(&rumours),
        wait_max,
    });

    let (control_listener, control_addr) = door.open(config.listen.control).await?;
    let tls = pair::tls(&config);
    let mut link_config =
        RegionLinkConfig::new(config.listen.link, &config.region.name, tls, identity.reset_key.to_vec());
    link_config.term = term;
    let home_end = match &config.pair {
        None => None,
        Some(other) => {
            let (peers, waiting) = mpsc::channel(PEERS_WAITING_MAX);
            link_config.peers = Some(peers);
            let end = HomeEnd {
                store: store.clone(),
                blobs: Arc::clone(&blobs),
                held: Arc::clone(&held),
                fence: fence.clone(),
                rumours: Arc::clone(&rumours),
                term,
                seal_key: seal_id,
                stream: patiently(|| store.change_stream()).await.map_err(unusable)?,
                dialer: pair::dialer(&config, other).map_err(|e| RegionError::Pair(e.to_string()))?,
                follower: parking_lot::Mutex::new(None),
                frame_taken_max: FRAME_TAKEN_MAX,
            };
            Some((end, waiting))
        }
    };
    link_config.region_epoch = identity.region_epoch;
    link_config.schemas = OPERATION_SCHEMAS.to_vec();
    link_config.software = concat!("souk ", env!("CARGO_PKG_VERSION")).to_owned();
    // Twice: a node that redials has two connections until the new one takes over, and all may redial at once.
    link_config.connections_max = 2 * config.limits.nodes_max as usize;
    let (link, link_task) = start_region(link_config, uplink, shutdown.clone()).map_err(role::no_link)?;
    // From here on nothing fails: what runs by itself would hold the store of a region that was not raised.
    if let Some((end, waiting)) = home_end {
        // Ends when the token is cancelled: what it was sending is sent again.
        tokio::spawn(end.run(waiting, shutdown.clone()));
    }
    // The same.
    tokio::spawn(fence.run(store.clone(), term, shutdown.clone()));

    let warming = {
        let (chains, store, shutdown) = (Arc::clone(&chains), store.clone(), shutdown.clone());
        tokio::spawn(async move { chains.warm(store, shutdown).await })
    };
    // Ends when the token is cancelled; what it has begun is done at the next start.
    let collector =
        Collector { store: store.clone(), blobs: Arc::clone(&blobs), telemetry: Arc::clone(&telemetry) };
    tokio::spawn(collector.run(shutdown.clone()));
    // The same.
    tokio::spawn(seal_older(store.clone(), shutdown.clone()));
    // The same.
    let unended = Unended { store: store.clone(), telemetry: Arc::clone(&telemetry) };
    tokio::spawn(unended.run(shutdown.clone()));
    // The same.
    tokio::spawn(crate::words::keep(store.clone(), Arc::clone(&telemetry), shutdown.clone()));
    let stock = StockKeeper { store: store.clone(), telemetry: Arc::clone(&telemetry) };
    tokio::spawn(stock.run(shutdown.clone()));
    let presence =
        Presence::new(store.clone(), link.clone(), Arc::clone(&rollout), Arc::clone(&obeyed), rand::random());
    let presence = Arc::new(presence);
    tokio::spawn(Arc::clone(&presence).run(shutdown.clone()));
    let paying = tokio::spawn(payments.clone().run(shutdown.clone()));
    let telling = {
        let shutdown = shutdown.clone();
        tokio::spawn(async move {
            if let Some(publisher) = publisher {
                publisher.run(shutdown).await;
            }
        })
    };
    let router = control::router(ControlParts {
        region: config.region.name,
        pair: HomeStatus { held, rumours, term, is_paired: is_followed },
        store: store.clone(),
        blobs,
        chains: Arc::clone(&chains),
        link: link.clone(),
        journal: journal.clone(),
        rollout,
        obeyed,
        digests,
        presence,
        payments,
        telemetry,
        operator_token_sha256: config.control.operator_token_sha256,
        body_bytes_max: config.limits.control_body_bytes_max,
    });
    let drain_max = config.limits.drain_deadline;
    let control_task = tokio::spawn(control::serve(control_listener, router, shutdown.clone(), drain_max));
    // Ends at once when the token is cancelled, and owns nothing.
    tokio::spawn(journal.clone().keep_tidy(shutdown.clone()));
    let join = tokio::spawn(supervise(
        store,
        journal,
        chains,
        link_task,
        control_task,
        [warming, paying, telling],
        shutdown,
    ));
    Ok(Stage { link_addr: link.local_addr(), control_addr, join })
}

/// Asks a store that other processes keep busy once more, for a minute at most: an import of theirs takes seconds.
async fn patiently<T, F>(attempt: impl Fn() -> F) -> Result<T, String>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let give_up = Instant::now() + START_WAIT_MAX;
    loop {
        match attempt().await {
            Err(error) if error.is_transient() && Instant::now() < give_up => {
                tracing::info!(%error, "the store is busy: the region starts in a moment");
                tokio::time::sleep(START_PAUSE).await;
            }
            outcome => return outcome.map_err(|error| error.to_string()),
        }
    }
}

/// Seals what an older version has left open, until it is done or the region goes down.
async fn seal_older(store: Store, shutdown: CancellationToken) {
    let mut rows = 0;
    loop {
        match shutdown.run_until_cancelled(store.seal_older()).await {
            Some(Ok(0)) => break,
            Some(Ok(some)) => rows += some,
            None => return,
            Some(Err(error)) if error.is_transient() => {
                if shutdown.run_until_cancelled(tokio::time::sleep(SEAL_PAUSE)).await.is_none() {
                    return;
                }
            }
            Some(Err(error)) => {
                tracing::error!(%error, "orders of an older version cannot be sealed: they stay as they are until the next start");
                return;
            }
        }
    }
    if rows > 0 {
        tracing::info!(
            rows,
            "orders of an older version are sealed; on SQLite, VACUUM takes out what older pages still hold"
        );
    }
}

/// The store that the settings name, with a password that stands in none of them.
fn open_store(dir: &Path, config: &StoreConfig, settings: StoreSettings) -> Result<Store, String> {
    let StoreConfig::Postgres(database) = config else {
        return Store::open(dir, settings).map_err(|e| e.to_string());
    };
    let password = password(database)?;
    Store::open_postgres(database, password.as_deref(), settings).map_err(|e| {
        let (host, port) = &database.hosts[0];
        format!("the PostgreSQL at {host}, port {port}, database {:?}: {e}", database.database)
    })
}

/// What a server asks for beside the name of its user.
pub(crate) fn password(database: &PostgresConfig) -> Result<Option<String>, String> {
    let Some(file) = &database.password_file else { return Ok(std::env::var(PASSWORD_VARIABLE).ok()) };
    let text = std::fs::read_to_string(file)
        .map_err(|e| format!("cannot read the database's password in {}: {e}", file.display()))?;
    Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned()))
}

/// What loads plugins: the engines, and the machine code that is kept.
async fn sandbox(
    dir: &Path,
    limits: &RegionLimits,
    compiler: Compiler,
    cell: CompilerConfig,
    metrics: LoaderMetrics,
) -> Result<Sandbox, RegionError> {
    let refused = |error: String| RegionError::Sandbox(error);
    let engine = HookEngine::new(HookLimits::default()).map_err(|e| refused(e.to_string()))?;
    let http = HttpEngine::new(HttpLimits::default()).map_err(|e| refused(e.to_string()))?;
    let settings = LoaderSettings {
        compiler,
        limits: CompileLimits {
            processor_max: limits.compile_processor_max,
            memory_bytes_max: limits.compile_memory_bytes_max,
            at_once_max: limits.compilations_max as usize,
            ..CompileLimits::default()
        },
        confinement: match cell.seccomp {
            Seccomp::Required => Confinement::Required,
            Seccomp::BestEffort => Confinement::BestEffort,
        },
        artefacts: Some((dir.join("artefacts"), limits.artefact_disk_bytes_max)),
    };
    let opened = tokio::task::spawn_blocking(move || Loader::open(settings, metrics)).await;
    let loader = opened
        .map_err(|e| refused(e.to_string()))?
        .map_err(|e| refused(format!("cannot open {}: {e}", dir.join("artefacts").display())))?;
    Ok(Sandbox { engine, http, loader })
}

/// A database from a backup bears the number of the history that went on without it, and its versions will be given out a
/// second time for other rows. `souk region restore` leaves word of it in the database; who puts a file there by hand, makes
/// the file [`RESTORED_MARK`].
async fn begin_history_if_restored(dir: &Path, store: &Store, region_epoch: u32) -> Result<(), String> {
    let mark = dir.join(RESTORED_MARK);
    if !mark.exists() && !store.wants_new_history().await.map_err(|e| e.to_string())? {
        return Ok(());
    }
    store.begin_history(region_epoch).await.map_err(|e| e.to_string())?;
    store.renumber_sets().await.map_err(|e| e.to_string())?;
    let itself = Actor { name: "region".to_owned(), peer: String::new() };
    store.new_history_has_begun(itself, region_epoch).await.map_err(|e| e.to_string())?;
    // Last: a crash before it numbers the history once more, which costs the nodes another snapshot and nothing else.
    match tokio::fs::remove_file(&mark).await {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(format!("cannot remove {}: {e}", mark.display()));
        }
        _ => {}
    }
    tracing::warn!(
        region_epoch,
        "the region was restored: every node takes every log whole, and sends again what it has kept"
    );
    Ok(())
}

/// Waits for the end; if one part ends by itself, ends the others, so that whoever started us learns of it.
async fn supervise(
    store: Store,
    journal: Journal,
    chains: Arc<Chains>,
    mut link: JoinHandle<()>,
    mut control: JoinHandle<()>,
    [warming, paying, telling]: [JoinHandle<()>; 3],
    shutdown: CancellationToken,
) -> Result<(), RegionError> {
    let early = tokio::select! {
        _ = &mut link => (!shutdown.is_cancelled()).then_some("link"),
        _ = &mut control => (!shutdown.is_cancelled()).then_some("control API"),
        () = shutdown.cancelled() => None,
    };
    shutdown.cancel();
    for (name, task) in [
        ("link", link),
        ("control API", control),
        ("warming of chains", warming),
        ("payments", paying),
        ("events' publisher", telling),
    ] {
        if !task.is_finished()
            && let Err(error) = task.await
        {
            tracing::error!(name, %error, "a part of the region panicked");
        }
    }
    chains.close().await;
    // Last: whoever was still being answered has been.
    let closing = tokio::task::spawn_blocking(move || {
        store.close();
        journal.close();
    });
    if closing.await.is_err() {
        tracing::error!("closing the store panicked");
    }
    early.map_or(Ok(()), |what| Err(RegionError::Ended(what)))
}
