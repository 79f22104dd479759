//! The right to store one response, and what becomes of the flight that waits for it.
//!
//! Owns what an upstream's answer is to the cache: stored, confirmed, a part or its rest, refused, failed. Whoever holds
//! the permit asks the upstream ([`FillPermit::conditions`] says with what) and reports back.

use std::borrow::Cow;
use std::sync::Arc;

use http::header::{CONTENT_RANGE, HeaderMap, IF_RANGE, RANGE};
use http::{StatusCode, response};

use super::{Cache, Failure, Flight, Inner, Phase, Stored};
use crate::admit::{Admitted, admit, content_length, withdraws};
use crate::asked::Asked;
use crate::conditional::{confirms, validators};
use crate::directives::ResponseDirectives;
use crate::entry::{Chunks, Entry, StoredBody};
use crate::fill::{FillWriter, Growing};
use crate::freshness::Exchanged;
use crate::hit::Hit;
use crate::key::Key;
use crate::part::{self, Span};
use crate::reason::PassReason;
use crate::status::{Forwarded, How};
use crate::tags::{self, Birth, TAGS_MAX, Tag};

/// The right to store the response to one request, and the duty to say what became of it. Dropping it lets one of
/// those who wait take over.
#[must_use = "others may be waiting for what this permit fetches"]
pub struct FillPermit {
    pub(super) cache: Cache,
    pub(super) key: Key,
    pub(super) flight: Arc<Flight>,
    pub(super) stale: Option<Arc<Entry>>,
    /// A stored part that could not answer: its rest may be all that is missing.
    pub(super) part: Option<Arc<Entry>>,
    pub(super) why: Forwarded,
    /// Boxed: a permit travels by value.
    pub(super) making: Box<Making>,
    pub(super) settled: bool,
}

/// What a response will be known to be made from.
pub(super) struct Making {
    /// The purge counter before anything of the response was read.
    pub(super) born: u64,
    /// What the caller knows.
    pub(super) tags: Vec<Tag>,
    /// More may become known until the body ends.
    pub(super) open: bool,
}

/// A response as it would be stored.
struct Offer<'a> {
    head: Cow<'a, response::Parts>,
    /// The length of the body, where more is known of it than the head says.
    length: Option<u64>,
    span: Option<Span>,
    /// The stored part in front of the body that comes.
    beginning: Option<Arc<Entry>>,
}

impl FillPermit {
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Why the upstream is asked.
    pub fn why(&self) -> Forwarded {
        self.why
    }

    /// Notes what the response is made from, beside what its own fields say.
    pub fn tag(&mut self, tags: impl IntoIterator<Item = Tag>) {
        self.making.tags.extend(tags);
    }

    /// What the response is made from is known only when its body ends: [`FillWriter::finish_with`] takes the rest. Until
    /// then it is joined by nobody who came after a purge, whatever was purged.
    pub fn leave_tags_open(&mut self) {
        self.making.open = true;
    }

    /// What to ask the upstream with, beside what the client says: the conditions that confirm what is stored, or the
    /// range that is worth having. Empty for the whole, whatever is stored.
    pub fn conditions(&self, asked: &Asked) -> HeaderMap {
        conditions(self.stale.as_deref(), self.part.as_ref(), asked)
    }

    /// The stored beginning of what the client wants wholly.
    fn missing(&self, asked: &Asked) -> Option<Arc<Entry>> {
        beginning(self.part.as_ref(), asked).cloned()
    }

    /// Offers the head of the upstream's response. The body goes into the writer, which outlives the client.
    pub fn store(mut self, head: &response::Parts, asked: &Asked, when: Exchanged) -> Stored {
        let Some(offer) = self.offer(head, asked) else { return self.unfitting() };
        let inner = Arc::clone(&self.cache.0);
        let budget = inner.budget.of_site(self.key.site());
        let admitted = admit(&offer.head, asked, inner.object_bytes_max, when);
        let admitted = admitted.and_then(|admitted| {
            let length = offer.length.or(admitted.length);
            match length {
                Some(length) if length > inner.object_bytes_max => Err(PassReason::TooLarge),
                _ if budget.is_full() => Err(PassReason::FillMemory),
                _ => Ok((Admitted { length, ..admitted }, self.birth(&offer)?)),
            }
        });
        let (admitted, birth) = match admitted {
            Ok(admitted) => admitted,
            // Its client wants the whole, and what is stored is not sent without the rest.
            Err(_) if offer.beginning.is_some() => return self.unfitting(),
            Err(reason) => {
                self.refused(head.status, reason, when.answered_ms);
                return Stored::Pass(reason);
            }
        };
        let growing = Growing::new(admitted.length);
        let forbidden = admitted.forbidden.clone();
        let body = StoredBody::Growing(Arc::clone(&growing));
        let entry = Entry::new(&offer.head, admitted, when.answered_ms, body, birth).with_span(offer.span);
        let entry = Arc::new(entry);
        // The client's own place is taken before anybody can see the body grow.
        let mut own = entry.withheld(&head.headers, &forbidden);
        if let Some(range) = head.headers.get(CONTENT_RANGE).filter(|_| offer.span.is_some()) {
            own.insert(CONTENT_RANGE, range.clone());
        }
        let hit = Hit::new(Arc::clone(&entry), How::Filled(self.why)).for_its_client(own);
        let shared = self.flight.joinable && !entry.freshness.asks_each_time();
        self.settled = true;
        self.flight.phase.send_replace(if shared {
            Phase::Growing(Arc::clone(&entry))
        } else {
            Phase::NotShared
        });
        let completion = Completion {
            inner: Arc::clone(&inner),
            key: self.key.clone(),
            flight: Arc::clone(&self.flight),
            entry,
        };
        let mut writer = FillWriter::new(growing, completion, budget, inner.object_bytes_max);
        if let Some(StoredBody::Whole(chunks)) = offer.beginning.as_ref().map(|entry| &entry.body) {
            chunks.list.iter().for_each(|chunk| writer.push(chunk));
        }
        Stored::Filling(hit, writer)
    }

    /// What the head of a response is worth storing as. None for a part that does not fit the stored beginning.
    fn offer<'a>(&self, head: &'a response::Parts, asked: &Asked) -> Option<Offer<'a>> {
        let policy = asked.policy;
        let as_it_is = Offer { head: Cow::Borrowed(head), length: None, span: None, beginning: None };
        if head.status != StatusCode::PARTIAL_CONTENT || !policy.store_parts {
            return Some(as_it_is);
        }
        let length = content_length(&head.headers);
        if let Some(beginning) = self.missing(asked) {
            return part::continues(&beginning, &head.headers, length).then(|| Offer {
                head: Cow::Owned(beginning.merged(&head.headers, policy.store_set_cookie)),
                length: beginning.span.map(|span| span.complete),
                span: None,
                beginning: Some(beginning),
            });
        }
        Some(match Span::of(&head.headers, length).filter(|_| part::is_wanted(asked)) {
            None => as_it_is,
            Some(span) => {
                // Judged as the 200 that it is a part of.
                let mut whole = head.clone();
                whole.status = StatusCode::OK;
                whole.headers.remove(CONTENT_RANGE);
                Offer {
                    head: Cow::Owned(whole),
                    length: Some(span.length()),
                    span: Some(span),
                    beginning: None,
                }
            }
        })
    }

    /// What a response is made from. One that completes a stored beginning is as old as that.
    fn birth(&self, offer: &Offer<'_>) -> Result<Birth, PassReason> {
        let mut tags = tags::of_response(&offer.head.headers, &self.key)?;
        let Making { born, tags: of_caller, open } = &*self.making;
        tags.extend_from_slice(of_caller);
        let birth = Birth::new(*born, &self.key, tags, *open)?;
        Ok(match &offer.beginning {
            Some(beginning) => birth.and(&beginning.birth),
            None => birth,
        })
    }

    fn unfitting(mut self) -> Stored {
        self.part = None;
        Stored::Unfitting(self)
    }

    /// The upstream says 304: what is stored still holds. If it speaks of another version than the stored one, the
    /// permit comes back without conditions, to ask for the whole.
    ///
    /// The stored response with the 304's fields is judged like a 200 that came with them: where that may not be
    /// stored, this client is answered with it and nobody else is.
    pub fn confirm(mut self, fresh: &HeaderMap, asked: &Asked, when: Exchanged) -> Result<Hit, Self> {
        let Some(stale) = self.stale.take() else { return Err(self) };
        if !confirms(fresh, &stale.headers) {
            return Err(self);
        }
        let inner = Arc::clone(&self.cache.0);
        let head = stale.merged(fresh, asked.policy.store_set_cookie);
        let forbidden = ResponseDirectives::of(&head.headers).fields;
        let judged = admit(&head, asked, inner.object_bytes_max, when).and_then(|admitted| {
            let variant = admitted.variant.clone().and(&stale.variant)?;
            // A 304 speaks of tags as of any field: it may leave out what has not changed.
            let mut tags = tags::of_response(&head.headers, &self.key)?;
            tags.extend_from_slice(&self.making.tags);
            tags.extend_from_slice(stale.birth.tags());
            let birth = Birth::new(self.making.born, &self.key, tags, false)?;
            Ok((Admitted { variant, ..admitted }, birth))
        });
        let ((admitted, birth), how) = match judged {
            Ok(admitted) => (admitted, How::Confirmed(self.why)),
            Err(reason) => {
                let admitted = (stale.admitted_once(&head, when), stale.birth.clone());
                (admitted, How::ConfirmedOnce(self.why, reason))
            }
        };
        let entry = Entry::new(&head, admitted, when.answered_ms, stale.body.clone(), birth);
        let entry = Arc::new(entry.with_span(stale.span));
        if let How::ConfirmedOnce(_, reason) = how {
            self.stale = Some(stale);
            self.refused(head.status, reason, when.answered_ms);
        } else {
            inner.store(&self.key, &self.flight, &entry, Some(&stale));
            let shared = !entry.freshness.asks_each_time();
            self.settle(if shared { Phase::Confirmed(Arc::clone(&entry)) } else { Phase::NotShared });
        }
        let own = entry.withheld(fresh, &forbidden);
        Ok(Hit::new(entry, how).for_its_client(own))
    }

    /// The upstream's answer may not be stored: who waits goes alone.
    fn refused(&mut self, status: StatusCode, reason: PassReason, now_ms: u64) {
        let inner = Arc::clone(&self.cache.0);
        if let Some(stale) = self.stale.take()
            && withdraws(status, reason)
        {
            let _was_there = inner.forget(&self.key, &stale);
        }
        inner.remember(&self.key, status, reason, now_ms);
        self.settle(Phase::Alone(reason));
    }

    /// What may be sent in the place of an error of the upstream.
    pub fn stale_on_error(&self, now_ms: u64, failure: Failure) -> Option<Hit> {
        let entry = self.stale.as_ref().filter(|entry| entry.freshness.usable_on_error(now_ms))?;
        Some(Hit::new(Arc::clone(entry), How::OnError(failure.0)))
    }

    /// The upstream could not be asked, or failed. So it did for everybody who waited.
    pub fn fail(mut self, failure: Failure) {
        self.settle(Phase::Failed(failure));
    }

    /// The upstream's answer is kept in slices, under keys of their own: who waits for it looks there, and so does, for a
    /// while, who comes next.
    pub fn keep_in_slices(mut self, now_ms: u64) {
        self.refused(StatusCode::OK, PassReason::Sliced, now_ms);
    }

    /// The upstream's answer is none that belongs under this key. What is stored goes where such an answer withdraws it, and
    /// who waits goes elsewhere; nothing is remembered, for the next answer may belong here again.
    pub fn withdraw(mut self, status: StatusCode) {
        let reason = PassReason::Sliced;
        let inner = Arc::clone(&self.cache.0);
        if let Some(stale) = self.stale.take()
            && withdraws(status, reason)
        {
            let _was_there = inner.forget(&self.key, &stale);
        }
        self.settle(Phase::Alone(reason));
    }

    fn settle(&mut self, phase: Phase) {
        self.settled = true;
        // Off the table first: who comes now starts anew instead of waiting for what has been decided.
        self.cache.0.land(&self.key, &self.flight);
        self.flight.phase.send_replace(phase);
    }
}

/// What a fetch asks the upstream with, where this response and this part are stored and cannot answer.
pub(super) fn conditions(stale: Option<&Entry>, part: Option<&Arc<Entry>>, asked: &Asked) -> HeaderMap {
    if let Some(stale) = stale {
        return validators(&stale.headers);
    }
    if !asked.policy.store_parts {
        return HeaderMap::new();
    }
    if part::is_wanted(asked) {
        let own = [RANGE, IF_RANGE].into_iter();
        return own.filter_map(|name| Some((name.clone(), asked.headers.get(name)?.clone()))).collect();
    }
    beginning(part, asked).and_then(|part| part::rest_of(part)).unwrap_or_default()
}

fn beginning<'a>(part: Option<&'a Arc<Entry>>, asked: &Asked) -> Option<&'a Arc<Entry>> {
    part.filter(|_| !asked.wants_range())
}

impl Drop for FillPermit {
    fn drop(&mut self) {
        if !self.settled {
            self.settle(Phase::Dropped);
        }
    }
}

/// What the writer of a fill owes to the cache when the body ends.
pub(crate) struct Completion {
    inner: Arc<Inner>,
    key: Key,
    flight: Arc<Flight>,
    entry: Arc<Entry>,
}

impl Completion {
    pub(crate) fn whole(self, chunks: Chunks, more: &[Tag]) {
        if more.len() > TAGS_MAX {
            let (status, now_ms) = (self.entry.status, self.entry.freshness.received_ms());
            self.inner.remember(&self.key, status, PassReason::TooManyTags, now_ms);
        } else {
            let entry = Arc::new(self.entry.completed(chunks, self.entry.birth.closed(more)));
            self.inner.store(&self.key, &self.flight, &entry, None);
        }
        self.inner.land(&self.key, &self.flight);
    }

    pub(crate) fn aborted(self) {
        self.inner.land(&self.key, &self.flight);
    }

    /// It is not stored after all: it outgrew what one may have, or there is no memory for it now, which says nothing of the
    /// next one.
    pub(crate) fn outgrew(self, reason: PassReason) {
        let (status, now_ms) = (self.entry.status, self.entry.freshness.received_ms());
        self.inner.remember(&self.key, status, reason, now_ms);
        self.inner.land(&self.key, &self.flight);
    }
}
