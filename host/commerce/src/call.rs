//! Questions that a node asks its region while a shopper waits: the meaning of the link's opaque calls.
//!
//! Everything else travels by logs and works without a region. These do not, and each answer that says "no" has a
//! name that reaches the shopper.

use minicbor::{Decode, Encode};

use crate::codec::{self, DecodeError};
use crate::id::{CartId, Country, Digest, Epoch, GrantId, HoldId, NodeId, OrderId, SiteId, Sku};
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
    /// Units for a cart that the asking node has no grant for; the answer is [`Response::Reserved`].
    #[n(7)]
    Reserve(#[n(0)] ReserveRequest),
    /// What the asking node has of lent stock, and what its shoppers want; the answer is [`Response::Stock`].
    #[n(8)]
    Stock(#[n(0)] StockQuestion),
    /// What the rows of each log come to; the answer is [`Response::Digests`].
    #[n(9)]
    Digests,
}

/// Most products of one [`ReserveRequest`]: a cart's lines are bounded by its site, and this by the size of a request.
pub const RESERVE_WANTS_MAX: usize = 1_000;
/// Most holds of one cart that a node speaks of.
pub const HOLDS_MAX: usize = 1_000;
/// Most grants that one node has, and most products that it says are wanted: the hottest. At 200 bytes each, 100 KB of a question.
pub const STOCK_PRODUCTS_MAX: usize = 256;

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct ReserveRequest {
    #[n(0)]
    pub site: SiteId,
    #[n(1)]
    pub cart: CartId,
    /// Holds of this cart that the node counts already. What the region holds for the cart beside these counts towards what
    /// is wanted: an answer that was lost, another node's.
    #[n(2)]
    pub known: Vec<HoldId>,
    #[n(3)]
    pub wants: Vec<Want>,
    /// The region must have applied the node's outbox to here (bounded wait): what was given up there is not promised again.
    #[n(4)]
    pub after: Option<(Epoch, u64)>,
}

/// Units of one product for a cart.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Want {
    /// The name of the hold that is made of it.
    #[n(0)]
    pub hold: HoldId,
    #[n(1)]
    pub sku: Sku,
    #[n(2)]
    pub units: u64,
}

/// What became of a [`Want`]. A number of fields and not an enum, so that a peer of another release can read it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Promised {
    #[n(0)]
    pub sku: Sku,
    /// Held for the cart beside what the node knew: all that was wanted, or nothing.
    #[n(1)]
    pub holds: Vec<Held>,
    /// Nobody counts this product: it sells without end, and there is nothing to hold.
    #[n(2)]
    pub uncounted: bool,
    /// What is free when it is too little.
    #[n(3)]
    pub available: u64,
}

/// Units that are held for a cart.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Held {
    #[n(0)]
    pub hold: HoldId,
    #[n(1)]
    pub units: u64,
    #[n(2)]
    pub lives_ms: u64,
}

/// A node's question about lent stock. One is under way at a time.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct StockQuestion {
    /// Greater with each question of the node, over its restarts too: one that was given up and comes late is not heard.
    #[n(0)]
    pub turn: u64,
    /// Where its outbox stands: whatever it has taken of grants that it does not name any more is in operations up to there.
    #[n(1)]
    pub epoch: Epoch,
    #[n(2)]
    pub last: u64,
    /// The grants that it has.
    #[n(3)]
    pub open: Vec<GrantId>,
    /// The products that its shoppers want to be promised most often.
    #[n(4)]
    pub wanted: Vec<Wanted>,
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Wanted {
    #[n(0)]
    pub site: SiteId,
    #[n(1)]
    pub sku: Sku,
    /// Units, lately.
    #[n(2)]
    pub per_minute: u64,
}

/// A grant as its node is told of it. A grant that an answer does not name is over.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Granted {
    #[n(0)]
    pub grant: GrantId,
    #[n(1)]
    pub site: SiteId,
    #[n(2)]
    pub sku: Sku,
    /// All that was ever granted under this number.
    #[n(3)]
    pub units: u64,
    #[n(4)]
    pub lives_ms: u64,
    /// How long carts are promised units out of it.
    #[n(5)]
    pub hold_ms: u64,
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
    #[n(15)]
    Reserved(#[n(0)] Vec<Promised>),
    #[n(16)]
    Stock {
        /// A later question was answered: its number. Nothing was done.
        #[n(0)]
        older_than: Option<u64>,
        #[n(1)]
        grants: Vec<Granted>,
    },
    /// The shop promises nothing before an order.
    #[n(17)]
    NotOffered,
    #[n(18)]
    Digests(#[n(0)] Vec<LogDigest>),
}

/// What the rows of one log come to at one version of it: `souk_replication::RowsDigest`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct LogDigest {
    /// The log's number on the wire. A node skips one that it does not know.
    #[n(0)]
    pub log: u8,
    /// The history that `version` counts.
    #[n(1)]
    pub region_epoch: u32,
    #[n(2)]
    pub version: u64,
    #[n(3)]
    pub rows: u64,
    #[n(4)]
    #[cbor(with = "minicbor::bytes")]
    pub sum: [u8; 16],
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The requests and operations of the release before, as far as they matter here.
    mod older {
        use minicbor::{Decode, Encode};

        use crate::id::{CartId, SiteId};

        #[derive(Debug, Encode, Decode)]
        pub(super) enum Request {
            #[n(6)]
            Running {
                #[n(0)]
                whole: bool,
            },
        }

        #[derive(Debug, Encode, Decode)]
        pub(super) enum Operation {
            #[n(0)]
            Cart {
                #[n(0)]
                site: SiteId,
                #[n(1)]
                cart: CartId,
                #[n(2)]
                at_ms: u64,
            },
        }
    }

    fn question() -> StockQuestion {
        let (site, sku) = ("shop".parse().expect("a site"), "MUG".parse().expect("a sku"));
        let wanted = vec![Wanted { site, sku, per_minute: 600 }];
        StockQuestion { turn: 9, epoch: Epoch(2), last: 40, open: vec![GrantId([1; 16])], wanted }
    }

    #[test]
    fn a_region_one_release_older_refuses_what_it_does_not_know_and_misreads_nothing() {
        let request = Request::Stock(question());
        assert_eq!(Request::from_bytes(&request.to_bytes()), Ok(request.clone()));
        assert!(minicbor::decode::<older::Request>(&request.to_bytes()).is_err());
        let hold = HoldId([2; 16]);
        let wants = vec![Want { hold, sku: "MUG".parse().expect("a sku"), units: 3 }];
        let request = Request::Reserve(ReserveRequest {
            site: "shop".parse().expect("a site"),
            cart: CartId([3; 16]),
            known: vec![hold],
            wants,
            after: Some((Epoch(1), 7)),
        });
        assert_eq!(Request::from_bytes(&request.to_bytes()), Ok(request.clone()));
        assert!(minicbor::decode::<older::Request>(&request.to_bytes()).is_err());
        assert!(minicbor::decode::<older::Request>(&Request::Digests.to_bytes()).is_err());
        let known = Request::Running { whole: true, chains: vec![] };
        assert!(
            minicbor::decode::<older::Request>(&known.to_bytes()).is_ok(),
            "what it knows it still reads"
        );
    }

    #[test]
    fn a_promise_is_an_operation_that_only_a_region_which_lends_can_read() {
        use crate::op::Operation;
        let (site, cart) = ("shop".parse().expect("a site"), CartId([3; 16]));
        let (sku, hold, grant) = ("MUG".parse().expect("a sku"), HoldId([2; 16]), GrantId([1; 16]));
        let reserve = Operation::Reserve { site, cart, at_ms: 5, hold, sku, units: 3, grant };
        let site = "shop".parse().expect("a site");
        let release = Operation::Release { site, cart, at_ms: 6, holds: vec![hold] };
        for op in [reserve, release] {
            assert_eq!(Operation::from_bytes(&op.to_bytes()), Ok(op.clone()));
            assert_eq!(op.subject().1, cart);
            assert!(
                minicbor::decode::<older::Operation>(&op.to_bytes()).is_err(),
                "a dead letter, not a cart"
            );
        }
    }
}
