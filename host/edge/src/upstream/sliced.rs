//! Answers that are put together of slices, for responses too large to be fetched or kept whole for the sake of a part.
//!
//! Owns the order: the head first, then one slice after the other and the next one ahead, each found or fetched as any entry
//! is. What is large, which slices there are and whether one is of the version that the answer began with, is decided by
//! [`souk_cache::slices`]. Where the first slice shows that the version has changed, the answer begins anew; where a later
//! one does, it breaks off. Slices are asked of the upstream itself, never of a peer.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, HeaderMap, HeaderValue, IF_RANGE, RANGE};
use http::{Method, Response, StatusCode, response};
use http_body_util::{BodyExt as _, BodyStream, StreamBody};
use souk_cache::cache::Failure;
use souk_cache::conditional::if_range_holds;
use souk_cache::freshness::Exchanged;
use souk_cache::range::{self, Part};
use souk_cache::slices::{Answer, HEAD_PIECE, SLICE_BYTES, Version};
use souk_cache::status::{self, Forwarded, How};
use souk_cache::{
    Asked, CacheBody, Explanation, FillPermit, Hit, Key, Lookup, Outcome, PassReason, Policy, Stored,
};
use thiserror::Error;
use tokio::sync::oneshot;

use super::error::problem_of;
use super::fill::is_failure;
use super::forward;
use super::proxy::{Arrival, Proxy, refusal_of};
use crate::http::{Body, BodyError, RequestBody, empty, now_ms};
use crate::rescue::Problem;

/// Times that an answer begins: once more where its first slice shows that the stored head is of an older version.
const BEGINNINGS_MAX: usize = 2;
/// Times that a slice is looked for: others may give it up, or leave between a look-up and the joining of it.
const LOOKS_MAX: usize = 3;
/// By this name those who wait for a slice learn that it was one of another version.
const CHANGED: Failure = Failure("slice_changed");
/// And by this one that there is no memory for it.
const NO_ROOM: Failure = Failure("slice_no_room");
/// The upstream has answered with an error.
const FAILED: Failure = Failure("upstream_status");
/// Some of it is not stored, and the client wants nothing else.
const NOT_STORED: Failure = Failure("only_if_cached");
/// Slices that are looked for before an answer of nothing but stored ones begins. One that only the disk has is read into memory
/// for it, and pushes others out: 16 MiB of a memory that has 64 at least. Of a longer answer it is not known.
const LOOKED_FOR_MAX: u64 = 16;
/// How long a key is not tried in slices whose upstream did not answer with one.
const UNSLICEABLE_FOR: Duration = Duration::from_secs(300);
/// Bytes of such keys; beyond it some are tried again earlier.
const UNSLICEABLE_BYTES_MAX: u64 = 1 << 20;

/// What one answer is put together from.
struct Large {
    version: Version,
    asked: Asked,
    from: Arrival,
    first: u64,
    last: u64,
}

/// Why there is no slice. In the middle of an answer it is what the body breaks off with.
#[derive(Clone, Copy, Debug, Error)]
enum NoSlice {
    #[error("the upstream's file has changed since this answer began")]
    Changed,
    #[error("a slice cannot be had: {0:?}")]
    Failed(Failure),
}

/// What is stored of a large response beside what stands under its own key.
pub(super) enum InSlices {
    /// Its head, and what would become of a question for that.
    Head(Box<Explanation>),
    /// It was in slices, and its head is stored no more.
    Gone,
}

/// Keys that are kept whole or not at all, for a while.
pub(super) fn unsliceable() -> moka::sync::Cache<Key, ()> {
    moka::sync::Cache::builder()
        .max_capacity(UNSLICEABLE_BYTES_MAX)
        .weigher(|key: &Key, ()| u32::try_from(key.bytes()).unwrap_or(u32::MAX))
        .time_to_live(UNSLICEABLE_FOR)
        .build()
}

/// Under which key the head of a large response stands.
pub(super) fn head_key(key: &Key) -> Key {
    key.piece(HEAD_PIECE)
}

/// Whether a look-up says nothing against a large response whose head is stored.
pub(super) fn may_be(found: &Lookup) -> bool {
    match found {
        Lookup::Miss(permit) => permit.why() == Forwarded::UriMiss,
        Lookup::Pass(reason) => matches!(reason, PassReason::Sliced | PassReason::Head),
        Lookup::OnlyIfCached => true,
        _ => false,
    }
}

/// The same of what the cache says that it would do.
fn may_be_said(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Fetches { why, .. } => *why == Forwarded::UriMiss,
        Outcome::Passes(reason) => matches!(reason, PassReason::Sliced | PassReason::Head),
        Outcome::OnlyIfCached => true,
        _ => false,
    }
}

/// Whether a question for the head ends in one, by what the cache says of it: [`Proxy::find_head`] without doing it. Whether the
/// upstream confirms it is the upstream's.
fn is_head_said(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Hit | Outcome::Stale { .. } | Outcome::Joins(_) | Outcome::Waits(_) => true,
        Outcome::Fetches { with, .. } => !with.is_empty(),
        Outcome::Passes(_) | Outcome::OnlyIfCached => false,
    }
}

fn is_sliced(found: &Lookup) -> bool {
    matches!(found, Lookup::Pass(PassReason::Sliced))
}

/// The question for the head: the client's own, but for its range, under the head's key.
fn about(asked: &Asked) -> Asked {
    let mut headers = asked.headers.clone();
    headers.remove(RANGE);
    headers.remove(IF_RANGE);
    let policy = Policy { compress: false, store_parts: false, store_posts: false, ..asked.policy };
    Asked::new(head_key(&asked.key), asked.method.clone(), headers).under(policy)
}

impl Proxy {
    /// The answer, if what was asked for is kept in slices; else what else is to be done about the request.
    pub(super) async fn answer_sliced(
        &self,
        mut found: Lookup,
        asked: &Asked,
        from: &Arrival,
    ) -> Result<Result<Response<Body>, Lookup>, Problem> {
        let about = about(asked);
        for _ in 0..BEGINNINGS_MAX {
            let Some(hit) = self.find_head(&about, from).await else {
                if !is_sliced(&found) {
                    break;
                }
                found = self.look_up_anew(asked).await;
                if is_sliced(&found) {
                    // Somebody who came here before has found it, large again.
                    continue;
                }
                return Ok(Err(found));
            };
            // Whoever waits for the response need not: it is here, in slices.
            if let Lookup::Miss(permit) = found {
                permit.keep_in_slices(now_ms());
                found = Lookup::Pass(PassReason::Sliced);
            }
            match self.put_together(hit, &about, asked, from).await {
                Ok(response) => return Ok(Ok(response)),
                Err(NoSlice::Changed) => {}
                Err(NoSlice::Failed(NO_ROOM)) => return Ok(Err(Lookup::Pass(PassReason::FillMemory))),
                Err(NoSlice::Failed(NOT_STORED)) => return Ok(Err(Lookup::OnlyIfCached)),
                Err(NoSlice::Failed(failure)) => return Err(problem_of(refusal_of(failure))),
            }
        }
        Ok(Err(if is_sliced(&found) { self.look_up_anew(asked).await } else { found }))
    }

    /// What [`Self::answer_sliced`] would make of what the cache says that it would do. Which slices are stored is not looked at:
    /// that depends on the range, and each is found or fetched by itself.
    pub(super) async fn explain_sliced(
        &self,
        explanation: Explanation,
        asked: &Asked,
        now_ms: u64,
    ) -> (Explanation, Option<InSlices>) {
        if !may_be_said(&explanation.outcome) {
            return (explanation, None);
        }
        let head = self.0.kept.cache().explain_with_disk(now_ms, &about(asked)).await;
        match &explanation.outcome {
            outcome if !is_head_said(&head.outcome) => {
                let was_sliced = *outcome == Outcome::Passes(PassReason::Sliced);
                (explanation, was_sliced.then_some(InSlices::Gone))
            }
            // The slices decide.
            Outcome::OnlyIfCached => (explanation, Some(InSlices::Head(Box::new(head)))),
            _ => (explanation.passing(PassReason::Sliced), Some(InSlices::Head(Box::new(head)))),
        }
    }

    /// It was in slices, and is not any more: asked for like anything that nothing is known of. Others may be at it already,
    /// and their fetch is this one's too.
    async fn look_up_anew(&self, asked: &Asked) -> Lookup {
        let cache = self.0.kept.cache();
        cache.forget_uncacheable(&asked.key);
        cache.look_up(now_ms(), asked).await
    }

    /// The same where the head was stored a moment ago.
    pub(super) async fn answer_now_sliced(
        &self,
        head: Hit,
        asked: Asked,
        body: RequestBody,
        from: Arrival,
    ) -> Result<Response<Body>, Problem> {
        match self.put_together(head, &about(&asked), &asked, &from).await {
            Ok(response) => Ok(response),
            // It changes faster than it can be read, its upstream answers no ranges, or there is no memory for it.
            Err(NoSlice::Changed | NoSlice::Failed(NO_ROOM)) => {
                self.pass(asked, body, from, PassReason::Sliced, None).await
            }
            Err(NoSlice::Failed(failure)) => Err(problem_of(refusal_of(failure))),
        }
    }

    /// Stores the head of a response that is to be kept in slices, if it is one, and its head may be stored.
    pub(super) async fn keep_large(
        &self,
        head: &response::Parts,
        asked: &Asked,
        when: Exchanged,
    ) -> Option<Hit> {
        let kept = &self.0.kept;
        let version = Version::of(head, kept.slice_from_bytes(), SLICE_BYTES);
        let version =
            version.filter(|_| kept.object_bytes_max() >= SLICE_BYTES && asked.method == Method::GET)?;
        if self.0.kept.unsliceable().contains_key(&asked.key) {
            return None;
        }
        let about = about(asked);
        for _ in 0..BEGINNINGS_MAX {
            match self.0.kept.cache().look_up(when.answered_ms, &about).await {
                Lookup::Miss(permit) | Lookup::Stale(_, permit) => {
                    return store_head(permit, &version, head, &about, when);
                }
                // Another request has just stored it, or there was an older one.
                Lookup::Hit(hit) => {
                    let stored = hit.respond(when.answered_ms, &about).into_parts().0;
                    let stored = Version::of_stored(&stored.headers, SLICE_BYTES);
                    if stored.as_ref() == Some(&version) {
                        return self.find_fresh_head(when.answered_ms, &about).await;
                    }
                    self.forget_head(&asked.key, stored.as_ref());
                }
                _ => return None,
            }
        }
        None
    }

    async fn find_fresh_head(&self, now_ms: u64, about: &Asked) -> Option<Hit> {
        match self.0.kept.cache().look_up(now_ms, about).await {
            Lookup::Hit(hit) => Some(hit),
            _ => None,
        }
    }

    /// The stored head, confirmed by the upstream where it has to be. None where there is none, or no large response any more.
    async fn find_head(&self, about: &Asked, from: &Arrival) -> Option<Hit> {
        match self.0.kept.cache().look_up(now_ms(), about).await {
            Lookup::Hit(hit) | Lookup::Failed(_, Some(hit)) => Some(hit),
            Lookup::Stale(hit, permit) => {
                let (proxy, about, from) = (self.clone(), about.clone(), from.clone());
                tokio::spawn(async move { drop(proxy.confirm_head(permit, &about, &from).await) });
                Some(hit)
            }
            Lookup::Miss(permit) if !permit.conditions(about).is_empty() => {
                self.confirm_head(permit, about, from).await
            }
            _ => None,
        }
    }

    async fn confirm_head(&self, permit: FillPermit, about: &Asked, from: &Arrival) -> Option<Hit> {
        let conditions = permit.conditions(about);
        let request = forward::fill(about, &conditions, &self.signature(from));
        let (when, answered) = self.ask(&about.key, request, None, None, &from.tries).await;
        match answered {
            Err(error) => {
                let failure = Failure(error.name());
                let stale = permit.stale_on_error(when.answered_ms, failure);
                permit.fail(failure);
                stale
            }
            Ok(response) if response.status() == StatusCode::NOT_MODIFIED => {
                permit.confirm(response.headers(), about, when).ok()
            }
            Ok(response) => {
                let (head, _body) = response.into_parts();
                if is_failure(head.status)
                    && let Some(stale) = permit.stale_on_error(when.answered_ms, FAILED)
                {
                    self.metrics().upstream_error(FAILED.0);
                    permit.fail(FAILED);
                    return Some(stale);
                }
                match Version::of(&head, self.0.kept.slice_from_bytes(), SLICE_BYTES) {
                    Some(version) => store_head(permit, &version, &head, about, when),
                    None => {
                        permit.withdraw(head.status);
                        None
                    }
                }
            }
        }
    }

    /// The stored head is of a version that is no more. Another one that stands there by now is nobody's to take away.
    fn forget_head(&self, key: &Key, of: Option<&Version>) {
        let is_it = |headers: &HeaderMap| Version::of_stored(headers, SLICE_BYTES).as_ref() == of;
        self.0.kept.cache().invalidate_where(&head_key(key), is_it);
    }

    /// An answer: its head, and a body that fetches what it lacks.
    async fn put_together(
        &self,
        hit: Hit,
        about: &Asked,
        asked: &Asked,
        from: &Arrival,
    ) -> Result<Response<Body>, NoSlice> {
        let head_was_there = !matches!(hit.how(), How::Filled(_) | How::Joined(_));
        let outcome = hit.how().name();
        let (mut head, _nothing) = hit.respond(now_ms(), about).into_parts();
        let version = Version::of_stored(&head.headers, SLICE_BYTES);
        Version::reveal(&mut head.headers);
        if head.status != StatusCode::OK {
            // The client has it already.
            return Ok(self.finish_sliced(head, empty(), outcome));
        }
        let Some(version) = version else {
            self.forget_head(&asked.key, None);
            return Err(NoSlice::Changed);
        };
        let length = version.length();
        let wanted = asked.headers.get(RANGE).filter(|_| !asked.is_head());
        let wanted = wanted.filter(|_| if_range_holds(&asked.headers, &head.headers));
        let (first, last) = match wanted.map_or(Part::Whole, |wanted| range::part(wanted.as_bytes(), length))
        {
            Part::Whole => (0, length - 1),
            Part::Slice { first, last } => {
                head.status = StatusCode::PARTIAL_CONTENT;
                head.headers.insert(CONTENT_RANGE, text(&format!("bytes {first}-{last}/{length}")));
                (first, last)
            }
            Part::Unsatisfiable => {
                head.status = StatusCode::RANGE_NOT_SATISFIABLE;
                head.headers.insert(CONTENT_RANGE, text(&format!("bytes */{length}")));
                head.headers.insert(CONTENT_LENGTH, HeaderValue::from(0_u64));
                return Ok(self.finish_sliced(head, empty(), outcome));
            }
        };
        head.headers.insert(CONTENT_LENGTH, HeaderValue::from(last - first + 1));
        if asked.is_head() {
            return Ok(self.finish_sliced(head, empty(), outcome));
        }
        // Each slice is a question of its own, and none of them another try of the client's.
        let from = from.apart();
        let large = Arc::new(Large { version, asked: asked.clone(), from, first, last });
        if asked.directives.only_if_cached && !self.has_all(&large).await {
            return Err(NoSlice::Failed(NOT_STORED));
        }
        let mut slices = large.version.slices(first, last);
        let beginning = slices.next().expect("a range has a byte, and a byte is in a slice");
        // The head goes out when the first slice is there: until then the answer can be another one.
        let (beginning, slice_was_there) = self.slice(&large, beginning).await?;
        status::append_sliced(&mut head.headers, head_was_there, slice_was_there);
        let outcome = if head_was_there && slice_was_there { outcome } else { "fill" };
        let proxy = self.clone();
        let rest = stream::iter(slices).then(move |slice| {
            let (proxy, large) = (proxy.clone(), Arc::clone(&large));
            async move { proxy.slice(&large, slice).await.map(|(body, _)| body) }
        });
        let bodies = stream::once(std::future::ready(Ok(beginning))).chain(rest);
        let frames = bodies
            .map_err(|error| Box::new(error) as BodyError)
            .map_ok(|body| BodyStream::new(body.map_err(|error| Box::new(error) as BodyError)))
            .try_flatten();
        Ok(self.finish_sliced(head, StreamBody::new(frames).boxed_unsync(), outcome))
    }

    fn finish_sliced(&self, head: response::Parts, body: Body, outcome: &'static str) -> Response<Body> {
        let mut response = Response::from_parts(head, body);
        self.tell(&mut response, outcome, None);
        response
    }

    /// What of a slice belongs to the answer, and whether it was there. The next one is looked for while this one is sent.
    async fn slice(&self, large: &Arc<Large>, number: u64) -> Result<(CacheBody, bool), NoSlice> {
        let slice = self.find_slice(large, number).await;
        match &slice {
            Ok((_, was_there)) => {
                if *was_there {
                    self.metrics().slice("hit");
                }
                if large.version.slices(large.first, large.last).contains(&(number + 1)) {
                    let (proxy, large) = (self.clone(), Arc::clone(large));
                    tokio::spawn(async move { drop(proxy.find_slice(&large, number + 1).await) });
                }
            }
            // Whoever comes next asks what it is now.
            Err(NoSlice::Changed) => self.forget_head(&large.asked.key, Some(&large.version)),
            Err(NoSlice::Failed(_)) => {}
        }
        slice
    }

    /// Whether every slice of the answer is stored: it must not break off for want of one that nobody may fetch.
    async fn has_all(&self, large: &Large) -> bool {
        let slices = large.version.slices(large.first, large.last);
        if slices.end() - slices.start() >= LOOKED_FOR_MAX {
            return false;
        }
        for number in slices {
            match self.0.kept.cache().look_up(now_ms(), &large.question(number)).await {
                Lookup::Hit(_) | Lookup::Stale(..) | Lookup::Failed(_, Some(_)) => {}
                _ => return false,
            }
        }
        true
    }

    async fn find_slice(&self, large: &Arc<Large>, number: u64) -> Result<(CacheBody, bool), NoSlice> {
        let asked = large.question(number);
        let send = |hit: Hit| hit.respond(now_ms(), &asked).into_body();
        for _ in 0..LOOKS_MAX {
            match self.0.kept.cache().look_up(now_ms(), &asked).await {
                Lookup::Hit(hit) | Lookup::Stale(hit, _) | Lookup::Failed(_, Some(hit)) => {
                    return Ok((send(hit), true));
                }
                Lookup::Miss(permit) => {
                    let (answer, answered) = oneshot::channel();
                    let (proxy, large, asked) = (self.clone(), Arc::clone(large), asked.clone());
                    // In a task of its own: a client that leaves does not waste it.
                    tokio::spawn(
                        async move { proxy.fetch_slice(permit, &large, number, asked, answer).await },
                    );
                    return match answered.await {
                        Ok(fetched) => fetched.map(|hit| (send(hit), false)),
                        Err(_) => Err(NoSlice::Failed(Failure("internal"))),
                    };
                }
                Lookup::Failed(CHANGED, None) => return Err(NoSlice::Changed),
                Lookup::Failed(failure, None) => return Err(NoSlice::Failed(failure)),
                Lookup::OnlyIfCached => return Err(NoSlice::Failed(NOT_STORED)),
                Lookup::Pass(_) => {}
            }
        }
        Err(NoSlice::Failed(NO_ROOM))
    }

    async fn fetch_slice(
        self,
        permit: FillPermit,
        large: &Large,
        number: u64,
        asked: Asked,
        answer: oneshot::Sender<Result<Hit, NoSlice>>,
    ) {
        let version = &large.version;
        let request = forward::fill(&large.asked, &version.question(number), &self.signature(&large.from));
        let (when, answered) = self.ask(&large.asked.key, request, None, None, &large.from.tries).await;
        let judged = match answered {
            Ok(response) => match version.judge(number, &response_head(&response)) {
                Answer::Slice => Ok(response),
                Answer::Changed => Err(CHANGED),
                Answer::NoSlices => {
                    self.0.kept.unsliceable().insert(large.asked.key.clone(), ());
                    Err(CHANGED)
                }
                Answer::Failed => Err(FAILED),
            },
            Err(error) => Err(Failure(error.name())),
        };
        self.metrics().slice(match &judged {
            Ok(_) => "fetch",
            Err(CHANGED) => "changed",
            Err(_) => "failed",
        });
        let response = match judged {
            Ok(response) => response,
            Err(failure) => {
                permit.fail(failure);
                let why = if failure == CHANGED { NoSlice::Changed } else { NoSlice::Failed(failure) };
                // A client that has gone does not want to know.
                drop(answer.send(Err(why)));
                return;
            }
        };
        let (head, body) = response.into_parts();
        match permit.store(&version.to_slice(number, &head), &asked, when) {
            Stored::Filling(hit, writer) => {
                drop(answer.send(Ok(hit)));
                self.pump(body, writer, &large.asked.key).await;
            }
            Stored::Pass(_) | Stored::Unfitting(_) => drop(answer.send(Err(NoSlice::Failed(NO_ROOM)))),
        }
    }
}

impl Large {
    /// The question for a slice: of the cache's own, which no wish of the client reaches but that nothing be fetched.
    fn question(&self, number: u64) -> Asked {
        let mut headers = HeaderMap::new();
        if let Some(cut) = self.version.cut(number, self.first, self.last) {
            headers.insert(RANGE, cut);
        }
        if self.asked.directives.only_if_cached {
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("only-if-cached"));
        }
        Asked::new(self.asked.key.piece(&self.version.piece(number)), Method::GET, headers)
    }
}

fn store_head(
    permit: FillPermit,
    version: &Version,
    head: &response::Parts,
    about: &Asked,
    when: Exchanged,
) -> Option<Hit> {
    match permit.store(&version.to_head(head), about, when) {
        Stored::Filling(hit, writer) => writer.finish().is_ok().then_some(hit),
        Stored::Pass(_) | Stored::Unfitting(_) => None,
    }
}

/// Status and fields, to be judged.
fn response_head<B>(response: &Response<B>) -> response::Parts {
    let mut head = Response::new(()).into_parts().0;
    head.status = response.status();
    head.headers = response.headers().clone();
    head
}

fn text(value: &str) -> HeaderValue {
    HeaderValue::from_str(value).expect("numbers and a slash are visible ASCII")
}
