//! Takes away the components that were pushed and that nobody needs any more, and their bytes.
//!
//! What is needed, [`crate::store`] says; this decides when to ask and removes the files. Whoever relies on bytes that are
//! here while nothing refers to them yet (an upload that finds them, a push) holds [`Blobs::relied_on`] until something
//! does; then nothing is collected by this process. Another one that shares the database and the folder knows nothing of
//! that: between processes, the order of their transactions decides who comes too late.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use souk_commerce::id::Digest;
use tokio_util::sync::CancellationToken;

use crate::blobs::{Aside, BlobError, Blobs};
use crate::clock;
use crate::store::audit::Actor;
use crate::store::{Store, StoreError};
use crate::telemetry::Telemetry;

/// What was pushed and never released is kept so long: a merchant who comes back from a holiday finds it.
pub(crate) const PUSH_KEPT_MS: u64 = 30 * 86_400_000;
/// How often it is looked for.
const EVERY: Duration = Duration::from_secs(3_600);
/// Rounds between two looks at the whole folder of blobs.
const ORPHANS_EVERY: u64 = 24;
/// A file as young as this may have been written by somebody whose row is on its way.
const FILE_AGE_MIN: Duration = Duration::from_secs(3_600);

#[derive(Debug, thiserror::Error)]
enum CollectError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Blob(#[from] BlobError),
}

pub(crate) struct Collector {
    pub(crate) store: Store,
    pub(crate) blobs: Arc<Blobs>,
    pub(crate) telemetry: Arc<Telemetry>,
}

impl Collector {
    /// Runs until shutdown. Begins with the files that a former life forgot the rows of and did not come to remove.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let collecting = async {
            for round in 0.. {
                self.round(round, FILE_AGE_MIN).await;
                tokio::time::sleep(EVERY).await;
            }
        };
        // Given up between two steps: what is half done is done at the next start.
        let _given_up = shutdown.run_until_cancelled(collecting).await;
    }

    /// Looks for files of `file_age_min` in the first round and once a day: one that was left because somebody relied on some
    /// blob just then is not looked for otherwise.
    async fn round(&self, round: u64, file_age_min: Duration) {
        if round.is_multiple_of(ORPHANS_EVERY)
            && let Err(error) = self.remove_orphans(file_age_min).await
        {
            tracing::warn!(%error, "files that nobody refers to stay for now");
        }
        let before_ms = clock::now_ms().saturating_sub(PUSH_KEPT_MS);
        if let Err(error) = self.collect(before_ms).await {
            tracing::warn!(%error, "components that nobody needs stay for now");
        }
    }

    /// Forgets what was pushed before `before_ms` and not released; answers how many.
    async fn collect(&self, before_ms: u64) -> Result<u64, CollectError> {
        let mut collected = 0;
        loop {
            let found = self.store.stale_pushes(before_ms).await?;
            let mut progress = false;
            for stale in found {
                let actor = Actor { name: "region".to_owned(), peer: String::new() };
                let (site, plugin, component) = (stale.site.clone(), stale.plugin.clone(), stale.component);
                if !self.store.collect_push(stale, before_ms, actor).await? {
                    continue;
                }
                progress = true;
                collected += 1;
                self.telemetry.pushes_collected.inc();
                tracing::info!(%site, %plugin, %component, "a component that was never released is collected");
                self.remove(component).await?;
            }
            if !progress {
                return Ok(collected);
            }
        }
    }

    /// Removes the bytes, unless somebody needs them or is about to. Those that stay are looked at again with the orphans.
    ///
    /// They are taken from their place within a transaction that has found no row of theirs, and so before the row of any
    /// process that comes later; that one looks once more when its row is written. Were the transaction lost on the way,
    /// and with it the lock that made it the only one, they go back.
    async fn remove(&self, digest: Digest) -> Result<bool, CollectError> {
        let Some(_nobody) = self.blobs.nobody_relies() else { return Ok(false) };
        let aside = Arc::new(Mutex::new(None));
        let taken = self.store.take_unneeded(digest, {
            let (blobs, aside) = (Arc::clone(&self.blobs), Arc::clone(&aside));
            move || {
                let mut aside = aside.lock();
                // A transaction that is run again has taken it already.
                if aside.is_none() {
                    *aside = blobs.set_aside(digest).map_err(std::io::Error::other)?;
                }
                Ok(())
            }
        });
        let taken = taken.await;
        let aside = aside.lock().take();
        let bytes = settle(aside, taken).await?;
        self.telemetry.blob_bytes_collected.inc_by(bytes.unwrap_or(0));
        Ok(bytes.is_some())
    }

    async fn remove_orphans(&self, file_age_min: Duration) -> Result<(), CollectError> {
        for digest in self.blobs.list(file_age_min).await? {
            if !self.store.is_blob_needed(digest).await? && self.remove(digest).await? {
                tracing::info!(%digest, "a blob that nothing refers to is removed");
            }
        }
        Ok(())
    }
}

/// Ends what a transaction has begun: `taken` says what became of it. Answers how many bytes are gone.
async fn settle(aside: Option<Aside>, taken: Result<bool, StoreError>) -> Result<Option<u64>, CollectError> {
    let Some(aside) = aside else {
        taken?;
        return Ok(None);
    };
    let (bytes, is_gone) = (aside.bytes, matches!(taken, Ok(true)));
    let end = move || if is_gone { aside.remove() } else { aside.put_back() };
    tokio::task::spawn_blocking(end).await.unwrap_or_else(|e| Err(std::io::Error::other(e).into()))?;
    taken?;
    Ok(is_gone.then_some(bytes))
}

#[cfg(test)]
mod tests {
    use souk_commerce::id::{PluginName, SiteId};
    use souk_commerce::site::{Hook, SiteSettings};
    use souk_sandbox::admit::Capabilities;

    use super::*;
    use crate::store::StoreSettings;
    use crate::store::audit::Deed;
    use crate::store::push::PushRow;
    use crate::store::release::{Change, Changes, Wanted};
    use crate::store::site::By;
    use crate::store::tests::home::Home;

    struct World {
        _dirs: (tempfile::TempDir, Home),
        collector: Collector,
    }

    fn site(name: &str) -> SiteId {
        name.parse().unwrap()
    }

    fn plugin() -> PluginName {
        "tea".parse().unwrap()
    }

    fn actor() -> Actor {
        Actor { name: "test".to_owned(), peer: String::new() }
    }

    impl World {
        async fn new() -> Self {
            let (dir, home) = (tempfile::tempdir().unwrap(), Home::chosen());
            let store = home.open_with(StoreSettings::for_tests(1_000));
            for name in ["shop", "other"] {
                store
                    .put_site(SiteSettings::new(site(name), "GBP".parse().unwrap()), By::Operator, actor())
                    .await
                    .unwrap();
            }
            let blobs = Arc::new(Blobs::open(dir.path(), 1 << 20, true).unwrap());
            Self {
                _dirs: (dir, home),
                collector: Collector { store, blobs, telemetry: Arc::new(Telemetry::new()) },
            }
        }

        async fn bring(&self, content: &[u8]) -> Digest {
            let mut upload = self.collector.blobs.begin().await.unwrap();
            upload.write(content).await.unwrap();
            upload.finish(Digest::of(content)).await.unwrap();
            Digest::of(content)
        }

        async fn push(&self, of: &str, content: &[u8]) -> Digest {
            let component = self.bring(content).await;
            let capabilities = Capabilities { hooks: vec![Hook::Pricing], ..Capabilities::default() };
            let row = PushRow { component, capabilities, pushed_ms: 0, bytes: content.len() as u64 };
            self.collector.store.put_push(site(of), plugin(), row, actor()).await.unwrap();
            component
        }

        async fn deploy(&self, component: Digest) {
            let changes = Changes { component: Some(component), ..Changes::default() };
            let change = Change { plugin: plugin(), wanted: Wanted::New(Box::new(changes)), position: None };
            self.collector.store.change_plugin(site("shop"), change, actor()).await.unwrap().unwrap();
        }

        /// As if all that was pushed were old.
        async fn collect(&self) -> u64 {
            self.collector.collect(clock::now_ms() + 1).await.unwrap()
        }

        async fn is_here(&self, digest: Digest) -> bool {
            self.collector.blobs.size(digest).await.unwrap().is_some()
        }
    }

    #[tokio::test]
    async fn what_was_never_released_goes_and_what_a_release_needs_stays() {
        let world = World::new().await;
        let (first, second) = (world.push("shop", b"first").await, world.push("shop", b"second").await);
        world.deploy(first).await;
        world.deploy(second).await;
        let third = world.push("shop", b"third").await;
        world.deploy(third).await;
        // Not active, not standing by, and yet a release to go back to and to replay with.
        let idle = world.push("shop", b"idle").await;
        assert_eq!(world.collector.collect(1).await.unwrap(), 0, "all of it is young");
        let before = world.collector.store.releases(site("shop")).await.unwrap();
        assert_eq!(before.coming.len(), 1);
        assert_eq!(world.collect().await, 1);
        for needed in [first, second, third] {
            assert!(world.is_here(needed).await);
            let row = world.collector.store.push(site("shop"), plugin(), Some(needed)).await.unwrap();
            assert!(row.is_some(), "and it can be released again");
        }
        assert!(!world.is_here(idle).await);
        assert_eq!(world.collector.store.push(site("shop"), plugin(), Some(idle)).await.unwrap(), None);
        let after = world.collector.store.releases(site("shop")).await.unwrap();
        assert!(after.coming.is_empty() && after.version > before.version, "the nodes are told: {after:?}");
        assert_eq!((&after.releases, &after.standby), (&before.releases, &before.standby));
        assert_eq!(world.collect().await, 0);
        assert_eq!(world.collector.telemetry.pushes_collected.get(), 1);
        let audit = world.collector.store.audit(0, 100).await.unwrap();
        assert!(audit.iter().any(|row| row.action == "plugin.collect" && row.actor == "region"));
    }

    #[tokio::test]
    async fn bytes_that_somebody_else_has_stay() {
        let world = World::new().await;
        let shared = world.push("shop", b"shared").await;
        world.push("other", b"shared").await;
        world.deploy(shared).await;
        assert_eq!(world.collect().await, 1, "the other site has not released it");
        assert!(world.is_here(shared).await);

        let brought = world.push("other", b"brought").await;
        let deed = Deed { action: "blob.put", subject: brought.to_string(), detail: serde_json::json!({}) };
        world.collector.store.record(actor(), deed).await.unwrap();
        assert_eq!(world.collect().await, 1);
        assert!(world.is_here(brought).await, "the operator brought it under its name");

        let again = world.push("other", b"again").await;
        let relied_on = world.collector.blobs.relied_on().await;
        assert_eq!(world.collect().await, 1);
        assert!(world.is_here(again).await, "somebody is about to refer to it");
        drop(relied_on);
        assert!(world.collector.remove(again).await.unwrap());
    }

    #[tokio::test]
    async fn a_file_whose_row_is_gone_is_removed_within_a_day() {
        let world = World::new().await;
        let (orphan, kept) = (world.bring(b"orphan").await, world.push("shop", b"kept").await);
        world.collector.round(0, FILE_AGE_MIN).await;
        assert!(world.is_here(orphan).await, "it is young");
        let relied_on = world.collector.blobs.relied_on().await;
        world.collector.round(0, Duration::ZERO).await;
        drop(relied_on);
        world.collector.round(1, Duration::ZERO).await;
        assert!(world.is_here(orphan).await, "somebody relied on something");
        world.collector.round(ORPHANS_EVERY, Duration::ZERO).await;
        assert!(!world.is_here(orphan).await && world.is_here(kept).await);
    }

    /// A transaction has found nobody and taken the bytes, and is then lost: somebody may have come in between.
    #[tokio::test]
    async fn what_was_taken_by_a_transaction_that_did_not_last_is_put_back() {
        let world = World::new().await;
        let orphan = world.bring(b"orphan").await;
        for lost in [StoreError::NotCommitted("lost".to_owned()), StoreError::Unknown("killed".to_owned())] {
            let aside = world.collector.blobs.set_aside(orphan).unwrap();
            assert!(!world.is_here(orphan).await);
            assert!(matches!(settle(aside, Err(lost)).await, Err(CollectError::Store(_))));
            assert!(world.is_here(orphan).await);
        }
        assert!(world.collector.remove(orphan).await.unwrap() && !world.is_here(orphan).await);
        assert!(!world.collector.remove(orphan).await.unwrap(), "there is nothing to remove");
        assert_eq!(world.collector.telemetry.blob_bytes_collected.get(), 6);
    }

    /// Another process has found the bytes, and writes the row that names them while this one collects.
    #[tokio::test]
    async fn a_row_of_another_process_keeps_the_bytes_or_is_told_that_it_comes_too_late() {
        let Some(home) = Home::postgres() else { return };
        let dir = tempfile::tempdir().unwrap();
        let open = || {
            let blobs = Arc::new(Blobs::open(dir.path(), 1 << 20, true).unwrap());
            (home.open_with(StoreSettings::for_tests(1_000)), blobs)
        };
        let ((store, blobs), (there, there_blobs)) = (open(), open());
        let collector = Collector { store, blobs, telemetry: Arc::new(Telemetry::new()) };
        let bring = async |content: &[u8]| {
            let mut upload = there_blobs.begin().await.unwrap();
            upload.write(content).await.unwrap();
            upload.finish(Digest::of(content)).await.unwrap();
            Digest::of(content)
        };
        let name = async |digest: Digest| {
            let deed =
                Deed { action: "blob.put", subject: digest.to_string(), detail: serde_json::json!({}) };
            there.record(actor(), deed).await.unwrap();
            there_blobs.are_here([digest]).await.unwrap()
        };
        let (early, late) = (bring(b"early").await, bring(b"late").await);
        let _relied_on = there_blobs.relied_on().await;
        assert!(name(early).await, "its row is first");
        assert!(!collector.remove(early).await.unwrap());
        assert!(
            collector.remove(late).await.unwrap(),
            "no row, and the guard of another process is not seen"
        );
        assert!(!name(late).await, "it is told, and brings it again");
    }
}
