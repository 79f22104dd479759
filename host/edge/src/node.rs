//! The node, put together: what is opened in which order, what runs beside the requests, and how it ends.
//!
//! Started by the command line with a validated configuration. Owns the tasks; each ends with the shutdown token.

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use http::HeaderValue;
use ipnet::IpNet;
use souk_commerce::id::NodeId;
use souk_commerce::seal::TrustedKeys;
use souk_config::{CacheShares, CompilerConfig, EdgeConfig, EdgeLimits, Seccomp};
use souk_link::{Log, NodeLinkConfig, Pem, RegionAddress, TlsFiles, start_node};
use souk_sandbox::http::{HttpEngine, HttpLimits, HttpMetrics, Outbound, OutboundLimits, Reach};
use souk_sandbox::record::{Studio, StudioMetrics};
use souk_sandbox::{
    CompileLimits, Compiler, Confinement, HookEngine, HookLimits, Loader, LoaderMetrics, LoaderSettings,
    Share, ShareLimits, ShareMetrics,
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::AccessLog;
use crate::admin::Admin;
use crate::agreement::Agreement;
use crate::assets::{AssetMetrics, Assets};
use crate::blobs::Blobs;
use crate::chain::{Chains, Floors, Plugins, Room, Workshop};
use crate::doors::OpenDoors;
use crate::gate::Rates;
use crate::http::now_ms;
use crate::journal::{Journal, JournalMetrics};
use crate::listen::{ListenLimits, Listener, Sockets};
use crate::page_cache::{PageCache, PageMetrics};
use crate::per_site::PerSite;
use crate::routes::{PeerDoor, Routes};
use crate::running::{Listening, RunError, Running};
use crate::search::{SearchMetrics, Searches};
use crate::state::store::LinkStore;
use crate::state::terms::Terms;
use crate::state::{OpenError, Replica, State};
use crate::stock::Stock;
use crate::telemetry::Telemetry;
use crate::trace::{TraceMetrics, Tracer, Watcher};
use crate::uplink::Uplink;
use crate::upstream::{Kept, Place, PurgeMark};

/// Carts asked of the region at once. A stranger who guesses cart numbers must not fill the link.
const FETCHES_MAX: usize = 128;
/// The same for carts that the region shall give only after another node's write: each may wait there for seconds, so
/// they have places of their own.
const FETCHES_AFTER_MAX: usize = 32;
/// How often old files make room.
const SWEEP_EVERY: Duration = Duration::from_secs(600);
/// How long the node's start waits for the address of a region that has a name.
const REGION_LOOKUP_MAX: Duration = Duration::from_millis(500);
/// How long a node that may share its ports waits for the process before it to leave the data directory: twice the default
/// drain deadline, and what closing takes.
const TAKE_OVER_MAX: Duration = Duration::from_secs(30);
const TAKE_OVER_EVERY: Duration = Duration::from_millis(100);
/// How the operations of this version are encoded; the region says whether it reads them.
const OPERATION_SCHEMA: u16 = 1;

/// What every request shares.
#[derive(Debug)]
pub struct Node {
    pub pop: String,
    /// `<pop>/<id>`, on every answer.
    pub tag: HeaderValue,
    pub limits: EdgeLimits,
    pub state: Arc<State>,
    pub replica: Arc<Replica>,
    pub chains: Arc<Chains>,
    /// Whose plugins run when: hooks, and HTTP plugins poll by poll.
    pub share: Share,
    /// Proxies of HTTP whose word about the client is taken.
    pub trusted: Vec<IpNet>,
    /// How often somebody may ask.
    pub rates: Rates,
    /// What the sites' plugins did, on its way to the region.
    pub journal: Journal,
    pub assets: Assets,
    /// Answers of the catalogue and pages of HTTP plugins.
    pub pages: PageCache,
    /// Merchants' own servers, and what is kept of them.
    pub(crate) routes: Routes,
    /// Where each request is written down, if anywhere.
    pub(crate) access: Option<Arc<AccessLog>>,
    /// Who looks at requests beside that.
    pub(crate) watcher: Watcher,
    pub uplink: Uplink,
    /// Each site's index.
    pub(crate) searches: Searches,
    /// What shoppers want to be promised.
    pub stock: Stock,
    /// Whether the rows here are the region's.
    pub(crate) agreement: Agreement,
    pub fetches: Semaphore,
    pub fetches_after: Semaphore,
    pub telemetry: Arc<Telemetry>,
    pub draining: CancellationToken,
    pub started: Instant,
}

/// Starts a node. Returns when it listens; what it lacks then is on `/readyz`.
///
/// `compiler`: where plugins are compiled.
pub fn run_node(
    config: EdgeConfig,
    compiler: Compiler,
    shutdown: CancellationToken,
) -> BoxFuture<'static, Result<Running, RunError>> {
    // Boxed here, so that a node is compiled with this crate and not with the program that awaits it.
    Box::pin(start(config, compiler, shutdown))
}

async fn start(
    config: EdgeConfig,
    compiler: Compiler,
    shutdown: CancellationToken,
) -> Result<Running, RunError> {
    let EdgeConfig { node: identity, listen, link: link_config, limits, rates, compiler: cell, .. } = config;
    let (upstreams, peers, access, trace) = (config.upstreams, config.peers, config.access, config.trace);
    let shares = CacheShares::of(&limits, &upstreams);
    let seal_keys = link_config.seal_keys.clone();
    let telemetry = Arc::new(Telemetry::new());
    let per_site = telemetry.register(PerSite::register);
    let page_metrics = telemetry.register(PageMetrics::register).per_site(per_site.clone());
    let pages = PageCache::new(limits.page_memory_bytes_max, limits.catalogue_lifetime, page_metrics);
    let dir = identity.data_dir.clone();
    // Before the data is opened: a shopper who comes while this process waits for the one before waits, and is not refused.
    let open = telemetry.register(|registry| OpenDoors::open(&listen.doors, registry))?;
    let sockets = Sockets { shared: listen.doors.reuse_port, workers: 1 };
    let admin = Listener::open(listen.admin, sockets)?;
    let peer_listener = peers.as_ref().map(|peers| Listener::open(peers.listen, sockets)).transpose()?;
    let patience = if sockets.shared { TAKE_OVER_MAX } else { Duration::ZERO };
    let (state, replica) = open_state(&dir, NodeId(identity.id), &limits, &pages, patience).await?;
    // Behind the lock of the state as well: an index is one process's.
    let search_metrics = telemetry.register(SearchMetrics::register);
    let searches = Searches::open(&dir, replica.clone(), search_metrics)
        .map_err(|source| RunError::DataDir { path: dir.join("search"), source })?;

    // Behind the lock of the state, which one process has.
    let own_id = Kept::own_id();
    let access = access.as_ref().map(AccessLog::open).transpose().map_err(RunError::AccessLog)?;
    let traces = telemetry.register(|registry| {
        let traces = TraceMetrics::default();
        traces.register(registry);
        traces
    });
    let name = format!("{}/{}", identity.pop, identity.id);
    let tracer = trace.as_ref().and_then(|trace| Tracer::start(trace, &name, traces));
    let watcher = Watcher::new(access.is_some(), tracer);
    let place = peers.as_ref().map(|peers| Place {
        config: peers,
        tls: &link_config.tls,
        region: &identity.region,
        pop: &identity.pop,
        node: identity.id,
        purged: purged(&replica),
    });
    let routes = Routes::open(&upstreams, &shares, &dir, own_id, watcher.clone(), per_site, place.as_ref())?;
    telemetry.register(|registry| routes.register(registry));

    let link_config = NodeLinkConfig {
        regions: link_config
            .regions
            .into_iter()
            .map(|r| RegionAddress { addr: r.addr, server_name: r.server_name })
            .collect(),
        tls: TlsFiles {
            ca: Pem::File(link_config.tls.ca),
            cert: Pem::File(link_config.tls.cert),
            key: Pem::File(link_config.tls.key),
        },
        node: identity.id,
        region: identity.region,
        pop: identity.pop.clone(),
        software: format!("souk-edge/{}", env!("CARGO_PKG_VERSION")),
        schemas: vec![OPERATION_SCHEMA],
        congestion: Default::default(),
    };
    let mut not_for_plugins = region_addresses(&link_config.regions).await;
    not_for_plugins.extend(identity.own_addresses);
    let terms = Terms::open(&dir).map_err(|source| RunError::DataDir { path: dir.clone(), source })?;
    let store =
        Arc::new(LinkStore { state: state.clone(), replica: replica.clone(), routes: routes.clone(), terms });
    // The link outlives the listeners: what the last requests wrote should still reach the region.
    let link_shutdown = CancellationToken::new();
    let (link, link_task) =
        start_node(link_config, store, link_shutdown.clone()).map_err(|e| RunError::Link(e.to_string()))?;
    let uplink = Uplink::new(link, limits.region_call_deadline);

    let blobs = Blobs::open(&dir, uplink.clone(), limits.blob_bytes_max)
        .map_err(|source| RunError::DataDir { path: dir.clone(), source })?;
    let asset_metrics = telemetry.register(AssetMetrics::register);
    let (assets, asset_bench) = Assets::new(blobs.clone(), shares.files_memory_bytes_max, asset_metrics)
        .map_err(RunError::AssetThread)?;
    let share_metrics = telemetry.register(ShareMetrics::register);
    let share = Share::new(&ShareLimits::default(), share_metrics.clone())
        .map_err(|e| RunError::Sandbox(format!("cannot start the lane for long calls: {e}")))?;
    let journal = Journal::new(NodeId(identity.id), telemetry.register(JournalMetrics::register));
    let room = Room {
        plugins_max: limits.plugins_loaded_max as usize,
        code_bytes_max: usize::try_from(limits.plugin_code_bytes_max).unwrap_or(usize::MAX),
    };
    let floors =
        Floors::open(&dir).map_err(|source| RunError::DataDir { path: dir.join("floors"), source })?;
    let loader = loader(&dir, &limits, compiler, cell, &telemetry).await?;
    let workshop =
        workshop(&seal_keys, floors, loader, &blobs, &share, &journal, not_for_plugins, &telemetry).await?;
    let chains = Arc::new(Chains::new(workshop, room, telemetry.clone()).telling(pages.clone()));
    // Before anybody can ask.
    let adopted = chains.adopt(&replica);
    tracing::info!(sites = adopted, "chains are in use from before");
    let node = Arc::new(Node {
        tag: HeaderValue::from_str(&format!("{}/{}", identity.pop, identity.id))
            .map_err(|e| RunError::Sandbox(format!("the name of the PoP is not text: {e}")))?,
        pop: identity.pop,
        state,
        replica: replica.clone(),
        chains: chains.clone(),
        share,
        trusted: listen.trusted,
        rates: Rates::new(&rates),
        journal: journal.clone(),
        assets,
        pages,
        routes,
        access,
        watcher,
        uplink,
        searches: searches.clone(),
        stock: telemetry.register(Stock::register),
        agreement: telemetry.register(Agreement::register),
        fetches: Semaphore::new(FETCHES_MAX),
        fetches_after: Semaphore::new(FETCHES_AFTER_MAX),
        telemetry,
        draining: shutdown.clone(),
        started: Instant::now(),
        limits,
    });

    // Bound, so that who comes meanwhile waits instead of being refused.
    node.routes.ready().await;
    let listening = Listening { admin: Some(admin.addr()), ..open.listening() };
    let limits = listen_limits(&node.limits);
    let gate = limits.gate();
    node.telemetry.register(|registry| gate.register(registry));
    let (doors, helpers) = (TaskTracker::new(), TaskTracker::new());
    open.serve(&limits, &gate, node.clone(), (&doors, &helpers), &shutdown);
    if let Some((listener, (door, tls))) = peer_listener.zip(node.routes.peer_door()) {
        doors.spawn(listener.serve(Some(tls), PeerDoor::limits(limits.clone()), door, shutdown.clone()));
    }
    doors.spawn(admin.serve(None, limits.for_operators(), Arc::new(Admin(node.clone())), shutdown.clone()));
    doors.close();

    helpers.spawn(chains.keep(replica.clone(), shutdown.clone()));
    let share = node.share.clone();
    helpers.spawn(crate::plan::keep(replica.clone(), share, share_metrics, shutdown.clone()));
    helpers.spawn(searches.keep(shutdown.clone()));
    helpers.spawn(journal.carry(node.uplink.clone(), shutdown.clone()));
    helpers.spawn(crate::rollout::tell(node.clone(), shutdown.clone()));
    helpers.spawn(crate::stock::keep(node.clone(), shutdown.clone()));
    helpers.spawn(crate::agreement::keep(node.clone(), shutdown.clone()));
    helpers.spawn(note_sync(node.clone(), shutdown.clone()));
    helpers.spawn(asset_bench.run(shutdown.clone()));
    helpers.spawn(sweep(node.clone(), blobs, shares.files_disk_bytes_max, shutdown));
    helpers.close();

    let done = tokio::spawn(async move {
        doors.wait().await;
        helpers.wait().await;
        link_shutdown.cancel();
        if link_task.await.is_err() {
            tracing::error!("the link's task panicked");
        }
        // Before the state: whose lock is free has the folder of responses, too.
        node.routes.close().await;
        let closed = tokio::task::spawn_blocking(move || node.state.close()).await;
        if closed.is_err() {
            tracing::error!("closing the state panicked");
        }
    });
    Ok(Running { listening, done })
}

/// Opens what the node keeps. `patience`: how long the process before this one is waited for, which has it open.
async fn open_state(
    dir: &Path,
    id: NodeId,
    limits: &EdgeLimits,
    pages: &PageCache,
    patience: Duration,
) -> Result<(Arc<State>, Arc<Replica>), RunError> {
    let until = Instant::now() + patience;
    let bytes_max = limits.outbox_bytes_max;
    let kept = (limits.outbox_kept_bytes_max, limits.outbox_kept_for);
    let mut waiting = false;
    loop {
        let (dir, pages) = (dir.to_owned(), pages.clone());
        // After a crash redb reads the whole file.
        let opened = tokio::task::spawn_blocking(move || {
            let state = State::open_keeping(&dir, id, bytes_max, kept)?;
            let replica = Replica::open(&dir, now_ms())?.telling(pages);
            Ok::<_, OpenError>((Arc::new(state), Arc::new(replica)))
        });
        match opened.await.map_err(|e| RunError::Sandbox(e.to_string()))? {
            Err(error) if error.is_in_use() && Instant::now() < until => {
                if !std::mem::replace(&mut waiting, true) {
                    tracing::info!(%error, "waiting for the process before to end: send it SIGTERM");
                }
                tokio::time::sleep(TAKE_OVER_EVERY).await;
            }
            opened => return Ok(opened?),
        }
    }
}

/// Opens the machine code that this node has kept.
async fn loader(
    dir: &Path,
    limits: &EdgeLimits,
    compiler: Compiler,
    cell: CompilerConfig,
    telemetry: &Telemetry,
) -> Result<Loader, RunError> {
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
    let metrics = telemetry.register(LoaderMetrics::register);
    let opened = tokio::task::spawn_blocking(move || Loader::open(settings, metrics));
    opened
        .await
        .map_err(|e| RunError::Sandbox(e.to_string()))?
        .map_err(|source| RunError::DataDir { path: dir.join("artefacts"), source })
}

/// How far the purges of the region have come here.
fn purged(replica: &Replica) -> PurgeMark {
    let world = replica.world();
    let history = world.histories.get(&Log::Purge.code()).copied();
    PurgeMark { history, version: world.cursors.get(Log::Purge) }
}

/// Where the regions are: no plugin may send requests there, whatever it was granted. A node must start without its
/// region and without a name server, so a name that is not found soon is left to the region's own door.
async fn region_addresses(regions: &[RegionAddress]) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for RegionAddress { addr, .. } in regions {
        match tokio::time::timeout(REGION_LOOKUP_MAX, tokio::net::lookup_host(addr.as_str())).await {
            Ok(Ok(addresses)) => found.extend(addresses.map(|address| address.ip())),
            Ok(Err(error)) => {
                tracing::warn!(%addr, %error, "plugins are not kept from a region that is not found")
            }
            Err(_) => {
                tracing::warn!(%addr, "plugins are not kept from a region whose name nobody answers for")
            }
        }
    }
    found
}

/// What makes chains of releases. The sandbox's engines are made here. `not_for_plugins`: addresses of the platform's
/// own beside this machine's.
#[expect(clippy::too_many_arguments, reason = "each is a part of the workshop, and there is one caller")]
async fn workshop(
    seal_keys: &[PathBuf],
    floors: Floors,
    loader: Loader,
    blobs: &Blobs,
    share: &Share,
    journal: &Journal,
    not_for_plugins: Vec<IpAddr>,
    telemetry: &Telemetry,
) -> Result<Workshop, RunError> {
    let sandbox = |error: String| RunError::Sandbox(error);
    let mut pems = Vec::with_capacity(seal_keys.len());
    for path in seal_keys {
        let pem = tokio::fs::read_to_string(path).await;
        pems.push(pem.map_err(|error| RunError::SealKey { path: path.clone(), why: error.to_string() })?);
    }
    let trusted = TrustedKeys::from_pems(pems.iter().map(String::as_str)).map_err(|error| {
        RunError::SealKey { path: seal_keys.first().cloned().unwrap_or_default(), why: error.to_string() }
    })?;
    let engine = HookEngine::new(HookLimits::default()).map_err(|e| sandbox(e.to_string()))?;
    let http_metrics = telemetry.register(HttpMetrics::register);
    let outbound =
        Outbound::new(OutboundLimits::default(), Reach::Public, not_for_plugins, http_metrics.clone())
            .map_err(|e| sandbox(e.to_string()))?;
    let http = HttpEngine::with(HttpLimits::default(), outbound, http_metrics)
        .map_err(|e| sandbox(e.to_string()))?;
    // Shoppers are hashed under a key that nobody keeps: recordings of one life of the node tell them apart, no more.
    let studio =
        Studio::start(Arc::new(journal.clone()), rand::random(), telemetry.register(StudioMetrics::register))
            .map_err(|e| sandbox(format!("cannot start the thread that records calls: {e}")))?;
    Ok(Workshop {
        floors,
        engine,
        http,
        loader,
        blobs: blobs.clone(),
        trusted,
        metrics: telemetry.register(souk_sandbox::Metrics::register),
        share: Some(share.clone()),
        studio: Some(studio),
        journal: journal.clone(),
        plugins: Plugins::default(),
    })
}

/// What every door holds to.
pub(crate) fn listen_limits(limits: &EdgeLimits) -> ListenLimits {
    ListenLimits {
        connections_max: limits.connections_max as usize,
        connections_per_address_max: limits.connections_per_address_max as usize,
        requests_in_flight_max: limits.requests_in_flight_max as usize,
        header_bytes_max: usize::try_from(limits.header_bytes_max).unwrap_or(usize::MAX),
        header_deadline: limits.header_deadline,
        idle_deadline: limits.idle_deadline,
        tls_handshake_deadline: limits.tls_handshake_deadline,
        drain_deadline: limits.drain_deadline,
        ..ListenLimits::default()
    }
}

/// Waits until the node has once had everything that its region had, and remembers it.
async fn note_sync(node: Arc<Node>, shutdown: CancellationToken) {
    let mut link = node.uplink.link().watch();
    let mut applied = node.replica.changed();
    while !node.replica.is_synced() {
        let status = link.borrow_and_update().clone();
        applied.mark_unchanged();
        if status.connected {
            let replica = node.replica.clone();
            let noted = tokio::task::spawn_blocking(move || replica.note_heads(&status.region_heads)).await;
            match noted {
                Ok(Ok(true)) => {
                    tracing::info!("the node holds everything that its region had");
                    return;
                }
                Ok(Ok(false)) => {}
                Ok(Err(error)) => tracing::warn!(%error, "cannot note that the node is complete"),
                Err(_) => return,
            }
        }
        let news = async {
            tokio::select! {
                changed = link.changed() => changed.is_ok(),
                changed = applied.changed() => changed.is_ok(),
            }
        };
        if shutdown.run_until_cancelled(news).await != Some(true) {
            return;
        }
    }
}

/// Keeps the blobs within their share of the disk.
async fn sweep(node: Arc<Node>, blobs: Blobs, bytes_max: u64, shutdown: CancellationToken) {
    while shutdown.run_until_cancelled(tokio::time::sleep(SWEEP_EVERY)).await.is_some() {
        let blobs = blobs.clone();
        let mut keep: HashSet<_> = node.chains.components();
        let world = node.replica.world();
        keep.extend(
            world
                .sites()
                .filter_map(|s| s.releases.as_ref())
                .flat_map(|r| r.releases.iter().chain(&r.standby).map(|r| r.component)),
        );
        match tokio::task::spawn_blocking(move || blobs.sweep(bytes_max, &keep)).await {
            Ok(Ok(0)) | Err(_) => {}
            Ok(Ok(freed)) => tracing::info!(freed, "old blobs made room"),
            Ok(Err(error)) => tracing::warn!(%error, "cannot sweep the blobs"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn regions_are_kept_from_plugins_by_number() {
        let regions = ["192.0.2.7:7443", "[2001:db8::7]:7443", "no.such.region.invalid:7443"]
            .map(|addr| RegionAddress { addr: addr.to_owned(), server_name: "region.example".to_owned() });
        let found = region_addresses(&regions).await;
        let expected: [IpAddr; 2] =
            ["192.0.2.7".parse().expect("an address"), "2001:db8::7".parse().expect("an address")];
        assert_eq!(found, expected);
    }
}
