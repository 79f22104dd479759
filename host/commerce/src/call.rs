//! Questions that a node asks its region while a shopper waits: the meaning of the link's opaque calls.
//!
//! Everything else travels by logs and works without a region. These do not, and each answer that says "no" has a
//! name that reaches the shopper.

use minicbor::{Decode, Encode};

use crate::codec::{self, DecodeError};
use crate::id::{CartId, Country, Digest, Epoch, NodeId, OrderId, SiteId, Sku};
use crate::journal::{Entry, RecordingBlob};
use crate::money::Minor;
use crate::quote::Quote;

pub use crate::order::{Note, Order, OrderState};
pub use crate::payment::PaymentMethod;

/// Largest request: a recording at its limit and the names around it; far above a checkout with every field at its own.
/// The link's limit of a call is the same number.
pub const REQUEST_BYTES_MAX: usize = 320 * 1024;
/// Largest answer: an asset of a site.
pub const RESPONSE_BYTES_MAX: usize = 64 * 1024 * 1024;

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Request {
    /// A cart whose shopper has come from another node.
    #[n(0)]
    FetchCart {
        #[n(0)]
        site: SiteId,
        #[n(1)]
        cart: CartId,
        /// Read your writes: the region must have applied that node's outbox to here, or answer
        /// [`Response::NotYet`] after a bounded wait.
        #[n(2)]
        min: Option<(NodeId, Epoch, u64)>,
    },
    #[n(1)]
    Checkout(#[n(0)] CheckoutRequest),
    #[n(2)]
    Order {
        #[n(0)]
        site: SiteId,
        #[n(1)]
        order: OrderId,
    },
    #[n(3)]
    Blob {
        #[n(0)]
        digest: Digest,
    },
    /// What plugins did at the asking node; the answer is [`Response::Noted`].
    #[n(4)]
    Journal(#[n(0)] JournalBatch),
    /// A recorded call; the answer is [`Response::Noted`]. Recording the same call again changes nothing.
    #[n(5)]
    Recording(#[n(0)] RecordingBlob),
    /// Which release sets the asking node runs; the answer is [`Response::Noted`]. A part: sites that are not named
    /// are as they were said to be, unless `whole`.
    #[n(6)]
    Running {
        /// Nothing that was said before counts any more: the node, or its link, has begun anew.
        #[n(0)]
        whole: bool,
        #[n(1)]
        chains: Vec<RunningChain>,
    },
}

/// Most chains of one [`Request::Running`]: with the longest names and reasons, and as many components ahead as a set
/// may announce, 280 KiB.
pub const RUNNING_CHAINS_MAX: usize = 150;
/// Longest reason in a [`RunningChain`] or an [`Ahead`].
pub const RUNNING_WHY_BYTES_MAX: usize = 320;

/// What a node runs for one site.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct RunningChain {
    #[n(0)]
    pub site: SiteId,
    /// The version of the release set in use; 0 for none.
    #[n(1)]
    pub version: u64,
    /// Why a newer one that has arrived is not in use.
    #[n(2)]
    pub why: Option<String>,
    /// How far the node is with the components that were announced to it, all of them. None: it is of a version that
    /// does not say.
    #[n(3)]
    pub ahead: Option<Vec<Ahead>>,
}

/// What a node has made of a component that was pushed and is not deployed
/// ([`ReleaseSet::coming`](crate::site::ReleaseSet)).
///
/// Two bits and not an enum: a region that is one release older must be able to read what a newer node says.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Ahead {
    #[n(0)]
    pub component: Digest,
    /// Its machine code is on the node's disk.
    #[n(1)]
    pub compiled: bool,
    /// It will be no different if it is tried again.
    #[n(2)]
    pub refused: bool,
    /// Why it is not compiled, when it was tried.
    #[n(3)]
    pub why: Option<String>,
}

/// Entries in the order in which they happened. Their node is the one that sends them, whatever they say.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct JournalBatch {
    /// A random number of this life of the node …
    #[n(0)]
    pub life: u64,
    /// … and the number of the first entry within it, from 0: entries that the region has already are skipped, so that
    /// a batch whose answer was lost can be sent again.
    #[n(1)]
    pub first: u64,
    #[n(2)]
    pub entries: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct CheckoutRequest {
    #[n(0)]
    pub site: SiteId,
    #[n(1)]
    pub cart: CartId,
    /// The region must have applied this node's outbox to here before it looks at the cart (bounded wait).
    #[n(2)]
    pub after: Option<(Epoch, u64)>,
    #[n(3)]
    pub idempotency_key: String,
    /// SHA-256 of what the shopper asked: the same key with another question is refused.
    #[n(4)]
    #[cbor(with = "minicbor::bytes")]
    pub request_hash: [u8; 32],
    #[n(5)]
    pub country: Option<Country>,
    #[n(6)]
    pub language: String,
    #[n(7)]
    pub customer: Option<String>,
    #[n(8)]
    pub segments: Vec<String>,
    /// The total that the shopper saw; another one is [`Response::PriceChanged`].
    #[n(9)]
    pub quoted_total: Minor,
    /// The node's wall clock, frozen for the request, so that both price with the same time.
    #[n(10)]
    pub now_ms: u64,
    /// What the shop's payment provider gave the shopper's browser to pay with. None: an older node, or a shop that sends
    /// invoices.
    #[n(11)]
    pub payment: Option<PaymentMethod>,
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Response {
    #[n(0)]
    Cart {
        /// [`crate::cart::Cart::to_bytes`]; none if the region has never heard of the cart.
        #[n(0)]
        #[cbor(with = "minicbor::bytes")]
        state: Option<Vec<u8>>,
        /// The order that sealed the cart.
        #[n(1)]
        order: Option<OrderId>,
        /// A checkout holds the cart, and its payment is neither assured nor refused yet.
        #[n(2)]
        pending: Option<OrderId>,
    },
    #[n(1)]
    Placed(#[n(0)] Order),
    #[n(2)]
    PriceChanged(
        #[n(0)]
        #[cbor(with = "crate::codec::json")]
        Quote,
    ),
    #[n(3)]
    OutOfStock {
        #[n(0)]
        sku: Sku,
        #[n(1)]
        available: u32,
    },
    /// A plugin's "no", for the shopper to read.
    #[n(4)]
    Refused {
        #[n(0)]
        code: String,
        #[n(1)]
        message: String,
    },
    /// The idempotency key belongs to another question.
    #[n(5)]
    KeyReused,
    #[n(6)]
    CartEmpty,
    #[n(7)]
    CartSealed {
        #[n(0)]
        order: OrderId,
    },
    #[n(8)]
    NotFound,
    #[n(9)]
    Blob(
        #[n(0)]
        #[cbor(with = "minicbor::bytes")]
        Vec<u8>,
    ),
    /// The outbox that the question depends on has not arrived yet.
    #[n(10)]
    NotYet {
        #[n(0)]
        retry_after_ms: u64,
    },
    #[n(11)]
    Failed {
        #[n(0)]
        code: String,
        #[n(1)]
        message: String,
    },
    /// A batch of the journal, a recording, or what a node runs, is kept.
    #[n(12)]
    Noted,
    /// Stock is held and the payment's outcome is not known yet: ask for the order by its number, or again with the same
    /// key.
    #[n(13)]
    Pending(#[n(0)] Order),
    /// The payment was refused. Nothing was ordered, the stock is back, and the cart is open again.
    #[n(14)]
    Declined {
        /// In the provider's words, for programs: `insufficient_funds`.
        #[n(0)]
        code: String,
    },
}

impl Request {
    pub fn to_bytes(&self) -> Vec<u8> {
        codec::to_bytes(self)
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        codec::from_bytes("a request to the region", bytes, REQUEST_BYTES_MAX)
    }
}

impl Response {
    pub fn to_bytes(&self) -> Vec<u8> {
        codec::to_bytes(self)
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        codec::from_bytes("an answer of the region", bytes, RESPONSE_BYTES_MAX)
    }
}
