//! `souk edge`, `region`, `proxy` and `serve`: one server in this process, from its configuration to its last byte.

use std::io::Read as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use souk_config::{EdgeConfig, ProxyConfig, RegionConfig};
use souk_sandbox::Compiler;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::args::{Lifetime, ProxyArgs, ServeArgs};
use crate::compile;
use crate::failure::Usage;

/// Beyond the drain deadline: what closing a database may take before the process ends anyway.
const GRACE: Duration = Duration::from_secs(5);
/// How long the log has for what was said before a forced end.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// What the shell reports for a process that Ctrl-C ended.
const INTERRUPTED: i32 = 130;
/// The greatest component that `serve` loads; a JavaScript one with its engine is 14 MB.
const COMPONENT_BYTES_MAX: u64 = 64 << 20;
/// How every module and component begins.
const WASM_MAGIC: &[u8] = b"\0asm";

/// What a server writes into its ready file.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Ready {
    pub(crate) role: String,
    pub(crate) pid: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) http: Option<SocketAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) https: Option<SocketAddr>,
    /// Further addresses for shoppers, where there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) also: Vec<SocketAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) admin: Option<SocketAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) link: Option<SocketAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) control: Option<SocketAddr>,
}

pub(crate) async fn edge(config: EdgeConfig, lifetime: Lifetime) -> anyhow::Result<ExitCode> {
    let shutdown = until_told(&lifetime, config.limits.drain_deadline)?;
    let running = souk_edge::run_node(config, compiler(), shutdown.clone()).await?;
    announce(&lifetime, edge_ready("edge", &running))?;
    running.done.await.context("the node ended in disorder")?;
    ended(&shutdown)
}

pub(crate) async fn region(config: RegionConfig, lifetime: Lifetime) -> anyhow::Result<ExitCode> {
    let shutdown = until_told(&lifetime, config.limits.drain_deadline)?;
    let running = souk_region::run(config, compiler(), shutdown.clone()).await?;
    let (link, control) = (Some(running.link_addr), Some(running.control_addr));
    announce(&lifetime, Ready { role: "region".to_owned(), link, control, ..Ready::default() })?;
    running.join.await.context("the region ended in disorder")??;
    ended(&shutdown)
}

pub(crate) async fn proxy(args: ProxyArgs) -> anyhow::Result<ExitCode> {
    let mut upstream = args.upstream.settled()?;
    upstream.policy = args.policy;
    for (at, route) in args.policy_routes.iter().enumerate() {
        if args.policy_routes[..at].iter().any(|other| other.prefix() == route.prefix()) {
            let why =
                format!("--policy-route says two policies of {}: leave one of them out", route.prefix());
            return Err(Usage(why).into());
        }
    }
    upstream.policy_routes = args.policy_routes;
    upstream.compress = args.compress;
    let mut config = ProxyConfig::before(upstream, args.doors.settled()?);
    if let Some(memory) = args.memory {
        config = config.with_memory(memory)?;
    }
    if let Some(bytes) = args.slice_from {
        config = config.with_slices_from(bytes)?;
    }
    if let Some(dir) = args.disk {
        config = config.with_disk(dir, args.disk_size)?;
    }
    config.admin = args.admin;
    config.peers = args.upstream.peers()?;
    config.limits = args.limits.settled()?;
    config.request_deadline = args.limits.request_deadline();
    config.rates = args.limits.rates();
    config.access = args.access.config();
    config.trace = args.trace.config();
    let shutdown =
        until_told(&args.lifetime, config.limits.drain_deadline.max(config.upstream.idle_timeout))?;
    let running = souk_edge::run_proxy(config, shutdown.clone()).await?;
    announce(&args.lifetime, edge_ready("proxy", &running))?;
    running.done.await.context("the proxy ended in disorder")?;
    ended(&shutdown)
}

pub(crate) async fn serve(args: ServeArgs) -> anyhow::Result<ExitCode> {
    let component = read_component(&args.component)?;
    let config = souk_edge::ServeConfig {
        listen: args.listen,
        admin: args.admin,
        limits: args.limits.settled()?,
        hosts: args.allow_host,
        allow_private: args.allow_private,
        env: args.env,
        config: args.config,
        reuse: args.reuse,
    };
    let shutdown = until_told(&args.lifetime, GRACE)?;
    let running = souk_edge::run_serve(config, compiler(), component.into(), shutdown.clone())
        .await
        .with_context(|| format!("serve {}", args.component.display()))?;
    announce(&args.lifetime, edge_ready("serve", &running))?;
    running.done.await.context("the server ended in disorder")?;
    ended(&shutdown)
}

fn read_component(file: &Path) -> anyhow::Result<Vec<u8>> {
    let wrong = |e: std::io::Error| Usage(format!("cannot open {}: {e}", file.display()));
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(file).map_err(wrong)?;
    opened.take(COMPONENT_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(wrong)?;
    if bytes.len() as u64 > COMPONENT_BYTES_MAX {
        return Err(Usage(format!("{} is larger than {COMPONENT_BYTES_MAX} bytes", file.display())).into());
    }
    if !bytes.starts_with(WASM_MAGIC) {
        let why = "this is not WebAssembly: it wants a component, such as `souk plugin build` makes";
        return Err(Usage(format!("{}: {why}", file.display())).into());
    }
    Ok(bytes)
}

/// Merchants' components are compiled by children of this process that run this program.
fn compiler() -> Compiler {
    Compiler::this_program([compile::COMMAND])
}

fn edge_ready(role: &str, running: &souk_edge::Running) -> Ready {
    let souk_edge::Listening { http, https, also, admin } = running.listening.clone();
    Ready { role: role.to_owned(), http, https, also, admin, ..Ready::default() }
}

/// Logs the addresses and, if asked, writes them to the ready file: whole or not at all, so that who waits for it
/// never reads half.
fn announce(lifetime: &Lifetime, mut ready: Ready) -> anyhow::Result<()> {
    ready.pid = std::process::id();
    let text = serde_json::to_string(&ready).context("write the ready file")?;
    tracing::info!(role = ready.role, addresses = text, "ready");
    let Some(file) = &lifetime.ready_file else { return Ok(()) };
    let temporary = file.with_extension("partial");
    std::fs::write(&temporary, text + "\n").with_context(|| format!("write {}", temporary.display()))?;
    std::fs::rename(&temporary, file).with_context(|| format!("write {}", file.display()))
}

/// A server that ends without having been told to has failed, however quietly.
fn ended(shutdown: &CancellationToken) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(
        shutdown.is_cancelled(),
        "the server ended although nobody asked it to; its log says why"
    );
    Ok(ExitCode::SUCCESS)
}

/// A token that is cancelled by SIGINT, SIGTERM or, if asked for, the end of standard input. After that the process has
/// `drain` and a little more to end in order; a second signal ends it at once.
fn until_told(lifetime: &Lifetime, drain: Duration) -> anyhow::Result<CancellationToken> {
    let told = CancellationToken::new();
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    if lifetime.exit_with_parent {
        let orphaned = told.clone();
        // A thread, because reading standard input cannot be cancelled: it ends with the process.
        std::thread::Builder::new()
            .name("parent-watch".to_owned())
            .spawn(move || {
                let mut buffer = [0; 64];
                while std::io::stdin().read(&mut buffer).is_ok_and(|n| n > 0) {}
                orphaned.cancel();
            })
            .context("watch the parent")?;
    }
    let token = told.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            () = token.cancelled() => {}
        }
        token.cancel();
        tracing::info!("shutting down");
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            () = tokio::time::sleep(drain + GRACE) => tracing::error!("did not end within the drain deadline"),
        }
        // For the log's own thread, which may have much to write, or nowhere to.
        tokio::time::sleep(LAST_WORDS).await;
        #[expect(
            clippy::disallowed_methods,
            reason = "what should have ended by itself did not; nothing is left to wait for"
        )]
        std::process::exit(INTERRUPTED);
    });
    Ok(told)
}
