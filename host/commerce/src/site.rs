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
/// Components that nodes compile ahead for one site, the newest: each may cost a node seconds of a processor.
pub const COMING_MAX: usize = 4;
/// Largest settings of one release, as JSON text: they are copied into every call.
pub const RELEASE_SETTINGS_BYTES_MAX: usize = 64 * 1024;
/// Most hosts that one release may reach. A plugin that needs more wants a proxy of its merchant's.
pub const GRANT_HOSTS_MAX: usize = 32;
/// Most variables of the environment, and most keys of `wasi:config`, of one release.
pub const GRANT_ENTRIES_MAX: usize = 64;
/// Largest name, and largest value, of one of those.
pub const GRANT_NAME_BYTES_MAX: usize = 128;
pub const GRANT_VALUE_BYTES_MAX: usize = 4 * 1024;
/// Longest route of an HTTP release.
pub const ROUTE_BYTES_MAX: usize = 256;
/// Most requests that one instance of an HTTP release may serve before it is thrown away: what a guest remembers by
/// mistake must not live for ever.
pub const REUSE_MAX: u32 = 10_000;
/// `record_bp` counts in this many calls.
pub const RECORD_BP_MAX: u16 = 10_000;
/// Longest that a cart may be promised units before it is ordered: a shop window that nobody can buy from is worse than none.
pub const RESERVATION_MINUTES_MAX: u32 = 120;
/// Longest that a node may promise units by itself. They are out of everybody else's reach so long, and for a reservation
/// more, when it does not come back.
pub const GRANT_MINUTES_MAX: u32 = 60;
/// Greatest weight of a site among those that want a node's processors for their plugins.
pub const CPU_WEIGHT_MAX: u32 = 100;

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
    /// How many times the share of an ordinary site this one gets of a node's processors, when several want them; 1 if it
    /// is not said. The operator's to set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_weight: Option<u32>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub reservations: Reservations,
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

/// Whether carts are promised their units before they are ordered, and by whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reservations {
    pub enabled: bool,
    /// For how long a cart is promised its units.
    pub minutes: u32,
    /// Whether the region lends units of hot products to nodes, which then promise them by themselves.
    pub at_nodes: bool,
    /// For how long a node may do that after it has lost its region.
    pub grant_minutes: u32,
}

impl Default for Reservations {
    fn default() -> Self {
        // Long enough to fill in an address and a card; a region that restarts is back sooner than in ten minutes.
        // Off: whoever can fill a cart can keep units from others for so long, which a shop has to want.
        Self { enabled: false, minutes: 15, at_nodes: true, grant_minutes: 10 }
    }
}

impl Reservations {
    pub fn hold_ms(self) -> u64 {
        u64::from(self.minutes) * 60_000
    }

    pub fn grant_ms(self) -> u64 {
        u64::from(self.grant_minutes) * 60_000
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

/// Which contract a release keeps, and so which engine runs it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Typed functions of `souk:plugin`.
    #[default]
    Hooks,
    /// A `wasi:http` component on a route of the site.
    Http,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Hooks => "hooks",
            Self::Http => "http",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a release may reach beside its inputs. Everything that is not granted is refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Grants {
    /// `api.example.com` or `api.example.com:8443`; https, unless written `http://api.example.com`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// What `wasi:cli/environment` shows.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// What `wasi:config/store` shows.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub config: BTreeMap<String, String>,
}

impl Grants {
    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty() && self.env.is_empty() && self.config.is_empty()
    }
}

/// The region's word that this is what the merchant released. See [`crate::seal`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// Which key: the first 16 hexadecimal digits of the SHA-256 of the public key.
    pub key: String,
    /// Ed25519 over [`Release::sealed_bytes`] or [`ReleaseSet::sealed_bytes`], in base64.
    pub signature: String,
}

/// An immutable plugin version with its settings and grants.
///
/// A field that was added later is left out of the JSON while it has its default: an old release keeps its bytes, and
/// with them its seal.
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
    #[serde(default, skip_serializing_if = "is_default")]
    pub kind: Kind,
    #[serde(default, skip_serializing_if = "Grants::is_empty")]
    pub grants: Grants,
    /// The path prefix under which an HTTP release answers; none of a hook release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// Requests that one instance of an HTTP release serves; 0 and 1 both mean a fresh instance for each.
    #[serde(default, skip_serializing_if = "is_default")]
    pub reuse: u32,
    /// How many of 10,000 calls are recorded.
    #[serde(default, skip_serializing_if = "is_default")]
    pub record_bp: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal: Option<Seal>,
}

/// All active releases of a site; their order is the order of the chain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReleaseSet {
    pub site: SiteId,
    /// Of the log that carries it: another one after a restore of the region.
    pub version: u64,
    /// Greater with each set of the site, a roll-back's too, and whatever becomes of the region: a node accepts none that is
    /// below one it has had. Sealed; 0 only in a set that no region has published.
    #[serde(default, skip_serializing_if = "is_default")]
    pub number: u64,
    #[serde(default)]
    pub releases: Vec<Release>,
    /// Per plugin the release that was active before: the one to go back to when the active one breaks the guard.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub standby: Vec<Release>,
    /// Components that were pushed and are not deployed, as releases of number 0 without settings: nodes compile them
    /// ahead, so that to deploy one is a matter of milliseconds. Never part of a chain.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub coming: Vec<Release>,
    /// The region's word that these releases, and no others, are what the site runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal: Option<Seal>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Why settings were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSettings {
    #[error("host {0:?} is not a lower-case host name without a port")]
    Host(String),
    #[error("cpu_weight is 0: a site's weight is 1 to {CPU_WEIGHT_MAX}")]
    NoWeight,
    #[error(
        "reservations.{0} is 0: to promise nothing, set reservations.enabled or reservations.at_nodes to false"
    )]
    NoMinutes(&'static str),
    #[error("{field} is {value}, more than {value_max}")]
    TooMuch { field: &'static str, value: u64, value_max: u64 },
    #[error("grants.hosts has {0:?}: write api.example.com, api.example.com:8443 or http://api.example.com")]
    GrantHost(String),
    #[error(
        "grants.{field} has a name {name:?}: 1 to {GRANT_NAME_BYTES_MAX} printable ASCII characters without '='"
    )]
    GrantName { field: &'static str, name: String },
    #[error(
        "route {0:?} is not a path prefix: '/' and then segments of A-Z a-z 0-9 - . _ ~, not under /api/ or /.well-known/"
    )]
    Route(String),
    #[error("{field} is for releases of kind {kind} only")]
    WrongKind { field: &'static str, kind: Kind },
    #[error("a release of kind http needs a route")]
    NoRoute,
}

impl InvalidSettings {
    /// Which field was wrong.
    pub fn field(&self) -> &'static str {
        match self {
            Self::Host(_) => "hosts",
            Self::NoWeight => "cpu_weight",
            Self::NoMinutes(_) => "reservations",
            Self::TooMuch { field, .. } => field,
            Self::GrantHost(_) | Self::GrantName { .. } => "grants",
            Self::Route(_) | Self::NoRoute => "route",
            Self::WrongKind { field, .. } => field,
        }
    }
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
            cpu_weight: None,
            reservations: Reservations::default(),
            shopper_key: None,
            kv: BTreeMap::new(),
        }
    }

    /// Checked by the region before settings enter the configuration log.
    pub fn check(&self) -> Result<(), InvalidSettings> {
        for host in &self.hosts {
            if !is_host(host) {
                return Err(InvalidSettings::Host(host.chars().take(80).collect()));
            }
        }
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
        if self.cpu_weight == Some(0) {
            return Err(InvalidSettings::NoWeight);
        }
        at_most("cpu_weight", self.cpu_weight().into(), CPU_WEIGHT_MAX.into())?;
        let Reservations { minutes, grant_minutes, .. } = self.reservations;
        for (field, value) in [("minutes", minutes), ("grant_minutes", grant_minutes)] {
            if value == 0 {
                return Err(InvalidSettings::NoMinutes(field));
            }
        }
        at_most("reservations.minutes", minutes.into(), RESERVATION_MINUTES_MAX.into())?;
        at_most("reservations.grant_minutes", grant_minutes.into(), GRANT_MINUTES_MAX.into())?;
        at_most("limits.coupons_max", self.limits.coupons_max.into(), 100)?;
        at_most("guard.line_discount_bp_max", self.guard.line_discount_bp_max.into(), 10_000)?;
        at_most("guard.cart_discount_bp_max", self.guard.cart_discount_bp_max.into(), 10_000)
    }

    /// The weight that counts.
    pub fn cpu_weight(&self) -> u32 {
        self.cpu_weight.unwrap_or(1)
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        json(self)
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        from_json("site settings", bytes)
    }
}

fn is_host(host: &str) -> bool {
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    host.len() <= 253 && host.split('.').all(label)
}

fn at_most(field: &'static str, value: u64, value_max: u64) -> Result<(), InvalidSettings> {
    if value <= value_max { Ok(()) } else { Err(InvalidSettings::TooMuch { field, value, value_max }) }
}

impl Grants {
    fn check(&self) -> Result<(), InvalidSettings> {
        at_most("grants.hosts", self.hosts.len() as u64, GRANT_HOSTS_MAX as u64)?;
        for host in &self.hosts {
            let authority = host.strip_prefix("http://").unwrap_or(host);
            let (name, port) = authority.split_once(':').unwrap_or((authority, "443"));
            let port_ok = !port.starts_with(['0', '+']) && port.parse::<u16>().is_ok();
            // A name, never an address: what a name points to is judged each time it is looked up.
            let named = name.split('.').next_back().is_some_and(|l| !l.bytes().all(|b| b.is_ascii_digit()));
            if !port_ok || !named || !is_host(name) {
                return Err(InvalidSettings::GrantHost(host.chars().take(80).collect()));
            }
        }
        for (field, entries) in [("env", &self.env), ("config", &self.config)] {
            at_most("grants.entries", entries.len() as u64, GRANT_ENTRIES_MAX as u64)?;
            for (name, value) in entries {
                let plain = (1..=GRANT_NAME_BYTES_MAX).contains(&name.len())
                    && name.bytes().all(|b| b.is_ascii_graphic() && b != b'=');
                if !plain {
                    return Err(InvalidSettings::GrantName { field, name: name.chars().take(80).collect() });
                }
                at_most("grants.value_bytes", value.len() as u64, GRANT_VALUE_BYTES_MAX as u64)?;
            }
        }
        Ok(())
    }
}

/// A path prefix whose every spelling is its own: nothing that a decoder would change.
fn is_route(route: &str) -> bool {
    let segment = |s: &str| {
        !s.is_empty()
            && s != "."
            && s != ".."
            && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~'))
    };
    let Some(rest) = route.strip_prefix('/') else { return false };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    // The platform's own paths are not for rent.
    let ours = |top: &str| top == "api" || top == ".well-known";
    route.len() <= ROUTE_BYTES_MAX
        && (rest.is_empty() || rest.split('/').all(segment))
        && !rest.split('/').next().is_some_and(ours)
}

impl Release {
    /// Checked by the region before a release is made.
    pub fn check(&self) -> Result<(), InvalidSettings> {
        self.grants.check()?;
        at_most("reuse", self.reuse.into(), REUSE_MAX.into())?;
        at_most("record_bp", self.record_bp.into(), RECORD_BP_MAX.into())?;
        let settings = json(&self.settings).len();
        at_most("settings", settings as u64, RELEASE_SETTINGS_BYTES_MAX as u64)?;
        match (self.kind, &self.route) {
            (Kind::Http, None) => Err(InvalidSettings::NoRoute),
            (Kind::Http, Some(route)) if !is_route(route) => {
                Err(InvalidSettings::Route(route.chars().take(80).collect()))
            }
            (Kind::Http, Some(_)) => Ok(()),
            (Kind::Hooks, Some(_)) => Err(InvalidSettings::WrongKind { field: "route", kind: Kind::Http }),
            (Kind::Hooks, None) if self.reuse > 1 => {
                Err(InvalidSettings::WrongKind { field: "reuse", kind: Kind::Http })
            }
            (Kind::Hooks, None) if !self.grants.is_empty() => {
                Err(InvalidSettings::WrongKind { field: "grants", kind: Kind::Http })
            }
            (Kind::Hooks, None) => Ok(()),
        }
    }
}

impl ReleaseSet {
    /// A site without plugins.
    pub fn empty(site: SiteId) -> Self {
        Self {
            site,
            version: 0,
            number: 0,
            releases: Vec::new(),
            standby: Vec::new(),
            coming: Vec::new(),
            seal: None,
        }
    }

    /// Whether both have the same releases, whatever else there is to say of the site's components.
    pub fn has_chain_of(&self, other: &Self) -> bool {
        self.releases == other.releases && self.standby == other.standby
    }

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
    fn a_shop_promises_for_a_while_or_says_that_it_does_not() {
        let good = SiteSettings::new("shop".parse().expect("a site"), "GBP".parse().expect("a currency"));
        let text = String::from_utf8(good.to_bytes()).expect("JSON");
        assert!(
            !text.contains("reservations"),
            "the default is not written, so that old settings keep their bytes"
        );
        let with = |json: &str| {
            let text = text.replacen('{', &format!(r#"{{"reservations":{json},"#), 1);
            SiteSettings::from_bytes(text.as_bytes()).expect("readable")
        };
        let on = with(r#"{"enabled":true}"#);
        assert_eq!(on.reservations, Reservations { enabled: true, ..Reservations::default() });
        assert_eq!(SiteSettings::from_bytes(&on.to_bytes()), Ok(on));
        assert!(matches!(with(r#"{"minutes":0}"#).check(), Err(InvalidSettings::NoMinutes("minutes"))));
        let bad = with(r#"{"grant_minutes":61}"#);
        assert!(matches!(bad.check(), Err(InvalidSettings::TooMuch { value: 61, .. })));
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
