//! Certificates that the node gets by itself, and renews (ACME, RFC 8555).
//!
//! Owns one task for all names of a door, which asks for one certificate after the other, each for one name: a name that does
//! not lead here costs no other name its certificate. The protocol is `instant-acme`'s; when to ask is decided in
//! [`schedule`], what is kept lies in [`store`], who asks back is answered by [`Challenges`], before any routing.
//!
//! Nobody waits for an authority: a node starts without it, a name without a certificate has its handshakes refused until it
//! has one, and a certificate that cannot be renewed stays in use. All of that is in the log and in `souk_acme_…`.

mod challenges;
mod http;
mod order;
mod schedule;
mod store;
mod telemetry;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use souk_config::AcmeConfig;
use thiserror::Error;
use tokio_util::sync::CancellationToken;

pub(crate) use self::challenges::{ACME_TLS, Challenges};
use self::http::Post;
use self::order::{Failure, Orders};
use self::store::Store;
use self::telemetry::Metrics;
use crate::http::now_ms;
use crate::tls::{Certificates, Validity};

/// One order from its first word to its certificate. An authority looks at a name within seconds; one that takes minutes is
/// asked again, later.
const ORDER_MAX: Duration = Duration::from_secs(180);
/// Between two looks at the clock on the wall, which may be set while nobody looks.
const LOOK_EVERY: Duration = Duration::from_secs(600);

/// Why certificates cannot be asked for at all.
#[derive(Debug, Error)]
pub enum AcmeError {
    #[error("cannot keep certificates in {}: {source}; --acme-cache or `cache` must name a folder that this process may write to", path.display())]
    Cache { path: PathBuf, source: std::io::Error },
    #[error("cannot read the authority's certificate {}: {why}", path.display())]
    Ca { path: PathBuf, why: String },
    #[error("cannot set up TLS for the authority: {0}")]
    Tls(#[from] rustls::Error),
}

/// Asks for the certificates of one door.
pub(crate) struct Acme {
    jobs: Vec<Job>,
    orders: Orders,
    store: Arc<Store>,
    certificates: Arc<Certificates>,
    metrics: Metrics,
}

/// One name.
struct Job {
    domain: String,
    has: Option<Validity>,
    /// In a row.
    failures: u32,
    due_ms: u64,
}

impl Acme {
    /// Takes what earlier processes have got. Asks nobody yet.
    pub(crate) fn open(
        config: &AcmeConfig,
        certificates: Arc<Certificates>,
        registry: &mut Registry,
    ) -> Result<Self, AcmeError> {
        let store = Store::open(config).map_err(|source| {
            let path = config.cache.clone();
            AcmeError::Cache { path, source }
        })?;
        let store = Arc::new(store);
        let metrics = Metrics::register(registry, &config.domains);
        let now_ms = now_ms();
        let job = |domain: &String| {
            let has = store.certificate(domain).and_then(|pem| match certificates.adopt(domain, &pem) {
                Ok(validity) => Some(validity),
                Err(why) => {
                    tracing::warn!(%domain, %why, "the kept certificate cannot be used: a new one is asked for");
                    None
                }
            });
            metrics.has(domain, has);
            let due_ms = has.map_or(now_ms, |has| schedule::renewal_ms(has, rand::random()));
            Job { domain: domain.clone(), has, failures: 0, due_ms }
        };
        let jobs = config.domains.iter().map(job).collect();
        let post = Post::new(config.ca.as_deref())?;
        let orders = Orders::new(config, post, Arc::clone(&store), certificates.challenges().clone());
        Ok(Self { jobs, orders, store, certificates, metrics })
    }

    /// What the door in clear text has to answer.
    pub(crate) fn challenges(&self) -> Challenges {
        self.orders.challenges()
    }

    /// Asks whenever a name is due, until shutdown.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let Self { mut jobs, orders, store, certificates, metrics } = self;
        while let Some(job) = jobs.iter_mut().min_by_key(|job| job.due_ms) {
            let wait = Duration::from_millis(job.due_ms.saturating_sub(now_ms()));
            if !wait.is_zero() {
                let waited = tokio::time::sleep(wait.min(LOOK_EVERY));
                if shutdown.run_until_cancelled(waited).await.is_none() {
                    return;
                }
                continue;
            }
            let got = async {
                let ordered = tokio::time::timeout(ORDER_MAX, orders.order(&job.domain)).await;
                let late = |_| Err(Failure::Slow(format!("an order was not done after {ORDER_MAX:?}")));
                let pem = ordered.unwrap_or_else(late)?;
                let validity = certificates.adopt(&job.domain, pem.as_bytes()).map_err(Failure::Unusable)?;
                keep(&store, &job.domain, pem).await;
                Ok::<_, Failure>(validity)
            };
            let Some(got) = shutdown.run_until_cancelled(got).await else { return };
            match got {
                Ok(validity) => {
                    metrics.ordered("issued");
                    metrics.has(&job.domain, Some(validity));
                    let good_for_s = validity.until_ms.saturating_sub(now_ms()) / 1_000;
                    tracing::info!(domain = %job.domain, good_for_s, "a certificate was issued and is in use");
                    job.failures = 0;
                    job.has = Some(validity);
                    job.due_ms = schedule::first_renewal_ms(validity, now_ms(), rand::random());
                }
                Err(failure) => {
                    metrics.ordered(failure.name());
                    job.failures = job.failures.saturating_add(1);
                    let pause = schedule::pause(failure.costs(), job.failures, rand::random());
                    let now_ms = now_ms();
                    job.due_ms = now_ms.saturating_add(u64::try_from(pause.as_millis()).unwrap_or(u64::MAX));
                    let old_good_for_s = job.has.map(|has| has.until_ms.saturating_sub(now_ms) / 1_000);
                    let again_in_s = pause.as_secs();
                    tracing::warn!(
                        domain = %job.domain, code = failure.name(), why = %failure, old_good_for_s, again_in_s,
                        "no certificate was issued; what is in use stays"
                    );
                }
            }
        }
    }
}

/// A certificate that cannot be kept is used all the same, and asked for again by the next process.
async fn keep(store: &Arc<Store>, domain: &str, pem: String) {
    let (store, name) = (Arc::clone(store), domain.to_owned());
    let kept = tokio::task::spawn_blocking(move || store.keep_certificate(&name, pem.as_bytes())).await;
    let kept = kept.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    if let Err(error) = kept {
        tracing::error!(%domain, %error, "the certificate cannot be kept: a restart will ask for another");
    }
}
