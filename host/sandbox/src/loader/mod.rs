//! From a component's bytes to a plugin that can be called, without letting a stranger's component near this
//! process before it is machine code that the sandbox's own compiler made.
//!
//! Owns the order of the steps: look for an artefact on the disk, else ask for the bytes, check them against their
//! digest, judge their shape ([`crate::admit`]), compile them in a child process ([`compiler`]), link, and keep the
//! artefact ([`crate::artefact`]). Refuses to know where components come from (a future gives the bytes, and is not
//! polled when an artefact is there), who may run what, and when a plugin is used or forgotten: those are the node's
//! and the region's.
//!
//! Reading order: this file, [`compiler`] (this side of the child process), [`child`] (the other side), [`confine`]
//! (what that side gives up), [`order`] (what one tells the other), [`turn`] (who compiles next), [`metrics`].

pub(crate) mod child;
mod compiler;
mod confine;
mod metrics;
mod order;
mod turn;

use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use souk_commerce::id::{Digest, SiteId};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use wasmtime::component::Component;
use wasmtime::{Config, Engine, InstanceAllocationStrategy};

pub use child::run as compile;
#[doc(hidden)]
pub use child::run_taken_over;
pub use compiler::{CompileLimits, Compiler};
pub use confine::Confinement;
pub use metrics::LoaderMetrics;
pub use order::{Order, OrderError};

use crate::artefact::{Artefact, Artefacts, Key};
use crate::fault::Refused;
use crate::hook::{HookEngine, HookPlugin};
use crate::http::{HttpEngine, HttpPlugin};
use crate::unhurried::unhurried;
use compiler::CompileFault;
use turn::Turns;

/// Components remembered as refused. A hostile one is asked for again and again, and each time would cost its
/// child's whole budget.
const REFUSALS_MAX: usize = 1_024;
/// How long a refusal is remembered: long against the pauses of whoever retries, short against an operator's patience
/// after a limit was raised.
const REFUSAL_FOR: Duration = Duration::from_secs(600);
/// Artefacts that are read at once. Each is in memory twice until it is checked and loaded, 80 MB for Python, and on a
/// node that starts again the shoppers of all shops ask for theirs in the same second.
const OPENING_MAX: usize = 4;

/// Whose artefacts: each engine compiles for settings of its own. Another engine is another variant here, one in
/// [`EngineKind::ALL`], its settings in `compile_config`, and an entry in the [`Loads::KINDS`] of whoever owns it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EngineKind {
    Hooks,
    /// `wasi:http` 0.2.
    Http02,
    /// `wasi:http` 0.3.
    Http03,
}

impl EngineKind {
    pub const ALL: [Self; 3] = [Self::Hooks, Self::Http02, Self::Http03];

    pub fn name(self) -> &'static str {
        match self {
            Self::Hooks => "hooks",
            Self::Http02 => "http-0.2",
            Self::Http03 => "http-0.3",
        }
    }

    /// The engine's settings as far as code depends on them. No pool: whoever compiles runs nothing, and a pool's
    /// address space would not fit into the child's limit.
    fn compile_config(self) -> Config {
        let mut config = match self {
            Self::Hooks => crate::hook::default_config(),
            Self::Http02 | Self::Http03 => crate::http::default_config(self),
        };
        config.allocation_strategy(InstanceAllocationStrategy::OnDemand).parallel_compilation(false);
        config
    }
}

/// Why a component is not a plugin now. `E` is what the source of the bytes says.
#[derive(Debug, thiserror::Error)]
pub enum LoadError<E = std::convert::Infallible> {
    /// The component is at fault. The same bytes will be refused again.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// There are no bytes to compile.
    #[error("{0}")]
    Bytes(E),
    /// The bytes are others than those asked for.
    #[error("the component's bytes are not those named {0}")]
    Forged(Digest),
    /// Too many compilations wait already.
    #[error("{waiting} compilations wait already")]
    Busy { waiting: usize },
    /// This machine is at fault: it could not start the compiler, or gave it no processor.
    #[error("the compiler could not do its work: {0}")]
    Host(String),
}

impl<E> LoadError<E> {
    /// Stable, for metrics and problems.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Refused(_) => "refused",
            Self::Bytes(_) => "no_bytes",
            Self::Forged(_) => "forged",
            Self::Busy { .. } => "busy",
            Self::Host(_) => "host",
        }
    }
}

/// How a loader works.
#[derive(Debug, Clone)]
pub struct LoaderSettings {
    pub compiler: Compiler,
    pub limits: CompileLimits,
    /// What holds the compiler's child if this kernel lacks seccomp: nothing compiles, or it compiles with a warning.
    pub confinement: Confinement,
    /// Where artefacts are kept, and how many bytes of them. None: every load compiles.
    pub artefacts: Option<(PathBuf, u64)>,
}

/// Loads plugins. Cheap to clone.
#[derive(Clone)]
pub struct Loader {
    shared: Arc<Shared>,
    owner: Option<SiteId>,
}

struct Shared {
    compiler: Compiler,
    limits: CompileLimits,
    confinement: Confinement,
    artefacts: Option<Artefacts>,
    turns: Turns,
    opening: Arc<Semaphore>,
    refusals: Mutex<HashMap<Key, (Instant, Refused)>>,
    metrics: LoaderMetrics,
}

impl std::fmt::Debug for Loader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loader").field("compiler", &self.shared.compiler).finish_non_exhaustive()
    }
}

/// An engine whose plugins a loader loads.
pub(crate) trait Loads: Clone + Send + Sync + 'static {
    type Plugin: Send + Sync + 'static;
    /// The kinds of component that it runs, the likeliest first: before a component's bytes are here nothing else is
    /// known of it.
    const KINDS: &'static [EngineKind];

    /// The engine that runs components of this kind.
    fn wasm(&self, kind: EngineKind) -> &Engine;
    /// Judges a component before anything compiles it, and says which kind it is.
    fn admit(&self, component: &[u8]) -> Result<EngineKind, Refused>;
    /// Resolves everything that can be resolved before a call, and checks what only a compiled component tells.
    fn link(
        &self,
        kind: EngineKind,
        component: Component,
        digest: Digest,
    ) -> Result<Arc<Self::Plugin>, Refused>;
    /// The limit that admission measured the component's memories by.
    fn memory_bytes_max(&self) -> usize;
}

impl Loader {
    /// Opens the artefacts. Blocking.
    pub fn open(settings: LoaderSettings, metrics: LoaderMetrics) -> std::io::Result<Self> {
        let LoaderSettings { compiler, limits, confinement, artefacts } = settings;
        let artefacts = artefacts
            .map(|(dir, bytes_max)| {
                Artefacts::open(&dir, bytes_max, limits.artefact_bytes_max, metrics.artefacts())
            })
            .transpose()?;
        let turns = Turns::new(&limits, metrics.waiting.clone());
        let opening = Arc::new(Semaphore::new(OPENING_MAX));
        let refusals = Mutex::default();
        let shared = Shared { compiler, limits, confinement, artefacts, turns, opening, refusals, metrics };
        Ok(Self { shared: Arc::new(shared), owner: None })
    }

    /// Compiles in this process and keeps nothing: for tests, and for a merchant's tool that looks at the merchant's own
    /// file.
    pub fn in_process() -> Self {
        let settings = LoaderSettings {
            compiler: Compiler::InProcess,
            limits: CompileLimits::default(),
            confinement: Confinement::Required,
            artefacts: None,
        };
        Self::open(settings, LoaderMetrics::default()).expect("without artefacts nothing is opened")
    }

    /// The same loader for one merchant's components: a merchant's compilations wait for each other and not for all
    /// places at once.
    pub fn on_behalf_of(&self, site: &SiteId) -> Self {
        Self { shared: Arc::clone(&self.shared), owner: Some(site.clone()) }
    }

    /// Whether a hook plugin can be loaded without its bytes and without a compiler.
    pub fn has_hooks(&self, engine: &HookEngine, digest: Digest) -> bool {
        self.has(engine, digest)
    }

    /// The same of an HTTP plugin.
    pub fn has_http(&self, engine: &HttpEngine, digest: Digest) -> bool {
        self.has(engine, digest)
    }

    /// A hook plugin. `bytes` is polled only if no artefact is there.
    ///
    /// Cancel safe: dropping the future ends a compilation that it began.
    pub async fn hooks<E: Send + 'static>(
        &self,
        engine: &HookEngine,
        digest: Digest,
        bytes: impl Future<Output = Result<Bytes, E>> + Send,
    ) -> Result<Arc<HookPlugin>, LoadError<E>> {
        Box::pin(self.load(engine, digest, bytes)).await
    }

    /// An HTTP plugin; otherwise as [`Loader::hooks`].
    pub async fn http<E: Send + 'static>(
        &self,
        engine: &HttpEngine,
        digest: Digest,
        bytes: impl Future<Output = Result<Bytes, E>> + Send,
    ) -> Result<Arc<HttpPlugin>, LoadError<E>> {
        Box::pin(self.load(engine, digest, bytes)).await
    }

    fn has<L: Loads>(&self, engine: &L, digest: Digest) -> bool {
        let Some(artefacts) = &self.shared.artefacts else { return false };
        keys(engine, digest).any(|(_, key)| artefacts.has(&key))
    }

    async fn load<L: Loads, E: Send + 'static>(
        &self,
        engine: &L,
        digest: Digest,
        bytes: impl Future<Output = Result<Bytes, E>> + Send,
    ) -> Result<Arc<L::Plugin>, LoadError<E>> {
        if let Some(refused) = self.remembered(engine, digest) {
            return Err(refused.into());
        }
        if let Some(plugin) = self.find_kept(engine, digest).await? {
            return Ok(plugin);
        }
        let component = bytes.await.map_err(LoadError::Bytes)?;
        let _turn = self
            .shared
            .turns
            .wait(self.owner.as_ref())
            .await
            .map_err(|waiting| LoadError::Busy { waiting })?;
        // Somebody else may have had the same component compiled in the meantime.
        if let Some(plugin) = self.find_kept(engine, digest).await? {
            return Ok(plugin);
        }
        let made = self.make(engine, digest, component).await;
        if let Err(LoadError::Refused(refused)) = &made {
            self.remember(engine, digest, refused);
        }
        made
    }

    async fn make<L: Loads, E: Send + 'static>(
        &self,
        engine: &L,
        digest: Digest,
        component: Bytes,
    ) -> Result<Arc<L::Plugin>, LoadError<E>> {
        let (judge, judged) = (engine.clone(), component.clone());
        let kind = unhurried(move || {
            if Digest::of(&judged) != digest {
                return Err(LoadError::Forged(digest));
            }
            judge.admit(&judged).map_err(LoadError::Refused)
        })
        .await
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let artefact = self.compile(engine, kind, component).await?;
        let (this, engine) = (self.clone(), engine.clone());
        blocking(move || {
            // The compiler has no pool, and the engine that loads its work has: what wants more tables, memories or
            // instances than a call may have shows here. It is the component's fault, and waiting mends nothing.
            let compiled = artefact
                .load(engine.wasm(kind))
                .map_err(|error| Refused::because("does_not_fit", format!("{error:#}")))?;
            let plugin = engine.link(kind, compiled, digest)?;
            // Only what could be linked is kept: whoever finds it need not look again.
            if let Some(artefacts) = &this.shared.artefacts {
                artefacts.store(&key(&engine, kind, digest), &artefact);
            }
            Ok(plugin)
        })
        .await
    }

    async fn compile<L: Loads, E: Send + 'static>(
        &self,
        engine: &L,
        kind: EngineKind,
        component: Bytes,
    ) -> Result<Artefact, LoadError<E>> {
        let Shared { compiler, limits, confinement, metrics, .. } = &*self.shared;
        let started = Instant::now();
        let made = match compiler {
            Compiler::InProcess => {
                let wasm = engine.wasm(kind).clone();
                blocking(move || {
                    wasm.precompile_component(&component)
                        .map_err(|error| CompileFault::component("does_not_compile", &format!("{error:#}")))
                })
                .await
            }
            Compiler::Child { program, arguments } => {
                let order = Order::new(kind, engine.wasm(kind), limits, *confinement);
                compiler::compile(program, arguments, &order, limits, component).await.map(|compiled| {
                    if !compiled.layers.seccomp {
                        tracing::warn!(
                            "a stranger's component was compiled WITHOUT seccomp: this kernel lacks it, and this \
                             process was started to compile all the same (`souk serve`, or best_effort under \
                             [compiler])"
                        );
                    }
                    metrics.held_by(compiled.layers);
                    compiled.artefact
                })
            }
        };
        metrics.compiled(made.as_ref().map_or_else(CompileFault::name, |_| "done"), started.elapsed());
        match made {
            Ok(bytes) => Ok(Artefact::from_compiler(bytes)),
            Err(CompileFault::Component(complaint)) => {
                Err(LoadError::Refused(Refused { complaints: vec![complaint] }))
            }
            Err(CompileFault::Host(why)) => Err(LoadError::Host(why)),
        }
    }

    async fn find_kept<L: Loads, E: Send + 'static>(
        &self,
        engine: &L,
        digest: Digest,
    ) -> Result<Option<Arc<L::Plugin>>, LoadError<E>> {
        if !self.has(engine, digest) {
            return Ok(None);
        }
        let opening = Arc::clone(&self.shared.opening).acquire_owned().await;
        let opening = opening.expect("the semaphore is never closed");
        let (this, engine) = (self.clone(), engine.clone());
        blocking(move || {
            // With the work, which goes on if nobody waits for it any more.
            let _opening = opening;
            let Some(artefacts) = &this.shared.artefacts else { return Ok(None) };
            for (kind, key) in keys(&engine, digest) {
                let Some(artefact) = artefacts.find(&key) else { continue };
                match artefact.load(engine.wasm(kind)) {
                    Ok(compiled) => return Ok(Some(engine.link(kind, compiled, digest)?)),
                    // Whole and ours, and yet unreadable: the key does not cover something that it should.
                    Err(error) => {
                        tracing::error!(%digest, error = format!("{error:#}"), "an artefact does not load: it is made again");
                        artefacts.forget(&key);
                    }
                }
            }
            Ok(None)
        })
        .await
    }

    fn remembered<L: Loads>(&self, engine: &L, digest: Digest) -> Option<Refused> {
        let mut refusals = self.shared.refusals.lock();
        let key = key(engine, L::KINDS[0], digest);
        let (since, refused) = refusals.get(&key)?;
        if since.elapsed() < REFUSAL_FOR {
            return Some(refused.clone());
        }
        refusals.remove(&key);
        None
    }

    fn remember<L: Loads>(&self, engine: &L, digest: Digest, refused: &Refused) {
        let mut refusals = self.shared.refusals.lock();
        if refusals.len() >= REFUSALS_MAX {
            let oldest = refusals.iter().min_by_key(|(_, (since, _))| *since).map(|(key, _)| *key);
            oldest.map(|key| refusals.remove(&key));
        }
        refusals.insert(key(engine, L::KINDS[0], digest), (Instant::now(), refused.clone()));
    }
}

fn keys<L: Loads>(engine: &L, digest: Digest) -> impl Iterator<Item = (EngineKind, Key)> {
    L::KINDS.iter().map(move |&kind| (kind, key(engine, kind, digest)))
}

fn key<L: Loads>(engine: &L, kind: EngineKind, digest: Digest) -> Key {
    Key::of(digest, kind.name(), engine.wasm(kind), engine.memory_bytes_max())
}

/// On a thread that may take its time. A panic there is the caller's.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only a runtime that is going away cancels such work; this task is next.
            Err(_) => std::future::pending().await,
        },
    }
}
