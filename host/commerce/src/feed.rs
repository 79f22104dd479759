//! Bodies of the logs from the region down: each is one row of one site, whole, so that applying it twice is applying
//! it once. `None` takes the row away.
//!
//! The configuration and release logs carry [`crate::site::SiteSettings`] and [`crate::site::ReleaseSet`] instead.

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::codec::{self, DecodeError};
use crate::id::{CartTag, Digest, SiteId, Sku};
use crate::product::{PriceRow, Product, StockHint};
use crate::purge::Forget;

/// Largest body of these logs: a product at all of its limits is 45 KiB.
pub const FEED_BYTES_MAX: usize = 64 * 1024;

/// Most carts that one [`PurgeChange`] erases: 17 bytes each, half of what a record of the log may have.
pub const CARTS_ERASED_MAX: usize = 1_800;

/// Log `Purge`: what a site's nodes forget. Not a row: it is obeyed and not kept.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct PurgeChange {
    #[n(0)]
    pub site: SiteId,
    /// Of what is in their caches.
    #[n(1)]
    pub forget: Forget,
    /// Carts of a shopper who was erased. A node of a release that does not know them skips them, and says that it has obeyed.
    #[n(2)]
    #[cbor(default)]
    pub carts: Vec<CartTag>,
}

impl PurgeChange {
    pub fn of(site: SiteId, forget: Forget) -> Self {
        Self { site, forget, carts: Vec::new() }
    }
}

/// Log `Catalog`: a product's content.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct ProductChange {
    #[n(0)]
    pub site: SiteId,
    #[n(1)]
    pub sku: Sku,
    #[n(2)]
    pub product: Option<Product>,
}

/// Log `Price`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct PriceChange {
    #[n(0)]
    pub site: SiteId,
    #[n(1)]
    pub sku: Sku,
    #[n(2)]
    pub price: Option<PriceRow>,
}

/// Log `Stock`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct StockChange {
    #[n(0)]
    pub site: SiteId,
    #[n(1)]
    pub sku: Sku,
    #[n(2)]
    pub hint: StockHint,
}

/// Log `Asset`: which blob a path of the site shows.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct AssetChange {
    #[n(0)]
    pub site: SiteId,
    /// Absolute, such as `/index.html`.
    #[n(1)]
    pub path: String,
    #[n(2)]
    pub asset: Option<Asset>,
}

/// A static file, by the name of its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Encode, Decode)]
pub struct Asset {
    #[n(0)]
    pub digest: Digest,
    #[n(1)]
    pub bytes: u64,
    #[n(2)]
    pub content_type: String,
    /// The versions before it, newest first, at most [`crate::lineage::FORMER_MAX`]: whoever has one of them needs to be
    /// told only what has changed. Written by the region.
    #[n(3)]
    #[cbor(default)]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub former: Vec<Former>,
}

/// A version of a file that is not current any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Encode, Decode)]
pub struct Former {
    #[n(0)]
    pub digest: Digest,
    #[n(1)]
    pub bytes: u64,
}

impl Asset {
    /// A file without a past.
    pub fn new(digest: Digest, bytes: u64, content_type: String) -> Self {
        Self { digest, bytes, content_type, former: Vec::new() }
    }

    /// Whether both show the same, whatever they showed before.
    pub fn shows_the_same(&self, other: &Self) -> bool {
        (self.digest, self.bytes, &self.content_type) == (other.digest, other.bytes, &other.content_type)
    }
}

macro_rules! body {
    ($($type:ident, $what:literal;)*) => {$(
        impl $type {
            pub fn to_bytes(&self) -> Vec<u8> {
                codec::to_bytes(self)
            }

            pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
                codec::from_bytes($what, bytes, FEED_BYTES_MAX)
            }
        }
    )*};
}

body! {
    PurgeChange, "a purge";
    ProductChange, "a product change";
    PriceChange, "a price change";
    StockChange, "a stock change";
    AssetChange, "an asset change";
}
