//! `souk demo --replay FILE --record DIR`: every call of the replay's plugins that was recorded, in a folder that
//! `souk plugin replay DIR` runs again in another process.
//!
//! The region keeps a ring of recordings per site, and a replay makes more than fit: they are fetched while it runs.
//! What a node had no room for, or the ring no longer held, is not there; a recording is a sample.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use serde::Deserialize;
use souk_commerce::id::SiteId;
use souk_commerce::journal::CallId;
use tokio_util::sync::CancellationToken;

use super::shop::ShopPlugin;
use crate::control::RegionClient;
use crate::failure::Usage;
use crate::plugin::replay::COMPONENTS;

/// Recordings that are fetched at most: some 6 kB each.
const FETCHED_MAX: usize = 50_000;
/// Between two looks at the region's list.
const PAUSE: Duration = Duration::from_millis(200);
/// The region's own limit of a page.
const PAGE_MAX: usize = 1_000;
/// How long nothing new must come after the replay before the folder counts as whole: a node carries what it still has.
const QUIET: u32 = 10;

#[derive(Deserialize)]
struct Page {
    calls: Vec<Listed>,
    before: Option<CallId>,
}

#[derive(Deserialize)]
struct Listed {
    id: CallId,
}

/// Whether a folder may become one of recordings.
pub(super) fn check(dir: &Path) -> Result<(), Usage> {
    let used = std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some());
    if used {
        let why = "is not empty; recordings want a folder of their own";
        return Err(Usage(format!("--record {} {why}", dir.display())));
    }
    Ok(())
}

/// A folder that fills with recordings.
pub(super) struct Recordings {
    dir: PathBuf,
    seen: HashSet<CallId>,
}

impl Recordings {
    /// Makes the folder and puts the components into it, each under its digest.
    pub(super) fn create(dir: &Path, plugins: &[ShopPlugin]) -> anyhow::Result<Self> {
        check(dir)?;
        let components = dir.join(COMPONENTS);
        std::fs::create_dir_all(&components).with_context(|| format!("create {}", components.display()))?;
        for plugin in plugins {
            let copy = components.join(format!("{}.wasm", plugin.built.sha256));
            std::fs::copy(&plugin.built.file, &copy).with_context(|| format!("write {}", copy.display()))?;
        }
        Ok(Self { dir: dir.to_owned(), seen: HashSet::new() })
    }

    /// Fetches until `replayed`, and then what was still on its way. Answers how many there are.
    pub(super) async fn collect(
        mut self,
        region: RegionClient,
        site: SiteId,
        replayed: CancellationToken,
    ) -> anyhow::Result<usize> {
        let mut quiet = 0;
        while quiet < QUIET && self.seen.len() < FETCHED_MAX {
            let new = self.fetch_new(&region, &site).await?;
            quiet = if replayed.is_cancelled() && new == 0 { quiet + 1 } else { 0 };
            if new == 0 {
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(self.seen.len())
    }

    /// Page by page from the newest to the first page that brings nothing new.
    async fn fetch_new(&mut self, region: &RegionClient, site: &SiteId) -> anyhow::Result<usize> {
        let mut new = 0;
        let mut before = String::new();
        loop {
            let query = format!("limit={PAGE_MAX}{before}");
            let page: Page = match region.calls(site, &query).await {
                Ok(page) => page,
                // The replay has yet to make its site.
                Err(error) if error.is_not_found() => return Ok(new),
                Err(error) => return Err(error).context("list the recorded calls"),
            };
            let unseen: Vec<CallId> =
                page.calls.iter().map(|call| call.id).filter(|id| !self.seen.contains(id)).collect();
            for id in &unseen {
                // It may have left the ring since it was listed.
                if let Ok(bytes) = region.recording(site, *id).await {
                    let file = self.dir.join(format!("{id}.json"));
                    std::fs::write(&file, bytes).with_context(|| format!("write {}", file.display()))?;
                    self.seen.insert(*id);
                    new += 1;
                }
            }
            match page.before {
                Some(id) if !unseen.is_empty() && self.seen.len() < FETCHED_MAX => {
                    before = format!("&before={id}")
                }
                _ => return Ok(new),
            }
        }
    }
}
