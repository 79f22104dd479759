//! One step of purges as it is written down: the numbers of names, and the prefixes as they are.

use minicbor::{Decode, Encode};

use super::{Place, Purge, Scope};
use crate::tags::Tag;

/// What one name takes, with its head.
const NAME_BYTES: usize = 9;
/// What a step and what one prefix take beside their texts.
const STEP_BYTES: usize = 64;
const PREFIX_BYTES: usize = 16;

/// What was taken back at once, under one number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct Step {
    #[n(0)]
    number: u64,
    /// By the wall clock: what was purged softly is stale since then.
    #[n(1)]
    at_ms: u64,
    #[n(2)]
    hard: Vec<u64>,
    #[n(3)]
    soft: Vec<u64>,
    #[n(4)]
    prefixes: Vec<Under>,
    #[n(5)]
    everything: bool,
}

/// A prefix that was purged.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) struct Under {
    #[n(0)]
    pub(super) site: Box<str>,
    #[n(1)]
    pub(super) authority: Option<Box<str>>,
    #[n(2)]
    pub(super) path: Box<str>,
    #[n(3)]
    pub(super) soft: bool,
}

impl Under {
    fn bytes(&self) -> usize {
        let authority = self.authority.as_ref().map_or(0, |authority| authority.len());
        PREFIX_BYTES + self.site.len() + authority + self.path.len()
    }
}

impl Step {
    pub(super) fn of(number: u64, at_ms: u64, purges: &[Purge]) -> Self {
        let mut step = Self { number, at_ms, ..Self::default() };
        for Purge { scope, soft } in purges {
            match scope {
                // Softly everything is as if each site were named, and which those are is not known here.
                Scope::Everything => step.everything = true,
                Scope::Site(site) => step.name(Tag::site(site), *soft),
                Scope::Tag(tag) => step.name(*tag, *soft),
                Scope::Url(Place { site, authority, target }) => {
                    step.name(Tag::target(site, authority.as_deref(), target), *soft);
                }
                Scope::Prefix(Place { site, authority, target }) => step.prefixes.push(Under {
                    site: site.clone(),
                    authority: authority.clone(),
                    path: target.clone(),
                    soft: *soft,
                }),
            }
        }
        step
    }

    fn name(&mut self, tag: Tag, soft: bool) {
        let names = if soft { &mut self.soft } else { &mut self.hard };
        names.push(tag.to_u64());
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn at_ms(&self) -> u64 {
        self.at_ms
    }

    pub(crate) fn takes_everything(&self) -> bool {
        self.everything
    }

    /// The names, and whether each is purged softly.
    pub(super) fn names(&self) -> impl Iterator<Item = (Tag, bool)> {
        let hard = self.hard.iter().map(|number| (Tag::from_u64(*number), false));
        hard.chain(self.soft.iter().map(|number| (Tag::from_u64(*number), true)))
    }

    pub(super) fn prefixes(&self) -> &[Under] {
        &self.prefixes
    }

    /// What it takes, in memory or written down.
    pub(crate) fn bytes(&self) -> usize {
        let prefixes = self.prefixes.iter().map(Under::bytes).sum::<usize>();
        STEP_BYTES + NAME_BYTES * (self.hard.len() + self.soft.len()) + prefixes
    }

    /// The same under another number, in steps that take no more than so many bytes (or one prefix) each.
    pub(crate) fn parts(&self, number: u64, bytes_max: usize) -> Vec<Self> {
        let bare = Self { number, at_ms: self.at_ms, everything: self.everything, ..Self::default() };
        let (mut parts, mut part) = (Vec::new(), bare.clone());
        for (tag, soft) in self.names() {
            if part.bytes() + NAME_BYTES > bytes_max {
                parts.push(std::mem::replace(&mut part, bare.clone()));
            }
            part.name(tag, soft);
        }
        for prefix in &self.prefixes {
            if part.bytes() + prefix.bytes() > bytes_max {
                parts.push(std::mem::replace(&mut part, bare.clone()));
            }
            part.prefixes.push(prefix.clone());
        }
        parts.push(part);
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_step_is_written_in_parts_and_nothing_of_it_is_lost() {
        let tag = |n: u32| Scope::Tag(Tag::named("shop", &n.to_string()));
        let prefix = |n: u32| Scope::Prefix(Place::parse("shop", &format!("/{n}")).expect("a place"));
        let purges: Vec<_> = (0..100)
            .flat_map(|n| {
                [Purge { scope: tag(n), soft: n % 3 == 0 }, Purge { scope: prefix(n), soft: n % 2 == 0 }]
            })
            .collect();
        let step = Step::of(7, 5, &purges);
        let parts = step.parts(9, 300);
        assert!(parts.len() > 10 && parts.iter().all(|part| part.bytes() <= 300));
        let mut whole = Step { number: 7, at_ms: 5, ..Step::default() };
        for part in parts {
            let written = minicbor::to_vec(&part).expect("a vector takes everything");
            assert!(written.len() <= part.bytes(), "{} of {}", written.len(), part.bytes());
            let read: Step = minicbor::decode(&written).expect("as it was written");
            assert_eq!((read.number, read.at_ms), (9, 5));
            whole.hard.extend(read.hard);
            whole.soft.extend(read.soft);
            whole.prefixes.extend(read.prefixes);
        }
        assert_eq!(whole, step);
    }
}
