//! Names that cross a border are types: parsed once, valid ever after.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest name of a site: a DNS label.
pub const SITE_BYTES_MAX: usize = 63;
/// Longest stock-keeping unit. The longest in the wild data that we import is 12.
pub const SKU_BYTES_MAX: usize = 64;
/// Longest coupon code.
pub const COUPON_BYTES_MAX: usize = 40;
/// Longest name of a plugin.
pub const PLUGIN_BYTES_MAX: usize = 40;

/// Why a name was refused. Says what is wrong and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {text:?} is not valid: {rule}")]
pub struct InvalidName {
    pub kind: &'static str,
    pub text: String,
    pub rule: &'static str,
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $rule:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                let valid: fn(&str) -> bool = $valid;
                if valid(text) {
                    Ok(Self(text.into()))
                } else {
                    // A refused name may be hostile: what is echoed is bounded.
                    Err(InvalidName { kind: $kind, text: text.chars().take(80).collect(), rule: $rule })
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl<C> minicbor::Encode<C> for $name {
            fn encode<W: minicbor::encode::Write>(
                &self,
                e: &mut minicbor::Encoder<W>,
                _: &mut C,
            ) -> Result<(), minicbor::encode::Error<W::Error>> {
                e.str(&self.0)?.ok()
            }
        }

        impl<'b, C> minicbor::Decode<'b, C> for $name {
            fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
                let at = d.position();
                d.str()?.parse().map_err(|e: InvalidName| minicbor::decode::Error::message(e.to_string()).at(at))
            }
        }
    };
}

name!(
    /// One merchant's shop.
    SiteId, "site", "1 to 63 characters of a-z, 0-9 and '-', beginning with a letter or digit",
    |t| (1..=SITE_BYTES_MAX).contains(&t.len())
        && !t.starts_with('-')
        && t.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
);
name!(
    /// A stock-keeping unit. `~` is kept free for line names, `/` for paths.
    Sku, "sku", "1 to 64 printable ASCII characters except '~', '/', '\\' and '\"', with no space at either end",
    |t| (1..=SKU_BYTES_MAX).contains(&t.len())
        && t.trim() == t
        && t.bytes().all(|b| (b' '..=b'~').contains(&b) && !matches!(b, b'~' | b'/' | b'\\' | b'"'))
);
name!(
    /// A coupon code, upper case.
    Coupon, "coupon", "1 to 40 characters of A-Z, 0-9, '-' and '_'",
    |t| (1..=COUPON_BYTES_MAX).contains(&t.len())
        && t.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'))
);
name!(
    /// The name under which a merchant releases a plugin.
    PluginName, "plugin", "1 to 40 characters of a-z, 0-9 and '-', beginning with a letter",
    |t| (1..=PLUGIN_BYTES_MAX).contains(&t.len())
        && t.starts_with(|c: char| c.is_ascii_lowercase())
        && t.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
);
name!(
    /// ISO 3166-1 alpha-2.
    Country, "country", "two letters of ISO 3166-1 in upper case, such as GB",
    |t| t.len() == 2 && t.bytes().all(|b| b.is_ascii_uppercase())
);

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 16]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                // Whoever knows the number may open it, so logs see its beginning only.
                write!(f, "{}…", &hex::encode(&self.0[..4]))
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                let mut bytes = [0; 16];
                let lower = text.len() == 32 && !text.bytes().any(|b| b.is_ascii_uppercase());
                if lower && hex::decode_to_slice(text, &mut bytes).is_ok() {
                    Ok(Self(bytes))
                } else {
                    Err(InvalidName {
                        kind: $kind,
                        text: text.chars().take(80).collect(),
                        rule: "32 lower-case hexadecimal digits",
                    })
                }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl<C> minicbor::Encode<C> for $name {
            fn encode<W: minicbor::encode::Write>(
                &self,
                e: &mut minicbor::Encoder<W>,
                _: &mut C,
            ) -> Result<(), minicbor::encode::Error<W::Error>> {
                e.bytes(&self.0)?.ok()
            }
        }

        impl<'b, C> minicbor::Decode<'b, C> for $name {
            fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
                let at = d.position();
                d.bytes()?
                    .try_into()
                    .map(Self)
                    .map_err(|_| minicbor::decode::Error::message(concat!($kind, " must be 16 bytes")).at(at))
            }
        }
    };
}

random_id!(
    /// A cart. 128 random bits: to know the number is the right to use the cart.
    CartId, "cart"
);
random_id!(
    /// An order, named by the region when it is placed.
    OrderId, "order"
);
random_id!(
    /// Units that a cart was promised, named by the node that was asked.
    HoldId, "hold"
);
random_id!(
    /// Units of a product that a region has lent to a node.
    GrantId, "grant"
);

/// A node, as its certificate names it (`spiffe://souk/<region>/edge/<id>`).
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    minicbor::Encode,
    minicbor::Decode,
)]
#[cbor(transparent)]
pub struct NodeId(#[n(0)] pub u32);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One life of a node's outbox. The region mints it; a sequence number is never used twice within one.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    minicbor::Encode,
    minicbor::Decode,
)]
#[cbor(transparent)]
pub struct Epoch(#[n(0)] pub u32);

/// SHA-256 of a blob (a component, an asset): its name everywhere.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        Self(sha2::Sha256::digest(bytes).into())
    }
}

/// What an erased cart is known by: whoever has the cart finds it, and nobody finds the cart by it. A number of 128 random bits
/// needs no key to be hidden behind a hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, minicbor::Encode, minicbor::Decode)]
#[cbor(transparent)]
pub struct CartTag(
    #[n(0)]
    #[cbor(with = "minicbor::bytes")]
    pub [u8; 16],
);

impl CartId {
    /// Of this cart at its site.
    pub fn tag(&self, site: &SiteId) -> CartTag {
        const DOMAIN: &[u8] = b"souk erased cart\0";
        let digest = Digest::of(&[DOMAIN, site.as_str().as_bytes(), b"\0", &self.0].concat());
        let (first, _) = digest.0.split_first_chunk().expect("32 bytes begin with 16");
        CartTag(*first)
    }

    /// What plugins get for randomness: the same for every call about one cart, on every machine, and no part of the
    /// number, which is the right to the cart and must not reach a plugin or a recording.
    pub fn seed(&self) -> u64 {
        const DOMAIN: &[u8] = b"souk cart seed\0";
        let digest = Digest::of(&[DOMAIN, &self.0].concat());
        let (first, _) = digest.0.split_first_chunk().expect("32 bytes begin with 8");
        u64::from_be_bytes(*first)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", &hex::encode(&self.0[..6]))
    }
}

impl FromStr for Digest {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map(|()| Self(bytes)).map_err(|_| InvalidName {
            kind: "digest",
            text: text.chars().take(80).collect(),
            rule: "the 64 hexadecimal digits of a SHA-256",
        })
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl<C> minicbor::Encode<C> for Digest {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        e.bytes(&self.0)?.ok()
    }
}

impl<'b, C> minicbor::Decode<'b, C> for Digest {
    fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        let at = d.position();
        d.bytes()?
            .try_into()
            .map(Self)
            .map_err(|_| minicbor::decode::Error::message("a digest must be 32 bytes").at(at))
    }
}
