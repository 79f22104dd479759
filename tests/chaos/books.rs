//! What shoppers were told, word for word what it binds the shop to; and what a run came to.
//!
//! An operation is acknowledged by a 2xx and by nothing else. One that was refused by name was not done. Of one without an
//! answer nobody knows: it may be in the cart or not, and the audit allows both.

use std::collections::BTreeMap;

/// Findings of one kind kept in words; beyond that they are only counted.
const DESCRIBED_MAX: usize = 8;

/// Counted in full, described up to a bound.
#[derive(Debug, Clone, Default)]
pub(crate) struct Findings {
    pub(crate) count: u64,
    described: Vec<String>,
}

impl Findings {
    pub(crate) fn add(&mut self, text: String) {
        self.add_some(1, text);
    }

    pub(crate) fn add_some(&mut self, count: u64, text: String) {
        self.count += count;
        if self.described.len() < DESCRIBED_MAX {
            self.described.push(text);
        }
    }

    pub(crate) fn words(&self) -> String {
        self.described.join("\n  ")
    }
}

/// One line of a cart as its shopper knows it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Line {
    /// Units that were acknowledged, by the node that did.
    pub(crate) by_node: BTreeMap<usize, u32>,
    pub(crate) acknowledgements: u64,
    /// Units of additions without an answer.
    pub(crate) doubtful: u32,
}

impl Line {
    pub(crate) fn acknowledged(&self) -> u32 {
        self.by_node.values().sum()
    }

    pub(crate) fn most(&self) -> u32 {
        self.acknowledged() + self.doubtful
    }
}

/// How a checkout ended for its shopper.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Bought {
    /// Never tried.
    #[default]
    No,
    Ordered {
        order: String,
        total: i64,
    },
    /// The bank's no, or nobody could be asked.
    Declined,
    /// Not enough in stock.
    SoldOut,
    /// The shopper's patience ended before the answer came. It may be an order.
    Unknown,
}

/// A checkout that a shopper has left without an answer: enough to ask again what came of it.
#[derive(Debug, Clone)]
pub(crate) struct Open {
    pub(crate) seed: u64,
    /// The node that was asked, and the cookies that it gave.
    pub(crate) at: usize,
    pub(crate) jar: String,
    /// Keys that were used up before this one.
    pub(crate) asked: u64,
}

/// A place in a node's outbox that a shopper has seen: node, epoch, number.
pub(crate) type Places = BTreeMap<u32, (u32, u64)>;

/// A whole cart as its shopper knows it.
#[derive(Debug, Clone, Default)]
pub(crate) struct CartBook {
    pub(crate) cart: String,
    pub(crate) lines: BTreeMap<String, Line>,
    pub(crate) seen: Places,
    pub(crate) bought: Bought,
    pub(crate) open: Option<Open>,
}

impl CartBook {
    pub(crate) fn acknowledgements(&self) -> u64 {
        self.lines.values().map(|line| line.acknowledgements).sum()
    }

    /// The cookie by which a node finds all that the shopper has seen.
    pub(crate) fn cookie(&self) -> String {
        let places = self.seen.iter().map(|(node, (epoch, seq))| format!("{node}.{epoch}.{seq}"));
        format!("souk_seen={}", places.collect::<Vec<_>>().join("_"))
    }

    pub(crate) fn note_seen(&mut self, places: &str) {
        for place in places.split('_') {
            let mut numbers = place.split('.');
            let mut next = || numbers.next()?.parse::<u64>().ok();
            if let (Some(node), Some(epoch), Some(seq)) = (next(), next(), next())
                && let (Ok(node), Ok(epoch)) = (u32::try_from(node), u32::try_from(epoch))
            {
                let place = self.seen.entry(node).or_default();
                *place = (*place).max((epoch, seq));
            }
        }
    }
}

/// What all shoppers together did.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    /// Changes of carts and orders that were acknowledged.
    pub(crate) acknowledged: u64,
    /// Checkouts that were begun: keys under which somebody asked.
    pub(crate) checkouts: u64,
    pub(crate) orders: u64,
    pub(crate) declined: u64,
    pub(crate) sold_out: u64,
    /// Checkouts that ended because the provider could not be asked.
    pub(crate) unavailable: u64,
    /// Checkouts of carts in which nothing had come to be.
    pub(crate) emptied: u64,
    /// Requests without an answer, or with one that says that nobody knows.
    pub(crate) doubtful: u64,
    /// Carts of which nobody was told the number.
    pub(crate) nameless: u64,
    /// Answers other than 2xx, by status and code.
    pub(crate) refusals: BTreeMap<String, u64>,
    /// What a shopper was shown or told that cannot be right.
    pub(crate) strange: Findings,
}

impl Tally {
    /// Checkouts of which their shopper knows how they ended.
    pub(crate) fn settled(&self) -> u64 {
        self.orders + self.declined + self.sold_out + self.unavailable + self.emptied
    }

    pub(crate) fn refused(&self) -> u64 {
        self.refusals.values().sum()
    }

    /// The refusals, most frequent first.
    pub(crate) fn reasons(&self) -> String {
        let mut all: Vec<_> = self.refusals.iter().collect();
        all.sort_by_key(|(name, count)| (std::cmp::Reverse(**count), (*name).clone()));
        all.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shopper_remembers_the_farthest_place_of_each_node() {
        let mut book = CartBook::default();
        for places in ["1.2.30", "2.1.5_1.2.28", "1.1.900", "nonsense", "1.2.31_2.1.4"] {
            book.note_seen(places);
        }
        assert_eq!(book.cookie(), "souk_seen=1.2.31_2.1.5");
    }
}
