//! The replica of a cart, and how a node edits it.

use std::collections::btree_map::Entry as Slot;
use std::collections::{BTreeMap, BTreeSet};

use minicbor::{Decode, Decoder, Encode};

use super::{
    CART_BYTES_MAX, CartDecodeError, CartFull, Change, CountryAt, DOTS_PER_ENTRY_MAX, Delta, Dot, Dots,
    ENTRIES_MAX, Effect, Entry, LineKey, Put, QUANTITY_MAX,
};
use crate::clock::Hlc;
use crate::codec;
use crate::id::{Country, Coupon, Digest, Epoch, NodeId};

/// Which dots of one node and epoch were ever known: all up to `upto`, and some beyond.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
struct Seen {
    #[n(0)]
    #[cbor(decode_with = "decode_upto")]
    upto: u32,
    #[n(1)]
    #[cbor(default)]
    beyond: BTreeSet<Count>,
}

/// Counts up to here are believed: an honest node never comes near, and one more always exists.
const COUNT_MAX: u32 = u32::MAX / 2;

/// The count of a dot that is beyond the first gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(transparent)]
struct Count(
    #[n(0)]
    #[cbor(decode_with = "decode_count")]
    u32,
);

pub(super) fn decode_count<C>(d: &mut Decoder<'_>, ctx: &mut C) -> Result<u32, minicbor::decode::Error> {
    let at = d.position();
    match decode_upto(d, ctx)? {
        0 => Err(minicbor::decode::Error::message("the count of a dot begins with 1").at(at)),
        n => Ok(n),
    }
}

fn decode_upto<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<u32, minicbor::decode::Error> {
    let at = d.position();
    match d.u32()? {
        n if n > COUNT_MAX => {
            Err(minicbor::decode::Error::message("the count of a dot is out of range").at(at))
        }
        n => Ok(n),
    }
}

impl Seen {
    fn contains(&self, n: u32) -> bool {
        n <= self.upto || self.beyond.contains(&Count(n))
    }

    fn insert(&mut self, n: u32) {
        if n > self.upto {
            self.beyond.insert(Count(n));
            self.compact();
        }
    }

    fn merge(&mut self, other: &Self) {
        self.upto = self.upto.max(other.upto);
        self.beyond.extend(&other.beyond);
        self.compact();
    }

    /// The one representation of a set of dots, so that equal carts have equal bytes.
    fn compact(&mut self) {
        while let Some(&Count(n)) = self.beyond.first() {
            if n > self.upto {
                if n - 1 != self.upto {
                    break;
                }
                self.upto = n;
            }
            self.beyond.pop_first();
        }
    }

    fn last(&self) -> u32 {
        self.beyond.last().map_or(self.upto, |count| count.0)
    }
}

/// One replica of a cart.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct Cart {
    #[n(0)]
    seen: BTreeMap<(NodeId, Epoch), Seen>,
    #[n(1)]
    entries: BTreeMap<Entry, Dots>,
    #[n(2)]
    country: Option<CountryAt>,
}

impl Cart {
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins one atomic change by this node. `at` must be newer than every stamp this node knows
    /// ([`crate::clock::HlcClock::tick`]).
    pub fn edit(&self, node: NodeId, epoch: Epoch, at: Hlc) -> Edit<'_> {
        Edit { cart: self, node, epoch, at, country: None, pending: BTreeMap::new(), new_entries: 0 }
    }

    /// Takes in a change, from here or from another node; in any order, any number of times.
    pub fn apply(&mut self, delta: &Delta) {
        for change in &delta.changes {
            for dot in &change.drops {
                self.forget(&change.entry, dot);
                self.saw(dot);
            }
            if let Some((dot, put)) = change.put
                && !self.has_seen(&dot)
            {
                self.entries.entry(change.entry.clone()).or_default().insert(dot, put);
                self.saw(&dot);
            }
        }
        self.country = self.country.take().max_by_stamp(&delta.country);
    }

    /// Takes in everything that another replica knows.
    pub fn merge(&mut self, other: &Self) {
        // A dot stays if both hold it, or if the side that does not hold it has never seen it.
        for (entry, dots) in &mut self.entries {
            let theirs = other.entries.get(entry);
            dots.retain(|dot, _| theirs.is_some_and(|t| t.contains_key(dot)) || !other.has_seen(dot));
        }
        for (entry, theirs) in &other.entries {
            for (dot, put) in theirs {
                if !self.has_seen(dot) {
                    self.entries.entry(entry.clone()).or_default().insert(*dot, *put);
                }
            }
        }
        self.entries.retain(|_, dots| !dots.is_empty());
        for (author, seen) in &other.seen {
            self.seen.entry(*author).or_default().merge(seen);
        }
        self.country = self.country.take().max_by_stamp(&other.country);
    }

    pub fn quantity(&self, entry: &Entry) -> u32 {
        self.entries.get(entry).map_or(0, quantity)
    }

    /// Lines with a quantity, in the order in which they were first added.
    pub fn lines(&self) -> Vec<(LineKey, u32)> {
        let mut lines: Vec<_> = self
            .entries
            .iter()
            .filter_map(|(entry, dots)| match (entry, quantity(dots)) {
                (Entry::Line(key), wanted @ 1..) => Some((first(dots), key, wanted)),
                _ => None,
            })
            .collect();
        lines.sort_unstable();
        lines.into_iter().map(|(_, key, wanted)| (key.clone(), wanted)).collect()
    }

    /// The coupons that were entered, sorted.
    pub fn coupons(&self) -> Vec<Coupon> {
        self.entries
            .iter()
            .filter_map(|(entry, dots)| match entry {
                Entry::Coupon(code) if quantity(dots) > 0 => Some(code.clone()),
                _ => None,
            })
            .collect()
    }

    pub fn country(&self) -> Option<&Country> {
        self.country.as_ref().map(|(country, _)| country)
    }

    /// Whether an [`Edit`] may add this entry.
    pub fn has_room_for(&self, entry: &Entry) -> bool {
        self.entries.len() < ENTRIES_MAX || self.entries.contains_key(entry)
    }

    /// The newest stamp in the cart, for [`crate::clock::HlcClock::observe`] when it comes from elsewhere.
    pub fn newest(&self) -> Option<Hlc> {
        let sets = self.entries.values().flat_map(Dots::values).filter_map(|put| match put.effect {
            Effect::Set(_, at) => Some(at),
            Effect::Add(_) => None,
        });
        sets.chain(self.country.as_ref().map(|(_, at)| *at)).max()
    }

    /// Equal if and only if the replicas know the same.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.to_bytes())
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        codec::to_bytes(self)
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CartDecodeError> {
        let mut cart: Self = codec::from_bytes("a cart", bytes, CART_BYTES_MAX)?;
        // Whatever the bytes said, the rest may rely on: what is held has been seen, nothing is empty, and a set of
        // dots has one representation.
        let held: Vec<Dot> = cart.entries.values().flat_map(Dots::keys).copied().collect();
        cart.seen.values_mut().for_each(Seen::compact);
        held.iter().for_each(|dot| cart.saw(dot));
        cart.entries.retain(|_, dots| !dots.is_empty());
        cart.seen.retain(|_, seen| seen.last() > 0);
        Ok(cart)
    }

    /// Whether the dot was ever known here, held or dropped since.
    pub fn has_seen(&self, dot: &Dot) -> bool {
        // Counts begin with 1: there is nothing to learn from a dot 0.
        dot.n == 0 || self.seen.get(&(dot.node, dot.epoch)).is_some_and(|seen| seen.contains(dot.n))
    }

    fn saw(&mut self, dot: &Dot) {
        if dot.n > 0 {
            self.seen.entry((dot.node, dot.epoch)).or_default().insert(dot.n);
        }
    }

    fn forget(&mut self, entry: &Entry, dot: &Dot) {
        if let Slot::Occupied(mut slot) = self.entries.entry(entry.clone()) {
            slot.get_mut().remove(dot);
            if slot.get().is_empty() {
                slot.remove();
            }
        }
    }
}

trait Stamped {
    /// The one with the newer stamp; among equal stamps the greater country, so that all replicas agree.
    fn max_by_stamp(self, other: &Self) -> Self;
}

impl Stamped for Option<CountryAt> {
    fn max_by_stamp(self, other: &Self) -> Self {
        let key = |at: &CountryAt| (at.1, at.0.clone());
        match (&self, other) {
            (Some(ours), Some(theirs)) if key(theirs) > key(ours) => other.clone(),
            (None, Some(_)) => other.clone(),
            _ => self,
        }
    }
}

fn quantity(dots: &Dots) -> u32 {
    let set = dots
        .iter()
        .filter_map(|(dot, put)| match put.effect {
            Effect::Set(to, at) => Some((at, *dot, to)),
            Effect::Add(_) => None,
        })
        .max()
        .map_or(0, |(_, _, to)| i64::from(to));
    clamp(dots.values().fold(set, |sum, put| match put.effect {
        Effect::Add(more) => sum.saturating_add(more.into()),
        Effect::Set(..) => sum,
    }))
}

fn clamp(quantity: i64) -> u32 {
    u32::try_from(quantity.clamp(0, QUANTITY_MAX.into()))
        .expect("clamped to 0..=QUANTITY_MAX, which is a u32")
}

/// Where a line stands: concurrent first additions may have the same rank, and then the dot decides.
fn first(dots: &Dots) -> Option<(u32, Dot)> {
    dots.iter().map(|(dot, put)| (put.rank, *dot)).min()
}

/// What an edit says about one entry, before dots are given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Add(i32),
    Set(u32),
    Gone,
}

/// One atomic change in the making. Later calls see what earlier ones did.
#[derive(Debug)]
pub struct Edit<'a> {
    cart: &'a Cart,
    node: NodeId,
    epoch: Epoch,
    at: Hlc,
    country: Option<Country>,
    /// With the order of first mention, which is the order of new lines.
    pending: BTreeMap<Entry, (usize, Wanted)>,
    new_entries: usize,
}

impl Edit<'_> {
    /// Adds to (or, below zero, takes from) whatever is there; concurrent additions add up.
    pub fn add(&mut self, entry: Entry, more: i32) -> Result<(), CartFull> {
        let wanted = match self.pending(&entry) {
            None => Wanted::Add(more),
            Some(Wanted::Add(before)) => Wanted::Add(before.saturating_add(more)),
            Some(Wanted::Set(before)) => Wanted::Set(clamp(i64::from(before) + i64::from(more))),
            Some(Wanted::Gone) => Wanted::Set(clamp(more.into())),
        };
        self.want(entry, wanted)
    }

    /// Replaces everything that this replica has seen of the entry. 0 removes it.
    pub fn set(&mut self, entry: Entry, quantity: u32) -> Result<(), CartFull> {
        if quantity == 0 {
            self.remove(entry);
            return Ok(());
        }
        self.want(entry, Wanted::Set(quantity.min(QUANTITY_MAX)))
    }

    /// Takes away everything that this replica has seen of the entry.
    pub fn remove(&mut self, entry: Entry) {
        self.want(entry, Wanted::Gone).expect("only an entry that would be new can find the cart full");
    }

    pub fn country(&mut self, country: Country) {
        self.country = Some(country);
    }

    /// Gives out the dots. The delta is not yet applied to the cart.
    pub fn finish(self) -> Delta {
        let seen = self.cart.seen.get(&(self.node, self.epoch));
        let mut n = seen.map_or(0, Seen::last);
        let mut rank =
            self.cart.entries.values().flat_map(Dots::values).map(|put| put.rank).max().unwrap_or(0);
        let none = Dots::new();
        let mut changes = Vec::with_capacity(self.pending.len());
        let mut pending: Vec<_> =
            self.pending.into_iter().map(|(entry, (order, wanted))| (order, entry, wanted)).collect();
        pending.sort_unstable_by_key(|(order, ..)| *order);
        for (_, entry, wanted) in pending {
            let dots = self.cart.entries.get(&entry).unwrap_or(&none);
            let (drops, effect) = match wanted {
                Wanted::Gone => (dots.keys().copied().collect(), None),
                Wanted::Set(to) => (dots.keys().copied().collect(), Some(Effect::Set(to, self.at))),
                Wanted::Add(more) => {
                    let (drops, sum) = fold(dots, self.node, self.epoch);
                    (drops, Some(Effect::Add(clamp_add(sum + i64::from(more)))))
                }
            };
            let put = effect.map(|effect| {
                n = n.checked_add(1).expect("a node does not change one cart four thousand million times");
                let rank = first(dots).map_or_else(
                    || {
                        rank = rank.saturating_add(1);
                        rank
                    },
                    |(rank, _)| rank,
                );
                (Dot { node: self.node, epoch: self.epoch, n }, Put { effect, rank })
            });
            if put.is_some() || !Vec::is_empty(&drops) {
                changes.push(Change { entry, drops, put });
            }
        }
        // Newer than the stamp that it saw, even if another node's clock was ahead: who has seen a country and
        // chooses another means it.
        let after = self
            .cart
            .country
            .as_ref()
            .map_or(self.at, |(_, seen)| self.at.max(Hlc(seen.0.saturating_add(1))));
        Delta { country: self.country.map(|country| (country, after)), changes }
    }

    fn pending(&self, entry: &Entry) -> Option<Wanted> {
        self.pending.get(entry).map(|(_, wanted)| *wanted)
    }

    fn want(&mut self, entry: Entry, wanted: Wanted) -> Result<(), CartFull> {
        if let Some((_, before)) = self.pending.get_mut(&entry) {
            *before = wanted;
            return Ok(());
        }
        if wanted != Wanted::Gone && !self.cart.entries.contains_key(&entry) {
            if self.cart.entries.len() + self.new_entries >= ENTRIES_MAX {
                return Err(CartFull);
            }
            self.new_entries += 1;
        }
        self.pending.insert(entry, (self.pending.len(), wanted));
        Ok(())
    }
}

/// Which dots an addition folds into its own, and what they add up to. Only additions that the same node made: no one
/// else can be folding them at the same time, so nothing is lost and nothing is counted twice.
fn fold(dots: &Dots, node: NodeId, epoch: Epoch) -> (Vec<Dot>, i64) {
    if dots.len() < DOTS_PER_ENTRY_MAX {
        return (Vec::new(), 0);
    }
    dots.iter()
        .filter(|(dot, _)| dot.node == node && dot.epoch <= epoch)
        .filter_map(|(dot, put)| match put.effect {
            Effect::Add(more) => Some((*dot, i64::from(more))),
            Effect::Set(..) => None,
        })
        .fold((Vec::new(), 0), |(mut drops, sum), (dot, more)| {
            drops.push(dot);
            (drops, sum + more)
        })
}

fn clamp_add(sum: i64) -> i32 {
    let max = i64::from(QUANTITY_MAX);
    i32::try_from(sum.clamp(-max, max)).expect("clamped to ±QUANTITY_MAX, which is an i32")
}
