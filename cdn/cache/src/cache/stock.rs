//! What is stored for a request, and how that changes.
//!
//! Whatever changes the shelf tells the disk behind it within the same [`Shelf::update`](crate::shelf::Shelf::update), so
//! that both agree on what came first.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::{StatusCode, response};

use super::flight::Flight;
use super::{Cache, DOUBTED_FOR_MS, Inner, REMEMBERED_FOR_MS, Remembered};
use crate::admit::{Admitted, admit, is_remembered};
use crate::asked::Asked;
use crate::conditional::{Likeness, likeness};
use crate::entry::{Entry, Resource};
use crate::freshness::{Exchanged, Use};
use crate::hit::Hit;
use crate::key::Key;
use crate::purge::Verdict;
use crate::reason::PassReason;
use crate::status::{Forwarded, How};

/// What for the shelf is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Looking {
    /// To answer a request.
    Up,
    /// To say what would become of one: nothing changes by it.
    On,
}

/// What the shelf has for a request, without what was purged.
pub(super) struct Selected {
    pub(super) resource: Option<Arc<Resource>>,
    pub(super) entry: Option<Arc<Entry>>,
    pub(super) part: Option<Arc<Entry>>,
    pub(super) was_purged: bool,
}

/// What the shelf had for a request when it was read.
pub(super) struct Found {
    pub(super) resource: Option<Arc<Resource>>,
    pub(super) entry: Option<Arc<Entry>>,
    /// A part, where it cannot answer what is asked for.
    pub(super) part: Option<Arc<Entry>>,
    pub(super) usable: Use,
    /// Why the upstream would be asked.
    pub(super) why: Forwarded,
}

/// The entry that answers a request, or the part that does not.
fn usable_for(asked: &Asked, resource: Option<&Resource>) -> (Option<Arc<Entry>>, Option<Arc<Entry>>) {
    match resource.and_then(|resource| resource.select(&asked.headers)).cloned() {
        Some(entry) if entry.span.is_some_and(|span| span.answers(asked, &entry.headers).is_none()) => {
            (None, Some(entry))
        }
        entry => (entry, None),
    }
}

impl Found {
    pub(super) fn stale_hit(&self) -> Option<Hit> {
        let entry = self.entry.as_ref().filter(|_| self.usable == Use::WhileRevalidating)?;
        Some(Hit::new(Arc::clone(entry), How::WhileRevalidating))
    }

    /// Whether what is stored may stand in for an upstream that fails.
    pub(super) fn may_rescue(&self, now_ms: u64) -> bool {
        self.entry.as_ref().is_some_and(|entry| entry.freshness.usable_on_error(now_ms))
    }
}

impl Cache {
    /// What the shelf has for a request.
    pub(super) fn find(&self, now_ms: u64, asked: &Asked, looking: Looking) -> Found {
        Self::found(now_ms, asked, self.selected(asked, looking))
    }

    /// What was selected, judged by the request.
    pub(super) fn found(now_ms: u64, asked: &Asked, selected: Selected) -> Found {
        let Selected { resource, entry, part, was_purged } = selected;
        let obeyed = asked.obeyed();
        let usable = entry.as_ref().map_or(Use::Ask, |entry| match entry.freshness.usable(now_ms, obeyed) {
            _ if asked.by_cache && !entry.freshness.is_fresh(now_ms) => Use::Ask,
            usable => usable,
        });
        let why = match (&resource, &entry) {
            (_, Some(entry)) if usable == Use::Ask && entry.freshness.is_fresh(now_ms) => Forwarded::Request,
            (_, Some(entry)) if entry.birth.is_softened() => Forwarded::SoftPurged,
            (_, Some(_)) => Forwarded::Stale,
            _ if part.is_some() => Forwarded::Partial,
            _ if was_purged => Forwarded::Purged,
            (Some(_), None) => Forwarded::VaryMiss,
            (None, None) => Forwarded::UriMiss,
        };
        Found { resource, entry, part, usable, why }
    }

    /// What is stored for a request and holds: a response that can answer it, or a part that cannot.
    ///
    /// What turns out to be purged is put in order on the shelf too, so that the next look-up has less to do, unless this is
    /// only [`Looking`] on.
    pub(super) fn selected(&self, asked: &Asked, looking: Looking) -> Selected {
        let resource = match looking {
            Looking::Up => self.0.shelf.find(&asked.key),
            Looking::On => self.0.shelf.peek(&asked.key),
        };
        self.sifted(resource, asked, looking)
    }

    /// The same of what was found elsewhere.
    pub(super) fn sifted(
        &self,
        mut resource: Option<Arc<Resource>>,
        asked: &Asked,
        looking: Looking,
    ) -> Selected {
        let inner = &self.0;
        let mut was_purged = false;
        while let Some(entry) = resource.as_deref().and_then(|held| held.select(&asked.headers)).cloned() {
            let [gone, softened] = &inner.purged;
            let rest = || resource.as_deref().and_then(|held| held.without(&entry));
            let next = match inner.purges.judge(&asked.key, &entry.birth) {
                Verdict::Valid => break,
                Verdict::Gone => {
                    was_purged = true;
                    if looking == Looking::Up {
                        gone.fetch_add(inner.forget_purged(&asked.key, &entry).into(), Ordering::Relaxed);
                    }
                    rest()
                }
                Verdict::Softened { at_ms, counted } => {
                    let softer = Arc::new(entry.softened(at_ms, counted));
                    if looking == Looking::Up {
                        let replaced = inner.replace(&asked.key, &entry, &softer);
                        softened.fetch_add(replaced.into(), Ordering::Relaxed);
                    }
                    Some(rest().unwrap_or_default().with(softer))
                }
            };
            resource = next.map(Arc::new);
        }
        let (entry, part) = usable_for(asked, resource.as_deref());
        Selected { resource, entry, part, was_purged }
    }

    /// A HEAD that went to the upstream was answered: what is stored for a GET of the same becomes as fresh as that
    /// answer where both speak of one representation, and goes where they do not (RFC 9111 section 4.3.5).
    pub fn freshen(&self, asked: &Asked, head: &response::Parts, when: Exchanged) {
        let inner = &self.0;
        let Some(stored) = self.selected(asked, Looking::Up).entry.filter(|entry| entry.span.is_none())
        else {
            return;
        };
        if !asked.is_head() || head.status != StatusCode::OK || stored.status != StatusCode::OK {
            return;
        }
        // Whether the HEAD was asked before the purge or after it, nobody has noted.
        if stored.birth.is_softened() {
            return;
        }
        match likeness(&head.headers, &stored.headers) {
            Likeness::Unknown => {}
            Likeness::Other => {
                let _was_there = inner.forget(&asked.key, &stored);
            }
            Likeness::Same => {
                let head = stored.merged(&head.headers, asked.policy.store_set_cookie);
                let admitted = admit(&head, asked, inner.object_bytes_max, when);
                let Ok(admitted) = admitted else { return };
                let Ok(variant) = admitted.variant.clone().and(&stored.variant) else { return };
                let admitted = Admitted { variant, ..admitted };
                // As old as it was: the question may have been asked before a purge.
                let birth = stored.birth.clone();
                let entry = Entry::new(&head, admitted, when.answered_ms, stored.body.clone(), birth);
                // Where it is gone it was invalidated, or is newer than the question was.
                inner.replace(&asked.key, &stored, &Arc::new(entry));
            }
        }
    }
}

impl Inner {
    pub(super) fn remember(&self, key: &Key, status: StatusCode, reason: PassReason, now_ms: u64) {
        if is_remembered(status, reason) {
            let until_ms = now_ms.saturating_add(REMEMBERED_FOR_MS);
            self.remembered.insert(key.clone(), Remembered { until_ms, reason });
        }
    }

    /// What is remembered against a key, and still believed.
    pub(super) fn recall(&self, key: &Key, now_ms: u64) -> Option<Remembered> {
        self.remembered.get(key).filter(|remembered| now_ms < remembered.until_ms)
    }

    /// The same, or what was believed until lately.
    pub(super) fn recollect(&self, key: &Key, now_ms: u64) -> Option<Remembered> {
        let remembered = self.remembered.get(key)?;
        (now_ms < remembered.until_ms.saturating_add(DOUBTED_FOR_MS)).then_some(remembered)
    }

    /// Whether a key was uncacheable until lately, so that nobody is to wait for whoever finds out what it is now. What was
    /// large is waited for: its head is stored, and everybody's.
    pub(super) fn is_doubted(&self, key: &Key, now_ms: u64) -> bool {
        self.recollect(key, now_ms).is_some_and(|remembered| remembered.reason != PassReason::Sliced)
    }

    /// Stores an entry: a new one, or one that was `confirmed` and takes the place of its former self.
    pub(super) fn store(
        &self,
        key: &Key,
        flight: &Flight,
        entry: &Arc<Entry>,
        confirmed: Option<&Arc<Entry>>,
    ) {
        self.shelf.update(key.clone(), &mut |held| {
            // Judged inside of the update: an invalidation either finds the entry and drops it, or is seen here.
            if flight.doomed.load(Ordering::Acquire) || self.purges.judge(key, &entry.birth) == Verdict::Gone
            {
                return held.cloned();
            }
            let is_newer = |other: &Arc<Entry>| other.birth.born() > entry.birth.born();
            if let Some(held) = held
                && held.of_variant(&entry.variant).is_some_and(is_newer)
            {
                // It was begun after a purge that this one was begun before.
                return Some(held.clone());
            }
            if let Some(held) = held
                && entry.span.is_some()
                && held.of_variant(&entry.variant).is_some_and(|other| other.span.is_none())
            {
                // The whole came while the part did.
                return Some(held.clone());
            }
            let others = match (held, confirmed) {
                (Some(held), Some(former)) if held.holds(former) => held.without(former),
                // Another flight has put something newer in its place.
                (Some(held), Some(_)) => return Some(held.clone()),
                (held, _) => held.cloned(),
            };
            // What is purged from here on, the disk judges by itself before it writes.
            self.offer_to_disk(key, entry);
            Some(others.unwrap_or_default().with(Arc::clone(entry)))
        });
        self.remembered.invalidate(key);
    }

    /// Removes this very entry. Whether it was there.
    pub(super) fn forget(&self, key: &Key, gone: &Arc<Entry>) -> bool {
        let mut was_there = false;
        self.shelf.update(key.clone(), &mut |held| {
            was_there = held.is_some_and(|held| held.holds(gone));
            // All variants of it: they are fetched again if somebody wants them after a restart.
            self.forget_on_disk(key);
            held?.without(gone)
        });
        was_there
    }

    /// The same for what was purged: the disk knows that of every variant, and needs no removal for it.
    fn forget_purged(&self, key: &Key, gone: &Arc<Entry>) -> bool {
        let mut was_there = false;
        self.shelf.update(key.clone(), &mut |held| {
            was_there = held.is_some_and(|held| held.holds(gone));
            if was_there && let Some(disk) = &self.disk {
                disk.forget(key, gone);
            }
            held?.without(gone)
        });
        was_there
    }

    /// Puts an entry in the place of its former self. Whether that was there.
    pub(super) fn replace(&self, key: &Key, former: &Arc<Entry>, entry: &Arc<Entry>) -> bool {
        let mut was_there = false;
        self.shelf.update(key.clone(), &mut |held| {
            was_there = held.is_some_and(|held| held.holds(former));
            match held {
                Some(held) if was_there => {
                    self.offer_to_disk(key, entry);
                    Some(held.without(former).unwrap_or_default().with(Arc::clone(entry)))
                }
                other => other.cloned(),
            }
        });
        was_there
    }

    fn offer_to_disk(&self, key: &Key, entry: &Arc<Entry>) {
        if let Some(disk) = &self.disk {
            disk.offer(key, entry);
        }
    }

    pub(super) fn forget_on_disk(&self, key: &Key) {
        if let Some(disk) = &self.disk {
            disk.remove(key);
        }
    }
}
