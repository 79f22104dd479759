//! What a shopper wants: a delta-state causal OR-map that any number of nodes may change at once.
//!
//! ```text
//! entry (a line or a coupon) -> { dot -> effect }      what is known and not dropped
//! seen: (node, epoch) -> dots                          what was ever known
//! quantity = clamp(newest Set by (hlc, dot) + Σ Add)
//! ```
//!
//! A dot that is seen but not held has been dropped: that is how a removal is remembered without a tombstone. So two
//! concurrent additions add up, a removal beats everything that it saw, an addition that it did not see survives, and
//! of two concurrent settings the newer wins. Carts hold SKUs and quantities, never prices.
//!
//! A [`Delta`] is itself a small cart state (the dots it puts and the dots it has seen go), which is why applying
//! deltas in any order, any number of times, is the same as merging states. Only the node named in a dot makes that
//! dot, one after the other; its own copy of the cart must hold all of its earlier dots when it edits.

mod state;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use minicbor::{Decode, Encode};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::clock::Hlc;
use crate::codec;
use crate::id::{Country, Coupon, Epoch, InvalidName, NodeId, PluginName, Sku};
use crate::op::OPERATION_BYTES_MAX;

pub use self::state::{Cart, Edit};

/// Most entries to which an [`Edit`] lets a cart grow. A merge of carts that grew apart may hold more for a while.
pub const ENTRIES_MAX: usize = 2_048;
/// At so many dots on one entry, an addition folds its node's own earlier additions into one dot.
pub const DOTS_PER_ENTRY_MAX: usize = 64;
/// Greatest quantity of an entry, whatever its dots say: times the greatest price it still fits an `i64`.
pub const QUANTITY_MAX: u32 = 900_000;
/// Largest encoded cart: [`ENTRIES_MAX`] entries of [`DOTS_PER_ENTRY_MAX`] dots of 24 bytes are 3 MiB.
pub const CART_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Why the bytes of a cart were refused.
pub type CartDecodeError = codec::DecodeError;

/// The cart holds [`ENTRIES_MAX`] entries, and the edit would add one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the cart is full: it has {ENTRIES_MAX} entries")]
pub struct CartFull;

/// Names one change of one cart for ever. `n` counts a node's changes of this cart in this epoch: 1, 2, 3…
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Dot {
    #[n(0)]
    pub node: NodeId,
    #[n(1)]
    pub epoch: Epoch,
    #[n(2)]
    #[cbor(decode_with = "state::decode_count")]
    pub n: u32,
}

impl Dot {
    /// Whether this node made it, in this epoch or an older one.
    pub fn is_by(&self, node: NodeId, epoch: Epoch) -> bool {
        self.node == node && self.epoch <= epoch
    }
}

/// A line: a product, and the plugin that added it if the shopper did not. Its text `SKU` or `SKU~plugin` is the
/// line's id on the API.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LineKey {
    pub sku: Sku,
    pub added_by: Option<PluginName>,
}

impl LineKey {
    /// A line that the shopper added.
    pub fn of(sku: Sku) -> Self {
        Self { sku, added_by: None }
    }

    /// A line that a plugin added.
    pub fn added(sku: Sku, by: PluginName) -> Self {
        Self { sku, added_by: Some(by) }
    }
}

impl fmt::Display for LineKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.added_by {
            None => write!(f, "{}", self.sku),
            Some(plugin) => write!(f, "{}~{plugin}", self.sku),
        }
    }
}

impl FromStr for LineKey {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        match text.split_once('~') {
            None => Ok(Self::of(text.parse()?)),
            Some((sku, plugin)) => Ok(Self::added(sku.parse()?, plugin.parse()?)),
        }
    }
}

impl Serialize for LineKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for LineKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl<C> Encode<C> for LineKey {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.str(&self.to_string())?.ok()
    }
}

impl<'b, C> Decode<'b, C> for LineKey {
    fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        let at = d.position();
        d.str()?.parse().map_err(|e: InvalidName| minicbor::decode::Error::message(e.to_string()).at(at))
    }
}

/// What a cart can hold some of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum Entry {
    #[n(0)]
    Line(#[n(0)] LineKey),
    /// Entered if its quantity is not 0.
    #[n(1)]
    Coupon(#[n(0)] Coupon),
}

/// What one dot says about the quantity of its entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub enum Effect {
    #[n(0)]
    Add(#[n(0)] i32),
    #[n(1)]
    Set(#[n(0)] u32, #[n(1)] Hlc),
}

/// An effect and where its line stands: `rank` is given when an entry is first added, greater than every rank in the
/// cart, and kept by later changes, so that lines stay in the order in which the shopper added them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct Put {
    #[n(0)]
    pub effect: Effect,
    #[n(1)]
    pub rank: u32,
}

/// One entry's part of a delta.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Change {
    #[n(0)]
    pub entry: Entry,
    /// Dots that this change saw and takes away.
    #[n(1)]
    #[cbor(default)]
    pub drops: Vec<Dot>,
    #[n(2)]
    pub put: Option<(Dot, Put)>,
}

/// Where the cart is to be delivered; the newest stamp wins.
pub type CountryAt = (Country, Hlc);

/// One atomic change of a cart.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct Delta {
    #[n(0)]
    pub country: Option<CountryAt>,
    #[n(1)]
    #[cbor(default)]
    pub changes: Vec<Change>,
}

impl Delta {
    /// Nothing would change: not worth an operation.
    pub fn is_empty(&self) -> bool {
        self.country.is_none() && self.changes.is_empty()
    }

    /// Whether this node may have made it when it was in this epoch: every dot that it puts is the node's own, of
    /// this epoch or an older one (what was accepted in an older epoch is sent again under a new number, with the
    /// dots that it has). The region refuses what is not, because a dot that another node used first makes the
    /// owner's change, once it arrives, a change that was seen already.
    pub fn is_by(&self, node: NodeId, epoch: Epoch) -> bool {
        self.changes.iter().filter_map(|c| c.put.as_ref()).all(|(dot, _)| dot.is_by(node, epoch))
    }

    /// Keeps only the drops that `keep` approves of, and tells how many went. To drop a dot is to have seen it, so a
    /// drop of a dot that is still on its way undoes it before it arrives.
    pub fn retain_drops(&mut self, mut keep: impl FnMut(&Dot) -> bool) -> usize {
        let mut gone = 0;
        for change in &mut self.changes {
            let before = change.drops.len();
            change.drops.retain(&mut keep);
            gone += before - change.drops.len();
        }
        gone
    }

    /// The newest stamp in it, for [`crate::clock::HlcClock::observe`].
    pub fn newest(&self) -> Option<Hlc> {
        let sets = self.changes.iter().filter_map(|c| match c.put {
            Some((_, Put { effect: Effect::Set(_, at), .. })) => Some(at),
            _ => None,
        });
        sets.chain(self.country.as_ref().map(|(_, at)| *at)).max()
    }

    /// Cuts a delta that is too large for one operation (the emptying of a great cart) into parts that fit.
    pub fn split(self) -> Vec<Self> {
        // The rest of an operation is a site, a cart and a stamp: under 200 bytes.
        const DELTA_BYTES_MAX: usize = OPERATION_BYTES_MAX - 1_024;
        let mut parts = Vec::new();
        let mut part = Self { country: self.country, changes: Vec::new() };
        let mut bytes = 64;
        for change in self.changes {
            let more = codec::to_bytes(&change).len();
            if bytes + more > DELTA_BYTES_MAX && !part.changes.is_empty() {
                parts.push(std::mem::take(&mut part));
                bytes = 64;
            }
            bytes += more;
            part.changes.push(change);
        }
        parts.push(part);
        parts
    }
}

/// The dots of an entry that are known and not dropped.
type Dots = BTreeMap<Dot, Put>;

#[cfg(test)]
mod tests;
