//! What was sold: an order as the region placed it and as everyone reads it afterwards.

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::id::{CartId, Country, OrderId, PluginName, SiteId};
use crate::quote::Quote;

/// A remark that a checkout plugin keeps with the order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Encode, Decode)]
pub struct Note {
    #[n(0)]
    pub plugin: PluginName,
    #[n(1)]
    pub code: String,
    #[n(2)]
    pub text: String,
}

/// How far an order has come. The region decides it; the order that was written down does not change otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Encode, Decode)]
#[serde(rename_all = "snake_case")]
#[cbor(index_only)]
pub enum OrderState {
    /// Stock is taken and the price is fixed; the payment is assured, or the shop sends an invoice.
    #[n(0)]
    Placed,
    /// The money has been taken.
    #[n(1)]
    Captured,
    /// The goods are on their way.
    #[n(2)]
    Fulfilled,
    /// The merchant will not deliver; nothing was charged, and the stock is back.
    #[n(3)]
    Cancelled,
    /// The money has gone back.
    #[n(4)]
    Refunded,
    /// Stock is held, and it is not known yet whether the payment is assured. Not an order yet.
    #[n(5)]
    Pending,
    /// The payment was refused: it never became an order, and the cart is open again.
    #[n(6)]
    Declined,
}

impl OrderState {
    pub const ALL: [Self; 7] = [
        Self::Placed,
        Self::Captured,
        Self::Fulfilled,
        Self::Cancelled,
        Self::Refunded,
        Self::Pending,
        Self::Declined,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Placed => "placed",
            Self::Captured => "captured",
            Self::Fulfilled => "fulfilled",
            Self::Cancelled => "cancelled",
            Self::Refunded => "refunded",
            Self::Pending => "pending",
            Self::Declined => "declined",
        }
    }

    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

/// An order. Its JSON is the answer of `GET /api/orders/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Encode, Decode)]
pub struct Order {
    #[n(0)]
    pub id: OrderId,
    #[n(1)]
    pub site: SiteId,
    #[n(2)]
    pub cart: CartId,
    #[n(3)]
    pub state: OrderState,
    /// What the shopper pays and why, as the region computed it.
    #[n(4)]
    #[cbor(with = "crate::codec::json")]
    pub quote: Quote,
    #[n(5)]
    #[serde(default)]
    pub notes: Vec<Note>,
    #[n(6)]
    pub placed_ms: u64,
    #[n(7)]
    #[serde(default)]
    pub country: Option<Country>,
    #[n(8)]
    #[serde(default)]
    pub customer: Option<String>,
}
