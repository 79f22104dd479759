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

/// How far an order has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Encode, Decode)]
#[serde(rename_all = "snake_case")]
#[cbor(index_only)]
pub enum OrderState {
    /// Stock is taken and the price is fixed.
    #[n(0)]
    Placed,
}

impl OrderState {
    pub fn name(self) -> &'static str {
        match self {
            Self::Placed => "placed",
        }
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
