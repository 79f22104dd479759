//! One operation of the up-log: what a node has accepted and the region has yet to learn.

use minicbor::{Decode, Encode};

use crate::cart::Delta;
use crate::codec::{self, DecodeError};
use crate::id::{CartId, GrantId, HoldId, SiteId, Sku};

/// Largest operation. A batch on the wire is 64 KiB, and one operation with its framing must fit into one.
pub const OPERATION_BYTES_MAX: usize = 60 * 1024;

/// What happened at a node. Applying it twice is applying it once.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Operation {
    #[n(0)]
    Cart {
        #[n(0)]
        site: SiteId,
        #[n(1)]
        cart: CartId,
        /// The node's wall clock when it accepted the change. For people and for expiry, never for order.
        #[n(2)]
        at_ms: u64,
        #[n(3)]
        delta: Delta,
    },
    /// The node has promised units of a grant to a cart. Written only under a grant, which only a region gives that reads
    /// this: a region one release older is never sent it.
    #[n(1)]
    Reserve {
        #[n(0)]
        site: SiteId,
        #[n(1)]
        cart: CartId,
        /// As in [`Operation::Cart`].
        #[n(2)]
        at_ms: u64,
        /// Seen twice, it is one promise.
        #[n(3)]
        hold: HoldId,
        #[n(4)]
        sku: Sku,
        #[n(5)]
        units: u64,
        #[n(6)]
        grant: GrantId,
    },
    /// A shopper gives up what a cart was promised. Written only of holds, so never to a region that knows none.
    #[n(2)]
    Release {
        #[n(0)]
        site: SiteId,
        #[n(1)]
        cart: CartId,
        /// As in [`Operation::Cart`].
        #[n(2)]
        at_ms: u64,
        #[n(3)]
        holds: Vec<HoldId>,
    },
}

impl Operation {
    /// Which cart it is about.
    pub fn subject(&self) -> (&SiteId, CartId) {
        match self {
            Self::Cart { site, cart, .. }
            | Self::Reserve { site, cart, .. }
            | Self::Release { site, cart, .. } => (site, *cart),
        }
    }

    /// The node's wall clock when it accepted it.
    pub const fn at_ms(&self) -> u64 {
        match self {
            Self::Cart { at_ms, .. } | Self::Reserve { at_ms, .. } | Self::Release { at_ms, .. } => *at_ms,
        }
    }

    /// A delta from one API call is far below [`OPERATION_BYTES_MAX`]; one that empties a great cart may be above
    /// it, see [`Delta::split`].
    pub fn to_bytes(&self) -> Vec<u8> {
        codec::to_bytes(self)
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        codec::from_bytes("an operation", bytes, OPERATION_BYTES_MAX)
    }
}
