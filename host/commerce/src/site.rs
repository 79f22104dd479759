//! A merchant's settings and releases, as the region sends them down and as its API speaks of them.
//!
//! JSON, and unknown fields are skipped on purpose: a node that is one release older must read what a newer region
//! writes. Nothing here loads a plugin or opens a socket.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::codec::DecodeError;
use crate::id::{Digest, PluginName, SiteId};
use crate::money::Currency;

/// Largest JSON of a site's settings or of its releases. It travels as one record of a log.
pub const SETTINGS_BYTES_MAX: usize = 1024 * 1024;
/// Most plugins that one site may chain. Each costs a share of one hook deadline.
pub const RELEASES_MAX: usize = 16;
/// Largest settings of one release, as JSON text: they are copied into every call.
pub const RELEASE_SETTINGS_BYTES_MAX: usize = 64 * 1024;

/// One merchant's shop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SiteSettings {
    pub site: SiteId,
    #[serde(default)]
    pub name: String,
    /// Host names, lower case and without a port.
    #[serde(default)]
    pub hosts: Vec<String>,
    pub currency: Currency,
    /// BCP 47, the language of a shopper who asks for none.
    #[serde(default)]
    pub language: String,
    #[serde(default)]
    pub limits: SiteLimits,
    #[serde(default)]
    pub guard: Guard,
    /// Ed25519 public key (PEM) that verifies shopper tokens.
    #[serde(default)]
    pub shopper_key: Option<String>,
    /// The edge data that plugins read with `kv-get`.
    #[serde(default)]
    pub kv: BTreeMap<String, String>,
}

/// How much a shopper may put into one cart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SiteLimits {
    pub cart_lines_max: u32,
    pub line_quantity_max: u32,
    pub coupons_max: u32,
}

impl Default for SiteLimits {
    fn default() -> Self {
        // A wholesale order in the wild data has 1,114 rows over 700 SKUs, and one of 80,995 pieces.
        Self { cart_lines_max: 1_000, line_quantity_max: 100_000, coupons_max: 10 }
    }
}

/// What no plugin may exceed, in basis points of the undiscounted amount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Guard {
    pub line_discount_bp_max: u32,
    pub cart_discount_bp_max: u32,
}

impl Default for Guard {
    fn default() -> Self {
        Self { line_discount_bp_max: 9_000, cart_discount_bp_max: 9_000 }
    }
}

/// A typed function that a plugin may export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hook {
    Catalog,
    Pricing,
    Cart,
    Checkout,
}

impl Hook {
    pub const ALL: [Self; 4] = [Self::Catalog, Self::Pricing, Self::Cart, Self::Checkout];

    pub fn name(self) -> &'static str {
        match self {
            Self::Catalog => "catalog",
            Self::Pricing => "pricing",
            Self::Cart => "cart",
            Self::Checkout => "checkout",
        }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What happens to a call when a plugin fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFault {
    /// Go on without the plugin, and say so in the quote.
    #[default]
    Open,
    /// Refuse the call.
    Closed,
}

/// An immutable plugin version with its settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Release {
    pub plugin: PluginName,
    /// Counts the releases of this plugin at this site: 1, 2, 3…
    pub number: u32,
    pub component: Digest,
    pub hooks: Vec<Hook>,
    #[serde(default)]
    pub settings: serde_json::Value,
    #[serde(default)]
    pub on_fault: OnFault,
}

/// All active releases of a site; their order is the order of the chain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReleaseSet {
    pub site: SiteId,
    pub version: u64,
    #[serde(default)]
    pub releases: Vec<Release>,
}

/// Why settings were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSettings {
    #[error("host {0:?} is not a lower-case host name without a port")]
    Host(String),
    #[error("{field} is {value}, more than {value_max}")]
    TooMuch { field: &'static str, value: u64, value_max: u64 },
}

impl SiteSettings {
    /// Settings with every default.
    pub fn new(site: SiteId, currency: Currency) -> Self {
        Self {
            name: site.to_string(),
            site,
            hosts: Vec::new(),
            currency,
            language: String::new(),
            limits: SiteLimits::default(),
            guard: Guard::default(),
            shopper_key: None,
            kv: BTreeMap::new(),
        }
    }

    /// Checked by the region before settings enter the configuration log.
    pub fn check(&self) -> Result<(), InvalidSettings> {
        for host in &self.hosts {
            let label = |l: &str| {
                (1..=63).contains(&l.len())
                    && l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            };
            if host.len() > 253 || !host.split('.').all(label) {
                return Err(InvalidSettings::Host(host.chars().take(80).collect()));
            }
        }
        let at_most = |field, value: u64, value_max: u64| {
            if value <= value_max {
                Ok(())
            } else {
                Err(InvalidSettings::TooMuch { field, value, value_max })
            }
        };
        // Beside lines a cart holds coupons and the plugins' own lines: half of the entries is left to those.
        at_most(
            "limits.cart_lines_max",
            self.limits.cart_lines_max.into(),
            crate::cart::ENTRIES_MAX as u64 / 2,
        )?;
        at_most(
            "limits.line_quantity_max",
            self.limits.line_quantity_max.into(),
            crate::cart::QUANTITY_MAX.into(),
        )?;
        at_most("limits.coupons_max", self.limits.coupons_max.into(), 100)?;
        at_most("guard.line_discount_bp_max", self.guard.line_discount_bp_max.into(), 10_000)?;
        at_most("guard.cart_discount_bp_max", self.guard.cart_discount_bp_max.into(), 10_000)
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        json(self)
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        from_json("site settings", bytes)
    }
}

impl ReleaseSet {
    pub fn to_bytes(&self) -> Vec<u8> {
        json(self)
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        from_json("a release set", bytes)
    }
}

fn json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("these types have string keys only and no failing serialiser")
}

fn from_json<'b, T: Deserialize<'b>>(what: &'static str, bytes: &'b [u8]) -> Result<T, DecodeError> {
    if bytes.len() > SETTINGS_BYTES_MAX {
        return Err(DecodeError::TooLong { what, bytes: bytes.len(), bytes_max: SETTINGS_BYTES_MAX });
    }
    serde_json::from_slice(bytes).map_err(|e| DecodeError::Malformed { what, reason: e.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_settings_have_every_default_and_tomorrows_fields_are_skipped() {
        let settings = SiteSettings::from_bytes(
            br#"{"site":"shop","currency":"GBP","limits":{"coupons_max":3},"moon":true}"#,
        )
        .expect("readable");
        assert_eq!(settings.limits, SiteLimits { coupons_max: 3, ..SiteLimits::default() });
        assert_eq!(settings.guard, Guard::default());
        assert_eq!(settings.check(), Ok(()));
        assert_eq!(SiteSettings::from_bytes(&settings.to_bytes()), Ok(settings));
    }

    #[test]
    fn settings_that_the_rest_could_not_keep_are_refused() {
        let good = SiteSettings::new("shop".parse().expect("a site"), "GBP".parse().expect("a currency"));
        for host in ["Shop.example", "shop.example:80", "", "a..b", "shop_x"] {
            let bad = SiteSettings { hosts: vec![host.to_owned()], ..good.clone() };
            assert!(matches!(bad.check(), Err(InvalidSettings::Host(_))), "{host:?}");
        }
        let bad = SiteSettings { guard: Guard { line_discount_bp_max: 10_001, ..Guard::default() }, ..good };
        assert!(matches!(bad.check(), Err(InvalidSettings::TooMuch { .. })));
    }

    #[test]
    fn a_release_needs_neither_settings_nor_a_fault_policy() {
        let json = format!(
            r#"{{"site":"shop","version":7,"releases":[{{"plugin":"pricing","number":1,"component":"{}","hooks":["pricing"]}}]}}"#,
            Digest::of(b"x")
        );
        let set = ReleaseSet::from_bytes(json.as_bytes()).expect("readable");
        assert_eq!(set.releases[0].on_fault, OnFault::Open);
        assert_eq!(set.releases[0].settings, serde_json::Value::Null);
        assert_eq!(ReleaseSet::from_bytes(&set.to_bytes()), Ok(set));
    }
}
