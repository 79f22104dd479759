//! A fetch that fills the cache, in a task of its own, so that a client who leaves does not waste it.
//!
//! Owns the order of questions to peers and upstream, and what the client that started it is told. What may be stored is the
//! cache crate's, which gave the permit.

use std::time::Instant;

use http::{Request, Response, StatusCode};
use souk_cache::cache::Failure;
use souk_cache::freshness::Exchanged;
use souk_cache::{Asked, FillPermit, FillWriter, Hit, Key, PassReason, Stored};
use tokio::sync::oneshot;

use super::error::{UpstreamError, body_cause, chain};
use super::forward;
use super::mend::Begun;
use super::pace::Paced;
use super::pour::{Poured, pour};
use super::proxy::{Arrival, Proxy};
use super::shield::Shared;
use crate::http::{later, now_ms};
use crate::interim::Interims;

/// Times that the upstream is asked for one fill: a 304 that speaks of another version costs a second question.
const QUESTIONS_MAX: usize = 2;

/// What a fill tells the client that started it.
pub(super) enum Fetched {
    Hit(Hit),
    Pass(Box<Response<Paced>>, PassReason),
    /// It is large, and this is its head, which is stored now: the answer is put together of slices.
    Sliced(Hit),
    Failed(UpstreamError),
}

impl Proxy {
    /// Starts the task that fetches and stores; the answer comes as soon as it has the head.
    /// Interim responses go to the client whose question it is, and to nobody who joins it.
    pub(super) fn start_fill(
        &self,
        permit: FillPermit,
        asked: Asked,
        from: Arrival,
        interims: Option<Interims>,
    ) -> oneshot::Receiver<Fetched> {
        let (answer, answered) = oneshot::channel();
        let proxy = self.clone();
        tokio::spawn(async move { proxy.fill(permit, asked, from, interims, answer).await });
        answered
    }

    async fn fill(
        self,
        mut permit: FillPermit,
        asked: Asked,
        from: Arrival,
        interims: Option<Interims>,
        answer: oneshot::Sender<Fetched>,
    ) {
        let mut conditions = permit.conditions(&asked);
        for _ in 0..QUESTIONS_MAX {
            let request = || forward::fill(&asked, &conditions, &self.signature(&from));
            let shared = self.ask_peer(&asked, request, &from, interims.clone()).await;
            let mut by = None;
            let (when, answered) = match shared {
                Some((when, Shared { response, tags, peer })) => {
                    permit.tag(tags);
                    by = Some(peer);
                    (when, Ok(response))
                }
                None => self.ask(&asked.key, request(), None, interims.clone(), &from.tries).await,
            };
            let mut response = match answered {
                Ok(response) => response,
                Err(error) => {
                    let failure = Failure(error.name());
                    let stale = permit.stale_on_error(when.answered_ms, failure);
                    permit.fail(failure);
                    // A client that has gone does not want to know.
                    drop(answer.send(stale.map_or(Fetched::Failed(error), Fetched::Hit)));
                    return;
                }
            };
            // Before a 304 too: its fields become those of what is stored.
            // A peer has done it already.
            if by.is_none() {
                forward::rewrite_location(response.headers_mut(), &self.0.upstream);
            }
            if response.status() == StatusCode::NOT_MODIFIED && !conditions.is_empty() {
                match permit.confirm(response.headers(), &asked, when) {
                    Ok(hit) => {
                        drop(answer.send(Fetched::Hit(hit)));
                        return;
                    }
                    Err(unconfirmed) => {
                        permit = unconfirmed;
                        conditions.clear();
                        continue;
                    }
                }
            }
            if is_failure(response.status()) {
                let failure = Failure("upstream_status");
                if let Some(stale) = permit.stale_on_error(when.answered_ms, failure) {
                    self.metrics().upstream_error(failure.0);
                    permit.fail(failure);
                    drop(answer.send(Fetched::Hit(stale)));
                    return;
                }
            }
            let (head, body) = response.into_parts();
            if let Some(stored) = self.keep_large(&head, &asked, when).await {
                // Of the body that comes nobody needs more than slices. Who waits finds the head.
                drop(body);
                permit.keep_in_slices(when.answered_ms);
                drop(answer.send(Fetched::Sliced(stored)));
                return;
            }
            match permit.store(&head, &asked, when) {
                Stored::Filling(hit, writer) => {
                    drop(answer.send(Fetched::Hit(hit)));
                    match by {
                        Some(peer) => {
                            self.pump_shared(body, writer, Begun { head, asked, from, peer }).await;
                        }
                        None => self.pump(body, writer, &asked.key).await,
                    }
                }
                Stored::Pass(reason) => {
                    drop(answer.send(Fetched::Pass(Box::new(Response::from_parts(head, body)), reason)));
                }
                Stored::Unfitting(unused) => {
                    permit = unused;
                    conditions.clear();
                    continue;
                }
            }
            return;
        }
        // A 304 or a 206 to a question without conditions and ranges.
        let error = UpstreamError::Broke("304 or 206 to a request for the whole".to_owned());
        permit.fail(Failure(error.name()));
        drop(answer.send(Fetched::Failed(error)));
    }

    /// Moves the upstream's body into the cache, whether or not a client still reads it.
    pub(super) async fn pump(&self, body: Paced, mut writer: FillWriter, key: &Key) {
        let metrics = self.metrics();
        let count = |chunk: &bytes::Bytes| {
            metrics.fill_bytes.inc_by(chunk.len() as u64);
        };
        let poured = pour(body, &mut writer, count).await;
        self.settle(poured, writer, key);
    }

    /// The end of a body: it is stored, or it is told why not.
    pub(super) fn settle(&self, poured: Poured, writer: FillWriter, key: &Key) {
        let broken = match poured {
            Poured::Unread => return,
            Poured::Whole => match writer.finish() {
                Ok(()) => return,
                Err(error) => chain(&error),
            },
            Poured::Broken(error) => body_cause(&error),
        };
        // The writer is dropped by now, or by leaving: every reader's body is aborted.
        self.metrics().fills_broken.inc();
        tracing::warn!(url = %key, cause = %broken, "the upstream broke off in the middle of a body");
    }

    /// Asks the key's home among the nodes of this place, if that is another one and it answers.
    async fn ask_peer(
        &self,
        asked: &Asked,
        request: impl Fn() -> Request<()>,
        from: &Arrival,
        interims: Option<Interims>,
    ) -> Option<(Exchanged, Shared)> {
        let shield = self.0.shield.as_ref().filter(|_| !from.is_peer)?;
        let (asked_ms, started) = (now_ms(), Instant::now());
        let (own_load, patience) = (self.0.upstream.in_flight(), self.config().first_byte_timeout);
        let shared = shield.ask(asked, own_load, patience, request, interims.as_ref(), asked_ms).await?;
        Some((Exchanged { asked_ms, answered_ms: later(asked_ms, started) }, shared))
    }
}

/// Statuses in whose place a stale response may be sent (RFC 5861 section 4).
pub(super) fn is_failure(status: StatusCode) -> bool {
    matches!(status.as_u16(), 500 | 502 | 503 | 504)
}
