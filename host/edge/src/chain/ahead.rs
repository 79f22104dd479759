//! Compiles what was pushed and is not deployed, so that to deploy it is a matter of milliseconds, and remembers what
//! became of it, so that the merchant learns of it at the push.
//!
//! Owns the components that the sets of this node announce. Refuses to know how one is compiled ([`super::Workshop`]) and
//! who is told ([`crate::rollout`]). Called by [`Chains::keep`](super::Chains::keep).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use souk_commerce::call;
use souk_commerce::id::{Digest, SiteId};
use souk_commerce::site::{COMING_MAX, Release, ReleaseSet};
use tokio::task::JoinSet;

use super::{Chains, Edition, Failure};

/// Components that are compiled ahead of their deploy at once: one processor of the two is shoppers' alone.
const AT_ONCE_MAX: usize = 1;

/// A component that a site's set announces. Two sites may announce the same; each has its own seal on it.
type Key = (SiteId, Digest);

/// What has become of each.
#[derive(Default)]
pub(super) struct Ahead {
    known: Mutex<HashMap<Key, Progress>>,
}

#[derive(Debug, Clone, Default)]
enum Progress {
    #[default]
    Waiting,
    /// Perhaps once more, after it failed.
    Compiling(Option<Failure>),
    Compiled,
    Failed(Failure),
}

impl Progress {
    /// When it is to be tried; none: it is done, or being done.
    fn due(&self, now: Instant) -> Option<Instant> {
        match self {
            Self::Waiting => Some(now),
            Self::Failed(failure) => Some(failure.retry_at),
            Self::Compiling(_) | Self::Compiled => None,
        }
    }

    fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Failed(failure) | Self::Compiling(Some(failure)) => Some(failure),
            Self::Waiting | Self::Compiling(None) | Self::Compiled => None,
        }
    }
}

fn announced(set: &ReleaseSet) -> impl Iterator<Item = &Release> {
    set.coming.iter().take(COMING_MAX)
}

impl Ahead {
    /// Forgets what no accepted set announces any more, and begins one of those that are due: any, so that no site's stand before
    /// another's. Says when the next one is due, if one is to be tried again.
    pub(super) fn begin(&self, chains: &Arc<Chains>, tasks: &mut JoinSet<()>) -> Option<Instant> {
        let sets: Vec<_> = chains.accepted.lock().values().cloned().collect();
        let coming: HashMap<Key, &Release> = sets
            .iter()
            .flat_map(|set| {
                announced(set).map(move |release| ((set.site.clone(), release.component), release))
            })
            .collect();
        let now = Instant::now();
        let mut known = self.known.lock();
        known.retain(|key, _| coming.contains_key(key));
        let mut next: Option<Instant> = None;
        for (key, release) in coming {
            let progress = known.entry(key.clone()).or_default();
            match progress.due(now) {
                Some(at) if at > now => next = Some(next.map_or(at, |next| next.min(at))),
                Some(_) if tasks.len() < AT_ONCE_MAX => {
                    *progress = Progress::Compiling(progress.failure().cloned());
                    tasks.spawn(compile(Arc::clone(chains), key, release.clone()));
                }
                // The end of the one that is compiled now calls again.
                Some(_) | None => {}
            }
        }
        next
    }

    fn ended(&self, key: &Key, progress: impl FnOnce(Option<&Failure>) -> Progress) {
        // No longer announced: nobody asks any more.
        let mut known = self.known.lock();
        let Some(entry) = known.get_mut(key) else { return };
        *entry = progress(entry.failure());
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.known.lock().is_empty()
    }

    /// The task that compiled one is gone: whichever it was is tried again.
    pub(super) fn lost(&self) {
        let mut known = self.known.lock();
        for progress in known.values_mut().filter(|progress| matches!(progress, Progress::Compiling(_))) {
            *progress = progress.failure().cloned().map_or(Progress::Waiting, Progress::Failed);
        }
    }

    /// How far the node is with what `set` announces. `refused`: nothing of what a set that is not accepted announces is
    /// compiled, and its failure is theirs.
    pub(super) fn of(&self, set: &ReleaseSet, refused: Option<&Failure>) -> Vec<call::Ahead> {
        let known = self.known.lock();
        let tell = |release: &Release| {
            let component = release.component;
            let progress = known.get(&(set.site.clone(), component));
            let compiled = matches!(progress, Some(Progress::Compiled));
            let failure = progress.and_then(Progress::failure).or_else(|| refused.filter(|_| !compiled));
            call::Ahead {
                component,
                compiled,
                refused: failure.is_some_and(|failure| failure.is_final),
                why: failure.map(|failure| failure.why.clone()),
            }
        };
        announced(set).map(tell).collect()
    }
}

async fn compile(chains: Arc<Chains>, key: Key, release: Release) {
    let (site, plugin) = (&key.0, &release.plugin);
    let began = Instant::now();
    match chains.workshop.compile_ahead(site, &release).await {
        Ok(()) => {
            let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            tracing::info!(%site, %plugin, component = %release.component, ms, "compiled ahead of its deploy");
            chains.ahead.ended(&key, |_| Progress::Compiled);
        }
        Err(error) => {
            tracing::info!(%site, %plugin, component = %release.component, %error, "cannot be compiled ahead of its deploy");
            chains.telemetry.ahead_failures.inc();
            chains.ahead.ended(&key, |before| {
                Progress::Failed(Failure::after(before, Edition::default(), &error, Instant::now()))
            });
        }
    }
    chains.news.send_replace(());
}
