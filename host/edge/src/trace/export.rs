//! The way to a collector: a bounded queue, and one task that sends batches of it.
//!
//! A collector that is slow or away costs spans, which are counted, and no request's time.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Request, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use souk_config::TraceConfig;
use tokio::sync::mpsc;

use super::Traced;
use super::spans;

/// Requests that wait to be sent, some 400 bytes each and at most 1 KiB: of a path, a host and a method no more is kept
/// ([`super::PATH_BYTES_MAX`], [`crate::access::HOST_BYTES_MAX`], [`crate::access::METHOD_BYTES_MAX`]). 2 MiB at most.
const QUEUED_MAX: usize = 2_048;
/// Requests in one export. Some 1.5 KiB of JSON each, below the 4 MiB that collectors take.
const BATCH_MAX: usize = 512;
/// The longest that a span waits for company.
const BATCH_EVERY: Duration = Duration::from_secs(1);
/// A collector beside the node answers in milliseconds; one that does not by then has too much to do.
const SENT_WITHIN: Duration = Duration::from_secs(5);
/// What is read of a collector's answer, so that its connection can be used again.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// What became of traces. Clones count together.
#[derive(Clone, Debug, Default)]
pub(crate) struct TraceMetrics {
    sampled: Counter,
    exported: Counter,
    dropped: Counter,
    failed: Counter,
}

impl TraceMetrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        let traces = registry.sub_registry_with_prefix("souk_traces");
        traces.register("sampled", "Requests that were chosen to be traced", self.sampled.clone());
        traces.register("exported", "Traced requests that a collector took", self.exported.clone());
        traces.register(
            "dropped",
            "Traced requests for which there was no room in the queue",
            self.dropped.clone(),
        );
        traces.register("failed", "Traced requests that a collector did not take", self.failed.clone());
    }
}

#[cfg(test)]
impl TraceMetrics {
    pub(crate) fn sampled(&self) -> u64 {
        self.sampled.get()
    }

    /// Those that no collector has.
    pub(crate) fn lost(&self) -> u64 {
        self.failed.get() + self.dropped.get()
    }
}

/// Chooses who is traced, and hands it over. Clones share one queue; when the last is dropped, the rest is sent.
#[derive(Clone, Debug)]
pub(crate) struct Tracer {
    queue: mpsc::Sender<Traced>,
    sampled_per_mille: u16,
    metrics: TraceMetrics,
}

impl Tracer {
    /// Starts the task that sends. `node` is what the collector calls this process.
    pub(crate) fn start(config: &TraceConfig, node: &str, metrics: TraceMetrics) -> Option<Self> {
        let (queue, waiting) = mpsc::channel(QUEUED_MAX);
        // A URL that was validated; what http does not read as one was none.
        let collector: Uri = config.collector.as_str().parse().ok()?;
        let client = Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build_http();
        let courier = Courier { collector, client, node: node.into(), metrics: metrics.clone() };
        tokio::spawn(courier.run(waiting));
        Some(Self { queue, sampled_per_mille: config.sampled_per_mille, metrics })
    }

    /// The node's own coin: a client that chose its trace's number would choose to be traced.
    pub(crate) fn samples(&self) -> bool {
        rand::random_range(0..1_000u16) < self.sampled_per_mille
    }

    /// Never waits.
    pub(crate) fn offer(&self, traced: Traced) {
        self.metrics.sampled.inc();
        if self.queue.try_send(traced).is_err() {
            self.metrics.dropped.inc();
        }
    }
}

struct Courier {
    collector: Uri,
    client: Client<HttpConnector, Full<Bytes>>,
    node: Arc<str>,
    metrics: TraceMetrics,
}

impl Courier {
    async fn run(self, mut waiting: mpsc::Receiver<Traced>) {
        let mut batch = Vec::new();
        let mut in_trouble = false;
        while waiting.recv_many(&mut batch, BATCH_MAX).await > 0 {
            // The first of them has come; for company, no longer than a second.
            let full = async {
                while batch.len() < BATCH_MAX {
                    let room = BATCH_MAX - batch.len();
                    if waiting.recv_many(&mut batch, room).await == 0 {
                        return;
                    }
                }
            };
            let _ = tokio::time::timeout(BATCH_EVERY, full).await;
            let sent = self.send(spans::export(&self.node, &batch)).await;
            let count = batch.len() as u64;
            match sent {
                Ok(()) => {
                    self.metrics.exported.inc_by(count);
                    in_trouble = false;
                }
                Err(why) => {
                    self.metrics.failed.inc_by(count);
                    // Once, until it works again: the counter says how much.
                    if !std::mem::replace(&mut in_trouble, true) {
                        tracing::warn!(collector = %self.collector, %why, "traces are not taken");
                    }
                }
            }
            batch.clear();
        }
    }

    async fn send(&self, body: Vec<u8>) -> Result<(), String> {
        let request = Request::post(self.collector.clone())
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| e.to_string())?;
        let exchange = async {
            let response = self.client.request(request).await.map_err(|e| e.to_string())?;
            let status = response.status();
            // Its words do not matter, only that they have ended.
            let _ = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
            if status.is_success() { Ok(()) } else { Err(format!("it answers {status}")) }
        };
        tokio::time::timeout(SENT_WITHIN, exchange)
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {} s", SENT_WITHIN.as_secs())))
    }
}
