//! One peer, as this node sees it: whether it is there, how much it is about, and one question to it.
//!
//! A task asks each peer every second whether it is there. So a peer that is away, or hangs, or refuses this node, is found out
//! by that and by no shopper's request: those that wait for it are told, and go elsewhere.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use http::header::{HOST, HeaderValue};
use http::{Request, Response, StatusCode};
use tokio::sync::watch;

use super::super::client::Upstream;
use super::super::error::UpstreamError;
use super::super::pace::Paced;
use super::super::telemetry::ProxyMetrics;
use super::words::{self, Decline, Question};
use crate::interim::Interims;

/// How often a peer is asked whether it is there.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// A neighbour that is well answers within a millisecond, and within a second on a machine that is swamped. With the interval
/// before it, who waits for a peer that hangs waits two seconds.
const PROBE_ANSWER_MAX: Duration = Duration::from_secs(1);

pub(in crate::upstream) struct Member {
    /// What it is called in logs, metrics and `explain`.
    pub(super) name: String,
    pub(super) upstream: Upstream,
    is_up: watch::Sender<bool>,
    /// Questions of peers that it was about when it spoke last.
    load: AtomicUsize,
    metrics: ProxyMetrics,
}

/// What a peer says to a question.
pub(super) enum Said {
    Answer(Box<Response<Paced>>),
    /// It has too much to do: another peer may have the room.
    Full,
    /// The upstream is to be asked.
    Nothing,
}

impl Member {
    /// A peer that is away until it has answered.
    pub(super) fn new(name: String, upstream: Upstream, metrics: ProxyMetrics) -> Arc<Self> {
        metrics.set_peer_up(&name, false);
        Arc::new(Self {
            name,
            upstream,
            is_up: watch::Sender::new(false),
            load: AtomicUsize::new(0),
            metrics,
        })
    }

    pub(super) fn is_up(&self) -> bool {
        *self.is_up.borrow()
    }

    /// How much it is about, as far as this node knows: what it says itself, or what it was sent from here.
    pub(super) fn load(&self) -> usize {
        self.load.load(Ordering::Relaxed).max(self.upstream.in_flight())
    }

    /// Asks for ever whether it is there. `question` makes a request with the node's own words in it.
    pub(super) async fn keep(self: Arc<Self>, question: impl Fn() -> Request<()>) {
        loop {
            let mut request = question();
            Question::Alive.write(request.headers_mut());
            let tries = AtomicU32::new(0);
            let asking = self.upstream.ask("/", request, None, None, &tries);
            match tokio::time::timeout(PROBE_ANSWER_MAX, asking).await {
                Ok(Ok(response)) => match words::load(response.headers()) {
                    Some(load) => self.is_there(load),
                    None => self.is_away(&format!("it answers {} and is no peer", response.status())),
                },
                // It is there, and answers as many as it may.
                Ok(Err(UpstreamError::Busy(_))) => {}
                Ok(Err(error)) => self.is_away(&error.to_string()),
                Err(_) => self.is_away("it does not answer"),
            }
            tokio::time::sleep(PROBE_EVERY).await;
        }
    }

    /// Resolves when it is found to be away.
    pub(in crate::upstream) async fn until_away(&self) {
        // The sender is this member's own, so there is no other end.
        drop(self.is_up.subscribe().wait_for(|is_up| !*is_up).await);
    }

    fn is_there(&self, load: usize) {
        self.load.store(load, Ordering::Relaxed);
        if self.turns(true) {
            tracing::info!(peer = %self.name, "a peer is there");
        }
    }

    fn is_away(&self, why: &str) {
        if self.turns(false) {
            tracing::warn!(peer = %self.name, why, "a peer is away: what it would fetch is asked of the upstream");
        }
    }

    /// Whether that is new.
    fn turns(&self, up: bool) -> bool {
        let turned = self.is_up.send_if_modified(|is_up| std::mem::replace(is_up, up) != up);
        if turned {
            self.metrics.set_peer_up(&self.name, up);
        }
        turned
    }

    /// One question. It ends when the peer is found to be away, at the latest after `patience`.
    pub(super) async fn ask(
        &self,
        host: &str,
        target: &str,
        mut request: Request<()>,
        interims: Option<Interims>,
        patience: Duration,
    ) -> Said {
        let Ok(host) = HeaderValue::from_str(host) else { return Said::Nothing };
        request.headers_mut().insert(HOST, host);
        let tries = AtomicU32::new(0);
        let answered = tokio::select! {
            biased;
            answered = self.upstream.ask(target, request, None, interims, &tries) => answered,
            () = self.until_away() => {
                self.metrics.peer("lost");
                return Said::Nothing;
            }
            () = tokio::time::sleep(patience) => Err(UpstreamError::TimedOut(patience)),
        };
        match answered {
            Ok(response) => self.judge(response),
            Err(UpstreamError::Busy(_)) => {
                self.metrics.peer("full");
                Said::Full
            }
            Err(error) => {
                self.metrics.peer("failed");
                // One that is late may wait for the upstream itself, and what broke one connection is not yet the node's
                // end; whether it is there, the next probe finds out.
                if matches!(error, UpstreamError::Unreachable(_) | UpstreamError::Tls(_)) {
                    self.is_away(&error.to_string());
                }
                Said::Nothing
            }
        }
    }

    fn judge(&self, response: Response<Paced>) -> Said {
        let headers = response.headers();
        let Some(load) = words::load(headers) else {
            // Before it had read the request.
            if response.status() == StatusCode::SERVICE_UNAVAILABLE {
                self.metrics.peer("overloaded");
                return Said::Full;
            }
            self.metrics.peer("wrong");
            tracing::warn!(peer = %self.name, status = %response.status(), "what answers is no peer; asking the upstream instead");
            return Said::Nothing;
        };
        self.load.store(load, Ordering::Relaxed);
        if let Some(decline) = Decline::read(headers) {
            self.metrics.peer(decline.name());
            return Said::Nothing;
        }
        // Its own refusals; an upstream's 503 is an answer, whatever it looks like. So is what the peer says of the upstream (502,
        // 504): asking again would double the load of an upstream that fails.
        let is_own = words::is_refusal(headers);
        match response.status() {
            StatusCode::SERVICE_UNAVAILABLE if is_own => {
                self.metrics.peer("overloaded");
                return Said::Full;
            }
            StatusCode::LOOP_DETECTED if is_own => {
                self.metrics.peer("wrong");
                return Said::Nothing;
            }
            _ => {}
        }
        Said::Answer(Box::new(response))
    }
}
