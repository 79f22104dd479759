//! The forms of files that have been made, and the bench on which they are: each once, off the way of any request.
//!
//! A request that would like a form hands the recipe over without waiting and gets what is there. Owns the memory of forms,
//! the queue and the thread. What a form is, [`super::codec`] knows; who wants which, [`super::choice`]. A form is of one
//! site, even where two sites have the same files.

use std::collections::HashSet;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use souk_commerce::feed::Asset;
use souk_commerce::id::{Digest, SiteId};
use souk_commerce::lineage::BYTES_MAX;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::choice::{Coding, Wishes};
use super::codec;
use crate::blobs::{BlobError, Blobs};

/// Forms that wait to be made. They hold no bytes, and at half a second each this is two minutes of work.
const WAITING_MAX: usize = 256;
/// After each form the thread rests for as long as it took times this: half of one processor at most.
const REST_TIMES: u32 = 1;
/// The least important that a thread can be: what shoppers wait for goes first.
const NICENESS: i32 = 19;
/// A form that is larger than so many tenths of the file is not worth the browser's work.
const WORTH_TENTHS: usize = 9;
/// What a form takes beside its bytes: the recipe twice and the tables' part.
const RECIPE_BYTES: u32 = 512;
/// How long after a failure nobody tries again: the region may be away, and the disk full.
const TRY_AGAIN: Duration = Duration::from_secs(60);
/// Failures remembered; beyond it some are tried again earlier.
const FAILED_MAX: u64 = 1_024;

/// Which form of which file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Recipe {
    pub(super) site: SiteId,
    pub(super) file: Digest,
    pub(super) coding: Coding,
    /// Of a difference: from what.
    pub(super) from: Option<Digest>,
}

#[derive(Debug, Clone)]
enum Made {
    Bytes(Bytes),
    /// It was tried, and saves too little.
    Worthless,
}

/// Why a form was not made.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Blob(#[from] BlobError),
    #[error("the codec failed: {0}")]
    Codec(#[from] io::Error),
    #[error("the file has {0} bytes, more than its manifest says")]
    TooLarge(usize),
    #[error("what was made does not lead to the file")]
    Wrong,
    #[error("the codec panicked")]
    Panicked,
    #[error("the thread that makes them has ended")]
    Ended,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodingLabels {
    coding: &'static str,
}

/// What is counted of it. Every label is of a closed list.
#[derive(Debug, Clone, Default)]
pub struct AssetMetrics {
    sent: Family<CodingLabels, Counter>,
    made: Family<CodingLabels, Counter>,
    bytes_in: Counter,
    bytes_out: Counter,
    dropped: Counter,
    failed: Counter,
    strangers: Counter,
    bytes: Gauge,
}

impl AssetMetrics {
    pub fn register(registry: &mut Registry) -> Self {
        let this = Self::default();
        let assets = registry.sub_registry_with_prefix("souk_asset");
        assets.register("sent", "Bodies of site files sent, by their coding", this.sent.clone());
        assets.register("encodings", "Forms of site files made, by their coding", this.made.clone());
        assets.register("encoding_in_bytes", "Bytes of files that forms were made of", this.bytes_in.clone());
        assets.register("encoding_out_bytes", "Bytes of the forms", this.bytes_out.clone());
        assets.register(
            "encodings_dropped",
            "Forms for which there was no room in the queue",
            this.dropped.clone(),
        );
        assets.register("encodings_failed", "Forms that could not be made", this.failed.clone());
        assets.register(
            "dictionaries_unknown",
            "Requests with a dictionary that is no former version of their file",
            this.strangers.clone(),
        );
        assets.register("encoded_bytes", "Bytes of forms kept", this.bytes.clone());
        this
    }

    pub(super) fn sent(&self, coding: &'static str) {
        self.sent.get_or_create(&CodingLabels { coding }).inc();
    }
}

/// The forms that there are. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Variants {
    made: moka::sync::Cache<Recipe, Made>,
    failed: moka::sync::Cache<Recipe, ()>,
    /// Waiting or being made: a popular script is asked for many times meanwhile.
    known: Arc<Mutex<HashSet<Recipe>>>,
    jobs: mpsc::Sender<Recipe>,
    pub(super) metrics: AssetMetrics,
}

/// The bench: makes what is wanted, one after the other.
#[derive(Debug)]
pub struct Bench {
    jobs: mpsc::Receiver<Recipe>,
    variants: Variants,
    blobs: Blobs,
    thread: SyncSender<Work>,
}

struct Work {
    coding: Coding,
    from: Option<(Digest, Bytes)>,
    file: Bytes,
    reply: oneshot::Sender<Result<Vec<u8>, Failure>>,
}

/// Forms of at most `bytes_max` bytes together, and the bench that makes them while it runs.
pub(super) fn open(blobs: Blobs, bytes_max: u64, metrics: AssetMetrics) -> io::Result<(Variants, Bench)> {
    let (thread, work) = sync_channel(1);
    std::thread::Builder::new().name("souk-assets".to_owned()).spawn(move || run_thread(&work))?;
    let weigh = |_: &Recipe, made: &Made| match made {
        Made::Bytes(bytes) => RECIPE_BYTES + u32::try_from(bytes.len()).unwrap_or(u32::MAX / 2),
        Made::Worthless => RECIPE_BYTES,
    };
    let (jobs, waiting) = mpsc::channel(WAITING_MAX);
    let variants = Variants {
        // The one that was asked for least recently goes. A policy that turns away what is new would have it made at every
        // request.
        made: moka::sync::Cache::builder()
            .max_capacity(bytes_max)
            .weigher(weigh)
            .eviction_policy(moka::policy::EvictionPolicy::lru())
            .build(),
        failed: moka::sync::Cache::builder().max_capacity(FAILED_MAX).time_to_live(TRY_AGAIN).build(),
        known: Arc::default(),
        jobs,
        metrics,
    };
    let bench = Bench { jobs: waiting, variants: variants.clone(), blobs, thread };
    Ok((variants, bench))
}

impl Variants {
    /// The smallest form of those that the client likes best and that are there; orders the one that it would like best of
    /// all, if nobody has made it yet.
    pub(super) fn choose(&self, site: &SiteId, asset: &Asset, wishes: &Wishes) -> Option<(Coding, Bytes)> {
        if wishes.stranger {
            self.metrics.strangers.inc();
        }
        let mut best: Option<(u16, Coding, Bytes)> = None;
        let mut wanted = None;
        for &(coding, weight) in &wishes.codings {
            let from = wishes.dictionary.filter(|_| coding.is_difference());
            let recipe = Recipe { site: site.clone(), file: asset.digest, coding, from };
            match self.made.get(&recipe) {
                Some(Made::Bytes(bytes)) => {
                    let better = best.as_ref().is_none_or(|(best_weight, _, best_bytes)| {
                        weight == *best_weight && bytes.len() < best_bytes.len()
                    });
                    if better {
                        best = Some((weight, coding, bytes));
                    }
                    // What is liked less, or as much and is larger as a rule, is not made beside it.
                    wanted.get_or_insert(None);
                }
                Some(Made::Worthless) => {}
                None => {
                    wanted.get_or_insert(Some(recipe));
                }
            }
        }
        if let Some(Some(recipe)) = wanted {
            self.order(recipe);
        }
        best.map(|(_, coding, bytes)| (coding, bytes))
    }

    /// Whether nothing is being made, nor waits for it.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.known.lock().is_empty()
    }

    /// Takes work on if there is room, and never waits.
    fn order(&self, recipe: Recipe) {
        if self.failed.contains_key(&recipe) || !self.known.lock().insert(recipe.clone()) {
            return;
        }
        if let Err(refused) = self.jobs.try_send(recipe) {
            let (mpsc::error::TrySendError::Full(recipe) | mpsc::error::TrySendError::Closed(recipe)) =
                refused;
            self.known.lock().remove(&recipe);
            self.metrics.dropped.inc();
        }
    }
}

impl Bench {
    /// Runs until shutdown. What waits then is made when somebody asks for it again.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let work = async {
            while let Some(recipe) = self.jobs.recv().await {
                self.take(recipe).await;
            }
        };
        let _given_up = shutdown.run_until_cancelled(work).await;
    }

    async fn take(&self, recipe: Recipe) {
        let variants = &self.variants;
        match self.make(&recipe).await {
            Ok(made) => {
                if let Made::Bytes(bytes) = &made {
                    variants.metrics.bytes_out.inc_by(bytes.len() as u64);
                    let coding = recipe.coding.name();
                    variants.metrics.made.get_or_create(&CodingLabels { coding }).inc();
                }
                variants.made.insert(recipe.clone(), made);
                // At once, and not when the cache comes to it: the bound holds after each form.
                variants.made.run_pending_tasks();
                variants.metrics.bytes.set(i64::try_from(variants.made.weighted_size()).unwrap_or(i64::MAX));
            }
            Err(failure) => {
                variants.metrics.failed.inc();
                let (site, file, coding) = (&recipe.site, &recipe.file, recipe.coding.name());
                tracing::warn!(%site, %file, coding, %failure, "a form of a site's file was not made; the file is sent without it");
                variants.failed.insert(recipe.clone(), ());
            }
        }
        // After the memory has it: nobody finds the work neither done nor known.
        variants.known.lock().remove(&recipe);
    }

    async fn make(&self, recipe: &Recipe) -> Result<Made, Failure> {
        let file = self.load(recipe.file).await?;
        let from = match recipe.from {
            Some(digest) => Some((digest, self.load(digest).await?)),
            None => None,
        };
        let bytes = file.len();
        let (reply, made) = oneshot::channel();
        let work = Work { coding: recipe.coding, from, file, reply };
        self.thread.try_send(work).map_err(|_| Failure::Ended)?;
        let form = made.await.map_err(|_| Failure::Ended)??;
        self.variants.metrics.bytes_in.inc_by(bytes as u64);
        let worth = form.len().saturating_mul(10) <= bytes.saturating_mul(WORTH_TENTHS);
        Ok(if worth { Made::Bytes(form.into()) } else { Made::Worthless })
    }

    async fn load(&self, digest: Digest) -> Result<Bytes, Failure> {
        let bytes = self.blobs.load(digest).await?;
        if bytes.len() as u64 > BYTES_MAX { Err(Failure::TooLarge(bytes.len())) } else { Ok(bytes) }
    }
}

/// Ends when the bench does, after what it is at.
fn run_thread(work: &Receiver<Work>) {
    // Linux has a niceness for each thread. Where it cannot be had, resting alone must do.
    if let Err(error) = rustix::process::nice(NICENESS) {
        tracing::debug!(%error, "forms of files are made at ordinary priority");
    }
    while let Ok(Work { coding, from, file, reply }) = work.recv() {
        let began = Instant::now();
        let from = from.as_ref().map(|(digest, bytes)| (digest, bytes.as_ref()));
        // A mistake in a codec costs one form, not all that come after it.
        let made = catch_unwind(AssertUnwindSafe(|| {
            let form = codec::encode(coding, from, &file)?;
            match from {
                Some((_, from)) if !codec::leads_to(coding, &form, from, &file) => Err(Failure::Wrong),
                _ => Ok(form),
            }
        }));
        // Whoever ordered it may have gone: the node ends.
        let _ = reply.send(made.unwrap_or(Err(Failure::Panicked)));
        std::thread::sleep(began.elapsed() * REST_TIMES);
    }
}
