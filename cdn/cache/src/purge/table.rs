//! The names that were purged, each with the number of its last purge, and what becomes of them when there are too many.
//!
//! Each site has its own part of the table. Whenever the table is full, the site that has most of it loses its oldest
//! names, and its own floor rises: a merchant's purges cost the merchant's own responses, and never another's.

use std::collections::hash_map::Entry as Slot;
use std::collections::{HashMap, VecDeque};

use super::place::is_under;
use super::spelled;
use super::step::{Step, Under};
use crate::key::Key;
use crate::tags::Tag;

/// How much longer than the names themselves the list of their order may get before it is cleaned of old places.
const ORDER_FACTOR: usize = 2;
const ORDER_MIN: usize = 16;

/// What fits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub(super) names_max: usize,
    pub(super) prefixes_max: usize,
}

/// When a name was purged last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) hard: u64,
    pub(super) soft: u64,
    pub(super) soft_ms: u64,
}

impl Mark {
    fn note(&mut self, number: u64, soft: bool, at_ms: u64) {
        if !soft {
            self.hard = self.hard.max(number);
        } else if number > self.soft {
            (self.soft, self.soft_ms) = (number, at_ms);
        }
    }

    fn and(&mut self, other: Self) {
        self.hard = self.hard.max(other.hard);
        self.note(other.soft, true, other.soft_ms);
    }

    fn last(self) -> u64 {
        self.hard.max(self.soft)
    }
}

#[derive(Clone, Debug)]
struct Prefix {
    site: Box<str>,
    authority: Option<Box<str>>,
    path: Box<str>,
    mark: Mark,
}

impl Prefix {
    fn is_at(&self, site: &str, authority: Option<&str>, path: &str) -> bool {
        *self.site == *site && self.authority.as_deref() == authority && *self.path == *path
    }
}

/// What was purged of one site.
#[derive(Debug, Default)]
struct Share {
    marks: HashMap<Tag, Mark>,
    /// The names in the order of their purges, so that the oldest is found. One that was purged again since is passed over.
    order: VecDeque<(u64, Tag)>,
    prefixes: VecDeque<Prefix>,
    /// All of the site that was begun before is invalid.
    floor: u64,
}

impl Share {
    fn mark(&mut self, tag: Tag, number: u64, soft: bool, at_ms: u64) {
        self.marks.entry(tag).or_default().note(number, soft, at_ms);
        self.order.push_back((number, tag));
        if self.order.len() > ORDER_MIN + ORDER_FACTOR * self.marks.len() {
            let marks = &self.marks;
            self.order.retain(|(number, tag)| marks.get(tag).is_some_and(|mark| mark.last() == *number));
        }
    }

    fn mark_prefix(&mut self, Under { site, authority, path, soft }: &Under, number: u64, at_ms: u64) {
        let same = |held: &Prefix| held.is_at(site, authority.as_deref(), path);
        // To the end again: the oldest is in front.
        let at = self.prefixes.iter().position(same);
        let mut prefix = at.and_then(|at| self.prefixes.remove(at)).unwrap_or_else(|| Prefix {
            site: site.clone(),
            authority: authority.clone(),
            path: path.clone(),
            mark: Mark::default(),
        });
        prefix.mark.note(number, *soft, at_ms);
        self.prefixes.push_back(prefix);
    }

    /// Lets go of the oldest names: what leaves becomes the floor.
    fn lose_names(&mut self, mut count: usize) {
        while count > 0
            && let Some((number, tag)) = self.order.pop_front()
        {
            // Purged again since: it stands further back too.
            if self.marks.get(&tag).is_some_and(|mark| mark.last() == number) {
                self.marks.remove(&tag);
                self.floor = self.floor.max(number);
                count -= 1;
            }
        }
    }

    fn lose_prefixes(&mut self, count: usize) {
        for prefix in self.prefixes.drain(..count.min(self.prefixes.len())) {
            self.floor = self.floor.max(prefix.mark.last());
        }
    }

    /// With what a former life has purged, all of which is older.
    fn under(&mut self, former: Self) {
        self.floor = self.floor.max(former.floor);
        for (tag, mark) in former.marks {
            self.marks.entry(tag).or_default().and(mark);
        }
        let own = std::mem::replace(&mut self.order, former.order);
        self.order.extend(own);
        let own = std::mem::replace(&mut self.prefixes, former.prefixes);
        for prefix in own {
            let at = self
                .prefixes
                .iter()
                .position(|held| held.is_at(&prefix.site, prefix.authority.as_deref(), &prefix.path));
            let mut mark = prefix.mark;
            if let Some(former) = at.and_then(|at| self.prefixes.remove(at)) {
                mark.and(former.mark);
            }
            self.prefixes.push_back(Prefix { mark, ..prefix });
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Table {
    shares: HashMap<u16, Share>,
    names: usize,
    prefixes: usize,
    /// All that was begun before is invalid, of whichever site.
    floor: u64,
}

impl Table {
    pub(super) fn take(&mut self, step: &Step, room: Room) {
        let (number, at_ms) = (step.number(), step.at_ms());
        if step.takes_everything() {
            self.floor = self.floor.max(number);
        }
        for (tag, soft) in step.names() {
            let share = self.shares.entry(tag.share()).or_default();
            let before = share.marks.len();
            share.mark(tag, number, soft, at_ms);
            self.names += share.marks.len() - before;
        }
        for prefix in step.prefixes() {
            let share = self.shares.entry(Tag::share_of(&prefix.site)).or_default();
            let before = share.prefixes.len();
            share.mark_prefix(prefix, number, at_ms);
            self.prefixes += share.prefixes.len() - before;
        }
        self.make_room(room);
    }

    /// With what a former life has purged, all of which is older.
    pub(super) fn under(&mut self, former: Self, room: Room) {
        self.floor = self.floor.max(former.floor);
        for (number, share) in former.shares {
            match self.shares.entry(number) {
                Slot::Vacant(none) => {
                    none.insert(share);
                }
                Slot::Occupied(mut own) => own.get_mut().under(share),
            }
        }
        self.names = self.shares.values().map(|share| share.marks.len()).sum();
        self.prefixes = self.shares.values().map(|share| share.prefixes.len()).sum();
        self.make_room(room);
    }

    /// Whoever has most loses the oldest.
    fn make_room(&mut self, room: Room) {
        while self.names > room.names_max {
            let most = self.shares.iter_mut().max_by_key(|(number, share)| (share.marks.len(), **number));
            let Some((_, share)) = most else { return };
            let before = share.marks.len();
            share.lose_names(self.names - room.names_max);
            self.names -= before - share.marks.len();
        }
        while self.prefixes > room.prefixes_max {
            let most = self.shares.iter_mut().max_by_key(|(number, share)| (share.prefixes.len(), **number));
            let Some((_, share)) = most else { return };
            let before = share.prefixes.len();
            share.lose_prefixes(self.prefixes - room.prefixes_max);
            self.prefixes -= before - share.prefixes.len();
        }
    }

    /// Names and prefixes.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.names, self.prefixes)
    }

    /// Shows every mark that concerns what was begun at `born` under this key, made from these names, until `is_gone`
    /// says that it is enough. True if that was so, or if it is too old for what is remembered.
    pub(super) fn concerns(
        &self,
        key: &Key,
        born: u64,
        tags: &[Tag],
        mut is_gone: impl FnMut(&Mark) -> bool,
    ) -> bool {
        if born < self.floor {
            return true;
        }
        // The names of one site follow each other, for they are sorted.
        let mut last: Option<(u16, Option<&Share>)> = None;
        for tag in tags {
            let share = match last {
                Some((number, share)) if number == tag.share() => share,
                _ => self.shares.get(&tag.share()),
            };
            last = Some((tag.share(), share));
            let Some(share) = share else { continue };
            if born < share.floor || share.marks.get(tag).is_some_and(&mut is_gone) {
                return true;
            }
        }
        let Some(share) = self.shares.get(&Tag::share_of(key.site())) else { return false };
        let mut of_site = share.prefixes.iter().filter(|prefix| *prefix.site == *key.site()).peekable();
        if of_site.peek().is_none() {
            return false;
        }
        let target = spelled(key.target());
        let mut over = of_site.filter(|prefix| {
            prefix.authority.as_deref().is_none_or(|authority| authority == key.authority())
                && is_under(&target, &prefix.path)
        });
        over.any(|prefix| is_gone(&prefix.mark))
    }

    #[cfg(test)]
    pub(super) fn longest_order(&self) -> usize {
        self.shares.values().map(|share| share.order.len()).max().unwrap_or_default()
    }
}
